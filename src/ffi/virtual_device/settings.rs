//! Settings of some types of devices that each back-end is informed of.

use super::super::args::Args;
use super::super::device_kinds::octets;
use super::super::handle;
use super::super::types::{VUF_VRING_BIG_ENDIAN, VUF_VRING_LITTLE_ENDIAN};
use super::types::vuf_device;
use crate::device::Device;
use crate::error::{Error, Result};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::raw::c_int;

/// Sets the largest frame of a network device (NET_SET_MTU), for the back-end that is
/// connected and all that follow. A back-end that offers VUF_PROTOCOL_F_MTU is informed
/// of it once the driver has acknowledged VIRTIO_NET_F_MTU (bit 3), and again after each
/// reset, before any ring starts. It may change while rings run.
///
/// Other back-ends are not informed; required_protocol_features of the options can refuse
/// them. The configuration space, which the guest reads, is not changed: see
/// vuf_device_overlay_config(). If the back-end refuses (VUF_DEVICE_EVENT_REFUSED),
/// everything else goes on, and the request is not sent again before the next call.
///
/// mtu  the maximum transmission unit in bytes: 68 to 65535
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL               device is NULL, or mtu is out of range
///   VUF_E_NOT_NEGOTIATED  protocol_features of the options does not have
///                         VUF_PROTOCOL_F_MTU, which is not in the default set
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_mtu(device: *mut vuf_device, mtu: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.set_mtu(mtu)) }
}

/// Sets the byte order of all rings of a legacy driver, one that does not acknowledge
/// VIRTIO_F_VERSION_1 (SET_VRING_ENDIAN). The rings of other drivers are little-endian,
/// and this has no effect on them. Without this call legacy rings have the byte order of
/// this machine.
///
/// Each back-end that has agreed on VUF_PROTOCOL_F_CROSS_ENDIAN is informed for each ring
/// before the ring starts. A back-end that refuses cannot start the ring
/// (VUF_DEVICE_EVENT_REFUSED). The order stays over a reset and a loss.
///
/// endian  VUF_VRING_LITTLE_ENDIAN or VUF_VRING_BIG_ENDIAN
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL               device is NULL, or endian is neither
///   -EBUSY                a ring is started
///   VUF_E_NOT_NEGOTIATED  the driver is a legacy one, endian is not the byte order of
///                         this machine, and the back-end that is connected does not
///                         offer VUF_PROTOCOL_F_CROSS_ENDIAN, or protocol_features of
///                         the options does not have it, as in the default set. While
///                         no back-end is connected the call succeeds, and a back-end
///                         without it is refused when it connects.
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_vring_endian(
    device: *mut vuf_device,
    endian: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, _| {
            device.set_vring_endian(big_endian(endian)?)
        })
    }
}

/// Has a network device announce an address once to its network, after a migration, as
/// soon as its rings run (SEND_RARP). For drivers that do not do so themselves
/// (VIRTIO_NET_F_GUEST_ANNOUNCE).
///
/// It is done once applied in struct vuf_device_info has reached the generation of after
/// this call, as after vuf_device_wait(); while no ring is started it waits for one, and
/// neither includes it. An announcement that a back-end has not confirmed when it is lost
/// is sent to the next. A refusal is VUF_DEVICE_EVENT_REFUSED with SEND_RARP for its request;
/// no wait fails because of it. So is a back-end that connects later and does not offer
/// VUF_PROTOCOL_F_RARP.
///
/// mac  the address: its first octet in bits 0-7, its last one in bits 40-47
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL               device is NULL, or mac has more than 48 bits
///   -EAGAIN               16 announcements wait for the back-end
///   VUF_E_NOT_NEGOTIATED  protocol_features of the options does not have
///                         VUF_PROTOCOL_F_RARP, which is not in the default set, or the
///                         back-end that is connected does not offer it
///
/// # Safety
/// `device` is null or a device that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_send_rarp(device: *mut vuf_device, mac: u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, |device, _| device.send_rarp(octets(mac)?)) }
}

/// Gives a GPU back-end the socket to the display (GPU_SET_SOCKET): the back-end that is
/// connected, or else the next one, before any ring starts. What is spoken there is the
/// vhost-user-gpu protocol, which this library does not serve.
///
/// Each socket is for one back-end, because another process cannot go on in the middle of
/// what was spoken: it is closed here once the back-end has it, so that your end of it ends
/// with the back-end. After VUF_DEVICE_EVENT_LOST supply another one, which the next back-end
/// gets. Of several that no back-end has got the last counts. A refusal is
/// VUF_DEVICE_EVENT_REFUSED with GPU_SET_SOCKET for its request; everything else goes on.
///
/// fd  one end of a Unix stream socket pair; taken on success
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL  device is NULL
///   -EBADF   fd is negative or not open
///
/// # Safety
/// `device` is null or a device that has not been freed; `fd` is owned by the caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_gpu_socket(device: *mut vuf_device, fd: c_int) -> c_int {
    let set = |device: &Device, c: &Args| {
        c.fd(fd, "fd")?;
        // SAFETY: an open descriptor, which the caller gives away with success; nothing
        // below fails.
        device.set_gpu_socket(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, set) }
}

fn big_endian(endian: u32) -> Result<bool> {
    match endian {
        VUF_VRING_LITTLE_ENDIAN => Ok(false),
        VUF_VRING_BIG_ENDIAN => Ok(true),
        _ => Err(Error::invalid(format!(
            "endian is {endian}, neither VUF_VRING_LITTLE_ENDIAN nor VUF_VRING_BIG_ENDIAN"
        ))),
    }
}
