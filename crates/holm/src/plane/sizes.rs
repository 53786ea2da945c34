//! `holm type` and `holm quota`.

use api::resources::account::QuotaView;
use api::resources::instance_types::InstanceTypeView;
use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Client, PlaneError, quoted};
use super::finish;
use super::keys::Name;
use crate::completion;
use crate::exit_code;
use crate::form::{self, Output, bytes};
use crate::values;

/// `holm type`.
#[derive(Subcommand, Debug)]
pub enum Types {
    /// Lists sizes of machines
    ///
    /// Example: holm type ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Makes a size
    ///
    /// Example: holm type create lab.tiny --cpus 1 --memory 256M
    #[command(after_help = exit_code::PLANE_HELP)]
    Create(NewType),
    /// Removes a size that was made; machines that have it keep it
    ///
    /// Example: holm type rm lab.tiny
    #[command(after_help = exit_code::PLANE_HELP,
        mut_arg("name", |name| name.add(completion::types())))]
    Rm(Name),
}

/// `holm type create`.
#[derive(Args, Debug)]
pub struct NewType {
    /// Its name: small letters, digits, '.' and '-'
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Number of virtual CPUs (--cpus 2)
    #[arg(long, value_name = "N")]
    pub cpus: u32,

    /// Memory (--memory 512M)
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub memory: u64,
}

/// Does it, and returns the exit status.
pub fn types(command: &Types) -> u8 {
    finish(try_types(&Client::new(), command))
}

fn try_types(client: &Client, command: &Types) -> Result<(), PlaneError> {
    match command {
        Types::Ls(output) => {
            let all: Vec<InstanceTypeView> = client.all("/v1/instance-types", "")?;
            form::print(*output, &all, || {
                let rows = all.iter().map(|t| {
                    let custom = if t.custom { "custom" } else { "" };
                    let memory = bytes(t.memory_mib << 20);
                    [t.name.clone(), t.cpus.to_string(), memory, custom.into()]
                });
                form::table(["NAME", "CPUS", "MEMORY", ""], rows)
            });
        }
        Types::Create(new) => {
            if new.memory % (1 << 20) != 0 {
                return Err(PlaneError::Usage("memory is given in whole MiB".into()));
            }
            let body = json!({
                "name": new.name, "cpus": new.cpus, "memory_mib": new.memory >> 20,
            });
            client.call("POST", "/v1/instance-types", Some(&body))?;
        }
        Types::Rm(name) => {
            let path = format!("/v1/instance-types/{}", quoted(&name.name));
            client.call("DELETE", &path, None)?;
        }
    }
    Ok(())
}

/// `holm quota`.
#[derive(Subcommand, Debug)]
pub enum Quotas {
    /// Lists limits, and what is used of them
    ///
    /// Example: holm quota ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Changes a limit; without a number it is as it was at first
    ///
    /// Example: holm quota set instances 20
    #[command(after_help = exit_code::PLANE_HELP)]
    Set(SetQuota),
}

/// `holm quota set`.
#[derive(Args, Debug)]
pub struct SetQuota {
    /// Of what
    #[arg(value_name = "NAME", add = completion::quotas())]
    pub name: String,

    /// How much
    #[arg(value_name = "NUMBER")]
    pub limit: Option<u64>,
}

/// Does it, and returns the exit status.
pub fn quotas(command: &Quotas) -> u8 {
    finish(try_quotas(&Client::new(), command))
}

fn try_quotas(client: &Client, command: &Quotas) -> Result<(), PlaneError> {
    match command {
        Quotas::Ls(output) => {
            let all: Vec<QuotaView> = client.all("/v1/quotas", "")?;
            form::print(*output, &all, || {
                let rows = all.iter().map(|q| {
                    let used = q.used.map(|u| u.to_string()).unwrap_or_default();
                    [q.name.clone(), used, q.limit.to_string()]
                });
                form::table(["NAME", "USED", "LIMIT"], rows)
            });
        }
        Quotas::Set(set) => {
            let body = match set.limit {
                Some(limit) => json!({"limit": limit}),
                None => json!({}),
            };
            let path = format!("/v1/quotas/{}", quoted(&set.name));
            client.call("PUT", &path, Some(&body))?;
        }
    }
    Ok(())
}
