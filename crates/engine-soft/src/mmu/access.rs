//! Loads, stores and read-modify-writes of guest memory at linear addresses.
//!
//! All take the page fault or #GP that the access raises as their error, and
//! have no effect then. Segmentation (bases, limits) is the caller's business.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use arch::Exception;

use crate::core::{Core, Exec};
use crate::cpu::View;

/// Longest single access of `read_bytes`/`write_bytes` that is guaranteed to
/// have no effect when it faults.
const MAX_BYTES: usize = 4096;

impl Core {
    /// View of ordinary data accesses now.
    #[inline]
    pub fn view(&self) -> View {
        match self.cpu.view {
            0 => View::User,
            1 => View::Kernel,
            _ => View::KernelAc,
        }
    }

    fn canonical(&self, la: u64, size: usize) -> Exec {
        let ok = |a: u64| (a as i64) << 16 >> 16 == a as i64;
        if self.cpu.is64() && !(ok(la) && ok(la.wrapping_add(size as u64 - 1))) {
            return Err(Exception::gp0().into());
        }
        Ok(())
    }

    /// Loads 1, 2, 4 or 8 bytes, zero-extended.
    ///
    /// # Errors
    /// #PF, #GP.
    #[inline]
    pub fn read(&mut self, la: u64, size: usize) -> Exec<u64> {
        self.read_as(la, size, self.view())
    }

    /// Stores the low 1, 2, 4 or 8 bytes of a value.
    ///
    /// # Errors
    /// #PF, #GP.
    #[inline]
    pub fn write(&mut self, la: u64, size: usize, value: u64) -> Exec {
        self.write_as(la, size, value, self.view())
    }

    /// As [`Self::read`], as an implicit supervisor access (descriptor tables,
    /// TSS, interrupt stacks at a more privileged level).
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn read_system(&mut self, la: u64, size: usize) -> Exec<u64> {
        self.read_as(la, size, self.system_view())
    }

