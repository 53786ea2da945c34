//! All streams of a device, and its queues.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::{BUFFER, Connection, Phase};
use super::packet::{HEADER, HOST, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};
use crate::queue::{Chain, QueueError, VirtQueue, read, skip, write};

/// Most streams, of those open and those being opened.
const STREAMS_MAX: usize = 1024;
/// Answers that wait for buffers of the guest, beyond which nothing more of it
/// is looked at.
const ANSWERS_MAX: usize = 1024;
/// Packets taken from the guest at once, and how often, before others get at
/// the device.
const BUDGET: u32 = 256;
const ROUNDS: u32 = 16;
/// Bytes of one packet.
const PACKET_MAX: usize = 64 << 10;
/// Longest `CONNECT PORT\n`.
const GREETING_MAX: usize = 32;
/// Ports that the host's ends of streams to the guest get.
const FIRST_PORT: u32 = 1 << 30;

/// The host's port and the guest's port.
type Key = (u32, u32);

/// Whom a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Listener,
    Greeting(u64),
    Stream(Key),
}

/// A descriptor to be watched. It stays open meanwhile.
pub struct Interest {
    pub who: Who,
    pub source: Source,
    pub flags: PollFlags,
}

pub enum Source {
    Listener(Arc<UnixListener>),
    Stream(Arc<UnixStream>),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(listener) => listener.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

/// A program of the host that has not yet said what it wants.
struct Greeting {
    stream: Arc<UnixStream>,
    said: Vec<u8>,
}

pub struct Streams {
    cid: u64,
    listener: Arc<UnixListener>,
    path: PathBuf,
    receive: Option<VirtQueue>,
    transmit: Option<VirtQueue>,
    event: Option<VirtQueue>,
    chain: Chain,
    block: Vec<u8>,
    answers: VecDeque<Header>,
    streams: BTreeMap<Key, Connection>,
    greetings: BTreeMap<u64, Greeting>,
    next_greeting: u64,
    next_port: u32,
    /// Whom the last packet of data was of: the next one is served next.
    turn: Key,
    /// The guest has no buffers for packets; its doorbell wakes.
    starved: bool,
    /// There may be more to do at once.
    again: bool,
    /// The guest must hear that its streams are gone.
    tell_reset: bool,
}

impl Streams {
    pub fn new(cid: u64, listener: UnixListener, path: PathBuf) -> Self {
        Self {
            cid,
            listener: Arc::new(listener),
            path,
            receive: None,
            transmit: None,
            event: None,
            chain: Chain::default(),
            block: vec![0; PACKET_MAX],
            answers: VecDeque::new(),
            streams: BTreeMap::new(),
            greetings: BTreeMap::new(),
            next_greeting: 0,
            next_port: FIRST_PORT,
            turn: (0, 0),
            starved: false,
            again: false,
            tell_reset: false,
        }
    }

    pub fn start(&mut self, [receive, transmit, event]: [VirtQueue; 3]) {
        self.receive = Some(receive);
        self.transmit = Some(transmit);
        self.event = Some(event);
    }

    pub fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        vec![self.receive.take(), self.transmit.take(), self.event.take()]
    }

    /// Ends all streams.
    pub fn forget(&mut self) {
        self.streams.clear();
        self.answers.clear();
        self.tell_reset = false;
    }

