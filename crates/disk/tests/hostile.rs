//! Images that lie: headers and tables with any values are read, refused or
//! mended, without a panic, a hang or much memory.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use disk::manage::{self, CreateOptions};
use disk::{DiskError, Format, Image, ImageOptions};
use support::{Random, dir, qemu_img, qemu_io, text};
use tempfile::TempDir;

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most memory that an image may cost.
const MEMORY: usize = 128 << 20;
/// Longest that all that is done with one image may take.
const TIME: Duration = Duration::from_secs(20);

static PANICS: AtomicU64 = AtomicU64::new(0);
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// A directory in memory if there is one: nothing here is about durability.
fn quick_dir() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| dir())
}

/// Images of several shapes, as bytes.
fn samples(directory: &Path) -> Vec<Vec<u8>> {
    let base = directory.join("base");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let shapes = [
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=2097152",
        "cluster_size=65536,compat=0.10",
        "cluster_size=4096,backing_file=base,backing_fmt=raw",
    ];
    let make = |(n, shape): (usize, &&str)| {
        let path = directory.join(format!("sample{n}"));
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            shape,
            text(&path),
            "4M",
        ]);
        let mut commands = vec!["write -P 5 0 100k".into(), "write -z 2M 64k".into()];
        if n < 3 {
            commands.push("write -c -P 9 3M 64k".into());
        }
        qemu_io(&path, &commands);
        std::fs::read(&path).unwrap()
    };
    shapes.iter().enumerate().map(make).collect()
}

/// A value that finds faults: an edge, a place in the file, or any.
fn evil(random: &mut Random, length: u64) -> u64 {
    match random.below(12) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        3 => (1 << random.below(64)) - 1,
        4 => 1 << 63 | (random.below(length) & !511),
        5 => random.below(length) & !0xffff,
        6 => 1 << 62 | random.next() >> 3,
        7 => random.below(4096),
        8 => length,
        9 => (1 << 56) - 512,
        10 => 1 << 63 | ((1 << 56) - (512 << random.below(13))),
        _ => random.next(),
    }
}

