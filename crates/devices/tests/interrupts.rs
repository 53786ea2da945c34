//! The 8259 pair, the I/O APIC and the lines that lead to them, as kernels
//! use them.

mod guest;

use engine::Bus;
use guest::Guest;

#[test]
fn linux_probes_the_pic() {
    let guest = Guest::new();
    // probe_8259A: a mask that does not read back means no PIC.
    guest.outb(0xa1, 0xff);
    guest.outb(0x21, 0xfb);
    assert_eq!(guest.inb(0x21), 0xfb);
    assert_eq!(guest.interrupt(), None);
}

#[test]
fn interrupts_are_served_by_priority_and_nest() {
    let guest = Guest::new();
    guest.set_up_pics([0, 0], 1);
    let keyboard = guest.chipset.irq.isa(1);
    let com1 = guest.chipset.irq.isa(4);
    let disk = guest.chipset.irq.isa(14);
    com1.pulse();
    assert_eq!(guest.interrupt(), Some(0x24));
    assert_eq!(guest.interrupt(), None);
    // A lower one waits, a higher one nests, through the cascade too.
    guest.chipset.irq.isa(6).pulse();
    assert_eq!(guest.interrupt(), None);
    disk.pulse();
    assert_eq!(guest.interrupt(), Some(0x2e));
    keyboard.pulse();
    assert_eq!(guest.interrupt(), Some(0x21));
    // In-service registers of both controllers.
    guest.outb(0x20, 0x0b);
    guest.outb(0xa0, 0x0b);
    assert_eq!((guest.inb(0x20), guest.inb(0xa0)), (0x16, 0x40));
    guest.outb(0x20, 0x20);
    guest.outb(0xa0, 0x20);
    guest.outb(0x20, 0x20);
    assert_eq!(guest.inb(0x20), 0x10);
    assert_eq!(guest.interrupt(), None);
    // A specific EOI of 4 lets 6 through.
    guest.outb(0x20, 0x64);
    assert_eq!(guest.interrupt(), Some(0x26));
}

#[test]
fn masked_requests_wait_and_show_in_the_request_register() {
    let guest = Guest::new();
    guest.set_up_pics([0xff, 0xff], 1);
    guest.chipset.irq.isa(3).pulse();
    guest.chipset.irq.isa(12).pulse();
    assert_eq!(guest.interrupt(), None);
    guest.outb(0x20, 0x0a);
    guest.outb(0xa0, 0x0a);
    assert_eq!((guest.inb(0x20), guest.inb(0xa0)), (0x08, 0x10));
    guest.outb(0xa1, 0xef);
    assert_eq!(guest.interrupt(), None, "the cascade is masked");
    guest.outb(0x21, 0xfb);
    assert_eq!(guest.interrupt(), Some(0x2c));
    guest.outb(0xa0, 0x64);
    guest.outb(0x20, 0x62);
    guest.outb(0x21, 0xf3);
    assert_eq!(guest.interrupt(), Some(0x23));
}

#[test]
fn every_slave_request_comes_through_even_together() {
    let guest = Guest::new();
    guest.set_up_pics([0, 0], 1);
    let lines: Vec<_> = [8, 12, 14, 15].map(|irq| guest.chipset.irq.isa(irq)).into();
    for line in &lines {
        line.pulse();
    }
    let mut served = Vec::new();
    while let Some(vector) = guest.interrupt() {
        served.push(vector);
        guest.outb(0xa0, 0x20);
        guest.outb(0x20, 0x20);
    }
    assert_eq!(served, [0x28, 0x2c, 0x2e, 0x2f]);
}

#[test]
fn automatic_eoi_rotation_special_mask_and_poll() {
    let guest = Guest::new();
    guest.set_up_pics([0, 0], 3);
    guest.chipset.irq.isa(1).pulse();
    assert_eq!(guest.interrupt(), Some(0x21));
    guest.outb(0x20, 0x0b);
    assert_eq!(guest.inb(0x20), 0, "AEOI leaves nothing in service");

    guest.set_up_pics([0, 0], 1);
    // Lowest priority to 3: 4 comes before 1.
    guest.outb(0x20, 0xc3);
    guest.chipset.irq.isa(1).pulse();
    guest.chipset.irq.isa(4).pulse();
    assert_eq!(guest.interrupt(), Some(0x24));
    // Rotate on EOI makes 4 the lowest.
    guest.outb(0x20, 0xa0);
    assert_eq!(guest.interrupt(), Some(0x21));
    // Special mask: 1 in service but masked no longer blocks 3.
    guest.chipset.irq.isa(3).pulse();
    guest.outb(0x20, 0xc7);
    assert_eq!(guest.interrupt(), None);
    guest.outb(0x21, 0x02);
    guest.outb(0x20, 0x68);
    assert_eq!(guest.interrupt(), Some(0x23));
    guest.outb(0x20, 0x48);

    guest.set_up_pics([0, 0], 1);
    guest.outb(0x20, 0x0c);
    assert_eq!(guest.inb(0x20), 0, "nothing to poll");
    guest.chipset.irq.isa(5).pulse();
    guest.outb(0x20, 0x0c);
    assert_eq!(guest.inb(0x20), 0x85);
    assert_eq!(guest.interrupt(), None, "the poll acknowledged it");
}

