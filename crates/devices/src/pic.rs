//! The pair of 8259A interrupt controllers, with the edge/level registers of
//! PC chipsets (Intel 8259A data sheet; ELCR as in the 82371).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::InterruptSink;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BytePort;
use crate::state::{StateError, Version};
use crate::versioned;

/// Input of the first controller that the second one drives.
const CASCADE: u8 = 2;
/// Bits of the two ELCRs that exist: not timer, keyboard, cascade, RTC, FPU.
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];
/// Level-triggered lines after reset: SCI (9) and the PCI interrupts (10, 11).
const ELCR_RESET: [u8; 2] = [0, 0x0e];

/// Which initialization word port 1 expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    /// None: OCW1.
    Mask,
    Vector,
    Cascade,
    Mode,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    /// Input levels.
    lines: u8,
    /// Requests (edges latched, levels followed).
    requests: u8,
    mask: u8,
    in_service: u8,
    /// Level-triggered inputs.
    levels: u8,
    vector: u8,
    /// The input with the lowest priority.
    lowest: u8,
    read_in_service: bool,
    poll: bool,
    special_mask: bool,
    special_nested: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    expects: Expects,
    single: bool,
    needs_mode: bool,
}

impl Chip {
    fn new(vector: u8, levels: u8) -> Self {
        Self {
            lines: 0,
            requests: 0,
            mask: 0xff,
            in_service: 0,
            levels,
            vector,
            lowest: 7,
            read_in_service: false,
            poll: false,
            special_mask: false,
            special_nested: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            expects: Expects::Mask,
            single: false,
            needs_mode: false,
        }
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        let rises = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.levels & bit != 0 {
            self.requests = (self.requests & !bit) | (self.lines & bit);
        } else if rises {
            self.requests |= bit;
        }
    }

    /// Distance of the highest-priority input in `inputs` from the top, 8 if
    /// none.
    fn rank(&self, inputs: u8) -> u8 {
        inputs
            .rotate_right(u32::from(self.lowest + 1) & 7)
            .trailing_zeros() as u8
    }

    fn input_of(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// The input to be served now.
    fn pending(&self) -> Option<u8> {
        let rank = self.rank(self.requests & !self.mask);
        let mut busy = self.in_service;
        if self.special_mask {
            busy &= !self.mask;
        }
        if self.special_nested {
            busy &= !(1 << CASCADE);
        }
        (rank < self.rank(busy)).then(|| self.input_of(rank))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.levels & bit == 0 {
            self.requests &= !bit;
        }
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialize(value);
        } else if value & 8 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_in_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// ICW1. The trigger bit is ignored as on PCs: the ELCR rules.
    fn initialize(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            requests: self.lines & self.levels,
            mask: 0,
            expects: Expects::Vector,
            single: value & 2 != 0,
            needs_mode: value & 1 != 0,
            ..Self::new(self.vector, self.levels)
        };
    }

    /// OCW2.
    fn end_of_interrupt(&mut self, value: u8) {
        let (command, input) = (value >> 5, value & 7);
        match command {
            0 | 4 => self.rotate_on_auto_eoi = command == 4,
            1 | 5 => {
                let mut served = self.in_service;
                if self.special_mask {
                    served &= !self.mask;
                }
                let rank = self.rank(served);
                if rank < 8 {
                    let input = self.input_of(rank);
                    self.in_service &= !(1 << input);
                    if command == 5 {
                        self.lowest = input;
                    }
                }
            }
            3 | 7 => {
                self.in_service &= !(1 << input);
                if command == 7 {
                    self.lowest = input;
                }
            }
            6 => self.lowest = input,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_cascade = if self.needs_mode {
            Expects::Mode
        } else {
            Expects::Mask
        };
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Vector => {
                self.vector = value & 0xf8;
                if self.single {
                    after_cascade
                } else {
                    Expects::Cascade
                }
            }
            Expects::Cascade => after_cascade,
            Expects::Mode => {
                self.special_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                Expects::Mask
            }
        };
    }

    /// A read of either port; the poll command makes it an acknowledge.
    fn read(&mut self, data_port: bool) -> u8 {
        if self.poll {
            self.poll = false;
            let Some(input) = self.pending() else {
                return 0;
            };
            self.acknowledge(input);
            return 0x80 | input;
        }
        match (data_port, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests,
        }
    }

    fn is_sound(&self) -> bool {
        self.lowest < 8 && self.vector & 7 == 0
    }
}

struct Pair {
    chips: [Chip; 2],
}

impl Pair {
    fn new() -> Self {
        // Where a BIOS leaves them: vectors 8 and 0x70, all masked.
        let mut first = Chip::new(0x08, ELCR_RESET[0]);
        first.levels |= 1 << CASCADE;
        Self {
            chips: [first, Chip::new(0x70, ELCR_RESET[1])],
        }
    }

    /// Carries the second controller's output to the first. It is followed as
    /// a level, so that no request of the second can be overlooked.
    fn cascade(&mut self) -> bool {
        let [first, second] = &mut self.chips;
        first.set_line(CASCADE, second.pending().is_some());
        first.pending().is_some()
    }
}

