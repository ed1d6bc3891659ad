//! The wire format: request numbers, structures, feature bits, and the one
//! table that says how each request behaves. Pure data: no I/O, no state.
//!
//! All integers on the wire are in the byte order of the machine; both ends run
//! on the same one (vhost-user specification, "Message Specification").

#![forbid(unsafe_code)]

mod backend;
mod fields;
mod virtio_names;

pub use backend::{
    Answered, BackendGate, BackendRequest, BackendRequestInfo, MAX_BACKEND_PAYLOAD, ShmemArea,
    VringArea,
};

pub use fields::{Flow, Socket};
pub(crate) use fields::{Line, Payload};
pub use virtio_names::virtio_feature_name;

use bitflags::bitflags;
use std::ffi::CStr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the header before every message.
pub const HEADER_SIZE: usize = 12;
/// Largest payload that any reply may have. Bounds the receive buffer; the
/// largest reply of the protocol is [`ShmemConfig`] with 2056 bytes.
pub const MAX_REPLY_PAYLOAD: usize = 4096;
/// Most bytes of configuration space in one request. libvhost-user, DPDK and
/// SPDK hold no more than this in a message.
pub const MAX_CONFIG_SIZE: usize = 256;
/// End of the configuration space: `offset + size` may not exceed it.
pub const MAX_CONFIG_END: u32 = 0x1000;
/// Most regions in SET_MEM_TABLE, and so most file descriptors in a message.
pub const MAX_MEM_REGIONS: usize = 8;
/// Largest ring index; ring file descriptor messages hold it in 8 bits.
pub const MAX_RING_INDEX: u32 = 255;
/// Most descriptors in a ring (virtio specification, "Virtqueues").
pub const MAX_RING_SIZE: u32 = 32768;
/// Slots in the reply of GET_SHMEM_CONFIG, one for each `shmid`.
pub const SHMEM_REGIONS: usize = 256;
/// Bytes of a key of a cipher in CREATE_CRYPTO_SESSION.
pub const MAX_CIPHER_KEY: usize = 64;
/// Bytes of a key for authentication in CREATE_CRYPTO_SESSION.
pub const MAX_AUTH_KEY: usize = 512;
/// Bytes of an asymmetric key in CREATE_CRYPTO_SESSION.
pub const MAX_ASYM_KEY: usize = 1024;

/// Virtio feature bits (not masks) that mean something to the protocol itself.
pub mod virtio {
    /// The largest frame is told to a network device (VIRTIO_NET_F_MTU).
    pub const NET_F_MTU: u32 = 3;
    /// Log all writes of the device to guest memory (live migration).
    pub const F_LOG_ALL: u32 = 26;
    /// The back-end speaks protocol features.
    pub const F_PROTOCOL_FEATURES: u32 = 30;
    /// The driver is none of before virtio 1.0.
    pub const F_VERSION_1: u32 = 32;
    /// The device reaches memory through an IOMMU.
    pub const F_ACCESS_PLATFORM: u32 = 33;
    /// The packed ring layout.
    pub const F_RING_PACKED: u32 = 34;
    /// The device uses buffers in the order in which they were made available.
    pub const F_IN_ORDER: u32 = 35;

    /// Bits that a guest must not be shown only because the back-end offers them: they
    /// belong to the connection (26, 30), to the transport between guest and monitor (37
    /// to 41), or need an IOMMU that the monitor emulates (33). 42 to 49 are reserved for
    /// extensions of these kinds.
    pub const TRANSPORT: u64 = 1 << F_LOG_ALL
        | 1 << F_PROTOCOL_FEATURES
        | 1 << F_ACCESS_PLATFORM
        | ((1 << 50) - (1 << 37));

    /// The name of a bit that means the same for every type of device.
    pub fn name(bit: u32) -> Option<super::Name> {
        super::virtio_feature_name(0, bit)
    }
}

