//! Framing, reply matching, deadlines and the poison latch.
//!
//! [`machine`] holds the state and never waits; shells around it do: [`blocking`]
//! for calls that wait for their own outcome, [`stepping`] for an event loop. The
//! lock guards steps of the machine and is never held while anybody waits.
//!
//! Once the back-end has a [`channel`] of its own, whoever waits to read serves
//! that as well ([`serving`]): a back-end that asks before it answers is not left
//! waiting.

#![forbid(unsafe_code)]

mod blocking;
mod channel;
mod inbox;
mod listing;
mod machine;
mod serving;
mod stepping;
mod telling;
mod trace;

use crate::error::{Error, Kind, Phase, Result};
use crate::message::{Bounds, Request, Wait};
use crate::socket::{self, PeerSocket};
use channel::{Channel, Ends};
use machine::{Abandoned, Machine, Ticket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use blocking::Arrived;
pub(crate) use channel::{Answer, Incoming, Serve, Served};
pub(crate) use machine::{Posted, Reply};
pub(crate) use stepping::{Outcome, Pending};
pub use trace::{Counters, TraceRecord, TraceSink};

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

impl Outgoing<'_> {
    /// Whether it resets the device: what the device had mapped of its shared memory is
    /// gone then. Without either of these two a device is reset by stopping its rings,
    /// which nobody but who does it can tell from a pause.
    fn resets(&self) -> bool {
        match self.request {
            Request::ResetDevice => true,
            Request::SetStatus => self.body.iter().all(|byte| *byte == 0),
            _ => false,
        }
    }
}

/// What the reply may look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    pub(crate) size: Bounds,
    pub(crate) fds: Bounds,
    /// It is an acknowledgement.
    pub(crate) ack: bool,
}

/// How many requests may be given up without an answer before [`OnTimeout::Keep`]
/// gives up the connection.
const MAX_UNANSWERED: usize = 64;

#[derive(Debug)]
struct State {
    machine: Machine,
    /// Some thread waits until the socket can be read, or written.
    reading: bool,
    writing: bool,
    /// The one who reads began before there was a channel, and hears no bell.
    deaf: bool,
    /// Threads asleep on `moved`; waking nobody would cost a system call.
    asleep: usize,
    /// Nothing is read any more, because the stream is lost.
    shut: bool,
    /// Where the back-end asks.
    channel: Option<Channel>,
    /// The thread that does what the back-end asked; nobody reads the channel
    /// meanwhile.
    serving: Option<ThreadMark>,
    /// The thread that tells a record of the trace; nobody else does meanwhile.
    emitting: Option<ThreadMark>,
    /// How many records have been told or are being told.
    told: u64,
    /// Threads in [`Connection::poll`] that hear the bell, and whether it rings:
    /// until all of them have left.
    polling: usize,
    rung: bool,
}

/// What tells threads apart. The address of something that each has for itself
/// needs no destructor, unlike the standard library's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadMark(usize);

impl ThreadMark {
    pub(crate) fn here() -> Self {
        thread_local!(static MARK: u8 = const { 0 });
        MARK.with(|mark| Self(std::ptr::from_ref(mark).addr()))
    }

    /// Never 0.
    pub(crate) fn number(self) -> usize {
        self.0
    }
}

impl State {
    /// Whether the channel can be waited for.
    fn may_serve(&self) -> bool {
        self.serving.is_none() && self.channel.as_ref().is_some_and(Channel::open)
    }

    /// What of the caller's runs on this thread, called by this library.
    fn called_back(&self, here: ThreadMark) -> Option<&'static str> {
        if self.serving == Some(here) {
            return Some("a handler of the back-end's requests");
        }
        (self.emitting == Some(here)).then_some("the callback of the trace")
    }

    /// Whoever serves the channel hears how often the device has been reset.
    fn pass_resets_on(&self) {
        if let Some(channel) = &self.channel {
            channel.server.resets(self.machine.resets());
        }
    }

    /// A request of the back-end is to be served later.
    fn hold(&mut self, incoming: Incoming) {
        if let Some(channel) = &mut self.channel {
            channel.hold(incoming);
        }
    }

    /// Whether a request of the back-end has been read already.
    fn holds_request(&self) -> bool {
        self.channel.as_ref().is_some_and(Channel::holds_request)
    }
}

