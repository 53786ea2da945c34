//! How far guests have come since they were started.

use std::time::Duration;

use model::{Boot, BootStage, Instance, Timestamp};
use provisioning::BootProgress;
use tokio::time::Instant;

use super::{Next, Reconciler, StepError};

/// Between two looks at a guest that boots.
const LOOK: Duration = Duration::from_secs(1);
/// The same at one that has not come far in a long time.
const RARELY: Duration = Duration::from_secs(30);
/// The stage before the guest's own.
pub(super) const MACHINE: &str = "machine";

impl Reconciler {
    /// Writes down how far the guest of a running instance has come, until
    /// nothing more will come.
    pub(super) async fn watch_boot(&self, instance: &Instance) -> Result<Next, StepError> {
        if instance.boot.over {
            return Ok(Next::Wait);
        }
        let id = instance.id.as_str();
        let now = Instant::now();
        let looked = self.looked.lock().get(id).copied();
        if let Some(due) = looked.filter(|due| *due > now) {
            return Ok(Next::After(due - now));
        }
        let since = Timestamp::now().since(instance.state_since);
        let pause = (since / 60).clamp(LOOK, RARELY);
        self.looked.lock().insert(id.to_owned(), now + pause);
        let started = instance.boot.stages.iter().find(|s| s.name == MACHINE);
        let started = started.map_or(instance.state_since, |stage| stage.began);
        let Some(progress) = self.driver.boot_progress(id, started.into()).await? else {
            return Ok(Next::Wait);
        };
        let (number, boot) = (instance.machine, booted(&instance.boot, &progress));
        if boot != instance.boot {
            self.plane
                .edit::<Instance>(id, |instance, batch| {
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
                })
                .await?;
        }
        Ok(match boot.over {
            true => Next::Wait,
            false => Next::After(pause),
        })
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
