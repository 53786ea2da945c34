//! Collections and their records: pages, filters, ETags.

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::{Kept, Owned, Plane};
use model::Tags;
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::{IntoParams, ToSchema};

use crate::extract::{etag, has_already};
use crate::problem::{Code, Problem};

/// Most records of a page, and how many it has unless the query says another
/// number.
pub const PAGE: usize = 1000;

/// A part of a collection, in the order of ids.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Listing<T> {
    /// The records.
    pub items: Vec<T>,
    /// Where to go on: the query's `after` for the next page. Missing: this is
    /// the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which part of a collection.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Most records of the page
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u16>,
    /// `next` of the page before
    pub after: Option<String>,
    /// Only with this name: the record's own, or its tag `Name`
    pub name: Option<String>,
    /// Only with this tag: `KEY`, or `KEY=VALUE`
    pub tag: Option<String>,
    /// Only in this state
    pub state: Option<String>,
}

impl PageQuery {
    fn wants(&self, facts: &Facts<'_>) -> bool {
        let tagged = self.tag.as_ref().is_none_or(|wanted| {
            let (key, value) = wanted
                .split_once('=')
                .map_or((wanted.as_str(), None), |(key, value)| (key, Some(value)));
            let found = facts.tags.and_then(|tags| tags.get(key));
            found.is_some_and(|found| value.is_none_or(|value| value == found))
        });
        let named = self.name.as_deref().is_none_or(|n| facts.name == Some(n));
        let stands = self.state.as_deref().is_none_or(|s| facts.state == Some(s));
        tagged && named && stands
    }
}

/// What a collection can be filtered by.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// Its name.
    pub name: Option<&'a str>,
    /// Its state.
    pub state: Option<&'a str>,
    /// Its tags.
    pub tags: Option<&'a Tags>,
}

/// A record that the interface shows.
pub trait Shown: Kept {
    /// As it is shown.
    type View: Serialize + Send;

    /// Shows it.
    fn show(plane: &Plane, found: &Found<Self>) -> Self::View;

    /// What it can be filtered by.
    fn facts(&self) -> Facts<'_>;
}

/// The page of what a caller may see of a kind.
pub fn list<T: Owned + Shown>(
    plane: &Plane,
    caller: &control::Caller,
    query: &PageQuery,
) -> Result<Json<Listing<T::View>>, Problem> {
    let all = plane.list::<T>(caller).into_iter();
    let all = all.filter(|found| query.wants(&found.record.facts()));
    let (limit, after) = (query.limit, query.after.as_deref());
    page(limit, after, all, |f| &f.id, |f| T::show(plane, f))
}

/// Refuses a number of records that no page has.
///
/// # Errors
/// [`Code::BadRequest`].
pub fn check_limit(parameter: &str, limit: usize) -> Result<(), Problem> {
    match (1..=PAGE).contains(&limit) {
        true => Ok(()),
        false => Err(Problem::new(
            Code::BadRequest,
            format!("{parameter} is {limit}, and a page has 1 to {PAGE} records"),
        )),
    }
}

/// A page of records that are in the order of their ids.
pub fn page<T, V>(
    limit: Option<u16>,
    after: Option<&str>,
    all: impl IntoIterator<Item = T>,
    id: impl Fn(&T) -> &str,
    view: impl Fn(&T) -> V,
) -> Result<Json<Listing<V>>, Problem> {
    let limit = limit.map_or(PAGE, usize::from);
    check_limit("limit", limit)?;
    let after = after.map(opened).transpose()?;
    let mut rest = all
        .into_iter()
        .filter(|record| after.as_deref().is_none_or(|after| id(record) > after));
    let mut items = Vec::new();
    let mut last = None;
    for record in rest.by_ref().take(limit) {
        items.push(view(&record));
        last = Some(closed(id(&record)));
    }
    let next = last.filter(|_| rest.next().is_some());
    Ok(Json(Listing { items, next }))
}

fn closed(id: &str) -> String {
    URL_SAFE_NO_PAD.encode(id)
}

fn opened(cursor: &str) -> Result<String, Problem> {
    let id = URL_SAFE_NO_PAD.decode(cursor).ok();
    id.and_then(|id| String::from_utf8(id).ok()).ok_or_else(|| {
        Problem::new(Code::BadRequest, "after is no cursor of this interface")
            .next("send the `next` of the page before, or begin without it")
    })
}

/// One record, or that the caller has it already.
pub fn get<T: Owned + Shown>(
    plane: &Plane,
    caller: &control::Caller,
    id: &str,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let found = plane.find::<T>(caller, id)?;
    if has_already(headers, found.revision) {
        let tag = [(header::ETAG, etag(found.revision))];
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    Ok(shown(plane, &found, StatusCode::OK))
}

/// A record after it was changed.
pub fn now<T: Owned + Shown>(
    plane: &Plane,
    caller: &control::Caller,
    id: &str,
    status: StatusCode,
) -> Result<Response, Problem> {
    let found = plane.find::<T>(caller, id)?;
    Ok(shown(plane, &found, status))
}

fn shown<T: Shown>(plane: &Plane, found: &Found<T>, status: StatusCode) -> Response {
    let tag = [(header::ETAG, etag(found.revision))];
    (status, tag, Json(T::show(plane, found))).into_response()
}
