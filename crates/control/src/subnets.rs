//! Subnets: CreateSubnet, DeleteSubnet, ModifySubnetAttribute; and their
//! addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use model::{
    Claim, Instance, Meta, Quota, RouteTable, Subnet, SubnetId, Tags, Vpc, VpcId, check_tags,
};

use crate::{Batch, Caller, Kind, Plane, Refusal};

/// A subnet to be made.
#[derive(Clone, Debug)]
pub struct NewSubnet {
    /// Its network.
    pub vpc: VpcId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Its zone; the first if missing.
    pub zone: Option<String>,
    /// What its owner writes on it.
    pub tags: Tags,
}

/// The claim on an address of a subnet.
pub(crate) fn address(subnet: &SubnetId, address: Ipv4Addr) -> String {
    format!("address/{subnet}/{address}")
}

/// The claim on an address of the public pool.
pub(crate) fn public(address: Ipv4Addr) -> String {
    format!("public/{address}")
}

impl Plane {
    /// Makes a subnet.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Overlap`], [`Refusal::Quota`],
    /// [`Refusal::NotFound`], the store's.
    pub async fn create_subnet(&self, caller: &Caller, new: NewSubnet) -> Result<Subnet, Refusal> {
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        let site = self.site()?;
        let zone = new.zone.clone().or_else(|| site.zones.first().cloned());
        let zone = zone.filter(|zone| site.zones.contains(zone));
        let zone = zone.ok_or_else(|| {
            Refusal::not_found(Kind::Zone, new.zone.as_deref().unwrap_or_default())
        })?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            let vpc = self.own::<Vpc>(caller, &new.vpc)?;
            Subnet::check_cidr(new.cidr, vpc.record.cidr)
                .map_err(|e| Refusal::invalid("cidr_block", e))?;
            let others = self.view().filter::<Subnet>(|s| s.vpc == new.vpc);
            for other in &others {
                let other = &other.record;
                if other.cidr.contains(&new.cidr) || new.cidr.contains(&other.cidr) {
                    let other = format!("{} of {}", other.cidr, other.id);
                    return Err(Refusal::Overlap(new.cidr.to_string(), other));
                }
            }
            let used = u64::try_from(others.len()).unwrap_or(u64::MAX);
            self.within_used(&caller.account, Quota::SubnetsPerVpc, used, 1)?;
            let subnet = Subnet {
                id: SubnetId::random(),
                meta: Meta::new(caller.account.clone(), new.tags.clone()),
                vpc: new.vpc.clone(),
                cidr: new.cidr,
                ipv6: None,
                zone: zone.clone(),
                is_default: false,
                map_public_ip: false,
            };
            batch.unchanged(&vpc);
            batch.create(subnet.id.as_str(), &subnet)?;
            Ok(subnet)
        })
        .await
    }

    /// Says whether instances of a subnet get a public address.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], the store's.
    pub async fn modify_subnet(
        &self,
        caller: &Caller,
        id: &SubnetId,
        map_public_ip: bool,
    ) -> Result<(), Refusal> {
        self.own::<Subnet>(caller, id)?;
        self.edit::<Subnet>(id, |subnet, _| {
            subnet.map_public_ip = map_public_ip;
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Removes a subnet in which nothing is.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`], the store's.
    pub async fn delete_subnet(&self, caller: &Caller, id: &SubnetId) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<Subnet>(caller, id)?;
            let inside = |i: &Instance| {
                !i.is_terminated() && i.interfaces.iter().any(|card| card.subnet == *id)
            };
            if let Some(instance) = self.view().filter::<Instance>(inside).first() {
                return Err(Refusal::InUse {
                    kind: Kind::Subnet,
                    id: id.to_string(),
                    by: instance.id.clone(),
                });
            }
            let uses = |t: &RouteTable| t.associations.iter().any(|a| a.subnet == *id);
            for table in self.view().filter::<RouteTable>(uses) {
                let mut changed = table.record.clone();
                changed.associations.retain(|a| a.subnet != *id);
                batch.replace(&table, &changed)?;
            }
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// The subnet that is meant where none is named: the default's.
    ///
    /// # Errors
    /// [`Refusal::Missing`].
    pub fn default_subnet(&self, caller: &Caller, zone: Option<&str>) -> Result<Subnet, Refusal> {
        let default = |s: &Subnet| {
            s.is_default
                && s.meta.account == caller.account
                && zone.is_none_or(|zone| s.zone == zone)
        };
        let found = self.view().filter::<Subnet>(default);
        let found = found.first();
        let found = found.ok_or(Refusal::Missing { field: "subnet_id" })?;
        Ok(found.record.clone())
    }

    /// Addresses of a subnet that are free (`AvailableIpAddressCount`).
    #[must_use]
    pub fn free_addresses(&self, subnet: &Subnet) -> u32 {
        let taken = self
            .view()
            .starting::<Claim>(&format!("address/{}/", subnet.id));
        let taken = u32::try_from(taken.len()).unwrap_or(u32::MAX);
        subnet.assignable().saturating_sub(taken)
    }

    /// The table by which a subnet's packets go.
    #[must_use]
    pub fn route_table_of(&self, subnet: &Subnet) -> Option<RouteTable> {
        let tables = self
            .view()
            .filter::<RouteTable>(|table| table.vpc == subnet.vpc);
        let named = tables.iter().find(|table| {
            let associations = &table.record.associations;
            associations.iter().any(|a| a.subnet == subnet.id)
        });
        let main = || tables.iter().find(|table| table.record.main.is_some());
        named.or_else(main).map(|found| found.record.clone())
    }

    /// Takes addresses of a subnet: the one that is wanted, or free ones.
    pub(crate) fn take_address(
        &self,
        batch: &mut Batch,
        subnet: &Subnet,
        wanted: Option<Ipv4Addr>,
        holder: &str,
        taken: &mut Vec<Ipv4Addr>,
    ) -> Result<Ipv4Addr, Refusal> {
        let is_free = |candidate: Ipv4Addr, taken: &[Ipv4Addr]| {
            let claim = address(&subnet.id, candidate);
            !taken.contains(&candidate) && self.view().get::<Claim>(claim).is_none()
        };
        let chosen = match wanted {
            Some(wanted) if !subnet.is_assignable(wanted) => {
                return Err(Refusal::invalid(
                    "private_ip_address",
                    format!("{wanted} is no address for an instance of {}", subnet.cidr),
                ));
            }
            Some(wanted) if !is_free(wanted, taken) => {
                return Err(Refusal::InUse {
                    kind: Kind::Interface,
                    id: wanted.to_string(),
                    by: "another instance".into(),
                });
            }
            Some(wanted) => wanted,
            None => self
                .free_address(subnet.id.as_str(), subnet.cidr, |candidate| {
                    subnet.is_assignable(candidate) && is_free(candidate, taken)
                })
                .ok_or_else(|| Refusal::NoAddress(format!("the subnet {}", subnet.id)))?,
        };
        taken.push(chosen);
        let holder = Claim {
            holder: holder.to_owned(),
        };
        batch.create(&address(&subnet.id, chosen), &holder)?;
        Ok(chosen)
    }

    /// Takes an address of the public pool.
    pub(crate) fn take_public(
        &self,
        batch: &mut Batch,
        pool: Ipv4Net,
        holder: &str,
        taken: &mut Vec<Ipv4Addr>,
    ) -> Result<Ipv4Addr, Refusal> {
        // The first addresses of a pool would be mistaken for its network.
        let second = u32::from(pool.network()).saturating_add(1);
        let usable = |a: Ipv4Addr| u32::from(a) > second && a != pool.broadcast();
        let is_free = |candidate: Ipv4Addr| {
            usable(candidate)
                && !taken.contains(&candidate)
                && self.view().get::<Claim>(public(candidate)).is_none()
        };
        let chosen = self
            .free_address("public", pool, is_free)
            .ok_or_else(|| Refusal::NoAddress(format!("the public pool {pool}")))?;
        taken.push(chosen);
        let holder = Claim {
            holder: holder.to_owned(),
        };
        batch.create(&public(chosen), &holder)?;
        Ok(chosen)
    }
}
