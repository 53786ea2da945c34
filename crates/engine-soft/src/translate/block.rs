//! From guest bytes to a translated block: decode, find which flags are live,
//! emit.

use std::sync::Arc;

use iced_x86::{
    Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, InstructionInfoFactory,
};

use crate::cpu::View;
use crate::translate::cache::{Block, BlockKey, CodeCache, Index, Peeked, SecondPage, Start};
use crate::translate::classify::{ALL_FLAGS, Class, classify, flags, is_shift};
use crate::translate::emit::Emitter;
use crate::translate::emit_jump::condition;
use crate::translate::emit_slow::{Slow, SlowKind};
use crate::translate::exit::{Kind, Record};
use crate::translate::flags::Flags;
use crate::translate::group;
use crate::translate::loops::{self, Plan};
use crate::translate::lower::lower;
use crate::translate::relocate::Relocs;

/// Most instructions in a block.
const MAX_INSTRUCTIONS: usize = 64;
/// Most side exits (branches that were run past) in a block.
const MAX_BRANCHES: usize = 6;

/// Where a block starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub rip: u64,
    pub key: BlockKey,
    pub ram_page: u64,
}

impl Place {
    pub(super) fn user(&self) -> bool {
        self.key.view == View::User as u8
    }

    fn bits(&self) -> u32 {
        if self.key.code32 { 32 } else { 64 }
    }
}

/// What the translator asks of its surroundings.
pub(crate) trait Source {
    /// Copies code bytes at a linear address, up to the end of its page;
    /// returns how many. 0 if it cannot be fetched now.
    fn fetch(&mut self, rip: u64, out: &mut [u8]) -> usize;
    /// RAM page that a linear address is mapped to for fetches now.
    fn ram_page(&mut self, rip: u64) -> Option<u64>;
    /// Whether stores to a RAM page are seen.
    fn is_watched(&self, ram_page: u64) -> bool;
}

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBlock {
    /// The first instruction must be interpreted.
    Interpret,
    /// The cache is full: empty it, and try again.
    Full,
    /// The block reaches into this RAM page, which is not watched yet.
    Watch(u64),
}

struct Insn {
    i: Instruction,
    class: Class,
    /// Flags live before the instruction (that it or a later one reads).
    live: u32,
}

/// Translates blocks; keeps its buffers.
pub(crate) struct Translator {
    tools: Option<(Encoder, InstructionInfoFactory)>,
    bmi2: bool,
}

impl Default for Translator {
    fn default() -> Self {
        Self {
            tools: None,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
        }
    }
}

impl Translator {
    /// Translates the block at `place` and adds it to the index. The page must
    /// be watched already, so that no later change of its bytes is missed.
    pub fn translate(
        &mut self,
        cache: &CodeCache,
        index: &mut Index,
        source: &mut dyn Source,
        place: Place,
    ) -> Result<u32, NoBlock> {
        let mut buffer = [0u8; MAX_INSTRUCTIONS * 15 + 15];
        let mut bytes = fetch_block(source, place.rip, &mut buffer);
        let in_page = 4096 - (place.rip & 0xfff) as usize;
        let (mut insns, mut length) = decode(bytes, in_page, place);
        let mut second = None;
        if length > in_page {
            let next_page = (place.rip & !0xfff).wrapping_add(4096);
            match source.ram_page(next_page) {
                Some(page) if !source.is_watched(page) => return Err(NoBlock::Watch(page)),
                Some(page) => {
                    second = Some(SecondPage {
                        ram_page: page,
                        map: index.map_id(next_page, page, place.user()),
                        to: (length - in_page) as u16,
                    });
                }
                None => {
                    bytes = &bytes[..in_page];
                    (insns, length) = decode(bytes, in_page, place);
                }
            }
        }
        if insns.is_empty() {
            return Err(NoBlock::Interpret);
        }
        let mut ahead = Ahead {
            source,
            bits: place.bits(),
            seen: Vec::new(),
        };
        let live_out = liveness(
            &mut insns,
            place.rip.wrapping_add(length as u64),
            &mut ahead,
        );
        let peeked = ahead.ranges(place.rip)?;
        let (hot, cold) = cache.emitters(index);
        let (encoder, info) = self
            .tools
            .take()
            .unwrap_or_else(|| (Encoder::new(64), InstructionInfoFactory::new()));
        let mut e = Emitter {
            hot,
            cold,
            slows: Vec::with_capacity(insns.len() * 2),
            view: place.key.view,
            code32: place.key.code32,
            common: cache.common,
            encoder,
            info,
            bmi2: self.bmi2,
            insn: 0,
            member: None,
            holds: 0,
            relied: Vec::new(),
            relocs: Relocs::new(index.hot, index.cold),
            in_group: false,
            flags: Flags::Host,
            needs_flags: false,
        };
        let mut block = emit_block(&mut e, place, &insns, bytes, length, live_out, second);
        block.second = second;
        block.peeked = peeked;
        block.relocs = std::mem::replace(&mut e.relocs, Relocs::new(0, 0)).finish();
        let full = e.hot.full || e.cold.full;
        let (hot, cold) = (e.hot.pos, e.cold.pos);
        self.tools = Some((e.encoder, e.info));
        if full {
            return Err(NoBlock::Full);
        }
        index.hot = (hot + 15) & !15;
        index.cold = cold;
        Ok(index.insert(block))
    }
}

