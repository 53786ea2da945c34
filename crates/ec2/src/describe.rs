//! What all Describe actions do: things by id or all of them, filters, pages.

use std::ops::{Deref, RangeInclusive};
use std::sync::Arc;

use control::Owned;
use model::{Meta, Tags};

use crate::actions::Reply;
use crate::call::Call;
use crate::error::Error;
use crate::filters::Filters;
use crate::ids::{Id, parse};
use crate::pages::Page;
use crate::xml::Element;

/// A thing that a Describe action may list.
pub trait Described {
    /// What it is listed under; pages are in this order.
    fn key(&self) -> String;

    /// What is written on it.
    fn tags(&self) -> Option<&Tags>;
}

macro_rules! described {
    ($($type:ty),*) => {$(
        impl Described for $type {
            fn key(&self) -> String {
                self.id.to_string()
            }

            fn tags(&self) -> Option<&Tags> {
                Some(&self.meta.tags)
            }
        }
    )*};
}

described!(
    model::ElasticAddress,
    model::Image,
    model::Instance,
    model::InternetGateway,
    model::KeyPair,
    model::RouteTable,
    model::SecurityGroup,
    model::Snapshot,
    model::Subnet,
    model::Volume,
    model::Vpc
);

/// A noun that is listed, as the view has it: only what is asked for is shown,
/// and nothing is copied.
pub struct Noun<T>(Arc<store::Found<T>>);

impl<T> Deref for Noun<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.record
    }
}

impl<T: Described> Described for Noun<T> {
    fn key(&self) -> String {
        self.0.record.key()
    }

    fn tags(&self) -> Option<&Tags> {
        self.0.record.tags()
    }
}

/// How an action lists.
#[derive(Clone, Copy)]
pub struct Listing {
    /// The parameter that lists ids.
    pub ids: &'static str,
    /// Names of filters beside those of single tags.
    pub filters: &'static [&'static str],
    /// What MaxResults may be; `None`: the action has no pages.
    pub pages: Option<RangeBounds>,
    /// Whether ids and pages may be together.
    pub pages_of_ids: bool,
}

/// First and last.
pub type RangeBounds = (i64, i64);

/// What of a list is asked for.
pub struct Selection {
    filters: Filters,
    page: Option<Page>,
}

impl Selection {
    /// Of a call.
    ///
    /// # Errors
    /// As [`Filters::parse`] and [`Page::parse`].
    pub fn parse(call: &Call<'_>, listing: &Listing) -> Result<Self, Error> {
        let filters = Filters::parse(&call.parameters, listing.filters, &call.action.filters)?;
        let ids = (!listing.pages_of_ids).then_some(listing.ids);
        let page = listing.pages.map(|(first, last)| {
            let bounds: RangeInclusive<i64> = first..=last;
            Page::parse(call, &filters, bounds, ids)
        });
        Ok(Self {
            page: page.transpose()?,
            filters,
        })
    }

    /// Those of the things that are asked for, and the token of what follows.
    /// `field` says what a thing has under a filter's name.
    pub fn cut<T: Described>(
        &self,
        things: impl IntoIterator<Item = T>,
        field: impl Fn(&T, &str) -> Vec<String>,
    ) -> (Vec<T>, Option<String>) {
        let chosen = things.into_iter().filter(|thing| {
            self.filters.match_all(|name| match thing.tags() {
                Some(tags) => tag_values(tags, name).unwrap_or_else(|| field(thing, name)),
                None => field(thing, name),
            })
        });
        let keyed = chosen.map(|thing| (thing.key(), thing));
        match &self.page {
            Some(page) => page.cut(keyed),
            None => (keyed.map(|(_, thing)| thing).collect(), None),
        }
    }
}

/// What tags have under a filter's name, if it is one of tags.
fn tag_values(tags: &Tags, name: &str) -> Option<Vec<String>> {
    match name {
        "tag-key" => Some(tags.keys().cloned().collect()),
        "tag-value" => Some(tags.values().cloned().collect()),
        // Documented as the whole of a tag: key=value.
        "tag" => Some(tags.iter().map(|(k, v)| format!("{k}={v}")).collect()),
        _ => {
            let key = name.strip_prefix("tag:")?;
            Some(tags.get(key).cloned().into_iter().collect())
        }
    }
}

impl Call<'_> {
    /// The nouns that are named by the parameter, or all that the caller may
    /// see; in the order of their ids.
    ///
    /// # Errors
    /// Malformed ids, ids of none.
    pub fn nouns<T: Owned, I: Id>(&self, parameter: &str) -> Result<Vec<Noun<T>>, Error> {
        let mut named = self.parameters.texts(parameter);
        if named.is_empty() {
            let all = self.plane().list::<T>(&self.caller);
            return Ok(all.into_iter().map(Noun).collect());
        }
        named.sort();
        named.dedup();
        let mut nouns = Vec::with_capacity(named.len());
        for text in &named {
            let id: I = parse(text)?;
            nouns.push(Noun(self.plane().find::<T>(&self.caller, id.as_ref())?));
        }
        Ok(nouns)
    }

    /// A whole Describe action of a noun.
    ///
    /// # Errors
    /// Those of its parts; `DryRunOperation`.
    pub fn describe<T: Owned + Described, I: Id>(
        &self,
        listing: &Listing,
        list: &'static str,
        field: impl Fn(&T, &str) -> Vec<String>,
        show: impl Fn(&T) -> Element,
    ) -> Reply {
        let selection = Selection::parse(self, listing)?;
        let nouns = self.nouns::<T, I>(listing.ids)?;
        self.dry_run()?;
        let (page, token) = selection.cut(nouns, |noun, name| field(noun, name));
        Ok(paged(list, page.iter().map(|noun| show(noun)), token))
    }
}

/// A list and, if there is more, the token of the next page.
pub fn paged(
    list: &'static str,
    items: impl IntoIterator<Item = Element>,
    token: Option<String>,
) -> Vec<Element> {
    let mut reply = vec![Element::new(list).extend(items)];
    reply.extend(token.map(|token| Element::leaf("nextToken", token)));
    reply
}

/// No value, for a filter.
pub fn none() -> Vec<String> {
    Vec::new()
}

/// One value, for a filter.
pub fn one(value: impl ToString) -> Vec<String> {
    vec![value.to_string()]
}

/// A value or none, for a filter.
pub fn maybe(value: Option<impl ToString>) -> Vec<String> {
    value.iter().map(ToString::to_string).collect()
}

/// Several values, for a filter.
pub fn many<V: ToString>(values: impl IntoIterator<Item = V>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

/// `tagSet`.
pub fn tag_set(element: Element, tags: &Tags) -> Element {
    let tags = tags.iter();
    element.list(
        "tagSet",
        tags.map(|(key, value)| Element::item().text("key", key).text("value", value)),
    )
}

/// `ownerId` and `tagSet`.
pub fn owned(element: Element, meta: &Meta) -> Element {
    tag_set(element.text("ownerId", &meta.account), &meta.tags)
}
