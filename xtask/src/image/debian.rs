//! Image `debian`: Debian bookworm with systemd on an ext4 root disk; the stock
//! kernel and initrd are files beside it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use images::recipe::{self, Apt};

use super::Made;
use crate::host;

pub(super) const RECIPE: &[&[u8]] = &[
    include_bytes!("debian.rs"),
    FINISH.as_bytes(),
    include_bytes!("../../images/debian/wired.network"),
    recipe::CONSOLE_SIZE.as_bytes(),
];
const FINISH: &str = include_str!("../../images/debian/finish");
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

pub(super) fn make(apt: &Apt, directory: &Path) -> Result<Made> {
    let tree = recipe::install(apt, PACKAGES, &[], directory)?;
    let files = host::root().join("xtask/images/debian");
    let built_in = host::root().join("crates/images/src/recipe/debian");
    recipe::with_ids(
        FINISH,
        &[
            tree.as_os_str(),
            directory.as_os_str(),
            files.as_os_str(),
            built_in.as_os_str(),
        ],
    )
    .context("making the root disk from the packages")?;
    fs::remove_file(&tree)?;
    Ok(Made {
        kernel: true,
        cmdline: "root=/dev/vda ro console=ttyS0 quiet net.ifnames=0",
        disks: &["root.img"],
    })
}
