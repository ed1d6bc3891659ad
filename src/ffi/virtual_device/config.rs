//! What the guest's driver chooses and sees: features, and the configuration space.

use super::super::handle;
use super::types::*;
use crate::error::{Error, Result};
use crate::message::MAX_CONFIG_SIZE;
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
///   -EINVAL      device is NULL, or features has bits that are not offered
///   -EBUSY       a ring is started
///   VUF_E_STATE  what is offered is not known yet, and options->assume_features is
///                0
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

/// Reads the configuration space as the guest sees it: what the back-end told
/// last, and the caller's own bytes on top. Never waits for anything, and may be
/// called from any thread, as those of virtual CPUs.
///
/// offset      where to begin, in bytes; offset + len is at most
///             options->config_size
/// buffer      gets len bytes; on failure its content is unchanged
/// len         1 to VUF_MAX_CONFIG_SIZE
/// generation  gets a number that changes with the content; NULL if it is not
///             wanted. Read before and after it tells whether several reads belong
///             together.
///
/// Returns 0, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
///   VUF_E_STATE  the back-end has not told these bytes yet
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
            length(len)?;
            let mut bytes = [0_u8; MAX_CONFIG_SIZE];
            let bytes = bytes.get_mut(..len).unwrap_or_default();
            let place = c.buffer(buffer.cast::<u8>(), len, "buffer")?;
            let told = match generation.is_null() {
                true => None,
                false => Some(c.output(generation, "generation")?),
            };
            let number = device.read_config(offset, bytes)?;
            for (place, byte) in place.iter_mut().zip(bytes) {
                place.write(*byte);
            }
            if let Some(told) = told {
                told.write(number);
            }
            Ok(())
        })
    }
}

/// Makes bytes of the configuration space the caller's own: they win over the
/// back-end's, and what the guest writes to them stays here.
///
/// offset  where to begin, in bytes; offset + len is at most options->config_size
/// buffer  the bytes; read during the call
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
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
/// VUF_DEVICE_EVENT_CONFIG_REFUSED, after which the space is read again.
///
/// A write that a back-end has not confirmed when it is lost is told to the next; one
/// over which two were lost counts as refused. What was confirmed is the back-end's to
/// keep: if the next has something else, VUF_DEVICE_EVENT_CONFIG_CHANGED says so.
/// vuf_device_reset() ends writes that were not sent yet.
///
/// offset  where to begin, in bytes; offset + len is at most options->config_size
/// buffer  the bytes; read during the call
/// len     1 to VUF_MAX_CONFIG_SIZE
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      device or buffer is NULL, or a number is out of range
///   -EAGAIN      64 writes wait for the back-end
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
