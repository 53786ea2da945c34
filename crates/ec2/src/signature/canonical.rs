//! The one form of a request that both sides hash.

use axum::http::HeaderMap;

use super::Signed;
use crate::error::Error;
use crate::form::encode;

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The canonical request; `names` are the signed headers, in the order in
/// which the client named them.
///
/// # Errors
/// `SignatureDoesNotMatch` if a signed header was not sent.
pub fn canonical_request(request: &Signed<'_>, names: &[String]) -> Result<String, Error> {
    let mut lines = vec![
        request.method.as_str().to_owned(),
        path(request.path),
        query(request),
    ];
    for name in names {
        lines.push(format!("{name}:{}", value(request.headers, name)?));
    }
    lines.push(String::new());
    lines.push(names.join(";"));
    lines.push(super::digest(request.body));
    Ok(lines.join("\n"))
}

/// Each segment of the path is encoded once more than it was sent.
fn path(sent: &str) -> String {
    match sent {
        "" => "/".into(),
        _ => {
            let segments: Vec<String> = sent.split('/').map(encode).collect();
            segments.join("/")
        }
    }
}

/// The URL's parameters, encoded and sorted, without the signature.
fn query(request: &Signed<'_>) -> String {
    let mut pairs: Vec<(String, String)> = request
        .query
        .iter()
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// A header's values, joined, each without space around it and with single
/// spaces within.
fn value(headers: &HeaderMap, name: &str) -> Result<String, Error> {
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        values.push(words.join(" "));
    }
    match values.is_empty() {
        true => Err(super::mismatch(format!(
            "The header {name} is signed and was not sent"
        ))),
        false => Ok(values.join(",")),
    }
}
