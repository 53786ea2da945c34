//! The OpenAPI 3.1 document, made from the handlers themselves.

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required};
use utoipa::{PartialSchema, ToSchema};

use crate::extract::IDEMPOTENCY_KEY_MAX;
use crate::problem::{self, Code, Problem};

/// The document before handlers are added.
pub fn empty() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Holm")
        .version("v1")
        .description(Some(
            "Virtual machines and what belongs to them. On the Unix socket `run/api.sock` of the \
             state directory its owner and root may do everything; on TCP a bearer token is needed. \
             Errors are RFC 9457 problems with stable codes. Every record has an ETag; send it as \
             If-Match, and the change is made only if nobody was faster. Send an Idempotency-Key with a \
             POST, and repeat it after a failure of the network: it is done once.",
        ))
        .build();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let mut document = OpenApiBuilder::new().info(info).build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    for (name, schema) in [
        (Problem::name(), Problem::schema()),
        (Code::name(), Code::schema()),
    ] {
        components.schemas.insert(name.into_owned(), schema);
    }
    document
}

/// Adds what all handlers have in common.
pub fn complete(document: &mut OpenApi) {
    let records = records(document);
    for (path, item) in &mut document.paths.paths {
        let open = matches!(path.as_str(), "/healthz" | "/v1/openapi.json");
        // Of one record, which has an ETag.
        let of_record = |record: &String| {
            let rest = path.strip_prefix(record.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let of_record = records.iter().any(of_record);
        for (method, operation) in operations(item) {
            errors(operation);
            variables(path, operation);
            if !open {
                let need = utoipa::openapi::security::SecurityRequirement::new(
                    "token",
                    Vec::<String>::new(),
                );
                operation.security = Some(vec![need]);
            }
            if method == "post" {
                header(
                    operation,
                    "Idempotency-Key",
                    "Makes the request one with an earlier one of the same key and contents",
                    Some(IDEMPOTENCY_KEY_MAX),
                );
            }
            if method != "get" && of_record {
                header(
                    operation,
                    "If-Match",
                    "ETag of the revision that is to be changed; without it any is",
                    None,
                );
            }
        }
    }
}

/// Paths of records that have ETags.
fn records(document: &OpenApi) -> Vec<String> {
    let has_tag = |item: &PathItem| {
        let get = item.get.as_ref();
        get.is_some_and(|get| get.responses.responses.contains_key("304"))
    };
    let paths = document.paths.paths.iter();
    let records = paths.filter(|(_, item)| has_tag(item));
    records.map(|(path, _)| path.clone()).collect()
}

/// The operations of a path, by method.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("patch", &mut item.patch),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Adds the variables of the path that its handler says nothing of: ids.
fn variables(path: &str, operation: &mut Operation) {
    let parts = path.split('/');
    let names = parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    for name in names {
        let parameters = operation.parameters.get_or_insert_default();
        let says = |p: &RefOr<_>| matches!(p, RefOr::T(Parameter { name: n, .. }) if n == name);
        if parameters.iter().any(says) {
            continue;
        }
        let variable = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some("Its id"))
            .schema(Some(Schema::Object(
                ObjectBuilder::new().schema_type(Type::String).build(),
            )))
            .build();
        parameters.push(variable.into());
    }
}

fn errors(operation: &mut Operation) {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    let number = ObjectBuilder::new().schema_type(Type::Integer).build();
    let retry = HeaderBuilder::new()
        .description(Some(
            "Seconds to wait before trying again, where that helps",
        ))
        .schema(Some(Schema::Object(number)))
        .build();
    let response = ResponseBuilder::new()
        .description("What went wrong, and what to do next")
        .content(problem::MEDIA_TYPE, content)
        .header("Retry-After", retry)
        .build();
    let responses = &mut operation.responses.responses;
    responses.insert("default".into(), RefOr::T(response));
}

fn header(operation: &mut Operation, name: &str, description: &str, longest: Option<usize>) {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(longest.map(|_| 1))
        .max_length(longest)
        .pattern(Some(match longest {
            Some(_) => "^[!-~]+$",
            None => "^(\\*|\"[0-9]{1,19}\")$",
        }))
        .build();
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(Schema::Object(schema)))
        .build();
    operation
        .parameters
        .get_or_insert_default()
        .push(parameter.into());
}
