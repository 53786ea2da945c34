//! Copies of blocks for other linear addresses of the same code.
//!
//! Each process maps the same libraries at addresses of its own. What was made
//! of a RAM page for one of them serves the next: a copy costs a fraction of a
//! translation. While a block is emitted, every place is noted that holds
//! something that depends on the block's linear address or on where its code
//! lies; a copy is those bytes with these places set anew, and is byte for
//! byte what a translation would have given.

use std::mem::offset_of;
use std::sync::Arc;

use crate::cpu::{TLB_ENTRIES, TlbBank};
use crate::translate::asm::{Asm, rel32};
use crate::translate::block::{NoBlock, Place, Source};
use crate::translate::cache::{Block, BlockKey, CodeCache, Entries, Index, SecondPage};
use crate::translate::emit::Emitter;
use crate::translate::emit_check::bank;
use crate::translate::emit_jump::code_page_slot;
use crate::translate::exit::{Kind, RECORD_LENGTH, Record};

/// How an immediate of 64 bits is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// 32 bits, zero-extended.
    Zero,
    /// 32 bits, sign-extended.
    Sign,
    /// All 64.
    Full,
}

impl Width {
    /// As [`Asm::mov_imm`] chooses.
    pub fn of_mov(v: u64) -> Self {
        match () {
            () if v >> 32 == 0 => Self::Zero,
            () if Self::is_signed(v) => Self::Sign,
            () => Self::Full,
        }
    }

    /// Whether 32 bits, sign-extended, are enough.
    pub fn is_signed(v: u64) -> bool {
        v as i64 == i64::from(v as i32)
    }

    /// Length of the immediate.
    pub fn bytes(self) -> usize {
        match self {
            Self::Full => 8,
            _ => 4,
        }
    }
}

/// What is at a place of a block's code.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// rel32 to the slow path at this offset of the block's slow paths. It
    /// may have been linked to another block meanwhile.
    Slow(u16),
    /// imm32: the identity of the block's mapping, or of the next page's.
    Map { second: bool },
    /// disp32: where it is found how the page is mapped, or the next.
    Page { second: bool },
    /// A linear address, as the operand of the `mov` or of a comparison or
    /// store with a sign-extended immediate.
    Linear(Width),
    /// The low half of a linear address.
    LowLinear,
    /// What a TLB entry's tag is for a linear address.
    Tag(Width),
    /// disp32 of a TLB entry: of the tags, or of the host pages.
    TlbEntry { write: bool, host: bool },
    /// imm32: this place in the cache, `n` bytes before.
    Here(u8),
    /// `jmp rel32` to the common exit, and a record behind it.
    Exit,
}

/// A place to be set anew in a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reloc {
    /// Offset in the block's hot code, or in its slow paths.
    at: u16,
    cold: bool,
    what: What,
}

/// The places of the block that is being emitted.
pub(crate) struct Relocs {
    hot: usize,
    cold: usize,
    list: Vec<Reloc>,
    /// There is something that cannot be set anew.
    fixed: bool,
}

impl Relocs {
    /// None yet, of a block whose code begins at these offsets.
    pub fn new(hot: usize, cold: usize) -> Self {
        Self {
            hot,
            cold,
            list: Vec::with_capacity(32),
            fixed: false,
        }
    }

    fn add(&mut self, at: usize, cold: bool, what: What) {
        let start = if cold { self.cold } else { self.hot };
        match u16::try_from(at.wrapping_sub(start)) {
            Ok(at) => self.list.push(Reloc { at, cold, what }),
            Err(_) => self.fixed = true,
        }
    }

    /// The block can have no copies.
    pub fn fix(&mut self) {
        self.fixed = true;
    }

    /// For the block; `None` if it can have no copies.
    pub fn finish(self) -> Option<Arc<[Reloc]>> {
        (!self.fixed).then(|| self.list.into())
    }
}

