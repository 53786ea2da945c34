//! A machine's process, where its control socket does not help.

use machine_protocol::launch::{self, LOCK_FILE, Process};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::directory::Directory;
use crate::driver::DriverError;

/// Kills the process that holds the directory's lock, if it has said which it
/// is. No other process is ever harmed, whatever number it has.
pub async fn kill(directory: &Directory) -> Result<(), DriverError> {
    let text = directory.lock_holder().await?.unwrap_or_default();
    // What a former process has left, or this one not finished.
    let Ok(process) = launch::parse::<Process>(LOCK_FILE, &text) else {
        return Ok(());
    };
    let boot_id = tokio::fs::read_to_string("/proc/sys/kernel/random/boot_id").await;
    if boot_id.unwrap_or_default().trim() != process.boot_id {
        return Ok(());
    }
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    // Once held, the descriptor means one process, or none.
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    let stat = tokio::fs::read_to_string(format!("/proc/{}/stat", process.pid)).await;
    if Process::start_ticks(&stat.unwrap_or_default()) != Some(process.start_ticks) {
        return Ok(());
    }
    pidfd_send_signal(&held, Signal::KILL)
        .map_err(|e| DriverError::again("killing the process of", directory.machine(), e))
}
