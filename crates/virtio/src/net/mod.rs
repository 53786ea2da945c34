//! Network card (virtio 1.2, 5.1) on any [`Network`].
//!
//! One thread serves a queue pair: it moves frames between the rings and the
//! pair's link in batches, with one interrupt for each batch and direction,
//! and sleeps on the link's descriptor and its doorbell. A frame that finds
//! no buffers stays on the link, so that who sends can be held back. What a
//! link cannot do of the guest's offloads is done here in software: what the
//! card offers depends on no network.

mod config;
mod control;
mod counters;
mod filter;
mod receive;
mod shared;
mod transmit;
mod wake;
mod worker;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use devices::{StateError, Version, versioned};
use net::{Link, MacAddress, Network, Rate, TokenBucket};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
};
use crate::queue::VirtQueue;
pub use config::feature;
use control::ControlQueue;
pub use counters::{DirectionStats, NetStats};
pub use filter::{Filter, Modes};
use receive::Receiver;
use shared::{Settings, Shared};
use transmit::Transmitter;
use wake::Waker;
use worker::{Left, Worker};

/// Buffers of a receive or transmit queue.
const QUEUE_SIZE: u16 = 512;
/// Commands of the control queue.
const CONTROL_SIZE: u16 = 64;
/// What the guest reads as its speed if there is no rate, in Mbit/s.
const SPEED: u32 = 10_000;

/// What a card is told.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Its address.
    pub mac: MacAddress,
    /// Queue pairs; those beyond what the network can are not offered.
    pub pairs: u16,
    /// Largest IP packet, in bytes; `None`: the network's.
    pub mtu: Option<u16>,
    /// Bound on frames to the guest; of each queue pair its share.
    pub receive_rate: Option<Rate>,
    /// Bound on frames from the guest, likewise.
    pub transmit_rate: Option<Rate>,
}

/// A virtio network card.
pub struct Net {
    options: NetOptions,
    pairs: u16,
    mtu: u16,
    shared: Arc<Shared>,
    running: Option<Running>,
}

struct Running {
    doorbell: Arc<Bell>,
    threads: Vec<JoinHandle<Left>>,
    /// Queues of the driver that no thread has.
    idle: Vec<VirtQueue>,
    stop: Arc<AtomicBool>,
}

/// The doorbell of all queues.
struct Bell {
    wakers: Vec<Arc<Waker>>,
    control_index: u16,
    control: Mutex<Option<ControlQueue>>,
    shared: Arc<Shared>,
    pairs: u16,
}

impl Doorbell for Bell {
    fn ring(&self, queue: u16) {
        if queue != self.control_index {
            if let Some(waker) = self.wakers.get(usize::from(queue / 2)) {
                waker.wake();
            }
            return;
        }
        if let Some(control) = &mut *self.control.lock() {
            control.serve(&self.shared, self.pairs);
        }
    }

    fn event(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        if queue == self.control_index {
            return None;
        }
        self.wakers.get(usize::from(queue / 2)).map(|w| w.fd())
    }
}

/// A card's owner's way to it.
#[derive(Clone)]
pub struct NetHandle {
    shared: Arc<Shared>,
    description: String,
}

impl NetHandle {
    /// What has crossed the card.
    pub fn stats(&self) -> NetStats {
        self.shared.counters.read()
    }

    /// The card's address, as the guest has set it.
    pub fn mac(&self) -> MacAddress {
        self.shared.settings().filter.mac
    }

    /// What the card is plugged into.
    pub fn network(&self) -> &str {
        &self.description
    }

    /// Whether the guest sees a carrier.
    pub fn link_up(&self) -> bool {
        self.shared.link_up()
    }

    /// Plugs the cable in or pulls it out.
    pub fn set_plugged(&self, plugged: bool) {
        self.shared.set_plugged(plugged);
    }

    /// Leaves the network for good, once the machine has ended.
    pub fn close(&self) {
        *self.shared.backend.lock() = None;
    }

    /// Has the guest tell the network where it is, if its driver can.
    pub fn announce(&self) {
        self.shared.change(|settings| {
            settings.announce = true;
            Some(())
        });
        self.shared.config_changed();
    }
}

impl Net {
    /// A card plugged into `network`, and its owner's way to it.
    pub fn new(network: Arc<dyn Network>, options: NetOptions) -> (Self, NetHandle) {
        let description = network.describe();
        let pairs = options.pairs.clamp(1, network.most_pairs().clamp(1, 64));
        let mtu = network.mtu();
        let mtu = options.mtu.map_or(mtu, |own| own.min(mtu)).max(68);
        let shared = Arc::new(Shared::new(options.mac, network));
        let handle = NetHandle {
            shared: shared.clone(),
            description,
        };
        let card = Self {
            options,
            pairs,
            mtu,
            shared,
            running: None,
        };
        (card, handle)
    }

