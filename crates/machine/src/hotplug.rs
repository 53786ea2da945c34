//! Disks that come and go while the machine runs: behind the root ports in the
//! slots 24 to 31 of bus 0, by PCI Express native hot-plug.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use devices::pci::{PciFunction, PciRoot, RootPort, RootPortState, behind};
use engine::InterruptSink;
use machine_protocol::EventKind;
use memory::GuestRam;
use parking_lot::Mutex;
use virtio::VirtioPci;

use crate::control::Control;
use crate::description::Disk;
use crate::events::Events;
use crate::outcome::MachineError;
use crate::storage::{self, DiskPort};

/// Slots of bus 0 with root ports.
pub(crate) const PORTS: std::ops::RangeInclusive<u8> = 24..=31;

/// Why a disk cannot be attached, detached or grown.
#[derive(Debug, thiserror::Error)]
pub enum HotPlugError {
    /// All ports are taken.
    #[error("{} disks were attached already, and there is no place for more; detach one first", PORTS.count())]
    Full,
    /// Another disk has this name.
    #[error("the machine has a disk {0:?} already; give this one another name with name=")]
    Name(String),
    /// No such disk.
    #[error("the machine has no disk {0:?}; `holm show` lists them")]
    NoDisk(String),
    /// It has been there since the machine started.
    #[error("disk {0:?} has been there since the machine started; only attached disks can go")]
    Fixed(String),
    /// The guest does not hear the request.
    #[error(
        "the guest does not listen to its hot-plug slots (it is starting, or has no driver \
         pciehp), so disk {0:?} stays; --force takes it away without asking"
    )]
    Deaf(String),
}

struct Plugged {
    function: Arc<VirtioPci>,
    disk: DiskPort,
}

/// What the ports' threads share.
struct Slots {
    pci: Arc<PciRoot>,
    ports: OnceLock<BTreeMap<u8, Arc<RootPort>>>,
    /// By slot of the port.
    plugged: Mutex<BTreeMap<u8, Plugged>>,
    events: OnceLock<Arc<Events>>,
}

impl Slots {
    fn port(&self, slot: u8) -> Option<&Arc<RootPort>> {
        self.ports.get()?.get(&slot)
    }

    fn note(&self, event: EventKind) {
        if let Some(events) = self.events.get() {
            events.note(event);
        }
    }

    /// Takes the device out; `pulled` before the guest gave it up.
    fn remove(&self, slot: u8, pulled: bool) {
        let gone = self.plugged.lock().remove(&slot);
        match pulled {
            true => self.pci.pull_out(behind(slot)),
            false => self.pci.detach(behind(slot)),
        };
        if let Some(port) = self.port(slot) {
            port.unplug();
        }
        if let Some(gone) = gone {
            let device = gone.disk.name;
            self.note(EventKind::DeviceDetached { device });
        }
    }

    /// The guest has turned a slot off.
    fn power_off(&self, slot: u8, asked: bool) {
        if asked {
            return self.remove(slot, false);
        }
        let function = self.plugged.lock().get(&slot).map(|p| p.function.clone());
        if let Some(function) = function {
            function.reset();
        }
    }
}

/// The root ports and what is behind them.
pub(crate) struct HotPlug {
    slots: Arc<Slots>,
    ram: Arc<GuestRam>,
    interrupts: Arc<dyn InterruptSink>,
    control: Arc<Control>,
    cpus: u32,
}

fn wrong(error: devices::pci::PciError) -> MachineError {
    MachineError::Assembly(error.to_string())
}

impl HotPlug {
    /// Puts the ports on the bus.
    pub fn new(
        pci: &Arc<PciRoot>,
        ram: &Arc<GuestRam>,
        interrupts: Arc<dyn InterruptSink>,
        control: &Arc<Control>,
        cpus: u32,
    ) -> Result<Self, MachineError> {
        let slots = Arc::new(Slots {
            pci: pci.clone(),
            ports: OnceLock::new(),
            plugged: Mutex::default(),
            events: OnceLock::new(),
        });
        let mut ports = BTreeMap::new();
        for slot in PORTS {
            let owner: Weak<Slots> = Arc::downgrade(&slots);
            let power_off = move |asked| {
                if let Some(slots) = owner.upgrade() {
                    slots.power_off(slot, asked);
                }
            };
            let port = RootPort::new(slot, interrupts.clone(), Box::new(power_off));
            let port = port.map_err(wrong)?;
            pci.attach_port(slot, &port).map_err(wrong)?;
            ports.insert(slot, port);
        }
        let _ = slots.ports.set(ports);
        Ok(Self {
            slots,
            ram: ram.clone(),
            interrupts,
            control: control.clone(),
            cpus,
        })
    }

