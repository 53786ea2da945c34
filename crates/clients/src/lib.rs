//! The clients of EC2 and REST that tests run, unmodified: the AWS CLI, boto3,
//! Schemathesis.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// A program of the Python environment that `cargo xtask venv` makes in Cargo's
/// target directory.
///
/// # Panics
/// It is missing: says how to make it.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let path = root.join(target).join("clients/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo xtask venv` makes it",
        path.display()
    );
    path
}
