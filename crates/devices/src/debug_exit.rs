//! A port whose value ends the machine, as QEMU's `isa-debug-exit`: for test
//! kernels.

use std::sync::Arc;

use crate::bus::PioDevice;
use crate::power::{PowerEvent, PowerSink};

/// Ports from [`arch::layout::DEBUG_EXIT_PORT`].
pub const PORTS: u16 = 4;

/// The debug-exit port. It has no state.
pub struct DebugExit(pub Arc<dyn PowerSink>);

impl PioDevice for DebugExit {
    fn pio_read(&self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _offset: u16, data: &[u8]) {
        let value = data
            .iter()
            .take(4)
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.0.power_event(PowerEvent::DebugExit(value));
    }
}