/// Bytes from `rip` on: to the end of its page, and what an instruction that
/// begins there can need of the next.
fn fetch_block<'a>(
    source: &mut dyn Source,
    rip: u64,
    buffer: &'a mut [u8; MAX_INSTRUCTIONS * 15 + 15],
) -> &'a [u8] {
    let most = buffer.len() - 15;
    let mut n = source.fetch(rip, &mut buffer[..most]);
    if n == 4096 - (rip & 0xfff) as usize {
        n += source.fetch(rip.wrapping_add(n as u64), &mut buffer[n..n + 15]);
    }
    &buffer[..n]
}

fn decode(bytes: &[u8], in_page: usize, place: Place) -> (Vec<Insn>, usize) {
    let mut decoder = Decoder::with_ip(place.bits(), bytes, place.rip, DecoderOptions::NONE);
    let fpu = place.key.fpu;
    let mut out = Vec::with_capacity(32);
    let mut branches = 0;
    let mut length = 0;
    while out.len() < MAX_INSTRUCTIONS && decoder.can_decode() && length < in_page {
        let mut i = decoder.decode();
        if i.is_invalid() {
            break;
        }
        let mut class = classify(&i);
        if place.key.code32 && !matches!(class, Class::Emulate | Class::EmulateEnd) {
            lower(&mut i);
        }
        let may = match i.encoding() {
            EncodingKind::Legacy => fpu.legacy,
            _ => fpu.vex,
        };
        if !may && uses_fpu(&i) {
            class = Class::Emulate;
        }
        length = decoder.position();
        out.push(Insn { i, class, live: 0 });
        match class {
            Class::Branch => {
                branches += 1;
                if branches > MAX_BRANCHES || i.near_branch_target() <= i.ip() {
                    break;
                }
            }
            Class::Jump
            | Class::Call
            | Class::JumpIndirect
            | Class::CallIndirect
            | Class::Return
            | Class::EmulateEnd => break,
            _ => {}
        }
    }
    (out, length)
}

/// Whether the instruction may raise #NM or, for want of CR4 bits, #UD.
fn uses_fpu(i: &Instruction) -> bool {
    use iced_x86::EncodingKind as E;
    match i.encoding() {
        E::Legacy => {
            (0..i.op_count()).any(|k| {
                let r = i.op_register(k);
                i.op_kind(k) == iced_x86::OpKind::Register
                    && (r.is_vector_register() || r.is_st() || r.is_mm())
            }) || i.cpuid_features().iter().any(|f| {
                use iced_x86::CpuidFeature as C;
                matches!(
                    f,
                    C::FPU | C::FPU287 | C::FPU387 | C::MMX | C::SSE | C::SSE2
                )
            })
        }
        _ => (0..i.op_count()).any(|k| i.op_register(k).is_vector_register()),
    }
}

