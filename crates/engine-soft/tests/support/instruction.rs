//! What is asked of decoded instructions.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::case::rflags_of;

/// Arithmetic flags that an instruction reads.
pub fn read_flags(i: &Instruction) -> u64 {
    rflags_of(i.rflags_read())
}

/// Arithmetic flags that have a defined value after it.
pub fn defined_flags(i: &Instruction) -> u64 {
    rflags_of(i.rflags_modified() & !i.rflags_undefined())
}

/// Shifts by zero leave the flags.
pub fn may_leave_flags(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}

/// It works on memory at rSI or rDI.
pub fn is_string(i: &Instruction) -> bool {
    use OpKind as O;
    (0..i.op_count()).any(|n| {
        matches!(
            i.op_kind(n),
            O::MemorySegSI
                | O::MemorySegESI
                | O::MemorySegRSI
                | O::MemoryESDI
                | O::MemoryESEDI
                | O::MemoryESRDI
        )
    })
}
