//! Which machine a command line means: one that runs alone (`holm run --name`),
//! or one that the daemon of the state directory keeps.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use api::resources::instances::InstanceView;
use host::Layout;
use machine_protocol::launch::{AGENT_SOCKET, CONTROL_SOCKET};

use super::place;
use crate::nearest;
use crate::plane;
use crate::plane::client::{Client, PlaneError};
use crate::state_directory;

/// Before a name: the machine that runs alone is meant, whatever a daemon
/// keeps.
pub const ALONE: &str = "alone:";
/// How instances' ids begin.
const ID: &str = "i-";
/// Longest name of an instance: the value of a tag.
const LONGEST: usize = 256;

/// A machine that was found.
#[derive(Debug)]
pub enum Machine {
    /// Runs alone; by its name.
    Alone(String),
    /// The daemon keeps it; by its id.
    Kept(String),
}

/// Why it is not known which machine is meant.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None.
    #[error("there is no machine {name:?}{hint}")]
    None {
        /// As given.
        name: String,
        /// What to do next.
        hint: String,
    },
    /// More than one.
    #[error("{name:?} is {}; say which with {}", kinds(*alone, ids), choices(name, *alone, ids))]
    Ambiguous {
        /// As given.
        name: String,
        /// One runs alone.
        alone: bool,
        /// Those that the daemon keeps.
        ids: Vec<String>,
    },
    /// The daemon knows it, and does not run it.
    #[error("{name} is {state}; `holm start {name}` starts it")]
    NotRunning {
        /// As given.
        name: String,
        /// What it is doing.
        state: String,
    },
    /// The daemon.
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

fn kinds(alone: bool, ids: &[String]) -> String {
    match (alone, ids.len()) {
        (true, 1) => "both a machine that runs alone and one that the daemon keeps".into(),
        (true, more) => format!("a machine that runs alone and {more} that the daemon keeps"),
        (false, more) => format!("the name of {more} machines"),
    }
}

fn choices(name: &str, alone: bool, ids: &[String]) -> String {
    let alone = alone.then(|| format!("{ALONE}{name}"));
    let all: Vec<String> = alone.into_iter().chain(ids.iter().cloned()).collect();
    all.join(" or ")
}

/// A machine, on the command line: a name, an id, or `alone:NAME`.
///
/// # Errors
/// Says what it can be.
pub fn target(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty()
        && text.chars().count() <= LONGEST
        && !text.chars().any(|c| c.is_control() || c == '/');
    match text.strip_prefix(ALONE) {
        Some(name) => place::name(name).map(|name| format!("{ALONE}{name}")),
        None if fits => Ok(text.into()),
        None => Err(format!(
            "a machine is a name of at most {LONGEST} characters without '/', or an id as i-0123456789abcdef0"
        )),
    }
}

/// The machine of a name or id.
///
/// # Errors
/// [`FindError`].
pub fn machine(text: &str) -> Result<Machine, FindError> {
    if let Some(name) = text.strip_prefix(ALONE) {
        return Ok(Machine::Alone(name.into()));
    }
    // An id needs no daemon.
    if text.starts_with(ID) && layout().machine(text).is_dir() {
        return Ok(Machine::Kept(text.into()));
    }
    let alone = place::stands_alone(text);
    let kept = kept_ids(text, alone)?;
    match (alone, &kept.ids[..]) {
        (true, []) => Ok(Machine::Alone(text.into())),
        (false, [id]) => Ok(Machine::Kept(id.clone())),
        (false, []) => Err(FindError::None {
            name: text.into(),
            hint: kept.hint,
        }),
        _ => Err(FindError::Ambiguous {
            name: text.into(),
            alone,
            ids: kept.ids,
        }),
    }
}

/// What a daemon knows of a name.
struct Known {
    ids: Vec<String>,
    hint: String,
}

