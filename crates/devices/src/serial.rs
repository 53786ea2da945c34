//! A 16550A serial port (National PC16550D), infinitely fast.
//!
//! Output goes to the sink byte by byte as the guest writes it. Input waits in
//! a queue in front of the chip's FIFO until the guest's driver takes it: the
//! line is held while the driver does not look for input (as with RTS/CTS),
//! so that nothing is lost to a driver's start-up.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BytePort;
use crate::irq::IrqLine;
use crate::state::{StateError, Version};
use crate::versioned;

/// Ports of a serial port.
pub const PORTS: u16 = 8;
/// Bytes of the chip's receive FIFO.
const FIFO: usize = 16;
/// Bytes that wait in front of it.
const QUEUE: usize = 4096;
/// A driver that reads the line status so often without doing anything else
/// polls for input.
const POLLS: u8 = 8;

const IER_RECEIVED: u8 = 1;
const IER_TRANSMIT: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;
const IIR_NONE: u8 = 1;
const IIR_TRANSMIT: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_LINE: u8 = 6;
const IIR_TIMEOUT: u8 = 12;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVE: u8 = 2;
const LCR_BREAK: u8 = 0x40;
const LCR_DIVISOR: u8 = 0x80;
const MCR_RTS: u8 = 2;
const MCR_LOOP: u8 = 0x10;
const LSR_DATA: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_BREAK: u8 = 0x10;
const LSR_EMPTY: u8 = 0x60;
const LSR_ERRORS: u8 = 0x1e;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// Where the output of a serial port goes.
pub trait SerialSink: Send + Sync {
    /// Bytes the guest sent, in order; called on vCPU threads with the port
    /// locked. Must not wait long nor call the port.
    fn write(&self, data: &[u8]);

    /// The input queue has room again after it was full.
    fn input_ready(&self) {}
}

struct Chip {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    /// Overrun and break (others never happen).
    line_errors: u8,
    modem_status: u8,
    scratch: u8,
    divisor: u16,
    /// "Transmitter empty" has yet to be reported.
    transmit_pending: bool,
    fifo: VecDeque<u8>,
    queue: VecDeque<u8>,
    /// Consecutive reads of the line status.
    polls: u8,
    /// The driver has used receive interrupts.
    has_interrupts: bool,
    /// The queue refused bytes.
    refused: bool,
}

/// A 16550A serial port.
pub struct Serial {
    chip: Mutex<Chip>,
    line: IrqLine,
    sink: Arc<dyn SerialSink>,
}

impl Serial {
    /// A port that interrupts through `line` and sends to `sink`.
    #[must_use]
    pub fn new(line: IrqLine, sink: Arc<dyn SerialSink>) -> Arc<Self> {
        Arc::new(Self {
            chip: Mutex::new(Chip::new()),
            line,
            sink,
        })
    }

    /// Offers input; returns how many bytes, from the first, were taken. After
    /// fewer than all, [`SerialSink::input_ready`] says when to go on.
    #[must_use = "the bytes beyond were not taken"]
    pub fn push_input(&self, data: &[u8]) -> usize {
        let mut chip = self.chip.lock();
        let room = QUEUE.saturating_sub(chip.queue.len());
        let taken = data.len().min(room);
        chip.queue.extend(data.iter().take(taken));
        chip.refused |= taken < data.len();
        chip.receive();
        self.line.set(chip.interrupt() != IIR_NONE);
        taken
    }

    /// Puts the registers into the state after power-on; unread input is kept.
    pub fn reset(&self) {
        let mut chip = self.chip.lock();
        if !chip.is_looped() {
            chip.unreceive();
        }
        *chip = Chip {
            queue: std::mem::take(&mut chip.queue),
            refused: chip.refused,
            ..Chip::new()
        };
        self.line.set(false);
    }

