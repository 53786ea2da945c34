//! The paths, one file per noun.

pub mod account;
pub mod images;
pub mod instance_types;
pub mod instances;
pub mod key_pairs;
pub mod records;
pub mod security_groups;
pub mod snapshots;
pub mod subnets;
pub mod system;
pub mod tokens;
pub mod volumes;
pub mod vpcs;

pub use crate::listing::Listing;
pub use crate::watching::WatchEvent;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{App, document, watching};

/// All of them. What is not here is neither served nor in the document.
pub(crate) fn all() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::empty())
        .routes(routes!(system::health))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi))
        .routes(routes!(system::caller))
        .merge(machines())
        .merge(storage())
        .merge(networks())
        .merge(accounts())
}

fn machines() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(instances::list, instances::create))
        .routes(routes!(
            instances::get,
            instances::change,
            instances::terminate
        ))
        .routes(routes!(instances::start))
        .routes(routes!(instances::stop))
        .routes(routes!(instances::reboot))
        .routes(routes!(instances::console))
        .routes(routes!(instance_types::list, instance_types::create))
        .routes(routes!(instance_types::get, instance_types::delete))
}

fn storage() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(images::list, images::create))
        .routes(routes!(images::capture))
        .routes(routes!(images::get, images::change, images::delete))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::get, volumes::change, volumes::delete))
        .routes(routes!(volumes::attach))
        .routes(routes!(volumes::detach))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::get, snapshots::delete))
}

fn networks() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(vpcs::list, vpcs::create))
        .routes(routes!(vpcs::get, vpcs::change, vpcs::delete))
        .routes(routes!(subnets::list, subnets::create))
        .routes(routes!(subnets::get, subnets::change, subnets::delete))
        .routes(routes!(security_groups::list, security_groups::create))
        .routes(routes!(security_groups::get, security_groups::delete))
        .routes(routes!(security_groups::add_rules))
        .routes(routes!(security_groups::delete_rule))
}

fn accounts() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(account::site))
        .routes(routes!(account::quotas))
        .routes(routes!(account::set_quota))
        .routes(routes!(account::access_keys, account::create_access_key))
        .routes(routes!(account::delete_access_key))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::delete))
        .routes(routes!(account::tags))
        .routes(routes!(key_pairs::list, key_pairs::create))
        .routes(routes!(key_pairs::get, key_pairs::delete))
        .routes(routes!(records::operations))
        .routes(routes!(records::operation))
        .routes(routes!(records::events))
        .routes(routes!(watching::watch))
}
