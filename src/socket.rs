//! The only room that makes system calls on the connection: bytes and file
//! descriptors go out and come in, by steps. It knows no message.
//!
//! `sendmsg`, `sendmmsg` and `recvmsg` are called through libc, not nix, because nix
//! allocates on the heap for every control message.

mod address;
mod appearance;
mod aside;
mod files;
mod foreign;
mod listen;
mod origin;
mod sending;
mod signal;
mod spawning;
mod tied;
mod wait;

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, getsockopt, setsockopt, shutdown, socketpair,
    sockopt,
};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::time::TimeVal;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

pub(crate) use address::{Role, accept_from, check, connect_to};
pub(crate) use appearance::Appearance;
pub(crate) use aside::being_closed;
pub(crate) use files::{Unmappable, check_mappable, is_sealed, open_for, page_size};
pub(crate) use foreign::{ForeignFd, PeerSocket};
pub(crate) use listen::{
    Listener, absolute, check_path, listener_with_connection, shown, try_connect,
};
pub(crate) use origin::Origin;
pub(crate) use sending::{MAX_PARCELS, Parcel, send, send_all};
pub(crate) use signal::{Alarm, notify};
pub use spawning::Exit;
pub(crate) use spawning::{
    Child, PASSED_FD, Spawn, environment_is_trusted, spawn, standard_error, standard_output,
};
pub(crate) use wait::{Bell, Deadline, Pollable, Watch, peer_is_gone, reading_has_ended, wait};

/// Most descriptors kept from one read; a peer that sends more is reported. The
/// protocol allows 8 in a message.
pub(crate) const MAX_FDS_RECEIVED: usize = 32;
/// Most descriptors that the kernel passes with one message (SCM_MAX_FD).
const MAX_FDS_PASSED: usize = 253;
/// Most descriptors sent with one message.
pub(crate) const MAX_FDS_SENT: usize = crate::message::MAX_MEM_REGIONS;

/// Bytes for control messages, aligned for their header.
#[repr(C, align(8))]
struct ControlBuffer<const N: usize>([u8; N]);

#[allow(clippy::arithmetic_side_effects, reason = "small constants")]
const fn control_space_of(bytes: usize) -> usize {
    // CMSG_SPACE: header and data, each rounded up to the alignment of size_t.
    let align = size_of::<usize>();
    let data = bytes.div_ceil(align) * align;
    size_of::<libc::cmsghdr>().div_ceil(align) * align + data
}

#[allow(
    clippy::arithmetic_side_effects,
    reason = "at most MAX_FDS_PASSED descriptors"
)]
const fn control_space(fds: usize) -> usize {
    control_space_of(fds * size_of::<RawFd>())
}

/// The descriptor of a process, with SO_PASSPIDFD. The libc crate does not have it.
const SCM_PIDFD: libc::c_int = 4;
/// Room for a security label, with SO_PASSSEC.
const MAX_LABEL: usize = 1024;

/// Room for all that the kernel passes with one message. What else a caller has asked for
/// (SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC) takes no room from descriptors, and the kernel
/// closes none of them for want of room: that can take as long as their owners like.
#[allow(clippy::arithmetic_side_effects, reason = "a sum of small constants")]
const RECEIVE_CONTROL: usize = control_space(MAX_FDS_PASSED)
    + control_space_of(size_of::<libc::ucred>())
    + control_space(1)
    + control_space_of(MAX_LABEL);

/// A number for a field of a C struct: the C libraries differ in their types.
fn field<A: TryInto<B>, B>(number: A) -> nix::Result<B> {
    number.try_into().map_err(|_| Errno::E2BIG)
}

/// What one read brought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Bytes put into the buffer; 0 when the peer has closed.
    pub(crate) bytes: usize,
    /// The kernel dropped something: this process has no number left for a descriptor.
    pub(crate) truncated: bool,
}

/// Reads what is there: at most one system call. With `wait`, blocks until
/// something arrives or the receive timeout of the socket passes (EAGAIN).
///
/// Each descriptor that the peer sent goes to `take`, close-on-exec. That of its process,
/// which the kernel adds with SO_PASSPIDFD, is closed.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
    mut take: impl FnMut(ForeignFd),
) -> nix::Result<Received> {
    // The kernel says how much of it has a value.
    let mut control = MaybeUninit::<ControlBuffer<RECEIVE_CONTROL>>::uninit();
    let mut lost = false;
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
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
        let rights = cmsg.cmsg_type == libc::SCM_RIGHTS;
        if cmsg.cmsg_level == libc::SOL_SOCKET && (rights || cmsg.cmsg_type == SCM_PIDFD) {
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
                if fd < 0 {
                    continue; // the errno of a process that has no descriptor
                }
                // SAFETY: the kernel just made this descriptor for us, and
                // nobody else knows of it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if rights {
                    match above_standard(fd) {
                        Ok(fd) => take(ForeignFd::new(fd)),
                        // Without a free number the kernel would have dropped it, too.
                        Err(_) => lost = true,
                    }
                }
            }
        }
        // SAFETY: `next` is a header within the control buffer of `header`.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(Received {
        bytes,
        truncated: lost || header.msg_flags & libc::MSG_CTRUNC != 0,
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

