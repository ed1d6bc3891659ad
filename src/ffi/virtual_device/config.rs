//! What the guest's driver chooses and sees: features, and the configuration space.

use super::super::args::{self, Args};
use super::super::handle;
use super::types::*;
use crate::device::{CONFIG_SIZE_LATER, Device};
use crate::error::{Error, Result};
use crate::message::{MAX_CONFIG_SIZE, virtio};
use std::os::raw::{c_int, c_void};

/// States the virtio features that the guest's driver has acknowledged
/// (SET_FEATURES). They come before vuf_device_start(), and while no ring is
/// started.
///
/// features  a subset of offered_features in struct vuf_device_info.
///           VUF_F_PROTOCOL_FEATURES and VUF_F_LOG_ALL are the library's, and are
///           passed over.
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL               device is NULL, or features has bits that are not offered
///   -EBUSY                a ring is started
///   VUF_E_STATE           what is offered is not known yet, and
///                         options->assume_features is 0
///   VUF_E_NOT_NEGOTIATED  features has VIRTIO_F_ACCESS_PLATFORM, and the back-end that
///                         is connected has not agreed on VUF_PROTOCOL_F_BACKEND_REQ
///                         and VUF_PROTOCOL_F_REPLY_ACK, without which translations do
///                         not work: the text says which is missing and why. While no
///                         back-end is connected the call succeeds, and a back-end
///                         without these is refused when it connects. Or: features does
///                         not have VIRTIO_F_VERSION_1, vuf_device_set_vring_endian()
///                         has set another byte order than this machine's, and
///                         VUF_PROTOCOL_F_CROSS_ENDIAN is missing, likewise.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_features(device: *mut vuf_device, features: u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.set_features(features)) }
}

/// Checked before anything is done with that many bytes.
fn length(len: usize) -> Result<()> {
    match len {
        1..=MAX_CONFIG_SIZE => Ok(()),
        _ => Err(Error::invalid(format!(
            "len is {len}, not 1 to {MAX_CONFIG_SIZE}"
        ))),
    }
}

const _: () = assert!(VUF_CONFIG_SIZE_LATER == CONFIG_SIZE_LATER);
const _: () = assert!(VUF_TRANSPORT_FEATURES == virtio::TRANSPORT);

/// Chooses how many bytes the configuration space has, where that depends on the
/// features that the back-end offers: open the device with VUF_CONFIG_SIZE_LATER, and
/// call this after VUF_DEVICE_EVENT_CONNECTED, when vuf_device_get_info() has
/// offered_features. The space is read then. The size stays for all later connections.
///
/// A size may be replaced by another until a back-end has returned its configuration
/// space. So after VUF_DEVICE_EVENT_CONFIG_REFUSED, with GET_CONFIG for its request, a
/// smaller one can be tried.
///
/// size  1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      device is NULL, or size is out of range
///   -EBUSY       GET_CONFIG with another size has not been answered yet, or writes
///                wait for the back-end
///   VUF_E_STATE  the configuration space was read with another size, or
///                options->config_size is 0
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_config_size(device: *mut vuf_device, size: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.set_config_size(size)) }
}

/// Copies bytes of the configuration space that `read` finds to the caller.
fn copy(
    c: &Args,
    (offset, len): (u32, usize),
    buffer: *mut c_void,
    generation: *mut u32,
    read: impl FnOnce(u32, &mut [u8]) -> Result<u32>,
) -> Result<()> {
    length(len)?;
    let mut bytes = [0_u8; MAX_CONFIG_SIZE];
    let bytes = bytes.get_mut(..len).unwrap_or_default();
    let place = c.buffer(buffer.cast::<u8>(), len, "buffer")?;
    let out = match generation.is_null() {
        true => None,
        false => Some(c.output(generation, "generation")?),
    };
    let number = read(offset, bytes)?;
    for (place, byte) in place.iter_mut().zip(bytes) {
        place.write(*byte);
    }
    if let Some(out) = out {
        out.write(number);
    }
    Ok(())
}

/// Reads the configuration space as the guest sees it: what the back-end returned
/// last, the guest's writes since, and the caller's own bytes on top. Never waits for
/// anything, and may be called from any thread, such as those of virtual CPUs.
///
/// offset      where to begin, in bytes; offset + len is at most the size of the
///             configuration space
/// buffer      gets len bytes; on failure its content is unchanged
/// len         1 to VUF_MAX_CONFIG_SIZE
/// generation  gets a number that changes with the content; NULL if it is not
///             wanted. Read before and after it tells whether several reads belong
///             together.
///
/// Returns 0, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
///   VUF_E_STATE  no back-end has returned these bytes yet, or the size has not been
///                set
///   VUF_E_NACK   the back-end refuses to return its configuration space
///
/// # Safety
/// `device` is null or a device that has not been freed; `buffer` is null or points
/// to room for `len` bytes; `generation` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_read_config(
    device: *const vuf_device,
    offset: u32,
    buffer: *mut c_void,
    len: usize,
    generation: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let read = |at, bytes: &mut [u8]| device.read_config(at, bytes);
            copy(c, (offset, len), buffer, generation, read)
        })
    }
}

