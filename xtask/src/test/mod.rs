//! `cargo xtask test`: everything that must hold before a change goes in.

mod needs;
mod suite;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};

use crate::host;
use crate::image::{self, Name};
use crate::{up, venv};
use suite::{Binary, Share};

#[derive(Args)]
pub struct Test {
    /// Leaves out the end-to-end tests on real guests
    #[arg(long)]
    no_guests: bool,
}

/// Runs all stages; the first that fails ends it.
///
/// # Errors
/// Names the stage.
pub fn test(arguments: &Test) -> Result<ExitCode> {
    host::ensure(up::BUILD_NEEDS)?;
    host::ensure(needs::NEEDS)?;
    host::ensure(image::NEEDS)?;
    host::ensure(image::BASE_NEEDS)?;
    venv::ensure()?;
    // The images are the packages' work, the rest is the compiler's.
    let images = (!arguments.no_guests).then(|| thread::spawn(images));
    stage("format", || cargo(&["fmt", "--all", "--check"]))?;
    stage("lints", || {
        let options = ["--workspace", "--all-targets", "--profile", suite::PROFILE];
        let words = [&["clippy"], &options[..], &["--", "-D", "warnings"]].concat();
        cargo(&words)
    })?;
    let (guests, units): (Vec<Binary>, Vec<Binary>) = stage("building the tests", suite::build)?
        .into_iter()
        .partition(Binary::boots_guests);
    stage("unit and integration tests", || {
        suite::run(units, Share::Cores)
    })?;
    stage("documentation's tests", || {
        cargo(&["test", "--workspace", "--profile", suite::PROFILE, "--doc"])
    })?;
    if let Some(images) = images {
        let made = images
            .join()
            .map_err(|_| anyhow!("making the images panicked"))?;
        let elapsed = made.context("images")?;
        eprintln!("xtask: images: made in {elapsed:.0?}, beside the other stages");
        stage("end-to-end tests on real guests", || {
            suite::run(guests, Share::Guests)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn images() -> Result<Duration> {
    let start = Instant::now();
    for name in Name::value_variants() {
        image::make(*name, false)?;
    }
    Ok(start.elapsed())
}

fn cargo(words: &[&str]) -> Result<()> {
    host::run(host::cargo().args(words))
}

fn stage<R>(name: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
    let start = Instant::now();
    eprintln!("xtask: {name}");
    let result = work().with_context(|| name.to_owned())?;
    eprintln!("xtask: {name}: passed in {:.0?}", start.elapsed());
    Ok(result)
}
