/*
 * libvhost_user_frontend: the front-end half of vhost-user.
 *
 * Connects to a device back-end over a Unix socket, negotiates, shares guest
 * memory, starts and stops rings, and carries configuration, logs and device
 * state. It never touches the data path.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Each function that sends a request names it in parentheses; it is described
 * in the vhost-user specification, section "Front-end message types", and its
 * structures in "Message Specification".
 *
 * The life of a client:
 *   1. vuf_client_connect(), vuf_client_accept() or vuf_client_from_fd()
 *   2. vuf_client_get_features(); if VUF_F_PROTOCOL_FEATURES is offered,
 *      vuf_client_get_protocol_features() and
 *      vuf_client_set_protocol_features()
 *   3. vuf_client_set_owner(), vuf_client_set_features()
 *   4. vuf_client_set_mem_table()
 *   5. for each ring vuf_client_set_vring_num(), _base(), _addr(), _call(),
 *      _kick(), then vuf_client_set_vring_enable(), and a write to the kick
 *   6. to stop, for each ring vuf_client_set_vring_enable() and
 *      vuf_client_get_vring_base()
 *   7. vuf_client_free()
 *
 * Errors. Functions return 0 for success and a negative code otherwise: -errno
 * (-1 to -4095), or a VUF_E_* code (below -4096). Results are written only on
 * success; descriptor results are set to -1 first. vuf_last_error() has the
 * words, vuf_last_error_info() the fields. Common codes, which every function
 * that sends a request may return besides those that it lists:
 *   -EINVAL              client is NULL
 *   -ETIMEDOUT           the back-end did not answer before the deadline
 *   -ECANCELED           vuf_client_abort() was called
 *   VUF_E_DISCONNECTED   the back-end closed the connection
 *   VUF_E_PROTOCOL       the back-end broke the protocol
 *   VUF_E_POISONED       an earlier failure left the stream uncertain
 *   VUF_E_PANIC          a bug in this library
 * or another negative errno from the socket, as -ENOMEM.
 * After a caller's mistake (-EINVAL, -EBADF, VUF_E_NOT_NEGOTIATED, VUF_E_STATE)
 * nothing has been sent and the client is as before.
 *
 * Descriptors. A parameter is borrowed (for the call only; you close yours) or
 * taken (the library's, on success); a result is given (yours to close,
 * close-on-exec).
 *
 * Threads. Any thread may use any client; several may have a request under way
 * on one client. The library starts no thread, installs no signal handler and
 * prints nothing. After a fork the child may only free clients, exec or exit.
 *
 * Time. Every wait has a deadline; see struct vuf_client_options.
 *
 * This is version 0: the ABI may still change with the soname unchanged.
 */

#ifndef VHOST_USER_FRONTEND_H
#define VHOST_USER_FRONTEND_H

/* Generated from src/ffi by `make header`. Do not edit. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The name under which the shared library is found at run time: dlopen() this.
 */
#define VUF_SONAME "libvhost_user_frontend.so.0"


/**
 * Major number of the version of this header.
 */
#define VUF_VERSION_MAJOR 0

/**
 * Minor number of the version of this header.
 */
#define VUF_VERSION_MINOR 1

/**
 * Patch number of the version of this header.
 */
#define VUF_VERSION_PATCH 0

/**
 * The back-end closed the connection. Only a new connection helps.
 */
#define VUF_E_DISCONNECTED -4097

/**
 * The back-end broke the protocol. The connection is poisoned.
 */
#define VUF_E_PROTOCOL -4098

/**
 * The back-end answered the request with an error value.
 */
#define VUF_E_NACK -4099

/**
 * The request needs a feature that was not offered or not acknowledged.
 */
#define VUF_E_NOT_NEGOTIATED -4100

/**
 * An earlier failure made the stream uncertain. Only a new connection helps.
 */
#define VUF_E_POISONED -4101

/**
 * The call does not fit what was done before on this client.
 */
#define VUF_E_STATE -4102

/**
 * A bug in this library. The connection is poisoned.
 */
#define VUF_E_PANIC -4103

/**
 * Not a failure.
 */
#define VUF_CLASS_NONE 0

/**
 * The connection or the back-end's process: reconnecting may help.
 */
#define VUF_CLASS_TRANSPORT 1

/**
 * The back-end answered, and said no.
 */
#define VUF_CLASS_REFUSED 2

/**
 * The back-end broke the protocol: it has a bug.
 */
#define VUF_CLASS_PROTOCOL 3

/**
 * The caller's arguments, the order of calls, or this machine.
 */
#define VUF_CLASS_LOCAL 4

/**
 * Nothing had been sent: arguments and state were being checked.
 */
#define VUF_PHASE_CHECK 0

/**
 * The connection was being made.
 */
#define VUF_PHASE_CONNECT 1

/**
 * The request was being sent.
 */
#define VUF_PHASE_SEND 2

/**
 * The reply was awaited, received or checked.
 */
#define VUF_PHASE_REPLY 3

/**
 * The request was sent; the GET_FEATURES behind it was awaited.
 */
#define VUF_PHASE_BARRIER 4

/**
 * As a time in milliseconds: what the documentation says.
 */
#define VUF_TIMEOUT_DEFAULT 0

/**
 * As a time in milliseconds: for ever.
 */
