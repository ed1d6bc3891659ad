//! What is behind a pointer that C holds, a client or a device, and who is inside.

use super::args::Args;
use super::boundary::{Uncancelled, catch, guard};
use super::programs::Programs;
use super::programs::types::{vuf_backend_process, vuf_backend_programs};
use super::types::vuf_client;
use super::virtual_device::types::{vuf_device, vuf_memory_group};
use crate::backend_client::BackendClient;
use crate::device::{Device, MemoryGroup};
use crate::error::{Error, Kind, Result};
use crate::message::Request;
use crate::programs::BackendProcess;
use crate::socket::Origin;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// In [`Handle::inside`]: the handle is being freed.
const FREEING: u32 = 1 << 31;

/// A struct that C knows only by pointers, and what is behind one.
pub(super) trait Opaque: Sized {
    /// As arguments and errors call it.
    const NAME: &'static str;
    type Object;

    /// Calls under way end, and later ones do not wait any more.
    fn cancel(object: &Self::Object);
    /// A call has panicked.
    fn poison(object: &Self::Object, panic: &Error);
    /// Nobody uses it any more but through its handle, which may have to be waited
    /// for. Whether that could be.
    fn only_here(_object: &Self::Object) -> bool {
        true
    }
    /// Drops a forked child's copy, and leaves the parent's connection alone.
    fn close_in_child(object: Self::Object);
}

impl Opaque for vuf_client {
    const NAME: &'static str = "client";
    type Object = BackendClient;

    fn cancel(client: &BackendClient) {
        client.abort();
    }
    fn poison(client: &BackendClient, panic: &Error) {
        client.poison(panic);
    }
    fn close_in_child(client: BackendClient) {
        client.close_in_child();
    }
}

impl Opaque for vuf_device {
    const NAME: &'static str = "device";
    /// Groups hold on to it as well.
    type Object = Arc<Device>;

    fn cancel(device: &Arc<Device>) {
        device.abort();
    }
    fn poison(device: &Arc<Device>, _panic: &Error) {
        device.abort();
    }
    fn only_here(device: &Arc<Device>) -> bool {
        device.leave_groups()
    }
    fn close_in_child(device: Arc<Device>) {
        // Otherwise a thread of the parent was in a call on a group.
        if let Some(device) = Arc::into_inner(device) {
            device.close_in_child();
        }
    }
}

impl Opaque for vuf_memory_group {
    const NAME: &'static str = "group";
    type Object = MemoryGroup;

    fn cancel(_group: &MemoryGroup) {}
    fn poison(_group: &MemoryGroup, _panic: &Error) {}
    fn close_in_child(group: MemoryGroup) {
        // Its lock may be held by a thread that is not here.
        std::mem::forget(group);
    }
}

impl Opaque for vuf_backend_programs {
    const NAME: &'static str = "programs";
    type Object = Programs;

    fn cancel(_programs: &Programs) {}
    fn poison(_programs: &Programs, _panic: &Error) {}
    fn close_in_child(programs: Programs) {
        drop(programs);
    }
}

impl Opaque for vuf_backend_process {
    const NAME: &'static str = "process";
    /// A device holds on to it as well.
    type Object = Arc<BackendProcess>;

    fn cancel(_process: &Arc<BackendProcess>) {}
    fn poison(_process: &Arc<BackendProcess>, _panic: &Error) {}
    fn only_here(process: &Arc<BackendProcess>) -> bool {
        // There is nobody to tell. Who waits for its end is woken, also where it hangs
        // or may not be killed; nor is it waited for once more when it is dropped.
        let _ = process.kill();
        process.cancel();
        true
    }
    fn close_in_child(process: Arc<BackendProcess>) {
        // Otherwise a device holds on to it, too.
        if let Some(process) = Arc::into_inner(process) {
            process.close_in_child();
        }
    }
}

/// What such a pointer really points to.
struct Handle<O: Opaque> {
    object: O::Object,
    /// How many threads are inside, and [`FREEING`]. A futex, as a thread that
    /// leaves may not touch the handle after the count has dropped.
    inside: AtomicU32,
    /// The process that made it: in a forked child nobody is inside.
    origin: Origin,
}

/// Makes a handle.
pub(super) fn new<O: Opaque>(object: O::Object) -> *mut O {
    let handle = Handle::<O> {
        object,
        inside: AtomicU32::new(0),
        origin: Origin::here(),
    };
    Box::into_raw(Box::new(handle)).cast()
}

/// A thread inside a handle.
struct Inside<'a, O: Opaque>(&'a Handle<O>);

impl<'a, O: Opaque> Inside<'a, O> {
    fn enter(handle: &'a Handle<O>) -> Result<Self> {
        if !handle.origin.is_here() {
            // What the parent's threads were changing at the fork is half changed.
            let text = format!("the {} belongs to the process that has forked", O::NAME);
            return Err(Error::new(Kind::State, text));
        }
        let before = handle.inside.fetch_add(1, SeqCst);
        let this = Self(handle);
        if before & FREEING != 0 {
            let text = format!("the {} is being freed", O::NAME);
            return Err(Error::new(Kind::Canceled, text));
        }
        Ok(this)
    }
}

