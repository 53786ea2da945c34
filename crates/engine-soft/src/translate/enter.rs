//! Entering and leaving generated code.
//!
//! In generated code every guest general register is in the host register of
//! the same name, except r14 and r15, which live in `Cpu::gpr` and whose host
//! registers are scratch; the arithmetic flags are in the host's flags, the
//! vector registers and MXCSR in the host's; gs points to the `Cpu`.

use std::arch::global_asm;
use std::mem::offset_of;

use crate::cpu::Cpu;

// `Cpu` is repr(C); the parts that the assembly addresses are integers, and
// the others are only reached by `offset_of` from Rust.
#[allow(improper_ctypes)]
unsafe extern "sysv64" {
    fn holm_soft_enter_avx(cpu: *mut Cpu, code: *const u8);
    fn holm_soft_enter_sse(cpu: *mut Cpu, code: *const u8);
    fn holm_soft_exit_avx();
    fn holm_soft_exit_sse();
}

/// MXCSR of Rust code: all exceptions masked, round to nearest.
static HOST_MXCSR: u32 = 0x1f80;

macro_rules! switch_code {
    ($enter:literal, $exit:literal, $mov:literal, $reg:literal, $upper:literal) => {
        global_asm!(
            concat!(".globl ", $enter),
            concat!($enter, ":"),
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "sub rsp, 8",
            "mov [rdi + {host_rsp}], rsp",
            "mov [rdi + {entry}], rsi",
            "ldmxcsr [rdi + {mxcsr}]",
            concat!($mov, " ", $reg, "0, [rdi + {ymm} + 0]"),
            concat!($mov, " ", $reg, "1, [rdi + {ymm} + 32]"),
            concat!($mov, " ", $reg, "2, [rdi + {ymm} + 64]"),
            concat!($mov, " ", $reg, "3, [rdi + {ymm} + 96]"),
            concat!($mov, " ", $reg, "4, [rdi + {ymm} + 128]"),
            concat!($mov, " ", $reg, "5, [rdi + {ymm} + 160]"),
            concat!($mov, " ", $reg, "6, [rdi + {ymm} + 192]"),
            concat!($mov, " ", $reg, "7, [rdi + {ymm} + 224]"),
            concat!($mov, " ", $reg, "8, [rdi + {ymm} + 256]"),
            concat!($mov, " ", $reg, "9, [rdi + {ymm} + 288]"),
            concat!($mov, " ", $reg, "10, [rdi + {ymm} + 320]"),
            concat!($mov, " ", $reg, "11, [rdi + {ymm} + 352]"),
            concat!($mov, " ", $reg, "12, [rdi + {ymm} + 384]"),
            concat!($mov, " ", $reg, "13, [rdi + {ymm} + 416]"),
            concat!($mov, " ", $reg, "14, [rdi + {ymm} + 448]"),
            concat!($mov, " ", $reg, "15, [rdi + {ymm} + 480]"),
            "mov rax, [rdi + {flags_ax}]",
            "add al, 0x7f",
            "sahf",
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rsp, [rdi + 32]",
            "mov rbp, [rdi + 40]",
            "mov rsi, [rdi + 48]",
            "mov r8, [rdi + 64]",
            "mov r9, [rdi + 72]",
            "mov r10, [rdi + 80]",
            "mov r11, [rdi + 88]",
            "mov r12, [rdi + 96]",
            "mov r13, [rdi + 104]",
            "mov r14, [rdi + {operand}]",
            "mov rdi, [rdi + 56]",
            "jmp qword ptr gs:[{entry}]",
            concat!(".globl ", $exit),
            concat!($exit, ":"),
            "mov gs:[0], rax",
            "lahf",
            "seto al",
            "mov gs:[{flags_ax}], rax",
            "mov gs:[8], rcx",
            "mov gs:[16], rdx",
            "mov gs:[24], rbx",
            "mov gs:[32], rsp",
            "mov gs:[40], rbp",
            "mov gs:[48], rsi",
            "mov gs:[56], rdi",
            "mov gs:[64], r8",
            "mov gs:[72], r9",
            "mov gs:[80], r10",
            "mov gs:[88], r11",
            "mov gs:[96], r12",
            "mov gs:[104], r13",
            "mov gs:[{exit}], r15",
            "mov gs:[{exit_addr}], r14",
            concat!($mov, " gs:[{ymm} + 0], ", $reg, "0"),
            concat!($mov, " gs:[{ymm} + 32], ", $reg, "1"),
            concat!($mov, " gs:[{ymm} + 64], ", $reg, "2"),
            concat!($mov, " gs:[{ymm} + 96], ", $reg, "3"),
            concat!($mov, " gs:[{ymm} + 128], ", $reg, "4"),
            concat!($mov, " gs:[{ymm} + 160], ", $reg, "5"),
            concat!($mov, " gs:[{ymm} + 192], ", $reg, "6"),
            concat!($mov, " gs:[{ymm} + 224], ", $reg, "7"),
            concat!($mov, " gs:[{ymm} + 256], ", $reg, "8"),
            concat!($mov, " gs:[{ymm} + 288], ", $reg, "9"),
            concat!($mov, " gs:[{ymm} + 320], ", $reg, "10"),
            concat!($mov, " gs:[{ymm} + 352], ", $reg, "11"),
            concat!($mov, " gs:[{ymm} + 384], ", $reg, "12"),
            concat!($mov, " gs:[{ymm} + 416], ", $reg, "13"),
            concat!($mov, " gs:[{ymm} + 448], ", $reg, "14"),
            concat!($mov, " gs:[{ymm} + 480], ", $reg, "15"),
            "stmxcsr gs:[{mxcsr}]",
            "ldmxcsr [rip + {host_mxcsr}]",
            $upper,
            "mov rsp, gs:[{host_rsp}]",
            "add rsp, 8",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "ret",
            host_rsp = const offset_of!(Cpu, jit.host_rsp),
            entry = const offset_of!(Cpu, jit.entry),
            exit = const offset_of!(Cpu, jit.exit),
            exit_addr = const offset_of!(Cpu, jit.exit_addr),
            flags_ax = const offset_of!(Cpu, jit.flags_ax),
            mxcsr = const offset_of!(Cpu, mxcsr),
            ymm = const offset_of!(Cpu, ymm),
            operand = const offset_of!(Cpu, jit.operand),
            host_mxcsr = sym HOST_MXCSR,
        );
    };
}

