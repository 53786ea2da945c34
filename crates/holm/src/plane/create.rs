//! `holm create`, and what `holm run` and it have in common.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use api::resources::images::ImageView;
use api::resources::instances::{InstanceView, LaunchView};
use api::resources::key_pairs::KeyPairView;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::boot::{self, Until};
use super::client::{Client, PlaneError};
use super::instances::list_text;
use super::{finish, id, tag, tags};
use crate::completion;
use crate::console::terminal;
use crate::form::{self, Output};
use crate::named::place;
use crate::nearest;
use crate::values;

/// Size of a machine unless one is named.
const TYPE: &str = "t3.micro";
/// Heading of what only a machine that a daemon keeps can have.
pub const KEPT: &str = "A machine that a daemon keeps";

/// `holm create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Image that it is made from: a name of `holm image ls`, or an id
    #[arg(value_name = "IMAGE", add = completion::images())]
    pub image: String,

    /// Its name (--name web1); one is made up unless given
    #[arg(long, value_name = "NAME", value_parser = place::name)]
    pub name: Option<String>,

    /// How many; more than one get names with numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub count: u32,

    /// It goes by itself after this time (--ttl 2h)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub ttl: Option<Duration>,

    /// It goes for good when it powers itself off
    #[arg(long)]
    pub rm: bool,

    /// What it is
    #[command(flatten)]
    pub launch: Launch,

    /// How long the guest may take until it is as --wait says (--timeout 2m)
    #[arg(long, visible_alias = "boot-timeout", value_name = "DURATION", default_value = "10m",
          value_parser = values::duration, help_heading = KEPT)]
    pub timeout: Duration,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// What a machine is that a daemon keeps.
#[derive(Args, Debug)]
#[command(next_help_heading = KEPT)]
pub struct Launch {
    /// Its size (--type t3.small); `holm type ls` lists them
    #[arg(long = "type", value_name = "TYPE", default_value = TYPE, add = completion::types())]
    pub size: String,

    /// Key pair with which people log in (--key mine); the only one there is unless given
    #[arg(long, value_name = "NAME", add = completion::keys())]
    pub key: Option<String>,

    /// Security group, may be repeated (--sg web); the network's default unless given
    #[arg(long = "sg", value_name = "GROUP", add = completion::groups())]
    pub groups: Vec<String>,

    /// Subnet (--subnet subnet-0123…); the default unless given
    #[arg(long, value_name = "SUBNET", add = completion::subnets())]
    pub subnet: Option<String>,

    /// File with what its cloud-init is told: a script, or #cloud-config (--user-data setup.sh)
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,

    /// Size of its root disk (--disk-size 20G); the image's unless given
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub disk_size: Option<u64>,

    /// Tag, may be repeated (--tag team=blue)
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    pub tags: Vec<(String, String)>,

    /// Until what is waited
    #[arg(long, value_enum, default_value_t = Until::Ready)]
    pub wait: Until,
}

/// Makes machines, and tells how they come up.
pub fn create(arguments: &Create) -> u8 {
    finish(try_create(arguments))
}

fn try_create(arguments: &Create) -> Result<(), PlaneError> {
    let order = Order {
        image: &arguments.image,
        name: arguments.name.as_deref(),
        count: arguments.count,
        ttl: arguments.ttl,
        rm: arguments.rm,
        launch: &arguments.launch,
    };
    let made = order.make(&Client::new())?;
    told(made, &arguments.launch, arguments.timeout, arguments.output)
}

/// Tells how machines come up, and lists them.
///
/// # Errors
/// [`PlaneError`].
pub fn told(
    made: Vec<InstanceView>,
    launch: &Launch,
    within: Duration,
    output: Output,
) -> Result<(), PlaneError> {
    let client = Client::new();
    let wait = |one| boot::wait(&client, one, launch.wait, within);
    let there: Result<Vec<InstanceView>, _> = made.into_iter().map(wait).collect();
    let there = there?;
    form::print(output, &there, || list_text(&there));
    Ok(())
}

/// Machines that are to be made.
pub struct Order<'a> {
    /// Of which image.
    pub image: &'a str,
    /// Their name; one is made up otherwise.
    pub name: Option<&'a str>,
    /// How many.
    pub count: u32,
    /// How long each exists at most.
    pub ttl: Option<Duration>,
    /// Each goes when it powers itself off.
    pub rm: bool,
    /// What they are.
    pub launch: &'a Launch,
}

