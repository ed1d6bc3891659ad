/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Every request, decoded by somebody else's code: the foreign back-end writes
   down what rust-vmm's vhost crate made of it, and the tests compare. */
#include "harness.h"

#include <vhost_user_frontend.h>

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define BIT(n) (UINT64_C(1) << (n))

enum {
    PAGE = 4096,
    MEMORY_SIZE = 16 * PAGE,
    LOG_MS = 5000, /* for a line that must come */
    VERSION_1 = 32,
    RING_PACKED = 34,
};

static const char *const SAVED_STATE = "device-state-v1\n";

#define FEATURES (BIT(VUF_F_PROTOCOL_FEATURES) | BIT(VERSION_1))

/* What the library serves of what the back-end offers, but REPLY_ACK. */
#define PROTOCOL_FEATURES                                                                          \
    (BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_LOG_SHMFD) | BIT(VUF_PROTOCOL_F_BACKEND_REQ) |    \
     BIT(VUF_PROTOCOL_F_CONFIG) | BIT(VUF_PROTOCOL_F_BACKEND_SEND_FD) |                            \
     BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD) | BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |                \
     BIT(VUF_PROTOCOL_F_DEVICE_STATE) | BIT(VUF_PROTOCOL_F_SHMEM) |                                \
     BIT(VUF_PROTOCOL_F_RESET_DEVICE))
#define REPLY_ACK BIT(VUF_PROTOCOL_F_REPLY_ACK)

/* ---- a back-end, and a client of it ---- */

struct fixture {
    struct backend backend;
    struct vuf_client *client;
    const struct vuf_client_options *options;
    int memory, event, inflight;
};

static void expect(struct fixture *f, const char *wanted)
{
    char line[4096];
    if (!backend_log_next(&f->backend, line, sizeof line, LOG_MS)) {
        fail_msg("the back-end did not get: %s", wanted);
    }
    assert_string_equal(line, wanted);
}

/* A request that must work; the words of the library if it does not. */
static void ok(int rc)
{
    if (rc != 0) {
        fail_msg("%d: %s", rc, vuf_last_error());
    }
}

static struct vuf_error_info last_info(void)
{
    struct vuf_error_info info = {.size = sizeof info};
    assert_int_equal(vuf_last_error_info(&info), 0);
    return info;
}

static void start(struct fixture *f, const char *const args[])
{
    assert_int_equal(backend_start_foreign(&f->backend, args), 0);
    ok(vuf_client_connect(f->backend.socket, f->options, &f->client));
    expect(f, "CONNECTED");
}

static void agree_on_protocol_features(struct fixture *f, uint64_t protocol_features)
{
    uint64_t offered;
    char line[80];
    ok(vuf_client_get_features(f->client, &offered));
    expect(f, "GET_FEATURES");
    ok(vuf_client_get_protocol_features(f->client, &offered));
    expect(f, "GET_PROTOCOL_FEATURES");
    ok(vuf_client_set_protocol_features(f->client, protocol_features));
    snprintf(line, sizeof line, "SET_PROTOCOL_FEATURES features=%#llx",
             (unsigned long long)protocol_features);
    expect(f, line);
}

/* A client that has claimed the session and agreed on features. */
static void start_agreed(struct fixture *f, const char *const args[], uint64_t features,
                         uint64_t protocol_features)
{
    char line[80];
    start(f, args);
    agree_on_protocol_features(f, protocol_features);
    ok(vuf_client_set_owner(f->client));
    expect(f, "SET_OWNER");
    ok(vuf_client_set_features(f->client, features));
    snprintf(line, sizeof line, "SET_FEATURES features=%#llx", (unsigned long long)features);
    expect(f, line);
}

static void start_usual(struct fixture *f, const char *const args[])
{
    start_agreed(f, args, FEATURES, PROTOCOL_FEATURES | REPLY_ACK);
}

static void stop(struct fixture *f)
{
    vuf_client_free(f->client);
    f->client = NULL;
    backend_stop(&f->backend);
}

static int set_up(void **state)
{
    struct fixture *f = test_calloc(1, sizeof *f);
    *state = f;
    f->memory = memfd_create("memory", MFD_CLOEXEC);
    f->event = eventfd(0, EFD_CLOEXEC);
    f->inflight = memfd_create("inflight", MFD_CLOEXEC);
    return f->memory < 0 || f->event < 0 || f->inflight < 0 ||
           ftruncate(f->memory, MEMORY_SIZE) != 0 || ftruncate(f->inflight, 2 * PAGE) != 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    stop(f);
    close(f->memory);
    close(f->event);
    close(f->inflight);
    test_free(f);
    return 0;
}

/* ---- every request, in an order that a back-end accepts ---- */

static int set_owner(struct fixture *f)
{
    return vuf_client_set_owner(f->client);
}

static int set_features(struct fixture *f)
{
    return vuf_client_set_features(f->client, FEATURES);
}

static int get_queue_num(struct fixture *f)
{
    uint64_t num = 7;
    int rc = vuf_client_get_queue_num(f->client, &num);
    assert_int_equal(num, rc == 0 ? 4 : 7);
    return rc;
}

static int get_max_mem_slots(struct fixture *f)
{
    uint64_t slots = 7;
    int rc = vuf_client_get_max_mem_slots(f->client, &slots);
    assert_int_equal(slots, rc == 0 ? 32 : 7);
    return rc;
}

static int set_mem_table(struct fixture *f)
{
    struct vuf_mem_region region = {0x100000, 4 * PAGE, 0x7f0000000000, PAGE, .fd = f->memory};
    return vuf_client_set_mem_table(f->client, &region, 1);
}

static int add_mem_region(struct fixture *f)
{
    struct vuf_mem_region region = {0x200000, 2 * PAGE, 0x7f0000100000, 0, .fd = f->memory};
    return vuf_client_add_mem_region(f->client, &region);
}

