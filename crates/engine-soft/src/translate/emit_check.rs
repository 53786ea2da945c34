//! Memory operands: their addresses, and the checks by the software TLB.

use std::mem::{offset_of, size_of};

use iced_x86::{Instruction, Register};

use crate::cpu::{Cpu, Seg, TLB_ENTRIES, TlbBank, seg};
use crate::translate::asm::{Ea, cc, reg};
use crate::translate::emit::{Emitter, Place, gpr, number, spilled};
use crate::translate::emit_slow::SlowKind;
use crate::translate::relocate::{What, Width};

pub(super) const fn bank(view: u8, write: bool) -> usize {
    offset_of!(Cpu, tlb) + (view as usize * 2 + write as usize) * size_of::<TlbBank>()
}

impl Emitter {
    /// Linear address of the memory operand into T0; flag-free.
    pub fn address(&mut self, i: &Instruction) {
        let segment = match i.memory_segment() {
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        if i.is_ip_rel_memory_operand() {
            if i.memory_base() == Register::EIP {
                self.relocs.fix();
            }
            self.mov_linear(reg::T0, i.ip_rel_memory_address());
        } else if self.code32 {
            return self.address_32(i, segment);
        } else {
            let wide = i.memory_base().size() != 4 && i.memory_index().size() != 4;
            let simple = segment.is_some()
                && wide
                // Neither a 64-bit displacement nor a zero-extended one (67h).
                && i.memory_displacement64() as i64 == i64::from(i.memory_displacement64() as i32)
                && (i.memory_base() == Register::None || i.memory_index() == Register::None);
            if simple {
                return self.address_segment_simple(i, segment.unwrap_or(0));
            }
            let ea = self.host_ea(i);
            if ea.base.is_none() && ea.index.is_none() {
                let disp = i.memory_displacement64();
                self.hot.mov_imm(reg::T0, disp);
            } else {
                self.move_address(ea, wide);
            }
        }
        self.holds = 0;
        if let Some(s) = segment {
            self.hot.load(reg::T1, segment_base(s));
            let both = Ea {
                base: Some(reg::T0),
                index: Some((reg::T1, 0)),
                disp: 0,
            };
            self.hot.lea(reg::T0, both, true);
        }
    }

    /// As [`Self::address`] in 32-bit code.
    fn address_32(&mut self, i: &Instruction, segment: Option<usize>) {
        let mut ea = self.host_ea(i);
        self.holds = 0;
        let Some(s) = segment else {
            return self.move_address(ea, false);
        };
        if ea.base.is_none() && ea.index.is_none() {
            self.hot.load(reg::T0, segment_base(s));
            ea.base = Some(reg::T0);
        } else {
            self.hot.lea(reg::T0, ea, true);
            self.hot.load(reg::T1, segment_base(s));
            ea = Place::CHECKED.ea();
        }
        self.hot.lea(reg::T0, ea, false);
        let poison = offset_of!(Cpu, jit.poison) + (s - seg::FS) * 8;
        self.hot.load(reg::T1, poison);
        self.hot.lea(reg::T0, Place::CHECKED.ea(), true);
    }

    /// `lea` into T0, or the cheaper `mov` where that does.
    fn move_address(&mut self, ea: Ea, wide: bool) {
        match ea.base {
            Some(b) if wide && ea.index.is_none() && ea.disp == 0 => {
                if b != reg::T0 {
                    self.hot.mov(reg::T0, b);
                }
            }
            _ => self.hot.lea(reg::T0, ea, wide),
        }
    }

    fn address_segment_simple(&mut self, i: &Instruction, s: usize) {
        let register = if i.memory_base() == Register::None {
            i.memory_index()
        } else {
            i.memory_base()
        };
        let disp = i.memory_displacement64() as i64 as i32;
        let scale = if i.memory_base() == Register::None {
            i.memory_index_scale().trailing_zeros() as u8
        } else {
            0
        };
        self.hot.load(reg::T0, segment_base(s));
        let index = if register == Register::None {
            None
        } else {
            let n = number(register);
            if spilled(n) {
                self.hot.load(reg::T1, gpr(n));
                Some((reg::T1, scale))
            } else if n == reg::RSP {
                // rsp cannot be an index: swap the roles.
                let ea = Ea {
                    base: Some(reg::RSP),
                    index: Some((reg::T0, 0)),
                    disp,
                };
                self.hot.lea(reg::T0, ea, true);
                return;
            } else {
                Some((n, scale))
            }
        };
        if index.is_some() || disp != 0 {
            let ea = Ea {
                base: Some(reg::T0),
                index,
                disp,
            };
            self.hot.lea(reg::T0, ea, true);
        }
    }

    /// The operand's address in host registers; loads spilled ones.
    fn host_ea(&mut self, i: &Instruction) -> Ea {
        let place = |e: &mut Self, r: Register| {
            let n = number(r);
            if spilled(n) {
                e.want(n);
            }
            n
        };
        let base = (i.memory_base() != Register::None).then(|| place(self, i.memory_base()));
        let index = (i.memory_index() != Register::None).then(|| {
            let r = place(self, i.memory_index());
            (r, i.memory_index_scale().trailing_zeros() as u8)
        });
        Ea {
            base,
            index,
            disp: i.memory_displacement64() as i64 as i32,
        }
    }

    /// Checks an access of `size` bytes at T0. Afterwards T0 + T1 is the host
    /// address. After a miss the check is entered again, with the address in T0.
    pub(super) fn check(&mut self, write: bool, size: usize, live: bool) {
        self.check_range(write, size, live, None);
    }

    pub(super) fn check_range(&mut self, write: bool, size: usize, live: bool, group: Option<u16>) {
        let b = bank(self.view, write);
        let retry = self.hot.pos;
        self.holds = 0;
        self.guarded(live, |e| {
            e.tlb_index();
            let tags = indexed(b + offset_of!(TlbBank, neg_page));
            e.hot.op_mem(&[0x03], reg::T0, tags, true, true);
            // cmp r14, 4096 - size
            e.hot.bytes(&[0x49, 0x81, 0xfe]);
            e.hot.dword(4096 - size as u32);
            let jump = e.hot.jcc(cc::A);
            let what = SlowKind::Miss {
                write,
                size: size as u8,
                retry,
                constant: None,
                group,
            };
            e.slow(jump, what);
            let hosts = indexed(b + offset_of!(TlbBank, host));
            e.hot.op_mem(&[0x8b], reg::T1, hosts, true, true);
        });
    }

    /// Offset of the TLB entry for the address in T0 into T1.
    pub(super) fn tlb_index(&mut self) {
        if self.bmi2 {
            self.hot.rorx32(reg::T1, reg::T0, 9);
        } else {
            self.hot.op_reg(&[0x8b], reg::T1, reg::T0, false);
            // shr r15d, 9
            self.hot.bytes(&[0x41, 0xc1, 0xef, 9]);
        }
        // and r15d, 0x1ff8
        self.hot.bytes(&[0x41, 0x81, 0xe7, 0xf8, 0x1f, 0, 0]);
    }

    /// Checks an access at a constant address inside one page; T1 is the host
    /// page afterwards.
    fn check_constant(&mut self, address: u64, write: bool, size: usize, live: bool) -> Place {
        let retry = self.hot.pos;
        self.holds = 0;
        let slot = bank(self.view, write) + ((address >> 12) as usize & (TLB_ENTRIES - 1)) * 8;
        let tag = Ea {
            disp: (slot + offset_of!(TlbBank, neg_page)) as i32,
            ..Ea::default()
        };
        let expected = (address & !0xfff).wrapping_neg();
        self.guarded(live, |e| {
            let entry = What::TlbEntry { write, host: false };
            if Width::is_signed(expected) {
                e.hot.op_mem(&[0x81], 7, tag, true, true);
                e.mark_relative(entry, 4);
                e.hot.dword(expected as u32);
                e.mark_relative(What::Tag(Width::Sign), 4);
            } else {
                e.hot.mov_imm(reg::T0, expected);
                let width = Width::of_mov(expected);
                e.mark_relative(What::Tag(width), width.bytes());
                e.hot.op_mem(&[0x3b], reg::T0, tag, true, true);
                e.mark_relative(entry, 4);
            }
            let jump = e.hot.jcc(cc::NE);
            let what = SlowKind::Miss {
                write,
                size: size as u8,
                retry,
                constant: Some(address),
                group: None,
            };
            e.slow(jump, what);
        });
        self.hot.load(reg::T1, slot + offset_of!(TlbBank, host));
        self.mark_relative(What::TlbEntry { write, host: true }, 4);
        Place {
            base: reg::T1,
            index: None,
            scale: 0,
            disp: (address & 0xfff) as i32,
        }
    }

    /// Address and check of an ordinary memory operand.
    pub(super) fn operand(
        &mut self,
        i: &Instruction,
        write: bool,
        size: usize,
        live: bool,
    ) -> Place {
        if let Some(place) = self.group_place(live) {
            return place;
        }
        let plain = !matches!(i.memory_segment(), Register::FS | Register::GS);
        let none = i.memory_base() == Register::None && i.memory_index() == Register::None;
        if self.code32 && none && plain {
            let address = i.memory_displacement64() & 0xffff_ffff;
            if (address & 0xfff) as usize + size <= 4096 {
                return self.check_constant(address, write, size, live);
            }
        } else if i.is_ip_rel_memory_operand() && plain {
            let address = i.ip_rel_memory_address();
            if i.memory_base() == Register::EIP {
                self.relocs.fix();
            }
            if (address & 0xfff) as usize + size <= 4096 {
                return self.check_constant(address, write, size, live);
            }
        }
        self.address(i);
        self.check(write, size, live);
        Place::CHECKED
    }

    /// A group member's operand; the first one checks.
    fn group_place(&mut self, live: bool) -> Option<Place> {
        let m = self.member?;
        if let Some(c) = m.check {
            let ea = Ea {
                base: Some(c.base),
                index: c.index,
                disp: c.low,
            };
            self.move_address(ea, !self.code32);
            self.check_range(c.write, c.span as usize, live, Some(c.span));
        }
        Some(Place {
            disp: m.offset,
            ..Place::CHECKED
        })
    }

    /// Checks a slot of the stack at rsp + `disp`.
    pub(super) fn stack_place(&mut self, disp: i32, write: bool, live: bool) -> Place {
        if let Some(place) = self.group_place(live) {
            return place;
        }
        let ea = Ea {
            base: Some(reg::RSP),
            index: None,
            disp,
        };
        self.move_address(ea, !self.code32);
        self.check(write, self.word(), live);
        Place::CHECKED
    }
}

/// The entry at T1 of an array of the TLB.
pub(super) fn indexed(array: usize) -> Ea {
    Ea {
        base: Some(reg::T1),
        index: None,
        disp: array as i32,
    }
}

pub(super) const fn segment_base(s: usize) -> usize {
    offset_of!(Cpu, seg) + s * size_of::<Seg>() + offset_of!(Seg, base)
}
