//! The machine as its threads see it: assembled, paused, supervised, rebooted,
//! ended.
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arch::CpuState;
use arch::cpuid::{CpuChoice, Features};
use boot::{Identity, Request};
use engine::{Engine, Vcpu};
use machine_protocol::EventKind;
use machine_protocol::vpc::{PortConfig, PortReport};
use memory::GuestRam;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Inner, LAST_WORDS, MakeEngine};
use crate::board::{Backends, Board, Consoles};
use crate::control::{Control, Event};
use crate::description::{Description, Disk, OnReset};
use crate::events::{Events, GuestEvent};
use crate::nic::{Nic, NicError, NicNetwork, NicPort};
use crate::outcome::{MachineError, Outcome};
use crate::peripherals::WatchdogAction;
use crate::snapshot::Ledger;
use crate::source::Source;
use crate::state::{MachineState, STATE_VERSION};
use crate::terminal::Terminal;

/// vCPUs by index, before they have threads.
pub(super) type Vcpus = Vec<Box<dyn Vcpu>>;

/// Time for the devices to come to rest for a pause or a snapshot.
const REST: Duration = Duration::from_secs(20);
/// The same for a reset, after which the machine has failed.
const RESET: Duration = Duration::from_secs(60);

/// What a machine is assembled from.
pub(super) struct Parts {
    pub(super) description: Description,
    pub(super) backends: Backends,
    pub(super) source: Source,
    pub(super) ram: Arc<GuestRam>,
    pub(super) ledger: Ledger,
    /// What the CPU may show at most.
    pub(super) limit: Option<Features>,
}

impl Inner {
    /// Puts the parts together; the vCPUs are in their reset state.
    pub(super) fn assemble(
        parts: Parts,
        make_engine: MakeEngine<'_>,
        mut consoles: Consoles,
    ) -> Result<(Arc<Self>, Vcpus), MachineError> {
        let terminal = Terminal::new(consoles.serial);
        consoles.serial = terminal.clone();
        let Parts {
            description,
            backends,
            source,
            ram,
            ledger,
            limit,
        } = parts;
        let model = description.cpu_model;
        let cpu = CpuChoice { model, limit };
        let engine = make_engine(ram.clone(), description.cpus, cpu)?;
        let control = Control::new();
        let board = Board::new(&description, &ram, &*engine, &control, consoles, backends)?;
        engine.connect(board.bus());
        let mut vcpus = Vec::new();
        let mut reset_states = Vec::new();
        for index in 0..description.cpus {
            let mut vcpu = engine.take_vcpu(index)?;
            reset_states.push(vcpu.save()?);
            vcpus.push(vcpu);
        }
        let events = Arc::default();
        board.tell(&events);
        let inner = Arc::new(Self {
            description,
            ram,
            engine,
            source,
            board,
            control,
            reset_states,
            threads: Mutex::default(),
            operation: Mutex::default(),
            ledger: Mutex::new(ledger),
            started: OnceLock::new(),
            events,
            terminal,
            guest_update: Mutex::default(),
            sockets: Mutex::default(),
            outcome: Mutex::default(),
            ended: Condvar::new(),
        });
        for (nic, port) in inner.board.nics().enumerate() {
            if let Some(vpc) = &port.vpc {
                inner.note_unpublished(&vpc.report(nic as u32));
            }
        }
        Ok((inner, vcpus))
    }

    /// Replaces the port of a card in a VPC; what it came to.
    pub(crate) fn configure_nic(
        &self,
        nic: u32,
        port: PortConfig,
    ) -> Result<PortReport, MachineError> {
        let index = nic as usize;
        let card = self.board.nics().nth(index);
        let not_there = NicError::NotInVpc { index };
        let Some((card, vpc)) = card.and_then(|card| Some((&card.card, card.vpc.as_ref()?))) else {
            return Err(not_there.into());
        };
        let plugged = port.link_up;
        vpc.configure(port).map_err(|source| NicError::Vpc {
            index,
            source: Box::new(source),
        })?;
        card.set_plugged(plugged);
        let report = vpc.report(nic);
        self.events.note(EventKind::NicConfigured { nic });
        self.note_unpublished(&report);
        Ok(report)
    }

