//! Virtio 1.2 devices: the modern PCI transport, split virtqueues, and one
//! module per device type.
//!
//! [`VirtioPci`] is the PCI function in front of any [`VirtioDevice`]. What
//! the guest wrote is never trusted: a broken ring puts the device into
//! DEVICE_NEEDS_RESET and leaves everything else alone.
#![forbid(unsafe_code)]

// The tests' driver is one for those here and in `tests`.
#[cfg(test)]
extern crate self as virtio;

pub mod balloon;
pub mod blk;
pub mod channel;
pub mod console;
mod device;
pub mod fs;
pub mod net;
mod pci;
mod queue;
pub mod rng;
pub mod vsock;

pub use device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, Signal, VirtioDevice, feature,
};
pub use disk::GuestRange;
pub use pci::{VirtioPci, VirtioPciState};
pub use queue::{Chain, QueueError, QueueState, VirtQueue};
