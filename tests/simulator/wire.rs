//! The back-end's end of the connection: messages as bytes and descriptors. It shares no
//! code with the library.

use nix::cmsg_space;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, UnixAddr, recvmsg, sendmsg, shutdown,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

const HEADER: usize = 12;

/// One message of the front-end.
#[derive(Debug)]
pub struct Message {
    pub code: u32,
    pub need_reply: bool,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// A 32-bit field of the payload.
    pub fn half(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4).unwrap_or(&[0; 4]);
        u32::from_ne_bytes(bytes.try_into().unwrap())
    }

    /// A 64-bit field of the payload.
    pub fn word(&self, at: usize) -> u64 {
        let bytes = self.payload.get(at..at + 8).unwrap_or(&[0; 8]);
        u64::from_ne_bytes(bytes.try_into().unwrap())
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Wire {
    socket: UnixStream,
    inbox: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// How many bytes were read: up to the end of the last message.
    pub received: usize,
    /// The front-end sends nothing more.
    pub ended: bool,
}

impl Wire {
    /// The back-end's end.
    pub fn new(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            inbox: Vec::new(),
            fds: Vec::new(),
            received: 0,
            ended: false,
        }
    }

    /// Reads until the inbox has this many bytes; whether it has.
    fn fill(&mut self, bytes: usize) -> bool {
        while self.inbox.len() < bytes {
            let mut room = [0; 4096];
            let most = room.len().min(bytes - self.inbox.len());
            let mut control = cmsg_space!([RawFd; 16]);
            let mut parts = [IoSliceMut::new(&mut room[..most])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let fd = self.socket.as_raw_fd();
            let Ok(got) = recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut control), flags) else {
                return false;
            };
            for message in got.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(received) = message {
                    for fd in received {
                        // SAFETY: the kernel has just made it, and nothing else owns it.
                        self.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                    }
                }
            }
            let count = got.bytes;
            if count == 0 {
                self.ended = true;
                return false;
            }
            self.inbox.extend(&room[..count]);
            self.received += count;
        }
        true
    }

    /// The next whole message.
    pub fn receive(&mut self) -> Option<Message> {
        if !self.fill(HEADER) {
            return None;
        }
        let word = |at: usize| u32::from_ne_bytes(self.inbox[at..at + 4].try_into().unwrap());
        let (code, flags, size) = (word(0), word(4), usize::try_from(word(8)).unwrap());
        if !self.fill(HEADER + size) {
            return None;
        }
        let payload = self.inbox.split_off(HEADER);
        self.inbox.clear();
        Some(Message {
            code,
            need_reply: flags & 8 != 0,
            payload,
            fds: std::mem::take(&mut self.fds),
        })
    }

    /// How many bytes the front-end has sent.
    pub fn sent(&self) -> usize {
        let mut unread: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one int.
        unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
        self.received + usize::try_from(unread).unwrap()
    }

    /// The front-end has ended its side, even if something is left to be read.
    pub fn other_side_ended(&self) -> bool {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let event = EpollEvent::new(EpollFlags::EPOLLRDHUP, 0);
        epoll.add(self.socket.as_fd(), event).unwrap();
        let mut events = [EpollEvent::empty()];
        epoll.wait(&mut events, EpollTimeout::ZERO) == Ok(1)
    }

    /// Sends bytes, without waiting.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        if !bytes.is_empty() {
            let parts = [IoSlice::new(bytes)];
            // The front-end may have ended the connection.
            let _ = sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &parts, control, flags, None);
        }
    }

    /// Sends nothing more, and keeps the end open.
    pub fn end_writing(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
    }
}

/// A reply.
pub fn reply(code: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let header = [code, 5, size];
    let mut bytes: Vec<u8> = header.iter().flat_map(|n| n.to_ne_bytes()).collect();
    bytes.extend(payload);
    bytes
}
