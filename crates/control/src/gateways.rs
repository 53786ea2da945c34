//! Internet gateways: Create-, Attach-, Detach- and DeleteInternetGateway.

use model::{
    InternetGateway, InternetGatewayId, Meta, RouteTable, RouteTarget, Tags, Vpc, VpcId, check_tags,
};

use crate::{Caller, Kind, Plane, Refusal};

impl Plane {
    /// Makes a gateway that is attached to nothing.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], the store's.
    pub async fn create_internet_gateway(
        &self,
        caller: &Caller,
        tags: Tags,
    ) -> Result<InternetGateway, Refusal> {
        check_tags(&tags).map_err(|e| Refusal::invalid("tags", e))?;
        let gateway = InternetGateway {
            id: InternetGatewayId::random(),
            meta: Meta::new(caller.account.clone(), tags),
            vpc: None,
        };
        self.transact(|batch| batch.create(gateway.id.as_str(), &gateway))
            .await?;
        Ok(gateway)
    }

    /// Attaches a gateway to a VPC, each to one only.
    ///
    /// # Errors
    /// [`Refusal::Exists`]: one of them is attached; [`Refusal::NotFound`].
    pub async fn attach_internet_gateway(
        &self,
        caller: &Caller,
        id: &InternetGatewayId,
        vpc: &VpcId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<InternetGateway>(caller, id)?;
            let network = self.own::<Vpc>(caller, vpc)?;
            let attached = |g: &InternetGateway| g.vpc.as_ref() == Some(vpc);
            let other = self.view().filter::<InternetGateway>(attached);
            if let Some(other) = other.first() {
                return Err(Refusal::Exists {
                    kind: Kind::InternetGateway,
                    name: format!("of {vpc}: {}", other.id),
                });
            }
            if let Some(other) = &found.record.vpc {
                return Err(Refusal::Exists {
                    kind: Kind::InternetGateway,
                    name: format!("{id} at {other}"),
                });
            }
            batch.unchanged(&network);
            let mut gateway = found.record.clone();
            gateway.vpc = Some(vpc.clone());
            batch.replace(&found, &gateway)
        })
        .await
    }

    /// Detaches a gateway.
    ///
    /// # Errors
    /// [`Refusal::State`]: it is not attached there; [`Refusal::NotFound`].
    pub async fn detach_internet_gateway(
        &self,
        caller: &Caller,
        id: &InternetGatewayId,
        vpc: &VpcId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<InternetGateway>(caller, id)?;
            self.own::<Vpc>(caller, vpc)?;
            if found.record.vpc.as_ref() != Some(vpc) {
                return Err(Refusal::State {
                    kind: Kind::InternetGateway,
                    id: id.to_string(),
                    state: "not attached to that VPC".into(),
                    wanted: "name the VPC that it is attached to",
                });
            }
            let mut gateway = found.record.clone();
            gateway.vpc = None;
            batch.replace(&found, &gateway)
        })
        .await
    }

    /// Removes a gateway that is attached to nothing.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`].
    pub async fn delete_internet_gateway(
        &self,
        caller: &Caller,
        id: &InternetGatewayId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<InternetGateway>(caller, id)?;
            if let Some(vpc) = &found.record.vpc {
                return Err(Refusal::InUse {
                    kind: Kind::InternetGateway,
                    id: id.to_string(),
                    by: vpc.to_string(),
                });
            }
            // Routes by it lead nowhere from now on.
            let target = RouteTarget::InternetGateway(id.clone());
            let by_it = |t: &RouteTable| t.routes.iter().any(|r| r.target == target);
            for table in self.view().filter::<RouteTable>(by_it) {
                let mut changed = table.record.clone();
                changed.routes.retain(|route| route.target != target);
                batch.replace(&table, &changed)?;
            }
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// Whether packets to the world leave a subnet: its table has a route by a
    /// gateway that is attached to its VPC.
    #[must_use]
    pub fn reaches_internet(&self, subnet: &model::Subnet) -> bool {
        let Some(table) = self.route_table_of(subnet) else {
            return false;
        };
        table.routes.iter().any(|route| {
            let RouteTarget::InternetGateway(id) = &route.target;
            let gateway = self.view().get::<InternetGateway>(id);
            route.destination.prefix_len() == 0
                && gateway.is_some_and(|g| g.record.vpc.as_ref() == Some(&subnet.vpc))
        })
    }
}
