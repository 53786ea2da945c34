//! Guest images, made from the host's own package sources and cached by the
//! content of their recipe.
//!
//! `$XDG_CACHE_HOME/holm/images/NAME` is a symbolic link, replaced atomically,
//! to `.store/DIGEST`, which holds the files and `image.json` (version 1; read
//! by `holm run`): an image in use is never changed under its user.

mod cpio;
mod debian;
mod debian_disk;
mod tiny;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;
use sha2::{Digest, Sha256};

pub use images::recipe::BASE_NEEDS;
use images::recipe::{Apt, Build, KERNEL, SUITE};

use crate::host;

pub use cpio::Archive;
pub use tiny::base;

/// The images that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Debian's stock cloud kernel and a busybox initramfs
    Tiny,
    /// As tiny, of Debian bullseye (Linux 5.10), with perl
    TinyBullseye,
    /// As tiny, of Debian trixie (Linux 6.12), with perl
    TinyTrixie,
    /// Debian bookworm with systemd on an ext4 disk, stock kernel and initrd
    Debian,
    /// Debian bookworm on a whole disk with GRUB's configuration, ssh, cloud-init, guest agent
    DebianDisk,
}

impl Name {
    /// As typed and as the directory is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::TinyBullseye => "tiny-bullseye",
            Self::TinyTrixie => "tiny-trixie",
            Self::Debian => "debian",
            Self::DebianDisk => "debian-disk",
        }
    }

    /// Debian's release.
    fn suite(self) -> &'static str {
        match self {
            Self::Tiny | Self::Debian | Self::DebianDisk => SUITE,
            Self::TinyBullseye => "bullseye",
            Self::TinyTrixie => "trixie",
        }
    }

    /// Whether it is an archive in memory, without a disk.
    fn is_tiny(self) -> bool {
        matches!(self, Self::Tiny | Self::TinyBullseye | Self::TinyTrixie)
    }
}

/// The host's programs that make any of them.
pub const NEEDS: &[host::Need] = &[
    host::Need {
        program: "dpkg-deb",
        package: "dpkg",
        purpose: "unpack the guest's kernel",
    },
    host::Need {
        program: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
        purpose: "check the guest's packages",
    },
];

/// What a recipe leaves in its directory.
struct Made {
    /// Whether `vmlinuz` and `initrd` are files beside the disks.
    kernel: bool,
    cmdline: &'static str,
    disks: &'static [&'static str],
}

