//! The shared folder as a guest's driver meets it: FUSE by hand, with requests
//! that a friendly kernel would never send.

mod driver;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use driver::{Driver, EVENT_IDX};
use virtio::fs::{Fs, FsOptions};

const DATA: u64 = 0x20_0000;
const ANSWER: u64 = 0x40_0000;

const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const GETXATTR: u32 = 22;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASE: u32 = 18;
const CREATE: u32 = 35;

struct Guest {
    driver: Driver,
    /// `secret` is beside the shared folder `shared`.
    directory: tempfile::TempDir,
}

impl Guest {
    fn new(read_only: bool) -> Self {
        Self::with(FsOptions {
            read_only,
            write_back: false,
        })
    }

    fn with(options: FsOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        std::fs::create_dir_all(shared.join("sub")).unwrap();
        std::fs::write(directory.path().join("secret"), "secret").unwrap();
        std::fs::write(shared.join("file"), "contents").unwrap();
        symlink("../secret", shared.join("way-out")).unwrap();
        let mut driver = Driver::new(Fs::new(&shared, "tag", options).unwrap());
        driver.start(EVENT_IDX, 2, 64);
        let mut guest = Self { driver, directory };
        let init: Vec<u8> = [7u32, 31, 0, 0]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        assert!(guest.ask(INIT, 0, &init).is_ok());
        guest
    }

    fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    /// The answer's data, or the error.
    fn ask(&mut self, op: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut bytes = Vec::new();
        bytes.extend((40 + body.len() as u32).to_le_bytes());
        bytes.extend(op.to_le_bytes());
        bytes.extend(5u64.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        self.driver.ram.write(DATA, &bytes).unwrap();
        let length = self.driver.run(
            1,
            &[(DATA, bytes.len() as u32, false), (ANSWER, 0x10000, true)],
        );
        let answer = self.driver.bytes(ANSWER, length as usize);
        let word = |at: usize| i32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(8)), (length as i32, 5));
        match word(4) {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, node: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, node, &text(name))?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        let answer = self.ask(OPEN, node, &flags.to_le_bytes())?;
        Ok(u64::from_le_bytes(answer[..8].try_into().unwrap()))
    }
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn words(numbers: &[u32], more: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.extend(more);
    bytes
}

fn read(handle: u64) -> Vec<u8> {
    [
        &handle.to_le_bytes()[..],
        &[0; 8],
        &100u32.to_le_bytes(),
        &[0; 20],
    ]
    .concat()
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let mut guest = Guest::new(false);
    let sub = guest.lookup(1, "sub").unwrap();
    for name in ["..", ".", "", "sub/..", "../secret", "/etc/passwd"] {
        let name = text(name);
        for node in [1, sub] {
            assert!(guest.ask(LOOKUP, node, &name).is_err());
            assert!(guest.ask(UNLINK, node, &name).is_err());
            assert!(
                guest
                    .ask(CREATE, node, &words(&[2, 0o644, 0, 0], &name))
                    .is_err()
            );
            assert!(
                guest
                    .ask(SYMLINK, node, &[&name[..], b"x\0"].concat())
                    .is_err()
            );
            let rename = [&1u64.to_le_bytes()[..], &text("file"), &name].concat();
            assert!(guest.ask(RENAME, node, &rename).is_err());
            let link = [&1u64.to_le_bytes()[..], &name].concat();
            assert!(guest.ask(LINK, node, &link).is_err());
        }
    }
    // A name without an end, and nodes and files that are not.
    assert!(guest.ask(LOOKUP, 1, b"file").is_err());
    assert!(guest.lookup(77, "file").is_err());
    assert!(guest.ask(READ, 1, &read(99)).is_err());
    assert!(guest.directory.path().join("secret").exists());
}

#[test]
fn a_symbolic_link_is_only_text_here() {
    let mut guest = Guest::new(false);
    let link = guest.lookup(1, "way-out").unwrap();
    assert!(guest.open(link, 0).is_err());
    assert!(guest.ask(OPENDIR, link, &[0; 8]).is_err());
    assert!(guest.lookup(link, "x").is_err());
    let attribute = words(&[100, 0], b"user.x\0");
    assert!(guest.ask(GETXATTR, link, &attribute).is_err());
    // Neither its mode nor its length lead to what it names.
    let mut set = vec![0; 88];
    set[0] = 1 | 8;
    assert!(guest.ask(SETATTR, link, &set).is_err());
    let create = words(&[1 | 0o1000, 0o644, 0, 0], &text("way-out"));
    assert!(guest.ask(CREATE, 1, &create).is_err());
    let secret = guest.directory.path().join("secret");
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "secret");
}

