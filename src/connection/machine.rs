//! The state machine of a connection. It never waits: bytes go out and come in
//! by non-blocking steps, and it says what it waits for. Whoever drives it (a
//! blocking call, later a list of requests or an event loop) does the waiting.
//!
//! A request that is under way has a [`Slot`], kept in the order of sending.
//! The protocol has no sequence numbers, so the oldest slot that expects a reply
//! is the one that the next reply must belong to.

use super::inbox::{Filled, Inbox};
use super::trace::{Ledger, count};
use super::{Expect, Outgoing};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{Header, Payload, Request, flags};
use crate::socket::{self, ForeignFd};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Names a request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// A request that does not fit into the socket now, with its own copies of
/// everything, so that any thread can send it later.
#[derive(Debug)]
struct Frame {
    ticket: Ticket,
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<Duplicate>,
}

#[derive(Debug)]
struct Slot {
    ticket: Ticket,
    request: Request,
    /// `None` once the answer is there, or where none is expected.
    expect: Option<Expect>,
    /// The frame is still (partly) in the outbox.
    queued: bool,
    /// Somebody waits for the outcome. Otherwise a late reply is dropped.
    wanted: bool,
    /// Nobody ever did.
    posted: bool,
    /// When the call for it began, and the request for whose sake: the one before
    /// it, if it is a barrier.
    since: Instant,
    on_behalf: Request,
    /// Its answer says that the device is reset.
    resets: bool,
    failed: Option<Error>,
    payload: Vec<u8>,
    fd: Option<ForeignFd>,
}

impl Slot {
    fn done(&self) -> bool {
        self.failed.is_some() || (!self.queued && self.expect.is_none())
    }
}

/// A whole reply, lent for decoding.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) fd: Option<ForeignFd>,
}

/// How long after an acknowledgement the end of a connection mentions it.
const JUST: Duration = Duration::from_secs(1);

/// How many payload buffers are kept for reuse: for all that a list of requests has
/// under way, and so many that are not small.
const SPARE_PAYLOADS: usize = socket::MAX_PARCELS;
const LARGE_PAYLOADS: usize = 8;
const SMALL: usize = 64;

#[derive(Debug)]
pub(super) struct Machine {
    outbox: VecDeque<Frame>,
    slots: VecDeque<Slot>,
    /// `None` while somebody reads without holding the lock.
    inbox: Option<Box<Inbox>>,
    /// Why no further request is taken.
    latch: Option<Error>,
    /// The stream is lost: nothing more that comes means anything.
    lost: bool,
    /// What the back-end acknowledged last, and when.
    last_acked: Option<(Request, Instant)>,
    /// [`Connection::abort`](super::Connection::abort) was called: the end of
    /// the stream is our own doing.
    aborted: Arc<AtomicBool>,
    next: u64,
    /// More descriptors are in flight than an ordinary user may have: room comes
    /// as their receivers read, and cannot be polled for.
    pub(super) throttled: bool,
    /// Posted requests that the back-end refused since this was last taken: how many,
    /// and the first with the value of its answer.
    posted_refusals: u32,
    first_refusal: Option<(Request, u64)>,
    /// How often the back-end has confirmed that the device is reset.
    resets: u64,
    /// Payload buffers kept for reuse, so that no request allocates.
    spare: Vec<Vec<u8>>,
    pub(super) ledger: Ledger,
}

impl Machine {
    pub(super) fn new(aborted: Arc<AtomicBool>) -> Self {
        Self {
            outbox: VecDeque::new(),
            slots: VecDeque::new(),
            inbox: Some(Inbox::new()),
            latch: None,
            lost: false,
            last_acked: None,
            aborted,
            next: 0,
            throttled: false,
            posted_refusals: 0,
            first_refusal: None,
            resets: 0,
            spare: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    // ---- what a driver needs to know ----

    pub(super) fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether the stream is lost.
    pub(super) fn lost(&self) -> bool {
        self.lost
    }

    /// Whether the request is sent, and its reply has not come.
    pub(super) fn awaits_reply(&self, ticket: Ticket) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.ticket == ticket && slot.expect.is_some())
    }