static int remove_mem_region(struct fixture *f)
{
    struct vuf_mem_region region = {0x200000, 2 * PAGE, 0x7f0000100000, 0, .fd = -1};
    return vuf_client_remove_mem_region(f->client, &region);
}

static int set_log_base(struct fixture *f)
{
    return vuf_client_set_log_base(f->client, PAGE, 0, f->memory);
}

static int set_vring_num(struct fixture *f)
{
    return vuf_client_set_vring_num(f->client, 3, 256);
}

static int set_vring_base(struct fixture *f)
{
    return vuf_client_set_vring_base(f->client, 3, 0xfffe);
}

static int set_vring_addr(struct fixture *f)
{
    const struct vuf_vring_addr addr = {
        .flags = VUF_VRING_F_LOG,
        .descriptor = 0x7f0000000010,
        .available = 0x7f0000002002,
        .used = 0x7f0000003004,
        .log = 0x103004,
    };
    return vuf_client_set_vring_addr(f->client, 3, &addr);
}

static int set_vring_call(struct fixture *f)
{
    return vuf_client_set_vring_call(f->client, 3, f->event);
}

static int set_vring_err(struct fixture *f)
{
    return vuf_client_set_vring_err(f->client, 3, f->event);
}

static int set_vring_kick(struct fixture *f)
{
    return vuf_client_set_vring_kick(f->client, 3, f->event);
}

static int set_vring_enable(struct fixture *f)
{
    return vuf_client_set_vring_enable(f->client, 3, true);
}

static int get_vring_base_of(struct fixture *f, uint32_t index, uint32_t wanted)
{
    uint32_t base = 7;
    int rc = vuf_client_get_vring_base(f->client, index, VUF_TIMEOUT_DEFAULT, &base);
    assert_int_equal(base, rc == 0 ? wanted : 7);
    return rc;
}

static int get_vring_base(struct fixture *f)
{
    return get_vring_base_of(f, 3, 0xfffe);
}

static int get_config(struct fixture *f)
{
    unsigned char buf[8] = {7, 7, 7, 7, 7, 7, 7, 7};
    int rc = vuf_client_get_config(f->client, 4, 0, buf, sizeof buf);
    for (size_t i = 0; i < sizeof buf; i++) {
        assert_int_equal(buf[i], rc == 0 ? 4 + i : 7);
    }
    return rc;
}

static int set_config(struct fixture *f)
{
    return vuf_client_set_config(f->client, 32, 1, "\x01\x00\xfe", 3);
}

static int set_backend_req_fd(struct fixture *f)
{
    int ends[2];
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), errno);
    int rc = vuf_client_set_backend_req_fd(f->client, ends[1]);
    close(ends[0]);
    close(ends[1]);
    return rc;
}

static int get_inflight_fd(struct fixture *f)
{
    struct vuf_inflight inflight = {.mmap_size = 7};
    int fd = 7, rc = vuf_client_get_inflight_fd(f->client, 2, 256, &inflight, &fd);
    assert_int_equal(inflight.mmap_size, rc == 0 ? 2 * 256 * 64 : 7);
    assert_true(rc == 0 ? fd > 2 : fd == -1);
    if (rc == 0) {
        struct stat file;
        assert_return_code(fstat(fd, &file), errno);
        assert_int_equal(file.st_size, inflight.mmap_size);
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        assert_int_equal(inflight.mmap_offset, 0);
        assert_int_equal(inflight.num_queues, 2);
        assert_int_equal(inflight.queue_size, 256);
        assert_int_equal(inflight.reserved, 0);
        close(fd);
    }
    return rc;
}

static int set_inflight_fd(struct fixture *f)
{
    const struct vuf_inflight inflight = {PAGE, PAGE, 2, 256, 0};
    return vuf_client_set_inflight_fd(f->client, &inflight, f->inflight);
}

/* Saves into a pipe that nobody reads: the state fits into it. */
static int set_device_state_fd(struct fixture *f)
{
    int ends[2], fd = 7;
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    int rc = vuf_client_set_device_state_fd(f->client, VUF_TRANSFER_DIRECTION_SAVE,
                                            VUF_TRANSFER_PHASE_STOPPED, ends[1], &fd);
    char byte;
    close(ends[1]);
    if (rc == 0) {
        assert_int_equal(read(ends[0], &byte, 1), 1); /* or it might write to a closed pipe */
    }
    close(ends[0]);
    assert_int_equal(fd, -1);
    return rc;
}

static int check_device_state(struct fixture *f)
{
    return vuf_client_check_device_state(f->client);
}

static int get_shmem_config(struct fixture *f)
{
    struct vuf_shmem_config config = {.size = sizeof config, .nregions = 7};
    int rc = vuf_client_get_shmem_config(f->client, &config);
    assert_int_equal(config.nregions, rc == 0 ? 2 : 7);
    for (size_t i = 0; i < VUF_SHMEM_REGIONS; i++) {
        uint64_t size = rc != 0 ? 0 : i == 0 ? 0x100000 : i == 3 ? 0x2000 : 0;
        assert_int_equal(config.memory_sizes[i], size);
    }
    return rc;
}

static int gpu_set_socket(struct fixture *f)
{
    int ends[2];
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), errno);
    int rc = vuf_client_gpu_set_socket(f->client, ends[1]);
    close(ends[0]);
    close(ends[1]);
    return rc;
}

static int reset_device(struct fixture *f)
{
    return vuf_client_reset_device(f->client);
}

static int reset_owner(struct fixture *f)
{
    return vuf_client_reset_owner(f->client);
}

/* How the back-end's decoder can say no, and what the caller gets. */
enum refusal {
    NACKS = VUF_E_NACK,
    HANGS_UP = VUF_E_DISCONNECTED,
    CANNOT = 0,
};

#define NAMED(request) #request, request

