//! Commands on running machines that have names: `ls`, `show`, `pause`,
//! `resume`, `stop`, `reset`, `kill`, `nmi`, `metrics`, `events`, `console`.

pub mod client;
pub mod console;
pub mod disks;
pub mod events;
pub mod place;

use std::time::{Duration, Instant};

use clap::Args;
use machine_protocol::{Description, DiskReport, Request, RunState};

use crate::cli::Output;
use crate::console::terminal;
use crate::exit_code;
use crate::plane::{self, form};
use client::{Client, ControlError};

/// Time between looks whether a machine has ended.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a killed machine may take to go.
const END: Duration = Duration::from_secs(30);

/// `holm ls`.
#[derive(Args, Debug)]
pub struct List {
    /// Form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// A machine by its name.
#[derive(Args, Debug)]
pub struct Named {
    /// The machine's name (`holm run --name`)
    #[arg(value_name = "NAME", value_parser = place::name)]
    pub name: String,
}

/// `holm show`, `holm metrics`.
#[derive(Args, Debug)]
pub struct Show {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// Form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `holm stop`.
#[derive(Args, Debug)]
pub struct Stop {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// How long the guest may take to shut down before its power is cut (--wait 5m)
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = crate::cli::duration)]
    pub wait: Duration,

    /// Cuts the power at once
    #[arg(long)]
    pub force: bool,
}

/// Lists the running machines, and those that a daemon keeps.
pub fn list(arguments: &List) -> u8 {
    let names = match place::names() {
        Ok(names) => names,
        Err(e) => {
            terminal::say(&format!("holm: listing the machines: {e}"));
            return exit_code::INTERNAL;
        }
    };
    let kept = plane::instances::all().unwrap_or_default();
    // Who does not answer has been killed, or is just ending.
    let machines: Vec<(String, Description)> = names
        .into_iter()
        .filter_map(|name| {
            let description = Client::connect(&name).and_then(|mut c| c.describe()).ok()?;
            Some((name, description))
        })
        .collect();
    match arguments.output {
        Output::Json => {
            let alone = machines.iter().map(|(name, d)| with_name(name, d));
            let kept = kept.iter().filter_map(|i| serde_json::to_value(i).ok());
            print_json(&alone.chain(kept).collect::<Vec<_>>());
        }
        Output::Text => {
            if !kept.is_empty() {
                form::out(&plane::instances::list_text(&kept));
                if machines.is_empty() {
                    return exit_code::SUCCESS;
                }
                println!("\nNot kept by the daemon:");
            }
            println!(
                "{:<20} {:<8} {:<6} {:>4} {:>10} {:>8} {:>7}",
                "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "UPTIME", "PID"
            );
            for (name, d) in &machines {
                let memory = format!("{} MiB", d.memory >> 20);
                let uptime = format!("{} s", d.uptime_seconds);
                println!(
                    "{name:<20} {:<8} {:<6} {:>4} {memory:>10} {uptime:>8} {:>7}",
                    state(d.state),
                    d.engine,
                    d.cpus,
                    d.pid
                );
            }
        }
    }
    exit_code::SUCCESS
}

/// Shows one machine.
pub fn show(arguments: &Show) -> u8 {
    let name = &arguments.machine.name;
    if !place::stands_alone(name)
        && let Some(kept) = plane::instances::known(name)
    {
        match arguments.output {
            Output::Json => print_json(&kept),
            Output::Text => form::out(&plane::instances::show_text(&kept)),
        }
        return exit_code::SUCCESS;
    }
    finish(
        Client::connect(name)
            .and_then(|mut c| c.describe())
            .map(|d| match arguments.output {
                Output::Json => print_json(&with_name(name, &d)),
                Output::Text => {
                    println!("name:    {name}");
                    println!("state:   {}", state(d.state));
                    println!("engine:  {}", d.engine);
                    println!("cpus:    {}", d.cpus);
                    println!("memory:  {} MiB", d.memory >> 20);
                    println!("uptime:  {} s", d.uptime_seconds);
                    println!("uuid:    {}", d.uuid);
                    println!("generation: {}", d.generation_id);
                    println!("pid:     {}", d.pid);
                    d.disks.iter().for_each(show_disk);
                    d.nics.iter().for_each(|nic| println!("nic:     {nic}"));
                    for nic in &d.attached_nics {
                        println!("nic:     {} ({}, {})", nic.network, nic.name, nic.mac);
                    }
                }
            }),
    )
}

