//! What an account has: the installation, quotas, access keys, tags.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use control::NewAccessKey;
use model::{AccessKey, Quota, Tags};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::extract::{Admin, Body, InPath, Reader, end_of};
use crate::idempotency::Secret;
use crate::listing::Listing;
use crate::problem::{Code, Problem};

/// This installation of Holm.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SiteView {
    /// Name of the region that it is, for tools that want one.
    pub region: String,
    /// Names of its zones.
    pub zones: Vec<String>,
    /// The account, by its 12 digits.
    pub account: String,
    /// Addresses at which the host reaches instances.
    pub public_pool: String,
    /// When it came into being.
    #[schema(format = DateTime)]
    pub created: String,
    /// Where the EC2 door listens; missing: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ec2_endpoint: Option<String>,
}

/// Shows this installation
#[utoipa::path(get, path = "/v1/site", operation_id = "get_site", tag = "account",
    responses((status = 200, description = "It", body = SiteView)))]
pub async fn site(State(app): State<App>, _reader: Reader) -> Result<Json<SiteView>, Problem> {
    let site = app.plane.site()?;
    Ok(Json(SiteView {
        region: site.region,
        zones: site.zones,
        account: site.account.to_string(),
        public_pool: site.public_pool.to_string(),
        created: site.created.to_string(),
        ec2_endpoint: app.ec2_endpoint.clone(),
    }))
}

/// How much of something the account may have.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QuotaView {
    /// Of what.
    #[schema(example = "instances")]
    pub name: String,
    /// How much it may have.
    pub limit: u64,
    /// How much it has, where that is one number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
}

/// A new limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaBody {
    /// How much the account may have; missing: as it was at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

fn quotas_of(app: &App, caller: &control::Caller) -> Vec<QuotaView> {
    let all = app.plane.quotas(caller).into_iter();
    all.map(|report| QuotaView {
        name: report.quota.name().into(),
        limit: report.limit,
        used: report.used,
    })
    .collect()
}

/// Lists limits and what is used of them
#[utoipa::path(get, path = "/v1/quotas", operation_id = "list_quotas", tag = "account",
    responses((status = 200, description = "All of them", body = Listing<QuotaView>)))]
pub async fn quotas(State(app): State<App>, Reader(caller): Reader) -> Json<Listing<QuotaView>> {
    Json(Listing {
        items: quotas_of(&app, &caller),
        next: None,
    })
}

/// Changes a limit
#[utoipa::path(put, path = "/v1/quotas/{quota}", operation_id = "set_quota", tag = "account",
    params(("quota" = String, Path, description = "Of what, as instances")),
    request_body = QuotaBody,
    responses((status = 200, description = "As it is now", body = QuotaView)))]
pub async fn set_quota(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(name): InPath<String>,
    Body(body): Body<QuotaBody>,
) -> Result<Json<QuotaView>, Problem> {
    let missing = || {
        let names = Quota::ALL.map(Quota::name).join(", ");
        Problem::new(Code::NotFound, format!("there is no quota {name:?}"))
            .next(format!("choose one of {names}"))
    };
    let quota = Quota::ALL.into_iter().find(|quota| quota.name() == name);
    let quota = quota.ok_or_else(missing)?;
    let account = &caller.account;
    app.plane
        .set_quota(&caller, account, quota, body.limit)
        .await?;
    let now = quotas_of(&app, &caller);
    let now = now.into_iter().find(|quota| quota.name == name);
    now.map(Json).ok_or_else(missing)
}

/// A key with which programs sign EC2 requests.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AccessKeyView {
    /// Its public part.
    #[schema(example = "AKIAABCDEFGHIJKLMNOP")]
    pub id: String,
    /// Who has it.
    pub user: String,
    /// Requests signed with it are served.
    pub active: bool,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created: String,
    /// When it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expires: Option<String>,
}

impl From<&AccessKey> for AccessKeyView {
    fn from(key: &AccessKey) -> Self {
        Self {
            id: key.id.clone(),
            user: key.user.clone(),
            active: key.active,
            created: key.meta.created.to_string(),
            expires: key.expires.map(|t| t.to_string()),
        }
    }
}

/// An access key that was made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MadeAccessKey {
    /// It.
    #[serde(flatten)]
    pub key: AccessKeyView,
    /// Its secret part. It is given once.
    pub secret: String,
}

/// An access key that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccessKeyBody {
    /// Who gets it; `root` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// It goes by itself after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3_153_600_000_i64)]
    pub ttl_seconds: Option<u64>,
}

/// Lists access keys
#[utoipa::path(get, path = "/v1/access-keys", operation_id = "list_access_keys", tag = "keys",
    responses((status = 200, description = "All of them", body = Listing<AccessKeyView>)))]
pub async fn access_keys(
    State(app): State<App>,
    Reader(caller): Reader,
) -> Json<Listing<AccessKeyView>> {
    let keys = app.plane.access_keys(&caller);
    Json(Listing {
        items: keys.iter().map(AccessKeyView::from).collect(),
        next: None,
    })
}

/// Makes an access key
#[utoipa::path(post, path = "/v1/access-keys", operation_id = "create_access_key", tag = "keys",
    request_body = NewAccessKeyBody,
    responses((status = 201, description = "It, with its secret", body = MadeAccessKey)))]
pub async fn create_access_key(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewAccessKeyBody>,
) -> Result<Response, Problem> {
    let new = NewAccessKey {
        user: body.user.unwrap_or_else(|| "root".into()),
        expires: body.ttl_seconds.map(end_of).transpose()?,
    };
    let made = app.plane.create_access_key(&caller, new).await?;
    let key = AccessKeyView::from(&made);
    let secret = made.secret;
    let place = [(header::LOCATION, format!("/v1/access-keys/{}", key.id))];
    let made = Json(MadeAccessKey { key, secret });
    Ok((StatusCode::CREATED, place, Extension(Secret), made).into_response())
}

/// Removes an access key: requests signed with it are refused from now on
#[utoipa::path(delete, path = "/v1/access-keys/{access_key_id}", operation_id = "delete_access_key", tag = "keys",
    params(("access_key_id" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone")))]
pub async fn delete_access_key(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(id): InPath<String>,
) -> Result<StatusCode, Problem> {
    app.plane.delete_access_key(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tags that are to be written, and null for those that are to go
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TagsBody(pub BTreeMap<String, Option<String>>);

/// Writes tags on a resource of any kind, or takes them off it
#[utoipa::path(patch, path = "/v1/tags/{resource_id}", operation_id = "change_tags", tag = "account",
    params(("resource_id" = String, Path, description = "Id of what they are of")),
    request_body = TagsBody,
    responses((status = 204, description = "It is so")))]
pub async fn tags(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(id): InPath<String>,
    Body(TagsBody(body)): Body<TagsBody>,
) -> Result<StatusCode, Problem> {
    let ids = [id];
    let mut write = Tags::new();
    let mut take = Vec::new();
    for (key, value) in body {
        match value {
            Some(value) => drop(write.insert(key, value)),
            None => take.push((key, None)),
        }
    }
    if !take.is_empty() {
        app.plane.delete_tags(&caller, &ids, &take).await?;
    }
    // With nothing to write it is still said whether there is such a resource.
    app.plane.create_tags(&caller, &ids, &write).await?;
    Ok(StatusCode::NO_CONTENT)
}
