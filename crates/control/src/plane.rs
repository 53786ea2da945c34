//! The plane: a store, a view of it, and transactions.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use model::{
    AccountId, ElasticAddress, Image, Instance, InternetGateway, KeyPair, Operation, RouteTable,
    SecurityGroup, Site, Snapshot, Subnet, Volume, Vpc,
};
use store::{Found, Record, Records, Revision, Store, StoreError};
use tokio::sync::{Mutex, MutexGuard};

use crate::batch::Batch;
use crate::caller::Caller;
use crate::refusal::{Kind, Refusal};
use crate::view::{Kept, View};

/// How often a transaction is done again because others wrote the same.
const ATTEMPTS: u32 = 30;

/// The operations on all nouns; clones are the same plane.
#[derive(Clone)]
pub struct Plane {
    store: Arc<dyn Store>,
    view: Arc<View>,
    /// Held by who counts what an account has before it takes more.
    counting: Arc<Mutex<()>>,
    /// Where a free address of each block is looked for next: the same is not
    /// given out again at once, and a search is short.
    next_addresses: Arc<parking_lot::Mutex<HashMap<String, u64>>>,
    /// Key of a record and the revision at which it must be.
    expected: Option<(String, Revision)>,
}

/// A noun that belongs to an account.
pub trait Owned: Kept {
    /// What it is.
    const NOUN: Kind;

    /// Its owner.
    fn owner(&self) -> &AccountId;

    /// Whether others may see it, too.
    fn is_shared_with(&self, account: &AccountId) -> bool {
        let _ = account;
        false
    }
}

macro_rules! owned {
    ($($type:ty => $kind:ident,)*) => {$(
        impl Owned for $type {
            const NOUN: Kind = Kind::$kind;

            fn owner(&self) -> &AccountId {
                &self.meta.account
            }
        }
    )*};
}

owned! {
    ElasticAddress => Address,
    Instance => Instance,
    InternetGateway => InternetGateway,
    KeyPair => KeyPair,
    RouteTable => RouteTable,
    SecurityGroup => SecurityGroup,
    Subnet => Subnet,
    Volume => Volume,
    Vpc => Vpc,
}

impl Owned for Image {
    const NOUN: Kind = Kind::Image;

    fn owner(&self) -> &AccountId {
        &self.meta.account
    }

    fn is_shared_with(&self, account: &AccountId) -> bool {
        self.public || self.shared_with.contains(account)
    }
}

impl Owned for Snapshot {
    const NOUN: Kind = Kind::Snapshot;

    fn owner(&self) -> &AccountId {
        &self.meta.account
    }

    fn is_shared_with(&self, _: &AccountId) -> bool {
        self.public
    }
}

impl Owned for Operation {
    const NOUN: Kind = Kind::Operation;

    fn owner(&self) -> &AccountId {
        &self.account
    }
}

