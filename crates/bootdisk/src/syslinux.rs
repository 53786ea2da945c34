//! Configurations of EXTLINUX and SYSLINUX.

use crate::filesystem::FileSystem;

/// Longest configuration, in bytes.
const LONGEST: u64 = 256 << 10;
/// Most entries.
const MOST: usize = 256;
/// Deepest `INCLUDE`.
const DEEPEST: usize = 8;
/// Most files read by `INCLUDE`.
const MOST_FILES: usize = 64;
/// Where a configuration can be.
pub const PLACES: [&str; 9] = [
    "/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
];

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// `LABEL`.
    pub label: String,
    /// `MENU LABEL`.
    pub shown: Option<String>,
    /// `LINUX` or `KERNEL`: absolute path.
    pub kernel: Option<String>,
    /// `INITRD`, and `initrd=` of the options.
    pub initrds: Vec<String>,
    /// `APPEND`, without `initrd=`.
    pub append: String,
    /// `MENU DEFAULT`.
    pub is_default: bool,
}

/// A configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// In order.
    pub entries: Vec<Entry>,
    /// `DEFAULT`.
    default: Option<String>,
    /// `APPEND` before the first label.
    append: String,
    files: usize,
}

impl Config {
    /// The index of the entry that starts by itself.
    pub fn default_index(&self) -> Option<usize> {
        let marked = self.entries.iter().position(|e| e.is_default);
        let named = self.default.as_ref().and_then(|name| {
            let same = |e: &Entry| e.label.eq_ignore_ascii_case(name);
            self.entries.iter().position(same)
        });
        marked.or(named).or((!self.entries.is_empty()).then_some(0))
    }
}

/// Reads the configuration at a path; `None`: there is none.
pub fn read(volume: &dyn FileSystem, path: &str) -> Option<Config> {
    let mut config = Config::default();
    include(volume, path, directory(path), &mut config, 0)?;
    for entry in &mut config.entries {
        if entry.append.is_empty() {
            entry.append.clone_from(&config.append);
        }
        take_initrds(entry, directory(path));
    }
    Some(config)
}

fn include(
    volume: &dyn FileSystem,
    path: &str,
    base: &str,
    config: &mut Config,
    depth: usize,
) -> Option<()> {
    config.files += 1;
    if depth > DEEPEST || config.files > MOST_FILES {
        return None;
    }
    let content = volume.read(path, LONGEST).ok()?;
    for line in String::from_utf8_lossy(&content).lines() {
        if let Some(file) = statement(line.trim(), base, config) {
            // A menu without one of its parts is still a menu.
            let _ = include(volume, &file, base, config, depth + 1);
        }
    }
    Some(())
}

/// Takes a line into the configuration; gives a file to include.
fn statement(line: &str, base: &str, config: &mut Config) -> Option<String> {
    let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let value = value.trim();
    let key = key.to_ascii_lowercase();
    let room = config.entries.len() < MOST;
    match (key.as_str(), config.entries.last_mut()) {
        ("default" | "ontimeout", _) if key == "default" || config.default.is_none() => {
            config.default = Some(value.to_owned());
        }
        ("label", _) if room => config.entries.push(Entry {
            label: value.to_owned(),
            ..Entry::default()
        }),
        ("include", _) => return Some(absolute(value.split_whitespace().next()?, base)),
        ("menu", entry) => {
            let (key, value) = value.split_once([' ', '\t']).unwrap_or((value, ""));
            match (key.to_ascii_lowercase().as_str(), entry) {
                ("include", _) => {
                    return Some(absolute(value.split_whitespace().next()?, base));
                }
                ("label", Some(entry)) => {
                    // A circumflex marks a key.
                    entry.shown = Some(value.trim().replace('^', ""));
                }
                ("default", Some(entry)) => entry.is_default = true,
                _ => {}
            }
        }
        ("kernel" | "linux", Some(entry)) => entry.kernel = Some(absolute(value, base)),
        ("initrd", Some(entry)) => {
            entry.initrds = value.split(',').map(|i| absolute(i.trim(), base)).collect();
        }
        ("append", Some(entry)) => {
            // A lone hyphen means: not even the common options.
            entry.append = if value == "-" { " " } else { value }.to_owned();
        }
        ("append", None) => config.append = value.to_owned(),
        _ => {}
    }
    None
}

/// `initrd=a,b` among the options is for the loader.
fn take_initrds(entry: &mut Entry, base: &str) {
    let mut kept = Vec::new();
    for word in entry.append.split_whitespace() {
        match word.strip_prefix("initrd=") {
            Some(files) if entry.initrds.is_empty() => {
                entry.initrds = files.split(',').map(|f| absolute(f, base)).collect();
            }
            Some(_) => {}
            None => kept.push(word),
        }
    }
    entry.append = kept.join(" ");
    entry.initrds.retain(|i| !i.ends_with('/'));
    entry.initrds.truncate(64);
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Paths are relative to the configuration's directory.
fn absolute(path: &str, base: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{base}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Files;
    use proptest::prelude::*;

    fn config(text: &str) -> Config {
        let files = Files::new([
            ("/boot/extlinux.conf", text),
            ("/boot/more.conf", "LABEL extra\n LINUX /x\n"),
        ]);
        read(&files, "/boot/extlinux.conf").unwrap()
    }

    #[test]
    fn as_alpine_writes_it() {
        let found = config(
            "DEFAULT menu.c32\nPROMPT 0\nMENU TITLE Hand/Linux\nDEFAULT virt\n\nLABEL lts\n  MENU LABEL Hand ^lts\n  \
             LINUX vmlinuz-lts\n  INITRD ucode.img,initramfs-lts\n  APPEND root=UUID=1 quiet\n\
             LABEL virt\n  MENU DEFAULT\n  KERNEL /boot/vmlinuz-virt\n  \
             APPEND initrd=initramfs-virt root=/dev/vda2\nMENU INCLUDE more.conf\n",
        );
        assert_eq!(found.default_index(), Some(1));
        assert_eq!(found.entries.len(), 3);
        let lts = &found.entries[0];
        assert_eq!(lts.shown.as_deref(), Some("Hand lts"));
        assert_eq!(lts.kernel.as_deref(), Some("/boot/vmlinuz-lts"));
        assert_eq!(lts.initrds, ["/boot/ucode.img", "/boot/initramfs-lts"]);
        let virt = &found.entries[1];
        assert_eq!(virt.append, "root=/dev/vda2");
        assert_eq!(virt.initrds, ["/boot/initramfs-virt"]);
        assert_eq!(found.entries[2].label, "extra");
    }

    #[test]
    fn a_configuration_that_includes_itself_ends() {
        let found = config("INCLUDE extlinux.conf\nINCLUDE extlinux.conf\nLABEL a\nLINUX b\n");
        assert!(!found.entries.is_empty() && found.entries.len() <= MOST);
    }

    proptest! {
        #[test]
        fn any_text_is_read(lines in proptest::collection::vec(
            "(LABEL|MENU|DEFAULT|APPEND|INCLUDE|INITRD|LINUX|menu label|x)[ \t]?.{0,12}", 0..40))
        {
            let found = config(&lines.join("\n"));
            if let Some(index) = found.default_index() {
                prop_assert!(index < found.entries.len());
            }
        }
    }
}
