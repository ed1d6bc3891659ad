//! Bytes and descriptors that arrived, until they make whole messages.

use crate::error::{Error, Phase, Result};
use crate::message::{HEADER_SIZE, Header, MAX_REPLY_PAYLOAD};
use crate::socket::{self, ForeignFd, MAX_FDS_RECEIVED};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use zerocopy::FromBytes;

/// Largest payload for which there is room.
pub(super) const MAX_PAYLOAD: usize = MAX_REPLY_PAYLOAD;
const CAPACITY: usize = HEADER_SIZE + MAX_PAYLOAD;
/// Bytes of a header, as a position in the stream counts.
const HEADER: u64 = 12;
const _: () = assert!(HEADER_SIZE == 12);

/// A fixed buffer: one read usually brings one whole message. Who holds the inbox
/// is the one who reads.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: [u8; CAPACITY],
    /// Where the unread bytes begin and end.
    start: usize,
    end: usize,
    /// Descriptors, each with the position in the stream where
    /// the read that brought it ended.
    fds: [Option<(u64, ForeignFd)>; MAX_FDS_RECEIVED],
    /// Position in the stream of `start`.
    consumed: u64,
    /// The stream broke the protocol in a way seen while reading, in the message that
    /// this position ends or lies in.
    broken: Option<(u64, Error)>,
    /// Bytes and descriptors read since [`take_traffic`](Self::take_traffic).
    traffic: (usize, usize),
}

/// What a [`fill`](Inbox::fill) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    Bytes,
    /// Nothing there (yet), or a signal came.
    Nothing,
    /// The end of the stream.
    End,
}

impl Inbox {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            bytes: [0; CAPACITY],
            start: 0,
            end: 0,
            fds: [const { None }; MAX_FDS_RECEIVED],
            consumed: 0,
            broken: None,
            traffic: (0, 0),
        })
    }

    /// One read from the socket.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>, wait: bool) -> nix::Result<Filled> {
        self.make_room();
        let start = self.start;
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        let fds = &mut self.fds;
        let mut surplus = false;
        let mut came = 0_usize;
        let received = socket::receive(socket, room, wait, |fd| {
            came = came.saturating_add(1);
            // The position is filled in below, when the length is known.
            match fds.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some((u64::MAX, fd)),
                None => surplus = true,
            }
        });
        let received = match received {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Filled::Nothing),
            Err(errno) => return Err(errno),
        };
        self.end = self.end.saturating_add(received.bytes);
        self.traffic.0 = self.traffic.0.saturating_add(received.bytes);
        self.traffic.1 = self.traffic.1.saturating_add(came);
        // The kernel never lets one read cross a message that carried
        // descriptors: they belong to the message in which the read ended.
        let position = self
            .consumed
            .saturating_add(u64::try_from(self.end.saturating_sub(start)).unwrap_or(u64::MAX));
        for place in self.fds.iter_mut().flatten() {
            place.0 = place.0.min(position);
        }
        let full = surplus || self.fds.iter().all(Option::is_some);
        if full && (surplus || received.truncated) {
            let text = "the back-end sent more file descriptors than any message may carry";
            let error = || (position, Error::protocol(text));
            self.broken.get_or_insert_with(error);
        } else if received.truncated {
            // There was room for them here, but not in the table of this process.
            let text = "cannot take a file descriptor of the back-end";
            let error = Error::os(Errno::EMFILE, text).during(Phase::Reply);
            self.broken.get_or_insert((position, error));
        }
        Ok(if received.bytes == 0 {
            Filled::End
        } else {
            Filled::Bytes
        })
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
    }

    /// Forgets everything, and closes the descriptors: the stream is lost.
    pub(super) fn discard(&mut self) {
        (self.start, self.end) = (0, 0);
        self.fds.fill_with(|| None);
        self.broken = None;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.fds.iter().all(Option::is_none)
    }

    /// What has been read since this was asked last.
    pub(super) fn take_traffic(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.traffic)
    }

    /// As much as there is of the payload of the message that `header` begins.
    pub(super) fn arrived(&self, header: Header) -> &[u8] {
        let unread = self.bytes.get(self.start..self.end).unwrap_or_default();
        let rest = unread.get(HEADER_SIZE..).unwrap_or_default();
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        rest.get(..size).unwrap_or(rest)
    }

    /// Whether there is a message that needs no further read.
    pub(super) fn holds_message(&self) -> bool {
        let unread = self.bytes.get(self.start..self.end).unwrap_or_default();
        Header::read_from_prefix(unread).is_ok_and(|(header, rest)| {
            let size = usize::try_from(header.size).unwrap_or(usize::MAX);
            // One that never fits is for the next look at the header to refuse.
            rest.len() >= size || size > MAX_PAYLOAD
        })
    }

    /// The header of the next message, as soon as it is there.
    pub(super) fn header(&mut self) -> Result<Option<Header>> {
        let unread = self.bytes.get(self.start..self.end).unwrap_or_default();
        let header = Header::read_from_prefix(unread)
            .ok()
            .map(|(header, _)| header);
        // What came before it is whole and well.
        let end = header.map_or(u64::MAX, |header| {
            let whole = u64::from(header.size).saturating_add(HEADER);
            self.consumed.saturating_add(whole)
        });
        match self.broken.take_if(|(position, _)| *position <= end) {
            Some((_, error)) => Err(error),
            None => Ok(header),
        }
    }

    /// The payload of the message that `header` begins, once it is all there;
    /// its descriptors go to `take`. The message is consumed.
    pub(super) fn payload(&mut self, header: Header, take: impl FnMut(ForeignFd)) -> Option<&[u8]> {
        let size = usize::try_from(header.size).ok()?;
        let from = self.start.checked_add(HEADER_SIZE)?;
        let to = from.checked_add(size).filter(|to| *to <= self.end)?;
        let whole = to.saturating_sub(self.start);
        self.consumed = self
            .consumed
            .saturating_add(u64::try_from(whole).unwrap_or(u64::MAX));
        self.start = to;
        let consumed = self.consumed;
        self.fds
            .iter_mut()
            .filter_map(|place| place.take_if(|(position, _)| *position <= consumed))
            .map(|(_, fd)| fd)
            .for_each(take);
        self.bytes.get(from..to)
    }
}
