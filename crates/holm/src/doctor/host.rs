//! What `holm doctor` tries on the host.

use std::arch::is_x86_feature_detected;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Stdio};

use net::user::Pinging;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use serde::Serialize;

use super::{Finding, finding};

/// The host's CPU.
#[derive(Serialize)]
pub struct Cpu {
    /// Vendor string.
    pub vendor: String,
    /// Brand string.
    pub model: String,
    /// Logical CPUs this process may use.
    pub threads: usize,
    /// Highest level of the x86-64 psABI.
    pub level: &'static str,
    /// What the software engine can use or show to guests.
    pub features: Vec<Feature>,
}

/// A CPU feature.
#[derive(Serialize)]
pub struct Feature {
    /// As in `/proc/cpuinfo`.
    pub name: &'static str,
    /// Whether the CPU has it.
    pub present: bool,
}

/// Looks at the CPU.
pub fn cpu() -> Cpu {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))
            .map_or_else(|| "unknown".into(), |value| value.trim().to_owned())
    };
    let feature = |name, present| Feature { name, present };
    Cpu {
        vendor: field("vendor_id"),
        model: field("model name"),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        level: level(),
        features: vec![
            feature("sse4_2", is_x86_feature_detected!("sse4.2")),
            feature("popcnt", is_x86_feature_detected!("popcnt")),
            feature("avx", is_x86_feature_detected!("avx")),
            feature("avx2", is_x86_feature_detected!("avx2")),
            feature("bmi1", is_x86_feature_detected!("bmi1")),
            feature("bmi2", is_x86_feature_detected!("bmi2")),
            feature("fma", is_x86_feature_detected!("fma")),
            feature("avx512f", is_x86_feature_detected!("avx512f")),
            feature("aes", is_x86_feature_detected!("aes")),
            feature("xsavec", is_x86_feature_detected!("xsavec")),
        ],
    }
}

fn level() -> &'static str {
    let v2 = is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("cmpxchg16b");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => "x86-64-v4",
        (_, true, _) => "x86-64-v3",
        (true, ..) => "x86-64-v2",
        _ => "x86-64-v1",
    }
}

/// Tries everything.
pub fn findings() -> Vec<Finding> {
    vec![
        user_namespaces(),
        tun(),
        ping(),
        io_uring(),
        huge_pages(),
        userfaultfd(),
        memfd(),
    ]
}

fn ping() -> Finding {
    let result = match net::user::pinging() {
        Pinging::Sockets => Ok("the kernel gives ping sockets".into()),
        Pinging::Raw => Ok("a raw socket was opened (CAP_NET_RAW)".into()),
        Pinging::Prohibited => {
            Err("neither a ping socket nor a raw one; see sysctl net.ipv4.ping_group_range".into())
        }
    };
    finding(
        "ping",
        "guests of --net user that ping the world (all else works without)",
        result,
    )
}

fn user_namespaces() -> Finding {
    // A namespace cannot be left again, so a child tries it.
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let result = match tried {
        Ok(output) if output.status.success() => Ok("a new one was made".into()),
        Ok(output) => Err(format!(
            "{}; see sysctl kernel.unprivileged_userns_clone and user.max_user_namespaces",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!(
            "`unshare` (package util-linux) cannot be run: {error}"
        )),
    };
    finding(
        "user_namespaces",
        "images without root, sandboxes, rootless networks",
        result,
    )
}

fn tun() -> Finding {
    let path = "/dev/net/tun";
    let result = fs::metadata(path)
        .and_then(|metadata| match metadata.file_type().is_char_device() {
            true => fs::OpenOptions::new().read(true).write(true).open(path),
            false => Err(io::ErrorKind::InvalidInput.into()),
        })
        .map(|_| "opened".into())
        .map_err(|error| format!("{path}: {error}; load module tun or ask for the device"));
    finding("tun", "bridged networks", result)
}

fn io_uring() -> Finding {
    let result = io_uring::IoUring::new(8)
        .map(|_| "a ring was made".into())
        .map_err(|error| {
            format!(
                "{error}; see sysctl kernel.io_uring_disabled, or the container's seccomp profile"
            )
        });
    finding("io_uring", "fast disks (else threads do the work)", result)
}

fn huge_pages() -> Finding {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let result = match fs::read_to_string(path) {
        Ok(text) => {
            let mode = text
                .split_whitespace()
                .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
                .unwrap_or("unknown")
                .to_owned();
            match mode.as_str() {
                "never" => Err(format!("transparent huge pages are off ({path})")),
                _ => Ok(format!("transparent huge pages: {mode}")),
            }
        }
        Err(error) => Err(format!("{path}: {error}")),
    };
    finding("huge_pages", "less time in the host's page tables", result)
}

fn userfaultfd() -> Finding {
    let result = memory::host::try_userfaultfd()
        .map(|()| "one was made".into())
        .map_err(|error| {
            format!("{error}; see sysctl vm.unprivileged_userfaultfd, or the seccomp profile")
        });
    finding(
        "userfaultfd",
        "restoring memory while the machine already runs",
        result,
    )
}

fn memfd() -> Finding {
    let result = rustix::fs::memfd_create("holm-doctor", MemfdFlags::CLOEXEC)
        .and_then(|fd| rustix::fs::ftruncate(fd, 1 << 20))
        .map(|()| "one was made".into())
        .map_err(|error: Errno| error.to_string());
    finding("memfd", "the guest's memory", result)
}
