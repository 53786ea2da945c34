//! What a machine is made of, as data.

use std::path::PathBuf;

use arch::cpuid::CpuModel;
use serde::{Deserialize, Serialize};
use virtio::blk::{Limit, Limits, OnError};

use crate::hotplug::PORTS;
use crate::nic::{MOST_NICS, Nic};
use crate::peripherals::Peripherals;

/// Version of [`Description`] that this program writes and reads.
pub const DESCRIPTION_VERSION: u32 = 1;

/// A machine. Version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`DESCRIPTION_VERSION`]; others are refused.
    pub version: u32,
    /// Number of vCPUs, 1 to [`arch::layout::MAX_VCPUS`].
    pub cpus: u32,
    /// Bytes of RAM, a multiple of 4096.
    pub memory: u64,
    /// Which CPU the guest sees.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// What is started.
    pub boot: Boot,
    /// Disks, in the order of their PCI slots.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// What ties the guest to its host.
    #[serde(default)]
    pub peripherals: Peripherals,
    /// Network cards, in the order of their PCI slots.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// What a reset by the guest does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Whether there is a debug-exit port at 0xf4.
    #[serde(default)]
    pub debug_exit: bool,
    /// System UUID, as its 16 bytes are written.
    #[serde(default)]
    pub uuid: [u8; 16],
    /// Serial number of the machine, in SMBIOS.
    #[serde(default)]
    pub serial: String,
    /// What SMBIOS says of the machine besides.
    #[serde(default, skip_serializing_if = "Smbios::is_usual")]
    pub smbios: Smbios,
}

/// What SMBIOS says of a machine; what is missing is Holm's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smbios {
    /// Manufacturer of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Name of the product; an instance type, on EC2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Asset tag of the board; an instance id, on EC2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset_tag: Option<String>,
}

impl Smbios {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What a machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BootForm", into = "BootForm")]
pub enum Boot {
    /// A kernel from files of the host.
    Kernel(KernelBoot),
    /// What the boot loader of a disk would start, without firmware.
    Disk(DiskBoot),
}

/// A direct kernel boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelBoot {
    /// bzImage, ELF kernel or Multiboot kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk, or the Multiboot module.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// The kernel unpacks itself even where the monitor could do it faster.
    pub self_unpack: bool,
}

/// A boot entry of a disk. It is read again at every start of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskBoot {
    /// Index of the disk in [`Description::disks`].
    #[serde(default)]
    pub disk: usize,
    /// Number, id or title of the entry; the disk's default if missing.
    #[serde(default)]
    pub entry: Option<String>,
    /// Command line instead of the entry's.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Words added to the command line.
    #[serde(default)]
    pub append: String,
    /// Added if the command line names no `console=`: the only console that
    /// this machine has.
    #[serde(default)]
    pub console: Option<String>,
}

/// [`Boot`] as JSON: a kernel's fields, or the field `disk`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootForm {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initrd: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    cmdline: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    self_unpack: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<DiskBoot>,
}

impl TryFrom<BootForm> for Boot {
    type Error = &'static str;

    fn try_from(form: BootForm) -> Result<Self, Self::Error> {
        let own_fields = form.initrd.is_some() || !form.cmdline.is_empty() || form.self_unpack;
        match (form.kernel, form.disk) {
            (Some(kernel), None) => Ok(Self::Kernel(KernelBoot {
                kernel,
                initrd: form.initrd,
                cmdline: form.cmdline,
                self_unpack: form.self_unpack,
            })),
            (None, Some(disk)) if !own_fields => Ok(Self::Disk(disk)),
            (None, None) => Err("`boot` names neither a `kernel` nor a `disk`"),
            _ => Err("`boot` names a `disk`, and with it fields of a kernel"),
        }
    }
}

impl From<Boot> for BootForm {
    fn from(boot: Boot) -> Self {
        match boot {
            Boot::Kernel(boot) => Self {
                kernel: Some(boot.kernel),
                initrd: boot.initrd,
                cmdline: boot.cmdline,
                self_unpack: boot.self_unpack,
                disk: None,
            },
            Boot::Disk(disk) => Self {
                disk: Some(disk),
                ..Self::default()
            },
        }
    }
}

