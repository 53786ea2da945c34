//! Security groups: Create-, DeleteSecurityGroup, Authorize- and
//! RevokeSecurityGroupIngress and -Egress, ModifySecurityGroupRules.

use ipnet::Ipv4Net;
use model::{
    Claim, Direction, Instance, Invalid, Meta, Peer, Quota, SecurityGroup, SecurityGroupId,
    SecurityGroupRule, SecurityGroupRuleId, Tags, Vpc, VpcId, check_tags,
};

use crate::{Caller, Kind, Plane, Refusal};

/// A security group to be made.
#[derive(Clone, Debug)]
pub struct NewSecurityGroup {
    /// Its network; the default one if missing.
    pub vpc: Option<VpcId>,
    /// Its name.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// What its owner writes on it.
    pub tags: Tags,
}

/// The claim on a group's name.
pub(crate) fn claim(vpc: &VpcId, name: &str) -> String {
    // Keys are printable ASCII without slashes of their own.
    let name: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("group/{vpc}/{name}")
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let refused = |reason| {
        Err(Refusal::invalid(
            "group_name",
            Invalid::Name {
                what: "security group name",
                text: Invalid::shorten(name),
                reason,
            },
        ))
    };
    if !(1..=255).contains(&name.chars().count()) {
        return refused("it has 1 to 255 characters");
    }
    if name.starts_with("sg-") {
        return refused("names that begin with sg- are reserved");
    }
    let good = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    match name.chars().all(good) {
        true => Ok(()),
        false => refused("it has letters, digits, spaces and ._-:/()#,@[]+=&;{}!$* only"),
    }
}

impl Plane {
    /// Makes a group that lets everything out and nothing in.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::Invalid`], [`Refusal::Quota`].
    pub async fn create_security_group(
        &self,
        caller: &Caller,
        new: NewSecurityGroup,
    ) -> Result<SecurityGroup, Refusal> {
        check_name(&new.name)?;
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        if new.description.chars().count() > 255 {
            let reason = "a description has at most 255 characters";
            return Err(Refusal::invalid("group_description", reason));
        }
        let _counting = self.counting().await;
        self.transact(|batch| {
            let vpc = match &new.vpc {
                Some(id) => self.own::<Vpc>(caller, id)?.record.id.clone(),
                None => self.default_vpc(caller)?.id,
            };
            let name = claim(&vpc, &new.name);
            if self.view().get::<Claim>(&name).is_some() {
                return Err(Refusal::Exists {
                    kind: Kind::SecurityGroup,
                    name: format!("{} in {vpc}", new.name),
                });
            }
            self.within(&caller.account, Quota::SecurityGroups, 1)?;
            let group = SecurityGroup {
                id: SecurityGroupId::random(),
                meta: Meta::new(caller.account.clone(), new.tags.clone()),
                vpc: vpc.clone(),
                name: new.name.clone(),
                description: new.description.clone(),
                rules: vec![crate::vpcs::all(
                    Direction::Egress,
                    Peer::Ipv4(Ipv4Net::default()),
                )],
            };
            let holder = group.id.to_string();
            batch.present::<Vpc>(vpc.as_str());
            batch.create(&name, &Claim { holder })?;
            batch.create(group.id.as_str(), &group)?;
            Ok(group)
        })
        .await
    }

