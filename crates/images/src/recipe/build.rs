//! From a recipe to a disk, with mmdebstrap and mke2fs, as root or not.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;

use super::program::{check, run};
use super::{Apt, KEYRING, Need, Recipe, RecipeError};

/// Metapackage of the kernel of all images.
pub const KERNEL: &str = "linux-image-cloud-amd64";

/// The packages of the base `debian`.
pub const BASE_PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "e2fsprogs",
    "ethtool",
    "fdisk",
    "grub-common",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "openssh-client",
    "openssh-server",
    "procps",
    "python3-minimal",
    "qemu-guest-agent",
    "sudo",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// What older releases have as a part of another package: left out there.
const SPLIT_OFF: &[&str] = &["systemd-resolved"];

/// The host's programs that building takes.
pub const BASE_NEEDS: &[Need] = &[
    Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
        purpose: "install the guest's packages into its root disk",
    },
    Need {
        program: "mke2fs",
        package: "e2fsprogs",
        purpose: "make the guest's file system",
    },
    Need {
        program: "sfdisk",
        package: "fdisk",
        purpose: "make the partitions of the guest's disk",
    },
    Need {
        program: "mkfs.vfat",
        package: "dosfstools",
        purpose: "make the guest's EFI system partition",
    },
    Need {
        program: KEYRING,
        package: "debian-archive-keyring",
        purpose: "check the guest's packages",
    },
];
const NEEDS_WITHOUT_ROOT: &[Need] = &[Need {
    program: "newuidmap",
    package: "uidmap",
    purpose: "make the guest's root disk without root (user namespaces)",
}];

/// Program in the guest that keeps its serial console as large as the user's
/// terminal.
pub const CONSOLE_SIZE: &str = include_str!("debian/console-size");
const CONSOLE_SIZE_SERVICE: &str = include_str!("debian/console-size.service");
const CONFIGURE: &str = include_str!("debian/configure");
const CLEAN: &str = include_str!("debian/clean");
const ASSEMBLE: &str = include_str!("debian/assemble");

/// An image that is being built.
#[derive(Debug)]
pub struct Build<'a> {
    /// What.
    pub recipe: &'a Recipe,
    /// From which packages.
    pub apt: &'a Apt,
    /// An empty directory for what comes of it.
    pub directory: &'a Path,
}

impl Build<'_> {
    /// Builds the disk; its file, raw, in the directory. `heard` is told each
    /// step before it begins.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn run(&self, heard: &mut dyn FnMut(&str)) -> Result<PathBuf, RecipeError> {
        check(BASE_NEEDS)?;
        heard("installing packages");
        let mut packages: Vec<&str> = BASE_PACKAGES.to_vec();
        packages.extend(self.recipe.packages.iter().map(String::as_str));
        let tree = install(self.apt, &packages, &self.hooks(), self.directory)?;
        heard("making the disk");
        let mib = (self.recipe.size >> 20).to_string();
        with_ids(
            ASSEMBLE,
            &[tree.as_os_str(), self.directory.as_os_str(), mib.as_ref()],
        )?;
        fs::remove_file(&tree).map_err(|e| RecipeError::host(&tree, "remove", e))?;
        Ok(self.directory.join("disk.img"))
    }

    /// All that determines the image beside its packages.
    #[must_use]
    pub fn text(recipe: &Recipe) -> String {
        format!("{recipe:?}\n{}\n{ASSEMBLE}", hooks(recipe).join("\n"))
    }

    fn hooks(&self) -> Vec<String> {
        hooks(self.recipe)
    }
}

