//! `holm operations`, `holm report` and `holm tag-policy`.

use std::collections::BTreeSet;

use api::resources::records::OperationView;
use api::resources::reports::{BootTimesView, DriftView, OrphanView, TagPolicyBody};
use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Client, PlaneError};
use super::finish;
use crate::exit_code;
use crate::form::{self, Output, age, bytes, or_none};

/// Lists works that take long; the exit status.
pub fn operations(output: Output) -> u8 {
    finish(list_operations(&Client::new(), output))
}

fn list_operations(client: &Client, output: Output) -> Result<(), PlaneError> {
    let all: Vec<OperationView> = client.all("/v1/operations", "")?;
    form::print(output, &all, || {
        let rows = all.iter().map(|o| {
            let done = o.progress.map(|percent| format!("{percent}%"));
            [
                o.kind.clone(),
                o.resource_id.clone(),
                o.state.clone(),
                done.unwrap_or_default(),
                age(&o.began),
                o.failure.clone().unwrap_or_else(|| o.stage.clone()),
            ]
        });
        form::table(["WORK", "ON", "STATE", "DONE", "AGE", "WHAT"], rows)
    });
    Ok(())
}

/// `holm report`.
#[derive(Subcommand, Debug)]
pub enum Report {
    /// Lists volumes that are in no machine, those that are longest first
    ///
    /// Example: holm report orphans
    #[command(after_help = exit_code::PLANE_HELP)]
    Orphans(Output),
    /// Lists machines that are not what they would be made as today
    ///
    /// Their image is gone or has a newer version, their type is another size now, or they miss
    /// tags that the policy asks for.
    ///
    /// Example: holm report drift -o json
    #[command(after_help = exit_code::PLANE_HELP)]
    Drift(Output),
    /// Lists how long images take from a machine's start to a guest that is up
    ///
    /// Of the last start of each machine that is known, also of those that are gone: the time that
    /// half of them kept, and the one that 99 in 100 did.
    ///
    /// Example: holm report boot-times
    #[command(after_help = exit_code::PLANE_HELP)]
    BootTimes(Output),
}

/// Prints it, and returns the exit status.
pub fn report(command: &Report) -> u8 {
    let client = Client::new();
    finish(match command {
        Report::Orphans(output) => orphans(&client, *output),
        Report::Drift(output) => drift(&client, *output),
        Report::BootTimes(output) => boot_times(&client, *output),
    })
}

fn orphans(client: &Client, output: Output) -> Result<(), PlaneError> {
    let all: Vec<OrphanView> = client.all("/v1/reports/orphans", "")?;
    form::print(output, &all, || {
        let rows = all.iter().map(|o| {
            [
                or_none(o.name.as_ref()),
                o.volume_id.clone(),
                bytes(o.size),
                age(&o.since),
            ]
        });
        form::table(["NAME", "VOLUME", "SIZE", "IN NO MACHINE FOR"], rows)
    });
    Ok(())
}

fn drift(client: &Client, output: Output) -> Result<(), PlaneError> {
    let all: Vec<DriftView> = client.all("/v1/reports/drift", "")?;
    form::print(output, &all, || {
        let rows = all.iter().flat_map(|d| {
            d.differences.iter().map(|difference| {
                [
                    or_none(d.name.as_ref()),
                    d.instance_id.clone(),
                    difference.kind.clone(),
                    difference.message.clone(),
                ]
            })
        });
        form::table(["NAME", "MACHINE", "DIFFERS IN", "HOW"], rows)
    });
    Ok(())
}

fn boot_times(client: &Client, output: Output) -> Result<(), PlaneError> {
    let all: Vec<BootTimesView> = client.all("/v1/reports/boot-times", "")?;
    form::print(output, &all, || {
        let seconds = |time: Option<f64>| time.map_or(String::new(), |t| format!("{t:.1} s"));
        let rows = all.iter().map(|b| {
            [
                b.image_id.clone(),
                b.boots.to_string(),
                b.failed.to_string(),
                seconds(b.p50_seconds),
                seconds(b.p99_seconds),
            ]
        });
        form::table(["IMAGE", "BOOTS", "FAILED", "P50", "P99"], rows)
    });
    Ok(())
}

/// `holm tag-policy`.
#[derive(Subcommand, Debug)]
pub enum Policy {
    /// Lists the tags that new machines and volumes must have
    ///
    /// Example: holm tag-policy ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Asks for a tag, with any value or one of some
    ///
    /// Example: holm tag-policy require stage test production
    #[command(after_help = exit_code::PLANE_HELP)]
    Require(Require),
    /// Asks for a tag no longer
    ///
    /// Example: holm tag-policy drop stage
    #[command(after_help = exit_code::PLANE_HELP)]
    Drop(Dropped),
}

/// `holm tag-policy require`.
#[derive(Args, Debug)]
pub struct Require {
    /// The tag's key
    #[arg(value_name = "KEY")]
    pub key: String,

    /// Values that it may have; any unless given
    #[arg(value_name = "VALUE")]
    pub values: Vec<String>,
}

/// `holm tag-policy drop`.
#[derive(Args, Debug)]
pub struct Dropped {
    /// The tag's key
    #[arg(value_name = "KEY")]
    pub key: String,
}

/// Does it, and returns the exit status.
pub fn policy(command: &Policy) -> u8 {
    finish(try_policy(&Client::new(), command))
}

fn try_policy(client: &Client, command: &Policy) -> Result<(), PlaneError> {
    const PATH: &str = "/v1/tag-policy";
    let TagPolicyBody { mut required } = client.get(PATH)?;
    match command {
        Policy::Ls(output) => {
            form::print(
                *output,
                &TagPolicyBody {
                    required: required.clone(),
                },
                || {
                    let rows = required.iter().map(|(key, values)| {
                        let values: Vec<&str> = values.iter().map(String::as_str).collect();
                        let any = if values.is_empty() { "any" } else { "" };
                        [key.clone(), any.to_owned() + &values.join(", ")]
                    });
                    form::table(["KEY", "VALUES"], rows)
                },
            );
            return Ok(());
        }
        Policy::Require(new) => {
            let values: BTreeSet<String> = new.values.iter().cloned().collect();
            required.insert(new.key.clone(), values);
        }
        Policy::Drop(old) => drop(required.remove(&old.key)),
    }
    client
        .call("PUT", PATH, Some(&json!({"required": required})))
        .map(drop)
}
