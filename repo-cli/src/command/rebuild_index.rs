//! `cairn rebuild-index`.

use std::time::Instant;

use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Result;
use crate::invocation::Invocation;
use crate::output;

/// Make the index anew from the packs
///
/// The index is a cache: a missing, stale or damaged one is noticed and mended by every command. This one trusts nothing that
/// is there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  cairn rebuild-index
  cairn rebuild-index --repo /backup/pool1 --json";

#[derive(Debug, Serialize)]
struct Rebuilt {
    path: String,
    packs: u64,
    unreadable_packs: u64,
    seconds: f64,
}

pub(super) fn run(_args: &Args, invocation: &Invocation) -> Result<Exit> {
    let started = Instant::now();
    let (session, sync) = invocation.rebuild_index()?;
    let rebuilt = Rebuilt {
        path: session.index.path().display().to_string(),
        packs: sync.added_packs,
        unreadable_packs: sync.unreadable_packs,
        seconds: output::rounded(started.elapsed().as_secs_f64()),
    };
    invocation.print_summary(&rebuilt, || text(&rebuilt))?;
    Ok(if rebuilt.unreadable_packs == 0 { Exit::Done } else { Exit::Damage })
}

fn text(rebuilt: &Rebuilt) -> String {
    let path = output::printable(&rebuilt.path);
    let took = output::seconds(rebuilt.seconds);
    let mut text = format!("index {path} made anew from {} packs in {took}\n", rebuilt.packs);
    if rebuilt.unreadable_packs > 0 {
        text.push_str(&format!("packs that could not be read: {}; see `cairn check`\n", rebuilt.unreadable_packs));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_rebuild_keeps_its_field_names() {
        let rebuilt = Rebuilt { path: "/r/index/0".to_owned(), packs: 3, unreadable_packs: 1, seconds: 0.5 };
        let expected = "{\"path\":\"/r/index/0\",\"packs\":3,\"unreadable_packs\":1,\"seconds\":0.5}\n";
        assert_eq!(output::json(&rebuilt), expected);
        assert!(text(&rebuilt).contains("could not be read: 1;"));
    }
}
