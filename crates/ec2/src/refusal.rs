//! What `control` refuses, in EC2's codes.

use axum::http::StatusCode;
use control::{Kind, Refusal};
use model::Quota;

use crate::error::Error;

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound { kind, id } => not_found(kind, &id),
            Refusal::Invalid { field, reason } => invalid(field, reason),
            Refusal::Missing { field: "vpc_id" } => Self::new(
                "VPCIdNotSpecified",
                "No default VPC for this user: name a VPC",
            ),
            Refusal::Missing { field: "subnet_id" } => Self::new(
                "MissingInput",
                "No default subnet for this user: name a subnet",
            ),
            Refusal::Missing { field } => Self::missing(&camel(field)),
            Refusal::Combination(message) => Self::combination(message),
            Refusal::State { kind, .. } => Self::new(state(kind), message),
            Refusal::InUse { kind, .. } => Self::new(in_use(kind), message),
            Refusal::Exists { kind, name } => exists(kind, &name),
            Refusal::Protected { id, what } => Self::new(
                "OperationNotPermitted",
                format!(
                    "The instance '{id}' may not be {what}: its protection forbids that. Modify its attribute and try again."
                ),
            ),
            Refusal::NotAllowed(message) => {
                Self::new("OperationNotPermitted", message).with_status(StatusCode::FORBIDDEN)
            }
            Refusal::Quota { quota, .. } => Self::new(limit(quota), message),
            Refusal::NoAddress(_) => Self::new("InsufficientFreeAddressesInSubnet", message),
            Refusal::Overlap(..) => Self::new("InvalidSubnet.Conflict", message),
            Refusal::TokenMismatch(_) => Self::new("IdempotentParameterMismatch", message),
            Refusal::Busy | Refusal::Stale { .. } => {
                Self::new("Unavailable", message).with_status(StatusCode::SERVICE_UNAVAILABLE)
            }
            Refusal::Record(_) | Refusal::Store(_) => {
                tracing::error!(error = message, "an EC2 request failed");
                Self::internal("An internal error has occurred; the daemon's log says which")
            }
        }
    }
}

/// Code of what there is none of, and its message.
fn not_found(kind: Kind, id: &str) -> Error {
    let (code, message) = match kind {
        Kind::Instance => (
            "InvalidInstanceID.NotFound",
            format!("The instance ID '{id}' does not exist"),
        ),
        Kind::InstanceType => (
            "InvalidInstanceType",
            format!("The instance type '{id}' does not exist; `holm type ls` lists those that do"),
        ),
        Kind::Image => (
            "InvalidAMIID.NotFound",
            format!("The image id '[{id}]' does not exist"),
        ),
        Kind::Volume => (
            "InvalidVolume.NotFound",
            format!("The volume '{id}' does not exist."),
        ),
        Kind::Snapshot => (
            "InvalidSnapshot.NotFound",
            format!("The snapshot '{id}' does not exist."),
        ),
        Kind::KeyPair => (
            "InvalidKeyPair.NotFound",
            format!("The key pair '{id}' does not exist"),
        ),
        Kind::Vpc => (
            "InvalidVpcID.NotFound",
            format!("The vpc ID '{id}' does not exist"),
        ),
        Kind::Subnet => (
            "InvalidSubnetID.NotFound",
            format!("The subnet ID '{id}' does not exist"),
        ),
        Kind::SecurityGroup => (
            "InvalidGroup.NotFound",
            format!("The security group '{id}' does not exist"),
        ),
        Kind::SecurityGroupRule => (
            "InvalidPermission.NotFound",
            format!("The specified rule ({id}) does not exist in this security group."),
        ),
        Kind::Address => (
            "InvalidAllocationID.NotFound",
            format!("The allocation ID '{id}' does not exist"),
        ),
        Kind::InternetGateway => (
            "InvalidInternetGatewayID.NotFound",
            format!("The internetGateway ID '{id}' does not exist"),
        ),
        Kind::RouteTable => (
            "InvalidRouteTableID.NotFound",
            format!("The routeTable ID '{id}' does not exist"),
        ),
        Kind::Route => (
            "InvalidRoute.NotFound",
            format!("no route with destination-cidr-block {id} in this route table"),
        ),
        Kind::Association => (
            "InvalidAssociationID.NotFound",
            format!("The association ID '{id}' does not exist"),
        ),
        Kind::Interface => (
            "InvalidNetworkInterfaceID.NotFound",
            format!("The networkInterface ID '{id}' does not exist"),
        ),
        Kind::Zone => (
            "InvalidParameterValue",
            format!("Invalid availability zone: [{id}]"),
        ),
        _ => ("InvalidID", format!("The ID '{id}' is not valid")),
    };
    Error::new(code, message)
}

