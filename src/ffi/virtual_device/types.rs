//! What C sees of a device besides functions: constants and structures.

use super::super::args::extensible;
use super::super::types::{VUF_SHMEM_REGIONS, vuf_backend_ops};
use std::os::raw::{c_char, c_int, c_void};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

// ---- what happened ----

/// Nothing has happened (struct vuf_device_event).
pub const VUF_DEVICE_EVENT_NONE: u32 = 0;
/// The handshake went through: vuf_device_get_info() has what is offered.
pub const VUF_DEVICE_EVENT_CONNECTED: u32 = 1;
/// The connection is lost; the error says why, recovery by which policy rings go on.
/// peer_pid is the process that was at the other end.
pub const VUF_DEVICE_EVENT_LOST: u32 = 2;
/// An attempt to connect has failed, count in a row; the next comes after delay_ms, or
/// as soon as the socket appears. At most one waits to be taken.
pub const VUF_DEVICE_EVENT_RETRYING: u32 = 3;
/// The back-end has not answered for stall_ms; it is waited for.
pub const VUF_DEVICE_EVENT_STALLED: u32 = 4;
/// Rings that ran before a loss run again, by the policy in recovery.
pub const VUF_DEVICE_EVENT_RECOVERED: u32 = 5;
/// The back-end has confirmed all that was wanted up to generation. Does not come while a
/// part of it is refused (VUF_DEVICE_EVENT_REFUSED), or while rings wait for a reset.
pub const VUF_DEVICE_EVENT_APPLIED: u32 = 6;
/// The configuration space has changed and has been read: interrupt the guest. It also
/// comes for the first space that is read if the guest may have been shown another: with
/// options->assume_features, or after vuf_device_read_config() failed. It does not come
/// for what changes because of the guest's own writes alone.
pub const VUF_DEVICE_EVENT_CONFIG_CHANGED: u32 = 7;
/// Rings that ran before a loss cannot go on before vuf_device_reset(): interrupt the
/// guest, which reads DEVICE_NEEDS_RESET (vuf_device_get_virtio_status()). An event from
/// before a reset is not returned after it.
pub const VUF_DEVICE_EVENT_NEEDS_RESET: u32 = 8;
/// The back-end that was given up, peer_pid, may still write guest memory.
pub const VUF_DEVICE_EVENT_UNFENCED: u32 = 9;
/// All back-ends are gone for which VUF_DEVICE_EVENT_UNFENCED came.
pub const VUF_DEVICE_EVENT_FENCED: u32 = 10;
/// The device waits for a socket: vuf_device_set_fd().
pub const VUF_DEVICE_EVENT_NEEDS_FD: u32 = 11;
/// Others, count of them, wanted to connect while a back-end is in use.
pub const VUF_DEVICE_EVENT_PEERS_REFUSED: u32 = 12;
/// The back-end refused a write to its configuration space, or has none, or is not
/// the first that was lost over this write; the error says how. With GET_CONFIG for
/// request: it refuses to return the space, and the text has the number of bytes that
/// it was asked for. The guest reads on what was returned last, if anything was.
pub const VUF_DEVICE_EVENT_CONFIG_REFUSED: u32 = 13;
/// The back-end refused a memory region, or refused to release one, to start a ring, to
/// take another call descriptor, an MTU or a GPU's socket, or to announce an address, or
/// does not have a ring: request, ring and text
/// name it. Everything else goes on, and the connection stays.
///
/// The request is not repeated before the caller asks again: by a change of its memory, by
/// vuf_device_start(), vuf_device_set_call() or vuf_device_set_mtu(). After a loss one other back-end is asked
/// for the region, if the connection survived the refusal. For a ring that ran before a
/// loss VUF_DEVICE_EVENT_NEEDS_RESET follows. The library also refuses a ring by this
/// event that does not fit in an in-flight buffer with unfinished requests of another
/// ring; the text has the remedy.
pub const VUF_DEVICE_EVENT_REFUSED: u32 = 14;
/// The back-end's channel has ended; the error says why. Where the device depends on
/// the channel (VIRTIO_F_ACCESS_PLATFORM, VUF_PROTOCOL_F_CONFIG or
/// VUF_PROTOCOL_F_SHMEM is acknowledged), VUF_DEVICE_EVENT_LOST follows.
pub const VUF_DEVICE_EVENT_CHANNEL_CLOSED: u32 = 15;
/// The library refused requests, count of them, that the back-end sent on its channel.
/// The text names the request, the errno of the answer and the reason; value is the
/// number of the request on the channel, and request is 0. Comes at most every 100 ms.
/// Requests that a function in struct vuf_backend_ops refused are not reported.
pub const VUF_DEVICE_EVENT_CHANNEL_REFUSED: u32 = 16;
/// The back-end refused messages, count of them, of vuf_device_post_iotlb(): it may
/// still use what they were to invalidate. vuf_device_wait() fails because of it.
pub const VUF_DEVICE_EVENT_IOTLB_REFUSED: u32 = 17;

