//! Tokens of the REST interface.

use std::sync::Arc;

use model::{ApiToken, Meta, Tags, Timestamp};
use store::Found;

use crate::{Caller, Kind, Plane, Refusal};

/// A token to be kept.
#[derive(Clone, Debug)]
pub struct NewApiToken {
    /// Its part that is no secret.
    pub id: String,
    /// Digest of all of it.
    pub digest: String,
    /// What its owner calls it.
    pub name: String,
    /// Its bearer may change things.
    pub admin: bool,
    /// When it goes; `None`: it stays.
    pub expires: Option<Timestamp>,
}

impl Plane {
    /// Keeps a token of the caller's account.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::NotAllowed`].
    pub async fn create_api_token(
        &self,
        caller: &Caller,
        new: NewApiToken,
    ) -> Result<ApiToken, Refusal> {
        if !caller.admin {
            let reason = "only an administrator makes tokens";
            return Err(Refusal::NotAllowed(reason.into()));
        }
        if new.name.chars().count() > 64 || new.name.chars().any(char::is_control) {
            let reason = "a token's name has at most 64 characters";
            return Err(Refusal::invalid("name", reason));
        }
        let token = ApiToken {
            id: new.id,
            meta: Meta::new(caller.account.clone(), Tags::new()),
            name: new.name,
            digest: new.digest,
            admin: new.admin,
            expires: new.expires,
        };
        self.transact(|batch| batch.create(&token.id, &token))
            .await?;
        Ok(token)
    }

    /// The account's tokens.
    #[must_use]
    pub fn api_tokens(&self, caller: &Caller) -> Vec<Arc<Found<ApiToken>>> {
        let own = |token: &ApiToken| token.meta.account == caller.account;
        self.view().filter::<ApiToken>(own)
    }

    /// Removes a token: its bearer is no longer let in.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub async fn delete_api_token(&self, caller: &Caller, id: &str) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.view().get::<ApiToken>(id);
            let found = found.filter(|token| token.record.meta.account == caller.account);
            let found = found.ok_or_else(|| Refusal::not_found(Kind::ApiToken, id))?;
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// A token by its id, if it is still valid.
    #[must_use]
    pub fn api_token(&self, id: &str) -> Option<Arc<Found<ApiToken>>> {
        let found = self.view().get::<ApiToken>(id)?;
        let valid = found
            .record
            .expires
            .is_none_or(|end| Timestamp::now() < end);
        valid.then_some(found)
    }
}
