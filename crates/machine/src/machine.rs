//! One machine: assembly, life and death.
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arch::CpuState;
use arch::cpuid::CpuChoice;
use arch::layout::LOW_RAM_LIMIT;
use engine::{Engine, EngineError, VcpuStats};
use machine_protocol::{Event as Happened, EventKind};
use memory::GuestRam;
use parking_lot::{Condvar, Mutex};
use virtio::balloon::BalloonControl;
use virtio::console::ConsoleInput;

use crate::board::{Backends, Board, Consoles};
use crate::control::{Control, Event};
use crate::description::{Description, Disk};
use crate::events::{Events, Listener};
use crate::guest_update::GuestUpdate;
use crate::hotplug::AttachedNic;
use crate::nic::{Nic, NicPort};
use crate::outcome::{MachineError, Outcome};
use crate::snapshot::{self, Ledger, Snapshot, SnapshotError, SnapshotMade};
use crate::source::Source;
use crate::state::{MachineState, STATE_VERSION};
use crate::storage::DiskPort;
use crate::terminal::Terminal;

/// Makes the engine of a machine with this RAM, number of vCPUs and CPU.
pub type MakeEngine<'a> =
    &'a dyn Fn(Arc<GuestRam>, u32, CpuChoice) -> Result<Arc<dyn Engine>, EngineError>;

mod inner;

use inner::Parts;

/// How long clients of the control socket may take to hear of the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Assembled, not yet started.
    Created,
    /// Its vCPUs run, or halt by themselves.
    Running,
    /// Paused by [`Machine::pause`].
    Paused,
    /// Its vCPU threads have ended.
    Ended,
}

/// A virtual machine. Dropping it ends it.
pub struct Machine {
    inner: Arc<Inner>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

pub(crate) struct Inner {
    description: Description,
    ram: Arc<GuestRam>,
    engine: Arc<dyn Engine>,
    source: Source,
    board: Board,
    control: Arc<Control>,
    /// The vCPUs as they were made.
    reset_states: Vec<CpuState>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One reboot, pause, resume, save or restore at a time.
    operation: Mutex<()>,
    /// For snapshots, one at a time. Taken before `operation`.
    ledger: Mutex<Ledger>,
    started: OnceLock<Instant>,
    events: Arc<Events>,
    terminal: Arc<Terminal>,
    /// What a restored guest was told, in words.
    guest_update: Mutex<Option<String>>,
    /// Control sockets are served while these live.
    sockets: Mutex<Vec<UnixStream>>,
    outcome: Mutex<Option<Arc<Outcome>>>,
    ended: Condvar,
}

impl Machine {
    /// Assembles a machine and loads its kernel; nothing runs yet.
    ///
    /// # Errors
    /// [`MachineError`]: whatever file, host resource or value is unfit.
    pub fn new(
        description: Description,
        make_engine: MakeEngine<'_>,
        consoles: Consoles,
    ) -> Result<Self, MachineError> {
        description.check()?;
        let backends = Backends::open(&description)?;
        let source = Source::open(&description, &backends.disks)?;
        let ram = GuestRam::new(description.memory, LOW_RAM_LIMIT)?;
        let ledger = Ledger::new(ram.pages());
        let parts = Parts {
            description,
            backends,
            source,
            ram,
            ledger,
            limit: None,
        };
        let (inner, vcpus) = Inner::assemble(parts, make_engine, consoles)?;
        let states = inner.load()?;
        inner.boot_vcpus(vcpus, &states)?;
        Ok(Self::of(inner))
    }

    /// Assembles the machine of a snapshot, paused where that was taken:
    /// [`Self::start`] and [`Self::resume`] let it go on. `description` is the
    /// snapshot's, but for what leads to the host: the files of its disks
    /// (writable ones must be the machine's own) and its networks' places. The
    /// guest learns by a new generation id that it was restored.
    ///
    /// # Errors
    /// [`MachineError`]: whatever file, host resource or value is unfit.
    pub fn from_snapshot(
        snapshot: &Snapshot,
        description: Description,
        make_engine: MakeEngine<'_>,
        consoles: Consoles,
    ) -> Result<Self, MachineError> {
        description.check()?;
        snapshot.fits(&description)?;
        let state = snapshot.state()?;
        let backends = Backends::open(&description)?;
        let source = Source::later(&description, &backends.disks)?;
        let parts = Parts {
            source,
            ram: snapshot.ram(LOW_RAM_LIMIT)?,
            ledger: snapshot.ledger(),
            limit: Some(snapshot.manifest().cpu.features),
            backends,
            description,
        };
        let (inner, vcpus) = Inner::assemble(parts, make_engine, consoles)?;
        snapshot.fits_cpu(&inner.engine.cpu())?;
        inner.boot_vcpus(vcpus, &inner.reset_states)?;
        let machine = Self::of(inner);
        machine.pause();
        machine.restore(&state)?;
        // A clone's may have waited for its guest when the snapshot was taken.
        for (_, port) in machine.inner.cards() {
            if port.vpc.is_none() {
                port.card.set_plugged(true);
            }
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| MachineError::State(e.to_string()))?;
        machine.set_generation_id(id)?;
        Ok(machine)
    }