bitflags! {
    /// Protocol features (vhost-user specification, "Protocol features").
    ///
    /// Only those that this library can serve; see [`PROTOCOL_FEATURE_NAMES`]
    /// for all that the specification names.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ProtocolFeatures: u64 {
        /// Several queues; gates GET_QUEUE_NUM.
        const MQ = 1 << 0;
        /// The dirty log is shared memory.
        const LOG_SHMFD = 1 << 1;
        /// SEND_RARP after a migration.
        const RARP = 1 << 2;
        /// A request can ask to be acknowledged.
        const REPLY_ACK = 1 << 3;
        /// The front-end tells the largest frame; gates NET_SET_MTU.
        const MTU = 1 << 4;
        /// The back-end may send requests of its own.
        const BACKEND_REQ = 1 << 5;
        /// Rings may have another byte order; gates SET_VRING_ENDIAN.
        const CROSS_ENDIAN = 1 << 6;
        /// Sessions of a crypto device.
        const CRYPTO_SESSION = 1 << 7;
        /// Postcopy migration.
        const PAGEFAULT = 1 << 8;
        /// Configuration space travels over the socket.
        const CONFIG = 1 << 9;
        /// Back-end requests may carry file descriptors.
        const BACKEND_SEND_FD = 1 << 10;
        /// The back-end may offer doorbell pages.
        const HOST_NOTIFIER = 1 << 11;
        /// In-flight I/O is tracked in shared memory.
        const INFLIGHT_SHMFD = 1 << 12;
        /// RESET_DEVICE.
        const RESET_DEVICE = 1 << 13;
        /// Notifications may be messages; gates VRING_KICK.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// Memory regions are added and removed one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// The back-end knows the device status; gates SET_STATUS and GET_STATUS.
        const STATUS = 1 << 16;
        /// Memory regions say how Xen maps them.
        const XEN_MMAP = 1 << 17;
        /// Devices share objects; gates GET_SHARED_OBJECT.
        const SHARED_OBJECT = 1 << 18;
        /// The internal state of the device can be saved and loaded.
        const DEVICE_STATE = 1 << 19;
        /// GET_VRING_BASE may leave requests in flight.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// User addresses are guest addresses.
        const GPA_ADDRESSES = 1 << 21;
        /// The device has shared memory regions.
        const SHMEM = 1 << 22;
        /// GET_VRING_BASE_SKIP_DRAIN.
        const GET_VRING_BASE_SKIP_DRAIN = 1 << 23;
    }
}

/// A name from the specification, for Rust and for C.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name(&'static CStr);

impl Name {
    /// The name, given with a NUL at its end.
    const fn new(with_nul: &'static str) -> Self {
        match CStr::from_bytes_with_nul(with_nul.as_bytes()) {
            Ok(name) => Self(name),
            Err(_) => Self(c""), // the tests notice
        }
    }

    /// A name that is a constant of this library.
    pub(crate) const fn of(name: &'static CStr) -> Self {
        Self(name)
    }

    /// What is left without this at its beginning.
    pub(crate) fn without(self, prefix: &CStr) -> Self {
        let rest = self
            .0
            .to_bytes_with_nul()
            .strip_prefix(prefix.to_bytes())
            .and_then(|rest| CStr::from_bytes_with_nul(rest).ok());
        Self(rest.unwrap_or(self.0))
    }

    /// For C.
    pub const fn as_c_str(self) -> &'static CStr {
        self.0
    }

    /// For Rust.
    pub fn as_str(self) -> &'static str {
        self.0.to_str().unwrap_or_default()
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Every protocol feature of the specification: bit number and name.
pub const PROTOCOL_FEATURE_NAMES: [(u32, Name); 24] = [
    (0, Name(c"MQ")),
    (1, Name(c"LOG_SHMFD")),
    (2, Name(c"RARP")),
    (3, Name(c"REPLY_ACK")),
    (4, Name(c"MTU")),
    (5, Name(c"BACKEND_REQ")),
    (6, Name(c"CROSS_ENDIAN")),
    (7, Name(c"CRYPTO_SESSION")),
    (8, Name(c"PAGEFAULT")),
    (9, Name(c"CONFIG")),
    (10, Name(c"BACKEND_SEND_FD")),
    (11, Name(c"HOST_NOTIFIER")),
    (12, Name(c"INFLIGHT_SHMFD")),
    (13, Name(c"RESET_DEVICE")),
    (14, Name(c"INBAND_NOTIFICATIONS")),
    (15, Name(c"CONFIGURE_MEM_SLOTS")),
    (16, Name(c"STATUS")),
    (17, Name(c"XEN_MMAP")),
    (18, Name(c"SHARED_OBJECT")),
    (19, Name(c"DEVICE_STATE")),
    (20, Name(c"GET_VRING_BASE_INFLIGHT")),
    (21, Name(c"GPA_ADDRESSES")),
    (22, Name(c"SHMEM")),
    (23, Name(c"GET_VRING_BASE_SKIP_DRAIN")),
];

/// The name of a protocol feature bit, where the specification has one.
pub fn protocol_feature_name(bit: u32) -> Option<Name> {
    PROTOCOL_FEATURE_NAMES
        .iter()
        .find(|(number, _)| *number == bit)
        .map(|(_, name)| *name)
}

