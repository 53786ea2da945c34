//! The command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use disk::Format;

use crate::agent;
use crate::background;
use crate::disk_images;
use crate::disk_option;
use crate::exit_code;
use crate::image_library;
use crate::named;
use crate::network;
use crate::peripherals;
use crate::plane;
use crate::restore;
use crate::snapshot;
use crate::state_store;

/// Least memory of a machine, in bytes.
pub const LEAST_MEMORY: u64 = 2 << 20;
/// Most memory of a machine, in bytes.
pub const MOST_MEMORY: u64 = arch::layout::MAX_RAM;

/// Runs x86-64 virtual machines on any Linux host, with or without KVM
#[derive(Parser, Debug)]
#[command(name = "holm", version, max_term_width = 100)]
pub struct Arguments {
    /// State directory of the daemon that is meant (--state /srv/holm); $HOLM_STATE unless given, else
    /// /var/lib/holm for root and ~/.local/state/holm for others
    #[arg(long, value_name = "DIR", global = true, help_heading = "Daemon")]
    pub state: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// A subcommand.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs one machine in the foreground, its serial console on this terminal
    ///
    /// A disk starts without firmware: Holm reads its partition table and the configuration of
    /// GRUB, systemd-boot or EXTLINUX on it, and starts the kernel of the default entry, or of
    /// --entry. The guest writes to the disk; Holm itself does not. Where the entry's command
    /// line names no console=, console=ttyS0 is added: the serial port is the console here.
    ///
    /// Examples:
    ///   holm run debian --cpus 2 --memory 1G
    ///   holm run disk.img --entry 1
    ///   holm run --kernel vmlinuz --initrd initrd --cmdline "console=ttyS0"
    ///   holm run debian --name web1 --detach
    #[command(verbatim_doc_comment, after_help = exit_code::HELP)]
    Run(Box<Run>),
    /// Lists what a disk offers to start, as `holm run DISK` would find it
    ///
    /// Examples:
    ///   holm boot-entries disk.img
    ///   holm boot-entries debian-disk -o json
    #[command(verbatim_doc_comment, after_help = exit_code::LIST_HELP)]
    BootEntries(BootEntries),
    /// Makes, looks at and changes disk images
    ///
    /// Example: holm disk create --backing debian.img web1.qcow2
    #[command(subcommand)]
    Disk(disk_images::Command),
    /// Builds, imports, lists, checks, exports and removes images
    ///
    /// Example: holm image build debian
    #[command(subcommand)]
    Image(image_library::Command),
    /// Runs a program in a machine, through qemu-guest-agent in the guest
    ///
    /// Output comes while the program runs; the status is the program's, or 128 and the number
    /// of the signal that ended it.
    ///
    /// Examples:
    ///   holm exec web1.agent -- systemctl is-system-running
    ///   echo SELECT 1 | holm exec -i web1.agent -- psql
    #[command(verbatim_doc_comment, after_help = exit_code::AGENT_HELP)]
    Exec(agent::Exec),
    /// Copies a file into a machine or out of it, through qemu-guest-agent in the guest
    ///
    /// The file has its contents whole or not at all, and its mode.
    ///
    /// Examples:
    ///   holm cp site.tar web1.agent:/var/tmp/site.tar
    ///   holm cp web1.agent:/var/log/syslog syslog
    #[command(verbatim_doc_comment, after_help = exit_code::AGENT_HELP)]
    Cp(agent::Copy),
    /// Asks a running machine to do with less memory, or gives it back; says how its memory is
    ///
    /// Examples:
    ///   holm balloon web1.agent 512M
    ///   holm balloon web1.agent -o json
    #[command(verbatim_doc_comment, after_help = exit_code::AGENT_HELP)]
    Balloon(agent::Balloon),
    /// Freezes the file systems of a machine: nothing is written until `holm fsthaw`
    ///
    /// Example: holm fsfreeze web1.agent
    #[command(after_help = exit_code::AGENT_HELP)]
    Fsfreeze(agent::Target),
    /// Thaws the file systems of a machine
    ///
    /// Example: holm fsthaw web1.agent
    #[command(after_help = exit_code::AGENT_HELP)]
    Fsthaw(agent::Target),
    /// Lists the running machines of this user that have names
    ///
    /// Example: holm ls -o json
    #[command(after_help = exit_code::CONTROL_HELP)]
    Ls(named::List),
    /// Shows a running machine
    ///
    /// Example: holm show web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Show(named::Show),
    /// Prints a machine's counters in Prometheus' form
    ///
    /// Example: holm metrics web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Metrics(named::Show),
    /// Shuts a machine down by its power button, and by force after a time
    ///
    /// Example: holm stop web1 --wait 2m
    #[command(after_help = exit_code::CONTROL_HELP)]
    Stop(named::Stop),
    /// Stops a machine's CPUs, devices and clock until `holm resume`
    ///
    /// Example: holm pause web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Pause(named::Named),
    /// Lets a paused machine go on
    ///
    /// Example: holm resume web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Resume(named::Named),
    /// Resets a machine, as its reset button would
    ///
    /// Example: holm reset web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Reset(named::Named),
    /// Cuts a machine's power
    ///
    /// Example: holm kill web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Kill(named::Named),
    /// Raises a non-maskable interrupt in a machine
    ///
    /// Example: holm nmi web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Nmi(named::Named),
    /// Prints what happened to a machine, or to all: starts, pauses, panics, disk errors, and more
    ///
    /// Examples:
    ///   holm events web1
    ///   holm events --follow -o json
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Events(named::events::Arguments),
    /// Attaches this terminal to the serial console of a running machine
    ///
    /// Any number may watch; one has the keyboard. Keys, on a terminal: Ctrl-] or Ctrl-A d
    /// leaves the console (the machine runs on), Ctrl-A t takes the keyboard, Ctrl-A Ctrl-A
    /// sends Ctrl-A.
    ///
    /// Examples:
    ///   holm console web1
    ///   holm console web1 --watch --replay 256K
    #[command(verbatim_doc_comment, after_help = exit_code::CONSOLE_HELP)]
    Console(named::console::Arguments),
    /// Attaches a disk or a network card to a running machine
    ///
    /// The guest's kernel finds it by PCI Express hot-plug, as Linux does on its own; there is
    /// place for eight. Says whether the guest has taken it.
    ///
    /// Examples:
    ///   holm attach web1 --disk data.img
    ///   holm attach web1 --disk /dev/vg/data,name=data,serial=DATA,iops=500
    ///   holm attach web1 --net switch=lab,name=lab
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Attach(named::disks::Attach),
    /// Detaches a disk or a network card that was attached to a running machine
    ///
    /// Asks the guest to give it up, as the button at a drive bay would: Linux does so after five
    /// seconds. Unmount it in the guest before.
    ///
    /// Examples:
    ///   holm detach web1 data
    ///   holm detach web1 data --force
    ///   holm detach web1 lab
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Detach(named::disks::Detach),
    /// Makes a disk of a running machine larger; the guest sees it at once
    ///
    /// A file becomes larger and sparse; of a block device, which its owner has made larger
    /// before, the machine takes note. The guest's file system is its own to resize.
    ///
    /// Example: holm grow web1 data 20G
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Grow(named::disks::Grow),
    /// Makes, shows and checks snapshots of running machines
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Runs a machine from where a snapshot was taken
    ///
    /// Any number of machines can run from one snapshot; it stays as it is. Memory is read when
    /// the guest uses it, and shared with the other machines until it is written.
    ///
    /// Examples:
    ///   holm restore /srv/snapshots/web1-monday --name web1
    ///   holm restore /srv/snapshots/web1-monday --clone --name web2 --publish 2223:22
    #[command(verbatim_doc_comment, after_help = exit_code::HELP)]
    Restore(Box<restore::Restore>),
    /// Makes machines that a daemon keeps, and tells how they come up
    ///
    /// They exist until `holm rm`, whatever becomes of this command and of the daemon.
    ///
    /// Examples:
    ///   holm create debian
    ///   holm create debian --name web1 --type t3.small --key mine --user-data setup.sh
    ///   holm create debian --count 3 --ttl 2h
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Create(Box<plane::instances::Create>),
    /// Starts machines of a daemon that are stopped
    ///
    /// Example: holm start web1
    #[command(after_help = exit_code::PLANE_HELP)]
    Start(plane::instances::Start),
    /// Restarts the guests of machines of a daemon
    ///
    /// Example: holm reboot web1
    #[command(after_help = exit_code::PLANE_HELP)]
    Reboot(plane::instances::Machines),
    /// Removes machines of a daemon for good, with the disks that go with them
    ///
    /// Example: holm rm web1
    #[command(after_help = exit_code::PLANE_HELP)]
    Rm(plane::instances::Remove),
    /// Prints what the console of a daemon's machine printed, or how far its boot came
    ///
    /// Examples:
    ///   holm logs web1
    ///   holm logs web1 --boot
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Logs(plane::instances::Logs),
    /// Logs in to a machine of a daemon, or runs a command there, by ssh
    ///
    /// Needs no port of this host and no rule of a security group. The status is that of ssh.
    ///
    /// Examples:
    ///   holm ssh web1
    ///   holm ssh -i mine.pem admin@web1 -- uptime
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Ssh(plane::ssh::Ssh),
    /// Makes, lists, attaches and removes volumes
    ///
    /// Example: holm volume create --name data --size 20G
    #[command(subcommand)]
    Volume(plane::volumes::Command),
    /// Makes, lists and removes networks and subnets
    ///
    /// Example: holm net ls
    #[command(subcommand)]
    Net(plane::networks::Net),
    /// Says what may come to machines and go from them: security groups
    ///
    /// Example: holm sg allow default 22
    #[command(subcommand)]
    Sg(plane::networks::Group),
    /// Makes, imports, lists and removes key pairs and access keys
    ///
    /// Example: holm key create mine
    #[command(subcommand)]
    Key(plane::keys::Command),
    /// Makes, lists and removes tokens for the REST interface's TCP port
    ///
    /// Example: holm token create dashboard
    #[command(subcommand)]
    Token(plane::keys::Tokens),
    /// Makes, lists and removes sizes of machines
    ///
    /// Example: holm type ls
    #[command(subcommand)]
    Type(plane::sizes::Types),
    /// Shows and changes how much there may be
    ///
    /// Example: holm quota ls
    #[command(subcommand)]
    Quota(plane::sizes::Quotas),
    /// Prints the shell lines that point the AWS tools here, or a configuration for ssh
    ///
    /// Examples:
    ///   eval "$(holm env)" && aws ec2 describe-instances
    ///   holm env --ssh-config > ~/.ssh/holm.config
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Env(plane::env::Env),
    /// Prints what a shell needs to complete commands
    ///
    /// Example: source <(holm completion bash)
    Completion(plane::completion::Completion),
    /// Says what this host offers and which CPU engine `auto` takes, and why
    ///
    /// Example: holm doctor -o json
    Doctor(Doctor),
    /// Keeps the machines of a state directory: makes, starts, stops and removes them as it is told
    /// by the EC2 interface and the REST interface
    ///
    /// Runs in the foreground until SIGTERM or SIGINT. Its machines go on without it, and it finds
    /// them again when it is started again.
    ///
    /// Examples:
    ///   holm daemon
    ///   holm daemon --state /srv/holm --ec2 127.0.0.1:4781
    #[command(verbatim_doc_comment, after_help = exit_code::DAEMON_HELP)]
    Daemon(Daemon),
    /// Backs up, restores and checks the store of a state directory
    #[command(subcommand)]
    State(state_store::Command),
    /// Runs the machine of a directory of `holm daemon`; started by the daemon
    #[command(hide = true)]
    Machine(Machine),
}

