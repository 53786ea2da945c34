//! Machines that exist until somebody says otherwise.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control::{DiskRequest, InstanceChange, Plane, PublicAddress, RunInstances};
use model::{
    Boot, Instance, InstanceId, SecurityGroupId, ShutdownBehavior, Tags, Token, USER_DATA_MAX,
    mac_of,
};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Resource, Target, read_id};
use crate::extract::{Admin, Body, IdempotencyKey, InPath, Reader, end_of};
use crate::listing::{Facts, Shown};
use crate::problem::{Code, Problem};

/// A machine that exists until somebody says otherwise.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Its id.
    #[schema(example = "i-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is doing: `pending`, `running`, `stopping`, `stopped`,
    /// `shutting-down`, `terminated`.
    pub state: String,
    /// Why, if not by wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// What is wrong with its machine, though it runs: its kernel panicked, a
    /// disk of the host is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Since when.
    #[schema(format = DateTime)]
    pub state_since: String,
    /// What it was made from.
    pub image_id: String,
    /// Name of its size.
    #[schema(example = "t3.micro")]
    pub instance_type: String,
    /// vCPUs.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// Name by which its network's DNS knows it.
    pub hostname: String,
    /// Name of the key pair that it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// Its address in its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Ipv4)]
    pub private_ip: Option<String>,
    /// Its address on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Ipv4)]
    pub public_ip: Option<String>,
    /// Its cards.
    pub interfaces: Vec<InterfaceView>,
    /// Its disks; the first is its root.
    pub disks: Vec<InstanceDiskView>,
    /// It cannot be terminated.
    pub termination_protection: bool,
    /// It cannot be stopped.
    pub stop_protection: bool,
    /// What its own power-off means: `stop` or `terminate`.
    pub shutdown_behavior: String,
    /// When it goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expires: Option<String>,
    /// When it was last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub launched: Option<String>,
    /// How far its guest has come since.
    pub boot: BootView,
    /// Host that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

/// A network card of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InterfaceView {
    /// Its id.
    pub id: String,
    /// Its network.
    pub vpc_id: String,
    /// Its subnet.
    pub subnet_id: String,
    /// Its MAC.
    pub mac: String,
    /// Its address there.
    #[schema(format = Ipv4)]
    pub private_ip: String,
    /// Its address on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Ipv4)]
    pub public_ip: Option<String>,
    /// What may come in and go out.
    pub security_group_ids: Vec<String>,
}

/// A disk of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceDiskView {
    /// Name of its device.
    pub device: String,
    /// What it holds.
    pub volume_id: String,
    /// The volume goes with the instance.
    pub delete_on_termination: bool,
}

/// How far a guest has come.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BootView {
    /// Stages that began, in order.
    pub stages: Vec<BootStageView>,
    /// When nothing more was awaited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ready: Option<String>,
    /// What went wrong, with its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A part of a boot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BootStageView {
    /// `image`, `machine`, `kernel`, `userspace`, `network`, `cloud-init` …
    pub name: String,
    /// When it began.
    #[schema(format = DateTime)]
    pub began: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ended: Option<String>,
    /// How long it took, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// What went wrong in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

fn boot(boot: &Boot) -> BootView {
    let stages = boot.stages.iter().map(|stage| BootStageView {
        name: stage.name.clone(),
        began: stage.began.to_string(),
        ended: stage.ended.map(|t| t.to_string()),
        seconds: stage.ended.map(|t| t.since(stage.began).as_secs_f64()),
        failure: stage.failure.clone(),
    });
    BootView {
        stages: stages.collect(),
        ready: boot.ready.map(|t| t.to_string()),
        failure: boot.failure.clone(),
    }
}

fn interface(card: &model::Interface) -> InterfaceView {
    let mac = mac_of(card.private_ip).map(|byte| format!("{byte:02x}"));
    InterfaceView {
        id: card.id.to_string(),
        vpc_id: card.vpc.to_string(),
        subnet_id: card.subnet.to_string(),
        mac: mac.join(":"),
        private_ip: card.private_ip.to_string(),
        public_ip: card.public_ip.map(|ip| ip.to_string()),
        security_group_ids: card.groups.iter().map(ToString::to_string).collect(),
    }
}

