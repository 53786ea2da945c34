//! Disks of both sides, measured by fio in the image `debian-disk` on the same
//! file, raw and as qcow2, past the guest's page cache; and natively.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::qemu;
use super::figures::Figures;
use super::sides::{PATIENCE, Side, Sides};
use crate::console::Console;
use crate::host;
use crate::image::{self, Name};

/// MiB of the disk that is measured; it has data everywhere.
const MEBIBYTES: u32 = 1024;
/// Seconds of each measurement, at full scale.
const SECONDS: u32 = 4;
/// Measurements: name, fio's options, and whether operations count.
const JOBS: [(&str, &str, bool); 4] = [
    ("seq read", "--rw=read --bs=1M --iodepth=4", false),
    ("seq write", "--rw=write --bs=1M --iodepth=4", false),
    ("4k randread 1", "--rw=randread --bs=4k --iodepth=1", true),
    ("4k randread 32", "--rw=randread --bs=4k --iodepth=32", true),
];

impl Sides {
    /// Streams and random reads, raw and qcow2.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn disk(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let place = host::cache()?.join(format!("bench/disk-{}", std::process::id()));
        fs::create_dir_all(&place).context("making the benchmark's directory")?;
        let done = self.disk_at(&place, side, figures);
        // What failed before is the error to tell.
        let _ = fs::remove_dir_all(&place);
        done
    }

    fn disk_at(&self, place: &Path, side: Side, figures: &mut Figures) -> Result<()> {
        let raw = place.join("disk.raw");
        let fill = format!(
            "head -c {MEBIBYTES}M /dev/urandom > {0}; sync {0}",
            raw.display()
        );
        host::run(Command::new("sh").args(["-c", &fill]))?;
        let qcow2 = place.join("disk.qcow2");
        let mut convert = Command::new(&self.holm);
        host::run(convert.args(["disk", "convert"]).arg(&raw).arg(&qcow2))?;
        let seconds = (SECONDS * self.scale / 100).max(1);
        if side == Side::Native {
            let script = script(&raw.to_string_lossy(), "raw", seconds);
            let output = host::output(Command::new("sh").args(["-c", &script]))?;
            return add(figures, side, &output, JOBS.len());
        }
        image::make(Name::DebianDisk, false)?;
        let mut command = match side {
            Side::Holm => self.holm_disks(&raw, &qcow2),
            _ => qemu_disks(&raw, &qcow2)?,
        };
        let script = format!(
            "{}; {}",
            script("/dev/disk/by-id/virtio-raw", "raw", seconds),
            script("/dev/disk/by-id/virtio-qcow2", "qcow2", seconds)
        );
        let output = in_debian(&mut command, &script)?;
        add(figures, side, &output, 2 * JOBS.len())
    }

    fn holm_disks(&self, raw: &Path, qcow2: &Path) -> Command {
        let mut command = Command::new(&self.holm);
        command
            .args(["run", "debian-disk", "--cpus", "2", "--memory", "1G"])
            .args(["--net", "none", "--disk"])
            .arg(format!("{},format=raw,serial=raw", raw.display()))
            .arg("--disk")
            .arg(format!("{},format=qcow2,serial=qcow2", qcow2.display()))
            .args(&self.options);
        command
    }
}

fn qemu_disks(raw: &Path, qcow2: &Path) -> Result<Command> {
    let image = image::make(Name::DebianDisk, false)?;
    // The disk has no boot loader that firmware would find.
    let root = "root=UUID=5e0b15c6-3a05-4c29-9c0e-0d1500000001 ro console=ttyS0 quiet";
    let mut command = qemu(&image.join("disk.img"), root)?;
    for (name, file, format) in [("raw", raw, "raw"), ("qcow2", qcow2, "qcow2")] {
        command.arg("-drive").arg(format!(
            "file={},format={format},if=none,id={name},cache=none,aio=io_uring",
            file.display()
        ));
        command
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive={name},serial={name}"));
    }
    Ok(command)
}

/// Runs all jobs on a disk; a line per result, in seconds for a GiB or for
/// 10,000 operations.
fn script(disk: &str, what: &str, seconds: u32) -> String {
    let job = |(name, options, operations): &(&str, &str, bool)| {
        // Fields of fio's terse form: bandwidth in KiB/s, operations per second.
        let result = match (operations, name.contains("write")) {
            (true, _) => "10000/$8",
            (false, false) => "1048576/$7",
            (false, true) => "1048576/$48",
        };
        format!(
            "fio --name=j --filename={disk} --direct=1 --ioengine=libaio --size={MEBIBYTES}M \
             --time_based --runtime={seconds} --minimal {options} | awk -F';' '/^3;/ {{ printf \
             \"BENCH {}_{} %.4f check=0\\n\", {result} }}'",
            what,
            name.replace(' ', "_")
        )
    };
    JOBS.iter().map(job).collect::<Vec<_>>().join("; ")
}

fn in_debian(command: &mut Command, script: &str) -> Result<String> {
    let mut console = Console::start(command)?;
    console.expect("debian login: ", PATIENCE)?;
    console.send("root\n")?;
    console.expect("root@debian:~# ", PATIENCE)?;
    let encoded = crate::console::base64(script.as_bytes());
    // The terminal takes lines of 4095 bytes.
    console.send("stty -echo; rm -f /run/j\n")?;
    console.expect("# ", PATIENCE)?;
    for part in encoded.as_bytes().chunks(2000) {
        let part = String::from_utf8_lossy(part);
        console.send(&format!("printf %s {part} >> /run/j\n"))?;
        console.expect("# ", PATIENCE)?;
    }
    console.send("base64 -d /run/j > /run/k; sh /run/k; echo DO\"NE\"\n")?;
    console.expect("DONE", PATIENCE)
}

fn add(figures: &mut Figures, side: Side, output: &str, expected: usize) -> Result<()> {
    if figures.add_lines("disk", side, output) != expected {
        bail!("the disks under {side} printed no {expected} results:\n{output}");
    }
    Ok(())
}
