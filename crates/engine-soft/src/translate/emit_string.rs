//! `rep movs` and `rep stos`, where each end lies in one page: the host's own,
//! on the host's addresses.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::cpu::{Cpu, TlbBank, flag};
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::emit::{Emitter, LOW_SAVE, Place, TARGET};
use crate::translate::emit_check::{bank, indexed};
use crate::translate::emit_slow::SlowKind;

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Log2 of the element's size, and whether there is a source.
fn form(i: &Instruction) -> Option<(u8, bool)> {
    Some(match i.code() {
        Code::Movsb_m8_m8 => (0, true),
        Code::Movsw_m16_m16 => (1, true),
        Code::Movsd_m32_m32 => (2, true),
        Code::Movsq_m64_m64 => (3, true),
        Code::Stosb_m8_AL => (0, false),
        Code::Stosw_m16_AX => (1, false),
        Code::Stosd_m32_EAX => (2, false),
        Code::Stosq_m64_RAX => (3, false),
        _ => return None,
    })
}

/// Whether an instruction is `rep movs` or `rep stos`.
pub(super) fn is_run(i: &Instruction) -> bool {
    i.has_rep_prefix() && form(i).is_some()
}

impl Emitter {
    /// `rep movs` or `rep stos`; what does not lie in one page at each end, or
    /// goes downwards, is interpreted.
    pub(super) fn string_run(&mut self, i: &Instruction, live: bool) {
        let Some((log, source)) = form(i) else {
            return self.emulate();
        };
        let target = match self.code32 {
            true => OpKind::MemoryESEDI,
            false => OpKind::MemoryESRDI,
        };
        let flat = !source
            || !matches!(
                i.memory_segment(),
                Register::FS | Register::GS | Register::CS
            );
        if i.op0_kind() != target || !flat {
            return self.emulate();
        }
        self.guarded(live, |e| e.string_check(log, source));
        let end = |base| Ea {
            base: Some(base),
            index: Some((RCX, log)),
            disp: 0,
        };
        let wide = !self.code32;
        if source {
            self.hot.lea(reg::T0, end(RSI), wide);
            self.hot.store(reg::T0, LOW_SAVE);
            self.hot.lea(reg::T0, end(RDI), wide);
            self.hot.mov(RSI, reg::T1);
            self.hot.load(RDI, TARGET);
        } else {
            self.hot.lea(reg::T0, end(RDI), wide);
            self.hot.mov(RDI, reg::T1);
        }
        let opcode = if source { 0xa4 } else { 0xaa };
        self.hot.byte(0xf3);
        match log {
            0 => self.hot.byte(opcode),
            1 => self.hot.bytes(&[0x66, opcode + 1]),
            2 => self.hot.byte(opcode + 1),
            _ => self.hot.bytes(&[0x48, opcode + 1]),
        }
        self.hot.mov(RDI, reg::T0);
        if source {
            self.hot.load(RSI, LOW_SAVE);
        }
    }

    /// Host addresses of the first elements: the source's, if there is one, in
    /// T1 and the target's at home; else the target's in T1.
    fn string_check(&mut self, log: u8, source: bool) {
        let rflags = Ea {
            disp: offset_of!(Cpu, rflags) as i32,
            ..Ea::default()
        };
        // test dword gs:[rflags], DF
        self.hot.op_mem(&[0xf7], 0, rflags, false, true);
        self.hot.dword(flag::DF as u32);
        self.emulate_if(cc::NE);
        // cmp rcx, a page of elements
        self.hot.bytes(&[0x48, 0x81, 0xf9]);
        self.hot.dword(4096 >> log);
        self.emulate_if(cc::A);
        self.string_end(RDI, true, log);
        if source {
            self.hot.store(reg::T1, TARGET);
            self.string_end(RSI, false, log);
        }
    }

    /// Host address of the run that begins at a register, into T1.
    fn string_end(&mut self, register: u8, write: bool, log: u8) {
        let b = bank(self.view, write);
        self.hot.mov(reg::T0, register);
        self.tlb_index();
        let tags = indexed(b + offset_of!(TlbBank, neg_page));
        self.hot.op_mem(&[0x03], reg::T0, tags, true, true);
        // cmp r14, 4095
        self.hot.bytes(&[0x49, 0x81, 0xfe]);
        self.hot.dword(4095);
        self.emulate_if(cc::A);
        let hosts = indexed(b + offset_of!(TlbBank, host));
        self.hot.op_mem(&[0x8b], reg::T1, hosts, true, true);
        self.hot.lea(reg::T1, Place::CHECKED.ea(), true);
        let behind = Ea {
            base: Some(reg::T0),
            index: Some((RCX, log)),
            disp: 0,
        };
        self.hot.lea(reg::T0, behind, true);
        self.hot.bytes(&[0x49, 0x81, 0xfe]);
        self.hot.dword(4096);
        self.emulate_if(cc::A);
    }

    /// Leaves to the interpreter for this instruction on a condition.
    pub(super) fn emulate_if(&mut self, condition: u8) {
        let jump = self.hot.jcc(condition);
        let resume = !self.in_group;
        self.slow(jump, SlowKind::Emulate { resume });
    }
}
