//! Serving what the back-end asks on its channel, and posting what its handlers
//! have to say at once.

use super::channel::{Channel, Ends, Serve, Served, Signals};
use super::trace::count;
use super::{Connection, Expect, Outgoing, State, ThreadMark};
use crate::error::{Error, Kind, Result};
use crate::socket::{self, Deadline, Watch};
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

/// How many requests of the back-end are served before anything else is looked
/// at.
const BATCH: usize = 64;

/// How many posted requests may be without an answer.
const MAX_POSTED: usize = 256;

/// The thread that serves the channel does no longer, whatever happens to it.
struct Serving<'a>(&'a Connection);

impl<'a> Serving<'a> {
    /// The lock is not let go between this and the answer: another thread would
    /// answer the next request first.
    fn over(self) -> MutexGuard<'a, State> {
        let connection = self.0;
        std::mem::forget(self);
        let mut state = connection.lock();
        connection.served(&mut state);
        state
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        self.0.served(&mut state);
        self.0.arm(&mut state);
    }
}

impl Connection {
    /// Gives the back-end a channel, once: what it asks there is done by `server`.
    /// The socket to hand over.
    pub(crate) fn open_channel(&self, server: Arc<dyn Serve>) -> Result<OwnedFd> {
        let mut state = self.enter()?;
        if self.ends.get().is_some() {
            let text = "the back-end has been given a channel on this connection already";
            return Err(Error::new(Kind::State, text));
        }
        let failed = |errno| Error::os(errno, "cannot make a channel");
        let stepped = self.stepped.load(Ordering::Relaxed);
        let (ends, theirs) = Ends::new(stepped).map_err(failed)?;
        self.ends.get_or_init(|| ends);
        state.channel = Some(Channel::new(server));
        self.arm(&mut state);
        self.wake(&mut state); // if there is one who hears nothing of it
        Ok(theirs)
    }

    /// The back-end did not take its channel.
    pub(crate) fn close_channel(&self, cause: &Error) {
        self.end_channel(&mut self.lock(), cause);
    }

    pub(super) fn end_channel(&self, state: &mut State, cause: &Error) {
        if let (Some(channel), Some(ends)) = (&mut state.channel, self.ends.get()) {
            channel.end(ends, cause);
        }
        self.arm(state);
    }

