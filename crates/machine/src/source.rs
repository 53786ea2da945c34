//! Where a machine's kernel comes from at each of its starts.

use std::sync::Arc;

use boot::{BootError, ImageFile, Role};
use bootdisk::isolated::{Reader, printable};
use disk::{BlockBackend, SECTOR};

use crate::description::{Boot, Description, DiskBoot, KernelBoot};
use crate::outcome::MachineError;
use crate::storage::place;

/// Kernel, initrd and command line.
pub(crate) struct Files {
    pub kernel: ImageFile,
    pub initrd: Option<ImageFile>,
    pub cmdline: String,
    /// The monitor unpacks a compressed kernel.
    pub unpack: bool,
}

impl Files {
    fn open(boot: &KernelBoot) -> Result<Self, BootError> {
        let initrd = boot.initrd.as_deref();
        Ok(Self {
            kernel: ImageFile::open(Role::Kernel, &boot.kernel)?,
            initrd: initrd
                .map(|path| ImageFile::open(Role::Initrd, path))
                .transpose()?,
            cmdline: boot.cmdline.clone(),
            unpack: !boot.self_unpack,
        })
    }
}

/// What a machine starts from.
pub(crate) enum Source {
    /// Open files: the same at every start.
    Host(Box<Files>),
    /// Files that are opened when they are needed.
    Later(KernelBoot),
    /// A disk: what it says at that time.
    Disk {
        boot: DiskBoot,
        name: String,
        disk: Arc<dyn BlockBackend>,
    },
}

impl Source {
    /// Opens the files of a kernel boot, or takes the disk.
    ///
    /// # Errors
    /// [`MachineError::Boot`]: files that are missing or unfit.
    pub(crate) fn open(
        description: &Description,
        disks: &[Arc<dyn BlockBackend>],
    ) -> Result<Self, MachineError> {
        match &description.boot {
            Boot::Kernel(boot) => Ok(Self::Host(Box::new(Files::open(boot)?))),
            Boot::Disk(boot) => {
                let described = description.disks.get(boot.disk);
                let (Some(described), Some(disk)) = (described, disks.get(boot.disk)) else {
                    return Err(crate::DescriptionError::BootDisk(boot.disk).into());
                };
                Ok(Self::Disk {
                    boot: boot.clone(),
                    name: place(&described.file),
                    disk: disk.clone(),
                })
            }
        }
    }

    /// For a machine that runs already: a kernel's files may be gone until it
    /// starts anew.
    ///
    /// # Errors
    /// As [`Self::open`], but for those of files.
    pub(crate) fn later(
        description: &Description,
        disks: &[Arc<dyn BlockBackend>],
    ) -> Result<Self, MachineError> {
        match &description.boot {
            Boot::Kernel(boot) => Ok(Self::Later(boot.clone())),
            Boot::Disk(_) => Self::open(description, disks),
        }
    }

    /// Gives what to start now to `start`; `memory` is the guest's below 3 GiB.
    ///
    /// # Errors
    /// [`MachineError::BootDisk`], or what `start` says.
    pub(crate) fn with<T>(
        &self,
        memory: u64,
        start: impl FnOnce(&Files) -> Result<T, BootError>,
    ) -> Result<T, MachineError> {
        match self {
            Self::Host(files) => Ok(start(files)?),
            Self::Later(boot) => Ok(start(&Files::open(boot)?)?),
            Self::Disk { boot, name, disk } => {
                let loaded = Reader::default()
                    .load(
                        disk.sectors() * SECTOR,
                        &|offset, out| disk.read_at(offset, out),
                        boot.entry.as_deref(),
                        memory,
                    )
                    .map_err(|source| MachineError::BootDisk {
                        disk: name.clone(),
                        source,
                    })?;
                let entry = &loaded.entry;
                tracing::info!(
                    title = printable(&entry.title),
                    id = printable(&entry.id),
                    found = entry.found,
                    "boot entry"
                );
                let own = boot.cmdline.as_ref().unwrap_or(&entry.cmdline);
                let cmdline = cmdline(own, boot);
                let (file, pieces) = (Arc::new(loaded.file), loaded.pieces);
                let part = |role, path: &str, start, size| {
                    let name = format!("{}:{}", name, printable(path));
                    ImageFile::part(role, name, file.clone(), start, size)
                };
                let initrds = entry.initrds.join(",");
                let files = Files {
                    kernel: part(Role::Kernel, &entry.kernel, 0, pieces.kernel)?,
                    initrd: match pieces.initrd {
                        0 => None,
                        size => Some(part(Role::Initrd, &initrds, pieces.initrd_start, size)?),
                    },
                    cmdline,
                    unpack: true,
                };
                Ok(start(&files)?)
            }
        }
    }
}

/// The command line with what is added to it.
fn cmdline(own: &str, boot: &DiskBoot) -> String {
    let mut line = own.trim().to_owned();
    let mut add = |words: &str| {
        if !words.is_empty() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(words);
        }
    };
    let all = [own, &boot.append].map(|l| l.split_whitespace().any(|w| w.starts_with("console=")));
    if let Some(console) = boot.console.as_deref().filter(|_| !all.contains(&true)) {
        add(console);
    }
    add(&boot.append);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_added_where_none_is_named() {
        let mut boot = DiskBoot {
            console: Some("console=ttyS0".into()),
            ..DiskBoot::default()
        };
        assert_eq!(cmdline(" root=a ", &boot), "root=a console=ttyS0");
        assert_eq!(cmdline("console=tty0 x", &boot), "console=tty0 x");
        boot.append = "quiet".into();
        assert_eq!(cmdline("", &boot), "console=ttyS0 quiet");
        boot.append = "console=hvc0".into();
        assert_eq!(cmdline("a", &boot), "a console=hvc0");
        boot.console = None;
        assert_eq!(cmdline("a", &boot), "a console=hvc0");
    }
}