    /// Ends all streams, of which the guest thinks that they are open.
    pub fn transport_reset(&mut self) {
        self.forget();
        self.tell_reset = true;
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<Interest> {
        let mut interests = Vec::new();
        if self.receive.is_none() {
            return interests;
        }
        if self.count() < STREAMS_MAX {
            interests.push(Interest {
                who: Who::Listener,
                source: Source::Listener(self.listener.clone()),
                flags: PollFlags::IN,
            });
        }
        for (&id, greeting) in &self.greetings {
            interests.push(Interest {
                who: Who::Greeting(id),
                source: Source::Stream(greeting.stream.clone()),
                flags: PollFlags::IN,
            });
        }
        for (&key, connection) in &self.streams {
            let mut flags = PollFlags::empty();
            if connection.wants_input() && !self.starved {
                flags |= PollFlags::IN;
            }
            if connection.wants_output() {
                flags |= PollFlags::OUT;
            }
            // Without flags a closed peer would wake for nothing.
            if !flags.is_empty() {
                interests.push(Interest {
                    who: Who::Stream(key),
                    source: Source::Stream(connection.stream.clone()),
                    flags,
                });
            }
        }
        interests
    }

    /// Whether [`Self::serve`] is to be called without waiting.
    pub fn is_busy(&self) -> bool {
        self.again && self.receive.is_some()
    }

    fn count(&self) -> usize {
        self.streams.len() + self.greetings.len()
    }

    /// Does what there is to do.
    pub fn serve(&mut self, ready: &[(Who, PollFlags)]) {
        if self.receive.is_none() {
            return;
        }
        self.starved = false;
        self.again = false;
        for &(who, flags) in ready {
            match who {
                Who::Listener => self.accept(),
                Who::Greeting(id) => self.greeting(id),
                Who::Stream(key) if flags.contains(PollFlags::OUT) => self.flush(key),
                Who::Stream(_) => {}
            }
        }
        if let Err(error) = self.exchange() {
            let queues = [&mut self.receive, &mut self.transmit, &mut self.event];
            for queue in queues.into_iter().flatten() {
                queue.break_off();
                queue.signal().needs_reset(&error.to_string());
            }
            self.streams.clear();
            self.answers.clear();
        }
    }

    fn accept(&mut self) {
        while self.count() < STREAMS_MAX {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if stream.set_nonblocking(true).is_ok() {
                let greeting = Greeting {
                    stream: Arc::new(stream),
                    said: Vec::new(),
                };
                self.greetings.insert(self.next_greeting, greeting);
                self.next_greeting += 1;
            }
        }
    }

    /// Reads on to the end of the line, and not beyond it.
    fn greeting(&mut self, id: u64) {
        let Some(greeting) = self.greetings.get_mut(&id) else {
            return;
        };
        loop {
            let mut byte = [0];
            match (&*greeting.stream).read(&mut byte) {
                Ok(1) if byte[0] != b'\n' && greeting.said.len() < GREETING_MAX => {
                    greeting.said.push(byte[0]);
                }
                Ok(1) if byte[0] == b'\n' => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.greetings.remove(&id);
                    return;
                }
            }
        }
        let Some(greeting) = self.greetings.remove(&id) else {
            return;
        };
        let said = String::from_utf8_lossy(&greeting.said).into_owned();
        let port = said.strip_prefix("CONNECT ").map(str::trim);
        if let Some(port) = port.and_then(|port| port.parse().ok())
            && let Some(stream) = Arc::into_inner(greeting.stream)
        {
            self.connect_to_guest(stream, port);
        }
    }

    fn connect_to_guest(&mut self, stream: UnixStream, guest: u32) {
        let mut host = self.next_port;
        while self.streams.contains_key(&(host, guest)) {
            host = host.wrapping_add(1).max(FIRST_PORT);
        }
        self.next_port = host.wrapping_add(1).max(FIRST_PORT);
        let key = (host, guest);
        self.streams
            .insert(key, Connection::new(stream, Phase::Requested));
        self.answer(key, op::REQUEST, 0);
    }

    fn flush(&mut self, key: Key) {
        let Some(connection) = self.streams.get_mut(&key) else {
            return;
        };
        if connection.flush().is_err() {
            self.drop_stream(key);
        } else {
            self.after_output(key);
        }
    }

    /// A stream's program has taken bytes: more may come, or it is over.
    fn after_output(&mut self, key: Key) {
        let Some(connection) = self.streams.get(&key) else {
            return;
        };
        if connection.is_over() {
            self.drop_stream(key);
        } else if connection.owes_credit() {
            self.answer(key, op::CREDIT_UPDATE, 0);
        }
    }

    /// Ends a stream, and tells the guest.
    fn drop_stream(&mut self, key: Key) {
        self.answer(key, op::RST, 0);
        self.streams.remove(&key);
    }

    fn answer(&mut self, key: Key, op: u16, flags: u32) {
        let header = self.header(key, op, flags);
        self.answers.push_back(header);
    }

    /// A header of a stream, which tells the guest its credit.
    fn header(&mut self, key: Key, op: u16, flags: u32) -> Header {
        let forwarded = self.streams.get_mut(&key).map_or(0, |connection| {
            connection.told = connection.forwarded;
            connection.forwarded
        });
        Header {
            source: HOST,
            destination: self.cid,
            source_port: key.0,
            destination_port: key.1,
            length: 0,
            kind: STREAM,
            op,
            flags,
            buffer: BUFFER,
            forwarded,
        }
    }

    /// Moves packets both ways until nothing more can be moved now.
    fn exchange(&mut self) -> Result<(), QueueError> {
        self.tell_reset()?;
        for _ in 0..ROUNDS {
            let taken = self.take_packets()?;
            let given = self.give_answers()? | self.give_data()?;
            if !taken && !given {
                return Ok(());
            }
        }
        self.again = true;
        Ok(())
    }

