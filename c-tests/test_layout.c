/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What a compiled program has taken from the header: sizes, offsets, values.
   All is checked by the compiler. The version, which is meant to change, is
   compared with the library's own in test_errors.c. */
#include "functions.h"

#include <vhost_user_frontend.h>

#define SIZE(type, size) _Static_assert(sizeof(struct type) == (size), #type)
#define FIELD(type, field, offset, bytes)                                                          \
    _Static_assert(offsetof(struct type, field) == (offset), #type "." #field);                    \
    _Static_assert(sizeof(((struct type *)0)->field) == (bytes), #type "." #field)
/* Compared in a type that holds them all: UINT32_MAX is not -1. */
#define VALUE(name, value) _Static_assert((long long)(name) == (value), #name)

_Static_assert(sizeof(size_t) == 8 && sizeof(int) == 4, "the numbers are of a 64-bit machine");

SIZE(vuf_error_info, 48);
FIELD(vuf_error_info, size, 0, 8);
FIELD(vuf_error_info, code, 8, 4);
FIELD(vuf_error_info, errno_value, 12, 4);
FIELD(vuf_error_info, error_class, 16, 4);
FIELD(vuf_error_info, phase, 20, 4);
FIELD(vuf_error_info, request, 24, 4);
FIELD(vuf_error_info, ring, 28, 4);
FIELD(vuf_error_info, region, 32, 4);
FIELD(vuf_error_info, has_value, 36, 4);
FIELD(vuf_error_info, value, 40, 8);

SIZE(vuf_trace_record, 56);
FIELD(vuf_trace_record, size, 0, 8);
FIELD(vuf_trace_record, text, 8, 8);
FIELD(vuf_trace_record, name, 16, 8);
FIELD(vuf_trace_record, socket, 24, 4);
FIELD(vuf_trace_record, direction, 28, 4);
FIELD(vuf_trace_record, request, 32, 4);
FIELD(vuf_trace_record, flags, 36, 4);
FIELD(vuf_trace_record, payload_size, 40, 4);
FIELD(vuf_trace_record, fds, 44, 4);
FIELD(vuf_trace_record, dropped, 48, 8);

SIZE(vuf_counters, 120);
FIELD(vuf_counters, size, 0, 8);
FIELD(vuf_counters, requests_sent, 8, 8);
FIELD(vuf_counters, replies_received, 16, 8);
FIELD(vuf_counters, bytes_sent, 24, 8);
FIELD(vuf_counters, bytes_received, 32, 8);
FIELD(vuf_counters, fds_sent, 40, 8);
FIELD(vuf_counters, fds_received, 48, 8);
FIELD(vuf_counters, barriers, 56, 8);
FIELD(vuf_counters, backend_requests_served, 64, 8);
FIELD(vuf_counters, backend_requests_refused, 72, 8);
FIELD(vuf_counters, posted_refused, 80, 8);
FIELD(vuf_counters, timeouts, 88, 8);
FIELD(vuf_counters, trace_dropped, 96, 8);
FIELD(vuf_counters, longest_wait_ns, 104, 8);
FIELD(vuf_counters, longest_wait_request, 112, 4);
FIELD(vuf_counters, reserved, 116, 4);

SIZE(vuf_client_options, 56);
FIELD(vuf_client_options, size, 0, 8);
FIELD(vuf_client_options, connect_timeout_ms, 8, 4);
FIELD(vuf_client_options, timeout_ms, 12, 4);
FIELD(vuf_client_options, slow_timeout_ms, 16, 4);
FIELD(vuf_client_options, drain_timeout_ms, 20, 4);
FIELD(vuf_client_options, on_timeout, 24, 4);
FIELD(vuf_client_options, max_rings, 28, 4);
FIELD(vuf_client_options, flags, 32, 4);
FIELD(vuf_client_options, spin_us, 36, 4);
FIELD(vuf_client_options, adopt_features, 40, 8);
FIELD(vuf_client_options, adopt_protocol_features, 48, 8);

SIZE(vuf_mem_region, 64);
FIELD(vuf_mem_region, guest_addr, 0, 8);
FIELD(vuf_mem_region, size, 8, 8);
FIELD(vuf_mem_region, user_addr, 16, 8);
FIELD(vuf_mem_region, mmap_offset, 24, 8);
FIELD(vuf_mem_region, fd, 32, 4);
FIELD(vuf_mem_region, xen_mmap_flags, 36, 4);
FIELD(vuf_mem_region, xen_domid, 40, 4);
FIELD(vuf_mem_region, reserved0, 44, 4);
FIELD(vuf_mem_region, reserved, 48, 16);

SIZE(vuf_vring_addr, 40);
FIELD(vuf_vring_addr, flags, 0, 4);
FIELD(vuf_vring_addr, reserved, 4, 4);
FIELD(vuf_vring_addr, descriptor, 8, 8);
FIELD(vuf_vring_addr, available, 16, 8);
FIELD(vuf_vring_addr, used, 24, 8);
FIELD(vuf_vring_addr, log, 32, 8);

SIZE(vuf_iotlb, 32);
FIELD(vuf_iotlb, iova, 0, 8);
FIELD(vuf_iotlb, size, 8, 8);
FIELD(vuf_iotlb, user_addr, 16, 8);
FIELD(vuf_iotlb, perm, 24, 1);
FIELD(vuf_iotlb, type, 25, 1);
FIELD(vuf_iotlb, reserved, 26, 6);

SIZE(vuf_crypto_sym, 608);
FIELD(vuf_crypto_sym, cipher_alg, 0, 4);
FIELD(vuf_crypto_sym, key_len, 4, 4);
FIELD(vuf_crypto_sym, hash_alg, 8, 4);
FIELD(vuf_crypto_sym, hash_result_len, 12, 4);
FIELD(vuf_crypto_sym, auth_key_len, 16, 4);
FIELD(vuf_crypto_sym, add_len, 20, 4);
FIELD(vuf_crypto_sym, op_type, 24, 1);
FIELD(vuf_crypto_sym, direction, 25, 1);
FIELD(vuf_crypto_sym, hash_mode, 26, 1);
FIELD(vuf_crypto_sym, alg_chain_order, 27, 1);
FIELD(vuf_crypto_sym, reserved, 28, 4);
FIELD(vuf_crypto_sym, key, 32, 64);
FIELD(vuf_crypto_sym, auth_key, 96, 512);

SIZE(vuf_crypto_asym, 1048);
FIELD(vuf_crypto_asym, algo, 0, 4);
FIELD(vuf_crypto_asym, key_type, 4, 4);
FIELD(vuf_crypto_asym, key_len, 8, 4);
FIELD(vuf_crypto_asym, padding_algo, 12, 4);
FIELD(vuf_crypto_asym, hash_algo, 16, 4);
FIELD(vuf_crypto_asym, reserved, 20, 4);
FIELD(vuf_crypto_asym, key, 24, 1024);

SIZE(vuf_crypto_session, 1672);
FIELD(vuf_crypto_session, size, 0, 8);
FIELD(vuf_crypto_session, op_code, 8, 8);
FIELD(vuf_crypto_session, sym, 16, 608);
FIELD(vuf_crypto_session, asym, 624, 1048);

SIZE(vuf_inflight, 24);
FIELD(vuf_inflight, mmap_size, 0, 8);
FIELD(vuf_inflight, mmap_offset, 8, 8);
FIELD(vuf_inflight, num_queues, 16, 2);
FIELD(vuf_inflight, queue_size, 18, 2);
FIELD(vuf_inflight, reserved, 20, 4);

SIZE(vuf_shmem_config, 2064);
FIELD(vuf_shmem_config, size, 0, 8);
FIELD(vuf_shmem_config, nregions, 8, 4);
FIELD(vuf_shmem_config, reserved, 12, 4);
FIELD(vuf_shmem_config, memory_sizes, 16, 2048);

SIZE(vuf_shmem_area, 40);
FIELD(vuf_shmem_area, shmid, 0, 4);
FIELD(vuf_shmem_area, reserved, 4, 4);
FIELD(vuf_shmem_area, fd_offset, 8, 8);
FIELD(vuf_shmem_area, shm_offset, 16, 8);
FIELD(vuf_shmem_area, len, 24, 8);
FIELD(vuf_shmem_area, flags, 32, 8);

SIZE(vuf_backend_ops, 96);
FIELD(vuf_backend_ops, size, 0, 8);
FIELD(vuf_backend_ops, iotlb_miss, 8, 8);
FIELD(vuf_backend_ops, iotlb_access_fail, 16, 8);
FIELD(vuf_backend_ops, host_notifier, 24, 8);
FIELD(vuf_backend_ops, shared_object_lookup, 32, 8);
FIELD(vuf_backend_ops, shmem_map, 40, 8);
FIELD(vuf_backend_ops, shmem_unmap, 48, 8);
FIELD(vuf_backend_ops, config_changed, 56, 8);
FIELD(vuf_backend_ops, vring_call, 64, 8);
FIELD(vuf_backend_ops, vring_err, 72, 8);
FIELD(vuf_backend_ops, shared_object_added, 80, 8);
FIELD(vuf_backend_ops, shared_object_removed, 88, 8);

SIZE(vuf_device_options, 112);
FIELD(vuf_device_options, size, 0, 8);
FIELD(vuf_device_options, num_rings, 8, 4);
FIELD(vuf_device_options, config_size, 12, 4);
FIELD(vuf_device_options, required_features, 16, 8);
FIELD(vuf_device_options, protocol_features, 24, 8);
FIELD(vuf_device_options, required_protocol_features, 32, 8);
FIELD(vuf_device_options, assume_features, 40, 8);
FIELD(vuf_device_options, backend_ops, 48, 8);
FIELD(vuf_device_options, user, 56, 8);
FIELD(vuf_device_options, first_delay_ms, 64, 4);
FIELD(vuf_device_options, max_delay_ms, 68, 4);
FIELD(vuf_device_options, slow_delay_ms, 72, 4);
FIELD(vuf_device_options, jitter_percent, 76, 4);
FIELD(vuf_device_options, fence_ms, 80, 4);
FIELD(vuf_device_options, on_unfenced, 84, 4);
FIELD(vuf_device_options, out_of_order, 88, 4);
FIELD(vuf_device_options, stall_ms, 92, 4);
FIELD(vuf_device_options, timeout_ms, 96, 4);
FIELD(vuf_device_options, slow_timeout_ms, 100, 4);
FIELD(vuf_device_options, drain_timeout_ms, 104, 4);
FIELD(vuf_device_options, reserved, 108, 4);

SIZE(vuf_ring, 120);
FIELD(vuf_ring, index, 0, 4);
FIELD(vuf_ring, size, 4, 4);
FIELD(vuf_ring, descriptor, 8, 8);
FIELD(vuf_ring, available, 16, 8);
FIELD(vuf_ring, used, 24, 8);
FIELD(vuf_ring, base_mode, 32, 4);
FIELD(vuf_ring, base, 36, 4);
FIELD(vuf_ring, kick_fd, 40, 4);
FIELD(vuf_ring, call_fd, 44, 4);
FIELD(vuf_ring, err_fd, 48, 4);
FIELD(vuf_ring, reserved0, 52, 4);
FIELD(vuf_ring, used_index, 56, 8);
FIELD(vuf_ring, avail_index, 64, 8);
FIELD(vuf_ring, get_index, 72, 8);
FIELD(vuf_ring, user, 80, 8);
FIELD(vuf_ring, reserved, 88, 32);

SIZE(vuf_op, 56);
FIELD(vuf_op, request, 0, 4);
FIELD(vuf_op, index, 4, 4);
FIELD(vuf_op, fd, 8, 4);
FIELD(vuf_op, reserved0, 12, 4);
FIELD(vuf_op, value, 16, 8);
FIELD(vuf_op, addr, 24, 8);
FIELD(vuf_op, inflight, 32, 8);
FIELD(vuf_op, reserved, 40, 16);

SIZE(vuf_submit_result, 64);
FIELD(vuf_submit_result, size, 0, 8);
FIELD(vuf_submit_result, sent, 8, 4);
FIELD(vuf_submit_result, applied, 12, 4);
FIELD(vuf_submit_result, refused, 16, 4);
FIELD(vuf_submit_result, failed, 20, 4);
FIELD(vuf_submit_result, code, 24, 4);
FIELD(vuf_submit_result, errno_value, 28, 4);
FIELD(vuf_submit_result, error_class, 32, 4);
FIELD(vuf_submit_result, phase, 36, 4);
FIELD(vuf_submit_result, request, 40, 4);
FIELD(vuf_submit_result, ring, 44, 4);
FIELD(vuf_submit_result, has_value, 48, 4);
FIELD(vuf_submit_result, reserved, 52, 4);
FIELD(vuf_submit_result, value, 56, 8);

SIZE(vuf_quiet, 16);
FIELD(vuf_quiet, size, 0, 8);
FIELD(vuf_quiet, quiesced, 8, 4);
FIELD(vuf_quiet, bases_valid, 12, 4);

SIZE(vuf_device_event, 336);
FIELD(vuf_device_event, size, 0, 8);
FIELD(vuf_device_event, kind, 8, 4);
FIELD(vuf_device_event, recovery, 12, 4);
FIELD(vuf_device_event, generation, 16, 8);
FIELD(vuf_device_event, count, 24, 4);
FIELD(vuf_device_event, delay_ms, 28, 4);
FIELD(vuf_device_event, missed, 32, 4);
FIELD(vuf_device_event, code, 36, 4);
FIELD(vuf_device_event, errno_value, 40, 4);
FIELD(vuf_device_event, error_class, 44, 4);
FIELD(vuf_device_event, phase, 48, 4);
FIELD(vuf_device_event, request, 52, 4);
FIELD(vuf_device_event, ring, 56, 4);
FIELD(vuf_device_event, region, 60, 4);
FIELD(vuf_device_event, has_value, 64, 4);
FIELD(vuf_device_event, peer_pid, 68, 4);
FIELD(vuf_device_event, value, 72, 8);
FIELD(vuf_device_event, text, 80, 256);

SIZE(vuf_device_info, 2160);
FIELD(vuf_device_info, size, 0, 8);
FIELD(vuf_device_info, connected, 8, 4);
FIELD(vuf_device_info, settled, 12, 4);
FIELD(vuf_device_info, needs_reset, 16, 4);
FIELD(vuf_device_info, unfenced, 20, 4);
FIELD(vuf_device_info, generation, 24, 8);
FIELD(vuf_device_info, applied, 32, 8);
FIELD(vuf_device_info, connections, 40, 8);
FIELD(vuf_device_info, offered_features, 48, 8);
FIELD(vuf_device_info, acked_features, 56, 8);
FIELD(vuf_device_info, offered_protocol_features, 64, 8);
FIELD(vuf_device_info, protocol_features, 72, 8);
FIELD(vuf_device_info, queue_num, 80, 8);
FIELD(vuf_device_info, max_mem_slots, 88, 8);
FIELD(vuf_device_info, peer_pid, 96, 4);
FIELD(vuf_device_info, peer_uid, 100, 4);
FIELD(vuf_device_info, peer_gid, 104, 4);
FIELD(vuf_device_info, reserved, 108, 4);
FIELD(vuf_device_info, shmem_sizes, 112, 2048);

/* As long as the map says; that each member stands where it should is looked at in
   test_api.c. */
#define ONE(function) +1
SIZE(vuf_api, 16 + 8 * (0 FUNCTIONS(ONE)));
FIELD(vuf_api, size, 0, 8);
FIELD(vuf_api, version, 8, 4);
FIELD(vuf_api, reserved, 12, 4);
FIELD(vuf_api, vuf_version, 16, 8);
SIZE(vuf_backend_search, 40);
FIELD(vuf_backend_search, size, 0, 8);
FIELD(vuf_backend_search, device_type, 8, 8);
FIELD(vuf_backend_search, directories, 16, 8);
FIELD(vuf_backend_search, n_directories, 24, 8);
FIELD(vuf_backend_search, flags, 32, 4);
FIELD(vuf_backend_search, reserved, 36, 4);

SIZE(vuf_backend_program, 80);
FIELD(vuf_backend_program, size, 0, 8);
FIELD(vuf_backend_program, file, 8, 8);
FIELD(vuf_backend_program, device_type, 16, 8);
FIELD(vuf_backend_program, description, 24, 8);
FIELD(vuf_backend_program, binary, 32, 8);
FIELD(vuf_backend_program, hidden_by, 40, 8);
FIELD(vuf_backend_program, problem, 48, 8);
FIELD(vuf_backend_program, features, 56, 8);
FIELD(vuf_backend_program, n_features, 64, 8);
FIELD(vuf_backend_program, asked, 72, 4);
FIELD(vuf_backend_program, reserved, 76, 4);

SIZE(vuf_backend_process_options, 40);
FIELD(vuf_backend_process_options, size, 0, 8);
FIELD(vuf_backend_process_options, arguments, 8, 8);
FIELD(vuf_backend_process_options, environment, 16, 8);
FIELD(vuf_backend_process_options, stdout_fd, 24, 4);
FIELD(vuf_backend_process_options, stderr_fd, 28, 4);
FIELD(vuf_backend_process_options, flags, 32, 4);
FIELD(vuf_backend_process_options, reserved, 36, 4);

SIZE(vuf_backend_exit, 16);
FIELD(vuf_backend_exit, size, 0, 8);
FIELD(vuf_backend_exit, kind, 8, 4);
FIELD(vuf_backend_exit, value, 12, 4);

VALUE(VUF_E_DISCONNECTED, -4097);
VALUE(VUF_E_PROTOCOL, -4098);
VALUE(VUF_E_NACK, -4099);
VALUE(VUF_E_NOT_NEGOTIATED, -4100);
VALUE(VUF_E_POISONED, -4101);
VALUE(VUF_E_STATE, -4102);
VALUE(VUF_E_PANIC, -4103);
VALUE(VUF_CLASS_NONE, 0);
VALUE(VUF_CLASS_TRANSPORT, 1);
VALUE(VUF_CLASS_REFUSED, 2);
VALUE(VUF_CLASS_PROTOCOL, 3);
VALUE(VUF_CLASS_LOCAL, 4);
VALUE(VUF_REQUEST_GET_FEATURES, 1);
VALUE(VUF_REQUEST_SET_FEATURES, 2);
VALUE(VUF_REQUEST_SET_OWNER, 3);
VALUE(VUF_REQUEST_RESET_OWNER, 4);
VALUE(VUF_REQUEST_SET_MEM_TABLE, 5);
VALUE(VUF_REQUEST_SET_LOG_BASE, 6);
VALUE(VUF_REQUEST_SET_LOG_FD, 7);
VALUE(VUF_REQUEST_SET_VRING_NUM, 8);
VALUE(VUF_REQUEST_SET_VRING_ADDR, 9);
VALUE(VUF_REQUEST_SET_VRING_BASE, 10);
VALUE(VUF_REQUEST_GET_VRING_BASE, 11);
VALUE(VUF_REQUEST_SET_VRING_KICK, 12);
VALUE(VUF_REQUEST_SET_VRING_CALL, 13);
VALUE(VUF_REQUEST_SET_VRING_ERR, 14);
VALUE(VUF_REQUEST_GET_PROTOCOL_FEATURES, 15);
VALUE(VUF_REQUEST_SET_PROTOCOL_FEATURES, 16);
VALUE(VUF_REQUEST_GET_QUEUE_NUM, 17);
VALUE(VUF_REQUEST_SET_VRING_ENABLE, 18);
VALUE(VUF_REQUEST_SEND_RARP, 19);
VALUE(VUF_REQUEST_NET_SET_MTU, 20);
VALUE(VUF_REQUEST_SET_BACKEND_REQ_FD, 21);
VALUE(VUF_REQUEST_IOTLB_MSG, 22);
VALUE(VUF_REQUEST_SET_VRING_ENDIAN, 23);
VALUE(VUF_REQUEST_GET_CONFIG, 24);
VALUE(VUF_REQUEST_SET_CONFIG, 25);
VALUE(VUF_REQUEST_CREATE_CRYPTO_SESSION, 26);
VALUE(VUF_REQUEST_CLOSE_CRYPTO_SESSION, 27);
VALUE(VUF_REQUEST_POSTCOPY_ADVISE, 28);
VALUE(VUF_REQUEST_POSTCOPY_LISTEN, 29);
VALUE(VUF_REQUEST_POSTCOPY_END, 30);
VALUE(VUF_REQUEST_GET_INFLIGHT_FD, 31);
VALUE(VUF_REQUEST_SET_INFLIGHT_FD, 32);
VALUE(VUF_REQUEST_GPU_SET_SOCKET, 33);
VALUE(VUF_REQUEST_RESET_DEVICE, 34);
VALUE(VUF_REQUEST_VRING_KICK, 35);
VALUE(VUF_REQUEST_GET_MAX_MEM_SLOTS, 36);
VALUE(VUF_REQUEST_ADD_MEM_REG, 37);
VALUE(VUF_REQUEST_REM_MEM_REG, 38);
VALUE(VUF_REQUEST_SET_STATUS, 39);
VALUE(VUF_REQUEST_GET_STATUS, 40);
VALUE(VUF_REQUEST_GET_SHARED_OBJECT, 41);
VALUE(VUF_REQUEST_SET_DEVICE_STATE_FD, 42);
VALUE(VUF_REQUEST_CHECK_DEVICE_STATE, 43);
VALUE(VUF_REQUEST_GET_SHMEM_CONFIG, 44);
VALUE(VUF_REQUEST_GET_VRING_BASE_SKIP_DRAIN, 45);

VALUE(VUF_MAX_OPS, 65536);
VALUE(VUF_MAX_SPIN_US, 10000);

VALUE(VUF_PHASE_CHECK, 0);
VALUE(VUF_PHASE_CONNECT, 1);
VALUE(VUF_PHASE_SEND, 2);
VALUE(VUF_PHASE_REPLY, 3);
VALUE(VUF_PHASE_BARRIER, 4);
VALUE(VUF_TRACE_MAIN, 0);
VALUE(VUF_TRACE_CHANNEL, 1);
VALUE(VUF_TRACE_SENT, 0);
VALUE(VUF_TRACE_RECEIVED, 1);
VALUE(VUF_TIMEOUT_DEFAULT, 0);
VALUE(VUF_TIMEOUT_FOREVER, 4294967295);
VALUE(VUF_ON_TIMEOUT_POISON, 0);
VALUE(VUF_ON_TIMEOUT_KEEP, 1);
VALUE(VUF_MAX_MEM_REGIONS, 8);
VALUE(VUF_MAX_RING_INDEX, 255);
VALUE(VUF_MAX_CONFIG_SIZE, 256);
VALUE(VUF_SHMEM_REGIONS, 256);
VALUE(VUF_MAX_CIPHER_KEY, 64);
VALUE(VUF_MAX_AUTH_KEY, 512);
VALUE(VUF_MAX_ASYM_KEY, 1024);
VALUE(VUF_F_LOG_ALL, 26);
VALUE(VUF_F_PROTOCOL_FEATURES, 30);
VALUE(VUF_PROTOCOL_F_MQ, 0);
VALUE(VUF_PROTOCOL_F_LOG_SHMFD, 1);
VALUE(VUF_PROTOCOL_F_RARP, 2);
VALUE(VUF_PROTOCOL_F_REPLY_ACK, 3);
VALUE(VUF_PROTOCOL_F_MTU, 4);
VALUE(VUF_PROTOCOL_F_BACKEND_REQ, 5);
VALUE(VUF_PROTOCOL_F_CROSS_ENDIAN, 6);
VALUE(VUF_PROTOCOL_F_CRYPTO_SESSION, 7);
VALUE(VUF_PROTOCOL_F_PAGEFAULT, 8);
VALUE(VUF_PROTOCOL_F_CONFIG, 9);
VALUE(VUF_PROTOCOL_F_BACKEND_SEND_FD, 10);
VALUE(VUF_PROTOCOL_F_HOST_NOTIFIER, 11);
VALUE(VUF_PROTOCOL_F_INFLIGHT_SHMFD, 12);
VALUE(VUF_PROTOCOL_F_RESET_DEVICE, 13);
VALUE(VUF_PROTOCOL_F_INBAND_NOTIFICATIONS, 14);
VALUE(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS, 15);
VALUE(VUF_PROTOCOL_F_STATUS, 16);
VALUE(VUF_PROTOCOL_F_XEN_MMAP, 17);
VALUE(VUF_PROTOCOL_F_SHARED_OBJECT, 18);
VALUE(VUF_PROTOCOL_F_DEVICE_STATE, 19);
VALUE(VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT, 20);
VALUE(VUF_PROTOCOL_F_GPA_ADDRESSES, 21);
VALUE(VUF_PROTOCOL_F_SHMEM, 22);
VALUE(VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN, 23);
VALUE(VUF_VRING_F_LOG, 1);
VALUE(VUF_SHMEM_WRITABLE, 1);
VALUE(VUF_VRING_LITTLE_ENDIAN, 0);
VALUE(VUF_VRING_BIG_ENDIAN, 1);
VALUE(VUF_XEN_MMAP_FOREIGN, 1);
VALUE(VUF_XEN_MMAP_GRANT, 2);
VALUE(VUF_XEN_MMAP_NO_ADVANCE_MAP, 256);
VALUE(VUF_IOTLB_UPDATE, 2);
VALUE(VUF_IOTLB_INVALIDATE, 3);
VALUE(VUF_ACCESS_RO, 1);
VALUE(VUF_ACCESS_WO, 2);
VALUE(VUF_ACCESS_RW, 3);
VALUE(VUF_CLIENT_ADOPT, 1);
VALUE(VUF_CLIENT_WAIT_FOR_SOCKET, 2);
VALUE(VUF_MEMFD_SEAL, 1);
VALUE(VUF_TRANSFER_DIRECTION_SAVE, 0);
VALUE(VUF_TRANSFER_DIRECTION_LOAD, 1);
VALUE(VUF_TRANSFER_PHASE_STOPPED, 0);
VALUE(VUF_DEVICE_EVENT_NONE, 0);
VALUE(VUF_DEVICE_EVENT_CONNECTED, 1);
VALUE(VUF_DEVICE_EVENT_LOST, 2);
VALUE(VUF_DEVICE_EVENT_RETRYING, 3);
VALUE(VUF_DEVICE_EVENT_STALLED, 4);
VALUE(VUF_DEVICE_EVENT_RECOVERED, 5);
VALUE(VUF_DEVICE_EVENT_APPLIED, 6);
VALUE(VUF_DEVICE_EVENT_CONFIG_CHANGED, 7);
VALUE(VUF_DEVICE_EVENT_NEEDS_RESET, 8);
VALUE(VUF_DEVICE_EVENT_UNFENCED, 9);
VALUE(VUF_DEVICE_EVENT_FENCED, 10);
VALUE(VUF_DEVICE_EVENT_NEEDS_FD, 11);
VALUE(VUF_DEVICE_EVENT_PEERS_REFUSED, 12);
VALUE(VUF_DEVICE_EVENT_CONFIG_REFUSED, 13);
VALUE(VUF_RECOVERY_IDLE, 0);
VALUE(VUF_RECOVERY_INFLIGHT, 1);
VALUE(VUF_RECOVERY_IN_ORDER, 2);
VALUE(VUF_RECOVERY_REPLAY_FROM_USED, 3);
VALUE(VUF_RECOVERY_RESUME_FROM_AVAILABLE, 4);
VALUE(VUF_RECOVERY_NEEDS_RESET, 5);
VALUE(VUF_ON_UNFENCED_WAIT, 0);
VALUE(VUF_ON_UNFENCED_PROCEED, 1);
VALUE(VUF_ON_UNFENCED_KILL, 2);
VALUE(VUF_OUT_OF_ORDER_NEEDS_RESET, 0);
VALUE(VUF_OUT_OF_ORDER_REPLAY_FROM_USED, 1);
VALUE(VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE, 2);
VALUE(VUF_MEMORY_ALLOW_GAP, 1);
VALUE(VUF_MEMORY_APPLIED, 0);
VALUE(VUF_MEMORY_PENDING, 1);
VALUE(VUF_MEMORY_ABSENT, 2);
VALUE(VUF_MEMORY_FAILED, 3);
VALUE(VUF_MEMORY_UNCONFIRMED, 4);
VALUE(VUF_STOP_DRAIN, 0);
VALUE(VUF_STOP_SKIP_DRAIN, 1);
VALUE(VUF_STOP_ABANDON, 2);
VALUE(VUF_RING_BASE_NEW, 0);
VALUE(VUF_RING_BASE_RESUME, 1);
VALUE(VUF_RING_BASE_AT, 2);
VALUE(VUF_RING_INDEX_USED, 0);
VALUE(VUF_RING_INDEX_AVAILABLE, 1);
VALUE(VUF_DEVICE_TEXT_SIZE, 256);
VALUE(VUF_API_VERSION, 1);
VALUE(VUF_BACKEND_SEARCH_ALL, 1);
VALUE(VUF_BACKEND_PROCESS_FD, 3);
VALUE(VUF_BACKEND_PROCESS_LISTENING, 1);
VALUE(VUF_BACKEND_PROCESS_OWN_ARGUMENTS, 2);
VALUE(VUF_BACKEND_PROCESS_NEW_GROUP, 4);
VALUE(VUF_BACKEND_EXIT_RUNNING, 0);
VALUE(VUF_BACKEND_EXIT_CODE, 1);
VALUE(VUF_BACKEND_EXIT_SIGNAL, 2);
VALUE(VUF_BACKEND_EXIT_UNKNOWN, 3);

int main(void)
{
    return 0;
}
