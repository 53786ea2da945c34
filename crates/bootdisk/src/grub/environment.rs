//! GRUB's variables and its environment block.

use std::collections::{BTreeMap, BTreeSet};

use super::GrubError;

/// Most bytes of all variables together.
const MOST_BYTES: usize = 1 << 20;
/// Most variables.
const MOST: usize = 4096;

/// The variables.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    values: BTreeMap<String, String>,
    exported: BTreeSet<String>,
    bytes: usize,
}

impl Environment {
    /// A variable's value; empty if it has none.
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Gives a variable a value.
    ///
    /// # Errors
    /// If the variables grow beyond all bounds.
    pub fn set(&mut self, name: &str, value: String) -> Result<(), GrubError> {
        self.unset(name);
        self.bytes += name.len() + value.len();
        if self.bytes > MOST_BYTES || self.values.len() >= MOST {
            return Err(GrubError::TooMuch("variables"));
        }
        self.values.insert(name.to_owned(), value);
        Ok(())
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Takes a variable away.
    pub fn unset(&mut self, name: &str) {
        if let Some(old) = self.values.remove(name) {
            self.bytes = self.bytes.saturating_sub(name.len() + old.len());
        }
    }

    /// Lets menus below this one see a variable.
    pub fn export(&mut self, name: &str) {
        if self.exported.len() < MOST {
            self.exported.insert(name.to_owned());
        }
    }

    /// What a menu below this one sees.
    pub fn inherited(&self) -> Self {
        let mut inner = Self {
            exported: self.exported.clone(),
            ..Self::default()
        };
        for (name, value) in &self.values {
            if self.exported.contains(name) {
                inner.bytes += name.len() + value.len();
                inner.values.insert(name.clone(), value.clone());
            }
        }
        inner
    }
}

/// The variables in an environment block (`grubenv`): a signature line, lines
/// of NAME=VALUE with backslashes before line feeds and backslashes, and `#`
/// up to the end.
pub fn block(content: &[u8]) -> Option<Vec<(String, String)>> {
    let text = String::from_utf8_lossy(content);
    let rest = text.strip_prefix("# GRUB Environment Block\n")?;
    let mut variables = Vec::new();
    let mut line = String::new();
    let mut characters = rest.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => line.extend(characters.next()),
            '\n' => {
                let whole = std::mem::take(&mut line);
                if let Some((name, value)) =
                    whole.split_once('=').filter(|_| !whole.starts_with('#'))
                {
                    variables.push((name.to_owned(), value.to_owned()));
                }
            }
            c => line.push(c),
        }
    }
    variables.truncate(MOST);
    Some(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_block_is_read() {
        let mut content =
            b"# GRUB Environment Block\nsaved_entry=Debian\\\\x\nb=1=2\n# c=d\n".to_vec();
        content.resize(1024, b'#');
        let expected = [("saved_entry", "Debian\\x"), ("b", "1=2")];
        let found = block(&content).unwrap();
        assert_eq!(found, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(block(b"saved_entry=1\n"), None);
        assert_eq!(block(&[0; 1024]), None);
    }

    #[test]
    fn variables_are_bounded() {
        let mut e = Environment::default();
        for _ in 0..100 {
            e.set("x", "y".repeat(100_000)).unwrap();
        }
        assert!(e.set("z", "y".repeat(1 << 20)).is_err());
        let mut e = Environment::default();
        assert!((0..10_000).any(|i| e.set(&i.to_string(), String::new()).is_err()));
    }
}
