//! Making a vCPU's thread leave KVM_RUN: a flag that KVM looks at before it
//! enters the guest, and a signal that ends what it is doing.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Once};

use engine::VcpuHandle;
use kvm_bindings::kvm_run;

use crate::interrupts::Interrupts;

thread_local! {
    /// The structure shared with KVM of the vCPU that this thread is running.
    static RUNNING: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal: none that the C library or this program uses otherwise.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 5
}

extern "C" fn on_signal(_: libc::c_int) {
    // A constant initial value and no destructor: safe in a signal handler.
    let run = RUNNING.get();
    if !run.is_null() {
        // SAFETY: set by `Guard`, which outlives the use of the mapping and
        // belongs to this very thread; one byte, which the kernel reads too.
        unsafe { std::ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
    }
}

/// Has the signal handled in this process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one; the handler does what
        // signal handlers may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
}

/// What other threads reach of a vCPU.
pub(crate) struct Handle {
    id: u32,
    /// A kick that `run` has not yet returned for.
    kicked: AtomicBool,
    /// The thread in `run`; 0: none.
    thread: AtomicI32,
    interrupts: Arc<Interrupts>,
}

impl Handle {
    /// Of the vCPU with this APIC id.
    pub(crate) fn new(id: u32, interrupts: Arc<Interrupts>) -> Arc<Self> {
        install();
        Arc::new(Self {
            id,
            kicked: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            interrupts,
        })
    }

    /// Whether there was a kick; once.
    pub(crate) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Has the vCPU's thread look around: `run` goes on unless it was kicked.
    pub(crate) fn interrupt(&self) {
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: takes integers. A thread that has ended meanwhile makes
            // it fail, and a new one of this process handles the signal.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

impl VcpuHandle for Handle {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    fn nmi(&self) {
        self.interrupts.nmi(self.id);
    }
}

/// While it lives, the signal makes this thread's next KVM_RUN return.
pub(crate) struct Guard<'a>(&'a Handle);

impl<'a> Guard<'a> {
    /// `run` is the vCPU's structure shared with KVM.
    pub(crate) fn new(handle: &'a Handle, run: *mut kvm_run) -> Self {
        RUNNING.set(run);
        // SAFETY: no arguments, no memory.
        let thread = unsafe { libc::gettid() };
        handle.thread.store(thread, Ordering::SeqCst);
        Self(handle)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.thread.store(0, Ordering::SeqCst);
        RUNNING.set(std::ptr::null_mut());
    }
}
