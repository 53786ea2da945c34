//! Running one measurement on one side.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::build::Parts;
use super::figures::Figures;
use crate::console::Console;
use crate::host;

/// Who runs the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The host itself.
    Native,
    /// Holm.
    Holm,
    /// QEMU with `-accel tcg,thread=multi -cpu max`.
    Tcg,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Holm => "holm",
            Self::Tcg => "tcg",
        })
    }
}

/// Time for any one run.
pub(super) const PATIENCE: Duration = Duration::from_secs(1200);
/// MiB of a guest that computes; and of one that only boots.
const MEMORY: u32 = 1024;
const BOOT_MEMORY: u32 = 256;

/// QEMU's ways to start the same kernel.
const TCG_BOOTS: [(&str, Machine, bool); 3] = [
    ("q35, bzImage", Machine::Q35, false),
    ("microvm, bzImage", Machine::Microvm, false),
    ("microvm, PVH", Machine::Microvm, true),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Machine {
    Q35,
    Microvm,
}

/// Everything needed to run the sides.
pub struct Sides {
    pub(super) holm: PathBuf,
    pub(super) parts: Parts,
    pub(super) options: Vec<String>,
    pub(super) scale: u32,
}

impl Sides {
    /// Keeps the parts.
    pub fn new(holm: PathBuf, parts: Parts, options: Vec<String>, scale: u32) -> Self {
        Self {
            holm,
            parts,
            options,
            scale,
        }
    }

    /// One run of one workload.
    ///
    /// # Errors
    /// If the side does not get there.
    pub fn workload(&self, side: Side, name: &str, figures: &mut Figures) -> Result<()> {
        let output = match side {
            Side::Native => self.natively(name)?,
            Side::Holm => self.to_end(&mut self.holm_run(
                1,
                MEMORY,
                false,
                &format!("quiet what=bench list={name} scale={}", self.scale),
            ))?,
            Side::Tcg => self.to_end(&mut self.qemu_run(
                Machine::Q35,
                false,
                1,
                MEMORY,
                &format!("quiet what=bench list={name} scale={}", self.scale),
            ))?,
        };
        if figures.add_lines(name, side, &output) == 0 {
            bail!("{name} under {side} printed no result:\n{output}");
        }
        Ok(())
    }

    fn natively(&self, name: &str) -> Result<String> {
        let scale = self.scale.to_string();
        let workloads = &self.parts.workloads;
        if name != "gz" {
            return host::output(Command::new(workloads.join(name)).arg(scale));
        }
        let megabytes = (32 * self.scale / 100 + u32::from(self.scale < 4)).to_string();
        let text = workloads.join("text.tmp");
        let made = fs::File::create(&text)?;
        host::run(
            Command::new(workloads.join("gentext"))
                .args(["100", &megabytes])
                .stdout(made),
        )?;
        let output = host::output(
            Command::new(workloads.join("gz"))
                .arg(&self.parts.busybox)
                .arg(&text),
        );
        fs::remove_file(&text)?;
        output
    }

    /// From the start of the process to the first line of user space, by the
    /// kernel's form; and where the time goes.
    ///
    /// # Errors
    /// If a guest does not boot.
    pub fn boot(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let cmdline = "quiet what=boot";
        match side {
            Side::Native => {}
            Side::Holm => {
                let time = self.time_to_user(&mut self.holm_run(1, BOOT_MEMORY, false, cmdline))?;
                figures.add("boot", "bzImage", side, time);
                let time = self.time_to_user(&mut self.holm_run(1, BOOT_MEMORY, true, cmdline))?;
                figures.add("boot", "PVH", side, time);
                self.stages(
                    &mut self.holm_run(1, BOOT_MEMORY, false, "what=boot"),
                    side,
                    figures,
                )?;
            }
            Side::Tcg => {
                for (name, machine, pvh) in TCG_BOOTS {
                    // microvm has no timer that Linux calibrates against
                    // reliably under TCG: tell it the frequency.
                    let early = if machine == Machine::Microvm {
                        " tsc_early_khz=1000000"
                    } else {
                        ""
                    };
                    let mut command =
                        self.qemu_run(machine, pvh, 1, BOOT_MEMORY, &format!("{cmdline}{early}"));
                    figures.add("boot", name, side, self.time_to_user(&mut command)?);
                }
                self.stages(
                    &mut self.qemu_run(Machine::Q35, false, 1, BOOT_MEMORY, "what=boot"),
                    side,
                    figures,
                )?;
            }
        }
        Ok(())
    }

    fn time_to_user(&self, command: &mut Command) -> Result<f64> {
        let mut console = Console::start(command)?;
        console.expect("BOOT-OK", PATIENCE)?;
        Ok(console.elapsed().as_secs_f64())
    }

    /// A boot with all messages, so a little slower than the one that counts.
    fn stages(&self, command: &mut Command, side: Side, figures: &mut Figures) -> Result<()> {
        let mut console = Console::start(command)?;
        let mut last = Duration::ZERO;
        for (name, text) in [
            ("to the first kernel line", "Linux version"),
            ("to memory and scheduler", "Memory: "),
            ("to device initialization", "PCI: Using configuration"),
            ("to the root file system", "Trying to unpack rootfs"),
            ("to the end of the kernel's", "Run /init"),
            ("to user space", "BOOT-OK"),
        ] {
            console.expect(text, PATIENCE)?;
            let now = console.elapsed();
            figures.add("stages", name, side, (now - last).as_secs_f64());
            last = now;
        }
        Ok(())
    }

    /// Resident memory of an idle guest that has just booted, and how much of
    /// it is not the guest's own.
    ///
    /// # Errors
    /// If a guest does not boot.
    pub fn memory(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let mut command = match side {
            Side::Native => return Ok(()),
            Side::Holm => self.holm_run(1, BOOT_MEMORY, false, "quiet what=idle"),
            Side::Tcg => self.qemu_run(Machine::Q35, false, 1, BOOT_MEMORY, "quiet what=idle"),
        };
        let mut console = Console::start(&mut command)?;
        console.expect("IDLE", PATIENCE)?;
        std::thread::sleep(Duration::from_millis(300));
        let maps = fs::read_to_string(format!("/proc/{}/smaps", console.id()))
            .context("reading the memory map of the guest's process")?;
        let (all, guest) = resident(&maps, u64::from(BOOT_MEMORY) * 1024);
        figures.add("memory", "resident MiB", side, all as f64 / 1024.0);
        figures.add(
            "memory",
            "without guest's MiB",
            side,
            (all - guest) as f64 / 1024.0,
        );
        Ok(())
    }

    /// Two independent processes on one and on two vCPUs.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn smp(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let cmdline = format!("quiet what=pair scale={}", self.scale);
        for cpus in [1, 2] {
            let output = match side {
                Side::Native => return Ok(()),
                Side::Holm => self.to_end(&mut self.holm_run(cpus, MEMORY, false, &cmdline))?,
                Side::Tcg => {
                    self.to_end(&mut self.qemu_run(Machine::Q35, false, cpus, MEMORY, &cmdline))?
                }
            };
            let mut pair = Figures::default();
            if pair.add_lines("pair", side, &output) != 2 {
                bail!("the pair under {side} printed no two results:\n{output}");
            }
            let slower = pair
                .all()
                .flat_map(|(_, _, values)| values)
                .fold(0.0, |a, b| b.max(a));
            figures.add("smp", &format!("pair on {cpus} vCPU"), side, slower);
        }
        Ok(())
    }

    fn to_end(&self, command: &mut Command) -> Result<String> {
        let mut console = Console::start(command)?;
        console.expect("BOOT-OK", PATIENCE)?;
        console.expect("DONE", PATIENCE)
    }

    fn holm_run(&self, cpus: u32, memory: u32, pvh: bool, cmdline: &str) -> Command {
        let kernel = if pvh {
            &self.parts.vmlinux
        } else {
            &self.parts.bzimage
        };
        let mut command = Command::new(&self.holm);
        command
            .args([
                "run",
                "--cpus",
                &cpus.to_string(),
                "--memory",
                &format!("{memory}M"),
            ])
            .arg("--kernel")
            .arg(kernel)
            .arg("--initrd")
            .arg(&self.parts.initrd)
            .args(["--cmdline", &format!("console=ttyS0 {cmdline}")])
            .args(&self.options);
        command
    }

    fn qemu_run(
        &self,
        machine: Machine,
        pvh: bool,
        cpus: u32,
        memory: u32,
        cmdline: &str,
    ) -> Command {
        let kernel = if pvh {
            &self.parts.vmlinux
        } else {
            &self.parts.bzimage
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                if machine == Machine::Q35 {
                    "q35"
                } else {
                    "microvm"
                },
            ])
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-smp", &cpus.to_string(), "-m", &memory.to_string()])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&self.parts.initrd)
            .args(["-append", &format!("console=ttyS0 {cmdline}")])
            .stderr(Stdio::null());
        command
    }
}

/// KiB resident in all, and in the mapping that is the guest's memory: the one
/// of a memfd, or any as large as the guest.
fn resident(smaps: &str, guest_size: u64) -> (u64, u64) {
    let (mut all, mut guest) = (0, 0);
    let mut of_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let value = words.next().and_then(|v| v.parse::<u64>().ok());
        match (first, value) {
            ("Size:", Some(size)) => of_guest |= size >= guest_size,
            ("Rss:", Some(rss)) => {
                all += rss;
                guest += if of_guest { rss } else { 0 };
            }
            _ if !first.ends_with(':') => of_guest = line.contains("memfd:"),
            _ => {}
        }
    }
    (all, guest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_guests_memory_is_told_from_the_rest() {
        let smaps = "7f00-7f01 rw-s 00000000 00:01 5 /memfd:ram (deleted)\nSize: 100 kB\nRss: 60 kB\n\
                     7f02-7f03 rw-p 00000000 00:00 0 \nSize: 10 kB\nRss: 7 kB\nPss: 7 kB\n\
                     7f04-7f05 rw-p 00000000 00:00 0 \nSize: 2000 kB\nRss: 500 kB\n";
        assert_eq!(super::resident(smaps, 1000), (567, 560));
    }
}
