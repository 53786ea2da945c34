//! What all resources have: an owner, a time, tags.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{AccountId, Invalid};

/// Most tags of a resource.
pub const TAGS_MAX: usize = 50;

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// Whose a resource is, since when, and what its owner wrote on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Its owner.
    pub account: AccountId,
    /// When it was asked for.
    pub created: Timestamp,
    /// What its owner wrote on it.
    #[serde(default)]
    pub tags: Tags,
}

impl Meta {
    /// Of a resource that comes into being now.
    #[must_use]
    pub fn new(account: AccountId, tags: Tags) -> Self {
        Self {
            account,
            created: Timestamp::now(),
            tags,
        }
    }

    /// The tag `Name`, which tools show as the name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.tags
            .get("Name")
            .map(String::as_str)
            .filter(|n| !n.is_empty())
    }
}

/// Refuses tags that EC2 would (CreateTags): at most 50, keys of 1 to 128
/// characters, values of at most 256, none that begins with `aws:`.
///
/// # Errors
/// [`Invalid::Tag`], [`Invalid::Tags`].
pub fn check_tags(tags: &Tags) -> Result<(), Invalid> {
    if tags.len() > TAGS_MAX {
        return Err(Invalid::Tags(tags.len()));
    }
    for (key, value) in tags {
        let refused = |reason| {
            Err(Invalid::Tag {
                key: Invalid::shorten(key),
                reason,
            })
        };
        if !(1..=128).contains(&key.chars().count()) {
            return refused("a key has 1 to 128 characters");
        }
        if key.starts_with("aws:") {
            return refused("keys that begin with aws: are reserved");
        }
        if value.chars().count() > 256 {
            return refused("a value has at most 256 characters");
        }
    }
    Ok(())
}

/// A moment, in milliseconds since 1970 in UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// This much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(milliseconds))
    }

    /// How long it is since `earlier`; nothing if that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::default().after(since)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(moment: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_millis(moment.0)
    }
}

/// As EC2 writes it: `2026-11-21T10:08:18.000Z`.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Years after 9999 have no such form.
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(253_402_300_799_999));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

/// Bytes, as base64 in JSON.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl std::fmt::Debug for Base64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = base64::engine::general_purpose::STANDARD.encode(&self.0);
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        bytes.map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_ec2_does() {
        let moment = Timestamp(1_795_255_698_042);
        assert_eq!(moment.to_string(), "2026-11-21T10:08:18.042Z");
        let later = moment.after(Duration::from_secs(2));
        assert_eq!(later.since(moment), Duration::from_secs(2));
        assert_eq!(moment.since(later), Duration::ZERO);
        let _ = Timestamp(u64::MAX).to_string();
    }

    #[test]
    fn tags_that_ec2_refuses_are_refused() {
        let tags = |key: &str, value: &str| Tags::from([(key.into(), value.into())]);
        assert!(check_tags(&tags("Name", "")).is_ok());
        for bad in [
            tags("", "x"),
            tags("aws:name", "x"),
            tags(&"k".repeat(129), "x"),
            tags("k", &"v".repeat(257)),
        ] {
            assert!(matches!(check_tags(&bad), Err(Invalid::Tag { .. })));
        }
        let many = (0..51).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(check_tags(&many), Err(Invalid::Tags(51)));
    }

    #[test]
    fn bytes_survive_json() {
        let bytes = Base64(vec![0, 255, 10]);
        let text = serde_json::to_string(&bytes).unwrap();
        assert_eq!(text, "\"AP8K\"");
        assert_eq!(serde_json::from_str::<Base64>(&text).unwrap(), bytes);
    }
}
