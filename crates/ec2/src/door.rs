//! One request, one answer.

use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::access::{AccessKeys, Principal};
use crate::actions::{self, Handler};
use crate::error::Error;
use crate::facts::{Action, facts};
use crate::form::{self, Pair};
use crate::limit::Limit;
use crate::parameters::Parameters;
use crate::signature::{Signed, Verifier};
use crate::xml::{EC2_NAMESPACE, Element, STS_NAMESPACE};

/// The version of EC2's API; older clients name older ones.
const EC2_VERSION: &str = "2016-11-15";
const STS_VERSION: &str = "2011-06-15";

/// What a door is told when it is made.
pub struct Options {
    /// Finds access keys.
    pub keys: Box<dyn AccessKeys>,
    /// Name of the region that it is.
    pub region: String,
}

/// Answers requests of EC2 and STS.
pub struct Door {
    keys: Box<dyn AccessKeys>,
    region: String,
    limit: Limit,
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

/// One action that is asked for, with what was sent for it.
pub struct Call<'a> {
    /// Who answers.
    pub door: &'a Door,
    /// Who asks.
    pub principal: Principal,
    /// What was sent.
    pub parameters: Parameters,
    /// What the action is.
    pub action: &'static Action,
}

impl Call<'_> {
    /// Ends a call that only asks whether it would succeed; handlers call it
    /// after they read all parameters and before they change anything.
    ///
    /// # Errors
    /// `DryRunOperation`.
    pub fn dry_run(&self) -> Result<(), Error> {
        match self.parameters.boolean("DryRun")? {
            Some(true) => Err(Error::dry_run()),
            _ => Ok(()),
        }
    }
}

/// How errors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Ec2,
    Query,
    Json,
}

impl Door {
    /// A door.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            keys: options.keys,
            region: options.region,
            limit: Limit::default(),
        }
    }

    /// Name of the region that it is.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
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
        tracing::info!(action = asked, code, request = id, took = ?begun.elapsed(), "EC2 request");
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
            keys: self.keys.as_ref(),
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
        if !self.limit.take(&identity.principal.account, Instant::now()) {
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
            principal: identity.principal,
            parameters,
            action,
        };
        let reply = (handler.run)(&call).await?;
        Ok(document(action, id, reply))
    }
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
