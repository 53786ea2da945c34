//! The engine contract on KVM, and the probe that says whether this host's KVM
//! is worth using.
//!
//! Local APICs are the kernel's; I/O APIC, 8259 pair and 8254 stay the
//! machine's own (KVM's "split" interrupt controllers), so that the state of
//! all devices is the same under every engine.

mod clock;
mod debug;
mod doorbells;
mod engine;
mod interrupts;
mod kick;
mod line;
pub mod probe;
mod registers;
mod routes;
mod state;
mod vcpu;

pub use engine::KvmEngine;
pub use probe::{KvmVerdict, probe};

use std::io;
use std::os::fd::AsRawFd;

/// Name of this engine.
const NAME: &str = "kvm";

/// A request to a machine that kvm-ioctls has only for event descriptors of
/// its own kind.
///
/// # Safety
/// `what` is the structure that the request names, and its descriptors are
/// open.
unsafe fn request<T>(vm: &kvm_ioctls::VmFd, number: libc::c_ulong, what: &T) -> io::Result<()> {
    // SAFETY: a descriptor of a machine; the structure lives until the call
    // returns.
    match unsafe { libc::ioctl(vm.as_raw_fd(), number, std::ptr::from_ref(what)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Something that KVM refused.
fn failed(what: impl std::fmt::Display, error: kvm_ioctls::Error) -> ::engine::EngineError {
    ::engine::EngineError::Host {
        engine: NAME,
        reason: format!("KVM cannot {what}: {error}"),
    }
}
