//! The thread of one queue pair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memory::GuestRam;
use net::{Link, LinkError, TokenBucket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::config::abilities;
use super::receive::{Delivery, Receiver};
use super::shared::{Settings, Shared};
use super::transmit::{Next, Stop, Transmitter};
use super::wake::Waker;
use crate::queue::{QueueError, VirtQueue};

/// Frames in one direction before the other has its turn.
const BATCH: usize = 64;
/// How often a frame is tried again that nothing announces room for.
const RETRY: Duration = Duration::from_millis(1);
/// Longest time to look for work before sleeping.
const SPIN_MAX: Duration = Duration::from_micros(150);
/// A sleep so short, with the time it takes to wake, was not worth it.
const SHORT_SLEEP: Duration = Duration::from_micros(300);
/// First such time when looking begins to pay.
const SPIN_FIRST: Duration = Duration::from_micros(20);

/// The state of the thread.
pub(super) struct Worker {
    pub index: u16,
    pub receiver: Receiver,
    pub transmitter: Transmitter,
    /// `None` after it has failed.
    pub link: Option<Box<dyn Link>>,
    pub ram: Arc<GuestRam>,
    pub shared: Arc<Shared>,
    pub waker: Arc<Waker>,
    pub stop: Arc<AtomicBool>,
    /// Negotiated features.
    pub features: u64,
    /// The driver filters VLANs.
    pub vlans: bool,
    pub receive_rate: Option<TokenBucket>,
    pub transmit_rate: Option<TokenBucket>,
}

/// What a thread leaves behind.
pub(super) struct Left {
    pub index: u16,
    pub queues: [VirtQueue; 2],
    pub link: Option<Box<dyn Link>>,
}

/// What the thread waits for.
#[derive(Default)]
struct Wait {
    /// The link's descriptor, too.
    link: bool,
    /// Frames of the guest wait for the rate.
    transmit_limited: bool,
    until: Option<Instant>,
}

impl Wait {
    fn at_most(&mut self, until: Instant) {
        self.until = Some(self.until.map_or(until, |before| before.min(until)));
    }
}

impl Worker {
    pub(super) fn run(mut self) -> Left {
        let mut settings = self.shared.settings();
        let mut version = None;
        let mut broken = false;
        let mut spin = Duration::ZERO;
        while !self.stop.load(Ordering::SeqCst) {
            let now = self.shared.version();
            if version != Some(now) {
                version = Some(now);
                settings = self.shared.settings();
                self.apply(&settings);
            }
            let mut wait = Wait::default();
            if !broken {
                match self.work(&settings, &mut wait, spin) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(Stop::Queue(error)) => {
                        broken = true;
                        let signal = self.receiver.queue.signal();
                        signal.needs_reset(&error.to_string());
                    }
                    Err(Stop::Link(error)) => {
                        self.link_failed(&error);
                        continue;
                    }
                }
            }
            let asleep = Instant::now();
            self.sleep(&wait);
            spin = next_spin(spin, asleep.elapsed());
        }
        Left {
            index: self.index,
            queues: [self.receiver.queue, self.transmitter.into_queue()],
            link: self.link,
        }
    }

    fn is_active(&self, settings: &Settings) -> bool {
        self.index < settings.active_pairs
    }

    /// Tells the link what the driver has set.
    fn apply(&mut self, settings: &Settings) {
        let active = self.is_active(settings);
        let Some(link) = &mut self.link else {
            return;
        };
        link.set_guest_abilities(abilities(settings.guest_offloads.unwrap_or(self.features)));
        if let Err(error) = link.set_active(active) {
            self.link_failed(&error);
        }
    }

    fn link_failed(&mut self, error: &LinkError) {
        tracing::warn!(%error, "the card loses its carrier");
        self.link = None;
        self.shared.set_works(false);
    }

    /// Moves frames both ways; `false` if there is nothing to do, and then
    /// `wait` says for what to wait.
    fn work(&mut self, settings: &Settings, wait: &mut Wait, spin: Duration) -> Result<bool, Stop> {
        let active = self.is_active(settings);
        // First, so that what became ready is seen before a sleep: nothing
        // announces it a second time.
        let now = Instant::now();
        let mut due = self.link.as_mut().and_then(|link| link.turn(now));
        let mut busy = self.transmit(wait)?;
        busy |= active && self.receive(settings, wait)?;
        // A frame that waits for the rate is no reason to stay awake.
        let look = wait.link && !wait.transmit_limited;
        if busy || (look && self.spin(spin, &mut due)?) {
            return Ok(true);
        }
        self.transmitter.notify()?;
        if let Some(due) = due {
            wait.at_most(due);
        }
        if self.transmitter.is_waiting() {
            wait.at_most(now + RETRY);
        }
        Ok(self.receiver.listen()? || self.listen(wait)?)
    }

    /// Looks for frames for a while; whether there are any. Meanwhile the
    /// driver need not ring, and need not hear of what was sent.
    fn spin(&mut self, time: Duration, due: &mut Option<Instant>) -> Result<bool, Stop> {
        if time.is_zero() {
            return Ok(false);
        }
        let mut now = Instant::now();
        let end = now + time;
        loop {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            if let Some(link) = &mut self.link {
                *due = link.turn(now);
                if link.incoming().map_err(Stop::Link)?.is_some() {
                    return Ok(true);
                }
            }
            if !self.transmitter.is_waiting() && self.transmitter.has_frames() {
                return Ok(true);
            }
            now = Instant::now();
            if self.stop.load(Ordering::Relaxed) || now >= end {
                return Ok(false);
            }
        }
    }

    /// Asks for notifications of frames, but for none that cannot go yet.
    fn listen(&mut self, wait: &Wait) -> Result<bool, QueueError> {
        if self.transmitter.is_waiting() || wait.transmit_limited {
            return Ok(false);
        }
        self.transmitter.listen()
    }

    /// Frames for the guest.
    fn receive(&mut self, settings: &Settings, wait: &mut Wait) -> Result<bool, Stop> {
        let mut delivered = false;
        for _ in 0..BATCH {
            if self.receiver.is_starved()? {
                break;
            }
            if let Some(left) = limited(&mut self.receive_rate) {
                wait.at_most(Instant::now() + left);
                break;
            }
            let Some(link) = &mut self.link else {
                break;
            };
            let Some(frame) = link.incoming().map_err(Stop::Link)? else {
                wait.link = true;
                break;
            };
            let length = frame.bytes.len();
            let counters = &self.shared.counters;
            if !self.shared.link_up() {
                counters.received.dropped();
            } else if !settings.filter.wants(frame.bytes, self.vlans) {
                counters.filtered();
            } else {
                match self.receiver.deliver(&frame, &self.ram)? {
                    Delivery::Starved => break,
                    Delivery::TooLong => counters.received.error(),
                    Delivery::Done => {
                        delivered = true;
                        counters.received.crossed(length);
                        spend(&mut self.receive_rate, length);
                    }
                }
            }
            link.consume();
        }
        if delivered {
            self.receiver.queue.notify()?;
        }
        // After a full batch there may be more.
        let more = !wait.link && wait.until.is_none() && self.link.is_some();
        Ok(delivered || (more && !self.receiver.is_starved()?))
    }

    /// Frames from the guest.
    fn transmit(&mut self, wait: &mut Wait) -> Result<bool, Stop> {
        let mut busy = false;
        let mut sent = 0;
        for _ in 0..BATCH {
            if let Some(left) = limited(&mut self.transmit_rate) {
                wait.transmit_limited = true;
                wait.at_most(Instant::now() + left);
                break;
            }
            let up = self.shared.link_up();
            let link = self.link.as_deref_mut().filter(|_| up);
            let counters = &self.shared.counters.sent;
            match self.transmitter.next(link, &self.ram, counters)? {
                Next::Went(bytes) => {
                    busy = true;
                    sent += bytes;
                    spend(&mut self.transmit_rate, bytes);
                }
                Next::Full | Next::Nothing => break,
            }
        }
        self.transmitter.give_back(sent)?;
        Ok(busy)
    }

    fn sleep(&mut self, wait: &Wait) {
        if !self.waker.try_sleep() {
            return;
        }
        let left = wait
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().min(3600) as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        let waker = self.waker.fd();
        let mut readable = true;
        let events = PollFlags::IN;
        // A failed poll is an interrupted one: looked again.
        match self.link.as_ref().filter(|_| wait.link) {
            Some(link) => {
                let ready = link.ready_fd();
                let mut fds = [
                    PollFd::from_borrowed_fd(waker, events),
                    PollFd::from_borrowed_fd(ready, events),
                ];
                if poll(&mut fds, left.as_ref()).is_ok() {
                    readable = !fds[0].revents().is_empty();
                }
            }
            None => {
                let mut fds = [PollFd::from_borrowed_fd(waker, events)];
                if poll(&mut fds, left.as_ref()).is_ok() {
                    readable = !fds[0].revents().is_empty();
                }
            }
        }
        self.waker.awake(readable);
    }
}

fn limited(rate: &mut Option<TokenBucket>) -> Option<Duration> {
    rate.as_mut()?.wait(Instant::now())
}

fn spend(rate: &mut Option<TokenBucket>, bytes: usize) {
    if let Some(rate) = rate {
        rate.spend(bytes, Instant::now());
    }
}

/// How long to look for work before the next sleep: longer when the last
/// sleep was so short that looking would have met its end, else shorter.
fn next_spin(spin: Duration, slept: Duration) -> Duration {
    if slept <= SHORT_SLEEP {
        (spin * 2).clamp(SPIN_FIRST, SPIN_MAX)
    } else if spin > SPIN_FIRST {
        spin / 2
    } else {
        Duration::ZERO
    }
}
