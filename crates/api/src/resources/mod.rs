//! The paths, one file per noun.

mod system;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{App, document};

/// All of them. What is not here is neither served nor in the document.
pub(crate) fn all() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::empty())
        .routes(routes!(system::health))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi))
        .routes(routes!(system::caller))
}
