//! The library of images as its users see it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use disk::{Format, Image, ImageOptions};
use images::{Digest, Health, ImagesError, ImportOptions, Library, Reference};

const MIB: u64 = 1 << 20;

struct Home {
    directory: tempfile::TempDir,
    library: Library,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let library = Library::open(&directory.path().join("images")).unwrap();
        Self { directory, library }
    }

    fn raw(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.directory.path().join(name);
        let file = File::create(&path).unwrap();
        file.set_len(9 * MIB + 512).unwrap();
        for at in [0, 3 * MIB + 4096, 9 * MIB] {
            file.write_all_at(&[byte; 512], at).unwrap();
        }
        path
    }

    fn import(&self, path: &Path) -> Result<Digest, ImagesError> {
        self.library
            .import(path, &ImportOptions::default(), &mut |_, _| {})
    }

    fn resolve(&self, text: &str) -> Result<Digest, ImagesError> {
        self.library.resolve(&text.parse::<Reference>()?)
    }
}

#[test]
fn the_same_contents_are_one_image_whatever_their_format() {
    let home = Home::new();
    let raw = home.raw("disk.img", 5);
    let digest = home.import(&raw).unwrap();
    let qcow2 = home.directory.path().join("disk.qcow2");
    let options = disk::manage::CreateOptions::new(Format::Qcow2, 0);
    disk::manage::convert(&raw, None, &qcow2, &options, &mut |_, _| {}).unwrap();
    assert_eq!(home.import(&qcow2).unwrap(), digest);
    let (images, broken) = home.library.list().unwrap();
    assert!(broken.is_empty());
    let [image] = &images[..] else {
        panic!("{images:?}")
    };
    assert_eq!(
        (image.manifest.size, image.manifest.source.as_str()),
        (9 * MIB + 512, "disk.img")
    );
    assert!(
        image.allocated < MIB,
        "holes were filled: {}",
        image.allocated
    );
    assert_eq!(fs::read(&image.file).unwrap(), fs::read(&raw).unwrap());
    let mode = fs::metadata(&image.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o222, 0, "an image is never written");
    assert_ne!(home.import(&home.raw("other.img", 6)).unwrap(), digest);
}

