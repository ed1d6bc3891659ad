//! Everything that C sees besides functions: constants and structures.

#![allow(non_camel_case_types, reason = "these are the names in C")]

use crate::error::{Class, Phase, code};
use crate::message;
use std::os::raw::c_int;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// ---- version ----

/// Major number of the version of this header.
pub const VUF_VERSION_MAJOR: u32 = 0;
/// Minor number of the version of this header.
pub const VUF_VERSION_MINOR: u32 = 1;
/// Patch number of the version of this header.
pub const VUF_VERSION_PATCH: u32 = 0;

// ---- return codes that are not -errno ----

/// The back-end closed the connection. Only a new connection helps.
pub const VUF_E_DISCONNECTED: i32 = -4097;
/// The back-end broke the protocol. The connection is poisoned.
pub const VUF_E_PROTOCOL: i32 = -4098;
/// The back-end answered the request with an error value.
pub const VUF_E_NACK: i32 = -4099;
/// The request needs a feature that was not offered or not acknowledged.
pub const VUF_E_NOT_NEGOTIATED: i32 = -4100;
/// An earlier failure made the stream uncertain. Only a new connection helps.
pub const VUF_E_POISONED: i32 = -4101;
/// The call does not fit what was done before on this client.
pub const VUF_E_STATE: i32 = -4102;
/// A bug in this library. The connection is poisoned.
pub const VUF_E_PANIC: i32 = -4103;

// ---- classes: what a caller may do about a failure ----

/// Not a failure.
pub const VUF_CLASS_NONE: u32 = 0;
/// The connection or the back-end's process: reconnecting may help.
pub const VUF_CLASS_TRANSPORT: u32 = 1;
/// The back-end answered, and said no.
pub const VUF_CLASS_REFUSED: u32 = 2;
/// The back-end broke the protocol: it has a bug.
pub const VUF_CLASS_PROTOCOL: u32 = 3;
/// The caller's arguments, the order of calls, or this machine.
pub const VUF_CLASS_LOCAL: u32 = 4;

// ---- phases: how far a request had got ----

/// Nothing had been sent: arguments and state were being checked.
pub const VUF_PHASE_CHECK: u32 = 0;
/// The connection was being made.
pub const VUF_PHASE_CONNECT: u32 = 1;
/// The request was being sent.
pub const VUF_PHASE_SEND: u32 = 2;
/// The reply was awaited, received or checked.
pub const VUF_PHASE_REPLY: u32 = 3;
/// The request was sent; the GET_FEATURES behind it was awaited.
pub const VUF_PHASE_BARRIER: u32 = 4;

// ---- time ----

/// As a time in milliseconds: what the documentation says.
pub const VUF_TIMEOUT_DEFAULT: u32 = 0;
/// As a time in milliseconds: for ever.
pub const VUF_TIMEOUT_FOREVER: u32 = u32::MAX;
/// A passed deadline poisons the connection (the default).
pub const VUF_ON_TIMEOUT_POISON: u32 = 0;
/// A passed deadline leaves the connection usable: the late reply is dropped
/// when it comes, and later requests wait behind it. (With more than 64 requests
/// without an answer it is poisoned all the same.)
pub const VUF_ON_TIMEOUT_KEEP: u32 = 1;

// ---- limits ----

/// Most regions in one vuf_client_set_mem_table().
pub const VUF_MAX_MEM_REGIONS: u32 = 8;
/// Largest index of a ring.
pub const VUF_MAX_RING_INDEX: u32 = 255;
/// Most bytes of configuration space in one request.
pub const VUF_MAX_CONFIG_SIZE: u32 = 256;
/// Number of sizes in struct vuf_shmem_config, one for each shmid.
pub const VUF_SHMEM_REGIONS: usize = 256;

// ---- virtio feature bits (bit numbers) that the protocol itself knows ----

/// VHOST_F_LOG_ALL: the back-end logs all its writes to guest memory.
pub const VUF_F_LOG_ALL: u32 = 26;
/// VHOST_USER_F_PROTOCOL_FEATURES: the back-end speaks protocol features.
pub const VUF_F_PROTOCOL_FEATURES: u32 = 30;

// ---- protocol feature bits (bit numbers) ----

