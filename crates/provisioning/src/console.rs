//! The serial console, for what the agent has not said yet or never will: the
//! kernel's end, systemd's emergency mode, and cloud-init's own messages.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::progress::{BootProgress, Failure, Seen, Stage, one_line, printable};

/// Bytes of the log's end that are read.
const TAIL: u64 = 256 << 10;

/// After which the guest does not go on by itself, and in which stage.
const ENDS: [(&str, Stage); 6] = [
    ("Kernel panic - not syncing", Stage::Kernel),
    ("Gave up waiting for root file system device", Stage::Kernel),
    ("(initramfs)", Stage::Kernel),
    ("You are in emergency mode", Stage::Userspace),
    ("You are in rescue mode", Stage::Userspace),
    ("Failed to execute shell, freezing", Stage::Userspace),
];

/// What the console says of a boot that began at `started`.
pub fn read(log: &Path, started: SystemTime) -> BootProgress {
    match tail(log) {
        Ok(bytes) if !bytes.is_empty() => parse(&String::from_utf8_lossy(&bytes), started),
        _ => BootProgress::default(),
    }
}

fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(text: &str, started: SystemTime) -> BootProgress {
    // A guest that restarts writes on.
    let text = ["Linux version ", "running 'init-local'"]
        .iter()
        .filter_map(|first| text.rfind(first))
        .min()
        .and_then(|at| text.get(line_start(text, at)..))
        .unwrap_or(text);
    let mut progress = BootProgress {
        seen: Seen::Console,
        ..BootProgress::default()
    };
    let after = |seconds: f64| {
        let after = Duration::try_from_secs_f64(seconds).ok()?;
        started.checked_add(after)
    };
    let userspace = text.lines().find(|line| is_userspace(line));
    let userspace = userspace.map(|line| stamp(line).and_then(after).unwrap_or(started));
    progress.stage(Stage::Kernel, started, userspace);
    if let Some(began) = userspace {
        progress.stage(Stage::Userspace, began, None);
    }
    cloud_init(&mut progress, text, &after);
    crate::cloud_init::warnings(&mut progress, text);
    for (words, stage) in ENDS {
        if let Some(at) = text.find(words) {
            let line = text.get(line_start(text, at)..).unwrap_or_default();
            progress.failures.push(Failure {
                stage,
                what: one_line(line.lines().next().unwrap_or_default()),
                output: printable(text),
            });
            break;
        }
    }
    progress
}

/// Lines such as `Cloud-init v. 22.4.2 running 'init' at Sat, 21 Nov 2026
/// 10:42:13 +0000. Up 22.37 seconds.`
fn cloud_init(progress: &mut BootProgress, text: &str, after: &impl Fn(f64) -> Option<SystemTime>) {
    let mut running: Option<(Stage, SystemTime)> = None;
    for line in text.lines().filter(|line| line.contains("Cloud-init v.")) {
        let Some(at) = up(line).and_then(after) else {
            continue;
        };
        let name = line.split('\'').nth(1).unwrap_or_default();
        let next = Stage::of_cloud_init(&name.replace(':', "-"));
        let finished = line.contains(" finished at ");
        if next.is_none() && !finished {
            continue;
        }
        if let Some((stage, began)) = running.take() {
            progress.stage(stage, began, Some(at));
        }
        running = next.map(|stage| (stage, at));
        if finished {
            progress.ready = Some(at);
            let source = line.split("Datasource ").nth(1);
            let source = source.and_then(|rest| rest.split(['.', ' ']).next());
            progress.datasource = source.map(one_line);
        }
    }
    if let Some((stage, began)) = running {
        progress.stage(stage, began, None);
    }
    failed_modules(progress, text);
}

/// `… - util.py[WARNING]: Running module scripts-user (<module …>) failed`.
fn failed_modules(progress: &mut BootProgress, text: &str) {
    let failed = |line: &&str| line.contains("Running module ") && line.ends_with("failed");
    for line in text.lines().filter(failed).take(8) {
        let module = line.split("Running module ").nth(1).unwrap_or_default();
        let module = one_line(module.split(' ').next().unwrap_or_default());
        let what = match module.as_str() {
            "scripts-user" => "a script of the user data failed".into(),
            module => format!("cloud-init's module {module} failed"),
        };
        let stage = match progress.stages.last().map(|last| last.stage) {
            Some(stage) if stage >= Stage::CloudInitLocal => stage,
            _ => Stage::CloudFinal,
        };
        progress.failures.push(Failure {
            stage,
            what,
            output: printable(&said(text)),
        });
    }
}

