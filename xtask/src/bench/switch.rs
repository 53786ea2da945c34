//! Two guests on one switch (QEMU: on one Unix stream socket): iperf3 both ways
//! and round trips.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::figures::Figures;
use super::sides::Side;
use crate::console::{Console, base64};
use crate::host;
use crate::image::{self, Archive};

/// Time for any one guest.
const PATIENCE: Duration = Duration::from_secs(300);
/// What iperf3 consists of.
const PACKAGES: [&str; 5] = ["iperf3", "libiperf0", "libssl3", "libsctp1", "libc6"];
const LIBRARIES: [&str; 6] = [
    "libiperf.so.0",
    "libssl.so.3",
    "libcrypto.so.3",
    "libsctp.so.1",
    "libc.so.6",
    "libm.so.6",
];
/// How iperf3 is started in a guest.
const IPERF: &str = "/opt/ld.so --library-path /opt /opt/iperf3";
const UP: &str = "ip link set lo up; ip link set eth0 up; ip addr add";
/// Round trips of one measurement.
const ROUND_TRIPS: u32 = 3000;

/// The guests' parts and how to start them.
pub struct Switch {
    holm: PathBuf,
    options: Vec<String>,
    directory: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Switch {
    /// Puts the guests' initramfs together.
    ///
    /// # Errors
    /// If a package or a compiler is missing.
    pub fn new(holm: PathBuf, options: Vec<String>, tiny: &Path) -> Result<Self> {
        let directory = host::cache()?.join("bench/switch");
        let unpacked = directory.join("unpacked");
        let opt = directory.join("opt");
        fs::create_dir_all(&opt).context("making the benchmark's directory")?;
        image::unpack(&PACKAGES, &unpacked)?;
        let libraries = unpacked.join("lib/x86_64-linux-gnu");
        for name in LIBRARIES {
            let usual = unpacked.join("usr/lib/x86_64-linux-gnu").join(name);
            let from = if usual.exists() {
                usual
            } else {
                libraries.join(name)
            };
            fs::copy(&from, opt.join(name))
                .with_context(|| format!("copying {}", from.display()))?;
        }
        fs::copy(libraries.join("ld-linux-x86-64.so.2"), opt.join("ld.so"))
            .context("copying the dynamic linker")?;
        fs::copy(unpacked.join("usr/bin/iperf3"), opt.join("iperf3")).context("copying iperf3")?;
        let source = host::root().join("bench/net/rr.c");
        host::output(
            Command::new("gcc")
                .args(["-O2", "-static", "-o"])
                .args([&opt.join("rr"), &source]),
        )?;
        let mut archive = Archive::default();
        archive.directory("opt");
        for name in LIBRARIES.iter().chain(&["ld.so", "iperf3", "rr"]) {
            archive.file(&format!("opt/{name}"), 0o755, &fs::read(opt.join(name))?);
        }
        let mut initrd = fs::read(tiny.join("initrd")).context("reading tiny's initrd")?;
        initrd.extend(archive.finish());
        let path = directory.join("initrd");
        fs::write(&path, initrd)?;
        Ok(Self {
            holm,
            options,
            directory,
            kernel: tiny.join("vmlinuz"),
            initrd: path,
        })
    }

    /// All of one side.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn measure(&self, side: Side, figures: &mut Figures) -> Result<()> {
        if side == Side::Native {
            return Ok(());
        }
        self.between_guests(side, figures)
    }

    fn between_guests(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let socket = self.directory.join("between.socket");
        // Left by a measurement that was ended.
        let _ = fs::remove_file(&socket);
        let stream = |server: &str| {
            let path = socket.display();
            format!("stream,id=n,server={server},addr.type=unix,addr.path={path}")
        };
        let (listening, calling) = (stream("on"), stream("off"));
        let device = "virtio-net-pci,netdev=n,mac=52:54:00:00:00";
        let devices = [format!("{device}:01"), format!("{device}:02")];
        let switch = format!("switch=bench-{}", std::process::id());
        let network = |index: usize| match side {
            Side::Tcg => {
                let netdev = if index == 0 { &listening } else { &calling };
                vec!["-netdev", netdev, "-device", &devices[index]]
            }
            _ => vec!["--net", &switch],
        };
        let serve = format!(
            "{UP} 10.9.0.1/24 dev eth0; /opt/rr serve 5300 & \
             {IPERF} -s -p 5299 > /dev/null & echo SERVING; sleep 1000"
        );
        let mut first = self.guest(side, &network(0), &serve)?;
        first.expect("SERVING", PATIENCE)?;
        let command = format!("{UP} 10.9.0.2/24 dev eth0; sleep 2; {}", transfers());
        let output = finish(self.guest(side, &network(1), &command)?)?;
        read(&output, side, figures)
    }

