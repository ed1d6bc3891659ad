//! Descriptors that carry no bytes: a clock to be woken by, and eventfds that are
//! shared with others.

use super::Deadline;
use super::wait::{Watch, wait};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Ready to be read once a time has come.
#[derive(Debug)]
pub(crate) struct Alarm(TimerFd);

impl Alarm {
    pub(crate) fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map(Self)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// It will be ready after this time, or not at all, and is not before.
    pub(crate) fn set(&self, after: Option<Duration>) {
        // The kernel takes a time of zero for none.
        let after = after.map(|after| after.max(Duration::from_nanos(1)));
        // Neither fails with a timer that is open and a time that is positive.
        let _ = match after {
            Some(after) => self.0.set(
                Expiration::OneShot(TimeSpec::from_duration(after)),
                TimerSetTimeFlags::empty(),
            ),
            None => self.0.unset(),
        };
    }
}

/// Writes an eventfd that another process may have filled: the write would wait
/// for ever, also if it is non-blocking for us no longer. Filled, it has been
/// seen or will be. (It can be filled between the two system calls. No lock may be held
/// meanwhile.)
pub(crate) fn notify(eventfd: BorrowedFd<'_>) -> nix::Result<()> {
    let watch = Watch {
        fd: eventfd,
        read: false,
        write: true,
        end: false,
    };
    let now = Deadline::after(Some(Duration::ZERO));
    match wait([watch], now)? {
        // One with an error is none: to write a pipe that nobody reads is to be killed.
        [ready] if ready.writable && !ready.broken => {
            match nix::unistd::write(eventfd, &1_u64.to_ne_bytes()) {
                Ok(_) | Err(Errno::EAGAIN) => Ok(()),
                Err(errno) => Err(errno),
            }
        }
        _ => Ok(()),
    }
}
