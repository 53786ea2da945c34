//! A guest that does anything at all: nothing panics, hangs or loses track.

mod guest;

use engine::Bus;
use guest::Guest;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Load(u64, usize),
    Store(u64, Vec<u8>),
    Pass(u64),
    Input(Vec<u8>),
    Button,
    Acknowledge,
    EndOfInterrupt(u8),
    SaveAndRestore,
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        any::<u16>(),
        prop_oneof![
            0x20..0x22_u16,
            0xa0..0xa2_u16,
            0x40..0x44_u16,
            0x60..0x65_u16,
            0x70..0x72_u16
        ],
        prop_oneof![
            0x92..0x93_u16,
            0x3f8..0x400_u16,
            0x4d0..0x4d2_u16,
            0x600..0x60c_u16,
            0xcf8..0xd00_u16,
            0xf4..0xf8_u16
        ],
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0xe000_0000..0xe000_1000_u64,
        0xe000_0000..0xf000_0000_u64,
        prop_oneof![Just(0xfec0_0000), Just(0xfec0_0010), Just(0xfec0_0040)],
        0xfec0_0000..0xfec0_1010_u64,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(any::<u8>(), 1..=8);
    prop_oneof![
        6 => (port(), 1..=8_usize).prop_map(|(port, size)| Step::In(port, size)),
        12 => (port(), data()).prop_map(|(port, data)| Step::Out(port, data)),
        4 => (address(), 1..=70_usize).prop_map(|(at, size)| Step::Load(at, size)),
        8 => (address(), data()).prop_map(|(at, data)| Step::Store(at, data)),
        3 => (0..2_000_000_u64).prop_map(Step::Pass),
        1 => data().prop_map(Step::Input),
        1 => Just(Step::Button),
        2 => Just(Step::Acknowledge),
        2 => any::<u8>().prop_map(Step::EndOfInterrupt),
        1 => Just(Step::SaveAndRestore),
    ]
}

fn apply(guest: &Guest, step: &Step) {
    let bus = &guest.chipset.bus;
    match step {
        Step::In(port, size) => bus.pio_read(*port, &mut vec![0; *size]),
        Step::Out(port, data) => bus.pio_write(*port, data),
        Step::Load(at, size) => bus.mmio_read(*at, &mut vec![0; *size]),
        Step::Store(at, data) => bus.mmio_write(*at, data),
        Step::Pass(time) => guest.pass(*time),
        Step::Input(data) => {
            let taken = guest.chipset.serial.push_input(data);
            assert!(taken <= data.len());
        }
        Step::Button => guest.chipset.acpi_pm.press_power_button(),
        Step::Acknowledge => {
            bus.acknowledge_extint();
        }
        Step::EndOfInterrupt(vector) => bus.end_of_interrupt(*vector),
        Step::SaveAndRestore => {
            let state = guest.chipset.save();
            guest.chipset.restore(&state).unwrap();
            assert_eq!(guest.chipset.save(), state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_accesses_are_survived(steps in prop::collection::vec(step(), 1..150)) {
        let guest = Guest::new();
        for step in &steps {
            apply(&guest, step);
        }
        // What was told to the engine agrees with what it would find.
        let asserted = *guest.outside.extint.lock();
        prop_assert_eq!(guest.chipset.bus.acknowledge_extint().is_some(), asserted);
    }
}

#[test]
fn vcpus_at_the_same_time_do_not_deadlock() {
    use std::sync::Arc;

    let guest = Arc::new(Guest::new());
    guest.set_up_pics([0, 0], 3);
    let run = |seed: u64| {
        let guest = Arc::clone(&guest);
        move || {
            let mut state = seed;
            for _ in 0..20_000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let value = (state >> 33) as u32;
                let ports = [
                    0x20, 0xa1, 0x43, 0x40, 0x71, 0x3f9, 0x3f8, 0x602, 0xcfc, 0x64,
                ];
                let port = ports[value as usize % ports.len()];
                match value >> 8 & 3 {
                    0 => guest.outb(port, (value >> 16) as u8),
                    1 => guest.write32(0xe000_0000 + u64::from(value >> 20 & 0xffc), value),
                    2 => guest.write_ioapic(value >> 16 & 0x3f, value),
                    _ => {
                        guest.inl(port);
                        guest.interrupt();
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for seed in 1..4 {
            scope.spawn(run(seed));
        }
        for _ in 0..200 {
            guest.pass(100_000);
        }
    });
}
