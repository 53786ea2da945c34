//! Images of ours before QEMU's tools, and theirs before us: random sequences
//! of operations, done by both in turn.
//!
//! `cargo xtask test` installs qemu-img and qemu-io (qemu-utils).

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use disk::manage::{self, Base, CreateOptions};
use disk::{Extent, Format, GuestRange, Image, ImageOptions, Op, RawDisk, RawOptions};
use support::{Random, dir, qemu_img, qemu_io, text};

const SIZE: u64 = 6 << 20;

/// How an image is made.
#[derive(Clone, Copy, Debug)]
struct Kind {
    cluster: u64,
    options: &'static str,
    backing: Option<Format>,
    ours: bool,
}

const KINDS: [Kind; 8] = [
    kind(65536, "", None, true),
    kind(4096, "", Some(Format::Raw), true),
    kind(512, "", Some(Format::Qcow2), true),
    kind(2 << 20, "", Some(Format::Raw), true),
    kind(65536, "", Some(Format::Qcow2), false),
    kind(65536, ",compat=0.10", Some(Format::Raw), false),
    kind(16384, ",refcount_bits=1,lazy_refcounts=on", None, false),
    kind(1024, ",refcount_bits=64", Some(Format::Qcow2), false),
];

const fn kind(cluster: u64, options: &'static str, backing: Option<Format>, ours: bool) -> Kind {
    Kind {
        cluster,
        options,
        backing,
        ours,
    }
}

/// Makes the image and what it builds on; what it shows.
fn make(directory: &Path, kind: Kind, random: &mut Random) -> Vec<u8> {
    let path = directory.join("top.qcow2");
    let mut shown = vec![0; SIZE as usize];
    let mut options = CreateOptions::new(Format::Qcow2, SIZE);
    options.cluster_size = Some(kind.cluster);
    let mut words = format!("cluster_size={}{}", kind.cluster, kind.options);
    if let Some(format) = kind.backing {
        let base = directory.join("base");
        // Shorter than what builds on it.
        let there = SIZE as usize - 1_000_448;
        random.fill(&mut shown[..there / 2]);
        std::fs::write(directory.join("raw"), &shown[..there]).unwrap();
        let raw = directory.join("raw");
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            format.name(),
            text(&raw),
            text(&base),
        ]);
        std::fs::remove_file(raw).unwrap();
        options.backing = Some((base, Some(format)));
        words += &format!(",backing_file=base,backing_fmt={format}");
    }
    if kind.ours {
        manage::create(&path, &options).unwrap();
    } else {
        let size = SIZE.to_string();
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &words,
            text(&path),
            &size,
        ]);
    }
    // Compressed clusters, which QEMU writes only where nothing is.
    if kind.cluster <= 65536 && !kind.ours {
        let mut commands = Vec::new();
        for at in [0, 2 << 16, 3 << 16, 50 << 16] {
            let pattern = 1 + random.below(255) as u8;
            shown[at..at + 65536].fill(pattern);
            commands.push(format!("write -c -P {pattern} {at} 65536"));
        }
        qemu_io(&path, &commands);
    }
    shown
}

/// A random range of whole sectors.
fn range(random: &mut Random, most: u64) -> (u64, u64) {
    let sectors = SIZE / 512;
    let start = random.below(sectors);
    let length = 1 + random.below((most / 512).min(sectors - start));
    // Often at the edges of clusters.
    match random.below(3) {
        0 => (
            start / 128 * 128 * 512,
            (length * 512).min(SIZE - start * 512),
        ),
        _ => (start * 512, length * 512),
    }
}

fn ours(path: &Path, shown: &mut [u8], random: &mut Random, count: u64) {
    let image = Image::open(&ImageOptions::write(path, Some(Format::Qcow2))).unwrap();
    for _ in 0..count {
        let (at, length) = range(random, 300 << 10);
        let part = &mut shown[at as usize..(at + length) as usize];
        match random.below(10) {
            0..5 => {
                random.fill(part);
                image.write(part, at).unwrap();
            }
            5 => {
                part.fill(0);
                image.zero(at, length, false).unwrap();
            }
            6 => {
                part.fill(0);
                image.zero(at, length, true).unwrap();
            }
            7 if image.extent(0, 1).is_ok() => {
                image.discard(at, length).unwrap();
                // What it holds now is the disk's choice: zeroes here, but
                // version 2 keeps the data.
                image.read(part, at).unwrap();
            }
            8 => image.flush().unwrap(),
            _ => {
                let mut read = vec![1; length as usize];
                image.read(&mut read, at).unwrap();
                assert!(read == part, "{at} {length}");
            }
        }
    }
    image.close().unwrap();
}

