//! x87, SSE and AVX instructions as the guest sees them: results, faults,
//! exceptions, state images.
#![allow(clippy::unwrap_used)]

mod support;

use arch::Exception;
use arch::exception as vector;
use engine_soft::cpu::cr;
use engine_soft::{Core, Trap, native};
use iced_x86::{Decoder, DecoderOptions};
use support::{CODE, DATA, Mode, READ_ONLY, UNMAPPED, enter, gpa, guest};

/// Runs the instructions in `code` through `native` only.
fn run(core: &mut Core, code: &[u8]) -> Result<(), Trap> {
    let bits = u32::from(core.cpu.bits);
    let mut decoder = Decoder::with_ip(bits, code, core.cpu.rip, DecoderOptions::NONE);
    while decoder.can_decode() {
        let i = decoder.decode();
        assert!(!i.is_invalid(), "bad test code");
        let before = core.cpu.rip;
        native::execute(core, &i)?;
        assert_eq!(core.cpu.rip, before + i.len() as u64, "rip is past {i:?}");
    }
    Ok(())
}

fn fault(e: Exception) -> Result<(), Trap> {
    Err(Trap::Fault(e))
}

fn lane(core: &Core, register: usize, n: usize) -> f64 {
    let b = &core.cpu.ymm[register].0[n * 8..n * 8 + 8];
    f64::from_le_bytes(b.try_into().unwrap())
}

fn set_lane(core: &mut Core, register: usize, n: usize, v: f64) {
    core.cpu.ymm[register].0[n * 8..n * 8 + 8].copy_from_slice(&v.to_le_bytes());
}

fn host_has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2")
}

#[test]
fn scalar_arithmetic_conversion_and_compare() {
    let mut c = guest(Mode::Long, 3);
    set_lane(&mut c, 9, 0, 1.5);
    c.cpu.gpr[4] = 7; // rsp as an operand
    c.cpu.gpr[1] = DATA;
    c.ram.write(gpa(DATA), &2.25f64.to_le_bytes()).unwrap();
    // cvtsi2sd xmm1, rsp; addsd xmm1, xmm9; mulsd xmm1, [rcx];
    // cvttsd2si r12, xmm1; ucomisd xmm1, xmm9
    run(
        &mut c,
        &[
            0xf2, 0x48, 0x0f, 0x2a, 0xcc, 0xf2, 0x41, 0x0f, 0x58, 0xc9, 0xf2, 0x0f, 0x59, 0x09,
            0xf2, 0x4c, 0x0f, 0x2c, 0xe1, 0x66, 0x41, 0x0f, 0x2e, 0xc9,
        ],
    )
    .unwrap();
    assert_eq!(lane(&c, 1, 0), 8.5 * 2.25);
    assert_eq!(c.cpu.gpr[12], 19);
    assert_eq!(c.cpu.rflags & 0x8d5, 0, "above: no flag");
    assert_eq!(c.cpu.mxcsr, 0x1fa0, "inexact from the truncation");
}

#[test]
fn misaligned_and_unmapped_operands_fault_without_effect() {
    let mut c = guest(Mode::Long, 3);
    let before = c.cpu.ymm;
    c.cpu.gpr[0] = DATA + 8;
    assert_eq!(run(&mut c, &[0x0f, 0x28, 0x00]), fault(Exception::gp0())); // movaps
    assert_eq!(run(&mut c, &[0x0f, 0x10, 0x00]), Ok(())); // movups
    c.cpu.gpr[0] = UNMAPPED - 8;
    c.cpu.ymm = before;
    // addps needs alignment; movups crosses into the unmapped page.
    assert_eq!(
        run(&mut c, &[0x0f, 0x10, 0x00]),
        fault(Exception::page_fault(4, UNMAPPED))
    );
    assert_eq!(
        run(&mut c, &[0x0f, 0x11, 0x00]),
        fault(Exception::page_fault(6, UNMAPPED))
    );
    let mut tail = [0; 8];
    c.ram.read(gpa(UNMAPPED - 8), &mut tail).unwrap();
    assert_eq!(tail, [0; 8], "the first half was not stored");
    c.cpu.gpr[0] = READ_ONLY;
    assert_eq!(
        run(&mut c, &[0x0f, 0x29, 0x00]),
        fault(Exception::page_fault(7, READ_ONLY))
    );
    assert_eq!(c.cpu.ymm, before);
}

