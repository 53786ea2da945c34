//! `--net` and `--publish`.

use machine::{MOST_NICS, Nic, NicCapture, NicNetwork, NicReach, UserNic, VpcNic};
use net::Rate;
use net::user::{Publication, Subnet4};

use crate::values;

/// `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// No card at all.
    None,
    /// One card.
    Card(Box<Nic>),
}

const KINDS: &str =
    "a network is none, user, tap=NAME, bridge=NAME, switch=NAME or vpc=DIRECTORY,port=FILE";
const OPTIONS: &str = "name=N, mac=ADDR, mtu=N, rate=1gbit, burst=SIZE, queues=N, pcap=FILE, snaplen=SIZE, \
     pcap-limit=SIZE; with user also publish=[ADDR:]HOST:GUEST[/udp], subnet=ADDR/N, ipv6=off, \
     hostname=NAME, reach=everything|not-the-host|nothing; with vpc also door=SOCKET";

/// Reads a network as `--net` has it.
///
/// # Errors
/// Says what is wrong, and what there is.
pub fn spec(text: &str) -> Result<Spec, String> {
    let mut words = text.split(',');
    let kind = words.next().unwrap_or_default();
    let network = match kind.split_once('=') {
        Some(("vpc", directory)) => vpc(text, directory)?,
        None if kind == "none" && text == "none" => return Ok(Spec::None),
        None if kind == "user" => NicNetwork::User(UserNic::default()),
        Some(("tap", name)) => NicNetwork::Tap(named(name)?),
        Some(("bridge", name)) => NicNetwork::Bridge(named(name)?),
        Some(("switch", name)) => NicNetwork::Switch(named(name)?),
        _ => return Err(format!("unknown network {text:?}: {KINDS}")),
    };
    let mut nic = Nic::new(network);
    let (mut burst, mut snaplen, mut limit) = (None, None, None);
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "name" if !value.is_empty() => nic.name = Some(value.into()),
            "mac" => nic.mac = Some(named(value)?),
            "mtu" => nic.mtu = Some(number(word, value, 68, 65_520)?),
            "queues" => nic.queues = Some(number(word, value, 1, 64)?),
            "rate" => nic.rate = Some(Rate::new(bit_rate(value)?)),
            "burst" => burst = Some(values::size(value)?),
            "pcap" if !value.is_empty() => {
                nic.capture = Some(NicCapture {
                    file: value.into(),
                    snaplen: None,
                    limit: None,
                });
            }
            "snaplen" => snaplen = Some(number(word, value, 64, 1 << 18)?),
            "pcap-limit" => limit = Some(values::size(value)?),
            "port" if matches!(nic.network, NicNetwork::Vpc(_)) => {}
            _ => network_option(&mut nic.network, key, value)?
                .then_some(())
                .ok_or_else(|| format!("unknown network option {word:?}: there are {OPTIONS}"))?,
        }
    }
    match (&mut nic.rate, burst) {
        (Some(rate), Some(burst)) => rate.burst = burst,
        (None, Some(_)) => return Err("burst= goes with rate=".into()),
        _ => {}
    }
    match &mut nic.capture {
        Some(capture) => (capture.snaplen, capture.limit) = (snaplen, limit),
        None if snaplen.is_some() || limit.is_some() => {
            return Err("snaplen= and pcap-limit= go with pcap=FILE".into());
        }
        None => {}
    }
    Ok(Spec::Card(Box::new(nic)))
}

/// A port in a VPC, from its file.
fn vpc(text: &str, directory: &str) -> Result<NicNetwork, String> {
    let file = text.split(',').find_map(|word| word.strip_prefix("port="));
    let file = file.ok_or("a card in a VPC needs port=FILE, its configuration as JSON")?;
    let said = |e: &dyn std::fmt::Display| format!("reading the port {file}: {e}");
    let json = std::fs::read_to_string(file).map_err(|e| said(&e))?;
    let port = serde_json::from_str(&json).map_err(|e| said(&e))?;
    let directory = std::path::absolute(directory).map_err(|e| said(&e))?;
    Ok(NicNetwork::Vpc(Box::new(VpcNic {
        directory,
        port,
        door: None,
    })))
}