impl Order<'_> {
    /// Makes them.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub fn make(&self, client: &Client) -> Result<Vec<InstanceView>, PlaneError> {
        let name = match self.name {
            Some(name) => name.to_owned(),
            None => free_name(client, self.image)?,
        };
        let key = match &self.launch.key {
            Some(key) => Ok(key.clone()),
            None => only_key(client)?,
        };
        let body = self.body(client, &name, key.as_deref().ok())?;
        let made: Result<LaunchView, _> = client.ask("POST", "/v1/instances", Some(&body));
        let mut made = made
            .map_err(|error| self.explained(client, error))?
            .instances;
        if let Err(why) = key {
            terminal::say(&format!("holm: {why}"));
        }
        let several = made.len() > 1;
        for (n, one) in made.iter_mut().enumerate() {
            if several {
                let numbered = format!("{name}-{}", n + 1);
                let tag = json!({"Name": numbered});
                client.call("PATCH", &format!("/v1/tags/{}", one.id), Some(&tag))?;
                one.name = Some(numbered);
            }
            let name = one.name.as_deref().unwrap_or_default();
            terminal::say(&format!("{name} ({}) is made of {}", one.id, self.image));
        }
        Ok(made)
    }

    fn body(&self, client: &Client, name: &str, key: Option<&str>) -> Result<Value, PlaneError> {
        let launch = self.launch;
        let group =
            |name: &String| id(client, "/v1/security-groups", "security group", "sg-", name);
        let groups: Result<Vec<_>, _> = launch.groups.iter().map(group).collect();
        let mut body = json!({
            "image": self.image,
            "instance_type": launch.size,
            "count": self.count,
            "security_group_ids": groups?,
            "tags": tags(&launch.tags, Some(name)),
            "terminate_on_shutdown": self.rm,
        });
        if let Some(key) = key {
            body["key_name"] = key.into();
        }
        if let Some(subnet) = &launch.subnet {
            body["subnet_id"] = id(client, "/v1/subnets", "subnet", "subnet-", subnet)?.into();
        }
        if let Some(file) = &launch.user_data {
            let data = fs::read(file)
                .map_err(|e| PlaneError::File(format!("reading {}: {e}", file.display())))?;
            body["user_data"] = STANDARD.encode(data).into();
        }
        if let Some(size) = launch.disk_size {
            let images: Vec<ImageView> = client.all("/v1/images", "")?;
            let image = images.iter().find(|image| is(image, self.image));
            let device = image.map_or("/dev/xvda", |image| &image.root_device);
            body["disks"] = json!([{"device": device, "size": size}]);
        }
        if let Some(ttl) = self.ttl {
            body["ttl_seconds"] = ttl.as_secs().max(1).into();
        }
        Ok(body)
    }

    /// A refusal, with the next step if what was meant does not exist.
    fn explained(&self, client: &Client, error: PlaneError) -> PlaneError {
        if !matches!(error, PlaneError::Refused(_)) {
            return error;
        }
        let Ok(images) = client.all::<ImageView>("/v1/images", "") else {
            return error;
        };
        if images.iter().any(|image| is(image, self.image)) {
            return error;
        }
        let names = images
            .into_iter()
            .flat_map(|image| [Some(image.name), image.family])
            .flatten();
        let list = "`holm image ls` lists images, `holm image build debian` builds one, \
                    `holm image import FILE NAME` takes one from a file or URL";
        let hint = nearest::hint(self.image, names, list);
        PlaneError::Which(format!("the daemon has no image {:?}{hint}", self.image))
    }
}

/// Whether an image is meant by its id, name or family.
fn is(image: &ImageView, wanted: &str) -> bool {
    image.id == wanted || image.name == wanted || image.family.as_deref() == Some(wanted)
}

/// The only key pair there is; or why nobody can log in.
fn only_key(client: &Client) -> Result<Result<String, &'static str>, PlaneError> {
    let mut keys: Vec<KeyPairView> = client.all("/v1/key-pairs", "")?;
    Ok(match keys.len() {
        1 => Ok(keys.remove(0).name),
        0 => Err("without a key pair nobody can log in; `holm key create NAME` makes one"),
        _ => Err("there are several key pairs; name one with --key, or nobody can log in"),
    })
}

/// A name that no machine has: the image's, with a number.
fn free_name(client: &Client, image: &str) -> Result<String, PlaneError> {
    let all: Vec<InstanceView> = client.all("/v1/instances", "")?;
    let stem: String = match image.starts_with("ami-") {
        true => "machine".into(),
        false => {
            let fits = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
            let stem: String = image.chars().take_while(fits).take(32).collect();
            stem
        }
    };
    let stem = if stem.is_empty() { "machine" } else { &stem };
    let taken = |name: &String| {
        let is = |i: &InstanceView| i.state != "terminated" && i.name.as_ref() == Some(name);
        all.iter().any(is)
    };
    let mut names = (1_u32..).map(|n| format!("{stem}-{n}"));
    Ok(names.find(|name| !taken(name)).unwrap_or_default())
}
