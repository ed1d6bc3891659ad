//! One method per request of the protocol. Each checks what the caller passed
//! and what has been agreed, encodes, and decodes the answer; the request table
//! in [`message`](crate::message) decides the rest.

#![forbid(unsafe_code)]

mod backend_requests;
mod channel;
mod checks;
mod device;
mod device_kinds;
mod features;
mod list;
mod memory;
mod negotiated;
mod op;
mod options;
mod postcopy;
mod refusals;
mod shmem;
mod vring;

use crate::connection::{
    Arrived, Connection, Counters, Expect, Outgoing, Reply, Timeouts, TraceSink,
};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{
    self, Barrier, Bounds, CryptoAsym, CryptoSym, MemRegion, ProtocolFeatures, Request, RequestInfo,
};
use crate::socket::{self, Deadline, Role, Watch};
use backend_requests::Desk;
use negotiated::Negotiated;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use backend_requests::{BackendHandler, HostNotifier, Uuid};
pub(crate) use checks::mtu as check_mtu;
pub(crate) use list::{FD_WINDOW, List, WINDOW};
pub use list::{Refusal, Submitted};
pub use op::Op;
pub(crate) use op::{Answer, Begun};
pub use options::{Adopted, MAX_SPIN, Options, Timeout};

/// A region of guest memory and the file that holds it.
#[derive(Debug, Clone, Copy)]
pub struct SharedRegion<'fd> {
    /// Where it is.
    pub region: MemRegion,
    /// What the back-end maps. Borrowed: it gets a duplicate.
    pub fd: BorrowedFd<'fd>,
}

/// Which way device state moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the back-end to the front-end.
    Save,
    /// From the front-end to the back-end.
    Load,
}

/// Which kind of crypto session is created.
#[derive(Debug, Clone, Copy)]
pub enum CryptoKind<'a> {
    /// With a cipher, a hash, or both.
    Sym(&'a CryptoSym),
    /// With an asymmetric algorithm.
    Asym(&'a CryptoAsym),
}

/// A connection to a vhost-user back-end.
///
/// Any thread may call any method; several may have a request outstanding at
/// once. Dropping it closes the connection without further traffic.
#[derive(Debug)]
pub struct BackendClient {
    connection: Connection,
    timeouts: Timeouts,
    max_rings: u32,
    negotiated: Arc<Negotiated>,
    /// Does what the back-end asks on its channel, once it has one.
    desk: OnceLock<Arc<Desk>>,
}

/// A request about to be sent.
#[derive(Clone)]
struct Call<'a> {
    request: Request,
    /// Its row of the table, or the form that it has now.
    info: RequestInfo,
    body: &'a [u8],
    payload: &'a [u8],
    fds: &'a [BorrowedFd<'a>],
    ring: Option<u8>,
    timeout: Timeout,
}

impl<'a> Call<'a> {
    fn new(request: Request, body: &'a [u8]) -> Self {
        Self {
            request,
            info: *request.info(),
            body,
            payload: &[],
            fds: &[],
            ring: None,
            timeout: Timeout::Default,
        }
    }

    fn fds(self, fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { fds, ..self }
    }

    /// An error that is about this request.
    fn name(&self, error: Error) -> Error {
        op::name(error, self.request, self.ring.map(u32::from))
    }
}

const NOTHING: &[u8] = &[];
/// How many handlers one call of
/// [`BackendClient::process_backend_requests`] runs at most.
const MAX_DELIVERED: usize = 64;
const ACK: Expect = Expect {
    size: Bounds { min: 8, max: 8 },
    fds: Bounds { min: 0, max: 0 },
    ack: true,
};

/// Nothing has been opened that could be served.
pub(crate) fn no_channel() -> Error {
    let text = "the back-end has no channel that this client serves";
    Error::new(Kind::State, text)
}

fn decode<T: FromBytes + KnownLayout + Immutable>(reply: &Reply<'_>) -> Result<T> {
    T::read_from_bytes(reply.payload).map_err(|_| Error::protocol("the reply has the wrong size"))
}

impl AsFd for BackendClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read_notifier()
    }
}

impl BackendClient {
    // ---- connecting ----

    /// Uses a connected Unix stream socket.
    pub fn from_fd(socket: OwnedFd, options: &Options) -> Result<Self> {
        Self::prepare(socket.as_fd(), options)?;
        let socket = socket::above_standard(socket)
            .map_err(|errno| Error::os(errno, "cannot give the socket a number above 2"))?;
        Ok(Self::assume(socket, options))
    }

