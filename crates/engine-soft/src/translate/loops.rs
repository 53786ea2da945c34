//! Loops of one block: checks once per page instead of once per access.
//!
//! Where every address in a loop is made of registers that move by constants,
//! the second iteration begins by checking each *stream* of accesses once: its
//! pages, and how many iterations stay inside them. As many then run without
//! checks; each access needs one register, which holds what makes a guest
//! address the host's. No vCPU reaches a safe point meanwhile, so what was
//! checked stays true (see `world`).

use std::mem::offset_of;

use iced_x86::{Instruction, InstructionInfoFactory};

use crate::cpu::Cpu;
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::classify::Class;
use crate::translate::emit::{Emitter, Place};
use crate::translate::emit_slow::SlowKind;
use crate::translate::flags::Flags;
use crate::translate::group::{Access, is_scratch, moves_by, operand};

/// Most streams of a loop.
pub(crate) const STREAMS: usize = 6;
/// Longest range of a stream in one iteration, in bytes.
const MAX_SPAN: i64 = 512;
/// Most bytes that a stream moves by in one iteration: at least 16 iterations
/// of it are in a page.
const MAX_STEP: i64 = 256;

const COUNT: usize = offset_of!(Cpu, jit.loop_count);
const LIMIT: usize = offset_of!(Cpu, jit.loop_limit);

fn slot(stream: usize) -> usize {
    offset_of!(Cpu, jit.loop_streams) + stream * 8
}

/// Accesses off the same registers.
struct Stream {
    base: u8,
    index: Option<(u8, u8)>,
    /// The index moves, and not the base.
    by_index: bool,
    /// Range relative to the registers at the start of an iteration.
    low: i64,
    high: i64,
    /// Bytes it moves by in an iteration.
    step: i64,
    write: bool,
    uses: u32,
}

/// How a loop is run without checks.
pub(crate) struct Plan {
    streams: Vec<Stream>,
    /// The stream of each instruction.
    uses: Vec<Option<usize>>,
    /// A register that moves, and by how much in an iteration.
    counter: (u8, i64),
}

/// How far registers have moved since the start of an iteration.
struct Moves<'a> {
    insns: &'a [(Instruction, Class)],
    info: &'a mut InstructionInfoFactory,
}

impl Moves<'_> {
    /// Before instruction `k`; `None`: not by a constant.
    fn until(&mut self, register: u8, k: usize) -> Option<i64> {
        let mut sum = 0i64;
        for (i, class) in &self.insns[..k] {
            sum = sum.checked_add(moves_by(register, i, *class, self.info)?)?;
        }
        (sum.abs() < 1 << 20).then_some(sum)
    }

    fn whole(&mut self, register: u8) -> Option<i64> {
        self.until(register, self.insns.len())
    }
}

/// The plan for a block that ends with a jump to its own start, if it is fit.
/// No flags may be live at its start.
pub(crate) fn plan(
    insns: &[(Instruction, Class)],
    start: u64,
    info: &mut InstructionInfoFactory,
) -> Option<Plan> {
    let (last, before) = insns.split_last()?;
    let jumps_back = last.1 == Class::Branch
        && last.0.is_jcc_short_or_near()
        && last.0.near_branch_target() == start;
    if !jumps_back || !before.iter().all(|(i, class)| is_fit(i, *class, info)) {
        return None;
    }
    let mut streams: Vec<Stream> = Vec::new();
    let mut uses = vec![None; insns.len()];
    for (k, (i, class)) in before.iter().enumerate() {
        if *class == Class::Memory {
            let access = operand(i, info)?;
            let mut moves = Moves { insns, info };
            uses[k] = Some(add(&mut streams, &access, k, &mut moves)?);
        }
    }
    let moving = streams.iter().find(|s| s.step != 0)?;
    let counter = match moving.index {
        Some((index, _)) if moving.by_index => index,
        _ => moving.base,
    };
    let step = Moves { insns, info }.whole(counter)?;
    Some(Plan {
        streams,
        uses,
        counter: (counter, step),
    })
}

fn is_fit(i: &Instruction, class: Class, info: &mut InstructionInfoFactory) -> bool {
    let kind = match class {
        Class::Skip | Class::Memory => true,
        Class::Plain => !i.is_ip_rel_memory_operand(),
        Class::Branch => i.is_jcc_short_or_near(),
        _ => false,
    };
    let used = info.info(i).used_registers();
    kind && !used.iter().any(|u| is_scratch(u.register()))
}

