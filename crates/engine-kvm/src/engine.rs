//! One machine's KVM: its memory, CPU model and vCPUs.

use std::sync::{Arc, OnceLock};

use arch::cpuid::{CpuChoice, CpuModel, CpuidTable, Hardware};
use arch::{CpuIdentity, CpuState};
use engine::{Bus, Engine, EngineError, InterruptSink, Vcpu};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_cpuid_entry2, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use memory::GuestRam;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::interrupts::Interrupts;
use crate::routes::RESERVED_ROUTES;
use crate::vcpu::KvmVcpu;
use crate::{NAME, failed};

/// Three pages that real-mode tasks and, on some Intel CPUs, KVM itself use;
/// nothing of the machine is there.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page for the same.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Bits that the machine's address map needs.
const LEAST_PHYSICAL_BITS: u32 = 39;

/// What all vCPUs of a machine share.
pub(crate) struct Shared {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) bus: OnceLock<Arc<dyn Bus>>,
    pub(crate) interrupts: Arc<Interrupts>,
    pub(crate) clock: Clock,
    pub(crate) cpuid: CpuidTable,
    /// Of [`arch::msr::saved`], those that this KVM has.
    pub(crate) msrs: OnceLock<Vec<u32>>,
    /// Mapped into the machine, so it must outlive it.
    ram: Arc<GuestRam>,
}

/// The vCPUs of one machine, run by the host's CPU.
pub struct KvmEngine {
    shared: Arc<Shared>,
    waiting: Mutex<Vec<Option<KvmVcpu>>>,
    /// Whether KVM notes what vCPUs write. That costs, so only from the first
    /// question on.
    logs_writes: Mutex<bool>,
}

fn unavailable(reason: impl Into<String>) -> EngineError {
    EngineError::Unavailable {
        engine: NAME,
        reason: reason.into(),
    }
}

impl KvmEngine {
    /// CPUs of a model for a machine with this RAM.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] if the host's KVM or CPU lacks what is
    /// needed.
    #[allow(clippy::new_ret_no_self)] // the machine knows engines by their contract only
    pub fn new(
        ram: Arc<GuestRam>,
        vcpus: u32,
        cpu: impl Into<CpuChoice>,
    ) -> Result<Arc<dyn Engine>, EngineError> {
        let cannot = |what: &str, error: kvm_ioctls::Error| {
            let hint = match error.errno() {
                libc::EBUSY => " (does another hypervisor run on this host?)",
                _ => "",
            };
            unavailable(format!(
                "KVM cannot {what}: {error}{hint}; --engine soft needs no KVM"
            ))
        };
        let kvm = Kvm::new().map_err(|e| cannot("be opened (/dev/kvm)", e))?;
        check(&kvm, vcpus)?;
        let hardware = hardware(&kvm)?;
        let vm = Arc::new(kvm.create_vm().map_err(|e| cannot("create a machine", e))?);
        prepare(&vm).map_err(|e| cannot("set up interrupt controllers", e))?;
        map(&vm, &ram, 0).map_err(|e| cannot("map the guest's memory", e))?;
        let fds = (0..vcpus)
            .map(|index| vm.create_vcpu(index.into()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| cannot("create a vCPU", e))?;
        let khz = fds.first().map_or(Ok(0), |fd| fd.get_tsc_khz());
        let khz = khz.map_err(|e| cannot("tell the frequency of the TSC", e))?;
        let cpuid = CpuidTable::on_hardware(cpu, &hardware, vcpus, khz)
            .map_err(|e| unavailable(e.to_string()))?;
        let shared = Arc::new(Shared {
            interrupts: Interrupts::new(vm.clone()),
            clock: Clock::new(vm.clone()),
            vm,
            bus: OnceLock::new(),
            cpuid,
            msrs: OnceLock::new(),
            ram,
        });
        let mut waiting = Vec::new();
        for (index, fd) in (0..).zip(fds) {
            let table = table(&shared.cpuid, index)?;
            fd.set_cpuid2(&table)
                .map_err(|e| cannot("take the CPU model", e))?;
            let mut vcpu = KvmVcpu::new(fd, index, shared.clone());
            let reset = reset_state(&shared.cpuid, index);
            vcpu.restore(&reset)?;
            waiting.push(Some(vcpu));
        }
        Ok(Arc::new(Self {
            shared,
            waiting: Mutex::new(waiting),
            logs_writes: Mutex::new(false),
        }))
    }
}

/// Whether this engine can run a machine here.
///
/// # Errors
/// Why not.
pub(crate) fn fits(kvm: &Kvm) -> Result<(), EngineError> {
    check(kvm, 1)?;
    let table = CpuidTable::on_hardware(CpuModel::Host, &hardware(kvm)?, 1, 1);
    table.map(drop).map_err(|e| unavailable(e.to_string()))
}

/// Whether KVM has what this engine needs.
fn check(kvm: &Kvm, vcpus: u32) -> Result<(), EngineError> {
    let needed = [
        (Cap::SplitIrqchip, "split interrupt controllers"),
        (Cap::X2ApicApi, "x2APIC ids"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::SignalMsi, "message-signalled interrupts"),
        (Cap::VcpuEvents, "events of vCPUs"),
        (Cap::Xsave, "XSAVE"),
    ];
    for (cap, name) in needed {
        if !kvm.check_extension(cap) {
            return Err(unavailable(format!(
                "the host's KVM lacks {name}: a newer host kernel is needed; until then use --engine \
                 soft"
            )));
        }
    }
    if vcpus as usize > kvm.get_max_vcpus() {
        let most = kvm.get_max_vcpus();
        return Err(unavailable(format!(
            "the host's KVM allows {most} vCPUs, and not {vcpus}: take fewer, or use --engine soft"
        )));
    }
    Ok(())
}

/// What this host's CPU and KVM can show.
fn hardware(kvm: &Kvm) -> Result<Hardware, EngineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| failed("tell the CPU's features", e))?;
    let lookup = |leaf, subleaf| {
        let entries = supported.as_slice().iter();
        let mut found = entries.filter(|e| e.function == leaf);
        let indexed = |e: &&kvm_cpuid_entry2| {
            e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || e.index == subleaf
        };
        found
            .find(indexed)
            .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let hardware = Hardware::read(lookup, deadline);
    if hardware.physical_bits < LEAST_PHYSICAL_BITS {
        return Err(unavailable(format!(
            "the CPU has {} physical address bits, and {LEAST_PHYSICAL_BITS} are needed: use \
             --engine soft",
            hardware.physical_bits
        )));
    }
    Ok(hardware)
}

