//! What can be said about one instance.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::token::TokenKey;

/// Where the facts come from.
pub trait Source: Send + Sync {
    /// The facts as they are now; `None` while there are none (the service then
    /// answers 503, and clients try again). Asked at each request: quick, and
    /// never waits.
    fn facts(&self) -> Option<Arc<Facts>>;
}

/// One instance, as EC2's metadata has it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `i-…`.
    pub instance_id: String,
    /// `ami-…`.
    pub image_id: String,
    /// Such as `t3.micro`.
    pub instance_type: String,
    /// `r-…`.
    pub reservation_id: String,
    /// Number of the instance in its reservation, from 0.
    pub launch_index: u32,
    /// Account that owns it, 12 digits.
    pub account_id: String,
    /// Such as `us-east-1`.
    pub region: String,
    /// Such as `us-east-1a`.
    pub zone: String,
    /// Such as `use1-az1`.
    pub zone_id: Option<String>,
    /// When it was last started.
    pub launched: SystemTime,
    /// How it is paid for.
    pub lifecycle: Lifecycle,
    /// Its name in the network: `ip-10-0-0-5.ec2.internal`.
    pub hostname: String,
    /// Network cards, the primary one first.
    pub interfaces: Vec<Interface>,
    /// Keys that may log in.
    pub keys: Vec<PublicKey>,
    /// User data, decoded; `None` or empty: 404.
    pub user_data: Option<Bytes>,
    /// Shown only if [`Options::tags`] says so.
    pub tags: BTreeMap<String, String>,
    /// Virtual name (`ami`, `root`, `ebs1`, `ephemeral0`) and device.
    pub block_devices: Vec<(String, String)>,
    /// The service's own options.
    pub options: Options,
    /// What signs the tokens of this instance.
    pub token_key: TokenKey,
}

/// How an instance is paid for (`instance-life-cycle`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifecycle {
    /// Until it is terminated.
    #[default]
    OnDemand,
    /// Until its place is needed.
    Spot,
}

/// A network card.
#[derive(Clone, Debug)]
pub struct Interface {
    /// `eni-…`.
    pub id: String,
    /// As in `02:00:0a:00:00:05`.
    pub mac: String,
    /// 0 for the primary one.
    pub device_number: u32,
    /// Private addresses, the primary one first.
    pub addresses: Vec<Ipv4Addr>,
    /// IPv6 addresses.
    pub addresses_v6: Vec<Ipv6Addr>,
    /// Its private name.
    pub hostname: String,
    /// The public address that leads to the primary private one.
    pub public: Option<PublicAddress>,
    /// `subnet-…`.
    pub subnet_id: String,
    /// As in `10.0.0.0/24`.
    pub subnet_cidr: String,
    /// IPv6 blocks of the subnet.
    pub subnet_cidrs_v6: Vec<String>,
    /// `vpc-…`.
    pub vpc_id: String,
    /// Blocks of the VPC, the primary one first.
    pub vpc_cidrs: Vec<String>,
    /// IPv6 blocks of the VPC.
    pub vpc_cidrs_v6: Vec<String>,
    /// Ids and names of its security groups.
    pub security_groups: Vec<(String, String)>,
}

/// A public address.
#[derive(Clone, Debug)]
pub struct PublicAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Its name, if it has one.
    pub hostname: Option<String>,
}

/// A public key of a key pair.
#[derive(Clone, Debug)]
pub struct PublicKey {
    /// The key pair's name.
    pub name: String,
    /// One line as in `authorized_keys`.
    pub openssh: String,
}

/// Whether a token is asked for (`HttpTokens`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokens {
    /// IMDSv1 works too.
    #[default]
    Optional,
    /// IMDSv2 only.
    Required,
}

/// EC2's `MetadataOptions` of an instance. `HttpPutResponseHopLimit` is not
/// among them: whoever sends the packets (the network port) enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HttpEndpoint`: otherwise all is 403.
    pub enabled: bool,
    /// `HttpTokens`.
    pub tokens: Tokens,
    /// `InstanceMetadataTags`.
    pub tags: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            tokens: Tokens::default(),
            tags: false,
        }
    }
}

impl Facts {
    /// The primary network card.
    pub fn primary(&self) -> Option<&Interface> {
        self.interfaces.first()
    }
}

/// An instance for tests.
#[cfg(test)]
pub(crate) fn example() -> Facts {
    Facts {
        instance_id: "i-0123456789abcdef0".into(),
        image_id: "ami-0123456789abcdef0".into(),
        instance_type: "t3.micro".into(),
        reservation_id: "r-0123456789abcdef0".into(),
        launch_index: 0,
        account_id: "123456789012".into(),
        region: "us-east-1".into(),
        zone: "us-east-1a".into(),
        zone_id: Some("use1-az1".into()),
        launched: SystemTime::UNIX_EPOCH,
        lifecycle: Lifecycle::OnDemand,
        hostname: "ip-10-0-0-5.ec2.internal".into(),
        interfaces: vec![Interface {
            id: "eni-1".into(),
            mac: "02:00:0a:00:00:05".into(),
            device_number: 0,
            addresses: vec![Ipv4Addr::new(10, 0, 0, 5)],
            addresses_v6: Vec::new(),
            hostname: "ip-10-0-0-5.ec2.internal".into(),
            public: Some(PublicAddress {
                address: Ipv4Addr::new(127, 86, 0, 5),
                hostname: None,
            }),
            subnet_id: "subnet-1".into(),
            subnet_cidr: "10.0.0.0/24".into(),
            subnet_cidrs_v6: Vec::new(),
            vpc_id: "vpc-1".into(),
            vpc_cidrs: vec!["10.0.0.0/16".into()],
            vpc_cidrs_v6: Vec::new(),
            security_groups: vec![("sg-1".into(), "default".into())],
        }],
        keys: vec![PublicKey {
            name: "my-key".into(),
            openssh: "ssh-ed25519 AAAA my-key\n".into(),
        }],
        user_data: Some(Bytes::from_static(b"#!/bin/sh\n")),
        tags: [("Name", "web1"), ("a/b", "hidden"), ("env", "")]
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        block_devices: vec![
            ("ami".into(), "/dev/sda1".into()),
            ("root".into(), "/dev/sda1".into()),
        ],
        options: Options::default(),
        token_key: TokenKey([7; 32]),
    }
}