/// A connection that any thread may use.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: PeerSocket,
    state: Mutex<State>,
    moved: Condvar,
    aborted: Arc<AtomicBool>,
    /// Driven by steps alone.
    stepped: AtomicBool,
    on_timeout: OnTimeout,
    /// How long whoever waits looks again and again first.
    spin: Duration,
    /// The receive timeout of the socket: how long the quick path blocks.
    quick_wait: Option<Duration>,
    /// The descriptors of the channel, once there is one.
    ends: OnceLock<Ends>,
}

impl Connection {
    /// Everything about making a connection that can fail.
    pub(crate) fn prepare(socket: BorrowedFd<'_>, timeouts: &Timeouts) -> Result<()> {
        socket::set_close_on_exec(socket)
            .and_then(|()| socket::set_receive_timeout(socket, timeouts.quick_wait()))
            .map_err(|errno| Error::os(errno, "cannot prepare the socket").during(Phase::Connect))
    }

    /// Takes a socket that has been prepared with the same deadlines.
    pub(crate) fn new(
        socket: OwnedFd,
        timeouts: &Timeouts,
        on_timeout: OnTimeout,
        spin: Duration,
    ) -> Self {
        let aborted = Arc::new(AtomicBool::new(false));
        Self {
            socket: PeerSocket::new(socket),
            state: Mutex::new(State {
                machine: Machine::new(Arc::clone(&aborted)),
                reading: false,
                writing: false,
                deaf: false,
                asleep: 0,
                shut: false,
                channel: None,
                serving: None,
                emitting: None,
                told: 0,
                polling: 0,
                rung: false,
            }),
            moved: Condvar::new(),
            aborted,
            stepped: AtomicBool::new(false),
            on_timeout,
            spin,
            quick_wait: timeouts.quick_wait(),
            ends: OnceLock::new(),
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

    /// Why no further request is taken, if that is so.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.lock().machine.ended()
    }

    /// Closes the sockets of a forked child's copy. What other threads of the parent may
    /// have been changing at the fork is left alone.
    pub(crate) fn close_in_child(self) {
        let Self {
            socket,
            ends,
            state,
            aborted,
            ..
        } = self;
        drop((socket, ends));
        std::mem::forget((state, aborted));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is caught by the caller, who poisons.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a call that may wait, which the one who serves the channel must not:
    /// nobody would read it meanwhile. Nor the one who tells a record: nobody
    /// would tell the next.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match state.called_back(ThreadMark::here()) {
            Some(by) => {
                let text = format!("this call may wait, and {by} called it");
                Err(Error::new(Kind::State, text))
            }
            None => Ok(state),
        }
    }

    pub(crate) fn may_wait(&self) -> Result<()> {
        self.enter().map(drop)
    }

    fn submit(
        &self,
        state: &mut State,
        out: &Outgoing<'_>,
        expect: Option<Expect>,
        since: Instant,
    ) -> Result<Ticket> {
        let ticket = state.machine.submit(self.fd(), out, expect, since);
        if ticket.is_err() {
            self.wake(state); // others may have failed with it
        }
        ticket
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
            if !self.stepped.load(Ordering::Relaxed) {
                socket::stop_reading(self.fd());
            }
            if let Some(cause) = state.machine.ended() {
                self.end_channel(state, &cause);
            }
        }
        if state.asleep > 0 {
            self.moved.notify_all();
        }
    }

    /// On the way out: whoever still waits may have to take over what this thread
    /// did for all.
    fn leave(&self, state: &mut State) {
        if !state.reading {
            self.ring(state);
        }
        self.arm(state);
        self.wake(state);
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
        let error = Error::new(Kind::TimedOut, text)
            .during(phase)
            .about(request);
        match (left, self.on_timeout) {
            (Abandoned::CutShort, _) => state.machine.fail_all(&error),
            (Abandoned::Unanswered, OnTimeout::Poison) => state.machine.latch(&error),
            // A back-end that reads but never answers must not fill the memory.
            (Abandoned::Unanswered, OnTimeout::Keep)
                if state.machine.given_up() > MAX_UNANSWERED =>
            {
                state.machine.latch(&error);
            }
            (Abandoned::Unsent, _) | (_, OnTimeout::Keep) => {}
        }
        self.leave(state);
        error
    }
}
