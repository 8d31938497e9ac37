//! Whether the server runs, what it is, and what a namespace holds.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use repo_core::object::FORMAT_VERSION;
use serde::Serialize;
use utoipa::ToSchema;

use crate::refusal::{Refusal, RefusalBody};
use crate::state::{Call, Shared};

/// The answer of `/healthz` and `/readyz`.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Status {
    /// `ok`: the process runs. `ready`: every namespace can be used.
    status: &'static str,
}

/// The answer of `/version`.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Version {
    /// The program.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// The repository format it was built for (docs/format.md).
    format_version: u16,
}

/// The answer about a namespace.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct NamespaceInfo {
    /// Its name.
    namespace: String,
    /// What the token is for.
    role: &'static str,
    /// Bytes it holds; absent where they are not counted, because there is no quota.
    used_bytes: Option<u64>,
    /// Bytes it may hold.
    quota_bytes: Option<u64>,
    /// Packs that were found damaged when they were read again; absent where they are not.
    damaged_packs: Option<usize>,
    /// Capacity figures as they were measured last (docs/server.md); absent where they are not.
    #[schema(value_type = Option<Object>)]
    capacity: Option<serde_json::Value>,
    /// The longest object that is taken, in bytes.
    object_bytes_max: u64,
    /// The server's clock, in milliseconds since the Unix epoch.
    now_ms: i64,
}

/// Whether the process runs
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Status)))]
pub(crate) async fn health() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Whether every namespace can be used
#[utoipa::path(
    get,
    path = "/readyz",
    responses((status = 200, body = Status), (status = 503, body = RefusalBody, description = "One cannot be used"))
)]
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Result<Json<Status>, Refusal> {
    let ready = tokio::task::spawn_blocking(move || shared.namespaces.values().all(|one| one.is_ready())).await;
    match ready {
        Ok(true) => Ok(Json(Status { status: "ready" })),
        // Which one is in the log of whoever may know.
        _ => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "a namespace cannot be used")),
    }
}

/// What this is
#[utoipa::path(get, path = "/version", responses((status = 200, body = Version)))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { name: "cairn-server", version: env!("CARGO_PKG_VERSION"), format_version: FORMAT_VERSION })
}

/// What a namespace holds, and what it may hold
#[utoipa::path(
    get,
    path = "/v1/{namespace}",
    params(("namespace" = String, Path)),
    security(("token" = [])),
    responses(
        (status = 200, body = NamespaceInfo),
        (status = 400, body = RefusalBody, description = "Malformed"),
        (status = 401, body = RefusalBody, description = "No good token"),
        (status = 403, body = RefusalBody, description = "Not with this token"),
        (status = 404, body = RefusalBody, description = "No such namespace"),
        (status = 429, body = RefusalBody, description = "Too many requests"),
    )
)]
pub(crate) async fn namespace(call: Call, State(shared): State<Arc<Shared>>) -> Result<Json<NamespaceInfo>, Refusal> {
    // It may have to be counted first.
    let namespace = call.namespace.clone();
    let counted = tokio::task::spawn_blocking(move || namespace.usage()).await;
    let (used_bytes, quota_bytes) = counted.map_err(|error| Refusal::broke_off(&error))?;
    Ok(Json(NamespaceInfo {
        namespace: call.namespace.name.clone(),
        role: call.token.role.name(),
        used_bytes,
        quota_bytes,
        damaged_packs: shared.duties.verifier.as_ref().map(|verifier| verifier.damaged(&call.namespace.name)),
        capacity: shared.duties.capacity(&call.namespace.name),
        object_bytes_max: call.namespace.object_len_max(shared.object_len_max()),
        now_ms: crate::namespace::now_ms(),
    }))
}
