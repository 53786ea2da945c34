//! Short programs, each run by both engines from the same state; what they
//! leave must be equal.

use std::arch::asm;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arch::{CpuState, MpState};
use engine::Exit;

use super::compare::{ALL_FLAGS, differences};
use super::lab::{DATA, EngineKind, Lab, Mode, start};

const AF: u64 = 0x10;
const OF: u64 = 0x800;
const RF: u64 = 0x1_0000;

struct Program {
    name: &'static str,
    mode: Mode,
    /// Flags that the manual leaves undefined at the end.
    undefined: u64,
    code: Vec<u8>,
}

/// Assembles instructions.
macro_rules! code {
    ($($line:literal),* $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the instructions are jumped over; two addresses around them
        // are taken, between which is nothing else.
        unsafe {
            asm!(
                "lea {0}, [rip + 20f]",
                "lea {1}, [rip + 30f]",
                "jmp 30f",
                "20:",
                $($line,)*
                ".code64",
                "30:",
                out(reg) start,
                out(reg) end,
            );
            std::slice::from_raw_parts(start, end.offset_from_unsigned(start)).to_vec()
        }
    }};
}

pub(super) use code;

macro_rules! programs {
    ($($mode:ident $name:literal $undefined:expr => $($line:literal),*;)*) => {
        vec![$(Program {
            name: $name,
            mode: Mode::$mode,
            undefined: $undefined,
            code: code!($($line),*),
        }),*]
    };
}

fn integer() -> Vec<Program> {
    programs! {
        Kernel "arithmetic" 0 => "add rax, rcx", "adc rdx, rbx", "sbb eax, 5", "sub cx, dx", "neg bl", "inc r9", "dec r10d", "cmp r11, r12";
        Kernel "logic" AF => "and rax, rdx", "or ecx, 0x7f", "xor bx, si", "test r9, r10", "not r11";
        Kernel "multiplication" (ALL_FLAGS & !(OF | 1)) => "mul rcx", "imul rbx, rdx, 77", "imul ecx";
        Kernel "division" ALL_FLAGS => "xor edx, edx", "div rcx", "mov eax, -100", "cdq", "mov ecx, 7", "idiv ecx";
        Kernel "divide by zero" ALL_FLAGS => "xor ecx, ecx", "div rcx";
        Kernel "shifts" (OF | AF) => "shl rax, 13", "sar rbx, 3", "shr ecx, 1", "shld rdx, rax, 7", "shrd r9, r10, 60";
        Kernel "rotations" (OF | AF) => "rol rax, 7", "ror bx, 3", "rcl rcx, 5", "rcr edx, 9";
        Kernel "bits" (ALL_FLAGS & !1) => "bt rax, 13", "bts rcx, rdx", "btc r9, 3", "btr r10d, 31", "bsf rax, rbx", "bsr rcx, rdx";
        Kernel "bit counts" 0 => "popcnt rax, rcx", "bswap rdx", "movzx ecx, bl", "movsx rdx, ax", "movsxd rbx, r9d", "cdqe", "setc al", "cmovz rcx, rdx";
        Kernel "strings" 0 => "mov ecx, 100", "rep movsb", "lea rdi, [rsi + 0x300]", "mov ecx, 33", "rep stosq", "mov ecx, 50", "repe cmpsb", "std", "lodsw", "scasb";
        Kernel "stack" 0 => "push rax", "pushfq", "pop rbx", "call 4f", "4: pop rcx", "push 0x1234", "enter 32, 3", "leave", "pop dx";
        Kernel "atomics" 0 => "lock xadd [rsi], rax", "lock cmpxchg [rsi + 8], rcx", "lock cmpxchg16b [rsi + 16]", "xchg [rsi + 40], rdx", "lock inc dword ptr [rsi + 50]";
        Kernel "addresses" 0 => "mov rax, fs:[8]", "mov rcx, gs:[rsi * 1 - 0x40000]", "lea rdx, [rsi + rdi * 4 + 0x11]", "mov eax, [esi + 0x10]";
        Kernel "flags" 0 => "lahf", "sahf", "clc", "cmc", "std", "pushfq", "or qword ptr [rsp], 0x240ad5", "popfq";
        User "user flags" 0 => "pushfq", "or qword ptr [rsp], 0x43200", "popfq", "pushfq", "pop rax";
        Kernel "bmi" (AF | 4) => "andn rax, rcx, rdx", "bextr rbx, rcx, rdx", "blsr r9, r10", "pdep r11, r12, r13", "shlx rcx, rdx, rax", "mulx r8, r9, rcx";
    }
}

