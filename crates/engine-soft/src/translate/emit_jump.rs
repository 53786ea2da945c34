//! Jumps, calls and returns, and the ways into a block.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind};

use crate::cpu::{Cpu, jump_table};
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::cache::Entries;
use crate::translate::emit::{BRANCHED, Emitter, TARGET, gpr, number, spilled};
use crate::translate::emit_slow::SlowKind;
use crate::translate::flags::Flags;
use crate::translate::relocate::{What, Width};

impl Emitter {
    /// Pushes the return address.
    fn push_return(&mut self, next: u64, live: bool) {
        let word = self.word() as i32;
        let place = self.stack_place(-word, true, live);
        self.store_imm(next, place);
        if self.code32 {
            self.mark(What::LowLinear, 4, 0);
        } else if Width::is_signed(next) {
            self.mark(What::Linear(Width::Sign), 4, 0);
        } else {
            // mov [r14], r15 is three bytes.
            let width = Width::of_mov(next);
            self.mark(What::Linear(width), width.bytes(), 3);
        }
        self.move_rsp(-word);
    }

    /// `call rel32`.
    pub fn call(&mut self, i: &Instruction, live: bool, page_map: u64) {
        self.push_return(i.next_ip(), live);
        if live {
            self.flags_to_host();
        }
        self.goto(i.near_branch_target(), i.ip(), page_map);
    }

    /// `call r/m64`.
    pub fn call_indirect(&mut self, i: &Instruction, live: bool) {
        self.load_target(i, live);
        self.hot.store(reg::T0, TARGET);
        self.push_return(i.next_ip(), live);
        self.hot.load(reg::T0, TARGET);
        self.dispatch();
    }

    /// `jmp r/m64`.
    pub fn jump_indirect(&mut self, i: &Instruction, live: bool) {
        self.load_target(i, live);
        self.dispatch();
    }

    fn load_target(&mut self, i: &Instruction, live: bool) {
        if i.op0_kind() == OpKind::Register {
            let n = number(i.op0_register());
            if spilled(n) {
                self.hot.load(reg::T0, gpr(n));
            } else {
                self.hot.mov(reg::T0, n);
            }
        } else {
            let place = self.operand(i, false, self.word(), live);
            self.hot
                .op_mem(&[0x8b], reg::T0, place.ea(), !self.code32, false);
        }
    }

    /// Near return, with `imm16` more bytes popped.
    pub fn ret(&mut self, i: &Instruction, live: bool) {
        let place = self.stack_place(0, false, live);
        self.hot
            .op_mem(&[0x8b], reg::T0, place.ea(), !self.code32, false);
        let extra = if i.op_count() > 0 {
            i32::from(i.immediate16())
        } else {
            0
        };
        self.move_rsp(self.word() as i32 + extra);
        self.dispatch();
    }

    /// Jumps to the translation of the address in T0.
    pub(super) fn dispatch(&mut self) {
        self.flags_to_home();
        // mov dword gs:[branched], imm32
        let here = self.hot.pos;
        let branched = Ea {
            disp: BRANCHED as i32,
            ..Ea::default()
        };
        self.hot.op_mem(&[0xc7], 0, branched, false, true);
        self.hot.dword(here as u32);
        let length = self.hot.pos.wrapping_sub(here) as u8;
        self.mark(What::Here(length - 4), 4, 0);
        let part = jump_table(self.view, self.code32);
        let table = offset_of!(Cpu, jit.jump_cache) + part * 65536 * 8;
        // movzx r15d, r14w
        self.hot.bytes(&[0x45, 0x0f, 0xb7, 0xfe]);
        let at = Ea {
            base: None,
            index: Some((reg::T1, 3)),
            disp: table as i32,
        };
        self.hot.op_mem(&[0xff], 4, at, false, true);
    }

    /// Direct jump to guest code, linked on first use.
    pub fn goto(&mut self, target: u64, from: u64, _page_map: u64) {
        self.hot.align_rel(1);
        let at = self.hot.jmp();
        self.slow(
            at,
            SlowKind::Link {
                target,
                at,
                poll: target <= from,
            },
        );
    }

