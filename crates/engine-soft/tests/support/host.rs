//! The host CPU as an executor. The guest's linear addresses are mapped at the
//! same addresses of this process; signals do the rest: one signal's return
//! loads the registers of the case, the breakpoint after the instruction (or
//! its fault) is another signal, whose frame holds the outcome.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use arch::{Exception, exception};

use super::case::{Case, End, Executor, MEMORY, Outcome, canonical_xsave};
use super::{BASE, CODE, DATA, Mode, RAM_SIZE, READ_ONLY};

/// What the signal handler and the executor share during one case.
struct Exchange {
    case: *const Case,
    running: bool,
    done: bool,
    saved_registers: [i64; 23],
    saved_vectors: Vec<u8>,
    registers: [i64; 23],
    vectors: [u8; 832],
}

static CURRENT: AtomicPtr<Exchange> = AtomicPtr::new(std::ptr::null_mut());

const SIGNALS: [c_int; 6] = [
    libc::SIGUSR1,
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
];

/// Order of the general registers in a signal frame.
const FRAME_GPR: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// What was installed before, by signal as in `SIGNALS`.
static BEFORE: OnceLock<[libc::sigaction; 6]> = OnceLock::new();

/// A signal that does not belong to a case: the engine's own, or a crash.
///
/// # Safety
/// With the arguments of a signal handler.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let slot = SIGNALS.iter().position(|s| *s == signal);
    let before = BEFORE.get().zip(slot).map(|(b, n)| b[n]);
    // SAFETY: calls what was installed before as it expects.
    unsafe {
        match before {
            Some(b) if b.sa_sigaction > 1 && b.sa_flags & libc::SA_SIGINFO != 0 => {
                let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(b.sa_sigaction);
                f(signal, info, context);
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let exchange = CURRENT.load(Ordering::SeqCst);
    // SAFETY: the kernel passes a `ucontext_t`; `CURRENT` is null or points to
    // the exchange of the case that this thread runs.
    unsafe {
        let Some(exchange) = exchange.as_mut() else {
            return pass_on(signal, info, context);
        };
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let frame = context.fpregs.cast::<u8>();
        if exchange.running {
            finish(exchange, context, frame);
        } else {
            start(exchange, context, frame);
        }
    }
}

/// # Safety
/// `frame` is the signal frame's XSAVE area.
unsafe fn start(exchange: &mut Exchange, context: &mut libc::mcontext_t, frame: *mut u8) {
    exchange.saved_registers = context.gregs;
    // SAFETY: by contract; the kernel gives the area's size at byte 480 and
    // `saved_vectors` was made large enough; `case` outlives the run.
    unsafe {
        let size = frame.add(480).cast::<u32>().read().clamp(832, 16384) as usize;
        let kept = size.min(exchange.saved_vectors.len());
        std::ptr::copy_nonoverlapping(frame, exchange.saved_vectors.as_mut_ptr(), kept);
        let case = &*exchange.case;
        std::ptr::copy_nonoverlapping(case.xsave.as_ptr(), frame, 416);
        std::ptr::copy_nonoverlapping(case.xsave.as_ptr().add(576), frame.add(576), 256);
        let present = frame.add(512).cast::<u64>();
        present.write(present.read() | 7);
        for (n, at) in FRAME_GPR.iter().enumerate() {
            context.gregs[*at as usize] = case.gpr[n] as i64;
        }
        context.gregs[libc::REG_RIP as usize] = CODE as i64;
        context.gregs[libc::REG_EFL as usize] = case.rflags as i64;
        if case.mode == Mode::Compat {
            let at = &mut context.gregs[libc::REG_CSGSFS as usize];
            *at = *at & !0xffff | 0x23;
        }
    }
    exchange.running = true;
}

/// # Safety
/// `frame` is the signal frame's XSAVE area, as at `start`.
unsafe fn finish(exchange: &mut Exchange, context: &mut libc::mcontext_t, frame: *mut u8) {
    exchange.registers = context.gregs;
    context.gregs = exchange.saved_registers;
    // SAFETY: by contract.
    unsafe {
        std::ptr::copy_nonoverlapping(frame, exchange.vectors.as_mut_ptr(), 832);
        let size = frame.add(480).cast::<u32>().read().clamp(832, 16384) as usize;
        let kept = size.min(exchange.saved_vectors.len());
        std::ptr::copy_nonoverlapping(exchange.saved_vectors.as_ptr(), frame, kept);
    }
    exchange.running = false;
    exchange.done = true;
}

/// The host CPU. Must stay on the thread that made it; one at a time.
pub struct Host {
    code: *mut u8,
    compat: bool,
    signal_stack: *mut u8,
    _file: OwnedFd,
}

const SIGNAL_STACK: usize = 256 << 10;

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: all mapped by `new`; the stack is in use only during `run`.
        unsafe {
            libc::munmap(BASE as *mut c_void, RAM_SIZE as usize);
            libc::munmap(self.code.cast(), 4096);
            libc::munmap(self.signal_stack.cast(), SIGNAL_STACK);
        }
    }
}

