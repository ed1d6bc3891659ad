//! What goes over the sockets, and how much.

use super::args::Args;
use super::handle::{self, About};
use super::types::*;
use crate::backend_client::BackendClient;
use crate::connection::{Counters, TraceRecord, TraceSink};
use crate::error::Result;
use crate::message::{Flow, Socket};
use std::os::raw::{c_int, c_void};
use std::sync::Arc;

type Callback = unsafe extern "C" fn(user: *mut c_void, record: *const vuf_trace_record);

/// The caller's function, and what it gets with every call.
struct Told {
    callback: Callback,
    user: *mut c_void,
}

// SAFETY: vuf_client_set_trace() tells the caller that the function is called
// from any thread; `user` is only passed on to it.
unsafe impl Send for Told {}
// SAFETY: as above.
unsafe impl Sync for Told {}

impl Told {
    fn tell(&self, record: &TraceRecord) {
        let name = record.name();
        let record = vuf_trace_record {
            size: size_of::<vuf_trace_record>(),
            text: record.c_text().as_ptr(),
            name: name.map_or(std::ptr::null(), |name| name.as_c_str().as_ptr()),
            socket: match record.socket {
                Socket::Main => VUF_TRACE_MAIN,
                Socket::Channel => VUF_TRACE_CHANNEL,
            },
            direction: match record.flow {
                Flow::Sent => VUF_TRACE_SENT,
                Flow::Received => VUF_TRACE_RECEIVED,
            },
            request: record.request,
            flags: record.flags,
            payload_size: record.size,
            fds: u32::try_from(record.fds).unwrap_or(u32::MAX),
            dropped: record.dropped,
        };
        // SAFETY: promised when it was set.
        unsafe { (self.callback)(self.user, &raw const record) }
    }
}

/// What tells the caller's function.
///
/// # Safety
/// It may be called with `user`, from any thread, while this lives.
pub(super) unsafe fn sink(callback: Callback, user: *mut c_void) -> TraceSink {
    let told = Told { callback, user };
    Arc::new(move |record| told.tell(record))
}

/// Has a function called for every message on the connection and on the back-end's
/// channel, in each direction.
///
/// Messages come in order and one at a time, but on whichever thread is inside a
/// call on this client. A request comes before its reply is waited for, so that
/// the last one shows what a back-end hangs at; a message of the back-end comes
/// before it is acted on. Nothing comes from vuf_client_abort() and
/// vuf_client_free(). With no function set, tracing costs nothing.
///
/// The function must never wait for a lock that any thread holds while it calls
/// the library with this client, and of this client it may call only
/// vuf_client_abort(), vuf_client_get_fd(), vuf_client_backend_fd() and
/// vuf_client_get_counters(); others answer VUF_E_STATE. It takes its time from
/// the deadline of the call that it runs in. When it is slower than the messages
/// that other threads cause meanwhile, and more than 256 wait, the rest is left
/// out and counted. Nothing may be thrown or jumped through the library.
///
/// callback  called with user and a record, both the library's (borrowed); NULL
///           for none. Replaces the one set before, which is not running and will
///           not be called any more once this returns.
/// user      passed to it
///
/// Returns 0, otherwise
///   -EINVAL      client is NULL
///   VUF_E_STATE  called from the callback, or from a function of struct
///                vuf_backend_ops that the back-end waits for
///
/// # Safety
/// `client` is null or a client that has not been freed; `callback` may be called
/// with `user`, from any thread, until it is replaced or the client is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_trace(
    client: *mut vuf_client,
    callback: Option<unsafe extern "C" fn(user: *mut c_void, record: *const vuf_trace_record)>,
    user: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    let sink = callback.map(|callback| unsafe { sink(callback, user) });
    // SAFETY: the caller's promise.
    unsafe { handle::with_client(client, About::default(), |client, _| client.set_trace(sink)) }
}

pub(super) fn public(counters: &Counters) -> vuf_counters {
    let request = counters.longest_wait_request;
    vuf_counters {
        size: size_of::<vuf_counters>(),
        requests_sent: counters.requests_sent,
        replies_received: counters.replies_received,
        bytes_sent: counters.bytes_sent,
        bytes_received: counters.bytes_received,
        fds_sent: counters.fds_sent,
        fds_received: counters.fds_received,
        barriers: counters.barriers,
        backend_requests_served: counters.backend_requests_served,
        backend_requests_refused: counters.backend_requests_refused,
        posted_refused: counters.posted_refused,
        timeouts: counters.timeouts,
        trace_dropped: counters.trace_dropped,
        longest_wait_ns: u64::try_from(counters.longest_wait.as_nanos()).unwrap_or(u64::MAX),
        longest_wait_request: request.map(|request| request.id()).unwrap_or_default(),
        reserved: 0,
    }
}

/// Tells what a client has done so far: messages, bytes, descriptors, refusals,
/// and the longest wait. All numbers begin at 0 and only grow, also across
/// failures; they are of one moment.
///
/// Does not wait, sends nothing, and may be called from any thread, from the
/// callback of vuf_client_set_trace(), and on a connection that has ended.
///
/// counters  set counters->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL  an argument is NULL, or the size is too small
///   -E2BIG   the size is above 65536
///
/// # Safety
/// `client` is null or a client that has not been freed; `counters` is null or
/// points to `counters->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_counters(
    client: *const vuf_client,
    counters: *mut vuf_counters,
) -> c_int {
    let fill = |client: &BackendClient, c: &Args| -> Result<()> {
        let size = c.result_size(counters, "counters")?;
        c.fill(counters, size, &public(&client.counters()))
    };
    // SAFETY: the caller's promise.
    unsafe { handle::with_client(client, About::default(), fill) }
}
