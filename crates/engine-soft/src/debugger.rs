//! A debugger outside the guest: breakpoints, watchpoints and steps that the
//! guest cannot see.
//!
//! No code is translated from a linear page that has a breakpoint, so that the
//! interpreter sees each of its instructions; the other pages keep their
//! speed. Watchpoints and steps interpret everything.

use engine::{DebugRequest, DebugStop, Watchpoint};
use iced_x86::Instruction;

use crate::core::Core;
use crate::system;

/// What a debugger asked of one vCPU, and what has come of it.
#[derive(Default)]
pub(crate) struct Debugger {
    /// Linear addresses, ascending.
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    step: bool,
    armed: bool,
    /// To be reported before anything else runs.
    stop: Option<DebugStop>,
}

impl Debugger {
    /// Whether the next instruction must be looked at by itself.
    #[inline]
    pub fn watches(&self, linear_rip: u64) -> bool {
        self.armed && (self.step || !self.watchpoints.is_empty() || self.has_page(linear_rip))
    }

    /// Whether a breakpoint is in the page of a linear address.
    #[inline]
    pub fn has_page(&self, la: u64) -> bool {
        if self.breakpoints.is_empty() {
            return false;
        }
        let page = la & !0xfff;
        let first = self.breakpoints.partition_point(|b| *b < page);
        self.breakpoints
            .get(first)
            .is_some_and(|b| b & !0xfff == page)
    }

    /// Whether one instruction is to run, undisturbed by interrupts.
    #[inline]
    pub fn steps(&self) -> bool {
        self.step
    }

    /// Takes what is to be reported.
    #[inline]
    pub fn take_stop(&mut self) -> Option<DebugStop> {
        match self.armed {
            true => self.stop.take(),
            false => None,
        }
    }

    /// Whether the instruction at a linear address must not run: it has a
    /// breakpoint, which is reported.
    pub fn stops_before(&mut self, linear_rip: u64) -> bool {
        let hit = self.breakpoints.binary_search(&linear_rip).is_ok();
        if hit {
            self.stop = Some(DebugStop::Breakpoint);
        }
        hit
    }

    /// An instruction, or the delivery of an exception, has completed.
    pub fn completed(&mut self, touched: Option<Watchpoint>) {
        self.stop = match touched {
            Some(w) => Some(DebugStop::Watchpoint(w)),
            None if self.step => Some(DebugStop::Step),
            None => self.stop,
        };
    }
}

impl Core {
    /// The first watchpoint that the instruction at rip touches if it
    /// completes.
    pub(crate) fn watchpoint(&self, i: &Instruction) -> Option<Watchpoint> {
        if self.debugger.watchpoints.is_empty() {
            return None;
        }
        let mut hit = None;
        system::for_each_access(self, i, |start, len, reads, writes| {
            let overlaps = |w: &&Watchpoint| {
                start < w.address.saturating_add(w.len)
                    && w.address < start.saturating_add(len)
                    && (writes && w.write || reads && w.read)
            };
            hit = hit.or_else(|| self.debugger.watchpoints.iter().find(overlaps).copied());
        });
        hit
    }

    /// Linear address of the next instruction.
    pub(crate) fn linear_rip(&self) -> u64 {
        match self.cpu.is64() {
            true => self.cpu.rip,
            false => {
                self.cpu.seg[crate::cpu::seg::CS]
                    .base
                    .wrapping_add(self.cpu.rip)
                    & 0xffff_ffff
            }
        }
    }

    /// Arms what a debugger asks for. The vCPU does not run.
    pub(crate) fn set_debug(&mut self, request: &DebugRequest) {
        let mut breakpoints = request.breakpoints.clone();
        breakpoints.sort_unstable();
        breakpoints.dedup();
        let moved = breakpoints != self.debugger.breakpoints;
        self.debugger = Debugger {
            breakpoints,
            watchpoints: request.watchpoints.clone(),
            step: request.step,
            armed: !request.is_empty(),
            stop: None,
        };
        if moved {
            let shared = self.shared.clone();
            let signal = self.signal().clone();
            shared.world.enter(&signal);
            self.empty_cache();
            shared.world.leave(&signal);
        }
    }
}
