//! WDAT: the registers of the watchdog (`devices::watchdog`) as actions
//! (Microsoft, "Hardware Watchdog Timers Design Specification", 2006).

use acpi_tables::sdt::Sdt;
use arch::layout;

use crate::acpi::{OEM, OEM_TABLE};

/// Watchdog actions.
mod action {
    pub const PING: u8 = 1;
    pub const GET_COUNTDOWN: u8 = 4;
    pub const SET_COUNTDOWN: u8 = 6;
    pub const GET_RUNNING: u8 = 8;
    pub const SET_RUNNING: u8 = 9;
    pub const GET_STOPPED: u8 = 10;
    pub const SET_STOPPED: u8 = 11;
    pub const GET_STATUS: u8 = 32;
    pub const SET_STATUS: u8 = 33;
}

/// Instructions.
mod instruction {
    pub const READ_VALUE: u8 = 0;
    pub const READ_COUNTDOWN: u8 = 1;
    pub const WRITE_VALUE: u8 = 2;
    pub const WRITE_COUNTDOWN: u8 = 3;
}

/// Builds the table.
pub fn build() -> Sdt {
    let entries = entries();
    let mut t = Sdt::new(*b"WDAT", 68, 1, OEM, OEM_TABLE, 1);
    t.write_u32(36, 32); // length of this header
    t.write_u16(40, 0xff); // not on PCI: segment, bus, device, function
    t.write_bytes(42, &[0xff; 3]);
    t.write_u32(48, layout::WATCHDOG_PERIOD_MS);
    t.write_u32(52, layout::WATCHDOG_MAX_COUNT);
    t.write_u32(56, 1); // least count
    t.write_u8(60, 1); // enabled
    t.write_u32(64, entries.len() as u32);
    for entry in &entries {
        t.append_slice(entry);
    }
    t
}

fn entries() -> Vec<[u8; 24]> {
    use action::*;
    use instruction::*;
    let control = (layout::WATCHDOG_CONTROL, 8);
    let status = (layout::WATCHDOG_STATUS, 8);
    let ping = (layout::WATCHDOG_PING, 8);
    let countdown = (layout::WATCHDOG_COUNTDOWN, 32);
    vec![
        entry(PING, WRITE_VALUE, ping, 1),
        entry(GET_COUNTDOWN, READ_COUNTDOWN, countdown, 0),
        entry(SET_COUNTDOWN, WRITE_COUNTDOWN, countdown, 0),
        entry(GET_RUNNING, READ_VALUE, control, 1),
        entry(SET_RUNNING, WRITE_VALUE, control, 1),
        entry(GET_STOPPED, READ_VALUE, control, 0),
        entry(SET_STOPPED, WRITE_VALUE, control, 0),
        entry(GET_STATUS, READ_VALUE, status, 1),
        entry(SET_STATUS, WRITE_VALUE, status, 1),
    ]
}

fn entry(action: u8, instruction: u8, (port, bits): (u16, u8), value: u32) -> [u8; 24] {
    let mask = if bits == 8 { 0xff } else { u32::MAX };
    let access = if bits == 8 { 1 } else { 3 };
    let mut bytes = [0; 24];
    let parts: [(usize, &[u8]); 5] = [
        (0, &[action, instruction]),
        (4, &[1, bits, 0, access]), // a port
        (8, &port.to_le_bytes()),
        (16, &value.to_le_bytes()),
        (20, &mask.to_le_bytes()),
    ];
    for (at, part) in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
    }
    bytes
}
