//! The thin layer between the command line and crate `machine`.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use arch::cpuid::CpuModel;
use boot::BootError;
use devices::serial::SerialSink;
use engine::EngineError;
use engine_kvm::KvmEngine;
use engine_soft::SoftEngine;
use machine::{Consoles, Description, GuestEvent, Machine, MachineError, NicError, Outcome};
use parking_lot::Mutex;
use virtio::console::ConsoleSink;

use crate::console::input::{Port, Room};
use crate::console::monitor;
use crate::console::output::Output;
use crate::console::terminal;
use crate::failure::Failure;
use crate::run::arguments;
use crate::run::engine_choice::EngineKind;
use crate::run::session::{Event, Origin};

/// A machine with the first serial port as its console.
pub struct Guest {
    machine: Machine,
    /// Was restored, and is not to run yet.
    stays_paused: bool,
    size_asked: Arc<AtomicBool>,
    /// The guest's kernel has panicked since it was started.
    panicked: Arc<AtomicBool>,
}

/// The serial port's way out.
struct Serial {
    output: Output,
    /// What is kept beside.
    log: Option<Output>,
    room: Arc<Room>,
}

impl SerialSink for Serial {
    fn write(&self, data: &[u8]) {
        self.output.push(data);
        if let Some(log) = &self.log {
            log.push(data);
        }
    }

    fn input_ready(&self) {
        self.room.announce();
    }
}

/// The virtio console carries the terminal's size and nothing else. Linux reads
/// the size only when it changes: a guest that has just started asks for it by
/// printing anything there.
struct SizeOnly {
    events: Mutex<Sender<Event>>,
    asked: Arc<AtomicBool>,
}

impl ConsoleSink for SizeOnly {
    fn output(&self, _: &[u8]) {
        // One question at a time: a guest must not fill the monitor's memory.
        if !self.asked.swap(true, Ordering::AcqRel) {
            // Without a receiver the process is ending.
            let _ = self.events.lock().send(Event::Resized);
        }
    }
}