#define VUF_TIMEOUT_FOREVER UINT32_MAX

/**
 * A passed deadline poisons the connection (the default).
 */
#define VUF_ON_TIMEOUT_POISON 0

/**
 * A passed deadline leaves the connection usable: the late reply is dropped
 * when it comes, and later requests wait behind it. (With more than 64 requests
 * without an answer it is poisoned all the same.)
 */
#define VUF_ON_TIMEOUT_KEEP 1

/**
 * Most regions in one vuf_client_set_mem_table().
 */
#define VUF_MAX_MEM_REGIONS 8

/**
 * Largest index of a ring.
 */
#define VUF_MAX_RING_INDEX 255

/**
 * Most bytes of configuration space in one request.
 */
#define VUF_MAX_CONFIG_SIZE 256

/**
 * Number of sizes in struct vuf_shmem_config, one for each shmid.
 */
#define VUF_SHMEM_REGIONS 256

/**
 * VHOST_F_LOG_ALL: the back-end logs all its writes to guest memory.
 */
#define VUF_F_LOG_ALL 26

/**
 * VHOST_USER_F_PROTOCOL_FEATURES: the back-end speaks protocol features.
 */
#define VUF_F_PROTOCOL_FEATURES 30

/**
 * Several queues.
 */
#define VUF_PROTOCOL_F_MQ 0

/**
 * The dirty log is shared memory.
 */
#define VUF_PROTOCOL_F_LOG_SHMFD 1

/**
 * SEND_RARP after a migration.
 */
#define VUF_PROTOCOL_F_RARP 2

/**
 * A request can ask to be acknowledged.
 */
#define VUF_PROTOCOL_F_REPLY_ACK 3

/**
 * NET_SET_MTU.
 */
#define VUF_PROTOCOL_F_MTU 4

/**
 * The back-end may send requests of its own.
 */
#define VUF_PROTOCOL_F_BACKEND_REQ 5

/**
 * SET_VRING_ENDIAN.
 */
#define VUF_PROTOCOL_F_CROSS_ENDIAN 6

/**
 * Crypto sessions.
 */
#define VUF_PROTOCOL_F_CRYPTO_SESSION 7

/**
 * Postcopy migration.
 */
#define VUF_PROTOCOL_F_PAGEFAULT 8

/**
 * Configuration space travels over the socket.
 */
#define VUF_PROTOCOL_F_CONFIG 9

/**
 * Back-end requests may carry file descriptors.
 */
#define VUF_PROTOCOL_F_BACKEND_SEND_FD 10

/**
 * The back-end may offer doorbell pages.
 */
#define VUF_PROTOCOL_F_HOST_NOTIFIER 11

/**
 * In-flight I/O is tracked in shared memory.
 */
#define VUF_PROTOCOL_F_INFLIGHT_SHMFD 12

/**
 * RESET_DEVICE.
 */
#define VUF_PROTOCOL_F_RESET_DEVICE 13

/**
 * Notifications as messages.
 */
#define VUF_PROTOCOL_F_INBAND_NOTIFICATIONS 14

/**
 * Memory regions are added and removed one by one.
 */
#define VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS 15

/**
 * SET_STATUS and GET_STATUS.
 */
#define VUF_PROTOCOL_F_STATUS 16

/**
 * Memory regions of Xen.
 */
#define VUF_PROTOCOL_F_XEN_MMAP 17

/**
 * Shared objects.
 */
#define VUF_PROTOCOL_F_SHARED_OBJECT 18

/**
 * The internal state of the device can be saved and loaded.
 */
#define VUF_PROTOCOL_F_DEVICE_STATE 19

/**
 * GET_VRING_BASE may leave requests in flight.
 */
#define VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT 20

/**
 * User addresses are guest addresses.
 */
#define VUF_PROTOCOL_F_GPA_ADDRESSES 21

/**
 * The device has shared memory regions.
 */
#define VUF_PROTOCOL_F_SHMEM 22

/**
 * GET_VRING_BASE_SKIP_DRAIN.
 */
#define VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN 23

/**
 * In struct vuf_vring_addr: log writes to the used ring (VHOST_VRING_F_LOG).
 */
#define VUF_VRING_F_LOG 1

/**
 * In struct vuf_client_options: the features were agreed before.
 */
#define VUF_CLIENT_ADOPT 1

/**
 * In struct vuf_client_options: vuf_client_connect() waits for a socket that is
 * not there yet, or on which nobody listens, as after a back-end was started.
 */
#define VUF_CLIENT_WAIT_FOR_SOCKET 2

/**
 * Device state moves from the back-end to the front-end.
 */
#define VUF_TRANSFER_DIRECTION_SAVE 0

/**
 * Device state moves from the front-end to the back-end.
 */
#define VUF_TRANSFER_DIRECTION_LOAD 1

/**
 * The device is stopped while its state moves; there is no other phase yet.
 */
#define VUF_TRANSFER_PHASE_STOPPED 0

/**
 * A connection to a back-end. Only ever used through a pointer.
 */
struct vuf_client;

/**
 * The last failure of a thread, in fields. Set size to
 * sizeof(struct vuf_error_info) before the call.
 */
