//! The only room that makes system calls on the connection: bytes and file
//! descriptors go out and come in, by steps. It knows no message.
//!
//! `sendmsg` and `recvmsg` are called through libc, not nix, because nix
//! allocates on the heap for every control message.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, accept4, connect, getpeername,
    getsockname, getsockopt, setsockopt, shutdown, socket, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Most descriptors taken from one read; a peer that sends more has them closed
/// by the kernel and is reported. The protocol allows 8 in a message.
pub(crate) const MAX_FDS_RECEIVED: usize = 32;
/// Most descriptors sent with one message.
pub(crate) const MAX_FDS_SENT: usize = crate::message::MAX_MEM_REGIONS;

/// A point in time that a wait may not pass; `None` waits for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        // A time beyond what the clock can hold is as good as for ever.
        Self(timeout.and_then(|t| Instant::now().checked_add(t)))
    }

    /// Time left: zero once it has passed, `None` for ever.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// This deadline, or one that far from now if that is earlier.
    pub(crate) fn no_later_than(self, longest: Duration) -> Self {
        Self::after(Some(
            self.remaining().map_or(longest, |left| left.min(longest)),
        ))
    }

    pub(crate) fn passed(self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }
}

/// Bytes for control messages, aligned for their header.
#[repr(C, align(8))]
struct ControlBuffer<const N: usize>([u8; N]);

#[allow(
    clippy::arithmetic_side_effects,
    reason = "small constants, and at most MAX_FDS_RECEIVED descriptors"
)]
const fn control_space(fds: usize) -> usize {
    // CMSG_SPACE: header and data, each rounded up to the alignment of size_t.
    let align = size_of::<usize>();
    let data = (fds * size_of::<RawFd>()).div_ceil(align) * align;
    size_of::<libc::cmsghdr>().div_ceil(align) * align + data
}

const SEND_CONTROL: usize = control_space(MAX_FDS_SENT);
const RECEIVE_CONTROL: usize = control_space(MAX_FDS_RECEIVED);

/// A number for a field of a C struct: the C libraries differ in their types.
fn field<A: TryInto<B>, B>(number: A) -> nix::Result<B> {
    number.try_into().map_err(|_| Errno::E2BIG)
}

/// Sends one message, or as much of it as fits, without waiting. The
/// descriptors go with its first byte. Never raises SIGPIPE.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> nix::Result<usize> {
    if fds.len() > MAX_FDS_SENT {
        return Err(Errno::E2BIG);
    }
    // Zeroed: the padding goes to the kernel as well.
    let mut control = ControlBuffer([0; SEND_CONTROL]);
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSlice is layout-compatible with iovec, and sendmsg only reads it.
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = field(parts.len())?;
    if !fds.is_empty() {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = field(control_space(fds.len()))?;
        // SAFETY: msg_control points to `control`, which is aligned for a
        // cmsghdr and at least msg_controllen bytes long.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        let length = field(size_of_val(fds))?;
        // SAFETY: CMSG_LEN is arithmetic on its argument.
        let cmsg_len = unsafe { libc::CMSG_LEN(length) };
        // SAFETY: `first` is not null, as msg_controllen has room for a header.
        let cmsg = unsafe { &mut *first };
        cmsg.cmsg_level = libc::SOL_SOCKET;
        cmsg.cmsg_type = libc::SCM_RIGHTS;
        cmsg.cmsg_len = field(cmsg_len)?;
        // SAFETY: `first` is a valid header whose data has room for `fds`.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: BorrowedFd is a transparent RawFd, so `fds` is as many bytes
        // as copied, and the control buffer has room for MAX_FDS_SENT of them.
        unsafe {
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, size_of_val(fds));
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `header` points to `parts` and `control`, both alive until after
    // the call; the socket is borrowed.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
    length(sent)
}

/// What one read brought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Bytes put into the buffer; 0 when the peer has closed.
    pub(crate) bytes: usize,
    /// The kernel had more descriptors than there was room for and dropped them.
    pub(crate) truncated: bool,
}

