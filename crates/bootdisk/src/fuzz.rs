//! Entry points for fuzzers, one for each parser of what a disk holds: plain
//! functions of bytes, that must neither panic nor take long. `tests/fuzz.rs`
//! runs them in CI over a kept corpus and mutations of it; a coverage-guided
//! fuzzer calls the same functions.

use std::rc::Rc;

use crate::filesystem::{FileSystem, FsError, Kind, Sink};
use crate::grub::{self, Place, World};
use crate::read::{Budget, Cached, ReadAt};
use crate::survey::Survey;
use crate::{bls, partition, syslinux, uki, version};

/// An entry point.
pub type Target = fn(&[u8]);

/// Name and function of every entry point that takes a text or a file.
pub const ALL: [(&str, Target); 5] = [
    ("partition", partition_table),
    ("grub", grub_script),
    ("bls", bls_entry),
    ("syslinux", syslinux_config),
    ("uki", unified_image),
];

/// What a hostile disk may read here; its real budget takes longer.
const BUDGET: Budget = Budget {
    calls: 200_000,
    bytes: 256 << 20,
};

/// GPT and MBR.
pub fn partition_table(data: &[u8]) {
    let size = data.len() as u64;
    let disk: Rc<dyn ReadAt> = Rc::new(Cached::new(data.to_vec(), BUDGET));
    for p in partition::read(&disk).partitions {
        assert!(p.start <= size && p.size <= size - p.start);
    }
}

/// A `grub.cfg`, which finds itself again in every place.
pub fn grub_script(data: &[u8]) {
    let world = One(OneFile(data.to_vec()));
    let place = Place {
        device: "hd0".into(),
        path: "/grub.cfg".into(),
    };
    if let Ok(menu) = grub::evaluate(&world, &place) {
        let all = menu.flat().len();
        assert!(menu.default_index().is_none_or(|index| index < all));
    }
}

/// A Boot Loader Specification entry, its order and `loader.conf`.
pub fn bls_entry(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (name, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let (a, b) = (bls::parse(name, rest), bls::parse(rest, name));
    assert_eq!(
        bls::order(&a.rank(), &b.rank()),
        bls::order(&b.rank(), &a.rank()).reverse()
    );
    if let Some(pattern) = bls::default_pattern(&text) {
        version::matches(&pattern, &a.name);
    }
}

/// An `extlinux.conf`, which includes itself wherever it includes.
pub fn syslinux_config(data: &[u8]) {
    let config = syslinux::read(&OneFile(data.to_vec()), "/extlinux.conf");
    if let Some(config) = config {
        let all = config.entries.len();
        assert!(config.default_index().is_none_or(|index| index < all));
    }
}

/// A unified kernel image.
pub fn unified_image(data: &[u8]) {
    let size = data.len() as u64;
    if let Some(found) = uki::sections(data, size) {
        for s in [found.linux, found.initrd, found.cmdline, found.osrel] {
            assert!(s.is_none_or(|s| s.offset + s.size <= size));
        }
    }
    uki::text(data);
    uki::os_release(&String::from_utf8_lossy(data), "ID");
}

/// A whole disk: survey, and every entry loaded. The readers of file systems
/// that are others' crates may panic here; in Holm they do it in a process of
/// their own.
pub fn disk(data: impl ReadAt + 'static) {
    let survey = Survey::new(Rc::new(Cached::new(data, BUDGET)));
    for index in 0..survey.found().entries.len().min(4) {
        // A damaged disk may refuse.
        let _ = survey.load(index, 8 << 20, &mut |_, _| Ok(()));
    }
}

/// A file system where every path is the same file.
struct OneFile(Vec<u8>);

impl FileSystem for OneFile {
    fn kind(&self) -> &'static str {
        "one file"
    }

    fn uuid(&self) -> String {
        "1".into()
    }

    fn label(&self) -> String {
        "one".into()
    }

    fn stat(&self, path: &str) -> Result<Kind, FsError> {
        Ok(match path.ends_with('/') {
            true => Kind::Directory,
            false => Kind::File(self.0.len() as u64),
        })
    }

    fn names(&self, _: &str) -> Result<Vec<String>, FsError> {
        Ok(vec!["a.conf".into(), "b+1-2.conf".into()])
    }

    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError> {
        if self.0.len() as u64 > limit {
            let path = path.to_owned();
            return Err(FsError::TooLarge { path, limit });
        }
        to(&self.0)?;
        Ok(self.0.len() as u64)
    }

    fn read_part(&self, _: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError> {
        let part = self.0.iter().skip(offset as usize).take(length as usize);
        Ok(part.copied().collect())
    }
}

struct One(OneFile);

impl World for One {
    fn devices(&self) -> Vec<String> {
        vec!["hd0".into()]
    }

    fn volume(&self, device: &str) -> Option<&dyn FileSystem> {
        (device == "hd0").then_some(&self.0 as &dyn FileSystem)
    }

    fn partition_uuid(&self, _: &str) -> String {
        String::new()
    }
}