/// Changes some fields of a header or entries of tables.
fn mutate(image: &mut [u8], random: &mut Random) {
    let length = image.len() as u64;
    let word = |image: &[u8], at: usize| {
        image
            .get(at..at + 8)
            .map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()))
    };
    let (l1, table) = (word(image, 40) as usize, word(image, 48) as usize);
    let l2 = (word(image, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let block = word(image, table) as usize;
    for _ in 0..1 + random.below(4) {
        let value = evil(random, length);
        let (at, width) = match random.below(10) {
            0..3 => {
                // The fields of the header.
                let fields = [
                    4, 8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 80, 88, 96, 100,
                ];
                let at = fields[random.below(17) as usize];
                (
                    at,
                    if matches!(at, 8 | 24 | 40 | 48 | 64..=88) {
                        8
                    } else {
                        4
                    },
                )
            }
            3 => (104 + random.below(300) as usize, 4),
            4 | 5 => (l1 + 8 * random.below(8) as usize, 8),
            6 => (table + 8 * random.below(8) as usize, 8),
            7 => (block + 8 * random.below(64) as usize, 8),
            _ => (l2 + 8 * random.below(80) as usize, 8),
        };
        let bytes = value.to_be_bytes();
        let bytes = if width == 4 { &bytes[4..] } else { &bytes[..] };
        if let Some(to) = image.get_mut(at..at + width) {
            to.copy_from_slice(bytes);
        }
    }
}

/// Does with an image all that can be done; errors are fine.
fn use_all(path: &Path) {
    let format = Some(Format::Qcow2);
    let _ = manage::info(path, format);
    let _ = manage::info(path, None);
    if let Ok(image) = Image::open(&ImageOptions::read(path, format)) {
        read_some(&image);
    }
    let mut written = false;
    if let Ok(image) = Image::open(&ImageOptions::write(path, format)) {
        written = true;
        let size = image.size();
        for at in [0, 70 << 10, 2 << 20, 3 << 20, size.saturating_sub(4096)] {
            let _ = image.write(&[1; 4096], at.min(size.saturating_sub(4096)));
        }
        let _ = image.zero(1000, 200_000, true);
        let _ = image.discard(0, 1 << 20);
        let _ = image.flush();
        read_some(&image);
        let _ = image.close();
    }
    let report = manage::check(path, format, true);
    if written && let Ok(report) = report {
        // What may be written was sound, and still is.
        assert_eq!(report.damage, 0, "{report:?}");
    }
}

fn read_some(image: &Image) {
    let mut buffer = vec![0; 256 << 10];
    let size = image.size();
    for n in 0..24 {
        let at = n * buffer.len() as u64;
        if at + buffer.len() as u64 <= size {
            let _ = image.read(&mut buffer, at);
        }
    }
    let _ = image.read(&mut buffer[..512], size.saturating_sub(512));
    let _ = image.extent(0, size);
}

#[test]
fn any_values_are_refused_or_read() {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        // Tests beside this one fail by panics.
        if std::thread::current().name() != Some("any_values_are_refused_or_read") {
            return;
        }
        PANICS.fetch_add(1, Ordering::Relaxed);
        *LAST_PANIC.lock().unwrap() = info.to_string();
    }));
    let directory = quick_dir();
    let samples = samples(directory.path());
    let rounds: u64 = std::env::var("HOLM_HOSTILE_IMAGES").map_or(2500, |n| n.parse().unwrap());
    let mut random = Random(0xbad);
    let path = directory.path().join("image");
    for round in 0..rounds {
        let mut image = samples[(round % samples.len() as u64) as usize].clone();
        let seed = random.next();
        mutate(&mut image, &mut Random(seed | 1));
        std::fs::write(&path, &image).unwrap();
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let begun = Instant::now();
        use_all(&path);
        let panic = LAST_PANIC.lock().unwrap().clone();
        let keep = || {
            let kept = dir().keep().join("hostile.qcow2");
            std::fs::write(&kept, &image).unwrap();
            kept
        };
        if PANICS.load(Ordering::Relaxed) > 0 {
            let _ = std::panic::take_hook();
            panic!("{panic}; round {round}, see {}", keep().display());
        }
        let most = MOST.load(Ordering::Relaxed).saturating_sub(before);
        assert!(most < MEMORY, "{most} bytes; {}", keep().display());
        let took = begun.elapsed();
        assert!(took < TIME, "{took:?}; {}", keep().display());
    }
}

/// A sparse file that is far larger than its contents.
#[test]
fn endless_tables_end() {
    let directory = quick_dir();
    let path = directory.path().join("image");
    manage::create(&path, &CreateOptions::new(Format::Qcow2, 1 << 40)).unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    // An L2 table for each of a million L1 entries, all of them holes.
    let entries = 1u64 << 20;
    let l1 = 1u64 << 30;
    let l2 = 2u64 << 30;
    if file.set_len(l2 + (entries << 16)).is_err() {
        return;
    }
    let table: Vec<u8> = (0..entries)
        .flat_map(|n| (1 << 63 | (l2 + (n << 16))).to_be_bytes())
        .collect();
    file.write_all_at(&table, l1).unwrap();
    file.write_all_at(&(entries as u32).to_be_bytes(), 36)
        .unwrap();
    file.write_all_at(&l1.to_be_bytes(), 40).unwrap();
    let begun = Instant::now();
    if let Ok(image) = Image::open(&ImageOptions::write(&path, None)) {
        let _ = image.write(&[1; 4096], 0);
        let _ = image.close();
    }
    assert!(begun.elapsed() < TIME, "{:?}", begun.elapsed());
}

