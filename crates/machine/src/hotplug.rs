//! Disks and network cards that come and go while the machine runs: behind the root ports in the
//! slots 24 to 31 of bus 0, by PCI Express native hot-plug.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use devices::pci::{PciFunction, PciRoot, RootPort, RootPortState, behind};
use engine::InterruptSink;
use machine_protocol::EventKind;
use memory::GuestRam;
use parking_lot::Mutex;
use virtio::{VirtioDevice, VirtioPci};

use crate::control::Control;
use crate::description::Disk;
use crate::events::Events;
use crate::nic::{self, Nic, NicNetwork, NicPort, OpenNic};
use crate::outcome::MachineError;
use crate::storage::{self, DiskPort};

/// Slots of bus 0 with root ports.
pub(crate) const PORTS: std::ops::RangeInclusive<u8> = 24..=31;

/// Why a device cannot be attached or detached, or a disk not be grown.
#[derive(Debug, thiserror::Error)]
pub enum HotPlugError {
    /// All ports are taken.
    #[error("{} disks and network cards were attached already, and there is no place for more; detach one first", PORTS.count())]
    Full,
    /// Another device has this name.
    #[error("the machine has a device {0:?} already; give this one another name with name=")]
    Name(String),
    /// No such disk.
    #[error("the machine has no disk {0:?}; `holm show` lists them")]
    NoDisk(String),
    /// No such network card.
    #[error("no network card {0:?} was attached to the machine; `holm show` lists them")]
    NoNic(String),
    /// No such network card, and which there are.
    #[error("the machine has no network card {0:?}; it has: {1}")]
    NoCard(String, String),
    /// The link of a card in a VPC.
    #[error("the network card {0:?} is in a VPC, whose port says whether its link is up")]
    LinkOfVpc(String),
    /// A card in a VPC.
    #[error("a port in a VPC cannot be attached to a running machine; start the machine with it")]
    Vpc,
    /// It has been there since the machine started.
    #[error("disk {0:?} has been there since the machine started; only attached disks can go")]
    Fixed(String),
    /// The guest does not hear the request.
    #[error(
        "the guest does not listen to its hot-plug slots (it is starting, or has no driver \
         pciehp), so {0:?} stays; --force takes it away without asking"
    )]
    Deaf(String),
}

struct Plugged {
    function: Arc<VirtioPci>,
    device: Device,
}

/// A network card behind a port.
#[derive(Clone)]
pub struct AttachedNic {
    /// How it was described, with its name and port.
    pub nic: Nic,
    /// The host's side.
    pub port: NicPort,
    /// Whether a driver in the guest uses it.
    pub in_use: bool,
}

impl AttachedNic {
    /// Its name in this machine.
    pub fn name(&self) -> &str {
        self.nic.name.as_deref().unwrap_or_default()
    }
}

/// What can be behind a port.
enum Device {
    Disk(DiskPort),
    Nic(Box<AttachedNic>),
}

impl Device {
    fn name(&self) -> &str {
        match self {
            Self::Disk(disk) => &disk.name,
            Self::Nic(nic) => nic.name(),
        }
    }

