//! The devices that tie a guest to its host: the agent's channel, the balloon
//! and others of which a machine has at most one.

use serde::{Deserialize, Serialize};
use virtio::VirtioDevice;
use virtio::channel::Channel;

use crate::agent::AgentChannel;
use crate::outcome::MachineError;

/// Slots of bus 0.
const AGENT_SLOT: u8 = 6;

/// Which of these devices a machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peripherals {
    /// The channel to the guest's agent.
    #[serde(default)]
    pub agent: bool,
}

/// The host's ends of these devices.
#[derive(Default)]
pub(crate) struct Handles {
    pub agent: Option<AgentChannel>,
}

/// Puts a device into a slot of bus 0.
type Attach<'a> = &'a mut dyn FnMut(u8, Box<dyn VirtioDevice>) -> Result<(), MachineError>;

impl Handles {
    /// Makes and attaches the devices that the description names.
    pub fn attach(wanted: &Peripherals, attach: Attach<'_>) -> Result<Self, MachineError> {
        let mut handles = Self::default();
        if wanted.agent {
            let agent = AgentChannel::default();
            let (device, input) = Channel::new(agent::CHANNEL, agent.sink());
            agent.connect(input);
            attach(AGENT_SLOT, Box::new(device))?;
            handles.agent = Some(agent);
        }
        Ok(handles)
    }

    /// The machine has ended.
    pub fn end(&self) {
        if let Some(agent) = &self.agent {
            agent.end();
        }
    }
}
