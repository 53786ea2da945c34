//! Running translated code: finding blocks, making them when code is warm,
//! linking them, and handling the exits.

use std::sync::atomic::Ordering;

use iced_x86::FlowControl;

use arch::Exception;

use crate::core::{Core, Exec, Trap};
use crate::cpu::{Cpu, VIEWS, View, cr, flag, jump_table};
use crate::mmu::Access;
use crate::translate::block::{NoBlock, Place, Source, Translator};
use crate::translate::cache::{BlockKey, Entries, Fpu, MapId};
use crate::translate::exit::{Kind, Record};
use crate::translate::fetch::{self, Decoded};
use crate::translate::{lower, relocate};

/// Times a block start is interpreted before it is translated.
const WARM: u8 = 6;
const ITLB: usize = 512;

/// One linear code page as this vCPU last found it mapped.
#[derive(Clone, Copy)]
pub(super) struct CodePage {
    /// Linear page address | view; odd: invalid.
    tag: u64,
    pub(super) host: *const u8,
    ram_page: u64,
    map: MapId,
}

/// A vCPU's own part of the translator.
pub(crate) struct Jit {
    /// Taken out while it translates.
    translator: Option<Translator>,
    pages: Box<[CodePage; ITLB]>,
    heat: Box<[u8; 65536]>,
    pub(super) decoded: Box<[Decoded]>,
    generation: u32,
    /// What the jump cache's blocks assume.
    fpu: Fpu,
    /// The jump cache's parts for 32-bit code are in use.
    has_32: bool,
    pub blocks_entered: u64,
    pub misses: u64,
    pub emulated: u64,
    pub links: u64,
}

// SAFETY: `host` points into guest RAM, which outlives the vCPU and may be
// read from any thread.
unsafe impl Send for Jit {}

impl Jit {
    pub fn new() -> Self {
        Self {
            translator: Some(Translator::default()),
            pages: Box::new(
                [CodePage {
                    tag: 1,
                    host: std::ptr::null(),
                    ram_page: 0,
                    map: 0,
                }; ITLB],
            ),
            heat: Box::new([0; 65536]),
            decoded: vec![Decoded::default(); fetch::DECODED].into_boxed_slice(),
            generation: 0,
            fpu: Fpu::default(),
            has_32: false,
            blocks_entered: 0,
            misses: 0,
            emulated: 0,
            links: 0,
        }
    }

    /// Everything is translated the first time it runs.
    #[cfg(test)]
    pub(crate) fn make_warm(&mut self) {
        self.heat.fill(WARM);
    }

    /// Forgets which page is mapped where.
    pub fn flush_pages(&mut self, user_only: bool) {
        for p in self.pages.iter_mut() {
            if !user_only || p.tag >> 63 == 0 {
                p.tag = 1;
            }
        }
    }

    /// Forgets one linear page.
    pub fn flush_page(&mut self, la: u64) {
        self.pages[page_index(la)].tag = 1;
    }
}

fn page_index(la: u64) -> usize {
    (la >> 12) as usize & (ITLB - 1)
}

/// A block, and where to enter it.
struct Found {
    at: usize,
    block: u32,
}

/// What to do after generated code was left for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The code at rip is cold or cannot be translated.
    Interpret,
    /// Look at pending events and at the mode.
    Check,
}

enum Step {
    /// Go on at this offset of the cache.
    Resume(usize),
    /// Check again, at this offset of the cache, the access that missed.
    Retry(usize),
    /// Find the block at rip; the jump cache may know.
    Lookup,
    /// Find the block at rip; generated code could not.
    Find,
    Return(Next),
}

impl Core {
    /// Whether the current mode may run translated code.
    pub(crate) fn translatable(&self) -> bool {
        let c = &*self.cpu;
        (c.bits == 64 || c.bits == 32 && lower::is_flat(c))
            && !c.shadow
            && c.rflags & flag::TF == 0
            && c.dr[7] & 0xff == 0
            && (c.cpl == 0 || c.cpl == 3 && c.cr4 & cr::CR4_TSD == 0)
    }

