//! `holm run --detach` and `holm restore --detach`: the machine runs in a process of its own in the
//! background, and the command ends when it does run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;

use crate::console::terminal;
use crate::exit_code;
use crate::failure::Failure;

/// Whether a machine runs in the background.
#[derive(Args, Debug)]
pub struct Options {
    /// Runs the machine in the background and returns when it runs (-d --name web1); its console is
    /// at `holm console`
    #[arg(short, long)]
    pub detach: bool,

    /// This is the background process of --detach
    #[arg(long, hide = true, requires = "detach")]
    in_background: bool,
}

impl Options {
    /// It is to be started there.
    pub fn wanted(&self) -> bool {
        self.detach && !self.in_background
    }

    /// This is that process.
    pub fn is(&self) -> bool {
        self.in_background
    }
}

/// Option that the background process has in addition.
const OPTION: &str = "--in-background";
/// What it prints when the machine runs.
const RUNS: &str = "runs";

/// Starts the background process and waits until the machine runs, or does not.
///
/// # Errors
/// [`Failure`]; those of the machine are said by the process itself.
pub fn start(name: Option<&str>) -> Result<u8, Failure> {
    let Some(name) = name else {
        return Err(Failure::Usage(
            "a machine of its own in the background needs a name to be found by: --detach --name NAME"
                .into(),
        ));
    };
    let failed = |e: io::Error| Failure::Internal(format!("starting in the background: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut words = std::env::args_os().skip(1);
    let mut child = Command::new(program)
        .args(words.next())
        .arg(OPTION)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output)
            .read_line(&mut line)
            .map_err(failed)?;
    }
    if line.trim_end() == RUNS {
        terminal::say(&format!(
            "holm: {name} runs; `holm console {name}` shows its console, `holm stop {name}` ends it"
        ));
        return Ok(exit_code::SUCCESS);
    }
    let code = child.wait().map_err(failed)?.code();
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(exit_code::INTERNAL))
}

/// In the background process: leaves the user's session, so that its end is
/// not the machine's.
pub fn leave_session() {
    // Who leads a session already has none to leave.
    let _ = rustix::process::setsid();
}

/// In the background process: says that the machine runs, and takes a file for
/// messages in place of the user's terminal.
///
/// # Errors
/// [`Failure::File`], or nobody waits any more.
pub fn announce(name: &str) -> Result<(), Failure> {
    let path = messages(name);
    let failed = |e: io::Error| Failure::File(format!("writing {}: {e}", path.display()));
    if let Some(directory) = path.parent() {
        let mut make = fs::DirBuilder::new();
        make.recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
    }
    let messages = File::create(&path).map_err(failed)?;
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(failed)?;
    let mut out = io::stdout();
    writeln!(out, "{RUNS}")
        .and_then(|()| out.flush())
        .map_err(|e| Failure::Host(format!("nobody waits for the machine any more: {e}")))?;
    rustix::stdio::dup2_stderr(&messages).map_err(|e| failed(e.into()))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed(e.into()))
}

/// The file with what Holm says of a machine that runs in the background.
fn messages(name: &str) -> PathBuf {
    let absolute = |variable: &str| {
        let path = std::env::var_os(variable).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = absolute("HOLM_STATE")
        .or_else(|| absolute("XDG_STATE_HOME").map(|path| path.join("holm")))
        .or_else(|| absolute("HOME").map(|path| path.join(".local/state/holm")))
        .unwrap_or_else(|| std::env::temp_dir().join("holm"));
    state
        .join("machines")
        .join(OsStr::new(&format!("{name}.log")))
}
