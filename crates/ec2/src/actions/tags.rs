//! Tags.

use control::Owned;
use model::{
    ElasticAddress, Image, Instance, InternetGateway, KeyPair, RouteTable, SecurityGroup, Snapshot,
    Subnet, Tags, Volume, Vpc,
};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Described, Listing, Selection, none, one, paged};
use crate::error::Error;
use crate::tagging::tags;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateTags",
        understood: &["ResourceId.N", "Tag.N.Key", "Tag.N.Value"],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DeleteTags",
        understood: &["ResourceId.N", "Tag.N.Key", "Tag.N.Value"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
    Handler {
        name: "DescribeTags",
        understood: &[
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "ResourceId",
    filters: &["key", "resource-id", "resource-type", "tag", "value"],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

/// A tag and what it is on.
struct Tag {
    resource: String,
    kind: &'static str,
    key: String,
    value: String,
}

impl Described for Tag {
    fn key(&self) -> String {
        format!("{} {}", self.resource, self.key)
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }
}

fn ids(call: &Call<'_>) -> Result<Vec<String>, Error> {
    let ids = call.parameters.texts("ResourceId");
    match ids.is_empty() {
        true => Err(Error::missing("ResourceId")),
        false => Ok(ids),
    }
}

async fn create(call: &Call<'_>) -> Reply {
    let ids = ids(call)?;
    let tags = tags(&call.parameters, "Tag")?;
    if tags.is_empty() {
        return Err(Error::missing("Tag"));
    }
    call.dry_run()?;
    call.plane().create_tags(&call.caller, &ids, &tags).await?;
    done()
}

async fn delete(call: &Call<'_>) -> Reply {
    let ids = ids(call)?;
    let mut wanted = Vec::new();
    for tag in call.parameters.structures("Tag") {
        let value = tag.raw("Value").map(str::to_owned);
        wanted.push((tag.require("Key")?.to_owned(), value));
    }
    call.dry_run()?;
    call.plane()
        .delete_tags(&call.caller, &ids, &wanted)
        .await?;
    done()
}

fn collect<T: Owned + Described + Clone>(call: &Call<'_>, kind: &'static str, into: &mut Vec<Tag>) {
    for found in call.plane().list::<T>(&call.caller) {
        if *found.record.owner() != call.caller.account {
            continue;
        }
        for (key, value) in found.record.tags().into_iter().flatten() {
            into.push(Tag {
                resource: found.record.key(),
                kind,
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let mut all = Vec::new();
    collect::<ElasticAddress>(call, "elastic-ip", &mut all);
    collect::<Image>(call, "image", &mut all);
    collect::<Instance>(call, "instance", &mut all);
    collect::<InternetGateway>(call, "internet-gateway", &mut all);
    collect::<KeyPair>(call, "key-pair", &mut all);
    collect::<RouteTable>(call, "route-table", &mut all);
    collect::<SecurityGroup>(call, "security-group", &mut all);
    collect::<Snapshot>(call, "snapshot", &mut all);
    collect::<Subnet>(call, "subnet", &mut all);
    collect::<Volume>(call, "volume", &mut all);
    collect::<Vpc>(call, "vpc", &mut all);
    all.sort_by_key(Described::key);
    call.dry_run()?;
    let (page, token) = selection.cut(all, |tag, name| match name {
        "key" => one(&tag.key),
        "resource-id" => one(&tag.resource),
        "resource-type" => one(tag.kind),
        "value" => one(&tag.value),
        _ => match name.strip_prefix("tag:") {
            Some(key) if key == tag.key => one(&tag.value),
            _ => none(),
        },
    });
    let items = page.iter().map(|tag| {
        Element::item()
            .text("resourceId", &tag.resource)
            .text("resourceType", tag.kind)
            .text("key", &tag.key)
            .text("value", &tag.value)
    });
    Ok(paged("tagSet", items, token))
}