#[test]
fn level_lines_stay_requested_and_can_vanish() {
    let guest = Guest::new();
    guest.set_up_pics([0, 0], 1);
    assert_eq!((guest.inb(0x4d0), guest.inb(0x4d1)), (0x00, 0x0e));
    let (one, other) = (guest.chipset.irq.isa(9), guest.chipset.irq.isa(9));
    one.set(true);
    other.set(true);
    one.set(false);
    for _ in 0..2 {
        assert_eq!(guest.interrupt(), Some(0x29));
        guest.outb(0xa0, 0x20);
        guest.outb(0x20, 0x20);
    }
    other.set(false);
    assert_eq!(guest.interrupt(), None);
    assert_eq!(guest.chipset.bus.acknowledge_extint(), None);
    // Only the lines that may be are level-triggered.
    guest.outb(0x4d0, 0xff);
    guest.outb(0x4d1, 0xff);
    assert_eq!((guest.inb(0x4d0), guest.inb(0x4d1)), (0xf8, 0xde));
}

#[test]
fn ioapic_edges_are_messages() {
    let guest = Guest::new();
    assert_eq!(guest.read_ioapic(1), 0x0017_0020);
    assert_eq!(guest.read_ioapic(0x10), 0x0001_0000);
    let com1 = guest.chipset.irq.isa(4);
    com1.set(true);
    com1.set(false);
    assert!(guest.messages().is_empty(), "masked");
    // Fixed, logical, to 3; then physical, lowest priority.
    guest.set_pin(4, 3, 0x831);
    com1.set(true);
    let [message] = guest.messages()[..] else {
        panic!("one message")
    };
    assert_eq!((message.address, message.data), (0xfee0_3004, 0x31));
    guest.set_pin(4, 3, 0x131);
    com1.set(false);
    assert!(guest.messages().is_empty(), "no new edge");
    com1.pulse();
    let [message] = guest.messages()[..] else {
        panic!("one message")
    };
    assert_eq!((message.address, message.data), (0xfee0_3008, 0x131));
    assert_eq!(guest.read_ioapic(0x19), 0x0300_0000);
}

#[test]
fn ioapic_levels_wait_for_the_eoi() {
    let guest = Guest::new();
    let sci = guest.chipset.irq.isa(9);
    guest.set_pin(9, 0, 0x8039);
    sci.set(true);
    let [message] = guest.messages()[..] else {
        panic!("one message")
    };
    assert_eq!(message.data, 0xc039);
    assert_eq!(guest.read_ioapic(0x22), 0xc039, "remote IRR");
    sci.set(false);
    sci.set(true);
    assert!(guest.messages().is_empty());
    guest.chipset.bus.end_of_interrupt(0x38);
    assert!(guest.messages().is_empty(), "another vector's EOI");
    guest.chipset.bus.end_of_interrupt(0x39);
    assert_eq!(guest.vectors(), [0x39], "still asserted");
    sci.set(false);
    guest.write32(0xfec0_0040, 0x39);
    assert!(guest.messages().is_empty());
    assert_eq!(guest.read_ioapic(0x22), 0x8039);
    // Asserted while masked, it comes when unmasked.
    guest.set_pin(9, 0, 0x1_8039);
    sci.set(true);
    assert!(guest.messages().is_empty());
    guest.set_pin(9, 0, 0x8039);
    assert_eq!(guest.vectors(), [0x39]);
    // Switching to edge clears remote IRR, as Linux does without EOI register.
    guest.set_pin(9, 0, 0x1_0039);
    guest.set_pin(9, 0, 0x8039);
    assert_eq!(guest.vectors(), [0x39]);
}

#[test]
fn a_dropped_source_releases_its_line() {
    let guest = Guest::new();
    guest.set_up_pics([0, 0], 1);
    let line = guest.chipset.irq.isa(11);
    line.set(true);
    assert!(*guest.outside.extint.lock());
    drop(line);
    assert!(!*guest.outside.extint.lock());
}

#[test]
fn pulses_from_many_threads_are_each_delivered() {
    let guest = Guest::new();
    for pin in 3..8 {
        guest.set_pin(pin, 0, 0x30 + pin);
    }
    std::thread::scope(|scope| {
        for irq in 3..8 {
            let line = guest.chipset.irq.isa(irq);
            scope.spawn(move || (0..200).for_each(|_| line.pulse()));
        }
        scope.spawn(|| {
            for _ in 0..500 {
                guest.interrupt();
                guest.outb(0x20, 0x20);
                guest.chipset.bus.end_of_interrupt(0x33);
            }
        });
    });
    assert_eq!(guest.messages().len(), 5 * 200);
}
