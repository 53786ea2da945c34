//! Pages of long answers.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::call::Call;
use crate::error::Error;
use crate::filters::Filters;

/// Which page is asked for. A token names the last thing of the page before,
/// so that pages stay right when things come and go.
#[derive(Clone, Debug)]
pub struct Page {
    after: Option<String>,
    most: Option<usize>,
    /// Digest of what was asked for: a token is good for the same only.
    question: String,
}

impl Page {
    /// Of a request; `ids` is the parameter that names things, if pages of
    /// named things are not allowed.
    ///
    /// # Errors
    /// `InvalidParameterValue` (MaxResults), `InvalidNextToken`,
    /// `InvalidParameterCombination`.
    pub fn parse(
        call: &Call<'_>,
        filters: &Filters,
        bounds: RangeInclusive<i64>,
        ids: Option<&str>,
    ) -> Result<Self, Error> {
        let most = call.parameters.integer("MaxResults")?;
        if let (Some(_), Some(ids)) = (most, ids.filter(|ids| call.parameters.has(ids))) {
            return Err(Error::combination(format!(
                "The parameter {ids} cannot be used with the parameter MaxResults"
            )));
        }
        if let Some(most) = most.filter(|most| !bounds.contains(most)) {
            return Err(Error::invalid(
                "MaxResults",
                most,
                &format!(
                    "It must be between {} and {}.",
                    bounds.start(),
                    bounds.end()
                ),
            ));
        }
        let asked = format!(
            "{} {} {}",
            call.action.name,
            call.caller.account,
            filters.fingerprint()
        );
        let question = URL_SAFE_NO_PAD.encode(&Sha256::digest(asked)[..9]);
        let after = call
            .parameters
            .text("NextToken")
            .map(|token| open(token, &question))
            .transpose()?;
        Ok(Self {
            after,
            most: most.and_then(|most| usize::try_from(most).ok()),
            question,
        })
    }

    /// The things of the page, and the token of the next if there are more.
    /// Things come by keys in ascending order.
    pub fn cut<T>(&self, things: impl Iterator<Item = (String, T)>) -> (Vec<T>, Option<String>) {
        let mut page: Vec<(String, T)> = Vec::new();
        for (key, thing) in things {
            if self.after.as_ref().is_some_and(|after| key <= *after) {
                continue;
            }
            if let Some((last, _)) = page.last().filter(|_| self.most == Some(page.len())) {
                let token = URL_SAFE_NO_PAD.encode(format!("{} {last}", self.question));
                return (
                    page.into_iter().map(|(_, thing)| thing).collect(),
                    Some(token),
                );
            }
            page.push((key, thing));
        }
        (page.into_iter().map(|(_, thing)| thing).collect(), None)
    }
}

fn open(token: &str, question: &str) -> Result<String, Error> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let after = text
        .as_deref()
        .and_then(|text| text.split_once(' '))
        .filter(|(of, _)| *of == question);
    match after {
        Some((_, after)) => Ok(after.to_owned()),
        None => Err(Error::new(
            "InvalidNextToken",
            "The NextToken is not one that this request's answer had",
        )),
    }
}
