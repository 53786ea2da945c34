//! The control queue (virtio 1.2, 5.1.6.5): a few commands, done at once on
//! the thread that rings.

use super::config::feature;
use super::filter::MOST_ADDRESSES;
use super::shared::{Settings, Shared};
use crate::queue::{self, Chain, QueueError, VirtQueue};
use net::MacAddress;

const OK: u8 = 0;
const ERROR: u8 = 1;
/// Longer commands are refused: two full tables of addresses.
const LONGEST: usize = 2 + 2 * (4 + 6 * 4096);

mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
    pub const GUEST_OFFLOADS: u8 = 5;
}

/// The queue at work.
pub(super) struct ControlQueue {
    pub queue: VirtQueue,
    pub features: u64,
    chain: Chain,
}

impl ControlQueue {
    pub(super) fn new(queue: VirtQueue, features: u64) -> Self {
        Self {
            queue,
            features,
            chain: Chain::default(),
        }
    }

    /// Does what is available, at most a queue of it at a time: a driver that
    /// rings without end keeps only itself busy.
    pub(super) fn serve(&mut self, shared: &Shared, most_pairs: u16) {
        if self.queue.is_broken() {
            return;
        }
        if let Err(error) = self.try_serve(shared, most_pairs) {
            self.queue.break_off();
            self.queue.signal().needs_reset(&error.to_string());
        }
    }

    fn try_serve(&mut self, shared: &Shared, most_pairs: u16) -> Result<(), QueueError> {
        let mut used = false;
        // Twice: what came while notifications were off is seen.
        for _ in 0..u32::from(self.queue.size()) * 2 {
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.enable_notification()? {
                    continue;
                }
                break;
            }
            let written = self.command(shared, most_pairs)?;
            self.queue.push(self.chain.head, written)?;
            used = true;
        }
        if used {
            self.queue.notify()?;
        }
        Ok(())
    }

    fn command(&mut self, shared: &Shared, most_pairs: u16) -> Result<u32, QueueError> {
        let head = self.chain.head;
        let wrong = |what| QueueError::Request { head, what };
        if self.chain.writable_len() == 0 {
            return Err(wrong("a command without room for its answer"));
        }
        let ram = self.queue.ram();
        let length = self.chain.readable_len();
        let mut bytes = vec![0; (length as usize).min(LONGEST)];
        queue::read(ram, &self.chain.readable, &mut bytes);
        let done = match (bytes.as_slice(), length <= LONGEST as u64) {
            ([class, command, data @ ..], true) => {
                let features = self.features;
                let change =
                    |s: &mut Settings| apply(s, features, most_pairs, (*class, *command), data);
                shared.change(change).is_some()
            }
            _ => false,
        };
        let answer = if done { OK } else { ERROR };
        queue::write(ram, &self.chain.writable, &[answer]);
        Ok(1)
    }
}

/// Does one command; `None` if it makes no sense.
fn apply(
    settings: &mut Settings,
    features: u64,
    most_pairs: u16,
    (class, command): (u8, u8),
    data: &[u8],
) -> Option<()> {
    let needed = match class {
        class::RX if command > 1 => feature::CTRL_RX_EXTRA,
        class::RX => feature::CTRL_RX,
        class::MAC if command == 1 => feature::CTRL_MAC_ADDR,
        class::MAC => feature::CTRL_RX,
        class::VLAN => feature::CTRL_VLAN,
        class::ANNOUNCE => feature::GUEST_ANNOUNCE,
        class::MQ => feature::MQ,
        class::GUEST_OFFLOADS => feature::CTRL_GUEST_OFFLOADS,
        _ => return None,
    };
    if features & needed == 0 {
        return None;
    }
    match (class, command) {
        (class::RX, _) => receive_mode(settings, command, *data.first()? & 1 != 0),
        (class::MAC, 0) => {
            let (unicast, rest) = table(data)?;
            let (multicast, _) = table(rest)?;
            settings.filter.unicast = unicast;
            settings.filter.multicast = multicast;
            Some(())
        }
        (class::MAC, 1) => {
            let mac = MacAddress(*data.first_chunk::<6>()?);
            settings.filter.mac = Some(mac).filter(MacAddress::is_unicast)?;
            Some(())
        }
        (class::VLAN, 0 | 1) => {
            let vlan = u16::from_le_bytes(*data.first_chunk::<2>()?);
            let vlans = &mut settings.filter.vlans;
            match (vlans.binary_search(&vlan), command) {
                _ if vlan > 4095 => return None,
                (Err(at), 0) => vlans.insert(at, vlan),
                (Ok(at), 1) => {
                    vlans.remove(at);
                }
                _ => {}
            }
            Some(())
        }
        (class::ANNOUNCE, 0) => {
            settings.announce = false;
            Some(())
        }
        (class::MQ, 0) => {
            let pairs = u16::from_le_bytes(*data.first_chunk::<2>()?);
            settings.active_pairs = Some(pairs).filter(|p| (1..=most_pairs).contains(p))?;
            Some(())
        }
        (class::GUEST_OFFLOADS, 0) => {
            let wanted = u64::from_le_bytes(*data.first_chunk::<8>()?);
            let possible = features & feature::GUEST_OFFLOADS;
            settings.guest_offloads = Some(Some(wanted).filter(|w| w & !possible == 0)?);
            Some(())
        }
        _ => None,
    }
}

fn receive_mode(settings: &mut Settings, command: u8, on: bool) -> Option<()> {
    let modes = &mut settings.filter.modes;
    let mode = match command {
        0 => &mut modes.promiscuous,
        1 => &mut modes.all_multicast,
        2 => &mut modes.all_unicast,
        3 => &mut modes.no_multicast,
        4 => &mut modes.no_unicast,
        5 => &mut modes.no_broadcast,
        _ => return None,
    };
    *mode = on;
    Some(())
}

/// A list of addresses, or `None` for too many, and what follows.
#[allow(clippy::type_complexity, reason = "named by the line above")]
fn table(data: &[u8]) -> Option<(Option<Vec<[u8; 6]>>, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let length = count.checked_mul(6)?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    let entries = bytes.chunks_exact(6);
    let list = entries.filter_map(|entry| entry.try_into().ok());
    let list = (count <= MOST_ADDRESSES).then(|| list.collect());
    Some((list, rest))
}
