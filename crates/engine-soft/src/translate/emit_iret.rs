//! `iretq` of 64-bit code to 64-bit code, to a program or to the kernel
//! itself, where the descriptors are those that 64-bit kernels have: the same
//! steps as in `system::transfer`, which does what has no code here.

use std::mem::offset_of;

use crate::cpu::{Cpu, Seg, View, cr, flag, seg};
use crate::system::descriptor::UNUSABLE;
use crate::system::syscall::{CODE64, DATA, USER};
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::emit::{Emitter, Place, TARGET};
use crate::translate::emit_syscall::{part, state};

const RFLAGS: usize = offset_of!(Cpu, rflags);
const FRAME: usize = 40;
const CS: i32 = 8;
const IMAGE: i32 = 16;
const RSP: i32 = 24;
const SS: i32 = 32;
/// What CPL 0 may change, but for RF, which matters to breakpoints only; with
/// any set, no translated code runs.
const CHANGES: u64 = flag::STATUS
    | flag::TF
    | flag::DF
    | flag::NT
    | flag::AC
    | flag::ID
    | flag::IF
    | flag::IOPL
    | flag::VIF
    | flag::VIP;

/// A present, accessed, flat descriptor with these rights.
const fn descriptor(rights: u32) -> u64 {
    (rights as u64) << 40 | 0xf << 48 | 0xffff
}

impl Emitter {
    /// `iretq`.
    pub(super) fn iret(&mut self) {
        self.guarded(true, |e| {
            e.test_state(RFLAGS, flag::NT);
            e.emulate_if(cc::NE);
            e.test_state(offset_of!(Cpu, cr4), cr::CR4_TSD);
            e.emulate_if(cc::NE);
            e.hot.cmp_state32(offset_of!(Cpu, interrupt_waits), 0);
            e.emulate_if(cc::NE);
            // cmp byte gs:[nmi_blocked], 0
            let blocked = state(offset_of!(Cpu, nmi_blocked));
            e.hot.op_mem(&[0x80], 7, blocked, false, true);
            e.hot.byte(0);
            e.emulate_if(cc::NE);
        });
        self.hot.mov(reg::T0, reg::RSP);
        self.check(false, FRAME, true);
        self.hot.lea(reg::T0, Place::CHECKED.ea(), true);
        self.hot.store(reg::T0, TARGET);
        self.frame_selector(CS);
        // test r15d, 3
        self.hot.bytes(&[0x41, 0xf7, 0xc7]);
        self.hot.dword(3);
        let program = self.hot.jcc(cc::NE);
        self.iret_to_kernel();
        let at = self.hot.pos;
        self.hot.patch_rel(program, at);
        self.iret_to_program();
    }

    /// A word of the frame, whose host address is in T0, into T1.
    fn frame_selector(&mut self, at: i32) {
        let word = Ea {
            base: Some(reg::T0),
            index: None,
            disp: at,
        };
        self.hot.op_mem(&[0x0f, 0xb7], reg::T1, word, false, false);
    }

    fn frame_word(&mut self, into: u8, at: i32) {
        let word = Ea {
            base: Some(reg::T0),
            index: None,
            disp: at,
        };
        self.hot.op_mem(&[0x8b], into, word, true, false);
    }

    /// Leaves unless the selector in T1 names a descriptor of the GDT for this
    /// level that is just `raw`; afterwards T0 is the frame again.
    fn frame_descriptor(&mut self, level: u32, raw: u64) {
        self.hot.mov(reg::T0, reg::T1);
        self.and(reg::T0, 7);
        // cmp r14d, level
        self.immediate(reg::T0, 7, level);
        self.emulate_if(cc::NE);
        self.and(reg::T1, 0xfff8);
        let last = Ea {
            base: Some(reg::T1),
            index: None,
            disp: 7,
        };
        self.hot.lea(reg::T0, last, false);
        self.hot.byte(0x66);
        let limit = state(offset_of!(Cpu, gdt.1));
        self.hot.op_mem(&[0x3b], reg::T0, limit, false, true);
        self.emulate_if(cc::A);
        self.hot.mov(reg::T0, reg::T1);
        let base = state(offset_of!(Cpu, gdt.0));
        self.hot.op_mem(&[0x03], reg::T0, base, true, true);
        self.check(false, 8, true);
        self.hot
            .op_mem(&[0x8b], reg::T0, Place::CHECKED.ea(), true, false);
        self.hot.mov_imm(reg::T1, raw);
        self.hot.op_reg(&[0x3b], reg::T0, reg::T1, true);
        self.emulate_if(cc::NE);
        self.hot.load(reg::T0, TARGET);
    }

