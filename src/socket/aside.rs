//! Short-lived threads for system calls that another process can delay: closing a received
//! descriptor and writing a shared eventfd. Neither a lock nor a deadline depends on them.

use nix::errno::Errno;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The number of these threads in the process. Each holds one descriptor.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// See [`THREADS`].
pub(crate) fn being_closed() -> usize {
    THREADS.load(Relaxed)
}

/// The limit for [`THREADS`]. A back-end that blocks this many delays the calls that need
/// another one.
const MAX_THREADS: usize = 64;

/// The stack size of a thread, in bytes. It only makes system calls.
const STACK: usize = 128 * 1024;

/// Closes a descriptor in a thread, or in place if no thread can be started.
pub(super) fn close(fd: OwnedFd) {
    if let Err(fd) = give(fd, close_it) {
        drop(fd);
    }
}

/// Adds 1 to an eventfd in a thread, which then closes it. Returns the eventfd if no thread
/// can be started.
pub(super) fn signal(eventfd: OwnedFd) -> Result<(), OwnedFd> {
    give(eventfd, signal_it)
}

/// The function of a thread; its argument is a descriptor. It must not unwind nor use
/// anything that needs a Rust thread.
type Work = extern "C" fn(*mut c_void) -> *mut c_void;

extern "C" fn close_it(fd: *mut c_void) -> *mut c_void {
    let fd = RawFd::try_from(fd.addr()).unwrap_or(-1);
    // SAFETY: the descriptor was given to this thread.
    unsafe { libc::close(fd) };
    THREADS.fetch_sub(1, Relaxed);
    std::ptr::null_mut()
}

extern "C" fn signal_it(fd: *mut c_void) -> *mut c_void {
    let one = 1_u64;
    let number = RawFd::try_from(fd.addr()).unwrap_or(-1);
    // SAFETY: the kernel reads 8 bytes, which live. A pipe without reader raises SIGPIPE,
    // which is blocked here.
    unsafe { libc::write(number, (&raw const one).cast(), size_of_val(&one)) };
    close_it(fd)
}

/// Starts a thread that owns the descriptor, or returns the descriptor.
fn give(fd: OwnedFd, work: Work) -> Result<(), OwnedFd> {
    let more = |count: usize| (count < MAX_THREADS).then(|| count.wrapping_add(1));
    if THREADS.fetch_update(Relaxed, Relaxed, more).is_err() {
        return Err(fd);
    }
    let fd = fd.into_raw_fd();
    start(fd, work).map_err(|_| {
        THREADS.fetch_sub(1, Relaxed);
        // SAFETY: no thread has got it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    })
}

fn check(errno: libc::c_int) -> nix::Result<()> {
    match errno {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Attributes of a detached thread with a small stack.
struct Attributes(libc::pthread_attr_t);

impl Attributes {
    fn new() -> nix::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: it makes the struct, which has room.
        check(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: init has succeeded.
        let mut this = Self(unsafe { attributes.assume_init() });
        let detached = libc::PTHREAD_CREATE_DETACHED;
        // SAFETY: init has succeeded.
        check(unsafe { libc::pthread_attr_setdetachstate(&raw mut this.0, detached) })?;
        // SAFETY: init has succeeded.
        check(unsafe { libc::pthread_attr_setstacksize(&raw mut this.0, STACK) })?;
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: init has succeeded.
        unsafe { libc::pthread_attr_destroy(&raw mut self.0) };
    }
}

/// Sets the signal mask of the calling thread and returns the previous one.
fn set_blocked(signals: &libc::sigset_t) -> libc::sigset_t {
    let mut before = *signals;
    // SAFETY: it reads one set and writes another; both live. With these it does not fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, signals, &raw mut before) };
    before
}

/// Starts a thread with all signals blocked: signals are for the program's own threads.
fn start(fd: RawFd, work: Work) -> nix::Result<()> {
    let number = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
    let argument = std::ptr::without_provenance_mut(number);
    let attributes = Attributes::new()?;
    let mut thread = MaybeUninit::uninit();
    let mut all = MaybeUninit::uninit();
    // SAFETY: it fills a set that has room, and does not fail.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: it was filled.
    let before = set_blocked(&unsafe { all.assume_init() });
    // SAFETY: the structs live until it returns; the thread uses no memory of this one.
    let made = unsafe {
        libc::pthread_create(thread.as_mut_ptr(), &raw const attributes.0, work, argument)
    };
    set_blocked(&before);
    check(made)
}
