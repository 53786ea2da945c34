//! A member of a switch as a card's link.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::net::{SocketFlags, accept_with};

use super::SwitchName;
use super::learned::Learned;
use super::peer::{Delivery, Greeting, Peer, VERSION, greeting};
use super::place::Listener;
use crate::segment::{Segmenter, accepts};
use crate::vnet::{self, VNET_HEADER};
use crate::{Abilities, Frame, Link, LinkError, MAX_FRAME, MacAddress, Offload, Sent};

/// Most members of one switch that one sees.
const MOST_PEERS: usize = 512;
/// Shorter ones have no Ethernet header.
const SHORTEST: usize = 14;
/// Of the listener in the epoll set; others are indices of peers.
const LISTENER: u64 = u64::MAX;

/// Where the frame to be given is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    /// In the buffer, as it came.
    Whole {
        offload: Offload,
        length: usize,
    },
    /// In the segmenter, which does what the guest does not.
    Segments,
}

/// A member.
pub(crate) struct SwitchLink {
    name: SwitchName,
    listener: Listener,
    epoll: OwnedFd,
    peers: Vec<Option<Peer>>,
    learned: Learned,
    /// Peers that may have messages.
    ready: VecDeque<usize>,
    guest: Abilities,
    buffer: Box<[u8]>,
    waiting: Waiting,
    segmenter: Segmenter,
    /// The peer for which a frame of the card waits.
    awaited: Option<usize>,
}

impl SwitchLink {
    pub(super) fn new(
        name: &SwitchName,
        listener: Listener,
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener.socket, data, events)?;
        let mut link = Self {
            name: name.clone(),
            listener,
            epoll,
            peers: Vec::new(),
            learned: Learned::default(),
            ready: VecDeque::new(),
            guest: Abilities::default(),
            buffer: vec![0; VNET_HEADER + MAX_FRAME].into_boxed_slice(),
            waiting: Waiting::Nothing,
            segmenter: Segmenter::default(),
            awaited: None,
        };
        for socket in sockets {
            link.connect(socket);
        }
        Ok(link)
    }

    /// Takes up a member behind a fresh connection.
    fn connect(&mut self, socket: OwnedFd) {
        let switch = &self.name;
        let own = rustix::process::geteuid().as_raw();
        let who = Peer::who(&socket);
        if who.is_none_or(|(user, _)| user != own) {
            tracing::warn!(%switch, ?who, "another user's process is refused");
            return;
        }
        let free = self.peers.iter().position(Option::is_none);
        let index = free.unwrap_or(self.peers.len());
        if index >= MOST_PEERS {
            tracing::warn!(%switch, "a member is refused: there are {MOST_PEERS} already");
            return;
        }
        let data = epoll::EventData::new_u64(index as u64);
        let peer = Peer::new(socket).and_then(|peer| {
            epoll::add(&self.epoll, &peer.socket, data, epoll::EventFlags::IN)?;
            Ok(peer)
        });
        match peer {
            Ok(peer) if index == self.peers.len() => self.peers.push(Some(peer)),
            Ok(peer) => {
                if let Some(slot) = self.peers.get_mut(index) {
                    *slot = Some(peer);
                }
            }
            // It went as soon as it came.
            Err(error) => tracing::debug!(%switch, %error, "a member is gone"),
        }
    }

    fn drop_peer(&mut self, index: usize) {
        if let Some(slot) = self.peers.get_mut(index) {
            // Closing the socket takes it out of the epoll set.
            *slot = None;
        }
        self.learned.forget(index);
        if self.awaited == Some(index) {
            self.awaited = None;
        }
    }

    fn peer(&mut self, index: usize) -> Option<&mut Peer> {
        self.peers.get_mut(index)?.as_mut()
    }

    fn watch(&mut self, index: usize) {
        let Some(Some(peer)) = self.peers.get(index) else {
            return;
        };
        let mut events = epoll::EventFlags::IN;
        events.set(epoll::EventFlags::OUT, peer.wants_room());
        let data = epoll::EventData::new_u64(index as u64);
        if epoll::modify(&self.epoll, &peer.socket, data, events).is_err() {
            self.drop_peer(index);
        }
    }

    /// Asks the kernel once; whether anything happened.
    fn look(&mut self) -> bool {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 32];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&now)) else {
            return false;
        };
        let mut any = false;
        for event in events.iter() {
            any = true;
            let token = event.data.u64();
            let (index, flags) = (token as usize, event.flags);
            if token == LISTENER {
                self.accept();
                continue;
            }
            if flags.contains(epoll::EventFlags::OUT) {
                if let Some(peer) = self.peer(index) {
                    peer.has_room();
                }
                if self.awaited == Some(index) {
                    self.awaited = None;
                }
                self.watch(index);
            }
            let input = flags & !epoll::EventFlags::OUT;
            if !input.is_empty() && !self.ready.contains(&index) {
                self.ready.push_back(index);
            }
        }
        any
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(socket) = accept_with(&self.listener.socket, flags) {
            self.connect(socket);
        }
    }

    /// Takes the next message of this peer; `false`: there is none.
    fn take(&mut self, index: usize) -> bool {
        let Some(Some(peer)) = self.peers.get_mut(index) else {
            return false;
        };
        let length = match peer.receive(&mut self.buffer) {
            Ok(Some(length)) => length,
            Ok(None) => return false,
            Err(_) => {
                self.drop_peer(index);
                return false;
            }
        };
        let Some(message) = self.buffer.get(..length) else {
            // Too long: cut off by the kernel.
            return true;
        };
        if peer.greeted {
            self.frame(index, length);
            return true;
        }
        let switch = &self.name;
        match greeting(message) {
            Greeting::Welcome => {
                peer.greeted = true;
                return true;
            }
            Greeting::Version(version) => tracing::warn!(
                %switch, version,
                "a machine speaks another version of the switch's format than this one ({VERSION}): \
                 they do not reach each other; use the same holm for both"
            ),
            Greeting::Foreign => tracing::warn!(%switch, "a foreign process is refused"),
        }
        self.drop_peer(index);
        false
    }

    /// Makes the message in the buffer the frame to be given.
    fn frame(&mut self, index: usize, length: usize) {
        let header = self.buffer.first_chunk::<VNET_HEADER>();
        let offload = header.and_then(|header| vnet::decode(header).ok());
        let frame = self.buffer.get(VNET_HEADER..length);
        let (Some(offload), Some(frame)) = (offload, frame.filter(|f| f.len() >= SHORTEST)) else {
            return;
        };
        if let Some(source) = address(frame, 6) {
            self.learned.saw(source, index, Instant::now());
        }
        if accepts(self.guest, &offload) {
            self.waiting = Waiting::Whole { offload, length };
        } else if self.segmenter.load(&offload, frame) {
            self.waiting = Waiting::Segments;
        }
    }

    fn transmit_to(&mut self, index: usize, header: &[u8], frame: &[u8]) -> Sent {
        let Some(peer) = self.peer(index) else {
            return Sent::Dropped;
        };
        match peer.send(header, frame, true) {
            Delivery::Done => Sent::Yes,
            Delivery::Wait => {
                self.awaited = Some(index);
                self.watch(index);
                Sent::Full
            }
            Delivery::Lost => Sent::Dropped,
            Delivery::Gone => {
                self.drop_peer(index);
                Sent::Dropped
            }
        }
    }

    fn flood(&mut self, header: &[u8], frame: &[u8]) -> Sent {
        let mut lost = false;
        for index in 0..self.peers.len() {
            let Some(peer) = self.peer(index) else {
                continue;
            };
            match peer.send(header, frame, false) {
                Delivery::Done => {}
                Delivery::Wait | Delivery::Lost => lost = true,
                Delivery::Gone => self.drop_peer(index),
            }
        }
        if lost { Sent::Dropped } else { Sent::Yes }
    }
}