/// As [`ours`], by a guest's queue with many operations under way.
fn queued(path: &Path, shown: &mut [u8], random: &mut Random, batches: u64) {
    const MOST: u64 = 300 << 10;
    const DEPTH: u64 = 16;
    let mut options = disk::DiskOptions::new(path);
    options.format = Some(Format::Qcow2);
    options.aio = match random.below(3) {
        0 => disk::Aio::Threads,
        _ => disk::Aio::Auto,
    };
    let disk = disk::open(&options).unwrap();
    let ram = memory::GuestRam::new(DEPTH * MOST, DEPTH * MOST).unwrap();
    let mut queue = disk.open_queue(ram.clone()).unwrap();
    for _ in 0..batches {
        let mut begun: Vec<(u64, u64, Option<u64>)> = Vec::new();
        for slot in 0..DEPTH {
            let (at, length) = range(random, MOST);
            if begun.iter().any(|(b, l, _)| at < b + l && *b < at + length) {
                continue;
            }
            let gpa = slot * MOST;
            // In two parts, the second of which may begin anywhere.
            let cut = random.below(length) as u32 / 3;
            let first = GuestRange { gpa, len: cut };
            let second = GuestRange {
                gpa: gpa + u64::from(cut),
                len: length as u32 - cut,
            };
            let ranges = [first, second];
            let part = &mut shown[at as usize..(at + length) as usize];
            let (sector, count) = (at / 512, length / 512);
            let durable = random.below(8) == 0;
            let read = random.below(3) == 0;
            let op = if read {
                Op::Read {
                    sector,
                    to: &ranges,
                }
            } else if random.below(6) == 0 {
                part.fill(0);
                Op::WriteZeroes {
                    sector,
                    count,
                    unmap: durable,
                    durable,
                }
            } else {
                random.fill(part);
                ram.write(gpa, part).unwrap();
                Op::Write {
                    sector,
                    from: &ranges,
                    durable,
                }
            };
            queue.submit(slot, op).unwrap();
            begun.push((at, length, read.then_some(gpa)));
        }
        queue.submit(DEPTH, Op::Flush).unwrap();
        let mut done = Vec::new();
        while queue.in_flight() > 0 {
            queue.wait(&mut done).unwrap();
        }
        assert!(done.iter().all(|d| d.result.is_ok()), "{done:?}");
        assert_eq!(done.len(), begun.len() + 1);
        for (at, length, gpa) in begun {
            let mut read = vec![1; length as usize];
            if let Some(gpa) = gpa {
                ram.read(gpa, &mut read).unwrap();
                assert!(read == shown[at as usize..(at + length) as usize]);
            }
        }
        let mut back = vec![0; shown.len()];
        disk.read_at(0, &mut back).unwrap();
        assert!(back == shown);
    }
}

fn theirs(path: &Path, shown: &mut [u8], random: &mut Random, count: u64) {
    let mut commands = Vec::new();
    for _ in 0..count {
        let (at, length) = range(random, 300 << 10);
        let part = &mut shown[at as usize..(at + length) as usize];
        let pattern = 1 + random.below(255) as u8;
        match random.below(6) {
            0..3 => {
                part.fill(pattern);
                commands.push(format!("write -P {pattern} {at} {length}"));
            }
            3 => {
                part.fill(0);
                commands.push(format!("write -z -u {at} {length}"));
            }
            4 => {
                part.fill(0);
                commands.push(format!("write -z {at} {length}"));
            }
            _ => {
                let part = part
                    .first()
                    .filter(|first| part.iter().all(|b| b == *first));
                if let Some(first) = part {
                    commands.push(format!("read -P {first} {at} {length}"));
                }
            }
        }
    }
    qemu_io(path, &commands);
}

/// QEMU finds no fault, not even lost space, and reads what should be there.
fn agree(directory: &Path, shown: &[u8]) {
    let top = directory.join("top.qcow2");
    let mirror = directory.join("mirror.raw");
    std::fs::write(&mirror, shown).unwrap();
    qemu_img(&["check", "-q", "-f", "qcow2", text(&top)]);
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&top),
        text(&mirror),
    ]);
    let report = manage::check(&top, Some(Format::Qcow2), false).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let same = manage::compare(
        (&top, Some(Format::Qcow2)),
        (&mirror, Some(Format::Raw)),
        &mut |_, _| {},
    );
    assert_eq!(same.unwrap(), None);
    let image = Image::open(&ImageOptions::read(&top, Some(Format::Qcow2))).unwrap();
    let mut read = vec![1; shown.len()];
    image.read(&mut read, 0).unwrap();
    assert!(read == shown);
    let mut at = 0;
    while at < SIZE {
        let (extent, length) = image.extent(at, SIZE - at).unwrap();
        let part = &shown[at as usize..(at + length) as usize];
        assert!(extent == Extent::Data || part.iter().all(|b| *b == 0));
        at += length;
    }
}