impl Shown for Instance {
    type View = InstanceView;

    fn show(_: &Plane, found: &Found<Self>) -> InstanceView {
        let i = &found.record;
        let disks = i.disks.iter().map(|disk| InstanceDiskView {
            device: disk.device.clone(),
            volume_id: disk.volume.to_string(),
            delete_on_termination: disk.delete_on_termination,
        });
        InstanceView {
            id: i.id.to_string(),
            name: i.meta.name().map(str::to_owned),
            state: i.state.name().into(),
            state_reason: i.state_reason.as_ref().map(|r| r.message.clone()),
            trouble: i.trouble.clone(),
            state_since: i.state_since.to_string(),
            image_id: i.image.to_string(),
            instance_type: i.instance_type.clone(),
            cpus: i.cpus,
            memory: i.memory,
            hostname: i.hostname.clone(),
            key_name: i.key_name.clone(),
            private_ip: i.private_ip().map(|ip| ip.to_string()),
            public_ip: i.public_ip().map(|ip| ip.to_string()),
            interfaces: i.interfaces.iter().map(interface).collect(),
            disks: disks.collect(),
            termination_protection: i.termination_protection,
            stop_protection: i.stop_protection,
            shutdown_behavior: match i.shutdown_behavior {
                ShutdownBehavior::Stop => "stop".into(),
                ShutdownBehavior::Terminate => "terminate".into(),
            },
            expires: i.expires.map(|t| t.to_string()),
            launched: i.launched.map(|t| t.to_string()),
            boot: boot(&i.boot),
            host: i.host.clone(),
            created: i.meta.created.to_string(),
            tags: i.meta.tags.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: self.meta.name(),
            state: Some(self.state.name()),
            tags: Some(&self.meta.tags),
        }
    }
}

impl Resource for Instance {
    type Id = InstanceId;

    const NAMES: Names = Names {
        id: "instance",
        path: "/v1/instances",
        one: "an instance, with how far its boot is",
        all: "instances",
        tag: "instances",
    };
}

/// Instances that are to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInstancesBody {
    /// Of what: an image's id, name or family.
    #[schema(example = "debian")]
    pub image: String,
    /// Name of their size.
    #[schema(example = "t3.micro")]
    pub instance_type: String,
    /// How many; one if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 20)]
    pub count: Option<u32>,
    /// Name of the key pair with which people log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// What may come in and go out; the network's default group if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_group_ids: Vec<String>,
    /// Where; the default subnet if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_id: Option<String>,
    /// The address that one instance gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Ipv4)]
    pub private_ip: Option<String>,
    /// Whether they get an address on the host; as the subnet says if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_ip: Option<bool>,
    /// What their cloud-init is told, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Byte)]
    pub user_data: Option<String>,
    /// Disks that differ from the image's, or that it does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<NewDiskBody>,
    /// What is written on their volumes.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub volume_tags: Tags,
    /// Whether their metadata need a token (IMDSv2).
    #[serde(default)]
    pub metadata_token_required: bool,
    /// Tags are among their metadata.
    #[serde(default)]
    pub metadata_tags: bool,
    /// They cannot be terminated.
    #[serde(default)]
    pub termination_protection: bool,
    /// They cannot be stopped.
    #[serde(default)]
    pub stop_protection: bool,
    /// Their own power-off terminates them.
    #[serde(default)]
    pub terminate_on_shutdown: bool,
    /// They go by themselves after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3_153_600_000_i64)]
    pub ttl_seconds: Option<u64>,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// A disk of new instances; what is missing is as the image says.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDiskBody {
    /// Name of its device.
    #[schema(example = "/dev/xvda")]
    pub device: String,
    /// Capacity in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What it holds at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// It goes with its instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_on_termination: Option<bool>,
}

/// Instances that a request made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LaunchView {
    /// Of the request.
    pub reservation_id: String,
    /// They.
    pub instances: Vec<InstanceView>,
}

