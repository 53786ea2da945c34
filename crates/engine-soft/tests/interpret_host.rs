//! The interpreter against the host CPU: random instructions of every integer
//! form, with random registers, flags and memory, executed by both.
#![cfg(target_arch = "x86_64")]

mod interpret_support;

use std::collections::HashMap;

use arch::exception;
use engine_soft::cpu::flag;
use engine_soft::{Trap, interpret};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use interpret_support::host::Host;
use interpret_support::{BUFFER, BUFFER_SIZE, Machine, Random};

/// What to generate: opcode bytes; with ModRM; bytes of immediate.
struct Shape {
    bytes: &'static [u8],
    last: std::ops::RangeInclusive<u8>,
}

const fn shape(bytes: &'static [u8], last: std::ops::RangeInclusive<u8>) -> Shape {
    Shape { bytes, last }
}

/// Ranges of opcodes that hold integer instructions.
const SHAPES: &[Shape] = &[
    shape(&[], 0x00..=0x3f),
    shape(&[], 0x40..=0x61),
    shape(&[], 0x63..=0x63),
    shape(&[], 0x68..=0x6b),
    shape(&[], 0x80..=0x8d),
    shape(&[], 0x8f..=0x99),
    shape(&[], 0x9e..=0x9f),
    shape(&[], 0xa4..=0xaf),
    shape(&[], 0xb0..=0xbf),
    shape(&[], 0xc0..=0xc1),
    shape(&[], 0xc6..=0xc9),
    shape(&[], 0xd0..=0xd7),
    shape(&[], 0xf5..=0xf7),
    shape(&[], 0xf8..=0xf9),
    shape(&[], 0xfc..=0xfd),
    shape(&[], 0xfe..=0xff),
    shape(&[0x0f], 0x40..=0x4f),
    shape(&[0x0f], 0x90..=0x9f),
    shape(&[0x0f], 0xa3..=0xa5),
    shape(&[0x0f], 0xab..=0xad),
    shape(&[0x0f], 0xaf..=0xb1),
    shape(&[0x0f], 0xb3..=0xb3),
    shape(&[0x0f], 0xb6..=0xb8),
    shape(&[0x0f], 0xba..=0xc1),
    shape(&[0x0f], 0xc3..=0xc3),
    shape(&[0x0f], 0xc7..=0xcf),
    shape(&[0x0f, 0x38], 0xf0..=0xf6),
];

/// Random bytes that may be an integer instruction.
fn candidate(r: &mut Random) -> Vec<u8> {
    let mut b = Vec::new();
    if r.below(6) == 0 {
        // VEX, map 2 or 3: BMI.
        let map = 2 + r.below(2) as u8;
        b.extend([0xc4, (r.next() as u8 & 0xe0) | map, r.next() as u8 & 0xfb]);
        b.push(0xf0 + r.below(8) as u8);
    } else {
        for (chance, prefix) in [(4, 0x66), (8, 0xf3), (8, 0xf2), (12, 0xf0), (12, 0x67)] {
            if r.below(chance) == 0 {
                b.push(prefix);
            }
        }
        if r.below(2) == 0 {
            b.push(0x40 | r.next() as u8 & 15);
        }
        let s = &SHAPES[r.below(SHAPES.len() as u64) as usize];
        b.extend(s.bytes);
        let n = u64::from(s.last.end() - s.last.start()) + 1;
        b.push(s.last.start() + r.below(n) as u8);
    }
    for _ in 0..13 {
        b.push(r.next() as u8);
    }
    b
}

/// Instructions compared here.
const MNEMONICS: &[Mnemonic] = {
    use Mnemonic::*;
    &[
        Mov, Movzx, Movsx, Movsxd, Movbe, Movnti, Bswap, Xchg, Xadd, Cmpxchg, Cmpxchg8b,
        Cmpxchg16b, Lea, Push, Pop, Add, Or, Adc, Sbb, And, Sub, Xor, Cmp, Test, Inc, Dec, Neg,
        Not, Mul, Imul, Div, Idiv, Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo, Rol, Ror, Rcl, Rcr, Shl, Sal,
        Shr, Sar, Shld, Shrd, Bt, Bts, Btr, Btc, Bsf, Bsr, Tzcnt, Lzcnt, Popcnt, Andn, Bextr, Blsi,
        Blsmsk, Blsr, Bzhi, Mulx, Pdep, Pext, Rorx, Sarx, Shlx, Shrx, Adcx, Adox, Crc32, Seto,
        Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl, Setge, Setle,
        Setg, Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp,
        Cmovnp, Cmovl, Cmovge, Cmovle, Cmovg, Leave, Enter, Clc, Stc, Cmc, Cld, Std, Lahf, Sahf,
        Xlatb, Movsb, Movsw, Movsd, Movsq, Stosb, Stosw, Stosd, Stosq, Lodsb, Lodsw, Lodsd, Lodsq,
        Scasb, Scasw, Scasd, Scasq, Cmpsb, Cmpsw, Cmpsd, Cmpsq, Nop,
    ]
};

