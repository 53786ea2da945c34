//! Who asks.

use super::{Handler, Reply};
use crate::call::Call;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[Handler {
    name: "GetCallerIdentity",
    understood: &[],
    filters: &[],
    run: |call| Box::pin(get_caller_identity(call)),
}];

async fn get_caller_identity(call: &Call<'_>) -> Reply {
    let (account, user) = (&call.caller.account, call.caller.user.as_str());
    // As IAM names an account's owner, and its users.
    let (resource, id) = match user {
        "root" => ("root".to_owned(), account.to_string()),
        _ => (format!("user/{user}"), format!("AIDA{account}/{user}")),
    };
    Ok(vec![
        Element::leaf("Arn", format!("arn:aws:iam::{account}:{resource}")),
        Element::leaf("UserId", id),
        Element::leaf("Account", account),
    ])
}