/// Shell scripts for the installed tree, their `$1`. They hold all they need:
/// in a user namespace they may not see the caller's directories.
fn hooks(recipe: &Recipe) -> Vec<String> {
    let mut hooks = vec![format!(
        "CONSOLE_SIZE={} CONSOLE_SIZE_SERVICE={}\n{CONFIGURE}",
        base64(CONSOLE_SIZE.as_bytes()),
        base64(CONSOLE_SIZE_SERVICE.as_bytes())
    )];
    for file in &recipe.files {
        let (path, parent) = (&file.path, Path::new(&file.path).parent());
        let parent = parent.unwrap_or(Path::new("/")).display();
        hooks.push(format!(
            "set -eu\nmkdir -p \"$1{parent}\"\nprintf %s '{}' | base64 -d > \"$1{path}\"\n\
             chmod {:o} \"$1{path}\"\n",
            base64(&file.content),
            file.mode
        ));
    }
    for command in &recipe.commands {
        hooks.push(format!(
            "set -eu\nprintf %s '{}' | base64 -d > \"$1/tmp/command\"\n\
             chroot \"$1\" sh -eu /tmp/command\nrm \"$1/tmp/command\"\n",
            base64(command.as_bytes())
        ));
    }
    hooks.push(CLEAN.into());
    hooks
}

/// Installs packages and the kernel into a new tree, in whatever way works
/// here; the tree as a tar archive in `directory`.
///
/// # Errors
/// What each way failed by.
pub fn install(
    apt: &Apt,
    packages: &[&str],
    hooks: &[String],
    directory: &Path,
) -> Result<PathBuf, RecipeError> {
    let tree = directory.join("tree.tar");
    let mut failed = None;
    for mode in modes()? {
        match install_by(apt, packages, hooks, mode, &tree) {
            Ok(()) => return Ok(tree),
            // The first is the way that should have worked.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| RecipeError::Sources("there is no way to install".into())))
}

/// Ways of mmdebstrap worth trying here, best first.
fn modes() -> Result<&'static [&'static str], RecipeError> {
    if is_root() {
        return Ok(&["root", "unshare"]);
    }
    check(NEEDS_WITHOUT_ROOT)?;
    Ok(&["unshare"])
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn install_by(
    apt: &Apt,
    packages: &[&str],
    hooks: &[String],
    mode: &str,
    tree: &Path,
) -> Result<(), RecipeError> {
    let there = |package: &&str| {
        !SPLIT_OFF.contains(package) || apt.versions(std::slice::from_ref(package)).is_ok()
    };
    let packages: Vec<&str> = packages.iter().copied().filter(there).collect();
    let packages = format!("{},{KERNEL}", packages.join(","));
    // unshare mode reads the sources as another user.
    let sources = apt.sources();
    let sources =
        fs::read_to_string(&sources).map_err(|e| RecipeError::host(&sources, "read", e))?;
    let mut command = Command::new("mmdebstrap");
    command
        .arg("--quiet")
        .arg(format!("--mode={mode}"))
        .args(["--variant=minbase", "--format=tar", "--architectures=amd64"])
        .args([
            "--aptopt=APT::Install-Recommends \"false\"",
            "--dpkgopt=force-unsafe-io",
        ])
        // The tree is small enough without them, and unpacks faster.
        .args([
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
        ])
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        ])
        .args(
            hooks
                .iter()
                .map(|script| format!("--customize-hook={script}")),
        )
        .arg(format!("--include={packages}"))
        .args([apt.suite(), "-"])
        .args(sources.lines());
    let file = File::create(tree).map_err(|e| RecipeError::host(tree, "make", e))?;
    run(command.stdout(file)).map(drop).inspect_err(|_| {
        // An incomplete tree must not be taken for one.
        let _ = fs::remove_file(tree);
    })
}

/// Runs a script as root, or with the ids of a user namespace, that turns a
/// tree into disks.
///
/// # Errors
/// If it fails.
pub fn with_ids(script: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), RecipeError> {
    let mut command = if is_root() {
        Command::new("sh")
    } else {
        // Files of other owners need the caller's range of subordinate ids.
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--map-auto", "--", "sh"]);
        command
    };
    command.args(["-c", script, "sh"]).args(arguments);
    run(command.stdout(Stdio::null())).map(drop)
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
