//! The command line of `holm run`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use disk::Format;

use crate::background;
use crate::completion;
use crate::disk_option;
use crate::form::Form;
use crate::named::place;
use crate::network;
use crate::peripherals;
use crate::plane::create::{KEPT, Launch};
use crate::values::{duration, size};

/// Least memory of a machine, in bytes.
pub const LEAST_MEMORY: u64 = 2 << 20;
/// Most memory of a machine, in bytes.
pub const MOST_MEMORY: u64 = arch::layout::MAX_RAM;

/// Heading of what only a machine of its own can have.
pub const OWN: &str = "A machine of its own (no daemon, a path, or --standalone)";

/// `holm run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Name of an image (debian, web@2; `holm image ls`, or made by `cargo xtask image`); or a path:
    /// a whole-disk image or block device, or a directory with an image.json (disk.img, ./my-image)
    #[arg(value_name = "IMAGE|DISK", required_unless_present = "kernel", add = completion::images())]
    pub image: Option<String>,

    /// Gives the machine a name (--name web1), by which `holm ls`, `show`, `stop`, `exec` and others
    /// find it; a daemon makes one up
    #[arg(long, value_name = "NAME", value_parser = place::name)]
    pub name: Option<String>,

    /// Whether it runs in the background
    #[command(flatten)]
    pub background: background::Options,

    /// Nothing is left of it when it ends: when it powers itself off, or this command is interrupted
    #[arg(long)]
    pub rm: bool,

    /// It ends and goes by itself after this time (--ttl 2h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,

    /// Runs a machine of its own in this process, whether a daemon answers or not
    #[arg(long)]
    pub standalone: bool,

    /// Of one that a daemon keeps
    #[command(flatten)]
    pub launch: Launch,

    /// How long the guest may take until it is as --wait says (--boot-timeout 2m)
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration,
          help_heading = KEPT)]
    pub boot_timeout: Duration,

    /// Form of the answer, with --detach (-o json)
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORM",
          default_value_t = Form::Text, help_heading = KEPT)]
    pub output: Form,

    /// Of one of its own
    #[command(flatten)]
    pub own: Own,
}

/// What a machine of its own is made of.
#[derive(Args, Debug)]
#[command(next_help_heading = OWN)]
pub struct Own {
    /// Number of virtual CPUs (--cpus 4)
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(arch::layout::MAX_VCPUS)))]
    pub cpus: u32,

    /// Memory; K, M, G and T are powers of 1024 (--memory 512M)
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
    pub memory: u64,

    /// Kernel instead of the image's: bzImage, ELF with a PVH note, or multiboot (--kernel vmlinuz)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk instead of the image's (--initrd initrd.img)
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Boot entry of the disk instead of its default: its number, id or title (--entry 1);
    /// `holm boot-entries` lists them
    #[arg(long, value_name = "ID|N", conflicts_with = "kernel")]
    pub entry: Option<String>,

    /// Kernel command line instead of the image's or the boot entry's
    /// (--cmdline "console=ttyS0 root=/dev/vda")
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Words added to the kernel command line (--append "quiet")
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Disk after the image's own, may be repeated (--disk data.img,serial=D1 --disk cd.img,readonly);
    /// with ,name=N ,block-size=4096 ,iops=N ,bps=N ,on-error=report and more, see docs/disks.md
    #[arg(long = "disk", value_name = "FILE[,OPTION[=VALUE]…]", value_parser = disk_option::parse)]
    pub disks: Vec<machine::Disk>,

    /// Format of DISK (--format qcow2); needed for an image from elsewhere that builds on other files
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse, requires = "image")]
    pub format: Option<Format>,

    /// Discards at the end what the guest writes to DISK and to the disks of --disk
    #[arg(long)]
    pub ephemeral: bool,

    /// Network card, up to four (--net user, --net switch=lab,mtu=9000, --net bridge=br0, --net tap=t0,
    /// --net none); with ,rate=100mbit ,pcap=FILE and more, see docs/network.md; user is the default
    #[arg(long = "net", value_name = "KIND[=NAME][,OPTION=VALUE…]", value_parser = network::spec)]
    pub nets: Vec<network::Spec>,

    /// Port of the host, on 127.0.0.1 unless ADDR is given, that leads to a port of the guest on
    /// its first user network (--publish 2222:22, --publish 0.0.0.0:53:53/udp)
    #[arg(long, value_name = "[ADDR:]HOST:GUEST[/udp]", value_parser = network::publication)]
    pub publish: Vec<net::user::Publication>,

    /// Keeps the image's disks in this directory: copied there first, used from there later
    /// (--keep ~/my-debian); without it the machine's changes to them are discarded
    #[arg(long, value_name = "DIRECTORY", requires = "image")]
    pub keep: Option<PathBuf>,

    /// CPU engine (--engine soft); `holm doctor` tells what auto takes
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,

    /// CPU model: the host's, or one that many hosts have (--cpu v2)
    #[arg(long, value_enum, default_value_t = CpuModel::Host)]
    pub cpu: CpuModel,

    /// Where the serial console goes (--serial file=console.log)
    #[arg(long, value_name = "stdio|null|file=PATH", default_value = "stdio", value_parser = serial)]
    pub serial: Serial,

    /// Ends the machine after this time: 90, 90s, 500ms, 5m, 1h (--timeout 5m)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,

    /// Lets the guest end the machine with a status, by a write to port 0xf4
    #[arg(long)]
    pub debug_exit: bool,

    /// Serves GDB there, on this host only unless an address is given; with wait the guest
    /// starts when GDB has come (--gdb 1234,wait)
    #[arg(long, value_name = "[ADDR:]PORT[,wait]", value_parser = gdb)]
    pub gdb: Option<Gdb>,

    /// What ties the guest to its host
    #[command(flatten)]
    pub peripherals: peripherals::Options,

    /// What a reset by the guest does (--on-reset reboot)
    #[arg(long, value_enum, default_value_t = OnReset::Exit)]
    pub on_reset: OnReset,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// KVM where it runs guests at hardware speed, else the software engine
    Auto,
    /// Hardware virtualization by KVM
    Kvm,
    /// Holm's own CPU in software: runs on any host
    Soft,
}