/// Several queues.
pub const VUF_PROTOCOL_F_MQ: u32 = 0;
/// The dirty log is shared memory.
pub const VUF_PROTOCOL_F_LOG_SHMFD: u32 = 1;
/// SEND_RARP after a migration.
pub const VUF_PROTOCOL_F_RARP: u32 = 2;
/// A request can ask to be acknowledged.
pub const VUF_PROTOCOL_F_REPLY_ACK: u32 = 3;
/// NET_SET_MTU.
pub const VUF_PROTOCOL_F_MTU: u32 = 4;
/// The back-end may send requests of its own.
pub const VUF_PROTOCOL_F_BACKEND_REQ: u32 = 5;
/// SET_VRING_ENDIAN.
pub const VUF_PROTOCOL_F_CROSS_ENDIAN: u32 = 6;
/// Crypto sessions.
pub const VUF_PROTOCOL_F_CRYPTO_SESSION: u32 = 7;
/// Postcopy migration.
pub const VUF_PROTOCOL_F_PAGEFAULT: u32 = 8;
/// Configuration space travels over the socket.
pub const VUF_PROTOCOL_F_CONFIG: u32 = 9;
/// Back-end requests may carry file descriptors.
pub const VUF_PROTOCOL_F_BACKEND_SEND_FD: u32 = 10;
/// The back-end may offer doorbell pages.
pub const VUF_PROTOCOL_F_HOST_NOTIFIER: u32 = 11;
/// In-flight I/O is tracked in shared memory.
pub const VUF_PROTOCOL_F_INFLIGHT_SHMFD: u32 = 12;
/// RESET_DEVICE.
pub const VUF_PROTOCOL_F_RESET_DEVICE: u32 = 13;
/// Notifications as messages.
pub const VUF_PROTOCOL_F_INBAND_NOTIFICATIONS: u32 = 14;
/// Memory regions are added and removed one by one.
pub const VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS: u32 = 15;
/// SET_STATUS and GET_STATUS.
pub const VUF_PROTOCOL_F_STATUS: u32 = 16;
/// Memory regions of Xen.
pub const VUF_PROTOCOL_F_XEN_MMAP: u32 = 17;
/// Shared objects.
pub const VUF_PROTOCOL_F_SHARED_OBJECT: u32 = 18;
/// The internal state of the device can be saved and loaded.
pub const VUF_PROTOCOL_F_DEVICE_STATE: u32 = 19;
/// GET_VRING_BASE may leave requests in flight.
pub const VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT: u32 = 20;
/// User addresses are guest addresses.
pub const VUF_PROTOCOL_F_GPA_ADDRESSES: u32 = 21;
/// The device has shared memory regions.
pub const VUF_PROTOCOL_F_SHMEM: u32 = 22;
/// GET_VRING_BASE_SKIP_DRAIN.
pub const VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN: u32 = 23;

// ---- flags and directions ----

/// In struct vuf_vring_addr: log writes to the used ring (VHOST_VRING_F_LOG).
pub const VUF_VRING_F_LOG: u32 = 1;
/// In struct vuf_client_options: the features were agreed before.
pub const VUF_CLIENT_ADOPT: u32 = 1;
/// In struct vuf_client_options: vuf_client_connect() waits for a socket that is
/// not there yet, or on which nobody listens, as after a back-end was started.
pub const VUF_CLIENT_WAIT_FOR_SOCKET: u32 = 2;
/// Device state moves from the back-end to the front-end.
pub const VUF_TRANSFER_DIRECTION_SAVE: u32 = 0;
/// Device state moves from the front-end to the back-end.
pub const VUF_TRANSFER_DIRECTION_LOAD: u32 = 1;
/// The device is stopped while its state moves; there is no other phase yet.
pub const VUF_TRANSFER_PHASE_STOPPED: u32 = 0;

/// A connection to a back-end. Only ever used through a pointer.
// Where cbindgen does not look: it would print a zero-size struct, which is not
// standard C, instead of declaring one.
#[cfg_attr(all(), repr(C))]
#[derive(Debug)]
pub struct vuf_client {
    private: [u8; 0],
}