impl Boot {
    /// The kernel boot, to change it; `None` if it is another kind.
    pub fn as_kernel_mut(&mut self) -> Option<&mut KernelBoot> {
        match self {
            Self::Kernel(boot) => Some(boot),
            Self::Disk(_) => None,
        }
    }
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Image or block device.
    pub file: PathBuf,
    /// Its format; found out safely if missing (see `disk::DiskOptions`).
    #[serde(default)]
    pub format: Option<disk::Format>,
    /// What is written is lost with the machine, and need not survive the host.
    #[serde(default)]
    pub scratch: bool,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Serial number, at most 20 ASCII bytes.
    #[serde(default)]
    pub serial: Option<String>,
    /// By which it is addressed; `disk` and its index if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Slot of the root port, 24 to 31, behind which it is because it was
    /// attached while the machine ran; it then needs a name. Missing: it is on
    /// bus 0 for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u8>,
    /// Logical block size in bytes, 512 or 4096; 512 if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// How much may go through.
    #[serde(default)]
    pub limits: Limits,
    /// What is done when the host cannot do a request.
    #[serde(default)]
    pub on_error: OnError,
}

impl Disk {
    /// A disk in this file that the guest may write, without limits.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            format: None,
            scratch: false,
            read_only: false,
            serial: None,
            name: None,
            port: None,
            block_size: None,
            limits: Limits::default(),
            on_error: OnError::default(),
        }
    }
}

/// Whether a device can have this name.
fn is_name(name: &str) -> bool {
    let easy = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=32).contains(&name.len()) && name.chars().all(easy)
}

impl Nic {
    /// Refuses what cannot be a network card on any host.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn check(&self) -> Result<(), DescriptionError> {
        match self.name.as_deref().filter(|name| !is_name(name)) {
            Some(name) => Err(DescriptionError::NicName(name.into())),
            None => Ok(()),
        }
    }
}

impl Disk {
    /// Refuses what cannot be a disk on any host.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn check(&self) -> Result<(), DescriptionError> {
        if let Some(serial) = self.serial.as_deref()
            && (!(1..=20).contains(&serial.len())
                || serial.bytes().any(|b| !(32..127).contains(&b)))
        {
            return Err(DescriptionError::DiskSerial(serial.into()));
        }
        if let Some(name) = self.name.as_deref().filter(|name| !is_name(name)) {
            return Err(DescriptionError::DiskName(name.into()));
        }
        if let Some(size) = self.block_size.filter(|size| !matches!(size, 512 | 4096)) {
            return Err(DescriptionError::BlockSize(size));
        }
        let empty = |limit: &Limit| limit.per_second == 0 || limit.burst == 0;
        let limits = [self.limits.operations, self.limits.bytes];
        match limits.iter().flatten().any(empty) {
            true => Err(DescriptionError::DiskLimit),
            false => Ok(()),
        }
    }
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReset {
    /// Ends the machine.
    #[default]
    Exit,
    /// Starts it again.
    Reboot,
}

/// What is wrong with a description.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// Another version.
    #[error(
        "the machine description has version {0}, but this holm reads version {DESCRIPTION_VERSION}; use the holm that wrote it, or a newer one"
    )]
    Version(u32),
    /// Not JSON, or fields that do not exist.
    #[error("the machine description cannot be read: {0}")]
    Format(#[from] serde_json::Error),
    /// Too many or no vCPUs.
    #[error("a machine has between 1 and {most} CPUs, not {0}", most = arch::layout::MAX_VCPUS)]
    Cpus(u32),
    /// A memory size that cannot be.
    #[error("a machine's memory is a multiple of 4 KiB between 2 MiB and 255 GiB, not {0} bytes")]
    Memory(u64),
    /// More disks than PCI slots.
    #[error("a machine has at most {MOST_DISKS} disks, not {0}")]
    Disks(usize),
    /// More network cards than PCI slots.
    #[error("a machine has at most {MOST_NICS} network cards, not {0}")]
    Nics(usize),
    /// A boot from a disk that is not there.
    #[error("the machine starts from its disk {0}, and it has no such disk; disks count from 0")]
    BootDisk(usize),
    /// A disk serial number that virtio cannot say.
    #[error("the serial number {0:?} of a disk is not 1 to 20 printable ASCII characters")]
    DiskSerial(String),
    /// A disk's name that is hard to type.
    #[error("the name {0:?} of a disk is not 1 to 32 letters, digits, `-`, `_` and `.`")]
    DiskName(String),
    /// A network card's name that is hard to type.
    #[error("the name {0:?} of a network card is not 1 to 32 letters, digits, `-`, `_` and `.`")]
    NicName(String),
    /// Two disks of one name.
    #[error("two disks have the name {0:?}; give one of them another with name=")]
    DiskNames(String),
    /// A logical block size other than 512 or 4096.
    #[error("a disk's blocks have 512 or 4096 bytes, not {0}")]
    BlockSize(u32),
    /// Devices behind ports that do not exist, or two behind one.
    #[error("devices are behind the ports {0:?}; there are the ports 24 to 31, for one each")]
    Ports(Vec<u8>),
    /// A rate of nothing.
    #[error("a disk's limit of 0 would let nothing through; leave it out for no limit")]
    DiskLimit,
}