    /// What is ready when there is something to do for
    /// [`serve_channel`](Self::serve_channel) or whoever it serves.
    pub(crate) fn channel_fd(&self) -> Option<BorrowedFd<'_>> {
        self.signals().map(|signals| signals.pollable.fd())
    }

    pub(super) fn signals(&self) -> Option<&Signals> {
        self.ends.get().and_then(|ends| ends.signals.as_ref())
    }

    /// For who drives by steps: what to wait for on the channel, and whether
    /// there is something to do already.
    pub(crate) fn channel_interest(&self) -> Option<(Watch<'_>, bool)> {
        let state = self.lock();
        let (channel, ends) = (state.channel.as_ref()?, self.ends.get()?);
        Some(channel.interest(ends, state.serving.is_some()))
    }

    /// Does some of what the back-end asks, without waiting.
    pub(crate) fn serve_channel(&self) -> Result<()> {
        let mut state = self.enter()?;
        // A call that goes on may need the channel for its answer.
        if let (Some(cause), false) = (state.machine.ended(), state.machine.under_way()) {
            self.end_channel(&mut state, &cause);
        }
        let mut state = self.serve(state, Deadline::after(None));
        // What handlers have posted, now or earlier.
        if !state.writing {
            state.machine.flush(self.fd());
        }
        if !state.reading && state.machine.unanswered() > 0 {
            state.machine.receive(self.fd());
        }
        self.wake(&mut state);
        drop(self.emit(state));
        Ok(())
    }

    /// Makes the descriptor for polling say whether there is something to do.
    pub(crate) fn arm_channel(&self) {
        self.arm(&mut self.lock());
    }

    pub(super) fn arm(&self, state: &mut State) {
        state.pass_resets_on();
        if let (Some(channel), Some(ends)) = (&mut state.channel, self.ends.get()) {
            let room = Watch {
                fd: self.fd(),
                read: false,
                // Whoever waits for room sends all.
                write: state.machine.wants_write() && !state.writing,
                end: false,
            };
            channel.arm(ends, state.serving.is_some(), room);
        }
    }

    /// Serves what is there, but no more than [`BATCH`] requests, and begins none
    /// after the deadline.
    pub(super) fn serve<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Deadline,
    ) -> MutexGuard<'a, State> {
        for _ in 0..BATCH {
            if deadline.passed() || !state.may_serve() {
                break;
            }
            let State {
                channel, machine, ..
            } = &mut *state;
            let (Some(ends), Some(channel)) = (self.ends.get(), channel) else {
                break;
            };
            let Some(incoming) = channel.step(ends, &mut machine.ledger) else {
                self.arm(&mut state);
                break;
            };
            let request = incoming.request;
            let server = Arc::clone(&channel.server);
            if !self.hear_of_resets(&mut state) {
                state.hold(incoming);
                self.arm(&mut state);
                break;
            }
            state.serving = Some(ThreadMark::here());
            let serving = Serving(self);
            drop(self.emit(state));
            let Served { answer, refused } = server.serve(incoming);
            state = serving.over();
            let State {
                channel, machine, ..
            } = &mut *state;
            count(match refused {
                true => &mut machine.ledger.counters.backend_requests_refused,
                false => &mut machine.ledger.counters.backend_requests_served,
            });
            if let (Some(channel), Some(answer)) = (channel, answer) {
                channel.answer(ends, &mut machine.ledger, request, answer);
            }
            self.arm(&mut state);
            state = self.emit(state);
        }
        state
    }

    /// A reset that was acknowledged before the back-end asked comes before what it
    /// asked: the acknowledgement is there already. False if another thread may have it.
    fn hear_of_resets(&self, state: &mut State) -> bool {
        let mut came = false;
        while state.machine.awaits_reset() && !state.machine.lends_inbox() {
            if !state.machine.receive(self.fd()) {
                break;
            }
            came = true;
        }
        if came {
            self.ring(state); // it may be what others wait for
            self.wake(state);
        }
        state.pass_resets_on();
        // One that blocks, since before there was a channel, sleeps while nothing comes.
        let sleeps = || state.deaf && socket::unread(self.fd()) == Ok(0);
        !state.machine.awaits_reset() || !state.machine.lends_inbox() || sleeps()
    }

    /// Nobody serves the channel any more.
    pub(super) fn served(&self, state: &mut State) {
        state.serving = None;
        // Who reads now does not wait for the channel.
        self.ring(state);
        self.wake(state);
    }

    /// Runs something while nobody serves the channel, and under the same rules
    /// as if the back-end had asked for it. Waits for another thread's handler, but not
    /// past the deadline nor the end of the connection: then it is not run.
    pub(crate) fn while_unserved(&self, deadline: Deadline, run: impl FnOnce()) {
        let mut state = self.lock();
        while state.serving.is_some() {
            if deadline.passed() || state.machine.ended().is_some() {
                return;
            }
            state = self.sleep(state, deadline.remaining());
        }
        state.serving = Some(ThreadMark::here());
        drop(state);
        let _serving = Serving(self);
        run();
    }

    /// Threads that wait for the socket should wait for something else as well.
    pub(super) fn ring(&self, state: &mut State) {
        if let (1.., false, Some(signals)) = (state.polling, state.rung, self.signals()) {
            state.rung = true;
            signals.bell.ring();
        }
    }

    // ---- posting ----

    /// Sends a request whose reply nobody waits for: it is checked when it comes.
    /// Never waits, and may be called by who serves the channel.
    pub(crate) fn post(&self, out: &Outgoing<'_>, expect: Expect) -> Result<()> {
        let mut state = self.lock();
        if state.emitting == Some(ThreadMark::here()) {
            let text = "the callback of the trace may send nothing";
            return Err(Error::new(Kind::State, text));
        }
        if !state.reading && state.machine.unanswered() > 0 {
            state.machine.receive(self.fd());
        }
        if state.machine.unanswered() >= MAX_POSTED {
            let text = "too many requests have been posted that the back-end has not answered";
            return Err(Error::new(Kind::Os(Errno::EAGAIN), text));
        }
        let ticket = self.submit(&mut state, out, Some(expect), Instant::now())?;
        state.machine.disown(ticket);
        // It may not have fit; who waits sends the rest, or else the event loop.
        self.ring(&mut state);
        self.arm(&mut state);
        self.wake(&mut state);
        drop(self.emit(state));
        Ok(())
    }
}
