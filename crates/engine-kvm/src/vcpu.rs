//! The run loop of a vCPU: into the guest, and what brings it out again.

use std::sync::Arc;

use arch::CpuState;
use engine::{Bus, DebugRequest, EngineError, Exit, Vcpu, VcpuHandle, VcpuStats};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
    kvm_run__bindgen_ty_1__bindgen_ty_13 as InternalError,
    kvm_run__bindgen_ty_1__bindgen_ty_14 as EmulationFailure,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::debug::Debugger;
use crate::engine::Shared;
use crate::kick::{Guard, Handle};
use crate::{NAME, failed};

/// A vCPU of the KVM engine.
pub(crate) struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) debugger: Debugger,
    /// The machine's clock when this vCPU last took it; see [`crate::clock`].
    pub(crate) clock_seen: u64,
    /// IA32_TSC_DEADLINE of a restored state, for KVM before the vCPU runs.
    pub(crate) deadline: Option<u64>,
    /// The local APIC's registers as KVM made them.
    pub(crate) reset_lapic: Vec<u32>,
    handle: Arc<Handle>,
    stats: Stats,
}

#[derive(Default)]
struct Stats {
    exits: u64,
    mmio: u64,
    pio: u64,
    end_of_interrupt: u64,
    extint: u64,
}

/// What an exit from the guest comes to.
enum Next {
    /// Into the guest again.
    Go,
    /// Out of `run`.
    Leave(Exit),
    /// KVM_RUN was interrupted, before or instead of entering the guest, with
    /// nothing left half done.
    Interrupted,
}

impl KvmVcpu {
    pub(crate) fn new(fd: VcpuFd, index: u32, shared: Arc<Shared>) -> Self {
        let handle = Handle::new(index, shared.interrupts.clone());
        if index == 0 {
            shared.interrupts.connect_first(&handle);
        }
        Self {
            fd,
            index,
            shared,
            debugger: Debugger::default(),
            clock_seen: 0,
            deadline: None,
            reset_lapic: Vec::new(),
            handle,
            stats: Stats::default(),
        }
    }

    fn run_loop(&mut self, bus: &dyn Bus) -> Result<Exit, EngineError> {
        let mut leaving = false;
        // Whether KVM would take an interrupt is known after an exit only.
        let mut asking = self.index == 0 && self.shared.interrupts.extint();
        loop {
            leaving = leaving || self.handle.take_kick();
            if leaving || asking {
                // KVM completes the last access of the guest, and no more.
                self.fd.set_kvm_immediate_exit(1);
            } else if self.index == 0 {
                self.offer_extint(bus)?;
            }
            match self.enter(bus)? {
                Next::Go => {}
                Next::Leave(exit) => return Ok(exit),
                Next::Interrupted => {
                    self.fd.set_kvm_immediate_exit(0);
                    if leaving {
                        return Ok(Exit::Kicked);
                    }
                    asking = false;
                }
            }
        }
    }

    /// Into the guest and out again once.
    fn enter(&mut self, bus: &dyn Bus) -> Result<Next, EngineError> {
        let run: *const kvm_run = self.fd.get_kvm_run();
        self.stats.exits += 1;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Next::Interrupted);
            }
            Err(e) => return Err(self.broken(&refused(e.errno()))),
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                self.stats.pio += 1;
                // SAFETY: the exit says that this member of the union is set.
                let size = unsafe { (*run).__bindgen_anon_1.io.size };
                for one in data.chunks_mut(usize::from(size.max(1))) {
                    bus.pio_read(port, one);
                }
            }
            VcpuExit::IoOut(port, data) => {
                self.stats.pio += 1;
                // SAFETY: as above.
                let size = unsafe { (*run).__bindgen_anon_1.io.size };
                for one in data.chunks(usize::from(size.max(1))) {
                    bus.pio_write(port, one);
                }
            }
            VcpuExit::MmioRead(gpa, data) => {
                self.stats.mmio += 1;
                bus.mmio_read(gpa, data);
            }
            VcpuExit::MmioWrite(gpa, data) => {
                self.stats.mmio += 1;
                bus.mmio_write(gpa, data);
            }
            VcpuExit::IoapicEoi(vector) => {
                self.stats.end_of_interrupt += 1;
                bus.end_of_interrupt(vector);
            }
            VcpuExit::IrqWindowOpen | VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Ok(Next::Leave(Exit::TripleFault)),
            VcpuExit::Debug(why) => {
                return Ok(match self.debug_exit(&why) {
                    Some(stop) => Next::Leave(Exit::Debug(stop)),
                    None => Next::Go,
                });
            }
            VcpuExit::FailEntry(reason, _) => {
                return Err(self.broken(&format!(
                    "the CPU refuses to run the guest (reason {reason:#x}; the host's kernel log \
                     may say more)"
                )));
            }
            VcpuExit::InternalError => {
                // SAFETY: the exit says so of both members, which begin alike.
                let (error, failure) = unsafe {
                    let of = &(*run).__bindgen_anon_1;
                    (of.internal, of.emulation_failure)
                };
                return Err(self.broken(&internal_error(&error, &failure)));
            }
            other => {
                let other = format!("unexpected exit {other:?}");
                return Err(self.broken(&other));
            }
        }
        Ok(Next::Go)
    }

    /// Gives the 8259 pair's interrupt to the guest, or asks KVM to say when
    /// the guest takes interrupts.
    fn offer_extint(&mut self, bus: &dyn Bus) -> Result<(), EngineError> {
        let wanted = self.shared.interrupts.extint();
        let run = self.fd.get_kvm_run();
        if !wanted {
            run.request_interrupt_window = 0;
            return Ok(());
        }
        if run.ready_for_interrupt_injection == 0 {
            run.request_interrupt_window = 1;
            return Ok(());
        }
        run.request_interrupt_window = 0;
        // Not again before KVM has had a look.
        run.ready_for_interrupt_injection = 0;
        if let Some(vector) = bus.acknowledge_extint() {
            self.stats.extint += 1;
            self.inject_external(vector)?;
        }
        Ok(())
    }

    /// The machine cannot go on: what failed, and where the guest was.
    fn broken(&self, what: &str) -> EngineError {
        let at = match self.fd.get_regs() {
            Ok(r) => format!("at rip {:#x}", r.rip),
            Err(_) => "at an unknown place".into(),
        };
        EngineError::Host {
            engine: NAME,
            reason: format!(
                "{what}; vCPU {} was {at}. The guest may run with --engine soft",
                self.index
            ),
        }
    }
}