/// The address at this place of a frame.
fn address(frame: &[u8], at: usize) -> Option<MacAddress> {
    let bytes = frame.get(at..at + 6)?;
    bytes.try_into().ok().map(MacAddress)
}

impl Link for SwitchLink {
    fn abilities(&self) -> Abilities {
        // A receiver does what its guest does not.
        Abilities {
            partial_checksum: true,
            tcp4: true,
            tcp6: true,
            udp: true,
        }
    }

    fn set_guest_abilities(&mut self, guest: Abilities) {
        self.guest = guest;
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError> {
        let Some(to) = address(frame, 0).filter(|_| frame.len() >= SHORTEST) else {
            return Ok(Sent::Dropped);
        };
        if frame.len() > MAX_FRAME {
            return Ok(Sent::Dropped);
        }
        let header = vnet::encode(offload);
        let known = match to.is_multicast() {
            true => None,
            false => self.learned.find(to, Instant::now()),
        };
        Ok(match known {
            Some(index) => self.transmit_to(index, &header, frame),
            None => self.flood(&header, frame),
        })
    }

    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        while self.waiting == Waiting::Nothing {
            let Some(index) = self.ready.pop_front() else {
                match self.look() {
                    true => continue,
                    false => return Ok(None),
                }
            };
            if self.take(index) {
                // One from each in turn.
                self.ready.push_back(index);
            }
        }
        Ok(match self.waiting {
            Waiting::Nothing => None,
            Waiting::Segments => self.segmenter.current(),
            Waiting::Whole { offload, length } => self
                .buffer
                .get(VNET_HEADER..length)
                .map(|bytes| Frame { offload, bytes }),
        })
    }

    fn consume(&mut self) {
        if self.waiting == Waiting::Segments {
            self.segmenter.advance();
            if self.segmenter.current().is_some() {
                return;
            }
        }
        self.waiting = Waiting::Nothing;
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn turn(&mut self, _now: Instant) -> Option<Instant> {
        let awaited = self.awaited.and_then(|index| self.peers.get(index));
        awaited.and_then(|peer| peer.as_ref()?.deadline())
    }
}
