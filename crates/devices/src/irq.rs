//! Interrupt lines and where they lead.

use std::sync::Arc;

use parking_lot::Mutex;

/// What an interrupt line drives. Lines are numbered by GSI (I/O APIC pin).
pub trait LineDriver: Send + Sync {
    /// One source of line `gsi` was asserted or released. Called only on
    /// changes; the line is active while any of its sources is asserted.
    fn change(&self, gsi: u8, asserted: bool);
}

/// One source of an interrupt line: several may share the line, which is
/// active while any of them is asserted. Dropping a source releases it.
pub struct IrqLine {
    driver: Arc<dyn LineDriver>,
    gsi: u8,
    asserted: Mutex<bool>,
}

impl IrqLine {
    /// A new, released source of the line `gsi`.
    #[must_use]
    pub fn new(driver: Arc<dyn LineDriver>, gsi: u8) -> Self {
        Self {
            driver,
            gsi,
            asserted: Mutex::new(false),
        }
    }

    /// Asserts or releases this source (for level-triggered interrupts; a
    /// rising edge is an edge-triggered one).
    pub fn set(&self, asserted: bool) {
        let mut now = self.asserted.lock();
        if *now != asserted {
            *now = asserted;
            self.driver.change(self.gsi, asserted);
        }
    }

    /// Asserts and releases: one edge-triggered interrupt.
    pub fn pulse(&self) {
        let mut now = self.asserted.lock();
        if !*now {
            self.driver.change(self.gsi, true);
        }
        *now = false;
        self.driver.change(self.gsi, false);
    }

    /// The GSI this line leads to.
    #[must_use]
    pub fn gsi(&self) -> u8 {
        self.gsi
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set(false);
    }
}
