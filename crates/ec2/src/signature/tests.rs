//! Requests signed by AWS's own crate, whole and changed.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::form;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

struct Keys;

impl AccessKeys for Keys {
    fn find(&self, access_key_id: &str) -> Option<AccessKey> {
        let session_token = match access_key_id {
            "AKIAGOOD" => None,
            "ASIATEMPORARY" => Some("its token/+=".to_owned()),
            _ => return None,
        };
        Some(AccessKey {
            secret: "very+secret/".into(),
            session_token,
            caller: Caller {
                account: "000000000000".to_owned().try_into().unwrap(),
                user: "you".into(),
                admin: false,
            },
        })
    }
}

/// A request that can be changed after it was signed.
#[derive(Clone)]
struct Request {
    method: Method,
    query: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

struct Sign<'a> {
    key: &'a str,
    secret: &'a str,
    token: Option<&'a str>,
    region: &'a str,
    service: &'a str,
    at: SystemTime,
    expires: Option<Duration>,
}

fn now() -> SystemTime {
    NOW + Duration::from_secs(1_700_000_000)
}

impl Default for Sign<'_> {
    fn default() -> Self {
        Self {
            key: "AKIAGOOD",
            secret: "very+secret/",
            token: None,
            region: "holm-1",
            service: "ec2",
            at: now(),
            expires: None,
        }
    }
}

impl Sign<'_> {
    fn sign(&self, method: Method, query: &str, body: &str) -> Request {
        let identity = Credentials::new(
            self.key,
            self.secret,
            self.token.map(Into::into),
            None,
            "test",
        )
        .into();
        let mut settings = SigningSettings::default();
        if let Some(expires) = self.expires {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(expires);
        }
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(self.at)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let uri = format!("http://127.0.0.1:4780/?{query}");
        let given = [
            ("host", "127.0.0.1:4780"),
            (
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-8",
            ),
            ("x-odd", "  a   b "),
        ];
        let signable = SignableRequest::new(
            method.as_str(),
            &uri,
            given.into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        )
        .unwrap();
        let (instructions, _) = sign(signable, &parameters).unwrap().into_parts();
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        for (name, value) in given {
            request = request.header(name, value);
        }
        let mut request = request.body(()).unwrap();
        instructions.apply_to_request_http1x(&mut request);
        Request {
            method: request.method().clone(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            body: body.as_bytes().to_vec(),
        }
    }
}

impl Request {
    fn verify_at(&self, now: SystemTime) -> Result<Identity, Error> {
        let verifier = Verifier {
            keys: &Keys,
            region: "holm-1",
            now,
        };
        verifier.verify(&Signed {
            method: &self.method,
            path: "/",
            query: &form::decode(self.query.as_bytes())?,
            headers: &self.headers,
            body: &self.body,
        })
    }

    fn code(&self) -> String {
        match self.verify_at(now()) {
            Ok(identity) => format!(
                "signed by {} for {}",
                identity.caller.user, identity.service
            ),
            Err(error) => error.code.into_owned(),
        }
    }

    fn set(&mut self, name: &'static str, value: &str) {
        let value = HeaderValue::from_str(value).unwrap();
        self.headers.insert(HeaderName::from_static(name), value);
    }
}

const BODY: &str = "Action=DescribeRegions&Version=2016-11-15";
const QUERY: &str = "b=%2Fx%20y&a=1&a=0&Z=&%C3%A4=%E2%82%AC";

#[test]
fn a_signed_request_is_its_signers() {
    let post = Sign::default().sign(Method::POST, "", BODY);
    assert_eq!(post.code(), "signed by you for ec2");
    let get = Sign::default().sign(Method::GET, QUERY, "");
    assert_eq!(get.code(), "signed by you for ec2");
    let sts = Sign {
        service: "sts",
        region: "us-east-1",
        ..Sign::default()
    };
    assert_eq!(
        sts.sign(Method::POST, "", BODY).code(),
        "signed by you for sts"
    );
}

#[test]
fn a_presigned_url_is_good_for_its_time() {
    let presigned = Sign {
        expires: Some(Duration::from_secs(3600)),
        ..Sign::default()
    }
    .sign(Method::GET, QUERY, "");
    assert_eq!(presigned.code(), "signed by you for ec2");
    let late = |seconds| presigned.verify_at(now() + Duration::from_secs(seconds));
    assert!(late(3600).is_ok());
    assert_eq!(late(3601).unwrap_err().code, "RequestExpired");
    let mut changed = presigned.clone();
    changed.query = changed
        .query
        .replace("X-Amz-Expires=3600", "X-Amz-Expires=3601");
    assert_eq!(changed.code(), "SignatureDoesNotMatch");
    changed.query = changed
        .query
        .replace("X-Amz-Expires=3601", "X-Amz-Expires=604801");
    assert_eq!(changed.code(), "InvalidParameterValue");
}

