//! Tags: CreateTags, DeleteTags on resources of any kind.

use model::{
    AllocationId, ElasticAddress, Image, ImageId, Instance, InstanceId, InternetGateway,
    InternetGatewayId, KeyPair, KeyPairId, Meta, RouteTable, RouteTableId, SecurityGroup,
    SecurityGroupId, Snapshot, SnapshotId, Subnet, SubnetId, Tags, Volume, VolumeId, Vpc, VpcId,
    check_tags,
};

use crate::{Batch, Caller, Kind, Owned, Plane, Refusal};

/// A noun with a [`Meta`].
trait Tagged: Owned + Clone {
    fn meta(&mut self) -> &mut Meta;
}

macro_rules! tagged {
    ($($type:ty, $id:ty;)*) => {
        $(impl Tagged for $type {
            fn meta(&mut self) -> &mut Meta {
                &mut self.meta
            }
        })*

        impl Plane {
            fn tag_one(
                &self,
                batch: &mut Batch,
                caller: &Caller,
                id: &str,
                change: &dyn Fn(&mut Tags),
            ) -> Result<(), Refusal> {
                $(if id.parse::<$id>().is_ok() {
                    return self.tag_as::<$type>(batch, caller, id, change);
                })*
                Err(Refusal::not_found(Kind::Resource, id))
            }
        }
    };
}

tagged! {
    ElasticAddress, AllocationId;
    Image, ImageId;
    Instance, InstanceId;
    InternetGateway, InternetGatewayId;
    KeyPair, KeyPairId;
    RouteTable, RouteTableId;
    SecurityGroup, SecurityGroupId;
    Snapshot, SnapshotId;
    Subnet, SubnetId;
    Volume, VolumeId;
    Vpc, VpcId;
}

impl Plane {
    /// Writes tags on resources, all or none.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Invalid`].
    pub async fn create_tags(
        &self,
        caller: &Caller,
        ids: &[String],
        tags: &Tags,
    ) -> Result<(), Refusal> {
        check_tags(tags).map_err(|e| Refusal::invalid("tags", e))?;
        self.tag_all(caller, ids, &|has| has.extend(tags.clone()))
            .await
    }

    /// Takes tags off resources: of each given key those with the given value,
    /// or any; with no key all.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub async fn delete_tags(
        &self,
        caller: &Caller,
        ids: &[String],
        tags: &[(String, Option<String>)],
    ) -> Result<(), Refusal> {
        let keep = |key: &str, value: &str| {
            !tags.is_empty()
                && !tags
                    .iter()
                    .any(|(wanted, of)| wanted == key && of.as_deref().is_none_or(|of| of == value))
        };
        self.tag_all(caller, ids, &|has| {
            has.retain(|key, value| keep(key, value))
        })
        .await
    }

    async fn tag_all(
        &self,
        caller: &Caller,
        ids: &[String],
        change: &(dyn Fn(&mut Tags) + Sync),
    ) -> Result<(), Refusal> {
        if ids.len() > 80 {
            let reason = "at most 80 resources at once";
            return Err(Refusal::invalid("resource_id", reason));
        }
        self.transact(|batch| {
            ids.iter()
                .try_for_each(|id| self.tag_one(batch, caller, id, change))
        })
        .await
    }

    fn tag_as<T: Tagged>(
        &self,
        batch: &mut Batch,
        caller: &Caller,
        id: &str,
        change: &dyn Fn(&mut Tags),
    ) -> Result<(), Refusal> {
        let found = self.own::<T>(caller, id)?;
        let mut record = found.record.clone();
        change(&mut record.meta().tags);
        check_tags(&record.meta().tags).map_err(|e| Refusal::invalid("tags", e))?;
        batch.replace(&found, &record)
    }
}
