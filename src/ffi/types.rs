//! Everything that C sees besides functions: constants and structures.

#![allow(non_camel_case_types, reason = "these are the names in C")]

use super::args::extensible;
use crate::error::{Class, Phase, code};
use crate::message;
use std::os::raw::{c_char, c_int, c_void};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

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

/// Bytes of a cipher's key in struct vuf_crypto_sym.
pub const VUF_MAX_CIPHER_KEY: usize = 64;
/// Bytes of a key for authentication in struct vuf_crypto_sym.
pub const VUF_MAX_AUTH_KEY: usize = 512;
/// Bytes of a key in struct vuf_crypto_asym.
pub const VUF_MAX_ASYM_KEY: usize = 1024;

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
/// In the flags of struct vuf_shmem_area: the mapping may be written.
pub const VUF_SHMEM_WRITABLE: u64 = 1;
/// For vuf_client_set_vring_endian().
pub const VUF_VRING_LITTLE_ENDIAN: u32 = 0;
/// For vuf_client_set_vring_endian().
pub const VUF_VRING_BIG_ENDIAN: u32 = 1;
/// In struct vuf_mem_region: mapped by a foreign domain.
pub const VUF_XEN_MMAP_FOREIGN: u32 = 1;
/// In struct vuf_mem_region: mapped by grant references.
pub const VUF_XEN_MMAP_GRANT: u32 = 2;
/// In struct vuf_mem_region: not mapped in advance.
pub const VUF_XEN_MMAP_NO_ADVANCE_MAP: u32 = 256;
/// In struct vuf_iotlb: a translation that the back-end may use.
pub const VUF_IOTLB_UPDATE: u8 = 2;
/// In struct vuf_iotlb: a range whose translations it may no longer use.
pub const VUF_IOTLB_INVALIDATE: u8 = 3;
/// In struct vuf_iotlb: the back-end may read.
pub const VUF_ACCESS_RO: u8 = 1;
/// In struct vuf_iotlb: the back-end may write.
pub const VUF_ACCESS_WO: u8 = 2;
/// In struct vuf_iotlb: the back-end may read and write.
pub const VUF_ACCESS_RW: u8 = 3;
/// The most that spin_us in struct vuf_client_options may be.
pub const VUF_MAX_SPIN_US: u32 = 10000;
/// In struct vuf_client_options: the features were agreed before.
pub const VUF_CLIENT_ADOPT: u32 = 1;
/// In struct vuf_client_options: vuf_client_connect() waits for a socket that is
/// not there yet, or on which nobody listens, as after a back-end was started.
pub const VUF_CLIENT_WAIT_FOR_SOCKET: u32 = 2;
/// For vuf_memfd_create(): the size of the file stays (F_SEAL_SHRINK, F_SEAL_GROW),
/// and no other seal is added later (F_SEAL_SEAL).
pub const VUF_MEMFD_SEAL: u32 = 1;
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
/// rest is zero, and a shorter one than that of version 0.1 with -EINVAL.
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
    /// How long, in microseconds, a function looks for its answer again and again
    /// before it sleeps: 0, the default, to VUF_MAX_SPIN_US. vuf_client_submit()
    /// does so for each of its answers. What answers within that time is seen
    /// several times sooner, as no thread has to be woken; what does not costs a
    /// processor that much more. Only with a processor to spare for the back-end.
    pub spin_us: u32,
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
    /// The file that holds the region: memfd, tmpfs or hugetlbfs, or a device that can
    /// be mapped; mapped shared. Borrowed: the back-end gets a duplicate. 0 is refused,
    /// so that a zeroed struct does not send standard input away.
    pub fd: c_int,
    /// With VUF_PROTOCOL_F_XEN_MMAP acknowledged: VUF_XEN_MMAP_*. Otherwise zero.
    pub xen_mmap_flags: u32,
    /// With VUF_PROTOCOL_F_XEN_MMAP acknowledged: the domain that the region
    /// belongs to. Otherwise zero.
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

