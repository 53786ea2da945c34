//! The guest's time: its TSC, and the KVM paravirtual clock made from it
//! (Linux Documentation/virt/kvm/x86/msr.rst).
//!
//! The pair (guest TSC without TSC_ADJUST, system time) that the clock publishes
//! is the same on all vCPUs: (0, 0), or that of a restored state.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::core::Core;

/// The host's TSC.
#[inline]
pub fn host_tsc() -> u64 {
    // SAFETY: rdtsc exists on every x86-64 CPU.
    unsafe { _rdtsc() }
}

/// What [`expect_tsc_khz`] was told.
static EXPECTED: AtomicU32 = AtomicU32::new(0);

/// Says which frequency of the host's TSC a restored machine knows, in kHz: if
/// it is right within 300 parts per million, which is quickly measured, it is
/// taken. Has no effect after the first machine was made.
pub fn expect_tsc_khz(khz: u32) {
    EXPECTED.store(khz, Ordering::SeqCst);
}

/// Frequency of the host's TSC in kHz, as the host's hypervisor or CPU states
/// it, checked against the monotonic clock; else measured.
pub fn host_tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| {
        if let Some(stated) = stated_khz() {
            let seen = measure_khz(Duration::from_millis(2));
            if stated.abs_diff(seen) < stated / 50 {
                return stated;
            }
        }
        let expected = EXPECTED.load(Ordering::SeqCst);
        if expected != 0 {
            let off = expected.abs_diff(measure_khz(Duration::from_millis(3)));
            if u64::from(off) * 1_000_000 < u64::from(expected) * 300 {
                return expected;
            }
        }
        measure_khz(Duration::from_millis(25))
    })
}

fn stated_khz() -> Option<u32> {
    let [_, _, l1_ecx] = {
        let r = __cpuid(1);
        [r.eax, r.ebx, r.ecx]
    };
    if l1_ecx >> 31 != 0 {
        let max = __cpuid(0x4000_0000).eax;
        if (0x4000_0010..0x4001_0000).contains(&max) {
            let khz = __cpuid(0x4000_0010).eax;
            if khz > 100_000 {
                return Some(khz);
            }
        }
    }
    if __cpuid(0).eax >= 0x15 {
        let r = __cpuid(0x15);
        if r.eax != 0 && r.ebx != 0 && r.ecx != 0 {
            let hz = u64::from(r.ecx) * u64::from(r.ebx) / u64::from(r.eax);
            return u32::try_from(hz / 1000).ok().filter(|k| *k > 100_000);
        }
    }
    None
}

/// TSC and monotonic clock read as close together as can be.
fn pair() -> (u64, Instant) {
    let mut best = (u64::MAX, 0, Instant::now());
    for _ in 0..8 {
        let a = host_tsc();
        let now = Instant::now();
        let b = host_tsc();
        if b.wrapping_sub(a) < best.0 {
            best = (
                b.wrapping_sub(a),
                a.wrapping_add(b.wrapping_sub(a) / 2),
                now,
            );
        }
    }
    (best.1, best.2)
}

fn measure_khz(over: Duration) -> u32 {
    let (t0, i0) = pair();
    std::thread::sleep(over);
    let (t1, i1) = pair();
    let ns = i1.duration_since(i0).as_nanos().max(1);
    let khz = u128::from(t1.wrapping_sub(t0)) * 1_000_000 / ns;
    u32::try_from(khz).unwrap_or(u32::MAX).max(1)
}

/// Multiplier and shift of a pvclock: ns = ((ticks << shift) * mul) >> 32.
fn scale(khz: u32) -> (u32, i8) {
    let hz = u128::from(khz.max(1)) * 1000;
    let mut shift = 0i32;
    let mul_at = |shift: i32| (1_000_000_000u128 << (32 - shift)) / hz;
    while mul_at(shift) >= 1 << 32 {
        shift += 1;
    }
    while mul_at(shift) < 1 << 31 {
        shift -= 1;
    }
    (mul_at(shift) as u32, shift as i8)
}

/// Nanoseconds of a number of ticks, as the guest computes them.
fn ticks_to_ns(ticks: u64, khz: u32) -> u64 {
    let (mul, shift) = scale(khz);
    let t = if shift >= 0 {
        u128::from(ticks) << shift
    } else {
        u128::from(ticks >> -shift)
    };
    ((t * u128::from(mul)) >> 32) as u64
}

/// What the TSCs of a machine's vCPUs are made from.
pub struct TscBase {
    /// Guest TSC minus host TSC, before what each vCPU has added to its own
    /// (IA32_TSC_ADJUST): the same for all, so that their TSCs agree.
    base: AtomicU64,
    /// When time was stopped, if it was.
    stopped: Mutex<Option<(u64, Instant)>>,
}

impl TscBase {
    /// Of a new machine: its TSC starts at zero now.
    pub fn new() -> Self {
        Self {
            base: AtomicU64::new(host_tsc().wrapping_neg()),
            stopped: Mutex::new(None),
        }
    }

    /// Host TSC and host time by which the guest's time counts: those of the
    /// moment at which it was stopped, or now.
    fn now(&self) -> (u64, Instant) {
        self.stopped.lock().unwrap_or_else(pair)
    }

    /// The guest's time stops; when. Nothing if it stands.
    pub fn stop(&self) -> Instant {
        self.stopped.lock().get_or_insert_with(pair).1
    }

    /// It goes on where it stopped; since when. `None` if it runs.
    pub fn go(&self) -> Option<Instant> {
        let (tsc, _) = self.stopped.lock().take()?;
        let (now, instant) = pair();
        self.base.fetch_sub(now.wrapping_sub(tsc), Ordering::SeqCst);
        Some(instant)
    }

