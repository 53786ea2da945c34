//! The code cache: memory for generated code (mapped twice, so that no mapping
//! is both writable and executable), and the index of translated blocks.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::cpu::{Cpu, cr};
use crate::translate::asm::{Asm, rel32};
use crate::translate::enter::Switch;
use crate::translate::relocate::{Reloc, origin};

/// Bytes of code cache of one machine: hot code, then the slow paths.
const HOT_SIZE: usize = 64 << 20;
const COLD_SIZE: usize = 64 << 20;

/// Hashes small integer keys well and fast (multiply and fold).
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }
    fn write_u16(&mut self, v: u16) {
        self.write_u64(u64::from(v));
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_u64(&mut self, v: u64) {
        let x = u128::from(self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (x >> 64) as u64 ^ x as u64;
    }
}

pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// Identity of "this linear page maps to this RAM page": what generated code
/// compares before it jumps across pages. Never 0.
pub(crate) type MapId = u32;

/// Which translation: of which mapped page, where in it, for which view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    pub map: MapId,
    pub offset: u16,
    pub view: u8,
    /// The variant without grouped checks.
    pub ungrouped: bool,
    /// x87 and vector instructions may run without a check.
    pub fpu: Fpu,
    /// Flat 32-bit code (see `lower`).
    pub code32: bool,
}

impl BlockKey {
    /// Whether a block with the other key may stand in for one with this: the
    /// jump to it came through no check, or one that no longer stands (a dead
    /// block's page may be mapped elsewhere now).
    pub fn same_place(self, other: Self) -> bool {
        let ungrouped = false;
        Self { ungrouped, ..self } == Self { ungrouped, ..other }
    }
}

/// What translated code may assume of the control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Fpu {
    /// x87, MMX and legacy SSE instructions may run.
    pub legacy: bool,
    /// VEX instructions with vector registers may run.
    pub vex: bool,
}

impl Fpu {
    /// As the control registers are now.
    pub fn of(cpu: &Cpu) -> Self {
        let vex = cpu.fpu_ok && cpu.cr4 & cr::CR4_OSXSAVE != 0 && cpu.xcr0 & 6 == 6;
        Self {
            legacy: cpu.fpu_ok,
            vex,
        }
    }
}

/// The four ways into a block, as offsets into the cache. The first two go on
/// at `poll`, and that runs on into `direct`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entries {
    /// From another page: compares the page's mapping.
    pub cross_page: u32,
    /// From an indirect branch: compares the target in r14 and the mapping.
    pub indirect: u32,
    /// Backward: polls for pending events.
    pub poll: u32,
    /// Straight in.
    pub direct: u32,
}

/// One translated block.
#[derive(Clone)]
pub(crate) struct Block {
    pub key: BlockKey,
    pub rip: u64,
    pub ram_page: u64,
    /// Bytes of the page that it was made from: first, one past the last.
    pub from: u16,
    pub to: u16,
    pub entries: Entries,
    /// One past its hot code.
    pub end: u32,
    /// Its slow paths: first, one past the last.
    pub cold: (u32, u32),
    /// What a copy must set anew; none if there can be no copies.
    pub relocs: Option<Arc<[Reloc]>>,
    /// Exit that looks its rip up again.
    pub again: u32,
    /// Its instructions.
    pub starts: Arc<[Start]>,
    pub dead: bool,
    /// The next page, if the last instruction reaches into it.
    pub second: Option<SecondPage>,
    /// Code behind it that told which flags are dead at its end.
    pub peeked: Arc<[Peeked]>,
}

/// An instruction of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// Where its code starts, as an offset from the block's first entry.
    pub at: u32,
    /// Where the guest's instruction starts, as an offset in its page.
    pub offset: u16,
    /// The guest's flags are at home while the instruction itself runs.
    pub home: bool,
}

/// Bytes of a RAM page that a block relies on without running them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peeked {
    pub ram_page: u64,
    /// Linear page, relative to the block's.
    pub page: i32,
    pub from: u16,
    pub to: u16,
}

/// The second page of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SecondPage {
    pub ram_page: u64,
    pub map: MapId,
    /// Bytes of it that the block was made from.
    pub to: u16,
}

impl Block {
    /// Whether it was made from any byte of `[from, to)` of a RAM page.
    fn covers(&self, ram_page: u64, from: u16, to: u16) -> bool {
        self.ram_page == ram_page && self.from < to && from < self.to
            || self
                .second
                .is_some_and(|s| s.ram_page == ram_page && from < s.to)
            || (self.peeked.iter()).any(|p| p.ram_page == ram_page && p.from < to && from < p.to)
    }

