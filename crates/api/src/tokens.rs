//! Bearer tokens: their form, and how they are known again.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What every token begins with, so that scanners for secrets know it.
pub const PREFIX: &str = "holm_";
/// Bytes of a token's secret.
const SECRET: usize = 32;

/// A token as its bearer sends it: an id that is no secret, and a secret.
pub struct Token {
    /// Its id.
    pub id: String,
    /// All of it.
    pub text: String,
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The host gives no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 8 + SECRET];
        getrandom::fill(&mut bytes)?;
        let (id, secret) = bytes.split_at(8);
        let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
        let text = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret));
        Ok(Self { id, text })
    }

    /// What is kept of it. It has 256 bits of chance: no slow hash is needed.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.text)
    }
}

/// The id of what looks like a token.
#[must_use]
pub fn id(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let fits = id.len() == 16
        && id.bytes().all(|b| b.is_ascii_hexdigit())
        && secret.len() == SECRET.div_ceil(3) * 4 - 1;
    fits.then_some(id)
}

/// Whether a token is the one of this digest.
#[must_use]
pub fn fits(text: &str, kept: &str) -> bool {
    let mine = digest(text);
    // Each byte counts, so that time tells nothing.
    mine.len() == kept.len()
        && mine
            .bytes()
            .zip(kept.bytes())
            .fold(0, |all, (a, b)| all | (a ^ b))
            == 0
}

fn digest(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_known_again() {
        let (a, b) = (Token::random().unwrap(), Token::random().unwrap());
        assert_eq!(id(&a.text), Some(a.id.as_str()));
        assert!(fits(&a.text, &a.digest()) && !fits(&b.text, &a.digest()));
        assert!(!fits(&a.text, ""));
        for bad in ["", "holm_", "holm_0123456789abcdef_", "x", "holm_g_x"] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
