//! What a new state directory, and each account, has from the beginning.

use model::{Account, InternetGateway, Meta, Route, RouteTarget, Site, Subnet, Tags, Vpc};

use crate::vpcs::Parts;
use crate::{Batch, Caller, Plane, Refusal};

impl Plane {
    /// Makes the site, its account and the default network, if they are not
    /// there.
    pub(crate) async fn bootstrap(&self) -> Result<(), Refusal> {
        self.transact(|batch| {
            if self.view().get::<Site>(Site::ID).is_some() {
                return Ok(());
            }
            let site = Site::new();
            let account = Account {
                id: site.account.clone(),
                name: "default".into(),
                created: site.created,
            };
            batch.create(Site::ID, &site)?;
            batch.create(account.id.as_str(), &account)?;
            default_network(batch, &site, &Caller::owner(account.id)).map(drop)
        })
        .await
    }

    /// Makes the account's default network (CreateDefaultVpc).
    ///
    /// # Errors
    /// [`Refusal::Exists`].
    pub async fn create_default_vpc(&self, caller: &Caller) -> Result<Vpc, Refusal> {
        let site = self.site()?;
        self.transact(|batch| {
            let found = self
                .view()
                .filter::<Vpc>(|v| v.is_default && v.meta.account == caller.account);
            if let Some(vpc) = found.first() {
                return Err(Refusal::Exists {
                    kind: crate::Kind::Vpc,
                    name: format!("that is the default: {}", vpc.id),
                });
            }
            default_network(batch, &site, caller)
        })
        .await
    }
}

/// 172.31.0.0/16 with one subnet, a way to the world, and names, as in EC2.
fn default_network(batch: &mut Batch, site: &Site, caller: &Caller) -> Result<Vpc, Refusal> {
    let wrong = |_| Refusal::invalid("cidr", "the default network");
    let cidr = "172.31.0.0/16".parse().map_err(wrong)?;
    let mut parts = Parts::new(caller, cidr, Tags::new());
    parts.vpc.is_default = true;
    parts.vpc.dns_hostnames = true;
    let gateway = InternetGateway {
        id: model::InternetGatewayId::random(),
        meta: Meta::new(caller.account.clone(), Tags::new()),
        vpc: Some(parts.vpc.id.clone()),
    };
    parts.table.routes.push(Route {
        destination: "0.0.0.0/0".parse().map_err(wrong)?,
        target: RouteTarget::InternetGateway(gateway.id.clone()),
    });
    let subnet = Subnet {
        id: model::SubnetId::random(),
        meta: Meta::new(caller.account.clone(), Tags::new()),
        vpc: parts.vpc.id.clone(),
        cidr: "172.31.0.0/20".parse().map_err(wrong)?,
        ipv6: None,
        zone: site.zones.first().cloned().unwrap_or_default(),
        is_default: true,
        map_public_ip: true,
    };
    batch.create(gateway.id.as_str(), &gateway)?;
    batch.create(subnet.id.as_str(), &subnet)?;
    parts.create(batch)
}
