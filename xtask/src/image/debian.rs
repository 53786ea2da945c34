//! Image `debian`: Debian bookworm with systemd on an ext4 root disk; the stock
//! kernel and initrd are files beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{
    KERNEL, Made,
    apt::{Apt, SUITE},
};
use crate::host::{self, Need};

pub(super) const RECIPE: &[&[u8]] = &[
    include_bytes!("debian.rs"),
    include_bytes!("../../images/debian/finish"),
    include_bytes!("../../images/debian/console-size.service"),
    include_bytes!("../../images/debian/wired.network"),
    include_bytes!("../../images/console-size"),
];
pub(super) const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "kmod",
    "initramfs-tools",
    "zstd",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "openssh-server",
    "procps",
    "less",
    "python3-minimal",
    "qemu-guest-agent",
    "stress-ng",
];
pub(super) const NEEDS: &[Need] = &[
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
];
const NEEDS_WITHOUT_ROOT: &[Need] = &[Need {
    program: "newuidmap",
    package: "uidmap",
    purpose: "make the guest's root disk without root (user namespaces)",
}];

pub(super) fn make(apt: &Apt, directory: &Path) -> Result<Made> {
    let tree = install_any(apt, PACKAGES, None, directory)?;
    with_ids(
        &host::root().join("xtask/images/debian"),
        "finish",
        &tree,
        directory,
    )?;
    fs::remove_file(&tree)?;
    Ok(Made {
        kernel: true,
        cmdline: "root=/dev/vda ro console=ttyS0 quiet net.ifnames=0",
        disks: &["root.img"],
    })
}

/// Installs packages into a new tree, in whatever way works here; the tree as
/// a tar archive. `configure` is a shell script for the tree, its `$1`.
pub(super) fn install_any(
    apt: &Apt,
    packages: &[&str],
    configure: Option<&str>,
    directory: &Path,
) -> Result<PathBuf> {
    let tree = directory.join("tree.tar");
    let failed = modes()?
        .into_iter()
        .map(|mode| install(apt, packages, configure, mode, &tree))
        .take_while(Result::is_err)
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect::<Vec<_>>();
    if !tree.is_file() {
        bail!(
            "mmdebstrap cannot install a Debian here:\n{}",
            failed.join("\n")
        );
    }
    Ok(tree)
}

/// Ways of mmdebstrap worth trying here, best first.
fn modes() -> Result<Vec<&'static str>> {
    if host::is_root() {
        return Ok(vec!["root", "unshare"]);
    }
    host::ensure(NEEDS_WITHOUT_ROOT)?;
    Ok(vec!["unshare"])
}

fn install(
    apt: &Apt,
    packages: &[&str],
    configure: Option<&str>,
    mode: &str,
    tree: &Path,
) -> Result<()> {
    let packages = format!("{},{KERNEL}", packages.join(","));
    // unshare mode reads the sources as another user.
    let sources = fs::read_to_string(apt.sources())?;
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
        .args(configure.map(|script| format!("--customize-hook={script}")))
        .arg(format!("--include={packages}"))
        .args([SUITE, "-"])
        .args(sources.lines());
    command.stdout(fs::File::create(tree)?);
    host::run(&mut command).inspect_err(|_| {
        // An incomplete tree must not be taken for one.
        let _ = fs::remove_file(tree);
    })
}

/// Runs the script of a recipe that turns the tree into disks, as root or with
/// the ids of a user namespace.
pub(super) fn with_ids(recipe: &Path, script: &str, tree: &Path, directory: &Path) -> Result<()> {
    let mut command = if host::is_root() {
        Command::new("sh")
    } else {
        // Files of other owners need the caller's range of subordinate ids.
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--map-auto", "--", "sh"]);
        command
    };
    command
        .arg(recipe.join(script))
        .arg(tree)
        .arg(directory)
        .arg(recipe);
    host::run(&mut command).context("making the root disk from the packages")
}
