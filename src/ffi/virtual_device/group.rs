//! One list of memory for several devices.

use super::super::args::Args;
use super::super::types::*;
use super::super::{args, boundary, handle};
use super::sharing::{region, regions};
use super::types::*;
use crate::device::{MemoryGroup, MemoryState};
use crate::error::{Error, Kind};
use std::os::raw::c_int;

/// Makes a group of devices that share all guest memory; without any at first.
///
/// A change of the group's memory is refused as a whole if one of the devices could not
/// take it. A later failure of one device does not hold up the others:
/// vuf_device_get_memory_state() returns the state of each.
///
/// out  gets the group; NULL on failure
///
/// Returns 0, or -EINVAL if out is NULL.
///
/// # Safety
/// `out` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_new(out: *mut *mut vuf_memory_group) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        c.output(out, "out")?.write(handle::new(MemoryGroup::new()));
        Ok(())
    })
}

/// Frees a group. Its devices keep the memory that they have.
///
/// Waits until no thread is in a call on the group; none may begin any more.
///
/// group  may be NULL, which does nothing
///
/// # Safety
/// `group` is null or a group that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_free(group: *mut vuf_memory_group) {
    boundary::guard(|| {
        // SAFETY: the caller's promise.
        unsafe { handle::free(group) };
        Ok(())
    });
}

/// Gives a device the memory of the group, in place of its own, from now on. It
/// leaves the group when it is freed, and when the group is. Until then
/// vuf_device_set_memory(), _add_memory() and _remove_memory() refuse the device.
///
/// device  borrowed; it belongs to one group at most
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL
///   -EBUSY       a ring of the device lies elsewhere, or memory in use would change
///   -ENOSPC      its back-end has no room for so many regions
///   VUF_E_STATE  it belongs to a group already
///
/// # Safety
/// `group` is null or a group, and `device` null or a device, that have not been
/// freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_join(
    group: *mut vuf_memory_group,
    device: *mut vuf_device,
) -> c_int {
    // SAFETY: the caller's promise.
    let device = || unsafe { handle::shared(device) };
    // SAFETY: the caller's promise.
    unsafe { handle::with_group(group, |group, _| group.join(&device()?)) }
}

/// Lets a device go from the group. It keeps the memory that it has.
///
/// device  borrowed; one that does not belong to the group is left alone
///
/// Returns 0, or -EINVAL if an argument is NULL.
///
/// # Safety
/// As for vuf_memory_group_join().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_leave(
    group: *mut vuf_memory_group,
    device: *mut vuf_device,
) -> c_int {
    // SAFETY: the caller's promise.
    let device = || unsafe { handle::shared(device) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_group(group, |group, _| {
            group.leave(&device()?);
            Ok(())
        })
    }
}

/// States all memory that the back-ends of the group may reach, as
/// vuf_device_set_memory() does for one.
///
/// regions  as there; each fd is kept
/// n        may be 0: none
/// flags    0 or VUF_MEMORY_ALLOW_GAP
///
/// Returns 0 once it is recorded for all, or what vuf_device_set_memory() returns
/// for the first device that could not take it: then it is recorded for none.
///
/// # Safety
/// `group` is null or a group that has not been freed; `regions` is null or points
/// to `n` regions, whose descriptors stay open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_set_memory(
    group: *mut vuf_memory_group,
    regions: *const vuf_mem_region,
    n: usize,
    flags: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_group(group, |group, c| {
            if flags & !VUF_MEMORY_ALLOW_GAP != 0 {
                return Err(Error::invalid("flags has unknown bits"));
            }
            let allow_gap = flags & VUF_MEMORY_ALLOW_GAP != 0;
            group.set_memory(self::regions(c, regions, n)?, allow_gap)
        })
    }
}

