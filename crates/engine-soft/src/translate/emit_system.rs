//! Code for system instructions that kernels run all the time, and for bit
//! strings; whatever has none here is left to the interpreter.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Cpu, Seg, View, flag, seg};
use crate::interpret::operand::seg_index;
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::classify::reads_selector;
use crate::translate::emit::{Emitter, Place, TARGET, at_t0, gpr, number, spilled};
use crate::translate::emit_check::segment_base;
use crate::translate::emit_slow::SlowKind;
use crate::translate::emit_string;
use crate::translate::flags::{Flags, HOME};

const RCX: u8 = 1;
const RFLAGS: usize = offset_of!(Cpu, rflags);

fn state(offset: usize) -> Ea {
    Ea {
        disp: offset as i32,
        ..Ea::default()
    }
}

impl Emitter {
    /// An instruction of class `Emulate` or `EmulateEnd`.
    pub fn system(&mut self, i: &Instruction, live_after: u32) {
        let kernel = self.view != View::User as u8;
        let free = live_after == 0;
        match i.mnemonic() {
            Mnemonic::Pause => self.pause(!free),
            Mnemonic::Rdtsc => self.guarded(!free, Self::rdtsc),
            Mnemonic::Rdtscp => self.guarded(!free, |e| {
                // Earlier loads come first: lfence.
                e.hot.bytes(&[0x0f, 0xae, 0xe8]);
                e.rdtsc();
                let aux = state(offset_of!(Cpu, tsc_aux));
                e.hot.op_mem(&[0x8b], RCX, aux, false, true);
            }),
            Mnemonic::Swapgs if kernel => self.swapgs(),
            Mnemonic::Cli if kernel => self.guarded(!free, |e| e.change_rflags(0, flag::IF)),
            Mnemonic::Cld => self.guarded(!free, |e| e.change_rflags(0, flag::DF)),
            Mnemonic::Sti if kernel => self.guarded(!free, |e| {
                // With an interrupt waiting, the interpreter does the shadow.
                e.hot.cmp_state32(offset_of!(Cpu, interrupt_waits), 0);
                let jump = e.hot.jcc(cc::NE);
                let resume = !e.in_group;
                e.slow(jump, SlowKind::Emulate { resume });
                e.change_rflags(flag::IF, 0);
            }),
            Mnemonic::Stac if self.view == View::Kernel as u8 => {
                self.guarded(!free, |e| e.change_rflags(flag::AC, 0));
                self.change_view(View::KernelAc, i, !free);
            }
            Mnemonic::Clac if self.view == View::KernelAc as u8 => {
                self.guarded(!free, |e| {
                    // bt dword gs:[cr4], 21: without SMAP the view stays.
                    let cr4 = state(offset_of!(Cpu, cr4));
                    e.hot.op_mem(&[0x0f, 0xba], 4, cr4, false, true);
                    e.hot.byte(21);
                    let jump = e.hot.jcc(cc::AE);
                    e.slow(jump, SlowKind::Emulate { resume: true });
                    e.change_rflags(0, flag::AC);
                });
                self.change_view(View::Kernel, i, !free);
            }
            Mnemonic::Clac if self.view == View::Kernel as u8 => {
                self.flags_to_host();
                self.goto(i.next_ip(), i.ip(), 0);
            }
            Mnemonic::Pushfq if kernel && self.member.is_none() => self.pushfq(),
            Mnemonic::Verw if self.view == View::Kernel as u8 => self.verw(i),
            _ if reads_selector(i) => self.selector(i),
            _ if emit_string::is_run(i) => self.string_run(i, !free),
            _ if self.code32 => self.emulate(),
            Mnemonic::Syscall if !kernel => self.syscall(i.next_ip()),
            Mnemonic::Sysretq if self.view == View::Kernel as u8 => self.sysret(),
            Mnemonic::Iretq if self.view == View::Kernel as u8 => self.iret(),
            _ => self.emulate(),
        }
    }

