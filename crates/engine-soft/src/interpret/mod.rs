//! The interpreter: one decoded instruction at a time, in every mode. The
//! reference for correctness.
//!
//! Integer, string and near control-flow instructions are executed here.
//! System instructions go to [`crate::system::execute`], which sets `rip`
//! itself; x87, MMX, SSE and AVX go to [`crate::native::execute`], after which
//! `rip` is advanced here.

mod alu;
mod bits;
mod branch;
mod integer;
pub(crate) mod operand;
mod stack;
mod string;

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Code, Instruction, Mnemonic as M};

use crate::core::{Core, Exec};
use crate::cpu::flag;
use crate::{native, system};
use alu::Shift;
use bits::Bit;
use string::Kind;

/// Executes one instruction that was decoded at the current `rip` in the
/// current mode. On success `rip` is past it (or at the branch target; a
/// repeated string instruction may return with `rip` still on itself after a
/// bounded number of iterations, so that interrupts get through).
///
/// # Errors
/// [`crate::core::Trap`]; a fault leaves the state as it was.
pub fn step(core: &mut Core, i: &Instruction) -> Exec {
    core.stats.interpreted += 1;
    let next = operand::next_ip(core, i);
    match i.mnemonic() {
        M::Mov => {
            if !integer::mov(core, i)? {
                return system::execute(core, i);
            }
        }
        M::Lea => integer::lea(core, i)?,
        M::Add => integer::binary(core, i, |a, b, _, n| alu::add(a, b, 0, n))?,
        M::Sub => integer::binary(core, i, |a, b, _, n| alu::sub(a, b, 0, n))?,
        M::And => integer::binary(core, i, |a, b, _, n| alu::logic(a & b, n))?,
        M::Or => integer::binary(core, i, |a, b, _, n| alu::logic(a | b, n))?,
        M::Xor => integer::binary(core, i, |a, b, _, n| alu::logic(a ^ b, n))?,
        M::Cmp => integer::compare(core, i, |a, b, n| alu::sub(a, b, 0, n))?,
        M::Test => integer::compare(core, i, |a, b, n| alu::logic(a & b, n))?,
        M::Movzx => integer::movzx(core, i)?,
        M::Movsx | M::Movsxd => integer::movsx(core, i)?,
        M::Inc => integer::step_by_one(core, i, alu::add)?,
        M::Dec => integer::step_by_one(core, i, alu::sub)?,
        M::Shl | M::Sal => integer::shift(core, i, Shift::Shl)?,
        M::Shr => integer::shift(core, i, Shift::Shr)?,
        M::Sar => integer::shift(core, i, Shift::Sar)?,
        M::Push => integer::push_operand(core, i)?,
        M::Pop => {
            if integer::has_segment_operand(i) {
                return system::execute(core, i);
            }
            integer::pop_operand(core, i)?;
        }
        M::Je => return branch::jcc(core, i, next, 4),
        M::Jne => return branch::jcc(core, i, next, 5),
        M::Jb => return branch::jcc(core, i, next, 2),
        M::Jae => return branch::jcc(core, i, next, 3),
        M::Jbe => return branch::jcc(core, i, next, 6),
        M::Ja => return branch::jcc(core, i, next, 7),
        M::Js => return branch::jcc(core, i, next, 8),
        M::Jns => return branch::jcc(core, i, next, 9),
        M::Jl => return branch::jcc(core, i, next, 12),
        M::Jge => return branch::jcc(core, i, next, 13),
        M::Jle => return branch::jcc(core, i, next, 14),
        M::Jg => return branch::jcc(core, i, next, 15),
        M::Jo => return branch::jcc(core, i, next, 0),
        M::Jno => return branch::jcc(core, i, next, 1),
        M::Jp => return branch::jcc(core, i, next, 10),
        M::Jnp => return branch::jcc(core, i, next, 11),
        M::Jmp => return branch::jmp(core, i),
        M::Call => return branch::call(core, i, next),
        M::Ret => return branch::ret(core, i),
        M::Nop | M::Endbr64 | M::Endbr32 => {}
        _ => return common(core, i, next),
    }
    core.cpu.rip = next;
    Ok(())
}

