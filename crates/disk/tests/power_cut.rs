//! A process that writes to a disk is killed at any moment: every block whose
//! flush was acknowledged is there, and no image is damaged.
//!
//! Kills per kind of image: `HOLM_POWER_CUTS` (thousands make a long test).

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use disk::manage::{self, CreateOptions};
use disk::{BlockQueue, Completion, DiskOptions, Format, GuestRange, Image, ImageOptions, Op};
use memory::GuestRam;
use support::{Random, dir, text};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;
const SECTOR: usize = 512;
/// Operations of the writer under way at once.
const DEPTH: u64 = 24;
/// The writer's environment: path, format, seed, first generation.
const WRITER: &str = "HOLM_POWER_CUT_WRITER";

/// What a sector holds: its block, place and generation, over and over.
fn sector(block: u64, place: u64, generation: u64) -> [u8; SECTOR] {
    let mut data = [0; SECTOR];
    for (n, part) in (0u64..).zip(data.chunks_mut(32)) {
        for (word, value) in part.chunks_mut(8).zip([block, place, generation, !n]) {
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    data
}

/// A record of the writer's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    /// A block is about to be written; zeroed if so said.
    Begun {
        block: u64,
        generation: u64,
        zero: bool,
    },
    /// A block is on stable storage with this or a later generation.
    Durable { block: u64, generation: u64 },
}

impl Record {
    fn bytes(self) -> [u8; 24] {
        let (kind, block, generation) = match self {
            Self::Begun {
                block,
                generation,
                zero,
            } => (1 + u64::from(zero), block, generation),
            Self::Durable { block, generation } => (3, block, generation),
        };
        let mut bytes = [0; 24];
        for (part, value) in bytes.chunks_mut(8).zip([kind, block, generation]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let word = |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().unwrap());
        let (block, generation) = (word(1), word(2));
        match word(0) {
            kind @ 1..=2 => Self::Begun {
                block,
                generation,
                zero: kind == 2,
            },
            _ => Self::Durable { block, generation },
        }
    }
}

/// The process that is killed; does nothing when it runs as a test.
#[test]
fn writer() {
    let Ok(task) = std::env::var(WRITER) else {
        return;
    };
    let words: Vec<&str> = task.split('|').collect();
    let mut options = DiskOptions::new(words[0]);
    options.format = Some(Format::parse(words[1]).unwrap());
    let mut random = Random(words[2].parse().unwrap());
    let first: u64 = words[3].parse().unwrap();
    let disk = disk::open(&options).unwrap();
    let ram = GuestRam::new(DEPTH * BLOCK, DEPTH * BLOCK).unwrap();
    let queue = disk.open_queue(ram.clone()).unwrap();
    let mut state = Writing {
        queue,
        ram,
        flying: BTreeMap::new(),
        changed: BTreeMap::new(),
        flush: None,
        out: std::io::stderr(),
    };
    let mut next = first;
    loop {
        while (state.flying.len() as u64) < DEPTH {
            state.begin(&mut random, next);
            next += 1;
        }
        if state.flush.is_none() && random.below(12) == 0 {
            state.flush = Some(std::mem::take(&mut state.changed));
            state.queue.submit(u64::MAX, Op::Flush).unwrap();
        }
        state.reap();
    }
}

struct Writing {
    queue: Box<dyn BlockQueue>,
    ram: Arc<GuestRam>,
    /// By place in memory: block and generation.
    flying: BTreeMap<u64, (u64, u64)>,
    /// Completed since the last flush began.
    changed: BTreeMap<u64, u64>,
    /// What a flush under way makes durable.
    flush: Option<BTreeMap<u64, u64>>,
    out: std::io::Stderr,
}

impl Writing {
    fn begin(&mut self, random: &mut Random, generation: u64) {
        let place = (0..DEPTH).find(|p| !self.flying.contains_key(p)).unwrap();
        let block = loop {
            let block = random.below(BLOCKS);
            if !self.flying.values().any(|(b, _)| *b == block) {
                break block;
            }
        };
        let zero = random.below(8) == 0;
        let begun = Record::Begun {
            block,
            generation,
            zero,
        };
        self.out.write_all(&begun.bytes()).unwrap();
        let at = block * BLOCK / 512;
        let submitted = if zero {
            let op = Op::WriteZeroes {
                sector: at,
                count: BLOCK / 512,
                unmap: random.below(2) == 0,
                durable: false,
            };
            self.queue.submit(place, op)
        } else {
            let data: Vec<u8> = (0..BLOCK / 512)
                .flat_map(|n| sector(block, n, generation))
                .collect();
            self.ram.write(place * BLOCK, &data).unwrap();
            let from = [GuestRange {
                gpa: place * BLOCK,
                len: BLOCK as u32,
            }];
            let op = Op::Write {
                sector: at,
                from: &from,
                durable: false,
            };
            self.queue.submit(place, op)
        };
        submitted.unwrap();
        self.flying.insert(place, (block, generation));
    }

    fn reap(&mut self) {
        let mut done: Vec<Completion> = Vec::new();
        self.queue.wait(&mut done).unwrap();
        for Completion { tag, result } in done {
            result.unwrap();
            if tag == u64::MAX {
                for (block, generation) in self.flush.take().unwrap() {
                    let record = Record::Durable { block, generation };
                    self.out.write_all(&record.bytes()).unwrap();
                }
                continue;
            }
            let (block, generation) = self.flying.remove(&tag).unwrap();
            self.changed.insert(block, generation);
        }
    }
}

/// What a block may hold.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Generations that may be there, oldest first; the first is the one that
    /// was last seen or acknowledged.
    may: Vec<(u64, bool)>,
}