fn map(at: u64, size: u64, prot: c_int, fd: c_int, offset: i64, replace: bool) -> *mut u8 {
    let (kind, fixed) = match (fd, replace) {
        (-1, _) if at == 0 => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0),
        (-1, true) => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::MAP_FIXED),
        (-1, false) => (
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            libc::MAP_FIXED_NOREPLACE,
        ),
        _ if at == 0 => (libc::MAP_SHARED, 0),
        _ => (libc::MAP_SHARED, libc::MAP_FIXED),
    };
    // SAFETY: replaces nothing but this module's own reservation.
    let p = unsafe {
        libc::mmap(
            at as *mut c_void,
            size as usize,
            prot,
            kind | fixed,
            fd,
            offset,
        )
    };
    assert!(p != libc::MAP_FAILED, "cannot map {at:#x}");
    p.cast()
}

impl Host {
    /// Maps the guest's addresses and installs the signal handlers.
    pub fn new() -> Self {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(BASE, RAM_SIZE, libc::PROT_NONE, -1, 0, false);
        map(DATA, MEMORY as u64, rw, -1, 0, true);
        let read_only = map(READ_ONLY, 4096, libc::PROT_READ, -1, 0, true);
        // SAFETY: just mapped; the read makes the page present.
        unsafe { read_only.read_volatile() };
        // SAFETY: constant name; checked below.
        let fd = unsafe { libc::memfd_create(c"holm-test-code".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just created.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a valid descriptor.
        assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), 4096) }, 0);
        map(CODE, 4096, libc::PROT_READ | libc::PROT_EXEC, fd, 0, true);
        let code = map(0, 4096, rw, fd, 0, false);
        install();
        let mut host = Self {
            code,
            compat: false,
            signal_stack: map(0, SIGNAL_STACK as u64, rw, -1, 0, false),
            _file: file,
        };
        host.compat = host.try_compat();
        host
    }

    /// Whether the kernel has segments for 32-bit programs.
    fn try_compat(&mut self) -> bool {
        let bytes = vec![0x90];
        let case = Case {
            mode: Mode::Compat,
            instructions: vec![iced_x86::Decoder::with_ip(32, &bytes, CODE, 0).decode()],
            undefined: 0,
            bytes,
            gpr: [0; 16],
            rflags: 0x202,
            xsave: initial(),
            memory: vec![0; MEMORY],
        };
        self.run(&case).end == End::Next(CODE + 1)
    }
}

/// State of a just-initialized FPU.
pub fn initial() -> Box<[u8; 832]> {
    let mut x = Box::new([0; 832]);
    x.copy_from_slice(&arch::state::initial_xsave());
    x
}

fn install() {
    BEFORE.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: the handler is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                let mut before: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                assert_eq!(libc::sigaction(signal, &action, &mut before), 0);
                before
            }
        })
    });
}

fn end_of(r: &[i64; 23]) -> End {
    let at = |n: c_int| r[n as usize] as u64;
    let (rip, error) = (at(libc::REG_RIP), at(libc::REG_ERR) as u32);
    match at(libc::REG_TRAPNO) as u8 {
        exception::BP => End::Next(rip - 1),
        // A fetch at a branch target: the branch itself completed.
        exception::PF if error & 16 != 0 => End::Next(rip),
        exception::PF => End::Fault(Exception::page_fault(error, at(libc::REG_CR2))),
        v @ (exception::GP | exception::SS | exception::AC | exception::NP) => {
            End::Fault(Exception::with_error(v, error))
        }
        v => End::Fault(Exception::new(v)),
    }
}

impl Executor for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn supports(&self, mode: Mode) -> bool {
        mode == Mode::Long || mode == Mode::Compat && self.compat
    }

    fn run(&mut self, case: &Case) -> Outcome {
        let mut exchange = Box::new(Exchange {
            case,
            running: false,
            done: false,
            saved_registers: [0; 23],
            saved_vectors: vec![0; 16384],
            registers: [0; 23],
            vectors: [0; 832],
        });
        // SAFETY: the code page's writable alias and the operand pages are
        // ours; the handler restores this thread's registers.
        unsafe {
            self.code.write_bytes(0xcc, 4096);
            std::ptr::copy_nonoverlapping(case.bytes.as_ptr(), self.code, case.bytes.len());
            std::ptr::copy_nonoverlapping(case.memory.as_ptr(), DATA as *mut u8, MEMORY);
            if case.mode == Mode::Compat {
                std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0x2b);
            }
            let stack = libc::stack_t {
                ss_sp: self.signal_stack.cast(),
                ss_flags: 0,
                ss_size: SIGNAL_STACK,
            };
            let mut before: libc::stack_t = std::mem::zeroed();
            assert_eq!(libc::sigaltstack(&stack, &mut before), 0);
            CURRENT.store(&raw mut *exchange, Ordering::SeqCst);
            libc::raise(libc::SIGUSR1);
            CURRENT.store(std::ptr::null_mut(), Ordering::SeqCst);
            assert_eq!(libc::sigaltstack(&before, std::ptr::null_mut()), 0);
        }
        assert!(exchange.done, "the case ended");
        let r = &exchange.registers;
        let mut memory = vec![0; MEMORY];
        // SAFETY: the operand pages are mapped.
        unsafe {
            std::ptr::copy_nonoverlapping(DATA as *const u8, memory.as_mut_ptr(), MEMORY);
        }
        let end = end_of(r);
        Outcome {
            end,
            rip: match end {
                End::Next(rip) => rip,
                _ => r[libc::REG_RIP as usize] as u64,
            },
            gpr: FRAME_GPR.map(|at| r[at as usize] as u64),
            rflags: r[libc::REG_EFL as usize] as u64,
            xsave: canonical_xsave(&exchange.vectors, case.mode),
            memory,
        }
    }
}