struct vuf_error_info {
    /**
     * sizeof(struct vuf_error_info)
     */
    size_t size;
    /**
     * What the function returned; 0 if nothing has failed in this thread.
     */
    int code;
    /**
     * The errno behind the code, positive; 0 where there is none.
     */
    int errno_value;
    /**
     * VUF_CLASS_*. For VUF_E_POISONED the class of the first cause.
     */
    uint32_t error_class;
    /**
     * VUF_PHASE_*
     */
    uint32_t phase;
    /**
     * Number of the request that failed; 0 if none was involved. See
     * vuf_request_name().
     */
    uint32_t request;
    /**
     * Index of the ring that the request names; -1 if none, or above INT32_MAX.
     */
    int32_t ring;
    /**
     * Position in the caller's array of the region at fault; -1 if none.
     */
    int32_t region;
    /**
     * 1 if value is what the back-end sent, 0 if it sent nothing of note.
     */
    uint32_t has_value;
    /**
     * The back-end's raw value: an error, or the field that was wrong.
     */
    uint64_t value;
};

/**
 * What a caller chooses when it connects. Set size to
 * sizeof(struct vuf_client_options) and the rest to zero; zero is always the
 * default. Times are in milliseconds, VUF_TIMEOUT_DEFAULT or
 * VUF_TIMEOUT_FOREVER.
 *
 * A longer struct than this library knows is refused with -E2BIG unless the
 * rest is zero.
 */
struct vuf_client_options {
    /**
     * sizeof(struct vuf_client_options)
     */
    size_t size;
    /**
     * For vuf_client_connect() and vuf_client_accept(). Default 5000.
     */
    uint32_t connect_timeout_ms;
    /**
     * For requests that the back-end answers from its memory. Default 5000.
     */
    uint32_t timeout_ms;
    /**
     * For memory tables and regions, the log, enabling rings, in-flight
     * buffers and device state. Default 60000.
     */
    uint32_t slow_timeout_ms;
    /**
     * For vuf_client_get_vring_base() where the call names no time of its own:
     * the back-end first finishes guest requests. Default 60000.
     */
    uint32_t drain_timeout_ms;
    /**
     * VUF_ON_TIMEOUT_POISON or VUF_ON_TIMEOUT_KEEP.
     */
    uint32_t on_timeout;
    /**
     * How many rings the device has: an index at or above it is refused.
     * Default 256.
     */
    uint32_t max_rings;
    /**
     * VUF_CLIENT_ADOPT, VUF_CLIENT_WAIT_FOR_SOCKET, both or zero.
     */
    uint32_t flags;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * With VUF_CLIENT_ADOPT: the virtio features that were acknowledged on
     * this connection by the process that it was inherited from. SET_OWNER
     * counts as sent.
     */
    uint64_t adopt_features;
    /**
     * With VUF_CLIENT_ADOPT: the protocol features, likewise; a subset of
     * vuf_supported_protocol_features().
     */
    uint64_t adopt_protocol_features;
};

/**
 * A region of guest memory ("Memory region description"). Zero it first: the
 * fields that are not used must be zero.
 */
struct vuf_mem_region {
    /**
     * Guest physical address of the region.
     */
    uint64_t guest_addr;
    /**
     * Size in bytes.
     */
    uint64_t size;
    /**
     * Address of the region in the number space in which ring addresses are
     * given. It need not be a pointer: the guest address will do, and tells
     * the back-end nothing about this process.
     */
    uint64_t user_addr;
    /**
     * Offset of the region in the file, in bytes; a multiple of the page size.
     */
    uint64_t mmap_offset;
    /**
     * The file that holds the region: memfd, tmpfs or hugetlbfs, mapped shared.
     * Borrowed: the back-end gets a duplicate. 0 is refused, so that a zeroed
     * struct does not send standard input away.
     */
    int fd;
    /**
     * Zero (for VUF_PROTOCOL_F_XEN_MMAP, not served yet).
     */
    uint32_t xen_mmap_flags;
    /**
     * Zero (for VUF_PROTOCOL_F_XEN_MMAP, not served yet).
     */
    uint32_t xen_domid;
    /**
     * Zero.
     */
    uint32_t reserved0;
    /**
     * Zero.
     */
    uint64_t reserved[2];
};

/**
 * Where a ring lies ("A vring address description"). Addresses are in the
 * number space of vuf_mem_region.user_addr.
 */
struct vuf_vring_addr {
    /**
     * VUF_VRING_F_LOG or zero.
     */
    uint32_t flags;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Descriptor table (packed: descriptor ring); a multiple of 16.
     */
    uint64_t descriptor;
    /**
     * Available ring (packed: driver event suppression area); a multiple of 2
     * (packed: of 4).
     */
    uint64_t available;
    /**
     * Used ring (packed: device event suppression area); a multiple of 4.
     */
    uint64_t used;
    /**
     * With VUF_VRING_F_LOG: guest physical address at which writes to the used
     * ring are logged.
     */
    uint64_t log;
};

/**
 * The buffer in which a back-end tracks requests in flight ("Inflight
 * description"). Its content is the back-end's own.
 */