/// Fills in `live` of each instruction; returns the flags live at the end.
fn liveness(insns: &mut [Insn], end: u64, ahead: &mut Ahead) -> u32 {
    let falls_through = insns.last().is_none_or(|l| {
        use iced_x86::Mnemonic::{Clac, Stac};
        matches!(l.i.mnemonic(), Clac | Stac)
            || !matches!(
                l.class,
                Class::Jump
                    | Class::Call
                    | Class::JumpIndirect
                    | Class::CallIndirect
                    | Class::Return
                    | Class::EmulateEnd
            )
    });
    let live_out = if falls_through {
        ahead.peek(end, 2)
    } else {
        ALL_FLAGS
    };
    let mut live = live_out;
    for insn in insns.iter_mut().rev() {
        match insn.class {
            Class::Branch => live |= ahead.peek(insn.i.near_branch_target(), 2),
            Class::Jump | Class::Call => live = ahead.peek(insn.i.near_branch_target(), 2),
            _ => {}
        }
        let (read, killed) = flags(&insn.i, insn.class);
        live = read | live & !killed;
        insn.live = live;
    }
    live_out
}

/// Looks at the code that a block goes on to, and remembers where: if it
/// changes, what the block assumed of the flags is void.
struct Ahead<'a> {
    source: &'a mut dyn Source,
    bits: u32,
    /// Linear addresses and lengths.
    seen: Vec<(u64, u16)>,
}

impl Ahead<'_> {
    /// What was looked at, in RAM.
    fn ranges(self, base: u64) -> Result<Arc<[Peeked]>, NoBlock> {
        let mut out: Vec<Peeked> = Vec::with_capacity(self.seen.len());
        for (rip, length) in self.seen {
            let Some(ram_page) = self.source.ram_page(rip) else {
                continue;
            };
            if !self.source.is_watched(ram_page) {
                return Err(NoBlock::Watch(ram_page));
            }
            let from = (rip & 0xfff) as u16;
            let p = Peeked {
                ram_page,
                page: (rip >> 12).wrapping_sub(base >> 12) as i32,
                from,
                to: from + length,
            };
            if !out.contains(&p) {
                out.push(p);
            }
        }
        Ok(out.into())
    }

    /// Flags that code at `rip` may read before it overwrites them.
    fn peek(&mut self, rip: u64, depth: u32) -> u32 {
        let mut bytes = [0u8; 160];
        let n = self.source.fetch(rip, &mut bytes);
        let mut decoder = Decoder::with_ip(self.bits, &bytes[..n], rip, DecoderOptions::NONE);
        let (live, unknown, on) = peek_straight(&mut decoder);
        let length = decoder.position() as u16;
        // Where all flags count as live, no change can do harm.
        if live | unknown != ALL_FLAGS || on.is_some() {
            self.seen.push((rip, length));
        }
        match on.filter(|_| depth > 0) {
            None => live | unknown,
            Some((to, through)) => {
                let mut more = self.peek(to, depth - 1);
                if let Some(next) = through {
                    more |= self.peek(next, depth - 1);
                }
                live | more & unknown
            }
        }
    }
}

/// Follows code up to a branch: flags that it surely reads, flags of which it
/// says nothing, and where it goes on (target; behind the branch).
fn peek_straight(decoder: &mut Decoder) -> (u32, u32, Option<(u64, Option<u64>)>) {
    let (mut live, mut unknown) = (0, ALL_FLAGS);
    for _ in 0..32 {
        if !decoder.can_decode() {
            break;
        }
        let i = decoder.decode();
        if i.is_invalid() {
            break;
        }
        let class = classify(&i);
        let (read, killed) = flags(&i, class);
        live |= read & unknown;
        unknown &= !killed;
        if unknown == 0 {
            break;
        }
        match class {
            Class::Branch => {
                let on = (i.near_branch_target(), Some(i.next_ip()));
                return (live, unknown, Some(on));
            }
            Class::Jump | Class::Call => {
                return (live, unknown, Some((i.near_branch_target(), None)));
            }
            Class::JumpIndirect | Class::CallIndirect | Class::Return | Class::EmulateEnd => break,
            _ => {}
        }
    }
    (live, unknown, None)
}

