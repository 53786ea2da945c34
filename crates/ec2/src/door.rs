//! One request, one answer.

use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use control::{Plane, Refusal};
use model::InstanceId;
use prometheus::Registry;

use crate::actions::{self, Handler};
use crate::call::Call;
use crate::error::Error;
use crate::facts::{Action, facts};
use crate::form::{self, Pair};
use crate::limit::Limit;
use crate::metrics::Metrics;
use crate::parameters::Parameters;
use crate::signature::{Signed, Verifier};
use crate::xml::{EC2_NAMESPACE, Element, STS_NAMESPACE};

/// The version of EC2's API; older clients name older ones.
const EC2_VERSION: &str = "2016-11-15";
const STS_VERSION: &str = "2011-06-15";

/// What an instance's console said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// The last of it, at most 64 KiB.
    pub output: Vec<u8>,
    /// When it last said something.
    pub at: SystemTime,
}

/// Finds what instances' consoles said.
#[async_trait::async_trait]
pub trait Consoles: Send + Sync {
    /// What an instance's console said since it was last started; `None`:
    /// nothing yet.
    ///
    /// # Errors
    /// It cannot be read.
    async fn read(&self, instance: &InstanceId) -> std::io::Result<Option<Console>>;
}

/// Answers requests of EC2 and STS.
pub struct Door {
    plane: Plane,
    region: String,
    consoles: Box<dyn Consoles>,
    limit: Limit,
    metrics: Option<Metrics>,
}

/// A request as it came, its body read.
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its query string, as sent.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// How errors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Ec2,
    Query,
    Json,
}

impl Door {
    /// A door to a plane.
    ///
    /// # Errors
    /// The plane has no site.
    pub fn new(plane: Plane, consoles: Box<dyn Consoles>) -> Result<Self, Refusal> {
        Ok(Self {
            region: plane.site()?.region,
            plane,
            consoles,
            limit: Limit::default(),
            metrics: None,
        })
    }

    /// A door that counts its answers in a registry.
    ///
    /// # Errors
    /// The registry has its counts already.
    pub fn counted(mut self, registry: &Registry) -> prometheus::Result<Self> {
        self.metrics = Some(Metrics::register(registry)?);
        Ok(self)
    }

    /// What is behind it.
    #[must_use]
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Name of the region that it is.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// What an instance's console said.
    pub(crate) async fn console(&self, id: &InstanceId) -> Result<Option<Console>, Error> {
        let read = self.consoles.read(id).await;
        read.map_err(|error| {
            tracing::error!(%error, instance = %id, "reading a console");
            Error::internal("The console could not be read; the daemon's log says why")
        })
    }

    /// The answer to a request.
    pub async fn answer(&self, request: &Request) -> Response {
        let id = uuid::Uuid::new_v4().to_string();
        let begun = Instant::now();
        let mut protocol = guess(&request.headers);
        let mut asked = String::new();
        let result = self.act(request, &id, &mut protocol, &mut asked).await;
        let code = match &result {
            Ok(_) => "",
            Err(error) => &error.code,
        };
        let took = begun.elapsed();
        if let Some(metrics) = &self.metrics {
            metrics.answered(&asked, code, took);
        }
        tracing::info!(action = asked, code, request = id, ?took, "EC2 request");
        match result {
            Ok(document) => response(StatusCode::OK, "text/xml;charset=UTF-8", &id, document),
            Err(error) => refuse(&error, &id, protocol),
        }
    }

    async fn act(
        &self,
        request: &Request,
        id: &str,
        protocol: &mut Protocol,
        asked: &mut String,
    ) -> Result<String, Error> {
        if !matches!(request.path.as_str(), "" | "/") {
            let message = format!("EC2 is at /, and {} is not known", request.path);
            return Err(Error::new("InvalidAction", message).with_status(StatusCode::NOT_FOUND));
        }
        if !matches!(request.method, Method::GET | Method::POST) {
            let message = "Only GET and POST are known";
            return Err(
                Error::new("InvalidRequest", message).with_status(StatusCode::METHOD_NOT_ALLOWED)
            );
        }
        let query = form::decode(request.query.as_bytes())?;
        let identity = Verifier {
            keys: &self.plane,
            region: &self.region,
            now: SystemTime::now(),
        }
        .verify(&Signed {
            method: &request.method,
            path: &request.path,
            query: &query,
            headers: &request.headers,
            body: &request.body,
        })?;
        *protocol = match identity.service.as_str() {
            "ec2" => Protocol::Ec2,
            _ => Protocol::Query,
        };
        if !self
            .limit
            .take(identity.caller.account.as_str(), Instant::now())
        {
            return Err(
                Error::new("RequestLimitExceeded", "Request limit exceeded.")
                    .with_status(StatusCode::SERVICE_UNAVAILABLE),
            );
        }
        let mut parameters = parameters(request, query)?;
        let name = parameters
            .take("Action")
            .filter(|action| !action.is_empty())
            .ok_or_else(|| {
                Error::new(
                    "MissingAction",
                    "The request must contain the parameter Action",
                )
            })?;
        let version = parameters.take("Version").unwrap_or_default();
        check_version(&identity.service, &version)?;
        let (action, handler) = find(&name, &identity.service)?;
        action.name.clone_into(asked);
        parameters.check(action, handler.understood)?;
        let call = Call {
            door: self,
            caller: identity.caller,
            parameters,
            action,
            host: host(&request.headers),
        };
        let reply = (handler.run)(&call).await?;
        Ok(document(action, id, reply))
    }
}

