//! A debugger outside the guest, by the CPU's debug registers.

use engine::{DebugRequest, DebugStop, EngineError, Watchpoint};
use kvm_bindings::{
    KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};

use crate::vcpu::KvmVcpu;
use crate::{NAME, failed};

/// Debug registers for addresses.
const REGISTERS: usize = 4;

/// What a debug register looks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Point {
    Break(u64),
    /// A watchpoint, and the aligned part of it that this register has.
    Watch(Watchpoint, u64, u64),
}

/// What a debugger asked of one vCPU.
#[derive(Default)]
pub(crate) struct Debugger {
    points: Vec<Point>,
    step: bool,
}

impl KvmVcpu {
    /// Arms what a debugger asks for.
    pub(crate) fn arm(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        let points = points(request);
        let fits = points.len() <= REGISTERS;
        self.debugger = Debugger {
            step: request.step && fits,
            points: if fits { points } else { Vec::new() },
        };
        self.tell_kvm()?;
        if fits {
            return Ok(());
        }
        Err(EngineError::Unavailable {
            engine: NAME,
            reason: format!(
                "the CPU watches {REGISTERS} places at once (breakpoints, and watchpoints of up \
                 to 8 aligned bytes): ask for fewer, or use --engine soft"
            ),
        })
    }

    fn tell_kvm(&self) -> Result<(), EngineError> {
        let debugger = &self.debugger;
        let mut debug = kvm_guest_debug::default();
        if !debugger.points.is_empty() {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[7] = 0x600;
        }
        for (n, point) in debugger.points.iter().enumerate().take(REGISTERS) {
            let (address, kind) = match *point {
                Point::Break(address) => (address, 0),
                Point::Watch(w, address, len) => {
                    let len = match len {
                        1 => 0,
                        2 => 1,
                        4 => 3,
                        _ => 2,
                    };
                    // Reads alone cannot be watched: what is written is
                    // reported too.
                    (address, if w.read { 3 } else { 1 } | len << 2)
                }
            };
            debug.arch.debugreg[n] = address;
            debug.arch.debugreg[7] |= 2 << (n * 2) | kind << (16 + n * 4);
        }
        if debugger.step {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
            let has = self
                .shared
                .vm
                .check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
            if has as u32 & KVM_GUESTDBG_BLOCKIRQ != 0 {
                debug.control |= KVM_GUESTDBG_BLOCKIRQ;
            }
        }
        self.fd
            .set_guest_debug(&debug)
            .map_err(|e| failed("watch the guest for a debugger", e))
    }

    /// What a debug exit means; `None`: nothing to stop for.
    pub(crate) fn debug_exit(&self, why: &kvm_debug_exit_arch) -> Option<DebugStop> {
        let hit = (0..REGISTERS)
            .filter(|n| why.dr6 >> n & 1 != 0)
            .filter_map(|n| self.debugger.points.get(n).copied());
        let mut stop = None;
        for point in hit {
            stop = stop.or(match point {
                Point::Break(_) => Some(DebugStop::Breakpoint),
                Point::Watch(watchpoint, ..) => Some(DebugStop::Watchpoint(watchpoint)),
            });
        }
        // Without a reason that we know (nested CPUs may not tell), rip has it.
        let at = self.debugger.points.contains(&Point::Break(why.pc));
        stop.or(match (at, self.debugger.step) {
            (_, true) => Some(DebugStop::Step),
            (true, false) => Some(DebugStop::Breakpoint),
            _ => None,
        })
    }
}

/// The registers that a request takes.
fn points(request: &DebugRequest) -> Vec<Point> {
    let mut breakpoints = request.breakpoints.clone();
    breakpoints.sort_unstable();
    breakpoints.dedup();
    let mut points: Vec<_> = breakpoints.into_iter().map(Point::Break).collect();
    for watchpoint in &request.watchpoints {
        let (mut at, mut left) = (watchpoint.address, watchpoint.len);
        while left != 0 && points.len() <= REGISTERS {
            let fitting = |len: &u64| *len <= left && at.is_multiple_of(*len);
            let len = [8, 4, 2].into_iter().find(fitting).unwrap_or(1);
            points.push(Point::Watch(*watchpoint, at, len));
            at = at.wrapping_add(len);
            left -= len;
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchpoints_are_taken_apart_into_aligned_pieces() {
        let watch = |address, len| Watchpoint {
            address,
            len,
            read: false,
            write: true,
        };
        let request = |watchpoints| DebugRequest {
            breakpoints: vec![5, 5],
            watchpoints,
            step: false,
        };
        let found = points(&request(vec![watch(0x1003, 5)]));
        let w = watch(0x1003, 5);
        let expected = [
            Point::Break(5),
            Point::Watch(w, 0x1003, 1),
            Point::Watch(w, 0x1004, 4),
        ];
        assert!(found == expected);
        assert!(points(&request(vec![watch(0, 1 << 40)])).len() > REGISTERS);
    }
}