fn emit_block(
    e: &mut Emitter,
    place: Place,
    insns: &[Insn],
    bytes: &[u8],
    length: usize,
    live_out: u32,
    second: Option<SecondPage>,
) -> Block {
    let base = place.rip;
    let cold_start = e.cold.pos;
    let live = insns[0].live != 0;
    let entries = e.prologue(base, place.key.map, live, clobbers_first(insns));
    let (members, plan) = if place.key.ungrouped {
        (vec![None; insns.len()], None)
    } else {
        let list: Vec<_> = insns.iter().map(|n| (n.i, n.class)).collect();
        // Where a register wraps at 32 bits, a loop's host addresses do not.
        let plan = if live || second.is_some() || place.key.code32 {
            None
        } else {
            loops::plan(&list, base, &mut e.info)
        };
        (group::find(&list, &mut e.info), plan)
    };
    let mut starts = Vec::with_capacity(insns.len() + 1);
    // The jump back of a loop that has a plan.
    let mut back = 0;
    for (k, insn) in insns.iter().enumerate() {
        e.insn = k;
        e.member = members[k];
        let later = members[k + 1..].iter().flatten().next();
        e.in_group = later.is_some_and(|m| m.check.is_none());
        let from = (insn.i.ip() - base) as usize;
        let raw = &bytes[from..from + insn.i.len()];
        starts.push(Start {
            at: e.hot.pos as u32,
            offset: (insn.i.ip() & 0xfff) as u16,
            home: false,
        });
        if let Some(second) = second
            && k + 1 == insns.len()
        {
            e.check_second_page(base, second.map, insn.live != 0);
        }
        let after = insns.get(k + 1).map_or(live_out, |n| n.live);
        if plan.is_some() && k + 1 == insns.len() {
            e.flags_to_host();
            back = e.hot.jcc(condition(&insn.i));
            continue;
        }
        starts[k].home = emit_insn(e, insn, raw, after);
    }
    let last = &insns[insns.len() - 1];
    if !matches!(
        last.class,
        Class::Jump
            | Class::Call
            | Class::JumpIndirect
            | Class::CallIndirect
            | Class::Return
            | Class::EmulateEnd
    ) {
        let next = base.wrapping_add(length as u64);
        starts.push(Start {
            at: e.hot.pos as u32,
            offset: (next & 0xfff) as u16,
            home: false,
        });
        if live_out != 0 {
            e.flags_to_host();
        }
        let out = e.hot.pos;
        e.goto(next, last.i.ip(), 0);
        if let Some(plan) = plan {
            let setup = e.hot.pos;
            e.hot.patch_rel(back, setup);
            emit_loop(e, &plan, insns, bytes, (setup, out), &mut starts);
        }
    }
    let end = e.hot.pos as u32;
    let slows = std::mem::take(&mut e.slows);
    for s in &slows {
        let insn = &insns[s.insn];
        let next = if e.relied.contains(&s.insn) {
            0
        } else {
            starts.get(s.insn + 1).map_or(0, |s| s.at)
        };
        e.slow_path(
            s,
            insn.i.ip(),
            insn.i.len() as u8,
            next,
            (base, place.key.map),
        );
    }
    let again = e.cold.pos as u32;
    let mut record = Record::new(Kind::Again, base);
    record.a = entries.cross_page;
    e.leave_with(record);
    Block {
        key: place.key,
        rip: base,
        ram_page: place.ram_page,
        from: (base & 0xfff) as u16,
        to: ((base & 0xfff) as usize + length).min(4096) as u16,
        entries,
        end,
        again,
        cold: (cold_start as u32, e.cold.pos as u32),
        relocs: None,
        starts: starts
            .iter()
            .map(|s| Start {
                at: s.at - entries.cross_page,
                ..*s
            })
            .collect(),
        second: None,
        peeked: Arc::default(),
        dead: false,
    }
}

