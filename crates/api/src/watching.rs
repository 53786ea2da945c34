//! `GET /v1/watch`: what there is, and then what happens to it, as server-sent
//! events.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use control::{Changed, Owned, Plane};
use futures_util::Stream;
use futures_util::stream::unfold;
use model::{
    Event, Image, Instance, InternetGateway, KeyPair, Operation, RouteTable, SecurityGroup,
    Snapshot, Subnet, Volume, Vpc,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Record;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::extract::{InQuery, Reader};
use crate::listing::Shown;
use crate::metrics::Held;
use crate::problem::{Code, Problem};

/// How often a silent watch says that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

/// What is watched.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Kinds, with commas between them, as `instance,volume`; all if missing
    pub kind: Option<String>,
    /// Only this resource, and events and operations of it
    pub resource: Option<String>,
}

/// The data of an event of a watch. Its `event:` is `put`, `delete`, or
/// `synced` (without data of a resource) when all that there was at first has
/// been sent; after `reset` all is sent again, because the watcher was too
/// slow. Its `id:` is the revision.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WatchEvent {
    /// As `instance`.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// When it was written; what its ETag says.
    pub revision: u64,
    /// As its own path shows it; missing: it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// A kind that can be watched.
struct Kind {
    name: &'static str,
    /// Ids of what there is.
    ids: fn(&Plane, &control::Caller) -> Vec<String>,
    one: fn(&Plane, &control::Caller, &str) -> Option<One>,
}

/// A record that is shown.
struct One {
    revision: u64,
    value: Value,
    /// The resource that it is of, or itself.
    about: String,
}

fn kind<T: Owned + Shown>() -> Kind {
    Kind {
        name: T::KIND,
        ids: |plane, caller| {
            let all = plane.list::<T>(caller).into_iter();
            all.map(|found| found.id.clone()).collect()
        },
        one: |plane, caller, id| {
            let found = plane.find::<T>(caller, id).ok()?;
            let value = serde_json::to_value(T::show(plane, &found)).ok()?;
            let about = value["resource_id"].as_str().unwrap_or(id).to_owned();
            Some(One {
                revision: found.revision,
                value,
                about,
            })
        },
    }
}

/// Events: those from now on.
fn events() -> Kind {
    Kind {
        name: Event::KIND,
        ids: |_, _| Vec::new(),
        one: |plane, caller, id| {
            let found = plane.view().get::<Event>(id)?;
            let own = found.record.account == caller.account;
            let value = own.then(|| serde_json::to_value(Event::show(plane, &found)))?;
            Some(One {
                revision: found.revision,
                value: value.ok()?,
                about: found.record.resource.clone(),
            })
        },
    }
}

fn kinds(names: Option<&str>) -> Result<Vec<Kind>, Problem> {
    let all = vec![
        kind::<Instance>(),
        kind::<Image>(),
        kind::<Volume>(),
        kind::<Snapshot>(),
        kind::<KeyPair>(),
        kind::<Vpc>(),
        kind::<Subnet>(),
        kind::<SecurityGroup>(),
        kind::<RouteTable>(),
        kind::<InternetGateway>(),
        kind::<Operation>(),
        events(),
    ];
    let Some(names) = names else { return Ok(all) };
    let known: Vec<_> = all.iter().map(|kind| kind.name).collect();
    if let Some(bad) = names.split(',').find(|name| !known.contains(name)) {
        return Err(
            Problem::new(Code::BadRequest, format!("kind: there is no kind {bad:?}"))
                .next(format!("choose among {}", known.join(", "))),
        );
    }
    let wanted = |kind: &Kind| names.split(',').any(|name| name == kind.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// A watch that is open.
struct Watching {
    app: App,
    caller: control::Caller,
    kinds: Vec<Kind>,
    resource: Option<String>,
    changes: Receiver<Changed>,
    ending: watch::Receiver<bool>,
    /// Records that are to be sent: index of their kind, and id.
    first: VecDeque<(usize, String)>,
    synced: bool,
    /// What was sent, and must be known to be gone.
    sent: HashSet<(usize, String)>,
    _held: Held,
}

impl Watching {
    /// All that there is, in the order of kinds and ids.
    fn begin(&mut self) {
        self.first.clear();
        self.synced = false;
        for (n, kind) in self.kinds.iter().enumerate() {
            let ids = (kind.ids)(&self.app.plane, &self.caller);
            self.first.extend(ids.into_iter().map(|id| (n, id)));
        }
    }

    /// The next thing to be sent; `None`: the daemon ends.
    async fn next(&mut self) -> Option<Sent> {
        loop {
            while let Some((kind, id)) = self.first.pop_front() {
                if let Some(sent) = self.put(kind, &id) {
                    return Some(sent);
                }
            }
            if !self.synced {
                self.synced = true;
                return Some(Sent::default().event("synced").data("{}"));
            }
            let changed = tokio::select! {
                changed = self.changes.recv() => changed,
                _ = self.ending.wait_for(|ending| *ending) => return None,
            };
            match changed {
                Ok(change) => {
                    if let Some(sent) = self.change(&change) {
                        return Some(sent);
                    }
                }
                Err(RecvError::Lagged(_)) => {
                    self.changes = self.app.plane.view().changes();
                    self.sent.clear();
                    self.begin();
                    return Some(Sent::default().event("reset").data("{}"));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn change(&mut self, change: &Changed) -> Option<Sent> {
        let kind = self.kinds.iter().position(|k| k.name == &*change.kind)?;
        if !change.removed {
            return self.put(kind, &change.id);
        }
        let id = change.id.to_string();
        self.sent
            .remove(&(kind, id.clone()))
            .then(|| self.event("delete", kind, id, change.revision, None))?
    }

    fn put(&mut self, kind: usize, id: &str) -> Option<Sent> {
        let one = self.kinds.get(kind)?.one;
        let One {
            revision,
            value,
            about,
        } = one(&self.app.plane, &self.caller, id)?;
        let wanted = self.resource.as_ref();
        if wanted.is_some_and(|wanted| wanted != id && *wanted != about) {
            return None;
        }
        self.sent.insert((kind, id.to_owned()));
        self.event("put", kind, id.to_owned(), revision, Some(value))
    }

    fn event(
        &self,
        event: &'static str,
        kind: usize,
        id: String,
        revision: u64,
        value: Option<Value>,
    ) -> Option<Sent> {
        let data = WatchEvent {
            kind: self.kinds.get(kind)?.name.to_owned(),
            id,
            revision,
            value,
        };
        let sent = Sent::default().event(event).id(revision.to_string());
        sent.json_data(data).ok()
    }
}

/// Sends what there is, and then what happens, as server-sent events
#[utoipa::path(get, path = "/v1/watch", operation_id = "watch", tag = "records",
    params(WatchQuery),
    responses((status = 200, description = "Events, until the client or the daemon ends", body = WatchEvent, content_type = "text/event-stream")))]
pub async fn watch(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<WatchQuery>,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Problem> {
    let mut watching = Watching {
        kinds: kinds(query.kind.as_deref())?,
        resource: query.resource,
        // Before the first look, so that nothing is between them.
        changes: app.plane.view().changes(),
        ending: app.ending.subscribe(),
        first: VecDeque::new(),
        synced: false,
        sent: HashSet::new(),
        _held: Held::new(&app.metrics.watches),
        caller,
        app,
    };
    watching.begin();
    let stream = unfold(watching, |mut watching| async move {
        let next = watching.next().await?;
        Some((Ok(next), watching))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE)))
}
