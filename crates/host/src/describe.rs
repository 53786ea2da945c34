//! An instance, as a machine's description.

use control::Plane;
use machine_protocol::launch::{Engine, LAUNCH_VERSION, Launch};
use metadata::SmbiosIdentity;
use model::Instance;
use serde_json::{Value, json};

use crate::driver::VolumeFile;
use crate::layout::Layout;

/// Bytes of the serial console that are kept.
const SERIAL_LOG_BYTES: u64 = 1 << 20;
/// The slots of disks that come and go.
const PORTS: std::ops::RangeInclusive<usize> = 24..=31;

/// A start of an instance's machine; `files` are those of its disks.
pub fn launch(
    _plane: &Plane,
    _layout: &Layout,
    instance: &Instance,
    number: u64,
    files: &[VolumeFile],
) -> Launch {
    let id = instance.id.as_str();
    let identity = SmbiosIdentity::of(id);
    let disks = instance.disks.iter().zip(files).enumerate();
    let disks: Vec<Value> = disks
        .map(|(index, (device, file))| {
            let mut disk = disk(device.volume.as_str(), file);
            // The root disk is there for good; the others can be detached.
            let port = (index > 0).then(|| PORTS.start() + index - 1);
            if let Some(port) = port.filter(|port| PORTS.contains(port)) {
                disk["port"] = port.into();
            }
            disk
        })
        .collect();
    Launch {
        version: LAUNCH_VERSION,
        number,
        engine: Engine::Auto,
        serial_log_bytes: SERIAL_LOG_BYTES,
        machine: json!({
            "version": 1,
            "cpus": instance.cpus,
            "memory": instance.memory,
            "boot": { "disk": { "disk": 0, "console": "console=ttyS0" } },
            "disks": disks,
            "nics": [{ "network": { "user": { "hostname": instance.hostname } } }],
            "peripherals": { "agent": true, "balloon": true },
            "on_reset": "reboot",
            "uuid": identity.uuid,
            "serial": identity.serial,
            "smbios": { "product": instance.instance_type, "asset_tag": id },
        }),
    }
}

/// A volume, as a disk of a machine. Its name is the volume's id, its serial
/// number the same as EC2 has it.
pub fn disk(volume: &str, file: &VolumeFile) -> Value {
    json!({
        "file": file.path,
        "format": file.format,
        "name": volume,
        "serial": volume.replace('-', ""),
    })
}
