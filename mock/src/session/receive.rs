//! One message from the front-end.

use super::{End, Flow, Session};
use crate::message::{Header, Message};
use crate::mode::Pieces;
use crate::strict::{self, How, Refusal};
use crate::wire::{self, HEADER_SIZE, Read, Watched};
use nix::poll::PollFlags;
use std::os::fd::AsFd;

impl Session<'_> {
    /// Until the socket is readable; the device's state moves meanwhile.
    fn wait_readable(&mut self) -> Flow<()> {
        loop {
            let transfer = self
                .model
                .state
                .transfer
                .as_ref()
                .and_then(|transfer| transfer.waits_for());
            let mut watched = vec![
                Watched::new(&self.socket, PollFlags::POLLIN),
                Watched::new(&self.stop, PollFlags::POLLIN),
            ];
            watched.extend(transfer.map(|(file, events)| Watched::new(file, events)));
            wire::wait(&mut watched, None)?;
            let happened = |at: usize| watched.get(at).is_some_and(Watched::any);
            let (readable, stopped, moves) = (happened(0), happened(1), happened(2));
            if let Some(transfer) = self.model.state.transfer.as_mut().filter(|_| moves) {
                transfer.step();
            } else if readable {
                return Ok(());
            } else if stopped {
                return Err(End::Stopped.into());
            }
        }
    }

    /// Whatever is there, once something is.
    fn read(&mut self, room: usize) -> Flow<Read> {
        loop {
            self.wait_readable()?;
            match wire::read(self.socket.as_fd(), room)? {
                Some(read) if read.bytes.is_empty() => return Err(End::FrontEnd.into()),
                Some(read) => return Ok(read),
                None => {}
            }
        }
    }

    /// So many bytes, if need be in several reads.
    fn read_all(&mut self, size: usize) -> Flow<Read> {
        let mut all = Read::default();
        while let Some(room) = size.checked_sub(all.bytes.len()).filter(|room| *room > 0) {
            let mut part = self.read(room)?;
            all.bytes.append(&mut part.bytes);
            all.fds.append(&mut part.fds);
        }
        Ok(all)
    }

    /// A message, or why there is none although something came.
    pub(super) fn receive(&mut self) -> Flow<Result<Message, (String, Refusal)>> {
        let habits = self.model.habits;
        let close = |text: &str, why: &str| {
            Ok(Err((
                text.to_owned(),
                Refusal {
                    how: How::Close,
                    why: why.to_owned(),
                },
            )))
        };
        // Real back-ends read once and take what they get.
        let whole = habits.pieces == Pieces::Wait;
        let head = if whole {
            self.read_all(HEADER_SIZE)?
        } else {
            self.read(HEADER_SIZE)?
        };
        if head.bytes.len() < HEADER_SIZE && habits.pieces == Pieces::Close {
            return close("part of a header", "a message must arrive whole");
        }
        let header = Header::parse(&head.bytes);
        let mut message = Message {
            header,
            payload: Vec::new(),
            fds: head.fds,
        };
        if message.fds.len() > habits.max_fds {
            if habits.pieces == Pieces::Close {
                return close(&message.text(), "too many descriptors");
            }
            message.fds.truncate(habits.max_fds);
        }
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > strict::max_payload(self.backend.script.mode) {
            return close(
                &crate::message::name(header.code),
                "the message is too large",
            );
        }
        if size > 0 {
            let mut body = if whole {
                self.read_all(size)?
            } else {
                self.read(size)?
            };
            message.payload = body.bytes;
            if message.payload.len() < size {
                return close(&message.text(), "a message must arrive whole");
            }
            // Descriptors go with the first byte; nobody looks for them here.
            let late = body.fds.len();
            body.fds.clear();
            if late > 0 {
                self.backend.log.line(format!(
                    "! {late} descriptors came with the payload and are lost"
                ));
            }
        }
        Ok(Ok(message))
    }
}
