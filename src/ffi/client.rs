//! A client's life, and what is agreed at its beginning.

use super::args::{self, Args};
use super::boundary;
use super::handle::{self, About};
use super::types::*;
use crate::backend_client::{Adopted, BackendClient, Options};
use crate::connection::OnTimeout;
use crate::error::{Error, Result};
use crate::message::Request;
use crate::room::room;
use std::os::fd::AsRawFd;
use std::os::raw::{c_char, c_int};
use std::time::Duration;

fn options(c: &Args, options: *const vuf_client_options) -> Result<Options> {
    if options.is_null() {
        return Ok(Options::default());
    }
    let given = c.extensible(options, "options")?;
    if given.flags & !(VUF_CLIENT_ADOPT | VUF_CLIENT_WAIT_FOR_SOCKET) != 0 {
        return Err(Error::invalid("options->flags has unknown bits"));
    }
    let adopted = Adopted {
        features: given.adopt_features,
        protocol_features: given.adopt_protocol_features,
    };
    let adopt = (given.flags & VUF_CLIENT_ADOPT != 0).then_some(adopted);
    if adopt.is_none() {
        args::zero(
            &[adopted.features, adopted.protocol_features],
            "options (adopt_* without VUF_CLIENT_ADOPT)",
        )?;
    }
    Ok(Options {
        connect: args::timeout(given.connect_timeout_ms),
        wait_for_socket: given.flags & VUF_CLIENT_WAIT_FOR_SOCKET != 0,
        quick: args::timeout(given.timeout_ms),
        slow: args::timeout(given.slow_timeout_ms),
        drain: args::timeout(given.drain_timeout_ms),
        on_timeout: match given.on_timeout {
            VUF_ON_TIMEOUT_POISON => OnTimeout::Poison,
            VUF_ON_TIMEOUT_KEEP => OnTimeout::Keep,
            _ => return Err(Error::invalid("options->on_timeout is unknown")),
        },
        max_rings: given.max_rings,
        spin: Duration::from_micros(u64::from(given.spin_us)),
        adopt,
    })
}

/// Makes a client, and writes its handle only if that worked.
///
/// # Safety
/// As for [`Args::new`], for all arguments and for what `make` reads.
/// Most that a client takes: its buffers.
const CLIENT: usize = 32 << 10;

unsafe fn create(
    given: *const vuf_client_options,
    out: *mut *mut vuf_client,
    make: impl FnOnce(&Args, &Options) -> Result<BackendClient>,
) -> i32 {
    // SAFETY: passed on from the caller.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let out = c.output(out, "out")?.write(std::ptr::null_mut());
        let options = options(&c, given)?;
        room(CLIENT)?;
        *out = handle::new(make(&c, &options)?);
        Ok(())
    })
}

/// Makes a client from a connected socket.
///
/// fd       a connected Unix stream socket; taken on success: the client closes
///          it, and sets its close-on-exec flag and its receive timeout (which
///          another process that holds the same socket must leave alone). A number
///          below 3 is closed, and a duplicate takes its place.
/// options  NULL for the defaults; read during the call
/// out      gets the client; NULL on failure
///
/// Nothing is sent.
///
/// Returns 0, otherwise
///   -EINVAL    an argument is NULL, an option is not valid, or fd is a socket
///              of another kind or a listening one
///   -EBADF     fd is not open
///   -ENOTSOCK  fd is not a socket
///   -ENOTCONN  fd is not connected
///   -E2BIG     options has fields that this library does not know
///
/// # Safety
/// `options` is null or points to `options->size` bytes; `out` is null or points
/// to room for a pointer; `fd` is owned by the caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_from_fd(
    fd: c_int,
    options: *const vuf_client_options,
    out: *mut *mut vuf_client,
) -> c_int {
    let make = |c: &Args, options: &Options| {
        let socket = c.fd(fd, "fd")?;
        BackendClient::prepare(socket, options)?;
        // SAFETY: an open socket, which the caller gives away with success; and
        // nothing below can fail.
        let socket = unsafe { args::take_fd(fd) }?;
        Ok(BackendClient::assume(socket, options))
    };
    // SAFETY: the caller's promise.
    unsafe { create(options, out, make) }
}

