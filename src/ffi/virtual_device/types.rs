//! What C sees of a device besides functions: constants and structures.

use super::super::types::{VUF_SHMEM_REGIONS, vuf_backend_ops};
use std::os::raw::{c_char, c_int, c_void};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

// ---- what happened ----

/// Nothing has happened (struct vuf_device_event).
pub const VUF_DEVICE_EVENT_NONE: u32 = 0;
/// The handshake went through: vuf_device_get_info() has what is offered.
pub const VUF_DEVICE_EVENT_CONNECTED: u32 = 1;
/// The connection is lost; the error says why, recovery how the rings go on, peer_pid
/// who was at the other end.
pub const VUF_DEVICE_EVENT_LOST: u32 = 2;
/// An attempt to connect has failed, count in a row; the next comes after delay_ms.
pub const VUF_DEVICE_EVENT_RETRYING: u32 = 3;
/// The back-end has not answered for stall_ms; it is waited for.
pub const VUF_DEVICE_EVENT_STALLED: u32 = 4;
/// Rings that ran before a loss run again.
pub const VUF_DEVICE_EVENT_RECOVERED: u32 = 5;
/// The back-end has been told all that was wanted up to generation.
pub const VUF_DEVICE_EVENT_APPLIED: u32 = 6;
/// The configuration space has changed and has been read: tell the guest.
pub const VUF_DEVICE_EVENT_CONFIG_CHANGED: u32 = 7;
/// The rings cannot go on before vuf_device_reset(): the guest has to be asked
/// for it (virtio's DEVICE_NEEDS_RESET).
pub const VUF_DEVICE_EVENT_NEEDS_RESET: u32 = 8;
/// The back-end that was given up, peer_pid, may still write guest memory.
pub const VUF_DEVICE_EVENT_UNFENCED: u32 = 9;
/// It is gone after all.
pub const VUF_DEVICE_EVENT_FENCED: u32 = 10;
/// The device waits for a socket: vuf_device_set_fd().
pub const VUF_DEVICE_EVENT_NEEDS_FD: u32 = 11;
/// Others, count of them, wanted to connect while a back-end is in use.
pub const VUF_DEVICE_EVENT_PEERS_REFUSED: u32 = 12;
/// The back-end refused a write to its configuration space, or has none, or is not
/// the first that was lost over this write; the error says how. With GET_CONFIG for
/// request: it refused to tell the space again, after a change or a loss, and the
/// guest reads on what was told last.
pub const VUF_DEVICE_EVENT_CONFIG_REFUSED: u32 = 13;

// ---- how rings go on after a loss ----

/// None ran.
pub const VUF_RECOVERY_IDLE: u32 = 0;
/// From the used index; the in-flight buffer has the rest. Each request completes
/// once.
pub const VUF_RECOVERY_INFLIGHT: u32 = 1;
/// From the used index, as VIRTIO_F_IN_ORDER was agreed. Each request completes
/// once.
pub const VUF_RECOVERY_IN_ORDER: u32 = 2;
/// From the used index, as VUF_OUT_OF_ORDER_REPLAY_FROM_USED asks for.
pub const VUF_RECOVERY_REPLAY_FROM_USED: u32 = 3;
/// From the available index, as VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE asks for.
pub const VUF_RECOVERY_RESUME_FROM_AVAILABLE: u32 = 4;
/// Not before vuf_device_reset().
pub const VUF_RECOVERY_NEEDS_RESET: u32 = 5;

// ---- what a caller chooses ----

