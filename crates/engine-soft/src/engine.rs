//! The software engine as the machine sees it.

use std::sync::Arc;

use arch::CpuIdentity;
use arch::cpuid::CpuChoice;
use engine::{Bus, Engine, EngineError, InterruptSink, Vcpu};
use memory::{GuestRam, WriteWatcher};
use parking_lot::Mutex;

use crate::core::{Core, Shared};
use crate::cpu::pending;
use crate::lapic::{Router, TimerThread};
use crate::vcpu::SoftVcpu;

/// The software CPUs of one machine.
pub struct SoftEngine {
    shared: Arc<Shared>,
    waiting: Mutex<Vec<Option<Core>>>,
    router: Arc<Router>,
    _timer: TimerThread,
}

/// Hears of DMA into pages with translated code.
struct CodeWatcher {
    shared: Arc<Shared>,
}

impl WriteWatcher for CodeWatcher {
    fn device_wrote(&self, ram_page: u64) {
        let mut pages = self.shared.code.dma.lock();
        if !pages.contains(&ram_page) {
            pages.push(ram_page);
        }
        drop(pages);
        for s in &self.shared.signals {
            s.raise(pending::CODE);
        }
    }
}

impl SoftEngine {
    /// CPUs of a model for a machine with this RAM.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] if the host lacks what the model shows,
    /// or allows no executable memory.
    #[allow(clippy::new_ret_no_self)] // the machine knows engines by their contract only
    pub fn new(
        ram: Arc<GuestRam>,
        vcpus: u32,
        cpu: impl Into<CpuChoice>,
    ) -> Result<Arc<dyn Engine>, EngineError> {
        let unavailable = |reason: String| EngineError::Unavailable {
            engine: "soft",
            reason,
        };
        let table =
            crate::system::host::host_table(cpu, vcpus).map_err(|e| unavailable(e.to_string()))?;
        let timer = TimerThread::start()
            .map_err(|e| unavailable(format!("cannot start the timer thread: {e}")))?;
        let (shared, cores) =
            Shared::build(ram.clone(), vcpus, table, &timer.wheel()).map_err(|e| {
                unavailable(format!(
                    "cannot map memory for translated code: {e}; a security policy may forbid \
                     executable shared memory"
                ))
            })?;
        ram.set_watcher(Arc::new(CodeWatcher {
            shared: shared.clone(),
        }));
        Ok(Arc::new(Self {
            router: Arc::new(Router::new(shared.lapics.clone())),
            waiting: Mutex::new(cores.into_iter().map(Some).collect()),
            shared,
            _timer: timer,
        }))
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let core = self
            .waiting
            .lock()
            .get_mut(index as usize)
            .and_then(Option::take);
        match core {
            Some(core) => Ok(Box::new(SoftVcpu::new(core))),
            None => Err(EngineError::BadState {
                engine: "soft",
                reason: format!("vCPU {index} does not exist or is in use"),
            }),
        }
    }

    fn interrupts(&self) -> Arc<dyn InterruptSink> {
        self.router.clone()
    }

    fn connect(&self, bus: Arc<dyn Bus>) {
        let _ = self.shared.bus.set(bus);
    }

    fn stop_time(&self) {
        let now = self.shared.tsc_base.stop();
        for lapic in &self.shared.lapics {
            lapic.freeze(now);
        }
    }

    fn resume_time(&self) {
        if let Some(now) = self.shared.tsc_base.go() {
            for lapic in &self.shared.lapics {
                lapic.thaw(now);
            }
        }
    }

    fn collect_dirty(&self) -> Result<bool, EngineError> {
        for cpu in &self.shared.cpus {
            // SAFETY: no vCPU is in `run`, which is the caller's promise, so
            // none touches its TLB.
            crate::mmu::forget_writes(unsafe { &mut *cpu.0 });
        }
        Ok(true)
    }

    fn cpu(&self) -> CpuIdentity {
        self.shared.cpuid.identity()
    }
}
