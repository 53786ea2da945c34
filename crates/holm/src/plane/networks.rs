//! `holm net` and `holm sg`.

use api::resources::security_groups::{RuleView, SecurityGroupView};
use api::resources::subnets::SubnetView;
use api::resources::vpcs::VpcView;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, PlaneError};
use super::keys::Name;
use super::{finish, id, tags};
use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output, or_none};

/// `holm net`.
#[derive(Subcommand, Debug)]
pub enum Net {
    /// Lists networks and their subnets
    ///
    /// Example: holm net ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Makes a network, apart from all others
    ///
    /// Example: holm net create lab --cidr 10.9.0.0/16
    #[command(after_help = exit_code::PLANE_HELP)]
    Create(NewNet),
    /// Makes a subnet of a network
    ///
    /// Example: holm net subnet lab --cidr 10.9.1.0/24 --name front --public
    #[command(after_help = exit_code::PLANE_HELP)]
    Subnet(NewSubnet),
    /// Removes a network, or a subnet, that has nothing in it
    ///
    /// Example: holm net rm lab
    #[command(after_help = exit_code::PLANE_HELP,
        mut_arg("name", |name| name.add(completion::networks())))]
    Rm(Name),
}

/// `holm net create`.
#[derive(Args, Debug)]
pub struct NewNet {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Its addresses, 16 to 28 bits (--cidr 10.9.0.0/16)
    #[arg(long, value_name = "CIDR")]
    pub cidr: String,
}

/// `holm net subnet`.
#[derive(Args, Debug)]
pub struct NewSubnet {
    /// The network
    #[arg(value_name = "NETWORK", add = completion::networks())]
    pub network: String,

    /// Its addresses, of the network's (--cidr 10.9.1.0/24)
    #[arg(long, value_name = "CIDR")]
    pub cidr: String,

    /// Its name (--name front)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Machines in it get an address on this host
    #[arg(long)]
    pub public: bool,
}

/// Does it, and returns the exit status.
pub fn net(command: &Net) -> u8 {
    finish(try_net(&Client::new(), command))
}

fn try_net(client: &Client, command: &Net) -> Result<(), PlaneError> {
    match command {
        Net::Ls(output) => list(client, *output)?,
        Net::Create(new) => {
            let body = json!({"cidr": new.cidr, "tags": tags(&[], Some(&new.name))});
            let made: VpcView = client.ask("POST", "/v1/vpcs", Some(&body))?;
            form::out(&format!("{}\n", made.id));
            terminal::say(&format!(
                "its machines need a subnet: holm net subnet {} --cidr …",
                new.name
            ));
        }
        Net::Subnet(new) => {
            let vpc = id(client, "/v1/vpcs", "network", "vpc-", &new.network)?;
            let body = json!({
                "vpc_id": vpc, "cidr": new.cidr, "tags": tags(&[], new.name.as_deref()),
            });
            let made: SubnetView = client.ask("POST", "/v1/subnets", Some(&body))?;
            if new.public {
                let path = format!("/v1/subnets/{}", made.id);
                client.call("PATCH", &path, Some(&json!({"map_public_ip": true})))?;
            }
            form::out(&format!("{}\n", made.id));
        }
        Net::Rm(name) => {
            let subnet = id(client, "/v1/subnets", "subnet", "subnet-", &name.name);
            let path = match subnet {
                Ok(subnet) if !name.name.starts_with("vpc-") => format!("/v1/subnets/{subnet}"),
                _ => {
                    let vpc = id(client, "/v1/vpcs", "network or subnet", "vpc-", &name.name)?;
                    format!("/v1/vpcs/{vpc}")
                }
            };
            client.call("DELETE", &path, None)?;
        }
    }
    Ok(())
}

