//! The paths, one file per noun.

pub mod account;
pub mod images;
pub mod instance_types;
pub mod instances;
pub mod internet_gateways;
pub mod key_pairs;
pub mod records;
pub mod reports;
pub mod route_tables;
pub mod security_groups;
pub mod snapshots;
pub mod subnets;
pub mod system;
pub mod tokens;
pub mod volumes;
pub mod vpcs;

pub use crate::listing::Listing;
pub use crate::watching::WatchEvent;

use model::{
    Image, Instance, InternetGateway, KeyPair, Operation, RouteTable, SecurityGroup, Snapshot,
    Subnet, Volume, Vpc,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::collection::{collection, removal};
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
        .merge(collection::<Instance>())
        .routes(routes!(instances::create))
        .routes(routes!(instances::change, instances::terminate))
        .routes(routes!(instances::start))
        .routes(routes!(instances::stop))
        .routes(routes!(instances::reboot))
        .routes(routes!(instances::console))
        .routes(routes!(instance_types::list, instance_types::create))
        .routes(routes!(instance_types::get, instance_types::delete))
}

fn storage() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(collection::<Image>())
        .merge(removal::<Image>())
        .routes(routes!(images::create))
        .routes(routes!(images::capture))
        .routes(routes!(images::change))
        .merge(collection::<Volume>())
        .merge(removal::<Volume>())
        .routes(routes!(volumes::create))
        .routes(routes!(volumes::change))
        .routes(routes!(volumes::attach))
        .routes(routes!(volumes::detach))
        .routes(routes!(volumes::roll_back))
        .merge(collection::<Snapshot>())
        .merge(removal::<Snapshot>())
        .routes(routes!(snapshots::create))
}

fn networks() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(collection::<Vpc>())
        .merge(removal::<Vpc>())
        .routes(routes!(vpcs::create))
        .routes(routes!(vpcs::change))
        .merge(collection::<Subnet>())
        .merge(removal::<Subnet>())
        .routes(routes!(subnets::create))
        .routes(routes!(subnets::change))
        .merge(collection::<SecurityGroup>())
        .merge(removal::<SecurityGroup>())
        .routes(routes!(security_groups::create))
        .routes(routes!(security_groups::add_rules))
        .routes(routes!(security_groups::delete_rule))
        .merge(routing())
}

fn routing() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(collection::<RouteTable>())
        .merge(removal::<RouteTable>())
        .routes(routes!(route_tables::create))
        .routes(routes!(route_tables::put_route, route_tables::delete_route))
        .routes(routes!(route_tables::associate))
        .routes(routes!(route_tables::disassociate))
        .routes(routes!(route_tables::make_main))
        .merge(collection::<InternetGateway>())
        .merge(removal::<InternetGateway>())
        .routes(routes!(internet_gateways::create))
        .routes(routes!(internet_gateways::attach))
        .routes(routes!(internet_gateways::detach))
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
        .routes(routes!(reports::tag_policy, reports::set_tag_policy))
        .routes(routes!(reports::orphans))
        .routes(routes!(reports::drift))
        .routes(routes!(reports::boot_times))
        .merge(collection::<KeyPair>())
        .merge(removal::<KeyPair>())
        .routes(routes!(key_pairs::create))
        .merge(collection::<Operation>())
        .routes(routes!(records::events))
        .routes(routes!(watching::watch))
}