static const struct {
    const char *name;
    enum request request;
    int ring;
    int (*call)(struct fixture *);
    const char *line;
    bool barrier; /* without REPLY_ACK, GET_FEATURES follows */
    enum refusal refusal;
} requests[] = {
    {NAMED(SET_OWNER), -1, set_owner, "SET_OWNER", false, NACKS},
    {NAMED(SET_FEATURES), -1, set_features, "SET_FEATURES features=0x140000000", false,
     NACKS},
    {NAMED(GET_QUEUE_NUM), -1, get_queue_num, "GET_QUEUE_NUM", false, HANGS_UP},
    {NAMED(GET_MAX_MEM_SLOTS), -1, get_max_mem_slots, "GET_MAX_MEM_SLOTS", false,
     HANGS_UP},
    {NAMED(SET_MEM_TABLE), -1, set_mem_table,
     "SET_MEM_TABLE nregions=1 r0.guest_addr=0x100000 r0.size=0x4000 r0.user_addr=0x7f0000000000 "
     "r0.mmap_offset=0x1000 r0.fd_size=0x10000",
     true, NACKS},
    {NAMED(ADD_MEM_REG), -1, add_mem_region,
     "ADD_MEM_REG guest_addr=0x200000 size=0x2000 user_addr=0x7f0000100000 mmap_offset=0x0 fd=yes "
     "fd_size=0x10000",
     true, NACKS},
    {NAMED(REM_MEM_REG), -1, remove_mem_region,
     "REM_MEM_REG guest_addr=0x200000 size=0x2000 user_addr=0x7f0000100000 mmap_offset=0x0", true,
     NACKS},
    {NAMED(SET_LOG_BASE), -1, set_log_base,
     "SET_LOG_BASE mmap_size=0x1000 mmap_offset=0x0 fd=yes fd_size=0x10000", false, HANGS_UP},
    {NAMED(SET_VRING_NUM), 3, set_vring_num, "SET_VRING_NUM index=3 num=256", false,
     NACKS},
    {NAMED(SET_VRING_BASE), 3, set_vring_base, "SET_VRING_BASE index=3 base=0xfffe",
     false, NACKS},
    {NAMED(SET_VRING_ADDR), 3, set_vring_addr,
     "SET_VRING_ADDR index=3 flags=0x1 desc=0x7f0000000010 used=0x7f0000003004 "
     "avail=0x7f0000002002 log=0x103004",
     false, NACKS},
    {NAMED(SET_VRING_CALL), 3, set_vring_call, "SET_VRING_CALL index=3 fd=yes", false,
     NACKS},
    {NAMED(SET_VRING_ERR), 3, set_vring_err, "SET_VRING_ERR index=3 fd=yes", false,
     NACKS},
    {NAMED(GET_INFLIGHT_FD), -1, get_inflight_fd,
     "GET_INFLIGHT_FD mmap_size=0x0 mmap_offset=0x0 num_queues=2 queue_size=256", false, HANGS_UP},
    {NAMED(SET_INFLIGHT_FD), -1, set_inflight_fd,
     "SET_INFLIGHT_FD mmap_size=0x1000 mmap_offset=0x1000 num_queues=2 queue_size=256 fd=yes "
     "fd_size=0x2000",
     false, NACKS},
    {NAMED(SET_VRING_KICK), 3, set_vring_kick, "SET_VRING_KICK index=3 fd=yes", false,
     NACKS},
    {NAMED(SET_VRING_ENABLE), 3, set_vring_enable, "SET_VRING_ENABLE index=3 enable=1",
     true, NACKS},
    {NAMED(GET_CONFIG), -1, get_config, "GET_CONFIG offset=0x4 size=0x8 flags=0x0", false,
     NACKS},
    {NAMED(SET_CONFIG), -1, set_config,
     "SET_CONFIG offset=0x20 size=0x3 flags=0x1 data=0100fe", false, NACKS},
    {NAMED(SET_BACKEND_REQ_FD), -1, set_backend_req_fd, "SET_BACKEND_REQ_FD fd=yes",
     false, CANNOT},
    {NAMED(GET_VRING_BASE), 3, get_vring_base, "GET_VRING_BASE index=3", false,
     HANGS_UP},
    {NAMED(SET_DEVICE_STATE_FD), -1, set_device_state_fd,
     "SET_DEVICE_STATE_FD direction=0 phase=0 fd=yes", false, NACKS},
    {NAMED(CHECK_DEVICE_STATE), -1, check_device_state, "CHECK_DEVICE_STATE", false,
     NACKS},
    {NAMED(GET_SHMEM_CONFIG), -1, get_shmem_config, "GET_SHMEM_CONFIG", false,
     HANGS_UP},
    {NAMED(GPU_SET_SOCKET), -1, gpu_set_socket, "GPU_SET_SOCKET fd=yes", false, NACKS},
    {NAMED(RESET_DEVICE), -1, reset_device, "RESET_DEVICE", true, NACKS},
    {NAMED(RESET_OWNER), -1, reset_owner, "RESET_OWNER", false, NACKS},
};

static void every_request_arrives_as_it_was_meant(void **state)
{
    struct fixture *f = *state;
    start(f, NULL);
    agree_on_protocol_features(f, PROTOCOL_FEATURES | REPLY_ACK);
    for (size_t i = 0; i < LENGTH(requests); i++) {
        int fds = count_fds();
        ok(requests[i].call(f));
        expect(f, requests[i].line);
        assert_int_equal(count_fds(), fds);
    }
}

static void a_client_that_spins_sends_the_same(void **state)
{
    static const struct vuf_client_options spinning = {.size = sizeof spinning, .spin_us = 200};
    struct fixture *f = *state;
    f->options = &spinning;
    every_request_arrives_as_it_was_meant(state);
}

static void every_request_works_without_reply_ack(void **state)
{
    struct fixture *f = *state;
    start(f, NULL);
    agree_on_protocol_features(f, PROTOCOL_FEATURES);
    for (size_t i = 0; i < LENGTH(requests); i++) {
        ok(requests[i].call(f));
        expect(f, requests[i].line);
        if (requests[i].barrier) {
            expect(f, "GET_FEATURES");
        }
    }
}

