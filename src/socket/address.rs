//! How a connection begins: connecting, accepting, and what is checked of a socket
//! that somebody else has made.

use super::wait::{Deadline, Watch, pause, wait};
use super::{set_receive_timeout, set_timeout};
use crate::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, accept4, connect, getpeername, getsockname,
    getsockopt, setsockopt, socket, sockopt,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// Connects to the socket at `path`. Bounded also where the listener's backlog
/// is full. With `wait_for_socket` nobody need listen there yet.
pub(crate) fn connect_to(
    path: &Path,
    wait_for_socket: bool,
    deadline: Deadline,
) -> Result<OwnedFd> {
    let failed = |errno| Error::os(errno, format_args!("cannot connect to {}", path.display()));
    let address = UnixAddr::new(path).map_err(failed)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    loop {
        // One attempt is made after the deadline: this process may have been
        // stopped while room was made.
        let last = deadline.passed();
        // A full backlog makes connect wait for room, and it cannot be polled
        // for; the send timeout bounds that wait.
        set_timeout(fd.as_fd(), sockopt::SendTimeout, deadline.remaining()).map_err(failed)?;
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(fd),
            Err(Errno::EINTR | Errno::EAGAIN) if !last => {}
            Err(Errno::EINTR | Errno::EAGAIN) => {
                return Err(timed_out(
                    "the back-end did not accept the connection: its backlog is full, is it in use?",
                ));
            }
            Err(Errno::ENOENT | Errno::ECONNREFUSED) if wait_for_socket => {
                if last {
                    return Err(timed_out("nobody listens on the socket yet"));
                }
                pause(deadline.no_later_than(CONNECT_SLICE)).map_err(failed)?;
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// How often a connection is tried to a socket that is not there yet.
const CONNECT_SLICE: Duration = Duration::from_millis(10);

/// Accepts one connection from a listening socket.
pub(crate) fn accept_from(listener: BorrowedFd<'_>, deadline: Deadline) -> Result<OwnedFd> {
    let failed = |errno| Error::os(errno, "cannot accept a connection");
    loop {
        let last = deadline.passed(); // as in connect_to()
        let watch = Watch {
            fd: listener,
            read: true,
            write: false,
            end: false,
        };
        let [ready] = wait([watch], deadline).map_err(failed)?;
        if ready.readable || last {
            match accept_briefly(listener) {
                Ok(fd) => return Ok(fd),
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        if last {
            return Err(timed_out("no back-end connected to the listening socket"));
        }
    }
}

/// How long one accept may block.
const ACCEPT_SLICE: Duration = Duration::from_millis(10);

/// Accepts what is there. Somebody else may have taken it since it was seen, and
/// a listener that blocks would then wait for the next one without a bound; so
/// its receive timeout is set for the moment, by one thread at a time.
fn accept_briefly(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let before = getsockopt(&listener, sockopt::ReceiveTimeout)?;
    set_receive_timeout(listener, Some(ACCEPT_SLICE))?;
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC);
    let restored = setsockopt(&listener, sockopt::ReceiveTimeout, &before);
    // SAFETY: accept4 just made this descriptor for us.
    let accepted = accepted.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })?;
    restored.map(|()| accepted)
}

fn timed_out(message: &'static str) -> Error {
    Error::new(Kind::TimedOut, message)
}

/// What kind of socket is expected of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// One end of a connection.
    Connected,
    /// Accepts connections.
    Listening,
}

/// Checks that a descriptor is a Unix stream socket in the given role.
pub(crate) fn check(fd: BorrowedFd<'_>, role: Role) -> Result<()> {
    let failed = |errno| {
        Error::new(
            Kind::Argument(errno),
            match errno {
                Errno::EBADF => "fd is not open",
                Errno::ENOTSOCK => "fd is not a socket",
                _ => "fd cannot be examined",
            },
        )
    };
    let kind = getsockopt(&fd, sockopt::SockType).map_err(failed)?;
    // An address of another family cannot be read as a Unix one.
    let unix = getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
    if kind != SockType::Stream || !unix {
        return Err(Error::invalid("fd is not a Unix stream socket"));
    }
    let listening = getsockopt(&fd, sockopt::AcceptConn).map_err(failed)?;
    match (role, listening) {
        (Role::Connected, true) => {
            Err(Error::invalid("fd is a listening socket, not a connection"))
        }
        (Role::Listening, false) => Err(Error::invalid("fd is not a listening socket")),
        (Role::Listening, true) => Ok(()),
        (Role::Connected, false) => match getpeername::<UnixAddr>(fd.as_raw_fd()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::new(
                Kind::Argument(errno),
                "fd is a socket that is not connected",
            )),
        },
    }
}
