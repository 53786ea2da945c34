//! A client of [`crate::serve`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most bytes of an answer's line.
const ANSWER_MAX: u64 = 33 << 20;

/// What the agent, or the machine in its stead, says of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Fault {
    /// `GenericError`, `CommandNotFound`; the machine's begin with `Holm`.
    pub class: String,
    /// For people.
    pub desc: String,
}

/// Why a command of the agent has no result.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The machine cannot be reached.
    #[error("cannot reach the machine at {place}: {source}; is it running, with --agent-socket?")]
    Connect {
        /// Its socket.
        place: String,
        /// The host's error.
        source: io::Error,
    },
    /// The connection ended.
    #[error("the connection to the machine broke: {0}")]
    Connection(#[from] io::Error),
    /// Nobody listens in the guest.
    #[error("{0}")]
    NoAgent(String),
    /// The guest's agent refused.
    #[error("the guest's agent refused {command}: {text}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        text: String,
    },
    /// A program in the guest did not end.
    #[error("{program} in the guest has not ended in time")]
    Slow {
        /// The program.
        program: String,
    },
    /// The guest's agent answered what cannot be.
    #[error("the guest's agent gave an answer to {command} that makes no sense: {text}")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong.
        text: String,
    },
}

/// A connection to a machine's agent socket.
pub struct Client {
    stream: BufReader<UnixStream>,
}

#[derive(Serialize)]
struct Request<'a, A> {
    execute: &'a str,
    arguments: A,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Fault>,
}

impl Client {
    /// Connects to the socket.
    ///
    /// # Errors
    /// [`AgentError::Connect`].
    pub fn connect(socket: &Path) -> Result<Self, AgentError> {
        let stream = UnixStream::connect(socket).map_err(|source| AgentError::Connect {
            place: socket.display().to_string(),
            source,
        })?;
        Ok(Self::over(stream))
    }

    /// A client on a connection that is there already.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Gives up on an answer after `patience`, with [`AgentError::Connection`];
    /// the connection is of no use then.
    ///
    /// # Errors
    /// [`AgentError::Connection`], also if `patience` is zero.
    pub fn set_patience(&mut self, patience: Duration) -> Result<(), AgentError> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(())
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// [`AgentError::NoAgent`] if it does not within `patience`; others.
    pub fn wait(&mut self, patience: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.call::<_, serde::de::IgnoredAny>("guest-ping", Nothing {}) {
                Err(AgentError::NoAgent(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                result => return result.map(drop),
            }
        }
    }

    /// One command and its result.
    pub(crate) fn call<A: Serialize, T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: A,
    ) -> Result<T, AgentError> {
        let bad = |text: String| AgentError::Answer { command, text };
        let request = Request {
            execute: command,
            arguments,
        };
        let mut line = serde_json::to_vec(&request).map_err(|e| bad(e.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        line.clear();
        (&mut self.stream)
            .take(ANSWER_MAX)
            .read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            let kind = io::ErrorKind::UnexpectedEof;
            return Err(io::Error::new(kind, "the machine has ended").into());
        }
        let answer: Answer<T> = serde_json::from_slice(&line).map_err(|e| bad(e.to_string()))?;
        match (answer.value, answer.error) {
            (Some(value), None) => Ok(value),
            (_, Some(fault)) if fault.class == "HolmNoAgent" => {
                Err(AgentError::NoAgent(printable(&fault.desc)))
            }
            (_, Some(fault)) => Err(AgentError::Refused {
                command,
                text: printable(&fault.desc),
            }),
            (None, None) => Err(bad("neither a result nor an error".into())),
        }
    }
}

/// No arguments.
#[derive(Serialize)]
pub(crate) struct Nothing {}

/// A guest's text must not move the user's cursor.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(500).map(clean).collect()
}
