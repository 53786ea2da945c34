//! Running, pausing and ending the vCPU threads, and the events that the
//! machine's supervisor decides on.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::{DebugStop, EngineError, Exit, Vcpu, VcpuHandle};
use parking_lot::{Condvar, Mutex};

use crate::events::GuestEvent;

/// Something after which no vCPU runs on until the supervisor has decided.
#[derive(Debug)]
pub(crate) enum Event {
    /// The guest asked for a reset (port 0xcf9, the FADT's register, 8042).
    Reset,
    /// The guest entered S5.
    PowerOff,
    /// The guest wrote the debug-exit port.
    DebugExit(u32),
    /// Something to record, after which the guest goes on.
    Guest(GuestEvent),
    /// A vCPU shut down by a triple fault.
    TripleFault(u32),
    /// A vCPU could not go on.
    Failed(EngineError),
    /// Holm was asked to end the machine.
    Stop,
}

/// Work for the thread of a vCPU, done while the vCPU stands still.
type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

struct Slot {
    parked: bool,
    gone: bool,
    jobs: VecDeque<Job>,
    handle: Arc<dyn VcpuHandle>,
}

struct State {
    /// Holds by the user (pause) and by the supervisor (an event).
    paused: bool,
    held: bool,
    /// How many want all vCPUs to stand for a moment, jobs included.
    quiesced: u32,
    ended: bool,
    slots: Vec<Slot>,
    events: VecDeque<Event>,
    debugger: Option<DebuggerHold>,
}

/// Which vCPUs an attached debugger lets run, and where they stopped for it.
struct DebuggerHold {
    lets_run: Vec<bool>,
    stops: VecDeque<(u32, DebugStop)>,
}

impl State {
    fn may_run(&self, index: usize) -> bool {
        let debugged = self.debugger.as_ref();
        let let_run = debugged.is_none_or(|d| d.lets_run.get(index) == Some(&true));
        !self.paused && !self.held && self.quiesced == 0 && let_run
    }
}