    /// Where it is told which disks come and go.
    pub fn tell(&self, events: &Arc<Events>) {
        let _ = self.slots.events.set(events.clone());
    }

    /// Puts an open disk behind a port.
    pub fn plug(
        &self,
        slot: u8,
        name: String,
        disk: &Disk,
        backend: Arc<dyn disk::BlockBackend>,
    ) -> Result<(), MachineError> {
        let port = self.slots.port(slot);
        let port = port.ok_or(HotPlugError::Full)?;
        let (device, mut disk) = storage::device(name, disk, backend, self.cpus, &self.control);
        disk.disk.port = Some(slot);
        disk.disk.name = Some(disk.name.clone());
        let function =
            VirtioPci::behind_port(Box::new(device), self.ram.clone(), self.interrupts.clone());
        let function = function.map_err(wrong)?;
        if self.control.is_paused() {
            function.pause();
        }
        let on_bus = function.clone() as Arc<dyn PciFunction>;
        self.slots.pci.attach(behind(slot), on_bus).map_err(wrong)?;
        let device = disk.name.clone();
        let mut plugged = self.slots.plugged.lock();
        plugged.insert(slot, Plugged { function, disk });
        port.plug();
        self.slots.note(EventKind::DeviceAttached { device });
        Ok(())
    }

    /// Opens a disk and puts it behind a free port; its name. `fixed` are the
    /// names of the disks that do not come and go.
    pub fn attach(&self, disk: &Disk, fixed: &[String]) -> Result<String, MachineError> {
        let taken: Vec<u8> = self.slots.plugged.lock().keys().copied().collect();
        let free = PORTS.into_iter().find(|slot| !taken.contains(slot));
        let slot = free.ok_or(HotPlugError::Full)?;
        let mut names = fixed.to_vec();
        names.extend(self.disks().into_iter().map(|disk| disk.name));
        let name = match &disk.name {
            Some(name) if names.contains(name) => {
                return Err(HotPlugError::Name(name.clone()).into());
            }
            Some(name) => name.clone(),
            None => free_name(&names),
        };
        let backend = storage::open(disk)?;
        self.plug(slot, name.clone(), disk, backend)?;
        Ok(name)
    }

    /// Asks the guest to give a disk up, or takes it away by `force`. Returns
    /// before it is gone. `Ok(false)`: there is no such disk here.
    pub fn detach(&self, name: &str, force: bool) -> Result<bool, HotPlugError> {
        let slot = {
            let plugged = self.slots.plugged.lock();
            let found = plugged.iter().find(|(_, p)| p.disk.name == name);
            found.map(|(slot, _)| *slot)
        };
        let Some((slot, port)) = slot.and_then(|slot| Some((slot, self.slots.port(slot)?))) else {
            return Ok(false);
        };
        if force || !port.has_power() {
            self.slots.remove(slot, port.has_power());
        } else if !port.ask_to_unplug() {
            return Err(HotPlugError::Deaf(name.into()));
        }
        Ok(true)
    }

    /// The disks behind the ports.
    pub fn disks(&self) -> Vec<DiskPort> {
        let plugged = self.slots.plugged.lock();
        plugged.values().map(|p| p.disk.clone()).collect()
    }

    /// The functions behind the ports, by their place.
    pub fn functions(&self) -> Vec<(u8, Arc<VirtioPci>)> {
        let plugged = self.slots.plugged.lock();
        let places = plugged
            .iter()
            .map(|(slot, p)| (behind(*slot), p.function.clone()));
        places.collect()
    }

    fn ports(&self) -> impl Iterator<Item = (u8, &Arc<RootPort>)> {
        let ports = self.slots.ports.get().into_iter().flatten();
        ports.map(|(slot, port)| (*slot, port))
    }

    /// As at power-on, with the disks that are there.
    pub fn reset(&self) {
        self.ports().for_each(|(_, port)| port.reset());
    }

    /// The ports' state.
    pub fn save(&self) -> Vec<(u8, RootPortState)> {
        self.ports()
            .map(|(slot, port)| (slot, port.save()))
            .collect()
    }

    /// Takes back the ports' state; ports without one are as at power-on.
    pub fn restore(&self, states: &[(u8, RootPortState)]) -> Result<(), devices::StateError> {
        for (slot, port) in self.ports() {
            match states.iter().find(|(s, _)| *s == slot) {
                Some((_, state)) => port.restore(state)?,
                None => port.reset(),
            }
        }
        Ok(())
    }
}

/// `disk` and the first number that gives a new name.
fn free_name(names: &[String]) -> String {
    (names.len()..)
        .chain(0..names.len())
        .map(|n| format!("disk{n}"))
        .find(|name| !names.contains(name))
        .unwrap_or_default()
}
