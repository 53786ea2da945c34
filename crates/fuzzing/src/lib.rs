//! What the fuzz tests of all crates share (`tests/fuzz*.rs`): a target is a
//! function of bytes, which [`Fuzz::run`] calls with each file of its corpus
//! (`tests/corpus/TARGET/`) first, and then, for a bounded time, with mutations
//! of them. The same seed gives the same inputs.
//!
//! A panic of any thread, or an input that hangs, fails the test and leaves the
//! input in `target/tmp`: mend the fault, and keep the input in the corpus.
//!
//! | variable | meaning |
//! |---|---|
//! | `HOLM_FUZZ_SECONDS` | time for each target instead of 1.5 s |
//! | `HOLM_FUZZ_SEED` | another seed, a number |
//! | `HOLM_FUZZ_KEEP` | 1: inputs that behave as none did before are added to the corpus |
#![forbid(unsafe_code)]

mod input;
mod mutate;

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

pub use input::Input;
pub use mutate::Random;

/// Time for each target.
const TIME: Duration = Duration::from_millis(1500);
/// An input that takes so long hangs, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(90);
/// Most inputs that are kept in memory because they behave in a new way.
const POOL: usize = 4096;

/// Panics of all threads of the process.
static PANICS: AtomicU64 = AtomicU64::new(0);
/// What runs now: when it began and what it is.
static RUNNING: Mutex<Option<(Instant, PathBuf, Vec<u8>)>> = Mutex::new(None);
/// Targets take turns, so that a panic is known to be theirs.
static TURN: Mutex<()> = Mutex::new(());

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Fuzz<'a> {
    /// Its name, and that of its corpus.
    pub name: &'a str,
    /// `env!("CARGO_MANIFEST_DIR")` of the test's crate.
    pub crate_directory: &'a str,
    /// `env!("CARGO_TARGET_TMPDIR")`.
    pub scratch: &'a str,
    /// Words that mean something to the target.
    pub words: &'a [&'a [u8]],
    /// Longest input, in bytes.
    pub longest: usize,
}

impl Fuzz<'_> {
    /// Runs `target`, which says by a number how an input behaved: inputs with
    /// a new number are mutated further.
    ///
    /// # Panics
    /// If an input panics, in any thread, or hangs; that is the test's failure.
    pub fn run<N: Hash>(&self, mut target: impl FnMut(&[u8]) -> N) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        watch();
        let corpus = self.corpus();
        let mut seen = HashSet::new();
        let mut pool = vec![Vec::new()];
        for (path, input) in corpus {
            seen.insert(self.one(&mut target, &input, &path.display().to_string()));
            pool.push(input);
        }
        let (kept, begun) = (pool.len(), Instant::now());
        let (time, seed) = (self.time(), self.seed());
        let mut random = Random::new(seed);
        let mut count = 0u64;
        while begun.elapsed() < time || count < 10 {
            count += 1;
            let input = mutate::mutate(&mut random, &pool, self.words, self.longest);
            let behaviour = self.one(
                &mut target,
                &input,
                &format!("input {count} of seed {seed}"),
            );
            if seen.insert(behaviour) && pool.len() < POOL {
                self.keep(&input);
                pool.push(input);
            }
        }
        println!(
            "{}: {} of the corpus, {count} inputs, {} behaved in a new way",
            self.name,
            kept - 1,
            pool.len() - kept
        );
    }

    /// One input; the hash of its behaviour.
    fn one<N: Hash>(&self, target: &mut impl FnMut(&[u8]) -> N, input: &[u8], which: &str) -> u64 {
        let crash = Path::new(self.scratch).join(format!("crash-{}", self.name));
        let panics = PANICS.load(Ordering::SeqCst);
        let running = (Instant::now(), crash.clone(), input.to_vec());
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        let result = catch_unwind(AssertUnwindSafe(|| target(input)));
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match result {
            Ok(behaviour) if PANICS.load(Ordering::SeqCst) == panics => {
                let mut hasher = DefaultHasher::new();
                behaviour.hash(&mut hasher);
                hasher.finish()
            }
            _ => {
                let kept = fs::write(&crash, input);
                panic!(
                    "{}: {which} panics; mend the fault and move {} to {} ({kept:?})",
                    self.name,
                    crash.display(),
                    self.directory().display()
                );
            }
        }
    }

    fn directory(&self) -> PathBuf {
        Path::new(self.crate_directory)
            .join("tests/corpus")
            .join(self.name)
    }

    /// The files, by name.
    fn corpus(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let directory = self.directory();
        let mut files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let input = fs::read(&path).ok()?;
                Some((path, input))
            })
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{} has no files", directory.display());
        files
    }

    fn time(&self) -> Duration {
        let seconds = number("HOLM_FUZZ_SECONDS");
        seconds.map_or(TIME, Duration::from_secs)
    }

    fn seed(&self) -> u64 {
        number("HOLM_FUZZ_SEED").unwrap_or_else(|| {
            let mut hasher = DefaultHasher::new();
            self.name.hash(&mut hasher);
            hasher.finish()
        })
    }

    fn keep(&self, input: &[u8]) {
        if number("HOLM_FUZZ_KEEP") == Some(1) {
            let mut hasher = DefaultHasher::new();
            input.hash(&mut hasher);
            let path = self.directory().join(format!("{:016x}", hasher.finish()));
            fs::write(&path, input).expect("the corpus can be written");
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Counts panics, and ends the process when an input hangs; once.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            print(panic);
        }));
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((since, path, input)) = &*running
                    && since.elapsed() > PATIENCE
                {
                    let kept = fs::write(path, input);
                    eprintln!("an input hangs: {} ({kept:?})", path.display());
                    std::process::abort();
                }
            }
        });
    });
}
