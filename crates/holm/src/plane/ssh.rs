//! `holm ssh`: a shell in a machine, by the door that its process has for its
//! owner. No port of the host and no rule of a security group is needed.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::resources::images::ImageView;
use api::resources::instances::InstanceView;
use clap::Args;

use super::client::{Client, PlaneError};
use super::{finish, instance};
use crate::completion;
use crate::named::find;
use crate::socket;
use crate::state_directory;

/// `holm ssh`.
#[derive(Args, Debug)]
pub struct Ssh {
    /// Name or id; USER@NAME to log in as somebody else
    #[arg(value_name = "[USER@]NAME", add = completion::machines())]
    pub target: String,

    /// Private key (-i mine.pem); KEY.pem here, of the machine's key pair, unless given
    #[arg(short, long, value_name = "FILE")]
    pub identity: Option<PathBuf>,

    /// Connects standard input and output with a TCP port of the machine, for ProxyCommand
    #[arg(long, value_name = "PORT", conflicts_with = "command")]
    pub proxy: Option<u16>,

    /// What is run there; a shell unless given
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Runs ssh, in place of this process.
pub fn run(arguments: &Ssh) -> u8 {
    finish(try_run(arguments))
}

fn try_run(arguments: &Ssh) -> Result<(), PlaneError> {
    let (user, name) = match arguments.target.split_once('@') {
        Some((user, name)) => (Some(user), name),
        None => (None, arguments.target.as_str()),
    };
    find::target(name).map_err(PlaneError::Usage)?;
    if let Some(port) = arguments.proxy {
        return connect(&door(name)?, port);
    }
    let client = Client::new();
    let found = instance(&client, name)?;
    if found.state != "running" {
        return Err(PlaneError::Which(format!(
            "{name} is {}; `holm start {name}` starts it",
            found.state
        )));
    }
    let user = match user {
        Some(user) => user.to_owned(),
        None => login(&client, &found)?,
    };
    let mut ssh = Command::new("ssh");
    for option in options(&found.id)? {
        ssh.arg("-o").arg(option);
    }
    if let Some(file) = identity(arguments.identity.as_deref(), &found) {
        ssh.arg("-i").arg(file);
    }
    ssh.arg("-l").arg(user).arg(&found.id);
    ssh.args(&arguments.command);
    let failed = ssh.exec();
    Err(PlaneError::File(format!(
        "starting ssh: {failed}; is it installed (Debian: openssh-client)?"
    )))
}

/// Options with which ssh reaches a machine by its door.
///
/// # Errors
/// This program or the state directory cannot be named.
pub fn options(host: &str) -> Result<Vec<String>, PlaneError> {
    let holm = std::env::current_exe()
        .map_err(|e| PlaneError::File(format!("finding this program: {e}")))?;
    let state = state_directory::resolve(None);
    let known = state.join("run").join("known_hosts");
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    Ok(vec![
        format!(
            "ProxyCommand={} --state {} ssh {host} --proxy %p",
            quoted(&holm),
            quoted(&state)
        ),
        format!("UserKnownHostsFile=\"{}\"", known.display()),
        "StrictHostKeyChecking=accept-new".into(),
    ])
}

/// Who may log in, by the machine's image.
fn login(client: &Client, found: &InstanceView) -> Result<String, PlaneError> {
    let image: Result<ImageView, _> = client.get(&format!("/v1/images/{}", found.image_id));
    let login = image.ok().and_then(|image| image.login);
    login.ok_or_else(|| {
        PlaneError::Which(format!(
            "it is not known who may log in to {0}; say it: holm ssh USER@{0}",
            found.name.as_deref().unwrap_or(&found.id)
        ))
    })
}

fn identity(given: Option<&Path>, found: &InstanceView) -> Option<PathBuf> {
    let usual = || {
        let file = PathBuf::from(format!("{}.pem", found.key_name.as_ref()?));
        file.is_file().then_some(file)
    };
    given.map(Path::to_path_buf).or_else(usual)
}

/// The door of a machine, which needs no daemon for an id.
fn door(name: &str) -> Result<UnixStream, PlaneError> {
    let layout = host::Layout::new(state_directory::resolve(None));
    let id = find::kept(name).map_err(|e| PlaneError::Which(e.to_string()))?;
    let path = layout.door_socket(&id);
    socket::connect(&path).map_err(|e| {
        PlaneError::Which(format!(
            "{name} cannot be reached at {}: {e}; does it run? `holm show {name}`",
            path.display()
        ))
    })
}

fn connect(door: &UnixStream, port: u16) -> Result<(), PlaneError> {
    let mut sending = door.try_clone()?;
    sending.write_all(format!("{port}\n").as_bytes())?;
    std::thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut sending);
        // The other direction goes on until the guest ends it.
        let _ = sending.shutdown(Shutdown::Write);
    });
    copy(&mut &*door, &mut io::stdout().lock())?;
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                to.flush()?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
