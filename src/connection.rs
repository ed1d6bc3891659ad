//! Framing, reply matching, deadlines and the poison latch.
//!
//! [`machine`] holds the state and never waits. This file is the blocking shell
//! around it: a call submits its request and then takes part in moving bytes
//! until its own outcome is there. Of all threads inside, at most one waits to
//! read and one to write; they work for all, the others sleep until something
//! has moved. The lock guards steps of the machine and is never held while
//! anybody waits.

#![forbid(unsafe_code)]

mod inbox;
mod machine;

use crate::error::{Error, Kind, Phase, Result};
use crate::message::{Bounds, Request, Wait};
use crate::socket::{self, Deadline, Ready};
use machine::{Abandoned, Machine, Ticket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use machine::Reply;

/// How long each kind of request may take; `None` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Requests that the back-end answers from its own memory.
    pub quick: Option<Duration>,
    /// Memory tables, rings being enabled, device state.
    pub slow: Option<Duration>,
    /// Stopping a ring, which finishes guest requests first.
    pub drain: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            quick: Some(Duration::from_secs(5)),
            slow: Some(Duration::from_secs(60)),
            drain: Some(Duration::from_secs(60)),
        }
    }
}

impl Timeouts {
    pub(crate) fn of(&self, wait: Wait) -> Option<Duration> {
        match wait {
            Wait::Quick => self.quick,
            Wait::Slow => self.slow,
            Wait::Drain => self.drain,
        }
    }

    /// How long the quick path blocks: half the shortest deadline, so that it is
    /// set once for all requests and still never makes one late. What is left
    /// then is waited for with poll.
    fn quick_wait(&self) -> Option<Duration> {
        [self.quick, self.slow, self.drain]
            .into_iter()
            .flatten()
            .min()
            .map(|shortest| shortest.checked_div(2).unwrap_or(shortest))
    }
}

/// What a deadline does to a connection whose request is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTimeout {
    /// No further request is taken.
    #[default]
    Poison,
    /// The late reply is dropped when it comes; requests wait behind it. With
    /// more than 64 without an answer the connection is given up all the same.
    Keep,
}

/// A request, encoded; everything is borrowed for the call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) request: Request,
    pub(crate) need_reply: bool,
    pub(crate) body: &'a [u8],
    pub(crate) payload: &'a [u8],
    pub(crate) fds: &'a [BorrowedFd<'a>],
}

/// What the reply may look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    pub(crate) size: Bounds,
    pub(crate) fds: Bounds,
    /// It is an acknowledgement.
    pub(crate) ack: bool,
}

/// How long a thread whose deadline has passed gives the one who is reading to
/// deliver what may have arrived meanwhile (this process may have been stopped).
const LAST_LOOK: Duration = Duration::from_millis(20);

/// How many requests may be given up without an answer before [`OnTimeout::Keep`]
/// gives up the connection.
const MAX_UNANSWERED: usize = 64;

/// How often a send is tried that waits for room which cannot be polled for.
const THROTTLE: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct State {
    machine: Machine,
    /// Some thread waits until the socket can be read, or written.
    reading: bool,
    writing: bool,
    /// Threads asleep on `moved`; waking nobody would cost a system call.
    asleep: usize,
    /// Nothing is read any more, because the stream is lost.
    shut: bool,
}

/// A connection that any thread may use.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    state: Mutex<State>,
    moved: Condvar,
    aborted: Arc<AtomicBool>,
    on_timeout: OnTimeout,
    /// The receive timeout of the socket: how long the quick path blocks.
    quick_wait: Option<Duration>,
}

impl Connection {
    /// Everything about making a connection that can fail.
    pub(crate) fn prepare(socket: BorrowedFd<'_>, timeouts: &Timeouts) -> Result<()> {
        socket::set_close_on_exec(socket)
            .and_then(|()| socket::set_receive_timeout(socket, timeouts.quick_wait()))
            .map_err(|errno| Error::os(errno, "cannot prepare the socket").during(Phase::Connect))
    }

