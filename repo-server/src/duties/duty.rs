//! What the server may be told to do in a namespace, and how it is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the server may be told to do in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Duty {
    /// Forgets what the policy does not keep.
    Retention,
    /// Collects garbage.
    Gc,
    /// Measures what is stored, at what ratio, and when the room is used up.
    Capacity,
    /// Syncs with another repository, by its label in the configuration.
    Sync(String),
}

/// Its name in files and on the command line.
impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retention => f.write_str("retention"),
            Self::Gc => f.write_str("gc"),
            Self::Capacity => f.write_str("capacity"),
            Self::Sync(label) => write!(f, "sync:{label}"),
        }
    }
}

impl FromStr for Duty {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "retention" => Ok(Self::Retention),
            "gc" => Ok(Self::Gc),
            "capacity" => Ok(Self::Capacity),
            _ => name
                .strip_prefix("sync:")
                .map(|label| Self::Sync(label.to_owned()))
                .ok_or_else(|| format!("{name:?} is no duty: retention, gc, capacity and sync:LABEL are")),
        }
    }
}

impl TryFrom<String> for Duty {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<Duty> for String {
    fn from(duty: Duty) -> Self {
        duty.to_string()
    }
}