    /// Runs translated code from rip on.
    ///
    /// # Errors
    /// Faults of the guest's instructions; the state is precise.
    pub(crate) fn run_translated(&mut self) -> Exec<Next> {
        let mut at = match self.known_block() {
            Some(at) => at,
            None => match self.find_block()? {
                Some(found) => found.at,
                None => return Ok(Next::Interpret),
            },
        };
        self.flags_out();
        let mut operand = self.cpu.rip;
        loop {
            self.enter(at, operand);
            match self.handle_exit()? {
                Step::Resume(next) => at = next,
                Step::Retry(next) => {
                    at = next;
                    operand = self.cpu.jit.exit_addr;
                    continue;
                }
                found @ (Step::Lookup | Step::Find) => {
                    if self.attention() || !self.translatable() {
                        return Ok(Next::Check);
                    }
                    let known = match found {
                        Step::Lookup => self.known_block(),
                        _ => None,
                    };
                    let found = match known {
                        Some(next) => Some(next),
                        None => self.find_block()?.map(|f| f.at),
                    };
                    match found {
                        Some(next) => at = next,
                        None => return Ok(Next::Interpret),
                    }
                    self.flags_out();
                }
                Step::Return(next) => return Ok(next),
            }
            operand = self.cpu.rip;
        }
    }

    /// Whether the run loop must look at events.
    fn attention(&self) -> bool {
        self.signal().peek() != 0
            || self.cpu.interrupt_waits != 0 && self.cpu.rflags & flag::IF != 0
    }

    /// The jump cache's entry for rip; the code there checks that it is right.
    fn known_block(&self) -> Option<usize> {
        let cache = &self.shared.code;
        if self.jit.generation != cache.generation() || self.jit.fpu != Fpu::of(&self.cpu) {
            return None;
        }
        let slot = (self.cpu.rip & 0xffff) as usize;
        let host = self.cpu.jit.jump_cache[self.jump_table()][slot];
        cache.offset_of(host).filter(|o| *o != cache.common.miss)
    }

    /// Runs generated code at `at`, with `operand` in r14: the target at an
    /// indirect entry, the address at a check.
    fn enter(&mut self, at: usize, operand: u64) {
        self.jit.blocks_entered += 1;
        self.cpu.jit.operand = operand;
        if self.cpu.bits == 32 {
            lower::prepare(&mut self.cpu);
        }
        let cache = &self.shared.code;
        let code = cache.rx(at);
        // SAFETY: `SoftVcpu::run` points gs at this Cpu; `at` is the start of
        // a block or a resume point of the current epoch.
        unsafe { cache.switch.enter(self.cpu.as_ptr(), code) };
    }

    /// Takes the arithmetic flags over from generated code.
    fn flags_in(&mut self) {
        let ax = self.cpu.jit.flags_ax;
        let low = ax >> 8 & 0xd5;
        let of = (ax & 1) << 11;
        self.cpu.rflags = self.cpu.rflags & !flag::STATUS | low | of;
    }

    /// Hands the arithmetic flags to generated code.
    fn flags_out(&mut self) {
        let f = self.cpu.rflags;
        self.cpu.jit.flags_ax = (f & 0xd5) << 8 | f >> 11 & 1;
        self.cpu.jit.flags_home = self.cpu.jit.flags_ax;
    }

    fn handle_exit(&mut self) -> Exec<Step> {
        let p = self.cpu.jit.exit;
        if p == 0 {
            return self.host_fault();
        }
        // SAFETY: generated code leaves with the address of a record that it
        // carries, in the cache's executable view.
        let r = unsafe { (p as *const Record).read_unaligned() };
        let rip = r.rip;
        match r.kind() {
            Some(Kind::TlbMiss) => self.tlb_miss(&r),
            Some(Kind::GroupMiss) => self.group_miss(&r),
            Some(Kind::Emulate) => self.emulate(&r),
            Some(Kind::Link) => self.link(&r),
            Some(Kind::Indirect) => {
                self.flags_in();
                self.cpu.rip = self.cpu.jit.exit_addr;
                if (self.cpu.rip as i64) << 16 >> 16 != self.cpu.rip as i64 {
                    return self.undo_branch();
                }
                Ok(Step::Find)
            }
            Some(Kind::Poll) => {
                self.flags_in();
                self.cpu.rip = rip;
                Ok(Step::Find)
            }
            Some(Kind::Again) => self.again(&r),
            None => {
                tracing::error!(kind = r.kind, "generated code left with an unknown reason");
                Err(Trap::Shutdown)
            }
        }
    }