/// Conditions of `setcc` and `cmovcc` (the latter flagged).
#[inline]
fn condition_of(m: M) -> Option<(bool, u8)> {
    Some(match m {
        M::Seto => (false, 0),
        M::Setno => (false, 1),
        M::Setb => (false, 2),
        M::Setae => (false, 3),
        M::Sete => (false, 4),
        M::Setne => (false, 5),
        M::Setbe => (false, 6),
        M::Seta => (false, 7),
        M::Sets => (false, 8),
        M::Setns => (false, 9),
        M::Setp => (false, 10),
        M::Setnp => (false, 11),
        M::Setl => (false, 12),
        M::Setge => (false, 13),
        M::Setle => (false, 14),
        M::Setg => (false, 15),
        M::Cmovo => (true, 0),
        M::Cmovno => (true, 1),
        M::Cmovb => (true, 2),
        M::Cmovae => (true, 3),
        M::Cmove => (true, 4),
        M::Cmovne => (true, 5),
        M::Cmovbe => (true, 6),
        M::Cmova => (true, 7),
        M::Cmovs => (true, 8),
        M::Cmovns => (true, 9),
        M::Cmovp => (true, 10),
        M::Cmovnp => (true, 11),
        M::Cmovl => (true, 12),
        M::Cmovge => (true, 13),
        M::Cmovle => (true, 14),
        M::Cmovg => (true, 15),
        _ => return None,
    })
}

/// The less hot half of the integer instructions.
fn common(core: &mut Core, i: &Instruction, next: u64) -> Exec {
    match i.mnemonic() {
        M::Adc => integer::binary(core, i, alu::add)?,
        M::Sbb => integer::binary(core, i, alu::sub)?,
        M::Neg => integer::neg(core, i)?,
        M::Not => integer::not(core, i)?,
        M::Rol => integer::shift(core, i, Shift::Rol)?,
        M::Ror => integer::shift(core, i, Shift::Ror)?,
        M::Rcl => integer::shift(core, i, Shift::Rcl)?,
        M::Rcr => integer::shift(core, i, Shift::Rcr)?,
        M::Shld => integer::double_shift(core, i, true)?,
        M::Shrd => integer::double_shift(core, i, false)?,
        M::Mul => integer::mul(core, i, alu::mul)?,
        M::Imul => integer::imul(core, i)?,
        M::Div => integer::div(core, i, alu::div)?,
        M::Idiv => integer::div(core, i, alu::idiv)?,
        M::Cbw => integer::extend_accumulator(core, 2)?,
        M::Cwde => integer::extend_accumulator(core, 4)?,
        M::Cdqe => integer::extend_accumulator(core, 8)?,
        M::Cwd => integer::sign_to_rdx(core, 2)?,
        M::Cdq => integer::sign_to_rdx(core, 4)?,
        M::Cqo => integer::sign_to_rdx(core, 8)?,
        M::Xchg => integer::xchg(core, i)?,
        M::Xadd => integer::xadd(core, i)?,
        M::Cmpxchg => integer::cmpxchg(core, i)?,
        M::Cmpxchg8b => integer::cmpxchg8b(core, i)?,
        M::Cmpxchg16b => integer::cmpxchg16b(core, i)?,
        M::Bswap => integer::bswap(core, i)?,
        M::Movbe => integer::movbe(core, i)?,
        M::Movnti => {
            let v = operand::read_operand(core, i, 1)?;
            operand::write_operand(core, i, 0, v)?;
        }
        M::Bt => bits::bit_test(core, i, Bit::Test)?,
        M::Bts => bits::bit_test(core, i, Bit::Set)?,
        M::Btr => bits::bit_test(core, i, Bit::Reset)?,
        M::Btc => bits::bit_test(core, i, Bit::Complement)?,
        M::Bsf => bits::bit_scan(core, i, false)?,
        M::Bsr => bits::bit_scan(core, i, true)?,
        M::Tzcnt => bits::count_zeros(core, i, false)?,
        M::Lzcnt => bits::count_zeros(core, i, true)?,
        M::Popcnt => bits::popcnt(core, i)?,
        M::Leave => stack::leave(core, i)?,
        M::Clc => core.cpu.rflags &= !flag::CF,
        M::Stc => core.cpu.rflags |= flag::CF,
        M::Cmc => core.cpu.rflags ^= flag::CF,
        M::Cld => core.cpu.rflags &= !flag::DF,
        M::Std => core.cpu.rflags |= flag::DF,
        M::Pause => core.pause(),
        M::Reservednop => {}
        M::Lfence | M::Mfence | M::Sfence => fence(Ordering::SeqCst),
        M::Pushfq => stack::push_flags(core, 8)?,
        M::Popfq => stack::pop_flags(core, 8)?,
        m => {
            if let Some((cmov, cc)) = condition_of(m) {
                if cmov {
                    integer::cmov(core, i, cc)?;
                } else {
                    integer::setcc(core, i, cc)?;
                }
            } else if let Some((kind, size)) = string_of(i.code()) {
                return string::string(core, i, next, kind, size);
            } else {
                return uncommon(core, i, next);
            }
        }
    }
    core.cpu.rip = next;
    Ok(())
}

