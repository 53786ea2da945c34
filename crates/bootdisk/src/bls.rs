//! Boot Loader Specification (UAPI.1), type 1 entries: small files in
//! `/loader/entries`.

use std::cmp::Ordering;

use crate::filesystem::FileSystem;
use crate::version;

/// Longest entry file, in bytes.
const LONGEST: u64 = 64 << 10;
/// Most entries.
const MOST: usize = 256;
/// Most initial RAM disks of an entry.
const MOST_INITRDS: usize = 64;

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The file's name without `.conf` and without its counter of tries.
    pub name: String,
    /// Tries left, if they are counted; at 0 the entry is bad.
    pub tries_left: Option<u32>,
    /// `title`.
    pub shown: Option<String>,
    /// `version`.
    pub version: Option<String>,
    /// `machine-id`.
    pub machine_id: Option<String>,
    /// `sort-key`.
    pub sort_key: Option<String>,
    /// `architecture`.
    pub architecture: Option<String>,
    /// `linux`: absolute path on the entry's file system.
    pub linux: Option<String>,
    /// `efi` or `uki`: a program for the firmware.
    pub efi: Option<String>,
    /// `initrd`, in order.
    pub initrds: Vec<String>,
    /// All `options`, joined.
    pub options: String,
}

impl Entry {
    /// What a menu shows.
    pub fn title(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.name)
    }

    /// Whether this machine could run it.
    fn fits(&self) -> bool {
        self.architecture
            .as_ref()
            .is_none_or(|a| a.eq_ignore_ascii_case("x64"))
    }
}

/// The entries of a directory, in no particular order; none if there is no
/// such directory.
pub fn read(volume: &dyn FileSystem, directory: &str) -> Vec<Entry> {
    let names = volume.names(directory).unwrap_or_default();
    names
        .iter()
        .filter(|name| name.to_lowercase().ends_with(".conf"))
        .take(MOST)
        .filter_map(|name| {
            let content = volume.read(&format!("{directory}/{name}"), LONGEST).ok()?;
            Some(parse(name, &String::from_utf8_lossy(&content)))
        })
        .filter(Entry::fits)
        .collect()
}

/// An entry from its file's name and text.
pub fn parse(file: &str, text: &str) -> Entry {
    let stem = match file
        .len()
        .checked_sub(5)
        .and_then(|n| file.split_at_checked(n))
    {
        Some((stem, end)) if end.eq_ignore_ascii_case(".conf") => stem,
        _ => file,
    };
    let (name, tries_left) = tries(stem);
    let mut entry = Entry {
        name: name.to_owned(),
        tries_left,
        ..Entry::default()
    };
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once([' ', '\t']) else {
            continue;
        };
        let value = value.trim();
        if key.starts_with('#') || value.is_empty() {
            continue;
        }
        let own = || Some(value.to_owned());
        match key {
            "title" => entry.shown = own(),
            "version" => entry.version = own(),
            "machine-id" => entry.machine_id = own(),
            "sort-key" => entry.sort_key = own(),
            "architecture" => entry.architecture = own(),
            "linux" => entry.linux = Some(absolute(value)),
            "efi" | "uki" => entry.efi = Some(absolute(value)),
            "initrd" if entry.initrds.len() < MOST_INITRDS => entry.initrds.push(absolute(value)),
            "options" => {
                if !entry.options.is_empty() {
                    entry.options.push(' ');
                }
                entry.options.push_str(value);
            }
            _ => {}
        }
    }
    entry
}

/// A path with a slash in front; GRUB's variables stay alone.
fn absolute(path: &str) -> String {
    match path.starts_with(['/', '$']) {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

/// Takes the counter of tries off a name: `name+LEFT` or `name+LEFT-DONE`.
pub fn tries(stem: &str) -> (&str, Option<u32>) {
    let Some((name, counter)) = stem.rsplit_once('+') else {
        return (stem, None);
    };
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    match (left.parse(), done.parse::<u32>()) {
        (Ok(left), Ok(_)) => (name, Some(left)),
        _ => (stem, None),
    }
}

/// What the order of entries looks at.
#[derive(Clone, Debug, Default)]
pub struct Rank<'a> {
    /// Tries left, if counted.
    pub tries_left: Option<u32>,
    /// `sort-key`.
    pub sort_key: Option<&'a str>,
    /// `machine-id`.
    pub machine_id: &'a str,
    /// `version`.
    pub version: &'a str,
    /// The name.
    pub name: &'a str,
}

impl Entry {
    /// For [`order`].
    pub fn rank(&self) -> Rank<'_> {
        Rank {
            tries_left: self.tries_left,
            sort_key: self.sort_key.as_deref(),
            machine_id: self.machine_id.as_deref().unwrap_or_default(),
            version: self.version.as_deref().unwrap_or_default(),
            name: &self.name,
        }
    }
}

