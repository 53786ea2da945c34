//! The Python environment with the clients that tests use, unmodified.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::{self, Need};

/// What is installed, of these versions.
const PACKAGES: &[&str] = &[
    "awscli==1.46.2",
    "boto3==1.44.5",
    "botocore==1.44.5",
    "schemathesis==4.32.5",
];

/// Makes sure that the environment is there (`clients` in Cargo's target
/// directory) and has what it should; its directory.
///
/// # Errors
/// Names the command that failed.
pub fn ensure() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| host::root().join("target"), |d| host::root().join(d));
    let directory = target.join("clients");
    let note = directory.join("holm-packages");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&note).is_ok_and(|has| has == wanted) {
        return Ok(directory);
    }
    host::ensure(&[Need {
        program: "python3",
        package: "python3",
        purpose: "run clients of EC2 and REST",
    }])?;
    // Debian has what makes environments in a package of its own.
    let can = Command::new("python3")
        .args(["-c", "import ensurepip"])
        .output();
    if !can.is_ok_and(|can| can.status.success()) {
        host::install(&["python3-venv"])?;
    }
    eprintln!(
        "xtask: installing {} to {}",
        PACKAGES.join(", "),
        directory.display()
    );
    host::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&directory),
    )?;
    let mut pip = Command::new(directory.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    host::run(pip.args(PACKAGES))?;
    std::fs::write(&note, wanted).context("noting what was installed")?;
    Ok(directory)
}
