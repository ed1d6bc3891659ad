//! A device: its life, what it tells, and its connection.

pub mod config;
pub mod group;
pub mod names;
pub mod presets;
pub mod rings;
pub mod settings;
pub mod sharing;
pub mod state;
pub mod types;

use self::types::*;
use super::args::{self, Args};
use super::programs::types::vuf_backend_process;
use super::types::*;
use super::{backend, boundary, handle, trace};
use crate::backend_client::BackendHandler;
use crate::device::{
    Device, DeviceInfo, DeviceOptions, Event, EventKind, OnUnfenced, OutOfOrder, Peer, Policy,
    Quiet, Recovery,
};
use crate::error::{Error, Kind, Result};
use std::os::fd::AsRawFd;
use std::os::raw::{c_char, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

/// # Safety
/// The functions that `given` names may be called until the device is freed.
unsafe fn options(c: &Args, given: *const vuf_device_options) -> Result<DeviceOptions> {
    if given.is_null() {
        return Ok(DeviceOptions::default());
    }
    // SAFETY: any numbers will do, and pointers are the caller's promise.
    let given: vuf_device_options = unsafe { c.extensible_pointers(given, "options") }?;
    args::zero(&[u64::from(given.reserved)], "options")?;
    let handler: Option<Arc<dyn BackendHandler>> = match given.backend_ops.is_null() {
        true => None,
        false => Some(Arc::new(backend::handlers(
            c,
            given.backend_ops,
            given.user,
        )?)),
    };
    let default = DeviceOptions::default();
    Ok(DeviceOptions {
        device_id: given.device_id,
        num_rings: given.num_rings,
        max_ring_size: given.max_ring_size,
        config_size: given.config_size,
        required_features: given.required_features,
        protocol_features: match given.protocol_features {
            0 => default.protocol_features,
            some => some,
        },
        required_protocol_features: given.required_protocol_features,
        assume_features: Some(given.assume_features).filter(|features| *features != 0),
        handler,
        reconnect: policy(&given)?,
        fence: args::timeout(given.fence_ms),
        on_unfenced: match given.on_unfenced {
            VUF_ON_UNFENCED_WAIT => OnUnfenced::Wait,
            VUF_ON_UNFENCED_PROCEED => OnUnfenced::Proceed,
            VUF_ON_UNFENCED_KILL => OnUnfenced::Kill,
            _ => return Err(Error::invalid("options->on_unfenced is unknown")),
        },
        out_of_order: match given.out_of_order {
            VUF_OUT_OF_ORDER_DEFAULT => OutOfOrder::Default,
            VUF_OUT_OF_ORDER_NEEDS_RESET => OutOfOrder::NeedsReset,
            VUF_OUT_OF_ORDER_REPLAY_FROM_USED => OutOfOrder::ReplayFromUsed,
            VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE => OutOfOrder::ResumeFromAvailable,
            _ => return Err(Error::invalid("options->out_of_order is unknown")),
        },
        quick: args::timeout(given.timeout_ms),
        slow: args::timeout(given.slow_timeout_ms),
        drain: args::timeout(given.drain_timeout_ms),
        stall: args::duration(given.stall_ms, default.stall),
        clock: default.clock,
    })
}

fn policy(given: &vuf_device_options) -> Result<Policy> {
    let default = Policy::default();
    let first_delay = args::duration(given.first_delay_ms, default.first_delay);
    Ok(Policy {
        first_delay,
        max_delay: args::duration(given.max_delay_ms, default.max_delay.max(first_delay)),
        jitter_percent: match given.jitter_percent {
            0 => default.jitter_percent,
            percent => u8::try_from(percent)
                .map_err(|_| Error::invalid("options->jitter_percent is above 100"))?,
        },
        slow_delay: args::duration(given.slow_delay_ms, default.slow_delay),
    })
}

/// Makes a device, and writes its handle only if that worked.
///
/// # Safety
/// As for [`Args::new`], for all arguments and for what `make` reads; and as for
/// [`options`].
unsafe fn create(
    given: *const vuf_device_options,
    out: *mut *mut vuf_device,
    make: impl FnOnce(&Args, DeviceOptions) -> Result<Device>,
) -> i32 {
    // SAFETY: passed on from the caller.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let out = c.output(out, "out")?.write(std::ptr::null_mut());
        // SAFETY: passed on from the caller.
        let options = unsafe { options(&c, given) }?;
        *out = handle::new(Arc::new(make(&c, options)?));
        Ok(())
    })
}