/// A translation of the back-end's IOMMU, or the end of some ("An IOTLB
/// message").
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Size in bytes, not 0.
    pub size: u64,
    /// For an update: where it is, in the number space of
    /// vuf_mem_region.user_addr; with VUF_PROTOCOL_F_GPA_ADDRESSES a guest
    /// physical address.
    pub user_addr: u64,
    /// VUF_ACCESS_*; may be 0 to invalidate.
    pub perm: u8,
    /// VUF_IOTLB_UPDATE or VUF_IOTLB_INVALIDATE.
    pub r#type: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// A crypto session with a cipher, a hash, or both. The numbers are those of
/// <linux/virtio_crypto.h>.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_crypto_sym {
    /// VIRTIO_CRYPTO_CIPHER_*
    pub cipher_alg: u32,
    /// Bytes of key; at most VUF_MAX_CIPHER_KEY.
    pub key_len: u32,
    /// VIRTIO_CRYPTO_HASH_* or VIRTIO_CRYPTO_MAC_*
    pub hash_alg: u32,
    /// Bytes of the result of the hash.
    pub hash_result_len: u32,
    /// Bytes of auth_key; at most VUF_MAX_AUTH_KEY.
    pub auth_key_len: u32,
    /// Bytes of additional authenticated data.
    pub add_len: u32,
    /// VIRTIO_CRYPTO_SYM_OP_*
    pub op_type: u8,
    /// VIRTIO_CRYPTO_OP_ENCRYPT or VIRTIO_CRYPTO_OP_DECRYPT
    pub direction: u8,
    /// VIRTIO_CRYPTO_SYM_HASH_MODE_*
    pub hash_mode: u8,
    /// VIRTIO_CRYPTO_SYM_ALG_CHAIN_ORDER_*
    pub alg_chain_order: u8,
    /// Zero.
    pub reserved: u32,
    /// The key of the cipher, and zeros.
    pub key: [u8; VUF_MAX_CIPHER_KEY],
    /// The key for authentication, and zeros.
    pub auth_key: [u8; VUF_MAX_AUTH_KEY],
}

/// A crypto session with an asymmetric algorithm. The numbers are those of
/// <linux/virtio_crypto.h>.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_crypto_asym {
    /// VIRTIO_CRYPTO_AKCIPHER_RSA
    pub algo: u32,
    /// VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_*
    pub key_type: u32,
    /// Bytes of key; at most VUF_MAX_ASYM_KEY.
    pub key_len: u32,
    /// VIRTIO_CRYPTO_RSA_RAW_PADDING or VIRTIO_CRYPTO_RSA_PKCS1_PADDING
    pub padding_algo: u32,
    /// VIRTIO_CRYPTO_RSA_*, the hash.
    pub hash_algo: u32,
    /// Zero.
    pub reserved: u32,
    /// The key, and zeros.
    pub key: [u8; VUF_MAX_ASYM_KEY],
}

/// What vuf_client_create_crypto_session() creates. Set size to
/// sizeof(struct vuf_crypto_session), and zero the rest first.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_crypto_session {
    /// sizeof(struct vuf_crypto_session)
    pub size: usize,
    /// VIRTIO_CRYPTO_*_CREATE_SESSION; it chooses one of the next two.
    pub op_code: u64,
    /// For VIRTIO_CRYPTO_CIPHER_, HASH_, MAC_ and AEAD_CREATE_SESSION;
    /// otherwise zero.
    pub sym: vuf_crypto_sym,
    /// For VIRTIO_CRYPTO_AKCIPHER_CREATE_SESSION; otherwise zero.
    pub asym: vuf_crypto_asym,
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
without_keys! { vuf_crypto_sym vuf_crypto_asym vuf_crypto_session }

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

