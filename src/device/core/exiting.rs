//! A back-end process of this program that ends: its exit status says more than the end
//! of its connection.
//!
//! The kernel closes the sockets of a process a moment before the process can be waited
//! for. So the end of such a connection is not a loss yet: the device looks for the exit
//! status for a while first, without waiting in a call.

use super::{Core, Live, Mode};
use crate::device::link::Process;
use crate::error::{Error, Kind};
use crate::socket::Exit;
use std::time::{Duration, Instant};

/// How long the exit status is looked for, and how often.
const LONGEST: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(1);

/// A connection that has ended, whose process may be ending.
#[derive(Debug)]
pub(super) struct Ending {
    error: Error,
    until: Instant,
    next_look: Instant,
}

impl Ending {
    pub(super) fn due(&self) -> Instant {
        self.next_look.min(self.until)
    }
}

impl Live {
    /// The error in terms of how the process has ended, once that is known.
    fn exited(&self, error: &Error) -> Option<Error> {
        let process = self.process.as_ref()?;
        let pid = process.pid;
        let (text, status) = match process.exit()? {
            Exit::Code(code) => {
                let text =
                    format!("the back-end program (process {pid}) exited with status {code}");
                (text, u64::try_from(code).ok())
            }
            Exit::Signal(signal) => {
                let text =
                    format!("the back-end program (process {pid}) was killed by signal {signal}");
                (text, None)
            }
            Exit::Unknown => return None,
        };
        Some(error.clone().saying(text).with_value(status))
    }
}

impl Core {
    /// The error with which the connection is lost: this one, or the exit status of its
    /// process. `None` while that is looked for.
    pub(super) fn end(&mut self, error: Error, now: Instant) -> Option<Error> {
        let Mode::Up(live) = &mut self.mode else {
            return Some(error);
        };
        let held = live.process.as_ref().is_some_and(Process::is_held);
        if !held || error.kind != Kind::Disconnected {
            return Some(error);
        }
        if let Some(exited) = live.exited(&error) {
            return Some(exited);
        }
        live.ending = Some(Ending {
            error,
            until: now.checked_add(LONGEST).unwrap_or(now),
            next_look: now.checked_add(LOOK).unwrap_or(now),
        });
        None
    }

    /// Whether the connection has ended, and is not lost yet: then its error, once that
    /// is final.
    pub(super) fn ending(&mut self, now: Instant) -> Option<Option<Error>> {
        let Mode::Up(live) = &mut self.mode else {
            return None;
        };
        let mut ending = live.ending.take()?;
        if let Some(exited) = live.exited(&ending.error) {
            return Some(Some(exited));
        }
        if ending.until <= now {
            return Some(Some(ending.error));
        }
        ending.next_look = now.checked_add(LOOK).unwrap_or(now);
        live.ending = Some(ending);
        Some(None)
    }
}
