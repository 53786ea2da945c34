//! The project's own tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod host;
mod image;

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
        Task::Image { name, force } => {
            println!("{}", image::make(name, force)?.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
