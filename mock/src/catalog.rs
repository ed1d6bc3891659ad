//! The messages of the protocol as data: numbers, names, fields, sizes. This is
//! its own reading of the specification, on purpose not the library's.

use std::fmt;

/// A number inside a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    at: usize,
    width: usize,
    shift: u32,
    mask: u128,
}

impl Field {
    const fn new(name: &'static str, at: usize, width: usize) -> Self {
        Self {
            name,
            at,
            width,
            shift: 0,
            mask: u128::MAX,
        }
    }

    /// Some bits of a u64.
    const fn bits(name: &'static str, shift: u32, mask: u128) -> Self {
        Self {
            name,
            at: 0,
            width: 8,
            shift,
            mask,
        }
    }

    fn end(self) -> usize {
        self.at.saturating_add(self.width)
    }

    fn whole(self, payload: &[u8]) -> Option<u128> {
        let bytes = payload.get(self.at..self.end())?;
        Some(match self.width {
            1 => u8::from_ne_bytes(bytes.try_into().ok()?).into(),
            2 => u16::from_ne_bytes(bytes.try_into().ok()?).into(),
            4 => u32::from_ne_bytes(bytes.try_into().ok()?).into(),
            8 => u64::from_ne_bytes(bytes.try_into().ok()?).into(),
            // Only UUIDs are that wide, and they read from left to right.
            _ => u128::from_be_bytes(bytes.try_into().ok()?),
        })
    }

    /// Its value, if the payload is long enough.
    pub(crate) fn read(self, payload: &[u8]) -> Option<u128> {
        Some(self.whole(payload)?.checked_shr(self.shift)? & self.mask)
    }

    /// Puts a value in; `None` if it does not fit.
    pub(crate) fn write(self, payload: &mut [u8], value: u128) -> Option<()> {
        let shifted = value.checked_shl(self.shift)?;
        let place = self.mask.checked_shl(self.shift)?;
        if value & self.mask != value {
            return None;
        }
        let whole = self.whole(payload)? & !place | shifted;
        let bytes = match self.width {
            1 => u8::try_from(whole).ok()?.to_ne_bytes().to_vec(),
            2 => u16::try_from(whole).ok()?.to_ne_bytes().to_vec(),
            4 => u32::try_from(whole).ok()?.to_ne_bytes().to_vec(),
            8 => u64::try_from(whole).ok()?.to_ne_bytes().to_vec(),
            _ => whole.to_be_bytes().to_vec(),
        };
        payload
            .get_mut(self.at..self.end())?
            .copy_from_slice(&bytes);
        Some(())
    }
}

/// How long a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Exactly(usize),
    AtLeast(usize),
}

impl Size {
    pub(crate) fn allows(self, size: usize) -> bool {
        match self {
            Self::Exactly(right) => size == right,
            Self::AtLeast(least) => size >= least,
        }
    }

    pub(crate) fn least(self) -> usize {
        match self {
            Self::Exactly(size) | Self::AtLeast(size) => size,
        }
    }
}

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Always, with these fields.
    Always(&'static [Field]),
    /// With a u64 if REPLY_ACK was agreed and the request asks for it.
    Ack,
    /// Sometimes with a payload of its own; else as [`Answer::Ack`].
    Sometimes(&'static [Field]),
}

/// What must have been agreed before a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// The virtio feature bit is acknowledged.
    Virtio(u32),
    /// The protocol feature bit is acknowledged.
    Protocol(u32),
}

/// One kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) id: u32,
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [Field],
    pub(crate) size: Size,
    pub(crate) fds: usize,
    pub(crate) answer: Answer,
    pub(crate) gate: Gate,
}

const fn u16f(name: &'static str, at: usize) -> Field {
    Field::new(name, at, 2)
}
const fn u32f(name: &'static str, at: usize) -> Field {
    Field::new(name, at, 4)
}
const fn u64f(name: &'static str, at: usize) -> Field {
    Field::new(name, at, 8)
}

/// The one field of a u64 payload.
pub(crate) const VALUE: Field = u64f("value", 0);
pub(crate) const INDEX: Field = u32f("index", 0);
pub(crate) const NUM: Field = u32f("num", 4);
/// Of SET_VRING_KICK, CALL and ERR.
pub(crate) const FD_INDEX: Field = Field::bits("index", 0, 0xff);
pub(crate) const NO_FD: Field = Field::bits("no-fd", 8, 1);
pub(crate) const REGIONS: Field = u32f("regions", 0);
pub(crate) const INFLIGHT_QUEUES: Field = u16f("queues", 16);