    fn get(&self) -> u64 {
        self.base.load(Ordering::SeqCst)
    }

    /// Makes the guest's TSC this value, before IA32_TSC_ADJUST.
    pub(crate) fn set_tsc(&self, tsc: u64) {
        let base = tsc.wrapping_sub(self.now().0);
        self.base.store(base, Ordering::SeqCst);
    }
}

impl Default for TscBase {
    fn default() -> Self {
        Self::new()
    }
}

impl Core {
    /// Before the vCPU runs: takes the machine's TSC base, which a restore of
    /// any vCPU may have moved.
    pub fn sync_tsc(&mut self) {
        let base = self.shared.tsc_base.get();
        let offset = base.wrapping_add(self.system.tsc_adjust);
        if offset != self.cpu.tsc_offset {
            self.cpu.tsc_offset = offset;
            let deadline = self.lapic.tsc_deadline();
            if deadline != 0 {
                self.set_tsc_deadline(deadline);
            }
        }
    }

    /// The guest's TSC now.
    #[inline]
    pub fn guest_tsc(&self) -> u64 {
        host_tsc().wrapping_add(self.cpu.tsc_offset)
    }

    /// As [`Self::guest_tsc`]; while the guest's time is stopped, what it was
    /// then.
    pub fn stopped_tsc(&self) -> u64 {
        self.shared
            .tsc_base
            .now()
            .0
            .wrapping_add(self.cpu.tsc_offset)
    }

    /// The time at which the guest's TSC reaches a value; now if it has.
    pub(crate) fn instant_of_tsc(&self, tsc: u64) -> Instant {
        let (host, now) = self.shared.tsc_base.now();
        let ahead = tsc.saturating_sub(host.wrapping_add(self.cpu.tsc_offset));
        let ns = u128::from(ahead) * 1_000_000 / u128::from(self.shared.cpuid.tsc_khz().max(1));
        // A year ahead is as good as never, and cannot overflow.
        let ns = u64::try_from(ns)
            .unwrap_or(u64::MAX)
            .min(31_536_000_000_000_000);
        now + Duration::from_nanos(ns)
    }

    /// Writes the vCPU's time structure that KVM_SYSTEM_TIME names.
    pub(crate) fn write_pvclock(&mut self) {
        let msr = self.system.kvm_system_time;
        if msr & 1 == 0 {
            return;
        }
        let gpa = msr & !1;
        let (mul, shift) = scale(self.shared.cpuid.tsc_khz());
        let mut old = [0; 4];
        self.phys_read(gpa, &mut old);
        let version = (u32::from_le_bytes(old) | 1).wrapping_add(1);
        let mut b = [0u8; 32];
        b[..4].copy_from_slice(&version.wrapping_sub(1).to_le_bytes());
        let (tsc, ns) = *self.shared.pvclock.lock();
        let tsc = tsc.wrapping_add(self.system.tsc_adjust);
        b[8..16].copy_from_slice(&tsc.to_le_bytes());
        b[16..24].copy_from_slice(&ns.to_le_bytes());
        b[24..28].copy_from_slice(&mul.to_le_bytes());
        b[28] = shift as u8;
        // PVCLOCK_TSC_STABLE_BIT.
        b[29] = 1;
        self.phys_write(gpa, &b[..4]);
        self.phys_write(gpa.wrapping_add(4), &b[4..]);
        self.phys_write(gpa, &version.to_le_bytes());
    }

    /// The paravirtual clock when the guest's TSC has this value.
    pub(crate) fn system_time(&self, tsc: u64) -> u64 {
        let (from, ns) = *self.shared.pvclock.lock();
        let ticks = tsc.wrapping_sub(self.system.tsc_adjust).wrapping_sub(from);
        ns.wrapping_add(ticks_to_ns(ticks, self.shared.cpuid.tsc_khz()))
    }

    /// Takes a saved machine's clock, which the first vCPU has.
    pub(crate) fn restore_system_time(&self, tsc: u64, ns: Option<u64>) {
        if self.index == 0 {
            let pair = ns.map(|ns| (tsc.wrapping_sub(self.system.tsc_adjust), ns));
            *self.shared.pvclock.lock() = pair.unwrap_or_default();
        }
    }

    /// Writes the wall-clock time at system time zero.
    pub(crate) fn write_wall_clock(&mut self, gpa: u64) {
        let up = self.system_time(self.guest_tsc());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(Duration::from_nanos(up));
        let mut b = [0u8; 12];
        b[..4].copy_from_slice(&2u32.to_le_bytes());
        b[4..8].copy_from_slice(&(now.as_secs() as u32).to_le_bytes());
        b[8..].copy_from_slice(&now.subsec_nanos().to_le_bytes());
        self.phys_write(gpa, &b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_keeps_time_within_a_part_per_million() {
        for khz in [100_000, 999_999, 1_000_000, 2_445_404, 3_000_000, 5_700_000] {
            let second = u64::from(khz) * 1000;
            let ns = ticks_to_ns(second, khz);
            assert!(ns.abs_diff(1_000_000_000) < 1000, "{khz}: {ns}");
        }
    }

    #[test]
    fn the_tsc_frequency_matches_the_monotonic_clock() {
        let khz = u64::from(host_tsc_khz());
        let (t0, i0) = pair();
        std::thread::sleep(Duration::from_millis(50));
        let (t1, i1) = pair();
        let by_tsc = (t1 - t0) * 1_000_000 / khz;
        let by_clock = i1.duration_since(i0).as_nanos() as u64;
        assert!(
            by_tsc.abs_diff(by_clock) < by_clock / 100,
            "{by_tsc} {by_clock}"
        );
    }
}
