//! The shell for an event loop: requests are begun, bytes move by steps that never
//! wait, and outcomes are there when they are there.
//!
//! The caller's functions run inside [`step`](Connection::step),
//! [`serve_channel`](Connection::serve_channel) and [`tell`](Connection::tell) only, so that whoever begins requests may hold a lock.

use super::machine::{Posted, Reply, Ticket};
use super::{Connection, Expect, Outgoing};
use crate::error::{Error, Phase, Result};
use crate::socket::Watch;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// How often one step reads: each read brings one message or many.
const MAX_READS: usize = 64;

/// A request that was begun.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What is waited for, and what came before it for its sake.
    pub(super) ticket: Ticket,
    first: Option<Ticket>,
    expect: Option<Expect>,
}

impl Pending {
    pub(super) fn new(ticket: Ticket, expect: Option<Expect>) -> Self {
        Self {
            ticket,
            first: None,
            expect,
        }
    }

    /// It is answered, or a request behind it is.
    pub(crate) fn is_answered(&self) -> bool {
        self.expect.is_some() || self.first.is_some()
    }

    /// What was waited for has come.
    pub(super) fn told<'a>(&self, reply: Reply<'a>) -> Outcome<'a> {
        match self.expect {
            None => Outcome::Sent,
            Some(expect) if expect.ack => Outcome::Ack(reply),
            Some(_) => Outcome::Reply(reply),
        }
    }

    /// Whoever made the request does not know of a barrier behind it.
    fn behind(&self, error: Error) -> Error {
        match (self.first, error.phase) {
            (None, _) => error,
            (Some(_), Phase::Reply) => error.about(None).during(Phase::Barrier),
            (Some(_), _) => error.about(None),
        }
    }
}

/// What is there of a request that has not failed.
#[derive(Debug)]
pub(crate) enum Outcome<'a> {
    /// It is in the socket, and not answered; or was seen to be processed.
    Sent,
    Ack(Reply<'a>),
    Reply(Reply<'a>),
}

impl Connection {
    /// Nobody will wait in a call: the loss of the stream need wake nobody, and
    /// the end of the back-end can be seen afterwards
    /// (`Fence`).
    pub(crate) fn drive_by_steps(&self) {
        self.stepped.store(true, Ordering::Relaxed);
    }

    /// Begins a request, with a reply or without one.
    pub(crate) fn begin(&self, out: &Outgoing<'_>, expect: Option<Expect>) -> Result<Pending> {
        let mut state = self.enter()?;
        let ticket = self.submit(&mut state, out, expect, Instant::now())?;
        Ok(Pending::new(ticket, expect))
    }

    /// Begins a request that is not acknowledged and, right behind it, one whose
    /// reply shows that the first has been processed.
    pub(crate) fn begin_with_barrier(
        &self,
        out: &Outgoing<'_>,
        barrier: &Outgoing<'_>,
        expect: Expect,
    ) -> Result<Pending> {
        let mut state = self.enter()?;
        let since = Instant::now();
        let first = self.submit(&mut state, out, None, since)?;
        let second = self
            .submit(&mut state, barrier, Some(expect), since)
            .inspect_err(|_| state.machine.disown(first))?;
        state.machine.is_barrier(second, out);
        Ok(Pending {
            ticket: second,
            first: Some(first),
            expect: None,
        })
    }

    /// Sends and receives what can be at once. What it brought is to be taken before
    /// the channel is [served](Self::serve_channel): what a back-end asks behind an
    /// acknowledgement may depend on that.
    pub(crate) fn step(&self) -> Result<()> {
        let mut state = self.emit(self.enter()?);
        state.machine.flush(self.fd());
        for _ in 0..MAX_READS {
            if state.machine.lost() || !state.machine.receive(self.fd()) {
                break;
            }
        }
        self.wake(&mut state);
        drop(state);
        Ok(())
    }

    /// The outcome of a request goes through `decode`, as soon as it is there.
    pub(crate) fn outcome<T>(
        &self,
        pending: &Pending,
        decode: impl FnOnce(Outcome<'_>) -> Result<T>,
    ) -> Option<Result<T>> {
        let mut state = self.lock();
        let first = pending.first;
        if !state.machine.done(pending.ticket)
            || first.is_some_and(|first| !state.machine.done(first))
        {
            return None;
        }
        let sent = first.map_or(Ok(()), |first| state.machine.outcome(first, |_| Ok(())));
        let result = state
            .machine
            .outcome(pending.ticket, |reply| decode(pending.told(reply)));
        self.leave(&mut state);
        Some(sent.and(result.map_err(|error| pending.behind(error))))
    }

    /// Tells what the trace has to say of what was begun.
    pub(crate) fn tell(&self) {
        drop(self.emit(self.lock()));
    }

    /// Gives a request up whose deadline has passed.
    pub(crate) fn overdue(&self, pending: &Pending) -> Error {
        let mut state = self.lock();
        if let Some(first) = pending.first {
            state.machine.disown(first);
        }
        pending.behind(self.give_up(&mut state, pending.ticket))
    }

    /// What to wait for before the next [`step`](Self::step). Room for more
    /// descriptors than are in flight cannot be waited for: the second says so.
    pub(crate) fn interest(&self) -> (Watch<'_>, bool) {
        let state = self.lock();
        let throttled = state.machine.throttled;
        let watch = Watch {
            fd: self.fd(),
            read: true,
            write: state.machine.wants_write() && !throttled,
            end: true,
        };
        (watch, throttled)
    }

    /// The posted requests that have no answer yet.
    pub(crate) fn posted(&self) -> Posted {
        self.lock().machine.posted()
    }

    /// How many posted requests the back-end refused since the last call, and the
    /// error of the first.
    pub(crate) fn take_posted_refusals(&self) -> Option<(u32, Error)> {
        self.lock().machine.take_posted_refusals()
    }

    /// Why the connection is of no further use, if so.
    pub(crate) fn lost(&self) -> Option<Error> {
        let state = self.lock();
        let cause = state.machine.cause().cloned();
        cause.or_else(|| state.machine.ended())
    }
}