/// The numbers of the front-end's requests.
pub(crate) mod id {
    #![allow(missing_docs, reason = "the names of the specification")]
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_LOG_BASE: u32 = 6;
    pub(crate) const SET_LOG_FD: u32 = 7;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SEND_RARP: u32 = 19;
    pub(crate) const NET_SET_MTU: u32 = 20;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const IOTLB_MSG: u32 = 22;
    pub(crate) const SET_VRING_ENDIAN: u32 = 23;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const CREATE_CRYPTO_SESSION: u32 = 26;
    pub(crate) const CLOSE_CRYPTO_SESSION: u32 = 27;
    pub(crate) const POSTCOPY_ADVISE: u32 = 28;
    pub(crate) const POSTCOPY_LISTEN: u32 = 29;
    pub(crate) const POSTCOPY_END: u32 = 30;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const GPU_SET_SOCKET: u32 = 33;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const VRING_KICK: u32 = 35;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    pub(crate) const SET_STATUS: u32 = 39;
    pub(crate) const GET_STATUS: u32 = 40;
    pub(crate) const GET_SHARED_OBJECT: u32 = 41;
    pub(crate) const SET_DEVICE_STATE_FD: u32 = 42;
    pub(crate) const CHECK_DEVICE_STATE: u32 = 43;
    pub(crate) const GET_SHMEM_CONFIG: u32 = 44;
    pub(crate) const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;
}

/// The numbers of virtio feature bits that mean something to the protocol.
pub(crate) mod virtio {
    pub(crate) const LOG_ALL: u32 = 26;
    pub(crate) const PROTOCOL_FEATURES: u32 = 30;
    pub(crate) const VERSION_1: u32 = 32;
    pub(crate) const IOMMU_PLATFORM: u32 = 33;
    pub(crate) const RING_PACKED: u32 = 34;
}

/// The numbers of protocol features.
pub(crate) mod feature {
    pub(crate) const MQ: u32 = 0;
    pub(crate) const LOG_SHMFD: u32 = 1;
    pub(crate) const RARP: u32 = 2;
    pub(crate) const REPLY_ACK: u32 = 3;
    pub(crate) const MTU: u32 = 4;
    pub(crate) const BACKEND_REQ: u32 = 5;
    pub(crate) const CROSS_ENDIAN: u32 = 6;
    pub(crate) const CRYPTO_SESSION: u32 = 7;
    pub(crate) const PAGEFAULT: u32 = 8;
    pub(crate) const CONFIG: u32 = 9;
    pub(crate) const BACKEND_SEND_FD: u32 = 10;
    pub(crate) const HOST_NOTIFIER: u32 = 11;
    pub(crate) const INFLIGHT_SHMFD: u32 = 12;
    pub(crate) const RESET_DEVICE: u32 = 13;
    pub(crate) const INBAND_NOTIFICATIONS: u32 = 14;
    pub(crate) const CONFIGURE_MEM_SLOTS: u32 = 15;
    pub(crate) const STATUS: u32 = 16;
    pub(crate) const SHARED_OBJECT: u32 = 18;
    pub(crate) const DEVICE_STATE: u32 = 19;
    pub(crate) const SHMEM: u32 = 22;
    pub(crate) const GET_VRING_BASE_SKIP_DRAIN: u32 = 23;
}

/// The names of the protocol features; the place is the number of the bit.
pub(crate) const FEATURE_NAMES: [&str; 24] = [
    "MQ",
    "LOG_SHMFD",
    "RARP",
    "REPLY_ACK",
    "MTU",
    "BACKEND_REQ",
    "CROSS_ENDIAN",
    "CRYPTO_SESSION",
    "PAGEFAULT",
    "CONFIG",
    "BACKEND_SEND_FD",
    "HOST_NOTIFIER",
    "INFLIGHT_SHMFD",
    "RESET_DEVICE",
    "INBAND_NOTIFICATIONS",
    "CONFIGURE_MEM_SLOTS",
    "STATUS",
    "XEN_MMAP",
    "SHARED_OBJECT",
    "DEVICE_STATE",
    "GET_VRING_BASE_INFLIGHT",
    "GPA_ADDRESSES",
    "SHMEM",
    "GET_VRING_BASE_SKIP_DRAIN",
];

/// A mask with these bits.
pub(crate) const fn mask(bits: &[u32]) -> u64 {
    let mut mask = 0;
    let mut rest = bits;
    while let [bit, more @ ..] = rest {
        mask |= 1_u64.wrapping_shl(*bit);
        rest = more;
    }
    mask
}