/// Makes the image if its recipe or its packages have changed (or `force`);
/// returns its directory.
///
/// # Errors
/// If packages are missing or cannot be had, or a step fails.
pub fn make(name: Name, force: bool) -> Result<PathBuf> {
    host::ensure(NEEDS)?;
    if !name.is_tiny() {
        host::ensure(BASE_NEEDS)?;
    }
    let images = host::cache()?.join("images");
    let link = images.join(name.as_str());
    let apt = apt(name.suite(), force)?;
    let digest = digest(name, &apt)?;
    let stored = images.join(".store").join(&digest);
    if !force && stored.join("image.json").is_file() {
        point(&link, &digest)?;
        return Ok(link);
    }
    eprintln!("xtask: making the image {}", name.as_str());
    let work = images
        .join(".store")
        .join(format!(".new-{}-{}", name.as_str(), std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let made = match name {
        Name::Tiny => tiny::make(&apt, &work),
        Name::TinyBullseye | Name::TinyTrixie => tiny::of_release(&apt, &work),
        Name::Debian => debian::make(&apt, &work),
        Name::DebianDisk => debian_disk::make(&apt, &work),
    };
    let finished = made.and_then(|made| {
        describe(name, &made, &digest, &work)?;
        if stored.exists() {
            fs::remove_dir_all(&stored)?;
        }
        fs::rename(&work, &stored).with_context(|| format!("naming {}", stored.display()))
    });
    if let Err(error) = finished {
        // What is half-made must not fill the cache; the first error counts.
        let _ = fs::remove_dir_all(&work);
        return Err(error.context(format!("making the image {}", name.as_str())));
    }
    let old = fs::read_link(&link).ok();
    point(&link, &digest)?;
    if let Some(old) = old.map(|old| images.join(old)).filter(|old| *old != stored) {
        fs::remove_dir_all(&old).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(link)
}

/// Writes the guests' busybox to `path`, for programs outside an image.
///
/// # Errors
/// If the package cannot be had.
pub fn busybox(path: &Path) -> Result<()> {
    let unpacked = path.with_extension("unpacked");
    apt(SUITE, false)?.unpack("busybox-static", &unpacked)?;
    fs::copy(unpacked.join("bin/busybox"), path).context("copying busybox")?;
    fs::remove_dir_all(&unpacked).context("removing the unpacked package")
}

/// Unpacks packages of the guests' release into a directory, for programs
/// outside an image.
///
/// # Errors
/// If a package cannot be had.
pub fn unpack(packages: &[&str], into: &Path) -> Result<()> {
    let apt = apt(SUITE, false)?;
    packages
        .iter()
        .try_for_each(|package| Ok(apt.unpack(package, into)?))
}

/// The packages of a release.
fn apt(suite: &str, refresh: bool) -> Result<Apt> {
    let directory = match suite {
        SUITE => "apt".to_owned(),
        other => format!("apt-{other}"),
    };
    Ok(Apt::open(
        &host::cache()?.join(directory),
        suite,
        None,
        refresh,
    )?)
}

/// SHA-256 over all that determines the image's content.
fn digest(name: Name, apt: &Apt) -> Result<String> {
    let recipe = debian_disk::recipe()?;
    let text = Build::text(&recipe);
    let disk: [&[u8]; 2] = [include_bytes!("debian_disk.rs"), text.as_bytes()];
    let disk_packages = debian_disk::packages(&recipe);
    let (files, packages) = match name {
        Name::Tiny => (tiny::RECIPE, tiny::PACKAGES),
        Name::TinyBullseye | Name::TinyTrixie => (tiny::RECIPE, tiny::RELEASE_PACKAGES),
        Name::Debian => (debian::RECIPE, debian::PACKAGES),
        Name::DebianDisk => (&disk[..], disk_packages.as_slice()),
    };
    let mut hash = Sha256::new();
    for file in files {
        hash.update((file.len() as u64).to_le_bytes());
        hash.update(file);
    }
    let mut packages = packages.to_vec();
    packages.push(KERNEL);
    for (package, version) in apt.versions(&packages)? {
        hash.update(format!("{package} {version}\n"));
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn describe(name: Name, made: &Made, digest: &str, directory: &Path) -> Result<()> {
    let disks: Vec<_> = made
        .disks
        .iter()
        .map(|file| json!({ "file": file }))
        .collect();
    let mut description = json!({
        "version": 1,
        "name": name.as_str(),
        "digest": format!("sha256:{digest}"),
        "disks": disks,
    });
    if made.kernel {
        description["kernel"] = json!("vmlinuz");
        description["initrd"] = json!("initrd");
        description["cmdline"] = json!(made.cmdline);
    }
    let text = serde_json::to_string_pretty(&description)?;
    fs::write(directory.join("image.json"), text + "\n").context("writing image.json")
}

fn point(link: &Path, digest: &str) -> Result<()> {
    let target = Path::new(".store").join(digest);
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    let new = link.with_extension(format!("new-{}", std::process::id()));
    symlink(&target, &new).with_context(|| format!("making {}", new.display()))?;
    fs::rename(&new, link).with_context(|| format!("naming {}", link.display()))
}

/// A file of which the name starts with `prefix`, in `directory`.
fn starting_with(directory: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with(prefix))
        })
        .with_context(|| format!("no {prefix}* in {}", directory.display()))
}
