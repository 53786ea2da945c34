//! Lines that clients of a control socket could send.

use fuzzing::Fuzz;
use machine_protocol::{ErrorCode, parse_request};

const WORDS: [&[u8]; 16] = [
    b"{\"request\":\"",
    b"\"}",
    b"pause",
    b"events",
    b"\"after\":",
    b"\"follow\":true",
    b"console",
    b"\"keyboard\":\"take\"",
    b"type",
    b"\"data\":\"QUJD\"",
    b"console-size",
    b"18446744073709551616",
    b"-1",
    b"[[[[[[[[",
    b"\\u0000",
    b"null",
];

#[test]
fn requests() {
    let fuzz = Fuzz {
        name: "request",
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words: &WORDS,
        longest: 2000,
    };
    fuzz.run(
        |input| match parse_request(&String::from_utf8_lossy(input)) {
            Ok(request) => {
                // What was understood means the same again.
                let line = serde_json::to_string(&request).unwrap();
                assert_eq!(parse_request(&line).unwrap(), request);
                line.split(':').nth(1).map(str::to_owned)
            }
            Err(refused) => {
                assert!(matches!(
                    refused.code,
                    ErrorCode::Malformed | ErrorCode::Unknown
                ));
                assert!(refused.message.len() < 4 * input.len() + 1000);
                let kind: String = refused
                    .message
                    .chars()
                    .filter(|c| c.is_alphabetic())
                    .take(70)
                    .collect();
                Some(kind)
            }
        },
    );
}