/// Connects to a back-end that listens on a socket.
///
/// Bounded by options->connect_timeout_ms, also where the listener's backlog is
/// full. A connection that is made but never accepted shows in the first
/// request.
///
/// path     the socket's path: at most 107 bytes, not necessarily UTF-8
/// options  NULL for the defaults; read during the call
/// out      gets the client; NULL on failure
///
/// Returns 0, otherwise
///   -EINVAL        an argument is NULL or empty, or an option is not valid
///   -ENAMETOOLONG  path does not fit into a socket address
///   -ENOENT        there is no such socket
///   -ECONNREFUSED  nobody listens on it
///   -EACCES        access is denied
///   -ETIMEDOUT     the backlog stayed full until the deadline; or, with
///                  VUF_CLIENT_WAIT_FOR_SOCKET, nobody listened until then
///   -E2BIG         options has fields that this library does not know
/// or another negative errno from socket() or connect().
///
/// # Safety
/// `path` is null or a NUL-terminated string; `options` is null or points to
/// `options->size` bytes; `out` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_connect(
    path: *const c_char,
    options: *const vuf_client_options,
    out: *mut *mut vuf_client,
) -> c_int {
    let make = |c: &Args, options: &Options| {
        let path = c.path(path, "path")?;
        BackendClient::connect(path, options)
    };
    // SAFETY: the caller's promise.
    unsafe { create(options, out, make) }
}

/// Waits for a back-end to connect, and accepts it.
///
/// Bounded by options->connect_timeout_ms.
///
/// listen_fd  a listening Unix stream socket; borrowed. If it blocks, its receive
///            timeout is set for a moment and restored; threads and processes that
///            accept from it take turns.
/// options    NULL for the defaults; read during the call
/// out        gets the client; NULL on failure
///
/// Returns 0, otherwise
///   -EINVAL     an argument is NULL, an option is not valid, or listen_fd is
///               not a listening Unix stream socket
///   -EBADF      listen_fd is not open
///   -ENOTSOCK   listen_fd is not a socket
///   -ETIMEDOUT  nobody connected until the deadline
///   -E2BIG      options has fields that this library does not know
/// or another negative errno from accept().
///
/// # Safety
/// `options` is null or points to `options->size` bytes; `out` is null or points
/// to room for a pointer; `listen_fd` stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_accept(
    listen_fd: c_int,
    options: *const vuf_client_options,
    out: *mut *mut vuf_client,
) -> c_int {
    let make = |c: &Args, options: &Options| {
        let listener = c.fd(listen_fd, "listen_fd")?;
        BackendClient::accept(listener, options)
    };
    // SAFETY: the caller's promise.
    unsafe { create(options, out, make) }
}

/// Frees a client and closes its connection, without any traffic.
///
/// Calls that other threads have under way return -ECANCELED; this one waits
/// until they have. No call on the client may begin once this one has. In a
/// forked child it closes the child's copy and leaves the parent's connection
/// alive.
///
/// client  may be NULL, which does nothing
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_free(client: *mut vuf_client) {
    boundary::guard(|| {
        // SAFETY: the caller's promise.
        unsafe { handle::free(client) };
        Ok(())
    });
}

/// Ends the connection. Calls under way return -ECANCELED at once, as do later
/// ones, unless an argument of theirs is refused. The client stays and has to be
/// freed.
///
/// May be called from any thread, and from a signal handler.
///
/// Returns 0, or -EINVAL if client is NULL.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_abort(client: *mut vuf_client) -> c_int {
    // No guard, which uses a thread-local: nothing here can panic, and this may
    // run in a signal handler.
    // SAFETY: the caller's promise.
    match unsafe { handle::abort(client) } {
        Ok(()) => 0,
        Err(error) => boundary::guard(|| Err(error)),
    }
}

/// Tells the file descriptor of the connection, for polling only.
///
/// Readable while no call is under way means that the back-end has hung up, or
/// sent what nobody asked for. Never read from it, write to it or close it.
/// Takes no lock; may be called from any thread.
///
/// Returns the descriptor (borrowed, valid until the client is freed), or
/// -EINVAL if client is NULL.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_fd(client: *const vuf_client) -> c_int {
    let mut fd = -1;
    // SAFETY: the caller's promise.
    let rc = unsafe {
        handle::with_client(client, About::default(), |client, _| {
            fd = client.read_notifier().as_raw_fd();
            Ok(())
        })
    };
    if rc == 0 { fd } else { rc }
}

/// Asks for a number, and writes it only if that worked.
///
/// # Safety
/// `client` as for [`handle::with_client`]; `out` is null or points to room.
unsafe fn get_u64(
    client: *mut vuf_client,
    request: Request,
    out: *mut u64,
    name: &str,
    ask: impl FnOnce(&BackendClient) -> Result<u64>,
) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe {
        handle::with_client(client, request, |client, c| {
            let out = c.output(out, name)?;
            out.write(ask(client)?);
            Ok(())
        })
    }
}

