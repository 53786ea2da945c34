//! What cloud-init writes of itself: `status.json`, and its output.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::progress::{BootProgress, Failure, Stage, one_line, printable};

/// Most failures of one stage that are told.
const MOST_ERRORS: usize = 8;
/// Most warnings.
const MOST_WARNINGS: usize = 20;

/// `/run/cloud-init/status.json`.
#[derive(Debug, Default, Deserialize)]
pub struct Status {
    v1: BTreeMap<String, Part>,
}

/// Beside the stages there are texts, numbers and things of later versions.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Part {
    Stage(StageStatus),
    Text(String),
    Other(serde::de::IgnoredAny),
}

/// One stage of it; times are in seconds since 1970 by the guest's clock.
#[derive(Debug, Deserialize)]
pub struct StageStatus {
    #[serde(default)]
    errors: Vec<String>,
    /// When it began.
    pub start: Option<f64>,
    /// When it ended.
    pub finished: Option<f64>,
}

impl Status {
    /// `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Its datasource.
    pub fn datasource(&self) -> Option<String> {
        let Part::Text(text) = self.v1.get("datasource")? else {
            return None;
        };
        // Newer ones add where they found it: `DataSourceNoCloud [seed=/dev/vdb]`.
        Some(one_line(text.split_whitespace().next()?))
    }

    /// Stages that began.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, &StageStatus)> {
        self.v1.iter().filter_map(|(name, part)| match part {
            Part::Stage(status) => Some((Stage::of_cloud_init(name)?, status)),
            _ => None,
        })
    }
}

/// Adds what went wrong. `output` is `/var/log/cloud-init-output.log`, `log`
/// the warnings of `/var/log/cloud-init.log`; the ends of both.
pub fn failures(progress: &mut BootProgress, status: &Status, output: &str, log: &str) {
    for (stage, status) in status.stages() {
        for error in status.errors.iter().take(MOST_ERRORS) {
            progress.failures.push(Failure {
                stage,
                what: explain(error, log),
                output: printable(of_stage(output, stage)),
            });
        }
    }
    warnings(progress, log);
}

/// Lines of a log that are warnings.
pub fn warnings(progress: &mut BootProgress, log: &str) {
    let lines = log.lines().filter(|line| line.contains("[WARNING]"));
    // The level says nothing new.
    let text = |line: &str| one_line(line.split("[WARNING]: ").nth(1).unwrap_or(line));
    for line in lines {
        let text = text(line);
        if progress.warnings.len() < MOST_WARNINGS && !progress.warnings.contains(&text) {
            progress.warnings.push(text);
        }
    }
}

/// An error such as `('scripts-user', RuntimeError('Runparts: 1 failures
/// (part-001) in 1 attempted commands'))`, with the status of the script from
/// a line `Failed running …/part-001 [7]` of the log.
fn explain(error: &str, log: &str) -> String {
    let scripts = error
        .contains("scripts-user")
        .then(|| between(error, "failures (", ")"));
    let Some(scripts) = scripts.flatten() else {
        return one_line(error);
    };
    let each = scripts.split(',').take(MOST_ERRORS).map(|script| {
        let script = script.trim();
        let line = format!("/{script} [");
        let status = log
            .lines()
            .rev()
            .filter(|l| l.contains("Failed running"))
            .find_map(|l| between(l, &line, "]"));
        match status.and_then(|status| status.parse::<i32>().ok()) {
            Some(status) => format!("{script} (status {status})"),
            None => script.to_owned(),
        }
    });
    let each: Vec<String> = each.collect();
    one_line(&format!(
        "a script of the user data failed: {}",
        each.join(", ")
    ))
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

/// What was printed in a stage, the last time that it ran.
fn of_stage(output: &str, stage: Stage) -> &str {
    let name = match stage {
        Stage::CloudInitLocal => "running 'init-local'",
        Stage::CloudInit => "running 'init'",
        Stage::CloudConfig => "running 'modules:config'",
        _ => "running 'modules:final'",
    };
    let after = match output.rfind(name) {
        Some(at) => output.get(at..).unwrap_or_default(),
        None => output,
    };
    let after = after.split_once('\n').map_or("", |(_, rest)| rest);
    let end = [after.find("Cloud-init v."), after.find("\nci-info: ")];
    let end = end.into_iter().flatten().min().unwrap_or(after.len());
    after.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = r#"{"v1": {"datasource": "DataSourceEc2Local", "stage": null,
        "extended_status": "error", "new": {"a": 1}, "number": 7,
        "init-local": {"errors": [], "start": 10.5, "finished": 12.0},
        "modules-final": {"errors": ["('scripts-user', RuntimeError('Runparts: 2 failures (part-001,part-003) in 3 attempted commands'))"], "start": 20.0, "finished": null}}}"#;
    const OUTPUT: &str = "Cloud-init v. 22.4.2 running 'modules:final' at Fri. Up 3 seconds.\nold\n\
        Cloud-init v. 22.4.2 running 'modules:final' at Sat. Up 3 seconds.\nE: no such package\x1b[2J\n\
        ci-info: no authorized keys\nCloud-init v. 22.4.2 finished at Sat.\n";
    const LOG: &str = "2026-11-21 10:42:22,947 - subp.py[DEBUG]: Failed running /var/lib/cloud/instance/scripts/part-001 [7]\n\
        2026-11-21 10:42:22,947 - util.py[WARNING]: something odd\n\
        2026-11-21 10:42:23,947 - util.py[WARNING]: something odd\n";

    #[test]
    fn a_failing_script_is_told_with_its_status_and_output() {
        let status = Status::parse(STATUS).unwrap();
        assert_eq!(status.datasource().as_deref(), Some("DataSourceEc2Local"));
        assert_eq!(status.stages().count(), 2);
        let mut progress = BootProgress::default();
        failures(&mut progress, &status, OUTPUT, LOG);
        let [failure] = progress.failures.as_slice() else {
            panic!("{progress:?}")
        };
        assert_eq!(
            failure.to_string(),
            "cloud-final: a script of the user data failed: part-001 (status 7), part-003\n\
             E: no such package?[2J"
        );
        assert_eq!(progress.warnings, ["something odd"]);
    }

    #[test]
    fn what_is_no_status_is_none() {
        for bad in ["", "{}", "[]", "{\"v1\": 3}", "{\"v1\": {\"init\": "] {
            assert!(Status::parse(bad).is_none(), "{bad}");
        }
    }
}
