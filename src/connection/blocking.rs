//! The shell for calls that wait: a call submits its request and then takes part in
//! moving bytes until its own outcome is there. Of all threads inside, at most one
//! waits to read and one to write; they work for all, the others sleep until
//! something has moved.

use super::inbox::Filled;
use super::machine::{Reply, Ticket};
use super::trace::count;
use super::{Connection, Expect, OnTimeout, Outgoing, State};
use crate::error::{Error, Kind, Phase, Result};
use crate::socket::{self, Deadline, Watch};
use std::sync::MutexGuard;
use std::time::Duration;

/// How long a thread whose deadline has passed gives the one who is reading to
/// deliver what may have arrived meanwhile (this process may have been stopped).
const LAST_LOOK: Duration = Duration::from_millis(20);

/// How late the kernel may end a receive that has a timeout: it counts in ticks of
/// up to 10 ms, and rounds up twice.
const TICKS: Duration = Duration::from_millis(20);

/// How often a send is tried that waits for room which cannot be polled for.
const THROTTLE: Duration = Duration::from_millis(1);

/// A request that is done, with the lock held: a reply that cannot be decoded ends
/// the connection before anybody goes on. To be decoded, even if there is none.
#[derive(Debug)]
#[must_use]
pub(crate) struct Arrived<'a> {
    connection: &'a Connection,
    state: MutexGuard<'a, State>,
    ticket: Ticket,
}

impl Arrived<'_> {
    pub(crate) fn decode<T>(mut self, decode: impl FnOnce(Reply<'_>) -> Result<T>) -> Result<T> {
        let result = self.state.machine.outcome(self.ticket, decode);
        self.connection.leave(&mut self.state);
        drop(self.connection.emit(self.state));
        result
    }
}

impl Connection {
    /// Sends a request and returns once it is in the socket.
    pub(crate) fn send(&self, out: &Outgoing<'_>, deadline: Deadline) -> Result<()> {
        self.exchange(out, None, deadline)?.decode(|_| Ok(()))
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn call(
        &self,
        out: &Outgoing<'_>,
        expect: Expect,
        deadline: Deadline,
    ) -> Result<Arrived<'_>> {
        self.exchange(out, Some(expect), deadline)
    }

