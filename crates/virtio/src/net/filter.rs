//! Which frames a driver wants (virtio 1.2, 5.1.6.5.1 to 5.1.6.5.3).

use net::MacAddress;
use serde::{Deserialize, Serialize};

/// Addresses of one kind that are kept; with more, all of the kind are wanted.
pub(super) const MOST_ADDRESSES: usize = 256;

/// The ways of reception that a driver turns on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// Everything.
    pub promiscuous: bool,
    /// All multicast frames.
    pub all_multicast: bool,
    /// All unicast frames.
    pub all_unicast: bool,
    /// No multicast frames.
    pub no_multicast: bool,
    /// No unicast frames.
    pub no_unicast: bool,
    /// No broadcast frames.
    pub no_broadcast: bool,
}

/// A driver's wishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The card's address.
    pub mac: MacAddress,
    /// Ways of reception.
    pub modes: Modes,
    /// Further unicast addresses; `None`: too many to keep.
    pub unicast: Option<Vec<[u8; 6]>>,
    /// Multicast addresses; `None`: too many to keep.
    pub multicast: Option<Vec<[u8; 6]>>,
    /// VLANs that are wanted, ascending.
    pub vlans: Vec<u16>,
}

impl Filter {
    /// As after a reset. A driver that knows no filters wants everything.
    pub(super) fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            modes: Modes {
                promiscuous: true,
                all_multicast: false,
                all_unicast: false,
                no_multicast: false,
                no_unicast: false,
                no_broadcast: false,
            },
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
            vlans: Vec::new(),
        }
    }

    /// Whether the driver wants a frame; `vlans`: it filters those, too.
    pub(super) fn wants(&self, frame: &[u8], vlans: bool) -> bool {
        let Some(to) = frame.first_chunk::<6>() else {
            return false;
        };
        if self.modes.promiscuous {
            return true;
        }
        self.wants_address(to) && (!vlans || self.wants_vlan(frame))
    }

    fn wants_address(&self, to: &[u8; 6]) -> bool {
        let Modes {
            all_multicast,
            all_unicast,
            no_multicast,
            no_unicast,
            no_broadcast,
            ..
        } = self.modes;
        let listed = |list: &Option<Vec<[u8; 6]>>| match list {
            Some(list) => list.contains(to),
            None => true,
        };
        let address = MacAddress(*to);
        if address == MacAddress::BROADCAST {
            !no_broadcast
        } else if address.is_multicast() {
            !no_multicast && (all_multicast || listed(&self.multicast))
        } else {
            !no_unicast && (all_unicast || address == self.mac || listed(&self.unicast))
        }
    }

    fn wants_vlan(&self, frame: &[u8]) -> bool {
        match frame.get(12..16) {
            Some(&[0x81, 0, high, low]) => {
                let vlan = u16::from_be_bytes([high, low]) & 0xfff;
                vlan == 0 || self.vlans.binary_search(&vlan).is_ok()
            }
            _ => true,
        }
    }

    /// Whether a saved filter can be one.
    pub(super) fn is_sound(&self) -> bool {
        let fits =
            |list: &Option<Vec<[u8; 6]>>| list.as_ref().is_none_or(|l| l.len() <= MOST_ADDRESSES);
        let ascending = self.vlans.windows(2).all(|w| matches!(w, [a, b] if a < b));
        fits(&self.unicast) && fits(&self.multicast) && ascending && self.vlans.len() <= 4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_lets_through_what_it_says() {
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let mut filter = Filter::new(mac);
        let frame = |to: [u8; 6]| [&to[..], &[0; 54]].concat();
        let (own, other) = (frame(mac.0), frame([2, 0, 0, 0, 0, 2]));
        let (group, all) = (frame([1, 0, 0x5e, 0, 0, 1]), frame([0xff; 6]));
        let wants = |f: &Filter| [&own, &other, &group, &all].map(|frame| f.wants(frame, true));
        assert_eq!(wants(&filter), [true; 4]);
        filter.modes.promiscuous = false;
        assert_eq!(wants(&filter), [true, false, false, true]);
        filter.multicast = Some(vec![[1, 0, 0x5e, 0, 0, 1]]);
        filter.unicast = None;
        assert_eq!(wants(&filter), [true; 4]);
        filter.modes.no_multicast = true;
        filter.modes.no_broadcast = true;
        filter.modes.no_unicast = true;
        assert_eq!(wants(&filter), [false; 4]);
        assert!(!filter.wants(&[1, 2], true));
    }

    #[test]
    fn vlans_are_filtered_if_the_driver_says_so() {
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let mut filter = Filter::new(mac);
        filter.modes.promiscuous = false;
        let tagged = |vlan: u8| [&mac.0[..], &[0; 6], &[0x81, 0, 0xe0, vlan], &[0; 40]].concat();
        assert!(filter.wants(&tagged(5), false));
        assert!(!filter.wants(&tagged(5), true));
        assert!(filter.wants(&tagged(0), true));
        filter.vlans = vec![3, 5];
        assert!(filter.wants(&tagged(5), true));
        assert!(!filter.wants(&tagged(4), true));
    }
}
