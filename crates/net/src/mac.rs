//! Addresses of network cards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of a network card (IEEE 802, 48 bits).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All cards.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of card number `index` of the machine with this UUID:
    /// always the same, locally administered, for one card.
    pub fn derived(uuid: &[u8; 16], index: u8) -> Self {
        // FNV-1a with 64 bits: spreads well, and never changes.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in uuid.iter().chain(&[index]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        // Its low bits depend on too little: mixed once more.
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 33;
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        Self([a & 0xfc | 2, b, c, d, e, f])
    }

    /// For more than one card, or all.
    pub fn is_multicast(&self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a card may have it.
    pub fn is_unicast(&self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is not the address of one card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the address of a network card: six pairs of hexadecimal digits, the first even, as in 02:00:00:00:00:01"
)]
pub struct MacError(String);

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        let mac = Self(mac);
        let complete = parts.next().is_none() && mac.is_unicast() && !text.contains('+');
        complete.then_some(mac).ok_or_else(wrong)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::MacAddress;

    #[test]
    fn addresses_are_read_and_written() {
        let mac: MacAddress = "02:00:aB:00:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:00:00:01");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "+2:00:00:00:00:01",
            "02-00-00-00-00-01",
            "0x:00:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn derived_addresses_are_stable_local_and_distinct() {
        let mut seen = std::collections::HashSet::new();
        for machine in 0..2000u16 {
            let mut uuid = [7; 16];
            uuid[3..5].copy_from_slice(&machine.to_le_bytes());
            for index in 0..4 {
                let mac = MacAddress::derived(&uuid, index);
                assert!(mac.is_unicast() && mac.0[0] & 2 != 0);
                assert!(seen.insert(mac), "{machine} {index}");
            }
        }
        let fixed = MacAddress::derived(&[1; 16], 0);
        assert_eq!(fixed, MacAddress::derived(&[1; 16], 0));
    }
}
