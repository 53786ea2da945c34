//! From what is wanted to what is so, in steps that may be repeated.
//!
//! A reconciler looks at one record at a time: it compares what is wanted with
//! what the host says, takes the next step, and writes down what came of it.
//! It keeps nothing in memory that a restart would miss.

mod attachments;
mod boot;
mod cards;
mod events;
mod image;
mod instance;
mod machine;
mod network;
mod orphans;
mod snapshot;
mod volume;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use control::{Changed, Plane, Refusal};
use model::{Image, Instance, Snapshot, Volume, Vpc};
use parking_lot::Mutex;
use store::Record;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::driver::{Driver, DriverError, Failure, Happened};
use crate::layout::Layout;
use crate::queue::{Key, Queue};

/// How patient a reconciler is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a guest has to shut down after its power button was pressed,
    /// when its instance is stopped or rebooted.
    pub stop: Duration,
    /// The same when its instance is terminated.
    pub terminate: Duration,
    /// How many steps in a row may fail before what was asked for is given up.
    pub attempts: u32,
    /// How long a guest that has no agent is looked at for its boot.
    pub boot: Duration,
    /// How long volumes without a record are kept.
    pub orphans_kept: Duration,
    /// How many records are worked on at once.
    pub workers: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stop: Duration::from_secs(120),
            terminate: Duration::from_secs(20),
            attempts: 8,
            boot: Duration::from_secs(600),
            orphans_kept: Duration::from_secs(24 * 3600),
            workers: 32,
        }
    }
}

/// What follows a step.
#[derive(Debug)]
enum Next {
    /// The next step, at once.
    Again,
    /// Nothing, until something changes.
    Wait,
    /// A look after this time.
    After(Duration),
}

impl Next {
    /// What comes first of two.
    fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Again, _) | (_, Self::Again) => Self::Again,
            (Self::Wait, other) | (other, Self::Wait) => other,
            (Self::After(a), Self::After(b)) => Self::After(a.min(b)),
        }
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Plane(#[from] Refusal),
}

impl StepError {
    /// It is in vain to try again.
    fn is_final(&self) -> bool {
        match self {
            Self::Driver(error) => error.failure == Failure::Refused,
            Self::Plane(_) => false,
        }
    }
}

/// Makes one host agree with a plane.
pub struct Reconciler {
    plane: Plane,
    driver: Arc<dyn Driver>,
    layout: Layout,
    patience: Patience,
    queue: Arc<Queue>,
    /// Steps in a row that failed.
    failures: Mutex<HashMap<Key, u32>>,
    /// When the power button of a machine was last pressed, by its start.
    pressed: Mutex<HashMap<String, (u64, Instant)>>,
    /// How far guests have come that are looked at now, or were just now.
    looked: Arc<Mutex<boot::Looked>>,
    /// What machines told and is not noted yet.
    told_by_machines: Mutex<events::Told>,
    /// What network cards were told.
    told: Mutex<cards::Told>,
    /// Metadata services of machines.
    metadata: Mutex<HashMap<String, JoinSet<()>>>,
}

/// First pause after a step that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A key that takes more steps than this in a row lets others come first.
const STEPS: usize = 64;

impl Reconciler {
    /// The reconciler of a host.
    #[must_use]
    pub fn new(
        plane: Plane,
        driver: Arc<dyn Driver>,
        layout: Layout,
        patience: Patience,
    ) -> Arc<Self> {
        Arc::new(Self {
            plane,
            driver,
            layout,
            patience,
            queue: Arc::default(),
            failures: Mutex::default(),
            pressed: Mutex::default(),
            looked: Arc::default(),
            told_by_machines: Mutex::default(),
            told: Mutex::default(),
            metadata: Mutex::default(),
        })
    }

