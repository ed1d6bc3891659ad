//! Rings.

use super::args::{self, Args};
use super::handle;
use super::types::*;
use crate::error::Result;
use crate::message::{Request, VringAddr};
use std::os::raw::c_int;

/// Tells the size of a ring (SET_VRING_NUM).
///
/// While the ring is stopped.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// num    its size in descriptors: 1 to 32768, for a split ring a power of two
///
/// Returns 0, otherwise
///   -EINVAL     index or num is out of range
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_num(
    client: *mut vuf_client,
    index: u32,
    num: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringNum, index), |client, _| {
            client.set_vring_num(index, num)
        })
    }
}

/// The addresses of a ring, from C.
pub(super) fn address(c: &Args, index: u32, addr: *const vuf_vring_addr) -> Result<VringAddr> {
    let addr = c.input(addr, "addr")?;
    args::zero(&[u64::from(addr.reserved)], "addr")?;
    Ok(VringAddr {
        index,
        flags: addr.flags,
        descriptor: addr.descriptor,
        used: addr.used,
        available: addr.available,
        log: addr.log,
    })
}

/// Tells where a ring lies (SET_VRING_ADDR).
///
/// After the memory that holds it was shared. Initialise the ring's memory
/// before, because some back-ends read the used index at once, and send
/// vuf_client_set_vring_base() before as well. May be sent again while the ring
/// runs, to switch VUF_VRING_F_LOG.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// addr   the addresses; read during the call
///
/// Returns 0, otherwise
///   -EINVAL     index is out of range, addr is NULL, an address is not aligned,
///               flags has unknown bits, or reserved is not zero
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `addr` is null or
/// points to a struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_addr(
    client: *mut vuf_client,
    index: u32,
    addr: *const vuf_vring_addr,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringAddr, index), |client, c| {
            client.set_vring_addr(&address(c, index, addr)?)
        })
    }
}

/// Tells where a ring goes on (SET_VRING_BASE).
///
/// While the ring is stopped, before vuf_client_set_vring_kick().
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// base   split ring: the index of the next available entry, 16 bits. Packed
///        ring: bits 0-14 available index, bit 15 its wrap counter, bits 16-30
///        used index, bit 31 its wrap counter; 0x80008000 for a fresh one.
///
/// Returns 0, otherwise
///   -EINVAL     index is out of range, or base has more than 16 bits although
///               VIRTIO_F_RING_PACKED was not acknowledged
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_base(
    client: *mut vuf_client,
    index: u32,
    base: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringBase, index), |client, _| {
            client.set_vring_base(index, base)
        })
    }
}

/// Stops a ring and tells where it stood (GET_VRING_BASE).
///
/// The back-end shall first finish the requests that it has taken, so the call
/// may take as long as they do. (With VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT it
/// may instead leave them in the in-flight buffer.) Beware: qemu-storage-daemon
/// 10.0 answers at once and fails when they complete; where you can, wait for
/// what is in flight first. The back-end also drops the kick and call
/// descriptors of the ring: send them again before a restart.
///
/// index       the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// timeout_ms  how long to wait; VUF_TIMEOUT_DEFAULT is options.drain_timeout_ms
/// base        gets what vuf_client_set_vring_base() takes. Where a back-end
///             returns only the available half of a packed ring's base, the
///             used half, which is equal after a drain, is filled in (but not
///             with VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT).
///
/// Returns 0, otherwise
///   -EINVAL         index is out of range, or base is NULL
///   VUF_E_PROTOCOL  the reply is for another ring or out of range
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `base` is null or
/// points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_vring_base(
    client: *mut vuf_client,
    index: u32,
    timeout_ms: u32,
    base: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::GetVringBase, index), |client, c| {
            let base = c.output(base, "base")?;
            base.write(client.get_vring_base(index, args::timeout(timeout_ms))?);
            Ok(())
        })
    }
}

/// Stops a ring at once and tells where it stood (GET_VRING_BASE_SKIP_DRAIN).
///
/// Needs VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN. Like
/// vuf_client_get_vring_base(), but nothing is finished first: what the back-end
/// has taken stands in the in-flight buffer, for whoever serves the ring next.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// base   gets what vuf_client_set_vring_base() takes; of a packed ring as the
///        back-end sent it
///
/// Returns 0, otherwise
///   -EINVAL               index is out of range, or base is NULL
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_PROTOCOL        the reply is for another ring or out of range
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `base` is null or
/// points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_get_vring_base_skip_drain(
    client: *mut vuf_client,
    index: u32,
    base: *mut u32,
) -> c_int {
    let about = (Request::GetVringBaseSkipDrain, index);
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, about, |client, c| {
            let base = c.output(base, "base")?;
            base.write(client.get_vring_base_skip_drain(index)?);
            Ok(())
        })
    }
}

