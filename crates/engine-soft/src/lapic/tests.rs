//! Local APICs without a machine around them.

use std::time::Duration;

use engine::{InterruptSink, MsiMessage};

use super::*;
use crate::core::CpuBox;

struct Set {
    lapics: Vec<Arc<Lapic>>,
    signals: Vec<Arc<Signal>>,
    _timer: TimerThread,
}

/// Some APICs, software-enabled.
fn set(n: u32) -> Set {
    let timer = TimerThread::start().unwrap();
    let signals: Vec<Arc<Signal>> = (0..n).map(|_| Signal::new(&CpuBox::new())).collect();
    let lapics = (0..n)
        .map(|i| {
            let l = Lapic::new(i, signals[i as usize].clone(), timer.wheel());
            write(&l, reg::SVR, 0x1ff);
            l
        })
        .collect();
    Set {
        lapics,
        signals,
        _timer: timer,
    }
}

fn write(l: &Lapic, r: u32, v: u64) -> Effect {
    l.with(|s| s.write(r, v, Instant::now()))
}

fn to_x2apic(l: &Lapic) {
    assert!(l.set_base(l.base() | BASE_X2APIC));
}

impl Set {
    fn raised(&self, n: usize) -> u32 {
        self.signals[n].take(!0)
    }
    fn command(&self, from: usize, icr: u64) {
        let l = &self.lapics[from];
        let Effect::Send(icr) = write(l, reg::ICR, icr) else {
            panic!("not sent");
        };
        send_command(&self.lapics, l, icr, l.base() & BASE_X2APIC != 0);
    }
    fn got(&self) -> Vec<Option<u8>> {
        self.lapics
            .iter()
            .map(|l| {
                let v = l.deliverable();
                if let Some(v) = v {
                    l.accept(v);
                    write(l, reg::EOI, 0);
                }
                v
            })
            .collect()
    }
}

#[test]
fn higher_priority_nests_and_lower_waits_for_eoi() {
    let s = set(1);
    let l = &s.lapics[0];
    l.request(0x41, false);
    assert_eq!(s.raised(0), pending::INTERRUPT);
    l.request(0x31, false);
    assert_eq!(l.deliverable(), Some(0x41));
    l.accept(0x41);
    assert_eq!(l.deliverable(), None);
    // Same class: no nesting. Higher class: yes.
    l.request(0x4f, false);
    assert_eq!(l.deliverable(), None);
    l.request(0x51, false);
    assert_eq!(l.deliverable(), Some(0x51));
    l.accept(0x51);
    s.raised(0);
    assert_eq!(write(l, reg::EOI, 0), Effect::None);
    assert_eq!(l.deliverable(), None);
    write(l, reg::EOI, 0);
    assert_eq!(l.deliverable(), Some(0x4f));
    assert_eq!(s.raised(0), pending::INTERRUPT);
    assert_eq!(l.read(reg::ISR + 2), Some(0));
    assert_eq!(l.read(reg::IRR + 1), Some(1 << 17));
}

#[test]
fn the_task_priority_holds_back_and_lets_go() {
    let s = set(1);
    let l = &s.lapics[0];
    l.set_tpr(0x50);
    l.request(0x55, false);
    assert_eq!((l.deliverable(), s.raised(0)), (None, 0));
    assert_eq!(l.read(reg::PPR), Some(0x50));
    l.set_tpr(0x40);
    assert_eq!(
        (l.deliverable(), s.raised(0)),
        (Some(0x55), pending::INTERRUPT)
    );
}

#[test]
fn only_level_interrupts_broadcast_their_eoi() {
    let s = set(1);
    let l = &s.lapics[0];
    l.request(0x60, true);
    l.accept(0x60);
    assert_eq!(write(l, reg::EOI, 0), Effect::Eoi(0x60));
    l.request(0x60, false);
    l.accept(0x60);
    assert_eq!(write(l, reg::EOI, 0), Effect::None);
    assert_eq!(write(l, reg::EOI, 0), Effect::None);
}

#[test]
fn a_disabled_apic_takes_nothing() {
    let s = set(1);
    let l = &s.lapics[0];
    write(l, reg::SVR, 0xff);
    l.request(0x60, false);
    assert_eq!(l.deliverable(), None);
    write(l, reg::SVR, 0x1ff);
    assert_eq!(l.deliverable(), None);
}

