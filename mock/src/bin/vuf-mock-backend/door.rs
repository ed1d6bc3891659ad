//! Where connections come from.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Between two attempts to connect, in milliseconds.
const AGAIN: u16 = 50;

/// See the module.
#[derive(Debug)]
pub enum Door<'a> {
    /// The front-end connects.
    Listener(UnixListener, &'a Path),
    /// The front-end listens.
    Caller(&'a Path),
}

impl<'a> Door<'a> {
    /// Binds the path; a socket that a dead back-end has left is taken over.
    pub fn listen(path: &'a Path) -> Result<Self, String> {
        let bind = || UnixListener::bind(path);
        let bound = match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                fs::remove_file(path).and_then(|()| bind())
            }
            bound => bound,
        };
        let bound = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = bound.map_err(|error| named(path, &error))?;
        Ok(Self::Listener(listener, path))
    }

    /// The next connection; `None` as soon as `stop` is readable.
    pub fn next(&self, stop: BorrowedFd<'_>) -> Result<Option<UnixStream>, String> {
        loop {
            let (path, connection) = match self {
                Self::Listener(listener, path) => {
                    if stopped(stop, Some(listener.as_fd()))? {
                        return Ok(None);
                    }
                    (path, listener.accept().map(|(connection, _)| connection))
                }
                Self::Caller(path) => (path, UnixStream::connect(path)),
            };
            match connection {
                Ok(connection) => return Ok(Some(connection)),
                Err(error) if passes(&error) => {}
                Err(error) => return Err(named(path, &error)),
            }
            if stopped(stop, None)? {
                return Ok(None);
            }
        }
    }
}

impl Drop for Door<'_> {
    fn drop(&mut self) {
        if let Self::Listener(_, path) = self {
            _ = fs::remove_file(path);
        }
    }
}

/// An error of this path.
pub fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn is_dead(path: &Path) -> bool {
    let socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    socket && UnixStream::connect(path).is_err_and(refused)
}

/// Whether it is worth trying again.
fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, Interrupted, NotFound, WouldBlock};
    let kinds = [
        ConnectionAborted,
        ConnectionRefused,
        Interrupted,
        NotFound,
        WouldBlock,
    ];
    kinds.contains(&error.kind())
}

/// Waits for the other one, or else a moment; whether it is told to stop.
fn stopped(stop: BorrowedFd<'_>, other: Option<BorrowedFd<'_>>) -> Result<bool, String> {
    let timeout = if other.is_some() {
        PollTimeout::NONE
    } else {
        AGAIN.into()
    };
    let fds = [Some(stop), other].into_iter().flatten();
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, timeout).map_err(|error| format!("poll: {error}"))?;
    Ok(fds.first().and_then(PollFd::any) == Some(true))
}
