//! Disks made with the real tools: sfdisk, mkfs.ext4, mkfs.vfat with mtools,
//! mkfs.xfs. A missing tool is an error, never a skip.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use bootdisk::entry::{Found, Pieces};
use bootdisk::survey::Survey;
use bootdisk::{Budget, Cached, ReadAt};

pub const MIB: u64 = 1 << 20;
/// Identity of file systems made here.
pub const UUID: &str = "11111111-2222-4333-8444-555555555555";

/// Runs a tool, with this on its standard input; what it printed.
pub fn tool(name: &str, arguments: &[&str], input: &str) -> String {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap());
    let mut child = Command::new("env")
        .arg(format!("PATH={path}"))
        .arg("MTOOLS_SKIP_CHECK=1")
        .arg(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(
        done.status.success(),
        "{name} {arguments:?} (`cargo xtask test` installs what is needed): {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A directory for a test's files.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A tree of files; a text `-> target` makes a symbolic link.
pub fn tree(directory: &Path, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        let path = directory.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix(b"-> ") {
            Some(target) => symlink(String::from_utf8_lossy(target).as_ref(), &path).unwrap(),
            None => fs::write(&path, content).unwrap(),
        }
    }
}

fn blank(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An ext4 (or, by `kind`, ext2 or ext3) file system with these files.
pub fn ext(scratch: &Path, name: &str, kind: &str, size: u64, files: &[(&str, &[u8])]) -> PathBuf {
    let (image, root) = (scratch.join(name), scratch.join(format!("{name}.d")));
    fs::create_dir(&root).unwrap();
    tree(&root, files);
    blank(&image, size);
    tool(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            kind,
            "-U",
            UUID,
            "-L",
            "root",
            "-d",
            text(&root),
            text(&image),
        ],
        "",
    );
    image
}

/// A FAT of 12, 16 or 32 bits with these files.
pub fn fat(scratch: &Path, name: &str, bits: &str, size: u64, files: &[(&str, &[u8])]) -> PathBuf {
    let (image, root) = (scratch.join(name), scratch.join(format!("{name}.d")));
    fs::create_dir(&root).unwrap();
    tree(&root, files);
    blank(&image, size);
    tool(
        "mkfs.vfat",
        &["-F", bits, "-i", "1234abcd", "-n", "ESP", text(&image)],
        "",
    );
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        tool("mcopy", &["-s", "-i", text(&image), text(&path), "::"], "");
    }
    image
}

/// An XFS with these files. mkfs.xfs makes none below 300 MiB.
pub fn xfs(scratch: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let (image, proto) = (scratch.join(name), scratch.join(format!("{name}.proto")));
    let root = scratch.join(format!("{name}.d"));
    fs::create_dir(&root).unwrap();
    tree(&root, files);
    let mut lines = "/\n0 0\nd--755 0 0\n".to_owned();
    prototype(&root, &mut lines);
    lines += "$\n";
    fs::write(&proto, lines).unwrap();
    blank(&image, 320 * MIB);
    let (id, proto) = (format!("uuid={UUID}"), text(&proto));
    tool(
        "mkfs.xfs",
        &["-q", "-m", &id, "-p", proto, text(&image)],
        "",
    );
    image
}

fn prototype(directory: &Path, lines: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Ok(target) = fs::read_link(&path) {
            *lines += &format!("{name} l--777 0 0 {}\n", target.display());
        } else if path.is_dir() {
            *lines += &format!("{name} d--755 0 0\n");
            prototype(&path, lines);
            *lines += "$\n";
        } else {
            *lines += &format!("{name} ---644 0 0 {}\n", path.display());
        }
    }
}

/// A disk with a table by sfdisk, and these images at these MiB.
pub fn disk(scratch: &Path, size: u64, table: &str, parts: &[(u64, &Path)]) -> PathBuf {
    let image = scratch.join("disk.img");
    blank(&image, size);
    tool("sfdisk", &["--quiet", text(&image)], table);
    let disk = File::options().write(true).open(&image).unwrap();
    for (at, part) in parts {
        put(&disk, at * MIB, &fs::read(part).unwrap());
    }
    image
}