/// Whether the bit is in the mask.
pub(crate) fn has(mask: u64, bit: u32) -> bool {
    1_u64.checked_shl(bit).is_some_and(|one| mask & one != 0)
}

const NONE: &[Field] = &[];
const U64: &[Field] = &[VALUE];
const STATE: &[Field] = &[INDEX, NUM];
const VRING_FD: &[Field] = &[FD_INDEX, NO_FD];
const TABLE: &[Field] = &[REGIONS];
const REGION: &[Field] = &[
    u64f("guest-addr", 8),
    u64f("region-size", 16),
    u64f("user-addr", 24),
    u64f("mmap-offset", 32),
];
const LOG: &[Field] = &[u64f("mmap-size", 0), u64f("mmap-offset", 8)];
const ADDR: &[Field] = &[
    INDEX,
    u32f("flags", 4),
    u64f("desc", 8),
    u64f("used", 16),
    u64f("avail", 24),
    u64f("log", 32),
];
const CONFIG: &[Field] = &[u32f("offset", 0), u32f("config-size", 4), u32f("flags", 8)];
const INFLIGHT: &[Field] = &[
    u64f("mmap-size", 0),
    u64f("mmap-offset", 8),
    INFLIGHT_QUEUES,
    u16f("queue-size", 18),
];
const IOTLB: &[Field] = &[
    u64f("iova", 0),
    u64f("iotlb-size", 8),
    u64f("uaddr", 16),
    Field::new("perm", 24, 1),
    Field::new("type", 25, 1),
];
const TRANSFER: &[Field] = &[u32f("direction", 0), u32f("phase", 4)];
const UUID: &[Field] = &[Field::new("uuid", 0, 16)];
const SHMEM: &[Field] = &[u32f("regions", 0)];
const CRYPTO: &[Field] = &[u64f("op", 0), u64f("session", 1064)];
const NOTIFIER: &[Field] = &[
    FD_INDEX,
    NO_FD,
    u64f("area-size", 8),
    u64f("area-offset", 16),
];
const MMAP: &[Field] = &[
    Field::new("shmid", 0, 1),
    u64f("fd-offset", 8),
    u64f("shm-offset", 16),
    u64f("len", 24),
    u64f("flags", 32),
];

macro_rules! kinds {
    ($($id:literal $name:literal $fields:expr, $size:expr, $fds:expr => $answer:expr, $gate:expr;)*) => {
        &[$(Kind { id: $id, name: $name, fields: $fields, size: $size, fds: $fds, answer: $answer, gate: $gate },)*]
    };
}

use Answer::{Ack, Always, Sometimes};
use Gate::{Open, Protocol, Virtio};
use Size::{AtLeast, Exactly};

