//! The rings of a device, and its reset.

use super::super::args::{self, Args};
use super::super::handle;
use super::tell_quiet;
use super::types::*;
use crate::device::{Base, Device, Ring, RingIndices, StopMode};
use crate::error::{Error, Result};
use crate::message::MAX_RING_INDEX;
use std::os::raw::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// A word of guest memory, little-endian, that others write meanwhile: the one
/// thing in guest memory that the library looks at.
struct Word(*const AtomicU16);

impl Word {
    fn new(pointer: *const u16, name: &str) -> Result<Option<Self>> {
        if pointer.is_null() {
            return Ok(None);
        }
        match pointer.is_aligned() {
            true => Ok(Some(Self(pointer.cast()))),
            false => Err(Error::invalid(format!("{name} of the ring is not aligned"))),
        }
    }

    fn read(&self) -> u16 {
        // SAFETY: aligned, and vuf_device_start() tells the caller to keep it mapped
        // while the ring is started. Guest and back-end write it at any time, so it
        // is read as an atomic. Acquire: who reads an index may read what it counts.
        u16::from_le(unsafe { &*self.0 }.load(Ordering::Acquire))
    }
}

/// Words in guest memory.
struct Words {
    used: Option<Word>,
    available: Option<Word>,
}

// SAFETY: the words are only read, atomically, and vuf_device_start() tells the
// caller that this may be on any thread.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl RingIndices for Words {
    fn used(&self) -> Option<u16> {
        self.used.as_ref().map(Word::read)
    }

    fn available(&self) -> Option<u16> {
        self.available.as_ref().map(Word::read)
    }
}

type GetIndex =
    unsafe extern "C" fn(user: *mut c_void, ring: u32, which: u32, index: *mut u16) -> c_int;

/// The caller's function that knows them.
struct Asked {
    get_index: GetIndex,
    user: *mut c_void,
    ring: u32,
}

// SAFETY: vuf_device_start() tells the caller that the function is called from any
// thread; `user` is only passed on to it.
unsafe impl Send for Asked {}
// SAFETY: as above.
unsafe impl Sync for Asked {}

impl Asked {
    fn ask(&self, which: u32) -> Option<u16> {
        let mut index = 0;
        // SAFETY: promised when the ring was started.
        let rc = unsafe { (self.get_index)(self.user, self.ring, which, &raw mut index) };
        (rc == 0).then_some(index)
    }
}

impl RingIndices for Asked {
    fn used(&self) -> Option<u16> {
        self.ask(VUF_RING_INDEX_USED)
    }

    fn available(&self) -> Option<u16> {
        self.ask(VUF_RING_INDEX_AVAILABLE)
    }
}

fn indices(given: &vuf_ring) -> Result<Option<Arc<dyn RingIndices>>> {
    let words = Words {
        used: Word::new(given.used_index, "used_index")?,
        available: Word::new(given.avail_index, "avail_index")?,
    };
    let any = words.used.is_some() || words.available.is_some();
    match given.get_index {
        Some(_) if any => Err(Error::invalid(
            "the ring has both get_index and used_index or avail_index",
        )),
        Some(get_index) => Ok(Some(Arc::new(Asked {
            get_index,
            user: given.user,
            ring: given.index,
        }))),
        None if any => Ok(Some(Arc::new(words))),
        None => Ok(None),
    }
}

fn ring<'c>(c: &'c Args, given: &vuf_ring) -> Result<Ring<'c>> {
    args::zero(&given.reserved, "the ring")?;
    args::zero(&[u64::from(given.reserved0)], "the ring")?;
    let base = match given.base_mode {
        VUF_RING_BASE_AT => Base::At(given.base),
        _ if given.base != 0 => {
            let text = "base of the ring is not zero without VUF_RING_BASE_AT";
            return Err(Error::invalid(text));
        }
        VUF_RING_BASE_NEW => Base::New,
        VUF_RING_BASE_RESUME => Base::Resume,
        _ => return Err(Error::invalid("base_mode of the ring is unknown")),
    };
    Ok(Ring {
        index: given.index,
        size: given.size,
        descriptor: given.descriptor,
        available: given.available,
        used: given.used,
        base,
        kick: c.field_fd(given.kick_fd, "kick_fd of the ring")?,
        call: c.optional_field_fd(given.call_fd, "call_fd of the ring")?,
        err: c.optional_field_fd(given.err_fd, "err_fd of the ring")?,
        indices: indices(given)?,
    })
}

