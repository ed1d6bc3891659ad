//! What belongs to the device as a whole: configuration space, status, in-flight
//! I/O, state, shared memory and objects, and the back-end's own channel.

use super::args::{self, Args};
use super::handle;
use super::types::*;
use crate::backend_client::Direction;
use crate::error::{Error, Result};
use crate::message::{Inflight, MAX_CONFIG_SIZE, Request, UUID_SIZE};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::raw::{c_int, c_void};

/// Checked before anything is done with that many bytes.
fn too_long(len: usize) -> Error {
    Error::invalid(format!("len is {len}, not 1 to {MAX_CONFIG_SIZE}"))
}

/// Reads the device's configuration space (GET_CONFIG).
///
/// Needs VUF_PROTOCOL_F_CONFIG. Ask for the exact size of the device's space, or
/// less: back-ends refuse more, and some return bytes from beyond it.
///
/// offset  where to begin, in bytes; use 0 for portability, because
///         libvhost-user and DPDK ignore it. offset + len is at most 4096.
/// flags   0; up to 3 is passed on
/// buf     gets len bytes; on failure its content is unchanged
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0, otherwise
///   -EINVAL               buf is NULL, or a number is out of range
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
///   VUF_E_PROTOCOL        the answer has another number of bytes
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `buf` is null or points
/// to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_config(
    client: *mut vuf_client,
    offset: u32,
    flags: u32,
    buf: *mut c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::GetConfig, |client, c| {
            let mut bytes = [0_u8; MAX_CONFIG_SIZE];
            let bytes = bytes.get_mut(..len).ok_or_else(|| too_long(len))?;
            let buf = c.buffer(buf.cast::<u8>(), len, "buf")?;
            client.get_config(offset, flags, bytes)?;
            for (place, byte) in buf.iter_mut().zip(bytes) {
                place.write(*byte);
            }
            Ok(())
        })
    }
}

/// Writes to the device's configuration space (SET_CONFIG).
///
/// Needs VUF_PROTOCOL_F_CONFIG.
///
/// offset  where to begin, in bytes; offset + len is at most 4096
/// flags   0 for a write by the guest, 1 for one that restores state after a
///         migration (rust-vmm back-ends: 1 and 2)
/// buf     the bytes; read during the call
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0, otherwise
///   -EINVAL               buf is NULL, or a number is out of range
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `buf` is null or points
/// to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_config(
    client: *mut vuf_client,
    offset: u32,
    flags: u32,
    buf: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetConfig, |client, c| {
            if len > MAX_CONFIG_SIZE {
                return Err(too_long(len));
            }
            client.set_config(offset, flags, c.array(buf.cast::<u8>(), len, "buf")?)
        })
    }
}

/// Hands the back-end its end of a channel for requests of its own
/// (SET_BACKEND_REQ_FD).
///
/// Needs VUF_PROTOCOL_F_BACKEND_REQ. The channel is one end of a Unix stream
/// socket pair. Close your copy of fd afterwards, and serve the other end from
/// another thread: a back-end may ask there before it answers here.
///
/// fd  borrowed: the back-end gets a duplicate
///
/// Returns 0, otherwise
///   -EBADF                fd is negative or not open
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_backend_req_fd(
    client: *mut vuf_client,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetBackendReqFd, |client, c| {
            client.set_backend_req_fd(c.fd(fd, "fd")?)
        })
    }
}

/// A descriptor output is -1 after any failure, also of the client argument.
///
/// # Safety
/// `out` is null or points to room for an int.
pub(super) unsafe fn no_fd_yet(out: *mut c_int) {
    // SAFETY: passed on from the caller. What is wrong with it is said later.
    let _ = unsafe { Args::new() }.fd_output(out, "out").map(drop);
}

/// Writes a descriptor that may be there.
pub(super) fn give(out: &mut c_int, fd: Option<OwnedFd>) {
    *out = fd.map_or(-1, OwnedFd::into_raw_fd);
}

