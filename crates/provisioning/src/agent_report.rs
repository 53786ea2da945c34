//! One question to the guest's agent, and its answer.

use std::collections::HashMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use agent::{AgentError, Client};

use crate::cloud_init::{self, Status};
use crate::progress::{BootProgress, Seen, Stage};

/// Time for an answer, from a guest that is busy with its start.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether the script has ended.
const LOOK: Duration = Duration::from_millis(50);

/// Prints all that is needed, in sections; what a guest lacks is an empty one.
const SCRIPT: &str = r#"
exec 2>/dev/null
section() { printf '\n@@holm %s\n' "$1"; }
section clock; date +%s.%N; cat /proc/uptime
section boot; systemctl show -p UserspaceTimestampMonotonic -p FinishTimestampMonotonic
for unit in network-pre.target network-online.target network.target cloud-final.service; do
  section "unit $unit"
  systemctl show "$unit" -p LoadState -p ActiveState -p ActiveEnterTimestampMonotonic
done
section disabled; ls /run/cloud-init/disabled /etc/cloud/cloud-init.disabled
section present; command -v cloud-init
section status; cat /run/cloud-init/status.json
section output; tail -c 65536 /var/log/cloud-init-output.log
section log; grep -a -e '\[WARNING\]' -e '\[ERROR\]' -e 'Failed running' /var/log/cloud-init.log | tail -n 60
section end
"#;

/// What the agent says; `None` if there is none, or it may not tell.
pub fn ask(socket: &Path) -> Option<BootProgress> {
    let text = run(socket).ok()??;
    read(&text, SystemTime::now())
}