    /// `pause`: after many of them in a row the interpreter gives the host's
    /// CPU to others, such as the vCPU that this one waits for.
    fn pause(&mut self, live: bool) {
        self.guarded(live, |e| {
            let left = state(offset_of!(Cpu, pauses_left));
            // sub dword gs:[left], 1
            e.hot.op_mem(&[0x83], 5, left, false, true);
            e.hot.byte(1);
            let jump = e.hot.jcc(cc::E);
            let resume = !e.in_group;
            e.slow(jump, SlowKind::Emulate { resume });
        });
        self.hot.bytes(&[0xf3, 0x90]);
    }

    /// Sets and clears bits of RFLAGS that generated code does not keep in
    /// the host's flags; clobbers the arithmetic flags.
    fn change_rflags(&mut self, set: u64, clear: u64) {
        if set != 0 {
            self.hot.op_mem(&[0x81], 1, state(RFLAGS), false, true);
            self.hot.dword(set as u32);
        }
        if clear != 0 {
            self.hot.op_mem(&[0x81], 4, state(RFLAGS), false, true);
            self.hot.dword(!clear as u32);
        }
    }

    /// Goes on at the next instruction with another view of memory.
    fn change_view(&mut self, view: View, i: &Instruction, live: bool) {
        // mov byte gs:[view], imm8
        let at = state(offset_of!(Cpu, view));
        self.hot.op_mem(&[0xc6], 0, at, false, true);
        self.hot.byte(view as u8);
        if live {
            self.flags_to_host();
        }
        self.goto(i.next_ip(), i.ip(), 0);
    }

    /// `mov` of a segment register's selector to a register.
    fn selector(&mut self, i: &Instruction) {
        let d = i.op0_register();
        let s = match seg_index(i.op1_register()) {
            Some(s) if i.op0_kind() == OpKind::Register && d.size() != 2 => s,
            _ => return self.emulate(),
        };
        let selector = segment_base(s) - offset_of!(Seg, base) + offset_of!(Seg, selector);
        // movzx r32, word gs:[..]
        let n = number(d);
        self.hot
            .op_mem(&[0x0f, 0xb7], n, state(selector), false, true);
        if spilled(n) {
            self.hot.store(n, gpr(n));
        }
    }

    fn swapgs(&mut self) {
        let (base, other) = (segment_base(seg::GS), offset_of!(Cpu, kernel_gs_base));
        self.hot.load(reg::T0, base);
        self.hot.load(reg::T1, other);
        self.hot.store(reg::T0, other);
        self.hot.store(reg::T1, base);
    }

