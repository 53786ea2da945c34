//! Split virtqueues as devices use them: checked chains in, used buffers and
//! interrupts out.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use disk::GuestRange;
use memory::GuestRam;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::device::Signal;

/// Most descriptors in one chain. Drivers may make indirect tables larger
/// than the queue; none needs more parts than a system call takes.
const MAX_CHAIN: usize = disk::MAX_RANGES + 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// How a driver broke the rules of a queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The rings are not in RAM, misaligned, or of a bad size.
    #[error("its rings are not in RAM, not aligned, or of a wrong size")]
    Rings,
    /// More buffers made available than the queue has descriptors.
    #[error("more buffers are available than the queue can hold")]
    Overrun,
    /// A chain without descriptors, without end, or with a bad table.
    #[error("descriptor chain {head} is broken")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer outside RAM.
    #[error("descriptor chain {head}: buffer {gpa:#x}+{len:#x} is not in RAM")]
    Buffer {
        /// Index of its first descriptor.
        head: u16,
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u32,
    },
    /// The request in a chain is malformed.
    #[error("descriptor chain {head}: {what}")]
    Request {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// `virtio-queue` found something else.
    #[error("{0}")]
    Other(String),
}

/// A chain of descriptors taken from a queue: buffers in RAM, none empty.
/// Reused from chain to chain, so that requests allocate nothing.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of the first descriptor; identifies the chain when it is used.
    pub head: u16,
    /// Buffers the device reads, in order.
    pub readable: Vec<GuestRange>,
    /// Buffers the device writes, in order.
    pub writable: Vec<GuestRange>,
}

impl Chain {
    /// Bytes in all readable buffers.
    pub fn readable_len(&self) -> u64 {
        len(&self.readable)
    }

    /// Bytes in all writable buffers.
    pub fn writable_len(&self) -> u64 {
        len(&self.writable)
    }
}

fn len(ranges: &[GuestRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.len)).sum()
}

/// Drops the first `count` bytes of a buffer.
pub(crate) fn skip(ranges: &mut [GuestRange], mut count: u64) -> &mut [GuestRange] {
    let mut first = 0;
    for range in ranges.iter_mut() {
        if u64::from(range.len) > count {
            range.gpa += count;
            range.len -= count as u32;
            break;
        }
        count -= u64::from(range.len);
        first += 1;
    }
    ranges.get_mut(first..).unwrap_or_default()
}

/// Copies the start of a buffer out; the number of bytes there were.
pub(crate) fn read(ram: &GuestRam, ranges: &[GuestRange], out: &mut [u8]) -> usize {
    let mut done = 0;
    for range in ranges {
        let rest = out.get_mut(done..).unwrap_or_default();
        let count = rest.len().min(range.len as usize);
        if count == 0 || ram.read(range.gpa, &mut rest[..count]).is_err() {
            break;
        }
        done += count;
    }
    done
}

/// Copies to the start of a buffer; the number of bytes that fitted.
pub(crate) fn write(ram: &GuestRam, ranges: &[GuestRange], data: &[u8]) -> usize {
    let mut done = 0;
    for range in ranges {
        let rest = data.get(done..).unwrap_or_default();
        let count = rest.len().min(range.len as usize);
        if count == 0 || ram.write(range.gpa, &rest[..count]).is_err() {
            break;
        }
        done += count;
    }
    done
}

/// A queue as its driver set it up, and how far both sides have come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Descriptors.
    pub size: u16,
    /// Enabled by the driver.
    pub enabled: bool,
    /// MSI-X vector; 0xffff: none.
    pub vector: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Index of the next available entry to take.
    pub next_available: u16,
    /// Index of the next used entry to give.
    pub next_used: u16,
}

/// A queue at work.
pub struct VirtQueue {
    queue: Queue,
    index: u16,
    /// Chains taken and not given back.
    taken: u16,
    /// Chains given back since the last [`Self::notify`].
    given: u16,
    broken: bool,
    ram: Arc<GuestRam>,
    signal: Arc<dyn Signal>,
}

impl VirtQueue {
    /// A queue as set up by the driver.
    ///
    /// # Errors
    /// [`QueueError::Rings`].
    pub fn new(
        index: u16,
        state: &QueueState,
        max_size: u16,
        event_idx: bool,
        ram: Arc<GuestRam>,
        signal: Arc<dyn Signal>,
    ) -> Result<Self, QueueError> {
        let queue = Queue::try_from(virtio_queue::QueueState {
            max_size,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: event_idx,
            size: state.size,
            ready: true,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        })
        .map_err(|_| QueueError::Rings)?;
        // An available ring at address 0 is not ready to `virtio-queue`.
        if state.available == 0 || !queue.is_valid(ram.vm()) {
            return Err(QueueError::Rings);
        }
        Ok(Self {
            queue,
            index,
            taken: 0,
            given: 0,
            broken: false,
            ram,
            signal,
        })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Descriptors in its table.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The way to interrupt the guest.
    pub fn signal(&self) -> &Arc<dyn Signal> {
        &self.signal
    }

    /// Indices of the next available and the next used entry.
    pub fn position(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }

    /// Whether buffers are available; costs one load.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn has_available(&self) -> Result<bool, QueueError> {
        let index = self.queue.avail_idx(self.ram.vm(), Ordering::Acquire);
        Ok(index.map_err(other)?.0 != self.queue.next_avail())
    }

