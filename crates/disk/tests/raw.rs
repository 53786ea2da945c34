//! Raw disks on real files, by every way of access.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use disk::{
    Aio, BlockBackend, BlockError, BlockQueue, Caching, Completion, DiskError, GuestRange, Op,
    RawDisk, RawOptions, SECTOR, io_uring_usable,
};
use memory::GuestRam;
use proptest::prelude::*;
use tempfile::TempDir;

const RAM: u64 = 1 << 20;

fn ram() -> Arc<GuestRam> {
    GuestRam::new(RAM, RAM).unwrap()
}

/// A directory on a real file system (the temporary one may be in memory).
fn dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn image(dir: &TempDir, size: u64) -> std::path::PathBuf {
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Every way of access this host offers.
fn ways(path: &Path) -> Vec<RawOptions> {
    let mut ways = Vec::new();
    for aio in [Aio::Uring, Aio::Threads] {
        for caching in [Caching::Auto, Caching::Direct, Caching::Buffered] {
            if aio == Aio::Uring && io_uring_usable().is_err() {
                continue;
            }
            let options = RawOptions {
                aio,
                caching,
                ..RawOptions::new(path)
            };
            match RawDisk::open(&options) {
                Err(DiskError::NoDirect(_)) => {}
                _ => ways.push(options),
            }
        }
    }
    ways
}

fn finish(queue: &mut dyn BlockQueue) -> Vec<Completion> {
    let mut out = Vec::new();
    while queue.in_flight() > 0 {
        queue.wait(&mut out).unwrap();
    }
    out
}

fn run(queue: &mut dyn BlockQueue, op: Op<'_>) -> Result<u64, BlockError> {
    queue.submit(7, op)?;
    let out = finish(queue);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].tag, 7);
    out[0].result
}

fn range(gpa: u64, len: u32) -> GuestRange {
    GuestRange { gpa, len }
}

#[test]
fn data_goes_through_scattered_and_odd_buffers() {
    let dir = dir();
    let path = image(&dir, 1 << 20);
    for options in ways(&path) {
        let disk = RawDisk::open(&options).unwrap();
        let ram = ram();
        let mut queue = disk.open_queue(ram.clone()).unwrap();
        let data: Vec<u8> = (0..8192u32).map(|n| (n * 7 % 251) as u8).collect();
        ram.write(0x10001, &data).unwrap();
        // Odd addresses and lengths: direct I/O cannot take them.
        let from = [
            range(0x10001, 511),
            range(0x10200, 3585),
            range(0x11001, 4096),
        ];
        let op = Op::Write {
            sector: 3,
            from: &from,
            durable: false,
        };
        assert_eq!(run(&mut *queue, op), Ok(8192), "{options:?}");
        let to = [
            range(0x20000, 4096),
            range(0x40000, 512),
            range(0x41000, 3584),
        ];
        ram.take_dirty();
        assert_eq!(run(&mut *queue, Op::Read { sector: 3, to: &to }), Ok(8192));
        let mut back = vec![0; 8192];
        ram.read(0x20000, &mut back[..4096]).unwrap();
        ram.read(0x40000, &mut back[4096..4608]).unwrap();
        ram.read(0x41000, &mut back[4608..]).unwrap();
        assert!(back == data, "{options:?}");
        // The reads, and nothing else, made guest memory dirty.
        let dirty = ram.take_dirty();
        assert_eq!((dirty[0], dirty[1]), (1 << 0x20, 0b11), "{options:?}");
        assert_eq!(run(&mut *queue, Op::Flush), Ok(0));
        let mut on_disk = vec![0; 8192];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut on_disk, 3 * SECTOR)
            .unwrap();
        assert!(on_disk == data);
        let mut direct = [0; 16];
        disk.read_at(3 * SECTOR + 5, &mut direct).unwrap();
        assert_eq!(direct, data[5..21]);
        assert!(disk.read_at((1 << 20) - 8, &mut direct).is_err());
    }
}

