//! Members of one switch in one process.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::{SendFlags, send};

use super::SwitchName;
use super::link::SwitchLink;
use super::peer::hello;
use super::place::Place;
use crate::{Abilities, Checksum, Link, Offload, Segmentation, Sent};

const ALL: Abilities = Abilities {
    partial_checksum: true,
    tcp4: true,
    tcp6: true,
    udp: true,
};

struct Lab {
    _dir: tempfile::TempDir,
    place: Place,
    name: SwitchName,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name: SwitchName = "lab".parse().unwrap();
        let place = Place::prepare_under(dir.path(), &name).unwrap();
        Self {
            _dir: dir,
            place,
            name,
        }
    }

    fn member(&self) -> SwitchLink {
        let (listener, peers) = self.place.join().unwrap();
        let mut link = SwitchLink::new(&self.name, listener, peers).unwrap();
        link.set_guest_abilities(ALL);
        link
    }
}

fn frame(to: u8, from: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
    if to == 0xff {
        frame[..6].fill(0xff);
    }
    frame.resize(length, from);
    frame
}

fn send_plain(link: &mut SwitchLink, frame: &[u8]) -> Sent {
    link.transmit(&Offload::default(), frame).unwrap()
}

/// All that has come.
fn received(link: &mut SwitchLink) -> Vec<(Offload, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(frame) = link.incoming().unwrap() {
        all.push((frame.offload, frame.bytes.to_vec()));
        link.consume();
    }
    all
}

#[test]
fn names_are_checked() {
    for good in ["a", "lab-1", "a.b_c"] {
        assert!(good.parse::<SwitchName>().is_ok(), "{good}");
    }
    for bad in ["", ".", "..", "a/b", "-x", ".x", "a b", &"x".repeat(65)] {
        assert!(bad.parse::<SwitchName>().is_err(), "{bad}");
    }
}

#[test]
fn what_is_unknown_goes_to_all_and_what_is_known_to_one() {
    let lab = Lab::new();
    let [mut a, mut b, mut c] = [(); 3].map(|()| lab.member());
    // Accept and greet.
    assert!(received(&mut a).is_empty() && received(&mut b).is_empty());
    assert_eq!(send_plain(&mut a, &frame(0xff, 1, 60)), Sent::Yes);
    assert_eq!(received(&mut b).len(), 1);
    assert_eq!(received(&mut c).len(), 1);
    assert_eq!(send_plain(&mut b, &frame(1, 2, 61)), Sent::Yes);
    assert_eq!(received(&mut a), [(Offload::default(), frame(1, 2, 61))]);
    assert!(received(&mut c).is_empty(), "b knows where a is");
    // Nobody is there: to all, and not to oneself.
    assert_eq!(send_plain(&mut a, &frame(9, 1, 62)), Sent::Yes);
    assert_eq!(received(&mut b).len() + received(&mut c).len(), 2);
    assert!(received(&mut a).is_empty());
    assert_eq!(send_plain(&mut a, &[0; 13]), Sent::Dropped);
}

#[test]
fn a_large_segment_crosses_whole_to_a_guest_that_takes_it() {
    let lab = Lab::new();
    let [mut a, mut b] = [(); 2].map(|()| lab.member());
    received(&mut a);
    let mut large = frame(2, 1, 60_000);
    large[14..24].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6]);
    large[46] = 0x50;
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        segmentation: Segmentation::Tcp4 { size: 1460 },
        header_len: 54,
    };
    assert_eq!(a.transmit(&offload, &large).unwrap(), Sent::Yes);
    assert_eq!(received(&mut b), [(offload, large.clone())]);
    b.set_guest_abilities(Abilities::default());
    assert_eq!(a.transmit(&offload, &large).unwrap(), Sent::Yes);
    let cut = received(&mut b);
    assert_eq!(cut.len(), (60_000usize - 54).div_ceil(1460));
    assert!(cut.iter().all(|(o, _)| *o == Offload::default()));
}

