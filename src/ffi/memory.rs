//! Guest memory and the dirty log.

use super::args::{self, Args};
use super::handle;
use super::types::*;
use crate::backend_client::{BackendClient, SharedRegion};
use crate::error::{Error, Result};
use crate::message::{Iotlb, Log, MAX_MEM_REGIONS, MemRegion, Request};
use std::os::raw::c_int;

fn wire(region: &vuf_mem_region) -> Result<MemRegion> {
    let zero = [
        u64::from(region.reserved0),
        region.reserved[0],
        region.reserved[1],
    ];
    args::zero(&zero, "the region")?;
    Ok(MemRegion {
        guest_addr: region.guest_addr,
        size: region.size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
        xen_mmap_flags: region.xen_mmap_flags,
        xen_domid: region.xen_domid,
    })
}

/// Runs `send` with the regions of an array.
pub(super) fn with_regions(
    client: &BackendClient,
    c: &Args,
    regions: *const vuf_mem_region,
    n: usize,
    send: impl FnOnce(&[SharedRegion<'_>]) -> Result<()>,
) -> Result<()> {
    if n > MAX_MEM_REGIONS {
        return Err(Error::invalid(format!(
            "n is {n}, not 1 to {MAX_MEM_REGIONS}"
        )));
    }
    let nothing = SharedRegion {
        region: MemRegion::default(),
        fd: client.read_notifier(),
    };
    let mut table = [nothing; MAX_MEM_REGIONS];
    let given = c.array(regions, n, "regions")?;
    for (index, (slot, region)) in table.iter_mut().zip(given).enumerate() {
        *slot = shared(c, region).map_err(|error| error.region(index))?;
    }
    send(table.get(..given.len()).unwrap_or_default())
}

fn shared<'c>(c: &'c Args, region: &vuf_mem_region) -> Result<SharedRegion<'c>> {
    Ok(SharedRegion {
        region: wire(region)?,
        fd: c.field_fd(region.fd, "fd of the region")?,
    })
}

/// Tells the back-end which memory it may reach (SET_MEM_TABLE).
///
/// Replaces any table sent before. After vuf_client_set_owner() and before the
/// first ring is started. With VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS prefer
/// vuf_client_add_mem_region() for changes: it moves one region, not all.
///
/// regions  array of n regions; read during the call, not kept. Each fd is
///          borrowed: the back-end gets a duplicate. With
///          VUF_PROTOCOL_F_GPA_ADDRESSES each user_addr is the guest_addr.
/// n        1 to VUF_MAX_MEM_REGIONS
///
/// Returns 0 once the back-end has taken over the table, otherwise
///   -EINVAL      regions is NULL, n is out of range, or a region is not valid:
///                size 0, an offset that is not page-aligned, an end (of guest
///                or user addresses or in the file) beyond 64 bits, two that
///                overlap, fd 0, a field that must be zero, an unknown Xen flag
///                (without VUF_PROTOCOL_F_XEN_MMAP: any), or user_addr is not
///                guest_addr with VUF_PROTOCOL_F_GPA_ADDRESSES
///   -EBADF       a region's fd is negative or not open
///   VUF_E_STATE  vuf_client_postcopy_listen() was called: the table is sent with
///                vuf_client_postcopy_set_mem_table()
///   VUF_E_NACK   the back-end refused; the old table may be gone
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `regions` is null or
/// points to `n` regions, whose descriptors stay open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_mem_table(
    client: *mut vuf_client,
    regions: *const vuf_mem_region,
    n: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetMemTable, |client, c| {
            with_regions(client, c, regions, n, |regions| {
                client.set_mem_table(regions)
            })
        })
    }
}

/// Shares one more region of guest memory (ADD_MEM_REG).
///
/// Needs VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS. May be called while rings run.
///
/// region  the region; read during the call. Its fd is borrowed: the back-end
///         gets a duplicate.
///
/// Returns 0 once the back-end has taken it over, otherwise
///   -EINVAL               region is NULL or not valid, as for
///                         vuf_client_set_mem_table()
///   -EBADF                the region's fd is negative or not open
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_STATE           the back-end listens for page faults
///   VUF_E_NACK            the back-end refused, as when it has no slot left
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `region` is null or
/// points to a region, whose descriptor stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_add_mem_region(
    client: *mut vuf_client,
    region: *const vuf_mem_region,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::AddMemReg, |client, c| {
            client.add_mem_region(&shared(c, c.input(region, "region")?)?)
        })
    }
}

