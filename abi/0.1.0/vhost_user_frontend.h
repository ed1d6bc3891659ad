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
 * A device does all this by itself, over a client that it makes anew after each
 * loss of the back-end. Its functions say what is wanted, succeed without a
 * back-end, too, and send nothing: vuf_device_process() makes it so, from an event
 * loop, and tells what happens. The life of a device:
 *   1. vuf_device_open(), vuf_device_listen() or vuf_device_open_fd(); from here
 *      on vuf_device_process() whenever vuf_device_get_fd() is readable
 *   2. VUF_DEVICE_EVENT_CONNECTED: vuf_device_get_info() has what is offered
 *   3. vuf_device_set_memory()
 *   4. when the guest's driver is ready, vuf_device_set_features() and
 *      vuf_device_start(); VUF_DEVICE_EVENT_APPLIED, or vuf_device_wait()
 *   5. VUF_DEVICE_EVENT_LOST, and VUF_DEVICE_EVENT_RECOVERED with the next
 *      back-end; or, where nobody can tell what was finished,
 *      VUF_DEVICE_EVENT_NEEDS_RESET: vuf_device_reset(), and on with 4
 *   6. to pause, vuf_device_stop(); vuf_device_start() with VUF_RING_BASE_RESUME
 *   7. vuf_device_free()
 *
 * Where the back-end is a program that is installed, vuf_backend_programs_find()
 * finds it, and vuf_backend_process_start() starts it with a connection.
 *
 * Errors. Functions return 0 for success and a negative code otherwise: -errno
 * (-1 to -4095), or a VUF_E_* code (below -4096). Results are written only on
 * success; descriptor results are set to -1 first. vuf_last_error() has the
 * words, vuf_last_error_info() the fields. Common codes, which every function
 * that sends a request may return besides those that it lists:
 *   -EINVAL              client is NULL (of a device: device)
 *   -ETIMEDOUT           the back-end did not answer before the deadline
 *   -ECANCELED           vuf_client_abort() was called
 *   VUF_E_DISCONNECTED   the back-end closed the connection
 *   VUF_E_PROTOCOL       the back-end broke the protocol (with surplus bytes
 *                        behind a good answer, the call after that one says so)
 *   VUF_E_POISONED       an earlier failure left the stream uncertain
 *   VUF_E_PANIC          a bug in this library
 * or another negative errno from the socket, as -ENOMEM.
 * After a caller's mistake (-EINVAL, -EBADF, VUF_E_NOT_NEGOTIATED, VUF_E_STATE)
 * nothing has been sent and the client is as before.
 *
 * Descriptors. A parameter is borrowed (for the call only; you close yours), kept
 * (the same, but a duplicate stays until the moment that is named) or taken (the
 * library's, on success); a result is given (yours to close, close-on-exec). None
 * that the library gives or keeps has the number 0, 1 or 2.
 *
 * Memory. What opens a client or a device, states or adds memory, or starts rings
 * returns -ENOMEM where memory runs out, and has changed nothing then. Other calls
 * allocate little; where not even that is left, or another thread takes
 * it at that moment, the process is ended (SIGABRT).
 *
 * Threads. Any thread may use any client or device; several may have a request
 * under way on one client. The library installs no signal handler and prints
 * nothing. It starts a thread only to close a descriptor that a back-end has sent
 * and that the caller does not get, as closing it may take any time, and to write a
 * kick or call where an asynchronous request (io_submit) is refused.
 * pthread_cancel() waits: no function is a cancellation point, and functions of
 * the caller's that are called from one run with cancellation disabled. The type
 * has to be PTHREAD_CANCEL_DEFERRED. After a fork the child may only free clients
 * and devices, exec or exit; other calls on them return VUF_E_STATE there.
 *
 * Time. Every wait has a deadline; see struct vuf_client_options.
 *
 * The ABI only grows while the soname stays; docs/abi.md says what that means.
 */

#ifndef VHOST_USER_FRONTEND_H
#define VHOST_USER_FRONTEND_H

/* Generated from src/ffi by `make header`. Do not edit. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if UINTPTR_MAX != UINT64_MAX || \
    (defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
#error "vhost_user_frontend needs a 64-bit little-endian target"
#endif

/**
 * The name under which the shared library is found at run time: dlopen() this.
 */
#define VUF_SONAME "libvhost_user_frontend.so.0"

/**
 * Whether a table that vuf_get_api() gave has a function, as in
 * VUF_API_HAS(vuf, vuf_version). One that the header of 0.1 has is always there.
 */
#define VUF_API_HAS(api, function) ((api)->size > offsetof(struct vuf_api, function))


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
 * Bytes of a cipher's key in struct vuf_crypto_sym.
 */
#define VUF_MAX_CIPHER_KEY 64

/**
 * Bytes of a key for authentication in struct vuf_crypto_sym.
 */
#define VUF_MAX_AUTH_KEY 512

/**
 * Bytes of a key in struct vuf_crypto_asym.
 */
#define VUF_MAX_ASYM_KEY 1024

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
 * In the flags of struct vuf_shmem_area: the mapping may be written.
 */
#define VUF_SHMEM_WRITABLE 1

/**
 * For vuf_client_set_vring_endian().
 */
#define VUF_VRING_LITTLE_ENDIAN 0

/**
 * For vuf_client_set_vring_endian().
 */
#define VUF_VRING_BIG_ENDIAN 1

/**
 * In struct vuf_mem_region: mapped by a foreign domain.
 */
#define VUF_XEN_MMAP_FOREIGN 1

/**
 * In struct vuf_mem_region: mapped by grant references.
 */
#define VUF_XEN_MMAP_GRANT 2

/**
 * In struct vuf_mem_region: not mapped in advance.
 */
#define VUF_XEN_MMAP_NO_ADVANCE_MAP 256

/**
 * In struct vuf_iotlb: a translation that the back-end may use.
 */
#define VUF_IOTLB_UPDATE 2

/**
 * In struct vuf_iotlb: a range whose translations it may no longer use.
 */
#define VUF_IOTLB_INVALIDATE 3

/**
 * In struct vuf_iotlb: the back-end may read.
 */
#define VUF_ACCESS_RO 1

/**
 * In struct vuf_iotlb: the back-end may write.
 */
#define VUF_ACCESS_WO 2

/**
 * In struct vuf_iotlb: the back-end may read and write.
 */
#define VUF_ACCESS_RW 3

/**
 * The most that spin_us in struct vuf_client_options may be.
 */
#define VUF_MAX_SPIN_US 10000

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
 * For vuf_memfd_create(): the size of the file stays (F_SEAL_SHRINK, F_SEAL_GROW),
 * and no other seal is added later (F_SEAL_SEAL).
 */
#define VUF_MEMFD_SEAL 1

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
 * Over the connection (struct vuf_trace_record).
 */
#define VUF_TRACE_MAIN 0

/**
 * Over the back-end's own channel.
 */
#define VUF_TRACE_CHANNEL 1

/**
 * From the front-end to the back-end (struct vuf_trace_record).
 */
#define VUF_TRACE_SENT 0

/**
 * From the back-end to the front-end.
 */
#define VUF_TRACE_RECEIVED 1

/**
 * GET_FEATURES.
 */
#define VUF_REQUEST_GET_FEATURES 1

/**
 * SET_FEATURES.
 */
#define VUF_REQUEST_SET_FEATURES 2

/**
 * SET_OWNER.
 */
#define VUF_REQUEST_SET_OWNER 3

/**
 * RESET_OWNER.
 */
#define VUF_REQUEST_RESET_OWNER 4

/**
 * SET_MEM_TABLE.
 */
#define VUF_REQUEST_SET_MEM_TABLE 5

/**
 * SET_LOG_BASE.
 */
#define VUF_REQUEST_SET_LOG_BASE 6

/**
 * SET_LOG_FD.
 */
#define VUF_REQUEST_SET_LOG_FD 7

/**
 * SET_VRING_NUM.
 */
#define VUF_REQUEST_SET_VRING_NUM 8

/**
 * SET_VRING_ADDR.
 */
#define VUF_REQUEST_SET_VRING_ADDR 9

/**
 * SET_VRING_BASE.
 */
#define VUF_REQUEST_SET_VRING_BASE 10

/**
 * GET_VRING_BASE.
 */
#define VUF_REQUEST_GET_VRING_BASE 11

/**
 * SET_VRING_KICK.
 */
#define VUF_REQUEST_SET_VRING_KICK 12

/**
 * SET_VRING_CALL.
 */
#define VUF_REQUEST_SET_VRING_CALL 13

/**
 * SET_VRING_ERR.
 */
#define VUF_REQUEST_SET_VRING_ERR 14

/**
 * GET_PROTOCOL_FEATURES.
 */
#define VUF_REQUEST_GET_PROTOCOL_FEATURES 15

/**
 * SET_PROTOCOL_FEATURES.
 */
#define VUF_REQUEST_SET_PROTOCOL_FEATURES 16

/**
 * GET_QUEUE_NUM.
 */
#define VUF_REQUEST_GET_QUEUE_NUM 17

/**
 * SET_VRING_ENABLE.
 */
#define VUF_REQUEST_SET_VRING_ENABLE 18

/**
 * SEND_RARP.
 */
#define VUF_REQUEST_SEND_RARP 19

/**
 * NET_SET_MTU.
 */
#define VUF_REQUEST_NET_SET_MTU 20

/**
 * SET_BACKEND_REQ_FD.
 */
#define VUF_REQUEST_SET_BACKEND_REQ_FD 21

/**
 * IOTLB_MSG.
 */
#define VUF_REQUEST_IOTLB_MSG 22

/**
 * SET_VRING_ENDIAN.
 */
#define VUF_REQUEST_SET_VRING_ENDIAN 23

/**
 * GET_CONFIG.
 */
#define VUF_REQUEST_GET_CONFIG 24

/**
 * SET_CONFIG.
 */
#define VUF_REQUEST_SET_CONFIG 25

/**
 * CREATE_CRYPTO_SESSION.
 */
#define VUF_REQUEST_CREATE_CRYPTO_SESSION 26

/**
 * CLOSE_CRYPTO_SESSION.
 */
#define VUF_REQUEST_CLOSE_CRYPTO_SESSION 27

/**
 * POSTCOPY_ADVISE.
 */
#define VUF_REQUEST_POSTCOPY_ADVISE 28

/**
 * POSTCOPY_LISTEN.
 */
#define VUF_REQUEST_POSTCOPY_LISTEN 29

/**
 * POSTCOPY_END.
 */
#define VUF_REQUEST_POSTCOPY_END 30

/**
 * GET_INFLIGHT_FD.
 */
#define VUF_REQUEST_GET_INFLIGHT_FD 31

/**
 * SET_INFLIGHT_FD.
 */
#define VUF_REQUEST_SET_INFLIGHT_FD 32

/**
 * GPU_SET_SOCKET.
 */
#define VUF_REQUEST_GPU_SET_SOCKET 33

/**
 * RESET_DEVICE.
 */
#define VUF_REQUEST_RESET_DEVICE 34

/**
 * VRING_KICK.
 */
#define VUF_REQUEST_VRING_KICK 35

/**
 * GET_MAX_MEM_SLOTS.
 */
#define VUF_REQUEST_GET_MAX_MEM_SLOTS 36

/**
 * ADD_MEM_REG.
 */
#define VUF_REQUEST_ADD_MEM_REG 37

/**
 * REM_MEM_REG.
 */
#define VUF_REQUEST_REM_MEM_REG 38

/**
 * SET_STATUS.
 */
#define VUF_REQUEST_SET_STATUS 39

/**
 * GET_STATUS.
 */
#define VUF_REQUEST_GET_STATUS 40

/**
 * GET_SHARED_OBJECT.
 */
#define VUF_REQUEST_GET_SHARED_OBJECT 41

/**
 * SET_DEVICE_STATE_FD.
 */
#define VUF_REQUEST_SET_DEVICE_STATE_FD 42

/**
 * CHECK_DEVICE_STATE.
 */
#define VUF_REQUEST_CHECK_DEVICE_STATE 43

/**
 * GET_SHMEM_CONFIG.
 */
#define VUF_REQUEST_GET_SHMEM_CONFIG 44

/**
 * GET_VRING_BASE_SKIP_DRAIN.
 */
#define VUF_REQUEST_GET_VRING_BASE_SKIP_DRAIN 45

/**
 * Most requests in one list of vuf_client_submit().
 */
#define VUF_MAX_OPS 65536

/**
 * Nothing has happened (struct vuf_device_event).
 */
#define VUF_DEVICE_EVENT_NONE 0

/**
 * The handshake went through: vuf_device_get_info() has what is offered.
 */
#define VUF_DEVICE_EVENT_CONNECTED 1

/**
 * The connection is lost; the error says why, recovery by which policy rings go on.
 * peer_pid is the process that was at the other end.
 */
#define VUF_DEVICE_EVENT_LOST 2

/**
 * An attempt to connect has failed, count in a row; the next comes after delay_ms, or
 * as soon as the socket appears. At most one waits to be taken.
 */
#define VUF_DEVICE_EVENT_RETRYING 3

/**
 * The back-end has not answered for stall_ms; it is waited for.
 */
#define VUF_DEVICE_EVENT_STALLED 4

/**
 * Rings that ran before a loss run again, by the policy in recovery.
 */
#define VUF_DEVICE_EVENT_RECOVERED 5

/**
 * The back-end has confirmed all that was wanted up to generation. Does not come while a
 * part of it is refused (VUF_DEVICE_EVENT_REFUSED), or while rings wait for a reset.
 */
#define VUF_DEVICE_EVENT_APPLIED 6

/**
 * The configuration space has changed and has been read: interrupt the guest. It also
 * comes for the first space that is read if the guest may have been shown another: with
 * options->assume_features, or after vuf_device_read_config() failed. It does not come
 * for what changes because of the guest's own writes alone.
 */
#define VUF_DEVICE_EVENT_CONFIG_CHANGED 7

/**
 * Rings that ran before a loss cannot go on before vuf_device_reset(): interrupt the
 * guest, which reads DEVICE_NEEDS_RESET (vuf_device_get_virtio_status()). An event from
 * before a reset is not returned after it.
 */
#define VUF_DEVICE_EVENT_NEEDS_RESET 8

/**
 * The back-end that was given up, peer_pid, may still write guest memory.
 */
#define VUF_DEVICE_EVENT_UNFENCED 9

/**
 * All back-ends are gone for which VUF_DEVICE_EVENT_UNFENCED came.
 */
#define VUF_DEVICE_EVENT_FENCED 10

/**
 * The device waits for a socket: vuf_device_set_fd().
 */
#define VUF_DEVICE_EVENT_NEEDS_FD 11

/**
 * Others, count of them, wanted to connect while a back-end is in use.
 */
#define VUF_DEVICE_EVENT_PEERS_REFUSED 12

/**
 * The back-end refused a write to its configuration space, or has none, or is not
 * the first that was lost over this write; the error says how. With GET_CONFIG for
 * request: it refuses to return the space, and the text has the number of bytes that
 * it was asked for. The guest reads on what was returned last, if anything was.
 */
#define VUF_DEVICE_EVENT_CONFIG_REFUSED 13

/**
 * The back-end refused a memory region, or refused to release one, to start a ring, to
 * take another call descriptor, an MTU or a GPU's socket, or to announce an address, or
 * does not have a ring: request, ring and text
 * name it. Everything else goes on, and the connection stays.
 *
 * The request is not repeated before the caller asks again: by a change of its memory, by
 * vuf_device_start(), vuf_device_set_call() or vuf_device_set_mtu(). After a loss one other back-end is asked
 * for the region, if the connection survived the refusal. For a ring that ran before a
 * loss VUF_DEVICE_EVENT_NEEDS_RESET follows. The library also refuses a ring by this
 * event that does not fit in an in-flight buffer with unfinished requests of another
 * ring; the text has the remedy.
 */
#define VUF_DEVICE_EVENT_REFUSED 14

/**
 * The back-end's channel has ended; the error says why. Where the device depends on
 * the channel (VIRTIO_F_ACCESS_PLATFORM, VUF_PROTOCOL_F_CONFIG or
 * VUF_PROTOCOL_F_SHMEM is acknowledged), VUF_DEVICE_EVENT_LOST follows.
 */
#define VUF_DEVICE_EVENT_CHANNEL_CLOSED 15

/**
 * The library refused requests, count of them, that the back-end sent on its channel.
 * The text names the request, the errno of the answer and the reason; value is the
 * number of the request on the channel, and request is 0. Comes at most every 100 ms.
 * Requests that a function in struct vuf_backend_ops refused are not reported.
 */
#define VUF_DEVICE_EVENT_CHANNEL_REFUSED 16

/**
 * The back-end refused messages, count of them, of vuf_device_post_iotlb(): it may
 * still use what they were to invalidate. vuf_device_wait() fails because of it.
 */
#define VUF_DEVICE_EVENT_IOTLB_REFUSED 17

/**
 * No ring ran.
 */
#define VUF_RECOVERY_IDLE 0

/**
 * From the used index; the in-flight buffer has the rest. Each request completes
 * once.
 */
#define VUF_RECOVERY_INFLIGHT 1

/**
 * From the used index, as VIRTIO_F_IN_ORDER was agreed. Each request completes
 * once.
 */
#define VUF_RECOVERY_IN_ORDER 2

/**
 * From the used index: VUF_OUT_OF_ORDER_REPLAY_FROM_USED, which is the default for most
 * devices.
 */
#define VUF_RECOVERY_REPLAY_FROM_USED 3

/**
 * From the available index: VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE.
 */
#define VUF_RECOVERY_RESUME_FROM_AVAILABLE 4

/**
 * Not before vuf_device_reset(): by VUF_OUT_OF_ORDER_NEEDS_RESET, for packed rings
 * without an in-flight buffer, and if the index is not known that the policy needs.
 */
#define VUF_RECOVERY_NEEDS_RESET 5

/**
 * The protocol features that a device acknowledges by default (a mask), the same in
 * every version of the library: MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG,
 * BACKEND_SEND_FD, HOST_NOTIFIER, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS,
 * STATUS, SHARED_OBJECT, DEVICE_STATE, GET_VRING_BASE_INFLIGHT, GPA_ADDRESSES, SHMEM,
 * GET_VRING_BASE_SKIP_DRAIN.
 */
#define VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES 16629291

/**
 * Virtio features (a mask) that a guest must not be shown only because the back-end
 * offers them, in every version of the library: a monitor shows the guest
 * offered_features without these, and adds of these what it implements itself.
 *
 * Of the vhost-user connection: VHOST_F_LOG_ALL (26) and VHOST_USER_F_PROTOCOL_FEATURES
 * (30). Of the transport between guest and monitor, such as virtio-pci:
 * VIRTIO_F_SR_IOV (37), VIRTIO_F_NOTIFICATION_DATA (38), VIRTIO_F_NOTIF_CONFIG_DATA (39),
 * VIRTIO_F_RING_RESET (40), VIRTIO_F_ADMIN_VQ (41). Of the machine:
 * VIRTIO_F_ACCESS_PLATFORM (33), with which rings and buffers have I/O virtual addresses.
 * Reserved by the virtio specification for extensions of these kinds: 42 to 49.
 */
#define VUF_TRANSPORT_FEATURES 1125772198674432

/**
 * In struct vuf_device_options: a back-end that was given up is waited for, so
 * that no two use the memory. The default.
 */
#define VUF_ON_UNFENCED_WAIT 0

/**
 * Another is used beside it, and beside eight of them at most: with a ninth it waits
 * until one of the nine is gone.
 */
#define VUF_ON_UNFENCED_PROCEED 1

/**
 * If it is a process of vuf_device_set_process(), it is killed (SIGKILL), and
 * VUF_DEVICE_EVENT_UNFENCED comes only if it is not gone 5 s later. Otherwise as
 * VUF_ON_UNFENCED_WAIT. For vuf_device_open_fd() only.
 */
#define VUF_ON_UNFENCED_KILL 2

/**
 * In struct vuf_device_options, how split rings go on after a loss that have neither an
 * in-flight buffer nor VIRTIO_F_IN_ORDER. The default: VUF_OUT_OF_ORDER_NEEDS_RESET if
 * device_id is 26 (file system), whose session is lost with its back-end, otherwise
 * VUF_OUT_OF_ORDER_REPLAY_FROM_USED, as in QEMU. No Linux virtio driver acts on
 * DEVICE_NEEDS_RESET, so a Linux guest would wait forever. recovery of
 * VUF_DEVICE_EVENT_LOST names the policy that was applied.
 */
#define VUF_OUT_OF_ORDER_DEFAULT 0

/**
 * The rings wait for vuf_device_reset().
 */
#define VUF_OUT_OF_ORDER_NEEDS_RESET 1

/**
 * The rings go on from the used index. Correct for back-ends that complete requests in
 * order, even if they do not offer VIRTIO_F_IN_ORDER. With others, a request that was
 * completed out of order may be executed again, and one that it overtook may never
 * complete.
 */
#define VUF_OUT_OF_ORDER_REPLAY_FROM_USED 2

/**
 * The rings go on from the available index: requests that were not completed are lost.
 */
#define VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE 3

/**
 * For config_size in struct vuf_device_options: the size is chosen by
 * vuf_device_set_config_size(), when the features of the back-end are known.
 */
#define VUF_CONFIG_SIZE_LATER 4294967295

/**
 * For vuf_device_set_memory(): memory that is in use may change while rings run. The
 * caller makes sure that none of it is needed meanwhile.
 */
#define VUF_MEMORY_ALLOW_GAP 1

/**
 * For vuf_device_get_memory_state(): the back-end has exactly the memory that is
 * wanted.
 */
#define VUF_MEMORY_APPLIED 0

/**
 * It has not confirmed that yet, or an old back-end is not gone: memory that was taken
 * away may still be in use. Lasts while a memory table is refused (SET_MEM_TABLE) that
 * would take memory away.
 */
#define VUF_MEMORY_PENDING 1

/**
 * There is no back-end, or it has no memory yet. No memory is in use; the next back-end
 * gets it.
 */
#define VUF_MEMORY_ABSENT 2

/**
 * A back-end refused a region that is wanted (VUF_DEVICE_EVENT_REFUSED), and the rest is
 * in use. No memory that was taken away is accessible any longer.
 */
#define VUF_MEMORY_FAILED 3

/**
 * A back-end refused to release a region (REM_MEM_REG), or was given up and is not gone
 * (VUF_DEVICE_EVENT_UNFENCED). It may still write memory that was taken away, which must
 * not be unmapped.
 */
#define VUF_MEMORY_UNCONFIRMED 4

/**
 * For vuf_device_stop(): the back-end completes the requests that it has taken
 * (GET_VRING_BASE).
 */
#define VUF_STOP_DRAIN 0

/**
 * The back-end leaves unfinished requests in the in-flight buffer, where that is agreed
 * (GET_VRING_BASE_SKIP_DRAIN). Otherwise as VUF_STOP_DRAIN.
 */
#define VUF_STOP_SKIP_DRAIN 1

/**
 * The connection is closed. Rings that run have no base afterwards.
 */
#define VUF_STOP_ABANDON 2

/**
 * In struct vuf_ring: from the beginning.
 */
#define VUF_RING_BASE_NEW 0

/**
 * From the base at which it was stopped on this device, with the requests that are left
 * in the in-flight buffer. A ring that is still being stopped begins where the stop ends;
 * after a loss that cut the stop off, where its index stands once that back-end is gone.
 */
#define VUF_RING_BASE_RESUME 1

/**
 * From base. If that is the base at which the ring was stopped, as
 * VUF_RING_BASE_RESUME.
 */
#define VUF_RING_BASE_AT 2

/**
 * For get_index in struct vuf_ring: what the device has used.
 */
#define VUF_RING_INDEX_USED 0

/**
 * What the driver has made available.
 */
#define VUF_RING_INDEX_AVAILABLE 1

/**
 * Bytes of text in struct vuf_device_event, with its NUL.
 */
#define VUF_DEVICE_TEXT_SIZE 256

/**
 * The version of struct vuf_api in this header. It changes only with the soname.
 */
#define VUF_API_VERSION 1

/**
 * In struct vuf_backend_search: also files that others hide, or that are of no use.
 */
#define VUF_BACKEND_SEARCH_ALL 1

/**
 * The number under which a back-end that was started finds its socket.
 */
#define VUF_BACKEND_PROCESS_FD 3

/**
 * In struct vuf_backend_process_options: the back-end is given a socket that
 * listens, at which the connection waits already, and not one end of it. virtiofsd
 * and qemu-storage-daemon want that.
 */
#define VUF_BACKEND_PROCESS_LISTENING 1

/**
 * The arguments say where the socket is (VUF_BACKEND_PROCESS_FD), and "--fd=3" is not
 * added. For programs that do not follow the convention.
 */
#define VUF_BACKEND_PROCESS_OWN_ARGUMENTS 2

/**
 * The back-end leads a process group of its own: no signal that a terminal sends
 * to this process's reaches it.
 */
#define VUF_BACKEND_PROCESS_NEW_GROUP 4

/**
 * The back-end is killed (SIGKILL) when the thread that starts it ends, and so at the
 * latest with this process, even if that is killed. Start it from a thread that lives as
 * long as it is needed, such as the main thread. The kernel forgets it for a program that
 * changes its rights (set-user-ID, file capabilities).
 */
#define VUF_BACKEND_PROCESS_KILL_WITH_PARENT 8

/**
 * In struct vuf_backend_exit: the process runs.
 */
#define VUF_BACKEND_EXIT_RUNNING 0

/**
 * It has ended by itself; value is its exit status.
 */
#define VUF_BACKEND_EXIT_CODE 1

/**
 * A signal has ended it; value is its number.
 */
#define VUF_BACKEND_EXIT_SIGNAL 2

/**
 * It has ended, and how is not known: somebody else has waited for it, or SIGCHLD is
 * ignored in this process.
 */
#define VUF_BACKEND_EXIT_UNKNOWN 3

/**
 * A back-end that was started. Only ever used through a pointer.
 */
struct vuf_backend_process;

/**
 * Back-ends that were found. Only ever used through a pointer.
 */
struct vuf_backend_programs;

/**
 * A connection to a back-end. Only ever used through a pointer.
 */
struct vuf_client;

/**
 * A device: keeps a back-end in the desired state, across restarts. Only ever used
 * through a pointer.
 */
struct vuf_device;

/**
 * Devices that share all guest memory. Only ever used through a pointer.
 */
struct vuf_memory_group;

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
    /**
     * With -ETIMEDOUT of a device: the code of the last failure that kept the device
     * from what it waits for, such as -ENOENT where the socket does not exist. The
     * other fields and the text then describe that failure. Otherwise 0.
     */
    int cause;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * What a caller chooses when it connects. Set size to
 * sizeof(struct vuf_client_options) and the rest to zero; zero is always the
 * default. Times are in milliseconds, VUF_TIMEOUT_DEFAULT or
 * VUF_TIMEOUT_FOREVER.
 *
 * A longer struct than this library knows is refused with -E2BIG unless the
 * rest is zero, and a shorter one than that of version 0.1 with -EINVAL.
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
     * How long, in microseconds, a function looks for its answer again and again
     * before it sleeps: 0, the default, to VUF_MAX_SPIN_US. vuf_client_submit()
     * does so for each of its answers. What answers within that time is seen
     * several times sooner, as no thread has to be woken; what does not costs a
     * processor that much more. Only with a processor to spare for the back-end.
     */
    uint32_t spin_us;
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
     * The file that holds the region: memfd, tmpfs or hugetlbfs, or a device that can
     * be mapped; mapped shared. Borrowed: the back-end gets a duplicate. 0 is refused,
     * so that a zeroed struct does not send standard input away.
     */
    int fd;
    /**
     * With VUF_PROTOCOL_F_XEN_MMAP acknowledged: VUF_XEN_MMAP_*. Otherwise zero.
     */
    uint32_t xen_mmap_flags;
    /**
     * With VUF_PROTOCOL_F_XEN_MMAP acknowledged: the domain that the region
     * belongs to. Otherwise zero.
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
 * A translation of the back-end's IOMMU, or the end of some ("An IOTLB
 * message").
 */
struct vuf_iotlb {
    /**
     * I/O virtual address.
     */
    uint64_t iova;
    /**
     * Size in bytes, not 0.
     */
    uint64_t size;
    /**
     * For an update: where it is, in the number space of
     * vuf_mem_region.user_addr; with VUF_PROTOCOL_F_GPA_ADDRESSES a guest
     * physical address.
     */
    uint64_t user_addr;
    /**
     * VUF_ACCESS_*; may be 0 to invalidate.
     */
    uint8_t perm;
    /**
     * VUF_IOTLB_UPDATE or VUF_IOTLB_INVALIDATE.
     */
    uint8_t type;
    /**
     * Zero.
     */
    uint8_t reserved[6];
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
 * A request in a list of vuf_client_submit(). Zero it first; fields that request
 * does not name below stay zero (fd may be -1 as well).
 *
 *   VUF_REQUEST_SET_VRING_NUM     index, value: the size in descriptors
 *   VUF_REQUEST_SET_VRING_ADDR    index, addr
 *   VUF_REQUEST_SET_VRING_BASE    index, value: where the ring goes on
 *   VUF_REQUEST_SET_VRING_KICK    index, fd: -1 for none
 *   VUF_REQUEST_SET_VRING_CALL    the same
 *   VUF_REQUEST_SET_VRING_ERR     the same
 *   VUF_REQUEST_SET_VRING_ENABLE  index, value: 1 or 0
 *   VUF_REQUEST_SET_VRING_ENDIAN  index, value: VUF_VRING_*_ENDIAN
 *   VUF_REQUEST_VRING_KICK        index
 *   VUF_REQUEST_SET_INFLIGHT_FD   inflight, fd
 *   VUF_REQUEST_SET_LOG_FD        fd
 *   VUF_REQUEST_SET_STATUS        value: the device status, and not 0
 *   VUF_REQUEST_NET_SET_MTU       value
 *   VUF_REQUEST_SEND_RARP         value: the address, its first byte lowest
 *
 * Each means what the function of its name documents, vuf_client_set_vring_num()
 * and so on, and needs the same features.
 */
struct vuf_op {
    /**
     * VUF_REQUEST_*
     */
    uint32_t request;
    /**
     * Index of the ring.
     */
    uint32_t index;
    /**
     * Borrowed for the call: the back-end gets a duplicate. 0 is taken for a field
     * that was not set.
     */
    int fd;
    /**
     * Zero.
     */
    uint32_t reserved0;
    /**
     * See above.
     */
    uint64_t value;
    /**
     * Read during the call.
     */
    const struct vuf_vring_addr *addr;
    /**
     * Read during the call.
     */
    const struct vuf_inflight *inflight;
    /**
     * Zero.
     */
    uint64_t reserved[2];
};

/**
 * What became of a list of requests. Set size to
 * sizeof(struct vuf_submit_result) before the call.
 */
struct vuf_submit_result {
    /**
     * sizeof(struct vuf_submit_result)
     */
    size_t size;
    /**
     * How many went out, always the first of the list.
     */
    uint32_t sent;
    /**
     * How many of them are known to have been processed; those between applied and
     * sent may have been.
     */
    uint32_t applied;
    /**
     * How many of them the back-end refused.
     */
    uint32_t refused;
    /**
     * Which was the first to fail, from 0; -1 if none did, or where that cannot be
     * told: without VUF_PROTOCOL_F_REPLY_ACK.
     */
    int32_t failed;
    /**
     * What the function returned. This and the next ones are as in
     * struct vuf_error_info.
     */
    int code;
    /**
     * Errno behind the code.
     */
    int errno_value;
    /**
     * VUF_CLASS_*
     */
    uint32_t error_class;
    /**
     * VUF_PHASE_*
     */
    uint32_t phase;
    /**
     * Number of the request that failed.
     */
    uint32_t request;
    /**
     * Index of its ring; -1 if none.
     */
    int32_t ring;
    /**
     * 1 if value is what the back-end sent.
     */
    uint32_t has_value;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The back-end's raw value.
     */
    uint64_t value;
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

/**
 * A crypto session with a cipher, a hash, or both. The numbers are those of
 * <linux/virtio_crypto.h>.
 */
struct vuf_crypto_sym {
    /**
     * VIRTIO_CRYPTO_CIPHER_*
     */
    uint32_t cipher_alg;
    /**
     * Bytes of key; at most VUF_MAX_CIPHER_KEY.
     */
    uint32_t key_len;
    /**
     * VIRTIO_CRYPTO_HASH_* or VIRTIO_CRYPTO_MAC_*
     */
    uint32_t hash_alg;
    /**
     * Bytes of the result of the hash.
     */
    uint32_t hash_result_len;
    /**
     * Bytes of auth_key; at most VUF_MAX_AUTH_KEY.
     */
    uint32_t auth_key_len;
    /**
     * Bytes of additional authenticated data.
     */
    uint32_t add_len;
    /**
     * VIRTIO_CRYPTO_SYM_OP_*
     */
    uint8_t op_type;
    /**
     * VIRTIO_CRYPTO_OP_ENCRYPT or VIRTIO_CRYPTO_OP_DECRYPT
     */
    uint8_t direction;
    /**
     * VIRTIO_CRYPTO_SYM_HASH_MODE_*
     */
    uint8_t hash_mode;
    /**
     * VIRTIO_CRYPTO_SYM_ALG_CHAIN_ORDER_*
     */
    uint8_t alg_chain_order;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The key of the cipher, and zeros.
     */
    uint8_t key[VUF_MAX_CIPHER_KEY];
    /**
     * The key for authentication, and zeros.
     */
    uint8_t auth_key[VUF_MAX_AUTH_KEY];
};

/**
 * A crypto session with an asymmetric algorithm. The numbers are those of
 * <linux/virtio_crypto.h>.
 */
struct vuf_crypto_asym {
    /**
     * VIRTIO_CRYPTO_AKCIPHER_RSA
     */
    uint32_t algo;
    /**
     * VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_*
     */
    uint32_t key_type;
    /**
     * Bytes of key; at most VUF_MAX_ASYM_KEY.
     */
    uint32_t key_len;
    /**
     * VIRTIO_CRYPTO_RSA_RAW_PADDING or VIRTIO_CRYPTO_RSA_PKCS1_PADDING
     */
    uint32_t padding_algo;
    /**
     * VIRTIO_CRYPTO_RSA_*, the hash.
     */
    uint32_t hash_algo;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The key, and zeros.
     */
    uint8_t key[VUF_MAX_ASYM_KEY];
};

/**
 * What vuf_client_create_crypto_session() creates. Set size to
 * sizeof(struct vuf_crypto_session), and zero the rest first.
 */
struct vuf_crypto_session {
    /**
     * sizeof(struct vuf_crypto_session)
     */
    size_t size;
    /**
     * VIRTIO_CRYPTO_*_CREATE_SESSION; it chooses one of the next two.
     */
    uint64_t op_code;
    /**
     * For VIRTIO_CRYPTO_CIPHER_, HASH_, MAC_ and AEAD_CREATE_SESSION;
     * otherwise zero.
     */
    struct vuf_crypto_sym sym;
    /**
     * For VIRTIO_CRYPTO_AKCIPHER_CREATE_SESSION; otherwise zero.
     */
    struct vuf_crypto_asym asym;
};

/**
 * Part of a shared memory region of the device.
 */
struct vuf_shmem_area {
    /**
     * Which region: an index into memory_sizes of struct vuf_shmem_config.
     */
    uint32_t shmid;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Where to begin in the file, in bytes.
     */
    uint64_t fd_offset;
    /**
     * Where to begin in the region, in bytes.
     */
    uint64_t shm_offset;
    /**
     * How many bytes.
     */
    uint64_t len;
    /**
     * VUF_SHMEM_WRITABLE, or zero for a mapping that is only read.
     */
    uint64_t flags;
};

/**
 * The caller's functions that do what the back-end asks on its channel. Set size
 * to sizeof(struct vuf_backend_ops), and to NULL what you do not serve: it is
 * answered with an error.
 *
 * The first six must be answered before the back-end goes on. They run inside
 * any call on the client that waits, and inside
 * vuf_client_process_backend_requests(), one at a time, on the thread that made
 * the call. They must never wait for a lock that any thread holds while it calls
 * the library with this client, and of this client they may call only
 * vuf_client_post_iotlb(), vuf_client_abort() and functions that send nothing;
 * others answer VUF_E_STATE. Their result is the answer: 0 for success, otherwise
 * a negative errno.
 *
 * The others are acknowledged by the library, and run only inside
 * vuf_client_process_backend_requests(), where any call is allowed but
 * vuf_client_free(). What came several times meanwhile may be told once.
 *
 * None runs during or after vuf_client_free(). Nothing may be thrown or jumped
 * through the library.
 */
struct vuf_backend_ops {
    /**
     * sizeof(struct vuf_backend_ops)
     */
    size_t size;
    /**
     * The back-end needs the translation of an I/O virtual address
     * (BACKEND_IOTLB_MSG): send it with vuf_client_post_iotlb(). perm: bit 0 it
     * wants to read, bit 1 to write.
     */
    int (*iotlb_miss)(void *user, uint64_t iova, uint32_t perm);
    /**
     * The back-end was denied an access (BACKEND_IOTLB_MSG).
     */
    int (*iotlb_access_fail)(void *user,
                             uint64_t iova,
                             uint64_t size,
                             uint32_t perm);
    /**
     * A ring has a doorbell page, which the guest may write in place of the kick
     * (BACKEND_VRING_HOST_NOTIFIER_MSG): map size bytes of fd from offset, shared
     * and writable. fd is given (yours to close); -1 takes the page away. It also
     * goes when the ring is stopped. Also called with -1, and the result then ignored,
     * for each page that is there when the device is reset or the channel ends, as
     * shmem_unmap is.
     */
    int (*host_notifier)(void *user,
                         uint32_t ring,
                         int fd,
                         uint64_t offset,
                         uint64_t size);
    /**
     * Find the object that another device exported under the 16 bytes at uuid
     * (BACKEND_SHARED_OBJECT_LOOKUP). Set *fd to its file: taken (the library
     * sends and closes it).
     */
    int (*shared_object_lookup)(void *user, const uint8_t *uuid, int *fd);
    /**
     * Map fd into a shared memory region of the device (BACKEND_SHMEM_MAP). fd is
     * given (yours to close). The library has checked that the area is within the
     * region; begins with a page in the region and in the file; has no page in common
     * with another mapping, so that whole pages can be mapped whatever len is; and that
     * fd is open for it and, if it is a regular file, was long enough. The back-end may
     * still truncate its file: an access to the mapping is then a SIGBUS, unless the file
     * has F_SEAL_SHRINK.
     */
    int (*shmem_map)(void *user, const struct vuf_shmem_area *area, int fd);
    /**
     * Take away a whole mapping (BACKEND_SHMEM_UNMAP). Also called, and the
     * result then ignored, for each one that lives when the device is reset
     * (inside vuf_client_reset_device(), or vuf_client_set_status() with 0) or the
     * channel ends (inside vuf_client_process_backend_requests()).
     */
    int (*shmem_unmap)(void *user, const struct vuf_shmem_area *area);
    /**
     * The configuration space has changed (BACKEND_CONFIG_CHANGE_MSG): read it
     * again and tell the guest.
     */
    void (*config_changed)(void *user);
    /**
     * The device has used buffers of a ring (BACKEND_VRING_CALL).
     */
    void (*vring_call)(void *user, uint32_t ring);
    /**
     * A ring is broken (BACKEND_VRING_ERR).
     */
    void (*vring_err)(void *user, uint32_t ring);
    /**
     * The device exports an object under the 16 bytes at uuid
     * (BACKEND_SHARED_OBJECT_ADD).
     */
    void (*shared_object_added)(void *user, const uint8_t *uuid);
    /**
     * The device exports it no longer (BACKEND_SHARED_OBJECT_REMOVE). Also called for
     * each object that it exports when it is reset or the channel ends.
     */
    void (*shared_object_removed)(void *user, const uint8_t *uuid);
};

/**
 * One message, for the callback of vuf_client_set_trace(), during which it is
 * valid.
 */
struct vuf_trace_record {
    /**
     * Bytes of this struct that the library has filled in. Before you read a
     * field that came in a later version than yours, see that size covers it.
     */
    size_t size;
    /**
     * The message in words, in one line without its end. It begins with "> "
     * (sent) or "< " (received), on the channel with "channel " before that, and
     * goes on with the name of the request, "need-reply" where that is asked,
     * fields as name=value (decimal up to 65535, then hexadecimal), size= where it
     * is not the usual one, and fds= where there are any:
     *   "> SET_VRING_NUM need-reply index=0 num=256"
     *   "< SET_VRING_NUM value=0"
     * Fields, and what follows them, may be added. Never has keys or other contents.
     */
    const char *text;
    /**
     * The name of the request, as in the text; NULL if it is not known.
     */
    const char *name;
    /**
     * VUF_TRACE_MAIN or VUF_TRACE_CHANNEL.
     */
    uint32_t socket;
    /**
     * VUF_TRACE_SENT or VUF_TRACE_RECEIVED.
     */
    uint32_t direction;
    /**
     * The number of the request; those of the channel are numbered apart.
     */
    uint32_t request;
    /**
     * Flags of the message's header.
     */
    uint32_t flags;
    /**
     * Bytes of payload, as the header says.
     */
    uint32_t payload_size;
    /**
     * File descriptors that went with the message; 0 where it was not taken
     * because its header is wrong.
     */
    uint32_t fds;
    /**
     * Records that were lost since the one before, because messages came faster
     * than the callback took them.
     */
    uint64_t dropped;
};

/**
 * What a client has done so far, on both of its sockets unless it says otherwise.
 * Set size to sizeof(struct vuf_counters) before the call.
 */
struct vuf_counters {
    /**
     * sizeof(struct vuf_counters)
     */
    size_t size;
    /**
     * Requests that went out on the connection, barriers included.
     */
    uint64_t requests_sent;
    /**
     * Replies to them, acknowledgements included.
     */
    uint64_t replies_received;
    /**
     * Bytes of messages sent.
     */
    uint64_t bytes_sent;
    /**
     * Bytes of messages received.
     */
    uint64_t bytes_received;
    /**
     * File descriptors sent.
     */
    uint64_t fds_sent;
    /**
     * File descriptors received, also those that were too many.
     */
    uint64_t fds_received;
    /**
     * GET_FEATURES that were sent only to know that the request before was
     * processed.
     */
    uint64_t barriers;
    /**
     * Requests of the back-end that succeeded.
     */
    uint64_t backend_requests_served;
    /**
     * Requests of the back-end that were refused, by the library or by a function
     * of struct vuf_backend_ops.
     */
    uint64_t backend_requests_refused;
    /**
     * Messages of vuf_client_post_iotlb() that the back-end refused.
     */
    uint64_t posted_refused;
    /**
     * Calls that ended with -ETIMEDOUT.
     */
    uint64_t timeouts;
    /**
     * Records that the callback of vuf_client_set_trace() did not get, because
     * messages came faster than it took them.
     */
    uint64_t trace_dropped;
    /**
     * Longest time that a call waited for a reply, in nanoseconds; to its deadline
     * where none came.
     */
    uint64_t longest_wait_ns;
    /**
     * The request that it was for (see vuf_request_name()); 0 if none yet. Where a
     * barrier was waited for, the request before it.
     */
    uint32_t longest_wait_request;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * What a caller chooses when it opens a device. Set size to
 * sizeof(struct vuf_device_options) and the rest to zero; zero is always the
 * default. Times are in milliseconds, VUF_TIMEOUT_DEFAULT or
 * VUF_TIMEOUT_FOREVER.
 *
 * A longer struct than this library knows is refused with -E2BIG unless the
 * rest is zero.
 */
struct vuf_device_options {
    /**
     * sizeof(struct vuf_device_options)
     */
    size_t size;
    /**
     * How many rings the device has: an index at or above it is refused. The
     * in-flight buffer is made for that number. 0: 256, and the buffer is made for the
     * rings that are started; to start another one then stops these for a moment.
     */
    uint32_t num_rings;
    /**
     * Bytes of its configuration space that the back-end is asked for: the exact
     * size of the virtio device's. 0: none, and VUF_PROTOCOL_F_CONFIG is not
     * acknowledged. At most VUF_MAX_CONFIG_SIZE. VUF_CONFIG_SIZE_LATER: it depends on
     * the features that the back-end offers, see vuf_device_set_config_size().
     */
    uint32_t config_size;
    /**
     * Virtio features (a mask) without which a back-end is refused.
     */
    uint64_t required_features;
    /**
     * Protocol features that may be acknowledged where they are offered, of those
     * that the device makes use of. 0: VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES.
     *
     * Without their functions in backend_ops some are never acknowledged:
     * VUF_PROTOCOL_F_SHMEM (shmem_map), VUF_PROTOCOL_F_HOST_NOTIFIER (host_notifier),
     * VUF_PROTOCOL_F_SHARED_OBJECT (any of its three) and
     * VUF_PROTOCOL_F_BACKEND_SEND_FD (shmem_map, host_notifier or
     * shared_object_lookup).
     */
    uint64_t protocol_features;
    /**
     * Protocol features without which a back-end is refused. One that needs a function
     * in backend_ops (see protocol_features) is -EINVAL without it.
     */
    uint64_t required_protocol_features;
    /**
     * Virtio features that count as offered before there is a back-end, so that a
     * guest can be started without one. A back-end that offers fewer is refused. See
     * vuf_device_assume_config() for what such a guest reads.
     * 0: vuf_device_set_features() has to wait for the first.
     */
    uint64_t assume_features;
    /**
     * The caller's functions that do what the back-end asks on its channel; NULL
     * for none. Read during the call. They run inside vuf_device_process(),
     * vuf_device_wait() and the functions with a timeout. Of config_changed
     * nothing is heard: VUF_DEVICE_EVENT_CONFIG_CHANGED comes once the space has
     * been read. They may call with this device what neither waits nor processes.
     */
    const struct vuf_backend_ops *backend_ops;
    /**
     * Passed to each of them.
     */
    void *user;
    /**
     * When to connect again after a loss, or after the first attempt that fails.
     * Each further delay is twice the one before, until a back-end has done all that is
     * wanted for max_delay_ms (10 s if that is less). A socket that appears is connected
     * to at once, where only its absence is waited for. Default 100.
     */
    uint32_t first_delay_ms;
    /**
     * But not more than this. Default 5000, or first_delay_ms if that is more.
     */
    uint32_t max_delay_ms;
    /**
     * After a back-end was refused, or refused us. Default 30000.
     */
    uint32_t slow_delay_ms;
    /**
     * How much of a delay chance may take away, in percent: 1 to 100. Default 25.
     */
    uint32_t jitter_percent;
    /**
     * How long a back-end that was given up, and may use the memory, has to close
     * its connection before VUF_DEVICE_EVENT_UNFENCED. Default 5000.
     */
    uint32_t fence_ms;
    /**
     * VUF_ON_UNFENCED_*: what happens then.
     */
    uint32_t on_unfenced;
    /**
     * VUF_OUT_OF_ORDER_*: how rings go on after a loss where neither an in-flight buffer
     * nor VIRTIO_F_IN_ORDER says which requests were completed.
     */
    uint32_t out_of_order;
    /**
     * After how long without an answer VUF_DEVICE_EVENT_STALLED comes.
     * Default 1000.
     */
    uint32_t stall_ms;
    /**
     * For requests that the back-end answers from its memory; without an answer
     * until then it is given up. Default 5000.
     */
    uint32_t timeout_ms;
    /**
     * For memory, enabling rings and in-flight buffers, likewise. Default 60000.
     */
    uint32_t slow_timeout_ms;
    /**
     * For stopping a ring, likewise. Default 60000.
     */
    uint32_t drain_timeout_ms;
    /**
     * The largest size that a ring will have, in descriptors; at most 32768. A larger
     * ring is refused. In-flight buffers are made for it, so that a queue that the guest
     * resets (VIRTIO_F_RING_RESET) can be given a larger size while others run. 0: that
     * of the largest ring that is started; a larger one then stops the others for a
     * moment.
     */
    uint32_t max_ring_size;
    /**
     * The virtio device ID, such as 2 for a block device (VIRTIO_ID_BLOCK); 0: unknown.
     * Texts name the feature bits of this type, and it decides what
     * VUF_OUT_OF_ORDER_DEFAULT means.
     */
    uint32_t device_id;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * What has happened to a device. Set size to sizeof(struct vuf_device_event)
 * before the call. Fields that kind does not name are zero.
 */
struct vuf_device_event {
    /**
     * sizeof(struct vuf_device_event)
     */
    size_t size;
    /**
     * VUF_DEVICE_EVENT_*
     */
    uint32_t kind;
    /**
     * VUF_RECOVERY_*: the policy by which rings go on (LOST), or went on (RECOVERED).
     */
    uint32_t recovery;
    /**
     * The desired state when it happened: see generation in struct vuf_device_info.
     */
    uint64_t generation;
    /**
     * How many attempts have failed in a row, or how many peers, requests or messages
     * were refused.
     */
    uint32_t count;
    /**
     * When the next attempt comes, in milliseconds.
     */
    uint32_t delay_ms;
    /**
     * How many events before this one were left out, because they were not taken.
     */
    uint32_t missed;
    /**
     * Why, as in struct vuf_error_info; 0 where there is no error.
     */
    int code;
    /**
     * As in struct vuf_error_info; so are the next ones.
     */
    int errno_value;
    /**
     * VUF_CLASS_*
     */
    uint32_t error_class;
    /**
     * VUF_PHASE_*
     */
    uint32_t phase;
    /**
     * Number of the request; 0 if none was involved. After a loss the oldest one that
     * had no answer.
     */
    uint32_t request;
    /**
     * Index of the ring; -1 if none.
     */
    int32_t ring;
    /**
     * Position of the region; -1 if none.
     */
    int32_t region;
    /**
     * 1 if value has a meaning.
     */
    uint32_t has_value;
    /**
     * Of LOST and UNFENCED the process that was at the other end, as in
     * struct vuf_device_info; 0 where it cannot be seen from here.
     */
    int32_t peer_pid;
    /**
     * The back-end's raw value. Of a process of vuf_device_set_process() that has
     * exited, its exit status. Of a ring that was not drained (LOST with GET_VRING_BASE),
     * the number of its unfinished requests.
     */
    uint64_t value;
    /**
     * The error as text, NUL-terminated; empty where there is none.
     */
    char text[VUF_DEVICE_TEXT_SIZE];
};

/**
 * What is known of a device and its back-end. Set size to
 * sizeof(struct vuf_device_info) before the call.
 */
struct vuf_device_info {
    /**
     * sizeof(struct vuf_device_info)
     */
    size_t size;
    /**
     * 1: there is a connection, and its handshake went through.
     */
    uint32_t connected;
    /**
     * 1: the back-end has acknowledged all that is wanted, up to generation, and has
     * answered all messages of vuf_device_post_iotlb().
     */
    uint32_t settled;
    /**
     * 1: rings that ran before a loss wait for vuf_device_reset().
     */
    uint32_t needs_reset;
    /**
     * 1: a back-end that was given up may still write guest memory.
     */
    uint32_t unfenced;
    /**
     * Counts changes of the desired state: each function that changes it adds one.
     */
    uint64_t generation;
    /**
     * The generation up to which the back-end has confirmed everything; 0 while there is
     * no connection.
     */
    uint64_t applied;
    /**
     * How many connections there have been.
     */
    uint64_t connections;
    /**
     * Virtio features that the back-end offers, or offered last, or is assumed
     * to; without VUF_F_PROTOCOL_FEATURES and VUF_F_LOG_ALL, which are not for
     * the guest.
     */
    uint64_t offered_features;
    /**
     * Those acknowledged on this connection.
     */
    uint64_t acked_features;
    /**
     * Protocol features that the back-end offers on this connection.
     */
    uint64_t offered_protocol_features;
    /**
     * Those acknowledged.
     */
    uint64_t protocol_features;
    /**
     * GET_QUEUE_NUM; 0 if it was not asked. Some back-ends count pairs.
     */
    uint64_t queue_num;
    /**
     * GET_MAX_MEM_SLOTS; 0 if it was not asked.
     */
    uint64_t max_mem_slots;
    /**
     * The process at the other end, its user and group; -1 while there is none,
     * and pid 0 where it cannot be seen from here, or is not known: of a socket pair
     * the kernel names who made it, which is this process.
     */
    int32_t peer_pid;
    /**
     * See peer_pid.
     */
    int32_t peer_uid;
    /**
     * See peer_pid.
     */
    int32_t peer_gid;
    /**
     * How many rings can be started at most: vuf_device_start() refuses an index at or
     * above it. From num_rings of the options and queue_num, which may count pairs of
     * rings beside a control ring: 2 * queue_num + 1. The back-end has at least
     * queue_num rings. 0 while that is not known.
     */
    uint32_t max_rings;
    /**
     * Size in bytes of the shared memory region with each shmid; 0 where there is
     * none. As the first back-end has returned them: one with other sizes is refused.
     */
    uint64_t shmem_sizes[VUF_SHMEM_REGIONS];
};

/**
 * Whether stopped rings and memory that was taken away are out of use. Set
 * size to sizeof(struct vuf_quiet) before the call.
 */
struct vuf_quiet {
    /**
     * sizeof(struct vuf_quiet)
     */
    size_t size;
    /**
     * 1: that is confirmed by the back-end, or the back-end is gone. 0: guest memory may
     * still be written, and memory that was taken away must not be unmapped.
     */
    uint32_t quiesced;
    /**
     * 1: each ring that is not started was never started, or has a base from which it
     * can be resumed without losing a request, under the policy of the device:
     * VUF_RING_BASE_RESUME and vuf_device_get_vring_base() work. 0: for one of them
     * vuf_device_get_vring_base() fails, and vuf_last_error() says why.
     */
    uint32_t bases_valid;
};

/**
 * A ring to be started. Zero it first, and set fds that there are not to -1: 0 is
 * refused. Addresses are guest addresses; with VIRTIO_F_ACCESS_PLATFORM they are
 * I/O virtual addresses.
 *
 * After a loss the library has to know how far the ring has got, from used_index and
 * avail_index or from get_index. Without the index that the policy needs, all rings of
 * the device wait for vuf_device_reset() then.
 */
struct vuf_ring {
    /**
     * Which one: below num_rings of the options.
     */
    uint32_t index;
    /**
     * Descriptors: 1 to 32768, for a split ring a power of two.
     */
    uint32_t size;
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
     * VUF_RING_BASE_*: where it begins.
     */
    uint32_t base_mode;
    /**
     * With VUF_RING_BASE_AT: in the form of vuf_client_set_vring_base(). Otherwise
     * zero.
     */
    uint32_t base;
    /**
     * What the driver writes: an eventfd, or one end of a pipe or socket. A file is
     * refused, because notifications would overwrite what is in it. Kept: duplicated,
     * until the ring is stopped.
     */
    int kick_fd;
    /**
     * What the device writes; -1 if the driver polls. Kept, as kick_fd.
     */
    int call_fd;
    /**
     * What the device writes when the ring is broken; -1 for none. Kept.
     */
    int err_fd;
    /**
     * Zero.
     */
    uint32_t reserved0;
    /**
     * The index field of the used ring (packed: a caller-supplied word, bits 0-14
     * the next used descriptor, bit 15 its wrap counter) in this process, aligned
     * and little-endian; NULL for none. The library reads it, and nothing else of
     * guest memory, inside vuf_device_start(), vuf_device_stop(), vuf_device_process()
     * and functions that wait. A back-end can make a file that it was given shorter, and
     * reading there then ends the program with SIGBUS: seal the file of this memory
     * (F_SEAL_SHRINK), as vuf_memfd_create() does with VUF_MEMFD_SEAL.
     *
     * It must stay mapped until the ring was stopped and struct vuf_quiet has quiesced 1,
     * because back-ends exist that answer GET_VRING_BASE before they have completed all
     * requests (qemu-storage-daemon). A ring whose used index has not reached its base is
     * not drained: the library waits 1 s for it, then reports VUF_DEVICE_EVENT_LOST with
     * the number of unfinished requests in value.
     */
    const uint16_t *used_index;
    /**
     * The index field of the available ring, likewise. With it a ring that has no
     * unfinished request is recognised after a loss, and can be started anew while
     * others go on; VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE needs it.
     */
    const uint16_t *avail_index;
    /**
     * In place of these two: called with user, the index of the ring and
     * VUF_RING_INDEX_*, it sets *index (in this machine's byte order) and returns
     * 0, or another number where that is not known. It may not wait for or process
     * this device. It may be called until the ring was stopped and quiesced in
     * struct vuf_quiet is 1.
     */
    int (*get_index)(void *user, uint32_t ring, uint32_t which, uint16_t *index);
    /**
     * Passed to get_index.
     */
    void *user;
    /**
     * Zero.
     */
    uint64_t reserved[4];
};

/**
 * Which back-ends are looked for, and where. Set size to
 * sizeof(struct vuf_backend_search) and the rest to zero; zero is always the default.
 */
struct vuf_backend_search {
    /**
     * sizeof(struct vuf_backend_search)
     */
    size_t size;
    /**
     * Only those for this type of device, as "fs"; NULL for all.
     */
    const char *device_type;
    /**
     * Directories, the most specific last; NULL for those of the convention, which
     * vuf_backend_programs_find() names.
     */
    const char *const *directories;
    /**
     * How many.
     */
    size_t n_directories;
    /**
     * 0 or VUF_BACKEND_SEARCH_ALL
     */
    uint32_t flags;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * A back-end that is described by a file. Set size to
 * sizeof(struct vuf_backend_program) before the call. Texts are valid until the list
 * is freed (borrowed), and empty where nothing is known.
 */
struct vuf_backend_program {
    /**
     * sizeof(struct vuf_backend_program)
     */
    size_t size;
    /**
     * The path of the file.
     */
    const char *file;
    /**
     * The type of device, as "fs".
     */
    const char *device_type;
    /**
     * What it is, for people.
     */
    const char *description;
    /**
     * The absolute path of the program.
     */
    const char *binary;
    /**
     * With VUF_BACKEND_SEARCH_ALL, the file that counts in place of this one;
     * otherwise NULL.
     */
    const char *hidden_by;
    /**
     * With VUF_BACKEND_SEARCH_ALL, why the file is of no use; otherwise NULL.
     */
    const char *problem;
    /**
     * What the program can do, as "read-only"; NULL before vuf_backend_programs_ask(),
     * and where there is nothing.
     */
    const char *const *features;
    /**
     * How many features.
     */
    size_t n_features;
    /**
     * 1: vuf_backend_programs_ask() has been answered.
     */
    uint32_t asked;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * How a back-end is started. Set size to sizeof(struct vuf_backend_process_options)
 * and the rest to zero; zero is always the default.
 */
struct vuf_backend_process_options {
    /**
     * sizeof(struct vuf_backend_process_options)
     */
    size_t size;
    /**
     * Its arguments, without the program's name and without the socket; the last is
     * NULL. NULL for none.
     */
    const char *const *arguments;
    /**
     * Its environment, "NAME=value" each; the last is NULL. NULL for this
     * process's.
     */
    const char *const *environment;
    /**
     * Its standard output, borrowed; 0 for this process's, -1 for none (/dev/null).
     */
    int stdout_fd;
    /**
     * Its standard error, likewise.
     */
    int stderr_fd;
    /**
     * VUF_BACKEND_PROCESS_*
     */
    uint32_t flags;
    /**
     * Zero.
     */
    uint32_t reserved;
};

/**
 * How a back-end has ended. Set size to sizeof(struct vuf_backend_exit) before the
 * call.
 */
struct vuf_backend_exit {
    /**
     * sizeof(struct vuf_backend_exit)
     */
    size_t size;
    /**
     * VUF_BACKEND_EXIT_*
     */
    uint32_t kind;
    /**
     * The exit status, or the number of the signal.
     */
    int32_t value;
};

/**
 * All functions of the library, each under its own name (vuf_get_api()).
 */
struct vuf_api {
    /**
     * How many bytes of the table there are: see VUF_API_HAS().
     */
    size_t size;
    /**
     * VUF_API_VERSION.
     */
    uint32_t version;
    /**
     * 0.
     */
    uint32_t reserved;
    uint32_t (*vuf_version)(void);
    const char *(*vuf_strerror)(int rc);
    uint32_t (*vuf_error_class)(int rc);
    const char *(*vuf_last_error)(void);
    int (*vuf_last_error_info)(struct vuf_error_info *info);
    const char *(*vuf_request_name)(uint32_t request);
    const char *(*vuf_protocol_feature_name)(uint32_t bit);
    uint64_t (*vuf_supported_protocol_features)(void);
    int (*vuf_client_from_fd)(int fd,
                              const struct vuf_client_options *options,
                              struct vuf_client **out);
    int (*vuf_client_connect)(const char *path,
                              const struct vuf_client_options *options,
                              struct vuf_client **out);
    int (*vuf_client_accept)(int listen_fd,
                             const struct vuf_client_options *options,
                             struct vuf_client **out);
    void (*vuf_client_free)(struct vuf_client *client);
    int (*vuf_client_abort)(struct vuf_client *client);
    int (*vuf_client_get_fd)(const struct vuf_client *client);
    int (*vuf_client_get_features)(struct vuf_client *client, uint64_t *features);
    int (*vuf_client_set_features)(struct vuf_client *client, uint64_t features);
    int (*vuf_client_get_protocol_features)(struct vuf_client *client,
                                            uint64_t *features);
    int (*vuf_client_set_protocol_features)(struct vuf_client *client,
                                            uint64_t features);
    int (*vuf_client_set_owner)(struct vuf_client *client);
    int (*vuf_client_reset_owner)(struct vuf_client *client);
    int (*vuf_client_get_queue_num)(struct vuf_client *client, uint64_t *num);
    int (*vuf_client_get_max_mem_slots)(struct vuf_client *client,
                                        uint64_t *slots);
    int (*vuf_client_set_mem_table)(struct vuf_client *client,
                                    const struct vuf_mem_region *regions,
                                    size_t n);
    int (*vuf_client_add_mem_region)(struct vuf_client *client,
                                     const struct vuf_mem_region *region);
    int (*vuf_client_remove_mem_region)(struct vuf_client *client,
                                        const struct vuf_mem_region *region);
    int (*vuf_client_set_log_base)(struct vuf_client *client,
                                   uint64_t mmap_size,
                                   uint64_t mmap_offset,
                                   int fd);
    int (*vuf_client_set_log_fd)(struct vuf_client *client, int fd);
    int (*vuf_client_set_vring_num)(struct vuf_client *client,
                                    uint32_t index,
                                    uint32_t num);
    int (*vuf_client_set_vring_addr)(struct vuf_client *client,
                                     uint32_t index,
                                     const struct vuf_vring_addr *addr);
    int (*vuf_client_set_vring_base)(struct vuf_client *client,
                                     uint32_t index,
                                     uint32_t base);
    int (*vuf_client_get_vring_base)(struct vuf_client *client,
                                     uint32_t index,
                                     uint32_t timeout_ms,
                                     uint32_t *base);
    int (*vuf_client_set_vring_kick)(struct vuf_client *client,
                                     uint32_t index,
                                     int fd);
    int (*vuf_client_set_vring_call)(struct vuf_client *client,
                                     uint32_t index,
                                     int fd);
    int (*vuf_client_set_vring_err)(struct vuf_client *client,
                                    uint32_t index,
                                    int fd);
    int (*vuf_client_set_vring_enable)(struct vuf_client *client,
                                       uint32_t index,
                                       bool enable);
    int (*vuf_client_get_config)(struct vuf_client *client,
                                 uint32_t offset,
                                 uint32_t flags,
                                 void *buf,
                                 size_t len);
    int (*vuf_client_set_config)(struct vuf_client *client,
                                 uint32_t offset,
                                 uint32_t flags,
                                 const void *buf,
                                 size_t len);
    int (*vuf_client_set_backend_req_fd)(struct vuf_client *client, int fd);
    int (*vuf_client_open_backend_channel)(struct vuf_client *client,
                                           const struct vuf_backend_ops *ops,
                                           void *user);
    int (*vuf_client_backend_fd)(const struct vuf_client *client);
    int (*vuf_client_process_backend_requests)(struct vuf_client *client);
    int (*vuf_client_get_inflight_fd)(struct vuf_client *client,
                                      uint16_t num_queues,
                                      uint16_t queue_size,
                                      struct vuf_inflight *inflight,
                                      int *fd);
    int (*vuf_client_set_inflight_fd)(struct vuf_client *client,
                                      const struct vuf_inflight *inflight,
                                      int fd);
    int (*vuf_client_set_device_state_fd)(struct vuf_client *client,
                                          uint32_t direction,
                                          uint32_t phase,
                                          int fd,
                                          int *reply_fd);
    int (*vuf_client_check_device_state)(struct vuf_client *client);
    int (*vuf_client_get_shmem_config)(struct vuf_client *client,
                                       struct vuf_shmem_config *config);
    int (*vuf_client_get_vring_base_skip_drain)(struct vuf_client *client,
                                                uint32_t index,
                                                uint32_t *base);
    int (*vuf_client_set_vring_endian)(struct vuf_client *client,
                                       uint32_t index,
                                       uint32_t endian);
    int (*vuf_client_vring_kick)(struct vuf_client *client, uint32_t index);
    int (*vuf_client_send_iotlb)(struct vuf_client *client,
                                 const struct vuf_iotlb *iotlb);
    int (*vuf_client_post_iotlb)(struct vuf_client *client,
                                 const struct vuf_iotlb *iotlb);
    int (*vuf_client_postcopy_advise)(struct vuf_client *client, int *fd);
    int (*vuf_client_postcopy_listen)(struct vuf_client *client);
    int (*vuf_client_postcopy_set_mem_table)(struct vuf_client *client,
                                             const struct vuf_mem_region *regions,
                                             size_t n,
                                             uint64_t *bases);
    int (*vuf_client_postcopy_ack_mem_table)(struct vuf_client *client);
    int (*vuf_client_postcopy_end)(struct vuf_client *client);
    int (*vuf_client_get_shared_object)(struct vuf_client *client,
                                        const uint8_t *uuid,
                                        int *fd);
    int (*vuf_client_reset_device)(struct vuf_client *client);
    int (*vuf_client_set_status)(struct vuf_client *client, uint32_t status);
    int (*vuf_client_get_status)(struct vuf_client *client, uint32_t *status);
    int (*vuf_client_send_rarp)(struct vuf_client *client, uint64_t mac);
    int (*vuf_client_net_set_mtu)(struct vuf_client *client, uint32_t mtu);
    int (*vuf_client_gpu_set_socket)(struct vuf_client *client, int fd);
    int (*vuf_client_create_crypto_session)(struct vuf_client *client,
                                            const struct vuf_crypto_session *session,
                                            uint64_t *session_id);
    int (*vuf_client_close_crypto_session)(struct vuf_client *client,
                                           uint64_t session_id);
    int (*vuf_client_set_trace)(struct vuf_client *client,
                                void (*callback)(void *user,
                                                 const struct vuf_trace_record *record),
                                void *user);
    int (*vuf_client_get_counters)(const struct vuf_client *client,
                                   struct vuf_counters *counters);
    int (*vuf_memfd_create)(const char *name,
                            uint64_t size,
                            uint64_t huge_page_size,
                            uint32_t flags,
                            int *fd);
    int (*vuf_dirty_log_sync)(void *log,
                              size_t log_size,
                              uint64_t first_page,
                              uint64_t pages,
                              void *bitmap,
                              uint64_t *new_pages);
    int (*vuf_device_open)(const char *path,
                           const struct vuf_device_options *options,
                           struct vuf_device **out);
    int (*vuf_device_listen)(const char *path,
                             uint32_t mode,
                             const struct vuf_device_options *options,
                             struct vuf_device **out);
    int (*vuf_device_open_fd)(int fd,
                              const struct vuf_device_options *options,
                              struct vuf_device **out);
    void (*vuf_device_free)(struct vuf_device *device);
    int (*vuf_device_get_fd)(const struct vuf_device *device);
    int (*vuf_device_process)(struct vuf_device *device,
                              struct vuf_device_event *event);
    int (*vuf_device_wait)(struct vuf_device *device, uint32_t timeout_ms);
    int (*vuf_device_get_info)(const struct vuf_device *device,
                               struct vuf_device_info *info);
    int (*vuf_device_get_counters)(const struct vuf_device *device,
                                   struct vuf_counters *counters);
    int (*vuf_device_set_trace)(struct vuf_device *device,
                                void (*callback)(void *user,
                                                 const struct vuf_trace_record *record),
                                void *user);
    int (*vuf_device_reconnect)(struct vuf_device *device);
    int (*vuf_device_set_fd)(struct vuf_device *device, int fd);
    int (*vuf_device_get_quiet)(const struct vuf_device *device,
                                struct vuf_quiet *quiet);
    int (*vuf_device_set_features)(struct vuf_device *device, uint64_t features);
    int (*vuf_device_read_config)(const struct vuf_device *device,
                                  uint32_t offset,
                                  void *buffer,
                                  size_t len,
                                  uint32_t *generation);
    int (*vuf_device_overlay_config)(struct vuf_device *device,
                                     uint32_t offset,
                                     const void *buffer,
                                     size_t len);
    int (*vuf_device_write_config)(struct vuf_device *device,
                                   uint32_t offset,
                                   const void *buffer,
                                   size_t len);
    int (*vuf_device_set_memory)(struct vuf_device *device,
                                 const struct vuf_mem_region *regions,
                                 size_t n,
                                 uint32_t flags);
    int (*vuf_device_add_memory)(struct vuf_device *device,
                                 const struct vuf_mem_region *region);
    int (*vuf_device_remove_memory)(struct vuf_device *device,
                                    uint64_t guest_addr,
                                    uint64_t size,
                                    struct vuf_quiet *quiet);
    int (*vuf_device_memory_fits)(const struct vuf_device *device,
                                  const struct vuf_mem_region *regions,
                                  size_t n);
    int (*vuf_device_get_memory_state)(const struct vuf_device *device,
                                       uint32_t *state);
    int (*vuf_memory_group_new)(struct vuf_memory_group **out);
    void (*vuf_memory_group_free)(struct vuf_memory_group *group);
    int (*vuf_memory_group_join)(struct vuf_memory_group *group,
                                 struct vuf_device *device);
    int (*vuf_memory_group_leave)(struct vuf_memory_group *group,
                                  struct vuf_device *device);
    int (*vuf_memory_group_set_memory)(struct vuf_memory_group *group,
                                       const struct vuf_mem_region *regions,
                                       size_t n,
                                       uint32_t flags);
    int (*vuf_memory_group_add_memory)(struct vuf_memory_group *group,
                                       const struct vuf_mem_region *region);
    int (*vuf_memory_group_remove_memory)(struct vuf_memory_group *group,
                                          uint64_t guest_addr,
                                          uint64_t size);
    int (*vuf_memory_group_memory_fits)(const struct vuf_memory_group *group,
                                        const struct vuf_mem_region *regions,
                                        size_t n);
    int (*vuf_memory_group_wait)(struct vuf_memory_group *group,
                                 uint32_t timeout_ms);
    int (*vuf_device_post_iotlb)(struct vuf_device *device,
                                 const struct vuf_iotlb *iotlb);
    int (*vuf_device_start)(struct vuf_device *device,
                            const struct vuf_ring *rings,
                            size_t n);
    int (*vuf_device_set_call)(struct vuf_device *device, uint32_t index, int fd);
    int (*vuf_device_stop)(struct vuf_device *device,
                           const uint32_t *rings,
                           size_t n,
                           uint32_t mode,
                           uint32_t timeout_ms,
                           struct vuf_quiet *quiet);
    int (*vuf_device_reset)(struct vuf_device *device,
                            uint32_t timeout_ms,
                            struct vuf_quiet *quiet);
    int (*vuf_device_get_vring_base)(const struct vuf_device *device,
                                     uint32_t index,
                                     uint32_t *base);
    int (*vuf_client_submit)(struct vuf_client *client,
                             const struct vuf_op *ops,
                             size_t n,
                             uint32_t flags,
                             uint32_t timeout_ms,
                             struct vuf_submit_result *result);
    const struct vuf_api *(*vuf_get_api)(uint32_t version);
    int (*vuf_backend_programs_find)(const struct vuf_backend_search *search,
                                     struct vuf_backend_programs **out,
                                     size_t *n);
    void (*vuf_backend_programs_free)(struct vuf_backend_programs *programs);
    int (*vuf_backend_programs_get)(const struct vuf_backend_programs *programs,
                                    size_t index,
                                    struct vuf_backend_program *program);
    int (*vuf_backend_programs_ask)(struct vuf_backend_programs *programs,
                                    size_t index,
                                    uint32_t timeout_ms);
    int (*vuf_backend_process_start)(const char *program,
                                     const struct vuf_backend_process_options *options,
                                     struct vuf_backend_process **out);
    void (*vuf_backend_process_free)(struct vuf_backend_process *process);
    int (*vuf_backend_process_get_pid)(const struct vuf_backend_process *process);
    int (*vuf_backend_process_get_fd)(const struct vuf_backend_process *process);
    int (*vuf_backend_process_take_socket)(struct vuf_backend_process *process,
                                           int *fd);
    int (*vuf_backend_process_signal)(struct vuf_backend_process *process,
                                      int signal);
    int (*vuf_backend_process_get_exit)(const struct vuf_backend_process *process,
                                        struct vuf_backend_exit *exit);
    int (*vuf_backend_process_wait)(struct vuf_backend_process *process,
                                    uint32_t timeout_ms,
                                    struct vuf_backend_exit *exit);
    int (*vuf_backend_process_terminate)(struct vuf_backend_process *process,
                                         uint32_t timeout_ms,
                                         struct vuf_backend_exit *exit);
    int (*vuf_device_set_process)(struct vuf_device *device,
                                  struct vuf_backend_process *process);
    const char *(*vuf_device_event_name)(uint32_t kind);
    int (*vuf_device_get_virtio_status)(const struct vuf_device *device,
                                        uint8_t written,
                                        uint8_t *status);
    int (*vuf_device_wait_connected)(struct vuf_device *device,
                                     uint32_t timeout_ms);
    const char *(*vuf_virtio_feature_name)(uint32_t device_id, uint32_t bit);
    int (*vuf_device_set_config_size)(struct vuf_device *device, uint32_t size);
    int (*vuf_device_read_current_config)(const struct vuf_device *device,
                                          uint32_t offset,
                                          void *buffer,
                                          size_t len,
                                          uint32_t *generation);
    int (*vuf_device_wait_config)(struct vuf_device *device, uint32_t timeout_ms);
    int (*vuf_device_assume_config)(struct vuf_device *device,
                                    uint32_t offset,
                                    const void *buffer,
                                    size_t len);
    int (*vuf_device_set_mtu)(struct vuf_device *device, uint32_t mtu);
    int (*vuf_device_set_vring_endian)(struct vuf_device *device,
                                       uint32_t endian);
    int (*vuf_device_is_connected)(const struct vuf_device *device);
    int (*vuf_device_is_settled)(const struct vuf_device *device);
    int (*vuf_device_get_offered_features)(const struct vuf_device *device,
                                           uint64_t *features);
    int (*vuf_device_get_generation)(const struct vuf_device *device,
                                     uint64_t *generation,
                                     uint64_t *applied);
    int (*vuf_device_options_for)(uint32_t device_id,
                                  struct vuf_device_options *options);
    int (*vuf_device_config_size_for)(uint32_t device_id,
                                      uint64_t features,
                                      uint32_t *size);
    int (*vuf_device_hidden_features_for)(uint32_t device_id, uint64_t *features);
    const char *(*vuf_device_ring_name)(uint32_t device_id,
                                        uint32_t index,
                                        uint32_t num_rings);
    int (*vuf_device_send_rarp)(struct vuf_device *device, uint64_t mac);
    int (*vuf_device_set_gpu_socket)(struct vuf_device *device, int fd);
    int (*vuf_device_get_backend_status)(struct vuf_device *device,
                                         uint32_t timeout_ms,
                                         uint32_t *status);
    int (*vuf_device_get_shared_object)(struct vuf_device *device,
                                        const uint8_t *uuid,
                                        uint32_t timeout_ms,
                                        int *fd);
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
 *   -EINVAL  info is NULL, or its size is too small
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
 * Names a virtio feature.
 *
 * device_id  the virtio device ID, such as 2 for a block device; 0 for the bits that
 *            are common to all types
 * bit        its number
 *
 * Returns the name, such as "VIRTIO_F_VERSION_1" or "VIRTIO_BLK_F_FLUSH", or NULL if this
 * library knows none for this bit of this type.
 */
const char *vuf_virtio_feature_name(uint32_t device_id,
                                    uint32_t bit);

/**
 * Tells which protocol features this library serves.
 *
 * Acknowledge with vuf_client_set_protocol_features() only bits that the
 * back-end offers, that you want, and that are set here. Some bind you to more
 * than a new request: with VUF_PROTOCOL_F_STATUS DPDK waits for
 * vuf_client_set_status(), with VUF_PROTOCOL_F_INFLIGHT_SHMFD libvhost-user for
 * vuf_client_set_inflight_fd(), VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS rules postcopy
 * out, and VUF_PROTOCOL_F_XEN_MMAP and VUF_PROTOCOL_F_GPA_ADDRESSES change what
 * a memory region is.
 *
 * Returns a mask: bit n is set for VUF_PROTOCOL_F_* n. Never fails.
 */
uint64_t vuf_supported_protocol_features(void);

/**
 * Makes a client from a connected socket.
 *
 * fd       a connected Unix stream socket; taken on success: the client closes
 *          it, and sets its close-on-exec flag and its receive timeout (which
 *          another process that holds the same socket must leave alone). A number
 *          below 3 is closed, and a duplicate takes its place.
 * options  NULL for the defaults; read during the call
 * out      gets the client; NULL on failure
 *
 * Nothing is sent.
 *
 * Returns 0, otherwise
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
 * listen_fd  a listening Unix stream socket; borrowed. If it blocks, its receive
 *            timeout is set for a moment and restored; threads and processes that
 *            accept from it take turns.
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
 * ones, unless an argument of theirs is refused. The client stays and has to be
 * freed.
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
 *                         library does not serve, or without what they need:
 *                         VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT needs
 *                         _INFLIGHT_SHMFD, _GET_VRING_BASE_SKIP_DRAIN both of
 *                         these, _INBAND_NOTIFICATIONS _BACKEND_REQ and
 *                         _REPLY_ACK
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
 *   -EINVAL      regions is NULL, n is out of range, or a region is not valid:
 *                size 0, an offset that is not page-aligned, an end (of guest
 *                or user addresses or in the file) beyond 64 bits, two that
 *                overlap, fd 0, a field that must be zero, an unknown Xen flag
 *                (without VUF_PROTOCOL_F_XEN_MMAP: any), or user_addr is not
 *                guest_addr with VUF_PROTOCOL_F_GPA_ADDRESSES
 *   -EBADF       a region's fd is negative or not open
 *   VUF_E_STATE  vuf_client_postcopy_listen() was called: the table is sent with
 *                vuf_client_postcopy_set_mem_table()
 *   VUF_E_NACK   the back-end refused; the old table may be gone
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
 *   VUF_E_STATE           the back-end listens for page faults
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
 *   VUF_E_STATE           the back-end listens for page faults
 *   VUF_E_NACK            the back-end refused, as when it knows no such region
 * or a common code.
 */
int vuf_client_remove_mem_region(struct vuf_client *client,
                                 const struct vuf_mem_region *region);

/**
 * Lets the back-end use a translation of its IOMMU, or no longer (IOTLB_MSG).
 *
 * Needs VIRTIO_F_ACCESS_PLATFORM (bit 33) acknowledged with
 * vuf_client_set_features(): ring and buffer addresses are then I/O virtual
 * addresses. Before a ring is enabled its own memory has to be translated, or
 * the back-end asks for it on its channel.
 *
 * iotlb  the entry; read during the call
 *
 * Returns 0 once the back-end has taken it over, otherwise
 *   -EINVAL               iotlb is NULL, type or perm is unknown, size is 0, an
 *                         end is beyond 64 bits, or a reserved field is not
 *                         zero
 *   VUF_E_NOT_NEGOTIATED  VIRTIO_F_ACCESS_PLATFORM was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_send_iotlb(struct vuf_client *client,
                          const struct vuf_iotlb *iotlb);

/**
 * The same without waiting: queues the message (IOTLB_MSG) and returns. The
 * answer is taken when it comes; a refusal is counted and not told.
 *
 * The one function that sends and may be called from iotlb_miss in struct
 * vuf_backend_ops.
 *
 * iotlb  as for vuf_client_send_iotlb()
 *
 * Returns 0, otherwise
 *   -EINVAL               as for vuf_client_send_iotlb()
 *   -EAGAIN               256 of these have no answer yet
 *   VUF_E_NOT_NEGOTIATED  VIRTIO_F_ACCESS_PLATFORM was not acknowledged
 * or a common code.
 */
int vuf_client_post_iotlb(struct vuf_client *client,
                          const struct vuf_iotlb *iotlb);

/**
 * Tells the back-end where to log the pages that it writes (SET_LOG_BASE).
 *
 * Needs VUF_PROTOCOL_F_LOG_SHMFD. Before VUF_F_LOG_ALL is acknowledged, and
 * again to switch to another log. Bit n of the log stands for the 4096 bytes
 * at guest address n * 4096; the back-end sets bits atomically, and
 * vuf_dirty_log_sync() takes them out. A log that is too small makes back-ends
 * abort or drop pages: it must reach to the end of guest memory.
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
 * fd  the eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
 *     duplicate
 *
 * Returns 0, otherwise
 *   -EINVAL     fd is a file, a directory or a device
 *   -EBADF      fd is negative or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_log_fd(struct vuf_client *client,
                          int fd);

/**
 * Moves marks from a dirty log to a bitmap of the caller's.
 *
 * The log is memory that the caller has mapped (shared) and that back-ends got
 * with vuf_client_set_log_base(). Bits that are set there for the wanted pages are
 * cleared, atomically, and set in the bitmap, whose other bits stay. Back-ends go
 * on writing: a mark that is made meanwhile is taken, too, or stays for the next
 * time. What lies in the log is not trusted with anything. Nothing is sent.
 *
 * A back-end can make a file that it was given shorter; reading what was mapped there
 * then ends the program with SIGBUS. So seal the file of the log (F_SEAL_SHRINK) before
 * it is sent: vuf_memfd_create() does with VUF_MEMFD_SEAL.
 *
 * Both are arrays of bytes whose bit n is bit n % 8 of byte n / 8, on machines of
 * either byte order. In the log, bit n is the 4096 bytes at guest address n * 4096,
 * whatever pages the machine has. In the bitmap, bit n is page first_page + n, as in
 * the bitmap of a memory slot that KVM_GET_DIRTY_LOG fills.
 *
 * Take the marks first, and read the memory that they stand for afterwards: a write
 * that comes later is marked again. The last call of a migration comes when nothing is
 * written any more, each ring having been stopped by vuf_client_get_vring_base(), and
 * before VUF_F_LOG_ALL is taken back.
 *
 * Clean parts of the log cost what it takes to read them. It is fastest where log
 * is aligned to 64 bytes and first_page is a multiple of 512 (2 MiB), and slower
 * where there are marks and first_page is not a multiple of 8.
 *
 * log         the log; of it, only bits of wanted pages are changed. With pages 0
 *             it may be NULL.
 * log_size    its size in bytes
 * first_page  the first page that is wanted: its guest address / 4096
 * pages       how many pages are wanted; 0 is possible
 * bitmap      (pages + 7) / 8 bytes, apart from the log and not used by other
 *             threads meanwhile; what is behind the last page stays. With pages 0
 *             it may be NULL.
 * new_pages   gets how many bits of the bitmap were clear before, and are set now
 *
 * Any thread may call this at any time, several at once for the same log and
 * size (with a bitmap each: each mark goes to one of them).
 *
 * Returns 0, otherwise
 *   -EINVAL  log, bitmap or new_pages is NULL, or the log does not reach to
 *            first_page + pages; nothing has been changed
 */
int vuf_dirty_log_sync(void *log,
                       size_t log_size,
                       uint64_t first_page,
                       uint64_t pages,
                       void *bitmap,
                       uint64_t *new_pages);

/**
 * Makes a file in memory, to be shared as guest memory.
 *
 * For programs that have no way of their own to make one. It is full of zeros,
 * takes up memory only where it is written, and lives as long as it is mapped or
 * open anywhere. It can never be executed, where the kernel knows such files (Linux
 * 6.3), and takes no seals later. Nothing is sent.
 *
 * name            1 to 249 bytes; shows behind "memfd:" in /proc/PID/fd, and
 *                 need not be unique
 * size            of the file, in bytes; not 0
 * huge_page_size  in bytes, as 2097152; size is a multiple of it. 0 for pages
 *                 of the usual size. Huge pages are reserved by mmap(), which
 *                 fails with ENOMEM where there are too few.
 * flags           0 or VUF_MEMFD_SEAL
 * fd              gets the file: given (yours to close, close-on-exec); -1 on
 *                 failure
 *
 * Returns 0, otherwise
 *   -EINVAL  name or fd is NULL, name is empty or too long, size is 0 or not a
 *            multiple of huge_page_size, huge_page_size is not a power of two,
 *            or flags has unknown bits
 *   -EFBIG   size is above the process's limit for files (RLIMIT_FSIZE)
 *   -ENODEV  the machine has no huge pages of this size
 * or another negative errno from memfd_create(), ftruncate() or fcntl(), as
 * -EMFILE or -ENOMEM.
 */
int vuf_memfd_create(const char *name,
                     uint64_t size,
                     uint64_t huge_page_size,
                     uint32_t flags,
                     int *fd);

/**
 * Prepares a migration with postcopy (POSTCOPY_ADVISE).
 *
 * Needs VUF_PROTOCOL_F_PAGEFAULT, and VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS not
 * acknowledged. On the destination, while memory is still being copied.
 *
 * fd  gets the back-end's userfaultfd, which reports its page faults: given
 *     (yours to close, close-on-exec); -1 on failure
 *
 * Returns 0, otherwise
 *   -EINVAL               fd is NULL
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_STATE           the back-end listens already, or
 *                         VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS was acknowledged:
 *                         back-ends fail later
 *   VUF_E_NACK            the back-end has no userfaultfd
 * or a common code.
 */
int vuf_client_postcopy_advise(struct vuf_client *client, int *fd);

/**
 * Begins a postcopy migration (POSTCOPY_LISTEN).
 *
 * Needs VUF_PROTOCOL_F_PAGEFAULT. After vuf_client_postcopy_advise(), and before
 * any memory is shared on this connection. The memory table follows with
 * vuf_client_postcopy_set_mem_table(). rust-vmm back-ends answer this and
 * vuf_client_postcopy_end() only with VUF_PROTOCOL_F_REPLY_ACK.
 *
 * Returns 0 once the back-end listens, otherwise
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_STATE           vuf_client_postcopy_advise() has not been called,
 *                         memory was shared already, or the back-end listens
 *                         already
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_postcopy_listen(struct vuf_client *client);

/**
 * Tells the back-end which memory it may reach, and asks where it has mapped it
 * (SET_MEM_TABLE).
 *
 * Once, after vuf_client_postcopy_listen(). The back-end reports page faults by
 * its own addresses: once what they stand for is known to whoever serves the
 * userfaultfd, call vuf_client_postcopy_ack_mem_table(), after which the back-end
 * registers its memory there. Until that it takes nothing else, and every other
 * request on this client is refused with VUF_E_STATE. Beware: libvhost-user 10.0
 * answers with the user_addr that it was sent, wherever it maps the region.
 *
 * regions  array of n regions, as for vuf_client_set_mem_table()
 * n        1 to VUF_MAX_MEM_REGIONS
 * bases    gets n addresses: where each region begins in the back-end's own
 *          address space
 *
 * Returns 0, otherwise
 *   -EINVAL         bases is NULL, or as for vuf_client_set_mem_table()
 *   -EBADF          a region's fd is negative or not open
 *   VUF_E_STATE     not after vuf_client_postcopy_listen(), or a second time
 *   VUF_E_PROTOCOL  the answer is not the table that was sent
 * or a common code.
 */
int vuf_client_postcopy_set_mem_table(struct vuf_client *client,
                                      const struct vuf_mem_region *regions,
                                      size_t n,
                                      uint64_t *bases);

/**
 * Says that page faults at the back-end's addresses will be served
 * (SET_MEM_TABLE).
 *
 * Once, after vuf_client_postcopy_set_mem_table(). Rings may be started then.
 *
 * Returns 0 once it is sent, otherwise
 *   VUF_E_STATE  not after vuf_client_postcopy_set_mem_table()
 * or a common code.
 */
int vuf_client_postcopy_ack_mem_table(struct vuf_client *client);

/**
 * Ends a postcopy migration (POSTCOPY_END).
 *
 * Needs VUF_PROTOCOL_F_PAGEFAULT. Once all memory is there; close the
 * userfaultfd afterwards.
 *
 * Returns 0 once the back-end has ended it, otherwise
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_STATE           not after vuf_client_postcopy_listen(), or before
 *                         vuf_client_postcopy_ack_mem_table()
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_postcopy_end(struct vuf_client *client);

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
 * Stops a ring at once and tells where it stood (GET_VRING_BASE_SKIP_DRAIN).
 *
 * Needs VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN. Like
 * vuf_client_get_vring_base(), but nothing is finished first: what the back-end
 * has taken stands in the in-flight buffer, for whoever serves the ring next.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * base   gets what vuf_client_set_vring_base() takes; of a packed ring as the
 *        back-end sent it
 *
 * Returns 0, otherwise
 *   -EINVAL               index is out of range, or base is NULL
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_PROTOCOL        the reply is for another ring or out of range
 * or a common code.
 */
int vuf_client_get_vring_base_skip_drain(struct vuf_client *client,
                                         uint32_t index,
                                         uint32_t *base);

/**
 * Tells the byte order of a ring (SET_VRING_ENDIAN).
 *
 * Needs VUF_PROTOCOL_F_CROSS_ENDIAN. For a legacy driver whose byte order is not
 * this machine's; with VIRTIO_F_VERSION_1 rings are little-endian anyway. While
 * the ring is stopped.
 *
 * index   the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * endian  VUF_VRING_LITTLE_ENDIAN or VUF_VRING_BIG_ENDIAN
 *
 * Returns 0, otherwise
 *   -EINVAL               index is out of range, or endian is neither
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_endian(struct vuf_client *client,
                                uint32_t index,
                                uint32_t endian);

/**
 * Tells what the driver writes to notify the device, and starts the ring
 * (SET_VRING_KICK).
 *
 * The last message about a ring before vuf_client_set_vring_enable(). Write the
 * descriptor once afterwards, for entries that were made available before.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * fd     an eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
 *        duplicate. -1 for none: the back-end shall poll. Beware: rust-vmm back-ends acknowledge -1 and
 *        never start the ring, and libvhost-user cannot resume in-flight
 *        requests without a descriptor. Always pass a real one if you can.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range, or fd is a file, a directory or a device
 *   -EBADF      fd is below -1 or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_kick(struct vuf_client *client,
                              uint32_t index,
                              int fd);

/**
 * Notifies the device by a message in place of a descriptor, and starts the
 * ring (VRING_KICK).
 *
 * Needs VUF_PROTOCOL_F_INBAND_NOTIFICATIONS. For a ring whose
 * vuf_client_set_vring_kick() got -1.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 *
 * Returns 0 once the back-end has seen it, otherwise
 *   -EINVAL               index is out of range
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_vring_kick(struct vuf_client *client, uint32_t index);

/**
 * Tells what the device writes to notify the driver (SET_VRING_CALL).
 *
 * At any time; a swap while the ring runs is complete when this returns.
 * Expect a call without a cause: some back-ends write the descriptor at once.
 *
 * index  the ring: 0 to VUF_MAX_RING_INDEX, and below options.max_rings
 * fd     an eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
 *        duplicate. -1 for none: the driver polls.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range, or fd is a file, a directory or a device
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
 * fd     an eventfd, or one end of a pipe or socket; borrowed: the back-end gets a
 *        duplicate. -1 for none.
 *
 * Returns 0, otherwise
 *   -EINVAL     index is out of range, or fd is a file, a directory or a device
 *   -EBADF      fd is below -1 or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_set_vring_err(struct vuf_client *client,
                             uint32_t index,
                             int fd);

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
 * Sends many requests without waiting for the answer to one before the next, and
 * then has seen that each was processed.
 *
 * Up to 64 requests are on their way at once, up to 16 of those with descriptors,
 * and one system call sends as many. With VUF_PROTOCOL_F_REPLY_ACK every one is
 * acknowledged. Without it a GET_FEATURES behind the last shows that the back-end
 * has processed them all; what it refused cannot be told then.
 *
 * All of them are checked, with what was agreed before the call, before the first
 * is sent. One that is refused ends the sending: the client stays of use, and those
 * that were on their way have been processed or refused when this returns. After
 * any other failure none is sent any more, and what became of those that were on
 * their way is not known.
 *
 * ops         n requests; read during the call
 * n           up to VUF_MAX_OPS; 0 is fine
 * flags       0
 * timeout_ms  how long all of it may take. VUF_TIMEOUT_DEFAULT: each answer, from
 *             the one before it, as long as that of the function would; also
 *             VUF_TIMEOUT_FOREVER
 * result      gets what became of them, also on failure, unless nothing was looked
 *             at; NULL if that is not wanted
 *
 * Returns 0 if all were processed, otherwise what the function of the first that
 * failed would have returned, or
 *   -EINVAL   ops or result is not valid, flags is not 0, a request cannot be in a
 *             list, or a field is set that it does not have: nothing was sent
 *   -E2BIG    n is above VUF_MAX_OPS, or result->size above 65536: likewise
 * or a common code.
 */
int vuf_client_submit(struct vuf_client *client,
                      const struct vuf_op *ops,
                      size_t n,
                      uint32_t flags,
                      uint32_t timeout_ms,
                      struct vuf_submit_result *result);

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
 *   VUF_E_PROTOCOL        the description and the descriptor do not match, or the
 *                         file cannot be mapped as described: it is too short, not
 *                         open for reading and writing, or a directory, pipe or
 *                         socket
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
 * Asks for the file of an object that the back-end shares (GET_SHARED_OBJECT).
 *
 * Needs VUF_PROTOCOL_F_SHARED_OBJECT. The back-end has announced the object on
 * its channel.
 *
 * uuid  the object's 16 bytes, as they were announced; read during the call
 * fd    gets the file: given (yours to close, close-on-exec); -1 on failure
 *
 * Returns 0, otherwise
 *   -EINVAL               uuid or fd is NULL
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end has no such object
 * or a common code.
 */
int vuf_client_get_shared_object(struct vuf_client *client,
                                 const uint8_t *uuid,
                                 int *fd);

/**
 * Resets the device (RESET_DEVICE).
 *
 * Needs VUF_PROTOCOL_F_RESET_DEVICE. Stop every ring with
 * vuf_client_get_vring_base() first: not all back-ends do. Afterwards rings are
 * disabled, and the virtio features count as not acknowledged: the way back
 * begins with vuf_client_set_features(). Protocol features, owner and memory
 * stay; an in-flight buffer has to be made anew, and the device's shared memory
 * unmapped.
 *
 * Returns 0 once the back-end has done so, otherwise
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_reset_device(struct vuf_client *client);

/**
 * Tells the back-end the device status (SET_STATUS).
 *
 * Needs VUF_PROTOCOL_F_STATUS, and with it back-ends wait for it: DPDK starts
 * no ring before DRIVER_OK. 0 resets the device: what it had mapped of its shared
 * memory is unmapped. The virtio features count as acknowledged still, as back-ends
 * differ in whether they forget them.
 *
 * status  VIRTIO_CONFIG_S_* of the driver, 8 bits
 *
 * Returns 0 once the back-end has taken it over, otherwise
 *   -EINVAL               status is above 255
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_set_status(struct vuf_client *client,
                          uint32_t status);

/**
 * Asks the back-end for the device status (GET_STATUS).
 *
 * Needs VUF_PROTOCOL_F_STATUS. The back-end may have cleared FEATURES_OK, or
 * set NEEDS_RESET.
 *
 * status  gets the 8 bits
 *
 * Returns 0, otherwise
 *   -EINVAL               status is NULL
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_PROTOCOL        the answer is above 255
 * or a common code.
 */
int vuf_client_get_status(struct vuf_client *client, uint32_t *status);

/**
 * Asks which shared memory regions the device has (GET_SHMEM_CONFIG).
 *
 * Needs VUF_PROTOCOL_F_SHMEM. They do not change while the connection lives.
 *
 * config  set config->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL               config is NULL, or its size is too small
 *   -E2BIG                its size is above 65536
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_PROTOCOL        the answer names more regions than there can be
 * or a common code.
 */
int vuf_client_get_shmem_config(struct vuf_client *client,
                                struct vuf_shmem_config *config);

/**
 * Has a network device announce an address to its network (SEND_RARP).
 *
 * Needs VUF_PROTOCOL_F_RARP. After a migration, where the driver does not do so
 * itself (VIRTIO_NET_F_GUEST_ANNOUNCE).
 *
 * mac  the address: its first octet in bits 0-7, its last one in bits 40-47
 *
 * Returns 0, otherwise
 *   -EINVAL               mac has more than 48 bits
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_send_rarp(struct vuf_client *client, uint64_t mac);

/**
 * Tells a network device its largest frame (NET_SET_MTU).
 *
 * Needs VUF_PROTOCOL_F_MTU, and VIRTIO_NET_F_MTU (bit 3) acknowledged with
 * vuf_client_set_features().
 *
 * mtu  the maximum transmission unit in bytes: 68 to 65535
 *
 * Returns 0, otherwise
 *   -EINVAL               mtu is out of range
 *   VUF_E_NOT_NEGOTIATED  one of the features was not acknowledged
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_net_set_mtu(struct vuf_client *client, uint32_t mtu);

/**
 * Gives a GPU back-end the socket to the display (GPU_SET_SOCKET).
 *
 * Needs no feature; only GPU back-ends know it. What is spoken there is the
 * vhost-user-gpu protocol, which this library does not serve.
 *
 * fd  one end of a Unix stream socket pair; borrowed: the back-end gets a
 *     duplicate. Close your copy of it afterwards.
 *
 * Returns 0, otherwise
 *   -EBADF      fd is negative or not open
 *   VUF_E_NACK  the back-end refused
 * or a common code.
 */
int vuf_client_gpu_set_socket(struct vuf_client *client, int fd);

/**
 * Creates a session of a crypto device (CREATE_CRYPTO_SESSION).
 *
 * Needs VUF_PROTOCOL_F_CRYPTO_SESSION. The library wipes its own copies of the
 * keys, with two exceptions: the back-end's answer may repeat them, and stays in
 * buffers of the client until another answer takes its place or the client's
 * memory is used again; and while the socket is full, what is to be sent waits
 * in memory that is not wiped.
 *
 * session     what to create; read during the call
 * session_id  gets the number of the session
 *
 * Returns 0, otherwise
 *   -EINVAL               an argument is NULL, op_code creates no session, a
 *                         key is longer than its room, the part that op_code
 *                         does not choose or a reserved field is not zero, or
 *                         session->size is too small
 *   -E2BIG                session has fields that the library does not know
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused; the value in struct
 *                         vuf_error_info is its negative answer
 * or a common code.
 */
int vuf_client_create_crypto_session(struct vuf_client *client,
                                     const struct vuf_crypto_session *session,
                                     uint64_t *session_id);

/**
 * Ends a session of a crypto device (CLOSE_CRYPTO_SESSION).
 *
 * Needs VUF_PROTOCOL_F_CRYPTO_SESSION.
 *
 * session_id  as vuf_client_create_crypto_session() told it
 *
 * Returns 0, otherwise
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_NACK            the back-end refused, as when there is no such session
 * or a common code.
 */
int vuf_client_close_crypto_session(struct vuf_client *client,
                                    uint64_t session_id);

/**
 * Gives the back-end a channel on which it can ask (SET_BACKEND_REQ_FD), and
 * serves it: the library makes a socket pair, sends one end, and reads and
 * answers on the other.
 *
 * Needs VUF_PROTOCOL_F_BACKEND_REQ, and is for once on a connection. Where
 * VUF_PROTOCOL_F_SHMEM was acknowledged, vuf_client_get_shmem_config() comes
 * before: a mapping is refused whose region is not known.
 *
 * From here on every call on this client that waits for the back-end serves the
 * channel meanwhile, so that a back-end which asks before it answers is not
 * left waiting. For the rest of the time poll vuf_client_backend_fd() and call
 * vuf_client_process_backend_requests().
 *
 * ops   the functions to call; read during the call. See struct vuf_backend_ops.
 * user  passed to each of them
 *
 * Returns 0, otherwise
 *   -EINVAL               ops is NULL, its size is too small, or shmem_map and
 *                         shmem_unmap are not both there
 *   -E2BIG                ops has fields that this version does not know
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
 *   VUF_E_STATE           there is a channel already
 *   VUF_E_NACK            the back-end refused
 * or a common code.
 */
int vuf_client_open_backend_channel(struct vuf_client *client,
                                    const struct vuf_backend_ops *ops,
                                    void *user);

/**
 * Tells the file descriptor that is readable while
 * vuf_client_process_backend_requests() has something to do; for polling only
 * (level-triggered). It also becomes ready when another thread's call has
 * taken in what the back-end asked, and when the channel has ended.
 *
 * Takes no lock; may be called from any thread.
 *
 * Returns the descriptor (borrowed, valid until the client is freed), or
 * -EINVAL if client is NULL, VUF_E_STATE before
 * vuf_client_open_backend_channel().
 */
int vuf_client_backend_fd(const struct vuf_client *client);

/**
 * Serves what the back-end has asked on its channel, without waiting, and calls
 * the functions that only this call runs. It does a bounded part of the work
 * (at most 64 requests and 64 functions); the descriptor stays readable while
 * there is more.
 *
 * Returns 0 also when there was nothing to do. Once the channel has ended and
 * nothing is left, it returns why, each time: take the descriptor out of your
 * loop then.
 *   -EINVAL              client is NULL
 *   -ECANCELED           vuf_client_abort() was called
 *   VUF_E_DISCONNECTED   the back-end closed the channel or the connection
 *   VUF_E_PROTOCOL       it broke the protocol on the channel, which is closed;
 *                        the connection goes on
 *   VUF_E_POISONED       an earlier failure of the connection
 *   VUF_E_STATE          there is no channel, or one of the functions in ops
 *                        called this
 */
int vuf_client_process_backend_requests(struct vuf_client *client);

/**
 * Has a function called for every message on the connection and on the back-end's
 * channel, in each direction.
 *
 * Messages come in order and one at a time, but on whichever thread is inside a
 * call on this client. A request comes before its reply is waited for, so that
 * the last one shows what a back-end hangs at; a message of the back-end comes
 * before it is acted on. Nothing comes from vuf_client_abort() and
 * vuf_client_free(). With no function set, tracing costs nothing.
 *
 * The function must never wait for a lock that any thread holds while it calls
 * the library with this client, and of this client it may call only
 * vuf_client_abort(), vuf_client_get_fd(), vuf_client_backend_fd() and
 * vuf_client_get_counters(); others answer VUF_E_STATE. It takes its time from
 * the deadline of the call that it runs in. When it is slower than the messages
 * that other threads cause meanwhile, and more than 256 wait, the rest is left
 * out and counted. Nothing may be thrown or jumped through the library.
 *
 * callback  called with user and a record, both the library's (borrowed); NULL
 *           for none. Replaces the one set before, which is not running and will
 *           not be called any more once this returns.
 * user      passed to it
 *
 * Returns 0, otherwise
 *   -EINVAL      client is NULL
 *   VUF_E_STATE  called from the callback, or from a function of struct
 *                vuf_backend_ops that the back-end waits for
 */
int vuf_client_set_trace(struct vuf_client *client,
                         void (*callback)(void *user,
                                          const struct vuf_trace_record *record),
                         void *user);

/**
 * Tells what a client has done so far: messages, bytes, descriptors, refusals,
 * and the longest wait. All numbers begin at 0 and only grow, also across
 * failures; they are of one moment.
 *
 * Does not wait, sends nothing, and may be called from any thread, from the
 * callback of vuf_client_set_trace(), and on a connection that has ended.
 *
 * counters  set counters->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL  an argument is NULL, or the size is too small
 *   -E2BIG   the size is above 65536
 */
int vuf_client_get_counters(const struct vuf_client *client,
                            struct vuf_counters *counters);

/**
 * Fills in options for a device of this type: device_id, num_rings as the simplest device
 * of the type has, config_size, and protocol_features where the type makes use of more
 * than the default set. All else is zero, the default: change what you need, such as
 * num_rings for a device with more rings.
 *
 * config_size is VUF_CONFIG_SIZE_LATER where the size depends on the features:
 * vuf_device_config_size_for(). out_of_order is VUF_OUT_OF_ORDER_DEFAULT, whose meaning
 * depends on device_id.
 *
 * device_id  the virtio device ID: 1 (network), 2 (block), 3 (console), 4 (entropy),
 *            8 (SCSI host), 16 (GPU), 18 (input), 19 (socket), 25 (sound), 26 (file
 *            system), 34 (I2C adapter) or 41 (GPIO)
 * options    set options->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL  options is NULL, options->size is not set, or the type has no preset
 *   -E2BIG   options->size is above 65536
 */
int vuf_device_options_for(uint32_t device_id,
                           struct vuf_device_options *options);

/**
 * Returns how many bytes the configuration space of a device has whose guest is shown
 * these features: for vuf_device_set_config_size(), where
 * vuf_device_options_for() has VUF_CONFIG_SIZE_LATER. It is the size that the fields for
 * these features need. Some back-ends return no more, and refuse a larger size.
 *
 * device_id  as for vuf_device_options_for()
 * features   virtio features (a mask)
 * size       gets the number of bytes; 0 for a type without a configuration space, or
 *            whose space the back-end does not have (network)
 *
 * Returns 0, or -EINVAL if size is NULL or the type has no preset.
 */
int vuf_device_config_size_for(uint32_t device_id,
                               uint64_t features,
                               uint32_t *size);

/**
 * Returns the virtio features that a guest of a device of this type must not be shown only
 * because the back-end offers them: VUF_TRANSPORT_FEATURES, and those of the type that the
 * monitor has to implement. Of a network device these are the ones that need a control
 * ring, which back-ends do not serve, or a field of the configuration space; of a file
 * system VIRTIO_FS_F_NOTIFICATION, which gives the rings another order.
 *
 * device_id  as for vuf_device_options_for()
 * features   gets the mask
 *
 * Returns 0, or -EINVAL if features is NULL or the type has no preset.
 */
int vuf_device_hidden_features_for(uint32_t device_id,
                                   uint64_t *features);

/**
 * Names a ring of a device by its place, as the virtio specification does.
 *
 * device_id  as for vuf_device_options_for()
 * index      the ring
 * num_rings  how many the device has: a network device with an odd number has a control
 *            ring behind its pairs
 *
 * Returns the name, such as "requestq" or "receiveq" (without the number that the
 * specification gives rings of one kind), or NULL if the type has no preset or no such
 * ring.
 */
const char *vuf_device_ring_name(uint32_t device_id,
                                 uint32_t index,
                                 uint32_t num_rings);

/**
 * Makes a device whose back-end listens at a path, now or later.
 *
 * Nothing is sent before vuf_device_process() or vuf_device_wait() is called; they
 * connect, and connect again after each loss, forever.
 *
 * path     the socket's path, not necessarily UTF-8; of any length, but its last
 *          part of not much more than 80 bytes. A relative one is relative to the
 *          directory that the process has now, even if it changes that later.
 * options  NULL for the defaults; read during the call
 * out      gets the device; NULL on failure
 *
 * Returns 0 also where nobody listens, otherwise
 *   -EINVAL        an argument is NULL or empty, or an option is not valid
 *   -ENAMETOOLONG  the last part of path does not fit into a socket address
 *   -E2BIG         options has fields that this library does not know
 * or another negative errno from the system, as -EMFILE.
 */
int vuf_device_open(const char *path,
                    const struct vuf_device_options *options,
                    struct vuf_device **out);

/**
 * Makes a device whose back-end connects to a path, at which it listens until it
 * is freed; the file goes with it.
 *
 * While a back-end is in use others are turned away.
 *
 * path     where to listen, as for vuf_device_open(). A socket there whose owner
 *          is gone is replaced.
 * mode     permissions of the file, as chmod() takes them, whatever the umask:
 *          at most 0777
 * options  NULL for the defaults; read during the call
 * out      gets the device; NULL on failure
 *
 * Returns 0, otherwise
 *   -EINVAL        an argument is NULL or empty, or mode or an option is not
 *                  valid
 *   -EADDRINUSE    somebody listens there
 *   -EEXIST        something is there, and not a socket
 *   -ENAMETOOLONG  the last part of path does not fit into a socket address
 *   -E2BIG         options has fields that this library does not know
 * or another negative errno from the system, as -ENOENT for the directory.
 */
int vuf_device_listen(const char *path,
                      uint32_t mode,
                      const struct vuf_device_options *options,
                      struct vuf_device **out);

/**
 * Makes a device whose connections somebody else makes, as in a sandbox. After
 * each loss VUF_DEVICE_EVENT_NEEDS_FD asks for another: vuf_device_set_fd().
 *
 * fd       a connected Unix stream socket; taken on success. -1: one is supplied
 *          later.
 * options  NULL for the defaults; read during the call
 * out      gets the device; NULL on failure
 *
 * Returns 0, otherwise
 *   -EINVAL    an argument is NULL, an option is not valid, or fd is a socket of
 *              another kind or a listening one
 *   -EBADF     fd is below -1 or not open
 *   -ENOTSOCK  fd is not a socket
 *   -ENOTCONN  fd is not connected
 *   -E2BIG     options has fields that this library does not know
 * or another negative errno from the system, as -EMFILE.
 */
int vuf_device_open_fd(int fd,
                       const struct vuf_device_options *options,
                       struct vuf_device **out);

/**
 * Frees a device and closes its connection, without any traffic: back-ends then
 * stop by themselves, and may write guest memory until they have.
 *
 * Where that matters call vuf_device_stop() before, with a time to wait. Not from a
 * function that the library calls: then nothing is freed, but calls on the
 * device return -ECANCELED from then on. Calls that other threads have under
 * way return -ECANCELED; this one waits until they have, and until calls on its
 * group have let go of it. No call on the device may begin once this one has. In a
 * forked child it closes the child's copy and leaves the parent's connection alive.
 *
 * device  may be NULL, which does nothing
 */
void vuf_device_free(struct vuf_device *device);

/**
 * Tells the one file descriptor of a device to poll, level-triggered: readable
 * while vuf_device_process() has something to do or an event to give. It stays the
 * same over all connections.
 *
 * Never read from it, write to it or close it. Takes no lock; may be called from
 * any thread.
 *
 * Returns the descriptor (borrowed, valid until the device is freed), or
 * -EINVAL if device is NULL.
 */
int vuf_device_get_fd(const struct vuf_device *device);

/**
 * Performs a bounded amount of work without blocking, and returns the next event. The
 * descriptor stays readable while there is more.
 *
 * The caller's functions in options->backend_ops run in here.
 *
 * event  set event->size before the call; the rest is filled in, with kind
 *        VUF_DEVICE_EVENT_NONE if there is no event
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL, or event->size is too small
 *   -E2BIG       event->size is above 65536
 *   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
 *   VUF_E_STATE  called from a function that the library calls
 *   VUF_E_PANIC  a bug in this library
 * What happens to a connection is an event, and no failure.
 */
int vuf_device_process(struct vuf_device *device,
                       struct vuf_device_event *event);

/**
 * Waits until the back-end has acknowledged all that is wanted and has answered all
 * messages of vuf_device_post_iotlb(), and drives the device meanwhile. Events stay
 * for vuf_device_process().
 *
 * timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
 *
 * Returns 0, otherwise
 *   -EINVAL      device is NULL
 *   -ETIMEDOUT   not all was done in time; it still will be. vuf_last_error() and
 *                vuf_last_error_info() give the last cause: the socket cannot be
 *                reached, a required feature is missing, a connection was lost, or a
 *                request is unanswered, which one and for how long
 *   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
 *   -EBUSY       as VUF_E_NACK, of a ring that was started anew while its last run was
 *                being stopped and lost with that: it has unfinished requests in the
 *                in-flight buffer, which other rings use
 *   VUF_E_NACK   the back-end has refused a part of what is wanted, or lacks a ring that
 *                was to be started, and has confirmed the rest
 *                (VUF_DEVICE_EVENT_REFUSED). Until the caller asks again: for a region
 *                by a change of the memory, for a ring by vuf_device_start(), _stop() or
 *                _reset(), for a call descriptor also by vuf_device_set_call(), for an
 *                MTU by vuf_device_set_mtu().
 *                Or: all messages of vuf_device_post_iotlb() are answered, and the
 *                back-end has refused at least one (VUF_DEVICE_EVENT_IOTLB_REFUSED)
 *                that no earlier call of this function has returned for. Of several
 *                threads that wait at the time each gets it.
 *   VUF_E_STATE  rings that ran before a loss wait for vuf_device_reset(); or
 *                called from a function that the library calls
 *   VUF_E_PANIC  a bug in this library
 * or another negative errno from the system, such as -EMFILE.
 */
int vuf_device_wait(struct vuf_device *device,
                    uint32_t timeout_ms);

/**
 * Waits until there is a usable back-end: the handshake has gone through, and what is
 * required is offered. For programs that want an error when they start: it waits for a
 * back-end that does not listen yet, and returns at once if there is one that cannot be
 * used.
 *
 * Tries to connect now, as vuf_device_reconnect() does. After a failure the device
 * keeps trying, too. Events stay for vuf_device_process().
 *
 * timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
 *
 * Returns 0, also if it was connected before, otherwise
 *   -EINVAL               device is NULL
 *   -ETIMEDOUT            there is no back-end: vuf_last_error() says why, as for
 *                         vuf_device_wait(); or it took the connection and has not
 *                         answered within timeout_ms of the options
 *   -ECANCELED            the device is being freed, or an earlier call returned
 *                         VUF_E_PANIC
 *   VUF_E_NOT_NEGOTIATED  the back-end lacks a feature that is required, was assumed or
 *                         is acknowledged; vuf_last_error() names it
 *   VUF_E_NACK            the back-end refused a request
 *   VUF_E_PROTOCOL        the back-end broke the protocol
 *   VUF_E_DISCONNECTED    the back-end closed the connection during the handshake; for
 *                         a process of vuf_device_set_process() the text has its exit
 *                         status
 *   VUF_E_STATE           called from a function that the library calls
 *   VUF_E_PANIC           a bug in this library
 * or another negative errno, such as -E2BIG if the back-end cannot hold the memory.
 */
int vuf_device_wait_connected(struct vuf_device *device,
                              uint32_t timeout_ms);

/**
 * Returns what is known of a device and its back-end. Does not wait.
 *
 * info  set info->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL  an argument is NULL, or info->size is too small
 *   -E2BIG   info->size is above 65536
 */
int vuf_device_get_info(const struct vuf_device *device,
                        struct vuf_device_info *info);

/**
 * Tells what the connection that there is has done so far; see
 * vuf_client_get_counters(). Does not wait.
 *
 * counters  set counters->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL             an argument is NULL, or counters->size is too small
 *   -E2BIG              counters->size is above 65536
 *   VUF_E_DISCONNECTED  there is no connection
 */
int vuf_device_get_counters(const struct vuf_device *device,
                            struct vuf_counters *counters);

/**
 * Has a function called for every message, on this connection and all that
 * follow; see vuf_client_set_trace() for what it gets and may do. Of this device
 * it may call what neither waits nor processes.
 *
 * callback  called with user and a record, both the library's (borrowed); NULL
 *           for none. Replaces the one set before, which runs no more once this
 *           has returned: another thread's call of it is waited for.
 * user      passed to it
 *
 * Returns 0, otherwise
 *   -EINVAL      device is NULL
 *   VUF_E_STATE  called from a function that the library calls
 */
int vuf_device_set_trace(struct vuf_device *device,
                         void (*callback)(void *user,
                                          const struct vuf_trace_record *record),
                         void *user);

/**
 * Tries to connect now, however long the next attempt was put off. Does nothing
 * while there is a connection.
 *
 * Returns 0, or -EINVAL if device is NULL.
 */
int vuf_device_reconnect(struct vuf_device *device);

/**
 * Supplies a device of vuf_device_open_fd() with a connection. Also before it asks
 * for one: it is used after the next loss. Of several the last counts.
 *
 * fd  a connected Unix stream socket; taken on success
 *
 * Returns 0, otherwise
 *   -EINVAL      device is NULL, or fd is a socket of another kind or a listening
 *                one
 *   -EBADF       fd is negative or not open
 *   -ENOTSOCK    fd is not a socket
 *   -ENOTCONN    fd is not connected
 *   VUF_E_STATE  the device connects by itself
 */
int vuf_device_set_fd(struct vuf_device *device,
                      int fd);

/**
 * Supplies a device of vuf_device_open_fd() with the connection to a back-end that was
 * started by vuf_backend_process_start(), as vuf_device_set_fd() does, and with the
 * knowledge whom to kill (VUF_ON_UNFENCED_KILL). The process stays the caller's to
 * free; freed, it is killed, and the connection lost.
 *
 * process  borrowed; the device takes its socket
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL
 *   VUF_E_STATE  the device connects by itself, or the socket was taken before
 */
int vuf_device_set_process(struct vuf_device *device,
                           struct vuf_backend_process *process);

/**
 * Returns whether stopped rings and memory that was taken away are out of use, and
 * whether stopped rings can be resumed. Does not wait.
 *
 * quiet  set quiet->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL, or quiet->size is too small
 *   -E2BIG       quiet->size is above 65536
 */
int vuf_device_get_quiet(const struct vuf_device *device,
                         struct vuf_quiet *quiet);

/**
 * Names an event of a device.
 *
 * kind  its number, as VUF_DEVICE_EVENT_*
 *
 * Returns the name of the constant without VUF_DEVICE_EVENT_, as "CONNECTED", or
 * "unknown" for a number that this library never tells; never NULL.
 */
const char *vuf_device_event_name(uint32_t kind);

/**
 * States the virtio features that the guest's driver has acknowledged
 * (SET_FEATURES). They come before vuf_device_start(), and while no ring is
 * started.
 *
 * features  a subset of offered_features in struct vuf_device_info.
 *           VUF_F_PROTOCOL_FEATURES and VUF_F_LOG_ALL are the library's, and are
 *           passed over.
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL               device is NULL, or features has bits that are not offered
 *   -EBUSY                a ring is started
 *   VUF_E_STATE           what is offered is not known yet, and
 *                         options->assume_features is 0
 *   VUF_E_NOT_NEGOTIATED  features has VIRTIO_F_ACCESS_PLATFORM, and the back-end that
 *                         is connected has not agreed on VUF_PROTOCOL_F_BACKEND_REQ
 *                         and VUF_PROTOCOL_F_REPLY_ACK, without which translations do
 *                         not work: the text says which is missing and why. While no
 *                         back-end is connected the call succeeds, and a back-end
 *                         without these is refused when it connects. Or: features does
 *                         not have VIRTIO_F_VERSION_1, vuf_device_set_vring_endian()
 *                         has set another byte order than this machine's, and
 *                         VUF_PROTOCOL_F_CROSS_ENDIAN is missing, likewise.
 */
int vuf_device_set_features(struct vuf_device *device,
                            uint64_t features);

/**
 * Chooses how many bytes the configuration space has, where that depends on the
 * features that the back-end offers: open the device with VUF_CONFIG_SIZE_LATER, and
 * call this after VUF_DEVICE_EVENT_CONNECTED, when vuf_device_get_info() has
 * offered_features. The space is read then. The size stays for all later connections.
 *
 * A size may be replaced by another until a back-end has returned its configuration
 * space. So after VUF_DEVICE_EVENT_CONFIG_REFUSED, with GET_CONFIG for its request, a
 * smaller one can be tried.
 *
 * size  1 to VUF_MAX_CONFIG_SIZE
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL      device is NULL, or size is out of range
 *   -EBUSY       GET_CONFIG with another size has not been answered yet, or writes
 *                wait for the back-end
 *   VUF_E_STATE  the configuration space was read with another size, or
 *                options->config_size is 0
 */
int vuf_device_set_config_size(struct vuf_device *device,
                               uint32_t size);

/**
 * Reads the configuration space as the guest sees it: what the back-end returned
 * last, the guest's writes since, and the caller's own bytes on top. Never waits for
 * anything, and may be called from any thread, such as those of virtual CPUs.
 *
 * offset      where to begin, in bytes; offset + len is at most the size of the
 *             configuration space
 * buffer      gets len bytes; on failure its content is unchanged
 * len         1 to VUF_MAX_CONFIG_SIZE
 * generation  gets a number that changes with the content; NULL if it is not
 *             wanted. Read before and after it tells whether several reads belong
 *             together.
 *
 * Returns 0, otherwise
 *   -EINVAL      device or buffer is NULL, or a number is out of range
 *   VUF_E_STATE  no back-end has returned these bytes yet, or the size has not been
 *                set
 *   VUF_E_NACK   the back-end refuses to return its configuration space
 */
int vuf_device_read_config(const struct vuf_device *device,
                           uint32_t offset,
                           void *buffer,
                           size_t len,
                           uint32_t *generation);

/**
 * Reads the configuration space as vuf_device_read_config() does, but fails while the
 * back-end has not returned it since the last vuf_device_write_config(). For devices
 * whose content depends on what was written, such as virtio-input, where the guest
 * selects what it reads. Never waits; vuf_device_wait_config() does.
 *
 * offset      where to begin, in bytes; offset + len is at most the size of the
 *             configuration space
 * buffer      gets len bytes; on failure its content is unchanged
 * len         1 to VUF_MAX_CONFIG_SIZE
 * generation  as for vuf_device_read_config()
 *
 * Returns 0, otherwise
 *   -EINVAL           device or buffer is NULL, or a number is out of range
 *   -EAGAIN           the space has not been read since the last write
 *   VUF_E_STATE       no back-end has returned these bytes yet, or the size has not
 *                     been set
 *   VUF_E_NACK        the back-end refuses to return its configuration space
 *   VUF_E_NOT_NEGOTIATED  it has none any more
 */
int vuf_device_read_current_config(const struct vuf_device *device,
                                   uint32_t offset,
                                   void *buffer,
                                   size_t len,
                                   uint32_t *generation);

/**
 * Waits until a back-end has returned its configuration space, and has done so after
 * each vuf_device_write_config() that returned before this call. Drives the device
 * meanwhile, as vuf_device_wait() does; events stay for vuf_device_process(). A thread
 * of a virtual CPU that may block calls it before it reads.
 *
 * timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
 *
 * Returns 0, otherwise
 *   -EINVAL      device is NULL
 *   -ETIMEDOUT   it was not read in time
 *   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
 *   VUF_E_NACK   the back-end refuses to return its configuration space
 *   VUF_E_NOT_NEGOTIATED  it has none
 *   VUF_E_STATE  options->config_size is 0, the size has not been set, or called from
 *                a function that the library calls
 *   VUF_E_PANIC  a bug in this library
 * or another negative errno from the system, such as -EMFILE.
 */
int vuf_device_wait_config(struct vuf_device *device,
                           uint32_t timeout_ms);

/**
 * Supplies bytes of the configuration space that the guest reads until a back-end has
 * returned its own, which win: for a guest that is started without a back-end
 * (options->assume_features). If the back-end's differ, VUF_DEVICE_EVENT_CONFIG_CHANGED
 * says so. Does nothing once a back-end has returned its configuration space.
 *
 * offset  where to begin, in bytes; offset + len is at most the size of the
 *         configuration space
 * buffer  the bytes; read during the call
 * len     1 to VUF_MAX_CONFIG_SIZE
 *
 * Returns 0, otherwise
 *   -EINVAL      device or buffer is NULL, or a number is out of range
 *   VUF_E_STATE  the size has not been set
 */
int vuf_device_assume_config(struct vuf_device *device,
                             uint32_t offset,
                             const void *buffer,
                             size_t len);

/**
 * Makes bytes of the configuration space the caller's own: they win over the
 * back-end's, and what the guest writes to them stays here.
 *
 * offset  where to begin, in bytes; offset + len is at most the size of the
 *         configuration space
 * buffer  the bytes; read during the call
 * len     1 to VUF_MAX_CONFIG_SIZE
 *
 * Returns 0, otherwise
 *   -EINVAL      device or buffer is NULL, or a number is out of range
 *   VUF_E_STATE  the size has not been set
 */
int vuf_device_overlay_config(struct vuf_device *device,
                              uint32_t offset,
                              const void *buffer,
                              size_t len);

/**
 * The guest writes its configuration space: the back-end is told (SET_CONFIG),
 * except of bytes that are the caller's own. It may refuse:
 * VUF_DEVICE_EVENT_CONFIG_REFUSED; the connection and the rings go on. Writes are sent
 * one by one and in order. After them, refused or not, the space is read again, because
 * its content may depend on them: vuf_device_wait() includes that, and
 * vuf_device_read_current_config() fails until then.
 *
 * A write that a back-end has not confirmed when it is lost is told to the next; one
 * over which two were lost counts as refused. What was confirmed is the back-end's to
 * keep: if the next has something else, VUF_DEVICE_EVENT_CONFIG_CHANGED says so.
 * vuf_device_reset() ends writes that were not sent yet.
 *
 * offset  where to begin, in bytes; offset + len is at most the size of the
 *         configuration space
 * buffer  the bytes; read during the call
 * len     1 to VUF_MAX_CONFIG_SIZE
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL      device or buffer is NULL, or a number is out of range
 *   -EAGAIN      64 writes wait for the back-end
 *   VUF_E_STATE  the size has not been set
 */
int vuf_device_write_config(struct vuf_device *device,
                            uint32_t offset,
                            const void *buffer,
                            size_t len);

/**
 * Returns whether there is a connection whose handshake went through: connected in
 * struct vuf_device_info, without the rest of that struct. Takes a lock that is never
 * held while anything waits: vCPU threads may call it.
 *
 * Returns 1 or 0, otherwise
 *   -EINVAL     device is NULL
 *   -ECANCELED  the device is being freed, or an earlier call returned VUF_E_PANIC
 */
int vuf_device_is_connected(const struct vuf_device *device);

/**
 * Returns whether the back-end has acknowledged all that is wanted, and has answered all
 * messages of vuf_device_post_iotlb(): settled in struct vuf_device_info. Takes a lock
 * that is never held while anything waits: vCPU threads may call it.
 *
 * Returns 1 or 0, otherwise
 *   -EINVAL     device is NULL
 *   -ECANCELED  the device is being freed, or an earlier call returned VUF_E_PANIC
 */
int vuf_device_is_settled(const struct vuf_device *device);

/**
 * Returns the virtio features that the back-end offers, or offered last, or is assumed
 * to: offered_features in struct vuf_device_info. A guest is shown these without
 * VUF_TRANSPORT_FEATURES. Takes a lock that is never held while anything waits: vCPU
 * threads may call it.
 *
 * features  gets the mask
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL
 *   -ECANCELED   the device is being freed, or an earlier call returned VUF_E_PANIC
 *   VUF_E_STATE  what is offered is not known yet, and options->assume_features is 0
 */
int vuf_device_get_offered_features(const struct vuf_device *device,
                                    uint64_t *features);

/**
 * Returns up to where the desired state has been reached. What a call has recorded is
 * done once applied is at least the generation that this function returned after that
 * call. Takes a lock that is never held while anything waits: vCPU threads may call it.
 *
 * generation  gets the number of changes of the desired state so far
 * applied     gets the generation up to which the back-end has confirmed everything; 0
 *             while there is no connection
 *
 * Returns 0, otherwise
 *   -EINVAL     an argument is NULL
 *   -ECANCELED  the device is being freed, or an earlier call returned VUF_E_PANIC
 */
int vuf_device_get_generation(const struct vuf_device *device,
                              uint64_t *generation,
                              uint64_t *applied);

/**
 * Asks the back-end that is connected for its device status (GET_STATUS), and drives the
 * device while it waits. The status that a guest reads is another:
 * vuf_device_get_virtio_status().
 *
 * Needs VUF_PROTOCOL_F_STATUS. A back-end that does not answer within timeout_ms of the
 * options is lost.
 *
 * timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
 * status      gets the status
 *
 * Returns 0, otherwise
 *   -EINVAL               an argument is NULL
 *   -ETIMEDOUT            there is no answer in time
 *   -ECANCELED            the device is being freed, or an earlier call returned
 *                         VUF_E_PANIC
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not agreed with the back-end
 *   VUF_E_NACK            the back-end refused
 *   VUF_E_DISCONNECTED    there is no back-end, or it has closed the connection
 *   VUF_E_STATE           called from a function that the library calls
 *   VUF_E_PANIC           a bug in this library
 * or the code with which the connection was lost meanwhile.
 */
int vuf_device_get_backend_status(struct vuf_device *device,
                                  uint32_t timeout_ms,
                                  uint32_t *status);

/**
 * Asks the back-end that is connected for the file of an object that it exports
 * (GET_SHARED_OBJECT), and drives the device while it waits. Call it once
 * shared_object_added was called, from another thread or after that has returned, so that
 * shared_object_lookup of another device has the file at hand: it may not wait itself.
 *
 * Needs VUF_PROTOCOL_F_SHARED_OBJECT. A back-end that does not answer within timeout_ms of
 * the options is lost.
 *
 * uuid        the object's 16 bytes, as they were announced; read during the call
 * timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 60000
 * fd          gets the file: given (yours to close, close-on-exec); -1 on failure
 *
 * Returns 0, otherwise
 *   -EINVAL               an argument is NULL
 *   -ETIMEDOUT            there is no answer in time
 *   -ECANCELED            the device is being freed, or an earlier call returned
 *                         VUF_E_PANIC
 *   VUF_E_NOT_NEGOTIATED  the protocol feature was not agreed with the back-end
 *   VUF_E_NACK            the back-end has no such object
 *   VUF_E_DISCONNECTED    there is no back-end, or it has closed the connection
 *   VUF_E_STATE           called from a function that the library calls
 *   VUF_E_PANIC           a bug in this library
 * or the code with which the connection was lost meanwhile.
 */
int vuf_device_get_shared_object(struct vuf_device *device,
                                 const uint8_t *uuid,
                                 uint32_t timeout_ms,
                                 int *fd);

/**
 * Sets the largest frame of a network device (NET_SET_MTU), for the back-end that is
 * connected and all that follow. A back-end that offers VUF_PROTOCOL_F_MTU is informed
 * of it once the driver has acknowledged VIRTIO_NET_F_MTU (bit 3), and again after each
 * reset, before any ring starts. It may change while rings run.
 *
 * Other back-ends are not informed; required_protocol_features of the options can refuse
 * them. The configuration space, which the guest reads, is not changed: see
 * vuf_device_overlay_config(). If the back-end refuses (VUF_DEVICE_EVENT_REFUSED),
 * everything else goes on, and the request is not sent again before the next call.
 *
 * mtu  the maximum transmission unit in bytes: 68 to 65535
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL               device is NULL, or mtu is out of range
 *   VUF_E_NOT_NEGOTIATED  protocol_features of the options does not have
 *                         VUF_PROTOCOL_F_MTU, which is not in the default set
 */
int vuf_device_set_mtu(struct vuf_device *device,
                       uint32_t mtu);

/**
 * Sets the byte order of all rings of a legacy driver, one that does not acknowledge
 * VIRTIO_F_VERSION_1 (SET_VRING_ENDIAN). The rings of other drivers are little-endian,
 * and this has no effect on them. Without this call legacy rings have the byte order of
 * this machine.
 *
 * Each back-end that has agreed on VUF_PROTOCOL_F_CROSS_ENDIAN is informed for each ring
 * before the ring starts. A back-end that refuses cannot start the ring
 * (VUF_DEVICE_EVENT_REFUSED). The order stays over a reset and a loss.
 *
 * endian  VUF_VRING_LITTLE_ENDIAN or VUF_VRING_BIG_ENDIAN
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL               device is NULL, or endian is neither
 *   -EBUSY                a ring is started
 *   VUF_E_NOT_NEGOTIATED  the driver is a legacy one, endian is not the byte order of
 *                         this machine, and the back-end that is connected does not
 *                         offer VUF_PROTOCOL_F_CROSS_ENDIAN, or protocol_features of
 *                         the options does not have it, as in the default set. While
 *                         no back-end is connected the call succeeds, and a back-end
 *                         without it is refused when it connects.
 */
int vuf_device_set_vring_endian(struct vuf_device *device,
                                uint32_t endian);

/**
 * Has a network device announce an address once to its network, after a migration, as
 * soon as its rings run (SEND_RARP). For drivers that do not do so themselves
 * (VIRTIO_NET_F_GUEST_ANNOUNCE).
 *
 * It is done once applied in struct vuf_device_info has reached the generation of after
 * this call, as after vuf_device_wait(); while no ring is started it waits for one, and
 * neither includes it. An announcement that a back-end has not confirmed when it is lost
 * is sent to the next. A refusal is VUF_DEVICE_EVENT_REFUSED with SEND_RARP for its request;
 * no wait fails because of it. So is a back-end that connects later and does not offer
 * VUF_PROTOCOL_F_RARP.
 *
 * mac  the address: its first octet in bits 0-7, its last one in bits 40-47
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL               device is NULL, or mac has more than 48 bits
 *   -EAGAIN               16 announcements wait for the back-end
 *   VUF_E_NOT_NEGOTIATED  protocol_features of the options does not have
 *                         VUF_PROTOCOL_F_RARP, which is not in the default set, or the
 *                         back-end that is connected does not offer it
 */
int vuf_device_send_rarp(struct vuf_device *device,
                         uint64_t mac);

/**
 * Gives a GPU back-end the socket to the display (GPU_SET_SOCKET): the back-end that is
 * connected, or else the next one, before any ring starts. What is spoken there is the
 * vhost-user-gpu protocol, which this library does not serve.
 *
 * Each socket is for one back-end, because another process cannot go on in the middle of
 * what was spoken: it is closed here once the back-end has it, so that your end of it ends
 * with the back-end. After VUF_DEVICE_EVENT_LOST supply another one, which the next back-end
 * gets. Of several that no back-end has got the last counts. A refusal is
 * VUF_DEVICE_EVENT_REFUSED with GPU_SET_SOCKET for its request; everything else goes on.
 *
 * fd  one end of a Unix stream socket pair; taken on success
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL  device is NULL
 *   -EBADF   fd is negative or not open
 */
int vuf_device_set_gpu_socket(struct vuf_device *device,
                              int fd);

/**
 * States all memory that the back-end may reach, in place of what was stated
 * before.
 *
 * With VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS regions that stay are left alone.
 * Otherwise the table is sent whole (SET_MEM_TABLE), where regions of one file
 * that are neighbours count as one if there are more than VUF_MAX_MEM_REGIONS. Rings that
 * run are stopped for it and started again, because some back-ends acknowledge a table
 * while rings run and do not give it to these (crosvm, DPDK's vhost_blk).
 *
 * A region that the back-end refuses is VUF_DEVICE_EVENT_REFUSED and VUF_MEMORY_FAILED;
 * everything else goes on. It is sent again after any change of the memory.
 *
 * regions  array of n regions, in any order; read during the call. Each fd is
 *          kept: duplicated, once for each file, until the back-end has let go of
 *          the region. It is open for reading and writing, of a memfd, a file on tmpfs or
 *          hugetlbfs, or a character or block device that can be mapped (device
 *          DAX). Of a device neither its size nor its page size is checked: a
 *          back-end refuses what it cannot map. user_addr is 0 or guest_addr:
 *          guest addresses are what is sent. Addresses, sizes and offsets are
 *          multiples of the page size.
 * n        may be 0: none
 * flags    0 or VUF_MEMORY_ALLOW_GAP
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL      an argument is NULL, flags has unknown bits, or a region is not
 *                valid, overlaps another or goes beyond the end of its file
 *   -EBADF       a region's fd is negative or not open
 *   -EBUSY       memory in use would change while rings run (see
 *                VUF_MEMORY_ALLOW_GAP), or a ring would lose its own
 *   -ENOSPC      the back-end has no room for so many
 *   VUF_E_STATE  the device belongs to a memory group
 * or another negative errno from the system, such as -EMFILE.
 */
int vuf_device_set_memory(struct vuf_device *device,
                          const struct vuf_mem_region *regions,
                          size_t n,
                          uint32_t flags);

/**
 * Adds a region to the memory that the back-end may reach (ADD_MEM_REG, or
 * SET_MEM_TABLE, as for vuf_device_set_memory()), even while rings run.
 *
 * region  as for vuf_device_set_memory(); its fd is kept
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL      an argument is NULL, or the region is not valid, overlaps another
 *                or goes beyond the end of its file
 *   -EBADF       its fd is negative or not open
 *   -EBUSY       rings run, and others would have to be coalesced for it
 *   -ENOSPC      the back-end has no room for it
 *   VUF_E_STATE  the device belongs to a memory group
 * or another negative errno from the system, as -EMFILE.
 */
int vuf_device_add_memory(struct vuf_device *device,
                          const struct vuf_mem_region *region);

/**
 * Takes a region away (REM_MEM_REG, or SET_MEM_TABLE, as for vuf_device_set_memory()).
 * It must not be unmapped before quiesced is 1, here or in vuf_device_get_quiet(): until
 * then a back-end may write it.
 *
 * If the back-end refuses that (VUF_DEVICE_EVENT_REFUSED), quiesced stays 0, and
 * VUF_MEMORY_UNCONFIRMED or VUF_MEMORY_PENDING lasts until another change of the memory
 * has it released, or the back-end is gone. Without
 * VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS no request takes the last region away: the
 * connection is closed for it (VUF_DEVICE_EVENT_LOST with -ECANCELED).
 *
 * guest_addr  as it was added
 * size        as it was added
 * quiet       set quiet->size before the call; the rest is filled in
 *
 * Returns 0 once it is recorded, in every state, otherwise
 *   -EINVAL      an argument is NULL, quiet->size is too small, or there is no such
 *                region
 *   -E2BIG       quiet->size is above 65536
 *   -EBUSY       a ring lies in it: stop that first
 *   VUF_E_STATE  the device belongs to a memory group
 */
int vuf_device_remove_memory(struct vuf_device *device,
                             uint64_t guest_addr,
                             uint64_t size,
                             struct vuf_quiet *quiet);

/**
 * Tells whether the back-end could hold these regions; without a back-end,
 * whether any could. Changes nothing.
 *
 * regions  array of n regions, as for vuf_device_set_memory(); each fd is
 *          borrowed
 * n        may be 0
 *
 * Returns 0 if so, otherwise
 *   -ENOSPC      it could not
 * or what vuf_device_set_memory() returns for regions that are not valid.
 */
int vuf_device_memory_fits(const struct vuf_device *device,
                           const struct vuf_mem_region *regions,
                           size_t n);

/**
 * Lets the back-end use a translation of its IOMMU, or no longer (IOTLB_MSG),
 * without waiting.
 *
 * Needs VIRTIO_F_ACCESS_PLATFORM among the features. The answer to iotlb_miss, from
 * inside which it may be called. Nothing is kept: after a loss the next back-end
 * asks again.
 *
 * The back-end may use a translation until it has acknowledged its invalidation:
 * call vuf_device_wait(), or process the device until settled in
 * struct vuf_device_info is 1. A refusal makes vuf_device_wait() fail and is
 * VUF_DEVICE_EVENT_IOTLB_REFUSED. Without an answer VUF_DEVICE_EVENT_STALLED comes
 * after stall_ms, and after timeout_ms the connection is lost. The time counts from
 * the moment at which requests sent before are answered.
 *
 * iotlb  the entry; read during the call. Its user_addr is a guest address.
 *
 * Returns 0, otherwise
 *   -EINVAL               as for vuf_client_send_iotlb()
 *   -EAGAIN               256 of these have no answer yet
 *   VUF_E_DISCONNECTED    there is no back-end. A lost one may use its translations
 *                         until it is gone: quiesced in struct vuf_quiet, unfenced in
 *                         struct vuf_device_info
 *   VUF_E_NOT_NEGOTIATED  VIRTIO_F_ACCESS_PLATFORM was not acknowledged
 * or, where the connection is about to be lost, why.
 */
int vuf_device_post_iotlb(struct vuf_device *device,
                          const struct vuf_iotlb *iotlb);

/**
 * Makes a group of devices that share all guest memory; without any at first.
 *
 * A change of the group's memory is refused as a whole if one of the devices could not
 * take it. A later failure of one device does not hold up the others:
 * vuf_device_get_memory_state() returns the state of each.
 *
 * out  gets the group; NULL on failure
 *
 * Returns 0, or -EINVAL if out is NULL.
 */
int vuf_memory_group_new(struct vuf_memory_group **out);

/**
 * Frees a group. Its devices keep the memory that they have.
 *
 * Waits until no thread is in a call on the group; none may begin any more.
 *
 * group  may be NULL, which does nothing
 */
void vuf_memory_group_free(struct vuf_memory_group *group);

/**
 * Gives a device the memory of the group, in place of its own, from now on. It
 * leaves the group when it is freed, and when the group is. Until then
 * vuf_device_set_memory(), _add_memory() and _remove_memory() refuse the device.
 *
 * device  borrowed; it belongs to one group at most
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL
 *   -EBUSY       a ring of the device lies elsewhere, or memory in use would change
 *   -ENOSPC      its back-end has no room for so many regions
 *   VUF_E_STATE  it belongs to a group already
 */
int vuf_memory_group_join(struct vuf_memory_group *group,
                          struct vuf_device *device);

/**
 * Lets a device go from the group. It keeps the memory that it has.
 *
 * device  borrowed; one that does not belong to the group is left alone
 *
 * Returns 0, or -EINVAL if an argument is NULL.
 */
int vuf_memory_group_leave(struct vuf_memory_group *group,
                           struct vuf_device *device);

/**
 * States all memory that the back-ends of the group may reach, as
 * vuf_device_set_memory() does for one.
 *
 * regions  as there; each fd is kept
 * n        may be 0: none
 * flags    0 or VUF_MEMORY_ALLOW_GAP
 *
 * Returns 0 once it is recorded for all, or what vuf_device_set_memory() returns
 * for the first device that could not take it: then it is recorded for none.
 */
int vuf_memory_group_set_memory(struct vuf_memory_group *group,
                                const struct vuf_mem_region *regions,
                                size_t n,
                                uint32_t flags);

/**
 * Adds a region to the memory of the group, as vuf_device_add_memory() does for
 * one device.
 *
 * region  as there; its fd is kept
 *
 * Returns 0 once it is recorded for all, or what vuf_device_add_memory() returns
 * for the first device that could not take it: then it is recorded for none.
 */
int vuf_memory_group_add_memory(struct vuf_memory_group *group,
                                const struct vuf_mem_region *region);

/**
 * Takes a region away from all devices of the group. It must not be unmapped while
 * vuf_device_get_memory_state() of any of them is VUF_MEMORY_PENDING or
 * VUF_MEMORY_UNCONFIRMED.
 *
 * guest_addr  as it was added
 * size        as it was added
 *
 * Returns 0 once it is recorded for all, otherwise
 *   -EINVAL  group is NULL, or there is no such region
 *   -EBUSY   a ring of one of the devices lies in it: stop that first
 */
int vuf_memory_group_remove_memory(struct vuf_memory_group *group,
                                   uint64_t guest_addr,
                                   uint64_t size);

/**
 * Tells whether all back-ends of the group could hold these regions. Changes
 * nothing.
 *
 * regions  array of n regions, as for vuf_device_set_memory(); each fd is
 *          borrowed
 * n        may be 0
 *
 * Returns 0 if so, otherwise
 *   -ENOSPC  one of them could not
 * or what vuf_device_set_memory() returns for regions that are not valid.
 */
int vuf_memory_group_memory_fits(const struct vuf_memory_group *group,
                                 const struct vuf_mem_region *regions,
                                 size_t n);

/**
 * Waits until no device of the group is VUF_MEMORY_PENDING, and drives all of them
 * meanwhile. Their events stay for vuf_device_process(). A device that is freed meanwhile
 * no longer counts. Memory that was taken away must not be unmapped if one of them is
 * VUF_MEMORY_UNCONFIRMED then.
 *
 * timeout_ms  for all together; VUF_TIMEOUT_DEFAULT is 60000
 *
 * Returns 0, otherwise
 *   -EINVAL      group is NULL
 *   -ETIMEDOUT   one of them still is
 *   -ECANCELED   a call on one of them has returned VUF_E_PANIC
 *   VUF_E_STATE  called from a function that the library calls
 *   VUF_E_PANIC  a bug in this library
 * or another negative errno from the system, as -EMFILE.
 */
int vuf_memory_group_wait(struct vuf_memory_group *group,
                          uint32_t timeout_ms);

/**
 * Returns how far the back-end of a device has got with the memory that is wanted, and
 * whether memory that was taken away may be unmapped: not in VUF_MEMORY_PENDING and
 * VUF_MEMORY_UNCONFIRMED. Does not wait.
 *
 * state  gets one of VUF_MEMORY_APPLIED, _PENDING, _ABSENT, _FAILED, _UNCONFIRMED
 *
 * Returns 0, or -EINVAL if an argument is NULL.
 */
int vuf_device_get_memory_state(const struct vuf_device *device,
                                uint32_t *state);

/**
 * Starts rings that are not started: all of these, or none.
 *
 * Comes after vuf_device_set_features() and the memory that they lie in. Once they run,
 * and after each loss, the kick and call descriptors are written, so that requests that
 * were made available or used meanwhile are noticed.
 *
 * A ring that begins anew never gets an in-flight buffer with requests of its last run,
 * and a ring with requests in a buffer gets no other. Rings that run are stopped for a
 * moment if the buffer has no room for the new ones.
 *
 * rings  array of n rings; read during the call, but see used_index and get_index
 *        in struct vuf_ring. Their descriptors are kept: duplicated, until the
 *        ring is stopped.
 * n      may be 0
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL      an argument is NULL, or a ring is not valid: an index or a size
 *                out of range, a size above max_ring_size of the options, an index that
 *                the back-end cannot have (max_rings in
 *                struct vuf_device_info), two with one index, an address that is not
 *                aligned or does not lie in one region of the memory with all of its
 *                part, base_mode or base, a descriptor that is 0, or a file, a
 *                directory or a device and no eventfd, a reserved field
 *   -EBADF       a descriptor is not open, or negative and not -1
 *   -EBUSY       a ring is started already.
 *                Or it would begin anew, and has unfinished requests of its last run in
 *                the in-flight buffer, which another ring uses: resume it
 *                (VUF_RING_BASE_RESUME) and let it complete them, or stop the other
 *                rings and start all anew in one call, or reset the device.
 *                Or the buffer is too small for it, and another ring has unfinished
 *                requests in it: stop that one with VUF_STOP_DRAIN first, or open the
 *                device with a larger num_rings and max_ring_size. The text names the
 *                ring.
 *   VUF_E_STATE  features were not stated, rings wait for vuf_device_reset(), or
 *                there is no base to resume from (vuf_device_get_vring_base())
 * or another negative errno from the system, such as -EMFILE.
 */
int vuf_device_start(struct vuf_device *device,
                     const struct vuf_ring *rings,
                     size_t n);

/**
 * Gives a started ring another descriptor for the device to write
 * (SET_VRING_CALL), even while it runs. The new one is written once the back-end has it.
 * If the back-end refuses it (VUF_DEVICE_EVENT_REFUSED), the ring keeps the old one.
 *
 * Some back-ends (crosvm, OpenVMM, Alioth) acknowledge this for a ring that runs, and
 * go on writing the first descriptor. One descriptor for the life of the ring works
 * with all; so does stopping the ring and starting it again.
 *
 * index  the ring
 * fd     kept: duplicated, until the ring is stopped; -1 if the driver polls
 *
 * Returns 0 once it is recorded, otherwise
 *   -EINVAL      device is NULL, or fd is a file, a directory or a device
 *   -EBADF       fd is not open, or negative and not -1
 *   VUF_E_STATE  the ring is not started
 */
int vuf_device_set_call(struct vuf_device *device,
                        uint32_t index,
                        int fd);

/**
 * Stops rings (GET_VRING_BASE). Rings that are not started are left as they are. Each
 * stop has its own mode.
 *
 * A ring that is drained counts as stopped once its used index has reached the base that
 * the back-end has returned, where that index is known (used_index or get_index in
 * struct vuf_ring). If it has not within 1 s, the connection is lost, with the number of
 * unfinished requests, and quiesced is 0 until the back-end is gone.
 *
 * rings       array of n indices; NULL for all rings
 * n           0 where rings is NULL
 * mode        VUF_STOP_*
 * timeout_ms  how long to wait until they are out of use. 0: not at all; then
 *             vuf_device_get_quiet() says when. Inside a function that the library
 *             calls it never waits.
 * quiet       set quiet->size before the call; the rest is filled in
 *
 * Returns 0 in every state, even if the time has passed and quiesced is 0:
 * vuf_last_error() and vuf_last_error_info() then say why. Otherwise
 *   -EINVAL      device or quiet is NULL, quiet->size is too small, an index is above
 *                VUF_MAX_RING_INDEX, mode is unknown, or n is not 0 without rings
 *   -E2BIG       quiet->size is above 65536
 */
int vuf_device_stop(struct vuf_device *device,
                    const uint32_t *rings,
                    size_t n,
                    uint32_t mode,
                    uint32_t timeout_ms,
                    struct vuf_quiet *quiet);

/**
 * Resets the device, as its driver does: no ring is started and no feature
 * acknowledged any longer, no ring has a base, and the in-flight buffer is gone. The
 * memory and the connection stay. Rings that wait for a reset can be started again
 * afterwards. A VUF_DEVICE_EVENT_NEEDS_RESET or VUF_DEVICE_EVENT_RECOVERED from before is
 * not returned after it.
 *
 * Sends RESET_DEVICE or SET_STATUS 0; a back-end that has agreed to neither is reset
 * by stopping its rings. quiesced is 1 only once that is acknowledged.
 *
 * timeout_ms  how long to wait until the rings are out of use, as for
 *             vuf_device_stop()
 * quiet       set quiet->size before the call; the rest is filled in
 *
 * Returns 0 in every state, as vuf_device_stop() does, otherwise
 *   -EINVAL      an argument is NULL, or quiet->size is too small
 *   -E2BIG       quiet->size is above 65536
 */
int vuf_device_reset(struct vuf_device *device,
                     uint32_t timeout_ms,
                     struct vuf_quiet *quiet);

/**
 * Returns the device status that the guest is to read (virtio specification, "Device
 * Status Field"): what its driver has written, with DEVICE_NEEDS_RESET (64) where rings
 * cannot go on before vuf_device_reset().
 *
 * A driver that has written 0 waits until it reads 0. It reads ACKNOWLEDGE (1) until
 * the reset is done and no back-end uses the rings. Takes a lock that is never held
 * while anything waits: vCPU threads may call it.
 *
 * written  what the driver has written last; 0 after vuf_device_reset()
 * status   gets what it reads
 *
 * Returns 0, or -EINVAL if an argument is NULL.
 */
int vuf_device_get_virtio_status(const struct vuf_device *device,
                                 uint8_t written,
                                 uint8_t *status);

/**
 * Returns the base at which a ring was stopped, for a snapshot. It succeeds only if
 * resuming from the base loses no request, as far as the policy of the device promises
 * that.
 *
 * A ring that was stopped while there was no back-end has the base from which it would
 * have gone on. One whose stop was cut off by a loss gets its base once that back-end is
 * gone. After VUF_STOP_ABANDON rings that ran have none.
 *
 * index  the ring
 * base   gets what vuf_client_set_vring_base() takes
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL
 *   VUF_E_STATE  there is none, and the text says why: the ring is not stopped, was
 *                never started (or not since a reset), is being stopped, was lost while
 *                it ran and how far it got is not known, or has unfinished requests in
 *                an in-flight buffer that was replaced or that the back-end does not
 *                support
 */
int vuf_device_get_vring_base(const struct vuf_device *device,
                              uint32_t index,
                              uint32_t *base);

/**
 * Gives all functions of the library in one table, to a program that loads it with
 * dlopen() and then has no other name to look up:
 *
 *   void *library = dlopen(VUF_SONAME, RTLD_NOW | RTLD_LOCAL);
 *   const struct vuf_api *(*get_api)(uint32_t);
 *   *(void **)&get_api = dlsym(library, "vuf_get_api");
 *   const struct vuf_api *vuf = get_api(VUF_API_VERSION);
 *
 * Functions that later releases bring stand behind those that there are. A library
 * that is older than the header of the program has a shorter table: see
 * VUF_API_HAS().
 *
 * version  VUF_API_VERSION
 *
 * Returns the table, which stays valid until the process ends, also after
 * dlclose(); NULL if the library has none of this version.
 */
const struct vuf_api *vuf_get_api(uint32_t version);

/**
 * Looks for the back-ends that are installed, by the files that describe them.
 *
 * By convention these are the *.json in the following directories, the most specific
 * last. Of files with the same name the most specific one counts; an empty one says
 * that there is none. The result is sorted by name, and the first that fits is
 * the one to use.
 *   /usr/share/qemu/vhost-user, and qemu/vhost-user in each of $XDG_DATA_DIRS
 *     (/usr/local/share and /usr/share), the first of them last
 *   /etc/qemu/vhost-user
 *   $XDG_CONFIG_HOME/qemu/vhost-user ($HOME/.config)
 * The environment counts for nothing in a program that has rights its user lacks.
 * Whether a program is there is not looked at. What a file says beyond type,
 * description and binary is ignored.
 *
 * search  NULL for all; read during the call
 * out     gets the list; NULL on failure
 * n       gets how many are in it; may be 0
 *
 * Returns 0, otherwise
 *   -EINVAL  out or n is NULL, or search is not valid
 *   -E2BIG   search has fields that this library does not know
 */
int vuf_backend_programs_find(const struct vuf_backend_search *search,
                              struct vuf_backend_programs **out,
                              size_t *n);

/**
 * Frees a list, and the texts in it.
 *
 * programs  may be NULL, which does nothing
 */
void vuf_backend_programs_free(struct vuf_backend_programs *programs);

/**
 * Tells what is known of a back-end.
 *
 * index    from 0 on
 * program  set program->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL  an argument is NULL, or program->size is too small
 *   -ENOENT  there are not so many
 *   -E2BIG   program->size is above 65536
 */
int vuf_backend_programs_get(const struct vuf_backend_programs *programs,
                             size_t index,
                             struct vuf_backend_program *program);

/**
 * Runs a back-end with --print-capabilities: afterwards vuf_backend_programs_get() has
 * its features. It has ended when this returns. Done once; later calls return 0 at
 * once.
 *
 * index       from 0 on
 * timeout_ms  how long it has; then it is killed. VUF_TIMEOUT_DEFAULT is 5000
 *
 * Returns 0, otherwise
 *   -EINVAL             programs is NULL
 *   -ENOENT             there are not so many, or the program is not there
 *   -EACCES             it may not be run
 *   -ETIMEDOUT          it has not ended in time
 *   VUF_E_NACK          it has failed; it may not know of capabilities
 *   VUF_E_DISCONNECTED  a signal has ended it
 *   VUF_E_PROTOCOL      what it prints is not understood, is too much, or is for
 *                       another type of device than its file says
 *   VUF_E_STATE         its file is of no use
 * or another negative errno from the system, as -EMFILE or -ENOEXEC.
 */
int vuf_backend_programs_ask(struct vuf_backend_programs *programs,
                             size_t index,
                             uint32_t timeout_ms);

/**
 * Starts a back-end with a socket (--fd=3), whose other end is
 * vuf_backend_process_take_socket()'s or vuf_device_set_process()'s.
 *
 * It gets that, /dev/null as standard input, its two outputs, and no other
 * descriptor (with glibc before 2.34, or another C library: none that is
 * close-on-exec). No signal is blocked, and SIGPIPE, SIGTERM and SIGCHLD are not
 * ignored. Neither this process's memory nor its handlers are there for a moment: it
 * is not forked. Needs Linux 5.4.
 *
 * Do not wait for it with waitpid(-1), or how it ended is not known.
 *
 * program  its path; the directories of $PATH are not searched
 * options  NULL for the defaults; read during the call
 * out      gets the process; NULL on failure
 *
 * Returns 0, otherwise
 *   -EINVAL  program or out is NULL, program is empty, or an option is not valid
 *   -EBADF   one of the outputs is below -1 or not open
 *   -E2BIG   options has fields that this library does not know; or the
 *            arguments are too long
 *   -ENOENT  the program is not there
 *   -EACCES  it may not be run
 *   -ENOSYS  Linux is older than 5.4
 * or another negative errno from the system, as -EMFILE or -ENOEXEC.
 */
int vuf_backend_process_start(const char *program,
                              const struct vuf_backend_process_options *options,
                              struct vuf_backend_process **out);

/**
 * Frees a process; one that still runs is killed (SIGKILL) and waited for, and so is
 * no zombie left: see vuf_backend_process_terminate() for a gentler end. A socket that
 * was not taken is closed.
 *
 * Waits for 5 s at most, for a process that hangs in the kernel. Calls that other
 * threads have under way return. In a forked child it only closes the child's copy.
 *
 * process  may be NULL, which does nothing
 */
void vuf_backend_process_free(struct vuf_backend_process *process);

/**
 * Tells the number of a process. It is this one's until one of the functions below
 * has told how it ended; then it may be another's.
 *
 * Returns the number, or -EINVAL if process is NULL.
 */
int vuf_backend_process_get_pid(const struct vuf_backend_process *process);

/**
 * Tells the descriptor of a process (a pidfd) to poll: readable once it has ended.
 *
 * Returns the descriptor (borrowed, valid until the process is freed), or -EINVAL if
 * process is NULL.
 */
int vuf_backend_process_get_fd(const struct vuf_backend_process *process);

/**
 * Takes the connection to a back-end, for vuf_client_from_fd(), vuf_device_open_fd() or
 * vuf_device_set_fd().
 *
 * fd  gets the socket: given (yours to close, close-on-exec); -1 on failure
 *
 * Returns 0, otherwise
 *   -EINVAL      an argument is NULL
 *   VUF_E_STATE  it was taken before
 */
int vuf_backend_process_take_socket(struct vuf_backend_process *process,
                                    int *fd);

/**
 * Sends a process a signal. Never reaches another one, also where the process has
 * ended: then nothing happens, and this returns 0.
 *
 * signal  its number, as SIGTERM; 0 only asks whether one could be sent
 *
 * Returns 0, otherwise
 *   -EINVAL  process is NULL, or there is no such signal
 *   -EPERM   the process has become somebody's whom this one may not send any
 */
int vuf_backend_process_signal(struct vuf_backend_process *process,
                               int signal);

/**
 * Tells whether and how a process has ended. Does not wait.
 *
 * exit  set exit->size before the call; the rest is filled in
 *
 * Returns 0, otherwise
 *   -EINVAL  an argument is NULL, or exit->size is too small
 *   -E2BIG   exit->size is above 65536
 */
int vuf_backend_process_get_exit(const struct vuf_backend_process *process,
                                 struct vuf_backend_exit *exit);

/**
 * Waits until a process has ended by itself.
 *
 * timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 5000
 * exit        how it has ended: set exit->size before the call; NULL if that is of no
 *             interest
 *
 * Returns 0, otherwise
 *   -EINVAL     process is NULL, or exit->size is too small
 *   -E2BIG      exit->size is above 65536
 *   -ETIMEDOUT  it still runs
 *   -ECANCELED  it is being freed, and does not end
 */
int vuf_backend_process_wait(struct vuf_backend_process *process,
                             uint32_t timeout_ms,
                             struct vuf_backend_exit *exit);

/**
 * Ends a process: SIGTERM, and SIGKILL if it has not ended within the time. Returns
 * when it has ended; also good for one that has already.
 *
 * An event loop rather sends the signals itself, with vuf_backend_process_signal(), and
 * polls vuf_backend_process_get_fd().
 *
 * timeout_ms  how long it has after SIGTERM; VUF_TIMEOUT_DEFAULT is 5000
 * exit        as for vuf_backend_process_wait()
 *
 * Returns 0, otherwise
 *   -EINVAL     process is NULL, or exit->size is too small
 *   -E2BIG      exit->size is above 65536
 *   -EPERM      this process may not end it
 *   -ETIMEDOUT  it hangs in the kernel: it was killed, and 5 s later it has not ended
 *   -ECANCELED  it hangs so, and is being freed
 */
int vuf_backend_process_terminate(struct vuf_backend_process *process,
                                  uint32_t timeout_ms,
                                  struct vuf_backend_exit *exit);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VHOST_USER_FRONTEND_H */
