//! Descriptors that carry no bytes: a clock to be woken by, and eventfds that are
//! shared with others.

use super::wait::{Watch, wait};
use super::{Deadline, FIRST_FREE, above_standard, aside, duplicate, field, origin};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

/// Ready to be read once a time has come.
#[derive(Debug)]
pub(crate) struct Alarm(TimerFd);

impl Alarm {
    pub(crate) fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let fd = above_standard(timer.into())?;
        // SAFETY: it is one.
        Ok(Self(unsafe { TimerFd::from_owned_fd(fd) }))
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

/// Writes an eventfd that another process shares, without a wait. One that is full has been
/// seen or will be.
///
/// The other process decides whether a write blocks, and can fill the eventfd between a look
/// and the write. So it is the kernel that signals it, at the end of an asynchronous request
/// (IOCB_FLAG_RESFD): that adds 1 and never waits. If the kernel refuses such requests, a
/// thread writes it.
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
        [ready] if ready.writable && !ready.broken => {}
        _ => return Ok(()),
    }
    match signal_without_wait(eventfd) {
        Ok(()) => Ok(()),
        Err(_) => write_aside(eventfd),
    }
}

/// Writes an eventfd in a thread, or in place if no thread can be started.
fn write_aside(eventfd: BorrowedFd<'_>) -> nix::Result<()> {
    if let Ok(Ok(())) = duplicate(eventfd, FIRST_FREE).map(aside::signal) {
        return Ok(());
    }
    match nix::unistd::write(eventfd, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

// ---- signals by the kernel ----

/// The kernel has no place for asynchronous requests.
const NO_REQUESTS: u64 = u64::MAX;

/// How many requests may be under way; each ends at once.
const REQUESTS: libc::c_uint = 16;

/// A request of linux/aio_abi.h.
#[repr(C)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// IOCB_CMD_POLL, Linux 4.18: waits for events of a descriptor.
const POLL: u16 = 5;
/// IOCB_FLAG_RESFD: at its end an eventfd is signalled.
const SIGNALS: u32 = 1;

fn check(returned: libc::c_long) -> nix::Result<libc::c_long> {
    Errno::result(returned)
}

/// Fails with EINVAL for what is not an eventfd.
fn signal_without_wait(eventfd: BorrowedFd<'_>) -> nix::Result<()> {
    let context = context().ok_or(Errno::ENOSYS)?;
    let fd = u32::try_from(eventfd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let events = libc::POLLIN | libc::POLLOUT;
    // An eventfd is always ready for one of these, so the request is at its end at once.
    let mut request = Request {
        data: 0,
        key: 0,
        rw_flags: 0,
        opcode: POLL,
        priority: 0,
        fd,
        buffer: u64::try_from(events).map_err(|_| Errno::EINVAL)?,
        bytes: 0,
        offset: 0,
        reserved: 0,
        flags: SIGNALS,
        result_fd: fd,
    };
    let mut list = [&raw mut request];
    let number: libc::c_long = 1;
    // SAFETY: the kernel reads a list of one, and the request in it, which live.
    check(unsafe { libc::syscall(libc::SYS_io_submit, context, number, list.as_mut_ptr()) })?;
    // The outcome has to be taken, or there is soon no room for another. Of no interest.
    let mut outcome = [0_u64; 4];
    let (least, most): (libc::c_long, libc::c_long) = (0, 1);
    let at_once = [0_u64; 2];
    // SAFETY: the kernel writes at most one outcome, of 32 bytes, and reads a time of zero,
    // of at most 16 bytes.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_io_getevents,
            context,
            least,
            most,
            outcome.as_mut_ptr(),
            at_once.as_ptr(),
        )
    };
    Ok(())
}

/// The place of this process for asynchronous requests. One until its end: to end one
/// earlier takes the kernel tens of milliseconds.
fn context() -> Option<libc::c_ulong> {
    let place = &origin::page()?.requests;
    let number = match place.load(Acquire) {
        0 => {
            let mut id: libc::c_ulong = 0;
            // SAFETY: the kernel writes one number, which lives.
            let made = unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut id) };
            let fresh = match check(made) {
                Ok(_) => field(id).unwrap_or(NO_REQUESTS),
                Err(_) => NO_REQUESTS,
            };
            // Of two threads that come here at once, one makes a place in vain, once.
            match place.compare_exchange(0, fresh, AcqRel, Acquire) {
                Ok(_) => fresh,
                Err(other) => other,
            }
        }
        number => number,
    };
    match number {
        NO_REQUESTS => None,
        number => field(number).ok(),
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "a test fails by panicking"
    )]

    use super::{notify, signal_without_wait, write_aside};
    use nix::errno::Errno;
    use nix::sys::eventfd::EventFd;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Runs it in a thread that is left behind if it hangs.
    fn in_time(run: impl FnOnce() + Send + 'static) {
        let (done, finished) = mpsc::channel();
        thread::spawn(move || {
            run();
            done.send(()).unwrap();
        });
        finished.recv_timeout(PATIENCE).expect("it hangs");
    }

    #[test]
    fn notify_adds_one() {
        let eventfd = EventFd::new().unwrap();
        for _ in 0..100 {
            notify(eventfd.as_fd()).unwrap();
        }
        assert_eq!(eventfd.read().unwrap(), 100);
    }

    #[test]
    fn signal_of_a_full_eventfd_that_blocks_returns() {
        let eventfd = EventFd::new().unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        in_time(move || {
            for _ in 0..100 {
                signal_without_wait(eventfd.as_fd()).unwrap();
            }
        });
    }

    #[test]
    fn notify_does_not_wait_for_an_eventfd_that_is_filled_meanwhile() {
        static OVER: AtomicBool = AtomicBool::new(false);
        let eventfd = EventFd::new().unwrap();
        let filled = eventfd.as_fd().try_clone_to_owned().unwrap();
        let filler = thread::spawn(move || {
            // SAFETY: it was an eventfd before it was duplicated.
            let filled = unsafe { EventFd::from_owned_fd(filled) };
            // Each write waits for the read that another round of this makes.
            while !OVER.load(SeqCst) {
                filled.read().unwrap();
                filled.write(u64::MAX - 1).unwrap();
            }
        });
        in_time(move || {
            for _ in 0..100_000 {
                notify(eventfd.as_fd()).unwrap();
            }
            OVER.store(true, SeqCst);
            notify(eventfd.as_fd()).unwrap();
        });
        drop(filler);
    }

    #[test]
    fn write_aside_does_not_wait_for_room() {
        let eventfd = EventFd::new().unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        let full = eventfd.as_fd().try_clone_to_owned().unwrap();
        in_time(move || write_aside(full.as_fd()).unwrap());
        assert_eq!(eventfd.read(), Ok(u64::MAX - 1));
        assert_eq!(eventfd.read(), Ok(1));
    }

    #[test]
    fn what_is_no_eventfd_cannot_be_signalled() {
        let (_read, write) = nix::unistd::pipe().unwrap();
        let result = signal_without_wait(write.as_fd());
        assert_eq!(result, Err(Errno::EINVAL));
        notify(write.as_fd()).unwrap();
    }
}