#[test]
fn commands_reach_whom_they_address() {
    let s = set(4);
    s.command(0, 0x40);
    assert_eq!(s.got(), [Some(0x40), None, None, None]);
    write(&s.lapics[0], reg::ICR_HIGH, 2 << 24);
    s.command(0, 0x41);
    assert_eq!(s.got(), [None, None, Some(0x41), None]);
    // Shorthands: self, all, all but self.
    s.command(1, 0x42 | 1 << 18);
    assert_eq!(s.got(), [None, Some(0x42), None, None]);
    s.command(1, 0x43 | 2 << 18);
    assert_eq!(s.got(), [Some(0x43); 4]);
    s.command(1, 0x44 | 3 << 18);
    assert_eq!(s.got(), [Some(0x44), None, Some(0x44), Some(0x44)]);
    // Flat logical.
    for (n, l) in s.lapics.iter().enumerate() {
        write(l, reg::LDR, 1 << (24 + n));
    }
    write(&s.lapics[0], reg::ICR_HIGH, 0b1010 << 24);
    s.command(0, 0x45 | 1 << 11);
    assert_eq!(s.got(), [None, Some(0x45), None, Some(0x45)]);
    // Lowest priority: one of them.
    s.lapics[1].set_tpr(0x20);
    s.command(0, 0x46 | 1 << 11 | 1 << 8);
    assert_eq!(s.got(), [None, None, None, Some(0x46)]);
}

#[test]
fn x2apic_addresses_by_32_bits_and_by_cluster() {
    let s = set(18);
    for l in &s.lapics {
        to_x2apic(l);
    }
    let hit = |s: &Set| -> Vec<usize> {
        s.got()
            .iter()
            .enumerate()
            .filter_map(|(n, v)| v.map(|_| n))
            .collect()
    };
    s.command(0, 17 << 32 | 0x40);
    assert_eq!(hit(&s), [17]);
    s.command(0, 0xffff_ffff << 32 | 0x40);
    assert_eq!(hit(&s).len(), 18);
    assert_eq!(s.lapics[17].read(reg::LDR), Some(1 << 16 | 2));
    s.command(0, (1 << 16 | 3) << 32 | 0x40 | 1 << 11);
    assert_eq!(hit(&s), [16, 17]);
    // Self IPI register.
    assert_eq!(
        write(&s.lapics[3], reg::SELF_IPI, 0x50),
        Effect::Send(0x50 | 1 << 18)
    );
    // Reserved bits and unknown registers are refused.
    assert_eq!(write(&s.lapics[3], reg::TPR, 0x100), Effect::Bad);
    assert_eq!(write(&s.lapics[3], reg::EOI, 1), Effect::Bad);
    assert_eq!(write(&s.lapics[3], reg::DFR, 1), Effect::Bad);
}

#[test]
fn init_sipi_and_nmi_are_signals() {
    let s = set(2);
    write(&s.lapics[0], reg::ICR_HIGH, 1 << 24);
    s.command(0, 0xc500);
    assert_eq!(s.raised(1), pending::INIT);
    s.command(0, 0x8500);
    assert_eq!(s.raised(1), 0);
    s.command(0, 0x4699);
    assert_eq!(s.raised(1), pending::SIPI);
    assert_eq!(s.lapics[1].take_sipi(), Some(0x99));
    assert_eq!(s.lapics[1].take_sipi(), None);
    s.command(0, 0x4400);
    assert_eq!(s.raised(1), pending::NMI);
}

#[test]
fn messages_from_devices_are_decoded() {
    let s = set(3);
    let router = Router::new(s.lapics.clone());
    let send = |address, data| router.send(MsiMessage { address, data });
    send(0xfee0_2000, 0x44);
    assert_eq!(s.got(), [None, None, Some(0x44)]);
    send(0xfee0_1000, 0xc045);
    let l = &s.lapics[1];
    assert_eq!(l.deliverable(), Some(0x45));
    l.accept(0x45);
    assert_eq!(write(l, reg::EOI, 0), Effect::Eoi(0x45));
    for (n, l) in s.lapics.iter().enumerate() {
        write(l, reg::LDR, 1 << (24 + n));
    }
    send(0xfee0_600c, 0x46);
    assert_eq!(s.got().iter().flatten().count(), 1);
}

#[test]
fn the_8259_reaches_only_the_first_processor() {
    let s = set(2);
    let router = Router::new(s.lapics.clone());
    s.raised(0);
    // Software enable left LINT0 as firmware set it: ExtINT.
    router.set_extint(true);
    assert!(s.lapics[0].extint_pending() && s.lapics[0].wants_attention());
    assert_eq!((s.raised(0), s.raised(1)), (pending::INTERRUPT, 0));
    write(&s.lapics[0], reg::LVT_TIMER + 3, u64::from(MASKED | 0x700));
    assert!(!s.lapics[0].extint_pending());
    write(&s.lapics[0], reg::LVT_TIMER + 3, 0x700);
    assert!(s.lapics[0].extint_pending());
    router.set_extint(false);
    assert!(!s.lapics[0].extint_pending());
}

