//! What is on the host of a network as such: where its cards meet.

use model::Vpc;

use super::{Next, Reconciler, StepError};

impl Reconciler {
    /// A network comes with its first card, and goes with its record: nothing
    /// is in it any more then.
    pub(super) async fn network(&self, id: &str) -> Result<Next, StepError> {
        if self.plane.view().get::<Vpc>(id).is_none() {
            self.driver.remove_network(id).await?;
        }
        Ok(Next::Wait)
    }
}