/// The front-end's requests. `fds` is the greatest number of descriptors.
pub(crate) const REQUESTS: &[Kind] = kinds! {
//  id  name                       payload   size              fds  answer               gate
     1 "GET_FEATURES"              NONE,     Exactly(0),       0 => Always(U64),         Open;
     2 "SET_FEATURES"              U64,      Exactly(8),       0 => Ack,                 Open;
     3 "SET_OWNER"                 NONE,     Exactly(0),       0 => Ack,                 Open;
     4 "RESET_OWNER"               NONE,     Exactly(0),       0 => Ack,                 Open;
     5 "SET_MEM_TABLE"             TABLE,    AtLeast(8),       8 => Sometimes(TABLE),    Open;
     6 "SET_LOG_BASE"              LOG,      AtLeast(8),       1 => Sometimes(U64),      Open;
     7 "SET_LOG_FD"                NONE,     Exactly(0),       1 => Ack,                 Open;
     8 "SET_VRING_NUM"             STATE,    Exactly(8),       0 => Ack,                 Open;
     9 "SET_VRING_ADDR"            ADDR,     Exactly(40),      0 => Ack,                 Open;
    10 "SET_VRING_BASE"            STATE,    Exactly(8),       0 => Ack,                 Open;
    11 "GET_VRING_BASE"            STATE,    Exactly(8),       0 => Always(STATE),       Open;
    12 "SET_VRING_KICK"            VRING_FD, Exactly(8),       1 => Ack,                 Open;
    13 "SET_VRING_CALL"            VRING_FD, Exactly(8),       1 => Ack,                 Open;
    14 "SET_VRING_ERR"             VRING_FD, Exactly(8),       1 => Ack,                 Open;
    15 "GET_PROTOCOL_FEATURES"     NONE,     Exactly(0),       0 => Always(U64),         Open;
    16 "SET_PROTOCOL_FEATURES"     U64,      Exactly(8),       0 => Ack,                 Open;
    17 "GET_QUEUE_NUM"             NONE,     Exactly(0),       0 => Always(U64),         Protocol(feature::MQ);
    18 "SET_VRING_ENABLE"          STATE,    Exactly(8),       0 => Ack,                 Virtio(virtio::PROTOCOL_FEATURES);
    19 "SEND_RARP"                 U64,      Exactly(8),       0 => Ack,                 Protocol(feature::RARP);
    20 "NET_SET_MTU"               U64,      Exactly(8),       0 => Ack,                 Protocol(feature::MTU);
    21 "SET_BACKEND_REQ_FD"        NONE,     Exactly(0),       1 => Ack,                 Protocol(feature::BACKEND_REQ);
    22 "IOTLB_MSG"                 IOTLB,    Exactly(32),      0 => Always(U64),         Virtio(virtio::IOMMU_PLATFORM);
    23 "SET_VRING_ENDIAN"          STATE,    Exactly(8),       0 => Ack,                 Protocol(feature::CROSS_ENDIAN);
    24 "GET_CONFIG"                CONFIG,   AtLeast(12),      0 => Always(CONFIG),      Protocol(feature::CONFIG);
    25 "SET_CONFIG"                CONFIG,   AtLeast(12),      0 => Ack,                 Protocol(feature::CONFIG);
    26 "CREATE_CRYPTO_SESSION"     CRYPTO,   Exactly(1072),    0 => Always(CRYPTO),      Protocol(feature::CRYPTO_SESSION);
    27 "CLOSE_CRYPTO_SESSION"      U64,      Exactly(8),       0 => Ack,                 Protocol(feature::CRYPTO_SESSION);
    28 "POSTCOPY_ADVISE"           NONE,     Exactly(0),       0 => Always(NONE),        Protocol(feature::PAGEFAULT);
    29 "POSTCOPY_LISTEN"           NONE,     Exactly(0),       0 => Sometimes(U64),      Protocol(feature::PAGEFAULT);
    30 "POSTCOPY_END"              NONE,     Exactly(0),       0 => Always(U64),         Protocol(feature::PAGEFAULT);
    31 "GET_INFLIGHT_FD"           INFLIGHT, Exactly(24),      0 => Always(INFLIGHT),    Protocol(feature::INFLIGHT_SHMFD);
    32 "SET_INFLIGHT_FD"           INFLIGHT, Exactly(24),      1 => Ack,                 Protocol(feature::INFLIGHT_SHMFD);
    33 "GPU_SET_SOCKET"            NONE,     Exactly(0),       1 => Ack,                 Open;
    34 "RESET_DEVICE"              NONE,     Exactly(0),       0 => Ack,                 Protocol(feature::RESET_DEVICE);
    35 "VRING_KICK"                STATE,    Exactly(8),       0 => Ack,                 Protocol(feature::INBAND_NOTIFICATIONS);
    36 "GET_MAX_MEM_SLOTS"         NONE,     Exactly(0),       0 => Always(U64),         Protocol(feature::CONFIGURE_MEM_SLOTS);
    37 "ADD_MEM_REG"               REGION,   Exactly(40),      1 => Sometimes(REGION),   Protocol(feature::CONFIGURE_MEM_SLOTS);
    38 "REM_MEM_REG"               REGION,   Exactly(40),      1 => Ack,                 Protocol(feature::CONFIGURE_MEM_SLOTS);
    39 "SET_STATUS"                U64,      Exactly(8),       0 => Ack,                 Protocol(feature::STATUS);
    40 "GET_STATUS"                NONE,     Exactly(0),       0 => Always(U64),         Protocol(feature::STATUS);
    41 "GET_SHARED_OBJECT"         UUID,     Exactly(16),      0 => Always(NONE),        Protocol(feature::SHARED_OBJECT);
    42 "SET_DEVICE_STATE_FD"       TRANSFER, Exactly(8),       1 => Always(U64),         Protocol(feature::DEVICE_STATE);
    43 "CHECK_DEVICE_STATE"        NONE,     Exactly(0),       0 => Always(U64),         Protocol(feature::DEVICE_STATE);
    44 "GET_SHMEM_CONFIG"          NONE,     Exactly(0),       0 => Always(SHMEM),       Protocol(feature::SHMEM);
    45 "GET_VRING_BASE_SKIP_DRAIN" STATE,    Exactly(8),       0 => Always(STATE),       Protocol(feature::GET_VRING_BASE_SKIP_DRAIN);
};

