//! Every bad input of `holm run` gives a clear error, the documented status,
//! and never a hang or a panic.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{image, run};

const USAGE: i32 = 2;
const TIMEOUT: i32 = 10;
const TRIPLE_FAULT: i32 = 12;
const BAD_FILE: i32 = 14;
const HOST: i32 = 16;

/// Runs holm; its status must be one of these, and its error must say `named`.
fn refused(arguments: &[&str], codes: &[i32], named: &str) {
    let start = Instant::now();
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| codes.contains(&code)),
        "{arguments:?}: status {code:?}, not {codes:?}: {error}"
    );
    assert!(
        error.contains(named),
        "{arguments:?}: {named:?} is not in: {error}"
    );
    assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{arguments:?} took {:?}",
        start.elapsed()
    );
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        image("tiny");
        Self(tempfile::tempdir().unwrap())
    }

    fn make(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn sparse(&self, name: &str, size: u64) -> String {
        let path = self.0.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path.display().to_string()
    }
}

fn kernel() -> Vec<u8> {
    fs::read(image("tiny").join("vmlinuz")).unwrap()
}

/// The same bytes on every run.
fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn wrong_command_lines() {
    for (arguments, named) in [
        (&["run"][1..], "IMAGE"),
        (&["tiny", "--cpus", "0"], "--cpus"),
        (&["tiny", "--cpus", "65"], "--cpus"),
        (&["tiny", "--cpus", "1000000"], "--cpus"),
        (&["tiny", "--cpus", "-1"], "-1"),
        (&["tiny", "--cpus", "two"], "--cpus"),
        (&["tiny", "--memory", "0"], "--memory"),
        (&["tiny", "--memory", "1"], "--memory"),
        (&["tiny", "--memory", "100X"], "--memory"),
        (&["tiny", "--memory", "99999999999999999999G"], "--memory"),
        (&["tiny", "--memory", "2T"], "--memory"),
        (&["tiny", "--timeout", "soon"], "--timeout"),
        (&["tiny", "--timeout", "0"], "--timeout"),
        (&["tiny", "--engine", "tcg"], "--engine"),
        (&["tiny", "--cpu", "v9"], "--cpu"),
        (&["tiny", "--serial", "tty"], "--serial"),
        (&["tiny", "--serial", "file="], "--serial"),
        (&["tiny", "--disk", ""], "--disk"),
        (&["tiny", "--disk", "a.img,writable"], "writable"),
        (
            &["tiny", "--disk", "a.img,serial=123456789012345678901"],
            "--disk",
        ),
        (&["tiny", "--on-reset", "explode"], "--on-reset"),
        (&["tiny", "--no-such-option"], "--no-such-option"),
        (&["--kernel", "x", "--keep", "y"], "IMAGE"),
    ] {
        refused(arguments, &[USAGE], named);
    }
}

#[test]
fn a_command_line_that_the_kernel_cannot_take() {
    image("tiny");
    refused(
        &["tiny", "--cmdline", &"x".repeat(100_000)],
        &[USAGE],
        "command line",
    );
}

#[test]
fn more_memory_than_any_host_has() {
    image("tiny");
    // Where the host commits that much, the guest must simply run.
    refused(
        &["tiny", "--memory", "255G", "--timeout", "2s"],
        &[HOST, TIMEOUT],
        "",
    );
}

#[test]
fn less_memory_than_the_kernel_needs() {
    image("tiny");
    refused(&["tiny", "--memory", "16M"], &[BAD_FILE], "--memory");
}

