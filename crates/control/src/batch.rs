//! What a transaction writes, and what must hold for it.

use store::{Change, Expect, Found, Record, Records, Revision, Write};

use crate::Refusal;

/// Writes of typed records that happen together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    change: Change,
}

impl Batch {
    /// Writes a record that must not exist.
    ///
    /// # Errors
    /// [`Refusal::Record`].
    pub fn create<T: Record>(&mut self, id: &str, record: &T) -> Result<(), Refusal> {
        self.expect(Records::<T>::key(id), Expect::Absent);
        self.put(id, record)
    }

    /// Writes a record in place of the one that was read.
    ///
    /// # Errors
    /// [`Refusal::Record`].
    pub fn replace<T: Record>(&mut self, found: &Found<T>, record: &T) -> Result<(), Refusal> {
        self.unchanged(found);
        self.put(&found.id, record)
    }

    /// Writes a record whatever was there.
    ///
    /// # Errors
    /// [`Refusal::Record`].
    pub fn put<T: Record>(&mut self, id: &str, record: &T) -> Result<(), Refusal> {
        let value = Records::encode(id, record)?;
        let key = Records::<T>::key(id);
        // The last word of a transaction on a record is what is written.
        self.change.writes.retain(|write| match write {
            Write::Put { key: other, .. } | Write::Delete { key: other } => *other != key,
        });
        self.change.writes.push(Write::Put {
            key,
            value,
            lease: None,
        });
        Ok(())
    }

    /// Removes the record that was read.
    pub fn remove<T: Record>(&mut self, found: &Found<T>) {
        self.unchanged(found);
        self.discard::<T>(&found.id);
    }

    /// Removes a record, if it exists.
    pub fn discard<T: Record>(&mut self, id: &str) {
        let key = Records::<T>::key(id);
        self.change.writes.push(Write::Delete { key });
    }

    /// What was read must still be so.
    pub fn unchanged<T: Record>(&mut self, found: &Found<T>) {
        self.expect(Records::<T>::key(&found.id), Expect::At(found.revision));
    }

    /// A record must exist.
    pub fn present<T: Record>(&mut self, id: &str) {
        self.expect(Records::<T>::key(id), Expect::Present);
    }

    /// A record must not exist.
    pub fn absent<T: Record>(&mut self, id: &str) {
        self.expect(Records::<T>::key(id), Expect::Absent);
    }

    /// Nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.change.writes.is_empty()
    }

    /// The document of this key must be at this revision.
    pub(crate) fn at(&mut self, key: &str, revision: Revision) {
        self.expect(key.to_owned(), Expect::At(revision));
    }

    fn expect(&mut self, key: String, expect: Expect) {
        if !self.change.expect.contains(&(key.clone(), expect)) {
            self.change.expect.push((key, expect));
        }
    }

    pub(crate) fn into_change(self) -> Change {
        self.change
    }
}
