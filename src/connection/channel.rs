//! The socket on which the back-end asks and the front-end answers: framing only,
//! by steps that never wait. What is asked is the business of a [`Serve`].

use super::inbox::{Filled, Inbox};
use super::trace::Ledger;
use crate::error::{Error, Result};
use crate::message::{Flow, HEADER_SIZE, Header, MAX_BACKEND_PAYLOAD, flags};
use crate::socket::{self, Bell, ForeignFd, PeerSocket, Pollable, Watch};
use nix::errno::Errno;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// A request of the back-end, whole.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    /// How many bytes of payload it had. Of those that are too many to mean
    /// anything, none is kept.
    pub(crate) size: usize,
    bytes: [u8; MAX_BACKEND_PAYLOAD],
    /// How many descriptors came with it, and the first of them.
    pub(crate) fds: usize,
    pub(crate) fd: Option<ForeignFd>,
}

impl Incoming {
    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }
}

/// The answer to a request: 0 for success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: u64,
    pub(crate) fd: Option<OwnedFd>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Served {
    /// If there is to be one.
    pub(crate) answer: Option<Answer>,
    /// It was not done.
    pub(crate) refused: bool,
}

/// Who does what the back-end asks.
pub(crate) trait Serve: Send + Sync {
    /// Does it. Called without any lock of the connection, one request at a time.
    fn serve(&self, incoming: Incoming) -> Served;

    /// The device has been reset so many times: what the back-end had set before the last
    /// of them is gone. Called with a lock of the connection, often, and also while
    /// something is done.
    fn resets(&self, times: u64);

    /// There will be no further request.
    fn ended(&self, cause: &Error);

    /// Whether something waits for the caller's event loop.
    fn pending(&self) -> bool;
}

impl std::fmt::Debug for dyn Serve {
    /// Not what is behind it, whose words would be in the library for this alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serve")
    }
}

/// The descriptors, which a thread also uses while it waits without the lock.
#[derive(Debug)]
pub(super) struct Ends {
    socket: PeerSocket,
    /// None for who drives by steps: it waits for the sockets itself, and nobody
    /// waits in a call.
    pub(super) signals: Option<Signals>,
}

/// What tells others that there is something to do.
#[derive(Debug)]
pub(super) struct Signals {
    /// Wakes threads that wait for the socket of the connection or this one.
    pub(super) bell: Bell,
    /// For the caller's event loop.
    pub(super) pollable: Pollable,
}

impl Ends {
    /// Ours, and the socket that the back-end gets.
    pub(super) fn new(stepped: bool) -> nix::Result<(Self, OwnedFd)> {
        let (socket, theirs) = socket::pair()?;
        let signals = match stepped {
            true => None,
            false => Some(Signals {
                bell: Bell::new()?,
                pollable: Pollable::new()?,
            }),
        };
        let socket = PeerSocket::new(socket);
        Ok((Self { socket, signals }, theirs))
    }
}

/// An answer on its way.
#[derive(Debug)]
struct Unsent {
    bytes: [u8; HEADER_SIZE + size_of::<u64>()],
    sent: usize,
    fd: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) server: Arc<dyn Serve>,
    inbox: Box<Inbox>,
    /// A request that could not be served when it had come.
    held: Option<Incoming>,
    /// Nothing further is read until it is out, so there is at most one.
    unsent: Option<Unsent>,
    ended: bool,
    /// Why, until the server has been told.
    untold: Option<Error>,
    /// What the pollable descriptor is ready for, if that is sure.
    armed: Option<Armed>,
}

/// For what the caller's event loop is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Armed {
    /// The channel can be read, or written.
    read: bool,
    write: bool,
    /// The connection can be written.
    room: bool,
    /// Something is there already.
    now: bool,
}

impl Channel {
    pub(super) fn new(server: Arc<dyn Serve>) -> Self {
        Self {
            server,
            inbox: Inbox::new(),
            held: None,
            unsent: None,
            ended: false,
            untold: None,
            armed: None,
        }
    }

    /// Whether the back-end may still ask.
    pub(super) fn open(&self) -> bool {
        !self.ended
    }

    /// Whether the next [`step`](Self::step) needs nothing to be waited for.
    pub(super) fn holds_request(&self) -> bool {
        let held = self.held.is_some() || self.inbox.holds_message();
        !self.ended && self.unsent.is_none() && held
    }

