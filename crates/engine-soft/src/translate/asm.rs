//! A small x86-64 emitter for the sequences that the translator adds around
//! guest instructions. Writes straight into the code cache.

/// Host register numbers used by the translator itself.
pub(crate) mod reg {
    /// rax.
    pub const RAX: u8 = 0;
    /// rsp.
    pub const RSP: u8 = 4;
    /// rbp.
    pub const RBP: u8 = 5;
    /// First scratch register (guest r14 is spilled for it).
    pub const T0: u8 = 14;
    /// Second scratch register (guest r15 is spilled for it).
    pub const T1: u8 = 15;
}

/// Condition codes, as in the low nibble of `jcc`.
pub(crate) mod cc {
    /// Not zero.
    pub const NE: u8 = 5;
    /// Zero.
    pub const E: u8 = 4;
    /// No carry.
    pub const AE: u8 = 3;
    /// Above (unsigned).
    pub const A: u8 = 7;
}

/// An effective address of host registers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ea {
    pub base: Option<u8>,
    /// Register and log2 of the scale.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

/// A place in the code cache that is being written: `pos` is an offset, `rw`
/// the base of the writable view.
pub(crate) struct Asm {
    rw: *mut u8,
    /// Offset of the next byte.
    pub pos: usize,
    end: usize,
    /// Set when the space ran out; everything emitted since is void.
    pub full: bool,
}

impl Asm {
    /// Emits into `rw[pos..end]`.
    ///
    /// # Safety
    /// `rw + pos .. rw + end` must be writable and not be written by others
    /// while this value is used.
    pub unsafe fn new(rw: *mut u8, pos: usize, end: usize) -> Self {
        Self {
            rw,
            pos,
            end,
            full: false,
        }
    }

    pub fn bytes(&mut self, b: &[u8]) {
        if self.pos + b.len() > self.end {
            self.full = true;
            return;
        }
        // SAFETY: inside the space given to `new`.
        unsafe { std::ptr::copy_nonoverlapping(b.as_ptr(), self.rw.add(self.pos), b.len()) };
        self.pos += b.len();
    }

    pub fn byte(&mut self, b: u8) {
        self.bytes(&[b]);
    }

    pub fn dword(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }

    pub fn qword(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }

