//! Interrupt messages: from ICR writes and from devices, to the local APICs
//! they address (SDM vol. 3A, 11.6 and 11.11).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::{InterruptSink, MsiMessage};

use crate::cpu::pending;
use crate::lapic::Lapic;

/// An interrupt message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Destination field.
    pub(crate) dest: u32,
    /// Logical destination mode.
    pub(crate) logical: bool,
    /// 32-bit destinations (x2APIC).
    pub(crate) wide: bool,
    /// Delivery mode, 0 to 7.
    pub(crate) mode: u8,
    /// Vector.
    pub(crate) vector: u8,
    /// Level triggered.
    pub(crate) level: bool,
}

const FIXED: u8 = 0;
const LOWEST: u8 = 1;
const NMI: u8 = 4;
const INIT: u8 = 5;
const SIPI: u8 = 6;
const EXTINT: u8 = 7;

/// Sends an interrupt command of `from`.
pub(crate) fn send_command(lapics: &[Arc<Lapic>], from: &Lapic, icr: u64, x2apic: bool) {
    let trigger = icr >> 15 & 1 != 0;
    let assert = icr >> 14 & 1 != 0;
    let mode = (icr >> 8 & 7) as u8;
    if mode == INIT && trigger && !assert {
        // INIT level de-assert: only ever reset arbitration ids.
        return;
    }
    let message = Message {
        dest: if x2apic {
            (icr >> 32) as u32
        } else {
            (icr >> 56) as u32
        },
        logical: icr >> 11 & 1 != 0,
        wide: x2apic,
        mode,
        vector: icr as u8,
        level: false,
    };
    match icr >> 18 & 3 {
        0 => route(lapics, &message),
        1 => from.deliver(&message),
        short => {
            for l in lapics {
                if short == 2 || !std::ptr::eq(&**l, from) {
                    l.deliver(&message);
                }
            }
        }
    }
}

/// Gives a message to the APICs that it addresses.
pub(crate) fn route(lapics: &[Arc<Lapic>], message: &Message) {
    if message.mode == LOWEST {
        let target = lapics
            .iter()
            .filter(|l| l.accepts(message))
            .min_by_key(|l| l.priority());
        if let Some(l) = target {
            l.deliver(message);
        }
        return;
    }
    // The common case: one physical destination.
    if !message.logical
        && let Some(l) = lapics.get(message.dest as usize)
        && l.accepts(message)
        && message.dest != 0xff
    {
        l.deliver(message);
        return;
    }
    for l in lapics {
        if l.accepts(message) {
            l.deliver(message);
        }
    }
}

impl Lapic {
    /// Takes a message that is addressed to this APIC.
    pub(crate) fn deliver(&self, m: &Message) {
        match m.mode {
            FIXED | LOWEST => self.request(m.vector, m.level),
            NMI => self.signal.raise(pending::NMI),
            INIT => {
                self.sipi.store(0, Ordering::SeqCst);
                self.signal.raise(pending::INIT);
            }
            SIPI => {
                self.sipi
                    .store(0x100 | u32::from(m.vector), Ordering::SeqCst);
                self.signal.raise(pending::SIPI);
            }
            EXTINT => self.set_extint(true),
            _ => {}
        }
    }
}

/// Where devices send interrupts.
pub struct Router {
    lapics: Vec<Arc<Lapic>>,
}

impl Router {
    /// To these local APICs, by vCPU index.
    pub fn new(lapics: Vec<Arc<Lapic>>) -> Self {
        Self { lapics }
    }
}

impl InterruptSink for Router {
    fn send(&self, message: MsiMessage) {
        let MsiMessage { address, data } = message;
        let dest = (address >> 12 & 0xff) as u32 | (address >> 32) as u32 & 0xffff_ff00;
        let hint = address >> 3 & 1 != 0;
        let logical = address >> 2 & 1 != 0;
        let mode = (data >> 8 & 7) as u8;
        route(
            &self.lapics,
            &Message {
                dest,
                logical,
                wide: dest > 0xff,
                // A redirection hint picks one of several.
                mode: if hint && logical && mode == FIXED {
                    LOWEST
                } else {
                    mode
                },
                vector: data as u8,
                level: data >> 15 & 1 != 0,
            },
        );
    }

    fn set_extint(&self, level: bool) {
        if let Some(l) = self.lapics.first() {
            l.set_extint(level);
        }
    }
}