fn vector() -> Vec<Program> {
    programs! {
        User "sse" 0 => "movdqu xmm0, [rsi]", "movdqu xmm1, [rsi + 16]", "paddb xmm0, xmm1", "pshufb xmm1, xmm0", "pmaddwd xmm2, xmm0", "cvtsi2sd xmm3, rax", "sqrtsd xmm4, xmm3", "divsd xmm4, xmm3", "ucomisd xmm3, xmm4", "movups [rdi], xmm1", "crc32 rax, rcx";
        User "x87" 0 => "fninit", "fld1", "fldpi", "fmul st, st(1)", "fsqrt", "fist dword ptr [rdi]", "fstp tbyte ptr [rdi + 16]", "fldz", "fcomi st, st(1)";
        User "mxcsr" 0 => "mov dword ptr [rdi], 0x5fc0", "ldmxcsr [rdi]", "xorps xmm0, xmm0", "divss xmm0, xmm0", "stmxcsr [rdi + 4]";
        User "avx" 0 => "vmovdqu ymm0, [rsi]", "vpaddd ymm1, ymm0, [rsi + 32]", "vpermq ymm2, ymm1, 0x1b", "vmulpd ymm3, ymm0, ymm1", "vmovdqu [rdi], ymm2", "vextracti128 xmm4, ymm2, 1";
        Kernel "fxsave" 0 => "movdqu xmm5, [rsi]", "fninit", "fld1", "lea rdi, [rsi + 0x400]", "mov ecx, 120", "xor eax, eax", "rep stosq", "lea rdi, [rsi + 0x400]", "fxsave64 [rdi]", "pxor xmm5, xmm5", "fninit", "fxrstor64 [rdi]", "mov qword ptr [rdi + 8], 0", "mov qword ptr [rdi + 16], 0", "mov word ptr [rdi + 6], 0";
        Kernel "xsave" 0 => "vmovdqu ymm6, [rsi]", "lea rdi, [rsi + 0x400]", "mov ecx, 120", "xor eax, eax", "rep stosq", "lea rdi, [rsi + 0x400]", "mov eax, 7", "xor edx, edx", "xsave64 [rdi]", "vzeroall", "xrstor64 [rdi]", "mov qword ptr [rdi + 8], 0", "mov qword ptr [rdi + 16], 0", "mov word ptr [rdi + 6], 0";
        Kernel "task switched" 0 => "mov rax, cr0", "or eax, 8", "mov cr0, rax", "movaps xmm0, xmm1";
    }
}

