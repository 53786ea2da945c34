//! `holm machine DIR`: the process of one machine of a daemon. It outlives the
//! daemon, and both know each other by the files in the machine's directory
//! only (`machine_protocol::launch`).

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use machine::{Description, Outcome};
use machine_protocol::launch::{
    self, AGENT_SOCKET, CONTROL_SOCKET, EXIT_FILE, Ended, Engine, Exit, LAUNCH_FILE,
    LAUNCH_VERSION, LOCK_FILE, Launch, MESSAGES, Process, RUNNING_FILE, RUNS, Running, SERIAL_LOG,
};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::console::input::Room;
use crate::console::log::SerialLog;
use crate::console::output::Output;
use crate::console::terminal;
use crate::engine_choice;
use crate::exit_code;
use crate::failure::Failure;
use crate::guest::Guest;
use crate::run::arguments::EngineChoice;
use crate::run::session::Origin;

/// Time for the serial log to be written at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Time for who follows the machine to hear of its end.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Time for a guest to power off after the process got a signal: a host that
/// shuts down waits longer than this.
const GOOD_ORDER: Duration = Duration::from_secs(30);
/// A directory that is being removed, or looked at, is locked for a moment.
const LOCKED_FOR_A_MOMENT: Duration = Duration::from_secs(2);

/// `holm machine`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The directory, with its machine.json
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Runs the machine to its end; the exit status. How it ended is in the
/// directory.
pub fn run(arguments: &Arguments) -> u8 {
    let directory = arguments.directory.as_path();
    match enter(directory) {
        Ok(lock) => {
            let code = locked();
            drop(lock);
            code
        }
        Err(failure) => {
            terminal::say(&format!("holm: {failure}"));
            failure.code()
        }
    }
}

/// Becomes the one process of the directory, and a session of its own.
fn enter(directory: &Path) -> Result<File, Failure> {
    let shown = directory.display();
    // Sockets then have short names, however deep the directory is.
    std::env::set_current_dir(directory)
        .map_err(|e| Failure::File(format!("entering the machine's directory {shown}: {e}")))?;
    let failed = |e: io::Error| Failure::File(format!("locking {shown}/{LOCK_FILE}: {e}"));
    let given = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let inherited = match given {
        Ok(file) if same(&file) => Some(file),
        _ => None,
    };
    let lock = match inherited {
        Some(file) => file,
        None => File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(LOCK_FILE)
            .map_err(failed)?,
    };
    take(&lock).map_err(failed)?;
    if !same(&lock) {
        return Err(Failure::File(format!("the machine {shown} was removed")));
    }
    let null = File::open("/dev/null").map_err(failed)?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| failed(e.into()))?;
    crate::background::leave_session();
    introduce(&lock).map_err(failed)?;
    Ok(lock)
}

/// Says in the lock file which process this is.
fn introduce(mut lock: &File) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let start_ticks = Process::start_ticks(&stat)
        .ok_or_else(|| io::Error::other("/proc/self/stat has no start time"))?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let process = Process {
        version: LAUNCH_VERSION,
        pid: std::process::id(),
        start_ticks,
        boot_id: boot_id.trim().into(),
    };
    lock.set_len(0)?;
    lock.write_all(&serde_json::to_vec(&process)?)
}