/// Makes a device whose back-end listens at a path, now or later.
///
/// Nothing is sent before vuf_device_process() or vuf_device_wait() is called; they
/// connect, and connect again after each loss, forever.
///
/// path     the socket's path, not necessarily UTF-8; of any length, but its last
///          part of not much more than 80 bytes. A relative one is relative to the
///          directory that the process has now, even if it changes that later.
/// options  NULL for the defaults; read during the call
/// out      gets the device; NULL on failure
///
/// Returns 0 also where nobody listens, otherwise
///   -EINVAL        an argument is NULL or empty, or an option is not valid
///   -ENAMETOOLONG  the last part of path does not fit into a socket address
///   -E2BIG         options has fields that this library does not know
/// or another negative errno from the system, as -EMFILE.
///
/// # Safety
/// `path` is null or a NUL-terminated string; `options` is null or points to
/// `options->size` bytes, and its functions may be called, from any thread, until
/// the device is freed; `out` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_open(
    path: *const c_char,
    options: *const vuf_device_options,
    out: *mut *mut vuf_device,
) -> c_int {
    let make = |c: &Args, options| {
        let path = c.path(path, "path")?;
        Device::open(Peer::Path(path.to_owned()), options)
    };
    // SAFETY: the caller's promise.
    unsafe { create(options, out, make) }
}

/// Makes a device whose back-end connects to a path, at which it listens until it
/// is freed; the file goes with it.
///
/// While a back-end is in use others are turned away.
///
/// path     where to listen, as for vuf_device_open(). A socket there whose owner
///          is gone is replaced.
/// mode     permissions of the file, as chmod() takes them, whatever the umask:
///          at most 0777
/// options  NULL for the defaults; read during the call
/// out      gets the device; NULL on failure
///
/// Returns 0, otherwise
///   -EINVAL        an argument is NULL or empty, or mode or an option is not
///                  valid
///   -EADDRINUSE    somebody listens there
///   -EEXIST        something is there, and not a socket
///   -ENAMETOOLONG  the last part of path does not fit into a socket address
///   -E2BIG         options has fields that this library does not know
/// or another negative errno from the system, as -ENOENT for the directory.
///
/// # Safety
/// As for vuf_device_open().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_listen(
    path: *const c_char,
    mode: u32,
    options: *const vuf_device_options,
    out: *mut *mut vuf_device,
) -> c_int {
    let make = |c: &Args, options| {
        let path = c.path(path, "path")?.to_owned();
        Device::open(Peer::Listen { path, mode }, options)
    };
    // SAFETY: the caller's promise.
    unsafe { create(options, out, make) }
}

/// Makes a device whose connections somebody else makes, as in a sandbox. After
/// each loss VUF_DEVICE_EVENT_NEEDS_FD asks for another: vuf_device_set_fd().
///
/// fd       a connected Unix stream socket; taken on success. -1: one is supplied
///          later.
/// options  NULL for the defaults; read during the call
/// out      gets the device; NULL on failure
///
/// Returns 0, otherwise
///   -EINVAL    an argument is NULL, an option is not valid, or fd is a socket of
///              another kind or a listening one
///   -EBADF     fd is below -1 or not open
///   -ENOTSOCK  fd is not a socket
///   -ENOTCONN  fd is not connected
///   -E2BIG     options has fields that this library does not know
/// or another negative errno from the system, as -EMFILE.
///
/// # Safety
/// As for vuf_device_open(); `fd` is -1 or owned by the caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_open_fd(
    fd: c_int,
    options: *const vuf_device_options,
    out: *mut *mut vuf_device,
) -> c_int {
    let make = |c: &Args, options| {
        let device = Device::open(Peer::Fd, options)?;
        if fd != -1 {
            supply(&device, c, fd)?;
        }
        Ok(device)
    };
    // SAFETY: the caller's promise.
    unsafe { create(options, out, make) }
}

