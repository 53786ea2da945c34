//! The parent: starts the child, shows it the disk, judges its answer.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use super::protocol::{self, ANSWER, Answer, LONGEST_READ, Load, Question, READ};
use crate::entry::{BootEntry, Found, Pieces};

/// Time for a survey, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(120);

/// Reads bytes of the disk at an offset.
pub type ReadDisk<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// Why a disk's boot entries cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The child cannot be started.
    #[error("starting a reader for the disk: {0}")]
    Start(io::Error),
    /// The child ended without an answer, or was ended.
    #[error(
        "the disk's contents cannot be read: {0}; the disk is damaged or hostile, or its reader \
         has a fault; start a kernel with --kernel instead"
    )]
    Failed(String),
    /// There is nothing to start.
    #[error("nothing on this disk can be started{}", notes(.0))]
    Nothing(Box<Found>),
    /// No entry has this name.
    #[error("the disk has no boot entry {wish:?}; it has {}", titles(.found))]
    NoEntry {
        /// What was asked for.
        wish: String,
        /// What there is.
        found: Box<Found>,
    },
    /// The entry cannot be loaded.
    #[error("the boot entry {title:?} cannot be started: {problem}; choose another with --entry ({})", titles(.found))]
    Entry {
        /// Its title.
        title: String,
        /// Why.
        problem: String,
        /// What there is.
        found: Box<Found>,
    },
}

fn notes(found: &Found) -> String {
    match found.notes.as_slice() {
        [] => ": it has no configuration of GRUB, systemd-boot or EXTLINUX, no unified kernel \
               image and no kernel on a file system that Holm reads (ext4, FAT, XFS); start one \
               with --kernel"
            .into(),
        notes => format!(
            " ({}); start a kernel with --kernel",
            notes
                .iter()
                .take(8)
                .map(|n| printable(n))
                .collect::<Vec<_>>()
                .join("; ")
        ),
    }
}

fn titles(found: &Found) -> String {
    const MOST: usize = 12;
    let all = (0..).zip(&found.entries).take(MOST);
    let shown: Vec<String> = all
        .map(|(n, e): (usize, _)| format!("{n}: {}", printable(&e.title)))
        .collect();
    shown.join(", ")
}

/// Text from a disk for a terminal: no control characters, and not endless.
pub fn printable(text: &str) -> String {
    const MOST: usize = 400;
    let clean = |c: char| match c.is_control() {
        true => '\u{fffd}',
        false => c,
    };
    text.chars().take(MOST).map(clean).collect()
}

/// A loaded entry.
#[derive(Debug)]
pub struct Loaded {
    /// The entry.
    pub entry: BootEntry,
    /// The file that holds its kernel and initrd.
    pub file: File,
    /// Where they are in the file.
    pub pieces: Pieces,
}

/// How readers are started.
#[derive(Clone, Debug)]
pub struct Reader {
    program: PathBuf,
    patience: Duration,
}

impl Default for Reader {
    /// This very program, even if its file was replaced meanwhile.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            patience: PATIENCE,
        }
    }
}

