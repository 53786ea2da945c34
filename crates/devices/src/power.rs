//! What a guest can ask of the machine as a whole.

/// A request of the guest to its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// ACPI S5: turn the machine off.
    PowerOff,
    /// Reset, by the chipset's reset register, the keyboard controller or
    /// port 0x92.
    Reset,
    /// The guest's kernel panicked and stands, or is about to reset.
    Panicked,
    /// The guest's kernel panicked and its crash kernel runs.
    CrashLoaded,
    /// A value was written to the debug-exit port.
    DebugExit(u32),
}

/// Takes power events; called on vCPU threads, which go on running until the
/// machine stops them.
pub trait PowerSink: Send + Sync {
    /// The guest asks for `event`. Must not wait for the vCPU that calls.
    fn power_event(&self, event: PowerEvent);
}