impl Emitter {
    /// Notes what was just emitted: an operand that ends `behind` bytes before
    /// the end of the hot code.
    pub(super) fn mark(&mut self, what: What, bytes: usize, behind: usize) {
        let at = self.hot.pos.wrapping_sub(bytes + behind);
        self.relocs.add(at, false, what);
    }

    /// As [`Self::mark`], of what follows from the address of an operand that
    /// is relative to the code; in 32-bit code none is.
    pub(super) fn mark_relative(&mut self, what: What, bytes: usize) {
        if !self.code32 {
            self.mark(what, bytes, 0);
        }
    }

    /// `mov dst, address` of a linear address.
    pub(super) fn mov_linear(&mut self, dst: u8, address: u64) {
        self.hot.mov_imm(dst, address);
        let width = Width::of_mov(address);
        self.mark(What::Linear(width), width.bytes(), 0);
    }

    /// `mov dst, address` of an operand, in a slow path.
    pub(super) fn cold_mov_operand(&mut self, dst: u8, address: u64) {
        self.cold.mov_imm(dst, address);
        if self.code32 {
            return;
        }
        let width = Width::of_mov(address);
        let at = self.cold.pos.wrapping_sub(width.bytes());
        self.relocs.add(at, true, What::Linear(width));
    }

    /// Notes a jump to the slow path that begins here.
    pub(super) fn mark_slow(&mut self, jump: usize) {
        match u16::try_from(self.cold.pos.wrapping_sub(self.relocs.cold)) {
            Ok(to) => self.relocs.add(jump, false, What::Slow(to)),
            Err(_) => self.relocs.fix(),
        }
    }

    /// Notes an exit whose jump begins here.
    pub(super) fn mark_exit(&mut self) {
        let at = self.cold.pos;
        self.relocs.add(at, true, What::Exit);
    }
}

/// Where the parts of a copy lie, and what for.
struct Move {
    hot: usize,
    cold: usize,
    /// By how much the code moves.
    by_hot: usize,
    by_cold: usize,
    /// By how much the linear address moves.
    by: u64,
    place: Place,
    second: Option<SecondPage>,
    exit: usize,
}

/// Copies a live block to where `place` says, which must be other linear
/// addresses of the same code, and adds the copy to the index. `None`: it
/// must be translated.
pub(crate) fn copy(
    cache: &CodeCache,
    index: &mut Index,
    source: &mut dyn Source,
    from: u32,
    place: Place,
) -> Result<Option<u32>, NoBlock> {
    let block = index.blocks[from as usize].clone();
    let Some(relocs) = &block.relocs else {
        return Ok(None);
    };
    let Some(second) = second_page(&block, index, source, place) else {
        return Ok(None);
    };
    let (mut hot, mut cold) = cache.emitters(index);
    let first = block.entries.cross_page as usize;
    // Jumps that are linked must stay inside their cache lines.
    hot.pos += first.wrapping_sub(hot.pos) % 64;
    let m = Move {
        hot: hot.pos,
        cold: cold.pos,
        by_hot: hot.pos.wrapping_sub(first),
        by_cold: cold.pos.wrapping_sub(block.cold.0 as usize),
        by: place.rip.wrapping_sub(block.rip),
        place,
        second,
        exit: cache.common.exit,
    };
    hot.copy(first, block.end as usize - first);
    cold.copy(
        block.cold.0 as usize,
        (block.cold.1 - block.cold.0) as usize,
    );
    if hot.full || cold.full {
        return Err(NoBlock::Full);
    }
    for r in relocs.iter() {
        let done = match r.cold {
            true => m.set_cold(&mut cold, m.cold + r.at as usize, r.what),
            false => m.set_hot(&mut hot, m.hot + r.at as usize, r.what),
        };
        if !done {
            return Ok(None);
        }
    }
    let moved = |at: u32| (at as usize).wrapping_add(m.by_hot) as u32;
    let copy = Block {
        key: place.key,
        rip: place.rip,
        ram_page: place.ram_page,
        entries: Entries {
            cross_page: moved(block.entries.cross_page),
            indirect: moved(block.entries.indirect),
            poll: moved(block.entries.poll),
            direct: moved(block.entries.direct),
        },
        end: moved(block.end),
        cold: (m.cold as u32, cold.pos as u32),
        again: (block.again as usize).wrapping_add(m.by_cold) as u32,
        second,
        ..block
    };
    index.hot = (hot.pos + 15) & !15;
    index.cold = cold.pos;
    Ok(Some(index.insert(copy)))
}

