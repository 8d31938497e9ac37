//! The same for many objects: on the CPU's threads in a folder, many at once where each waits for an answer.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::store::{Place, Store};

/// Requests that wait at once. The network's own limit is as high.
const AT_ONCE: usize = 16;

impl Store {
    /// Does something for each of `items`, and gives the results in their order.
    pub fn each<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        match self.place {
            Place::Local(_) => items.par_iter().map(&work).collect(),
            Place::Remote(_) => many_at_once(items, &work),
        }
    }
}

fn many_at_once<T: Sync, R: Send>(items: &[T], work: &(impl Fn(&T) -> R + Sync)) -> Vec<R> {
    if items.len() < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..items.len().min(AT_ONCE)).map(|_| scope.spawn(take)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for len in [0, 1, 2, 500_u64] {
            let items: Vec<u64> = (0..len).collect();
            assert_eq!(many_at_once(&items, &|item| item * 3), items.iter().map(|item| item * 3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn so_many_wait_at_once() {
        // Each waits until all others came: with fewer at once this would never end.
        let barrier = std::sync::Barrier::new(AT_ONCE);
        many_at_once(&[(); AT_ONCE], &|()| barrier.wait().is_leader());
    }
}
