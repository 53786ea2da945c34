//! Console (virtio 1.2, 5.3), one port: what the guest writes goes to a
//! [`ConsoleSink`], what the host types goes in by a [`ConsoleInput`].

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use devices::{StateError, Version, versioned};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, Signal, VirtioDevice,
    read_config_bytes, serve_later,
};
use crate::queue::{Chain, QueueError, VirtQueue, read, skip, write};

/// Receive queue of port 0.
const RECEIVE: u16 = 0;
/// Transmit queue of port 0.
const TRANSMIT: u16 = 1;
pub(crate) const QUEUE_SIZE: u16 = 128;
/// Chains served on the vCPU's own time.
const BUDGET: u32 = 4 * QUEUE_SIZE as u32;
/// Input kept while the guest has no buffers for it.
pub(crate) const INPUT_MAX: usize = 64 * 1024;

const FEATURE_SIZE: u64 = 1 << 0;
const FEATURE_EMERGENCY_WRITE: u64 = 1 << 2;
/// Offset of `emerg_wr` in the configuration.
const EMERGENCY_WRITE: u64 = 8;

/// Where a console's output goes.
pub trait ConsoleSink: Send + Sync {
    /// The guest wrote this. Called on a vCPU thread; blocking holds the
    /// guest's output back.
    fn output(&self, data: &[u8]);
    /// Whether it takes output now. Output that it does not take stays with
    /// the guest, until the host asks for it.
    fn ready(&self) -> bool {
        true
    }
    /// [`ConsoleInput::push`] took less than offered, and has room again.
    fn input_ready(&self) {}
}

/// What host and device share.
struct Port {
    sink: Arc<dyn ConsoleSink>,
    receive: Mutex<Receive>,
    transmit: Mutex<Transmit>,
    /// Columns and rows, and whom to tell of changes.
    size: Mutex<(u16, u16)>,
    signal: Mutex<Option<Arc<dyn Signal>>>,
    this: Weak<Port>,
    /// See [`serve_later`].
    later: Arc<AtomicBool>,
}

/// The way from the host to the guest.
#[derive(Default)]
pub(crate) struct Receive {
    pub queue: Option<VirtQueue>,
    chain: Chain,
    pub pending: VecDeque<u8>,
    /// Input was refused for want of room.
    refused: bool,
}

/// The way from the guest to the host.
#[derive(Default)]
pub(crate) struct Transmit {
    pub queue: Option<VirtQueue>,
    chain: Chain,
    data: Vec<u8>,
}

/// A virtio console with one port.
pub struct Console {
    port: Arc<Port>,
}

/// The host's side of a [`Console`]'s input. Clones are the same console.
#[derive(Clone)]
pub struct ConsoleInput(Arc<Port>);

impl Console {
    /// A console whose output goes to `sink`, and the way to its input.
    pub fn new(sink: Arc<dyn ConsoleSink>) -> (Self, ConsoleInput) {
        let port = Arc::new_cyclic(|this| Port {
            sink,
            receive: Mutex::default(),
            transmit: Mutex::default(),
            size: Mutex::new((80, 25)),
            signal: Mutex::new(None),
            this: this.clone(),
            later: Arc::default(),
        });
        (Self { port: port.clone() }, ConsoleInput(port))
    }
}

impl ConsoleInput {
    /// Gives the guest input; the number of bytes taken. The rest must wait
    /// until [`ConsoleSink::input_ready`].
    pub fn push(&self, data: &[u8]) -> usize {
        self.0.receive.lock().push(data)
    }

    /// The size of the terminal has changed.
    pub fn set_size(&self, columns: u16, rows: u16) {
        *self.0.size.lock() = (columns, rows);
        let signal = self.0.signal.lock().clone();
        if let Some(signal) = signal {
            signal.config_changed();
        }
    }
}

impl Doorbell for Port {
    fn ring(&self, queue: u16) {
        match queue {
            RECEIVE => {
                let tell = self.receive.lock().more_buffers();
                if tell {
                    self.sink.input_ready();
                }
            }
            TRANSMIT if !self.transmit_some() => {
                serve_later(&self.this, &self.later, Port::transmit_some)
            }
            _ => {}
        }
    }
}

impl Port {
    /// Sends out what is available; `false` if there may be more.
    fn transmit_some(&self) -> bool {
        self.transmit.lock().serve(&*self.sink)
    }
}

impl Receive {
    /// Takes input for the guest; the number of bytes there was room for.
    pub fn push(&mut self, data: &[u8]) -> usize {
        let mut taken = 0;
        loop {
            let rest = data.get(taken..).unwrap_or_default();
            let room = INPUT_MAX.saturating_sub(self.pending.len());
            let count = room.min(rest.len());
            if count == 0 {
                // Only now: what was just moved to the guest made room that
                // no notification would tell of.
                self.refused |= !rest.is_empty();
                return taken;
            }
            self.pending.extend(rest.iter().take(count));
            taken += count;
            self.serve();
        }
    }

    /// The guest has given buffers; whether to tell the host of room that it
    /// was refused before.
    pub fn more_buffers(&mut self) -> bool {
        self.serve();
        self.pending.len() < INPUT_MAX && std::mem::take(&mut self.refused)
    }

