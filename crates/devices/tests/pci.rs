//! PCI from the guest's side: enumeration, BARs, MSI-X, INTx.

mod guest;

use std::sync::Arc;

use devices::pci::{
    BarKind, ConfigBuilder, Identity, MsixLayout, MsixTable, PciError, PciFunction,
};
use guest::Guest;
use guest::toy::{Toy, VECTORS};
use proptest::prelude::*;

const ECAM: u64 = 0xe000_0000;
fn with_toy() -> (Guest, Arc<Toy>) {
    let guest = Guest::new();
    let toy = Toy::new(&guest);
    guest.chipset.pci.attach(1, toy.clone()).unwrap();
    (guest, toy)
}

/// Configuration mechanism #1.
fn read(guest: &Guest, slot: u32, register: u32) -> u32 {
    guest.outl(0xcf8, 0x8000_0000 | slot << 11 | register & 0xfc);
    guest.inl(0xcfc)
}

fn write(guest: &Guest, slot: u32, register: u32, value: u32) {
    guest.outl(0xcf8, 0x8000_0000 | slot << 11 | register & 0xfc);
    guest.outl(0xcfc, value);
}

fn capability(guest: &Guest, id: u32) -> u32 {
    let mut at = read(guest, 1, 0x34) & 0xff;
    while at != 0 {
        let head = read(guest, 1, at);
        if head & 0xff == id {
            return at;
        }
        at = head >> 8 & 0xff;
    }
    panic!("no capability {id:#x}");
}

#[test]
fn both_mechanisms_show_the_same_functions() {
    let (guest, _toy) = with_toy();
    // pci_check_type1.
    let before = guest.inl(0xcf8);
    guest.outl(0xcf8, 0x8000_0000);
    assert_eq!(guest.inl(0xcf8), 0x8000_0000);
    guest.outl(0xcf8, before);
    assert_eq!(read(&guest, 0, 8) >> 16, 0x0600, "host bridge");
    assert_eq!(read(&guest, 1, 0), 0x1042_1af4);
    assert_eq!(read(&guest, 2, 0), 0xffff_ffff);
    assert_eq!(read(&guest, 0, 0x100 + 0x34) & 0xff, 0x40);
    // Function 1 and bus 1 are not there.
    guest.outl(0xcf8, 0x8000_0900);
    assert_eq!(guest.inl(0xcfc), 0xffff_ffff);
    guest.outl(0xcf8, 0x8001_0800);
    assert_eq!(guest.inl(0xcfc), 0xffff_ffff);
    // Bytes and words.
    guest.outl(0xcf8, 0x8000_0808);
    assert_eq!(guest.inw(0xcfe), 0x0180);
    assert_eq!(guest.inb(0xcfc), 1);
    guest.outl(0xcf8, 0x0000_0800);
    assert_eq!(guest.inl(0xcfc), 0xffff_ffff, "disabled");
    for register in (0..0x100).step_by(4) {
        let address = ECAM + (1 << 15) + u64::from(register);
        assert_eq!(guest.read32(address), read(&guest, 1, register));
    }
    assert_eq!(
        guest.read32(ECAM + (1 << 15) + 0x100),
        0,
        "no extended capability"
    );
    assert_eq!(guest.read32(ECAM + (1 << 12)), 0xffff_ffff);
    assert_eq!(guest.read32(ECAM + (1 << 20)), 0xffff_ffff);
    assert_eq!(guest.read32(ECAM + (31 << 15)), 0xffff_ffff);
}

#[test]
fn bars_are_placed_sized_and_moved() {
    let (guest, toy) = with_toy();
    let low = read(&guest, 1, 0x10);
    assert_eq!(low & 0xf, 0xc, "64 bits, prefetchable");
    let first = u64::from(low & !0xf);
    assert!((0xc000_0000..0xe000_0000).contains(&first));
    assert_eq!(guest.read32(first), 0x4040_4040);
    // Sizing with decoding off, as Linux does.
    write(&guest, 1, 4, 0);
    assert_eq!(guest.read32(first), 0xffff_ffff);
    for (register, size) in [
        (0x10, 0xffff_c00c),
        (0x14, 0xffff_ffff),
        (0x18, 0xffff_f000),
    ] {
        let before = read(&guest, 1, register);
        write(&guest, 1, register, 0xffff_ffff);
        assert_eq!(read(&guest, 1, register), size);
        write(&guest, 1, register, before);
    }
    assert_eq!(read(&guest, 1, 0x20), 0, "no such BAR");
    write(&guest, 1, 0x20, 0xffff_ffff);
    assert_eq!(read(&guest, 1, 0x20), 0);
    // Beyond 512 GiB.
    write(&guest, 1, 0x10, 0x1234_4000);
    write(&guest, 1, 0x14, 0x80);
    write(&guest, 1, 4, 7);
    let moved = 0x80_1234_4000;
    guest.write32(moved + 8, 0xdead_beef);
    assert_eq!(*toy.written.lock(), [(0, 8, 0xdead_beef)]);
    assert_eq!(guest.read32(first), 0xffff_ffff);
    // The I/O BAR.
    let port = read(&guest, 1, 0x1c);
    assert_eq!(port & 3, 1);
    assert_eq!(guest.inb((port & !3) as u16 + 5), 0x43);
}

