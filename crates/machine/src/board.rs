//! Everything of a machine but memory and CPUs: the chipset and the devices
//! on its PCI bus.

use std::sync::Arc;
use std::time::Duration;

use devices::chipset::{Chipset, ChipsetConfig, ChipsetState};
use devices::pci::{PciFunction, RootPortState, behind};
use devices::power::{PowerEvent, PowerSink};
use devices::serial::SerialSink;
use devices::timer::Clock;
use devices::watchdog::WatchdogState;
use disk::{BlockBackend, SECTOR};
use engine::{Bus, Engine};
use memory::GuestRam;
use net::user::{UserNetwork, UserState};
use net::vpc::{PortState, VpcNetwork};
use serde::{Deserialize, Serialize};
use virtio::console::{Console, ConsoleInput, ConsoleSink};
use virtio::rng::Rng;
use virtio::{VirtioDevice, VirtioPci, VirtioPciState};

use crate::control::{Control, Event};
use crate::description::{Description, Disk};
use crate::events::{Events, GuestEvent};
use crate::hotplug::{AttachedNic, HotPlug, HotPlugError};
use crate::nic::{self, Nic, NicNetwork, NicPort, OpenNic};
use crate::outcome::MachineError;
use crate::peripherals::Handles;
use crate::rest::Rest;
use crate::storage::{self, DiskPort};

/// Time for devices to finish when the machine ends.
const LAST_MOMENT: Duration = Duration::from_secs(10);

/// Where the guest's consoles lead.
#[derive(Clone)]
pub struct Consoles {
    /// Output of the first serial port.
    pub serial: Arc<dyn SerialSink>,
    /// Output of the virtio console; `None`: the machine has none.
    pub virtio: Option<Arc<dyn ConsoleSink>>,
}

// The PCI slots of bus 0, fixed so that a guest finds its devices where they
// were: 1 to 7 one device of each kind, 8 to 11 network cards, 12 to 23 disks,
// 24 to 31 the root ports for hot-plug.
const RNG_SLOT: u8 = 1;
const CONSOLE_SLOT: u8 = 2;
pub(crate) const FIRST_NIC_SLOT: u8 = 8;
pub(crate) const FIRST_DISK_SLOT: u8 = 12;

/// The devices of one machine.
pub(crate) struct Board {
    chipset: Chipset,
    clock: Arc<Clock>,
    /// By PCI slot, ascending.
    functions: Vec<(u8, Arc<VirtioPci>)>,
    console: Option<ConsoleInput>,
    peripherals: Handles,
    /// By PCI slot, ascending.
    nics: Vec<(u8, NicPort)>,
    /// By PCI slot, ascending.
    disks: Vec<(u8, DiskPort)>,
    hot_plug: HotPlug,
    rest: Rest,
}

/// What a machine has of the host, opened before anything is built.
pub(crate) struct Backends {
    pub disks: Vec<Arc<dyn BlockBackend>>,
    pub nics: Vec<OpenNic>,
}

impl Backends {
    /// Opens and locks the disks of a machine, and opens its networks.
    pub(crate) fn open(description: &Description) -> Result<Self, MachineError> {
        Ok(Self {
            disks: description
                .disks
                .iter()
                .map(storage::open)
                .collect::<Result<_, MachineError>>()?,
            nics: nic::open_all(&description.nics, &description.uuid)?,
        })
    }
}

/// The state of all devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardState {
    /// The fixed devices.
    pub chipset: ChipsetState,
    /// The watchdog, if there is one.
    #[serde(default)]
    pub watchdog: Option<WatchdogState>,
    /// Virtio devices by PCI slot; 32 and more: behind the port 32 slots before.
    pub virtio: Vec<(u8, VirtioPciState)>,
    /// User networks by the PCI slot of their card.
    #[serde(default)]
    pub user_networks: Vec<(u8, UserState)>,
    /// Ports in VPCs by the PCI slot of their card.
    #[serde(default)]
    pub vpc_ports: Vec<(u8, PortState)>,
    /// Root ports by PCI slot.
    #[serde(default)]
    pub ports: Vec<(u8, RootPortState)>,
}

/// Name of a network card that is there from the machine's start.
fn fixed_card(index: usize) -> String {
    format!("net{index}")
}