    fn tlb_miss(&mut self, r: &Record) -> Exec<Step> {
        self.jit.misses += 1;
        let la = self.cpu.jit.exit_addr;
        let (write, size) = (r.entry == 1, r.size as usize);
        let view = self.view();
        let canonical = (la as i64) << 16 >> 16 == la as i64;
        if canonical && (la & 0xfff) + size as u64 <= 4096 {
            // A fault is the interpreter's to raise: misaligned operands and
            // call targets that are not canonical come before page faults.
            if self.tlb_fill(la, write, view).is_err() {
                return self.emulate(r);
            }
            if self.tlb_get(view, write, la, size).is_some() {
                return Ok(Step::Retry(r.a as usize));
            }
        }
        self.emulate(r)
    }

    /// A group's range: fill the TLB, or run the ungrouped variant.
    fn group_miss(&mut self, r: &Record) -> Exec<Step> {
        self.jit.misses += 1;
        let la = self.cpu.jit.exit_addr;
        let (write, span) = (r.entry == 1, r.next as usize);
        let view = self.view();
        let canonical = (la as i64) << 16 >> 16 == la as i64;
        if canonical
            && (la & 0xfff) + span as u64 <= 4096
            && self.tlb_fill(la, write, view).is_ok()
            && self.tlb_get(view, write, la, span).is_some()
        {
            return Ok(Step::Retry(r.a as usize));
        }
        self.flags_in();
        self.cpu.rip = r.rip;
        let Some(page) = self.code_page(r.rip)? else {
            return Ok(Step::Return(Next::Interpret));
        };
        let key = BlockKey {
            ungrouped: true,
            ..self.key(page.map, r.rip)
        };
        let entries = match self.known_or_copied(r.rip, key, page.ram_page) {
            Some((_, e)) => Some(e),
            None => self.make_block(r.rip, key, page.ram_page)?.map(|m| m.1),
        };
        match entries {
            Some(e) => {
                self.flags_out();
                Ok(Step::Resume(e.direct as usize))
            }
            None => Ok(Step::Return(Next::Interpret)),
        }
    }

    /// Interprets the instruction at the record's rip and goes on behind it.
    fn emulate(&mut self, r: &Record) -> Exec<Step> {
        self.jit.emulated += 1;
        self.flags_in();
        let (rip, len, next) = (r.rip, u64::from(r.len), r.next as usize);
        self.cpu.rip = rip;
        let next_page = (rip & !0xfff).wrapping_add(4096);
        if rip.wrapping_add(len) > next_page {
            // Generated code may have left because it did not know the page
            // any more; if it is not mapped, the fetch faults.
            let _ = self.code_page(next_page);
        }
        let epoch = self.shared.code.epoch();
        let view = self.cpu.view;
        loop {
            self.step_one()?;
            if self.cpu.rip != rip || self.attention() {
                break;
            }
        }
        let straight = next != 0
            && self.cpu.rip == rip.wrapping_add(len)
            && self.cpu.view == view
            && self.shared.code.epoch() == epoch
            && !self.attention()
            && self.translatable();
        if straight {
            self.flags_out();
            return Ok(Step::Resume(next));
        }
        Ok(Step::Lookup)
    }

    fn link(&mut self, r: &Record) -> Exec<Step> {
        self.flags_in();
        self.cpu.rip = r.rip;
        let (at, map, poll) = (r.a as usize, r.map, r.entry == 1);
        let generation = self.shared.code.generation();
        if self.attention() {
            return Ok(Step::Return(Next::Check));
        }
        let Some(Found { at: entry, block }) = self.find_block()? else {
            return Ok(Step::Return(Next::Interpret));
        };
        let shared = self.shared.clone();
        let index = shared.code.index.lock();
        if shared.code.generation() == generation {
            let e = index.blocks[block as usize].entries;
            let target = if index.blocks[block as usize].key.map != map {
                e.cross_page
            } else if poll {
                e.poll
            } else {
                e.direct
            };
            shared.code.link(at, target as usize);
            self.jit.links += 1;
        }
        drop(index);
        self.flags_out();
        Ok(Step::Resume(entry))
    }

