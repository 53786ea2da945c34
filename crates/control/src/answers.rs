//! Answers to requests that may come again. They are in the store only, not in
//! the view: many are written, and few are asked for.

use model::{Answer, Timestamp};
use store::Records;

use crate::{Plane, Refusal};

/// Answers of a page while old ones are looked for.
const PAGE: usize = 90;

impl Plane {
    /// What was answered to a request, or that it was begun.
    ///
    /// # Errors
    /// The store's.
    pub async fn answer(&self, id: &str) -> Result<Option<Answer>, Refusal> {
        let found = Records::<Answer>::of(self.store().as_ref()).get(id).await?;
        Ok(found.map(|found| found.record))
    }

    /// Notes what is answered to a request, in place of what was noted before.
    ///
    /// # Errors
    /// The store's.
    pub async fn note_answer(&self, id: &str, answer: &Answer) -> Result<(), Refusal> {
        self.transact(|batch| batch.put(id, answer)).await
    }

    /// Forgets a request, which may be done anew from now on.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget_answer(&self, id: &str) -> Result<(), Refusal> {
        self.transact(|batch| {
            batch.discard::<Answer>(id);
            Ok(())
        })
        .await
    }

    /// Forgets requests that came before a moment; how many.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget_answers(&self, before: Timestamp) -> Result<usize, Refusal> {
        let (prefix, mut after) = (Records::<Answer>::prefix(), String::new());
        let mut forgotten = 0;
        loop {
            let page = self.store().list(&prefix, &after, PAGE).await?;
            let found = page.documents.iter().map(Records::<Answer>::decode);
            let found = found.collect::<Result<Vec<_>, _>>()?;
            let old = found.iter().filter(|found| found.record.at < before);
            forgotten += old.clone().count();
            self.transact(|batch| {
                old.clone().for_each(|f| batch.discard::<Answer>(&f.id));
                Ok(())
            })
            .await?;
            match page.documents.last().filter(|_| page.more) {
                Some(last) => after.clone_from(&last.key),
                None => return Ok(forgotten),
            }
        }
    }
}