/// Part of a shared memory region of the device.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_shmem_area {
    /// Which region: an index into memory_sizes of struct vuf_shmem_config.
    pub shmid: u32,
    /// Zero.
    pub reserved: u32,
    /// Where to begin in the file, in bytes.
    pub fd_offset: u64,
    /// Where to begin in the region, in bytes.
    pub shm_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// VUF_SHMEM_WRITABLE, or zero for a mapping that is only read.
    pub flags: u64,
}

/// The caller's functions that do what the back-end asks on its channel. Set size
/// to sizeof(struct vuf_backend_ops), and to NULL what you do not serve: it is
/// answered with an error.
///
/// The first six must be answered before the back-end goes on. They run inside
/// any call on the client that waits, and inside
/// vuf_client_process_backend_requests(), one at a time, on the thread that made
/// the call. They must never wait for a lock that any thread holds while it calls
/// the library with this client, and of this client they may call only
/// vuf_client_post_iotlb(), vuf_client_abort() and functions that send nothing;
/// others answer VUF_E_STATE. Their result is the answer: 0 for success, otherwise
/// a negative errno.
///
/// The others are acknowledged by the library, and run only inside
/// vuf_client_process_backend_requests(), where any call is allowed but
/// vuf_client_free(). What came several times meanwhile may be told once.
///
/// None runs during or after vuf_client_free(). Nothing may be thrown or jumped
/// through the library.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct vuf_backend_ops {
    /// sizeof(struct vuf_backend_ops)
    pub size: usize,
    /// The back-end needs the translation of an I/O virtual address
    /// (BACKEND_IOTLB_MSG): send it with vuf_client_post_iotlb(). perm: bit 0 it
    /// wants to read, bit 1 to write.
    pub iotlb_miss: Option<unsafe extern "C" fn(user: *mut c_void, iova: u64, perm: u32) -> c_int>,
    /// The back-end was denied an access (BACKEND_IOTLB_MSG).
    pub iotlb_access_fail:
        Option<unsafe extern "C" fn(user: *mut c_void, iova: u64, size: u64, perm: u32) -> c_int>,
    /// A ring has a doorbell page, which the guest may write in place of the kick
    /// (BACKEND_VRING_HOST_NOTIFIER_MSG): map size bytes of fd from offset, shared
    /// and writable. fd is given (yours to close); -1 takes the page away. It also
    /// goes when the ring is stopped. Also called with -1, and the result then ignored,
    /// for each page that is there when the device is reset or the channel ends, as
    /// shmem_unmap is.
    pub host_notifier: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            ring: u32,
            fd: c_int,
            offset: u64,
            size: u64,
        ) -> c_int,
    >,
    /// Find the object that another device exported under the 16 bytes at uuid
    /// (BACKEND_SHARED_OBJECT_LOOKUP). Set *fd to its file: taken (the library
    /// sends and closes it).
    pub shared_object_lookup:
        Option<unsafe extern "C" fn(user: *mut c_void, uuid: *const u8, fd: *mut c_int) -> c_int>,
    /// Map fd into a shared memory region of the device (BACKEND_SHMEM_MAP). fd is
    /// given (yours to close). The library has checked that the area is within the
    /// region; begins with a page in the region and in the file; has no page in common
    /// with another mapping, so that whole pages can be mapped whatever len is; and that
    /// fd is open for it and, if it is a regular file, was long enough. The back-end may
    /// still truncate its file: an access to the mapping is then a SIGBUS, unless the file
    /// has F_SEAL_SHRINK.
    pub shmem_map: Option<
        unsafe extern "C" fn(user: *mut c_void, area: *const vuf_shmem_area, fd: c_int) -> c_int,
    >,
    /// Take away a whole mapping (BACKEND_SHMEM_UNMAP). Also called, and the
    /// result then ignored, for each one that lives when the device is reset
    /// (inside vuf_client_reset_device(), or vuf_client_set_status() with 0) or the
    /// channel ends (inside vuf_client_process_backend_requests()).
    pub shmem_unmap:
        Option<unsafe extern "C" fn(user: *mut c_void, area: *const vuf_shmem_area) -> c_int>,
    /// The configuration space has changed (BACKEND_CONFIG_CHANGE_MSG): read it
    /// again and tell the guest.
    pub config_changed: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// The device has used buffers of a ring (BACKEND_VRING_CALL).
    pub vring_call: Option<unsafe extern "C" fn(user: *mut c_void, ring: u32)>,
    /// A ring is broken (BACKEND_VRING_ERR).
    pub vring_err: Option<unsafe extern "C" fn(user: *mut c_void, ring: u32)>,
    /// The device exports an object under the 16 bytes at uuid
    /// (BACKEND_SHARED_OBJECT_ADD).
    pub shared_object_added: Option<unsafe extern "C" fn(user: *mut c_void, uuid: *const u8)>,
    /// The device exports it no longer (BACKEND_SHARED_OBJECT_REMOVE). Also called for
    /// each object that it exports when it is reset or the channel ends.
    pub shared_object_removed: Option<unsafe extern "C" fn(user: *mut c_void, uuid: *const u8)>,
}

