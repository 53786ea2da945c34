//! VPCs: CreateVpc, DeleteVpc, ModifyVpcAttribute.

use ipnet::Ipv4Net;
use model::{
    Claim, DhcpOptionsId, Direction, InternetGateway, Meta, NetworkAclId, Peer, Protocol, Quota,
    RouteTable, RouteTableAssociationId, RouteTableId, SecurityGroup, SecurityGroupId,
    SecurityGroupRule, SecurityGroupRuleId, Subnet, Tags, Vpc, VpcId, check_tags,
};

use crate::{Batch, Caller, Kind, Owned, Plane, Refusal};

/// A VPC to be made.
#[derive(Clone, Debug)]
pub struct NewVpc {
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// What its owner writes on it.
    pub tags: Tags,
}

/// A VPC and what each has from the beginning.
pub(crate) struct Parts {
    pub(crate) vpc: Vpc,
    pub(crate) table: RouteTable,
    group: SecurityGroup,
}

impl Parts {
    pub(crate) fn new(caller: &Caller, cidr: Ipv4Net, tags: Tags) -> Self {
        let id = VpcId::random();
        let meta = || Meta::new(caller.account.clone(), Tags::new());
        let group = SecurityGroupId::random();
        Self {
            table: RouteTable {
                id: RouteTableId::random(),
                meta: meta(),
                vpc: id.clone(),
                main: Some(RouteTableAssociationId::random()),
                routes: Vec::new(),
                associations: Vec::new(),
            },
            group: SecurityGroup {
                rules: vec![
                    all(Direction::Ingress, Peer::Group(group.clone())),
                    all(Direction::Egress, Peer::Ipv4(Ipv4Net::default())),
                ],
                id: group,
                meta: meta(),
                vpc: id.clone(),
                name: "default".into(),
                description: "default VPC security group".into(),
            },
            vpc: Vpc {
                id,
                meta: Meta::new(caller.account.clone(), tags),
                cidr,
                ipv6: None,
                is_default: false,
                dns_support: true,
                dns_hostnames: false,
                acl: NetworkAclId::random(),
                dhcp_options: DhcpOptionsId::random(),
            },
        }
    }

    pub(crate) fn create(self, batch: &mut Batch) -> Result<Vpc, Refusal> {
        let claim = Claim {
            holder: self.group.id.to_string(),
        };
        let name = crate::security_groups::claim(&self.vpc.id, &self.group.name);
        batch.create(&name, &claim)?;
        batch.create(self.group.id.as_str(), &self.group)?;
        batch.create(self.table.id.as_str(), &self.table)?;
        batch.create(self.vpc.id.as_str(), &self.vpc)?;
        Ok(self.vpc)
    }
}

/// A rule for everything.
pub(crate) fn all(direction: Direction, peer: Peer) -> SecurityGroupRule {
    SecurityGroupRule {
        id: SecurityGroupRuleId::random(),
        direction,
        protocol: Protocol::All,
        ports: None,
        peer,
        description: String::new(),
        tags: Tags::new(),
    }
}

impl Plane {
    /// Makes a VPC with its main route table and its default security group.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Quota`], the store's.
    pub async fn create_vpc(&self, caller: &Caller, new: NewVpc) -> Result<Vpc, Refusal> {
        Vpc::check_cidr(new.cidr).map_err(|e| Refusal::invalid("cidr_block", e))?;
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            self.within(&caller.account, Quota::Vpcs, 1)?;
            Parts::new(caller, new.cidr, new.tags.clone()).create(batch)
        })
        .await
    }

    /// Says whether names are served and made in a VPC; `None` leaves it.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], the store's.
    pub async fn modify_vpc(
        &self,
        caller: &Caller,
        id: &VpcId,
        dns_support: Option<bool>,
        dns_hostnames: Option<bool>,
    ) -> Result<(), Refusal> {
        self.own::<Vpc>(caller, id)?;
        self.edit::<Vpc>(id, |vpc, _| {
            vpc.dns_support = dns_support.unwrap_or(vpc.dns_support);
            vpc.dns_hostnames = dns_hostnames.unwrap_or(vpc.dns_hostnames);
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Removes a VPC that holds nothing, with what it had from the beginning.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`], the store's.
    pub async fn delete_vpc(&self, caller: &Caller, id: &VpcId) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<Vpc>(caller, id)?;
            let view = self.view();
            let holds = |by: &str| Refusal::InUse {
                kind: Kind::Vpc,
                id: id.to_string(),
                by: by.to_owned(),
            };
            if let Some(subnet) = view.filter::<Subnet>(|s| s.vpc == *id).first() {
                return Err(holds(&subnet.id));
            }
            let attached = |g: &InternetGateway| g.vpc.as_ref() == Some(id);
            if let Some(gateway) = view.filter::<InternetGateway>(attached).first() {
                return Err(holds(&gateway.id));
            }
            for table in view.filter::<RouteTable>(|t| t.vpc == *id) {
                if table.record.main.is_none() {
                    return Err(holds(&table.id));
                }
                batch.remove(&table);
            }
            for group in view.filter::<SecurityGroup>(|g| g.vpc == *id) {
                if group.record.name != "default" {
                    return Err(holds(&group.id));
                }
                batch.remove(&group);
                batch.discard::<Claim>(&crate::security_groups::claim(id, &group.record.name));
            }
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// The VPC that is meant where none is named: the account's default.
    ///
    /// # Errors
    /// [`Refusal::Missing`].
    pub fn default_vpc(&self, caller: &Caller) -> Result<Vpc, Refusal> {
        let default = |v: &Vpc| v.is_default && *v.owner() == caller.account;
        let found = self.view().filter::<Vpc>(default);
        let found = found.first().ok_or(Refusal::Missing { field: "vpc_id" })?;
        Ok(found.record.clone())
    }
}