/* The back-end refuses one request; all before it must work. */
static void refuse(struct fixture *f, size_t refused)
{
    start(f, (const char *const[]){"--refuse", requests[refused].name, NULL});
    agree_on_protocol_features(f, PROTOCOL_FEATURES | REPLY_ACK);
    for (size_t i = 0; i < refused; i++) {
        ok(requests[i].call(f));
    }
    int fds = count_fds(), rc = requests[refused].call(f);
    struct vuf_error_info info = last_info();
    if (rc != (int)requests[refused].refusal) {
        fail_msg("%s: %d (%s), not %d", requests[refused].name, rc, vuf_last_error(),
                 requests[refused].refusal);
    }
    assert_int_equal(info.code, rc);
    assert_int_equal(info.error_class, rc == VUF_E_NACK ? VUF_CLASS_REFUSED : VUF_CLASS_TRANSPORT);
    assert_int_equal(info.phase, VUF_PHASE_REPLY);
    assert_int_equal(info.request, requests[refused].request);
    assert_int_equal(info.ring, requests[refused].ring);
    /* An empty answer to GET_CONFIG says no without a value. */
    assert_int_equal(info.has_value, rc == VUF_E_NACK && info.request != GET_CONFIG);
    assert_non_null(strstr(vuf_last_error(), requests[refused].name));
    assert_int_equal(count_fds(), fds);
}

static void every_refusal_is_told(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < LENGTH(requests); i++) {
        if (requests[i].refusal != CANNOT) {
            refuse(f, i);
            stop(f);
        }
    }
}

static void a_refusal_without_reply_ack_ends_the_connection(void **state)
{
    struct fixture *f = *state;
    start_agreed(f, (const char *const[]){"--refuse", "SET_MEM_TABLE", NULL}, FEATURES,
                 PROTOCOL_FEATURES);
    assert_int_equal(set_mem_table(f), VUF_E_DISCONNECTED);
    assert_int_equal(last_info().request, SET_MEM_TABLE);
    assert_int_equal(last_info().phase, VUF_PHASE_BARRIER);
}

static void a_refusal_leaves_the_connection_usable(void **state)
{
    struct fixture *f = *state;
    start_usual(f, (const char *const[]){"--refuse", "SET_VRING_NUM", "--keep-open", NULL});
    assert_int_equal(set_vring_num(f), VUF_E_NACK);
    ok(set_vring_base(f));
}

/* ---- lists ---- */

/* Three rings, and what is not about rings. */
static size_t a_list(struct fixture *f, struct vuf_op *ops)
{
    static const struct vuf_vring_addr addr = {
        .descriptor = 0x7f0000000010, .available = 0x7f0000002002, .used = 0x7f0000003004};
    static const struct vuf_inflight inflight = {PAGE, PAGE, 2, 256, 0};
    size_t n = 0;
    ops[n++] = (struct vuf_op){
        .request = VUF_REQUEST_SET_INFLIGHT_FD, .inflight = &inflight, .fd = f->inflight};
    for (uint32_t ring = 0; ring < 3; ring++) {
        const struct vuf_op of_ring[] = {
            {.request = VUF_REQUEST_SET_VRING_NUM, .value = 256},
            {.request = VUF_REQUEST_SET_VRING_BASE, .value = 0xfffe},
            {.request = VUF_REQUEST_SET_VRING_ADDR, .addr = &addr},
            {.request = VUF_REQUEST_SET_VRING_CALL, .fd = f->event},
            {.request = VUF_REQUEST_SET_VRING_ERR, .fd = -1},
            {.request = VUF_REQUEST_SET_VRING_KICK, .fd = f->event},
            {.request = VUF_REQUEST_SET_VRING_ENABLE, .value = 1},
        };
        for (size_t i = 0; i < LENGTH(of_ring); i++) {
            ops[n] = of_ring[i];
            ops[n++].index = ring;
        }
    }
    return n;
}

static void expect_list(struct fixture *f, uint32_t rings)
{
    expect(f, "SET_INFLIGHT_FD mmap_size=0x1000 mmap_offset=0x1000 num_queues=2 queue_size=256 "
              "fd=yes fd_size=0x2000");
    for (uint32_t ring = 0; ring < rings; ring++) {
        const char *const lines[] = {
            "SET_VRING_NUM index=%u num=256",
            "SET_VRING_BASE index=%u base=0xfffe",
            "SET_VRING_ADDR index=%u flags=0x0 desc=0x7f0000000010 used=0x7f0000003004 "
            "avail=0x7f0000002002 log=0x0",
            "SET_VRING_CALL index=%u fd=yes",
            "SET_VRING_ERR index=%u fd=no",
            "SET_VRING_KICK index=%u fd=yes",
            "SET_VRING_ENABLE index=%u enable=1",
        };
        for (size_t i = 0; i < LENGTH(lines); i++) {
            char line[160];
            const char *name = strstr(lines[i], "%u");
            snprintf(line, sizeof line, "%.*s%u%s", (int)(name - lines[i]), lines[i], ring,
                     name + 2);
            expect(f, line);
        }
    }
}

static void a_list_arrives_in_order(void **state)
{
    struct fixture *f = *state;
    struct vuf_op ops[32];
    for (int acked = 0; acked < 2; acked++) {
        struct vuf_submit_result result = {.size = sizeof result, .sent = 99, .failed = 99};
        start_agreed(f, NULL, FEATURES, PROTOCOL_FEATURES | (acked ? REPLY_ACK : 0));
        size_t n = a_list(f, ops);
        ok(vuf_client_submit(f->client, ops, n, 0, VUF_TIMEOUT_DEFAULT, &result));
        assert_int_equal(result.sent, n);
        assert_int_equal(result.applied, n);
        assert_int_equal(result.refused, 0);
        assert_int_equal(result.failed, -1);
        assert_int_equal(result.code, 0);
        expect_list(f, 3);
        if (!acked) {
            expect(f, "GET_FEATURES");
        }
        stop(f);
    }
}