fn system() -> Vec<Program> {
    programs! {
        Kernel "control registers" 0 => "mov rax, cr0", "mov rcx, cr4", "mov rdx, cr3", "mov cr3, rdx", "mov ebx, 5", "mov cr8, rbx", "mov r9, cr8", "clts", "smsw r10";
        Kernel "reserved cr4" 0 => "mov rax, 0x80000000", "mov cr4, rax";
        Kernel "paging without protection" 0 => "mov rax, cr0", "and eax, -2", "mov cr0, rax";
        Kernel "debug registers" 0 => "mov rax, 0x40000", "mov dr0, rax", "mov eax, 0x401", "mov dr7, rax", "mov rcx, dr6", "mov rdx, dr7", "mov rbx, dr0";
        Kernel "msrs" 0 => "mov ecx, 0xc0000102", "rdmsr", "mov eax, 0x1000", "wrmsr", "swapgs", "mov rbx, gs:[0]", "mov ecx, 0xc0000080", "rdmsr", "mov ecx, 0x174", "mov eax, 8", "xor edx, edx", "wrmsr";
        Kernel "no such msr" 0 => "mov ecx, 0xc0ffee", "rdmsr";
        Kernel "bases" 0 => "rdfsbase rax", "mov ecx, 0x41000", "wrgsbase rcx", "mov rdx, gs:[0]";
        Kernel "segments" 0 => "mov ax, 0x20", "mov ds, ax", "mov ax, 0x10", "mov es, ax", "xor eax, eax", "mov fs, ax", "mov ax, 0x58", "lldt ax", "mov ax, 0x0c", "mov gs, ax", "mov rbx, gs:[0]", "str cx", "sldt dx";
        Kernel "segment not present" 0 => "push 0x70", "lea rax, [rip]", "push rax", "retfq";
        Kernel "bad selector" 0 => "mov eax, 0x7c", "mov ds, eax";
        Kernel "lar and lsl" 0 => "mov ecx, 0x18", "lar eax, ecx", "and eax, 0xf0ff00", "lsl ebx, ecx", "verr cx", "verw cx", "mov ecx, 0x30", "lar edx, ecx", "and edx, 0xf0ff00";
        Kernel "descriptor tables" 0 => "sgdt [rdi]", "sidt [rdi + 16]", "lgdt [rdi]", "lidt [rdi + 16]";
        Kernel "far return to 32 bits" 0 => "lea rax, [rip + 4f]", "push 0x40", "push rax", "retfq", "4:", ".code32", "push eax", "mov ebx, esp", "inc ecx";
        Kernel "to user by iretq" 0 => "lea rax, [rip + 4f]", "push 0x23", "push 0x2b000", "push 0x3202", "push 0x2b", "push rax", "iretq", "4: mov rbx, cs", "push rbx";
        User "syscall" 0 => "mov r8, 5", "syscall";
        Kernel "sysret" 0 => "lea rcx, [rip + 4f]", "mov r11d, 0x3202", "sysretq", "4: mov rbx, cs", "mov rdx, ss";
        User "int 80" 0 => "int 0x80";
        User "int3" 0 => "nop", "int3";
        User "undefined instruction" 0 => "ud2";
        User "privileged instruction" 0 => "mov rax, cr0";
        User "page fault" 0 => "mov rbx, 0x40000000", "mov [rbx + 8], rax";
        Kernel "not canonical" 0 => "mov rbx, 0x8000000000000000", "mov rax, [rbx]";
        Kernel "instruction fetch fault" 0 => "mov eax, 0x40000000", "jmp rax";
        User "single step" 0 => "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop";
        Kernel "single step over mov ss" 0 => "pushfq", "or dword ptr [rsp], 0x100", "popfq", "mov ax, ss", "mov ss, ax", "nop", "nop";
        Kernel "breakpoint register" 0 => "mov rax, 0x40010", "mov dr0, rax", "mov eax, 0xd0402", "mov dr7, rax", "mov dword ptr [rax - 1 + 0x10], 1", "mov rax, 0x40010", "mov dword ptr [rax], 1", "nop";
        Kernel "ports and devices" 0 => "mov dx, 0x3f8", "in al, dx", "in eax, 0x70", "out 0x71, ax", "mov rbx, 0xd0000000", "mov ecx, [rbx + 4]", "mov [rbx + 8], rdx", "mov ecx, 3", "mov dx, 0x1f0", "rep insw", "mov rsi, rdi", "mov ecx, 2", "rep outsd", "movzx r9d, byte ptr [rbx + 9]", "add dword ptr [rbx], 5";
        Kernel "x2apic" 0 => "mov ecx, 0x1b", "rdmsr", "or eax, 0xc00", "wrmsr", "mov ecx, 0x808", "mov eax, 0x20", "xor edx, edx", "wrmsr", "mov ecx, 0x80f", "mov eax, 0x1ff", "wrmsr", "mov ecx, 0x80b", "xor eax, eax", "wrmsr", "mov ecx, 0x802", "rdmsr", "mov r9, cr8";
        Kernel "self ipi" 0 => "mov ecx, 0x1b", "rdmsr", "or eax, 0xc00", "wrmsr", "mov ecx, 0x80f", "mov eax, 0x1ff", "xor edx, edx", "wrmsr", "mov ecx, 0x83f", "mov eax, 0x61", "wrmsr", "nop", "sti", "nop", "nop";
        Compat "32 bits of a user" (ALL_FLAGS & !(AF | 1)) => "mov eax, 0x12345678", ".code32", "push eax", "mov ecx, [esi]", "add ecx, [esp]", "pushad", "popad", "inc edx", "aaa";
        Compat "int 80 of 32 bits" 0 => "int 0x80";
        Protected "decimal" (OF | AF) => ".code32", "mov eax, 0x19", "add al, 0x28", "daa", "mov ebx, eax", "sub al, 0x13", "das", "aam", "aad", "bound eax, [esi]";
        Protected "segments of 32 bits" 0 => ".code32", "mov eax, 0x50", "mov es, eax", "mov ecx, es:[0x1000]", "push ds", "pop fs", "mov eax, 0x58", "lldt ax", "mov eax, 0xc", "mov gs, eax", "mov edx, gs:[4]", "sgdt [edi]";
        Protected "divide error of 32 bits" ALL_FLAGS => ".code32", "xor ecx, ecx", "div ecx";
        Protected "paging on" 0 => ".code32", "mov eax, cr4", "mov cr4, eax", "mov eax, 0x60000", "mov dword ptr [eax], 0x83", "mov eax, cr4", "or eax, 0x10", "mov cr4, eax", "mov eax, 0x60000", "mov cr3, eax", "mov eax, cr0", "or eax, 0x80000000", "mov cr0, eax", "mov ebx, [esi]";
        Real "real mode" 0 => ".code16", "mov ax, 0x5000", "mov es, ax", "mov [si], bx", "mov es:[di], cx", "push ax", "pop bx", "pushf", "call 4f", "4: pop dx", "mov cx, 5", "rep movsb", "lea eax, [esi + ecx * 2]";
        Real "interrupt in real mode" 0 => ".code16", "int 0x42";
        Real "to protected mode" 0 => ".code16", "mov eax, cr0", "or al, 1", "mov cr0, eax", "mov ax, 0x10", "mov ds, ax", "mov ebx, [0x40000]";
        Real "divide error in real mode" ALL_FLAGS => ".code16", "xor bl, bl", "div bl";
    }
}

