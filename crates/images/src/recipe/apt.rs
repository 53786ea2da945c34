//! Debian packages from the host's own sources, without touching the host:
//! apt with its lists and downloads in Holm's cache, so no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::program::{RecipeError, output};
use crate::files::write_whole;

/// The release the images are made of, unless a recipe says otherwise.
pub const SUITE: &str = "bookworm";
/// Releases that a Debian host's sources may name.
const SUITES: [&str; 7] = [
    "stable", "bookworm", "trixie", "forky", "testing", "sid", "bullseye",
];
/// Releases with all in themselves: sid, and those out of support, of whose
/// updates mirrors have lists but no longer all packages.
const WITHOUT_UPDATES: [&str; 2] = ["sid", "bullseye"];
/// The keys that packages are checked with, of the host and in the guest.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Age at which package lists are fetched again.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A private apt.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
    suite: String,
}

impl Apt {
    /// Prepares the private state in `directory`; fetches the package lists if
    /// they are missing, a week old, or `refresh` asks for it. Packages come
    /// from `mirror`, or from where the host's own do.
    ///
    /// # Errors
    /// If the host has no Debian sources, or the lists cannot be had at all.
    pub fn open(
        directory: &Path,
        suite: &str,
        mirror: Option<&str>,
        refresh: bool,
    ) -> Result<Self, RecipeError> {
        let apt = Self {
            directory: directory.to_path_buf(),
            suite: suite.into(),
        };
        let failed = |e| RecipeError::host(directory, "prepare", e);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.directory.join(part)).map_err(failed)?;
        }
        let sources = match mirror {
            Some(mirror) => of_mirror(mirror, suite)?,
            None => host_sources(suite)?,
        };
        let unchanged = fs::read_to_string(apt.sources()).is_ok_and(|old| old == sources);
        write_whole(&apt.sources(), sources.as_bytes()).map_err(failed)?;
        fs::write(apt.directory.join("status"), "").map_err(failed)?;
        let stamp = apt.directory.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        if refresh || !unchanged || age.is_none_or(|a| a > STALE) {
            match output(apt.command("apt-get").args(["-q", "-y", "update"])) {
                Ok(_) => fs::write(&stamp, "").map_err(failed)?,
                Err(error) if unchanged && age.is_some() => {
                    tracing::warn!("going on with old package lists: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(apt)
    }

    /// The release.
    #[must_use]
    pub fn suite(&self) -> &str {
        &self.suite
    }

    /// The sources as a one-line-style file, for mmdebstrap.
    #[must_use]
    pub fn sources(&self) -> PathBuf {
        self.directory.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let d = self.directory.display();
        for option in [
            format!("Dir::State={d}"),
            format!("Dir::State::lists={d}/lists"),
            format!("Dir::State::status={d}/status"),
            format!("Dir::Cache={d}/cache"),
            format!("Dir::Etc::sourcelist={d}/sources.list"),
            "Dir::Etc::sourceparts=-".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// The version that would be installed, for each package.
    ///
    /// # Errors
    /// If one does not exist.
    pub fn versions(&self, packages: &[&str]) -> Result<Vec<(String, String)>, RecipeError> {
        let text = output(
            self.command("apt-cache")
                .env("LC_ALL", "C")
                .arg("policy")
                .args(packages),
        )?;
        packages
            .iter()
            .map(|package| {
                candidate(&text, package)
                    .map(|version| ((*package).to_owned(), version))
                    .ok_or_else(|| {
                        RecipeError::Sources(format!(
                            "the package sources have no {package} for {}",
                            self.suite
                        ))
                    })
            })
            .collect()
    }

    /// The package of the same kind that a metapackage depends on, else its first
    /// dependency: `linux-image-cloud-amd64` leads to `linux-image-6.1.0-…`.
    ///
    /// # Errors
    /// If there is none.
    pub fn dependency(&self, package: &str) -> Result<String, RecipeError> {
        let text = output(
            self.command("apt-cache")
                .env("LC_ALL", "C")
                .args(["depends", package]),
        )?;
        let kind = package.rsplitn(3, '-').last().unwrap_or(package);
        let needed = || {
            text.lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
        };
        needed()
            .find(|name| name.starts_with(kind))
            .or_else(|| needed().next())
            .map(str::to_owned)
            .ok_or_else(|| RecipeError::Sources(format!("package {package} depends on nothing")))
    }

    /// Downloads a package (once per version) and unpacks it into `into`.
    ///
    /// # Errors
    /// If apt or dpkg-deb fail.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<(), RecipeError> {
        let failed = |e| RecipeError::host(into, "unpack a package to", e);
        let (_, version) = self.versions(&[package])?.remove(0);
        let kept = self
            .directory
            .join("cache")
            .join(format!("{package}_{version}.deb"));
        if !kept.is_file() {
            let scratch = self
                .directory
                .join(format!("download-{}", std::process::id()));
            fs::create_dir_all(&scratch).map_err(failed)?;
            let mut download = self.command("apt-get");
            download
                .current_dir(&scratch)
                .args(["-q", "download", package]);
            output(&mut download)?;
            let deb = fs::read_dir(&scratch)
                .map_err(failed)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| path.extension().is_some_and(|e| e == "deb"));
            let missing = || RecipeError::Sources(format!("apt-get brought no file for {package}"));
            fs::rename(deb.ok_or_else(missing)?, &kept).map_err(failed)?;
            fs::remove_dir_all(&scratch).map_err(failed)?;
        }
        output(Command::new("dpkg-deb").arg("-x").args([&kept, into]))?;
        Ok(())
    }
}

/// `Candidate:` of one package in the output of `apt-cache policy`.
fn candidate(policy: &str, package: &str) -> Option<String> {
    let heading = format!("{package}:");
    let mut lines = policy.lines().skip_while(|line| *line != heading).skip(1);
    lines
        .by_ref()
        .take_while(|line| line.starts_with(' '))
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

/// The sources of a mirror of Debian. Security updates are not on mirrors.
fn of_mirror(mirror: &str, suite: &str) -> Result<String, RecipeError> {
    let plain = mirror.bytes().all(|b| b.is_ascii_graphic() && b != b'[');
    if !plain || !mirror.contains(":/") {
        let text = format!("{mirror:?} is no address of a Debian mirror");
        return Err(RecipeError::Sources(text));
    }
    let mut suites = vec![suite.to_owned()];
    if !WITHOUT_UPDATES.contains(&suite) {
        suites.push(format!("{suite}-updates"));
    }
    Ok(suites
        .iter()
        .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
        .collect())
}

/// The host's sources of Debian itself, as one-line entries of a release.
fn host_sources(suite: &str) -> Result<String, RecipeError> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => lines.extend(text.lines().filter_map(|line| one_line(line, suite))),
            Some("sources") => {
                lines.extend(text.split("\n\n").flat_map(|text| stanza(text, suite)))
            }
            _ => {}
        }
    }
    lines.sort();
    lines.dedup();
    let end = format!(" {suite} main");
    if !lines.iter().any(|line| line.ends_with(&end)) {
        return Err(RecipeError::Sources(
            "/etc/apt names no source of Debian (component main): images are made from the host's \
             own package sources, so add one there, or give one with --mirror"
                .into(),
        ));
    }
    Ok(lines.join("\n") + "\n")
}

