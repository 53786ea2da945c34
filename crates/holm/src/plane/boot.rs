//! How far a machine's boot is, as it goes on.

use std::time::{Duration, Instant};

use api::resources::instances::{BootStageView, InstanceView};

use super::client::{Client, PlaneError};
use crate::console::terminal;

/// A silent daemon says this often that it is alive.
const SILENCE: Duration = Duration::from_secs(40);

/// Until what is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Until {
    /// Nothing
    Made,
    /// Its machine runs
    Running,
    /// Its guest is up: cloud-init has ended
    Ready,
}

/// Waits for an instance, and tells each stage when it is over; the instance
/// as it is then.
///
/// # Errors
/// [`PlaneError::TimedOut`], [`PlaneError::Which`]: it stopped instead.
pub fn wait(
    client: &Client,
    made: InstanceView,
    until: Until,
    within: Duration,
) -> Result<InstanceView, PlaneError> {
    tell(client, made, until, within, Told::default())
}

/// The same of one of which something was told already.
///
/// # Errors
/// Those of [`wait`].
pub fn go_on(
    client: &Client,
    now: InstanceView,
    until: Until,
    within: Duration,
) -> Result<InstanceView, PlaneError> {
    let ended = now.boot.stages.iter().filter(|s| s.ended.is_some());
    let told = Told(ended.map(|s| s.name.clone()).collect());
    tell(client, now, until, within, told)
}

fn tell(
    client: &Client,
    made: InstanceView,
    until: Until,
    within: Duration,
    mut told: Told,
) -> Result<InstanceView, PlaneError> {
    if until == Until::Made {
        return Ok(made);
    }
    let start = Instant::now();
    let name = made.name.clone().unwrap_or_else(|| made.id.clone());
    let late = || {
        PlaneError::TimedOut(format!(
            "{name} is not there after {} s; it goes on: look with `holm logs --boot {name}`, or wait longer with --timeout",
            within.as_secs()
        ))
    };
    let query = format!("kind=instance&resource={}", made.id);
    let silence = Some(SILENCE.min(within));
    let waited = client.watch(&query, silence, |_, event| {
        if start.elapsed() > within {
            return Err(late());
        }
        let Some(event) = event.filter(|event| event.id == made.id) else {
            return Ok(None);
        };
        let value = event.value.unwrap_or_default();
        let now: InstanceView =
            serde_json::from_value(value).map_err(|e| PlaneError::Strange(e.to_string()))?;
        told.tell(&now);
        over(&now, until).map(|over| over.then_some(now))
    });
    match waited {
        Ok(Some(instance)) => {
            let took = start.elapsed().as_secs_f64();
            let what = match until {
                Until::Ready => "ready",
                _ => "running",
            };
            terminal::say(&format!("{name} is {what} after {took:.1} s"));
            Ok(instance)
        }
        Ok(None) => Err(PlaneError::Which(
            "the daemon ended; its machines go on".into(),
        )),
        Err(PlaneError::Connection(e)) if e.kind() == std::io::ErrorKind::WouldBlock => Err(late()),
        Err(error) => Err(error),
    }
}

fn over(now: &InstanceView, until: Until) -> Result<bool, PlaneError> {
    let name = now.name.as_deref().unwrap_or(&now.id);
    let why = now.state_reason.as_deref().unwrap_or("no reason is known");
    match now.state.as_str() {
        "pending" => Ok(false),
        "running" => {
            if let Some(failure) = now.boot.failure.as_ref().filter(|_| until == Until::Ready) {
                return Err(PlaneError::Which(format!(
                    "{name} runs, but its boot failed: {failure}; see `holm logs {name}`"
                )));
            }
            Ok(until == Until::Running || now.boot.ready.is_some())
        }
        state => Err(PlaneError::Which(format!(
            "{name} is {state}: {why}; see `holm logs {name}`"
        ))),
    }
}

/// What was told already.
#[derive(Default)]
struct Told(Vec<String>);

impl Told {
    fn tell(&mut self, now: &InstanceView) {
        for stage in &now.boot.stages {
            if stage.ended.is_some() && !self.0.contains(&stage.name) {
                terminal::say(&line(stage));
                self.0.push(stage.name.clone());
            }
        }
    }
}

/// A stage in a line.
pub fn line(stage: &BootStageView) -> String {
    let took = match stage.seconds {
        Some(seconds) => format!("{seconds:>7.1} s"),
        None => "      ... ".into(),
    };
    let failure = stage.failure.as_ref();
    let failure = failure
        .map(|f| format!("  failed: {f}"))
        .unwrap_or_default();
    format!("  {:<12} {took}{failure}", stage.name)
}