/// Asks which virtio features the back-end offers (GET_FEATURES).
///
/// The first request on each connection. Bit VUF_F_PROTOCOL_FEATURES says
/// whether the back-end speaks protocol features; it belongs to the connection
/// and is not for the guest.
///
/// features  gets the mask
///
/// Returns 0 or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `features` is null or
/// points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_features(
    client: *mut vuf_client,
    features: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        get_u64(
            client,
            Request::GetFeatures,
            features,
            "features",
            BackendClient::get_features,
        )
    }
}

/// Acknowledges virtio features (SET_FEATURES).
///
/// After vuf_client_get_features(). Include VUF_F_PROTOCOL_FEATURES if it was
/// offered, or all rings become enabled at once. VUF_F_LOG_ALL may be switched
/// while rings run, the others not. libvhost-user refuses a mask without
/// VIRTIO_F_VERSION_1 by hanging up.
///
/// features  a subset of what the back-end offers
///
/// Returns 0, otherwise
///   -EINVAL      features has bits that were not offered
///   VUF_E_STATE  vuf_client_get_features() has not been called
///   VUF_E_NACK   the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_features(client: *mut vuf_client, features: u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetFeatures, |client, _| {
            client.set_features(features)
        })
    }
}

/// Asks which protocol features the back-end offers (GET_PROTOCOL_FEATURES).
///
/// Before vuf_client_set_features() is fine, and usual.
///
/// features  gets the mask: bit n is VUF_PROTOCOL_F_* n
///
/// Returns 0, otherwise
///   VUF_E_NOT_NEGOTIATED  VUF_F_PROTOCOL_FEATURES was not offered
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `features` is null or
/// points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_protocol_features(
    client: *mut vuf_client,
    features: *mut u64,
) -> c_int {
    let ask = BackendClient::get_protocol_features;
    // SAFETY: the caller's promise.
    unsafe {
        get_u64(
            client,
            Request::GetProtocolFeatures,
            features,
            "features",
            ask,
        )
    }
}

/// Acknowledges protocol features (SET_PROTOCOL_FEATURES).
///
/// After vuf_client_get_protocol_features(), and before anything that needs one
/// of them. With VUF_PROTOCOL_F_REPLY_ACK every later request is acknowledged;
/// without it those whose completion matters are followed by GET_FEATURES.
///
/// features  a subset of what the back-end offers and of
///           vuf_supported_protocol_features()
///
/// Returns 0 once it is sent, otherwise
///   -EINVAL               features has bits that were not offered, that the
///                         library does not serve, or without what they need:
///                         VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT needs
///                         _INFLIGHT_SHMFD, _GET_VRING_BASE_SKIP_DRAIN both of
///                         these, _INBAND_NOTIFICATIONS _BACKEND_REQ and
///                         _REPLY_ACK
///   VUF_E_STATE           vuf_client_get_protocol_features() was not called
///   VUF_E_NOT_NEGOTIATED  VUF_F_PROTOCOL_FEATURES was not offered
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_protocol_features(
    client: *mut vuf_client,
    features: u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetProtocolFeatures, |client, _| {
            client.set_protocol_features(features)
        })
    }
}

/// Claims the session (SET_OWNER).
///
/// Once per connection, before memory and rings.
///
/// Returns 0, otherwise
///   VUF_E_STATE  it has been sent already; rust-vmm back-ends would hang up
///   VUF_E_NACK   the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_owner(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_client(client, Request::SetOwner, |client, _| client.set_owner()) }
}

/// Gives the session up (RESET_OWNER).
///
/// Deprecated by the specification, and back-ends differ in how much they
/// forget. Afterwards the virtio features count as not acknowledged.
///
/// Returns 0, otherwise
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_reset_owner(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::ResetOwner, |client, _| {
            client.reset_owner()
        })
    }
}

/// Asks how many queues the back-end supports (GET_QUEUE_NUM).
///
/// Needs VUF_PROTOCOL_F_MQ. Most back-ends count rings, some (DPDK) pairs.
///
/// num  gets the number
///
/// Returns 0, otherwise
///   VUF_E_NOT_NEGOTIATED  VUF_PROTOCOL_F_MQ was not acknowledged
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `num` is null or points
/// to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_queue_num(client: *mut vuf_client, num: *mut u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        get_u64(
            client,
            Request::GetQueueNum,
            num,
            "num",
            BackendClient::get_queue_num,
        )
    }
}

/// Asks how many memory regions the back-end can hold (GET_MAX_MEM_SLOTS).
///
/// Needs VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS.
///
/// slots  gets the number
///
/// Returns 0, otherwise
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `slots` is null or
/// points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_max_mem_slots(
    client: *mut vuf_client,
    slots: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        get_u64(
            client,
            Request::GetMaxMemSlots,
            slots,
            "slots",
            BackendClient::get_max_mem_slots,
        )
    }
}
