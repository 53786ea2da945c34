//! What an instruction form needs: the checks before it, its memory operand,
//! and how it is carried out. Nothing that is not recognised here ever
//! reaches the host CPU.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::features::Features;

/// Which control register bits stand before the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// x87 (CR0.EM or TS: #NM).
    X87,
    /// `fwait` (CR0.MP and TS: #NM).
    Wait,
    /// MMX (CR0.EM: #UD; TS: #NM).
    Mmx,
    /// Legacy SSE (as MMX, and CR4.OSFXSR).
    Sse,
    /// VEX (CR4.OSXSAVE, XCR0, TS; protected mode).
    Vex,
    /// XSAVE family (CR4.OSXSAVE, TS).
    Xsave,
    /// FXSAVE family (CR0.EM: #UD; TS: #NM).
    Fxsave,
    /// General registers only: no check.
    Free,
}

/// How the instruction is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The host runs it: offset of the stub.
    Stub(u32),
    Nothing,
    Fence,
    Ldmxcsr,
    Stmxcsr,
    Fxsave,
    Fxrstor,
    Xsave {
        optimize: bool,
        compact: bool,
    },
    Xrstor,
    ZeroUpper,
    ZeroAll,
    Gather(Gather),
    /// `vmaskmov*`, `vpmaskmov*` with elements of this many bytes; the load
    /// goes on in a stub.
    MaskedLoad {
        element: u8,
        stub: u32,
    },
    MaskedStore {
        element: u8,
    },
    /// `maskmovdqu`, `maskmovq`.
    ByteStore,
}

/// Shape of a gather, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gather {
    pub(super) index: u8,
    pub(super) element: u8,
    pub(super) count: u8,
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mem {
    pub(super) op: u8,
    pub(super) size: u16,
    /// Required alignment, a power of two.
    pub(super) align: u16,
    pub(super) read: bool,
    pub(super) write: bool,
}

/// Everything known of one instruction form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) action: Action,
    pub(super) class: Class,
    pub(super) mem: Option<Mem>,
    /// Uses x87 or MMX registers.
    pub(super) x87: bool,
    /// Raises a pending x87 exception first.
    pub(super) waits: bool,
    /// Depends on MXCSR and may raise #XM.
    pub(super) mxcsr: bool,
    /// Arithmetic flags that it writes.
    pub(super) flags: u32,
    /// Size of an x87 environment that it stores at its memory operand.
    pub(super) environment: u8,
}

/// Identity of a form: everything but memory address, prefixes and position.
pub(super) fn key(i: &Instruction) -> u64 {
    let mut k = i.code() as u64;
    let mut imm = 0;
    for op in 0..4 {
        let mut r = 0;
        if op < i.op_count() {
            match i.op_kind(op) {
                OpKind::Register => r = i.op_register(op) as u64,
                OpKind::Immediate8 => imm = u64::from(i.immediate8()),
                _ => {}
            }
        }
        k = k << 9 | r & 0x1ff;
    }
    k << 8 | imm
}

/// Recognises an instruction that the guest may use; `Action::Stub(0)` and
/// `MaskedLoad` still need their stub.
pub(super) fn recognise(
    i: &Instruction,
    features: &Features,
    factory: &mut InstructionInfoFactory,
) -> Option<Form> {
    if i.mnemonic() == Mnemonic::Wait {
        return features.has(CpuidFeature::FPU).then_some(Form {
            action: Action::Nothing,
            class: Class::Wait,
            mem: None,
            x87: true,
            waits: true,
            mxcsr: false,
            flags: 0,
            environment: 0,
        });
    }
    let needs = i.cpuid_features();
    if needs.is_empty()
        || !features.has_all(needs)
        || needs == [CpuidFeature::CMOV]
        || !matches!(i.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || i.flow_control() != FlowControl::Next
        || i.is_privileged()
        || i.is_stack_instruction()
        || i.op_count() > 4
    {
        return None;
    }
    let name = format!("{:?}", i.mnemonic());
    let (class, x87) = classify(i, &name, factory)?;
    let action = action(i);
    let mem = match memory(i, class) {
        Ok(m) => m,
        Err(()) => return None,
    };
    let environment = match i.code() {
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => 14,
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => 28,
        _ => 0,
    };
    Some(Form {
        action,
        class,
        mem,
        x87,
        waits: x87 && !no_wait(i),
        mxcsr: matches!(class, Class::Sse | Class::Vex) && depends_on_mxcsr(&name),
        flags: host_flags(i),
        environment,
    })
}

/// The arithmetic flags that the instruction writes, as RFLAGS bits.
fn host_flags(i: &Instruction) -> u32 {
    use iced_x86::RflagsBits as R;
    let m = i.rflags_modified();
    [
        (R::CF, 1),
        (R::PF, 4),
        (R::AF, 0x10),
        (R::ZF, 0x40),
        (R::SF, 0x80),
        (R::OF, 0x800),
    ]
    .iter()
    .filter(|(iced, _)| m & iced != 0)
    .fold(0, |all, (_, bit)| all | bit)
}

fn classify(
    i: &Instruction,
    name: &str,
    factory: &mut InstructionInfoFactory,
) -> Option<(Class, bool)> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => {
            return Some((Class::Fxsave, false));
        }
        M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64 => return Some((Class::Xsave, false)),
        M::Ldmxcsr | M::Stmxcsr => return Some((Class::Sse, false)),
        M::Emms => return Some((Class::Mmx, true)),
        // SDM vol. 2A, CVTPI2PD: no transition to MMX with a memory operand.
        M::Cvtpi2pd if i.op1_kind() == OpKind::Memory => return Some((Class::Sse, false)),
        // With a memory operand they name no xmm register.
        M::Cvtpi2ps | M::Cvtpi2pd | M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => {
            return Some((Class::Sse, true));
        }
        M::Cvtss2si | M::Cvttss2si | M::Cvtsd2si | M::Cvttsd2si => {
            return Some((Class::Sse, false));
        }
        M::Movnti
        | M::Crc32
        | M::Sfence
        | M::Lfence
        | M::Mfence
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2 => return Some((Class::Free, false)),
        _ => {}
    }
    if name.starts_with('F') {
        return Some((Class::X87, true));
    }
    if i.encoding() == EncodingKind::VEX {
        return Some((Class::Vex, false));
    }
    let (mut mm, mut xmm) = (false, false);
    for u in factory.info(i).used_registers() {
        mm |= u.register().is_mm();
        xmm |= u.register().is_vector_register();
    }
    match (xmm, mm) {
        (true, x87) => Some((Class::Sse, x87)),
        (false, true) => Some((Class::Mmx, true)),
        (false, false) => None,
    }
}

