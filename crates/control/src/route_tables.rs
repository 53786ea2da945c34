//! Route tables: Create-, DeleteRouteTable, Create-, Replace-, DeleteRoute,
//! Associate-, DisassociateRouteTable, ReplaceRouteTableAssociation.

use ipnet::IpNet;
use model::{
    Association, InternetGateway, Meta, Route, RouteTable, RouteTableAssociationId, RouteTableId,
    RouteTarget, Subnet, SubnetId, Tags, Vpc, VpcId, check_tags,
};

use crate::{Caller, Kind, Plane, Refusal, Token};

impl Plane {
    /// Makes a route table.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Invalid`], the store's.
    pub async fn create_route_table(
        &self,
        caller: &Caller,
        vpc: &VpcId,
        tags: Tags,
    ) -> Result<RouteTable, Refusal> {
        self.create_route_table_once(caller, vpc, tags, None).await
    }

    /// Makes a route table, with the same token one only.
    ///
    /// # Errors
    /// As [`Self::create_route_table`]; [`Refusal::TokenMismatch`].
    pub async fn create_route_table_once(
        &self,
        caller: &Caller,
        vpc: &VpcId,
        tags: Tags,
        token: Option<&Token>,
    ) -> Result<RouteTable, Refusal> {
        check_tags(&tags).map_err(|e| Refusal::invalid("tags", e))?;
        self.transact(|batch| {
            if let Some(made) = self.done(caller, "CreateRouteTable", token)? {
                let id = made.first().map_or("", String::as_str);
                return Ok(self.own::<RouteTable>(caller, id)?.record.clone());
            }
            let network = self.own::<Vpc>(caller, vpc)?;
            let table = RouteTable {
                id: RouteTableId::random(),
                meta: Meta::new(caller.account.clone(), tags.clone()),
                vpc: vpc.clone(),
                main: None,
                routes: Vec::new(),
                associations: Vec::new(),
            };
            batch.unchanged(&network);
            batch.create(table.id.as_str(), &table)?;
            let made = vec![table.id.to_string()];
            batch.note(caller, "CreateRouteTable", token, made)?;
            Ok(table)
        })
        .await
    }

