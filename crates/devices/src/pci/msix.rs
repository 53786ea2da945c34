//! MSI-X (PCI Local Bus 3.0, 6.8.2): a table of messages with mask bits, and
//! pending bits for those that could not be sent.

use std::sync::Arc;

use engine::{InterruptLine, InterruptSink, MsiMessage};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::state::{StateError, Version};
use crate::versioned;

const ENTRY_SIZE: u32 = 16;
/// Most vectors a table can have.
const MAX_VECTORS: u16 = 2048;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// Where in a BAR the table and the pending bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// The BAR that holds both.
    pub bar: u8,
    /// Offset of the table, a multiple of 8.
    pub table_offset: u32,
    /// Offset of the pending bits, a multiple of 8, not inside the table.
    pub pending_offset: u32,
}

impl MsixLayout {
    /// Whether both lie in a BAR of `size` bytes without overlapping.
    pub(super) fn fits(&self, vectors: u16, size: u64) -> bool {
        let table = u64::from(self.table_offset);
        let table_end = table + table_bytes(vectors);
        let pending = u64::from(self.pending_offset);
        let pending_end = pending + pending_bytes(vectors);
        let apart = table_end <= pending || pending_end <= table;
        let aligned = table.is_multiple_of(8) && pending.is_multiple_of(8);
        apart && aligned && table_end.max(pending_end) <= size
    }
}

fn table_bytes(vectors: u16) -> u64 {
    u64::from(vectors) * u64::from(ENTRY_SIZE)
}

fn pending_bytes(vectors: u16) -> u64 {
    u64::from(vectors).div_ceil(64) * 8
}

/// Address low, address high, data, vector control.
type Message = [u32; 4];

struct Vectors {
    control: u16,
    messages: Vec<Message>,
    pending: Vec<u64>,
}

/// A function's MSI-X table. Shared by the function (its BAR), its
/// configuration space (the control register) and its vectors.
pub struct MsixTable {
    sink: Arc<dyn InterruptSink>,
    /// Each vector's own way to the local APICs; empty if the engine has none.
    lines: Vec<Arc<dyn InterruptLine>>,
    layout: MsixLayout,
    count: u16,
    vectors: Mutex<Vectors>,
}

impl MsixTable {
    /// A table of 1 to 2048 vectors (more or fewer are taken as those
    /// limits), all masked, sending to `sink`.
    #[must_use]
    pub fn new(vectors: u16, layout: MsixLayout, sink: Arc<dyn InterruptSink>) -> Arc<Self> {
        let count = vectors.clamp(1, MAX_VECTORS);
        Arc::new(Self {
            lines: (0..count).map_while(|_| sink.line()).collect(),
            sink,
            layout,
            count,
            vectors: Mutex::new(Vectors::reset(count)),
        })
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.count
    }

    /// Where the registers are.
    #[must_use]
    pub fn layout(&self) -> MsixLayout {
        self.layout
    }

    /// The vector `index`; signalling one beyond the table does nothing.
    #[must_use]
    pub fn vector(self: &Arc<Self>, index: u16) -> MsixVector {
        MsixVector {
            table: Arc::clone(self),
            index,
        }
    }