    fn tell_reset(&mut self) -> Result<(), QueueError> {
        let Some(queue) = self.event.as_mut().filter(|_| self.tell_reset) else {
            return Ok(());
        };
        if !queue.is_broken() && queue.pop(&mut self.chain)? {
            // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is 0.
            let written = write(queue.ram(), &self.chain.writable, &0u32.to_le_bytes());
            queue.push(self.chain.head, written as u32)?;
            queue.notify()?;
            self.tell_reset = false;
        }
        Ok(())
    }

    /// Takes packets of the guest; whether there were any.
    fn take_packets(&mut self) -> Result<bool, QueueError> {
        let Some(mut queue) = self.transmit.take() else {
            return Ok(false);
        };
        let mut chain = std::mem::take(&mut self.chain);
        let result = self.take_from(&mut queue, &mut chain);
        self.chain = chain;
        self.transmit = Some(queue);
        result
    }

    fn take_from(&mut self, queue: &mut VirtQueue, chain: &mut Chain) -> Result<bool, QueueError> {
        let mut any = false;
        if queue.is_broken() {
            return Ok(false);
        }
        let mut left = BUDGET;
        loop {
            while left > 0 && self.answers.len() < ANSWERS_MAX && queue.pop(chain)? {
                any = true;
                left -= 1;
                let mut bytes = [0; HEADER];
                if read(queue.ram(), &chain.readable, &mut bytes) < HEADER {
                    return Err(QueueError::Request {
                        head: chain.head,
                        what: "a packet is shorter than its header",
                    });
                }
                let header = Header::from_bytes(&bytes);
                let data = skip(&mut chain.readable, HEADER as u64);
                let mut block = std::mem::take(&mut self.block);
                block.resize(PACKET_MAX, 0);
                let length = read(queue.ram(), data, &mut block);
                let data = block.get(..length).unwrap_or_default();
                let whole = usize::try_from(header.length).is_ok_and(|n| n == length);
                self.packet(&header, data, whole);
                self.block = block;
                queue.push(chain.head, 0)?;
            }
            if any {
                queue.notify()?;
            }
            // With answers enough the guest's next buffers wake anyway.
            if left == 0 || !queue.enable_notification()? || self.answers.len() >= ANSWERS_MAX {
                return Ok(any);
            }
        }
    }

    /// A packet of the guest; `whole` if it has the data its header says.
    fn packet(&mut self, header: &Header, data: &[u8], whole: bool) {
        let key = (header.destination_port, header.source_port);
        let known =
            header.kind == STREAM && header.destination == HOST && header.source == self.cid;
        if !known {
            if header.op != op::RST {
                self.answer(key, op::RST, 0);
            }
            return;
        }
        if header.op == op::REQUEST {
            return self.connect_to_host(key, header);
        }
        let Some(connection) = self.streams.get_mut(&key) else {
            if header.op != op::RST {
                self.answer(key, op::RST, 0);
            }
            return;
        };
        connection.peer_buffer = header.buffer;
        connection.peer_forwarded = header.forwarded;
        let open = connection.phase == Phase::Open;
        match header.op {
            op::RESPONSE if !open => {
                connection.phase = Phase::Open;
                if connection.greet(&format!("OK {}\n", key.0)).is_err() {
                    self.drop_stream(key);
                }
            }
            op::RST => {
                self.streams.remove(&key);
            }
            op::SHUTDOWN if open => {
                connection.guest_done |= header.flags & SHUTDOWN_SEND != 0;
                connection.guest_deaf |= header.flags & SHUTDOWN_RECEIVE != 0;
                // Who is gone is dropped when it is over.
                let _ = connection.flush();
                self.after_output(key);
            }
            op::RW if open && whole && data.len() <= connection.room() => {
                if connection.push(data).is_err() {
                    self.drop_stream(key);
                } else {
                    self.after_output(key);
                }
            }
            op::CREDIT_UPDATE if open => {}
            op::CREDIT_REQUEST if open => self.answer(key, op::CREDIT_UPDATE, 0),
            // More than it was allowed, or out of place.
            _ => self.drop_stream(key),
        }
    }

