//! Access keys: `holm key access`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::{AccessKey, Meta, Tags, Timestamp, random_bytes};

use crate::{Caller, Kind, Plane, Refusal};

/// An access key to be made.
#[derive(Clone, Debug)]
pub struct NewAccessKey {
    /// Who gets it, as `root` or `ci`.
    pub user: String,
    /// When it goes; `None`: it stays.
    pub expires: Option<Timestamp>,
}

impl Plane {
    /// Makes an access key of the caller's account.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], the store's.
    pub async fn create_access_key(
        &self,
        caller: &Caller,
        new: NewAccessKey,
    ) -> Result<AccessKey, Refusal> {
        let easy = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        if !(1..=64).contains(&new.user.len()) || !new.user.chars().all(easy) {
            let reason = "a user's name has 1 to 64 letters, digits and +=,.@_-";
            return Err(Refusal::invalid("user", reason));
        }
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let letters = random_bytes::<16>().map(|b| char::from(LETTERS[usize::from(b & 31)]));
        let key = AccessKey {
            id: format!("AKIA{}", letters.iter().collect::<String>()),
            meta: Meta::new(caller.account.clone(), Tags::new()),
            secret: STANDARD.encode(random_bytes::<30>()),
            user: new.user,
            active: true,
            expires: new.expires,
        };
        self.transact(|batch| batch.create(&key.id, &key)).await?;
        Ok(key)
    }

    /// The account's access keys.
    #[must_use]
    pub fn access_keys(&self, caller: &Caller) -> Vec<AccessKey> {
        let own = |key: &AccessKey| key.meta.account == caller.account;
        let found = self.view().filter::<AccessKey>(own);
        found.iter().map(|found| found.record.clone()).collect()
    }

    /// Removes an access key: requests signed with it are refused from now on.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub async fn delete_access_key(&self, caller: &Caller, id: &str) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.view().get::<AccessKey>(id);
            let found = found.filter(|key| key.record.meta.account == caller.account);
            let found = found.ok_or_else(|| Refusal::not_found(Kind::AccessKey, id))?;
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// Who signs with an access key, and the secret to check that by; `None` if
    /// there is no such key, or it is no longer valid.
    #[must_use]
    pub fn signer(&self, id: &str) -> Option<(Caller, String)> {
        let found = self.view().get::<AccessKey>(id)?;
        let key = &found.record;
        let valid = key.active && key.expires.is_none_or(|end| Timestamp::now() < end);
        valid.then(|| {
            let caller = Caller {
                admin: key.user == "root",
                account: key.meta.account.clone(),
                user: key.user.clone(),
            };
            (caller, key.secret.clone())
        })
    }
}
