//! Partition tables: GPT (UEFI 2.10, section 5), MBR with logical partitions,
//! and disks that are one file system.

mod gpt;
mod mbr;

use std::rc::Rc;

use crate::read::{ReadAt, Window};

/// Most partitions looked at.
pub const MOST: usize = 128;

/// How a partition came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
    /// The disk has no table: it is one file system.
    Whole,
}

/// What a partition is for, as its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// EFI system partition.
    Esp,
    /// Extended boot loader partition (Boot Loader Specification).
    ExtendedBoot,
    /// Anything else.
    Other,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts: from 1; logical ones from 5. 0: the whole disk.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// The table it is in.
    pub scheme: Scheme,
    /// What its type says.
    pub purpose: Purpose,
    /// Identity of the partition, as in `/dev/disk/by-partuuid`; may be empty.
    pub uuid: String,
}

impl Partition {
    fn whole(size: u64) -> Self {
        Self {
            number: 0,
            start: 0,
            size,
            scheme: Scheme::Whole,
            purpose: Purpose::Other,
            uuid: String::new(),
        }
    }

    /// GRUB's name for it on the first disk: `hd0,gpt2`, `hd0,msdos1`, `hd0`.
    pub fn grub_name(&self) -> String {
        match self.scheme {
            Scheme::Gpt => format!("hd0,gpt{}", self.number),
            Scheme::Mbr => format!("hd0,msdos{}", self.number),
            Scheme::Whole => "hd0".into(),
        }
    }

    /// For people: `partition 2`, `the disk`.
    pub fn shown(&self) -> String {
        match self.scheme {
            Scheme::Whole => "the disk".into(),
            _ => format!("partition {}", self.number),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Ascending by number.
    pub partitions: Vec<Partition>,
    /// What is wrong with the table, for people.
    pub notes: Vec<String>,
}

/// Reads the partition table; a disk without one is one partition.
pub fn read(disk: &Rc<dyn ReadAt>) -> Table {
    let all = Window::new(disk.clone(), 0, u64::MAX);
    let sector = all.bytes(0, 512).unwrap_or_default();
    let entries = mbr::entries(&sector);
    let signed = mbr::is_signed(&sector);
    // A FAT boot sector ends with the same signature as a boot record.
    let one_file_system = crate::filesystem::is_fat(&sector) && !entries.iter().any(|e| e.used());
    let protective = entries.iter().any(mbr::Entry::is_protective);
    let mut table = Table::default();
    if !one_file_system && (protective || !signed) {
        table = gpt::read(&all);
        if !table.partitions.is_empty() {
            return table;
        }
    }
    if signed && !one_file_system && !protective && mbr::is_plausible(&entries) {
        table.partitions = mbr::read(&all, &sector);
        if !table.partitions.is_empty() {
            return table;
        }
    }
    if !protective {
        table.partitions.push(Partition::whole(disk.size()));
    }
    table
}

/// Little-endian number of `N` bytes at `at`; 0 where there is nothing.
fn number<const N: usize>(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    if let (Some(from), Some(to)) = (data.get(at..at + N), bytes.get_mut(..N)) {
        to.copy_from_slice(from);
    }
    u64::from_le_bytes(bytes)
}