    /// As [`Self::write`], as an implicit supervisor access.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn write_system(&mut self, la: u64, size: usize, value: u64) -> Exec {
        self.write_as(la, size, value, self.system_view())
    }

    /// View of implicit supervisor accesses.
    pub(crate) fn system_view(&self) -> View {
        if self.cpu.cr4 & crate::cpu::cr::CR4_SMAP != 0 {
            View::Kernel
        } else {
            View::KernelAc
        }
    }

    /// As [`Self::read`], from a given view of memory.
    ///
    /// # Errors
    /// #PF, #GP.
    #[inline]
    pub fn read_as(&mut self, la: u64, size: usize, view: View) -> Exec<u64> {
        if let Some(p) = self.tlb_get(view, false, la, size) {
            // SAFETY: `p` is `size` bytes of RAM inside one page.
            return Ok(unsafe { load(p, size) });
        }
        let mut b = [0; 8];
        self.read_slow(la, &mut b[..size], view)?;
        Ok(u64::from_le_bytes(b))
    }

    /// As [`Self::write`], from a given view of memory.
    ///
    /// # Errors
    /// #PF, #GP.
    #[inline]
    pub fn write_as(&mut self, la: u64, size: usize, value: u64, view: View) -> Exec {
        if let Some(p) = self.tlb_get(view, true, la, size) {
            // SAFETY: `p` is `size` bytes of RAM inside one page.
            unsafe { store(p, size, value) };
            return Ok(());
        }
        self.write_slow(la, &value.to_le_bytes()[..size], view)
    }

    /// Loads up to a page of bytes, across a page boundary if need be.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn read_bytes(&mut self, la: u64, out: &mut [u8]) -> Exec {
        let view = self.view();
        if let Some(p) = self.tlb_get(view, false, la, out.len()) {
            // SAFETY: RAM inside one page; `out` is not guest memory.
            unsafe { std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        self.read_slow(la, out, view)
    }

    /// Stores up to a page of bytes, across a page boundary if need be; all or
    /// nothing.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn write_bytes(&mut self, la: u64, data: &[u8]) -> Exec {
        let view = self.view();
        if let Some(p) = self.tlb_get(view, true, la, data.len()) {
            // SAFETY: RAM inside one page; `data` is not guest memory.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), p, data.len()) };
            return Ok(());
        }
        self.write_slow(la, data, view)
    }

    /// Raises the fault that a store of `size` bytes would raise, and has no
    /// other effect.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn probe_write(&mut self, la: u64, size: usize) -> Exec {
        let view = self.view();
        if self.tlb_get(view, true, la, size).is_some() {
            return Ok(());
        }
        self.canonical(la, size)?;
        self.tlb_fill(la, true, view)?;
        let last = la.wrapping_add(size as u64 - 1);
        if last >> 12 != la >> 12 {
            self.tlb_fill(self.wrap(last) & !0xfff, true, view)?;
        }
        Ok(())
    }

    /// Host pointer to bytes from `la` up to the end of its page, at most
    /// `max`, if the page is plain RAM (for bulk copies); `None`: use the
    /// other accessors.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn host_run(&mut self, la: u64, write: bool, max: usize) -> Exec<Option<(*mut u8, usize)>> {
        let view = self.view();
        let len = max.min(4096 - (la & 0xfff) as usize);
        if let Some(p) = self.tlb_get(view, write, la, 1) {
            return Ok(Some((p, len)));
        }
        self.canonical(la, 1)?;
        self.tlb_fill(la, write, view)?;
        Ok(self.tlb_get(view, write, la, 1).map(|p| (p, len)))
    }

    /// Read-modify-write of 1, 2, 4 or 8 bytes: stores `f(old)` and returns
    /// `old`. Needs write permission first. Atomic against other vCPUs if
    /// `locked`; then `f` may be called several times.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn rmw(
        &mut self,
        la: u64,
        size: usize,
        locked: bool,
        mut f: impl FnMut(u64) -> u64,
    ) -> Exec<u64> {
        if let Some(p) = self.rmw_ptr(la, size)? {
            if !locked {
                // SAFETY: `size` bytes of RAM inside one page.
                return Ok(unsafe {
                    let old = load(p, size);
                    store(p, size, f(old));
                    old
                });
            }
            if p as usize & (size - 1) == 0 {
                // SAFETY: as above, and aligned.
                return Ok(unsafe { rmw_atomic(p, size, f) });
            }
        }
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        let mut step = || {
            let old = self.read(la, size)?;
            self.write(la, size, f(old))?;
            Ok(old)
        };
        if locked {
            shared.world.alone(&signal, step)
        } else {
            step()
        }
    }

    /// As [`Self::rmw`] for 16 bytes (`cmpxchg16b`), which must be aligned.
    ///
    /// # Errors
    /// #PF, #GP.
    pub fn rmw128(&mut self, la: u64, mut f: impl FnMut(u128) -> u128) -> Exec<u128> {
        if la & 15 != 0 {
            return Err(Exception::gp0().into());
        }
        self.probe_write(la, 16)?;
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        // `alone` makes this atomic without a 16-byte host atomic; generated
        // code uses the host's own cmpxchg16b, so this path is rare.
        shared.world.alone(&signal, || {
            let mut b = [0; 16];
            self.read_bytes(la, &mut b)?;
            let old = u128::from_le_bytes(b);
            self.write_bytes(la, &f(old).to_le_bytes())?;
            Ok(old)
        })
    }

    fn rmw_ptr(&mut self, la: u64, size: usize) -> Exec<Option<*mut u8>> {
        let view = self.view();
        if let Some(p) = self.tlb_get(view, true, la, size) {
            return Ok(Some(p));
        }
        self.probe_write(la, size)?;
        Ok(self.tlb_get(view, true, la, size))
    }

    /// Addresses wrap at 4 GiB outside 64-bit mode.
    fn wrap(&self, la: u64) -> u64 {
        if self.cpu.is64() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    #[cold]
    fn read_slow(&mut self, la: u64, out: &mut [u8], view: View) -> Exec {
        self.canonical(la, out.len())?;
        let first = out.len().min(4096 - (la & 0xfff) as usize);
        let t = self.tlb_fill(la, false, view)?.gpa;
        if first < out.len() {
            let t2 = self
                .tlb_fill(self.wrap(la.wrapping_add(first as u64)), false, view)?
                .gpa;
            let (a, b) = out.split_at_mut(first);
            self.phys_read(t, a);
            self.phys_read(t2, b);
        } else {
            self.phys_read(t, out);
        }
        Ok(())
    }

    #[cold]
    fn write_slow(&mut self, la: u64, data: &[u8], view: View) -> Exec {
        debug_assert!(data.len() <= MAX_BYTES);
        self.canonical(la, data.len())?;
        let first = data.len().min(4096 - (la & 0xfff) as usize);
        let t = self.tlb_fill(la, true, view)?.gpa;
        if first < data.len() {
            let t2 = self
                .tlb_fill(self.wrap(la.wrapping_add(first as u64)), true, view)?
                .gpa;
            self.phys_write(t, &data[..first]);
            self.phys_write(t2, &data[first..]);
        } else {
            self.phys_write(t, data);
        }
        Ok(())
    }

    /// Reads guest-physical memory or MMIO.
    pub fn phys_read(&mut self, gpa: u64, out: &mut [u8]) {
        if let Some(p) = self.ram.range_ptr(gpa, out.len() as u64) {
            // SAFETY: `range_ptr` vouches for the whole range.
            unsafe { copy_from_ram(p, out) };
        } else if self.lapic.claims(gpa) {
            self.stats.mmio += 1;
            self.lapic_mmio_read(gpa, out);
        } else {
            self.stats.mmio += 1;
            self.shared.bus().mmio_read(gpa, out);
        }
    }

    /// Writes guest-physical memory or MMIO.
    pub fn phys_write(&mut self, gpa: u64, data: &[u8]) {
        if let Some(p) = self.ram.range_ptr(gpa, data.len() as u64) {
            // SAFETY: `range_ptr` vouches for the whole range.
            unsafe { copy_to_ram(p, data) };
            if let Some(off) = self.ram.offset_of(gpa) {
                self.ram.set_dirty(off >> 12);
                if self.ram.is_watched(off >> 12) {
                    self.code_written(off, data.len());
                }
            }
        } else if self.lapic.claims(gpa) {
            self.stats.mmio += 1;
            self.lapic_mmio_write(gpa, data);
        } else {
            self.stats.mmio += 1;
            self.shared.bus().mmio_write(gpa, data);
        }
    }
}

