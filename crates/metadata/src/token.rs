//! Session tokens of IMDSv2.
//!
//! A token says when it ends, and is signed with the instance's own key. So no
//! other instance can use it, and it holds over a restart of the daemon without
//! being written down anywhere.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE as BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Seconds that a token can hold, as EC2 has them.
pub const TOKEN_SECONDS: std::ops::RangeInclusive<u32> = 1..=21_600;

const VERSION: u8 = 1;
const NONCE: usize = 12;
/// Version, end in seconds since 1970, nonce.
const BODY: usize = 1 + 8 + NONCE;
const TAG: usize = 18;
/// Characters of a token. 39 bytes have no padding in base64.
const LENGTH: usize = (BODY + TAG) / 3 * 4;
/// Signed with the body, so that the key can serve other purposes too.
const PURPOSE: &[u8] = b"holm instance metadata token";

/// The secret with which an instance's tokens are signed. Whoever makes the
/// instance makes it, and keeps it as long as the instance lives.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey(pub [u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl TokenKey {
    /// A new one, of the host's random numbers.
    ///
    /// # Errors
    /// If the host has none.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self(key))
    }

    /// A token for `instance` that holds for `seconds` from `now`.
    pub(crate) fn issue(
        &self,
        instance: &str,
        now: SystemTime,
        seconds: u32,
    ) -> Result<String, getrandom::Error> {
        let end = seconds_of(now).saturating_add(seconds.into());
        let mut token = vec![VERSION];
        token.extend(end.to_be_bytes());
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce)?;
        token.extend(nonce);
        let tag = self.sign(instance, &token).finalize().into_bytes();
        token.extend(tag.iter().take(TAG));
        Ok(BASE64.encode(token))
    }

    /// How long a token still holds; `None` if it does not hold, or is another
    /// instance's.
    pub(crate) fn check(&self, instance: &str, now: SystemTime, token: &[u8]) -> Option<Duration> {
        if token.len() != LENGTH {
            return None;
        }
        let bytes = BASE64.decode(token).ok()?;
        let (body, tag) = bytes.split_at_checked(BODY)?;
        self.sign(instance, body).verify_truncated_left(tag).ok()?;
        let (version, rest) = body.split_first()?;
        if *version != VERSION || tag.len() != TAG {
            return None;
        }
        let end = u64::from_be_bytes(*rest.first_chunk()?);
        let left = end.checked_sub(seconds_of(now)).filter(|left| *left > 0)?;
        Some(Duration::from_secs(left))
    }

    fn sign(&self, instance: &str, body: &[u8]) -> Hmac<Sha256> {
        // HMAC fills a key up to its block with zeros anyway.
        let mut block = [0; 64];
        for (to, from) in block.iter_mut().zip(self.0) {
            *to = from;
        }
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(PURPOSE);
        mac.update(body);
        mac.update(instance.as_bytes());
        mac
    }
}

fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_holds_for_its_time_and_its_instance() {
        let key = TokenKey([7; 32]);
        let token = key.issue("i-1", at(1000), 60).unwrap();
        let check = |key: &TokenKey, instance, now| key.check(instance, at(now), token.as_bytes());
        assert_eq!(token.len(), LENGTH);
        assert_eq!(check(&key, "i-1", 1010), Some(Duration::from_secs(50)));
        assert_eq!(check(&key, "i-1", 1060), None);
        assert_eq!(check(&key, "i-2", 1010), None);
        assert_eq!(check(&TokenKey([8; 32]), "i-1", 1010), None);
        assert_ne!(key.issue("i-1", at(1000), 60).unwrap(), token);
        assert_eq!(format!("{key:?}"), "TokenKey(…)");
    }

    proptest! {
        #[test]
        fn no_other_bytes_are_a_token(at_byte in 0..LENGTH, with: u8, other: Vec<u8>) {
            let key = TokenKey([7; 32]);
            let token = key.issue("i-1", at(1000), 60).unwrap().into_bytes();
            let mut changed = token.clone();
            changed[at_byte] = with;
            prop_assert_eq!(key.check("i-1", at(1000), &changed).is_some(), changed == token);
            prop_assert_eq!(key.check("i-1", at(1000), &other), None);
        }
    }
}
