//! What the user types or pipes in, on its way to the guest's serial port.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::keys::{Keys, Typed};
use crate::run::session::Event;

/// Bytes of a pipe read ahead of the guest.
const AHEAD: usize = 4096;

/// How long a full port is waited for before it is tried again.
const PATIENCE: Duration = Duration::from_millis(200);

/// Takes bytes for the guest's serial port.
pub trait Port: Send + Sync {
    /// Takes as many bytes as there is room for now, and says how many.
    fn push(&self, bytes: &[u8]) -> usize;
}

/// Hears from the serial port that it has room again.
#[derive(Debug, Default)]
pub struct Room {
    announced: Mutex<bool>,
    changed: Condvar,
}

impl Room {
    /// The port has room again.
    pub fn announce(&self) {
        *self.announced.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for the announcement. Not for ever: a port that was reset with its
    /// machine announces nothing.
    fn wait(&self) {
        let mut announced = self.announced.lock();
        if !*announced {
            self.changed.wait_for(&mut announced, PATIENCE);
        }
        *announced = false;
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    monitor: bool,
}

/// The queue between stdin and the serial port.
#[derive(Default)]
pub struct Input {
    state: Mutex<State>,
    changed: Condvar,
}

impl Input {
    /// Starts the threads that read stdin and feed the port. At the end of a
    /// pipe nothing happens: the machine goes on.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn start(
        terminal: bool,
        port: Arc<dyn Port>,
        room: Arc<Room>,
        events: Sender<Event>,
    ) -> io::Result<Arc<Self>> {
        let input = Arc::new(Self::default());
        let (reader, feeder) = (Arc::clone(&input), Arc::clone(&input));
        thread::Builder::new()
            .name("console-input".into())
            .spawn(move || {
                if terminal {
                    reader.read_terminal(&events);
                } else {
                    reader.read_pipe();
                }
            })?;
        thread::Builder::new()
            .name("console-feed".into())
            .spawn(move || feeder.feed(&*port, &room))?;
        Ok(input)
    }

    /// Sends what is typed to the monitor instead of the guest, or back.
    pub fn monitor(&self, open: bool) {
        self.state.lock().monitor = open;
    }

    /// Queues typed bytes for the guest.
    pub fn for_guest(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        // A guest that reads nothing must not cost memory.
        let room = AHEAD.saturating_sub(state.waiting.len());
        state.waiting.extend(bytes.iter().take(room));
        self.changed.notify_all();
    }

    fn read_terminal(&self, events: &Sender<Event>) {
        let mut keys = Keys::default();
        let mut buffer = [0; 1024];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    for typed in keys.feed(&buffer[..read]) {
                        self.typed(typed, events);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn typed(&self, typed: Typed, events: &Sender<Event>) {
        let event = match typed {
            Typed::End => Event::EndedByUser,
            Typed::Monitor => {
                self.monitor(true);
                Event::Monitor
            }
            Typed::Guest(bytes) => {
                if !self.state.lock().monitor {
                    return self.for_guest(&bytes);
                }
                Event::MonitorInput(bytes)
            }
            // Keys of consoles that are attached.
            Typed::Detach | Typed::Take => return,
        };
        // Without a receiver the process is ending.
        let _ = events.send(event);
    }

    fn read_pipe(&self) {
        let mut buffer = [0; AHEAD];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    let mut state = self.state.lock();
                    state.waiting.extend(&buffer[..read]);
                    self.changed.notify_all();
                    while !state.waiting.is_empty() {
                        self.changed.wait(&mut state);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn feed(&self, port: &dyn Port, room: &Room) {
        loop {
            let bytes: Vec<u8> = {
                let mut state = self.state.lock();
                while state.waiting.is_empty() {
                    self.changed.wait(&mut state);
                }
                state.waiting.iter().take(64).copied().collect()
            };
            let taken = port.push(&bytes).min(bytes.len());
            self.state.lock().waiting.drain(..taken);
            self.changed.notify_all();
            if taken < bytes.len() {
                room.wait();
            }
        }
    }
}
