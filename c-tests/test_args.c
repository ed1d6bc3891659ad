/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What wrong arguments get, and calls that were not agreed or are out of order.
   None of them reaches the back-end, which is the other end of a socket pair,
   held by the test. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

enum {
    NET_MTU = 3,          /* VIRTIO_NET_F_MTU */
    RING_PACKED = 34,     /* VIRTIO_F_RING_PACKED */
    CREATE_CIPHER = 0x2,  /* VIRTIO_CRYPTO_CIPHER_CREATE_SESSION */
    CREATE_AKCIPHER = 0x404,
};

static const struct vuf_iotlb good_iotlb = {PAGE, PAGE, 0, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0}};
static const struct vuf_crypto_session good_session = {
    .size = sizeof good_session,
    .op_code = CREATE_CIPHER,
    .sym = {.cipher_alg = 3, .key_len = 16, .op_type = 1, .direction = 1},
};
static const uint8_t uuid[16] = {1, 2, 3};
static const struct vuf_backend_ops good_ops = {.size = sizeof good_ops};

/* ---- NULL ---- */

static void a_null_client_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_mem_region region = {.size = PAGE, .fd = rig->memory};
    struct vuf_vring_addr addr = {0};
    struct vuf_inflight inflight = {PAGE, 0, 1, 128, 0};
    struct vuf_shmem_config shmem = {.size = sizeof shmem};
    uint64_t number = 7;
    uint32_t base = 7;
    char byte = 7;
    int fd = 7, e = rig->event, m = rig->memory;
#define NULL_CLIENT(...) REFUSED(rig, -EINVAL, NO_REQUEST, "client", __VA_ARGS__)
    NULL_CLIENT(vuf_client_abort(NULL));
    NULL_CLIENT(vuf_client_get_fd(NULL));
    NULL_CLIENT(vuf_client_get_features(NULL, &number));
    NULL_CLIENT(vuf_client_set_features(NULL, 0));
    NULL_CLIENT(vuf_client_get_protocol_features(NULL, &number));
    NULL_CLIENT(vuf_client_set_protocol_features(NULL, 0));
    NULL_CLIENT(vuf_client_set_owner(NULL));
    NULL_CLIENT(vuf_client_reset_owner(NULL));
    NULL_CLIENT(vuf_client_get_queue_num(NULL, &number));
    NULL_CLIENT(vuf_client_get_max_mem_slots(NULL, &number));
    NULL_CLIENT(vuf_client_set_mem_table(NULL, &region, 1));
    NULL_CLIENT(vuf_client_add_mem_region(NULL, &region));
    NULL_CLIENT(vuf_client_remove_mem_region(NULL, &region));
    NULL_CLIENT(vuf_client_set_log_base(NULL, PAGE, 0, m));
    NULL_CLIENT(vuf_client_set_log_fd(NULL, e));
    NULL_CLIENT(vuf_client_set_vring_num(NULL, 0, 128));
    NULL_CLIENT(vuf_client_set_vring_addr(NULL, 0, &addr));
    NULL_CLIENT(vuf_client_set_vring_base(NULL, 0, 0));
    NULL_CLIENT(vuf_client_get_vring_base(NULL, 0, 0, &base));
    NULL_CLIENT(vuf_client_set_vring_kick(NULL, 0, e));
    NULL_CLIENT(vuf_client_set_vring_call(NULL, 0, e));
    NULL_CLIENT(vuf_client_set_vring_err(NULL, 0, e));
    NULL_CLIENT(vuf_client_set_vring_enable(NULL, 0, true));
    NULL_CLIENT(vuf_client_get_config(NULL, 0, 0, &byte, 1));
    NULL_CLIENT(vuf_client_set_config(NULL, 0, 0, &byte, 1));
    NULL_CLIENT(vuf_client_set_backend_req_fd(NULL, e));
    NULL_CLIENT(vuf_client_get_inflight_fd(NULL, 1, 128, &inflight, &fd));
    NULL_CLIENT(vuf_client_set_inflight_fd(NULL, &inflight, m));
    NULL_CLIENT(vuf_client_set_device_state_fd(NULL, 0, 0, e, &fd));
    NULL_CLIENT(vuf_client_check_device_state(NULL));
    NULL_CLIENT(vuf_client_get_shmem_config(NULL, &shmem));
    NULL_CLIENT(vuf_client_send_rarp(NULL, 0));
    NULL_CLIENT(vuf_client_net_set_mtu(NULL, 1500));
    NULL_CLIENT(vuf_client_send_iotlb(NULL, &good_iotlb));
    NULL_CLIENT(vuf_client_set_vring_endian(NULL, 0, 0));
    NULL_CLIENT(vuf_client_create_crypto_session(NULL, &good_session, &number));
    NULL_CLIENT(vuf_client_close_crypto_session(NULL, 0));
    NULL_CLIENT(vuf_client_postcopy_advise(NULL, &fd));
    assert_int_equal(fd, -1);
    NULL_CLIENT(vuf_client_postcopy_listen(NULL));
    NULL_CLIENT(vuf_client_postcopy_set_mem_table(NULL, &region, 1, &number));
    NULL_CLIENT(vuf_client_postcopy_ack_mem_table(NULL));
    NULL_CLIENT(vuf_client_postcopy_end(NULL));
    NULL_CLIENT(vuf_client_gpu_set_socket(NULL, e));
    NULL_CLIENT(vuf_client_reset_device(NULL));
    NULL_CLIENT(vuf_client_vring_kick(NULL, 0));
    NULL_CLIENT(vuf_client_set_status(NULL, 0));
    NULL_CLIENT(vuf_client_get_status(NULL, &base));
    fd = 7;
    NULL_CLIENT(vuf_client_get_shared_object(NULL, uuid, &fd));
    assert_int_equal(fd, -1);
    NULL_CLIENT(vuf_client_get_vring_base_skip_drain(NULL, 0, &base));
    NULL_CLIENT(vuf_client_open_backend_channel(NULL, &good_ops, NULL));
    NULL_CLIENT(vuf_client_backend_fd(NULL));
    NULL_CLIENT(vuf_client_process_backend_requests(NULL));
    NULL_CLIENT(vuf_client_post_iotlb(NULL, &good_iotlb));
    all_refused(rig);
    assert_int_equal(number, 7);
    assert_int_equal(base, 7);
    assert_int_equal(byte, 7);
    assert_int_equal(inflight.mmap_size, PAGE);
    assert_int_equal(shmem.nregions, 0);
}

static void freeing_null_does_nothing(void **state)
{
    struct rig *rig = *state;
    int before = count_fds();
    vuf_client_free(NULL);
    assert_int_equal(count_fds(), before);
    assert_int_equal(vuf_client_set_owner(rig->client), 0);
}

