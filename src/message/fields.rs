//! Messages in words: one table of what is shown of each, and the lines that
//! come of it. Numbers that the table names, and nothing else, so never a key.
//!
//! The scripted back-end writes the same lines from a table of its own, and the
//! tests hold one against the other.

use super::{
    BackendRequest, Header, MemRegion, Name, PROTOCOL_FEATURE_NAMES, REGION_SIZE, Request, flags,
};
use std::fmt::{self, Display, Formatter};
use zerocopy::FromBytes;

/// Which socket a message goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// The connection.
    Main,
    /// The back-end's own channel.
    Channel,
}

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// From the front-end to the back-end.
    Sent,
    /// From the back-end to the front-end.
    Received,
}

/// A number in a payload.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    at: usize,
    width: usize,
    /// Of a number that holds two: how far right, and how many bits.
    part: Option<(u32, u32)>,
}

const fn field(name: &'static str, at: usize, width: usize) -> Field {
    Field {
        name,
        at,
        width,
        part: None,
    }
}

const fn part(name: &'static str, shift: u32, bits: u32) -> Field {
    Field {
        part: Some((shift, bits)),
        ..field(name, 0, 8)
    }
}

/// A payload, which may lie in two pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload<'a>(pub(crate) &'a [u8], pub(crate) &'a [u8]);

impl Payload<'_> {
    fn len(self) -> usize {
        self.0.len().saturating_add(self.1.len())
    }

    /// These bytes, at the beginning of as many as there may be.
    fn bytes<const N: usize>(self, at: usize, width: usize) -> Option<[u8; N]> {
        let mut found = [0; N];
        let mut places = found.get_mut(..width)?.iter_mut();
        let first = self.0.get(at..).unwrap_or_default();
        let behind = at.saturating_sub(self.0.len());
        let second = self.1.get(behind..).unwrap_or_default();
        for byte in first.iter().chain(second) {
            match places.next() {
                Some(place) => *place = *byte,
                None => return Some(found),
            }
        }
        places.next().is_none().then_some(found)
    }
}

impl Field {
    /// Its value, if the payload is long enough.
    fn read(&self, payload: Payload<'_>) -> Option<u128> {
        let at = self.at;
        let whole = match self.width {
            1 => u8::from_ne_bytes(payload.bytes(at, 1)?).into(),
            2 => u16::from_ne_bytes(payload.bytes(at, 2)?).into(),
            4 => u32::from_ne_bytes(payload.bytes(at, 4)?).into(),
            8 => u64::from_ne_bytes(payload.bytes(at, 8)?).into(),
            // Only UUIDs are that wide, and they are read from left to right.
            _ => u128::from_be_bytes(payload.bytes(at, 16)?),
        };
        Some(match self.part {
            Some((shift, bits)) => {
                let mask = 1_u128.checked_shl(bits)?.saturating_sub(1);
                whole.checked_shr(shift)? & mask
            }
            None => whole,
        })
    }
}

type Fields = &'static [Field];

const NONE: Fields = &[];
const VALUE: Fields = &[field("value", 0, 8)];
const STATE: Fields = &[field("index", 0, 4), field("num", 4, 4)];
const VRING_FD: Fields = &[part("index", 0, 8), part("no-fd", 8, 1)];
const TABLE: Fields = &[field("regions", 0, 4)];
const ADDR: Fields = &[
    field("index", 0, 4),
    field("flags", 4, 4),
    field("desc", 8, 8),
    field("used", 16, 8),
    field("avail", 24, 8),
    field("log", 32, 8),
];
const REGION: Fields = &[
    field("guest-addr", 8, 8),
    field("region-size", 16, 8),
    field("user-addr", 24, 8),
    field("mmap-offset", 32, 8),
];
const LOG: Fields = &[field("mmap-size", 0, 8), field("mmap-offset", 8, 8)];
const CONFIG: Fields = &[
    field("offset", 0, 4),
    field("config-size", 4, 4),
    field("flags", 8, 4),
];
const INFLIGHT: Fields = &[
    field("mmap-size", 0, 8),
    field("mmap-offset", 8, 8),
    field("queues", 16, 2),
    field("queue-size", 18, 2),
];
const IOTLB: Fields = &[
    field("iova", 0, 8),
    field("iotlb-size", 8, 8),
    field("uaddr", 16, 8),
    field("perm", 24, 1),
    field("type", 25, 1),
];
const TRANSFER: Fields = &[field("direction", 0, 4), field("phase", 4, 4)];
const UUID: Fields = &[field("uuid", 0, 16)];
/// What lies between is the keys.
const CRYPTO: Fields = &[field("op", 0, 8), field("session", 1064, 8)];
const NOTIFIER: Fields = &[
    part("index", 0, 8),
    part("no-fd", 8, 1),
    field("area-size", 8, 8),
    field("area-offset", 16, 8),
];
const SHMEM: Fields = &[
    field("shmid", 0, 1),
    field("fd-offset", 8, 8),
    field("shm-offset", 16, 8),
    field("len", 24, 8),
    field("flags", 32, 8),
];

