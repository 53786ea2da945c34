//! The client of a machine's control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use machine_protocol::launch::CONTROL_SOCKET;
use machine_protocol::{Description, Hello, Metrics, PROTOCOL_VERSION, Reply, Request};
use parking_lot::Mutex;

use super::find::{self, FindError};
use super::place;
use crate::socket;

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer.
const ANSWER_MAX: u64 = 8 << 20;

/// Why a machine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is not known which is meant.
    #[error(transparent)]
    Find(#[from] FindError),
    /// None serves there.
    #[error("machine {0:?} does not run; `holm ls` lists those that do")]
    NoMachine(String),
    /// It ended before it answered.
    #[error("machine {0:?} ended before it had answered; `holm ls` lists those that run")]
    Ended(String),
    /// The connection failed.
    #[error("talking to machine {name:?}: {source}")]
    Connection {
        /// Its name.
        name: String,
        /// The host's error.
        source: io::Error,
    },
    /// Another version of holm runs it.
    #[error(
        "machine {name:?} speaks protocol {found} (holm {holm}), and this holm {PROTOCOL_VERSION}; use the holm that runs it"
    )]
    Version {
        /// Its name.
        name: String,
        /// Its protocol.
        found: u32,
        /// Its version.
        holm: String,
    },
    /// It refused.
    #[error("machine {name:?}: {message}")]
    Refused {
        /// Its name.
        name: String,
        /// Why.
        message: String,
    },
}

impl ControlError {
    /// Nothing came in the time that was waited.
    pub fn is_silence(&self) -> bool {
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        matches!(self, Self::Connection { source, .. } if kinds.contains(&source.kind()))
    }
}

/// A connection to a machine.
pub struct Client {
    name: String,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the machine of this name or id.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn connect(name: &str) -> Result<Self, ControlError> {
        Self::at(name, &find::control(name)?)
    }

    /// Connects to the machine of this name that no daemon keeps.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn alone(name: &str) -> Result<Self, ControlError> {
        Self::at(name, &place::directory(name).join(CONTROL_SOCKET))
    }

    /// Connects to the machine that serves at this socket.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn at(name: &str, socket: &Path) -> Result<Self, ControlError> {
        let stream = socket::connect(socket).map_err(|_| ControlError::NoMachine(name.into()))?;
        let mut client = Self {
            name: name.into(),
            stream: BufReader::new(stream),
        };
        let timed = client.stream.get_ref();
        let set = timed
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| timed.set_write_timeout(Some(PATIENCE)));
        set.map_err(|source| client.broken(source))?;
        let hello = client.hello()?;
        if hello.protocol != PROTOCOL_VERSION {
            return Err(ControlError::Version {
                name: client.name,
                found: hello.protocol,
                holm: hello.holm,
            });
        }
        Ok(client)
    }

    fn broken(&self, source: io::Error) -> ControlError {
        let name = self.name.clone();
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Ended(name),
            _ => ControlError::Connection { name, source },
        }
    }

    fn line(&mut self) -> Result<Option<String>, ControlError> {
        let mut line = String::new();
        let read = (&mut self.stream).take(ANSWER_MAX).read_line(&mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            Err(e) => Err(self.broken(e)),
        }
    }

    /// The machine's first words: in their place it may say that it has too
    /// many clients.
    fn hello(&mut self) -> Result<Hello, ControlError> {
        let line = self.line()?;
        let line = line.ok_or_else(|| ControlError::Ended(self.name.clone()))?;
        if let Ok(Reply::Error { message, .. }) = serde_json::from_str(&line) {
            return Err(ControlError::Refused {
                name: self.name.clone(),
                message,
            });
        }
        serde_json::from_str(&line).map_err(|e| self.broken(e.into()))
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        let sent = write(self.stream.get_ref(), request);
        sent.map_err(|source| self.broken(source))?;
        self.next()?
            .ok_or_else(|| ControlError::Ended(self.name.clone()))
    }

    /// The next answer of a connection that is a stream; `None`: the machine
    /// has closed it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn next(&mut self) -> Result<Option<Reply>, ControlError> {
        let Some(line) = self.line()? else {
            return Ok(None);
        };
        match serde_json::from_str(&line).map_err(|e| self.broken(e.into()))? {
            Reply::Error { message, .. } => Err(ControlError::Refused {
                name: self.name.clone(),
                message,
            }),
            reply => Ok(Some(reply)),
        }
    }

    /// Waits for the next answer as long as it takes.
    ///
    /// # Errors
    /// [`ControlError::Connection`].
    pub fn wait_long(&mut self) -> Result<(), ControlError> {
        let set = self.stream.get_ref().set_read_timeout(None);
        set.map_err(|source| self.broken(source))
    }

    /// Waits for the next answer so long.
    ///
    /// # Errors
    /// [`ControlError::Connection`].
    pub fn wait_for(&mut self, patience: Duration) -> Result<(), ControlError> {
        let set = self.stream.get_ref().set_read_timeout(Some(patience));
        set.map_err(|source| self.broken(source))
    }

    /// A way to send on a connection from other threads.
    ///
    /// # Errors
    /// [`ControlError::Connection`].
    pub fn sending(&self) -> Result<Sending, ControlError> {
        let stream = self.stream.get_ref().try_clone();
        let stream = stream.map_err(|source| self.broken(source))?;
        // A guest that reads nothing for long keeps what is typed waiting.
        let set = stream.set_write_timeout(None);
        set.map_err(|source| self.broken(source))?;
        Ok(Sending(Arc::new(Mutex::new(stream))))
    }

    /// The error for an answer that does not fit.
    pub fn strange(&self) -> ControlError {
        self.broken(io::Error::other("it gave an answer to something else"))
    }

    /// What the machine is and does.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn describe(&mut self) -> Result<Description, ControlError> {
        match self.ask(&Request::Describe {})? {
            Reply::Description(description) => Ok(description),
            _ => Err(self.strange()),
        }
    }

    /// Its counters.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn metrics(&mut self) -> Result<Metrics, ControlError> {
        match self.ask(&Request::Metrics {})? {
            Reply::Metrics(metrics) => Ok(metrics),
            _ => Err(self.strange()),
        }
    }
}

fn write(mut stream: &UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Sends requests on a connection that is a stream; clones share it.
#[derive(Clone)]
pub struct Sending(Arc<Mutex<UnixStream>>);

impl Sending {
    /// Sends one.
    ///
    /// # Errors
    /// The host's.
    pub fn send(&self, request: &Request) -> io::Result<()> {
        write(&self.0.lock(), request)
    }

    /// Sends one, unless another thread waits to send.
    pub fn offer(&self, request: &Request) {
        if let Some(stream) = self.0.try_lock() {
            // A broken connection is seen by who reads from it.
            let _ = write(&stream, request);
        }
    }
}