    /// A jump reached a block that was invalidated: send it to the new one.
    fn again(&mut self, r: &Record) -> Exec<Step> {
        self.flags_in();
        self.cpu.rip = r.rip;
        let generation = self.shared.code.generation();
        if self.attention() {
            return Ok(Step::Return(Next::Check));
        }
        let dead = r.a as usize;
        let Some(Found {
            at: entry,
            block: new,
        }) = self.find_block()?
        else {
            return Ok(Step::Return(Next::Interpret));
        };
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        let forwarded = shared.world.alone(&signal, || {
            if shared.code.generation() != generation {
                return false;
            }
            let index = shared.code.index.lock();
            if let Some(old) = index.block_from(dead)
                && !index.blocks[new as usize].dead
                && index.blocks[new as usize]
                    .key
                    .same_place(index.blocks[old as usize].key)
            {
                shared.code.forward(&index, old, new);
                return true;
            }
            false
        });
        if !forwarded {
            return Ok(Step::Find);
        }
        self.flags_out();
        Ok(Step::Resume(entry))
    }

    /// An indirect branch went to an address that is not canonical: the branch
    /// itself faults. Takes back what it did to rsp, and interprets it.
    #[cold]
    fn undo_branch(&mut self) -> Exec<Step> {
        let at = self.cpu.jit.spill[3] as u32 as usize;
        let start = self.shared.code.index.lock().start_at(at);
        // Not known after the cache was emptied: the fetch faults.
        if let Some((rip, _)) = start {
            let target = std::mem::replace(&mut self.cpu.rip, rip);
            let i = self.decode_here()?;
            match i.flow_control() {
                FlowControl::Return => {
                    let more = if i.op_count() > 0 { i.immediate16() } else { 0 };
                    let by = 8 + u64::from(more);
                    self.cpu.gpr[4] = self.cpu.gpr[4].wrapping_sub(by);
                }
                FlowControl::IndirectCall => {
                    self.cpu.gpr[4] = self.cpu.gpr[4].wrapping_add(8);
                }
                FlowControl::IndirectBranch => {}
                // Other code is there by now.
                _ => self.cpu.rip = target,
            }
        }
        self.step_one()?;
        Ok(Step::Lookup)
    }

    /// A hardware exception in generated code: let the interpreter raise it.
    fn host_fault(&mut self) -> Exec<Step> {
        let pc = self.cpu.jit.fault_pc;
        let start = self
            .shared
            .code
            .offset_of(pc)
            .and_then(|off| self.shared.code.index.lock().start_at(off));
        let Some((rip, home)) = start else {
            tracing::error!(pc, "exception in generated code outside any instruction");
            return Err(Trap::Shutdown);
        };
        if home {
            self.cpu.jit.flags_ax = self.cpu.jit.flags_home;
        }
        self.flags_in();
        self.cpu.rip = rip;
        self.step_one()?;
        Ok(Step::Lookup)
    }

    /// Offset of the code for rip, translated if it is warm.
    fn find_block(&mut self) -> Exec<Option<Found>> {
        let generation = self.shared.code.generation();
        if self.jit.generation != generation || self.jit.fpu != Fpu::of(&self.cpu) {
            self.jit.generation = generation;
            self.jit.fpu = Fpu::of(&self.cpu);
            self.jump_cache_clear();
            self.tlb_code_flush();
        }
        let (rip, key_32) = (self.cpu.rip, self.cpu.bits == 32);
        if key_32 && !self.jit.has_32 {
            self.jit.has_32 = true;
            self.jump_cache_clear();
        }
        // A block at the end of 32-bit code's addresses might wrap.
        let wraps = key_32 && rip >= 0xffff_f000;
        if self.debugger.has_page(rip) || wraps {
            return Ok(None);
        }
        let Some(page) = self.code_page(rip)? else {
            return Ok(None);
        };
        let key = self.key(page.map, rip);
        let (block, entries) = match self.known_or_copied(rip, key, page.ram_page) {
            Some(found) => found,
            None => {
                let h = &mut self.jit.heat[heat_index(rip)];
                if *h < WARM {
                    *h += 1;
                    return Ok(None);
                }
                match self.make_block(rip, key, page.ram_page)? {
                    Some(made) => made,
                    None => return Ok(None),
                }
            }
        };
        let slot = (rip & 0xffff) as usize;
        let target = self.shared.code.rx(entries.indirect as usize) as u64;
        let table = self.jump_table();
        self.cpu.jit.jump_cache[table][slot] = target;
        Ok(Some(Found {
            at: entries.direct as usize,
            block,
        }))
    }