static void a_null_output_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    struct vuf_inflight inflight = {.mmap_size = 7};
    int fd = 7;
    REFUSED(rig, -EINVAL, GET_FEATURES, "features", vuf_client_get_features(c, NULL));
    REFUSED(rig, -EINVAL, GET_PROTOCOL_FEATURES, "features",
            vuf_client_get_protocol_features(c, NULL));
    REFUSED(rig, -EINVAL, GET_QUEUE_NUM, "num", vuf_client_get_queue_num(c, NULL));
    REFUSED(rig, -EINVAL, GET_MAX_MEM_SLOTS, "slots", vuf_client_get_max_mem_slots(c, NULL));
    REFUSED_RING(rig, -EINVAL, GET_VRING_BASE, 1, "base",
                 vuf_client_get_vring_base(c, 1, VUF_TIMEOUT_DEFAULT, NULL));
    REFUSED(rig, -EINVAL, GET_CONFIG, "buf", vuf_client_get_config(c, 0, 0, NULL, 1));
    REFUSED(rig, -EINVAL, GET_INFLIGHT_FD, "fd",
            vuf_client_get_inflight_fd(c, 1, 128, &inflight, NULL));
    REFUSED(rig, -EINVAL, GET_INFLIGHT_FD, "inflight",
            vuf_client_get_inflight_fd(c, 1, 128, NULL, &fd));
    REFUSED(rig, -EINVAL, SET_DEVICE_STATE_FD, "reply_fd",
            vuf_client_set_device_state_fd(c, VUF_TRANSFER_DIRECTION_SAVE,
                                           VUF_TRANSFER_PHASE_STOPPED, rig->event, NULL));
    REFUSED(rig, -EINVAL, GET_SHMEM_CONFIG, "config", vuf_client_get_shmem_config(c, NULL));
    REFUSED(rig, -EINVAL, CREATE_CRYPTO_SESSION, "session_id",
            vuf_client_create_crypto_session(c, &good_session, NULL));
    REFUSED(rig, -EINVAL, POSTCOPY_ADVISE, "fd", vuf_client_postcopy_advise(c, NULL));
    REFUSED(rig, -EINVAL, GET_STATUS, "status", vuf_client_get_status(c, NULL));
    REFUSED(rig, -EINVAL, GET_SHARED_OBJECT, "fd", vuf_client_get_shared_object(c, uuid, NULL));
    REFUSED_RING(rig, -EINVAL, GET_VRING_BASE_SKIP_DRAIN, 1, "base",
                 vuf_client_get_vring_base_skip_drain(c, 1, NULL));
    const struct vuf_mem_region region = {.size = PAGE, .fd = rig->memory};
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "bases",
            vuf_client_postcopy_set_mem_table(c, &region, 1, NULL));
    all_refused(rig);
    assert_int_equal(inflight.mmap_size, 7);
    assert_int_equal(fd, -1);
}

/* What is wrong with the last request of a list is found before the first is sent. */
static void a_list_with_a_mistake_is_refused(void **state)
{
    struct rig *rig = *state;
    static const struct vuf_vring_addr addr = {.reserved = 1}, odd = {.descriptor = 1};
    static const struct vuf_inflight inflight = {.mmap_size = PAGE, .num_queues = 1, .reserved = 1};
    const int e = rig->event;
    const struct {
        int rc;
        const char *text;
        struct vuf_op op;
    } bad[] = {
        {-EINVAL, "request", {.request = 0}},
        {-EINVAL, "request", {.request = 99}},
        {-EINVAL, "request", {.request = VUF_REQUEST_GET_FEATURES}},
        {-EINVAL, "request", {.request = VUF_REQUEST_GET_VRING_BASE}},
        {-EINVAL, "request", {.request = VUF_REQUEST_RESET_DEVICE}},
        {-EINVAL, "value", {.request = VUF_REQUEST_SET_VRING_NUM, .value = UINT64_C(1) << 32}},
        {-EINVAL, "num", {.request = VUF_REQUEST_SET_VRING_NUM, .value = 0}},
        {-EINVAL, "index", {.request = VUF_REQUEST_SET_VRING_NUM, .index = 256, .value = 8}},
        {-EINVAL, "addr", {.request = VUF_REQUEST_SET_VRING_NUM, .value = 8, .addr = &odd}},
        {-EINVAL, "fd", {.request = VUF_REQUEST_SET_VRING_NUM, .value = 8, .fd = e}},
        {-EINVAL, "reserved", {.request = VUF_REQUEST_SET_VRING_NUM, .value = 8, .reserved0 = 1}},
        {-EINVAL, "reserved", {.request = VUF_REQUEST_SET_VRING_NUM, .value = 8, .reserved = {1}}},
        {-EINVAL, "base", {.request = VUF_REQUEST_SET_VRING_BASE, .value = 65536}},
        {-EINVAL, "endian", {.request = VUF_REQUEST_SET_VRING_ENDIAN, .value = 2}},
        {-EINVAL, "value", {.request = VUF_REQUEST_SET_VRING_ENABLE, .value = 2}},
        {-EINVAL, "addr", {.request = VUF_REQUEST_SET_VRING_ADDR}},
        {-EINVAL, "reserved", {.request = VUF_REQUEST_SET_VRING_ADDR, .addr = &addr}},
        {-EINVAL, "descriptor", {.request = VUF_REQUEST_SET_VRING_ADDR, .addr = &odd}},
        {-EINVAL, "fd", {.request = VUF_REQUEST_SET_VRING_KICK, .fd = 0}},
        {-EBADF, "fd", {.request = VUF_REQUEST_SET_VRING_KICK, .fd = -2}},
        {-EBADF, "fd", {.request = VUF_REQUEST_SET_VRING_CALL, .fd = 987654}},
        {-EINVAL, "value", {.request = VUF_REQUEST_SET_VRING_ERR, .fd = e, .value = 1}},
        {-EINVAL, "value", {.request = VUF_REQUEST_VRING_KICK, .value = 1}},
        {-EINVAL, "inflight", {.request = VUF_REQUEST_SET_INFLIGHT_FD, .fd = e}},
        {-EINVAL, "reserved",
         {.request = VUF_REQUEST_SET_INFLIGHT_FD, .fd = e, .inflight = &inflight}},
        {-EBADF, "fd", {.request = VUF_REQUEST_SET_LOG_FD, .fd = -1}},
        {-EINVAL, "status", {.request = VUF_REQUEST_SET_STATUS, .value = 256}},
        {-EINVAL, "resets", {.request = VUF_REQUEST_SET_STATUS, .value = 0}},
        {-EINVAL, "index", {.request = VUF_REQUEST_SET_STATUS, .index = 1, .value = 1}},
        {-EINVAL, "mtu", {.request = VUF_REQUEST_NET_SET_MTU, .value = 1}},
        {-EINVAL, "48 bits", {.request = VUF_REQUEST_SEND_RARP, .value = UINT64_C(1) << 48}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct vuf_submit_result result = {.size = sizeof result};
        const struct vuf_op ops[] = {
            {.request = VUF_REQUEST_SET_VRING_NUM, .value = 8},
            bad[i].op,
        };
        int rc = vuf_client_submit(rig->client, ops, 2, 0, VUF_TIMEOUT_DEFAULT, &result);
        if (rc != bad[i].rc || strstr(vuf_last_error(), bad[i].text) == NULL) {
            fail_msg("%zu: %d: %s", i, rc, vuf_last_error());
        }
        assert_int_equal(result.failed, 1);
        assert_int_equal(result.sent, 0);
        assert_int_equal(result.code, rc);
    }
    const struct vuf_op good = {.request = VUF_REQUEST_SET_VRING_NUM, .value = 8};
    struct vuf_submit_result result = {.size = 0};
    struct vuf_client *c = rig->client;
    const uint32_t ms = VUF_TIMEOUT_DEFAULT;
    REFUSED(rig, -EINVAL, NO_REQUEST, "flags", vuf_client_submit(c, &good, 1, 1, ms, NULL));
    REFUSED(rig, -EINVAL, NO_REQUEST, "ops", vuf_client_submit(c, NULL, 1, 0, ms, NULL));
    REFUSED(rig, -E2BIG, NO_REQUEST, "n is",
            vuf_client_submit(c, &good, VUF_MAX_OPS + 1, 0, ms, NULL));
    REFUSED(rig, -EINVAL, NO_REQUEST, "size", vuf_client_submit(c, &good, 1, 0, ms, &result));
    REFUSED(rig, -EINVAL, NO_REQUEST, "client", vuf_client_submit(NULL, &good, 1, 0, ms, NULL));
    all_refused(rig);
    assert_int_equal(vuf_client_submit(c, NULL, 0, 0, ms, NULL), 0);
}

static void a_null_input_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "regions", vuf_client_set_mem_table(c, NULL, 1));
    REFUSED(rig, -EINVAL, ADD_MEM_REG, "region", vuf_client_add_mem_region(c, NULL));
    REFUSED(rig, -EINVAL, REM_MEM_REG, "region", vuf_client_remove_mem_region(c, NULL));
    REFUSED_RING(rig, -EINVAL, SET_VRING_ADDR, 1, "addr", vuf_client_set_vring_addr(c, 1, NULL));
    REFUSED(rig, -EINVAL, SET_CONFIG, "buf", vuf_client_set_config(c, 0, 0, NULL, 1));
    REFUSED(rig, -EINVAL, SET_INFLIGHT_FD, "inflight",
            vuf_client_set_inflight_fd(c, NULL, rig->memory));
    uint64_t number = 7;
    int fd = 7;
    REFUSED(rig, -EINVAL, IOTLB_MSG, "iotlb", vuf_client_send_iotlb(c, NULL));
    REFUSED(rig, -EINVAL, IOTLB_MSG, "iotlb", vuf_client_post_iotlb(c, NULL));
    REFUSED(rig, -EINVAL, SET_BACKEND_REQ_FD, "ops",
            vuf_client_open_backend_channel(c, NULL, NULL));
    REFUSED(rig, -EINVAL, CREATE_CRYPTO_SESSION, "session",
            vuf_client_create_crypto_session(c, NULL, &number));
    REFUSED(rig, -EINVAL, GET_SHARED_OBJECT, "uuid", vuf_client_get_shared_object(c, NULL, &fd));
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "regions",
            vuf_client_postcopy_set_mem_table(c, NULL, 1, &number));
    all_refused(rig);
    assert_int_equal(number, 7);
    assert_int_equal(fd, -1);
}