    /// Takes a socket that has been prepared with the same deadlines.
    pub(crate) fn new(socket: OwnedFd, timeouts: &Timeouts, on_timeout: OnTimeout) -> Self {
        let aborted = Arc::new(AtomicBool::new(false));
        Self {
            socket,
            state: Mutex::new(State {
                machine: Machine::new(Arc::clone(&aborted)),
                reading: false,
                writing: false,
                asleep: 0,
                shut: false,
            }),
            moved: Condvar::new(),
            aborted,
            on_timeout,
            quick_wait: timeouts.quick_wait(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Ends the connection. Any thread, and async-signal-safe: waiting calls
    /// wake because the socket has reached its end.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        socket::shut_down(self.fd());
    }

    /// Takes no further request because of a failure outside of the machine.
    pub(crate) fn poison(&self, cause: &Error) {
        let mut state = self.lock();
        state.machine.fail_all(cause);
        self.wake(&mut state);
    }

    /// Closes the socket of a forked child's copy, and drops the rest unless
    /// another thread of the parent was changing it at the fork.
    pub(crate) fn close_in_child(self) {
        drop(self.socket);
        if self.state.try_lock().is_err() {
            std::mem::forget(self.state);
        }
    }

    /// Sends a request and returns once it is in the socket.
    pub(crate) fn send(&self, out: &Outgoing<'_>, deadline: Deadline) -> Result<()> {
        self.exchange(out, None, deadline, |_| Ok(()))
    }

    /// Sends a request and waits for its reply, which goes through `decode`.
    pub(crate) fn call<T>(
        &self,
        out: &Outgoing<'_>,
        expect: Expect,
        deadline: Deadline,
        decode: impl FnOnce(Reply<'_>) -> Result<T>,
    ) -> Result<T> {
        self.exchange(out, Some(expect), deadline, decode)
    }

    fn exchange<T>(
        &self,
        out: &Outgoing<'_>,
        expect: Option<Expect>,
        deadline: Deadline,
        decode: impl FnOnce(Reply<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock();
        self.submit(&mut state, out, expect)
            .and_then(|ticket| self.finish(state, ticket, deadline, decode))
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
        let mut state = self.lock();
        let first = self
            .submit(&mut state, out, None)
            .map_err(|error| error.of(out.request))?;
        let result = match self.submit(&mut state, barrier, Some(expect)) {
            Ok(second) => self.finish(state, second, deadline, |_| Ok(())),
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
        result.map_err(|error| Error {
            request: Some(out.request),
            ..error
        })
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

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is caught by the caller, who poisons.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(
        &self,
        state: &mut State,
        out: &Outgoing<'_>,
        expect: Option<Expect>,
    ) -> Result<Ticket> {
        let ticket = state.machine.submit(self.fd(), out, expect);
        if ticket.is_err() {
            self.wake(state); // others may have failed with it
        }
        ticket
    }

    /// Moves bytes until the request is done or its deadline passes.
    fn finish<'a, T>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        ticket: Ticket,
        deadline: Deadline,
        decode: impl FnOnce(Reply<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut quick = true;
        loop {
            if state.machine.done(ticket) {
                let result = state.machine.outcome(ticket, decode);
                self.wake(&mut state);
                return result;
            }
            if deadline.passed() {
                state = self.last_look(state, ticket);
                if !state.machine.done(ticket) {
                    return Err(self.give_up(&mut state, ticket));
                }
                continue;
            }
            let write = state.machine.wants_write() && !state.writing;
            // Who waits only for room must not be held up by reading, but who
            // waits to write reads if nobody else does: the back-end may be
            // stuck in writing itself.
            let read = !state.reading && (write || state.machine.awaits_reply(ticket));
            if !read && !write {
                state = self.sleep(state, deadline.remaining());
            } else if read && !write && quick && self.may_block(deadline) {
                quick = false;
                state = self.read_blocking(state);
            } else {
                state = self.poll(state, read, write, deadline);
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
        if state.reading && !state.machine.done(ticket) {
            state = self.sleep(state, Some(LAST_LOOK));
        }
        // One read stops behind a message that carried descriptors.
        while !state.reading && !state.machine.done(ticket) && state.machine.receive(self.fd()) {}
        self.wake(&mut state);
        state
    }

    /// Whether blocking in one receive cannot outlast the deadline.
    fn may_block(&self, deadline: Deadline) -> bool {
        match (self.quick_wait, deadline.remaining()) {
            (Some(longest), Some(left)) => longest <= left,
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }

    /// The quick path: one system call waits and reads. The inbox leaves the
    /// machine meanwhile, as the lock is not held.
    fn read_blocking<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(mut inbox) = state.machine.lend_inbox() else {
            return state;
        };
        state.reading = true;
        drop(state);
        let filled = inbox.fill(self.fd(), true);
        let mut state = self.lock();
        state.reading = false;
        state.machine.received(inbox, filled);
        self.wake(&mut state);
        state
    }

    fn poll<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        read: bool,
        write: bool,
        deadline: Deadline,
    ) -> MutexGuard<'a, State> {
        state.reading |= read;
        state.writing |= write;
        let throttled = write && state.machine.throttled;
        drop(state);
        let ready = if throttled {
            let deadline = deadline.no_later_than(THROTTLE);
            socket::wait(self.fd(), read, false, deadline).map(|ready| Ready {
                writable: true,
                ..ready
            })
        } else {
            socket::wait(self.fd(), read, write, deadline)
        };
        let mut state = self.lock();
        state.reading &= !read;
        state.writing &= !write;
        match ready {
            Ok(ready) => {
                if write && ready.writable {
                    state.machine.flush(self.fd());
                }
                if read && ready.readable {
                    state.machine.receive(self.fd());
                }
            }
            Err(errno) => {
                let error = Error::os(errno, "cannot wait for the back-end");
                state.machine.fail_all(&error);
            }
        }
        self.wake(&mut state);
        state
    }

    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.asleep = state.asleep.saturating_add(1);
        let mut state = match left {
            None => self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                self.moved
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        state.asleep = state.asleep.saturating_sub(1);
        state
    }

    /// Something moved, or a role is free: whoever sleeps looks again. When the
    /// stream is lost, so does whoever waits for the socket.
    fn wake(&self, state: &mut State) {
        if state.machine.lost() && !state.shut {
            state.shut = true;
            socket::stop_reading(self.fd());
        }
        if state.asleep > 0 {
            self.moved.notify_all();
        }
    }

    fn give_up(&self, state: &mut State, ticket: Ticket) -> Error {
        let (left, request) = state.machine.abandon(ticket);
        let (phase, text) = match left {
            Abandoned::Unsent => (
                Phase::Send,
                "the deadline passed before the back-end made room for the request; nothing was sent",
            ),
            Abandoned::CutShort => (
                Phase::Send,
                "the deadline passed while the back-end took only part of the request",
            ),
            Abandoned::Unanswered => (
                Phase::Reply,
                "the back-end did not answer before the deadline",
            ),
        };
        let error = Error {
            request,
            ..Error::new(Kind::TimedOut, text).during(phase)
        };
        match (left, self.on_timeout) {
            (Abandoned::CutShort, _) => state.machine.fail_all(&error),
            (Abandoned::Unanswered, OnTimeout::Poison) => state.machine.latch(&error),
            // A back-end that reads but never answers must not fill the memory.
            (Abandoned::Unanswered, OnTimeout::Keep)
                if state.machine.unanswered() > MAX_UNANSWERED =>
            {
                state.machine.latch(&error);
            }
            (Abandoned::Unsent, _) | (_, OnTimeout::Keep) => {}
        }
        self.wake(state);
        error
    }
}
