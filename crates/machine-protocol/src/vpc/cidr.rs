//! Blocks of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A block of IPv4 or IPv6 addresses, written `10.0.0.0/16`; an address alone
/// is a block of one. Bits after the prefix must be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

/// Text that is no block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no block of addresses: write its first address and the length of its prefix, as in \
     10.0.0.0/16"
)]
pub struct CidrError(String);

impl Cidr {
    /// The block that begins with `first`; `None` if it does not begin there.
    #[must_use]
    pub fn new(first: IpAddr, prefix: u8) -> Option<Self> {
        let block = Self { first, prefix };
        let rest = match first {
            IpAddr::V4(v4) if prefix <= 32 => u128::from(u32::from(v4) & !block.mask4()),
            IpAddr::V6(v6) if prefix <= 128 => u128::from(v6) & !block.mask6(),
            _ => return None,
        };
        (rest == 0).then_some(block)
    }

    /// The block of one address.
    #[must_use]
    pub const fn one(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self {
            first: address,
            prefix,
        }
    }

    fn mask4(&self) -> u32 {
        let shift = 32u32.saturating_sub(self.prefix.into());
        u32::MAX.checked_shl(shift).unwrap_or(0)
    }

    fn mask6(&self) -> u128 {
        let shift = 128u32.saturating_sub(self.prefix.into());
        u128::MAX.checked_shl(shift).unwrap_or(0)
    }

    /// Its first address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// Length of its prefix in bits.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is of IPv4.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(a)) => u32::from(a) & self.mask4() == u32::from(first),
            (IpAddr::V6(first), IpAddr::V6(a)) => u128::from(a) & self.mask6() == u128::from(first),
            _ => false,
        }
    }

    /// The IPv4 address with this number in it, if it has so many.
    #[must_use]
    pub fn host4(&self, number: u32) -> Option<Ipv4Addr> {
        let IpAddr::V4(first) = self.first else {
            return None;
        };
        let fits = number & self.mask4() == 0;
        fits.then(|| Ipv4Addr::from(u32::from(first) | number))
    }

    /// The last of its IPv4 addresses.
    #[must_use]
    pub fn last4(&self) -> Option<Ipv4Addr> {
        self.host4(!self.mask4())
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let Some((first, prefix)) = text.split_once('/') else {
            return text.parse().map(Self::one).map_err(|_| wrong());
        };
        let first = first.parse().map_err(|_| wrong())?;
        let digits = (1..=3).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        Self::new(first, prefix).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(block: Cidr) -> Self {
        block.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_what_they_say() {
        let block = |text: &str| text.parse::<Cidr>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(block("0.0.0.0/0").contains(ip("8.8.8.8")));
        assert!(!block("0.0.0.0/0").contains(ip("::1")));
        assert!(block("::/0").contains(ip("fe80::1")));
        assert!(block("10.0.1.0/24").contains(ip("10.0.1.255")));
        assert!(!block("10.0.1.0/24").contains(ip("10.0.2.0")));
        assert!(block("fd00::/64").contains(ip("fd00::ffff")));
        assert!(!block("fd00::/64").contains(ip("fd00:0:0:1::")));
        assert_eq!(block("10.0.0.7"), block("10.0.0.7/32"));
        assert_eq!(
            block("10.0.1.0/24").host4(2),
            Some(Ipv4Addr::new(10, 0, 1, 2))
        );
        assert_eq!(block("10.0.1.0/24").host4(256), None);
        assert_eq!(
            block("10.0.1.0/24").last4(),
            Some(Ipv4Addr::new(10, 0, 1, 255))
        );
        for bad in [
            "",
            "10.0.0.1/16",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "x/8",
            "10/8",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