fn kept_ids(text: &str, alone: bool) -> Result<Known, FindError> {
    let client = Client::new();
    if !client.answers() {
        let hint = ": none of this name runs, and no daemon answers that could keep one (`holm daemon`, --state)";
        return Ok(Known {
            ids: Vec::new(),
            hint: hint.into(),
        });
    }
    let all: Result<Vec<InstanceView>, _> = client.all("/v1/instances", "");
    // Whoever runs alone can be used when the daemon is ill.
    let all = match (all, alone) {
        (Err(_), true) => Vec::new(),
        (all, _) => all?,
    };
    let exists = |i: &&InstanceView| i.state != "terminated";
    let is = |i: &&InstanceView| i.id == text || i.name.as_deref() == Some(text);
    let ids: Vec<String> = all
        .iter()
        .filter(exists)
        .filter(is)
        .map(|i| i.id.clone())
        .collect();
    let names = all.iter().filter(exists).filter_map(|i| i.name.clone());
    let names = names.chain(place::running());
    Ok(Known {
        ids,
        hint: nearest::hint(text, names, "`holm ls` lists those that exist"),
    })
}

fn layout() -> Layout {
    Layout::new(state_directory::resolve(None))
}

/// The id of the machine of this name that the daemon keeps.
///
/// # Errors
/// [`FindError`].
pub fn kept(text: &str) -> Result<String, FindError> {
    match machine(text)? {
        Machine::Kept(id) => Ok(id),
        Machine::Alone(name) => Err(FindError::Plane(PlaneError::Which(format!(
            "{name} runs alone, and this is for machines that a daemon keeps (`holm create`)"
        )))),
    }
}

/// A machine that the daemon keeps, as it knows it; `None`: it runs alone.
///
/// # Errors
/// [`FindError`].
pub fn instance(text: &str) -> Result<Option<InstanceView>, FindError> {
    match machine(text)? {
        Machine::Alone(_) => Ok(None),
        Machine::Kept(id) => Ok(Some(plane::instance(&Client::new(), &id)?)),
    }
}

/// The control socket of a machine.
///
/// # Errors
/// [`FindError`].
pub fn control(text: &str) -> Result<PathBuf, FindError> {
    socket(text, CONTROL_SOCKET)
}

/// The agent's socket of a machine: of a name, or at a path.
///
/// # Errors
/// [`FindError`].
pub fn agent(text: &Path) -> Result<PathBuf, FindError> {
    let named = text.to_str().and_then(|text| target(text).ok());
    // A directory may be called as a machine is.
    let is_socket = || text.metadata().is_ok_and(|m| m.file_type().is_socket());
    match named.filter(|_| !is_socket()) {
        Some(named) => socket(&named, AGENT_SOCKET),
        None => Ok(text.to_owned()),
    }
}

fn socket(text: &str, file: &str) -> Result<PathBuf, FindError> {
    let id = match machine(text)? {
        Machine::Alone(name) => return Ok(place::directory(&name).join(file)),
        Machine::Kept(id) => id,
    };
    let path = layout().machine(&id).join(file);
    if path.exists() {
        return Ok(path);
    }
    let found = plane::instance(&Client::new(), &id)?;
    match found.state.as_str() {
        "running" | "stopping" => Ok(path),
        _ => Err(FindError::NotRunning {
            name: text.into(),
            state: found.state,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_an_id_or_alone() {
        for good in ["web1", "i-0123456789abcdef0", "my web server", "alone:web1"] {
            assert_eq!(target(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            " ",
            "a/b",
            "../x",
            "a\nb",
            "alone:",
            "alone:a b",
            &"x".repeat(257),
        ] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_ambiguous_name_says_how_to_say_it() {
        let error = |alone, ids: &[&str]| {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            let name = "web".into();
            FindError::Ambiguous { name, alone, ids }.to_string()
        };
        assert!(error(true, &["i-1"]).ends_with("say which with alone:web or i-1"));
        assert!(error(false, &["i-1", "i-2"]).contains("of 2 machines; say which with i-1 or i-2"));
    }
}
