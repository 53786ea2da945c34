//! Running the host's programs and installing the few packages they come from.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

pub use images::recipe::Need;

/// Makes sure that every program is there; installs what is missing if it may.
///
/// # Errors
/// Names the command to type where this process may not install packages.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|n| find(n.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!(
            "xtask: package {} is missing: needed to {}",
            need.package, need.purpose
        );
    }
    let mut packages: Vec<&str> = missing.iter().map(|n| n.package).collect();
    packages.sort_unstable();
    packages.dedup();
    install(&packages)?;
    for need in missing {
        if find(need.program).is_none() {
            bail!(
                "package {} was installed, but {} is still not found",
                need.package,
                need.program
            );
        }
    }
    Ok(())
}

/// Installs Debian packages.
///
/// # Errors
/// Names the command to type where this process may not.
pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if find("apt-get").is_none() {
        bail!(
            "this is no Debian host: install by hand what Debian calls {}",
            packages.join(" ")
        );
    }
    let prefix: &[&str] = if is_root() {
        &[]
    } else if find("sudo").is_some() {
        &["sudo"]
    } else {
        bail!("as root, type: {by_hand}");
    };
    eprintln!("xtask: {by_hand}");
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut words: Vec<&str> = prefix.to_vec();
        words.extend([
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-q",
            "-y",
        ]);
        words.extend(arguments);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdout(Stdio::null());
        run(&mut command)
    };
    let mut arguments = vec!["install", "--no-install-recommends"];
    arguments.extend(packages);
    // The package lists may be missing (fresh container) or stale.
    if apt(&arguments).is_err() {
        apt(&["update"])?;
        apt(&arguments).with_context(|| format!("to do it by hand, type as root: {by_hand}"))?;
    }
    Ok(())
}

/// Where a program is, if anywhere.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|p| p.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process has the rights of root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs to the end; its output goes where ours goes.
///
/// # Errors
/// Names the command if it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs to the end and returns what it printed on stdout; its stderr is shown
/// only if it fails.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!(
            "{} failed ({status}):\n{}",
            shown(command),
            String::from_utf8_lossy(&stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    let words: Vec<_> = words.into_iter().map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// The workspace's root directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Cargo, as it was called.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Builds `holm` optimized and returns where the program is.
///
/// # Errors
/// If cargo fails.
pub fn build_holm() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "holm"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |d| root().join(d));
    let program = target.join("release/holm");
    if !program.is_file() {
        bail!("cargo built no {}", program.display());
    }
    Ok(program)
}

/// Holm's cache: `$XDG_CACHE_HOME/holm`, by default `~/.cache/holm`.
///
/// # Errors
/// If neither XDG_CACHE_HOME nor HOME is set.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| Path::new(v).is_absolute()) {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(
            std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?,
        )
        .join(".cache"),
    };
    Ok(base.join("holm"))
}