/// Protocol features that cannot work without others: (bit, what it needs).
///
/// Not those that merely have no effect without others, as HOST_NOTIFIER and
/// SHMEM without BACKEND_REQ: back-ends offer them so.
pub const PROTOCOL_FEATURE_NEEDS: [(ProtocolFeatures, ProtocolFeatures); 3] = [
    // The back-end is to close the connection otherwise.
    (
        ProtocolFeatures::INBAND_NOTIFICATIONS,
        ProtocolFeatures::BACKEND_REQ.union(ProtocolFeatures::REPLY_ACK),
    ),
    // There would be nowhere to track what is left in flight.
    (
        ProtocolFeatures::GET_VRING_BASE_INFLIGHT,
        ProtocolFeatures::INFLIGHT_SHMFD,
    ),
    (
        ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN,
        ProtocolFeatures::INFLIGHT_SHMFD.union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT),
    ),
];

/// What must have been agreed before a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// The back-end offered this virtio feature bit.
    Offered(u32),
    /// This virtio feature bit was acknowledged with SET_FEATURES.
    Acked(u32),
    /// This protocol feature was acknowledged with SET_PROTOCOL_FEATURES.
    Protocol(ProtocolFeatures),
    /// This protocol feature and this virtio feature bit were acknowledged.
    Both(ProtocolFeatures, u32),
}

/// Inclusive bounds on a number of bytes or file descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The least.
    pub min: usize,
    /// The most.
    pub max: usize,
}

impl Bounds {
    /// Whether `n` lies within.
    pub const fn contain(self, n: usize) -> bool {
        self.min <= n && n <= self.max
    }
}

const fn exactly(n: usize) -> Bounds {
    Bounds { min: n, max: n }
}

const fn between(min: usize, max: usize) -> Bounds {
    Bounds { min, max }
}

/// When a request without an acknowledgement is followed by GET_FEATURES, so
/// that it is known to have been processed when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// Nothing depends on when the back-end gets to it.
    Never,
    /// The caller or the guest acts on its completion.
    Always,
    /// Only while the ring it names (or any ring, where it names none) runs.
    WhileRunning,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// With a u64, 0 for success, if REPLY_ACK was agreed and the request asks
    /// for it; otherwise not at all, and the barrier says whether to wait.
    Ack(Barrier),
    /// Not at all, and it never asks: it is what switches REPLY_ACK on.
    Silent,
    /// Always, with a payload of this many bytes. Such a request never carries
    /// the need-reply bit: libvhost-user would echo it and DPDK would answer a
    /// failure with an acknowledgement in place of the reply.
    Always(Bounds),
    /// Always, with a u64, 0 for success. It carries the need-reply bit whatever
    /// was agreed: some back-ends answer anyway, the others only then.
    Status,
}

/// Which deadline a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Answered from the back-end's own memory.
    Quick,
    /// The back-end maps or pins memory, or moves device state.
    Slow,
    /// The back-end finishes guest requests first.
    Drain,
}

/// One row of the request table.
#[derive(Debug, Clone, Copy)]
pub struct RequestInfo {
    /// The name in the specification, without `VHOST_USER_`.
    pub name: Name,
    /// What must have been agreed.
    pub gate: Gate,
    /// Bytes after the header.
    pub payload: Bounds,
    /// File descriptors sent along.
    pub fds_out: Bounds,
    /// How it is answered.
    pub reply: Reply,
    /// File descriptors in the answer.
    pub fds_in: Bounds,
    /// Which deadline applies.
    pub wait: Wait,
}

macro_rules! requests {
    ($($id:literal $variant:ident $name:literal:
       $gate:expr, $payload:expr, $fds_out:expr => $reply:expr, $fds_in:expr, $wait:ident;)*) => {
        /// A request of the front-end (specification, "Front-end message types").
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Request {
            $(#[doc = concat!("`VHOST_USER_", $name, "`")] $variant = $id,)*
        }

        impl Request {
            /// All requests that this library sends, in the order of their ids.
            pub const ALL: &'static [Request] = &[$(Request::$variant,)*];

            /// The number on the wire.
            pub const fn id(self) -> u32 {
                match self { $(Request::$variant => $id,)* }
            }

            /// The row of the request table.
            pub const fn info(self) -> &'static RequestInfo {
                match self {
                    $(Request::$variant => const { &RequestInfo {
                        name: Name::new(concat!($name, "\0")),
                        gate: $gate,
                        payload: $payload,
                        fds_out: $fds_out,
                        reply: $reply,
                        fds_in: $fds_in,
                        wait: Wait::$wait,
                    } },)*
                }
            }
        }
    };
}

