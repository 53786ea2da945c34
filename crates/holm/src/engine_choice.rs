//! Which CPU engine runs a machine.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use engine_kvm::KvmVerdict;
use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::console::terminal;
use crate::failure::Failure;
use crate::named::place;
use crate::run::arguments::EngineChoice;

/// A CPU engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Hardware virtualization.
    Kvm,
    /// The software CPU.
    Soft,
}

impl EngineKind {
    /// As typed after `--engine`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        }
    }
}

/// What `auto` takes on a host with this KVM, and why.
pub fn auto(kvm: &KvmVerdict) -> (EngineKind, String) {
    let kind = match kvm.usable {
        true => EngineKind::Kvm,
        false => EngineKind::Soft,
    };
    (kind, kvm.reason.clone())
}

/// Decides on the engine; measures KVM only where that matters.
///
/// # Errors
/// [`Failure::Host`] where the engine asked for cannot run.
pub fn decide(choice: EngineChoice) -> Result<EngineKind, Failure> {
    match choice {
        EngineChoice::Soft => Ok(EngineKind::Soft),
        EngineChoice::Auto => {
            let now = Circumstances::now();
            if let Some(kind) = remembered(&now) {
                tracing::info!(engine = kind.name(), "engine chosen as before");
                return Ok(kind);
            }
            let (kind, reason) = auto(&engine_kvm::probe());
            tracing::info!(engine = kind.name(), reason, "engine chosen");
            remember(now, kind);
            Ok(kind)
        }
        EngineChoice::Kvm => {
            let verdict = engine_kvm::probe();
            if !verdict.runs {
                return Err(Failure::Host(format!(
                    "KVM cannot be used here: {}; use --engine soft",
                    verdict.reason
                )));
            }
            if !verdict.usable {
                let reason = &verdict.reason;
                terminal::say(&format!(
                    "holm: --engine soft would be faster here: {reason}"
                ));
            }
            Ok(EngineKind::Kvm)
        }
    }
}

/// On what a decision depends: KVM is measured once per start of the host,
/// which takes some 40 ms.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Circumstances {
    boot: String,
    holm: String,
    /// Whether this user may use KVM.
    kvm: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    on: Circumstances,
    kvm_is_faster: bool,
}

impl Circumstances {
    fn now() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let rights = Access::READ_OK | Access::WRITE_OK;
        Self {
            boot: boot.unwrap_or_default().trim().into(),
            holm: env!("CARGO_PKG_VERSION").into(),
            kvm: rustix::fs::access("/dev/kvm", rights).is_ok(),
        }
    }
}

fn memory() -> PathBuf {
    place::runtime().join("engine.json")
}

fn remembered(now: &Circumstances) -> Option<EngineKind> {
    let file = fs::File::open(memory()).ok()?;
    // Nobody else decides for this user.
    let own = file.metadata().ok()?.uid() == rustix::process::geteuid().as_raw();
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).ok()?;
    let decision: Decision = serde_json::from_str(&text).ok()?;
    (own && decision.on == *now && !now.boot.is_empty()).then_some(match decision.kvm_is_faster {
        true => EngineKind::Kvm,
        false => EngineKind::Soft,
    })
}

/// A decision that cannot be kept is made again.
fn remember(on: Circumstances, kind: EngineKind) {
    let decision = Decision {
        on,
        kvm_is_faster: kind == EngineKind::Kvm,
    };
    let path = memory();
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let kept = serde_json::to_vec(&decision)
        .map_err(std::io::Error::from)
        .and_then(|text| {
            let mut make = fs::DirBuilder::new();
            make.recursive(true).mode(0o700).create(place::runtime())?;
            fs::write(&new, text)?;
            fs::rename(&new, &path)
        });
    if let Err(error) = kept {
        tracing::debug!(%error, "the choice of the engine is not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_follows_the_measurement() {
        let mut kvm = KvmVerdict {
            usable: false,
            runs: true,
            reason: "it only emulates".into(),
            api_version: Some(12),
            guest_mips: Some(2.0),
            native_mips: Some(5000.0),
        };
        assert_eq!(auto(&kvm), (EngineKind::Soft, "it only emulates".into()));
        kvm.usable = true;
        assert_eq!(auto(&kvm).0, EngineKind::Kvm);
    }
}