    /// Connects to the socket at `path`, within [`Options::connect`].
    pub fn connect(path: &Path, options: &Options) -> Result<Self> {
        options.check()?;
        let deadline = Deadline::after(options.connect_timeout());
        let socket = socket::connect_to(path, options.wait_for_socket, deadline)
            .map_err(|e| e.during(Phase::Connect))?;
        Self::from_fd(socket, options)
    }

    /// Waits, within [`Options::connect`], for a back-end to connect to a
    /// listening socket, and accepts it.
    pub fn accept(listener: BorrowedFd<'_>, options: &Options) -> Result<Self> {
        options.check()?;
        socket::check(listener, Role::Listening)?;
        let deadline = Deadline::after(options.connect_timeout());
        let socket =
            socket::accept_from(listener, deadline).map_err(|e| e.during(Phase::Connect))?;
        Self::from_fd(socket, options)
    }

    /// Everything about [`from_fd`](Self::from_fd) that can fail, without taking
    /// the socket.
    pub(crate) fn prepare(socket: BorrowedFd<'_>, options: &Options) -> Result<()> {
        options.check()?;
        socket::check(socket, Role::Connected)?;
        Connection::prepare(socket, &options.timeouts())
    }

    /// Takes a socket that has been prepared.
    pub(crate) fn assume(socket: OwnedFd, options: &Options) -> Self {
        Self {
            connection: Connection::new(
                socket,
                &options.timeouts(),
                options.on_timeout,
                options.spin,
            ),
            timeouts: options.timeouts(),
            max_rings: options.max_rings,
            negotiated: Arc::new(Negotiated::new(options.adopt)),
            desk: OnceLock::new(),
        }
    }

    // ---- the connection itself ----

    /// The socket, for polling only: readable while no call is under way means
    /// that the back-end has hung up (or misbehaves).
    pub fn read_notifier(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// Ends the connection; calls under way return [`Kind::Canceled`]. May be
    /// called from any thread and from a signal handler.
    pub fn abort(&self) {
        self.connection.abort();
    }

    /// Nobody will wait in a call.
    pub(crate) fn drive_by_steps(&self) {
        self.connection.drive_by_steps();
    }

    /// What to wait for before the next step, and whether that includes room which
    /// cannot be polled for.
    pub(crate) fn interest(&self) -> (Watch<'_>, bool) {
        self.connection.interest()
    }

    /// Why the connection is of no further use, if so.
    pub(crate) fn lost(&self) -> Option<Error> {
        self.connection.lost()
    }

    // ---- seeing what happens ----

    /// Has `sink` told of every message from now on, in order and one at a time,
    /// on whichever thread is inside; `None` ends that. A request is told before
    /// its reply is waited for.
    ///
    /// It may not wait for a lock that any thread holds while it calls this
    /// client, and of this client it may call only what sends nothing; the rest
    /// answers [`Kind::State`]. Messages that come faster than it takes them are
    /// left out: [`TraceRecord::dropped`](crate::TraceRecord::dropped).
    ///
    /// Waits until the one before is not running any more.
    pub fn set_trace(&self, sink: Option<TraceSink>) -> Result<()> {
        self.connection.set_trace(sink)
    }

    /// Fails where [`set_trace`](Self::set_trace) would: inside a function that the
    /// library calls.
    pub(crate) fn may_wait(&self) -> Result<()> {
        self.connection.may_wait()
    }

    /// What this client has done so far.
    pub fn counters(&self) -> Counters {
        self.connection.counters()
    }

    /// Takes no further request, after a bug in this library.
    pub(crate) fn poison(&self, cause: &Error) {
        self.connection.poison(cause);
    }

    /// Drops a forked child's copy, and leaves the parent's connection alone.
    pub(crate) fn close_in_child(self) {
        let Self {
            connection,
            negotiated,
            desk,
            ..
        } = self;
        connection.close_in_child();
        // Other threads of the parent may have been changing these at the fork.
        std::mem::forget((negotiated, desk));
    }

    /// The virtio features acknowledged last; 0 before.
    pub fn acked_features(&self) -> u64 {
        self.negotiated.acked()
    }

    /// The protocol features acknowledged last; empty before.
    pub fn acked_protocol_features(&self) -> ProtocolFeatures {
        self.negotiated.protocol()
    }

    // ---- the one way to send ----

    /// Sends what is answered by an acknowledgement, a barrier, or not at all.
    fn tell(&self, call: &Call<'_>) -> Result<()> {
        let acked = self.acked(call);
        let wait = self.needs_barrier(call);
        let deadline = self.ready(call)?;
        let out = Self::outgoing(call, acked);
        let told = if acked {
            self.connection
                .call(&out, ACK, deadline)
                .and_then(|reply| reply.decode(|reply| op::acknowledged(&reply)))
        } else if wait {
            let features = Call::new(Request::GetFeatures, NOTHING);
            let barrier = Self::outgoing(&features, false);
            Self::expect(&features).and_then(|expect| {
                self.connection
                    .send_with_barrier(&out, &barrier, expect, deadline)
            })
        } else {
            self.connection.send(&out, deadline)
        };
        told.map_err(|error| call.name(error))
    }

    /// Whether the request is acknowledged.
    fn acked(&self, call: &Call<'_>) -> bool {
        match call.info.reply {
            message::Reply::Ack(_) => self.agreed(ProtocolFeatures::REPLY_ACK),
            message::Reply::Status => true,
            message::Reply::Silent | message::Reply::Always(_) => false,
        }
    }

    /// Whether a request that is not acknowledged must be seen to be processed.
    fn needs_barrier(&self, call: &Call<'_>) -> bool {
        match call.info.reply {
            message::Reply::Ack(Barrier::Always) => true,
            message::Reply::Ack(Barrier::WhileRunning) => self.negotiated.running(call.ring),
            _ => false,
        }
    }

    /// Sends what is always answered with a reply of its own.
    fn ask<T>(&self, call: &Call<'_>, decode: impl FnOnce(Reply<'_>) -> Result<T>) -> Result<T> {
        self.answered(call)
            .and_then(|reply| reply.decode(decode))
            .map_err(|error| call.name(error))
    }