impl Reader {
    /// Another program that calls [`super::serve`] when its only argument is
    /// [`super::ARGUMENT`].
    pub fn of(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().into(),
            patience: PATIENCE,
        }
    }

    /// Gives it so much time at most; by default two minutes.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Everything that a disk of `size` bytes offers to start.
    ///
    /// # Errors
    /// [`ReaderError::Start`], [`ReaderError::Failed`].
    pub fn list(&self, size: u64, disk: ReadDisk<'_>) -> Result<Found, ReaderError> {
        match self.ask(&Question { size, load: None }, disk)?.0 {
            Answer::Found(found) => Ok(found),
            other => Err(unfit(other)),
        }
    }

    /// Loads an entry, by number, id or title, or the default one. Its kernel
    /// has at most `limit` bytes, and so have its initial RAM disks together.
    ///
    /// # Errors
    /// [`ReaderError`].
    pub fn load(
        &self,
        size: u64,
        disk: ReadDisk<'_>,
        entry: Option<&str>,
        limit: u64,
    ) -> Result<Loaded, ReaderError> {
        let load = Some(Load {
            entry: entry.map(str::to_owned),
            limit,
        });
        let (answer, file) = self.ask(&Question { size, load }, disk)?;
        match answer {
            Answer::Loaded(mut found, index, pieces) if index < found.entries.len() => {
                let entry = found.entries.swap_remove(index);
                let held = file.metadata().map_err(ReaderError::Start)?.len();
                match fits(&pieces, held) {
                    true => Ok(Loaded {
                        entry,
                        file,
                        pieces,
                    }),
                    false => Err(ReaderError::Failed("its reader gave a wrong size".into())),
                }
            }
            Answer::Refused(found, index, problem) => {
                let chosen = index.and_then(|index| found.entries.get(index));
                let title = chosen.map(|e| printable(&e.title));
                let found = Box::new(found);
                Err(match (title, entry) {
                    (Some(title), _) => ReaderError::Entry {
                        title,
                        problem: printable(&problem),
                        found,
                    },
                    (None, Some(wish)) if !found.entries.is_empty() => ReaderError::NoEntry {
                        wish: wish.to_owned(),
                        found,
                    },
                    (None, _) => ReaderError::Nothing(found),
                })
            }
            other => Err(unfit(other)),
        }
    }

    /// Runs a child to its answer.
    fn ask(&self, question: &Question, disk: ReadDisk<'_>) -> Result<(Answer, File), ReaderError> {
        let output = rustix::fs::memfd_create("holm-boot", MemfdFlags::CLOEXEC)
            .map_err(|e| ReaderError::Start(e.into()))?;
        let output = File::from(output);
        let (mut ours, theirs) = UnixStream::pair().map_err(ReaderError::Start)?;
        let childs_output = output.try_clone().map_err(ReaderError::Start)?;
        let child = Command::new(&self.program)
            .arg(super::ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(childs_output))
            .stderr(Stdio::null())
            .spawn()
            .map_err(ReaderError::Start)?;
        let mut child = Ended(child);
        let answer = self.converse(&mut ours, question, disk);
        let answer = answer.map_err(|error| ReaderError::Failed(child.end(&error)))?;
        Ok((answer, output))
    }

    /// Answers the child's reads up to its own answer.
    fn converse(
        &self,
        socket: &mut UnixStream,
        question: &Question,
        disk: ReadDisk<'_>,
    ) -> io::Result<Answer> {
        let end = Instant::now() + self.patience;
        socket.set_read_timeout(Some(self.patience))?;
        socket.set_write_timeout(Some(self.patience))?;
        protocol::send(socket, question)?;
        let mut buffer = Vec::new();
        loop {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut tag = [0];
            socket.read_exact(&mut tag)?;
            match tag {
                [ANSWER] => return protocol::receive(socket),
                [READ] => {}
                _ => return Err(io::Error::other("it speaks another language")),
            }
            let (mut offset, mut length) = ([0; 8], [0; 4]);
            socket.read_exact(&mut offset)?;
            socket.read_exact(&mut length)?;
            let (offset, length) = (u64::from_le_bytes(offset), u32::from_le_bytes(length));
            let end = offset.checked_add(u64::from(length));
            if length > LONGEST_READ || end.is_none_or(|end| end > question.size) {
                socket.write_all(&[1])?;
                continue;
            }
            buffer.resize(length as usize + 1, 0);
            let (status, data) = buffer.split_at_mut(1);
            match disk(offset, data) {
                Ok(()) => {
                    status.fill(0);
                    socket.write_all(&buffer)?;
                }
                Err(_) => socket.write_all(&[1])?,
            }
        }
    }
}

/// A child that does not outlive this.
struct Ended(Child);

impl Ended {
    /// Why there is no answer, by how the child ended.
    fn end(&mut self, error: &io::Error) -> String {
        let timed_out = matches!(
            error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
        );
        // A child that closed the socket is ending; any other one must.
        let ending = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
        );
        if !ending {
            // It may have ended already.
            let _ = self.0.kill();
        }
        match self.0.wait() {
            Ok(_) if timed_out => "reading it took too long".into(),
            Ok(_) if !ending => format!("its reader gave no answer ({error})"),
            Ok(status) => ended(status, error),
            Err(e) => e.to_string(),
        }
    }
}

fn ended(status: ExitStatus, error: &io::Error) -> String {
    match status.signal() {
        Some(libc::SIGXCPU | libc::SIGKILL) => "reading it took too much time".into(),
        Some(libc::SIGABRT) => "reading it took too much memory".into(),
        Some(libc::SIGSYS) => "its reader did what it must not".into(),
        Some(signal) => format!("its reader was ended by signal {signal}"),
        None => format!("its reader gave no answer ({error})"),
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fits(pieces: &Pieces, held: u64) -> bool {
    let initrd_end = pieces.initrd_start.checked_add(pieces.initrd);
    let none = pieces.initrd == 0;
    (1..=held).contains(&pieces.kernel) && (none || initrd_end.is_some_and(|end| end <= held))
}

fn unfit(answer: Answer) -> ReaderError {
    ReaderError::Failed(match answer {
        Answer::Failed(reason) => printable(&reason),
        _ => "its reader gave another answer than asked for".into(),
    })
}