impl Board {
    /// Builds and wires all devices.
    pub(crate) fn new(
        description: &Description,
        ram: &Arc<GuestRam>,
        engine: &dyn Engine,
        control: &Arc<Control>,
        consoles: Consoles,
        backends: Backends,
    ) -> Result<Self, MachineError> {
        let clock = Clock::running();
        let chipset = Chipset::new(ChipsetConfig {
            interrupts: engine.interrupts(),
            power: Arc::new(Power(control.clone())),
            serial: consoles.serial,
            clock: clock.clone(),
            low_ram: ram.low_size(),
            high_ram: ram.high_size(),
            debug_exit: description.debug_exit,
        })
        .map_err(|e| MachineError::Assembly(e.to_string()))?;
        let (interrupts, cpus) = (engine.interrupts(), description.cpus);
        let hot_plug = HotPlug::new(&chipset.pci, ram, interrupts, control, cpus)?;
        let mut board = Self {
            hot_plug,
            chipset,
            clock,
            functions: Vec::new(),
            console: None,
            peripherals: Handles::default(),
            nics: Vec::new(),
            disks: Vec::new(),
            rest: Rest::default(),
        };
        let mut attach =
            |slot, device: Box<dyn VirtioDevice>| board.attach(slot, device, ram, engine);
        attach(RNG_SLOT, Box::new(Rng::new()))?;
        let mut input = None;
        if let Some(sink) = consoles.virtio {
            let (console, way_in) = Console::new(sink);
            input = Some(way_in);
            attach(CONSOLE_SLOT, Box::new(console))?;
        }
        let mut peripherals = Handles::attach(&description.peripherals, ram, &mut attach)?;
        let mut nics = Vec::new();
        let mut nics_behind_ports = Vec::new();
        let mut slots = FIRST_NIC_SLOT..;
        for (open, nic) in backends.nics.into_iter().zip(&description.nics) {
            let Some(slot) = slots.next().filter(|_| nic.port.is_none()) else {
                nics_behind_ports.push((nic, open));
                continue;
            };
            attach(slot, Box::new(open.device))?;
            nics.push((slot, open.port));
        }
        let mut disks = Vec::new();
        let mut behind_ports = Vec::new();
        let mut slots = FIRST_DISK_SLOT..;
        let names = storage::names(&description.disks);
        let described = names.into_iter().zip(&description.disks);
        for (backend, (name, disk)) in backends.disks.into_iter().zip(described) {
            let Some(slot) = slots.next().filter(|_| disk.port.is_none()) else {
                behind_ports.push((backend, name, disk));
                continue;
            };
            let (device, port) = storage::device(name, disk, backend, description.cpus, control);
            attach(slot, Box::new(device))?;
            disks.push((slot, port));
        }
        board.console = input;
        if description.peripherals.watchdog.is_some() {
            let (timers, bus) = (&board.chipset.timers, &board.chipset.bus);
            peripherals.add_watchdog(timers, &bus.pio, control)?;
        }
        board.peripherals = peripherals;
        board.nics = nics;
        board.disks = disks;
        for (backend, name, disk) in behind_ports {
            let slot = disk.port.unwrap_or_default();
            board.hot_plug.plug(slot, name, disk, backend)?;
        }
        for (nic, open) in nics_behind_ports {
            board.hot_plug.plug_nic(nic, open)?;
        }
        board.hot_plug.reset();
        Ok(board)
    }

    fn attach(
        &mut self,
        slot: u8,
        device: Box<dyn VirtioDevice>,
        ram: &Arc<GuestRam>,
        engine: &dyn Engine,
    ) -> Result<(), MachineError> {
        let wrong = |e: devices::pci::PciError| MachineError::Assembly(e.to_string());
        let function = VirtioPci::new(device, ram.clone(), engine.interrupts()).map_err(wrong)?;
        let on_bus = function.clone() as Arc<dyn PciFunction>;
        self.chipset.pci.attach(slot, on_bus).map_err(wrong)?;
        self.functions.push((slot, function));
        Ok(())
    }

    /// For the engine.
    pub(crate) fn bus(&self) -> Arc<dyn Bus> {
        self.chipset.bus.clone()
    }

    /// All virtio functions by their place, ascending.
    fn all_functions(&self) -> Vec<(u8, Arc<VirtioPci>)> {
        let mut all = self.functions.clone();
        all.extend(self.hot_plug.functions());
        all
    }

    /// All devices as after power-on; no vCPU runs.
    pub(crate) fn reset(&self) {
        for (_, function) in self.all_functions() {
            function.reset();
        }
        self.chipset.reset();
        self.hot_plug.reset();
        self.peripherals.reset();
        self.chipset.pci.remap();
    }

    /// Stops the guest's clock, and with it all timers.
    pub(crate) fn pause_time(&self) {
        self.clock.pause();
    }

    /// Ends [`Self::pause_time`].
    pub(crate) fn resume_time(&self) {
        self.clock.resume();
    }

    /// Has all virtio devices finish what is in flight and begin nothing new.
    /// The guest may run: what it asks for waits in its queues. If one does
    /// not come to rest within `patience`, they go on.
    pub(crate) fn pause_devices(&self, patience: Duration) -> Result<(), MachineError> {
        self.rest.begin(&self.all_functions(), patience, false)
    }

