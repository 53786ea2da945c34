//! Makes one host agree with the store: machine processes, disks, networks.
//!
//! A [`Driver`] does single idempotent steps on a host: [`Real`] with
//! processes and files, [`Simulated`] in memory, for tests of the management
//! plane at scale. A machine is known by crate `machine-protocol` only.
#![forbid(unsafe_code)]

mod control_client;
mod driver;
mod real;
mod simulated;

pub use control_client::{ControlClient, ControlError};
pub use driver::{
    Content, Driver, DriverError, Facts, Failure, Inventory, MachineEnd, Observed, VolumeFile,
    VolumeSource, VolumeSpec,
};
pub use real::{Real, RealConfig};
pub use simulated::{Simulated, SimulatedConfig};
