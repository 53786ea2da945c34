//! Custom sizes of instances.

use model::{InstanceType, catalogued};

use crate::{Caller, Kind, Plane, Refusal};

/// Most vCPUs of a size.
const CPUS_MAX: u32 = 255;
/// Least memory of a size, in MiB.
const MEMORY_MIN: u64 = 32;
/// Most memory of a size, in MiB: 255 GiB.
const MEMORY_MAX: u64 = 255 << 10;

impl Plane {
    /// Makes a size of instances.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::Invalid`], [`Refusal::NotAllowed`].
    pub async fn create_instance_type(
        &self,
        caller: &Caller,
        name: &str,
        cpus: u32,
        memory_mib: u64,
    ) -> Result<InstanceType, Refusal> {
        administrates(caller)?;
        let fits = (1..=64).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b));
        if !fits {
            let reason = "a size's name has 1 to 64 small letters, digits, '.' and '-', and begins with a letter";
            return Err(Refusal::invalid("name", reason));
        }
        if !(1..=CPUS_MAX).contains(&cpus) {
            let reason = format!("a size has 1 to {CPUS_MAX} vCPUs");
            return Err(Refusal::invalid("cpus", reason));
        }
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory_mib) {
            let reason = format!("a size has {MEMORY_MIN} to {MEMORY_MAX} MiB of memory");
            return Err(Refusal::invalid("memory_mib", reason));
        }
        let exists = || Refusal::Exists {
            kind: Kind::InstanceType,
            name: name.to_owned(),
        };
        if catalogued(name).is_some() {
            return Err(exists());
        }
        let size = InstanceType {
            name: name.to_owned().into(),
            cpus,
            memory_mib,
        };
        self.transact(|batch| {
            if self.view().get::<InstanceType>(name).is_some() {
                return Err(exists());
            }
            batch.create(name, &size)
        })
        .await?;
        Ok(size)
    }

    /// Removes a custom size; instances that have it keep what it gave them.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::NotAllowed`].
    pub async fn delete_instance_type(&self, caller: &Caller, name: &str) -> Result<(), Refusal> {
        administrates(caller)?;
        if catalogued(name).is_some() {
            return Err(Refusal::NotAllowed(format!(
                "{name} is one of the sizes that every Holm has"
            )));
        }
        self.transact(|batch| {
            let found = self.view().get::<InstanceType>(name);
            let found = found.ok_or_else(|| Refusal::not_found(Kind::InstanceType, name))?;
            batch.remove(&found);
            Ok(())
        })
        .await
    }
}

fn administrates(caller: &Caller) -> Result<(), Refusal> {
    match caller.admin {
        true => Ok(()),
        false => Err(Refusal::NotAllowed(
            "only an administrator changes sizes".into(),
        )),
    }
}
