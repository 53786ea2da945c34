//! The state of a whole machine, without its memory.

use arch::CpuState;
use serde::{Deserialize, Serialize};

use crate::board::BoardState;
use crate::outcome::MachineError;

/// Version of [`MachineState`] that this program writes and reads.
pub const STATE_VERSION: u32 = 1;

/// Everything but memory and disks: what a snapshot keeps beside those.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// vCPUs by index.
    pub vcpus: Vec<CpuState>,
    /// All devices.
    pub devices: BoardState,
}

impl MachineState {
    /// Reads a state; every part checks its own version.
    ///
    /// # Errors
    /// [`MachineError::State`].
    pub fn from_json(text: &str) -> Result<Self, MachineError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let state = |e: serde_json::Error| MachineError::State(e.to_string());
        let head: Head = serde_json::from_str(text).map_err(state)?;
        if head.version != STATE_VERSION {
            return Err(MachineError::State(format!(
                "the saved machine has version {}, but this holm reads version {STATE_VERSION}; \
                 restore it with the holm that saved it, or a newer one",
                head.version
            )));
        }
        serde_json::from_str(text).map_err(state)
    }
}
