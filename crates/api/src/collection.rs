//! What is the same of every noun: its page, one of it, its removal, their
//! paths, and what the OpenAPI document says of them.
//!
//! A noun says what it is called ([`Resource`]) and how it goes
//! ([`Removable`]); [`collection`] and [`removal`] make routes of that. There
//! is one handler of each kind for all nouns, which calls the noun's functions
//! by pointers: a handler costs the compiler far more than what it does.

use std::future::Future;
use std::str::FromStr;

use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use control::{Owned, Plane, Refusal};
use futures_util::future::BoxFuture;
use model::Invalid;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, PathItem, Paths};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::App;
use crate::extract::{Admin, IfMatch, InPath, InQuery, Reader};
use crate::listing::{self, Listing, PageQuery, Shown};
use crate::problem::{Code, Problem};

/// What a noun is called.
#[derive(Clone, Copy)]
pub struct Names {
    /// In operation ids and variables of paths.
    pub id: &'static str,
    /// Path of all of them.
    pub path: &'static str,
    /// One of them, in a sentence.
    pub one: &'static str,
    /// All of them, in a sentence.
    pub all: &'static str,
    /// Part of the document that they are in.
    pub tag: &'static str,
}

impl Names {
    /// As operation ids name all of them.
    fn plural(&self) -> String {
        let last = self.path.rsplit('/').next().unwrap_or_default();
        last.replace('-', "_")
    }

    /// Path of one of them.
    fn path_of_one(&self) -> String {
        format!("{}/{{{}_id}}", self.path, self.id)
    }
}

/// A noun with a collection.
pub trait Resource: Owned + Shown<View: ToSchema> {
    /// Its id.
    type Id: FromStr<Err = Invalid> + Send + Sync;

    /// What it is called.
    const NAMES: Names;
}

/// A noun that goes when its owner says so.
pub trait Removable: Resource {
    /// What its removal does, in a sentence.
    const REMOVAL: &'static str;

    /// Removes it.
    fn remove(target: &Target<Self>) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// The record that a path names, for a caller who may change it.
pub struct Target<T: Resource> {
    /// The plane, that changes the record only at the revision of `If-Match`.
    pub plane: Plane,
    /// Who asks.
    pub caller: control::Caller,
    /// Which record.
    pub id: T::Id,
    text: String,
}

impl<T: Resource> Target<T> {
    fn new(app: &App, caller: control::Caller, text: String, at: IfMatch) -> Result<Self, Problem> {
        Ok(Self {
            plane: app.expecting::<T>(&text, at),
            caller,
            id: read_id(&text)?,
            text,
        })
    }

    /// The record as it is now.
    ///
    /// # Errors
    /// [`Code::NotFound`]: it went meanwhile.
    pub fn now(&self, status: StatusCode) -> Result<Response, Problem> {
        listing::now::<T>(&self.plane, &self.caller, &self.text, status)
    }
}

impl<T: Resource> FromRequestParts<App> for Target<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let (caller, text, at) = target(parts, app).await?;
        Self::new(app, caller, text, at)
    }
}

/// Who wants to change which record at which revision.
async fn target(
    parts: &mut Parts,
    app: &App,
) -> Result<(control::Caller, String, IfMatch), Problem> {
    let Admin(caller) = Admin::from_request_parts(parts, app).await?;
    let variables = RawPathParams::from_request_parts(parts, app).await;
    let variables = variables.map_err(|e| Problem::new(Code::BadRequest, e.body_text()))?;
    let first = variables.iter().next().map(|(_, value)| value.to_owned());
    let at = IfMatch::from_request_parts(parts, app).await?;
    Ok((caller, first.unwrap_or_default(), at))
}

/// An id in a path or a body.
///
/// # Errors
/// [`Code::BadRequest`]: ids of this kind look otherwise.
pub fn read_id<T: FromStr<Err = Invalid>>(text: &str) -> Result<T, Problem> {
    text.parse()
        .map_err(|e: Invalid| Problem::new(Code::BadRequest, e.to_string()))
}

