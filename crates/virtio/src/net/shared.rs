//! What the parts of a card share: the driver's settings, the state of its
//! link, counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use net::{Link, MacAddress, Network};
use parking_lot::Mutex;

use super::counters::Counters;
use super::filter::Filter;
use crate::device::Signal;

/// What a driver has set by control commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub filter: Filter,
    /// Queue pairs in use.
    pub active_pairs: u16,
    /// Which of the negotiated GUEST_ features are on; `None`: all.
    pub guest_offloads: Option<u64>,
    /// The driver is to announce itself.
    pub announce: bool,
}

impl Settings {
    pub(super) fn new(mac: MacAddress) -> Self {
        Self {
            filter: Filter::new(mac),
            active_pairs: 1,
            guest_offloads: None,
            announce: false,
        }
    }
}

/// What a card is plugged into.
pub(super) struct Backend {
    pub network: Arc<dyn Network>,
    /// By pair, while the device is inactive; empty: to be opened.
    pub links: Vec<Option<Box<dyn Link>>>,
}

/// Shared by the device, its threads and its owner's handle.
pub(super) struct Shared {
    settings: Mutex<Settings>,
    /// `None` after [`super::NetHandle::close`].
    pub backend: Mutex<Option<Backend>>,
    /// Counts changes of the settings, so that threads look only then.
    version: AtomicU32,
    /// The owner wants a carrier.
    plugged: AtomicBool,
    /// The network works.
    works: AtomicBool,
    pub counters: Counters,
    /// While the device is active.
    signal: Mutex<Option<Arc<dyn Signal>>>,
    /// Wakes the threads.
    wake: Mutex<Vec<Arc<super::wake::Waker>>>,
}

impl Shared {
    pub(super) fn new(mac: MacAddress, network: Arc<dyn Network>) -> Self {
        Self {
            settings: Mutex::new(Settings::new(mac)),
            backend: Mutex::new(Some(Backend {
                network,
                links: Vec::new(),
            })),
            version: AtomicU32::new(0),
            plugged: AtomicBool::new(true),
            works: AtomicBool::new(true),
            counters: Counters::default(),
            signal: Mutex::default(),
            wake: Mutex::default(),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings.lock().clone()
    }

    pub(super) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Changes settings, all or nothing, and tells the threads.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Settings) -> Option<T>) -> Option<T> {
        let result = {
            let mut settings = self.settings.lock();
            let result = change(&mut settings);
            self.version.fetch_add(1, Ordering::Release);
            result
        };
        for waker in &*self.wake.lock() {
            waker.wake();
        }
        result
    }

    pub(super) fn link_up(&self) -> bool {
        self.plugged.load(Ordering::Relaxed) && self.works.load(Ordering::Relaxed)
    }

    pub(super) fn is_plugged(&self) -> bool {
        self.plugged.load(Ordering::Relaxed)
    }

    pub(super) fn set_plugged(&self, plugged: bool) {
        if self.plugged.swap(plugged, Ordering::Relaxed) != plugged {
            self.config_changed();
        }
    }

    pub(super) fn set_works(&self, works: bool) {
        if self.works.swap(works, Ordering::Relaxed) != works {
            self.config_changed();
        }
    }

    pub(super) fn config_changed(&self) {
        let signal = self.signal.lock().clone();
        if let Some(signal) = signal {
            signal.config_changed();
        }
    }

    pub(super) fn activate(&self, signal: Arc<dyn Signal>, wake: Vec<Arc<super::wake::Waker>>) {
        *self.signal.lock() = Some(signal);
        *self.wake.lock() = wake;
    }

    pub(super) fn deactivate(&self) {
        *self.signal.lock() = None;
        self.wake.lock().clear();
    }
}