#[test]
fn many_operations_at_once_all_complete_once() {
    let dir = dir();
    let path = image(&dir, 16 << 20);
    for options in ways(&path) {
        let disk = RawDisk::open(&options).unwrap();
        let ram = ram();
        let mut queue = disk.open_queue(ram.clone()).unwrap();
        for n in 0..200u64 {
            ram.write(n * 4096, &[n as u8; 4096]).unwrap();
        }
        for n in 0..2000u64 {
            let from = [range(n % 200 * 4096, 4096)];
            queue
                .submit(
                    n,
                    Op::Write {
                        sector: n * 8,
                        from: &from,
                        durable: false,
                    },
                )
                .unwrap();
        }
        assert_eq!(queue.in_flight(), 2000);
        let mut tags: Vec<u64> = finish(&mut *queue)
            .iter()
            .map(|c| {
                assert_eq!(c.result, Ok(4096));
                c.tag
            })
            .collect();
        tags.sort_unstable();
        assert!(tags.iter().copied().eq(0..2000));
        let mut block = [0; 4096];
        for n in (0..2000u64).step_by(97) {
            disk.read_at(n * 4096, &mut block).unwrap();
            assert_eq!(block, [(n % 200) as u8; 4096]);
        }
        // Dropped with operations under way: waits for them.
        for n in 0..300u64 {
            queue
                .submit(
                    n,
                    Op::Read {
                        sector: n * 8,
                        to: &[range(0, 4096)],
                    },
                )
                .unwrap();
        }
    }
}

#[test]
fn a_wake_ends_a_wait() {
    let dir = dir();
    let path = image(&dir, 1 << 20);
    for options in ways(&path) {
        let disk = RawDisk::open(&options).unwrap();
        let mut queue = disk.open_queue(ram()).unwrap();
        let waker = queue.waker();
        let mut out = Vec::new();
        waker.wake();
        queue.wait(&mut out).unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            waker.wake();
        });
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 20 {
            queue.wait(&mut out).unwrap();
        }
        thread.join().unwrap();
        assert!(out.is_empty());
    }
}

