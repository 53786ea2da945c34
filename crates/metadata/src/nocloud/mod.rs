//! The seed disk of cloud-init's NoCloud datasource, for images that do not
//! look for EC2's metadata: a volume `CIDATA` with the files `meta-data`,
//! `user-data` and `network-config`. It is attached as a read-only disk.

mod fat;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::facts::Facts;

/// Label by which cloud-init finds the volume.
pub const LABEL: &str = "CIDATA";

/// Why a seed disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// More than the volume can hold.
    #[error(
        "the seed disk of {instance} would hold {bytes} bytes, and at most {most} fit; its user data is too long",
        most = fat::MOST_BYTES
    )]
    TooLong {
        /// The instance.
        instance: String,
        /// Bytes of the files.
        bytes: usize,
    },
    /// The file could not be written.
    #[error("cannot write the seed disk {file}: {source}")]
    Write {
        /// The file.
        file: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// The whole volume, as bytes.
///
/// # Errors
/// [`SeedError::TooLong`].
pub fn volume(facts: &Facts) -> Result<Vec<u8>, SeedError> {
    let meta_data = meta_data(facts);
    let network = network_config(facts);
    // Without any, cloud-init would not take the disk for a seed.
    let user_data = facts.user_data.as_deref().unwrap_or_default();
    let files = [
        ("meta-data", meta_data.as_bytes()),
        ("user-data", user_data),
        ("network-config", network.as_bytes()),
    ];
    fat::volume(LABEL, &files).ok_or_else(|| SeedError::TooLong {
        instance: facts.instance_id.clone(),
        bytes: files.iter().map(|(_, data)| data.len()).sum(),
    })
}

/// Writes the volume to a file: whole or not at all, and readable by its owner
/// only, since user data may hold secrets.
///
/// # Errors
/// [`SeedError`].
pub fn write(file: &Path, facts: &Facts) -> Result<(), SeedError> {
    let volume = volume(facts)?;
    replace(file, &volume).map_err(|source| SeedError::Write {
        file: file.to_owned(),
        source,
    })
}

fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    // One that a crash left may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let mut out = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// JSON, which is YAML too.
fn meta_data(facts: &Facts) -> String {
    let keys: Vec<&str> = facts
        .keys
        .iter()
        .map(|key| key.openssh.trim_end())
        .collect();
    let data = json!({
        "instance-id": facts.instance_id,
        "local-hostname": facts.hostname,
        "public-keys": keys,
        "availability-zone": facts.zone,
        "region": facts.region,
    });
    format!("{data:#}\n")
}

/// Each card by its address, asking for its IP addresses.
fn network_config(facts: &Facts) -> String {
    let cards = facts.interfaces.iter().enumerate().map(|(index, card)| {
        let config = json!({
            "match": {"macaddress": card.mac.to_ascii_lowercase()},
            "dhcp4": true,
            "dhcp6": !card.addresses_v6.is_empty(),
        });
        (format!("nic{index}"), config)
    });
    let ethernets: serde_json::Map<_, _> = cards.collect();
    let config = json!({"version": 2, "ethernets": ethernets});
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_written_whole_and_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("seed.img");
        let mut facts = crate::facts::example();
        fs::write(directory.path().join("seed.img.new"), "left by a crash").unwrap();
        write(&file, &facts).unwrap();
        let first = fs::read(&file).unwrap();
        assert!(first.len().is_multiple_of(512));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        facts.user_data = Some(vec![b'x'; 20 << 20].into());
        let error = write(&file, &facts).unwrap_err().to_string();
        assert!(error.contains("i-0123"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), first);
    }
}
