//! `holm doctor`: what this host offers, each thing tried and not looked up
//! where that is possible.

mod host;
mod site;

use clap::Args;
use engine_kvm::KvmVerdict;
use serde::Serialize;

use crate::engine_choice;
use crate::exit_code;
use crate::form::{self, Output};

/// Version of the JSON form.
const VERSION: u32 = 1;

/// What was found out about one thing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name, for programs.
    name: &'static str,
    /// Whether Holm can use it.
    usable: bool,
    /// How it was found out, and what to do where it is not usable.
    detail: String,
    /// What Holm uses it for.
    purpose: &'static str,
}

fn finding(name: &'static str, purpose: &'static str, result: Result<String, String>) -> Finding {
    let usable = result.is_ok();
    let detail = result.unwrap_or_else(|reason| reason);
    Finding {
        name,
        usable,
        detail,
        purpose,
    }
}

#[derive(Serialize)]
struct Engine {
    auto: &'static str,
    reason: String,
}

#[derive(Serialize)]
struct Kvm {
    usable: bool,
    reason: String,
    api_version: Option<i32>,
    guest_mips: Option<f64>,
    native_mips: Option<f64>,
}

impl From<KvmVerdict> for Kvm {
    fn from(verdict: KvmVerdict) -> Self {
        let KvmVerdict {
            usable,
            runs: _,
            reason,
            api_version,
            guest_mips,
            native_mips,
        } = verdict;
        Self {
            usable,
            reason,
            api_version,
            guest_mips,
            native_mips,
        }
    }
}

#[derive(Serialize)]
struct Report {
    version: u32,
    holm: &'static str,
    engine: Engine,
    kvm: Kvm,
    cpu: host::Cpu,
    host: Vec<Finding>,
    /// Of the daemon of the state directory.
    daemon: Vec<Finding>,
}

/// `holm doctor`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Prints the report; its status is that of the printing.
pub fn run(arguments: &Arguments) -> u8 {
    let verdict = engine_kvm::probe();
    let (kind, reason) = engine_choice::auto(&verdict);
    let report = Report {
        version: VERSION,
        holm: env!("CARGO_PKG_VERSION"),
        engine: Engine {
            auto: kind.name(),
            reason,
        },
        kvm: verdict.into(),
        cpu: host::cpu(),
        host: host::findings(),
        daemon: site::findings(),
    };
    form::print(arguments.output, &report, || text(&report));
    exit_code::SUCCESS
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "engine: auto takes {}: {}\n\nKVM: {}: {}\n",
        report.engine.auto,
        report.engine.reason,
        if report.kvm.usable {
            "usable"
        } else {
            "not usable"
        },
        report.kvm.reason,
    );
    let cpu = &report.cpu;
    text.push_str(&format!(
        "CPU: {} ({}), {} threads, {}\n     {}\n\n",
        cpu.model,
        cpu.vendor,
        cpu.threads,
        cpu.level,
        cpu.features
            .iter()
            .map(|f| format!("{}{}", if f.present { "" } else { "no " }, f.name))
            .collect::<Vec<_>>()
            .join(", "),
    ));
    let all = report.host.iter().map(Some);
    for finding in all.chain([None]).chain(report.daemon.iter().map(Some)) {
        let Some(finding) = finding else {
            text.push_str("\nFor a daemon (--state, HOLM_STATE):\n");
            continue;
        };
        text.push_str(&format!(
            "{:<3} {:<18} {}\n    {:<18} for {}\n",
            if finding.usable { "yes" } else { "no" },
            finding.name,
            finding.detail,
            "",
            finding.purpose,
        ));
    }
    text
}
