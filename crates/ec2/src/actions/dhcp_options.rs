//! DHCP options: each VPC has its own, which are Holm's.

use model::{DhcpOptionsId, Tags, Vpc};

use super::{Handler, Reply};
use crate::call::Call;
use crate::describe::{Described, Listing, Selection, many, none, one, paged};
use crate::error::Error;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[Handler {
    name: "DescribeDhcpOptions",
    understood: &[
        "DhcpOptionsId.N",
        "Filter.N.Name",
        "Filter.N.Value.N",
        "MaxResults",
        "NextToken",
    ],
    filters: LISTING.filters,
    run: |call| Box::pin(describe(call)),
}];

const LISTING: Listing = Listing {
    ids: "DhcpOptionsId",
    filters: &["dhcp-options-id", "key", "owner-id", "value"],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

struct Options(Vpc);

impl Described for Options {
    fn key(&self) -> String {
        self.0.dhcp_options.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }
}

/// Names and values of what guests are told.
fn values(vpc: &Vpc) -> [(&'static str, String); 1] {
    [("domain-name-servers", vpc.dns_server().to_string())]
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let ids: Vec<DhcpOptionsId> = call.parameters.ids("DhcpOptionsId")?;
    let vpcs = call.plane().list::<Vpc>(&call.caller);
    let mut all: Vec<Options> = vpcs.iter().map(|vpc| Options(vpc.record.clone())).collect();
    for id in &ids {
        if !all.iter().any(|options| options.0.dhcp_options == *id) {
            return Err(Error::new(
                "InvalidDhcpOptionID.NotFound",
                format!("The dhcpOption ID '{id}' does not exist"),
            ));
        }
    }
    all.retain(|options| ids.is_empty() || ids.contains(&options.0.dhcp_options));
    all.sort_by_key(Described::key);
    call.dry_run()?;
    let (page, token) = selection.cut(all, |options, name| match name {
        "dhcp-options-id" => one(&options.0.dhcp_options),
        "key" => many(values(&options.0).map(|(name, _)| name)),
        "value" => many(values(&options.0).map(|(_, value)| value)),
        "owner-id" => one(&options.0.meta.account),
        _ => none(),
    });
    let items = page.iter().map(|options| {
        let values = values(&options.0).map(|(name, value)| {
            let value = Element::item().text("value", value);
            Element::item().text("key", name).list("valueSet", [value])
        });
        Element::item()
            .text("dhcpOptionsId", &options.0.dhcp_options)
            .text("ownerId", &options.0.meta.account)
            .list("dhcpConfigurationSet", values)
            .list("tagSet", [])
    });
    Ok(paged("dhcpOptionsSet", items, token))
}