fn list(client: &Client, output: Output) -> Result<(), PlaneError> {
    let vpcs: Vec<VpcView> = client.all("/v1/vpcs", "")?;
    let subnets: Vec<SubnetView> = client.all("/v1/subnets", "")?;
    let all = json!({"networks": vpcs, "subnets": subnets});
    form::print(output, &all, || {
        let mut rows = Vec::new();
        let usual = |default: bool| if default { "default" } else { "" }.to_owned();
        for vpc in &vpcs {
            let name = or_none(vpc.name.as_ref());
            let free = String::new();
            rows.push([
                name,
                vpc.id.clone(),
                vpc.cidr.clone(),
                free,
                usual(vpc.is_default),
            ]);
            for subnet in subnets.iter().filter(|s| s.vpc_id == vpc.id) {
                rows.push([
                    format!("  {}", or_none(subnet.name.as_ref())),
                    subnet.id.clone(),
                    subnet.cidr.clone(),
                    subnet.free_addresses.to_string(),
                    usual(subnet.is_default),
                ]);
            }
        }
        form::table(["NAME", "ID", "CIDR", "FREE", ""], rows)
    });
    Ok(())
}

/// `holm sg`.
#[derive(Subcommand, Debug)]
pub enum Group {
    /// Lists security groups
    ///
    /// Example: holm sg ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Shows the rules of a security group
    ///
    /// Example: holm sg show default
    #[command(after_help = exit_code::PLANE_HELP)]
    Show(Shown),
    /// Makes a security group, which lets nothing in and everything out
    ///
    /// Example: holm sg create web --description "HTTP from everywhere"
    #[command(after_help = exit_code::PLANE_HELP)]
    Create(NewGroup),
    /// Lets something in to the machines of a security group; running ones too, at once
    ///
    /// Examples:
    ///   holm sg allow default 22
    ///   holm sg allow web 80 443 8000-8099 --from 10.0.0.0/8
    ///   holm sg allow db 5432 --from web
    ///   holm sg allow web icmp
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Allow(Allow),
    /// Takes a rule away
    ///
    /// Example: holm sg revoke web sgr-0123456789abcdef0
    #[command(after_help = exit_code::PLANE_HELP)]
    Revoke(Revoke),
    /// Removes a security group that nothing names
    ///
    /// Example: holm sg rm web
    #[command(after_help = exit_code::PLANE_HELP,
        mut_arg("name", |name| name.add(completion::groups())))]
    Rm(Name),
}

/// `holm sg show`.
#[derive(Args, Debug)]
pub struct Shown {
    /// The group
    #[arg(value_name = "GROUP", add = completion::groups())]
    pub group: String,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// `holm sg create`.
#[derive(Args, Debug)]
pub struct NewGroup {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,

    /// Its network (--net lab); the default unless given
    #[arg(long = "net", value_name = "NETWORK", add = completion::networks())]
    pub network: Option<String>,
}

/// `holm sg allow`.
#[derive(Args, Debug)]
pub struct Allow {
    /// The group
    #[arg(value_name = "GROUP", add = completion::groups())]
    pub group: String,

    /// Ports: 80, 8000-8099, 53/udp; or icmp, or all
    #[arg(value_name = "PORT[-PORT][/udp]", required = true, value_parser = ports)]
    pub ports: Vec<Ports>,

    /// From whom: addresses, or a security group (--from 10.0.0.0/8)
    #[arg(long, value_name = "CIDR|GROUP", default_value = "0.0.0.0/0")]
    pub from: String,
}

/// `holm sg revoke`.
#[derive(Args, Debug)]
pub struct Revoke {
    /// The group
    #[arg(value_name = "GROUP", add = completion::groups())]
    pub group: String,

    /// The rule, as `holm sg show` names it
    #[arg(value_name = "RULE")]
    pub rule: String,
}

/// A protocol and its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    protocol: String,
    range: Option<(u16, u16)>,
}

fn ports(text: &str) -> Result<Ports, String> {
    let wrong = || format!("{text:?} is no port: write 80, 8000-8099, 53/udp, icmp or all");
    if ["icmp", "icmpv6", "all"].contains(&text) {
        return Ok(Ports {
            protocol: text.into(),
            range: None,
        });
    }
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !["tcp", "udp"].contains(&protocol) {
        return Err(wrong());
    }
    let (from, to) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (from, to) = (number(from)?, number(to)?);
    match from <= to {
        true => Ok(Ports {
            protocol: protocol.into(),
            range: Some((from, to)),
        }),
        false => Err(wrong()),
    }
}