use Gate::{Acked, Both, Offered, Open, Protocol};
use Reply::{Ack, Always, Silent, Status};

/// SET_MEM_TABLE with regions of this size.
const fn table(region: usize) -> Bounds {
    let header = size_of::<MemTableHeader>();
    between(
        header.saturating_add(region),
        header.saturating_add(MAX_MEM_REGIONS.saturating_mul(region)),
    )
}

/// ADD_MEM_REG and REM_MEM_REG with a region of this size, after the padding.
const fn region(region: usize) -> Bounds {
    exactly(size_of::<u64>().saturating_add(region))
}

const NONE: Bounds = exactly(0);
const ONE: Bounds = exactly(1);
const MAYBE: Bounds = between(0, 1);
const U64: Bounds = exactly(size_of::<u64>());
const STATE: Bounds = exactly(size_of::<VringState>());
const CONFIG: Bounds = between(
    size_of::<ConfigHeader>() + 1,
    size_of::<ConfigHeader>() + MAX_CONFIG_SIZE,
);
const TABLE: Bounds = table(REGION_SIZE);
const REGION: Bounds = region(REGION_SIZE);
const CRYPTO: Bounds = exactly(size_of::<CryptoSession>());
const UUID: Bounds = exactly(UUID_SIZE);
const INFLIGHT: Bounds = exactly(size_of::<Inflight>());
const F30: u32 = virtio::F_PROTOCOL_FEATURES;
use ProtocolFeatures as P;

