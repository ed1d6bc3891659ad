//! Framing, reply matching, deadlines and the poison latch.
//!
//! [`machine`] holds the state and never waits. This file is the blocking shell
//! around it: a call submits its request and then takes part in moving bytes
//! until its own outcome is there. Of all threads inside, at most one waits to
//! read and one to write; they work for all, the others sleep until something
//! has moved. The lock guards steps of the machine and is never held while
//! anybody waits.
//!
//! Once the back-end has a [`channel`] of its own, whoever waits to read serves
//! that as well: a back-end that asks before it answers is not left waiting.

#![forbid(unsafe_code)]

mod channel;
mod inbox;
mod machine;
mod trace;

use crate::error::{Error, Kind, Phase, Result};
use crate::message::{Bounds, Request, Wait};
use crate::socket::{self, Deadline, Watch};
use channel::{Channel, Ends};
use machine::{Abandoned, Machine, Ticket};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use trace::{MAX_RECORDS, Trace, count};

pub(crate) use channel::{Answer, Incoming, Serve, Served};
pub(crate) use machine::Reply;
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

/// How late the kernel may end a receive that has a timeout: it counts in ticks of
/// up to 10 ms, and rounds up twice.
const TICKS: Duration = Duration::from_millis(20);

/// How many requests of the back-end are served before anything else is looked
/// at, and by one call that waits for its own reply.
const BATCH: usize = 64;
const MAX_SERVED: usize = 1 << 16;

/// How many posted requests may be without an answer.
const MAX_POSTED: usize = 256;

/// How often a send is tried that waits for room which cannot be polled for.
const THROTTLE: Duration = Duration::from_millis(1);

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
struct ThreadMark(usize);

