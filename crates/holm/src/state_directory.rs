//! Which state directory is meant.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Environment variable that names it.
pub const VARIABLE: &str = "HOLM_STATE";

/// What `--state` before a subcommand says.
static NAMED: OnceLock<PathBuf> = OnceLock::new();

/// Notes what `--state` before a subcommand says.
pub fn name(path: &Path) {
    // It is said once, before anybody asks.
    let _ = NAMED.set(path.to_path_buf());
}

/// The state directory as an absolute path: the one given, else `HOLM_STATE`,
/// else `/var/lib/holm` for root, and `$XDG_STATE_HOME/holm` or
/// `~/.local/state/holm` for others.
pub fn resolve(given: Option<&Path>) -> PathBuf {
    let given = given.or_else(|| NAMED.get().map(PathBuf::as_path));
    let path = given.map_or_else(usual, Path::to_path_buf);
    std::path::absolute(&path).unwrap_or(path)
}

fn usual() -> PathBuf {
    let variable = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| !path.as_os_str().is_empty())
    };
    if let Some(path) = variable(VARIABLE) {
        return path;
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/holm".into();
    }
    let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
    state
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("holm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_meant() {
        assert_eq!(resolve(Some(Path::new("/x/y"))), Path::new("/x/y"));
        assert!(resolve(Some(Path::new("x"))).is_absolute());
        assert!(resolve(None).is_absolute());
    }
}
