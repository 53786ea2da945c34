//! Image `debian-disk`: Debian bookworm as people run it, on a whole disk that
//! starts by its own GRUB configuration, with ssh, cloud-init and the guest
//! agent.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Made, apt::Apt, debian};
use crate::host::{self, Need};

pub(super) const RECIPE: &[&[u8]] = &[
    include_bytes!("debian.rs"),
    include_bytes!("debian_disk.rs"),
    CONFIGURE.as_bytes(),
    include_bytes!("../../images/debian-disk/assemble"),
    include_bytes!("../../images/debian/console-size.service"),
    include_bytes!("../../images/console-size"),
];
const CONFIGURE: &str = include_str!("../../images/debian-disk/configure");
pub(super) const PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "e2fsprogs",
    "ethtool",
    "fdisk",
    "fio",
    "grub-common",
    "grub2-common",
    "initramfs-tools",
    "iperf3",
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
pub(super) const NEEDS: &[Need] = &[
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
];

pub(super) fn make(apt: &Apt, directory: &Path) -> Result<Made> {
    let tree = debian::install_any(apt, PACKAGES, Some(CONFIGURE), directory)?;
    let recipe = host::root().join("xtask/images/debian-disk");
    debian::with_ids(&recipe, "assemble", &tree, directory)?;
    fs::remove_file(&tree)?;
    Ok(Made {
        kernel: false,
        cmdline: "",
        disks: &["disk.img"],
    })
}
