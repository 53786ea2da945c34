//! Looks through a disk for everything that can be started.

mod find;
mod load;

use std::rc::Rc;

use crate::entry::{BootEntry, Found, Loader};
use crate::filesystem::{self, FileSystem};
use crate::grub::{Place, World};
use crate::partition::{self, Partition, Purpose};
use crate::read::{ReadAt, Window};
use crate::uki;

/// Most entries of a disk.
pub const MOST_ENTRIES: usize = 1000;
/// Longest text of an entry that is shown, in bytes.
const LONGEST_TEXT: usize = 4096;

/// A partition with a file system.
struct Volume {
    partition: Partition,
    fs: Box<dyn FileSystem>,
}

impl Volume {
    /// For people: `partition 1 (ext4)`.
    fn shown(&self) -> String {
        format!("{} ({})", self.partition.shown(), self.fs.kind())
    }
}

/// Where an entry's parts come from.
enum Source {
    /// Files, by the index of their volume.
    Files {
        kernel: (usize, String),
        initrds: Vec<(usize, String)>,
    },
    /// A unified kernel image.
    Uki {
        volume: usize,
        path: String,
        sections: uki::Sections,
    },
    /// Nothing that this program starts.
    None,
}

struct Entry {
    info: BootEntry,
    source: Source,
}

/// Entries of one configuration.
#[derive(Default)]
struct Group {
    entries: Vec<Entry>,
    default: Option<usize>,
}

impl Group {
    fn is_bootable(&self) -> bool {
        self.entries.iter().any(|e| e.info.problem.is_none())
    }
}

/// A disk that was looked through.
pub struct Survey {
    volumes: Volumes,
    entries: Vec<Entry>,
    notes: Vec<String>,
}

/// The file systems of a disk.
#[derive(Default)]
struct Volumes(Vec<Volume>);

impl World for Volumes {
    fn devices(&self) -> Vec<String> {
        self.0.iter().map(|v| v.partition.grub_name()).collect()
    }

    fn volume(&self, device: &str) -> Option<&dyn FileSystem> {
        self.index(device)
            .and_then(|index| self.0.get(index))
            .map(|v| &*v.fs)
    }

    fn partition_uuid(&self, device: &str) -> String {
        let index = self.index(device);
        let volume = index.and_then(|index| self.0.get(index));
        volume.map_or_else(String::new, |v| v.partition.uuid.clone())
    }
}

impl Volumes {
    /// The volume that GRUB calls so. Scripts of other times number the
    /// partition without its kind of table: `hd0,1`. The disk is the machine's
    /// first one, whatever number it had where the script was written.
    fn index(&self, device: &str) -> Option<usize> {
        let renumbered = device.strip_prefix("hd").and_then(|rest| {
            let (disk, partition) = rest.split_once(',')?;
            disk.parse::<u8>().ok()?;
            Some(format!("hd0,{partition}"))
        });
        let device = renumbered.as_deref().unwrap_or(device);
        let short = |v: &Volume| format!("hd0,{}", v.partition.number);
        self.0
            .iter()
            .position(|v| v.partition.grub_name() == device || short(v) == device)
    }

    fn place(&self, place: &Place) -> Option<(usize, String)> {
        Some((self.index(&place.device)?, place.path.clone()))
    }
}

impl Survey {
    /// Looks through a disk. What is damaged becomes a note.
    pub fn new(disk: Rc<dyn ReadAt>) -> Self {
        let table = partition::read(&disk);
        let mut notes = table.notes;
        let mut volumes = Volumes::default();
        for partition in table.partitions {
            let part = Window::new(disk.clone(), partition.start, partition.size);
            match filesystem::open(&part) {
                Some(Ok(fs)) => volumes.0.push(Volume { partition, fs }),
                Some(Err(error)) => notes.push(format!("{}: {error}", partition.shown())),
                None => {}
            }
        }
        let mut survey = Self {
            volumes,
            entries: Vec::new(),
            notes,
        };
        survey.find_entries();
        survey
    }

    /// What was found.
    pub fn found(&self) -> Found {
        Found {
            entries: self.entries.iter().map(|e| e.info.clone()).collect(),
            notes: self.notes.clone(),
        }
    }

    /// What holds the first say: systemd-boot where it is installed, then GRUB,
    /// EXTLINUX, entries without their loader, and last kernels by their names.
    fn find_entries(&mut self) {
        let mut groups = Vec::new();
        if find::has_systemd_boot(&self.volumes) {
            groups.push(find::specified(&self.volumes));
        }
        groups.extend(find::grub(&self.volumes, &mut self.notes));
        groups.extend(find::syslinux(&self.volumes));
        if !groups.iter().any(Group::is_bootable) {
            groups.push(find::specified(&self.volumes));
        }
        if !groups.iter().any(Group::is_bootable) {
            groups.push(find::kernels(&self.volumes));
        }
        // A configuration whose default cannot be started is not passed over:
        // another entry than the expected one would start.
        let first = groups.iter().position(|g| !g.entries.is_empty());
        for (index, group) in groups.into_iter().enumerate() {
            let default = group.default.filter(|_| Some(index) == first);
            for (position, mut entry) in group.entries.into_iter().enumerate() {
                entry.info.default = default == Some(position);
                if self.entries.len() < MOST_ENTRIES {
                    self.add(entry);
                }
            }
        }
    }

    /// Adds an entry, its id made unique and its texts bounded.
    fn add(&mut self, mut entry: Entry) {
        let info = &mut entry.info;
        for text in [&mut info.id, &mut info.title, &mut info.found] {
            if text.len() > LONGEST_TEXT {
                *text = text.chars().take(LONGEST_TEXT / 4).collect();
            }
        }
        let taken = |id: &str, all: &[Entry]| all.iter().any(|e| e.info.id == id);
        let first = info.id.clone();
        let mut n = 2;
        while taken(&info.id, &self.entries) {
            info.id = format!("{first}#{n}");
            n += 1;
        }
        self.entries.push(entry);
    }
}

impl Entry {
    fn new(loader: Loader, found: String) -> Self {
        Self {
            info: BootEntry {
                id: String::new(),
                title: String::new(),
                kernel: String::new(),
                initrds: Vec::new(),
                cmdline: String::new(),
                default: false,
                loader,
                found,
                problem: None,
            },
            source: Source::None,
        }
    }

    /// Gives it its files, or the reason why it has none.
    fn files(&mut self, volumes: &Volumes, kernel: (usize, String), initrds: Vec<(usize, String)>) {
        self.info.kernel.clone_from(&kernel.1);
        self.info.initrds = initrds.iter().map(|(_, path)| path.clone()).collect();
        let missing = std::iter::once(&kernel)
            .chain(&initrds)
            .find_map(|(volume, path)| find::missing(volumes, *volume, path));
        match missing {
            Some(problem) => self.info.problem = Some(problem),
            None => self.source = Source::Files { kernel, initrds },
        }
    }
}

/// Whether a partition is where boot loaders look first.
fn is_boot_partition(partition: &Partition) -> bool {
    matches!(partition.purpose, Purpose::Esp | Purpose::ExtendedBoot)
}