    /// How many requests were given up whose replies may still come.
    pub(super) fn given_up(&self) -> usize {
        let given_up = |slot: &&Slot| !slot.wanted && !slot.posted;
        self.slots.iter().filter(given_up).count()
    }

    /// The same, and those that were posted.
    pub(super) fn unanswered(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.wanted).count()
    }

    /// How often the back-end has confirmed that the device is reset.
    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// Whether it may do so at any moment.
    pub(super) fn awaits_reset(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.resets && slot.expect.is_some())
    }

    /// Whether a thread reads without holding the lock.
    pub(super) fn lends_inbox(&self) -> bool {
        self.inbox.is_none()
    }

    /// The posted requests that have no answer yet.
    pub(super) fn posted(&self) -> Posted {
        let unanswered = || self.slots.iter().filter(|slot| slot.expect.is_some());
        let oldest = unanswered().next().filter(|slot| slot.posted);
        Posted {
            unanswered: unanswered().filter(|slot| slot.posted).count(),
            oldest: oldest.map(|slot| (slot.ticket.0, slot.request)),
        }
    }

    /// The posted requests that were refused since the last call.
    pub(super) fn take_posted_refusals(&mut self) -> Option<(u32, Error)> {
        let (request, value) = self.first_refusal.take()?;
        let count = std::mem::take(&mut self.posted_refusals);
        Some((count, Error::nack(value).of(request)))
    }

    /// Whether somebody waits for an outcome that may still come.
    pub(super) fn under_way(&self) -> bool {
        self.slots.iter().any(|slot| slot.wanted && !slot.done())
    }

    pub(super) fn done(&self, ticket: Ticket) -> bool {
        self.slots
            .iter()
            .find(|slot| slot.ticket == ticket)
            .is_none_or(Slot::done)
    }

    /// What a further request would be told, if none is taken any more.
    pub(super) fn ended(&self) -> Option<Error> {
        if self.aborted.load(Ordering::SeqCst) {
            return Some(self.hung_up());
        }
        self.latch.as_ref().map(latched)
    }

    /// Why no further request is taken, as it was first seen.
    pub(super) fn cause(&self) -> Option<&Error> {
        self.latch.as_ref()
    }

    /// Hands the inbox to the one who reads. There is only one, so it is there;
    /// if it were not, nobody would ever read again.
    pub(super) fn lend_inbox(&mut self) -> Option<Box<Inbox>> {
        let inbox = self.inbox.take();
        if inbox.is_none() {
            self.fail_all(&Error::new(Kind::Panic, "two threads read at once"));
        }
        inbox
    }

    // ---- sending ----

    /// Takes a request: sends it at once if nothing is before it and it fits,
    /// keeps it otherwise. `since` is before that: the back-end may answer before
    /// the send returns.
    pub(super) fn submit(
        &mut self,
        socket: BorrowedFd<'_>,
        out: &Outgoing<'_>,
        expect: Option<Expect>,
        since: Instant,
    ) -> Result<Ticket> {
        self.check_open(socket)?;
        let header = header(out)?;
        let sent = if self.outbox.is_empty() {
            match socket::send(socket, &parts(&header, out), out.fds) {
                Ok(sent) => sent,
                Err(errno) if must_wait(errno, &mut self.throttled) => 0,
                Err(errno) => return Err(self.refused(errno, out.request)),
            }
        } else {
            0
        };
        self.take(out, &header, sent, expect, since)
    }

    /// Takes several requests, at most as many as one system call sends, in their
    /// order. `taken` is told the ticket of each; an error is about the next one.
    pub(super) fn submit_all(
        &mut self,
        socket: BorrowedFd<'_>,
        list: &[(Outgoing<'_>, Option<Expect>)],
        mut taken: impl FnMut(Ticket),
    ) -> Result<()> {
        self.check_open(socket)?;
        let since = Instant::now();
        let list = list.get(..socket::MAX_PARCELS).unwrap_or(list);
        let mut headers = [Header::default(); socket::MAX_PARCELS];
        for (place, (out, _)) in headers.iter_mut().zip(list) {
            *place = header(out)?;
        }
        let mut all = headers.iter().zip(list);
        let mut parcels = [socket::Parcel::empty(); socket::MAX_PARCELS];
        for (parcel, (header, (out, _))) in parcels.iter_mut().zip(all.clone()) {
            *parcel = socket::Parcel {
                parts: parts(header, out),
                fds: out.fds,
            };
        }
        let mut rest = parcels.get(..list.len()).unwrap_or_default();
        while !rest.is_empty() {
            let mut lengths = [0; socket::MAX_PARCELS];
            let mut places = lengths.iter_mut();
            let mut done = 0_usize;
            let result = if self.outbox.is_empty() {
                socket::send_all(socket, rest, |sent| {
                    done = done.saturating_add(1);
                    if let Some(place) = places.next() {
                        *place = sent;
                    }
                })
            } else {
                Err(Errno::EAGAIN)
            };
            match result {
                Ok(()) => {}
                // What does not fit is kept, all of it: one has to follow the other.
                Err(errno) if must_wait(errno, &mut self.throttled) => done = rest.len(),
                Err(errno) => {
                    // It is about the first that is left.
                    let Some((_, (out, _))) = all.next() else {
                        break;
                    };
                    return Err(self.refused(errno, out.request));
                }
            }
            for ((header, (out, expect)), sent) in all.by_ref().zip(lengths).take(done) {
                taken(self.take(out, header, sent, *expect, since)?);
            }
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether anything may be sent now.
    fn check_open(&mut self, socket: BorrowedFd<'_>) -> Result<()> {
        match self.ended() {
            Some(error) => Err(error),
            None => self.check_idle(socket),
        }
    }

    /// A request could not be sent at all.
    fn refused(&mut self, errno: Errno, request: Request) -> Error {
        let error = self.send_failed(errno).of(request);
        // Answers that came before may still be read.
        if matches!(error.kind, Kind::Disconnected | Kind::Canceled) {
            self.latch(&error);
        }
        error
    }

    /// Keeps a request of which so many bytes are in the socket until it is answered,
    /// and what of it is not.
    fn take(
        &mut self,
        out: &Outgoing<'_>,
        header: &Header,
        sent: usize,
        expect: Option<Expect>,
        since: Instant,
    ) -> Result<Ticket> {
        if sent > 0 {
            let payload = Payload(out.body, out.payload);
            self.ledger.sending(*header, payload, sent, out.fds.len());
        }
        let parts = [header.as_bytes(), out.body, out.payload];
        let queued = sent < parts.iter().map(|part| part.len()).sum();
        let ticket = Ticket(self.next);
        if queued {
            let frame = Frame {
                ticket,
                bytes: parts.concat(),
                sent,
                // Descriptors go with the first byte.
                fds: if sent == 0 {
                    duplicates(out)?
                } else {
                    Vec::new()
                },
            };
            self.outbox.push_back(frame);
        }
        self.next = self.next.wrapping_add(1);
        // Only where it will be filled: an empty one is worth nothing later.
        let payload = expect.and_then(|_| self.spare.pop()).unwrap_or_default();
        self.slots.push_back(Slot {
            ticket,
            request: out.request,
            expect,
            queued,
            wanted: true,
            posted: false,
            since,
            on_behalf: out.request,
            resets: out.resets(),
            failed: None,
            payload,
            fd: None,
        });
        Ok(ticket)
    }

    /// The request was sent only to know that `first` has been processed.
    pub(super) fn is_barrier(&mut self, ticket: Ticket, first: &Outgoing<'_>) {
        count(&mut self.ledger.counters.barriers);
        self.settle(ticket, |slot| {
            slot.on_behalf = first.request;
            slot.resets = first.resets();
        });
    }

    /// With nothing outstanding there must be nothing to read: a surplus reply
    /// would be taken as the answer to the next request of its kind.
    fn check_idle(&mut self, socket: BorrowedFd<'_>) -> Result<()> {
        let expected = self.slots.iter().any(|slot| slot.expect.is_some());
        let inbox = self.inbox.as_ref().is_none_or(|inbox| inbox.is_empty());
        if expected || (inbox && socket::unread(socket).is_ok_and(|bytes| bytes == 0)) {
            return Ok(());
        }
        let error = Error::protocol("the back-end sent a message that nothing had asked for");
        self.fail_all(&error);
        Err(error)
    }

    /// Sends what is queued, as far as it fits.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) {
        self.throttled = false;
        while let Some(frame) = self.outbox.front_mut() {
            let rest = frame.bytes.get(frame.sent..).unwrap_or_default();
            let result = if frame.sent == 0 {
                let mut fds = [socket; socket::MAX_FDS_SENT];
                for (place, fd) in fds.iter_mut().zip(&frame.fds) {
                    *place = fd.as_fd();
                }
                let fds = fds.get(..frame.fds.len()).unwrap_or_default();
                socket::send(socket, &[IoSlice::new(rest)], fds)
            } else {
                socket::send(socket, &[IoSlice::new(rest)], &[])
            };
            match result {
                Ok(sent) => {
                    match Header::read_from_prefix(&frame.bytes) {
                        Ok((header, payload)) if frame.sent == 0 && sent > 0 => {
                            let payload = Payload(payload, &[]);
                            self.ledger.sending(header, payload, sent, frame.fds.len());
                        }
                        _ => self.ledger.counters.sent(sent, 0),
                    }
                    frame.sent = frame.sent.saturating_add(sent);
                }
                Err(errno) if must_wait(errno, &mut self.throttled) => return,
                Err(errno) if frame.sent == 0 => {
                    let ticket = frame.ticket;
                    self.outbox.pop_front();
                    let error = self.send_failed(errno);
                    self.settle(ticket, |slot| {
                        slot.queued = false;
                        // The next answer is another's.
                        slot.expect = None;
                        slot.failed = Some(error);
                    });
                    continue;
                }
                Err(errno) => {
                    // Part of a message is on the wire, and the rest cannot be.
                    let error = self.send_failed(errno);
                    return self.fail_all(&error);
                }
            }
            if frame.sent >= frame.bytes.len() {
                let ticket = frame.ticket;
                self.outbox.pop_front();
                self.settle(ticket, |slot| slot.queued = false);
            }
        }
    }

    /// The error of a failed send.
    fn send_failed(&self, errno: Errno) -> Error {
        let error = Error::os(errno, "cannot send the request");
        match error.kind {
            Kind::Disconnected => self.hung_up().during(Phase::Send),
            // The socket is ours and open: it is one that was passed.
            Kind::Os(Errno::EBADF) => Error::bad_fd("fd is not open"),
            _ => error.during(Phase::Send),
        }
    }

    /// The oldest request that has no answer.
    fn outstanding(&self) -> Option<Request> {
        let mut slots = self.slots.iter();
        let oldest = slots.find(|slot| slot.queued || slot.expect.is_some());
        oldest.map(|slot| slot.on_behalf)
    }

    /// The error of a connection that has ended. It claims that an answer is missing only
    /// where one is, and does not blame a request that was acknowledged: a back-end that
    /// is killed has often just acknowledged one.
    fn hung_up(&self) -> Error {
        if self.aborted.load(Ordering::SeqCst) {
            return Error::new(Kind::Canceled, "the connection was aborted");
        }
        let mut text = String::from("the back-end closed the connection");
        if self.outstanding().is_some() {
            text.push_str(" without an answer");
        }
        // libvhost-user acknowledges a request that it cannot digest, and then exits.
        if let Some((acked, at)) = self.last_acked {
            let since = at.elapsed();
            if since < JUST {
                let (name, ms) = (acked.info().name, since.as_millis());
                let last = format!("; {ms} ms before, it acknowledged {name}");
                text.push_str(&last);
            }
        }
        Error::new(Kind::Disconnected, text).during(Phase::Reply)
    }

    // ---- receiving ----

    /// Reads what is there, by one system call, and settles what it answers.
    /// Says whether anything came.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> bool {
        let Some(mut inbox) = self.lend_inbox() else {
            return false;
        };
        let filled = inbox.fill(socket, false);
        let came = filled == Ok(Filled::Bytes);
        self.received(inbox, filled);
        came
    }

    /// Takes the inbox back after a read, and settles what it answers.
    pub(super) fn received(&mut self, mut inbox: Box<Inbox>, filled: nix::Result<Filled>) {
        let (bytes, fds) = inbox.take_traffic();
        self.ledger.counters.received(bytes, fds);
        let parsed = match self.lost {
            true => {
                inbox.discard();
                Ok(())
            }
            false => self.parse(&mut inbox),
        };
        self.inbox = Some(inbox);
        if let Err(error) = parsed {
            return self.fail_all(&error);
        }
        match filled {
            Ok(Filled::Bytes | Filled::Nothing) => {}
            Ok(Filled::End) | Err(Errno::ECONNRESET) => {
                let mut error = self.hung_up();
                if error.kind == Kind::Disconnected {
                    error.request = self.outstanding();
                }
                self.fail_all(&error);
            }
            Err(errno) => {
                let error = Error::os(errno, "cannot receive the reply").during(Phase::Reply);
                self.fail_all(&error);
            }
        }
    }

    fn parse(&mut self, inbox: &mut Inbox) -> Result<()> {
        // One look at the clock for all that one read has brought.
        let mut read = None;
        while let Some(header) = inbox.header()? {
            let mut slots = self.slots.iter_mut();
            let oldest = slots.find(|slot| slot.expect.is_some() && !slot.queued);
            let asked = oldest.as_ref().map(|slot| slot.request);
            let (slot, expect) = match check_header(&header, oldest) {
                Ok(found) => found,
                Err(error) => {
                    let payload = Payload(inbox.arrived(header), &[]);
                    self.ledger.receiving(header, payload, 0, asked);
                    return Err(error);
                }
            };
            let mut fds = 0_usize;
            let fd = &mut slot.fd;
            let Some(payload) = inbox.payload(header, |received| {
                fds = fds.saturating_add(1);
                *fd = Some(received); // a surplus one is closed with its place
            }) else {
                return Ok(()); // the rest has not arrived yet
            };
            self.ledger
                .receiving(header, Payload(payload, &[]), fds, asked);
            if !expect.fds.contain(fds) {
                slot.fd = None;
                return Err(Error::protocol(format!(
                    "the reply carries {fds} file descriptors, allowed are {} to {}",
                    expect.fds.min, expect.fds.max
                ))
                .of(slot.request)
                .value(u64::try_from(fds).unwrap_or(u64::MAX)));
            }
            slot.expect = None;
            let zero = payload.iter().all(|byte| *byte == 0);
            let mut now = || *read.get_or_insert_with(Instant::now);
            self.last_acked = (expect.ack && zero).then(|| (slot.request, now()));
            if slot.resets && (zero || !expect.ack) {
                self.resets = self.resets.saturating_add(1);
            }
            let counters = &mut self.ledger.counters;
            count(&mut counters.replies_received);
            if slot.posted && !zero {
                count(&mut counters.posted_refused);
                self.posted_refusals = self.posted_refusals.saturating_add(1);
                let value = payload.first_chunk().copied().unwrap_or_default();
                let refusal = (slot.request, u64::from_ne_bytes(value));
                self.first_refusal.get_or_insert(refusal);
            }
            if slot.wanted {
                counters.waited(now().saturating_duration_since(slot.since), slot.on_behalf);
                slot.payload.clear();
                slot.payload.extend_from_slice(payload);
            }
            let ticket = slot.ticket;
            self.settle(ticket, |_| {});
        }
        Ok(())
    }

    // ---- outcomes ----

    /// Changes a slot, and lets go of it if it is done and nobody waits for it.
    fn settle(&mut self, ticket: Ticket, change: impl FnOnce(&mut Slot)) {
        let Some(at) = self.slots.iter().position(|slot| slot.ticket == ticket) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(at) {
            change(slot);
            if slot.done() && !slot.wanted {
                self.slots.remove(at);
            }
        }
    }

    fn keep_spare(&mut self, payload: Vec<u8>) {
        let most = match payload.capacity() {
            0 => 0,
            capacity if capacity > SMALL => LARGE_PAYLOADS,
            _ => SPARE_PAYLOADS,
        };
        if self.spare.len() < most {
            self.spare.push(payload);
        }
    }

    /// The outcome of a request that is done: its reply goes through `decode`.
    /// A reply that cannot be decoded breaks the stream, if the error says so.
    pub(super) fn outcome<T>(
        &mut self,
        ticket: Ticket,
        decode: impl FnOnce(Reply<'_>) -> Result<T>,
    ) -> Result<T> {
        let (payload, fd) = self.arrived(ticket)?;
        let result = decode(Reply {
            payload: &payload,
            fd,
        });
        self.keep_spare(payload);
        result.inspect_err(|error| self.decoded(error))
    }

    /// What came for a request that is done, which is forgotten.
    fn arrived(&mut self, ticket: Ticket) -> Result<(Vec<u8>, Option<ForeignFd>)> {
        let at = self.slots.iter().position(|slot| slot.ticket == ticket);
        let Some(slot) = at.and_then(|at| self.slots.remove(at)) else {
            let text = "a request under way has been forgotten";
            return Err(Error::new(Kind::Panic, text));
        };
        match slot.failed {
            Some(error) => {
                self.keep_spare(slot.payload);
                self.decoded(&error);
                Err(error)
            }
            None => Ok((slot.payload, slot.fd)),
        }
    }

    /// What came means nothing, if this is its error.
    fn decoded(&mut self, error: &Error) {
        if error.kind == Kind::Protocol {
            self.fail_all(error);
        }
    }

    /// The caller stops waiting. A request of which nothing is on the wire
    /// leaves no trace; one cut in the middle breaks the stream; otherwise the
    /// reply, when it comes, is dropped.
    pub(super) fn abandon(&mut self, ticket: Ticket) -> (Abandoned, Option<Request>) {
        let request = self
            .slots
            .iter()
            .find(|slot| slot.ticket == ticket)
            .map(|slot| slot.request);
        (self.let_go(ticket), request)
    }

    fn let_go(&mut self, ticket: Ticket) -> Abandoned {
        let frame = self.outbox.iter().position(|frame| frame.ticket == ticket);
        if let Some(at) = frame {
            let untouched = self.outbox.get(at).is_some_and(|frame| frame.sent == 0);
            if untouched {
                self.outbox.remove(at);
                self.settle(ticket, |slot| {
                    slot.queued = false;
                    slot.expect = None;
                    slot.wanted = false;
                });
                return Abandoned::Unsent;
            }
            self.settle(ticket, |slot| slot.wanted = false);
            return Abandoned::CutShort;
        }
        let slot = self.slots.iter().find(|slot| slot.ticket == ticket);
        if let Some(slot) = slot.filter(|slot| slot.expect.is_some()) {
            let counters = &mut self.ledger.counters;
            counters.waited(slot.since.elapsed(), slot.on_behalf);
        }
        self.settle(ticket, |slot| {
            slot.wanted = false;
            slot.fd = None;
        });
        Abandoned::Unanswered
    }

    /// Nobody waits for the outcome of a request that goes on.
    pub(super) fn disown(&mut self, ticket: Ticket) {
        self.settle(ticket, |slot| {
            slot.wanted = false;
            slot.posted = true;
        });
    }

    /// Takes no further request, for this reason. Those under way go on.
    pub(super) fn latch(&mut self, cause: &Error) {
        self.latch.get_or_insert_with(|| cause.clone());
    }

    /// The stream is lost: everything under way fails, and nothing more is taken.
    pub(super) fn fail_all(&mut self, cause: &Error) {
        self.latch(cause);
        self.lost = true;
        self.outbox.clear();
        if let Some(inbox) = &mut self.inbox {
            inbox.discard();
        }
        self.slots.retain(|slot| slot.wanted);
        for slot in &mut self.slots {
            // What was still in the outbox was never sent.
            let done = slot.done();
            let unsent = std::mem::take(&mut slot.queued);
            if !done {
                let error = cause.clone().about(Some(slot.request));
                slot.failed = Some(match unsent {
                    true => error.during(Phase::Send),
                    false => error,
                });
            }
            if slot.failed.is_some() {
                slot.fd = None;
            }
        }
    }
}

/// Posted requests without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Posted {
    /// How many there are.
    pub(crate) unanswered: usize,
    /// The number of the oldest one, and its request, if no other request is answered
    /// before it: the one that the back-end works at.
    pub(crate) oldest: Option<(u64, Request)>,
}

/// What [`Machine::abandon`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abandoned {
    Unsent,
    CutShort,
    Unanswered,
}