#[test]
fn fstp_that_faults_does_not_pop() {
    let mut c = guest(Mode::Long, 3);
    c.cpu.gpr[0] = UNMAPPED;
    c.cpu.gpr[1] = DATA;
    run(&mut c, &[0xd9, 0xe8, 0xd9, 0xeb]).unwrap(); // fld1; fldpi
    assert_eq!(
        run(&mut c, &[0xdd, 0x18]), // fstp qword [rax]
        fault(Exception::page_fault(6, UNMAPPED))
    );
    run(&mut c, &[0xdd, 0x19, 0xdd, 0x59, 0x08]).unwrap();
    let mut b = [0; 16];
    c.ram.read(gpa(DATA), &mut b).unwrap();
    assert_eq!(b[..8], std::f64::consts::PI.to_le_bytes());
    assert_eq!(b[8..], 1f64.to_le_bytes());
}

#[test]
fn x87_state_follows_the_thread_and_unmasked_exceptions_come_late() {
    let mut c = guest(Mode::Long, 3);
    native::enter_thread(&mut c);
    c.cpu.gpr[0] = DATA;
    c.ram.write(gpa(DATA), &0x0360u16.to_le_bytes()).unwrap();
    // fldcw (unmask all but precision…), fld1, fldz, fdivp: divide by zero
    run(&mut c, &[0xd9, 0x28, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9]).unwrap();
    assert_eq!(
        run(&mut c, &[0xd9, 0xe8]),
        fault(Exception::new(vector::MF)),
        "the next x87 instruction"
    );
    native::leave_thread(&mut c);
    assert_eq!(run(&mut c, &[0x9b]), fault(Exception::new(vector::MF)));
    assert_eq!(
        run(&mut c, &[0x0f, 0x77]),
        fault(Exception::new(vector::MF))
    );
    run(&mut c, &[0xdf, 0xe0]).unwrap(); // fnstsw ax does not wait
    assert_eq!(c.cpu.gpr[0] & 0x84, 0x84, "ES and ZE");
    c.cpu.gpr[0] = DATA;
    run(&mut c, &[0xdb, 0xe2, 0x9b]).unwrap(); // fnclex; fwait
}

#[test]
fn stored_x87_environments_hold_no_host_address() {
    let mut c = guest(Mode::Long, 3);
    c.cpu.gpr[0] = DATA;
    c.ram.write(gpa(DATA + 0x400), &[0xee; 0x400]).unwrap();
    c.cpu.gpr[1] = DATA + 0x400;
    // fld1; fld qword [rax]; fnstenv [rcx]
    run(&mut c, &[0xd9, 0xe8, 0xdd, 0x00, 0xd9, 0x31]).unwrap();
    let mut b = [0; 512];
    c.ram.read(gpa(DATA + 0x400), &mut b).unwrap();
    assert_eq!(b[12..28], [0; 16]);
    assert_eq!(b[28], 0xee);
    run(&mut c, &[0xdd, 0x31]).unwrap(); // fnsave [rcx]
    c.ram.read(gpa(DATA + 0x400), &mut b).unwrap();
    assert_eq!(b[12..28], [0; 16]);
    run(&mut c, &[0xdd, 0x21, 0x0f, 0xae, 0x01]).unwrap(); // frstor; fxsave
    c.ram.read(gpa(DATA + 0x400), &mut b).unwrap();
    assert_eq!(b[6..24], [0; 18]);
    assert_eq!(b[416..], [0xee; 96], "beyond what fxsave writes");
}

#[test]
fn unmasked_simd_exceptions_are_raised_before_anything_changes() {
    let mut c = guest(Mode::Long, 3);
    c.cpu.mxcsr = 0x1f80 & !0x200; // divide by zero unmasked
    set_lane(&mut c, 0, 0, 1.0);
    set_lane(&mut c, 0, 1, 3.0);
    set_lane(&mut c, 1, 1, 7.0);
    let before = c.cpu.ymm;
    let divpd = [0x66, 0x0f, 0x5e, 0xc1];
    assert_eq!(run(&mut c, &divpd), fault(Exception::new(vector::XM)));
    assert_eq!(c.cpu.ymm, before);
    assert_eq!(
        c.cpu.mxcsr & 0x3f,
        4,
        "only ZE: the inexact quotient was not computed"
    );
    c.cpu.cr4 &= !cr::CR4_OSXMMEXCPT;
    assert_eq!(run(&mut c, &divpd), fault(Exception::ud()));
    // An exact denormal result: only unmasked underflow tells it.
    c.cpu.cr4 |= cr::CR4_OSXMMEXCPT;
    set_lane(&mut c, 0, 0, f64::MIN_POSITIVE);
    set_lane(&mut c, 1, 0, 2.0);
    c.cpu.mxcsr = 0x1f80 & !0x800;
    assert_eq!(
        run(&mut c, &[0xf2, 0x0f, 0x5e, 0xc1]),
        fault(Exception::new(vector::XM))
    );
    assert_eq!(c.cpu.mxcsr & 0x3f, 0x10);
    c.cpu.mxcsr = 0x1f80;
    run(&mut c, &[0xf2, 0x0f, 0x5e, 0xc1]).unwrap();
    assert_eq!(c.cpu.mxcsr & 0x3f, 0, "masked and exact: nothing");
}