#[test]
fn any_change_is_noticed() {
    let good = Sign::default().sign(Method::POST, QUERY, BODY);
    assert_eq!(good.code(), "signed by you for ec2");
    let mut changes: Vec<Request> = Vec::new();
    let mut change = |how: &dyn Fn(&mut Request)| {
        let mut request = good.clone();
        how(&mut request);
        changes.push(request);
    };
    change(&|r| r.body[3] ^= 1);
    change(&|r| r.body.clear());
    change(&|r| r.method = Method::GET);
    change(&|r| r.query = r.query.replace("a=1", "a=2"));
    change(&|r| r.query.push_str("&new=1"));
    change(&|r| r.set("host", "elsewhere"));
    change(&|r| r.set("x-odd", "a b c"));
    change(&|r| r.set("x-amz-new", "1"));
    change(&|r| drop(r.headers.remove("x-odd")));
    change(&|r| r.set("x-amz-date", "20231114T221321Z"));
    for (number, request) in changes.iter().enumerate() {
        assert_eq!(request.code(), "SignatureDoesNotMatch", "change {number}");
    }
}

#[test]
fn keys_regions_and_services_are_checked() {
    let code = |sign: Sign| sign.sign(Method::POST, "", BODY).code();
    let base = Sign::default;
    assert_eq!(
        code(Sign {
            key: "AKIANOBODY",
            ..base()
        }),
        "AuthFailure"
    );
    assert_eq!(
        code(Sign {
            key: "AKIANOBODY",
            service: "sts",
            ..base()
        }),
        "InvalidClientTokenId"
    );
    assert_eq!(
        code(Sign {
            secret: "wrong",
            ..base()
        }),
        "SignatureDoesNotMatch"
    );
    assert_eq!(
        code(Sign {
            region: "us-east-1",
            ..base()
        }),
        "SignatureDoesNotMatch"
    );
    assert_eq!(
        code(Sign {
            service: "iam",
            ..base()
        }),
        "AccessDenied"
    );
    assert_eq!(
        code(Sign {
            service: "s3",
            ..base()
        }),
        "InvalidAction"
    );
    let temporary = Sign {
        key: "ASIATEMPORARY",
        token: Some("its token/+="),
        ..base()
    };
    assert_eq!(code(temporary), "signed by you for ec2");
    assert_eq!(
        code(Sign {
            key: "ASIATEMPORARY",
            ..base()
        }),
        "AuthFailure"
    );
    assert_eq!(
        code(Sign {
            key: "ASIATEMPORARY",
            token: Some("its token"),
            ..base()
        }),
        "AuthFailure"
    );
    assert_eq!(
        code(Sign {
            token: Some("a token"),
            ..base()
        }),
        "AuthFailure"
    );
}

#[test]
fn clocks_may_differ_by_fifteen_minutes() {
    let request = Sign::default().sign(Method::POST, "", BODY);
    for (now, fine) in [
        (now() + CLOCK_SKEW, true),
        (now() - CLOCK_SKEW, true),
        (now() + CLOCK_SKEW + Duration::from_secs(1), false),
        (now() - CLOCK_SKEW - Duration::from_secs(1), false),
    ] {
        match request.verify_at(now) {
            Ok(_) => assert!(fine),
            Err(error) => assert!(!fine && error.code == "RequestExpired", "{error}"),
        }
    }
}

#[test]
fn malformed_authorization_is_named() {
    let good = Sign::default().sign(Method::POST, "", BODY);
    let header = good.headers["authorization"].to_str().unwrap().to_owned();
    let cases = [
        (String::new(), "IncompleteSignature"),
        ("Basic dXNlcjpwYXNz".into(), "IncompleteSignature"),
        (header.replace("Signature=", "Sig="), "IncompleteSignature"),
        (header.replace("/aws4_request", ""), "IncompleteSignature"),
        (header.replace("host;", ""), "SignatureDoesNotMatch"),
        (header.replace("host;", "Host;"), "IncompleteSignature"),
        (
            header.replace("20231114/", "20231113/"),
            "SignatureDoesNotMatch",
        ),
        (
            header.replace("20231114/", "2023111x/"),
            "IncompleteSignature",
        ),
        (format!("{header}, Signature=00"), "IncompleteSignature"),
        (header[..header.len() - 1].to_owned(), "IncompleteSignature"),
        (
            format!("{header}{}", " ".repeat(5000)),
            "IncompleteSignature",
        ),
    ];
    for (header, code) in cases {
        let mut request = good.clone();
        request.set("authorization", &header);
        assert_eq!(request.code(), code, "{header}");
    }
    let mut unsigned = good.clone();
    unsigned.headers.remove("authorization");
    assert_eq!(unsigned.code(), "MissingAuthenticationToken");
    let mut undated = good.clone();
    undated.headers.remove("x-amz-date");
    assert_eq!(undated.code(), "IncompleteSignature");
    for stamp in [
        "20231114T22132Z",
        "20231114X221320Z",
        "2023-11-14T22:13Z",
        "20231399T221320Z",
    ] {
        let mut request = good.clone();
        request.set("x-amz-date", stamp);
        assert_eq!(request.code(), "IncompleteSignature", "{stamp}");
    }
}