    /// Starts a guest with 1 vCPU that runs a shell command.
    fn guest(&self, side: Side, network: &[&str], command: &str) -> Result<Console> {
        let cmdline = format!("console=ttyS0 quiet cmd={}", base64(command.as_bytes()));
        let mut start = match side {
            Side::Tcg => {
                let mut qemu = Command::new("qemu-system-x86_64");
                qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
                    .args(["-nodefaults", "-no-user-config", "-display", "none"])
                    .args(["-serial", "stdio", "-no-reboot", "-m", "512", "-append"])
                    .arg(&cmdline);
                qemu
            }
            _ => {
                let mut holm = Command::new(&self.holm);
                holm.args(["run", "--memory", "512M", "--cmdline", &cmdline])
                    .args(&self.options);
                holm
            }
        };
        let (kernel, initrd) = match side {
            Side::Tcg => ("-kernel", "-initrd"),
            _ => ("--kernel", "--initrd"),
        };
        start
            .arg(kernel)
            .arg(&self.kernel)
            .arg(initrd)
            .arg(&self.initrd)
            .args(network)
            .stderr(Stdio::null());
        Console::start(&mut start)
    }
}

/// Both directions for 5 s each, and round trips.
fn transfers() -> String {
    let iperf = format!("{IPERF} -c 10.9.0.1 -p 5299 -t 5 -f m");
    format!(
        "{iperf} | grep receiver; {iperf} -R | grep receiver; \
         /opt/rr ask 10.9.0.1 5300 {ROUND_TRIPS}"
    )
}

fn finish(mut console: Console) -> Result<String> {
    console.expect("HOLM-READY", PATIENCE)?;
    console.expect("HOLM-EXIT", PATIENCE)
}

/// Takes the figures out of what a guest printed.
fn read(output: &str, side: Side, figures: &mut Figures) -> Result<()> {
    let rates: Vec<f64> = output.lines().filter_map(rate).collect();
    let trip = output.lines().find_map(|line| {
        let mut words = line.trim().strip_prefix("RR ")?.split(' ');
        words.next()?.parse::<f64>().ok()
    });
    let (&[to, from], Some(trip)) = (rates.as_slice(), trip) else {
        bail!("two guests under {side} printed no figures:\n{output}");
    };
    figures.add("switch", "to the other guest, Mbit/s", side, to);
    figures.add("switch", "from the other guest, Mbit/s", side, from);
    figures.add("switch", "round trip, us", side, trip);
    Ok(())
}

/// Mbit/s of iperf3's line about the receiver.
fn rate(line: &str) -> Option<f64> {
    let (before, after) = line.split_once(" Mbits/sec")?;
    let number = before.split_whitespace().last()?.parse().ok()?;
    after.contains("receiver").then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let output = "[  5]   0.00-5.01   sec  4.48 GBytes  7670 Mbits/sec                  receiver\r\n\
                      [  5]   0.00-5.01   sec  3.1 GBytes  5400.5 Mbits/sec            receiver\r\n\
                      RR 64.8 124.2\r\n";
        let mut figures = Figures::default();
        read(output, Side::Holm, &mut figures).unwrap();
        let median = |name: &str| figures.median(name, Side::Holm);
        assert_eq!(median("from the other guest, Mbit/s"), Some(5400.5));
        assert_eq!(median("round trip, us"), Some(64.8));
        assert!(read("RR 1 1", Side::Tcg, &mut figures).is_err());
    }
}