/// Runs one program: why it ended, its end state, memory and what it did to
/// the outside.
fn run(lab: &mut Lab, program: &Program) -> (Exit, CpuState, Vec<u8>, String) {
    let mut code = program.code.clone();
    // out 0x80, al; hlt
    code.extend([0xe6, 0x80, 0xf4]);
    lab.load(&code);
    lab.bus.seen.lock().unwrap().clear();
    let mut state = start(&lab.reset, program.mode);
    if program.name.contains("avx") || program.name == "xsave" {
        state.xcr0 = 7;
        state.cr4 |= 1 << 18;
    }
    if program.name == "bases" {
        state.cr4 |= 1 << 16;
    }
    lab.vcpus[0].restore(&state).unwrap();
    let exit = lab.run();
    let end = lab.vcpus[0].save().unwrap();
    let seen = lab.bus.seen.lock().unwrap().join("; ");
    (exit, end, lab.memory(), seen)
}

/// Times that a program is run before it counts as different: when QEMU's CPU
/// is interrupted itself, it forgets now and then that an instruction after
/// `sti` comes before the interrupt. What the engines do differently differs
/// each time.
const ATTEMPTS: usize = 3;

/// How many programs end differently; says how.
pub fn differ() -> usize {
    let mut labs = [EngineKind::Soft, EngineKind::Kvm].map(|kind| Lab::new(kind, 1));
    let all = [integer(), vector(), system()].concat_all();
    let count = all.len();
    let mut differ = 0;
    for program in all {
        let same = (0..ATTEMPTS).any(|_| {
            let found = how_they_differ(&mut labs, &program);
            if !found.is_empty() {
                println!("{:?} `{}`: soft / kvm", program.mode, program.name);
                found.iter().for_each(|line| println!("    {line}"));
            }
            found.is_empty()
        });
        differ += usize::from(!same);
    }
    println!("{count} programs, {differ} differ");
    differ
}

