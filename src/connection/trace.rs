//! What goes over the sockets of a connection, a line each, on its way to
//! whoever wants to see it; and what there is to count.
//!
//! Records are made under the lock of the connection and told without it, so
//! they wait in a [`Trace`] meanwhile.

use crate::message::{Flow, Header, Line, Name, Payload, Request, Socket};
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::fmt::{Debug, Formatter};
use std::sync::Arc;
use std::time::Duration;

/// How many records may wait. One thread tells them at a time; others, who send
/// meanwhile, do not wait for it.
pub(super) const MAX_RECORDS: usize = 256;

/// One message that went over a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRecord {
    text: CString,
    name: Option<Name>,
    /// Which socket it went over.
    pub socket: Socket,
    /// Where to.
    pub flow: Flow,
    /// The number of the request.
    pub request: u32,
    /// The flags of its header.
    pub flags: u32,
    /// Bytes of payload, as its header says.
    pub size: u32,
    /// File descriptors that went with it.
    pub fds: usize,
    /// Records between the one before and this one that were lost, because
    /// nobody had time to tell them.
    pub dropped: u64,
}

impl TraceRecord {
    /// The message in words: `> NAME need-reply field=value ...`, `<` for what
    /// was received, and `channel` before it for the back-end's own channel.
    pub fn text(&self) -> &str {
        self.text.to_str().unwrap_or_default()
    }

    /// The name of the request, as it is in the text; `None` if it is not known.
    pub fn name(&self) -> Option<Name> {
        self.name
    }

    pub(crate) fn c_text(&self) -> &CStr {
        &self.text
    }
}

/// Who is told. See [`BackendClient::set_trace`](crate::BackendClient::set_trace).
pub type TraceSink = Arc<dyn Fn(&TraceRecord) + Send + Sync>;

/// Records that wait to be told.
pub(super) struct Trace {
    sink: TraceSink,
    waiting: VecDeque<TraceRecord>,
    /// How many did not fit since the last that did.
    dropped: u64,
}

impl Debug for Trace {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace")
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

impl Trace {
    fn new(sink: TraceSink) -> Self {
        Self {
            sink,
            waiting: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Whether it found room.
    pub(super) fn push(&mut self, line: &Line<'_>) -> bool {
        if self.waiting.len() >= MAX_RECORDS {
            self.dropped = self.dropped.saturating_add(1);
            return false;
        }
        self.waiting.push_back(TraceRecord {
            text: CString::new(line.to_string()).unwrap_or_default(),
            name: line.name(),
            socket: line.socket,
            flow: line.flow,
            request: line.header.request,
            flags: line.header.flags,
            size: line.header.size,
            fds: line.fds,
            dropped: std::mem::take(&mut self.dropped),
        });
        true
    }

    /// The oldest, and who is to be told of it.
    pub(super) fn next(&mut self) -> Option<(TraceRecord, TraceSink)> {
        let record = self.waiting.pop_front()?;
        Some((record, Arc::clone(&self.sink)))
    }
}

/// Where everything that goes over the sockets is written down.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) counters: Counters,
    pub(super) trace: Option<Trace>,
}

impl Ledger {
    /// The first bytes of a request go out, and its descriptors.
    pub(super) fn sending(
        &mut self,
        header: Header,
        payload: Payload<'_>,
        bytes: usize,
        fds: usize,
    ) {
        count(&mut self.counters.requests_sent);
        self.counters.sent(bytes, fds);
        self.note(Line {
            socket: Socket::Main,
            flow: Flow::Sent,
            header,
            payload,
            fds,
            asked: None,
        });
    }

    /// A reply has come, to the request `asked` if it is a good one.
    pub(super) fn receiving(
        &mut self,
        header: Header,
        payload: Payload<'_>,
        fds: usize,
        asked: Option<Request>,
    ) {
        self.note(Line {
            socket: Socket::Main,
            flow: Flow::Received,
            header,
            payload,
            fds,
            asked,
        });
    }

    /// The same on the channel.
    pub(super) fn on_channel(&mut self, flow: Flow, header: Header, payload: &[u8], fds: usize) {
        self.note(Line {
            socket: Socket::Channel,
            flow,
            header,
            payload: Payload(payload, &[]),
            fds,
            asked: None,
        });
    }

    /// Has somebody else told. Whoever was before, who is not told any more of
    /// what waits.
    pub(super) fn replace_trace(&mut self, sink: Option<TraceSink>) -> Option<Trace> {
        let before = std::mem::replace(&mut self.trace, sink.map(Trace::new));
        let waiting = before.as_ref().map_or(0, |trace| trace.waiting.len());
        add(&mut self.counters.trace_dropped, waiting);
        before
    }

    /// A message, if anybody wants to see it.
    fn note(&mut self, line: Line<'_>) {
        let found_room = self.trace.as_mut().is_none_or(|trace| trace.push(&line));
        if !found_room {
            count(&mut self.counters.trace_dropped);
        }
    }
}

/// What a client has done so far, on both of its sockets unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests of the front-end that were sent.
    pub requests_sent: u64,
    /// Replies to them, acknowledgements included.
    pub replies_received: u64,
    /// Bytes.
    pub bytes_sent: u64,
    /// Bytes.
    pub bytes_received: u64,
    /// File descriptors.
    pub fds_sent: u64,
    /// File descriptors, also those that were too many.
    pub fds_received: u64,
    /// Requests that were sent only to know that the one before was processed.
    pub barriers: u64,
    /// Requests of the back-end that were done.
    pub backend_requests_served: u64,
    /// Requests of the back-end that were refused, by the library or a handler.
    pub backend_requests_refused: u64,
    /// Requests that nobody waits for, and that the back-end refused.
    pub posted_refused: u64,
    /// Calls whose deadline passed.
    pub timeouts: u64,
    /// Trace records that were lost.
    pub trace_dropped: u64,
    /// Longest time that a call waited for a reply, to its deadline if none came.
    pub longest_wait: Duration,
    /// The request that it was for: not the barrier, but what was before it.
    pub longest_wait_request: Option<Request>,
}

impl Counters {
    /// More bytes and descriptors went out.
    pub(super) fn sent(&mut self, bytes: usize, fds: usize) {
        add(&mut self.bytes_sent, bytes);
        add(&mut self.fds_sent, fds);
    }

    /// More bytes and descriptors came in.
    pub(super) fn received(&mut self, bytes: usize, fds: usize) {
        add(&mut self.bytes_received, bytes);
        add(&mut self.fds_received, fds);
    }

    /// Somebody has waited so long for the reply to a request.
    pub(super) fn waited(&mut self, time: Duration, request: Request) {
        if time > self.longest_wait {
            self.longest_wait = time;
            self.longest_wait_request = Some(request);
        }
    }
}

/// One more.
pub(super) fn count(counter: &mut u64) {
    add(counter, 1);
}

fn add(counter: &mut u64, more: usize) {
    *counter = counter.saturating_add(u64::try_from(more).unwrap_or(u64::MAX));
}