/// A record that was made, and where it is from now on.
///
/// # Errors
/// [`Code::NotFound`]: it went meanwhile.
pub fn created<T: Resource>(
    plane: &Plane,
    caller: &control::Caller,
    id: impl AsRef<str>,
) -> Result<Response, Problem> {
    let id = id.as_ref();
    let mut response = listing::now::<T>(plane, caller, id, StatusCode::CREATED)?;
    let place = format!("{}/{id}", T::NAMES.path);
    if let Ok(place) = HeaderValue::from_str(&place) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// `GET` of all of a noun and of one of it.
pub fn collection<T: Resource>() -> OpenApiRouter<App> {
    let view = T::View::name().into_owned();
    // As utoipa calls it where it reads of a page in an attribute.
    let page = format!("{}_{view}", Listing::<T::View>::name());
    let mut schemas = vec![
        (view.clone(), T::View::schema()),
        (page.clone(), Listing::<T::View>::schema()),
    ];
    Listing::<T::View>::schemas(&mut schemas);
    Collection {
        names: T::NAMES,
        view,
        page,
        schemas,
        list: |plane, caller, query| {
            listing::list::<T>(plane, caller, query).map(IntoResponse::into_response)
        },
        get: listing::get::<T>,
    }
    .routes()
}

/// `DELETE` of one of a noun.
pub fn removal<T: Removable>() -> OpenApiRouter<App> {
    let remove: Remove = |app, caller, text, at| {
        Box::pin(async move {
            let target = Target::<T>::new(&app, caller, text, at)?;
            Ok(T::remove(&target).await?)
        })
    };
    remove_by(T::NAMES, T::REMOVAL, remove)
}

/// A noun whose type is forgotten.
struct Collection {
    names: Names,
    /// Name of its view's schema.
    view: String,
    /// Name of its page's schema.
    page: String,
    schemas: Vec<(String, RefOr<Schema>)>,
    list: fn(&Plane, &control::Caller, &PageQuery) -> Result<Response, Problem>,
    get: fn(&Plane, &control::Caller, &str, &HeaderMap) -> Result<Response, Problem>,
}

type Remove = fn(App, control::Caller, String, IfMatch) -> BoxFuture<'static, Result<(), Problem>>;

impl Collection {
    fn routes(self) -> OpenApiRouter<App> {
        let (names, list, get) = (self.names, self.list, self.get);
        let page = answer("A page of them", Some(&self.page));
        let listing = described(
            &names,
            format!("list_{}", names.plural()),
            format!("Lists {}", names.all),
        )
        .parameters(Some(PageQuery::into_params(|| None)))
        .response("200", page)
        .build();
        let one = described(
            &names,
            format!("get_{}", names.id),
            format!("Shows {}", names.one),
        )
        .response("200", answer("It", Some(&self.view)))
        .response("304", answer("It is as If-None-Match says", None))
        .build();
        let all = routing::get(
            move |State(app): State<App>,
                  Reader(caller): Reader,
                  InQuery(query): InQuery<PageQuery>| async move {
                list(&app.plane, &caller, &query)
            },
        );
        let each = routing::get(
            move |State(app): State<App>,
                  Reader(caller): Reader,
                  InPath(id): InPath<String>,
                  headers: HeaderMap| async move { get(&app.plane, &caller, &id, &headers) },
        );
        OpenApiRouter::new()
            .routes(route(
                names.path.to_owned(),
                HttpMethod::Get,
                listing,
                self.schemas,
                all,
            ))
            .routes(route(
                names.path_of_one(),
                HttpMethod::Get,
                one,
                Vec::new(),
                each,
            ))
    }
}

fn remove_by(names: Names, summary: &str, remove: Remove) -> OpenApiRouter<App> {
    let operation = described(&names, format!("delete_{}", names.id), summary.to_owned())
        .response("204", answer("It is gone, or will be in a moment", None))
        .build();
    let handler = routing::delete(
        move |State(app): State<App>,
              Admin(caller): Admin,
              InPath(id): InPath<String>,
              at: IfMatch| async move {
            remove(app, caller, id, at)
                .await
                .map(|()| StatusCode::NO_CONTENT)
        },
    );
    OpenApiRouter::new().routes(route(
        names.path_of_one(),
        HttpMethod::Delete,
        operation,
        Vec::new(),
        handler,
    ))
}

fn described(names: &Names, id: String, summary: String) -> OperationBuilder {
    OperationBuilder::new()
        .tag(names.tag)
        .operation_id(Some(id))
        .summary(Some(summary))
}

fn answer(description: &str, schema: Option<&str>) -> utoipa::openapi::Response {
    let response = ResponseBuilder::new().description(description);
    let Some(schema) = schema else {
        return response.build();
    };
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema)));
    response
        .content("application/json", content.build())
        .build()
}

type Route = (Vec<(String, RefOr<Schema>)>, Paths, MethodRouter<App>);

fn route(
    path: String,
    method: HttpMethod,
    operation: Operation,
    schemas: Vec<(String, RefOr<Schema>)>,
    handler: MethodRouter<App>,
) -> Route {
    let mut paths = Paths::new();
    paths.paths.insert(path, PathItem::new(method, operation));
    (schemas, paths, handler)
}