static void a_refusal_in_a_list_is_told(void **state)
{
    struct fixture *f = *state;
    struct vuf_op ops[32];
    struct vuf_submit_result result = {.size = sizeof result};
    start_usual(f, (const char *const[]){"--refuse", "SET_VRING_BASE", "--keep-open", NULL});
    size_t n = a_list(f, ops);
    int rc = vuf_client_submit(f->client, ops, n, 0, VUF_TIMEOUT_DEFAULT, &result);
    assert_int_equal(rc, VUF_E_NACK);
    assert_int_equal(result.sent, n); /* they fit into the window */
    assert_int_equal(result.refused, 3);
    assert_int_equal(result.applied, n - 3);
    assert_int_equal(result.failed, 2);
    assert_int_equal(result.code, VUF_E_NACK);
    assert_int_equal(result.error_class, VUF_CLASS_REFUSED);
    assert_int_equal(result.request, VUF_REQUEST_SET_VRING_BASE);
    assert_int_equal(result.ring, 0);
    assert_int_equal(result.has_value, 1);
    assert_int_equal(last_info().request, SET_VRING_BASE);
    ok(set_vring_num(f));
}

static void a_back_end_that_fails_at_a_list_is_told(void **state)
{
    struct fixture *f = *state;
    struct vuf_op ops[32];
    struct vuf_submit_result result = {.size = sizeof result};
    start_agreed(f, (const char *const[]){"--refuse", "SET_VRING_CALL", NULL}, FEATURES,
                 PROTOCOL_FEATURES);
    size_t n = a_list(f, ops);
    int rc = vuf_client_submit(f->client, ops, n, 0, VUF_TIMEOUT_DEFAULT, &result);
    assert_int_equal(rc, VUF_E_DISCONNECTED);
    assert_int_equal(result.code, rc);
    assert_int_equal(result.applied, 0);
}

/* ---- features ---- */

static void features_are_those_of_the_back_end(void **state)
{
    struct fixture *f = *state;
    uint64_t features = 0;
    start(f, (const char *const[]){"--features", "8000000160000003", "--protocol-features",
                                   "80000000000000ff", NULL});
    ok(vuf_client_get_features(f->client, &features));
    assert_true(features == 0x8000000160000003);
    ok(vuf_client_get_protocol_features(f->client, &features));
    assert_true(features == 0x80000000000000ff);
}

static void without_protocol_features_the_rest_works(void **state)
{
    struct fixture *f = *state;
    uint64_t features;
    start(f, (const char *const[]){"--features", "100000000", NULL});
    ok(vuf_client_get_features(f->client, &features));
    ok(vuf_client_set_owner(f->client));
    ok(vuf_client_set_features(f->client, BIT(VERSION_1)));
    expect(f, "GET_FEATURES");
    expect(f, "SET_OWNER");
    expect(f, "SET_FEATURES features=0x100000000");
    ok(set_mem_table(f));
    assert_true(backend_log_find(&f->backend, "SET_MEM_TABLE nregions=1", (char[4096]){0}, 4096,
                                 LOG_MS));
    assert_int_equal(set_vring_enable(f), VUF_E_NOT_NEGOTIATED);
}

static void refused_negotiation_is_told(void **state)
{
    struct fixture *f = *state;
    uint64_t features = 7;
    start(f, (const char *const[]){"--refuse", "GET_FEATURES", NULL});
    assert_int_equal(vuf_client_get_features(f->client, &features), VUF_E_DISCONNECTED);
    assert_int_equal(last_info().request, GET_FEATURES);
    stop(f);
    start(f, (const char *const[]){"--refuse", "GET_PROTOCOL_FEATURES", NULL});
    ok(vuf_client_get_features(f->client, &features));
    features = 7;
    assert_int_equal(vuf_client_get_protocol_features(f->client, &features), VUF_E_DISCONNECTED);
    assert_int_equal(last_info().request, GET_PROTOCOL_FEATURES);
    assert_int_equal(features, 7);
}

/* It is not acknowledged, so the next request shows it. */
static void refused_protocol_features_show_in_the_next_request(void **state)
{
    struct fixture *f = *state;
    start(f, (const char *const[]){"--refuse", "SET_PROTOCOL_FEATURES", NULL});
    agree_on_protocol_features(f, PROTOCOL_FEATURES | REPLY_ACK);
    assert_int_equal(vuf_client_set_owner(f->client), VUF_E_DISCONNECTED);
}

static void after_reset_owner_features_are_to_be_agreed_again(void **state)
{
    struct fixture *f = *state;
    start_usual(f, NULL);
    ok(vuf_client_reset_owner(f->client));
    expect(f, "RESET_OWNER");
    assert_int_equal(set_vring_enable(f), VUF_E_NOT_NEGOTIATED);
    ok(vuf_client_set_owner(f->client));
    expect(f, "SET_OWNER");
    ok(set_features(f));
    expect(f, "SET_FEATURES features=0x140000000");
    ok(set_vring_enable(f));
    expect(f, "SET_VRING_ENABLE index=3 enable=1");
}

static void after_reset_device_features_are_to_be_agreed_again(void **state)
{
    struct fixture *f = *state;
    start_usual(f, NULL);
    ok(vuf_client_reset_device(f->client));
    expect(f, "RESET_DEVICE");
    assert_int_equal(set_vring_enable(f), VUF_E_NOT_NEGOTIATED);
    assert_int_equal(vuf_client_set_owner(f->client), VUF_E_STATE); /* it still has one */
    ok(set_features(f));
    expect(f, "SET_FEATURES features=0x140000000");
    ok(set_vring_enable(f));
    expect(f, "SET_VRING_ENABLE index=3 enable=1");
}

/* ---- memory ---- */

