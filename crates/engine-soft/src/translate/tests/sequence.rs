//! Random programs, run by the interpreter and by the translator (with a cold
//! and with a warm TLB): the same registers and memory at every fault and at
//! the end, and the same accesses to devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guest::{
    CODE, CODE_GPA, CODE_SIZE, DATA, DATA_SIZE, Guest, Heard, READ_ONLY, STACK, STACK_SIZE, Stop,
};
use super::sequence_make::{Generator, Program};
use super::support::{Mode, Random};
use parking_lot::Mutex;

use crate::core::Trap;
use crate::cpu::{Ymm, flag};

const TIME: Duration = Duration::from_secs(6);

/// A number that a soak may give by an environment variable.
fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok().and_then(|s| s.parse().ok());
    given.unwrap_or(default)
}

const FAULTS: usize = 6;
const BUDGET: u32 = 3000;

/// What can be seen of a run.
#[derive(Clone, PartialEq)]
struct Seen {
    /// At each fault: what, where, with which registers.
    #[allow(clippy::type_complexity)]
    faults: Vec<(Trap, u64, [u64; 16], [Ymm; 16], u32)>,
    stop: Stop,
    rip: u64,
    gpr: [u64; 16],
    rflags: u64,
    ymm: [Ymm; 16],
    mxcsr: u32,
    memory: Vec<u8>,
    bus: Vec<Heard>,
}

fn prepare(g: &mut Guest, p: &Program, code: &[u8]) {
    let mut rng = Random::new(p.memory);
    let mut fill = |g: &mut Guest, gpa: u64, n: u64| {
        let mut b = vec![0; n as usize];
        rng.fill(&mut b);
        g.core.ram.write(gpa, &b).unwrap();
    };
    fill(g, DATA - super::guest::BASE, DATA_SIZE);
    fill(g, READ_ONLY - super::guest::BASE, 4096);
    fill(g, STACK - super::guest::BASE, STACK_SIZE);
    let mut vectors = [0u8; 512];
    rng.fill(&mut vectors);
    g.put_code(p.start - super::guest::BASE, code);
    start(g, p);
    for (n, y) in g.core.cpu.ymm.iter_mut().enumerate() {
        y.0.copy_from_slice(&vectors[n * 32..n * 32 + 32]);
    }
    g.core.cpu.mxcsr = 0x1f80;
    g.bus.0.lock().clear();
}

fn start(g: &mut Guest, p: &Program) {
    g.core.cpu.gpr = p.gpr;
    g.core.cpu.rip = p.start;
    g.core.cpu.rflags = p.rflags;
}

/// Runs to the end; after a fault at the next instruction, with known flags.
fn run(g: &mut Guest, translated: bool) -> Seen {
    let mut faults = Vec::new();
    let mut budget = BUDGET;
    let stop = loop {
        let stop = if translated {
            g.translate()
        } else {
            g.interpret(&mut budget)
        };
        let c = &mut *g.core.cpu;
        let Stop::Trap(t) = stop else {
            break stop;
        };
        if c.cpl == 3 && g.bytes_at_halt() {
            break Stop::Halt;
        }
        let c = &mut *g.core.cpu;
        faults.push((t, c.rip, c.gpr, c.ymm, c.mxcsr));
        if faults.len() >= FAULTS {
            break stop;
        }
        c.rflags = c.rflags & !flag::STATUS | ((faults.len() as u64 * 0x95) & flag::STATUS);
        match g.core.decode_here() {
            Ok(i) => g.core.cpu.rip = i.next_ip(),
            Err(_) => break stop,
        }
    };
    let mut memory = g.bytes(DATA, DATA_SIZE + 4096);
    memory.extend(g.bytes(STACK, STACK_SIZE));
    memory.extend(g.bytes(CODE, CODE_SIZE));
    let faulted = matches!(stop, Stop::Trap(_));
    let c = &*g.core.cpu;
    Seen {
        stop,
        rip: c.rip,
        gpr: c.gpr,
        rflags: if faulted { 0 } else { c.rflags },
        ymm: c.ymm,
        mxcsr: c.mxcsr,
        memory,
        bus: g.bus.0.lock().clone(),
        faults,
    }
}

