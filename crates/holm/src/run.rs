//! `holm run`: one machine in the foreground.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use machine::{
    Boot, Description, Disk, DiskBoot, KernelBoot, MachineError, OnReset, Outcome, Snapshot,
};
use sha2::{Digest, Sha256};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::cli::{self, Run, Serial};
use crate::console::input::{Input, Room};
use crate::console::log::SerialLog;
use crate::console::monitor::{self, Command, Line};
use crate::console::output::Output;
use crate::console::terminal::{self, RawMode};
use crate::disks::{self, OwnDisk};
use crate::engine_choice::{self, EngineKind};
use crate::exit_code;
use crate::failure::Failure;
use crate::guest::{self, Guest};
use crate::image::{self, Image, Target};
use crate::named;
use crate::network;
use crate::peripherals::LogOption;

/// Time for the guest's last output to reach a slow reader.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Time to end in good order after a signal.
const GOOD_ORDER: Duration = Duration::from_secs(2);

/// Added to a boot entry's command line that names no console.
const SERIAL_CONSOLE: &str = "console=ttyS0";

/// What the main thread waits for.
#[derive(Debug)]
pub enum Event {
    /// The machine ended.
    Ended(Result<Arc<Outcome>, Failure>),
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

/// Runs the machine and returns the exit status.
pub fn run(arguments: &Run) -> u8 {
    report(start(arguments))
}

/// Says what failed; the exit status.
pub fn report(result: Result<u8, Failure>) -> u8 {
    match result {
        Ok(code) => code,
        Err(failure) => {
            terminal::restore();
            terminal::say(&format!("holm: {failure}"));
            failure.code()
        }
    }
}

fn start(arguments: &Run) -> Result<u8, Failure> {
    let deadline = arguments.timeout.map(|timeout| Instant::now() + timeout);
    // What the files and the host cannot do is said before the terminal changes.
    let claim = arguments
        .name
        .as_deref()
        .map(named::place::Claim::take)
        .transpose()?;
    let (description, own_disks) = describe(arguments)?;
    session(Plan {
        description,
        own_disks,
        origin: Origin::Start,
        claim,
        engine: engine_choice::decide(arguments.engine)?,
        serial: arguments.serial.clone(),
        serial_log: arguments.peripherals.serial_log.clone(),
        agent_socket: arguments.peripherals.agent_socket.clone(),
        gdb: arguments.gdb,
        deadline,
    })
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
    pub claim: Option<named::place::Claim>,
    /// Its CPU engine.
    pub engine: EngineKind,
    /// Where its serial port leads.
    pub serial: Serial,
    /// What of it is kept.
    pub serial_log: Option<LogOption>,
    /// Where its agent is served.
    pub agent_socket: Option<PathBuf>,
    /// Where a debugger is served.
    pub gdb: Option<cli::Gdb>,
    /// When it ends at the latest.
    pub deadline: Option<Instant>,
}

/// Runs a machine to its end; the exit status.
///
/// # Errors
/// [`Failure`]: why it cannot run.
pub fn session(plan: Plan) -> Result<u8, Failure> {
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

    if let Some(gdb) = &plan.gdb {
        let address = guest.serve_gdb(gdb)?;
        terminal::say(&format!("holm: GDB is served at {address}"));
    }
    let by_name = plan.claim.as_ref().map(|claim| claim.agent());
    let agent_socket = plan.agent_socket.or(by_name);
    let agent_socket = agent_socket.map(|path| guest.serve_agent(&path));
    let _agent_socket = agent_socket.transpose()?;
    let control_socket = plan
        .claim
        .as_ref()
        .map(|claim| guest.serve_control(&claim.control()));
    let _control_socket = control_socket.transpose()?;
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
    let machine = Arc::clone(&guest);
    thread::Builder::new()
        .name("machine".into())
        .spawn(move || {
            // Without a receiver the process is ending.
            let _ = events.send(Event::Ended(machine.run()));
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
    session.output.flush(LAST_WORDS);
    if let Some(log) = log {
        log.flush(LAST_WORDS);
    }
    drop(raw);
    drop(plan.own_disks);
    result
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
                Ok(Event::Ended(result)) => {
                    return result.map(|outcome| ended(&outcome, self.guest.panicked()));
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

/// What the command line and the image say together.
fn describe(arguments: &Run) -> Result<(Description, Vec<OwnDisk>), Failure> {
    let target = match &arguments.image {
        Some(name) => Some(Target::find(name, image::directory().as_deref())?),
        None => None,
    };
    let (image, disk) = match target {
        Some(Target::Image(image)) => (Some(image), None),
        Some(Target::Disk(path)) => (None, Some(path)),
        None => (None, None),
    };
    if disk.is_some() && arguments.keep.is_some() {
        return Err(Failure::Usage(
            "--keep is for images; a disk is used as it is, so copy it first".into(),
        ));
    }
    let mut description = Description::new(arguments.cpus, arguments.memory, "");
    description.boot = boot(arguments, image.as_ref())?;
    description.cpu_model = guest::cpu_model(arguments.cpu);
    description.peripherals = arguments.peripherals.describe();
    description.debug_exit = arguments.debug_exit;
    description.on_reset = match arguments.on_reset {
        cli::OnReset::Exit => OnReset::Exit,
        cli::OnReset::Reboot => OnReset::Reboot,
    };
    description.nics =
        network::cards(&arguments.nets, &arguments.publish).map_err(Failure::Usage)?;
    description.uuid = uuid(arguments.keep.as_deref())?;
    if disk.is_none() && arguments.format.is_some() {
        return Err(Failure::Usage(
            "--format is for disks; an image says itself what its disks are".into(),
        ));
    }
    description.disks.extend(disk.map(|file| Disk {
        format: arguments.format,
        ..Disk::new(file)
    }));
    let own_from = description.disks.len();
    let mut own_disks = Vec::new();
    for template in image.iter().flat_map(|image| &image.disks) {
        let own = disks::own(template, arguments.keep.as_deref())?;
        description.disks.push(Disk {
            format: Some(own.format),
            scratch: own.scratch,
            read_only: template.readonly,
            ..Disk::new(&own.path)
        });
        own_disks.push(own);
    }
    description.disks.extend(arguments.disks.iter().cloned());
    if arguments.ephemeral {
        let own = own_from..own_from + own_disks.len();
        for (index, disk) in description.disks.iter_mut().enumerate() {
            if disk.read_only || own.contains(&index) {
                continue;
            }
            let overlay = disks::overlay(&disk.file, disk.format)?;
            (disk.file, disk.format) = (overlay.path.clone(), Some(overlay.format));
            disk.scratch = true;
            own_disks.push(overlay);
        }
    }
    Ok((description, own_disks))
}

/// The UUID of a machine: of one that is kept always the same on this host,
/// so that its network cards keep their addresses; else a new one.
fn uuid(keep: Option<&Path>) -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    match keep {
        Some(directory) => {
            let path = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
            let host = std::fs::read("/etc/machine-id").unwrap_or_default();
            let mut hash = Sha256::new();
            hash.update(&host);
            hash.update(path.as_os_str().as_encoded_bytes());
            for (to, from) in uuid.iter_mut().zip(hash.finalize()) {
                *to = from;
            }
        }
        None => return random_uuid(),
    }
    Ok(marked(uuid, 0x80))
}

/// A UUID that no other machine has.
///
/// # Errors
/// [`Failure::Host`].
pub fn random_uuid() -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid)
        .map_err(|e| Failure::Host(format!("the host gives no random numbers: {e}")))?;
    Ok(marked(uuid, 0x40))
}

/// RFC 9562: version 4 (random) or 8 (of our own making), variant 1.
fn marked(mut uuid: [u8; 16], version: u8) -> [u8; 16] {
    uuid[6] = uuid[6] & 0x0f | version;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The kernel of the command line or the image, or else what the disk says.
fn boot(arguments: &Run, image: Option<&Image>) -> Result<Boot, Failure> {
    let kernel = arguments.kernel.as_ref();
    let kernel = kernel.or(image.and_then(|image| image.kernel.as_ref()));
    let Some(kernel) = kernel else {
        if arguments.initrd.is_some() {
            return Err(Failure::Usage(
                "--initrd needs a --kernel: the disk's boot entry has its own".into(),
            ));
        }
        return Ok(Boot::Disk(DiskBoot {
            disk: 0,
            entry: arguments.entry.clone(),
            cmdline: arguments.cmdline.clone(),
            append: arguments.append.clone().unwrap_or_default(),
            console: arguments.cmdline.is_none().then(|| SERIAL_CONSOLE.into()),
        }));
    };
    if arguments.entry.is_some() {
        return Err(Failure::Usage(
            "--entry is for disks; this image starts a kernel of its own".into(),
        ));
    }
    let image_initrd = image.and_then(|image| image.initrd.clone());
    Ok(Boot::Kernel(KernelBoot {
        kernel: kernel.clone(),
        initrd: arguments.initrd.clone().or(image_initrd),
        cmdline: cmdline(arguments, image),
        self_unpack: false,
    }))
}

fn cmdline(arguments: &Run, image: Option<&Image>) -> String {
    let mut words = Vec::new();
    match (&arguments.cmdline, image) {
        (Some(cmdline), _) => words.push(cmdline.clone()),
        (None, Some(image)) => words.push(image.cmdline.clone()),
        (None, None) => {}
    }
    words.extend(arguments.append.clone());
    words.join(" ")
}
