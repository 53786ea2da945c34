//! The workspace's test programs: built once, run several at a time.
//!
//! `cargo test` runs one program after the other, and most of them are one
//! long story on one core at their end.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::host;

/// The profile that everything is built in.
pub const PROFILE: &str = "ci";

/// Programs with long stories on one core: they go first, so that the rest
/// fills the time beside them.
const LONG: &[&str] = &[
    "e2e_work",
    "e2e_kvm",
    "e2e_debian",
    "e2e_ec2",
    "engine_soft",
    "crashes",
    "power_cut",
];

/// How much of the host the programs may take together.
#[derive(Clone, Copy)]
pub enum Share {
    /// As many programs as there are cores, each with a thread per core.
    Cores,
    /// Guests measure time and idleness: two programs, a test at a time each.
    Guests,
}

impl Share {
    fn programs(self) -> usize {
        match self {
            Self::Cores => thread::available_parallelism().map_or(1, usize::from),
            Self::Guests => 2,
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Cores => &[],
            Self::Guests => &["--test-threads=1"],
        }
    }
}

/// A test program.
pub struct Binary {
    package: String,
    name: String,
    kind: String,
    program: PathBuf,
    /// The package's directory, where tests expect to be.
    directory: PathBuf,
}

impl Binary {
    /// Whether it runs `holm` on real guests: the integration tests of the
    /// package `holm` do.
    pub fn boots_guests(&self) -> bool {
        self.package == "holm" && self.kind == "test"
    }

    fn label(&self) -> String {
        format!("{} {} ({})", self.package, self.name, self.kind)
    }

    fn run(&self, share: Share) -> Result<Ran> {
        let start = Instant::now();
        let output = Command::new(&self.program)
            .args(share.options())
            .current_dir(&self.directory)
            .env("CARGO_MANIFEST_DIR", &self.directory)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        Ok(Ran {
            success: output.status.success(),
            status: output.status.to_string(),
            said: [output.stderr, output.stdout]
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .concat(),
            time: start.elapsed(),
        })
    }
}

struct Ran {
    success: bool,
    status: String,
    said: String,
    time: Duration,
}

/// Builds every test program of the workspace, in one go: what is built for a
/// part of it has other features, and is built once more.
///
/// # Errors
/// If cargo fails, or its messages are not understood.
pub fn build() -> Result<Vec<Binary>> {
    let output = host::cargo()
        .args(["test", "--workspace", "--profile", PROFILE, "--no-run"])
        .args(["--lib", "--bins", "--tests"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("building the tests failed ({})", output.status);
    }
    let messages = String::from_utf8(output.stdout).context("reading cargo's messages")?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line)
            .with_context(|| format!("reading cargo's message {line}"))?;
        binaries.extend(message.binary()?);
    }
    if binaries.is_empty() {
        bail!("cargo named no test program");
    }
    binaries.sort_by_key(|binary| {
        let place = LONG.iter().position(|name| *name == binary.name);
        (place.unwrap_or(LONG.len()), binary.label())
    });
    Ok(binaries)
}

/// What cargo says of an artifact (`cargo test --message-format=json`).
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Message {
    fn binary(self) -> Result<Option<Binary>> {
        let is_test = self.profile.is_some_and(|profile| profile.test);
        let (true, Some(program)) = (
            is_test && self.reason == "compiler-artifact",
            self.executable,
        ) else {
            return Ok(None);
        };
        let target = self.target.context("cargo named no target")?;
        let directory = self
            .manifest_path
            .as_deref()
            .and_then(std::path::Path::parent)
            .context("cargo named no manifest")?;
        let package = directory.file_name().unwrap_or_default();
        Ok(Some(Binary {
            package: package.to_string_lossy().into_owned(),
            name: target.name,
            kind: target.kind.join("+"),
            program,
            directory: directory.to_owned(),
        }))
    }
}

/// Runs all of them, and shows what each printed when it has ended.
///
/// # Errors
/// Names the programs that failed, after all have run.
pub fn run(binaries: Vec<Binary>, share: Share) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(binaries));
    let failed = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let next = locked(&queue).pop_front();
            let Some(binary) = next else { return Ok(()) };
            let label = binary.label();
            let ran = binary.run(share)?;
            print!("xtask: {label}: {:.0?}\n{}", ran.time, ran.said);
            if !ran.success {
                println!("xtask: {label} FAILED ({})", ran.status);
                locked(&failed).push(label);
            }
        }
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..share.programs()).map(|_| scope.spawn(work)).collect();
        for thread in running {
            thread
                .join()
                .map_err(|_| anyhow!("a thread that runs tests panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
