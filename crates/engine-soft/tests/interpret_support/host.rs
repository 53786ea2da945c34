//! The host CPU as an oracle: runs one instruction in 64-bit or 32-bit
//! (compatibility) mode with given registers, flags and memory.

use super::{BUFFER, BUFFER_SIZE};

/// Address of the block that exchanges registers with the stub.
const BLOCK: u64 = 0x2100_0000;
/// In it: general registers in (8 bytes each), flags in, the same out.
const FLAGS_IN: u64 = BLOCK + 0x80;
const OUT: u64 = BLOCK + 0x100;
const FLAGS_OUT: u64 = BLOCK + 0x180;
/// The host's RSP.
const HOST_RSP: u64 = BLOCK + 0x200;
/// Far pointer to [`SMALL`].
const FAR_IN: u64 = BLOCK + 0x208;
/// Top of a small stack for 32-bit code.
const SMALL_STACK: u64 = BLOCK + 0x800;
/// The stub.
const STUB: u64 = BLOCK + 0x1000;
/// Its 32-bit part.
const SMALL: u64 = BLOCK + 0x1800;

/// Linux's selectors of user code and data.
const CODE32: u16 = 0x23;
const CODE64: u16 = 0x33;
const DATA: u16 = 0x2b;

/// State after an instruction.
#[derive(PartialEq, Eq)]
pub struct Outcome {
    pub gpr: [u64; 16],
    pub flags: u64,
    pub buffer: Vec<u8>,
}

/// Memory at fixed addresses that the host's instructions work on.
pub struct Host {
    /// Run instructions in 32-bit code.
    small: bool,
}

impl Host {
    /// For 64-bit code.
    pub fn long() -> Self {
        Self::new(false)
    }

    /// For 32-bit code; `None` if the host has none.
    pub fn small() -> Option<Self> {
        let host = Self::new(true);
        // SAFETY: the child only runs the stub and ends.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                host.run(&[0x90], &[0; 16], 2, &[0; BUFFER_SIZE]);
                libc::_exit(0);
            }
            let mut status = -1;
            libc::waitpid(child, &raw mut status, 0);
            (status == 0).then_some(host)
        }
    }

    fn new(small: bool) -> Self {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(BUFFER, BUFFER_SIZE, rw);
        map(BLOCK, 0x2000, rw | libc::PROT_EXEC);
        Self { small }
    }

    /// Runs one instruction with these registers, flags and buffer.
    pub fn run(&self, code: &[u8], gpr: &[u64; 16], flags: u64, buffer: &[u8]) -> Outcome {
        let stub = if self.small {
            let small = small_part(code);
            // SAFETY: mapped by `new`.
            unsafe {
                std::ptr::copy_nonoverlapping(small.as_ptr(), SMALL as *mut u8, small.len());
                (FAR_IN as *mut u32).write(SMALL as u32);
                ((FAR_IN + 4) as *mut u16).write(CODE32);
            }
            long_stub(&excursion())
        } else {
            let mut body = code.to_vec();
            store_registers(&mut body);
            long_stub(&body)
        };
        // SAFETY: the mappings of `new`; the caller made sure that the
        // instruction only touches them and the general registers.
        unsafe {
            std::ptr::copy_nonoverlapping(stub.as_ptr(), STUB as *mut u8, stub.len());
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), BUFFER as *mut u8, BUFFER_SIZE);
            (BLOCK as *mut [u64; 16]).write(*gpr);
            (OUT as *mut [u64; 16]).write([0; 16]);
            (FLAGS_OUT as *mut u64).write(0);
            (FLAGS_IN as *mut u64).write(flags);
            let f: extern "C" fn() = std::mem::transmute(STUB as *const ());
            f();
            Outcome {
                gpr: (OUT as *const [u64; 16]).read(),
                flags: (FLAGS_OUT as *const u64).read(),
                buffer: std::slice::from_raw_parts(BUFFER as *const u8, BUFFER_SIZE).to_vec(),
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, used by nobody any more.
        unsafe {
            libc::munmap(BUFFER as *mut libc::c_void, BUFFER_SIZE);
            libc::munmap(BLOCK as *mut libc::c_void, 0x2000);
        }
    }
}

fn map(at: u64, size: usize, protection: i32) {
    // SAFETY: the address is free, or the call fails.
    let p = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            size,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(p as u64, at, "memory at {at:#x}");
}

/// `mov reg, [address]` (or the store) in 64-bit code.
fn absolute(out: &mut Vec<u8>, store: bool, reg: usize, address: u64) {
    let op = if store { 0x89 } else { 0x8b };
    let rex = 0x48 | (reg as u8 >> 3) << 2;
    out.extend([rex, op, (reg as u8 & 7) << 3 | 4, 0x25]);
    out.extend((address as u32).to_le_bytes());
}

/// An instruction with an absolute memory operand in 64-bit code.
fn with_address(out: &mut Vec<u8>, opcode: u8, digit: u8, address: u64) {
    out.extend([opcode, digit << 3 | 4, 0x25]);
    out.extend((address as u32).to_le_bytes());
}

fn store_registers(out: &mut Vec<u8>) {
    for r in 0..16 {
        absolute(out, true, r, OUT + 8 * r as u64);
    }
    absolute(out, false, 4, HOST_RSP);
    out.push(0x9c);
    with_address(out, 0x8f, 0, FLAGS_OUT);
}

/// Goes to the 32-bit part, which comes back behind this.
fn far_jump() -> Vec<u8> {
    let mut s = Vec::new();
    with_address(&mut s, 0xff, 5, FAR_IN);
    s
}

/// [`far_jump`], and what follows on return: the host's stack.
fn excursion() -> Vec<u8> {
    let mut s = far_jump();
    absolute(&mut s, false, 4, HOST_RSP);
    s
}

/// Saves the host's registers, loads the instruction's, runs `body`, and
/// restores the host's.
fn long_stub(body: &[u8]) -> Vec<u8> {
    let mut s = long_start();
    s.extend(body);
    s.extend([
        0xfc, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3,
    ]);
    s
}

fn long_start() -> Vec<u8> {
    let mut s = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
    absolute(&mut s, true, 4, HOST_RSP);
    // DS and ES matter in 32-bit code only.
    s.push(0xb8);
    s.extend(u32::from(DATA).to_le_bytes());
    s.extend([0x8e, 0xd8, 0x8e, 0xc0]);
    with_address(&mut s, 0xff, 6, FLAGS_IN);
    s.push(0x9d);
    for r in 0..16 {
        absolute(&mut s, false, r, BLOCK + 8 * r as u64);
    }
    s
}

/// The instruction in 32-bit code; stores the registers and returns.
fn small_part(code: &[u8]) -> Vec<u8> {
    let mut s = code.to_vec();
    let at = |s: &mut Vec<u8>, opcode: u8, reg: u8, address: u64| {
        s.extend([opcode, reg << 3 | 5]);
        s.extend((address as u32).to_le_bytes());
    };
    for r in 0..8 {
        at(&mut s, 0x89, r, OUT + 8 * u64::from(r));
    }
    s.push(0xbc);
    s.extend((SMALL_STACK as u32).to_le_bytes());
    s.push(0x9c);
    at(&mut s, 0x8f, 0, FLAGS_OUT);
    // jmp 0x33:behind the far jump
    let back = STUB + (long_start().len() + far_jump().len()) as u64;
    s.push(0xea);
    s.extend((back as u32).to_le_bytes());
    s.extend(CODE64.to_le_bytes());
    s
}
