//! The same disk file, read and written past the page cache by the same
//! program: natively, and in a guest whose disk it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::figures::Figures;
use super::sides::{PATIENCE, Side, Sides};
use crate::console::{Console, base64};
use crate::host;
use crate::image::{self, Name};

/// MiB written and read, and random reads one at a time, at full scale.
const MEBIBYTES: u32 = 1024;
const READS: u32 = 10_000;
/// File of the disk, in a directory.
const FILE: &str = "holm-bench-disk.img";

/// Where the file is, by the names of the figures: on the file system of the
/// cache, whose speed is the host's disk's, and in memory, where only the way
/// there costs time.
fn places() -> Result<[(&'static str, PathBuf); 2]> {
    let cache = host::cache()?.join("bench").join(FILE);
    Ok([
        ("disk", cache),
        ("memory", Path::new("/dev/shm").join(FILE)),
    ])
}

impl Sides {
    /// Sequential and random transfers on both places.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn disk(&self, side: Side, figures: &mut Figures) -> Result<()> {
        for (place, file) in places()? {
            let size = (MEBIBYTES * self.scale / 100).max(64);
            let reads = (READS * self.scale / 100).max(100);
            let disk = Disk::make(&file, size)?;
            let output = self.transfers(side, &disk.0, size, reads);
            drop(disk);
            let output = output?.replace("BENCH disk_", &format!("BENCH {place}_"));
            if figures.add_lines("disk", side, &output) != 4 {
                bail!("the disk under {side} printed no four results:\n{output}");
            }
        }
        Ok(())
    }

    fn transfers(&self, side: Side, disk: &Path, size: u32, reads: u32) -> Result<String> {
        let program = self.parts.workloads.join("diskload");
        if side == Side::Native {
            let mut command = Command::new(program);
            command
                .arg(disk)
                .args([size.to_string(), reads.to_string()]);
            return host::output(&mut command);
        }
        // The program comes on a disk of its own.
        let mut bytes = fs::read(&program).context("reading the disk workload")?;
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let carrier = program.with_extension("img");
        fs::write(&carrier, bytes)?;
        let script =
            format!("cat /dev/vdb > /tmp/l; chmod +x /tmp/l; /tmp/l /dev/vda {size} {reads}");
        let cmdline = format!("quiet cmd={}", base64(script.as_bytes()));
        let mut command = match side {
            Side::Holm => self.holm_with(disk, &carrier, &cmdline),
            _ => qemu_with(disk, &carrier, &cmdline)?,
        };
        let mut console = Console::start(&mut command)?;
        console.expect("HOLM-READY", PATIENCE)?;
        console.expect("HOLM-EXIT", PATIENCE)
    }

    fn holm_with(&self, disk: &Path, carrier: &Path, cmdline: &str) -> Command {
        let mut command = Command::new(&self.holm);
        command
            .args(["run", "tiny", "--cpus", "2", "--append", cmdline, "--disk"])
            .arg(disk)
            .args(["--disk", &format!("{},readonly", carrier.display())])
            .args(&self.options);
        command
    }
}

/// QEMU as it is fastest: no page cache, io_uring.
fn qemu_with(disk: &Path, carrier: &Path, cmdline: &str) -> Result<Command> {
    let image = image::make(Name::Tiny, false)?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot", "-smp", "2", "-m", "1024"])
        .arg("-kernel")
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(image.join("initrd"))
        .args(["-append", &format!("console=ttyS0 {cmdline}")])
        .stderr(Stdio::null());
    for (file, more) in [(disk, "cache=none,aio=io_uring"), (carrier, "readonly=on")] {
        let file = file.display();
        command
            .arg("-drive")
            .arg(format!("file={file},format=raw,if=virtio,{more}"));
    }
    Ok(command)
}

/// A file for the measurements, removed with this.
struct Disk(PathBuf);

impl Disk {
    fn make(path: &Path, mebibytes: u32) -> Result<Self> {
        let disk = Self(path.to_owned());
        let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        // Written blocks, so that no side allocates while it is measured.
        let mut rest = u64::from(mebibytes) << 20;
        let block = vec![0x5a; 1 << 20];
        while rest > 0 {
            std::io::Write::write_all(&mut &file, &block)?;
            rest -= 1 << 20;
        }
        file.sync_all()?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Left-over files are made anew the next time.
        let _ = fs::remove_file(&self.0);
    }
}