fn supply(device: &Device, c: &Args, fd: c_int) -> Result<()> {
    device.check_fd(c.fd(fd, "fd")?)?;
    // SAFETY: an open socket, which the caller gives away with success; it has just
    // been checked for all that can be wrong with it.
    device.set_fd(unsafe { args::take_fd(fd) }?)
}

/// Frees a device and closes its connection, without any traffic: back-ends then
/// stop by themselves, and may write guest memory until they have.
///
/// Where that matters call vuf_device_stop() before, with a time to wait. Not from a
/// function that the library calls: then nothing is freed, but calls on the
/// device return -ECANCELED from then on. Calls that other threads have under
/// way return -ECANCELED; this one waits until they have, and until calls on its
/// group have let go of it. No call on the device may begin once this one has. In a
/// forked child it closes the child's copy and leaves the parent's connection alive.
///
/// device  may be NULL, which does nothing
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_free(device: *mut vuf_device) {
    boundary::guard(|| {
        // SAFETY: the caller's promise.
        unsafe { handle::free(device) };
        Ok(())
    });
}

/// Tells the one file descriptor of a device to poll, level-triggered: readable
/// while vuf_device_process() has something to do or an event to give. It stays the
/// same over all connections.
///
/// Never read from it, write to it or close it. Takes no lock; may be called from
/// any thread.
///
/// Returns the descriptor (borrowed, valid until the device is freed), or
/// -EINVAL if device is NULL.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_fd(device: *const vuf_device) -> c_int {
    let mut fd = -1;
    // SAFETY: the caller's promise.
    let rc = unsafe {
        handle::with_device(device, |device, _| {
            fd = device.notifier().as_raw_fd();
            Ok(())
        })
    };
    if rc == 0 { fd } else { rc }
}

fn kind_number(kind: EventKind) -> u32 {
    match kind {
        EventKind::Connected => VUF_DEVICE_EVENT_CONNECTED,
        EventKind::Lost => VUF_DEVICE_EVENT_LOST,
        EventKind::Retrying => VUF_DEVICE_EVENT_RETRYING,
        EventKind::Stalled => VUF_DEVICE_EVENT_STALLED,
        EventKind::Recovered => VUF_DEVICE_EVENT_RECOVERED,
        EventKind::Applied => VUF_DEVICE_EVENT_APPLIED,
        EventKind::ConfigChanged => VUF_DEVICE_EVENT_CONFIG_CHANGED,
        EventKind::NeedsReset => VUF_DEVICE_EVENT_NEEDS_RESET,
        EventKind::Unfenced => VUF_DEVICE_EVENT_UNFENCED,
        EventKind::Fenced => VUF_DEVICE_EVENT_FENCED,
        EventKind::NeedsFd => VUF_DEVICE_EVENT_NEEDS_FD,
        EventKind::PeersRefused => VUF_DEVICE_EVENT_PEERS_REFUSED,
        EventKind::ConfigRefused => VUF_DEVICE_EVENT_CONFIG_REFUSED,
        EventKind::Refused => VUF_DEVICE_EVENT_REFUSED,
        EventKind::ChannelClosed => VUF_DEVICE_EVENT_CHANNEL_CLOSED,
        EventKind::ChannelRefused => VUF_DEVICE_EVENT_CHANNEL_REFUSED,
        EventKind::IotlbRefused => VUF_DEVICE_EVENT_IOTLB_REFUSED,
    }
}

fn recovery_number(recovery: Recovery) -> u32 {
    match recovery {
        Recovery::Idle => VUF_RECOVERY_IDLE,
        Recovery::Inflight => VUF_RECOVERY_INFLIGHT,
        Recovery::InOrder => VUF_RECOVERY_IN_ORDER,
        Recovery::ReplayFromUsed => VUF_RECOVERY_REPLAY_FROM_USED,
        Recovery::ResumeFromAvailable => VUF_RECOVERY_RESUME_FROM_AVAILABLE,
        Recovery::NeedsReset => VUF_RECOVERY_NEEDS_RESET,
    }
}

