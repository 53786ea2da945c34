//! What the end-to-end tests share: the built `holm` on real guests. A missing
//! requirement is an error, never a skip.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "../../../../xtask/src/console.rs"]
pub mod console;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

pub use console::{Console, base64};

/// Time for a boot on a busy host.
pub const BOOT: Duration = Duration::from_secs(240);
/// Time for anything short in a running guest.
pub const SOON: Duration = Duration::from_secs(60);

/// The program under test.
pub fn holm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_holm"))
}

/// Directory of an image; it must have been made.
pub fn image(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))
        .expect("HOME or XDG_CACHE_HOME is set");
    let image = cache.join("holm/images").join(name);
    assert!(
        image.join("image.json").is_file(),
        "image {name} is missing: run `cargo xtask image {name}` first"
    );
    image
}

/// What a command in `tiny` printed, and its status.
pub struct Answer {
    pub output: String,
    pub status: i32,
    /// Status of holm itself.
    pub code: Option<i32>,
}

/// Boots `tiny`, runs a shell command in it, and lets it power off.
pub fn tiny(options: &[&str], command: &str) -> Answer {
    image("tiny");
    let mut console = Console::start(holm().args(["run", "tiny"]).args(options).args([
        "--append",
        &format!("quiet cmd={}", base64(command.as_bytes())),
    ]))
    .unwrap();
    console.expect("HOLM-READY ", BOOT).unwrap();
    console.expect("\n", SOON).unwrap();
    let output = console.expect("HOLM-EXIT ", BOOT).unwrap();
    let status = console.expect("\n", SOON).unwrap().trim().parse().unwrap();
    let (holm, _) = console.finish(SOON).unwrap();
    Answer {
        output: output.replace("\r\n", "\n"),
        status,
        code: holm.code(),
    }
}

/// Runs holm to its end, with nothing on stdin.
pub fn run(arguments: &[&str]) -> Output {
    holm()
        .arg("run")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Files for a guest as a disk: a tar archive, padded to whole sectors.
pub fn tar_disk(directory: &Path, files: &[&Path]) -> PathBuf {
    let disk = directory.join("files.tar");
    let mut tar = Command::new("tar");
    // One record is 10240 bytes, a multiple of every sector size up to 2048.
    tar.arg("--create")
        .arg("--file")
        .arg(&disk)
        .arg("--blocking-factor=20");
    for file in files {
        tar.arg("--directory")
            .arg(file.parent().unwrap())
            .arg(file.file_name().unwrap());
    }
    assert!(tar.status().unwrap().success());
    disk
}

/// Compiles a test program, static, with gcc.
pub fn compile(directory: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let source = sources().join(format!("{name}.c"));
    let program = directory.join(name);
    let output = Command::new("gcc")
        .args(["-O2", "-static", "-pthread", "-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .args([&program, &source])
        .arg("-lm")
        .output()
        .expect("gcc is needed (package gcc)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

/// Assembles a static 32-bit program with binutils.
pub fn assemble32(directory: &Path, name: &str) -> PathBuf {
    let source = sources().join(format!("{name}.s"));
    let object = directory.join(format!("{name}.o"));
    let program = directory.join(name);
    let steps = [
        (
            "as",
            vec![
                "--32".as_ref(),
                "-o".as_ref(),
                object.as_os_str(),
                source.as_os_str(),
            ],
        ),
        (
            "ld",
            vec![
                "-m".as_ref(),
                "elf_i386".as_ref(),
                "-o".as_ref(),
                program.as_os_str(),
                object.as_os_str(),
            ],
        ),
    ];
    for (tool, arguments) in steps {
        let output = Command::new(tool)
            .args(arguments)
            .output()
            .unwrap_or_else(|_| panic!("{tool} is needed (package binutils)"));
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    program
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest")
}

/// CPU time (user and system) a process has used.
pub fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // Fields 14 and 15; the name in field 2 may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}
