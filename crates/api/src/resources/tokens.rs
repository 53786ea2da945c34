//! Tokens of this interface.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use control::NewApiToken;
use model::ApiToken;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::caller::Role;
use crate::extract::{Admin, Body, InPath, end_of};
use crate::idempotency::Secret;
use crate::listing::Listing;
use crate::problem::{Code, Problem};
use crate::tokens::Token;

/// A token for the TCP port of this interface.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id, which is no secret.
    #[schema(example = "0123456789abcdef")]
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created: String,
    /// When it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expires: Option<String>,
}

impl From<&ApiToken> for TokenView {
    fn from(token: &ApiToken) -> Self {
        Self {
            id: token.id.clone(),
            name: token.name.clone(),
            role: match token.admin {
                true => Role::Admin,
                false => Role::Reader,
            },
            created: token.meta.created.to_string(),
            expires: token.expires.map(|t| t.to_string()),
        }
    }
}

/// A token that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTokenBody {
    /// What it is called.
    #[serde(default)]
    pub name: String,
    /// What its bearer may do; `reader` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// It goes by itself after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3_153_600_000_i64)]
    pub ttl_seconds: Option<u64>,
}

/// A token that was made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// It.
    #[serde(flatten)]
    pub token: TokenView,
    /// What its bearer sends. It is given once, and not kept.
    pub secret: String,
}

/// Lists tokens
#[utoipa::path(get, path = "/v1/tokens", operation_id = "list_tokens", tag = "keys",
    responses((status = 200, description = "All of them", body = Listing<TokenView>)))]
pub async fn list(State(app): State<App>, Admin(caller): Admin) -> Json<Listing<TokenView>> {
    let all = app.plane.api_tokens(&caller);
    Json(Listing {
        items: all.iter().map(|f| TokenView::from(&f.record)).collect(),
        next: None,
    })
}

/// Makes a token
#[utoipa::path(post, path = "/v1/tokens", operation_id = "create_token", tag = "keys",
    request_body = NewTokenBody,
    responses((status = 201, description = "It, with its secret", body = MadeToken)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewTokenBody>,
) -> Result<Response, Problem> {
    let token = Token::random()
        .map_err(|e| Problem::new(Code::Internal, format!("taking random bytes: {e}")))?;
    let new = NewApiToken {
        digest: token.digest(),
        id: token.id,
        name: body.name,
        admin: body.role == Some(Role::Admin),
        expires: body.ttl_seconds.map(end_of).transpose()?,
    };
    let made = app.plane.create_api_token(&caller, new).await?;
    let made = MadeToken {
        token: TokenView::from(&made),
        secret: token.text,
    };
    let place = format!("/v1/tokens/{}", made.token.id);
    let place = [(header::LOCATION, place)];
    Ok((StatusCode::CREATED, place, Extension(Secret), Json(made)).into_response())
}

/// Removes a token: its bearer is no longer let in
#[utoipa::path(delete, path = "/v1/tokens/{token_id}", operation_id = "delete_token", tag = "keys",
    params(("token_id" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(id): InPath<String>,
) -> Result<StatusCode, Problem> {
    app.plane.delete_api_token(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
