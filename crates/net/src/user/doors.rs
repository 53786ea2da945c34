//! The host's sockets behind publications: shared by the card's thread, which
//! serves them, and others, which change them while the guest runs.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};

use super::context::{Context, Token};
use super::publication::Publication;
use super::slab::{Id, Slab};
use super::{UserError, tcp, udp};

/// How long a door stays shut when not even a refusal is possible.
const SHUT: Duration = Duration::from_millis(200);
/// Most connections accepted at once, so that others get their turn.
const AT_ONCE: usize = 64;

/// A publication that is open.
struct Door {
    number: u64,
    publication: Publication,
    bound: SocketAddr,
    socket: Arc<OwnedFd>,
}

struct Open {
    doors: Vec<Door>,
    next: u64,
    /// Connections of the machine's owner, for these ports of the guest.
    handed: Vec<(OwnedFd, u16)>,
}

/// Most connections of the owner that wait to be taken.
const MOST_HANDED: usize = 256;

/// All publications of a network.
pub struct Doors {
    open: Mutex<Open>,
    /// Readable when they have changed.
    changed: OwnedFd,
}

impl Doors {
    /// Opens all of these; none if one fails.
    pub fn open(publications: &[Publication]) -> Result<Self, UserError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let doors = Self {
            open: Mutex::new(Open {
                doors: Vec::new(),
                next: 0,
                handed: Vec::new(),
            }),
            changed: eventfd(0, flags).map_err(std::io::Error::from)?,
        };
        for publication in publications {
            doors.add(*publication)?;
        }
        Ok(doors)
    }

    /// Opens one more; where it listens.
    pub fn add(&self, publication: Publication) -> Result<SocketAddr, UserError> {
        let mut open = self.open.lock();
        let same =
            |door: &Door| door.publication.udp == publication.udp && door.bound == publication.host;
        if open.doors.iter().any(same) {
            return Err(UserError::AlreadyPublished(publication));
        }
        let (socket, bound) = publication.open()?;
        open.next += 1;
        let number = open.next;
        open.doors.push(Door {
            number,
            publication,
            bound,
            socket: Arc::new(socket),
        });
        self.tell();
        Ok(bound)
    }

    /// Leads a connected stream socket to a TCP port of the guest, whatever the
    /// policy says; `false` if too many wait.
    pub fn hand(&self, socket: OwnedFd, guest: u16) -> bool {
        let mut open = self.open.lock();
        if open.handed.len() >= MOST_HANDED {
            return false;
        }
        open.handed.push((socket, guest));
        self.tell();
        true
    }

    /// Closes one. Connections that came through it go on.
    pub fn remove(&self, publication: Publication) -> Result<(), UserError> {
        let mut open = self.open.lock();
        let before = open.doors.len();
        open.doors.retain(|door| {
            let same = door.publication == publication
                || (door.bound == publication.host && door.publication.udp == publication.udp);
            !same
        });
        if open.doors.len() == before {
            return Err(UserError::NotPublished(publication));
        }
        self.tell();
        Ok(())
    }

    /// All, with the addresses that they have.
    pub fn list(&self) -> Vec<Publication> {
        let open = self.open.lock();
        let doors = open.doors.iter();
        doors
            .map(|door| Publication {
                host: door.bound,
                ..door.publication
            })
            .collect()
    }

    /// Tells the card's thread that something has changed.
    pub fn tell(&self) {
        // Only a counter at its limit makes this fail, and then it is readable.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }
}

struct Served {
    number: u64,
    publication: Publication,
    socket: Arc<OwnedFd>,
}

/// The card's thread's view of them.
pub struct Porter {
    doors: Arc<Doors>,
    served: Slab<Served>,
    /// Held back, to be given up when the host has no more descriptors and a
    /// connection must be taken to be refused.
    spare: Option<OwnedFd>,
    /// The gateway's port that the owner's last connection came from.
    next_port: u16,
}