/// The body of a loop once more, without checks.
fn emit_loop(
    e: &mut Emitter,
    plan: &Plan,
    insns: &[Insn],
    bytes: &[u8],
    (setup, out): (usize, usize),
    starts: &mut Vec<Start>,
) {
    let mut held = e.loop_setup(plan);
    let top = e.hot.pos;
    let base = insns[0].i.ip();
    e.in_group = false;
    e.flags = Flags::Host;
    for (k, insn) in insns.iter().enumerate() {
        e.insn = k;
        starts.push(Start {
            at: e.hot.pos as u32,
            offset: (insn.i.ip() & 0xfff) as u16,
            home: false,
        });
        if k + 1 == insns.len() {
            e.loop_end(condition(&insn.i), plan, top, setup, out);
        } else if insn.class == Class::Memory {
            e.needs_flags = false;
            e.loop_access(&insn.i, k, plan, &mut held);
        } else {
            let from = (insn.i.ip() - base) as usize;
            let raw = &bytes[from..from + insn.i.len()];
            let after = insns[k + 1].live;
            emit_insn(e, insn, raw, after);
        }
    }
}

/// Whether the flags that are live at the start of a block are clobbered by a
/// check before an instruction needs them.
fn clobbers_first(insns: &[Insn]) -> bool {
    for insn in insns {
        match insn.class {
            Class::Skip => {}
            Class::Plain if i_touches_flags(insn) => return false,
            Class::Plain => {}
            Class::Branch | Class::Jump | Class::Emulate | Class::EmulateEnd => return false,
            _ => return insn.live != 0,
        }
    }
    false
}

fn i_touches_flags(insn: &Insn) -> bool {
    (insn.i.rflags_read() | insn.i.rflags_modified()) & ALL_FLAGS != 0
}

/// Emits an instruction; whether the guest's flags are at home while its own
/// bytes run.
fn emit_insn(e: &mut Emitter, insn: &Insn, raw: &[u8], live_after: u32) -> bool {
    let i = &insn.i;
    let live = insn.live != 0;
    let (read, killed) = flags(i, insn.class);
    let modified = match insn.class {
        Class::Emulate | Class::EmulateEnd => 0,
        // Where their effective count is zero, CPUs change flags all the same.
        _ if is_shift(i.mnemonic()) => ALL_FLAGS,
        _ => i.rflags_modified() & ALL_FLAGS,
    };
    e.needs_flags = read != 0 || modified != 0 && live_after & !killed != 0;
    let keeps = matches!(
        insn.class,
        Class::Skip | Class::Plain | Class::Memory | Class::Branch
    );
    if !keeps {
        e.holds = 0;
    }
    match insn.class {
        Class::Skip => {}
        Class::Plain => e.plain(i, raw),
        Class::Memory => e.memory(i, live),
        Class::Push => e.push(i, live),
        Class::Pop => e.pop(i, live),
        Class::Leave => e.leave(live),
        Class::Branch | Class::Jump => {
            if live {
                e.flags_to_host();
            }
            match insn.class {
                Class::Branch => e.branch(i, raw),
                _ => e.goto(i.near_branch_target(), i.ip(), 0),
            }
        }
        Class::Call => e.call(i, live, 0),
        Class::JumpIndirect => e.jump_indirect(i, live),
        Class::CallIndirect => e.call_indirect(i, live),
        Class::Return => e.ret(i, live),
        Class::BitString => e.bit_string(i, live),
        Class::Emulate | Class::EmulateEnd => e.system(i, live_after),
    }
    let home = live && e.flags == Flags::Home;
    if modified != 0 {
        e.flags = Flags::Host;
    }
    home
}

/// Slow paths refer to instructions by index.
const _: fn(&Slow) -> &SlowKind = |s| &s.what;
