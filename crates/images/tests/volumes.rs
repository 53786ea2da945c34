//! Volumes and snapshots as their users see them: by what their disks show.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk::{Format, Image, ImageOptions};
use images::{ImagesError, Origin, Volume, Volumes};

const MIB: u64 = 1 << 20;

struct Home {
    directory: tempfile::TempDir,
    volumes: Volumes,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(&directory.path().join("volumes")).unwrap();
        let base = fs::File::create(directory.path().join("base.img")).unwrap();
        base.set_len(16 * MIB).unwrap();
        for mib in 0..16 {
            base.write_all_at(&[mib as u8 + 1; 4096], mib * MIB)
                .unwrap();
        }
        Self { directory, volumes }
    }

    fn base(&self) -> PathBuf {
        self.directory
            .path()
            .canonicalize()
            .unwrap()
            .join("base.img")
    }

    fn image(&self) -> Origin {
        Origin::Image {
            file: self.base(),
            format: Format::Raw,
        }
    }
}

fn write(volume: &Volume, mib: u64, byte: u8) {
    let image = Image::open(&ImageOptions::write(&volume.file, Some(volume.format))).unwrap();
    image.write(&[byte; 4096], mib * MIB).unwrap();
    image.close().unwrap();
}

fn first_of(file: &Path, format: Format, mib: u64) -> u8 {
    let image = Image::open(&ImageOptions::read(file, Some(format))).unwrap();
    let mut byte = [0];
    image.read(&mut byte, mib * MIB).unwrap();
    byte[0]
}

fn shows(volume: &Volume, mib: u64) -> u8 {
    first_of(&volume.file, volume.format, mib)
}

#[test]
fn a_volume_on_an_image_takes_no_space_and_leaves_the_image_alone() {
    let home = Home::new();
    let before = fs::read(home.base()).unwrap();
    let volume = home
        .volumes
        .create("vol-1", &home.image(), Some(64 * MIB))
        .unwrap();
    assert!(volume.allocated < MIB, "{volume:?}");
    assert_eq!((volume.size, volume.format), (64 * MIB, Format::Qcow2));
    assert_eq!(volume.below, [home.base()]);
    write(&volume, 3, 99);
    assert_eq!(
        [shows(&volume, 3), shows(&volume, 4), shows(&volume, 40)],
        [99, 5, 0]
    );
    assert_eq!(fs::read(home.base()).unwrap(), before, "the image changed");
    // Again is the same one; from something else it is refused.
    let again = home
        .volumes
        .create("vol-1", &home.image(), Some(64 * MIB))
        .unwrap();
    assert_eq!(shows(&again, 3), 99);
    let other = home.volumes.create("vol-1", &Origin::Empty, Some(MIB));
    assert!(
        matches!(other, Err(ImagesError::Exists { .. })),
        "{other:?}"
    );
    let small = home
        .volumes
        .create("vol-2", &home.image(), Some(MIB))
        .unwrap_err();
    assert!(
        small
            .to_string()
            .contains("smaller than what it is made from"),
        "{small}"
    );
    assert!(home.volumes.get("vol-2").unwrap().is_none());
    assert_eq!(
        home.volumes.images_in_use().unwrap(),
        BTreeSet::from([home.base()])
    );
}

#[test]
fn an_empty_volume_grows_and_goes() {
    let home = Home::new();
    let volume = home
        .volumes
        .create("v", &Origin::Empty, Some(8 * MIB))
        .unwrap();
    assert_eq!((volume.format, volume.size), (Format::Raw, 8 * MIB));
    write(&volume, 7, 1);
    let grown = home.volumes.grow("v", 80 * MIB).unwrap();
    assert_eq!(
        (grown.size, shows(&grown, 7), shows(&grown, 70)),
        (80 * MIB, 1, 0)
    );
    assert_eq!(home.volumes.grow("v", 80 * MIB).unwrap(), grown);
    let smaller = home.volumes.grow("v", MIB).unwrap_err().to_string();
    assert!(smaller.contains("do not become smaller"), "{smaller}");
    // In use, it neither grows nor goes.
    let used = Image::open(&ImageOptions::write(&grown.file, Some(grown.format))).unwrap();
    let refused = [
        home.volumes.grow("v", 90 * MIB).map(drop),
        home.volumes.delete("v"),
        home.volumes.snapshot("v", "s").map(drop),
    ];
    for result in refused {
        assert!(
            matches!(result, Err(ImagesError::InUse { .. })),
            "{result:?}"
        );
    }
    drop(used);
    home.volumes.delete("v").unwrap();
    home.volumes.delete("v").unwrap();
    assert!(home.volumes.get("v").unwrap().is_none());
    assert!(home.volumes.create("v", &Origin::Empty, None).is_err());
    for bad in ["", "..", "a/b", "snapshots", ".x"] {
        let made = home.volumes.create(bad, &Origin::Empty, Some(MIB));
        assert!(matches!(made, Err(ImagesError::BadName(_))), "{bad:?}");
    }
}

