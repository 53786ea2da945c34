//! Flows that rules let begin: what belongs to one passes without asking
//! again, in both directions, also after the rules have changed.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::packet::{Key, Kind, Summary, begins};
use super::rules::Question;
use crate::user::wire::flag;

/// Most flows.
pub const MOST: usize = 16_384;
/// Between looks through all of them.
const SWEEP: Duration = Duration::from_secs(5);

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passes.
    Pass,
    /// No rule lets it.
    Denied,
    /// The table is full.
    Full,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has answered.
    Opening,
    /// Both have spoken.
    Open,
    /// A connection that one side has ended.
    HalfClosed,
    /// A connection that both have ended, or one has reset.
    Closed,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    state: State,
    /// The guest began it.
    outbound: bool,
    /// Who ended a half-closed connection: the guest.
    ended_by_guest: bool,
    used: Instant,
}

impl Flow {
    /// How long it lives without a packet. Those of connections are EC2's.
    const fn life(&self, protocol: u8) -> Duration {
        Duration::from_secs(match (protocol, self.state) {
            (6, State::Opening) => 60,
            (6, State::Open) => 432_000,
            (6, State::HalfClosed) => 3600,
            (6, State::Closed) => 10,
            (17, State::Open) => 180,
            _ => 30,
        })
    }
}

/// A flow as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFlow {
    #[serde(flatten)]
    key: Key,
    state: State,
    outbound: bool,
    ended_by_guest: bool,
}

/// All tracked flows of a port.
pub struct Track {
    flows: HashMap<Key, Flow>,
    /// Those that had no answer when they were entered, the oldest first.
    unanswered: VecDeque<Key>,
    swept: Instant,
}

impl Track {
    pub fn new(now: Instant) -> Self {
        Self {
            flows: HashMap::new(),
            unanswered: VecDeque::new(),
            swept: now,
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Decides on a packet; `allow` are the rules of its direction.
    pub fn pass(
        &mut self,
        packet: &Summary,
        outbound: bool,
        now: Instant,
        allow: impl FnOnce(&Question) -> bool,
    ) -> Outcome {
        let known = match packet.kind {
            Kind::Error(None) | Kind::Single => false,
            Kind::Error(Some(key)) => self.live(&key, now).is_some(),
            _ => self.follow(packet, outbound, now),
        };
        if known {
            return Outcome::Pass;
        }
        if !allow(&packet.question) {
            return Outcome::Denied;
        }
        let single = match packet.kind {
            Kind::Error(_) | Kind::Single | Kind::EchoReply => true,
            Kind::Tcp(flags) => flags & flag::RST != 0,
            Kind::Datagram | Kind::EchoRequest => false,
        };
        if single || self.enter(packet.key, outbound, now) {
            Outcome::Pass
        } else {
            Outcome::Full
        }
    }

    fn live(&mut self, key: &Key, now: Instant) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(key)?;
        let idle = now.saturating_duration_since(flow.used);
        (idle < flow.life(key.protocol)).then_some(flow)
    }

    /// Whether a packet belongs to a flow, which it moves on.
    fn follow(&mut self, packet: &Summary, outbound: bool, now: Instant) -> bool {
        let Some(flow) = self.live(&packet.key, now) else {
            return false;
        };
        if let Kind::Tcp(flags) = packet.kind {
            // A connection's ports may be used again, and its other end may
            // not begin another by them.
            let again = flow.state == State::Closed || flow.outbound != outbound;
            if begins(flags) && again {
                return false;
            }
            flow.state = match flow.state {
                _ if flags & flag::RST != 0 => State::Closed,
                State::HalfClosed if flags & flag::FIN != 0 && flow.ended_by_guest != outbound => {
                    State::Closed
                }
                State::Opening | State::Open if flags & flag::FIN != 0 => {
                    flow.ended_by_guest = outbound;
                    State::HalfClosed
                }
                State::Opening if flow.outbound != outbound => State::Open,
                other => other,
            };
        } else if flow.outbound != outbound {
            flow.state = State::Open;
        }
        // What an end says after the end does not make it live on.
        if flow.state != State::Closed || packet.key.protocol != 6 {
            flow.used = now;
        }
        true
    }

    fn enter(&mut self, key: Key, outbound: bool, now: Instant) -> bool {
        if self.flows.len() >= MOST && !self.flows.contains_key(&key) && !self.make_room(now) {
            return false;
        }
        let flow = Flow {
            state: State::Opening,
            outbound,
            ended_by_guest: false,
            used: now,
        };
        self.flows.insert(key, flow);
        self.unanswered.push_back(key);
        if self.unanswered.len() > 2 * MOST {
            self.sweep(now);
        }
        true
    }

    /// The flow that waits longest for an answer gives way.
    fn make_room(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.swept) >= Duration::from_secs(1) {
            self.sweep(now);
        }
        while self.flows.len() >= MOST {
            let Some(key) = self.unanswered.pop_front() else {
                return false;
            };
            if self
                .flows
                .get(&key)
                .is_some_and(|flow| flow.state == State::Opening)
            {
                self.flows.remove(&key);
            }
        }
        true
    }

    /// Forgets what is over.
    pub fn sweep(&mut self, now: Instant) {
        self.swept = now;
        self.flows
            .retain(|key, flow| now.saturating_duration_since(flow.used) < flow.life(key.protocol));
        let flows = &self.flows;
        let mut seen = std::collections::HashSet::new();
        self.unanswered.retain(|key| {
            flows
                .get(key)
                .is_some_and(|flow| flow.state == State::Opening)
                && seen.insert(*key)
        });
    }