/// The order of a menu: entries without tries left last; those with a sort key
/// first, by key, machine and newest version; then by name, newest first.
pub fn order(a: &Rank<'_>, b: &Rank<'_>) -> Ordering {
    let bad = |r: &Rank<'_>| r.tries_left == Some(0);
    let keyed = match (a.sort_key, b.sort_key) {
        (Some(x), Some(y)) => (x.cmp(y))
            .then(a.machine_id.cmp(b.machine_id))
            .then(version::compare(b.version, a.version)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    bad(a)
        .cmp(&bad(b))
        .then(keyed)
        .then(version::compare(b.name, a.name))
}

/// What `loader.conf` says of the default: a pattern for names, or nothing.
pub fn default_pattern(text: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| {
        let (key, value) = line.trim().split_once([' ', '\t'])?;
        (key == "default").then(|| value.trim().to_owned())
    })?;
    // These name entries in the firmware's memory, which a disk has not.
    (!line.is_empty() && !line.starts_with('@')).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry() {
        let text = "# made by hand\ntitle\tHand 1\nversion 6.1\nlinux vm\ninitrd /a\ninitrd /b\n\
                    options root=UUID=1  ro\noptions $tuned\nfoo bar\narchitecture x64\n";
        let entry = parse("abc-6.1+3-1.conf", text);
        assert_eq!(entry.name, "abc-6.1");
        assert_eq!(entry.tries_left, Some(3));
        assert_eq!(entry.title(), "Hand 1");
        assert_eq!(entry.linux.as_deref(), Some("/vm"));
        assert_eq!(entry.initrds, ["/a", "/b"]);
        assert_eq!(entry.options, "root=UUID=1  ro $tuned");
        assert!(entry.fits());
        assert!(!parse("a.conf", "architecture aa64").fits());
        assert_eq!(tries("c++"), ("c++", None));
        assert_eq!(tries("a+0"), ("a", Some(0)));
    }

    #[test]
    fn the_order_of_a_menu() {
        let make = |name: &str, text: &str| parse(name, text);
        let mut entries = [
            make("a-5.9.conf", ""),
            make("a-5.10.conf", ""),
            make("z+0-3.conf", "sort-key a\nversion 99"),
            make("k1.conf", "sort-key debian\nversion 6.1"),
            make("k2.conf", "sort-key debian\nversion 6.10"),
            make("k3.conf", "sort-key arch\nversion 1"),
        ];
        entries.sort_by(|a, b| order(&a.rank(), &b.rank()));
        let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["k3", "k2", "k1", "a-5.10", "a-5.9", "z"]);
    }

    #[test]
    fn the_default() {
        assert_eq!(
            default_pattern("timeout 3\n default  fedora-*\n"),
            Some("fedora-*".into())
        );
        assert_eq!(default_pattern("default @saved\n"), None);
        assert_eq!(default_pattern("#default x\n"), None);
    }

    proptest! {
        #[test]
        fn any_entry_is_read(name in ".{0,40}", text in "(?s).{0,300}") {
            let entry = parse(&name, &text);
            prop_assert!(entry.initrds.len() <= MOST_INITRDS);
        }

        #[test]
        fn the_order_is_one(names in proptest::collection::vec("[a-c]{0,3}(\\+[0-2])?", 0..20)) {
            let mut entries: Vec<Entry> = names.iter().map(|n| parse(&format!("{n}.conf"), "")).collect();
            entries.sort_by(|a, b| order(&a.rank(), &b.rank()));
        }
    }
}