/// `holm daemon`.
#[derive(Args, Debug)]
pub struct Daemon {
    /// The state directory (--state /srv/holm); $HOLM_STATE unless given, else /var/lib/holm for root
    /// and ~/.local/state/holm for others
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// Where the EC2 interface listens; port 0 takes any that is free, and DIR/run/ec2 tells it
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4780")]
    pub ec2: SocketAddr,

    /// Where the REST interface listens by TCP, with tokens, besides its socket DIR/run/api.sock
    /// (--api 127.0.0.1:4781)
    #[arg(long, value_name = "ADDR:PORT")]
    pub api: Option<SocketAddr>,

    /// How long a guest has to shut down before its power is cut (--grace 30s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub grace: Option<Duration>,
}

/// `holm machine`.
#[derive(Args, Debug)]
pub struct Machine {
    /// The directory, with its machine.json
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `holm run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Image of the library (`holm image ls`) or made by `cargo xtask image`, or a directory with an
    /// image.json (debian, web@2, ./my-image), or a whole-disk image or block device (disk.img)
    #[arg(value_name = "IMAGE|DISK", required_unless_present = "kernel")]
    pub image: Option<String>,

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

    /// Gives the machine a name, by which `holm ls`, `show`, `pause`, `stop`, `exec` and others
    /// find it (--name web1)
    #[arg(long, value_name = "NAME", value_parser = named::place::name)]
    pub name: Option<String>,

    /// Whether it runs in the background
    #[command(flatten)]
    pub background: background::Options,

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

/// `holm boot-entries`.
#[derive(Args, Debug)]
pub struct BootEntries {
    /// Whole-disk image or block device, or an image that starts from a disk
    #[arg(value_name = "DISK")]
    pub disk: String,

    /// Format of the disk (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `holm doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
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

/// A number of bytes: `4096`, `512K`, `256M`, `256MiB`, `2G`.
///
/// # Errors
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: use K, M, G or T, as in 512M"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a size is a whole number with a unit, as in 512M".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "this size is beyond 64 bits".to_owned())
}