    /// Moves pending input to the guest's buffers.
    fn serve(&mut self) {
        if let Err(error) = self.try_serve()
            && let Some(queue) = &mut self.queue
        {
            queue.break_off();
            queue.signal().needs_reset(&error.to_string());
        }
    }

    fn try_serve(&mut self) -> Result<(), QueueError> {
        let Some(queue) = self.queue.as_mut().filter(|queue| !queue.is_broken()) else {
            return Ok(());
        };
        loop {
            while !self.pending.is_empty() && queue.pop(&mut self.chain)? {
                if self.chain.writable.is_empty() {
                    return Err(QueueError::Request {
                        head: self.chain.head,
                        what: "the receive buffer cannot be written",
                    });
                }
                let written = take_input(queue, &mut self.chain, &mut self.pending);
                queue.push(self.chain.head, written)?;
            }
            queue.notify()?;
            // Without input the driver's buffers are of no interest, but then
            // no notification was asked for and none will be missed.
            if !queue.enable_notification()? || self.pending.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Fills a chain from the pending input; the bytes written.
fn take_input(queue: &VirtQueue, chain: &mut Chain, pending: &mut VecDeque<u8>) -> u32 {
    let mut written = 0;
    let mut rest = &mut chain.writable[..];
    while !rest.is_empty() && !pending.is_empty() {
        let count = write(queue.ram(), rest, pending.as_slices().0);
        if count == 0 {
            break;
        }
        pending.drain(..count);
        rest = skip(rest, count as u64);
        written += count as u32;
    }
    written
}

impl Transmit {
    /// Gives the sink what is available; `false` if there may be more.
    pub fn serve(&mut self, sink: &dyn ConsoleSink) -> bool {
        self.try_serve(sink).unwrap_or_else(|error| {
            if let Some(queue) = &mut self.queue {
                queue.break_off();
                queue.signal().needs_reset(&error.to_string());
            }
            true
        })
    }

    fn try_serve(&mut self, sink: &dyn ConsoleSink) -> Result<bool, QueueError> {
        let Some(queue) = self.queue.as_mut().filter(|queue| !queue.is_broken()) else {
            return Ok(true);
        };
        let mut left = BUDGET;
        loop {
            while left > 0 && sink.ready() && queue.pop(&mut self.chain)? {
                left -= 1;
                let mut rest = &mut self.chain.readable[..];
                self.data.resize(4096, 0);
                while !rest.is_empty() {
                    let count = read(queue.ram(), rest, &mut self.data);
                    if count == 0 {
                        break;
                    }
                    sink.output(self.data.get(..count).unwrap_or_default());
                    rest = skip(rest, count as u64);
                }
                queue.push(self.chain.head, 0)?;
            }
            queue.notify()?;
            if left == 0 {
                return Ok(false);
            }
            if !queue.enable_notification()? || !sink.ready() {
                return Ok(true);
            }
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 3,
            pci_class: 0x07_8000,
            name: "virtio-console",
        }
    }

    fn features(&self) -> u64 {
        FEATURE_SIZE | FEATURE_EMERGENCY_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = *self.port.size.lock();
        let mut image = [0; 12];
        let fields = [(0, columns), (2, rows), (4, 1)];
        for (at, value) in fields {
            let bytes: [u8; 2] = value.to_le_bytes();
            image[at] = bytes[0];
            image[at + 1] = bytes[1];
        }
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Works before and without activation (virtio 1.2, 5.3.4).
        if let (EMERGENCY_WRITE, Some(&byte)) = (offset, data.first()) {
            self.port.sink.output(&[byte]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let mut queues = activation.queues.into_iter();
        let mut next = |index| {
            let queue = queues.next().flatten();
            queue.ok_or(ActivateError::MissingQueue(index))
        };
        let (receive, transmit) = (next(RECEIVE)?, next(TRANSMIT)?);
        self.port.receive.lock().queue = Some(receive);
        self.port.transmit.lock().queue = Some(transmit);
        *self.port.signal.lock() = Some(activation.signal);
        self.port.ring(TRANSMIT);
        self.port.ring(RECEIVE);
        Ok(self.port.clone())
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        *self.port.signal.lock() = None;
        let receive = self.port.receive.lock().queue.take();
        let transmit = self.port.transmit.lock().queue.take();
        vec![receive, transmit]
    }

    fn reset(&mut self) {
        // Input is kept: drivers reset the device before they use it, and what
        // was piped in before belongs to them.
    }

    fn save(&self) -> DeviceState {
        let (columns, rows) = *self.port.size.lock();
        DeviceState::Console(ConsoleState {
            version: Version::current(),
            columns,
            rows,
            pending: self.port.receive.lock().pending.iter().copied().collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Console(state) = state else {
            return Err(StateError::invalid::<ConsoleState>(
                "the snapshot has another device here",
            ));
        };
        *self.port.size.lock() = (state.columns, state.rows);
        self.port.receive.lock().pending = state.pending.iter().copied().take(INPUT_MAX).collect();
        Ok(())
    }
}

/// Saved state of a [`Console`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Format.
    pub version: Version<ConsoleState>,
    /// Width of the terminal.
    pub columns: u16,
    /// Height of the terminal.
    pub rows: u16,
    /// Input that the guest has not taken.
    pub pending: Vec<u8>,
}
versioned!(ConsoleState, "virtio console", 1);
