//! Keys with which people log in.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use control::{KeyMaterial, NewKeyPair, Plane, Refusal};
use model::{KeyPair, KeyPairId, KeyType, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target};
use crate::extract::{Admin, Body};
use crate::idempotency::Secret;
use crate::listing::{Facts, Shown};
use crate::problem::{Code, Problem};

/// A key with which people log in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyPairView {
    /// Its id.
    #[schema(example = "key-0123456789abcdef0")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Kind of key.
    #[schema(example = "ed25519")]
    pub kind: String,
    /// The public key in OpenSSH's form.
    pub public_key: String,
    /// As EC2 forms it.
    pub fingerprint: String,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

impl Shown for KeyPair {
    type View = KeyPairView;

    fn show(_: &Plane, found: &Found<Self>) -> KeyPairView {
        let pair = &found.record;
        KeyPairView {
            id: pair.id.to_string(),
            name: pair.name.clone(),
            kind: pair.kind.name().into(),
            public_key: pair.public_key.clone(),
            fingerprint: pair.fingerprint.clone(),
            created: pair.meta.created.to_string(),
            tags: pair.meta.tags.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: Some(&self.name),
            state: None,
            tags: Some(&self.meta.tags),
        }
    }
}

impl Resource for KeyPair {
    type Id = KeyPairId;

    const NAMES: Names = Names {
        id: "key_pair",
        path: "/v1/key-pairs",
        one: "a key pair",
        all: "key pairs",
        tag: "keys",
    };
}

impl Removable for KeyPair {
    const REMOVAL: &'static str = "Removes a key pair; machines that have its key keep it";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target
            .plane
            .delete_key_pair(&target.caller, &target.id)
            .await
    }
}

/// A key pair that is to be made or imported.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeyPairBody {
    /// Its name.
    pub name: String,
    /// The public key in OpenSSH's form; a new pair is made if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Kind of a new pair: `ed25519` (if missing) or `rsa`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// A key pair that was made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MadeKeyPair {
    /// It.
    #[serde(flatten)]
    pub pair: KeyPairView,
    /// The private key of a new pair, in PEM. It is given once, and not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<String>,
}

fn material(body: &NewKeyPairBody) -> Result<KeyMaterial, Problem> {
    match (&body.public_key, body.kind.as_deref()) {
        (Some(key), None) => Ok(KeyMaterial::Public(key.clone())),
        (None, None | Some("ed25519")) => Ok(KeyMaterial::Generate(KeyType::Ed25519)),
        (None, Some("rsa")) => Ok(KeyMaterial::Generate(KeyType::Rsa)),
        (Some(_), Some(_)) => Err(Problem::new(
            Code::InvalidValue,
            "kind: a public key that is given has its kind",
        )),
        (None, Some(kind)) => Err(Problem::new(
            Code::InvalidValue,
            format!("kind: there is no kind {kind:?} of keys"),
        )
        .next("choose ed25519 or rsa")),
    }
}

/// Makes a key pair, or imports a public key
#[utoipa::path(post, path = "/v1/key-pairs", operation_id = "create_key_pair", tag = "keys",
    request_body = NewKeyPairBody,
    responses((status = 201, description = "It is there", body = MadeKeyPair)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewKeyPairBody>,
) -> Result<Response, Problem> {
    let new = NewKeyPair {
        material: material(&body)?,
        name: body.name,
        tags: body.tags,
    };
    let (made, private_key) = app.plane.create_key_pair(&caller, new).await?;
    let found = app.plane.find::<KeyPair>(&caller, &made.id)?;
    let pair = KeyPair::show(&app.plane, &found);
    let place = [(header::LOCATION, format!("/v1/key-pairs/{}", made.id))];
    let made = Json(MadeKeyPair { pair, private_key });
    Ok((StatusCode::CREATED, place, Extension(Secret), made).into_response())
}
