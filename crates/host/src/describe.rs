//! An instance, as a machine's description.

use control::Plane;
use machine_protocol::launch::{Engine, LAUNCH_VERSION, Launch};
use metadata::SmbiosIdentity;
use model::{BlockDevice, Instance, Volume};
use serde_json::{Value, json};

use crate::driver::VolumeFile;
use crate::layout::Layout;
use crate::ports::Network;

/// Bytes of the serial console that are kept.
const SERIAL_LOG_BYTES: u64 = 1 << 20;
/// The slots of disks that come and go.
const PORTS: std::ops::RangeInclusive<usize> = 24..=31;

/// A start of an instance's machine; `files` are those of its disks. Without
/// `ports` it has no network cards.
pub fn launch(
    plane: &Plane,
    layout: &Layout,
    instance: &Instance,
    number: u64,
    files: &[VolumeFile],
    ports: bool,
) -> Launch {
    let id = instance.id.as_str();
    let identity = SmbiosIdentity::of(id);
    let is_root = |disk: &BlockDevice| disk.device == instance.root_device;
    let root = instance.disks.iter().position(is_root).unwrap_or_default();
    let mut ports_left = PORTS;
    let disks = instance.disks.iter().zip(files).enumerate();
    let mut disks: Vec<Value> = disks
        .map(|(index, (device, file))| {
            let mut disk = disk(plane, device.volume.as_str(), file);
            // The root disk is there for good; the others can be detached.
            if index != root
                && let Some(port) = ports_left.next()
            {
                disk["port"] = port.into();
            }
            disk
        })
        .collect();
    if instance.nocloud {
        disks.push(json!({
            "file": layout.seed_disk(id),
            "format": "raw",
            "name": "seed",
            "read_only": true,
        }));
    }
    Launch {
        version: LAUNCH_VERSION,
        number,
        engine: Engine::Auto,
        serial_log_bytes: SERIAL_LOG_BYTES,
        machine: json!({
            "version": 1,
            "cpus": instance.cpus,
            "memory": instance.memory,
            "boot": { "disk": { "disk": root, "console": "console=ttyS0" } },
            "disks": disks,
            "nics": if ports { nics(plane, layout, instance) } else { Vec::new() },
            "peripherals": { "agent": true, "balloon": true },
            "on_reset": "reboot",
            "uuid": identity.uuid,
            "serial": identity.serial,
            "smbios": { "product": instance.instance_type, "asset_tag": id },
        }),
    }
}

/// The cards, each a port in its network.
fn nics(plane: &Plane, layout: &Layout, instance: &Instance) -> Vec<Value> {
    let cards = instance.interfaces.iter().filter_map(|card| {
        let network = Network::of(plane, &card.vpc)?;
        let port = network.port(layout, instance, card)?;
        let mut vpc = json!({
            "directory": layout.network(card.vpc.as_str()),
            "port": port,
        });
        if card.id == instance.interfaces.first()?.id {
            vpc["door"] = json!(layout.door_socket(instance.id.as_str()));
        }
        Some(json!({ "network": { "vpc": vpc } }))
    });
    cards.collect()
}

/// A volume, as a disk of a machine. Its name is the volume's id, its serial
/// number the same as EC2 has it. It is as slow as its owner said; who said
/// nothing has what the host gives, not the least that EC2 promises.
pub fn disk(plane: &Plane, volume: &str, file: &VolumeFile) -> Value {
    let found = plane.view().get::<Volume>(volume);
    let limit = |per_second: u64| json!({ "per_second": per_second, "burst": per_second });
    let mut limits = json!({});
    if let Some(iops) = found.as_ref().and_then(|found| found.record.iops) {
        limits["operations"] = limit(iops.into());
    }
    if let Some(mib) = found.as_ref().and_then(|found| found.record.throughput) {
        limits["bytes"] = limit(u64::from(mib) << 20);
    }
    json!({
        "file": file.path,
        "format": file.format,
        "name": volume,
        "serial": volume.replace('-', ""),
        "limits": limits,
    })
}