    /// Ends [`Self::pause_devices`].
    pub(crate) fn resume_devices(&self) {
        self.rest.end(&self.all_functions());
    }

    /// The machine ends: who waits in [`Self::pause_devices`] waits no more.
    pub(crate) fn hurry(&self) {
        self.rest.hurry();
    }

    /// Finishes what is in flight; nothing touches guest memory afterwards,
    /// but a device that waits for the host for too long.
    pub(crate) fn shut_down(&self) {
        self.peripherals.end();
        self.pause_time();
        // It was logged; the process need not wait for it.
        let _ = self.rest.begin(&self.all_functions(), LAST_MOMENT, true);
        for (_, nic) in self.all_nics() {
            nic.close();
        }
        for disk in self.disks() {
            disk.close();
        }
    }

    pub(crate) fn save(&self) -> BoardState {
        let functions = self.all_functions();
        let virtio = functions.iter().map(|(slot, f)| (*slot, f.save()));
        BoardState {
            chipset: self.chipset.save(),
            watchdog: self.peripherals.save_watchdog(),
            virtio: virtio.collect(),
            user_networks: self
                .user_networks()
                .map(|(slot, network)| (slot, network.save()))
                .collect(),
            vpc_ports: self
                .vpc_ports()
                .map(|(slot, port)| (slot, port.save()))
                .collect(),
            ports: self.hot_plug.save(),
        }
    }

    /// All network cards by their place.
    fn all_nics(&self) -> impl Iterator<Item = (u8, NicPort)> {
        let attached = self.hot_plug.nics().into_iter();
        let attached = attached.map(|a| (behind(a.nic.port.unwrap_or_default()), a.port));
        self.nics.iter().cloned().chain(attached)
    }

    /// All network cards and what they are plugged into; `described` are those
    /// that do not come and go, which have the same order here.
    pub(crate) fn cards(&self, described: &[Nic]) -> Vec<(NicNetwork, NicPort)> {
        let fixed = described.iter().filter(|nic| nic.port.is_none());
        let fixed = fixed.map(|nic| nic.network.clone());
        let attached = self.hot_plug.nics().into_iter();
        let attached = attached.map(|a| (a.nic.network, a.port));
        fixed.zip(self.nics().cloned()).chain(attached).collect()
    }

    fn user_networks(&self) -> impl Iterator<Item = (u8, Arc<UserNetwork>)> {
        let nics = self.all_nics();
        nics.filter_map(|(slot, port)| Some((slot, port.user?)))
    }

    fn vpc_ports(&self) -> impl Iterator<Item = (u8, &Arc<VpcNetwork>)> {
        let nics = self.nics.iter();
        nics.filter_map(|(slot, port)| Some((*slot, port.vpc.as_ref()?)))
    }

    /// The network cards that do not come and go.
    pub(crate) fn nics(&self) -> impl Iterator<Item = &NicPort> {
        self.nics.iter().map(|(_, port)| port)
    }

    /// The network cards that were attached.
    pub(crate) fn attached_nics(&self) -> Vec<AttachedNic> {
        self.hot_plug.nics()
    }

    /// The disks.
    pub(crate) fn disks(&self) -> Vec<DiskPort> {
        let fixed = self.disks.iter().map(|(_, port)| port.clone());
        fixed.chain(self.hot_plug.disks()).collect()
    }

    /// Where it is told which disks come and go.
    pub(crate) fn tell(&self, events: &Arc<Events>) {
        self.hot_plug.tell(events);
    }

    /// Attaches a disk; its name.
    pub(crate) fn attach_disk(&self, disk: &Disk) -> Result<String, MachineError> {
        let fixed: Vec<String> = self.disks.iter().map(|(_, d)| d.name.clone()).collect();
        self.hot_plug.attach(disk, &fixed)
    }

    /// Has a disk go; see [`HotPlug::detach`].
    pub(crate) fn detach_disk(&self, name: &str, force: bool) -> Result<(), MachineError> {
        if self.hot_plug.detach(name, force)? {
            return Ok(());
        }
        let fixed = self.disks.iter().any(|(_, disk)| disk.name == name);
        let name = name.to_owned();
        Err(match fixed {
            true => HotPlugError::Fixed(name).into(),
            false => HotPlugError::NoDisk(name).into(),
        })
    }

    /// Attaches a network card; its name.
    pub(crate) fn attach_nic(&self, nic: &Nic, uuid: &[u8; 16]) -> Result<String, MachineError> {
        let fixed: Vec<String> = (0..self.nics.len()).map(fixed_card).collect();
        self.hot_plug.attach_nic(nic, &fixed, uuid)
    }