/// The request that a reply with this header answers, and what it may be like.
fn check_header<'a>(
    header: &Header,
    oldest: Option<&'a mut Slot>,
) -> Result<(&'a mut Slot, Expect)> {
    check_flags(header)?;
    let Some((slot, expect)) = oldest.and_then(|slot| slot.expect.map(|expect| (slot, expect)))
    else {
        let error = Error::protocol("the back-end sent a reply to no request");
        return Err(error.value(u64::from(header.request)));
    };
    let wrong = |text: String, value: u32| {
        Err(Error::protocol(text)
            .of(slot.request)
            .value(u64::from(value)))
    };
    if header.request != slot.request.id() {
        return wrong(
            format!(
                "the back-end answered request {}, which is not the oldest one",
                header.request
            ),
            header.request,
        );
    }
    if !usize::try_from(header.size).is_ok_and(|size| expect.size.contain(size)) {
        return wrong(
            format!(
                "the reply has {} bytes of payload, allowed are {} to {}",
                header.size, expect.size.min, expect.size.max
            ),
            header.size,
        );
    }
    Ok((slot, expect))
}

fn check_flags(header: &Header) -> Result<()> {
    let value = u64::from(header.flags);
    if header.flags & flags::VERSION_MASK != flags::VERSION {
        return Err(Error::protocol("the reply has a wrong version").value(value));
    }
    // An echoed need-reply bit is what libvhost-user sends.
    let known = flags::VERSION_MASK | flags::REPLY | flags::NEED_REPLY;
    if header.flags & flags::REPLY == 0 || header.flags & !known != 0 {
        return Err(Error::protocol("the message is not flagged as a reply").value(value));
    }
    Ok(())
}