#[test]
fn random_operations_of_both_agree() {
    for (seed, kind) in (1..).zip(KINDS) {
        for round in 0..2 {
            let dir = dir();
            let mut random = Random(seed * 1000 + round);
            eprintln!("{kind:?}, round {round}");
            let mut shown = make(dir.path(), kind, &mut random);
            let top = dir.path().join("top.qcow2");
            for _ in 0..3 {
                ours(&top, &mut shown, &mut random, 60);
                queued(&top, &mut shown, &mut random, 8);
                agree(dir.path(), &shown);
                theirs(&top, &mut shown, &mut random, 15);
                agree(dir.path(), &shown);
            }
        }
    }
}

#[test]
fn conversions_commits_and_rebases_keep_what_is_shown() {
    for (seed, kind) in (7..).zip(KINDS) {
        let Some(base_format) = kind.backing else {
            continue;
        };
        let dir = dir();
        let mut random = Random(seed);
        let mut shown = make(dir.path(), kind, &mut random);
        let top = dir.path().join("top.qcow2");
        ours(&top, &mut shown, &mut random, 60);
        theirs(&top, &mut shown, &mut random, 20);
        let quiet = &mut |_, _| {};
        for format in [Format::Raw, Format::Qcow2] {
            let to = dir.path().join(format!("copy.{format}"));
            let options = CreateOptions::new(format, 0);
            manage::convert(&top, Some(Format::Qcow2), &to, &options, quiet).unwrap();
            if format == Format::Qcow2 {
                qemu_img(&["check", "-q", "-f", "qcow2", text(&to)]);
            }
            let files = ["-f", "qcow2", "-F", format.name(), text(&top), text(&to)];
            qemu_img(&[&["compare", "-q"], &files[..]].concat());
        }
        // Another file below, which holds something else.
        let other = dir.path().join("other.raw");
        let mut noise = vec![0; SIZE as usize + 4096];
        random.fill(&mut noise[SIZE as usize / 4..]);
        std::fs::write(&other, &noise).unwrap();
        let base = Base::File(other.clone(), Some(Format::Raw));
        manage::rebase(&top, Some(Format::Qcow2), &base, false, quiet).unwrap();
        agree(dir.path(), &shown);
        let info = qemu_img(&["info", text(&top)]);
        assert!(info.contains("backing file format: raw"), "{info}");
        // And back again; then what is its own goes down.
        let base = Base::File(dir.path().join("base"), Some(base_format));
        manage::rebase(&top, Some(Format::Qcow2), &base, false, quiet).unwrap();
        agree(dir.path(), &shown);
        manage::commit(&top, Some(Format::Qcow2), quiet).unwrap();
        agree(dir.path(), &shown);
        let allocated = std::fs::metadata(&top).unwrap().blocks() * 512;
        assert!(kind.cluster > 65536 || allocated < 1 << 20, "{allocated}");
        let mut below = vec![0; SIZE as usize];
        let base = Image::open(&ImageOptions::read(
            dir.path().join("base"),
            Some(base_format),
        ));
        base.unwrap().read(&mut below, 0).unwrap();
        assert!(below == shown);
        // On its own in the end.
        manage::rebase(&top, Some(Format::Qcow2), &Base::None, false, quiet).unwrap();
        std::fs::remove_file(dir.path().join("base")).unwrap();
        agree(dir.path(), &shown);
    }
}