/// And these, in 32-bit code.
const LEGACY: &[Mnemonic] = {
    use Mnemonic::*;
    &[
        Aaa, Aas, Daa, Das, Aam, Aad, Salc, Pusha, Pushad, Popa, Popad,
    ]
};

fn is_segment(r: Register) -> bool {
    r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
}

/// Registers that make the instruction touch only the buffer, or `None`.
fn arrange(r: &mut Random, i: &Instruction, small: bool) -> Option<[u64; 16]> {
    let mut gpr = arrange_wide(r, i)?;
    if small {
        if i.memory_segment() == Register::CS {
            return None;
        }
        for (n, v) in gpr.iter_mut().enumerate() {
            *v &= if n < 8 { 0xffff_ffff } else { 0 };
        }
    }
    Some(gpr)
}

fn arrange_wide(r: &mut Random, i: &Instruction) -> Option<[u64; 16]> {
    let mut gpr: [u64; 16] = std::array::from_fn(|_| r.value());
    let place = |r: &mut Random| BUFFER + 0x1000 + r.below(0x1800);
    gpr[4] = place(r) & !7;
    gpr[1] = if r.below(2) == 0 { gpr[1] } else { r.below(70) };
    let m = i.mnemonic();
    if matches!(m, Mnemonic::Leave) {
        gpr[5] = place(r);
    }
    if m == Mnemonic::Enter {
        gpr[5] = place(r);
        gpr[4] = BUFFER + 0x3800;
        if i.immediate16() > 0x2000 {
            return None;
        }
    }
    for op in 0..i.op_count() {
        match i.op_kind(op) {
            OpKind::Register if is_segment(i.op_register(op)) => return None,
            OpKind::Memory => arrange_memory(r, i, op, &mut gpr)?,
            OpKind::MemorySegSI | OpKind::MemoryESDI => return None,
            OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => {
                gpr[1] = r.below(200);
                gpr[6] = place(r);
                gpr[7] = if r.below(2) == 0 {
                    gpr[6].wrapping_add(r.below(40)).wrapping_sub(20)
                } else {
                    place(r)
                };
                if matches!(i.op_kind(op), OpKind::MemorySegESI | OpKind::MemoryESEDI) {
                    for n in [1, 6, 7] {
                        gpr[n] |= r.next() << 32;
                    }
                }
                return Some(gpr);
            }
            _ => {}
        }
    }
    Some(gpr)
}

fn arrange_memory(r: &mut Random, i: &Instruction, op: u32, gpr: &mut [u64; 16]) -> Option<()> {
    let base = i.memory_base();
    let index = i.memory_index();
    if matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
        return (base != Register::RIP && base != Register::EIP).then_some(());
    }
    if !base.is_gpr()
        || base.is_gpr16()
        || base.number() == 4
        || matches!(i.memory_segment(), Register::FS | Register::GS)
        || i.mnemonic() == Mnemonic::Push && base.number() == 4
    {
        return None;
    }
    // Implicit uses of rax, rcx and rdx may be the base as well: fine.
    let scaled = index.is_gpr() && i.mnemonic() != Mnemonic::Xlatb;
    if scaled && index.full_register() == base.full_register() {
        return None;
    }
    if matches!(
        i.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && i.op1_kind() == OpKind::Register
    {
        let n = i.op1_register().number();
        if n == base.number() {
            return None;
        }
        gpr[n] = r.below(8192).wrapping_sub(4096);
    }
    let size = i.memory_size().size() as u64;
    let mut at = match r.below(8) {
        0 => BUFFER + 0x1ff0 + r.below(16),
        _ => BUFFER + 0x1000 + r.below(0x1000),
    };
    if i.mnemonic() == Mnemonic::Cmpxchg16b {
        at &= !15;
    }
    debug_assert!(size <= 16 && op < 4);
    let offset = if scaled {
        gpr[index.number()].wrapping_mul(u64::from(i.memory_index_scale()))
    } else {
        0
    };
    let v = at
        .wrapping_sub(offset)
        .wrapping_sub(i.memory_displacement64());
    gpr[base.number()] = if base.is_gpr32() {
        if scaled && index.is_gpr32() {
            v & 0xffff_ffff
        } else {
            v & 0xffff_ffff | r.next() << 32
        }
    } else {
        v
    };
    Some(())
}

