//! What is answered: one file for each noun.

use std::future::Future;
use std::pin::Pin;

use crate::door::Call;
use crate::error::Error;
use crate::xml::Element;

mod identity;

/// The members of a response, or why there is none.
pub type Reply = Result<Vec<Element>, Error>;

/// Who answers an action.
pub struct Handler {
    /// The action.
    pub name: &'static str,
    /// Parameters that it reads, with `N` for each index of a list.
    pub understood: &'static [&'static str],
    /// Answers.
    pub run: for<'a> fn(&'a Call<'a>) -> Pin<Box<dyn Future<Output = Reply> + Send + 'a>>,
}

/// All of them.
const ALL: &[&[Handler]] = &[identity::ACTIONS];

/// All handlers.
pub fn all() -> impl Iterator<Item = &'static Handler> {
    ALL.iter().copied().flatten()
}

/// The handler of an action.
#[must_use]
pub fn find(name: &str) -> Option<&'static Handler> {
    all().find(|handler| handler.name == name)
}
