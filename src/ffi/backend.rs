//! The back-end's own channel: what it asks, and the caller's functions that
//! answer.

use super::args::Args;
use super::handle::{self, About};
use super::types::*;
use crate::backend_client::{BackendHandler, HostNotifier, Uuid, no_channel};
use crate::error::{Error, Result};
use crate::message::{BackendRequest, Iotlb, Request, ShmemArea};
use crate::socket;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::raw::{c_int, c_void};
use std::sync::Arc;

/// The caller's functions, and what they get with every call.
pub(super) struct Handlers {
    ops: vuf_backend_ops,
    user: *mut c_void,
}

// SAFETY: vuf_client_open_backend_channel() tells the caller that the functions
// are called from any thread; `user` is only passed on to them.
unsafe impl Send for Handlers {}
// SAFETY: as above.
unsafe impl Sync for Handlers {}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}

/// Calls one of the caller's functions, which [`Handlers::handles`] has seen to
/// be there.
macro_rules! call {
    ($this:ident.$name:ident($($argument:expr),*) or $missing:expr) => {
        match $this.ops.$name {
            // SAFETY: promised when the channel was opened.
            Some(function) => unsafe { function($this.user, $($argument),*) },
            None => $missing,
        }
    };
}

const MISSING: c_int = -libc::EOPNOTSUPP;

fn public(area: &ShmemArea) -> vuf_shmem_area {
    vuf_shmem_area {
        shmid: u32::from(area.shmid),
        reserved: 0,
        fd_offset: area.fd_offset,
        shm_offset: area.shm_offset,
        len: area.len,
        flags: area.flags,
    }
}

impl BackendHandler for Handlers {
    fn handles(&self, request: BackendRequest) -> bool {
        let ops = &self.ops;
        match request {
            BackendRequest::Iotlb => ops.iotlb_miss.is_some() || ops.iotlb_access_fail.is_some(),
            BackendRequest::ConfigChange => ops.config_changed.is_some(),
            BackendRequest::HostNotifier => ops.host_notifier.is_some(),
            BackendRequest::VringCall => ops.vring_call.is_some(),
            BackendRequest::VringErr => ops.vring_err.is_some(),
            BackendRequest::SharedObjectAdd => ops.shared_object_added.is_some(),
            BackendRequest::SharedObjectRemove => ops.shared_object_removed.is_some(),
            BackendRequest::SharedObjectLookup => ops.shared_object_lookup.is_some(),
            BackendRequest::ShmemMap | BackendRequest::ShmemUnmap => {
                ops.shmem_map.is_some() && ops.shmem_unmap.is_some()
            }
        }
    }

    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        call!(self.iotlb_miss(iova, u32::from(perm)) or MISSING)
    }

    fn iotlb_access_fail(&self, message: &Iotlb) -> i32 {
        let perm = u32::from(message.perm);
        call!(self.iotlb_access_fail(message.iova, message.size, perm) or MISSING)
    }

    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        let (fd, offset, size) = match notifier {
            Some(HostNotifier { fd, offset, size }) => (fd.into_raw_fd(), offset, size),
            None => (-1, 0, 0),
        };
        call!(self.host_notifier(u32::from(ring), fd, offset, size) or MISSING)
    }

    fn shared_object_lookup(&self, uuid: &Uuid) -> std::result::Result<OwnedFd, i32> {
        let mut fd = -1;
        match call!(self.shared_object_lookup(uuid.as_ptr(), &raw mut fd) or MISSING) {
            0 if fd < 0 => Err(-libc::ENOENT),
            0 => {
                // SAFETY: not -1; whether it is open is what is asked.
                let found = unsafe { BorrowedFd::borrow_raw(fd) };
                if !socket::is_open(found) {
                    return Err(-libc::EBADF);
                }
                // SAFETY: open, and the caller has handed it over.
                Ok(unsafe { OwnedFd::from_raw_fd(fd) })
            }
            code => Err(code),
        }
    }

    fn shmem_map(&self, area: &ShmemArea, fd: OwnedFd) -> i32 {
        let area = public(area);
        call!(self.shmem_map(&raw const area, fd.into_raw_fd()) or MISSING)
    }

    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        let area = public(area);
        call!(self.shmem_unmap(&raw const area) or MISSING)
    }

    fn config_changed(&self) {
        call!(self.config_changed() or ());
    }

    fn vring_call(&self, ring: u8) {
        call!(self.vring_call(u32::from(ring)) or ());
    }

    fn vring_err(&self, ring: u8) {
        call!(self.vring_err(u32::from(ring)) or ());
    }

    fn shared_object_added(&self, uuid: &Uuid) {
        call!(self.shared_object_added(uuid.as_ptr()) or ());
    }

    fn shared_object_removed(&self, uuid: &Uuid) {
        call!(self.shared_object_removed(uuid.as_ptr()) or ());
    }
}