impl Porter {
    pub fn new(
        context: &mut Context,
        doors: Arc<Doors>,
        tcp: &mut tcp::Table,
        udp: &mut udp::Table,
    ) -> std::io::Result<Self> {
        context.watch_level(&doors.changed, Token::Publications)?;
        let mut porter = Self {
            doors,
            served: Slab::new(),
            spare: None,
            next_port: 0,
        };
        porter.renew_spare();
        porter.sync(context, tcp, udp);
        Ok(porter)
    }

    fn renew_spare(&mut self) {
        self.spare = eventfd(0, EventfdFlags::CLOEXEC).ok();
    }

    /// Takes note of changes.
    pub fn sync(&mut self, context: &mut Context, tcp: &mut tcp::Table, udp: &mut udp::Table) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.doors.changed, &mut count);
        let doors = Arc::clone(&self.doors);
        let mut open = doors.open.lock();
        let handed = std::mem::take(&mut open.handed);
        let gone: Vec<Id> = self
            .served
            .iter()
            .filter(|(_, served)| !open.doors.iter().any(|door| door.number == served.number))
            .map(|(id, _)| id)
            .collect();
        for id in gone {
            udp.sessions.unpublish(id);
            if let Some(served) = self.served.remove(id) {
                // Someone may hold the socket still.
                let _ = rustix::event::epoll::delete(&context.epoll, &served.socket);
            }
        }
        for door in &open.doors {
            if !self
                .served
                .iter()
                .any(|(_, served)| served.number == door.number)
            {
                self.serve(context, udp, door);
            }
        }
        drop(open);
        for (socket, port) in handed {
            let guest = SocketAddr::new(context.config.v4.guest.into(), port);
            self.next_port = self.next_port.wrapping_add(1).max(49_152);
            let from = SocketAddr::new(context.config.v4.gateway.into(), self.next_port);
            tcp.accepted(context, socket, (guest, from), None);
        }
    }

    fn serve(&mut self, context: &Context, udp: &mut udp::Table, door: &Door) {
        let id = self.served.insert(Served {
            number: door.number,
            publication: door.publication,
            socket: Arc::clone(&door.socket),
        });
        let watched = if door.publication.udp {
            udp.sessions
                .publish(id, Arc::clone(&door.socket), door.publication.guest);
            context.watch(&door.socket, Token::Published(id))
        } else {
            context.watch_level(&door.socket, Token::Listener(id))
        };
        if let Err(error) = watched {
            tracing::error!(publication = %door.publication, %error, "cannot serve a publication");
        }
    }

    /// Takes the connections that wait at a door.
    pub fn accept(&mut self, context: &mut Context, tcp: &mut tcp::Table, id: Id) {
        let Some(served) = self.served.get_mut(id) else {
            return;
        };
        let publication = served.publication;
        let socket = Arc::clone(&served.socket);
        let guest = SocketAddr::new(context.config.v4.guest.into(), publication.guest);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..AT_ONCE {
            match acceptfrom_with(&socket, flags) {
                Ok((connection, peer)) => {
                    let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else {
                        continue;
                    };
                    let port = peer.port();
                    let from = SocketAddr::new(context.config.v4.gateway.into(), port);
                    tcp.accepted(context, connection, (guest, from), Some(peer));
                }
                Err(Errno::MFILE | Errno::NFILE) => {
                    context.counters.limited.one();
                    if !self.turn_away(&socket) {
                        self.set_open(context, id, false);
                        let later = context.now + SHUT;
                        context.arm(later, Token::Listener(id));
                        return;
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// Hears of connections that wait at a door, or not.
    pub fn set_open(&mut self, context: &Context, id: Id, open: bool) {
        if let Some(served) = self.served.get_mut(id) {
            context.watch_again(&served.socket, Token::Listener(id), open);
        }
    }

    /// Refuses a connection for want of descriptors.
    fn turn_away(&mut self, socket: &OwnedFd) -> bool {
        self.spare = None;
        let taken = acceptfrom_with(socket, SocketFlags::CLOEXEC);
        let done = taken.is_ok();
        if let Ok((connection, _)) = taken {
            let _ = sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
        }
        self.renew_spare();
        done
    }
}