/// Writes an image to a place of a disk, its zeroes left out.
pub fn put(disk: &File, at: u64, content: &[u8]) {
    const PIECE: usize = 64 << 10;
    for (n, piece) in content.chunks(PIECE).enumerate() {
        if piece.iter().any(|b| *b != 0) {
            disk.write_all_at(piece, at + (n * PIECE) as u64).unwrap();
        }
    }
}

/// A GPT disk with sectors of 4096 bytes and one partition, at 1 MiB. The
/// sfdisk of many hosts makes none on a file.
pub fn gpt_4096(scratch: &Path, size: u64, part: &Path) -> PathBuf {
    const SECTOR: u64 = 4096;
    let image = scratch.join("disk.img");
    blank(&image, size);
    let disk = File::options().write(true).open(&image).unwrap();
    let content = fs::read(part).unwrap();
    put(&disk, MIB, &content);
    let mut record = [0; 512];
    record[446 + 4] = 0xee;
    record[446 + 8..446 + 16].copy_from_slice(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 128];
    entries[..32].fill(0x11);
    let (first, last) = (MIB / SECTOR, (MIB + content.len() as u64) / SECTOR - 1);
    entries[32..40].copy_from_slice(&first.to_le_bytes());
    entries[40..48].copy_from_slice(&last.to_le_bytes());
    let mut header = Vec::new();
    header.extend_from_slice(b"EFI PART\0\0\x01\0");
    header.extend_from_slice(&92u32.to_le_bytes());
    header.extend_from_slice(&[0; 8]);
    for number in [1, size / SECTOR - 1, 6, size / SECTOR - 6] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&[0x22; 16]);
    header.extend_from_slice(&2u64.to_le_bytes());
    for number in [128, 128, crc32fast::hash(&entries)] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk.write_all_at(&record, 0).unwrap();
    disk.write_all_at(&header, SECTOR).unwrap();
    disk.write_all_at(&entries, 2 * SECTOR).unwrap();
    image
}

/// A file as a disk.
pub struct OnFile(pub File);

impl OnFile {
    pub fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }
}

impl ReadAt for OnFile {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
}

/// Looks through a disk.
pub fn survey(image: &Path) -> Survey {
    let before = fs::metadata(image).unwrap().modified().unwrap();
    let survey = Survey::new(Rc::new(Cached::new(OnFile::open(image), Budget::default())));
    assert_eq!(fs::metadata(image).unwrap().modified().unwrap(), before);
    survey
}

/// A disk's entries.
pub fn found(image: &Path) -> Found {
    survey(image).found()
}

/// Kernel and initrd of an entry, or of the default one.
pub fn load(survey: &Survey, wish: Option<&str>) -> Result<(Vec<u8>, Vec<u8>), String> {
    let index = survey.found().choose(wish).ok_or("no entry")?;
    let mut out: Vec<u8> = Vec::new();
    let pieces: Pieces = survey.load(index, 64 * MIB, &mut |at, bytes| {
        let at = at as usize;
        assert!(at >= out.len(), "the output goes backwards");
        out.resize(at, 0);
        out.extend_from_slice(bytes);
        Ok(())
    })?;
    let kernel = out[..pieces.kernel as usize].to_vec();
    let start = pieces.initrd_start as usize;
    let initrd = match pieces.initrd {
        0 => Vec::new(),
        size => out[start..start + size as usize].to_vec(),
    };
    Ok((kernel, initrd))
}

/// A PE program with these sections.
pub fn unified(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x80;
    file[0x80..0x84].copy_from_slice(b"PE\0\0");
    file[0x84..0x86].copy_from_slice(&0x8664u16.to_le_bytes());
    file[0x86] = sections.len() as u8;
    file[0x94] = 0x70;
    for (i, (name, content)) in sections.iter().enumerate() {
        let at = 0x98 + 0x70 + i * 40;
        file[at..at + name.len()].copy_from_slice(name.as_bytes());
        let offset = file.len();
        let raw = content.len().next_multiple_of(512);
        for (field, value) in [(8, content.len()), (16, raw), (20, offset)] {
            let value = (value as u32).to_le_bytes();
            file[at + field..at + field + 4].copy_from_slice(&value);
        }
        file.extend_from_slice(content);
        file.resize(offset + raw, 0);
    }
    file
}

/// Bytes that differ from each other, for content.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..length).map(|_| random.next() as u8).collect()
}

/// Random numbers, the same on every run (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