/// Adds a region to the memory of the group, as vuf_device_add_memory() does for
/// one device.
///
/// region  as there; its fd is kept
///
/// Returns 0 once it is recorded for all, or what vuf_device_add_memory() returns
/// for the first device that could not take it: then it is recorded for none.
///
/// # Safety
/// `group` is null or a group that has not been freed; `region` is null or points
/// to a region, whose descriptor stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_add_memory(
    group: *mut vuf_memory_group,
    region: *const vuf_mem_region,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_group(group, |group, c| {
            group.add_memory(self::region(c, c.input(region, "region")?)?)
        })
    }
}

/// Takes a region away from all devices of the group. It must not be unmapped while
/// vuf_device_get_memory_state() of any of them is VUF_MEMORY_PENDING or
/// VUF_MEMORY_UNCONFIRMED.
///
/// guest_addr  as it was added
/// size        as it was added
///
/// Returns 0 once it is recorded for all, otherwise
///   -EINVAL  group is NULL, or there is no such region
///   -EBUSY   a ring of one of the devices lies in it: stop that first
///
/// # Safety
/// `group` is null or a group that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_remove_memory(
    group: *mut vuf_memory_group,
    guest_addr: u64,
    size: u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_group(group, |group, _| group.remove_memory(guest_addr, size)) }
}

/// Tells whether all back-ends of the group could hold these regions. Changes
/// nothing.
///
/// regions  array of n regions, as for vuf_device_set_memory(); each fd is
///          borrowed
/// n        may be 0
///
/// Returns 0 if so, otherwise
///   -ENOSPC  one of them could not
/// or what vuf_device_set_memory() returns for regions that are not valid.
///
/// # Safety
/// As for vuf_memory_group_set_memory().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_memory_fits(
    group: *const vuf_memory_group,
    regions: *const vuf_mem_region,
    n: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_group(group, |group, c| {
            group.memory_fits(self::regions(c, regions, n)?)
        })
    }
}

/// Waits until no device of the group is VUF_MEMORY_PENDING, and drives all of them
/// meanwhile. Their events stay for vuf_device_process(). A device that is freed meanwhile
/// no longer counts. Memory that was taken away must not be unmapped if one of them is
/// VUF_MEMORY_UNCONFIRMED then.
///
/// timeout_ms  for all together; VUF_TIMEOUT_DEFAULT is 60000
///
/// Returns 0, otherwise
///   -EINVAL      group is NULL
///   -ETIMEDOUT   one of them still is
///   -ECANCELED   a call on one of them has returned VUF_E_PANIC
///   VUF_E_STATE  called from a function that the library calls
///   VUF_E_PANIC  a bug in this library
/// or another negative errno from the system, as -EMFILE.
///
/// # Safety
/// `group` is null or a group that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memory_group_wait(
    group: *mut vuf_memory_group,
    timeout_ms: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_group(group, |group, _| {
            match group.wait(args::timeout(timeout_ms))? {
                true => Ok(()),
                false => Err(Error::new(
                    Kind::TimedOut,
                    "a back-end of the group has not confirmed its memory",
                )),
            }
        })
    }
}

/// Returns how far the back-end of a device has got with the memory that is wanted, and
/// whether memory that was taken away may be unmapped: not in VUF_MEMORY_PENDING and
/// VUF_MEMORY_UNCONFIRMED. Does not wait.
///
/// state  gets one of VUF_MEMORY_APPLIED, _PENDING, _ABSENT, _FAILED, _UNCONFIRMED
///
/// Returns 0, or -EINVAL if an argument is NULL.
///
/// # Safety
/// `device` is null or a device that has not been freed; `state` is null or points
/// to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_memory_state(
    device: *const vuf_device,
    state: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let state = c.output(state, "state")?;
            state.write(match device.memory_state() {
                MemoryState::Applied => VUF_MEMORY_APPLIED,
                MemoryState::Pending => VUF_MEMORY_PENDING,
                MemoryState::Absent => VUF_MEMORY_ABSENT,
                MemoryState::Failed => VUF_MEMORY_FAILED,
                MemoryState::Unconfirmed => VUF_MEMORY_UNCONFIRMED,
            });
            Ok(())
        })
    }
}
