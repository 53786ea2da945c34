//! A link offered to local clients on a Unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::link::{Link, LinkError, RawChannel};

/// Most bytes of a request.
pub const REQUEST_MAX: u64 = 16 << 20;
/// Clients served at once; more have to wait.
const CLIENTS_MAX: usize = 32;
/// Time for an answer. Freezing waits for all that is being written.
const PATIENCE: Duration = Duration::from_secs(120);

/// Answers requests that are for the machine and not for its guest: the
/// commands that begin with `holm-`, given with their whole line; the JSON of
/// the result, or what is wrong.
pub type Local = dyn Fn(&str, &[u8]) -> Result<String, String> + Send + Sync;

/// Serves clients until the listener fails or the machine has ended. Each
/// client has a thread; their requests take turns.
pub fn serve<C: RawChannel + 'static>(
    listener: &UnixListener,
    link: &Arc<Mutex<Link<C>>>,
    local: &Arc<Local>,
) {
    let clients = Arc::new(AtomicUsize::new(0));
    while let Ok((stream, _)) = listener.accept() {
        while clients.load(Ordering::SeqCst) >= CLIENTS_MAX {
            std::thread::sleep(Duration::from_millis(20));
        }
        clients.fetch_add(1, Ordering::SeqCst);
        let (link, local, count) = (link.clone(), local.clone(), clients.clone());
        let spawned = std::thread::Builder::new()
            .name("agent-client".into())
            .stack_size(256 << 10)
            .spawn(move || {
                // A client that goes in the middle is its own affair.
                let _ = attend(&stream, &link, &*local, PATIENCE);
                count.fetch_sub(1, Ordering::SeqCst);
            });
        if spawned.is_err() {
            clients.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Serves one client until it goes, and gives the guest this long for each
/// answer.
///
/// # Errors
/// The client's end of the connection broke.
pub fn attend<C: RawChannel>(
    stream: &UnixStream,
    link: &Mutex<Link<C>>,
    local: &Local,
    patience: Duration,
) -> Result<(), std::io::Error> {
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
            out.write_all(&refusal("the request is longer than 16 MiB or has no end"))?;
            return Ok(());
        }
        // Whole values only: what follows half of one would be lost.
        let Ok(Head { execute }) = serde_json::from_slice(&line) else {
            out.write_all(&refusal(
                "the request is not JSON with a command to execute",
            ))?;
            continue;
        };
        if execute.starts_with("holm-") {
            let answer = match local(&execute, &line) {
                Ok(result) => format!("{{\"return\": {result}}}\n").into_bytes(),
                Err(what) => refusal(&what),
            };
            out.write_all(&answer)?;
            continue;
        }
        let result = link.lock().call(&line, patience);
        match result {
            Ok(mut answer) => {
                answer.push(b'\n');
                out.write_all(&answer)?;
            }
            Err(error) => out.write_all(&refusal_of(error))?,
        }
    }
}

#[derive(serde::Deserialize)]
struct Head {
    execute: String,
}

fn refusal_of(error: LinkError) -> Vec<u8> {
    let class = match error {
        LinkError::NoAgent => "HolmNoAgent",
        LinkError::Timeout => "HolmTimeout",
        LinkError::TooLong => "HolmTooLong",
        LinkError::Ended => "HolmEnded",
    };
    answer(class, &error.to_string())
}

fn refusal(what: &str) -> Vec<u8> {
    answer("HolmRequest", what)
}

fn answer(class: &str, text: &str) -> Vec<u8> {
    let value = serde_json::json!({"error": {"class": class, "desc": text}});
    format!("{value}\n").into_bytes()
}
