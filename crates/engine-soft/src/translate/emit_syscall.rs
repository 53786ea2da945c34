//! `syscall` and `sysret` of 64-bit code: the same steps as in
//! `system::syscall`, which does what has no code here.

use std::mem::{offset_of, size_of};

use crate::cpu::{Cpu, Seg, View, cr, flag, seg};
use crate::system::syscall::{CODE64, DATA, SYSRET_FLAGS, USER};
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::emit::Emitter;
use crate::translate::flags::{Flags, HOME};

const RCX: u8 = 1;
const R11: u8 = 11;
const RFLAGS: usize = offset_of!(Cpu, rflags);
const STATUS: u32 = flag::STATUS as u32;

pub(super) fn state(offset: usize) -> Ea {
    Ea {
        disp: offset as i32,
        ..Ea::default()
    }
}

pub(super) const fn part(s: usize, field: usize) -> usize {
    offset_of!(Cpu, seg) + s * size_of::<Seg>() + field
}

impl Emitter {
    /// `test dword gs:[offset], bits`.
    pub(super) fn test_state(&mut self, offset: usize, bits: u64) {
        self.hot.op_mem(&[0xf7], 0, state(offset), false, true);
        self.hot.dword(bits as u32);
    }

    /// `op r/m32, imm32` of a scratch register, by the opcode's extension.
    pub(super) fn immediate(&mut self, register: u8, extension: u8, value: u32) {
        self.hot
            .bytes(&[0x41, 0x81, 0xc0 | extension << 3 | register & 7]);
        self.hot.dword(value);
    }

    pub(super) fn and(&mut self, register: u8, value: u32) {
        self.immediate(register, 4, value);
    }

    fn or(&mut self, register: u8, value: u32) {
        self.immediate(register, 1, value);
    }

    /// `shr r/m64, by` of a scratch register.
    pub(super) fn shift_right(&mut self, register: u8, by: u8) {
        self.hot.bytes(&[0x49, 0xc1, 0xe8 | register & 7, by]);
    }

    fn set_byte(&mut self, offset: usize, value: u8) {
        self.hot.op_mem(&[0xc6], 0, state(offset), false, true);
        self.hot.byte(value);
    }

    fn set_dword(&mut self, offset: usize, value: u32) {
        self.hot.op_mem(&[0xc7], 0, state(offset), false, true);
        self.hot.dword(value);
    }

    /// Makes a segment register flat, with the low 16 bits of T0 as selector.
    pub(super) fn flat_segment(&mut self, s: usize, rights: u32) {
        self.hot.op_mem(
            &[0xc7],
            0,
            state(part(s, offset_of!(Seg, base))),
            true,
            true,
        );
        self.hot.dword(0);
        self.set_dword(part(s, offset_of!(Seg, limit)), u32::MAX);
        self.set_dword(part(s, offset_of!(Seg, rights)), rights);
        self.hot.byte(0x66);
        let selector = state(part(s, offset_of!(Seg, selector)));
        self.hot.op_mem(&[0x89], reg::T0, selector, false, true);
    }

    /// Takes the flags that `mask` says from an image in T1, the others are
    /// clear.
    pub(super) fn flags_image(&mut self, mask: u64) {
        self.hot.mov(reg::T0, reg::T1);
        self.and(reg::T0, mask as u32);
        self.or(reg::T0, flag::ONE as u32);
        self.hot.store(reg::T0, RFLAGS);
        self.hot.mov(reg::T0, reg::T1);
        self.and(reg::T0, 0xd5);
        // shl r14d, 8
        self.hot.bytes(&[0x41, 0xc1, 0xe6, 8]);
        self.shift_right(reg::T1, 11);
        self.and(reg::T1, 1);
        self.hot.op_reg(&[0x0b], reg::T1, reg::T0, true);
        self.hot.store(reg::T1, HOME);
    }

    /// CPL and view, and a jump to T0 there.
    pub(super) fn go_to_ring(&mut self, cpl: u8, view: View) {
        self.set_byte(offset_of!(Cpu, cpl), cpl);
        self.set_byte(offset_of!(Cpu, view), view as u8);
        self.flags = Flags::Home;
        let here = std::mem::replace(&mut self.view, view as u8);
        self.dispatch();
        self.view = here;
    }