/// String instructions by code, because `movsd` and `cmpsd` are also names of
/// SSE2 instructions.
fn string_of(code: Code) -> Option<(Kind, usize)> {
    Some(match code {
        Code::Movsb_m8_m8 => (Kind::Movs, 1),
        Code::Movsw_m16_m16 => (Kind::Movs, 2),
        Code::Movsd_m32_m32 => (Kind::Movs, 4),
        Code::Movsq_m64_m64 => (Kind::Movs, 8),
        Code::Stosb_m8_AL => (Kind::Stos, 1),
        Code::Stosw_m16_AX => (Kind::Stos, 2),
        Code::Stosd_m32_EAX => (Kind::Stos, 4),
        Code::Stosq_m64_RAX => (Kind::Stos, 8),
        Code::Lodsb_AL_m8 => (Kind::Lods, 1),
        Code::Lodsw_AX_m16 => (Kind::Lods, 2),
        Code::Lodsd_EAX_m32 => (Kind::Lods, 4),
        Code::Lodsq_RAX_m64 => (Kind::Lods, 8),
        Code::Scasb_AL_m8 => (Kind::Scas, 1),
        Code::Scasw_AX_m16 => (Kind::Scas, 2),
        Code::Scasd_EAX_m32 => (Kind::Scas, 4),
        Code::Scasq_RAX_m64 => (Kind::Scas, 8),
        Code::Cmpsb_m8_m8 => (Kind::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Kind::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Kind::Cmps, 4),
        Code::Cmpsq_m64_m64 => (Kind::Cmps, 8),
        Code::Insb_m8_DX => (Kind::Ins, 1),
        Code::Insw_m16_DX => (Kind::Ins, 2),
        Code::Insd_m32_DX => (Kind::Ins, 4),
        Code::Outsb_DX_m8 => (Kind::Outs, 1),
        Code::Outsw_DX_m16 => (Kind::Outs, 2),
        Code::Outsd_DX_m32 => (Kind::Outs, 4),
        _ => return None,
    })
}