impl ThreadMark {
    fn here() -> Self {
        thread_local!(static MARK: u8 = const { 0 });
        MARK.with(|mark| Self(std::ptr::from_ref(mark).addr()))
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

    /// Whether a request of the back-end has been read already.
    fn holds_request(&self) -> bool {
        self.channel.as_ref().is_some_and(Channel::holds_request)
    }
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
    /// The descriptors of the channel, once there is one.
    ends: OnceLock<Ends>,
}

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
            on_timeout,
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
        let mut state = self.enter().map_err(|error| error.of(out.request))?;
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
        let mut state = self.enter().map_err(|error| error.of(out.request))?;
        let first = self
            .submit(&mut state, out, None)
            .map_err(|error| error.of(out.request))?;
        let result = match self.submit(&mut state, barrier, Some(expect)) {
            Ok(second) => {
                state.machine.is_barrier(second, out.request);
                self.finish(state, second, deadline, |_| Ok(()))
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
    fn finish<T>(
        &self,
        state: MutexGuard<'_, State>,
        ticket: Ticket,
        deadline: Deadline,
        decode: impl FnOnce(Reply<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.settle(state, ticket, deadline);
        let result = match state.machine.done(ticket) {
            true => {
                let result = state.machine.outcome(ticket, decode);
                self.leave(&mut state);
                result
            }
            false => {
                count(&mut state.machine.ledger.counters.timeouts);
                Err(self.give_up(&mut state, ticket))
            }
        };
        drop(self.emit(state));
        result
    }

    fn settle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        ticket: Ticket,
        deadline: Deadline,
    ) -> MutexGuard<'a, State> {
        let mut quick = true;
        let mut served = 0;
        loop {
            // Before any wait: who hangs has been seen to begin.
            state = self.emit(state);
            if state.machine.done(ticket) {
                return state;
            }
            if deadline.passed() {
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
                state = self.sleep(state, deadline.remaining());
            } else if read && !write && quick && state.channel.is_none() && self.may_block(deadline)
            {
                quick = false;
                state = self.read_blocking(state);
            } else {
                let serve = (read || stand_in) && served < MAX_SERVED && state.may_serve();
                let held = serve && state.holds_request();
                let until = match held {
                    // A look: the reply may be there as well.
                    true => deadline.no_later_than(Duration::ZERO),
                    false => deadline,
                };
                let asked;
                (state, asked) = self.poll(state, read, write, serve, until);
                if asked || held {
                    let did;
                    (state, did) = self.serve(state, deadline);
                    served = served.saturating_add(did);
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
            (Some(longest), Some(left)) => longest.saturating_add(TICKS) <= left,
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
        let ready = match (&state.channel, self.ends.get()) {
            (Some(channel), Some(ends)) => {
                let bell = Watch {
                    fd: ends.bell.fd(),
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
                    ends.bell.silence();
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

    // ---- the channel ----

    /// Gives the back-end a channel, once: what it asks there is done by `server`.
    /// The socket to hand over.
    pub(crate) fn open_channel(&self, server: Arc<dyn Serve>) -> Result<OwnedFd> {
        let mut state = self.enter()?;
        if self.ends.get().is_some() {
            let text = "the back-end has been given a channel on this connection already";
            return Err(Error::new(Kind::State, text));
        }
        let failed = |errno| Error::os(errno, "cannot make a channel");
        let (ends, theirs) = Ends::new().map_err(failed)?;
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

    fn end_channel(&self, state: &mut State, cause: &Error) {
        if let (Some(channel), Some(ends)) = (&mut state.channel, self.ends.get()) {
            channel.end(ends, cause);
        }
        self.arm(state);
    }

    /// What is ready when there is something to do for
    /// [`serve_channel`](Self::serve_channel) or whoever it serves.
    pub(crate) fn channel_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ends.get().map(|ends| ends.pollable.fd())
    }

    /// Does some of what the back-end asks, without waiting.
    pub(crate) fn serve_channel(&self) -> Result<()> {
        let mut state = self.enter()?;
        // A call that goes on may need the channel for its answer.
        if let (Some(cause), false) = (state.machine.ended(), state.machine.under_way()) {
            self.end_channel(&mut state, &cause);
        }
        let (mut state, _) = self.serve(state, Deadline::after(None));
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

    fn arm(&self, state: &mut State) {
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
    /// after the deadline. How many it were.
    fn serve<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Deadline,
    ) -> (MutexGuard<'a, State>, usize) {
        let mut served: usize = 0;
        while served < BATCH && !deadline.passed() && state.may_serve() {
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
            served = served.saturating_add(1);
            let request = incoming.request;
            let server = Arc::clone(&channel.server);
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
        (state, served)
    }

    /// Nobody serves the channel any more.
    fn served(&self, state: &mut State) {
        state.serving = None;
        // Who reads now does not wait for the channel.
        self.ring(state);
        self.wake(state);
    }

    /// Runs something while nobody serves the channel, and under the same rules
    /// as if the back-end had asked for it. Waits for another thread's handler.
    pub(crate) fn while_unserved(&self, run: impl FnOnce()) {
        let mut state = self.lock();
        while state.serving.is_some() {
            state = self.sleep(state, None);
        }
        state.serving = Some(ThreadMark::here());
        drop(state);
        let _serving = Serving(self);
        run();
    }

    /// Threads that wait for the socket should wait for something else as well.
    fn ring(&self, state: &mut State) {
        if let (1.., false, Some(ends)) = (state.polling, state.rung, self.ends.get()) {
            state.rung = true;
            ends.bell.ring();
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
        let ticket = self.submit(&mut state, out, Some(expect))?;
        state.machine.disown(ticket);
        // It may not have fit; who waits sends the rest, or else the event loop.
        self.ring(&mut state);
        self.arm(&mut state);
        self.wake(&mut state);
        drop(self.emit(state));
        Ok(())
    }

    // ---- what is seen and counted ----

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
    fn emit<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
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

    /// What has happened so far.
    pub(crate) fn counters(&self) -> Counters {
        self.lock().machine.ledger.counters
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
        let error = Error {
            request,
            ..Error::new(Kind::TimedOut, text).during(phase)
        };
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
