//! Recipes: how an image is built from packages.
//!
//! A recipe is a TOML file, version 1. `debian` is built in.
//!
//! ```toml
//! version = 1
//! name = "web"
//! base = "debian"                      # the built-in Debian; the only base
//! suite = "bookworm"                   # Debian's release
//! size = "8G"
//! packages = ["nginx"]                 # beside the base's
//! commands = ["systemctl enable nginx"] # in the image, as root, by sh -eu
//!
//! [[files]]
//! path = "/var/www/html/index.html"
//! mode = "0644"
//! content = "hello"                    # or: source = "index.html", beside the recipe
//!
//! [labels]
//! team = "web"
//! ```

mod apt;
mod build;
mod library;
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path};

use serde::Deserialize;

pub use apt::{Apt, KEYRING, SUITE};
pub use build::{BASE_NEEDS, BASE_PACKAGES, Build, CONSOLE_SIZE, KERNEL, install, with_ids};
pub use library::BuildOptions;
pub use program::{Need, RecipeError};

/// The only version so far.
const VERSION: u64 = 1;
/// Longest recipe in bytes.
const LONGEST: usize = 1 << 20;
/// Longest file in a recipe in bytes.
const LONGEST_FILE: usize = 64 << 10;
/// The recipe that is built in.
const DEBIAN: &str = include_str!("debian.toml");
/// Least and most bytes of an image's disk.
const SIZES: std::ops::RangeInclusive<u64> = 1 << 30..=2 << 40;

/// How an image is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The name that the image gets in the library.
    pub name: String,
    /// Debian's release.
    pub suite: String,
    /// Bytes of its disk, whole MiB.
    pub size: u64,
    /// Packages beside the base's.
    pub packages: Vec<String>,
    /// Files beside those of packages.
    pub files: Vec<RecipeFile>,
    /// Commands in the image, after the files are there.
    pub commands: Vec<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
}

/// A file of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipeFile {
    /// Where it lies in the image.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(rename = "version")]
    _version: u64,
    name: String,
    base: String,
    #[serde(default = "suite")]
    suite: String,
    size: String,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    files: Vec<TextFile>,
    #[serde(default)]
    commands: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextFile {
    path: String,
    #[serde(default = "mode")]
    mode: String,
    content: Option<String>,
    source: Option<String>,
}

fn suite() -> String {
    SUITE.into()
}

fn mode() -> String {
    "0644".into()
}

impl Recipe {
    /// A recipe that is built in, or one in a file.
    ///
    /// # Errors
    /// [`RecipeError`]: there is none, or what is wrong with it.
    pub fn find(name: &str) -> Result<Self, RecipeError> {
        if name == "debian" {
            return Self::parse(DEBIAN, name, Path::new("/"));
        }
        let path = Path::new(name);
        let text = fs::read_to_string(path).map_err(|e| RecipeError::Recipe {
            place: name.into(),
            reason: format!("{e}; give a recipe's file, or debian, which is built in"),
        })?;
        Self::parse(&text, name, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads a recipe; `place` is for the errors, sources of files are looked
    /// for in `directory`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, place: &str, directory: &Path) -> Result<Self, RecipeError> {
        let wrong = |reason: String| RecipeError::Recipe {
            place: place.into(),
            reason,
        };
        if text.len() > LONGEST {
            return Err(wrong("it is too long for a recipe".into()));
        }
        let table: toml::Table = text
            .parse()
            .map_err(|e| wrong(format!("it is no TOML: {e}")))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(1) => {}
            Some(version) => {
                return Err(wrong(format!(
                    "it has version {version}; this Holm reads version {VERSION}: use a newer Holm"
                )));
            }
            None => return Err(wrong("it does not begin with version = 1".into())),
        }
        let text: Text = table.try_into().map_err(|e| wrong(e.to_string()))?;
        Self::check(text, directory).map_err(wrong)
    }

