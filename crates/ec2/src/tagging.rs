//! Tags in parameters.

use model::Tags;

use crate::error::Error;
use crate::parameters::Parameters;

/// The tags of a list such as `Tag.1.Key`.
///
/// # Errors
/// `MissingParameter`, `InvalidParameterValue` for a key that is given twice.
pub fn tags(from: &Parameters, list: &str) -> Result<Tags, Error> {
    let mut tags = Tags::new();
    for tag in from.structures(list) {
        let key = tag.require("Key")?;
        let value = tag.text("Value").unwrap_or_default();
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Error::new(
                "InvalidParameterValue",
                format!("Duplicate tag key '{key}' specified."),
            ));
        }
    }
    Ok(tags)
}

/// The tags of `TagSpecification` for one type of resource; all must be for
/// one of `types`.
///
/// # Errors
/// `InvalidParameterValue`, or as [`tags`].
pub fn specified(parameters: &Parameters, types: &[&str], wanted: &str) -> Result<Tags, Error> {
    let mut all = Tags::new();
    for specification in parameters.structures("TagSpecification") {
        let kind = specification.require("ResourceType")?;
        if !types.contains(&kind) {
            return Err(Error::new(
                "InvalidParameterValue",
                format!("'{kind}' is not a valid taggable resource type for this operation."),
            ));
        }
        if kind == wanted {
            all.extend(tags(&specification, "Tag")?);
        }
    }
    Ok(all)
}