fn wait_for(l: &Lapic, v: u8) {
    let start = Instant::now();
    while l.deliverable() != Some(v) {
        assert!(start.elapsed() < Duration::from_secs(5), "no interrupt");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn the_timer_fires_once_or_periodically() {
    let s = set(1);
    let l = &s.lapics[0];
    write(l, reg::DIVIDE, 0b1011);
    write(l, reg::LVT_TIMER, 0x70);
    let start = Instant::now();
    write(l, reg::INITIAL_COUNT, 20_000_000);
    let left = l.read(reg::CURRENT_COUNT).unwrap();
    assert!(left > 0 && left <= 20_000_000);
    wait_for(l, 0x70);
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(l.read(reg::CURRENT_COUNT), Some(0));
    assert_eq!(l.next_deadline(), None);
    l.accept(0x70);
    write(l, reg::EOI, 0);
    write(l, reg::LVT_TIMER, 0x71 | 1 << 17);
    write(l, reg::INITIAL_COUNT, 2_000_000);
    for _ in 0..3 {
        wait_for(l, 0x71);
        l.accept(0x71);
        write(l, reg::EOI, 0);
    }
    write(l, reg::INITIAL_COUNT, 0);
    assert_eq!(l.next_deadline(), None);
}

#[test]
fn a_masked_timer_counts_but_does_not_interrupt() {
    let s = set(1);
    let l = &s.lapics[0];
    write(l, reg::LVT_TIMER, u64::from(0x70 | MASKED));
    write(l, reg::INITIAL_COUNT, 10);
    std::thread::sleep(Duration::from_millis(5));
    l.poll_timer(Instant::now());
    assert_eq!((l.deliverable(), l.next_deadline()), (None, None));
}

#[test]
fn the_tsc_deadline_fires_and_disarms() {
    let s = set(1);
    let l = &s.lapics[0];
    let at = Instant::now() + Duration::from_millis(10);
    // Only in its mode.
    l.with(|s| s.set_tsc_deadline(5, Some(at)));
    assert_eq!((l.tsc_deadline(), l.next_deadline()), (0, None));
    write(l, reg::LVT_TIMER, 0x72 | 2 << 17);
    l.with(|s| s.set_tsc_deadline(5, Some(at)));
    assert_eq!(l.tsc_deadline(), 5);
    wait_for(l, 0x72);
    assert!(Instant::now() >= at);
    assert_eq!((l.tsc_deadline(), l.next_deadline()), (0, None));
}

#[test]
fn apic_base_follows_the_mode_diagram() {
    let s = set(1);
    let l = &s.lapics[0];
    let base = l.base();
    assert!(l.claims(arch::layout::LAPIC_BASE + 0x20));
    assert!(!l.set_base(base & !BASE_ENABLE | BASE_X2APIC));
    assert!(l.set_base(base | BASE_X2APIC));
    assert!(!l.claims(arch::layout::LAPIC_BASE));
    assert!(!l.set_base(base));
    assert!(l.set_base(base & !BASE_ENABLE));
    assert!(!l.set_base(base | BASE_X2APIC));
    assert!(l.set_base(base));
}

#[test]
fn bad_vectors_are_errors_not_interrupts() {
    let s = set(1);
    let l = &s.lapics[0];
    write(l, reg::LVT_ERROR, 0x7f);
    l.request(5, false);
    assert_eq!(l.deliverable(), Some(0x7f));
    assert_eq!(l.read(reg::ESR), Some(0));
    write(l, reg::ESR, 0);
    assert_eq!(l.read(reg::ESR), Some(1 << 6));
    assert_eq!(write(l, reg::ICR, 0x0f), Effect::None);
    write(l, reg::ESR, 0);
    assert_eq!(l.read(reg::ESR), Some(1 << 5));
}

#[test]
fn saved_registers_restore() {
    let s = set(2);
    let l = &s.lapics[1];
    to_x2apic(l);
    write(l, reg::LVT_TIMER, 0x70 | 1 << 17);
    write(l, reg::INITIAL_COUNT, 4_000_000_000);
    l.request(0x55, true);
    l.request(0x66, false);
    l.accept(0x66);
    l.set_tpr(0x20);
    let mut saved = l.save();
    let other = &set(2).lapics[1];
    other.restore(&saved);
    let mut again = other.save();
    for s in [&mut saved, &mut again] {
        s.regs[reg::CURRENT_COUNT as usize] = 0;
    }
    assert_eq!(again, saved);
    assert!(other.next_deadline().is_some());
    write(other, reg::EOI, 0);
    assert_eq!(other.deliverable(), Some(0x55));
}
