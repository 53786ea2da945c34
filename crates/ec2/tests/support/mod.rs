//! A door on a store of its own, and a client that signs.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use axum::http::{HeaderMap, Method};
use control::{Caller, NewAccessKey, Plane};
use ec2::{Console, Consoles, Door, Request};
use http_body_util::BodyExt;
use model::InstanceId;

/// An element of a response.
#[derive(Clone, Debug, Default)]
pub struct Xml {
    pub name: String,
    pub text: String,
    pub children: Vec<Xml>,
}

impl Xml {
    pub fn parse(document: &str) -> Self {
        use quick_xml::events::Event;
        let mut reader = quick_xml::Reader::from_str(document);
        let mut open = vec![Self::default()];
        let named = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        loop {
            match reader.read_event().expect("well-formed XML") {
                Event::Start(start) => open.push(Self {
                    name: named(start.name().as_ref()),
                    ..Self::default()
                }),
                Event::Empty(empty) => open.last_mut().unwrap().children.push(Self {
                    name: named(empty.name().as_ref()),
                    ..Self::default()
                }),
                Event::End(_) => {
                    let done = open.pop().unwrap();
                    open.last_mut().unwrap().children.push(done);
                }
                Event::Text(text) => {
                    let text = text.decode().unwrap();
                    open.last_mut()
                        .unwrap()
                        .text
                        .push_str(text.trim_start_matches('\n'));
                }
                Event::GeneralRef(name) => {
                    let character = match &*name.decode().unwrap() {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        _ => name.resolve_char_ref().unwrap().unwrap(),
                    };
                    open.last_mut().unwrap().text.push(character);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        open.pop().unwrap().children.pop().expect("a root element")
    }

    /// The element at the end of a path such as `vpcSet/item/vpcId`.
    pub fn find(&self, path: &str) -> Option<&Self> {
        path.split('/')
            .try_fold(self, |at, name| at.children.iter().find(|c| c.name == name))
    }

    /// The text at the end of a path.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        let found = self.find(path);
        found
            .unwrap_or_else(|| panic!("no {path} in {self:#?}"))
            .text
            .clone()
    }

    /// The elements of a list.
    pub fn items(&self, path: &str) -> Vec<&Self> {
        self.find(path)
            .map_or(Vec::new(), |list| list.children.iter().collect())
    }

    /// Paths of all that is in it and has no children.
    pub fn leaves(&self, above: &str, into: &mut Vec<(String, String)>) {
        for child in &self.children {
            let path = match above {
                "" => child.name.clone(),
                _ => format!("{above}.{}", child.name),
            };
            match child.children.is_empty() {
                true => into.push((path, child.text.clone())),
                false => child.leaves(&path, into),
            }
        }
    }
}

/// What a refusal said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub code: String,
    pub message: String,
}

struct Said;

#[async_trait::async_trait]
impl Consoles for Said {
    async fn read(&self, _: &InstanceId) -> std::io::Result<Option<Console>> {
        Ok(Some(Console {
            output: b"hello\n".to_vec(),
            at: SystemTime::now(),
        }))
    }
}

pub struct Client {
    pub door: Arc<Door>,
    pub plane: Plane,
    pub caller: Caller,
    /// What the door counts.
    pub registry: prometheus::Registry,
    key: model::AccessKey,
    _directory: tempfile::TempDir,
    /// Paths of members that each action's responses had.
    pub produced: std::sync::Mutex<BTreeMap<String, std::collections::BTreeSet<String>>>,
}

impl Client {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = store::Sqlite::open(directory.path()).unwrap();
        let plane = Plane::open(Arc::new(store)).await.unwrap();
        let caller = Caller::owner(plane.site().unwrap().account);
        let new = NewAccessKey {
            user: "root".into(),
            expires: None,
        };
        let key = plane.create_access_key(&caller, new).await.unwrap();
        let registry = prometheus::Registry::new();
        let door = Door::new(plane.clone(), Box::new(Said)).unwrap();
        Self {
            door: Arc::new(door.counted(&registry).unwrap()),
            registry,
            plane,
            caller,
            key,
            _directory: directory,
            produced: std::sync::Mutex::default(),
        }
    }

    /// Id and secret of its access key.
    pub fn credentials(&self) -> (&str, &str) {
        (&self.key.id, &self.key.secret)
    }