/* ---- descriptors ---- */

static void a_descriptor_that_is_not_open_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    struct vuf_inflight inflight = {PAGE, 0, 1, 128, 0};
    const int bad[] = {-1, -2, INT_MIN, rig->closed};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        int fd = bad[i], reply = 7;
        REFUSED(rig, -EBADF, SET_LOG_BASE, "fd", vuf_client_set_log_base(c, PAGE, 0, fd));
        REFUSED(rig, -EBADF, SET_LOG_FD, "fd", vuf_client_set_log_fd(c, fd));
        REFUSED(rig, -EBADF, SET_BACKEND_REQ_FD, "fd", vuf_client_set_backend_req_fd(c, fd));
        REFUSED(rig, -EBADF, SET_INFLIGHT_FD, "fd", vuf_client_set_inflight_fd(c, &inflight, fd));
        REFUSED(rig, -EBADF, GPU_SET_SOCKET, "fd", vuf_client_gpu_set_socket(c, fd));
        REFUSED(rig, -EBADF, SET_DEVICE_STATE_FD, "fd",
                vuf_client_set_device_state_fd(c, VUF_TRANSFER_DIRECTION_LOAD,
                                               VUF_TRANSFER_PHASE_STOPPED, fd, &reply));
        assert_int_equal(reply, -1);
        if (fd == -1) {
            continue; /* that is how a ring has none */
        }
        REFUSED_RING(rig, -EBADF, SET_VRING_KICK, 1, "fd", vuf_client_set_vring_kick(c, 1, fd));
        REFUSED_RING(rig, -EBADF, SET_VRING_CALL, 1, "fd", vuf_client_set_vring_call(c, 1, fd));
        REFUSED_RING(rig, -EBADF, SET_VRING_ERR, 1, "fd", vuf_client_set_vring_err(c, 1, fd));
    }
    all_refused(rig);
}

/* Eight bytes would be written into it: a regular file, guest memory among them, would lose
   what is there. */
static void a_descriptor_that_is_no_event_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    static const enum request requests[] = {SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR,
                                            SET_LOG_FD};
    const struct {
        int fd;
        const char *text;
    } bad[] = {
        {rig->memory, "fd is a regular file"},
        {open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "fd is a directory"},
        {open("/dev/null", O_RDWR | O_CLOEXEC), "fd is a character device"},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        int fd = bad[i].fd;
        const char *text = bad[i].text;
        assert_true(fd >= 0);
        REFUSED_RING(rig, -EINVAL, SET_VRING_KICK, 1, text, vuf_client_set_vring_kick(c, 1, fd));
        REFUSED_RING(rig, -EINVAL, SET_VRING_CALL, 1, text, vuf_client_set_vring_call(c, 1, fd));
        REFUSED_RING(rig, -EINVAL, SET_VRING_ERR, 1, text, vuf_client_set_vring_err(c, 1, fd));
        REFUSED(rig, -EINVAL, SET_LOG_FD, text, vuf_client_set_log_fd(c, fd));
        for (size_t n = 0; n < LENGTH(requests); n++) {
            const bool log = requests[n] == SET_LOG_FD;
            const struct vuf_op op = {.request = requests[n], .index = log ? 0 : 1, .fd = fd};
            REFUSED_RING(rig, -EINVAL, requests[n], log ? -1 : 1, text,
                         vuf_client_submit(c, &op, 1, 0, VUF_TIMEOUT_DEFAULT, NULL));
        }
        if (fd != rig->memory) {
            close(fd);
        }
    }
    all_refused(rig);
}

/* What a notification may be written to: an eventfd, a pipe, a socket. */
static void pipes_and_sockets_are_accepted_as_events(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    int ends[4];
    assert_int_equal(pipe(ends), 0);
    make_pair(ends + 2);
    for (size_t i = 0; i < LENGTH(ends); i++) {
        uint32_t ring = (uint32_t)i; /* of one that runs, another call would be waited for */
        assert_ok(vuf_client_set_vring_call(c, ring, ends[i]));
        assert_ok(vuf_client_set_vring_err(c, ring, ends[i]));
        assert_ok(vuf_client_set_vring_kick(c, ring, ends[i]));
        close(ends[i]);
    }
}

static void a_region_names_a_bad_descriptor_by_its_position(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const struct {
        int fd, code;
    } bad[] = {{0, -EINVAL}, {-1, -EBADF}, {-2, -EBADF}, {INT_MIN, -EBADF}, {rig->closed, -EBADF}};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_mem_region regions[] = {
            {.guest_addr = 0, .size = PAGE, .user_addr = 0, .fd = rig->memory},
            {.guest_addr = PAGE, .size = PAGE, .user_addr = PAGE, .fd = bad[i].fd},
        };
        REFUSED_AT(rig, bad[i].code, SET_MEM_TABLE, -1, 1, "fd",
                   vuf_client_set_mem_table(c, regions, 2));
        REFUSED(rig, bad[i].code, ADD_MEM_REG, "fd", vuf_client_add_mem_region(c, &regions[1]));
    }
    all_refused(rig);
}

/* ---- rings ---- */

static int ring_addr(struct rig *rig, uint32_t index)
{
    struct vuf_vring_addr addr = {0};
    return vuf_client_set_vring_addr(rig->client, index, &addr);
}

static int ring_set_base(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_base(rig->client, index, 0);
}

static int ring_kick(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_kick(rig->client, index, rig->event);
}

static int ring_call(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_call(rig->client, index, rig->event);
}

static int ring_err(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_err(rig->client, index, rig->event);
}

static int ring_endian(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_endian(rig->client, index, VUF_VRING_BIG_ENDIAN);
}

static int ring_message(struct rig *rig, uint32_t index)
{
    return vuf_client_vring_kick(rig->client, index);
}

static int ring_leave(struct rig *rig, uint32_t index)
{
    uint32_t base;
    return vuf_client_get_vring_base_skip_drain(rig->client, index, &base);
}

static const struct {
    enum request request;
    int (*call)(struct rig *, uint32_t index);
} ring_requests[] = {
    {SET_VRING_ENDIAN, ring_endian}, {VRING_KICK, ring_message},
    {GET_VRING_BASE_SKIP_DRAIN, ring_leave},
    {SET_VRING_NUM, ring_num},       {SET_VRING_ADDR, ring_addr},
    {SET_VRING_BASE, ring_set_base}, {GET_VRING_BASE, ring_get_base},
    {SET_VRING_KICK, ring_kick},     {SET_VRING_CALL, ring_call},
    {SET_VRING_ERR, ring_err},       {SET_VRING_ENABLE, ring_enable},
};