/// What is shown of a request, and of a reply that is not just a number.
fn shown(request: Request) -> (Fields, Fields) {
    use Request as R;
    match request {
        R::SetFeatures
        | R::SetProtocolFeatures
        | R::SendRarp
        | R::NetSetMtu
        | R::CloseCryptoSession
        | R::SetStatus => (VALUE, VALUE),
        R::SetVringNum | R::SetVringBase | R::SetVringEnable | R::SetVringEndian | R::VringKick => {
            (STATE, VALUE)
        }
        R::GetVringBase | R::GetVringBaseSkipDrain => (STATE, STATE),
        R::SetVringKick | R::SetVringCall | R::SetVringErr => (VRING_FD, VALUE),
        R::SetVringAddr => (ADDR, VALUE),
        R::SetMemTable => (TABLE, TABLE),
        R::AddMemReg | R::RemMemReg => (REGION, VALUE),
        R::SetLogBase => (LOG, VALUE),
        R::GetConfig => (CONFIG, CONFIG),
        R::SetConfig => (CONFIG, VALUE),
        R::GetInflightFd => (INFLIGHT, INFLIGHT),
        R::SetInflightFd => (INFLIGHT, VALUE),
        R::IotlbMsg => (IOTLB, VALUE),
        R::SetDeviceStateFd => (TRANSFER, VALUE),
        R::GetSharedObject => (UUID, NONE),
        R::PostcopyAdvise => (NONE, NONE),
        R::CreateCryptoSession => (CRYPTO, CRYPTO),
        R::GetShmemConfig => (NONE, TABLE),
        R::GetFeatures
        | R::SetOwner
        | R::ResetOwner
        | R::SetLogFd
        | R::GetProtocolFeatures
        | R::GetQueueNum
        | R::SetBackendReqFd
        | R::PostcopyListen
        | R::PostcopyEnd
        | R::GpuSetSocket
        | R::ResetDevice
        | R::GetMaxMemSlots
        | R::GetStatus
        | R::CheckDeviceState => (NONE, VALUE),
    }
}

/// The same for the requests of the back-end.
fn asked(request: BackendRequest) -> Fields {
    use BackendRequest as R;
    match request {
        R::Iotlb => IOTLB,
        R::ConfigChange => NONE,
        R::HostNotifier => NOTIFIER,
        R::VringCall | R::VringErr => STATE,
        R::SharedObjectAdd | R::SharedObjectRemove | R::SharedObjectLookup => UUID,
        R::ShmemMap | R::ShmemUnmap => SHMEM,
    }
}

/// A message that is to be put into words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) socket: Socket,
    pub(crate) flow: Flow,
    pub(crate) header: Header,
    /// As much of it as there is.
    pub(crate) payload: Payload<'a>,
    pub(crate) fds: usize,
    /// Of a reply: what was asked, which says what the reply is made of.
    pub(crate) asked: Option<Request>,
}