/// Two ends of a connection, both close-on-exec.
pub(crate) fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((above_standard(one)?, above_standard(other)?))
}

/// Reads nothing more: whoever waits for the socket wakes, here and now. The
/// peer finds out when it sends; that it goes away can still be seen.
pub(crate) fn stop_reading(fd: BorrowedFd<'_>) {
    // Failing means that the connection has ended already.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Read);
}

/// Who is at the other end of a socket, as it was when it connected or began to
/// listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// The process; 0 if it cannot be seen from here. To a device that is also so where
    /// the kernel names this process, which made both ends of the connection.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

pub(crate) fn peer_credentials(fd: BorrowedFd<'_>) -> Option<Credentials> {
    let peer = getsockopt(&fd, sockopt::PeerCredentials).ok()?;
    Some(Credentials {
        pid: peer.pid(),
        uid: peer.uid(),
        gid: peer.gid(),
    })
}

/// Writes nothing more: the peer reads an end. Whether it then goes away can be
/// seen only while our reading side is open, as [`peer_is_gone`] says.
pub(crate) fn stop_writing(fd: BorrowedFd<'_>) {
    // Failing means that the connection has ended already.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
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

/// Makes sure that the descriptor does not survive an exec.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

/// Whether a number is that of an open descriptor.
pub(crate) fn is_open(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd, FcntlArg::F_GETFD).is_ok()
}

/// A close-on-exec duplicate of a descriptor that the caller calls `name`.
pub(crate) fn keep(fd: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    duplicate(fd, FIRST_FREE).map_err(|errno| match errno {
        Errno::EBADF => Error::bad_fd(format!("{name} is not open")),
        _ => Error::os(errno, format_args!("cannot keep {name}")),
    })
}

/// A close-on-exec duplicate with a number that is not below `least`.
fn duplicate(fd: BorrowedFd<'_>, least: RawFd) -> nix::Result<OwnedFd> {
    let raw = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: fcntl just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The first number behind standard input, output and error.
const FIRST_FREE: RawFd = 3;

/// Where it has the number of standard input, output or error, another in its place: a
/// process that was started without one of these would write its messages into a socket or
/// into guest memory, and 0 in a struct of the C interface is a field that was not set.
pub(crate) fn above_standard(fd: OwnedFd) -> nix::Result<OwnedFd> {
    match moved(fd.as_fd())? {
        Some(other) => Ok(other),
        None => Ok(fd),
    }
}

/// The duplicate that takes the place of a descriptor with such a number; `None` for
/// others.
pub(crate) fn moved(fd: BorrowedFd<'_>) -> nix::Result<Option<OwnedFd>> {
    match fd.as_raw_fd() < FIRST_FREE {
        true => duplicate(fd, FIRST_FREE).map(Some),
        false => Ok(None),
    }
}

/// An eventfd, close-on-exec and non-blocking.
fn new_eventfd(value: u32) -> nix::Result<EventFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let fd = above_standard(EventFd::from_value_and_flags(value, flags)?.into())?;
    // SAFETY: it is one.
    Ok(unsafe { EventFd::from_owned_fd(fd) })
}

/// Checks that notifications can be written to a descriptor that the caller calls `name`.
///
/// A notification is eight bytes. Written to a file they would overwrite what is in it:
/// where that file is guest memory, the guest's own. An eventfd has no type of file; pipes
/// and sockets take the bytes without harm.
pub(crate) fn check_notifier(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    let stat = fstat(fd).map_err(|errno| match errno {
        Errno::EBADF => Error::bad_fd(format!("{name} is not open")),
        _ => Error::os(errno, format_args!("fstat() of {name}")),
    })?;
    let (kind, writing) = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => ("a regular file", OVERWRITES),
        SFlag::S_IFBLK => ("a block device", OVERWRITES),
        SFlag::S_IFCHR => ("a character device", "which takes no notifications"),
        SFlag::S_IFDIR => ("a directory", "which takes no notifications"),
        SFlag::S_IFLNK => ("a symbolic link", "which takes no notifications"),
        _ => return Ok(()),
    };
    Err(Error::invalid(format!(
        "{name} is {kind}, {writing}: pass an eventfd, or one end of a pipe or socket"
    )))
}

const OVERWRITES: &str = "which each notification would overwrite";

/// A duplicate, as [`keep`] makes it, of a descriptor that notifications are written to.
pub(crate) fn keep_notifier(fd: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    // First of all, so that the check is about what is kept.
    let fd = keep(fd, name)?;
    check_notifier(fd.as_fd(), name)?;
    Ok(fd)
}
