//! A layer-2 switch of one user's machines on one host, without privilege and
//! without a process of its own: each member is connected to each other by a
//! Unix socket that keeps frames apart, learns which address is behind which,
//! and sends what it does not know to all. Nobody forwards for others, so
//! there are no loops, and a member that ends takes only itself away.

mod learned;
mod link;
mod peer;
mod place;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Link, LinkError, Network};
pub(crate) use link::SwitchLink;
use place::Place;

/// The name of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SwitchName(String);

impl SwitchName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SwitchName {
    type Err = SwitchError;

    fn from_str(text: &str) -> Result<Self, SwitchError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let sound = (1..=64).contains(&text.len())
            && text.bytes().all(good)
            && !text.starts_with(['.', '-']);
        match sound {
            true => Ok(Self(text.to_owned())),
            false => Err(SwitchError::Name(text.to_owned())),
        }
    }
}

impl TryFrom<String> for SwitchName {
    type Error = SwitchError;

    fn try_from(text: String) -> Result<Self, SwitchError> {
        text.parse()
    }
}

impl From<SwitchName> for String {
    fn from(name: SwitchName) -> Self {
        name.0
    }
}

impl fmt::Display for SwitchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A switch that cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Text that cannot name one.
    #[error(
        "{0:?} cannot be a switch: a name has 1 to 64 letters, digits, '-', '_' or '.', and begins \
         with neither '.' nor '-'"
    )]
    Name(String),
    /// Its directory cannot be made.
    #[error(
        "making the switch's directory {path}: {source}; set XDG_RUNTIME_DIR to a directory of your own"
    )]
    Place {
        /// The directory.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Others could change its directory.
    #[error(
        "{0} is not a directory that only this user can change, so other users could join the \
         switch; remove it, or set XDG_RUNTIME_DIR to a directory of your own"
    )]
    NotPrivate(PathBuf),
}

/// One member's view of a switch.
pub struct Switch {
    name: SwitchName,
    mtu: u16,
    place: Place,
}

impl Switch {
    /// The switch of this name; it exists while it has members.
    ///
    /// # Errors
    /// [`SwitchError`].
    pub fn new(name: &SwitchName, mtu: u16) -> Result<Self, SwitchError> {
        Ok(Self {
            name: name.clone(),
            mtu,
            place: Place::prepare(name)?,
        })
    }

    /// The switch whose members meet in this directory; `name` is for logs.
    ///
    /// # Errors
    /// [`SwitchError`].
    pub fn at(directory: &Path, name: &SwitchName, mtu: u16) -> Result<Self, SwitchError> {
        Ok(Self {
            name: name.clone(),
            mtu,
            place: Place::at(directory)?,
        })
    }

    /// One member's link.
    pub(crate) fn link(&self) -> io::Result<SwitchLink> {
        let (listener, peers) = self.place.join()?;
        SwitchLink::new(&self.name, listener, peers)
    }
}

impl Network for Switch {
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError> {
        let links = (0..pairs.min(self.most_pairs())).map(|_| {
            let link = self.link().map_err(|source| LinkError::Host {
                network: self.describe(),
                what: "joining it",
                source,
            })?;
            Ok(Box::new(link) as Box<dyn Link>)
        });
        links.collect()
    }

    fn most_pairs(&self) -> u16 {
        // Frames between two members stay in order on their one socket.
        1
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn describe(&self) -> String {
        format!("switch {}", self.name)
    }
}
