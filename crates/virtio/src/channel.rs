//! A named channel between host and guest: a virtio console device with
//! MULTIPORT (virtio 1.2, 5.3) that has one port, which programs in the guest
//! find by its name (`/dev/virtio-ports/NAME`).
//!
//! Port 0, which would be a console, is not there: the console is a device of
//! its own, whose size is then in its configuration and not in a control
//! message, whose fields drivers do not read in the order of the standard.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use devices::{StateError, Version, versioned};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::console::{ConsoleSink, INPUT_MAX, QUEUE_SIZE, Receive, Transmit};
use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
    serve_later,
};
use crate::queue::{Chain, QueueError, VirtQueue, read, write};

// Queues 0 and 1 are of port 0, which is never added.
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const RECEIVE: u16 = 4;
const TRANSMIT: u16 = 5;
const QUEUES: u16 = 6;

const FEATURE_MULTIPORT: u64 = 1 << 1;
/// The number of the port that there is.
const PORT: u32 = 1;
/// `max_nr_ports` of the configuration.
const MOST_PORTS: u32 = 2;
/// Messages kept while the driver has no buffers for them.
const MESSAGES_MAX: usize = 64;
/// Control chains served on the vCPU's own time.
const BUDGET: u32 = 64;

/// Events of control messages (virtio 1.2, 5.3.6.2).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// The host's end of a [`Channel`].
pub trait ChannelSink: ConsoleSink {
    /// A program in the guest has opened the port, or closed it.
    fn guest_open(&self, open: bool);
}

/// What host and device share.
struct Port {
    name: String,
    sink: Arc<dyn ChannelSink>,
    receive: Mutex<Receive>,
    transmit: Mutex<Transmit>,
    control: Mutex<Control>,
    this: Weak<Port>,
    /// See [`serve_later`].
    later: Arc<AtomicBool>,
}

#[derive(Default)]
struct Control {
    receive: Option<VirtQueue>,
    transmit: Option<VirtQueue>,
    chain: Chain,
    /// Messages for the driver.
    pending: VecDeque<Vec<u8>>,
    guest_open: bool,
}

/// A virtio console device with one named port.
pub struct Channel {
    port: Arc<Port>,
}

/// The host's way into a [`Channel`]. Clones are the same channel.
#[derive(Clone)]
pub struct ChannelInput(Arc<Port>);

impl Channel {
    /// A channel that the guest knows by `name`.
    pub fn new(name: &str, sink: Arc<dyn ChannelSink>) -> (Self, ChannelInput) {
        let port = Arc::new_cyclic(|this| Port {
            name: name.into(),
            sink,
            receive: Mutex::default(),
            transmit: Mutex::default(),
            control: Mutex::default(),
            this: this.clone(),
            later: Arc::default(),
        });
        (Self { port: port.clone() }, ChannelInput(port))
    }
}

impl ChannelInput {
    /// Gives the guest input; the number of bytes taken. The rest must wait
    /// until [`ConsoleSink::input_ready`].
    pub fn push(&self, data: &[u8]) -> usize {
        self.0.receive.lock().push(data)
    }

    /// The sink is [`ConsoleSink::ready`] again.
    pub fn output_ready(&self) {
        self.0.ring(TRANSMIT);
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
            TRANSMIT | CONTROL_TRANSMIT | CONTROL_RECEIVE if !self.serve(queue) => {
                serve_later(&self.this, &self.later, Port::serve_all);
            }
            _ => {}
        }
    }
}

impl Port {
    fn serve(&self, queue: u16) -> bool {
        if queue == TRANSMIT {
            self.transmit.lock().serve(&*self.sink)
        } else {
            self.serve_control()
        }
    }

    fn serve_all(&self) -> bool {
        // Both, whatever the first one has left.
        let control = self.serve_control();
        self.transmit.lock().serve(&*self.sink) && control
    }

    fn serve_control(&self) -> bool {
        let mut control = self.control.lock();
        let before = control.guest_open;
        let done = control.serve(&self.name).unwrap_or_else(|error| {
            let Control {
                receive, transmit, ..
            } = &mut *control;
            for queue in [receive, transmit].into_iter().flatten() {
                queue.break_off();
                queue.signal().needs_reset(&error.to_string());
            }
            true
        });
        // Under the lock, so that the last change is told last.
        if before != control.guest_open {
            self.sink.guest_open(control.guest_open);
        }
        done
    }
}

impl Control {
    /// Answers the driver's messages; `false` if there may be more.
    fn serve(&mut self, name: &str) -> Result<bool, QueueError> {
        let done = self.take_messages(name)?;
        self.send()?;
        Ok(done)
    }

    fn take_messages(&mut self, name: &str) -> Result<bool, QueueError> {
        let Some(mut queue) = self.transmit.take() else {
            return Ok(true);
        };
        let result = self.take_from(&mut queue, name);
        self.transmit = Some(queue);
        result
    }

