//! Page walks (SDM vol. 3A, chapter 4): 32-bit, PAE and 4-level paging.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::Exception;

use crate::core::Core;
use crate::cpu::{View, cr};

/// Kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data load.
    Read,
    /// Data store (or read-modify-write).
    Write,
    /// Instruction fetch.
    Exec,
}

/// Result of a successful walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address of the byte asked for.
    pub gpa: u64,
    /// Global mapping (CR4.PGE): survives CR3 loads.
    pub global: bool,
    /// User-accessible.
    pub user: bool,
    /// Writes may go to the page without a further walk (writable in this
    /// view and already dirty).
    pub writable: bool,
    /// The page is larger than 4 KiB.
    pub large: bool,
}

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
/// Physical address bits that the CPU models show (46), as an address mask.
const ADDR: u64 = 0x3fff_ffff_f000;
/// Bits between the physical address width and 51 must be zero.
const RESERVED: u64 = 0x000f_c000_0000_0000;

/// Rights gathered on the way down.
struct Path {
    rw: bool,
    us: bool,
    nx: bool,
}

enum Entry {
    Table(u64),
    Page,
}

impl Core {
    /// Translates a linear address for an access from a view of memory, and
    /// sets accessed and dirty bits.
    ///
    /// # Errors
    /// The page fault (#PF) that the access raises.
    pub fn walk(&mut self, la: u64, access: Access, view: View) -> Result<Translation, Exception> {
        if !self.cpu.paging() {
            return Ok(Translation {
                gpa: la & 0xffff_ffff,
                global: false,
                user: true,
                writable: true,
                large: false,
            });
        }
        if self.cpu.long_mode() {
            self.walk_long(la, access, view, 4, self.cpu.cr3 & ADDR)
        } else if self.cpu.cr4 & cr::CR4_PAE != 0 {
            self.walk_pae(la, access, view)
        } else {
            self.walk_legacy(la, access, view)
        }
    }

    fn fault(
        &self,
        la: u64,
        access: Access,
        view: View,
        present: bool,
        reserved: bool,
    ) -> Exception {
        let nxe = self.cpu.efer & cr::EFER_NXE != 0 || self.cpu.cr4 & cr::CR4_SMEP != 0;
        let code = u32::from(present)
            | u32::from(access == Access::Write) << 1
            | u32::from(view == View::User) << 2
            | u32::from(reserved) << 3
            | u32::from(access == Access::Exec && nxe) << 4;
        Exception::page_fault(code, la)
    }

    fn entry64(&self, gpa: u64) -> Option<&AtomicU64> {
        let p = self.ram.page_ptr(gpa)?;
        // SAFETY: `gpa` is 8-byte aligned RAM, shared as atomics with the
        // other vCPUs' walks.
        Some(unsafe { AtomicU64::from_ptr(p.cast()) })
    }

    fn walk_pae(&mut self, la: u64, access: Access, view: View) -> Result<Translation, Exception> {
        let la = la & 0xffff_ffff;
        let at = (self.cpu.cr3 & 0xffff_ffe0) + (la >> 30) * 8;
        let pdpte = self.entry64(at).map_or(0, |e| e.load(Ordering::Relaxed));
        if pdpte & P == 0 {
            return Err(self.fault(la, access, view, false, false));
        }
        self.walk_long(la, access, view, 2, pdpte & ADDR)
    }

    /// 4-level paging from the given level down; PAE from level 2.
    fn walk_long(
        &mut self,
        la: u64,
        access: Access,
        view: View,
        top: u32,
        root: u64,
    ) -> Result<Translation, Exception> {
        let mut path = Path {
            rw: true,
            us: true,
            nx: false,
        };
        let nxe = self.cpu.efer & cr::EFER_NXE != 0;
        let mut table = root;
        let mut level = top;
        loop {
            let at = table + (la >> (12 + 9 * (level - 1)) & 511) * 8;
            let Some(cell) = self.entry64(at) else {
                return Err(self.fault(la, access, view, false, false));
            };
            let e = cell.load(Ordering::Acquire);
            if e & P == 0 {
                return Err(self.fault(la, access, view, false, false));
            }
            let large = e & PS != 0 && (level == 2 || level == 3);
            let low = (1u64 << (12 + 9 * (level - 1))) - 1;
            let bad = e & RESERVED != 0
                || e & NX != 0 && !nxe
                || e & PS != 0 && level == 4
                || large && e & ADDR & low & !0x1fff != 0;
            if bad {
                return Err(self.fault(la, access, view, true, true));
            }
            path.rw &= e & RW != 0;
            path.us &= e & US != 0;
            path.nx |= e & NX != 0;
            match if large || level == 1 {
                Entry::Page
            } else {
                Entry::Table(e & ADDR)
            } {
                Entry::Table(next) => {
                    if e & A == 0 {
                        cell.fetch_or(A, Ordering::SeqCst);
                        self.mark_dirty(at);
                    }
                    table = next;
                    level -= 1;
                }
                Entry::Page => {
                    let writable = self.check(&path, la, access, view)?;
                    let set = A | if access == Access::Write { D } else { 0 };
                    if e & set != set {
                        let r =
                            cell.compare_exchange(e, e | set, Ordering::SeqCst, Ordering::SeqCst);
                        if r.is_err() {
                            // Changed under us by another vCPU: look again.
                            continue;
                        }
                        self.mark_dirty(at);
                    }
                    return Ok(Translation {
                        gpa: e & ADDR & !low | la & low,
                        global: e & G != 0 && self.cpu.cr4 & cr::CR4_PGE != 0,
                        user: path.us,
                        writable: writable && (e | set) & D != 0,
                        large,
                    });
                }
            }
        }
    }