#[test]
fn control_registers_gate_each_class() {
    let mut c = guest(Mode::Long, 0);
    let ud = fault(Exception::ud());
    let nm = fault(Exception::new(vector::NM));
    let (sse, x87, mmx, vex) = (
        &[0x0fu8, 0x58, 0xc1][..],
        &[0xd9, 0xe8][..],
        &[0x0f, 0xfc, 0xc1][..],
        &[0xc5, 0xf0, 0x58, 0xc2][..],
    );
    let set = |c: &mut Core, cr0: u64, cr4: u64| {
        c.cpu.cr0 |= cr0;
        c.cpu.cr4 &= !cr4;
        c.update_mode();
    };
    set(&mut c, cr::CR0_TS, 0);
    for code in [sse, x87, mmx, &[0x9b][..]] {
        assert_eq!(run(&mut c, code), nm, "{code:x?} with TS");
    }
    enter(&mut c, Mode::Long, 0);
    set(&mut c, cr::CR0_EM, 0);
    assert_eq!(run(&mut c, sse), ud);
    assert_eq!(run(&mut c, mmx), ud);
    assert_eq!(run(&mut c, x87), nm);
    enter(&mut c, Mode::Long, 0);
    set(&mut c, 0, cr::CR4_OSFXSR);
    assert_eq!(run(&mut c, sse), ud);
    assert_eq!(run(&mut c, x87), Ok(()));
    enter(&mut c, Mode::Long, 0);
    set(&mut c, 0, cr::CR4_OSXSAVE);
    assert_eq!(run(&mut c, vex), ud);
    enter(&mut c, Mode::Long, 0);
    c.cpu.xcr0 = 3;
    assert_eq!(run(&mut c, vex), ud);
    // Not for this module, and never for the host: syscall, hlt, add, jmp.
    for code in [
        &[0x0fu8, 0x05][..],
        &[0xf4],
        &[0x01, 0xc8],
        &[0xeb, 0],
        &[0x0f, 0x01, 0xd0],
    ] {
        assert_eq!(run(&mut c, code), ud, "{code:x?}");
    }
}

#[test]
fn legacy_keeps_and_vex_clears_the_upper_half() {
    if !host_has_avx2() {
        return;
    }
    let mut c = guest(Mode::Compat, 3);
    set_lane(&mut c, 0, 3, 5.0);
    set_lane(&mut c, 7, 2, 6.0);
    run(&mut c, &[0x0f, 0x58, 0xc1]).unwrap(); // addps xmm0, xmm1
    assert_eq!(lane(&c, 0, 3), 5.0);
    run(&mut c, &[0xc5, 0xf0, 0x58, 0xc2]).unwrap(); // vaddps xmm0, xmm1, xmm2
    assert_eq!(lane(&c, 0, 3), 0.0);
    set_lane(&mut c, 9, 3, 4.0);
    run(&mut c, &[0xc5, 0xf8, 0x77]).unwrap(); // vzeroupper
    assert_eq!(lane(&c, 7, 2), 0.0);
    assert_eq!(lane(&c, 9, 3), 4.0, "no ymm9 outside 64-bit mode");
}

#[test]
fn gathers_and_masked_moves_touch_only_selected_elements() {
    if !host_has_avx2() {
        return;
    }
    let mut c = guest(Mode::Long, 3);
    for k in 0..64u32 {
        c.ram
            .write(gpa(DATA) + u64::from(k) * 4, &(k + 100).to_le_bytes())
            .unwrap();
    }
    c.cpu.gpr[0] = DATA;
    let dwords = |v: [u32; 8]| {
        let mut y = [0; 32];
        for (k, x) in v.iter().enumerate() {
            y[k * 4..k * 4 + 4].copy_from_slice(&x.to_le_bytes());
        }
        engine_soft::cpu::Ymm(y)
    };
    const ON: u32 = 0x8000_0000;
    let far = ((UNMAPPED - DATA) / 4) as u32;
    c.cpu.ymm[1] = dwords([3, 9, far, 5, 0, 0, 63, far]);
    c.cpu.ymm[2] = dwords([ON, 0, 0, ON, 0, 0, ON, ON]);
    c.cpu.ymm[0] = dwords([7; 8]);
    // vpgatherdd ymm0, [rax+ymm1*4], ymm2
    let gather = [0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x88];
    assert_eq!(
        run(&mut c, &gather),
        fault(Exception::page_fault(4, UNMAPPED))
    );
    assert_eq!(c.cpu.ymm[0], dwords([103, 7, 7, 105, 7, 7, 163, 7]));
    assert_eq!(c.cpu.ymm[2], dwords([0, 0, 0, 0, 0, 0, 0, ON]));
    c.cpu.ymm[1] = dwords([0; 8]);
    run(&mut c, &gather).unwrap();
    assert_eq!(c.cpu.ymm[0], dwords([103, 7, 7, 105, 7, 7, 163, 100]));
    // vpmaskmovd ymm3, ymm2, [rax]: the last element lies beyond the page.
    c.cpu.ymm[2] = dwords([ON, ON, ON, ON, 0, 0, 0, 0]);
    c.cpu.gpr[0] = UNMAPPED - 16;
    run(&mut c, &[0xc4, 0xe2, 0x6d, 0x8c, 0x18]).unwrap();
    run(&mut c, &[0xc4, 0xe2, 0x6d, 0x8e, 0x00]).unwrap(); // store ymm0
    let mut b = [0; 16];
    c.ram.read(gpa(UNMAPPED - 16), &mut b).unwrap();
    assert_eq!(b, dwords([103, 7, 7, 105, 0, 0, 0, 0]).0[..16]);
    // maskmovdqu xmm0, xmm4 with [rdi]: one byte.
    c.cpu.gpr[7] = UNMAPPED - 1;
    c.cpu.ymm[4].0[0] = 0x80;
    run(&mut c, &[0x66, 0x0f, 0xf7, 0xc4]).unwrap();
    c.cpu.ymm[4].0[1] = 0x80;
    assert_eq!(
        run(&mut c, &[0x66, 0x0f, 0xf7, 0xc4]),
        fault(Exception::page_fault(6, UNMAPPED))
    );
}

