//! Many requests at once: sent ahead of their acknowledgements, every one of which
//! is still looked at.

use super::{ACK, BackendClient, Call, NOTHING, Op, Timeout, op};
use crate::connection::{Expect, Outcome, Outgoing, Pending};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{Request, VringAddr};
use crate::socket::{self, Deadline};
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// How many requests may be unanswered. A back-end that writes each answer in two
/// pieces has room for more than twice as many, so it never waits for this side.
pub(crate) const WINDOW: usize = socket::MAX_PARCELS;
const _: () = assert!(WINDOW.is_power_of_two());
/// How many of them may carry descriptors: an ordinary user may have about as many
/// in flight, over all sockets, as one process may have open.
pub(crate) const FD_WINDOW: usize = 16;

/// The largest body of a request that may be in a list.
const BODY: usize = size_of::<VringAddr>();

/// Requests that are made when they are needed, twice each.
#[derive(Clone, Copy)]
pub(crate) struct List<'l, 'op> {
    pub(crate) number: usize,
    pub(crate) op: &'l dyn Fn(usize) -> Result<Op<'op>>,
}

/// A list that is not what it was before.
fn changed() -> Error {
    Error::new(Kind::Panic, "a list of requests has become shorter")
}

/// What became of a list of requests.
#[derive(Debug, Default)]
pub struct Submitted {
    /// How many went out, always the first of the list.
    pub sent: usize,
    /// How many of them were seen to be processed. Without a failure it is the length
    /// of the list; the back-end may also have processed some that failed to be
    /// confirmed.
    pub applied: usize,
    /// How many of them the back-end refused; which was the first stands in `failure`.
    pub refused: usize,
    /// What ended the list.
    pub failure: Option<Refusal>,
}

/// What ended a list of requests.
#[derive(Debug)]
pub struct Refusal {
    /// Which request of the list, from 0; `None` where that cannot be told.
    pub index: Option<usize>,
    /// What was wrong with it.
    pub error: Error,
}

impl Submitted {
    /// The first of the list counts: when sending fails, what was sent before may
    /// still turn out to have failed.
    fn fail(&mut self, index: Option<usize>, error: Error) {
        let earlier = |failure: &Refusal| failure.index <= index;
        if !self.failure.as_ref().is_some_and(earlier) {
            self.failure = Some(Refusal { index, error });
        }
    }
}

/// A request, encoded, and apart from what it was made of.
#[derive(Debug, Clone, Copy)]
struct Encoded<'a> {
    request: Request,
    ring: Option<u8>,
    acked: bool,
    body: [u8; BODY],
    size: usize,
    fd: Option<BorrowedFd<'a>>,
}

impl<'a> Encoded<'a> {
    const EMPTY: Self = Self {
        request: Request::GetFeatures,
        ring: None,
        acked: false,
        body: [0; BODY],
        size: 0,
        fd: None,
    };

    fn outgoing(&self) -> (Outgoing<'_>, Option<Expect>) {
        let out = Outgoing {
            request: self.request,
            need_reply: self.acked,
            body: self.body.get(..self.size).unwrap_or_default(),
            payload: &[],
            fds: self.fd.as_slice(),
        };
        (out, self.acked.then_some(ACK))
    }

    fn about(&self) -> About {
        About {
            request: self.request,
            ring: self.ring,
            fd: self.fd.is_some(),
        }
    }
}

/// What has to be known of a request that was sent.
#[derive(Debug, Clone, Copy)]
struct About {
    request: Request,
    ring: Option<u8>,
    fd: bool,
}

impl About {
    fn name(&self, error: Error) -> Error {
        op::name(error, self.request, self.ring.map(u32::from))
    }
}

/// Requests that were sent and whose outcome has not been taken, in their order.
#[derive(Debug)]
struct Window {
    under_way: [Option<(Pending, About)>; WINDOW],
    first: usize,
    number: usize,
    /// How many of them carry descriptors.
    fds: usize,
}

impl Window {
    const EMPTY: Self = Self {
        under_way: [const { None }; WINDOW],
        first: 0,
        number: 0,
        fds: 0,
    };

    fn place(&mut self, from_first: usize) -> Option<&mut Option<(Pending, About)>> {
        let at = self.first.wrapping_add(from_first) & WINDOW.wrapping_sub(1);
        self.under_way.get_mut(at)
    }

    fn push(&mut self, pending: Pending, about: About) {
        let number = self.number;
        if let Some(place) = self.place(number) {
            *place = Some((pending, about));
        }
        self.number = number.saturating_add(1);
        self.fds = self.fds.saturating_add(usize::from(about.fd));
    }