/// Status flags that differ between vendors, where the manuals leave them
/// undefined.
fn undefined(i: &Instruction, amd: bool) -> u64 {
    use Mnemonic::*;
    if matches!(i.mnemonic(), Aaa | Aas) {
        return flag::OF | flag::SF | flag::ZF | flag::PF;
    }
    if amd {
        return 0;
    }
    let (af, of, rest) = (
        flag::AF,
        flag::OF,
        flag::SF | flag::ZF | flag::AF | flag::PF,
    );
    match i.mnemonic() {
        Shl | Sal | Shr | Sar | Shld | Shrd => af | of,
        Rol | Ror | Rcl | Rcr => of,
        Mul | Imul => rest,
        Div | Idiv => flag::STATUS,
        Bt | Bts | Btr | Btc => flag::STATUS & !flag::CF & !flag::ZF,
        Bsf | Bsr => flag::STATUS & !flag::ZF,
        Tzcnt | Lzcnt => flag::STATUS & !flag::ZF & !flag::CF,
        Bextr => af | flag::SF | flag::PF,
        Andn | Blsi | Blsmsk | Blsr | Bzhi => af | flag::PF,
        And | Or | Xor | Test => af,
        Daa | Das => of,
        Aam | Aad => of | af | flag::CF,
        _ => 0,
    }
}

fn host_is_amd() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    id.ebx == u32::from_le_bytes(*b"Auth")
}

fn supported(i: &Instruction) -> bool {
    use Mnemonic::*;
    match i.mnemonic() {
        Andn | Bextr | Blsi | Blsmsk | Blsr => is_x86_feature_detected!("bmi1"),
        Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => is_x86_feature_detected!("bmi2"),
        Adcx | Adox => is_x86_feature_detected!("adx"),
        Movbe => is_x86_feature_detected!("movbe"),
        Tzcnt => is_x86_feature_detected!("bmi1"),
        Lzcnt => is_x86_feature_detected!("lzcnt"),
        Popcnt => is_x86_feature_detected!("popcnt"),
        Crc32 => is_x86_feature_detected!("sse4.2"),
        Cmpxchg16b => is_x86_feature_detected!("cmpxchg16b"),
        _ => true,
    }
}

/// Whether the comparison makes sense for this instruction.
fn wanted(i: &Instruction, amd: bool) -> bool {
    let m = i.mnemonic();
    let vector = matches!(m, Mnemonic::Movsd | Mnemonic::Cmpsd) && !i.is_string_instruction();
    // 16-bit double shifts by 16 and more are undefined.
    let unclear = matches!(m, Mnemonic::Shld | Mnemonic::Shrd) && wide_count_possible(i)
        // A register that does not match: AMD leaves its high half alone.
        || m == Mnemonic::Cmpxchg && i.op0_kind() == OpKind::Register && !amd;
    (MNEMONICS.contains(&m) || LEGACY.contains(&m)) && !vector && !unclear && supported(i)
}

fn wide_count_possible(i: &Instruction) -> bool {
    let size = if i.op0_kind() == OpKind::Register {
        i.op0_register().size()
    } else {
        i.memory_size().size()
    };
    size == 2 && (i.op2_kind() == OpKind::Register || i.immediate8() & 31 >= 16)
}

fn show(flags: u64) -> String {
    [
        (11, 'O'),
        (10, 'D'),
        (7, 'S'),
        (6, 'Z'),
        (4, 'A'),
        (2, 'P'),
        (0, 'C'),
    ]
    .iter()
    .map(|&(bit, name)| if flags >> bit & 1 != 0 { name } else { '-' })
    .collect()
}