static void eight_regions_arrive_in_order(void **state)
{
    struct fixture *f = *state;
    struct vuf_mem_region regions[VUF_MAX_MEM_REGIONS];
    char line[4096];
    int length = snprintf(line, sizeof line, "SET_MEM_TABLE nregions=%d", VUF_MAX_MEM_REGIONS);
    for (unsigned i = 0; i < VUF_MAX_MEM_REGIONS; i++) {
        struct vuf_mem_region *region = &regions[i];
        *region = (struct vuf_mem_region){
            .guest_addr = (i + 1) * 0x100000,
            .size = PAGE,
            .user_addr = 0x7f0000000000 + i * 0x100000,
            .mmap_offset = (i + 1) * PAGE,
            .fd = memfd_create("region", MFD_CLOEXEC),
        };
        assert_return_code(ftruncate(region->fd, (i + 2) * PAGE), errno);
        length += snprintf(line + length, sizeof line - (size_t)length,
                           " r%u.guest_addr=%#llx r%u.size=0x1000 r%u.user_addr=%#llx"
                           " r%u.mmap_offset=%#llx r%u.fd_size=%#x",
                           i, (unsigned long long)region->guest_addr, i, i,
                           (unsigned long long)region->user_addr, i,
                           (unsigned long long)region->mmap_offset, i, (i + 2) * PAGE);
    }
    start_usual(f, NULL);
    ok(vuf_client_set_mem_table(f->client, regions, VUF_MAX_MEM_REGIONS));
    for (size_t i = 0; i < VUF_MAX_MEM_REGIONS; i++) {
        assert_return_code(close(regions[i].fd), errno); /* they were borrowed */
    }
    expect(f, line);
}

/* ---- rings ---- */

static void a_ring_without_a_descriptor_says_so(void **state)
{
    struct fixture *f = *state;
    start_usual(f, NULL);
    ok(vuf_client_set_vring_call(f->client, 255, -1));
    expect(f, "SET_VRING_CALL index=255 fd=no");
    ok(vuf_client_set_vring_err(f->client, 0, -1));
    expect(f, "SET_VRING_ERR index=0 fd=no");
    ok(vuf_client_set_vring_kick(f->client, 1, -1));
    expect(f, "SET_VRING_KICK index=1 fd=no");
}

static void a_ring_is_disabled_as_well(void **state)
{
    struct fixture *f = *state;
    start_usual(f, NULL);
    ok(vuf_client_set_vring_enable(f->client, 2, false));
    expect(f, "SET_VRING_ENABLE index=2 enable=0");
}

/* Without REPLY_ACK: while a ring runs, the guest depends on these. */
static void changes_of_a_running_ring_are_awaited(void **state)
{
    struct fixture *f = *state;
    const struct {
        int (*call)(struct fixture *);
        const char *name;
    } changes[] = {
        {set_vring_call, "SET_VRING_CALL "},
        {set_vring_addr, "SET_VRING_ADDR "},
        {set_features, "SET_FEATURES "},
    };
    char line[256];
    start_agreed(f, NULL, FEATURES, PROTOCOL_FEATURES);
    ok(set_vring_kick(f));
    expect(f, "SET_VRING_KICK index=3 fd=yes");
    for (size_t i = 0; i < LENGTH(changes); i++) {
        ok(changes[i].call(f));
        assert_true(backend_log_next(&f->backend, line, sizeof line, LOG_MS));
        assert_memory_equal(line, changes[i].name, strlen(changes[i].name));
        expect(f, "GET_FEATURES");
    }
    ok(get_vring_base_of(f, 3, 0));
    expect(f, "GET_VRING_BASE index=3");
    ok(set_vring_call(f)); /* the ring has stopped: nothing to wait for */
    expect(f, "SET_VRING_CALL index=3 fd=yes");
    ok(set_vring_num(f));
    expect(f, "SET_VRING_NUM index=3 num=256");
}

static void the_base_of_a_packed_ring_has_32_bits(void **state)
{
    struct fixture *f = *state;
    start_agreed(f, NULL, FEATURES | BIT(RING_PACKED), PROTOCOL_FEATURES | REPLY_ACK);
    ok(vuf_client_set_vring_base(f->client, 1, 0x80058003));
    expect(f, "SET_VRING_BASE index=1 base=0x80058003");
    ok(get_vring_base_of(f, 1, 0x80058003));
}

static void half_a_packed_base_is_made_whole(void **state)
{
    struct fixture *f = *state;
    start_agreed(f, (const char *const[]){"--drop-base-high", NULL}, FEATURES | BIT(RING_PACKED),
                 PROTOCOL_FEATURES | REPLY_ACK);
    ok(vuf_client_set_vring_base(f->client, 1, 0x80058005));
    expect(f, "SET_VRING_BASE index=1 base=0x80058005");
    ok(get_vring_base_of(f, 1, 0x80058005));
}

/* ---- the device ---- */

static void the_whole_configuration_can_be_read(void **state)
{
    struct fixture *f = *state;
    unsigned char buf[VUF_MAX_CONFIG_SIZE];
    start_usual(f, NULL);
    ok(vuf_client_get_config(f->client, 0, 0, buf, sizeof buf));
    expect(f, "GET_CONFIG offset=0x0 size=0x100 flags=0x0");
    for (size_t i = 0; i < sizeof buf; i++) {
        assert_int_equal(buf[i], i);
    }
}

static void more_configuration_than_there_is_is_refused(void **state)
{
    struct fixture *f = *state;
    char buf[] = "untouched";
    start_usual(f, (const char *const[]){"--config-size", "8", NULL});
    assert_int_equal(vuf_client_get_config(f->client, 0, 0, buf, 9), VUF_E_NACK);
    assert_int_equal(last_info().request, GET_CONFIG);
    assert_string_equal(buf, "untouched");
}

