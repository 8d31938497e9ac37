//! How much a repository holds, held against its quota. Nothing is counted where there is none.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::refusal::Refusal;

/// How often all objects are counted again when the quota seems to be used up: others may have deleted some.
const RECOUNT: Duration = Duration::from_secs(60);

/// Counts the bytes of all objects.
type Count<'a> = &'a dyn Fn() -> Result<u64, Refusal>;

pub(super) struct Usage {
    quota: Option<u64>,
    /// None before they are counted.
    state: Mutex<Option<State>>,
}

struct State {
    /// Bytes of objects, and of those that are coming.
    used: u64,
    counted: Instant,
}

impl Usage {
    pub(super) fn new(quota: Option<u64>) -> Self {
        Self { quota, state: Mutex::new(None) }
    }

    /// Counts, unless that was done or there is no quota.
    pub(super) fn count(&self, count: Count<'_>) -> Result<(), Refusal> {
        self.quota.map_or(Ok(()), |_| self.counted(&mut self.state.lock(), count).map(drop))
    }

    fn counted<'s>(&self, state: &'s mut Option<State>, count: Count<'_>) -> Result<&'s mut State, Refusal> {
        if state.is_none() {
            *state = Some(State { used: count()?, counted: Instant::now() });
        }
        state.as_mut().ok_or_else(|| Refusal::unavailable("what the namespace holds is not counted yet"))
    }

    pub(super) fn told(&self) -> (Option<u64>, Option<u64>) {
        (self.state.lock().as_ref().map(|state| state.used), self.quota)
    }

    pub(super) fn reserve(&self) -> Reserved<'_> {
        Reserved { usage: self, bytes: 0 }
    }

    pub(super) fn free(&self, bytes: u64) {
        if let Some(state) = self.state.lock().as_mut() {
            state.used = state.used.saturating_sub(bytes);
        }
    }

    fn take(&self, bytes: u64, reserved: u64, count: Count<'_>) -> Result<(), Refusal> {
        let Some(quota) = self.quota else { return Ok(()) };
        let mut state = self.state.lock();
        let state = self.counted(&mut state, count)?;
        if state.used.saturating_add(bytes) > quota && state.counted.elapsed() > RECOUNT {
            // What others have reserved is missing in it: too little by a few objects, until they are stored.
            *state = State { used: count()?.saturating_add(reserved), counted: Instant::now() };
        }
        let used = state.used.saturating_add(bytes);
        if used > quota {
            let text = format!(
                "the namespace is full: it holds {} of {quota} bytes, and {} more do not fit",
                state.used.saturating_sub(reserved),
                reserved + bytes
            );
            return Err(Refusal::full(text));
        }
        state.used = used;
        Ok(())
    }
}

/// Room for an object that is coming; given back when dropped.
pub(super) struct Reserved<'a> {
    usage: &'a Usage,
    bytes: u64,
}

impl Reserved<'_> {
    /// Makes it at least `bytes`.
    pub(super) fn grow(&mut self, bytes: u64, count: Count<'_>) -> Result<(), Refusal> {
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            self.usage.take(more, self.bytes, count)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// The object is stored, and has `bytes`.
    pub(super) fn keep(mut self, bytes: u64) {
        self.usage.free(self.bytes.saturating_sub(bytes));
        self.bytes = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.usage.free(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_reserved_kept_given_back_and_runs_out() {
        let usage = Usage::new(Some(100));
        let count: Count<'_> = &|| Ok(40);
        assert_eq!(usage.told(), (None, Some(100)));
        usage.count(count).unwrap();
        assert_eq!(usage.told(), (Some(40), Some(100)));
        let mut first = usage.reserve();
        first.grow(50, count).unwrap();
        let mut second = usage.reserve();
        let refusal = second.grow(11, count).unwrap_err();
        assert_eq!(refusal.status, axum::http::StatusCode::INSUFFICIENT_STORAGE);
        assert!(refusal.message.contains("full"), "{}", refusal.message);
        second.grow(10, count).unwrap();
        first.keep(30);
        assert_eq!(usage.told().0, Some(80));
        drop(second);
        assert_eq!(usage.told().0, Some(70));
        usage.free(30);
        assert_eq!(usage.told().0, Some(40));
    }

    #[test]
    fn what_cannot_be_counted_takes_nothing_in_and_is_counted_later() {
        let usage = Usage::new(Some(100));
        let mut room = usage.reserve();
        let refusal = room.grow(1, &|| Err(Refusal::unavailable("away"))).unwrap_err();
        assert_eq!(refusal.status, axum::http::StatusCode::SERVICE_UNAVAILABLE);
        usage.free(7);
        room.grow(1, &|| Ok(40)).unwrap();
        assert_eq!(usage.told().0, Some(41));
    }

    #[test]
    fn without_a_quota_nothing_is_counted() {
        let usage = Usage::new(None);
        let never: Count<'_> = &|| unreachable!();
        usage.count(never).unwrap();
        usage.reserve().grow(u64::MAX, never).unwrap();
        assert_eq!(usage.told(), (None, None));
    }
}
