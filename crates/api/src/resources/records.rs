//! What was done and what happens: operations and events.

use axum::Json;
use axum::extract::State;
use control::Plane;
use model::{Event, Operation, OperationId, OperationState};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::collection::{Names, Resource};
use crate::extract::{InQuery, Reader};
use crate::listing::{self, Facts, Listing, Shown};
use crate::problem::Problem;

/// A work that takes long.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    /// Its id.
    #[schema(example = "op-0123456789abcdef0")]
    pub id: String,
    /// As `image-import`.
    pub kind: String,
    /// Id of what it is done to.
    pub resource_id: String,
    /// How it stands: `running`, `succeeded`, `failed`.
    pub state: String,
    /// What it is doing.
    pub stage: String,
    /// In percent, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub began: String,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ended: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

fn state(state: OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Succeeded => "succeeded",
        OperationState::Failed => "failed",
    }
}

impl Shown for Operation {
    type View = OperationView;

    fn show(_: &Plane, found: &Found<Self>) -> OperationView {
        let operation = &found.record;
        OperationView {
            id: operation.id.to_string(),
            kind: operation.kind.clone(),
            resource_id: operation.resource.clone(),
            state: state(operation.state).into(),
            stage: operation.stage.clone(),
            progress: operation.progress,
            began: operation.began.to_string(),
            ended: operation.ended.map(|t| t.to_string()),
            failure: operation.failure.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: Some(&self.kind),
            state: Some(state(self.state)),
            tags: None,
        }
    }
}

impl Resource for Operation {
    type Id = OperationId;

    const NAMES: Names = Names {
        id: "operation",
        path: "/v1/operations",
        one: "an operation",
        all: "operations, whose names are their kinds",
        tag: "records",
    };
}

/// Something that happened to a resource.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Its id; ids are in the order in which things happened.
    pub id: String,
    /// When.
    #[schema(format = DateTime)]
    pub at: String,
    /// Id of what it happened to.
    pub resource_id: String,
    /// As `instance-running`.
    pub kind: String,
    /// For people.
    pub message: String,
    /// Who caused it; missing: Holm itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

impl Shown for Event {
    type View = EventView;

    fn show(_: &Plane, found: &Found<Self>) -> EventView {
        let event = &found.record;
        EventView {
            id: found.id.clone(),
            at: event.at.to_string(),
            resource_id: event.resource.clone(),
            kind: event.kind.clone(),
            message: event.message.clone(),
            actor: event.actor.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: Some(&self.kind),
            ..Facts::default()
        }
    }
}

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Most events of the page
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u16>,
    /// `next` of the page before
    pub after: Option<String>,
    /// Only those of this resource
    pub resource: Option<String>,
    /// Only those of this kind
    pub kind: Option<String>,
    /// Only the last so many of all; not with `after`
    #[param(minimum = 1, maximum = 1000)]
    pub last: Option<u16>,
}

/// Lists what happened, in its order
#[utoipa::path(get, path = "/v1/events", operation_id = "list_events", tag = "records",
    params(EventQuery),
    responses((status = 200, description = "A page of them", body = Listing<EventView>)))]
pub async fn events(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<EventQuery>,
) -> Result<Json<Listing<EventView>>, Problem> {
    let of = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
    let mut all = app.plane.view().filter::<Event>(|event| {
        event.account == caller.account
            && of(&query.resource, &event.resource)
            && of(&query.kind, &event.kind)
    });
    if let Some(last) = query.last {
        listing::check_limit("last", usize::from(last))?;
        all.drain(..all.len().saturating_sub(usize::from(last)));
    }
    let (limit, after) = (query.limit, query.after.as_deref());
    listing::page(limit, after, all, |f| &f.id, |f| Event::show(&app.plane, f))
}