    /// This pair's share of a rate.
    fn bucket(&self, rate: Option<Rate>, pairs: u16) -> Option<TokenBucket> {
        let rate = rate?;
        let share = Rate {
            bytes_per_second: (rate.bytes_per_second / u64::from(pairs.max(1))).max(1),
            burst: rate.burst,
        };
        Some(TokenBucket::new(share, Instant::now()))
    }

    /// The links by pair; opened anew if there are none.
    fn take_links(&self) -> Result<Vec<Option<Box<dyn Link>>>, ActivateError> {
        let mut backend = self.shared.backend.lock();
        let Some(backend) = &mut *backend else {
            return Ok(Vec::new());
        };
        if backend.links.iter().all(Option::is_none) {
            let links = backend.network.open(self.pairs)?;
            backend.links = links.into_iter().map(Some).collect();
            self.shared.set_works(true);
        }
        Ok(std::mem::take(&mut backend.links))
    }

    fn worker(
        &self,
        index: u16,
        queues: [VirtQueue; 2],
        link: Option<Box<dyn Link>>,
        activation: &Ready,
    ) -> Result<Worker, ActivateError> {
        let [receive, transmit] = queues;
        let features = activation.features;
        let has = |bit: u64| features & bit != 0;
        Ok(Worker {
            index,
            receiver: Receiver::new(receive, has(feature::MRG_RXBUF), has(feature::GUEST_CSUM)),
            transmitter: Transmitter::new(transmit),
            link,
            ram: activation.ram.clone(),
            shared: self.shared.clone(),
            waker: Arc::new(Waker::new().map_err(ActivateError::Thread)?),
            stop: activation.stop.clone(),
            features,
            vlans: has(feature::CTRL_VLAN),
            receive_rate: self.bucket(self.options.receive_rate, activation.pairs),
            transmit_rate: self.bucket(self.options.transmit_rate, activation.pairs),
        })
    }

    /// Takes back what threads leave.
    fn gather(&self, threads: Vec<JoinHandle<Left>>) -> Vec<Option<VirtQueue>> {
        let mut queues = Vec::new();
        let mut backend = self.shared.backend.lock();
        for thread in threads {
            // A panic there was reported already; its queues are lost.
            let Ok(left) = thread.join() else {
                continue;
            };
            let slots = backend.as_mut().map(|backend| &mut backend.links);
            if let Some(slots) = slots {
                let index = usize::from(left.index);
                slots.resize_with(slots.len().max(index + 1), || None);
                slots.splice(index..=index, [left.link]);
            }
            queues.extend(left.queues.map(Some));
        }
        queues
    }
}