    /// Sends it, and waits for the reply.
    fn answered(&self, call: &Call<'_>) -> Result<Arrived<'_>> {
        let deadline = self.ready(call)?;
        let expect = Self::expect(call)?;
        self.connection
            .call(&Self::outgoing(call, false), expect, deadline)
    }

    /// Checks whether a request may be sent now; it may take until then.
    fn ready(&self, call: &Call<'_>) -> Result<Deadline> {
        self.check(call).map_err(|error| call.name(error))?;
        let timeout = call.timeout.or(self.timeouts.of(call.info.wait));
        Ok(Deadline::after(timeout))
    }

    /// Whether a request may be sent now.
    fn check(&self, call: &Call<'_>) -> Result<()> {
        let info = &call.info;
        let order = match call.request {
            Request::SetMemTable => Ok(()), // has checks of its own
            _ => self.negotiated.check_unconfirmed(),
        };
        order
            .and_then(|()| self.negotiated.check(info))
            .and_then(|()| checks::fits_the_table(info, call.body, call.payload, call.fds))
            .map_err(|error| self.or_ended(error))
    }

    /// Something that has not been agreed yet never will be on a connection that
    /// has ended, which is then what the caller has to know.
    fn or_ended(&self, error: Error) -> Error {
        match error.kind {
            Kind::NotNegotiated | Kind::State => self.connection.ended().unwrap_or(error),
            _ => error,
        }
    }

    fn outgoing<'a>(call: &Call<'a>, need_reply: bool) -> Outgoing<'a> {
        Outgoing {
            request: call.request,
            need_reply,
            body: call.body,
            payload: call.payload,
            fds: call.fds,
        }
    }

    fn expect(call: &Call<'_>) -> Result<Expect> {
        let info = &call.info;
        match info.reply {
            message::Reply::Always(size) => Ok(Expect {
                size,
                fds: info.fds_in,
                ack: false,
            }),
            _ => Err(Error::new(
                Kind::Panic,
                "this request has no reply of its own",
            )),
        }
    }

    fn ask_u64(&self, request: Request) -> Result<u64> {
        self.ask(&Call::new(request, NOTHING), |reply| decode(&reply))
    }

    fn agreed(&self, features: ProtocolFeatures) -> bool {
        self.negotiated.protocol().contains(features)
    }

    /// What has to be true before `request` is looked at any further.
    fn in_order(&self, request: Request, order: Result<()>) -> Result<()> {
        self.negotiated
            .check(request.info())
            .and(order)
            .map_err(|error| self.or_ended(error).of(request))
    }

    /// A request whose payload is a number.
    fn tell_u64(&self, request: Request, value: u64) -> Result<()> {
        self.tell(&Call::new(request, value.as_bytes()))
    }
}
