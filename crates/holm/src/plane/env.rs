//! `holm env`: what points the AWS tools, and ssh, here.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::resources::account::{MadeAccessKey, SiteView};
use api::resources::instances::InstanceView;
use clap::Args;
use serde_json::json;

use super::client::{Client, PlaneError};
use super::{finish, ssh};
use crate::form;
use crate::state_directory;

/// Where the key of `holm env` is kept, for this user only.
const KEY_FILE: &str = "env-key.json";

/// `holm env`.
#[derive(Args, Debug)]
pub struct Env {
    /// Prints a configuration for ssh instead, in which each machine is a Host by its name, id and
    /// addresses: holm env --ssh-config > ~/.ssh/holm, and `Include holm` in ~/.ssh/config
    #[arg(long)]
    pub ssh_config: bool,
}

/// Prints it.
pub fn run(arguments: &Env) -> u8 {
    let client = Client::new();
    finish(match arguments.ssh_config {
        true => ssh_config(&client),
        false => shell(&client),
    })
}

fn shell(client: &Client) -> Result<(), PlaneError> {
    let site: SiteView = client.get("/v1/site")?;
    let key = key(client)?;
    let mut text = String::new();
    if let Some(endpoint) = &site.ec2_endpoint {
        text += &format!("export AWS_ENDPOINT_URL={endpoint}\n");
    }
    text += &format!(
        "export AWS_DEFAULT_REGION={0}\nexport AWS_REGION={0}\n",
        site.region
    );
    text += &format!("export AWS_ACCESS_KEY_ID={}\n", key.key.id);
    text += &format!("export AWS_SECRET_ACCESS_KEY={}\n", key.secret);
    text += "unset AWS_SESSION_TOKEN AWS_PROFILE\n";
    let state = state_directory::resolve(None).display().to_string();
    text += &format!("export HOLM_STATE='{}'\n", state.replace('\'', "'\\''"));
    text += "# eval \"$(holm env)\" takes this into a shell\n";
    form::out(&text);
    Ok(())
}

/// The access key of `holm env`: made once, and anew when it was removed.
fn key(client: &Client) -> Result<MadeAccessKey, PlaneError> {
    let file = state_directory::resolve(None).join("run").join(KEY_FILE);
    let kept: Option<MadeAccessKey> = fs::read(&file)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(kept) = kept {
        let all: Vec<api::resources::account::AccessKeyView> = client.all("/v1/access-keys", "")?;
        if all.iter().any(|key| key.id == kept.key.id && key.active) {
            return Ok(kept);
        }
    }
    let made: MadeAccessKey =
        client.ask("POST", "/v1/access-keys", Some(&json!({"user": "root"})))?;
    let bytes = serde_json::to_vec(&made).unwrap_or_default();
    secret(&file, &bytes)?;
    Ok(made)
}

/// Writes a file for this user only.
///
/// # Errors
/// The host's.
pub fn secret(file: &Path, bytes: &[u8]) -> Result<(), PlaneError> {
    let beside = file.with_extension("new");
    let write = || {
        let mut new = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        new.write_all(bytes)?;
        new.sync_all()?;
        fs::rename(&beside, file)
    };
    write().map_err(|e| PlaneError::File(format!("writing {}: {e}", file.display())))
}

fn ssh_config(client: &Client) -> Result<(), PlaneError> {
    let all: Vec<InstanceView> = client.all("/v1/instances", "")?;
    let mut text = String::new();
    for one in all.iter().filter(|i| i.state != "terminated") {
        let names = [
            one.name
                .as_ref()
                .filter(|n| !n.contains(char::is_whitespace)),
            Some(&one.id),
            one.public_ip.as_ref(),
            one.private_ip.as_ref(),
        ];
        let names: Vec<_> = names.into_iter().flatten().map(String::as_str).collect();
        text += &format!("Host {}\n", names.join(" "));
        text += &format!("    HostKeyAlias {}\n", one.id);
        for option in ssh::options(&one.id)? {
            text += &format!("    {}\n", option.replacen('=', " ", 1));
        }
    }
    form::out(&text);
    Ok(())
}
