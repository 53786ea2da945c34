//! `cargo xtask test`: everything that must hold before a change goes in.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
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
    // The whole workspace each time: what is built for a part of it has other
    // features, and is built once more.
    let names = test_names(|package| package != "holm")?;
    stage(
        "unit and integration tests",
        &cargo_test(&["--lib", "--bins"], &names),
    )?;
    stage("documentation's tests", &cargo_test(&["--doc"], &[]))?;
    if !arguments.no_guests {
        let start = Instant::now();
        image::make(Name::Tiny, false)?;
        image::make(Name::Debian, false)?;
        image::make(Name::DebianDisk, false)?;
        eprintln!("xtask: images: {:.0?}", start.elapsed());
        guests()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// End-to-end tests that are one long story each, mostly on one CPU: all of
/// them go at once, and measure nothing that others could disturb.
const STORIES: &[&str] = &["e2e_kvm", "e2e_work"];

fn guests() -> Result<()> {
    let names = test_names(|package| package == "holm")?;
    let (stories, others): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| STORIES.contains(&name.as_str()));
    let arguments = |names: &[String]| {
        let mut words = cargo_test(&[], names);
        // Guests measure time and idleness: not all at once.
        words.extend(["--".to_owned(), "--test-threads=2".into()]);
        words
    };
    stage("end-to-end tests on real guests", &arguments(&others))?;
    let start = Instant::now();
    eprintln!(
        "xtask: long end-to-end tests, at once: {}",
        stories.join(", ")
    );
    let ended = std::thread::scope(|scope| {
        let start = |name: &String| {
            let words = arguments(std::slice::from_ref(name));
            scope.spawn(move || host::cargo().args(words).output())
        };
        let running: Vec<_> = stories.iter().map(start).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.collect::<Vec<_>>()
    });
    let mut failed = Vec::new();
    for (name, ended) in stories.iter().zip(ended) {
        let output = ended.map_err(|_| anyhow!("the thread of {name} ended"))?;
        let output = output.with_context(|| format!("starting {name}"))?;
        for text in [&output.stderr, &output.stdout] {
            println!("{}", String::from_utf8_lossy(text));
        }
        if !output.status.success() {
            failed.push(name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("long end-to-end tests failed: {}", failed.join(", "));
    }
    eprintln!(
        "xtask: long end-to-end tests: passed in {:.0?}",
        start.elapsed()
    );
    Ok(())
}

/// `cargo test` of the whole workspace, with these integration tests.
fn cargo_test(options: &[&str], names: &[String]) -> Vec<String> {
    let words = ["test", "--workspace", "--release"];
    let words = words.iter().chain(options).map(|word| (*word).to_owned());
    let tests = names
        .iter()
        .flat_map(|name| ["--test".to_owned(), name.clone()]);
    words.chain(tests).collect()
}

/// The integration tests of some packages.
fn test_names(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let packages = host::root().join("crates");
    let mut names = Vec::new();
    for package in entries(&packages)? {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        let tests = package.join("tests");
        if !wanted(&name) || !tests.is_dir() {
            continue;
        }
        for path in entries(&tests)? {
            let is_test = path.extension().is_some_and(|extension| extension == "rs")
                || path.join("main.rs").is_file();
            if let Some(name) = path.file_stem().filter(|_| is_test) {
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn entries(directory: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let failed = || format!("listing {}", directory.display());
    let entries = std::fs::read_dir(directory).with_context(failed)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().with_context(failed)
}

fn stage(name: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<()> {
    let start = Instant::now();
    eprintln!("xtask: {name}");
    host::run(host::cargo().args(arguments)).with_context(|| name.to_owned())?;
    eprintln!("xtask: {name}: passed in {:.0?}", start.elapsed());
    Ok(())
}
