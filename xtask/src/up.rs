//! `cargo xtask up`: from a fresh clone to the console of a guest.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::guest;
use crate::host::{self, Need};
use crate::image::{self, Name};

/// What building Holm takes.
pub const BUILD_NEEDS: &[Need] = &[Need {
    program: "cc",
    package: "gcc",
    purpose: "link Holm",
}];

#[derive(Args)]
pub struct Up {
    /// Which image
    #[arg(default_value = "debian")]
    image: Name,
    /// Runs one command in the guest instead of staying at its console; prints
    /// its output and the stage times, and exits with its status
    #[arg(long, value_name = "COMMAND")]
    check: Option<String>,
    /// Seconds that the command of --check may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Options for `holm run`, after `--`
    #[arg(last = true)]
    options: Vec<String>,
}

/// Sets up, builds, makes the image and boots it.
///
/// # Errors
/// If one of these fails.
pub fn up(arguments: &Up) -> Result<ExitCode> {
    host::ensure(BUILD_NEEDS)?;
    // The image is the packages' work and the build the compiler's: both at once.
    let name = arguments.image;
    let making = thread::spawn(move || timed(|| image::make(name, false)));
    let (build, holm) = timed(host::build_holm);
    let holm = holm?;
    let (make, made) = making
        .join()
        .map_err(|_| anyhow!("making the image panicked"))?;
    made?;
    let mut options = arguments.options.clone();
    if !options.iter().any(|option| option == "--cpus") {
        let cpus = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(2);
        options.extend(["--cpus".into(), cpus.to_string()]);
    }
    let Some(check) = &arguments.check else {
        eprintln!(
            "xtask: build {build:.1?}, image {make:.1?} (side by side); booting {}",
            name.as_str()
        );
        let status = Command::new(&holm)
            .args(["run", name.as_str()])
            .args(&options)
            .status()
            .with_context(|| format!("starting {}", holm.display()))?;
        return Ok(exit_code(status.code()));
    };
    let answer = guest::run(
        &holm,
        name,
        &options,
        check,
        Duration::from_secs(arguments.patience),
    )?;
    print!("{}", answer.output);
    std::io::stdout()
        .flush()
        .context("printing the command's output")?;
    eprintln!(
        "xtask: build {build:.1?}, image {make:.1?} (side by side), boot {:.1?}, command {:.1?}",
        answer.boot, answer.command
    );
    Ok(ExitCode::from(answer.status))
}

fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

fn timed<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}
