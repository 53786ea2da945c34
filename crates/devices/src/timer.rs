//! Guest time, and one thread that runs all devices' timers on it.
//!
//! Guest time counts nanoseconds since the machine started. It stands still
//! while the machine is paused, and a restored machine goes on where it was
//! saved. Time of day does not stop.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, RwLock};

/// Nanoseconds per second.
pub const SECOND: u64 = 1_000_000_000;

/// The clock of one machine.
pub struct Clock {
    time: RwLock<Time>,
    /// Services to wake when time goes on or jumps.
    services: Mutex<Vec<Weak<Shared>>>,
}

struct Time {
    /// Guest nanoseconds at `since`.
    base: u64,
    /// `None`: time stands still.
    since: Option<Instant>,
    /// Time of day at guest time 0, on a clock that tests advance.
    manual: Option<u64>,
}

impl Clock {
    /// A clock that runs with the host's, from 0.
    #[must_use]
    pub fn running() -> Arc<Self> {
        Self::new(Some(Instant::now()), None)
    }

    /// A clock that only [`Timers::advance`] moves; `time_of_day` is Unix time
    /// in nanoseconds at the start.
    #[must_use]
    pub fn manual(time_of_day: u64) -> Arc<Self> {
        Self::new(None, Some(time_of_day))
    }

    fn new(since: Option<Instant>, manual: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            time: RwLock::new(Time {
                base: 0,
                since,
                manual,
            }),
            services: Mutex::default(),
        })
    }

    /// Guest nanoseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.time.read().now()
    }

    /// Time of day: Unix time in nanoseconds.
    #[must_use]
    pub fn time_of_day(&self) -> u64 {
        let time = self.time.read();
        match time.manual {
            Some(start) => start.saturating_add(time.now()),
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, nanoseconds),
        }
    }

    /// Stops guest time; nothing if it stands.
    pub fn pause(&self) {
        let mut time = self.time.write();
        time.base = time.now();
        time.since = None;
    }

    /// Lets guest time go on; nothing if it runs.
    pub fn resume(&self) {
        let mut time = self.time.write();
        if time.since.is_none() && time.manual.is_none() {
            time.since = Some(Instant::now());
        }
        drop(time);
        self.wake();
    }

    /// Whether guest time stands still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let time = self.time.read();
        time.since.is_none() && time.manual.is_none()
    }

    /// Sets guest time, for a restored machine.
    pub fn set(&self, now: u64) {
        let mut time = self.time.write();
        time.base = now;
        time.since = time.since.map(|_| Instant::now());
        drop(time);
        self.wake();
    }

    fn wake(&self) {
        for service in self.services.lock().iter().filter_map(Weak::upgrade) {
            // Taken so that no wake-up falls between a look and a wait.
            drop(service.queue.lock());
            service.changed.notify_all();
        }
    }
}