impl Plane {
    /// The plane of a store; makes what a new state directory has.
    ///
    /// # Errors
    /// The store failed, or has what this Holm cannot read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Refusal> {
        let plane = Self {
            view: View::open(store.clone()).await?,
            store,
            counting: Arc::default(),
            next_addresses: Arc::default(),
            expected: None,
        };
        plane.bootstrap().await?;
        Ok(plane)
    }

    /// What is known.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// This plane for one operation, which is done only if a record is still at
    /// the revision that its caller has seen; otherwise [`Refusal::Stale`].
    #[must_use]
    pub fn expecting<T: Record>(&self, id: &str, revision: Revision) -> Self {
        Self {
            expected: Some((Records::<T>::key(id), revision)),
            ..self.clone()
        }
    }

    /// The view, to be kept.
    #[must_use]
    pub fn shared_view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// The store under it, for its leases and its backup.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// This installation.
    ///
    /// # Errors
    /// Somebody removed its record.
    pub fn site(&self) -> Result<Site, Refusal> {
        let found = self.view.get::<Site>(Site::ID);
        let found = found.ok_or_else(|| Refusal::not_found(Kind::Resource, "site"))?;
        Ok(found.record.clone())
    }

    /// What a caller may see of a kind.
    #[must_use]
    pub fn list<T: Owned>(&self, caller: &Caller) -> Vec<Arc<Found<T>>> {
        let account = &caller.account;
        self.view
            .filter::<T>(|r| r.owner() == account || r.is_shared_with(account))
    }

    /// One that the caller may see.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn find<T: Owned>(
        &self,
        caller: &Caller,
        id: impl AsRef<str>,
    ) -> Result<Arc<Found<T>>, Refusal> {
        let found = self.view.get::<T>(id.as_ref());
        let visible = found.filter(|found| {
            let owner = found.record.owner();
            *owner == caller.account || found.record.is_shared_with(&caller.account)
        });
        visible.ok_or_else(|| Refusal::not_found(T::NOUN, id))
    }

    /// One that the caller owns.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::NotAllowed`].
    pub fn own<T: Owned>(
        &self,
        caller: &Caller,
        id: impl AsRef<str>,
    ) -> Result<Arc<Found<T>>, Refusal> {
        let found = self.find::<T>(caller, &id)?;
        match *found.record.owner() == caller.account {
            true => Ok(found),
            false => Err(Refusal::NotAllowed(format!(
                "the {} {} is another account's",
                T::NOUN,
                id.as_ref()
            ))),
        }
    }

    /// Does what `build` says, again if others changed what it read meanwhile;
    /// returns when the view shows it. `build` reads the view, fills the batch,
    /// and is called anew for each attempt.
    ///
    /// # Errors
    /// What `build` refuses; [`Refusal::Busy`]; the store's.
    pub async fn transact<R>(
        &self,
        mut build: impl FnMut(&mut Batch) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        for attempt in 0..ATTEMPTS {
            let mut batch = Batch::default();
            let result = build(&mut batch)?;
            if batch.is_empty() && self.expected.is_none() {
                return Ok(result);
            }
            if let Some((key, revision)) = &self.expected {
                batch.at(key, *revision);
            }
            match self.store.commit(batch.into_change()).await {
                Ok(revision) => {
                    self.view.reached(revision).await;
                    return Ok(result);
                }
                Err(StoreError::Conflict { key, found })
                    if self
                        .expected
                        .as_ref()
                        .is_some_and(|(k, at)| *k == key && found != Some(*at)) =>
                {
                    return Err(Refusal::Stale { key, found });
                }
                Err(StoreError::Conflict { found, .. }) => {
                    self.catch_up(found, attempt).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::Busy)
    }

    /// Changes a record, if it exists; what it was changed to. `change` may add
    /// to the batch, and is called anew for each attempt. A record that it
    /// leaves as it was is not written.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn edit<T: Kept + Clone + PartialEq>(
        &self,
        id: impl AsRef<str>,
        mut change: impl FnMut(&mut T, &mut Batch) -> Result<(), Refusal>,
    ) -> Result<Option<T>, Refusal> {
        let id = id.as_ref();
        self.transact(|batch| {
            let Some(found) = self.view.get::<T>(id) else {
                return Ok(None);
            };
            let mut record = found.record.clone();
            change(&mut record, batch)?;
            if record != found.record {
                batch.replace(&found, &record)?;
            }
            Ok(Some(record))
        })
        .await
    }

    /// Waits until the view shows what made a transaction fail.
    async fn catch_up(&self, found: Option<Revision>, attempt: u32) {
        let pause = Duration::from_millis(u64::from(attempt.min(10)));
        match found.filter(|revision| *revision > self.view.revision()) {
            Some(revision) => {
                let _ =
                    tokio::time::timeout(Duration::from_secs(5), self.view.reached(revision)).await;
            }
            None => tokio::time::sleep(pause).await,
        }
    }

    /// A free address of a block, which `pool` names.
    pub(crate) fn free_address(
        &self,
        pool: &str,
        block: Ipv4Net,
        is_free: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let size = 1_u64 << (32 - u64::from(block.prefix_len().min(32)));
        let first = u32::from(block.network());
        let mut next = self.next_addresses.lock();
        let start = next.get(pool).copied().unwrap_or_default();
        let (number, found) = (0..size).find_map(|step| {
            let number = (start + step) % size;
            let offset = u32::try_from(number).ok()?;
            let address = Ipv4Addr::from(first.checked_add(offset)?);
            is_free(address).then_some((number, address))
        })?;
        next.insert(pool.to_owned(), number + 1);
        Some(found)
    }

    /// Keeps others from taking what is counted against quotas meanwhile.
    pub(crate) async fn counting(&self) -> MutexGuard<'_, ()> {
        self.counting.lock().await
    }
}