/// The back-end's own requests. `fds` is how many go along by default.
pub(crate) const BACKEND_REQUESTS: &[Kind] = kinds! {
     1 "IOTLB_MSG"                 IOTLB,    Exactly(32),      0 => Ack,                 Virtio(virtio::IOMMU_PLATFORM);
     2 "CONFIG_CHANGE_MSG"         NONE,     Exactly(0),       0 => Ack,                 Protocol(feature::CONFIG);
     3 "VRING_HOST_NOTIFIER_MSG"   NOTIFIER, Exactly(24),      1 => Ack,                 Protocol(feature::HOST_NOTIFIER);
     4 "VRING_CALL"                STATE,    Exactly(8),       0 => Ack,                 Protocol(feature::INBAND_NOTIFICATIONS);
     5 "VRING_ERR"                 STATE,    Exactly(8),       0 => Ack,                 Protocol(feature::INBAND_NOTIFICATIONS);
     6 "SHARED_OBJECT_ADD"         UUID,     Exactly(16),      0 => Ack,                 Protocol(feature::SHARED_OBJECT);
     7 "SHARED_OBJECT_REMOVE"      UUID,     Exactly(16),      0 => Ack,                 Protocol(feature::SHARED_OBJECT);
     8 "SHARED_OBJECT_LOOKUP"      UUID,     Exactly(16),      0 => Always(U64),         Protocol(feature::SHARED_OBJECT);
     9 "SHMEM_MAP"                 MMAP,     Exactly(40),      1 => Ack,                 Protocol(feature::SHMEM);
    10 "SHMEM_UNMAP"               MMAP,     Exactly(40),      0 => Ack,                 Protocol(feature::SHMEM);
};

fn by_id(kinds: &'static [Kind], id: u32) -> Option<&'static Kind> {
    kinds.iter().find(|kind| kind.id == id)
}

/// The front-end's request of this number.
pub(crate) fn request(id: u32) -> Option<&'static Kind> {
    by_id(REQUESTS, id)
}

/// The front-end's request of this name.
pub(crate) fn request_named(name: &str) -> Option<&'static Kind> {
    REQUESTS.iter().find(|kind| kind.name == name)
}

/// The back-end's request of this name, also without `_MSG`.
pub(crate) fn backend_request_named(name: &str) -> Option<&'static Kind> {
    let same = |kind: &&Kind| kind.name == name || kind.name.strip_suffix("_MSG") == Some(name);
    BACKEND_REQUESTS.iter().find(same)
}

/// The protocol feature of this name.
pub(crate) fn feature_named(name: &str) -> Option<u32> {
    let place = FEATURE_NAMES.iter().position(|known| *known == name)?;
    u32::try_from(place).ok()
}

/// A number as people read it: small ones decimal, large ones hexadecimal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number(pub(crate) u128);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0xffff {
            write!(f, "{:#x}", self.0)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_tables_are_sound() {
        for kinds in [REQUESTS, BACKEND_REQUESTS] {
            for (kind, number) in kinds.iter().zip(1..) {
                assert_eq!(kind.id, number, "{} is out of order", kind.name);
                for field in kind.fields {
                    // SET_LOG_BASE comes in two sizes.
                    let room = if kind.name == "SET_LOG_BASE" {
                        16
                    } else {
                        kind.size.least()
                    };
                    assert!(field.end() <= room, "{} {}", kind.name, field.name);
                }
            }
        }
        assert_eq!((REQUESTS.len(), BACKEND_REQUESTS.len()), (45, 10));
        assert_eq!(
            backend_request_named("CONFIG_CHANGE").map(|kind| kind.id),
            Some(2)
        );
        assert_eq!(feature_named("SHMEM"), Some(22));
        assert_eq!(mask(&[0, 3, 9]), 0x209);
    }

    #[test]
    fn fields_are_read_and_written() {
        let mut payload = 0x107_u64.to_ne_bytes();
        assert_eq!(
            (FD_INDEX.read(&payload), NO_FD.read(&payload)),
            (Some(7), Some(1))
        );
        FD_INDEX.write(&mut payload, 9).unwrap();
        NO_FD.write(&mut payload, 0).unwrap();
        assert_eq!(u64::from_ne_bytes(payload), 9);
        assert!(FD_INDEX.write(&mut payload, 256).is_none(), "does not fit");
        assert!(INDEX.write(&mut payload, 1 << 32).is_none(), "does not fit");
        assert_eq!(VALUE.read(&payload[..7]), None, "too short");
        let mut uuid = [0; 16];
        UUID.first()
            .unwrap()
            .write(&mut uuid, 0x0102 << 112)
            .unwrap();
        assert_eq!(uuid[..2], [1, 2]);
    }
}