/// In struct vuf_device_options: a back-end that was given up is waited for, so
/// that no two use the memory. The default.
pub const VUF_ON_UNFENCED_WAIT: u32 = 0;
/// Another is used beside it, and beside eight of them at most: with a ninth it waits
/// until one of the nine is gone.
pub const VUF_ON_UNFENCED_PROCEED: u32 = 1;
/// If it is a process of vuf_device_set_process(), it is killed (SIGKILL), and
/// VUF_DEVICE_EVENT_UNFENCED comes only if it is not gone 5 s later. Otherwise as
/// VUF_ON_UNFENCED_WAIT. For vuf_device_open_fd() only.
pub const VUF_ON_UNFENCED_KILL: u32 = 2;
/// In struct vuf_device_options, for split rings with neither an in-flight buffer
/// nor VIRTIO_F_IN_ORDER: they wait for vuf_device_reset(). The default.
pub const VUF_OUT_OF_ORDER_NEEDS_RESET: u32 = 0;
/// They go on from the used index: right for back-ends that finish in order and only
/// do not say so. Of others, what was finished out of order is done again, and what it
/// overtook is lost.
pub const VUF_OUT_OF_ORDER_REPLAY_FROM_USED: u32 = 1;
/// They go on from the available index: what was not finished is lost.
pub const VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE: u32 = 2;
/// For vuf_device_set_memory(): memory that is in use may change while rings run;
/// see to it that none of it is needed meanwhile.
pub const VUF_MEMORY_ALLOW_GAP: u32 = 1;
/// For vuf_device_get_memory_state(): the back-end has exactly the memory that is
/// wanted.
pub const VUF_MEMORY_APPLIED: u32 = 0;
/// It has not been told yet, or has not confirmed: it may still use what was taken
/// away.
pub const VUF_MEMORY_PENDING: u32 = 1;
/// There is no back-end, or it has no memory yet. None is used; the next is told.
pub const VUF_MEMORY_ABSENT: u32 = 2;
/// A back-end refused it and was given up; the next is told.
pub const VUF_MEMORY_FAILED: u32 = 3;
/// A back-end that was given up before it confirmed may still write what was taken
/// away: it must not be unmapped.
pub const VUF_MEMORY_UNCONFIRMED: u32 = 4;
/// For vuf_device_stop(): the back-end finishes what it has taken (GET_VRING_BASE).
pub const VUF_STOP_DRAIN: u32 = 0;
/// It does not, where that was agreed (GET_VRING_BASE_SKIP_DRAIN): what is left
/// stands in the in-flight buffer. Otherwise as VUF_STOP_DRAIN.
pub const VUF_STOP_SKIP_DRAIN: u32 = 1;
/// The connection is ended, and where the rings stood is not known.
pub const VUF_STOP_ABANDON: u32 = 2;
/// In struct vuf_ring: from the beginning.
pub const VUF_RING_BASE_NEW: u32 = 0;
/// From where it was stopped on this device.
pub const VUF_RING_BASE_RESUME: u32 = 1;
/// From base.
pub const VUF_RING_BASE_AT: u32 = 2;
/// For get_index in struct vuf_ring: what the device has used.
pub const VUF_RING_INDEX_USED: u32 = 0;
/// What the driver has made available.
pub const VUF_RING_INDEX_AVAILABLE: u32 = 1;

/// Bytes of text in struct vuf_device_event, with its NUL.
pub const VUF_DEVICE_TEXT_SIZE: usize = 256;

/// A device: what is wanted of a back-end, made so over all its lives. Only ever
/// used through a pointer.
// Where cbindgen does not look: it would print a zero-size struct, which is not
// standard C, instead of declaring one.
#[cfg_attr(all(), repr(C))]
#[derive(Debug)]
pub struct vuf_device {
    private: [u8; 0],
}

/// Devices that share all guest memory. Only ever used through a pointer.
// As above.
#[cfg_attr(all(), repr(C))]
#[derive(Debug)]
pub struct vuf_memory_group {
    private: [u8; 0],
}