#[test]
fn discard_frees_space_and_zeroes_read_as_zero() {
    let dir = dir();
    let size = 4 << 20;
    let path = image(&dir, size);
    for options in ways(&path) {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&vec![0xaa; size as usize], 0).unwrap();
        file.sync_all().unwrap();
        let full = file.metadata().unwrap().blocks();
        assert!(full >= size / 512);
        let disk = RawDisk::open(&options).unwrap();
        assert!(disk.info().discard);
        let mut queue = disk.open_queue(ram()).unwrap();
        let op = Op::Discard {
            sector: 2048,
            count: 2048,
        };
        assert_eq!(run(&mut *queue, op), Ok(0));
        let freed = file.metadata().unwrap().blocks();
        assert!(
            freed + 2048 <= full,
            "{freed} of {full} blocks after a discard of 2048"
        );
        assert_eq!(file.metadata().unwrap().len(), size);
        let zeroes = |sector, unmap, durable| Op::WriteZeroes {
            sector,
            count: 8,
            unmap,
            durable,
        };
        assert_eq!(run(&mut *queue, zeroes(1, false, true)), Ok(0));
        assert_eq!(run(&mut *queue, zeroes(16, true, false)), Ok(0));
        let mut sectors = vec![0; 32 * 512];
        disk.read_at(0, &mut sectors).unwrap();
        for (n, sector) in sectors.chunks(512).enumerate() {
            let zero = (1..9).contains(&n) || (16..24).contains(&n);
            assert!(
                sector.iter().all(|&b| b == if zero { 0 } else { 0xaa }),
                "sector {n}"
            );
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_at_once() {
    let dir = dir();
    let path = image(&dir, 1 << 20);
    for mut options in ways(&path) {
        let last = (1 << 20) / SECTOR;
        {
            let disk = RawDisk::open(&options).unwrap();
            let mut queue = disk.open_queue(ram()).unwrap();
            let read = |sector, gpa, len| (sector, [range(gpa, len)]);
            let cases = [
                (read(last, 0, 512), BlockError::Range),
                (read(u64::MAX, 0, 512), BlockError::Range),
                (read(0, 0, 511), BlockError::Range),
                (read(0, RAM - 1, 512), BlockError::Memory),
                (read(0, u64::MAX - 100, 512), BlockError::Memory),
                (read(0, 0, u32::MAX), BlockError::Memory),
            ];
            for ((sector, to), error) in cases {
                assert_eq!(queue.submit(0, Op::Read { sector, to: &to }), Err(error));
            }
            let op = Op::WriteZeroes {
                sector: 1,
                count: u64::MAX,
                unmap: true,
                durable: false,
            };
            assert_eq!(queue.submit(0, op), Err(BlockError::Range));
            assert_eq!(
                run(
                    &mut *queue,
                    Op::Discard {
                        sector: 5,
                        count: 0
                    }
                ),
                Ok(0)
            );
        }
        options.read_only = true;
        let disk = RawDisk::open(&options).unwrap();
        assert!(disk.info().read_only && !disk.info().discard);
        let mut queue = disk.open_queue(ram()).unwrap();
        let from = [range(0, 512)];
        let write = Op::Write {
            sector: 0,
            from: &from,
            durable: false,
        };
        assert_eq!(queue.submit(0, write), Err(BlockError::ReadOnly));
        assert_eq!(run(&mut *queue, Op::Flush), Ok(0));
        assert_eq!(
            run(
                &mut *queue,
                Op::Read {
                    sector: 0,
                    to: &from
                }
            ),
            Ok(512)
        );
    }
}

#[test]
fn a_file_that_shrinks_under_us_gives_errors() {
    let dir = dir();
    let path = image(&dir, 1 << 20);
    for options in ways(&path) {
        let disk = RawDisk::open(&options).unwrap();
        let mut queue = disk.open_queue(ram()).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4096)
            .unwrap();
        let to = [range(0, 8192)];
        let read = run(&mut *queue, Op::Read { sector: 0, to: &to });
        assert!(matches!(read, Err(BlockError::Host(_))), "{read:?}");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
    }
}

#[test]
fn files_that_are_no_disks_are_refused_with_advice() {
    let dir = dir();
    let says = |options: &RawOptions, words: &[&str]| {
        let error = RawDisk::open(options).err().unwrap().to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    says(
        &RawOptions::new(dir.path().join("none")),
        &["no such file", "none"],
    );
    says(&RawOptions::new(dir.path()), &["directory"]);
    says(&RawOptions::new("/dev/null"), &["character device"]);
    let path = image(&dir, 0);
    says(&RawOptions::new(&path), &["empty", "truncate"]);
    File::create(&path).unwrap().set_len(1000).unwrap();
    says(&RawOptions::new(&path), &["1000", "multiple of 512"]);
    File::create(&path).unwrap().set_len(4096).unwrap();
    let serial = "x".repeat(21);
    says(
        &RawOptions {
            serial,
            ..RawOptions::new(&path)
        },
        &["20"],
    );
    says(
        &RawOptions {
            logical_block: 1024,
            ..RawOptions::new(&path)
        },
        &["1024"],
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // Root may open everything.
    if File::open(&path).is_err() {
        says(&RawOptions::new(&path), &["permission", "read-only"]);
    }
}

#[test]
fn an_image_is_written_by_one_only() {
    let dir = dir();
    let path = image(&dir, 4096);
    let writing = RawOptions::new(&path);
    let reading = RawOptions {
        read_only: true,
        ..writing.clone()
    };
    let writer = RawDisk::open(&writing).unwrap();
    for options in [&writing, &reading] {
        let error = RawDisk::open(options).err().unwrap();
        assert!(matches!(error, DiskError::InUse { .. }));
        assert!(error.to_string().contains("already in use"), "{error}");
    }
    drop(writer);
    let reader = RawDisk::open(&reading).unwrap();
    let _second = RawDisk::open(&reading).unwrap();
    assert!(RawDisk::open(&writing).is_err());
    // A queue keeps the file locked, whatever became of the disk.
    let queue = reader.open_queue(ram()).unwrap();
    drop((reader, _second));
    assert!(RawDisk::open(&writing).is_err());
    drop(queue);
    RawDisk::open(&writing).unwrap();
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, u64, u8, u64, bool),
    Read(u64, u64, u64),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

const SECTORS: u64 = 256;

fn action() -> impl Strategy<Value = Action> {
    let span = (0..SECTORS - 40, 1..40u64);
    prop_oneof![
        4 => (span.clone(), any::<u8>(), 0..64u64, any::<bool>())
            .prop_map(|((s, n), v, skew, d)| Action::Write(s, n, v, skew, d)),
        4 => (span.clone(), 0..64u64).prop_map(|((s, n), skew)| Action::Read(s, n, skew)),
        1 => (span.clone(), any::<bool>()).prop_map(|((s, n), u)| Action::Zero(s, n, u)),
        1 => span.prop_map(|(s, n)| Action::Discard(s, n)),
        1 => Just(Action::Flush),
    ]
}

/// Runs actions one by one against a disk and an array.
fn compare(options: &RawOptions, actions: &[Action]) {
    let disk = RawDisk::open(options).unwrap();
    let ram = ram();
    let mut queue = disk.open_queue(ram.clone()).unwrap();
    let mut model = vec![0u8; (SECTORS * SECTOR) as usize];
    for action in actions {
        let bytes = |s: u64, n: u64| (s * SECTOR) as usize..((s + n) * SECTOR) as usize;
        match *action {
            Action::Write(s, n, value, skew, durable) => {
                let gpa = 0x8000 + if skew < 32 { 0 } else { skew };
                let data: Vec<u8> = (0..n * SECTOR)
                    .map(|i| value.wrapping_add((i / 3) as u8))
                    .collect();
                ram.write(gpa, &data).unwrap();
                let from = [range(gpa, data.len() as u32)];
                let op = Op::Write {
                    sector: s,
                    from: &from,
                    durable,
                };
                assert_eq!(run(&mut *queue, op), Ok(n * SECTOR));
                model[bytes(s, n)].copy_from_slice(&data);
            }
            Action::Read(s, n, skew) => {
                let gpa = 0x40000 + if skew < 32 { 0 } else { skew };
                let to = [range(gpa, (n * SECTOR) as u32)];
                assert_eq!(
                    run(&mut *queue, Op::Read { sector: s, to: &to }),
                    Ok(n * SECTOR)
                );
                let mut data = vec![0; (n * SECTOR) as usize];
                ram.read(gpa, &mut data).unwrap();
                assert!(data == model[bytes(s, n)], "{action:?}");
            }
            Action::Zero(s, n, unmap) => {
                let op = Op::WriteZeroes {
                    sector: s,
                    count: n,
                    unmap,
                    durable: false,
                };
                assert_eq!(run(&mut *queue, op), Ok(0));
                model[bytes(s, n)].fill(0);
            }
            Action::Discard(s, n) => {
                assert_eq!(
                    run(
                        &mut *queue,
                        Op::Discard {
                            sector: s,
                            count: n
                        }
                    ),
                    Ok(0)
                );
                // A regular file's holes read as zeroes.
                model[bytes(s, n)].fill(0);
            }
            Action::Flush => assert_eq!(run(&mut *queue, Op::Flush), Ok(0)),
        }
    }
    drop(queue);
    let mut whole = vec![1; model.len()];
    disk.read_at(0, &mut whole).unwrap();
    assert!(whole == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_operations_matches_an_array(
        actions in proptest::collection::vec(action(), 1..40)
    ) {
        let dir = dir();
        let path = image(&dir, SECTORS * SECTOR);
        for options in ways(&path) {
            File::create(&path).unwrap().set_len(SECTORS * SECTOR).unwrap();
            compare(&options, &actions);
        }
    }
}

#[test]
fn a_disk_that_nobody_said_to_be_raw_stays_raw() {
    let dir = dir();
    let path = image(&dir, 1 << 20);
    let ram = ram();
    ram.write(0x1ff0, b"QFI\xfb").unwrap();
    ram.write(0x3000, &[7; 8192]).unwrap();
    let header = [range(0x1ff0, 2), range(0x1ff2, 4094), range(0x3000, 4096)];
    let other = [range(0x3000, 8192)];
    let write = |sector, from| Op::Write {
        sector,
        from,
        durable: false,
    };
    for (told, refused) in [(None, true), (Some(disk::Format::Raw), false)] {
        for aio in [Aio::Auto, Aio::Threads] {
            // As on a file system that does not remember.
            let _ = rustix::fs::removexattr(&path, disk::ATTRIBUTE);
            let mut options = disk::DiskOptions::new(&path);
            (options.format, options.aio) = (told, aio);
            let disk = disk::open(&options).unwrap();
            let mut queue = disk.open_queue(ram.clone()).unwrap();
            let expected = if refused {
                Err(BlockError::Guarded)
            } else {
                Ok(8192)
            };
            assert_eq!(run(&mut *queue, write(0, &header)), expected);
            // Elsewhere it is data like other data, and other data goes there.
            assert_eq!(run(&mut *queue, write(8, &header)), Ok(8192));
            assert_eq!(run(&mut *queue, write(0, &other)), Ok(8192));
            let mut back = [0; 9000];
            disk.read_at(0, &mut back).unwrap();
            assert!(back[..8192].iter().all(|b| *b == 7));
        }
    }
}
