//! Client tokens: the same request twice is done once.

use model::{Done, Timestamp};
use sha2::{Digest, Sha256};

use crate::{Batch, Caller, Plane, Refusal};

/// A client token and the request that it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token, at most 64 characters.
    pub token: String,
    /// Digest of the request's parameters.
    request: String,
}

impl Token {
    /// The token of a request, whose parameters are given in an order of their
    /// own.
    ///
    /// # Errors
    /// [`Refusal::Invalid`]: longer than 64 characters, or not printable ASCII.
    pub fn new<'a>(
        token: &str,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Refusal> {
        let good = (1..=64).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
        if !good {
            return Err(Refusal::invalid(
                "client_token",
                "a client token is 1 to 64 printable ASCII characters",
            ));
        }
        let mut digest = Sha256::new();
        for (name, value) in parameters {
            // Lengths keep `a=bc` and `ab=c` apart.
            digest.update((name.len() as u64).to_le_bytes());
            digest.update(name);
            digest.update((value.len() as u64).to_le_bytes());
            digest.update(value);
        }
        let request = digest
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        Ok(Self {
            token: token.to_owned(),
            request,
        })
    }
}

fn id(caller: &Caller, action: &str, token: &Token) -> String {
    // Slashes would make other ids of a token's text.
    let text = token.token.replace('%', "%25").replace('/', "%2f");
    format!("{}/{action}/{text}", caller.account)
}

impl Plane {
    /// What this request made when it came first.
    ///
    /// # Errors
    /// [`Refusal::TokenMismatch`].
    pub(crate) fn done(
        &self,
        caller: &Caller,
        action: &str,
        token: Option<&Token>,
    ) -> Result<Option<Vec<String>>, Refusal> {
        let Some(token) = token else {
            return Ok(None);
        };
        match self.view().get::<Done>(id(caller, action, token)) {
            None => Ok(None),
            Some(done) if done.record.request == token.request => {
                Ok(Some(done.record.made.clone()))
            }
            Some(_) => Err(Refusal::TokenMismatch(token.token.clone())),
        }
    }

    /// Forgets requests that came longer ago than their clients ask again.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget_done(&self, before: Timestamp) -> Result<usize, Refusal> {
        let old = self.view().filter::<Done>(|done| done.at < before);
        for some in old.chunks(90) {
            self.transact(|batch| {
                some.iter().for_each(|done| batch.discard::<Done>(&done.id));
                Ok(())
            })
            .await?;
        }
        Ok(old.len())
    }
}

impl Batch {
    /// Notes what a request made, with the making itself.
    pub(crate) fn note(
        &mut self,
        caller: &Caller,
        action: &str,
        token: Option<&Token>,
        made: Vec<String>,
    ) -> Result<(), Refusal> {
        let Some(token) = token else {
            return Ok(());
        };
        let done = Done {
            request: token.request.clone(),
            made,
            at: Timestamp::now(),
        };
        self.create(&id(caller, action, token), &done)
    }
}
