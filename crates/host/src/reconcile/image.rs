//! Images that are made of instances: available when their disks are.

use std::time::Duration;

use model::{Image, ImageState, Snapshot, SnapshotState};

use super::{Next, Reconciler, StepError};

impl Reconciler {
    pub(super) async fn image(&self, id: &str) -> Result<Next, StepError> {
        let Some(found) = self.plane.view().get::<Image>(id) else {
            return Ok(Next::Wait);
        };
        if found.record.state != ImageState::Pending {
            return Ok(Next::Wait);
        }
        let snapshots = found
            .record
            .disks
            .iter()
            .filter_map(|d| d.snapshot.as_ref());
        let mut failure = None;
        let mut pending = false;
        for snapshot in snapshots {
            match self.plane.view().get::<Snapshot>(snapshot) {
                None => failure = Some(format!("the snapshot {snapshot} is gone")),
                Some(found) => match found.record.state {
                    SnapshotState::Completed => {}
                    SnapshotState::Pending => pending = true,
                    SnapshotState::Error => {
                        let why = found.record.failure.as_deref().unwrap_or("it failed");
                        failure = Some(format!("the snapshot {snapshot}: {why}"));
                    }
                },
            }
        }
        if pending && failure.is_none() {
            return Ok(Next::After(Duration::from_millis(500)));
        }
        self.plane
            .edit::<Image>(id, |image, batch| {
                if image.state != ImageState::Pending {
                    return Ok(());
                }
                let account = image.meta.account.clone();
                image.state = match failure {
                    Some(_) => ImageState::Failed,
                    None => ImageState::Available,
                };
                image.failure.clone_from(&failure);
                let kind = format!("image-{}", image.state.name());
                self.plane
                    .end_operations(batch, &image.id, failure.as_deref())?;
                let why = failure.as_deref().unwrap_or_default();
                batch.tell(&account, None, &kind, &image.id, why)
            })
            .await?;
        Ok(Next::Again)
    }
}
