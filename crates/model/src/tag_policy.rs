//! Which tags an account's resources must have.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{Invalid, Tags};

/// What tags new instances and volumes of an account must have; the record's
/// id is the account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagPolicy {
    /// Keys that must be there, each with the values that it may have; none:
    /// any value.
    #[serde(default)]
    pub required: BTreeMap<String, BTreeSet<String>>,
}

impl Record for TagPolicy {
    const KIND: &'static str = "tag-policy";
    const VERSION: u32 = 1;
}

impl TagPolicy {
    /// Refuses tags that lack a required one, or have a value of it that is
    /// not allowed.
    ///
    /// # Errors
    /// [`Invalid::Tag`].
    pub fn check(&self, tags: &Tags) -> Result<(), Invalid> {
        for (key, values) in &self.required {
            let refused = |reason| {
                Err(Invalid::Tag {
                    key: Invalid::shorten(key),
                    reason,
                })
            };
            match tags.get(key) {
                None => return refused("the account's tag policy requires it"),
                Some(value) if !values.is_empty() && !values.contains(value) => {
                    return refused("the account's tag policy does not allow this value");
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_what_is_missing() {
        let policy = TagPolicy {
            required: BTreeMap::from([
                ("team".into(), BTreeSet::new()),
                (
                    "stage".into(),
                    BTreeSet::from(["test".into(), "live".into()]),
                ),
            ]),
        };
        let tags = |pairs: &[(&str, &str)]| -> Tags {
            let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            pairs.collect()
        };
        policy
            .check(&tags(&[("team", "a"), ("stage", "live")]))
            .unwrap();
        for bad in [&[("team", "a")][..], &[("team", "a"), ("stage", "x")]] {
            let error = policy.check(&tags(bad)).unwrap_err();
            assert!(error.to_string().contains("stage"), "{error}");
        }
        assert!(TagPolicy::default().check(&Tags::new()).is_ok());
    }
}