#[test]
fn a_snapshot_is_the_volume_as_it_was_and_needs_it_no_more() {
    let home = Home::new();
    for (id, origin) in [("layered", home.image()), ("plain", Origin::Empty)] {
        let volume = home.volumes.create(id, &origin, Some(16 * MIB)).unwrap();
        write(&volume, 2, 50);
        let name = format!("snap-{id}");
        let snapshot = home.volumes.snapshot(id, &name).unwrap();
        assert_eq!(snapshot.below, volume.below);
        write(&volume, 2, 51);
        assert_eq!(home.volumes.snapshot(id, &name).unwrap(), snapshot);
        assert_eq!(first_of(&snapshot.file, snapshot.format, 2), 50);
        // Back, in no time, and only once for the same token.
        let back = home.volumes.rollback(id, &name, "first").unwrap();
        assert_eq!(shows(&back, 2), 50);
        write(&back, 2, 52);
        let same = home.volumes.rollback(id, &name, "first").unwrap();
        assert_eq!(shows(&same, 2), 52);
        let again = home.volumes.rollback(id, &name, "second").unwrap();
        assert_eq!(shows(&again, 2), 50);
        let files = fs::read_dir(back.file.parent().unwrap()).unwrap().count();
        assert_eq!(files, 2, "an old disk is left");
        // A snapshot that is deleted stays for what builds on it only.
        home.volumes.delete_snapshot(&name).unwrap();
        home.volumes.delete_snapshot(&name).unwrap();
        assert!(home.volumes.get_snapshot(&name).unwrap().is_none());
        assert_eq!(shows(&again, 2), 50);
        assert!(snapshot.file.exists());
        home.volumes.delete(id).unwrap();
        assert!(!snapshot.file.exists());
    }
    let left = fs::read_dir(home.directory.path().join("volumes/snapshots")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn copies_of_a_snapshot_are_machines_of_their_own() {
    let home = Home::new();
    let volume = home.volumes.create("v", &home.image(), None).unwrap();
    write(&volume, 1, 60);
    home.volumes.snapshot("v", "s").unwrap();
    home.volumes.delete("v").unwrap();
    let origin = Origin::Snapshot("s".into());
    let copies: Vec<Volume> = (0..3)
        .map(|n| {
            home.volumes
                .create(&format!("c{n}"), &origin, None)
                .unwrap()
        })
        .collect();
    for (n, copy) in (70..).zip(&copies) {
        write(copy, 5, n);
    }
    for (n, copy) in (70..).zip(&copies) {
        assert_eq!([shows(copy, 1), shows(copy, 5), shows(copy, 6)], [60, n, 7]);
        assert!(copy.allocated < MIB);
    }
    let missing = home
        .volumes
        .create("x", &Origin::Snapshot("no".into()), None);
    assert!(
        matches!(missing, Err(ImagesError::Missing { .. })),
        "{missing:?}"
    );
}

#[test]
fn chains_do_not_grow_without_end() {
    let home = Home::new();
    let mut volume = home.volumes.create("v0", &home.image(), None).unwrap();
    for n in 1..30u64 {
        write(&volume, n % 16, 100 + n as u8);
        let (old, snapshot) = (format!("v{}", n - 1), format!("s{n}"));
        home.volumes.snapshot(&old, &snapshot).unwrap();
        home.volumes.delete(&old).unwrap();
        let origin = Origin::Snapshot(snapshot);
        volume = home
            .volumes
            .create(&format!("v{n}"), &origin, None)
            .unwrap();
        assert!(volume.below.len() <= 10, "{} files", volume.below.len());
        assert_eq!(volume.below.last(), Some(&home.base()));
    }
    let mut shown = [0; 16];
    for mib in 0..16 {
        shown[mib as usize] = shows(&volume, mib);
    }
    let wanted: Vec<u8> = (0..16)
        .map(|mib| 100 + (14..30).find(|n| n % 16 == mib).unwrap() as u8)
        .collect();
    assert_eq!(shown.as_slice(), wanted);
    for n in 1..30 {
        home.volumes.delete_snapshot(&format!("s{n}")).unwrap();
    }
    assert_eq!(shows(&volume, 13), 100 + 29);
    let kept = fs::read_dir(home.directory.path().join("volumes/snapshots"))
        .unwrap()
        .count();
    assert_eq!(kept, volume.below.len() - 1);
}

/// What a crash can leave at any step: every prefix of the steps of each
/// operation is made by hand, then the operation is repeated.
#[test]
fn operations_are_repeated_after_a_crash_at_any_step() {
    let home = Home::new();
    let root = home.directory.path().join("volumes");
    // Create: a hidden directory in any state.
    for files in [&[][..], &["disk-1.qcow2"], &["disk-1.qcow2", "volume.json"]] {
        let left = root.join(".new-1-7");
        fs::create_dir(&left).unwrap();
        for file in files {
            fs::write(left.join(file), "half").unwrap();
        }
        let volumes = Volumes::open(&root).unwrap();
        assert!(!left.exists());
        volumes.create("v", &home.image(), None).unwrap();
        volumes.delete("v").unwrap();
    }
    let volume = home.volumes.create("v", &home.image(), None).unwrap();
    write(&volume, 0, 80);
    home.volumes.snapshot("v", "s").unwrap();
    write(&volume, 0, 81);
    // Rollback: the new disk is there, whole or half, and not yet named.
    let next = volume.file.with_file_name("disk-2.qcow2");
    fs::write(&next, "half").unwrap();
    assert_eq!(shows(&home.volumes.get("v").unwrap().unwrap(), 0), 81);
    let back = home.volumes.rollback("v", "s", "t").unwrap();
    assert_eq!((shows(&back, 0), back.file.clone()), (80, next));
    // It is named, and the old disk not yet removed.
    fs::write(&volume.file, "old").unwrap();
    home.volumes.rollback("v", "s", "t").unwrap();
    assert!(!volume.file.exists());
    // Deletion of a snapshot: marked, not yet removed; of a volume: renamed.
    let snapshots = root.join("snapshots");
    fs::rename(
        snapshots.join("s/snapshot.json"),
        snapshots.join("s/kept.json"),
    )
    .unwrap();
    home.volumes.delete_snapshot("s").unwrap();
    assert_eq!(shows(&back, 0), 80);
    fs::rename(root.join("v"), root.join(".gone-v")).unwrap();
    home.volumes.delete("v").unwrap();
    let volumes = Volumes::open(&root).unwrap();
    assert!(!root.join(".gone-v").exists());
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0, "{volumes:?}");
}

#[test]
fn a_capture_that_is_given_up_leaves_nothing() {
    let home = Home::new();
    home.volumes.create("v", &home.image(), None).unwrap();
    let capture = home.volumes.begin_capture("v", "s").unwrap();
    fs::write(capture.file(), "begun").unwrap();
    drop(capture);
    let capture = home.volumes.begin_capture("v", "s").unwrap();
    assert!(
        home.volumes.finish_capture(capture, Format::Raw).is_err(),
        "no disk was made"
    );
    assert!(home.volumes.get_snapshot("s").unwrap().is_none());
    let left = fs::read_dir(home.directory.path().join("volumes/snapshots")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn later_and_odd_records_are_refused_by_name() {
    let home = Home::new();
    let volume = home.volumes.create("v", &Origin::Empty, Some(MIB)).unwrap();
    let record = volume.file.with_file_name("volume.json");
    let text = fs::read_to_string(&record).unwrap();
    let reason = |new: String| {
        fs::write(&record, new).unwrap();
        home.volumes.get("v").unwrap_err().to_string()
    };
    let later = reason(text.replace("\"version\": 1", "\"version\": 2"));
    assert!(
        later.contains("has version 2") && later.contains("newer Holm"),
        "{later}"
    );
    let path = reason(text.replace("disk-1.raw", "../../base.img"));
    assert!(path.contains("no file of the volume's directory"), "{path}");
    assert!(reason(text.replace("holm-volume", "other")).contains("no holm-volume file"));
    assert!(reason("{".into()).contains("no such file"));
    let (found, broken) = home.volumes.list().unwrap();
    assert!(found.is_empty() && broken.contains_key("v"));
}