// ---- how rings go on after a loss ----

/// No ring ran.
pub const VUF_RECOVERY_IDLE: u32 = 0;
/// From the used index; the in-flight buffer has the rest. Each request completes
/// once.
pub const VUF_RECOVERY_INFLIGHT: u32 = 1;
/// From the used index, as VIRTIO_F_IN_ORDER was agreed. Each request completes
/// once.
pub const VUF_RECOVERY_IN_ORDER: u32 = 2;
/// From the used index: VUF_OUT_OF_ORDER_REPLAY_FROM_USED, which is the default for most
/// devices.
pub const VUF_RECOVERY_REPLAY_FROM_USED: u32 = 3;
/// From the available index: VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE.
pub const VUF_RECOVERY_RESUME_FROM_AVAILABLE: u32 = 4;
/// Not before vuf_device_reset(): by VUF_OUT_OF_ORDER_NEEDS_RESET, for packed rings
/// without an in-flight buffer, and if the index is not known that the policy needs.
pub const VUF_RECOVERY_NEEDS_RESET: u32 = 5;

// ---- what a caller chooses ----

/// The protocol features that a device acknowledges by default (a mask), the same in
/// every version of the library: MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG,
/// BACKEND_SEND_FD, HOST_NOTIFIER, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS,
/// STATUS, SHARED_OBJECT, DEVICE_STATE, GET_VRING_BASE_INFLIGHT, GPA_ADDRESSES, SHMEM,
/// GET_VRING_BASE_SKIP_DRAIN.
pub const VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES: u64 = 0x00fd_be2b;
/// Virtio features (a mask) that a guest must not be shown only because the back-end
/// offers them, in every version of the library: a monitor shows the guest
/// offered_features without these, and adds of these what it implements itself.
///
/// Of the vhost-user connection: VHOST_F_LOG_ALL (26) and VHOST_USER_F_PROTOCOL_FEATURES
/// (30). Of the transport between guest and monitor, such as virtio-pci:
/// VIRTIO_F_SR_IOV (37), VIRTIO_F_NOTIFICATION_DATA (38), VIRTIO_F_NOTIF_CONFIG_DATA (39),
/// VIRTIO_F_RING_RESET (40), VIRTIO_F_ADMIN_VQ (41). Of the machine:
/// VIRTIO_F_ACCESS_PLATFORM (33), with which rings and buffers have I/O virtual addresses.
/// Reserved by the virtio specification for extensions of these kinds: 42 to 49.
pub const VUF_TRANSPORT_FEATURES: u64 = 0x0003_ffe2_4400_0000;
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
/// In struct vuf_device_options, how split rings go on after a loss that have neither an
/// in-flight buffer nor VIRTIO_F_IN_ORDER. The default: VUF_OUT_OF_ORDER_NEEDS_RESET if
/// device_id is 26 (file system), whose session is lost with its back-end, otherwise
/// VUF_OUT_OF_ORDER_REPLAY_FROM_USED, as in QEMU. No Linux virtio driver acts on
/// DEVICE_NEEDS_RESET, so a Linux guest would wait forever. recovery of
/// VUF_DEVICE_EVENT_LOST names the policy that was applied.
pub const VUF_OUT_OF_ORDER_DEFAULT: u32 = 0;
/// The rings wait for vuf_device_reset().
pub const VUF_OUT_OF_ORDER_NEEDS_RESET: u32 = 1;
/// The rings go on from the used index. Correct for back-ends that complete requests in
/// order, even if they do not offer VIRTIO_F_IN_ORDER. With others, a request that was
/// completed out of order may be executed again, and one that it overtook may never
/// complete.
pub const VUF_OUT_OF_ORDER_REPLAY_FROM_USED: u32 = 2;
/// The rings go on from the available index: requests that were not completed are lost.
pub const VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE: u32 = 3;
/// For config_size in struct vuf_device_options: the size is chosen by
/// vuf_device_set_config_size(), when the features of the back-end are known.
pub const VUF_CONFIG_SIZE_LATER: u32 = 0xffff_ffff;
/// For vuf_device_set_memory(): memory that is in use may change while rings run. The
/// caller makes sure that none of it is needed meanwhile.
pub const VUF_MEMORY_ALLOW_GAP: u32 = 1;
/// For vuf_device_get_memory_state(): the back-end has exactly the memory that is
/// wanted.
pub const VUF_MEMORY_APPLIED: u32 = 0;
/// It has not confirmed that yet, or an old back-end is not gone: memory that was taken
/// away may still be in use. Lasts while a memory table is refused (SET_MEM_TABLE) that
/// would take memory away.
pub const VUF_MEMORY_PENDING: u32 = 1;
/// There is no back-end, or it has no memory yet. No memory is in use; the next back-end
/// gets it.
pub const VUF_MEMORY_ABSENT: u32 = 2;
/// A back-end refused a region that is wanted (VUF_DEVICE_EVENT_REFUSED), and the rest is
/// in use. No memory that was taken away is accessible any longer.
pub const VUF_MEMORY_FAILED: u32 = 3;
/// A back-end refused to release a region (REM_MEM_REG), or was given up and is not gone
/// (VUF_DEVICE_EVENT_UNFENCED). It may still write memory that was taken away, which must
/// not be unmapped.
pub const VUF_MEMORY_UNCONFIRMED: u32 = 4;
/// For vuf_device_stop(): the back-end completes the requests that it has taken
/// (GET_VRING_BASE).
pub const VUF_STOP_DRAIN: u32 = 0;
/// The back-end leaves unfinished requests in the in-flight buffer, where that is agreed
/// (GET_VRING_BASE_SKIP_DRAIN). Otherwise as VUF_STOP_DRAIN.
pub const VUF_STOP_SKIP_DRAIN: u32 = 1;
/// The connection is closed. Rings that run have no base afterwards.
pub const VUF_STOP_ABANDON: u32 = 2;
/// In struct vuf_ring: from the beginning.
pub const VUF_RING_BASE_NEW: u32 = 0;
/// From the base at which it was stopped on this device, with the requests that are left
/// in the in-flight buffer. A ring that is still being stopped begins where the stop ends;
/// after a loss that cut the stop off, where its index stands once that back-end is gone.
pub const VUF_RING_BASE_RESUME: u32 = 1;
/// From base. If that is the base at which the ring was stopped, as
/// VUF_RING_BASE_RESUME.
pub const VUF_RING_BASE_AT: u32 = 2;
/// For get_index in struct vuf_ring: what the device has used.
pub const VUF_RING_INDEX_USED: u32 = 0;
/// What the driver has made available.
pub const VUF_RING_INDEX_AVAILABLE: u32 = 1;