/// The 8259 pair. Its output drives [`InterruptSink::set_extint`].
pub struct Pic {
    pair: Mutex<Pair>,
    sink: Arc<dyn InterruptSink>,
    /// What the output is.
    output: AtomicBool,
    /// What the sink was told.
    told: AtomicBool,
    /// Held while telling the sink.
    telling: Mutex<()>,
}

impl Pic {
    /// A pair as a BIOS leaves it, all inputs masked.
    #[must_use]
    pub fn new(sink: Arc<dyn InterruptSink>) -> Arc<Self> {
        Arc::new(Self {
            pair: Mutex::new(Pair::new()),
            sink,
            output: AtomicBool::new(false),
            told: AtomicBool::new(false),
            telling: Mutex::new(()),
        })
    }

    /// Sets the level of input `irq` (0 to 15, not 2).
    pub fn set_line(&self, irq: u8, level: bool) {
        if irq < 16 && irq != CASCADE {
            self.with(|pair| pair.chips[usize::from(irq / 8)].set_line(irq % 8, level));
        }
    }

    /// The INTA cycle: the vector to be served, or `None` if the request has
    /// gone.
    pub fn acknowledge(&self) -> Option<u8> {
        self.with(|pair| {
            let [first, second] = &mut pair.chips;
            let input = first.pending()?;
            first.acknowledge(input);
            if input != CASCADE {
                return Some(first.vector | input);
            }
            // A vanished request of the second controller is its input 7.
            let input = second.pending();
            if let Some(input) = input {
                second.acknowledge(input);
            }
            Some(second.vector | input.unwrap_or(7))
        })
    }

    /// Changes the pair, then tells the engine of the new output.
    fn with<T>(&self, change: impl FnOnce(&mut Pair) -> T) -> T {
        let mut pair = self.pair.lock();
        let result = change(&mut pair);
        let output = pair.cascade();
        self.output.store(output, Ordering::SeqCst);
        drop(pair);
        self.tell();
        result
    }

    /// Whoever tells the sink goes on until it knows the last output, so
    /// nobody waits here for a vCPU that waits for us.
    fn tell(&self) {
        loop {
            {
                let Some(_telling) = self.telling.try_lock() else {
                    return;
                };
                let output = self.output.load(Ordering::SeqCst);
                if self.told.swap(output, Ordering::SeqCst) != output {
                    self.sink.set_extint(output);
                }
            }
            // Others left this to us while we held the lock.
            if self.told.load(Ordering::SeqCst) == self.output.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// All registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> PicState {
        PicState {
            version: Version::current(),
            chips: self.pair.lock().chips.clone(),
        }
    }

    /// Takes back a saved state.
    ///
    /// # Errors
    /// [`StateError`] if registers have impossible values.
    pub fn restore(&self, state: &PicState) -> Result<(), StateError> {
        if !state.chips.iter().all(Chip::is_sound) {
            return Err(StateError::invalid::<PicState>(
                "impossible register values",
            ));
        }
        self.with(|pair| pair.chips = state.chips.clone());
        Ok(())
    }

    /// Masks everything, as at power-on. Lines keep their levels.
    pub fn reset(&self) {
        self.with(|pair| {
            let was = std::mem::replace(pair, Pair::new());
            for (chip, was) in pair.chips.iter_mut().zip(was.chips) {
                chip.lines = was.lines;
                chip.requests = was.lines & chip.levels;
            }
        });
    }
}

/// The two ports of one controller (command, data), at 0x20 or 0xa0.
pub struct PicPorts {
    pic: Arc<Pic>,
    chip: usize,
}

impl PicPorts {
    /// The ports of the second controller, or of the first.
    #[must_use]
    pub fn new(pic: &Arc<Pic>, second: bool) -> Arc<Self> {
        Arc::new(Self {
            pic: Arc::clone(pic),
            chip: usize::from(second),
        })
    }
}

impl BytePort for PicPorts {
    fn read_byte(&self, offset: u16) -> u8 {
        self.pic
            .with(|pair| pair.chips[self.chip & 1].read(offset != 0))
    }

    fn write_byte(&self, offset: u16, value: u8) {
        self.pic.with(|pair| {
            let chip = &mut pair.chips[self.chip & 1];
            if offset == 0 {
                chip.command(value);
            } else {
                chip.write_data(value);
            }
        });
    }
}

/// The edge/level control registers, at 0x4d0 and 0x4d1.
pub struct ElcrPorts(pub Arc<Pic>);

impl BytePort for ElcrPorts {
    fn read_byte(&self, offset: u16) -> u8 {
        let chip = usize::from(offset & 1);
        self.0.pair.lock().chips[chip].levels & ELCR_MASKS[chip]
    }

    fn write_byte(&self, offset: u16, value: u8) {
        let chip = usize::from(offset & 1);
        self.0.with(|pair| {
            let fixed = !ELCR_MASKS[chip];
            let chip = &mut pair.chips[chip];
            chip.levels = (chip.levels & fixed) | (value & !fixed);
            let followed = chip.lines & chip.levels;
            chip.requests = (chip.requests & !chip.levels) | followed;
        });
    }
}

/// Saved 8259 pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Format.
    pub version: Version<PicState>,
    chips: [Chip; 2],
}
versioned!(PicState, "8259 interrupt controllers", 1);
