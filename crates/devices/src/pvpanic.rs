//! The paravirtual panic device (QEMU's `pvpanic`, one port): the guest's
//! kernel says that it has panicked. The DSDT names it as `QEMU0001`.

use std::sync::Arc;

use crate::bus::PioDevice;
use crate::power::{PowerEvent, PowerSink};

/// The guest's kernel panicked and stands.
const PANICKED: u8 = 1 << 0;
/// The guest's kernel panicked and has started its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The panic port. It has no state.
pub struct PvPanic(pub Arc<dyn PowerSink>);

impl PioDevice for PvPanic {
    fn pio_read(&self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn pio_write(&self, _offset: u16, data: &[u8]) {
        let Some(&events) = data.first() else {
            return;
        };
        if events & PANICKED != 0 {
            self.0.power_event(PowerEvent::Panicked);
        }
        if events & CRASH_LOADED != 0 {
            self.0.power_event(PowerEvent::CrashLoaded);
        }
    }
}
