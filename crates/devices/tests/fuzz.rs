//! Programs of a guest as bytes: legacy ports, PCI configuration by ports and
//! by ECAM, BARs with MSI-X tables, interrupt controllers and timers, with the
//! chipset's state saved, damaged and restored on the way.

mod guest;

use devices::chipset::ChipsetState;
use devices::pci::RootPort;
use engine::Bus;
use fuzzing::{Fuzz, Input};
use guest::Guest;
use guest::toy::Toy;

const ECAM: u64 = 0xe000_0000;

/// Ports with something behind them.
const PORTS: [u16; 30] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0x3f9,
    0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x4d0, 0x4d1, 0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcf9, 0xcfc,
    0x505, 0xf4,
];
/// Addresses with something behind them.
const PLACES: [u64; 11] = [
    ECAM,
    ECAM + (1 << 15),
    ECAM + (2 << 15),
    ECAM + (24 << 15),
    ECAM + (1 << 20),
    0xd000_0000,
    0xd000_1000,
    0xd010_0000,
    0xfec0_0000,
    0xfec0_0010,
    0xfee0_0000,
];

fn act(guest: &Guest, port: &RootPort, input: &mut Input<'_>) {
    let bus = &guest.chipset.bus;
    let size = |input: &mut Input<'_>| input.pick(&[4, 1, 2, 8, 3, 70]);
    match input.u8() % 16 {
        0..=2 => {
            let port = input.pick(&PORTS);
            let count = input.pick(&[1, 2, 4, 3]);
            bus.pio_write(port, input.bytes(count));
        }
        3 => {
            let (port, size) = (input.pick(&PORTS), size(input));
            bus.pio_read(port, &mut vec![0; size]);
        }
        4 => {
            let (port, count) = (input.u16(), usize::from(input.u8() % 9));
            bus.pio_write(port, input.bytes(count));
            bus.pio_read(port, &mut vec![0; count]);
        }
        5..=8 => {
            let at = input.pick(&PLACES) + u64::from(input.u8()) * 4;
            let count = size(input);
            bus.mmio_write(at, input.bytes(count));
        }
        9 => {
            let at = input.pick(&PLACES) + u64::from(input.u16());
            bus.mmio_read(at, &mut vec![0; size(input)]);
        }
        10 => {
            let (at, count) = (input.u64(), size(input));
            bus.mmio_write(at, input.bytes(count));
            bus.mmio_read(at, &mut vec![0; count]);
        }
        11 => guest.pass(u64::from(input.u32() % 4_000_000)),
        12 => {
            let count = usize::from(input.u8() % 64);
            let data = input.bytes(count);
            assert!(guest.chipset.serial.push_input(data) <= data.len());
        }
        13 => match input.u8() % 4 {
            0 => guest.chipset.acpi_pm.press_power_button(),
            1 => port.plug(),
            2 => port.unplug(),
            _ => drop(port.ask_to_unplug()),
        },
        14 => {
            bus.acknowledge_extint();
            bus.end_of_interrupt(input.u8());
        }
        _ => damaged_state(guest, input),
    }
}

/// The state goes through a snapshot that somebody has edited.
fn damaged_state(guest: &Guest, input: &mut Input<'_>) {
    let state = guest.chipset.save();
    let mut json = serde_json::to_vec(&state).unwrap();
    let edits = input.u8() % 8;
    for _ in 0..edits {
        let from = usize::from(input.u16()) % json.len();
        let digit = (from..json.len()).find(|at| json[*at].is_ascii_digit());
        if let Some(at) = digit {
            json[at] = b'0' + input.u8() % 10;
        }
    }
    if let Ok(state) = serde_json::from_slice::<ChipsetState>(&json) {
        // Refused with a reason, or taken: both are well.
        let restored = guest.chipset.restore(&state);
        assert!(edits > 0 || restored.is_ok(), "{restored:?}");
    }
    if edits == 0 {
        assert_eq!(guest.chipset.save(), state);
    }
}

/// Which numbers of a state are zero.
fn shape(json: &str) -> Vec<bool> {
    let numbers = json.split(|c: char| !c.is_ascii_digit());
    let numbers = numbers.filter(|number| !number.is_empty());
    numbers.map(|number| number == "0").collect()
}

#[test]
fn a_chipset_survives() {
    let words: [&[u8]; 4] = [
        &[0, 25, 0, 0, 8, 0, 0x80],
        &[5, 1, 4, 0, 6, 0, 0, 0],
        &[5, 1, 1, 0, 2, 0, 0, 0],
        &[0, 4, 0, 0x34],
    ];
    let fuzz = Fuzz {
        name: "chipset",
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words: &words,
        longest: 2000,
    };
    fuzz.run(|bytes| {
        let guest = Guest::new();
        let toys = [1, 2].map(|slot| {
            let toy = Toy::new(&guest);
            guest.chipset.pci.attach(slot, toy.clone()).unwrap();
            toy
        });
        let port = RootPort::new(24, guest.outside.clone(), Box::new(|_| {})).unwrap();
        guest.chipset.pci.attach_port(24, &port).unwrap();
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            act(&guest, &port, &mut input);
            for toy in &toys {
                toy.msix.vector(u16::from(bytes[0])).signal();
            }
        }
        let shape = shape(&serde_json::to_string(&guest.chipset.save()).unwrap());
        // What was told to the engine agrees with what it would find.
        let asserted = *guest.outside.extint.lock();
        assert_eq!(guest.chipset.bus.acknowledge_extint().is_some(), asserted);
        // However they were moved, both can be put back into use.
        for (slot, at) in [(1u64, 0xd000_0000_u32), (2, 0xd100_0000)] {
            let function = ECAM + (slot << 15);
            for (register, value) in [
                (4, 0),
                (0x10, at),
                (0x14, 0),
                (0x18, at + 0x10_0000),
                (0x1c, 0),
                (4, 2),
            ] {
                guest.write32(function + register, value);
            }
            assert_eq!(guest.read32(function), 0x1042_1af4);
        }
        for at in [0xd000_0000_u64, 0xd100_0000] {
            assert_eq!(guest.read32(at), 0x4040_4040);
            assert_eq!(guest.read32(at + 0x10_0000), 0x4242_4242);
        }
        let messages = guest.outside.messages.lock().len();
        let output = guest.outside.output.lock().len();
        (messages.min(3), output.min(3), shape)
    });
}
