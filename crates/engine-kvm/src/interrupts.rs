//! From the machine's devices to the kernel's local APICs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use engine::{Doorbells, InterruptSink, MsiMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};
use parking_lot::Mutex;

use crate::doorbells::KvmDoorbells;
use crate::kick::Handle;

/// Interrupt routes through which KVM learns which vectors are level-triggered
/// and end with an exit to the machine's I/O APIC. More than it has pins, so
/// that messages that have changed do not displace those in service.
pub(crate) const RESERVED_ROUTES: u32 = 64;

/// Trigger mode of a message: level.
const LEVEL: u32 = 1 << 15;
/// Delivery mode: NMI.
const NMI: u32 = 4 << 8;

/// The way to a machine's local APICs.
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    /// Level-triggered messages that KVM knows, the oldest first.
    levels: Mutex<Vec<MsiMessage>>,
    /// Level of the 8259 pair's output.
    extint: AtomicBool,
    /// The vCPU that it leads to.
    first: OnceLock<Weak<Handle>>,
}

impl Interrupts {
    pub(crate) fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self {
            vm,
            levels: Mutex::default(),
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
        self.signal(&MsiMessage {
            address: to_one(id),
            data: NMI,
        });
    }

    /// Has KVM report the end of a level-triggered interrupt that a restored
    /// vCPU has requested or in service.
    pub(crate) fn expect_end(&self, id: u32, vector: u8) {
        self.know(&MsiMessage {
            address: to_one(id),
            data: LEVEL | u32::from(vector),
        });
    }

    /// Has KVM report the end of a level-triggered interrupt.
    fn know(&self, message: &MsiMessage) {
        let mut levels = self.levels.lock();
        if levels.contains(message) {
            return;
        }
        if levels.len() == RESERVED_ROUTES as usize {
            levels.remove(0);
        }
        levels.push(*message);
        let entries: Vec<_> = (0..).zip(&*levels).map(route).collect();
        let done = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| format!("{e:?}"))
            .and_then(|table| self.vm.set_gsi_routing(&table).map_err(|e| e.to_string()));
        if let Err(error) = done {
            tracing::warn!(error, "KVM does not take an interrupt route");
        }
    }

    fn signal(&self, message: &MsiMessage) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // An address without a local APIC is the guest's business.
        if let Err(error) = self.vm.signal_msi(msi) {
            tracing::debug!(%error, ?message, "KVM refuses an interrupt message");
        }
    }
}

/// Address of a message for one local APIC.
fn to_one(id: u32) -> u64 {
    arch::layout::LAPIC_BASE | u64::from(id & 0xff) << 12 | u64::from(id & !0xff) << 32
}

fn route((gsi, message): (u32, &MsiMessage)) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        flags: 0,
        pad: 0,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                ..Default::default()
            },
        },
    }
}

impl InterruptSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        if message.data & LEVEL != 0 {
            self.know(&message);
        }
        self.signal(&message);
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

    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        let has = self.vm.check_extension(Cap::Ioeventfd)
            && self.vm.check_extension(Cap::IoeventfdNoLength);
        has.then(|| Arc::new(KvmDoorbells(self.vm.clone())) as Arc<dyn Doorbells>)
    }
}
