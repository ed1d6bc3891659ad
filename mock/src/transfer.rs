//! The device's state on its way over a pipe or socket, a step at a time, so
//! that nothing else has to wait for it.

use nix::poll::PollFlags;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};

/// A pipe that may be written takes this much without waiting (PIPE_BUF).
const CHUNK: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Until the end, which the other side sees when this is closed.
    file: Option<File>,
    direction: Direction,
    failed: bool,
}

#[derive(Debug)]
enum Direction {
    Save(std::io::Cursor<Vec<u8>>),
    Load(Vec<u8>),
}

impl Transfer {
    /// From the device to the file.
    pub(crate) fn save(file: File, state: Vec<u8>) -> Self {
        let direction = Direction::Save(std::io::Cursor::new(state));
        Self {
            file: Some(file),
            direction,
            failed: false,
        }
    }

    /// From the file to the device.
    pub(crate) fn load(file: File) -> Self {
        Self {
            file: Some(file),
            direction: Direction::Load(Vec::new()),
            failed: false,
        }
    }

    /// What to wait for, until there is nothing left to do.
    pub(crate) fn waits_for(&self) -> Option<(&File, PollFlags)> {
        let events = match self.direction {
            Direction::Save(_) => PollFlags::POLLOUT,
            Direction::Load(_) => PollFlags::POLLIN,
        };
        self.file.as_ref().map(|file| (file, events))
    }

    /// Moves some bytes; called when the wait is over.
    pub(crate) fn step(&mut self) {
        let Some(file) = &mut self.file else { return };
        let mut chunk = Vec::with_capacity(CHUNK);
        let limit = u64::try_from(CHUNK).unwrap_or(u64::MAX);
        let moved = match &mut self.direction {
            Direction::Save(state) => {
                let start = state.position();
                let read = state.take(limit).read_to_end(&mut chunk);
                let moved = read.and_then(|_| match chunk.as_slice() {
                    [] => Ok(0),
                    chunk => file.write(chunk),
                });
                let done = moved.as_ref().copied().unwrap_or(0);
                state.set_position(start.saturating_add(u64::try_from(done).unwrap_or(0)));
                moved
            }
            Direction::Load(state) => {
                chunk.resize(CHUNK, 0);
                let moved = file.read(&mut chunk);
                let count = moved.as_ref().copied().unwrap_or(0);
                state.extend(chunk.iter().take(count));
                moved
            }
        };
        match moved {
            Ok(0) => self.file = None,
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(_) => {
                self.failed = true;
                self.file = None;
            }
        }
    }

    /// Whether all of it went over.
    pub(crate) fn good(&self) -> bool {
        self.file.is_none() && !self.failed
    }

    /// What came, if it was to come.
    pub(crate) fn loaded(self) -> Option<Vec<u8>> {
        match self.direction {
            Direction::Load(state) => Some(state),
            Direction::Save(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn run(transfer: &mut Transfer) {
        while transfer.waits_for().is_some() {
            transfer.step();
        }
    }

    #[test]
    fn state_goes_out_and_comes_in() {
        let state: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (OwnedFd::from(ours), OwnedFd::from(theirs));
        let mut save = Transfer::save(File::from(ours), state.clone());
        run(&mut save);
        assert!(save.good());
        let mut load = Transfer::load(File::from(theirs));
        run(&mut load);
        assert!(load.good());
        assert_eq!(load.loaded(), Some(state));
    }
}