/// What is to be changed of an instance; what is missing stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceChangeBody {
    /// Name of its size; it must be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// What its cloud-init is told, in base64; it must be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Byte)]
    pub user_data: Option<String>,
    /// What may come in and go out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_group_ids: Option<Vec<String>>,
    /// It cannot be terminated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_protection: Option<bool>,
    /// It cannot be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_protection: Option<bool>,
    /// Its own power-off terminates it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminate_on_shutdown: Option<bool>,
    /// It goes by itself after so many seconds from now; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub ttl_seconds: Option<u64>,
}

/// How an instance is to be stopped.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    /// Its power is cut; its guest is not asked.
    #[serde(default)]
    pub force: bool,
}

fn user_data(text: &str) -> Result<Vec<u8>, Problem> {
    STANDARD.decode(text).map_err(|e| {
        Problem::new(Code::InvalidValue, format!("user_data: {e}"))
            .next(format!("send base64 of at most {USER_DATA_MAX} bytes"))
    })
}

fn groups(ids: &[String]) -> Result<Vec<SecurityGroupId>, Problem> {
    ids.iter().map(|id| read_id(id)).collect()
}

fn behavior(terminate: bool) -> ShutdownBehavior {
    match terminate {
        true => ShutdownBehavior::Terminate,
        false => ShutdownBehavior::Stop,
    }
}

fn wanted(
    plane: &Plane,
    caller: &control::Caller,
    body: NewInstancesBody,
) -> Result<RunInstances, Problem> {
    let image = plane.image_named(caller, &body.image)?;
    let private_ip = body.private_ip.as_deref().map(|text| {
        let wrong = |e| Problem::new(Code::InvalidValue, format!("private_ip: {e}"));
        text.parse::<Ipv4Addr>().map_err(wrong)
    });
    let disks = body.disks.into_iter().map(|disk| {
        Ok(DiskRequest {
            device: disk.device,
            size: disk.size,
            snapshot: disk.snapshot_id.as_deref().map(read_id).transpose()?,
            delete_on_termination: disk.delete_on_termination,
            ..DiskRequest::default()
        })
    });
    let mut run = RunInstances::new(image.id, &body.instance_type);
    run.count = body.count.unwrap_or(1);
    run.key_name = body.key_name;
    run.groups = groups(&body.security_group_ids)?;
    run.subnet = body.subnet_id.as_deref().map(read_id).transpose()?;
    run.private_ip = private_ip.transpose()?;
    run.public_ip = match body.public_ip {
        None => PublicAddress::AsSubnet,
        Some(true) => PublicAddress::Yes,
        Some(false) => PublicAddress::No,
    };
    run.user_data = user_data(body.user_data.as_deref().unwrap_or_default())?;
    run.disks = disks.collect::<Result<_, Problem>>()?;
    run.tags = body.tags;
    run.volume_tags = body.volume_tags;
    run.metadata_options.tags = body.metadata_tags;
    if body.metadata_token_required {
        run.metadata_options.token = Token::Required;
    }
    run.termination_protection = body.termination_protection;
    run.stop_protection = body.stop_protection;
    run.shutdown_behavior = behavior(body.terminate_on_shutdown);
    run.expires = body.ttl_seconds.map(end_of).transpose()?;
    Ok(run)
}

/// Makes instances and starts them
#[utoipa::path(post, path = "/v1/instances", operation_id = "create_instances", tag = "instances",
    request_body = NewInstancesBody,
    responses((status = 201, description = "It is there", body = LaunchView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    key: IdempotencyKey,
    Body(body): Body<NewInstancesBody>,
) -> Result<Response, Problem> {
    let token = key.token(&body)?;
    let run = wanted(&app.plane, &caller, body)?;
    let made = app
        .plane
        .run_instances(&caller, run, token.as_ref())
        .await?;
    let instances = made.instances.iter().map(|instance| {
        let found = app.plane.find::<Instance>(&caller, &instance.id)?;
        Ok(Instance::show(&app.plane, &found))
    });
    let launch = LaunchView {
        reservation_id: made.reservation.to_string(),
        instances: instances.collect::<Result<_, Problem>>()?,
    };
    let place = launch.instances.first().map_or("", |i| &i.id);
    let place = [(header::LOCATION, format!("/v1/instances/{place}"))];
    Ok((StatusCode::CREATED, place, Json(launch)).into_response())
}

/// Changes an instance
#[utoipa::path(patch, path = "/v1/instances/{instance_id}", operation_id = "change_instance", tag = "instances",
    request_body = InstanceChangeBody,
    responses((status = 200, description = "As it is now", body = InstanceView)))]