/// Has the back-end make a buffer to track requests in flight in
/// (GET_INFLIGHT_FD).
///
/// Needs VUF_PROTOCOL_F_INFLIGHT_SHMFD. After vuf_client_set_features(), which
/// decides the layout of the buffer, and before any ring is started. Keep the
/// buffer over the back-end's lives, and hand it to each with
/// vuf_client_set_inflight_fd().
///
/// num_queues  number of rings, not 0
/// queue_size  size of the largest ring in descriptors, not 0
/// inflight    gets the description; its mmap_size is 0 where the back-end wants
///             no buffer
/// fd          gets the buffer's file: given (yours to close, close-on-exec);
///             -1 on failure, or where there is no buffer
///
/// Returns 0, otherwise
///   -EINVAL               an argument is NULL or 0
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_PROTOCOL        the description and the descriptor do not match, or the
///                         file cannot be mapped as described: it is too short, not
///                         open for reading and writing, or a directory, pipe or
///                         socket
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `inflight` and `fd` are
/// null or point to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_inflight_fd(
    client: *mut vuf_client,
    num_queues: u16,
    queue_size: u16,
    inflight: *mut vuf_inflight,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { no_fd_yet(fd) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::GetInflightFd, |client, c| {
            let fd = c.fd_output(fd, "fd")?;
            let inflight = c.output(inflight, "inflight")?;
            let (answer, file) = client.get_inflight_fd(num_queues, queue_size)?;
            inflight.write(vuf_inflight {
                mmap_size: answer.mmap_size,
                mmap_offset: answer.mmap_offset,
                num_queues: answer.num_queues,
                queue_size: answer.queue_size,
                reserved: 0,
            });
            give(fd, file);
            Ok(())
        })
    }
}

/// A buffer for requests in flight, from C.
pub(super) fn inflight(c: &Args, inflight: *const vuf_inflight) -> Result<Inflight> {
    let inflight = c.input(inflight, "inflight")?;
    args::zero(&[u64::from(inflight.reserved)], "inflight")?;
    Ok(Inflight {
        mmap_size: inflight.mmap_size,
        mmap_offset: inflight.mmap_offset,
        num_queues: inflight.num_queues,
        queue_size: inflight.queue_size,
        padding: 0,
    })
}

/// Hands the back-end the buffer to track requests in flight in
/// (SET_INFLIGHT_FD).
///
/// Needs VUF_PROTOCOL_F_INFLIGHT_SHMFD. After vuf_client_set_vring_num() of the
/// rings (older DPDK and SPDK crash otherwise) and before the first
/// vuf_client_set_vring_kick().
///
/// inflight  as vuf_client_get_inflight_fd() described it; read during the call
/// fd        the buffer's file; borrowed: the back-end gets a duplicate
///
/// Returns 0, otherwise
///   -EINVAL               inflight is NULL or not valid
///   -EBADF                fd is negative or not open
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `inflight` is null or
/// points to a struct; `fd` stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_inflight_fd(
    client: *mut vuf_client,
    inflight: *const vuf_inflight,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetInflightFd, |client, c| {
            client.set_inflight_fd(&self::inflight(c, inflight)?, c.fd(fd, "fd")?)
        })
    }
}

/// Begins to save or load the internal state of a device
/// (SET_DEVICE_STATE_FD).
///
/// Needs VUF_PROTOCOL_F_DEVICE_STATE. While all rings are stopped. To save: pass
/// the write end of a pipe, close your copy, read the other end to its end. To
/// load: pass the read end, close your copy, write all to the other end and
/// close it. In both cases vuf_client_check_device_state() then tells whether it
/// worked.
///
/// direction  VUF_TRANSFER_DIRECTION_SAVE or VUF_TRANSFER_DIRECTION_LOAD
/// phase      VUF_TRANSFER_PHASE_STOPPED
/// fd         the back-end's end of the channel; borrowed: it gets a duplicate
/// reply_fd   gets a channel that the back-end wants to use instead: given
///            (yours to close, close-on-exec), and your own is then unused;
///            -1 on failure, and where yours is used
///
/// Returns 0, otherwise
///   -EINVAL               direction or phase is unknown, or reply_fd is NULL
///   -EBADF                fd is negative or not open
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
///   VUF_E_PROTOCOL        the answer and the descriptor do not match
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `reply_fd` is null or
/// points to room; `fd` stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_device_state_fd(
    client: *mut vuf_client,
    direction: u32,
    phase: u32,
    fd: c_int,
    reply_fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { no_fd_yet(reply_fd) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetDeviceStateFd, |client, c| {
            let reply_fd = c.fd_output(reply_fd, "reply_fd")?;
            let direction = match direction {
                VUF_TRANSFER_DIRECTION_SAVE => Direction::Save,
                VUF_TRANSFER_DIRECTION_LOAD => Direction::Load,
                _ => return Err(Error::invalid(format!("direction is {direction}"))),
            };
            if phase != VUF_TRANSFER_PHASE_STOPPED {
                return Err(Error::invalid(format!("phase is {phase}")));
            }
            let channel = client.set_device_state_fd(direction, c.fd(fd, "fd")?)?;
            give(reply_fd, channel);
            Ok(())
        })
    }
}