    /// Names and values as a form, with the action.
    pub fn form(action: &str, parameters: &[(&str, &str)]) -> String {
        let version = match action {
            "GetCallerIdentity" => "2011-06-15",
            _ => "2016-11-15",
        };
        let mut pairs = vec![("Action", action), ("Version", version)];
        pairs.extend(parameters);
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(name, value)| {
                format!("{}={}", ec2::form::encode(name), ec2::form::encode(value))
            })
            .collect();
        pairs.join("&")
    }

    pub fn signed(&self, service: &str, body: &str) -> Request {
        let identity = Credentials::new(&self.key.id, &self.key.secret, None, None, "test").into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name(service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let headers = [
            ("host", "127.0.0.1:4780"),
            (
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-8",
            ),
        ];
        let signable = SignableRequest::new(
            "POST",
            "http://127.0.0.1:4780/",
            headers.into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        )
        .unwrap();
        let (instructions, _) = sign(signable, &parameters).unwrap().into_parts();
        let mut request = axum::http::Request::builder().uri("http://127.0.0.1:4780/");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut request = request.body(()).unwrap();
        instructions.apply_to_request_http1x(&mut request);
        Request {
            method: Method::POST,
            path: "/".into(),
            query: String::new(),
            headers: request.headers().clone(),
            body: body.to_owned().into(),
        }
    }

    pub async fn send(&self, request: &Request) -> (u16, HeaderMap, String) {
        let response = self.door.answer(request).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            head.status.as_u16(),
            head.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    /// Does an action.
    pub async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Xml, Refused> {
        let service = match action {
            "GetCallerIdentity" => "sts",
            _ => "ec2",
        };
        let request = self.signed(service, &Self::form(action, parameters));
        let (status, headers, text) = self.send(&request).await;
        let root = Xml::parse(&text);
        let id = headers["x-amzn-requestid"].to_str().unwrap();
        if status != 200 {
            let error = root.find("Errors/Error").or_else(|| root.find("Error"));
            let error = error.unwrap_or_else(|| panic!("{text}"));
            return Err(Refused {
                status,
                code: error.text("Code"),
                message: error.text("Message"),
            });
        }
        assert_eq!(root.name, format!("{action}Response"));
        if service == "sts" {
            assert_eq!(root.text("ResponseMetadata/RequestId"), id);
            let result = root.find(&format!("{action}Result")).unwrap();
            self.note(action, result);
            return Ok(result.clone());
        }
        assert_eq!(root.text("requestId"), id);
        self.note(action, &root);
        Ok(root)
    }

    /// Checks a response against what the wire has, and remembers it.
    fn note(&self, action: &str, root: &Xml) {
        let facts = &ec2::facts::facts().actions[action];
        let mut leaves = Vec::new();
        root.leaves("", &mut leaves);
        let mut produced = self.produced.lock().unwrap();
        let produced = produced.entry(action.to_owned()).or_default();
        for (path, text) in leaves {
            // An answer without members says `return` where EC2 does.
            if path == "requestId" || (path == "return" && text == "true") {
                continue;
            }
            check(&facts.members, &path, &text, action);
            produced.insert(path);
        }
    }

    /// Does an action that must succeed.
    #[track_caller]
    pub fn ok<'a>(
        &'a self,
        action: &'a str,
        parameters: &'a [(&'a str, &'a str)],
    ) -> impl Future<Output = Xml> + 'a {
        let from = std::panic::Location::caller();
        async move {
            let done = self.call(action, parameters).await;
            done.unwrap_or_else(|refused| panic!("{from}: {action} {parameters:?}: {refused:?}"))
        }
    }

    /// The code with which an action is refused.
    pub async fn code(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        match self.call(action, parameters).await {
            Ok(done) => format!("done: {done:?}"),
            Err(refused) => refused.code,
        }
    }
}

/// Whether a member is one of the wire's, and of its type.
fn check(members: &[ec2::facts::Member], path: &str, text: &str, action: &str) {
    use ec2::facts::Kind;
    let mut at = members;
    let mut found = None;
    for name in path.split('.') {
        let member = at.iter().find(|member| member.name == name);
        let member = member.unwrap_or_else(|| panic!("{action} has no member {path}"));
        at = &member.members;
        found = Some(member);
    }
    let kind = found.unwrap().kind;
    let good = match kind {
        Kind::String | Kind::Blob => true,
        // Empty ones.
        Kind::Structure | Kind::List => text.is_empty(),
        Kind::Integer => text.parse::<i64>().is_ok(),
        Kind::Decimal => text.parse::<f64>().is_ok(),
        Kind::Boolean => text == "true" || text == "false",
        Kind::Timestamp => humantime::parse_rfc3339(text).is_ok(),
    };
    assert!(good, "{action}: {path} is {text:?} and should be {kind:?}");
}