static void refuse_ring(struct rig *rig, uint32_t index)
{
    /* What does not fit into the field is not told there. */
    int told = index <= INT32_MAX ? (int)index : -1;
    for (size_t i = 0; i < LENGTH(ring_requests); i++) {
        REFUSED_RING(rig, -EINVAL, ring_requests[i].request, told, "index",
                     ring_requests[i].call(rig, index));
    }
}

static void a_ring_beyond_max_rings_is_refused(void **state)
{
    struct rig *rig = *state;
    const uint32_t beyond[] = {MAX_RINGS, VUF_MAX_RING_INDEX, VUF_MAX_RING_INDEX + 1, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(beyond); i++) {
        refuse_ring(rig, beyond[i]);
    }
    all_refused(rig);
}

static void a_ring_beyond_the_protocol_is_refused_by_default(void **state)
{
    struct rig *rig = *state;
    struct vuf_client_options options = {
        .size = sizeof options,
        .flags = VUF_CLIENT_ADOPT,
        .adopt_features = BIT(VUF_F_PROTOCOL_FEATURES),
    };
    reopen_client(rig, &options);
    const uint32_t beyond[] = {VUF_MAX_RING_INDEX + 1, 512, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(beyond); i++) {
        refuse_ring(rig, beyond[i]);
    }
    all_refused(rig);
    struct header header;
    assert_int_equal(ring_num(rig, VUF_MAX_RING_INDEX), 0);
    assert_true(read_request(rig->peer, &header));
}

static void a_bad_ring_size_is_refused(void **state)
{
    struct rig *rig = *state;
    const uint32_t split[] = {0, 3, 100, 32767, 32769, 65536, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(split); i++) {
        REFUSED_RING(rig, -EINVAL, SET_VRING_NUM, 2, "num",
                     vuf_client_set_vring_num(rig->client, 2, split[i]));
    }
    adopt(rig, BIT(RING_PACKED), 0);
    const uint32_t packed[] = {0, 32769, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(packed); i++) {
        REFUSED_RING(rig, -EINVAL, SET_VRING_NUM, 2, "num",
                     vuf_client_set_vring_num(rig->client, 2, packed[i]));
    }
    all_refused(rig);
}

static void the_limits_of_a_ring_size_are_accepted(void **state)
{
    struct rig *rig = *state;
    struct header header;
    const struct {
        uint64_t features;
        uint32_t num;
    } good[] = {{0, 1}, {0, 32768}, {BIT(RING_PACKED), 3}, {BIT(RING_PACKED), 32767}};
    for (size_t i = 0; i < LENGTH(good); i++) {
        adopt(rig, good[i].features, 0);
        assert_int_equal(vuf_client_set_vring_num(rig->client, 0, good[i].num), 0);
        assert_true(read_request(rig->peer, &header));
        assert_int_equal(header.request, SET_VRING_NUM);
    }
}

static void a_bad_ring_address_is_refused(void **state)
{
    struct rig *rig = *state;
    const struct {
        const char *name;
        uint64_t features;
        struct vuf_vring_addr addr;
    } bad[] = {
        {"flags", 0, {.flags = 2}},
        {"flags", 0, {.flags = UINT32_MAX}},
        {"reserved", 0, {.reserved = 1}},
        {"descriptor", 0, {.descriptor = 1}},
        {"descriptor", 0, {.descriptor = 8}},
        {"descriptor", 0, {.descriptor = UINT64_MAX}},
        {"available", 0, {.available = 1}},
        {"used", 0, {.used = 2}},
        {"available", BIT(RING_PACKED), {.available = 2}},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        adopt(rig, bad[i].features, 0);
        REFUSED_RING(rig, -EINVAL, SET_VRING_ADDR, 3, bad[i].name,
                     vuf_client_set_vring_addr(rig->client, 3, &bad[i].addr));
    }
    all_refused(rig);
}

static void a_split_ring_has_a_base_of_16_bits(void **state)
{
    struct rig *rig = *state;
    const uint32_t bad[] = {0x10000, 0x80008000, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED_RING(rig, -EINVAL, SET_VRING_BASE, 1, "base",
                     vuf_client_set_vring_base(rig->client, 1, bad[i]));
    }
    all_refused(rig);
    assert_int_equal(vuf_client_set_vring_base(rig->client, 1, 0xffff), 0);
}

/* ---- memory ---- */

static void a_bad_number_of_regions_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    struct vuf_mem_region regions[VUF_MAX_MEM_REGIONS + 1];
    for (size_t i = 0; i < LENGTH(regions); i++) {
        regions[i] = (struct vuf_mem_region){
            .guest_addr = i * PAGE, .size = PAGE, .user_addr = i * PAGE, .fd = rig->memory};
    }
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "regions", vuf_client_set_mem_table(c, regions, 0));
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "regions", vuf_client_set_mem_table(c, NULL, 0));
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "n is 9", vuf_client_set_mem_table(c, regions, 9));
    REFUSED(rig, -EINVAL, SET_MEM_TABLE, "n is", vuf_client_set_mem_table(c, regions, SIZE_MAX));
    all_refused(rig);
}

static void a_bad_region_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const uint64_t high = UINT64_MAX - PAGE + 1;
    const struct {
        const char *name;
        struct vuf_mem_region region;
    } bad[] = {
        {"size", {.size = 0}},
        {"mmap_offset", {.size = PAGE, .mmap_offset = 1}},
        {"mmap_offset", {.size = PAGE, .mmap_offset = PAGE / 2}},
        {"guest_addr", {.size = 2 * PAGE, .guest_addr = high}},
        {"user_addr", {.size = 2 * PAGE, .user_addr = high}},
        {"mmap_offset", {.size = 2 * PAGE, .mmap_offset = high}},
        {"xen_mmap_flags", {.size = PAGE, .xen_mmap_flags = 1}},
        {"xen_domid", {.size = PAGE, .xen_domid = 1}},
        {"reserved", {.size = PAGE, .reserved0 = 1}},
        {"reserved", {.size = PAGE, .reserved = {1, 0}}},
        {"reserved", {.size = PAGE, .reserved = {0, 1}}},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_mem_region table[] = {
            {.guest_addr = 1 << 30, .size = PAGE, .user_addr = 1 << 30, .fd = rig->memory},
            bad[i].region,
        };
        table[1].fd = rig->memory;
        REFUSED_AT(rig, -EINVAL, SET_MEM_TABLE, -1, 1, bad[i].name,
                   vuf_client_set_mem_table(c, table, 2));
        REFUSED(rig, -EINVAL, ADD_MEM_REG, bad[i].name, vuf_client_add_mem_region(c, &table[1]));
        REFUSED(rig, -EINVAL, REM_MEM_REG, bad[i].name, vuf_client_remove_mem_region(c, &table[1]));
    }
    all_refused(rig);
}

static void overlapping_regions_are_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const struct {
        uint64_t guest_addr, user_addr;
    } second[] = {{0, 8 * PAGE}, {PAGE, 8 * PAGE}, {8 * PAGE, 0}, {8 * PAGE, PAGE}};
    for (size_t i = 0; i < LENGTH(second); i++) {
        struct vuf_mem_region table[] = {
            {.size = 2 * PAGE, .fd = rig->memory},
            {second[i].guest_addr, PAGE, second[i].user_addr, .fd = rig->memory},
        };
        REFUSED_AT(rig, -EINVAL, SET_MEM_TABLE, -1, 1, "overlap",
                   vuf_client_set_mem_table(c, table, 2));
    }
    all_refused(rig);
}

static void gpa_addresses_wants_equal_addresses(void **state)
{
    struct rig *rig = *state;
    adopt(rig, BIT(VUF_F_PROTOCOL_FEATURES),
          BIT(VUF_PROTOCOL_F_GPA_ADDRESSES) | BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS));
    struct vuf_client *c = rig->client;
    struct vuf_mem_region region = {PAGE, PAGE, 2 * PAGE, .fd = rig->memory};
    REFUSED_AT(rig, -EINVAL, SET_MEM_TABLE, -1, 0, "user_addr",
               vuf_client_set_mem_table(c, &region, 1));
    REFUSED(rig, -EINVAL, ADD_MEM_REG, "user_addr", vuf_client_add_mem_region(c, &region));
    REFUSED(rig, -EINVAL, REM_MEM_REG, "user_addr", vuf_client_remove_mem_region(c, &region));
    all_refused(rig);
}

