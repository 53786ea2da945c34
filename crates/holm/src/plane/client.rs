//! The client of the daemon's REST interface, on its Unix socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::problem::Problem;
use api::resources::{Listing, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::daemon::API_SOCKET;
use crate::exit_code;
use crate::socket;
use crate::state_directory;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest answer, in bytes.
const ANSWER_MAX: u64 = 256 << 20;

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// None answers.
    #[error(
        "no daemon answers at {0}; start one with `holm daemon`, or name its state directory with --state"
    )]
    NoDaemon(PathBuf),
    /// The connection failed.
    #[error("talking to the daemon: {0}")]
    Connection(#[from] io::Error),
    /// It answered what this program does not understand.
    #[error("the daemon's answer is strange: {0}; is it of another version of holm?")]
    Strange(String),
    /// It refused.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// There is none, or more than one.
    #[error("{0}")]
    Which(String),
    /// A file of this host.
    #[error("{0}")]
    File(String),
    /// It took too long.
    #[error("{0}")]
    TimedOut(String),
}

impl PlaneError {
    /// The exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit_code::USAGE,
            Self::File(_) => exit_code::BAD_FILE,
            Self::TimedOut(_) => exit_code::TIMEOUT,
            _ => exit_code::CONTROL,
        }
    }
}

/// The daemon of a state directory.
pub struct Client {
    run: PathBuf,
}

struct Answer {
    status: u16,
    body: BufReader<UnixStream>,
}

impl Client {
    /// The one of the state directory that the command line or `HOLM_STATE`
    /// names.
    pub fn new() -> Self {
        Self::of(None)
    }

    /// That of a state directory; `None`: as [`Self::new`].
    pub fn of(state: Option<&Path>) -> Self {
        Self {
            run: state_directory::resolve(state).join("run"),
        }
    }

    /// Whether a daemon answers.
    pub fn answers(&self) -> bool {
        self.connect().is_ok()
    }

    fn connect(&self) -> Result<UnixStream, PlaneError> {
        let path = self.run.join(API_SOCKET);
        socket::connect(&path).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => PlaneError::File(format!(
                "{} belongs to another user; become that user, or name another state directory with --state",
                path.display()
            )),
            _ => PlaneError::NoDaemon(path),
        })
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, PlaneError> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Of HTTP 1.0 an answer ends with its connection.
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: holm\r\n");
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            let length = body.len();
            head += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
        let mut body = BufReader::new(stream);
        let mut line = String::new();
        (&mut body).take(1024).read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| PlaneError::Strange(line.trim().to_owned()))?;
        loop {
            let mut line = String::new();
            let read = (&mut body).take(16 << 10).read_line(&mut line)?;
            if read == 0 || line == "\r\n" {
                return Ok(Answer { status, body });
            }
        }
    }

    /// Asks, and reads the answer to its end.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, PlaneError> {
        let answer = self.send(method, path, body)?;
        let mut bytes = Vec::new();
        answer.body.take(ANSWER_MAX).read_to_end(&mut bytes)?;
        match answer.status {
            200..=299 => Ok(bytes),
            _ => Err(refused(&bytes)),
        }
    }

    /// Asks for something that answers JSON.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, PlaneError> {
        let bytes = self.call(method, path, body)?;
        serde_json::from_slice(&bytes).map_err(|e| PlaneError::Strange(e.to_string()))
    }

    /// Reads something.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, PlaneError> {
        self.ask("GET", path, None)
    }

    /// All records of a collection; `query` may be empty.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub fn all<T: DeserializeOwned>(&self, path: &str, query: &str) -> Result<Vec<T>, PlaneError> {
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let question = match (query.is_empty(), after.is_empty()) {
                (true, true) => "",
                _ => "?",
            };
            let page: Listing<T> = self.get(&format!("{path}{question}{query}{after}"))?;
            items.extend(page.items);
            match page.next {
                Some(next) if query.is_empty() => after = format!("after={next}"),
                Some(next) => after = format!("&after={next}"),
                None => return Ok(items),
            }
        }
    }

    /// Watches, until `seen` has seen enough (and says what), or for ever.
    ///
    /// # Errors
    /// [`PlaneError`]; [`PlaneError::TimedOut`] if nothing comes for that long.
    pub fn watch<T>(
        &self,
        query: &str,
        silence: Option<Duration>,
        mut seen: impl FnMut(&str, Option<WatchEvent>) -> Result<Option<T>, PlaneError>,
    ) -> Result<Option<T>, PlaneError> {
        let mut answer = self.send("GET", &format!("/v1/watch?{query}"), None)?;
        if answer.status != 200 {
            let mut bytes = Vec::new();
            answer.body.take(ANSWER_MAX).read_to_end(&mut bytes)?;
            return Err(refused(&bytes));
        }
        answer.body.get_ref().set_read_timeout(silence)?;
        let mut event = String::new();
        let mut line = String::new();
        loop {
            line.clear();
            if (&mut answer.body).take(ANSWER_MAX).read_line(&mut line)? == 0 {
                return Ok(None);
            }
            if let Some(name) = line.strip_prefix("event:") {
                name.trim().clone_into(&mut event);
            } else if let Some(data) = line.strip_prefix("data:") {
                let data = serde_json::from_str(data).ok();
                if let Some(enough) = seen(&event, data)? {
                    return Ok(Some(enough));
                }
            } else if line.starts_with(':')
                && let Some(enough) = seen("alive", None)?
            {
                return Ok(Some(enough));
            }
        }
    }
}

fn refused(body: &[u8]) -> PlaneError {
    match serde_json::from_slice(body) {
        Ok(problem) => PlaneError::Refused(problem),
        Err(_) => PlaneError::Strange(String::from_utf8_lossy(body).chars().take(200).collect()),
    }
}

/// A value in a path or query.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            true => quoted.push(char::from(byte)),
            false => quoted += &format!("%{byte:02X}"),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_change_a_path() {
        assert_eq!(quoted("a-b_1.~"), "a-b_1.~");
        assert_eq!(quoted("a/../b?c=d&e f"), "a%2F..%2Fb%3Fc%3Dd%26e%20f");
    }
}
