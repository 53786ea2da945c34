//! Commands on what a daemon keeps: instances, volumes, networks, keys and
//! more, through its REST interface.

pub mod boot;
pub mod client;
pub mod create;
pub mod env;
pub mod instances;
pub mod keys;
pub mod networks;
pub mod records;
pub mod reports;
pub mod sizes;
pub mod ssh;
pub mod volumes;

use std::collections::BTreeMap;

use api::resources::instances::InstanceView;

use crate::console::terminal;
use crate::exit_code;
use crate::nearest;
use client::{Client, PlaneError, quoted};

/// Says what failed; the exit status.
pub fn finish(result: Result<(), PlaneError>) -> u8 {
    match result {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => {
            terminal::say(&format!("holm: {error}"));
            error.code()
        }
    }
}

/// The instance of a name or an id.
///
/// # Errors
/// [`PlaneError::Which`]: there is none, or more than one.
pub fn instance(client: &Client, name: &str) -> Result<InstanceView, PlaneError> {
    if name.starts_with("i-")
        && let Ok(found) = client.get(&format!("/v1/instances/{}", quoted(name)))
    {
        return Ok(found);
    }
    let query = format!("name={}", quoted(name));
    let mut named: Vec<InstanceView> = client.all("/v1/instances", &query)?;
    named.retain(|i| i.state != "terminated");
    match named.len() {
        1 => Ok(named.remove(0)),
        0 => {
            let all: Vec<InstanceView> = client.all("/v1/instances", "")?;
            let names = all.into_iter().filter(|i| i.state != "terminated");
            let list = "`holm ls` lists those that exist";
            let hint = nearest::hint(name, names.filter_map(|i| i.name), list);
            Err(PlaneError::Which(format!(
                "there is no machine named {name:?}{hint}"
            )))
        }
        count => {
            let ids: Vec<_> = named.iter().map(|i| i.id.as_str()).collect();
            let ids = ids.join(", ");
            Err(PlaneError::Which(format!(
                "{count} machines are named {name:?}: {ids}; use an id"
            )))
        }
    }
}

/// Id of what has this name or id in a collection.
///
/// # Errors
/// [`PlaneError::Which`].
pub fn id(
    client: &Client,
    collection: &str,
    noun: &str,
    prefix: &str,
    name: &str,
) -> Result<String, PlaneError> {
    let rest = name.strip_prefix(prefix);
    if rest.is_some_and(|r| r.len() >= 8 && r.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Ok(name.to_owned());
    }
    let query = format!("name={}", quoted(name));
    let named: Vec<serde_json::Value> = client.all(collection, &query)?;
    let ids: Vec<&str> = named.iter().filter_map(|v| v["id"].as_str()).collect();
    match ids[..] {
        [one] => Ok(one.to_owned()),
        [] => {
            let all: Vec<serde_json::Value> = client.all(collection, "")?;
            let names = all.iter().filter_map(|v| v["name"].as_str());
            let list = format!("`holm {} ls` lists those that exist", command(collection));
            let hint = nearest::hint(name, names.map(str::to_owned), &list);
            Err(PlaneError::Which(format!(
                "there is no {noun} {name:?}{hint}"
            )))
        }
        _ => Err(PlaneError::Which(format!(
            "{} are named {name:?}: {}; use an id",
            ids.len(),
            ids.join(", ")
        ))),
    }
}

/// The command that lists a collection.
fn command(collection: &str) -> &'static str {
    match collection {
        "/v1/volumes" => "volume",
        "/v1/snapshots" => "snapshot",
        "/v1/security-groups" => "sg",
        "/v1/key-pairs" => "key",
        _ => "net",
    }
}

/// `KEY=VALUE`, on the command line.
///
/// # Errors
/// Says what a tag is.
pub fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("a tag is KEY=VALUE".into()),
    }
}

/// Tags of a command line, with a name.
pub fn tags(tags: &[(String, String)], name: Option<&str>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<_, _> = tags.iter().cloned().collect();
    if let Some(name) = name {
        all.insert("Name".into(), name.into());
    }
    all
}
