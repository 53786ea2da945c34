//! All records in memory, kept true by the store's watch.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use model::{
    AccessKey, Account, ApiToken, Claim, Done, ElasticAddress, Event, Image, Instance,
    InstanceType, InternetGateway, KeyPair, Operation, Quotas, RouteTable, SecurityGroup, Site,
    Snapshot, Subnet, TagPolicy, Volume, Vpc,
};
use parking_lot::RwLock;
use store::{Document, Found, Record, RecordError, Records, Revision, Store, StoreError};
use tokio::sync::{broadcast, watch};

/// Records of one type, by id.
#[derive(Debug)]
pub struct Table<T>(RwLock<BTreeMap<String, Arc<Found<T>>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }
}

/// A type whose records are in the [`View`].
pub trait Kept: Record + 'static {
    #[doc(hidden)]
    fn table(tables: &Tables) -> &Table<Self>
    where
        Self: Sized;
}

macro_rules! tables {
    ($($field:ident: $type:ty,)*) => {
        /// A table for each type.
        #[derive(Debug, Default)]
        pub struct Tables {
            $($field: Table<$type>,)*
        }

        $(impl Kept for $type {
            fn table(tables: &Tables) -> &Table<Self> {
                &tables.$field
            }
        })*

        impl Tables {
            fn put(&self, document: &Document) -> Result<(), RecordError> {
                match kind(&document.key) {
                    $(<$type>::KIND => self.$field.put(document),)*
                    _ => Ok(()),
                }
            }

            fn delete(&self, key: &str) {
                let id = key.split_once('/').map_or("", |(_, id)| id);
                match kind(key) {
                    $(<$type>::KIND => drop(self.$field.0.write().remove(id)),)*
                    _ => {}
                }
            }

            fn clear(&self) {
                $(self.$field.0.write().clear();)*
            }
        }
    };
}

tables! {
    access_keys: AccessKey,
    accounts: Account,
    api_tokens: ApiToken,
    claims: Claim,
    done: Done,
    elastic_addresses: ElasticAddress,
    events: Event,
    gateways: InternetGateway,
    images: Image,
    instances: Instance,
    instance_types: InstanceType,
    key_pairs: KeyPair,
    operations: Operation,
    quotas: Quotas,
    route_tables: RouteTable,
    security_groups: SecurityGroup,
    sites: Site,
    snapshots: Snapshot,
    subnets: Subnet,
    tag_policies: TagPolicy,
    volumes: Volume,
    vpcs: Vpc,
}

fn kind(key: &str) -> &str {
    key.split_once('/').map_or(key, |(kind, _)| kind)
}

impl<T: Record> Table<T> {
    fn put(&self, document: &Document) -> Result<(), RecordError> {
        let found = Records::<T>::decode(document)?;
        self.0.write().insert(found.id.clone(), Arc::new(found));
        Ok(())
    }
}

/// That a record was written or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its kind, as [`Record::KIND`].
    pub kind: Arc<str>,
    /// Its id.
    pub id: Arc<str>,
    /// When.
    pub revision: Revision,
    /// It was removed.
    pub removed: bool,
}

/// Changes that a slow listener may be behind by.
const BEHIND: usize = 16 << 10;

/// All records, as the store has them or had them a moment ago.
#[derive(Debug)]
pub struct View {
    tables: Tables,
    revision: watch::Sender<Revision>,
    changes: broadcast::Sender<Changed>,
}