#[test]
fn nothing_privileged_or_special_is_made() {
    let mut guest = Guest::new(false);
    for kind in [0o020_666, 0o060_666, 0o010_666, 0o140_666] {
        let node = words(&[kind, 0x103, 0, 0], &text("special"));
        assert_eq!(guest.ask(MKNOD, 1, &node), Err(1));
    }
    guest
        .ask(CREATE, 1, &words(&[2, 0o106_755, 0, 0], &text("tool")))
        .unwrap();
    let mode = guest
        .shared()
        .join("tool")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o6000, 0);
    let fifo = guest.shared().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let fifo = guest.lookup(1, "fifo").unwrap();
    // It would hang who opens it.
    assert!(guest.open(fifo, 0).is_err());
}

#[test]
fn a_read_only_folder_stays_as_it_is() {
    let mut guest = Guest::new(true);
    let file = guest.lookup(1, "file").unwrap();
    let handle = guest.open(file, 0).unwrap();
    assert_eq!(guest.ask(READ, file, &read(handle)).unwrap(), b"contents");
    for flags in [1, 2, 0o1000] {
        assert_eq!(guest.open(file, flags), Err(30));
    }
    assert_eq!(guest.ask(UNLINK, 1, &text("file")), Err(30));
    assert_eq!(guest.ask(SETATTR, file, &[0; 88]), Err(30));
    assert_eq!(guest.ask(WRITE, file, &[0; 41]), Err(30));
    assert_eq!(
        std::fs::read_to_string(guest.shared().join("file")).unwrap(),
        "contents"
    );
}

#[test]
fn open_files_survive_save_and_restore() {
    let mut guest = Guest::new(false);
    let sub = guest.lookup(1, "sub").unwrap();
    let file = guest.lookup(1, "file").unwrap();
    let handle = guest.open(file, 2).unwrap();
    let state = guest.driver.function.save();
    guest.driver.function.restore(&state).unwrap();
    guest.driver.function.resume();
    assert_eq!(guest.driver.function.save(), state);
    assert_eq!(guest.ask(READ, file, &read(handle)).unwrap(), b"contents");
    assert_eq!(guest.lookup(1, "sub").unwrap(), sub);
    // What is gone meanwhile is stale, and links that came do not help.
    std::fs::remove_file(guest.shared().join("file")).unwrap();
    symlink("../secret", guest.shared().join("file")).unwrap();
    guest.driver.function.restore(&state).unwrap();
    guest.driver.function.resume();
    assert!(guest.ask(READ, file, &read(handle)).is_err());
}

#[test]
fn what_is_open_is_not_more_after_a_restore() {
    let mut guest = Guest::new(false);
    let file = guest.lookup(1, "file").unwrap();
    let handle = guest.open(file, 2).unwrap();
    let gone = guest.lookup(1, "sub").unwrap();
    std::fs::remove_dir(guest.shared().join("sub")).unwrap();
    std::fs::create_dir(guest.shared().join("sub (deleted)")).unwrap();
    let state = guest.driver.function.save();
    // The share of the next machine is read-only.
    let mut next = Guest::new(true);
    let rings = guest.driver.bytes(driver::RINGS, 0x40000);
    next.driver.ram.write(driver::RINGS, &rings).unwrap();
    next.driver.queues.clone_from(&guest.driver.queues);
    next.driver.function.restore(&state).unwrap();
    next.driver.function.resume();
    let write = [
        &handle.to_le_bytes()[..],
        &[0; 8],
        &4u32.to_le_bytes(),
        &[0; 20],
        b"evil",
    ];
    assert!(next.ask(WRITE, file, &write.concat()).is_err());
    assert!(next.ask(READ, file, &read(handle)).is_err());
    // A name that looks like one that was removed is not taken for it.
    assert!(next.lookup(gone, "x").is_err());
    assert!(next.ask(OPENDIR, gone, &[0; 8]).is_err());
    let text = std::fs::read_to_string(next.shared().join("file")).unwrap();
    assert_eq!(text, "contents");
}

#[test]
fn a_program_with_another_identity_is_not_written() {
    let mut guest = Guest::new(false);
    let path = guest.shared().join("file");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    let file = guest.lookup(1, "file").unwrap();
    assert_eq!(guest.open(file, 1), Err(1));
    assert_eq!(guest.open(file, 0o1000), Err(1));
    let mut truncate = vec![0; 88];
    truncate[0] = 8;
    assert_eq!(guest.ask(SETATTR, file, &truncate), Err(1));
    let handle = guest.open(file, 0).unwrap();
    assert_eq!(guest.ask(READ, file, &read(handle)).unwrap(), b"contents");
}

