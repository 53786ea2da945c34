//! Names of images: each leads to versions, one of which is current, or is
//! another name for one.
//!
//! A name is a file of its own, `names/NAME.json`, replaced atomically.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Library, NAMES};
use crate::files::{self, Kind};
use crate::{Digest, ImagesError};

const KIND: Kind = Kind {
    format: "holm-image-name",
    version: 1,
};
/// Least digits of a shortened digest.
const LEAST_DIGITS: usize = 6;

/// How an image is referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name, and a version of it if not the current one: `debian`,
    /// `debian@2`.
    Name(String, Option<u64>),
    /// A digest, `blake3:` before it, or at least six digits of it.
    Digest(String),
}

impl FromStr for Reference {
    type Err = ImagesError;

    fn from_str(text: &str) -> Result<Self, ImagesError> {
        let bad = || ImagesError::BadName(text.into());
        if let Some(digits) = text.strip_prefix("blake3:") {
            let hex = digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            return match hex && (LEAST_DIGITS..=64).contains(&digits.len()) {
                true => Ok(Self::Digest(digits.into())),
                false => Err(bad()),
            };
        }
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        Ok(Self::Name(files::name(name)?.into(), version))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name, None) => f.write_str(name),
            Self::Name(name, Some(version)) => write!(f, "{name}@{version}"),
            Self::Digest(digits) => write!(f, "blake3:{digits}"),
        }
    }
}

/// A version of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameVersion {
    /// Its number; never given again.
    pub number: u64,
    /// The image.
    pub digest: Digest,
    /// When it was added, in seconds since 1970.
    pub added: u64,
}

/// To what a name leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// Versions.
    Versions {
        /// Oldest first.
        versions: Vec<NameVersion>,
        /// The number of the one that the bare name means.
        current: u64,
        /// What was current before, the latest last: for a step back.
        #[serde(default)]
        before: Vec<u64>,
        /// The number of the next version.
        next: u64,
    },
    /// Another name, with a version or without: `debian@2`.
    Alias(String),
}

/// A name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRecord {
    /// Itself.
    pub name: String,
    /// To what it leads.
    pub target: Target,
}

impl Library {
    /// The image that a reference means now.
    ///
    /// # Errors
    /// [`ImagesError::NoImage`], [`ImagesError::Ambiguous`].
    pub fn resolve(&self, reference: &Reference) -> Result<Digest, ImagesError> {
        let (name, version) = match reference {
            Reference::Digest(digits) => return self.by_digits(digits),
            Reference::Name(name, version) => (name, *version),
        };
        match self.name(name)?.map(|record| record.target) {
            Some(Target::Alias(to)) if version.is_none() => match to.parse()? {
                Reference::Name(name, version) => self.version(&name, version),
                Reference::Digest(digits) => self.by_digits(&digits),
            },
            Some(_) => self.version(name, version),
            // A bare start of a digest, if it cannot be meant as a name.
            None if version.is_none() => self.by_digits(name),
            None => Err(ImagesError::NoImage(reference.to_string())),
        }
    }

    fn version(&self, name: &str, version: Option<u64>) -> Result<Digest, ImagesError> {
        let missing = || {
            let reference = Reference::Name(name.into(), version);
            ImagesError::NoImage(reference.to_string())
        };
        let record = self.name(name)?.ok_or_else(missing)?;
        let Target::Versions {
            versions, current, ..
        } = record.target
        else {
            return Err(missing());
        };
        let number = version.unwrap_or(current);
        let found = versions.iter().find(|v| v.number == number);
        found.map(|v| v.digest).ok_or_else(missing)
    }

    fn by_digits(&self, digits: &str) -> Result<Digest, ImagesError> {
        let missing = || ImagesError::NoImage(digits.into());
        if digits.len() < LEAST_DIGITS {
            return Err(missing());
        }
        let all = self.digests()?;
        let mut found = all.into_iter().filter(|d| d.hex().starts_with(digits));
        let first = found.next().ok_or_else(missing)?;
        match found.next() {
            None => Ok(first),
            Some(_) => Err(ImagesError::Ambiguous(digits.into())),
        }
    }

