//! The serial console as clients of the control socket share it: what the guest
//! prints goes to its first destination as without them, and is kept for them
//! in bounded space. A client that is slow loses output; it never holds the
//! guest up. One of them has the keyboard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::serial::SerialSink;
use machine_protocol::Printed;
use parking_lot::{Condvar, Mutex};

/// What is kept of what was printed, in bytes.
const KEPT: usize = 256 << 10;
/// Most bytes given at once.
const PART: usize = 32 << 10;
/// How long the first byte of a burst waits for the rest.
const GATHER: Duration = Duration::from_millis(2);
/// A replay begins with a whole line if one begins within so many bytes.
const LINE: usize = 1024;

struct State {
    kept: VecDeque<u8>,
    /// Bytes ever printed.
    printed: u64,
    /// Who has the keyboard.
    keyboard: Option<u64>,
    next_watcher: u64,
    watchers: usize,
    /// Counts how often the port said that it has room.
    rooms: u64,
    ended: bool,
}

impl State {
    fn forgotten(&self) -> u64 {
        self.printed - self.kept.len() as u64
    }
}

/// The console of one machine.
pub(crate) struct Terminal {
    first: Arc<dyn SerialSink>,
    state: Mutex<State>,
    changed: Condvar,
}

impl SerialSink for Terminal {
    fn write(&self, data: &[u8]) {
        self.first.write(data);
        let mut s = self.state.lock();
        s.kept.extend(data);
        s.printed += data.len() as u64;
        let beyond = s.kept.len().saturating_sub(KEPT);
        s.kept.drain(..beyond);
        let watched = s.watchers > 0;
        drop(s);
        if watched {
            self.changed.notify_all();
        }
    }

    fn input_ready(&self) {
        self.first.input_ready();
        self.state.lock().rooms += 1;
        self.changed.notify_all();
    }
}

