//! By what a guest knows, without any network, that it is an EC2 instance.

use sha2::{Digest, Sha256};

/// The SMBIOS identity of an instance. cloud-init takes a machine for one of
/// EC2's if its system UUID begins with `ec2` and its serial number is the same
/// text (`identify_aws` of its Ec2 datasource, `ec2_identify_platform` of
/// ds-identify); it asks for no manufacturer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosIdentity {
    /// System UUID, as its 16 bytes are written.
    pub uuid: [u8; 16],
    /// Serial number of the system.
    pub serial: String,
}

impl SmbiosIdentity {
    /// That of an instance, always the same.
    pub fn of(instance_id: &str) -> Self {
        let mut uuid = [0; 16];
        let mut hash = Sha256::new();
        hash.update(b"holm system uuid");
        hash.update(instance_id);
        for (to, from) in uuid.iter_mut().zip(hash.finalize()) {
            *to = from;
        }
        uuid[0] = 0xec;
        uuid[1] = 0x20 | uuid[1] & 0x0f;
        let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
        let parts = parts.map(|part| hex.get(part).unwrap_or_default());
        Self {
            uuid,
            serial: parts.join("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_ec2s_and_the_instances_own() {
        let one = SmbiosIdentity::of("i-1");
        assert_eq!(one, SmbiosIdentity::of("i-1"));
        assert_ne!(one.uuid, SmbiosIdentity::of("i-2").uuid);
        assert!(one.serial.starts_with("ec2"), "{}", one.serial);
        assert_eq!(one.serial.len(), 36);
        let hex: String = one.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(one.serial.replace('-', ""), hex);
    }
}
