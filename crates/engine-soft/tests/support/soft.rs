//! The interpreter as an executor, and the parts that another engine over a
//! `Core` can share.

use engine_soft::{Core, Trap, interpret, native};
use iced_x86::{Decoder, DecoderOptions};

use super::case::{Case, End, Executor, MEMORY, Outcome, canonical_xsave};
use super::{CODE_GPA, DATA, Mode, enter, gpa, guest};

/// Puts a case into a vCPU made by [`guest`].
pub fn load(core: &mut Core, case: &Case) {
    core.cpu.gpr = case.gpr;
    core.cpu.rflags = case.rflags;
    core.cpu.rip = super::CODE;
    native::restore_xsave(core, &case.xsave[..]).unwrap();
    core.ram.write(gpa(DATA), &case.memory).unwrap();
    core.ram.write(CODE_GPA, &case.bytes).unwrap();
}

/// Reads the state after a case ended.
pub fn outcome(core: &mut Core, case: &Case, end: End) -> Outcome {
    let mut memory = vec![0; MEMORY];
    core.ram.read(gpa(DATA), &mut memory).unwrap();
    Outcome {
        end,
        rip: core.cpu.rip,
        gpr: core.cpu.gpr,
        rflags: core.cpu.rflags,
        xsave: canonical_xsave(&native::save_xsave(core), case.mode),
        memory,
    }
}

/// `interpret::step`.
pub struct Interpreter {
    long: Core,
    compat: Core,
}

impl Interpreter {
    /// With its own guests.
    pub fn new() -> Self {
        Self {
            long: guest(Mode::Long, 3),
            compat: guest(Mode::Compat, 3),
        }
    }
}

impl Executor for Interpreter {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn supports(&self, mode: Mode) -> bool {
        matches!(mode, Mode::Long | Mode::Compat)
    }

    fn run(&mut self, case: &Case) -> Outcome {
        let core = match case.mode {
            Mode::Long => &mut self.long,
            _ => &mut self.compat,
        };
        load(core, case);
        let bits = u32::from(core.cpu.bits);
        let mut end = End::Unknown;
        // A repeated string instruction may take several steps.
        for _ in 0..200 {
            let at = core.cpu.rip.wrapping_sub(super::CODE) as usize;
            let Some(bytes) = case.bytes.get(at..).filter(|b| !b.is_empty()) else {
                end = End::Next(core.cpu.rip);
                break;
            };
            let i = Decoder::with_ip(bits, bytes, core.cpu.rip, DecoderOptions::NONE).decode();
            match interpret::step(core, &i) {
                Ok(()) => {}
                Err(Trap::Fault(e)) => {
                    end = End::Fault(e);
                    break;
                }
                Err(_) => break,
            }
        }
        let result = outcome(core, case, end);
        if core.cpu.cpl != 3 || core.cpu.bits != if case.mode == Mode::Long { 64 } else { 32 } {
            enter(core, case.mode, 3);
        }
        result
    }
}
