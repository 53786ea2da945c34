//! Linear addresses to memory: page walks, the software TLB, and the loads
//! and stores that everything outside generated code uses.

mod access;
mod tlb;
mod walk;

pub use tlb::TlbUse;
pub(crate) use tlb::{drop_writes, forget_writes};
pub use walk::{Access, Translation};
