//! A machine of its own: what the command line and the image say of it.

use std::path::Path;
use std::time::Instant;

use machine::{Boot, Description, Disk, DiskBoot, KernelBoot, OnReset};
use sha2::{Digest, Sha256};

use super::arguments::{self, Own, Run};
use super::session::{self, Origin, Plan};
use crate::disks::{self, OwnDisk};
use crate::engine_choice;
use crate::failure::Failure;
use crate::guest;
use crate::image::{self, Image, Target};
use crate::named::place;
use crate::network;

/// Added to a boot entry's command line that names no console.
const SERIAL_CONSOLE: &str = "console=ttyS0";

/// Runs the machine to its end; the exit status.
///
/// # Errors
/// [`Failure`]: why it cannot run.
pub fn start(arguments: &Run) -> Result<u8, Failure> {
    let own = &arguments.own;
    let longest = own.timeout.into_iter().chain(arguments.ttl).min();
    let deadline = longest.map(|timeout| Instant::now() + timeout);
    // What the files and the host cannot do is said before the terminal changes.
    let claim = arguments
        .name
        .as_deref()
        .map(place::Claim::take)
        .transpose()?;
    let (description, own_disks) = describe(arguments.image.as_deref(), own)?;
    session::run(Plan {
        description,
        own_disks,
        origin: Origin::Start,
        claim,
        engine: engine_choice::decide(own.engine)?,
        serial: own.serial.clone(),
        serial_log: own.peripherals.serial_log.clone(),
        agent_socket: own.peripherals.agent_socket.clone(),
        gdb: own.gdb,
        deadline,
        background: arguments.background.is(),
    })
}

/// What the command line and the image say together.
fn describe(image: Option<&str>, arguments: &Own) -> Result<(Description, Vec<OwnDisk>), Failure> {
    let target = match image {
        Some(name) => Some(Target::find(name, image::directory().as_deref())?),
        None => None,
    };
    let (image, disk) = match target {
        Some(Target::Image(image)) => (Some(image), None),
        Some(Target::Disk(path)) => (None, Some(path)),
        None => (None, None),
    };
    if disk.is_some() && arguments.keep.is_some() {
        return Err(Failure::Usage(
            "--keep is for images; a disk is used as it is, so copy it first".into(),
        ));
    }
    let mut description = Description::new(arguments.cpus, arguments.memory, "");
    description.boot = boot(arguments, image.as_ref())?;
    description.cpu_model = guest::cpu_model(arguments.cpu);
    description.peripherals = arguments.peripherals.describe();
    description.debug_exit = arguments.debug_exit;
    description.on_reset = match arguments.on_reset {
        arguments::OnReset::Exit => OnReset::Exit,
        arguments::OnReset::Reboot => OnReset::Reboot,
    };
    description.nics =
        network::cards(&arguments.nets, &arguments.publish).map_err(Failure::Usage)?;
    description.uuid = uuid(arguments.keep.as_deref())?;
    if disk.is_none() && arguments.format.is_some() {
        return Err(Failure::Usage(
            "--format is for disks; an image says itself what its disks are".into(),
        ));
    }
    description.disks.extend(disk.map(|file| Disk {
        format: arguments.format,
        ..Disk::new(file)
    }));
    let own_from = description.disks.len();
    let mut own_disks = Vec::new();
    for template in image.iter().flat_map(|image| &image.disks) {
        let own = disks::own(template, arguments.keep.as_deref())?;
        description.disks.push(Disk {
            format: Some(own.format),
            scratch: own.scratch,
            read_only: template.readonly,
            ..Disk::new(&own.path)
        });
        own_disks.push(own);
    }
    description.disks.extend(arguments.disks.iter().cloned());
    if arguments.ephemeral {
        let own = own_from..own_from + own_disks.len();
        for (index, disk) in description.disks.iter_mut().enumerate() {
            if disk.read_only || own.contains(&index) {
                continue;
            }
            let overlay = disks::overlay(&disk.file, disk.format)?;
            (disk.file, disk.format) = (overlay.path.clone(), Some(overlay.format));
            disk.scratch = true;
            own_disks.push(overlay);
        }
    }
    Ok((description, own_disks))
}

/// The UUID of a machine: of one that is kept always the same on this host,
/// so that its network cards keep their addresses; else a new one.
fn uuid(keep: Option<&Path>) -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    match keep {
        Some(directory) => {
            let path = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
            let host = std::fs::read("/etc/machine-id").unwrap_or_default();
            let mut hash = Sha256::new();
            hash.update(&host);
            hash.update(path.as_os_str().as_encoded_bytes());
            for (to, from) in uuid.iter_mut().zip(hash.finalize()) {
                *to = from;
            }
        }
        None => return random_uuid(),
    }
    Ok(marked(uuid, 0x80))
}

/// A UUID that no other machine has.
///
/// # Errors
/// [`Failure::Host`].
pub fn random_uuid() -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid)
        .map_err(|e| Failure::Host(format!("the host gives no random numbers: {e}")))?;
    Ok(marked(uuid, 0x40))
}

/// RFC 9562: version 4 (random) or 8 (of our own making), variant 1.
fn marked(mut uuid: [u8; 16], version: u8) -> [u8; 16] {
    uuid[6] = uuid[6] & 0x0f | version;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The kernel of the command line or the image, or else what the disk says.
fn boot(arguments: &Own, image: Option<&Image>) -> Result<Boot, Failure> {
    let kernel = arguments.kernel.as_ref();
    let kernel = kernel.or(image.and_then(|image| image.kernel.as_ref()));
    let Some(kernel) = kernel else {
        if arguments.initrd.is_some() {
            return Err(Failure::Usage(
                "--initrd needs a --kernel: the disk's boot entry has its own".into(),
            ));
        }
        return Ok(Boot::Disk(DiskBoot {
            disk: 0,
            entry: arguments.entry.clone(),
            cmdline: arguments.cmdline.clone(),
            append: arguments.append.clone().unwrap_or_default(),
            console: arguments.cmdline.is_none().then(|| SERIAL_CONSOLE.into()),
        }));
    };
    if arguments.entry.is_some() {
        return Err(Failure::Usage(
            "--entry is for disks; this image starts a kernel of its own".into(),
        ));
    }
    let image_initrd = image.and_then(|image| image.initrd.clone());
    Ok(Boot::Kernel(KernelBoot {
        kernel: kernel.clone(),
        initrd: arguments.initrd.clone().or(image_initrd),
        cmdline: cmdline(arguments, image),
        self_unpack: false,
    }))
}

fn cmdline(arguments: &Own, image: Option<&Image>) -> String {
    let mut words = Vec::new();
    match (&arguments.cmdline, image) {
        (Some(cmdline), _) => words.push(cmdline.clone()),
        (None, Some(image)) => words.push(image.cmdline.clone()),
        (None, None) => {}
    }
    words.extend(arguments.append.clone());
    words.join(" ")
}