static void xen_flags_must_be_known(void **state)
{
    struct rig *rig = *state;
    adopt(rig, BIT(VUF_F_PROTOCOL_FEATURES), all_protocol_features() | BIT(VUF_PROTOCOL_F_XEN_MMAP));
    struct vuf_client *c = rig->client;
    const uint32_t bad[] = {4, 8, 0x80, 0x200, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_mem_region region = {.size = PAGE, .fd = rig->memory, .xen_mmap_flags = bad[i]};
        REFUSED_AT(rig, -EINVAL, SET_MEM_TABLE, -1, 0, "xen_mmap_flags",
                   vuf_client_set_mem_table(c, &region, 1));
        REFUSED(rig, -EINVAL, ADD_MEM_REG, "xen_mmap_flags", vuf_client_add_mem_region(c, &region));
        REFUSED(rig, -EINVAL, REM_MEM_REG, "xen_mmap_flags",
                vuf_client_remove_mem_region(c, &region));
    }
    all_refused(rig);
}

static void a_bad_translation_is_refused(void **state)
{
    struct rig *rig = *state;
    const struct {
        const char *name;
        struct vuf_iotlb iotlb;
    } bad[] = {
        {"type", {PAGE, PAGE, 0, VUF_ACCESS_RW, 0, {0}}},
        {"type", {PAGE, PAGE, 0, VUF_ACCESS_RW, 1, {0}}},
        {"type", {PAGE, PAGE, 0, VUF_ACCESS_RW, 4, {0}}},
        {"perm", {PAGE, PAGE, 0, 0, VUF_IOTLB_UPDATE, {0}}},
        {"perm", {PAGE, PAGE, 0, 4, VUF_IOTLB_UPDATE, {0}}},
        {"perm", {PAGE, PAGE, 0, 4, VUF_IOTLB_INVALIDATE, {0}}},
        {"size", {PAGE, 0, 0, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0}}},
        {"size", {PAGE, 0, 0, VUF_ACCESS_RW, VUF_IOTLB_INVALIDATE, {0}}},
        {"iova", {UINT64_MAX, 2, 0, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0}}},
        {"iova", {2, UINT64_MAX, 0, 0, VUF_IOTLB_INVALIDATE, {0}}},
        {"user_addr", {0, 2, UINT64_MAX, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0}}},
        {"reserved", {PAGE, PAGE, 0, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0, 0, 0, 0, 0, 1}}},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED(rig, -EINVAL, IOTLB_MSG, bad[i].name,
                vuf_client_send_iotlb(rig->client, &bad[i].iotlb));
        REFUSED(rig, -EINVAL, IOTLB_MSG, bad[i].name,
                vuf_client_post_iotlb(rig->client, &bad[i].iotlb));
    }
    all_refused(rig);
}

static void postcopy_out_of_order_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const struct vuf_mem_region region = {.size = PAGE, .fd = rig->memory};
    uint64_t base = 7;
    int fd = 7;
    REFUSED(rig, VUF_E_STATE, POSTCOPY_ADVISE, "CONFIGURE_MEM_SLOTS",
            vuf_client_postcopy_advise(c, &fd));
    assert_int_equal(fd, -1);
    adopt(rig, BIT(VUF_F_PROTOCOL_FEATURES), BIT(VUF_PROTOCOL_F_PAGEFAULT));
    c = rig->client;
    REFUSED(rig, VUF_E_STATE, POSTCOPY_LISTEN, "POSTCOPY_ADVISE", vuf_client_postcopy_listen(c));
    REFUSED(rig, VUF_E_STATE, POSTCOPY_END, "POSTCOPY_LISTEN", vuf_client_postcopy_end(c));
    REFUSED(rig, VUF_E_STATE, SET_MEM_TABLE, "POSTCOPY_LISTEN",
            vuf_client_postcopy_set_mem_table(c, &region, 1, &base));
    REFUSED(rig, VUF_E_STATE, SET_MEM_TABLE, "memory table", vuf_client_postcopy_ack_mem_table(c));
    all_refused(rig);
    assert_int_equal(base, 7);
}

static void a_bad_log_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    int fd = rig->memory;
    REFUSED(rig, -EINVAL, SET_LOG_BASE, "mmap_size", vuf_client_set_log_base(c, 0, 0, fd));
    REFUSED(rig, -EINVAL, SET_LOG_BASE, "mmap_size", vuf_client_set_log_base(c, 4, 0, fd));
    REFUSED(rig, -EINVAL, SET_LOG_BASE, "mmap_size", vuf_client_set_log_base(c, PAGE + 1, 0, fd));
    REFUSED(rig, -EINVAL, SET_LOG_BASE, "mmap_offset", vuf_client_set_log_base(c, PAGE, PAGE, fd));
    all_refused(rig);
}

/* ---- the device ---- */

static void a_bad_range_of_configuration_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const struct {
        const char *name;
        uint32_t offset, flags;
        size_t len;
    } bad[] = {
        {"len", 0, 0, 0},           {"len", 0, 0, VUF_MAX_CONFIG_SIZE + 1},
        {"len", 0, 0, SIZE_MAX},    {"len", 0, 0, (size_t)UINT32_MAX + 2},
        {"offset", 4096, 0, 1},     {"offset", 4095, 0, 2},
        {"offset", UINT32_MAX, 0, 1}, {"offset", 3841, 0, VUF_MAX_CONFIG_SIZE},
        {"flags", 0, 4, 1},         {"flags", 0, UINT32_MAX, 1},
    };
    char buf[VUF_MAX_CONFIG_SIZE + 1], before[sizeof buf];
    memset(buf, 7, sizeof buf);
    memcpy(before, buf, sizeof buf);
    for (size_t i = 0; i < LENGTH(bad); i++) {
        uint32_t offset = bad[i].offset, flags = bad[i].flags;
        size_t len = bad[i].len;
        REFUSED(rig, -EINVAL, GET_CONFIG, bad[i].name,
                vuf_client_get_config(c, offset, flags, buf, len));
        REFUSED(rig, -EINVAL, SET_CONFIG, bad[i].name,
                vuf_client_set_config(c, offset, flags, buf, len));
    }
    all_refused(rig);
    assert_memory_equal(buf, before, sizeof buf);
}

static void a_bad_inflight_buffer_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    struct vuf_inflight untouched = {.mmap_size = 7};
    int fd = 7;
    REFUSED(rig, -EINVAL, GET_INFLIGHT_FD, "num_queues",
            vuf_client_get_inflight_fd(c, 0, 128, &untouched, &fd));
    REFUSED(rig, -EINVAL, GET_INFLIGHT_FD, "queue_size",
            vuf_client_get_inflight_fd(c, 1, 0, &untouched, &fd));
    const struct {
        const char *name;
        struct vuf_inflight inflight;
    } bad[] = {
        {"num_queues", {PAGE, 0, 0, 128, 0}},
        {"queue_size", {PAGE, 0, 1, 0, 0}},
        {"mmap_size", {0, 0, 1, 128, 0}},
        {"mmap_offset", {PAGE, UINT64_MAX, 1, 128, 0}},
        {"reserved", {PAGE, 0, 1, 128, 1}},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED(rig, -EINVAL, SET_INFLIGHT_FD, bad[i].name,
                vuf_client_set_inflight_fd(c, &bad[i].inflight, rig->memory));
    }
    all_refused(rig);
    assert_int_equal(fd, -1);
    assert_int_equal(untouched.mmap_size, 7);
}

