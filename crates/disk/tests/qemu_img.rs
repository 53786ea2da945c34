//! Images of ours before qemu-img, and qemu-img's before us.
//!
//! `cargo xtask test` installs qemu-img (qemu-utils).

use std::path::Path;
use std::process::Command;

use disk::{Format, Image, ImageOptions};
use tempfile::TempDir;

/// A directory on a real file system (the temporary one may be in memory).
fn dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs a tool of QEMU that must succeed; its output.
fn tool(name: &str, words: &[&str]) -> String {
    let out = Command::new(name).args(words).output();
    let out = out.unwrap_or_else(|e| panic!("{name}: {e} (install qemu-utils)"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name} {words:?}: {text}{errors}");
    text
}

fn qemu_img(words: &[&str]) -> String {
    tool("qemu-img", words)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_image_of_qemus_is_read_and_written() {
    let dir = dir();
    let path = dir.path().join("a.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&path), "64M"]);
    tool("qemu-io", &["-c", "write -P 7 1M 100k", text(&path)]);
    {
        let image = Image::open(&ImageOptions::write(&path, None)).unwrap();
        assert_eq!((image.size(), image.format()), (64 << 20, Format::Qcow2));
        let mut read = vec![0; 101 << 10];
        image.read(&mut read, 1 << 20).unwrap();
        assert!(read[..100 << 10].iter().all(|b| *b == 7));
        assert!(read[100 << 10..].iter().all(|b| *b == 0));
        image.write(&[9; 4096], 33 << 20).unwrap();
        image.zero(1 << 20, 4096, false).unwrap();
        image.discard(2 << 20, 1 << 20).unwrap();
        image.close().unwrap();
    }
    qemu_img(&["check", "-q", text(&path)]);
    tool(
        "qemu-io",
        &[
            "-c",
            "read -P 9 33M 4k",
            "-c",
            "read -P 0 1M 4k",
            text(&path),
        ],
    );
    tool("qemu-io", &["-c", "read -P 7 1028k 96k", text(&path)]);
}