    /// `syscall` from a program, where SMAP is on and the mask clears AC and
    /// the arithmetic flags.
    pub(super) fn syscall(&mut self, next: u64) {
        self.guarded(true, |e| {
            e.test_state(offset_of!(Cpu, efer), cr::EFER_SCE);
            e.emulate_if(cc::E);
            e.test_state(offset_of!(Cpu, cr4), cr::CR4_SMAP);
            e.emulate_if(cc::E);
            e.hot.load(reg::T0, offset_of!(Cpu, sfmask));
            // not r14
            e.hot.bytes(&[0x49, 0xf7, 0xd6]);
            // test r14d, imm32
            e.hot.bytes(&[0x41, 0xf7, 0xc6]);
            e.hot.dword(STATUS | flag::AC as u32);
            e.emulate_if(cc::NE);
        });
        // T0 = the flags kept; T1 = RFLAGS, put together.
        self.hot.load(reg::T1, HOME);
        self.hot.mov(R11, reg::T1);
        self.shift_right(reg::T1, 8);
        self.and(reg::T1, 0xd5);
        self.and(R11, 1);
        // shl r11d, 11; or r15, r11
        self.hot.bytes(&[0x41, 0xc1, 0xe3, 11]);
        self.hot.op_reg(&[0x0b], reg::T1, R11, true);
        self.hot.load(R11, RFLAGS);
        self.and(R11, !(STATUS | flag::RF as u32));
        self.hot.op_reg(&[0x0b], R11, reg::T1, true);
        self.and(reg::T0, !(flag::RF as u32));
        self.hot.op_reg(&[0x23], reg::T0, R11, true);
        self.or(reg::T0, flag::ONE as u32);
        self.hot.store(reg::T0, RFLAGS);
        self.hot.op_mem(&[0xc7], 0, state(HOME), true, true);
        self.hot.dword(0);
        self.mov_linear(RCX, next);
        self.hot.load(reg::T0, offset_of!(Cpu, star));
        self.shift_right(reg::T0, 32);
        self.and(reg::T0, 0xfffc);
        self.flat_segment(seg::CS, CODE64);
        self.immediate(reg::T0, 0, 8);
        self.flat_segment(seg::SS, DATA);
        self.hot.load(reg::T0, offset_of!(Cpu, lstar));
        self.go_to_ring(0, View::Kernel);
    }

    /// `sysretq` to where a program can be, with no interrupt waiting for it.
    pub(super) fn sysret(&mut self) {
        self.guarded(true, |e| {
            e.test_state(offset_of!(Cpu, efer), cr::EFER_SCE);
            e.emulate_if(cc::E);
            e.test_state(offset_of!(Cpu, cr4), cr::CR4_TSD);
            e.emulate_if(cc::NE);
            e.hot.cmp_state32(offset_of!(Cpu, interrupt_waits), 0);
            e.emulate_if(cc::NE);
            // test r11d, TF
            e.hot.bytes(&[0x41, 0xf7, 0xc3]);
            e.hot.dword(flag::TF as u32);
            e.emulate_if(cc::NE);
            e.hot.mov(reg::T0, RCX);
            e.shift_right(reg::T0, 47);
            e.emulate_if(cc::NE);
        });
        self.hot.mov(reg::T1, R11);
        self.flags_image(SYSRET_FLAGS);
        self.hot.load(reg::T1, offset_of!(Cpu, star));
        self.shift_right(reg::T1, 48);
        for (s, by, rights) in [(seg::CS, 16, CODE64), (seg::SS, 8, DATA)] {
            let selector = Ea {
                base: Some(reg::T1),
                index: None,
                disp: by,
            };
            self.hot.lea(reg::T0, selector, false);
            self.or(reg::T0, 3);
            self.flat_segment(s, rights | USER);
        }
        self.hot.mov(reg::T0, RCX);
        self.go_to_ring(3, View::User);
    }
}