    fn take_from(&mut self, queue: &mut VirtQueue, name: &str) -> Result<bool, QueueError> {
        if queue.is_broken() {
            return Ok(true);
        }
        let mut left = BUDGET;
        loop {
            while left > 0 && queue.pop(&mut self.chain)? {
                left -= 1;
                let mut message = [0; 8];
                let length = read(queue.ram(), &self.chain.readable, &mut message);
                if length == message.len() {
                    self.message(message, name);
                }
                if self.pending.len() > MESSAGES_MAX {
                    return Err(QueueError::Request {
                        head: self.chain.head,
                        what: "the driver sends messages and takes no answers",
                    });
                }
                queue.push(self.chain.head, 0)?;
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

    /// One message of the driver (virtio 1.2, 5.3.6.2).
    fn message(&mut self, bytes: [u8; 8], name: &str) {
        let [a, b, c, d, e, f, g, h] = bytes;
        let id = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([g, h]);
        match u16::from_le_bytes([e, f]) {
            event::DEVICE_READY if value == 1 => self.answer(event::PORT_ADD, 1, &[]),
            event::PORT_READY if id == PORT && value == 1 => {
                let mut text = name.as_bytes().to_vec();
                text.push(0);
                self.answer(event::PORT_NAME, 1, &text);
                // The host's end is always open: who reads a closed port in
                // the guest would have to poll.
                self.answer(event::PORT_OPEN, 1, &[]);
            }
            event::PORT_OPEN if id == PORT => self.guest_open = value == 1,
            _ => {}
        }
    }

    fn answer(&mut self, event: u16, value: u16, more: &[u8]) {
        let mut message = PORT.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(more);
        self.pending.push_back(message);
    }

    fn send(&mut self) -> Result<(), QueueError> {
        let Some(queue) = self.receive.as_mut().filter(|queue| !queue.is_broken()) else {
            return Ok(());
        };
        loop {
            while let Some(message) = self.pending.front() {
                if !queue.pop(&mut self.chain)? {
                    break;
                }
                let written = write(queue.ram(), &self.chain.writable, message);
                if written < message.len() {
                    return Err(QueueError::Request {
                        head: self.chain.head,
                        what: "a control message does not fit into its buffer",
                    });
                }
                self.pending.pop_front();
                queue.push(self.chain.head, written as u32)?;
            }
            queue.notify()?;
            if !queue.enable_notification()? || self.pending.is_empty() {
                return Ok(());
            }
        }
    }
}

impl VirtioDevice for Channel {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 3,
            pci_class: 0x07_8000,
            name: "virtio-channel",
        }
    }

    fn features(&self) -> u64 {
        FEATURE_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(QUEUES)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut image = [0; 12];
        for (to, from) in image.iter_mut().skip(4).zip(MOST_PORTS.to_le_bytes()) {
            *to = from;
        }
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let port = &self.port;
        // A driver without MULTIPORT finds an empty port 0.
        if activation.features & FEATURE_MULTIPORT != 0 {
            let mut queues = activation.queues.into_iter().skip(2);
            let mut next = |index| {
                let queue = queues.next().flatten();
                queue.ok_or(ActivateError::MissingQueue(index))
            };
            let control = (next(CONTROL_RECEIVE)?, next(CONTROL_TRANSMIT)?);
            // The driver may set up the port's queues or not use it at all.
            port.receive.lock().queue = next(RECEIVE).ok();
            port.transmit.lock().queue = next(TRANSMIT).ok();
            let mut state = port.control.lock();
            state.receive = Some(control.0);
            state.transmit = Some(control.1);
        }
        for queue in [CONTROL_TRANSMIT, TRANSMIT, RECEIVE] {
            port.ring(queue);
        }
        Ok(port.clone())
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        let (control_receive, control_transmit) = {
            let mut control = self.port.control.lock();
            (control.receive.take(), control.transmit.take())
        };
        let receive = self.port.receive.lock().queue.take();
        let transmit = self.port.transmit.lock().queue.take();
        vec![
            None,
            None,
            control_receive,
            control_transmit,
            receive,
            transmit,
        ]
    }

    fn reset(&mut self) {
        let mut control = self.port.control.lock();
        control.pending.clear();
        if std::mem::take(&mut control.guest_open) {
            self.port.sink.guest_open(false);
        }
        // Half a request would be of no use to the next reader.
        self.port.receive.lock().pending.clear();
    }

    fn save(&self) -> DeviceState {
        let control = self.port.control.lock();
        DeviceState::Channel(ChannelState {
            version: Version::current(),
            guest_open: control.guest_open,
            messages: control.pending.iter().cloned().collect(),
            pending: self.port.receive.lock().pending.iter().copied().collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Channel(state) = state else {
            return Err(StateError::invalid::<ChannelState>(
                "the snapshot has another device here",
            ));
        };
        let mut control = self.port.control.lock();
        control.pending = state.messages.iter().take(MESSAGES_MAX).cloned().collect();
        control.guest_open = state.guest_open;
        self.port.sink.guest_open(state.guest_open);
        self.port.receive.lock().pending = state.pending.iter().copied().take(INPUT_MAX).collect();
        Ok(())
    }
}

/// Saved state of a [`Channel`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    /// Format.
    pub version: Version<ChannelState>,
    /// A program in the guest has the port open.
    pub guest_open: bool,
    /// Control messages that the guest has not taken.
    pub messages: Vec<Vec<u8>>,
    /// Input that the guest has not taken.
    pub pending: Vec<u8>,
}
versioned!(ChannelState, "virtio channel", 1);