/// The host gives a file that is open another identity: who writes it in the
/// guest without being root there takes that away.
#[test]
fn a_write_takes_another_identity_away() {
    let mut guest = Guest::new(false);
    let path = guest.shared().join("file");
    let mode = || path.metadata().unwrap().permissions().mode() & 0o7777;
    let file = guest.lookup(1, "file").unwrap();
    let handle = guest.open(file, 1).unwrap();
    for (before, after) in [(0o6755, 0o755), (0o2744, 0o2744), (0o1644, 0o1644)] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(before)).unwrap();
        let write = [
            &handle.to_le_bytes()[..],
            &[0; 8],
            &4u32.to_le_bytes(),
            &4u32.to_le_bytes(),
            &[0; 16],
            b"text",
        ];
        guest.ask(WRITE, file, &write.concat()).unwrap();
        assert_eq!(mode(), after, "{before:o}");
    }
    // So does who says that it belongs to root, as it does.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    let mut set = vec![0; 88];
    set[0] = 2;
    guest.ask(SETATTR, file, &set).unwrap();
    assert_eq!(mode(), 0o755);
}

/// The host (or another guest) exchanges a directory and a link out of the
/// folder all the time; what is read is never what is outside.
#[test]
fn a_race_of_renames_leads_nowhere() {
    let mut guest = Guest::new(false);
    let shared = guest.shared();
    let outside = guest.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "secret").unwrap();
    std::fs::write(shared.join("sub/file"), "contents").unwrap();
    symlink("../outside", shared.join("link")).unwrap();
    let end = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(ordering) {
                let (sub, link) = (shared.join("sub"), shared.join("link"));
                std::fs::rename(&sub, shared.join("kept")).unwrap();
                std::fs::rename(&link, &sub).unwrap();
                std::fs::rename(&sub, &link).unwrap();
                std::fs::rename(shared.join("kept"), &sub).unwrap();
            }
        });
        let mut seen = 0;
        for _ in 0..3000 {
            let Ok(sub) = guest.lookup(1, "sub") else {
                continue;
            };
            let create = words(&[2, 0o644, 0, 0], &text("new"));
            // Where it is a link there is no name below it.
            let _ = guest.ask(CREATE, sub, &create);
            let Ok(file) = guest.lookup(sub, "file") else {
                continue;
            };
            let handle = guest.open(file, 0).unwrap();
            assert_eq!(guest.ask(READ, file, &read(handle)).unwrap(), b"contents");
            let release = handle.to_le_bytes();
            guest.ask(RELEASE, file, &release).unwrap();
            seen += 1;
        }
        end.store(true, ordering);
        assert!(seen > 0);
    });
    let names = std::fs::read_dir(&outside).unwrap();
    assert_eq!(names.count(), 1, "something was made outside");
}

#[test]
fn names_and_files_without_end_are_bounded() {
    use rustix::process::{Resource, getrlimit};
    let mut guest = Guest::new(false);
    let file = guest.lookup(1, "file").unwrap();
    let limit = getrlimit(Resource::Nofile).current.unwrap();
    let most = 16_384.min(limit / 8) as usize;
    let refused = (0..=most).find_map(|_| guest.open(file, 0).err());
    assert_eq!(refused, Some(23), "ENFILE");
    // Others are served on.
    assert!(guest.lookup(1, "sub").is_ok());
}

/// A guest that writes later reads what is around what it wrote, by files that
/// it opened for writing only.
#[test]
fn a_guest_that_writes_later_can_read_what_it_writes() {
    let mut guest = Guest::with(FsOptions {
        read_only: false,
        write_back: true,
    });
    let init = words(&[7, 31, 0, u32::MAX], &[]);
    let answer = guest.ask(INIT, 0, &init).unwrap();
    let flags = u32::from_le_bytes(answer[12..16].try_into().unwrap());
    assert_ne!(flags & 1 << 16, 0, "{flags:#x}");
    let file = guest.lookup(1, "file").unwrap();
    let handle = guest.open(file, 1).unwrap();
    assert_eq!(guest.ask(READ, file, &read(handle)).unwrap(), b"contents");
    let create = words(&[1 | 0o100, 0o200, 0, 0], &text("new"));
    let made = guest.ask(CREATE, 1, &create).unwrap();
    let handle = u64::from_le_bytes(made[128..136].try_into().unwrap());
    assert_eq!(guest.ask(READ, file, &read(handle)).unwrap(), b"");
    // Who does not ask for it is not told of it.
    let mut other = Guest::new(false);
    let answer = other.ask(INIT, 0, &init).unwrap();
    let flags = u32::from_le_bytes(answer[12..16].try_into().unwrap());
    assert_eq!(flags & 1 << 16, 0);
}
