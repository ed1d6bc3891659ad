//! How a connection begins: connecting, accepting, and what is checked of a socket
//! that somebody else has made.

use super::wait::{Deadline, Watch, pause, wait};
use super::{above_standard, set_receive_timeout, set_timeout};
use crate::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, accept4, bind, connect, getpeername, getsockname,
    getsockopt, setsockopt, socket, sockopt,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
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
    .and_then(above_standard)
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
        if readable(listener, deadline).map_err(failed)? || last {
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

fn readable(fd: BorrowedFd<'_>, deadline: Deadline) -> nix::Result<bool> {
    let watch = Watch {
        fd,
        read: true,
        write: false,
        end: false,
    };
    wait([watch], deadline).map(|[ready]| ready.readable)
}

/// How long one accept may block, and how long a turn of another may last.
const ACCEPT_SLICE: Duration = Duration::from_millis(10);
const LONGEST_TURN: Duration = Duration::from_millis(50);

/// Accepts a connection that is there. Another thread or process may have taken it
/// since it was seen, and a listener that blocks would then wait for the next one without
/// a bound; so its receive timeout is set for the moment. One that does not block is left
/// as it is.
fn accept_briefly(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(listener, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        return accept(listener);
    }
    let _turn = turn(listener)?;
    if !readable(listener, Deadline::after(Some(Duration::ZERO)))? {
        return Err(Errno::EAGAIN);
    }
    let before = getsockopt(&listener, sockopt::ReceiveTimeout)?;
    set_receive_timeout(listener, Some(ACCEPT_SLICE))?;
    let accepted = accept(listener);
    let restored = setsockopt(&listener, sockopt::ReceiveTimeout, &before);
    let accepted = accepted?;
    restored.map(|()| accepted)
}

fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 just made this descriptor for us.
    above_standard(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until no other thread or process changes this listener through this library:
/// what each of them finds there is what the caller has set, and what it sets stays until
/// it has accepted. A turn is an abstract name that is made of the cookie of the listener,
/// which all who share the listener see; it ends with its socket.
///
/// The wait is bounded. If it fails, a hostile process has the name, or one that was stopped
/// in the middle of its turn; the accept goes on without a turn.
fn turn(listener: BorrowedFd<'_>) -> nix::Result<Option<OwnedFd>> {
    let Some(cookie) = cookie(listener) else {
        return Ok(None);
    };
    let name = format!("vhost-user-frontend/accept/{cookie:016x}");
    let address = UnixAddr::new_abstract(name.as_bytes())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    let deadline = Deadline::after(Some(LONGEST_TURN));
    loop {
        match bind(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(Some(socket)),
            Err(Errno::EADDRINUSE) if !deadline.passed() => {
                pause(deadline.no_later_than(Duration::from_millis(1)))?;
            }
            Err(_) => return Ok(None),
        }
    }
}

/// The number of a socket, the same for all who share it. Linux 4.12.
fn cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of_val(&cookie)).ok()?;
    // SAFETY: the call writes at most `size` bytes of the number, and the size; both
    // outlive it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    (result == 0).then_some(cookie)
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