impl Guest {
    /// `hlt` is privileged: at CPL 3 a program ends with its #GP.
    fn bytes_at_halt(&self) -> bool {
        let gpa = self.core.cpu.rip.wrapping_sub(super::guest::BASE);
        let mut b = [0];
        self.core.ram.read(gpa, &mut b).is_ok() && b[0] == 0xf4
    }
}

fn describe(a: &Seen, b: &Seen) -> String {
    let mut s = format!(
        "  stop {:?} / {:?}, rip {:#x} / {:#x}\n",
        a.stop, b.stop, a.rip, b.rip
    );
    let regs = |s: &mut String, x: &[u64; 16], y: &[u64; 16]| {
        for n in 0..16 {
            if x[n] != y[n] {
                *s += &format!("  r{n} (encoding order) {:#x} / {:#x}\n", x[n], y[n]);
            }
        }
    };
    for (n, (x, y)) in a.faults.iter().zip(&b.faults).enumerate() {
        if x != y {
            s += &format!(
                "  fault {n}: {:x?} at {:#x} / {:x?} at {:#x}\n",
                x.0, x.1, y.0, y.1
            );
            regs(&mut s, &x.2, &y.2);
            break;
        }
    }
    s += &format!("  faults {} / {}\n", a.faults.len(), b.faults.len());
    regs(&mut s, &a.gpr, &b.gpr);
    if a.rflags != b.rflags {
        s += &format!("  rflags {:#x} / {:#x}\n", a.rflags, b.rflags);
    }
    if a.ymm != b.ymm || a.mxcsr != b.mxcsr {
        let n = a.ymm.iter().zip(&b.ymm).position(|(x, y)| x != y);
        s += &format!("  ymm {n:?}, mxcsr {:#x} / {:#x}\n", a.mxcsr, b.mxcsr);
    }
    if let Some(n) = a.memory.iter().zip(&b.memory).position(|(x, y)| x != y) {
        s += &format!("  memory[{n:#x}] {:#x} / {:#x}\n", a.memory[n], b.memory[n]);
    }
    if a.bus != b.bus {
        s += &format!("  bus {:x?} / {:x?}\n", a.bus, b.bus);
    }
    s
}

struct Pair {
    changing: bool,
    soft: Guest,
    jit: Guest,
    watchdog: Watchdog,
}

/// Ends the test with the program at hand if that runs for seconds: endless
/// exits are failures too.
struct Watchdog(Arc<Mutex<(Instant, Option<Program>)>>);

