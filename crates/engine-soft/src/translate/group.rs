//! One TLB check for several accesses off the same registers.
//!
//! A group is a run of instructions whose memory operands are all `base +
//! index * scale + constant` (most have no index), with nothing between them that needs the scratch registers. Its
//! first member checks the whole range (which must lie in one page); the
//! others use the host address that the check left in the scratch registers.
//! If the check fails for good, the block's ungrouped variant is run instead.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::translate::asm::reg;
use crate::translate::classify::Class;
use crate::translate::emit::number;
use crate::translate::lower;

/// Longest range of a group, in bytes.
const MAX_SPAN: i64 = 512;

/// What the first member checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub base: u8,
    /// Register and log2 of its scale.
    pub index: Option<(u8, u8)>,
    /// Lowest address, relative to the registers at the first member.
    pub low: i32,
    pub span: u16,
    pub write: bool,
}

/// An instruction's part in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// With the first member only.
    pub check: Option<Check>,
    /// Its operand's address minus the group's lowest.
    pub offset: i32,
    /// Nothing after it needs the scratch registers.
    pub last: bool,
}

/// One access of an instruction: offset from the base, size, store.
pub(crate) struct Access {
    pub base: u8,
    pub index: Option<(u8, u8)>,
    pub disp: i64,
    pub size: i64,
    pub write: bool,
    /// Uses both scratch registers, so that the group ends with it.
    ends: bool,
}

struct Open {
    base: u8,
    index: Option<(u8, u8)>,
    /// What the registers have moved by since the first member.
    delta: i64,
    low: i64,
    high: i64,
    write: bool,
    /// Instruction and address relative to the base at the first member.
    members: Vec<(usize, i64)>,
}

/// Finds the groups of a block: for each instruction its part, if any.
pub(crate) fn find(
    insns: &[(Instruction, Class)],
    info: &mut InstructionInfoFactory,
) -> Vec<Option<Member>> {
    let mut out = vec![None; insns.len()];
    let mut open: Option<Open> = None;
    for (k, (i, class)) in insns.iter().enumerate() {
        let access = access(i, *class, info);
        if let Some(a) = &access {
            let joined = open.as_mut().is_some_and(|g| join(g, k, a));
            if !joined {
                close(open.take(), &mut out);
                open = Some(Open {
                    base: a.base,
                    index: a.index,
                    delta: 0,
                    low: a.disp,
                    high: a.disp + a.size,
                    write: a.write,
                    members: vec![(k, a.disp)],
                });
            }
            if a.ends {
                close(open.take(), &mut out);
                continue;
            }
        } else if !harmless(i, *class) {
            close(open.take(), &mut out);
            continue;
        }
        let keep = open
            .as_mut()
            .is_none_or(|g| follow_base(g, i, *class, info));
        if !keep {
            close(open.take(), &mut out);
        }
    }
    close(open.take(), &mut out);
    out
}

fn join(g: &mut Open, k: usize, a: &Access) -> bool {
    if (a.base, a.index) != (g.base, g.index) {
        return false;
    }
    let at = g.delta + a.disp;
    let (low, high) = (g.low.min(at), g.high.max(at + a.size));
    if high - low > MAX_SPAN {
        return false;
    }
    g.low = low;
    g.high = high;
    g.write |= a.write;
    g.members.push((k, at));
    true
}

fn close(g: Option<Open>, out: &mut [Option<Member>]) {
    let Some(g) = g else { return };
    let n = g.members.len();
    let Ok(low) = i32::try_from(g.low) else {
        return;
    };
    if n < 2 {
        return;
    }
    for (m, &(k, at)) in g.members.iter().enumerate() {
        out[k] = Some(Member {
            check: (m == 0).then_some(Check {
                base: g.base,
                index: g.index,
                low,
                span: (g.high - g.low) as u16,
                write: g.write,
            }),
            offset: (at - g.low) as i32,
            last: m + 1 == n,
        });
    }
}

/// The instruction's only access, if it has the form that can join a group.
fn access(i: &Instruction, class: Class, info: &mut InstructionInfoFactory) -> Option<Access> {
    let word = lower::word(i) as i64;
    let stack = |disp, write, ends| {
        Some(Access {
            base: reg::RSP,
            index: None,
            disp,
            size: word,
            write,
            ends,
        })
    };
    match class {
        Class::Push if i.op0_kind() == OpKind::Memory => None,
        Class::Push => {
            let r = i.op0_kind() == OpKind::Register && is_scratch(i.op0_register());
            let wide = i.op0_kind() != OpKind::Register
                && i.immediate(0) as i64 != i64::from(i.immediate(0) as i32);
            stack(-word, true, r || wide)
        }
        Class::Pop => stack(0, false, is_scratch(i.op0_register())),
        Class::Return => stack(0, false, true),
        Class::Call => stack(-word, true, true),
        Class::Memory => operand(i, info),
        _ => None,
    }
}

