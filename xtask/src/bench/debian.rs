//! The image `debian` on both sides, and the time to its login prompt.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::figures::Figures;
use super::sides::{PATIENCE, Side, Sides};
use crate::console::Console;
use crate::image::{self, Name};

impl Sides {
    /// From the start of the process to the login prompt.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn login(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let mut command = match side {
            Side::Native => return Ok(()),
            Side::Holm => self.holm_debian()?,
            Side::Tcg => qemu_debian()?,
        };
        let mut console = Console::start(&mut command)?;
        console.expect("debian login: ", PATIENCE)?;
        let seconds = console.elapsed().as_secs_f64();
        figures.add("login", "to the login prompt", side, seconds);
        Ok(())
    }

    pub(super) fn holm_debian(&self) -> Result<Command> {
        image::make(Name::Debian, false)?;
        let mut command = Command::new(&self.holm);
        command
            .args(["run", "debian", "--cpus", "2", "--memory", "1G"])
            .args(["--net", "user"])
            .args(&self.options);
        Ok(command)
    }
}

pub(super) fn qemu_debian() -> Result<Command> {
    let image = image::make(Name::Debian, false)?;
    let root = "root=/dev/vda ro console=ttyS0 quiet net.ifnames=0";
    let mut command = qemu(&image.join("root.img"), root)?;
    command.args(["-nic", "user,model=virtio-net-pci"]);
    Ok(command)
}

/// QEMU's TCG with the kernel of `debian`, this command line, and what it
/// writes to this raw disk thrown away. Others may use the disk meanwhile.
pub(super) fn qemu(disk: &Path, cmdline: &str) -> Result<Command> {
    let kernel = image::make(Name::Debian, false)?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot", "-smp", "2", "-m", "1024"])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(kernel.join("initrd"))
        .args(["-append", cmdline, "-drive"])
        .arg(format!(
            "file={},format=raw,if=virtio,snapshot=on,file.locking=off",
            disk.display()
        ))
        .stderr(Stdio::null());
    Ok(command)
}