/// The script's output; `None` if it does not end in time.
fn run(socket: &Path) -> Result<Option<String>, AgentError> {
    let deadline = Instant::now() + PATIENCE;
    let mut client = Client::connect(socket)?;
    client.set_patience(PATIENCE)?;
    let process = client.exec("/bin/sh", &["-c", SCRIPT], true)?;
    loop {
        let status = client.exec_status(process)?;
        if status.exited {
            let text = String::from_utf8_lossy(&status.output).into_owned();
            return Ok(Some(text));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// The guest's clocks at the host's `now`.
struct Clock {
    now: SystemTime,
    /// Seconds since 1970.
    wall: f64,
    /// Seconds since the kernel started.
    uptime: f64,
}

impl Clock {
    fn read(text: &str, now: SystemTime) -> Option<Self> {
        let mut lines = text.lines();
        // A busybox knows no %N.
        let wall = lines.next()?.trim_end_matches("%N").trim_end_matches('.');
        let uptime = lines.next()?.split(' ').next()?;
        Some(Self {
            now,
            wall: wall.parse().ok()?,
            uptime: uptime.parse().ok()?,
        })
    }

    /// A moment of the kernel's clock; 0 means never, in systemd.
    fn monotonic(&self, microseconds: Option<&&str>) -> Option<SystemTime> {
        let microseconds: u64 = microseconds?.parse().ok()?;
        let seconds = Duration::from_micros(microseconds).as_secs_f64();
        (microseconds != 0).then_some(self.ago(self.uptime - seconds)?)
    }

    fn wall(&self, seconds: f64) -> Option<SystemTime> {
        self.ago(self.wall - seconds)
    }

    fn booted(&self) -> Option<SystemTime> {
        self.ago(self.uptime)
    }

    fn ago(&self, seconds: f64) -> Option<SystemTime> {
        let ago = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
        self.now.checked_sub(ago)
    }
}

/// Reads the script's output, which can be anything.
fn read(text: &str, now: SystemTime) -> Option<BootProgress> {
    let sections = sections(text);
    let section = |name: &str| sections.get(name).copied().unwrap_or_default();
    let clock = Clock::read(section("clock"), now)?;
    let mut progress = BootProgress {
        seen: Seen::Agent,
        ..BootProgress::default()
    };
    let boot = properties(section("boot"));
    let userspace = clock.monotonic(boot.get("UserspaceTimestampMonotonic"));
    let finished = clock.monotonic(boot.get("FinishTimestampMonotonic"));
    // Who answers is a program: without systemd all that is known is that.
    let userspace = userspace.or_else(|| clock.booted())?;
    progress.stage(Stage::Kernel, clock.booted()?, Some(userspace));
    progress.stage(Stage::Userspace, userspace, finished);
    let active = |unit: &str| {
        let unit = properties(section(&format!("unit {unit}")));
        clock.monotonic(unit.get("ActiveEnterTimestampMonotonic"))
    };
    let online = active("network-online.target").or_else(|| active("network.target"));
    if let Some(began) = active("network-pre.target").or(online) {
        progress.stage(Stage::Network, began, online);
    }
    let status = Status::parse(section("status"));
    if let Some(status) = &status {
        progress.datasource = status.datasource();
        for (stage, times) in status.stages() {
            if let Some(began) = times.start.and_then(|start| clock.wall(start)) {
                let ended = times.finished.and_then(|finished| clock.wall(finished));
                progress.stage(stage, began, ended);
            }
        }
        cloud_init::failures(&mut progress, status, section("output"), section("log"));
    }
    let blank = |name: &str| section(name).trim().is_empty();
    let unit = properties(section("unit cloud-final.service"));
    let unknown = unit
        .get("LoadState")
        .is_some_and(|state| *state != "loaded");
    let no_cloud_init = blank("present") || !blank("disabled") || unknown;
    let last = progress
        .stages
        .iter()
        .find(|s| s.stage == Stage::CloudFinal);
    progress.ready = match last {
        Some(last) => last.ended,
        None if no_cloud_init && boot.is_empty() => Some(userspace),
        None if no_cloud_init => finished,
        None => None,
    };
    Some(progress)
}

fn sections(text: &str) -> HashMap<&str, &str> {
    // The mark is at a line's start; what a log says must not begin one.
    let parts = text.split("\n@@holm ");
    let named = parts.skip(1).filter_map(|part| part.split_once('\n'));
    let mut all = HashMap::new();
    for (name, body) in named {
        // The first of a name is the script's own.
        all.entry(name).or_insert(body);
    }
    all
}

fn properties(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: &str = "\n@@holm clock\n1000.5\n40.00 70.00\n\
        \n@@holm boot\nUserspaceTimestampMonotonic=3000000\nFinishTimestampMonotonic=0\n\
        \n@@holm unit network-pre.target\nLoadState=loaded\nActiveState=active\nActiveEnterTimestampMonotonic=8000000\n\
        \n@@holm unit network-online.target\nActiveEnterTimestampMonotonic=9000000\n\
        \n@@holm unit network.target\nActiveEnterTimestampMonotonic=8500000\n\
        \n@@holm unit cloud-final.service\nLoadState=loaded\nActiveState=failed\n\
        \n@@holm disabled\n\n@@holm present\n/usr/bin/cloud-init\n\
        \n@@holm status\n{\"v1\": {\"datasource\": \"DataSourceEc2Local\", \"stage\": null,\n\
         \"init-local\": {\"errors\": [], \"start\": 965.5, \"finished\": 967.5},\n\
         \"modules-final\": {\"errors\": [\"('scripts-user', RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands'))\"], \"start\": 990.5, \"finished\": 992.5}}}\n\
        \n@@holm output\nCloud-init v. 22 running 'modules:final' at\nboom\n\
        \n@@holm log\nFailed running /x/part-001 [3]\n\n@@holm end\n";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(5000)
    }

    /// Seconds before `now`.
    fn ago(time: Option<SystemTime>) -> Option<f64> {
        Some(now().duration_since(time?).unwrap().as_secs_f64())
    }

    #[test]
    fn an_answer_is_put_on_the_hosts_clock() {
        let progress = read(ANSWER, now()).unwrap();
        let stages: Vec<_> = progress
            .stages
            .iter()
            .map(|s| (s.stage, ago(Some(s.began)).unwrap(), ago(s.ended)))
            .collect();
        assert_eq!(
            stages,
            [
                (Stage::Kernel, 40.0, Some(37.0)),
                (Stage::Userspace, 37.0, None),
                (Stage::Network, 32.0, Some(31.0)),
                (Stage::CloudInitLocal, 35.0, Some(33.0)),
                (Stage::CloudFinal, 10.0, Some(8.0)),
            ]
        );
        assert_eq!(ago(progress.ready), Some(8.0));
        let [failure] = progress.failures.as_slice() else {
            panic!("{progress:?}")
        };
        assert_eq!(
            failure.to_string(),
            "cloud-final: a script of the user data failed: part-001 (status 3)\nboom"
        );
    }

    #[test]
    fn a_guest_without_cloud_init_is_ready_when_systemd_is() {
        let (head, _) = ANSWER.split_once("\n@@holm unit cloud-final").unwrap();
        let progress = read(head, now()).unwrap();
        assert_eq!(progress.ready, None);
        let up = head.replace(
            "FinishTimestampMonotonic=0",
            "FinishTimestampMonotonic=20000000",
        );
        assert_eq!(ago(read(&up, now()).unwrap().ready), Some(20.0));
        // Neither systemd nor cloud-init, as in a small guest with busybox.
        let small = read(
            "\n@@holm clock\n1000.%N\n40.00 70.00\n\n@@holm end\n",
            now(),
        )
        .unwrap();
        assert_eq!(ago(small.ready), Some(40.0));
        assert_eq!(read("no such thing", now()), None);
    }

    proptest! {
        #[test]
        fn nothing_that_an_agent_says_does_harm(cut in 0usize..2000, insert in "\\PC{0,30}", number: f64) {
            let mut edited: String = ANSWER.chars().take(cut).collect();
            edited += &insert;
            edited.extend(ANSWER.chars().skip(cut + insert.len()));
            read(&edited, now());
            for name in ["1000.5", "40.00", "965.5", "3000000"] {
                read(&ANSWER.replacen(name, &number.to_string(), 1), now());
            }
        }
    }
}