/// The host that the client addressed.
fn host(headers: &HeaderMap) -> String {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    host.unwrap_or_default().to_owned()
}

/// The form's parameters: those of the URL and of the body.
fn parameters(request: &Request, query: Vec<Pair>) -> Result<Parameters, Error> {
    let mut pairs = query;
    pairs.retain(|(name, _)| !name.starts_with("X-Amz-"));
    if !request.body.is_empty() {
        let kind = request.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind
            .to_ascii_lowercase()
            .starts_with("application/x-www-form-urlencoded")
        {
            return Err(Error::malformed(format!(
                "The body must be application/x-www-form-urlencoded, not {kind:?}"
            )));
        }
        pairs.extend(form::decode(&request.body)?);
    }
    Parameters::new(&pairs)
}

/// The action and who handles it.
fn find(name: &str, service: &str) -> Result<(&'static Action, &'static Handler), Error> {
    let action = facts().actions.get(name);
    match (action, actions::find(name)) {
        (Some(action), Some(handler)) if action.service == service => Ok((action, handler)),
        (None, _) | (Some(_), None) if service == "ec2" && facts().is_ec2(name) => Err(
            Error::unsupported(format!("Holm does not support the action {name}")),
        ),
        _ => Err(Error::invalid_action(name)),
    }
}

/// Refuses versions that are not dates up to the one that Holm speaks.
fn check_version(service: &str, version: &str) -> Result<(), Error> {
    let newest = match service {
        "ec2" => EC2_VERSION,
        _ => STS_VERSION,
    };
    let date = version.len() == newest.len()
        && version
            .bytes()
            .zip(newest.bytes())
            .all(|(a, b)| a.is_ascii_digit() == b.is_ascii_digit() && (a != b'-') == (b != b'-'));
    match date && version <= newest {
        true => Ok(()),
        false => Err(Error::new(
            "NoSuchVersion",
            format!(
                "The requested version ({version}) of service {service} does not exist; {newest} does"
            ),
        )),
    }
}

/// How a client that has not said what it wants reads errors.
fn guess(headers: &HeaderMap) -> Protocol {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let authorization = headers.get(header::AUTHORIZATION);
    let authorization = authorization
        .and_then(|a| a.to_str().ok())
        .unwrap_or_default();
    if kind.starts_with("application/x-amz-json") || headers.contains_key("x-amz-target") {
        Protocol::Json
    } else if authorization.is_empty() || authorization.contains("/ec2/aws4_request") {
        Protocol::Ec2
    } else {
        Protocol::Query
    }
}

/// A reply in its action's document.
fn document(action: &Action, id: &str, reply: Vec<Element>) -> String {
    let root = Element::new(format!("{}Response", action.name));
    match action.service {
        "ec2" => root
            .text("requestId", id)
            .extend(reply)
            .document(Some(EC2_NAMESPACE)),
        _ => root
            .child(Element::new(format!("{}Result", action.name)).extend(reply))
            .child(Element::new("ResponseMetadata").text("RequestId", id))
            .document(Some(STS_NAMESPACE)),
    }
}

/// An error in the form that the client reads.
fn refuse(error: &Error, id: &str, protocol: Protocol) -> Response {
    let said = |element: Element| {
        element
            .text("Code", &error.code)
            .text("Message", &error.message)
    };
    let (kind, text) = match protocol {
        Protocol::Ec2 => {
            let errors = Element::new("Errors").child(said(Element::new("Error")));
            let root = Element::new("Response").child(errors).text("RequestID", id);
            ("text/xml;charset=UTF-8", root.document(None))
        }
        Protocol::Query => {
            let side = match error.status.is_server_error() {
                true => "Receiver",
                false => "Sender",
            };
            let inner = said(Element::new("Error").text("Type", side));
            let root = Element::new("ErrorResponse")
                .child(inner)
                .text("RequestId", id);
            ("text/xml;charset=UTF-8", root.document(Some(STS_NAMESPACE)))
        }
        Protocol::Json => {
            let said = serde_json::json!({"__type": error.code, "message": error.message});
            ("application/x-amz-json-1.1", said.to_string())
        }
    };
    response(error.status, kind, id, text)
}

fn response(status: StatusCode, kind: &'static str, id: &str, text: String) -> Response {
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

/// The answer to a request whose body was not taken.
pub fn refuse_early(headers: &HeaderMap, error: &Error) -> Response {
    refuse(error, &uuid::Uuid::new_v4().to_string(), guess(headers))
}