    fn exchange(
        &self,
        out: &Outgoing<'_>,
        expect: Option<Expect>,
        deadline: Deadline,
    ) -> Result<Arrived<'_>> {
        let mut state = self.enter().map_err(|error| error.of(out.request))?;
        self.submit(&mut state, out, expect, deadline.as_of)
            .and_then(|ticket| self.finish(state, ticket, || deadline))
            .map_err(|error| error.of(out.request))
    }

    /// Sends a request that is not acknowledged and, right behind it, one whose
    /// reply shows that the first has been processed.
    pub(crate) fn send_with_barrier(
        &self,
        out: &Outgoing<'_>,
        barrier: &Outgoing<'_>,
        expect: Expect,
        deadline: Deadline,
    ) -> Result<()> {
        let mut state = self.enter().map_err(|error| error.of(out.request))?;
        let first = self
            .submit(&mut state, out, None, deadline.as_of)
            .map_err(|error| error.of(out.request))?;
        let result = match self.submit(&mut state, barrier, Some(expect), deadline.as_of) {
            Ok(second) => {
                state.machine.is_barrier(second, out);
                self.finish(state, second, || deadline)
                    .and_then(|arrived| arrived.decode(|_| Ok(())))
            }
            Err(error) => {
                drop(state);
                Err(error)
            }
        };
        let mut state = self.lock();
        let result = if state.machine.done(first) {
            let sent = state.machine.outcome(first, |_| Ok(()));
            sent.and(result.map_err(|error| self.unconfirmed(&mut state, error)))
        } else {
            let error = self.give_up(&mut state, first);
            result.and(Err(error))
        };
        drop(self.emit(state));
        result.map_err(|error| error.about(Some(out.request)))
    }

    /// What became of a request that went out, when its barrier failed.
    fn unconfirmed(&self, state: &mut State, error: Error) -> Error {
        let mut error = error.during(Phase::Barrier);
        if error.kind == Kind::TimedOut {
            error.message =
                "the request was sent, but not seen to be processed before the deadline".into();
            if self.on_timeout == OnTimeout::Poison {
                state.machine.latch(&error);
            }
        }
        error
    }

    /// Moves bytes until the request is done or its deadline passes. That is asked for
    /// only if there is something to wait for.
    pub(super) fn finish<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        ticket: Ticket,
        deadline: impl FnOnce() -> Deadline,
    ) -> Result<Arrived<'a>> {
        let mut state = match state.machine.done(ticket) {
            true => state,
            false => self.settle(state, ticket, deadline()),
        };
        if state.machine.done(ticket) {
            return Ok(Arrived {
                connection: self,
                state,
                ticket,
            });
        }
        count(&mut state.machine.ledger.counters.timeouts);
        let error = self.give_up(&mut state, ticket);
        drop(self.emit(state));
        Err(error)
    }

    fn settle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        ticket: Ticket,
        mut deadline: Deadline,
    ) -> MutexGuard<'a, State> {
        // Nothing has taken time since the deadline saw the clock.
        let mut fresh = true;
        let mut quick = true;
        let mut spins = !self.spin.is_zero();
        loop {
            // Before any wait: who hangs has been seen to begin.
            let told = state.told;
            state = self.emit(state);
            if state.machine.done(ticket) {
                return state;
            }
            fresh &= state.told == told;
            if !std::mem::take(&mut fresh) {
                deadline = deadline.anew();
            }
            let left = deadline.remained();
            if left.is_some_and(|left| left.is_zero()) {
                return self.last_look(state, ticket);
            }
            let mut write = state.machine.wants_write() && !state.writing;
            // Who waits only for room must not be held up by reading, but who
            // waits to write reads if nobody else does: the back-end may be
            // stuck in writing itself.
            let read = !state.reading && (write || state.machine.awaits_reply(ticket));
            // Who writes may give up, and a thread that reads does not notice.
            write |= read && state.machine.wants_write();
            // Somebody has to, for one who does not know of the channel.
            let stand_in = state.deaf && state.may_serve();
            if state.rung || !(read || write || stand_in) {
                // Nobody waits anew for what others have to hear first.
                state = self.sleep(state, left);
            } else if read && !write && spins {
                (state, spins) = self.spin(state, deadline);
            } else if read && !write && quick && state.channel.is_none() && self.may_block(left) {
                quick = false;
                state = self.read_blocking(state);
            } else {
                let serve = (read || stand_in) && state.may_serve();
                let held = serve && state.holds_request();
                let until = match held {
                    // A look: the reply may be there as well.
                    true => deadline.no_later_than(Duration::ZERO),
                    false => deadline,
                };
                let asked;
                (state, asked) = self.poll(state, read, write, serve, until);
                if asked || held {
                    state = self.serve(state, deadline);
                }
            }
        }
    }

    /// After the deadline: whatever arrived while this process did not run still
    /// counts. What another thread waits for is left to that thread, which would
    /// not notice that it is gone.
    fn last_look<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        ticket: Ticket,
    ) -> MutexGuard<'a, State> {
        if !state.writing {
            state.machine.flush(self.fd());
        }
        let end = Deadline::after(Some(LAST_LOOK));
        while state.reading && !state.machine.done(ticket) && !end.passed() {
            state = self.sleep(state, end.remaining());
        }
        // One read stops behind a message that carried descriptors.
        while !state.reading && !state.machine.done(ticket) && state.machine.receive(self.fd()) {}
        self.wake(&mut state);
        state
    }

    /// Whether blocking in one receive cannot outlast what is left of the time.
    fn may_block(&self, left: Option<Duration>) -> bool {
        match (self.quick_wait, left) {
            (Some(longest), Some(left)) => longest.saturating_add(TICKS) <= left,
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }

    /// Looks again and again, for a while, whether something has come: an answer that
    /// comes soon is there sooner than a thread that sleeps could be woken. Whether
    /// something did: an answer may come in pieces, and others before it.
    fn spin<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Deadline,
    ) -> (MutexGuard<'a, State>, bool) {
        let Some(mut inbox) = state.machine.lend_inbox() else {
            return (state, false);
        };
        state.reading = true;
        drop(state);
        let end = deadline.no_later_than(self.spin);
        let filled = loop {
            match inbox.fill(self.fd(), false) {
                Ok(Filled::Nothing) if !end.passed() => std::hint::spin_loop(),
                filled => break filled,
            }
        };
        let mut state = self.lock();
        state.reading = false;
        state.machine.received(inbox, filled);
        self.wake(&mut state);
        (state, filled == Ok(Filled::Bytes))
    }

    /// The quick path: one system call waits and reads. The inbox leaves the
    /// machine meanwhile, as the lock is not held.
    fn read_blocking<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(mut inbox) = state.machine.lend_inbox() else {
            return state;
        };
        state.reading = true;
        state.deaf = true;
        drop(state);
        let filled = inbox.fill(self.fd(), true);
        let mut state = self.lock();
        state.reading = false;
        self.hears(&mut state);
        state.machine.received(inbox, filled);
        self.wake(&mut state);
        state
    }

    /// Who reads next knows of the channel.
    fn hears(&self, state: &mut State) {
        state.deaf = false;
        self.ring(state);
    }

    /// Waits for the socket and, to serve it, for the channel. Whether the
    /// latter is ready.
    fn poll<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        read: bool,
        write: bool,
        serve: bool,
        deadline: Deadline,
    ) -> (MutexGuard<'a, State>, bool) {
        state.reading |= read;
        state.writing |= write;
        let throttled = write && state.machine.throttled;
        let socket = Watch {
            fd: self.fd(),
            read,
            write: write && !throttled,
            end: true,
        };
        let deadline = match throttled {
            true => deadline.no_later_than(THROTTLE),
            false => deadline,
        };
        let ready = match (&state.channel, self.ends.get(), self.signals()) {
            (Some(channel), Some(ends), Some(signals)) => {
                let bell = Watch {
                    fd: signals.bell.fd(),
                    read: true,
                    write: false,
                    end: false,
                };
                // In place of a channel that is not to be looked at.
                let channel = if serve { channel.watch(ends) } else { bell };
                state.polling = state.polling.saturating_add(1);
                drop(state);
                let ready = socket::wait([socket, channel, bell], deadline);
                state = self.lock();
                state.polling = state.polling.saturating_sub(1);
                if state.polling == 0 && state.rung {
                    // Not before everybody has heard it.
                    state.rung = false;
                    signals.bell.silence();
                }
                ready.map(|[ready, asked, _]| (ready, serve && (asked.readable || asked.writable)))
            }
            _ => {
                state.deaf |= read;
                drop(state);
                let ready = socket::wait([socket], deadline);
                state = self.lock();
                if read {
                    self.hears(&mut state);
                }
                ready.map(|[ready]| (ready, false))
            }
        };
        state.reading &= !read;
        state.writing &= !write;
        let mut asked = false;
        match ready {
            Ok((ready, channel)) => {
                if write && (ready.writable || throttled) {
                    state.machine.flush(self.fd());
                }
                if read && ready.readable {
                    state.machine.receive(self.fd());
                }
                asked = channel;
            }
            Err(errno) => {
                let error = Error::os(errno, "cannot wait for the back-end");
                state.machine.fail_all(&error);
            }
        }
        self.wake(&mut state);
        (state, asked)
    }
}
