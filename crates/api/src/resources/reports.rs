//! What an owner should look at: volumes of nobody, instances that are no
//! longer what they would be made as today, and the policy for tags.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use control::{BootTimes, Drift, Orphan};
use model::{Instance, TagPolicy};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::extract::{Admin, Body, InQuery, Reader};
use crate::listing::{self, Listing};
use crate::problem::Problem;

/// Which part of a report.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReportQuery {
    /// Most records of the page
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u16>,
    /// `next` of the page before
    pub after: Option<String>,
}

/// A volume that is in no instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OrphanView {
    /// The volume.
    pub volume_id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its capacity in bytes.
    pub size: u64,
    /// When it was made.
    #[schema(format = DateTime)]
    pub since: String,
}

/// Lists volumes that are in no instance, the oldest first
#[utoipa::path(get, path = "/v1/reports/orphans", operation_id = "report_orphans", tag = "reports",
    params(ReportQuery),
    responses((status = 200, description = "A page of them", body = Listing<OrphanView>)))]
pub async fn orphans(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<ReportQuery>,
) -> Result<Json<Listing<OrphanView>>, Problem> {
    // Pages go on after a key, so the age is its first part.
    let key = |orphan: &Orphan| format!("{:020} {}", orphan.since.0, orphan.volume.id);
    let mut all: Vec<_> = app
        .plane
        .orphans(&caller)
        .into_iter()
        .map(|o| (key(&o), o))
        .collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let view = |(_, orphan): &(String, Orphan)| OrphanView {
        volume_id: orphan.volume.id.to_string(),
        name: orphan.volume.meta.name().map(str::to_owned),
        size: orphan.volume.size,
        since: orphan.since.to_string(),
    };
    listing::page(
        query.limit,
        query.after.as_deref(),
        all,
        |(key, _)| key,
        view,
    )
}

/// An instance that is not what it would be made as today.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DriftView {
    /// The instance.
    pub instance_id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// In what it differs.
    pub differences: Vec<DifferenceView>,
}

/// In what an instance differs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DifferenceView {
    /// `image-gone`, `newer-image`, `instance-type` or `tags`.
    pub kind: String,
    /// For people.
    pub message: String,
    /// The newer image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
}

fn difference(drift: &Drift, instance: &Instance) -> DifferenceView {
    let (kind, message, image_id) = match drift {
        Drift::ImageGone => (
            "image-gone",
            format!("{} was removed", instance.image),
            None,
        ),
        Drift::NewerImage { image } => {
            let message = format!("{image} is newer than {}", instance.image);
            ("newer-image", message, Some(image.clone()))
        }
        Drift::Type => {
            let size = &instance.instance_type;
            (
                "instance-type",
                format!("{size} is another size now, or gone"),
                None,
            )
        }
        Drift::Tags { reason } => ("tags", reason.clone(), None),
    };
    DifferenceView {
        kind: kind.into(),
        message,
        image_id,
    }
}

/// Lists instances that are not what they would be made as today
#[utoipa::path(get, path = "/v1/reports/drift", operation_id = "report_drift", tag = "reports",
    params(ReportQuery),
    responses((status = 200, description = "A page of them", body = Listing<DriftView>)))]
pub async fn drift(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<ReportQuery>,
) -> Result<Json<Listing<DriftView>>, Problem> {
    let all = app.plane.drift(&caller);
    let view = |(instance, drift): &(Instance, Vec<Drift>)| DriftView {
        instance_id: instance.id.to_string(),
        name: instance.meta.name().map(str::to_owned),
        differences: drift.iter().map(|d| difference(d, instance)).collect(),
    };
    let (limit, after) = (query.limit, query.after.as_deref());
    listing::page(
        limit,
        after,
        all,
        |(instance, _)| instance.id.as_str(),
        view,
    )
}

/// How long an image's instances take to boot: the last start of each
/// instance that is known, also of those that are terminated.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BootTimesView {
    /// The image.
    pub image_id: String,
    /// Boots that came to their end.
    pub boots: usize,
    /// Boots in which something failed.
    pub failed: usize,
    /// Seconds from the start to a guest that is up, which half of the boots
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_seconds: Option<f64>,
    /// The same, of 99 in 100 boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_seconds: Option<f64>,
}

/// Lists how long images take to boot
#[utoipa::path(get, path = "/v1/reports/boot-times", operation_id = "report_boot_times", tag = "reports",
    params(ReportQuery),
    responses((status = 200, description = "A page of them", body = Listing<BootTimesView>)))]
pub async fn boot_times(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<ReportQuery>,
) -> Result<Json<Listing<BootTimesView>>, Problem> {
    let view = |times: &BootTimes| {
        let any = times.boots > 0;
        BootTimesView {
            image_id: times.image.to_string(),
            boots: times.boots,
            failed: times.failed,
            p50_seconds: any.then_some(times.p50.as_secs_f64()),
            p99_seconds: any.then_some(times.p99.as_secs_f64()),
        }
    };
    let all = app.plane.boot_times(&caller);
    let (limit, after) = (query.limit, query.after.as_deref());
    listing::page(limit, after, all, |times| times.image.as_str(), view)
}

/// Which tags new instances and volumes must have.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagPolicyBody {
    /// Keys that must be there, each with the values that it may have; none:
    /// any.
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub required: BTreeMap<String, BTreeSet<String>>,
}

/// Shows which tags new instances and volumes must have
#[utoipa::path(get, path = "/v1/tag-policy", operation_id = "get_tag_policy", tag = "account",
    responses((status = 200, description = "It", body = TagPolicyBody)))]
pub async fn tag_policy(State(app): State<App>, Reader(caller): Reader) -> Json<TagPolicyBody> {
    let TagPolicy { required } = app.plane.tag_policy(&caller);
    Json(TagPolicyBody { required })
}

/// Says which tags new instances and volumes must have; what there is stays,
/// and is in the report on drift
#[utoipa::path(put, path = "/v1/tag-policy", operation_id = "set_tag_policy", tag = "account",
    request_body = TagPolicyBody,
    responses((status = 200, description = "As it is now", body = TagPolicyBody)))]
pub async fn set_tag_policy(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(TagPolicyBody { required }): Body<TagPolicyBody>,
) -> Result<Json<TagPolicyBody>, Problem> {
    let policy = TagPolicy {
        required: required.clone(),
    };
    app.plane.set_tag_policy(&caller, policy).await?;
    Ok(Json(TagPolicyBody { required }))
}