/// The second page of a copy; `None` if what is around the code is mapped
/// otherwise than it was for the block.
fn second_page(
    block: &Block,
    index: &mut Index,
    source: &mut dyn Source,
    place: Place,
) -> Option<Option<SecondPage>> {
    let page = place.rip & !0xfff;
    for p in block.peeked.iter() {
        let mut there = page.wrapping_add((i64::from(p.page) << 12) as u64);
        if place.key.code32 {
            there &= 0xffff_ffff;
        }
        if source.ram_page(there) != Some(p.ram_page) {
            return None;
        }
    }
    let Some(second) = block.second else {
        return Some(None);
    };
    let next = page.wrapping_add(4096);
    (source.ram_page(next) == Some(second.ram_page)).then(|| {
        let map = index.map_id(next, second.ram_page, place.user());
        Some(SecondPage { map, ..second })
    })
}

impl Move {
    /// Sets a place of the hot code; false if it does not fit its encoding.
    fn set_hot(&self, a: &mut Asm, at: usize, what: What) -> bool {
        let page = self.place.rip & !0xfff;
        let page_of = |second| match second {
            true => page.wrapping_add(4096),
            false => page,
        };
        match what {
            What::Slow(to) => a.patch_rel(at, self.cold + to as usize),
            What::Map { second: false } => a.patch32(at, self.place.key.map),
            What::Map { second: true } => match self.second {
                Some(s) => a.patch32(at, s.map),
                None => return false,
            },
            What::Page { second } => a.patch32(at, code_page_slot(page_of(second)) as u32),
            What::Linear(width) => return self.set_linear(a, at, width, self.by),
            What::LowLinear => {
                let moved = a.read32(at).wrapping_add(self.by as u32);
                a.patch32(at, moved);
            }
            What::Tag(width) => return self.set_linear(a, at, width, self.by.wrapping_neg()),
            What::TlbEntry { write, host } => {
                let part = match host {
                    true => offset_of!(TlbBank, host),
                    false => offset_of!(TlbBank, neg_page),
                };
                let array = bank(self.place.key.view, write) + part;
                let entry = (a.read32(at) as usize).wrapping_sub(array) / 8;
                let moved = entry.wrapping_add((self.by >> 12) as usize) & (TLB_ENTRIES - 1);
                a.patch32(at, (array + moved * 8) as u32);
            }
            What::Here(before) => a.patch32(at, (at - usize::from(before)) as u32),
            What::Exit => return false,
        }
        true
    }

    /// The same for the slow paths.
    fn set_cold(&self, a: &mut Asm, at: usize, what: What) -> bool {
        match what {
            What::Linear(width) => self.set_linear(a, at, width, self.by),
            What::Exit => {
                // E9 rel32
                a.patch32(at + 1, rel32(at + 1, self.exit));
                self.set_record(a, at + 5)
            }
            _ => false,
        }
    }

    fn set_linear(&self, a: &mut Asm, at: usize, width: Width, by: u64) -> bool {
        let old = match width {
            Width::Zero => u64::from(a.read32(at)),
            Width::Sign => i64::from(a.read32(at) as i32) as u64,
            Width::Full => a.read64(at),
        };
        let new = old.wrapping_add(by);
        let fits = match width {
            // Between the halves of what 32 bits hold, other forms are shorter.
            Width::Zero => new >> 32 == 0 && Width::is_signed(new) == Width::is_signed(old),
            Width::Sign => Width::is_signed(new) && new >> 63 == old >> 63,
            Width::Full => Width::of_mov(new) == Width::Full,
        };
        if fits {
            a.patch32(at, new as u32);
            if width == Width::Full {
                a.patch32(at + 4, (new >> 32) as u32);
            }
        }
        fits
    }

