//! Entropy device (virtio 1.2, 5.4): the host's random numbers.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use devices::{StateError, Version, versioned};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, serve_later,
};
use crate::queue::{Chain, QueueError, VirtQueue, write};

const QUEUE_SIZE: u16 = 64;
/// Most bytes given for one buffer; the driver asks again for more.
const REQUEST_MAX: u64 = 64 * 1024;
/// Chains served on the vCPU's own time.
const BUDGET: u32 = 4 * QUEUE_SIZE as u32;

/// A virtio entropy device.
#[derive(Default)]
pub struct Rng {
    active: Option<Arc<Source>>,
}

impl Rng {
    /// A device that gives the host kernel's random numbers.
    pub fn new() -> Self {
        Self::default()
    }
}

/// The queue while the device works.
struct Source {
    queue: Mutex<Option<(VirtQueue, Chain)>>,
    this: Weak<Source>,
    /// See [`serve_later`].
    later: Arc<AtomicBool>,
}

impl Doorbell for Source {
    fn ring(&self, _queue: u16) {
        if !self.serve() {
            serve_later(&self.this, &self.later, Source::serve);
        }
    }
}

impl Source {
    /// Fills what is available; `false` if there may be more.
    fn serve(&self) -> bool {
        let mut guard = self.queue.lock();
        let Some((queue, chain)) = guard.as_mut() else {
            return true;
        };
        match fill(queue, chain) {
            Ok(done) => done,
            Err(error) => {
                queue.signal().needs_reset(&error.to_string());
                queue.break_off();
                true
            }
        }
    }
}

fn fill(queue: &mut VirtQueue, chain: &mut Chain) -> Result<bool, QueueError> {
    if queue.is_broken() {
        return Ok(true);
    }
    let mut left = BUDGET;
    loop {
        while left > 0 && queue.pop(chain)? {
            left -= 1;
            let written = fill_chain(queue, chain)?;
            queue.push(chain.head, written)?;
        }
        queue.notify()?;
        if left == 0 {
            return Ok(false);
        }
        if !queue.enable_notification()? {
            return Ok(true);
        }
    }
}

fn fill_chain(queue: &VirtQueue, chain: &mut Chain) -> Result<u32, QueueError> {
    let mut left = chain.writable_len().min(REQUEST_MAX) as usize;
    let mut written = 0;
    let mut block = [0; 4096];
    let mut rest = &mut chain.writable[..];
    while left > 0 {
        let part = left.min(block.len());
        let Some(random) = block.get_mut(..part) else {
            break;
        };
        if let Err(error) = getrandom::fill(random) {
            return Err(QueueError::Other(format!(
                "the host has no random numbers: {error}"
            )));
        }
        write(queue.ram(), rest, random);
        rest = crate::queue::skip(rest, part as u64);
        left -= part;
        written += part as u32;
    }
    Ok(written)
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 4,
            pci_class: 0xff_0000,
            name: "virtio-rng",
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let queue = activation.queues.into_iter().next().flatten();
        let queue = queue.ok_or(ActivateError::MissingQueue(0))?;
        let source = Arc::new_cyclic(|this| Source {
            queue: Mutex::new(Some((queue, Chain::default()))),
            this: this.clone(),
            later: Arc::default(),
        });
        self.active = Some(source.clone());
        source.ring(0);
        Ok(source)
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        let queue = self
            .active
            .take()
            .and_then(|source| source.queue.lock().take());
        vec![queue.map(|(queue, _)| queue)]
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState {
            version: Version::current(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Rng(_) => Ok(()),
            _ => Err(StateError::invalid::<RngState>(
                "the snapshot has another device here",
            )),
        }
    }
}

/// Saved state of a [`Rng`]: it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Format.
    pub version: Version<RngState>,
}
versioned!(RngState, "virtio entropy device", 1);
