//! Images on the command line, with the real Debian image.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use common::{holm, image};
use serde_json::Value;

fn ask(state: &Path, arguments: &[&str]) -> Output {
    let mut command = holm();
    command
        .arg("image")
        .args(arguments)
        .env("HOLM_STATE", state);
    command.output().unwrap()
}

fn done(state: &Path, arguments: &[&str]) -> String {
    let output = ask(state, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

fn debian() -> PathBuf {
    image("debian-disk").join("disk.img")
}

#[test]
fn debian_goes_in_and_out_whole_and_has_no_secret() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path();
    let source = debian();
    let source = source.to_str().unwrap();
    let made = done(state, &["import", source, "debian", "-o", "json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["name"], "debian@1");
    let shown = done(state, &["show", "debian", "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["digest"], &shown["current_of"][0]),
        (&made["digest"], &"debian".into())
    );
    let stored = shown["allocated"].as_u64().unwrap();
    assert!((100 << 20..1 << 30).contains(&stored), "{stored} bytes");
    let listed = done(state, &["ls"]);
    assert!(
        listed.contains("4.0 GiB") && listed.contains("debian@1"),
        "{listed}"
    );

    let out = home.path().join("out.qcow2");
    let out = out.to_str().unwrap();
    done(state, &["export", "debian", out]);
    // Other tests' machines hold the source's lock.
    let file = shown["file"].as_str().unwrap();
    let compare = ["compare", "-f", "raw", "-F", "qcow2", file, out];
    assert!(
        Command::new("qemu-img")
            .args(compare)
            .status()
            .unwrap()
            .success()
    );
    // The same disk in another format is the same image.
    let again = done(state, &["import", out, "-o", "json"]);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["digest"], made["digest"]);

    // It boots by its own name, and a damaged one does not.
    let entries = holm()
        .args(["boot-entries", "debian@1"])
        .env("HOLM_STATE", state)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&entries.stdout).into_owned();
    assert!(
        entries.status.success() && text.contains("Debian GNU/Linux"),
        "{text}"
    );
    secrets(file);
    let damage =
        "chmod u+w \"$1\" && printf X | dd of=\"$1\" bs=1 seek=200000000 conv=notrunc 2>&1";
    let damaged = Command::new("sh").args(["-c", damage, "sh", file]).status();
    assert!(damaged.unwrap().success());
    for arguments in [&["run", "debian@1"][..], &["boot-entries", "debian@1"]] {
        let refused = holm()
            .args(arguments)
            .env("HOLM_STATE", state)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(14), "{text}");
        assert!(text.contains("is damaged"), "{text}");
    }
    assert_eq!(ask(state, &["verify", "debian"]).status.code(), Some(30));
    done(state, &["rm", "debian"]);
    let pruned = done(state, &["prune"]);
    assert!(pruned.contains("freed"), "{pruned}");
    assert_eq!(done(state, &["ls"]).lines().count(), 1);
}

/// Nothing that opens a door, or tells who built it.
fn secrets(disk: &str) {
    let file = |path: &str| -> String {
        let disk = format!("{disk}?offset={}", 128 << 20);
        let output = Command::new("debugfs")
            .args(["-R", &format!("cat {path}"), &disk])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(file("/etc/hostname"), "debian\n", "the disk is not read");
    assert_eq!(file("/etc/machine-id"), "");
    for line in file("/etc/shadow").lines() {
        let password = line.split(':').nth(1).unwrap();
        // The image of the tests lets root in at its console.
        let none = password == "*" || password.starts_with('!');
        assert!(
            none || (line.starts_with("root:") && password.is_empty()),
            "{line}"
        );
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let home = std::env::var("HOME").unwrap_or_default();
    let mut words = vec![format!("{home}/.cache/holm"), "by-digest".into()];
    // Short names are in every disk by chance.
    words.extend(Some(host.trim().to_owned()).filter(|h| h.len() >= 8 && h != "localhost"));
    let mut file = File::open(disk).unwrap();
    // The end of each piece is looked at again with the next one.
    let (mut buffer, mut kept, mut start) = (vec![0; 4 << 20], 0, 0);
    loop {
        let read = file.read(&mut buffer[kept..]).unwrap();
        let bytes = &buffer[..kept + read];
        for word in &words {
            assert!(
                find(bytes, word.as_bytes()).is_none(),
                "the image has {word:?}"
            );
        }
        let mut from = 0;
        while let Some(at) = find(&bytes[from..], b"-----BEGIN ") {
            from += at + 1;
            let key = is_private_key(bytes, from - 1, start);
            assert!(!key, "the image has a private key at {}", start + from - 1);
        }
        if read == 0 {
            break;
        }
        let tail = bytes.len().min(300);
        let all = bytes.len();
        buffer.copy_within(all - tail..all, 0);
        (kept, start) = (tail, start + all - tail);
    }
}

/// Whether a key begins at a place. A file begins with a block; the keys by
/// which libraries test themselves lie between zeroes in the middle of one.
fn is_private_key(bytes: &[u8], at: usize, start: usize) -> bool {
    let words = b"PRIVATE KEY-----\n";
    let rest = &bytes[at..bytes.len().min(at + 45)];
    let Some(head) = find(rest, words) else {
        return false;
    };
    let digits = bytes[at + head + words.len()..].iter();
    let digits = digits.take_while(|b| b.is_ascii_alphanumeric() || b"+/".contains(b));
    let inside = at > 0 && bytes[at - 1] == 0 && !(start + at).is_multiple_of(4096);
    digits.take(60).count() == 60 && !inside
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| *b == word[0]) {
        if bytes[from + at..].starts_with(word) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[test]
fn a_killed_import_leaves_the_library_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path();
    let source = debian();
    for delay in [5, 30, 80, 200, 400] {
        let mut import = holm()
            .args(["image", "import", source.to_str().unwrap(), "debian"])
            .env("HOLM_STATE", state)
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(delay));
        // It may have ended.
        let _ = import.kill();
        import.wait().unwrap();
        let verified = ask(state, &["verify"]);
        assert!(verified.status.success(), "{verified:?}");
        let images = state.join("images/by-digest");
        let hidden = fs::read_dir(images).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with('.')
        });
        assert_eq!(hidden.count(), 0, "something is left");
    }
    done(state, &["import", source.to_str().unwrap(), "debian"]);
    assert!(done(state, &["verify", "debian"]).contains("good"));
}