/// Reads what is there: at most one system call. With `wait`, blocks until
/// something arrives or the receive timeout of the socket passes (EAGAIN).
///
/// Each descriptor received goes to `take`, close-on-exec.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
    mut take: impl FnMut(OwnedFd),
) -> nix::Result<Received> {
    let mut control = ControlBuffer([0; RECEIVE_CONTROL]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = field(RECEIVE_CONTROL)?;
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: `header` points to `buffer` and `control` with their true
    // lengths, both borrowed mutably for the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let bytes = length(received)?;

    // SAFETY: the kernel filled in msg_control and msg_controllen.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that
        // lies whole within msg_control.
        let cmsg = unsafe { &*next };
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `next` is a valid header.
            let data = unsafe { libc::CMSG_DATA(next) };
            // SAFETY: CMSG_LEN is arithmetic on its argument.
            let overhead: usize = field(unsafe { libc::CMSG_LEN(0) })?;
            let whole: usize = field(cmsg.cmsg_len)?;
            let bytes = whole.saturating_sub(overhead);
            let count = bytes.checked_div(size_of::<RawFd>()).unwrap_or_default();
            for position in 0..count {
                // SAFETY: the kernel says that `count` descriptors lie there,
                // inside the control buffer.
                let at = unsafe { data.cast::<RawFd>().add(position) };
                // SAFETY: `at` is in bounds; the data need not be aligned.
                let fd = unsafe { at.read_unaligned() };
                // SAFETY: the kernel just made this descriptor for us, and
                // nobody else knows of it.
                take(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `next` is a header within the control buffer of `header`.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(Received {
        bytes,
        truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Bytes that can be read without waiting.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to its argument, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    Errno::result(result)?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}

fn length(returned: isize) -> nix::Result<usize> {
    usize::try_from(returned).map_err(|_| Errno::last())
}

fn poll_timeout(deadline: Deadline) -> PollTimeout {
    match deadline.remaining() {
        None => PollTimeout::NONE,
        // Rounded up, so that the last millisecond is slept and not spun.
        Some(left) => {
            PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        }
    }
}

/// A descriptor to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch<'fd> {
    pub(crate) fd: BorrowedFd<'fd>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// An end of reading is waited for even where nothing is to be read.
    pub(crate) end: bool,
}

/// What [`wait`] found about a descriptor.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready {
    /// Bytes, an end of the stream or an error can be read.
    pub(crate) readable: bool,
    /// Something can be written, or writing would fail at once.
    pub(crate) writable: bool,
}

/// Waits until one of the descriptors is ready as wanted or the deadline passes. A
/// signal ends the wait early, with nothing ready.
pub(crate) fn wait<const N: usize>(
    watched: [Watch<'_>; N],
    deadline: Deadline,
) -> nix::Result<[Ready; N]> {
    let mut fds = watched.map(|watch| {
        let mut events = PollFlags::empty();
        if watch.end {
            events |= PollFlags::from_bits_retain(libc::POLLRDHUP);
        }
        events.set(PollFlags::POLLIN, watch.read);
        events.set(PollFlags::POLLOUT, watch.write);
        PollFd::new(watch.fd, events)
    });
    match nix::poll::poll(&mut fds, poll_timeout(deadline)) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok([Ready::default(); N]),
        Err(errno) => return Err(errno),
    }
    let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    Ok(fds.map(|fd| {
        // nix does not know the end of reading, and gives nothing then.
        let found = fd.revents().unwrap_or(broken);
        Ready {
            readable: found.intersects(PollFlags::POLLIN | broken),
            writable: found.intersects(PollFlags::POLLOUT | broken),
        }
    }))
}

/// Two ends of a connection, both close-on-exec.
pub(crate) fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// What wakes a thread that waits for a socket.
#[derive(Debug)]
pub(crate) struct Bell(EventFd);

impl Bell {
    pub(crate) fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_value_and_flags(0, flags).map(Self)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Everybody who waits wakes, until [`silence`](Self::silence).
    pub(crate) fn ring(&self) {
        // It fails only if it is ringing already.
        let _ = self.0.write(1);
    }

    pub(crate) fn silence(&self) {
        // It fails only if it is silent already.
        let _ = self.0.read();
    }
}

/// One descriptor that is ready when others are.
#[derive(Debug)]
pub(crate) struct Pollable(Epoll);

impl Pollable {
    pub(crate) fn new() -> nix::Result<Self> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }

    /// It is ready when this descriptor is as wanted. One of which nothing is
    /// wanted is left out: its end would make it ready for ever.
    pub(crate) fn watch(&self, watch: Watch<'_>) -> nix::Result<()> {
        let mut events = EpollFlags::empty();
        events.set(EpollFlags::EPOLLIN, watch.read);
        events.set(EpollFlags::EPOLLOUT, watch.write);
        let mut event = EpollEvent::new(events, 0);
        let result = match events.is_empty() {
            true => self.0.delete(watch.fd),
            false => self.0.modify(watch.fd, &mut event),
        };
        match (result, events.is_empty()) {
            (Err(Errno::ENOENT), true) => Ok(()),
            (Err(Errno::ENOENT), false) => self.0.add(watch.fd, event),
            (result, _) => result,
        }
    }
}

/// Reads nothing more: whoever waits for the socket wakes, here and now. The
/// peer finds out when it sends; that it goes away can still be seen.
pub(crate) fn stop_reading(fd: BorrowedFd<'_>) {
    // Failing means that the connection has ended already.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Read);
}

/// Ends the connection for everybody who holds it. Async-signal-safe: one
/// system call, and errno is restored for whom a handler interrupted.
pub(crate) fn shut_down(fd: BorrowedFd<'_>) {
    let before = Errno::last_raw();
    // SAFETY: the descriptor is borrowed; shutdown takes no pointer. Failing
    // means that the connection has ended already.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
    Errno::set_raw(before);
}

/// Sets how long [`receive`] may block; `None` for ever.
pub(crate) fn set_receive_timeout(
    fd: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> nix::Result<()> {
    set_timeout(fd, sockopt::ReceiveTimeout, timeout)
}

fn set_timeout(
    fd: BorrowedFd<'_>,
    option: impl nix::sys::socket::SetSockOpt<Val = TimeVal>,
    timeout: Option<Duration>,
) -> nix::Result<()> {
    // To the kernel zero means for ever, so the shortest time is one microsecond.
    let timeout = timeout.map_or(Duration::ZERO, |t| t.max(Duration::from_micros(1)));
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let micros = i64::from(timeout.subsec_micros());
    setsockopt(&fd, option, &TimeVal::new(seconds, micros))
}

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

/// Waits for nothing but the time, or a signal.
fn pause(deadline: Deadline) -> nix::Result<()> {
    match nix::poll::poll(&mut [], poll_timeout(deadline)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

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
    Error::new(crate::error::Kind::TimedOut, message)
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
            crate::error::Kind::Argument(errno),
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
                crate::error::Kind::Argument(errno),
                "fd is a socket that is not connected",
            )),
        },
    }
}

/// Makes sure that the descriptor does not survive an exec.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

/// Whether a number is that of an open descriptor.
pub(crate) fn is_open(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd, FcntlArg::F_GETFD).is_ok()
}

/// A close-on-exec duplicate.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let raw = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(0))?;
    // SAFETY: fcntl just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
