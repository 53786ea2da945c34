//! The daemon itself.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus::TextEncoder;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::caller::{Caller, Role};
use crate::problem::{Code, Problem};

/// How the daemon is.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: String,
    /// Version of holm.
    pub version: String,
}

/// Who asks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CallerView {
    /// As `user:1000` or `token:0123456789abcdef`.
    pub identity: String,
    /// What they may do.
    pub role: Role,
}

/// Says that the daemon answers
#[utoipa::path(get, path = "/healthz", operation_id = "get_health", tag = "daemon",
    responses((status = 200, description = "It answers", body = Health)))]
pub async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// Counts for Prometheus, in its text format
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "daemon",
    responses((status = 200, description = "Counts", body = String, content_type = "text/plain")))]
pub async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    app.metrics.count(app.plane.view());
    let owner = control::Caller::owner(app.account.clone());
    app.metrics.quotas(&app.plane.quotas(&owner));
    let families = app.registry.gather();
    let text = TextEncoder::new().encode_to_string(&families);
    let text =
        text.map_err(|e| Problem::new(Code::Internal, format!("writing the counts: {e}")))?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, text))
}

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "get_openapi", tag = "daemon",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)))]
pub async fn openapi() -> impl IntoResponse {
    Json(crate::document())
}

/// Says who the daemon takes the caller for
#[utoipa::path(get, path = "/v1/caller", operation_id = "get_caller", tag = "daemon",
    responses((status = 200, description = "Who asks", body = CallerView)))]
pub async fn caller(caller: Caller) -> Json<CallerView> {
    Json(CallerView {
        identity: caller.identity.to_string(),
        role: caller.role,
    })
}
