//! What instances leave behind: files, processes, ports, records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::Program;
use crate::host;

/// Kinds of records that tell of the past, and go with time.
const HISTORY: [&str; 5] = ["answer", "event", "done", "instance", "operation"];

/// All that is there now.
#[derive(Debug, Default)]
pub struct Traces {
    files: BTreeSet<String>,
    /// Processes, by their command lines.
    processes: Vec<String>,
    /// TCP ports that the daemon listens at.
    listening: usize,
    /// By kind, and `lease`.
    pub records: BTreeMap<String, u64>,
}

impl Traces {
    /// Looks, while this daemon runs and nobody else is to.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn look(program: &Program, daemon: u32) -> Result<Self> {
        let mut files = BTreeSet::new();
        for directory in ["machines", "volumes", "networks", "run", "images"] {
            list(&program.state.join(directory), &mut files);
        }
        list(&program.temporary, &mut files);
        Ok(Self {
            files,
            processes: processes(&program.state, daemon),
            listening: listening(daemon)?,
            records: records(program)?,
        })
    }

    /// What is there and was not before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut left: Vec<String> = self.files.difference(&before.files).cloned().collect();
        left.extend(self.processes.iter().map(|line| format!("process {line}")));
        if self.listening > before.listening {
            left.push(format!(
                "{} listening ports",
                self.listening - before.listening
            ));
        }
        for (kind, count) in &self.records {
            let had = before.records.get(kind).copied().unwrap_or_default();
            if *count > had && !HISTORY.contains(&kind.as_str()) {
                left.push(format!("{} records of kind {kind}", count - had));
            }
        }
        left
    }
}

fn list(directory: &Path, into: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&path, into);
        }
        into.insert(path.display().to_string());
    }
}

/// All that were started for a state directory, but one.
fn processes(state: &Path, daemon: u32) -> Vec<String> {
    let mark = format!("HOLM_STATE={}", state.display()).into_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if process != daemon && environment.split(|b| *b == 0).any(|line| line == mark) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push(format!("{process} {line}"));
        }
    }
    found
}

fn listening(process: u32) -> Result<usize> {
    let directory = Path::new("/proc").join(process.to_string());
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(directory.join("fd"))?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let inode = target.to_str().and_then(|text| {
            let inode = text.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        });
        sockets.extend(inode);
    }
    let mut count = 0;
    for table in ["net/tcp", "net/tcp6"] {
        let table = fs::read_to_string(directory.join(table)).unwrap_or_default();
        count += table
            .lines()
            .filter(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.get(3) == Some(&"0A") && words.get(9).is_some_and(|i| sockets.contains(*i))
            })
            .count();
    }
    Ok(count)
}

/// What the store holds, read from a backup of it.
fn records(program: &Program) -> Result<BTreeMap<String, u64>> {
    let backup = program.log.with_extension("backup");
    let _ = fs::remove_file(&backup);
    host::output(program.command().args(["state", "backup"]).arg(&backup))?;
    let script = "import json, sqlite3, sys, collections\n\
        db = sqlite3.connect(sys.argv[1])\n\
        kinds = collections.Counter(k.split('/')[0] for (k,) in db.execute('select key from documents'))\n\
        kinds['lease'] = db.execute('select count(*) from leases').fetchone()[0]\n\
        print(json.dumps(kinds))";
    let counted = host::output(Command::new("python3").args(["-c", script]).arg(&backup))?;
    serde_json::from_str(&counted).context("counting the store's records")
}
