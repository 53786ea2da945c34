//! Doorbells in guest memory that KVM rings by itself (KVM_IOEVENTFD).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use engine::Doorbells;
use kvm_bindings::kvm_ioeventfd;
use kvm_ioctls::VmFd;

/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: libc::c_ulong = 0x4040_ae79;
/// `KVM_IOEVENTFD_FLAG_DEASSIGN`.
const DEASSIGN: u32 = 1 << 2;

/// The doorbells of one machine.
pub(crate) struct KvmDoorbells(pub(crate) Arc<VmFd>);

impl KvmDoorbells {
    fn set(&self, gpa: u64, event: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
        let doorbell = kvm_ioeventfd {
            addr: gpa,
            // Stores of any size.
            len: 0,
            fd: event.as_raw_fd(),
            flags,
            ..Default::default()
        };
        // SAFETY: the request's structure; the event is open while borrowed.
        unsafe { crate::request(&self.0, KVM_IOEVENTFD, &doorbell) }
    }
}

impl Doorbells for KvmDoorbells {
    fn attach(&self, gpa: u64, event: BorrowedFd<'_>) -> io::Result<()> {
        self.set(gpa, event, 0)
    }

    fn detach(&self, gpa: u64, event: BorrowedFd<'_>) -> io::Result<()> {
        self.set(gpa, event, DEASSIGN)
    }
}
