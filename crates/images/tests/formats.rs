//! Formats in and out, compared with QEMU's tools both ways.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use images::{Digest, ImportFormat, ImportOptions, Library};
use proptest::prelude::*;

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img (package qemu-utils) is needed by this test");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn make(path: &Path, size: u64, writes: &[(u64, u32, u8)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, length, byte) in writes {
        let at = at % size;
        let length = u64::from(*length).min(size - at);
        file.write_all_at(&vec![*byte; length as usize], at)
            .unwrap();
    }
}

fn import(library: &Library, path: &Path, format: Option<&str>) -> Digest {
    let options = ImportOptions {
        format: format.map(|name| ImportFormat::parse(name).unwrap()),
        ..ImportOptions::default()
    };
    library
        .import(path, &options, &mut |_, _| {})
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Every format and variant that QEMU writes is read; every one that is
/// written is read by QEMU as the same disk.
fn both_ways(size: u64, writes: &[(u64, u32, u8)]) {
    let home = tempfile::tempdir().unwrap();
    let library = Library::open(&home.path().join("images")).unwrap();
    let path = |name: &str| -> PathBuf { home.path().join(name) };
    let raw = path("raw.img");
    make(&raw, size, writes);
    let digest = import(&library, &raw, Some("raw"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "compat=0.10"),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
    ] {
        let other = path("other");
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        let (from, to) = (text(&raw), text(&other));
        arguments.extend([from.as_str(), to.as_str()]);
        qemu_img(&arguments);
        for told in [None, Some(format)] {
            let found = import(&library, &other, told);
            // A VMDK has whole grains: the disk may have become larger.
            if format != "vmdk" || size.is_multiple_of(64 << 10) {
                assert_eq!(found, digest, "{format} {options} {told:?}");
            }
        }
        fs::remove_file(&other).unwrap();
    }
    for (ours, qemus) in [
        ("raw", "raw"),
        ("qcow2", "qcow2"),
        ("vhd", "vpc"),
        ("vmdk", "vmdk"),
    ] {
        let out = path(&format!("out.{ours}"));
        let format = ImportFormat::parse(ours).unwrap();
        library
            .export(&digest, &out, format, false, &mut |_, _| {})
            .unwrap();
        let (out_text, raw_text) = (text(&out), text(&raw));
        let compared = ["compare", "-f", "raw", "-F", qemus, &raw_text, &out_text];
        qemu_img(&compared);
        if ours == "vmdk" || ours == "qcow2" {
            qemu_img(&["check", "-f", qemus, &out_text]);
        }
        let again = library.export(&digest, &out, format, false, &mut |_, _| {});
        assert!(again.unwrap_err().to_string().contains("already"));
        library
            .export(&digest, &out, format, true, &mut |_, _| {})
            .unwrap();
        if ours != "vmdk" || size.is_multiple_of(64 << 10) {
            assert_eq!(import(&library, &out, None), digest, "{ours}");
        }
    }
}

#[test]
fn a_disk_survives_every_format() {
    let data = [
        (0, 1 << 20, 3),
        (5 << 20, 70_000, 9),
        ((17 << 20) - 512, 512, 1),
    ];
    both_ways(17 << 20, &data);
    both_ways((5 << 20) + 512, &data);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn any_disk_survives_every_format(
        sectors in 1u64..40_000,
        writes in prop::collection::vec((any::<u64>(), 1u32..300_000, any::<u8>()), 0..12),
    ) {
        both_ways(sectors * 512, &writes);
    }
}

#[test]
fn what_leads_elsewhere_or_lies_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let library = Library::open(&home.path().join("images")).unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (raw, base, child) = (path("raw"), path("base.vmdk"), path("child.vmdk"));
    make(Path::new(&raw), 8 << 20, &[(0, 4096, 1)]);
    let refused = |file: &str, why: &str| {
        let result = library.import(Path::new(file), &ImportOptions::default(), &mut |_, _| {});
        let text = result.unwrap_err().to_string();
        assert!(text.contains(why), "{file}: {text}");
    };
    qemu_img(&["convert", "-O", "vmdk", &raw, &base]);
    qemu_img(&["create", "-f", "vmdk", "-b", &base, "-F", "vmdk", &child]);
    refused(&child, "builds on another disk");
    let flat = path("flat.vmdk");
    qemu_img(&[
        "convert",
        "-O",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
        &raw,
        &flat,
    ]);
    refused(&flat, "data is in other files");
    let vhd = path("x.vhd");
    qemu_img(&["convert", "-O", "vpc", &raw, &vhd]);
    let bytes = fs::read(&vhd).unwrap();
    let mut wrong = bytes.clone();
    let end = wrong.len() - 512;
    wrong[end + 50] ^= 1;
    wrong[50] ^= 1;
    fs::write(&vhd, &wrong).unwrap();
    refused(&vhd, "checksum is wrong");
    // The footer at the end is lost, as by a copy that was cut off: the one
    // at the start helps, and the data that is missing is noticed.
    fs::write(&vhd, &bytes[..bytes.len() / 2]).unwrap();
    refused(&vhd, "ends before its data");
}