    /// Whether the guest enabled MSI-X (and INTx is thereby off).
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.vectors.lock().control & CONTROL_ENABLE != 0
    }

    /// Masks all vectors and forgets what is pending, as a function reset does.
    pub fn reset(&self) {
        *self.vectors.lock() = Vectors::reset(self.count);
    }

    /// The message control register was written.
    pub(super) fn set_control(&self, control: u16) {
        let mut vectors = self.vectors.lock();
        vectors.control = control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        let all = 0..usize::from(self.count);
        let due: Vec<_> = all
            .filter_map(|index| Some((index, vectors.take_due(index)?)))
            .collect();
        drop(vectors);
        self.send(due);
    }

    /// Serves a read of the BAR; `false` if the table and pending bits are
    /// elsewhere.
    pub fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let Some(place) = self.place(bar, offset) else {
            return false;
        };
        let vectors = self.vectors.lock();
        for (at, byte) in (0_u64..).zip(data) {
            *byte = match place {
                Place::Table(start) => vectors.table_byte(start + at),
                Place::Pending(start) => vectors.pending_byte(start + at),
            };
        }
        true
    }

    /// Serves a write to the BAR; `false` if the table and pending bits are
    /// elsewhere. Unmasking sends what is pending.
    pub fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> bool {
        let Some(place) = self.place(bar, offset) else {
            return false;
        };
        if let Place::Table(start) = place {
            let mut vectors = self.vectors.lock();
            for (at, &byte) in (start..).zip(data) {
                vectors.set_table_byte(at, byte);
            }
            let index = (start / u64::from(ENTRY_SIZE)) as usize;
            let due = vectors.take_due(index);
            drop(vectors);
            self.send(due.map(|message| (index, message)));
        }
        true
    }

    fn place(&self, bar: u8, offset: u64) -> Option<Place> {
        if bar != self.layout.bar {
            return None;
        }
        let within = |start: u32, size: u64| {
            let at = offset.checked_sub(start.into())?;
            (at < size).then_some(at)
        };
        let table = within(self.layout.table_offset, table_bytes(self.count));
        let pending = within(self.layout.pending_offset, pending_bytes(self.count));
        table.map(Place::Table).or(pending.map(Place::Pending))
    }

    fn signal(&self, index: u16) {
        let mut vectors = self.vectors.lock();
        let index = usize::from(index);
        if index >= vectors.messages.len() || vectors.control & CONTROL_ENABLE == 0 {
            return;
        }
        vectors.set_pending(index);
        let due = vectors.take_due(index);
        drop(vectors);
        self.send(due.map(|message| (index, message)));
    }

    /// Sends messages of vectors.
    fn send(&self, due: impl IntoIterator<Item = (usize, MsiMessage)>) {
        for (index, message) in due {
            match self.lines.get(index) {
                Some(line) => line.send(message),
                None => self.sink.send(message),
            }
        }
    }

    /// The table and pending bits, for a snapshot.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let vectors = self.vectors.lock();
        MsixState {
            version: Version::current(),
            control: vectors.control,
            messages: vectors.messages.clone(),
            pending: vectors.pending.clone(),
        }
    }

    /// Takes back a saved state.
    ///
    /// # Errors
    /// [`StateError`] if it is of a table with another number of vectors.
    pub fn restore(&self, state: &MsixState) -> Result<(), StateError> {
        let mut vectors = self.vectors.lock();
        let same = state.messages.len() == vectors.messages.len()
            && state.pending.len() == vectors.pending.len();
        if !same {
            return Err(StateError::invalid::<MsixState>(format!(
                "the snapshot has {} vectors where this machine has {}",
                state.messages.len(),
                vectors.messages.len()
            )));
        }
        vectors.control = state.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        vectors.messages.clone_from(&state.messages);
        vectors.pending.clone_from(&state.pending);
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Place {
    Table(u64),
    Pending(u64),
}

impl Vectors {
    fn reset(count: u16) -> Self {
        Self {
            control: 0,
            messages: vec![[0, 0, 0, VECTOR_MASKED]; count.into()],
            pending: vec![0; usize::from(count).div_ceil(64)],
        }
    }

    fn set_pending(&mut self, index: usize) {
        if let Some(word) = self.pending.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// Takes a pending bit that nothing masks, as the message to be sent.
    fn take_due(&mut self, index: usize) -> Option<MsiMessage> {
        if self.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) != CONTROL_ENABLE {
            return None;
        }
        let &[low, high, data, control] = self.messages.get(index)?;
        let word = self.pending.get_mut(index / 64)?;
        let bit = 1 << (index % 64);
        if *word & bit == 0 || control & VECTOR_MASKED != 0 {
            return None;
        }
        *word &= !bit;
        Some(MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        })
    }

    fn table_byte(&self, at: u64) -> u8 {
        let (entry, field, byte) = table_position(at);
        let message = self.messages.get(entry).copied().unwrap_or_default();
        message[field].to_le_bytes()[byte]
    }

    fn set_table_byte(&mut self, at: u64, value: u8) {
        let (entry, field, byte) = table_position(at);
        if let Some(message) = self.messages.get_mut(entry) {
            let mut bytes = message[field].to_le_bytes();
            bytes[byte] = value;
            let reserved = match field {
                0 => 3,
                3 => !VECTOR_MASKED,
                _ => 0,
            };
            message[field] = u32::from_le_bytes(bytes) & !reserved;
        }
    }

    fn pending_byte(&self, at: u64) -> u8 {
        let word = self.pending.get((at / 8) as usize).copied().unwrap_or(0);
        word.to_le_bytes()[(at % 8) as usize]
    }
}

/// Entry, field and byte of an offset into the table.
fn table_position(at: u64) -> (usize, usize, usize) {
    let at = at as usize;
    (at / 16, at / 4 % 4, at % 4)
}

/// One interrupt of a function.
#[derive(Clone)]
pub struct MsixVector {
    table: Arc<MsixTable>,
    index: u16,
}

impl MsixVector {
    /// Sends the vector's message, or marks it pending while it is masked.
    /// Does nothing while MSI-X is disabled.
    pub fn signal(&self) {
        self.table.signal(self.index);
    }
}

/// Saved MSI-X table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Format.
    pub version: Version<MsixState>,
    /// Enable and function mask, as in the message control register.
    pub control: u16,
    /// Address low, address high, data and vector control of each vector.
    pub messages: Vec<[u32; 4]>,
    /// One bit per vector.
    pub pending: Vec<u64>,
}
versioned!(MsixState, "MSI-X table", 1);
