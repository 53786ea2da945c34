//! The agent's commands that Holm uses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::client::{AgentError, Client, Nothing};

/// Pauses between looks whether a program has ended.
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// A process in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(pub i64);

/// How a process in the guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecStatus {
    /// It has ended.
    pub exited: bool,
    /// The status it ended with.
    pub status: Option<i32>,
    /// The signal it ended by.
    pub signal: Option<i32>,
    /// What it printed, if that was captured.
    pub output: Vec<u8>,
    /// Its error output, if that was captured.
    pub error: Vec<u8>,
}

/// An open file in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFile(i64);

#[derive(Serialize)]
struct Exec<'a> {
    path: &'a str,
    arg: &'a [&'a str],
    #[serde(rename = "input-data", skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(rename = "capture-output")]
    capture: bool,
}

#[derive(Deserialize)]
struct Pid {
    pid: i64,
}

#[derive(Deserialize)]
struct Status {
    exited: bool,
    exitcode: Option<i32>,
    signal: Option<i32>,
    #[serde(rename = "out-data")]
    out: Option<String>,
    #[serde(rename = "err-data")]
    err: Option<String>,
}

#[derive(Serialize)]
struct Handle {
    handle: i64,
}

/// How the machine's balloon is, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Balloon {
    /// Memory of the machine.
    pub memory: u64,
    /// The guest's driver works.
    pub driver: bool,
    /// Asked for.
    pub target: u64,
    /// In the balloon.
    pub actual: u64,
    /// Reported free and given back since the machine started.
    pub reported: u64,
    /// What the guest says of its memory.
    pub statistics: BTreeMap<String, Option<u64>>,
}

/// A file system that the guest has mounted from a disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FileSystem {
    /// Where.
    pub mountpoint: String,
    /// Bytes that files take.
    #[serde(rename = "used-bytes")]
    pub used: u64,
    /// Bytes that users' files may take.
    #[serde(rename = "total-bytes")]
    pub total: u64,
}

impl Client {
    /// The guest's file systems on disks; those that do not tell their size
    /// are left out (`guest-get-fsinfo`).
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn file_systems(&mut self) -> Result<Vec<FileSystem>, AgentError> {
        let all: Vec<serde_json::Value> = self.call("guest-get-fsinfo", Nothing {})?;
        let sized = all.into_iter().map(serde_json::from_value);
        Ok(sized.filter_map(Result::ok).collect())
    }

