//! An instance's machine: its start, and the end that it is asked to come to.

use std::sync::Arc;
use std::time::Duration;

use model::{Instance, Pressed, Timestamp, Volume};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::instance::LOOK;
use super::{Next, Reconciler, StepError};
use crate::describe;
use crate::driver::{DriverError, Observed, VolumeFile};
use crate::metadata_service::{self, InstanceSource};

/// A guest that was not up yet when its power button was pressed hears it
/// when it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

impl Reconciler {
    /// Starts the machine of an instance whose disks are there.
    pub(super) async fn launch(
        &self,
        instance: &Instance,
        number: u64,
        observed: &Observed,
    ) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        if observed.has_process() {
            // Of a start before this one.
            self.driver.kill(id).await?;
            return Ok(Next::Again);
        }
        let mut files = Vec::with_capacity(instance.disks.len());
        for disk in &instance.disks {
            files.push(self.volume_file(disk.volume.as_str()).await?);
        }
        self.serve_metadata(id).await?;
        if instance.nocloud
            && let Some(seed) = metadata_service::seed(&self.plane, id)
        {
            let refused = |e| DriverError::refused("making the seed disk of", id, e);
            self.driver.place_seed(id, &seed.map_err(refused)?).await?;
        }
        let ports = self.driver.takes_ports();
        let launch = describe::launch(&self.plane, &self.layout, instance, number, &files, ports);
        self.driver.launch(id, &launch).await?;
        Ok(Next::Again)
    }

    /// Serves the metadata of an instance that has a machine, unless they are.
    pub(super) async fn serve_metadata(&self, id: &str) -> Result<(), StepError> {
        if self.metadata.lock().contains_key(id) {
            return Ok(());
        }
        let Some(listener) = self.driver.metadata_listener(id).await? else {
            return Ok(());
        };
        let source = InstanceSource::new(self.plane.clone(), id.to_owned());
        let machine = id.to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let Err(error) = metadata::serve(listener, Arc::new(source)).await;
            tracing::error!(machine, %error, "the metadata service ended");
        });
        self.metadata.lock().insert(id.to_owned(), tasks);
        Ok(())
    }

    async fn volume_file(&self, id: &str) -> Result<VolumeFile, StepError> {
        let volume = self.plane.view().get::<Volume>(id);
        let volume = volume
            .ok_or_else(|| DriverError::refused("opening the volume", id, "its record is gone"))?;
        let spec = self.volume_spec(&volume.record)?;
        let spec =
            spec.ok_or_else(|| DriverError::again("opening the volume", id, "it is not made yet"))?;
        Ok(self.driver.ensure_volume(&spec).await?)
    }

    /// Presses the power button of a machine that runs, and cuts its power if
    /// that is in vain for too long, whichever daemons that takes.
    pub(super) async fn shut_down(
        &self,
        instance: &Instance,
        number: u64,
        force: bool,
        patience: Duration,
    ) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        let first = instance.pressed.filter(|pressed| pressed.start == number);
        let left = first.map_or(patience, |first| {
            patience.saturating_sub(Timestamp::now().since(first.at))
        });
        if force || left.is_zero() {
            self.driver.kill(id).await?;
            return Ok(Next::Again);
        }
        let now = Instant::now();
        let last = self.pressed.lock().get(id).copied();
        let last = last.filter(|(start, _)| *start == number);
        if last.is_none_or(|(_, last)| now - last >= PRESS_AGAIN) {
            self.driver.press_power_button(id).await?;
            self.pressed.lock().insert(id.to_owned(), (number, now));
        }
        if first.is_none() {
            let pressed = Pressed {
                start: number,
                at: Timestamp::now(),
            };
            self.plane
                .edit::<Instance>(id, |instance, _| {
                    instance.pressed = Some(pressed);
                    Ok(())
                })
                .await?;
        }
        // Its end is told; what is missed is seen.
        Ok(Next::After(left.min(LOOK * 4)))
    }
}
