//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::agent;
use crate::boot_entries;
use crate::completion;
use crate::daemon;
use crate::disk_images;
use crate::doctor;
use crate::exit_code;
use crate::form;
use crate::image_library;
use crate::machine_process;
use crate::named;
use crate::plane;
use crate::restore;
use crate::run;
use crate::snapshot;
use crate::state_store;

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
    /// Runs one machine, its console on this terminal
    ///
    /// If a daemon answers (`holm daemon`; HOLM_STATE or --state say which) and IMAGE is the name of
    /// an image, the daemon makes the machine and keeps it until `holm rm`, whatever becomes of this
    /// command: the stages of its boot are shown with their times, then its console, which Ctrl-]
    /// leaves. Where there is no terminal, what it prints is shown until it ends.
    ///
    /// Else it is a machine of its own, in this process: without a daemon, with --standalone, with
    /// --kernel, or of a path (with a '/', or a file that exists). Its disk starts without firmware:
    /// Holm reads its partition table and the configuration of GRUB, systemd-boot or EXTLINUX on it,
    /// and starts the kernel of the default entry, or of --entry. The guest writes to the disk; Holm
    /// itself does not. Where the entry's command line names no console=, console=ttyS0 is added.
    ///
    /// Which options are for which is said by their headings; those under "Options" are for both.
    ///
    /// Examples:
    ///   holm run debian --type t3.small --key mine
    ///   holm run debian --rm --ttl 2h
    ///   holm run debian --detach --name web1
    ///   holm run debian --standalone --cpus 2 --memory 1G
    ///   holm run disk.img --entry 1
    ///   holm run --kernel vmlinuz --initrd initrd --cmdline "console=ttyS0"
    #[command(verbatim_doc_comment, after_help = exit_code::HELP)]
    Run(Box<run::arguments::Run>),
    /// Lists what a disk offers to start, as `holm run DISK` would find it
    ///
    /// Examples:
    ///   holm boot-entries disk.img
    ///   holm boot-entries debian-disk -o json
    #[command(verbatim_doc_comment, after_help = exit_code::LIST_HELP)]
    BootEntries(boot_entries::Arguments),
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
    ///   holm exec web1 -- systemctl is-system-running
    ///   echo SELECT 1 | holm exec -i web1 -- psql
    #[command(verbatim_doc_comment, after_help = exit_code::AGENT_HELP)]
    Exec(agent::Exec),
    /// Copies a file into a machine or out of it, through qemu-guest-agent in the guest
    ///
    /// The file has its contents whole or not at all, and its mode.
    ///
    /// Examples:
    ///   holm cp site.tar web1:/var/tmp/site.tar
    ///   holm cp web1:/var/log/syslog syslog
    #[command(verbatim_doc_comment, after_help = exit_code::AGENT_HELP)]
    Cp(agent::Copy),
    /// Asks a running machine to do with less memory, or gives it back; says how its memory is
    ///
    /// Examples:
    ///   holm balloon web1 512M
    ///   holm balloon web1 -o json
    #[command(verbatim_doc_comment, after_help = exit_code::AGENT_HELP)]
    Balloon(agent::Balloon),
    /// Freezes the file systems of a machine: nothing is written until `holm fsthaw`
    ///
    /// Example: holm fsfreeze web1
    #[command(after_help = exit_code::AGENT_HELP)]
    Fsfreeze(agent::Target),
    /// Thaws the file systems of a machine
    ///
    /// Example: holm fsthaw web1
    #[command(after_help = exit_code::AGENT_HELP)]
    Fsthaw(agent::Target),
    /// Lists the running machines of this user that have names
    ///
    /// Example: holm ls -o json
    #[command(after_help = exit_code::CONTROL_HELP)]
    Ls(named::ls::List),
    /// Shows a running machine
    ///
    /// Example: holm show web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Show(named::show::Show),
    /// Shows what each running machine uses: CPU, memory, disks and network
    ///
    /// Examples:
    ///   holm top
    ///   holm top -o json
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Top(named::top::Top),
    /// Prints a machine's counters in Prometheus' form
    ///
    /// Example: holm metrics web1
    #[command(after_help = exit_code::CONTROL_HELP)]
    Metrics(named::show::Metrics),
    /// Shuts a machine down by its power button, and by force after a time
    ///
    /// Example: holm stop web1 --wait 2m
    #[command(after_help = exit_code::CONTROL_HELP)]
    Stop(named::stop::Stop),
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
    Attach(named::devices::Attach),
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
    Detach(named::devices::Detach),
    /// Plugs the cable of a machine's network card in, or pulls it out
    ///
    /// The guest sees whether there is a carrier, as when a switch fails. The cards that it was
    /// started with are net0, net1 and so on; attached ones have their own names.
    ///
    /// Example: holm link web1 net0 down
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Link(named::devices::Link),
    /// Makes a disk of a running machine larger; the guest sees it at once
    ///
    /// A file becomes larger and sparse; of a block device, which its owner has made larger
    /// before, the machine takes note. The guest's file system is its own to resize.
    ///
    /// Example: holm grow web1 data 20G
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Grow(named::devices::Grow),
    /// Makes, shows and checks snapshots of running machines
    ///
    /// Example: holm snapshot create web1 /srv/snapshots/web1-monday
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
    Create(Box<plane::create::Create>),
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
    Logs(named::logs::Logs),
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
    /// Lists works that take long, as snapshots and rollbacks, and how they ended
    ///
    /// Example: holm operations
    #[command(after_help = exit_code::PLANE_HELP)]
    Operations(form::Output),
    /// Says which volumes nobody uses, and which machines are out of date
    ///
    /// Example: holm report orphans
    #[command(subcommand)]
    Report(plane::reports::Report),
    /// Says which tags new machines and volumes must have
    ///
    /// Example: holm tag-policy require owner
    #[command(subcommand)]
    TagPolicy(plane::reports::Policy),
    /// Prints the shell lines that point the AWS tools here, or a configuration for ssh
    ///
    /// Examples:
    ///   eval "$(holm env)" && aws ec2 describe-instances
    ///   holm env --ssh-config > ~/.ssh/holm.config
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Env(plane::env::Env),
    /// Prints what a shell needs to complete commands, and the names of what exists
    ///
    /// The shell asks this program for each word: machines, images, volumes and others are those of
    /// the daemon that HOLM_STATE, or --state on the line, means.
    ///
    /// Examples:
    ///   source <(holm completion bash)
    ///   holm completion fish > ~/.config/fish/completions/holm.fish
    #[command(verbatim_doc_comment, after_help = exit_code::REPORT_HELP)]
    Completion(completion::Completion),
    /// Says what this host offers: to machines, with the CPU engine that `auto` takes, and to a daemon
    ///
    /// Example: holm doctor -o json
    #[command(after_help = exit_code::REPORT_HELP)]
    Doctor(doctor::Arguments),
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
    Daemon(daemon::Arguments),
    /// Backs up, restores and checks the store of a state directory
    ///
    /// Example: holm state backup /backup/holm-monday.db
    #[command(subcommand)]
    State(state_store::Command),
    /// Runs the machine of a directory of `holm daemon`; started by the daemon
    #[command(hide = true)]
    Machine(machine_process::Arguments),
    /// Serves the host's own port in a network of `holm daemon`; started by the daemon
    #[command(hide = true)]
    HostPort(machine_process::Arguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// Every command with the words that lead to it.
    fn all(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
        for one in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            let words = format!("{words} {}", one.get_name());
            all(one, &words, found);
            found.push((words, one.clone()));
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        all(&Arguments::command(), "holm", &mut found);
        found
    }

    /// Goes over all commands, and asserts that none has a fault.
    fn none(fault: impl Fn(&str, &clap::Command) -> Vec<String>) {
        let commands = commands();
        assert!(commands.len() > 80, "{}", commands.len());
        let found = commands.iter().flat_map(|(words, command)| {
            let faults = fault(words, command).into_iter();
            faults.map(move |fault| format!("{words}: {fault}"))
        });
        let found: Vec<String> = found.collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    /// What `--help` says before the options.
    fn long(command: &clap::Command) -> String {
        let long = command.get_long_about().or_else(|| command.get_about());
        long.map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn every_command_says_what_it_does_and_has_an_example() {
        none(|words, command| {
            let about = command.get_about().map(ToString::to_string);
            let about = about.unwrap_or_default();
            let long = long(command);
            let examples = long.split_once("Example").unwrap_or_default().1;
            let mut faults = Vec::new();
            if about.len() < 10 || about.ends_with('.') {
                faults.push(format!("what it does: {about:?}"));
            }
            if !examples.contains(words) {
                faults.push(format!("no example of itself in: {long}"));
            }
            faults
        });
    }

    #[test]
    fn every_command_tells_its_exit_statuses() {
        none(|_, command| {
            let after = command.get_after_help().map(ToString::to_string);
            let tells = after.is_some_and(|text| text.contains("Exit status:\n  0 "));
            match tells || command.has_subcommands() {
                true => Vec::new(),
                false => vec!["no exit statuses".into()],
            }
        });
    }

    #[test]
    fn every_argument_has_help() {
        none(|_, command| {
            let arguments = command.get_arguments();
            let without = arguments.filter(|argument| argument.get_help().is_none());
            without
                .map(|argument| argument.get_id().to_string())
                .collect()
        });
    }

    #[test]
    fn examples_are_what_is_understood() {
        none(|_, command| {
            let long = long(command);
            let lines = long
                .lines()
                .map(|line| line.trim().trim_start_matches("Example: "));
            let examples = lines.filter(|line| line.starts_with("holm "));
            examples
                .filter_map(|line| Some((line, Arguments::try_parse_from(split(line)).err()?)))
                .map(|(line, error)| format!("{line}: {error}"))
                .collect()
        });
    }

    /// The words of a line, as a shell has them.
    fn split(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                '>' | '|' | '&' if !quoted => break,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }
}
