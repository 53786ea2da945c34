//! `holm ls`.

use std::collections::BTreeMap;

use api::resources::instances::InstanceView;
use clap::Args;
use machine_protocol::Description;
use serde_json::Value;

use super::client::Client;
use super::{place, state, with_name};
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output};
use crate::plane;
use crate::plane::client::PlaneError;

/// `holm ls`.
#[derive(Args, Debug)]
pub struct List {
    /// Goes on: shows what changes as it does. On a terminal the table is drawn anew; elsewhere, and
    /// with -o, each machine is printed again when it changes
    #[arg(short, long)]
    pub watch: bool,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Lists the running machines, and those that a daemon keeps.
pub fn run(arguments: &List) -> u8 {
    if arguments.watch {
        return plane::finish(watch(arguments.output));
    }
    let alone = match alone() {
        Ok(alone) => alone,
        Err(e) => {
            terminal::say(&format!("holm: listing the machines: {e}"));
            return exit_code::INTERNAL;
        }
    };
    let kept = plane::instances::all().unwrap_or_default();
    let values = alone.iter().map(|(name, d)| with_name(name, d));
    let values = values.chain(kept.iter().filter_map(|i| serde_json::to_value(i).ok()));
    let values: Vec<Value> = values.collect();
    form::print(arguments.output, &values, || text(&alone, &kept));
    exit_code::SUCCESS
}

/// The machines that run alone.
fn alone() -> std::io::Result<Vec<(String, Description)>> {
    // Who does not answer has been killed, or is just ending.
    let described = |name: String| {
        let description = Client::alone(&name).and_then(|mut c| c.describe()).ok()?;
        Some((name, description))
    };
    Ok(place::names()?.into_iter().filter_map(described).collect())
}

fn text(alone: &[(String, Description)], kept: &[InstanceView]) -> String {
    let names = ["NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "UPTIME", "PID"];
    let rows = alone.iter().map(|(name, d)| {
        [
            name.clone(),
            state(d.state).to_owned(),
            d.engine.clone(),
            d.cpus.to_string(),
            form::bytes(d.memory),
            form::time(d.uptime_seconds),
            d.pid.to_string(),
        ]
    });
    let alone_text = || form::table(names, rows);
    match (alone.is_empty(), kept.is_empty()) {
        (_, true) => alone_text(),
        (true, false) => plane::instances::list_text(kept),
        (false, false) => {
            let kept = plane::instances::list_text(kept);
            format!("{kept}\nNot kept by the daemon:\n{}", alone_text())
        }
    }
}

fn watch(output: Output) -> Result<(), PlaneError> {
    let drawn = output.is_text() && form::on_terminal();
    let mut kept: BTreeMap<String, InstanceView> = BTreeMap::new();
    let mut all_there = false;
    let never = plane::client::Client::new().watch::<()>("kind=instance", None, |news, event| {
        match news {
            "reset" => {
                kept.clear();
                all_there = false;
            }
            "synced" => all_there = true,
            _ => {}
        }
        if let Some(event) = event {
            let now = event.value.map(serde_json::from_value::<InstanceView>);
            match now
                .transpose()
                .map_err(|e| PlaneError::Strange(e.to_string()))?
            {
                Some(now) => {
                    if !drawn {
                        form::item(output, &now, || changed(&now));
                    }
                    kept.insert(event.id, now);
                }
                None => drop(kept.remove(&event.id)),
            }
        }
        if drawn && all_there {
            let kept: Vec<InstanceView> = kept.values().cloned().collect();
            form::draw(&text(&alone().unwrap_or_default(), &kept));
        }
        Ok(None)
    });
    never.map(drop)
}

/// A machine that has changed, in a line.
fn changed(now: &InstanceView) -> String {
    let at = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    let name = now.name.as_deref().unwrap_or_default();
    let reason = now.state_reason.as_ref();
    let reason = reason.map(|r| format!("  {r}")).unwrap_or_default();
    let stage = now.boot.stages.last().filter(|_| now.state == "running");
    let stage = match (&now.boot.ready, stage) {
        (Some(_), _) => "  ready".into(),
        (None, Some(stage)) => format!("  {}", stage.name),
        (None, None) => String::new(),
    };
    let line = format!("{at}  {}  {name}  {}{stage}{reason}", now.id, now.state);
    form::line(&line)
}