fn prepare(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)?;
    vm.set_tss_address(TSS_ADDRESS)?;
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = u64::from(RESERVED_ROUTES);
    vm.enable_cap(&split)?;
    let mut ids = kvm_enable_cap {
        cap: KVM_CAP_X2APIC_API,
        ..Default::default()
    };
    ids.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    vm.enable_cap(&ids)
}

/// The ranges of RAM: slot, guest-physical address, offset into RAM, bytes.
fn ranges(ram: &GuestRam) -> impl Iterator<Item = (u32, u64, u64, u64)> {
    let low = ram.low_size();
    let high = arch::layout::HIGH_RAM_START;
    let all = [(0, 0, 0, low), (1, high, low, ram.high_size())];
    all.into_iter().filter(|(.., size)| *size != 0)
}

/// Gives RAM to KVM, or changes the slots' flags.
fn map(vm: &VmFd, ram: &GuestRam, flags: u32) -> Result<(), kvm_ioctls::Error> {
    for (slot, gpa, offset, size) in ranges(ram) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: ram.host_base() as u64 + offset,
        };
        // SAFETY: the range is within the RAM's mapping, which `Shared` keeps
        // for as long as the machine; guest memory may change at any time for
        // all its users.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// The CPU model as KVM takes it.
fn table(cpuid: &CpuidTable, index: u32) -> Result<CpuId, EngineError> {
    let entries: Vec<_> = cpuid
        .entries(index)
        .into_iter()
        .map(
            |(function, subleaf, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function,
                index: subleaf.unwrap_or(0),
                flags: subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
                eax,
                ebx,
                ecx,
                edx,
                padding: [0; 3],
            },
        )
        .collect();
    CpuId::from_entries(&entries).map_err(|e| EngineError::Host {
        engine: NAME,
        reason: format!("CPUID table: {e:?}"),
    })
}

/// A vCPU as after power-on.
fn reset_state(cpuid: &CpuidTable, index: u32) -> CpuState {
    let mut state = CpuState::reset(index == 0);
    state.gpr[2] = u64::from(cpuid.signature());
    state
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let vcpu = self
            .waiting
            .lock()
            .get_mut(index as usize)
            .and_then(Option::take);
        match vcpu {
            Some(vcpu) => Ok(Box::new(vcpu)),
            None => Err(EngineError::BadState {
                engine: NAME,
                reason: format!("vCPU {index} does not exist or is in use"),
            }),
        }
    }

    fn interrupts(&self) -> Arc<dyn InterruptSink> {
        self.shared.interrupts.clone()
    }

    fn connect(&self, bus: Arc<dyn Bus>) {
        let _ = self.shared.bus.set(bus);
    }

    fn stop_time(&self) {
        self.shared.clock.stop();
    }

    fn resume_time(&self) {
        self.shared.clock.go();
    }

    fn collect_dirty(&self) -> Result<bool, EngineError> {
        let Shared { vm, ram, .. } = &*self.shared;
        let mut logs = self.logs_writes.lock();
        if !*logs {
            map(vm, ram, KVM_MEM_LOG_DIRTY_PAGES)
                .map_err(|e| failed("note what the guest writes", e))?;
            *logs = true;
            return Ok(false);
        }
        for (slot, _, offset, size) in ranges(ram) {
            let log = vm
                .get_dirty_log(slot, size as usize)
                .map_err(|e| failed("tell what the guest wrote", e))?;
            let first = offset / memory::PAGE_SIZE;
            for (word, mut bits) in (0..).zip(log) {
                while bits != 0 {
                    let bit = u64::from(bits.trailing_zeros());
                    ram.set_dirty(first + word * 64 + bit);
                    bits &= bits - 1;
                }
            }
        }
        Ok(true)
    }

    fn cpu(&self) -> CpuIdentity {
        self.shared.cpuid.identity()
    }
}
