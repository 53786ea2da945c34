//! `holm host-port DIR`: the process of the host's own port in a network. Like
//! a machine it outlives the daemon, and the interface goes with it.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use machine_protocol::host_port::{
    HOST_PORT_FILE, HOST_PORT_REDIRECTS, HOST_PORT_STATUS, HostPort, HostPortStatus, Redirect,
    RedirectList,
};
use machine_protocol::launch::{self, LAUNCH_VERSION};
use net::host_port::{HostPort as Port, Redirects};
use net::tap::InterfaceName;

use crate::console::terminal;
use crate::exit_code;
use crate::failure::Failure;
use crate::machine_process::{Arguments, enter, write_json};

/// Between two looks whether anybody wants the port, and what is to be led
/// elsewhere.
const PERIOD: Duration = Duration::from_secs(1);
/// Looks between two attempts to have a port that was refused.
const ATTEMPT: u32 = 5;

/// Serves the port until its directory is gone; the exit status.
pub fn run(arguments: &Arguments) -> u8 {
    let served = enter(&arguments.directory).and_then(|lock| {
        let served = serve();
        drop(lock);
        served
    });
    match served {
        Ok(()) => exit_code::SUCCESS,
        Err(failure) => {
            terminal::say(&format!("holm: {failure}"));
            failure.code()
        }
    }
}

fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::File(format!("{what}: {e}"))
}

fn serve() -> Result<(), Failure> {
    let text = fs::read(HOST_PORT_FILE).map_err(|e| failed("reading port.json", e))?;
    let wanted: HostPort = launch::parse(HOST_PORT_FILE, &text).map_err(|e| failed("port", e))?;
    let interface: InterfaceName = wanted.interface.parse().map_err(|e| failed("port", e))?;
    let mut looks = Looks {
        redirects: Redirects::new(&interface),
        status: HostPortStatus {
            version: LAUNCH_VERSION,
            address: None,
            refused: None,
            not_redirected: None,
        },
        told: None,
    };
    while looks.look() {
        let port = Port::open(&interface, &wanted.network, wanted.vpc);
        let served = port.and_then(|port| {
            looks.status.address = Some(port.address());
            looks.status.refused = None;
            port.serve(PERIOD, || looks.look())
        });
        let Err(error) = served else {
            return Ok(());
        };
        looks.status.address = None;
        looks.status.refused = Some(error.to_string());
        for _ in 0..ATTEMPT {
            if !looks.look() {
                return Ok(());
            }
            thread::sleep(PERIOD);
        }
    }
    Ok(())
}

/// What is done now and then.
struct Looks {
    redirects: Redirects,
    status: HostPortStatus,
    told: Option<HostPortStatus>,
}

impl Looks {
    /// Does it; whether anybody wants the port still: the working directory is
    /// there.
    fn look(&mut self) -> bool {
        if !fs::exists(HOST_PORT_FILE).unwrap_or(true) {
            return false;
        }
        let redirected = read_redirects().and_then(|wanted| {
            let set = self.redirects.set(&wanted);
            set.map_err(|e| e.to_string())
        });
        self.status.not_redirected = redirected.err();
        let is_known = self.status.address.is_some() || self.status.refused.is_some();
        if is_known && self.told.as_ref() != Some(&self.status) {
            match write_json(HOST_PORT_STATUS, &self.status) {
                Ok(()) => self.told = Some(self.status.clone()),
                Err(error) => terminal::say(&format!("holm: writing {HOST_PORT_STATUS}: {error}")),
            }
        }
        true
    }
}

fn read_redirects() -> Result<Vec<Redirect>, String> {
    let text = match fs::read(HOST_PORT_REDIRECTS) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| format!("reading {HOST_PORT_REDIRECTS}: {e}"))?,
    };
    let list = launch::parse::<RedirectList>(HOST_PORT_REDIRECTS, &text);
    list.map(|list| list.redirects).map_err(|e| e.to_string())
}
