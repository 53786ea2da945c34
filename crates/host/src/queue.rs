//! What is to be looked at, each thing by one worker at a time.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What is to be looked at only then does not keep a queue from being settled.
const FAR: Duration = Duration::from_secs(120);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An instance and its machine, with the disks that come and go.
    Instance(String),
    /// A volume's file.
    Volume(String),
    /// A snapshot's contents.
    Snapshot(String),
    /// An image.
    Image(String),
    /// Where the cards of a VPC meet.
    Network(String),
}

/// Keys that wait, now or for a moment to come. A key is there once, and is not
/// given out while it is worked on.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Key>,
    queued: HashSet<Key>,
    working: HashSet<Key>,
    /// Asked for while they are worked on.
    again: HashSet<Key>,
    due: HashMap<Key, Instant>,
    by_time: BTreeSet<(Instant, Key)>,
}

impl State {
    fn push(&mut self, key: Key) {
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.waiting.push_back(key);
        }
    }

    fn forget_time(&mut self, key: &Key) {
        if let Some(at) = self.due.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.by_time.first().cloned() {
            if at > now {
                return;
            }
            self.forget_time(&key);
            self.push(key);
        }
    }
}

impl Queue {
    /// Asks for a key to be looked at.
    pub fn add(&self, key: Key) {
        self.state.lock().push(key);
        self.changed.notify_one();
    }

    /// Asks for a key to be looked at after this time, or at an earlier moment
    /// that was asked for already.
    pub fn add_after(&self, key: Key, time: Duration) {
        let at = Instant::now() + time;
        let mut state = self.state.lock();
        if state.due.get(&key).is_some_and(|earlier| *earlier <= at) {
            return;
        }
        state.forget_time(&key);
        state.due.insert(key.clone(), at);
        state.by_time.insert((at, key));
        drop(state);
        self.changed.notify_one();
    }

    /// The next key, to be given back by [`Self::done`]. Only one task asks.
    pub async fn next(&self) -> Key {
        loop {
            let next_time = {
                let mut state = self.state.lock();
                state.wake(Instant::now());
                if let Some(key) = state.waiting.pop_front() {
                    state.queued.remove(&key);
                    // What was to be looked at later is looked at now.
                    state.forget_time(&key);
                    state.working.insert(key.clone());
                    return key;
                }
                state.by_time.first().map(|(at, _)| *at)
            };
            match next_time {
                None => self.changed.notified().await,
                Some(at) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    /// A key was looked at.
    pub fn done(&self, key: &Key) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.again.remove(key) {
            state.push(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Nothing is worked on, and nothing waits for a moment that is near.
    pub fn is_settled(&self) -> bool {
        let state = self.state.lock();
        let far = Instant::now() + FAR;
        state.waiting.is_empty()
            && state.working.is_empty()
            && state.by_time.first().is_none_or(|(at, _)| *at > far)
    }

    /// How many wait, now or later, and are worked on.
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        state.waiting.len() + state.working.len() + state.by_time.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key::Volume(id.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_given_out_once_and_again_if_it_was_asked_for_meanwhile() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add_after(key("b"), Duration::from_secs(5));
        queue.add_after(key("b"), Duration::from_secs(9));
        assert_eq!(queue.next().await, key("a"));
        queue.add(key("a"));
        let start = Instant::now();
        assert_eq!(queue.next().await, key("b"));
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&key("a"));
        assert_eq!(queue.next().await, key("a"));
        queue.done(&key("a"));
        assert!(!queue.is_settled());
        queue.done(&key("b"));
        assert!(queue.is_settled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_looked_at_now_is_not_looked_at_later() {
        let queue = Queue::default();
        queue.add_after(key("a"), Duration::from_secs(5));
        queue.add(key("a"));
        assert_eq!(queue.next().await, key("a"));
        queue.done(&key("a"));
        assert!(queue.is_settled());
    }
}