    /// The same for who drives by steps, and whether something is there already.
    /// Nothing is waited for while a thread is `busy` with it.
    pub(super) fn interest<'a>(&self, ends: &'a Ends, busy: bool) -> (Watch<'a>, bool) {
        let wanted = self.wanted(busy, false);
        let watch = Watch {
            read: wanted.read,
            write: wanted.write,
            ..self.watch(ends)
        };
        (watch, wanted.now)
    }

    fn wanted(&self, busy: bool, room: bool) -> Armed {
        let free = !self.ended && !busy;
        Armed {
            read: free && self.unsent.is_none(),
            write: free && self.unsent.is_some(),
            room,
            now: self.server.pending() || (free && self.holds_request()),
        }
    }

    /// What to wait for before the next [`step`](Self::step).
    pub(super) fn watch<'a>(&self, ends: &'a Ends) -> Watch<'a> {
        Watch {
            fd: ends.socket.as_fd(),
            read: self.unsent.is_none(),
            write: self.unsent.is_some(),
            // It may have asked all that it will, and want its answers.
            end: false,
        }
    }

    /// Sends what is still to be sent and reads what is there, by at most one
    /// system call each. The next request, if that makes one whole.
    pub(super) fn step(&mut self, ends: &Ends, ledger: &mut Ledger) -> Option<Incoming> {
        if self.ended || !self.flush(ends, ledger) {
            return None;
        }
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        let mut filled = Ok(Filled::Bytes);
        let mut next = self.next(ledger);
        if matches!(next, Ok(None)) {
            filled = self.inbox.fill(ends.socket.as_fd(), false);
            let (bytes, fds) = self.inbox.take_traffic();
            ledger.counters.received(bytes, fds);
            next = self.next(ledger);
        }
        match (next, filled) {
            (Ok(Some(incoming)), _) => return Some(incoming),
            (Ok(None), Ok(Filled::Bytes | Filled::Nothing)) => {}
            (Ok(None), Ok(Filled::End) | Err(Errno::ECONNRESET)) => {
                self.end(
                    ends,
                    &Error::new(
                        crate::error::Kind::Disconnected,
                        "the back-end closed its channel",
                    ),
                );
            }
            (Ok(None), Err(errno)) => self.end(ends, &Error::os(errno, "cannot read the channel")),
            (Err(error), _) => self.end(ends, &error),
        }
        None
    }

    /// It is the next one again.
    pub(super) fn hold(&mut self, incoming: Incoming) {
        self.held = (!self.ended).then_some(incoming);
    }

    fn next(&mut self, ledger: &mut Ledger) -> Result<Option<Incoming>> {
        let Some(header) = self.inbox.header()? else {
            return Ok(None);
        };
        let size = check_header(&header).inspect_err(|_| {
            let payload = self.inbox.arrived(header);
            ledger.on_channel(Flow::Received, header, payload, 0);
        })?;
        let mut incoming = Incoming {
            request: header.request,
            need_reply: header.flags & flags::NEED_REPLY != 0,
            size,
            bytes: [0; MAX_BACKEND_PAYLOAD],
            fds: 0,
            fd: None,
        };
        let (fds, first) = (&mut incoming.fds, &mut incoming.fd);
        let Some(payload) = self.inbox.payload(header, |fd| {
            *fds = fds.saturating_add(1);
            first.get_or_insert(fd);
        }) else {
            return Ok(None);
        };
        ledger.on_channel(Flow::Received, header, payload, *fds);
        if let Some(place) = incoming.bytes.get_mut(..payload.len()) {
            place.copy_from_slice(payload);
        }
        Ok(Some(incoming))
    }

    /// Answers a request.
    pub(super) fn answer(
        &mut self,
        ends: &Ends,
        ledger: &mut Ledger,
        request: u32,
        answer: Answer,
    ) {
        let header = Header {
            request,
            flags: flags::VERSION | flags::REPLY,
            size: u32::try_from(size_of::<u64>()).unwrap_or_default(),
        };
        let mut bytes = [0; HEADER_SIZE + size_of::<u64>()];
        let (head, tail) = bytes.split_at_mut(HEADER_SIZE);
        head.copy_from_slice(header.as_bytes());
        tail.copy_from_slice(answer.value.as_bytes());
        let fds = usize::from(answer.fd.is_some());
        ledger.on_channel(Flow::Sent, header, answer.value.as_bytes(), fds);
        self.unsent = Some(Unsent {
            bytes,
            sent: 0,
            fd: answer.fd,
        });
        self.flush(ends, ledger);
    }

    /// Sends as much as fits. Whether nothing is left.
    fn flush(&mut self, ends: &Ends, ledger: &mut Ledger) -> bool {
        while let Some(unsent) = &mut self.unsent {
            let rest = unsent.bytes.get(unsent.sent..).unwrap_or_default();
            let fd = unsent.fd.as_ref().filter(|_| unsent.sent == 0);
            let fds: Option<BorrowedFd<'_>> = fd.map(AsFd::as_fd);
            let parts = [IoSlice::new(rest)];
            match socket::send(ends.socket.as_fd(), &parts, fds.as_slice()) {
                Ok(sent) => {
                    ledger.counters.sent(sent, fds.as_slice().len());
                    unsent.sent = unsent.sent.saturating_add(sent);
                    if unsent.sent >= unsent.bytes.len() {
                        self.unsent = None;
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return false,
                Err(Errno::ETOOMANYREFS) if unsent.fd.is_some() => {
                    // Room for it cannot be polled for.
                    unsent.fd = None;
                    let value = i64::from(libc::ETOOMANYREFS).wrapping_neg();
                    let (_, tail) = unsent.bytes.split_at_mut(HEADER_SIZE);
                    tail.copy_from_slice(value.as_bytes());
                }
                Err(errno) => {
                    self.unsent = None;
                    self.end(ends, &Error::os(errno, "cannot answer on the channel"));
                }
            }
        }
        true
    }

    /// No further request is read. The back-end notices, and so does who polls,
    /// once [`arm`](Self::arm) has told the server.
    pub(super) fn end(&mut self, ends: &Ends, cause: &Error) {
        if !std::mem::replace(&mut self.ended, true) {
            self.inbox.discard();
            self.held = None;
            self.unsent = None;
            socket::shut_down(ends.socket.as_fd());
            self.untold = Some(cause.clone());
        }
    }

    /// Makes the pollable descriptor say whether there is something to do. Not
    /// on the channel while another thread is `busy` with it. With `room`, that is
    /// to send what waits on the connection. An end comes after what that thread
    /// does.
    pub(super) fn arm(&mut self, ends: &Ends, busy: bool, room: Watch<'_>) {
        if let Some(cause) = self.untold.take_if(|_| !busy) {
            self.server.ended(&cause);
        }
        let wanted = self.wanted(busy, room.write);
        let before = self.armed;
        let Some(signals) = ends.signals.as_ref().filter(|_| before != Some(wanted)) else {
            return;
        };
        let mut result = Ok(());
        if before.is_none_or(|it| (it.read, it.write) != (wanted.read, wanted.write)) {
            result = signals.pollable.watch(Watch {
                fd: ends.socket.as_fd(),
                read: wanted.read,
                write: wanted.write,
                end: false,
            });
        }
        if before.is_none_or(|it| it.room != wanted.room) {
            result = result.and(signals.pollable.watch(room));
        }
        if before.is_none_or(|it| it.now != wanted.now) {
            // A bell can always be rung.
            let always = Watch {
                fd: signals.bell.fd(),
                read: false,
                write: wanted.now,
                end: false,
            };
            result = result.and(signals.pollable.watch(always));
        }
        self.armed = result.is_ok().then_some(wanted);
    }
}

/// Whether it can be one of a request; the size of its payload.
fn check_header(header: &Header) -> Result<usize> {
    let known = flags::VERSION_MASK | flags::NEED_REPLY;
    if header.flags & flags::VERSION_MASK != flags::VERSION || header.flags & !known != 0 {
        let text = "a message on the channel is not flagged as a request";
        return Err(Error::protocol(text).value(u64::from(header.flags)));
    }
    let size = usize::try_from(header.size).unwrap_or(usize::MAX);
    if size > super::inbox::MAX_PAYLOAD {
        let text = "a message on the channel is larger than any request";
        return Err(Error::protocol(text).value(u64::from(header.size)));
    }
    Ok(size)
}