requests! {
//  id variant              name                   gate                               payload        fds out => reply                       fds in  deadline
     1 GetFeatures          "GET_FEATURES":          Open,                              NONE,          NONE => Always(U64),                    NONE,  Quick;
     2 SetFeatures          "SET_FEATURES":          Open,                              U64,           NONE => Ack(Barrier::WhileRunning),     NONE,  Quick;
     3 SetOwner             "SET_OWNER":             Open,                              NONE,          NONE => Ack(Barrier::Never),            NONE,  Quick;
     4 ResetOwner           "RESET_OWNER":           Open,                              NONE,          NONE => Ack(Barrier::Never),            NONE,  Quick;
     5 SetMemTable          "SET_MEM_TABLE":         Open,                              TABLE,         between(1, MAX_MEM_REGIONS) => Ack(Barrier::Always), NONE, Slow;
     6 SetLogBase           "SET_LOG_BASE":          Protocol(P::LOG_SHMFD),            exactly(size_of::<Log>()), ONE => Always(between(0, MAX_REPLY_PAYLOAD)), NONE, Slow;
     7 SetLogFd             "SET_LOG_FD":            Open,                              NONE,          ONE  => Ack(Barrier::Never),            NONE,  Quick;
     8 SetVringNum          "SET_VRING_NUM":         Open,                              STATE,         NONE => Ack(Barrier::Never),            NONE,  Quick;
     9 SetVringAddr         "SET_VRING_ADDR":        Open,                              exactly(size_of::<VringAddr>()), NONE => Ack(Barrier::WhileRunning), NONE, Quick;
    10 SetVringBase         "SET_VRING_BASE":        Open,                              STATE,         NONE => Ack(Barrier::Never),            NONE,  Quick;
    11 GetVringBase         "GET_VRING_BASE":        Open,                              STATE,         NONE => Always(STATE),                  NONE,  Drain;
    12 SetVringKick         "SET_VRING_KICK":        Open,                              U64,           MAYBE => Ack(Barrier::Never),           NONE,  Quick;
    13 SetVringCall         "SET_VRING_CALL":        Open,                              U64,           MAYBE => Ack(Barrier::WhileRunning),    NONE,  Quick;
    14 SetVringErr          "SET_VRING_ERR":         Open,                              U64,           MAYBE => Ack(Barrier::Never),           NONE,  Quick;
    15 GetProtocolFeatures  "GET_PROTOCOL_FEATURES": Offered(F30),                      NONE,          NONE => Always(U64),                    NONE,  Quick;
    16 SetProtocolFeatures  "SET_PROTOCOL_FEATURES": Offered(F30),                      U64,           NONE => Silent,                         NONE,  Quick;
    17 GetQueueNum          "GET_QUEUE_NUM":         Protocol(P::MQ),                   NONE,          NONE => Always(U64),                    NONE,  Quick;
    18 SetVringEnable       "SET_VRING_ENABLE":      Acked(F30),                        STATE,         NONE => Ack(Barrier::Always),           NONE,  Slow;
    19 SendRarp             "SEND_RARP":             Protocol(P::RARP),                 U64,           NONE => Ack(Barrier::Never),            NONE,  Quick;
    20 NetSetMtu            "NET_SET_MTU":           Both(P::MTU, virtio::NET_F_MTU),   U64,           NONE => Ack(Barrier::Never),            NONE,  Quick;
    21 SetBackendReqFd      "SET_BACKEND_REQ_FD":    Protocol(P::BACKEND_REQ),          NONE,          ONE  => Ack(Barrier::Never),            NONE,  Quick;
    22 IotlbMsg             "IOTLB_MSG":             Acked(virtio::F_ACCESS_PLATFORM),  exactly(size_of::<Iotlb>()), NONE => Status,          NONE,  Quick;
    23 SetVringEndian       "SET_VRING_ENDIAN":      Protocol(P::CROSS_ENDIAN),         STATE,         NONE => Ack(Barrier::Never),            NONE,  Quick;
    24 GetConfig            "GET_CONFIG":            Protocol(P::CONFIG),               CONFIG,        NONE => Always(between(0, CONFIG.max)), NONE,  Quick;
    25 SetConfig            "SET_CONFIG":            Protocol(P::CONFIG),               CONFIG,        NONE => Ack(Barrier::Never),            NONE,  Quick;
    26 CreateCryptoSession  "CREATE_CRYPTO_SESSION": Protocol(P::CRYPTO_SESSION),       CRYPTO,        NONE => Always(CRYPTO),                 NONE,  Slow;
    27 CloseCryptoSession   "CLOSE_CRYPTO_SESSION":  Protocol(P::CRYPTO_SESSION),       U64,           NONE => Ack(Barrier::Never),            NONE,  Quick;
    28 PostcopyAdvise       "POSTCOPY_ADVISE":       Protocol(P::PAGEFAULT),            NONE,          NONE => Always(NONE),                   MAYBE, Quick;
    29 PostcopyListen       "POSTCOPY_LISTEN":       Protocol(P::PAGEFAULT),            NONE,          NONE => Status,                         NONE,  Quick;
    30 PostcopyEnd          "POSTCOPY_END":          Protocol(P::PAGEFAULT),            NONE,          NONE => Status,                         NONE,  Slow;
    31 GetInflightFd        "GET_INFLIGHT_FD":       Protocol(P::INFLIGHT_SHMFD),       INFLIGHT,      NONE => Always(INFLIGHT),               MAYBE, Slow;
    32 SetInflightFd        "SET_INFLIGHT_FD":       Protocol(P::INFLIGHT_SHMFD),       INFLIGHT,      ONE  => Ack(Barrier::Never),            NONE,  Slow;
    33 GpuSetSocket         "GPU_SET_SOCKET":        Open,                              NONE,          ONE  => Ack(Barrier::Never),            NONE,  Quick;
    34 ResetDevice          "RESET_DEVICE":          Protocol(P::RESET_DEVICE),         NONE,          NONE => Ack(Barrier::Always),           NONE,  Slow;
    35 VringKick            "VRING_KICK":            Protocol(P::INBAND_NOTIFICATIONS), STATE,         NONE => Ack(Barrier::Never),            NONE,  Quick;
    36 GetMaxMemSlots       "GET_MAX_MEM_SLOTS":     Protocol(P::CONFIGURE_MEM_SLOTS),  NONE,          NONE => Always(U64),                    NONE,  Quick;
    37 AddMemReg            "ADD_MEM_REG":           Protocol(P::CONFIGURE_MEM_SLOTS),  REGION,        ONE  => Ack(Barrier::Always),           NONE,  Slow;
    38 RemMemReg            "REM_MEM_REG":           Protocol(P::CONFIGURE_MEM_SLOTS),  REGION,        NONE => Ack(Barrier::Always),           NONE,  Slow;
    39 SetStatus            "SET_STATUS":            Protocol(P::STATUS),               U64,           NONE => Ack(Barrier::Always),           NONE,  Quick;
    40 GetStatus            "GET_STATUS":            Protocol(P::STATUS),               NONE,          NONE => Always(U64),                    NONE,  Quick;
    41 GetSharedObject      "GET_SHARED_OBJECT":     Protocol(P::SHARED_OBJECT),        UUID,          NONE => Always(between(0, UUID_SIZE)),  MAYBE, Quick;
    42 SetDeviceStateFd     "SET_DEVICE_STATE_FD":   Protocol(P::DEVICE_STATE),         exactly(size_of::<DeviceState>()), ONE => Always(U64), MAYBE, Slow;
    43 CheckDeviceState     "CHECK_DEVICE_STATE":    Protocol(P::DEVICE_STATE),         NONE,          NONE => Always(U64),                    NONE,  Slow;
    44 GetShmemConfig       "GET_SHMEM_CONFIG":      Protocol(P::SHMEM),                NONE,          NONE => Always(exactly(size_of::<ShmemConfig>())), NONE, Quick;
    45 GetVringBaseSkipDrain "GET_VRING_BASE_SKIP_DRAIN": Protocol(P::GET_VRING_BASE_SKIP_DRAIN), STATE, NONE => Always(STATE),              NONE,  Quick;
}

