//! Makes one host agree with the store: machine processes, disks, networks.
//!
//! A [`Driver`] does single idempotent steps on a host: [`Real`] with
//! processes and files, [`Simulated`] in memory, for tests of the management
//! plane at scale. A machine is known by crate `machine-protocol` only.
#![forbid(unsafe_code)]

mod control_client;
mod describe;
mod driver;
mod layout;
mod library;
mod metadata_service;
mod ports;
mod queue;
mod real;
mod reconcile;
mod simulated;

pub use control_client::{ControlClient, ControlError};
pub use driver::{
    Content, Driver, DriverError, Facts, Failure, Happened, Inventory, MachineEnd, Observed,
    VolumeFile, VolumeSource, VolumeSpec,
};
pub use layout::Layout;
pub use library::adopt_images;
pub use real::{Real, RealConfig};
pub use reconcile::{Patience, Reconciler};
pub use simulated::{Simulated, SimulatedConfig};
