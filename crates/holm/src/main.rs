//! `holm`: the command line.
#![forbid(unsafe_code)]

mod agent;
mod boot_entries;
mod cli;
mod completion;
mod console;
mod daemon;
mod disk_images;
mod doctor;
mod exit_code;
mod failure;
mod form;
mod host_port_process;
mod image_library;
mod machine_process;
mod named;
mod nearest;
mod plane;
mod restore;
mod run;
mod snapshot;
mod socket;
mod state_directory;
mod state_store;
mod values;

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::{CommandFactory, FromArgMatches};
use machine_protocol::Request;
use tracing_subscriber::EnvFilter;

use crate::cli::{Arguments, Command};

fn main() -> ! {
    let mut words = std::env::args_os().skip(1);
    if words
        .next()
        .is_some_and(|w| w == bootdisk::isolated::ARGUMENT)
    {
        std::process::exit(i32::from(bootdisk::isolated::serve()));
    }
    completion::answer();
    let mut command = Arguments::command();
    let matches = command.get_matches_mut();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let given = run::given(&command, &matches);
    if let Some(state) = &arguments.state {
        state_directory::name(state);
    }
    console::terminal::restore_on_panic();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("HOLM_LOG").unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // A panic's own status, 101, could be mistaken for a guest's.
    let code = catch_unwind(AssertUnwindSafe(|| lead(&arguments.command, &given)))
        .unwrap_or(exit_code::INTERNAL);
    console::terminal::restore();
    // Threads of the machine may still run: the process ends them.
    std::process::exit(i32::from(code));
}

/// Leads each command to its module; the exit status.
fn lead(command: &Command, given: &[run::Given]) -> u8 {
    match command {
        Command::Run(arguments) => run::run(arguments, given),
        Command::BootEntries(entries) => boot_entries::run(entries),
        Command::Disk(command) => disk_images::run(command),
        Command::Image(command) => image_library::run(command),
        Command::Exec(arguments) => agent::exec(arguments),
        Command::Cp(arguments) => agent::copy(arguments),
        Command::Balloon(arguments) => agent::balloon(arguments),
        Command::Fsfreeze(target) => agent::freeze(target, true),
        Command::Fsthaw(target) => agent::freeze(target, false),
        Command::Ls(arguments) => named::ls::run(arguments),
        Command::Show(arguments) => named::show::run(arguments),
        Command::Metrics(arguments) => named::show::metrics(arguments),
        Command::Top(arguments) => named::top::run(arguments),
        Command::Stop(arguments) => named::stop::run(arguments),
        Command::Pause(machine) => named::ask(machine, &Request::Pause {}),
        Command::Resume(machine) => named::resume(machine),
        Command::Reset(machine) => named::ask(machine, &Request::Reset {}),
        Command::Kill(machine) => named::stop::kill(machine),
        Command::Nmi(machine) => named::ask(machine, &Request::Nmi {}),
        Command::Events(arguments) => named::events::run(arguments),
        Command::Console(arguments) => named::console::run(arguments),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Restore(arguments) => restore::run(arguments),
        Command::Attach(arguments) => named::devices::attach(arguments),
        Command::Detach(arguments) => named::devices::detach(arguments),
        Command::Link(arguments) => named::devices::link(arguments),
        Command::Grow(arguments) => named::devices::grow(arguments),
        Command::Create(arguments) => plane::create::create(arguments),
        Command::Start(arguments) => plane::instances::start(arguments),
        Command::Reboot(machines) => plane::instances::reboot(machines),
        Command::Rm(arguments) => plane::instances::remove(arguments),
        Command::Logs(arguments) => named::logs::run(arguments),
        Command::Ssh(arguments) => plane::ssh::run(arguments),
        Command::Volume(command) => plane::volumes::run(command),
        Command::Net(command) => plane::networks::net(command),
        Command::Sg(command) => plane::networks::group(command),
        Command::Key(command) => plane::keys::run(command),
        Command::Token(command) => plane::keys::tokens(command),
        Command::Type(command) => plane::sizes::types(command),
        Command::Operations(output) => plane::reports::operations(*output),
        Command::Report(command) => plane::reports::report(command),
        Command::TagPolicy(command) => plane::reports::policy(command),
        Command::Quota(command) => plane::sizes::quotas(command),
        Command::Env(arguments) => plane::env::run(arguments),
        Command::Completion(arguments) => completion::run(arguments),
        Command::Doctor(doctor) => doctor::run(doctor),
        Command::Daemon(arguments) => daemon::run(arguments),
        Command::State(command) => state_store::run(command),
        Command::Machine(arguments) => machine_process::run(arguments),
        Command::HostPort(arguments) => host_port_process::run(arguments),
    }
}