/// The vCPU threads of one machine, as other threads see them.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    /// Without vCPUs, held until [`Self::release`].
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                paused: false,
                held: true,
                quiesced: 0,
                ended: false,
                slots: Vec::new(),
                events: VecDeque::new(),
                debugger: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Starts the thread of one more vCPU.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn spawn(self: &Arc<Self>, mut vcpu: Box<dyn Vcpu>) -> std::io::Result<JoinHandle<()>> {
        let index = {
            let mut s = self.state.lock();
            s.slots.push(Slot {
                parked: false,
                gone: false,
                jobs: VecDeque::new(),
                handle: vcpu.handle(),
            });
            s.slots.len() - 1
        };
        let control = self.clone();
        std::thread::Builder::new()
            .name(format!("vcpu-{index}"))
            .spawn(move || {
                let ran = catch_unwind(AssertUnwindSafe(|| control.drive(index, &mut *vcpu)));
                if ran.is_err() {
                    control.post(Event::Failed(EngineError::Host {
                        engine: "cpu",
                        reason: format!(
                            "the thread of vCPU {index} panicked; this is a defect of Holm"
                        ),
                    }));
                }
                control.leave(index);
            })
    }

    fn drive(&self, index: usize, vcpu: &mut dyn Vcpu) {
        while self.gate(index, vcpu) {
            match vcpu.run() {
                Ok(Exit::Kicked) => {}
                Ok(Exit::Debug(stop)) => self.debug_stop(index as u32, stop),
                Ok(Exit::TripleFault) => self.post(Event::TripleFault(index as u32)),
                Err(e) => self.post(Event::Failed(e)),
            }
        }
    }

    /// Does this vCPU's jobs and waits until it may run; false: it shall end.
    fn gate(&self, index: usize, vcpu: &mut dyn Vcpu) -> bool {
        let mut s = self.state.lock();
        loop {
            let next = match s.quiesced {
                0 => s.slots[index].jobs.pop_front(),
                _ => None,
            };
            if let Some(job) = next {
                s.slots[index].parked = false;
                drop(s);
                job(vcpu);
                s = self.state.lock();
                continue;
            }
            if s.ended {
                return false;
            }
            if s.may_run(index) {
                s.slots[index].parked = false;
                return true;
            }
            s.slots[index].parked = true;
            self.changed.notify_all();
            self.changed.wait(&mut s);
        }
    }

    fn leave(&self, index: usize) {
        let mut s = self.state.lock();
        s.slots[index].gone = true;
        s.slots[index].jobs.clear();
        self.changed.notify_all();
    }

    fn kick_all(state: &State) {
        for slot in &state.slots {
            slot.handle.kick();
        }
    }

    /// Holds all vCPUs and tells the supervisor. Callable from anywhere, also
    /// from a device on a vCPU thread: it does not wait.
    pub fn post(&self, event: Event) {
        let mut s = self.state.lock();
        s.held = true;
        s.events.push_back(event);
        Self::kick_all(&s);
        self.changed.notify_all();
    }

    /// The next event; `None` when the deadline has passed.
    pub fn next_event(&self, deadline: Option<Instant>) -> Option<Event> {
        let mut s = self.state.lock();
        loop {
            if let Some(event) = s.events.pop_front() {
                return Some(event);
            }
            match deadline {
                None => self.changed.wait(&mut s),
                Some(at) => {
                    if self.changed.wait_until(&mut s, at).timed_out() {
                        return s.events.pop_front();
                    }
                }
            }
        }
    }

    /// Forgets events that a reset has overtaken; a request to stop stays.
    pub fn forget_events(&self) {
        let mut s = self.state.lock();
        s.events.retain(|e| matches!(e, Event::Stop));
    }

    /// Waits until no vCPU runs; they are held or paused already. Not for
    /// vCPU threads.
    pub fn wait_parked(&self) {
        let mut s = self.state.lock();
        Self::kick_all(&s);
        while s.slots.iter().any(|v| !v.parked && !v.gone) {
            self.changed.wait(&mut s);
        }
    }

    /// Runs `f` while no vCPU runs nor does a job, and lets them go on. Short:
    /// devices and the guest's clock are not stopped. Not for vCPU threads.
    pub fn quiesce<R>(&self, f: impl FnOnce() -> R) -> R {
        self.state.lock().quiesced += 1;
        self.wait_parked();
        let result = f();
        self.state.lock().quiesced -= 1;
        self.changed.notify_all();
        result
    }

    /// Ends the supervisor's hold, unless another event has come.
    pub fn release(&self) {
        let mut s = self.state.lock();
        if s.events.is_empty() {
            s.held = false;
        }
        self.changed.notify_all();
    }

    /// Pauses or resumes for the user; pausing waits until no vCPU runs.
    pub fn set_paused(&self, paused: bool) {
        self.state.lock().paused = paused;
        if paused {
            self.wait_parked();
        } else {
            self.changed.notify_all();
        }
    }

    /// Whether the user paused the machine.
    pub fn is_paused(&self) -> bool {
        self.state.lock().paused
    }

    /// Waits until the machine runs or has ended.
    pub fn wait_running(&self) {
        let mut s = self.state.lock();
        while (s.paused || s.held) && !s.ended {
            self.changed.wait(&mut s);
        }
    }

    /// Waits until all vCPU threads have ended, or for this long; whether they
    /// have.
    pub fn wait_gone(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut s = self.state.lock();
        while s.slots.iter().any(|slot| !slot.gone) {
            if self.changed.wait_until(&mut s, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// A debugger takes all vCPUs; returns when they stand.
    pub fn attach_debugger(&self) {
        {
            let mut s = self.state.lock();
            s.debugger = Some(DebuggerHold {
                lets_run: Vec::new(),
                stops: VecDeque::new(),
            });
        }
        self.wait_parked();
    }

    /// The debugger lets these vCPUs run, by index, until one of them stops or
    /// [`Self::attach_debugger`] is called again.
    pub fn debugger_lets_run(&self, vcpus: Vec<bool>) {
        if let Some(debugger) = &mut self.state.lock().debugger {
            debugger.lets_run = vcpus;
            // Who stands at a breakpoint finds it again.
            debugger.stops.clear();
        }
        self.changed.notify_all();
    }

    /// The debugger has gone: all vCPUs are their own again.
    pub fn detach_debugger(&self) {
        self.state.lock().debugger = None;
        self.changed.notify_all();
    }

    fn debug_stop(&self, index: u32, stop: DebugStop) {
        let mut s = self.state.lock();
        if let Some(debugger) = &mut s.debugger {
            debugger.lets_run.clear();
            debugger.stops.push_back((index, stop));
        }
        Self::kick_all(&s);
        self.changed.notify_all();
    }

    /// The next vCPU that stopped for the debugger, within this time.
    pub fn next_debug_stop(&self, within: Duration) -> Option<(u32, DebugStop)> {
        let deadline = Instant::now() + within;
        let mut s = self.state.lock();
        loop {
            if let Some(stop) = s.debugger.as_mut()?.stops.pop_front() {
                return Some(stop);
            }
            if s.ended || self.changed.wait_until(&mut s, deadline).timed_out() {
                return None;
            }
        }
    }

    /// Whether the vCPU threads have been told to end.
    pub fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Ends all vCPU threads.
    pub fn end(&self) {
        let mut s = self.state.lock();
        s.ended = true;
        Self::kick_all(&s);
        self.changed.notify_all();
    }

    /// Runs `f` on a vCPU's thread while that vCPU stands still, and waits for
    /// its result. `None`: there is no such vCPU, or no longer.
    pub fn on_vcpu<R: Send + 'static>(
        &self,
        index: u32,
        f: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Option<R> {
        self.give_job(index, f)?.recv().ok()
    }

    /// As [`Self::on_vcpu`] for every vCPU, on all threads at once; the results
    /// by index.
    pub fn on_all_vcpus<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut dyn Vcpu) -> R + Clone + Send + 'static,
    ) -> Option<Vec<R>> {
        let count = self.state.lock().slots.len() as u32;
        let given: Vec<_> = (0..count).map(|i| self.give_job(i, f.clone())).collect();
        given.into_iter().map(|job| job?.recv().ok()).collect()
    }

    fn give_job<R: Send + 'static>(
        &self,
        index: u32,
        f: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Option<mpsc::Receiver<R>> {
        let (tx, rx) = mpsc::sync_channel(1);
        let mut s = self.state.lock();
        let slot = s.slots.get_mut(index as usize).filter(|v| !v.gone)?;
        slot.jobs.push_back(Box::new(move |vcpu| {
            let _ = tx.send(f(vcpu));
        }));
        slot.handle.kick();
        self.changed.notify_all();
        Some(rx)
    }

    /// Raises a non-maskable interrupt on a vCPU.
    pub fn nmi(&self, index: u32) {
        if let Some(slot) = self.state.lock().slots.get(index as usize) {
            slot.handle.nmi();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use arch::CpuState;
    use engine::VcpuStats;

    #[derive(Default)]
    struct Handle(AtomicBool);

    impl VcpuHandle for Handle {
        fn kick(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
        fn nmi(&self) {}
    }

    /// Counts up until it is kicked; ends as `exit` says when it reaches it.
    struct Counter {
        handle: Arc<Handle>,
        count: Arc<AtomicU64>,
        panic_at: u64,
    }

    impl Vcpu for Counter {
        fn run(&mut self) -> Result<Exit, EngineError> {
            while !self.handle.0.swap(false, Ordering::SeqCst) {
                assert_ne!(self.count.fetch_add(1, Ordering::SeqCst), self.panic_at);
                std::thread::yield_now();
            }
            Ok(Exit::Kicked)
        }
        fn save(&mut self) -> Result<CpuState, EngineError> {
            Ok(CpuState {
                tsc: self.count.load(Ordering::SeqCst),
                ..CpuState::default()
            })
        }
        fn restore(&mut self, _: &CpuState) -> Result<(), EngineError> {
            Ok(())
        }
        fn set_debug(&mut self, _: &engine::DebugRequest) -> Result<(), EngineError> {
            Ok(())
        }
        fn stats(&self) -> VcpuStats {
            VcpuStats::default()
        }
        fn handle(&self) -> Arc<dyn VcpuHandle> {
            self.handle.clone()
        }
    }

    fn counters(
        n: usize,
        panic_at: u64,
    ) -> (Arc<Control>, Vec<Arc<AtomicU64>>, Vec<JoinHandle<()>>) {
        let control = Control::new();
        let counts: Vec<_> = (0..n).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let threads = counts.iter().map(|count| {
            let vcpu = Counter {
                handle: Arc::default(),
                count: count.clone(),
                panic_at,
            };
            control.spawn(Box::new(vcpu)).unwrap()
        });
        let threads = threads.collect();
        (control, counts, threads)
    }

    fn sum(counts: &[Arc<AtomicU64>]) -> u64 {
        counts.iter().map(|c| c.load(Ordering::SeqCst)).sum()
    }

    #[test]
    fn vcpus_stand_still_while_paused_or_held_and_end() {
        let (control, counts, threads) = counters(3, u64::MAX);
        assert_eq!(sum(&counts), 0);
        control.release();
        while counts.iter().any(|c| c.load(Ordering::SeqCst) == 0) {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            control.set_paused(true);
            let before = sum(&counts);
            let seen = control.on_vcpu(1, |v| v.save().unwrap().tsc).unwrap();
            assert_eq!(seen, counts[1].load(Ordering::SeqCst));
            assert_eq!(sum(&counts), before);
            control.set_paused(false);
            let stand = control.quiesce(|| {
                let before = sum(&counts);
                std::thread::yield_now();
                (before, sum(&counts))
            });
            assert_eq!(stand.0, stand.1);
        }
        assert!(control.on_vcpu(2, |v| v.save().unwrap().tsc).is_some());
        control.post(Event::Reset);
        control.wait_parked();
        let before = sum(&counts);
        control.set_paused(true);
        control.set_paused(false);
        assert_eq!(sum(&counts), before);
        control.release();
        assert_eq!(
            sum(&counts),
            before,
            "an event not yet taken keeps the hold"
        );
        assert!(matches!(control.next_event(None), Some(Event::Reset)));
        control.end();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(control.on_vcpu(0, |_| ()).is_none());
    }

    #[test]
    fn a_panic_of_a_vcpu_thread_is_an_event() {
        let (control, _, threads) = counters(2, 1000);
        control.release();
        let event = control.next_event(Some(Instant::now() + Duration::from_secs(20)));
        assert!(matches!(event, Some(Event::Failed(_))), "{event:?}");
        control.wait_parked();
        control.end();
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
