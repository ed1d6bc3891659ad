//! The floor: the system calls that a front-end cannot do without, and nothing else.
//! Replies are not looked at but for their length and value.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use vhost_user_frontend::message::{ProtocolFeatures, Request, flags};

/// A message, ready to be sent.
pub struct Message {
    bytes: Vec<u8>,
    fd: Option<RawFd>,
}

impl Message {
    /// One that wants an acknowledgement, or has a reply of its own.
    pub fn new(request: Request, payload: &[u8], fd: Option<RawFd>) -> Self {
        let asks = match request {
            Request::GetFeatures | Request::GetProtocolFeatures => 0,
            _ => flags::NEED_REPLY,
        };
        Self::flagged(request, asks, payload, fd)
    }

    fn flagged(request: Request, asks: u32, payload: &[u8], fd: Option<RawFd>) -> Self {
        let size = u32::try_from(payload.len()).unwrap();
        let header = [request.id(), flags::VERSION | asks, size].map(u32::to_ne_bytes);
        Self {
            bytes: [&header.concat(), payload].concat(),
            fd,
        }
    }
}

/// A control message with one descriptor.
#[repr(C)]
struct Control {
    length: usize,
    level: libc::c_int,
    kind: libc::c_int,
    fd: RawFd,
}

/// What `sendmsg` takes, for one message.
struct Sendable {
    part: libc::iovec,
    control: Option<Control>,
}

impl Sendable {
    fn new(message: &Message) -> Self {
        let control = message.fd.map(|fd| Control {
            // To the end of the descriptor, without what follows to align the next.
            length: std::mem::offset_of!(Control, fd) + size_of_val(&fd),
            level: libc::SOL_SOCKET,
            kind: libc::SCM_RIGHTS,
            fd,
        });
        Self {
            part: libc::iovec {
                iov_base: message.bytes.as_ptr().cast_mut().cast(),
                iov_len: message.bytes.len(),
            },
            control,
        }
    }

    fn header(&mut self) -> libc::msghdr {
        // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut self.part;
        header.msg_iovlen = 1;
        if let Some(control) = &mut self.control {
            header.msg_controllen = size_of_val(control);
            header.msg_control = std::ptr::from_mut(control).cast();
        }
        header
    }
}

/// How many requests may be unanswered at once, and how many of these may carry a
/// descriptor.
const WINDOW: usize = 64;
const FD_WINDOW: usize = 16;
/// The reply that is a number.
pub const ACK: usize = 20;

pub struct Bare(UnixStream);

impl Bare {
    pub fn connect(path: &Path) -> Self {
        Self(UnixStream::connect(path).unwrap())
    }

    /// One `sendmsg`.
    pub fn send(&self, message: &Message) {
        let mut sendable = Sendable::new(message);
        let header = sendable.header();
        // SAFETY: `header` points to `sendable` and `message`, which outlive the call.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const header, 0) };
        assert_eq!(usize::try_from(sent), Ok(message.bytes.len()));
    }

    /// One `recvmsg` of at most so many bytes.
    fn receive(&self, bytes: &mut [u8], flags: libc::c_int) -> Option<usize> {
        let mut part = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        // SAFETY: `header` points to `part` and `bytes`, which outlive the call.
        let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut header, flags) };
        usize::try_from(got).ok()
    }

    /// Sends, and blocks for a reply that is a number.
    pub fn call(&self, message: &Message) -> u64 {
        self.send(message);
        let mut bytes = [0; ACK];
        let mut filled = 0;
        // libvhost-user writes it in two pieces.
        while filled < ACK {
            filled += self.receive(&mut bytes[filled..], 0).unwrap();
        }
        u64::from_ne_bytes(bytes[12..].try_into().unwrap())
    }

    /// The same without sleeping.
    pub fn call_spinning(&self, message: &Message) -> u64 {
        self.send(message);
        let mut bytes = [0; ACK];
        let mut filled = 0;
        while filled < ACK {
            match self.receive(&mut bytes[filled..], libc::MSG_DONTWAIT) {
                Some(more) => filled += more,
                None => std::hint::spin_loop(),
            }
        }
        u64::from_ne_bytes(bytes[12..].try_into().unwrap())
    }

    /// Agrees on protocol features, takes the back-end, and agrees on features:
    /// those that all contenders agree on.
    pub fn negotiate(&self, features: u64, protocol: ProtocolFeatures) {
        let set = |request, value: u64, asks| {
            self.send(&Message::flagged(request, asks, &value.to_ne_bytes(), None));
        };
        let get = |request| self.call(&Message::new(request, &[], None));
        assert_eq!(get(Request::GetFeatures) & features, features);
        let offered = get(Request::GetProtocolFeatures);
        assert_eq!(offered & protocol.bits(), protocol.bits());
        set(Request::SetProtocolFeatures, protocol.bits(), 0);
        assert_eq!(self.call(&Message::new(Request::SetOwner, &[], None)), 0);
        let value = features.to_ne_bytes();
        assert_eq!(
            self.call(&Message::new(Request::SetFeatures, &value, None)),
            0
        );
    }

    /// Sends all of them within the windows by `sendmmsg`, reading while it sends,
    /// until each is acknowledged. With `spin`, without sleeping: then it costs the
    /// back-end nothing to wake us at each of its answers.
    pub fn pipeline(&self, messages: &[Message], spin: bool) {
        let mut sendables: Vec<_> = messages.iter().map(Sendable::new).collect();
        let mut headers: Vec<_> = sendables
            .iter_mut()
            .map(|it| libc::mmsghdr {
                msg_hdr: it.header(),
                msg_len: 0,
            })
            .collect();
        let carries = |range: std::ops::Range<usize>| {
            let fds = messages[range].iter().filter(|it| it.fd.is_some());
            fds.count()
        };
        let (mut sent, mut acked) = (0, 0);
        let mut bytes = [0; WINDOW * ACK];
        let mut filled = 0;
        while acked < messages.len() {
            let mut fds = carries(acked..sent);
            let mut end = sent;
            while end < messages.len() && end - acked < WINDOW {
                fds += usize::from(messages[end].fd.is_some());
                if fds > FD_WINDOW {
                    break;
                }
                end += 1;
            }
            let batch = &mut headers[sent..end];
            if !batch.is_empty() {
                let count = u32::try_from(batch.len()).unwrap();
                let flags = libc::MSG_DONTWAIT;
                // SAFETY: the headers point to `sendables` and `messages`, which
                // outlive the call.
                let done =
                    unsafe { libc::sendmmsg(self.0.as_raw_fd(), batch.as_mut_ptr(), count, flags) };
                // None: there is no room before some are read.
                sent += usize::try_from(done).unwrap_or_default();
            }
            // Half of what is under way, so that the back-end always has work; all
            // if there is no more.
            let under_way = sent - acked;
            let wanted = match sent == messages.len() {
                true => under_way,
                false => under_way.div_ceil(2),
            };
            while filled < wanted * ACK {
                match self.receive(
                    &mut bytes[filled..],
                    if spin { libc::MSG_DONTWAIT } else { 0 },
                ) {
                    Some(more) => filled += more,
                    None => std::hint::spin_loop(),
                }
            }
            let whole = filled / ACK;
            for ack in bytes[..whole * ACK].chunks_exact(ACK) {
                assert_eq!(ack[12..], [0; 8], "a request was refused");
            }
            bytes.copy_within(whole * ACK..filled, 0);
            filled -= whole * ACK;
            acked += whole;
        }
    }
}
