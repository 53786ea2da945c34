//! Downloads over HTTP that go on where they ended.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ImagesError;
use crate::files::{self, Kind};

/// How often a download is taken up again after an interruption.
const TRIES: u32 = 5;
/// A server that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Parts of downloads that nobody went on with for so long are removed.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);
const KIND: Kind = Kind {
    format: "holm-download",
    version: 1,
};

/// By which a server tells whether a file is still the same.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Validator {
    /// A strong entity tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

/// A file that was downloaded; removed when this is dropped.
pub(super) struct Download {
    path: PathBuf,
    /// Locked: others that want the same wait.
    pub(super) file: File,
}

impl Download {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it up, with all that is noted of it.
    pub(super) fn discard(self) {
        for path in [self.path.clone(), note(&self.path)] {
            if let Err(error) = files::remove_file(&path) {
                tracing::warn!(%error, "a download is left");
            }
        }
    }
}

fn note(path: &Path) -> PathBuf {
    path.with_extension("json")
}

/// Downloads a file of at most `most` bytes to `directory`, or what is missing
/// of it. What is there after a failure is gone on with the next time.
///
/// # Errors
/// [`ImagesError::Fetch`], [`ImagesError::Refused`], or the host's.
pub(super) fn fetch(
    url: &str,
    directory: &Path,
    most: u64,
    heard: &mut dyn FnMut(u64, u64),
) -> Result<Download, ImagesError> {
    remove_stale(directory);
    let name = blake3::hash(url.as_bytes()).to_hex();
    let path = directory.join(format!("{}.part", name.get(..32).unwrap_or_default()));
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file
        .open(&path)
        .map_err(ImagesError::host(&path, "make it"))?;
    file.lock().map_err(ImagesError::host(&path, "lock it"))?;
    let mut download = Download { path, file };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .user_agent(concat!("holm/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .new_agent();
    let mut tries = 0;
    loop {
        let before = download.length()?;
        let error = match attempt(&agent, url, &mut download, most, heard) {
            Ok(()) => return Ok(download),
            Err(Stop::For(error)) => return Err(error),
            Err(Stop::Again(error)) => error,
        };
        tries = if download.length()? > before {
            0
        } else {
            tries + 1
        };
        if tries >= TRIES {
            return Err(ImagesError::Fetch {
                url: shown(url),
                why: format!("{error}; the part that is there is kept, so try again later"),
            });
        }
        tracing::info!(%error, "the download was interrupted and goes on");
        std::thread::sleep(Duration::from_millis(100) * (1 << tries));
    }
}

enum Stop {
    /// It is of no use to try again.
    For(ImagesError),
    /// The transfer was interrupted.
    Again(String),
}

impl From<ImagesError> for Stop {
    fn from(error: ImagesError) -> Self {
        Self::For(error)
    }
}

impl Download {
    fn length(&self) -> Result<u64, ImagesError> {
        let meta = self.file.metadata();
        Ok(meta
            .map_err(ImagesError::host(&self.path, "look at it"))?
            .len())
    }
}

/// One request and its answer.
fn attempt(
    agent: &ureq::Agent,
    url: &str,
    download: &mut Download,
    most: u64,
    heard: &mut dyn FnMut(u64, u64),
) -> Result<(), Stop> {
    let path = download.path.clone();
    let failed = |e| Stop::For(ImagesError::host(&path, "write it")(e));
    let known: Validator = KIND.read(&note(&path)).ok().flatten().unwrap_or_default();
    let mut from = download.length()?;
    let mut request = agent.get(url);
    match &known.tag {
        Some(tag) if from > 0 => {
            request = request.header("Range", format!("bytes={from}-"));
            request = request.header("If-Range", tag);
        }
        // Without a tag nobody can say whether it is still the same file.
        _ => from = 0,
    }
    let answer = request.call().map_err(|e| refused_or_again(url, &e))?;
    let fetch_error = |why: String| {
        Stop::For(ImagesError::Fetch {
            url: shown(url),
            why,
        })
    };
    let header = |name: &str| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let status = answer.status().as_u16();
    match status {
        200 => from = 0,
        206 if from > 0 && starts_at(header("content-range"), from) => {}
        // The part is as long as the file, or another file is there now.
        206 | 416 => {
            download.file.set_len(0).map_err(failed)?;
            files::remove_file(&note(&path))?;
            return Err(Stop::Again("the server has another file now".into()));
        }
        408 | 429 | 500..=599 => return Err(Stop::Again(format!("the server says {status}"))),
        _ => {
            return Err(fetch_error(format!(
                "the server says {}; check the address",
                answer.status()
            )));
        }
    }
    let length = header("content-length").and_then(|v| v.parse::<u64>().ok());
    let all = length.map(|length| from.saturating_add(length));
    let too_large = || {
        let text = format!(
            "{}: it has more than {most} bytes; say --max-size if that is right",
            shown(url)
        );
        Stop::For(ImagesError::Refused(text))
    };
    if all.is_some_and(|all| all > most) {
        return Err(too_large());
    }
    let tag = header("etag").filter(|tag| tag.starts_with('"'));
    if from == 0 {
        download.file.set_len(0).map_err(failed)?;
        KIND.write(&note(&path), &Validator { tag })?;
    }
    let at = download
        .file
        .seek(io::SeekFrom::Start(from))
        .map_err(failed)?;
    let mut body = answer
        .into_body()
        .into_with_config()
        .limit(u64::MAX)
        .reader();
    let mut done = at;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let got = body
            .read(&mut buffer)
            .map_err(|e| Stop::Again(e.to_string()))?;
        if got == 0 {
            break;
        }
        done += got as u64;
        if done > most {
            return Err(too_large());
        }
        let bytes = buffer.get(..got).unwrap_or_default();
        download.file.write_all(bytes).map_err(failed)?;
        heard(done, all.unwrap_or(done));
    }
    match all {
        Some(all) if done < all => {
            Err(Stop::Again(format!("it ended after {done} of {all} bytes")))
        }
        _ => Ok(()),
    }
}

fn refused_or_again(url: &str, error: &ureq::Error) -> Stop {
    match error {
        ureq::Error::BadUri(_)
        | ureq::Error::RequireHttpsOnly(_)
        | ureq::Error::TooManyRedirects => Stop::For(ImagesError::Fetch {
            url: shown(url),
            why: error.to_string(),
        }),
        _ => Stop::Again(error.to_string()),
    }
}

fn starts_at(range: Option<String>, from: u64) -> bool {
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

/// A URL without what could be secret in it: user, password, query.
pub(super) fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}")
        }
        None => plain.into(),
    }
}

/// Removes old parts; what fails stays until the next time.
fn remove_stale(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok();
        let old = age
            .and_then(|time| time.elapsed().ok())
            .is_some_and(|age| age > STALE);
        let free = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if old && free() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_has_no_secret() {
        assert_eq!(
            shown("https://user:pw@host:8443/a/b.img?X-Signature=abc#x"),
            "https://host:8443/a/b.img"
        );
        assert_eq!(shown("http://host"), "http://host/");
    }
}
