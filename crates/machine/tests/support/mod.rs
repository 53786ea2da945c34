//! Test kernels from assembly source, and running them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use machine::{Consoles, Description, Machine, MakeEngine, Outcome};
use parking_lot::Mutex;

/// Assembles and links `tests/kernels/NAME.S` to a Multiboot ELF file.
pub fn kernel(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let out = tempfile::Builder::new()
        .prefix(name)
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .unwrap()
        .keep();
    let (object, elf) = (out.join("kernel.o"), out.join("kernel"));
    let run = |tool: &str, args: &[&std::ffi::OsStr]| {
        let done = Command::new(tool).args(args).output().unwrap_or_else(|e| {
            panic!("cannot run {tool}: {e}; install binutils (part of build-essential)")
        });
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{tool} on {name}: {text}");
    };
    let file = source.join(format!("{name}.S"));
    let word = |s: &'static str| std::ffi::OsStr::new(s);
    run(
        "as",
        &[
            word("--64"),
            word("-I"),
            source.as_ref(),
            word("-o"),
            object.as_ref(),
            file.as_ref(),
        ],
    );
    let address = [
        word("-N"),
        word("-Ttext"),
        word("0x100000"),
        word("-e"),
        word("_start"),
    ];
    let mut link = vec![
        word("-m"),
        word("elf_x86_64"),
        word("-o"),
        elf.as_ref(),
        object.as_ref(),
    ];
    link.extend(address);
    run("ld", &link);
    elf
}

/// What the guest wrote to its serial port.
#[derive(Default)]
pub struct Screen(Mutex<Vec<u8>>);

impl Screen {
    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl machine::SerialSink for Screen {
    fn write(&self, data: &[u8]) {
        self.0.lock().extend_from_slice(data);
    }
}

/// A machine with a test kernel, 32 MiB and a debug-exit port.
pub fn description(name: &str, cpus: u32, cmdline: &str) -> Description {
    let mut d = Description::new(cpus, 32 << 20, kernel(name));
    d.boot.as_kernel_mut().unwrap().cmdline = cmdline.into();
    d.debug_exit = true;
    d
}

/// The serial port on a screen, no virtio console.
pub fn consoles(screen: &Arc<Screen>) -> Consoles {
    Consoles {
        serial: screen.clone(),
        virtio: None,
    }
}

/// Assembles the machine with its serial port on a new screen.
pub fn machine(description: Description, engine: MakeEngine<'_>) -> (Machine, Arc<Screen>) {
    let screen = Arc::new(Screen::default());
    let machine = Machine::new(description, engine, consoles(&screen)).unwrap();
    (machine, screen)
}

/// Runs to the end; how it ended, and the serial output.
pub fn run(description: Description, engine: MakeEngine<'_>) -> (Arc<Outcome>, String) {
    let (machine, screen) = machine(description, engine);
    machine.start(Some(Duration::from_secs(60))).unwrap();
    let outcome = machine.wait();
    (outcome, screen.text())
}
