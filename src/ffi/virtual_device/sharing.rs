//! The memory of a device.

use super::super::args::{self, Args};
use super::super::types::*;
use super::super::{handle, memory};
use super::types::*;
use crate::device::Region;
use crate::error::{Error, Result};
use crate::room::{room, room_for};
use std::os::raw::c_int;

/// A device sends guest addresses, and knows no Xen.
pub(super) fn region(c: &Args, given: &vuf_mem_region) -> Result<Region> {
    let unused = [
        u64::from(given.xen_mmap_flags),
        u64::from(given.xen_domid),
        u64::from(given.reserved0),
        given.reserved[0],
        given.reserved[1],
    ];
    args::zero(&unused, "the region")?;
    if given.user_addr != 0 && given.user_addr != given.guest_addr {
        let text = "user_addr of the region is neither 0 nor guest_addr";
        return Err(Error::invalid(text));
    }
    let fd = c.field_fd(given.fd, "fd of the region")?;
    room(0)?;
    Region::new(given.guest_addr, given.size, given.mmap_offset, fd)
}

pub(super) fn regions(c: &Args, given: *const vuf_mem_region, n: usize) -> Result<Vec<Region>> {
    let given = c.array(given, n, "regions")?;
    room_for::<Region>(n)?;
    let mut regions = Vec::with_capacity(given.len());
    for (index, given) in given.iter().enumerate() {
        let mut region = region(c, given).map_err(|error| error.region(index))?;
        // At once, so that a long list needs no more descriptors than it keeps.
        region.share_descriptor(&regions);
        regions.push(region);
    }
    Ok(regions)
}

/// States all memory that the back-end may reach, in place of what was stated
/// before.
///
/// With VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS regions that stay are left alone.
/// Otherwise the table is sent whole (SET_MEM_TABLE), where regions of one file
/// that are neighbours count as one if there are more than VUF_MAX_MEM_REGIONS. Rings that
/// run are stopped for it and started again, because some back-ends acknowledge a table
/// while rings run and do not give it to these (crosvm, DPDK's vhost_blk).
///
/// A region that the back-end refuses is VUF_DEVICE_EVENT_REFUSED and VUF_MEMORY_FAILED;
/// everything else goes on. It is sent again after any change of the memory.
///
/// regions  array of n regions, in any order; read during the call. Each fd is
///          kept: duplicated, once for each file, until the back-end has let go of
///          the region. It is open for reading and writing, of a memfd, a file on tmpfs or
///          hugetlbfs, or a character or block device that can be mapped (device
///          DAX). Of a device neither its size nor its page size is checked: a
///          back-end refuses what it cannot map. user_addr is 0 or guest_addr:
///          guest addresses are what is sent. Addresses, sizes and offsets are
///          multiples of the page size.
/// n        may be 0: none
/// flags    0 or VUF_MEMORY_ALLOW_GAP
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      an argument is NULL, flags has unknown bits, or a region is not
///                valid, overlaps another or goes beyond the end of its file
///   -EBADF       a region's fd is negative or not open
///   -EBUSY       memory in use would change while rings run (see
///                VUF_MEMORY_ALLOW_GAP), or a ring would lose its own
///   -ENOSPC      the back-end has no room for so many
///   VUF_E_STATE  the device belongs to a memory group
/// or another negative errno from the system, such as -EMFILE.
///
/// # Safety
/// `device` is null or a device that has not been freed; `regions` is null or
/// points to `n` regions, whose descriptors stay open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_memory(
    device: *mut vuf_device,
    regions: *const vuf_mem_region,
    n: usize,
    flags: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            if flags & !VUF_MEMORY_ALLOW_GAP != 0 {
                return Err(Error::invalid("flags has unknown bits"));
            }
            let allow_gap = flags & VUF_MEMORY_ALLOW_GAP != 0;
            device.set_memory(self::regions(c, regions, n)?, allow_gap)
        })
    }
}

/// Adds a region to the memory that the back-end may reach (ADD_MEM_REG, or
/// SET_MEM_TABLE, as for vuf_device_set_memory()), even while rings run.
///
/// region  as for vuf_device_set_memory(); its fd is kept
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      an argument is NULL, or the region is not valid, overlaps another
///                or goes beyond the end of its file
///   -EBADF       its fd is negative or not open
///   -EBUSY       rings run, and others would have to be coalesced for it
///   -ENOSPC      the back-end has no room for it
///   VUF_E_STATE  the device belongs to a memory group
/// or another negative errno from the system, as -EMFILE.
///
/// # Safety
/// `device` is null or a device that has not been freed; `region` is null or points
/// to a region, whose descriptor stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_add_memory(
    device: *mut vuf_device,
    region: *const vuf_mem_region,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            device.add_memory(self::region(c, c.input(region, "region")?)?)
        })
    }
}

