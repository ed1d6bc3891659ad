//! Single facts about a device, for threads that need no more than one of them.

use super::super::args::{self, Args};
use super::super::device::{give, no_fd_yet};
use super::super::handle;
use super::types::vuf_device;
use crate::backend_client::Uuid;
use crate::device::Device;
use crate::error::Result;
use std::os::raw::c_int;

/// # Safety
/// As for [`handle::with_device`].
unsafe fn ask(device: *const vuf_device, question: impl FnOnce(&Device) -> bool) -> c_int {
    let mut answer = false;
    let look = |device: &Device, _: &Args| -> Result<()> {
        answer = question(device);
        Ok(())
    };
    // SAFETY: passed on from the caller.
    match unsafe { handle::with_device(device, look) } {
        0 => c_int::from(answer),
        rc => rc,
    }
}

/// Returns whether there is a connection whose handshake went through: connected in
/// struct vuf_device_info, without the rest of that struct. Takes a lock that is never
/// held while anything waits: vCPU threads may call it.
///
/// Returns 1 or 0, otherwise
///   -EINVAL     device is NULL
///   -ECANCELED  the device is being freed, or an earlier call returned VUF_E_PANIC
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_is_connected(device: *const vuf_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ask(device, Device::is_connected) }
}

/// Returns whether the back-end has acknowledged all that is wanted, and has answered all
/// messages of vuf_device_post_iotlb(): settled in struct vuf_device_info. Takes a lock
/// that is never held while anything waits: vCPU threads may call it.
///
/// Returns 1 or 0, otherwise
///   -EINVAL     device is NULL
///   -ECANCELED  the device is being freed, or an earlier call returned VUF_E_PANIC
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_is_settled(device: *const vuf_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ask(device, Device::is_settled) }
}

/// Returns the virtio features that the back-end offers, or offered last, or is assumed
/// to: offered_features in struct vuf_device_info. A guest is shown these without
/// VUF_TRANSPORT_FEATURES. Takes a lock that is never held while anything waits: vCPU
/// threads may call it.
///
/// features  gets the mask
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL
///   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
///   VUF_E_STATE  what is offered is not known yet, and options->assume_features is 0
///
/// # Safety
/// `device` is null or a device that has not been freed; `features` is null or points to
/// room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_offered_features(
    device: *const vuf_device,
    features: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let features = c.output(features, "features")?;
            features.write(device.offered_features()?);
            Ok(())
        })
    }
}

/// Returns up to where the desired state has been reached. What a call has recorded is
/// done once applied is at least the generation that this function returned after that
/// call. Takes a lock that is never held while anything waits: vCPU threads may call it.
///
/// generation  gets the number of changes of the desired state so far
/// applied     gets the generation up to which the back-end has confirmed everything; 0
///             while there is no connection
///
/// Returns 0, otherwise
///   -EINVAL     an argument is NULL
///   -ECANCELED  the device is being freed, or an earlier call returned VUF_E_PANIC
///
/// # Safety
/// `device` is null or a device that has not been freed; `generation` and `applied` are
/// null or point to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_generation(
    device: *const vuf_device,
    generation: *mut u64,
    applied: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let generation = c.output(generation, "generation")?;
            let applied = c.output(applied, "applied")?;
            let (wanted, done) = device.generation();
            generation.write(wanted);
            applied.write(done.unwrap_or_default());
            Ok(())
        })
    }
}

/// Asks the back-end that is connected for its device status (GET_STATUS), and drives the
/// device while it waits. The status that a guest reads is another:
/// vuf_device_get_virtio_status().
///
/// Needs VUF_PROTOCOL_F_STATUS. A back-end that does not answer within timeout_ms of the
/// options is lost.
///
/// timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
/// status      gets the status
///
/// Returns 0, otherwise
///   -EINVAL               an argument is NULL
///   -ETIMEDOUT            there is no answer in time
///   -ECANCELED            the device is being freed, or an earlier call returned
///                         VUF_E_PANIC
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not agreed with the back-end
///   VUF_E_NACK            the back-end refused
///   VUF_E_DISCONNECTED    there is no back-end, or it has closed the connection
///   VUF_E_STATE           called from a function that the library calls
///   VUF_E_PANIC           a bug in this library
/// or the code with which the connection was lost meanwhile.
///
/// # Safety
/// `device` is null or a device that has not been freed; `status` is null or points to
/// room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_backend_status(
    device: *mut vuf_device,
    timeout_ms: u32,
    status: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let status = c.output(status, "status")?;
            status.write(device.backend_status(args::timeout(timeout_ms))?);
            Ok(())
        })
    }
}

/// Asks the back-end that is connected for the file of an object that it exports
/// (GET_SHARED_OBJECT), and drives the device while it waits. Call it once
/// shared_object_added was called, from another thread or after that has returned, so that
/// shared_object_lookup of another device has the file at hand: it may not wait itself.
///
/// Needs VUF_PROTOCOL_F_SHARED_OBJECT. A back-end that does not answer within timeout_ms of
/// the options is lost.
///
/// uuid        the object's 16 bytes, as they were announced; read during the call
/// timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
/// fd          gets the file: given (yours to close, close-on-exec); -1 on failure
///
/// Returns 0, otherwise
///   -EINVAL               an argument is NULL
///   -ETIMEDOUT            there is no answer in time
///   -ECANCELED            the device is being freed, or an earlier call returned
///                         VUF_E_PANIC
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not agreed with the back-end
///   VUF_E_NACK            the back-end has no such object
///   VUF_E_DISCONNECTED    there is no back-end, or it has closed the connection
///   VUF_E_STATE           called from a function that the library calls
///   VUF_E_PANIC           a bug in this library
/// or the code with which the connection was lost meanwhile.
///
/// # Safety
/// `device` is null or a device that has not been freed; `uuid` is null or points to 16
/// bytes; `fd` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_shared_object(
    device: *mut vuf_device,
    uuid: *const u8,
    timeout_ms: u32,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { no_fd_yet(fd) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let fd = c.fd_output(fd, "fd")?;
            let uuid = c.input(uuid.cast::<Uuid>(), "uuid")?;
            give(
                fd,
                Some(device.shared_object(uuid, args::timeout(timeout_ms))?),
            );
            Ok(())
        })
    }
}
