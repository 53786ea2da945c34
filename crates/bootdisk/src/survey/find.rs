//! The places where boot loaders keep their configurations.

use std::cmp::Ordering;

use super::{Entry, Group, Source, Volume, Volumes, is_boot_partition};
use crate::bls::{self, Rank};
use crate::entry::Loader;
use crate::filesystem::Kind;
use crate::grub::{self, Place, Start};
use crate::partition::Scheme;
use crate::{syslinux as sys, uki, version};

/// Where GRUB's configuration is, on /boot and on a root file system.
const GRUB_PLACES: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];
/// Most unified kernel images and kernels.
const MOST_IMAGES: usize = 256;
const LONGEST_CONFIG: u64 = 64 << 10;

/// Why a file of an entry cannot be loaded, if it cannot.
pub fn missing(volumes: &Volumes, volume: usize, path: &str) -> Option<String> {
    let Some(volume) = volumes.0.get(volume) else {
        return Some(format!("{path} is on a device that is not there"));
    };
    match volume.fs.stat(path) {
        Ok(Kind::File(1..)) => None,
        Ok(Kind::File(0)) => Some(format!("{path} on {} is empty", volume.shown())),
        Ok(_) => Some(format!("{path} on {} is no file", volume.shown())),
        Err(error) => Some(format!("{}: {error}", volume.shown())),
    }
}

fn is_file(volume: &Volume, path: &str) -> bool {
    matches!(volume.fs.stat(path), Ok(Kind::File(_)))
}

/// Whether systemd-boot is what the firmware would start.
pub fn has_systemd_boot(volumes: &Volumes) -> bool {
    let installed = |v: &Volume| {
        is_file(v, "/EFI/systemd/systemd-bootx64.efi") || is_file(v, "/loader/loader.conf")
    };
    volumes
        .0
        .iter()
        .any(|v| is_boot_partition(&v.partition) && installed(v))
}

/// GRUB's menus. A configuration on the EFI system partition comes first: it
/// leads to the one that counts.
pub fn grub(volumes: &Volumes, notes: &mut Vec<String>) -> Vec<Group> {
    let mut places = Vec::new();
    let place = |v: &Volume, path: String| Place {
        device: v.partition.grub_name(),
        path,
    };
    for volume in volumes.0.iter().filter(|v| is_boot_partition(&v.partition)) {
        for vendor in volume.fs.names("/EFI").unwrap_or_default() {
            let path = format!("/EFI/{vendor}/grub.cfg");
            if is_file(volume, &path) {
                places.push(place(volume, path));
            }
        }
    }
    for volume in &volumes.0 {
        for path in GRUB_PLACES.iter().filter(|p| is_file(volume, p)) {
            places.push(place(volume, (*path).to_owned()));
        }
    }
    let mut groups = Vec::new();
    let mut done: Vec<Place> = Vec::new();
    for place in places {
        if done.contains(&place) {
            continue;
        }
        match grub::evaluate(volumes, &place) {
            Ok(menu) => {
                let group = menu_group(volumes, &menu);
                if !group.entries.is_empty() {
                    done.extend(menu.scripts);
                    groups.push(group);
                }
            }
            Err(error) => notes.push(format!("GRUB: {error}")),
        }
    }
    groups
}

fn menu_group(volumes: &Volumes, menu: &grub::Menu) -> Group {
    let script = menu.scripts.last();
    let volume = script.and_then(|s| volumes.0.get(volumes.index(&s.device)?));
    let found = match (script, volume) {
        (Some(script), Some(volume)) => format!("{} of {}", script.path, volume.shown()),
        _ => "grub.cfg".into(),
    };
    let entries = menu.flat().into_iter().map(|flat| {
        let mut entry = Entry::new(Loader::Grub, found.clone());
        entry.info.id = flat.id;
        entry.info.title = flat.title;
        match flat.start {
            Ok(start) => start_files(volumes, &mut entry, start),
            Err(problem) => entry.info.problem = Some(problem.clone()),
        }
        entry
    });
    Group {
        entries: entries.collect(),
        default: menu.default_index(),
    }
}

fn start_files(volumes: &Volumes, entry: &mut Entry, start: &Start) {
    entry.info.cmdline.clone_from(&start.cmdline);
    let files: Option<Vec<_>> = std::iter::once(&start.kernel)
        .chain(&start.initrds)
        .map(|place| volumes.place(place))
        .collect();
    let Some(mut files) = files.filter(|f| !f.is_empty()) else {
        entry.info.kernel.clone_from(&start.kernel.path);
        entry.info.problem = Some(format!(
            "its files are on a device that is not there ({})",
            start.kernel.device
        ));
        return;
    };
    let kernel = files.remove(0);
    entry.files(volumes, kernel, files);
}

