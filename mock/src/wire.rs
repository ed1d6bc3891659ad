//! Bytes and descriptors over a Unix socket, and waiting for them. The only
//! room that makes system calls on sockets; it knows no message.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Bytes of the header before every message.
pub(crate) const HEADER_SIZE: usize = 12;
/// As many descriptors as the kernel passes in one message (SCM_MAX_FD).
pub(crate) const MAX_FDS: usize = 253;

/// What one `recvmsg` brought.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// One `recvmsg` of at most `room` bytes that never waits: `None` where there is
/// nothing, no bytes where the peer has closed.
pub(crate) fn read(socket: BorrowedFd<'_>, room: usize) -> nix::Result<Option<Read>> {
    let mut bytes = vec![0; room];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let raw = socket.as_raw_fd();
    let got = match recvmsg::<UnixAddr>(raw, &mut parts, Some(&mut control), flags) {
        Ok(got) => got,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut fds = Vec::new();
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: the kernel just made these descriptors for us, and nobody
            // else knows their numbers.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = got.bytes;
    bytes.truncate(length);
    Ok(Some(Read { bytes, fds }))
}

/// One `sendmsg` that never waits: the number of bytes sent, `None` where there
/// is no room.
pub(crate) fn write(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[OwnedFd],
) -> nix::Result<Option<usize>> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    match sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        flags,
        None,
    ) {
        Ok(sent) => Ok(Some(sent)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(Errno::ETOOMANYREFS) => {
            // An ordinary user has as many in flight as it may; that their
            // receivers have read cannot be polled for.
            std::thread::sleep(Duration::from_millis(1));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What a wait is for, and what it found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched<'fd> {
    pub(crate) fd: BorrowedFd<'fd>,
    pub(crate) events: PollFlags,
    /// What happened. Hang-up and error are reported unasked.
    pub(crate) happened: PollFlags,
}

impl<'fd> Watched<'fd> {
    pub(crate) fn new(fd: &'fd impl AsFd, events: PollFlags) -> Self {
        let (fd, happened) = (fd.as_fd(), PollFlags::empty());
        Self {
            fd,
            events,
            happened,
        }
    }

    /// Whether anything happened.
    pub(crate) fn any(&self) -> bool {
        !self.happened.is_empty()
    }
}

/// Waits until something happens to one of them, or until then.
pub(crate) fn wait(watched: &mut [Watched<'_>], until: Option<Instant>) -> nix::Result<()> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = match left {
            None => PollTimeout::NONE,
            // Rounded up, so that it does not end too early and spin.
            Some(left) => left
                .saturating_add(Duration::from_micros(999))
                .as_millis()
                .try_into()
                .unwrap_or(PollTimeout::MAX),
        };
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .map(|one| PollFd::new(one.fd, one.events))
            .collect();
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
            Ok(0) if until.is_none_or(|until| Instant::now() < until) => continue,
            Ok(_) => {}
        }
        let happened: Vec<_> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        drop(fds);
        for (one, happened) in watched.iter_mut().zip(happened) {
            one.happened = happened;
        }
        return Ok(());
    }
}

/// Whether this can be done without waiting. A descriptor that cannot be asked
/// cannot be used either.
pub(crate) fn ready(fd: &impl AsFd, events: PollFlags) -> bool {
    let mut watched = [Watched::new(fd, events)];
    wait(&mut watched, Some(Instant::now())).is_ok()
        && watched.iter().all(|one| one.happened.intersects(events))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_with_the_first_byte() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds = [OwnedFd::from(UnixStream::pair().unwrap().0)];
        assert_eq!(write(ours.as_fd(), b"abcd", &fds), Ok(Some(4)));
        let first = read(theirs.as_fd(), 1).unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (&b"a"[..], 1));
        let rest = read(theirs.as_fd(), 9).unwrap().unwrap();
        assert_eq!((rest.bytes.as_slice(), rest.fds.len()), (&b"bcd"[..], 0));
        assert!(
            read(theirs.as_fd(), 9).unwrap().is_none(),
            "there is no more"
        );
        drop(ours);
        assert!(read(theirs.as_fd(), 9).unwrap().unwrap().bytes.is_empty());
    }

    #[test]
    fn a_wait_ends_when_it_should() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let mut watched = [Watched::new(&theirs, PollFlags::POLLIN)];
        wait(&mut watched, Some(start + Duration::from_millis(30))).unwrap();
        assert!(!watched.iter().any(Watched::any));
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(!ready(&theirs, PollFlags::POLLIN));
        write(ours.as_fd(), b"a", &[]).unwrap();
        wait(&mut watched, None).unwrap();
        assert!(watched.iter().all(Watched::any));
    }
}
