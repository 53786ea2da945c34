//! `holm state`: the store of a state directory, kept and looked after.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use host::Layout;
use store::{CheckReport, StoreError};

use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output};
use crate::state_directory;

/// `holm state`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Copies the store to a file, whether a daemon uses it or not
    ///
    /// Volumes and images are files beside the store, and not in the copy.
    ///
    /// Example: holm state backup /backup/holm-monday.db
    #[command(after_help = exit_code::STATE_HELP)]
    Backup(File),
    /// Makes the store of a state directory that has none from a backup
    ///
    /// Example: holm state restore /backup/holm-monday.db --state /srv/holm
    #[command(after_help = exit_code::STATE_HELP)]
    Restore(File),
    /// Reads all of the store, or of a backup, and says what is wrong with it
    ///
    /// Examples:
    ///   holm state check
    ///   holm state check /backup/holm-monday.db -o json
    #[command(verbatim_doc_comment, after_help = exit_code::STATE_HELP)]
    Check(Check),
}

/// A backup.
#[derive(Args, Debug)]
pub struct File {
    /// The file of the backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The state directory (--state /srv/holm); $HOLM_STATE unless given
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// `holm state check`.
#[derive(Args, Debug)]
pub struct Check {
    /// A backup instead of the state directory's store
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// The state directory (--state /srv/holm); $HOLM_STATE unless given
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Does it; the exit status.
pub fn run(command: &Command) -> u8 {
    let done = match command {
        Command::Backup(file) => backup(file),
        Command::Restore(file) => restore(file),
        Command::Check(check) => self::check(check),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            terminal::say(&format!("holm: {error}"));
            exit_code::BAD_FILE
        }
    }
}

fn store(state: Option<&Path>) -> PathBuf {
    Layout::new(state_directory::resolve(state)).store()
}

fn backup(file: &File) -> Result<u8, StoreError> {
    store::backup(&store(file.state.as_deref()), &file.file)?;
    let report = store::check(&file.file)?;
    println!(
        "{}: {} documents, revision {}",
        file.file.display(),
        report.documents,
        report.revision
    );
    Ok(verdict(&report))
}

fn restore(file: &File) -> Result<u8, StoreError> {
    let directory = store(file.state.as_deref());
    let report = store::restore(&file.file, &directory)?;
    println!(
        "{}: {} documents, revision {}",
        directory.display(),
        report.documents,
        report.revision
    );
    Ok(exit_code::SUCCESS)
}

fn check(check: &Check) -> Result<u8, StoreError> {
    let file = match &check.file {
        Some(file) => file.clone(),
        None => store::file(&store(check.state.as_deref())),
    };
    let report = store::check(&file)?;
    form::print(check.output, &report, || {
        let mut text = form::fields(&[
            ("file", file.display().to_string()),
            ("schema", report.schema_version.to_string()),
            ("revision", report.revision.to_string()),
            ("documents", report.documents.to_string()),
        ]);
        let faults = report.faults.iter();
        faults.for_each(|fault| text += &format!("fault:     {fault}\n"));
        text
    });
    Ok(verdict(&report))
}

fn verdict(report: &CheckReport) -> u8 {
    match report.faults.is_empty() {
        true => exit_code::SUCCESS,
        false => exit_code::FOUND,
    }
}