#[test]
fn xsave_and_xrstor_agree_with_the_manual() {
    let mut c = guest(Mode::Long, 0);
    let area = DATA + 0x1000 - 64; // crosses a page
    c.cpu.gpr[1] = area;
    c.cpu.gpr[0] = u64::MAX;
    c.cpu.gpr[2] = u64::MAX;
    set_lane(&mut c, 5, 0, 1.25);
    run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1
    c.ram.write(gpa(area), &[0xaa; 832]).unwrap();
    c.ram.write(gpa(area + 512), &[0; 64]).unwrap();
    let (xsave, xrstor, xsavec) = (
        &[0x48u8, 0x0f, 0xae, 0x21][..],
        &[0x48, 0x0f, 0xae, 0x29][..],
        &[0x48, 0x0f, 0xc7, 0x21][..],
    );
    run(&mut c, xsave).unwrap();
    let mut b = [0; 832];
    c.ram.read(gpa(area), &mut b).unwrap();
    assert_eq!(b[512..520], 3u64.to_le_bytes(), "upper halves are initial");
    assert_eq!(b[576..832], [0; 256], "but xsave writes them");
    assert_eq!(b[160 + 80..160 + 88], 1.25f64.to_le_bytes());
    assert_eq!(b[464..512], [0xaa; 48]);
    c.ram
        .write(gpa(area + 576 + 80), &9f64.to_le_bytes())
        .unwrap();
    c.ram.write(gpa(area + 512), &[7]).unwrap();
    set_lane(&mut c, 5, 0, 0.0);
    run(&mut c, xrstor).unwrap();
    assert_eq!((lane(&c, 5, 0), lane(&c, 5, 2)), (1.25, 9.0));
    // Initial configuration of what the header lacks.
    c.ram.write(gpa(area + 512), &[0]).unwrap();
    run(&mut c, xrstor).unwrap();
    assert_eq!(c.cpu.ymm, [engine_soft::cpu::Ymm::default(); 16]);
    let gp = fault(Exception::gp0());
    for (at, byte) in [(512, 8), (520, 1), (540 - 5, 1), (27, 1)] {
        let mut old = [0; 1];
        c.ram.read(gpa(area + at), &mut old).unwrap();
        c.ram.write(gpa(area + at), &[byte]).unwrap();
        assert_eq!(run(&mut c, xrstor), gp, "byte {at}");
        c.ram.write(gpa(area + at), &old).unwrap();
    }
    c.cpu.gpr[1] = area + 16;
    assert_eq!(run(&mut c, xrstor), gp, "alignment");
    c.cpu.gpr[1] = DATA;
    if std::is_x86_feature_detected!("xsavec") {
        set_lane(&mut c, 6, 3, 2.5);
        run(&mut c, xsavec).unwrap();
        set_lane(&mut c, 6, 3, 0.0);
        run(&mut c, xrstor).unwrap();
        assert_eq!(lane(&c, 6, 3), 2.5);
    }
    let image = native::save_xsave(&mut c);
    native::reset(&mut c);
    assert_eq!(lane(&c, 6, 3), 0.0);
    native::restore_xsave(&mut c, &image).unwrap();
    assert_eq!(lane(&c, 6, 3), 2.5);
    assert!(native::restore_xsave(&mut c, &image[..500]).is_err());
}