    /// What a block for rip is known by.
    fn key(&self, map: MapId, rip: u64) -> BlockKey {
        BlockKey {
            map,
            offset: (rip & 0xfff) as u16,
            view: self.cpu.view,
            ungrouped: false,
            fpu: Fpu::of(&self.cpu),
            code32: self.cpu.bits == 32,
        }
    }

    /// The part of the jump cache that serves the current mode.
    fn jump_table(&self) -> usize {
        jump_table(self.cpu.view, self.cpu.bits == 32)
    }

    /// The block with this key, or a new copy of one made of the same code.
    fn known_or_copied(
        &mut self,
        rip: u64,
        key: BlockKey,
        ram_page: u64,
    ) -> Option<(u32, Entries)> {
        let shared = self.shared.clone();
        let mut index = shared.code.index.lock();
        if let Some(b) = index.find(key) {
            return Some((b, index.blocks[b as usize].entries));
        }
        let like = index.find_like(ram_page, key)?;
        if shared.code.generation() != self.jit.generation {
            return None;
        }
        let place = Place { rip, key, ram_page };
        let mut source = CoreSource { core: self };
        let copied = relocate::copy(&shared.code, &mut index, &mut source, like, place);
        // A full cache is emptied when the block is translated.
        let b = copied.ok().flatten()?;
        shared.code.copied_blocks.fetch_add(1, Ordering::Relaxed);
        Some((b, index.blocks[b as usize].entries))
    }

    /// Where rip's page is mapped; also tells generated code. `None`: not RAM.
    pub(super) fn code_page(&mut self, rip: u64) -> Exec<Option<CodePage>> {
        let page = rip & !0xfff;
        let tag = page | u64::from(self.cpu.view) << 1;
        let slot = page_index(rip);
        let mut p = self.jit.pages[slot];
        if p.tag != tag {
            let view = self.view();
            if (rip as i64) << 16 >> 16 != rip as i64 {
                return Err(Exception::gp0().into());
            }
            let t = self.walk(rip, Access::Exec, view)?;
            self.tlb_used.note_large(rip, t.large);
            self.tlb_used.code_local |= rip >> 63 != 0 && !t.global;
            let gpa = t.gpa & !0xfff;
            let (Some(host), Some(off)) = (self.ram.page_ptr(gpa), self.ram.offset_of(gpa)) else {
                return Ok(None);
            };
            let ram_page = off >> 12;
            let map = self
                .shared
                .code
                .index
                .lock()
                .map_id(page, ram_page, view == View::User);
            p = CodePage {
                tag,
                host,
                ram_page,
                map,
            };
            self.jit.pages[slot] = p;
        }
        let half = usize::from(rip >> 63 == 0);
        self.cpu.jit.code_pages[half][(rip >> 12) as usize & 1023] = p.map;
        Ok(Some(p))
    }

    fn make_block(
        &mut self,
        rip: u64,
        key: BlockKey,
        ram_page: u64,
    ) -> Exec<Option<(u32, Entries)>> {
        self.watch_page(ram_page);
        let shared = self.shared.clone();
        let place = Place { rip, key, ram_page };
        let mut translator = self.jit.translator.take().unwrap_or_default();
        let made = {
            let mut source = CoreSource { core: self };
            let mut index = shared.code.index.lock();
            if shared.code.generation() != source.core.jit.generation {
                // Emptied by another vCPU meanwhile: `key` means nothing now.
                return Ok(None);
            }
            match index.find(key) {
                Some(b) => Ok(b),
                None => translator.translate(&shared.code, &mut index, &mut source, place),
            }
            .map(|b| (b, index.blocks[b as usize].entries))
        };
        self.jit.translator = Some(translator);
        match made {
            Ok(e) => {
                shared
                    .code
                    .translated_blocks
                    .fetch_add(1, Ordering::Relaxed);
                Ok(Some(e))
            }
            Err(NoBlock::Interpret) => Ok(None),
            Err(NoBlock::Watch(page)) => {
                self.watch_page(page);
                self.make_block(rip, key, ram_page)
            }
            Err(NoBlock::Full) => {
                self.empty_cache();
                Ok(None)
            }
        }
    }

