//! Keeping house in a repository with its structure key: retention, garbage collection, capacity figures. The server works on
//! the folder or the object store as any process does, with leases and turns (docs/concurrency.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use repo_core::entropy::Entropy;
use repo_core::keys::key_file::KeyFile;
use repo_core::keys::slot::{Grant, Unlock};
use repo_core::monitor::Monitor;
use repo_core::ops::forget::{self, Request, Scope, Times};
use repo_core::ops::gc::{GcOptions, gc};
use repo_core::ops::open::{cached_in, open_session};
use repo_core::ops::report::{Capacity, ReportOptions, report};
use repo_core::ops::sync;
use repo_core::repository::{Found, Repository};
use repo_core::retention::Policy;
use repo_core::retention::calendar::Clock;
use repo_core::seal::Suite;
use repo_core::store::{ObjectName, Store};
use repo_core::traffic::REQUESTS_MAX;
use repo_core::{Error, ErrorKind, snapshot};
use serde_json::{Value, json};

use super::duty::Duty;
use super::notes::{Done, Notes};
use super::partner::{Direction, Partner, RETRY_FOR};
use super::schedule::Schedule;
use crate::config::{Config, NamespaceConfig, PlaceConfig};
use crate::log;

/// The longest key file that is read, in bytes.
const KEY_FILE_LEN_MAX: u64 = 64 * 1024;
/// Days that the forecast looks back, as `cairn report` does.
const WINDOW_DAYS: u32 = 30;
/// How long packs stay condemned, unless the configuration says otherwise, in minutes.
const GRACE_MINUTES: u32 = 60;

/// The duties in one namespace.
pub(crate) struct House {
    pub(crate) namespace: String,
    place: PlaceConfig,
    /// Where the index of a repository is kept that is not in a folder.
    cache: PathBuf,
    key_file: Option<PathBuf>,
    quota_bytes: Option<u64>,
    policy: Policy,
    grace_ms: i64,
    partners: BTreeMap<String, Partner>,
    /// In the order in which they run: what was forgotten is collected, what was collected is not measured.
    pub(crate) schedules: Vec<(Duty, Schedule)>,
    zone: TimeZone,
}

