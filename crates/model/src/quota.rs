//! How much an account may have.

use serde::{Deserialize, Serialize};
use store::Record;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quota {
    /// Instances that are not terminated.
    Instances,
    /// vCPUs of those that are to run.
    Cpus,
    /// MiB of RAM of those that are to run.
    MemoryMib,
    /// Volumes.
    Volumes,
    /// GiB of all volumes.
    VolumeGib,
    /// Snapshots.
    Snapshots,
    /// Images.
    Images,
    /// Key pairs.
    KeyPairs,
    /// Elastic addresses.
    Addresses,
    /// VPCs.
    Vpcs,
    /// Subnets of one VPC.
    SubnetsPerVpc,
    /// Security groups.
    SecurityGroups,
    /// Rules of one security group and direction.
    RulesPerGroup,
}

impl Quota {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Instances,
        Self::Cpus,
        Self::MemoryMib,
        Self::Volumes,
        Self::VolumeGib,
        Self::Snapshots,
        Self::Images,
        Self::KeyPairs,
        Self::Addresses,
        Self::Vpcs,
        Self::SubnetsPerVpc,
        Self::SecurityGroups,
        Self::RulesPerGroup,
    ];

    /// Its name on the command line and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Instances => "instances",
            Self::Cpus => "cpus",
            Self::MemoryMib => "memory-mib",
            Self::Volumes => "volumes",
            Self::VolumeGib => "volume-gib",
            Self::Snapshots => "snapshots",
            Self::Images => "images",
            Self::KeyPairs => "key-pairs",
            Self::Addresses => "addresses",
            Self::Vpcs => "vpcs",
            Self::SubnetsPerVpc => "subnets-per-vpc",
            Self::SecurityGroups => "security-groups",
            Self::RulesPerGroup => "rules-per-group",
        }
    }

    /// What an account may have whose owner said nothing.
    #[must_use]
    pub fn default_limit(self) -> u64 {
        match self {
            Self::Instances | Self::Addresses => 1000,
            Self::Cpus => 4000,
            Self::MemoryMib => 4 << 20,
            Self::Volumes => 5000,
            Self::VolumeGib => 100_000,
            Self::Snapshots => 10_000,
            Self::Images | Self::KeyPairs => 5000,
            Self::Vpcs => 100,
            Self::SubnetsPerVpc => 200,
            Self::SecurityGroups => 2500,
            Self::RulesPerGroup => 200,
        }
    }
}

/// Limits of one account; the record's id is the account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Those that differ from [`Quota::default_limit`].
    #[serde(default)]
    pub limits: std::collections::BTreeMap<Quota, u64>,
}

impl Record for Quotas {
    const KIND: &'static str = "quotas";
    const VERSION: u32 = 1;
}

impl Quotas {
    /// How much of this the account may have.
    #[must_use]
    pub fn limit(&self, quota: Quota) -> u64 {
        let own = self.limits.get(&quota).copied();
        own.unwrap_or_else(|| quota.default_limit())
    }
}
