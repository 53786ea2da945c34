//! The interpreter (and `native`) against the host CPU: every instruction form
//! that the corpus knows, with random and boundary values, operands in memory
//! that fault or cross pages included.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use iced_x86::{Code, EncodingKind, OpCodeOperandKind};
use support::Mode;
use support::case::{End, Executor, difference};
use support::corpus::Maker;
use support::forms;
use support::host::Host;
use support::soft::Interpreter;
use support::whole::Whole;

/// Cases of each form, unless time runs out first.
const CASES: usize = 40;
/// For one mode.
const TIME: Duration = Duration::from_secs(20);

/// The corpus is the same on every run, unless a soak asks for another.
fn seed() -> u64 {
    std::env::var("HOLM_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(0x484f_4c4d)
}

/// Compares two executors over the corpus; gives a report of differences.
fn compare(mode: Mode, a: &mut dyn Executor, b: &mut dyn Executor) -> Vec<String> {
    let forms = forms::forms(mode);
    let mut maker = Maker::new(mode, seed());
    let mut bad: BTreeMap<Code, (usize, String)> = BTreeMap::new();
    let (mut covered, mut cases, mut faults) = (vec![0usize; forms.len()], 0, 0);
    let started = Instant::now();
    let exact = a.is_exact() && b.is_exact();
    // With HOLM_TRACE the last case before a crash can be seen.
    let trace = std::env::var_os("HOLM_TRACE").is_some();
    'all: for _ in 0..CASES {
        for (n, code) in forms.iter().enumerate() {
            if started.elapsed() > TIME {
                break 'all;
            }
            let Some(case) = (0..8).find_map(|_| maker.make(*code)) else {
                continue;
            };
            if trace {
                eprintln!("{}", case.text());
            }
            let (x, y) = (a.run(&case), b.run(&case));
            cases += 1;
            covered[n] += 1;
            faults += usize::from(matches!(x.end, End::Fault(_)));
            if let Some(d) = difference(&case, &x, &y, exact) {
                let entry = bad.entry(*code).or_default();
                entry.0 += 1;
                if entry.0 == 1 {
                    entry.1 = format!("{}\n{d}", case.text());
                }
            }
        }
    }
    let missing: Vec<String> = forms
        .iter()
        .zip(&covered)
        .filter(|(_, n)| **n == 0)
        .map(|(c, _)| format!("{c:?}"))
        .collect();
    println!(
        "{mode:?}: {} against {}: {} of {} forms, {cases} cases, {faults} faults, {:.1} s; no case for: {}",
        a.name(),
        b.name(),
        forms.len() - missing.len(),
        forms.len(),
        started.elapsed().as_secs_f32(),
        missing.join(" "),
    );
    bad.into_iter()
        .map(|(code, (n, text))| format!("{code:?} ({n} times): {text}"))
        .collect()
}

/// Sequences of one mode.
const SEQUENCES: usize = 60_000;

/// As [`compare`], with sequences of instructions.
fn compare_sequences(mode: Mode, a: &mut dyn Executor, b: &mut dyn Executor) -> Vec<String> {
    let forms = forms::forms(mode);
    // Integer code mostly, as programs are.
    let plain: Vec<Code> = forms
        .iter()
        .copied()
        .filter(|c| c.op_code().encoding() == EncodingKind::Legacy && is_integer(*c))
        .collect();
    let mut maker = Maker::new(mode, !seed());
    let exact = a.is_exact() && b.is_exact();
    let mut report = Vec::new();
    let (mut cases, mut instructions) = (0, 0);
    let started = Instant::now();
    let trace = std::env::var_os("HOLM_TRACE").is_some();
    for n in 0..SEQUENCES {
        if started.elapsed() > TIME {
            break;
        }
        let of = if n % 4 == 0 { &forms } else { &plain };
        let Some(case) = maker.sequence(of, 2 + n % 7) else {
            continue;
        };
        if trace {
            eprintln!("{}", case.text());
        }
        let (x, y) = (a.run(&case), b.run(&case));
        cases += 1;
        instructions += case.instructions.len();
        if let Some(d) = difference(&case, &x, &y, exact) {
            report.push(format!("{} then {:x?}\n{d}", case.text(), x.end));
        }
    }
    println!(
        "{mode:?}: {} against {}: {cases} sequences, {instructions} instructions, {} differ, {:.1} s",
        a.name(),
        b.name(),
        report.len(),
        started.elapsed().as_secs_f32(),
    );
    report.truncate(20);
    report
}

fn is_integer(code: Code) -> bool {
    use OpCodeOperandKind as K;
    !code.op_code().op_kinds().iter().any(|k| {
        matches!(
            k,
            K::mm_reg | K::mm_or_mem | K::xmm_reg | K::xmm_or_mem | K::st0 | K::sti_opcode
        )
    })
}

/// The host's signal handlers serve one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn check(tested: &mut dyn Executor) {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut host = Host::new();
    let mut report = Vec::new();
    for mode in [Mode::Long, Mode::Compat] {
        if host.supports(mode) {
            report.extend(compare(mode, &mut host, tested));
            report.extend(compare_sequences(mode, &mut host, tested));
        } else {
            println!("{mode:?}: not on this host");
        }
    }
    assert!(
        report.is_empty(),
        "{} forms differ (host / {}):\n{}",
        report.len(),
        tested.name(),
        report.join("\n")
    );
}

#[test]
fn interpreter_agrees_with_the_host_cpu() {
    check(&mut Interpreter::new());
}

#[test]
fn engine_with_translator_agrees_with_the_host_cpu() {
    let mut engine = Whole::new();
    check(&mut engine);
    let entered = engine.counter("code_entries");
    assert!(
        entered > 10_000,
        "only {entered} entries of translated code"
    );
}
