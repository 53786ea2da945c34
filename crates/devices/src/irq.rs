//! Interrupt lines and where they lead.

use std::sync::Arc;

use arch::layout;
use parking_lot::Mutex;

use crate::ioapic::IoApic;
use crate::pci;
use crate::pic::Pic;

/// GSI of the timer's ISA interrupt 0 (the MADT says so).
const TIMER_GSI: u8 = 2;

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

/// Leads interrupt lines to the 8259 pair and the I/O APIC.
///
/// ISA interrupt `n` is GSI `n`, but for the timer, 0, which is GSI 2. PCI
/// interrupts (GSI 16 and up) share ISA interrupts 10 and 11 on the 8259 pair.
pub struct IrqRouter {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    /// Asserted sources, by GSI and by 8259 input.
    sources: Mutex<Sources>,
}

struct Sources {
    gsi: [u32; layout::IOAPIC_PINS as usize],
    isa: [u32; 16],
}

impl IrqRouter {
    /// A router between no lines yet and the two controllers.
    #[must_use]
    pub fn new(pic: Arc<Pic>, ioapic: Arc<IoApic>) -> Arc<Self> {
        Arc::new(Self {
            pic,
            ioapic,
            sources: Mutex::new(Sources {
                gsi: [0; layout::IOAPIC_PINS as usize],
                isa: [0; 16],
            }),
        })
    }

    /// A new source of an ISA interrupt (0 to 15).
    #[must_use]
    pub fn isa(self: &Arc<Self>, irq: u8) -> IrqLine {
        let gsi = if irq == 0 { TIMER_GSI } else { irq };
        IrqLine::new(Arc::clone(self) as Arc<dyn LineDriver>, gsi)
    }
}

impl IrqRouter {
    /// A new source of an interrupt that only the I/O APIC has.
    #[must_use]
    pub fn line(self: &Arc<Self>, gsi: u8) -> IrqLine {
        IrqLine::new(Arc::clone(self) as Arc<dyn LineDriver>, gsi)
    }
}

/// Input of the 8259 pair that a GSI reaches.
fn isa_of(gsi: u8) -> Option<u8> {
    match gsi {
        0 => None,
        TIMER_GSI => Some(0),
        1..=15 => Some(gsi),
        _ => Some(pci::legacy_irq(gsi)),
    }
}

/// Counts a source; the line's new level if it changed.
fn count(sources: &mut u32, asserted: bool) -> Option<bool> {
    if asserted {
        *sources = sources.saturating_add(1);
        (*sources == 1).then_some(true)
    } else {
        let was = *sources;
        *sources = was.saturating_sub(1);
        (was == 1).then_some(false)
    }
}

impl LineDriver for IrqRouter {
    fn change(&self, gsi: u8, asserted: bool) {
        let mut sources = self.sources.lock();
        let Some(line) = sources.gsi.get_mut(usize::from(gsi)) else {
            return;
        };
        let Some(level) = count(line, asserted) else {
            return;
        };
        let isa = isa_of(gsi).and_then(|irq| {
            let line = sources.isa.get_mut(usize::from(irq))?;
            count(line, level).map(|level| (irq, level))
        });
        if let Some((irq, level)) = isa {
            self.pic.set_line(irq, level);
        }
        self.ioapic.set_line(gsi, level);
    }
}