pub(crate) fn is_scratch(r: Register) -> bool {
    r.is_gpr() && (number(r) == reg::T0 || number(r) == reg::T1)
}

pub(crate) fn operand(i: &Instruction, info: &mut InstructionInfoFactory) -> Option<Access> {
    let plain_segment = !matches!(i.memory_segment(), Register::FS | Register::GS);
    if !plain_segment
        || i.memory_base().size() != 8
        || i.memory_index() != Register::None && i.memory_index().size() != 8
        || is_scratch(i.memory_index())
        || i.is_ip_rel_memory_operand()
        || is_scratch(i.memory_base())
    {
        return None;
    }
    let high = |r: Register| matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    let mut scratch = 0;
    for k in 0..i.op_count() {
        if i.op_kind(k) == OpKind::Register {
            let r = i.op_register(k);
            if high(r) {
                return None;
            }
            if is_scratch(r) {
                scratch |= 1 << number(r);
            }
        }
    }
    if scratch == (1 << reg::T0 | 1 << reg::T1) {
        return None;
    }
    let write = info.info(i).used_memory().iter().any(|m| {
        !matches!(
            m.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        )
    });
    Some(Access {
        base: number(i.memory_base()),
        index: (i.memory_index() != Register::None).then(|| {
            let scale = i.memory_index_scale().trailing_zeros() as u8;
            (number(i.memory_index()), scale)
        }),
        disp: i.memory_displacement64() as i64,
        size: i.memory_size().size() as i64,
        write,
        ends: scratch != 0,
    })
}

/// Whether the instruction leaves the scratch registers alone.
fn harmless(i: &Instruction, class: Class) -> bool {
    match class {
        Class::Skip => true,
        Class::Branch => i.is_jcc_short_or_near(),
        Class::Plain => {
            let operands = (0..i.op_count())
                .all(|k| i.op_kind(k) != OpKind::Register || !is_scratch(i.op_register(k)));
            operands && !is_scratch(i.memory_base()) && !is_scratch(i.memory_index())
        }
        _ => false,
    }
}

/// Follows what the instruction does to the base and index registers; `false`:
/// it is not known any more.
fn follow_base(
    g: &mut Open,
    i: &Instruction,
    class: Class,
    info: &mut InstructionInfoFactory,
) -> bool {
    match class {
        Class::Push => {
            if g.base == reg::RSP {
                g.delta -= lower::word(i) as i64;
            }
            return true;
        }
        Class::Pop => {
            let n = number(i.op0_register());
            if g.base == reg::RSP {
                g.delta += lower::word(i) as i64;
            }
            return n != g.base && g.index.is_none_or(|(index, _)| index != n);
        }
        Class::Skip | Class::Branch => return true,
        _ => {}
    }
    if let Some((index, scale)) = g.index {
        match moves_by(index, i, class, info) {
            // One register in both roles moves twice.
            Some(by) if by == 0 || index != g.base => g.delta += by << scale,
            _ => return false,
        }
    }
    match moves_by(g.base, i, class, info) {
        Some(by) => g.delta += by,
        None => return false,
    }
    g.delta.abs() < 1 << 20
}

/// By how much the instruction moves a register, if that is a constant.
pub(crate) fn moves_by(
    register: u8,
    i: &Instruction,
    class: Class,
    info: &mut InstructionInfoFactory,
) -> Option<i64> {
    let writes = info.info(i).used_registers().iter().any(|u| {
        u.register().is_gpr()
            && number(u.register()) == register
            && !matches!(
                u.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            )
    });
    if !writes {
        return Some(0);
    }
    let whole = i.op0_register().size() == lower::word(i);
    if class != Class::Plain || !whole || number(i.op0_register()) != register {
        return None;
    }
    let constant = i.op_count() == 2 && !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory);
    Some(match i.mnemonic() {
        Mnemonic::Add if constant => i.immediate(1) as i64,
        Mnemonic::Sub if constant => -(i.immediate(1) as i64),
        Mnemonic::Inc => 1,
        Mnemonic::Dec => -1,
        Mnemonic::Lea
            if i.memory_base().size() == 8
                && number(i.memory_base()) == register
                && i.memory_index() == Register::None
                && !i.is_ip_rel_memory_operand() =>
        {
            i.memory_displacement64() as i64
        }
        _ => return None,
    })
}
