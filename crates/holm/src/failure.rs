//! Why a machine could not be run, by exit status.

use crate::exit_code;
use crate::run::disks::CopyError;
use crate::run::image::ImageError;

/// A failure; the text says what was being done and what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// A file is missing or unfit.
    #[error("{0}")]
    File(String),
    /// The host lacks something.
    #[error("{0}")]
    Host(String),
    /// Holm or the host failed on the way.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// The exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit_code::USAGE,
            Self::File(_) => exit_code::BAD_FILE,
            Self::Host(_) => exit_code::HOST,
            Self::Internal(_) => exit_code::INTERNAL,
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::File(error.to_string())
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Self::File(error.to_string())
    }
}
