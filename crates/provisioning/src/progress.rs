//! What is known of a boot.

use std::fmt;
use std::time::SystemTime;

/// A part of a boot, in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The kernel, until it starts the first program.
    Kernel,
    /// Everything after it, until the system is up.
    Userspace,
    /// From where networks may be set up until one is online.
    Network,
    /// cloud-init finds its datasource (`init-local`).
    CloudInitLocal,
    /// cloud-init makes users, keys and disks (`init`).
    CloudInit,
    /// cloud-init's `modules:config`.
    CloudConfig,
    /// cloud-init's `modules:final`, with the scripts of user data.
    CloudFinal,
}

impl Stage {
    /// cloud-init's, by the name it has in `status.json`.
    pub(crate) fn of_cloud_init(name: &str) -> Option<Self> {
        Some(match name {
            "init-local" => Self::CloudInitLocal,
            "init" | "init-network" => Self::CloudInit,
            "modules-config" => Self::CloudConfig,
            "modules-final" => Self::CloudFinal,
            _ => return None,
        })
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
            Self::Network => "network",
            Self::CloudInitLocal => "cloud-init-local",
            Self::CloudInit => "cloud-init",
            Self::CloudConfig => "cloud-config",
            Self::CloudFinal => "cloud-final",
        })
    }
}

/// When a stage was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageReport {
    /// Which.
    pub stage: Stage,
    /// When it began, by the host's clock.
    pub began: SystemTime,
    /// When it ended.
    pub ended: Option<SystemTime>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In which stage.
    pub stage: Stage,
    /// One line for people.
    pub what: String,
    /// What was printed in the stage, at most the last 8 KiB; may be empty.
    pub output: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.what)?;
        match self.output.trim_end() {
            "" => Ok(()),
            output => write!(f, "\n{output}"),
        }
    }
}

/// From where a boot is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// Neither agent nor console has said anything yet.
    #[default]
    Nothing,
    /// The serial console; times are less exact.
    Console,
    /// The guest's agent.
    Agent,
}

/// How far a guest has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootProgress {
    /// From where this is known.
    pub seen: Seen,
    /// Stages that began, in order.
    pub stages: Vec<StageReport>,
    /// When the guest was ready: cloud-init has ended, or, without it, systemd
    /// has started everything. It may have failures.
    pub ready: Option<SystemTime>,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// What cloud-init only warned of, at most 20 lines.
    pub warnings: Vec<String>,
    /// cloud-init's datasource: `DataSourceEc2Local`, `DataSourceNone`.
    pub datasource: Option<String>,
}

impl BootProgress {
    /// Nothing more will come: the guest is ready, or stuck for good.
    pub fn is_over(&self) -> bool {
        let stuck = |failure: &Failure| failure.stage < Stage::Network;
        self.ready.is_some() || self.failures.iter().any(stuck)
    }

    /// Adds a stage at its place.
    pub(crate) fn stage(&mut self, stage: Stage, began: SystemTime, ended: Option<SystemTime>) {
        let report = StageReport {
            stage,
            began,
            ended: ended.map(|ended| ended.max(began)),
        };
        let at = self.stages.partition_point(|other| other.stage <= stage);
        self.stages.insert(at, report);
    }
}

/// Most bytes of a failure's output.
const OUTPUT: usize = 8 << 10;

/// A guest's text for a terminal: its end, with nothing that moves a cursor.
pub(crate) fn printable(text: &str) -> String {
    let mut from = text.len().saturating_sub(OUTPUT);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let text = text.get(from..).unwrap_or_default();
    let clean = |c: char| match c {
        '\n' | '\t' => Some(c),
        '\r' => None,
        c if c.is_control() => Some('?'),
        c => Some(c),
    };
    text.chars().filter_map(clean).collect()
}

/// The same on one line of at most 500 characters.
pub(crate) fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(500).map(clean).collect()
}
