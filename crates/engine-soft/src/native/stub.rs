//! Host stubs: for each instruction form a few host instructions that load the
//! registers it uses, run it on a fixed buffer instead of the guest's memory,
//! and store everything back.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess, OpKind, Register,
};

use super::features::Features;
use super::form::{self, Action, Form};
use super::{AT_DEFAULT_MXCSR, AT_FLAGS, AT_MXCSR, AT_OPERAND};
use crate::cpu::{Cpu, Ymm, flag};

/// Bytes of stubs of one vCPU; when full, all are dropped and made anew.
const REGION_SIZE: usize = 256 << 10;
/// No stub is longer than this.
const STUB_MAX: usize = 1024;

/// Executable memory: one memfd mapped twice, so that no address is ever both
/// writable and executable.
struct Region {
    write: *mut u8,
    exec: *const u8,
    used: usize,
}

// SAFETY: owns its mappings; used by one thread at a time.
unsafe impl Send for Region {}

impl Region {
    fn new() -> io::Result<Self> {
        // SAFETY: a constant NUL-terminated name; the result is checked.
        let fd = unsafe { libc::memfd_create(c"holm-native".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a valid descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), REGION_SIZE as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |prot| {
            // SAFETY: a fresh shared mapping at an address of the kernel's
            // choice; nothing is replaced.
            let p = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    REGION_SIZE,
                    prot,
                    libc::MAP_SHARED,
                    fd.as_raw_fd(),
                    0,
                )
            };
            if p == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok(p.cast::<u8>())
            }
        };
        let write = map(libc::PROT_READ | libc::PROT_WRITE)?;
        match map(libc::PROT_READ | libc::PROT_EXEC) {
            Ok(exec) => Ok(Self {
                write,
                exec,
                used: 0,
            }),
            Err(e) => {
                // SAFETY: mapped above with this size.
                unsafe { libc::munmap(write.cast(), REGION_SIZE) };
                Err(e)
            }
        }
    }

    /// Appends code; `None` if it does not fit.
    fn put(&mut self, code: &[u8]) -> Option<u32> {
        let at = self.used;
        if code.len() > STUB_MAX || at + code.len() > REGION_SIZE {
            return None;
        }
        // SAFETY: inside the writable mapping, checked above.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = (at + code.len()).next_multiple_of(16);
        Some(at as u32)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: both mapped by `new` with this size.
        unsafe {
            libc::munmap(self.write.cast(), REGION_SIZE);
            libc::munmap(self.exec.cast_mut().cast(), REGION_SIZE);
        }
    }
}

/// Hash of keys that are already well spread: one multiplication.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        let m = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = m ^ m >> 32;
    }
}

/// The forms seen so far, with their stubs.
pub(super) struct Stubs {
    region: Region,
    forms: HashMap<u64, Form, BuildHasherDefault<KeyHasher>>,
    factory: InstructionInfoFactory,
    host_avx: bool,
}

impl Stubs {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            region: Region::new()?,
            forms: HashMap::default(),
            factory: InstructionInfoFactory::new(),
            host_avx: std::is_x86_feature_detected!("avx"),
        })
    }

    /// The form of an instruction; `None` if the guest may not use it.
    #[inline]
    pub(super) fn get(&mut self, i: &Instruction, features: &Features) -> Option<Form> {
        let key = form::key(i);
        if let Some(f) = self.forms.get(&key) {
            return Some(*f);
        }
        self.make(key, i, features)
    }

    #[cold]
    fn make(&mut self, key: u64, i: &Instruction, features: &Features) -> Option<Form> {
        let mut form = form::recognise(i, features, &mut self.factory)?;
        let needs_stub = match &mut form.action {
            Action::Stub(at) | Action::MaskedLoad { stub: at, .. } => Some(at),
            _ => None,
        };
        if let Some(at) = needs_stub {
            let code = assemble(i, form.mxcsr, form.flags, self.host_avx, &mut self.factory)?;
            *at = match self.region.put(&code) {
                Some(at) => at,
                None => {
                    self.forms.clear();
                    self.region.used = 0;
                    let at = self.region.put(&code)?;
                    serialize();
                    at
                }
            };
        }
        self.forms.insert(key, form);
        Some(form)
    }

    /// Runs a stub on a vCPU.
    ///
    /// # Safety
    /// `at` must come from a form that this value returned since its last
    /// `get`, x87 state must be the guest's if the form uses it, and the
    /// MXCSR cells of the buffer must hold valid values.
    #[inline]
    pub(super) unsafe fn call(&self, at: u32, cpu: *mut Cpu) {
        // SAFETY: a complete stub starts at `at` (see `assemble`): a function
        // of the System V ABI, which touches only `*cpu`.
        unsafe {
            let f: extern "sysv64" fn(*mut Cpu) =
                std::mem::transmute(self.region.exec.add(at as usize));
            f(cpu);
        }
    }
}

