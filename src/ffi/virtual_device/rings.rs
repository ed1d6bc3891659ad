//! The rings of a device, and its reset.

use super::super::args::{self, Args};
use super::super::handle;
use super::tell_quiet;
use super::types::*;
use crate::device::{Base, Device, Ring, RingIndices, StopMode};
use crate::error::{Error, Result};
use crate::message::MAX_RING_INDEX;
use crate::room::room_for;
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
        // SAFETY: aligned, and vuf_device_start() asks the caller to keep it mapped until
        // the ring is quiet. Guest and back-end write it at any time, so it
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
/// Comes after vuf_device_set_features() and the memory that they lie in. Once they run,
/// and after each loss, the kick and call descriptors are written, so that requests that
/// were made available or used meanwhile are noticed.
///
/// A ring that begins anew never gets an in-flight buffer with requests of its last run,
/// and a ring with requests in a buffer gets no other. Rings that run are stopped for a
/// moment if the buffer has no room for the new ones.
///
/// rings  array of n rings; read during the call, but see used_index and get_index
///        in struct vuf_ring. Their descriptors are kept: duplicated, until the
///        ring is stopped.
/// n      may be 0
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      an argument is NULL, or a ring is not valid: an index or a size
///                out of range, a size above max_ring_size of the options, an index that
///                the back-end cannot have (max_rings in
///                struct vuf_device_info), two with one index, an address that is not
///                aligned or does not lie in one region of the memory with all of its
///                part, base_mode or base, a descriptor that is 0, or a file, a
///                directory or a device and no eventfd, a reserved field
///   -EBADF       a descriptor is not open, or negative and not -1
///   -EBUSY       a ring is started already.
///                Or it would begin anew, and has unfinished requests of its last run in
///                the in-flight buffer, which another ring uses: resume it
///                (VUF_RING_BASE_RESUME) and let it complete them, or stop the other
///                rings and start all anew in one call, or reset the device.
///                Or the buffer is too small for it, and another ring has unfinished
///                requests in it: stop that one with VUF_STOP_DRAIN first, or open the
///                device with a larger num_rings and max_ring_size. The text names the
///                ring.
///   VUF_E_STATE  features were not stated, rings wait for vuf_device_reset(), or
///                there is no base to resume from (vuf_device_get_vring_base())
/// or another negative errno from the system, such as -EMFILE.
///
/// # Safety
/// `device` is null or a device that has not been freed; `rings` is null or points
/// to `n` rings, whose descriptors stay open during the call; used_index and
/// avail_index stay readable, and get_index may be called with `user`, from any
/// thread, until vuf_device_stop() or vuf_device_reset() was called and `quiesced` is 1,
/// or the device is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_start(
    device: *mut vuf_device,
    rings: *const vuf_ring,
    n: usize,
) -> c_int {
    let start = |device: &Device, c: &Args| {
        // SAFETY: any numbers will do, and pointers are the caller's promise.
        let given = unsafe { c.array_pointers(rings, n, "rings") }?;
        room_for::<Ring<'_>>(n)?;
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
/// (SET_VRING_CALL), even while it runs. The new one is written once the back-end has it.
/// If the back-end refuses it (VUF_DEVICE_EVENT_REFUSED), the ring keeps the old one.
///
/// Some back-ends (crosvm, OpenVMM, Alioth) acknowledge this for a ring that runs, and
/// go on writing the first descriptor. One descriptor for the life of the ring works
/// with all; so does stopping the ring and starting it again.
///
/// index  the ring
/// fd     kept: duplicated, until the ring is stopped; -1 if the driver polls
///
/// Returns 0 once it is recorded, otherwise
///   -EINVAL      device is NULL, or fd is a file, a directory or a device
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

/// Stops rings (GET_VRING_BASE). Rings that are not started are left as they are. Each
/// stop has its own mode.
///
/// A ring that is drained counts as stopped once its used index has reached the base that
/// the back-end has returned, where that index is known (used_index or get_index in
/// struct vuf_ring). If it has not within 1 s, the connection is lost, with the number of
/// unfinished requests, and quiesced is 0 until the back-end is gone.
///
/// rings       array of n indices; NULL for all rings
/// n           0 where rings is NULL
/// mode        VUF_STOP_*
/// timeout_ms  how long to wait until they are out of use. 0: not at all; then
///             vuf_device_get_quiet() says when. Inside a function that the library
///             calls it never waits.
/// quiet       set quiet->size before the call; the rest is filled in
///
/// Returns 0 in every state, even if the time has passed and quiesced is 0:
/// vuf_last_error() and vuf_last_error_info() then say why. Otherwise
///   -EINVAL      device or quiet is NULL, quiet->size is too small, an index is above
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
/// acknowledged any longer, no ring has a base, and the in-flight buffer is gone. The
/// memory and the connection stay. Rings that wait for a reset can be started again
/// afterwards. A VUF_DEVICE_EVENT_NEEDS_RESET or VUF_DEVICE_EVENT_RECOVERED from before is
/// not returned after it.
///
/// Sends RESET_DEVICE or SET_STATUS 0; a back-end that has agreed to neither is reset
/// by stopping its rings. quiesced is 1 only once that is acknowledged.
///
/// timeout_ms  how long to wait until the rings are out of use, as for
///             vuf_device_stop()
/// quiet       set quiet->size before the call; the rest is filled in
///
/// Returns 0 in every state, as vuf_device_stop() does, otherwise
///   -EINVAL      an argument is NULL, or quiet->size is too small
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

/// Returns the device status that the guest is to read (virtio specification, "Device
/// Status Field"): what its driver has written, with DEVICE_NEEDS_RESET (64) where rings
/// cannot go on before vuf_device_reset().
///
/// A driver that has written 0 waits until it reads 0. It reads ACKNOWLEDGE (1) until
/// the reset is done and no back-end uses the rings. Takes a lock that is never held
/// while anything waits: vCPU threads may call it.
///
/// written  what the driver has written last; 0 after vuf_device_reset()
/// status   gets what it reads
///
/// Returns 0, or -EINVAL if an argument is NULL.
///
/// # Safety
/// `device` is null or a device that has not been freed; `status` is null or points
/// to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_get_virtio_status(
    device: *const vuf_device,
    written: u8,
    status: *mut u8,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_device(device, |device, c| {
            let status = c.output(status, "status")?;
            status.write(device.virtio_status(written));
            Ok(())
        })
    }
}

/// Returns the base at which a ring was stopped, for a snapshot. It succeeds only if
/// resuming from the base loses no request, as far as the policy of the device promises
/// that.
///
/// A ring that was stopped while there was no back-end has the base from which it would
/// have gone on. One whose stop was cut off by a loss gets its base once that back-end is
/// gone. After VUF_STOP_ABANDON rings that ran have none.
///
/// index  the ring
/// base   gets what vuf_client_set_vring_base() takes
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL
///   VUF_E_STATE  there is none, and the text says why: the ring is not stopped, was
///                never started (or not since a reset), is being stopped, was lost while
///                it ran and how far it got is not known, or has unfinished requests in
///                an in-flight buffer that was replaced or that the back-end does not
///                support
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
