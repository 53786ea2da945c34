//! Non-maskable interrupts.

use super::*;
use crate::cpu::pending;
use crate::system::take_nmi;

#[test]
fn ist_is_used_even_without_a_change_of_privilege() {
    let mut core = long();
    gate(&core, 2, 0xe, 0, 1);
    deliver_interrupt(&mut core, 2, true).unwrap();
    assert_eq!(core.cpu.gpr[4], STACK_IST - 40);
    assert!(core.cpu.nmi_blocked);
    assert_eq!(core.cpu.seg[seg::SS].selector, K_DATA);
    run(&mut core, &[0x48, 0xcf]).unwrap();
    assert!(!core.cpu.nmi_blocked);
    assert_eq!(core.cpu.gpr[4], STACK0);
}

#[test]
fn an_nmi_that_must_wait_comes_after_iret_and_keeps_nobody_awake() {
    let mut core = long();
    gate(&core, 2, 0xe, 0, 1);
    core.signal().raise(pending::NMI);
    take_nmi(&mut core).unwrap();
    assert!(core.cpu.nmi_blocked);
    let depth = core.cpu.gpr[4];
    for _ in 0..2 {
        core.signal().raise(pending::NMI);
        take_nmi(&mut core).unwrap();
        assert_eq!(core.signal().peek(), 0, "it would not sleep");
        assert_eq!(core.cpu.gpr[4], depth, "it is not delivered");
    }
    assert!(core.save_state().nmi_pending);
    run(&mut core, &[0x48, 0xcf]).unwrap();
    assert_eq!(core.signal().take(pending::NMI), pending::NMI);
    assert!(!core.cpu.nmi_blocked);
}
