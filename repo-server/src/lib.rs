//! Cairn's HTTP server: keeps repositories for clients that it need not be trusted with the keys of.
//!
//! A request passes `connection` (so many, none that stands still), TLS (`tls`), `api::observe` (its id, its line in
//! the log), `state` (who asks, for which namespace, how often), [`access`] (what that role may), and reaches a
//! `namespace`: objects by name in a folder, through the store's durable path, or in an object store. What it reads of an object is its
//! header, and whether its bytes have the hash that its name says.
//!
//! How it is set up: docs/server.md. What its routes answer: docs/openapi.json.

pub mod access;
mod api;
mod cloud;
pub mod config;
mod connection;
mod duties;
mod log;
mod namespace;
mod refusal;
mod state;
mod tls;
pub mod token;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use repo_core::store::server::Fingerprint;
use repo_core::traffic::REQUESTS_MAX;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

pub use api::description;
use config::Config;
use connection::Acceptor;
pub use duties::{Duty, ShownDuty, describe_keys, duties_text, run_duties, shown_duties};
use state::Shared;
use tls::Files;

/// How often certificates are looked at, and leases.
const LOOK: Duration = Duration::from_secs(30);
/// How long a client may take for the head of a request.
const HEAD: Duration = Duration::from_secs(20);

/// Serves until the process is told to end by SIGTERM or SIGINT, and the requests begun by then have ended, for which they
/// have the configuration's grace.
///
/// # Errors
/// What keeps it from serving.
pub fn serve(config: &Config) -> Result<(), String> {
    // Before anything is served, and dropped after all of it: a store waits for its own thread then.
    let shared = Arc::new(Shared::open(config)?);
    let files = Files::find(&config.tls, &config.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    let served = runtime.block_on(run(config, shared.clone(), files));
    runtime.shutdown_timeout(Duration::from_secs(u64::from(config.limits.grace_seconds)));
    served
}

/// Asks the object stores in which namespaces are, so that wrong keys and names are found before clients find them.
///
/// # Errors
/// What keeps one from being used.
pub fn ask_object_stores(config: &Config) -> Result<(), String> {
    for (name, namespace) in &config.namespaces {
        let cannot = |error: String| format!("namespace {name}: {error}");
        if let config::PlaceConfig::Cloud(cloud) = namespace.place().map_err(cannot)? {
            let answered = cloud.open(namespace::RETRY_FOR, REQUESTS_MAX).and_then(|store| store.page("keys", "", 1));
            answered.map_err(|error| cannot(error.chain()))?;
        }
    }
    Ok(())
}

/// The fingerprint of the certificate that is shown; the server's own one is made when it is missing.
///
/// # Errors
/// When it cannot be read or made.
pub fn fingerprint(config: &Config, state: &Path) -> Result<Fingerprint, String> {
    Ok(Files::find(&config.tls, state)?.read()?.fingerprint)
}

async fn run(config: &Config, shared: Arc<Shared>, files: Files) -> Result<(), String> {
    let identity = files.read()?;
    let listen = |error: std::io::Error| format!("cannot listen on {}: {error}", config.listen);
    let listener = TcpListener::bind(config.listen).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let certificate = RustlsConfig::from_config(identity.config.clone());
    let limits = &config.limits;
    let idle = Duration::from_secs(u64::from(limits.idle_seconds));
    let acceptor = RustlsAcceptor::new(certificate.clone()).acceptor(Acceptor::new(limits.connections, idle));
    let handle = Handle::new();
    tokio::spawn(stop(handle.clone(), shared.clone(), Duration::from_secs(u64::from(limits.grace_seconds)))?);
    tokio::spawn(look_after(shared.clone(), files, certificate)?);
    begin_duties(&shared);
    let mut server = axum_server::from_tcp(listener).map_err(listen)?.http1_only();
    server.http_builder().http1().header_read_timeout(Some(HEAD));
    let fingerprint = identity.fingerprint.to_string();
    log::line("info", "listening", &json!({ "address": address.to_string(), "fingerprint": fingerprint }));
    let service = api::router(shared).into_make_service_with_connect_info::<SocketAddr>();
    let served = server.handle(handle).acceptor(acceptor).serve(service).await;
    log::line("info", "stopped", &json!({}));
    served.map_err(|error| format!("cannot serve on {address}: {error}"))
}

/// Begins the end when the process is told to. From the call on, the signals do not end it by themselves.
fn stop(
    handle: Handle<SocketAddr>,
    shared: Arc<Shared>,
    grace: Duration,
) -> Result<impl Future<Output = ()> + Send, String> {
    let cannot = |error| format!("cannot receive signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::line("info", "stopping", &json!({ "grace_seconds": grace.as_secs() }));
        shared.duties.stop.store(true, Ordering::Relaxed);
        handle.graceful_shutdown(Some(grace));
    })
}

/// Does the duties when it is time: those of one namespace one after another, beside those of the others, so that a long one holds
/// nobody else up; and reads packs again beside all of them.
fn begin_duties(shared: &Arc<Shared>) {
    for at in 0..shared.duties.houses.len() {
        tokio::spawn(repeat(shared.clone(), move |shared| shared.duties.keep_house(at, namespace::now_ms())));
    }
    if shared.duties.verifier.is_some() {
        tokio::spawn(repeat(shared.clone(), |shared| {
            shared.duties.verify(shared.namespaces.values(), namespace::now_ms());
        }));
    }
}

/// Does something again and again, a while after it ended.
async fn repeat(shared: Arc<Shared>, work: impl Fn(&Shared) + Clone + Send + 'static) {
    loop {
        let (shared, work) = (shared.clone(), work.clone());
        if let Err(error) = tokio::task::spawn_blocking(move || work(&shared)).await {
            log::line("error", "a duty broke off", &json!({ "error": error.to_string() }));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes up changed certificates, on SIGHUP at once; gives up the leases of clients that are gone.
fn look_after(
    shared: Arc<Shared>,
    files: Files,
    certificate: RustlsConfig,
) -> Result<impl Future<Output = ()> + Send, String> {
    let mut hangup = signal(SignalKind::hangup()).map_err(|error| format!("cannot receive signals: {error}"))?;
    Ok(async move {
        let mut seen = files.changed();
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = files.changed();
            if asked || now != seen {
                seen = now;
                match files.read() {
                    Ok(identity) => {
                        certificate.reload_from_config(identity.config);
                        let fingerprint = identity.fingerprint.to_string();
                        log::line("info", "certificate read", &json!({ "fingerprint": fingerprint }));
                    }
                    // The one before goes on.
                    Err(error) => log::line("error", "certificate not read", &json!({ "error": error })),
                }
            }
            let shared = shared.clone();
            let expired = tokio::task::spawn_blocking(move || {
                shared.namespaces.values().for_each(|namespace| namespace.expire_leases(namespace::now_ms()));
            });
            if let Err(error) = expired.await {
                log::line("error", "leases not looked after", &json!({ "error": error.to_string() }));
            }
        }
    })
}
