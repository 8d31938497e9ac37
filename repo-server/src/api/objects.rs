//! Objects: read, listed, asked for, taken in, deleted.

mod incoming;
mod outgoing;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, RawPathParams, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use repo_core::store::ObjectName;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::access::{Action, allows};
use crate::namespace::Stored;
use crate::refusal::{Refusal, RefusalBody};
use crate::state::{Call, Shared};

/// Objects that one answer lists, and names that one question may have.
const PAGE_MAX: usize = 10_000;

/// The object that the path names.
pub(crate) struct Named(ObjectName);

impl FromRequestParts<Arc<Shared>> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let params = RawPathParams::from_request_parts(parts, shared).await;
        let params = params.map_err(|_| Refusal::bad("the path is not UTF-8"))?;
        let value = |key: &str| params.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        let path = match (value("folder"), value("prefix"), value("kind"), value("id")) {
            (Some(folder), _, _, Some(id)) => format!("{folder}/{id}"),
            (_, Some(prefix), _, Some(id)) => format!("packs/{prefix}/{id}"),
            (_, _, Some(kind), Some(id)) => format!("snapshots/{kind}/{id}"),
            _ => "config".to_owned(),
        };
        ObjectName::parse(&path).map(Self).map_err(|error| Refusal::bad(error.to_string()))
    }
}

/// Which part of a folder.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// The name after which it begins; from the first on when it is absent.
    #[serde(default)]
    after: String,
    /// At most so many, 1 to 10 000.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
}

/// Objects of a folder, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Listing {
    objects: Vec<ListedObject>,
    /// There are more after the last one.
    more: bool,
}

/// An object that is there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ListedObject {
    /// `packs/ab/abcd…`
    name: String,
    /// Its length.
    bytes: u64,
    /// When it was stored, by the server's clock, in milliseconds since the Unix epoch. What clients say of the time is
    /// inside the objects, sealed.
    stored_ms: i64,
}

/// Names that are asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Names {
    /// At most 10 000.
    names: Vec<String>,
}

/// Those of the names that are there, in the order in which they were asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct There {
    there: Vec<String>,
}

/// What became of an object that was sent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoredBody {
    /// Whether it was there before, and nothing was changed.
    existed: bool,
}

/// Lists a folder
#[utoipa::path(
    get,
    path = "/v1/{namespace}/{folder}",
    params(("namespace" = String, Path), ("folder" = String, Path, pattern = "^(packs|keys|snapshots|leases|renewals|revoked)$"), Page),
    security(("token" = [])),
    responses(
        (status = 200, body = Listing),
        (status = 400, body = RefusalBody, description = "Malformed"),
        (status = 401, body = RefusalBody, description = "No good token"),
        (status = 403, body = RefusalBody, description = "Not with this token"),
        (status = 404, body = RefusalBody, description = "No such namespace or folder"),
        (status = 429, body = RefusalBody, description = "Too many requests"),
        (status = 503, body = RefusalBody, description = "The object store does not answer"),
    )
)]
pub(crate) async fn list(
    call: Call,
    Path((_, folder)): Path<(String, String)>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listing>, Refusal> {
    let folder = ObjectName::FOLDERS.iter().find(|known| **known == folder);
    let folder = *folder.ok_or_else(|| Refusal::missing("a folder of that name"))?;
    list_folder(call, folder, page).await
}

/// Lists the annotations alone.
pub(crate) async fn list_annotations(
    call: Call,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listing>, Refusal> {
    list_folder(call, "snapshots/annotations", page).await
}

/// Lists the tombstones alone.
pub(crate) async fn list_tombstones(
    call: Call,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listing>, Refusal> {
    list_folder(call, "snapshots/tombstones", page).await
}

async fn list_folder(
    call: Call,
    folder: &'static str,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listing>, Refusal> {
    let Query(page) = page.map_err(|error| Refusal::bad(error.body_text()))?;
    let limit = match page.limit.map_or(PAGE_MAX, |limit| limit as usize) {
        limit @ 1..=PAGE_MAX => limit,
        _ => return Err(Refusal::bad(format!("limit is not between 1 and {PAGE_MAX}"))),
    };
    let listed = blocking(move || call.namespace.list(folder, &page.after, limit)).await?;
    let object = |found: crate::namespace::Found| ListedObject {
        name: found.name.path(),
        bytes: found.bytes,
        stored_ms: found.stored_ms,
    };
    Ok(Json(Listing { objects: listed.0.into_iter().map(object).collect(), more: listed.1 }))
}

/// Tells which of many objects are there
#[utoipa::path(
    post,
    path = "/v1/{namespace}/have",
    params(("namespace" = String, Path)),
    request_body = Names,
    security(("token" = [])),
    responses(
        (status = 200, body = There),
        (status = 400, body = RefusalBody, description = "Malformed"),
        (status = 401, body = RefusalBody, description = "No good token"),
        (status = 403, body = RefusalBody, description = "Not with this token"),
        (status = 404, body = RefusalBody, description = "No such namespace"),
        (status = 413, body = RefusalBody, description = "Too many names"),
        (status = 415, body = RefusalBody, description = "Not JSON"),
        (status = 422, body = RefusalBody, description = "JSON of another kind"),
        (status = 429, body = RefusalBody, description = "Too many requests"),
        (status = 503, body = RefusalBody, description = "The object store does not answer"),
    )
)]
pub(crate) async fn have(call: Call, names: Result<Json<Names>, JsonRejection>) -> Result<Json<There>, Refusal> {
    let Json(Names { names }) = names.map_err(|error| Refusal::new(error.status(), "malformed", error.body_text()))?;
    if names.len() > PAGE_MAX {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", format!("more than {PAGE_MAX} names")));
    }
    let there = blocking(move || {
        let parsed = names.iter().map(|path| ObjectName::parse(path)).collect::<Result<Vec<_>, _>>();
        let parsed = parsed.map_err(|error| Refusal::bad(error.to_string()))?;
        Ok(call.namespace.have(&parsed)?.into_iter().map(|name| name.path()).collect())
    });
    Ok(Json(There { there: there.await? }))
}

/// Reads an object, or a part of it
#[utoipa::path(
    get,
    path = "/v1/{namespace}/{folder}/{id}",
    params(
        ("namespace" = String, Path),
        ("folder" = String, Path, description = "Any but `packs`", pattern = "^(keys|snapshots|leases|renewals|revoked)$"),
        ("id" = String, Path, description = "64 digits", pattern = "^[0-9a-f]{64}$"),
        ("range" = Option<String>, Header, description = "One range of bytes"),
    ),
    security(("token" = [])),
    responses(
        (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>, description = "The part"),
        (status = 400, body = RefusalBody, description = "No object is called so"),
        (status = 401, body = RefusalBody, description = "No good token"),
        (status = 403, body = RefusalBody, description = "Not with this token"),
        (status = 404, body = RefusalBody, description = "It is not there"),
        (status = 416, body = RefusalBody, description = "It is shorter"),
        (status = 429, body = RefusalBody, description = "Too many requests"),
        (status = 503, body = RefusalBody, description = "The object store does not answer"),
    )
)]
pub(crate) async fn read(
    call: Call,
    Named(name): Named,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let part = outgoing::asked(&headers);
    let of = part.clone();
    let (found, content) = match method {
        Method::HEAD => (blocking(move || call.namespace.find(name)).await?, None),
        _ => blocking(move || call.namespace.read(name, &of)).await?,
    };
    outgoing::answer(&found, &part, content)
}