/// Lets a writer run and kills it; its journal.
fn cut(path: &Path, format: Format, seed: u64, first: u64, after: Duration) -> Vec<Record> {
    let task = format!("{}|{format}|{seed}|{first}", text(path));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(WRITER, task)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut journal = child.stderr.take().unwrap();
    let mut bytes = vec![0; 24];
    journal.read_exact(&mut bytes).unwrap();
    let reader = std::thread::spawn(move || {
        journal.read_to_end(&mut bytes).unwrap();
        bytes
    });
    std::thread::sleep(after);
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let bytes = reader.join().unwrap();
    assert!(ended.is_none(), "{}", String::from_utf8_lossy(&bytes));
    bytes.chunks_exact(24).map(Record::parse).collect()
}

fn note(known: &mut [Known], journal: &[Record]) {
    for record in journal {
        match *record {
            Record::Begun {
                block,
                generation,
                zero,
            } => known[block as usize].may.push((generation, zero)),
            Record::Durable { block, generation } => {
                let may = &mut known[block as usize].may;
                may.retain(|(g, _)| *g >= generation);
            }
        }
    }
}

/// Compares the disk with what it may hold, and learns what it does hold.
fn verify(image: &Image, known: &mut [Known]) {
    let mut data = vec![0; (BLOCKS * BLOCK) as usize];
    image.read(&mut data, 0).unwrap();
    for (block, (data, known)) in (0..).zip(data.chunks(BLOCK as usize).zip(known)) {
        let mut there = BTreeSet::new();
        for (place, data) in (0..).zip(data.chunks(SECTOR)) {
            let found = known
                .may
                .iter()
                .rev()
                .find(|(generation, zero)| match zero {
                    true => data.iter().all(|b| *b == 0),
                    false => *data == sector(block, place, *generation),
                });
            let found = found.unwrap_or_else(|| {
                panic!(
                    "block {block}, sector {place}: {:x?}, may be {known:?}",
                    &data[..32]
                )
            });
            there.insert(*found);
        }
        // A write that was under way may have come half through.
        known.may = there.into_iter().collect();
    }
}

