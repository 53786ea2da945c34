//! `cargo xtask test`: everything that must hold before a change goes in.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::host::{self, Need};
use crate::image::{self, Name};
use crate::{up, venv};

/// What the tests use beside what building takes.
const NEEDS: &[Need] = &[
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
];

#[derive(Args)]
pub struct Test {
    /// Leaves out the end-to-end tests on real guests
    #[arg(long)]
    no_guests: bool,
}

/// Runs all stages; the first that fails ends it.
///
/// # Errors
/// Names the stage.
pub fn test(arguments: &Test) -> Result<ExitCode> {
    host::ensure(up::BUILD_NEEDS)?;
    host::ensure(NEEDS)?;
    venv::ensure()?;
    stage("format", &["fmt", "--all", "--check"])?;
    stage(
        "lints",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--release",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    stage(
        "unit and integration tests",
        &["test", "--workspace", "--release", "--exclude", "holm"],
    )?;
    stage(
        "tests of holm's own parts",
        &["test", "--release", "-p", "holm", "--bins"],
    )?;
    if !arguments.no_guests {
        let start = Instant::now();
        image::make(Name::Tiny, false)?;
        image::make(Name::Debian, false)?;
        image::make(Name::DebianDisk, false)?;
        eprintln!("xtask: images: {:.0?}", start.elapsed());
        // Guests measure time and idleness: not all at once.
        stage(
            "end-to-end tests on real guests",
            &[
                "test",
                "--release",
                "-p",
                "holm",
                "--test",
                "*",
                "--",
                "--test-threads=2",
            ],
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stage(name: &str, arguments: &[&str]) -> Result<()> {
    let start = Instant::now();
    eprintln!("xtask: {name}");
    host::run(host::cargo().args(arguments)).with_context(|| name.to_owned())?;
    eprintln!("xtask: {name}: passed in {:.0?}", start.elapsed());
    Ok(())
}