impl<O: Opaque> Drop for Inside<'_, O> {
    fn drop(&mut self) {
        let inside = &raw const self.0.inside;
        if self.0.inside.fetch_sub(1, SeqCst) == FREEING.wrapping_add(1) {
            futex(inside, libc::FUTEX_WAKE, u32::MAX >> 1);
        }
    }
}

/// A call that this thread is in, and the call from inside which it came: through
/// one of the caller's functions.
struct Frame {
    /// Only its address counts.
    handle: *const (),
    outer: *const Frame,
}

thread_local! {
    static INNERMOST: Cell<*const Frame> = const { Cell::new(std::ptr::null()) };
}

impl Frame {
    /// Runs `body` as a call on this handle.
    fn run<O: Opaque, T>(handle: &Handle<O>, body: impl FnOnce() -> T) -> T {
        struct Leave(*const Frame);
        impl Drop for Leave {
            fn drop(&mut self) {
                INNERMOST.set(self.0);
            }
        }
        let frame = Self {
            handle: std::ptr::from_ref(handle).cast(),
            outer: INNERMOST.get(),
        };
        INNERMOST.set(&raw const frame);
        let _leave = Leave(frame.outer);
        body()
    }

    /// Whether this thread is in a call on this handle.
    fn within<O: Opaque>(handle: &Handle<O>) -> bool {
        let mut next = INNERMOST.get();
        // SAFETY: null, or on this thread's stack in `run`, which has not returned.
        while let Some(frame) = unsafe { next.as_ref() } {
            if frame.handle == std::ptr::from_ref(handle).cast() {
                return true;
            }
            next = frame.outer;
        }
        false
    }
}

/// Only the address counts for a wake, which may come after the memory is gone.
fn futex(word: *const AtomicU32, operation: libc::c_int, value: u32) {
    let operation = operation | libc::FUTEX_PRIVATE_FLAG;
    let forever = std::ptr::null::<libc::timespec>();
    // SAFETY: the kernel reads the word for a wait, during which the caller
    // keeps it alive, and uses no more than its address for a wake.
    unsafe { libc::syscall(libc::SYS_futex, word, operation, value, forever) };
}

/// # Safety
/// `opaque` is null or came from [`new`] and has not been freed.
unsafe fn handle<'a, O: Opaque>(opaque: *const O) -> Result<&'a Handle<O>> {
    // SAFETY: as above.
    unsafe { opaque.cast::<Handle<O>>().as_ref() }
        .ok_or_else(|| Error::invalid(format!("{} is NULL", O::NAME)))
}

/// Which request a call is about, and which ring, as far as it is about one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About {
    request: Option<Request>,
    ring: Option<u32>,
}

impl From<Request> for About {
    fn from(request: Request) -> Self {
        Self {
            request: Some(request),
            ring: None,
        }
    }
}

impl From<(Request, u32)> for About {
    fn from((request, ring): (Request, u32)) -> Self {
        Self {
            request: Some(request),
            ring: Some(ring),
        }
    }
}

impl About {
    /// Adds what is known, where a deeper layer has not said it.
    fn name(self, mut error: Error) -> Error {
        error.request = error.request.or(self.request);
        error.ring = error.ring.or(self.ring);
        error
    }
}

/// Runs a call: 0, or the code of its failure. A panic poisons what it was on.
///
/// # Safety
/// `opaque` is null or came from [`new`] and has not been freed; what `body`
/// reads through its [`Args`] is as [`Args::new`] demands.
unsafe fn with<O: Opaque>(
    opaque: *const O,
    about: About,
    body: impl FnOnce(&O::Object, &Args) -> Result<()>,
) -> i32 {
    let mut body = Some(body);
    // SAFETY: passed on from the caller.
    unsafe {
        run(opaque, about, &mut |object, args| {
            body.take().map_or(Ok(()), |body| body(object, args))
        })
    }
}

/// The same for a `body` that runs once. A function of its own, and not once more in
/// each that is exported: they would be half of the library.
///
/// # Safety
/// As [`with`] demands.
#[inline(never)]
unsafe fn run<O: Opaque>(
    opaque: *const O,
    about: About,
    body: &mut dyn FnMut(&O::Object, &Args) -> Result<()>,
) -> i32 {
    guard(|| {
        // SAFETY: passed on from the caller.
        let handle = unsafe { handle(opaque) }?;
        let inside = Inside::enter(handle)?;
        let object = &inside.0.object;
        // SAFETY: passed on from the caller.
        let args = unsafe { Args::new() };
        catch(|| Frame::run(handle, || body(object, &args)))
            .unwrap_or_else(|panic| {
                O::poison(object, &panic);
                Err(panic)
            })
            .map_err(|error| about.name(error))
    })
}

