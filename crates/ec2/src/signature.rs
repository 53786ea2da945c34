//! Signature version 4: who signed a request, and whether it is the request
//! that was signed.

mod authorization;
mod canonical;

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, Method, StatusCode};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use control::Caller;

use crate::access::{AccessKey, AccessKeys};
use crate::error::Error;
use crate::form::Pair;

pub use authorization::{Authorization, Scope};
use canonical::hex;

/// How far the clocks of client and daemon may be apart, and for how long a
/// signed request may be sent again.
pub const CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);
/// Longest time a presigned request may be valid.
const EXPIRES_MAX: u64 = 7 * 24 * 60 * 60;

/// What of a request is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path as sent.
    pub path: &'a str,
    /// The parameters of its URL, decoded.
    pub query: &'a [Pair],
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub body: &'a [u8],
}

/// What the daemon asks of signatures.
#[derive(Clone, Copy)]
pub struct Verifier<'a> {
    /// Finds secrets.
    pub keys: &'a dyn AccessKeys,
    /// The only region there is.
    pub region: &'a str,
    /// The time.
    pub now: SystemTime,
}

/// Who signed, and for which service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose access key it was.
    pub caller: Caller,
    /// Service of the credential's scope, such as `ec2`.
    pub service: String,
}

impl Verifier<'_> {
    /// Who signed the request.
    ///
    /// # Errors
    /// `MissingAuthenticationToken`, `IncompleteSignature`, `AuthFailure` or
    /// `InvalidClientTokenId` (unknown key), `SignatureDoesNotMatch`,
    /// `RequestExpired`.
    pub fn verify(&self, request: &Signed<'_>) -> Result<Identity, Error> {
        let authorization = Authorization::of(request)?;
        let scope = &authorization.scope;
        self.check_time(&authorization)?;
        if scope.service == "iam" {
            // As to a caller without permissions: clients then do without.
            let message = "The caller is not authorized to use IAM: Holm has no service iam";
            return Err(Error::new("AccessDenied", message).with_status(StatusCode::FORBIDDEN));
        }
        if !matches!(scope.service.as_str(), "ec2" | "sts") {
            return Err(Error::new(
                "InvalidAction",
                format!("Holm has no service {}", scope.service),
            ));
        }
        // STS is signed for us-east-1 by clients that use its old endpoint.
        if scope.region != self.region && !(scope.service == "sts" && scope.region == "us-east-1") {
            return Err(mismatch(format!(
                "Credential should be scoped to a valid region, '{}' and not '{}'",
                self.region, scope.region
            )));
        }
        let key = self
            .keys
            .find(&scope.access_key_id)
            .ok_or_else(|| unknown_key(&scope.service))?;
        check_token(&key, authorization.session_token.as_deref(), &scope.service)?;
        let text = authorization.string_to_sign(request)?;
        let signing = signing_key(&key.secret, scope);
        if !equal(&signing, text.as_bytes(), &authorization.signature) {
            return Err(mismatch(
                "The request signature we calculated does not match the signature you provided. \
                 Check your AWS Secret Access Key and signing method. Consult the service \
                 documentation for details.",
            ));
        }
        Ok(Identity {
            caller: key.caller,
            service: scope.service.clone(),
        })
    }

    fn check_time(&self, authorization: &Authorization) -> Result<(), Error> {
        let at = authorization.at;
        let expires = match authorization.expires {
            None => CLOCK_SKEW,
            Some(seconds) if (1..=EXPIRES_MAX).contains(&seconds) => Duration::from_secs(seconds),
            Some(seconds) => {
                return Err(Error::invalid(
                    "X-Amz-Expires",
                    seconds,
                    "It must be between 1 and 604800 seconds.",
                ));
            }
        };
        let expired = self.now > at + expires;
        let early = at > self.now + CLOCK_SKEW;
        if expired || early {
            let shown = |at| humantime::format_rfc3339_seconds(at).to_string();
            return Err(Error::new(
                "RequestExpired",
                format!(
                    "Request has expired. It was signed at {}; the time is {}",
                    shown(at),
                    shown(self.now)
                ),
            ));
        }
        Ok(())
    }
}

/// A temporary key comes with its token, another with none.
fn check_token(key: &AccessKey, sent: Option<&str>, service: &str) -> Result<(), Error> {
    let fits = match (&key.session_token, sent) {
        (None, None) => true,
        // Compared by their hashes, so that time tells nothing.
        (Some(token), Some(sent)) => Sha256::digest(token) == Sha256::digest(sent),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let mut refused = unknown_key(service);
    if key.session_token.is_none() {
        refused
            .message
            .push_str(": a session token came with a key that has none; unset AWS_SESSION_TOKEN");
    }
    Err(refused)
}

fn unknown_key(service: &str) -> Error {
    match service {
        "ec2" => Error::new(
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
        )
        .with_status(StatusCode::UNAUTHORIZED),
        _ => Error::new(
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
        )
        .with_status(StatusCode::FORBIDDEN),
    }
}

fn mismatch(message: impl Into<String>) -> Error {
    Error::new("SignatureDoesNotMatch", message).with_status(StatusCode::FORBIDDEN)
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        }
        // HMAC takes keys of any length.
        Err(_) => Vec::new(),
    }
}

/// The key of one day, region and service.
fn signing_key(secret: &str, scope: &Scope) -> Vec<u8> {
    let day = mac(format!("AWS4{secret}").as_bytes(), scope.day.as_bytes());
    let region = mac(&day, scope.region.as_bytes());
    mac(&mac(&region, scope.service.as_bytes()), b"aws4_request")
}

/// Whether the signature is that of the text, in constant time.
fn equal(key: &[u8], text: &[u8], signature: &[u8]) -> bool {
    Hmac::<Sha256>::new_from_slice(key).is_ok_and(|mut mac| {
        mac.update(text);
        mac.verify_slice(signature).is_ok()
    })
}

/// SHA-256 in hex.
fn digest(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

#[cfg(test)]
mod tests;
