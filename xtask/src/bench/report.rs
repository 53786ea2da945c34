//! Tables for people, JSON for programs.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::figures::Figures;
use super::sides::Side;
use super::{CPU, KERNEL, MORE};

/// Version of the JSON form.
const VERSION: u32 = 1;

/// All tables.
pub fn text(figures: &Figures) -> String {
    let mut text = String::new();
    for (title, workloads) in [
        ("CPU-bound, seconds (medians)", &CPU[..]),
        ("kernel-bound, seconds (medians)", &KERNEL[..]),
        ("memory bandwidth, seconds (medians)", &MORE[..]),
        (
            "user network, seconds for 1 GiB and for 10,000 round trips (medians)",
            &["net"],
        ),
        (
            "disks, seconds for 1 GiB and for 10,000 random reads (medians)",
            &["disk"],
        ),
    ] {
        group(&mut text, figures, title, workloads);
    }
    plain(
        &mut text,
        figures,
        "boot to the first user-space line, seconds (medians)",
        "boot",
    );
    if let (Some(holm), Some(tcg)) = (best(figures, Side::Holm), best(figures, Side::Tcg)) {
        line(
            &mut text,
            &format!("best of holm / best of tcg: {:.2}", holm / tcg),
        );
    }
    plain(
        &mut text,
        figures,
        "boot stages with all messages, seconds (medians)",
        "stages",
    );
    plain(
        &mut text,
        figures,
        "boot of debian, 2 vCPUs, 1 GiB, seconds (medians)",
        "login",
    );
    plain(
        &mut text,
        figures,
        "idle after boot, 256 MiB guest",
        "memory",
    );
    plain(
        &mut text,
        figures,
        "snapshots of debian, 4 GiB, 2 vCPUs (medians)",
        "snapshot",
    );
    plain(
        &mut text,
        figures,
        "two guests on a switch (tcg: on a socket), medians",
        "switch",
    );
    plain(
        &mut text,
        figures,
        "two independent processes, seconds until both are done",
        "smp",
    );
    for side in [Side::Holm, Side::Tcg] {
        if let Some(scaling) = scaling(figures, side) {
            line(
                &mut text,
                &format!("throughput of 2 vCPUs over 1 under {side}: {scaling:.2}"),
            );
        }
    }
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn group(text: &mut String, figures: &Figures, title: &str, workloads: &[&str]) {
    let names = figures.names(workloads);
    if names.is_empty() {
        return;
    }
    let cell = |value: Option<f64>, places: usize| match value {
        Some(value) => format!("{value:.places$}"),
        None => "-".into(),
    };
    line(text, &format!("\n{title}"));
    line(
        text,
        &format!(
            "{:<20} {:>9} {:>9} {:>9} {:>12} {:>10}",
            "", "native", "holm", "tcg", "holm/native", "tcg/holm"
        ),
    );
    let mut row = |name: &str, seconds: [Option<f64>; 3], ratios: [Option<f64>; 2]| {
        let [native, holm, tcg] = seconds.map(|s| cell(s, 3));
        let [slowdown, lead] = ratios.map(|r| cell(r, 2));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{name:<20} {native:>9} {holm:>9} {tcg:>9} {slowdown:>12} {lead:>10}"
        );
    };
    for name in names {
        row(
            name,
            [Side::Native, Side::Holm, Side::Tcg].map(|side| figures.median(name, side)),
            [
                figures.ratio(name, Side::Holm, Side::Native),
                figures.ratio(name, Side::Tcg, Side::Holm),
            ],
        );
    }
    row(
        "geometric mean",
        [None; 3],
        [
            figures.mean_ratio(workloads, Side::Holm, Side::Native),
            figures.mean_ratio(workloads, Side::Tcg, Side::Holm),
        ],
    );
}

fn plain(text: &mut String, figures: &Figures, title: &str, workload: &str) {
    let names = figures.names(&[workload]);
    if names.is_empty() {
        return;
    }
    line(text, &format!("\n{title}"));
    for name in names {
        let mut row = format!("{name:<36}");
        for side in [Side::Holm, Side::Tcg] {
            if let Some(value) = figures.median(name, side) {
                row.push_str(&format!(" {side:>6} {value:>8.2}"));
            }
        }
        line(text, &row);
    }
}

/// Fastest boot of a side.
fn best(figures: &Figures, side: Side) -> Option<f64> {
    figures
        .names(&["boot"])
        .iter()
        .filter_map(|name| figures.median(name, side))
        .min_by(f64::total_cmp)
}

fn scaling(figures: &Figures, side: Side) -> Option<f64> {
    Some(figures.median("pair on 1 vCPU", side)? / figures.median("pair on 2 vCPU", side)?)
}

/// Everything, with all single values.
///
/// # Errors
/// Never in practice.
pub fn json(figures: &Figures) -> Result<String> {
    let values: Vec<Value> = figures
        .all()
        .map(|(name, side, values)| {
            json!({
                "name": name,
                "side": side.to_string(),
                "median": figures.median(name, side),
                "values": values,
            })
        })
        .collect();
    let means = |workloads: &[&str]| {
        json!({
            "holm_over_native": figures.mean_ratio(workloads, Side::Holm, Side::Native),
            "tcg_over_holm": figures.mean_ratio(workloads, Side::Tcg, Side::Holm),
        })
    };
    Ok(serde_json::to_string_pretty(&json!({
        "version": VERSION,
        "values": values,
        "geometric_means": { "cpu": means(&CPU), "kernel": means(&KERNEL) },
        "boot": { "holm": best(figures, Side::Holm), "tcg": best(figures, Side::Tcg) },
        "smp": { "holm": scaling(figures, Side::Holm), "tcg": scaling(figures, Side::Tcg) },
        "wrong": figures.wrong(),
    }))?)
}