    /// `rdtsc` with the guest's offset; clobbers flags.
    fn rdtsc(&mut self) {
        // rdtsc; shl rdx, 32; or rax, rdx
        self.hot
            .bytes(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]);
        let offset = state(offset_of!(Cpu, tsc_offset));
        self.hot.op_mem(&[0x03], reg::RAX, offset, true, true);
        // mov rdx, rax; shr rdx, 32; mov eax, eax
        self.hot
            .bytes(&[0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0x89, 0xc0]);
    }

    /// `pushfq`; afterwards the flags are at home only.
    fn pushfq(&mut self) {
        const STATUS: u32 = flag::STATUS as u32;
        let place = self.stack_place(-8, true, true);
        self.flags_to_host();
        self.hot.lea(reg::T0, place.ea(), true);
        // The host's own pushfq, on the host's stack.
        self.hot.store(reg::RSP, TARGET);
        self.hot.load(reg::RSP, offset_of!(Cpu, jit.host_rsp));
        // pushfq; pop r15
        self.hot.bytes(&[0x9c, 0x41, 0x5f]);
        self.hot.load(reg::RSP, TARGET);
        self.hot.store(reg::T0, TARGET);
        // and r15d, status
        self.hot.bytes(&[0x41, 0x81, 0xe7]);
        self.hot.dword(STATUS);
        self.hot.load(reg::T0, RFLAGS);
        // and r14d, !(status | RF | VM)
        self.hot.bytes(&[0x41, 0x81, 0xe6]);
        self.hot.dword(!(STATUS | (flag::RF | flag::VM) as u32));
        // or r15, r14
        self.hot.bytes(&[0x4d, 0x09, 0xf7]);
        self.hot.load(reg::T0, TARGET);
        self.hot.op_mem(&[0x89], reg::T1, at_t0(), true, false);
        self.move_rsp(-8);
        self.flags = Flags::Home;
    }

    /// `verw` of a selector in memory that names a writable segment of the
    /// GDT and asks for CPL 0, as newer kernels do before each return to a
    /// program for its side effect on some CPUs.
    fn verw(&mut self, i: &Instruction) {
        if i.op0_kind() != OpKind::Memory {
            return self.emulate();
        }
        let place = self.operand(i, false, 2, true);
        // movzx r14d, word [..]
        self.hot
            .op_mem(&[0x0f, 0xb7], reg::T0, place.ea(), false, false);
        self.guarded(true, |e| {
            // test r14b, 7: an RPL, or the LDT
            e.hot.bytes(&[0x41, 0xf6, 0xc6, 7]);
            e.emulate_if(cc::NE);
            let last = Ea {
                base: Some(reg::T0),
                index: None,
                disp: 7,
            };
            e.hot.lea(reg::T1, last, false);
            // cmp r15d, 7: null
            e.hot.bytes(&[0x41, 0x83, 0xff, 7]);
            e.emulate_if(cc::E);
            e.hot.byte(0x66);
            let limit = state(offset_of!(Cpu, gdt.1));
            e.hot.op_mem(&[0x3b], reg::T1, limit, false, true);
            e.emulate_if(cc::A);
            let base = state(offset_of!(Cpu, gdt.0));
            e.hot.op_mem(&[0x03], reg::T0, base, true, true);
        });
        self.check(false, 8, true);
        self.hot
            .op_mem(&[0x8b], reg::T0, Place::CHECKED.ea(), true, false);
        // shr r14, 40; and r14d, 1ah; cmp r14d, 12h: data, writable
        self.hot.bytes(&[0x49, 0xc1, 0xee, 40]);
        self.hot.bytes(&[0x41, 0x83, 0xe6, 0x1a]);
        self.hot.bytes(&[0x41, 0x83, 0xfe, 0x12]);
        self.emulate_if(cc::NE);
        // or byte gs:[home's AH], ZF
        self.hot.op_mem(&[0x80], 1, state(HOME + 1), false, true);
        self.hot.byte(flag::ZF as u8);
        self.flags = Flags::Home;
    }

    /// `bt` & co. of memory: the bit offset reaches beyond the operand.
    pub fn bit_string(&mut self, i: &Instruction, live: bool) {
        let (size, shift): (usize, u8) = match i.op1_register().size() {
            8 => (8, 6),
            4 => (4, 5),
            _ => return self.emulate(),
        };
        let segment = matches!(i.memory_segment(), Register::FS | Register::GS);
        if live || i.op1_kind() != OpKind::Register || self.code32 && segment {
            return self.emulate();
        }
        let n = number(i.op1_register());
        let wide = size == 8;
        self.address(i);
        self.offset_register(n, wide);
        // sar r15, shift (movsxd first for 32-bit offsets)
        if !wide {
            self.hot.op_reg(&[0x63], reg::T1, reg::T1, true);
        }
        self.hot.bytes(&[0x49, 0xc1, 0xff, shift]);
        let words = Ea {
            base: Some(reg::T0),
            index: Some((reg::T1, size.trailing_zeros() as u8)),
            disp: 0,
        };
        self.hot.lea(reg::T0, words, !self.code32);
        let writes = i.mnemonic() != Mnemonic::Bt;
        self.check(writes, size, false);
        let host = Ea {
            base: Some(reg::T0),
            index: Some((reg::T1, 0)),
            disp: 0,
        };
        self.hot.lea(reg::T0, host, true);
        self.offset_register(n, wide);
        // and r15d, size * 8 - 1
        self.hot.bytes(&[0x41, 0x83, 0xe7, (size * 8 - 1) as u8]);
        let mut o = *i;
        o.set_op1_register(if wide { Register::R15 } else { Register::R15D });
        self.access(&o, crate::translate::emit::Place::at_scratch());
    }

    fn offset_register(&mut self, n: u8, wide: bool) {
        if spilled(n) {
            self.hot.load(reg::T1, gpr(n));
        } else {
            self.hot.op_reg(&[0x8b], reg::T1, n, wide);
        }
    }
}
