//! The messages of a machine's control socket.
//!
//! A connection carries lines of JSON. The machine speaks first ([`Hello`]);
//! then each [`Request`] line gets one [`Reply`] line, in order. Lines longer
//! than [`LINE_MAX`], requests and fields that are not known are refused by
//! name, and the connection goes on. Two requests make a connection a stream:
//! [`Request::Events`] with `follow`, whose answer comes again and again, and
//! [`Request::Console`], after which the console's own requests are sent and
//! [`Reply::Printed`] and [`Reply::Keyboard`] come unasked.
#![forbid(unsafe_code)]

mod console;
mod event;
pub mod host_port;
pub mod launch;
pub mod vpc;

pub use console::{Bytes, Keyboard, Printed};
pub use event::{Event, EventKind, EventList};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vpc::{PortConfig, PortReport};

/// Version of the messages. A machine and a client must have the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line, in bytes, its end included.
pub const LINE_MAX: usize = 1 << 20;

/// The machine's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the machine.
    pub protocol: u32,
    /// Version of the holm that runs it.
    pub holm: String,
}

/// What is asked of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What it is and what it is doing: [`Description`].
    Describe {},
    /// Stops its vCPUs, devices and clock; answered when they stand.
    Pause {},
    /// Ends a pause.
    Resume {},
    /// Presses the ACPI power button; the guest decides what follows.
    PowerButton {},
    /// Resets it, as its reset button would.
    Reset {},
    /// Ends it at once, as if its power were cut.
    Kill {},
    /// Raises a non-maskable interrupt on its first vCPU.
    Nmi {},
    /// Its counters: [`Metrics`].
    Metrics {},
    /// Asks its guest to do with this much memory, through its balloon.
    Balloon {
        /// In bytes; the machine's size gives all back.
        memory: u64,
    },
    /// What happened to it: [`EventList`].
    Events {
        /// Only what has a greater number than this.
        #[serde(default)]
        after: u64,
        /// Whether later events are told, too, as they come; nothing else can
        /// be asked on the connection then.
        #[serde(default)]
        follow: bool,
    },
    /// Attaches the connection to its console: [`Reply::Keyboard`] first.
    Console {
        /// Whether to type.
        keyboard: Keyboard,
        /// Most bytes of what was printed before that are printed again.
        #[serde(default)]
        replay: u32,
    },
    /// On a console: types this, if the connection has the keyboard. No answer.
    Type {
        /// At most 16 KiB.
        data: Bytes,
    },
    /// On a console: takes the keyboard.
    TakeKeyboard {},
    /// On a console: the size of who has the keyboard.
    ConsoleSize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// Attaches a disk, which the guest takes when it likes:
    /// [`Reply::Attached`].
    AttachDisk {
        /// The disk as in a machine's description: `file` (an absolute path),
        /// `read_only`, `serial`, `name`, `limits` and others.
        disk: serde_json::Value,
    },
    /// Asks the guest to give up an attached disk. It is gone when it is no
    /// longer in the [`Description`].
    DetachDisk {
        /// Its name.
        disk: String,
        /// Takes it away without asking, as if it were pulled out.
        #[serde(default)]
        force: bool,
    },
    /// Attaches a network card, which the guest takes when it likes:
    /// [`Reply::NicAttached`].
    AttachNic {
        /// The card as in a machine's description: `network`, `name`, `mac`,
        /// `mtu` and others; not one in a VPC.
        nic: serde_json::Value,
    },
    /// Asks the guest to give up an attached network card. It is gone when it
    /// is no longer in the [`Description`].
    DetachNic {
        /// Its name.
        nic: String,
        /// Takes it away without asking, as if it were pulled out.
        #[serde(default)]
        force: bool,
    },
    /// Plugs the cable of a network card in or pulls it out: the guest sees
    /// whether there is a carrier. Not of a card in a VPC.
    SetLink {
        /// Its name; the cards of the machine's start are `net0`, `net1` …
        nic: String,
        /// Whether it is plugged in.
        up: bool,
    },
    /// Makes a disk larger and tells the guest.
    GrowDisk {
        /// Its name.
        disk: String,
        /// Its new capacity in bytes.
        size: u64,
    },
    /// Replaces the port of a network card in a VPC, at once and as a whole:
    /// [`Reply::NicConfigured`]. Flows that were tracked go on.
    ConfigureNic {
        /// Which card, from 0.
        nic: u32,
        /// What it is from now on; its address stays what it was.
        port: Box<PortConfig>,
    },
    /// Copies a disk as it is at one instant to a new file: [`DiskCopied`],
    /// which may take long. It runs on. A qcow2 disk that builds on other files
    /// becomes one that builds on the same; all others become raw ones.
    CopyDisk {
        /// Its name.
        disk: String,
        /// Absolute path of the file, which must not exist.
        file: String,
    },
    /// Makes a snapshot of its memory, state and disks: [`SnapshotMade`],
    /// which may take long. It runs on.
    Snapshot {
        /// Absolute path of the directory, which must not exist.
        directory: String,
        /// Only the memory that changed since the last one.
        #[serde(default)]
        incremental: bool,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// To [`Request::Describe`].
    Description(Description),
    /// To [`Request::Metrics`].
    Metrics(Metrics),
    /// To [`Request::Events`].
    Events(EventList),
    /// On a console: something was printed.
    Printed(Printed),
    /// On a console: whether the connection has the keyboard now.
    Keyboard {
        /// It has.
        held: bool,
    },
    /// To [`Request::AttachDisk`].
    Attached {
        /// The name of the disk in the machine.
        disk: String,
    },
    /// To [`Request::AttachNic`].
    NicAttached {
        /// The name of the card in the machine.
        nic: String,
    },
    /// To [`Request::ConfigureNic`].
    NicConfigured(PortReport),
    /// To [`Request::Snapshot`].
    Snapshot(SnapshotMade),
    /// To [`Request::CopyDisk`].
    DiskCopied(DiskCopied),
    /// It is not done.
    Error {
        /// Which kind of failure, for programs.
        code: ErrorCode,
        /// What failed, for people.
        message: String,
    },
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// Not a line of JSON, or longer than [`LINE_MAX`].
    Malformed,
    /// A request or a field that this machine does not know.
    Unknown,
    /// The machine has ended or could not do it.
    Failed,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Assembled, not yet started.
    Created,
    /// Running.
    Running,
    /// Paused by a request.
    Paused,
    /// Ended; the process is about to go.
    Ended,
}

