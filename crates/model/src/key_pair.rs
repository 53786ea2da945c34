//! Keys with which people log in.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{KeyPairId, Meta};

/// A key pair. The private key is its owner's alone: Holm gives it out when it
/// makes the pair, and keeps no copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Its own id.
    pub id: KeyPairId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Its name, one of its owner's alone.
    pub name: String,
    /// Kind of key.
    pub kind: KeyType,
    /// The public key in OpenSSH's form.
    pub public_key: String,
    /// As EC2 forms it: of a key that it made the SHA-1 (RSA) or SHA-256
    /// (Ed25519), of an imported RSA key the MD5.
    pub fingerprint: String,
}

impl Record for KeyPair {
    const KIND: &'static str = "key-pair";
    const VERSION: u32 = 1;
}

/// Kinds of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyType {
    /// RSA of 2048 bits.
    Rsa,
    /// Ed25519.
    Ed25519,
}

impl KeyType {
    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ed25519 => "ed25519",
        }
    }
}
