//! A file system in memory, for tests.

use std::collections::BTreeMap;

use crate::filesystem::{FileSystem, FsError, Kind, Sink};

/// Files by absolute path.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Content by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Its identity.
    pub uuid: String,
}

impl Files {
    /// With these files.
    pub fn new<const N: usize>(files: [(&str, &str); N]) -> Self {
        let own = |(path, text): (&str, &str)| (path.to_owned(), text.as_bytes().to_vec());
        Self {
            files: files.into_iter().map(own).collect(),
            uuid: "0000-0001".into(),
        }
    }

    fn clean(path: &str) -> String {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        format!("/{}", parts.join("/"))
    }
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        "fake"
    }

    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> String {
        "fake".into()
    }

    fn stat(&self, path: &str) -> Result<Kind, FsError> {
        let path = Self::clean(path);
        if let Some(content) = self.files.get(&path) {
            return Ok(Kind::File(content.len() as u64));
        }
        let below = format!("{}/", path.trim_end_matches('/'));
        match self.files.keys().any(|k| k.starts_with(&below)) {
            true => Ok(Kind::Directory),
            false => Err(FsError::NotFound(path)),
        }
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FsError> {
        let below = format!("{}/", Self::clean(path).trim_end_matches('/'));
        let mut names: Vec<String> = self
            .files
            .keys()
            .filter_map(|k| k.strip_prefix(&below))
            .filter_map(|k| k.split('/').next().map(str::to_owned))
            .collect();
        names.dedup();
        Ok(names)
    }

    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError> {
        let path = Self::clean(path);
        let content = self.files.get(&path);
        let content = content.ok_or_else(|| FsError::NotFound(path.clone()))?;
        if content.len() as u64 > limit {
            return Err(FsError::TooLarge { path, limit });
        }
        to(content)?;
        Ok(content.len() as u64)
    }

    fn read_part(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError> {
        let content = self.read(path, u64::MAX)?;
        let part = content.into_iter().skip(offset as usize);
        Ok(part.take(length as usize).collect())
    }
}
