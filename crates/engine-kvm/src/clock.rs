//! The guest's time: TSCs by the offset that KVM adds to the host's, and the
//! paravirtual clock, which is the kernel's.

use std::arch::x86_64::_rdtsc;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use arch::msr;
use engine::EngineError;
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use parking_lot::Mutex;

use crate::failed;
use crate::vcpu::KvmVcpu;

fn host_tsc() -> u64 {
    // SAFETY: rdtsc exists on every x86-64 CPU.
    unsafe { _rdtsc() }
}

/// The clock of one machine, which all vCPUs take before they run.
pub(crate) struct Clock {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

struct State {
    /// Guest TSC minus host TSC, without what a vCPU has added to its own
    /// (IA32_TSC_ADJUST).
    base: u64,
    /// Counts changes of `base`.
    version: u64,
    /// While time stands: host TSC and paravirtual clock of that moment.
    stopped: Option<(u64, u64)>,
}

impl State {
    fn host(&self) -> u64 {
        self.stopped.map_or_else(host_tsc, |(tsc, _)| tsc)
    }
}

impl Clock {
    /// Of a new machine: its TSC starts at zero now.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            state: Mutex::new(State {
                base: host_tsc().wrapping_neg(),
                version: 1,
                stopped: None,
            }),
        }
    }

    /// Guest TSC without IA32_TSC_ADJUST.
    pub(crate) fn tsc(&self) -> u64 {
        let state = self.state.lock();
        state.base.wrapping_add(state.host())
    }

    /// Makes [`Self::tsc`] this, from now on.
    pub(crate) fn set_tsc(&self, tsc: u64) {
        let mut state = self.state.lock();
        state.base = tsc.wrapping_sub(state.host());
        state.version += 1;
    }

    /// Nanoseconds of the paravirtual clock; `None` if KVM does not tell.
    pub(crate) fn nanoseconds(&self) -> Option<u64> {
        match self.state.lock().stopped {
            Some((_, nanoseconds)) => Some(nanoseconds),
            None => self.vm.get_clock().ok().map(|data| data.clock),
        }
    }

    /// Sets the paravirtual clock.
    pub(crate) fn set_nanoseconds(&self, nanoseconds: u64) {
        match &mut self.state.lock().stopped {
            Some(stopped) => stopped.1 = nanoseconds,
            None => self.put(nanoseconds),
        }
    }

    fn put(&self, clock: u64) {
        let data = kvm_clock_data {
            clock,
            ..Default::default()
        };
        if let Err(error) = self.vm.set_clock(&data) {
            tracing::warn!(%error, "KVM does not set the guest's clock");
        }
    }

    /// Time stands from now on; nothing if it does.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        if state.stopped.is_none() {
            let nanoseconds = self.vm.get_clock().map_or(0, |data| data.clock);
            state.stopped = Some((host_tsc(), nanoseconds));
        }
    }

    /// Time goes on where it stopped.
    pub(crate) fn go(&self) {
        let mut state = self.state.lock();
        if let Some((tsc, nanoseconds)) = state.stopped.take() {
            self.put(nanoseconds);
            let stood = host_tsc().wrapping_sub(tsc);
            state.base = state.base.wrapping_sub(stood);
            state.version += 1;
        }
    }
}

impl KvmVcpu {
    /// Before the vCPU runs: gives KVM the machine's time and the deadline of
    /// the local APIC's timer, if either has changed.
    pub(crate) fn sync_clock(&mut self) -> Result<(), EngineError> {
        let (version, base) = {
            let state = self.shared.clock.state.lock();
            (state.version, state.base)
        };
        if version == self.clock_seen && self.deadline.is_none() {
            return Ok(());
        }
        let cannot = |e| failed("set a vCPU's time", e);
        if version != self.clock_seen {
            let adjust = self.read_msr(msr::TSC_ADJUST).unwrap_or(0);
            let offset = base.wrapping_add(adjust);
            if set_offset(&self.fd, offset).is_err() {
                // Before Linux 5.16: KVM guesses that all vCPUs mean the same.
                let tsc = host_tsc().wrapping_add(offset);
                self.write_msr(msr::TSC, tsc).map_err(cannot)?;
            }
            self.clock_seen = version;
        }
        // KVM reckons with the TSC as it was when the deadline was set.
        let restored = self.deadline.take();
        let armed = || self.read_msr(msr::TSC_DEADLINE).filter(|d| *d != 0);
        match restored.or_else(armed) {
            Some(deadline) => match self.write_msr(msr::TSC_DEADLINE, deadline) {
                Err(e) if deadline != 0 => Err(cannot(e)),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// An MSR; `None` if this KVM does not have it.
    pub(crate) fn read_msr(&self, index: u32) -> Option<u64> {
        let mut list = kvm_bindings::Msrs::from_entries(&[kvm_msr_entry {
            index,
            ..Default::default()
        }])
        .ok()?;
        let read = self.fd.get_msrs(&mut list).ok()?;
        (read == 1).then(|| list.as_slice().first().map(|m| m.data))?
    }

    /// Sets an MSR.
    pub(crate) fn write_msr(&self, index: u32, data: u64) -> Result<(), kvm_ioctls::Error> {
        let refused = || kvm_ioctls::Error::new(libc::EINVAL);
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let list = kvm_bindings::Msrs::from_entries(&[entry]).map_err(|_| refused())?;
        match self.fd.set_msrs(&list)? {
            1 => Ok(()),
            _ => Err(refused()),
        }
    }
}

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`, which kvm-ioctls has for other
/// architectures only.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;

/// Sets guest TSC minus host TSC.
fn set_offset(fd: &VcpuFd, offset: u64) -> Result<(), kvm_ioctls::Error> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: a descriptor of a vCPU, a structure of the kind that the request
    // names, and in it the address of eight bytes to be read; both live.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) };
    match done {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}
