//! Typed documents: JSON with a kind and a version, so that what a newer
//! daemon wrote is refused by name and not misread.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Document, Revision, Store, StoreError};

/// A type that is kept in a store.
pub trait Record: Serialize + DeserializeOwned + Send + Sync {
    /// First part of its keys, as `instance`.
    const KIND: &'static str;
    /// Version of its JSON form.
    const VERSION: u32;

    /// Makes the JSON of an older version into the next one's. Called until
    /// [`Self::VERSION`] is reached.
    ///
    /// # Errors
    /// What is wrong with it.
    fn upgrade(from: u32, value: serde_json::Value) -> Result<serde_json::Value, String> {
        let _ = value;
        Err(format!("nothing upgrades version {from}"))
    }
}

/// A record and its place in the store's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// Last part of its key.
    pub id: String,
    /// The record.
    pub record: T,
    /// When it was last written.
    pub revision: Revision,
}

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Written by a newer version.
    #[error(
        "{key} has version {found} of {kind}, and this holm knows versions up to {known}; use the holm that wrote it, or a newer one"
    )]
    Newer {
        /// The document.
        key: String,
        /// Its kind.
        kind: &'static str,
        /// Its version.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// Not what it should be.
    #[error("{key} is damaged: {reason}; `holm state check` tells more")]
    Damaged {
        /// The document.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize)]
struct Written<'a, T> {
    kind: &'static str,
    version: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Read {
    kind: String,
    version: u32,
    body: serde_json::Value,
}

/// All records of one type in a store.
pub struct Records<'a, T> {
    store: &'a dyn Store,
    record: PhantomData<T>,
}

impl<'a, T: Record> Records<'a, T> {
    /// Those of a store.
    #[must_use]
    pub fn of(store: &'a dyn Store) -> Self {
        Self {
            store,
            record: PhantomData,
        }
    }

    /// The key of a record.
    #[must_use]
    pub fn key(id: &str) -> String {
        format!("{}/{id}", T::KIND)
    }

    /// What all keys of this type begin with.
    #[must_use]
    pub fn prefix() -> String {
        format!("{}/", T::KIND)
    }

    /// The document's content for a record.
    ///
    /// # Errors
    /// [`RecordError::Damaged`] if it has no JSON form.
    pub fn encode(id: &str, record: &T) -> Result<Vec<u8>, RecordError> {
        let written = Written {
            kind: T::KIND,
            version: T::VERSION,
            body: record,
        };
        serde_json::to_vec(&written).map_err(|e| damaged(&Self::key(id), e))
    }

    /// The record in a document.
    ///
    /// # Errors
    /// [`RecordError::Newer`], [`RecordError::Damaged`].
    pub fn decode(document: &Document) -> Result<Found<T>, RecordError> {
        let key = &document.key;
        let id = key.strip_prefix(T::KIND).and_then(|k| k.strip_prefix('/'));
        let read: Read = serde_json::from_slice(&document.value).map_err(|e| damaged(key, e))?;
        let Some(id) = id.filter(|_| read.kind == T::KIND) else {
            return Err(damaged(key, format!("it is of kind {:?}", read.kind)));
        };
        if read.version > T::VERSION {
            return Err(RecordError::Newer {
                key: key.clone(),
                kind: T::KIND,
                found: read.version,
                known: T::VERSION,
            });
        }
        let mut body = read.body;
        for version in read.version..T::VERSION {
            body = T::upgrade(version, body).map_err(|e| damaged(key, e))?;
        }
        Ok(Found {
            id: id.to_owned(),
            record: serde_json::from_value(body).map_err(|e| damaged(key, e))?,
            revision: document.revision,
        })
    }

    /// A record by its id.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn get(&self, id: &str) -> Result<Option<Found<T>>, RecordError> {
        let document = self.store.get(&Self::key(id)).await?;
        document.as_ref().map(Self::decode).transpose()
    }

    /// All records, and the revision to watch from.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn all(&self) -> Result<(Vec<Found<T>>, Revision), RecordError> {
        let (prefix, mut after) = (Self::prefix(), String::new());
        let mut found = Vec::new();
        let mut first = None;
        loop {
            let page = self.store.list(&prefix, &after, crate::PAGE_MAX).await?;
            // Watching from the first page's revision sees what changed since.
            let revision = *first.get_or_insert(page.revision);
            for document in &page.documents {
                found.push(Self::decode(document)?);
            }
            match page.documents.last().filter(|_| page.more) {
                Some(last) => after.clone_from(&last.key),
                None => return Ok((found, revision)),
            }
        }
    }
}

fn damaged(key: &str, reason: impl std::fmt::Display) -> RecordError {
    RecordError::Damaged {
        key: key.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Cup {
        colour: String,
        handles: u32,
    }

    impl Record for Cup {
        const KIND: &'static str = "cup";
        const VERSION: u32 = 2;

        fn upgrade(from: u32, mut value: serde_json::Value) -> Result<serde_json::Value, String> {
            assert_eq!(from, 1);
            value["handles"] = 1.into();
            Ok(value)
        }
    }

    fn document(key: &str, value: &str) -> Document {
        Document {
            key: key.into(),
            value: value.into(),
            revision: 7,
            created: 7,
            lease: None,
        }
    }

    #[test]
    fn records_survive_upgrades_and_refuse_what_they_do_not_know() {
        let cup = Cup {
            colour: "red".into(),
            handles: 2,
        };
        let bytes = Records::encode("a", &cup).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let found = Records::<Cup>::decode(&document("cup/a", &text)).unwrap();
        assert_eq!((found.id.as_str(), found.record), ("a", cup));
        let old = r#"{"kind":"cup","version":1,"body":{"colour":"blue"}}"#;
        let found = Records::<Cup>::decode(&document("cup/b", old)).unwrap();
        assert_eq!(found.record.handles, 1);
        let new = text.replace("\"version\":2", "\"version\":3");
        let error = Records::<Cup>::decode(&document("cup/c", &new)).unwrap_err();
        assert!(
            matches!(error, RecordError::Newer { found: 3, .. }),
            "{error}"
        );
        for bad in [
            ("cup/d", "{"),
            ("pot/e", &text),
            ("cup/f", r#"{"kind":"pot","version":1,"body":{}}"#),
        ] {
            let error = Records::<Cup>::decode(&document(bad.0, bad.1)).unwrap_err();
            assert!(matches!(error, RecordError::Damaged { .. }), "{error}");
        }
    }
}