/// What a caller chooses when it opens a device. Set size to
/// sizeof(struct vuf_device_options) and the rest to zero; zero is always the
/// default. Times are in milliseconds, VUF_TIMEOUT_DEFAULT or
/// VUF_TIMEOUT_FOREVER.
///
/// A longer struct than this library knows is refused with -E2BIG unless the
/// rest is zero.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct vuf_device_options {
    /// sizeof(struct vuf_device_options)
    pub size: usize,
    /// How many rings the device has: an index at or above it is refused. The
    /// in-flight buffer is made for so many. 0: 256, and the buffer is made for those
    /// that are started together, so that no other can be started while they run.
    pub num_rings: u32,
    /// Bytes of its configuration space that the back-end is asked for: the exact
    /// size of the virtio device's. 0: none, and VUF_PROTOCOL_F_CONFIG is not
    /// acknowledged. At most VUF_MAX_CONFIG_SIZE.
    pub config_size: u32,
    /// Virtio features (a mask) without which a back-end is refused.
    pub required_features: u64,
    /// Protocol features that may be acknowledged where they are offered, of those
    /// that the device makes use of. 0 means all.
    pub protocol_features: u64,
    /// Protocol features without which a back-end is refused.
    pub required_protocol_features: u64,
    /// Virtio features that count as offered before there is a back-end, so that a
    /// guest can be started without one. A back-end that offers fewer is refused.
    /// 0: vuf_device_set_features() has to wait for the first.
    pub assume_features: u64,
    /// The caller's functions that do what the back-end asks on its channel; NULL
    /// for none. Read during the call. They run inside vuf_device_process(),
    /// vuf_device_wait() and the functions with a timeout. Of config_changed
    /// nothing is heard: VUF_DEVICE_EVENT_CONFIG_CHANGED comes once the space has
    /// been read. They may call with this device what neither waits nor processes.
    pub backend_ops: *const vuf_backend_ops,
    /// Passed to each of them.
    pub user: *mut c_void,
    /// When to connect again after a loss, or after the first attempt that fails.
    /// Each further delay is twice the one before. Default 100.
    pub first_delay_ms: u32,
    /// But not more than this. Default 5000, or first_delay_ms if that is more.
    pub max_delay_ms: u32,
    /// After a back-end was refused, or refused us. Default 30000.
    pub slow_delay_ms: u32,
    /// How much of a delay chance may take away, in percent: 1 to 100. Default 25.
    pub jitter_percent: u32,
    /// How long a back-end that was given up, and may use the memory, has to close
    /// its connection before VUF_DEVICE_EVENT_UNFENCED. Default 5000.
    pub fence_ms: u32,
    /// VUF_ON_UNFENCED_*: what happens then.
    pub on_unfenced: u32,
    /// VUF_OUT_OF_ORDER_*
    pub out_of_order: u32,
    /// After how long without an answer VUF_DEVICE_EVENT_STALLED comes.
    /// Default 1000.
    pub stall_ms: u32,
    /// For requests that the back-end answers from its memory; without an answer
    /// until then it is given up. Default 5000.
    pub timeout_ms: u32,
    /// For memory, enabling rings and in-flight buffers, likewise. Default 60000.
    pub slow_timeout_ms: u32,
    /// For stopping a ring, likewise. Default 60000.
    pub drain_timeout_ms: u32,
    /// Zero.
    pub reserved: u32,
}

/// A ring to be started. Zero it first, and set fds that there are not to -1: 0 is
/// refused. Addresses are guest addresses; with VIRTIO_F_ACCESS_PLATFORM they are
/// I/O virtual addresses.
///
/// After a loss the library has to know where the ring stands, from used_index and
/// avail_index or from get_index. Without them the rings wait for
/// vuf_device_reset() then.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct vuf_ring {
    /// Which one: below num_rings of the options.
    pub index: u32,
    /// Descriptors: 1 to 32768, for a split ring a power of two.
    pub size: u32,
    /// Descriptor table (packed: descriptor ring); a multiple of 16.
    pub descriptor: u64,
    /// Available ring (packed: driver event suppression area); a multiple of 2
    /// (packed: of 4).
    pub available: u64,
    /// Used ring (packed: device event suppression area); a multiple of 4.
    pub used: u64,
    /// VUF_RING_BASE_*: where it begins.
    pub base_mode: u32,
    /// With VUF_RING_BASE_AT: in the form of vuf_client_set_vring_base(). Otherwise
    /// zero.
    pub base: u32,
    /// What the driver writes, an eventfd. Kept: duplicated, until the ring is
    /// stopped.
    pub kick_fd: c_int,
    /// What the device writes; -1 if the driver polls. Kept, as kick_fd.
    pub call_fd: c_int,
    /// What the device writes when the ring is broken; -1 for none. Kept.
    pub err_fd: c_int,
    /// Zero.
    pub reserved0: u32,
    /// The index field of the used ring (packed: a word of the caller's, bits 0-14
    /// the next used descriptor, bit 15 its wrap counter) in this process, aligned
    /// and little-endian; NULL for none. The library reads it, and nothing else of
    /// guest memory, inside vuf_device_start(), vuf_device_process() and functions
    /// that wait. It must stay mapped until the ring is stopped, and calls of these
    /// that other threads were in meanwhile have returned.
    pub used_index: *const u16,
    /// The index field of the available ring, likewise; only of use with
    /// VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE.
    pub avail_index: *const u16,
    /// In place of these two: called with user, the index of the ring and
    /// VUF_RING_INDEX_*, it sets *index (in this machine's byte order) and returns
    /// 0, or another number where that is not known. It may not wait for or process
    /// this device, and is called as long as used_index would have to stay.
    pub get_index: Option<
        unsafe extern "C" fn(user: *mut c_void, ring: u32, which: u32, index: *mut u16) -> c_int,
    >,
    /// Passed to get_index.
    pub user: *mut c_void,
    /// Zero.
    pub reserved: [u64; 4],
}