    fn note_unpublished(&self, report: &PortReport) {
        let Some(public) = report.public else {
            return;
        };
        for left in report.unpublished.iter().filter(|one| one.port == one.last) {
            self.events.note(EventKind::PortNotPublished {
                nic: report.nic,
                port: format!("{public}:{}/{}", left.port, left.protocol),
                message: left.reason.clone(),
            });
        }
    }

    /// Held by who pauses, resumes, saves, restores or reboots.
    pub(crate) fn operation(&self) -> MutexGuard<'_, ()> {
        self.operation.lock()
    }

    pub(crate) fn ledger(&self) -> &Mutex<Ledger> {
        &self.ledger
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// As [`Machine::save`], for who holds `operation` and has paused.
    pub(crate) fn save_locked(&self) -> Result<MachineState, MachineError> {
        let vcpus = self.control.on_all_vcpus(|v| v.save());
        let vcpus = vcpus.ok_or(MachineError::Ended)?;
        Ok(MachineState {
            version: STATE_VERSION,
            vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
            devices: self.board.save(),
        })
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// What the restored guest was told so far, in words.
    pub(crate) fn guest_update(&self) -> Option<String> {
        self.guest_update.lock().clone()
    }

    pub(crate) fn set_guest_update(&self, said: String) {
        *self.guest_update.lock() = Some(said);
    }

    /// All network cards and what they are plugged into.
    pub(crate) fn cards(&self) -> Vec<(NicNetwork, NicPort)> {
        self.board.cards(&self.description.nics)
    }

    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    pub(crate) fn cpus(&self) -> u32 {
        self.description.cpus
    }

    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    pub(crate) fn terminal(&self) -> &Arc<Terminal> {
        &self.terminal
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    pub(crate) fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// See [`Machine::attach_disk`].
    pub(crate) fn attach_disk(&self, disk: &Disk) -> Result<String, MachineError> {
        disk.check()?;
        let _one = self.operation.lock();
        self.must_not_have_ended()?;
        self.board.attach_disk(disk)
    }

    /// See [`Machine::detach_disk`].
    pub(crate) fn detach_disk(&self, name: &str, force: bool) -> Result<(), MachineError> {
        let _one = self.operation.lock();
        self.board.detach_disk(name, force)
    }

    /// See [`Machine::attach_nic`].
    pub(crate) fn attach_nic(&self, nic: &Nic) -> Result<String, MachineError> {
        nic.check()?;
        let _one = self.operation.lock();
        self.must_not_have_ended()?;
        self.board.attach_nic(nic, &self.description.uuid)
    }

    /// See [`Machine::detach_nic`].
    pub(crate) fn detach_nic(&self, name: &str, force: bool) -> Result<(), MachineError> {
        let _one = self.operation.lock();
        self.board.detach_nic(name, force)
    }

    /// See [`Machine::set_link`].
    pub(crate) fn set_link(&self, nic: &str, up: bool) -> Result<(), MachineError> {
        let _one = self.operation.lock();
        self.must_not_have_ended()?;
        self.board.set_link(nic, up)
    }

    /// See [`Machine::grow_disk`].
    pub(crate) fn grow_disk(&self, name: &str, size: u64) -> Result<(), MachineError> {
        let _one = self.operation.lock();
        self.must_not_have_ended()?;
        self.board.grow_disk(name, size)
    }

    pub(super) fn must_not_have_ended(&self) -> Result<(), MachineError> {
        match self.control.has_ended() {
            true => Err(MachineError::Ended),
            false => Ok(()),
        }
    }

    /// Since the guest was started.
    pub(crate) fn uptime(&self) -> Option<Duration> {
        self.started.get().map(Instant::elapsed)
    }

    /// See [`Machine::pause`].
    ///
    /// # Errors
    /// [`MachineError::Restless`]; the machine goes on.
    pub(crate) fn pause(&self) -> Result<(), MachineError> {
        let _one = self.operation.lock();
        if self.control.is_paused() {
            return Ok(());
        }
        self.board.pause_devices(REST)?;
        self.control.set_paused(true);
        self.engine.stop_time();
        self.board.pause_time();
        if self.started.get().is_some() {
            self.events.note(EventKind::Paused);
        }
        Ok(())
    }

    /// Does `f` while the guest stands, for who holds `operation`; how long it
    /// stood, if it was not paused. Devices finish what is in flight before the
    /// vCPUs stop, and begin anew after they go on: that is long on a busy host.
    ///
    /// # Errors
    /// [`MachineError::Restless`]; nothing was done.
    pub(crate) fn standing<R>(&self, f: impl FnOnce() -> R) -> Result<(R, Duration), MachineError> {
        if self.control.is_paused() {
            return Ok((f(), Duration::ZERO));
        }
        let asked = Instant::now();
        self.board.pause_devices(REST)?;
        let start = Instant::now();
        self.control.set_paused(true);
        self.engine.stop_time();
        self.board.pause_time();
        let stopping = start.elapsed();
        let result = f();
        let doing = start.elapsed() - stopping;
        self.engine.resume_time();
        self.board.resume_time();
        self.control.set_paused(false);
        let stood = start.elapsed();
        self.board.resume_devices();
        let devices = asked.elapsed();
        tracing::info!(?stood, ?stopping, ?doing, ?devices, "the guest stood");
        Ok((result, stood))
    }

    /// See [`Machine::resume`].
    pub(crate) fn resume(&self) {
        let _one = self.operation.lock();
        if self.control.is_paused() {
            self.resume_locked();
            self.events.note(EventKind::Resumed);
        }
    }

    /// As [`Self::resume`], for who holds `operation`.
    pub(crate) fn resume_locked(&self) {
        if self.control.is_paused() {
            self.engine.resume_time();
            self.board.resume_devices();
            self.board.resume_time();
            self.control.set_paused(false);
        }
    }

    /// Loads the kernel; the states in which the vCPUs start.
    pub(super) fn load(&self) -> Result<Vec<CpuState>, MachineError> {
        let d = &self.description;
        let usual = Identity::default();
        let said = |word: &Option<String>, usual| word.clone().unwrap_or(usual);
        let identity = Identity {
            uuid: d.uuid,
            serial: d.serial.clone(),
            product: said(&d.smbios.product, usual.product),
            manufacturer: said(&d.smbios.manufacturer, usual.manufacturer),
            asset_tag: said(&d.smbios.asset_tag, usual.asset_tag),
        };
        let loaded = self.source.with(self.ram.low_size(), |files| {
            boot::load(
                &self.ram,
                &Request {
                    kernel: &files.kernel,
                    initrd: files.initrd.as_ref(),
                    cmdline: &files.cmdline,
                    cpus: d.cpus,
                    watchdog: d.peripherals.watchdog.is_some(),
                    identity: &identity,
                    unpack: files.unpack,
                },
            )
        })?;
        tracing::info!(format = loaded.format, "kernel loaded");
        let mut states = self.reset_states.clone();
        if let Some(first) = states.first_mut() {
            loaded.entry.apply(first);
        }
        Ok(states)
    }

    pub(super) fn boot_vcpus(&self, vcpus: Vcpus, states: &[CpuState]) -> Result<(), MachineError> {
        let started = vcpus
            .into_iter()
            .zip(states)
            .try_for_each(|(v, s)| self.spawn(v, s));
        if started.is_err() {
            self.control.end();
        }
        started
    }

    pub(super) fn spawn(
        &self,
        mut vcpu: Box<dyn Vcpu>,
        state: &CpuState,
    ) -> Result<(), MachineError> {
        vcpu.restore(state)?;
        let thread = self.control.spawn(vcpu);
        let thread = thread.map_err(|source| MachineError::Host {
            what: "thread for a vCPU",
            source,
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    pub(super) fn restore_vcpus(&self, states: Vec<CpuState>) -> Result<(), MachineError> {
        for (index, state) in (0..).zip(states) {
            let done = self.control.on_vcpu(index, move |v| v.restore(&state));
            done.ok_or(MachineError::Ended)??;
        }
        Ok(())
    }

    pub(super) fn must_be_paused(&self) -> Result<(), MachineError> {
        if self.control.is_paused() {
            return Ok(());
        }
        Err(MachineError::State("it must be paused first".into()))
    }

    /// The supervisor: decides on events until one ends the machine.
    pub(super) fn supervise(&self, deadline: Option<Instant>) {
        let outcome = loop {
            let reboot = self.description.on_reset == OnReset::Reboot;
            let event = self.control.next_event(deadline);
            tracing::debug!(?event, "machine event");
            match event {
                None => break Outcome::TimedOut,
                Some(Event::Reset | Event::TripleFault(_)) if reboot => match self.reboot() {
                    Ok(()) => {}
                    Err(e) => match self.control.next_event(Some(Instant::now())) {
                        Some(Event::Stop) => break Outcome::Stopped,
                        _ => break Outcome::Failed(e),
                    },
                },
                Some(Event::Guest(event)) => {
                    self.events.record(event, event.kind(&self.board.disks()));
                    match (event, self.description.peripherals.watchdog) {
                        (GuestEvent::WatchdogExpired, Some(action)) => self.bite(action),
                        (GuestEvent::DiskStopped, _) => self.pause_and_release(),
                        _ => self.control.release(),
                    }
                }
                Some(Event::Reset) => break Outcome::Reset,
                Some(Event::TripleFault(vcpu)) => break Outcome::TripleFault(vcpu),
                Some(Event::PowerOff) => break Outcome::PoweredOff,
                Some(Event::DebugExit(value)) => break Outcome::DebugExit(value),
                Some(Event::Failed(e)) => break Outcome::Failed(e.into()),
                Some(Event::Stop) => break Outcome::Stopped,
            }
        };
        self.finish(outcome);
    }

    fn pause_and_release(&self) {
        if let Err(error) = self.pause() {
            tracing::warn!(%error, "the machine was to be paused");
        }
        self.control.release();
    }

    /// Does what the watchdog is for; vCPUs are held by its event.
    pub(super) fn bite(&self, action: WatchdogAction) {
        match action {
            WatchdogAction::Reset => self.control.post(Event::Reset),
            WatchdogAction::PowerOff => self.control.post(Event::PowerOff),
            WatchdogAction::Pause => self.pause_and_release(),
            WatchdogAction::Nothing => self.control.release(),
        }
    }

    /// Starts the machine anew: devices reset, kernel loaded again.
    pub(super) fn reboot(&self) -> Result<(), MachineError> {
        let _one = self.operation.lock();
        self.control.wait_parked();
        let ran = !self.control.is_paused();
        if ran {
            self.board.pause_devices(RESET)?;
        }
        self.board.reset();
        if ran {
            self.board.resume_devices();
        }
        let states = self.load()?;
        self.restore_vcpus(states)?;
        self.control.forget_events();
        self.events
            .record(GuestEvent::Rebooted, EventKind::Rebooted);
        self.control.release();
        Ok(())
    }

    /// Ends the threads and devices, and tells who waits.
    pub(super) fn finish(&self, outcome: Outcome) {
        self.control.end();
        self.board.hurry();
        // One that waits for a device which waits for the host ends with the
        // process.
        if self.control.wait_gone(LAST_WORDS * 10) {
            for thread in self.threads.lock().drain(..) {
                // Its panic, if any, was an event.
                let _ = thread.join();
            }
        }
        let one = self.operation.lock();
        self.board.shut_down();
        drop(one);
        self.events.note(EventKind::Ended {
            outcome: outcome.to_string(),
        });
        // Who waits for the end may end the process.
        self.terminal.end(LAST_WORDS);
        self.events.drain(LAST_WORDS);
        self.sockets.lock().clear();
        self.outcome.lock().get_or_insert_with(|| Arc::new(outcome));
        self.ended.notify_all();
    }
}
