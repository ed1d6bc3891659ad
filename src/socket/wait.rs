//! Waiting for descriptors, and what can be waited for.

use super::{above_standard, new_eventfd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// A point in time that a wait may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// `None` is for ever.
    at: Option<Instant>,
    /// What the clock said last: until something has taken time, it need not be
    /// asked again.
    pub(crate) as_of: Instant,
}

impl Deadline {
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        let as_of = Instant::now();
        // A time beyond what the clock can hold is as good as for ever.
        let at = timeout.and_then(|timeout| as_of.checked_add(timeout));
        Self { at, as_of }
    }

    /// The same point in time, seen from now.
    pub(crate) fn anew(self) -> Self {
        Self {
            as_of: Instant::now(),
            ..self
        }
    }

    /// Time left: zero once it has passed, `None` for ever.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.at.and_then(|_| self.anew().remained())
    }

    /// Time that was left when the clock was asked last.
    pub(crate) fn remained(self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(self.as_of))
    }

    /// This deadline, or one that far from now if that is earlier.
    pub(crate) fn no_later_than(self, longest: Duration) -> Self {
        let soon = Self::after(Some(longest));
        Self {
            at: self.at.into_iter().chain(soon.at).min(),
            ..soon
        }
    }

    pub(crate) fn passed(self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }
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
    /// It would fail at once, or reading would, or the peer is gone.
    pub(crate) broken: bool,
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
            broken: found.intersects(broken),
        }
    }))
}

/// Whether the peer has closed the connection. The kernel says so as soon as
/// both directions have ended, whoever ended them: it means nothing after
/// [`shut_down`](super::shut_down), nor after both of
/// [`stop_reading`](super::stop_reading) and [`stop_writing`](super::stop_writing).
pub(crate) fn peer_is_gone(fd: BorrowedFd<'_>) -> bool {
    happened(fd, PollFlags::empty())
}

/// Whether nothing more can come: the peer has closed its writing side or all, or
/// we have closed our reading side.
pub(crate) fn reading_has_ended(fd: BorrowedFd<'_>) -> bool {
    happened(fd, PollFlags::from_bits_retain(libc::POLLRDHUP))
}

/// Whether one of these events, or a hang-up, is there now.
fn happened(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    nix::poll::poll(&mut [PollFd::new(fd, events)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits for nothing but the time, or a signal.
pub(super) fn pause(deadline: Deadline) -> nix::Result<()> {
    match nix::poll::poll(&mut [], poll_timeout(deadline)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What wakes a thread that waits for a socket.
#[derive(Debug)]
pub(crate) struct Bell(EventFd);

impl Bell {
    pub(crate) fn new() -> nix::Result<Self> {
        new_eventfd(0).map(Self)
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
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self(Epoll(above_standard(epoll.0)?)))
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
