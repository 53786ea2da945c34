//! `application/x-www-form-urlencoded`, as bodies and query strings have it.

use crate::error::Error;

/// Most parameters of one request.
pub const PAIRS_MAX: usize = 4096;
/// Longest name of a parameter, in bytes.
const NAME_MAX: usize = 256;

/// Name and value, decoded, in the order of the request.
pub type Pair = (String, String);

/// The pairs of a body or query string.
///
/// # Errors
/// `MalformedQueryString` if it is not UTF-8 or an escape is broken, or there
/// are more than [`PAIRS_MAX`] pairs.
pub fn decode(text: &[u8]) -> Result<Vec<Pair>, Error> {
    let mut pairs = Vec::new();
    for part in text.split(|byte| *byte == b'&') {
        if part.is_empty() {
            continue;
        }
        if pairs.len() == PAIRS_MAX {
            return Err(Error::malformed(format!(
                "The request has more than {PAIRS_MAX} parameters"
            )));
        }
        let mut halves = part.splitn(2, |byte| *byte == b'=');
        let name = unescape(halves.next().unwrap_or_default())?;
        let value = unescape(halves.next().unwrap_or_default())?;
        if name.len() > NAME_MAX {
            return Err(Error::malformed(format!(
                "The name of a parameter is longer than {NAME_MAX} bytes"
            )));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Undoes percent escapes and `+`.
fn unescape(text: &[u8]) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = rest.next().zip(rest.next());
                digits
                    .and_then(|(high, low)| Some(digit(*high)? << 4 | digit(*low)?))
                    .ok_or_else(|| {
                        Error::malformed("A percent sign is not followed by two hex digits")
                    })?
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).map_err(|_| Error::malformed("A parameter is not UTF-8"))
}

fn digit(character: u8) -> Option<u8> {
    char::from(character)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Percent-encodes all but RFC 3986's unreserved characters, as SigV4 wants.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                encoded.push('%');
                encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
                encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_decoded() {
        let pairs = decode(b"A=b+c%2Fd&&Empty=&Bare&x=1=2").unwrap();
        let expected = [("A", "b c/d"), ("Empty", ""), ("Bare", ""), ("x", "1=2")];
        let expected = expected.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(pairs, expected);
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in [&b"a=%"[..], b"a=%4", b"a=%zz", b"%fe=1"] {
            assert_eq!(decode(text).unwrap_err().code, "MalformedQueryString");
        }
        assert!(decode("a=1&".repeat(PAIRS_MAX + 1).as_bytes()).is_err());
        assert!(decode(&[b'a'; 300]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(name in "\\PC{1,20}", value in any::<String>()) {
            let text = format!("{}={}", encode(&name), encode(&value));
            prop_assert_eq!(decode(text.as_bytes()).unwrap(), vec![(name, value)]);
        }
    }
}
