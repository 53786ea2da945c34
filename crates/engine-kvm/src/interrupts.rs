//! From the machine's devices to the kernel's local APICs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use engine::{Doorbells, InterruptLine, InterruptSink, MsiMessage};
use kvm_ioctls::{Cap, VmFd};

use crate::doorbells::KvmDoorbells;
use crate::kick::Handle;
use crate::line::KvmLine;
use crate::routes::{LEVEL, Routes};

/// Delivery mode: NMI.
const NMI: u32 = 4 << 8;

/// The way to a machine's local APICs.
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    /// Level of the 8259 pair's output.
    extint: AtomicBool,
    /// The vCPU that it leads to.
    first: OnceLock<Weak<Handle>>,
}

impl Interrupts {
    pub(crate) fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self {
            routes: Routes::new(vm.clone()),
            vm,
            extint: AtomicBool::new(false),
            first: OnceLock::new(),
        })
    }

    /// Says where the 8259 pair's output leads.
    pub(crate) fn connect_first(&self, handle: &Arc<Handle>) {
        let _ = self.first.set(Arc::downgrade(handle));
    }

    /// Whether the 8259 pair requests an interrupt.
    pub(crate) fn extint(&self) -> bool {
        self.extint.load(Ordering::SeqCst)
    }

    /// A non-maskable interrupt for one vCPU.
    pub(crate) fn nmi(&self, id: u32) {
        self.routes.signal(&MsiMessage {
            address: to_one(id),
            data: NMI,
        });
    }

    /// Has KVM report the end of a level-triggered interrupt that a restored
    /// vCPU has requested or in service.
    pub(crate) fn expect_end(&self, id: u32, vector: u8) {
        self.routes.know(&MsiMessage {
            address: to_one(id),
            data: LEVEL | u32::from(vector),
        });
    }

    /// All that devices have sent is with the local APICs when this returns.
    pub(crate) fn settle(&self) {
        self.routes.settle();
    }
}

/// Address of a message for one local APIC.
fn to_one(id: u32) -> u64 {
    arch::layout::LAPIC_BASE | u64::from(id & 0xff) << 12 | u64::from(id & !0xff) << 32
}

impl InterruptSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        if message.data & LEVEL != 0 {
            self.routes.know(&message);
        }
        self.routes.signal(&message);
    }

    fn set_extint(&self, level: bool) {
        let was = self.extint.swap(level, Ordering::SeqCst);
        if level
            && !was
            && let Some(first) = self.first.get().and_then(Weak::upgrade)
        {
            first.interrupt();
        }
    }

    fn line(&self) -> Option<Arc<dyn InterruptLine>> {
        let has = self.routes.has_irqfds();
        has.then(|| KvmLine::new(self.routes.clone()) as Arc<dyn InterruptLine>)
    }

    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        let has = self.vm.check_extension(Cap::Ioeventfd)
            && self.vm.check_extension(Cap::IoeventfdNoLength);
        has.then(|| Arc::new(KvmDoorbells(self.vm.clone())) as Arc<dyn Doorbells>)
    }
}