fn no_wait(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Fninit
            | M::Fnclex
            | M::Fnstsw
            | M::Fnstcw
            | M::Fnstenv
            | M::Fnsave
            | M::Fneni
            | M::Fndisi
            | M::Fnsetpm
    )
}

/// Integer and move instructions neither read nor change MXCSR.
fn depends_on_mxcsr(name: &str) -> bool {
    ![
        "P", "Vp", "Mov", "Vmov", "Aes", "Vaes", "Sha", "Gf2", "Vgf2",
    ]
    .iter()
    .any(|p| name.starts_with(p))
}

fn action(i: &Instruction) -> Action {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => Action::Nothing,
        M::Sfence | M::Lfence | M::Mfence => Action::Fence,
        M::Ldmxcsr | M::Vldmxcsr => Action::Ldmxcsr,
        M::Stmxcsr | M::Vstmxcsr => Action::Stmxcsr,
        M::Fxsave | M::Fxsave64 => Action::Fxsave,
        M::Fxrstor | M::Fxrstor64 => Action::Fxrstor,
        M::Xsave | M::Xsave64 => xsave(false, false),
        M::Xsaveopt | M::Xsaveopt64 => xsave(true, false),
        M::Xsavec | M::Xsavec64 => xsave(true, true),
        M::Xrstor | M::Xrstor64 => Action::Xrstor,
        M::Vzeroupper => Action::ZeroUpper,
        M::Vzeroall => Action::ZeroAll,
        M::Vpgatherdd | M::Vgatherdps => gather(i, 4, 4),
        M::Vpgatherdq | M::Vgatherdpd => gather(i, 4, 8),
        M::Vpgatherqd | M::Vgatherqps => gather(i, 8, 4),
        M::Vpgatherqq | M::Vgatherqpd => gather(i, 8, 8),
        M::Vpmaskmovd | M::Vmaskmovps => masked(i, 4),
        M::Vpmaskmovq | M::Vmaskmovpd => masked(i, 8),
        M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq => Action::ByteStore,
        _ => Action::Stub(0),
    }
}

fn xsave(optimize: bool, compact: bool) -> Action {
    Action::Xsave { optimize, compact }
}

fn masked(i: &Instruction, element: u8) -> Action {
    if i.op_kind(0) == OpKind::Memory {
        Action::MaskedStore { element }
    } else {
        Action::MaskedLoad { element, stub: 0 }
    }
}

fn gather(i: &Instruction, index: u8, element: u8) -> Action {
    let bytes = |r: Register| if r.is_ymm() { 32 } else { 16 };
    let by_index = bytes(i.memory_index()) / index;
    let by_element = bytes(i.op_register(0)) / element;
    Action::Gather(Gather {
        index,
        element,
        count: by_index.min(by_element),
    })
}

/// The memory operand; `Err` if it is of a kind that is not known.
fn memory(i: &Instruction, class: Class) -> Result<Option<Mem>, ()> {
    let Some(op) = (0..i.op_count()).find(|op| i.op_kind(*op) == OpKind::Memory) else {
        return Ok(None);
    };
    let size = i.memory_size().size();
    let mut factory = InstructionInfoFactory::new();
    let access = factory.info(i).op_access(op);
    let (read, write) = match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write | OpAccess::CondWrite => (false, true),
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::NoMemAccess => (false, false),
        OpAccess::None => return Err(()),
    };
    if action(i) == Action::Stub(0) && (size == 0 || size > super::BOUNCE_SIZE) {
        return Err(());
    }
    Ok(Some(Mem {
        op: op as u8,
        size: size as u16,
        align: alignment(i, class, size) as u16,
        read,
        write,
    }))
}

fn alignment(i: &Instruction, class: Class, size: usize) -> usize {
    use Mnemonic as M;
    let aligned = match class {
        // The SHA instructions are aligned on Intel and not on AMD: allowed.
        Class::Sse => {
            size == 16
                && !i.cpuid_features().contains(&CpuidFeature::SHA)
                && !matches!(
                    i.mnemonic(),
                    M::Movups
                        | M::Movupd
                        | M::Movdqu
                        | M::Lddqu
                        | M::Pcmpestri
                        | M::Pcmpestri64
                        | M::Pcmpestrm
                        | M::Pcmpestrm64
                        | M::Pcmpistri
                        | M::Pcmpistrm
                )
        }
        Class::Vex => matches!(
            i.mnemonic(),
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdq
                | M::Vmovntdqa
        ),
        _ => false,
    };
    if aligned { size.max(1) } else { 1 }
}
