//! A made image under Holm, driven over its serial console.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::console::{Console, base64};
use crate::image::Name;

/// Time for a boot on a busy host.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// Time for a clean power-off.
const OFF_PATIENCE: Duration = Duration::from_secs(90);
/// A line that a terminal takes in one piece (Linux's N_TTY: 4095), less room
/// for the rest of it.
const LONGEST_COMMAND: usize = 2900;
/// The kernel's command line (2048), less room for the rest of it.
const LONGEST_BOOT_COMMAND: usize = 1400;

/// What a command in the guest did.
pub struct Answer {
    /// What it printed.
    pub output: String,
    /// Its exit status.
    pub status: u8,
    /// From the start of the process until a user could have typed.
    pub boot: Duration,
    /// The command itself.
    pub command: Duration,
}

/// Boots the image, runs one command in it and powers it off.
///
/// # Errors
/// If the guest does not get there; with the last it printed.
pub fn run(
    holm: &Path,
    image: Name,
    options: &[String],
    command: &str,
    patience: Duration,
) -> Result<Answer> {
    let mut arguments = vec!["run".to_owned(), image.as_str().to_owned()];
    arguments.extend_from_slice(options);
    match image {
        Name::Tiny | Name::TinyBullseye | Name::TinyTrixie => {
            run_tiny(holm, arguments, command, patience)
        }
        Name::Debian | Name::DebianDisk => run_debian(holm, arguments, command, patience),
    }
}

fn run_tiny(
    holm: &Path,
    mut arguments: Vec<String>,
    command: &str,
    patience: Duration,
) -> Result<Answer> {
    let encoded = base64(command.as_bytes());
    if encoded.len() > LONGEST_BOOT_COMMAND {
        bail!("this command is too long for the kernel's command line");
    }
    arguments.extend(["--append".to_owned(), format!("quiet cmd={encoded}")]);
    let mut console = Console::start(Command::new(holm).args(arguments))?;
    console.expect("HOLM-READY ", BOOT_PATIENCE)?;
    console.expect("\n", BOOT_PATIENCE)?;
    let boot = console.elapsed();
    let output = console.expect("HOLM-EXIT ", patience)?;
    let status = console.expect("\n", OFF_PATIENCE)?;
    let command = console.elapsed() - boot;
    console.finish(OFF_PATIENCE)?;
    Ok(Answer {
        output: plain(&output),
        status: number(&status)?,
        boot,
        command,
    })
}

fn run_debian(
    holm: &Path,
    arguments: Vec<String>,
    command: &str,
    patience: Duration,
) -> Result<Answer> {
    let encoded = base64(command.as_bytes());
    if encoded.len() > LONGEST_COMMAND {
        bail!("this command is too long for a line at a terminal");
    }
    let mut console = Console::start(Command::new(holm).args(arguments))?;
    console.expect("login: ", BOOT_PATIENCE)?;
    let boot = console.elapsed();
    console.send("root\n")?;
    console.expect("# ", BOOT_PATIENCE)?;
    // The line as typed is echoed: the quotes tell its markers from the real.
    console.send(&format!(
        "echo {encoded} | base64 -d > /run/check; stty -echo; echo HOLM-''BEGIN; \
         sh /run/check; echo HOLM-''END $?\n"
    ))?;
    console.expect("HOLM-BEGIN", BOOT_PATIENCE)?;
    console.expect("\n", BOOT_PATIENCE)?;
    let started = console.elapsed();
    let output = console.expect("HOLM-END ", patience)?;
    let status = console.expect("\n", OFF_PATIENCE)?;
    let command = console.elapsed() - started;
    console.send("systemctl poweroff\n")?;
    console.finish(OFF_PATIENCE)?;
    Ok(Answer {
        output: plain(&output),
        status: number(&status)?,
        boot,
        command,
    })
}

/// As the guest's program wrote it, before its terminal added carriage returns.
fn plain(text: &str) -> String {
    text.replace("\r\n", "\n")
}

fn number(text: &str) -> Result<u8> {
    text.trim()
        .parse()
        .with_context(|| format!("no exit status: {text:?}"))
}
