//! What happened to a daemon's machines, for `holm events`.

use api::resources::records::EventView;

use super::client::{Client, PlaneError, quoted};
use crate::form::{self, Output};

/// Prints what happened to a resource, or to all, and what happens if
/// `follow`.
///
/// # Errors
/// [`PlaneError`].
pub fn events(resource: Option<&str>, follow: bool, output: Output) -> Result<(), PlaneError> {
    let client = Client::new();
    let query = resource.map(|id| format!("resource={}", quoted(id)));
    let query = query.unwrap_or_else(|| "limit=1000".into());
    let past: Vec<EventView> = client.all("/v1/events", &query)?;
    past.iter().for_each(|event| print(event, output));
    if !follow {
        return Ok(());
    }
    let about = resource.map(|id| format!("&resource={}", quoted(id)));
    let query = format!("kind=event{}", about.unwrap_or_default());
    let last = past.last().map(|event| event.id.clone());
    let never = client.watch::<()>(&query, None, |_, event| {
        let value = event.and_then(|event| event.value);
        if let Some(event) = value.and_then(|v| serde_json::from_value::<EventView>(v).ok())
            && last.as_ref().is_none_or(|last| event.id > *last)
        {
            print(&event, output);
        }
        Ok(None)
    });
    never.map(drop)
}

fn print(event: &EventView, output: Output) {
    form::item(output, event, || {
        let by = event.actor.as_ref();
        let by = by.map(|by| format!("  by {by}")).unwrap_or_default();
        form::line(&format!(
            "{}  {:<22} {}  {}{by}",
            event.at, event.resource_id, event.kind, event.message
        ))
    });
}