    /// The registers and what waits as input, for a snapshot.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let chip = self.chip.lock();
        SerialState {
            version: Version::current(),
            interrupt_enable: chip.interrupt_enable,
            fifo_control: chip.fifo_control,
            line_control: chip.line_control,
            modem_control: chip.modem_control,
            line_errors: chip.line_errors,
            modem_status: chip.modem_status,
            scratch: chip.scratch,
            divisor: chip.divisor,
            transmit_pending: chip.transmit_pending,
            fifo: chip.fifo.iter().copied().collect(),
            queue: chip.queue.iter().copied().collect(),
            has_interrupts: chip.has_interrupts,
        }
    }

    /// Takes back a saved state.
    ///
    /// # Errors
    /// [`StateError`] if more input waits than the port holds.
    pub fn restore(&self, state: &SerialState) -> Result<(), StateError> {
        if state.fifo.len() > FIFO || state.queue.len() > QUEUE + FIFO {
            let reason = "more input waits than the port holds";
            return Err(StateError::invalid::<SerialState>(reason));
        }
        let mut chip = self.chip.lock();
        *chip = Chip {
            interrupt_enable: state.interrupt_enable & 0xf,
            fifo_control: state.fifo_control,
            line_control: state.line_control,
            modem_control: state.modem_control & 0x1f,
            line_errors: state.line_errors & LSR_ERRORS,
            modem_status: state.modem_status,
            scratch: state.scratch,
            divisor: state.divisor,
            transmit_pending: state.transmit_pending,
            fifo: state.fifo.iter().copied().collect(),
            queue: state.queue.iter().copied().collect(),
            polls: 0,
            has_interrupts: state.has_interrupts,
            refused: false,
        };
        self.line.set(chip.interrupt() != IIR_NONE);
        Ok(())
    }
}

impl Chip {
    fn new() -> Self {
        Self {
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            line_errors: 0,
            modem_status: MSR_CONNECTED,
            scratch: 0,
            divisor: 1,
            transmit_pending: false,
            fifo: VecDeque::with_capacity(FIFO),
            queue: VecDeque::new(),
            polls: 0,
            has_interrupts: false,
            refused: false,
        }
    }

    fn has_divisor(&self) -> bool {
        self.line_control & LCR_DIVISOR != 0
    }

    fn is_looped(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }

    fn fifo_size(&self) -> usize {
        if self.fifo_control & FCR_ENABLE != 0 {
            FIFO
        } else {
            1
        }
    }

    /// Whether the driver takes input.
    fn listens(&self) -> bool {
        let ready = self.modem_control & MCR_RTS != 0;
        self.interrupt_enable & IER_RECEIVED != 0
            || self.polls >= POLLS
            || (!self.has_interrupts && ready)
    }

    /// Moves waiting input into the FIFO.
    fn receive(&mut self) {
        if self.is_looped() || !self.listens() {
            return;
        }
        while self.fifo.len() < self.fifo_size() {
            match self.queue.pop_front() {
                Some(byte) => self.fifo.push_back(byte),
                None => break,
            }
        }
    }

    /// Puts input the driver did not read back in front of the FIFO.
    fn unreceive(&mut self) {
        while let Some(byte) = self.fifo.pop_back() {
            self.queue.push_front(byte);
        }
    }

    /// The cause of the interrupt with the highest priority, as in the IIR.
    fn interrupt(&self) -> u8 {
        let enabled = self.interrupt_enable;
        if enabled & IER_LINE != 0 && self.line_errors != 0 {
            IIR_LINE
        } else if enabled & IER_RECEIVED != 0 && !self.fifo.is_empty() {
            // The rest of a burst has always "timed out".
            if self.fifo.len() >= self.trigger() {
                IIR_RECEIVED
            } else {
                IIR_TIMEOUT
            }
        } else if enabled & IER_TRANSMIT != 0 && self.transmit_pending {
            IIR_TRANSMIT
        } else if enabled & IER_MODEM != 0 && self.modem_status & 0xf != 0 {
            0
        } else {
            IIR_NONE
        }
    }

