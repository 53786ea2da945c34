//! vCPUs that do anything at all, at the same time: nothing hangs. What one
//! does alone is in `fuzz.rs`.

mod guest;

use guest::Guest;

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