/// Starts rings that are not started: all of these, or none.
///
/// After vuf_device_set_features() and the memory that they lie in. Once they run,
/// and after each loss, the kick and call descriptors are written, so that what was
/// made available or used meanwhile is noticed.
///
/// rings  array of n rings; read during the call, but see used_index and get_index
///        in struct vuf_ring. Their descriptors are kept: duplicated, until the
///        ring is stopped.
/// n      may be 0
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      an argument is NULL, or a ring is not valid: an index or a size
///                out of range, two with one index, an address that is not aligned
///                or does not lie in one region of the memory with all of its part,
///                base_mode or base, a descriptor that is 0, a reserved field
///   -EBADF       a descriptor is not open, or negative and not -1
///   -EBUSY       a ring is started already, or the in-flight buffer of those that
///                run has no room for more or larger ones
///   VUF_E_STATE  features were not stated, rings wait for vuf_device_reset(), where
///                a ring was stopped is not known (VUF_RING_BASE_RESUME)
/// or another negative errno from the system, as -EMFILE.
///
/// # Safety
/// `device` is null or a device that has not been freed; `rings` is null or points
/// to `n` rings, whose descriptors stay open during the call; used_index and
/// avail_index stay readable, and get_index may be called with `user`, from any
/// thread, until the ring is stopped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_start(
    device: *mut vuf_device,
    rings: *const vuf_ring,
    n: usize,
) -> c_int {
    let start = |device: &Device, c: &Args| {
        // SAFETY: any numbers will do, and pointers are the caller's promise.
        let given = unsafe { c.array_pointers(rings, n, "rings") }?;
        let rings: Result<Vec<_>> = given
            .iter()
            .map(|given| ring(c, given).map_err(|error| error.ring(given.index)))
            .collect();
        device.start(&rings?)
    };
    // SAFETY: the caller's promise.
    unsafe { handle::with_device(device, start) }
}

/// Gives a started ring another descriptor for the device to write
/// (SET_VRING_CALL), also while it runs; the new one is written once it is known.
///
/// index  the ring
/// fd     kept: duplicated, until the ring is stopped; -1 if the driver polls
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      device is NULL
///   -EBADF       fd is not open, or negative and not -1
///   VUF_E_STATE  the ring is not started
///
/// # Safety
/// `device` is null or a device that has not been freed; `fd` stays open during the
/// call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_set_call(
    device: *mut vuf_device,
    index: u32,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            device.set_call(index, c.optional_fd(fd, "fd")?)
        })
    }
}

/// Stops rings (GET_VRING_BASE). Rings that are not started are left as they are.
///
/// rings       array of n indices; NULL for all rings
/// n           0 where rings is NULL
/// mode        VUF_STOP_*
/// timeout_ms  how long to wait until they are out of use. 0: not at all; later
///             VUF_DEVICE_EVENT_APPLIED and vuf_device_get_quiet() tell. Inside a
///             function that the library calls it never waits.
/// quiet       set quiet->size before the call; the rest is filled in
///
/// Returns 0 in every state, also when the time has passed and quiesced is 0,
/// otherwise
///   -EINVAL      device or quiet is NULL, quiet->size is not set, an index is above
///                VUF_MAX_RING_INDEX, mode is unknown, or n is not 0 without rings
///   -E2BIG       quiet->size is above 65536
///
/// # Safety
/// `device` is null or a device that has not been freed; `rings` is null or points
/// to `n` numbers; `quiet` is null or points to `quiet->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_stop(
    device: *mut vuf_device,
    rings: *const u32,
    n: usize,
    mode: u32,
    timeout_ms: u32,
    quiet: *mut vuf_quiet,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let size = c.result_size(quiet, "quiet")?;
            let mode = match mode {
                VUF_STOP_DRAIN => StopMode::Drain,
                VUF_STOP_SKIP_DRAIN => StopMode::SkipDrain,
                VUF_STOP_ABANDON => StopMode::Abandon,
                _ => return Err(Error::invalid("mode is unknown")),
            };
            let named = match rings.is_null() {
                true if n == 0 => None,
                _ => Some(c.array(rings, n, "rings")?),
            };
            let wrong = named.and_then(|named| named.iter().find(|index| **index > MAX_RING_INDEX));
            if let Some(index) = wrong {
                return Err(Error::invalid("an index of rings is out of range").ring(*index));
            }
            device.stop(named, mode);
            tell_quiet(device, c, (quiet, size), timeout_ms)
        })
    }
}

/// Resets the device, as its driver does: no ring is started and no feature
/// acknowledged any more, and the in-flight buffer is gone. The memory and the
/// connection stay. Ends VUF_DEVICE_EVENT_NEEDS_RESET.
///
/// RESET_DEVICE, SET_STATUS or, where there is neither, stopping the rings.
///
/// timeout_ms  how long to wait until the rings are out of use, as for
///             vuf_device_stop()
/// quiet       set quiet->size before the call; the rest is filled in
///
/// Returns 0 in every state, otherwise
///   -EINVAL      an argument is NULL, or quiet->size is not set
///   -E2BIG       quiet->size is above 65536
///
/// # Safety
/// `device` is null or a device that has not been freed; `quiet` is null or points
/// to `quiet->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_reset(
    device: *mut vuf_device,
    timeout_ms: u32,
    quiet: *mut vuf_quiet,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let size = c.result_size(quiet, "quiet")?;
            device.reset();
            tell_quiet(device, c, (quiet, size), timeout_ms)
        })
    }
}

/// Tells where a ring stood when it was stopped, for a snapshot.
///
/// index  the ring
/// base   gets what vuf_client_set_vring_base() takes
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL
///   VUF_E_STATE  that is not known: the ring is started, was never, or was lost
///
/// # Safety
/// `device` is null or a device that has not been freed; `base` is null or points to
/// room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_vring_base(
    device: *const vuf_device,
    index: u32,
    base: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let base = c.output(base, "base")?;
            base.write(device.vring_base(index)?);
            Ok(())
        })
    }
}
