//! The saved state of a virtio PCI function.

use devices::Version;
use devices::pci::{ConfigSpaceState, MsixState};
use devices::versioned;
use serde::{Deserialize, Serialize};

use crate::device::DeviceState;
use crate::queue::QueueState;

/// Everything a driver can have set in a function, its queues and its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// Format.
    pub version: Version<VirtioPciState>,
    /// Device type (virtio 1.2, chapter 5).
    pub device_id: u16,
    /// Configuration space.
    pub config: ConfigSpaceState,
    /// MSI-X table.
    pub msix: MsixState,
    /// Device status.
    pub status: u8,
    /// ISR status.
    pub isr: u8,
    /// Configuration generation.
    pub generation: u8,
    /// Selector of the features the driver reads.
    pub device_feature_select: u32,
    /// Selector of the features the driver writes.
    pub driver_feature_select: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// Selected queue.
    pub queue_select: u16,
    /// MSI-X vector of configuration changes; 0xffff: none.
    pub config_vector: u16,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}
versioned!(VirtioPciState, "virtio PCI function", 1);