/// Reads the configuration space as vuf_device_read_config() does, but fails while the
/// back-end has not returned it since the last vuf_device_write_config(). For devices
/// whose content depends on what was written, such as virtio-input, where the guest
/// selects what it reads. Never waits; vuf_device_wait_config() does.
///
/// offset      where to begin, in bytes; offset + len is at most the size of the
///             configuration space
/// buffer      gets len bytes; on failure its content is unchanged
/// len         1 to VUF_MAX_CONFIG_SIZE
/// generation  as for vuf_device_read_config()
///
/// Returns 0, otherwise
///   -EINVAL           device or buffer is NULL, or a number is out of range
///   -EAGAIN           the space has not been read since the last write
///   VUF_E_STATE       no back-end has returned these bytes yet, or the size has not
///                     been set
///   VUF_E_NACK        the back-end refuses to return its configuration space
///   VUF_E_NOT_NEGOTIATED  it has none any more
///
/// # Safety
/// As for vuf_device_read_config().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_read_current_config(
    device: *const vuf_device,
    offset: u32,
    buffer: *mut c_void,
    len: usize,
    generation: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let read = |at, bytes: &mut [u8]| device.read_current_config(at, bytes);
            copy(c, (offset, len), buffer, generation, read)
        })
    }
}

/// Waits until a back-end has returned its configuration space, and has done so after
/// each vuf_device_write_config() that returned before this call. Drives the device
/// meanwhile, as vuf_device_wait() does; events stay for vuf_device_process(). A thread
/// of a virtual CPU that may block calls it before it reads.
///
/// timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
///
/// Returns 0, otherwise
///   -EINVAL      device is NULL
///   -ETIMEDOUT   it was not read in time
///   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
///   VUF_E_NACK   the back-end refuses to return its configuration space
///   VUF_E_NOT_NEGOTIATED  it has none
///   VUF_E_STATE  options->config_size is 0, the size has not been set, or called from
///                a function that the library calls
///   VUF_E_PANIC  a bug in this library
/// or another negative errno from the system, such as -EMFILE.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_wait_config(device: *mut vuf_device, timeout_ms: u32) -> c_int {
    let wait = |device: &Device, _: &Args| device.wait_config(args::timeout(timeout_ms));
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, wait) }
}

/// Supplies bytes of the configuration space that the guest reads until a back-end has
/// returned its own, which win: for a guest that is started without a back-end
/// (options->assume_features). If the back-end's differ, VUF_DEVICE_EVENT_CONFIG_CHANGED
/// says so. Does nothing once a back-end has returned its configuration space.
///
/// offset  where to begin, in bytes; offset + len is at most the size of the
///         configuration space
/// buffer  the bytes; read during the call
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
///   VUF_E_STATE  the size has not been set
///
/// # Safety
/// `device` is null or a device that has not been freed; `buffer` is null or points
/// to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_assume_config(
    device: *mut vuf_device,
    offset: u32,
    buffer: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            length(len)?;
            device.assume_config(offset, c.array(buffer.cast::<u8>(), len, "buffer")?)
        })
    }
}

/// Makes bytes of the configuration space the caller's own: they win over the
/// back-end's, and what the guest writes to them stays here.
///
/// offset  where to begin, in bytes; offset + len is at most the size of the
///         configuration space
/// buffer  the bytes; read during the call
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
///   VUF_E_STATE  the size has not been set
///
/// # Safety
/// `device` is null or a device that has not been freed; `buffer` is null or points
/// to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_overlay_config(
    device: *mut vuf_device,
    offset: u32,
    buffer: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            length(len)?;
            device.overlay_config(offset, c.array(buffer.cast::<u8>(), len, "buffer")?)
        })
    }
}

/// The guest writes its configuration space: the back-end is told (SET_CONFIG),
/// except of bytes that are the caller's own. It may refuse:
/// VUF_DEVICE_EVENT_CONFIG_REFUSED; the connection and the rings go on. Writes are sent
/// one by one and in order. After them, refused or not, the space is read again, because
/// its content may depend on them: vuf_device_wait() includes that, and
/// vuf_device_read_current_config() fails until then.
///
/// A write that a back-end has not confirmed when it is lost is told to the next; one
/// over which two were lost counts as refused. What was confirmed is the back-end's to
/// keep: if the next has something else, VUF_DEVICE_EVENT_CONFIG_CHANGED says so.
/// vuf_device_reset() ends writes that were not sent yet.
///
/// offset  where to begin, in bytes; offset + len is at most the size of the
///         configuration space
/// buffer  the bytes; read during the call
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
///   -EAGAIN      64 writes wait for the back-end
///   VUF_E_STATE  the size has not been set
///
/// # Safety
/// `device` is null or a device that has not been freed; `buffer` is null or points
/// to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_write_config(
    device: *mut vuf_device,
    offset: u32,
    buffer: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            length(len)?;
            device.write_config(offset, c.array(buffer.cast::<u8>(), len, "buffer")?)
        })
    }
}
