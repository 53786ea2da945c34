//! A link offered to a local client on a Unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use parking_lot::Mutex;

use crate::link::{Link, LinkError, RawChannel};

/// Most bytes of a request.
pub const REQUEST_MAX: u64 = 16 << 20;

/// Answers requests that are for the machine and not for its guest: the
/// commands that begin with `holm-`, given with their whole line; the JSON of
/// the result, or what is wrong.
pub type Local = dyn Fn(&str, &[u8]) -> Result<String, String> + Send + Sync;

/// Serves one client until it goes, and gives the guest this long for each
/// answer.
///
/// # Errors
/// The client's end of the connection broke.
pub fn attend<C: RawChannel, S>(
    stream: &S,
    link: &Mutex<Link<C>>,
    local: &Local,
    patience: Duration,
) -> Result<(), std::io::Error>
where
    for<'a> &'a S: Read + Write,
{
    let mut requests = BufReader::new(stream);
    let mut out = stream;
    loop {
        let mut line = Vec::new();
        let length = (&mut requests)
            .take(REQUEST_MAX)
            .read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        if line.pop() != Some(b'\n') {
            out.write_all(refusal("the request is longer than 16 MiB or has no end").as_bytes())?;
            return Ok(());
        }
        // Whole values only: what follows half of one would be lost.
        let Ok(Head { execute }) = serde_json::from_slice(&line) else {
            let what = "the request is not JSON with a command to execute";
            out.write_all(refusal(what).as_bytes())?;
            continue;
        };
        if execute.starts_with("holm-") {
            let answer = match local(&execute, &line) {
                Ok(result) => format!("{{\"return\": {result}}}\n"),
                Err(what) => refusal(&what),
            };
            out.write_all(answer.as_bytes())?;
            continue;
        }
        let result = link.lock().call(&line, patience);
        match result {
            Ok(mut answer) => {
                answer.push(b'\n');
                out.write_all(&answer)?;
            }
            Err(error) => out.write_all(refusal_of(error).as_bytes())?,
        }
    }
}

#[derive(serde::Deserialize)]
struct Head {
    execute: String,
}

fn refusal_of(error: LinkError) -> String {
    let class = match error {
        LinkError::NoAgent => "HolmNoAgent",
        LinkError::Timeout => "HolmTimeout",
        LinkError::TooLong => "HolmTooLong",
        LinkError::Ended => "HolmEnded",
    };
    answer(class, &error.to_string())
}

/// The answer to what is no request that can be done, as a line.
#[must_use]
pub fn refusal(what: &str) -> String {
    answer("HolmRequest", what)
}

fn answer(class: &str, text: &str) -> String {
    let value = serde_json::json!({"error": {"class": class, "desc": text}});
    format!("{value}\n")
}