#[test]
fn a_damaged_image_is_refused_and_an_import_cures_it() {
    let home = Home::new();
    let raw = home.raw("disk.img", 5);
    let digest = home.import(&raw).unwrap();
    let file = home.library.use_image(&digest).unwrap();
    let verify = |whole| home.library.verify(&digest, whole, &mut |_, _| {});
    assert_eq!(verify(false).unwrap(), Health::Unchanged);
    assert_eq!(verify(true).unwrap(), Health::Read);
    let damage = |at| {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let opened = File::options().write(true).open(&file).unwrap();
        opened.write_all_at(&[9], at).unwrap();
    };
    // In data, in a hole, at the end.
    for at in [3 * MIB + 4100, 6 * MIB, 9 * MIB + 511] {
        damage(at);
        let error = home.library.use_image(&digest).unwrap_err();
        assert!(matches!(error, ImagesError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("is not used"), "{error}");
        assert_eq!(home.import(&raw).unwrap(), digest);
        assert_eq!(verify(false).unwrap(), Health::Unchanged);
    }
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(MIB)
        .unwrap();
    assert!(
        verify(false)
            .unwrap_err()
            .to_string()
            .contains("instead of")
    );
    fs::remove_file(&file).unwrap();
    assert!(matches!(verify(false), Err(ImagesError::Corrupt { .. })));
    home.import(&raw).unwrap();
    // A copy of the library elsewhere is read once.
    let elsewhere = home.directory.path().join("elsewhere");
    let mut copy = std::process::Command::new("cp");
    copy.arg("-r").arg(home.library.directory()).arg(&elsewhere);
    assert!(copy.status().unwrap().success());
    let other = Library::open(&elsewhere).unwrap();
    assert_eq!(
        other.verify(&digest, false, &mut |_, _| {}).unwrap(),
        Health::Read
    );
    assert_eq!(
        other.verify(&digest, false, &mut |_, _| {}).unwrap(),
        Health::Unchanged
    );
}

#[test]
fn what_leads_to_other_files_is_not_imported() {
    let home = Home::new();
    let overlay = home.directory.path().join("overlay.qcow2");
    let options = disk::manage::CreateOptions::overlay(home.raw("base.img", 1), Some(Format::Raw));
    disk::manage::create(&overlay, &options).unwrap();
    let error = home.import(&overlay).unwrap_err().to_string();
    assert!(
        error.contains("builds on another file") && error.contains("base.img"),
        "{error}"
    );
    assert!(home.library.digests().unwrap().is_empty());
    // A raw disk of ours that has come to look like one is no image either.
    let raw = home.raw("raw.img", 2);
    disk::manage::remember_format(&File::open(&raw).unwrap(), Format::Raw);
    let bytes = fs::read(&overlay).unwrap();
    File::options()
        .write(true)
        .open(&raw)
        .unwrap()
        .write_all_at(&bytes[..4096], 0)
        .unwrap();
    let error = home.import(&raw).unwrap_err().to_string();
    assert!(
        error.contains("was a raw disk when it was first used"),
        "{error}"
    );
    let too_large = ImportOptions {
        most: Some(MIB),
        ..ImportOptions::default()
    };
    let large = home.raw("large.img", 3);
    let error = home
        .library
        .import(&large, &too_large, &mut |_, _| {})
        .unwrap_err();
    assert!(error.to_string().contains("at most 1048576"), "{error}");
    let none = home.directory.path().join("none.img");
    File::create(&none).unwrap();
    assert!(home.import(&none).is_err());
    let left = fs::read_dir(home.library.directory().join("by-digest"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "something is left of what failed");
}

#[test]
fn names_have_versions_that_are_promoted_and_rolled_back() {
    let home = Home::new();
    let digests: Vec<Digest> = (1..=3)
        .map(|n| home.import(&home.raw(&format!("{n}.img"), n)).unwrap())
        .collect();
    let library = &home.library;
    assert_eq!(library.tag(digests[0], "debian", false).unwrap(), 1);
    assert_eq!(library.tag(digests[1], "debian", false).unwrap(), 2);
    assert_eq!(library.tag(digests[1], "debian", false).unwrap(), 2);
    assert_eq!(home.resolve("debian").unwrap(), digests[0]);
    assert_eq!(home.resolve("debian@2").unwrap(), digests[1]);
    library.promote("debian", 2).unwrap();
    assert_eq!(library.tag(digests[2], "debian", true).unwrap(), 3);
    assert_eq!(home.resolve("debian").unwrap(), digests[2]);
    library
        .alias("stable", &"debian@2".parse().unwrap())
        .unwrap();
    library.alias("latest", &"debian".parse().unwrap()).unwrap();
    assert_eq!(home.resolve("stable").unwrap(), digests[1]);
    assert_eq!(library.roll_back("debian").unwrap(), 2);
    assert_eq!(library.roll_back("debian").unwrap(), 1);
    assert_eq!(home.resolve("latest").unwrap(), digests[0]);
    assert!(library.roll_back("debian").is_err());
    for (refused, why) in [
        (library.promote("debian", 9), "debian@9"),
        (library.promote("stable", 1), "stable@1"),
        (
            library.alias("debian", &"stable".parse().unwrap()),
            "stable is an alias",
        ),
        (
            library.alias("debian", &"debian@2".parse().unwrap()),
            "versions of its own",
        ),
        (library.untag("debian", Some(1)), "is the current version"),
        (
            library.tag(digests[0], "stable", true).map(drop),
            "an alias of debian@2",
        ),
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    }
    library.untag("debian", Some(3)).unwrap();
    assert_eq!(
        library.tag(digests[2], "debian", false).unwrap(),
        4,
        "a number came again"
    );
    let digits = &digests[0].hex()[..8];
    assert_eq!(home.resolve(digits).unwrap(), digests[0]);
    assert_eq!(
        home.resolve(&format!("blake3:{digits}")).unwrap(),
        digests[0]
    );
    assert!(home.resolve("nothing").is_err());
    for bad in ["../x", "a@b", "", "a@1@2", "blake3:zz"] {
        assert!(bad.parse::<Reference>().is_err(), "{bad}");
    }
    let (images, _) = library.list().unwrap();
    let names: BTreeMap<Digest, Vec<String>> = images
        .into_iter()
        .map(|i| (i.manifest.digest, i.names))
        .collect();
    assert_eq!(names[&digests[0]], ["debian@1", "latest"]);
    assert_eq!(names[&digests[1]], ["debian@2", "stable"]);
}

#[test]
fn pruning_keeps_what_anybody_needs() {
    let home = Home::new();
    let digests: Vec<Digest> = (1..=5)
        .map(|n| home.import(&home.raw(&format!("{n}.img"), n)).unwrap())
        .collect();
    let [named, old, referred, volume, running] = digests[..] else {
        panic!()
    };
    let loose = home.import(&home.raw("loose.img", 77)).unwrap();
    home.library.tag(old, "x", true).unwrap();
    home.library.tag(named, "x", true).unwrap();
    let keep = BTreeSet::from([referred]);
    let used = BTreeSet::from([home.library.use_image(&volume).unwrap()]);
    let file = home.library.use_image(&running).unwrap();
    let machine = Image::open(&ImageOptions::read(&file, Some(Format::Raw))).unwrap();
    let prune = |old: bool, dry: bool| -> Vec<Digest> {
        let pruned = home.library.prune(&keep, &used, old, dry).unwrap();
        assert!(pruned.iter().all(|p| p.allocated > 0));
        pruned.into_iter().map(|p| p.digest).collect()
    };
    assert_eq!(prune(false, true), [loose]);
    assert_eq!(
        home.library.digests().unwrap().len(),
        6,
        "a dry run removed something"
    );
    assert_eq!(prune(false, false), [loose]);
    assert_eq!(prune(true, false), [old]);
    drop(machine);
    assert_eq!(prune(false, false), [running]);
    let by_volume = home.library.remove(&volume, &used).unwrap_err().to_string();
    assert!(by_volume.contains("by volumes or snapshots"), "{by_volume}");
    let by_name = home.library.remove(&named, &used).unwrap_err().to_string();
    assert!(by_name.contains("by the names x@2"), "{by_name}");
    home.library.remove(&referred, &used).unwrap();
    home.library.remove(&referred, &used).unwrap();
    assert_eq!(home.library.digests().unwrap().len(), 2);
}
