//! What of two states must be equal.

use arch::{CpuState, Segment, msr};

/// Arithmetic flags.
pub const ALL_FLAGS: u64 = 0x8d5;
const UNUSABLE: u32 = 1 << 16;
const PRESENT: u32 = 1 << 7;

/// The differences, one line each; `undefined`: flags that the manual leaves
/// undefined.
pub fn differences(a: &CpuState, b: &CpuState, undefined: u64) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{what}: {a} / {b}"));
        }
    };
    for n in 0..16 {
        check(&format!("gpr {n}"), hex(a.gpr[n]), hex(b.gpr[n]));
    }
    check("rip", hex(a.rip), hex(b.rip));
    check(
        "rflags",
        hex(a.rflags & !undefined),
        hex(b.rflags & !undefined),
    );
    for (n, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        check(name, segment(&a.segments[n]), segment(&b.segments[n]));
    }
    check("ldtr", segment(&a.ldtr), segment(&b.ldtr));
    check("tr", segment(&a.tr), segment(&b.tr));
    check("gdtr", format!("{:x?}", a.gdtr), format!("{:x?}", b.gdtr));
    check("idtr", format!("{:x?}", a.idtr), format!("{:x?}", b.idtr));
    for (name, a, b) in [
        ("cr0", a.cr0, b.cr0),
        ("cr2", a.cr2, b.cr2),
        ("cr3", a.cr3, b.cr3),
        ("cr4", a.cr4, b.cr4),
        ("cr8", a.cr8, b.cr8),
        ("xcr0", a.xcr0, b.xcr0),
        ("dr6", a.dr[6], b.dr[6]),
        ("dr7", a.dr[7], b.dr[7]),
        ("apic base", a.lapic.base, b.lapic.base),
    ] {
        check(name, hex(a), hex(b));
    }
    check(
        "dr",
        format!("{:x?}", &a.dr[..4]),
        format!("{:x?}", &b.dr[..4]),
    );
    check("fpu", fpu(&a.xsave), fpu(&b.xsave));
    for (index, value) in &a.msrs {
        // Those that both have.
        if let Some((_, other)) = b.msrs.iter().find(|(i, _)| i == index) {
            check(&format!("msr {index:#x}"), hex(*value), hex(*other));
        }
    }
    for index in [msr::EFER, msr::LSTAR, msr::PAT] {
        let has = |s: &CpuState| s.msrs.iter().any(|(i, _)| *i == index).to_string();
        check("has msr", has(a), has(b));
    }
    // ID, version, TPR, LDR, DFR, SVR, ISR, TMR, IRR, LVT but for the timer's
    // counts.
    for n in [2, 3, 8, 0xd, 0xe, 0xf]
        .into_iter()
        .chain(0x10..0x28)
        .chain(0x32..0x38)
    {
        let word = |s: &CpuState| format!("{:x?}", s.lapic.regs.get(n));
        check(&format!("apic {n:#x}"), word(a), word(b));
    }
    let rest = |s: &CpuState| {
        format!(
            "{:?} shadow {} nmi {} {} {:?}",
            s.mp_state, s.interrupt_shadow, s.nmi_blocked, s.nmi_pending, s.injected
        )
    };
    check("events", rest(a), rest(b));
    found
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// What cannot be used is what it is; else everything counts.
fn segment(s: &Segment) -> String {
    if s.rights & UNUSABLE != 0 || s.rights & PRESENT == 0 {
        return format!("{:#x} unusable", s.selector);
    }
    format!(
        "{:#x} {:#x} {:#x} {:#x}",
        s.selector, s.base, s.limit, s.rights
    )
}

/// x87 control, status, tags and registers, MXCSR, and vector registers, with
/// parts in their initial state filled in. Not: the last x87 instruction's
/// address, which CPUs keep differently.
fn fpu(image: &[u8]) -> String {
    let has = |bit: u8| image[512] >> bit & 1 != 0;
    let mut x87 = [image[0..6].to_vec(), image[32..160].to_vec()].concat();
    if !has(0) {
        x87.fill(0);
        x87[..2].copy_from_slice(&[0x7f, 3]);
    }
    let mut xmm = image[160..416].to_vec();
    if !has(1) {
        xmm.fill(0);
    }
    let mut high = image.get(576..832).map_or(vec![0; 256], <[u8]>::to_vec);
    if !has(2) {
        high.fill(0);
    }
    format!("{:02x?} {x87:02x?} {xmm:02x?} {high:02x?}", &image[24..28])
}
