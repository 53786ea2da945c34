//! Sizes of instances.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use store::Record;

/// A size by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceType {
    /// As `t3.micro`.
    pub name: Cow<'static, str>,
    /// vCPUs.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
}

impl Record for InstanceType {
    const KIND: &'static str = "instance-type";
    const VERSION: u32 = 1;
}

impl InstanceType {
    const fn new(name: &'static str, cpus: u32, memory_mib: u64) -> Self {
        Self {
            name: Cow::Borrowed(name),
            cpus,
            memory_mib,
        }
    }

    /// RAM in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory_mib << 20
    }

    /// Its CPU time is a share with credits, as EC2 says of its T types.
    #[must_use]
    pub fn is_burstable(&self) -> bool {
        self.name.starts_with('t')
    }

    /// It is one of [`CATALOGUE`].
    #[must_use]
    pub fn is_catalogued(&self) -> bool {
        catalogued(&self.name).is_some()
    }
}

/// The sizes that every Holm has, with the vCPUs and memory of EC2's types of
/// the same names.
pub const CATALOGUE: &[InstanceType] = &[
    InstanceType::new("t2.nano", 1, 512),
    InstanceType::new("t2.micro", 1, 1024),
    InstanceType::new("t2.small", 1, 2048),
    InstanceType::new("t2.medium", 2, 4096),
    InstanceType::new("t2.large", 2, 8192),
    InstanceType::new("t3.nano", 2, 512),
    InstanceType::new("t3.micro", 2, 1024),
    InstanceType::new("t3.small", 2, 2048),
    InstanceType::new("t3.medium", 2, 4096),
    InstanceType::new("t3.large", 2, 8192),
    InstanceType::new("t3.xlarge", 4, 16384),
    InstanceType::new("t3.2xlarge", 8, 32768),
    InstanceType::new("m5.large", 2, 8192),
    InstanceType::new("m5.xlarge", 4, 16384),
    InstanceType::new("m5.2xlarge", 8, 32768),
    InstanceType::new("m5.4xlarge", 16, 65536),
    InstanceType::new("m6i.large", 2, 8192),
    InstanceType::new("m6i.xlarge", 4, 16384),
    InstanceType::new("m6i.2xlarge", 8, 32768),
    InstanceType::new("c5.large", 2, 4096),
    InstanceType::new("c5.xlarge", 4, 8192),
    InstanceType::new("c5.2xlarge", 8, 16384),
    InstanceType::new("c6i.large", 2, 4096),
    InstanceType::new("c6i.xlarge", 4, 8192),
    InstanceType::new("c6i.2xlarge", 8, 16384),
    InstanceType::new("r5.large", 2, 16384),
    InstanceType::new("r5.xlarge", 4, 32768),
    InstanceType::new("r5.2xlarge", 8, 65536),
];

/// The catalogue's size of this name.
#[must_use]
pub fn catalogued(name: &str) -> Option<&'static InstanceType> {
    CATALOGUE.iter().find(|t| t.name == name)
}
