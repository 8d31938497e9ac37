//! What the server does by itself, by schedules: it reads packs again without any key ([`Verifier`]), and keeps house with the
//! structure key ([`House`]).
//!
//! When a run came due while the server was down it is made up for, once, whatever the number of those that were missed. What
//! became of each stands in `duties.json` of the state folder ([`Notes`]).

mod command;
mod duty;
mod house;
mod notes;
mod partner;
mod schedule;
mod verify;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::tz::TimeZone;
use serde_json::Value;

use crate::config::Config;
use crate::namespace::Namespace;
pub use command::{ShownDuty, describe_keys, duties_text, run_duties, shown_duties};
pub use duty::Duty;
pub(crate) use house::House;
pub(crate) use notes::Notes;
pub(crate) use schedule::Schedule;
pub(crate) use verify::Verifier;

/// All duties of a server.
pub(crate) struct Duties {
    /// None when packs are not read again.
    pub(crate) verifier: Option<Verifier>,
    pub(crate) houses: Vec<House>,
    pub(crate) notes: Arc<Notes>,
    /// Whether the server is about to end.
    pub(crate) stop: AtomicBool,
}

impl Duties {
    /// Takes up where the server ended.
    pub(crate) fn open(config: &Config, zone: &TimeZone) -> Result<Self, String> {
        let notes = Arc::new(Notes::open(&config.state)?);
        let verifier = config.verify.as_ref().map(|verify| {
            let schedule = Schedule::parse(&verify.schedule, zone.clone())?;
            Ok::<_, String>(Verifier::open(verify, schedule, notes.clone()))
        });
        let (verifier, houses) = (verifier.transpose()?, House::all(config, zone)?);
        Ok(Self { verifier, houses, notes, stop: AtomicBool::new(false) })
    }

    /// What was measured last of a namespace.
    pub(crate) fn capacity(&self, namespace: &str) -> Option<Value> {
        self.houses.iter().find(|house| house.namespace == namespace)?;
        let done = self.notes.of(namespace).duties.remove(&Duty::Capacity)?;
        Some(done.result).filter(|result| !result.is_null())
    }

    /// Keeps house in one namespace, where something is due. Blocks for as long as it takes.
    pub(crate) fn keep_house(&self, at: usize, now_ms: i64) {
        self.houses[at].run_due(&self.notes, now_ms, &self.stop);
    }

    /// Reads packs of all namespaces again, where it is time. Blocks for as long as it takes.
    pub(crate) fn verify<'a>(&self, namespaces: impl Iterator<Item = &'a Arc<Namespace>>, now_ms: i64) {
        for namespace in namespaces {
            self.verifier.iter().for_each(|verifier| verifier.verify_if_due(namespace, now_ms));
        }
    }
}