struct vuf_inflight {
    /**
     * Size in bytes; 0 where the back-end wants no buffer.
     */
    uint64_t mmap_size;
    /**
     * Offset in the file, in bytes.
     */
    uint64_t mmap_offset;
    /**
     * Number of rings.
     */
    uint16_t num_queues;
    /**
     * Size of the largest ring, in descriptors.
     */
    uint16_t queue_size;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * The device's shared memory regions. Set size to
 * sizeof(struct vuf_shmem_config) before the call.
 */
struct vuf_shmem_config {
    /**
     * sizeof(struct vuf_shmem_config)
     */
    size_t size;
    /**
     * How many of the sizes are not zero.
     */
    uint32_t nregions;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Size in bytes of the region with each shmid; 0 where there is none.
     */
    uint64_t memory_sizes[VUF_SHMEM_REGIONS];
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Tells the version of the library.
 *
 * Compare it with VUF_VERSION_MAJOR, VUF_VERSION_MINOR and VUF_VERSION_PATCH
 * of the header that the program was compiled with.
 *
 * Returns major * 65536 + minor * 256 + patch. Never fails.
 */
uint32_t vuf_version(void);

/**
 * Explains a return code in a few words.
 *
 * rc  what a function of this library returned
 *
 * Returns a constant text, never NULL, for any number.
 */
const char *vuf_strerror(int rc);

/**
 * Tells what a caller may do about a return code.
 *
 * The errno values among the codes are classed so:
 *   TRANSPORT  -ECONNREFUSED, -ENOENT, -EAGAIN, -ENOTCONN, -ETIMEDOUT
 *   LOCAL      all others, -EINVAL, -EBADF and -ECANCELED among them
 * VUF_E_POISONED counts as TRANSPORT here; struct vuf_error_info has the class
 * of its first cause.
 *
 * rc  what a function of this library returned
 *
 * Returns VUF_CLASS_*; VUF_CLASS_NONE for what is not a failure of ours.
 */
uint32_t vuf_error_class(int rc);

/**
 * Tells this thread's last failure in words that a person can act on.
 *
 * It names the request, the ring and the argument where there is one. The text
 * may change between versions; for decisions there are the code and
 * vuf_last_error_info(). A success does not clear it.
 *
 * Returns a text, never NULL (empty if nothing has failed in this thread),
 * valid until the next failure in this thread.
 */
const char *vuf_last_error(void);

/**
 * Tells this thread's last failure in fields.
 *
 * info  set info->size before the call; the rest is filled in
 *
 * Returns 0, otherwise (which is then itself the last failure)
 *   -EINVAL  info is NULL, or its size is not set
 *   -E2BIG   its size is above 65536
 */
int vuf_last_error_info(struct vuf_error_info *info);

/**
 * Names a request of the front-end.
 *
 * request  its number, as in struct vuf_error_info
 *
 * Returns the specification's name without VHOST_USER_, as "SET_MEM_TABLE", or
 * NULL if this library never sends such a request.
 */
const char *vuf_request_name(uint32_t request);

/**
 * Names a protocol feature.
 *
 * bit  its number, as VUF_PROTOCOL_F_*
 *
 * Returns the specification's name without VHOST_USER_PROTOCOL_F_, as
 * "REPLY_ACK", or NULL if the specification has none for this bit.
 */
const char *vuf_protocol_feature_name(uint32_t bit);

/**
 * Tells which protocol features this library serves.
 *
 * Acknowledge with vuf_client_set_protocol_features() only bits that the
 * back-end offers, that you want, and that are set here.
 *
 * Returns a mask: bit n is set for VUF_PROTOCOL_F_* n. Never fails.
 */
uint64_t vuf_supported_protocol_features(void);

/**
 * Makes a client from a connected socket.
 *
 * fd       a connected Unix stream socket; taken on success: the client closes
 *          it, and sets its close-on-exec flag and its receive timeout (which
 *          another process that holds the same socket must leave alone)
 * options  NULL for the defaults; read during the call
 * out      gets the client; NULL on failure
 *
 * Nothing is sent. Returns 0, otherwise
 *   -EINVAL    an argument is NULL, an option is not valid, or fd is a socket
 *              of another kind or a listening one
 *   -EBADF     fd is not open
 *   -ENOTSOCK  fd is not a socket
 *   -ENOTCONN  fd is not connected
 *   -E2BIG     options has fields that this library does not know
 */
int vuf_client_from_fd(int fd,
                       const struct vuf_client_options *options,
                       struct vuf_client **out);

/**
 * Connects to a back-end that listens on a socket.
 *
 * Bounded by options->connect_timeout_ms, also where the listener's backlog is
 * full. A connection that is made but never accepted shows in the first
 * request.
 *
 * path     the socket's path: at most 107 bytes, not necessarily UTF-8
 * options  NULL for the defaults; read during the call
 * out      gets the client; NULL on failure
 *
 * Returns 0, otherwise
 *   -EINVAL        an argument is NULL or empty, or an option is not valid
 *   -ENAMETOOLONG  path does not fit into a socket address
 *   -ENOENT        there is no such socket
 *   -ECONNREFUSED  nobody listens on it
 *   -EACCES        access is denied
 *   -ETIMEDOUT     the backlog stayed full until the deadline; or, with
 *                  VUF_CLIENT_WAIT_FOR_SOCKET, nobody listened until then
 *   -E2BIG         options has fields that this library does not know
 * or another negative errno from socket() or connect().
 */
int vuf_client_connect(const char *path,
                       const struct vuf_client_options *options,
                       struct vuf_client **out);

/**
 * Waits for a back-end to connect, and accepts it.
 *
 * Bounded by options->connect_timeout_ms.
 *
 * listen_fd  a listening Unix stream socket; borrowed. Its receive timeout is
 *            set for a moment and restored.
 * options    NULL for the defaults; read during the call
 * out        gets the client; NULL on failure
 *
 * Returns 0, otherwise
 *   -EINVAL     an argument is NULL, an option is not valid, or listen_fd is
 *               not a listening Unix stream socket
 *   -EBADF      listen_fd is not open
 *   -ENOTSOCK   listen_fd is not a socket
 *   -ETIMEDOUT  nobody connected until the deadline
 *   -E2BIG      options has fields that this library does not know
 * or another negative errno from accept().
 */
int vuf_client_accept(int listen_fd,
                      const struct vuf_client_options *options,
                      struct vuf_client **out);

/**
 * Frees a client and closes its connection, without any traffic.
 *
 * Calls that other threads have under way return -ECANCELED; this one waits
 * until they have. No call on the client may begin once this one has. In a
 * forked child it closes the child's copy and leaves the parent's connection
 * alive.
 *
 * client  may be NULL, which does nothing
 */
void vuf_client_free(struct vuf_client *client);

/**
 * Ends the connection. Calls under way return -ECANCELED at once, as do later
 * ones, unless they are refused before anything would be sent. The client stays
 * and has to be freed.
 *
 * May be called from any thread, and from a signal handler.
 *
 * Returns 0, or -EINVAL if client is NULL.
 */
int vuf_client_abort(struct vuf_client *client);

/**
 * Tells the file descriptor of the connection, for polling only.
 *
 * Readable while no call is under way means that the back-end has hung up, or
 * sent what nobody asked for. Never read from it, write to it or close it.
 * Takes no lock; may be called from any thread.
 *
 * Returns the descriptor (borrowed, valid until the client is freed), or
 * -EINVAL if client is NULL.
 */
int vuf_client_get_fd(const struct vuf_client *client);

/**
 * Asks which virtio features the back-end offers (GET_FEATURES).
 *
 * The first request on each connection. Bit VUF_F_PROTOCOL_FEATURES says
 * whether the back-end speaks protocol features; it belongs to the connection
 * and is not for the guest.
 *
 * features  gets the mask
 *
 * Returns 0 or a common code.
 */
int vuf_client_get_features(struct vuf_client *client, uint64_t *features);

/**
 * Acknowledges virtio features (SET_FEATURES).
 *
 * After vuf_client_get_features(). Include VUF_F_PROTOCOL_FEATURES if it was
 * offered, or all rings become enabled at once. VUF_F_LOG_ALL may be switched
 * while rings run, the others not. libvhost-user refuses a mask without
 * VIRTIO_F_VERSION_1 by hanging up.
 *
 * features  a subset of what the back-end offers
 *
 * Returns 0, otherwise
 *   -EINVAL      features has bits that were not offered
 *   VUF_E_STATE  vuf_client_get_features() has not been called
 *   VUF_E_NACK   the back-end refused
 * or a common code.
 */
int vuf_client_set_features(struct vuf_client *client, uint64_t features);

/**
 * Asks which protocol features the back-end offers (GET_PROTOCOL_FEATURES).
 *
 * Before vuf_client_set_features() is fine, and usual.
 *
 * features  gets the mask: bit n is VUF_PROTOCOL_F_* n
 *
 * Returns 0, otherwise
 *   VUF_E_NOT_NEGOTIATED  VUF_F_PROTOCOL_FEATURES was not offered
 * or a common code.
 */
int vuf_client_get_protocol_features(struct vuf_client *client,
                                     uint64_t *features);

/**
 * Acknowledges protocol features (SET_PROTOCOL_FEATURES).
 *
 * After vuf_client_get_protocol_features(), and before anything that needs one
 * of them. With VUF_PROTOCOL_F_REPLY_ACK every later request is acknowledged;
 * without it those whose completion matters are followed by GET_FEATURES.
 *
 * features  a subset of what the back-end offers and of
 *           vuf_supported_protocol_features()
 *
 * Returns 0 once it is sent, otherwise
 *   -EINVAL               features has bits that were not offered, that the
 *                         library does not serve, or without what they need
 *   VUF_E_STATE           vuf_client_get_protocol_features() was not called
 *   VUF_E_NOT_NEGOTIATED  VUF_F_PROTOCOL_FEATURES was not offered
 * or a common code.
 */
int vuf_client_set_protocol_features(struct vuf_client *client,
                                     uint64_t features);

/**
 * Claims the session (SET_OWNER).
 *
 * Once per connection, before memory and rings.
 *
 * Returns 0, otherwise
 *   VUF_E_STATE  it has been sent already; rust-vmm back-ends would hang up
 *   VUF_E_NACK   the back-end refused
 * or a common code.
 */
int vuf_client_set_owner(struct vuf_client *client);

/**
 * Gives the session up (RESET_OWNER).
 *
 * Deprecated by the specification, and back-ends differ in how much they
 * forget. Afterwards the virtio features count as not acknowledged.
 *
 * Returns 0, otherwise
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_reset_owner(struct vuf_client *client);

/**
 * Asks how many queues the back-end supports (GET_QUEUE_NUM).
 *
 * Needs VUF_PROTOCOL_F_MQ. Most back-ends count rings, some (DPDK) pairs.
 *
 * num  gets the number
 *
 * Returns 0, otherwise
 *   VUF_E_NOT_NEGOTIATED  VUF_PROTOCOL_F_MQ was not acknowledged
 * or a common code.
 */
int vuf_client_get_queue_num(struct vuf_client *client, uint64_t *num);

/**
 * Asks how many memory regions the back-end can hold (GET_MAX_MEM_SLOTS).
 *
 * Needs VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS.
 *
 * slots  gets the number
 *
 * Returns 0, otherwise
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 * or a common code.
 */
int vuf_client_get_max_mem_slots(struct vuf_client *client, uint64_t *slots);

/**
 * Tells the back-end which memory it may reach (SET_MEM_TABLE).
 *
 * Replaces any table sent before. After vuf_client_set_owner() and before the
 * first ring is started. With VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS prefer
 * vuf_client_add_mem_region() for changes: it moves one region, not all.
 *
 * regions  array of n regions; read during the call, not kept. Each fd is
 *          borrowed: the back-end gets a duplicate. With
 *          VUF_PROTOCOL_F_GPA_ADDRESSES each user_addr is the guest_addr.
 * n        1 to VUF_MAX_MEM_REGIONS
 *
 * Returns 0 once the back-end has taken over the table, otherwise
 *   -EINVAL     regions is NULL, n is out of range, or a region is not valid:
 *               size 0, an offset that is not page-aligned, an end (of guest
 *               or user addresses or in the file) beyond 64 bits, two that
 *               overlap, fd 0, a field that must be zero, or user_addr is not
 *               guest_addr with VUF_PROTOCOL_F_GPA_ADDRESSES
 *   -EBADF      a region's fd is negative or not open
 *   VUF_E_NACK  the back-end refused; the old table may be gone
 * or a common code.
 */
int vuf_client_set_mem_table(struct vuf_client *client,
                             const struct vuf_mem_region *regions,
                             size_t n);

/**
 * Shares one more region of guest memory (ADD_MEM_REG).
 *
 * Needs VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS. May be called while rings run.
 *
 * region  the region; read during the call. Its fd is borrowed: the back-end
 *         gets a duplicate.
 *
 * Returns 0 once the back-end has taken it over, otherwise
 *   -EINVAL               region is NULL or not valid, as for
 *                         vuf_client_set_mem_table()
 *   -EBADF                the region's fd is negative or not open
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused, as when it has no slot left
 * or a common code.
 */
int vuf_client_add_mem_region(struct vuf_client *client,
                              const struct vuf_mem_region *region);

/**
 * Takes a region of guest memory away (REM_MEM_REG).
 *
 * Needs VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS. Stop the rings that lie in it
 * first, and unmap it only after this has returned.
 *
 * region  as it was added: guest_addr, size and user_addr must be the same;
 *         its fd is not used
 *
 * Returns 0 once the back-end has let go of it, otherwise
 *   -EINVAL               region is NULL or not valid, as for
 *                         vuf_client_set_mem_table()
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused, as when it knows no such region
 * or a common code.
 */
int vuf_client_remove_mem_region(struct vuf_client *client,
                                 const struct vuf_mem_region *region);

/**
 * Tells the back-end where to log the pages that it writes (SET_LOG_BASE).
 *
 * Needs VUF_PROTOCOL_F_LOG_SHMFD. Before VUF_F_LOG_ALL is acknowledged, and
 * again to switch to another log. Bit n of the log stands for the 4096 bytes
 * at guest address n * 4096; the back-end sets bits atomically. A log that is
 * too small makes back-ends abort or drop pages: it must reach to the end of
 * guest memory.
 *
 * mmap_size    size of the log in bytes, a multiple of 8
 * mmap_offset  must be 0: back-ends add it twice and write beyond the log
 * fd           the shared memory of the log; borrowed: the back-end gets a
 *              duplicate
 *
 * Returns 0 once the back-end has answered, otherwise
 *   -EINVAL               mmap_size or mmap_offset is not valid
 *   -EBADF                fd is negative or not open
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 * or a common code. Back-ends have no way to refuse: the content of their
 * answer means nothing.
 */
int vuf_client_set_log_base(struct vuf_client *client,
                            uint64_t mmap_size,
                            uint64_t mmap_offset,
                            int fd);

/**
 * Gives the back-end an eventfd to write when it has logged (SET_LOG_FD).
 *
 * Optional, and rarely served: rust-vmm back-ends hang up on it.
 *
 * fd  the eventfd; borrowed: the back-end gets a duplicate
 *
 * Returns 0, otherwise
 *   -EBADF      fd is negative or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_log_fd(struct vuf_client *client, int fd);

/**
 * Tells the size of a ring (SET_VRING_NUM).
 *
 * While the ring is stopped.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * num    its size in descriptors: 1 to 32768, for a split ring a power of two
 *
 * Returns 0, otherwise
 *   -EINVAL     index or num is out of range
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_num(struct vuf_client *client,
                             uint32_t index,
                             uint32_t num);

/**
 * Tells where a ring lies (SET_VRING_ADDR).
 *
 * After the memory that holds it was shared. Initialise the ring's memory
 * before, because some back-ends read the used index at once, and send
 * vuf_client_set_vring_base() before as well. May be sent again while the ring
 * runs, to switch VUF_VRING_F_LOG.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * addr   the addresses; read during the call
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range, addr is NULL, an address is not aligned,
 *               flags has unknown bits, or reserved is not zero
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_addr(struct vuf_client *client,
                              uint32_t index,
                              const struct vuf_vring_addr *addr);

/**
 * Tells where a ring goes on (SET_VRING_BASE).
 *
 * While the ring is stopped, before vuf_client_set_vring_kick().
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * base   split ring: the index of the next available entry, 16 bits. Packed
 *        ring: bits 0-14 available index, bit 15 its wrap counter, bits 16-30
 *        used index, bit 31 its wrap counter; 0x80008000 for a fresh one.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range, or base has more than 16 bits although
 *               VIRTIO_F_RING_PACKED was not acknowledged
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_base(struct vuf_client *client,
                              uint32_t index,
                              uint32_t base);

/**
 * Stops a ring and tells where it stood (GET_VRING_BASE).
 *
 * The back-end shall first finish the requests that it has taken, so the call
 * may take as long as they do. (With VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT it
 * may instead leave them in the in-flight buffer.) Beware: qemu-storage-daemon
 * 10.0 answers at once and fails when they complete; where you can, wait for
 * what is in flight first. The back-end also drops the kick and call
 * descriptors of the ring: send them again before a restart.
 *
 * index       the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * timeout_ms  how long to wait; VUF_TIMEOUT_DEFAULT is options.drain_timeout_ms
 * base        gets what vuf_client_set_vring_base() takes. Where a back-end
 *             returns only the available half of a packed ring's base, the
 *             used half, which is equal after a drain, is filled in (but not
 *             with VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT).
 *
 * Returns 0, otherwise
 *   -EINVAL         index is out of range, or base is NULL
 *   VUF_E_PROTOCOL  the reply is for another ring or out of range
 * or a common code.
 */
int vuf_client_get_vring_base(struct vuf_client *client,
                              uint32_t index,
                              uint32_t timeout_ms,
                              uint32_t *base);

/**
 * Tells what the driver writes to notify the device, and starts the ring
 * (SET_VRING_KICK).
 *
 * The last message about a ring before vuf_client_set_vring_enable(). Write the
 * descriptor once afterwards, for entries that were made available before.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * fd     an eventfd; borrowed: the back-end gets a duplicate. -1 for none: the
 *        back-end shall poll. Beware: rust-vmm back-ends acknowledge -1 and
 *        never start the ring, and libvhost-user cannot resume in-flight
 *        requests without a descriptor. Always pass a real one if you can.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range
 *   -EBADF      fd is below -1 or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_kick(struct vuf_client *client,
                              uint32_t index,
                              int fd);

/**
 * Tells what the device writes to notify the driver (SET_VRING_CALL).
 *
 * At any time; a swap while the ring runs is complete when this returns.
 * Expect a call without a cause: some back-ends write the descriptor at once.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * fd     an eventfd; borrowed: the back-end gets a duplicate. -1 for none: the
 *        driver polls.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range
 *   -EBADF      fd is below -1 or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_call(struct vuf_client *client,
                              uint32_t index,
                              int fd);

/**
 * Tells what the device writes when a ring is broken (SET_VRING_ERR).
 *
 * At any time.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * fd     an eventfd; borrowed: the back-end gets a duplicate. -1 for none.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range
 *   -EBADF      fd is below -1 or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_err(struct vuf_client *client, uint32_t index, int fd);

/**
 * Lets the back-end process a ring, or not (SET_VRING_ENABLE).
 *
 * Needs VUF_F_PROTOCOL_FEATURES acknowledged with vuf_client_set_features();
 * without it rings are enabled from the start. Let the guest run only after
 * this has returned.
 *
 * index   the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * enable  whether to process it
 *
 * Returns 0 once the back-end has done so, otherwise
 *   -EINVAL               index is out of range
 *   VUF_E_NOT_NEGOTIATED  VUF_F_PROTOCOL_FEATURES was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_enable(struct vuf_client *client,
                                uint32_t index,
                                bool enable);

/**
 * Reads the device's configuration space (GET_CONFIG).
 *
 * Needs VUF_PROTOCOL_F_CONFIG. Ask for the exact size of the device's space, or
 * less: back-ends refuse more, and some return bytes from beyond it.
 *
 * offset  where to begin, in bytes; use 0 for portability, because
 *         libvhost-user and DPDK ignore it. offset + len is at most 4096.
 * flags   0; up to 3 is passed on
 * buf     gets len bytes; on failure its content is unchanged
 * len     1 to VUF_MAX_CONFIG_SIZE
 *
 * Returns 0, otherwise
 *   -EINVAL               buf is NULL, or a number is out of range
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 *   VUF_E_PROTOCOL        the answer has another number of bytes
 * or a common code.
 */
int vuf_client_get_config(struct vuf_client *client,
                          uint32_t offset,
                          uint32_t flags,
                          void *buf,
                          size_t len);

/**
 * Writes to the device's configuration space (SET_CONFIG).
 *
 * Needs VUF_PROTOCOL_F_CONFIG.
 *
 * offset  where to begin, in bytes; offset + len is at most 4096
 * flags   0 for a write by the guest, 1 for one that restores state after a
 *         migration (rust-vmm back-ends: 1 and 2)
 * buf     the bytes; read during the call
 * len     1 to VUF_MAX_CONFIG_SIZE
 *
 * Returns 0, otherwise
 *   -EINVAL               buf is NULL, or a number is out of range
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_set_config(struct vuf_client *client,
                          uint32_t offset,
                          uint32_t flags,
                          const void *buf,
                          size_t len);

/**
 * Hands the back-end its end of a channel for requests of its own
 * (SET_BACKEND_REQ_FD).
 *
 * Needs VUF_PROTOCOL_F_BACKEND_REQ. The channel is one end of a Unix stream
 * socket pair. Close your copy of fd afterwards, and serve the other end from
 * another thread: a back-end may ask there before it answers here.
 *
 * fd  borrowed: the back-end gets a duplicate
 *
 * Returns 0, otherwise
 *   -EBADF                fd is negative or not open
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_set_backend_req_fd(struct vuf_client *client, int fd);

/**
 * Has the back-end make a buffer to track requests in flight in
 * (GET_INFLIGHT_FD).
 *
 * Needs VUF_PROTOCOL_F_INFLIGHT_SHMFD. After vuf_client_set_features(), which
 * decides the layout of the buffer, and before any ring is started. Keep the
 * buffer over the back-end's lives, and hand it to each with
 * vuf_client_set_inflight_fd().
 *
 * num_queues  number of rings, not 0
 * queue_size  size of the largest ring in descriptors, not 0
 * inflight    gets the description; its mmap_size is 0 where the back-end wants
 *             no buffer
 * fd          gets the buffer's file: given (yours to close, close-on-exec);
 *             -1 on failure, or where there is no buffer
 *
 * Returns 0, otherwise
 *   -EINVAL               an argument is NULL or 0
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_PROTOCOL        the description and the descriptor do not match
 * or a common code.
 */
int vuf_client_get_inflight_fd(struct vuf_client *client,
                               uint16_t num_queues,
                               uint16_t queue_size,
                               struct vuf_inflight *inflight,
                               int *fd);

/**
 * Hands the back-end the buffer to track requests in flight in
 * (SET_INFLIGHT_FD).
 *
 * Needs VUF_PROTOCOL_F_INFLIGHT_SHMFD. After vuf_client_set_vring_num() of the
 * rings (older DPDK and SPDK crash otherwise) and before the first
 * vuf_client_set_vring_kick().
 *
 * inflight  as vuf_client_get_inflight_fd() described it; read during the call
 * fd        the buffer's file; borrowed: the back-end gets a duplicate
 *
 * Returns 0, otherwise
 *   -EINVAL               inflight is NULL or not valid
 *   -EBADF                fd is negative or not open
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_set_inflight_fd(struct vuf_client *client,
                               const struct vuf_inflight *inflight,
                               int fd);

/**
 * Begins to save or load the internal state of a device
 * (SET_DEVICE_STATE_FD).
 *
 * Needs VUF_PROTOCOL_F_DEVICE_STATE. While all rings are stopped. To save: pass
 * the write end of a pipe, close your copy, read the other end to its end. To
 * load: pass the read end, close your copy, write all to the other end and
 * close it. In both cases vuf_client_check_device_state() then tells whether it
 * worked.
 *
 * direction  VUF_TRANSFER_DIRECTION_SAVE or VUF_TRANSFER_DIRECTION_LOAD
 * phase      VUF_TRANSFER_PHASE_STOPPED
 * fd         the back-end's end of the channel; borrowed: it gets a duplicate
 * reply_fd   gets a channel that the back-end wants to use instead: given
 *            (yours to close, close-on-exec), and your own is then unused;
 *            -1 on failure, and where yours is used
 *
 * Returns 0, otherwise
 *   -EINVAL               direction or phase is unknown, or reply_fd is NULL
 *   -EBADF                fd is negative or not open
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 *   VUF_E_PROTOCOL        the answer and the descriptor do not match
 * or a common code.
 */
int vuf_client_set_device_state_fd(struct vuf_client *client,
                                   uint32_t direction,
                                   uint32_t phase,
                                   int fd,
                                   int *reply_fd);

/**
 * Asks whether the state of a device went over whole (CHECK_DEVICE_STATE).
 *
 * Needs VUF_PROTOCOL_F_DEVICE_STATE. After the end of the channel was read
 * (save), or after it was closed (load).
 *
 * Returns 0, otherwise
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            it did not; the state must not be used
 * or a common code.
 */
int vuf_client_check_device_state(struct vuf_client *client);

/**
 * Asks which shared memory regions the device has (GET_SHMEM_CONFIG).
 *
 * Needs VUF_PROTOCOL_F_SHMEM. They do not change while the connection lives.
 *
 * config  set config->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL               config is NULL, or its size is not set
 *   -E2BIG                its size is above 65536
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_PROTOCOL        the answer names more regions than there can be
 * or a common code.
 */
int vuf_client_get_shmem_config(struct vuf_client *client,
                                struct vuf_shmem_config *config);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VHOST_USER_FRONTEND_H */
