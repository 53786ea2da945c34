//! Recipes into the library.

use super::{Apt, Build, Recipe, RecipeError};
use crate::staging::{self, Staging};
use crate::{Digest, ImportOptions, Library, files};

/// The directory of builds in a library's.
const BUILDS: &str = "builds";

/// How an image is built.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Where packages come from instead of the host's own sources.
    pub mirror: Option<String>,
    /// Fetch the package lists even if they are new.
    pub refresh: bool,
}

impl Library {
    /// Builds an image and keeps it, without a name. `heard` is told each step
    /// before it begins.
    ///
    /// # Errors
    /// [`RecipeError`]; then nothing of it is left.
    pub fn build(
        &self,
        recipe: &Recipe,
        options: &BuildOptions,
        heard: &mut dyn FnMut(&str),
    ) -> Result<Digest, RecipeError> {
        let builds = self.directory().join(BUILDS);
        let failed = |e| RecipeError::host(&builds, "build in", e);
        files::make_directory(&builds)?;
        staging::sweep(&builds).map_err(failed)?;
        let staging = Staging::begin(&builds).map_err(failed)?;
        heard("reading package lists");
        let lists = builds.join(format!("apt-{}", recipe.suite));
        let mirror = options.mirror.as_deref();
        let apt = Apt::open(&lists, &recipe.suite, mirror, options.refresh)?;
        let build = Build {
            recipe,
            apt: &apt,
            directory: staging.path(),
        };
        let disk = build.run(heard)?;
        heard("adding it to the library");
        let import = ImportOptions {
            source: format!("recipe {}", recipe.name),
            labels: recipe.labels.clone(),
            ..ImportOptions::default()
        };
        let format = disk::Format::Raw;
        Ok(self.import_disk(&disk, format, &import, &mut |_, _| {})?)
    }
}
