//! `holm completion`: what a shell completes.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli;
use crate::exit_code;

/// `holm completion`.
#[derive(Args, Debug)]
pub struct Completion {
    /// For which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &Completion) -> u8 {
    let mut script = Vec::new();
    let mut command = cli::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "holm", &mut script);
    crate::form::out(&String::from_utf8_lossy(&script));
    exit_code::SUCCESS
}
