//! Who may be at an image: many that read and write, or one that takes
//! clusters away from under them.

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    shared: usize,
    exclusive: bool,
    /// Those that wait to be alone; newcomers let them go first.
    waiting: usize,
}

/// A readers-writer lock whose shared half may be given back by another
/// thread than took it.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// Enters together with others, waiting for one that is alone.
    pub(super) fn enter(&self) {
        let mut state = self.state.lock();
        while state.exclusive || state.waiting > 0 {
            self.changed.wait(&mut state);
        }
        state.shared += 1;
    }

    /// As [`Self::enter`], without waiting; whether it entered.
    pub(super) fn try_enter(&self) -> bool {
        let mut state = self.state.lock();
        let free = !state.exclusive && state.waiting == 0;
        state.shared += usize::from(free);
        free
    }

    /// Ends an [`Self::enter`].
    pub(super) fn leave(&self) {
        let mut state = self.state.lock();
        state.shared -= 1;
        if state.shared == 0 && state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Runs something alone.
    pub(super) fn alone<T>(&self, run: impl FnOnce() -> T) -> T {
        let mut state = self.state.lock();
        state.waiting += 1;
        while state.exclusive || state.shared > 0 {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        state.exclusive = true;
        drop(state);
        let _end = EndAlone(self);
        run()
    }
}

/// Opens the gate again even if what ran alone panicked.
struct EndAlone<'a>(&'a Gate);

impl Drop for EndAlone<'_> {
    fn drop(&mut self) {
        self.0.state.lock().exclusive = false;
        self.0.changed.notify_all();
    }
}

/// Enters for as long as it lives.
pub(super) struct Inside<'a>(&'a Gate);

impl<'a> Inside<'a> {
    pub(super) fn new(gate: &'a Gate) -> Self {
        gate.enter();
        Self(gate)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
