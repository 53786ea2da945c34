//! Registers as KVM has them, and as `arch` has them.

use arch::{DescriptorTable, LapicState, MpState, Segment};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_dtable, kvm_lapic_state,
    kvm_mp_state, kvm_regs, kvm_segment,
};

/// Rights of a segment that cannot be used.
const UNUSABLE: u32 = 1 << 16;

/// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
pub(crate) fn general(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

pub(crate) fn to_general(gpr: &[u64; 16], rip: u64, rflags: u64) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = *gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

pub(crate) fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        rights: u32::from(s.type_ & 0xf)
            | bit(s.s, 4)
            | u32::from(s.dpl & 3) << 5
            | bit(s.present, 7)
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15)
            | if s.unusable != 0 { UNUSABLE } else { 0 },
    }
}

pub(crate) fn to_segment(s: &Segment) -> kvm_segment {
    let bit = |at: u32| (s.rights >> at & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.rights & 0xf) as u8,
        present: bit(7),
        dpl: (s.rights >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

pub(crate) fn table(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

pub(crate) fn to_table(t: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    }
}

/// A vCPU that waits for SIPI need not have had its INIT.
pub(crate) fn mp_state(s: kvm_mp_state) -> MpState {
    match s.mp_state {
        KVM_MP_STATE_HALTED => MpState::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
            MpState::WaitForSipi
        }
        _ => MpState::Running,
    }
}

pub(crate) fn to_mp_state(s: MpState) -> kvm_mp_state {
    kvm_mp_state {
        mp_state: match s {
            MpState::Running => KVM_MP_STATE_RUNNABLE,
            MpState::Halted => KVM_MP_STATE_HALTED,
            MpState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        },
    }
}

/// Offset / 16 of the version register, and its bit that says that EOIs need not
/// be broadcast: KVM's own, as long as it has no I/O APIC.
const VERSION: usize = 3;
const NO_BROADCAST: u32 = 1 << 24;
/// Offset / 16 of the error status register.
const ESR: usize = 0x28;
/// Offset / 16 of the first words of ISR, TMR and IRR.
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;

/// The register page's 64 words.
pub(crate) fn lapic_words(page: &kvm_lapic_state) -> Vec<u32> {
    let byte = |at: usize| page.regs.get(at).map_or(0, |b| *b as u8);
    let word = |at| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    let mut words: Vec<_> = (0..64).map(|n| word(n * 16)).collect();
    words[VERSION] &= !NO_BROADCAST;
    words
}

/// Puts words into the register page.
pub(crate) fn put_lapic_words(page: &mut kvm_lapic_state, words: &[u32]) {
    for (n, word) in words.iter().enumerate().take(64) {
        // The upper half is the software engine's.
        let word = if n == ESR { word & 0xff } else { *word };
        for (to, from) in page.regs.iter_mut().skip(n * 16).zip(word.to_le_bytes()) {
            *to = from as _;
        }
    }
}

/// Level-triggered vectors that are requested or in service.
pub(crate) fn level_vectors(lapic: &LapicState) -> impl Iterator<Item = u8> + '_ {
    (0..=255u8).filter(|v| {
        let (word, bit) = (usize::from(*v) / 32, u32::from(*v) % 32);
        let has = |first: usize| {
            lapic
                .regs
                .get(first + word)
                .is_some_and(|w| w >> bit & 1 != 0)
        };
        has(TMR) && (has(ISR) || has(IRR))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_come_back() {
        for rights in [0x9b, 0xa09b, 0xc093, 0x1_0000, 0x8b, 0xf0f3, 0x82] {
            let s = Segment {
                selector: 0x2b,
                base: 0x1234_5000,
                limit: 0xf_ffff,
                rights,
            };
            assert_eq!(segment(&to_segment(&s)), s);
        }
    }

    #[test]
    fn general_registers_come_back() {
        let gpr = std::array::from_fn(|n| n as u64 * 7 + 1);
        let regs = to_general(&gpr, 0x1000, 0x202);
        assert_eq!(regs.rbx, gpr[3]);
        assert_eq!(
            (general(&regs), regs.rip, regs.rflags),
            (gpr, 0x1000, 0x202)
        );
    }

    #[test]
    fn the_register_page_comes_back_and_knows_its_levels() {
        let mut words: Vec<u32> = (0..64).map(|n| n * 0x0101_0101).collect();
        words[ESR] = 0x0040_0020;
        let mut page = kvm_lapic_state::default();
        put_lapic_words(&mut page, &words);
        words[ESR] = 0x20;
        words[VERSION] &= !NO_BROADCAST;
        assert_eq!(lapic_words(&page), words);
        let mut lapic = LapicState {
            regs: vec![0; 64],
            ..LapicState::default()
        };
        lapic.regs[TMR + 1] = 1 << 9 | 1 << 10;
        lapic.regs[IRR + 1] = 1 << 9;
        lapic.regs[ISR + 2] = 1 << 3;
        assert_eq!(level_vectors(&lapic).collect::<Vec<_>>(), [41]);
    }
}
