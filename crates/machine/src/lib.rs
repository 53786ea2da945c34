//! Puts one machine together from its description and runs it.
//!
//! [`Machine::new`] assembles RAM, engine, devices and kernel; one thread per
//! vCPU runs the guest, and one supervisor thread decides what a reset, a
//! power-off or a failure leads to. Other threads pause, inspect and end the
//! machine through [`Machine`].
#![forbid(unsafe_code)]

mod agent;
mod board;
mod clients;
mod control;
mod control_socket;
mod copy;
pub mod description;
mod events;
mod gdb;
mod guest_update;
mod hotplug;
mod machine;
mod nic;
mod outcome;
mod peripherals;
mod port_door;
mod rest;
pub mod snapshot;
mod socket;
mod source;
mod state;
mod storage;
mod terminal;

pub use arch::cpuid::{CpuChoice, CpuModel};
pub use board::{BoardState, Consoles};
pub use copy::{Copied, copy_sparse};
pub use description::{
    Boot, Description, DescriptionError, Disk, DiskBoot, KernelBoot, OnReset, Smbios,
};
pub use devices::serial::SerialSink;
pub use events::{GuestEvent, Listener};
pub use guest_update::GuestUpdate;
pub use hotplug::{AttachedNic, HotPlugError};
pub use machine::{Machine, MakeEngine, RunState};
pub use nic::{
    MOST_NICS, Nic, NicCapture, NicError, NicNetwork, NicPort, NicReach, UserNic, VpcNic,
};
pub use outcome::{MachineError, Outcome};
pub use peripherals::{Peripherals, Share, VsockSocket, WatchdogAction};
pub use snapshot::{Snapshot, SnapshotError, SnapshotMade};
pub use socket::{OwnSocket, listen};
pub use state::MachineState;
pub use storage::{DiskPort, place};
pub use virtio::balloon::{BalloonControl, BalloonReport, Statistics};
pub use virtio::blk::{Limit, Limits, OnError};
pub use virtio::console::{ConsoleInput, ConsoleSink};