    /// Leaves what it has of the host.
    fn close(&self) {
        if let Self::Nic(nic) = self {
            nic.port.close();
        }
    }
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
            gone.device.close();
            let device = gone.device.name().to_owned();
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
        let (device, mut disk) = storage::device(name, disk, backend, self.cpus, &self.control);
        disk.disk.port = Some(slot);
        disk.disk.name = Some(disk.name.clone());
        self.put(slot, Box::new(device), Device::Disk(disk))
    }

    /// Puts an open network card behind the port that `nic` names.
    pub fn plug_nic(&self, nic: &Nic, open: OpenNic) -> Result<(), MachineError> {
        let attached = AttachedNic {
            nic: nic.clone(),
            port: open.port,
            in_use: false,
        };
        let device = Device::Nic(Box::new(attached));
        self.put(nic.port.unwrap_or_default(), Box::new(open.device), device)
    }

    fn put(
        &self,
        slot: u8,
        virtio: Box<dyn VirtioDevice>,
        device: Device,
    ) -> Result<(), MachineError> {
        let port = self.slots.port(slot).ok_or(HotPlugError::Full)?;
        let (ram, interrupts) = (self.ram.clone(), self.interrupts.clone());
        let function = VirtioPci::behind_port(virtio, ram, interrupts).map_err(wrong)?;
        if self.control.is_paused() {
            function.pause();
        }
        let on_bus = function.clone() as Arc<dyn PciFunction>;
        self.slots.pci.attach(behind(slot), on_bus).map_err(wrong)?;
        let name = device.name().to_owned();
        let mut plugged = self.slots.plugged.lock();
        plugged.insert(slot, Plugged { function, device });
        port.plug();
        self.slots.note(EventKind::DeviceAttached { device: name });
        Ok(())
    }

    /// A free port, and the name of a device for it: its own, or `kind` and a
    /// number. `fixed` are the names of devices that do not come and go.
    fn place(
        &self,
        own: Option<&String>,
        kind: &str,
        fixed: &[String],
    ) -> Result<(u8, String), HotPlugError> {
        let plugged = self.slots.plugged.lock();
        let free = PORTS.into_iter().find(|slot| !plugged.contains_key(slot));
        let slot = free.ok_or(HotPlugError::Full)?;
        let mut names = fixed.to_vec();
        names.extend(plugged.values().map(|p| p.device.name().to_owned()));
        match own {
            Some(name) if names.contains(name) => Err(HotPlugError::Name(name.clone())),
            Some(name) => Ok((slot, name.clone())),
            None => Ok((slot, free_name(kind, fixed.len(), &names))),
        }
    }

    /// Opens a disk and puts it behind a free port; its name. `fixed` are the
    /// names of the disks that do not come and go.
    pub fn attach(&self, disk: &Disk, fixed: &[String]) -> Result<String, MachineError> {
        let (slot, name) = self.place(disk.name.as_ref(), "disk", fixed)?;
        let backend = storage::open(disk)?;
        self.plug(slot, name.clone(), disk, backend)?;
        Ok(name)
    }

    /// Opens the network of a card and puts it behind a free port; its name.
    /// `fixed` are the names of the cards that do not come and go.
    pub fn attach_nic(
        &self,
        nic: &Nic,
        fixed: &[String],
        uuid: &[u8; 16],
    ) -> Result<String, MachineError> {
        if matches!(nic.network, NicNetwork::Vpc(_)) {
            return Err(HotPlugError::Vpc.into());
        }
        let (slot, name) = self.place(nic.name.as_ref(), "net", fixed)?;
        let nic = Nic {
            name: Some(name.clone()),
            port: Some(slot),
            ..nic.clone()
        };
        let open = nic::open_behind(slot, &nic, uuid)?;
        self.plug_nic(&nic, open)?;
        Ok(name)
    }

    /// Asks the guest to give a disk up, or takes it away by `force`. Returns
    /// before it is gone. `Ok(false)`: there is no such disk here.
    pub fn detach(&self, name: &str, force: bool) -> Result<bool, HotPlugError> {
        self.take_out(name, force, |device| matches!(device, Device::Disk(_)))
    }

    /// As [`Self::detach`], for a network card.
    pub fn detach_nic(&self, name: &str, force: bool) -> Result<bool, HotPlugError> {
        self.take_out(name, force, |device| matches!(device, Device::Nic(_)))
    }

    fn take_out(
        &self,
        name: &str,
        force: bool,
        is_meant: impl Fn(&Device) -> bool,
    ) -> Result<bool, HotPlugError> {
        let slot = {
            let plugged = self.slots.plugged.lock();
            let mut all = plugged.iter().map(|(slot, p)| (*slot, &p.device));
            let found = all.find(|(_, device)| device.name() == name && is_meant(device));
            found.map(|(slot, _)| slot)
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
        let disks = plugged.values().filter_map(|p| match &p.device {
            Device::Disk(disk) => Some(disk.clone()),
            Device::Nic(_) => None,
        });
        disks.collect()
    }

    /// The network cards behind the ports.
    pub fn nics(&self) -> Vec<AttachedNic> {
        let plugged = self.slots.plugged.lock();
        let nics = plugged.values().filter_map(|p| match &p.device {
            Device::Disk(_) => None,
            Device::Nic(nic) => Some(AttachedNic {
                in_use: p.function.is_in_use(),
                ..(**nic).clone()
            }),
        });
        nics.collect()
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

/// `kind` and the first number from `first` on that gives a new name.
fn free_name(kind: &str, first: usize, names: &[String]) -> String {
    (first..)
        .map(|n| format!("{kind}{n}"))
        .find(|name| !names.contains(name))
        .unwrap_or_default()
}