    /// Removes a route table that no subnet uses.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`], the store's.
    pub async fn delete_route_table(
        &self,
        caller: &Caller,
        id: &RouteTableId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<RouteTable>(caller, id)?;
            let user = found.record.associations.first();
            let user = user.map(|association| association.subnet.to_string());
            let main = found
                .record
                .main
                .as_ref()
                .map(|_| found.record.vpc.to_string());
            if let Some(by) = main.or(user) {
                return Err(Refusal::InUse {
                    kind: Kind::RouteTable,
                    id: id.to_string(),
                    by,
                });
            }
            batch.remove(&found);
            Ok(())
        })
        .await
    }

    /// Adds a route, or with `replace` changes one that is there.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::NotFound`], [`Refusal::Invalid`].
    pub async fn put_route(
        &self,
        caller: &Caller,
        id: &RouteTableId,
        route: Route,
        replace: bool,
    ) -> Result<(), Refusal> {
        if route.destination.trunc() != route.destination {
            let reason = "there are bits set after the prefix";
            return Err(Refusal::invalid("destination_cidr_block", reason));
        }
        self.transact(|batch| {
            let found = self.own::<RouteTable>(caller, id)?;
            let RouteTarget::InternetGateway(gateway) = &route.target;
            let gateway = self.own::<InternetGateway>(caller, gateway)?;
            if gateway.record.vpc.as_ref() != Some(&found.record.vpc) {
                return Err(Refusal::invalid(
                    "gateway_id",
                    format!("{} is not attached to {}", gateway.id, found.record.vpc),
                ));
            }
            let mut table = found.record.clone();
            let old = table
                .routes
                .iter_mut()
                .find(|r| r.destination == route.destination);
            match (old, replace) {
                (Some(old), true) => *old = route.clone(),
                (None, false) => table.routes.push(route.clone()),
                (Some(_), false) => {
                    return Err(Refusal::Exists {
                        kind: Kind::Route,
                        name: route.destination.to_string(),
                    });
                }
                (None, true) => {
                    return Err(Refusal::not_found(
                        Kind::Route,
                        route.destination.to_string(),
                    ));
                }
            }
            batch.unchanged(&gateway);
            batch.replace(&found, &table)
        })
        .await
    }

    /// Removes a route.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], the store's.
    pub async fn delete_route(
        &self,
        caller: &Caller,
        id: &RouteTableId,
        destination: IpNet,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<RouteTable>(caller, id)?;
            let mut table = found.record.clone();
            table.routes.retain(|r| r.destination != destination);
            if table.routes.len() == found.record.routes.len() {
                return Err(Refusal::not_found(Kind::Route, destination.to_string()));
            }
            batch.replace(&found, &table)
        })
        .await
    }

    /// Has a subnet use a route table; the association's id.
    ///
    /// # Errors
    /// [`Refusal::Exists`]: it uses another; [`Refusal::NotFound`],
    /// [`Refusal::Invalid`]: they are of different VPCs.
    pub async fn associate_route_table(
        &self,
        caller: &Caller,
        id: &RouteTableId,
        subnet: &SubnetId,
    ) -> Result<RouteTableAssociationId, Refusal> {
        self.transact(|batch| {
            let found = self.own::<RouteTable>(caller, id)?;
            let network = self.own::<Subnet>(caller, subnet)?;
            if network.record.vpc != found.record.vpc {
                return Err(Refusal::invalid(
                    "subnet_id",
                    format!("{subnet} is not in {}", found.record.vpc),
                ));
            }
            let uses = |t: &RouteTable| t.associations.iter().any(|a| a.subnet == *subnet);
            if let Some(other) = self.view().filter::<RouteTable>(uses).first() {
                let association = other.record.associations.iter();
                let same = association.clone().find(|a| a.subnet == *subnet);
                return match same.filter(|_| other.id == found.id) {
                    Some(same) => Ok(same.id.clone()),
                    None => Err(Refusal::Exists {
                        kind: Kind::Association,
                        name: format!("of {subnet} and {}", other.id),
                    }),
                };
            }
            let association = RouteTableAssociationId::random();
            let mut table = found.record.clone();
            table.associations.push(Association {
                id: association.clone(),
                subnet: subnet.clone(),
            });
            batch.unchanged(&network);
            batch.replace(&found, &table)?;
            Ok(association)
        })
        .await
    }

    /// Ends the use of a route table by a subnet.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]; [`Refusal::Invalid`]: it is that of a main table.
    pub async fn disassociate_route_table(
        &self,
        caller: &Caller,
        association: &RouteTableAssociationId,
    ) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.associated(caller, association)?;
            let mut table = found.record.clone();
            if table.main.as_ref() == Some(association) {
                let reason = "a VPC's main association is replaced, not removed";
                return Err(Refusal::invalid("association_id", reason));
            }
            table.associations.retain(|a| a.id != *association);
            batch.replace(&found, &table)
        })
        .await
    }

    /// Has the subnet of an association, or the VPC of a main one, use another
    /// table; the new association's id.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Invalid`].
    pub async fn replace_route_table_association(
        &self,
        caller: &Caller,
        association: &RouteTableAssociationId,
        id: &RouteTableId,
    ) -> Result<RouteTableAssociationId, Refusal> {
        self.transact(|batch| {
            let from = self.associated(caller, association)?;
            let to = self.own::<RouteTable>(caller, id)?;
            if from.record.vpc != to.record.vpc {
                let reason = "the table is of another VPC";
                return Err(Refusal::invalid("route_table_id", reason));
            }
            if from.id == to.id {
                return Ok(association.clone());
            }
            let fresh = RouteTableAssociationId::random();
            let (mut old, mut new) = (from.record.clone(), to.record.clone());
            if old.main.as_ref() == Some(association) {
                old.main = None;
                new.main = Some(fresh.clone());
            } else {
                let moved = old.associations.iter().position(|a| a.id == *association);
                if let Some(index) = moved {
                    let subnet = old.associations.remove(index).subnet;
                    new.associations.push(Association {
                        id: fresh.clone(),
                        subnet,
                    });
                }
            }
            batch.replace(&from, &old)?;
            batch.replace(&to, &new)?;
            Ok(fresh)
        })
        .await
    }

    fn associated(
        &self,
        caller: &Caller,
        association: &RouteTableAssociationId,
    ) -> Result<std::sync::Arc<store::Found<RouteTable>>, Refusal> {
        let has = |t: &RouteTable| {
            t.meta.account == caller.account
                && (t.main.as_ref() == Some(association)
                    || t.associations.iter().any(|a| a.id == *association))
        };
        let found = self.view().filter::<RouteTable>(has).into_iter().next();
        found.ok_or_else(|| Refusal::not_found(Kind::Association, association))
    }
}
