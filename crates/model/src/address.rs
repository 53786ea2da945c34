//! Addresses of the public pool that stay with their owner.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{AllocationId, AssociationId, InstanceId, InterfaceId, Meta};

/// A public address that an account keeps, whatever becomes of the instance
/// that has it (EC2: elastic IP address).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticAddress {
    /// Its own id.
    pub id: AllocationId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// The address, at which the host reaches who has it.
    pub public_ip: Ipv4Addr,
    /// Who has it.
    pub association: Option<AddressAssociation>,
}

impl Record for ElasticAddress {
    const KIND: &'static str = "elastic-address";
    const VERSION: u32 = 1;
}

/// That an instance has an elastic address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressAssociation {
    /// Its own id.
    pub id: AssociationId,
    /// The instance.
    pub instance: InstanceId,
    /// Its network card.
    pub interface: InterfaceId,
}
