//! What the survey of a disk gives, as data.

use serde::{Deserialize, Serialize};

/// Whose configuration an entry is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loader {
    /// `grub.cfg`, and what it includes.
    Grub,
    /// Boot Loader Specification, type 1.
    Bls,
    /// Unified kernel image.
    Uki,
    /// EXTLINUX or SYSLINUX.
    Syslinux,
    /// None: kernels found by their names.
    Files,
}

/// Something that a disk offers to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootEntry {
    /// Names it among the disk's entries, also after a reboot.
    pub id: String,
    /// What a menu shows.
    pub title: String,
    /// Path of the kernel on its file system; empty without one.
    pub kernel: String,
    /// Paths of the initial RAM disks, in order.
    pub initrds: Vec<String>,
    /// The kernel's command line, as the entry says it.
    pub cmdline: String,
    /// Whether it starts if nothing else is asked for.
    pub default: bool,
    /// Whose configuration it is from.
    pub loader: Loader,
    /// Where it was found, for people.
    pub found: String,
    /// Why it cannot be started.
    pub problem: Option<String>,
}

/// All that was found on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// The entries; `--entry N` counts them from 0.
    pub entries: Vec<BootEntry>,
    /// What else there is to say, for people: damaged tables, file systems
    /// that cannot be read.
    pub notes: Vec<String>,
}

impl Found {
    /// The entry of this number, id or title; without a wish the default one.
    /// `None`: there is none.
    pub fn choose(&self, wish: Option<&str>) -> Option<usize> {
        let Some(wish) = wish else {
            return self.entries.iter().position(|e| e.default);
        };
        let by = |same: &dyn Fn(&BootEntry) -> bool| self.entries.iter().position(same);
        by(&|e| e.id == wish)
            .or_else(|| wish.parse().ok().filter(|n| *n < self.entries.len()))
            .or_else(|| by(&|e| e.title == wish))
            .or_else(|| by(&|e| e.id.rsplit('>').next() == Some(wish)))
            .or_else(|| by(&|e| e.title.rsplit('>').next() == Some(wish)))
    }
}

/// Where a loaded entry's parts are in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pieces {
    /// Bytes of the kernel, from the start.
    pub kernel: u64,
    /// First byte of the initial RAM disks.
    pub initrd_start: u64,
    /// Bytes of all initial RAM disks; 0: none.
    pub initrd: u64,
}