/// A machine, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its process on the host.
    pub pid: u32,
    /// What it is doing.
    pub state: RunState,
    /// `soft` or `kvm`.
    pub engine: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// Its network cards: where they lead.
    pub nics: Vec<String>,
    /// Network cards that were attached while it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached_nics: Vec<NicReport>,
    /// Names of the network cards without a carrier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links_down: Vec<String>,
    /// Its network cards in VPCs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortReport>,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// System UUID, in hexadecimal.
    pub uuid: String,
    /// Generation id, in hexadecimal: another one after each restore.
    #[serde(default)]
    pub generation_id: String,
    /// What a restored guest was told of that, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_update: Option<String>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMade {
    /// Its id.
    pub id: String,
    /// How long the guest stood, in microseconds.
    pub stopped_us: u64,
    /// How long all of it took, in microseconds.
    pub took_us: u64,
    /// Bytes of memory written.
    pub memory_bytes: u64,
}

/// A copy of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopied {
    /// `raw` or `qcow2`.
    pub format: String,
    /// How long the guest stood, in microseconds.
    pub stopped_us: u64,
    /// How long all of it took, in microseconds.
    pub took_us: u64,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// By which requests address it.
    pub name: String,
    /// Its file or block device.
    pub file: String,
    /// Capacity in bytes.
    pub size: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// Serial number that the guest sees; may be empty.
    pub serial: String,
    /// It was attached while the machine ran, and can be detached.
    pub attached: bool,
    /// A driver in the guest uses it.
    pub in_use: bool,
    /// What the host could not do since the machine was last resumed. A
    /// machine that is paused for it tries again when it is resumed.
    pub failure: Option<String>,
}

/// A network card that was attached while the machine ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicReport {
    /// By which requests address it.
    pub name: String,
    /// Where it leads.
    pub network: String,
    /// Its address.
    pub mac: String,
    /// A driver in the guest uses it.
    pub in_use: bool,
}

/// Counters of a machine by name, with units in the names, as in Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Samples by metric; a metric's samples differ in their labels.
    pub samples: BTreeMap<String, Vec<Sample>>,
}

/// One value of a metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Label and value, such as `vcpu` and `0`.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: u64,
}