impl House {
    /// Those of all namespaces that have any.
    pub(crate) fn all(config: &Config, zone: &TimeZone) -> Result<Vec<Self>, String> {
        let houses = config.namespaces.iter().map(|(name, namespace)| {
            Self::new(name, namespace, &config.state.join("cache"), zone)
                .map_err(|error| format!("namespace {name}: {error}"))
        });
        Ok(houses.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn new(name: &str, config: &NamespaceConfig, cache: &Path, zone: &TimeZone) -> Result<Option<Self>, String> {
        let Some(duties) = &config.duties else { return Ok(None) };
        let retention = duties.retention.as_ref();
        let texts = [
            (Duty::Retention, retention.map(|retention| &retention.schedule)),
            (Duty::Gc, duties.gc.as_ref()),
            (Duty::Capacity, duties.capacity.as_ref()),
        ];
        let texts = texts.into_iter().filter_map(|(duty, text)| Some((duty, text?)));
        let texts = texts.chain(duties.sync.iter().map(|(label, sync)| (Duty::Sync(label.clone()), &sync.schedule)));
        let partners = duties.sync.iter().map(|(label, sync)| {
            let partner = Partner::new(sync, cache).map_err(|error| format!("sync {label}: {error}"))?;
            Ok((label.clone(), partner))
        });
        let schedules = texts.map(|(duty, text)| Ok((duty, Schedule::parse(text, zone.clone())?)));
        Ok(Some(Self {
            namespace: name.to_owned(),
            place: config.place()?,
            cache: cache.to_owned(),
            key_file: duties.key_file.clone(),
            quota_bytes: config.quota_bytes(),
            policy: retention.map(|retention| retention.policy()).transpose()?.unwrap_or_default(),
            grace_ms: i64::from(duties.gc_grace_minutes.unwrap_or(GRACE_MINUTES)) * 60 * 1000,
            partners: partners.collect::<Result<_, String>>()?,
            schedules: schedules.collect::<Result<_, String>>()?,
            zone: zone.clone(),
        }))
    }

    /// Runs what is due. Blocks for as long as it takes; ends early when it is told to stop.
    pub(crate) fn run_due(&self, notes: &Notes, now_ms: i64, stop: &AtomicBool) {
        for (duty, schedule) in &self.schedules {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match notes.of(&self.namespace).duties.get(duty) {
                Some(last) if !schedule.is_due(last.began_ms, now_ms) => {}
                Some(_) => drop(self.run(duty, notes, now_ms, stop)),
                // A new one waits for its time.
                None => {
                    let new = Done { began_ms: now_ms, took_ms: 0, error: None, result: Value::Null };
                    notes.update(&self.namespace, |notes| drop(notes.duties.insert(duty.clone(), new)));
                }
            }
        }
    }

    /// Runs a duty now, and notes what became of it. Where another process has the turn it stays due.
    pub(crate) fn run(&self, duty: &Duty, notes: &Notes, now_ms: i64, stop: &AtomicBool) -> Result<Value, String> {
        let began = Instant::now();
        let monitor = Told { namespace: &self.namespace, duty, stop };
        let ended = self.carry_out(duty, now_ms, &monitor);
        let fields = |outcome: Value| json!({ "namespace": self.namespace, "duty": duty, "outcome": outcome });
        let error = match &ended {
            Ok(result) => {
                log::line("info", "duty done", &fields(result.clone()));
                None
            }
            Err(error) if matches!(error.kind(), ErrorKind::Locked | ErrorKind::Interrupted) => {
                log::line("info", "duty put off", &fields(error.chain().into()));
                return Err(error.chain());
            }
            Err(error) => {
                log::line("error", "duty failed", &fields(error.chain().into()));
                Some(error.chain())
            }
        };
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        notes.update(&self.namespace, |notes| {
            let before = notes.duties.get(duty).map(|done| done.result.clone());
            let result = ended.as_ref().ok().cloned().or(before).unwrap_or_default();
            notes.duties.insert(duty.clone(), Done { began_ms: now_ms, took_ms, error, result });
        });
        ended.map_err(|error| error.chain())
    }

    fn carry_out(&self, duty: &Duty, now_ms: i64, monitor: &dyn Monitor) -> repo_core::Result<Value> {
        match duty {
            Duty::Retention => self.forget(&self.open()?, now_ms, monitor),
            Duty::Gc => self.collect(self.open()?, now_ms, monitor),
            Duty::Capacity => self.measure(&Arc::new(self.open()?), now_ms, monitor),
            Duty::Sync(label) => {
                let missing = || Error::internal("a sync that is scheduled is in the configuration");
                let partner = self.partners.get(label).ok_or_else(missing)?;
                self.with_clock(now_ms, |clock| self.sync(partner, clock, monitor))
            }
        }
    }

    /// Opens the repository.
    pub(crate) fn open(&self) -> repo_core::Result<Repository> {
        self.unlock(Repository::find(self.store()?)?)
    }

    fn store(&self) -> repo_core::Result<Store> {
        match &self.place {
            PlaceConfig::Folder(path) => Store::open_local(path),
            PlaceConfig::Cloud(cloud) => cloud.open(RETRY_FOR, REQUESTS_MAX),
        }
    }

    /// Where the index is, unless it is in the repository.
    fn cache(&self) -> Option<&Path> {
        match &self.place {
            PlaceConfig::Folder(_) => None,
            PlaceConfig::Cloud(_) => Some(&self.cache),
        }
    }

    fn unlock(&self, found: Found) -> repo_core::Result<Repository> {
        let key = self.key_file.as_deref().map(read_key_file).transpose()?;
        match (found.suite(), key) {
            (Suite::None, _) => found.open(&Unlock::Open, Entropy::system()),
            (Suite::Aes256Gcm, None) => {
                Err(Error::invalid("the repository is encrypted, and its duties have no key_file"))
            }
            (Suite::Aes256Gcm, Some(file)) => {
                let repository = found.open(&Unlock::PrivateKey(&file.key), Entropy::system())?;
                if !repository.is_bound(&file.pins) {
                    let text = "this is not the repository that the key file is bound to";
                    return Err(Error::new(ErrorKind::Unauthenticated, text));
                }
                Ok(repository)
            }
        }
    }

    /// What the key opens, for the administrator.
    pub(crate) fn describe(&self) -> String {
        match self.open() {
            Ok(repository) if repository.grant() == Grant::Structure => "key of the role structure".to_owned(),
            Ok(repository) if repository.config.suite == Suite::None => "not encrypted, no key is needed".to_owned(),
            Ok(repository) => {
                let role = repository.grant().name();
                format!("key of the role {role}: more than duties need, the server could read or add content")
            }
            Err(error) if error.kind() == ErrorKind::NotFound => "no repository yet".to_owned(),
            Err(error) => format!("cannot be opened: {}", error.chain()),
        }
    }

    /// Local time, and seconds that it is ahead of UTC.
    fn with_clock<T>(&self, now_ms: i64, work: impl FnOnce(&Clock<'_>) -> T) -> T {
        let end = |ms: i64| if ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let at = |ms: i64| Timestamp::from_millisecond(ms).unwrap_or_else(|_| end(ms));
        let offset = |ms: i64| self.zone.to_offset(at(ms)).seconds();
        work(&Clock { now_ms, offset: &offset })
    }

    fn forget(&self, repository: &Repository, now_ms: i64, monitor: &dyn Monitor) -> repo_core::Result<Value> {
        let policy = self.policy.clone();
        let request = Request::Policy { policy, scope: Scope::default(), times: Times::Both };
        let plan = self.with_clock(now_ms, |clock| forget::forget(repository, &request, clock, monitor))?;
        for (_, error) in &plan.unreadable {
            monitor.damage(error);
        }
        let forgotten: Vec<_> = plan.forgotten().map(|planned| planned.id.to_hex()).collect();
        Ok(json!({
            "snapshots": plan.snapshots.len(), "forgotten": forgotten.len(), "forgotten_ids": forgotten,
            "unreadable": plan.unreadable.len(),
        }))
    }

    fn collect(&self, repository: Repository, now_ms: i64, monitor: &dyn Monitor) -> repo_core::Result<Value> {
        let session = open_session(repository, self.cache(), monitor)?;
        let options = GcOptions { grace_ms: self.grace_ms, ..GcOptions::new(now_ms) };
        let report = gc(&session, &options, monitor)?;
        Ok(json!({
            "snapshots": report.snapshots,
            "needed_bytes": report.needed_bytes,
            "waste_bytes": report.waste_bytes,
            "deleted_packs": report.deleted_packs,
            "deleted_bytes": report.deleted_bytes,
            "condemned_packs": report.condemned_packs,
            "condemned_bytes": report.condemned_bytes,
            "repacked_packs": report.repacked_packs,
            "moved_bytes": report.moved_bytes,
            "unreadable_packs": report.unreadable_packs,
            "unreadable_waste_bytes": report.unreadable_waste_bytes,
            "rescued_packs": report.rescued_packs,
            "waiting_packs": report.waiting_packs,
            "waiting_bytes": report.waiting_bytes,
            "waits_for": report.waits_for.len(),
        }))
    }

    /// Copies what is missing, between this repository and a copy of it. One that is not there yet is made, if that was said.
    fn sync(&self, partner: &Partner, clock: &Clock<'_>, monitor: &dyn Monitor) -> repo_core::Result<Value> {
        let other = partner.store()?;
        let (from, to) = match partner.direction {
            Direction::Push => (self.open()?, other),
            Direction::Pull => (self.unlock(Repository::find(other)?)?, self.store()?),
        };
        if !to.exists(ObjectName::Config)? {
            if !partner.init {
                let text =
                    format!("{} holds no repository: is it mounted? init = true makes a copy there", to.location());
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            from.copy_to(&to)?;
        }
        let to = from.open_copy(to, Entropy::system())?;
        let session = |repository| open_session(repository, Some(&partner.cache), monitor);
        let (from, to) = (Arc::new(session(from)?), session(to)?);
        let report = sync::sync(&from, &to, &partner.options(clock), monitor)?;
        if let Some((id, error)) = report.failed.into_iter().next() {
            return Err(error.context(format!("snapshot {} could not be synced, nor may others", id.short())));
        }
        Ok(json!({
            "chosen_snapshots": report.chosen_snapshots,
            "present_snapshots": report.present_snapshots,
            "synced_snapshots": report.synced.len(),
            "moved_packs": report.moved_packs,
            "moved_bytes": report.moved_bytes,
            "stored_bytes": report.stored_bytes,
            "annotations": report.annotations,
            "unreadable_records": report.unreadable_records,
        }))
    }

    fn measure(&self, repository: &Arc<Repository>, now_ms: i64, monitor: &dyn Monitor) -> repo_core::Result<Value> {
        let (snapshots, errors) = snapshot::read_all(repository)?;
        for (_, error) in &errors {
            monitor.damage(error);
        }
        let capacity = match (self.quota_bytes, repository.store.free_bytes()) {
            (Some(quota), _) => Capacity::Total(quota),
            (None, Some(free)) => Capacity::Free(free),
            (None, None) => Capacity::Unknown,
        };
        let cache = match &self.place {
            PlaceConfig::Folder(path) => path.join("index"),
            PlaceConfig::Cloud(_) => cached_in(&self.cache, repository.config.id, &repository.store),
        };
        let report = self.with_clock(now_ms, |clock| {
            let cache = Some(cache.as_path());
            let options = ReportOptions { clock, vdi: None, policies: &[], capacity, window_days: WINDOW_DAYS, cache };
            report(repository, &snapshots, &options, monitor)
        })?;
        let (usage, figures, ratios) = (&report.usage, &report.repository, report.ratios());
        Ok(json!({
            "time_ms": now_ms,
            "snapshots": figures.snapshot_count,
            "vms": report.vms.len(),
            "vdis": report.vdis.len(),
            "total_bytes": usage.total(),
            "live_bytes": usage.live(),
            "reclaimable_bytes": usage.reclaimable(),
            "virtual_bytes": figures.virtual_bytes,
            "allocated_bytes": figures.allocated_bytes,
            "distinct_bytes": usage.live_data.plain,
            "deduplication": ratios.deduplication,
            "compression": ratios.compression,
            "ratio": ratios.total,
            "capacity_bytes": report.forecast.capacity_bytes,
            "growth_bytes_per_day": report.forecast.growth_bytes_per_day,
            "days_left": report.forecast.days_left,
            "damages": usage.damage_count,
            "unreadable": errors.len(),
        }))
    }
}

fn read_key_file(path: &Path) -> repo_core::Result<KeyFile> {
    let what = || format!("key file {}", path.display());
    let cannot = |error| Error::with_source(ErrorKind::Invalid, format!("cannot read {}", what()), error);
    if std::fs::metadata(path).map_err(cannot)?.len() > KEY_FILE_LEN_MAX {
        return Err(Error::invalid(format!("{} is too long for one", what())));
    }
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    KeyFile::parse(&text).map_err(|error| error.context(format!("{} cannot be used", what())))
}

/// Tells the log, and listens whether the server is to end.
struct Told<'a> {
    namespace: &'a str,
    duty: &'a Duty,
    stop: &'a AtomicBool,
}

impl Told<'_> {
    fn line(&self, level: &'static str, message: &str, text: String) {
        log::line(level, message, &json!({ "namespace": self.namespace, "duty": self.duty, "text": text }));
    }
}

impl Monitor for Told<'_> {
    fn begin(&self, _task: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}

    fn warn(&self, text: &str) {
        self.line("warning", "duty warns", text.to_owned());
    }

    fn damage(&self, error: &Error) {
        self.line("error", "duty met damage", error.chain());
    }

    fn is_cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