    /// Nothing is to be done, now or soon.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let looks = |look: &boot::Look| matches!(look, boot::Look::Now);
        !self.looked.lock().values().any(looks) && self.queue.is_settled()
    }

    /// How many records wait for a look, now or later.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.queue.len()
    }

    /// Works until it is dropped. `changes` are the driver's.
    pub async fn run(self: Arc<Self>, mut changes: UnboundedReceiver<Happened>) {
        let mut tasks = JoinSet::new();
        let feeding = self.clone();
        // Listens before it lists, so that nothing is missed between the two.
        let mut told = self.plane.view().changes();
        tasks.spawn(async move {
            feeding.add_all();
            loop {
                match told.recv().await {
                    Ok(changed) => feeding.feed(&changed),
                    Err(RecvError::Lagged(_)) => feeding.add_all(),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        let machines = self.clone();
        tasks.spawn(async move {
            while let Some(happened) = changes.recv().await {
                machines.heard(happened);
            }
        });
        tasks.spawn(self.clone().tell_cards());
        let orphans = self.clone();
        tasks.spawn(async move { orphans.remove_orphans().await });
        let workers = Arc::new(Semaphore::new(self.patience.workers.max(1)));
        loop {
            let Ok(permit) = workers.clone().acquire_owned().await else {
                return;
            };
            let key = self.queue.next().await;
            let working = self.clone();
            tasks.spawn(async move {
                working.work(&key).await;
                working.queue.done(&key);
                drop(permit);
            });
            while tasks.try_join_next().is_some() {}
        }
    }

    fn add_all(&self) {
        let view = self.plane.view();
        let add = |key| self.queue.add(key);
        let instances = view.all::<Instance>().into_iter();
        instances.for_each(|i| add(Key::Instance(i.id.clone())));
        let volumes = view.all::<Volume>().into_iter();
        volumes.for_each(|v| add(Key::Volume(v.id.clone())));
        let snapshots = view.all::<Snapshot>().into_iter();
        snapshots.for_each(|s| add(Key::Snapshot(s.id.clone())));
        let images = view.all::<Image>().into_iter();
        images.for_each(|i| add(Key::Image(i.id.clone())));
    }

    fn feed(&self, changed: &Changed) {
        let id = changed.id.to_string();
        match &*changed.kind {
            Instance::KIND => self.queue.add(Key::Instance(id)),
            Volume::KIND => {
                if let Some(volume) = self.plane.view().get::<Volume>(&id)
                    && let Some(attachment) = &volume.record.attachment
                {
                    let instance = attachment.instance.to_string();
                    self.queue.add(Key::Instance(instance));
                }
                self.queue.add(Key::Volume(id));
            }
            Snapshot::KIND => self.queue.add(Key::Snapshot(id)),
            Image::KIND => self.queue.add(Key::Image(id)),
            Vpc::KIND => self.queue.add(Key::Network(id)),
            _ => {}
        }
    }

    /// Takes steps for a key until nothing is to be done now.
    async fn work(&self, key: &Key) {
        for _ in 0..STEPS {
            let next = match key {
                Key::Instance(id) => self.instance(id).await,
                Key::Volume(id) => self.volume(id).await,
                Key::Snapshot(id) => self.snapshot(id).await,
                Key::Image(id) => self.image(id).await,
                Key::Network(id) => self.network(id).await,
            };
            match next {
                Ok(next) => {
                    self.failures.lock().remove(key);
                    match next {
                        Next::Again => {}
                        Next::Wait => return,
                        Next::After(time) => return self.queue.add_after(key.clone(), time),
                    }
                }
                Err(error) => return self.failed(key, &error).await,
            }
        }
        self.queue.add(key.clone());
    }

    /// A step failed: it is tried again after a while, or given up.
    async fn failed(&self, key: &Key, error: &StepError) {
        let failures = {
            let mut all = self.failures.lock();
            let count = all.entry(key.clone()).or_default();
            *count = count.saturating_add(1);
            *count
        };
        tracing::warn!(?key, failures, %error, "a step failed");
        if error.is_final() || failures >= self.patience.attempts {
            let reason = error.to_string();
            let given_up = match key {
                Key::Instance(id) => self.give_up_instance(id, &reason).await,
                Key::Volume(id) => self.give_up_volume(id, &reason).await,
                Key::Snapshot(id) => self.give_up_snapshot(id, &reason).await,
                Key::Image(_) | Key::Network(_) => Ok(false),
            };
            match given_up {
                Ok(true) => {
                    self.failures.lock().remove(key);
                    return;
                }
                Ok(false) => {}
                Err(error) => tracing::error!(?key, %error, "a failure could not be noted"),
            }
        }
        self.queue.add_after(key.clone(), pause(failures));
    }
}

/// Twice as long each time, and not the same for all.
fn pause(failures: u32) -> Duration {
    let longer = PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let [random] = model::random_bytes::<1>();
    longer
        .min(LONGEST_PAUSE)
        .mul_f64(0.5 + f64::from(random) / 512.0)
}
