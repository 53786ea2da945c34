//! One action that is asked for, and what handlers ask of it.

use control::{Caller, Kind, Plane, Refusal, Token};
use model::{AccountId, Instance, SecurityGroup, SecurityGroupId, VpcId};

use crate::door::Door;
use crate::error::Error;
use crate::facts::Action;
use crate::parameters::Parameters;

/// Domain of the names that instances have in their networks.
const DOMAIN: &str = "ec2.internal";

/// One action that is asked for, with what was sent for it.
pub struct Call<'a> {
    /// Who answers.
    pub door: &'a Door,
    /// Who asks.
    pub caller: Caller,
    /// What was sent.
    pub parameters: Parameters,
    /// What the action is.
    pub action: &'static Action,
    /// The host that the client addressed.
    pub host: String,
}

impl Call<'_> {
    /// The operations on nouns.
    #[must_use]
    pub fn plane(&self) -> &Plane {
        self.door.plane()
    }

    /// Ends a call that only asks whether it would succeed; handlers call it
    /// after they read all parameters and before they change anything.
    ///
    /// # Errors
    /// `DryRunOperation`.
    pub fn dry_run(&self) -> Result<(), Error> {
        match self.parameters.boolean("DryRun")? {
            Some(true) => Err(Error::dry_run()),
            _ => Ok(()),
        }
    }

    /// Refuses values of a parameter that Holm does not support.
    ///
    /// # Errors
    /// `UnsupportedOperation`.
    pub fn only(&self, name: &str, allowed: &[&str]) -> Result<(), Error> {
        only(&self.parameters, name, allowed)
    }

    /// The client token, with a digest of the request that it came with.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn token(&self) -> Result<Option<Token>, Error> {
        let Some(token) = self.parameters.text("ClientToken") else {
            return Ok(None);
        };
        let mut leaves = self.parameters.leaves();
        leaves.retain(|(name, _)| name != "ClientToken" && name != "DryRun");
        let leaves = leaves.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        Ok(Some(Token::new(token, leaves)?))
    }

    /// The accounts that a list such as `Owner` names; `None`: it is empty.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn owners(&self, list: &str) -> Result<Option<Vec<AccountId>>, Error> {
        let mut accounts = Vec::new();
        let names = self.parameters.texts(list);
        for name in &names {
            match name.as_str() {
                "self" => accounts.push(self.caller.account.clone()),
                // Vendors that have nothing here.
                "amazon" | "aws-marketplace" | "aws-backup-vault" => {}
                account => accounts.push(
                    AccountId::try_from(account.to_owned())
                        .map_err(|e| Error::invalid(list, account, &e.to_string()))?,
                ),
            }
        }
        Ok((!names.is_empty()).then_some(accounts))
    }

    /// The security group of a name, in that VPC or in the default one.
    ///
    /// # Errors
    /// `InvalidGroup.NotFound`.
    pub fn group_named(&self, name: &str, vpc: Option<&VpcId>) -> Result<SecurityGroupId, Error> {
        let vpc = match vpc {
            Some(vpc) => vpc.clone(),
            None => self.plane().default_vpc(&self.caller)?.id,
        };
        let groups = self.plane().list::<SecurityGroup>(&self.caller);
        let found = groups
            .iter()
            .find(|group| group.record.vpc == vpc && group.record.name == name);
        match found {
            Some(group) => Ok(group.record.id.clone()),
            None => Err(Refusal::not_found(Kind::SecurityGroup, name).into()),
        }
    }

    /// The id of a zone, as EC2 forms it of its name: `use1-az1` of
    /// `us-east-1a`.
    #[must_use]
    pub fn zone_id(&self, zone: &str) -> String {
        let letter = zone.bytes().last().filter(u8::is_ascii_lowercase);
        let number = letter.map_or(0, |letter| letter - b'a' + 1);
        let region = zone.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let mut words = region.split('-');
        let first = words.next().unwrap_or_default();
        let rest: String = words
            .map(|word| word.chars().next().unwrap_or_default())
            .collect();
        format!("{first}{rest}-az{number}")
    }

    /// The zone of an id.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn zone_of_id(&self, id: &str) -> Result<String, Error> {
        let zones = self.plane().site()?.zones;
        let zone = zones.into_iter().find(|zone| self.zone_id(zone) == id);
        zone.ok_or_else(|| Refusal::not_found(Kind::Zone, id).into())
    }

    /// The Amazon resource name of something of EC2.
    #[must_use]
    pub fn arn(&self, account: &AccountId, kind: &str, id: &str) -> String {
        format!("arn:aws:ec2:{}:{account}:{kind}/{id}", self.door.region())
    }

    /// The name by which other instances of its network find one.
    #[must_use]
    pub fn private_name(&self, instance: &Instance) -> String {
        format!("{}.{DOMAIN}", instance.hostname)
    }

    /// The host that the client addressed.
    #[must_use]
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// There is no such size.
    #[must_use]
    pub fn no_type(&self, name: &str) -> Error {
        Refusal::not_found(Kind::InstanceType, name).into()
    }
}

/// Refuses values of a parameter that Holm does not support.
///
/// # Errors
/// `UnsupportedOperation`.
pub fn only(from: &Parameters, name: &str, allowed: &[&str]) -> Result<(), Error> {
    match from.text(name) {
        Some(value) if !allowed.contains(&value.to_ascii_lowercase().as_str()) => {
            Err(Error::unsupported(format!(
                "Holm does not support the value {value} of the parameter {}: it has {}",
                from.inside(name),
                allowed.join(", ")
            )))
        }
        _ => Ok(()),
    }
}
