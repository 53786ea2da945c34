//! Who asks.

use super::{Handler, Reply};
use crate::door::Call;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[Handler {
    name: "GetCallerIdentity",
    understood: &[],
    run: |call| Box::pin(get_caller_identity(call)),
}];

async fn get_caller_identity(call: &Call<'_>) -> Reply {
    let principal = &call.principal;
    Ok(vec![
        Element::leaf("Arn", principal.arn()),
        Element::leaf("UserId", &principal.user_id),
        Element::leaf("Account", &principal.account),
    ])
}