#[test]
fn images_that_are_none() {
    let files = Files::new();
    let directory = files.0.path();
    refused(&["no-such-image"], &[BAD_FILE], "no-such-image");
    refused(&[directory.to_str().unwrap()], &[BAD_FILE], "image.json");
    let description = |json: &str| {
        fs::write(directory.join("image.json"), json).unwrap();
        directory.display().to_string()
    };
    let newer = description(r#"{"version":7}"#);
    refused(&[&newer], &[BAD_FILE], "version 7");
    let broken = description("{{{");
    refused(&[&broken], &[BAD_FILE], "image.json");
    let missing = description(
        r#"{"version":1,"name":"x","digest":"","kernel":"gone","cmdline":"","disks":[]}"#,
    );
    refused(&[&missing], &[BAD_FILE], "gone");
}

#[test]
fn kernels_that_are_missing_or_damaged() {
    let files = Files::new();
    let kernel = kernel();
    let truncated = |length: usize| kernel[..length].to_vec();
    refused(
        &["--kernel", "/no/such/kernel"],
        &[BAD_FILE],
        "/no/such/kernel",
    );
    refused(
        &["--kernel", files.0.path().to_str().unwrap()],
        &[BAD_FILE],
        "regular file",
    );
    refused(&["--kernel", "/dev/null"], &[BAD_FILE], "/dev/null");
    for (name, content) in [
        ("empty", Vec::new()),
        ("one-byte", vec![0x4d]),
        ("text", b"#!/bin/sh\necho no kernel\n".to_vec()),
        ("random", random(1 << 20)),
        ("zeros", vec![0; 1 << 20]),
        ("cut-in-the-header", truncated(0x210)),
        ("cut-in-the-setup", truncated(0x1000)),
        ("cut-in-the-middle", truncated(kernel.len() / 2)),
        ("elf-header-only", b"\x7fELF\x02\x01\x01".to_vec()),
    ] {
        let path = files.make(name, &content);
        refused(&["--kernel", &path, "--timeout", "20s"], &[BAD_FILE], name);
    }
    let huge = files.sparse("huge", 1 << 41);
    refused(&["--kernel", &huge], &[BAD_FILE], "huge");
}

/// A right header and nonsense behind it may start, and must then end as any
/// guest may end.
#[test]
fn kernels_with_a_right_header_and_a_random_body() {
    let files = Files::new();
    let mut kernel = kernel();
    let body = 0x8000.min(kernel.len());
    let noise = random(kernel.len() - body);
    kernel[body..].copy_from_slice(&noise);
    let path = files.make("nonsense", &kernel);
    refused(
        &[
            "--kernel",
            &path,
            "--timeout",
            "5s",
            "--cmdline",
            "console=ttyS0",
        ],
        &[BAD_FILE, TIMEOUT, TRIPLE_FAULT, 0],
        "",
    );
}

#[test]
fn initrds_that_are_missing_or_damaged() {
    let files = Files::new();
    let initrd = |path: &str, named: &str| {
        refused(
            &["tiny", "--initrd", path, "--timeout", "20s"],
            &[BAD_FILE],
            named,
        );
    };
    initrd("/no/such/initrd", "/no/such/initrd");
    initrd(files.0.path().to_str().unwrap(), "regular file");
    initrd(&files.make("empty", b""), "empty");
    initrd(&files.make("random", &random(1 << 20)), "random");
    initrd(&files.sparse("huge", 1 << 41), "huge");
}

#[test]
fn disks_that_are_missing_or_unfit() {
    let files = Files::new();
    let disk = |disk: &str, named: &str| {
        refused(
            &["tiny", "--disk", disk, "--timeout", "20s"],
            &[BAD_FILE],
            named,
        );
    };
    disk("/no/such/disk", "/no/such/disk");
    disk(files.0.path().to_str().unwrap(), "directory");
    disk("/dev/null", "/dev/null");
    disk(&files.make("empty", b""), "empty");
    disk(&files.make("odd", &[0; 1000]), "odd");
    let twice = files.sparse("twice", 1 << 20);
    refused(
        &[
            "tiny",
            "--disk",
            &twice,
            "--disk",
            &twice,
            "--timeout",
            "20s",
        ],
        &[BAD_FILE],
        "in use",
    );
    let missing = format!("{},readonly", Path::new("/no/such").join("disk").display());
    disk(&missing, "/no/such/disk");
}

#[test]
fn too_many_disks() {
    let files = Files::new();
    let paths: Vec<String> = (0..40)
        .map(|i| files.sparse(&format!("disk{i}"), 1 << 20))
        .collect();
    let mut arguments = vec!["tiny"];
    for path in &paths {
        arguments.extend(["--disk", path]);
    }
    refused(&arguments, &[USAGE], "disks");
}

#[test]
fn a_console_file_that_cannot_be_made() {
    image("tiny");
    refused(
        &["tiny", "--serial", "file=/no/such/directory/log"],
        &[BAD_FILE],
        "/no/such/directory",
    );
}

#[test]
fn files_that_may_not_be_read() {
    // Root may read everything: then there is nothing to refuse.
    let files = Files::new();
    let path = PathBuf::from(files.sparse("secret", 1 << 20));
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0);
    fs::set_permissions(&path, permissions).unwrap();
    if File::open(&path).is_err() {
        refused(
            &["tiny", "--disk", path.to_str().unwrap()],
            &[BAD_FILE],
            "permission",
        );
    }
}
