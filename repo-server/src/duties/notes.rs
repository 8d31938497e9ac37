//! What became of duties: `duties.json` of the state folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::duty::Duty;
use super::verify;
use crate::log;
use crate::token::replace_private;

/// The file. Another process may change it, too: it is read each time, and changed under a lock.
#[derive(Debug)]
pub(crate) struct Notes {
    path: PathBuf,
}

/// What is noted of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NamespaceNotes {
    /// Reading packs again.
    #[serde(default)]
    pub(super) verify: Option<verify::Note>,
    /// Other duties.
    #[serde(default)]
    pub(crate) duties: BTreeMap<Duty, Done>,
}

/// The last run of a duty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// When it began, in milliseconds since the Unix epoch.
    pub(crate) began_ms: i64,
    /// How long it took, in milliseconds.
    pub(crate) took_ms: u64,
    /// Why it failed; null when it did not.
    pub(crate) error: Option<String>,
    /// What it found and did; that of the last run that did not fail.
    pub(crate) result: Value,
}

impl Done {
    /// Whether it only says since when the duty waits for its first run.
    pub(super) fn is_new(&self) -> bool {
        self.error.is_none() && self.result.is_null()
    }
}

impl Notes {
    /// Takes up what is noted.
    pub(crate) fn open(state: &Path) -> Result<Self, String> {
        let notes = Self { path: state.join("duties.json") };
        notes.read()?;
        Ok(notes)
    }

    /// What is noted of a namespace. A file that cannot be read is told, and says nothing.
    pub(crate) fn of(&self, namespace: &str) -> NamespaceNotes {
        let mut all = self.read().unwrap_or_else(|error| {
            log::line("error", "cannot read the notes on duties", &json!({ "error": error }));
            BTreeMap::new()
        });
        all.remove(namespace).unwrap_or_default()
    }

    /// Changes what is noted of a namespace.
    pub(crate) fn update(&self, namespace: &str, change: impl FnOnce(&mut NamespaceNotes)) {
        if let Err(error) = self.try_update(namespace, change) {
            log::line("error", "cannot write duties.json", &json!({ "error": error }));
        }
    }

    fn try_update(&self, namespace: &str, change: impl FnOnce(&mut NamespaceNotes)) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let lock = File::create(self.path.with_extension("lock")).map_err(text)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| error.to_string())?;
        let mut all = self.read()?;
        change(all.entry(namespace.to_owned()).or_default());
        let bytes = serde_json::to_vec_pretty(&all).map_err(|error| error.to_string())?;
        replace_private(&self.path, &bytes).map_err(text)
    }

    fn read(&self) -> Result<BTreeMap<String, NamespaceNotes>, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", self.path.display());
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| cannot(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(cannot(&error)),
        }
    }
}
