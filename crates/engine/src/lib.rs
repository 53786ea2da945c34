//! The contract of a CPU engine. `engine-soft` and `engine-kvm` implement it;
//! the machine knows nothing else of them.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arch::{CpuIdentity, CpuState};

/// What vCPUs reach outside RAM. Implemented by the machine's buses; called on
/// vCPU threads, from several at once.
pub trait Bus: Send + Sync {
    /// `in`: fills `data` (1, 2 or 4 bytes); unclaimed ports read all ones.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// `out`: 1, 2 or 4 bytes.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// A load from a guest-physical address that is not RAM (1 to 8 bytes,
    /// or more from string and vector instructions); unclaimed: all ones.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// A store to a guest-physical address that is not RAM.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// The INTA cycle of the 8259 pair: vector of the highest pending request,
    /// `None` if the request has gone (spurious).
    fn acknowledge_extint(&self) -> Option<u8>;
    /// EOI of a level-triggered vector at a local APIC, for the I/O APIC.
    fn end_of_interrupt(&self, vector: u8);
}

/// An interrupt message as on the bus (SDM vol. 3A, 11.11): what MSI, MSI-X
/// and the I/O APIC send to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// 0xfee00000 | destination << 12 | redirection hint << 3 | logical << 2;
    /// destination bits 8 and up (x2APIC) in address bits 63:40 as with KVM's
    /// X2APIC_API, i.e. `address >> 32 & 0xffff_ff00`.
    pub address: u64,
    /// Trigger << 15 | level << 14 | delivery mode << 8 | vector.
    pub data: u32,
}

/// Where devices send interrupts: the engine's local APICs.
pub trait InterruptSink: Send + Sync {
    /// Delivers a message to the local APICs it addresses.
    fn send(&self, message: MsiMessage);
    /// Level of the 8259 pair's INTR output, wired to LINT0 of the first vCPU.
    fn set_extint(&self, level: bool);
    /// A way of its own for one source, whose message seldom changes, where
    /// this engine has such; `None`: [`Self::send`] is the only one.
    fn line(&self) -> Option<Arc<dyn InterruptLine>> {
        None
    }
    /// The other way, from guests to devices: doorbells that ring by
    /// themselves, if this engine has such.
    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        None
    }
}

/// The way of one interrupt source to the local APICs.
pub trait InterruptLine: Send + Sync {
    /// As [`InterruptSink::send`]. The same message as before is sent at the
    /// least cost.
    fn send(&self, message: MsiMessage);
}

/// Doorbells of devices that guests ring without an exit to the bus.
pub trait Doorbells: Send + Sync {
    /// Has stores to a guest-physical address, of any size and value, signal
    /// an event (eventfd) instead of reaching the bus.
    ///
    /// # Errors
    /// What the host says; stores reach the bus then.
    fn attach(&self, gpa: u64, event: BorrowedFd<'_>) -> io::Result<()>;
    /// Ends [`Self::attach`] of the same.
    ///
    /// # Errors
    /// What the host says.
    fn detach(&self, gpa: u64, event: BorrowedFd<'_>) -> io::Result<()>;
}

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// [`VcpuHandle::kick`] was called: the state can be read and changed now.
    Kicked,
    /// Triple fault: the guest asks for a reset.
    TripleFault,
    /// A debugger's request ([`Vcpu::set_debug`]) was met.
    Debug(DebugStop),
}

/// What a debugger asks of a vCPU, unseen by the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugRequest {
    /// Linear addresses before whose instruction the vCPU stops.
    pub breakpoints: Vec<u64>,
    /// Linear address ranges after whose access the vCPU stops.
    pub watchpoints: Vec<Watchpoint>,
    /// Stops after one instruction. Interrupts stay pending meanwhile, unless
    /// the vCPU is halted.
    pub step: bool,
}

impl DebugRequest {
    /// Whether it asks for anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.breakpoints.is_empty() && self.watchpoints.is_empty() && !self.step
    }
}