/// What a caller chooses when it connects. Set size to
/// sizeof(struct vuf_client_options) and the rest to zero; zero is always the
/// default. Times are in milliseconds, VUF_TIMEOUT_DEFAULT or
/// VUF_TIMEOUT_FOREVER.
///
/// A longer struct than this library knows is refused with -E2BIG unless the
/// rest is zero.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_client_options {
    /// sizeof(struct vuf_client_options)
    pub size: usize,
    /// For vuf_client_connect() and vuf_client_accept(). Default 5000.
    pub connect_timeout_ms: u32,
    /// For requests that the back-end answers from its memory. Default 5000.
    pub timeout_ms: u32,
    /// For memory tables and regions, the log, enabling rings, in-flight
    /// buffers and device state. Default 60000.
    pub slow_timeout_ms: u32,
    /// For vuf_client_get_vring_base() where the call names no time of its own:
    /// the back-end first finishes guest requests. Default 60000.
    pub drain_timeout_ms: u32,
    /// VUF_ON_TIMEOUT_POISON or VUF_ON_TIMEOUT_KEEP.
    pub on_timeout: u32,
    /// How many rings the device has: an index at or above it is refused.
    /// Default 256.
    pub max_rings: u32,
    /// VUF_CLIENT_ADOPT, VUF_CLIENT_WAIT_FOR_SOCKET, both or zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// With VUF_CLIENT_ADOPT: the virtio features that were acknowledged on
    /// this connection by the process that it was inherited from. SET_OWNER
    /// counts as sent.
    pub adopt_features: u64,
    /// With VUF_CLIENT_ADOPT: the protocol features, likewise; a subset of
    /// vuf_supported_protocol_features().
    pub adopt_protocol_features: u64,
}

/// A region of guest memory ("Memory region description"). Zero it first: the
/// fields that are not used must be zero.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_mem_region {
    /// Guest physical address of the region.
    pub guest_addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address of the region in the number space in which ring addresses are
    /// given. It need not be a pointer: the guest address will do, and tells
    /// the back-end nothing about this process.
    pub user_addr: u64,
    /// Offset of the region in the file, in bytes; a multiple of the page size.
    pub mmap_offset: u64,
    /// The file that holds the region: memfd, tmpfs or hugetlbfs, mapped shared.
    /// Borrowed: the back-end gets a duplicate. 0 is refused, so that a zeroed
    /// struct does not send standard input away.
    pub fd: c_int,
    /// Zero (for VUF_PROTOCOL_F_XEN_MMAP, not served yet).
    pub xen_mmap_flags: u32,
    /// Zero (for VUF_PROTOCOL_F_XEN_MMAP, not served yet).
    pub xen_domid: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// Where a ring lies ("A vring address description"). Addresses are in the
/// number space of vuf_mem_region.user_addr.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_vring_addr {
    /// VUF_VRING_F_LOG or zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Descriptor table (packed: descriptor ring); a multiple of 16.
    pub descriptor: u64,
    /// Available ring (packed: driver event suppression area); a multiple of 2
    /// (packed: of 4).
    pub available: u64,
    /// Used ring (packed: device event suppression area); a multiple of 4.
    pub used: u64,
    /// With VUF_VRING_F_LOG: guest physical address at which writes to the used
    /// ring are logged.
    pub log: u64,
}

/// The buffer in which a back-end tracks requests in flight ("Inflight
/// description"). Its content is the back-end's own.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_inflight {
    /// Size in bytes; 0 where the back-end wants no buffer.
    pub mmap_size: u64,
    /// Offset in the file, in bytes.
    pub mmap_offset: u64,
    /// Number of rings.
    pub num_queues: u16,
    /// Size of the largest ring, in descriptors.
    pub queue_size: u16,
    /// Zero.
    pub reserved: u32,
}

/// The device's shared memory regions. Set size to
/// sizeof(struct vuf_shmem_config) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_shmem_config {
    /// sizeof(struct vuf_shmem_config)
    pub size: usize,
    /// How many of the sizes are not zero.
    pub nregions: u32,
    /// Zero.
    pub reserved: u32,
    /// Size in bytes of the region with each shmid; 0 where there is none.
    pub memory_sizes: [u64; VUF_SHMEM_REGIONS],
}

/// The last failure of a thread, in fields. Set size to
/// sizeof(struct vuf_error_info) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_error_info {
    /// sizeof(struct vuf_error_info)
    pub size: usize,
    /// What the function returned; 0 if nothing has failed in this thread.
    pub code: c_int,
    /// The errno behind the code, positive; 0 where there is none.
    pub errno_value: c_int,
    /// VUF_CLASS_*. For VUF_E_POISONED the class of the first cause.
    pub error_class: u32,
    /// VUF_PHASE_*
    pub phase: u32,
    /// Number of the request that failed; 0 if none was involved. See
    /// vuf_request_name().
    pub request: u32,
    /// Index of the ring that the request names; -1 if none, or above INT32_MAX.
    pub ring: i32,
    /// Position in the caller's array of the region at fault; -1 if none.
    pub region: i32,
    /// 1 if value is what the back-end sent, 0 if it sent nothing of note.
    pub has_value: u32,
    /// The back-end's raw value: an error, or the field that was wrong.
    pub value: u64,
}

