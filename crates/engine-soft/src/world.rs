//! Stopping all vCPUs at a safe point, and waking halted ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::core::{CpuBox, CpuMemory};
use crate::cpu::pending;

/// How other threads reach a vCPU: its pending bits, and a way to wake it.
pub struct Signal {
    cpu: Arc<CpuMemory>,
    /// Set while the vCPU may touch guest memory or run generated code.
    running: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Signal {
    /// The signal of a vCPU.
    pub fn new(cpu: &CpuBox) -> Arc<Self> {
        Arc::new(Self {
            cpu: cpu.memory(),
            running: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        })
    }

    fn word(&self) -> &AtomicU32 {
        self.cpu.pending()
    }

    /// Sets bits of `cpu::pending` and wakes the vCPU if it sleeps.
    pub fn raise(&self, bits: u32) {
        let old = self.word().fetch_or(bits, Ordering::SeqCst);
        if old & bits != bits {
            drop(self.sleep.lock());
            self.wake.notify_all();
        }
    }

    /// Takes bits: clears them and says which were set.
    pub fn take(&self, bits: u32) -> u32 {
        self.word().fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Bits now set.
    pub fn peek(&self) -> u32 {
        self.word().load(Ordering::SeqCst)
    }

    /// Sleeps until any pending bit is set or the deadline has passed.
    pub fn wait(&self, deadline: Option<Instant>) {
        let mut guard = self.sleep.lock();
        while self.peek() == 0 {
            match deadline {
                None => self.wake.wait(&mut guard),
                Some(at) => {
                    if self.wake.wait_until(&mut guard, at).timed_out() {
                        return;
                    }
                }
            }
        }
    }
}

/// All vCPUs of a machine.
pub struct World {
    signals: Mutex<Vec<Arc<Signal>>>,
    exclusive: Mutex<()>,
    stop: AtomicBool,
    /// Address of the signal of the vCPU that is alone now.
    owner: AtomicUsize,
    stopped: Mutex<()>,
    stopped_cv: Condvar,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// No vCPUs yet.
    pub fn new() -> Self {
        Self {
            signals: Mutex::new(Vec::new()),
            exclusive: Mutex::new(()),
            stop: AtomicBool::new(false),
            owner: AtomicUsize::new(0),
            stopped: Mutex::new(()),
            stopped_cv: Condvar::new(),
        }
    }

    /// Adds a vCPU.
    pub fn add(&self, signal: Arc<Signal>) {
        self.signals.lock().push(signal);
    }

    /// Declares that this vCPU runs guest code from now; waits while another
    /// vCPU has the world for itself.
    pub fn enter(&self, me: &Signal) {
        loop {
            me.running.store(true, Ordering::SeqCst);
            if !self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.leave(me);
            me.take(pending::WORLD);
            drop(self.exclusive.lock());
        }
    }

    /// Declares that this vCPU is at a safe point.
    pub fn leave(&self, me: &Signal) {
        me.running.store(false, Ordering::SeqCst);
        if self.stop.load(Ordering::SeqCst) {
            drop(self.stopped.lock());
            self.stopped_cv.notify_all();
        }
    }

    /// Runs `f` while every other vCPU stands at a safe point. Must be called
    /// between [`Self::enter`] and [`Self::leave`], with no lock held that
    /// another vCPU may wait for. May be nested.
    pub fn alone<R>(&self, me: &Signal, f: impl FnOnce() -> R) -> R {
        let id = std::ptr::from_ref(me) as usize;
        if self.owner.load(Ordering::SeqCst) == id {
            return f();
        }
        let others: Vec<Arc<Signal>> = self
            .signals
            .lock()
            .iter()
            .filter(|s| !std::ptr::eq(&***s, me))
            .cloned()
            .collect();
        if others.is_empty() {
            return f();
        }
        self.leave(me);
        let _one: MutexGuard<'_, ()> = self.exclusive.lock();
        self.stop.store(true, Ordering::SeqCst);
        for s in &others {
            s.raise(pending::WORLD);
        }
        let mut guard = self.stopped.lock();
        while others.iter().any(|s| s.running.load(Ordering::SeqCst)) {
            self.stopped_cv.wait(&mut guard);
        }
        drop(guard);
        self.owner.store(id, Ordering::SeqCst);
        let result = f();
        self.owner.store(0, Ordering::SeqCst);
        me.running.store(true, Ordering::SeqCst);
        self.stop.store(false, Ordering::SeqCst);
        for s in &others {
            s.take(pending::WORLD);
        }
        result
    }
}
