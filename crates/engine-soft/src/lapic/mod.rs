//! Local APICs (SDM vol. 3A, chapter 11): xAPIC and x2APIC mode.

use crate::core::Core;

/// One vCPU's local APIC. Shared between the vCPU, the other vCPUs (IPIs) and
/// the devices (MSIs).
pub struct Lapic {}

impl Lapic {
    /// Whether a guest-physical address is this APIC's register page now.
    pub fn claims(&self, gpa: u64) -> bool {
        gpa & !0xfff == arch::layout::LAPIC_BASE
    }
}

impl Core {
    /// A load from the APIC page.
    pub(crate) fn lapic_mmio_read(&mut self, gpa: u64, out: &mut [u8]) {
        let _ = gpa;
        out.fill(0);
    }

    /// A store to the APIC page.
    pub(crate) fn lapic_mmio_write(&mut self, gpa: u64, data: &[u8]) {
        let _ = (gpa, data);
    }
}
