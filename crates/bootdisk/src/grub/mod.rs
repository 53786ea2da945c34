//! GRUB's configuration as distributions generate it: a small evaluator of
//! its script language. Nothing is started and nothing is written; what comes
//! out is the menu, and what each of its entries would start.

mod commands;
mod condition;
#[cfg(test)]
mod distributions;
mod environment;
mod evaluate;
pub mod script;

use crate::filesystem::FileSystem;

pub use evaluate::evaluate;

/// The disk as a script sees it.
pub trait World {
    /// GRUB's names of everything that has a file system, `hd0,gpt1` for
    /// instance, in the order of `search`.
    fn devices(&self) -> Vec<String>;

    /// The file system of a device.
    fn volume(&self, device: &str) -> Option<&dyn FileSystem>;

    /// The identity of a partition, as in `/dev/disk/by-partuuid`.
    fn partition_uuid(&self, device: &str) -> String;
}

/// Why a configuration gives no menu.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// A script cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// `(hd0,gpt1)/boot/grub/grub.cfg`.
        path: String,
        /// Why.
        reason: String,
    },
    /// A script has a fault.
    #[error("{path}, {error}")]
    Script {
        /// As above.
        path: String,
        /// Where and what.
        error: script::ScriptError,
    },
    /// A bound is passed that no honest configuration comes near.
    #[error("the configuration has too many or too large {0}")]
    TooMuch(&'static str),
    /// Commands beyond all measure: probably a loop without end.
    #[error("the configuration does not come to an end")]
    Endless,
}

/// A file on a device of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// GRUB's name of the device.
    pub device: String,
    /// Absolute path on it.
    pub path: String,
}

/// What an entry starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The kernel.
    pub kernel: Place,
    /// Initial RAM disks, in order.
    pub initrds: Vec<Place>,
    /// The kernel's command line, as GRUB gives it.
    pub cmdline: String,
}

/// An item of the menu.
#[derive(Clone, Debug)]
pub struct Item {
    /// `--id`, or the title.
    pub id: String,
    /// As shown.
    pub title: String,
    /// What it leads to.
    pub leads_to: LeadsTo,
}

/// What an item leads to.
#[derive(Clone, Debug)]
pub enum LeadsTo {
    /// A menu below.
    Menu(Vec<Item>),
    /// A kernel, or why none.
    Start(Result<Start, String>),
}

/// The menu of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Menu {
    /// In order.
    pub items: Vec<Item>,
    /// The variable `default`: an index, an id or a title; parts with `>`
    /// between them lead into menus below.
    pub default: String,
    /// The scripts that were run.
    pub scripts: Vec<Place>,
}

/// An entry with the way to it.
#[derive(Debug)]
pub struct Flat<'a> {
    /// Ids from the top, `>` between them.
    pub id: String,
    /// Titles from the top, `>` between them.
    pub title: String,
    /// What it starts.
    pub start: &'a Result<Start, String>,
}

impl Menu {
    /// All entries in order, those of menus below in their place.
    pub fn flat(&self) -> Vec<Flat<'_>> {
        let mut all = Vec::new();
        flatten(&self.items, "", "", &mut all);
        all
    }

    /// The index in [`Self::flat`] of the entry that `default` names; the
    /// first one if it names none.
    pub fn default_index(&self) -> Option<usize> {
        let mut items = &self.items;
        let mut before = 0;
        let mut words = self.default.split('>').map(str::trim);
        loop {
            let index = words.next().map_or(0, |word| choose(items, word));
            before += items.iter().take(index).map(count).sum::<usize>();
            match items.get(index).map(|item| &item.leads_to) {
                Some(LeadsTo::Start(_)) => return Some(before),
                Some(LeadsTo::Menu(below)) => items = below,
                None => return None,
            }
        }
    }
}

fn choose(items: &[Item], word: &str) -> usize {
    let named = items.iter().position(|i| i.id == word || i.title == word);
    let numbered = || word.parse().ok().filter(|n| *n < items.len());
    named.or_else(numbered).unwrap_or(0)
}

fn count(item: &Item) -> usize {
    match &item.leads_to {
        LeadsTo::Start(_) => 1,
        LeadsTo::Menu(items) => items.iter().map(count).sum(),
    }
}

fn flatten<'a>(items: &'a [Item], ids: &str, titles: &str, all: &mut Vec<Flat<'a>>) {
    for item in items {
        let join = |above: &str, own: &str| match above {
            "" => own.to_owned(),
            above => format!("{above}>{own}"),
        };
        let (id, title) = (join(ids, &item.id), join(titles, &item.title));
        match &item.leads_to {
            LeadsTo::Menu(below) => flatten(below, &id, &title, all),
            LeadsTo::Start(start) => all.push(Flat { id, title, start }),
        }
    }
}