static void a_bad_transfer_of_state_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const struct {
        const char *name;
        uint32_t direction, phase;
    } bad[] = {{"direction", 2, 0}, {"direction", UINT32_MAX, 0}, {"phase", 0, 1}, {"phase", 1, 9}};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        int fd = 7;
        REFUSED(rig, -EINVAL, SET_DEVICE_STATE_FD, bad[i].name,
                vuf_client_set_device_state_fd(c, bad[i].direction, bad[i].phase, rig->event, &fd));
        assert_int_equal(fd, -1);
    }
    all_refused(rig);
}

static void a_bad_number_of_a_device_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    const uint64_t macs[] = {BIT(48), BIT(63), UINT64_MAX};
    for (size_t i = 0; i < LENGTH(macs); i++) {
        REFUSED(rig, -EINVAL, SEND_RARP, "mac", vuf_client_send_rarp(c, macs[i]));
    }
    const uint32_t mtus[] = {0, 67, 65536, UINT32_MAX};
    for (size_t i = 0; i < LENGTH(mtus); i++) {
        REFUSED(rig, -EINVAL, NET_SET_MTU, "mtu", vuf_client_net_set_mtu(c, mtus[i]));
    }
    REFUSED(rig, -EINVAL, SET_STATUS, "status", vuf_client_set_status(c, 256));
    REFUSED(rig, -EINVAL, SET_STATUS, "status", vuf_client_set_status(c, UINT32_MAX));
    REFUSED_RING(rig, -EINVAL, SET_VRING_ENDIAN, 1, "endian", vuf_client_set_vring_endian(c, 1, 2));
    REFUSED_RING(rig, -EINVAL, SET_VRING_ENDIAN, 1, "endian",
                 vuf_client_set_vring_endian(c, 1, UINT32_MAX));
    all_refused(rig);
}

static void a_bad_crypto_session_is_refused(void **state)
{
    struct rig *rig = *state;
    uint64_t id = 7;
#define SESSION(...) {.size = sizeof(struct vuf_crypto_session), __VA_ARGS__}
    const struct {
        const char *name;
        int code;
        struct vuf_crypto_session session;
    } bad[] = {
        {"size", -EINVAL, {.size = 0, .op_code = CREATE_CIPHER}},
        {"size", -E2BIG, {.size = 1 << 20, .op_code = CREATE_CIPHER}},
        {"op_code", -EINVAL, SESSION(.op_code = 0)},
        {"op_code", -EINVAL, SESSION(.op_code = 3)},
        {"op_code", -EINVAL, SESSION(.op_code = 0x402)},
        {"op_code", -EINVAL, SESSION(.op_code = BIT(32) | CREATE_CIPHER)},
        {"key_len", -EINVAL, SESSION(.op_code = CREATE_CIPHER, .sym = {.key_len = 65})},
        {"key_len", -EINVAL, SESSION(.op_code = CREATE_CIPHER, .sym = {.key_len = UINT32_MAX})},
        {"key_len", -EINVAL, SESSION(.op_code = CREATE_CIPHER, .sym = {.key = {1}})},
        {"auth_key_len", -EINVAL, SESSION(.op_code = 0x202, .sym = {.auth_key_len = 513})},
        {"reserved", -EINVAL, SESSION(.op_code = CREATE_CIPHER, .sym = {.reserved = 1})},
        {"key_len", -EINVAL, SESSION(.op_code = CREATE_AKCIPHER, .asym = {.key_len = 1025})},
        {"reserved", -EINVAL, SESSION(.op_code = CREATE_AKCIPHER, .asym = {.reserved = 1})},
        {"part", -EINVAL, SESSION(.op_code = CREATE_CIPHER, .asym = {.algo = 1})},
        {"part", -EINVAL, SESSION(.op_code = CREATE_AKCIPHER, .sym = {.key = {1}})},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED(rig, bad[i].code, CREATE_CRYPTO_SESSION, bad[i].name,
                vuf_client_create_crypto_session(rig->client, &bad[i].session, &id));
    }
    /* A field of another version, as part of a session that is good otherwise. */
    struct {
        struct vuf_crypto_session session;
        uint64_t later;
    } longer = {SESSION(.op_code = CREATE_CIPHER), .later = 1};
    longer.session.size = sizeof longer;
    REFUSED(rig, -E2BIG, CREATE_CRYPTO_SESSION, "does not know",
            vuf_client_create_crypto_session(rig->client, &longer.session, &id));
    all_refused(rig);
    assert_int_equal(id, 7);
}

static void a_result_without_its_size_is_refused(void **state)
{
    struct rig *rig = *state;
    const size_t bad[] = {0, 1, sizeof(size_t) - 1};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_shmem_config config = {.size = bad[i], .nregions = 7};
        struct vuf_error_info info = {.size = bad[i], .code = 7};
        REFUSED(rig, -EINVAL, GET_SHMEM_CONFIG, "size",
                vuf_client_get_shmem_config(rig->client, &config));
        REFUSED(rig, -EINVAL, NO_REQUEST, "size", vuf_last_error_info(&info));
        assert_int_equal(config.nregions, 7);
        assert_int_equal(info.code, 7);
    }
    REFUSED(rig, -EINVAL, NO_REQUEST, "info", vuf_last_error_info(NULL));
    all_refused(rig);
}

/* sizeof of a pointer to the struct in place of the struct, and each size below that of
   version 0.1: otherwise most of the struct would be ignored without a word. */
static void a_size_below_that_of_the_struct_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    struct vuf_client *client;
    struct vuf_device *device = NULL, *other;
    struct vuf_backend_programs *list = NULL, *another;
    struct vuf_backend_process *process = NULL, *second;
    const struct vuf_backend_process_options none = {
        .size = sizeof none, .flags = VUF_BACKEND_PROCESS_OWN_ARGUMENTS};
    uint64_t id;
    size_t n;
    assert_ok(vuf_device_open("/nowhere/socket", NULL, &device));
    assert_ok(vuf_backend_programs_find(NULL, &list, &n));
    /* Valgrind (3.19) does not know pidfds. */
    int started = vuf_backend_process_start("/bin/true", &none, &process);
    if (started != -ENOSYS) {
        assert_ok(started);
    }
#define TOO_SMALL(request, type, call)                                                             \
    do {                                                                                           \
        const size_t sizes[] = {sizeof(void *), sizeof(struct type) - 1};                          \
        for (size_t i = 0; i < LENGTH(sizes); i++) {                                               \
            struct type it;                                                                        \
            memset(&it, 0, sizeof it);                                                             \
            it.size = sizes[i];                                                                    \
            REFUSED(rig, -EINVAL, request, "sizeof(struct " #type ")", call);                      \
        }                                                                                          \
    } while (0)
    TOO_SMALL(NO_REQUEST, vuf_client_options, vuf_client_from_fd(rig->peer, &it, &client));
    TOO_SMALL(CREATE_CRYPTO_SESSION, vuf_crypto_session,
              vuf_client_create_crypto_session(c, &it, &id));
    TOO_SMALL(GET_SHMEM_CONFIG, vuf_shmem_config, vuf_client_get_shmem_config(c, &it));
    TOO_SMALL(SET_BACKEND_REQ_FD, vuf_backend_ops, vuf_client_open_backend_channel(c, &it, NULL));
    TOO_SMALL(NO_REQUEST, vuf_counters, vuf_client_get_counters(c, &it));
    TOO_SMALL(NO_REQUEST, vuf_submit_result,
              vuf_client_submit(c, NULL, 0, 0, VUF_TIMEOUT_DEFAULT, &it));
    TOO_SMALL(NO_REQUEST, vuf_error_info, vuf_last_error_info(&it));
    TOO_SMALL(NO_REQUEST, vuf_device_options, vuf_device_open("/nowhere/socket", &it, &other));
    TOO_SMALL(NO_REQUEST, vuf_device_event, vuf_device_process(device, &it));
    TOO_SMALL(NO_REQUEST, vuf_device_info, vuf_device_get_info(device, &it));
    TOO_SMALL(NO_REQUEST, vuf_counters, vuf_device_get_counters(device, &it));
    TOO_SMALL(NO_REQUEST, vuf_quiet, vuf_device_get_quiet(device, &it));
    TOO_SMALL(NO_REQUEST, vuf_quiet, vuf_device_remove_memory(device, 0, PAGE, &it));
    TOO_SMALL(NO_REQUEST, vuf_quiet, vuf_device_reset(device, 0, &it));
    TOO_SMALL(NO_REQUEST, vuf_quiet, vuf_device_stop(device, NULL, 0, VUF_STOP_DRAIN, 0, &it));
    TOO_SMALL(NO_REQUEST, vuf_backend_search, vuf_backend_programs_find(&it, &another, &n));
    TOO_SMALL(NO_REQUEST, vuf_backend_program, vuf_backend_programs_get(list, 0, &it));
    TOO_SMALL(NO_REQUEST, vuf_backend_process_options,
              vuf_backend_process_start("/bin/true", &it, &second));
    if (process != NULL) {
        TOO_SMALL(NO_REQUEST, vuf_backend_exit, vuf_backend_process_get_exit(process, &it));
        TOO_SMALL(NO_REQUEST, vuf_backend_exit, vuf_backend_process_wait(process, 0, &it));
        TOO_SMALL(NO_REQUEST, vuf_backend_exit, vuf_backend_process_terminate(process, 0, &it));
    }
    vuf_backend_process_free(process);
    vuf_backend_programs_free(list);
    vuf_device_free(device);
    all_refused(rig);
}

