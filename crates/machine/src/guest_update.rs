//! What a restored guest is told through its agent, while it runs already: the
//! time of day, and a clone also its cards' new addresses and random bytes.
//! Drivers read a card's address when they start, so that a running clone would
//! keep its origin's.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::{AgentError, Client};
use machine_protocol::EventKind;
use net::MacAddress;

use crate::machine::Inner;
use crate::nic::{NicNetwork, NicPort};

/// Most characters of what a guest says that are kept.
const SAID_MAX: usize = 1000;
/// Time for one answer of the agent.
const ANSWER: Duration = Duration::from_secs(10);
/// Time for the program that does it.
const PROGRAM: Duration = Duration::from_secs(20);
/// Bytes of randomness given to a clone.
const RANDOM: usize = 256;
/// A clock that is off by less was set.
const CLOCK_NEAR: Duration = Duration::from_secs(2);

/// Takes randomness from standard input and, as arguments, for each card its
/// old and its new address, and the link-local IPv6 addresses that follow from
/// them. 0x5207 is RNDRESEEDCRNG, for which a shell has no command.
const SCRIPT: &str = r#"
PATH=$PATH:/usr/sbin:/sbin; status=0
if cat >/dev/urandom; then
  if perl -e 'open my $f, ">", "/dev/urandom" or exit 1; exit !ioctl $f, 0x5207, 0' 2>/dev/null ||
    python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)' 2>/dev/null
  then echo 'its random numbers begin anew'
  else echo 'its random numbers begin anew within a minute'
  fi
else status=1
fi
while [ $# -ge 4 ]; do
  found=
  for d in /sys/class/net/*; do
    [ -e "$d/device" ] && [ ! -e "$d/bonding_slave" ] && [ "$(cat "$d/address")" = "$1" ] || continue
    n=${d##*/}; found=$n
    ip link set dev "$n" address "$2" || { status=1; continue; }
    if [ -n "$(ip -6 -o addr show dev "$n" to "$3" 2>/dev/null)" ]; then
      ip -6 addr add "$4/64" dev "$n"; ip -6 addr del "$3/64" dev "$n"
    fi
    echo "$n has the address $2"
  done
  [ -n "$found" ] || { echo "no card has the address $1" >&2; status=1; }
  shift 4
done
exit $status"#;

/// What a restored guest is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestUpdate {
    /// It goes on alone: the time of day.
    Restored,
    /// It is another machine now: also its addresses and random numbers.
    Cloned,
}

/// Tells the guest on a thread of its own, when it runs. Cards of a clone that
/// others can see have no carrier until that is done or cannot be done.
pub(crate) fn begin(machine: &Arc<Inner>, update: GuestUpdate) {
    let Some(agent) = &machine.board().peripherals().agent else {
        return not_updated(machine, "the machine has no channel to an agent");
    };
    if !agent.is_open() {
        return not_updated(machine, "no agent ran in the guest (qemu-guest-agent)");
    }
    machine.set_guest_update("waits for the guest's agent".into());
    let held: Vec<NicPort> = match update {
        GuestUpdate::Restored => Vec::new(),
        GuestUpdate::Cloned => shared_cards(machine),
    };
    held.iter().for_each(|port| port.card.set_plugged(false));
    let release = held.clone();
    let owner = Arc::downgrade(machine);
    let control = machine.control().clone();
    let client = agent.client(ANSWER);
    let work = move || {
        control.wait_running();
        let told = client.map_err(AgentError::from);
        let told = told.and_then(|mut client| tell(&mut client, &owner.upgrade(), update));
        held.iter().for_each(|port| port.card.set_plugged(true));
        let Some(machine) = owner.upgrade() else {
            return;
        };
        match told {
            Ok(told) if told.complete => updated(&machine, &told.said),
            Ok(told) => not_updated(&machine, &told.said),
            Err(error) => not_updated(&machine, &error.to_string()),
        }
    };
    let thread = std::thread::Builder::new().name("guest-update".into());
    if let Err(error) = thread.spawn(work) {
        release.iter().for_each(|port| port.card.set_plugged(true));
        not_updated(machine, &format!("the host gives no thread: {error}"));
    }
}

/// What a guest says in words is as long as it likes; others read all of it
/// with each description of the machine.
fn short(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(SAID_MAX).collect()
}

fn updated(machine: &Inner, message: &str) {
    let message = short(message);
    machine.set_guest_update(message.clone());
    machine.events().note(EventKind::GuestUpdated { message });
}

fn not_updated(machine: &Inner, why: &str) {
    let message = short(why);
    machine.set_guest_update(format!("not told that it was restored: {message}"));
    machine
        .events()
        .note(EventKind::GuestNotUpdated { message });
}

/// Cards with an old address on networks where its owner may be.
fn shared_cards(machine: &Inner) -> Vec<NicPort> {
    let cards = machine.cards();
    let shared = cards.into_iter().filter(|(network, port)| {
        let apart = matches!(network, NicNetwork::User(_) | NicNetwork::Vpc(_));
        !apart && port.card.mac() != port.own
    });
    shared.map(|(_, port)| port).collect()
}

struct Told {
    /// Nothing was left out.
    complete: bool,
    said: String,
}

fn tell(
    client: &mut Client,
    machine: &Option<Arc<Inner>>,
    update: GuestUpdate,
) -> Result<Told, AgentError> {
    let mut told = Told {
        complete: true,
        said: set_time(client)?,
    };
    let Some(machine) = machine.as_ref().filter(|_| update == GuestUpdate::Cloned) else {
        return Ok(told);
    };
    let cards = machine.cards();
    let mut arguments = vec!["-c".to_owned(), SCRIPT.into(), "sh".into()];
    for (_, port) in cards {
        let (old, new) = (port.card.mac(), port.own);
        if old != new {
            arguments.extend([old.to_string(), new.to_string()]);
            arguments.extend([old, new].map(|mac| link_local(mac).to_string()));
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut random = [0; RANDOM];
    getrandom::fill(&mut random).map_err(|e| std::io::Error::other(e.to_string()))?;
    let ended = client.run("/bin/sh", &arguments, &random, PROGRAM)?;
    told.complete = ended.status == Some(0);
    for output in [&ended.output, &ended.error] {
        for line in String::from_utf8_lossy(output).lines().take(32) {
            told.said += "; ";
            told.said += line;
        }
    }
    Ok(told)
}

/// Sets the time of day; what was done, in words.
fn set_time(client: &mut Client) -> Result<String, AgentError> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let now = || now().unwrap_or_default();
    let asked = Instant::now();
    let before = client.time()?;
    let behind = now().saturating_sub(before + asked.elapsed());
    if let Err(error) = client.set_time(now()) {
        // The agent sets the hardware clock, too, and some guests have no
        // program for that.
        let off = now().abs_diff(client.time()?);
        if off > CLOCK_NEAR {
            return Err(error);
        }
    }
    Ok(format!(
        "its clock was set on by {:.1} s",
        behind.as_secs_f64()
    ))
}

/// The address that follows from a card's (RFC 4291, appendix A).
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let (first, third) = (word(a ^ 2, b), word(0xfe, d));
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, word(c, 0xff), third, word(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_bounded_and_printable() {
        assert_eq!(short("eth0 has\x1b[2J it\r\n"), "eth0 has[2J it");
        assert_eq!(short(&"é".repeat(1 << 20)).chars().count(), SAID_MAX);
    }

    #[test]
    fn a_link_local_address_follows_from_the_card() {
        let mac: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(link_local(mac).to_string(), "fe80::5054:ff:fe12:3456");
    }
}
