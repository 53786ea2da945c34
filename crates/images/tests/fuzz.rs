//! Files that others made: disks in foreign formats, manifests, recipes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fuzzing::Fuzz;
use images::recipe::Recipe;
use images::{Manifest, Reference, Vhd, Vmdk};

/// No disk that is understood here is larger, in bytes read of it.
const MOST: u64 = 1 << 20;

fn fuzz<'a>(name: &'a str, words: &'a [&'a [u8]], longest: usize) -> Fuzz<'a> {
    Fuzz {
        name,
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words,
        longest,
    }
}

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// What kind of refusal it is.
fn kind(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphabetic())
        .take(60)
        .collect()
}

/// Reads the disk as an import would.
fn walk(size: u64, mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<()>) -> String {
    let mut buffer = vec![0; 5000];
    let ends = [size.saturating_sub(5000).max(MOST), size.saturating_sub(1)];
    let places = (0..size.min(MOST)).step_by(5000).chain(ends);
    for at in places.filter(|at| *at < size) {
        let length = (size - at).min(5000) as usize;
        if let Err(error) = read(&mut buffer[..length], at) {
            return kind(&error.to_string());
        }
    }
    "read".into()
}

/// Makes the checksums right, so that what is behind them is reached.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let end = bytes.len().saturating_sub(512);
    for (start, length, magic, place) in [
        (0, 512, b"conectix", 64),
        (512, 1024, b"cxsparse", 36),
        (end, 512, b"conectix", 64),
    ] {
        let Some(part) = bytes.get_mut(start..start + length) else {
            continue;
        };
        if !part.starts_with(magic) {
            continue;
        }
        part[place..place + 4].fill(0);
        let sum = part.iter().map(|b| u32::from(*b)).sum::<u32>();
        part[place..place + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    bytes
}

#[test]
fn vhd() {
    let words: [&[u8]; 6] = [
        b"conectix",
        b"cxsparse",
        &[0xff; 4],
        &[0, 0, 0, 3],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0, 0, 0x20, 0],
    ];
    fuzz("vhd", &words, 16 << 10).run(|input| match Vhd::from_file(file(&with_checksums(input))) {
        Ok(vhd) => walk(vhd.size(), |out, at| vhd.read(out, at)),
        Err(error) => kind(&error.to_string()),
    });
}

#[test]
fn vmdk() {
    let words: [&[u8]; 7] = [
        b"KDMV",
        b"parentCID=",
        b"\nRW 1 FLAT",
        &[0xff; 8],
        &[1, 0, 0, 0],
        &[0, 0, 1, 0],
        &[0, 8, 0, 0, 0, 0, 0, 0],
    ];
    fuzz("vmdk", &words, 16 << 10).run(|input| match Vmdk::from_file(file(input)) {
        Ok(vmdk) => walk(vmdk.size(), |out, at| vmdk.read(out, at)),
        Err(error) => kind(&error.to_string()),
    });
}

#[test]
fn manifest() {
    let words: [&[u8]; 6] = [
        b"\"format\":\"holm-image\"",
        b"\"version\":1",
        b"\"size\":",
        b"blake3:",
        b"18446744073709551616",
        b"null",
    ];
    fuzz("manifest", &words, 2000).run(|input| {
        let reference = String::from_utf8_lossy(input).parse::<Reference>();
        if let Ok(reference) = reference {
            let text = reference.to_string();
            assert_eq!(text.parse::<Reference>().unwrap(), reference);
        }
        match Manifest::parse(input, Path::new("manifest.json")) {
            Ok(manifest) => format!("{}", manifest.size),
            Err(error) => kind(&error.to_string()),
        }
    });
}

#[test]
fn recipe() {
    let words: [&[u8]; 8] = [
        b"version = 1\n",
        b"[[files]]\n",
        b"path = \"/",
        b"source = \"",
        b"mode = \"",
        b"commands = [",
        b"size = \"2G\"\n",
        b"'''",
    ];
    let directory = tempfile::tempdir().unwrap();
    fuzz("recipe", &words, 2000).run(|input| {
        let text = String::from_utf8_lossy(input);
        match Recipe::parse(&text, "recipe", directory.path()) {
            Ok(recipe) => {
                assert!(recipe.files.iter().all(|file| file.path.starts_with('/')));
                format!("{}", recipe.files.len())
            }
            Err(error) => kind(&error.to_string()),
        }
    });
}
