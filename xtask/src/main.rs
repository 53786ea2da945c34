//! The project's own tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod bench;
mod churn;
mod console;
mod guest;
mod host;
mod image;
mod soak;
mod test;
mod up;
mod venv;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Holm's own tasks
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Sets up all that is needed, builds, makes the image and boots it
    ///
    /// Example: cargo xtask up
    ///          cargo xtask up debian --check "apt-get --version"
    #[command(verbatim_doc_comment)]
    Up(up::Up),
    /// Passes all tests: format, lints, unit tests, real guests
    Test(test::Test),
    /// Measures against QEMU's TCG and the host itself
    ///
    /// Example: cargo xtask bench --only cpu,boot --reps 5
    Bench(bench::Bench),
    /// Stresses the debian guest for an hour and verifies every result
    ///
    /// Example: cargo xtask soak --minutes 10
    Soak(soak::Soak),
    /// Makes and ends real machines under a daemon that is killed, and looks for what is left
    ///
    /// Example: cargo xtask churn --kill-daemon 3
    Churn(churn::Churn),
    /// Makes the Python environment with the clients of EC2 that tests use
    Venv,
    /// Makes a guest image if its recipe or packages have changed
    ///
    /// Example: cargo xtask image debian --force
    Image {
        /// Which one
        name: image::Name,
        /// Fetches the package lists again and makes the image anew
        #[arg(long)]
        force: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up(arguments) => return up::up(&arguments),
        Task::Test(arguments) => return test::test(&arguments),
        Task::Bench(arguments) => return bench::bench(&arguments),
        Task::Soak(arguments) => return soak::soak(&arguments),
        Task::Churn(arguments) => return churn::churn(&arguments),
        Task::Venv => drop(venv::ensure()?),
        Task::Image { name, force } => {
            println!("{}", image::make(name, force)?.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
