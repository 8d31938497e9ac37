//! The routes. What each answers is described for programs in docs/openapi.json, which is made from here.

mod objects;
mod observe;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{get, post};
use utoipa::OpenApi;

use crate::refusal::{Refusal, RefusalBody};
use crate::state::Shared;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let object = || get(objects::read).put(objects::store).delete(objects::delete);
    Router::new()
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::ready))
        .route("/version", get(status::version))
        .route("/v1/openapi.json", get(async || axum::Json(description())))
        .route("/v1/{namespace}", get(status::namespace))
        .route("/v1/{namespace}/have", post(objects::have))
        .route("/v1/{namespace}/config", object())
        .route("/v1/{namespace}/{folder}", get(objects::list))
        .route("/v1/{namespace}/{folder}/{id}", object())
        .route("/v1/{namespace}/packs/{prefix}/{id}", object())
        .route("/v1/{namespace}/snapshots/annotations", get(objects::list_annotations))
        .route("/v1/{namespace}/snapshots/tombstones", get(objects::list_tombstones))
        .route("/v1/{namespace}/snapshots/{kind}/{id}", object())
        .fallback(async || Refusal::missing("what was asked for"))
        .layer(middleware::from_fn_with_state(shared.clone(), observe::observe))
        .with_state(shared)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cairn-server",
        description = "Objects of Cairn repositories by name. What they mean: docs/format.md. Who may do what: docs/server.md.",
        license(name = "Apache-2.0 OR MIT")
    ),
    paths(
        status::health,
        status::ready,
        status::version,
        status::namespace,
        objects::have,
        objects::list,
        objects::read,
        objects::store,
        objects::delete,
    ),
    components(schemas(RefusalBody))
)]
struct Description;

/// The OpenAPI document.
pub fn description() -> serde_json::Value {
    let mut whole = serde_json::to_value(Description::openapi()).expect("a description is JSON");
    whole["components"]["securitySchemes"] = serde_json::json!({ "token": { "type": "http", "scheme": "bearer" } });
    let object = &whole["paths"]["/v1/{namespace}/{folder}/{id}"];
    let (mut pack, mut remark, mut config) = (object.clone(), object.clone(), object.clone());
    if let Some(operations) = config.as_object_mut() {
        // Nobody deletes the configuration.
        operations.remove("delete");
    }
    let pattern = |pattern: &str| serde_json::json!({ "type": "string", "pattern": pattern });
    let prefix = ("prefix", "The first two digits of the id", pattern("^[0-9a-f]{2}$"));
    let kind = ("kind", "What is said of snapshots, and what is condemned", pattern("^(annotations|tombstones)$"));
    for (item, what, extra) in
        [(&mut pack, "pack", Some(prefix)), (&mut remark, "remark", Some(kind)), (&mut config, "config", None)]
    {
        for operation in item.as_object_mut().into_iter().flat_map(|operations| operations.values_mut()) {
            let id = format!("{what}_{}", operation["operationId"].as_str().unwrap_or_default());
            operation["operationId"] = id.into();
            let Some(parameters) = operation["parameters"].as_array_mut() else { continue };
            match &extra {
                Some((name, description, schema)) => {
                    for parameter in parameters.iter_mut().filter(|parameter| parameter["name"] == "folder") {
                        parameter["name"] = (*name).into();
                        parameter["description"] = (*description).into();
                        parameter["schema"] = schema.clone();
                    }
                }
                None => parameters.retain(|parameter| parameter["name"] != "folder" && parameter["name"] != "id"),
            }
        }
    }
    for folder in ["annotations", "tombstones"] {
        let mut listing = whole["paths"]["/v1/{namespace}/{folder}"].clone();
        listing["get"]["operationId"] = format!("list_{folder}").into();
        if let Some(parameters) = listing["get"]["parameters"].as_array_mut() {
            parameters.retain(|parameter| parameter["name"] != "folder");
        }
        whole["paths"][format!("/v1/{{namespace}}/snapshots/{folder}")] = listing;
    }
    whole["paths"]["/v1/{namespace}/snapshots/{kind}/{id}"] = remark;
    whole["paths"]["/v1/{namespace}/packs/{prefix}/{id}"] = pack;
    whole["paths"]["/v1/{namespace}/config"] = config;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_the_one_that_is_served() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let committed: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(committed == description(), "make it anew: cairn-server openapi > docs/openapi.json");
    }
}
