//! The daemon's REST interface, asked again for as long as the daemon is dead.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(50);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a daemon may be away, on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// An answer: its status, and what it says.
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// JSON, or text as a string.
    pub body: Value,
}

impl Answer {
    /// What a daemon that did it answers.
    ///
    /// # Errors
    /// It refused.
    pub fn done(self, doing: &str) -> Result<Value> {
        match self.status {
            200..=299 => Ok(self.body),
            status => bail!("{doing}: {status} {}", self.body),
        }
    }
}

/// A client on the socket of a state directory.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of this state directory.
    pub fn new(state: &Path) -> Self {
        Self {
            socket: state.join("run/api.sock"),
        }
    }

    /// Asks until a daemon answers. `key` makes a repeated POST one.
    ///
    /// # Errors
    /// None answers for too long.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Answer> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.once(method, path, body, key) {
                // The daemon is ending, or has only begun.
                Ok(answer) if answer.status != 503 => return Ok(answer),
                other if Instant::now() > end => {
                    return other
                        .with_context(|| format!("no daemon answers {method} {path} any more"));
                }
                _ => thread::sleep(AGAIN),
            }
        }
    }

    fn once(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: holm\r\n");
        if !body.is_empty() {
            let length = body.len();
            head += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        if let Some(key) = key {
            head += &format!("Idempotency-Key: {key}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if length.is_some_and(|length| length > body.len()) {
            bail!("half an answer");
        }
        let body = match serde_json::from_str(body) {
            Ok(value) => value,
            Err(_) => Value::String(body.to_owned()),
        };
        Ok(Answer { status, body })
    }

    /// Reads something.
    ///
    /// # Errors
    /// As [`Self::ask`], or it is refused.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None, None)?.done(path)
    }

    /// All of a collection.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn all(&self, path: &str) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.get(&format!("{path}{after}"))?;
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => after = format!("?after={next}"),
                None => return Ok(items),
            }
        }
    }
}