fn kills(default: u64) -> u64 {
    std::env::var("HOLM_POWER_CUTS").map_or(default, |n| n.parse().unwrap())
}

/// Cuts the power again and again; how many blocks were acknowledged.
fn run(format: Format, cluster: Option<u64>, overlay: bool, default: u64) -> usize {
    let mut random = Random(0x5eed + cluster.unwrap_or(0) + u64::from(overlay));
    let total = kills(default);
    let (mut done, mut acknowledged) = (0, 0);
    while done < total {
        // A new image now and then, so that there is always much to allocate.
        let dir = dir();
        let path = dir.path().join("disk");
        let mut known = vec![Known::default(); BLOCKS as usize];
        make(
            &path,
            dir.path().join("base"),
            format,
            cluster,
            overlay,
            &mut known,
        );
        let mut generation = 1;
        for _ in 0..25.min(total - done) {
            done += 1;
            let after = Duration::from_micros(500 + random.below(40_000));
            let journal = cut(&path, format, random.next() | 1, generation, after);
            generation += journal.len() as u64 + 1;
            let durable = |r: &&Record| matches!(r, Record::Durable { .. });
            acknowledged += journal.iter().filter(durable).count();
            note(&mut known, &journal);
            // The dead process keeps its lock until its last writes have ended.
            let image = (0..30)
                .find_map(|_| Image::open(&ImageOptions::read(&path, Some(format))).ok())
                .expect("the disk stays locked");
            verify(&image, &mut known);
            drop(image);
            if format == Format::Qcow2 {
                not_damaged(&path);
            }
            if format == Format::Qcow2 && random.below(4) == 0 {
                // Opening and closing it mends what the dead process left.
                let image = Image::open(&ImageOptions::write(&path, Some(format))).unwrap();
                verify(&image, &mut known);
                image.close().unwrap();
                support::qemu_img(&["check", "-q", "-f", "qcow2", text(&path)]);
            }
        }
    }
    acknowledged
}

fn make(
    path: &Path,
    base: PathBuf,
    format: Format,
    cluster: Option<u64>,
    overlay: bool,
    known: &mut [Known],
) {
    let mut options = CreateOptions::new(format, BLOCKS * BLOCK);
    options.cluster_size = cluster;
    for known in &mut *known {
        known.may = vec![(0, !overlay)];
    }
    if overlay {
        let data: Vec<u8> = (0..BLOCKS)
            .flat_map(|block| (0..BLOCK / 512).flat_map(move |n| sector(block, n, 0)))
            .collect();
        std::fs::write(&base, data).unwrap();
        options.backing = Some((base, Some(Format::Raw)));
    }
    manage::create(path, &options).unwrap();
}

/// Refcounts are all that a dead process may leave wrong: space that is lost
/// and, very rarely, a cluster that is not counted yet. The image says so
/// itself, and who opens it next mends it.
fn not_damaged(path: &Path) {
    let report = manage::check(path, Some(Format::Qcow2), false).unwrap();
    assert_eq!(report.damage, 0, "{report:?}");
    assert!(report.errors <= DEPTH, "{report:?}");
    // 2: errors that are mended; 3: lost space.
    let fine: &[i32] = match report.errors {
        0 => &[0, 3],
        _ => &[2],
    };
    assert!(report.is_clean() || report.dirty);
    support::tool_with("qemu-img", &["check", "-f", "qcow2", text(path)], fine);
}

/// One after the other: locks are copied to children that have just begun.
#[test]
fn what_was_flushed_survives_and_no_image_is_damaged() {
    let acknowledged = run(Format::Raw, None, false, 50)
        + run(Format::Qcow2, None, false, 75)
        + run(Format::Qcow2, Some(65536), true, 75)
        + run(Format::Qcow2, Some(4096), true, 50);
    eprintln!("{acknowledged} blocks were acknowledged as durable");
    assert!(acknowledged > 1000);
}
