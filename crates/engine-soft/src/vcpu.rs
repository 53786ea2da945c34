//! The run loop of a vCPU: events, interpreter and translator by turns.

use std::sync::Arc;
use std::time::Instant;

use engine::{DebugRequest, EngineError, Exit, Vcpu, VcpuHandle, VcpuStats};

use arch::{CpuState, Exception, Injected};

use crate::core::{Core, Exec, Trap};
use crate::cpu::{flag, pending};
use crate::translate::dispatch::Next;
use crate::world::Signal;
use crate::{lapic, native, system};

/// Instructions interpreted in a row before pending events are looked at.
const STRETCH: u32 = 256;
const SIGNAL_STACK: usize = 64 << 10;

/// A vCPU of the software engine.
pub struct SoftVcpu {
    core: Core,
    handle: Arc<Handle>,
}

struct Handle {
    signal: Arc<Signal>,
}

impl VcpuHandle for Handle {
    fn kick(&self) {
        self.signal.raise(pending::KICK);
    }

    fn nmi(&self) {
        self.signal.raise(pending::NMI);
    }
}

impl SoftVcpu {
    pub(crate) fn new(core: Core) -> Self {
        let handle = Arc::new(Handle {
            signal: core.signal().clone(),
        });
        Self { core, handle }
    }

    fn run_loop(&mut self) -> Exit {
        loop {
            let turn = match self.core.system.injected.take() {
                None => self.core.turn(),
                Some(event) => self.core.deliver_injected(event).map(|()| Turn::Go),
            };
            match turn {
                Ok(Turn::Go) => {}
                Ok(Turn::Leave(exit)) => return exit,
                Err(Trap::Halt) => self.core.cpu.halted = true,
                Err(Trap::Shutdown) => return Exit::TripleFault,
                Err(Trap::Fault(e)) => {
                    self.core.stats.exceptions += 1;
                    if system::deliver_exception(&mut self.core, e).is_err() {
                        return Exit::TripleFault;
                    }
                    self.core.debugger.completed(None);
                }
            }
        }
    }
}

enum Turn {
    Go,
    Leave(Exit),
}

impl Core {
    /// Handles what is pending, then runs guest code for a while.
    fn turn(&mut self) -> Exec<Turn> {
        if let Some(stop) = self.debugger.take_stop() {
            return Ok(Turn::Leave(Exit::Debug(stop)));
        }
        if self.signal().peek() != 0 || self.cpu.interrupt_waits != 0 {
            if let Some(exit) = self.events()? {
                return Ok(Turn::Leave(exit));
            }
            // What ran meanwhile may have let an interrupt in that waits
            // (`iret` to a program): nothing in the program would ask again.
            if self.cpu.interrupt_waits != 0 && self.cpu.rflags & flag::IF != 0 {
                return Ok(Turn::Go);
            }
        }
        if self.cpu.halted || self.cpu.wait_for_sipi {
            self.sleep();
            return Ok(Turn::Go);
        }
        if self.debugged() {
            return self.step_debugged().map(|()| Turn::Go);
        }
        if self.translatable() && self.run_translated()? == Next::Check {
            return Ok(Turn::Go);
        }
        // Translated code may have led to a breakpoint.
        if !self.debugged() {
            self.interpret_stretch()?;
        }
        Ok(Turn::Go)
    }

    /// What another engine had begun to deliver when its state was saved.
    #[cold]
    fn deliver_injected(&mut self, event: Injected) -> Exec {
        self.cpu.halted = false;
        if !event.exception {
            return system::deliver_interrupt(self, event.vector, false);
        }
        let exception = Exception {
            vector: event.vector,
            error: event.error,
            cr2: self.cpu.cr2,
        };
        system::deliver_exception(self, exception)
    }

