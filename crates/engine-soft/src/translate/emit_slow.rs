//! Slow paths: what hot code leaves for, out of its way.

use std::mem::offset_of;

use crate::cpu::TlbBank;
use crate::translate::asm::reg;
use crate::translate::emit::Emitter;
use crate::translate::emit_check::{bank, indexed};
use crate::translate::exit::{Kind, Record};
use crate::translate::flags;

/// A slow path to be emitted once the hot code stands.
pub(crate) struct Slow {
    /// rel32 that jumps to it.
    pub jump: usize,
    /// Index of the instruction in the block.
    pub insn: usize,
    /// The host's flags are clobbered; the guest's are at home.
    pub home: bool,
    pub what: SlowKind,
}

pub(crate) enum SlowKind {
    Miss {
        write: bool,
        size: u8,
        retry: usize,
        /// The address, if it is a constant.
        constant: Option<u64>,
        /// A group's check: bytes of its range.
        group: Option<u16>,
    },
    Emulate {
        /// Goes on behind the instruction in the same block.
        resume: bool,
    },
    EmulateHere,
    Link {
        target: u64,
        /// Where the rel32 to be linked is.
        at: usize,
        poll: bool,
    },
    Poll,
    /// The indirect entry's check failed: r14 holds the target.
    WrongTarget,
    /// The page is not mapped as it was.
    WrongPage,
}

impl Emitter {
    /// Emits one slow path. `resume(n)` gives the place of instruction `n`,
    /// if the block has it.
    pub fn slow_path(&mut self, s: &Slow, rip: u64, len: u8, next: u32, start: (u64, u32)) {
        let at = self.cold.pos;
        self.mark_slow(s.jump);
        self.hot.patch_rel(s.jump, at);
        let mut group_span = None;
        let record = match s.what {
            SlowKind::Miss {
                write,
                size,
                retry,
                constant,
                group,
            } => {
                if let Some(address) = constant {
                    self.cold_mov_operand(reg::T0, address);
                } else {
                    let array = bank(self.view, write) + offset_of!(TlbBank, neg_page);
                    let tags = indexed(array);
                    self.cold.op_mem(&[0x2b], reg::T0, tags, true, true);
                }
                let kind = if group.is_some() {
                    Kind::GroupMiss
                } else {
                    Kind::TlbMiss
                };
                let mut r = Record::new(kind, rip);
                r.size = size;
                r.entry = u8::from(write);
                r.a = retry as u32;
                group_span = group;
                r
            }
            SlowKind::Emulate { .. } | SlowKind::EmulateHere => Record::new(Kind::Emulate, rip),
            SlowKind::Link { target, at, poll } => {
                let mut r = Record::new(Kind::Link, target);
                r.a = at as u32;
                r.entry = u8::from(poll);
                r
            }
            SlowKind::Poll => Record::new(Kind::Poll, start.0),
            SlowKind::WrongTarget => Record::new(Kind::Indirect, 0),
            SlowKind::WrongPage => {
                let mut r = Record::new(Kind::Poll, start.0);
                r.entry = 1;
                r
            }
        };
        if s.home {
            flags::restore(&mut self.cold);
        }
        let mut record = record;
        record.map = start.1;
        record.len = len;
        record.next = match s.what {
            SlowKind::Emulate { resume: false } => 0,
            _ => group_span.map_or(next, u32::from),
        };
        self.leave_with(record);
    }

    /// `lea r15, [record]; jmp exit`, and the record.
    pub fn leave_with(&mut self, record: Record) {
        self.cold.bytes(&[0x4c, 0x8d, 0x3d, 5, 0, 0, 0]);
        self.mark_exit();
        self.cold.jmp_to(self.common.exit);
        record.write(&mut self.cold);
    }
}
