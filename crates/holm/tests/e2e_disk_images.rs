//! `holm disk`, and guests on qcow2 images and overlays.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{holm, tiny};
use serde_json::Value;

/// Runs `holm disk` in a directory; its status and what it said.
fn disk(directory: &Path, words: &[&str]) -> (Option<i32>, String) {
    let out = holm()
        .arg("disk")
        .args(words)
        .current_dir(directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    (out.status.code(), text.into_owned())
}

fn done(directory: &Path, words: &[&str]) -> String {
    let (status, text) = disk(directory, words);
    assert_eq!(status, Some(0), "{words:?}: {text}");
    text
}

fn json(directory: &Path, words: &[&str]) -> Value {
    let words = [words, &["-o", "json"]].concat();
    serde_json::from_str(&disk(directory, &words).1).unwrap()
}

/// Writes a line to a disk of a guest, by its serial number, and reads it back.
fn write(path: &Path, options: &str, extra: &[&str], line: &str) {
    let option = format!("{}{options},serial=D", path.display());
    let script = format!("printf '%-512s' {line} | dd of=/dev/vda bs=512 seek=9 2>/dev/null; sync");
    let options = [&["--disk", &option][..], extra].concat();
    let answer = tiny(&options, &script);
    assert_eq!(answer.status, 0, "{}", answer.output);
}

fn read(path: &Path, options: &str) -> String {
    let option = format!("{}{options},readonly", path.display());
    let script = "dd if=/dev/vda bs=512 skip=9 count=1 2>/dev/null | tr -d ' \\0'";
    tiny(&["--disk", &option], script).output.trim().to_owned()
}

#[test]
fn images_are_made_changed_and_compared() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    done(at, &["create", "base.img", "64M"]);
    done(at, &["create", "--backing", "base.img", "top.qcow2"]);
    let info = json(at, &["info", "top.qcow2"]);
    assert_eq!(
        (&info["version"], &info["format"]),
        (&1.into(), &"qcow2".into())
    );
    assert_eq!(info["size"], 64 << 20);
    assert_eq!(info["backing"][0]["name"], "base.img");
    assert_eq!(json(at, &["check", "top.qcow2"])["clean"], true);
    assert_eq!(
        json(at, &["compare", "top.qcow2", "base.img"])["equal"],
        true
    );
    fs::write(at.join("other.img"), vec![1; 1 << 20]).unwrap();
    let (status, text) = disk(at, &["compare", "top.qcow2", "other.img"]);
    assert_eq!(
        (status, text.contains("byte 0")),
        (Some(30), true),
        "{text}"
    );
    done(at, &["convert", "other.img", "other.qcow2"]);
    done(at, &["compare", "other.img", "other.qcow2"]);
    done(at, &["rebase", "--backing", "other.img", "top.qcow2"]);
    done(at, &["compare", "top.qcow2", "base.img"]);
    done(at, &["resize", "top.qcow2", "+1M"]);
    done(at, &["rebase", "top.qcow2"]);
    assert_eq!(json(at, &["info", "top.qcow2"])["size"], 65 << 20);
    // What is not to be.
    for (words, status, text) in [
        (&["create", "base.img", "1G"][..], 14, "already"),
        (&["create", "x.img", "1000"], 2, "512"),
        (&["create", "x.qcow2"], 2, "SIZE"),
        (
            &["create", "--backing", "none.img", "x.qcow2"],
            14,
            "none.img",
        ),
        (
            &["create", "--format", "raw", "--backing", "base.img", "x"],
            2,
            "raw",
        ),
        (&["resize", "base.img", "1M"], 2, "--shrink"),
        (&["check", "base.img"], 2, "raw"),
        (&["info", "none.img"], 14, "none.img"),
        (&["commit", "base.img"], 2, "builds on no"),
        (
            &["convert", "--format", "qcow2", "base.img", "y.img"],
            14,
            "format=raw",
        ),
    ] {
        let (code, said) = disk(at, words);
        assert_eq!(code, Some(status), "{words:?}: {said}");
        assert!(said.contains(text), "{words:?}: {said}");
    }
    // Nothing half-made is left of all that.
    let mut names: Vec<_> = fs::read_dir(at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["base.img", "other.img", "other.qcow2", "top.qcow2"]);
}

#[test]
fn guests_write_overlays_and_ephemeral_ones_vanish() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = place.path();
    let (base, top) = (at.join("base.img"), at.join("top.qcow2"));
    done(at, &["create", "base.img", "64M"]);
    write(&base, "", &[], "below");
    done(at, &["create", "--backing", "base.img", "top.qcow2"]);
    assert_eq!(read(&top, ""), "below");
    write(&top, "", &["--ephemeral"], "gone");
    assert_eq!(read(&top, ""), "below");
    write(&top, ",format=qcow2", &[], "above");
    assert_eq!(
        (read(&top, ""), read(&base, "")),
        ("above".into(), "below".into())
    );
    let info = json(at, &["info", "top.qcow2"]);
    assert_eq!(info["dirty"], false, "its machine has ended: {info}");
    done(at, &["check", "top.qcow2"]);
    done(at, &["commit", "top.qcow2"]);
    assert_eq!(
        (read(&top, ""), read(&base, "")),
        ("above".into(), "above".into())
    );
    assert!(fs::metadata(&top).unwrap().blocks() * 512 < 1 << 20);
    assert_eq!(fs::read_dir(at).unwrap().count(), 2);
}
