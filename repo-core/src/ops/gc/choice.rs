//! Which packs to empty: those that waste space, and small ones that fill a pack together.

use super::GcOptions;
use super::survey::PackUse;
use crate::index::PackState;
use crate::pack::Content;

/// Small packs that are worth being put together even when they do not fill a pack.
const SMALL_MANY: usize = 64;

/// The packs worth repacking, by their position in the survey, the most wasteful first.
pub(super) fn to_repack(uses: &[PackUse], pack_len: u64, options: &GcOptions) -> Vec<usize> {
    let can_move = |used: &PackUse| used.readable && used.needed_entries > 0 && used.pack.state == PackState::Live;
    let candidates = || uses.iter().enumerate().filter(|(_, used)| can_move(used));
    let mut chosen: Vec<_> = candidates().filter(|(_, used)| used.dead_share() > options.dead_share_max).collect();
    chosen.sort_by(|(_, a), (_, b)| b.dead_share().total_cmp(&a.dead_share()).then(a.pack.id.cmp(&b.pack.id)));
    for content in [Content::Data, Content::Meta] {
        let is_small = |used: &PackUse| used.pack.content == content && used.pack.len < pack_len / 4;
        let small: Vec<_> =
            candidates().filter(|(_, used)| is_small(used) && used.dead_share() <= options.dead_share_max).collect();
        let bytes: u64 = small.iter().map(|(_, used)| used.needed_bytes).sum();
        // So that a byte is moved again only after many new packs came: once for each time it gets into one far larger.
        if bytes >= pack_len || small.len() >= SMALL_MANY {
            chosen.extend(small);
        }
    }
    chosen.into_iter().map(|(at, _)| at).collect()
}

/// Leaves of `chosen` what the options let be moved in one run.
pub(super) fn limit(chosen: &mut Vec<usize>, uses: &[PackUse], options: &GcOptions) {
    let mut room = options.move_bytes_max;
    chosen.retain(|at| {
        let needed_bytes = uses[*at].needed_bytes;
        let fits = needed_bytes <= room;
        room -= if fits { needed_bytes } else { 0 };
        fits
    });
}