/// Why KVM_RUN failed.
fn refused(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    match errno {
        libc::EFAULT => format!("the guest used memory that the host cannot give ({error})"),
        libc::ENOMEM => format!("the host has no memory left for KVM ({error})"),
        _ => format!("KVM cannot run the guest: {error}"),
    }
}

/// What an internal error of KVM says.
fn internal_error(error: &InternalError, failure: &EmulationFailure) -> String {
    let why = match error.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction of the guest",
        KVM_INTERNAL_ERROR_SIMUL_EX => "the guest faults while KVM emulates for it",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an interrupt or exception cannot be delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the CPU left the guest for no known reason",
        other => return format!("internal error {other} of KVM"),
    };
    let mut text = format!("internal error {} of KVM: {why}", error.suberror);
    let told = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    // The flags and the bytes take three words.
    if error.suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & told != 0
    {
        // SAFETY: KVM's flag says that this is there.
        let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let count = usize::from(bytes.insn_size);
        for byte in bytes.insn_bytes.iter().take(count) {
            text.push_str(&format!(" {byte:02x}"));
        }
    }
    text
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        let shared = self.shared.clone();
        let Some(bus) = shared.bus.get() else {
            return Err(EngineError::Host {
                engine: NAME,
                reason: "the buses are not connected".into(),
            });
        };
        self.sync_clock()?;
        let handle = self.handle.clone();
        let _guard = Guard::new(&handle, self.fd.get_kvm_run());
        self.run_loop(&**bus)
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        self.save_state()
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.restore_state(state)
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.arm(request)
    }

    fn stats(&self) -> VcpuStats {
        let s = &self.stats;
        VcpuStats {
            counters: vec![
                ("exits", s.exits),
                ("mmio_accesses", s.mmio),
                ("port_accesses", s.pio),
                ("level_interrupts_ended", s.end_of_interrupt),
                ("pic_interrupts", s.extint),
            ],
        }
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.handle.clone()
    }
}

impl KvmVcpu {
    /// An external interrupt that was acknowledged: it comes next. The guest
    /// takes interrupts.
    fn inject_external(&mut self, vector: u8) -> Result<(), EngineError> {
        let mut events = self
            .fd
            .get_vcpu_events()
            .map_err(|e| failed("tell a vCPU's events", e))?;
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = 0;
        // What the flags declare valid is set as it is anyway.
        self.fd
            .set_vcpu_events(&events)
            .map_err(|e| failed("inject an interrupt", e))?;
        self.wake()
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14__bindgen_ty_1__bindgen_ty_1 as Bytes;

    use super::*;

    #[test]
    fn internal_errors_are_told_with_the_instruction() {
        let error = |suberror| InternalError {
            suberror,
            ..Default::default()
        };
        // SAFETY: integers only.
        let mut failure: EmulationFailure = unsafe { std::mem::zeroed() };
        failure.ndata = 3;
        failure.flags = 1;
        let mut bytes = [0; 15];
        bytes[..3].copy_from_slice(&[0xf, 0xa, 1]);
        failure.__bindgen_anon_1.__bindgen_anon_1 = Bytes {
            insn_size: 2,
            insn_bytes: bytes,
        };
        let said = internal_error(&error(1), &failure);
        assert!(
            said.ends_with("emulate an instruction of the guest 0f 0a"),
            "{said}"
        );
        failure.flags = 0;
        assert!(internal_error(&error(1), &failure).ends_with("of the guest"));
        assert!(internal_error(&error(3), &failure).contains("cannot be delivered"));
        assert_eq!(
            internal_error(&error(77), &failure),
            "internal error 77 of KVM"
        );
        assert!(refused(libc::EFAULT).contains("memory that the host cannot give"));
    }
}
