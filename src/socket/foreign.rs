//! Descriptors that a back-end has sent. How long it takes to close one is up to the owner
//! of what is behind it: a socket may linger, and a file of a file system that is a program
//! is closed when that program says so. So a thread of its own closes each: neither a lock
//! nor a deadline depends on it.

use super::origin::Origin;
use super::{Received, receive, stop_reading, unread};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::ffi::c_void;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many descriptors are being closed by threads, in the whole process.
static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// See [`CLOSING`].
pub(crate) fn being_closed() -> usize {
    CLOSING.load(Relaxed)
}

/// Most of these. A back-end that holds up so many delays the calls that get more.
const MAX_CLOSING: usize = 64;

/// How many reads empty a socket at most: more than one with the default buffer holds.
const MAX_READS: usize = 1024;

/// Bytes of the stack of such a thread, which makes two system calls.
const STACK: usize = 128 * 1024;

/// A descriptor that a back-end has sent. It is dropped without a wait.
#[derive(Debug)]
pub(crate) struct ForeignFd(ManuallyDrop<OwnedFd>);

impl ForeignFd {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }

    /// For the caller, who closes it.
    pub(crate) fn into_fd(self) -> OwnedFd {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is neither used nor dropped after this.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl AsFd for ForeignFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for ForeignFd {
    fn drop(&mut self) {
        // SAFETY: the field is not used after this.
        let fd = unsafe { ManuallyDrop::take(&mut self.0) };
        // Only a file in memory has seals, and the kernel owns it: closing it asks no process.
        if fcntl(&fd, FcntlArg::F_GET_SEALS).is_err() {
            close_aside(fd);
        }
    }
}

/// The socket of a connection with a back-end. Messages that were not read would be
/// dropped with it, and the descriptors in them closed; so they are read first.
#[derive(Debug)]
pub(crate) struct PeerSocket {
    fd: ManuallyDrop<OwnedFd>,
    /// A forked child may not end the connection.
    origin: Origin,
}

impl PeerSocket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd: ManuallyDrop::new(fd),
            origin: Origin::here(),
        }
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PeerSocket {
    fn drop(&mut self) {
        // SAFETY: the field is not used after this.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        if !self.origin.is_here() {
            return; // the parent has it, too
        }
        // From here on nothing more comes.
        stop_reading(fd.as_fd());
        let mut bytes = [0; 4096];
        for _ in 0..MAX_READS {
            if unread(fd.as_fd()) == Ok(0) {
                return;
            }
            match receive(fd.as_fd(), &mut bytes, false, drop) {
                Ok(Received { bytes: 1.., .. }) | Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        close_aside(fd);
    }
}

/// Has a thread close it; or closes it, where there can be no thread.
fn close_aside(fd: OwnedFd) {
    let more = |count: usize| (count < MAX_CLOSING).then(|| count.wrapping_add(1));
    if CLOSING.fetch_update(Relaxed, Relaxed, more).is_err() {
        return;
    }
    let fd = fd.into_raw_fd();
    if start(fd).is_err() {
        CLOSING.fetch_sub(1, Relaxed);
        // SAFETY: no thread has got it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// What the thread does. It calls nothing that could unwind or needs a thread of Rust.
extern "C" fn close(fd: *mut c_void) -> *mut c_void {
    let fd = RawFd::try_from(fd.addr()).unwrap_or(-1);
    // SAFETY: the descriptor was given to this thread.
    unsafe { libc::close(fd) };
    CLOSING.fetch_sub(1, Relaxed);
    std::ptr::null_mut()
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
fn start(fd: RawFd) -> nix::Result<()> {
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
        libc::pthread_create(
            thread.as_mut_ptr(),
            &raw const attributes.0,
            close,
            argument,
        )
    };
    set_blocked(&before);
    check(made)
}