/// Most disks: the PCI slots 12 to 23.
pub const MOST_DISKS: usize = 12;

impl Description {
    /// A machine with this kernel and nothing else.
    pub fn new(cpus: u32, memory: u64, kernel: impl Into<PathBuf>) -> Self {
        Self {
            version: DESCRIPTION_VERSION,
            cpus,
            memory,
            cpu_model: CpuModel::default(),
            boot: Boot::Kernel(KernelBoot {
                kernel: kernel.into(),
                ..KernelBoot::default()
            }),
            disks: Vec::new(),
            peripherals: Peripherals::default(),
            nics: Vec::new(),
            on_reset: OnReset::default(),
            debug_exit: false,
            uuid: [0; 16],
            serial: String::new(),
            smbios: Smbios::default(),
        }
    }

    /// Reads a description and checks it.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn from_json(text: &str) -> Result<Self, DescriptionError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.version != DESCRIPTION_VERSION {
            return Err(DescriptionError::Version(head.version));
        }
        let description: Self = serde_json::from_str(text)?;
        description.check()?;
        Ok(description)
    }

    /// Refuses what cannot be a machine on any host.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn check(&self) -> Result<(), DescriptionError> {
        if self.version != DESCRIPTION_VERSION {
            return Err(DescriptionError::Version(self.version));
        }
        if self.cpus == 0 || self.cpus > arch::layout::MAX_VCPUS {
            return Err(DescriptionError::Cpus(self.cpus));
        }
        if !self.memory.is_multiple_of(4096)
            || !(2 << 20..=arch::layout::MAX_RAM).contains(&self.memory)
        {
            return Err(DescriptionError::Memory(self.memory));
        }
        let fixed = self.disks.iter().filter(|disk| disk.port.is_none());
        let fixed = fixed.count();
        if fixed > MOST_DISKS {
            return Err(DescriptionError::Disks(fixed));
        }
        let disks = self.disks.iter().filter_map(|disk| disk.port);
        let nics = self.nics.iter().filter_map(|nic| nic.port);
        let mut ports: Vec<u8> = disks.chain(nics).collect();
        ports.sort_unstable();
        let twice = ports.windows(2).any(|pair| pair[0] == pair[1]);
        if twice || !ports.iter().all(|port| PORTS.contains(port)) {
            return Err(DescriptionError::Ports(ports));
        }
        let fixed = self.nics.iter().filter(|nic| nic.port.is_none()).count();
        if fixed > MOST_NICS {
            return Err(DescriptionError::Nics(fixed));
        }
        if let Boot::Disk(boot) = &self.boot
            && boot.disk >= self.disks.len()
        {
            return Err(DescriptionError::BootDisk(boot.disk));
        }
        self.disks.iter().try_for_each(Disk::check)?;
        self.nics.iter().try_for_each(Nic::check)?;
        let mut names = crate::storage::names(&self.disks);
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(DescriptionError::DiskNames(pair[0].clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_survives_json_and_refuses_what_it_does_not_know() {
        let d = Description::new(2, 64 << 20, "/boot/vmlinuz");
        let text = serde_json::to_string(&d).unwrap();
        assert_eq!(Description::from_json(&text).unwrap(), d);
        let newer = text.replacen("\"version\":1", "\"version\":2,\"new\":true", 1);
        let error = Description::from_json(&newer).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        let unknown = text.replacen("\"cpus\"", "\"colour\":1,\"cpus\"", 1);
        assert!(Description::from_json(&unknown).is_err());
        let short = r#"{"version":1,"cpus":1,"memory":4194304,"boot":{"kernel":"k"}}"#;
        assert_eq!(
            Description::from_json(short).unwrap().on_reset,
            OnReset::Exit
        );
        let both = r#"{"version":1,"cpus":1,"memory":4194304,"boot":{"kernel":"k","disk":{}}}"#;
        assert!(Description::from_json(both).is_err());
        let mut none = d.clone();
        none.cpus = 0;
        assert!(matches!(none.check(), Err(DescriptionError::Cpus(0))));
        none.cpus = 65;
        assert!(none.check().is_err());
    }

    #[test]
    fn a_disk_boot_survives_json_and_needs_its_disk() {
        let mut d = Description::new(1, 64 << 20, "");
        d.boot = Boot::Disk(DiskBoot {
            entry: Some("1".into()),
            ..DiskBoot::default()
        });
        assert!(matches!(d.check(), Err(DescriptionError::BootDisk(0))));
        d.disks.push(Disk::new("disk.img"));
        let text = serde_json::to_string(&d).unwrap();
        assert_eq!(Description::from_json(&text).unwrap(), d);
    }
}