fn milliseconds(time: Duration) -> u32 {
    // Rounded up: none that is left is 0.
    u32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}

fn public_event(event: Option<&Event>) -> vuf_device_event {
    let error = event.and_then(|event| event.error.as_ref());
    let fields = error.map_or(boundary::NOTHING, boundary::fields);
    let text: [u8; VUF_DEVICE_TEXT_SIZE] = error.map_or([0; VUF_DEVICE_TEXT_SIZE], boundary::words);
    vuf_device_event {
        size: size_of::<vuf_device_event>(),
        kind: event.map_or(VUF_DEVICE_EVENT_NONE, |event| kind_number(event.kind)),
        recovery: event.map_or(VUF_RECOVERY_IDLE, |event| recovery_number(event.recovery)),
        generation: event.map(|event| event.generation).unwrap_or_default(),
        count: event.map(|event| event.count).unwrap_or_default(),
        delay_ms: event
            .and_then(|event| event.delay)
            .map(milliseconds)
            .unwrap_or_default(),
        missed: event.map(|event| event.missed).unwrap_or_default(),
        code: fields.code,
        errno_value: fields.errno_value,
        error_class: fields.error_class,
        phase: fields.phase,
        request: fields.request,
        ring: fields.ring,
        region: fields.region,
        has_value: fields.has_value,
        peer_pid: event
            .and_then(|event| event.peer)
            .map(|peer| peer.pid)
            .unwrap_or_default(),
        value: fields.value,
        text: text.map(|byte| c_char::from_ne_bytes([byte])),
    }
}

/// Performs a bounded amount of work without blocking, and returns the next event. The
/// descriptor stays readable while there is more.
///
/// The caller's functions in options->backend_ops run in here.
///
/// event  set event->size before the call; the rest is filled in, with kind
///        VUF_DEVICE_EVENT_NONE if there is no event
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL, or event->size is too small
///   -E2BIG       event->size is above 65536
///   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
///   VUF_E_STATE  called from a function that the library calls
///   VUF_E_PANIC  a bug in this library
/// What happens to a connection is an event, and no failure.
///
/// # Safety
/// `device` is null or a device that has not been freed; `event` is null or points
/// to `event->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_process(
    device: *mut vuf_device,
    event: *mut vuf_device_event,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let size = c.result_size(event, "event")?;
            let happened = device.process()?;
            c.fill(event, size, &public_event(happened.as_ref()))
        })
    }
}

/// Waits until the back-end has acknowledged all that is wanted and has answered all
/// messages of vuf_device_post_iotlb(), and drives the device meanwhile. Events stay
/// for vuf_device_process().
///
/// timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
///
/// Returns 0, otherwise
///   -EINVAL      device is NULL
///   -ETIMEDOUT   not all was done in time; it still will be. vuf_last_error() and
///                vuf_last_error_info() give the last cause: the socket cannot be
///                reached, a required feature is missing, a connection was lost, or a
///                request is unanswered, which one and for how long
///   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
///   -EBUSY       as VUF_E_NACK, of a ring that was started anew while its last run was
///                being stopped and lost with that: it has unfinished requests in the
///                in-flight buffer, which other rings use
///   VUF_E_NACK   the back-end has refused a part of what is wanted, or lacks a ring that
///                was to be started, and has confirmed the rest
///                (VUF_DEVICE_EVENT_REFUSED). Until the caller asks again: for a region
///                by a change of the memory, for a ring by vuf_device_start(), _stop() or
///                _reset(), for a call descriptor also by vuf_device_set_call(), for an
///                MTU by vuf_device_set_mtu().
///                Or: all messages of vuf_device_post_iotlb() are answered, and the
///                back-end has refused at least one (VUF_DEVICE_EVENT_IOTLB_REFUSED)
///                that no earlier call of this function has returned for. Of several
///                threads that wait at the time each gets it.
///   VUF_E_STATE  rings that ran before a loss wait for vuf_device_reset(); or
///                called from a function that the library calls
///   VUF_E_PANIC  a bug in this library
/// or another negative errno from the system, such as -EMFILE.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_wait(device: *mut vuf_device, timeout_ms: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.wait(args::timeout(timeout_ms))) }
}