fn show_disk(disk: &DiskReport) {
    let read_only = if disk.read_only { ", read-only" } else { "" };
    println!(
        "disk:    {} ({}, {} MiB{read_only})",
        disk.name,
        disk.file,
        disk.size >> 20
    );
    if let Some(failure) = &disk.failure {
        println!("         failed: {failure}");
    }
}

/// Prints a machine's counters.
pub fn metrics(arguments: &Show) -> u8 {
    let asked = Client::connect(&arguments.machine.name).and_then(|mut c| c.metrics());
    finish(asked.map(|metrics| match arguments.output {
        Output::Json => print_json(&metrics),
        Output::Text => print!("{}", metrics.to_prometheus()),
    }))
}

/// Asks for something that has no answer but that it is done.
pub fn ask(machine: &Named, request: &Request) -> u8 {
    finish(
        Client::connect(&machine.name)
            .and_then(|mut c| c.ask(request))
            .map(drop),
    )
}

/// Shuts a machine down: by its power button, and by force if that is in vain.
pub fn stop(arguments: &Stop) -> u8 {
    let name = &arguments.machine.name;
    if !place::stands_alone(name)
        && let Some(kept) = plane::instances::known(name)
    {
        let stopped = plane::instances::stop(&kept, arguments.force, arguments.wait);
        return plane::finish(stopped.map(|text| terminal::say(&text)));
    }
    finish(try_stop(arguments).map(|text| terminal::say(&text)))
}

fn try_stop(arguments: &Stop) -> Result<String, ControlError> {
    let name = &arguments.machine.name;
    let start = Instant::now();
    let mut client = Client::connect(name)?;
    if !arguments.force {
        // A paused guest could not hear the button.
        client.ask(&Request::Resume {})?;
        client.ask(&Request::PowerButton {})?;
        if ended(name, arguments.wait) {
            return Ok(format!(
                "{name} shut down in {:.1} s",
                start.elapsed().as_secs_f64()
            ));
        }
    }
    client.ask(&Request::Kill {})?;
    let waited = start.elapsed().as_secs_f64();
    match ended(name, END) {
        true if arguments.force => Ok(format!("{name}: power cut")),
        true => Ok(format!(
            "{name} did not shut down in {waited:.1} s; power cut"
        )),
        false => Err(ControlError::Refused {
            name: name.clone(),
            message: "its process does not end; `holm show` gives its number".into(),
        }),
    }
}

fn ended(name: &str, within: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < within {
        match Client::connect(name).and_then(|mut c| c.describe()) {
            Ok(_) => std::thread::sleep(AGAIN),
            Err(_) => return true,
        }
    }
    false
}

/// Says what failed; the exit status.
pub fn finish(result: Result<(), ControlError>) -> u8 {
    match result {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => {
            terminal::say(&format!("holm: {error}"));
            exit_code::CONTROL
        }
    }
}

fn state(state: RunState) -> &'static str {
    match state {
        RunState::Created => "created",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Ended => "ended",
    }
}

fn with_name(name: &str, d: &Description) -> serde_json::Value {
    let mut value = serde_json::to_value(d).unwrap_or_default();
    value["name"] = name.into();
    value
}

/// Prints an answer for programs.
pub fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => println!("{text}"),
        Err(e) => terminal::say(&format!("holm: {e}")),
    }
}
