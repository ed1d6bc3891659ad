//! Messages on their way out.

use super::{ControlBuffer, MAX_FDS_SENT, control_space, field, length};
use nix::errno::Errno;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most messages that one call of [`send_all`] sends.
pub(crate) const MAX_PARCELS: usize = 64;

const CONTROL: usize = control_space(MAX_FDS_SENT);
const FLAGS: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// A message in its parts, and the descriptors that go with its first byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel<'a> {
    pub(crate) parts: [IoSlice<'a>; 3],
    pub(crate) fds: &'a [BorrowedFd<'a>],
}

impl Parcel<'_> {
    pub(crate) fn empty() -> Self {
        Self {
            parts: [IoSlice::new(&[]); 3],
            fds: &[],
        }
    }
}

/// Points `header` at a message. It must not be used after `parts`, `fds` or
/// `control`, which has to be zeroed: the padding goes to the kernel as well.
fn address(
    header: &mut libc::msghdr,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    control: &mut ControlBuffer<CONTROL>,
) -> nix::Result<()> {
    if fds.len() > MAX_FDS_SENT {
        return Err(Errno::E2BIG);
    }
    // IoSlice is layout-compatible with iovec, and sendmsg only reads it.
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = field(parts.len())?;
    if fds.is_empty() {
        return Ok(());
    }
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = field(control_space(fds.len()))?;
    // SAFETY: msg_control points to `control`, which is aligned for a
    // cmsghdr and at least msg_controllen bytes long.
    let first = unsafe { libc::CMSG_FIRSTHDR(std::ptr::from_ref(header)) };
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
    Ok(())
}

/// Sends one message, or as much of it as fits, without waiting. The
/// descriptors go with its first byte. Never raises SIGPIPE.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> nix::Result<usize> {
    let mut control = ControlBuffer([0; CONTROL]);
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    address(&mut header, parts, fds, &mut control)?;
    // SAFETY: `header` points to `parts` and `control`, both alive until after
    // the call; the socket is borrowed.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, FLAGS) };
    length(sent)
}

/// Sends the first of these messages, at most [`MAX_PARCELS`], by one system call:
/// `sent` is told the length of each that went out, in order. All but the last went
/// out whole. Why the next did not is for the next call to find out.
pub(crate) fn send_all(
    socket: BorrowedFd<'_>,
    parcels: &[Parcel<'_>],
    sent: impl FnMut(usize),
) -> nix::Result<()> {
    let mut controls = [const { ControlBuffer([0; CONTROL]) }; MAX_PARCELS];
    // SAFETY: an all-zero mmsghdr is valid: null pointers with zero lengths.
    let mut headers: [libc::mmsghdr; MAX_PARCELS] = unsafe { std::mem::zeroed() };
    for ((header, control), parcel) in headers.iter_mut().zip(&mut controls).zip(parcels) {
        address(&mut header.msg_hdr, &parcel.parts, parcel.fds, control)?;
    }
    let number = field(parcels.len().min(MAX_PARCELS))?;
    // The C libraries differ in the type of the flags.
    let flags = field(FLAGS)?;
    // SAFETY: so many of the headers were made above; they point to what `parcels`
    // borrows and to `controls`, all alive until after the call; the socket is
    // borrowed.
    let done = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), number, flags) };
    let done = usize::try_from(done).map_err(|_| Errno::last())?;
    headers
        .iter()
        .take(done)
        .map(|header| usize::try_from(header.msg_len).unwrap_or(usize::MAX))
        .for_each(sent);
    Ok(())
}