impl View {
    /// Reads all records and goes on following the store, in a task of its own
    /// that ends when the store is closed.
    ///
    /// # Errors
    /// [`RecordError`]: the store failed, or has what this Holm cannot read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Arc<Self>, RecordError> {
        let view = Arc::new(Self {
            tables: Tables::default(),
            revision: watch::Sender::new(0),
            changes: broadcast::Sender::new(BEHIND),
        });
        let revision = view.load(store.as_ref()).await?;
        view.revision.send_replace(revision);
        let following = view.clone();
        tokio::spawn(async move {
            let (view, mut after) = (following, revision);
            loop {
                match view.follow(store.as_ref(), after).await {
                    Ok(revision) => after = revision,
                    Err(StoreError::Closed) => return,
                    Err(error) => {
                        tracing::error!(%error, "following the store");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        after = *view.revision.borrow();
                    }
                }
            }
        });
        Ok(view)
    }

    async fn load(&self, store: &dyn Store) -> Result<Revision, RecordError> {
        let mut after = String::new();
        let mut first = None;
        loop {
            let page = store.list("", &after, store::PAGE_MAX).await?;
            // Watching from the first page's revision sees what changed since.
            let revision = *first.get_or_insert(page.revision);
            for document in &page.documents {
                self.tables.put(document)?;
            }
            match page.documents.last().filter(|_| page.more) {
                Some(last) => after.clone_from(&last.key),
                None => return Ok(revision),
            }
        }
    }

    /// Takes in what happens, for as long as the watch goes on.
    async fn follow(&self, store: &dyn Store, after: Revision) -> Result<Revision, StoreError> {
        let mut watch = match store.watch("", after).await {
            Err(StoreError::Compacted { .. }) => {
                self.tables.clear();
                let loaded = self.load(store).await;
                let revision = loaded.map_err(|error| match error {
                    RecordError::Store(error) => error,
                    error => StoreError::Failed {
                        doing: "reading all records again",
                        reason: error.to_string(),
                    },
                })?;
                self.revision.send_replace(revision);
                return Ok(revision);
            }
            other => other?,
        };
        loop {
            let batch = watch.next().await?;
            let mut changed = Vec::with_capacity(batch.events.len());
            for event in &batch.events {
                let removed = match event {
                    store::Event::Put(document) => {
                        if let Err(error) = self.tables.put(document) {
                            tracing::error!(%error, "a record that cannot be read");
                        }
                        false
                    }
                    store::Event::Delete { key, .. } => {
                        self.tables.delete(key);
                        true
                    }
                };
                if let Some((kind, id)) = event.key().split_once('/') {
                    changed.push(Changed {
                        kind: kind.into(),
                        id: id.into(),
                        revision: event.revision(),
                        removed,
                    });
                }
            }
            self.revision.send_replace(batch.revision);
            for change in changed {
                // Without listeners nobody need know.
                let _ = self.changes.send(change);
            }
        }
    }

    /// The revision that it shows.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until it shows this revision or a later one.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives as long as the view.
        let _ = self
            .revision
            .subscribe()
            .wait_for(|now| *now >= revision)
            .await;
    }

    /// What happens from now on. A listener that is too slow is told
    /// (`Lagged`), and reads all again.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    /// A record.
    #[must_use]
    pub fn get<T: Kept>(&self, id: impl AsRef<str>) -> Option<Arc<Found<T>>> {
        T::table(&self.tables).0.read().get(id.as_ref()).cloned()
    }

    /// All records of a type, in the order of their ids.
    #[must_use]
    pub fn all<T: Kept>(&self) -> Vec<Arc<Found<T>>> {
        T::table(&self.tables).0.read().values().cloned().collect()
    }

    /// Those whose ids begin so.
    #[must_use]
    pub fn starting<T: Kept>(&self, prefix: &str) -> Vec<Arc<Found<T>>> {
        let table = T::table(&self.tables).0.read();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        table
            .range::<str, _>(from)
            .take_while(|(id, _)| id.starts_with(prefix))
            .map(|(_, found)| found.clone())
            .collect()
    }

    /// Those for which `keep` holds, without copies of the others.
    #[must_use]
    pub fn filter<T: Kept>(&self, keep: impl Fn(&T) -> bool) -> Vec<Arc<Found<T>>> {
        let table = T::table(&self.tables).0.read();
        let kept = table.values().filter(|found| keep(&found.record));
        kept.cloned().collect()
    }

    /// Whether there is one for which `test` holds.
    #[must_use]
    pub fn any<T: Kept>(&self, test: impl Fn(&T) -> bool) -> bool {
        let table = T::table(&self.tables).0.read();
        table.values().any(|found| test(&found.record))
    }

    /// How many there are for which `test` holds.
    #[must_use]
    pub fn count<T: Kept>(&self, test: impl Fn(&T) -> bool) -> usize {
        let table = T::table(&self.tables).0.read();
        table.values().filter(|found| test(&found.record)).count()
    }
}
