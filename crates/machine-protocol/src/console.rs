//! The serial console of a machine, on a connection that
//! [`crate::Request::Console`] has attached to it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a client wants of the keyboard, which one client has at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keyboard {
    /// Nothing: it only watches.
    No,
    /// To have it if nobody does.
    IfFree,
    /// To have it, whoever does.
    Take,
}

/// Bytes, base64 (RFC 4648) in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text);
        let bytes = bytes.map(Self);
        bytes.map_err(|e| serde::de::Error::custom(format!("data that is not base64: {e}")))
    }
}

/// What the guest printed on its console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Printed {
    /// Bytes before these that this client was too slow for.
    pub lost: u64,
    /// The bytes.
    pub data: Bytes,
}