    /// All network cards by their names.
    pub(crate) fn named_cards(&self) -> Vec<(String, NicPort)> {
        let fixed = self.nics().cloned().enumerate();
        let fixed = fixed.map(|(n, port)| (fixed_card(n), port));
        let attached = self.hot_plug.nics().into_iter();
        let attached = attached.map(|a| (a.name().to_owned(), a.port));
        fixed.chain(attached).collect()
    }

    /// Plugs the cable of a network card in or pulls it out.
    pub(crate) fn set_link(&self, name: &str, up: bool) -> Result<(), MachineError> {
        let cards = self.named_cards();
        match cards.iter().find(|(known, _)| known == name) {
            Some((_, port)) if port.vpc.is_some() => Err(HotPlugError::LinkOfVpc(name.into()))?,
            Some((_, port)) => port.card.set_plugged(up),
            None => {
                let names: Vec<String> = cards.into_iter().map(|(name, _)| name).collect();
                Err(HotPlugError::NoCard(name.into(), names.join(", ")))?;
            }
        }
        Ok(())
    }

    /// Has a network card go; see [`HotPlug::detach`].
    pub(crate) fn detach_nic(&self, name: &str, force: bool) -> Result<(), MachineError> {
        match self.hot_plug.detach_nic(name, force)? {
            true => Ok(()),
            false => Err(HotPlugError::NoNic(name.into()).into()),
        }
    }

    /// Makes a disk larger, to this many bytes.
    pub(crate) fn grow_disk(&self, name: &str, size: u64) -> Result<(), MachineError> {
        let disks = self.disks();
        let disk = disks.iter().find(|disk| disk.name == name);
        let disk = disk.ok_or_else(|| HotPlugError::NoDisk(name.into()))?;
        Ok(disk.control.grow(size.div_ceil(SECTOR))?)
    }

    /// Takes back a state; the devices stay paused.
    pub(crate) fn restore(&self, state: &BoardState) -> Result<(), MachineError> {
        let invalid = |e: devices::StateError| MachineError::State(e.to_string());
        let slots =
            |s: &[(u8, VirtioPciState)]| s.iter().map(|(slot, _)| *slot).collect::<Vec<_>>();
        let functions = self.all_functions();
        let own: Vec<u8> = functions.iter().map(|(slot, _)| *slot).collect();
        if slots(&state.virtio) != own {
            return Err(MachineError::State(format!(
                "it has devices in the PCI slots {:?}, and this machine in {own:?}",
                slots(&state.virtio)
            )));
        }
        self.chipset.restore(&state.chipset).map_err(invalid)?;
        self.peripherals.restore_watchdog(state.watchdog.as_ref());
        self.hot_plug.restore(&state.ports).map_err(invalid)?;
        for ((_, function), (_, saved)) in functions.iter().zip(&state.virtio) {
            function.restore(saved).map_err(invalid)?;
        }
        for (slot, network) in self.user_networks() {
            let saved = state.user_networks.iter().find(|(s, _)| *s == slot);
            if let Some((_, saved)) = saved {
                network
                    .restore(saved.clone())
                    .map_err(|e| MachineError::State(e.to_string()))?;
            }
        }
        for (slot, port) in self.vpc_ports() {
            let saved = state.vpc_ports.iter().find(|(s, _)| *s == slot);
            if let Some((_, saved)) = saved {
                port.restore(saved.clone())
                    .map_err(|e| MachineError::State(e.to_string()))?;
            }
        }
        self.chipset.pci.remap();
        Ok(())
    }

    /// Tells the guest that its generation id has changed.
    pub(crate) fn generation_changed(&self) {
        self.chipset.irq.line(arch::layout::GENERATION_GSI).pulse();
    }

    pub(crate) fn press_power_button(&self) {
        self.chipset.acpi_pm.press_power_button();
    }

    pub(crate) fn serial_input(&self, bytes: &[u8]) -> usize {
        self.chipset.serial.push_input(bytes)
    }

    /// The host's ends of the devices of [`crate::Peripherals`].
    pub(crate) fn peripherals(&self) -> &Handles {
        &self.peripherals
    }

    /// The input of the virtio console, if there is one.
    pub(crate) fn console(&self) -> Option<&ConsoleInput> {
        self.console.as_ref()
    }
}

/// What the guest asks of the chipset becomes an event of the machine.
struct Power(Arc<Control>);

impl PowerSink for Power {
    fn power_event(&self, event: PowerEvent) {
        self.0.post(match event {
            PowerEvent::Panicked => Event::Guest(GuestEvent::Panicked),
            PowerEvent::CrashLoaded => Event::Guest(GuestEvent::CrashLoaded),
            PowerEvent::PowerOff => Event::PowerOff,
            PowerEvent::Reset => Event::Reset,
            PowerEvent::DebugExit(value) => Event::DebugExit(value),
        });
    }
}
