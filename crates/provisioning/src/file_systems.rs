//! How full a guest's disks are.

use std::path::Path;

use agent::{AgentError, Client};

pub use agent::FileSystem;

use crate::PATIENCE;

/// The file systems of a guest, asked of its agent at this socket; `None` if
/// there is none, or it does not tell. Takes at most [`PATIENCE`]; call it on
/// a thread that may wait.
#[must_use]
pub fn file_systems(agent: &Path) -> Option<Vec<FileSystem>> {
    let ask = || -> Result<_, AgentError> {
        let mut client = Client::connect(agent)?;
        client.set_patience(PATIENCE)?;
        client.file_systems()
    };
    ask().ok()
}