/// Tells the byte order of a ring (SET_VRING_ENDIAN).
///
/// Needs VUF_PROTOCOL_F_CROSS_ENDIAN. For a legacy driver whose byte order is not
/// this machine's; with VIRTIO_F_VERSION_1 rings are little-endian anyway. While
/// the ring is stopped.
///
/// index   the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// endian  VUF_VRING_LITTLE_ENDIAN or VUF_VRING_BIG_ENDIAN
///
/// Returns 0, otherwise
///   -EINVAL               index is out of range, or endian is neither
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_endian(
    client: *mut vuf_client,
    index: u32,
    endian: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringEndian, index), |client, _| {
            client.set_vring_endian(index, endian)
        })
    }
}

/// Tells what the driver writes to notify the device, and starts the ring
/// (SET_VRING_KICK).
///
/// The last message about a ring before vuf_client_set_vring_enable(). Write the
/// descriptor once afterwards, for entries that were made available before.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// fd     an eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
///        duplicate. -1 for none: the back-end shall poll. Beware: rust-vmm back-ends acknowledge -1 and
///        never start the ring, and libvhost-user cannot resume in-flight
///        requests without a descriptor. Always pass a real one if you can.
///
/// Returns 0, otherwise
///   -EINVAL     index is out of range, or fd is a file, a directory or a device
///   -EBADF      fd is below -1 or not open
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_kick(
    client: *mut vuf_client,
    index: u32,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringKick, index), |client, c| {
            client.set_vring_kick(index, c.optional_fd(fd, "fd")?)
        })
    }
}

/// Notifies the device by a message in place of a descriptor, and starts the
/// ring (VRING_KICK).
///
/// Needs VUF_PROTOCOL_F_INBAND_NOTIFICATIONS. For a ring whose
/// vuf_client_set_vring_kick() got -1.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
///
/// Returns 0 once the back-end has seen it, otherwise
///   -EINVAL               index is out of range
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_vring_kick(client: *mut vuf_client, index: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::VringKick, index), |client, _| {
            client.vring_kick(index)
        })
    }
}

/// Tells what the device writes to notify the driver (SET_VRING_CALL).
///
/// At any time; a swap while the ring runs is complete when this returns.
/// Expect a call without a cause: some back-ends write the descriptor at once.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// fd     an eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
///        duplicate. -1 for none: the driver polls.
///
/// Returns 0, otherwise
///   -EINVAL     index is out of range, or fd is a file, a directory or a device
///   -EBADF      fd is below -1 or not open
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_call(
    client: *mut vuf_client,
    index: u32,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringCall, index), |client, c| {
            client.set_vring_call(index, c.optional_fd(fd, "fd")?)
        })
    }
}

/// Tells what the device writes when a ring is broken (SET_VRING_ERR).
///
/// At any time.
///
/// index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// fd     an eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
///        duplicate. -1 for none.
///
/// Returns 0, otherwise
///   -EINVAL     index is out of range, or fd is a file, a directory or a device
///   -EBADF      fd is below -1 or not open
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_err(
    client: *mut vuf_client,
    index: u32,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringErr, index), |client, c| {
            client.set_vring_err(index, c.optional_fd(fd, "fd")?)
        })
    }
}

/// Lets the back-end process a ring, or not (SET_VRING_ENABLE).
///
/// Needs VUF_F_PROTOCOL_FEATURES acknowledged with vuf_client_set_features();
/// without it rings are enabled from the start. Let the guest run only after
/// this has returned.
///
/// index   the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
/// enable  whether to process it
///
/// Returns 0 once the back-end has done so, otherwise
///   -EINVAL               index is out of range
///   VUF_E_NOT_NEGOTIATED  VUF_F_PROTOCOL_FEATURES was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_vring_enable(
    client: *mut vuf_client,
    index: u32,
    enable: bool,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, (Request::SetVringEnable, index), |client, _| {
            client.set_vring_enable(index, enable)
        })
    }
}
