//! What machines tell becomes events of their instances.

use std::collections::HashMap;
use std::time::Duration;

use machine_protocol::{Event, EventKind};
use model::{Instance, Noted};
use tokio::time::Instant;

use super::{Next, Reconciler, StepError};
use crate::driver::Happened;
use crate::queue::Key;

/// Most events of a machine that are noted at once. What is more is counted: a
/// guest that resets all the time does not fill the store.
const MOST: usize = 8;
/// Between two times that events of a machine are noted.
const EVERY: Duration = Duration::from_secs(10);

/// What machines told and is not noted yet, by instance.
pub(super) type Told = HashMap<String, Pending>;

/// Of one machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    events: Vec<(Noted, EventKind)>,
    /// What came after those.
    last: Noted,
    more: u64,
    /// When events were noted last.
    noted: Option<Instant>,
}

/// An event's kind for an instance; `None`: it is known otherwise, or nobody
/// needs to.
fn name(kind: &EventKind) -> Option<&'static str> {
    Some(match kind {
        EventKind::Paused => "instance-paused",
        EventKind::Resumed => "instance-resumed",
        EventKind::Rebooted => "instance-reset-by-guest",
        EventKind::GuestPanicked => "instance-panicked",
        EventKind::GuestCrashLoaded => "instance-crash-kernel",
        EventKind::WatchdogExpired => "instance-watchdog-expired",
        EventKind::DiskError { .. } => "instance-disk-error",
        EventKind::PortNotPublished { .. } => "instance-port-not-published",
        _ => return None,
    })
}

/// What it means for how the instance is: `Some(None)`, it is well again.
fn trouble(kind: &EventKind, id: &str) -> Option<Option<String>> {
    match kind {
        EventKind::Rebooted | EventKind::Resumed => Some(None),
        EventKind::GuestPanicked | EventKind::WatchdogExpired => Some(Some(kind.describe())),
        EventKind::DiskError { paused: true, .. } => Some(Some(format!(
            "{}; when the host is repaired: holm resume {id}",
            kind.describe()
        ))),
        _ => None,
    }
}

impl Reconciler {
    /// Something happened to a machine.
    pub(super) fn heard(&self, happened: Happened) {
        let Happened { machine, told } = happened;
        if let Some((start, Event { number, kind, .. })) = told {
            if name(&kind).is_none() {
                return;
            }
            let mut all = self.told_by_machines.lock();
            let pending = all.entry(machine.clone()).or_default();
            let noted = Noted {
                start,
                event: number,
            };
            pending.last = pending.last.max(noted);
            match pending.events.len() < MOST {
                true => pending.events.push((noted, kind)),
                false => pending.more = pending.more.saturating_add(1),
            }
        }
        self.queue.add(Key::Instance(machine));
    }

    /// Notes what the machine of an instance told.
    pub(super) async fn note_events(&self, instance: &Instance) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        let pending = self.told_by_machines.lock().get(id).cloned();
        let Some(pending) = pending.filter(|pending| !pending.events.is_empty()) else {
            return Ok(Next::Wait);
        };
        let due = pending.noted.map_or(Duration::ZERO, |noted| {
            EVERY.saturating_sub(noted.elapsed())
        });
        if !due.is_zero() {
            return Ok(Next::After(due));
        }
        let is_new = |noted: Noted, instance: &Instance| noted > instance.noted;
        if is_new(pending.last, instance) {
            self.plane
                .edit::<Instance>(id, |instance, batch| {
                    let account = instance.meta.account.clone();
                    let mut new = Vec::new();
                    for (noted, kind) in &pending.events {
                        if is_new(*noted, instance) {
                            new.push((noted, kind));
                        }
                    }
                    for (noted, kind) in new {
                        let what = name(kind).unwrap_or_default();
                        batch.tell(&account, None, what, &instance.id, kind.describe())?;
                        if instance.machine == Some(noted.start)
                            && let Some(trouble) = trouble(kind, instance.id.as_str())
                        {
                            instance.trouble = trouble;
                        }
                    }
                    if pending.more > 0 && is_new(pending.last, instance) {
                        let text = format!("and {} more in a short time", pending.more);
                        batch.tell(
                            &account,
                            None,
                            "instance-events-left-out",
                            &instance.id,
                            text,
                        )?;
                    }
                    instance.noted = instance.noted.max(pending.last);
                    Ok(())
                })
                .await?;
        }
        if let Some(left) = self.told_by_machines.lock().get_mut(id) {
            left.events
                .drain(..pending.events.len().min(left.events.len()));
            left.more = left.more.saturating_sub(pending.more);
            left.noted = is_new(pending.last, instance)
                .then(Instant::now)
                .or(left.noted);
        }
        Ok(Next::Wait)
    }
}
