//! Image `tiny`: Debian's stock cloud kernel and a busybox initramfs. Its
//! kernel command line takes `cmd=BASE64` (see `images/tiny/init`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
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

/// What an image of another release has: a part of its own userland.
pub(super) const RELEASE_PACKAGES: &[&str] = &["busybox-static", "libc6", "libcrypt1", "perl-base"];

/// What the guest loads, in the order in which they need each other; what the
/// kernel has built in is left out.
const MODULES: [&str; 12] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "rng-core",
    "virtio-rng",
    "virtio_console",
    "failover",
    "net_failover",
    "virtio_net",
];
/// Parts of `virtio_pci` in older kernels.
const SPLIT_OFF: [&str; 2] = ["virtio_pci_legacy_dev", "virtio_pci_modern_dev"];

/// Archives of their own beside the image, for the test of the KVM engine: what
/// makes a guest a host of KVM, and the drivers of further devices.
const ARCHIVES: [(&str, &[&str]); 2] = [
    ("kvm-modules.cpio", &["irqbypass", "kvm", "kvm-amd"]),
    (
        "device-modules.cpio",
        &[
            "virtio_balloon",
            "fuse",
            "virtiofs",
            "watchdog",
            "wdat_wdt",
            "pvpanic",
            "pvpanic-mmio",
        ],
    ),
];

pub(super) fn make(apt: &Apt, directory: &Path) -> Result<Made> {
    let unpacked = directory.join("unpacked");
    let modules = kernel(apt, &unpacked, directory)?;
    apt.unpack("busybox-static", &unpacked)?;
    let mut archive = root(&unpacked, &modules)?;
    archive.file("bin/console-size", 0o755, CONSOLE_SIZE);
    fs::write(directory.join("initrd"), archive.finish())?;
    for (file, names) in ARCHIVES {
        let mut archive = Archive::default();
        for name in names {
            modules.add(&mut archive, name)?;
        }
        fs::write(directory.join(file), archive.finish())?;
    }
    finished(&unpacked)
}

/// The same of another release, with its C library and perl.
pub(super) fn of_release(apt: &Apt, directory: &Path) -> Result<Made> {
    let unpacked = directory.join("unpacked");
    let modules = kernel(apt, &unpacked, directory)?;
    let userland = directory.join("userland");
    for package in RELEASE_PACKAGES {
        apt.unpack(package, &userland)?;
    }
    let mut archive = root(&userland, &modules)?;
    archive.file("bin/console-size", 0o755, CONSOLE_SIZE);
    // Some releases have all in /usr, others half of it: here it is one.
    archive.link("usr", ".");
    let mut entries = BTreeMap::new();
    for part in ["", "usr"] {
        collect(&userland.join(part), Path::new(""), &mut entries)?;
    }
    for (path, source) in &entries {
        add_entry(&mut archive, path, source)?;
    }
    fs::write(directory.join("initrd"), archive.finish())?;
    fs::remove_dir_all(&userland)?;
    finished(&unpacked)
}

fn finished(unpacked: &Path) -> Result<Made> {
    fs::remove_dir_all(unpacked)?;
    Ok(Made {
        kernel: true,
        cmdline: "console=ttyS0",
        disks: &[],
    })
}

/// Unpacks the release's kernel: itself into the image, and its modules.
fn kernel(apt: &Apt, unpacked: &Path, directory: &Path) -> Result<Modules> {
    let package = apt.dependency(KERNEL)?;
    apt.unpack(&package, unpacked)?;
    let boot = unpacked.join("boot");
    fs::rename(starting_with(&boot, "vmlinuz-")?, directory.join("vmlinuz"))?;
    let mut found = Vec::new();
    // Of releases before and after the merge of / and /usr.
    for base in ["lib/modules", "usr/lib/modules"] {
        let base = unpacked.join(base);
        if base.is_dir() {
            found.extend(files(&base)?);
        }
    }
    let builtin = found
        .iter()
        .find(|path| path.ends_with("modules.builtin"))
        .with_context(|| format!("package {package} does not say what is built in"))?;
    let builtin = fs::read_to_string(builtin)?;
    Ok(Modules {
        package,
        builtin,
        found,
    })
}

/// The modules of a kernel.
struct Modules {
    package: String,
    /// Paths of those that the kernel has in it, one in each line.
    builtin: String,
    found: Vec<PathBuf>,
}

impl Modules {
    /// Adds one, unpacked; an error if it is nowhere.
    fn add(&self, archive: &mut Archive, name: &str) -> Result<()> {
        let plain = format!("{name}.ko");
        let packed = format!("{plain}.xz");
        let path = self
            .found
            .iter()
            .find(|path| path.ends_with(&plain) || path.ends_with(&packed));
        let Some(path) = path else {
            // Its file may be written with the other separator.
            let files = [plain.clone(), plain.replace('-', "_")].map(|file| format!("/{file}"));
            let there = |line: &str| files.iter().any(|file| line.ends_with(file));
            if SPLIT_OFF.contains(&name) || self.builtin.lines().any(there) {
                return Ok(());
            }
            bail!("package {} has no module {name}", self.package);
        };
        let content = match path.ends_with(&packed) {
            true => unpacked(path)?,
            false => fs::read(path)?,
        };
        archive.file(&format!("lib/modules/{plain}"), 0o644, &content);
        Ok(())
    }
}

/// What is in a file packed with xz.
fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz").arg("-dc").arg(path).output();
    let output = output.context("starting xz")?;
    ensure!(
        output.status.success(),
        "xz cannot unpack {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The root with the busybox of a release and the kernel's modules.
fn root(unpacked: &Path, modules: &Modules) -> Result<Archive> {
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(unpacked.join(path)).ok())
        .context("package busybox-static has no busybox")?;
    let mut archive = base(&busybox, include_bytes!("../../images/tiny/init"));
    for name in MODULES {
        modules.add(&mut archive, name)?;
    }
    Ok(archive)
}

/// Programs and libraries below a directory, by where they go.
fn collect(directory: &Path, place: &Path, entries: &mut BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let entry = entry?;
        let (path, to) = (entry.path(), place.join(entry.file_name()));
        let top = to.iter().next().and_then(|name| name.to_str());
        let wanted = matches!(top, Some("bin" | "lib" | "lib64")) && !to.ends_with("busybox");
        if !wanted || to.ends_with("gconv") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, &to, entries)?;
        }
        entries.insert(to, path);
    }
    Ok(())
}

fn add_entry(archive: &mut Archive, path: &Path, source: &Path) -> Result<()> {
    let name = path.to_str().context("a file's name is not text")?;
    let kind = fs::symlink_metadata(source)?;
    if kind.is_symlink() {
        let target = fs::read_link(source)?;
        archive.link(name, target.to_str().context("a link is not text")?);
    } else if !kind.is_dir() {
        archive.file(name, kind.permissions().mode() & 0o777, &fs::read(source)?);
    } else if !matches!(name, "bin" | "lib") {
        archive.directory(name);
    }
    Ok(())
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

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