    /// Leaves if the image of the flags has any of these bits.
    fn frame_flags(&mut self, bits: u64) {
        self.frame_word(reg::T1, IMAGE);
        // test r15d, imm32
        self.hot.bytes(&[0x41, 0xf7, 0xc7]);
        self.hot.dword(bits as u32);
        self.emulate_if(cc::NE);
    }

    /// Loads a segment register with the selector of the frame.
    fn frame_segment(&mut self, s: usize, at: i32, rights: u32) {
        self.frame_selector(at);
        self.hot.mov(reg::T0, reg::T1);
        self.flat_segment(s, rights);
        self.hot.load(reg::T0, TARGET);
    }

    /// Flags and stack pointer of the frame; its rip into T0.
    fn frame_rest(&mut self) {
        self.frame_word(reg::T1, IMAGE);
        self.flags_image(CHANGES);
        self.hot.load(reg::T0, TARGET);
        self.frame_word(reg::RSP, RSP);
        self.frame_word(reg::T0, 0);
    }

    fn iret_to_program(&mut self) {
        for s in [seg::ES, seg::DS, seg::FS, seg::GS] {
            // Others might become null.
            self.test_state(part(s, offset_of!(Seg, rights)), u64::from(UNUSABLE));
            self.emulate_if(cc::E);
        }
        self.frame_word(reg::T1, 0);
        self.shift_right(reg::T1, 47);
        self.emulate_if(cc::NE);
        self.frame_flags(flag::TF | flag::VM);
        self.frame_selector(CS);
        self.frame_descriptor(3, descriptor(CODE64 | USER));
        self.frame_selector(SS);
        self.frame_descriptor(3, descriptor(DATA | USER));
        self.frame_segment(seg::CS, CS, CODE64 | USER);
        self.frame_segment(seg::SS, SS, DATA | USER);
        self.frame_rest();
        self.go_to_ring(3, View::User);
    }

    fn iret_to_kernel(&mut self) {
        self.frame_word(reg::T1, 0);
        // sar r15, 47; add r15d, 1; cmp r15d, 1: canonical
        self.hot.bytes(&[0x49, 0xc1, 0xff, 47]);
        self.immediate(reg::T1, 0, 1);
        self.immediate(reg::T1, 7, 1);
        self.emulate_if(cc::A);
        self.frame_flags(flag::TF | flag::VM | flag::AC);
        self.frame_selector(CS);
        self.frame_descriptor(0, descriptor(CODE64));
        self.frame_selector(SS);
        // test r15d, r15d
        self.hot.bytes(&[0x45, 0x85, 0xff]);
        let null = self.hot.jcc(cc::E);
        self.frame_descriptor(0, descriptor(DATA));
        self.frame_segment(seg::SS, SS, DATA);
        let loaded = self.hot.jmp();
        let at = self.hot.pos;
        self.hot.patch_rel(null, at);
        // A null SS stays as an interrupt from a program left it.
        self.hot
            .cmp_state32(part(seg::SS, offset_of!(Seg, rights)), UNUSABLE | 0x93);
        self.emulate_if(cc::NE);
        let selector = state(part(seg::SS, offset_of!(Seg, selector)));
        // cmp word gs:[selector], 0
        self.hot.byte(0x66);
        self.hot.op_mem(&[0x83], 7, selector, false, true);
        self.hot.byte(0);
        self.emulate_if(cc::NE);
        let at = self.hot.pos;
        self.hot.patch_rel(loaded, at);
        self.frame_segment(seg::CS, CS, CODE64);
        self.frame_rest();
        self.go_to_ring(0, View::Kernel);
    }
}

const _: () = assert!(descriptor(CODE64) == 0x00af_9b00_0000_ffff);
const _: () = assert!(descriptor(DATA | USER) == 0x00cf_f300_0000_ffff);