pub async fn change(
    target: Target<Instance>,
    Body(body): Body<InstanceChangeBody>,
) -> Result<Response, Problem> {
    let user_data = body.user_data.as_deref().map(user_data).transpose()?;
    let groups = body.security_group_ids.as_deref().map(groups).transpose()?;
    let expires = match body.ttl_seconds {
        None => None,
        Some(0) => Some(None),
        Some(seconds) => Some(Some(end_of(seconds)?)),
    };
    let change = InstanceChange {
        instance_type: body.instance_type,
        user_data,
        groups,
        termination_protection: body.termination_protection,
        stop_protection: body.stop_protection,
        shutdown_behavior: body.terminate_on_shutdown.map(behavior),
        expires,
        ..InstanceChange::default()
    };
    target
        .plane
        .modify_instance(&target.caller, &target.id, change)
        .await?;
    target.now(StatusCode::OK)
}

/// Terminates an instance: it is gone for good, with the disks that go with it
#[utoipa::path(delete, path = "/v1/instances/{instance_id}", operation_id = "terminate_instance", tag = "instances",
    responses((status = 202, description = "It is being terminated", body = InstanceView)))]
pub async fn terminate(target: Target<Instance>) -> Result<Response, Problem> {
    target
        .plane
        .terminate_instances(&target.caller, std::slice::from_ref(&target.id))
        .await?;
    target.now(StatusCode::ACCEPTED)
}

/// Starts an instance that is stopped
#[utoipa::path(post, path = "/v1/instances/{instance_id}/start", operation_id = "start_instance", tag = "instances",
    responses((status = 202, description = "As it is now", body = InstanceView)))]
pub async fn start(target: Target<Instance>) -> Result<Response, Problem> {
    target
        .plane
        .start_instances(&target.caller, std::slice::from_ref(&target.id))
        .await?;
    target.now(StatusCode::ACCEPTED)
}

/// Stops an instance; its disks are kept
#[utoipa::path(post, path = "/v1/instances/{instance_id}/stop", operation_id = "stop_instance", tag = "instances",
    request_body = StopBody,
    responses((status = 202, description = "As it is now", body = InstanceView)))]
pub async fn stop(
    target: Target<Instance>,
    Body(body): Body<StopBody>,
) -> Result<Response, Problem> {
    target
        .plane
        .stop_instances(&target.caller, std::slice::from_ref(&target.id), body.force)
        .await?;
    target.now(StatusCode::ACCEPTED)
}

/// Restarts the guest of an instance that runs
#[utoipa::path(post, path = "/v1/instances/{instance_id}/reboot", operation_id = "reboot_instance", tag = "instances",
    responses((status = 202, description = "As it is now", body = InstanceView)))]
pub async fn reboot(target: Target<Instance>) -> Result<Response, Problem> {
    target
        .plane
        .reboot_instances(&target.caller, std::slice::from_ref(&target.id))
        .await?;
    target.now(StatusCode::ACCEPTED)
}

/// The end of what an instance's serial console printed
#[utoipa::path(get, path = "/v1/instances/{instance_id}/console", operation_id = "get_instance_console", tag = "instances",
    responses((status = 200, description = "As the guest printed it", body = String, content_type = "text/plain")))]
pub async fn console(
    State(app): State<App>,
    Reader(caller): Reader,
    InPath(id): InPath<String>,
) -> Result<Response, Problem> {
    let found = app.plane.find::<Instance>(&caller, &id)?;
    let bytes = app.consoles.console(&found.record.id).await.map_err(|e| {
        Problem::new(
            Code::Unavailable,
            format!("reading the console of {id}: {e}"),
        )
        .next("an instance that never ran has none; see its state")
    })?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}
