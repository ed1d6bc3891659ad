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
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
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
    /// The late reply is dropped when it comes; requests wait behind it.
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
}

/// A connection that any thread may use.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    state: Mutex<State>,
    moved: Condvar,
    aborted: AtomicBool,
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
        Self {
            socket,
            state: Mutex::new(State {
                machine: Machine::new(),
                reading: false,
                writing: false,
                asleep: 0,
            }),
            moved: Condvar::new(),
            aborted: AtomicBool::new(false),
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
        self.lock().machine.fail_all(cause);
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
        state
            .machine
            .submit(self.fd(), out, expect)
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
        let first = state
            .machine
            .submit(self.fd(), out, None)
            .map_err(|error| error.of(out.request))?;
        let result = match state.machine.submit(self.fd(), barrier, Some(expect)) {
            Ok(second) => self.finish(state, second, deadline, |_| Ok(())),
            Err(error) => {
                drop(state);
                Err(error)
            }
        };
        let mut state = self.lock();
        if state.machine.done(first) {
            state.machine.outcome(first, |_| Ok(()))?;
            result.map_err(|error| error.during(Phase::Barrier))
        } else {
            let error = self.give_up(&mut state, first);
            result.and(Err(error))
        }
        .map_err(|error| Error {
            request: Some(out.request),
            ..error
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is caught by the caller, who poisons.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.machine.aborted = self.aborted.load(Ordering::SeqCst);
        state
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
                self.wake(&state);
                return result;
            }
            let passed = deadline.passed();
            let write = state.machine.wants_write() && !state.writing;
            let read = !state.reading;
            if !read && !write {
                let left = if passed {
                    Some(LAST_LOOK)
                } else {
                    deadline.remaining()
                };
                state = self.sleep(state, left);
                if passed && !state.machine.done(ticket) {
                    return Err(self.give_up(&mut state, ticket));
                }
            } else if passed {
                // Whatever arrived while this process did not run still counts.
                state.machine.flush(self.fd());
                state.machine.receive(self.fd());
                self.wake(&state);
                if !state.machine.done(ticket) {
                    return Err(self.give_up(&mut state, ticket));
                }
            } else if read && !write && quick && self.may_block(deadline) {
                quick = false;
                state = self.read_blocking(state);
            } else {
                state = self.poll(state, read, write, deadline);
            }
        }
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
        self.wake(&state);
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
                if ready.writable {
                    state.machine.flush(self.fd());
                }
                if ready.readable {
                    state.machine.receive(self.fd());
                }
            }
            Err(errno) => {
                let error = Error::os(errno, "cannot wait for the back-end");
                state.machine.fail_all(&error);
            }
        }
        self.wake(&state);
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
        state.machine.aborted = self.aborted.load(Ordering::SeqCst);
        state
    }

    /// Something moved, or a role is free: whoever sleeps looks again.
    fn wake(&self, state: &State) {
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
            (Abandoned::Unsent, _) | (_, OnTimeout::Keep) => {}
        }
        self.wake(state);
        error
    }
}
