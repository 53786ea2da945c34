//! The machine as the stub's target.

use std::num::NonZeroUsize;
use std::time::Duration;

use arch::CpuState;
use engine::{DebugRequest, DebugStop, Watchpoint};
use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

use super::{memory, registers};
use crate::machine::Inner;

/// Most breakpoints, and most watchpoints, of one debugger.
const MOST: usize = 1024;

/// Why a debugging session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GdbError {
    /// The machine ended meanwhile.
    #[error("the machine has ended")]
    Ended,
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
}

/// What a vCPU does when the debugger resumes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Stand,
    Continue,
    Step,
}

/// A machine held by a debugger.
pub(crate) struct Debugged<'a> {
    machine: &'a Inner,
    /// The vCPUs' states while they stand; changed ones are written back.
    states: Vec<(CpuState, bool)>,
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    actions: Vec<Action>,
}

/// GDB's number of a vCPU.
pub(super) fn tid(vcpu: u32) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu as usize)
}

impl<'a> Debugged<'a> {
    /// Stops the machine for a debugger.
    pub fn attach(machine: &'a Inner) -> Result<Self, GdbError> {
        let mut this = Self {
            machine,
            states: Vec::new(),
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            actions: Vec::new(),
        };
        this.halt()?;
        Ok(this)
    }

    /// Stops all vCPUs and reads their states.
    pub fn halt(&mut self) -> Result<(), GdbError> {
        self.machine.control().attach_debugger();
        self.states.clear();
        for vcpu in 0..self.machine.cpus() {
            let state = self.machine.control().on_vcpu(vcpu, |v| v.save());
            self.states.push((state.ok_or(GdbError::Ended)??, false));
        }
        Ok(())
    }

    /// Waits a while for a vCPU to stop; why it did.
    pub fn stopped(&mut self, within: Duration) -> Option<MultiThreadStopReason<u64>> {
        let stop = self.machine.control().next_debug_stop(within);
        if self.machine.control().has_ended() {
            return Some(MultiThreadStopReason::Exited(0));
        }
        let (vcpu, why) = stop?;
        if self.halt().is_err() {
            return Some(MultiThreadStopReason::Exited(0));
        }
        let tid = tid(vcpu);
        Some(match why {
            DebugStop::Breakpoint => MultiThreadStopReason::SwBreak(tid),
            DebugStop::Watchpoint(w) => MultiThreadStopReason::Watch {
                tid,
                kind: kind(&w),
                addr: w.address,
            },
            DebugStop::Step => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
        })
    }

    /// Disarms everything, as the debugger leaves.
    pub fn let_go(&mut self) {
        self.breakpoints.clear();
        self.watchpoints.clear();
        self.actions = vec![Action::Continue; self.states.len()];
        self.machine.control().attach_debugger();
        if let Err(error) = self.arm() {
            tracing::debug!(%error, "the debugger's last changes are lost");
        }
    }

    /// Writes changed states back and tells each vCPU what to look for.
    fn arm(&mut self) -> Result<(), GdbError> {
        for (vcpu, (state, changed)) in (0..).zip(&mut self.states) {
            let new = std::mem::take(changed).then(|| state.clone());
            let request = DebugRequest {
                breakpoints: self.breakpoints.clone(),
                watchpoints: self.watchpoints.clone(),
                step: self.actions.get(vcpu as usize) == Some(&Action::Step),
            };
            let done = self.machine.control().on_vcpu(vcpu, move |v| {
                if let Some(state) = new {
                    v.restore(&state)?;
                }
                v.set_debug(&request)
            });
            done.ok_or(GdbError::Ended)??;
        }
        Ok(())
    }

    fn state(&mut self, tid: Tid) -> TargetResult<&mut (CpuState, bool), Self> {
        self.states
            .get_mut(tid.get() - 1)
            .ok_or(TargetError::NonFatal)
    }

    fn set_action(&mut self, tid: Tid, action: Action) {
        if let Some(a) = self.actions.get_mut(tid.get() - 1) {
            *a = action;
        }
    }

    /// Calls `f` with guest-physical address and index into the buffer, for
    /// each part of a linear range; the bytes that were mapped.
    fn pages(
        &mut self,
        start: u64,
        len: usize,
        tid: Tid,
        mut f: impl FnMut(&::memory::GuestRam, u64, std::ops::Range<usize>) -> bool,
    ) -> TargetResult<usize, Self> {
        let ram = self.machine.ram().clone();
        let state = &self.state(tid)?.0;
        let mut done = 0;
        while done < len {
            let at = start.wrapping_add(done as u64);
            let Some((gpa, left)) = memory::translate(state, &ram, at) else {
                break;
            };
            let end = done + left.min(len - done);
            if !f(&ram, gpa, done..end) {
                break;
            }
            done = end;
        }
        match done {
            0 if len != 0 => Err(TargetError::NonFatal),
            _ => Ok(done),
        }
    }
}