fn header(out: &Outgoing<'_>) -> Result<Header> {
    let size = out.body.len().saturating_add(out.payload.len());
    Ok(Header {
        request: out.request.id(),
        flags: flags::VERSION | if out.need_reply { flags::NEED_REPLY } else { 0 },
        size: u32::try_from(size).map_err(|_| Error::invalid("the request is too large"))?,
    })
}

fn parts<'a>(header: &'a Header, out: &Outgoing<'a>) -> [IoSlice<'a>; 3] {
    [header.as_bytes(), out.body, out.payload].map(IoSlice::new)
}

/// A descriptor that waits for room in the socket.
#[derive(Debug)]
enum Duplicate {
    Own(OwnedFd),
    /// Of the buffer that the back-end has made.
    Foreign(ForeignFd),
}

impl AsFd for Duplicate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Foreign(fd) => fd.as_fd(),
        }
    }
}

fn duplicates(out: &Outgoing<'_>) -> Result<Vec<Duplicate>> {
    let duplicate = |fd: &BorrowedFd<'_>| {
        let fd = socket::keep(*fd, "fd")?;
        Ok(match out.request {
            Request::SetInflightFd => Duplicate::Foreign(ForeignFd::new(fd)),
            _ => Duplicate::Own(fd),
        })
    };
    out.fds.iter().map(duplicate).collect()
}

/// Whether a send failed only because there is no room now.
fn must_wait(errno: Errno, throttled: &mut bool) -> bool {
    *throttled = errno == Errno::ETOOMANYREFS;
    *throttled || matches!(errno, Errno::EAGAIN | Errno::EINTR)
}

/// What a later call is told.
fn latched(cause: &Error) -> Error {
    let kind = match cause.kind {
        Kind::Disconnected | Kind::Canceled => cause.kind,
        _ => Kind::Poisoned(cause.class()),
    };
    Error::new(
        kind,
        format!("the connection has ended earlier ({cause}); only a new connection cures this"),
    )
    .with_value(cause.value)
}