    /// Asks the guest to do with `memory` bytes, if given; how the balloon is.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn balloon(&mut self, memory: Option<u64>) -> Result<Balloon, AgentError> {
        #[derive(Serialize)]
        struct Target {
            memory: Option<u64>,
        }
        self.call("holm-balloon", Target { memory })
    }

    /// Starts a program (a path, or a name to look for in the agent's PATH).
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn exec(
        &mut self,
        program: &str,
        arguments: &[&str],
        capture: bool,
    ) -> Result<Process, AgentError> {
        self.start(Exec {
            path: program,
            arg: arguments,
            input: None,
            capture,
        })
    }

    fn start(&mut self, program: Exec<'_>) -> Result<Process, AgentError> {
        let pid: Pid = self.call("guest-exec", program)?;
        Ok(Process(pid.pid))
    }

    /// Runs something short to its end, with this on its standard input, and
    /// returns what it printed.
    ///
    /// # Errors
    /// [`AgentError`]; [`AgentError::Slow`] if it has not ended within
    /// `patience`, and runs on.
    pub fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        input: &[u8],
        patience: Duration,
    ) -> Result<ExecStatus, AgentError> {
        let deadline = Instant::now() + patience;
        let process = self.start(Exec {
            path: program,
            arg: arguments,
            input: (!input.is_empty()).then(|| BASE64.encode(input)),
            capture: true,
        })?;
        let mut wait = FIRST_WAIT;
        loop {
            let status = self.exec_status(process)?;
            if status.exited {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(AgentError::Slow {
                    program: program.to_owned(),
                });
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// The guest's time of day, since 1970 (`guest-get-time`).
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn time(&mut self) -> Result<Duration, AgentError> {
        self.call("guest-get-time", Nothing {})
            .map(Duration::from_nanos)
    }

    /// Sets the guest's time of day, since 1970, and its hardware clock
    /// (`guest-set-time`).
    ///
    /// # Errors
    /// [`AgentError`], also if only the hardware clock cannot be set.
    pub fn set_time(&mut self, time: Duration) -> Result<(), AgentError> {
        #[derive(Serialize)]
        struct Time {
            time: i64,
        }
        let time = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        self.call::<_, serde::de::IgnoredAny>("guest-set-time", Time { time })?;
        Ok(())
    }

    /// How a process is; once it has exited the agent forgets it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn exec_status(&mut self, process: Process) -> Result<ExecStatus, AgentError> {
        const COMMAND: &str = "guest-exec-status";
        #[derive(Serialize)]
        struct Which {
            pid: i64,
        }
        let status: Status = self.call(COMMAND, Which { pid: process.0 })?;
        Ok(ExecStatus {
            exited: status.exited,
            status: status.exitcode,
            signal: status.signal,
            output: decode(COMMAND, status.out)?,
            error: decode(COMMAND, status.err)?,
        })
    }

    /// Freezes all file systems of the guest; how many.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn freeze(&mut self) -> Result<i64, AgentError> {
        self.call("guest-fsfreeze-freeze", Nothing {})
    }

    /// Thaws them; how many.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn thaw(&mut self) -> Result<i64, AgentError> {
        self.call("guest-fsfreeze-thaw", Nothing {})
    }

    /// Opens a file, `mode` as for fopen.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn open(&mut self, path: &str, mode: &str) -> Result<GuestFile, AgentError> {
        #[derive(Serialize)]
        struct Open<'a> {
            path: &'a str,
            mode: &'a str,
        }
        Ok(GuestFile(
            self.call("guest-file-open", Open { path, mode })?,
        ))
    }

    /// Reads at most `count` bytes; none at the end of the file.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn read(&mut self, file: GuestFile, count: usize) -> Result<Vec<u8>, AgentError> {
        const COMMAND: &str = "guest-file-read";
        #[derive(Serialize)]
        struct Read {
            handle: i64,
            count: usize,
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(rename = "buf-b64")]
            data: String,
        }
        let handle = file.0;
        let data: Data = self.call(COMMAND, Read { handle, count })?;
        let bytes = decode(COMMAND, Some(data.data))?;
        if bytes.len() > count {
            return Err(AgentError::Answer {
                command: COMMAND,
                text: format!("{} bytes where {count} were asked for", bytes.len()),
            });
        }
        Ok(bytes)
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn write(&mut self, file: GuestFile, mut data: &[u8]) -> Result<(), AgentError> {
        const COMMAND: &str = "guest-file-write";
        #[derive(Serialize)]
        struct Write {
            handle: i64,
            #[serde(rename = "buf-b64")]
            data: String,
        }
        #[derive(Deserialize)]
        struct Written {
            count: usize,
        }
        while !data.is_empty() {
            let handle = file.0;
            let encoded = BASE64.encode(data);
            let written: Written = self.call(
                COMMAND,
                Write {
                    handle,
                    data: encoded,
                },
            )?;
            data = data
                .get(written.count..)
                .filter(|_| written.count > 0)
                .ok_or_else(|| AgentError::Answer {
                    command: COMMAND,
                    text: format!("{} bytes written of {}", written.count, data.len()),
                })?;
        }
        Ok(())
    }

    /// Closes a file, after which its data is with the guest's kernel.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn close(&mut self, file: GuestFile) -> Result<(), AgentError> {
        let handle = file.0;
        self.call::<_, serde::de::IgnoredAny>("guest-file-close", Handle { handle })?;
        Ok(())
    }

    /// Starts reading after the end of a file anew, which has grown.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn seek(&mut self, file: GuestFile, offset: u64) -> Result<(), AgentError> {
        #[derive(Serialize)]
        struct Seek {
            handle: i64,
            offset: u64,
            whence: u8,
        }
        let (handle, whence) = (file.0, 0);
        let arguments = Seek {
            handle,
            offset,
            whence,
        };
        self.call::<_, serde::de::IgnoredAny>("guest-file-seek", arguments)?;
        Ok(())
    }
}

fn decode(command: &'static str, text: Option<String>) -> Result<Vec<u8>, AgentError> {
    BASE64
        .decode(text.unwrap_or_default())
        .map_err(|e| AgentError::Answer {
            command,
            text: e.to_string(),
        })
}
