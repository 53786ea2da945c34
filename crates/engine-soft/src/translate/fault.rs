//! Hardware exceptions inside generated code (#DE, misaligned SSE operands,
//! unmasked x87 and SIMD exceptions) arrive as signals; the handler turns them
//! into an exit, and the instruction is interpreted, which raises the guest's
//! exception.

use std::cell::Cell;
use std::mem::{MaybeUninit, offset_of};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::Cpu;
use crate::translate::enter::Switch;

const SLOTS: usize = 64;
static START: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static LENGTH: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static OLD: OnceLock<[libc::sigaction; 4]> = OnceLock::new();
const SIGNALS: [i32; 4] = [libc::SIGSEGV, libc::SIGFPE, libc::SIGBUS, libc::SIGILL];
static EXIT: AtomicUsize = AtomicUsize::new(0);

/// Adds a code range; from now on its faults become exits.
pub(crate) fn register(start: usize, len: usize) {
    install();
    for (s, l) in START.iter().zip(&LENGTH) {
        if s.compare_exchange(0, start, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            l.store(len, Ordering::SeqCst);
            return;
        }
    }
}

/// Removes a code range.
pub(crate) fn unregister(start: usize) {
    for (s, l) in START.iter().zip(&LENGTH) {
        if s.load(Ordering::SeqCst) == start {
            l.store(0, Ordering::SeqCst);
            s.store(0, Ordering::SeqCst);
        }
    }
}

fn in_code(pc: usize) -> bool {
    START.iter().zip(&LENGTH).any(|(s, l)| {
        let (s, l) = (s.load(Ordering::Relaxed), l.load(Ordering::Relaxed));
        s != 0 && pc.wrapping_sub(s) < l
    })
}

fn install() {
    EXIT.store(Switch::for_host().exit_address() as usize, Ordering::SeqCst);
    OLD.get_or_init(|| {
        SIGNALS.map(|sig| {
            // SAFETY: zeroed sigaction is valid; the handler is
            // async-signal-safe (atomics and the context only).
            unsafe {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = handler as *const () as usize;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigemptyset(&mut new.sa_mask);
                let mut old = MaybeUninit::zeroed();
                libc::sigaction(sig, &new, old.as_mut_ptr());
                old.assume_init()
            }
        })
    });
}

extern "C" fn handler(sig: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let regs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = regs[libc::REG_RIP as usize] as usize;
    if in_code(pc) {
        const FAULT_PC: usize = offset_of!(Cpu, jit.fault_pc);
        // SAFETY: in generated code gs points to the vCPU's `Cpu`.
        unsafe {
            std::arch::asm!("mov gs:[{}], {}", const FAULT_PC, in(reg) pc, options(nostack, preserves_flags));
        }
        regs[libc::REG_R15 as usize] = 0;
        regs[libc::REG_R14 as usize] = pc as i64;
        regs[libc::REG_RIP as usize] = EXIT.load(Ordering::Relaxed) as i64;
        return;
    }
    let slot = SIGNALS.iter().position(|&s| s == sig);
    let old = OLD.get().zip(slot).map(|(o, s)| o[s]);
    // SAFETY: restores or calls what was installed before us, as it expects.
    unsafe {
        match old {
            Some(o) if o.sa_sigaction > 1 && o.sa_flags & libc::SA_SIGINFO != 0 => {
                let f: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(o.sa_sigaction);
                f(sig, info, context);
            }
            _ => {
                libc::signal(sig, libc::SIG_DFL);
            }
        }
    }
}

thread_local! {
    /// Signals that were blocked before this thread ran guest code.
    static BLOCKED: Cell<Option<libc::sigset_t>> = const { Cell::new(None) };
}

/// Blocks all signals that are not raised by instructions: a handler that was
/// installed without `SA_ONSTACK` (by any library) would run on the guest's
/// stack pointer, so the kernel would write its frame where the guest says.
fn block_signals() {
    // SAFETY: a zeroed set is valid for sigfillset and pthread_sigmask.
    unsafe {
        let (mut all, mut old): (libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        for s in SIGNALS
            .into_iter()
            .chain([libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS])
        {
            libc::sigdelset(&mut all, s);
        }
        if libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut old) == 0 {
            BLOCKED.set(Some(old));
        }
    }
}

/// Gives the calling thread a signal stack of its own, so that signals can
/// arrive while the stack pointer holds a guest register. `SS_AUTODISARM`
/// keeps a guest's stack pointer that happens to point into it from being
/// mistaken for it.
pub(crate) fn use_signal_stack(stack: &mut [u8]) -> std::io::Result<()> {
    const SS_AUTODISARM: i32 = 1 << 31;
    let ss = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: SS_AUTODISARM,
        ss_size: stack.len(),
    };
    // SAFETY: the caller keeps `stack` alive while the thread runs guest code.
    if unsafe { libc::sigaltstack(&ss, std::ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    block_signals();
    Ok(())
}

/// Takes the thread's signal stack away again, before its memory goes.
pub(crate) fn drop_signal_stack() {
    let ss = libc::stack_t {
        ss_sp: std::ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: disables the alternate stack of this thread.
    unsafe { libc::sigaltstack(&ss, std::ptr::null_mut()) };
    if let Some(old) = BLOCKED.take() {
        // SAFETY: the mask that `block_signals` found.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    }
}
