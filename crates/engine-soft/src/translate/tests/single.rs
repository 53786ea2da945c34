//! Every instruction form of the corpus, translated, against the interpreter
//! and against the host CPU.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iced_x86::Code;

use super::support::case::{Case, End, Executor, Outcome, difference};
use super::support::corpus::Maker;
use super::support::forms::forms;
use super::support::host::Host;
use super::support::soft::{Interpreter, load, outcome};
use super::support::{CODE, CODE_GPA, Mode, guest};
use crate::core::{Core, Trap};
use crate::translate::classify::{classify, flags};
use crate::translate::dispatch::Next;

const CASES: usize = 60;
const TIME: Duration = Duration::from_secs(25);
const HALT: u8 = 0xf4;

/// The translator as an executor: the instruction is translated before it is
/// run for the first time, with `hlt` all around it.
struct Translated {
    mode: Mode,
    core: Core,
    stack: Vec<u8>,
    blocks: u64,
    interpreted: u64,
}

impl Translated {
    fn new(mode: Mode) -> Self {
        let mut core = guest(mode, 3);
        core.jit.make_warm();
        core.ram.write(CODE_GPA, &[HALT; 4096]).unwrap();
        Self {
            mode,
            core,
            stack: vec![0; 64 << 10],
            blocks: 0,
            interpreted: 0,
        }
    }

    fn at_halt(&self) -> bool {
        let mut b = [0];
        let gpa = self.core.cpu.rip.wrapping_sub(CODE - CODE_GPA);
        self.core.cpu.rip != CODE && self.core.ram.read(gpa, &mut b).is_ok() && b[0] == HALT
    }

    fn go(&mut self) -> End {
        loop {
            let trap = match self.core.run_translated() {
                Ok(Next::Check) if self.core.translatable() => continue,
                Ok(_) => {
                    self.interpreted += 1;
                    match self.core.step_one() {
                        Ok(()) => continue,
                        Err(t) => t,
                    }
                }
                Err(t) => t,
            };
            return match trap {
                // `hlt` is privileged.
                Trap::Fault(e) if e.vector == 13 && self.at_halt() => End::Next(self.core.cpu.rip),
                // The next instruction's fetch.
                Trap::Fault(_) if self.core.cpu.rip != CODE => End::Next(self.core.cpu.rip),
                Trap::Fault(e) => End::Fault(e),
                _ => End::Unknown,
            };
        }
    }
}

impl Executor for Translated {
    fn name(&self) -> &'static str {
        "translator"
    }

    fn supports(&self, mode: Mode) -> bool {
        mode == self.mode
    }

    fn run(&mut self, case: &Case) -> Outcome {
        self.core.ram.write(CODE_GPA, &[HALT; 16]).unwrap();
        load(&mut self.core, case);
        self.core.code_written(CODE_GPA, 16);
        crate::translate::fault::use_signal_stack(&mut self.stack).unwrap();
        crate::translate::enter::point_gs(self.core.cpu.as_ptr()).unwrap();
        crate::native::enter_thread(&mut self.core);
        let before = self.count();
        let end = self.go();
        self.blocks += u64::from(self.count() > before);
        crate::native::leave_thread(&mut self.core);
        crate::translate::fault::drop_signal_stack();
        let mut out = outcome(&mut self.core, case, end);
        if let End::Fault(_) = end {
            // Flags that the instruction overwrites are not kept for a fault.
            let (read, killed) = flags(&case.instructions[0], classify(&case.instructions[0]));
            if read | 0x3f & !killed == 0 {
                out.rflags = out.rflags & !0x8d5 | case.rflags & 0x8d5;
            }
        }
        out
    }
}

impl Translated {
    fn count(&self) -> u64 {
        self.core
            .shared
            .code
            .translated_blocks
            .load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn compare(
    mode: Mode,
    other: &mut dyn Executor,
    seed: u64,
    numbers: &[u32],
    cases: usize,
) -> Vec<String> {
    let mut jit = Translated::new(mode);
    let forms = forms(mode);
    let mut maker = Maker::new(mode, seed).with_registers(numbers);
    let mut bad: BTreeMap<Code, (usize, String)> = BTreeMap::new();
    let (mut n, mut faults) = (0u64, 0);
    let started = Instant::now();
    'all: for _ in 0..cases {
        for code in &forms {
            if started.elapsed() > TIME {
                break 'all;
            }
            let Some(case) = (0..8).find_map(|_| maker.make(*code)) else {
                continue;
            };
            if std::env::var_os("TRACE").is_some() {
                eprintln!("{}", case.text());
            }
            let x = other.run(&case);
            let y = jit.run(&case);
            n += 1;
            faults += usize::from(matches!(x.end, End::Fault(_)));
            if let Some(d) = difference(&case, &x, &y, false) {
                let entry = bad.entry(*code).or_default();
                entry.0 += 1;
                if entry.0 == 1 {
                    entry.1 = format!("{}\n{d}", case.text());
                }
            }
        }
    }
    println!(
        "{mode:?}: {} against translator: {n} cases, {faults} faults, {} in translated blocks, {:.1} s",
        other.name(),
        jit.blocks,
        started.elapsed().as_secs_f32()
    );
    assert!(
        n > 1000 && jit.blocks * 10 > n * 9,
        "too few cases were translated"
    );
    bad.into_iter()
        .map(|(code, (n, text))| format!("{code:?} ({n} times): {text}"))
        .collect()
}

fn report(bad: &[String]) {
    assert!(
        bad.is_empty(),
        "{} forms differ (other / translator):\n{}",
        bad.len(),
        bad.join("\n")
    );
}

#[test]
fn every_form_agrees_with_the_interpreter() {
    let _alone = super::ONE_AT_A_TIME.lock();
    for mode in [Mode::Long, Mode::Compat] {
        let mut interpreter = Interpreter::new();
        report(&compare(mode, &mut interpreter, 0x4a49_5431, &[], CASES));
    }
}

#[test]
fn spilled_and_special_registers_agree_with_the_interpreter() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let numbers = [14, 15, 14, 15, 12, 13, 4, 5, 0, 1, 3, 14, 15];
    report(&compare(
        Mode::Long,
        &mut Interpreter::new(),
        0x4a49_5432,
        &numbers,
        CASES,
    ));
}

#[test]
fn every_form_agrees_with_the_host_cpu() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let mut host = Host::new();
    for mode in [Mode::Long, Mode::Compat] {
        if host.supports(mode) {
            report(&compare(mode, &mut host, 0x4a49_5433, &[], CASES / 2));
        }
    }
}
