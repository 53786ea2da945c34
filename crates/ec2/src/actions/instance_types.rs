//! Sizes of instances.

use model::{CATALOGUE, InstanceType, Tags};

use super::{Handler, Reply};
use crate::call::Call;
use crate::describe::{Described, Listing, Selection, many, none, one, paged};
use crate::filters::Pattern;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "DescribeInstanceTypes",
        understood: &[
            "InstanceType.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DescribeInstanceTypeOfferings",
        understood: &[
            "LocationType",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: OFFERINGS.filters,
        run: |call| Box::pin(describe_offerings(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "InstanceType",
    filters: &[
        "bare-metal",
        "burstable-performance-supported",
        "current-generation",
        "free-tier-eligible",
        "hibernation-supported",
        "hypervisor",
        "instance-storage-supported",
        "instance-type",
        "memory-info.size-in-mib",
        "processor-info.supported-architecture",
        "supported-boot-mode",
        "supported-root-device-type",
        "supported-usage-class",
        "supported-virtualization-type",
        "vcpu-info.default-cores",
        "vcpu-info.default-threads-per-core",
        "vcpu-info.default-vcpus",
    ],
    pages: Some((5, 100)),
    pages_of_ids: false,
};

const OFFERINGS: Listing = Listing {
    ids: "InstanceType",
    filters: &["instance-type", "location"],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

impl Described for InstanceType {
    fn key(&self) -> String {
        self.name.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }
}

/// The catalogue and the custom ones, by name.
fn all(call: &Call<'_>) -> Vec<InstanceType> {
    let custom = call.plane().view().all::<InstanceType>();
    let custom = custom.iter().map(|found| found.record.clone());
    let mut all: Vec<InstanceType> = CATALOGUE.iter().cloned().chain(custom).collect();
    all.sort_by_key(Described::key);
    all
}

fn field(size: &InstanceType, name: &str) -> Vec<String> {
    match name {
        "bare-metal"
        | "free-tier-eligible"
        | "hibernation-supported"
        | "instance-storage-supported" => one(false),
        "burstable-performance-supported" => one(false),
        "current-generation" => one(true),
        "hypervisor" => one("nitro"),
        "instance-type" => one(&size.name),
        "memory-info.size-in-mib" => one(size.memory_mib),
        "processor-info.supported-architecture" => one("x86_64"),
        "supported-boot-mode" => one("legacy-bios"),
        "supported-root-device-type" => one("ebs"),
        "supported-usage-class" => one("on-demand"),
        "supported-virtualization-type" => one("hvm"),
        "vcpu-info.default-cores" | "vcpu-info.default-vcpus" => one(size.cpus),
        "vcpu-info.default-threads-per-core" => one(1),
        _ => none(),
    }
}

fn list(name: &'static str, value: &str) -> Element {
    Element::new(name).child(Element::leaf("item", value))
}

fn show(size: &InstanceType) -> Element {
    Element::item()
        .text("instanceType", &size.name)
        .text("currentGeneration", true)
        .text("freeTierEligible", false)
        .child(list("supportedUsageClasses", "on-demand"))
        .child(list("supportedRootDeviceTypes", "ebs"))
        .child(list("supportedVirtualizationTypes", "hvm"))
        .child(list("supportedBootModes", "legacy-bios"))
        .text("bareMetal", false)
        .text("hypervisor", "nitro")
        .child(Element::new("processorInfo").child(list("supportedArchitectures", "x86_64")))
        .child(
            Element::new("vCpuInfo")
                .text("defaultVCpus", size.cpus)
                .text("defaultCores", size.cpus)
                .text("defaultThreadsPerCore", 1),
        )
        .child(Element::new("memoryInfo").text("sizeInMiB", size.memory_mib))
        .text("instanceStorageSupported", false)
        .child(
            Element::new("ebsInfo")
                .text("ebsOptimizedSupport", "unsupported")
                .text("encryptionSupport", "unsupported")
                .text("nvmeSupport", "unsupported"),
        )
        .child(
            Element::new("networkInfo")
                .text("maximumNetworkInterfaces", 1)
                .text("maximumNetworkCards", 1)
                .text("defaultNetworkCardIndex", 0)
                .text("ipv4AddressesPerInterface", 1)
                .text("ipv6AddressesPerInterface", 0)
                .text("ipv6Supported", false)
                .text("enaSupport", "unsupported")
                .text("efaSupported", false),
        )
        .text("hibernationSupported", false)
        .text("burstablePerformanceSupported", false)
        .text("dedicatedHostsSupported", false)
        .text("autoRecoverySupported", false)
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let mut sizes = all(call);
    let asked = call.parameters.texts("InstanceType");
    let patterns: Vec<Pattern> = asked.iter().map(|name| Pattern::new(name)).collect();
    for (name, pattern) in asked.iter().zip(&patterns) {
        if !name.contains('*') && !sizes.iter().any(|size| pattern.matches(&size.name)) {
            return Err(call.no_type(name));
        }
    }
    sizes.retain(|size| {
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(&size.name))
    });
    call.dry_run()?;
    let (page, token) = selection.cut(sizes, field);
    Ok(paged("instanceTypeSet", page.iter().map(show), token))
}

async fn describe_offerings(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &OFFERINGS)?;
    let site = call.plane().site()?;
    let kind = call.parameters.text("LocationType").unwrap_or("region");
    let places: Vec<String> = match kind {
        "region" => vec![site.region],
        "availability-zone" => site.zones,
        "availability-zone-id" => site.zones.iter().map(|zone| call.zone_id(zone)).collect(),
        other => {
            return Err(crate::error::Error::invalid(
                "LocationType",
                other,
                "It is region, availability-zone or availability-zone-id.",
            ));
        }
    };
    call.dry_run()?;
    let (page, token) = selection.cut(all(call), |size, name| match name {
        "instance-type" => one(&size.name),
        "location" => many(&places),
        _ => none(),
    });
    let items = page.iter().flat_map(|size| {
        places.iter().map(move |place| {
            Element::item()
                .text("instanceType", &size.name)
                .text("locationType", kind)
                .text("location", place)
        })
    });
    Ok(paged("instanceTypeOfferingSet", items, token))
}