/// Bytes of text in struct vuf_device_event, with its NUL.
pub const VUF_DEVICE_TEXT_SIZE: usize = 256;

/// A device: keeps a back-end in the desired state, across restarts. Only ever used
/// through a pointer.
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
    /// in-flight buffer is made for that number. 0: 256, and the buffer is made for the
    /// rings that are started; to start another one then stops these for a moment.
    pub num_rings: u32,
    /// Bytes of its configuration space that the back-end is asked for: the exact
    /// size of the virtio device's. 0: none, and VUF_PROTOCOL_F_CONFIG is not
    /// acknowledged. At most VUF_MAX_CONFIG_SIZE. VUF_CONFIG_SIZE_LATER: it depends on
    /// the features that the back-end offers, see vuf_device_set_config_size().
    pub config_size: u32,
    /// Virtio features (a mask) without which a back-end is refused.
    pub required_features: u64,
    /// Protocol features that may be acknowledged where they are offered, of those
    /// that the device makes use of. 0: VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES.
    ///
    /// Without their functions in backend_ops some are never acknowledged:
    /// VUF_PROTOCOL_F_SHMEM (shmem_map), VUF_PROTOCOL_F_HOST_NOTIFIER (host_notifier),
    /// VUF_PROTOCOL_F_SHARED_OBJECT (any of its three) and
    /// VUF_PROTOCOL_F_BACKEND_SEND_FD (shmem_map, host_notifier or
    /// shared_object_lookup).
    pub protocol_features: u64,
    /// Protocol features without which a back-end is refused. One that needs a function
    /// in backend_ops (see protocol_features) is -EINVAL without it.
    pub required_protocol_features: u64,
    /// Virtio features that count as offered before there is a back-end, so that a
    /// guest can be started without one. A back-end that offers fewer is refused. See
    /// vuf_device_assume_config() for what such a guest reads.
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
    /// Each further delay is twice the one before, until a back-end has done all that is
    /// wanted for max_delay_ms (10 s if that is less). A socket that appears is connected
    /// to at once, where only its absence is waited for. Default 100.
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
    /// VUF_OUT_OF_ORDER_*: how rings go on after a loss where neither an in-flight buffer
    /// nor VIRTIO_F_IN_ORDER says which requests were completed.
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
    /// The largest size that a ring will have, in descriptors; at most 32768. A larger
    /// ring is refused. In-flight buffers are made for it, so that a queue that the guest
    /// resets (VIRTIO_F_RING_RESET) can be given a larger size while others run. 0: that
    /// of the largest ring that is started; a larger one then stops the others for a
    /// moment.
    pub max_ring_size: u32,
    /// The virtio device ID, such as 2 for a block device (VIRTIO_ID_BLOCK); 0: unknown.
    /// Texts name the feature bits of this type, and it decides what
    /// VUF_OUT_OF_ORDER_DEFAULT means.
    pub device_id: u32,
    /// Zero.
    pub reserved: u32,
}

