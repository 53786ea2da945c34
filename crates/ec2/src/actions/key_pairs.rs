//! Key pairs.

use control::{KeyMaterial, Kind, NewKeyPair, Refusal};
use model::{KeyPair, KeyPairId, KeyType};

use super::{Handler, Reply};
use crate::call::Call;
use crate::describe::{Listing, Selection, none, one, paged, tag_set};
use crate::error::Error;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateKeyPair",
        understood: &[
            "KeyName",
            "KeyType",
            "KeyFormat",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "ImportKeyPair",
        understood: &[
            "KeyName",
            "PublicKeyMaterial",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(import(call)),
    },
    Handler {
        name: "DescribeKeyPairs",
        understood: &[
            "KeyName.N",
            "KeyPairId.N",
            "IncludePublicKey",
            "Filter.N.Name",
            "Filter.N.Value.N",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DeleteKeyPair",
        understood: &["KeyName", "KeyPairId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "KeyPairId",
    filters: &["fingerprint", "key-name", "key-pair-id", "tag", "tag-key"],
    pages: None,
    pages_of_ids: true,
};

fn field(pair: &KeyPair, name: &str) -> Vec<String> {
    match name {
        "fingerprint" => one(&pair.fingerprint),
        "key-name" => one(&pair.name),
        "key-pair-id" => one(&pair.id),
        _ => none(),
    }
}

fn made(pair: &KeyPair) -> Element {
    let element = Element::new("")
        .text("keyPairId", &pair.id)
        .text("keyName", &pair.name)
        .text("keyFingerprint", &pair.fingerprint);
    tag_set(element, &pair.meta.tags)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let kind = match sent.text("KeyType") {
        None | Some("rsa") => KeyType::Rsa,
        Some("ed25519") => KeyType::Ed25519,
        Some(other) => return Err(Error::invalid("keyType", other, "It is rsa or ed25519.")),
    };
    call.only("KeyFormat", &["pem"])?;
    let new = NewKeyPair {
        name: sent.require("KeyName")?.to_owned(),
        material: KeyMaterial::Generate(kind),
        tags: specified(sent, &["key-pair"], "key-pair")?,
    };
    call.dry_run()?;
    let (pair, private) = call.plane().create_key_pair(&call.caller, new).await?;
    Ok(made(&pair).option("keyMaterial", private).into_children())
}

async fn import(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let material = sent
        .blob("PublicKeyMaterial")?
        .ok_or_else(|| Error::missing("PublicKeyMaterial"))?;
    let material = String::from_utf8(material).map_err(|_| {
        Error::new(
            "InvalidKey.Format",
            "Key is not in valid OpenSSH public key format",
        )
    })?;
    let new = NewKeyPair {
        name: sent.require("KeyName")?.to_owned(),
        material: KeyMaterial::Public(material),
        tags: specified(sent, &["key-pair"], "key-pair")?,
    };
    call.dry_run()?;
    let (pair, _) = call.plane().create_key_pair(&call.caller, new).await?;
    Ok(made(&pair).into_children())
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let public = call
        .parameters
        .boolean("IncludePublicKey")?
        .unwrap_or(false);
    let mut pairs = call.nouns::<KeyPair, KeyPairId>("KeyPairId")?;
    let names = call.parameters.texts("KeyName");
    for name in &names {
        if !pairs.iter().any(|pair| pair.name == *name) {
            return Err(Refusal::not_found(Kind::KeyPair, name).into());
        }
    }
    pairs.retain(|pair| names.is_empty() || names.contains(&pair.name));
    call.dry_run()?;
    let (page, token) = selection.cut(pairs, |pair, name| field(pair, name));
    let items = page.iter().map(|pair| {
        let element = Element::item()
            .text("keyPairId", &pair.id)
            .text("keyName", &pair.name)
            .text("keyType", pair.kind.name())
            .text("keyFingerprint", &pair.fingerprint)
            .text("createTime", pair.meta.created)
            .option("publicKey", public.then_some(&pair.public_key));
        tag_set(element, &pair.meta.tags)
    });
    Ok(paged("keySet", items, token))
}

async fn delete(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let id: Option<KeyPairId> = match (sent.id("KeyPairId")?, sent.text("KeyName")) {
        (Some(id), _) => Some(id),
        (None, Some(name)) => match call.plane().key_pair_named(&call.caller, name) {
            Ok(pair) => Some(pair.id),
            // EC2 is content if there is none of that name.
            Err(Refusal::NotFound { .. }) => None,
            Err(other) => return Err(other.into()),
        },
        (None, None) => return Err(Error::missing("KeyName")),
    };
    call.dry_run()?;
    if let Some(id) = &id {
        call.plane().delete_key_pair(&call.caller, id).await?;
    }
    let mut reply = vec![Element::leaf("return", true)];
    reply.extend(id.map(|id| Element::leaf("keyPairId", id)));
    Ok(reply)
}
