//! Images, volumes and snapshots of volumes, as files.
//!
//! A [`Library`] keeps images: whole disks that never change, each in a
//! directory named by the digest of what a guest would read from it, under
//! names with versions. [`Volumes`] keeps the disks of machines: overlays on
//! images, or disks of their own, and snapshots of them. Both do with files
//! only what is whole or not there at all after a crash, and every operation
//! may be repeated. Who may do what, and what a volume is for, is not known
//! here.
#![forbid(unsafe_code)]

mod digest;
mod error;
mod export;
mod files;
mod foreign;
mod import;
mod library;
pub mod recipe;
mod staging;
mod volumes;

pub use digest::{Digest, DigestError};
pub use error::ImagesError;
pub use export::export_disk;
pub use foreign::{ForeignFormat, ImportFormat, Vhd, Vmdk};
pub use import::{Checksum, Compression, ImportOptions, Location, Stage, StageProgress};
pub use library::{
    Health, Library, Manifest, NameRecord, NameVersion, Pruned, Reference, Stored, Target,
};
pub use volumes::{Capture, Origin, Snapshot, Volume, Volumes};

/// Hears how far a long operation is: bytes done, and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);