/// A range of linear addresses that a debugger watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// First linear address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Loads count.
    pub read: bool,
    /// Stores count.
    pub write: bool,
}

/// Why a vCPU stopped for a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// rip is at a breakpoint, whose instruction has not run.
    Breakpoint,
    /// The instruction just completed touched this watchpoint.
    Watchpoint(Watchpoint),
    /// One instruction has run.
    Step,
}

/// What an engine cannot do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host lacks something; the text says what and what to do.
    #[error("the {engine} engine cannot run here: {reason}")]
    Unavailable {
        /// `soft` or `kvm`.
        engine: &'static str,
        /// What is missing, and what the user can do.
        reason: String,
    },
    /// A state that this engine or CPU model cannot take.
    #[error("the {engine} engine refuses the CPU state: {reason}")]
    BadState {
        /// `soft` or `kvm`.
        engine: &'static str,
        /// Which part, and why.
        reason: String,
    },
    /// The host failed while running.
    #[error("the {engine} engine failed: {reason}")]
    Host {
        /// `soft` or `kvm`.
        engine: &'static str,
        /// What failed.
        reason: String,
    },
}

/// Counters of one vCPU, for `holm run`'s monitor and for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuStats {
    /// Name (snake case, unit in the name) and value.
    pub counters: Vec<(&'static str, u64)>,
}

/// One virtual CPU. Stays on the thread that runs it; everything that other
/// threads do to it goes through its [`VcpuHandle`].
pub trait Vcpu: Send {
    /// Runs until there is a reason to stop; blocks while the guest is halted.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn run(&mut self) -> Result<Exit, EngineError>;
    /// The complete state.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn save(&mut self) -> Result<CpuState, EngineError>;
    /// Takes a complete state (also to set up the boot state).
    ///
    /// # Errors
    /// [`EngineError::BadState`].
    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError>;
    /// Arms what a debugger asks for, in place of what it asked for before.
    /// All vCPUs of a machine must be given the same breakpoints.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] if the engine cannot watch that much at
    /// once; what was armed before is then disarmed.
    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError>;
    /// Counters so far.
    fn stats(&self) -> VcpuStats;
    /// For other threads.
    fn handle(&self) -> Arc<dyn VcpuHandle>;
}

/// What other threads may do to a vCPU.
pub trait VcpuHandle: Send + Sync {
    /// Makes [`Vcpu::run`] return [`Exit::Kicked`] soon, halted or not. A kick
    /// while the vCPU is not running is kept for its next `run`.
    fn kick(&self);
    /// Raises a non-maskable interrupt.
    fn nmi(&self);
}

/// One machine's CPUs and local interrupt controllers.
pub trait Engine: Send + Sync {
    /// `soft` or `kvm`.
    fn name(&self) -> &'static str;
    /// Takes vCPU `index` out (once), in its reset state, to be moved to its thread.
    ///
    /// # Errors
    /// [`EngineError`] if it does not exist or was taken.
    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError>;
    /// The local APICs.
    fn interrupts(&self) -> Arc<dyn InterruptSink>;
    /// Connects the buses; must come before the first `run`, once.
    fn connect(&self, bus: Arc<dyn Bus>);
    /// Stops the guest's time: TSCs, and the timers of local APICs. States
    /// saved meanwhile are those of this moment. No vCPU is in `run`; nothing
    /// happens if time stands already.
    fn stop_time(&self);
    /// Time goes on where it stopped, as if none had passed; with restored
    /// states, where those were. No vCPU is in `run`.
    fn resume_time(&self);
    /// Brings RAM's dirty bitmap ([`memory::GuestRam::take_dirty`]) up to date
    /// with all that vCPUs have written, and has what they write from now on
    /// marked again. No vCPU is in `run`. `false`: this engine does not know
    /// what its vCPUs write, and any page may have changed.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn collect_dirty(&self) -> Result<bool, EngineError>;
    /// What the guest sees as its CPU.
    fn cpu(&self) -> CpuIdentity;
}
