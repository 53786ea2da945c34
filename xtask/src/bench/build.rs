//! What the benchmark runs: workloads, an initramfs with them, and the kernel
//! in the forms that the sides boot fastest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host;
use crate::image;

/// Files of the benchmark.
pub struct Parts {
    /// Directory of the workloads as native programs.
    pub workloads: PathBuf,
    /// busybox, for the workload `gz`.
    pub busybox: PathBuf,
    /// Initramfs with the workloads.
    pub initrd: PathBuf,
    /// The stock kernel.
    pub bzimage: PathBuf,
    /// The same, unpacked (ELF with a PVH note).
    pub vmlinux: PathBuf,
}

/// Builds everything from `bench/` and the image `tiny`.
///
/// # Errors
/// If a compiler or a file is missing.
pub fn parts(tiny: &Path) -> Result<Parts> {
    let directory = host::cache()?.join("bench");
    let workloads = directory.join("workloads");
    fs::create_dir_all(&workloads).context("making the benchmark's directory")?;
    let sources = host::root().join("bench");
    for entry in fs::read_dir(sources.join("workloads"))? {
        let entry = entry?;
        let target = workloads.join(entry.file_name());
        let content = fs::read(entry.path())?;
        // make goes by times: unchanged files keep theirs.
        if fs::read(&target).ok().as_ref() != Some(&content) {
            fs::write(&target, content)?;
        }
    }
    host::output(
        Command::new("make")
            .arg("-C")
            .arg(&workloads)
            .args(["-j", "2"]),
    )?;
    let busybox = directory.join("busybox");
    image::busybox(&busybox)?;
    let initrd = directory.join("initrd");
    fs::write(
        &initrd,
        initramfs(&workloads, &busybox, &sources.join("init"))?,
    )?;
    let bzimage = tiny.join("vmlinuz");
    let vmlinux = directory.join("vmlinux");
    fs::write(&vmlinux, unpack(&bzimage, &directory)?)?;
    Ok(Parts {
        workloads,
        busybox,
        initrd,
        bzimage,
        vmlinux,
    })
}

fn initramfs(workloads: &Path, busybox: &Path, init: &Path) -> Result<Vec<u8>> {
    let mut archive = image::base(&fs::read(busybox)?, &fs::read(init)?);
    archive.directory("bench");
    let mut programs: Vec<PathBuf> = fs::read_dir(workloads)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            // Guests of the network's benchmark fetch their program.
            let other = ["Makefile", "netload"].map(|name| Some(name.as_ref()));
            path.extension().is_none() && !other.contains(&path.file_name())
        })
        .collect();
    programs.sort();
    for program in programs {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        archive.file(&format!("bench/{name}"), 0o755, &fs::read(&program)?);
    }
    Ok(archive.finish())
}

/// The ELF file inside a bzImage (Linux: Documentation/x86/boot.rst, fields
/// setup_sects, payload_offset and payload_length).
fn unpack(bzimage: &Path, directory: &Path) -> Result<Vec<u8>> {
    let image = fs::read(bzimage).with_context(|| format!("reading {}", bzimage.display()))?;
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = (|| {
        let setup = usize::from(*image.get(0x1f1)?);
        let start = (setup + 1) * 512 + word(0x248)?;
        // The last four bytes are the unpacked size, not part of the stream.
        image.get(start..start + word(0x24c)? - 4)
    })()
    .context("the kernel is no bzImage with a payload")?;
    let packed = directory.join("payload");
    fs::write(&packed, payload)?;
    let mut unpack = Command::new("lz4");
    let unpacked = unpack
        .args(["-d", "-c", "-q"])
        .arg(&packed)
        .output()
        .context("starting lz4")?;
    fs::remove_file(&packed)?;
    if !unpacked.status.success() || !unpacked.stdout.starts_with(b"\x7fELF") {
        anyhow::bail!(
            "the kernel's payload is no LZ4: {}",
            String::from_utf8_lossy(&unpacked.stderr)
        );
    }
    Ok(unpacked.stdout)
}
