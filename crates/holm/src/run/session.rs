//! One machine in the foreground, from its start to its end.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use machine::{Description, GuestUpdate, MachineError, Outcome, OwnSocket, Snapshot};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::arguments::{self, Serial};
use crate::console::input::{Input, Room};
use crate::console::log::SerialLog;
use crate::console::monitor::{self, Command, Line};
use crate::console::output::Output;
use crate::console::terminal::{self, RawMode};
use crate::exit_code;
use crate::failure::Failure;
use crate::named::place::Claim;
use crate::run::background;
use crate::run::disks::OwnDisk;
use crate::run::engine_choice::EngineKind;
use crate::run::guest::Guest;
use crate::run::peripherals::LogOption;

/// Time for the guest's last output to reach a slow reader.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Time for a machine that was stopped to end.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Time to end in good order after a signal.
const GOOD_ORDER: Duration = Duration::from_secs(2);

/// What the main thread waits for.
#[derive(Debug)]
pub enum Event {
    /// The machine ended.
    Ended(Arc<Outcome>),
    /// Ctrl-A x.
    EndedByUser,
    /// Ctrl-A c.
    Monitor,
    /// Typed while the monitor is open.
    MonitorInput(Vec<u8>),
    /// SIGHUP, SIGINT or SIGTERM.
    Signal(i32),
    /// The terminal was resized, or the guest asks for its size.
    Resized,
}

/// Where a machine begins.
pub enum Origin {
    /// With the start of its guest.
    Start,
    /// Where a snapshot was taken.
    Snapshot {
        /// The snapshot.
        snapshot: Box<Snapshot>,
        /// It stays paused.
        paused: bool,
        /// What its guest is told.
        update: Option<GuestUpdate>,
    },
}

/// A machine to run in the foreground.
pub struct Plan {
    /// What it is made of.
    pub description: Description,
    /// Disks that live as long as it.
    pub own_disks: Vec<OwnDisk>,
    /// Where it begins.
    pub origin: Origin,
    /// Its name, if it has one.
    pub claim: Option<Claim>,
    /// Its CPU engine.
    pub engine: EngineKind,
    /// Where its serial port leads.
    pub serial: Serial,
    /// What of it is kept.
    pub serial_log: Option<LogOption>,
    /// Where its agent is served.
    pub agent_socket: Option<PathBuf>,
    /// Where a debugger is served.
    pub gdb: Option<arguments::Gdb>,
    /// When it ends at the latest.
    pub deadline: Option<Instant>,
    /// This is a process in the background, started for the machine.
    pub background: bool,
}

/// Runs a machine to its end; the exit status.
///
/// # Errors
/// [`Failure`]: why it cannot run.
pub fn run(mut plan: Plan) -> Result<u8, Failure> {
    if plan.background {
        background::leave_session();
        if plan.serial == Serial::Stdio {
            plan.serial = Serial::Null;
        }
    }
    let on_stdio = plan.serial == Serial::Stdio;
    let internal = |what: &str, error: io::Error| Failure::Internal(format!("{what}: {error}"));
    let output = output(&plan.serial)?;
    let log = serial_log(plan.serial_log.as_ref())?;
    let (events, received) = mpsc::channel();
    let room = Arc::new(Room::default());
    let guest = Arc::new(Guest::new(
        plan.description,
        &plan.origin,
        plan.engine,
        output.clone(),
        log.clone(),
        Arc::clone(&room),
        events.clone(),
    )?);

    let (claim, gdb) = (plan.claim.as_ref(), plan.gdb.as_ref());
    let _sockets = open_doors(&guest, claim, gdb, plan.agent_socket)?;
    watch_signals(events.clone()).map_err(|e| internal("watching for signals", e))?;
    let raw = match on_stdio {
        true => RawMode::enter().map_err(|e| internal("setting the terminal to raw mode", e))?,
        false => None,
    };
    let input = match on_stdio {
        true => Some(
            Input::start(raw.is_some(), Arc::clone(&guest) as _, room, events.clone())
                .map_err(|e| internal("starting the console", e))?,
        ),
        false => None,
    };
    if raw.is_some() {
        terminal::say("holm: Ctrl-A x ends the machine, Ctrl-A c opens the monitor");
    }
    guest.start()?;
    if let Some(claim) = plan.claim.as_ref().filter(|_| plan.background) {
        background::announce(claim.name())?;
    }
    let machine = Arc::clone(&guest);
    thread::Builder::new()
        .name("machine".into())
        .spawn(move || {
            // Without a receiver the process is ending.
            let _ = events.send(Event::Ended(machine.wait()));
        })
        .map_err(|e| internal("starting the machine's thread", e))?;

    let mut session = Session {
        guest,
        output,
        input,
        line: Line::default(),
        monitor_open: false,
    };
    let result = session.until_end(&received, plan.deadline);
    // Who follows the machine from elsewhere hears of its end.
    let _ = session.guest.wait_for(LAST_MOMENT);
    session.output.flush(LAST_WORDS);
    if let Some(log) = log {
        log.flush(LAST_WORDS);
    }
    drop(raw);
    drop(plan.own_disks);
    result
}

/// Serves GDB, the guest's agent and the machine's control socket, as far as
/// that is wanted; the sockets, which go with the values.
fn open_doors(
    guest: &Guest,
    claim: Option<&Claim>,
    gdb: Option<&arguments::Gdb>,
    agent: Option<PathBuf>,
) -> Result<[Option<OwnSocket>; 2], Failure> {
    if let Some(gdb) = gdb {
        let address = guest.serve_gdb(gdb)?;
        terminal::say(&format!("holm: GDB is served at {address}"));
    }
    let agent = agent.or(claim.map(Claim::agent));
    let agent = agent.map(|path| guest.serve_agent(&path)).transpose()?;
    let control = claim.map(|claim| guest.serve_control(&claim.control()));
    Ok([agent, control.transpose()?])
}