static void a_back_end_without_an_inflight_buffer(void **state)
{
    struct fixture *f = *state;
    struct vuf_inflight inflight = {.mmap_size = 7};
    int fd = 7;
    start_usual(f, (const char *const[]){"--no-inflight-buffer", NULL});
    int fds = count_fds();
    ok(vuf_client_get_inflight_fd(f->client, 2, 256, &inflight, &fd));
    assert_int_equal(inflight.mmap_size, 0);
    assert_int_equal(fd, -1);
    assert_int_equal(count_fds(), fds); /* this one sends a descriptor all the same */
}

/* The file of this back-end's objects begins with their UUID. */
static void a_shared_object_is_given(void **state)
{
    struct fixture *f = *state;
    const uint8_t uuid[16] = "\x20\x21\x22\x23\x24\x25\x26\x27\x28\x29\x2a\x2b\x2c\x2d\x2e\x2f";
    const uint64_t features = BIT(VUF_PROTOCOL_F_SHARED_OBJECT) | REPLY_ACK;
    uint8_t found[16] = {0};
    int fd = 7;
    start_agreed(f, NULL, FEATURES, features);
    ok(vuf_client_get_shared_object(f->client, uuid, &fd));
    expect(f, "GET_SHARED_OBJECT uuid=20212223-2425-2627-2829-2a2b2c2d2e2f");
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(pread(fd, found, sizeof found, 0), sizeof found);
    assert_memory_equal(found, uuid, sizeof uuid);
    close(fd);
    stop(f);
    start_agreed(f, (const char *const[]){"--refuse", "GET_SHARED_OBJECT", NULL}, FEATURES,
                 features);
    fd = 7;
    assert_int_equal(vuf_client_get_shared_object(f->client, uuid, &fd), VUF_E_NACK);
    assert_int_equal(last_info().request, GET_SHARED_OBJECT);
    assert_int_equal(fd, -1);
}

/* Begins a transfer over a pipe; returns the end to use, which is the
   back-end's own where it has one. */
static int begin_transfer(struct fixture *f, uint32_t direction, bool own)
{
    int ends[2], reply = 7;
    bool save = direction == VUF_TRANSFER_DIRECTION_SAVE;
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    int mine = ends[save ? 0 : 1], theirs = ends[save ? 1 : 0];
    ok(vuf_client_set_device_state_fd(f->client, direction, VUF_TRANSFER_PHASE_STOPPED, theirs,
                                      &reply));
    expect(f, save ? "SET_DEVICE_STATE_FD direction=0 phase=0 fd=yes"
                   : "SET_DEVICE_STATE_FD direction=1 phase=0 fd=yes");
    close(theirs);
    if (!own) {
        assert_int_equal(reply, -1);
        return mine;
    }
    close(mine);
    assert_int_equal(fcntl(reply, F_GETFD), FD_CLOEXEC);
    return reply;
}

static void save_state(struct fixture *f, bool own)
{
    char saved[64];
    size_t length = 0;
    start_usual(f, (const char *const[]){"--state-fd", own ? "own" : "passed", NULL});
    int channel = begin_transfer(f, VUF_TRANSFER_DIRECTION_SAVE, own);
    for (ssize_t got; (got = read(channel, saved + length, sizeof saved - length)) > 0;) {
        length += (size_t)got;
    }
    close(channel);
    assert_int_equal(length, strlen(SAVED_STATE));
    assert_memory_equal(saved, SAVED_STATE, length);
    ok(vuf_client_check_device_state(f->client));
}

static void load_state(struct fixture *f, bool own, const char *loaded, int code)
{
    start_usual(f, (const char *const[]){"--state-fd", own ? "own" : "passed", NULL});
    int channel = begin_transfer(f, VUF_TRANSFER_DIRECTION_LOAD, own);
    assert_int_equal(write(channel, loaded, strlen(loaded)), strlen(loaded));
    close(channel);
    assert_int_equal(vuf_client_check_device_state(f->client), code);
}

static void state_is_saved_over_the_passed_channel(void **state)
{
    save_state(*state, false);
}

static void state_is_saved_over_the_back_ends_channel(void **state)
{
    save_state(*state, true);
}

static void state_is_loaded_over_the_passed_channel(void **state)
{
    load_state(*state, false, SAVED_STATE, 0);
}

static void state_is_loaded_over_the_back_ends_channel(void **state)
{
    load_state(*state, true, SAVED_STATE, 0);
}

static void a_state_that_is_not_good_is_told(void **state)
{
    load_state(*state, false, "not a state", VUF_E_NACK);
    assert_int_equal(last_info().request, CHECK_DEVICE_STATE);
    assert_int_equal(last_info().error_class, VUF_CLASS_REFUSED);
}

/* ---- what the library does not serve itself ---- */

static void send_raw(int socket, uint32_t request, const uint64_t *payload)
{
    struct {
        uint32_t request, flags, size;
        uint8_t payload[8];
    } message = {request, 0x1, payload != NULL ? 8 : 0, {0}};
    if (payload != NULL) {
        memcpy(message.payload, payload, 8);
    }
    ssize_t size = 12 + (ssize_t)message.size;
    assert_int_equal(send(socket, &message, (size_t)size, MSG_NOSIGNAL), size);
    if (payload == NULL) {
        char reply[20];
        assert_int_equal(recv(socket, reply, sizeof reply, MSG_WAITALL), sizeof reply);
    }
}

/* Connects by hand and agrees on SHARED_OBJECT, which the back-end has something
   to say about; the client inherits the connection. */
static void inherit_with_shared_object(struct fixture *f, const char *const args[])
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const uint64_t agreed =
        BIT(VUF_PROTOCOL_F_BACKEND_REQ) | REPLY_ACK | BIT(VUF_PROTOCOL_F_SHARED_OBJECT);
    assert_int_equal(backend_start_foreign(&f->backend, args), 0);
    int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", f->backend.socket);
    assert_return_code(connect(socket_fd, (struct sockaddr *)&address, sizeof address), errno);
    send_raw(socket_fd, GET_FEATURES, NULL);
    send_raw(socket_fd, GET_PROTOCOL_FEATURES, NULL);
    send_raw(socket_fd, SET_PROTOCOL_FEATURES, &agreed);
    const struct vuf_client_options options = {
        .size = sizeof options,
        .flags = VUF_CLIENT_ADOPT,
        .adopt_features = BIT(VUF_F_PROTOCOL_FEATURES),
        .adopt_protocol_features = agreed & vuf_supported_protocol_features(),
    };
    ok(vuf_client_from_fd(socket_fd, &options, &f->client));
}

