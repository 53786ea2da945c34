//! Where the guest's arithmetic flags are while code that the translator adds
//! clobbers the host's.
//!
//! They go home, to the vCPU's state, before the first such code behind the
//! instruction that set them, and come back only for an instruction that needs
//! them and for a direct jump. Indirect jumps hand them over at home: the code
//! they lead to hardly ever reads flags.

use std::mem::offset_of;

use crate::cpu::Cpu;
use crate::translate::asm::{Asm, reg};
use crate::translate::emit::Emitter;

/// Where live flags are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// In the host's flags.
    Host,
    /// In the vCPU's state.
    Home,
    /// In both.
    Both,
}

pub(super) const HOME: usize = offset_of!(Cpu, jit.flags_home);
const RAX_SAVE: usize = offset_of!(Cpu, jit.spill);

/// Makes the host's flags what they are at home.
pub(crate) fn restore(a: &mut Asm) {
    a.store(reg::RAX, RAX_SAVE);
    a.load(reg::RAX, HOME);
    a.flags_from_ax();
    a.load(reg::RAX, RAX_SAVE);
}

impl Emitter {
    /// Emits code that clobbers the host's flags, which are `live` or not, and
    /// the second scratch register.
    pub(super) fn guarded(&mut self, live: bool, f: impl FnOnce(&mut Self)) {
        if live {
            self.flags_to_home();
            self.flags = Flags::Home;
        }
        f(self);
    }

    /// Makes sure that the flags are at home; clobbers the second scratch
    /// register.
    pub(super) fn flags_to_home(&mut self) {
        if self.flags == Flags::Host {
            self.holds &= !(1 << reg::T1);
            self.hot.mov(reg::T1, reg::RAX);
            self.hot.flags_to_ax();
            self.hot.store(reg::RAX, HOME);
            self.hot.mov(reg::RAX, reg::T1);
            self.flags = Flags::Both;
        }
    }

    /// As [`Self::flags_to_home`], but keeps the scratch registers.
    pub(super) fn flags_to_home_by_memory(&mut self) {
        if self.flags == Flags::Host {
            self.hot.store(reg::RAX, RAX_SAVE);
            self.hot.flags_to_ax();
            self.hot.store(reg::RAX, HOME);
            self.hot.load(reg::RAX, RAX_SAVE);
            self.flags = Flags::Both;
        }
    }

    /// Makes sure that the flags are in the host's.
    pub(super) fn flags_to_host(&mut self) {
        if self.flags == Flags::Home {
            restore(&mut self.hot);
            self.flags = Flags::Both;
        }
    }

    /// Before the bytes of a guest instruction that reads flags, or that
    /// changes some and keeps others.
    pub(super) fn settle(&mut self) {
        if self.needs_flags {
            self.flags_to_host();
        }
    }
}
