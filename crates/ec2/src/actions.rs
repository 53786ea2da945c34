//! What is answered: one file for each noun.

use std::future::Future;
use std::pin::Pin;

use crate::call::Call;
use crate::error::Error;
use crate::xml::Element;

mod addresses;
mod dhcp_options;
mod identity;
mod images;
mod instance_attributes;
mod instance_types;
mod instances;
mod interfaces;
mod internet_gateways;
mod key_pairs;
mod launch;
mod regions;
mod route_tables;
mod security_groups;
mod snapshots;
mod subnets;
mod tags;
mod volumes;
mod vpcs;

/// The members of a response, or why there is none.
pub type Reply = Result<Vec<Element>, Error>;

/// Who answers an action.
pub struct Handler {
    /// The action.
    pub name: &'static str,
    /// Parameters that it reads, with `N` for each index of a list.
    pub understood: &'static [&'static str],
    /// Filters that it has, beside those of single tags.
    pub filters: &'static [&'static str],
    /// Answers.
    pub run: for<'a> fn(&'a Call<'a>) -> Pin<Box<dyn Future<Output = Reply> + Send + 'a>>,
}

/// All of them.
const ALL: &[&[Handler]] = &[
    addresses::ACTIONS,
    dhcp_options::ACTIONS,
    identity::ACTIONS,
    images::ACTIONS,
    instance_attributes::ACTIONS,
    instance_types::ACTIONS,
    instances::ACTIONS,
    interfaces::ACTIONS,
    internet_gateways::ACTIONS,
    key_pairs::ACTIONS,
    launch::ACTIONS,
    regions::ACTIONS,
    route_tables::ACTIONS,
    security_groups::ACTIONS,
    snapshots::ACTIONS,
    subnets::ACTIONS,
    tags::ACTIONS,
    volumes::ACTIONS,
    vpcs::ACTIONS,
];

/// All handlers.
pub fn all() -> impl Iterator<Item = &'static Handler> {
    ALL.iter().copied().flatten()
}

/// The handler of an action.
#[must_use]
pub fn find(name: &str) -> Option<&'static Handler> {
    all().find(|handler| handler.name == name)
}

/// What an action answers that says only that it was done.
#[allow(clippy::unnecessary_wraps, reason = "handlers end with it")]
fn done() -> Reply {
    Ok(vec![Element::leaf("return", true)])
}