    /// Removes a group that no instance and no other group's rule names.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotAllowed`]: it is a VPC's default.
    pub async fn delete_security_group(
        &self,
        caller: &Caller,
        id: &SecurityGroupId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<SecurityGroup>(caller, id)?;
            if found.record.name == "default" {
                return Err(Refusal::NotAllowed(format!(
                    "{id} is the default group of {}, and goes with it",
                    found.record.vpc
                )));
            }
            let member = |i: &Instance| {
                !i.is_terminated() && i.interfaces.iter().any(|card| card.groups.contains(id))
            };
            let instance = self.view().filter::<Instance>(member);
            let names = |g: &SecurityGroup| {
                g.id != *id && g.rules.iter().any(|r| r.peer == Peer::Group(id.clone()))
            };
            let group = self.view().filter::<SecurityGroup>(names);
            let by = instance.first().map(|found| found.id.clone());
            if let Some(by) = by.or_else(|| group.first().map(|found| found.id.clone())) {
                return Err(Refusal::InUse {
                    kind: Kind::SecurityGroup,
                    id: id.to_string(),
                    by,
                });
            }
            batch.remove(&found);
            batch.discard::<Claim>(&claim(&found.record.vpc, &found.record.name));
            Ok(())
        })
        .await
    }

    /// Adds rules to a group, all or none; they, with their ids.
    ///
    /// # Errors
    /// [`Refusal::Exists`]: one is there already; [`Refusal::Invalid`],
    /// [`Refusal::Quota`], [`Refusal::NotFound`].
    pub async fn authorize(
        &self,
        caller: &Caller,
        id: &SecurityGroupId,
        rules: Vec<SecurityGroupRule>,
    ) -> Result<Vec<SecurityGroupRule>, Refusal> {
        for rule in &rules {
            check_rule(rule)?;
        }
        self.transact(|batch| {
            let found = self.own::<SecurityGroup>(caller, id)?;
            let mut group = found.record.clone();
            for rule in &rules {
                if let Peer::Group(peer) = &rule.peer {
                    let peer = self.own::<SecurityGroup>(caller, peer)?;
                    if peer.record.vpc != group.vpc {
                        return Err(Refusal::not_found(Kind::SecurityGroup, &peer.id));
                    }
                    batch.present::<SecurityGroup>(&peer.id);
                }
                if group.rules.iter().any(|other| other.is_same(rule)) {
                    return Err(Refusal::Exists {
                        kind: Kind::SecurityGroupRule,
                        name: describe(rule),
                    });
                }
                group.rules.push(rule.clone());
            }
            for direction in [Direction::Ingress, Direction::Egress] {
                let of = |g: &SecurityGroup| {
                    let count = g.rules.iter().filter(|r| r.direction == direction).count();
                    u64::try_from(count).unwrap_or(u64::MAX)
                };
                let (used, now) = (of(&found.record), of(&group));
                if now > used {
                    let quota = Quota::RulesPerGroup;
                    self.within_used(&caller.account, quota, used, now - used)?;
                }
            }
            batch.replace(&found, &group)?;
            Ok(rules.clone())
        })
        .await
    }

    /// Removes rules of a group: those with these ids, and those that let the
    /// same through as these.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]: the group has no such rule.
    pub async fn revoke(
        &self,
        caller: &Caller,
        id: &SecurityGroupId,
        ids: &[SecurityGroupRuleId],
        same: &[SecurityGroupRule],
    ) -> Result<Vec<SecurityGroupRule>, Refusal> {
        self.transact(|batch| {
            let found = self.own::<SecurityGroup>(caller, id)?;
            let mut group = found.record.clone();
            let mut revoked = Vec::new();
            let mut take = |wanted: &dyn Fn(&SecurityGroupRule) -> bool, name: String| {
                let index = group.rules.iter().position(wanted);
                let index =
                    index.ok_or_else(|| Refusal::not_found(Kind::SecurityGroupRule, name))?;
                revoked.push(group.rules.remove(index));
                Ok::<_, Refusal>(())
            };
            for id in ids {
                take(&|rule| rule.id == *id, id.to_string())?;
            }
            for other in same {
                take(&|rule| rule.is_same(other), describe(other))?;
            }
            batch.replace(&found, &group)?;
            Ok(revoked)
        })
        .await
    }

    /// Changes a rule of a group in place; its id and tags stay.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Invalid`].
    pub async fn modify_rule(
        &self,
        caller: &Caller,
        id: &SecurityGroupId,
        rule: SecurityGroupRule,
    ) -> Result<(), Refusal> {
        check_rule(&rule)?;
        self.transact(|batch| {
            let found = self.own::<SecurityGroup>(caller, id)?;
            let mut group = found.record.clone();
            let old = group.rules.iter_mut().find(|old| old.id == rule.id);
            let old = old.ok_or_else(|| Refusal::not_found(Kind::SecurityGroupRule, &rule.id))?;
            *old = SecurityGroupRule {
                tags: old.tags.clone(),
                direction: old.direction,
                ..rule.clone()
            };
            batch.replace(&found, &group)
        })
        .await
    }
}

fn check_rule(rule: &SecurityGroupRule) -> Result<(), Refusal> {
    let refused = |e: Invalid| Refusal::invalid("ip_permissions", e);
    if let Some(ports) = rule.ports {
        ports.check(rule.protocol).map_err(refused)?;
    }
    if rule.description.chars().count() > 255 {
        return Err(refused(Invalid::Rule(
            "its description has more than 255 characters",
        )));
    }
    let whole = match &rule.peer {
        Peer::Ipv4(net) => net.trunc() == *net,
        Peer::Ipv6(net) => net.trunc() == *net,
        Peer::Group(_) => true,
    };
    match whole {
        true => Ok(()),
        false => Err(refused(Invalid::Rule(
            "there are bits set after the prefix of its CIDR",
        ))),
    }
}

fn describe(rule: &SecurityGroupRule) -> String {
    let peer = match &rule.peer {
        Peer::Ipv4(net) => net.to_string(),
        Peer::Ipv6(net) => net.to_string(),
        Peer::Group(id) => id.to_string(),
    };
    let ports = match rule.ports {
        Some(ports) => format!("from port: {}, to port: {}", ports.from, ports.to),
        None => "ALL".into(),
    };
    format!("peer: {peer}, {}, {ports}", rule.protocol.name())
}
