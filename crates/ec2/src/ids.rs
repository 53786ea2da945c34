//! Ids as parameters have them.

use std::str::FromStr;

use model::{
    AllocationId, AssociationId, DhcpOptionsId, ImageId, InstanceId, InterfaceId,
    InternetGatewayId, KeyPairId, NetworkAclId, RouteTableAssociationId, RouteTableId,
    SecurityGroupId, SecurityGroupRuleId, SnapshotId, SubnetId, VolumeId, VpcId,
};

use crate::error::Error;
use crate::parameters::Parameters;

/// An id of which EC2 has a code for texts that are none.
pub trait Id: FromStr + AsRef<str> {
    /// What such ids begin with.
    const BEGINS: &'static str;
    /// Code for a text that is none.
    const MALFORMED: &'static str;
}

macro_rules! ids {
    ($($type:ty => $code:literal,)*) => {$(
        impl Id for $type {
            const BEGINS: &'static str = <$type>::PREFIX;
            const MALFORMED: &'static str = $code;
        }
    )*};
}

ids! {
    AllocationId => "InvalidAllocationID.Malformed",
    AssociationId => "InvalidAssociationID.Malformed",
    DhcpOptionsId => "InvalidDhcpOptionsId.Malformed",
    ImageId => "InvalidAMIID.Malformed",
    InstanceId => "InvalidInstanceID.Malformed",
    InterfaceId => "InvalidNetworkInterfaceId.Malformed",
    InternetGatewayId => "InvalidInternetGatewayId.Malformed",
    KeyPairId => "InvalidParameterValue",
    NetworkAclId => "InvalidNetworkAclId.Malformed",
    RouteTableAssociationId => "InvalidAssociationId.Malformed",
    RouteTableId => "InvalidRouteTableId.Malformed",
    SecurityGroupId => "InvalidGroupId.Malformed",
    SecurityGroupRuleId => "InvalidSecurityGroupRuleId.Malformed",
    SnapshotId => "InvalidSnapshotID.Malformed",
    SubnetId => "InvalidSubnetID.Malformed",
    VolumeId => "InvalidVolumeID.Malformed",
    VpcId => "InvalidVpcID.Malformed",
}

/// An id of its text.
///
/// # Errors
/// The code of malformed ids of its kind.
pub fn parse<I: Id>(text: &str) -> Result<I, Error> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        Error::new(
            I::MALFORMED,
            format!("Invalid id: \"{shown}\" (expecting \"{}...\")", I::BEGINS),
        )
    })
}

impl Parameters {
    /// An id that may be missing.
    ///
    /// # Errors
    /// The code of malformed ids of its kind.
    pub fn id<I: Id>(&self, name: &str) -> Result<Option<I>, Error> {
        self.text(name).map(parse).transpose()
    }

    /// An id that must be there.
    ///
    /// # Errors
    /// `MissingParameter`, or as [`Self::id`].
    pub fn require_id<I: Id>(&self, name: &str) -> Result<I, Error> {
        parse(self.require(name)?)
    }

    /// The ids of a list.
    ///
    /// # Errors
    /// As [`Self::id`].
    pub fn ids<I: Id>(&self, name: &str) -> Result<Vec<I>, Error> {
        self.texts(name).iter().map(|text| parse(text)).collect()
    }
}