impl Watchdog {
    fn new() -> Self {
        let state = Arc::new(Mutex::new((Instant::now(), None::<Program>)));
        let seen = Arc::downgrade(&state);
        std::thread::spawn(move || {
            while let Some(state) = seen.upgrade() {
                if let (since, Some(p)) = &*state.lock()
                    && since.elapsed() > Duration::from_secs(10)
                {
                    eprintln!("endless:\n{}", p.listing());
                    std::process::abort();
                }
                drop(state);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self(state)
    }

    fn watch(&self, p: Option<&Program>) {
        *self.0.lock() = (Instant::now(), p.cloned());
    }
}

impl Pair {
    fn new(cpl: u8, mode: Mode, changing: bool) -> Self {
        let (mut soft, mut jit) = (Guest::new(cpl), Guest::new(cpl));
        jit.core.jit.make_warm();
        for g in [&mut soft, &mut jit] {
            g.enter(cpl, mode);
            // Programs may run astray; they shall not change code there.
            for page in (0..CODE_SIZE).step_by(4096) {
                g.map(CODE + page, CODE_GPA + page, if changing { 7 } else { 5 });
            }
            g.put_code(CODE_GPA, &[0xf4; CODE_SIZE as usize]);
        }
        Self {
            changing,
            soft,
            jit,
            watchdog: Watchdog::new(),
        }
    }

    /// The difference, if there is one; `Err`: the program is no good.
    fn differs(&mut self, p: &Program) -> Result<Option<String>, ()> {
        let code = p.encode().ok_or(())?;
        if code.len() > 0x2000 {
            return Err(());
        }
        if self.changing {
            self.soft.put_code(CODE_GPA, &[0xf4; CODE_SIZE as usize]);
        }
        prepare(&mut self.soft, p, &code);
        let a = run(&mut self.soft, false);
        if a.stop == Stop::TooLong {
            // What the next programs may run into is the same for both.
            self.jit.put_code(p.start - super::guest::BASE, &code);
            return Err(());
        }
        self.jit.core.tlb_flush_all();
        for pass in ["cold TLB", "warm TLB"] {
            prepare(&mut self.jit, p, &[]);
            if self.changing {
                self.jit.put_code(CODE_GPA, &[0xf4; CODE_SIZE as usize]);
            }
            if self.changing || pass == "cold TLB" {
                self.jit.put_code(p.start - super::guest::BASE, &code);
            }
            self.watchdog.watch(Some(p));
            let b = self.jit.on_thread(|g| run(g, true));
            self.watchdog.watch(None);
            if a != b {
                return Ok(Some(format!("{pass}:\n{}", describe(&a, &b))));
            }
        }
        Ok(None)
    }

    /// The smallest program that still differs.
    fn shrink(&mut self, mut p: Program) -> (Program, String) {
        let mut text = String::new();
        loop {
            let mut smaller = false;
            let mut n = 0;
            while n < p.ops.len() {
                let mut q = p.clone();
                q.ops.remove(n);
                match self.differs(&q) {
                    Ok(Some(t)) => {
                        (p, text, smaller) = (q, t, true);
                    }
                    _ => n += 1,
                }
            }
            if !smaller {
                if text.is_empty() {
                    text = self.differs(&p).ok().flatten().unwrap_or_default();
                }
                return (p, text);
            }
        }
    }
}

fn programs(cpl: u8, mode: Mode, seed: u64, changing: bool) {
    let _alone = super::ONE_AT_A_TIME.lock();
    let started = Instant::now();
    let short = if mode == Mode::Long { 1 } else { 2 };
    let time = Duration::from_secs(setting("HOLM_SECONDS", TIME.as_secs() / short));
    let seed = seed ^ setting("HOLM_SEED", 0) << 20;
    let mut pair = Pair::new(cpl, mode, changing);
    let mut make = Generator::new(seed, mode);
    make.changing = changing;
    let (mut n, mut skipped) = (0, 0);
    let mut failures = Vec::new();
    while started.elapsed() < time && failures.len() < 5 {
        let p = make.program();
        match pair.differs(&p) {
            Err(()) => skipped += 1,
            Ok(None) => n += 1,
            Ok(Some(_)) => {
                let (small, text) = pair.shrink(p);
                failures.push(format!("{}{text}", small.listing()));
            }
        }
    }
    let code = &pair.jit.core.shared.code;
    println!(
        "{mode:?}, CPL {cpl}, changing {changing}: {n} programs, {skipped} skipped, {} blocks, {} dropped, {} times emptied, {:.1} s",
        code.translated_blocks
            .load(std::sync::atomic::Ordering::Relaxed),
        code.invalidated_blocks
            .load(std::sync::atomic::Ordering::Relaxed),
        code.generation() - 1,
        started.elapsed().as_secs_f32()
    );
    assert!(
        failures.is_empty(),
        "interpreter / translator differ (after {n} good programs):\n{}",
        failures.join("\n")
    );
    assert!(n > 1000, "{n} programs in {time:?} is too few");
}

#[test]
fn kernel_programs_agree() {
    programs(0, Mode::Long, 0x5e91, false);
}

#[test]
fn user_programs_agree() {
    programs(3, Mode::Long, 0x5e92, false);
}

#[test]
fn programs_of_32_bit_code_agree() {
    programs(3, Mode::Compat, 0x5e95, false);
    programs(0, Mode::Compat, 0x5e96, true);
}

#[test]
fn programs_that_change_their_code_agree() {
    programs(0, Mode::Long, 0x5e93, true);
}

#[test]
fn programs_agree_while_the_cache_fills_up() {
    crate::translate::cache::ROOM.set(48 << 10);
    programs(3, Mode::Long, 0x5e94, true);
    crate::translate::cache::ROOM.set(24 << 20);
}