/// Takes a region of guest memory away (REM_MEM_REG).
///
/// Needs VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS. Stop the rings that lie in it
/// first, and unmap it only after this has returned.
///
/// region  as it was added: guest_addr, size and user_addr must be the same;
///         its fd is not used
///
/// Returns 0 once the back-end has let go of it, otherwise
///   -EINVAL               region is NULL or not valid, as for
///                         vuf_client_set_mem_table()
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_STATE           the back-end listens for page faults
///   VUF_E_NACK            the back-end refused, as when it knows no such region
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `region` is null or
/// points to a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_remove_mem_region(
    client: *mut vuf_client,
    region: *const vuf_mem_region,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::RemMemReg, |client, c| {
            client.remove_mem_region(&wire(c.input(region, "region")?)?)
        })
    }
}

/// Lets the back-end use a translation of its IOMMU, or no longer (IOTLB_MSG).
///
/// Needs VIRTIO_F_ACCESS_PLATFORM (bit 33) acknowledged with
/// vuf_client_set_features(): ring and buffer addresses are then I/O virtual
/// addresses. Before a ring is enabled its own memory has to be translated, or
/// the back-end asks for it on its channel.
///
/// iotlb  the entry; read during the call
///
/// Returns 0 once the back-end has taken it over, otherwise
///   -EINVAL               iotlb is NULL, type or perm is unknown, size is 0, an
///                         end is beyond 64 bits, or a reserved field is not
///                         zero
///   VUF_E_NOT_NEGOTIATED  VIRTIO_F_ACCESS_PLATFORM was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `iotlb` is null or
/// points to a struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_send_iotlb(
    client: *mut vuf_client,
    iotlb: *const vuf_iotlb,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::IotlbMsg, |client, c| {
            client.send_iotlb(&translation(c.input(iotlb, "iotlb")?))
        })
    }
}

/// The same without waiting: queues the message (IOTLB_MSG) and returns. The
/// answer is taken when it comes; a refusal is counted and not told.
///
/// The one function that sends and may be called from iotlb_miss in struct
/// vuf_backend_ops.
///
/// iotlb  as for vuf_client_send_iotlb()
///
/// Returns 0, otherwise
///   -EINVAL               as for vuf_client_send_iotlb()
///   -EAGAIN               256 of these have no answer yet
///   VUF_E_NOT_NEGOTIATED  VIRTIO_F_ACCESS_PLATFORM was not acknowledged
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `iotlb` is null or
/// points to a struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_post_iotlb(
    client: *mut vuf_client,
    iotlb: *const vuf_iotlb,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::IotlbMsg, |client, c| {
            client.post_iotlb(&translation(c.input(iotlb, "iotlb")?))
        })
    }
}

pub(super) fn translation(iotlb: &vuf_iotlb) -> Iotlb {
    Iotlb {
        iova: iotlb.iova,
        size: iotlb.size,
        user_addr: iotlb.user_addr,
        perm: iotlb.perm,
        kind: iotlb.r#type,
        padding: iotlb.reserved,
    }
}

/// Tells the back-end where to log the pages that it writes (SET_LOG_BASE).
///
/// Needs VUF_PROTOCOL_F_LOG_SHMFD. Before VUF_F_LOG_ALL is acknowledged, and
/// again to switch to another log. Bit n of the log stands for the 4096 bytes
/// at guest address n * 4096; the back-end sets bits atomically, and
/// vuf_dirty_log_sync() takes them out. A log that is too small makes back-ends
/// abort or drop pages: it must reach to the end of guest memory.
///
/// mmap_size    size of the log in bytes, a multiple of 8
/// mmap_offset  must be 0: back-ends add it twice and write beyond the log
/// fd           the shared memory of the log; borrowed: the back-end gets a
///              duplicate
///
/// Returns 0 once the back-end has answered, otherwise
///   -EINVAL               mmap_size or mmap_offset is not valid
///   -EBADF                fd is negative or not open
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
/// or a common code. Back-ends have no way to refuse: the content of their
/// answer means nothing.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_log_base(
    client: *mut vuf_client,
    mmap_size: u64,
    mmap_offset: u64,
    fd: c_int,
) -> c_int {
    let log = Log {
        mmap_size,
        mmap_offset,
    };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetLogBase, |client, c| {
            client.set_log_base(&log, c.fd(fd, "fd")?)
        })
    }
}

/// Gives the back-end an eventfd to write when it has logged (SET_LOG_FD).
///
/// Optional, and rarely served: rust-vmm back-ends hang up on it.
///
/// fd  the eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
///     duplicate
///
/// Returns 0, otherwise
///   -EINVAL     fd is a file, a directory or a device
///   -EBADF      fd is negative or not open
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_set_log_fd(client: *mut vuf_client, fd: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetLogFd, |client, c| {
            client.set_log_fd(c.fd(fd, "fd")?)
        })
    }
}
