//! `holm boot-entries`: what a disk offers to start.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bootdisk::isolated::{Reader, printable};
use bootdisk::{BootEntry, Found, ReaderError};
use clap::Args;
use disk::{DiskOptions, Format, SECTOR};
use serde::Serialize;

use crate::console::terminal;
use crate::exit_code;
use crate::failure::Failure;
use crate::form::{self, Output};
use crate::image::{self, Target};

/// The answer for programs. Version 1.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    entries: Vec<Numbered<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Numbered<'a> {
    /// For `--entry`.
    number: usize,
    #[serde(flatten)]
    entry: &'a BootEntry,
}

/// `holm boot-entries`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Whole-disk image or block device, or an image that starts from a disk
    #[arg(value_name = "DISK")]
    pub disk: String,

    /// Format of the disk (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Prints the entries and returns the exit status.
pub fn run(arguments: &Arguments) -> u8 {
    let found = disk_of(&arguments.disk)
        .and_then(|(path, format)| list(&path, arguments.format.or(format)));
    let found = match found {
        Ok(found) => found,
        Err(failure) => {
            terminal::say(&format!("holm: {failure}"));
            return failure.code();
        }
    };
    form::print(arguments.output, &answer(&found), || text(&found));
    if found.entries.is_empty() {
        let nothing = ReaderError::Nothing(Box::new(found));
        terminal::say(&format!("holm: {nothing}"));
        return exit_code::BAD_FILE;
    }
    exit_code::SUCCESS
}

/// The disk that was named, or the first disk of an image.
fn disk_of(name: &str) -> Result<(PathBuf, Option<Format>), Failure> {
    match Target::find(name, image::directory().as_deref())? {
        Target::Disk(path) => Ok((path, None)),
        Target::Image(image) => match image.disks.into_iter().next() {
            Some(template) => Ok((template.file, Some(template.format))),
            None => Err(Failure::File(format!("the image {name} has no disk"))),
        },
    }
}

fn list(path: &Path, format: Option<Format>) -> Result<Found, Failure> {
    let mut options = DiskOptions::new(path);
    options.read_only = true;
    options.format = format;
    let disk = disk::open(&options).map_err(|e| Failure::File(e.to_string()))?;
    let size = disk.info().sectors * SECTOR;
    let found = Reader::default().list(size, &|offset, out| disk.read_at(offset, out));
    found.map_err(|error| match error {
        ReaderError::Start(_) => Failure::Host(error.to_string()),
        _ => Failure::File(format!("{}: {error}", path.display())),
    })
}

fn answer(found: &Found) -> Answer<'_> {
    Answer {
        version: 1,
        entries: (0..)
            .zip(&found.entries)
            .map(|(number, entry)| Numbered { number, entry })
            .collect(),
        notes: &found.notes,
    }
}

fn text(found: &Found) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    for (number, entry) in (0..).zip(&found.entries) {
        let number: usize = number;
        let mark = if entry.default { '*' } else { ' ' };
        let _ = writeln!(out, "{mark} {number}  {}", printable(&entry.title));
        let initrds = entry.initrds.join(" ");
        let problem = entry.problem.as_deref().unwrap_or_default();
        for (name, value) in [
            ("id", entry.id.as_str()),
            ("kernel", &entry.kernel),
            ("initrd", &initrds),
            ("cmdline", &entry.cmdline),
            ("found", &entry.found),
            ("problem", problem),
        ] {
            if !value.is_empty() {
                let _ = writeln!(out, "       {name:<8} {}", printable(value));
            }
        }
    }
    for note in &found.notes {
        let _ = writeln!(out, "note: {}", printable(note));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bootdisk::Loader;

    #[test]
    fn texts_of_a_disk_do_not_reach_the_terminal_as_they_are() {
        let entry = BootEntry {
            id: "a".into(),
            title: "evil \u{1b}]0;x\u{7}".into(),
            kernel: "/k".into(),
            initrds: Vec::new(),
            cmdline: String::new(),
            default: true,
            loader: Loader::Grub,
            found: "here".into(),
            problem: None,
        };
        let found = Found {
            entries: vec![entry],
            notes: vec!["n\u{1b}".into()],
        };
        let shown = text(&found);
        assert!(shown.starts_with("* 0  evil "), "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
        assert_eq!(answer(&found).entries[0].number, 0);
    }
}
