//! One instruction with everything it starts from, what it ends in, and the
//! comparison of two ends.

use arch::Exception;
use iced_x86::{Instruction, RflagsBits};

use super::{DATA_SIZE, Mode};

/// RFLAGS bits that are compared: arithmetic, direction.
pub const COMPARED_FLAGS: u64 = 0x8d5 | 0x400;

/// One instruction, or a few that follow each other, and the state before.
#[derive(Clone)]
pub struct Case {
    /// `Mode::Long` or `Mode::Compat`, at CPL 3.
    pub mode: Mode,
    /// The code at `CODE`.
    pub bytes: Vec<u8>,
    /// The same, decoded there.
    pub instructions: Vec<Instruction>,
    /// Arithmetic flags that are undefined after the last one.
    pub undefined: u64,
    /// General registers.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// x87, SSE and AVX state: XSAVE image, standard format.
    pub xsave: Box<[u8; 832]>,
    /// Contents of the operand pages at `DATA`.
    pub memory: Vec<u8>,
}

impl Case {
    /// The code as text.
    pub fn text(&self) -> String {
        let all: Vec<_> = self.instructions.iter().map(|i| i.to_string()).collect();
        format!("{:02x?} `{}`", self.bytes, all.join("; "))
    }

    fn ever_undefined(&self) -> u64 {
        self.instructions
            .iter()
            .fold(0, |all, i| all | undefined_flags(i))
    }
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Completed; the next instruction is here.
    Next(u64),
    /// Faulted.
    Fault(Exception),
    /// The executor cannot tell (not compared).
    Unknown,
}

/// State after an instruction.
#[derive(Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Instruction pointer then: of the faulting instruction, or the next.
    pub rip: u64,
    /// General registers.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// XSAVE image.
    pub xsave: Box<[u8; 832]>,
    /// Operand pages.
    pub memory: Vec<u8>,
}

/// Something that executes instructions: the host CPU, the interpreter, the
/// translator.
pub trait Executor {
    /// Name in reports.
    fn name(&self) -> &'static str;
    /// Whether fault frames are exact to the last detail: RFLAGS even where the
    /// instruction, when it is tried again, overwrites them before anyone can
    /// read them; and which of two faults comes first.
    fn is_exact(&self) -> bool {
        true
    }
    /// Whether it can run cases of this mode.
    fn supports(&self, mode: Mode) -> bool;
    /// Executes one case.
    fn run(&mut self, case: &Case) -> Outcome;
}

/// RFLAGS bits of a set in iced's numbering.
pub fn rflags_of(iced: u32) -> u64 {
    [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, 0x800),
    ]
    .iter()
    .filter(|(bit, _)| iced & bit != 0)
    .fold(0, |all, (_, bit)| all | bit)
}

/// Arithmetic flags that the manual leaves undefined after an instruction.
pub fn undefined_flags(i: &Instruction) -> u64 {
    rflags_of(i.rflags_undefined())
}

/// Arithmetic flags that the instructions from `rip` on overwrite before they
/// read them.
fn dead_flags(case: &Case, rip: u64) -> u64 {
    let (mut live, mut dead) = (0, 0);
    for i in case.instructions.iter().filter(|i| i.ip() >= rip) {
        live |= i.rflags_read() & !dead;
        dead |= i.rflags_modified() & !live;
    }
    rflags_of(dead)
}

/// The instruction at which a case ended, or its last.
fn ended_at(case: &Case, rip: u64) -> Instruction {
    let at = case.instructions.iter().find(|i| i.ip() == rip);
    *at.or(case.instructions.last()).unwrap()
}

/// Where the manual leaves open how an instruction faults: those that store
/// or load many values may report any of them in CR2.
fn normal_end(at: &Instruction, end: End) -> End {
    use iced_x86::Mnemonic as M;
    let many = matches!(
        at.mnemonic(),
        M::Fldenv | M::Fnstenv | M::Frstor | M::Fnsave | M::Pusha | M::Pushad | M::Popa | M::Popad
    );
    match end {
        End::Fault(mut e) if many => {
            e.cr2 = 0;
            End::Fault(e)
        }
        other => other,
    }
}

