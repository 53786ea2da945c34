//! Segment descriptors in the GDT and LDT (SDM vol. 3A, 3.4.5 and 3.5).

use arch::{Exception, exception};

use crate::core::{Core, Exec};
use crate::cpu::{Seg, flag};

/// `Seg::rights`: the register holds no segment.
pub(crate) const UNUSABLE: u32 = 1 << 16;

/// A descriptor as in memory, with where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// The 8 bytes.
    pub(crate) raw: u64,
    /// Bits 63 to 32 of the base, or of the offset of a gate (16-byte system
    /// descriptors of IA-32e mode; 0 otherwise).
    pub(crate) high: u64,
    /// Linear address.
    pub(crate) at: u64,
}

impl Descriptor {
    /// Linear base.
    pub(crate) const fn base(&self) -> u64 {
        self.raw >> 16 & 0xff_ffff | self.raw >> 32 & 0xff00_0000 | self.high << 32
    }
    /// Limit in bytes.
    pub(crate) const fn limit(&self) -> u32 {
        let limit = (self.raw & 0xffff | self.raw >> 32 & 0xf_0000) as u32;
        if self.raw >> 55 & 1 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }
    /// As `Seg::rights`.
    pub(crate) const fn rights(&self) -> u32 {
        (self.raw >> 40) as u32 & 0xf0ff
    }
    /// Type, 0 to 15.
    pub(crate) const fn kind(&self) -> u8 {
        (self.raw >> 40) as u8 & 15
    }
    /// Whether it is a system descriptor or gate (S = 0).
    pub(crate) const fn system(&self) -> bool {
        self.raw >> 44 & 1 == 0
    }
    /// Descriptor privilege level.
    pub(crate) const fn dpl(&self) -> u8 {
        (self.raw >> 45) as u8 & 3
    }
    /// Present.
    pub(crate) const fn present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }
    /// Code segment.
    pub(crate) const fn code(&self) -> bool {
        !self.system() && self.kind() & 8 != 0
    }
    /// Conforming code segment.
    pub(crate) const fn conforming(&self) -> bool {
        self.code() && self.kind() & 4 != 0
    }
    /// Writable data segment.
    pub(crate) const fn writable(&self) -> bool {
        !self.system() && self.kind() & 0xa == 2
    }
    /// Readable: data, or readable code.
    pub(crate) const fn readable(&self) -> bool {
        !self.system() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    /// 64-bit code segment.
    pub(crate) const fn long(&self) -> bool {
        self.raw >> 53 & 1 != 0
    }
    /// D/B.
    pub(crate) const fn big(&self) -> bool {
        self.raw >> 54 & 1 != 0
    }
    /// The segment register that this descriptor gives.
    pub(crate) const fn seg(&self, selector: u16) -> Seg {
        Seg::new(selector, self.base(), self.limit(), self.rights())
    }
    /// Gate: target selector.
    pub(crate) const fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    /// Gate: target offset.
    pub(crate) const fn gate_offset(&self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000 | self.high << 32
    }
}

/// #GP with a selector.
pub(crate) const fn gp(selector: u16) -> Exception {
    Exception::with_error(exception::GP, selector as u32 & 0xfffc)
}

/// #NP with a selector.
pub(crate) const fn np(selector: u16) -> Exception {
    Exception::with_error(exception::NP, selector as u32 & 0xfffc)
}

/// #SS with a selector.
pub(crate) const fn ss(selector: u16) -> Exception {
    Exception::with_error(exception::SS, selector as u32 & 0xfffc)
}

/// #TS with a selector.
pub(crate) const fn ts(selector: u16) -> Exception {
    Exception::with_error(exception::TS, selector as u32 & 0xfffc)
}

/// Whether a selector is null.
pub(crate) const fn null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

impl Core {
    /// Reads the descriptor that a selector names; `None` if it lies outside
    /// its table (or the LDT is unusable).
    ///
    /// # Errors
    /// #PF of the table access.
    #[inline]
    pub(crate) fn descriptor(&mut self, selector: u16) -> Exec<Option<Descriptor>> {
        let (base, limit) = if selector & 4 == 0 {
            (self.cpu.gdt.0, u32::from(self.cpu.gdt.1))
        } else if self.cpu.ldtr.rights & UNUSABLE != 0 || null(self.cpu.ldtr.selector) {
            return Ok(None);
        } else {
            (self.cpu.ldtr.base, self.cpu.ldtr.limit)
        };
        let offset = u32::from(selector & 0xfff8);
        if offset + 7 > limit {
            return Ok(None);
        }
        let at = self.table_address(base.wrapping_add(u64::from(offset)));
        let raw = self.read_system(at, 8)?;
        Ok(Some(Descriptor { raw, high: 0, at }))
    }

    /// As [`Self::descriptor`], with the upper half that system descriptors
    /// have in IA-32e mode.
    ///
    /// # Errors
    /// #PF; #GP(selector) if the upper half has a type or lies outside.
    pub(crate) fn system_descriptor(&mut self, selector: u16) -> Exec<Option<Descriptor>> {
        let Some(mut d) = self.descriptor(selector)? else {
            return Ok(None);
        };
        if self.cpu.long_mode() && d.system() {
            let limit = if selector & 4 == 0 {
                u32::from(self.cpu.gdt.1)
            } else {
                self.cpu.ldtr.limit
            };
            if u32::from(selector & 0xfff8) + 15 > limit {
                return Err(gp(selector).into());
            }
            let upper = self.read_system(d.at.wrapping_add(8), 8)?;
            if upper >> 40 & 0x1f != 0 {
                return Err(gp(selector).into());
            }
            d.high = upper & 0xffff_ffff;
        }
        Ok(Some(d))
    }

    /// Linear addresses of system tables wrap at 4 GiB outside IA-32e mode.
    #[inline]
    pub(crate) fn table_address(&self, la: u64) -> u64 {
        if self.cpu.long_mode() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    /// Sets the accessed bit of a code or data segment, in memory and in the
    /// copy.
    ///
    /// # Errors
    /// #PF.
    #[inline]
    pub(crate) fn mark_accessed(&mut self, d: &mut Descriptor) -> Exec {
        if d.raw >> 40 & 1 == 0 {
            d.raw |= 1 << 40;
            let byte = d.raw >> 40 & 0xff;
            self.write_system(d.at.wrapping_add(5), 1, byte)?;
        }
        Ok(())
    }

    /// Whether segments are loaded without descriptors: real mode or v86.
    pub(crate) fn flat_segments(&self) -> bool {
        !self.cpu.protected() || self.cpu.rflags & flag::VM != 0
    }

    /// #GP(0) unless at privilege level 0.
    pub(crate) fn need_cpl0(&self) -> Exec {
        if self.cpu.cpl == 0 {
            Ok(())
        } else {
            Err(Exception::gp0().into())
        }
    }

    /// #UD in real and v86 mode.
    pub(crate) fn need_protected(&self) -> Exec {
        if self.flat_segments() {
            Err(Exception::ud().into())
        } else {
            Ok(())
        }
    }
}
