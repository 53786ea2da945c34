//! Is this host's KVM worth using? Some `/dev/kvm` open and answer every
//! question well, but emulate each guest instruction (about two million a
//! second). So a guest loop is run and compared with the same loop run natively.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};

/// What [`probe`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct KvmVerdict {
    /// Whether guests would run at hardware speed.
    pub usable: bool,
    /// Whether guests would run at all.
    pub runs: bool,
    /// Why, and where it is not usable what the user can do; one sentence.
    pub reason: String,
    /// Version of KVM's API (KVM_GET_API_VERSION), once known.
    pub api_version: Option<i32>,
    /// Guest instructions per microsecond, once measured.
    pub guest_mips: Option<f64>,
    /// The same loop run natively.
    pub native_mips: Option<f64>,
}

impl KvmVerdict {
    fn unusable(reason: impl Into<String>) -> Self {
        Self {
            usable: false,
            runs: false,
            reason: reason.into(),
            api_version: None,
            guest_mips: None,
            native_mips: None,
        }
    }
}

/// Iterations (of two instructions) of the first run: 1 ms if each is emulated.
const SHORT: u32 = 1_000;
/// A short run that takes longer than this is emulated; a native one takes
/// 1 µs plus one exit.
const SHORT_LIMIT: Duration = Duration::from_micros(200);
/// Iterations of the measured runs: below 1 ms natively.
const LONG: u32 = 1_000_000;
/// Runs, of which the best counts: others may have been preempted.
const RUNS: usize = 4;
/// Below this part of native speed, KVM emulates.
const LEAST_RATIO: f64 = 0.25;
/// The probe as a whole; a KVM that does not come back is not usable.
const PATIENCE: Duration = Duration::from_secs(2);

const RAM_SIZE: usize = 0x2000;
const CODE_AT: u64 = 0x1000;
/// `1: dec ecx; jnz 1b; out 0x80, al; jmp .` for a 32-bit code segment.
const CODE: [u8; 7] = [0x49, 0x75, 0xfd, 0xe6, 0x80, 0xeb, 0xfe];

/// Opens `/dev/kvm`, runs a short guest loop (well below 100 ms on any KVM) and
/// judges by its speed.
pub fn probe() -> KvmVerdict {
    let (send, receive) = mpsc::channel();
    let worker = thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || {
            // The receiver may have given up: then nobody wants to know.
            let _ = send.send(examine());
        });
    if let Err(error) = worker {
        return KvmVerdict::unusable(format!("no thread for the probe: {error}"));
    }
    // A vCPU that never exits keeps its thread until the process ends.
    receive.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        KvmVerdict::unusable("/dev/kvm does not return from running a guest of ten instructions")
    })
}

fn examine() -> KvmVerdict {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return KvmVerdict::unusable(cannot_open(error.errno())),
    };
    let api_version = kvm.get_api_version();
    let mut verdict = KvmVerdict::unusable("");
    verdict.api_version = Some(api_version);
    if api_version != KVM_API_VERSION as i32 {
        verdict.reason =
            format!("KVM's API has version {api_version}; Holm needs {KVM_API_VERSION}");
        return verdict;
    }
    for (capability, name) in [
        (Cap::UserMemory, "user memory"),
        (Cap::ExtCpuid, "CPUID tables"),
    ] {
        if !kvm.check_extension(capability) {
            verdict.reason = format!("KVM lacks {name}: a newer host kernel is needed");
            return verdict;
        }
    }
    match measure(&kvm) {
        Ok((guest, native)) => {
            judge(&mut verdict, guest, native);
            if let Err(error) = crate::engine::fits(&kvm) {
                verdict.runs = false;
                verdict.reason = match std::mem::take(&mut verdict.usable) {
                    true => error.to_string(),
                    // That it only emulates is said first.
                    false => format!("{}; and {error}", verdict.reason),
                };
            }
        }
        Err(reason) => verdict.reason = reason,
    }
    verdict
}

fn judge(verdict: &mut KvmVerdict, guest: f64, native: f64) {
    verdict.runs = true;
    verdict.guest_mips = Some(guest);
    verdict.native_mips = Some(native);
    verdict.usable = guest >= native * LEAST_RATIO;
    verdict.reason = if verdict.usable {
        format!(
            "a guest loop runs at {:.0}% of native speed",
            guest / native * 100.0
        )
    } else {
        format!(
            "KVM opens, but only emulates: a guest loop runs {guest:.1} million instructions a \
             second against {native:.0} natively"
        )
    };
}

fn cannot_open(errno: i32) -> String {
    match errno {
        libc::ENOENT => "there is no /dev/kvm: the CPU's virtualization is off or hidden (in a \
                         virtual machine: nested virtualization), or module kvm is not loaded"
            .into(),
        libc::EACCES | libc::EPERM => {
            "no right to open /dev/kvm: join the group kvm (usermod -aG kvm USER) and log in again"
                .into()
        }
        _ => format!(
            "/dev/kvm cannot be opened: {}",
            std::io::Error::from_raw_os_error(errno)
        ),
    }
}