/// What cloud-init's last stage printed, without the prefix of each line.
fn said(text: &str) -> String {
    let from = text.rfind("running 'modules:").unwrap_or(0);
    let rest = text.get(from..).unwrap_or_default();
    let lines = rest.lines().skip(1).filter_map(|line| {
        let (_, said) = line.split_once("cloud-init[")?;
        Some(said.split_once("]: ")?.1)
    });
    let lines: Vec<&str> = lines
        .take_while(|line| !line.contains("Cloud-init v."))
        .collect();
    lines.join("\n")
}

fn is_userspace(line: &str) -> bool {
    [
        "systemd[1]:",
        "Welcome to ",
        "Run /init as init",
        "cloud-init[",
        " login:",
    ]
    .iter()
    .any(|words| line.contains(words))
}

/// The kernel's clock at a line's start: `[   31.375374] …`.
fn stamp(line: &str) -> Option<f64> {
    let inner = line.trim_start().strip_prefix('[')?.split(']').next()?;
    inner.trim().parse().ok()
}

fn up(line: &str) -> Option<f64> {
    let rest = line.rsplit("Up ").next()?;
    rest.split(' ').next()?.parse().ok()
}

fn line_start(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or_default();
    before.rfind('\n').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOT: &str = "\
[    0.000000] Linux version 6.1.0\r\n\
[    1.500000] systemd[1]: systemd 252 running in system mode\r\n\
[    3.100000] cloud-init[200]: Cloud-init v. 22.4.2 running 'init-local' at Sat, 21 Nov 2026 10:42:03 +0000. Up 3.00 seconds.\r\n\
[    5.100000] cloud-init[366]: Cloud-init v. 22.4.2 running 'init' at Sat, 21 Nov 2026 10:42:05 +0000. Up 5.00 seconds.\r\n\
[    7.100000] cloud-init[440]: Cloud-init v. 22.4.2 running 'modules:config' at Sat. Up 7.00 seconds.\r\n\
[    8.100000] cloud-init[466]: Cloud-init v. 22.4.2 running 'modules:final' at Sat. Up 8.00 seconds.\r\n\
\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: [   31.595412] cloud-init[466]: user-data ran as root\r\n\
[   31.597251] cloud-init[466]: to-stderr\r\n\
[   31.613196] cloud-init[466]: 2026 - cc_scripts_user.py[WARNING]: Failed to run module scripts-user (scripts in /x)\r\n\
[   31.613995] cloud-init[466]: 2026 - util.py[WARNING]: Running module scripts-user (<module 'x' from '/y'>) failed\r\n\
[   32.165735] cloud-init[466]: Cloud-init v. 22.4.2 finished at Sat. Datasource DataSourceEc2Local.  Up 9.50 seconds\r\n";

    fn at(seconds: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_console_tells_the_stages_and_a_failure() {
        let earlier = format!("{}{BOOT}", BOOT.replace("finished", "finished long ago"));
        let progress = parse(&earlier, at(0.0));
        let stages: Vec<String> = progress
            .stages
            .iter()
            .map(|s| s.stage.to_string())
            .collect();
        assert_eq!(
            stages.join(" "),
            "kernel userspace cloud-init-local cloud-init cloud-config cloud-final"
        );
        assert_eq!(progress.stages[0].ended, Some(at(1.5)));
        assert_eq!(progress.stages[3].began, at(5.0));
        assert_eq!(progress.stages[3].ended, Some(at(7.0)));
        assert_eq!(progress.ready, Some(at(9.5)));
        assert_eq!(progress.datasource.as_deref(), Some("DataSourceEc2Local"));
        let [failure] = progress.failures.as_slice() else {
            panic!("{progress:?}")
        };
        assert_eq!(failure.what, "a script of the user data failed");
        assert!(
            failure
                .output
                .starts_with("user-data ran as root\nto-stderr\n"),
            "{failure}"
        );
        assert!(progress.is_over());
    }

    #[test]
    fn a_panic_ends_the_boot() {
        let text = "[    0.000000] Linux version 6.1.0\n\
            [    2.1] Kernel panic - not syncing: VFS: Unable to mount root fs\n[    2.2] more\n";
        let progress = parse(text, at(0.0));
        assert!(progress.is_over());
        assert_eq!(progress.ready, None);
        assert!(
            progress.failures[0]
                .what
                .contains("Unable to mount root fs"),
            "{progress:?}"
        );
        assert_eq!(
            read(Path::new("/nowhere/serial"), at(0.0)).seen,
            Seen::Nothing
        );
    }

    proptest! {
        #[test]
        fn nothing_that_a_guest_prints_does_harm(text in "\\PC*", cut in 0usize..2000, insert in "\\PC{0,20}") {
            parse(&text, at(0.0));
            let mut edited: String = BOOT.chars().take(cut).collect();
            edited += &insert;
            edited.extend(BOOT.chars().skip(cut + insert.len()));
            parse(&edited, at(0.0));
        }
    }
}