#[test]
fn a_chain_that_bites_its_tail_or_is_too_long_is_refused() {
    let directory = dir();
    let at = |name: &str| directory.path().join(name);
    let create = |name: &str, base: &str| {
        let options = CreateOptions::overlay(at(base), Some(Format::Qcow2));
        manage::create(&at(name), &options).unwrap();
    };
    manage::create(&at("0"), &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    for n in 1..disk::MAX_LAYERS {
        create(&n.to_string(), &(n - 1).to_string());
    }
    let top = |n: usize| Image::open(&ImageOptions::read(at(&n.to_string()), None));
    top(disk::MAX_LAYERS - 1).unwrap();
    let last = at("last");
    let options = CreateOptions {
        size: Some(1 << 20),
        ..CreateOptions::overlay(at("5"), Some(Format::Qcow2))
    };
    manage::create(&last, &options).unwrap();
    let longest = at(&(disk::MAX_LAYERS - 1).to_string());
    let quiet = &mut |_, _| {};
    let base = manage::Base::File(longest, Some(Format::Qcow2));
    manage::rebase(&last, None, &base, true, quiet).unwrap();
    let too_long = Image::open(&ImageOptions::read(&last, None));
    assert!(matches!(too_long, Err(DiskError::TooDeep(_))));
    // The lowest one is made to build on the third.
    let loops = manage::Base::File(at("3"), Some(Format::Qcow2));
    manage::rebase(&at("0"), None, &loops, false, quiet).unwrap_err();
    manage::rebase(&at("0"), None, &loops, true, quiet).unwrap();
    assert!(matches!(top(5), Err(DiskError::Loop(_))));
    assert!(matches!(top(0), Err(DiskError::Loop(_))));
    assert!(
        manage::info(&at("5"), None)
            .unwrap()
            .backing_problem
            .is_some()
    );
}

/// What a guest could write to its raw disk, to see another file of the host.
fn trap(secret: &Path) -> Vec<u8> {
    let directory = dir();
    let path = directory.path().join("trap");
    let options = CreateOptions::overlay(secret, Some(Format::Raw));
    manage::create(&path, &options).unwrap();
    std::fs::read(&path).unwrap()
}

#[test]
fn a_guest_cannot_turn_its_raw_disk_into_a_way_to_other_files() {
    let directory = dir();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, vec![b's'; 1 << 20]).unwrap();
    let trap = trap(&secret);
    let path: PathBuf = directory.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let read = |format| Image::open(&ImageOptions::read(&path, format));
    // Nobody said what it is; its guest writes a header, by whatever way.
    drop(Image::open(&ImageOptions::write(&path, None)).unwrap());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&trap, 0).unwrap();
    assert!(matches!(read(None), Err(DiskError::Ambiguous(_))));
    let raw = read(Some(Format::Raw)).unwrap();
    assert_eq!(raw.size(), 1 << 20);
    // A file that was never used here, and leads elsewhere.
    std::fs::copy(&path, directory.path().join("copy.img")).unwrap();
    let copy = directory.path().join("copy.img");
    let read = |format| Image::open(&ImageOptions::read(&copy, format));
    assert!(matches!(read(None), Err(DiskError::Untold(_))));
    let message = read(None).err().unwrap().to_string();
    assert!(message.contains("format=qcow2"), "{message}");
    read(Some(Format::Qcow2)).unwrap();
    assert_eq!(read(Some(Format::Raw)).unwrap().size(), 1 << 20);
    // Holm's own images are known, and other self-contained ones are harmless.
    let own = directory.path().join("own");
    manage::create(&own, &CreateOptions::overlay(&secret, None)).unwrap();
    assert_eq!(
        Image::open(&ImageOptions::read(&own, None))
            .unwrap()
            .format(),
        Format::Qcow2
    );
    let whole = directory.path().join("whole");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&whole), "1M"]);
    assert_eq!(
        Image::open(&ImageOptions::read(&whole, None))
            .unwrap()
            .format(),
        Format::Qcow2
    );
}