    fn trigger(&self) -> usize {
        if self.fifo_control & FCR_ENABLE == 0 {
            return 1;
        }
        match self.fifo_control >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn read_interrupt(&mut self) -> u8 {
        let cause = self.interrupt();
        if cause == IIR_TRANSMIT {
            self.transmit_pending = false;
        }
        if self.fifo_control & FCR_ENABLE != 0 {
            cause | IIR_FIFO
        } else {
            cause
        }
    }

    fn read_line_status(&mut self) -> u8 {
        self.polls = self.polls.saturating_add(1);
        self.receive();
        let data = if self.fifo.is_empty() { 0 } else { LSR_DATA };
        data | LSR_EMPTY | std::mem::take(&mut self.line_errors)
    }

    fn loop_back(&mut self, byte: u8) {
        if self.fifo.len() < self.fifo_size() {
            self.fifo.push_back(byte);
        } else {
            self.line_errors |= LSR_OVERRUN;
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (self.fifo_control ^ value) & FCR_ENABLE != 0;
        self.fifo_control = value & 0xc9;
        if toggled || value & FCR_CLEAR_RECEIVE != 0 {
            if self.is_looped() {
                self.fifo.clear();
            } else {
                // A driver's start-up must not lose what the user typed.
                self.unreceive();
            }
        }
    }

    fn write_line_control(&mut self, value: u8) {
        let breaks = value & !self.line_control & LCR_BREAK != 0;
        self.line_control = value;
        if breaks && self.is_looped() {
            self.line_errors |= LSR_BREAK;
        }
    }

    fn write_modem_control(&mut self, value: u8) {
        let was_looped = self.is_looped();
        self.modem_control = value & 0x1f;
        if self.is_looped() && !was_looped {
            self.unreceive();
        } else if was_looped && !self.is_looped() {
            self.fifo.clear();
        }
        let lines = if self.is_looped() {
            // RTS, DTR, OUT1, OUT2 to CTS, DSR, RI, DCD.
            let bit = |from: u8, to: u8| (value >> from & 1) << to;
            bit(1, 4) | bit(0, 5) | bit(2, 6) | bit(3, 7)
        } else {
            MSR_CONNECTED
        };
        let changed = self.modem_status ^ lines;
        // The ring indicator reports only its end.
        let deltas = (changed & 0xb0 | self.modem_status & !lines & 0x40) >> 4;
        self.modem_status = lines | self.modem_status & 0xf | deltas;
    }

    fn write_interrupt_enable(&mut self, value: u8) {
        let enabled = value & !self.interrupt_enable;
        self.interrupt_enable = value & 0xf;
        self.has_interrupts |= value & IER_RECEIVED != 0;
        if enabled & IER_TRANSMIT != 0 {
            self.transmit_pending = true;
        }
        if !self.listens() && !self.is_looped() {
            // A driver that only tests the register reads and drops data next.
            self.unreceive();
        }
    }
}

impl BytePort for Serial {
    fn read_byte(&self, offset: u16) -> u8 {
        let mut chip = self.chip.lock();
        if !matches!(offset, 0 | 5) {
            chip.polls = 0;
        }
        let mut has_room = false;
        let value = match offset {
            0 if chip.has_divisor() => chip.divisor as u8,
            0 => {
                let byte = chip.fifo.pop_front().unwrap_or(0);
                chip.receive();
                has_room = chip.refused && chip.queue.len() <= QUEUE / 2;
                chip.refused &= !has_room;
                byte
            }
            1 if chip.has_divisor() => (chip.divisor >> 8) as u8,
            1 => chip.interrupt_enable,
            2 => chip.read_interrupt(),
            3 => chip.line_control,
            4 => chip.modem_control,
            5 => chip.read_line_status(),
            6 => {
                let status = chip.modem_status;
                chip.modem_status &= 0xf0;
                status
            }
            _ => chip.scratch,
        };
        self.line.set(chip.interrupt() != IIR_NONE);
        drop(chip);
        if has_room {
            self.sink.input_ready();
        }
        value
    }

    fn write_byte(&self, offset: u16, value: u8) {
        let mut chip = self.chip.lock();
        chip.polls = 0;
        match offset {
            0 if chip.has_divisor() => chip.divisor = chip.divisor & 0xff00 | u16::from(value),
            0 => {
                if chip.is_looped() {
                    chip.loop_back(value);
                } else {
                    self.sink.write(&[value]);
                }
                chip.transmit_pending = true;
            }
            1 if chip.has_divisor() => {
                chip.divisor = chip.divisor & 0xff | u16::from(value) << 8;
            }
            1 => chip.write_interrupt_enable(value),
            2 => chip.write_fifo_control(value),
            3 => chip.write_line_control(value),
            4 => chip.write_modem_control(value),
            7 => chip.scratch = value,
            _ => {}
        }
        chip.receive();
        self.line.set(chip.interrupt() != IIR_NONE);
    }
}

/// Saved serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Format.
    pub version: Version<SerialState>,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    line_errors: u8,
    modem_status: u8,
    scratch: u8,
    divisor: u16,
    transmit_pending: bool,
    fifo: Vec<u8>,
    queue: Vec<u8>,
    has_interrupts: bool,
}
versioned!(SerialState, "serial port", 1);