/// Runs a call on a client: 0, or the code of its failure. A panic poisons it.
///
/// # Safety
/// `client` is null or came from [`new`] and has not been freed; what `body`
/// reads through its [`Args`] is as [`Args::new`] demands.
pub(super) unsafe fn with_client(
    client: *const vuf_client,
    about: impl Into<About>,
    body: impl FnOnce(&BackendClient, &Args) -> Result<()>,
) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe { with(client, about.into(), body) }
}

/// Runs a call on a device: 0, or the code of its failure. After a panic nothing
/// is done with it any more.
///
/// # Safety
/// `device` is null or came from [`new`] and has not been freed; what `body`
/// reads through its [`Args`] is as [`Args::new`] demands.
pub(super) unsafe fn with_device(
    device: *const vuf_device,
    body: impl FnOnce(&Device, &Args) -> Result<()>,
) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe {
        with(device, About::default(), |device: &Arc<Device>, c| {
            body(device, c)
        })
    }
}

/// Runs a call on a group: 0, or the code of its failure.
///
/// # Safety
/// `group` is null or came from [`new`] and has not been freed; what `body` reads
/// through its [`Args`] is as [`Args::new`] demands.
pub(super) unsafe fn with_group(
    group: *const vuf_memory_group,
    body: impl FnOnce(&MemoryGroup, &Args) -> Result<()>,
) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe { with(group, About::default(), body) }
}

/// Runs a call on a list of programs: 0, or the code of its failure.
///
/// # Safety
/// `programs` is null or came from [`new`] and has not been freed; what `body` reads
/// through its [`Args`] is as [`Args::new`] demands.
pub(super) unsafe fn with_programs(
    programs: *const vuf_backend_programs,
    body: impl FnOnce(&Programs, &Args) -> Result<()>,
) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe { with(programs, About::default(), body) }
}

/// Runs a call on a process: 0, or the code of its failure.
///
/// # Safety
/// `process` is null or came from [`new`] and has not been freed; what `body` reads
/// through its [`Args`] is as [`Args::new`] demands.
pub(super) unsafe fn with_process(
    process: *const vuf_backend_process,
    body: impl FnOnce(&Arc<BackendProcess>, &Args) -> Result<()>,
) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe { with(process, About::default(), body) }
}

/// The device behind a pointer, for who keeps it.
///
/// # Safety
/// `device` is null or came from [`new`] and has not been freed.
pub(super) unsafe fn shared(device: *const vuf_device) -> Result<Arc<Device>> {
    // SAFETY: passed on from the caller.
    let handle = unsafe { handle(device) }?;
    let inside = Inside::enter(handle)?;
    Ok(Arc::clone(&inside.0.object))
}

/// The process behind a pointer, likewise.
///
/// # Safety
/// `process` is null or came from [`new`] and has not been freed.
pub(super) unsafe fn shared_process(
    process: *const vuf_backend_process,
) -> Result<Arc<BackendProcess>> {
    // SAFETY: passed on from the caller.
    let handle = unsafe { handle(process) }?;
    let inside = Inside::enter(handle)?;
    Ok(Arc::clone(&inside.0.object))
}

/// Ends what is under way. Async-signal-safe unless it fails.
///
/// # Safety
/// `opaque` is null or came from [`new`] and has not been freed.
pub(super) unsafe fn abort<O: Opaque>(opaque: *const O) -> Result<()> {
    let _uncancelled = Uncancelled::new();
    // SAFETY: passed on from the caller.
    let handle = unsafe { handle(opaque) }?;
    Inside::enter(handle).map(|inside| O::cancel(&inside.0.object))
}

/// Frees a handle: cancels what is under way, waits until nobody is inside, and
/// closes the connection.
///
/// # Safety
/// `opaque` is null or came from [`new`], has not been freed, and no call on it
/// begins after this one.
pub(super) unsafe fn free<O: Opaque>(opaque: *mut O) {
    let _uncancelled = Uncancelled::new();
    // SAFETY: passed on from the caller.
    let Ok(handle) = (unsafe { handle(opaque.cast_const()) }) else {
        return;
    };
    let forked = !handle.origin.is_here();
    // After a fork the count is that of the parent, whose threads are not here.
    if !forked {
        let mut inside = handle.inside.fetch_or(FREEING, SeqCst) | FREEING;
        // As below: this thread is in a call on a group.
        if !O::only_here(&handle.object) {
            return;
        }
        if inside != FREEING {
            O::cancel(&handle.object);
            // It is inside itself, and would wait for ever. Not freed, rather.
            if Frame::within(handle) {
                return;
            }
        }
        while inside != FREEING {
            futex(&raw const handle.inside, libc::FUTEX_WAIT, inside);
            inside = handle.inside.load(SeqCst);
        }
    }
    // SAFETY: made by Box::into_raw in `new`, and nobody else uses it any more.
    let handle = unsafe { Box::from_raw(opaque.cast::<Handle<O>>()) };
    if forked {
        O::close_in_child(handle.object);
    }
}