impl Terminal {
    /// In front of where the console leads.
    pub fn new(first: Arc<dyn SerialSink>) -> Arc<Self> {
        Arc::new(Self {
            first,
            state: Mutex::new(State {
                kept: VecDeque::new(),
                printed: 0,
                keyboard: None,
                next_watcher: 0,
                watchers: 0,
                rooms: 0,
                ended: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// One more watcher, who first gets the last `replay` bytes.
    pub fn watch(self: &Arc<Self>, replay: usize) -> Watcher {
        let mut s = self.state.lock();
        s.watchers += 1;
        s.next_watcher += 1;
        let mut skipped = s.kept.len().saturating_sub(replay);
        if skipped > 0 && replay > 0 {
            let mut beginning = s.kept.iter().skip(skipped).take(LINE);
            skipped += beginning.position(|b| *b == b'\n').map_or(0, |at| at + 1);
        }
        Watcher {
            at: Mutex::new(s.forgotten() + skipped as u64),
            id: s.next_watcher,
            terminal: Arc::clone(self),
        }
    }

    /// The machine has ended: watchers get what is left. Waits for them, but
    /// not longer than `patience`.
    pub fn end(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut s = self.state.lock();
        s.ended = true;
        self.changed.notify_all();
        while s.watchers > 0 {
            if self.changed.wait_until(&mut s, end).timed_out() {
                return;
            }
        }
    }
}

/// What a watcher is to know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// What was printed, if anything.
    pub printed: Option<Printed>,
    /// Whether the watcher has the keyboard.
    pub keyboard: bool,
    /// The machine has ended, and there is no more.
    pub ended: bool,
}

/// A client at the console.
pub(crate) struct Watcher {
    terminal: Arc<Terminal>,
    id: u64,
    /// How much of what was printed it has.
    at: Mutex<u64>,
}

impl Watcher {
    /// What is new, after at most `patience`. `had` is whether the watcher
    /// believes to have the keyboard.
    pub fn news(&self, had: bool, patience: Duration) -> News {
        let mut at = self.at.lock();
        let mut s = self.terminal.state.lock();
        let idle = |s: &State, at: u64| s.printed == at && (s.keyboard == Some(self.id)) == had;
        if idle(&s, *at) && !s.ended {
            self.terminal.changed.wait_for(&mut s, patience);
            if s.printed != *at && !s.ended {
                drop(s);
                std::thread::sleep(GATHER);
                s = self.terminal.state.lock();
            }
        }
        let lost = s.forgotten().saturating_sub(*at);
        let skipped = (*at + lost - s.forgotten()) as usize;
        let data: Vec<u8> = s.kept.iter().skip(skipped).take(PART).copied().collect();
        *at += lost + data.len() as u64;
        News {
            keyboard: s.keyboard == Some(self.id),
            ended: s.ended && data.is_empty(),
            printed: (!data.is_empty()).then_some(Printed {
                lost,
                data: machine_protocol::Bytes(data),
            }),
        }
    }

    /// Takes the keyboard; unless `force`, only if nobody has it.
    pub fn take_keyboard(&self, force: bool) -> bool {
        let mut s = self.terminal.state.lock();
        if s.keyboard.is_none() || force {
            s.keyboard = Some(self.id);
            self.terminal.changed.notify_all();
        }
        s.keyboard == Some(self.id)
    }

    /// Whether it may type.
    pub fn has_keyboard(&self) -> bool {
        self.terminal.state.lock().keyboard == Some(self.id)
    }

    /// Gives bytes to the port by `push`, which says how many it took, until
    /// they are taken, the keyboard is lost or the machine has ended; gives up
    /// after `patience` in which none was taken. How many were not taken.
    pub fn type_in(
        &self,
        mut bytes: &[u8],
        push: impl Fn(&[u8]) -> usize,
        patience: Duration,
    ) -> usize {
        /// A port that was reset with its machine announces nothing.
        const AGAIN: Duration = Duration::from_millis(200);
        let mut last = Instant::now();
        loop {
            let rooms = {
                let s = self.terminal.state.lock();
                if s.keyboard != Some(self.id) || s.ended || bytes.is_empty() {
                    return bytes.len();
                }
                s.rooms
            };
            let taken = push(bytes).min(bytes.len());
            bytes = bytes.get(taken..).unwrap_or_default();
            if taken > 0 {
                last = Instant::now();
            } else if last.elapsed() >= patience {
                return bytes.len();
            }
            let mut s = self.terminal.state.lock();
            if !bytes.is_empty() && s.rooms == rooms {
                self.terminal.changed.wait_for(&mut s, AGAIN);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut s = self.terminal.state.lock();
        s.watchers -= 1;
        if s.keyboard == Some(self.id) {
            s.keyboard = None;
        }
        drop(s);
        self.terminal.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;
    impl SerialSink for Nowhere {
        fn write(&self, _: &[u8]) {}
    }

    const LONG: Duration = Duration::from_secs(60);

    fn all(watcher: &Watcher) -> (u64, Vec<u8>) {
        let (mut lost, mut data) = (0, Vec::new());
        while let Some(printed) = watcher.news(false, Duration::ZERO).printed {
            lost += printed.lost;
            data.extend(printed.data.0);
        }
        (lost, data)
    }

    #[test]
    fn watchers_get_the_same_and_the_slow_one_loses_the_oldest() {
        let terminal = Terminal::new(Arc::new(Nowhere));
        terminal.write(b"before\nline one\nline two\n");
        let (quick, slow) = (terminal.watch(12), terminal.watch(0));
        assert_eq!(all(&quick), (0, b"line two\n".to_vec()));
        let text: Vec<u8> = (0..KEPT as u32 / 2).map(|i| (i % 251) as u8).collect();
        for _ in 0..3 {
            terminal.write(&text);
            assert_eq!(all(&quick), (0, text.clone()));
        }
        let (lost, data) = all(&slow);
        assert_eq!(lost as usize, KEPT / 2);
        assert_eq!(data, [&text[..], &text].concat());
        assert!(terminal.state.lock().kept.len() <= KEPT);
        terminal.write(b"last words");
        let ending = terminal.clone();
        let thread = std::thread::spawn(move || ending.end(LONG));
        assert_eq!(all(&quick).1, b"last words");
        assert!(quick.news(false, LONG).ended || quick.news(false, LONG).ended);
        drop((quick, slow));
        thread.join().unwrap();
    }

    #[test]
    fn one_has_the_keyboard() {
        let terminal = Terminal::new(Arc::new(Nowhere));
        let (one, two) = (terminal.watch(0), terminal.watch(0));
        assert!(one.take_keyboard(false) && !two.take_keyboard(false));
        let typed = Mutex::new(Vec::new());
        let push = |bytes: &[u8]| {
            // A port with little room.
            let part = &bytes[..bytes.len().min(3)];
            typed.lock().extend_from_slice(part);
            terminal.input_ready();
            part.len()
        };
        assert_eq!(one.type_in(b"for the guest", push, LONG), 0);
        assert_eq!(two.type_in(b"not me", push, LONG), 6);
        assert!(two.take_keyboard(true));
        assert!(two.news(false, LONG).keyboard && !one.news(true, LONG).keyboard);
        assert_eq!(one.type_in(b"late", push, LONG), 4);
        assert_eq!(*typed.lock(), b"for the guest");
        drop(two);
        assert!(one.take_keyboard(false));
        // A guest that reads nothing does not hold the client's thread for ever.
        assert_eq!(one.type_in(b"unread", |_| 0, Duration::ZERO), 6);
    }
}
