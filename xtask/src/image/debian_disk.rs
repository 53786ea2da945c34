//! Image `debian-disk`: the Debian that `holm image build` builds, with what
//! tests and benchmarks use.

use std::path::Path;

use anyhow::Result;
use images::recipe::{Apt, BASE_PACKAGES, Build, Recipe};

use super::Made;

/// What is made.
pub(super) fn recipe() -> Result<Recipe> {
    let text = include_str!("../../images/debian-disk.toml");
    Ok(Recipe::parse(text, "debian-disk.toml", Path::new(""))?)
}

/// All packages that it names.
pub(super) fn packages(recipe: &Recipe) -> Vec<&str> {
    let own = recipe.packages.iter().map(String::as_str);
    BASE_PACKAGES.iter().copied().chain(own).collect()
}

pub(super) fn make(apt: &Apt, directory: &Path) -> Result<Made> {
    let build = Build {
        recipe: &recipe()?,
        apt,
        directory,
    };
    build.run(&mut |step| eprintln!("xtask: {step}"))?;
    Ok(Made {
        kernel: false,
        cmdline: "",
        disks: &["disk.img"],
    })
}