    fn pop(&mut self) -> Option<(Pending, About)> {
        let first = self.place(0)?.take()?;
        self.first = self.first.wrapping_add(1);
        self.number = self.number.saturating_sub(1);
        self.fds = self.fds.saturating_sub(usize::from(first.1.fd));
        Some(first)
    }

    /// Whether it is worth a system call to send more: as few as possible shall
    /// send as many as possible, and the back-end shall never run dry.
    fn half_empty(&self) -> bool {
        self.number.saturating_mul(2) <= WINDOW && self.fds.saturating_mul(2) <= FD_WINDOW
    }
}

/// The descriptor that goes with a request, and what may be in a list at all: a
/// request that is answered, or changes what others may do, may not.
fn listed<'a>(op: &Op<'a>) -> Result<Option<BorrowedFd<'a>>> {
    match op {
        Op::SetVringNum(_)
        | Op::SetVringAddr(_)
        | Op::SetVringBase(_)
        | Op::SetVringEndian(_)
        | Op::SetVringEnable(..)
        | Op::VringKick(_)
        | Op::SetStatus(1..)
        | Op::NetSetMtu(_)
        | Op::SendRarp(_) => Ok(None),
        Op::SetVringKick(_, fd) | Op::SetVringCall(_, fd) | Op::SetVringErr(_, fd) => Ok(*fd),
        Op::SetLogFd(fd) | Op::SetInflightFd(_, fd) => Ok(Some(*fd)),
        Op::SetStatus(0) => {
            let text = "a status of 0, which resets the device, cannot be in a list";
            Err(Error::invalid(text).of(op.request()))
        }
        _ => {
            let text = "this request cannot be in a list";
            Err(Error::invalid(text).of(op.request()))
        }
    }
}

