//! Exceptions and interrupts (SDM vol. 3A, chapter 6).

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// Linear address for CR2, with a page fault.
    pub cr2: u64,
}

/// Divide error.
pub const DE: u8 = 0;
/// Debug.
pub const DB: u8 = 1;
/// Breakpoint.
pub const BP: u8 = 3;
/// Overflow.
pub const OF: u8 = 4;
/// BOUND range exceeded.
pub const BR: u8 = 5;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device (FPU) not available.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Invalid TSS.
pub const TS: u8 = 10;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack-segment fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// x87 floating-point error.
pub const MF: u8 = 16;
/// Alignment check.
pub const AC: u8 = 17;
/// Machine check.
pub const MC: u8 = 18;
/// SIMD floating-point exception.
pub const XM: u8 = 19;

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            cr2: 0,
        }
    }

    /// An exception with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            cr2: 0,
        }
    }

    /// #GP(0).
    pub const fn gp0() -> Self {
        Self::with_error(GP, 0)
    }

    /// #UD.
    pub const fn ud() -> Self {
        Self::new(UD)
    }

    /// #PF with its error code and linear address.
    pub const fn page_fault(error: u32, linear: u64) -> Self {
        Self {
            vector: PF,
            error: Some(error),
            cr2: linear,
        }
    }
}
