//! Requests of the back-end, on the channel that SET_BACKEND_REQ_FD hands over,
//! and the one table that says how each behaves.

use super::{Bounds, Iotlb, MAYBE, NONE, Name, ONE, UUID_SIZE, exactly, virtio};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What must have been agreed before the back-end may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendGate {
    /// This virtio feature bit was acknowledged with SET_FEATURES.
    Acked(u32),
    /// All these protocol features (a mask) were acknowledged.
    Protocol(u64),
}

/// When the front-end answers with a u64, 0 for success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// If the request asks for it.
    OnDemand,
    /// In any case; success comes with a file descriptor.
    Always,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct BackendRequestInfo {
    /// The name in the specification, without `VHOST_USER_`.
    pub name: Name,
    /// What must have been agreed.
    pub gate: BackendGate,
    /// Bytes after the header.
    pub payload: Bounds,
    /// File descriptors that come along.
    pub fds: Bounds,
    /// When it is answered.
    pub answered: Answered,
}

macro_rules! backend_requests {
    ($($id:literal $variant:ident $name:literal:
       $gate:expr, $payload:expr, $fds:expr, $answered:ident;)*) => {
        /// A request of the back-end (specification, "Back-end message types").
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum BackendRequest {
            $(#[doc = concat!("`VHOST_USER_", $name, "`")] $variant = $id,)*
        }

        impl BackendRequest {
            /// All of them, in the order of their ids.
            pub const ALL: &'static [BackendRequest] = &[$(BackendRequest::$variant,)*];

            /// The number on the wire.
            pub const fn id(self) -> u32 {
                match self { $(BackendRequest::$variant => $id,)* }
            }

            /// The row of the table.
            pub const fn info(self) -> &'static BackendRequestInfo {
                match self {
                    $(BackendRequest::$variant => const { &BackendRequestInfo {
                        name: Name::new(concat!($name, "\0")),
                        gate: $gate,
                        payload: exactly($payload),
                        fds: $fds,
                        answered: Answered::$answered,
                    } },)*
                }
            }

            /// The one with this number.
            pub fn from_id(id: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|request| request.id() == id)
            }
        }
    };
}

use BackendGate::{Acked, Protocol};

const fn bits<const N: usize>(bits: [u32; N]) -> BackendGate {
    let mut mask = 0_u64;
    let mut rest: &[u32] = &bits;
    while let [bit, others @ ..] = rest {
        mask |= 1_u64.wrapping_shl(*bit);
        rest = others;
    }
    Protocol(mask)
}

/// Largest payload of any request of the back-end.
pub const MAX_BACKEND_PAYLOAD: usize = size_of::<ShmemArea>();

backend_requests! {
//  id variant           name                               gate                       payload                  fds    answered
     1 Iotlb              "BACKEND_IOTLB_MSG":               Acked(virtio::F_ACCESS_PLATFORM), size_of::<Iotlb>(), NONE, OnDemand;
     2 ConfigChange       "BACKEND_CONFIG_CHANGE_MSG":       bits([9]),                 0,                       NONE,  OnDemand;
     3 HostNotifier       "BACKEND_VRING_HOST_NOTIFIER_MSG": bits([11]),                size_of::<VringArea>(),  MAYBE, OnDemand;
     4 VringCall          "BACKEND_VRING_CALL":              bits([14]),                size_of::<super::VringState>(), NONE, OnDemand;
     5 VringErr           "BACKEND_VRING_ERR":               bits([14]),                size_of::<super::VringState>(), NONE, OnDemand;
     6 SharedObjectAdd    "BACKEND_SHARED_OBJECT_ADD":       bits([18]),                UUID_SIZE,               NONE,  OnDemand;
     7 SharedObjectRemove "BACKEND_SHARED_OBJECT_REMOVE":    bits([18]),                UUID_SIZE,               NONE,  OnDemand;
     // The `vhost` crate attaches a descriptor that means nothing.
     8 SharedObjectLookup "BACKEND_SHARED_OBJECT_LOOKUP":    bits([18]),                UUID_SIZE,               MAYBE, Always;
     9 ShmemMap           "BACKEND_SHMEM_MAP":               bits([22]),                size_of::<ShmemArea>(),  ONE,   OnDemand;
    10 ShmemUnmap         "BACKEND_SHMEM_UNMAP":             bits([22]),                size_of::<ShmemArea>(),  NONE,  OnDemand;
}

/// "Vring area description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringArea {
    /// Bits 0-7 ring index; bit 8: no file descriptor.
    pub value: u64,
    /// Size of the area in bytes.
    pub size: u64,
    /// Offset of the area in its file.
    pub offset: u64,
}

/// "VIRTIO shared memory region": SHMEM_MAP and SHMEM_UNMAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShmemArea {
    /// Which shared memory region.
    pub shmid: u8,
    /// Zero.
    pub padding: [u8; 7],
    /// Where to begin in the file.
    pub fd_offset: u64,
    /// Where to begin in the region.
    pub shm_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Bit 0: may be written.
    pub flags: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_protocol() {
        assert_eq!(size_of::<VringArea>(), 24);
        assert_eq!(size_of::<ShmemArea>(), 40);
    }

    #[test]
    fn the_table_is_sound() {
        for (request, id) in BackendRequest::ALL.iter().zip(1..) {
            assert_eq!(request.id(), id);
            assert_eq!(BackendRequest::from_id(id), Some(*request));
            assert!(!request.info().name.as_str().is_empty());
            assert!(request.info().payload.max <= MAX_BACKEND_PAYLOAD);
        }
        assert_eq!(BackendRequest::from_id(0), None);
        assert_eq!(BackendRequest::from_id(11), None);
    }
}
