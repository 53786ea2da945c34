//! The host's own ports in networks: a process each, known by its directory as
//! a machine's is.

use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use machine_protocol::host_port::{HostPort, HostPortStatus, Redirect};
use machine_protocol::launch::LAUNCH_VERSION;
use machine_protocol::vpc::{Cidr, PortReport};
use tokio::process::Command;

use super::directory::Directory;
use super::{RealConfig, failed, process};
use crate::driver::DriverError;

/// How long a dismissed process may take to go: it looks each second. One that
/// is killed leaves its socket in the network.
const WILLING: Duration = Duration::from_secs(4);
/// How long a killed process may take to go.
const GONE: Duration = Duration::from_secs(5);
/// CAP_NET_ADMIN (capabilities(7)).
const NET_ADMIN: u32 = 12;
/// Letters of an interface's name; the kernel takes no more.
const NAME: usize = 15;

/// Whether this process may make interfaces.
pub fn are_possible() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let may = effective.is_some_and(|all| all >> NET_ADMIN & 1 == 1);
    may && std::path::Path::new("/dev/net/tun").exists()
}

/// Of a network's interface: ids are random from their first digit on.
fn interface(network: &str) -> String {
    let (_, id) = network.split_once('-').unwrap_or(("", network));
    format!("holm-{id}").chars().take(NAME).collect()
}

/// What of a card's ports answers elsewhere than clients expect.
pub fn displaced(card: &PortReport) -> impl Iterator<Item = Redirect> {
    let published = card.published.iter();
    let displaced = published.filter(|port| port.host_port != port.port);
    displaced.filter_map(|port| {
        Some(Redirect {
            address: card.public?,
            protocol: port.protocol,
            port: port.port,
            to: port.host_port,
        })
    })
}

/// See [`crate::Driver::ensure_host_port`].
pub async fn ensure(
    config: &RealConfig,
    network: &str,
    block: Ipv4Net,
) -> Result<Option<HostPortStatus>, DriverError> {
    let doing = "making the host's port in";
    let directory = Directory::of(&config.layout.host_ports(), network)?;
    let vpc = Cidr::new(block.network().into(), block.prefix_len());
    let vpc = vpc.ok_or_else(|| DriverError::refused(doing, network, "its block is odd"))?;
    let wanted = HostPort {
        version: LAUNCH_VERSION,
        interface: interface(network),
        network: config.layout.network(network),
        vpc,
    };
    if directory.has_process().await? {
        let (is, status) = directory.read_port().await?;
        if is.as_ref() == Some(&wanted) {
            return Ok(status);
        }
        end(&directory).await?;
    }
    let Some((lock, messages)) = directory.prepare_port(&wanted).await? else {
        return Ok(None);
    };
    let mut child = Command::new(&config.program)
        .arg("host-port")
        .arg(directory.path())
        .stdin(Stdio::from(lock))
        .stdout(Stdio::null())
        .stderr(Stdio::from(messages))
        .current_dir("/")
        .spawn()
        .map_err(|e| failed(doing, &directory, &e))?;
    let network = network.to_owned();
    tokio::spawn(async move {
        let status = child.wait().await;
        tracing::debug!(network, ?status, "the process of a host's port ended");
    });
    Ok(None)
}

async fn end(directory: &Directory) -> Result<(), DriverError> {
    let until = tokio::time::Instant::now() + GONE;
    while directory.has_process().await? {
        // A process that has only just begun has not said yet which it is.
        process::kill(directory).await?;
        if directory.is_gone_within(super::AGAIN).await? {
            break;
        }
        if tokio::time::Instant::now() > until {
            return Err(failed(
                "removing the host's port in",
                directory,
                &"its process does not end",
            ));
        }
    }
    Ok(())
}

/// See [`crate::Driver::remove_host_port`].
pub async fn remove(config: &RealConfig, network: &str) -> Result<(), DriverError> {
    let directory = Directory::of(&config.layout.host_ports(), network)?;
    directory.dismiss_port().await?;
    if !directory.is_gone_within(WILLING).await? {
        end(&directory).await?;
    }
    directory.remove().await
}