/// What all workers of an activation have in common.
struct Ready {
    features: u64,
    ram: Arc<memory::GuestRam>,
    pairs: u16,
    stop: Arc<AtomicBool>,
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 1,
            pci_class: 0x02_0000,
            name: "virtio-net",
        }
    }

    fn features(&self) -> u64 {
        config::offered(self.pairs)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; usize::from(self.pairs) * 2];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let settings = self.shared.settings();
        let rate = self.options.receive_rate.map(|rate| {
            u32::try_from(rate.bytes_per_second / 125_000)
                .unwrap_or(u32::MAX >> 1)
                .clamp(1, u32::MAX >> 1)
        });
        let image = config::image(&config::Config {
            mac: settings.filter.mac,
            link_up: self.shared.link_up(),
            announce: settings.announce,
            pairs: self.pairs,
            mtu: self.mtu,
            speed: rate.unwrap_or(SPEED),
        });
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // All of it is read-only to drivers of this version of virtio.
    }

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let Activation {
            mut queues,
            ram,
            signal,
            features,
        } = activation;
        let has = |bit: u64| features & bit != 0;
        // Virtio 1.2, 5.1.2: without MQ the control queue is the third.
        let pairs = if has(feature::MQ) { self.pairs } else { 1 };
        let control_index = pairs * 2;
        for index in 0..2 {
            if !matches!(queues.get(usize::from(index)), Some(Some(_))) {
                return Err(ActivateError::MissingQueue(index));
            }
        }
        let mut links = self.take_links()?;
        let mut take = |index: u16| queues.get_mut(usize::from(index)).and_then(Option::take);
        let control = take(control_index).filter(|_| has(feature::CTRL_VQ));
        let stop = Arc::new(AtomicBool::new(false));
        let ready = Ready {
            features,
            ram,
            pairs,
            stop: stop.clone(),
        };
        let mut workers = Vec::new();
        for index in 0..pairs {
            if let (Some(receive), Some(transmit)) = (take(index * 2), take(index * 2 + 1)) {
                let link = links.get_mut(usize::from(index)).and_then(Option::take);
                workers.push(self.worker(index, [receive, transmit], link, &ready)?);
            }
        }
        // Those of pairs that this driver does not use.
        if let Some(backend) = &mut *self.shared.backend.lock() {
            backend.links = links;
        }
        let wakers: Vec<_> = workers.iter().map(|worker| worker.waker.clone()).collect();
        self.shared.activate(signal, wakers.clone());
        let doorbell = Arc::new(Bell {
            wakers,
            control_index,
            control: Mutex::new(control.map(|queue| ControlQueue::new(queue, features))),
            shared: self.shared.clone(),
            pairs,
        });
        let mut threads = Vec::new();
        for worker in workers {
            let name = format!("virtio-net {}", worker.index);
            let thread = std::thread::Builder::new()
                .name(name)
                .stack_size(512 * 1024)
                .spawn(move || worker.run());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    stop.store(true, Ordering::SeqCst);
                    doorbell.wakers.iter().for_each(|waker| waker.wake());
                    self.gather(threads);
                    self.shared.deactivate();
                    return Err(ActivateError::Thread(error));
                }
            }
        }
        self.running = Some(Running {
            doorbell: doorbell.clone(),
            threads,
            idle: queues.into_iter().flatten().collect(),
            stop,
        });
        doorbell.ring(control_index);
        if self.shared.settings().announce {
            self.shared.config_changed();
        }
        Ok(doorbell)
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        let Some(running) = self.running.take() else {
            return Vec::new();
        };
        running.stop.store(true, Ordering::SeqCst);
        for waker in &running.doorbell.wakers {
            waker.wake();
        }
        let mut queues = self.gather(running.threads);
        self.shared.deactivate();
        let control = running.doorbell.control.lock().take();
        queues.extend(control.map(|control| Some(control.queue)));
        queues.extend(running.idle.into_iter().map(Some));
        queues
    }

    fn reset(&mut self) {
        let mac = self.options.mac;
        self.shared.change(|settings| {
            *settings = Settings::new(mac);
            Some(())
        });
    }

    fn save(&self) -> DeviceState {
        let settings = self.shared.settings();
        DeviceState::Net(NetState {
            version: Version::current(),
            filter: settings.filter,
            active_pairs: settings.active_pairs,
            guest_offloads: settings.guest_offloads,
            announce: settings.announce,
            plugged: self.shared.is_plugged(),
            stats: self.shared.counters.read(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let invalid = |reason: String| Err(StateError::invalid::<NetState>(reason));
        let DeviceState::Net(state) = state else {
            return invalid("the snapshot has another device here".into());
        };
        if !(1..=self.pairs).contains(&state.active_pairs) {
            return invalid(format!(
                "the guest uses {} queue pairs, and this card has {}",
                state.active_pairs, self.pairs
            ));
        }
        if !state.filter.is_sound()
            || state.guest_offloads.unwrap_or(0) & !feature::GUEST_OFFLOADS != 0
        {
            return invalid("its filters or offloads cannot be".into());
        }
        let settings = Settings {
            filter: state.filter.clone(),
            active_pairs: state.active_pairs,
            guest_offloads: state.guest_offloads,
            // It may be on another host, or behind another port.
            announce: true,
        };
        self.shared.change(|now| {
            *now = settings;
            Some(())
        });
        self.shared.set_plugged(state.plugged);
        self.shared.counters.set(&state.stats);
        // What was on its way belongs to another past.
        if let Some(backend) = &mut *self.shared.backend.lock() {
            backend.links.clear();
        }
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Saved state of a [`Net`]; no frame is on its way when it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Format.
    pub version: Version<NetState>,
    /// Address and filters.
    pub filter: Filter,
    /// Queue pairs in use.
    pub active_pairs: u16,
    /// Which of the negotiated GUEST_ features are on; `None`: all.
    pub guest_offloads: Option<u64>,
    /// The driver is to announce itself.
    pub announce: bool,
    /// The cable is plugged in.
    pub plugged: bool,
    /// Counters.
    pub stats: NetStats,
}
versioned!(NetState, "virtio network card", 1);