/// Adds an object. One that is there is never replaced
#[utoipa::path(
    put,
    path = "/v1/{namespace}/{folder}/{id}",
    params(
        ("namespace" = String, Path),
        ("folder" = String, Path, description = "Any but `packs`", pattern = "^(keys|snapshots|leases|renewals|revoked)$"),
        ("id" = String, Path, description = "64 digits", pattern = "^[0-9a-f]{64}$"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    security(("token" = [])),
    responses(
        (status = 200, body = StoredBody, description = "It was there before"),
        (status = 201, body = StoredBody, description = "It is stored"),
        (status = 400, body = RefusalBody, description = "Malformed, or not what its name says"),
        (status = 401, body = RefusalBody, description = "No good token"),
        (status = 403, body = RefusalBody, description = "Not with this token"),
        (status = 404, body = RefusalBody, description = "No such namespace"),
        (status = 408, body = RefusalBody, description = "It came too slowly"),
        (status = 409, body = RefusalBody, description = "Not now: another configuration, no lease"),
        (status = 413, body = RefusalBody, description = "Too long"),
        (status = 429, body = RefusalBody, description = "Too many requests"),
        (status = 503, body = RefusalBody, description = "Too many others at once, or the object store does not answer"),
        (status = 507, body = RefusalBody, description = "Full"),
    )
)]
pub(crate) async fn store(
    call: Call,
    Named(name): Named,
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let record = call.record.clone();
    let stored = incoming::take(call, name, &shared, &headers, body).await?;
    let (status, outcome) = match stored {
        Stored::New => (StatusCode::CREATED, "stored"),
        Stored::Existed => (StatusCode::OK, "existed"),
    };
    let _ = record.outcome.set(outcome);
    Ok((status, Json(StoredBody { existed: stored == Stored::Existed })).into_response())
}

/// Deletes an object
#[utoipa::path(
    delete,
    path = "/v1/{namespace}/{folder}/{id}",
    params(
        ("namespace" = String, Path),
        ("folder" = String, Path, description = "Any but `packs`", pattern = "^(keys|snapshots|leases|renewals|revoked)$"),
        ("id" = String, Path, description = "64 digits", pattern = "^[0-9a-f]{64}$"),
    ),
    security(("token" = [])),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, body = RefusalBody, description = "No object is called so"),
        (status = 401, body = RefusalBody, description = "No good token"),
        (status = 403, body = RefusalBody, description = "Not with this token"),
        (status = 404, body = RefusalBody, description = "It is not there"),
        (status = 409, body = RefusalBody, description = "Not without a lease"),
        (status = 429, body = RefusalBody, description = "Too many requests"),
        (status = 503, body = RefusalBody, description = "The object store does not answer"),
    )
)]
pub(crate) async fn delete(call: Call, Named(name): Named) -> Result<StatusCode, Refusal> {
    let record = call.record.clone();
    let bytes = blocking(move || {
        let Call { token, namespace, .. } = &call;
        let own = match name {
            // That one is gone is no secret, and ends a second try well.
            ObjectName::Lease(id) | ObjectName::Renewal(id) if namespace.has(name)? => namespace.owns(&token.id, id),
            ObjectName::Lease(_) | ObjectName::Renewal(_) => return Err(Refusal::missing(name)),
            _ => false,
        };
        if !own && !allows(token.role, Action::Delete, name) {
            let text = format!("a token for {} must not delete {name}", token.role.name());
            return Err(Refusal::forbidden(text));
        }
        namespace.delete(name, &token.id)
    });
    record.bytes.store(bytes.await?, Ordering::Relaxed);
    let _ = record.outcome.set("deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Does what waits for the disk, beside the threads that serve connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Refusal::broke_off(&error)),
    }
}
