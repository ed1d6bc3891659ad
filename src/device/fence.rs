//! Keeping an old back-end away from guest memory. A connection that was given up
//! (a deadline passed, the protocol was broken) says nothing about the back-end's
//! process, which may go on writing. It is told that this is the end, and then
//! watched until it has closed the connection: that is the sign that it is done.
//!
//! Only the writing side is shut down. The kernel says "hung up" as soon as both
//! directions have ended, whoever ended them, so after a full shutdown it says so
//! at once and proves nothing. For the same reason:
//!
//! - Where nothing can be read any more already (the back-end closed only its
//!   writing side, or the connection has stopped reading) nothing is shut down. The
//!   back-end is not told, but its end can still be seen.
//! - A back-end that is told and answers by closing only its writing side, instead
//!   of the connection, counts as gone: the kernel does not let it be told apart.
//!
//! A process that shares the socket with the back-end keeps it open.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use super::link::Process;
use crate::socket::{self, Credentials, Watch};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// What a fence has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fenced {
    /// The back-end has closed the connection.
    Gone,
    /// It has not, within the limit. Said once; it may still be gone later.
    Unfenced,
}

/// A connection whose end is awaited. Dropped, it is closed.
///
/// It has the socket from who used it, and not a duplicate: there might be no
/// descriptor free for one, and then nobody would be waited for.
#[derive(Debug)]
pub(crate) struct Fence<S> {
    socket: S,
    limit: Option<Instant>,
    /// Who is at the other end.
    peer: Option<Credentials>,
    /// Who is killed at the limit.
    process: Option<Process>,
    /// That has passed.
    overdue: bool,
    /// What happens to the socket can be polled for. Otherwise it would be readable
    /// for ever, and is looked at now and then.
    pollable: bool,
    next_look: Instant,
}

/// How many reads one step makes, of what size: together more than the buffer of
/// a socket holds by default.
const READS: usize = 64;
const READ_SIZE: usize = 4096;

/// How long a process that was killed has to be gone: its memory may be large, and its
/// disk slow.
const KILLED: Duration = Duration::from_secs(5);

/// How often a socket is looked at that cannot be polled for.
const LOOK: Duration = Duration::from_millis(50);

impl<S: AsFd> Fence<S> {
    /// Tells the back-end that nothing more comes. Nobody else may read from the
    /// connection or shut it down.
    pub(crate) fn new(socket: S, limit: Option<Duration>, now: Instant) -> Self {
        let pollable = !socket::reading_has_ended(socket.as_fd());
        if pollable {
            socket::stop_writing(socket.as_fd());
        }
        Self {
            socket,
            // A time beyond what the clock can hold never comes.
            limit: limit.and_then(|limit| now.checked_add(limit)),
            peer: None,
            process: None,
            overdue: false,
            pollable,
            next_look: now,
        }
    }

    /// It is known who is at the other end.
    pub(crate) fn against(mut self, peer: Option<Credentials>) -> Self {
        self.peer = peer;
        self
    }

    /// Who is at the other end, as far as that is known.
    pub(crate) fn peer(&self) -> Option<Credentials> {
        self.peer
    }

    /// At the limit this process is killed, and has as long again as [`KILLED`] to be
    /// gone. It is the socket that tells, still: others may share that, and the memory.
    pub(crate) fn killing(mut self, process: Option<Process>) -> Self {
        self.process = process;
        self
    }

    /// Does what can be done now, without waiting.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Fenced> {
        // A back-end that is stuck in writing never comes to read its end.
        self.drain();
        self.next_look = now.checked_add(LOOK).unwrap_or(now);
        if socket::peer_is_gone(self.socket.as_fd()) {
            return Some(Fenced::Gone);
        }
        self.limit.take_if(|limit| *limit <= now)?;
        if self.process.take().is_some_and(|process| process.kill()) {
            self.limit = now.checked_add(KILLED);
            return None;
        }
        self.overdue = true;
        Some(Fenced::Unfenced)
    }

    /// Whether [`Fenced::Unfenced`] was said.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// When [`step`](Self::step) has something to do because of the time.
    pub(crate) fn due(&self) -> Option<Instant> {
        let look = (!self.pollable).then_some(self.next_look);
        [look, self.limit].into_iter().flatten().min()
    }

    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch {
            fd: self.socket.as_fd(),
            read: self.pollable,
            write: false,
            end: false,
        }
    }

    /// Gives up waiting.
    pub(crate) fn into_socket(self) -> S {
        self.socket
    }

    /// Drops what has come, descriptors too.
    fn drain(&self) {
        let mut buffer = [0; READ_SIZE];
        for _ in 0..READS {
            match socket::receive(self.socket.as_fd(), &mut buffer, false, drop) {
                Ok(received) if received.bytes > 0 => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}