    /// Conditional branch: linked like [`Self::goto`] when taken, else runs on.
    pub fn branch(&mut self, i: &Instruction, bytes: &[u8]) {
        let (target, from) = (i.near_branch_target(), i.ip());
        if i.is_jcc_short_or_near() {
            self.hot.align_rel(2);
            let at = self.hot.jcc(condition(i));
            self.slow(
                at,
                SlowKind::Link {
                    target,
                    at,
                    poll: target <= from,
                },
            );
            return;
        }
        // loop, loope, loopne, jrcxz have only rel8 forms.
        if let [.., opcode, _] = bytes
            && self.code32
        {
            self.hot.bytes(&[0x67, *opcode, 2]);
        } else {
            let mut copy = [0u8; 15];
            let n = bytes.len().min(15);
            copy[..n].copy_from_slice(&bytes[..n]);
            copy[n - 1] = 2;
            self.hot.bytes(&copy[..n]);
        }
        self.hot.bytes(&[0xeb, 0]);
        let skip = self.hot.pos - 1;
        let start = self.hot.pos;
        self.goto(target, from, 0);
        let length = (self.hot.pos - start) as u8;
        if !self.hot.full {
            self.hot.patch8(skip, length);
        }
    }

    /// The four entries of a block (see `Entries`); returns their offsets. If
    /// flags are `live` there, the block's own code begins with them in the
    /// host's, or with `home` at home, where an indirect jump leaves them.
    pub fn prologue(&mut self, rip: u64, map: u32, live: bool, home: bool) -> Entries {
        let page = code_page_slot(rip);
        let mut e = Entries {
            cross_page: self.hot.pos as u32,
            ..Default::default()
        };
        self.flags = Flags::Host;
        self.guarded(live, |e| e.check_page(page, map));
        let over = self.skip();
        e.indirect = self.hot.pos as u32;
        self.flags = Flags::Home;
        self.check_target(rip);
        self.check_page(page, map);
        let over = match live {
            false => {
                self.land(over);
                None
            }
            // The next entry comes with the flags in the host's.
            true => Some((over, self.skip())),
        };
        e.poll = self.hot.pos as u32;
        self.flags = Flags::Host;
        self.guarded(live, |e| {
            if let Some((first, second)) = over {
                e.land(first);
                e.land(second);
            }
            e.hot.cmp_state32(offset_of!(Cpu, pending), 0);
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::Poll);
        });
        if live && home {
            let over = self.skip();
            e.direct = self.hot.pos as u32;
            self.flags = Flags::Host;
            self.flags_to_home();
            self.land(over);
            self.flags = Flags::Home;
        } else {
            if live {
                self.flags_to_host();
            }
            e.direct = self.hot.pos as u32;
            self.flags = Flags::Host;
        }
        e
    }

    /// A short jump, to be landed.
    fn skip(&mut self) -> usize {
        self.hot.bytes(&[0xeb, 0]);
        self.hot.pos
    }

    /// Makes a jump of [`Self::skip`] come here.
    fn land(&mut self, over: usize) {
        let length = (self.hot.pos - over) as u8;
        if !self.hot.full {
            self.hot.patch8(over - 1, length);
        }
    }

    /// Leaves unless the page is mapped as it was.
    fn check_page(&mut self, page: usize, map: u32) {
        self.hot.cmp_state32_wide(page, map);
        self.mark(What::Page { second: false }, 4, 4);
        self.mark(What::Map { second: false }, 4, 0);
        let jump = self.hot.jcc(cc::NE);
        self.slow(jump, SlowKind::WrongPage);
    }

    /// Leaves unless r14 is `rip`.
    fn check_target(&mut self, rip: u64) {
        if Width::is_signed(rip) {
            // cmp r14, imm32
            self.hot.bytes(&[0x49, 0x81, 0xfe]);
            self.hot.dword(rip as u32);
            self.mark(What::Linear(Width::Sign), 4, 0);
        } else {
            self.mov_linear(reg::T1, rip);
            self.hot.op_reg(&[0x3b], reg::T0, reg::T1, true);
        }
        let jump = self.hot.jcc(cc::NE);
        self.slow(jump, SlowKind::WrongTarget);
    }

    /// Before an instruction that reaches into the next page: interprets it
    /// instead if that page is not mapped as it was.
    pub fn check_second_page(&mut self, rip: u64, map: u32, live: bool) {
        let page = code_page_slot((rip & !0xfff).wrapping_add(4096));
        // A group may need the scratch registers.
        if live {
            self.flags_to_home_by_memory();
        }
        self.guarded(live, |e| {
            e.hot.cmp_state32_wide(page, map);
            e.mark(What::Page { second: true }, 4, 4);
            e.mark(What::Map { second: true }, 4, 0);
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::EmulateHere);
        });
    }
}

/// Where generated code finds how a linear page is mapped.
pub(super) const fn code_page_slot(rip: u64) -> usize {
    let half = if rip >> 63 != 0 { 0 } else { 1024 };
    offset_of!(Cpu, jit.code_pages) + (half + ((rip >> 12) as usize & 1023)) * 4
}

/// Condition code of a `jcc`.
pub(super) fn condition(i: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match i.condition_code() {
        C::None | C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}
