//! What the translator does with an instruction, and what that instruction
//! does to the arithmetic flags.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::translate::{emit_string, lower};

/// The six arithmetic flags, as iced numbers them.
pub(crate) const ALL_FLAGS: u32 = 0x3f;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// No effect worth code: nop, endbr, prefetch.
    Skip,
    /// Registers only: copied.
    Plain,
    /// One memory operand: checked, then copied with the operand replaced.
    Memory,
    /// `push` of 64 bits.
    Push,
    /// `pop` of 64 bits into a register.
    Pop,
    /// `leave`.
    Leave,
    /// Conditional direct branch, `loop`, `jrcxz`.
    Branch,
    /// Direct jump.
    Jump,
    /// Direct call.
    Call,
    /// Indirect jump.
    JumpIndirect,
    /// Indirect call.
    CallIndirect,
    /// Near return.
    Return,
    /// `bt`, `bts`, `btr`, `btc` of memory with a bit offset in a register.
    BitString,
    /// Interpreted (unless `system` has code for it); the next instruction
    /// follows in the block.
    Emulate,
    /// Interpreted; ends the block.
    EmulateEnd,
}

/// Decides how to translate an instruction as it was decoded.
pub(crate) fn classify(i: &Instruction) -> Class {
    let class = class_of(i);
    if !lower::is_32(i) || !lower::is_odd(i) {
        return class;
    }
    match class {
        Class::Skip => class,
        Class::JumpIndirect | Class::CallIndirect | Class::EmulateEnd => Class::EmulateEnd,
        _ => Class::Emulate,
    }
}

fn class_of(i: &Instruction) -> Class {
    use FlowControl as F;
    match i.flow_control() {
        F::Next => {}
        F::UnconditionalBranch => {
            return match i.code() {
                Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Class::Jump,
                Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => Class::Jump,
                _ => Class::EmulateEnd,
            };
        }
        F::ConditionalBranch => {
            let near = match i.op0_kind() {
                OpKind::NearBranch64 => true,
                OpKind::NearBranch32 => i.is_jcc_short_or_near() || counts_ecx(i.code()),
                _ => false,
            };
            return if near {
                Class::Branch
            } else {
                Class::EmulateEnd
            };
        }
        F::Call => {
            return match i.code() {
                Code::Call_rel32_64 | Code::Call_rel32_32 => Class::Call,
                _ => Class::EmulateEnd,
            };
        }
        F::IndirectBranch => {
            return match i.code() {
                Code::Jmp_rm64 | Code::Jmp_rm32 => indirect(i, Class::JumpIndirect),
                _ => Class::EmulateEnd,
            };
        }
        F::IndirectCall => {
            return match i.code() {
                Code::Call_rm64 | Code::Call_rm32 => indirect(i, Class::CallIndirect),
                _ => Class::EmulateEnd,
            };
        }
        F::Return => {
            return match i.code() {
                Code::Retnq | Code::Retnq_imm16 => Class::Return,
                Code::Retnd | Code::Retnd_imm16 => Class::Return,
                _ => Class::EmulateEnd,
            };
        }
        _ => return Class::EmulateEnd,
    }
    if i.is_stack_instruction() {
        return stack(i);
    }
    data(i)
}

/// `loop` and its like, and `jecxz`, with a counter of 32 bits.
fn counts_ecx(c: Code) -> bool {
    matches!(
        c,
        Code::Loop_rel8_32_ECX
            | Code::Loope_rel8_32_ECX
            | Code::Loopne_rel8_32_ECX
            | Code::Jecxz_rel8_32
    )
}

fn indirect(i: &Instruction, class: Class) -> Class {
    let stack = matches!(i.op0_register(), Register::RSP | Register::ESP);
    if i.op0_kind() == OpKind::Register && stack {
        Class::EmulateEnd
    } else {
        class
    }
}

fn stack(i: &Instruction) -> Class {
    match i.code() {
        Code::Push_r64 | Code::Push_rm64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Class::Push,
        Code::Push_r32 | Code::Push_rm32 | Code::Pushd_imm8 | Code::Pushd_imm32 => Class::Push,
        Code::Pop_r64 | Code::Pop_r32 => Class::Pop,
        Code::Pop_rm64 | Code::Pop_rm32 if i.op0_kind() == OpKind::Register => Class::Pop,
        Code::Leaveq | Code::Leaved => Class::Leave,
        Code::Popfq | Code::Popfw | Code::Popfd => Class::EmulateEnd,
        // What 32-bit code loads may not be flat.
        _ if lower::is_32(i) && i.op0_register().is_segment_register() => Class::EmulateEnd,
        _ => Class::Emulate,
    }
}

