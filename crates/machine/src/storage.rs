//! The disks of a machine: their files, their devices and their names.

use std::path::Path;
use std::sync::Arc;

use disk::{BlockBackend, BlockError, CapturableDisk, DiskOptions, SECTOR};
use virtio::blk::{Blk, BlkControl, BlkOptions, IoFailure};

use crate::control::{Control, Event};
use crate::description::Disk;
use crate::events::GuestEvent;
use crate::outcome::MachineError;

/// Most queues of a disk; each has a thread.
const MOST_QUEUES: u32 = 8;

/// A disk that is in a machine.
#[derive(Clone)]
pub struct DiskPort {
    /// Its name in this machine.
    pub name: String,
    /// How it was described.
    pub disk: Disk,
    /// Its device.
    pub control: BlkControl,
}

impl DiskPort {
    /// Capacity in bytes.
    pub fn size(&self) -> u64 {
        self.control.disk().sectors().saturating_mul(SECTOR)
    }

    /// What the host could not do since the machine was last resumed.
    pub fn failure(&self) -> Option<String> {
        let failure = self.control.failure()?;
        Some(describe(&failure))
    }

    /// Leaves the disk's file as one that nobody has open; its device does no
    /// more.
    pub(crate) fn close(&self) {
        if let Err(error) = self.control.disk().close() {
            let file = place(&self.disk.file);
            tracing::error!(file, %error, "closing the disk: it is mended when it is used next");
        }
    }
}

/// Where a disk is, for people: of an overlay without a name, the directory
/// whose space it takes.
pub fn place(file: &Path) -> String {
    let directory = || file.read_link().ok()?.parent().map(Path::to_owned);
    match file.starts_with("/proc").then(directory).flatten() {
        Some(directory) => format!("an overlay that vanishes, in {}", directory.display()),
        None => file.display().to_string(),
    }
}

/// Opens and locks a disk.
pub(crate) fn open(disk: &Disk) -> Result<Arc<dyn BlockBackend>, MachineError> {
    let mut options = DiskOptions::new(&disk.file);
    options.format = disk.format;
    options.scratch = disk.scratch;
    options.read_only = disk.read_only;
    options.serial = disk.serial.clone().unwrap_or_default();
    options.logical_block = disk.block_size.unwrap_or(options.logical_block);
    Ok(Arc::new(CapturableDisk::new(disk::open(&options)?)))
}

/// The device of an open disk.
pub(crate) fn device(
    name: String,
    disk: &Disk,
    backend: Arc<dyn BlockBackend>,
    cpus: u32,
    control: &Arc<Control>,
) -> (Blk, DiskPort) {
    let queues = cpus.clamp(1, MOST_QUEUES) as u16;
    let (machine, who) = (control.clone(), format!("{name} ({})", place(&disk.file)));
    let on_failure = move |failure: IoFailure| {
        let what = describe(&failure);
        if failure.held {
            tracing::error!(
                "disk {who}: {what}; the machine is paused and tries again when it is resumed"
            );
            machine.post(Event::Guest(GuestEvent::DiskStopped));
        } else {
            tracing::error!("disk {who}: {what}; the guest sees an I/O error");
            machine.post(Event::Guest(GuestEvent::DiskFailed));
        }
    };
    let options = BlkOptions {
        limits: disk.limits,
        on_error: disk.on_error,
        on_failure: Some(Arc::new(on_failure)),
    };
    let device = Blk::new(backend, queues, options);
    let port = DiskPort {
        name,
        disk: disk.clone(),
        control: device.control(),
    };
    (device, port)
}

fn describe(failure: &IoFailure) -> String {
    let what = match failure.write {
        true => "writing",
        false => "reading",
    };
    let why = match failure.error {
        BlockError::Host(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        other => other.to_string(),
    };
    format!("{what} at sector {}: {why}", failure.sector)
}

/// Names for disks without one: `disk0`, `disk1` and so on, by their place.
pub(crate) fn names(disks: &[Disk]) -> Vec<String> {
    let named = |(index, disk): (usize, &Disk)| {
        let own = disk.name.clone();
        own.unwrap_or_else(|| format!("disk{index}"))
    };
    disks.iter().enumerate().map(named).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_overlay_without_a_name_is_told_by_its_directory() {
        let place = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(place.path()).unwrap();
        let link = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let told = super::place(Path::new(&link));
        let directory = place.path().to_str().unwrap();
        assert_eq!(told, format!("an overlay that vanishes, in {directory}"));
        assert_eq!(super::place(Path::new("/srv/a.img")), "/srv/a.img");
    }
}
