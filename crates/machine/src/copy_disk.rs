//! A copy of one disk of a running machine, as it is at one instant.

use std::path::Path;

use disk::Format;

use crate::machine::Inner;
use crate::outcome::MachineError;

/// Why a disk was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The machine has no such disk.
    #[error("the machine has no disk {0:?}")]
    Missing(String),
    /// The disk cannot be copied while it is used.
    #[error("the disk {0:?} cannot be copied while the machine runs")]
    Unable(String),
    /// The copy's file.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// Reading or writing.
    #[error("copying the disk to {file}: {source}")]
    Host {
        /// The copy.
        file: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The machine.
    #[error("{0}")]
    Machine(String),
}

/// Copies a disk to a new file; the format of the copy. The guest stands while
/// the copy begins, and goes on while it is made. What cannot be finished is
/// removed.
pub(crate) fn copy_disk(machine: &Inner, name: &str, file: &Path) -> Result<Format, CopyError> {
    let ports = machine.board().disks();
    let port = ports.into_iter().find(|port| port.name == name);
    let port = port.ok_or_else(|| CopyError::Missing(name.to_owned()))?;
    let disk = port.control.disk();
    let unable = || CopyError::Unable(name.to_owned());
    let capturable = disk.capturable().ok_or_else(unable)?;
    let target = capturable.prepare(file)?;
    let format = target.format();
    let failed = |source| CopyError::Host {
        file: file.display().to_string(),
        source,
    };
    let rest = {
        let _one = machine.operation();
        if machine.control().has_ended() {
            Err(CopyError::Machine(MachineError::Ended.to_string()))
        } else {
            let ran = machine.pause_locked();
            let rest = capturable.capture(target);
            if ran {
                machine.resume_locked();
            }
            rest.map_err(failed)
        }
    };
    let copied = rest.and_then(|rest| rest.finish().map_err(failed));
    if copied.is_err() {
        // What is not whole must not be taken for a copy.
        let _ = std::fs::remove_file(file);
    }
    copied.map(|()| format)
}