impl Request {
    /// The request with this number.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.id() == id)
    }
}

/// Requests that look otherwise once something was agreed or begun.
impl Request {
    /// SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG after XEN_MMAP was
    /// acknowledged; any other request as it always is.
    pub const fn xen_info(self) -> RequestInfo {
        const XEN: usize = size_of::<MemRegion>();
        let info = *self.info();
        let payload = match self {
            Self::SetMemTable => table(XEN),
            Self::AddMemReg | Self::RemMemReg => region(XEN),
            _ => info.payload,
        };
        RequestInfo { payload, ..info }
    }
}

impl RequestInfo {
    /// SET_MEM_TABLE while the back-end listens for page faults: the answer is
    /// the table with the back-end's own addresses.
    pub const fn postcopy_table(self) -> Self {
        Self {
            reply: Always(self.payload),
            ..self
        }
    }

    /// SET_MEM_TABLE that says that these addresses are known: a u64 of 0.
    pub const fn postcopy_ack(self) -> Self {
        Self {
            payload: U64,
            fds_out: NONE,
            reply: Silent,
            ..self
        }
    }
}

/// The names of the bits of a mask, for a text: "MQ (bit 0), bit 63".
pub(crate) fn bit_names(bits: u64, name: impl Fn(u32) -> Option<Name>) -> String {
    (0..u64::BITS)
        .filter(|bit| bits & 1_u64.wrapping_shl(*bit) != 0)
        .map(|bit| match name(bit) {
            Some(name) => format!("{name} (bit {bit})"),
            None => format!("bit {bit}"),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// Flags of the header: the version in the two lowest bits, then these.
pub mod flags {
    /// The only version there is.
    pub const VERSION: u32 = 0x1;
    /// The bits that hold the version.
    pub const VERSION_MASK: u32 = 0x3;
    /// This message answers a request.
    pub const REPLY: u32 = 0x4;
    /// The sender wants an acknowledgement.
    pub const NEED_REPLY: u32 = 0x8;
}

/// The header of every message.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// [`Request::id`].
    pub request: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

/// "A vring state description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// Ring index.
    pub index: u32,
    /// Size, base or enable, by request.
    pub num: u32,
}

/// "A vring address description". The used ring comes before the available one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddr {
    /// Ring index.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// Descriptor table (packed: descriptor ring).
    pub descriptor: u64,
    /// Used ring (packed: device event suppression area).
    pub used: u64,
    /// Available ring (packed: driver event suppression area).
    pub available: u64,
    /// Guest address at which writes to the used ring are logged.
    pub log: u64,
}

/// Bytes of a region on the wire without XEN_MMAP: all but what Xen wants.
pub const REGION_SIZE: usize = std::mem::offset_of!(MemRegion, xen_mmap_flags);

/// "Memory region description". The last two fields are on the wire only where
/// XEN_MMAP was acknowledged, and 0 otherwise.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MemRegion {
    /// Guest physical address.
    pub guest_addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the number space of the front-end.
    pub user_addr: u64,
    /// Offset in the file.
    pub mmap_offset: u64,
    /// How Xen maps it; see [`xen`].
    pub xen_mmap_flags: u32,
    /// The Xen domain that it belongs to.
    pub xen_domid: u32,
}

impl MemRegion {
    /// One that begins with these bytes; what is not there is 0.
    pub(crate) fn from_prefix(bytes: &[u8]) -> Self {
        let mut region = Self::default();
        let places = region.as_mut_bytes().iter_mut();
        places.zip(bytes).for_each(|(to, from)| *to = *from);
        region
    }
}

/// Flags of a region with XEN_MMAP.
pub mod xen {
    /// Mapped by a foreign domain.
    pub const FOREIGN: u32 = 1;
    /// Mapped by grant references.
    pub const GRANT: u32 = 1 << 1;
    /// Not mapped in advance.
    pub const NO_ADVANCE_MAP: u32 = 1 << 8;
}