    /// When [`Self::sweep`] is due.
    pub fn due(&self) -> Instant {
        self.swept + SWEEP
    }

    /// The flows to be saved.
    pub fn save(&self) -> Vec<SavedFlow> {
        let flows = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.state != State::Closed);
        flows
            .map(|(key, flow)| SavedFlow {
                key: *key,
                state: flow.state,
                outbound: flow.outbound,
                ended_by_guest: flow.ended_by_guest,
            })
            .collect()
    }

    /// Takes saved flows back; they live as if they were used now.
    pub fn restore(&mut self, saved: &[SavedFlow], now: Instant) {
        for flow in saved.iter().take(MOST) {
            self.flows.insert(
                flow.key,
                Flow {
                    state: flow.state,
                    outbound: flow.outbound,
                    ended_by_guest: flow.ended_by_guest,
                    used: now,
                },
            );
            if flow.state == State::Opening {
                self.unanswered.push_back(flow.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn packet(protocol: u8, local: u16, other: u16, kind: Kind, outbound: bool) -> Summary {
        let remote = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
        Summary {
            key: Key {
                protocol,
                remote,
                local,
                other,
            },
            kind,
            question: Question {
                protocol,
                number: if outbound { other } else { local },
                code: 0,
                remote,
            },
        }
    }

    fn tcp(flags: u8, outbound: bool) -> Summary {
        packet(6, 5000, 80, Kind::Tcp(flags), outbound)
    }

    const YES: fn(&Question) -> bool = |_| true;
    const NO: fn(&Question) -> bool = |_| false;

    #[test]
    fn answers_pass_and_only_answers() {
        let now = Instant::now();
        let mut track = Track::new(now);
        assert_eq!(
            track.pass(&tcp(flag::SYN, false), false, now, NO),
            Outcome::Denied
        );
        assert_eq!(
            track.pass(&tcp(flag::SYN, true), true, now, YES),
            Outcome::Pass
        );
        let answer = tcp(flag::SYN | flag::ACK, false);
        assert_eq!(track.pass(&answer, false, now, NO), Outcome::Pass);
        // The rules are gone: the connection goes on, but none begins.
        let data = tcp(flag::ACK, true);
        let later = now + Duration::from_secs(86_400);
        assert_eq!(track.pass(&data, true, later, NO), Outcome::Pass);
        let reverse = tcp(flag::SYN, false);
        assert_eq!(track.pass(&reverse, false, later, NO), Outcome::Denied);
        assert_eq!(
            track.pass(&tcp(flag::RST, false), false, later, NO),
            Outcome::Pass
        );
        assert_eq!(
            track.pass(&tcp(flag::SYN, true), true, later, NO),
            Outcome::Denied
        );
        let over = later + Duration::from_secs(11);
        assert_eq!(track.pass(&data, true, over, NO), Outcome::Denied);
    }

    #[test]
    fn errors_pass_with_the_flow_that_they_are_about() {
        let now = Instant::now();
        let mut track = Track::new(now);
        let udp = packet(17, 5000, 53, Kind::Datagram, true);
        let error = |key| packet(1, 0, 0, Kind::Error(key), false);
        assert_eq!(
            track.pass(&error(Some(udp.key)), false, now, NO),
            Outcome::Denied
        );
        assert_eq!(track.pass(&udp, true, now, YES), Outcome::Pass);
        assert_eq!(
            track.pass(&error(Some(udp.key)), false, now, NO),
            Outcome::Pass
        );
        assert_eq!(track.pass(&error(None), false, now, NO), Outcome::Denied);
        let idle = now + Duration::from_secs(31);
        assert_eq!(
            track.pass(&error(Some(udp.key)), false, idle, NO),
            Outcome::Denied
        );
    }

    #[test]
    fn the_table_is_bounded_and_open_flows_stay() {
        let now = Instant::now();
        let mut track = Track::new(now);
        track.pass(&tcp(flag::SYN, true), true, now, YES);
        track.pass(&tcp(flag::SYN | flag::ACK, false), false, now, YES);
        for n in 0..200_000u32 {
            let (local, other) = ((n % 60_000) as u16, (n / 60_000) as u16);
            let one = packet(17, local, other, Kind::Datagram, false);
            assert_eq!(track.pass(&one, false, now, YES), Outcome::Pass);
            assert!(track.flows.len() <= MOST && track.unanswered.len() <= 2 * MOST);
        }
        assert_eq!(
            track.pass(&tcp(flag::ACK, false), false, now, NO),
            Outcome::Pass
        );
        // All have answers: no room for more.
        let mut full = Track::new(now);
        for n in 0..MOST as u32 {
            let (local, other) = ((n % 60_000) as u16, (n / 60_000) as u16);
            full.pass(
                &packet(17, local, other, Kind::Datagram, false),
                false,
                now,
                YES,
            );
            full.pass(
                &packet(17, local, other, Kind::Datagram, true),
                true,
                now,
                YES,
            );
        }
        let more = packet(17, 65_000, 1, Kind::Datagram, false);
        assert_eq!(full.pass(&more, false, now, YES), Outcome::Full);
        let saved = full.save();
        let mut again = Track::new(now);
        again.restore(&saved, now);
        assert_eq!(again.len(), MOST);
        full.sweep(now + Duration::from_secs(200));
        assert_eq!(full.len(), 0);
    }
}