/// Runs one case in both; gives a description of the difference, if any.
fn compare(
    m: &mut Machine,
    host: &Host,
    r: &mut Random,
    i: &Instruction,
    code: &[u8],
    amd: bool,
) -> Option<String> {
    let gpr = arrange(r, i, m.core.cpu.bits == 32)?;
    let df = if r.below(3) == 0 { flag::DF } else { 0 };
    let flags = r.next() & flag::STATUS | df | 2;
    let buffer: Vec<u8> = match r.below(3) {
        0 => vec![r.next() as u8; BUFFER_SIZE],
        _ => (0..BUFFER_SIZE / 8)
            .flat_map(|_| r.value().to_le_bytes())
            .collect(),
    };
    m.set_buffer(&buffer);
    let start = m.core.cpu.rip;
    m.core.cpu.gpr = gpr;
    m.core.cpu.rflags = flags;
    let result = loop {
        let result = interpret::step(&mut m.core, i);
        if result.is_err() || m.core.cpu.rip != start {
            break result;
        }
    };
    m.core.cpu.rip = start;
    match result {
        Ok(()) => {}
        // The host would raise the same, as a signal; tested elsewhere.
        Err(Trap::Fault(e)) if e.vector == exception::DE => return None,
        Err(e) => return Some(format!("{i:?}: {e:?} with {gpr:x?}")),
    }
    let out = host.run(code, &gpr, flags, &buffer);
    let relevant = (flag::STATUS | flag::DF) & !undefined(i, amd);
    let (mine, theirs) = (m.core.cpu.rflags & relevant, out.flags & relevant);
    let same = m.core.cpu.gpr == out.gpr && mine == theirs && m.buffer() == out.buffer;
    (!same).then(|| {
        let registers: Vec<_> = (0..16)
            .filter(|&n| m.core.cpu.gpr[n] != out.gpr[n])
            .map(|n| {
                let (a, b, c) = (gpr[n], m.core.cpu.gpr[n], out.gpr[n]);
                format!("r{n} was {a:x} interpreter {b:x} host {c:x}")
            })
            .collect();
        format!(
            "{:?} {code:02x?} flags {} interpreter {} host {} memory {} {registers:?}",
            i.code(),
            show(flags),
            show(mine),
            show(theirs),
            if m.buffer() == out.buffer {
                "same"
            } else {
                "differs"
            },
        )
    })
}

/// Compares `cases` random candidates; every mnemonic of `lists` that the mode
/// has must have come up.
fn agree(mut m: Machine, host: &Host, cases: u32, lists: &[&[Mnemonic]]) {
    let amd = host_is_amd();
    let mut r = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen: HashMap<Mnemonic, u32> = HashMap::new();
    let mut wrong: HashMap<String, (u32, String)> = HashMap::new();
    for _ in 0..cases {
        let bytes = candidate(&mut r);
        let i = m.decode(&bytes);
        if !wanted(&i, amd) {
            continue;
        }
        *seen.entry(i.mnemonic()).or_default() += 1;
        if let Some(text) = compare(&mut m, host, &mut r, &i, &bytes[..i.len()], amd) {
            let entry = wrong.entry(format!("{:?}", i.code())).or_insert((0, text));
            entry.0 += 1;
        }
    }
    for (code, (count, text)) in &wrong {
        eprintln!("{code}: {count} times, first {text}");
    }
    assert!(wrong.is_empty(), "{} instructions differ", wrong.len());
    let rare: Vec<_> = lists
        .iter()
        .flat_map(|list| list.iter())
        .filter(|m| seen.get(m).is_none_or(|&n| n < 3) && **m != Mnemonic::Sal)
        .collect();
    assert!(rare.is_empty(), "hardly tested: {rare:?}");
}

// One test, because both modes use the same fixed addresses.
#[test]
fn random_integer_instructions_agree_with_the_host() {
    agree(Machine::long(), &Host::long(), 400_000, &[MNEMONICS]);
    match Host::small() {
        Some(host) => agree(Machine::paged32(), &host, 300_000, &[LEGACY]),
        None => eprintln!("this host runs no 32-bit code: only 64-bit code was compared"),
    }
}