/// A ring to be started. Zero it first, and set fds that there are not to -1: 0 is
/// refused. Addresses are guest addresses; with VIRTIO_F_ACCESS_PLATFORM they are
/// I/O virtual addresses.
///
/// After a loss the library has to know how far the ring has got, from used_index and
/// avail_index or from get_index. Without the index that the policy needs, all rings of
/// the device wait for vuf_device_reset() then.
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
    /// What the driver writes: an eventfd, or one end of a pipe or socket. A file is
    /// refused, because notifications would overwrite what is in it. Kept: duplicated,
    /// until the ring is stopped.
    pub kick_fd: c_int,
    /// What the device writes; -1 if the driver polls. Kept, as kick_fd.
    pub call_fd: c_int,
    /// What the device writes when the ring is broken; -1 for none. Kept.
    pub err_fd: c_int,
    /// Zero.
    pub reserved0: u32,
    /// The index field of the used ring (packed: a caller-supplied word, bits 0-14
    /// the next used descriptor, bit 15 its wrap counter) in this process, aligned
    /// and little-endian; NULL for none. The library reads it, and nothing else of
    /// guest memory, inside vuf_device_start(), vuf_device_stop(), vuf_device_process()
    /// and functions that wait. A back-end can make a file that it was given shorter, and
    /// reading there then ends the program with SIGBUS: seal the file of this memory
    /// (F_SEAL_SHRINK), as vuf_memfd_create() does with VUF_MEMFD_SEAL.
    ///
    /// It must stay mapped until the ring was stopped and struct vuf_quiet has quiesced 1,
    /// because back-ends exist that answer GET_VRING_BASE before they have completed all
    /// requests (qemu-storage-daemon). A ring whose used index has not reached its base is
    /// not drained: the library waits 1 s for it, then reports VUF_DEVICE_EVENT_LOST with
    /// the number of unfinished requests in value.
    pub used_index: *const u16,
    /// The index field of the available ring, likewise. With it a ring that has no
    /// unfinished request is recognised after a loss, and can be started anew while
    /// others go on; VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE needs it.
    pub avail_index: *const u16,
    /// In place of these two: called with user, the index of the ring and
    /// VUF_RING_INDEX_*, it sets *index (in this machine's byte order) and returns
    /// 0, or another number where that is not known. It may not wait for or process
    /// this device. It may be called until the ring was stopped and quiesced in
    /// struct vuf_quiet is 1.
    pub get_index: Option<
        unsafe extern "C" fn(user: *mut c_void, ring: u32, which: u32, index: *mut u16) -> c_int,
    >,
    /// Passed to get_index.
    pub user: *mut c_void,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Whether stopped rings and memory that was taken away are out of use. Set
