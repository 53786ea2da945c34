//! Which CPU engine runs a machine.

use engine_kvm::KvmVerdict;

use crate::cli::EngineChoice;
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
pub fn auto(kvm: &KvmVerdict, built_in: bool) -> (EngineKind, String) {
    match (kvm.usable, built_in) {
        (true, true) => (EngineKind::Kvm, kvm.reason.clone()),
        (true, false) => (
            EngineKind::Soft,
            "KVM is usable, but this version of Holm has no engine for it yet".into(),
        ),
        (false, _) => (EngineKind::Soft, kvm.reason.clone()),
    }
}

/// Decides on the engine; measures KVM only where that matters.
///
/// # Errors
/// [`Failure::Host`] where the engine asked for cannot run.
pub fn decide(choice: EngineChoice) -> Result<EngineKind, Failure> {
    match choice {
        EngineChoice::Soft => Ok(EngineKind::Soft),
        EngineChoice::Auto => {
            // Without its engine there is nothing to measure for.
            if !engine_kvm::BUILT_IN {
                return Ok(EngineKind::Soft);
            }
            let (kind, reason) = auto(&engine_kvm::probe(), engine_kvm::BUILT_IN);
            tracing::info!(engine = kind.name(), reason, "engine chosen");
            Ok(kind)
        }
        EngineChoice::Kvm if !engine_kvm::BUILT_IN => Err(Failure::Host(
            "this version of Holm has no engine for KVM yet: use --engine soft".into(),
        )),
        EngineChoice::Kvm => {
            let verdict = engine_kvm::probe();
            if !verdict.usable {
                return Err(Failure::Host(format!(
                    "KVM cannot be used here: {}; use --engine soft",
                    verdict.reason
                )));
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
            reason: "it only emulates".into(),
            api_version: Some(12),
            guest_mips: Some(2.0),
            native_mips: Some(5000.0),
        };
        assert_eq!(
            auto(&kvm, true),
            (EngineKind::Soft, "it only emulates".into())
        );
        kvm.usable = true;
        assert_eq!(auto(&kvm, true).0, EngineKind::Kvm);
        assert_eq!(auto(&kvm, false).0, EngineKind::Soft);
    }
}