/// # Safety
/// `p` is `size` (1, 2, 4, 8) readable bytes.
#[inline]
unsafe fn load(p: *const u8, size: usize) -> u64 {
    // SAFETY: by contract; unaligned reads compile to single loads.
    unsafe {
        match size {
            1 => u64::from(p.read()),
            2 => u64::from(p.cast::<u16>().read_unaligned()),
            4 => u64::from(p.cast::<u32>().read_unaligned()),
            _ => p.cast::<u64>().read_unaligned(),
        }
    }
}

/// # Safety
/// `p` is `size` (1, 2, 4, 8) writable bytes.
#[inline]
unsafe fn store(p: *mut u8, size: usize, v: u64) {
    // SAFETY: by contract; unaligned writes compile to single stores.
    unsafe {
        match size {
            1 => p.write(v as u8),
            2 => p.cast::<u16>().write_unaligned(v as u16),
            4 => p.cast::<u32>().write_unaligned(v as u32),
            _ => p.cast::<u64>().write_unaligned(v),
        }
    }
}

/// # Safety
/// `p` is `size` (1, 2, 4, 8) writable bytes, aligned to `size`.
unsafe fn rmw_atomic(p: *mut u8, size: usize, mut f: impl FnMut(u64) -> u64) -> u64 {
    macro_rules! go {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: by contract.
            let a = unsafe { <$atomic>::from_ptr(p.cast()) };
            let mut old = a.load(Ordering::SeqCst);
            loop {
                let new = f(old as u64) as $int;
                match a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => return old as u64,
                    Err(now) => old = now,
                }
            }
        }};
    }
    match size {
        1 => go!(AtomicU8, u8),
        2 => go!(AtomicU16, u16),
        4 => go!(AtomicU32, u32),
        _ => go!(AtomicU64, u64),
    }
}

/// # Safety
/// `p` is `out.len()` readable bytes of RAM.
unsafe fn copy_from_ram(p: *const u8, out: &mut [u8]) {
    // SAFETY: by contract. Word-sized pieces are single loads.
    unsafe {
        match out.len() {
            n @ (1 | 2 | 4 | 8) => out.copy_from_slice(&load(p, n).to_le_bytes()[..n]),
            n => std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), n),
        }
    }
}

/// # Safety
/// `p` is `data.len()` writable bytes of RAM.
unsafe fn copy_to_ram(p: *mut u8, data: &[u8]) {
    // SAFETY: by contract. Word-sized pieces are single stores.
    unsafe {
        match data.len() {
            n @ (1 | 2 | 4 | 8) => {
                let mut b = [0; 8];
                b[..n].copy_from_slice(data);
                store(p, n, u64::from_le_bytes(b));
            }
            n => std::ptr::copy_nonoverlapping(data.as_ptr(), p, n),
        }
    }
}
