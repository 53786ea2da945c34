//! A machine's process: its locks, mounts and ports are free only when it is
//! gone, some time after its control socket.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use machine_protocol::Description;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process of a machine that was running when this was made.
pub struct Process(Option<OwnedFd>);

impl Process {
    /// Of the machine with this description. Without pidfds (Linux 5.3), and
    /// if it is gone already, [`Self::ended`] says so at once.
    pub fn of(description: &Description) -> Self {
        let pid = i32::try_from(description.pid).ok().and_then(Pid::from_raw);
        Self(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }

    /// Waits for its end; `false` if it did not end in this time.
    pub fn ended(&self, within: Duration) -> bool {
        let Some(process) = &self.0 else { return true };
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            let timeout = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
                Err(Errno::INTR) => {}
                Ok(0) => return false,
                _ => return true,
            }
        }
    }
}
