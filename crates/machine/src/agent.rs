//! The host's end of the channel to the guest's agent.

use std::collections::VecDeque;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use agent::{Link, LinkError, Local, RawChannel};
use machine_protocol::EventKind;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use virtio::balloon::{BalloonControl, BalloonReport};
use virtio::channel::{ChannelInput, ChannelSink};
use virtio::console::ConsoleSink;

use crate::clients::{self, Seat};
use crate::events::Events;
use crate::outcome::MachineError;

/// Output of the guest that is kept until somebody takes it; more waits in
/// the guest.
const OUTPUT_MAX: usize = 1 << 20;

/// Time for an answer. Freezing waits for all that is being written.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a client may take to accept a part of an answer.
const WRITE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    output: VecDeque<u8>,
    guest_open: bool,
    ended: bool,
    /// How often the device has told of room for input.
    room: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Output, room for input, opening, closing.
    changed: Condvar,
    input: OnceLock<ChannelInput>,
}

/// The bytes of the agent channel of one machine.
struct Bytes(Arc<Shared>);

/// The agent channel of one machine. Clones are the same channel.
#[derive(Clone)]
pub(crate) struct AgentChannel {
    shared: Arc<Shared>,
    /// Clients take turns.
    link: Arc<Mutex<Link<Bytes>>>,
}

impl Default for AgentChannel {
    fn default() -> Self {
        let shared = Arc::<Shared>::default();
        let link = Link::new(Bytes(shared.clone()));
        Self {
            shared,
            link: Arc::new(Mutex::new(link)),
        }
    }
}

impl AgentChannel {
    /// For the device.
    pub fn sink(&self) -> Arc<dyn ChannelSink> {
        self.shared.clone()
    }

    /// Whether a program in the guest has the channel open.
    pub fn is_open(&self) -> bool {
        self.shared.is_open()
    }

    /// A client in this process, whom the guest has to answer in this time.
    ///
    /// # Errors
    /// The host gives no socket or thread.
    pub fn client(&self, patience: Duration) -> std::io::Result<agent::Client> {
        let (ours, theirs) = UnixStream::pair()?;
        let link = self.link.clone();
        let thread = std::thread::Builder::new().name("agent-own-client".into());
        let thread = thread.stack_size(256 << 10);
        thread.spawn(move || {
            let local = |command: &str, _: &[u8]| Err(format!("no request {command:?} here"));
            // It ends with the client.
            let _ = agent::attend(&theirs, &link, &local, patience);
        })?;
        Ok(agent::Client::over(ours))
    }

    /// The device's way in.
    pub fn connect(&self, input: ChannelInput) {
        // Once: there is one device.
        let _ = self.shared.input.set(input);
    }

    /// Nobody waits for this guest any longer.
    pub fn end(&self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_all();
    }

    /// Serves clients at a Unix socket, until what is returned is dropped.
    ///
    /// # Errors
    /// [`MachineError::Host`]: no thread.
    pub fn serve(
        &self,
        listener: UnixListener,
        local: Box<Local>,
    ) -> Result<UnixStream, MachineError> {
        let link = self.link.clone();
        let session = move |seat: &Seat| {
            seat.stream().set_write_timeout(Some(WRITE))?;
            agent::attend(seat, &link, &*local, PATIENCE)
        };
        let full = agent::refusal("the machine has too many clients that wait for its agent");
        let serving = clients::serve(listener, "agent", full, session);
        serving.map_err(|source| MachineError::Host {
            what: "thread for the guest's agent",
            source,
        })
    }
}

impl ConsoleSink for Shared {
    fn output(&self, data: &[u8]) {
        let mut state = self.state.lock();
        // One descriptor chain may go beyond the limit; it is bounded, too.
        if state.output.len() < 2 * OUTPUT_MAX {
            state.output.extend(data);
        }
        self.changed.notify_all();
    }

    fn ready(&self) -> bool {
        self.state.lock().output.len() < OUTPUT_MAX
    }

    fn input_ready(&self) {
        self.state.lock().room += 1;
        self.changed.notify_all();
    }
}

impl ChannelSink for Shared {
    fn guest_open(&self, open: bool) {
        let mut state = self.state.lock();
        state.guest_open = open;
        if !open {
            state.output.clear();
        }
        self.changed.notify_all();
    }
}

impl Shared {
    fn is_open(&self) -> bool {
        let state = self.state.lock();
        state.guest_open && !state.ended
    }

    /// Waits for a change; fails when there is nothing to wait for.
    fn wait(
        &self,
        state: &mut parking_lot::MutexGuard<'_, State>,
        deadline: Instant,
    ) -> Result<(), LinkError> {
        if state.ended {
            return Err(LinkError::Ended);
        }
        if !state.guest_open {
            return Err(LinkError::NoAgent);
        }
        if self.changed.wait_until(state, deadline).timed_out() {
            return Err(LinkError::Timeout);
        }
        Ok(())
    }
}

impl RawChannel for Bytes {
    fn is_open(&self) -> bool {
        self.0.is_open()
    }

    fn send(&mut self, mut data: &[u8], deadline: Instant) -> Result<(), LinkError> {
        let Some(input) = self.0.input.get() else {
            return Err(LinkError::NoAgent);
        };
        loop {
            let room = self.0.state.lock().room;
            data = data.get(input.push(data)..).unwrap_or_default();
            if data.is_empty() {
                return Ok(());
            }
            let mut state = self.0.state.lock();
            while state.room == room {
                self.0.wait(&mut state, deadline)?;
            }
        }
    }

    fn receive(&mut self, into: &mut [u8], deadline: Instant) -> Result<usize, LinkError> {
        let mut state = self.0.state.lock();
        while state.output.is_empty() {
            self.0.wait(&mut state, deadline)?;
        }
        let was_full = state.output.len() >= OUTPUT_MAX;
        let count = into.len().min(state.output.len());
        for (to, from) in into.iter_mut().zip(state.output.drain(..count)) {
            *to = from;
        }
        let again = was_full && state.output.len() < OUTPUT_MAX;
        drop(state);
        if let Some(input) = self.0.input.get().filter(|_| again) {
            input.output_ready();
        }
        Ok(count)
    }
}

/// Time for the guest to say how its memory is used.
const STATISTICS: Duration = Duration::from_secs(1);

/// Requests at the agent's socket that are the machine's own.
pub(crate) fn local(
    balloon: Option<&BalloonControl>,
    memory: u64,
    events: &Events,
    command: &str,
    line: &[u8],
) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Request {
        arguments: Target,
    }
    #[derive(Deserialize)]
    struct Target {
        memory: Option<u64>,
    }
    #[derive(Serialize)]
    struct Answer {
        memory: u64,
        #[serde(flatten)]
        report: BalloonReport,
    }
    if command != "holm-balloon" {
        return Err(format!("this machine knows no request {command:?}"));
    }
    let balloon = balloon.ok_or("this machine has no balloon; start it with --balloon on")?;
    let request: Request = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    if let Some(memory) = request.arguments.memory {
        balloon.set_memory(memory);
        events.note(EventKind::BalloonTarget { memory });
    }
    let report = balloon.fresh_report(STATISTICS);
    serde_json::to_string(&Answer { memory, report }).map_err(|e| e.to_string())
}