/* ---- the back-end's own channel ---- */

static int map_nothing(void *user, const struct vuf_shmem_area *area, int fd)
{
    (void)user, (void)area, (void)fd;
    return -EIO;
}

static int unmap_nothing(void *user, const struct vuf_shmem_area *area)
{
    (void)user, (void)area;
    return -EIO;
}

static void bad_functions_are_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *c = rig->client;
    struct {
        struct vuf_backend_ops ops;
        void *later; /* a field of another version */
    } longer = {.ops = {.size = sizeof longer}, .later = &longer};
    const struct {
        const char *name;
        int code;
        struct vuf_backend_ops ops;
    } bad[] = {
        {"size", -EINVAL, {.size = 0}},
        {"size", -EINVAL, {.size = sizeof(size_t) - 1}},
        {"size", -E2BIG, {.size = 65537}},
        {"size", -E2BIG, {.size = SIZE_MAX}},
        {"shmem_unmap", -EINVAL, {.size = sizeof bad->ops, .shmem_map = map_nothing}},
        {"shmem_map", -EINVAL, {.size = sizeof bad->ops, .shmem_unmap = unmap_nothing}},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED(rig, bad[i].code, SET_BACKEND_REQ_FD, bad[i].name,
                vuf_client_open_backend_channel(c, &bad[i].ops, NULL));
    }
    REFUSED(rig, -E2BIG, SET_BACKEND_REQ_FD, "ops",
            vuf_client_open_backend_channel(c, &longer.ops, NULL));
    all_refused(rig);
    /* Fields of another version that are not used do no harm; without
       REPLY_ACK nothing is waited for. */
    struct header header;
    longer.later = NULL;
    assert_int_equal(vuf_client_open_backend_channel(c, &longer.ops, NULL), 0);
    assert_true(read_request(rig->peer, &header));
    assert_int_equal(header.request, SET_BACKEND_REQ_FD);
}

static void without_a_channel_there_is_nothing_to_serve(void **state)
{
    struct rig *rig = *state;
    REFUSED(rig, VUF_E_STATE, NO_REQUEST, "channel", vuf_client_backend_fd(rig->client));
    REFUSED(rig, VUF_E_STATE, NO_REQUEST, "channel",
            vuf_client_process_backend_requests(rig->client));
    all_refused(rig);
}

/* ---- features and order ---- */

static void what_was_not_agreed_is_refused(void **state)
{
    struct rig *rig = *state;
    adopt(rig, 0, 0);
    struct vuf_client *c = rig->client;
    struct vuf_mem_region region = {.size = PAGE, .fd = rig->memory};
    struct vuf_inflight inflight = {PAGE, 0, 1, 128, 0};
    struct vuf_shmem_config shmem = {.size = sizeof shmem, .nregions = 7};
    uint64_t number = 7;
    uint32_t status = 7;
    char byte = 7;
    int fd = 7, e = rig->event, m = rig->memory;
#define NEEDS(request, feature, ...)                                                               \
    REFUSED(rig, VUF_E_NOT_NEGOTIATED, request, feature, __VA_ARGS__)
    NEEDS(GET_PROTOCOL_FEATURES, "30", vuf_client_get_protocol_features(c, &number));
    NEEDS(SET_PROTOCOL_FEATURES, "30", vuf_client_set_protocol_features(c, 0));
    NEEDS(GET_QUEUE_NUM, "MQ", vuf_client_get_queue_num(c, &number));
    NEEDS(GET_MAX_MEM_SLOTS, "CONFIGURE_MEM_SLOTS", vuf_client_get_max_mem_slots(c, &number));
    NEEDS(ADD_MEM_REG, "CONFIGURE_MEM_SLOTS", vuf_client_add_mem_region(c, &region));
    NEEDS(REM_MEM_REG, "CONFIGURE_MEM_SLOTS", vuf_client_remove_mem_region(c, &region));
    NEEDS(SET_LOG_BASE, "LOG_SHMFD", vuf_client_set_log_base(c, PAGE, 0, m));
    NEEDS(GET_CONFIG, "CONFIG", vuf_client_get_config(c, 0, 0, &byte, 1));
    NEEDS(SET_CONFIG, "CONFIG", vuf_client_set_config(c, 0, 0, &byte, 1));
    NEEDS(SET_BACKEND_REQ_FD, "BACKEND_REQ", vuf_client_set_backend_req_fd(c, e));
    NEEDS(GET_INFLIGHT_FD, "INFLIGHT_SHMFD",
          vuf_client_get_inflight_fd(c, 1, 128, &inflight, &fd));
    NEEDS(SET_INFLIGHT_FD, "INFLIGHT_SHMFD", vuf_client_set_inflight_fd(c, &inflight, m));
    NEEDS(SET_DEVICE_STATE_FD, "DEVICE_STATE",
          vuf_client_set_device_state_fd(c, VUF_TRANSFER_DIRECTION_SAVE,
                                         VUF_TRANSFER_PHASE_STOPPED, e, &fd));
    NEEDS(CHECK_DEVICE_STATE, "DEVICE_STATE", vuf_client_check_device_state(c));
    NEEDS(GET_SHMEM_CONFIG, "SHMEM", vuf_client_get_shmem_config(c, &shmem));
    NEEDS(SEND_RARP, "RARP", vuf_client_send_rarp(c, 0));
    NEEDS(NET_SET_MTU, "MTU (bit 4)", vuf_client_net_set_mtu(c, 1500));
    NEEDS(IOTLB_MSG, "33", vuf_client_send_iotlb(c, &good_iotlb));
    NEEDS(IOTLB_MSG, "33", vuf_client_post_iotlb(c, &good_iotlb));
    NEEDS(SET_BACKEND_REQ_FD, "BACKEND_REQ",
          vuf_client_open_backend_channel(c, &good_ops, NULL));
    NEEDS(CREATE_CRYPTO_SESSION, "CRYPTO_SESSION",
          vuf_client_create_crypto_session(c, &good_session, &number));
    NEEDS(CLOSE_CRYPTO_SESSION, "CRYPTO_SESSION", vuf_client_close_crypto_session(c, 1));
    NEEDS(POSTCOPY_ADVISE, "PAGEFAULT", vuf_client_postcopy_advise(c, &fd));
    NEEDS(POSTCOPY_LISTEN, "PAGEFAULT", vuf_client_postcopy_listen(c));
    NEEDS(POSTCOPY_END, "PAGEFAULT", vuf_client_postcopy_end(c));
    NEEDS(RESET_DEVICE, "RESET_DEVICE", vuf_client_reset_device(c));
    NEEDS(SET_STATUS, "STATUS", vuf_client_set_status(c, 1));
    NEEDS(GET_STATUS, "STATUS", vuf_client_get_status(c, &status));
    NEEDS(GET_SHARED_OBJECT, "SHARED_OBJECT", vuf_client_get_shared_object(c, uuid, &fd));
    REFUSED_RING(rig, VUF_E_NOT_NEGOTIATED, SET_VRING_ENDIAN, 1, "CROSS_ENDIAN",
                 ring_endian(rig, 1));
    REFUSED_RING(rig, VUF_E_NOT_NEGOTIATED, VRING_KICK, 1, "INBAND_NOTIFICATIONS",
                 ring_message(rig, 1));
    REFUSED_RING(rig, VUF_E_NOT_NEGOTIATED, GET_VRING_BASE_SKIP_DRAIN, 1,
                 "GET_VRING_BASE_SKIP_DRAIN", ring_leave(rig, 1));
    REFUSED_RING(rig, VUF_E_NOT_NEGOTIATED, SET_VRING_ENABLE, 1, "30",
                 vuf_client_set_vring_enable(c, 1, true));
    all_refused(rig);
    assert_int_equal(number, 7);
    assert_int_equal(byte, 7);
    assert_int_equal(fd, -1);
    assert_int_equal(inflight.mmap_size, PAGE);
    assert_int_equal(shmem.nregions, 7);
    assert_int_equal(status, 7);
    /* Of a pair the other one. */
    adopt(rig, 0, BIT(VUF_PROTOCOL_F_MTU));
    NEEDS(NET_SET_MTU, "bit 3 ", vuf_client_net_set_mtu(rig->client, 1500));
    adopt(rig, BIT(NET_MTU), 0);
    NEEDS(NET_SET_MTU, "MTU (bit 4)", vuf_client_net_set_mtu(rig->client, 1500));
    all_refused(rig);
}

