//! Symbolic links, for readers that do not follow them or cannot be trusted
//! to: `ext4-view` believes the size of a link whatever it is.

use super::{FsError, LONGEST_PATH};

/// Most symbolic links on the way to a file, as in Linux.
const MOST_LINKS: usize = 40;
/// Longest target of a link.
pub const LONGEST_TARGET: u64 = LONGEST_PATH as u64;

/// The path without symbolic links. `target` says where the link at a path
/// leads, or nothing if there is something else.
///
/// # Errors
/// [`FsError::NotFound`]: too many links; and what `target` says.
pub fn resolve(
    path: &str,
    mut target: impl FnMut(&str) -> Result<Option<String>, FsError>,
) -> Result<String, FsError> {
    let mut wanted = split(path)?;
    wanted.reverse();
    let mut real = String::new();
    let mut links = 0;
    while let Some(name) = wanted.pop() {
        if name == ".." {
            real.truncate(real.rfind('/').unwrap_or(0));
            continue;
        }
        let next = format!("{real}/{name}");
        let Some(target) = target(&next)? else {
            real = next;
            continue;
        };
        links += 1;
        if links > MOST_LINKS {
            return Err(FsError::NotFound(path.to_owned()));
        }
        if target.starts_with('/') {
            real.clear();
        }
        wanted.extend(split(&target)?.into_iter().rev());
    }
    if real.is_empty() {
        real.push('/');
    }
    Ok(real)
}

/// The parts of a path, `..` among them.
fn split(path: &str) -> Result<Vec<String>, FsError> {
    if path.len() > LONGEST_PATH || path.contains('\0') {
        return Err(FsError::NotFound(path.chars().take(64).collect()));
    }
    let parts = path.split('/').filter(|p| !matches!(*p, "" | "."));
    Ok(parts.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(path: &str) -> Result<String, FsError> {
        resolve(path, |at| {
            Ok(match at {
                "/a" => Some("b/../c".to_owned()),
                "/c/d" => Some("/e".to_owned()),
                "/loop" => Some("./loop".to_owned()),
                "/grows" => Some("grows/grows".to_owned()),
                "/up" => Some("../../..".to_owned()),
                _ => None,
            })
        })
    }

    #[test]
    fn links_are_followed_and_do_not_lead_astray() {
        for (path, real) in [
            ("/", "/"),
            ("//x/./y/", "/x/y"),
            ("/a/d/f", "/e/f"),
            ("/x/../a", "/c"),
            ("/up/x", "/x"),
        ] {
            assert_eq!(follow(path).unwrap(), real);
        }
        assert!(follow("/loop").is_err());
        assert!(follow("/grows").is_err());
        assert!(follow(&"/x".repeat(3000)).is_err());
    }
}
