//! Image `tiny`: Debian's stock cloud kernel and a busybox initramfs. Its
//! kernel command line takes `cmd=BASE64` (see `images/tiny/init`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use images::recipe::{self, Apt, KERNEL};

use super::cpio::Archive;
use super::{Made, starting_with};

pub(super) const RECIPE: &[&[u8]] = &[
    include_bytes!("tiny.rs"),
    include_bytes!("cpio.rs"),
    include_bytes!("../../images/tiny/init"),
    CONSOLE_SIZE,
];
const CONSOLE_SIZE: &[u8] = recipe::CONSOLE_SIZE.as_bytes();
pub(super) const PACKAGES: &[&str] = &["busybox-static"];

/// What the guest loads, in the order in which they need each other.
const MODULES: [&str; 11] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio-rng",
    "virtio_console",
    "failover",
    "net_failover",
    "virtio_net",
];

/// What makes the guest a host of KVM: an archive of its own beside the image,
/// for the test of the KVM engine.
const KVM_MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];
const KVM_ARCHIVE: &str = "kvm-modules.cpio";

pub(super) fn make(apt: &Apt, directory: &Path) -> Result<Made> {
    let unpacked = directory.join("unpacked");
    let kernel = apt.dependency(KERNEL)?;
    apt.unpack(&kernel, &unpacked)?;
    apt.unpack("busybox-static", &unpacked)?;
    let boot = unpacked.join("boot");
    fs::rename(starting_with(&boot, "vmlinuz-")?, directory.join("vmlinuz"))?;
    let busybox = fs::read(unpacked.join("bin/busybox")).context("reading busybox")?;
    let mut archive = base(&busybox, include_bytes!("../../images/tiny/init"));
    archive.file("bin/console-size", 0o755, CONSOLE_SIZE);
    let modules = modules(&unpacked.join("lib/modules"))?;
    let add = |archive: &mut Archive, name: &str| -> Result<()> {
        let path = modules
            .iter()
            .find(|path| path.file_stem().is_some_and(|stem| stem == name))
            .with_context(|| format!("package {kernel} has no module {name}"))?;
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, &fs::read(path)?);
        Ok(())
    };
    for name in MODULES {
        add(&mut archive, name)?;
    }
    fs::write(directory.join("initrd"), archive.finish())?;
    let mut kvm = Archive::default();
    for name in KVM_MODULES {
        add(&mut kvm, name)?;
    }
    fs::write(directory.join(KVM_ARCHIVE), kvm.finish())?;
    fs::remove_dir_all(&unpacked)?;
    Ok(Made {
        kernel: true,
        cmdline: "console=ttyS0",
        disks: &[],
    })
}

/// A root with busybox, an init and the usual mount points.
pub fn base(busybox: &[u8], init: &[u8]) -> Archive {
    let mut archive = Archive::default();
    for name in [
        "bin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "root",
        "etc",
        "lib",
        "lib/modules",
    ] {
        archive.directory(name);
    }
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("init", 0o755, init);
    archive
}

fn modules(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "ko") {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