static void calls_out_of_order_are_refused(void **state)
{
    struct rig *rig = *state;
    struct header header;
    REFUSED(rig, VUF_E_STATE, SET_FEATURES, "GET_FEATURES",
            vuf_client_set_features(rig->client, 0));
    assert_int_equal(vuf_client_set_owner(rig->client), 0);
    assert_true(read_request(rig->peer, &header));
    REFUSED(rig, VUF_E_STATE, SET_OWNER, "SET_OWNER", vuf_client_set_owner(rig->client));
    all_refused(rig);
}

/* Has the back-end offer features, one answer for each; returns after the calls. */
static void offer(struct rig *rig, uint64_t features, const uint64_t *protocol_features)
{
    uint64_t answer;
    const uint64_t second = protocol_features != NULL ? *protocol_features : 0;
    struct reply replies[] = {{.size = 8, .payload = &features}, {.size = 8, .payload = &second}};
    struct script script;
    start_script(&script, rig->peer, replies, protocol_features != NULL ? 2 : 1);
    int rc = vuf_client_get_features(rig->client, &answer);
    if (rc == 0 && protocol_features != NULL) {
        rc = vuf_client_get_protocol_features(rig->client, &answer);
    }
    end_script(&script);
    assert_int_equal(rc, 0);
}

static void virtio_features_that_were_not_offered_are_refused(void **state)
{
    struct rig *rig = *state;
    offer(rig, BIT(VUF_F_PROTOCOL_FEATURES) | BIT(32), NULL);
    REFUSED(rig, -EINVAL, SET_FEATURES, "bit 34",
            vuf_client_set_features(rig->client, BIT(32) | BIT(34)));
    REFUSED(rig, -EINVAL, SET_FEATURES, "features",
            vuf_client_set_features(rig->client, UINT64_MAX));
    all_refused(rig);
    assert_int_equal(vuf_client_set_features(rig->client, BIT(32)), 0);
}

static void protocol_features_come_after_their_offer(void **state)
{
    struct rig *rig = *state;
    offer(rig, BIT(VUF_F_PROTOCOL_FEATURES), NULL);
    REFUSED(rig, VUF_E_STATE, SET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES",
            vuf_client_set_protocol_features(rig->client, 0));
    all_refused(rig);
}

static void protocol_features_need_bit_30(void **state)
{
    struct rig *rig = *state;
    uint64_t features = 7;
    offer(rig, 0, NULL);
    REFUSED(rig, VUF_E_NOT_NEGOTIATED, GET_PROTOCOL_FEATURES, "30",
            vuf_client_get_protocol_features(rig->client, &features));
    REFUSED(rig, VUF_E_NOT_NEGOTIATED, SET_PROTOCOL_FEATURES, "30",
            vuf_client_set_protocol_features(rig->client, 0));
    all_refused(rig);
    assert_int_equal(features, 7);
}

static void protocol_features_that_cannot_be_agreed_are_refused(void **state)
{
    struct rig *rig = *state;
    const uint64_t all = UINT64_MAX & ~BIT(VUF_PROTOCOL_F_MQ);
    offer(rig, BIT(VUF_F_PROTOCOL_FEATURES), &all);
    const struct {
        uint64_t features;
        const char *text;
    } bad[] = {
        {BIT(VUF_PROTOCOL_F_MQ), "MQ"}, /* not offered */
        {BIT(24), "24"}, /* not served */
        {BIT(63), "63"},
        {BIT(VUF_PROTOCOL_F_INBAND_NOTIFICATIONS), "REPLY_ACK"},
        {BIT(VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN), "GET_VRING_BASE_INFLIGHT"},
        {BIT(VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT), "INFLIGHT_SHMFD"}, /* needs that */
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED(rig, -EINVAL, SET_PROTOCOL_FEATURES, bad[i].text,
                vuf_client_set_protocol_features(rig->client, bad[i].features));
    }
    all_refused(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_null_client_is_refused),
        TEST(freeing_null_does_nothing),
        AGREED(a_null_output_is_refused),
        AGREED(a_null_input_is_refused),
        AGREED(a_list_with_a_mistake_is_refused),
        AGREED(a_descriptor_that_is_not_open_is_refused),
        AGREED(a_descriptor_that_is_no_event_is_refused),
        TEST(pipes_and_sockets_are_accepted_as_events),
        AGREED(a_region_names_a_bad_descriptor_by_its_position),
        AGREED(a_ring_beyond_max_rings_is_refused),
        TEST(a_ring_beyond_the_protocol_is_refused_by_default),
        AGREED(a_bad_ring_size_is_refused),
        TEST(the_limits_of_a_ring_size_are_accepted),
        TEST(a_bad_ring_address_is_refused),
        TEST(a_split_ring_has_a_base_of_16_bits),
        AGREED(a_bad_number_of_regions_is_refused),
        AGREED(a_bad_region_is_refused),
        AGREED(overlapping_regions_are_refused),
        TEST(gpa_addresses_wants_equal_addresses),
        TEST(xen_flags_must_be_known),
        AGREED(a_bad_translation_is_refused),
        AGREED(postcopy_out_of_order_is_refused),
        AGREED(a_bad_log_is_refused),
        AGREED(a_bad_range_of_configuration_is_refused),
        AGREED(a_bad_inflight_buffer_is_refused),
        AGREED(a_bad_transfer_of_state_is_refused),
        AGREED(a_bad_number_of_a_device_is_refused),
        AGREED(a_bad_crypto_session_is_refused),
        AGREED(a_result_without_its_size_is_refused),
        AGREED(a_size_below_that_of_the_struct_is_refused),
        AGREED(bad_functions_are_refused),
        AGREED(without_a_channel_there_is_nothing_to_serve),
        TEST(what_was_not_agreed_is_refused),
        TEST(calls_out_of_order_are_refused),
        TEST(virtio_features_that_were_not_offered_are_refused),
        TEST(protocol_features_come_after_their_offer),
        TEST(protocol_features_need_bit_30),
        TEST(protocol_features_that_cannot_be_agreed_are_refused),
    };
    return cmocka_run_group_tests_name("test_args", tests, default_signals, NULL);
}
