//! Ports of machines' public addresses that are led to where they answer: the
//! host's own sshd may listen at port 22 of all addresses.
//!
//! The rules are in a table of nftables that belongs to a process of `nft`: the
//! kernel removes it with that process, and that goes with this one, whose pipe
//! it reads.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use machine_protocol::host_port::Redirect;
use machine_protocol::vpc::Protocol;

use crate::tap::InterfaceName;

/// How often it is looked whether the rules are there, and the pause between.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// Ports that cannot be led elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// There is no such program.
    #[error(
        "running nft: {0}; install nftables, so that ports answer at public addresses that the host's \
         own programs listen at"
    )]
    Program(io::Error),
    /// The kernel does not have the rules.
    #[error("nft did not make the rules of table {table}: {said}")]
    Refused {
        /// The table.
        table: String,
        /// What it said instead.
        said: String,
    },
}

/// The rules of one process.
pub struct Redirects {
    table: String,
    nft: Option<Child>,
    are: Vec<Redirect>,
}

impl Redirects {
    /// None as yet. Their table has the name of the interface.
    pub fn new(interface: &InterfaceName) -> Self {
        Self {
            table: interface.as_str().to_owned(),
            nft: None,
            are: Vec::new(),
        }
    }

    /// Leads these ports, and no others any more.
    ///
    /// # Errors
    /// [`RedirectError`]; none is led then.
    pub fn set(&mut self, wanted: &[Redirect]) -> Result<(), RedirectError> {
        let lives = self.nft.as_mut().is_some_and(|nft| {
            // An error here means that it is not known: better anew.
            matches!(nft.try_wait(), Ok(None))
        });
        if self.are == wanted && (lives || wanted.is_empty()) {
            return Ok(());
        }
        let done = self.change(wanted, lives);
        match &done {
            Ok(()) => self.are = wanted.to_vec(),
            Err(_) => self.end(),
        }
        done
    }

    fn change(&mut self, wanted: &[Redirect], lives: bool) -> Result<(), RedirectError> {
        if wanted.is_empty() {
            self.end();
            return Ok(());
        }
        if !lives {
            self.end();
            self.begin()?;
        }
        let script = script(&self.table, wanted);
        let input = self.nft.as_mut().and_then(|nft| nft.stdin.as_mut());
        let input =
            input.ok_or_else(|| RedirectError::Program(io::ErrorKind::BrokenPipe.into()))?;
        input
            .write_all(script.as_bytes())
            .and_then(|()| input.flush())
            .map_err(RedirectError::Program)?;
        self.are_made(wanted.len())
    }

    fn begin(&mut self) -> Result<(), RedirectError> {
        let nft = nft().arg("-i").stdin(Stdio::piped()).spawn();
        self.nft = Some(nft.map_err(RedirectError::Program)?);
        Ok(())
    }

    /// Waits until the kernel has so many rules.
    fn are_made(&self, count: usize) -> Result<(), RedirectError> {
        let mut said = String::new();
        for _ in 0..LOOKS {
            let listed = nft()
                .args(["list", "table", "ip", &self.table])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .output()
                .map_err(RedirectError::Program)?;
            let text = String::from_utf8_lossy(&listed.stdout);
            if text.matches(" dnat to ").count() == count {
                return Ok(());
            }
            said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
            thread::sleep(PAUSE);
        }
        Err(RedirectError::Refused {
            table: self.table.clone(),
            said,
        })
    }

    fn end(&mut self) {
        self.are.clear();
        if let Some(mut nft) = self.nft.take() {
            // It may have ended.
            let _ = nft.kill();
            let _ = nft.wait();
        }
    }
}

impl Drop for Redirects {
    fn drop(&mut self) {
        self.end();
    }
}

/// The program, also for who has no directory of the administrator's in PATH.
fn nft() -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("nft");
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdout(Stdio::null());
    command
}

/// Lines for nft; each is a transaction.
fn script(table: &str, wanted: &[Redirect]) -> String {
    let mut script = format!(
        "add table ip {table} {{ flags owner; }}; add chain ip {table} out {{ type nat hook output \
         priority -100; }}\nflush chain ip {table} out"
    );
    for one in wanted {
        let kind = match one.protocol {
            Protocol::UDP => "udp",
            _ => "tcp",
        };
        let Redirect {
            address, port, to, ..
        } = one;
        // A String takes whatever is written.
        let _ = write!(
            script,
            "; add rule ip {table} out ip daddr {address} {kind} dport {port} dnat to {address}:{to}"
        );
    }
    script.push('\n');
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_a_rule_and_all_come_at_once() {
        let redirect = |protocol, port| Redirect {
            address: [127, 86, 0, 4].into(),
            protocol,
            port,
            to: port + 10_000,
        };
        let wanted = [redirect(Protocol::TCP, 22), redirect(Protocol::UDP, 53)];
        let text = script("holm-1", &wanted);
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with(
            "flush chain ip holm-1 out; add rule ip holm-1 out ip daddr 127.86.0.4 tcp dport 22 dnat to \
             127.86.0.4:10022; add rule ip holm-1 out ip daddr 127.86.0.4 udp dport 53 dnat to \
             127.86.0.4:10053\n"
        ));
    }

    #[test]
    fn nothing_is_run_for_nothing() {
        let mut none = Redirects::new(&"holm-1".parse().unwrap());
        none.set(&[]).unwrap();
        assert!(none.nft.is_none());
    }
}
