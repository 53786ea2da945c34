//! Fetching and decoding the instruction at rip, for the interpreter.

use iced_x86::{Decoder, DecoderOptions};

use arch::Exception;

use crate::core::{Core, Exec};
use crate::mmu::Access;

impl Core {
    /// Decodes and interprets the instruction at rip.
    ///
    /// # Errors
    /// Its faults.
    pub(crate) fn step_one(&mut self) -> Exec {
        let i = self.decode_here()?;
        self.stats.interpreted += 1;
        crate::interpret::step(self, &i)
    }

    /// The instruction at rip.
    ///
    /// # Errors
    /// Faults of the fetch, #UD.
    #[inline]
    pub(crate) fn decode_here(&mut self) -> Exec<iced_x86::Instruction> {
        let (bits, rip) = (u32::from(self.cpu.bits), self.cpu.rip);
        let mut buffer = [0u8; 16];
        let bytes = self.fetch(&mut buffer)?;
        if bytes.len() < 15 {
            return decode_one(bits, bytes, rip);
        }
        let slot = decode_index(rip);
        let d = &self.jit.decoded[slot];
        if d.rip != rip || d.bits != bits || d.bytes[..15] != buffer[..15] {
            let i = decode_one(bits, &buffer[..15], rip)?;
            self.jit.decoded[slot] = Decoded {
                rip,
                bits,
                bytes: buffer,
                i,
            };
        }
        Ok(self.jit.decoded[slot].i)
    }

    /// The bytes at rip: from its page if they lie in it, else put together.
    fn fetch<'a>(&mut self, buffer: &'a mut [u8; 16]) -> Exec<&'a [u8]> {
        let la = self.fetch_address()?;
        let left = 4096 - (la & 0xfff) as usize;
        if left >= 16
            && let Some(p) = self.code_page(la)?
        {
            // SAFETY: 16 bytes inside a page of guest RAM.
            *buffer = unsafe { p.host.add((la & 0xfff) as usize).cast::<[u8; 16]>().read() };
            return Ok(&buffer[..15]);
        }
        let n = left.min(15);
        self.fetch_part(la, &mut buffer[..n])?;
        if n == 15 {
            return Ok(&buffer[..15]);
        }
        // Only fetch from the next page if the instruction needs it.
        let bits = u32::from(self.cpu.bits);
        let mut decoder = Decoder::with_ip(bits, &buffer[..n], self.cpu.rip, DecoderOptions::NONE);
        let i = decoder.decode();
        if !i.is_invalid() || decoder.last_error() != iced_x86::DecoderError::NoMoreBytes {
            return Ok(&buffer[..n]);
        }
        let mut next = la.wrapping_add(n as u64);
        if bits != 64 {
            next &= 0xffff_ffff;
        }
        self.fetch_part(next, &mut buffer[n..15])?;
        Ok(&buffer[..15])
    }

    /// Linear address of rip, with the CS limit checked.
    fn fetch_address(&mut self) -> Exec<u64> {
        let c = &*self.cpu;
        if c.bits == 64 {
            if (c.rip as i64) << 16 >> 16 != c.rip as i64 {
                return Err(Exception::gp0().into());
            }
            return Ok(c.rip);
        }
        let cs = c.seg[crate::cpu::seg::CS];
        let offset = c.rip & 0xffff_ffff;
        if offset > u64::from(cs.limit) {
            return Err(Exception::gp0().into());
        }
        Ok(cs.base.wrapping_add(offset) & 0xffff_ffff)
    }

    fn fetch_part(&mut self, la: u64, out: &mut [u8]) -> Exec {
        let Some(p) = self.code_page(la)? else {
            let view = self.view();
            let gpa = self.walk(la, Access::Exec, view)?.gpa;
            self.phys_read(gpa, out);
            return Ok(());
        };
        // SAFETY: a page of guest RAM; the range stays inside it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                p.host.add((la & 0xfff) as usize),
                out.as_mut_ptr(),
                out.len(),
            );
        }
        Ok(())
    }
}

/// An instruction decoded before, good as long as its bytes are the same.
#[derive(Clone, Copy, Default)]
pub(super) struct Decoded {
    rip: u64,
    bits: u32,
    bytes: [u8; 16],
    i: iced_x86::Instruction,
}

/// Number of decoded instructions kept.
pub(super) const DECODED: usize = 4096;

fn decode_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (DECODED - 1)
}

fn decode_one(bits: u32, bytes: &[u8], rip: u64) -> Exec<iced_x86::Instruction> {
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let i = decoder.decode();
    if !i.is_invalid() {
        Ok(i)
    } else if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes {
        Err(Exception::gp0().into())
    } else {
        Err(Exception::ud().into())
    }
}
