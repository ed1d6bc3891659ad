//! The shell for lists: several requests are begun by one system call, and a call
//! then waits for the outcome of each, in their order.

use super::machine::Abandoned;
use super::stepping::{Outcome, Pending};
use super::trace::count;
use super::{Connection, Expect, Outgoing};
use crate::error::{Error, Phase, Result};
use crate::socket::Deadline;

impl Connection {
    /// Begins several requests, at most [`MAX_PARCELS`](crate::socket::MAX_PARCELS).
    /// `begun` is told each; an error is about the next one.
    pub(crate) fn begin_all(
        &self,
        list: &[(Outgoing<'_>, Option<Expect>)],
        mut begun: impl FnMut(Pending),
    ) -> Result<()> {
        let mut state = self.enter()?;
        let mut expected = list.iter().map(|(_, expect)| *expect);
        let result = state.machine.submit_all(self.fd(), list, |ticket| {
            begun(Pending::new(ticket, expected.next().flatten()));
        });
        if result.is_err() {
            self.wake(&mut state); // others may have failed with it
        }
        result
    }

    /// Waits for the outcome of a request that was begun. The deadline is asked for only
    /// if it is not there yet.
    pub(crate) fn finish_begun<T>(
        &self,
        pending: &Pending,
        deadline: impl FnOnce() -> Deadline,
        decode: impl FnOnce(Outcome<'_>) -> Result<T>,
    ) -> Result<T> {
        let state = self.enter()?;
        self.finish(state, pending.ticket, deadline)?
            .decode(|reply| decode(pending.told(reply)))
    }

    /// The next request is only to know that those before it have been processed.
    pub(crate) fn count_barrier(&self) {
        count(&mut self.lock().machine.ledger.counters.barriers);
    }

    /// Nobody asks any more for the outcome of requests that were begun, because of
    /// this. What has not been sent is not. How many of them went out, which are the
    /// first.
    pub(crate) fn let_go<'a>(
        &self,
        all: impl Iterator<Item = &'a Pending>,
        cause: &Error,
    ) -> usize {
        let mut state = self.lock();
        let mut out = 0_usize;
        for pending in all {
            let went_out = if state.machine.done(pending.ticket) {
                let outcome = state.machine.outcome(pending.ticket, |_| Ok(()));
                outcome.err().is_none_or(|error| error.phase != Phase::Send)
            } else {
                let left = state.machine.abandon(pending.ticket).0;
                if left == Abandoned::CutShort {
                    state.machine.fail_all(cause);
                }
                left == Abandoned::Unanswered
            };
            out = out.saturating_add(usize::from(went_out));
        }
        self.leave(&mut state);
        out
    }
}
