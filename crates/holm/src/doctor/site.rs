//! What `holm doctor` tries for a daemon of the state directory.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use api::resources::images::ImageView;
use images::Library;

use super::{Finding, finding};
use crate::daemon::{EC2_FILE, EC2_PORT};
use crate::plane::client::Client;
use crate::state_directory;

/// Less room than this is too little for a machine's disk to grow, in bytes.
const ROOM: u64 = 2 << 30;
/// An address of those that machines get (`docs/network-vpc.md`), which none has.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 86, 255, 254);
/// Where ssh is served.
const SSH: u16 = 22;

/// Tries everything.
pub fn findings() -> Vec<Finding> {
    let state = state_directory::resolve(None);
    let client = Client::new();
    vec![
        writable(&state),
        room(&state),
        daemon(&client, &state),
        ec2_port(&state),
        low_ports(),
        images(&client, &state),
        subordinate_ids(),
        ssh(),
    ]
}

/// The state directory, or the directory in which it would be made.
fn nearest(state: &Path) -> PathBuf {
    let existing = state.ancestors().find(|path| path.is_dir());
    existing.unwrap_or(Path::new("/")).to_owned()
}

fn writable(state: &Path) -> Finding {
    let within = nearest(state);
    let tried = within.join(format!(".holm-doctor-{}", std::process::id()));
    let written = fs::write(&tried, b"x").and_then(|()| fs::remove_file(&tried));
    let result = match written {
        Ok(()) if within == state => Ok(format!("a file was written in {}", state.display())),
        Ok(()) => Ok(format!("{} can be made", state.display())),
        Err(error) => Err(format!(
            "{}: {error}; name another with --state or HOLM_STATE, or become the user who owns it",
            within.display()
        )),
    };
    finding("state_directory", "all that a daemon keeps", result)
}

fn room(state: &Path) -> Finding {
    let result = rustix::fs::statvfs(nearest(state))
        .map_err(|error| error.to_string())
        .and_then(|s| {
            let free = s.f_bavail.saturating_mul(s.f_frsize);
            let text = format!("{} MiB are free", free >> 20);
            match free < ROOM {
                true => Err(format!(
                    "{text}; `holm image prune` and `holm rm` make room"
                )),
                false => Ok(text),
            }
        });
    finding("disk_space", "images and volumes", result)
}

fn daemon(client: &Client, state: &Path) -> Finding {
    let result = match client.answers() {
        true => Ok(format!("one answers for {}", state.display())),
        false => Err(format!(
            "none answers for {}; `holm daemon` starts one",
            state.display()
        )),
    };
    finding(
        "daemon",
        "machines that exist until somebody says otherwise, and the AWS tools",
        result,
    )
}

fn ec2_port(state: &Path) -> Finding {
    let served = fs::read_to_string(state.join("run").join(EC2_FILE));
    let served = served.ok().filter(|_| Client::new().answers());
    let result = match served {
        Some(url) => Ok(format!("the daemon serves {}", url.trim())),
        None => bound((Ipv4Addr::LOCALHOST, EC2_PORT).into())
            .map(|()| format!("port {EC2_PORT} is free"))
            .map_err(|e| {
                format!("port {EC2_PORT}: {e}; choose another: holm daemon --ec2 127.0.0.1:0")
            }),
    };
    finding("ec2_port", "the EC2 interface", result)
}

fn low_ports() -> Finding {
    let result = bound((ADDRESS, SSH).into())
        .map(|()| format!("{ADDRESS}:{SSH} was listened on"))
        .map_err(|e| {
            format!(
                "{ADDRESS}:{SSH}: {e}; run the daemon as root, or see sysctl \
                 net.ipv4.ip_unprivileged_port_start; `holm ssh` needs neither"
            )
        });
    finding(
        "low_ports",
        "port 22 and others below 1024 of machines' public addresses",
        result,
    )
}

fn bound(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn images(client: &Client, state: &Path) -> Finding {
    let build = "`holm image build debian` builds one, `holm image import` takes one";
    let offered: Result<Vec<ImageView>, _> = client.all("/v1/images", "");
    let count = match offered {
        Ok(images) => Ok(images.len()),
        // Without a daemon the library itself is looked at.
        Err(_) => match Library::find(&state.join("images")) {
            Ok(Some(library)) => library.digests().map(|all| all.len()),
            Ok(None) => Ok(0),
            Err(error) => Err(error),
        }
        .map_err(|error| error.to_string()),
    };
    let result = count.and_then(|count| match count {
        0 => Err(format!("there is none; {build}")),
        1 => Ok("there is one".into()),
        more => Ok(format!("there are {more}")),
    });
    finding("images", "what machines are made of", result)
}

/// `subuid(5)`: what `newuidmap` may give to the namespace of a build.
fn subordinate_ids() -> Finding {
    let user = rustix::process::geteuid();
    let result = match user.is_root() {
        true => Ok("root needs none".into()),
        false => has_ids("/etc/subuid")
            .and_then(|()| has_ids("/etc/subgid"))
            .map(|()| "this user has a range in /etc/subuid and /etc/subgid".into()),
    };
    finding("subordinate_ids", "building images without root", result)
}

fn has_ids(file: &str) -> Result<(), String> {
    let user = rustix::process::geteuid().as_raw().to_string();
    let text = fs::read_to_string(file).map_err(|e| format!("{file}: {e} (package uidmap)"))?;
    let name = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| {
        let of = |line: &&str| line.split(':').nth(2) == Some(user.as_str());
        let line = passwd.lines().find(of)?.to_owned();
        line.split(':').next().map(str::to_owned)
    });
    let is = |first: &str| first == user || name.as_deref() == Some(first);
    match text
        .lines()
        .any(|line| line.split(':').next().is_some_and(is))
    {
        true => Ok(()),
        false => Err(format!(
            "{file} has no range for this user; as root: usermod --add-subuids 100000-165535 \
             --add-subgids 100000-165535 {}",
            name.as_deref().unwrap_or(&user)
        )),
    }
}

fn ssh() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|directory| directory.join("ssh").is_file());
    let result = match found {
        Some(directory) => Ok(directory.join("ssh").display().to_string()),
        None => Err("there is none in PATH; install it (Debian: openssh-client)".into()),
    };
    finding("ssh", "`holm ssh`", result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_be_made_is_told_from_one_that_cannot() {
        let directory = tempfile::tempdir().unwrap();
        let there = writable(directory.path());
        assert!(
            there.usable && there.detail.contains("was written"),
            "{there:?}"
        );
        let new = writable(&directory.path().join("a/b"));
        assert!(new.usable && new.detail.contains("can be made"), "{new:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let impossible = writable(Path::new("/proc/holm"));
        assert!(
            !impossible.usable && impossible.detail.contains("--state"),
            "{impossible:?}"
        );
    }
}