impl Time {
    fn now(&self) -> u64 {
        let passed = self.since.map_or(0, |since| nanoseconds(since.elapsed()));
        self.base.saturating_add(passed)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

type Callback = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queue {
    due: BTreeSet<(u64, u64)>,
    timers: HashMap<u64, (Callback, Option<u64>)>,
    next_id: u64,
    stopped: bool,
}

impl Queue {
    fn disarm(&mut self, id: u64) {
        if let Some((_, deadline)) = self.timers.get_mut(&id)
            && let Some(deadline) = deadline.take()
        {
            self.due.remove(&(deadline, id));
        }
    }

    /// Takes the first timer due by `now` off the queue.
    fn take_due(&mut self, now: u64) -> Option<Callback> {
        let &(deadline, id) = self.due.first()?;
        if deadline > now {
            return None;
        }
        self.disarm(id);
        self.timers
            .get(&id)
            .map(|(callback, _)| Arc::clone(callback))
    }
}

struct Shared {
    clock: Arc<Clock>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Runs timers: one thread for all devices of a machine.
pub struct Timers {
    shared: Arc<Shared>,
}

impl Timers {
    /// A service on `clock`. On a manual clock there is no thread, and
    /// [`Timers::advance`] runs the timers.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn new(clock: &Arc<Clock>) -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            clock: Arc::clone(clock),
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        if clock.time.read().manual.is_none() {
            clock.services.lock().push(Arc::downgrade(&shared));
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("timers".into())
                .spawn(move || shared.serve())?;
        }
        Ok(Arc::new(Self { shared }))
    }

    /// The clock that the timers run on.
    #[must_use]
    pub fn clock(&self) -> &Arc<Clock> {
        &self.shared.clock
    }

    /// A new timer. `callback` is called on the service's thread, without any
    /// of its locks held, so it may take its device's lock and arm or cancel
    /// timers. It may still come right after the timer was cancelled or armed
    /// anew: a device compares its own state with the time.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let mut queue = self.shared.queue.lock();
        let id = queue.next_id;
        queue.next_id += 1;
        queue.timers.insert(id, (Arc::new(callback), None));
        Timer {
            shared: Arc::clone(&self.shared),
            id,
        }
    }

    /// Moves a manual clock by `nanoseconds`, running each timer at its time.
    pub fn advance(&self, nanoseconds: u64) {
        let clock = &self.shared.clock;
        let end = clock.now().saturating_add(nanoseconds);
        loop {
            let mut queue = self.shared.queue.lock();
            let Some(&(deadline, _)) = queue.due.first() else {
                break;
            };
            if deadline > end {
                break;
            }
            let now = deadline.max(clock.now());
            clock.time.write().base = now;
            let callback = queue.take_due(now);
            drop(queue);
            if let Some(callback) = callback {
                callback();
            }
        }
        clock.time.write().base = end;
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.queue.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn serve(&self) {
        let mut queue = self.queue.lock();
        while !queue.stopped {
            if self.clock.is_paused() {
                self.changed.wait(&mut queue);
                continue;
            }
            let now = self.clock.now();
            if let Some(callback) = queue.take_due(now) {
                drop(queue);
                callback();
                drop(callback);
                queue = self.queue.lock();
                continue;
            }
            match queue.due.first() {
                Some(&(deadline, _)) => {
                    let wait = Duration::from_nanos(deadline.saturating_sub(now));
                    self.changed.wait_for(&mut queue, wait);
                }
                None => self.changed.wait(&mut queue),
            }
        }
    }
}

/// A timer of one device. Dropping it cancels it.
pub struct Timer {
    shared: Arc<Shared>,
    id: u64,
}

impl Timer {
    /// Calls back once when guest time reaches `deadline`, instead of any
    /// deadline armed before.
    pub fn arm(&self, deadline: u64) {
        let mut queue = self.shared.queue.lock();
        queue.disarm(self.id);
        if let Some((_, armed)) = queue.timers.get_mut(&self.id) {
            *armed = Some(deadline);
            queue.due.insert((deadline, self.id));
        }
        if queue.due.first() == Some(&(deadline, self.id)) {
            self.shared.changed.notify_all();
        }
    }

    /// Forgets the deadline.
    pub fn cancel(&self) {
        self.shared.queue.lock().disarm(self.id);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.disarm(self.id);
        let callback = queue.timers.remove(&self.id);
        drop(queue);
        drop(callback);
    }
}

/// Ticks of a counter of `hertz` in `nanoseconds`.
#[must_use]
pub(crate) fn ticks(nanoseconds: u64, hertz: u64) -> u64 {
    (u128::from(nanoseconds) * u128::from(hertz) / u128::from(SECOND)) as u64
}

/// Nanoseconds after which a counter of `hertz` has counted `ticks`.
#[must_use]
pub(crate) fn time_of_ticks(ticks: u64, hertz: u64) -> u64 {
    let time = (u128::from(ticks) * u128::from(SECOND)).div_ceil(u128::from(hertz.max(1)));
    u64::try_from(time).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn timers_run_in_order_on_a_manual_clock() {
        let clock = Clock::manual(7);
        let timers = Timers::new(&clock).unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let note = |name: &'static str| {
            let (log, clock) = (Arc::clone(&log), Arc::clone(&clock));
            timers.timer(move || log.lock().push((name, clock.now())))
        };
        let (late, early, cancelled) = (note("late"), note("early"), note("cancelled"));
        late.arm(300);
        early.arm(900);
        early.arm(100);
        cancelled.arm(200);
        cancelled.cancel();
        timers.advance(99);
        assert!(log.lock().is_empty());
        timers.advance(401);
        assert_eq!(*log.lock(), [("early", 100), ("late", 300)]);
        assert_eq!((clock.now(), clock.time_of_day()), (500, 507));
        drop(late);
        timers.advance(u64::MAX);
    }

    #[test]
    fn a_periodic_timer_rearms_itself_from_its_callback() {
        let clock = Clock::manual(0);
        let timers = Timers::new(&clock).unwrap();
        let slot: Arc<Mutex<Option<Timer>>> = Arc::default();
        let count = Arc::new(Mutex::new(0));
        let timer = timers.timer({
            let (slot, count, clock) = (slot.clone(), count.clone(), clock.clone());
            move || {
                *count.lock() += 1;
                if let Some(timer) = &*slot.lock() {
                    timer.arm(clock.now() + 10);
                }
            }
        });
        timer.arm(10);
        *slot.lock() = Some(timer);
        timers.advance(100);
        assert_eq!(*count.lock(), 10);
        *slot.lock() = None;
    }

    #[test]
    fn a_paused_clock_holds_its_timers() {
        let clock = Clock::running();
        let timers = Timers::new(&clock).unwrap();
        clock.pause();
        let paused = clock.now();
        let (sender, receiver) = mpsc::channel();
        let timer = timers.timer({
            let clock = clock.clone();
            move || sender.send(clock.now()).unwrap()
        });
        timer.arm(paused + 1_000_000);
        assert!(receiver.recv_timeout(Duration::from_millis(30)).is_err());
        assert_eq!(clock.now(), paused);
        clock.resume();
        let fired = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(fired >= paused + 1_000_000);
        // A restored machine goes on at its own time.
        timer.arm(3600 * SECOND);
        clock.set(3600 * SECOND);
        assert!(receiver.recv_timeout(Duration::from_secs(20)).unwrap() >= 3600 * SECOND);
    }
}