    /// The lines (see `Page::lines`) of a RAM page that it was made from.
    fn lines(&self, ram_page: u64) -> u64 {
        let first = if self.ram_page == ram_page {
            line_mask(self.from, self.to)
        } else {
            0
        };
        let second = self.second.filter(|s| s.ram_page == ram_page);
        let peeked = self.peeked.iter().filter(|p| p.ram_page == ram_page);
        let peeked = peeked.fold(0, |all, p| all | line_mask(p.from, p.to));
        first | second.map_or(0, |s| line_mask(0, s.to)) | peeked
    }
}

#[derive(Default)]
struct Page {
    blocks: Vec<u32>,
    /// Bit n: bytes 64 n .. 64 n + 63 were translated.
    lines: u64,
}

/// Offsets of code shared by all blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Common {
    /// Leaves generated code: r15 = exit record, r14 = its operand.
    pub exit: usize,
    /// Indirect branch to an address (r14) that the jump cache does not know.
    pub miss: usize,
}

/// Everything behind the cache's lock.
pub(crate) struct Index {
    pub blocks: Vec<Block>,
    by_key: Map<BlockKey, u32>,
    /// The newest live block of each origin (see `relocate`).
    by_origin: Map<(u64, BlockKey), u32>,
    pages: Map<u64, Page>,
    map_ids: Map<(u64, u64, bool), MapId>,
    pub hot: usize,
    pub cold: usize,
}

/// The code cache of a machine.
pub(crate) struct CodeCache {
    rw: *mut u8,
    rx: *mut u8,
    start_hot: usize,
    /// Bytes of each part that are used.
    room: usize,
    pub common: Common,
    pub switch: Switch,
    pub index: Mutex<Index>,
    /// Changes whenever code was invalidated: a resume address taken before
    /// is void.
    epoch: AtomicU32,
    /// Changes whenever the whole cache was emptied: jump caches are void.
    generation: AtomicU32,
    /// RAM pages with translated code that devices wrote.
    pub dma: Mutex<Vec<u64>>,
    pub translated_blocks: AtomicU64,
    pub copied_blocks: AtomicU64,
    pub invalidated_blocks: AtomicU64,
}

// SAFETY: the mappings live as long as the value; `rw` is written only under
// the index lock, or, for jump targets, as aligned 4-byte stores.
unsafe impl Send for CodeCache {}
// SAFETY: as above.
unsafe impl Sync for CodeCache {}

const SIZE: usize = HOT_SIZE + COLD_SIZE;
const _: () = assert!(HOT_SIZE == COLD_SIZE);

#[cfg(not(test))]
const fn room() -> usize {
    HOT_SIZE
}

#[cfg(test)]
thread_local! {
    /// Tests of a full cache make it small; for caches made on this thread.
    pub(crate) static ROOM: std::cell::Cell<usize> = const { std::cell::Cell::new(HOT_SIZE) };
}

#[cfg(test)]
fn room() -> usize {
    ROOM.get()
}

fn map_cache() -> std::io::Result<(*mut u8, *mut u8)> {
    // SAFETY: constant name; the result is checked.
    let fd = unsafe { libc::memfd_create(c"holm-code".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain ftruncate on our descriptor.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), SIZE as i64) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let map = |prot| {
        // SAFETY: a fresh shared mapping; the kernel chooses the address.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                prot,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(p.cast::<u8>())
        }
    };
    let rw = map(libc::PROT_READ | libc::PROT_WRITE)?;
    match map(libc::PROT_READ | libc::PROT_EXEC) {
        Ok(rx) => Ok((rw, rx)),
        Err(e) => {
            // SAFETY: the mapping just made.
            unsafe { libc::munmap(rw.cast(), SIZE) };
            Err(e)
        }
    }
}