impl BackendClient {
    /// Sends requests without waiting for one before the next: at most 64 are
    /// unanswered, of which at most 16 carry descriptors. Where REPLY_ACK was agreed
    /// each is acknowledged; otherwise one barrier at the end shows that all were
    /// processed, and what a back-end refused cannot be told.
    ///
    /// Everything is checked before the first byte is sent. A refusal ends the
    /// sending, and the connection stays of use; those that were under way are
    /// processed all the same.
    ///
    /// `timeout` is for the list as a whole. [`Timeout::Default`]: each answer may
    /// take what its request may take, from the answer before it.
    ///
    /// Allowed are requests about rings that have no answer of their own, and
    /// SET_INFLIGHT_FD, SET_STATUS (not 0), SET_LOG_FD, NET_SET_MTU and SEND_RARP.
    pub fn submit(&self, list: &[Op<'_>], timeout: Timeout) -> Submitted {
        let op = |index: usize| list.get(index).copied().ok_or_else(changed);
        let list = List {
            number: list.len(),
            op: &op,
        };
        self.submit_list(list, timeout)
    }

    /// The same for requests that are made when they are needed.
    pub(crate) fn submit_list(&self, list: List<'_, '_>, timeout: Timeout) -> Submitted {
        let mut submitted = Submitted::default();
        for index in 0..list.number {
            let checked = (list.op)(index).and_then(|op| self.check_listed(&op));
            if let Err(error) = checked {
                submitted.fail(Some(index), error);
                return submitted;
            }
        }
        if list.number == 0 {
            // Nothing to send; the connection may have ended all the same.
            if let Err(error) = self.connection.begin_all(&[], |_| ()) {
                submitted.fail(None, error);
            }
            return submitted;
        }
        let whole = match timeout {
            Timeout::Default => None,
            given => Some(Deadline::after(given.or(None))),
        };
        let acked = self.pipeline(list, whole, &mut submitted);
        if !acked && submitted.failure.is_none() {
            match self.see_processed(whole) {
                Ok(()) => submitted.applied = submitted.sent,
                Err(error) => submitted.fail(None, error.during(Phase::Barrier)),
            }
        }
        submitted
    }

    /// Everything that can be known before anything is sent.
    fn check_listed(&self, op: &Op<'_>) -> Result<()> {
        let encoded = self.encode_listed(op)?;
        match encoded.fd {
            Some(fd) if !socket::is_open(fd) => Err(Error::bad_fd("fd is not open")),
            _ => op.check_notifier(),
        }
        .map_err(|error| encoded.about().name(error))
    }

    fn encode_listed<'a>(&self, op: &Op<'a>) -> Result<Encoded<'a>> {
        let fd = listed(op)?;
        self.encode(op, |call| {
            self.check(call).map_err(|error| call.name(error))?;
            let mut encoded = Encoded {
                request: call.request,
                ring: call.ring,
                acked: self.acked(call),
                size: call.body.len(),
                fd,
                ..Encoded::EMPTY
            };
            let body = encoded.body.iter_mut().zip(call.body);
            body.for_each(|(to, from)| *to = *from);
            Ok(encoded)
        })
    }

    /// Sends, and takes what was answered. Whether the requests were acknowledged.
    fn pipeline(
        &self,
        list: List<'_, '_>,
        whole: Option<Deadline>,
        submitted: &mut Submitted,
    ) -> bool {
        let mut window = Window::EMPTY;
        let mut acked = true;
        let mut taken = 0_usize;
        loop {
            if submitted.failure.is_none() && window.half_empty() {
                let before = window.number;
                let rest = submitted.sent..list.number;
                let result = self.begin_some(list, rest, &mut window, &mut acked);
                let begun = window.number.saturating_sub(before);
                submitted.sent = submitted.sent.saturating_add(begun);
                if let Err(error) = result {
                    submitted.fail(Some(submitted.sent), error);
                }
            }
            let Some((pending, about)) = window.pop() else {
                return acked;
            };
            let index = taken;
            taken = taken.saturating_add(1);
            let deadline = || match whole {
                Some(whole) => whole.anew(),
                None => Deadline::after(self.timeouts.of(about.request.info().wait)),
            };
            let outcome =
                self.connection
                    .finish_begun(&pending, deadline, |outcome| match outcome {
                        Outcome::Sent => Ok(false),
                        Outcome::Ack(reply) | Outcome::Reply(reply) => {
                            op::acknowledged(&reply).map(|()| true)
                        }
                    });
            match outcome {
                Ok(processed) => {
                    submitted.applied = submitted.applied.saturating_add(usize::from(processed));
                }
                Err(error) => {
                    let error = about.name(error);
                    // The others are answered as well.
                    let refused = matches!(error.kind, Kind::Nack);
                    if refused {
                        submitted.refused = submitted.refused.saturating_add(1);
                    } else {
                        let under_way = window.under_way.iter().flatten();
                        let under_way = under_way.map(|(pending, _)| pending);
                        let out = self.connection.let_go(under_way, &error);
                        // What only waited for room did not go out.
                        submitted.sent = match error.phase {
                            Phase::Send => index,
                            _ => taken.saturating_add(out),
                        };
                    }
                    submitted.fail(Some(index), error);
                    if !refused {
                        return acked;
                    }
                }
            }
        }
    }

    /// Sends as much of this part of the list as the window takes.
    fn begin_some(
        &self,
        list: List<'_, '_>,
        part: Range<usize>,
        window: &mut Window,
        acked: &mut bool,
    ) -> Result<()> {
        let mut encoded = [Encoded::EMPTY; WINDOW];
        let mut number = 0_usize;
        let mut unfit = Ok(());
        let room = WINDOW.saturating_sub(window.number);
        let mut fds = window.fds;
        for (place, index) in encoded.iter_mut().zip(part).take(room) {
            // Once more: another thread may have changed what was agreed.
            match (list.op)(index).and_then(|op| self.encode_listed(&op)) {
                Ok(one) => *place = one,
                Err(error) => {
                    unfit = Err(error);
                    break;
                }
            }
            fds = fds.saturating_add(usize::from(place.fd.is_some()));
            if fds > FD_WINDOW {
                break;
            }
            *acked &= place.acked;
            number = number.saturating_add(1);
        }
        let nothing = Encoded::EMPTY;
        let mut outgoing = [nothing.outgoing(); WINDOW];
        for (place, encoded) in outgoing.iter_mut().zip(&encoded).take(number) {
            *place = encoded.outgoing();
        }
        let outgoing = outgoing.get(..number).unwrap_or_default();
        if outgoing.is_empty() {
            return unfit;
        }
        let mut begun = encoded.iter();
        let sent = self.connection.begin_all(outgoing, |pending| {
            if let Some(encoded) = begun.next() {
                window.push(pending, encoded.about());
            }
        });
        match (sent, begun.next()) {
            (Err(error), Some(encoded)) => Err(encoded.about().name(error)),
            (sent, _) => sent.and(unfit),
        }
    }

    /// Waits until the back-end has processed all that it was sent.
    fn see_processed(&self, whole: Option<Deadline>) -> Result<()> {
        let timeout = match whole.map(Deadline::remaining) {
            None => Timeout::Default,
            Some(None) => Timeout::Never,
            Some(Some(left)) => Timeout::After(left),
        };
        let call = Call {
            timeout,
            ..Call::new(Request::GetFeatures, NOTHING)
        };
        self.connection.count_barrier();
        self.ask(&call, |_| Ok(()))
    }
}