    /// Takes the next available chain; `false` if there is none.
    ///
    /// # Errors
    /// [`QueueError`]: the driver broke the rules, the device needs a reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let mut available = match self.queue.iter(self.ram.vm()) {
            Ok(available) => available,
            Err(virtio_queue::Error::InvalidAvailRingIndex) => return Err(QueueError::Overrun),
            Err(error) => return Err(other(error)),
        };
        let Some(descriptors) = available.next() else {
            return Ok(false);
        };
        if self.taken >= self.queue.size() {
            return Err(QueueError::Overrun);
        }
        chain.head = descriptors.head_index();
        chain.readable.clear();
        chain.writable.clear();
        let head = chain.head;
        let broken = QueueError::Chain { head };
        // The iterator ends silently at whatever is wrong; then the last
        // descriptor promises another one.
        let mut complete = false;
        for (count, descriptor) in descriptors.enumerate() {
            let range = GuestRange {
                gpa: descriptor.addr().0,
                len: descriptor.len(),
            };
            if count >= MAX_CHAIN {
                return Err(broken);
            }
            complete = !descriptor.has_next();
            if range.len == 0 {
                continue;
            }
            if self.ram.range_ptr(range.gpa, range.len.into()).is_none() {
                let GuestRange { gpa, len } = range;
                return Err(QueueError::Buffer { head, gpa, len });
            }
            if descriptor.is_write_only() {
                chain.writable.push(range);
            } else if chain.writable.is_empty() {
                chain.readable.push(range);
            } else {
                // Virtio 1.2, 2.7.4.2: readable descriptors come first.
                return Err(broken);
            }
        }
        if !complete {
            return Err(broken);
        }
        self.taken += 1;
        Ok(true)
    }

    /// Counts chains as taken that were taken before the device was stopped
    /// and are still to be given back.
    pub fn adopt(&mut self, chains: usize) {
        let chains = u16::try_from(chains).unwrap_or(u16::MAX);
        self.taken = self.taken.saturating_add(chains);
    }

    /// Marks the queue as not to be used until the device is reset.
    pub fn break_off(&mut self) {
        self.broken = true;
    }

    /// Whether [`Self::break_off`] was called.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Puts back the chain taken last, unused.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
        self.taken = self.taken.saturating_sub(1);
    }

    /// Gives a chain back, with the number of bytes written to its start.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.taken = self.taken.saturating_sub(1);
        self.given = self.given.wrapping_add(1);
        self.queue
            .add_used(self.ram.vm(), head, written)
            .map_err(other)
    }

    /// Gives chains back, with the bytes written to each, so that the driver
    /// sees all of them at once.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn push_all(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(head, written), before)) = chains.split_last() else {
            return Ok(());
        };
        let (size, mut next) = (self.queue.size(), self.queue.next_used());
        for &(head, written) in before {
            let place = self.queue.used_ring() + 4 + u64::from(next % size.max(1)) * 8;
            let element = u64::from(written) << 32 | u64::from(head);
            self.ram
                .vm()
                .write_obj(element.to_le(), GuestAddress(place))
                .map_err(|error| QueueError::Other(error.to_string()))?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let count = u16::try_from(before.len()).unwrap_or(u16::MAX);
        self.taken = self.taken.saturating_sub(count);
        self.given = self.given.wrapping_add(count);
        // Publishes them all with its index.
        self.push(head, written)
    }

    /// Interrupts the guest if it wants to know of what was pushed since the
    /// last call. Once per batch.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let given = std::mem::take(&mut self.given);
        // The driver looks at the used ring after it has said what it wants.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let event_idx = self.queue.event_idx_enabled();
        let place = match event_idx {
            true => ring + 4 + u64::from(self.queue.size()) * 2,
            false => ring,
        };
        let value: u16 = self
            .ram
            .vm()
            .load(GuestAddress(place), Ordering::Relaxed)
            .map_err(|error| QueueError::Other(error.to_string()))?;
        let value = u16::from_le(value);
        let wanted = match event_idx {
            // Virtio 1.2, 2.7.10: whether `used_event` was passed.
            true => {
                let since = self.queue.next_used().wrapping_sub(value).wrapping_sub(1);
                since < given
            }
            false => value & AVAIL_NO_INTERRUPT == 0,
        };
        if wanted {
            self.signal.used(self.index);
        }
        Ok(())
    }

    /// Asks the driver to notify of buffers beyond those that are available
    /// now; the index up to which they are. If [`Self::available_index`] is
    /// another one afterwards, the driver may not notify.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn notify_beyond(&mut self) -> Result<u16, QueueError> {
        let next = self.queue.next_avail();
        let seen = self.available_index()?;
        // The event index is where the queue stands.
        self.queue.set_next_avail(seen);
        let enabled = self.queue.enable_notification(self.ram.vm());
        self.queue.set_next_avail(next);
        enabled.map_err(other)?;
        Ok(seen)
    }

    /// Index up to which buffers are available.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn available_index(&self) -> Result<u16, QueueError> {
        let index = self.queue.avail_idx(self.ram.vm(), Ordering::Acquire);
        Ok(index.map_err(other)?.0)
    }

    /// Asks the driver to notify of new buffers; `true` if there are some
    /// already, which it will not notify of.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.queue.enable_notification(self.ram.vm()).map_err(other)
    }

    /// Tells the driver that it need not notify.
    ///
    /// # Errors
    /// [`QueueError::Other`].
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        self.queue
            .disable_notification(self.ram.vm())
            .map_err(other)
    }
}

fn other(error: virtio_queue::Error) -> QueueError {
    QueueError::Other(error.to_string())
}
