//! What a request says about its signature, in its header or its URL.

use std::time::SystemTime;

use axum::http::StatusCode;

use super::canonical::canonical_request;
use super::{Signed, digest, mismatch};
use crate::error::Error;
use crate::form::Pair;

/// The only algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Longest Authorization header that is looked at, in bytes.
const LONGEST: usize = 4096;
/// Most headers that can be signed.
const HEADERS_MAX: usize = 64;

/// Where a credential is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Id of the access key.
    pub access_key_id: String,
    /// `YYYYMMDD`.
    pub day: String,
    /// Such as `us-east-1`.
    pub region: String,
    /// Such as `ec2`.
    pub service: String,
}

/// A signature and what it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Where the credential is good.
    pub scope: Scope,
    /// Names of the signed headers, in lower case.
    pub signed_headers: Vec<String>,
    /// The signature.
    pub signature: Vec<u8>,
    /// When it was signed.
    pub at: SystemTime,
    /// That moment as it was sent.
    pub stamp: String,
    /// Of a presigned URL: for how many seconds it is valid.
    pub expires: Option<u64>,
    /// Of a temporary access key.
    pub session_token: Option<String>,
}

impl Authorization {
    /// Of a request's header or, if it has none, its URL.
    ///
    /// # Errors
    /// `MissingAuthenticationToken` if there is neither, `IncompleteSignature`
    /// if it is not as it should be.
    pub fn of(request: &Signed<'_>) -> Result<Self, Error> {
        let authorization = match request.headers.get("authorization") {
            Some(header) => {
                let header = header.to_str().map_err(|_| {
                    incomplete("The Authorization header has characters other than ASCII")
                })?;
                Self::of_header(header, request)?
            }
            None if pair(request.query, "X-Amz-Signature").is_some() => Self::of_url(request)?,
            None => return Err(missing(request.query)),
        };
        authorization.check_headers(request)?;
        Ok(authorization)
    }

    fn of_header(header: &str, request: &Signed<'_>) -> Result<Self, Error> {
        let text = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok());
        let stamp = match (text("x-amz-date"), text("date")) {
            (Some(stamp), _) | (None, Some(stamp)) => stamp,
            (None, None) => {
                return Err(incomplete(
                    "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
                ));
            }
        };
        let parts = HeaderParts::parse(header)?;
        Self::build(
            parts.credential,
            parts.signed_headers,
            parts.signature,
            stamp,
            None,
            text("x-amz-security-token"),
        )
    }

    fn of_url(request: &Signed<'_>) -> Result<Self, Error> {
        let find = |name| {
            pair(request.query, name)
                .ok_or_else(|| incomplete(format!("The parameter {name} is missing")))
        };
        if find("X-Amz-Algorithm")? != ALGORITHM {
            return Err(incomplete(format!("X-Amz-Algorithm must be {ALGORITHM}")));
        }
        let expires = find("X-Amz-Expires")?;
        let expires = expires
            .parse()
            .map_err(|_| Error::invalid("X-Amz-Expires", expires, "A number is expected."))?;
        Self::build(
            find("X-Amz-Credential")?,
            find("X-Amz-SignedHeaders")?,
            find("X-Amz-Signature")?,
            find("X-Amz-Date")?,
            Some(expires),
            pair(request.query, "X-Amz-Security-Token"),
        )
    }

    fn build(
        credential: &str,
        signed_headers: &str,
        signature: &str,
        stamp: &str,
        expires: Option<u64>,
        session_token: Option<&str>,
    ) -> Result<Self, Error> {
        let scope = Scope::parse(credential)?;
        let at = moment(stamp)?;
        if !stamp.starts_with(&scope.day) {
            return Err(mismatch(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date \
                 from HTTP: '{}' != '{stamp}'",
                scope.day
            )));
        }
        let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
        if signed_headers.len() > HEADERS_MAX
            || !signed_headers.iter().all(|name| is_header(name))
            || !signed_headers.is_sorted()
        {
            return Err(incomplete(
                "SignedHeaders must be names in lower case, sorted, with ';' between them",
            ));
        }
        Ok(Self {
            scope,
            signed_headers,
            signature: unhex(signature)
                .ok_or_else(|| incomplete("Signature must be 64 hex digits"))?,
            at,
            stamp: stamp.to_owned(),
            expires,
            session_token: session_token.map(str::to_owned),
        })
    }

    /// The host must be signed, and whatever else says what is asked.
    fn check_headers(&self, request: &Signed<'_>) -> Result<(), Error> {
        let signed = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        if !signed("host") {
            return Err(mismatch("'Host' must be a signed header"));
        }
        for name in request.headers.keys().map(|name| name.as_str()) {
            if name.starts_with("x-amz-") && !signed(name) {
                return Err(mismatch(format!(
                    "There were headers present in the request which were not signed: {name}"
                )));
            }
        }
        Ok(())
    }

    /// The text whose HMAC is the signature.
    ///
    /// # Errors
    /// As [`canonical_request`].
    pub fn string_to_sign(&self, request: &Signed<'_>) -> Result<String, Error> {
        let canonical = canonical_request(request, &self.signed_headers)?;
        let Scope {
            day,
            region,
            service,
            ..
        } = &self.scope;
        Ok(format!(
            "{ALGORITHM}\n{}\n{day}/{region}/{service}/aws4_request\n{}",
            self.stamp,
            digest(canonical.as_bytes())
        ))
    }
}

