//! Regions, zones and what an account may have.

use control::{Kind, Refusal};
use model::{Site, Tags};

use super::{Handler, Reply};
use crate::call::Call;
use crate::describe::{Described, Listing, Selection, none, one, paged};
use crate::error::Error;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "DescribeRegions",
        understood: &[
            "RegionName.N",
            "AllRegions",
            "Filter.N.Name",
            "Filter.N.Value.N",
        ],
        filters: REGIONS.filters,
        run: |call| Box::pin(describe_regions(call)),
    },
    Handler {
        name: "DescribeAvailabilityZones",
        understood: &[
            "ZoneName.N",
            "ZoneId.N",
            "AllAvailabilityZones",
            "Filter.N.Name",
            "Filter.N.Value.N",
        ],
        filters: ZONES.filters,
        run: |call| Box::pin(describe_zones(call)),
    },
    Handler {
        name: "DescribeAccountAttributes",
        understood: &["AttributeName.N"],
        filters: &[],
        run: |call| Box::pin(describe_attributes(call)),
    },
];

const REGIONS: Listing = Listing {
    ids: "RegionName",
    filters: &["endpoint", "opt-in-status", "region-name"],
    pages: None,
    pages_of_ids: true,
};

const ZONES: Listing = Listing {
    ids: "ZoneName",
    filters: &[
        "group-name",
        "message",
        "opt-in-status",
        "region-name",
        "state",
        "zone-id",
        "zone-name",
        "zone-type",
    ],
    pages: None,
    pages_of_ids: true,
};

/// A name of a region or a zone.
struct Name(String);

impl Described for Name {
    fn key(&self) -> String {
        self.0.clone()
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }
}

async fn describe_regions(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &REGIONS)?;
    let region = call.plane().site()?.region;
    for name in call.parameters.texts("RegionName") {
        if name != region {
            return Err(Error::invalid(
                "RegionName",
                &name,
                &format!("The only region is {region}."),
            ));
        }
    }
    call.dry_run()?;
    // Clients put the region's name into the host's name; they reach Holm by
    // the URL that they were told.
    let endpoint = call.host();
    let (page, _) = selection.cut([Name(region)], |region, name| match name {
        "endpoint" => one(&endpoint),
        "opt-in-status" => one("opt-in-not-required"),
        "region-name" => one(&region.0),
        _ => none(),
    });
    let items = page.iter().map(|region| {
        Element::item()
            .text("regionName", &region.0)
            .text("regionEndpoint", &endpoint)
            .text("optInStatus", "opt-in-not-required")
    });
    Ok(paged("regionInfo", items, None))
}

fn zone_field(call: &Call<'_>, site: &Site, zone: &str, name: &str) -> Vec<String> {
    match name {
        "group-name" => one(format!("{}-zg-1", site.region)),
        "opt-in-status" => one("opt-in-not-required"),
        "region-name" => one(&site.region),
        "state" => one("available"),
        "zone-id" => one(call.zone_id(zone)),
        "zone-name" => one(zone),
        "zone-type" => one("availability-zone"),
        _ => none(),
    }
}

async fn describe_zones(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &ZONES)?;
    let site = call.plane().site()?;
    let mut zones = site.zones.clone();
    zones.sort();
    let mut asked = call.parameters.texts("ZoneName");
    for id in call.parameters.texts("ZoneId") {
        asked.push(call.zone_of_id(&id)?);
    }
    for zone in &asked {
        if !zones.contains(zone) {
            return Err(Refusal::not_found(Kind::Zone, zone).into());
        }
    }
    zones.retain(|zone| asked.is_empty() || asked.contains(zone));
    call.dry_run()?;
    let (page, _) = selection.cut(zones.into_iter().map(Name), |zone, name| {
        zone_field(call, &site, &zone.0, name)
    });
    let items = page.iter().map(|zone| {
        Element::item()
            .text("zoneName", &zone.0)
            .text("zoneId", call.zone_id(&zone.0))
            .text("zoneState", "available")
            .text("zoneType", "availability-zone")
            .text("regionName", &site.region)
            .text("groupName", format!("{}-zg-1", site.region))
            .text("networkBorderGroup", &site.region)
            .text("optInStatus", "opt-in-not-required")
            .list("messageSet", [])
    });
    Ok(paged("availabilityZoneInfo", items, None))
}

async fn describe_attributes(call: &Call<'_>) -> Reply {
    let limit = |quota| {
        let reports = call.plane().quotas(&call.caller);
        let report = reports.into_iter().find(|report| report.quota == quota);
        report.map_or(0, |report| report.limit).to_string()
    };
    let default = match call.plane().default_vpc(&call.caller) {
        Ok(vpc) => vpc.id.to_string(),
        Err(_) => "none".to_owned(),
    };
    let all = [
        ("supported-platforms", "VPC".to_owned()),
        ("default-vpc", default),
        ("max-instances", limit(model::Quota::Instances)),
        ("vpc-max-security-groups-per-interface", "16".to_owned()),
        ("max-elastic-ips", "0".to_owned()),
        ("vpc-max-elastic-ips", "0".to_owned()),
    ];
    let asked = call.parameters.texts("AttributeName");
    for name in &asked {
        if !all.iter().any(|(known, _)| known == name) {
            return Err(Error::invalid(
                "AttributeName",
                name,
                "There is none of that name.",
            ));
        }
    }
    call.dry_run()?;
    let shown = all
        .into_iter()
        .filter(|(name, _)| asked.is_empty() || asked.iter().any(|asked| asked == name));
    let items = shown.map(|(name, value)| {
        let value = Element::item().text("attributeValue", value);
        Element::item()
            .text("attributeName", name)
            .list("attributeValueSet", [value])
    });
    Ok(paged("accountAttributeSet", items, None))
}