pub(super) fn handlers(
    c: &Args,
    ops: *const vuf_backend_ops,
    user: *mut c_void,
) -> Result<Handlers> {
    // SAFETY: any bytes that the caller put there are what it wants called.
    let ops: vuf_backend_ops = unsafe { c.extensible_pointers(ops, "ops") }?;
    if ops.shmem_map.is_some() != ops.shmem_unmap.is_some() {
        return Err(Error::invalid(
            "ops has one of shmem_map and shmem_unmap without the other",
        ));
    }
    Ok(Handlers { ops, user })
}

/// Gives the back-end a channel on which it can ask (SET_BACKEND_REQ_FD), and
/// serves it: the library makes a socket pair, sends one end, and reads and
/// answers on the other.
///
/// Needs VUF_PROTOCOL_F_BACKEND_REQ, and is for once on a connection. Where
/// VUF_PROTOCOL_F_SHMEM was acknowledged, vuf_client_get_shmem_config() comes
/// before: a mapping is refused whose region is not known.
///
/// From here on every call on this client that waits for the back-end serves the
/// channel meanwhile, so that a back-end which asks before it answers is not
/// left waiting. For the rest of the time poll vuf_client_backend_fd() and call
/// vuf_client_process_backend_requests().
///
/// ops   the functions to call; read during the call. See struct vuf_backend_ops.
/// user  passed to each of them
///
/// Returns 0, otherwise
///   -EINVAL               ops is NULL, its size is too small, or shmem_map and
///                         shmem_unmap are not both there
///   -E2BIG                ops has fields that this version does not know
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_STATE           there is a channel already
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `ops` is null or points
/// to `ops->size` bytes; its functions may be called with `user`, from any
/// thread, until the client is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_open_backend_channel(
    client: *mut vuf_client,
    ops: *const vuf_backend_ops,
    user: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetBackendReqFd, |client, c| {
            client.open_backend_channel(Arc::new(handlers(c, ops, user)?))
        })
    }
}

/// Tells the file descriptor that is readable while
/// vuf_client_process_backend_requests() has something to do; for polling only
/// (level-triggered). It also becomes ready when another thread's call has
/// taken in what the back-end asked, and when the channel has ended.
///
/// Takes no lock; may be called from any thread.
///
/// Returns the descriptor (borrowed, valid until the client is freed), or
/// -EINVAL if client is NULL, VUF_E_STATE before
/// vuf_client_open_backend_channel().
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_backend_fd(client: *const vuf_client) -> c_int {
    let mut found = -1;
    // SAFETY: the caller's promise.
    let rc = unsafe {
        handle::with_client(client, About::default(), |client, _| {
            let fd = client.backend_notifier();
            found = fd.ok_or_else(no_channel)?.as_raw_fd();
            Ok(())
        })
    };
    if rc == 0 { found } else { rc }
}

/// Serves what the back-end has asked on its channel, without waiting, and calls
/// the functions that only this call runs. It does a bounded part of the work
/// (at most 64 requests and 64 functions); the descriptor stays readable while
/// there is more.
///
/// Returns 0 also when there was nothing to do. Once the channel has ended and
/// nothing is left, it returns why, each time: take the descriptor out of your
/// loop then.
///   -EINVAL              client is NULL
///   -ECANCELED           vuf_client_abort() was called
///   VUF_E_DISCONNECTED   the back-end closed the channel or the connection
///   VUF_E_PROTOCOL       it broke the protocol on the channel, which is closed;
///                        the connection goes on
///   VUF_E_POISONED       an earlier failure of the connection
///   VUF_E_STATE          there is no channel, or one of the functions in ops
///                        called this
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_process_backend_requests(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, About::default(), |client, _| {
            client.process_backend_requests()
        })
    }
}