/// What is left of rings that were stopped, or of memory that was taken away. Set
/// size to sizeof(struct vuf_quiet) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_quiet {
    /// sizeof(struct vuf_quiet)
    pub size: usize,
    /// 1: no back-end uses them any more. 0: guest memory may still be written,
    /// what was taken away must not be unmapped.
    pub quiesced: u32,
    /// 1: where each of the stopped rings stood is known, for
    /// VUF_RING_BASE_RESUME and vuf_device_get_vring_base(). Also where there was no
    /// back-end, if the next would have gone on by itself. 0: a back-end was lost
    /// before it told, or may still write, or the ring waits for vuf_device_reset().
    pub bases_valid: u32,
}

/// What has happened to a device. Set size to sizeof(struct vuf_device_event)
/// before the call. Fields that kind does not name are zero.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_device_event {
    /// sizeof(struct vuf_device_event)
    pub size: usize,
    /// VUF_DEVICE_EVENT_*
    pub kind: u32,
    /// VUF_RECOVERY_*: how rings go on.
    pub recovery: u32,
    /// What was asked for when it happened: see generation in
    /// struct vuf_device_info.
    pub generation: u64,
    /// How many attempts have failed in a row, or how many peers were refused.
    pub count: u32,
    /// When the next attempt comes, in milliseconds.
    pub delay_ms: u32,
    /// So many events before this one were left out, because nobody took them.
    pub missed: u32,
    /// Why, as in struct vuf_error_info; 0 where there is no error.
    pub code: c_int,
    /// As in struct vuf_error_info; so are the next ones.
    pub errno_value: c_int,
    /// VUF_CLASS_*
    pub error_class: u32,
    /// VUF_PHASE_*
    pub phase: u32,
    /// Number of the request; 0 if none was involved. After a loss the oldest one that
    /// had no answer or, with none, one that had just been acknowledged.
    pub request: u32,
    /// Index of the ring; -1 if none.
    pub ring: i32,
    /// Position of the region; -1 if none.
    pub region: i32,
    /// 1 if value is what the back-end sent.
    pub has_value: u32,
    /// Of LOST and UNFENCED the process that was at the other end, as in
    /// struct vuf_device_info; 0 where it cannot be seen from here.
    pub peer_pid: i32,
    /// The back-end's raw value.
    pub value: u64,
    /// The error in words, NUL-terminated; empty where there is none.
    pub text: [c_char; VUF_DEVICE_TEXT_SIZE],
}

/// What is known of a device and its back-end. Set size to
/// sizeof(struct vuf_device_info) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_device_info {
    /// sizeof(struct vuf_device_info)
    pub size: usize,
    /// 1: there is a connection, and its handshake went through.
    pub connected: u32,
    /// 1: the back-end has been told all that is wanted, up to generation.
    pub settled: u32,
    /// 1: the rings wait for vuf_device_reset().
    pub needs_reset: u32,
    /// 1: a back-end that was given up may still write guest memory.
    pub unfenced: u32,
    /// Counts what was asked for: each function that changes it adds one.
    pub generation: u64,
    /// Up to where the back-end has been told; 0 while there is no connection.
    pub applied: u64,
    /// How many connections there have been.
    pub connections: u64,
    /// Virtio features that the back-end offers, or offered last, or is assumed
    /// to; without VUF_F_PROTOCOL_FEATURES and VUF_F_LOG_ALL, which are not for
    /// the guest.
    pub offered_features: u64,
    /// Those acknowledged on this connection.
    pub acked_features: u64,
    /// Protocol features that the back-end offers on this connection.
    pub offered_protocol_features: u64,
    /// Those acknowledged.
    pub protocol_features: u64,
    /// GET_QUEUE_NUM; 0 if it was not asked. Some back-ends count pairs.
    pub queue_num: u64,
    /// GET_MAX_MEM_SLOTS; 0 if it was not asked.
    pub max_mem_slots: u64,
    /// The process at the other end, its user and group; -1 while there is none,
    /// and pid 0 where it cannot be seen from here, or is not known: of a socket pair
    /// the kernel names who made it, which is this process.
    pub peer_pid: i32,
    /// See peer_pid.
    pub peer_uid: i32,
    /// See peer_pid.
    pub peer_gid: i32,
    /// Zero.
    pub reserved: u32,
    /// Size in bytes of the shared memory region with each shmid; 0 where there is
    /// none.
    pub shmem_sizes: [u64; VUF_SHMEM_REGIONS],
}
