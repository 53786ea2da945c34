//! The thin layer between the command line and crate `machine`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::{CpuModel, OnReset};
use crate::console::input::Port;
use crate::console::output::Output;
use crate::engine_choice::EngineKind;
use crate::failure::Failure;

/// A machine as the command line and the image describe it.
#[derive(Debug)]
pub struct Spec {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks in order.
    pub disks: Vec<SpecDisk>,
    /// CPU engine.
    pub engine: EngineKind,
    /// CPU model.
    pub cpu: CpuModel,
    /// Whether port 0xf4 ends the machine.
    pub debug_exit: bool,
    /// What a reset does.
    pub on_reset: OnReset,
}

/// A disk of a [`Spec`].
#[derive(Debug)]
pub struct SpecDisk {
    /// Raw image or block device.
    pub file: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
    /// Serial number shown to the guest.
    pub serial: Option<String>,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest reset.
    Reset,
    /// A value written to the debug-exit port.
    DebugExit(u32),
    /// A triple fault, on this vCPU.
    TripleFault(u32),
    /// Holm ended it.
    Stopped,
}

/// A machine that is ready to run.
pub struct Guest {}

struct Nothing;

impl Port for Nothing {
    fn push(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

impl Guest {
    /// Puts the machine together.
    ///
    /// # Errors
    /// [`Failure`], by what the user can do about it.
    pub fn new(_spec: &Spec, _output: Output) -> Result<Self, Failure> {
        Err(Failure::Internal(
            "the machine is not part of this build".into(),
        ))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`Failure::Internal`].
    pub fn run(&self) -> Result<Outcome, Failure> {
        Ok(Outcome::Stopped)
    }

    /// Where typed input goes.
    pub fn port(&self) -> Arc<dyn Port> {
        Arc::new(Nothing)
    }

    /// Ends the machine from outside, without the guest.
    pub fn stop(&self) {}

    /// Presses the power button (ACPI).
    pub fn press_power_button(&self) {}

    /// Registers of all vCPUs, for people.
    pub fn registers(&self) -> String {
        String::new()
    }

    /// Counters of the engine, for people.
    pub fn statistics(&self) -> String {
        String::new()
    }
}
