//! The devices that tie a guest to its host: the agent's channel, the balloon
//! and others of which a machine has at most one.

use std::path::PathBuf;
use std::sync::Arc;

use devices::timer::Timers;
use devices::watchdog::{self, Watchdog, WatchdogState};
use memory::GuestRam;
use serde::{Deserialize, Serialize};
use virtio::VirtioDevice;
use virtio::balloon::{Balloon, BalloonControl};
use virtio::channel::Channel;
use virtio::fs::{Fs, FsOptions};
use virtio::vsock::Vsock;

use crate::agent::AgentChannel;
use crate::control::{Control, Event};
use crate::events::GuestEvent;
use crate::outcome::MachineError;
use crate::socket::{OwnSocket, listen};

/// Slots of bus 0.
const BALLOON_SLOT: u8 = 3;
pub(crate) const VSOCK_SLOT: u8 = 4;
pub(crate) const SHARE_SLOT: u8 = 5;
const AGENT_SLOT: u8 = 6;

/// Which of these devices a machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peripherals {
    /// The channel to the guest's agent.
    #[serde(default)]
    pub agent: bool,
    /// The balloon, by which memory returns to the host.
    #[serde(default)]
    pub balloon: bool,
    /// Sockets between guest and host.
    #[serde(default)]
    pub vsock: Option<VsockSocket>,
    /// A folder of the host.
    #[serde(default)]
    pub share: Option<Share>,
    /// The watchdog and what it does.
    #[serde(default)]
    pub watchdog: Option<WatchdogAction>,
}

/// The socket device (virtio-vsock).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSocket {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Unix socket by which the host reaches the guest; the guest reaches the
    /// sockets with `_PORT` behind this path.
    pub socket: PathBuf,
}

/// A folder of the host that the guest can mount (virtio-fs).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The folder.
    pub folder: PathBuf,
    /// By what the guest mounts it, 1 to 36 bytes.
    pub tag: String,
    /// The guest changes nothing in it.
    #[serde(default)]
    pub read_only: bool,
    /// The guest writes when it closes or syncs a file, or later; it does not
    /// see what the host changes meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub write_back: bool,
}

/// What is done with a guest that does not ping its watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// As if it had reset itself.
    Reset,
    /// Ends the machine.
    PowerOff,
    /// Pauses the machine, to be looked at.
    Pause,
    /// Only records the event.
    Nothing,
}

/// The host's ends of these devices.
#[derive(Default)]
pub(crate) struct Handles {
    pub agent: Option<AgentChannel>,
    pub balloon: Option<BalloonControl>,
    pub watchdog: Option<Arc<Watchdog>>,
    /// Removes the socket with the machine.
    vsock: Option<OwnSocket>,
}

/// Puts a device into a slot of bus 0.
type Attach<'a> = &'a mut dyn FnMut(u8, Box<dyn VirtioDevice>) -> Result<(), MachineError>;

impl Handles {
    /// Makes and attaches the virtio devices that the description names, in
    /// the order of their slots.
    pub fn attach(
        wanted: &Peripherals,
        ram: &Arc<GuestRam>,
        attach: Attach<'_>,
    ) -> Result<Self, MachineError> {
        let mut handles = Self::default();
        if wanted.balloon {
            let (device, control) = Balloon::new(ram.clone());
            attach(BALLOON_SLOT, Box::new(device))?;
            handles.balloon = Some(control);
        }
        if let Some(vsock) = &wanted.vsock {
            let path = &vsock.socket;
            let (listener, own) = listen(path)?;
            let device = Vsock::new(vsock.cid, listener, path.clone());
            let device = device.map_err(|source| MachineError::Host {
                what: "thread for the guest's sockets",
                source,
            })?;
            attach(VSOCK_SLOT, Box::new(device))?;
            handles.vsock = Some(own);
        }
        if let Some(share) = &wanted.share {
            let device = Fs::new(
                &share.folder,
                &share.tag,
                FsOptions {
                    read_only: share.read_only,
                    write_back: share.write_back,
                },
            );
            let device = device.map_err(|source| MachineError::Share {
                folder: share.folder.clone(),
                source,
            })?;
            attach(SHARE_SLOT, Box::new(device))?;
        }
        if wanted.agent {
            let agent = AgentChannel::default();
            let (device, input) = Channel::new(agent::CHANNEL, agent.sink());
            agent.connect(input);
            attach(AGENT_SLOT, Box::new(device))?;
            handles.agent = Some(agent);
        }
        Ok(handles)
    }

    /// Adds the watchdog to the ports.
    pub fn add_watchdog(
        &mut self,
        timers: &Timers,
        pio: &devices::PioBus,
        control: &Arc<Control>,
    ) -> Result<(), MachineError> {
        let control = control.clone();
        let bite = move || control.post(Event::Guest(GuestEvent::WatchdogExpired));
        let device = Watchdog::new(timers, Box::new(bite));
        let port = arch::layout::WATCHDOG_PORT;
        pio.insert(port, watchdog::PORTS, "watchdog", device.clone())
            .map_err(|e| MachineError::Assembly(e.to_string()))?;
        self.watchdog = Some(device);
        Ok(())
    }

    /// As after power-on, where a device's own reset does not do it.
    pub fn reset(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.reset();
        }
    }

    /// The state of what is not a virtio device.
    pub fn save_watchdog(&self) -> Option<WatchdogState> {
        self.watchdog.as_ref().map(|watchdog| watchdog.save())
    }

    /// Takes it back, after the clock was set.
    pub fn restore_watchdog(&self, state: Option<&WatchdogState>) {
        if let (Some(watchdog), Some(state)) = (&self.watchdog, state) {
            watchdog.restore(state);
        }
    }

    /// The machine has ended.
    pub fn end(&self) {
        if let Some(agent) = &self.agent {
            agent.end();
        }
    }
}
