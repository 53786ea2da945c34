//! The modern PCI transport (virtio 1.2, 4.1).
//!
//! One 64-bit memory BAR holds, each in its own page: the common
//! configuration, ISR, the device configuration, the notification doorbells
//! (4 bytes per queue), the MSI-X table and its pending bits.

mod common;
mod interrupt;
mod state;
mod wiring;

use std::sync::Arc;

use devices::StateError;
use devices::pci::{
    BarKind, ConfigBuilder, ConfigSpace, Identity, MappedBar, MsixLayout, MsixTable, PciError,
    PciFunction, capability,
};
use engine::InterruptSink;
use memory::GuestRam;
use parking_lot::{Mutex, RwLock};

use crate::device::{Doorbell, VirtioDevice};
use common::Common;
use interrupt::PciSignal;
pub use state::VirtioPciState;
use wiring::Wiring;

const VENDOR: u16 = 0x1af4;
/// Device ID of type 0.
const DEVICE_BASE: u16 = 0x1040;

const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
/// Bytes between the doorbells of two queues.
const NOTIFY_STEP: u32 = 4;
/// As many as the MSI-X page has room for, one being for configuration.
const MAX_QUEUES: usize = 255;

/// `cfg_type` of the capabilities (virtio 1.2, 4.1.4).
mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}

/// Where a function is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// On bus 0.
    RootComplex,
    /// Behind a root port.
    BehindPort,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    name: &'static str,
    config: Arc<ConfigSpace>,
    msix: Arc<MsixTable>,
    /// Offset of the PCI configuration access capability.
    window: u16,
    signal: Arc<PciSignal>,
    common: Mutex<Common>,
    /// Set while the device works; apart, so that notifications do not wait
    /// for configuration accesses.
    doorbell: RwLock<Option<Arc<dyn Doorbell>>>,
    wiring: Wiring,
}

impl VirtioPci {
    /// The function in front of `device`, whose queues are in `ram` and whose
    /// interrupts go to `sink`.
    ///
    /// # Errors
    /// [`PciError`] if the device has more queues than fit.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        sink: Arc<dyn InterruptSink>,
    ) -> Result<Arc<Self>, PciError> {
        Self::at(device, ram, sink, Place::RootComplex)
    }

    /// As [`Self::new`], for a function behind a root port.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn behind_port(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        sink: Arc<dyn InterruptSink>,
    ) -> Result<Arc<Self>, PciError> {
        Self::at(device, ram, sink, Place::BehindPort)
    }

    fn at(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        sink: Arc<dyn InterruptSink>,
        place: Place,
    ) -> Result<Arc<Self>, PciError> {
        let kind = device.kind();
        let queues = device.queue_sizes().len();
        let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX);
        if queues > MAX_QUEUES {
            return Err(PciError::Msix { vectors });
        }
        let layout = MsixLayout {
            bar: BAR,
            table_offset: MSIX_TABLE,
            pending_offset: MSIX_PENDING,
        };
        let wiring = Wiring::new(sink.doorbells(), queues);
        let msix = MsixTable::new(vectors, layout, sink);
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind.id,
            class: kind.pci_class,
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: 0x40 + kind.id,
        };
        let (config, window) = config_space(identity, &msix, place)?;
        let signal = PciSignal::new(kind.name, config.clone(), msix.clone(), queues);
        let signal = Arc::new(signal);
        Ok(Arc::new(Self {
            name: kind.name,
            config,
            msix,
            window,
            signal: signal.clone(),
            common: Mutex::new(Common::new(device, ram, signal)),
            doorbell: RwLock::new(None),
            wiring,
        }))
    }

    /// The device stops working: everything in flight is finished and guest
    /// memory is at rest until [`Self::resume`]. Whether it was working.
    pub fn pause(&self) -> bool {
        let mut common = self.common.lock();
        self.set_doorbell(None);
        common.pause()
    }

    /// Whether a driver in the guest uses the device. While it is paused, none
    /// does.
    pub fn is_in_use(&self) -> bool {
        self.doorbell.read().is_some()
    }

    /// Ends [`Self::pause`], also after [`Self::restore`].
    pub fn resume(&self) {
        let mut common = self.common.lock();
        let doorbell = common.resume();
        self.set_doorbell(doorbell);
    }

    /// As at power-on, except for the addresses of the BARs; for a reset of
    /// the machine.
    pub fn reset(&self) {
        let mut common = self.common.lock();
        self.set_doorbell(None);
        common.reset();
        self.msix.reset();
    }

    /// The state of the function and its device. If the device is working, it
    /// is paused meanwhile; memory is saved consistently with it only if the
    /// caller pauses around both.
    #[must_use]
    pub fn save(&self) -> VirtioPciState {
        let was_working = self.pause();
        let state = self.common.lock().save(&self.config, &self.msix);
        if was_working {
            self.resume();
        }
        state
    }

    /// Takes back a saved state. The device is paused until [`Self::resume`],
    /// by which time guest memory must be restored; the caller also has the
    /// root complex move the BARs ([`devices::pci::PciRoot::remap`]).
    ///
    /// # Errors
    /// [`StateError`] if the state is of another device.
    pub fn restore(&self, state: &VirtioPciState) -> Result<(), StateError> {
        self.pause();
        let mut common = self.common.lock();
        common.check(state)?;
        self.config.restore(&state.config)?;
        self.msix.restore(&state.msix)?;
        common.restore(state)
    }

    fn common_write(&self, offset: u64, data: &[u8]) {
        let mut common = self.common.lock();
        if common.write(offset, data) {
            // No notification reaches a device that is being stopped.
            self.set_doorbell(None);
            let doorbell = common.change();
            self.set_doorbell(doorbell);
        }
    }

    /// Whom notifications reach from now on.
    fn set_doorbell(&self, doorbell: Option<Arc<dyn Doorbell>>) {
        self.doorbell.write().clone_from(&doorbell);
        self.wiring.bell(doorbell);
    }

    fn notify(&self, offset: u64) {
        let Ok(queue) = u16::try_from(offset / u64::from(NOTIFY_STEP)) else {
            return;
        };
        let doorbell = self.doorbell.read().clone();
        if let Some(doorbell) = doorbell {
            doorbell.ring(queue);
        }
    }

    /// What the PCI configuration access capability addresses (virtio 1.2,
    /// 4.1.4.9): BAR, offset and length; `None` if that is nothing.
    fn window(&self) -> Option<(u64, usize)> {
        let mut cap = [0; 16];
        self.config.read(self.window, &mut cap);
        let word = |at: usize| {
            cap.get(at..at + 4)
                .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
                .map_or(0, u32::from_le_bytes)
        };
        let (offset, length) = (u64::from(word(8)), word(12) as usize);
        let usable = cap[4] == BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length as u64)
            && offset < BAR_SIZE;
        usable.then_some((offset, length))
    }

    /// Whether a configuration access touches the data of that capability.
    fn is_window(&self, offset: u16) -> bool {
        (self.window + 16..self.window + 20).contains(&offset)
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.is_window(offset)
            && let Some((at, length)) = self.window()
        {
            let mut value = [0; 4];
            if let Some(value) = value.get_mut(..length) {
                self.bar_read(BAR, at, value);
            }
            self.config.set(self.window + 16, &value);
        }
        self.config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        if self.is_window(offset)
            && let Some((at, length)) = self.window()
        {
            let mut value = [0; 4];
            self.config.read(self.window + 16, &mut value);
            if let Some(value) = value.get(..length) {
                self.bar_write(BAR, at, value);
            }
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != BAR || self.msix.bar_read(bar, offset, data) {
            return;
        }
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.common.lock().read(within, data),
            ISR if within == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = self.signal.take_isr();
                }
            }
            DEVICE => self.common.lock().device().read_config(within, data),
            _ => {}
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        let within = offset % PAGE;
        match offset - within {
            // First, because it is frequent.
            NOTIFY => self.notify(within),
            COMMON => self.common_write(within, data),
            DEVICE => self.common.lock().device_mut().write_config(within, data),
            _ => {
                self.msix.bar_write(bar, offset, data);
            }
        }
    }

    fn placed(&self, bars: &[MappedBar]) {
        let bar = bars.iter().find(|bar| bar.bar == BAR);
        self.wiring.bar(bar.map(|bar| bar.address));
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.pause();
        tracing::debug!(device = self.name, "virtio function gone");
    }
}