/// What comes before the regions of SET_MEM_TABLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemTableHeader {
    /// Number of regions.
    pub nregions: u32,
    /// Zero.
    pub padding: u32,
}

/// "Log description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Log {
    /// Size of the log in bytes.
    pub mmap_size: u64,
    /// Offset of the log in its file.
    pub mmap_offset: u64,
}

/// "Virtio device config space": what comes before the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigHeader {
    /// Offset in the configuration space.
    pub offset: u32,
    /// Bytes that follow.
    pub size: u32,
    /// See SET_CONFIG.
    pub flags: u32,
}

/// "Inflight description". The padding is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Inflight {
    /// Size of the buffer in bytes.
    pub mmap_size: u64,
    /// Offset of the buffer in its file.
    pub mmap_offset: u64,
    /// Number of rings.
    pub num_queues: u16,
    /// Size of the largest ring.
    pub queue_size: u16,
    /// Zero.
    pub padding: u32,
}

/// "Device state transfer parameters".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceState {
    /// 0 save, 1 load.
    pub direction: u32,
    /// 0 stopped.
    pub phase: u32,
}

/// Reply of GET_SHMEM_CONFIG.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShmemConfig {
    /// Number of sizes that are not zero.
    pub nregions: u32,
    /// Zero.
    pub padding: u32,
    /// Size in bytes for each `shmid`; 0 where there is none.
    pub memory_sizes: [u64; SHMEM_REGIONS],
}

/// "An IOTLB message".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the number space of the regions.
    pub user_addr: u64,
    /// 1 to read, 2 to write, 3 both.
    pub perm: u8,
    /// See [`iotlb`].
    pub kind: u8,
    /// Zero.
    pub padding: [u8; 6],
}

/// Types of an IOTLB message that a front-end sends.
pub mod iotlb {
    /// The back-end needs a translation.
    pub const MISS: u8 = 1;
    /// The back-end may use this translation.
    pub const UPDATE: u8 = 2;
    /// It may no longer use translations of this range.
    pub const INVALIDATE: u8 = 3;
    /// The back-end was denied an access.
    pub const ACCESS_FAIL: u8 = 4;
}

/// Bytes of a UUID.
pub const UUID_SIZE: usize = 16;

/// Bytes in which sessions of both kinds lie.
const CRYPTO_UNION: usize = size_of::<CryptoAsym>();

/// A session of a crypto device: what CREATE_CRYPTO_SESSION sends and is answered.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CryptoSession {
    /// What is to be created (virtio specification, "Crypto Device").
    pub op_code: u64,
    /// A [`CryptoSym`] and zeros, or a [`CryptoAsym`].
    pub body: [u8; CRYPTO_UNION],
    /// In the answer: the session, or a negative error.
    pub session_id: i64,
}

/// A session with a cipher, a hash, or both.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CryptoSym {
    /// `VIRTIO_CRYPTO_CIPHER_*`
    pub cipher_alg: u32,
    /// Bytes of [`key`](Self::key).
    pub key_len: u32,
    /// `VIRTIO_CRYPTO_HASH_*` or `VIRTIO_CRYPTO_MAC_*`
    pub hash_alg: u32,
    /// Bytes of the result of the hash.
    pub hash_result_len: u32,
    /// Bytes of [`auth_key`](Self::auth_key).
    pub auth_key_len: u32,
    /// Bytes of additional authenticated data.
    pub add_len: u32,
    /// `VIRTIO_CRYPTO_SYM_OP_*`
    pub op_type: u8,
    /// `VIRTIO_CRYPTO_OP_ENCRYPT` or `VIRTIO_CRYPTO_OP_DECRYPT`
    pub direction: u8,
    /// `VIRTIO_CRYPTO_SYM_HASH_MODE_*`
    pub hash_mode: u8,
    /// `VIRTIO_CRYPTO_SYM_ALG_CHAIN_ORDER_*`
    pub alg_chain_order: u8,
    /// Zero.
    pub padding: u32,
    /// Where QEMU has pointers, which mean nothing to anybody else. Zero.
    pub pointers: [u64; 2],
    /// The key of the cipher, and zeros.
    pub key: [u8; MAX_CIPHER_KEY],
    /// The key for authentication, and zeros.
    pub auth_key: [u8; MAX_AUTH_KEY],
}