/// Adds an access to the stream it belongs to; which one that is.
fn add(
    streams: &mut Vec<Stream>,
    access: &Access,
    k: usize,
    moves: &mut Moves<'_>,
) -> Option<usize> {
    let (index, scale) = access.index.unwrap_or((access.base, 0));
    let indexed = access.index.is_some();
    let base_step = moves.whole(access.base)?;
    let index_step = if indexed { moves.whole(index)? } else { 0 };
    let step = base_step + (index_step << scale);
    if base_step != 0 && index_step != 0 || step.abs() > MAX_STEP {
        return None;
    }
    let mut at = access.disp + moves.until(access.base, k)?;
    if indexed {
        at += moves.until(index, k)? << scale;
    }
    let (low, high) = (at, at + access.size);
    let fits = |s: &&mut Stream| {
        (s.base, s.index) == (access.base, access.index)
            && s.high.max(high) - s.low.min(low) <= MAX_SPAN
    };
    i32::try_from(low).ok()?;
    if let Some((n, s)) = streams.iter_mut().enumerate().find(|(_, s)| fits(s)) {
        s.low = s.low.min(low);
        s.high = s.high.max(high);
        s.write |= access.write;
        s.uses += 1;
        return Some(n);
    }
    streams.push(Stream {
        base: access.base,
        index: access.index,
        by_index: index_step != 0,
        low,
        high,
        step,
        write: access.write,
        uses: 1,
    });
    (streams.len() <= STREAMS).then_some(streams.len() - 1)
}

/// Which scratch register holds which stream.
pub(crate) struct Held {
    /// For the whole loop.
    fixed: [Option<usize>; 2],
    /// In the second scratch register, until another is needed.
    passing: Option<usize>,
}

impl Emitter {
    /// Checks all streams, and makes ready for as many iterations as stay in
    /// their pages. Comes before each run without checks.
    pub fn loop_setup(&mut self, plan: &Plan) -> Held {
        self.insn = 0;
        self.member = None;
        self.holds = 0;
        self.flags = Flags::Host;
        self.hot.cmp_state32(offset_of!(Cpu, pending), 0);
        let jump = self.hot.jcc(cc::NE);
        self.slow(jump, SlowKind::Poll);
        let mut counted = false;
        for (n, stream) in plan.streams.iter().enumerate() {
            self.loop_stream(n, stream);
            if stream.step != 0 {
                self.loop_iterations(stream, counted);
                counted = true;
            }
        }
        let (counter, step) = plan.counter;
        self.hot.load(reg::T0, COUNT);
        // imul r14, r14, imm32
        self.hot.bytes(&[0x4d, 0x69, 0xf6]);
        self.hot.dword(step as i32 as u32);
        let end = Ea {
            base: Some(counter),
            index: Some((reg::T0, 0)),
            disp: 0,
        };
        self.hot.lea(reg::T0, end, true);
        self.hot.store(reg::T0, LIMIT);
        self.loop_hold(plan)
    }

    /// Checks a stream and stores what makes its addresses the host's.
    /// Afterwards T0 is the offset of its range in the page.
    fn loop_stream(&mut self, n: usize, stream: &Stream) {
        let start = Ea {
            base: Some(stream.base),
            index: stream.index,
            disp: stream.low as i32,
        };
        self.hot.lea(reg::T0, start, true);
        let span = (stream.high - stream.low) as u16;
        self.check_range(stream.write, span as usize, false, Some(span));
        let host = Ea {
            base: Some(reg::T0),
            index: Some((reg::T1, 0)),
            disp: (stream.low as i32).wrapping_neg(),
        };
        self.hot.lea(reg::T1, host, true);
        match stream.index.filter(|_| stream.by_index) {
            Some((index, 0)) => self.hot.op_reg(&[0x2b], reg::T1, index, true),
            Some((index, scale)) => {
                self.hot.store(reg::T0, LIMIT);
                // mov r14, index; shl r14, scale; sub r15, r14
                self.hot.mov(reg::T0, index);
                self.hot.bytes(&[0x49, 0xc1, 0xe6, scale]);
                self.hot.op_reg(&[0x2b], reg::T1, reg::T0, true);
                self.hot.load(reg::T0, LIMIT);
            }
            None => self.hot.op_reg(&[0x2b], reg::T1, stream.base, true),
        }
        self.hot.store(reg::T1, slot(n));
    }

