//! The OpenAPI document is the one that is checked in.

use std::collections::HashSet;
use std::path::Path;

#[test]
fn the_checked_in_document_is_that_of_the_code() {
    let mut now = serde_json::to_string_pretty(&api::document()).unwrap();
    now.push('\n');
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("HOLM_WRITE_DOCS").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == now,
        "docs/openapi.json is not that of the code; look at the difference after \
         HOLM_WRITE_DOCS=1 cargo test -p api --test interface document"
    );
}

#[test]
fn it_is_openapi_3_1_and_every_operation_has_its_own_name_and_errors() {
    let document = serde_json::to_value(api::document()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut names = HashSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(operation["responses"]["default"].is_object());
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path} says what it does");
            let open = ["get_health", "get_openapi"].contains(&name);
            assert_eq!(operation["security"].is_null(), open, "{name}");
        }
    }
    let text = document.to_string();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("#/components/schemas/") {
        rest = &rest[at + "#/components/schemas/".len()..];
        let name = &rest[..rest.find('"').unwrap()];
        let schema = &document["components"]["schemas"][name];
        assert!(schema.is_object(), "{name} is defined");
    }
}
