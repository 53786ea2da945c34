//! The host's programs that tests use.

use crate::host::Need;

/// What the tests use beside what building takes.
pub const NEEDS: &[Need] = &[
    Need {
        program: "busybox",
        package: "busybox-static",
        purpose: "test initramfs archives",
    },
    Need {
        program: "as",
        package: "binutils",
        purpose: "assemble test programs for guests",
    },
    Need {
        program: "e2fsck",
        package: "e2fsprogs",
        purpose: "check guests' disks after a crash",
    },
    Need {
        program: "qemu-img",
        package: "qemu-utils",
        purpose: "check disk images",
    },
    Need {
        program: "xz",
        package: "xz-utils",
        purpose: "pack disks that are imported",
    },
    Need {
        program: "zstd",
        package: "zstd",
        purpose: "pack disks that are imported",
    },
    Need {
        program: "sfdisk",
        package: "fdisk",
        purpose: "make disks with partitions",
    },
    Need {
        program: "mkfs.vfat",
        package: "dosfstools",
        purpose: "make FAT file systems",
    },
    Need {
        program: "mcopy",
        package: "mtools",
        purpose: "put files on FAT file systems",
    },
    Need {
        program: "mkfs.xfs",
        package: "xfsprogs",
        purpose: "make XFS file systems",
    },
    Need {
        program: "ssh",
        package: "openssh-client",
        purpose: "log in to guests over a published port",
    },
    Need {
        program: "ip",
        package: "iproute2",
        purpose: "make taps and bridges in a network of their own",
    },
    Need {
        program: "nft",
        package: "nftables",
        purpose: "lead ports of public addresses elsewhere",
    },
    Need {
        program: "unshare",
        package: "util-linux",
        purpose: "make that network",
    },
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "emulate a host with KVM",
    },
    Need {
        program: "gdb",
        package: "gdb",
        purpose: "debug a guest from outside",
    },
    Need {
        program: "promtool",
        package: "prometheus",
        purpose: "check what /metrics says",
    },
];