impl CodeCache {
    /// An empty cache.
    ///
    /// # Errors
    /// The host's, if it allows no executable shared memory.
    pub fn new() -> std::io::Result<Self> {
        let (rw, rx) = map_cache()?;
        let switch = Switch::for_host();
        // SAFETY: the whole writable view, used by nobody yet.
        let mut a = unsafe { Asm::new(rw, 0, 4096) };
        let exit = a.pos;
        a.bytes(&[0xff, 0x25, 0, 0, 0, 0]);
        a.qword(switch.exit_address());
        let miss = a.pos;
        crate::translate::flags::restore(&mut a);
        // lea r15, [rip + record]; jmp exit
        a.bytes(&[0x4c, 0x8d, 0x3d]);
        a.dword(5);
        a.jmp_to(exit);
        crate::translate::exit::Record::indirect().write(&mut a);
        let start_hot = (a.pos + 63) & !63;
        crate::translate::fault::register(rx as usize, SIZE);
        Ok(Self {
            rw,
            rx,
            start_hot,
            room: room(),
            common: Common { exit, miss },
            switch,
            index: Mutex::new(Index::new(start_hot)),
            epoch: AtomicU32::new(1),
            generation: AtomicU32::new(1),
            dma: Mutex::new(Vec::new()),
            translated_blocks: AtomicU64::new(0),
            copied_blocks: AtomicU64::new(0),
            invalidated_blocks: AtomicU64::new(0),
        })
    }

    /// Address to execute at.
    pub fn rx(&self, offset: usize) -> *const u8 {
        debug_assert!(offset < SIZE);
        self.rx.wrapping_add(offset)
    }

    /// Offset of an executable address, if it is in the cache.
    pub fn offset_of(&self, pc: u64) -> Option<usize> {
        let off = pc.wrapping_sub(self.rx as u64) as usize;
        (off < SIZE).then_some(off)
    }

    /// Emitters for hot code and slow paths; the caller holds the index lock.
    pub fn emitters(&self, index: &Index) -> (Asm, Asm) {
        // SAFETY: the caller holds the lock, so these parts are its own.
        unsafe {
            (
                Asm::new(self.rw, index.hot, self.room),
                Asm::new(self.rw, index.cold, HOT_SIZE + self.room),
            )
        }
    }

    /// Points the jump whose rel32 is at `at` (not across a cache line) to
    /// `target`. Other vCPUs may be executing the jump.
    pub fn link(&self, at: usize, target: usize) {
        debug_assert!(at % 64 <= 60 && at + 4 <= SIZE);
        let value = rel32(at, target);
        // SAFETY: a rel32 inside the cache; a store inside one cache line is
        // atomic on x86 (SDM vol. 3A, 9.1.1), so a jump fetched meanwhile
        // goes to the old target or to the new one.
        unsafe {
            std::arch::asm!(
                "mov dword ptr [{}], {:e}",
                in(reg) self.rw.add(at),
                in(reg) value,
                options(nostack, preserves_flags)
            );
        }
    }

    /// See [`CodeCache`]; compare before resuming.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Number of times the whole cache was emptied.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Kills the blocks made from `[from, to)` of a RAM page. No vCPU may be
    /// in generated code. Returns whether the page has none left.
    pub fn invalidate(&self, index: &mut Index, ram_page: u64, from: u16, to: u16) -> bool {
        let Some(page) = index.pages.get_mut(&ram_page) else {
            return true;
        };
        let mut lines = 0;
        let mut killed = Vec::new();
        page.blocks.retain(|&b| {
            let block = &index.blocks[b as usize];
            if block.dead {
                return false;
            }
            let hit = block.covers(ram_page, from, to);
            if hit {
                killed.push(b);
            } else {
                lines |= block.lines(ram_page);
            }
            !hit
        });
        page.lines = lines;
        let empty = page.blocks.is_empty();
        if empty {
            index.pages.remove(&ram_page);
        }
        for &b in &killed {
            self.kill(index, b);
        }
        if !killed.is_empty() {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        empty
    }

    fn kill(&self, index: &mut Index, b: u32) {
        self.invalidated_blocks.fetch_add(1, Ordering::Relaxed);
        let block = &mut index.blocks[b as usize];
        block.dead = true;
        let e = block.entries;
        let again = block.again as usize;
        if index.by_key.get(&block.key) == Some(&b) {
            index.by_key.remove(&block.key);
        }
        let origin = origin(block.ram_page, block.key);
        if index.by_origin.get(&origin) == Some(&b) {
            index.by_origin.remove(&origin);
        }
        self.redirect(e.indirect as usize, self.common.miss);
        for at in [e.cross_page, e.poll, e.direct] {
            self.redirect(at as usize, again);
        }
    }

    /// Overwrites a block entry with a jump. No vCPU may be in generated code.
    fn redirect(&self, at: usize, target: usize) {
        // SAFETY: inside the cache, and each entry is at least 5 bytes long.
        let mut a = unsafe { Asm::new(self.rw, at, at + 5) };
        a.jmp_to(target);
    }

    /// Makes jumps into a dead block reach its successor. No vCPU may be in
    /// generated code.
    pub fn forward(&self, index: &Index, dead: u32, new: u32) {
        let (old, new) = (&index.blocks[dead as usize], &index.blocks[new as usize]);
        if !old.dead {
            return;
        }
        self.redirect(
            old.entries.cross_page as usize,
            new.entries.cross_page as usize,
        );
        self.redirect(old.entries.poll as usize, new.entries.poll as usize);
        self.redirect(old.entries.direct as usize, new.entries.direct as usize);
    }

    /// Whether a store to `[from, to)` of a page meets translated bytes.
    pub fn touches(&self, ram_page: u64, from: u16, to: u16) -> bool {
        let index = self.index.lock();
        index.pages.get(&ram_page).is_some_and(|p| {
            p.lines & line_mask(from, to) != 0
                && p.blocks.iter().any(|&b| {
                    let b = &index.blocks[b as usize];
                    !b.dead && b.covers(ram_page, from, to)
                })
        })
    }

    /// Empties the cache. No vCPU may be in generated code. Returns the RAM
    /// pages that had code.
    pub fn clear(&self, index: &mut Index) -> Vec<u64> {
        let pages = index.pages.keys().copied().collect();
        *index = Index::new(self.start_hot);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        pages
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        crate::translate::fault::unregister(self.rx as usize);
        // SAFETY: both mappings were made by `new`; nothing runs in them now.
        unsafe {
            libc::munmap(self.rw.cast(), SIZE);
            libc::munmap(self.rx.cast(), SIZE);
        }
    }
}

fn line_mask(from: u16, to: u16) -> u64 {
    let (first, last) = (from / 64, to.saturating_sub(1).max(from) / 64);
    (u64::MAX << first) & (u64::MAX >> (63 - last.min(63)))
}

impl Index {
    fn new(start_hot: usize) -> Self {
        Self {
            blocks: Vec::new(),
            by_key: Map::default(),
            by_origin: Map::default(),
            pages: Map::default(),
            map_ids: Map::default(),
            hot: start_hot,
            cold: HOT_SIZE,
        }
    }