/// size to sizeof(struct vuf_quiet) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_quiet {
    /// sizeof(struct vuf_quiet)
    pub size: usize,
    /// 1: that is confirmed by the back-end, or the back-end is gone. 0: guest memory may
    /// still be written, and memory that was taken away must not be unmapped.
    pub quiesced: u32,
    /// 1: each ring that is not started was never started, or has a base from which it
    /// can be resumed without losing a request, under the policy of the device:
    /// VUF_RING_BASE_RESUME and vuf_device_get_vring_base() work. 0: for one of them
    /// vuf_device_get_vring_base() fails, and vuf_last_error() says why.
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
    /// VUF_RECOVERY_*: the policy by which rings go on (LOST), or went on (RECOVERED).
    pub recovery: u32,
    /// The desired state when it happened: see generation in struct vuf_device_info.
    pub generation: u64,
    /// How many attempts have failed in a row, or how many peers, requests or messages
    /// were refused.
    pub count: u32,
    /// When the next attempt comes, in milliseconds.
    pub delay_ms: u32,
    /// How many events before this one were left out, because they were not taken.
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
    /// had no answer.
    pub request: u32,
    /// Index of the ring; -1 if none.
    pub ring: i32,
    /// Position of the region; -1 if none.
    pub region: i32,
    /// 1 if value has a meaning.
    pub has_value: u32,
    /// Of LOST and UNFENCED the process that was at the other end, as in
    /// struct vuf_device_info; 0 where it cannot be seen from here.
    pub peer_pid: i32,
    /// The back-end's raw value. Of a process of vuf_device_set_process() that has
    /// exited, its exit status. Of a ring that was not drained (LOST with GET_VRING_BASE),
    /// the number of its unfinished requests.
    pub value: u64,
    /// The error as text, NUL-terminated; empty where there is none.
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
    /// 1: the back-end has acknowledged all that is wanted, up to generation, and has
    /// answered all messages of vuf_device_post_iotlb().
    pub settled: u32,
    /// 1: rings that ran before a loss wait for vuf_device_reset().
    pub needs_reset: u32,
    /// 1: a back-end that was given up may still write guest memory.
    pub unfenced: u32,
    /// Counts changes of the desired state: each function that changes it adds one.
    pub generation: u64,
    /// The generation up to which the back-end has confirmed everything; 0 while there is
    /// no connection.
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
    /// How many rings can be started at most: vuf_device_start() refuses an index at or
    /// above it. From num_rings of the options and queue_num, which may count pairs of
    /// rings beside a control ring: 2 * queue_num + 1. The back-end has at least
    /// queue_num rings. 0 while that is not known.
    pub max_rings: u32,
    /// Size in bytes of the shared memory region with each shmid; 0 where there is
    /// none. As the first back-end has returned them: one with other sizes is refused.
    pub shmem_sizes: [u64; VUF_SHMEM_REGIONS],
}

extensible! { vuf_device_options vuf_quiet vuf_device_event vuf_device_info }