#[test]
fn what_is_wrong_is_said_with_the_next_step() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path();
    let small = home.path().join("small.img");
    File::create(&small).unwrap().set_len(1 << 20).unwrap();
    let small = small.to_str().unwrap();
    for (arguments, code, why) in [
        (&["show", "nothing"][..], 14, "holm image ls"),
        (&["import", "/no/such/file"], 14, "/no/such/file"),
        (&["import", small, "../x"], 2, "is no name here"),
        (&["import", small, "--checksum", "md5:0"], 2, "sha256"),
        (
            &["import", small, "--format", "vdi"],
            2,
            "raw, qcow2, vmdk or vhd",
        ),
        (&["import", "ftp://host/x"], 14, "http, https or file"),
        (
            &["build", "/no/such/recipe.toml"],
            14,
            "debian, which is built in",
        ),
        (&["promote", "x"], 2, "NAME@VERSION"),
        (&["rollback", "x"], 14, "no image"),
    ] {
        let output = ask(state, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(why), "{arguments:?}: {text}");
    }
    let sum = format!("sha256:{}", "0".repeat(64));
    let output = ask(state, &["import", small, "x", "--checksum", &sum]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("nothing was imported"), "{text}");
    assert_eq!(done(state, &["ls"]).lines().count(), 1);
}