    fn connect_to_host(&mut self, key: Key, header: &Header) {
        if self.streams.contains_key(&key) || self.count() >= STREAMS_MAX {
            self.streams.remove(&key);
            return self.answer(key, op::RST, 0);
        }
        match self.dial(key.0) {
            Some(stream) => {
                let mut connection = Connection::new(stream, Phase::Open);
                connection.peer_buffer = header.buffer;
                connection.peer_forwarded = header.forwarded;
                self.streams.insert(key, connection);
                self.answer(key, op::RESPONSE, 0);
            }
            None => self.answer(key, op::RST, 0),
        }
    }

    /// Connects to the program that serves a port on the host; one that is too
    /// busy to accept counts as none, for nobody may make the device wait.
    fn dial(&self, port: u32) -> Option<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path).ok()?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        rustix::net::connect(&socket, &address).ok()?;
        Some(UnixStream::from(socket))
    }

    fn give_answers(&mut self) -> Result<bool, QueueError> {
        let Some(queue) = self.receive.as_mut().filter(|queue| !queue.is_broken()) else {
            return Ok(false);
        };
        let mut any = false;
        while let Some(header) = self.answers.front() {
            if !pop_waking(queue, &mut self.chain)? {
                self.starved = true;
                break;
            }
            let written = put(queue, &self.chain, header)?;
            queue.push(self.chain.head, written)?;
            self.answers.pop_front();
            any = true;
        }
        if any {
            queue.notify()?;
        }
        Ok(any)
    }

    /// Gives the guest data of the host's programs, a packet of each in turn.
    fn give_data(&mut self) -> Result<bool, QueueError> {
        let Some(mut queue) = self.receive.take() else {
            return Ok(false);
        };
        let mut chain = std::mem::take(&mut self.chain);
        let mut any = false;
        let result = self.give_from(&mut queue, &mut chain, &mut any);
        self.chain = chain;
        if any {
            queue.notify()?;
        }
        self.receive = Some(queue);
        result.map(|()| any)
    }

    fn give_from(
        &mut self,
        queue: &mut VirtQueue,
        chain: &mut Chain,
        any: &mut bool,
    ) -> Result<(), QueueError> {
        if queue.is_broken() || self.starved {
            return Ok(());
        }
        let after = self.streams.range(self.turn..).map(|(key, _)| *key);
        let before = self.streams.range(..self.turn).map(|(key, _)| *key);
        let keys: Vec<Key> = after.chain(before).collect();
        for key in keys {
            let Some(connection) = self.streams.get_mut(&key) else {
                continue;
            };
            if !connection.wants_input() {
                continue;
            }
            if !pop_waking(queue, chain)? {
                self.starved = true;
                self.turn = key;
                return Ok(());
            }
            let room = chain.writable_len().saturating_sub(HEADER as u64);
            let room = room.min(connection.credit().into()).min(PACKET_MAX as u64);
            self.block.resize(PACKET_MAX, 0);
            let block = self.block.get_mut(..room as usize).unwrap_or_default();
            if block.is_empty() {
                return Err(no_room(chain));
            }
            match connection.read(block) {
                Ok(None) => queue.undo_pop(),
                Ok(Some(0)) => {
                    queue.undo_pop();
                    connection.host_done = true;
                    self.answer(key, op::SHUTDOWN, SHUTDOWN_SEND);
                    self.after_output(key);
                    *any = true;
                }
                Ok(Some(count)) => {
                    connection.sent = connection.sent.wrapping_add(count as u32);
                    let mut header = self.header(key, op::RW, 0);
                    header.length = count as u32;
                    let head = put(queue, chain, &header)?;
                    let data = self.block.get(..count).unwrap_or_default();
                    let rest = skip(&mut chain.writable, HEADER as u64);
                    let written = write(queue.ram(), rest, data);
                    queue.push(chain.head, head + written as u32)?;
                    *any = true;
                }
                Err(_) => {
                    queue.undo_pop();
                    self.drop_stream(key);
                    *any = true;
                }
            }
        }
        Ok(())
    }
}

/// Takes a buffer; if there is none, the guest's next one will wake.
fn pop_waking(queue: &mut VirtQueue, chain: &mut Chain) -> Result<bool, QueueError> {
    loop {
        if queue.pop(chain)? {
            return Ok(true);
        }
        if !queue.enable_notification()? {
            return Ok(false);
        }
    }
}

fn put(queue: &VirtQueue, chain: &Chain, header: &Header) -> Result<u32, QueueError> {
    let written = write(queue.ram(), &chain.writable, &header.to_bytes());
    if written < HEADER {
        return Err(no_room(chain));
    }
    Ok(written as u32)
}

fn no_room(chain: &Chain) -> QueueError {
    QueueError::Request {
        head: chain.head,
        what: "a buffer for packets has no room for one",
    }
}
