//! The machine's interrupt routes in KVM, and messages to local APICs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};

use engine::MsiMessage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQFD_FLAG_DEASSIGN, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_irqfd, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};
use parking_lot::Mutex;

use crate::line::KvmLine;

/// Interrupt routes through which KVM learns which vectors are level-triggered
/// and end with an exit to the machine's I/O APIC. More than it has pins, so
/// that messages that have changed do not displace those in service.
pub(crate) const RESERVED_ROUTES: u32 = 64;

/// Trigger mode of a message: level.
pub(crate) const LEVEL: u32 = 1 << 15;
/// The bits of the delivery mode that fixed and lowest priority have not.
const UNUSUAL_DELIVERY: u32 = 6 << 8;
/// Delivery mode: lowest priority.
const LOWEST_PRIORITY: u32 = 1 << 8;
/// The destination is logical.
const LOGICAL: u64 = 1 << 2;
/// The destination in xAPIC mode that means all.
const EVERYONE: u64 = 0xff << 12;
/// Address bits that nothing may be in; KVM refuses the whole table for one.
const RESERVED_ADDRESS: u64 = 0xff << 32;

/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: libc::c_ulong = 0x4020_ae76;

/// The routes of one machine.
pub(crate) struct Routes {
    vm: Arc<VmFd>,
    /// Routes beyond [`RESERVED_ROUTES`] that KVM has room for; 0 without
    /// irqfds.
    most: u32,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Level-triggered messages that KVM knows, the oldest first.
    levels: Vec<MsiMessage>,
    /// What events send, by number of the route.
    lines: BTreeMap<u32, Route>,
}

struct Route {
    message: MsiMessage,
    line: Weak<KvmLine>,
}

impl Routes {
    pub(crate) fn new(vm: Arc<VmFd>) -> Arc<Self> {
        let has = vm.check_extension(Cap::Irqfd);
        let most = match has {
            true => u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0),
            false => 0,
        };
        Arc::new(Self {
            vm,
            most: most.saturating_sub(RESERVED_ROUTES),
            table: Mutex::default(),
        })
    }

    /// Whether events can send messages.
    pub(crate) fn has_irqfds(&self) -> bool {
        self.most != 0
    }

    /// Whether a route can lead where this message goes. Level-triggered ones
    /// need a reserved route; KVM may refuse others.
    pub(crate) fn takes(message: &MsiMessage) -> bool {
        message.address & RESERVED_ADDRESS == 0 && message.data & (LEVEL | UNUSUAL_DELIVERY) == 0
    }

    /// Whether KVM may deliver this from a work queue, after the event was
    /// signalled: what does not name one local APIC by its id.
    pub(crate) fn may_linger(message: &MsiMessage) -> bool {
        let everyone = message.address & EVERYONE == EVERYONE;
        message.address & LOGICAL != 0 || message.data & LOWEST_PRIORITY != 0 || everyone
    }

    /// Has KVM report the end of a level-triggered interrupt.
    pub(crate) fn know(&self, message: &MsiMessage) {
        let mut table = self.table.lock();
        if table.levels.contains(message) || message.address & RESERVED_ADDRESS != 0 {
            return;
        }
        if table.levels.len() == RESERVED_ROUTES as usize {
            table.levels.remove(0);
        }
        table.levels.push(*message);
        if let Err(error) = self.tell(&table) {
            tracing::warn!(error, "KVM does not take an interrupt route");
        }
    }

    /// A new route for what a line sends; `None` if there is no room.
    pub(crate) fn add(&self, line: Weak<KvmLine>, message: MsiMessage) -> Option<u32> {
        let mut table = self.table.lock();
        let all = RESERVED_ROUTES..RESERVED_ROUTES + self.most;
        let number = all.into_iter().find(|n| !table.lines.contains_key(n))?;
        table.lines.insert(number, Route { message, line });
        match self.tell(&table) {
            Ok(()) => Some(number),
            Err(error) => {
                tracing::debug!(error, ?message, "KVM takes no more interrupt routes");
                table.lines.remove(&number);
                None
            }
        }
    }

    /// Another message for a route; `false`: KVM refuses, and the old one
    /// stays.
    pub(crate) fn change(&self, number: u32, message: MsiMessage) -> bool {
        let mut table = self.table.lock();
        let Some(route) = table.lines.get_mut(&number) else {
            return false;
        };
        let old = std::mem::replace(&mut route.message, message);
        let Err(error) = self.tell(&table) else {
            return true;
        };
        tracing::debug!(error, ?message, "KVM refuses an interrupt route");
        if let Some(route) = table.lines.get_mut(&number) {
            route.message = old;
        }
        false
    }

    /// The route is free for others. KVM forgets it with the next change:
    /// nothing leads to it.
    pub(crate) fn remove(&self, number: u32) {
        self.table.lock().lines.remove(&number);
    }

    /// All that lines have sent is with the local APICs when this returns.
    pub(crate) fn settle(&self) {
        let table = self.table.lock();
        let lines: Vec<_> = table.lines.values().map(|r| r.line.upgrade()).collect();
        drop(table);
        lines.iter().flatten().for_each(|line| line.settle());
    }

    fn tell(&self, table: &Table) -> Result<(), String> {
        let levels = (0..).zip(&table.levels);
        let lines = table.lines.iter().map(|(n, route)| (*n, &route.message));
        let entries: Vec<_> = levels.chain(lines).map(entry).collect();
        let entries = KvmIrqRouting::from_entries(&entries).map_err(|e| format!("{e:?}"))?;
        self.vm.set_gsi_routing(&entries).map_err(|e| e.to_string())
    }

    /// Has an event send the message of a route, or no more; then all that it
    /// has sent is with the local APICs when this returns.
    pub(crate) fn wire(&self, event: BorrowedFd<'_>, number: u32, on: bool) -> io::Result<()> {
        let irqfd = kvm_irqfd {
            fd: event.as_raw_fd() as u32,
            gsi: number,
            flags: if on { 0 } else { KVM_IRQFD_FLAG_DEASSIGN },
            ..Default::default()
        };
        // SAFETY: the request's structure; the event is open while borrowed.
        unsafe { crate::request(&self.vm, KVM_IRQFD, &irqfd) }
    }

    /// Delivers a message, without a route.
    pub(crate) fn signal(&self, message: &MsiMessage) {
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

fn entry((gsi, message): (u32, &MsiMessage)) -> kvm_irq_routing_entry {
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
