//! What a virtio device is to its transport, and the other way round.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use devices::StateError;
use memory::GuestRam;
use serde::{Deserialize, Serialize};

use crate::balloon::BalloonState;
use crate::blk::BlkState;
use crate::channel::ChannelState;
use crate::console::ConsoleState;
use crate::fs::FsState;
use crate::net::NetState;
use crate::queue::{QueueError, VirtQueue};
use crate::rng::RngState;
use crate::vsock::VsockState;

/// Feature bits that are not specific to a device (virtio 1.2, chapter 6).
pub mod feature {
    /// Descriptors may point to tables of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say at which index they want to be notified.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device; always demanded.
    pub const VERSION_1: u64 = 1 << 32;
}

/// A type of device as the transport presents it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKind {
    /// Device type (virtio 1.2, chapter 5).
    pub id: u16,
    /// PCI class: base << 16 | subclass << 8 | interface.
    pub pci_class: u32,
    /// For logs and errors.
    pub name: &'static str,
}

/// How a device reaches its driver outside the rings. Called from any thread.
pub trait Signal: Send + Sync {
    /// Used buffers are there to be seen: interrupts the guest.
    fn used(&self, queue: u16);
    /// The device configuration has changed: next generation, interrupt.
    fn config_changed(&self);
    /// The driver broke the rules, or the device failed for good: sets
    /// DEVICE_NEEDS_RESET and interrupts the guest. Logged with the reason.
    fn needs_reset(&self, reason: &str);
}

/// Receives the driver's notifications, on vCPU threads, several at once.
pub trait Doorbell: Send + Sync {
    /// Available buffers may be in `queue`. Quick: only what cannot wait.
    fn ring(&self, queue: u16);

    /// An event (eventfd) that has the same effect as [`Self::ring`] when it
    /// is signalled; always the same one.
    fn event(&self, _queue: u16) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// By index; `None` where the driver did not enable a queue.
    pub queues: Vec<Option<VirtQueue>>,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// The way to interrupt the guest.
    pub signal: Arc<dyn Signal>,
    /// Negotiated features.
    pub features: u64,
}

/// A device that cannot start working.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device needs.
    #[error("the driver did not set up queue {0}")]
    MissingQueue(u16),
    /// A queue cannot be used as the driver set it up.
    #[error("queue {queue}: {error}")]
    Queue {
        /// Its index.
        queue: u16,
        /// What is wrong.
        error: QueueError,
    },
    /// The disk behind the device.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// The network behind the device.
    #[error(transparent)]
    Network(#[from] net::LinkError),
    /// No thread for the device's work.
    #[error("cannot start the device's thread: {0}")]
    Thread(std::io::Error),
}

/// A virtio device without its transport. The transport calls it from one
/// thread at a time.
///
/// A device works between [`Self::activate`] and [`Self::stop`]. Pausing,
/// saving and resuming is stopping, keeping the queues, and activating with
/// the same queues again, so no device has other states.
pub trait VirtioDevice: Send {
    /// Its type.
    fn kind(&self) -> DeviceKind;

    /// Device-specific features offered; the transport adds its own.
    fn features(&self) -> u64;

    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads the device configuration; beyond its end zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device configuration; what is read-only is not changed.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Starts working. Buffers may be available already: the device looks
    /// into all its queues without waiting for a notification.
    ///
    /// # Errors
    /// [`ActivateError`]; the device is then inactive.
    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError>;

    /// Finishes what is in flight, stops working and returns the queues as
    /// given. Afterwards the device touches neither guest memory nor signal.
    fn stop(&mut self) -> Vec<Option<VirtQueue>>;

    /// Forgets what a driver has set, after [`Self::stop`].
    fn reset(&mut self);

    /// The device's own state, while stopped.
    fn save(&self) -> DeviceState;

    /// Takes back a saved state, while stopped.
    ///
    /// # Errors
    /// [`StateError`] if it is of another device.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

/// The saved state of a device of any type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Block device.
    Blk(BlkState),
    /// Entropy device.
    Rng(RngState),
    /// Console.
    Console(ConsoleState),
    /// Balloon.
    Balloon(BalloonState),
    /// Shared folder.
    Fs(FsState),
    /// Sockets.
    Vsock(VsockState),
    /// Named channel.
    Channel(ChannelState),
    /// Network card.
    Net(NetState),
}

/// Copies the part of `config` at `offset`; zeroes beyond its end.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (index, byte) in data.iter_mut().enumerate() {
        let at = start.checked_add(index);
        *byte = at.and_then(|at| config.get(at)).copied().unwrap_or(0);
    }
}

/// Goes on serving on another thread, for a driver that keeps a vCPU busy by
/// making buffers available as fast as they are used. There is one such thread
/// at most while `running` is set.
pub(crate) fn serve_later<T: Send + Sync + 'static>(
    this: &Weak<T>,
    running: &Arc<AtomicBool>,
    serve: fn(&T) -> bool,
) {
    if running.swap(true, Ordering::SeqCst) {
        return;
    }
    let (this, flag) = (this.clone(), running.clone());
    let spawned = std::thread::Builder::new()
        .name("virtio-later".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            let serve = || this.upgrade().is_none_or(|this| serve(&this));
            loop {
                while !serve() {
                    std::thread::yield_now();
                }
                flag.store(false, Ordering::SeqCst);
                // A doorbell may have relied on the flag just before.
                if serve() || flag.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    if let Err(error) = spawned {
        running.store(false, Ordering::SeqCst);
        tracing::warn!(%error, "no thread for a busy queue; it waits for the next notification");
    }
}
