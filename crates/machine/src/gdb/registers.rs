//! A vCPU's state as GDB's registers, and back.

use arch::CpuState;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

/// GDB's number of each register of [`CpuState::gpr`]'s encoding order.
const GDB_ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
/// Index in [`CpuState::segments`] of cs, ss, ds, es, fs, gs.
const SEGMENTS: [usize; 6] = [1, 2, 3, 0, 4, 5];

const ST: usize = 32;
const XMM: usize = 160;
const MXCSR: usize = 24;

/// What GDB shows.
pub(super) fn to_gdb(state: &CpuState) -> X86_64CoreRegs {
    let mut r = X86_64CoreRegs::default();
    for (to, from) in r.regs.iter_mut().zip(GDB_ORDER) {
        *to = state.gpr[from];
    }
    r.rip = state.rip;
    r.eflags = state.rflags as u32;
    let selector = |n: usize| u32::from(state.segments[SEGMENTS[n]].selector);
    r.segments.cs = selector(0);
    r.segments.ss = selector(1);
    r.segments.ds = selector(2);
    r.segments.es = selector(3);
    r.segments.fs = selector(4);
    r.segments.gs = selector(5);
    let x = &state.xsave;
    let word = |at: usize| {
        x.get(at..at + 2)
            .map_or(0, |b| u32::from(b[0]) | u32::from(b[1]) << 8)
    };
    r.fpu.fctrl = word(0);
    r.fpu.fstat = word(2);
    r.fpu.ftag = full_tag(word(4) as u8);
    r.fpu.fop = word(6);
    for (n, st) in r.st.iter_mut().enumerate() {
        if let Some(bytes) = x.get(ST + 16 * n..ST + 16 * n + 10) {
            st.copy_from_slice(bytes);
        }
    }
    for (n, xmm) in r.xmm.iter_mut().enumerate() {
        if let Some(bytes) = x.get(XMM + 16 * n..).and_then(|b| b.first_chunk()) {
            *xmm = u128::from_le_bytes(*bytes);
        }
    }
    r.mxcsr = x
        .get(MXCSR..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u32::from_le_bytes(*b));
    r
}

/// Changes what GDB may change: general registers, rip, flags and the vector
/// registers' low halves. Segments keep their values: their hidden parts are
/// not GDB's to know.
pub(super) fn from_gdb(r: &X86_64CoreRegs, state: &mut CpuState) {
    for (from, to) in r.regs.iter().zip(GDB_ORDER) {
        state.gpr[to] = *from;
    }
    state.rip = r.rip;
    state.rflags = state.rflags & !0xffff_ffff | u64::from(r.eflags);
    let x = &mut state.xsave;
    for (n, st) in r.st.iter().enumerate() {
        if let Some(bytes) = x.get_mut(ST + 16 * n..ST + 16 * n + 10) {
            bytes.copy_from_slice(st);
        }
    }
    for (n, xmm) in r.xmm.iter().enumerate() {
        if let Some(bytes) = x.get_mut(XMM + 16 * n..XMM + 16 * n + 16) {
            bytes.copy_from_slice(&xmm.to_le_bytes());
        }
    }
    if let Some(bytes) = x.get_mut(MXCSR..MXCSR + 4) {
        bytes.copy_from_slice(&r.mxcsr.to_le_bytes());
    }
    // What was written is in use now (XSTATE_BV: x87 and SSE).
    if let Some(used) = x.get_mut(512) {
        *used |= 3;
    }
}

/// The tag word of FSAVE, two bits a register, from FXSAVE's one bit: valid or
/// empty.
fn full_tag(short: u8) -> u32 {
    (0..8).fold(0, |tag, n| {
        tag | if short >> n & 1 != 0 { 0 } else { 3 << (2 * n) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_the_way_to_gdb_and_back() {
        let mut state = CpuState::reset(true);
        for (n, r) in (1u64..).zip(state.gpr.iter_mut()) {
            *r = n << 60 | n;
        }
        state.rip = 0xffff_ffff_8100_0000;
        for (n, b) in state.xsave[..416].iter_mut().enumerate() {
            *b = (n % 251) as u8;
        }
        let seen = to_gdb(&state);
        assert_eq!(seen.regs[1], state.gpr[3], "rbx is GDB's second");
        assert_eq!(seen.regs[7], state.gpr[4], "rsp is GDB's eighth");
        assert_eq!(seen.segments.cs, 0xf000);
        let mut back = CpuState {
            xsave: vec![0; 832],
            ..CpuState::default()
        };
        from_gdb(&seen, &mut back);
        assert_eq!((back.gpr, back.rip), (state.gpr, state.rip));
        assert_eq!(back.xsave[160..416], state.xsave[160..416]);
        assert_eq!(back.xsave[512] & 3, 3);
    }

    #[test]
    fn a_short_vector_state_is_no_fault() {
        let mut state = CpuState::default();
        let seen = to_gdb(&state);
        from_gdb(&seen, &mut state);
        assert_eq!(state, CpuState::default());
    }
}