#[test]
fn sizes_change_both_ways() {
    let dir = dir();
    let path = dir.path().join("top.qcow2");
    let base = dir.path().join("base");
    std::fs::write(&base, vec![7; 3 << 20]).unwrap();
    let mut options = CreateOptions::overlay(&base, Some(Format::Raw));
    options.size = Some(1 << 20);
    manage::create(&path, &options).unwrap();
    let (file, format) = (&path, Some(Format::Qcow2));
    manage::resize(file, format, 5 << 20, false).unwrap();
    {
        // What the file below has behind the old end must not show.
        let image = Image::open(&ImageOptions::read(file, format)).unwrap();
        let mut read = vec![1; 5 << 20];
        image.read(&mut read, 0).unwrap();
        assert!(read[..1 << 20].iter().all(|b| *b == 7));
        assert!(read[1 << 20..].iter().all(|b| *b == 0));
    }
    qemu_io(file, &["read -P 0 1M 4M".into(), "write -P 3 4M 1M".into()]);
    assert!(manage::resize(file, format, 2 << 20, false).is_err());
    manage::resize(file, format, 2 << 20, true).unwrap();
    manage::resize(file, format, 5 << 20, false).unwrap();
    qemu_img(&["check", "-q", text(file)]);
    qemu_io(file, &["read -P 0 2M 3M".into()]);
    qemu_img(&["resize", "-q", text(file), "9M"]);
    assert_eq!(manage::info(file, format).unwrap().size, 9 << 20);
    {
        let mut options = disk::DiskOptions::new(file);
        options.format = format;
        let disk = disk::open(&options).unwrap();
        assert!(disk.grow(1).is_err());
        disk.grow(10 << 11).unwrap();
        assert_eq!((disk.sectors(), disk.info().sectors), (10 << 11, 9 << 11));
    }
    qemu_img(&["check", "-q", text(file)]);
    assert_eq!(manage::info(file, format).unwrap().size, 10 << 20);
    let raw = dir.path().join("raw.img");
    manage::create(&raw, &CreateOptions::new(Format::Raw, 1 << 20)).unwrap();
    manage::resize(&raw, None, 2 << 20, false).unwrap();
    assert_eq!(File::open(&raw).unwrap().metadata().unwrap().len(), 2 << 20);
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    let dir = dir();
    let path = dir.path().join("top.qcow2");
    manage::create(&path, &CreateOptions::new(Format::Qcow2, 64 << 20)).unwrap();
    let image = Image::open(&ImageOptions::write(&path, None)).unwrap();
    image.write(&vec![5; 32 << 20], 0).unwrap();
    image.flush().unwrap();
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let full = allocated();
    assert!(full >= 32 << 20);
    image.discard(0, 16 << 20).unwrap();
    image.zero(16 << 20, (8 << 20) + 512, true).unwrap();
    image.flush().unwrap();
    assert!(full - allocated() >= 23 << 20, "{full} {}", allocated());
    // The freed clusters are used again, and the file does not grow.
    let length = std::fs::metadata(&path).unwrap().len();
    image.write(&vec![6; 24 << 20], 32 << 20).unwrap();
    image.close().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() <= length + (1 << 20));
    qemu_img(&["check", "-q", text(&path)]);
    let data = ["read -P 0 0 24M", "read -P 5 25M 7M", "read -P 6 32M 24M"];
    qemu_io(&path, &data.map(String::from));
}

#[test]
fn a_base_image_is_read_by_both_and_written_by_neither() {
    let directory = dir();
    let path = directory.path().join("base.img");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let options = RawOptions {
        read_only: true,
        ..RawOptions::new(&path)
    };
    let reader = RawDisk::open(&options).unwrap();
    let copy = directory.path().join("copy.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&path), text(&copy)]);
    qemu_img(&["compare", text(&path), text(&copy)]);
    let write = ["-f", "raw", "-c", "write 0 4k", text(&path)];
    let refused = support::tool_once("qemu-io", &write);
    assert!(refused.contains("\"write\" lock"), "{refused}");
    drop(reader);
    let writer = RawDisk::open(&RawOptions::new(&path)).unwrap();
    let convert = ["convert", "-O", "qcow2", text(&path), text(&copy)];
    let refused = support::tool_once("qemu-img", &convert);
    assert!(refused.contains("Failed to lock"), "{refused}");
    drop(writer);
}

#[test]
fn what_a_dead_process_left_is_mended() {
    let dir = dir();
    let path = dir.path().join("top.qcow2");
    manage::create(&path, &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
    qemu_io(&path, &["write -P 1 0 1M".into()]);
    // A refcount too high, one too low, and a refcount block that is lost.
    let damage = |lost: bool| {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut at = [0; 8];
        file.read_exact_at(&mut at, 48).unwrap();
        let table = u64::from_be_bytes(at);
        file.read_exact_at(&mut at, table).unwrap();
        let block = u64::from_be_bytes(at);
        file.write_all_at(&0u16.to_be_bytes(), block + 2 * 6)
            .unwrap();
        file.write_all_at(&1u16.to_be_bytes(), block + 2 * 900)
            .unwrap();
        if lost {
            file.write_all_at(&0u64.to_be_bytes(), table).unwrap();
        }
    };
    for lost in [false, true] {
        damage(lost);
        let found = manage::check(&path, None, false).unwrap();
        assert!(found.errors > 0 && found.damage == 0, "{found:?}");
        assert!(lost || found.leaked_clusters == 1, "{found:?}");
        manage::check(&path, None, true).unwrap();
        assert!(manage::check(&path, None, false).unwrap().is_clean());
        qemu_img(&["check", "-q", text(&path)]);
        qemu_io(
            &path,
            &["read -P 1 0 1M".into(), "write -P 1 2M 64k".into()],
        );
    }
    // The same is done when it is opened.
    damage(false);
    let image = Image::open(&ImageOptions::write(&path, None)).unwrap();
    image.write(&[9; 512], 5 << 20).unwrap();
    image.close().unwrap();
    qemu_img(&["check", "-q", text(&path)]);
}