    fn set_record(&self, a: &mut Asm, at: usize) -> bool {
        let mut bytes = [0; RECORD_LENGTH];
        a.read(at, &mut bytes);
        let mut r = Record::read(&bytes);
        let Some(kind) = r.kind() else { return false };
        let moved = |v: u32| match v {
            0 => 0,
            v => (v as usize).wrapping_add(self.by_hot) as u32,
        };
        r.a = moved(r.a);
        if kind != Kind::GroupMiss {
            r.next = moved(r.next);
        }
        if r.map != 0 {
            r.map = self.place.key.map;
        }
        if kind != Kind::Indirect {
            r.rip = r.rip.wrapping_add(self.by);
            if self.place.key.code32 {
                r.rip &= 0xffff_ffff;
            }
        }
        a.patch(at, &r.bytes());
        true
    }
}

/// Which code a block was made from, and for what state of the CPU: blocks
/// with the same are copies of each other, unless what is around the code is
/// mapped otherwise.
pub(crate) fn origin(ram_page: u64, key: BlockKey) -> (u64, BlockKey) {
    (ram_page, BlockKey { map: 0, ..key })
}

/// The block's code without what depends on where in the cache it lies.
#[cfg(test)]
pub(super) fn normal(cache: &CodeCache, index: &Index, b: u32) -> (Vec<u8>, Vec<(u32, u16)>) {
    let block = &index.blocks[b as usize];
    let (asm, _) = cache.emitters(index);
    let (first, cold) = (block.entries.cross_page, block.cold);
    let mut code = vec![0; (block.end - first) as usize];
    asm.read(first as usize, &mut code);
    let mut slow = vec![0; (cold.1 - cold.0) as usize];
    asm.read(cold.0 as usize, &mut slow);
    let target = |from: u32, at: usize| {
        let rel = asm.read32(from as usize + at) as i32;
        (i64::from(from) + at as i64 + 4 + i64::from(rel)) as u32
    };
    for r in block.relocs.iter().flat_map(|r| r.iter()) {
        let at = r.at as usize;
        match r.what {
            What::Slow(to) => {
                assert_eq!(target(first, at), cold.0 + u32::from(to));
                code[at..at + 4].copy_from_slice(&u32::from(to).to_le_bytes());
            }
            What::Here(before) => {
                let here = asm.read32(first as usize + at);
                assert_eq!(here as usize, first as usize + at - usize::from(before));
                code[at..at + 4].fill(0);
            }
            What::Exit => {
                assert_eq!(target(cold.0, at + 1) as usize, cache.common.exit);
                slow[at + 1..at + 5].fill(0);
                let mut bytes = [0; RECORD_LENGTH];
                bytes.copy_from_slice(&slow[at + 5..at + 5 + RECORD_LENGTH]);
                let mut record = Record::read(&bytes);
                let relative = |v: u32| if v == 0 { 0 } else { v - first + 1 };
                record.a = relative(record.a);
                if record.kind() != Some(Kind::GroupMiss) {
                    record.next = relative(record.next);
                }
                slow[at + 5..at + 5 + RECORD_LENGTH].copy_from_slice(&record.bytes());
            }
            _ => {}
        }
    }
    let e = block.entries;
    let mut places: Vec<_> = [e.indirect, e.poll, e.direct, block.end]
        .map(|at| (at - first, 0))
        .to_vec();
    places.push((block.again - cold.0, 0));
    places.extend(block.starts.iter().map(|s| (s.at, s.offset)));
    code.extend(slow);
    (code, places)
}
