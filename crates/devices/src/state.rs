//! Versions of saved device states.
//!
//! Every saved state begins with a field `version: Version<Self>`. In memory
//! such a value always has the version this program writes; reading any other
//! version is refused by name while it is decoded, so a `restore` never meets
//! a format it does not know.

use std::fmt;
use std::marker::PhantomData;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A saved state with a name and a version.
pub trait Versioned {
    /// What is saved, as errors call it.
    const NAME: &'static str;
    /// The version written, and the newest one read.
    const VERSION: u32;
}

/// The version field of the saved state `T`: encoded as [`Versioned::VERSION`].
pub struct Version<T>(PhantomData<fn() -> T>);

impl<T> Version<T> {
    /// The version this program writes.
    #[must_use]
    pub const fn current() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for Version<T> {
    fn default() -> Self {
        Self::current()
    }
}

impl<T> Clone for Version<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Version<T> {}

impl<T> PartialEq for Version<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Version<T> {}

impl<T: Versioned> fmt::Debug for Version<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", T::VERSION)
    }
}

impl<T: Versioned> Serialize for Version<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(T::VERSION)
    }
}

impl<'de, T: Versioned> Deserialize<'de> for Version<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = u32::deserialize(deserializer)?;
        if found == T::VERSION {
            return Ok(Self::current());
        }
        Err(D::Error::custom(format_args!(
            "the saved state of the {} has version {found}, but this holm reads version {}; \
             restore it with the holm that saved it, or a newer one",
            T::NAME,
            T::VERSION
        )))
    }
}

/// Names and numbers the format of a saved state.
#[macro_export]
macro_rules! versioned {
    ($state:ty, $name:literal, $version:literal) => {
        impl $crate::state::Versioned for $state {
            const NAME: &'static str = $name;
            const VERSION: u32 = $version;
        }
    };
}

/// A saved state that a device cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The values contradict each other or the device.
    #[error("cannot restore the {device}: {reason}; the snapshot is damaged or of another machine")]
    Invalid {
        /// [`Versioned::NAME`].
        device: &'static str,
        /// Which value, and why not.
        reason: String,
    },
}

impl StateError {
    /// An [`StateError::Invalid`] of the saved state `T`.
    #[must_use]
    pub fn invalid<T: Versioned>(reason: impl Into<String>) -> Self {
        Self::Invalid {
            device: T::NAME,
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Lamp {
        version: Version<Lamp>,
        lit: bool,
    }
    versioned!(Lamp, "lamp", 3);

    #[test]
    fn a_state_survives_and_other_versions_are_refused_by_name() {
        let lamp = Lamp {
            version: Version::current(),
            lit: true,
        };
        let text = serde_json::to_string(&lamp).unwrap();
        assert_eq!(text, r#"{"version":3,"lit":true}"#);
        assert_eq!(serde_json::from_str::<Lamp>(&text).unwrap(), lamp);
        let newer = r#"{"version":4,"colour":"red"}"#;
        let error = serde_json::from_str::<Lamp>(newer).unwrap_err().to_string();
        assert!(
            error.contains("lamp") && error.contains("version 4"),
            "{error}"
        );
    }
}