/// Guest and native speed in million instructions per second.
fn measure(kvm: &Kvm) -> Result<(f64, f64), String> {
    let failed = |what: &'static str| move |error| format!("KVM cannot {what}: {error}");
    // Before the machine, so that it is dropped after it.
    let ram = Ram::new()?;
    let vm = kvm.create_vm().map_err(failed("create a machine"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM_SIZE as u64,
        userspace_addr: ram.0 as u64,
    };
    // SAFETY: the region is `ram`'s mapping, used nowhere else and dropped
    // after the vCPU and the machine (declared before them).
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("map guest memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    flat_protected_mode(&vcpu).map_err(failed("set a vCPU's registers"))?;
    let mut short = Duration::MAX;
    for _ in 0..RUNS {
        // The first run of all may have to fault memory in, or be preempted.
        if short > SHORT_LIMIT {
            short = short.min(run(&mut vcpu, SHORT)?);
        }
    }
    let native = best(|| Ok(run_natively(LONG)))?;
    if short > SHORT_LIMIT {
        return Ok((mips(SHORT, short), mips(LONG, native)));
    }
    let enough = native.div_f64(LEAST_RATIO * 2.0);
    let mut guest = Duration::MAX;
    for _ in 0..RUNS {
        guest = guest.min(run(&mut vcpu, LONG)?);
        // Clearly fast, or clearly not: no need to look again.
        if guest < enough || guest > enough * 10 {
            break;
        }
    }
    Ok((mips(LONG, guest), mips(LONG, native)))
}

fn best(mut one: impl FnMut() -> Result<Duration, String>) -> Result<Duration, String> {
    let mut least = Duration::MAX;
    for _ in 0..RUNS {
        least = least.min(one()?);
    }
    Ok(least)
}

fn mips(iterations: u32, time: Duration) -> f64 {
    f64::from(iterations) * 2.0 / (time.as_secs_f64() * 1e6).max(1e-3)
}

fn flat_protected_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut registers = vcpu.get_sregs()?;
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    registers.cs = kvm_segment { type_: 0xb, ..flat };
    let data = kvm_segment {
        type_: 3,
        selector: 16,
        ..flat
    };
    registers.ds = data;
    registers.es = data;
    registers.fs = data;
    registers.gs = data;
    registers.ss = data;
    registers.cr0 |= 1;
    vcpu.set_sregs(&registers)
}

fn run(vcpu: &mut VcpuFd, iterations: u32) -> Result<Duration, String> {
    let mut registers = vcpu
        .get_regs()
        .map_err(|e| format!("KVM cannot read registers: {e}"))?;
    registers.rip = CODE_AT;
    registers.rcx = u64::from(iterations);
    registers.rflags = 2;
    vcpu.set_regs(&registers)
        .map_err(|e| format!("KVM cannot set registers: {e}"))?;
    let start = Instant::now();
    let exit = vcpu
        .run()
        .map_err(|e| format!("KVM cannot run a guest: {e}"))?;
    let time = start.elapsed();
    match exit {
        VcpuExit::IoOut(0x80, _) => {}
        other => return Err(format!("KVM runs a simple guest loop wrongly: {other:?}")),
    }
    let left = vcpu
        .get_regs()
        .map_err(|e| format!("KVM cannot read registers: {e}"))?
        .rcx;
    if left != 0 {
        return Err(format!(
            "KVM runs a simple guest loop wrongly: {left} iterations are left"
        ));
    }
    Ok(time)
}

fn run_natively(iterations: u32) -> Duration {
    let start = Instant::now();
    // SAFETY: a loop on one register; `iterations` is a constant above zero.
    unsafe {
        std::arch::asm!(
            "2: dec {0:e}",
            "jnz 2b",
            inout(reg) iterations => _,
            options(nomem, nostack)
        );
    }
    start.elapsed()
}

/// Guest memory with the loop in it.
struct Ram(*mut libc::c_void);

impl Ram {
    fn new() -> Result<Self, String> {
        // SAFETY: a fresh anonymous mapping; nothing else is touched.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(format!(
                "no memory for the probe: {}",
                std::io::Error::last_os_error()
            ));
        }
        // SAFETY: the code lies within the mapping just made, which no guest
        // uses yet.
        unsafe {
            at.cast::<u8>()
                .add(CODE_AT as usize)
                .copy_from_nonoverlapping(CODE.as_ptr(), CODE.len());
        }
        Ok(Self(at))
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        unsafe { libc::munmap(self.0, RAM_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_decides() {
        let mut verdict = KvmVerdict::unusable("");
        judge(&mut verdict, 2.0, 8000.0);
        assert!(!verdict.usable);
        assert!(
            verdict.reason.contains("only emulates"),
            "{}",
            verdict.reason
        );
        judge(&mut verdict, 7600.0, 8000.0);
        assert!(verdict.usable);
        assert!(verdict.reason.contains("95%"), "{}", verdict.reason);
    }

    #[test]
    fn the_native_loop_takes_time() {
        let speed = mips(LONG, best(|| Ok(run_natively(LONG))).unwrap());
        assert!((50.0..50_000.0).contains(&speed), "{speed}");
    }

    #[test]
    fn the_probe_is_short_and_says_why() {
        let start = Instant::now();
        let verdict = probe();
        assert!(start.elapsed() < Duration::from_secs(3));
        assert!(!verdict.reason.is_empty());
        if verdict.usable {
            assert!(verdict.guest_mips.unwrap() > 50.0);
        }
    }

    #[test]
    fn reasons_for_not_opening_say_what_to_do() {
        assert!(cannot_open(libc::ENOENT).contains("nested"));
        assert!(cannot_open(libc::EACCES).contains("usermod"));
        assert!(cannot_open(libc::EBUSY).contains("busy"));
    }
}