/// What [`vuf_error_info`] says of a class.
pub(super) fn class_number(class: Class) -> u32 {
    match class {
        Class::Transport => VUF_CLASS_TRANSPORT,
        Class::Refused => VUF_CLASS_REFUSED,
        Class::Protocol => VUF_CLASS_PROTOCOL,
        Class::Local => VUF_CLASS_LOCAL,
    }
}

/// What [`vuf_error_info`] says of a phase.
pub(super) fn phase_number(phase: Phase) -> u32 {
    match phase {
        Phase::Check => VUF_PHASE_CHECK,
        Phase::Connect => VUF_PHASE_CONNECT,
        Phase::Send => VUF_PHASE_SEND,
        Phase::Reply => VUF_PHASE_REPLY,
        Phase::Barrier => VUF_PHASE_BARRIER,
    }
}

// cbindgen wants literals above; the compiler holds them against the core.
const _: () = {
    use message::ProtocolFeatures as P;
    assert!(VUF_E_DISCONNECTED == code::DISCONNECTED);
    assert!(VUF_E_PROTOCOL == code::PROTOCOL);
    assert!(VUF_E_NACK == code::NACK);
    assert!(VUF_E_NOT_NEGOTIATED == code::NOT_NEGOTIATED);
    assert!(VUF_E_POISONED == code::POISONED);
    assert!(VUF_E_STATE == code::STATE);
    assert!(VUF_E_PANIC == code::PANIC);
    assert!(VUF_F_LOG_ALL == message::virtio::F_LOG_ALL);
    assert!(VUF_F_PROTOCOL_FEATURES == message::virtio::F_PROTOCOL_FEATURES);
    assert!(VUF_MAX_RING_INDEX == message::MAX_RING_INDEX);
    assert!(VUF_SHMEM_REGIONS == message::SHMEM_REGIONS);
    assert!(1 << VUF_PROTOCOL_F_MQ == P::MQ.bits());
    assert!(1 << VUF_PROTOCOL_F_LOG_SHMFD == P::LOG_SHMFD.bits());
    assert!(1 << VUF_PROTOCOL_F_REPLY_ACK == P::REPLY_ACK.bits());
    assert!(1 << VUF_PROTOCOL_F_BACKEND_REQ == P::BACKEND_REQ.bits());
    assert!(1 << VUF_PROTOCOL_F_CONFIG == P::CONFIG.bits());
    assert!(1 << VUF_PROTOCOL_F_BACKEND_SEND_FD == P::BACKEND_SEND_FD.bits());
    assert!(1 << VUF_PROTOCOL_F_HOST_NOTIFIER == P::HOST_NOTIFIER.bits());
    assert!(1 << VUF_PROTOCOL_F_INFLIGHT_SHMFD == P::INFLIGHT_SHMFD.bits());
    assert!(1 << VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS == P::CONFIGURE_MEM_SLOTS.bits());
    assert!(1 << VUF_PROTOCOL_F_DEVICE_STATE == P::DEVICE_STATE.bits());
    assert!(1 << VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT == P::GET_VRING_BASE_INFLIGHT.bits());
    assert!(1 << VUF_PROTOCOL_F_GPA_ADDRESSES == P::GPA_ADDRESSES.bits());
    assert!(1 << VUF_PROTOCOL_F_SHMEM == P::SHMEM.bits());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_crate() {
        let version = format!("{VUF_VERSION_MAJOR}.{VUF_VERSION_MINOR}.{VUF_VERSION_PATCH}");
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn limits_are_those_of_the_core() {
        assert_eq!(
            usize::try_from(VUF_MAX_MEM_REGIONS),
            Ok(message::MAX_MEM_REGIONS)
        );
        assert_eq!(
            usize::try_from(VUF_MAX_CONFIG_SIZE),
            Ok(message::MAX_CONFIG_SIZE)
        );
    }

    /// The header names every protocol feature bit as the name table does.
    #[test]
    fn protocol_feature_constants_match_the_names() {
        let header = include_str!("types.rs");
        for (bit, name) in message::PROTOCOL_FEATURE_NAMES {
            let line = format!("pub const VUF_PROTOCOL_F_{name}: u32 = {bit};");
            assert!(header.contains(&line), "{line}");
        }
    }
}
