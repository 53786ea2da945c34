//! Guest-physical memory.
//!
//! All of a machine's RAM is one private mapping, in huge pages where the host
//! has them. RAM appears to the guest as at most two ranges: below the
//! PCI hole and above 4 GiB ([`GuestRam::low_size`]). Everything that touches
//! guest memory goes through this crate, so that writes can be tracked
//! (dirty pages) and watched (pages that hold translated code).

mod copied;
mod frozen;
pub mod host;
mod image;
mod pages;
mod ram;
mod track;

pub use copied::CopiedPages;
pub use frozen::FrozenRam;
pub use image::{Image, ImageWriter, Layer};
pub use pages::PageSet;
pub use ram::{DiscardHold, GuestRam, MemoryError, PAGE_SIZE};
pub use track::{TrackSlice, Tracker, WriteWatcher};

/// The `vm-memory` type that the virtqueue code works on.
pub type GuestMemory = vm_memory::GuestMemoryMmap<Tracker>;