fn one_line(line: &str, wanted: &str) -> Option<String> {
    let line = line.trim();
    let rest = line.strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if !words.any(|component| component == "main") {
        return None;
    }
    entry(uri, suite, wanted)
}

fn stanza(text: &str, wanted: &str) -> Vec<String> {
    let field = |name: &str| -> Vec<&str> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.split_whitespace().collect())
            .unwrap_or_default()
    };
    if !field("Types").contains(&"deb")
        || !field("Components").contains(&"main")
        || field("Enabled").contains(&"no")
    {
        return Vec::new();
    }
    let suites = field("Suites");
    field("URIs")
        .iter()
        .flat_map(|uri| suites.iter().filter_map(|suite| entry(uri, suite, wanted)))
        .collect()
}

/// An entry for the release that is wanted, if this is a source of Debian (not
/// of a third party): suites of other releases are replaced.
fn entry(uri: &str, suite: &str, wanted: &str) -> Option<String> {
    let (release, pocket) = match suite.split_once('-') {
        Some((release, pocket)) => (release, format!("-{pocket}")),
        None => (suite, String::new()),
    };
    if WITHOUT_UPDATES.contains(&wanted) && !pocket.is_empty() {
        return None;
    }
    let known = release == wanted || SUITES.contains(&release);
    let taken = matches!(pocket.as_str(), "" | "-security" | "-updates");
    if !known || !taken || !uri.contains("debian") {
        return None;
    }
    Some(format!(
        "deb [signed-by={KEYRING}] {uri} {wanted}{pocket} main"
    ))
}

#[cfg(test)]
mod tests {
    use super::{candidate, of_mirror};

    fn one_line(line: &str) -> Option<String> {
        super::one_line(line, "bookworm")
    }

    fn stanza(text: &str) -> Vec<String> {
        super::stanza(text, "bookworm")
    }

    #[test]
    fn sources_of_both_styles_become_entries_of_the_suite() {
        let expected = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                        http://mirror/debian bookworm-updates main";
        assert_eq!(
            one_line(
                "deb [arch=amd64 signed-by=/x] http://mirror/debian trixie-updates contrib main"
            )
            .unwrap(),
            expected
        );
        let text = "Types: deb deb-src\nURIs: http://mirror/debian\n\
                    Suites: bookworm-updates bookworm-backports\nComponents: main\n";
        assert_eq!(stanza(text), [expected]);
    }

    #[test]
    fn some_releases_have_no_updates() {
        let text = "Types: deb\nURIs: http://mirror/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(super::stanza(text, "sid").len(), 1);
        assert_eq!(super::stanza(text, "bullseye").len(), 1);
        assert_eq!(super::stanza(text, "trixie").len(), 2);
        assert!(
            !of_mirror("http://mirror/debian", "sid")
                .unwrap()
                .contains("-updates")
        );
    }

    #[test]
    fn third_parties_sources_and_disabled_ones_are_left_out() {
        assert_eq!(one_line("deb http://vendor/apt nodistro main"), None);
        assert_eq!(one_line("# deb http://mirror/debian bookworm main"), None);
        assert!(
            stanza("Types: deb\nURIs: http://mirror/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n")
                .is_empty()
        );
    }

    #[test]
    fn a_mirror_is_an_address() {
        let sources = of_mirror("http://mirror/debian", "trixie").unwrap();
        assert!(
            sources.contains(" http://mirror/debian trixie main\n"),
            "{sources}"
        );
        for bad in ["", "mirror", "http://a b/", "[x] http://a/"] {
            assert!(of_mirror(bad, "trixie").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_candidate_belongs_to_its_own_package() {
        let policy =
            "a:\n  Installed: (none)\n  Candidate: (none)\nb:\n  Installed: 1\n  Candidate: 2-3\n";
        assert_eq!(candidate(policy, "a"), None);
        assert_eq!(candidate(policy, "b").unwrap(), "2-3");
        assert_eq!(candidate(policy, "c"), None);
    }
}