/// Waits until there is a usable back-end: the handshake has gone through, and what is
/// required is offered. For programs that want an error when they start: it waits for a
/// back-end that does not listen yet, and returns at once if there is one that cannot be
/// used.
///
/// Tries to connect now, as vuf_device_reconnect() does. After a failure the device
/// keeps trying, too. Events stay for vuf_device_process().
///
/// timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
///
/// Returns 0, also if it was connected before, otherwise
///   -EINVAL               device is NULL
///   -ETIMEDOUT            there is no back-end: vuf_last_error() says why, as for
///                         vuf_device_wait(); or it took the connection and has not
///                         answered within timeout_ms of the options
///   -ECANCELED            the device is being freed, or an earlier call returned
///                         VUF_E_PANIC
///   VUF_E_NOT_NEGOTIATED  the back-end lacks a feature that is required, was assumed or
///                         is acknowledged; vuf_last_error() names it
///   VUF_E_NACK            the back-end refused a request
///   VUF_E_PROTOCOL        the back-end broke the protocol
///   VUF_E_DISCONNECTED    the back-end closed the connection during the handshake; for
///                         a process of vuf_device_set_process() the text has its exit
///                         status
///   VUF_E_STATE           called from a function that the library calls
///   VUF_E_PANIC           a bug in this library
/// or another negative errno, such as -E2BIG if the back-end cannot hold the memory.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_wait_connected(
    device: *mut vuf_device,
    timeout_ms: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, _| {
            device.wait_connected(args::timeout(timeout_ms))
        })
    }
}

fn public_info(info: &DeviceInfo) -> vuf_device_info {
    let id = |id: Option<u32>| id.and_then(|id| i32::try_from(id).ok()).unwrap_or(-1);
    vuf_device_info {
        size: size_of::<vuf_device_info>(),
        connected: u32::from(info.connected),
        settled: u32::from(info.settled),
        needs_reset: u32::from(info.needs_reset),
        unfenced: u32::from(info.unfenced),
        generation: info.generation,
        applied: info.applied.unwrap_or_default(),
        connections: info.connections,
        offered_features: info.offered_features,
        acked_features: info.acked_features,
        offered_protocol_features: info.offered_protocol_features,
        protocol_features: info.protocol_features,
        queue_num: info.queue_num.unwrap_or_default(),
        max_mem_slots: info.max_mem_slots.unwrap_or_default(),
        peer_pid: info.peer.map_or(-1, |peer| peer.pid),
        peer_uid: id(info.peer.map(|peer| peer.uid)),
        peer_gid: id(info.peer.map(|peer| peer.gid)),
        max_rings: info.max_rings.unwrap_or_default(),
        shmem_sizes: info.shmem_sizes,
    }
}

/// Returns what is known of a device and its back-end. Does not wait.
///
/// info  set info->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL  an argument is NULL, or info->size is too small
///   -E2BIG   info->size is above 65536
///
/// # Safety
/// `device` is null or a device that has not been freed; `info` is null or points
/// to `info->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_info(
    device: *const vuf_device,
    info: *mut vuf_device_info,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let size = c.result_size(info, "info")?;
            c.fill(info, size, &public_info(&device.info()))
        })
    }
}

/// Tells what the connection that there is has done so far; see
/// vuf_client_get_counters(). Does not wait.
///
/// counters  set counters->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL             an argument is NULL, or counters->size is too small
///   -E2BIG              counters->size is above 65536
///   VUF_E_DISCONNECTED  there is no connection
///
/// # Safety
/// `device` is null or a device that has not been freed; `counters` is null or
/// points to `counters->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_counters(
    device: *const vuf_device,
    counters: *mut vuf_counters,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let size = c.result_size(counters, "counters")?;
            let counted = device.counters().ok_or_else(no_back_end)?;
            c.fill(counters, size, &trace::public(&counted))
        })
    }
}

