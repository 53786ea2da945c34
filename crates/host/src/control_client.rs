//! The daemon's side of a machine's control socket.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use machine_protocol::launch::CONTROL_SOCKET;
use machine_protocol::{Description, Event, Hello, PROTOCOL_VERSION, Reply, Request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a machine may take to answer: it runs on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer.
const ANSWER_MAX: u64 = 8 << 20;

/// Why a machine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers at its socket.
    #[error("the machine cannot be reached: {0}")]
    Unreachable(io::Error),
    /// The connection failed, or the answer did not come in time.
    #[error("talking to the machine: {0}")]
    Connection(io::Error),
    /// Another version of holm runs it.
    #[error(
        "the machine speaks protocol {found} (holm {holm}), and this holm {PROTOCOL_VERSION}; use the holm that runs it"
    )]
    Version {
        /// Its protocol.
        found: u32,
        /// Its version.
        holm: String,
    },
    /// It refused.
    #[error("the machine refuses: {0}")]
    Refused(String),
}

/// A connection to a machine.
pub struct ControlClient {
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects to the machine of this directory.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn connect(directory: &Path) -> Result<Self, ControlError> {
        // A socket's path has at most 107 bytes, a directory's may have more.
        let directory = File::open(directory).map_err(ControlError::Unreachable)?;
        let short = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", directory.as_raw_fd());
        let stream = UnixStream::connect(short).await;
        let mut client = Self {
            stream: BufReader::new(stream.map_err(ControlError::Unreachable)?),
        };
        drop(directory);
        let hello: Hello = client.receive(PATIENCE).await?;
        match hello.protocol {
            PROTOCOL_VERSION => Ok(client),
            found => Err(ControlError::Version {
                found,
                holm: hello.holm,
            }),
        }
    }

    async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(ANSWER_MAX);
        let read = limited.read_until(b'\n', &mut line).await?;
        Ok((read > 0).then_some(line))
    }

    async fn receive<T: serde::de::DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> Result<T, ControlError> {
        let line = timeout(patience, self.line()).await;
        let line = line.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let line = line.and_then(|line| line.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        let parsed = line.and_then(|line| Ok(serde_json::from_slice(&line)?));
        parsed.map_err(ControlError::Connection)
    }

    async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        let sent = async {
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            self.stream.write_all(&line).await
        };
        let sent = timeout(PATIENCE, sent).await;
        let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        sent.map_err(ControlError::Connection)
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        self.ask_long(request, PATIENCE).await
    }

    /// Asks for something that takes long.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask_long(
        &mut self,
        request: &Request,
        patience: Duration,
    ) -> Result<Reply, ControlError> {
        self.send(request).await?;
        match self.receive(patience).await? {
            Reply::Error { message, .. } => Err(ControlError::Refused(message)),
            reply => Ok(reply),
        }
    }

    /// What the machine is and does.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn describe(&mut self) -> Result<Description, ControlError> {
        match self.ask(&Request::Describe {}).await? {
            Reply::Description(description) => Ok(description),
            _ => Err(ControlError::Connection(io::Error::other(
                "it gave an answer to something else",
            ))),
        }
    }

    /// Tells what happens to the machine from now on, until it is gone.
    ///
    /// # Errors
    /// [`ControlError`], unless the machine closed the connection in good
    /// order.
    pub async fn follow(mut self, mut tell: impl FnMut(Event)) -> Result<(), ControlError> {
        self.send(&Request::Events {
            after: 0,
            follow: true,
        })
        .await?;
        while let Some(line) = self.line().await.map_err(ControlError::Connection)? {
            let reply = serde_json::from_slice(&line);
            match reply.map_err(|e| ControlError::Connection(e.into()))? {
                Reply::Events(list) => list.events.into_iter().for_each(&mut tell),
                Reply::Error { message, .. } => return Err(ControlError::Refused(message)),
                _ => {}
            }
        }
        Ok(())
    }
}