fn how_they_differ(labs: &mut [Lab; 2], program: &Program) -> Vec<String> {
    let [soft, kvm] =
        [0, 1].map(|n: usize| catch_unwind(AssertUnwindSafe(|| run(&mut labs[n], program))));
    let (soft, kvm) = match (soft, kvm) {
        (Ok(soft), Ok(kvm)) => (soft, kvm),
        (soft, kvm) => return vec![format!("ran: {} / {}", soft.is_ok(), kvm.is_ok())],
    };
    let mut found = differences(&soft.1, &kvm.1, program.undefined);
    if soft.0 != kvm.0 || soft.3 != kvm.3 {
        found.push(format!("{:?} {} / {:?} {}", soft.0, soft.3, kvm.0, kvm.3));
    }
    found.extend(memory_differs(&soft.2, &kvm.2, program.undefined));
    found
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Program>;
}

impl ConcatAll for [Vec<Program>; 3] {
    fn concat_all(self) -> Vec<Program> {
        self.into_iter().flatten().collect()
    }
}

/// Eight bytes at a time; flags in frames may be undefined, and QEMU's CPU does
/// not set RF in the frames of faults.
fn memory_differs(a: &[u8], b: &[u8], undefined: u64) -> Vec<String> {
    let undefined = undefined | RF | RF << 32 | RF << 16;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let words = a.chunks(8).zip(b.chunks(8)).enumerate();
    let unequal = words.filter(|(_, (a, b))| (word(a) ^ word(b)) & !undefined != 0);
    unequal
        .take(8)
        .map(|(n, (a, b))| format!("memory {:#x}: {:#x} / {:#x}", n * 8, word(a), word(b)))
        .collect()
}

/// How many states do not come back from an engine as they were given to it,
/// or are another engine's as they were; says how.
pub fn states_come_back() -> usize {
    let mut labs = [EngineKind::Soft, EngineKind::Kvm].map(|kind| Lab::new(kind, 1));
    let reset = labs[0].reset.clone();
    let mut failed = 0;
    for mode in [
        Mode::Kernel,
        Mode::User,
        Mode::Compat,
        Mode::Protected,
        Mode::Real,
    ] {
        for variant in 0..8 {
            let state = varied(start(&reset, mode), variant);
            for lab in &mut labs {
                lab.vcpus[0].restore(&state).unwrap();
                let back = lab.vcpus[0].save().unwrap();
                let found = differences(&state, &back, 0);
                if !found.is_empty() {
                    failed += 1;
                    let name = lab.engine.name();
                    println!("{mode:?} variant {variant}: given / back from {name}");
                    found.iter().for_each(|line| println!("    {line}"));
                }
            }
        }
    }
    println!("states that did not come back: {failed}");
    failed
}

/// One of several changes to a state.
fn varied(mut s: CpuState, variant: u32) -> CpuState {
    match variant {
        0 => {}
        1 => s.mp_state = MpState::Halted,
        2 => {
            s.interrupt_shadow = true;
            s.rflags |= 0x200;
        }
        3 => {
            s.nmi_blocked = true;
            s.nmi_pending = true;
        }
        4 => {
            for (n, byte) in s.xsave[160..416].iter_mut().enumerate() {
                *byte = n as u8;
            }
            s.xsave[512] = 3;
            s.xsave[24] = 0xa0;
            s.cr2 = DATA;
            s.cr8 = 7;
            s.lapic.regs[8] = 0x70;
        }
        5 => {
            s.dr = [DATA, 0x1000, 2, 3, 0, 0, 0xffff_0ff1, 0x403];
            s.segments[4].base = 0xffff_8000_0000_0000 & if s.cr0 >> 31 != 0 { !0 } else { 0 };
        }
        6 => {
            // A level-triggered and an edge-triggered vector requested, one in
            // service; x2APIC mode.
            s.lapic.base |= 0xc00;
            s.lapic.regs[2] = 0;
            s.lapic.regs[0xd] = 1;
            s.lapic.regs[0xf] = 0x1ff;
            s.lapic.regs[0x1a] = 1 << 5;
            s.lapic.regs[0x22] = 1 << 5 | 1 << 9;
            s.lapic.regs[0x13] = 1 << 2;
        }
        _ => s.mp_state = MpState::WaitForSipi,
    }
    s
}