struct Session {
    guest: Arc<Guest>,
    output: Output,
    input: Option<Arc<Input>>,
    line: Line,
    monitor_open: bool,
}

impl Session {
    fn until_end(
        &mut self,
        events: &Receiver<Event>,
        deadline: Option<Instant>,
    ) -> Result<u8, Failure> {
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let event = match left {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(left) => events.recv_timeout(left),
            };
            let code = match event {
                Ok(Event::Ended(outcome)) => {
                    return Ok(ended(&outcome, self.guest.panicked()));
                }
                Ok(Event::EndedByUser) => {
                    self.guest.stop();
                    Some(exit_code::ENDED_BY_USER)
                }
                Ok(Event::Signal(signal)) => {
                    terminal::say(&format!("holm: ended by signal {signal}"));
                    self.guest.stop();
                    Some(exit_code::ENDED_BY_SIGNAL)
                }
                Ok(Event::Monitor) => {
                    self.monitor_open = true;
                    self.output.hold(true);
                    terminal::say(&format!("\nholm: {}", monitor::HELP));
                    terminal::print(monitor::PROMPT);
                    None
                }
                Ok(Event::MonitorInput(bytes)) => self.monitor(&bytes),
                Ok(Event::Resized) => {
                    self.guest.set_terminal_size(terminal::size());
                    None
                }
                Err(RecvTimeoutError::Timeout) => {
                    terminal::say("holm: the time given with --timeout is over");
                    self.guest.stop();
                    Some(exit_code::TIMEOUT)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Internal("the machine's thread is gone".into()));
                }
            };
            if let Some(code) = code {
                return Ok(code);
            }
        }
    }

    fn monitor(&mut self, mut bytes: &[u8]) -> Option<u8> {
        while self.monitor_open && !bytes.is_empty() {
            let (echo, command, taken) = self.line.feed(bytes);
            terminal::print(&echo);
            bytes = &bytes[taken..];
            if command == Some(Command::Quit) {
                self.guest.stop();
                return Some(exit_code::ENDED_BY_USER);
            }
            if let Some(command) = command {
                self.command(command);
            }
        }
        // Typed behind `continue` before the reading thread knew of it.
        if let Some(input) = self.input.as_ref().filter(|_| !bytes.is_empty()) {
            input.for_guest(bytes);
        }
        None
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Continue => {
                self.guest.resume();
                self.monitor_open = false;
                if let Some(input) = &self.input {
                    input.monitor(false);
                }
                self.output.hold(false);
                return;
            }
            Command::Registers => terminal::say(self.guest.registers().trim_end()),
            Command::Statistics => terminal::say(self.guest.statistics().trim_end()),
            Command::Power => {
                self.guest.press_power_button();
                terminal::say("the power button is pressed");
            }
            Command::Help => terminal::say(monitor::HELP),
            Command::Nothing | Command::Quit => {}
        }
        terminal::print(monitor::PROMPT);
    }
}

fn ended(outcome: &Outcome, panicked: bool) -> u8 {
    match outcome {
        Outcome::PoweredOff | Outcome::Reset if panicked => exit_code::PANICKED,
        Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => exit_code::SUCCESS,
        Outcome::DebugExit(value) => exit_code::debug_exit(*value),
        Outcome::TimedOut => exit_code::TIMEOUT,
        Outcome::TripleFault(vcpu) => {
            terminal::say(&format!(
                "holm: the guest ended in a triple fault on vCPU {vcpu}"
            ));
            exit_code::TRIPLE_FAULT
        }
        Outcome::Failed(error) => {
            terminal::say(&format!("holm: the machine failed: {error}"));
            match error {
                // The guest made of its disk what does not start again.
                MachineError::BootDisk { .. } => exit_code::BAD_FILE,
                _ => exit_code::INTERNAL,
            }
        }
    }
}

fn output(serial: &Serial) -> Result<Output, Failure> {
    let output = match serial {
        Serial::Stdio => Output::new(io::stdout()),
        Serial::Null => Output::new(io::sink()),
        Serial::File(path) => {
            let file = File::create(path).map_err(|error| {
                Failure::File(format!(
                    "creating the console's file {}: {error}",
                    path.display()
                ))
            })?;
            Output::new(file)
        }
    };
    output.map_err(|error| Failure::Internal(format!("starting the console: {error}")))
}

fn serial_log(option: Option<&LogOption>) -> Result<Option<Output>, Failure> {
    let Some(option) = option else {
        return Ok(None);
    };
    let failed = |error| {
        let path = option.path.display();
        Failure::File(format!("opening the serial log {path}: {error}"))
    };
    let log = SerialLog::open(&option.path, option.most).map_err(failed)?;
    Ok(Some(Output::new(log).map_err(failed)?))
}

/// Ends the process by force if the main thread does not within [`GOOD_ORDER`].
fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    // A file that may not grow is the guest's error (EFBIG), not the end of its machine.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGWINCH])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                // Without a receiver the process is ending anyway.
                if signal == SIGWINCH {
                    let _ = events.send(Event::Resized);
                    continue;
                }
                let _ = events.send(Event::Signal(signal));
                thread::sleep(GOOD_ORDER);
                terminal::restore();
                std::process::exit(i32::from(exit_code::ENDED_BY_SIGNAL));
            }
        })?;
    Ok(())
}