/// Whether this is the directory's lock file.
fn same(file: &File) -> bool {
    match (file.metadata(), fs::metadata(LOCK_FILE)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn take(lock: &File) -> io::Result<()> {
    let end = std::time::Instant::now() + LOCKED_FOR_A_MOMENT;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if std::time::Instant::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process runs this machine"));
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
}

/// With the lock held: whatever happens from here on is told in `exit.json`.
fn locked() -> u8 {
    let launch = match read_launch() {
        Ok(launch) => launch,
        Err(failure) => {
            write_exit(0, &End::failed(&failure));
            terminal::say(&format!("holm: {failure}"));
            return failure.code();
        }
    };
    let end = machine(&launch).unwrap_or_else(|failure| End::failed(&failure));
    terminal::say(&format!("holm: {}", end.message));
    write_exit(launch.number, &end);
    match end.how {
        Ended::Failed => exit_code::INTERNAL,
        Ended::Crashed => exit_code::TRIPLE_FAULT,
        Ended::Signal => exit_code::ENDED_BY_SIGNAL,
        Ended::PoweredOff | Ended::Reset | Ended::Killed => exit_code::SUCCESS,
    }
}

fn read_launch() -> Result<Launch, Failure> {
    let text =
        fs::read(LAUNCH_FILE).map_err(|e| Failure::File(format!("reading {LAUNCH_FILE}: {e}")))?;
    launch::parse(LAUNCH_FILE, &text).map_err(|e| Failure::File(e.to_string()))
}

/// How the machine ended.
struct End {
    how: Ended,
    message: String,
    panicked: bool,
}

impl End {
    fn failed(failure: &Failure) -> Self {
        Self {
            how: Ended::Failed,
            message: failure.to_string(),
            panicked: false,
        }
    }
}

fn machine(launch: &Launch) -> Result<End, Failure> {
    let internal = |what: &str, e: io::Error| Failure::Internal(format!("{what}: {e}"));
    for old in [RUNNING_FILE, EXIT_FILE] {
        match fs::remove_file(old) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::File(format!("removing {old}: {e}")));
            }
            _ => {}
        }
    }
    let description = Description::from_json(&launch.machine.to_string())
        .map_err(|e| Failure::File(format!("{LAUNCH_FILE}: {e}")))?;
    let engine = engine_choice::decide(match launch.engine {
        Engine::Auto => EngineChoice::Auto,
        Engine::Kvm => EngineChoice::Kvm,
        Engine::Soft => EngineChoice::Soft,
    })?;
    let console = Output::new(io::sink()).map_err(|e| internal("starting the console", e))?;
    let log = SerialLog::open(Path::new(SERIAL_LOG), launch.serial_log_bytes)
        .and_then(Output::new)
        .map_err(|e| Failure::File(format!("opening {SERIAL_LOG}: {e}")))?;
    let (events, _nobody) = mpsc::channel();
    let guest = Arc::new(Guest::new(
        description,
        &Origin::Start,
        engine,
        console,
        Some(log.clone()),
        Arc::new(Room::default()),
        events,
    )?);
    let _agent = guest.serve_agent(Path::new(AGENT_SOCKET))?;
    let _control = guest.serve_control(Path::new(CONTROL_SOCKET))?;
    let signalled = Arc::new(AtomicBool::new(false));
    watch_signals(&guest, &signalled).map_err(|e| internal("watching for signals", e))?;
    guest.start()?;
    announce(launch.number).map_err(|e| Failure::File(format!("writing {RUNNING_FILE}: {e}")))?;
    let outcome = guest.wait();
    let _ = guest.wait_for(LAST_MOMENT);
    log.flush(LAST_WORDS);
    Ok(end(
        &outcome,
        guest.panicked(),
        signalled.load(Ordering::Acquire),
    ))
}

fn end(outcome: &Outcome, panicked: bool, signalled: bool) -> End {
    let how = match outcome {
        Outcome::Stopped if signalled => Ended::Signal,
        Outcome::PoweredOff => Ended::PoweredOff,
        Outcome::Reset => Ended::Reset,
        Outcome::Stopped | Outcome::TimedOut => Ended::Killed,
        Outcome::TripleFault(_) | Outcome::DebugExit(_) => Ended::Crashed,
        Outcome::Failed(_) => Ended::Failed,
    };
    let mut message = outcome.to_string();
    if how == Ended::Signal {
        message = "the machine's process was ended by a signal".into();
    }
    if panicked {
        message.push_str("; its kernel had panicked");
    }
    End {
        how,
        message,
        panicked,
    }
}

/// A first signal presses the power button; a second one, or the end of
/// [`GOOD_ORDER`], cuts the power.
fn watch_signals(guest: &Arc<Guest>, signalled: &Arc<AtomicBool>) -> io::Result<()> {
    // A file that may not grow is the guest's error (EFBIG), not the end of its machine.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let (guest, signalled) = (Arc::clone(guest), Arc::clone(signalled));
    let watch = move || {
        for _ in signals.forever() {
            if signalled.swap(true, Ordering::AcqRel) {
                guest.stop();
                continue;
            }
            guest.resume();
            guest.press_power_button();
            let guest = Arc::clone(&guest);
            let cut = move || {
                if guest.wait_for(GOOD_ORDER).is_none() {
                    guest.stop();
                }
            };
            if thread::Builder::new()
                .name("good-order".into())
                .spawn(cut)
                .is_err()
            {
                tracing::error!("the host gives no thread; another signal cuts the power");
            }
        }
    };
    let named = thread::Builder::new().name("signals".into());
    named.spawn(watch).map(drop)
}

/// Says that the machine runs: in the directory, and to who waits for it.
fn announce(number: u64) -> io::Result<()> {
    write_json(
        RUNNING_FILE,
        &Running {
            version: LAUNCH_VERSION,
            number,
            at_ms: now_ms(),
        },
    )?;
    let mut out = io::stdout();
    // Who started this machine may have died: the machine is not less for it.
    let _ = writeln!(out, "{RUNS}").and_then(|()| out.flush());
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    let messages = File::options().append(true).create(true).open(MESSAGES)?;
    rustix::stdio::dup2_stderr(&messages)?;
    Ok(())
}

fn write_exit(number: u64, end: &End) {
    let exit = Exit {
        version: LAUNCH_VERSION,
        number,
        how: end.how,
        message: end.message.clone(),
        panicked: end.panicked,
        at_ms: now_ms(),
    };
    if let Err(error) = write_json(EXIT_FILE, &exit) {
        terminal::say(&format!("holm: writing {EXIT_FILE}: {error}"));
    }
}

/// Whole or not at all.
fn write_json(name: &str, value: &impl Serialize) -> io::Result<()> {
    let unfinished = format!("{name}.new");
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&unfinished, name)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