fn data(i: &Instruction) -> Class {
    let m = i.mnemonic();
    match m {
        Mnemonic::Nop
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetchw => return Class::Skip,
        _ => {}
    }
    let known = match i.encoding() {
        EncodingKind::Legacy => legacy_known(i),
        EncodingKind::VEX => vex_known(i),
        _ => false,
    };
    if !known {
        return if ends_block(m) {
            Class::EmulateEnd
        } else {
            Class::Emulate
        };
    }
    if reads_selector(i) {
        return Class::Emulate;
    }
    let n = i.op_count();
    let mut memory = false;
    for k in 0..n {
        match i.op_kind(k) {
            OpKind::Register => {
                let r = i.op_register(k);
                if r.is_segment_register() || r.is_cr() || r.is_dr() {
                    return Class::EmulateEnd;
                }
            }
            OpKind::Memory => memory = m != Mnemonic::Lea,
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {}
            // Implicit string operands.
            _ => return Class::Emulate,
        }
    }
    if !memory {
        return Class::Plain;
    }
    let size = i.memory_size().size();
    let bit_string = matches!(
        m,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && i.op_kind(1) == OpKind::Register;
    if bit_string {
        Class::BitString
    } else if size == 0 || size > 32 {
        Class::Emulate
    } else {
        Class::Memory
    }
}

/// Whether this is a `mov` from a segment register.
pub(crate) fn reads_selector(i: &Instruction) -> bool {
    matches!(
        i.code(),
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg
    )
}

/// Whether an interpreted instruction may change the mode, the translation of
/// addresses or the interrupt flag, so that the block must end after it.
fn ends_block(m: Mnemonic) -> bool {
    use Mnemonic as M;
    !matches!(
        m,
        M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsd
            | M::Cmpsq
            | M::Rdtsc
            | M::Rdtscp
            | M::Cpuid
            | M::Cld
            | M::Std
            | M::Cli
            | M::Sti
            | M::In
            | M::Out
            | M::Rdmsr
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Swapgs
            | M::Fxsave
            | M::Fxsave64
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xgetbv
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Ldmxcsr
            | M::Vldmxcsr
            | M::Pause
            | M::Verw
    )
}

/// Legacy-encoded instructions that may run on the host as they are.
fn legacy_known(i: &Instruction) -> bool {
    use Mnemonic as M;
    let integer = matches!(
        i.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movbe
            | M::Lea
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Not
            | M::Neg
            | M::Inc
            | M::Dec
            | M::Cmp
            | M::Test
            | M::Mul
            | M::Imul
            | M::Div
            | M::Idiv
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Sal
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Bswap
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Lahf
            | M::Sahf
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Crc32
            | M::Adcx
            | M::Adox
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Stmxcsr
    );
    integer || i.is_jcc_short_or_near() || is_setcc_or_cmov(i.mnemonic()) || vector_known(i)
}

fn is_setcc_or_cmov(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
    )
}

/// x87, MMX and SSE instructions that only touch their operands and the
/// vector or x87 registers.
fn vector_known(i: &Instruction) -> bool {
    use CpuidFeature as C;
    use Mnemonic as M;
    let family = i.cpuid_features().iter().all(|f| {
        matches!(
            f,
            C::FPU
                | C::FPU287
                | C::FPU387
                | C::MMX
                | C::SSE
                | C::SSE2
                | C::SSE3
                | C::SSSE3
                | C::SSE4_1
                | C::SSE4_2
                | C::AES
                | C::PCLMULQDQ
                | C::SHA
        )
    });
    let whole_state = matches!(
        i.mnemonic(),
        M::Fnstenv
            | M::Fstenv
            | M::Fldenv
            | M::Fnsave
            | M::Fsave
            | M::Frstor
            | M::Fxsave
            | M::Fxrstor
            // AMD hosts take a bit that guests are told not to have.
            | M::Ldmxcsr
            | M::Maskmovdqu
            | M::Maskmovq
            | M::Monitor
            | M::Mwait
            | M::Clflush
    );
    family && !whole_state
}

fn vex_known(i: &Instruction) -> bool {
    use CpuidFeature as C;
    use Mnemonic as M;
    let family = i.cpuid_features().iter().all(|f| {
        matches!(
            f,
            C::AVX | C::AVX2 | C::FMA | C::F16C | C::BMI1 | C::BMI2 | C::AES | C::PCLMULQDQ
        )
    });
    let masked = matches!(
        i.mnemonic(),
        M::Vldmxcsr
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Vmaskmovdqu
            | M::Vgatherdps
            | M::Vgatherdpd
            | M::Vgatherqps
            | M::Vgatherqpd
            | M::Vpgatherdd
            | M::Vpgatherdq
            | M::Vpgatherqd
            | M::Vpgatherqq
    );
    family && !masked
}

/// Arithmetic flags that the instruction reads and that it surely overwrites.
pub(crate) fn flags(i: &Instruction, class: Class) -> (u32, u32) {
    use Mnemonic as M;
    if matches!(class, Class::Emulate | Class::EmulateEnd) {
        let transparent = matches!(
            i.mnemonic(),
            M::Cli
                | M::Sti
                | M::Cld
                | M::Swapgs
                | M::Stac
                | M::Clac
                | M::Rdtsc
                | M::Rdtscp
                | M::Pause
        ) || emit_string::is_run(i)
            || reads_selector(i);
        return (if transparent { 0 } else { ALL_FLAGS }, 0);
    }
    let read = i.rflags_read() & ALL_FLAGS;
    let mut killed = i.rflags_modified() & ALL_FLAGS;
    if is_shift(i.mnemonic()) && i.encoding() == EncodingKind::Legacy {
        let last = i.op_count() - 1;
        // A count of zero leaves the flags alone.
        let counted = i.op_kind(last) == OpKind::Immediate8 && i.immediate8() & 31 != 0;
        if !counted {
            killed = 0;
        }
    }
    (read, killed)
}

/// Shifts and rotates that may have a count of zero.
pub(crate) fn is_shift(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}
