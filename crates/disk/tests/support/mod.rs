//! What the tests of images share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A directory on a real file system (the temporary one may be in memory).
pub fn dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Numbers that are the same each time (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    pub fn fill(&mut self, data: &mut [u8]) {
        for part in data.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs qemu-img, which must succeed; its output.
pub fn qemu_img(words: &[&str]) -> String {
    tool("qemu-img", words)
}

/// Runs commands of qemu-io on a qcow2 image; reads must find their pattern.
pub fn qemu_io(path: &Path, commands: &[String]) {
    let mut words = vec!["-f", "qcow2", "-d", "unmap"];
    for command in commands {
        words.extend(["-c", command]);
    }
    words.push(text(path));
    let out = tool("qemu-io", &words);
    assert!(!out.contains("failed"), "{commands:?}: {out}");
}

fn tool(name: &str, words: &[&str]) -> String {
    tool_with(name, words, &[0])
}

/// Runs a tool of QEMU, which must end with one of these statuses.
pub fn tool_with(name: &str, words: &[&str], fine: &[i32]) -> String {
    for _ in 0..50 {
        let (status, text) = try_tool(name, words);
        // Children of other tests, before their exec, have our locks too.
        if text.contains("Failed to lock") || text.contains("Failed to get") {
            std::thread::sleep(std::time::Duration::from_millis(20));
            continue;
        }
        let fine = status.is_some_and(|status| fine.contains(&status));
        assert!(fine, "{name} {words:?}: {text}");
        return text;
    }
    panic!("{name} {words:?}: the file stays locked");
}

/// Runs a tool of QEMU that may fail; what it says.
pub fn tool_once(name: &str, words: &[&str]) -> String {
    try_tool(name, words).1
}

fn try_tool(name: &str, words: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(name).args(words).output();
    let out = out.unwrap_or_else(|e| panic!("{name}: {e} (install qemu-utils)"));
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    text += &String::from_utf8_lossy(&out.stderr);
    (out.status.code(), text)
}