/// A time: `90`, `90s`, `500ms`, `5m`, `1h`.
///
/// # Errors
/// Says what a duration looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let bad = || "a duration is a whole number with ms, s, m or h, as in 90s".to_owned();
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    match number.checked_mul(milliseconds) {
        Some(0) => Err("a duration of zero would end the machine before it starts".into()),
        // Beyond a century, sums with the clock could overflow.
        Some(total) if total < 3_600_000 * 24 * 36_500 => Ok(Duration::from_millis(total)),
        _ => Err("this duration is too long".into()),
    }
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
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_option_of_run_has_help() {
        let command = Arguments::command();
        let run = command.find_subcommand("run").unwrap();
        for argument in run.get_arguments() {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert!(size("").is_err());
        assert!(size("M").is_err());
        assert!(size("-1M").is_err());
        assert!(size("1X").is_err());
        assert!(size("99999999T").is_err());
        assert!(memory("0").is_err());
        assert!(memory("1").is_err());
        assert!(memory("17000K").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "0",
            "-1",
            "1.5s",
            "1d",
            "s",
            "99999999999999999999",
            "9999999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn serials() {
        assert_eq!(serial("file=x=y"), Ok(Serial::File("x=y".into())));
        assert!(serial("file=").is_err());
        assert!(serial("tty").is_err());
    }
}
