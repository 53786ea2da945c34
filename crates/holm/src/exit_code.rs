//! The exit statuses of `holm`, all in one place.
//!
//! A guest may choose the status with `--debug-exit`: `(v << 1) | 1`, always
//! odd. All of Holm's own are even, so the two never collide; that is also why
//! a signal gives 22 and not 128 plus its number.

/// The guest powered off or reset; the command did what it should.
pub const SUCCESS: u8 = 0;
/// The command line is wrong (also what clap uses).
pub const USAGE: u8 = 2;
/// `--timeout` ran out.
pub const TIMEOUT: u8 = 10;
/// The guest shut down by a triple fault.
pub const TRIPLE_FAULT: u8 = 12;
/// An image, kernel, initrd or disk file is missing or unfit.
pub const BAD_FILE: u8 = 14;
/// The host cannot run this machine (engine, memory, rights).
pub const HOST: u8 = 16;
/// Holm itself or the host failed while the machine ran.
pub const INTERNAL: u8 = 18;
/// The user ended the machine at the console (Ctrl-A x).
pub const ENDED_BY_USER: u8 = 20;
/// SIGHUP, SIGINT or SIGTERM ended the machine.
pub const ENDED_BY_SIGNAL: u8 = 22;

/// The guest reset or powered off after its kernel had panicked.
pub const PANICKED: u8 = 26;
/// The guest's agent cannot be reached or refused.
pub const AGENT: u8 = 24;

/// A running machine cannot be found or refused.
pub const CONTROL: u8 = 28;
/// A check found faults, or images differ.
pub const FOUND: u8 = 30;

/// The table for `holm daemon`.
pub const DAEMON_HELP: &str = "Exit status:
  0    ended by SIGTERM, SIGINT or SIGHUP; the machines go on
  2    wrong command line
  14   the state directory's store is damaged, or of a newer holm
  16   another daemon has the state directory, or the host refuses something";

/// The table for `holm state`.
pub const STATE_HELP: &str = "Exit status:
  0    done, and nothing is wrong
  2    wrong command line
  14   the store or the file is missing, damaged, or of a newer holm
  30   faults were found";

/// The table for `holm disk`.
pub const DISK_HELP: &str = "Exit status:
  0    done; nothing found, images are equal
  2    wrong command line, or options that do not fit
  14   a file is missing, in use, unfit, or cannot be written
  18   internal failure
  30   check: faults found and not mended; compare: the images differ";

/// The table for commands on snapshots.
pub const SNAPSHOT_HELP: &str = "Exit status:
  0    the snapshot is whole
  2    wrong command line
  14   it is missing, damaged, or of a version that this holm does not read";

/// The table for commands on running machines.
pub const CONTROL_HELP: &str = "Exit status:
  0    done
  2    wrong command line
  18   internal failure
  28   no machine of that name runs, or it refused";

/// The table for commands that only print what is so.
pub const REPORT_HELP: &str = "Exit status:
  0    printed, whatever it says
  2    wrong command line
  18   internal failure";

/// The table for commands that ask a daemon.
pub const PLANE_HELP: &str = "Exit status:
  0    done
  2    wrong command line
  10   it took longer than --timeout; it goes on
  14   a file of this host cannot be read or written
  18   internal failure
  28   no daemon answers, there is no such thing, or it refused";

/// The table for `holm console`.
pub const CONSOLE_HELP: &str = "Exit status:
  0    the console was left, or the machine has ended
  2    wrong command line
  18   internal failure
  22   ended by SIGHUP, SIGINT or SIGTERM
  28   no machine of that name runs, or it refused";

/// The table for the commands through the guest's agent.
pub const AGENT_HELP: &str = "Exit status:
  0    done; of `holm exec`, whatever the program ended with
  2    wrong command line
  14   a file of this host cannot be read or written
  24   the guest's agent cannot be reached, or refused";

/// What a value written to the debug-exit port (0xf4) gives; as with QEMU's
/// isa-debug-exit, of which the host's shell sees the low eight bits.
pub fn debug_exit(value: u32) -> u8 {
    ((value << 1) | 1) as u8
}

/// The table for `holm run --help`.
pub const HELP: &str = "Exit status:
  0    the guest powered off or reset
  odd  with --debug-exit: (v << 1) | 1 for the value v written to port 0xf4
  2    wrong command line
  10   --timeout ran out
  12   the guest ended in a triple fault
  14   an image, kernel, initrd or disk file is missing or unfit
  16   this host cannot run the machine (see `holm doctor`)
  18   internal failure
  20   ended by the user (Ctrl-A x)
  22   ended by SIGHUP, SIGINT or SIGTERM
  26   the guest reset or powered off after its kernel had panicked
  28   the daemon refused, or the machine that it keeps did not start

Keys at the console of a machine of its own (terminal only):
  Ctrl-A x       ends the machine
  Ctrl-A c       monitor: registers, statistics, power button, quit
  Ctrl-A Ctrl-A  sends Ctrl-A to the guest";

/// The table for commands that print a list.
pub const LIST_HELP: &str = "Exit status:
  0    listed
  2    wrong command line
  14   the disk is missing or unreadable, or offers nothing to start
  16   this host cannot do it
  18   internal failure";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_codes_are_even_distinct_and_documented() {
        let own = [
            SUCCESS,
            USAGE,
            TIMEOUT,
            TRIPLE_FAULT,
            BAD_FILE,
            HOST,
            INTERNAL,
            ENDED_BY_USER,
            ENDED_BY_SIGNAL,
            PANICKED,
        ];
        for (index, code) in own.iter().enumerate() {
            assert_eq!(code % 2, 0, "{code} could be a debug exit");
            assert!(!own[..index].contains(code));
            assert!(HELP.contains(&format!("\n  {code:<4} ")), "{code}");
        }
        for other in [AGENT, CONTROL, FOUND] {
            assert!(other % 2 == 0 && !own.contains(&other), "{other}");
        }
        assert_eq!([debug_exit(0), debug_exit(3), debug_exit(0x80)], [1, 7, 1]);
    }
}
