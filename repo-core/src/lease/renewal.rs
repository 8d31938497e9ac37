//! A lease kept young by a thread that puts a renewal beside it again and again. The lease itself is written once: its own
//! time tells when the work began.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::id::LeaseId;
use crate::store::{ObjectName, Store};

/// A lease that is renewed until it is stopped.
pub(super) struct Renewal {
    work: Arc<Work>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Work {
    store: Store,
    id: LeaseId,
    object: Vec<u8>,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Renewal {
    /// Begins; without `every` nothing is put until it is asked for.
    ///
    /// # Errors
    /// `Io` when no thread can be started.
    pub(super) fn start(store: Store, id: LeaseId, object: Vec<u8>, every: Option<Duration>) -> Result<Self> {
        let work = Arc::new(Work { store, id, object, stopped: Mutex::new(false), changed: Condvar::new() });
        let thread = match every {
            None => None,
            Some(every) => {
                let work = work.clone();
                let thread = std::thread::Builder::new().name("lease".to_owned()).spawn(move || work.run(every));
                Some(thread.map_err(|error| Error::io("cannot start a thread", error))?)
            }
        };
        Ok(Self { work, thread: Mutex::new(thread) })
    }

    /// Puts the renewal now.
    pub(super) fn renew(&self) -> Result<()> {
        self.work.store.put_new(ObjectName::Renewal(self.work.id), &self.work.object)
    }

    /// Ends: once it returns nothing is put any more.
    pub(super) fn stop(&self) {
        *self.work.stopped.lock() = true;
        self.work.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic there was printed there; the lease grows old then, which others can deal with.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn run(&self, every: Duration) {
        let mut stopped = self.stopped.lock();
        while !*stopped {
            if !self.changed.wait_for(&mut stopped, every).timed_out() {
                continue;
            }
            drop(stopped);
            let renewed = self.renew_unless_revoked();
            stopped = self.stopped.lock();
            if renewed.is_err_and(|error| error.kind() == ErrorKind::Locked) {
                return;
            }
        }
    }

    /// An error of the store is no end: the next time it may answer, and whether it was too late, the commit finds out.
    fn renew_unless_revoked(&self) -> Result<()> {
        if self.store.exists(ObjectName::Revocation(self.id))? {
            return Err(Error::new(ErrorKind::Locked, "the lease was revoked"));
        }
        self.store.put_new(ObjectName::Renewal(self.id), &self.object)
    }
}