    /// A name; `None`: there is none.
    ///
    /// # Errors
    /// A file that is no name's.
    pub fn name(&self, name: &str) -> Result<Option<NameRecord>, ImagesError> {
        KIND.read(&self.name_file(name)?)
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// As [`Self::name`].
    pub fn names(&self) -> Result<Vec<NameRecord>, ImagesError> {
        let mut names = Vec::new();
        for file in files::entries(&self.directory().join(NAMES))? {
            if let Some(name) = file.strip_suffix(".json") {
                names.extend(self.name(name)?);
            }
        }
        Ok(names)
    }

    /// Makes an image the newest version of a name, and with `promote`, or if
    /// it is the first, the current one; the version's number. An image that
    /// is the newest version already stays that.
    ///
    /// # Errors
    /// No such image, a name that is an alias, or the host's.
    pub fn tag(&self, digest: Digest, name: &str, promote: bool) -> Result<u64, ImagesError> {
        let _lock = self.lock()?;
        self.must(&digest)?;
        let target = self.name(name)?.map(|record| record.target);
        let (mut versions, mut current, mut before, mut next) = match target {
            None => (Vec::new(), 0, Vec::new(), 1),
            Some(Target::Versions {
                versions,
                current,
                before,
                next,
            }) => (versions, current, before, next),
            Some(Target::Alias(to)) => {
                return Err(ImagesError::Exists {
                    what: "name",
                    id: name.into(),
                    why: format!("it is an alias of {to}"),
                });
            }
        };
        let newest = versions
            .last()
            .filter(|v: &&NameVersion| v.digest == digest);
        let number = match newest {
            Some(version) => version.number,
            None => {
                versions.push(NameVersion {
                    number: next,
                    digest,
                    added: files::now(),
                });
                next += 1;
                next - 1
            }
        };
        if (promote || current == 0) && current != number {
            before.extend((current != 0).then_some(current));
            current = number;
        }
        let target = Target::Versions {
            versions,
            current,
            before,
            next,
        };
        self.write_name(name, target)?;
        Ok(number)
    }

    /// Makes a version the current one of its name.
    ///
    /// # Errors
    /// No such version, or the host's.
    pub fn promote(&self, name: &str, number: u64) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        self.version(name, Some(number))?;
        self.change(name, |_, current, before| {
            if *current != number {
                before.push(*current);
                *current = number;
            }
            Ok(())
        })
    }

    /// Makes the version current that was so before; its number.
    ///
    /// # Errors
    /// No such name, none before, or the host's.
    pub fn roll_back(&self, name: &str) -> Result<u64, ImagesError> {
        let _lock = self.lock()?;
        let mut found = 0;
        self.change(name, |versions, current, before| {
            while let Some(number) = before.pop() {
                if versions.iter().any(|v| v.number == number) {
                    (*current, found) = (number, number);
                    return Ok(());
                }
            }
            Err(ImagesError::Refused(format!(
                "no version of {name} was current before {name}@{current}"
            )))
        })?;
        Ok(found)
    }

    /// Makes a name another one for what `to` refers to, now and later.
    ///
    /// # Errors
    /// No such image, a name with versions, or the host's.
    pub fn alias(&self, name: &str, to: &Reference) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        self.resolve(to)?;
        if let Reference::Name(other, _) = to
            && let Some(Target::Alias(further)) = self.name(other)?.map(|r| r.target)
        {
            return Err(ImagesError::Refused(format!(
                "{other} is an alias itself; make {name} an alias of {further}"
            )));
        }
        if let Some(Target::Versions { .. }) = self.name(name)?.map(|r| r.target) {
            return Err(ImagesError::Exists {
                what: "name",
                id: name.into(),
                why: "it has versions of its own; remove it first".into(),
            });
        }
        self.write_name(name, Target::Alias(to.to_string()))
    }

    /// Takes a version from its name, or the whole name; its images stay.
    ///
    /// # Errors
    /// No such name or version, the current version while there are others, or
    /// the host's.
    pub fn untag(&self, name: &str, version: Option<u64>) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        let Some(number) = version else {
            return match files::remove_file(&self.name_file(name)?)? {
                true => Ok(()),
                false => Err(ImagesError::NoImage(name.into())),
            };
        };
        self.version(name, version)?;
        let mut last = false;
        self.change(name, |versions, current, before| {
            last = versions.len() == 1;
            if *current == number && !last {
                return Err(ImagesError::Refused(format!(
                    "{name}@{number} is the current version of {name}; promote another one first"
                )));
            }
            versions.retain(|v| v.number != number);
            before.retain(|b| *b != number);
            Ok(())
        })?;
        if last {
            files::remove_file(&self.name_file(name)?)?;
        }
        Ok(())
    }

    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vec<NameVersion>, &mut u64, &mut Vec<u64>) -> Result<(), ImagesError>,
    ) -> Result<(), ImagesError> {
        let missing = || ImagesError::NoImage(name.into());
        let record = self.name(name)?.ok_or_else(missing)?;
        let Target::Versions {
            mut versions,
            mut current,
            mut before,
            next,
        } = record.target
        else {
            return Err(ImagesError::Refused(format!(
                "{name} is an alias and has no versions of its own"
            )));
        };
        change(&mut versions, &mut current, &mut before)?;
        let target = Target::Versions {
            versions,
            current,
            before,
            next,
        };
        self.write_name(name, target)
    }

    fn write_name(&self, name: &str, target: Target) -> Result<(), ImagesError> {
        let record = NameRecord {
            name: name.into(),
            target,
        };
        KIND.write(&self.name_file(name)?, &record)
    }

    fn name_file(&self, name: &str) -> Result<PathBuf, ImagesError> {
        let name = files::name(name)?;
        Ok(self.directory().join(NAMES).join(format!("{name}.json")))
    }
}