    /// Iterations of a stream that stay in its page, from the offset in T0;
    /// lowers the count to that if it was `counted` before, else sets it.
    fn loop_iterations(&mut self, stream: &Stream, counted: bool) {
        if stream.step > 0 {
            // neg r14; add r14, 4096 - span
            self.hot.bytes(&[0x49, 0xf7, 0xde, 0x49, 0x81, 0xc6]);
            self.hot.dword((4096 - (stream.high - stream.low)) as u32);
        }
        let step = stream.step.unsigned_abs();
        if step.is_power_of_two() {
            // shr r14, log2 step
            let shift = step.trailing_zeros() as u8;
            self.hot.bytes(&[0x49, 0xc1, 0xee, shift]);
        } else {
            // At most what the division would give:
            // imul r14d, r14d, 65536 / step; shr r14, 16
            self.hot.bytes(&[0x45, 0x69, 0xf6]);
            self.hot.dword((65536 / step) as u32);
            self.hot.bytes(&[0x49, 0xc1, 0xee, 16]);
        }
        let one_more = Ea {
            base: Some(reg::T0),
            index: None,
            disp: 1,
        };
        self.hot.lea(reg::T0, one_more, true);
        let count = Ea {
            disp: COUNT as i32,
            ..Ea::default()
        };
        if counted {
            self.hot.op_mem(&[0x3b], reg::T0, count, true, true);
            // jae over the store
            self.hot.bytes(&[0x73, 0]);
            let from = self.hot.pos;
            self.hot.store(reg::T0, COUNT);
            let length = (self.hot.pos - from) as u8;
            if !self.hot.full {
                self.hot.patch8(from - 1, length);
            }
        } else {
            self.hot.store(reg::T0, COUNT);
        }
    }

    /// Gives the scratch registers to streams: one each to two, else one to
    /// the most used and one to the others by turns.
    fn loop_hold(&mut self, plan: &Plan) -> Held {
        let most = (0..plan.streams.len()).max_by_key(|n| plan.streams[*n].uses);
        let fixed = match plan.streams.len() {
            0..=2 => [Some(0), (plan.streams.len() == 2).then_some(1)],
            _ => [most, None],
        };
        for (t, n) in [reg::T0, reg::T1].into_iter().zip(fixed) {
            if let Some(n) = n {
                self.hot.load(t, slot(n));
            }
        }
        Held {
            fixed,
            passing: None,
        }
    }

    /// The memory operand of instruction `k`, on its way without a check.
    pub fn loop_access(&mut self, i: &Instruction, k: usize, plan: &Plan, held: &mut Held) {
        let Some(n) = plan.uses[k] else { return };
        let t = if held.fixed[0] == Some(n) {
            reg::T0
        } else {
            if held.fixed[1] != Some(n) && held.passing != Some(n) {
                self.hot.load(reg::T1, slot(n));
                held.passing = Some(n);
            }
            reg::T1
        };
        let stream = &plan.streams[n];
        let disp = i.memory_displacement64() as i64 as i32;
        let place = match stream.index.filter(|_| stream.by_index) {
            Some((index, scale)) => Place {
                base: t,
                index: Some(index),
                scale,
                disp,
            },
            None => Place {
                base: stream.base,
                index: Some(t),
                scale: 0,
                disp,
            },
        };
        self.access(i, place);
    }

    /// The end of an iteration without checks: out if the branch is not
    /// taken, on if there are iterations left, else to the checks again.
    pub fn loop_end(&mut self, condition: u8, plan: &Plan, top: usize, setup: usize, out: usize) {
        let jump = self.hot.jcc(condition ^ 1);
        self.hot.patch_rel(jump, out);
        let limit = Ea {
            disp: LIMIT as i32,
            ..Ea::default()
        };
        self.hot.op_mem(&[0x3b], plan.counter.0, limit, true, true);
        let jump = self.hot.jcc(cc::NE);
        self.hot.patch_rel(jump, top);
        self.hot.jmp_to(setup);
    }
}
