//! The ways to reset a PC: the chipset's reset register (0xcf9), the keyboard
//! controller (0x64) and port 0x92.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BytePort;
use crate::power::{PowerEvent, PowerSink};
use crate::state::Version;
use crate::versioned;

/// "Reset CPU" in the reset register.
const RESET_CPU: u8 = 1 << 2;
/// "System reset" in the reset register: kept, without meaning here.
const SYSTEM_RESET: u8 = 1 << 1;

/// The reset register at 0xcf9 (as in Intel chipsets).
pub struct ResetRegister {
    value: Mutex<u8>,
    power: Arc<dyn PowerSink>,
}

impl ResetRegister {
    /// A reset register that reports to `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self {
            value: Mutex::new(0),
            power,
        })
    }

    /// The register.
    #[must_use]
    pub fn read(&self) -> u8 {
        *self.value.lock()
    }

    /// Writes the register; setting bit 2 resets.
    pub fn write(&self, value: u8) {
        *self.value.lock() = value & SYSTEM_RESET;
        if value & RESET_CPU != 0 {
            self.power.power_event(PowerEvent::Reset);
        }
    }
}

/// Output buffer full.
const STATUS_OUTPUT: u8 = 1;
/// Self-test passed.
const STATUS_SYSTEM: u8 = 1 << 2;
/// The last write was a command.
const STATUS_COMMAND: u8 = 1 << 3;
/// Keyboard not locked.
const STATUS_UNLOCKED: u8 = 1 << 4;
/// The keyboard's "send that again": there is none.
const RESEND: u8 = 0xfe;
/// Bits 0 (not reset) and 1 (A20) of the output port.
const OUTPUT_PORT: u8 = 0x03;

/// What the next write to the data port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DataWrite {
    Keyboard,
    Memory(u8),
    OutputPort,
    Echo,
    Ignored,
}

/// The i8042 keyboard controller, without keyboard or mouse: enough for a
/// kernel to find that out at once, and to reset the machine.
pub struct KeyboardController {
    state: Mutex<KeyboardControllerState>,
    reset: Arc<ResetRegister>,
}

impl KeyboardController {
    /// A controller that resets through `reset`.
    #[must_use]
    pub fn new(reset: Arc<ResetRegister>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(KeyboardControllerState::new()),
            reset,
        })
    }

    fn pulse_reset(&self) {
        self.reset.write(RESET_CPU);
    }

    /// Whether the command resets.
    fn command(state: &mut KeyboardControllerState, command: u8) -> bool {
        state.data = DataWrite::Keyboard;
        match command {
            0x20..=0x3f => {
                let value = state.memory.get(usize::from(command & 0x1f));
                state.output = value.copied();
            }
            0x60..=0x7f => state.data = DataWrite::Memory(command & 0x1f),
            // Second port: its test fails, so it is not there.
            0xa9 => state.output = Some(1),
            // Self-test: passed.
            0xaa => state.output = Some(0x55),
            // Test of the first port: passed.
            0xab => state.output = Some(0),
            0xc0 => state.output = Some(0),
            0xd0 => state.output = Some(OUTPUT_PORT),
            0xd1 => state.data = DataWrite::OutputPort,
            // Write as if from the keyboard, or from the mouse. The loopback
            // answer lacks the mouse flag, so no mouse is looked for.
            0xd2 | 0xd3 => state.data = DataWrite::Echo,
            0xd4 => state.data = DataWrite::Ignored,
            // Pulse output lines; line 0 is reset.
            0xf0..=0xff => return command & 1 == 0,
            _ => {}
        }
        false
    }

    /// The registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> KeyboardControllerState {
        self.state.lock().clone()
    }

    /// Takes back a saved state.
    pub fn restore(&self, state: &KeyboardControllerState) {
        *self.state.lock() = state.clone();
    }
}

/// Ports 0x60 (data, offset 0) and 0x64 (status and command, offset 4).
impl BytePort for KeyboardController {
    fn read_byte(&self, offset: u16) -> u8 {
        let mut state = self.state.lock();
        if offset != 0 {
            let full = if state.output.is_some() {
                STATUS_OUTPUT
            } else {
                0
            };
            let command = if state.command { STATUS_COMMAND } else { 0 };
            return STATUS_SYSTEM | STATUS_UNLOCKED | full | command;
        }
        if let Some(value) = state.output.take() {
            state.last = value;
        }
        state.last
    }