/// Rare integer instructions, BMI, and the hints.
fn uncommon(core: &mut Core, i: &Instruction, next: u64) -> Exec {
    match i.mnemonic() {
        M::Andn => bits::bmi(core, i, bits::andn)?,
        M::Bextr
            if !matches!(
                i.code(),
                Code::XOP_Bextr_r32_rm32_imm32 | Code::XOP_Bextr_r64_rm64_imm32
            ) =>
        {
            bits::bmi(core, i, bits::bextr)?
        }
        M::Blsi => bits::bmi(core, i, bits::blsi)?,
        M::Blsmsk => bits::bmi(core, i, bits::blsmsk)?,
        M::Blsr => bits::bmi(core, i, bits::blsr)?,
        M::Bzhi => bits::bmi(core, i, bits::bzhi)?,
        M::Pdep => bits::bmi_no_flags(core, i, |a, b, _| alu::pdep(a, b))?,
        M::Pext => bits::bmi_no_flags(core, i, |a, b, _| alu::pext(a, b))?,
        M::Rorx => bits::bmi_no_flags(core, i, bits::rorx)?,
        M::Sarx => bits::bmi_no_flags(core, i, bits::sarx)?,
        M::Shlx => bits::bmi_no_flags(core, i, bits::shlx)?,
        M::Shrx => bits::bmi_no_flags(core, i, bits::shrx)?,
        M::Mulx => bits::mulx(core, i)?,
        M::Adcx => bits::add_carry_flag(core, i, flag::CF)?,
        M::Adox => bits::add_carry_flag(core, i, flag::OF)?,
        M::Crc32 => bits::crc32(core, i)?,
        M::Rdrand | M::Rdseed => bits::random(core, i)?,
        M::Loop => return branch::loop_(core, i, next, None),
        M::Loope => return branch::loop_(core, i, next, Some(true)),
        M::Loopne => return branch::loop_(core, i, next, Some(false)),
        M::Jcxz | M::Jecxz | M::Jrcxz => return branch::jcxz(core, i, next),
        M::Enter => stack::enter(core, i)?,
        M::Pusha => stack::push_all(core, 2)?,
        M::Pushad => stack::push_all(core, 4)?,
        M::Popa => stack::pop_all(core, 2)?,
        M::Popad => stack::pop_all(core, 4)?,
        M::Pushf => stack::push_flags(core, 2)?,
        M::Pushfd => stack::push_flags(core, 4)?,
        M::Popf => stack::pop_flags(core, 2)?,
        M::Popfd => stack::pop_flags(core, 4)?,
        M::Lahf => integer::lahf(core)?,
        M::Sahf => integer::sahf(core)?,
        M::Aaa => integer::ascii_adjust(core, true)?,
        M::Aas => integer::ascii_adjust(core, false)?,
        M::Daa => integer::decimal_adjust(core, alu::daa)?,
        M::Das => integer::decimal_adjust(core, alu::das)?,
        M::Aam => integer::aam(core, i)?,
        M::Aad => integer::aad(core, i)?,
        M::Salc => integer::salc(core)?,
        M::Xlatb => integer::xlat(core, i)?,
        M::Bound => integer::bound(core, i)?,
        M::Clflush | M::Clflushopt | M::Clwb => integer::cache_line(core, i)?,
        // Hints, and instructions of absent features that are defined as NOPs.
        M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Cldemote
        | M::Rdsspd
        | M::Rdsspq
        | M::Bndcl
        | M::Bndcn
        | M::Bndcu
        | M::Bndldx
        | M::Bndmk
        | M::Bndmov
        | M::Bndstx => {}
        M::Into if core.cpu.rflags & flag::OF == 0 => {}
        _ => return elsewhere(core, i, next),
    }
    core.cpu.rip = next;
    Ok(())
}

/// What `system` and `native` execute, and what nobody does.
fn elsewhere(core: &mut Core, i: &Instruction, next: u64) -> Exec {
    match i.mnemonic() {
        M::INVALID | M::Ud0 | M::Ud1 | M::Ud2 | M::Xbegin | M::Xabort | M::Xend | M::Xtest => {
            Err(arch::Exception::ud().into())
        }
        M::Int
        | M::Int1
        | M::Int3
        | M::Into
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Retf
        | M::Lds
        | M::Les
        | M::Lss
        | M::Lfs
        | M::Lgs
        | M::Lgdt
        | M::Sgdt
        | M::Lidt
        | M::Sidt
        | M::Lldt
        | M::Sldt
        | M::Ltr
        | M::Str
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Arpl
        | M::Smsw
        | M::Lmsw
        | M::Clts
        | M::Hlt
        | M::Cli
        | M::Sti
        | M::In
        | M::Out
        | M::Rdmsr
        | M::Wrmsr
        | M::Rdpmc
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpid
        | M::Cpuid
        | M::Syscall
        | M::Sysret
        | M::Sysretq
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Swapgs
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Clac
        | M::Stac
        | M::Invd
        | M::Wbinvd
        | M::Wbnoinvd
        | M::Invlpg
        | M::Invlpga
        | M::Invpcid
        | M::Monitor
        | M::Mwait
        | M::Monitorx
        | M::Mwaitx
        | M::Xsetbv
        | M::Xgetbv
        | M::Rsm
        | M::Getsec
        | M::Vmcall
        | M::Vmlaunch
        | M::Vmresume
        | M::Vmxoff
        | M::Vmxon
        | M::Vmclear
        | M::Vmptrld
        | M::Vmptrst
        | M::Vmread
        | M::Vmwrite
        | M::Vmfunc
        | M::Invept
        | M::Invvpid
        | M::Vmmcall
        | M::Vmrun
        | M::Vmload
        | M::Vmsave
        | M::Stgi
        | M::Clgi
        | M::Skinit
        | M::Rdpkru
        | M::Wrpkru
        | M::Rdpru
        | M::Serialize
        | M::Encls
        | M::Enclu
        | M::Enclv
        | M::Pconfig => system::execute(core, i),
        _ => {
            native::execute(core, i)?;
            core.cpu.rip = next;
            Ok(())
        }
    }
}
