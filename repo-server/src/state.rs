//! What all requests share, and what each one is found to be: who asks, for which repository.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use axum::extract::{ConnectInfo, FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::config::{Config, Limits};
use crate::duties::Duties;
use crate::log::Audit;
use crate::namespace::{Namespace, now_ms};
use crate::refusal::Refusal;
use crate::token::{Token, TokenBook};

/// Requests a second without a good token, of all clients together.
const STRANGERS_PER_SECOND: u32 = 20;

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) namespaces: BTreeMap<String, Arc<Namespace>>,
    pub(crate) limits: Limits,
    pub(crate) audit: Audit,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) duties: Duties,
    tokens: TokenBook,
    pace: Pace,
}

impl Shared {
    /// Opens all namespaces.
    pub(crate) fn open(config: &Config) -> Result<Self, String> {
        std::fs::create_dir_all(&config.state)
            .map_err(|error| format!("cannot create {}: {error}", config.state.display()))?;
        let duties = Duties::open(config, &jiff::tz::TimeZone::system())?;
        let open = |(name, namespace): (&String, _)| {
            let opened = Namespace::open(name, namespace, &config.state)?;
            Ok((name.clone(), Arc::new(opened)))
        };
        Ok(Self {
            namespaces: config.namespaces.iter().map(open).collect::<Result<_, String>>()?,
            limits: config.limits,
            audit: Audit::new(&config.state),
            duties,
            uploads: Arc::new(Semaphore::new(config.limits.uploads as usize)),
            tokens: TokenBook::new(Path::new(&config.state)),
            pace: Pace::new(&config.limits),
        })
    }

    /// The longest object that is taken, in bytes.
    pub(crate) fn object_len_max(&self) -> u64 {
        u64::from(self.limits.object_mib) * 1024 * 1024
    }

    fn token(&self, parts: &Parts) -> Result<Token, Refusal> {
        let refused = || {
            let text = "a token is needed that this server made and that is still good";
            Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", text)
        };
        let shown = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
        let found = self.tokens.find(shown.unwrap_or_default(), now_ms()).map_err(|error| {
            crate::log::line("error", "cannot read the tokens", &serde_json::json!({ "error": error }));
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "cannot read the tokens")
        })?;
        let in_pace = self.pace.take(found.as_ref());
        if !in_pace {
            let text = "too many requests: try again in a moment";
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", text));
        }
        found.ok_or_else(refused)
    }
}

/// How many requests each token may make.
struct Pace {
    quota: Quota,
    /// As many as there are tokens.
    tokens: Mutex<HashMap<String, Arc<DefaultDirectRateLimiter>>>,
    strangers: DefaultDirectRateLimiter,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        let number = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(number(limits.requests_per_second)).allow_burst(number(limits.burst));
        let strangers = RateLimiter::direct(Quota::per_second(number(STRANGERS_PER_SECOND)));
        Self { quota, tokens: Mutex::default(), strangers }
    }

    fn take(&self, token: Option<&Token>) -> bool {
        let Some(token) = token else { return self.strangers.check().is_ok() };
        let mut tokens = self.tokens.lock();
        let limiter = tokens.entry(token.id.clone()).or_insert_with(|| Arc::new(RateLimiter::direct(self.quota)));
        let limiter = limiter.clone();
        drop(tokens);
        limiter.check().is_ok()
    }
}

/// What is found out about a request while it is carried out, for the log and the audit file.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Who asks.
    pub(crate) token: OnceLock<Token>,
    /// Of the object that was sent or deleted, as far as it came.
    pub(crate) bytes: AtomicU64,
    /// What became of a change.
    pub(crate) outcome: OnceLock<&'static str>,
}

/// Who asks, for which repository.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) token: Token,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) record: Arc<Record>,
}

impl FromRequestParts<Arc<Shared>> for Call {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let params = RawPathParams::from_request_parts(parts, shared).await;
        let params = params.map_err(|_| Refusal::bad("the path is not UTF-8"))?;
        let named = params.iter().find(|(key, _)| *key == "namespace").map_or("", |(_, value)| value).to_owned();
        let token = shared.token(parts)?;
        let record = parts.extensions.get::<Arc<Record>>().cloned().unwrap_or_default();
        let _ = record.token.set(token.clone());
        // Before it is looked up: which namespaces there are is nobody else's business.
        if !token.reaches(&named) {
            let text = format!("token {} is not good for namespace {named:?}", token.id);
            return Err(Refusal::forbidden(text));
        }
        let namespace = shared.namespaces.get(&named).cloned();
        let namespace = namespace.ok_or_else(|| Refusal::missing(format!("namespace {named:?}")))?;
        Ok(Self { token, namespace, record })
    }
}

/// The address of the client, as far as the connection tells.
pub(crate) fn client(parts: &axum::http::Extensions) -> Option<IpAddr> {
    parts.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_its_burst_and_others_have_theirs() {
        let pace = Pace::new(&Limits { requests_per_second: 1, burst: 3, ..Limits::default() });
        let folder = tempfile::tempdir().unwrap();
        let book = TokenBook::new(folder.path());
        let new = crate::token::NewToken {
            label: String::new(),
            role: crate::token::Role::Backup,
            namespaces: Vec::new(),
            expires_ms: None,
        };
        let [a, b] = [book.add(&new, 0).unwrap().0, book.add(&new, 0).unwrap().0];
        assert!((0..3).all(|_| pace.take(Some(&a))));
        assert!(!pace.take(Some(&a)));
        assert!(pace.take(Some(&b)));
        assert!((0..100).filter(|_| pace.take(None)).count() < 30);
    }
}