/// Code of a value that cannot be.
fn invalid(field: &str, reason: String) -> Error {
    let code = match field {
        "cidr_block" if reason.contains("a subnet") => "InvalidSubnet.Range",
        "cidr_block" => "InvalidVpc.Range",
        "public_key_material" => "InvalidKey.Format",
        "tags" if reason.contains("at most 50") => "TagLimitExceeded",
        "user_data" => "InvalidUserData.Malformed",
        _ => "InvalidParameterValue",
    };
    Error::new(
        code,
        format!("Invalid value for {}: {reason}", camel(field)),
    )
}

fn state(kind: Kind) -> &'static str {
    match kind {
        Kind::Instance => "IncorrectInstanceState",
        Kind::Image => "InvalidAMIID.Unavailable",
        Kind::InternetGateway => "Gateway.NotAttached",
        _ => "IncorrectState",
    }
}

fn in_use(kind: Kind) -> &'static str {
    match kind {
        Kind::Volume => "VolumeInUse",
        Kind::Snapshot => "InvalidSnapshot.InUse",
        Kind::Interface => "InvalidNetworkInterface.InUse",
        Kind::Address => "InvalidIPAddress.InUse",
        _ => "DependencyViolation",
    }
}

fn exists(kind: Kind, name: &str) -> Error {
    let (code, message) = match kind {
        Kind::KeyPair => (
            "InvalidKeyPair.Duplicate",
            format!("The keypair '{name}' already exists."),
        ),
        Kind::SecurityGroup => (
            "InvalidGroup.Duplicate",
            format!("The security group '{name}' already exists"),
        ),
        Kind::SecurityGroupRule => (
            "InvalidPermission.Duplicate",
            format!("the specified rule \"{name}\" already exists"),
        ),
        Kind::Image => (
            "InvalidAMIName.Duplicate",
            format!("AMI name {name} is already in use"),
        ),
        Kind::Route => (
            "RouteAlreadyExists",
            format!("The route identified by {name} already exists."),
        ),
        Kind::Association | Kind::InternetGateway => (
            "Resource.AlreadyAssociated",
            format!("There is already an association: {name}"),
        ),
        Kind::Vpc => (
            "DefaultVpcAlreadyExists",
            format!("There is already a VPC {name}"),
        ),
        _ => (
            "InvalidParameterValue",
            format!("There is already a {kind} {name}"),
        ),
    };
    Error::new(code, message)
}

fn limit(quota: Quota) -> &'static str {
    match quota {
        Quota::Instances | Quota::MemoryMib => "InstanceLimitExceeded",
        Quota::Cpus => "VcpuLimitExceeded",
        Quota::Volumes | Quota::VolumeGib => "VolumeLimitExceeded",
        Quota::Snapshots => "SnapshotLimitExceeded",
        Quota::Addresses => "AddressLimitExceeded",
        Quota::Vpcs => "VpcLimitExceeded",
        Quota::SubnetsPerVpc => "SubnetLimitExceeded",
        Quota::SecurityGroups => "SecurityGroupLimitExceeded",
        Quota::RulesPerGroup => "RulesPerSecurityGroupLimitExceeded",
        Quota::Images | Quota::KeyPairs => "ResourceLimitExceeded",
    }
}

/// A field's name as EC2's parameters have it.
fn camel(field: &str) -> String {
    field
        .split('_')
        .map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|letter| letter.to_ascii_uppercase());
            first.into_iter().chain(letters).collect::<String>()
        })
        .collect()
}
