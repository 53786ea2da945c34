//! `holm exec`: a program in the guest whose input and output pass through
//! files there, so that neither is bounded by what the agent keeps in memory
//! and output is seen while the program runs.

use std::io::{self, Read, Write};
use std::time::Duration;

use agent::{AgentError, Client, ExecStatus, GuestFile};

use super::{Exec, Problem};
use crate::exit_code;

/// Bytes of one read or write.
const BLOCK: usize = 256 << 10;
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// Time for one step besides the program itself.
const STEP: Duration = Duration::from_secs(3600);
/// What a shell answers for a program that a signal ended.
const SIGNALLED: i32 = 128;

/// `$1` is the directory, the rest the command.
const RUN: &str = r#"d=$1; shift; exec "$@" <"$d/in" >"$d/out" 2>"$d/err""#;

pub(super) fn run(client: &mut Client, arguments: &Exec) -> Result<u8, Problem> {
    let made = finished(
        client,
        "/bin/sh",
        &[
            "-c",
            "umask 077; d=$(mktemp -d /tmp/holm-exec.XXXXXX) && : >$d/in && : >$d/out && : >$d/err && echo $d",
        ],
    )?;
    let directory = String::from_utf8_lossy(&made.output).trim().to_owned();
    if made.status != Some(0) || !directory.starts_with("/tmp/holm-exec.") {
        return Err(Problem::Guest(format!(
            "the guest makes no directory for input and output in /tmp: {}",
            String::from_utf8_lossy(&made.error).trim().escape_debug()
        )));
    }
    let result = run_in(client, arguments, &directory);
    let cleared = finished(client, "rm", &["-rf", "--", &directory]);
    let status = result?;
    cleared?;
    Ok(status)
}

fn run_in(client: &mut Client, arguments: &Exec, directory: &str) -> Result<u8, Problem> {
    if arguments.interactive {
        pass_input(client, directory)?;
    }
    let mut words = vec!["-c", RUN, "sh", directory];
    words.extend(arguments.command.iter().map(String::as_str));
    let process = client.exec("/bin/sh", &words, false)?;
    let mut out = Tail::open(client, format!("{directory}/out"))?;
    let mut err = Tail::open(client, format!("{directory}/err"))?;
    let mut wait = FIRST_WAIT;
    loop {
        let status = client.exec_status(process)?;
        let passed = out.pass(client, &mut io::stdout().lock());
        let passed = passed.and_then(|n| Ok(n + err.pass(client, &mut io::stderr().lock())?));
        let passed = match passed {
            Ok(count) => count,
            Err(problem) => {
                // Nobody reads it: as a closed pipe would.
                if !status.exited {
                    let _ = finished(client, "kill", &["-PIPE", &process.0.to_string()]);
                }
                return Err(problem);
            }
        };
        if status.exited {
            client.close(out.file)?;
            client.close(err.file)?;
            return Ok(code(&status));
        }
        wait = match passed {
            0 => (wait * 2).min(LONGEST_WAIT),
            _ => FIRST_WAIT,
        };
        std::thread::sleep(wait);
    }
}

fn code(status: &ExecStatus) -> u8 {
    let code = match (status.status, status.signal) {
        (Some(code), _) => code,
        (None, Some(signal)) => SIGNALLED + signal,
        (None, None) => return exit_code::AGENT,
    };
    (code & 0xff) as u8
}

fn pass_input(client: &mut Client, directory: &str) -> Result<(), Problem> {
    let file = client.open(&format!("{directory}/in"), "wb")?;
    let mut block = vec![0; BLOCK];
    let mut input = io::stdin().lock();
    loop {
        match input.read(&mut block) {
            Ok(0) => break,
            Ok(count) => client.write(file, block.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let what = "reading standard input".into();
                return Err(Problem::File { what, error });
            }
        }
    }
    Ok(client.close(file)?)
}

/// A file of the guest that grows.
struct Tail {
    file: GuestFile,
    at: u64,
}

impl Tail {
    fn open(client: &mut Client, path: String) -> Result<Self, AgentError> {
        let file = client.open(&path, "rb")?;
        Ok(Self { file, at: 0 })
    }

    /// Passes on what is new; how many bytes.
    fn pass(&mut self, client: &mut Client, to: &mut dyn Write) -> Result<u64, Problem> {
        let first = self.at;
        loop {
            // The agent's stream remembers the end it has met.
            client.seek(self.file, self.at)?;
            let data = client.read(self.file, BLOCK)?;
            if data.is_empty() {
                return Ok(self.at - first);
            }
            self.at += data.len() as u64;
            let written = to.write_all(&data).and_then(|()| to.flush());
            written.map_err(|error| Problem::File {
                what: "passing the program's output on".into(),
                error,
            })?;
        }
    }
}

/// Runs something short to its end.
pub(super) fn finished(
    client: &mut Client,
    program: &str,
    arguments: &[&str],
) -> Result<ExecStatus, AgentError> {
    client.run(program, arguments, &[], STEP)
}