/// A session with an asymmetric algorithm.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CryptoAsym {
    /// `VIRTIO_CRYPTO_AKCIPHER_*`
    pub algo: u32,
    /// `VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_*`
    pub key_type: u32,
    /// Bytes of [`key`](Self::key).
    pub key_len: u32,
    /// Zero.
    pub padding: u32,
    /// Where QEMU has a pointer. Zero.
    pub pointer: u64,
    /// `VIRTIO_CRYPTO_RSA_*_PADDING`
    pub padding_algo: u32,
    /// `VIRTIO_CRYPTO_RSA_*`, the hash.
    pub hash_algo: u32,
    /// The key, and zeros.
    pub key: [u8; MAX_ASYM_KEY],
}

/// Operation codes that create a session (virtio specification, "Crypto Device").
pub mod crypto {
    /// Those of [`CryptoSym`](super::CryptoSym): cipher, hash, MAC, AEAD.
    pub const CREATE_SYM: [u64; 4] = [0x0002, 0x0102, 0x0202, 0x0302];
    /// Those of [`CryptoAsym`](super::CryptoAsym).
    pub const CREATE_ASYM: [u64; 1] = [0x0404];
}

/// Shows no keys.
macro_rules! without_keys {
    ($($name:ident)*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
without_keys! { CryptoSession CryptoSym CryptoAsym }

/// The payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
pub fn vring_fd(index: u8, has_fd: bool) -> u64 {
    u64::from(index) | if has_fd { 0 } else { NO_FD }
}

/// In a u64 payload: no file descriptor is attached.
pub const NO_FD: u64 = 1 << 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_protocol() {
        assert_eq!(size_of::<Header>(), HEADER_SIZE);
        assert_eq!(size_of::<VringState>(), 8);
        assert_eq!(size_of::<VringAddr>(), 40);
        assert_eq!(REGION_SIZE, 32);
        assert_eq!(size_of::<MemRegion>(), 40);
        assert_eq!(size_of::<MemTableHeader>(), 8);
        assert_eq!(size_of::<Log>(), 16);
        assert_eq!(size_of::<ConfigHeader>(), 12);
        assert_eq!(size_of::<Inflight>(), 24);
        assert_eq!(size_of::<DeviceState>(), 8);
        assert_eq!(size_of::<ShmemConfig>(), 2056);
        assert_eq!(size_of::<Iotlb>(), 32);
        assert_eq!(size_of::<CryptoSym>(), 48 + 64 + 512);
        assert_eq!(size_of::<CryptoAsym>(), 32 + 1024);
        assert_eq!(size_of::<CryptoSession>(), 1072);
        assert_eq!(std::mem::offset_of!(CryptoSession, session_id), 1064);
        assert_eq!(std::mem::offset_of!(VringAddr, used), 16);
        assert_eq!(std::mem::offset_of!(VringAddr, available), 24);
    }

    #[test]
    fn the_table_is_sound() {
        let mut last = 0;
        for request in Request::ALL {
            let info = request.info();
            assert!(!info.name.as_str().is_empty());
            assert!(request.id() > last, "{} out of order", info.name);
            last = request.id();
            assert!(info.fds_out.max <= MAX_MEM_REGIONS);
            if let Reply::Always(bounds) = info.reply {
                assert!(bounds.max <= MAX_REPLY_PAYLOAD, "{}", info.name);
            } else {
                assert_eq!(
                    info.fds_in.max, 0,
                    "{}: an ack carries no descriptor",
                    info.name
                );
            }
        }
    }

    #[test]
    fn other_forms_differ_only_in_what_they_must() {
        let (plain, larger) = (Request::SetMemTable.info(), Request::SetMemTable.xen_info());
        assert_eq!((plain.payload.min, plain.payload.max), (40, 264));
        assert_eq!((larger.payload.min, larger.payload.max), (48, 328));
        for request in [Request::AddMemReg, Request::RemMemReg] {
            assert_eq!(request.info().payload, exactly(40));
            assert_eq!(request.xen_info().payload, exactly(48));
            assert_eq!(request.xen_info().fds_out, request.info().fds_out);
        }
        let same = Request::GetFeatures;
        assert_eq!(same.xen_info().payload, same.info().payload);
        let table = larger.postcopy_table();
        assert_eq!(table.reply, Reply::Always(larger.payload));
        assert_eq!(table.fds_out, plain.fds_out);
        let ack = table.postcopy_ack();
        assert_eq!(
            (ack.payload, ack.fds_out, ack.reply),
            (U64, NONE, Reply::Silent)
        );
    }

    #[test]
    fn no_fd_is_bit_8() {
        assert_eq!(vring_fd(7, true), 7);
        assert_eq!(vring_fd(7, false), 0x107);
    }
}
