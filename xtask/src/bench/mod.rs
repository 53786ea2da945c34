//! `cargo xtask bench`: the same guest and workloads under Holm, under QEMU's
//! TCG and natively, in turn. On a shared machine only ratios of one run count.

mod build;
mod debian;
mod disk;
mod figures;
mod net;
mod report;
mod sides;
mod snapshot;
mod switch;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::host::{self, Need};
use crate::image::{self, Name};
use crate::up;
use figures::Figures;
use sides::{Side, Sides};
use switch::Switch;

const NEEDS: &[Need] = &[
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "compare with QEMU's TCG (benchmark only)",
    },
    Need {
        program: "fio",
        package: "fio",
        purpose: "measure the host's disk (benchmark only)",
    },
    Need {
        program: "make",
        package: "make",
        purpose: "build the workloads (benchmark only)",
    },
    Need {
        program: "lz4",
        package: "lz4",
        purpose: "unpack the kernel for QEMU's fastest boot (benchmark only)",
    },
];

/// Workloads by group.
pub const CPU: [&str; 9] = [
    "alu",
    "alu_novec",
    "lzsha",
    "chase",
    "nbody",
    "matmul",
    "sortq",
    "interp",
    "gz",
];
/// System calls, processes and memory mappings.
pub const KERNEL: [&str; 4] = ["sysloop", "forkexec", "pingpong", "fault"];
/// Outside the groups' means.
pub const MORE: [&str; 1] = ["membw"];
/// Measurements that are no workloads.
pub const OTHER: [&str; 8] = [
    "boot", "login", "memory", "smp", "net", "switch", "snapshot", "disk",
];

#[derive(Args)]
pub struct Bench {
    /// Only these: workloads, `cpu`, `kernel`, `boot`, `login`, `memory`, `smp`, `net`, `switch`, `snapshot`, `disk`
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    only: Vec<String>,
    /// How often each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    reps: u32,
    /// Percent of each workload's amount of work
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// Leaves QEMU out
    #[arg(long)]
    without_tcg: bool,
    /// Form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Options for `holm run`, after `--`
    #[arg(last = true)]
    options: Vec<String>,
}

/// Form of the answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables
    Text,
    /// One JSON document
    Json,
}

/// Measures and prints; fails if a guest computed something wrong.
///
/// # Errors
/// If a side does not run.
pub fn bench(arguments: &Bench) -> Result<ExitCode> {
    let chosen = chosen(&arguments.only)?;
    host::ensure(up::BUILD_NEEDS)?;
    if arguments.without_tcg {
        host::ensure(&NEEDS[1..])?;
    } else {
        host::ensure(NEEDS)?;
    }
    let holm = host::build_holm()?;
    let image = image::make(Name::Tiny, false)?;
    let parts = build::parts(&image)?;
    let switch = match chosen.contains(&"switch") {
        true => Some(Switch::new(
            holm.clone(),
            arguments.options.clone(),
            &image,
        )?),
        false => None,
    };
    let sides = Sides::new(holm, parts, arguments.options.clone(), arguments.scale);
    let mut figures = Figures::default();
    for repetition in 1..=arguments.reps {
        for name in &chosen {
            eprintln!("xtask: {name} ({repetition} of {})", arguments.reps);
            measure(
                (&sides, switch.as_ref()),
                name,
                !arguments.without_tcg,
                &mut figures,
            )?;
        }
    }
    let wrong = figures.wrong();
    match arguments.output {
        Output::Text => print!("{}", report::text(&figures)),
        Output::Json => println!("{}", report::json(&figures)?),
    }
    for line in &wrong {
        eprintln!("xtask: WRONG RESULT: {line}");
    }
    Ok(if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure(
    (sides, switch): (&Sides, Option<&Switch>),
    name: &str,
    tcg: bool,
    figures: &mut Figures,
) -> Result<()> {
    let all: &[Side] = if tcg {
        &[Side::Native, Side::Holm, Side::Tcg]
    } else {
        &[Side::Native, Side::Holm]
    };
    for &side in all {
        match name {
            "boot" => sides.boot(side, figures)?,
            "login" => sides.login(side, figures)?,
            "memory" => sides.memory(side, figures)?,
            "smp" => sides.smp(side, figures)?,
            "net" => sides.net(side, figures)?,
            "snapshot" => sides.snapshot(side, figures)?,
            "disk" => sides.disk(side, figures)?,
            "switch" => {
                if let Some(switch) = switch {
                    switch.measure(side, figures)?;
                }
            }
            _ => sides.workload(side, name, figures)?,
        }
    }
    Ok(())
}

fn chosen(only: &[String]) -> Result<Vec<&'static str>> {
    let all = || {
        OTHER
            .iter()
            .chain(&CPU)
            .chain(&KERNEL)
            .chain(&MORE)
            .copied()
    };
    if only.is_empty() {
        return Ok(all().collect());
    }
    let mut chosen = Vec::new();
    for name in only {
        match name.as_str() {
            "cpu" => chosen.extend(CPU),
            "kernel" => chosen.extend(KERNEL),
            _ => match all().find(|known| known == name) {
                Some(known) => chosen.push(known),
                None => {
                    let known: Vec<_> = all().collect();
                    bail!(
                        "no workload {name:?}; there are cpu, kernel, {}",
                        known.join(", ")
                    );
                }
            },
        }
    }
    Ok(chosen)
}
