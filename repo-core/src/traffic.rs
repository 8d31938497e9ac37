//! What goes over the network: counted by kind of request and by bytes, and held to the limits that were set.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests under way at once, unless said otherwise.
pub const REQUESTS_MAX: usize = 16;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// An object or a part of it.
    Get,
    /// Whether an object is there, and how long it is.
    Head,
    /// A page of a listing.
    List,
    /// A new object, or a copy of one.
    Put,
    /// Taking one or many away.
    Delete,
    /// Credentials, settings of the bucket.
    Other,
}

/// Limits on what goes over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrafficLimits {
    /// Bytes sent a second; `None` as fast as they go.
    pub upload: Option<u64>,
    /// Bytes received a second; `None` as fast as they come.
    pub download: Option<u64>,
    /// Requests under way at once.
    pub requests: usize,
}

impl Default for TrafficLimits {
    fn default() -> Self {
        Self { upload: None, download: None, requests: REQUESTS_MAX }
    }
}

/// What went over the network so far. Each try of a request counts, bodies alone count as bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficReport {
    /// Reads of objects.
    pub gets: u64,
    /// Questions whether an object is there.
    pub heads: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Objects sent or copied.
    pub puts: u64,
    /// Deletions; one may take away many objects.
    pub deletes: u64,
    /// Anything else.
    pub others: u64,
    /// Bytes of bodies sent.
    pub uploaded_bytes: u64,
    /// Bytes of bodies received.
    pub downloaded_bytes: u64,
}

impl TrafficReport {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.gets + self.heads + self.lists + self.puts + self.deletes + self.others
    }
}

/// Counts and limits. Shared between all that use one connection.
#[derive(Debug)]
pub struct Traffic {
    requests: [AtomicU64; 6],
    uploaded: AtomicU64,
    downloaded: AtomicU64,
    upload: Option<Pace>,
    download: Option<Pace>,
    permits: Arc<Semaphore>,
    started: Instant,
}

impl Traffic {
    /// Nothing counted yet.
    pub fn new(limits: TrafficLimits) -> Self {
        Self {
            requests: Default::default(),
            uploaded: AtomicU64::new(0),
            downloaded: AtomicU64::new(0),
            upload: limits.upload.map(Pace::new),
            download: limits.download.map(Pace::new),
            permits: Arc::new(Semaphore::new(limits.requests.clamp(1, Semaphore::MAX_PERMITS))),
            started: Instant::now(),
        }
    }

    /// Waits until a request may begin, and counts it. It is under way as long as the result lives.
    pub async fn begin(&self, kind: RequestKind) -> OwnedSemaphorePermit {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
        permit
    }

    /// Counts bytes about to be sent, and says how long to wait before.
    pub fn upload(&self, bytes: usize) -> Duration {
        self.uploaded.fetch_add(bytes as u64, Ordering::Relaxed);
        self.upload.as_ref().map_or(Duration::ZERO, |pace| pace.take(self.started.elapsed(), bytes as u64))
    }

    /// Counts bytes that were received, and says how long to wait before more are taken.
    pub fn download(&self, bytes: usize) -> Duration {
        self.downloaded.fetch_add(bytes as u64, Ordering::Relaxed);
        self.download.as_ref().map_or(Duration::ZERO, |pace| pace.take(self.started.elapsed(), bytes as u64))
    }

    /// What was counted so far.
    pub fn report(&self) -> TrafficReport {
        let [gets, heads, lists, puts, deletes, others] =
            [0, 1, 2, 3, 4, 5].map(|at: usize| self.requests[at].load(Ordering::Relaxed));
        TrafficReport {
            gets,
            heads,
            lists,
            puts,
            deletes,
            others,
            uploaded_bytes: self.uploaded.load(Ordering::Relaxed),
            downloaded_bytes: self.downloaded.load(Ordering::Relaxed),
        }
    }
}

/// A bucket of tokens that never holds any in advance: what went is paid for before more goes.
#[derive(Debug)]
struct Pace {
    /// Bytes a second.
    rate: u64,
    /// When all that went so far is paid for.
    free_at: Mutex<Duration>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free_at: Mutex::new(Duration::ZERO) }
    }

    /// Takes `bytes` at the time `now`, and says how long to wait first.
    fn take(&self, now: Duration, bytes: u64) -> Duration {
        let mut free_at = self.free_at.lock();
        let begins = now.max(*free_at);
        *free_at = begins + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        begins - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_the_rate_and_a_pause_saves_nothing_up() {
        let pace = Pace::new(1000);
        let at = Duration::from_millis;
        assert_eq!(pace.take(at(0), 500), at(0));
        assert_eq!(pace.take(at(0), 500), at(500));
        assert_eq!(pace.take(at(700), 100), at(300));
        assert_eq!(pace.take(at(60_000), 2000), at(0), "after a pause at once");
        assert_eq!(pace.take(at(60_000), 1), at(2000), "but what went is paid for");
    }

    #[test]
    fn requests_and_bytes_are_counted_by_kind() {
        let traffic = Traffic::new(TrafficLimits::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for kind in [RequestKind::Get, RequestKind::List, RequestKind::Get] {
            drop(runtime.block_on(traffic.begin(kind)));
        }
        traffic.upload(3);
        traffic.download(4);
        let report = traffic.report();
        assert_eq!((report.gets, report.lists, report.requests()), (2, 1, 3));
        assert_eq!((report.uploaded_bytes, report.downloaded_bytes), (3, 4));
    }
}
