//! Elastic addresses: Allocate-, Associate-, Disassociate- and ReleaseAddress.

use std::net::Ipv4Addr;

use model::{
    AddressAssociation, AllocationId, AssociationId, Claim, ElasticAddress, Instance, InstanceId,
    InstanceState, Meta, Quota, Subnet, Tags, check_tags,
};
use store::Found;

use crate::subnets::public;
use crate::{Batch, Caller, Kind, Plane, Refusal};

impl Plane {
    /// Takes an address of the public pool for an account to keep.
    ///
    /// # Errors
    /// [`Refusal::Quota`], [`Refusal::NoAddress`], [`Refusal::Invalid`].
    pub async fn allocate_address(
        &self,
        caller: &Caller,
        tags: Tags,
    ) -> Result<ElasticAddress, Refusal> {
        check_tags(&tags).map_err(|e| Refusal::invalid("tags", e))?;
        let pool = self.site()?.public_pool;
        let _counting = self.counting().await;
        self.transact(|batch| {
            self.within(&caller.account, Quota::Addresses, 1)?;
            let id = AllocationId::random();
            let public_ip = self.take_public(batch, pool, id.as_str(), &mut Vec::new())?;
            let address = ElasticAddress {
                meta: Meta::new(caller.account.clone(), tags.clone()),
                public_ip,
                association: None,
                id,
            };
            batch.create(address.id.as_str(), &address)?;
            Ok(address)
        })
        .await
    }

    /// Gives an address to the first card of an instance, in place of what it
    /// has. `again`: also if another instance has it.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::State`], [`Refusal::NotFound`].
    pub async fn associate_address(
        &self,
        caller: &Caller,
        address: &AllocationId,
        instance: &InstanceId,
        again: bool,
    ) -> Result<AssociationId, Refusal> {
        self.transact(|batch| {
            let found = self.own::<ElasticAddress>(caller, address)?;
            let target = self.own::<Instance>(caller, instance)?;
            let gone = [InstanceState::ShuttingDown, InstanceState::Terminated];
            if gone.contains(&target.record.state) {
                return Err(Refusal::State {
                    kind: Kind::Instance,
                    id: instance.to_string(),
                    state: target.record.state.name().into(),
                    wanted: "name one that is not terminated",
                });
            }
            match &found.record.association {
                Some(is) if is.instance == *instance => return Ok(is.id.clone()),
                Some(is) if !again => {
                    return Err(Refusal::Exists {
                        kind: Kind::Association,
                        name: format!("{} of {} and {address}", is.id, is.instance),
                    });
                }
                Some(is) => self.take_back(batch, &is.instance, found.record.public_ip)?,
                None => {}
            }
            let mut changed = target.record.clone();
            let card = changed.interfaces.first_mut();
            let card = card.ok_or_else(|| Refusal::not_found(Kind::Interface, instance))?;
            if let Some(former) = card.public_ip.replace(found.record.public_ip) {
                self.let_go(batch, former)?;
            }
            let association = AddressAssociation {
                id: AssociationId::random(),
                instance: instance.clone(),
                interface: card.id.clone(),
            };
            let id = association.id.clone();
            batch.replace(&target, &changed)?;
            let mut address = found.record.clone();
            address.association = Some(association);
            batch.replace(&found, &address)?;
            Ok(id)
        })
        .await
    }

    /// Takes an address away from the instance that has it, which gets another
    /// one if its subnet gives out public addresses.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub async fn disassociate_address(
        &self,
        caller: &Caller,
        id: &AssociationId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let of = |a: &ElasticAddress| a.association.as_ref().is_some_and(|is| is.id == *id);
            let all = self.view().filter::<ElasticAddress>(of);
            let own = all
                .into_iter()
                .find(|found| found.record.meta.account == caller.account);
            let found = own.ok_or_else(|| Refusal::not_found(Kind::Association, id))?;
            let mut address = found.record.clone();
            if let Some(is) = address.association.take() {
                self.take_back(batch, &is.instance, address.public_ip)?;
            }
            batch.replace(&found, &address)
        })
        .await
    }

    /// Gives an address that no instance has back to the pool.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`].
    pub async fn release_address(&self, caller: &Caller, id: &AllocationId) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<ElasticAddress>(caller, id)?;
            if let Some(is) = &found.record.association {
                return Err(Refusal::InUse {
                    kind: Kind::Address,
                    id: found.record.public_ip.to_string(),
                    by: is.instance.to_string(),
                });
            }
            batch.discard::<Claim>(&public(found.record.public_ip));
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// The elastic address that this is.
    #[must_use]
    pub fn elastic_address(&self, ip: Ipv4Addr) -> Option<std::sync::Arc<Found<ElasticAddress>>> {
        let claim = self.view().get::<Claim>(public(ip))?;
        self.view().get::<ElasticAddress>(&claim.record.holder)
    }

    /// An instance loses an address, and gets one of its own where its subnet
    /// gives them out.
    fn take_back(
        &self,
        batch: &mut Batch,
        instance: &InstanceId,
        ip: Ipv4Addr,
    ) -> Result<(), Refusal> {
        let Some(found) = self.view().get::<Instance>(instance) else {
            return Ok(());
        };
        let mut changed = found.record.clone();
        let card = changed.interfaces.first_mut();
        let Some(card) = card.filter(|card| card.public_ip == Some(ip)) else {
            return Ok(());
        };
        let subnet = self.view().get::<Subnet>(&card.subnet);
        card.public_ip = match subnet.is_some_and(|subnet| subnet.record.map_public_ip) {
            true => {
                let pool = self.site()?.public_pool;
                Some(self.take_public(batch, pool, instance.as_str(), &mut Vec::new())?)
            }
            false => None,
        };
        batch.replace(&found, &changed)
    }

    /// An instance does not have this address any more: it is free, or its
    /// owner's who keeps it.
    pub(crate) fn let_go(&self, batch: &mut Batch, ip: Ipv4Addr) -> Result<(), Refusal> {
        let Some(kept) = self.elastic_address(ip) else {
            batch.discard::<Claim>(&public(ip));
            return Ok(());
        };
        let mut address = kept.record.clone();
        address.association = None;
        batch.replace(&kept, &address)
    }
}