/// `--cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuModel {
    /// All that the engine can give on this host
    Host,
    /// x86-64-v2: SSE4.2 and POPCNT
    V2,
    /// x86-64-v3: AVX2, BMI1, BMI2 and FMA too
    V3,
}

/// `--on-reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReset {
    /// Ends with status 0
    Exit,
    /// Starts the machine again
    Reboot,
}

/// `--gdb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gdb {
    /// Where to listen.
    pub address: SocketAddr,
    /// The guest waits for the debugger.
    pub wait: bool,
}

/// `--serial`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// This process's standard input and output.
    Stdio,
    /// Nowhere; nothing is read.
    Null,
    /// Output to a file, created or emptied; nothing is read.
    File(PathBuf),
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if !(LEAST_MEMORY..=MOST_MEMORY).contains(&bytes) {
        return Err("a machine has between 2M and 255G of memory".into());
    }
    if bytes % (1 << 20) != 0 {
        return Err("memory is given in whole MiB".into());
    }
    Ok(bytes)
}

fn gdb(text: &str) -> Result<Gdb, String> {
    let (address, wait) = match text.split_once(',') {
        None => (text, false),
        Some((address, "wait")) => (address, true),
        Some((_, word)) => return Err(format!("unknown word {word:?}: only wait is known")),
    };
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let address = address
        .parse()
        .map(local)
        .or_else(|_| address.parse())
        .map_err(|_| "an address for GDB is PORT, ADDR:PORT or [ADDR]:PORT".to_owned())?;
    Ok(Gdb { address, wait })
}

/// Where a serial port leads: stdio, null or file=PATH.
///
/// # Errors
/// Says what there is.
pub fn serial(text: &str) -> Result<Serial, String> {
    match text {
        "stdio" => Ok(Serial::Stdio),
        "null" => Ok(Serial::Null),
        _ => match text.strip_prefix("file=") {
            Some(path) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err("the serial console goes to stdio, null or file=PATH".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_mebibytes_within_limits() {
        assert!(memory("0").is_err());
        assert!(memory("1").is_err());
        assert!(memory("17000K").is_err());
    }

    #[test]
    fn serials() {
        assert_eq!(serial("file=x=y"), Ok(Serial::File("x=y".into())));
        assert!(serial("file=").is_err());
        assert!(serial("tty").is_err());
    }
}
