//! Names of resources, as EC2 forms them: a prefix and 17 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Hexadecimal digits of an id that Holm makes.
const DIGITS: usize = 17;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What all of them begin with.
            pub const PREFIX: &'static str = $prefix;

            /// A new one, not used before.
            #[must_use]
            pub fn random() -> Self {
                Self(random($prefix))
            }

            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                well_formed($prefix, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                well_formed($prefix, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}

ids! {
    /// Of an instance.
    InstanceId = "i-";
    /// Of the instances that one request made.
    ReservationId = "r-";
    /// Of an image.
    ImageId = "ami-";
    /// Of a volume.
    VolumeId = "vol-";
    /// Of a snapshot.
    SnapshotId = "snap-";
    /// Of a key pair.
    KeyPairId = "key-";
    /// Of a virtual private cloud, a network.
    VpcId = "vpc-";
    /// Of a subnet.
    SubnetId = "subnet-";
    /// Of an internet gateway.
    InternetGatewayId = "igw-";
    /// Of a route table.
    RouteTableId = "rtb-";
    /// Of the association of a route table and a subnet.
    RouteTableAssociationId = "rtbassoc-";
    /// Of a network's access list.
    NetworkAclId = "acl-";
    /// Of a network interface.
    InterfaceId = "eni-";
    /// Of the attachment of an interface and an instance.
    InterfaceAttachmentId = "eni-attach-";
    /// Of a set of DHCP options.
    DhcpOptionsId = "dopt-";
    /// Of a security group.
    SecurityGroupId = "sg-";
    /// Of a rule of a security group.
    SecurityGroupRuleId = "sgr-";
    /// Of an address that stays when an instance goes.
    AllocationId = "eipalloc-";
    /// Of the association of such an address and an instance.
    AssociationId = "eipassoc-";
    /// Of a long work.
    OperationId = "op-";
    /// Of something that happened.
    EventId = "evt-";
}

fn random(prefix: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = random_bytes::<DIGITS>().map(|byte| HEX[usize::from(byte & 15)]);
    let digits = digits.into_iter().map(char::from);
    prefix.chars().chain(digits).collect()
}

/// Bytes that nobody can guess.
///
/// # Panics
/// The kernel gives none, on which no secret of Holm could rest.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

fn well_formed(prefix: &'static str, text: &str) -> Result<(), Invalid> {
    let digits = text.strip_prefix(prefix);
    // Old ids of EC2 have 8 digits, and people write such by hand in tests.
    let good = digits.is_some_and(|digits| {
        (8..=32).contains(&digits.len())
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    match good {
        true => Ok(()),
        false => Err(Invalid::Id {
            prefix,
            text: text.chars().take(64).collect(),
        }),
    }
}

/// An account, by its 12 decimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

impl AccountId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        let number = u64::from_le_bytes(random_bytes()) % 900_000_000_000;
        Self(format!("{}", number + 100_000_000_000))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AccountId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        match text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
            true => Ok(Self(text)),
            false => Err(Invalid::Account(text.chars().take(64).collect())),
        }
    }
}

impl From<AccountId> for String {
    fn from(id: AccountId) -> Self {
        id.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_form_that_tools_know() {
        let id = InstanceId::random();
        assert_eq!(id.as_str().len(), 2 + DIGITS);
        assert_eq!(id.as_str().parse::<InstanceId>().unwrap(), id);
        assert_ne!(id, InstanceId::random());
        for bad in [
            "",
            "i-",
            "i-1234567",
            "i-0123456g",
            "vol-01234567",
            "i-0123456A",
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
        assert!("i-01234567".parse::<InstanceId>().is_ok());
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<InstanceId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<InstanceId>("\"../../etc\"").is_err());
        let account = AccountId::random();
        assert!(AccountId::try_from(account.to_string()).is_ok());
        assert!(AccountId::try_from("12".to_owned()).is_err());
    }
}