/// Configuration space with the BAR, MSI-X and the virtio capabilities;
/// returns the offset of the one for PCI configuration access.
fn config_space(
    identity: Identity,
    msix: &Arc<MsixTable>,
    place: Place,
) -> Result<(Arc<ConfigSpace>, u16), PciError> {
    let kind = BarKind::Memory64 {
        prefetchable: false,
    };
    let builder = ConfigBuilder::new(identity).bar(BAR, kind, BAR_SIZE)?;
    let builder = match place {
        Place::RootComplex => builder.express()?,
        Place::BehindPort => builder.express_endpoint()?,
    };
    let mut builder = builder.msix(msix)?.interrupt_pin();
    let regions = [
        (cfg_type::COMMON, COMMON, PAGE),
        (cfg_type::ISR, ISR, PAGE),
        (cfg_type::DEVICE, DEVICE, PAGE),
    ];
    for (cfg_type, offset, length) in regions {
        let body = capability_body(cfg_type, offset as u32, length as u32, None);
        builder.add_capability(capability::VENDOR, &body, &[])?;
    }
    let body = capability_body(
        cfg_type::NOTIFY,
        NOTIFY as u32,
        PAGE as u32,
        Some(NOTIFY_STEP),
    );
    builder.add_capability(capability::VENDOR, &body, &[])?;
    let body = capability_body(cfg_type::PCI, 0, 0, Some(0));
    // The driver sets BAR, offset, length and data.
    let mut writable = [0; 18];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let window = builder.add_capability(capability::VENDOR, &body, &writable)?;
    Ok((Arc::new(builder.build()), window))
}

/// A `virtio_pci_cap` after its first two bytes (virtio 1.2, 4.1.4).
fn capability_body(cfg_type: u8, offset: u32, length: u32, more: Option<u32>) -> Vec<u8> {
    let size = 16 + if more.is_some() { 4 } else { 0 };
    let mut body = vec![size, cfg_type, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more.into_iter().flat_map(u32::to_le_bytes));
    body
}