    /// Copies bytes that are in the same cache.
    pub fn copy(&mut self, from: usize, len: usize) {
        if self.pos + len > self.end {
            self.full = true;
            return;
        }
        // SAFETY: `from` is a block of the cache, before its free space, which
        // is where `pos` is, with room for `len` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(self.rw.add(from), self.rw.add(self.pos), len);
        }
        self.pos += len;
    }

    /// Reads bytes emitted before.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        // SAFETY: emitted by this emitter.
        unsafe { std::ptr::copy_nonoverlapping(self.rw.add(at), out.as_mut_ptr(), out.len()) };
    }

    /// Reads four bytes emitted before.
    pub fn read32(&self, at: usize) -> u32 {
        let mut b = [0; 4];
        self.read(at, &mut b);
        u32::from_le_bytes(b)
    }

    /// Reads eight bytes emitted before.
    pub fn read64(&self, at: usize) -> u64 {
        let mut b = [0; 8];
        self.read(at, &mut b);
        u64::from_le_bytes(b)
    }

    /// Overwrites bytes emitted before.
    pub fn patch(&mut self, at: usize, b: &[u8]) {
        if self.full {
            return;
        }
        // SAFETY: emitted by this emitter.
        unsafe { std::ptr::copy_nonoverlapping(b.as_ptr(), self.rw.add(at), b.len()) };
    }

    /// Overwrites four bytes emitted before.
    pub fn patch32(&mut self, at: usize, v: u32) {
        if self.full {
            return;
        }
        // SAFETY: `at` was returned by this emitter (or lies in the same
        // cache, reserved for this translation).
        unsafe { self.rw.add(at).cast::<u32>().write_unaligned(v) };
    }

    /// Overwrites one byte emitted before.
    pub fn patch8(&mut self, at: usize, v: u8) {
        if self.full {
            return;
        }
        // SAFETY: as in `patch32`.
        unsafe { self.rw.add(at).write(v) };
    }

    /// Makes the rel32 at `at` point to `target`.
    pub fn patch_rel(&mut self, at: usize, target: usize) {
        self.patch32(at, rel32(at, target));
    }

    /// ModRM for `reg` with a register-based memory operand.
    fn modrm(&mut self, reg: u8, ea: Ea) {
        let r = (reg & 7) << 3;
        let scale_index = |i: Option<(u8, u8)>| i.map_or(4 << 3, |(x, s)| s << 6 | (x & 7) << 3);
        let Some(b) = ea.base else {
            self.bytes(&[r | 4, scale_index(ea.index) | 5]);
            self.dword(ea.disp as u32);
            return;
        };
        let md = if ea.disp == 0 && b & 7 != 5 {
            0
        } else if i8::try_from(ea.disp).is_ok() {
            1
        } else {
            2
        };
        if ea.index.is_some() || b & 7 == 4 {
            self.bytes(&[md << 6 | r | 4, scale_index(ea.index) | b & 7]);
        } else {
            self.byte(md << 6 | r | b & 7);
        }
        match md {
            1 => self.byte(ea.disp as u8),
            2 => self.dword(ea.disp as u32),
            _ => {}
        }
    }

    /// `op reg, [ea]`, with optional gs prefix and operand width (`w`: 64 bit).
    pub fn op_mem(&mut self, op: &[u8], reg: u8, ea: Ea, w: bool, gs: bool) {
        if gs {
            self.byte(0x65);
        }
        let rex = u8::from(w) << 3
            | (reg >> 3) << 2
            | ea.index.map_or(0, |(x, _)| x >> 3) << 1
            | ea.base.map_or(0, |b| b >> 3);
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.bytes(op);
        self.modrm(reg, ea);
    }

    /// `op reg, rm` register form (opcode with reg as destination, e.g. 8b).
    pub fn op_reg(&mut self, op: &[u8], reg: u8, rm: u8, w: bool) {
        let rex = u8::from(w) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.bytes(op);
        self.byte(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    fn state(off: usize) -> Ea {
        Ea {
            disp: off as i32,
            ..Ea::default()
        }
    }

    /// `mov reg, gs:[off]`, 64 bit.
    pub fn load(&mut self, reg: u8, off: usize) {
        self.op_mem(&[0x8b], reg, Self::state(off), true, true);
    }

    /// `mov gs:[off], reg`, 64 bit.
    pub fn store(&mut self, reg: u8, off: usize) {
        self.op_mem(&[0x89], reg, Self::state(off), true, true);
    }

    /// `cmp dword gs:[off], imm`.
    pub fn cmp_state32(&mut self, off: usize, imm: u32) {
        if let Ok(small) = i8::try_from(imm as i32) {
            self.op_mem(&[0x83], 7, Self::state(off), false, true);
            self.byte(small as u8);
        } else {
            self.op_mem(&[0x81], 7, Self::state(off), false, true);
            self.dword(imm);
        }
    }

    /// As [`Self::cmp_state32`], with the immediate always in four bytes.
    pub fn cmp_state32_wide(&mut self, off: usize, imm: u32) {
        self.op_mem(&[0x81], 7, Self::state(off), false, true);
        self.dword(imm);
    }

    /// `mov dst, src`, 64 bit.
    pub fn mov(&mut self, dst: u8, src: u8) {
        self.op_reg(&[0x8b], dst, src, true);
    }

    /// `mov dst, imm` in the shortest form.
    pub fn mov_imm(&mut self, dst: u8, v: u64) {
        if v >> 32 == 0 {
            if dst >= 8 {
                self.byte(0x41);
            }
            self.byte(0xb8 | dst & 7);
            self.dword(v as u32);
        } else if v as i64 == i64::from(v as i32) {
            self.bytes(&[0x48 | dst >> 3, 0xc7, 0xc0 | dst & 7]);
            self.dword(v as u32);
        } else {
            self.bytes(&[0x48 | dst >> 3, 0xb8 | dst & 7]);
            self.qword(v);
        }
    }

    /// `lea dst, [ea]` (`w`: 64 bit, else zero-extended 32).
    pub fn lea(&mut self, dst: u8, ea: Ea, w: bool) {
        self.op_mem(&[0x8d], dst, ea, w, false);
    }

    /// `lahf; seto al`.
    pub fn flags_to_ax(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 0x7f; sahf`: the reverse.
    pub fn flags_from_ax(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// `rorx dst32, src32, n`.
    pub fn rorx32(&mut self, dst: u8, src: u8, n: u8) {
        self.bytes(&[
            0xc4,
            ((dst >> 3) ^ 1) << 7 | 0x40 | ((src >> 3) ^ 1) << 5 | 3,
            0x7b,
            0xf0,
            0xc0 | (dst & 7) << 3 | src & 7,
            n,
        ]);
    }

    /// `jcc rel32` to a place not known yet; returns where the rel32 is.
    pub fn jcc(&mut self, cond: u8) -> usize {
        self.bytes(&[0x0f, 0x80 | cond]);
        let at = self.pos;
        self.dword(0);
        at
    }

    /// `jmp rel32` to a place not known yet; returns where the rel32 is.
    pub fn jmp(&mut self) -> usize {
        self.byte(0xe9);
        let at = self.pos;
        self.dword(0);
        at
    }

    /// `jmp rel32`.
    pub fn jmp_to(&mut self, target: usize) {
        let at = self.jmp();
        self.patch_rel(at, target);
    }

    /// Pads with `nop`s so that a rel32 after `lead` more bytes does not cross
    /// a cache line, as one that is changed while it runs must not.
    pub fn align_rel(&mut self, lead: usize) {
        const NOPS: [&[u8]; 4] = [&[], &[0x90], &[0x66, 0x90], &[0x0f, 0x1f, 0x00]];
        let into = (self.pos + lead) % 64;
        if into > 60 {
            self.bytes(NOPS[64 - into]);
        }
    }
}

/// rel32 at `at` that reaches `target`.
pub(crate) fn rel32(at: usize, target: usize) -> u32 {
    (target as i64 - (at as i64 + 4)) as u32
}