    /// Identity of a mapping; the same for the same arguments until the cache
    /// is emptied.
    pub fn map_id(&mut self, linear_page: u64, ram_page: u64, user: bool) -> MapId {
        let next = self.map_ids.len() as u32 + 1;
        *self
            .map_ids
            .entry((linear_page, ram_page, user))
            .or_insert(next)
    }

    /// The live block with this key.
    pub fn find(&self, key: BlockKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// A live block that was made of the same code for the same CPU state.
    pub fn find_like(&self, ram_page: u64, key: BlockKey) -> Option<u32> {
        self.by_origin.get(&origin(ram_page, key)).copied()
    }

    /// The live or dead block whose hot code contains this offset.
    pub fn block_at(&self, offset: usize) -> Option<u32> {
        let i = self
            .blocks
            .partition_point(|b| (b.entries.cross_page as usize) <= offset)
            .checked_sub(1)?;
        (offset < self.blocks[i].end as usize).then_some(i as u32)
    }

    /// The block whose first entry is at this offset.
    pub fn block_from(&self, entry: usize) -> Option<u32> {
        self.blocks
            .binary_search_by_key(&(entry as u32), |b| b.entries.cross_page)
            .ok()
            .map(|i| i as u32)
    }

    /// Adds a block.
    pub fn insert(&mut self, block: Block) -> u32 {
        let id = self.blocks.len() as u32;
        self.by_key.insert(block.key, id);
        self.by_origin.insert(origin(block.ram_page, block.key), id);
        let second = block.second.iter().map(|s| s.ram_page);
        let peeked = block.peeked.iter().map(|p| p.ram_page);
        for ram_page in std::iter::once(block.ram_page).chain(second).chain(peeked) {
            let page = self.pages.entry(ram_page).or_default();
            // Only this block can be the last of the list already.
            if page.blocks.last() != Some(&id) {
                page.blocks.push(id);
                page.lines |= block.lines(ram_page);
            }
        }
        self.blocks.push(block);
        id
    }

    /// Guest rip of the instruction whose hot code contains this offset, and
    /// whether the flags are at home while it runs.
    pub fn start_at(&self, offset: usize) -> Option<(u64, bool)> {
        let b = &self.blocks[self.block_at(offset)? as usize];
        let k = b
            .starts
            .partition_point(|s| (b.entries.cross_page + s.at) as usize <= offset)
            .checked_sub(1)?;
        let start = b.starts[k];
        Some((b.rip & !0xfff | u64::from(start.offset), start.home))
    }
}