#[test]
fn overlapping_bars_wait_for_room() {
    let (guest, _toy) = with_toy();
    let other = Toy::new(&guest);
    assert_eq!(guest.chipset.pci.attach_next(other), Ok(2));
    let one = read(&guest, 1, 0x18);
    let two = read(&guest, 2, 0x18);
    assert_ne!(one, two);
    write(&guest, 2, 0x18, one);
    assert_eq!(guest.read32(one.into()), 0x4242_4242);
    assert_eq!(guest.read32(two.into()), 0xffff_ffff);
    write(&guest, 1, 0x18, two);
    assert_eq!(guest.read32(one.into()), 0x4242_4242);
    assert_eq!(guest.read32(two.into()), 0x4242_4242);
    // Onto the I/O APIC: it stays where it is.
    write(&guest, 1, 0x18, 0xfec0_0000);
    assert_eq!(guest.read_ioapic(1), 0x0017_0020);
    write(&guest, 1, 0x18, 0xffff_f000);
    assert_eq!(guest.read32(0xffff_fffc), 0x4242_4242);
}

#[test]
fn functions_come_and_go() {
    let (guest, toy) = with_toy();
    let bar = u64::from(read(&guest, 1, 0x18));
    assert_eq!(
        guest.chipset.pci.attach(1, toy.clone()).unwrap_err(),
        PciError::Slot { slot: 1 }
    );
    assert!(guest.chipset.pci.attach(32, toy).is_err());
    assert!(guest.chipset.pci.detach(1).is_some());
    assert!(guest.chipset.pci.detach(1).is_none());
    assert_eq!(read(&guest, 1, 0), 0xffff_ffff);
    assert_eq!(guest.read32(bar), 0xffff_ffff);
    for _ in 1..32 {
        let toy = Toy::new(&guest);
        guest.chipset.pci.attach_next(toy).unwrap();
    }
    assert!(guest.chipset.pci.attach_next(Toy::new(&guest)).is_err());
}

#[test]
fn msix_vectors_are_masked_held_and_sent() {
    let (guest, toy) = with_toy();
    let at = capability(&guest, 0x11);
    assert_eq!(read(&guest, 1, at) >> 16, u32::from(VECTORS) - 1);
    assert_eq!(
        (read(&guest, 1, at + 4), read(&guest, 1, at + 8)),
        (0x1000, 0x1800)
    );
    let table = u64::from(read(&guest, 1, 0x10) & !0xf) + 0x1000;
    assert_eq!(guest.read32(table + 12), 1, "masked after reset");
    let set = |index: u64, vector: u32, control: u32| {
        for (field, value) in (0..).zip([0xfee0_1000, 0, vector, control]) {
            guest.write32(table + 16 * index + 4 * field, value);
        }
    };
    let control = |value: u32| write(&guest, 1, at, value << 16);
    let pending = || guest.read32(table + 0x800);
    let vector = toy.msix.vector(1);
    vector.signal();
    assert_eq!(pending(), 0, "disabled");
    // Linux: enabled with the function masked, entries set up, unmasked.
    control(0xc000);
    set(1, 0x41, 1);
    vector.signal();
    assert_eq!(pending(), 2);
    control(0x8000);
    assert!(guest.messages().is_empty());
    set(1, 0x41, 0);
    let [message] = guest.messages()[..] else {
        panic!("one message")
    };
    assert_eq!((message.address, message.data), (0xfee0_1000, 0x41));
    assert_eq!(pending(), 0);
    vector.signal();
    assert_eq!(guest.vectors(), [0x41]);
    // The function mask holds all back.
    set(2, 0x42, 0);
    control(0xc000);
    vector.signal();
    toy.msix.vector(2).signal();
    toy.msix.vector(9).signal();
    assert_eq!(pending(), 6);
    control(0x8000);
    assert_eq!(guest.vectors(), [0x41, 0x42]);
    assert_eq!(read(&guest, 1, at) >> 16, 0x8002);
    // 64-bit accesses reach two fields.
    let mut data = [0; 8];
    engine::Bus::mmio_read(&*guest.chipset.bus, table + 0x28, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x42);
    // Pending bits cannot be written, the table is saved.
    guest.write32(table + 0x800, 0xffff_ffff);
    assert_eq!(pending(), 0);
    let state = toy.msix.save();
    toy.msix.reset();
    assert_eq!(guest.read32(table + 0x1c), 1);
    toy.msix.restore(&state).unwrap();
    vector.signal();
    assert_eq!(guest.vectors(), [0x41]);
}