    /// Interprets until a jump lands where translated code may be, something
    /// is pending, or for [`STRETCH`] instructions.
    fn interpret_stretch(&mut self) -> Exec {
        for _ in 0..STRETCH {
            let before = self.cpu.rip;
            self.cpu.shadow = false;
            self.step_one()?;
            if self.signal().peek() != 0 || self.cpu.interrupt_waits != 0 || self.debugged() {
                return Ok(());
            }
            let moved = self.cpu.rip.wrapping_sub(before);
            if moved > 15 && self.translatable() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether each instruction must be looked at: TF set or breakpoints armed,
    /// by the guest or by a debugger.
    #[inline]
    fn debugged(&self) -> bool {
        self.cpu.rflags & flag::TF != 0
            || self.cpu.dr[7] & 0xff != 0
            || self.debugger.watches(self.linear_rip())
    }

    /// One instruction with TF set or breakpoints armed.
    fn step_debugged(&mut self) -> Exec {
        if self.debugger.stops_before(self.linear_rip()) {
            return Ok(());
        }
        let tf = self.cpu.rflags & flag::TF != 0;
        system::code_breakpoint(self)?;
        self.cpu.rflags &= !flag::RF;
        self.cpu.shadow = false;
        let before = self.cpu.rip;
        let i = self.decode_here()?;
        let hits = system::data_breakpoints(self, &i);
        let watched = self.watchpoint(&i);
        self.stats.interpreted += 1;
        let r = crate::interpret::step(self, &i);
        if !matches!(r, Ok(()) | Err(Trap::Halt)) {
            return r;
        }
        self.debugger.completed(watched);
        // `syscall`, `int n` and the like clear TF on their way into the
        // kernel: no trap there.
        let entered = self.cpu.rflags & flag::TF == 0 && self.cpu.rip.wrapping_sub(before) > 15;
        let stepped = tf && !self.cpu.shadow && !entered;
        if stepped || hits != 0 {
            return system::debug_trap(self, hits, stepped);
        }
        r
    }

    fn sleep(&mut self) {
        let shared = self.shared.clone();
        let signal = self.signal().clone();
        shared.world.leave(&signal);
        self.halt.wait(&signal, self.lapic.next_deadline());
        shared.world.enter(&signal);
        self.lapic.poll_timer(Instant::now());
    }

    /// Handles pending bits; `Some`: leave `run`.
    fn events(&mut self) -> Exec<Option<Exit>> {
        let signal = self.signal().clone();
        let bits = signal.peek();
        if bits & pending::WORLD != 0 {
            let shared = self.shared.clone();
            shared.world.leave(&signal);
            signal.take(pending::WORLD);
            shared.world.enter(&signal);
        }
        if bits & pending::CODE != 0 {
            signal.take(pending::CODE);
            self.code_written_by_devices();
        }
        if signal.take(pending::KICK) != 0 {
            return Ok(Some(Exit::Kicked));
        }
        if self.debugger.steps() && !self.cpu.halted {
            return Ok(None);
        }
        self.start_messages();
        if self.cpu.wait_for_sipi {
            signal.take(pending::INTERRUPT | pending::NMI);
            return Ok(None);
        }
        if bits & pending::NMI != 0 && !self.cpu.shadow {
            let delivered = !self.cpu.nmi_blocked;
            system::take_nmi(self)?;
            if delivered {
                return Ok(None);
            }
        }
        if bits & pending::INTERRUPT != 0 || self.cpu.interrupt_waits != 0 {
            self.interrupt()?;
        }
        Ok(None)
    }

    /// Does what INIT and SIPI messages ask for.
    fn start_messages(&mut self) {
        let signal = self.signal().clone();
        if signal.take(pending::INIT) != 0 {
            system::init_reset(self);
        }
        if signal.take(pending::SIPI) != 0
            && self.cpu.wait_for_sipi
            && let Some(vector) = self.lapic.take_sipi()
        {
            system::startup(self, vector);
        }
    }

    /// Delivers the local APIC's (or the 8259's) interrupt, if the guest lets it.
    fn interrupt(&mut self) -> Exec {
        let signal = self.signal().clone();
        signal.take(pending::INTERRUPT);
        self.lapic.poll_timer(Instant::now());
        if self.cpu.rflags & flag::IF == 0 || self.cpu.shadow {
            self.cpu.interrupt_waits = u32::from(self.lapic.wants_attention());
            if self.cpu.shadow {
                // One more instruction, then look again.
                self.cpu.shadow = false;
                if !self.cpu.halted && self.cpu.interrupt_waits != 0 {
                    if self.debugged() {
                        self.step_debugged()?;
                    } else {
                        self.step_one()?;
                    }
                }
            } else if self.cpu.interrupt_waits != 0 && !self.cpu.halted {
                return self.run_masked();
            }
            return Ok(());
        }
        self.cpu.interrupt_waits = 0;
        let vector = match self.lapic.deliverable() {
            Some(v) => {
                self.lapic.accept(v);
                Some(v)
            }
            None if self.lapic.extint_pending() => self.shared.bus().acknowledge_extint(),
            None => None,
        };
        if let Some(v) = vector {
            self.cpu.halted = false;
            self.stats.interrupts += 1;
            system::deliver_interrupt(self, v, false)?;
        }
        // Without a vector there is nothing to wait for: what comes is raised.
        if vector.is_some() && self.lapic.wants_attention() {
            self.cpu.interrupt_waits = 1;
        }
        Ok(())
    }

    /// Runs with an interrupt waiting for RFLAGS.IF: back as soon as it is set.
    fn run_masked(&mut self) -> Exec {
        if self.debugged() {
            return self.step_debugged();
        }
        if self.translatable() && self.run_translated()? == Next::Check || self.debugged() {
            return Ok(());
        }
        for _ in 0..STRETCH {
            let before = self.cpu.rip;
            self.cpu.shadow = false;
            self.step_one()?;
            let jumped = self.cpu.rip.wrapping_sub(before) > 15;
            let open = self.cpu.rflags & flag::IF != 0;
            let look = open || self.debugged() || self.signal().peek() != 0;
            if look || jumped && self.translatable() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        let host = |what: &str, e: std::io::Error| EngineError::Host {
            engine: "soft",
            reason: format!("{what}: {e}"),
        };
        let mut stack = vec![0u8; SIGNAL_STACK];
        crate::translate::fault::use_signal_stack(&mut stack)
            .map_err(|e| host("signal stack", e))?;
        crate::translate::enter::point_gs(self.core.cpu.as_ptr())
            .map_err(|e| host("gs base", e))?;
        native::enter_thread(&mut self.core);
        self.core.sync_tsc();
        let shared = self.core.shared.clone();
        let signal = self.core.signal().clone();
        shared.world.enter(&signal);
        let exit = self.run_loop();
        shared.world.leave(&signal);
        native::leave_thread(&mut self.core);
        crate::translate::fault::drop_signal_stack();
        Ok(exit)
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        // They have no place in the state.
        self.core.start_messages();
        Ok(self.core.save_state())
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.core.restore_state(state)
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.core.set_debug(request);
        Ok(())
    }

    fn stats(&self) -> VcpuStats {
        let s = &self.core.stats;
        let j = &self.core.jit;
        let code = &self.core.shared.code;
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        VcpuStats {
            counters: vec![
                ("interpreted_instructions", s.interpreted),
                ("exceptions", s.exceptions),
                ("interrupts", s.interrupts),
                ("tlb_fills", s.tlb_fills),
                ("tlb_flushes", s.tlb_flushes),
                ("mmio_accesses", s.mmio),
                ("port_accesses", s.pio),
                ("code_entries", j.blocks_entered),
                ("code_tlb_misses", j.misses),
                ("code_emulated_instructions", j.emulated),
                ("code_links", j.links),
                ("machine_copied_blocks", code.copied_blocks.load(relaxed)),
                (
                    "machine_translated_blocks",
                    code.translated_blocks.load(relaxed),
                ),
                (
                    "machine_invalidated_blocks",
                    code.invalidated_blocks.load(relaxed),
                ),
            ],
        }
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.handle.clone()
    }
}

/// Local APIC timers need the vCPU's attention even while it runs: see
/// [`lapic`].
const _: fn(&lapic::Lapic, u64) -> bool = lapic::Lapic::claims;