    /// Makes sure that no store to the page goes unnoticed from now on.
    fn watch_page(&mut self, ram_page: u64) {
        if self.ram.is_watched(ram_page) {
            return;
        }
        let Some(host) = self.ram.page_ptr(self.ram.gpa_of(ram_page << 12)) else {
            return;
        };
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        shared.world.alone(&signal, || {
            shared.ram.watch(ram_page, true);
            for cpu in &shared.cpus {
                // SAFETY: every vCPU stands at a safe point, outside generated
                // code and away from its TLB.
                let cpu: &mut Cpu = unsafe { &mut *cpu.0 };
                crate::mmu::drop_writes(cpu, host as u64);
            }
        });
    }

    /// Throws all translated code away.
    pub(crate) fn empty_cache(&mut self) {
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        shared.world.alone(&signal, || {
            let mut index = shared.code.index.lock();
            for page in shared.code.clear(&mut index) {
                shared.ram.watch(page, false);
            }
        });
    }

    /// A store by this vCPU changed a watched page.
    pub(crate) fn code_written(&mut self, ram_offset: u64, len: usize) {
        let page = ram_offset >> 12;
        let from = (ram_offset & 0xfff) as u16;
        let to = (from as usize + len).min(4096) as u16;
        let shared = self.shared.clone();
        if !shared.code.touches(page, from, to) {
            return;
        }
        let signal = self.signal().clone();
        shared.world.alone(&signal, || {
            let mut index = shared.code.index.lock();
            if shared.code.invalidate(&mut index, page, from, to) {
                shared.ram.watch(page, false);
            }
        });
    }

    /// Devices wrote pages with translated code: drop it.
    pub(crate) fn code_written_by_devices(&mut self) {
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        shared.world.alone(&signal, || {
            let pages = std::mem::take(&mut *shared.code.dma.lock());
            let mut index = shared.code.index.lock();
            for page in pages {
                shared.code.invalidate(&mut index, page, 0, 4096);
                shared.ram.watch(page, false);
            }
        });
    }

    /// Points every entry of the jump cache to the miss path.
    fn jump_cache_clear(&mut self) {
        let miss = self.shared.code.rx(self.shared.code.common.miss) as u64;
        let parts = if self.jit.has_32 { 2 * VIEWS } else { VIEWS };
        for part in &mut self.cpu.jit.jump_cache[..parts] {
            part.fill(miss);
        }
    }
}

fn heat_index(rip: u64) -> usize {
    (rip ^ rip >> 16) as usize & 0xffff
}

/// Reads code through the vCPU's current mapping, without raising faults.
struct CoreSource<'a> {
    core: &'a mut Core,
}

impl Source for CoreSource<'_> {
    fn ram_page(&mut self, rip: u64) -> Option<u64> {
        let tag = rip & !0xfff | u64::from(self.core.cpu.view) << 1;
        let p = self.core.jit.pages[page_index(rip)];
        if p.tag == tag {
            return Some(p.ram_page);
        }
        let view = self.core.view();
        let t = self.core.walk(rip, Access::Exec, view).ok()?;
        Some(self.core.ram.offset_of(t.gpa)? >> 12)
    }

    fn is_watched(&self, ram_page: u64) -> bool {
        self.core.ram.is_watched(ram_page)
    }

    fn fetch(&mut self, rip: u64, out: &mut [u8]) -> usize {
        if (rip as i64) << 16 >> 16 != rip as i64 {
            return 0;
        }
        let tag = rip & !0xfff | u64::from(self.core.cpu.view) << 1;
        let p = self.core.jit.pages[page_index(rip)];
        let host = if p.tag == tag {
            p.host
        } else {
            let view = self.core.view();
            let Ok(t) = self.core.walk(rip, Access::Exec, view) else {
                return 0;
            };
            match self.core.ram.page_ptr(t.gpa & !0xfff) {
                Some(h) => h.cast_const(),
                None => return 0,
            }
        };
        let n = out.len().min(4096 - (rip & 0xfff) as usize);
        // SAFETY: a page of guest RAM; the range stays inside it.
        unsafe {
            std::ptr::copy_nonoverlapping(host.add((rip & 0xfff) as usize), out.as_mut_ptr(), n);
        }
        n
    }
}