    fn check(text: Text, directory: &Path) -> Result<Self, String> {
        let easy = |text: &str, more: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !text.is_empty() && text.len() <= 64 && text.chars().all(good) && !text.starts_with('-')
        };
        if text.base != "debian" {
            return Err(format!("base {:?} is not known; debian is", text.base));
        }
        if crate::files::name(&text.name).is_err() || !easy(&text.suite, "-") {
            return Err("its name and suite have letters, digits and hyphens".into());
        }
        if let Some(bad) = text.packages.iter().find(|p| !easy(p, "+-.")) {
            return Err(format!("{bad:?} is no name of a package"));
        }
        let size = bytes(&text.size).filter(|size| SIZES.contains(size));
        let size = size.ok_or_else(|| {
            format!(
                "size {:?} is not from 1G to 2T (write it as 4G or 4096M)",
                text.size
            )
        })?;
        let files = text.files.into_iter().map(|file| read(file, directory));
        Ok(Self {
            name: text.name,
            suite: text.suite,
            size,
            packages: text.packages,
            files: files.collect::<Result<_, _>>()?,
            commands: text.commands,
            labels: text.labels,
        })
    }
}

/// Bytes of a size such as `4G`, in whole MiB.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix('G') {
        Some(digits) => (digits, 30),
        None => match text.strip_suffix('T') {
            Some(digits) => (digits, 40),
            None => (text.strip_suffix('M')?, 20),
        },
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

fn read(file: TextFile, directory: &Path) -> Result<RecipeFile, String> {
    let TextFile {
        path,
        mode,
        content,
        source,
    } = file;
    let parts = Path::new(&path).components();
    let plain = parts
        .clone()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let quotable = path
        .chars()
        .all(|c| c.is_alphanumeric() || "/._-+@ ".contains(c));
    if !path.starts_with('/') || !plain || parts.count() < 2 || !quotable || path.ends_with('/') {
        return Err(format!("{path:?} is no absolute path of a file"));
    }
    let mode = u32::from_str_radix(&mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    let mode = mode.ok_or_else(|| format!("{path}: its mode is not octal, such as \"0644\""))?;
    let content = match (content, source) {
        (Some(content), None) => content.into_bytes(),
        (None, Some(source)) => {
            let inside = Path::new(&source)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !inside {
                return Err(format!(
                    "{path}: its source {source:?} is not beside the recipe"
                ));
            }
            fs::read(directory.join(&source)).map_err(|e| format!("{path}: {source}: {e}"))?
        }
        _ => return Err(format!("{path}: say either content or source")),
    };
    if content.len() > LONGEST_FILE {
        return Err(format!(
            "{path}: files in recipes have at most {LONGEST_FILE} bytes; let a command fetch it"
        ));
    }
    Ok(RecipeFile {
        path,
        mode,
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe, RecipeError> {
        Recipe::parse(text, "test", Path::new("/nowhere"))
    }

    #[test]
    fn the_built_in_recipe_is_one() {
        let debian = Recipe::find("debian").unwrap();
        assert_eq!((debian.name.as_str(), debian.size), ("debian", 4 << 30));
        assert!(Recipe::find("/no/such/recipe.toml").is_err());
    }

    #[test]
    fn what_is_no_recipe_is_refused_with_the_reason() {
        let good = "version = 1\nname = \"x\"\nbase = \"debian\"\nsize = \"2G\"\n";
        assert_eq!(parse(good).unwrap().suite, SUITE);
        let file = |lines: &str| format!("{good}[[files]]\n{lines}");
        for (text, why) in [
            ("", "version = 1"),
            ("version = 2", "newer Holm"),
            ("nonsense", "no TOML"),
            (&good.replace("2G", "2"), "1G to 2T"),
            (&good.replace("2G", "99999999999T"), "1G to 2T"),
            (&good.replace("\"debian\"", "\"arch\""), "is not known"),
            (&format!("{good}surprise = 1"), "surprise"),
            (
                &format!("{good}packages = [\"a b\"]"),
                "no name of a package",
            ),
            (
                &format!("{good}packages = [\"--x\"]"),
                "no name of a package",
            ),
            (&file("path = \"/a\""), "either content or source"),
            (
                &file("path = \"/a/../b\"\ncontent = \"\""),
                "no absolute path",
            ),
            (&file("path = \"/a'b\"\ncontent = \"\""), "no absolute path"),
            (
                &file("path = \"/a\"\nmode = \"9\"\ncontent = \"\""),
                "not octal",
            ),
            (
                &file("path = \"/a\"\nsource = \"/etc/shadow\""),
                "not beside the recipe",
            ),
            (
                &file("path = \"/a\"\nsource = \"../x\""),
                "not beside the recipe",
            ),
        ] {
            let text = parse(text).unwrap_err().to_string();
            assert!(text.contains(why), "{why}: {text}");
        }
    }
}
