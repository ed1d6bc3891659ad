//! What may take as long as another process likes. A thread of its own does it, so neither
//! a lock nor a deadline depends on it.

use nix::errno::Errno;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many threads there are, each with a descriptor, in the whole process.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// See [`THREADS`].
pub(crate) fn being_closed() -> usize {
    THREADS.load(Relaxed)
}

/// Most of these. A back-end that holds up so many delays the calls that need more.
const MAX_THREADS: usize = 64;

/// Bytes of the stack of such a thread, which makes a few system calls.
const STACK: usize = 128 * 1024;

/// Closes it. Where there can be no thread, the caller waits for that.
pub(super) fn close(fd: OwnedFd) {
    if let Err(fd) = give(fd, close_it) {
        drop(fd);
    }
}

/// Adds 1 to an eventfd, however long that takes, and closes it. The eventfd comes back
/// where there can be no thread.
pub(super) fn signal(eventfd: OwnedFd) -> Result<(), OwnedFd> {
    give(eventfd, signal_it)
}

/// What a thread does with a descriptor. It calls nothing that could unwind or needs a
/// thread of Rust.
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
    // SAFETY: the kernel reads 8 bytes, which live. The thread gets no signal for a pipe
    // that nobody reads.
    unsafe { libc::write(number, (&raw const one).cast(), size_of_val(&one)) };
    close_it(fd)
}

/// Has a thread do it, or gives the descriptor back.
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

/// How the thread is made: detached, and with a small stack.
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

/// Sets the signals that this thread does not get. Returns those that it did not get before.
fn set_blocked(signals: &libc::sigset_t) -> libc::sigset_t {
    let mut before = *signals;
    // SAFETY: it reads one set and writes another; both live. With these it does not fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, signals, &raw mut before) };
    before
}

/// Starts the thread. It gets no signals: those are for the threads of the program.
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
