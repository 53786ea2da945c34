//! The software TLB: filling and flushing.
//!
//! Only RAM gets entries, so MMIO always takes the slow path; and pages whose
//! code was translated ("watched") get no write entries, so that stores to
//! them are seen.

use arch::Exception;

use crate::core::Core;
use crate::cpu::{Cpu, TLB_ENTRIES, TlbBank, View};
use crate::mmu::walk::{Access, Translation};

/// Which entries of each bank were filled since its last flush; past
/// [`TlbUse::LISTED`] the whole bank is cleared.
pub struct TlbUse {
    used: [[UseList; 2]; 3],
    /// A non-global mapping was put into a kernel view.
    kernel_local: bool,
    /// Entries came from pages larger than 4 KiB: lower, upper half.
    large: [bool; 2],
    /// A code page in the upper half was found through a non-global mapping.
    pub(crate) code_local: bool,
}

struct UseList {
    count: usize,
    index: [u16; TlbUse::LISTED],
}

impl TlbUse {
    const LISTED: usize = 192;

    /// Nothing used yet; the banks must be cleared once with
    /// [`Core::tlb_flush_all`].
    pub fn new() -> Self {
        Self {
            used: std::array::from_fn(|_| {
                std::array::from_fn(|_| UseList {
                    count: usize::MAX,
                    index: [0; Self::LISTED],
                })
            }),
            kernel_local: false,
            large: [false; 2],
            code_local: false,
        }
    }
}

impl TlbUse {
    /// Remembers that a translation came from a page larger than 4 KiB.
    pub(crate) fn note_large(&mut self, la: u64, large: bool) {
        self.large[(la >> 63) as usize] |= large;
    }
}

impl Default for TlbUse {
    fn default() -> Self {
        Self::new()
    }
}

/// A page number that entry `i` can never serve: the neighbour's.
const fn never(i: usize) -> u64 {
    (((i ^ 1) as u64) << 12).wrapping_neg()
}

fn clear_bank(bank: &mut TlbBank, list: &mut UseList) {
    if list.count <= TlbUse::LISTED {
        for &i in &list.index[..list.count] {
            bank.neg_page[i as usize] = never(i as usize);
        }
    } else {
        for (i, tag) in bank.neg_page.iter_mut().enumerate() {
            *tag = never(i);
        }
    }
    list.count = 0;
}

/// Index of a linear address in a bank.
#[inline]
pub(crate) const fn index_of(la: u64) -> usize {
    (la >> 12) as usize & (TLB_ENTRIES - 1)
}

impl Core {
    /// Host address for `size` bytes at `la` if the TLB has it and the access
    /// lies in one page.
    #[inline]
    pub(crate) fn tlb_get(&self, view: View, write: bool, la: u64, size: usize) -> Option<*mut u8> {
        let bank = &self.cpu.tlb[view as usize][usize::from(write)];
        let i = index_of(la);
        let off = la.wrapping_add(bank.neg_page[i]);
        (off <= 4096 - size as u64).then(|| (bank.host[i] + off) as *mut u8)
    }

    /// Walks for one access and fills the TLB if the page is RAM (and, for a
    /// store, not watched).
    ///
    /// # Errors
    /// The page fault, or #GP for a non-canonical address.
    pub(crate) fn tlb_fill(
        &mut self,
        la: u64,
        write: bool,
        view: View,
    ) -> Result<Translation, Exception> {
        let access = if write { Access::Write } else { Access::Read };
        let t = self.walk(la, access, view)?;
        let page = t.gpa & !0xfff;
        self.tlb_used.note_large(la, t.large);
        if let (Some(host), Some(off)) = (self.ram.page_ptr(page), self.ram.offset_of(page)) {
            self.stats.tlb_fills += 1;
            let ram_page = off >> 12;
            if write {
                self.ram.set_dirty(ram_page);
                if !self.ram.is_watched(ram_page) {
                    self.tlb_put(view, true, la, host as u64, t.global);
                }
            } else {
                self.tlb_put(view, false, la, host as u64, t.global);
            }
        }
        Ok(t)
    }

