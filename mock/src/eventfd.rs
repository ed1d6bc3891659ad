//! Eventfds of the front-end.

use nix::poll::PollFlags;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

/// The greatest value that an eventfd holds.
const FULL: u64 = u64::MAX - 1;
/// Left free at first. The front-end may add to the eventfd at the same time,
/// and a write that finds no room would wait.
const MARGIN: u64 = 64;

/// Makes it so full that the next write waits or fails; `false` if it is no
/// eventfd.
///
/// It cannot be made non-blocking for this: that would change it for the
/// front-end as well.
pub(crate) fn fill(fd: &impl AsFd) -> bool {
    let Some(count) = count(fd) else {
        return false;
    };
    let most = FULL.saturating_sub(MARGIN).saturating_sub(count);
    let add = |value: u64| nix::unistd::write(fd, &value.to_ne_bytes()).is_ok();
    if most > 0 && !add(most) {
        return false;
    }
    while crate::wire::ready(fd, PollFlags::POLLOUT) {
        if !add(1) {
            return false;
        }
    }
    true
}

/// What an eventfd holds.
pub(crate) fn count(fd: &impl AsFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let info = fs::read_to_string(path).ok()?;
    let count = info
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    #[test]
    fn an_eventfd_is_filled() {
        let eventfd = EventFd::from_value_and_flags(3, EfdFlags::EFD_NONBLOCK).unwrap();
        assert_eq!(count(&eventfd), Some(3));
        assert!(fill(&eventfd));
        assert_eq!(count(&eventfd), Some(FULL));
        assert_eq!(eventfd.write(1), Err(nix::errno::Errno::EAGAIN));
        assert!(fill(&eventfd), "a second time too");
        assert!(!fill(&fs::File::open("/dev/null").unwrap()));
    }
}