    fn write_byte(&self, offset: u16, value: u8) {
        let mut state = self.state.lock();
        state.command = offset != 0;
        let reset = if offset != 0 {
            Self::command(&mut state, value)
        } else {
            let data = std::mem::replace(&mut state.data, DataWrite::Keyboard);
            match data {
                DataWrite::Keyboard => state.output = Some(RESEND),
                DataWrite::Memory(at) => {
                    if let Some(byte) = state.memory.get_mut(usize::from(at)) {
                        *byte = value;
                    }
                }
                DataWrite::Echo => state.output = Some(value),
                DataWrite::OutputPort | DataWrite::Ignored => {}
            }
            data == DataWrite::OutputPort && value & 1 == 0
        };
        drop(state);
        if reset {
            self.pulse_reset();
        }
    }
}

/// Saved keyboard controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardControllerState {
    /// Format.
    pub version: Version<KeyboardControllerState>,
    /// 32 bytes of memory; byte 0 is the configuration.
    memory: Vec<u8>,
    output: Option<u8>,
    last: u8,
    command: bool,
    data: DataWrite,
}
versioned!(KeyboardControllerState, "keyboard controller", 1);

impl KeyboardControllerState {
    fn new() -> Self {
        let mut memory = vec![0; 32];
        // Translation, self-test passed, both interfaces disabled.
        memory[0] = 0x74;
        Self {
            version: Version::current(),
            memory,
            output: None,
            last: 0,
            command: false,
            data: DataWrite::Keyboard,
        }
    }
}

/// Port 0x92: A20 (always on) and fast reset.
pub struct Port92(pub Arc<ResetRegister>);

impl BytePort for Port92 {
    fn read_byte(&self, _offset: u16) -> u8 {
        2
    }

    fn write_byte(&self, _offset: u16, value: u8) {
        if value & 1 != 0 {
            self.0.write(RESET_CPU);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Events(Mutex<Vec<PowerEvent>>);

    impl PowerSink for Events {
        fn power_event(&self, event: PowerEvent) {
            self.0.lock().push(event);
        }
    }

    /// What a kernel sees: waits for the input buffer, writes, and reads the
    /// answer if there is one.
    fn ask(controller: &KeyboardController, offset: u16, value: u8) -> Option<u8> {
        assert_eq!(controller.read_byte(4) & 2, 0, "input buffer full");
        controller.write_byte(offset, value);
        (controller.read_byte(4) & STATUS_OUTPUT != 0).then(|| controller.read_byte(0))
    }

    #[test]
    fn linux_finds_a_working_controller_without_devices() {
        let controller = KeyboardController::new(ResetRegister::new(Arc::new(Events::default())));
        assert_eq!(controller.read_byte(4) & STATUS_OUTPUT, 0);
        assert_eq!(ask(&controller, 4, 0xaa), Some(0x55));
        assert_eq!(ask(&controller, 4, 0x60), None);
        assert_eq!(ask(&controller, 0, 0x65), None);
        assert_eq!(ask(&controller, 4, 0x20), Some(0x65));
        // The mouse loopback comes back without the mouse flag.
        assert_eq!(ask(&controller, 4, 0xd3), None);
        controller.write_byte(0, 0x5a);
        assert_eq!(controller.read_byte(4) & 0x21, STATUS_OUTPUT);
        assert_eq!(controller.read_byte(0), 0x5a);
        assert_eq!(ask(&controller, 4, 0xa9), Some(1));
        // A keyboard that answers nothing useful, but at once.
        assert_eq!(ask(&controller, 0, 0xf2), Some(RESEND));
        let state = controller.save();
        controller.restore(&state);
        assert_eq!(controller.save(), state);
    }

    #[test]
    fn every_way_to_reset_resets_once() {
        let events = Arc::new(Events::default());
        let register = ResetRegister::new(events.clone());
        let controller = KeyboardController::new(register.clone());
        let resets = || std::mem::take(&mut *events.0.lock()).len();
        register.write(2);
        assert_eq!(resets(), 0);
        register.write(6);
        assert_eq!((resets(), register.read()), (1, 2));
        controller.write_byte(4, 0xfe);
        assert_eq!(resets(), 1);
        controller.write_byte(4, 0xd1);
        controller.write_byte(0, 0x03);
        assert_eq!(resets(), 0);
        controller.write_byte(4, 0xd1);
        controller.write_byte(0, 0x02);
        assert_eq!(resets(), 1);
        Port92(register).write_byte(0, 1);
        assert_eq!(resets(), 1);
    }
}