    fn tlb_put(&mut self, view: View, write: bool, la: u64, host: u64, global: bool) {
        let i = index_of(la);
        let bank = &mut self.cpu.tlb[view as usize][usize::from(write)];
        bank.neg_page[i] = (la & !0xfff).wrapping_neg();
        bank.host[i] = host;
        let list = &mut self.tlb_used.used[view as usize][usize::from(write)];
        if list.count < TlbUse::LISTED {
            list.index[list.count] = i as u16;
            list.count += 1;
        } else {
            list.count = usize::MAX;
        }
        if view == View::Kernel && !global {
            self.tlb_used.kernel_local = true;
        }
    }

    /// Drops every entry: after changes of CR0.PG/WP, CR4, EFER.NXE, or a
    /// flush that includes global pages.
    pub fn tlb_flush_all(&mut self) {
        self.stats.tlb_flushes += 1;
        for v in 0..3 {
            for w in 0..2 {
                clear_bank(&mut self.cpu.tlb[v][w], &mut self.tlb_used.used[v][w]);
            }
        }
        self.tlb_used.kernel_local = false;
        self.tlb_used.large = [false; 2];
        self.code_flush_all();
    }

    /// A CR3 load: drops all but global entries.
    pub fn tlb_flush_local(&mut self) {
        self.stats.tlb_flushes += 1;
        let kernel = self.tlb_used.kernel_local;
        for v in [View::User, View::KernelAc, View::Kernel] {
            if v == View::Kernel && !kernel {
                continue;
            }
            for w in 0..2 {
                let v = v as usize;
                clear_bank(&mut self.cpu.tlb[v][w], &mut self.tlb_used.used[v][w]);
            }
        }
        self.tlb_used.kernel_local = false;
        self.code_flush_local();
    }

    /// `invlpg`: drops the entries of one linear page, whatever its size.
    pub fn tlb_flush_page(&mut self, la: u64) {
        if self.tlb_used.large[(la >> 63) as usize] {
            self.tlb_flush_around(la);
        }
        let i = index_of(la);
        let tag = (la & !0xfff).wrapping_neg();
        for view in &mut self.cpu.tlb {
            for bank in view {
                if bank.neg_page[i] == tag {
                    bank.neg_page[i] = never(i);
                }
            }
        }
        self.code_flush_page(la);
    }

    /// Drops the entries of the GiB around an address: one page may have
    /// given all of them.
    fn tlb_flush_around(&mut self, la: u64) {
        let gib = la >> 30;
        for view in &mut self.cpu.tlb {
            for bank in view {
                for (i, tag) in bank.neg_page.iter_mut().enumerate() {
                    if tag.wrapping_neg() >> 30 == gib {
                        *tag = never(i);
                    }
                }
            }
        }
        self.code_flush_all();
    }

    /// Forgets where code pages are mapped.
    pub(crate) fn tlb_code_flush(&mut self) {
        self.code_flush_all();
    }

    fn code_flush_all(&mut self) {
        self.tlb_used.code_local = false;
        self.cpu.jit.code_pages = [[0; 1024]; 2];
        self.jit.flush_pages(false);
    }

    fn code_flush_local(&mut self) {
        if self.tlb_used.code_local {
            // Not known which of the upper half: all of them.
            return self.code_flush_all();
        }
        self.cpu.jit.code_pages[1] = [0; 1024];
        self.jit.flush_pages(true);
    }

    fn code_flush_page(&mut self, la: u64) {
        for half in &mut self.cpu.jit.code_pages {
            half[(la >> 12) as usize & 1023] = 0;
        }
        self.jit.flush_page(la);
    }
}

/// Drops a vCPU's write entries that reach a host page, because the page is
/// watched from now on.
pub(crate) fn drop_writes(cpu: &mut Cpu, host_page: u64) {
    for view in &mut cpu.tlb {
        let bank = &mut view[1];
        for i in 0..TLB_ENTRIES {
            if bank.host[i] == host_page {
                bank.neg_page[i] = never(i);
            }
        }
    }
}

/// Drops all write entries of a vCPU: the next store to each page is seen, and
/// marks it dirty.
pub(crate) fn forget_writes(cpu: &mut Cpu) {
    for view in &mut cpu.tlb {
        for (i, tag) in view[1].neg_page.iter_mut().enumerate() {
            *tag = never(i);
        }
    }
}