impl Guest {
    /// Puts the machine together.
    ///
    /// # Errors
    /// [`Failure`], by what the user can do about it.
    pub fn new(
        description: Description,
        origin: &Origin,
        engine: EngineKind,
        output: Output,
        log: Option<Output>,
        room: Arc<Room>,
        events: Sender<Event>,
    ) -> Result<Self, Failure> {
        let size_asked = Arc::new(AtomicBool::new(false));
        let consoles = Consoles {
            serial: Arc::new(Serial { output, log, room }),
            virtio: Some(Arc::new(SizeOnly {
                events: Mutex::new(events),
                asked: Arc::clone(&size_asked),
            })),
        };
        let make_engine = |ram, vcpus, model| match engine {
            EngineKind::Soft => SoftEngine::new(ram, vcpus, model),
            EngineKind::Kvm => KvmEngine::new(ram, vcpus, model),
        };
        let (machine, paused) = match origin {
            Origin::Start => (Machine::new(description, &make_engine, consoles)?, false),
            Origin::Snapshot {
                snapshot,
                paused,
                update,
            } => {
                engine_soft::expect_tsc_khz(snapshot.manifest().cpu.tsc_khz);
                let restored =
                    Machine::from_snapshot(snapshot, description, &make_engine, consoles)?;
                if let Some(update) = update {
                    restored.update_guest(*update);
                }
                (restored, *paused)
            }
        };
        let panicked = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&panicked);
        machine.listen(Box::new(move |event| tell(event, &seen)));
        Ok(Self {
            machine,
            stays_paused: paused,
            panicked,
            size_asked,
        })
    }

    /// Lets a debugger in; where it listens.
    ///
    /// # Errors
    /// [`Failure::Host`] if the address cannot be listened on.
    pub fn serve_gdb(&self, gdb: &arguments::Gdb) -> Result<SocketAddr, Failure> {
        let refused = |e: std::io::Error| {
            Failure::Host(format!(
                "listening for GDB on {}: {e}; choose another port with --gdb",
                gdb.address
            ))
        };
        let listener = TcpListener::bind(gdb.address).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        self.machine.serve_gdb(listener, gdb.wait)?;
        Ok(address)
    }

    /// Serves the machine's control socket at a new Unix socket.
    ///
    /// # Errors
    /// [`Failure::Host`] if there cannot be one at that path.
    pub fn serve_control(&self, path: &Path) -> Result<machine::OwnSocket, Failure> {
        let (listener, own) = machine::listen(path)?;
        self.machine.serve_control(listener)?;
        Ok(own)
    }

    /// Whether the guest's kernel panicked since it was last started.
    pub fn panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    /// Offers the guest's agent at a new Unix socket.
    ///
    /// # Errors
    /// [`Failure::Host`] if there cannot be one at that path.
    pub fn serve_agent(&self, path: &Path) -> Result<machine::OwnSocket, Failure> {
        let (listener, own) = machine::listen(path)?;
        self.machine.serve_agent(listener)?;
        Ok(own)
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Failure`] if the host gives no thread.
    pub fn start(&self) -> Result<(), Failure> {
        self.machine.start(None)?;
        if !self.stays_paused {
            self.machine.resume();
            // What the benchmark of restores waits for.
            tracing::info!("the guest runs");
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self) -> Arc<Outcome> {
        self.machine.wait()
    }

    /// Waits for its end, for at most this long.
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<Outcome>> {
        self.machine.wait_for(limit)
    }

    /// Ends the machine from outside, as if its power were cut.
    pub fn stop(&self) {
        self.machine.stop();
    }

    /// Presses the power button (ACPI).
    pub fn press_power_button(&self) {
        self.machine.press_power_button();
    }

    /// Lets a paused machine go on.
    pub fn resume(&self) {
        self.machine.resume();
    }

    /// Tells the guest the size of the user's terminal, if there is one.
    pub fn set_terminal_size(&self, size: Option<(u16, u16)>) {
        self.size_asked.store(false, Ordering::Release);
        if let (Some(console), Some((columns, rows))) = (self.machine.console(), size) {
            console.set_size(columns, rows);
        }
    }

    /// Registers of all vCPUs, for people.
    pub fn registers(&self) -> String {
        (0..self.machine.cpus())
            .map(|index| match self.machine.registers(index) {
                Ok(state) => monitor::registers(index, &state),
                Err(error) => format!("vCPU {index}: {error}\n"),
            })
            .collect()
    }

    /// Counters of the engine and the network cards, for people.
    pub fn statistics(&self) -> String {
        let mut text: String = match self.machine.stats() {
            Ok(all) => (0..)
                .zip(&all)
                .map(|(index, stats)| monitor::statistics(index, stats))
                .collect(),
            Err(error) => format!("{error}\n"),
        };
        for (index, port) in self.machine.nics().enumerate() {
            text.push_str(&monitor::network_card(index, &port.card));
        }
        text
    }
}

/// Says what happened in the guest.
fn tell(event: GuestEvent, panicked: &AtomicBool) {
    let text = match event {
        GuestEvent::Panicked => "the guest's kernel has panicked",
        GuestEvent::CrashLoaded => "the guest's kernel has panicked; its crash kernel runs",
        GuestEvent::WatchdogExpired => "the guest has not pinged its watchdog in time",
        GuestEvent::DiskStopped => {
            "a disk of the host has failed; the machine is paused, loses nothing, and tries again \
             when it is resumed (`holm resume NAME`, or `continue` in the monitor, Ctrl-A c)"
        }
        GuestEvent::DiskFailed => "a disk of the host has failed; the guest sees an I/O error",
        GuestEvent::Rebooted => {
            panicked.store(false, Ordering::Release);
            return;
        }
    };
    if event == GuestEvent::Panicked {
        panicked.store(true, Ordering::Release);
    }
    terminal::say(&format!("holm: {text}"));
}

impl Port for Guest {
    fn push(&self, bytes: &[u8]) -> usize {
        self.machine.serial_input(bytes)
    }
}

/// The CPU model as the machine calls it.
pub fn cpu_model(model: arguments::CpuModel) -> CpuModel {
    match model {
        arguments::CpuModel::Host => CpuModel::Host,
        arguments::CpuModel::V2 => CpuModel::V2,
        arguments::CpuModel::V3 => CpuModel::V3,
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        let text = error.to_string();
        match error {
            MachineError::Description(_) => Self::Usage(text),
            MachineError::Boot(
                BootError::CmdlineTooLong { .. }
                | BootError::CmdlineNul
                | BootError::TablesTooLarge(_),
            ) => Self::Usage(text),
            MachineError::Boot(BootError::Memory { .. } | BootError::Random(_)) => {
                Self::Internal(text)
            }
            MachineError::BootDisk {
                source: bootdisk::ReaderError::Start(_),
                ..
            } => Self::Host(text),
            MachineError::BootDisk { .. }
            | MachineError::Boot(_)
            | MachineError::Disk(_)
            | MachineError::Share { .. } => Self::File(text),
            MachineError::Nic(NicError::Capture { .. }) => Self::File(text),
            MachineError::Nic(_)
            | MachineError::Memory(_)
            | MachineError::Engine(EngineError::Unavailable { .. })
            | MachineError::Socket { .. }
            | MachineError::Host { .. } => Self::Host(text),
            _ => Self::Internal(text),
        }
    }
}