#[test]
fn intx_follows_the_command_register() {
    let (guest, toy) = with_toy();
    guest.set_pin(17, 0, 0xa051);
    assert_eq!(read(&guest, 1, 0x3c) & 0xffff, 0x010b);
    toy.config().set_interrupt(true);
    assert_eq!(guest.vectors(), [0x51]);
    assert_eq!(read(&guest, 1, 4) >> 16 & 8, 8);
    engine::Bus::end_of_interrupt(&*guest.chipset.bus, 0x51);
    assert_eq!(guest.vectors(), [0x51]);
    write(&guest, 1, 4, 0x407);
    engine::Bus::end_of_interrupt(&*guest.chipset.bus, 0x51);
    assert!(guest.vectors().is_empty());
    assert_eq!(read(&guest, 1, 4) >> 16 & 8, 8, "still wants it");
    write(&guest, 1, 4, 7);
    assert_eq!(guest.vectors(), [0x51]);
    toy.config().set_interrupt(false);
    engine::Bus::end_of_interrupt(&*guest.chipset.bus, 0x51);
    assert!(guest.vectors().is_empty());
    // Without I/O APIC it is ISA interrupt 11.
    guest.set_up_pics([0, 0], 1);
    toy.config().set_interrupt(true);
    assert_eq!(guest.interrupt(), Some(0x2b));
}

#[test]
fn configuration_space_is_saved_and_refuses_another_device() {
    let (guest, toy) = with_toy();
    write(&guest, 1, 0x18, 0xd000_0000);
    write(&guest, 1, 0x3c, 0x05);
    let state = toy.config().save();
    let text = serde_json::to_string(&state).unwrap();

    let (other, new) = with_toy();
    new.config()
        .restore(&serde_json::from_str(&text).unwrap())
        .unwrap();
    other.chipset.pci.remap();
    assert_eq!(other.read32(0xd000_0000), 0x4242_4242);
    assert_eq!(read(&other, 1, 0x3c) & 0xff, 5);
    let bridge = guest.chipset.pci.function(0).unwrap();
    let error = bridge.config().restore(&state).unwrap_err().to_string();
    assert!(error.contains("device"), "{error}");
    // A machine reset puts the BARs back.
    other.chipset.reset();
    assert_eq!(other.read32(0xd000_0000), 0xffff_ffff);
}

#[test]
fn impossible_functions_are_refused() {
    let identity = Identity {
        vendor: 1,
        device: 2,
        class: 0,
        revision: 0,
        subsystem_vendor: 0,
        subsystem: 0,
    };
    let wide = BarKind::Memory64 {
        prefetchable: false,
    };
    let builder = || ConfigBuilder::new(identity);
    assert!(builder().bar(5, wide, 0x1000).is_err());
    assert!(builder().bar(6, BarKind::Io, 0x10).is_err());
    assert!(builder().bar(0, wide, 0x1800).is_err());
    assert!(builder().bar(0, BarKind::Memory32, 0x10).is_err());
    assert!(
        builder()
            .bar(0, wide, 0x1000)
            .unwrap()
            .bar(1, BarKind::Io, 8)
            .is_err()
    );
    assert!(builder().add_capability(9, &[0; 0xc0], &[]).is_err());
    let guest = Guest::new();
    let layout = MsixLayout {
        bar: 0,
        table_offset: 0,
        pending_offset: 0x800,
    };
    let msix = MsixTable::new(200, layout, guest.outside.clone());
    let one_page = builder().bar(0, wide, 0x1000).unwrap();
    assert!(
        one_page.msix(&msix).is_err(),
        "the table covers the pending bits"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_programming_is_survived(
        writes in prop::collection::vec((0_u64..0x110, any::<u32>(), 0..4_u8), 1..80),
    ) {
        let (guest, toy) = with_toy();
        let (first, second) = (ECAM + (1 << 15), ECAM + (2 << 15));
        guest.chipset.pci.attach(2, Toy::new(&guest)).unwrap();
        for (register, value, how) in writes {
            let function = if how & 1 == 0 { first } else { second };
            let bar = u64::from(guest.read32(function + 0x10) & !0xf);
            match how {
                0 | 1 => guest.write32(function + (register & !3), value),
                2 => guest.write32(bar + 0x1000 + register, value),
                _ => guest.chipset.bus.mmio.write(function + register, &value.to_le_bytes()[..3]),
            }
            toy.msix.vector(register as u16).signal();
            toy.config().set_interrupt(value & 1 != 0);
            prop_assert_eq!(guest.read32(first), 0x1042_1af4);
            prop_assert_eq!(guest.read_ioapic(1), 0x0017_0020);
        }
        // However they were moved, both can be put back into use.
        for (function, at) in [(first, 0xd000_0000_u32), (second, 0xd100_0000)] {
            guest.write32(function + 4, 0);
            for (register, value) in [(0x10, at), (0x14, 0), (0x18, at + 0x10_0000), (0x1c, 0)] {
                guest.write32(function + register, value);
            }
        }
        for (function, at) in [(first, 0xd000_0000_u64), (second, 0xd100_0000)] {
            guest.write32(function + 4, 2);
            prop_assert_eq!(guest.read32(at), 0x4040_4040);
            prop_assert_eq!(guest.read32(at + 0x10_0000), 0x4242_4242);
        }
    }
}
