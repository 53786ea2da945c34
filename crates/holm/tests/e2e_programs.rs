//! Programs that would notice a wrong CPU: each runs on the host and in guests,
//! and must print the same.

mod common;

use std::path::Path;
use std::process::Command;

use common::{assemble32, compile, tar_disk, tiny};

/// Runs a program natively and, with these options, in a guest.
fn same_in_a_guest(program: &Path, options: &[&str], status: i32) {
    let native = Command::new(program).output().unwrap();
    assert_eq!(native.status.code(), Some(status), "natively: {native:?}");
    let directory = tempfile::tempdir().unwrap();
    let disk = tar_disk(directory.path(), &[program]);
    let disk = format!("{},readonly", disk.display());
    let mut all = vec!["--disk", &disk];
    all.extend_from_slice(options);
    let name = program.file_name().unwrap().to_str().unwrap();
    let answer = tiny(
        &all,
        &format!("cd /tmp && tar xf /dev/vda && exec ./{name}"),
    );
    assert_eq!(answer.output, String::from_utf8_lossy(&native.stdout));
    assert_eq!(answer.status, status);
}

#[test]
fn floating_point_and_vectors() {
    let directory = tempfile::tempdir().unwrap();
    same_in_a_guest(&compile(directory.path(), "fpu", &[]), &[], 0);
}

#[test]
fn signals_traps_and_timers() {
    let directory = tempfile::tempdir().unwrap();
    same_in_a_guest(&compile(directory.path(), "signals", &[]), &[], 0);
}

#[test]
fn signals_traps_and_timers_on_two_cpus() {
    let directory = tempfile::tempdir().unwrap();
    same_in_a_guest(
        &compile(directory.path(), "signals", &[]),
        &["--cpus", "2"],
        0,
    );
}

#[test]
fn threads_on_one_cpu() {
    let directory = tempfile::tempdir().unwrap();
    same_in_a_guest(&compile(directory.path(), "threads", &[]), &[], 0);
}

#[test]
fn threads_on_four_cpus() {
    let directory = tempfile::tempdir().unwrap();
    same_in_a_guest(
        &compile(directory.path(), "threads", &[]),
        &["--cpus", "4"],
        0,
    );
}

#[test]
fn a_static_32_bit_program() {
    let directory = tempfile::tempdir().unwrap();
    same_in_a_guest(&assemble32(directory.path(), "compat"), &[], 3);
}