impl Metrics {
    /// Adds a value.
    pub fn add(&mut self, name: &str, labels: &[(&str, String)], value: u64) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
        self.samples
            .entry(name.to_owned())
            .or_default()
            .push(Sample {
                labels: labels.collect(),
                value,
            });
    }

    /// In Prometheus' text format: counters are those whose names end in
    /// `_total`, all others are gauges.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        for (name, samples) in &self.samples {
            let kind = match name.ends_with("_total") {
                true => "counter",
                false => "gauge",
            };
            text.push_str(&format!("# TYPE {name} {kind}\n"));
            for sample in samples {
                let labels: Vec<String> = sample
                    .labels
                    .iter()
                    .map(|(k, v)| {
                        format!("{k}=\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\""))
                    })
                    .collect();
                let labels = match labels.is_empty() {
                    true => String::new(),
                    false => format!("{{{}}}", labels.join(",")),
                };
                text.push_str(&format!("{name}{labels} {}\n", sample.value));
            }
        }
        text
    }
}

/// A line that is not a request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// Malformed or unknown.
    pub code: ErrorCode,
    /// What is wrong, with the name of what is not known.
    pub message: String,
}

/// Reads a request from a line.
///
/// # Errors
/// [`BadRequest`].
pub fn parse_request(line: &str) -> Result<Request, BadRequest> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|e| BadRequest {
        code: ErrorCode::Malformed,
        message: format!("the request is no line of JSON: {e}"),
    })?;
    serde_json::from_value(value).map_err(|e| BadRequest {
        code: ErrorCode::Unknown,
        message: format!(
            "this machine (protocol {PROTOCOL_VERSION}) does not know the request: {e}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form_and_others_are_refused_by_name() {
        let line = serde_json::to_string(&Request::PowerButton {}).unwrap();
        assert_eq!(line, r#"{"request":"power-button"}"#);
        assert_eq!(parse_request(&line).unwrap(), Request::PowerButton {});
        let unknown = parse_request(r#"{"request":"fly"}"#).unwrap_err();
        assert_eq!(unknown.code, ErrorCode::Unknown);
        assert!(unknown.message.contains("fly"), "{unknown}");
        let field = parse_request(r#"{"request":"pause","for":3}"#).unwrap_err();
        assert_eq!(field.code, ErrorCode::Unknown);
        assert!(field.message.contains("for"), "{field}");
        for bad in ["", "{", "[]x", "\u{0}"] {
            assert_eq!(parse_request(bad).unwrap_err().code, ErrorCode::Malformed);
        }
        let typed = parse_request(r#"{"request":"type","data":"bHMK"}"#).unwrap();
        let data = Bytes(b"ls\n".to_vec());
        assert_eq!(typed, Request::Type { data });
        assert!(parse_request(r#"{"request":"type","data":"=="}"#).is_err());
        let console = parse_request(r#"{"request":"console","keyboard":"steal"}"#);
        assert!(console.unwrap_err().message.contains("steal"));
        assert_eq!(parse_request("[1]").unwrap_err().code, ErrorCode::Unknown);
    }

    #[test]
    fn replies_survive_json() {
        let mut metrics = Metrics::default();
        metrics.add("holm_vcpu_interrupts_total", &[("vcpu", "1".into())], 7);
        metrics.add("holm_memory_bytes", &[], 1 << 30);
        let event = Event {
            number: 3,
            at_milliseconds: 5,
            kind: EventKind::BalloonTarget { memory: 7 },
        };
        let text = serde_json::to_string(&event).unwrap();
        let form = r#"{"number":3,"at_milliseconds":5,"event":"balloon-target","memory":7}"#;
        assert_eq!(text, form);
        for reply in [
            Reply::Done,
            Reply::Events(EventList {
                missed: 1,
                events: vec![event],
            }),
            Reply::Printed(Printed {
                lost: 0,
                data: Bytes(vec![0, 255, 10]),
            }),
            Reply::Keyboard { held: true },
            Reply::Metrics(metrics.clone()),
            Reply::Error {
                code: ErrorCode::Failed,
                message: "x".into(),
            },
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
        let text = metrics.to_prometheus();
        assert!(
            text.contains("holm_vcpu_interrupts_total{vcpu=\"1\"} 7\n"),
            "{text}"
        );
        assert!(text.contains("\nholm_vcpu") && text.contains("holm_memory_bytes 1073741824\n"));
    }
}