/// Over the connection (struct vuf_trace_record).
pub const VUF_TRACE_MAIN: u32 = 0;
/// Over the back-end's own channel.
pub const VUF_TRACE_CHANNEL: u32 = 1;
/// From the front-end to the back-end (struct vuf_trace_record).
pub const VUF_TRACE_SENT: u32 = 0;
/// From the back-end to the front-end.
pub const VUF_TRACE_RECEIVED: u32 = 1;

/// One message, for the callback of vuf_client_set_trace(), during which it is
/// valid.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct vuf_trace_record {
    /// Bytes of this struct that the library has filled in. Before you read a
    /// field that came in a later version than yours, see that size covers it.
    pub size: usize,
    /// The message in words, in one line without its end. It begins with "> "
    /// (sent) or "< " (received), on the channel with "channel " before that, and
    /// goes on with the name of the request, "need-reply" where that is asked,
    /// fields as name=value (decimal up to 65535, then hexadecimal), size= where it
    /// is not the usual one, and fds= where there are any:
    ///   "> SET_VRING_NUM need-reply index=0 num=256"
    ///   "< SET_VRING_NUM value=0"
    /// Fields, and what follows them, may be added. Never has keys or other contents.
    pub text: *const c_char,
    /// The name of the request, as in the text; NULL if it is not known.
    pub name: *const c_char,
    /// VUF_TRACE_MAIN or VUF_TRACE_CHANNEL.
    pub socket: u32,
    /// VUF_TRACE_SENT or VUF_TRACE_RECEIVED.
    pub direction: u32,
    /// The number of the request; those of the channel are numbered apart.
    pub request: u32,
    /// Flags of the message's header.
    pub flags: u32,
    /// Bytes of payload, as the header says.
    pub payload_size: u32,
    /// File descriptors that went with the message; 0 where it was not taken
    /// because its header is wrong.
    pub fds: u32,
    /// Records that were lost since the one before, because messages came faster
    /// than the callback took them.
    pub dropped: u64,
}