    fn of(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            supervisor: Mutex::default(),
        }
    }

    /// Starts the guest; once. After `limit`, if given, the machine ends with
    /// [`Outcome::TimedOut`].
    ///
    /// # Errors
    /// [`MachineError::Host`]: no thread.
    pub fn start(&self, limit: Option<Duration>) -> Result<(), MachineError> {
        let mut supervisor = self.supervisor.lock();
        if supervisor.is_some() {
            return Ok(());
        }
        let deadline = limit.and_then(|l| Instant::now().checked_add(l));
        let inner = self.inner.clone();
        let thread = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || inner.supervise(deadline))
            .map_err(|source| MachineError::Host {
                what: "thread for the machine",
                source,
            })?;
        *supervisor = Some(thread);
        let _ = self.inner.started.set(Instant::now());
        self.inner.events.note(EventKind::Started);
        self.inner.control.release();
        Ok(())
    }

    /// Tells the guest of a restored machine what it cannot know, through its
    /// agent and on a thread of its own, when it runs. For a machine that was
    /// not resumed yet. What came of it is an event.
    pub fn update_guest(&self, update: GuestUpdate) {
        crate::guest_update::begin(&self.inner, update);
    }

    /// Waits until the machine has ended, and says how.
    #[must_use]
    pub fn wait(&self) -> Arc<Outcome> {
        let mut outcome = self.inner.outcome.lock();
        loop {
            if let Some(o) = &*outcome {
                return o.clone();
            }
            self.inner.ended.wait(&mut outcome);
        }
    }

    /// As [`Self::wait`], for at most this long.
    #[must_use]
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<Outcome>> {
        let mut outcome = self.inner.outcome.lock();
        if outcome.is_none() {
            self.inner
                .ended
                .wait_while_for(&mut outcome, |o| o.is_none(), limit);
        }
        outcome.clone()
    }

    /// What the machine is doing.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        if self.inner.outcome.lock().is_some() {
            RunState::Ended
        } else if self.supervisor.lock().is_none() {
            RunState::Created
        } else if self.inner.control.is_paused() {
            RunState::Paused
        } else {
            RunState::Running
        }
    }

    /// Stops all vCPUs, devices and the guest's clock; returns when they stand,
    /// or, after some seconds and with a warning in the log, if a device cannot
    /// be stopped: then all go on.
    pub fn pause(&self) {
        if let Err(error) = self.inner.pause() {
            tracing::warn!(%error, "the machine was to be paused");
        }
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) {
        self.inner.resume();
    }

    /// Ends the machine at once, as if its power were cut.
    pub fn stop(&self) {
        self.inner.board.hurry();
        self.inner.control.post(Event::Stop);
        if self.supervisor.lock().is_none() {
            self.inner.finish(Outcome::Stopped);
        }
    }

    /// Resets the machine, as the guest itself could.
    pub fn reset(&self) {
        self.inner.control.post(Event::Reset);
    }

    /// Presses the ACPI power button: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        self.inner.board.press_power_button();
    }

    /// Raises a non-maskable interrupt on the first vCPU.
    pub fn nmi(&self) {
        self.inner.control.nmi(0);
    }

    /// Gives input to the first serial port; how many bytes it took. After
    /// fewer than all, the sink's `input_ready` says when to go on.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.inner.board.serial_input(bytes)
    }

    /// The input and the size of the virtio console, if the machine has one.
    #[must_use]
    pub fn console(&self) -> Option<&ConsoleInput> {
        self.inner.board.console()
    }

    /// What happened to the machine since it was made, the last few hundred
    /// events.
    #[must_use]
    pub fn events(&self) -> Vec<Happened> {
        self.inner.events.after(0).events
    }

    /// Has each event of the guest told; in place of who was told before.
    pub fn listen(&self, listener: Listener) {
        self.inner.events.listen(listener);
    }

    /// The balloon, if the machine has one.
    #[must_use]
    pub fn balloon(&self) -> Option<&BalloonControl> {
        self.inner.board.peripherals().balloon.as_ref()
    }

    /// Gives the machine another generation id (a random UUID), by which the
    /// guest knows that it is not, or not alone, what it was: for a machine
    /// that was restored or cloned. The guest is told when it runs.
    ///
    /// # Errors
    /// [`MachineError::Memory`] if the machine has no RAM at that place.
    pub fn set_generation_id(&self, id: [u8; 16]) -> Result<(), MachineError> {
        self.inner.ram.write(arch::layout::GENERATION_ID, &id)?;
        self.inner.board.generation_changed();
        Ok(())
    }

    /// Offers the guest's agent to local clients at a Unix socket (crate
    /// `agent` has the client). Nothing happens if the machine has no channel.
    ///
    /// # Errors
    /// [`MachineError::Host`]: no thread.
    pub fn serve_agent(&self, listener: UnixListener) -> Result<(), MachineError> {
        match &self.inner.board.peripherals().agent {
            Some(agent) => {
                let (balloon, memory) = (self.balloon().cloned(), self.inner.ram.size());
                let events = Arc::clone(&self.inner.events);
                let local = move |command: &str, line: &[u8]| {
                    crate::agent::local(balloon.as_ref(), memory, &events, command, line)
                };
                let opened = agent.serve(listener, Box::new(local))?;
                self.inner.sockets.lock().push(opened);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Serves `machine-protocol` to local clients at a Unix socket, until the
    /// machine ends.
    ///
    /// # Errors
    /// [`MachineError::Host`]: no thread.
    pub fn serve_control(&self, listener: UnixListener) -> Result<(), MachineError> {
        let opened = crate::control_socket::open(listener, &self.inner);
        let opened = opened.map_err(|source| MachineError::Host {
            what: "thread for the control socket",
            source,
        })?;
        self.inner.sockets.lock().push(opened);
        Ok(())
    }

    /// Attaches a disk while the machine runs; its name. The guest takes it
    /// when it likes.
    ///
    /// # Errors
    /// [`MachineError::HotPlug`], [`MachineError::Disk`],
    /// [`MachineError::Description`].
    pub fn attach_disk(&self, disk: &Disk) -> Result<String, MachineError> {
        self.inner.attach_disk(disk)
    }

    /// Asks the guest to give up a disk that was attached, or with `force`
    /// takes it away, as if it were pulled out. It is gone when it is no longer
    /// among [`Self::disks`].
    ///
    /// # Errors
    /// [`MachineError::HotPlug`].
    pub fn detach_disk(&self, name: &str, force: bool) -> Result<(), MachineError> {
        self.inner.detach_disk(name, force)
    }

    /// Attaches a network card while the machine runs; its name. The guest
    /// takes it when it likes.
    ///
    /// # Errors
    /// [`MachineError::HotPlug`], [`MachineError::Nic`],
    /// [`MachineError::Description`].
    pub fn attach_nic(&self, nic: &Nic) -> Result<String, MachineError> {
        self.inner.attach_nic(nic)
    }

    /// Asks the guest to give up a network card that was attached, or with
    /// `force` takes it away. It is gone when it is no longer among
    /// [`Self::attached_nics`].
    ///
    /// # Errors
    /// [`MachineError::HotPlug`].
    pub fn detach_nic(&self, name: &str, force: bool) -> Result<(), MachineError> {
        self.inner.detach_nic(name, force)
    }

    /// The network cards that were attached while the machine ran.
    #[must_use]
    pub fn attached_nics(&self) -> Vec<AttachedNic> {
        self.inner.board.attached_nics()
    }

    /// Plugs the cable of a network card in or pulls it out; the guest sees
    /// whether there is a carrier (virtio 1.2, 5.1.4: VIRTIO_NET_S_LINK_UP).
    /// Cards of the machine's start are named `net0`, `net1` …
    ///
    /// # Errors
    /// [`MachineError::HotPlug`].
    pub fn set_link(&self, nic: &str, up: bool) -> Result<(), MachineError> {
        self.inner.set_link(nic, up)
    }

    /// Makes a disk larger, to `size` bytes, and tells the guest.
    ///
    /// # Errors
    /// [`MachineError::HotPlug`], [`MachineError::Disk`].
    pub fn grow_disk(&self, name: &str, size: u64) -> Result<(), MachineError> {
        self.inner.grow_disk(name, size)
    }

    /// The disks, in the order of their PCI slots.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskPort> {
        self.inner.board.disks()
    }

    /// The network cards that do not come and go, in the order of their
    /// description.
    pub fn nics(&self) -> impl Iterator<Item = &NicPort> {
        self.inner.board.nics()
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.inner.description.cpus
    }

    /// `soft` or `kvm`.
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        self.inner.engine.name()
    }

    /// What the machine was made from.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.inner.description
    }

    /// The registers of a vCPU, which stands still only while they are read.
    ///
    /// # Errors
    /// [`MachineError::Ended`], [`MachineError::Engine`].
    pub fn registers(&self, vcpu: u32) -> Result<CpuState, MachineError> {
        let state = self.inner.control.on_vcpu(vcpu, |v| v.save());
        Ok(state.ok_or(MachineError::Ended)??)
    }

    /// The counters of all vCPUs.
    ///
    /// # Errors
    /// [`MachineError::Ended`].
    pub fn stats(&self) -> Result<Vec<VcpuStats>, MachineError> {
        (0..self.cpus())
            .map(|i| self.inner.control.on_vcpu(i, |v| v.stats()))
            .collect::<Option<_>>()
            .ok_or(MachineError::Ended)
    }

    /// Reads guest-physical memory.
    ///
    /// # Errors
    /// [`MachineError::Memory`] if it is not RAM.
    pub fn read_memory(&self, gpa: u64, out: &mut [u8]) -> Result<(), MachineError> {
        Ok(self.inner.ram.read(gpa, out)?)
    }

    /// Writes guest-physical memory, as a device would.
    ///
    /// # Errors
    /// [`MachineError::Memory`] if it is not RAM.
    pub fn write_memory(&self, gpa: u64, data: &[u8]) -> Result<(), MachineError> {
        Ok(self.inner.ram.write(gpa, data)?)
    }

    /// Serves debuggers that speak GDB's remote protocol, one after the other,
    /// until the machine ends. With `wait` no vCPU runs before one has come.
    ///
    /// # Errors
    /// [`MachineError::Host`]: no thread.
    pub fn serve_gdb(&self, listener: TcpListener, wait: bool) -> Result<(), MachineError> {
        if wait {
            self.inner.control.attach_debugger();
        }
        let machine = Arc::downgrade(&self.inner);
        let thread = std::thread::Builder::new().name("gdb".into());
        let spawned = thread.spawn(move || crate::gdb::serve(&listener, &machine));
        spawned.map(drop).map_err(|source| MachineError::Host {
            what: "thread for the debugger",
            source,
        })
    }

    /// Makes a snapshot in a new directory, of which the running guest notices
    /// only that it stands for some milliseconds. `incremental`: only what has
    /// changed since the last one, or since the restore.
    ///
    /// # Errors
    /// [`SnapshotError`]; the machine goes on.
    pub fn snapshot(
        &self,
        directory: &Path,
        incremental: bool,
    ) -> Result<SnapshotMade, SnapshotError> {
        snapshot::create(&self.inner, directory, incremental)
    }

    /// The state of all vCPUs and devices. The machine must be paused, so that
    /// it fits the memory.
    ///
    /// # Errors
    /// [`MachineError::State`] if it is not paused.
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let _one = self.inner.operation.lock();
        self.inner.must_be_paused()?;
        self.inner.save_locked()
    }

    /// Takes back a state; memory is the caller's. The machine must be paused.
    ///
    /// # Errors
    /// [`MachineError::State`], [`MachineError::Engine`].
    pub fn restore(&self, state: &MachineState) -> Result<(), MachineError> {
        let _one = self.inner.operation.lock();
        self.inner.must_be_paused()?;
        if state.version != STATE_VERSION || state.vcpus.len() != self.cpus() as usize {
            return Err(MachineError::State(format!(
                "it has version {} and {} CPUs; this machine reads version {STATE_VERSION} and has {}",
                state.version,
                state.vcpus.len(),
                self.cpus()
            )));
        }
        self.inner.board.restore(&state.devices)?;
        self.inner.restore_vcpus(state.vcpus.clone())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.supervisor.lock().take() {
            // A panic there was reported already.
            let _ = thread.join();
        }
    }
}