/// An option of one kind of network; `false` if it is none.
fn network_option(network: &mut NicNetwork, key: &str, value: &str) -> Result<bool, String> {
    let user = match network {
        NicNetwork::User(user) => user,
        NicNetwork::Vpc(vpc) if key == "door" && !value.is_empty() => {
            vpc.door = Some(value.into());
            return Ok(true);
        }
        _ => return Ok(false),
    };
    match (key, value) {
        ("publish", _) => user.publish.push(publication(value)?),
        ("subnet", _) => {
            named::<Subnet4>(value)?;
            user.subnet = Some(value.into());
        }
        ("ipv6", "on") => user.without_ipv6 = false,
        ("ipv6", "off") => user.without_ipv6 = true,
        ("hostname", name) if !name.is_empty() => user.hostname = Some(name.into()),
        ("reach", "everything") => user.reach = NicReach::Everything,
        ("reach", "not-the-host") => user.reach = NicReach::NotTheHost,
        ("reach", "nothing") => user.reach = NicReach::Nothing,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads a publication as `--publish` has it.
///
/// # Errors
/// Says what one looks like.
pub fn publication(text: &str) -> Result<Publication, String> {
    named(text)
}

fn named<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn number<T: TryFrom<u32>>(word: &str, value: &str, least: u32, most: u32) -> Result<T, String> {
    let number = value.parse::<u32>().ok();
    let number = number.filter(|n| (least..=most).contains(n));
    let number = number.and_then(|n| T::try_from(n).ok());
    number.ok_or_else(|| format!("{word:?}: between {least} and {most}"))
}

/// Bytes per second: `100mbit`, `1gbit`, `64kbit`, or with the ending `bps`
/// for bytes, as tc has them.
fn bit_rate(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no rate: a whole number with kbit, mbit or gbit, or kbps, mbps or gbps for \
             bytes, as in 100mbit"
        )
    };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let (thousands, bits) = match unit.to_ascii_lowercase().as_str() {
        "bit" => (0, 8),
        "kbit" => (1, 8),
        "mbit" => (2, 8),
        "gbit" => (3, 8),
        "bps" => (0, 1),
        "kbps" => (1, 1),
        "mbps" => (2, 1),
        "gbps" => (3, 1),
        _ => return Err(wrong()),
    };
    let per_second = number.checked_mul(1000u64.pow(thousands));
    let per_second = per_second.map(|n| n / bits).filter(|n| *n > 0);
    per_second.ok_or_else(wrong)
}

/// All cards: those asked for, or one on a user network; publications lead to
/// the first on a user network.
///
/// # Errors
/// If they contradict each other.
pub fn cards(specs: &[Spec], published: &[Publication]) -> Result<Vec<Nic>, String> {
    let mut nics: Vec<Nic> = match specs {
        [] => vec![Nic::new(NicNetwork::User(UserNic::default()))],
        _ => {
            let cards = specs.iter().filter_map(|spec| match spec {
                Spec::None => None,
                Spec::Card(nic) => Some((**nic).clone()),
            });
            cards.collect()
        }
    };
    if specs.contains(&Spec::None) && specs.len() > 1 {
        return Err("--net none stands alone".into());
    }
    if nics.len() > MOST_NICS {
        return Err(format!("a machine has at most {MOST_NICS} network cards"));
    }
    let user = nics.iter_mut().find_map(|nic| match &mut nic.network {
        NicNetwork::User(user) => Some(user),
        _ => None,
    });
    match user {
        Some(user) => user.publish.extend(published),
        None if !published.is_empty() => {
            return Err("--publish needs a card on a user network: add --net user".into());
        }
        None => {}
    }
    Ok(nics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str) -> Nic {
        match spec(text) {
            Ok(Spec::Card(nic)) => *nic,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn networks_are_read() {
        let nic =
            card("switch=lab,mac=02:00:00:00:00:07,mtu=9000,rate=1gbit,pcap=/tmp/x,snaplen=96");
        assert_eq!(nic.network, NicNetwork::Switch("lab".parse().unwrap()));
        assert_eq!(nic.mtu, Some(9000));
        assert_eq!(nic.rate.unwrap().bytes_per_second, 125_000_000);
        assert_eq!(nic.capture.unwrap().snaplen, Some(96));
        assert_eq!(card("tap=t0,queues=4").queues, Some(4));
        let nic = card("user,publish=2222:22,publish=[::1]:80:80,reach=not-the-host,ipv6=off");
        let NicNetwork::User(user) = nic.network else {
            panic!("{nic:?}")
        };
        assert_eq!(user.publish.len(), 2);
        assert!(user.without_ipv6 && user.reach == NicReach::NotTheHost);
        assert_eq!(
            card("user,rate=8mbps,burst=1M").rate.unwrap().burst,
            1 << 20
        );
        assert_eq!(spec("none"), Ok(Spec::None));
    }

    #[test]
    fn mistakes_are_named() {
        for (bad, part) in [
            ("", "a network is"),
            ("wifi", "a network is"),
            ("none,mtu=5", "a network is"),
            ("tap=", "interface"),
            ("switch=../x", "switch"),
            ("user,mac=01:00:00:00:00:00", "network card"),
            ("user,mtu=1", "between 68"),
            ("user,rate=fast", "100mbit"),
            ("user,rate=5", "100mbit"),
            ("user,burst=5K", "rate="),
            ("user,snaplen=96", "pcap="),
            ("user,publish=x", "publication"),
            ("tap=t,publish=1:1", "publish=1:1"),
            ("user,colour=red", "there are name"),
        ] {
            let error = spec(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn publications_go_to_the_first_user_network() {
        let publish = [publication("2222:22").unwrap()];
        let published = |nic: &Nic| match &nic.network {
            NicNetwork::User(user) => user.publish.len(),
            _ => 99,
        };
        let nics = cards(&[], &publish).unwrap();
        assert_eq!(nics.iter().map(published).collect::<Vec<_>>(), [1]);
        let specs = ["switch=a", "user", "user"].map(|t| spec(t).unwrap());
        let nics = cards(&specs, &publish).unwrap();
        assert_eq!(nics.iter().map(published).collect::<Vec<_>>(), [99, 1, 0]);
        assert!(cards(&[Spec::None], &publish).is_err());
        assert_eq!(cards(&[Spec::None], &[]), Ok(Vec::new()));
        assert!(cards(&[Spec::None, spec("user").unwrap()], &[]).is_err());
        assert!(cards(&vec![spec("user").unwrap(); 5], &[]).is_err());
    }
}