/// What a client has done so far, on both of its sockets unless it says otherwise.
/// Set size to sizeof(struct vuf_counters) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_counters {
    /// sizeof(struct vuf_counters)
    pub size: usize,
    /// Requests that went out on the connection, barriers included.
    pub requests_sent: u64,
    /// Replies to them, acknowledgements included.
    pub replies_received: u64,
    /// Bytes of messages sent.
    pub bytes_sent: u64,
    /// Bytes of messages received.
    pub bytes_received: u64,
    /// File descriptors sent.
    pub fds_sent: u64,
    /// File descriptors received, also those that were too many.
    pub fds_received: u64,
    /// GET_FEATURES that were sent only to know that the request before was
    /// processed.
    pub barriers: u64,
    /// Requests of the back-end that succeeded.
    pub backend_requests_served: u64,
    /// Requests of the back-end that were refused, by the library or by a function
    /// of struct vuf_backend_ops.
    pub backend_requests_refused: u64,
    /// Messages of vuf_client_post_iotlb() that the back-end refused.
    pub posted_refused: u64,
    /// Calls that ended with -ETIMEDOUT.
    pub timeouts: u64,
    /// Records that the callback of vuf_client_set_trace() did not get, because
    /// messages came faster than it took them.
    pub trace_dropped: u64,
    /// Longest time that a call waited for a reply, in nanoseconds; to its deadline
    /// where none came.
    pub longest_wait_ns: u64,
    /// The request that it was for (see vuf_request_name()); 0 if none yet. Where a
    /// barrier was waited for, the request before it.
    pub longest_wait_request: u32,
    /// Zero.
    pub reserved: u32,
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
    /// With -ETIMEDOUT of a device: the code of the last failure that kept the device
    /// from what it waits for, such as -ENOENT where the socket does not exist. The
    /// other fields and the text then describe that failure. Otherwise 0.
    pub cause: c_int,
    /// Zero.
    pub reserved: u32,
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
    assert!(VUF_MAX_SPIN_US == crate::backend_client::MAX_SPIN.subsec_micros());
    assert!(VUF_SHMEM_REGIONS == message::SHMEM_REGIONS);
    assert!(VUF_MAX_CIPHER_KEY == message::MAX_CIPHER_KEY);
    assert!(VUF_MAX_AUTH_KEY == message::MAX_AUTH_KEY);
    assert!(VUF_MAX_ASYM_KEY == message::MAX_ASYM_KEY);
    assert!(VUF_XEN_MMAP_FOREIGN == message::xen::FOREIGN);
    assert!(VUF_XEN_MMAP_GRANT == message::xen::GRANT);
    assert!(VUF_XEN_MMAP_NO_ADVANCE_MAP == message::xen::NO_ADVANCE_MAP);
    assert!(VUF_IOTLB_UPDATE == message::iotlb::UPDATE);
    assert!(VUF_IOTLB_INVALIDATE == message::iotlb::INVALIDATE);
    assert!(1 << VUF_PROTOCOL_F_MQ == P::MQ.bits());
    assert!(1 << VUF_PROTOCOL_F_LOG_SHMFD == P::LOG_SHMFD.bits());
    assert!(
        super::virtual_device::types::VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES
            == crate::device::DeviceOptions::DEFAULT_PROTOCOL_FEATURES
    );
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
    assert!(1 << VUF_PROTOCOL_F_RARP == P::RARP.bits());
    assert!(1 << VUF_PROTOCOL_F_MTU == P::MTU.bits());
    assert!(1 << VUF_PROTOCOL_F_CROSS_ENDIAN == P::CROSS_ENDIAN.bits());
    assert!(1 << VUF_PROTOCOL_F_CRYPTO_SESSION == P::CRYPTO_SESSION.bits());
    assert!(1 << VUF_PROTOCOL_F_PAGEFAULT == P::PAGEFAULT.bits());
    assert!(1 << VUF_PROTOCOL_F_RESET_DEVICE == P::RESET_DEVICE.bits());
    assert!(1 << VUF_PROTOCOL_F_INBAND_NOTIFICATIONS == P::INBAND_NOTIFICATIONS.bits());
    assert!(1 << VUF_PROTOCOL_F_STATUS == P::STATUS.bits());
    assert!(1 << VUF_PROTOCOL_F_XEN_MMAP == P::XEN_MMAP.bits());
    assert!(1 << VUF_PROTOCOL_F_SHARED_OBJECT == P::SHARED_OBJECT.bits());
    assert!(1 << VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN == P::GET_VRING_BASE_SKIP_DRAIN.bits());
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

extensible! {
    vuf_client_options vuf_crypto_session vuf_shmem_config vuf_backend_ops vuf_counters
    vuf_error_info
}