/// EXTLINUX and SYSLINUX.
pub fn syslinux(volumes: &Volumes) -> Vec<Group> {
    let mut groups = Vec::new();
    for (index, volume) in volumes.0.iter().enumerate() {
        for path in sys::PLACES.iter().filter(|p| is_file(volume, p)) {
            let Some(config) = sys::read(&*volume.fs, path) else {
                continue;
            };
            let found = format!("{path} of {}", volume.shown());
            let default = config.default_index();
            let entries = config.entries.into_iter().map(|from| {
                let mut entry = Entry::new(Loader::Syslinux, found.clone());
                entry.info.title = from.shown.unwrap_or_else(|| from.label.clone());
                entry.info.id = from.label;
                entry.info.cmdline = from.append;
                match from.kernel {
                    Some(kernel) => {
                        let initrds = from.initrds.into_iter().map(|i| (index, i));
                        entry.files(volumes, (index, kernel), initrds.collect());
                    }
                    None => entry.info.problem = Some("it starts no Linux kernel".into()),
                }
                entry
            });
            groups.push(Group {
                entries: entries.collect(),
                default,
            });
        }
    }
    groups
}

/// An entry with what its order depends on.
struct Ranked {
    entry: Entry,
    tries_left: Option<u32>,
    sort_key: Option<String>,
    machine_id: String,
    version: String,
    name: String,
    /// The name with its ending, for the pattern of `loader.conf`.
    file: String,
}

impl Ranked {
    fn order(&self, other: &Self) -> Ordering {
        bls::order(&self.rank(), &other.rank())
    }

    fn rank(&self) -> Rank<'_> {
        Rank {
            tries_left: self.tries_left,
            sort_key: self.sort_key.as_deref(),
            machine_id: &self.machine_id,
            version: &self.version,
            name: &self.name,
        }
    }
}

/// Boot Loader Specification: entries and unified kernel images, in the order
/// of systemd-boot's menu.
pub fn specified(volumes: &Volumes) -> Group {
    let mut all = Vec::new();
    let mut pattern = None;
    for (index, volume) in volumes.0.iter().enumerate() {
        for base in ["", "/boot", "/efi"] {
            type1(volumes, index, volume, base, &mut all);
            images(index, volume, base, &mut all);
            if pattern.is_none() {
                let path = format!("{base}/loader/loader.conf");
                let text = volume.fs.read(&path, LONGEST_CONFIG).unwrap_or_default();
                pattern = bls::default_pattern(&String::from_utf8_lossy(&text));
            }
        }
    }
    all.sort_by(Ranked::order);
    let wanted = pattern.as_ref().and_then(|pattern| {
        let fits =
            |r: &Ranked| version::matches(pattern, &r.file) || version::matches(pattern, &r.name);
        all.iter().position(fits)
    });
    Group {
        default: wanted.or((!all.is_empty()).then_some(0)),
        entries: all.into_iter().map(|r| r.entry).collect(),
    }
}

fn type1(volumes: &Volumes, index: usize, volume: &Volume, base: &str, all: &mut Vec<Ranked>) {
    let directory = format!("{base}/loader/entries");
    let found = format!("{directory} of {}", volume.shown());
    for from in bls::read(&*volume.fs, &directory) {
        let mut entry = Entry::new(Loader::Bls, found.clone());
        entry.info.title = from.title().to_owned();
        entry.info.id.clone_from(&from.name);
        entry.info.cmdline.clone_from(&from.options);
        // Paths are relative to the partition; with /boot on the root file
        // system some tools leave its name out.
        let at = |path: &str| match is_file(volume, path) {
            true => (index, path.to_owned()),
            false => (index, format!("{base}{path}")),
        };
        match (&from.linux, &from.efi) {
            (Some(kernel), _) => {
                let initrds = from.initrds.iter().map(|i| at(i)).collect();
                entry.files(volumes, at(kernel), initrds);
            }
            (None, Some(program)) => {
                let cmdline = entry.info.cmdline.clone();
                unified(&mut entry, volume, index, &at(program).1);
                if !cmdline.is_empty() {
                    entry.info.cmdline = cmdline;
                }
            }
            (None, None) => entry.info.problem = Some("it names no kernel".into()),
        }
        all.push(Ranked {
            entry,
            tries_left: from.tries_left,
            sort_key: from.sort_key.clone(),
            machine_id: from.machine_id.clone().unwrap_or_default(),
            version: from.version.clone().unwrap_or_default(),
            file: format!("{}.conf", from.name),
            name: from.name,
        });
    }
}