fn kind(w: &Watchpoint) -> WatchKind {
    match (w.read, w.write) {
        (true, true) => WatchKind::ReadWrite,
        (true, false) => WatchKind::Read,
        _ => WatchKind::Write,
    }
}

impl Target for Debugged<'_> {
    type Arch = X86_64_SSE;
    type Error = GdbError;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged<'_> {
    fn read_registers(&mut self, regs: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        *regs = registers::to_gdb(&self.state(tid)?.0);
        Ok(())
    }

    fn write_registers(&mut self, regs: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let (state, changed) = self.state(tid)?;
        registers::from_gdb(regs, state);
        *changed = true;
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        self.pages(start, data.len(), tid, |ram, gpa, part| {
            ram.read(gpa, &mut data[part]).is_ok()
        })
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let written = self.pages(start, data.len(), tid, |ram, gpa, part| {
            ram.write(gpa, &data[part]).is_ok()
        })?;
        match written == data.len() {
            true => Ok(()),
            false => Err(TargetError::NonFatal),
        }
    }

    fn list_active_threads(&mut self, found: &mut dyn FnMut(Tid)) -> Result<(), GdbError> {
        (0..self.machine.cpus()).for_each(|vcpu| found(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debugged<'_> {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, GdbError> {
        let vcpu = tid.get() - 1;
        let doing = match self.states.get(vcpu).map(|(s, _)| s.mp_state) {
            Some(arch::state::MpState::Halted) => "halted",
            Some(arch::state::MpState::WaitForSipi) => "waits for SIPI",
            _ => "running",
        };
        let text = format!("vCPU {vcpu} ({doing})");
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Debugged<'_> {
    fn resume(&mut self) -> Result<(), GdbError> {
        self.arm()?;
        let lets_run = self.actions.iter().map(|a| *a != Action::Stand).collect();
        self.machine.control().debugger_lets_run(lets_run);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), GdbError> {
        self.actions = vec![Action::Continue; self.states.len()];
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), GdbError> {
        self.set_action(tid, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), GdbError> {
        self.set_action(tid, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), GdbError> {
        for action in self.actions.iter_mut().filter(|a| **a != Action::Step) {
            *action = Action::Stand;
        }
        Ok(())
    }
}

impl Breakpoints for Debugged<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl Debugged<'_> {
    fn add(&mut self, address: u64) -> bool {
        let room = self.breakpoints.len() < MOST;
        if room {
            self.breakpoints.push(address);
        }
        room
    }

    fn remove(&mut self, address: u64) -> bool {
        let found = self.breakpoints.iter().position(|b| *b == address);
        found.map(|at| self.breakpoints.swap_remove(at)).is_some()
    }
}

// The guest's code is never changed: both kinds are the engine's.
impl SwBreakpoint for Debugged<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}

impl HwBreakpoint for Debugged<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}

fn watchpoint(address: u64, len: u64, kind: WatchKind) -> Watchpoint {
    Watchpoint {
        address,
        len,
        read: kind != WatchKind::Write,
        write: kind != WatchKind::Read,
    }
}

impl HwWatchpoint for Debugged<'_> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let room = self.watchpoints.len() < MOST;
        if room {
            self.watchpoints.push(watchpoint(address, len, kind));
        }
        Ok(room)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let w = watchpoint(address, len, kind);
        let found = self.watchpoints.iter().position(|known| *known == w);
        Ok(found.map(|at| self.watchpoints.swap_remove(at)).is_some())
    }
}

impl MonitorCmd for Debugged<'_> {
    fn handle_monitor_cmd(
        &mut self,
        cmd: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), GdbError> {
        match cmd {
            b"registers" => {
                for (vcpu, (s, _)) in self.states.iter().enumerate() {
                    outputln!(out, "vCPU {vcpu}");
                    outputln!(
                        out,
                        "cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x}",
                        s.cr0,
                        s.cr2,
                        s.cr3,
                        s.cr4
                    );
                    outputln!(
                        out,
                        "fs_base {:x} gs_base {:x}",
                        s.segments[4].base,
                        s.segments[5].base
                    );
                    outputln!(
                        out,
                        "gdt {:x} idt {:x} tr {:x}",
                        s.gdtr.base,
                        s.idtr.base,
                        s.tr.base
                    );
                    for (index, value) in &s.msrs {
                        outputln!(out, "msr {index:x} {value:x}");
                    }
                }
            }
            b"reset" => self.machine.control().post(crate::control::Event::Reset),
            b"quit" => self.machine.control().post(crate::control::Event::Stop),
            _ => outputln!(out, "registers: system registers of all vCPUs; reset; quit"),
        }
        Ok(())
    }
}