/// The three parts of an Authorization header.
struct HeaderParts<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> HeaderParts<'a> {
    fn parse(header: &'a str) -> Result<Self, Error> {
        if header.len() > LONGEST {
            return Err(incomplete("The Authorization header is too long"));
        }
        let rest = header
            .strip_prefix(ALGORITHM)
            .filter(|rest| rest.starts_with(' '))
            .ok_or_else(|| incomplete(format!("The Authorization header must begin with {ALGORITHM}: other ways to sign are not supported")))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part
                .trim()
                .split_once('=')
                .ok_or_else(|| incomplete("A part of the Authorization header has no '='"))?;
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => {
                    return Err(incomplete(
                        "The Authorization header has a part that is not known",
                    ));
                }
            };
            if place.replace(value).is_some() {
                return Err(incomplete(format!("{name} is given twice")));
            }
        }
        let need = |value: Option<&'a str>, name| {
            value.ok_or_else(|| {
                incomplete(format!("Authorization header requires '{name}' parameter."))
            })
        };
        Ok(Self {
            credential: need(credential, "Credential")?,
            signed_headers: need(signed_headers, "SignedHeaders")?,
            signature: need(signature, "Signature")?,
        })
    }
}

impl Scope {
    fn parse(credential: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = credential.split('/').collect();
        match parts[..] {
            [access_key_id, day, region, service, "aws4_request"]
                if !access_key_id.is_empty()
                    && access_key_id.len() <= 128
                    && day.len() == 8
                    && day.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                Ok(Self {
                    access_key_id: access_key_id.to_owned(),
                    day: day.to_owned(),
                    region: region.to_owned(),
                    service: service.to_owned(),
                })
            }
            _ => Err(incomplete(
                "Credential must have five slash-delimited elements, \
                 e.g. keyid/date/region/service/aws4_request",
            )),
        }
    }
}

/// A moment as `YYYYMMDDTHHMMSSZ`.
fn moment(stamp: &str) -> Result<SystemTime, Error> {
    let wrong = || incomplete("The date must be in ISO-8601 'basic format', YYYYMMDDTHHMMSSZ");
    let bytes = stamp.as_bytes();
    let digits = |from: usize, to: usize| {
        stamp
            .get(from..to)
            .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(wrong)
    };
    if bytes.len() != 16 || bytes.get(8) != Some(&b'T') || bytes.get(15) != Some(&b'Z') {
        return Err(wrong());
    }
    let long = format!(
        "{}-{}-{}T{}:{}:{}Z",
        digits(0, 4)?,
        digits(4, 6)?,
        digits(6, 8)?,
        digits(9, 11)?,
        digits(11, 13)?,
        digits(13, 15)?
    );
    humantime::parse_rfc3339(&long).map_err(|_| wrong())
}

fn is_header(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

fn pair<'a>(query: &'a [Pair], name: &str) -> Option<&'a str> {
    query
        .iter()
        .find(|(other, _)| other == name)
        .map(|(_, value)| value.as_str())
}

fn missing(query: &[Pair]) -> Error {
    let message = match pair(query, "Signature") {
        Some(_) => "Signature version 2 is not supported: sign with version 4",
        None => "Request is missing Authentication Token",
    };
    Error::new("MissingAuthenticationToken", message).with_status(StatusCode::FORBIDDEN)
}

fn incomplete(message: impl Into<String>) -> Error {
    Error::new("IncompleteSignature", message)
}
