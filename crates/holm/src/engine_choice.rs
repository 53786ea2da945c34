//! Which CPU engine runs a machine.

use engine_kvm::KvmVerdict;

use crate::cli::EngineChoice;
use crate::console::terminal;
use crate::failure::Failure;

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
            let (kind, reason) = auto(&engine_kvm::probe());
            tracing::info!(engine = kind.name(), reason, "engine chosen");
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
