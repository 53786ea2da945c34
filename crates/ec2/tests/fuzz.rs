//! What strangers send is refused and harms nothing.

use axum::http::{HeaderMap, HeaderValue, Method};
use ec2::parameters::Parameters;
use ec2::signature::{Authorization, Signed};
use ec2::{facts, form};
use fuzzing::{Fuzz, Input};

fn fuzz<'a>(name: &'a str, words: &'a [&'a [u8]]) -> Fuzz<'a> {
    Fuzz {
        name,
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words,
        longest: 4096,
    }
}

#[test]
fn forms() {
    let words: &[&[u8]] = &[
        b"Filter.1.Name=",
        b"&",
        b"=",
        b"%",
        b"+",
        b".1",
        b".N",
        b"..",
        b"Value.1",
        b"4294967296",
        b"TagSpecification.1.Tag.1.Key=",
        b"BlockDeviceMapping.1.Ebs.VolumeSize=",
        b"NetworkInterface.1.SecurityGroupId.1=",
        b"DryRun=true",
        b"MinCount=1&MaxCount=1&ImageId=ami-1",
    ];
    fuzz("form", words).run(|bytes| {
        let pairs = match form::decode(bytes) {
            Ok(pairs) => pairs,
            Err(error) => return (error.code.into_owned(), 0),
        };
        let tree = match Parameters::new(&pairs) {
            Ok(tree) => tree,
            Err(error) => return (error.code.into_owned(), pairs.len()),
        };
        // What was taken in comes out again.
        assert!(tree.leaves().len() <= pairs.len());
        let run = &facts::facts().actions["RunInstances"];
        let understood = ec2::actions::find("RunInstances").unwrap().understood;
        let checked = tree.check(run, understood);
        for name in ["Filter", "TagSpecification", "BlockDeviceMapping"] {
            for one in tree.structures(name) {
                let _ = (
                    one.texts("Value"),
                    one.number::<u8>("DeviceName"),
                    one.blob("Name"),
                );
            }
        }
        let code = checked.map_or_else(|error| error.code.into_owned(), |()| String::new());
        (code, pairs.len().min(4))
    });
}

#[test]
fn authorizations() {
    let words: &[&[u8]] = &[
        b"AWS4-HMAC-SHA256 ",
        b"Credential=",
        b"SignedHeaders=",
        b"Signature=",
        b"/aws4_request",
        b",",
        b"=",
        b";",
        b"host",
        b"20260101T000000Z",
        b"X-Amz-Signature=",
        b"X-Amz-Expires=",
        b"\n",
    ];
    fuzz("authorization", words).run(|bytes| {
        let mut input = Input::new(bytes);
        let date_length = usize::from(input.u8() % 32);
        let date = input.bytes(date_length).to_vec();
        let rest = input.bytes(usize::MAX);
        let mut parts = rest.splitn(2, |byte| *byte == b'\n');
        let (header, query) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("here"));
        if let (Ok(header), false) = (HeaderValue::from_bytes(header), header.is_empty()) {
            headers.insert("authorization", header);
        }
        if let Ok(date) = HeaderValue::from_bytes(&date) {
            headers.insert("x-amz-date", date);
        }
        let Ok(query) = form::decode(query) else {
            return "form".to_owned();
        };
        let request = Signed {
            method: &Method::GET,
            path: "/",
            query: &query,
            headers: &headers,
            body: b"",
        };
        match Authorization::of(&request) {
            Ok(authorization) => {
                let text = authorization.string_to_sign(&request);
                format!("{:?}", text.is_ok())
            }
            Err(error) => error.to_string().chars().take(60).collect(),
        }
    });
}