fn no_back_end() -> Error {
    Error::new(Kind::Disconnected, "there is no back-end")
}

/// Has a function called for every message, on this connection and all that
/// follow; see vuf_client_set_trace() for what it gets and may do. Of this device
/// it may call what neither waits nor processes.
///
/// callback  called with user and a record, both the library's (borrowed); NULL
///           for none. Replaces the one set before, which runs no more once this
///           has returned: another thread's call of it is waited for.
/// user      passed to it
///
/// Returns 0, otherwise
///   -EINVAL      device is NULL
///   VUF_E_STATE  called from a function that the library calls
///
/// # Safety
/// `device` is null or a device that has not been freed; `callback` may be called
/// with `user`, from any thread, until it is replaced or the device is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_trace(
    device: *mut vuf_device,
    callback: Option<unsafe extern "C" fn(user: *mut c_void, record: *const vuf_trace_record)>,
    user: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    let sink = callback.map(|callback| unsafe { trace::sink(callback, user) });
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.set_trace(sink)) }
}

/// Tries to connect now, however long the next attempt was put off. Does nothing
/// while there is a connection.
///
/// Returns 0, or -EINVAL if device is NULL.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_reconnect(device: *mut vuf_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, _| {
            device.reconnect();
            Ok(())
        })
    }
}

/// Supplies a device of vuf_device_open_fd() with a connection. Also before it asks
/// for one: it is used after the next loss. Of several the last counts.
///
/// fd  a connected Unix stream socket; taken on success
///
/// Returns 0, otherwise
///   -EINVAL      device is NULL, or fd is a socket of another kind or a listening
///                one
///   -EBADF       fd is negative or not open
///   -ENOTSOCK    fd is not a socket
///   -ENOTCONN    fd is not connected
///   VUF_E_STATE  the device connects by itself
///
/// # Safety
/// `device` is null or a device that has not been freed; `fd` is owned by the
/// caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_fd(device: *mut vuf_device, fd: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, c| supply(device, c, fd)) }
}

/// Supplies a device of vuf_device_open_fd() with the connection to a back-end that was
/// started by vuf_backend_process_start(), as vuf_device_set_fd() does, and with the
/// knowledge whom to kill (VUF_ON_UNFENCED_KILL). The process stays the caller's to
/// free; freed, it is killed, and the connection lost.
///
/// process  borrowed; the device takes its socket
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL
///   VUF_E_STATE  the device connects by itself, or the socket was taken before
///
/// # Safety
/// `device` is null or a device, and `process` null or a process, that have not been
/// freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_process(
    device: *mut vuf_device,
    process: *mut vuf_backend_process,
) -> c_int {
    // SAFETY: the caller's promise.
    let process = || unsafe { handle::shared_process(process) };
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.set_process(&process()?)) }
}

/// Fills in what is left, after a wait where one is asked for.
fn tell_quiet(
    device: &Device,
    c: &Args,
    (out, size): (*mut vuf_quiet, usize),
    timeout_ms: u32,
) -> Result<()> {
    let Quiet {
        quiesced,
        bases_valid,
    } = match timeout_ms {
        0 => device.quiet(),
        milliseconds => device.wait_quiet(args::timeout(milliseconds)),
    };
    if timeout_ms != 0 && !quiesced {
        boundary::remember(&device.explain());
    }
    let quiet = vuf_quiet {
        size: size_of::<vuf_quiet>(),
        quiesced: u32::from(quiesced),
        bases_valid: u32::from(bases_valid),
    };
    c.fill(out, size, &quiet)
}

/// Returns whether stopped rings and memory that was taken away are out of use, and
/// whether stopped rings can be resumed. Does not wait.
///
/// quiet  set quiet->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL, or quiet->size is too small
///   -E2BIG       quiet->size is above 65536
///
/// # Safety
/// `device` is null or a device that has not been freed; `quiet` is null or points
/// to `quiet->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_quiet(
    device: *const vuf_device,
    quiet: *mut vuf_quiet,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let size = c.result_size(quiet, "quiet")?;
            tell_quiet(device, c, (quiet, size), 0)
        })
    }
}