/// Does it, and returns the exit status.
pub fn group(command: &Group) -> u8 {
    finish(try_group(&Client::new(), command))
}

fn path(client: &Client, name: &str) -> Result<String, PlaneError> {
    let id = id(client, "/v1/security-groups", "security group", "sg-", name)?;
    Ok(format!("/v1/security-groups/{id}"))
}

fn try_group(client: &Client, command: &Group) -> Result<(), PlaneError> {
    match command {
        Group::Ls(output) => {
            let all: Vec<SecurityGroupView> = client.all("/v1/security-groups", "")?;
            form::print(*output, &all, || {
                let rows = all.iter().map(|g| {
                    let rules = g.rules.len().to_string();
                    let g = g.clone();
                    [g.name, g.id, g.vpc_id, rules, g.description]
                });
                form::table(["NAME", "ID", "NETWORK", "RULES", "DESCRIPTION"], rows)
            });
        }
        Group::Show(shown) => {
            let found: SecurityGroupView = client.get(&path(client, &shown.group)?)?;
            form::print(shown.output, &found, || show(&found));
        }
        Group::Create(new) => {
            let mut body = json!({"name": new.name, "description": new.description});
            if let Some(network) = &new.network {
                body["vpc_id"] = id(client, "/v1/vpcs", "network", "vpc-", network)?.into();
            }
            let made: SecurityGroupView = client.ask("POST", "/v1/security-groups", Some(&body))?;
            form::out(&format!("{}\n", made.id));
        }
        Group::Allow(allow) => self::allow(client, allow)?,
        Group::Revoke(revoke) => {
            let path = path(client, &revoke.group)?;
            let rule = super::client::quoted(&revoke.rule);
            client.call("DELETE", &format!("{path}/rules/{rule}"), None)?;
        }
        Group::Rm(name) => {
            client.call("DELETE", &path(client, &name.name)?, None)?;
        }
    }
    Ok(())
}

fn allow(client: &Client, allow: &Allow) -> Result<(), PlaneError> {
    let path = path(client, &allow.group)?;
    let peer = match allow.from.contains('/') {
        true => allow.from.clone(),
        false => id(
            client,
            "/v1/security-groups",
            "security group",
            "sg-",
            &allow.from,
        )?,
    };
    let rules = allow.ports.iter().map(|ports| {
        let mut rule = json!({"protocol": ports.protocol, "peer": peer});
        if let Some((from, to)) = ports.range {
            rule["from_port"] = from.into();
            rule["to_port"] = to.into();
        }
        rule
    });
    let body = json!({"rules": rules.collect::<Vec<Value>>()});
    client.call("POST", &format!("{path}/rules"), Some(&body))?;
    Ok(())
}

fn show(group: &SecurityGroupView) -> String {
    let rows = group.rules.iter().map(|rule: &RuleView| {
        let ports = match (rule.from_port, rule.to_port) {
            (Some(from), Some(to)) if from == to => from.to_string(),
            (Some(from), Some(to)) => format!("{from}-{to}"),
            _ => "all".into(),
        };
        [
            rule.id.clone(),
            format!("{:?}", rule.direction).to_lowercase(),
            rule.protocol.clone(),
            ports,
            rule.peer.clone(),
            rule.description.clone(),
        ]
    });
    let names = [
        "RULE",
        "DIRECTION",
        "PROTOCOL",
        "PORTS",
        "PEER",
        "DESCRIPTION",
    ];
    let text = form::fields(&[
        ("name", group.name.clone()),
        ("id", group.id.clone()),
        ("network", group.vpc_id.clone()),
        ("description", group.description.clone()),
    ]);
    text + &form::table(names, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_as_people_write_them() {
        let range = |text: &str| ports(text).map(|p| (p.protocol, p.range));
        assert_eq!(range("22"), Ok(("tcp".into(), Some((22, 22)))));
        assert_eq!(range("53/udp"), Ok(("udp".into(), Some((53, 53)))));
        assert_eq!(range("1-9"), Ok(("tcp".into(), Some((1, 9)))));
        assert_eq!(range("all"), Ok(("all".into(), None)));
        for bad in ["", "9-1", "65536", "22/sctp", "-", "ssh"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