/// An operand that is not there, and is misaligned or comes with a pending x87
/// exception: generated code may find either first.
fn misaligned_or_absent(a: End, b: End) -> bool {
    matches!(
        (a, b),
        (
            End::Fault(Exception {
                vector: 13 | 16,
                ..
            }),
            End::Fault(Exception { vector: 14, .. })
        )
    )
}

/// The loads and stores before the faulting one of several may have happened.
fn leaves_parts_open(at: &Instruction, end: End) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(end, End::Fault(_))
        && matches!(at.mnemonic(), M::Pusha | M::Pushad | M::Popa | M::Popad)
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// The differences between two outcomes of a case, one per line; `None` if
/// they agree in all that is defined.
///
/// `exact`: see [`Executor::is_exact`].
pub fn difference(case: &Case, a: &Outcome, b: &Outcome, exact: bool) -> Option<String> {
    if a.end == End::Unknown || b.end == End::Unknown {
        return None;
    }
    let mut out = String::new();
    let at = ended_at(case, a.rip);
    if a.rip != b.rip {
        out += &format!("  rip {:#x} / {:#x}\n", a.rip, b.rip);
    }
    let both_fault = !exact && misaligned_or_absent(a.end, b.end);
    if normal_end(&at, a.end) != normal_end(&at, b.end) && !both_fault {
        out += &format!("  end {:x?} / {:x?}\n", a.end, b.end);
    }
    let registers = if case.mode == Mode::Long { 16 } else { 8 };
    let mask = if case.mode == Mode::Long {
        u64::MAX
    } else {
        0xffff_ffff
    };
    for (n, name) in GPR.iter().enumerate().take(registers) {
        let (x, y) = (a.gpr[n] & mask, b.gpr[n] & mask);
        if x != y && !(leaves_parts_open(&at, a.end) && n != 4) {
            out += &format!("  {name} {x:#x} / {y:#x} (was {:#x})\n", case.gpr[n]);
        }
    }
    let defined = match a.end {
        End::Next(_) => COMPARED_FLAGS & !case.undefined,
        // Undefined ones may be among them.
        _ if exact && case.instructions.len() == 1 => COMPARED_FLAGS,
        _ => COMPARED_FLAGS & !dead_flags(case, a.rip) & !case.ever_undefined(),
    };
    if (a.rflags ^ b.rflags) & defined != 0 {
        out += &format!(
            "  rflags {:#x} / {:#x} (was {:#x}, defined {defined:#x})\n",
            a.rflags, b.rflags, case.rflags
        );
    }
    bytes(&mut out, "state", &a.xsave[..], &b.xsave[..]);
    if !leaves_parts_open(&at, a.end) {
        bytes(&mut out, "memory", &a.memory, &b.memory);
    }
    (!out.is_empty()).then_some(out)
}

fn bytes(out: &mut String, what: &str, a: &[u8], b: &[u8]) {
    if a == b {
        return;
    }
    for (k, (x, y)) in a
        .iter()
        .zip(b)
        .enumerate()
        .filter(|(_, (x, y))| x != y)
        .take(8)
    {
        *out += &format!("  {what}[{k:#x}] {x:#04x} / {y:#04x}\n");
    }
}

/// Brings an XSAVE image into the form that is compared: without pointers,
/// opcode, header, reserved bytes, and registers that the mode does not have.
pub fn canonical_xsave(image: &[u8], mode: Mode) -> Box<[u8; 832]> {
    let mut x = Box::new([0; 832]);
    x.copy_from_slice(&image[..832]);
    x[5..24].fill(0);
    x[28..32].fill(0);
    for st in 0..8 {
        x[32 + st * 16 + 10..48 + st * 16].fill(0);
    }
    x[416..576].fill(0);
    if mode != Mode::Long {
        x[288..416].fill(0);
        x[704..832].fill(0);
    }
    x
}

/// Size of the operand pages in bytes.
pub const MEMORY: usize = DATA_SIZE as usize;