/// Asks whether the state of a device went over whole (CHECK_DEVICE_STATE).
///
/// Needs VUF_PROTOCOL_F_DEVICE_STATE. After the end of the channel was read
/// (save), or after it was closed (load).
///
/// Returns 0, otherwise
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            it did not; the state must not be used
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_check_device_state(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::CheckDeviceState, |client, _| {
            client.check_device_state()
        })
    }
}

/// Asks for the file of an object that the back-end shares (GET_SHARED_OBJECT).
///
/// Needs VUF_PROTOCOL_F_SHARED_OBJECT. The back-end has announced the object on
/// its channel.
///
/// uuid  the object's 16 bytes, as they were announced; read during the call
/// fd    gets the file: given (yours to close, close-on-exec); -1 on failure
///
/// Returns 0, otherwise
///   -EINVAL               uuid or fd is NULL
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end has no such object
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `uuid` is null or points
/// to 16 bytes; `fd` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_shared_object(
    client: *mut vuf_client,
    uuid: *const u8,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { no_fd_yet(fd) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::GetSharedObject, |client, c| {
            let fd = c.fd_output(fd, "fd")?;
            let uuid = c.input(uuid.cast::<[u8; UUID_SIZE]>(), "uuid")?;
            give(fd, Some(client.get_shared_object(uuid)?));
            Ok(())
        })
    }
}

/// Resets the device (RESET_DEVICE).
///
/// Needs VUF_PROTOCOL_F_RESET_DEVICE. Stop every ring with
/// vuf_client_get_vring_base() first: not all back-ends do. Afterwards rings are
/// disabled, and the virtio features count as not acknowledged: the way back
/// begins with vuf_client_set_features(). Protocol features, owner and memory
/// stay; an in-flight buffer has to be made anew, and the device's shared memory
/// unmapped.
///
/// Returns 0 once the back-end has done so, otherwise
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_reset_device(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::ResetDevice, |client, _| {
            client.reset_device()
        })
    }
}

/// Tells the back-end the device status (SET_STATUS).
///
/// Needs VUF_PROTOCOL_F_STATUS, and with it back-ends wait for it: DPDK starts
/// no ring before DRIVER_OK. 0 resets the device: what it had mapped of its shared
/// memory is unmapped. The virtio features count as acknowledged still, as back-ends
/// differ in whether they forget them.
///
/// status  VIRTIO_CONFIG_S_* of the driver, 8 bits
///
/// Returns 0 once the back-end has taken it over, otherwise
///   -EINVAL               status is above 255
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_status(client: *mut vuf_client, status: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetStatus, |client, _| {
            client.set_status(status)
        })
    }
}

/// Asks the back-end for the device status (GET_STATUS).
///
/// Needs VUF_PROTOCOL_F_STATUS. The back-end may have cleared FEATURES_OK, or
/// set NEEDS_RESET.
///
/// status  gets the 8 bits
///
/// Returns 0, otherwise
///   -EINVAL               status is NULL
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_PROTOCOL        the answer is above 255
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `status` is null or
/// points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_status(client: *mut vuf_client, status: *mut u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::GetStatus, |client, c| {
            let status = c.output(status, "status")?;
            status.write(client.get_status()?);
            Ok(())
        })
    }
}

/// Asks which shared memory regions the device has (GET_SHMEM_CONFIG).
///
/// Needs VUF_PROTOCOL_F_SHMEM. They do not change while the connection lives.
///
/// config  set config->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL               config is NULL, or its size is too small
///   -E2BIG                its size is above 65536
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_PROTOCOL        the answer names more regions than there can be
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `config` is null or
/// points to `config->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_shmem_config(
    client: *mut vuf_client,
    config: *mut vuf_shmem_config,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::GetShmemConfig, |client, c| {
            let size = c.result_size(config, "config")?;
            let answer = client.get_shmem_config()?;
            let result = vuf_shmem_config {
                size,
                nregions: answer.nregions,
                reserved: 0,
                memory_sizes: answer.memory_sizes,
            };
            c.fill(config, size, &result)
        })
    }
}
