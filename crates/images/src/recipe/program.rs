//! Running the host's programs.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why no image was built.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A program of the host is missing.
    #[error("{program} is needed to {purpose}; install it: apt-get install {package}")]
    Missing {
        /// The program, or a file.
        program: &'static str,
        /// Debian's package with it.
        package: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
    /// A program failed.
    #[error("{command} failed ({status}):\n{text}")]
    Failed {
        /// Its first words.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        text: String,
    },
    /// Packages cannot be had.
    #[error("{0}")]
    Sources(String),
    /// A recipe that is none.
    #[error("{place}: {reason}")]
    Recipe {
        /// Its file or name.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The library.
    #[error(transparent)]
    Library(#[from] crate::ImagesError),
    /// The host's error.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Host {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

impl RecipeError {
    pub(super) fn host(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Host {
            path: path.into(),
            doing,
            source,
        }
    }
}

/// A program that is needed, Debian's package with it, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// A program's name, or the absolute path of a file.
    pub program: &'static str,
    /// Debian's package.
    pub package: &'static str,
    /// Completes "needed to ...".
    pub purpose: &'static str,
}

pub(super) fn check(needs: &[Need]) -> Result<(), RecipeError> {
    match needs.iter().find(|need| find(need.program).is_none()) {
        None => Ok(()),
        Some(need) => Err(RecipeError::Missing {
            program: need.program,
            package: need.package,
            purpose: need.purpose,
        }),
    }
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|p| p.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs to the end and returns what it printed on stdout; its stderr is in the
/// error if it fails.
pub(super) fn output(command: &mut Command) -> Result<String, RecipeError> {
    run(command.stdout(Stdio::piped())).map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// Runs to the end, its stdout going where it was led.
pub(super) fn run(command: &mut Command) -> Result<Vec<u8>, RecipeError> {
    const TAIL: usize = 4000;
    let shown = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args().take(3));
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        words
            .join(" ")
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let name = shown();
    let ended = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|child| child.wait_with_output());
    let ended = ended.map_err(|e| RecipeError::host(Path::new(&name), "run", e))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let text = String::from_utf8_lossy(&ended.stderr);
    let text = text.trim_end();
    let from = text.floor_char_boundary(text.len().saturating_sub(TAIL));
    Err(RecipeError::Failed {
        command: name,
        status: ended.status.to_string(),
        text: text.get(from..).unwrap_or_default().into(),
    })
}