#[test]
fn a_member_that_stands_still_holds_nobody_up_for_long() {
    let lab = Lab::new();
    let [mut a, mut slow, mut other] = [(); 3].map(|()| lab.member());
    for link in [&mut a, &mut slow, &mut other] {
        received(link);
    }
    send_plain(&mut slow, &frame(0xff, 2, 60));
    send_plain(&mut other, &frame(0xff, 3, 60));
    received(&mut a);
    received(&mut other);
    let big = frame(2, 1, 60_000);
    let mut sent = 0;
    while send_plain(&mut a, &big) == Sent::Yes {
        sent += 1;
        assert!(sent < 1000, "a member holds a bounded amount");
    }
    let deadline = a.turn(Instant::now()).expect("a deadline");
    assert!(deadline < Instant::now() + Duration::from_secs(1));
    // Others are reached meanwhile.
    assert_eq!(send_plain(&mut a, &frame(3, 1, 60)), Sent::Yes);
    assert_eq!(received(&mut other).len(), 1);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(send_plain(&mut a, &big), Sent::Dropped);
    assert_eq!(send_plain(&mut a, &big), Sent::Dropped);
    assert_eq!(send_plain(&mut a, &frame(0xff, 1, 60)), Sent::Dropped);
    assert_eq!(received(&mut other).len(), 1, "a flood reaches the others");
    assert_eq!(a.turn(Instant::now()), None);
    // It goes on, and so do frames for it.
    assert!(received(&mut slow).len() >= sent);
    received(&mut a);
    assert_eq!(send_plain(&mut a, &big), Sent::Yes);
    assert_eq!(received(&mut slow).len(), 1);
}

#[test]
fn members_go_and_others_come() {
    let lab = Lab::new();
    let [mut a, mut b] = [(); 2].map(|()| lab.member());
    received(&mut a);
    send_plain(&mut b, &frame(0xff, 2, 60));
    assert_eq!(received(&mut a).len(), 1);
    drop(b);
    send_plain(&mut a, &frame(2, 1, 60));
    assert!(received(&mut a).is_empty());
    let mut c = lab.member();
    send_plain(&mut c, &frame(0xff, 2, 60));
    assert_eq!(received(&mut a).len(), 1);
    assert_eq!(send_plain(&mut a, &frame(2, 1, 60)), Sent::Yes);
    assert_eq!(received(&mut c).len(), 1);
}

#[test]
fn strangers_and_other_versions_are_refused() {
    let lab = Lab::new();
    let mut a = lab.member();
    let mut newer = hello();
    newer[8] = 2;
    for first in [&newer[..], b"GET / HTTP/1.1", &[0; 70]] {
        let (_listener, peers) = lab.place.join().unwrap();
        send(&peers[0], first, SendFlags::NOSIGNAL).unwrap();
        let message = [&[0; 12][..], &frame(0xff, 7, 60)].concat();
        // Refused already, or not yet.
        let _ = send(&peers[0], &message, SendFlags::NOSIGNAL);
        assert!(received(&mut a).is_empty());
        assert!(send(&peers[0], &message, SendFlags::NOSIGNAL).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_member_says_is_harmless(
        messages in proptest::collection::vec(
            (proptest::collection::vec(prop_oneof![0..6u8, any::<u8>()], 1..90), 0..3u8), 1..20),
    ) {
        let lab = Lab::new();
        let mut a = lab.member();
        let (_listener, peers) = lab.place.join().unwrap();
        send(&peers[0], &hello(), SendFlags::NOSIGNAL).unwrap();
        for (mut message, kind) in messages {
            if kind == 0 {
                message.resize(70_000, 1);
            }
            if kind == 1 {
                a.set_guest_abilities(Abilities::default());
            }
            if send(&peers[0], &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err() {
                break;
            }
        }
        for (_, bytes) in received(&mut a) {
            prop_assert!((14..=crate::MAX_FRAME).contains(&bytes.len()));
        }
    }
}