switch_code!(
    "holm_soft_enter_avx",
    "holm_soft_exit_avx",
    "vmovaps",
    "ymm",
    "vzeroupper"
);
switch_code!(
    "holm_soft_enter_sse",
    "holm_soft_exit_sse",
    "movaps",
    "xmm",
    "nop"
);

/// How to enter and leave generated code on this host.
#[derive(Clone, Copy)]
pub(crate) struct Switch {
    enter: unsafe extern "sysv64" fn(*mut Cpu, *const u8),
    exit: unsafe extern "sysv64" fn(),
}

impl Switch {
    /// With AVX if the host has it.
    pub fn for_host() -> Self {
        if std::arch::is_x86_feature_detected!("avx") {
            Self {
                enter: holm_soft_enter_avx,
                exit: holm_soft_exit_avx,
            }
        } else {
            Self {
                enter: holm_soft_enter_sse,
                exit: holm_soft_exit_sse,
            }
        }
    }

    /// Address that generated code jumps to in order to leave, with r15 = the
    /// exit record and r14 = its address operand.
    pub fn exit_address(&self) -> u64 {
        self.exit as usize as u64
    }

    /// Runs generated code until it leaves.
    ///
    /// # Safety
    /// gs must point to `cpu` on this thread, `code` into a code cache whose
    /// code keeps the conventions above, and nothing else may use `cpu`.
    pub unsafe fn enter(&self, cpu: *mut Cpu, code: *const u8) {
        // SAFETY: by contract.
        unsafe { (self.enter)(cpu, code) }
    }
}

/// Points this thread's gs at the vCPU's state.
///
/// # Errors
/// The kernel's.
pub(crate) fn point_gs(cpu: *mut Cpu) -> std::io::Result<()> {
    const ARCH_SET_GS: i32 = 0x1001;
    // SAFETY: sets the gs base, which neither Rust nor libc uses on x86-64.
    if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, cpu) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