    fn walk_legacy(
        &mut self,
        la: u64,
        access: Access,
        view: View,
    ) -> Result<Translation, Exception> {
        let la = la & 0xffff_ffff;
        let pde_at = (self.cpu.cr3 & 0xffff_f000) + (la >> 22) * 4;
        let mut path = Path {
            rw: true,
            us: true,
            nx: false,
        };
        let pse = self.cpu.cr4 & cr::CR4_PSE != 0;
        let pde = self.load32(pde_at);
        if pde & P == 0 {
            return Err(self.fault(la, access, view, false, false));
        }
        path.rw &= pde & RW != 0;
        path.us &= pde & US != 0;
        let large = pse && pde & PS != 0;
        let (at, e, base, low) = if large {
            let high = (pde >> 13 & 0xff) << 32;
            (pde_at, pde, pde & 0xffc0_0000 | high, 0x3f_ffff)
        } else {
            self.or32(pde_at, A);
            let at = (pde & 0xffff_f000) + (la >> 12 & 1023) * 4;
            let pte = self.load32(at);
            if pte & P == 0 {
                return Err(self.fault(la, access, view, false, false));
            }
            path.rw &= pte & RW != 0;
            path.us &= pte & US != 0;
            (at, pte, pte & 0xffff_f000, 0xfff)
        };
        let writable = self.check(&path, la, access, view)?;
        let set = A | if access == Access::Write { D } else { 0 };
        if e & set != set {
            self.or32(at, set);
        }
        Ok(Translation {
            gpa: base | la & low,
            global: e & G != 0 && self.cpu.cr4 & cr::CR4_PGE != 0,
            user: path.us,
            writable: writable && (e | set) & D != 0,
            large,
        })
    }

    /// The walk has set bits of an entry.
    fn mark_dirty(&self, gpa: u64) {
        if let Some(offset) = self.ram.offset_of(gpa) {
            self.ram.set_dirty(offset >> 12);
        }
    }

    fn load32(&self, gpa: u64) -> u64 {
        self.ram.page_ptr(gpa).map_or(0, |p| {
            // SAFETY: 4-byte aligned RAM, as an atomic.
            u64::from(unsafe { AtomicU32::from_ptr(p.cast()) }.load(Ordering::Acquire))
        })
    }

    fn or32(&self, gpa: u64, bits: u64) {
        if let Some(p) = self.ram.page_ptr(gpa) {
            // SAFETY: 4-byte aligned RAM, as an atomic.
            unsafe { AtomicU32::from_ptr(p.cast()) }.fetch_or(bits as u32, Ordering::SeqCst);
            self.mark_dirty(gpa);
        }
    }

    /// Checks the rights; says whether the view could also write.
    fn check(&self, path: &Path, la: u64, access: Access, view: View) -> Result<bool, Exception> {
        let wp = self.cpu.cr0 & cr::CR0_WP != 0;
        let smep = self.cpu.cr4 & cr::CR4_SMEP != 0;
        let nxe = self.cpu.efer & cr::EFER_NXE != 0;
        let (readable, writable, executable) = match view {
            View::User => (path.us, path.us && path.rw, path.us),
            View::Kernel => (!path.us, !path.us && (path.rw || !wp), !(path.us && smep)),
            View::KernelAc => (true, path.rw || !wp, !(path.us && smep)),
        };
        let ok = match access {
            Access::Read => readable,
            Access::Write => writable,
            Access::Exec => executable && !(path.nx && nxe),
        };
        if ok {
            Ok(writable)
        } else {
            Err(self.fault(la, access, view, true, false))
        }
    }
}
