//! How far guests have come since they were started.

use std::collections::HashMap;
use std::time::Duration;

use control::Batch;
use model::{Boot, BootStage, Instance, Timestamp};
use provisioning::{BootProgress, Seen};
use tokio::time::Instant;

use super::{Next, Reconciler, StepError};
use crate::driver::DriverError;
use crate::queue::Key;

/// Between two looks at a guest that boots.
const LOOK: Duration = Duration::from_secs(1);
/// The same at one that has not come far in a long time.
const RARELY: Duration = Duration::from_secs(30);
/// The stage before the guest's own.
pub(super) const MACHINE: &str = "machine";

/// By instance: guests that are looked at now, or were.
pub(super) type Looked = HashMap<String, Look>;

/// A look at a guest.
pub(super) enum Look {
    /// It goes on, on a task of its own: a guest may take long to answer, and
    /// its instance can be stopped meanwhile.
    Now,
    /// What came of it.
    Done {
        /// Start of its machine.
        number: Option<u64>,
        progress: Result<Option<BootProgress>, DriverError>,
    },
    /// It was taken in; the next one is due then.
    Over(Instant),
}

impl Reconciler {
    /// Writes down how far the guest of a running instance has come, until
    /// nothing more will come.
    pub(super) async fn watch_boot(&self, instance: &Instance) -> Result<Next, StepError> {
        if instance.boot.over {
            return Ok(Next::Wait);
        }
        let id = instance.id.as_str();
        let now = Instant::now();
        let since = Timestamp::now().since(instance.state_since);
        let pause = (since / 60).clamp(LOOK, RARELY);
        let done = {
            let mut looked = self.looked.lock();
            match looked.get(id) {
                Some(Look::Now) => return Ok(Next::Wait),
                Some(Look::Over(due)) if *due > now => return Ok(Next::After(*due - now)),
                Some(Look::Done { number, .. }) if *number != instance.machine => None,
                Some(Look::Done { .. }) => looked.insert(id.to_owned(), Look::Over(now + pause)),
                Some(Look::Over(_)) | None => None,
            }
        };
        let Some(Look::Done { progress, .. }) = done else {
            self.look_at_boot(instance);
            return Ok(Next::Wait);
        };
        let Some(progress) = progress? else {
            return Ok(Next::Wait);
        };
        let mut boot = booted(&instance.boot, &progress);
        // Who has no agent by now has none: its console told all it will.
        boot.over |= progress.seen != Seen::Agent && since >= self.patience.boot;
        self.note_boot(instance, &boot).await?;
        Ok(match boot.over {
            true => Next::Wait,
            false => Next::After(pause),
        })
    }

    /// Begins a look, whose end brings the instance's turn.
    fn look_at_boot(&self, instance: &Instance) {
        let id = instance.id.to_string();
        let started = instance.boot.stages.iter().find(|s| s.name == MACHINE);
        let started = started.map_or(instance.state_since, |stage| stage.began);
        self.looked.lock().insert(id.clone(), Look::Now);
        let number = instance.machine;
        let (driver, looked, queue) =
            (self.driver.clone(), self.looked.clone(), self.queue.clone());
        tokio::spawn(async move {
            let progress = driver.boot_progress(&id, started.into()).await;
            if let Some(look) = looked.lock().get_mut(&id) {
                *look = Look::Done { number, progress };
            }
            queue.add(Key::Instance(id));
        });
    }

    async fn note_boot(&self, instance: &Instance, boot: &Boot) -> Result<(), StepError> {
        if *boot == instance.boot {
            return Ok(());
        }
        let number = instance.machine;
        let edit = |instance: &mut Instance, batch: &mut Batch| {
            if instance.machine != number {
                return Ok(());
            }
            let account = instance.meta.account.clone();
            if boot.ready.is_some() && instance.boot.ready.is_none() {
                batch.tell(&account, None, "instance-ready", &instance.id, "")?;
            }
            if let Some(failure) = &boot.failure
                && instance.boot.failure.is_none()
            {
                let what = failure.lines().next().unwrap_or_default();
                batch.tell(&account, None, "instance-boot-failed", &instance.id, what)?;
            }
            instance.boot = boot.clone();
            Ok(())
        };
        self.plane.edit::<Instance>(&instance.id, edit).await?;
        Ok(())
    }
}

/// What is known now; what the host saw itself stays.
fn booted(before: &Boot, progress: &BootProgress) -> Boot {
    let mut stages: Vec<BootStage> = before.stages.clone();
    stages.retain(|stage| stage.name == MACHINE);
    for report in &progress.stages {
        let failure = progress.failures.iter().find(|f| f.stage == report.stage);
        stages.push(BootStage {
            name: report.stage.to_string(),
            began: report.began.into(),
            ended: report.ended.map(Timestamp::from),
            failure: failure.map(|failure| failure.what.clone()),
        });
    }
    if let Some(next) = stages.get(1).map(|stage| stage.began)
        && let Some(machine) = stages.first_mut().filter(|s| s.name == MACHINE)
    {
        machine.ended.get_or_insert(next);
    }
    Boot {
        stages,
        ready: progress.ready.map(Timestamp::from).or(before.ready),
        failure: match progress.failures.as_slice() {
            [] => before.failure.clone(),
            failures => {
                let all: Vec<String> = failures.iter().map(ToString::to_string).collect();
                Some(all.join("\n"))
            }
        },
        over: progress.is_over(),
    }
}
