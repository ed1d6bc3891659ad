//! Descriptors that a back-end has sent. How long it takes to close one is up to the owner
//! of what is behind it: a socket may linger, and a file of a file system that is a program
//! is closed when that program says so. So a thread of its own closes each: neither a lock
//! nor a deadline depends on it.

use super::origin::Origin;
use super::{Received, aside, receive, stop_reading, unread};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many reads empty a socket at most: more than one with the default buffer holds.
const MAX_READS: usize = 1024;

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
            aside::close(fd);
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
        aside::close(fd);
    }
}
