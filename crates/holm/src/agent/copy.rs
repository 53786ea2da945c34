//! `holm cp`: one file, into the guest or out of it, with its mode.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::Client;

use super::exec::finished;
use super::{Copy, Problem, connect_to};
use crate::console::terminal;

/// Bytes of one read or write.
const BLOCK: usize = 1 << 20;
/// Time between reports of progress.
const REPORT: Duration = Duration::from_millis(500);

pub(super) fn run(arguments: &Copy) -> Result<(), Problem> {
    match (in_guest(&arguments.from), in_guest(&arguments.to)) {
        (None, Some((machine, path))) => {
            let mut client = connect_to(&machine, arguments.wait)?;
            into_guest(&mut client, Path::new(&arguments.from), &path)
        }
        (Some((machine, path)), None) => {
            let mut client = connect_to(&machine, arguments.wait)?;
            out_of_guest(&mut client, &path, Path::new(&arguments.to))
        }
        _ => Err(Problem::Usage(
            "one of FROM and TO is MACHINE:/PATH, the other a file of this host".into(),
        )),
    }
}

/// `MACHINE:/PATH`.
fn in_guest(text: &str) -> Option<(PathBuf, String)> {
    let at = text.find(":/").filter(|at| *at > 0)?;
    let (machine, path) = text.split_at(at);
    Some((machine.into(), path.get(1..)?.to_owned()))
}

fn into_guest(client: &mut Client, from: &Path, to: &str) -> Result<(), Problem> {
    let failed = |error| Problem::File {
        what: format!("reading {}", from.display()),
        error,
    };
    let mut source = File::open(from).map_err(failed)?;
    let meta = source.metadata().map_err(failed)?;
    if meta.is_dir() {
        let kind = io::ErrorKind::IsADirectory;
        return Err(failed(io::Error::new(
            kind,
            "it is a directory; copy a tar of it",
        )));
    }
    // A reader never sees half of it under its name.
    let part = format!("{to}.holm-part");
    let file = client.open(&part, "wb")?;
    let mut progress = Progress::new(meta.len());
    let mut block = vec![0; BLOCK];
    loop {
        let count = source.read(&mut block).map_err(failed)?;
        if count == 0 {
            break;
        }
        client.write(file, block.get(..count).unwrap_or_default())?;
        progress.add(count);
    }
    client.close(file)?;
    let mode = format!("{:o}", meta.permissions().mode() & 0o7777);
    let script = r#"chmod "$1" "$2" && sync "$2" && mv -f -T "$2" "$3""#;
    let moved = finished(client, "/bin/sh", &["-c", script, "sh", &mode, &part, to])?;
    must_succeed(&moved, &format!("putting {to} into its place"))
}

fn out_of_guest(client: &mut Client, from: &str, to: &Path) -> Result<(), Problem> {
    let failed = |error| Problem::File {
        what: format!("writing {}", to.display()),
        error,
    };
    // A FIFO or a device would hang the agent.
    let script = r#"test -f "$1" && stat -L -c '%a %s' "$1""#;
    let stat = finished(client, "/bin/sh", &["-c", script, "sh", from])?;
    must_succeed(
        &stat,
        &format!("the guest has no file {from} that can be read"),
    )?;
    let text = String::from_utf8_lossy(&stat.output).into_owned();
    let mut words = text.split_whitespace();
    let mode = words.next().and_then(|m| u32::from_str_radix(m, 8).ok());
    let size = words.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if to.is_dir() {
        let kind = io::ErrorKind::IsADirectory;
        return Err(failed(io::Error::new(
            kind,
            "it is a directory; give a file name",
        )));
    }
    let part = directory.join(format!(".holm-part-{}", std::process::id()));
    let mut target = File::create_new(&part).map_err(failed)?;
    let result = fill(client, from, &mut target, size, failed).and_then(|()| {
        let mode = mode.unwrap_or(0o600) & 0o777;
        fs::set_permissions(&part, fs::Permissions::from_mode(mode)).map_err(failed)?;
        target.sync_all().map_err(failed)?;
        fs::rename(&part, to).map_err(failed)
    });
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&part);
    }
    result
}

fn fill(
    client: &mut Client,
    from: &str,
    target: &mut File,
    size: u64,
    failed: impl Fn(io::Error) -> Problem,
) -> Result<(), Problem> {
    let file = client.open(from, "rb")?;
    let mut progress = Progress::new(size);
    loop {
        let data = client.read(file, BLOCK)?;
        if data.is_empty() {
            return Ok(client.close(file)?);
        }
        target.write_all(&data).map_err(&failed)?;
        progress.add(data.len());
    }
}

fn must_succeed(status: &agent::ExecStatus, what: &str) -> Result<(), Problem> {
    if status.status == Some(0) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&status.error);
    let said = said.trim().replace(char::is_control, " ");
    Err(Problem::Guest(match said.is_empty() {
        true => what.to_owned(),
        false => format!("{what}: {said}"),
    }))
}

/// Tells the user at a terminal how far it is.
struct Progress {
    total: u64,
    done: u64,
    told: Option<Instant>,
    terminal: bool,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self {
            total,
            done: 0,
            told: Some(Instant::now()),
            terminal: io::stderr().is_terminal(),
        }
    }

    fn add(&mut self, count: usize) {
        self.done += count as u64;
        if self.terminal && self.told.is_none_or(|told| told.elapsed() > REPORT) {
            self.told = Some(Instant::now());
            let (done, total) = (self.done >> 20, self.total >> 20);
            terminal::print(&format!("\r{done} of {total} MiB"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::in_guest;

    #[test]
    fn a_place_in_a_guest_has_a_machine_and_an_absolute_path() {
        let place = in_guest("/run/web.sock:/etc/hosts").unwrap();
        assert_eq!(
            (place.0.to_str().unwrap(), &*place.1),
            ("/run/web.sock", "/etc/hosts")
        );
        assert_eq!(in_guest("web:/a:/b").unwrap().1, "/a:/b");
        assert!(in_guest("./file").is_none());
        assert!(in_guest(":/etc/hosts").is_none());
    }
}
