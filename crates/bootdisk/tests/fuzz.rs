//! Every parser of what a disk holds on hostile input: the kept corpus
//! (`tests/corpus`, with inputs that once found a fault), mutations of it, and
//! damaged file systems. `HOLM_FUZZ_SECONDS` makes it longer.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bootdisk::{ReadAt, fuzz};
use support::*;

/// For each parser.
const TIME: Duration = Duration::from_millis(1500);
/// An input that takes so long hangs, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(60);

fn time() -> Duration {
    let seconds = std::env::var("HOLM_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok());
    seconds.map_or(TIME, Duration::from_secs)
}

/// Ends the process, with the input's name, if an input takes too long.
struct Watch;

static RUNNING: AtomicU64 = AtomicU64::new(0);

impl Watch {
    fn start() -> Self {
        std::thread::spawn(|| {
            let (mut last, mut since) = (0, Instant::now());
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let now = RUNNING.load(Ordering::SeqCst);
                if now != last || now == 0 {
                    (last, since) = (now, Instant::now());
                }
                if since.elapsed() > PATIENCE {
                    eprintln!("input {now} hangs");
                    std::process::abort();
                }
            }
        });
        Self
    }
}

/// Words that parsers look for.
const WORDS: [&str; 40] = [
    "set ",
    "if ",
    "; then ",
    "elif ",
    "else ",
    "fi\n",
    "while ",
    "until ",
    "; do ",
    "done\n",
    "for x in ",
    "function f {",
    "}\n",
    "{\n",
    "menuentry ",
    "submenu ",
    "--id ",
    "linux ",
    "initrd ",
    "search --set=root ",
    "[ ",
    " ]",
    "$",
    "${",
    "\"",
    "'",
    "\\",
    "blscfg\n",
    "source /x\n",
    "configfile /x\n",
    "load_env\n",
    "eval ",
    "LABEL ",
    "APPEND ",
    "INCLUDE x\n",
    "title ",
    "options ",
    "version 1~2^3\n",
    ">",
    "+0-1.conf\n",
];

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut Random| {
        let at = random.below(corpus.len() as u64) as usize;
        corpus.get(at).cloned().unwrap_or_default()
    };
    let mut data = pick(random);
    for _ in 0..=random.below(8) {
        let at = random.below(data.len() as u64 + 1) as usize;
        match random.below(7) {
            0 | 1 if at < data.len() => data[at] = random.next() as u8,
            2 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
            3 => {
                let word = WORDS[random.below(WORDS.len() as u64) as usize];
                data.splice(at..at, word.bytes());
            }
            4 => {
                let end = (at + random.below(64) as usize).min(data.len());
                data.drain(at..end);
            }
            5 => {
                let other = pick(random);
                let from = random.below(other.len() as u64 + 1) as usize;
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + random.below(256) as usize).min(data.len());
                let part = data[at..end].to_vec();
                data.splice(at..at, part);
            }
        }
        data.truncate(128 << 10);
    }
    data
}

#[test]
fn parsers_of_texts_and_tables() {
    let _watch = Watch::start();
    for (name, function) in fuzz::ALL {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/corpus")
            .join(name);
        let mut corpus: Vec<Vec<u8>> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        corpus.push(Vec::new());
        for input in &corpus {
            function(input);
        }
        let (mut random, mut n, begun) = (Random(0x5eed), 0, Instant::now());
        while begun.elapsed() < time() {
            n += 1;
            let input = mutate(&mut random, &corpus);
            RUNNING.store(n, Ordering::SeqCst);
            if catch_unwind(|| function(&input)).is_err() {
                let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{name}"));
                fs::write(&path, &input).unwrap();
                panic!("{name}: keep {} in {}", path.display(), directory.display());
            }
        }
        RUNNING.store(0, Ordering::SeqCst);
        println!("{name}: {n} inputs");
        assert!(n > 10);
    }
}

/// A disk with some bytes changed.
struct Damaged {
    disk: OnFile,
    size: u64,
    changed: HashMap<u64, u8>,
}

impl ReadAt for Damaged {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, out)?;
        let end = offset + out.len() as u64;
        for (at, byte) in self
            .changed
            .iter()
            .filter(|(at, _)| (offset..end).contains(*at))
        {
            out[(at - offset) as usize] = *byte;
        }
        Ok(())
    }
}

/// Where the last panic was: in code of ours or of a file system's crate.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

#[test]
fn damaged_file_systems() {
    let _watch = Watch::start();
    let dir = scratch();
    let config = b"menuentry a { linux /k x\n initrd /i }\n";
    let long = content(8, 200_000);
    let files: [(&str, &[u8]); 5] = [
        ("/boot/grub/grub.cfg", config),
        ("/grub/grub.cfg", config),
        ("/k", &long),
        ("/i", b"-> k"),
        ("/d/e/f", b"x"),
    ];
    let flat: [(&str, &[u8]); 3] = [("/boot/grub/grub.cfg", config), ("/k", &long), ("/i", b"i")];
    let images = [
        ext(dir.path(), "ext4", "ext4", 4 * MIB, &files),
        ext(dir.path(), "ext2", "ext2", 4 * MIB, &files),
        fat(dir.path(), "fat12", "12", 2 * MIB, &flat),
        fat(dir.path(), "fat32", "32", 40 * MIB, &flat),
        xfs(dir.path(), "xfs", &files),
    ];
    std::panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(String::new, ToString::to_string);
        if place.starts_with("crates/bootdisk") {
            eprintln!("{info}");
        }
        *LAST_PANIC.lock().unwrap() = format!("{place}: {info}");
    }));
    let (mut random, mut others, mut n) = (Random(77), Vec::new(), 0);
    for image in &images {
        // Metadata is where the image has anything at all.
        let content = fs::read(image).unwrap();
        let used: Vec<u64> = (0..)
            .zip(content.chunks(512))
            .filter(|(_, s)| s.iter().any(|b| *b != 0))
            .map(|(i, _): (u64, _)| i * 512)
            .filter(|at| *at < 64 * 1024 || random.below(4) == 0)
            .collect();
        let begun = Instant::now();
        while begun.elapsed() < time() {
            n += 1;
            let mut changed = HashMap::new();
            for _ in 0..=random.below(12) {
                let sector = used[random.below(used.len() as u64) as usize];
                let at = sector + random.below(512);
                let old = content[at as usize];
                let bit = 1 << random.below(8);
                let byte = [random.next() as u8, 0xff, 0, old ^ bit][random.below(4) as usize];
                changed.insert(at, byte);
            }
            let size = match random.below(16) {
                0 => random.below(content.len() as u64),
                _ => content.len() as u64,
            };
            let disk = Damaged {
                disk: OnFile::open(image),
                size,
                changed: changed.clone(),
            };
            RUNNING.store(n, Ordering::SeqCst);
            if catch_unwind(AssertUnwindSafe(|| fuzz::disk(disk))).is_err() {
                let place = LAST_PANIC.lock().unwrap().clone();
                let own = place.starts_with("crates/bootdisk");
                assert!(!own, "{} with {changed:?}: {place}", image.display());
                others.push(place);
            }
        }
    }
    RUNNING.store(0, Ordering::SeqCst);
    drop(std::panic::take_hook());
    println!(
        "{n} damaged disks; {} panics in other crates: {others:?}",
        others.len()
    );
    assert!(n > 10);
}