/// Makes the host forget prefetched code: stubs were replaced through another
/// mapping of the same memory (SDM vol. 3A, 9.1.3).
fn serialize() {
    std::hint::black_box(std::arch::x86_64::__cpuid(0));
}

/// Host registers for guest registers beyond rbx; rdi holds the state.
const SPARE: [Register; 6] = [
    Register::RSI,
    Register::RBP,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Registers of one instruction.
#[derive(Default)]
struct Uses {
    /// By guest number: the host register, and whether it is written.
    gpr: [Option<(Register, bool)>; 16],
    /// By number: used, written.
    vector: [(bool, bool); 16],
}

impl Uses {
    fn of(i: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Self> {
        let mut uses = Self::default();
        let mut spare = SPARE.iter();
        for u in factory.info(i).used_registers() {
            let r = u.register();
            let written = !matches!(u.access(), OpAccess::Read | OpAccess::CondRead);
            if r.is_vector_register() {
                let v = uses.vector.get_mut(r.number())?;
                *v = (true, v.1 | written);
            } else if r.is_gpr() {
                let n = r.full_register().number();
                let host = match uses.gpr.get(n)? {
                    Some((host, _)) => *host,
                    None if n < 4 => Register::RAX + n as u32,
                    None => *spare.next()?,
                };
                let before = uses.gpr[n].is_some_and(|g| g.1);
                uses.gpr[n] = Some((host, before | written));
            }
        }
        Some(uses)
    }

    /// The host register that stands for a guest register of any size.
    fn host(&self, r: Register) -> Option<Register> {
        if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
            return Some(r);
        }
        let (host, _) = self.gpr[r.full_register().number() & 15]?;
        let n = host.number() as u32;
        Some(match r.size() {
            1 if n < 4 => Register::AL + n,
            1 => Register::AL + n + 4,
            2 => Register::AX + n,
            4 => Register::EAX + n,
            _ => host,
        })
    }
}

struct Assembler {
    encoder: Encoder,
}

impl Assembler {
    fn put(&mut self, i: Result<Instruction, iced_x86::IcedError>) -> Option<()> {
        self.encoder.encode(&i.ok()?, 0).ok().map(drop)
    }
    fn reg_mem(&mut self, code: Code, reg: Register, at: usize) -> Option<()> {
        self.put(Instruction::with2(code, reg, state(at)))
    }
    fn mem_reg(&mut self, code: Code, at: usize, reg: Register) -> Option<()> {
        self.put(Instruction::with2(code, state(at), reg))
    }
    fn mem(&mut self, code: Code, at: usize) -> Option<()> {
        self.put(Instruction::with1(code, state(at)))
    }
    fn reg(&mut self, code: Code, reg: Register) -> Option<()> {
        self.put(Instruction::with1(code, reg))
    }
}

/// An operand in the vCPU's state.
fn state(at: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(Register::RDI, at as i64, 8)
}

fn gpr_at(n: usize) -> usize {
    offset_of!(Cpu, gpr) + n * 8
}

fn vector_at(n: usize) -> usize {
    offset_of!(Cpu, ymm) + n * size_of::<Ymm>()
}

/// The stub of a recognised instruction; `None` if it cannot be encoded in
/// 64-bit mode.
fn assemble(
    i: &Instruction,
    mxcsr: bool,
    flags: u32,
    avx: bool,
    factory: &mut InstructionInfoFactory,
) -> Option<Vec<u8>> {
    let mut body = without_address(i);
    let uses = Uses::of(&body, factory)?;
    for op in 0..body.op_count() {
        if body.op_kind(op) == OpKind::Register && body.op_register(op).is_gpr() {
            body.set_op_register(op, uses.host(body.op_register(op))?);
        }
    }
    if (0..body.op_count()).any(|op| body.op_kind(op) == OpKind::Memory) {
        body.set_memory_base(Register::RDI);
        body.set_memory_displacement64(AT_OPERAND as u64);
        body.set_memory_displ_size(8);
    }
    let reads_flags = i.rflags_read() != 0;
    let mut a = Assembler {
        encoder: Encoder::new(64),
    };
    a.reg(Code::Push_r64, Register::RBX)?;
    a.reg(Code::Push_r64, Register::RBP)?;
    load(&mut a, &uses, reads_flags, mxcsr, avx)?;
    a.put(Ok(body))?;
    store(&mut a, &uses, flags != 0, mxcsr, avx)?;
    a.reg(Code::Pop_r64, Register::RBP)?;
    a.reg(Code::Pop_r64, Register::RBX)?;
    a.put(Ok(Instruction::with(Code::Retnq)))?;
    Some(a.encoder.take_buffer())
}

/// The instruction with neither prefixes nor registers in its address.
fn without_address(i: &Instruction) -> Instruction {
    let mut n = *i;
    n.set_has_lock_prefix(false);
    n.set_has_rep_prefix(false);
    n.set_has_repne_prefix(false);
    n.set_segment_prefix(Register::None);
    n.set_memory_base(Register::None);
    n.set_memory_index(Register::None);
    n.set_memory_index_scale(1);
    n
}

fn load(a: &mut Assembler, uses: &Uses, flags: bool, mxcsr: bool, avx: bool) -> Option<()> {
    if flags {
        a.reg_mem(Code::Mov_r32_rm32, Register::EAX, offset_of!(Cpu, rflags))?;
        a.put(Instruction::with2(
            Code::And_EAX_imm32,
            Register::EAX,
            flag::STATUS as u32,
        ))?;
        a.reg(Code::Push_r64, Register::RAX)?;
        a.put(Ok(Instruction::with(Code::Popfq)))?;
    }
    for (n, used) in uses.vector.iter().enumerate() {
        if used.0 {
            let (code, reg) = if avx {
                (Code::VEX_Vmovups_ymm_ymmm256, Register::YMM0)
            } else {
                (Code::Movups_xmm_xmmm128, Register::XMM0)
            };
            a.reg_mem(code, reg + n as u32, vector_at(n))?;
        }
    }
    for (n, host) in uses.gpr.iter().enumerate() {
        if let Some((host, _)) = host {
            a.reg_mem(Code::Mov_r64_rm64, *host, gpr_at(n))?;
        }
    }
    if mxcsr {
        a.mem(Code::Ldmxcsr_m32, AT_MXCSR)?;
    }
    Some(())
}

fn store(a: &mut Assembler, uses: &Uses, flags: bool, mxcsr: bool, avx: bool) -> Option<()> {
    if flags {
        a.put(Ok(Instruction::with(Code::Pushfq)))?;
        a.mem(Code::Pop_rm64, AT_FLAGS)?;
    }
    if mxcsr {
        a.mem(Code::Stmxcsr_m32, AT_MXCSR)?;
        a.mem(Code::Ldmxcsr_m32, AT_DEFAULT_MXCSR)?;
    }
    for (n, host) in uses.gpr.iter().enumerate() {
        if let Some((host, true)) = host {
            a.mem_reg(Code::Mov_rm64_r64, gpr_at(n), *host)?;
        }
    }
    let mut any = false;
    for (n, used) in uses.vector.iter().enumerate() {
        any |= used.0;
        if used.1 {
            let (code, reg) = if avx {
                (Code::VEX_Vmovups_ymmm256_ymm, Register::YMM0)
            } else {
                (Code::Movups_xmmm128_xmm, Register::XMM0)
            };
            a.mem_reg(code, vector_at(n), reg + n as u32)?;
        }
    }
    if any && avx {
        a.put(Ok(Instruction::with(Code::VEX_Vzeroupper)))?;
    }
    Some(())
}
