//! Why a request was not carried out: a status, a word for programs, a sentence for people.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use repo_core::error::{Error, ErrorKind};
use serde::Serialize;
use utoipa::ToSchema;

/// A request that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// What is answered then.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct RefusalBody {
    /// A word for programs.
    #[schema(example = "forbidden")]
    pub error: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// Malformed, or not what its name says.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    pub(crate) fn missing(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "missing", format!("{what} is missing"))
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(crate) fn too_long(limit: u64) -> Self {
        let text = format!("longer than the {limit} bytes that are taken");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", text)
    }

    /// Not now; another try may do better.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// A thread that ended before it should.
    pub(crate) fn broke_off(error: &tokio::task::JoinError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("a thread broke off: {error}"))
    }

    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "full", message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let full = |error: &Error| {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
            while let Some(at) = cause {
                let os = at.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                if matches!(os, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
                    return true;
                }
                cause = at.source();
            }
            false
        };
        match error.kind() {
            ErrorKind::NotFound => Self::new(StatusCode::NOT_FOUND, "missing", error.to_string()),
            ErrorKind::AlreadyExists => Self::conflict(error.to_string()),
            ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::Unsupported => Self::bad(error.chain()),
            ErrorKind::Io if full(&error) => Self::full("the server's disk is full"),
            ErrorKind::Unavailable => Self::unavailable(error.chain()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.chain()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response =
            (self.status, Json(RefusalBody { error: self.code, message: self.message.clone() })).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        // For the log and the audit.
        response.extensions_mut().insert(self);
        response
    }
}