static void the_back_end_speaks_on_its_channel(void **state)
{
    struct fixture *f = *state;
    /* SHARED_OBJECT_ADD (6), version 1, 16 bytes of UUID */
    const uint32_t header[] = {6, 0x1, 16};
    char message[12 + 16];
    int ends[2];
    inherit_with_shared_object(
        f, (const char *const[]){"--before", "SET_BACKEND_REQ_FD=SHARED_OBJECT_ADD", NULL});
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), errno);
    ok(vuf_client_set_backend_req_fd(f->client, ends[1]));
    close(ends[1]);
    struct timeval stuck = {LOG_MS / 1000, 0};
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &stuck, sizeof stuck);
    ssize_t got = recv(ends[0], message, sizeof message, MSG_WAITALL);
    close(ends[0]);
    assert_int_equal(got, sizeof message);
    assert_memory_equal(message, header, sizeof header);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(message[12 + i], 0x10 + i);
    }
}

static void an_inherited_connection_is_acknowledged(void **state)
{
    struct fixture *f = *state;
    inherit_with_shared_object(f, NULL);
    assert_int_equal(vuf_client_set_owner(f->client), VUF_E_STATE); /* it has an owner */
    ok(set_vring_num(f));
    expect(f, "CONNECTED");
    expect(f, "GET_FEATURES");
    expect(f, "GET_PROTOCOL_FEATURES");
    expect(f, "SET_PROTOCOL_FEATURES features=0x40028");
    expect(f, "SET_VRING_NUM index=3 num=256");
}

/* The vhost crate does not know the request, and hangs up. */
static void a_log_descriptor_ends_the_connection(void **state)
{
    struct fixture *f = *state;
    start_usual(f, NULL);
    assert_int_equal(vuf_client_set_log_fd(f->client, f->event), VUF_E_DISCONNECTED);
    assert_int_equal(last_info().request, SET_LOG_FD);
    assert_int_equal(vuf_client_set_vring_num(f->client, 0, 128), VUF_E_DISCONNECTED);
}

static void a_log_descriptor_reaches_qemu(void **state)
{
    struct fixture *f = *state;
    uint64_t features, protocol_features;
    if (!qemu_available()) {
        print_message("SKIPPED: a_log_descriptor_reaches_qemu: no qemu-storage-daemon\n");
        skip();
    }
    assert_int_equal(backend_start_qemu(&f->backend, 1), 0);
    ok(vuf_client_connect(f->backend.socket, NULL, &f->client));
    ok(vuf_client_get_features(f->client, &features));
    ok(vuf_client_get_protocol_features(f->client, &protocol_features));
    assert_true(protocol_features & REPLY_ACK);
    ok(vuf_client_set_protocol_features(f->client, REPLY_ACK));
    ok(vuf_client_set_owner(f->client));
    ok(vuf_client_set_log_fd(f->client, f->event));
    ok(vuf_client_get_features(f->client, &features)); /* it lives on */
}

/* ---- the end ---- */

static void free_and_abort_close_the_connection(void **state)
{
    struct fixture *f = *state;
    start(f, NULL);
    assert_int_equal(vuf_client_abort(f->client), 0);
    expect(f, "DISCONNECTED");
    vuf_client_free(f->client);
    ok(vuf_client_connect(f->backend.socket, NULL, &f->client));
    expect(f, "CONNECTED");
    vuf_client_free(f->client);
    f->client = NULL;
    expect(f, "DISCONNECTED");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_request_arrives_as_it_was_meant),
        TEST(a_client_that_spins_sends_the_same),
        TEST(every_request_works_without_reply_ack),
        TEST(every_refusal_is_told),
        TEST(a_refusal_without_reply_ack_ends_the_connection),
        TEST(a_refusal_leaves_the_connection_usable),
        TEST(a_list_arrives_in_order),
        TEST(a_refusal_in_a_list_is_told),
        TEST(a_back_end_that_fails_at_a_list_is_told),
        TEST(features_are_those_of_the_back_end),
        TEST(without_protocol_features_the_rest_works),
        TEST(refused_negotiation_is_told),
        TEST(refused_protocol_features_show_in_the_next_request),
        TEST(after_reset_owner_features_are_to_be_agreed_again),
        TEST(after_reset_device_features_are_to_be_agreed_again),
        TEST(eight_regions_arrive_in_order),
        TEST(a_ring_without_a_descriptor_says_so),
        TEST(a_ring_is_disabled_as_well),
        TEST(changes_of_a_running_ring_are_awaited),
        TEST(the_base_of_a_packed_ring_has_32_bits),
        TEST(half_a_packed_base_is_made_whole),
        TEST(the_whole_configuration_can_be_read),
        TEST(more_configuration_than_there_is_is_refused),
        TEST(a_back_end_without_an_inflight_buffer),
        TEST(a_shared_object_is_given),
        TEST(state_is_saved_over_the_passed_channel),
        TEST(state_is_saved_over_the_back_ends_channel),
        TEST(state_is_loaded_over_the_passed_channel),
        TEST(state_is_loaded_over_the_back_ends_channel),
        TEST(a_state_that_is_not_good_is_told),
        TEST(the_back_end_speaks_on_its_channel),
        TEST(an_inherited_connection_is_acknowledged),
        TEST(a_log_descriptor_ends_the_connection),
        TEST(a_log_descriptor_reaches_qemu),
        TEST(free_and_abort_close_the_connection),
    };
    return cmocka_run_group_tests_name("test_foreign", tests, NULL, NULL);
}
