//! Telling the records of the trace, and the counters.

use super::trace::{Counters, MAX_RECORDS, Trace, TraceSink};
use super::{Connection, State, ThreadMark};
use crate::error::Result;
use std::sync::MutexGuard;

/// The thread that tells a record does no longer, whatever happens to it.
struct Emitting<'a>(&'a Connection);

impl Drop for Emitting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.emitting = None;
        // Somebody may wait for this.
        self.0.wake(&mut state);
    }
}

impl Connection {
    /// From now on `sink` is told of every message. The one before is not any
    /// more once this returns, which may have to wait until it is done.
    pub(crate) fn set_trace(&self, sink: Option<TraceSink>) -> Result<()> {
        let state = self.enter()?;
        let mut state = self.emit(state);
        let before = state.machine.ledger.replace_trace(sink);
        let told = state.told;
        while state.emitting.is_some() && state.told == told {
            state = self.sleep(state, None);
        }
        drop(state);
        drop(before); // it may be the last owner of something of the caller's
        Ok(())
    }

    /// Tells the records that wait, without the lock, unless another thread does.
    pub(super) fn emit<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        // As many as there may be, and not for ever what other threads add.
        for _ in 0..MAX_RECORDS {
            if state.emitting.is_some() {
                break;
            }
            let trace = &mut state.machine.ledger.trace;
            let Some((record, sink)) = trace.as_mut().and_then(Trace::next) else {
                break;
            };
            state.told = state.told.wrapping_add(1);
            state.emitting = Some(ThreadMark::here());
            drop(state);
            let emitting = Emitting(self);
            sink(&record);
            drop(sink); // not under the lock, either
            drop(emitting);
            state = self.lock();
        }
        state
    }

    /// Whether this thread is in a function of the caller's that this connection
    /// has called.
    pub(crate) fn called_back_here(&self) -> bool {
        self.lock().called_back(ThreadMark::here()).is_some()
    }

    /// What has happened so far.
    pub(crate) fn counters(&self) -> Counters {
        self.lock().machine.ledger.counters
    }
}