impl Line<'_> {
    fn is_reply(&self) -> bool {
        (self.socket == Socket::Main) == (self.flow == Flow::Received)
    }

    /// The front-end's request of this number.
    fn request(&self) -> Option<Request> {
        Request::from_id(self.header.request)
    }

    /// The request that it is, or that it answers.
    fn kind(&self) -> Option<Request> {
        self.asked.or(self.request())
    }

    /// In the text and for C; on the channel the specification's without
    /// `BACKEND_`.
    pub(crate) fn name(&self) -> Option<Name> {
        match self.socket {
            Socket::Main => self.request().map(|request| request.info().name),
            Socket::Channel => {
                let name = BackendRequest::from_id(self.header.request)?.info().name;
                Some(name.without(c"BACKEND_"))
            }
        }
    }

    fn fields(&self) -> Fields {
        match (self.socket, self.is_reply()) {
            (Socket::Main, false) => self.request().map_or(NONE, |request| shown(request).0),
            (Socket::Main, true) => {
                match self.kind() {
                    // Answered with a table only while there is postcopy.
                    Some(Request::SetMemTable) if self.payload.len() == 8 => VALUE,
                    kind => kind.map_or(VALUE, |request| shown(request).1),
                }
            }
            (Socket::Channel, true) => VALUE,
            (Socket::Channel, false) => {
                BackendRequest::from_id(self.header.request).map_or(NONE, asked)
            }
        }
    }

    /// Whether a request is as long as its kind is.
    fn is_of_its_size(&self) -> bool {
        let size = usize::try_from(self.header.size).unwrap_or(usize::MAX);
        match self.socket {
            Socket::Channel => BackendRequest::from_id(self.header.request)
                .is_some_and(|request| request.info().payload.contain(size)),
            Socket::Main => match self.request() {
                // It comes in several forms, and says how many there are.
                Some(Request::SetMemTable) => true,
                Some(request) => request.info().payload.contain(size),
                None => false,
            },
        }
    }
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.socket == Socket::Channel {
            f.write_str("channel ")?;
        }
        f.write_str(match self.flow {
            Flow::Sent => "> ",
            Flow::Received => "< ",
        })?;
        match self.name() {
            Some(name) => write!(f, "{name}")?,
            None => write!(f, "request-{}", self.header.request)?,
        }
        let usual = match self.is_reply() {
            true => flags::VERSION | flags::REPLY,
            false => {
                if self.header.flags & flags::NEED_REPLY != 0 {
                    f.write_str(" need-reply")?;
                }
                flags::VERSION | self.header.flags & flags::NEED_REPLY
            }
        };
        if self.header.flags != usual {
            write!(f, " flags={:#x}", self.header.flags)?;
        }
        for field in self.fields() {
            if let Some(value) = field.read(self.payload) {
                write!(f, " {}={}", field.name, Number(value))?;
            }
        }
        let size = usize::try_from(self.header.size).unwrap_or(usize::MAX);
        if !self.is_reply() && !self.is_of_its_size() {
            write!(f, " size={}", self.header.size)?;
        } else if self.is_reply() && size != self.payload.len() {
            let size = Number(self.header.size.into());
            write!(f, " size={size} payload={}", self.payload.len())?;
        }
        if self.fds > 0 {
            write!(f, " fds={}", self.fds)?;
        }
        match (self.kind(), self.socket, self.is_reply()) {
            (Some(Request::SetMemTable), Socket::Main, false) => self.regions(f),
            (Some(Request::SetProtocolFeatures), Socket::Main, false)
            | (Some(Request::GetProtocolFeatures), Socket::Main, true) => self.features(f),
            _ => Ok(()),
        }
    }
}

impl Line<'_> {
    fn regions(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const HEADER: usize = 8;
        let count = TABLE.iter().find_map(|field| field.read(self.payload));
        let count = count.and_then(|count| usize::try_from(count).ok());
        let bytes = self.payload.len().saturating_sub(HEADER);
        // With XEN_MMAP they are larger.
        let size = match count.and_then(|count| bytes.checked_div(count)) {
            Some(size) if size == size_of::<MemRegion>() => size,
            _ => REGION_SIZE,
        };
        let mut at = HEADER;
        while let Some(region) = self
            .payload
            .bytes::<{ size_of::<MemRegion>() }>(at, size)
            .and_then(|bytes| MemRegion::read_from_bytes(&bytes).ok())
        {
            let MemRegion {
                guest_addr,
                size: len,
                user_addr,
                ..
            } = region;
            write!(f, " [{guest_addr:#x}+{len:#x}@{user_addr:#x}]")?;
            at = at.saturating_add(size);
        }
        Ok(())
    }

    fn features(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mask = VALUE.iter().find_map(|field| field.read(self.payload));
        let mask = mask.unwrap_or_default();
        let mut before = " (";
        for (bit, name) in PROTOCOL_FEATURE_NAMES {
            if mask.checked_shr(bit).is_some_and(|mask| mask & 1 != 0) {
                write!(f, "{before}{name}")?;
                before = " ";
            }
        }
        f.write_str(if before == " " { ")" } else { " ()" })
    }
}

/// As people read it: small ones decimal, large ones hexadecimal.
struct Number(u128);

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match u16::try_from(self.0) {
            Ok(small) => write!(f, "{small}"),
            Err(_) => write!(f, "{:#x}", self.0),
        }
    }
}