/// Unified kernel images in `/EFI/Linux`.
fn images(index: usize, volume: &Volume, base: &str, all: &mut Vec<Ranked>) {
    let directory = format!("{base}/EFI/Linux");
    let names = volume.fs.names(&directory).unwrap_or_default();
    let images = names
        .iter()
        .filter(|n| n.to_lowercase().ends_with(".efi"))
        .take(MOST_IMAGES);
    for name in images {
        let stem = name.get(..name.len() - 4).unwrap_or(name);
        let (stem, tries_left) = bls::tries(stem);
        let mut entry = Entry::new(Loader::Uki, format!("{directory} of {}", volume.shown()));
        entry.info.id = stem.to_owned();
        entry.info.title = stem.to_owned();
        let (osrel, uname) = unified(&mut entry, volume, index, &format!("{directory}/{name}"));
        let value = |key: &str| uki::os_release(&osrel, key);
        if let Some(title) = value("PRETTY_NAME") {
            entry.info.title = match uname.as_str() {
                "" => title,
                uname => format!("{title} ({uname})"),
            };
        }
        let versions = ["IMAGE_VERSION", "VERSION_ID", "BUILD_ID"];
        let own = Some(uname).filter(|u| !u.is_empty());
        all.push(Ranked {
            entry,
            tries_left,
            sort_key: value("IMAGE_ID").or_else(|| value("ID")),
            machine_id: String::new(),
            version: own
                .or_else(|| versions.iter().find_map(|key| value(key)))
                .unwrap_or_default(),
            name: stem.to_owned(),
            file: format!("{stem}.efi"),
        });
    }
}

/// Looks into a unified kernel image; its os-release and its kernel's release.
fn unified(entry: &mut Entry, volume: &Volume, index: usize, path: &str) -> (String, String) {
    entry.info.kernel = path.to_owned();
    let size = match volume.fs.stat(path) {
        Ok(Kind::File(size)) => size,
        Ok(_) => 0,
        Err(error) => {
            entry.info.problem = Some(format!("{}: {error}", volume.shown()));
            return Default::default();
        }
    };
    let head = volume.fs.read_part(path, 0, uki::HEAD).unwrap_or_default();
    let Some(sections) = uki::sections(&head, size) else {
        entry.info.problem = Some(format!(
            "{path} is not a unified kernel image for x86-64, or it is damaged"
        ));
        return Default::default();
    };
    let raw = |section: Option<uki::Section>| {
        section.map_or_else(Vec::new, |s| {
            let size = s.size.min(uki::LONGEST_TEXT);
            volume
                .fs
                .read_part(path, s.offset, size)
                .unwrap_or_default()
        })
    };
    entry.info.cmdline = uki::text(&raw(sections.cmdline));
    entry.source = Source::Uki {
        volume: index,
        path: path.to_owned(),
        sections,
    };
    let osrel = String::from_utf8_lossy(&raw(sections.osrel)).into_owned();
    (osrel, uki::text(&raw(sections.uname)))
}

/// Kernels by the names that distributions give them, on a disk without any
/// configuration: the newest first, with the initrd of the same release.
pub fn kernels(volumes: &Volumes) -> Group {
    let mut all: Vec<(String, Entry)> = Vec::new();
    for (index, volume) in volumes.0.iter().enumerate() {
        for directory in ["/boot", ""] {
            let names = volume.fs.names(directory).unwrap_or_default();
            let releases = names.iter().filter_map(|n| n.strip_prefix("vmlinuz-"));
            for release in releases.take(MOST_IMAGES) {
                let mut entry =
                    Entry::new(Loader::Files, format!("{directory}/ of {}", volume.shown()));
                let kernel = format!("{directory}/vmlinuz-{release}");
                entry.info.title = format!("Linux {release}");
                entry.info.id = format!("vmlinuz-{release}");
                let initrd = [
                    format!("{directory}/initrd.img-{release}"),
                    format!("{directory}/initramfs-{release}.img"),
                    format!("{directory}/initramfs-{release}"),
                    format!("{directory}/initrd-{release}"),
                ]
                .into_iter()
                .find(|path| is_file(volume, path));
                entry.info.cmdline = root(volumes, volume, initrd.is_some());
                let initrds = initrd.map(|path| (index, path)).into_iter().collect();
                entry.files(volumes, (index, kernel), initrds);
                all.push((release.to_owned(), entry));
            }
        }
    }
    all.sort_by(|a, b| version::compare(&b.0, &a.0));
    Group {
        default: (!all.is_empty()).then_some(0),
        entries: all.into_iter().map(|(_, entry)| entry).collect(),
    }
}

/// The command line for a kernel without one: the file system with a root
/// directory's usual contents, or else the kernel's own.
fn root(volumes: &Volumes, with_kernel: &Volume, initrd: bool) -> String {
    let is_root = |v: &&Volume| v.fs.stat("/etc").is_ok() && v.fs.stat("/usr").is_ok();
    let volume = volumes.0.iter().find(is_root).unwrap_or(with_kernel);
    let partition = &volume.partition;
    let root = match (initrd, partition.scheme) {
        // Without an initrd there is nobody to look for a file system's id.
        (true, _) => format!("UUID={}", volume.fs.uuid()),
        (false, Scheme::Whole) => "/dev/vda".into(),
        (false, _) => format!("PARTUUID={}", partition.uuid),
    };
    format!("root={root} ro")
}
