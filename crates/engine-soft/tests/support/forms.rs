//! Which instruction forms the corpus has.

use iced_x86::{
    Code, CpuidFeature as F, EncodingKind, FlowControl, Instruction, Mnemonic as M,
    OpCodeOperandKind as K,
};

use super::Mode;

/// Extensions in the corpus; those that the host lacks are left out.
const FEATURES: [F; 36] = [
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::LZCNT,
    F::MOVBE,
    F::BMI1,
    F::BMI2,
    F::ADX,
    F::AES,
    F::PCLMULQDQ,
    F::SHA,
    F::AVX,
    F::AVX2,
    F::FMA,
    F::F16C,
    F::CLFSH,
    F::PREFETCHW,
];

fn host_has(f: F) -> bool {
    use std::is_x86_feature_detected as has;
    match f {
        F::SSE3 => has!("sse3"),
        F::SSSE3 => has!("ssse3"),
        F::SSE4_1 => has!("sse4.1"),
        F::SSE4_2 => has!("sse4.2"),
        F::POPCNT => has!("popcnt"),
        F::LZCNT => has!("lzcnt"),
        F::MOVBE => has!("movbe"),
        F::BMI1 => has!("bmi1"),
        F::BMI2 => has!("bmi2"),
        F::ADX => has!("adx"),
        F::AES => has!("aes"),
        F::PCLMULQDQ => has!("pclmulqdq"),
        F::SHA => has!("sha"),
        F::AVX => has!("avx"),
        F::AVX2 => has!("avx2"),
        F::FMA => has!("fma"),
        F::F16C => has!("f16c"),
        _ => true,
    }
}

/// Whether a form can be compared with the host running it in user space: no
/// system instruction, nothing whose result is not a function of the state.
fn comparable(code: Code, bits: u32) -> bool {
    let o = code.op_code();
    let i = {
        let mut i = Instruction::new();
        i.set_code(code);
        i
    };
    let features = i.cpuid_features();
    let known = !features.is_empty()
        && features
            .iter()
            .all(|f| FEATURES.contains(f) && host_has(*f));
    let flow = matches!(
        i.flow_control(),
        FlowControl::Next
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::IndirectCall
    );
    known
        && flow
        && o.is_instruction()
        && !o.fwait()
        && o.is_available_in_mode(bits)
        && o.decoder_option() == 0
        && matches!(o.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !o.must_be_cpl0()
        && !i.is_privileged()
        && !is_system(code)
        && !(bits == 64
            && o.op_kinds()
                .iter()
                .any(|k| matches!(k, K::br16_1 | K::br16_2)))
        && o.op_kinds().iter().all(|k| !is_system_operand(*k))
}

fn is_system_operand(k: K) -> bool {
    matches!(
        k,
        K::farbr2_2
            | K::farbr4_2
            | K::seg_reg
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::mem_mpx
            | K::mem_mib
            | K::sibmem
            | K::brdisp_2
            | K::brdisp_4
    )
}

fn is_system(code: Code) -> bool {
    let mut i = Instruction::new();
    i.set_code(code);
    matches!(
        i.mnemonic(),
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
            | M::Cli | M::Sti | M::Hlt | M::Int1 | M::Int3 | M::Int | M::Into | M::Iret
            | M::Iretd | M::Iretq | M::Syscall | M::Sysenter | M::Sysexit | M::Sysret
            | M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Lar | M::Lsl | M::Verr | M::Verw
            | M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lgdt | M::Lidt | M::Lldt
            | M::Ltr | M::Lmsw | M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss | M::Arpl
            | M::Retf | M::Xgetbv | M::Xsetbv | M::Loadall | M::Umov | M::Ud0 | M::Ud1 | M::Ud2
            // Images of their own; their tests are elsewhere.
            | M::Xsave | M::Xsave64 | M::Xrstor | M::Xrstor64 | M::Fxsave | M::Fxsave64
            | M::Fxrstor | M::Fxrstor64
            // Undefined results.
            | M::Reservednop
    ) || matches!(
        code,
        Code::Bswap_r16
        // Reads 16 bits on Intel, 32 on AMD.
        | Code::Movsxd_r16_rm16
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            // 16-bit near branches leave the code page.
            | Code::Jmp_rm16
            | Code::Call_rm16
            | Code::Retnw
            | Code::Retnw_imm16
            | Code::Jmp_rel16
            | Code::Call_rel16
    )
}

/// All forms of a mode that are compared with the host.
pub fn forms(mode: Mode) -> Vec<Code> {
    let bits = if mode == Mode::Long { 64 } else { 32 };
    Code::values().filter(|c| comparable(*c, bits)).collect()
}