/// Takes a region away (REM_MEM_REG, or SET_MEM_TABLE, as for vuf_device_set_memory()).
/// It must not be unmapped before quiesced is 1, here or in vuf_device_get_quiet(): until
/// then a back-end may write it.
///
/// If the back-end refuses that (VUF_DEVICE_EVENT_REFUSED), quiesced stays 0, and
/// VUF_MEMORY_UNCONFIRMED or VUF_MEMORY_PENDING lasts until another change of the memory
/// has it released, or the back-end is gone. Without
/// VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS no request takes the last region away: the
/// connection is closed for it (VUF_DEVICE_EVENT_LOST with -ECANCELED).
///
/// guest_addr  as it was added
/// size        as it was added
/// quiet       set quiet->size before the call; the rest is filled in
///
/// Returns 0 once it is recorded, in every state, otherwise
///   -EINVAL      an argument is NULL, quiet->size is too small, or there is no such
///                region
///   -E2BIG       quiet->size is above 65536
///   -EBUSY       a ring lies in it: stop that first
///   VUF_E_STATE  the device belongs to a memory group
///
/// # Safety
/// `device` is null or a device that has not been freed; `quiet` is null or points
/// to `quiet->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_remove_memory(
    device: *mut vuf_device,
    guest_addr: u64,
    size: u64,
    quiet: *mut vuf_quiet,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let room = c.result_size(quiet, "quiet")?;
            device.remove_memory(guest_addr, size)?;
            super::tell_quiet(device, c, (quiet, room), 0)
        })
    }
}

/// Tells whether the back-end could hold these regions; without a back-end,
/// whether any could. Changes nothing.
///
/// regions  array of n regions, as for vuf_device_set_memory(); each fd is
///          borrowed
/// n        may be 0
///
/// Returns 0 if so, otherwise
///   -ENOSPC      it could not
/// or what vuf_device_set_memory() returns for regions that are not valid.
///
/// # Safety
/// `device` is null or a device that has not been freed; `regions` is null or
/// points to `n` regions, whose descriptors stay open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_memory_fits(
    device: *const vuf_device,
    regions: *const vuf_mem_region,
    n: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            device.memory_fits(self::regions(c, regions, n)?)
        })
    }
}

/// Lets the back-end use a translation of its IOMMU, or no longer (IOTLB_MSG),
/// without waiting.
///
/// Needs VIRTIO_F_ACCESS_PLATFORM among the features. The answer to iotlb_miss, from
/// inside which it may be called. Nothing is kept: after a loss the next back-end
/// asks again.
///
/// The back-end may use a translation until it has acknowledged its invalidation:
/// call vuf_device_wait(), or process the device until settled in
/// struct vuf_device_info is 1. A refusal makes vuf_device_wait() fail and is
/// VUF_DEVICE_EVENT_IOTLB_REFUSED. Without an answer VUF_DEVICE_EVENT_STALLED comes
/// after stall_ms, and after timeout_ms the connection is lost. The time counts from
/// the moment at which requests sent before are answered.
///
/// iotlb  the entry; read during the call. Its user_addr is a guest address.
///
/// Returns 0, otherwise
///   -EINVAL               as for vuf_client_send_iotlb()
///   -EAGAIN               256 of these have no answer yet
///   VUF_E_DISCONNECTED    there is no back-end. A lost one may use its translations
///                         until it is gone: quiesced in struct vuf_quiet, unfenced in
///                         struct vuf_device_info
///   VUF_E_NOT_NEGOTIATED  VIRTIO_F_ACCESS_PLATFORM was not acknowledged
/// or, where the connection is about to be lost, why.
///
/// # Safety
/// `device` is null or a device that has not been freed; `iotlb` is null or points
/// to a struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_post_iotlb(
    device: *mut vuf_device,
    iotlb: *const vuf_iotlb,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            device.post_iotlb(&memory::translation(c.input(iotlb, "iotlb")?))
        })
    }
}
