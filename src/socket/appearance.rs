//! Noticing that a socket appears at a path, with inotify.

use super::above_standard;
use super::listen::{abstract_name, place};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Ready to be read when something may have appeared.
///
/// It watches for one event and then has to be [armed](Self::arm) again, so that a busy
/// directory neither fills the kernel's queue nor wakes the event loop more often than
/// the caller chooses.
#[derive(Debug)]
pub(crate) struct Appearance(Inotify);

impl Appearance {
    /// Fails where nothing can be watched for: the name is abstract, the user has too
    /// many of these, or system calls are filtered.
    pub(crate) fn new(path: &Path) -> nix::Result<Self> {
        if abstract_name(path).is_some() {
            return Err(Errno::EOPNOTSUPP);
        }
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let fd = above_standard(Inotify::init(flags)?.into())?;
        // SAFETY: it is one.
        let this = Self(unsafe { Inotify::from_owned_fd(fd) });
        this.arm(path)?;
        Ok(this)
    }

    /// Watches the directory of the path, or the closest one above it that exists, for
    /// the next event. The end of a directory is one that need not be asked for.
    pub(crate) fn arm(&self, path: &Path) -> nix::Result<()> {
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_ONESHOT;
        let mut directory = place(path)?.0;
        loop {
            match (self.0.add_watch(directory, mask), directory.parent()) {
                (Ok(_), _) => return Ok(()),
                (Err(Errno::ENOENT | Errno::ENOTDIR), Some(above)) => {
                    directory = match above.as_os_str().is_empty() {
                        true => Path::new("."),
                        false => above,
                    };
                }
                (Err(errno), _) => return Err(errno),
            }
        }
    }

    /// Whether something has happened since this was asked last.
    pub(crate) fn happened(&self) -> bool {
        // What has happened does not matter, nor how often.
        self.0.read_events().is_ok()
    }
}

impl AsFd for Appearance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
