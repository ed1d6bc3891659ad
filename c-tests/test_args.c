/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What mistakes get: wrong arguments, wrong order, and a back-end that is
   silent, gone or broken. The back-end is the other end of a socket pair, held
   by the test; most calls must not reach it. */
#include "harness.h"

#include <vhost_user_frontend.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define BIT(n) (UINT64_C(1) << (n))

enum {
    MAX_RINGS = 4,    /* of the clients in these tests */
    SHORT_MS = 100,   /* a deadline that is meant to pass */
    SOON_MS = 1500,   /* what "at once" may take on a busy machine */
    PEER_MS = 10000,  /* after which a test is stuck */
    PAGE = 4096,
    RING_PACKED = 34, /* VIRTIO_F_RING_PACKED */
};

/* ---- a client, and the other end of its connection ---- */

struct rig {
    struct vuf_client *client;
    int peer;
    char dir[64], path[80]; /* for a listener; see make_path() */
    int memory; /* a file that would do as memory, log or buffer */
    int event;
    int closed; /* a number that is not open */
    int failures;
};

static const struct vuf_client_options quick = {
    .size = sizeof quick,
    .timeout_ms = 2000,
    .slow_timeout_ms = 2000,
    .drain_timeout_ms = 2000,
    .max_rings = MAX_RINGS,
};

static void make_pair(int ends[2])
{
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), errno);
    struct timeval stuck = {PEER_MS / 1000, 0};
    setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &stuck, sizeof stuck);
}

static void open_client(struct rig *rig, const struct vuf_client_options *options)
{
    int ends[2];
    make_pair(ends);
    rig->peer = ends[1];
    assert_int_equal(vuf_client_from_fd(ends[0], options, &rig->client), 0);
}

static void close_client(struct rig *rig)
{
    vuf_client_free(rig->client);
    rig->client = NULL;
    if (rig->peer >= 0) {
        close(rig->peer);
    }
    rig->peer = -1;
}

static void reopen_client(struct rig *rig, const struct vuf_client_options *options)
{
    close_client(rig);
    open_client(rig, options);
}

/* A client on which these features count as agreed. */
static void adopt(struct rig *rig, uint64_t features, uint64_t protocol_features)
{
    struct vuf_client_options options = quick;
    options.flags = VUF_CLIENT_ADOPT;
    options.adopt_features = features;
    options.adopt_protocol_features = protocol_features;
    reopen_client(rig, &options);
}

/* All that can be agreed, except what changes how other requests behave. */
static uint64_t all_protocol_features(void)
{
    return vuf_supported_protocol_features() &
           ~(BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_GPA_ADDRESSES));
}

static int set_up(void **state)
{
    struct rig *rig = test_calloc(1, sizeof *rig);
    *state = rig;
    rig->memory = memfd_create("memory", MFD_CLOEXEC);
    rig->event = eventfd(0, EFD_CLOEXEC);
    rig->closed = 900; /* above all that a test opens */
    if (rig->memory < 0 || rig->event < 0 || fcntl(rig->closed, F_GETFD) != -1) {
        return -1;
    }
    open_client(rig, &quick);
    return 0;
}

static int set_up_agreed(void **state)
{
    if (set_up(state) != 0) {
        return -1;
    }
    adopt(*state, BIT(VUF_F_PROTOCOL_FEATURES), all_protocol_features());
    return 0;
}

/* Makes a directory, and in rig->path the name of a socket in it. */
static void make_path(struct rig *rig)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(rig->dir, sizeof rig->dir, "%s/vuf.XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(rig->dir));
    snprintf(rig->path, sizeof rig->path, "%s/socket", rig->dir);
}

static int tear_down(void **state)
{
    struct rig *rig = *state;
    close_client(rig);
    if (rig->path[0] != '\0') {
        unlink(rig->path);
        rmdir(rig->dir);
    }
    close(rig->memory);
    close(rig->event);
    test_free(rig);
    return 0;
}

/* ---- the other end ---- */

struct header {
    uint32_t request, flags, size;
};

enum { REPLY = 0x5 };

static bool read_whole(int fd, void *buffer, size_t size)
{
    return size == 0 || recv(fd, buffer, size, MSG_WAITALL) == (ssize_t)size;
}

/* Reads one request away; its descriptors with it. */
static bool read_request(int peer, struct header *header)
{
    char body[4096];
    return read_whole(peer, header, sizeof *header) && header->size <= sizeof body &&
           read_whole(peer, body, header->size);
}

struct reply {
    uint32_t flags; /* 0 for REPLY */
    uint32_t request; /* 0 for that of the request */
    uint32_t size;
    const void *payload;
    int fd; /* 0 for none */
};

static bool write_reply(int peer, uint32_t request, const struct reply *reply)
{
    char message[sizeof(struct header) + 4096] = {0};
    struct header header = {
        reply->request != 0 ? reply->request : request,
        reply->flags != 0 ? reply->flags : REPLY,
        reply->size,
    };
    memcpy(message, &header, sizeof header);
    size_t size = sizeof header;
    if (reply->payload != NULL) {
        memcpy(message + size, reply->payload, reply->size);
        size += reply->size;
    }
    struct iovec part = {message, size};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr out = {.msg_iov = &part, .msg_iovlen = 1};
    if (reply->fd != 0) {
        out.msg_control = control.bytes;
        out.msg_controllen = sizeof control.bytes;
        struct cmsghdr *first = CMSG_FIRSTHDR(&out);
        first->cmsg_level = SOL_SOCKET;
        first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(first), &reply->fd, sizeof(int));
    }
    return sendmsg(peer, &out, MSG_NOSIGNAL) == (ssize_t)size;
}

/* A back-end that answers each request with the next of these replies. */
struct script {
    int peer;
    const struct reply *replies;
    size_t n;
    pthread_t thread;
};

static void *run_script(void *argument)
{
    struct script *script = argument;
    for (size_t i = 0; i < script->n; i++) {
        struct header header;
        if (!read_request(script->peer, &header) ||
            !write_reply(script->peer, header.request, &script->replies[i])) {
            return NULL;
        }
    }
    return script;
}

static void start_script(struct script *script, int peer, const struct reply *replies, size_t n)
{
    *script = (struct script){.peer = peer, .replies = replies, .n = n};
    assert_int_equal(pthread_create(&script->thread, NULL, run_script, script), 0);
}

/* Fails if the script did not come to its end. */
static void end_script(struct script *script)
{
    void *result;
    pthread_join(script->thread, &result);
    assert_ptr_equal(result, script);
}

#define U64_REPLY(value) ((struct reply){.size = 8, .payload = &(uint64_t){value}})

/* ---- how a refusal looks ---- */

static bool peer_saw_nothing(int peer)
{
    char byte;
    return recv(peer, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == -1 && errno == EAGAIN;
}

struct refusal {
    int code;
    enum request request; /* NO_REQUEST where the call is not about one */
    int ring, region;     /* -1 for none */
    const char *text;     /* what the words must name */
};

static struct vuf_error_info last_info(void)
{
    struct vuf_error_info info = {.size = sizeof info};
    assert_int_equal(vuf_last_error_info(&info), 0);
    return info;
}

static bool complain(struct rig *rig, const char *call, const char *what, long long is,
                     long long want)
{
    print_error("%s: %s is %lld, not %lld\n    \"%s\"\n", call, what, is, want, vuf_last_error());
    rig->failures++;
    return false;
}

static bool same(struct rig *rig, const char *call, const char *what, long long is, long long want)
{
    return is == want || complain(rig, call, what, is, want);
}

/* Checks everything about a call that was refused before anything was sent. */
static void check_refusal(struct rig *rig, const char *call, int fds_before, int rc,
                          struct refusal want)
{
    if (!same(rig, call, "the code", rc, want.code)) {
        return;
    }
    struct vuf_error_info info = last_info();
    same(rig, call, "info.code", info.code, rc);
    same(rig, call, "info.errno_value", info.errno_value, rc > -4096 ? -rc : 0);
    same(rig, call, "info.error_class", info.error_class, VUF_CLASS_LOCAL);
    same(rig, call, "info.phase", info.phase, VUF_PHASE_CHECK);
    same(rig, call, "info.request", info.request, want.request);
    same(rig, call, "info.ring", info.ring, want.ring);
    same(rig, call, "info.region", info.region, want.region);
    same(rig, call, "info.has_value", info.has_value, 0);
    same(rig, call, "the text has the argument's name", strstr(vuf_last_error(), want.text) != NULL,
         true);
    if (want.request != NO_REQUEST) {
        const char *name = vuf_request_name(want.request);
        same(rig, call, "the text has the request's name",
             name != NULL && strstr(vuf_last_error(), name) != NULL, true);
    }
    if (rig->peer >= 0) {
        same(rig, call, "the back-end saw nothing", peer_saw_nothing(rig->peer), true);
    }
    same(rig, call, "the number of descriptors", count_fds(), fds_before);
}

/* REFUSED(rig, code, request, "name", call(...)) and so on, for many in a test;
   the test ends with all_refused(). */
#define REFUSED_AT(rig, code, request, ring, region, text, ...)                                    \
    do {                                                                                           \
        int fds_before_ = count_fds();                                                             \
        check_refusal(rig, #__VA_ARGS__, fds_before_, __VA_ARGS__,                                 \
                      (struct refusal){code, request, ring, region, text});                        \
    } while (0)
#define REFUSED(rig, code, request, text, ...)                                                     \
    REFUSED_AT(rig, code, request, -1, -1, text, __VA_ARGS__)
#define REFUSED_RING(rig, code, request, ring, text, ...)                                          \
    REFUSED_AT(rig, code, request, ring, -1, text, __VA_ARGS__)

static void all_refused(struct rig *rig)
{
    assert_int_equal(rig->failures, 0);
}

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
    all_refused(rig);
    assert_int_equal(inflight.mmap_size, 7);
    assert_int_equal(fd, -1);
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
    all_refused(rig);
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

static int ring_num(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_num(rig->client, index, 128);
}

static int ring_addr(struct rig *rig, uint32_t index)
{
    struct vuf_vring_addr addr = {0};
    return vuf_client_set_vring_addr(rig->client, index, &addr);
}

static int ring_set_base(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_base(rig->client, index, 0);
}

static int ring_get_base(struct rig *rig, uint32_t index)
{
    uint32_t base = 7;
    int rc = vuf_client_get_vring_base(rig->client, index, VUF_TIMEOUT_DEFAULT, &base);
    assert_int_equal(base, 7);
    return rc;
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

static int ring_enable(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_enable(rig->client, index, true);
}

static const struct {
    enum request request;
    int (*call)(struct rig *, uint32_t index);
} ring_requests[] = {
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
        {"reserved", {.size = PAGE, .xen_mmap_flags = 1}},
        {"reserved", {.size = PAGE, .xen_domid = 1}},
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
    REFUSED_RING(rig, VUF_E_NOT_NEGOTIATED, SET_VRING_ENABLE, 1, "30",
                 vuf_client_set_vring_enable(c, 1, true));
    all_refused(rig);
    assert_int_equal(number, 7);
    assert_int_equal(byte, 7);
    assert_int_equal(fd, -1);
    assert_int_equal(inflight.mmap_size, PAGE);
    assert_int_equal(shmem.nregions, 7);
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
        {BIT(VUF_PROTOCOL_F_STATUS), "STATUS"}, /* not served */
        {BIT(63), "63"},
        {BIT(VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT), "INFLIGHT_SHMFD"}, /* needs that */
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        REFUSED(rig, -EINVAL, SET_PROTOCOL_FEATURES, bad[i].text,
                vuf_client_set_protocol_features(rig->client, bad[i].features));
    }
    all_refused(rig);
}

/* ---- options and constructors ---- */

/* A struct longer than the library knows. */
struct longer {
    struct vuf_client_options known;
    uint64_t tail[2];
};

static const struct {
    const char *name;
    int code;
    struct longer options;
} bad_options[] = {
    {"size", -EINVAL, {.known = {.size = 0}}},
    {"size", -EINVAL, {.known = {.size = sizeof(size_t) - 1}}},
    {"options", -E2BIG, {.known = {.size = sizeof(struct longer)}, .tail = {1, 0}}},
    {"options", -E2BIG, {.known = {.size = sizeof(struct longer)}, .tail = {0, 1}}},
    {"options", -E2BIG, {.known = {.size = SIZE_MAX}}},
    {"on_timeout", -EINVAL, {.known = {.size = sizeof quick, .on_timeout = 2}}},
    {"max_rings", -EINVAL, {.known = {.size = sizeof quick, .max_rings = 257}}},
    {"flags", -EINVAL, {.known = {.size = sizeof quick, .flags = 2}}},
    {"flags", -EINVAL, {.known = {.size = sizeof quick, .flags = UINT32_MAX}}},
    {"reserved", -EINVAL, {.known = {.size = sizeof quick, .reserved = 1}}},
    {"adopt", -EINVAL, {.known = {.size = sizeof quick, .adopt_features = 1}}},
    {"adopt", -EINVAL, {.known = {.size = sizeof quick, .adopt_protocol_features = 1}}},
    {"protocol_features",
     -EINVAL,
     {.known = {.size = sizeof quick,
                .flags = VUF_CLIENT_ADOPT,
                .adopt_protocol_features = BIT(63)}}},
};

static int listen_at(const char *path, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_return_code(fd, errno);
    assert_return_code(bind(fd, (struct sockaddr *)&address, sizeof address), errno);
    if (backlog >= 0) {
        assert_return_code(listen(fd, backlog), errno);
    }
    return fd;
}

static void bad_options_are_refused(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int listener = listen_at(rig->path, 1), ends[2];
    make_pair(ends);
    for (size_t i = 0; i < LENGTH(bad_options); i++) {
        const struct vuf_client_options *options = &bad_options[i].options.known;
        int code = bad_options[i].code;
        const char *name = bad_options[i].name;
        struct vuf_client *out = rig->client;
        REFUSED(rig, code, NO_REQUEST, name, vuf_client_from_fd(ends[0], options, &out));
        same(rig, name, "out is NULL", out == NULL, true);
        out = rig->client;
        REFUSED(rig, code, NO_REQUEST, name, vuf_client_connect(rig->path, options, &out));
        same(rig, name, "out is NULL", out == NULL, true);
        out = rig->client;
        REFUSED(rig, code, NO_REQUEST, name, vuf_client_accept(listener, options, &out));
        same(rig, name, "out is NULL", out == NULL, true);
    }
    close(ends[0]);
    close(ends[1]);
    close(listener);
    all_refused(rig);
}

static void other_sizes_of_options_are_accepted(void **state)
{
    struct rig *rig = *state;
    struct longer options = {.known = quick};
    const size_t good[] = {
        sizeof(size_t),
        offsetof(struct vuf_client_options, timeout_ms),
        offsetof(struct vuf_client_options, adopt_features),
        sizeof(struct vuf_client_options),
        sizeof(struct longer),
    };
    for (size_t i = 0; i < LENGTH(good); i++) {
        options.known.size = good[i];
        reopen_client(rig, &options.known);
        assert_int_equal(vuf_client_set_owner(rig->client), 0);
    }
}

static void what_a_short_struct_leaves_out_is_zero(void **state)
{
    struct rig *rig = *state;
    struct vuf_client_options options = quick; /* with max_rings 4, not read */
    options.size = offsetof(struct vuf_client_options, max_rings);
    reopen_client(rig, &options);
    assert_int_equal(ring_num(rig, MAX_RINGS), 0);
}

static void a_null_argument_of_a_constructor_is_refused(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *out = rig->client;
    int ends[2];
    make_pair(ends);
    REFUSED(rig, -EINVAL, NO_REQUEST, "out", vuf_client_from_fd(ends[0], &quick, NULL));
    REFUSED(rig, -EINVAL, NO_REQUEST, "out", vuf_client_connect("/nowhere", &quick, NULL));
    REFUSED(rig, -EINVAL, NO_REQUEST, "out", vuf_client_accept(ends[0], &quick, NULL));
    REFUSED(rig, -EINVAL, NO_REQUEST, "path", vuf_client_connect(NULL, &quick, &out));
    assert_null(out);
    close(ends[0]);
    close(ends[1]);
    all_refused(rig);
}

static void from_fd_refuses_what_is_not_a_connection(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int datagrams[2], internet = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int unconnected = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int listener = listen_at(rig->path, 1);
    assert_return_code(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagrams), errno);
    const struct {
        int fd, code;
    } bad[] = {
        {-1, -EBADF},           {INT_MIN, -EBADF},        {rig->closed, -EBADF},
        {rig->event, -ENOTSOCK}, {rig->memory, -ENOTSOCK}, {datagrams[0], -EINVAL},
        {internet, -EINVAL},    {listener, -EINVAL},      {unconnected, -ENOTCONN},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_client *out = rig->client;
        int fds = count_fds(), rc = vuf_client_from_fd(bad[i].fd, NULL, &out);
        const char *call = "vuf_client_from_fd";
        same(rig, call, "the code", rc, bad[i].code);
        same(rig, call, "info.code", last_info().code, bad[i].code);
        same(rig, call, "info.error_class", last_info().error_class,
             vuf_error_class(bad[i].code));
        same(rig, call, "info.phase", last_info().phase, VUF_PHASE_CHECK);
        same(rig, call, "the text says fd", strstr(vuf_last_error(), "fd") != NULL, true);
        same(rig, call, "out is NULL", out == NULL, true);
        same(rig, call, "the number of descriptors", count_fds(), fds); /* not taken */
    }
    close(internet);
    close(unconnected);
    close(datagrams[0]);
    close(datagrams[1]);
    close(listener);
    all_refused(rig);
}

static void accept_refuses_what_does_not_listen(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int bound = listen_at(rig->path, -1), ends[2];
    make_pair(ends);
    const struct {
        int fd, code;
    } bad[] = {
        {-1, -EBADF},           {INT_MIN, -EBADF}, {rig->closed, -EBADF},
        {rig->event, -ENOTSOCK}, {bound, -EINVAL},  {ends[0], -EINVAL},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_client *out = rig->client;
        REFUSED(rig, bad[i].code, NO_REQUEST, "fd", vuf_client_accept(bad[i].fd, &quick, &out));
        same(rig, "vuf_client_accept", "out is NULL", out == NULL, true);
    }
    close(bound);
    close(ends[0]);
    close(ends[1]);
    all_refused(rig);
}

static void from_fd_takes_the_socket_and_sends_nothing(void **state)
{
    struct rig *rig = *state;
    int ends[2];
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), errno); /* not close-on-exec */
    struct vuf_client *client = NULL;
    assert_int_equal(vuf_client_from_fd(ends[0], NULL, &client), 0);
    assert_int_equal(vuf_client_get_fd(client), ends[0]);
    assert_int_equal(fcntl(ends[0], F_GETFD), FD_CLOEXEC);
    assert_true(peer_saw_nothing(ends[1]));
    vuf_client_free(client);
    assert_int_equal(fcntl(ends[0], F_GETFD), -1);
    char byte;
    assert_int_equal(recv(ends[1], &byte, 1, MSG_DONTWAIT), 0); /* no bytes, the end */
    close(ends[1]);
    all_refused(rig);
}

static void from_fd_takes_number_0_as_any_other(void **state)
{
    (void)state;
    int saved = fcntl(0, F_DUPFD_CLOEXEC, 3), ends[2];
    make_pair(ends);
    assert_return_code(dup2(ends[0], 0), errno);
    close(ends[0]);
    struct vuf_client *client = NULL;
    int rc = vuf_client_from_fd(0, &quick, &client);
    int fd = client != NULL ? vuf_client_get_fd(client) : -1;
    vuf_client_free(client);
    bool closed = fcntl(0, F_GETFD) == -1;
    if (saved >= 0) {
        dup2(saved, 0);
        close(saved);
    }
    close(ends[1]);
    assert_int_equal(rc, 0);
    assert_int_equal(fd, 0);
    assert_true(closed);
}

static void connect_tells_why_it_cannot(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int bound = listen_at(rig->path, -1);
    char missing[100], longest[108], too_long[109], under_file[120];
    snprintf(missing, sizeof missing, "%s/missing", rig->dir);
    snprintf(under_file, sizeof under_file, "%s/below", rig->path);
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    memset(too_long, 'x', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = '\0';
    const struct {
        const char *path;
        int code;
        uint32_t phase;
    } bad[] = {
        {"", -EINVAL, VUF_PHASE_CHECK},
        {missing, -ENOENT, VUF_PHASE_CONNECT},
        {longest, -ENOENT, VUF_PHASE_CONNECT},
        {too_long, -ENAMETOOLONG, VUF_PHASE_CONNECT},
        {rig->path, -ECONNREFUSED, VUF_PHASE_CONNECT},
        {under_file, -ENOTDIR, VUF_PHASE_CONNECT},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct vuf_client *out = rig->client;
        int fds = count_fds(), rc = vuf_client_connect(bad[i].path, &quick, &out);
        struct vuf_error_info info = last_info();
        same(rig, bad[i].path, "the code", rc, bad[i].code);
        same(rig, bad[i].path, "info.code", info.code, bad[i].code);
        same(rig, bad[i].path, "info.errno_value", info.errno_value, -bad[i].code);
        same(rig, bad[i].path, "info.error_class", info.error_class, vuf_error_class(bad[i].code));
        same(rig, bad[i].path, "info.phase", info.phase, bad[i].phase);
        same(rig, bad[i].path, "info.request", info.request, NO_REQUEST);
        same(rig, bad[i].path, "the text has the path",
             strstr(vuf_last_error(), bad[i].path) != NULL, true);
        same(rig, bad[i].path, "out is NULL", out == NULL, true);
        same(rig, bad[i].path, "the number of descriptors", count_fds(), fds);
    }
    close(bound);
    all_refused(rig);
}

static void connect_without_permission_is_refused(void **state)
{
    struct rig *rig = *state;
    enum { NOBODY = 65534 };
    make_path(rig);
    int listener = listen_at(rig->path, 1);
    struct vuf_client *client = NULL;
    uid_t user = geteuid();
    assert_return_code(chmod(rig->path, 0), errno);
    assert_return_code(user != 0 ? 0 : seteuid(NOBODY), errno); /* root may do anything */
    int rc = vuf_client_connect(rig->path, &quick, &client);
    assert_return_code(seteuid(user), errno);
    close(listener);
    assert_int_equal(rc, -EACCES);
    assert_null(client);
    assert_int_equal(last_info().phase, VUF_PHASE_CONNECT);
}

static void connect_reaches_a_listener(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int listener = listen_at(rig->path, 1);
    struct vuf_client *client = NULL;
    struct header header;
    assert_int_equal(vuf_client_connect(rig->path, &quick, &client), 0);
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_int_equal(fcntl(vuf_client_get_fd(client), F_GETFD), FD_CLOEXEC);
    assert_int_equal(vuf_client_set_owner(client), 0);
    assert_true(read_request(peer, &header));
    assert_int_equal(header.request, SET_OWNER);
    vuf_client_free(client);
    close(peer);
    close(listener);
}

/* A deadline of SHORT_MS that passed: not early, and not late. */
static void assert_on_time(int64_t began)
{
    assert_in_range((uint64_t)(now_ms() - began), SHORT_MS - 10, SHORT_MS + SOON_MS);
}

static void connect_to_a_full_backlog_is_bounded(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int listener = listen_at(rig->path, 0), waiting[16], n = 0;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, rig->path, sizeof rig->path);
    bool full = false;
    while (!full && n < (int)LENGTH(waiting)) {
        waiting[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        full = connect(waiting[n++], (struct sockaddr *)&address, sizeof address) != 0;
    }
    assert_true(full);
    struct vuf_client_options options = quick;
    options.connect_timeout_ms = SHORT_MS;
    struct vuf_client *out = rig->client;
    int64_t began = now_ms();
    int fds = count_fds();
    assert_int_equal(vuf_client_connect(rig->path, &options, &out), -ETIMEDOUT);
    assert_on_time(began);
    assert_null(out);
    assert_int_equal(count_fds(), fds);
    assert_int_equal(last_info().phase, VUF_PHASE_CONNECT);
    while (n > 0) {
        close(waiting[--n]);
    }
    close(listener);
}

static void accept_is_bounded(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int listener = listen_at(rig->path, 1);
    struct vuf_client_options options = quick;
    options.connect_timeout_ms = SHORT_MS;
    struct vuf_client *out = rig->client;
    int64_t began = now_ms();
    int fds = count_fds();
    assert_int_equal(vuf_client_accept(listener, &options, &out), -ETIMEDOUT);
    assert_on_time(began);
    assert_null(out);
    assert_int_equal(count_fds(), fds);
    assert_int_equal(last_info().phase, VUF_PHASE_CONNECT);
    close(listener);
}

static void accept_takes_one_that_connects(void **state)
{
    struct rig *rig = *state;
    make_path(rig);
    int listener = listen_at(rig->path, 1);
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, rig->path, sizeof rig->path);
    assert_return_code(connect(peer, (struct sockaddr *)&address, sizeof address), errno);
    struct vuf_client *client = NULL;
    struct header header;
    assert_int_equal(vuf_client_accept(listener, &quick, &client), 0);
    assert_int_equal(fcntl(vuf_client_get_fd(client), F_GETFD), FD_CLOEXEC);
    assert_int_not_equal(fcntl(listener, F_GETFD), -1); /* borrowed */
    assert_int_equal(vuf_client_set_owner(client), 0);
    assert_true(read_request(peer, &header));
    vuf_client_free(client);
    close(peer);
    close(listener);
}

/* ---- a back-end that is silent or gone ---- */

static void open_impatient(struct rig *rig, uint32_t on_timeout)
{
    struct vuf_client_options options = quick;
    options.timeout_ms = SHORT_MS;
    options.on_timeout = on_timeout;
    reopen_client(rig, &options);
}

static void silence_poisons(void **state)
{
    struct rig *rig = *state;
    open_impatient(rig, VUF_ON_TIMEOUT_POISON);
    uint64_t features = 7;
    int64_t began = now_ms();
    assert_int_equal(vuf_client_get_features(rig->client, &features), -ETIMEDOUT);
    assert_on_time(began);
    struct vuf_error_info info = last_info();
    assert_int_equal(info.errno_value, ETIMEDOUT);
    assert_int_equal(info.error_class, VUF_CLASS_TRANSPORT);
    assert_int_equal(info.phase, VUF_PHASE_REPLY);
    assert_int_equal(info.request, GET_FEATURES);
    assert_non_null(strstr(vuf_last_error(), "GET_FEATURES"));
    began = now_ms();
    assert_int_equal(vuf_client_set_owner(rig->client), VUF_E_POISONED);
    assert_true(now_ms() - began < SOON_MS);
    info = last_info();
    assert_int_equal(info.error_class, VUF_CLASS_TRANSPORT);
    assert_int_equal(info.request, SET_OWNER);
    assert_int_equal(features, 7);
}

static void silence_keeps_if_asked_to(void **state)
{
    struct rig *rig = *state;
    open_impatient(rig, VUF_ON_TIMEOUT_KEEP);
    uint64_t features = 7;
    struct header header;
    assert_int_equal(vuf_client_get_features(rig->client, &features), -ETIMEDOUT);
    assert_int_equal(features, 7);
    /* The late reply comes, and is not taken for that of the next request. */
    assert_true(read_request(rig->peer, &header));
    assert_true(write_reply(rig->peer, header.request, &U64_REPLY(1)));
    const struct reply replies[] = {U64_REPLY(2)};
    struct script script;
    start_script(&script, rig->peer, replies, 1);
    int rc = vuf_client_get_features(rig->client, &features);
    end_script(&script);
    assert_int_equal(rc, 0);
    assert_int_equal(features, 2);
}

static void a_ring_is_stopped_within_the_time_of_the_call(void **state)
{
    struct rig *rig = *state;
    uint32_t base = 7;
    int64_t began = now_ms();
    assert_int_equal(vuf_client_get_vring_base(rig->client, 0, SHORT_MS, &base), -ETIMEDOUT);
    assert_on_time(began);
    assert_int_equal(last_info().ring, 0);
    assert_int_equal(base, 7);
}

static void every_kind_of_deadline_can_be_chosen(void **state)
{
    struct rig *rig = *state;
    const struct {
        uint32_t quick, slow, drain;
        int (*call)(struct rig *, uint32_t);
    } table[] = {
        {0, SHORT_MS, 0, ring_enable}, /* without REPLY_ACK: GET_FEATURES is awaited */
        {0, 0, SHORT_MS, ring_get_base},
    };
    for (size_t i = 0; i < LENGTH(table); i++) {
        struct vuf_client_options options = {
            .size = sizeof options,
            .timeout_ms = table[i].quick,
            .slow_timeout_ms = table[i].slow,
            .drain_timeout_ms = table[i].drain,
            .flags = VUF_CLIENT_ADOPT,
            .adopt_features = BIT(VUF_F_PROTOCOL_FEATURES),
        };
        reopen_client(rig, &options);
        int64_t began = now_ms();
        assert_int_equal(table[i].call(rig, 0), -ETIMEDOUT);
        assert_on_time(began);
    }
}

static void a_barrier_that_is_awaited_is_named(void **state)
{
    struct rig *rig = *state;
    struct vuf_client_options options = quick;
    options.slow_timeout_ms = SHORT_MS;
    options.flags = VUF_CLIENT_ADOPT;
    options.adopt_features = BIT(VUF_F_PROTOCOL_FEATURES);
    reopen_client(rig, &options);
    assert_int_equal(ring_enable(rig, 1), -ETIMEDOUT);
    struct vuf_error_info info = last_info();
    assert_int_equal(info.phase, VUF_PHASE_BARRIER);
    assert_int_equal(info.request, SET_VRING_ENABLE);
    assert_int_equal(info.ring, 1);
}

static void a_peer_that_hung_up_is_told(void **state)
{
    struct rig *rig = *state;
    uint64_t features = 7;
    close(rig->peer);
    rig->peer = -1;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(vuf_client_get_features(rig->client, &features), VUF_E_DISCONNECTED);
        struct vuf_error_info info = last_info();
        assert_int_equal(info.error_class, VUF_CLASS_TRANSPORT);
        assert_int_equal(info.errno_value, 0);
        assert_int_equal(info.request, GET_FEATURES);
    }
    assert_int_equal(features, 7);
}

static void *hang_up_when_asked(void *argument)
{
    struct rig *rig = argument;
    struct header header;
    bool asked = read_request(rig->peer, &header);
    close(rig->peer);
    rig->peer = -1;
    return asked ? rig : NULL;
}

static void a_peer_that_hangs_up_ends_a_wait(void **state)
{
    struct rig *rig = *state;
    uint64_t features = 7;
    pthread_t thread;
    void *asked;
    assert_int_equal(pthread_create(&thread, NULL, hang_up_when_asked, rig), 0);
    int64_t began = now_ms();
    int rc = vuf_client_get_features(rig->client, &features);
    int64_t took = now_ms() - began;
    pthread_join(thread, &asked);
    assert_non_null(asked);
    assert_int_equal(rc, VUF_E_DISCONNECTED);
    assert_int_equal(last_info().phase, VUF_PHASE_REPLY);
    assert_true(took < SOON_MS);
}

static void a_closed_peer_raises_no_signal(void **state)
{
    struct rig *rig = *state;
    assert_ptr_equal(signal(SIGPIPE, SIG_DFL), SIG_DFL);
    close(rig->peer);
    rig->peer = -1;
    assert_int_equal(vuf_client_set_log_fd(rig->client, rig->event), VUF_E_DISCONNECTED);
}

static int count_threads(void)
{
    int count = -2; /* . and .. */
    DIR *dir = opendir("/proc/self/task");
    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static void no_thread_is_started(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(vuf_client_set_owner(rig->client), 0);
    assert_int_equal(count_threads(), 1);
}

static void nothing_is_printed(void **state)
{
    struct rig *rig = *state;
    uint64_t features;
    int saved[] = {fcntl(1, F_DUPFD_CLOEXEC, 3), fcntl(2, F_DUPFD_CLOEXEC, 3)};
    int paper = memfd_create("paper", MFD_CLOEXEC);
    open_impatient(rig, VUF_ON_TIMEOUT_POISON);
    fflush(stdout);
    dup2(paper, 1);
    dup2(paper, 2);
    int bad = vuf_client_get_features(rig->client, NULL);
    int late = vuf_client_get_features(rig->client, &features);
    fflush(stdout);
    dup2(saved[0], 1);
    dup2(saved[1], 2);
    struct stat file;
    assert_return_code(fstat(paper, &file), errno);
    close(paper);
    close(saved[0]);
    close(saved[1]);
    assert_int_equal(bad, -EINVAL);
    assert_int_equal(late, -ETIMEDOUT);
    assert_int_equal(file.st_size, 0);
}

/* ---- aborting, freeing, forking ---- */

struct waiter {
    struct vuf_client *client;
    uint64_t features;
    int rc;
    int64_t ended;
    pthread_t thread;
};

static void *wait_for_features(void *argument)
{
    struct waiter *waiter = argument;
    waiter->rc = vuf_client_get_features(waiter->client, &waiter->features);
    waiter->ended = now_ms();
    return NULL;
}

/* Starts a thread, and returns when it waits for an answer. */
static void start_waiter(struct waiter *waiter, struct rig *rig)
{
    struct header header;
    waiter->client = rig->client;
    assert_int_equal(pthread_create(&waiter->thread, NULL, wait_for_features, waiter), 0);
    assert_true(read_request(rig->peer, &header));
    sleep_ms(20);
}

/* A client that would wait for ever. */
static void open_patient(struct rig *rig)
{
    struct vuf_client_options options = quick;
    options.timeout_ms = VUF_TIMEOUT_FOREVER;
    reopen_client(rig, &options);
}

static void abort_ends_what_another_thread_waits_for(void **state)
{
    struct rig *rig = *state;
    struct waiter waiter;
    open_patient(rig);
    start_waiter(&waiter, rig);
    int64_t began = now_ms();
    assert_int_equal(vuf_client_abort(rig->client), 0);
    pthread_join(waiter.thread, NULL);
    assert_int_equal(waiter.rc, -ECANCELED);
    assert_true(waiter.ended - began < SOON_MS);
    assert_int_equal(vuf_client_set_owner(rig->client), -ECANCELED);
    assert_int_equal(last_info().error_class, VUF_CLASS_LOCAL);
    assert_int_equal(vuf_client_abort(rig->client), 0); /* again does no harm */
}

static void abort_rules_after_a_failure(void **state)
{
    struct rig *rig = *state;
    uint64_t features;
    open_impatient(rig, VUF_ON_TIMEOUT_POISON);
    assert_int_equal(vuf_client_get_features(rig->client, &features), -ETIMEDOUT);
    assert_int_equal(vuf_client_set_owner(rig->client), VUF_E_POISONED);
    assert_int_equal(vuf_client_abort(rig->client), 0);
    assert_int_equal(vuf_client_set_owner(rig->client), -ECANCELED);
}

static void abort_rules_over_what_is_unread(void **state)
{
    struct rig *rig = *state;
    assert_true(write_reply(rig->peer, GET_FEATURES, &U64_REPLY(1)));
    assert_int_equal(vuf_client_abort(rig->client), 0);
    assert_int_equal(vuf_client_set_owner(rig->client), -ECANCELED);
}

static struct vuf_client *to_abort;
static volatile sig_atomic_t abort_returned;

static void abort_on_alarm(int number)
{
    (void)number;
    int error = errno;
    errno = ESRCH;
    abort_returned = vuf_client_abort(to_abort) == 0 && errno == ESRCH;
    errno = error;
}

static void abort_works_in_a_signal_handler(void **state)
{
    struct rig *rig = *state;
    open_patient(rig);
    to_abort = rig->client;
    abort_returned = 0;
    struct sigaction action = {.sa_handler = abort_on_alarm}, before;
    assert_return_code(sigaction(SIGALRM, &action, &before), errno);
    struct itimerval soon = {.it_value = {0, SHORT_MS * 1000}};
    int64_t began = now_ms();
    assert_return_code(setitimer(ITIMER_REAL, &soon, NULL), errno);
    uint64_t features;
    int rc = vuf_client_get_features(rig->client, &features);
    int64_t took = now_ms() - began;
    assert_return_code(sigaction(SIGALRM, &before, NULL), errno);
    assert_int_equal(rc, -ECANCELED);
    assert_true(abort_returned);
    assert_in_range((uint64_t)took, SHORT_MS - 10, SHORT_MS + SOON_MS);
}

static void ignore_signal(int number)
{
    (void)number;
}

static void a_signal_does_not_end_a_wait(void **state)
{
    struct rig *rig = *state;
    open_impatient(rig, VUF_ON_TIMEOUT_POISON);
    struct sigaction action = {.sa_handler = ignore_signal}, before;
    assert_return_code(sigaction(SIGALRM, &action, &before), errno);
    struct itimerval often = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};
    int64_t began = now_ms();
    assert_return_code(setitimer(ITIMER_REAL, &often, NULL), errno);
    uint64_t features;
    int rc = vuf_client_get_features(rig->client, &features);
    assert_return_code(setitimer(ITIMER_REAL, &never, NULL), errno);
    assert_return_code(sigaction(SIGALRM, &before, NULL), errno);
    assert_int_equal(rc, -ETIMEDOUT);
    assert_on_time(began);
}

static void free_waits_for_other_threads(void **state)
{
    struct rig *rig = *state;
    struct waiter waiter;
    open_patient(rig);
    start_waiter(&waiter, rig);
    int64_t began = now_ms();
    vuf_client_free(rig->client);
    int64_t freed = now_ms();
    rig->client = NULL;
    pthread_join(waiter.thread, NULL);
    assert_int_equal(waiter.rc, -ECANCELED);
    assert_true(freed - began < SOON_MS);
    char byte;
    assert_int_equal(recv(rig->peer, &byte, 1, 0), 0);
}

/* Forked while a thread of the parent waits, which the child does not have. */
static void a_forked_child_frees_only_its_own(void **state)
{
    struct rig *rig = *state;
    struct waiter waiter;
    int status;
    open_patient(rig);
    start_waiter(&waiter, rig);
    pid_t child = fork();
    if (child == 0) {
        alarm(PEER_MS / 1000);
        vuf_client_free(rig->client);
        execlp("true", "true", (char *)NULL); /* which valgrind does not look into */
        _exit(127);
    }
    bool waited = child > 0 && waitpid(child, &status, 0) == child;
    bool alive = peer_saw_nothing(rig->peer);
    bool wrote = write_reply(rig->peer, GET_FEATURES, &U64_REPLY(1));
    pthread_join(waiter.thread, NULL);
    assert_true(waited && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_true(alive && wrote);
    assert_int_equal(waiter.rc, 0);
    assert_int_equal(waiter.features, 1);
}

static void two_threads_get_their_own_answers(void **state)
{
    struct rig *rig = *state;
    struct waiter first, second;
    open_patient(rig);
    start_waiter(&first, rig);
    start_waiter(&second, rig);
    bool wrote = write_reply(rig->peer, GET_FEATURES, &U64_REPLY(1)) &&
                 write_reply(rig->peer, GET_FEATURES, &U64_REPLY(2));
    pthread_join(first.thread, NULL);
    pthread_join(second.thread, NULL);
    assert_true(wrote);
    assert_int_equal(first.rc, 0);
    assert_int_equal(first.features, 1);
    assert_int_equal(second.rc, 0);
    assert_int_equal(second.features, 2);
}

/* ---- a back-end that is broken ---- */

static int ask_features(struct rig *rig)
{
    uint64_t features = 7;
    int rc = vuf_client_get_features(rig->client, &features);
    assert_int_equal(features, 7);
    return rc;
}

static int ask_base(struct rig *rig)
{
    return ring_get_base(rig, 1);
}

static int ask_config(struct rig *rig)
{
    char buf[8] = "1234567";
    int rc = vuf_client_get_config(rig->client, 0, 0, buf, sizeof buf);
    assert_string_equal(buf, "1234567");
    return rc;
}

static int ask_inflight(struct rig *rig)
{
    struct vuf_inflight inflight = {.mmap_size = 7};
    int fd = 7, rc = vuf_client_get_inflight_fd(rig->client, 1, 128, &inflight, &fd);
    assert_int_equal(fd, -1);
    assert_int_equal(inflight.mmap_size, 7);
    return rc;
}

static int ask_state(struct rig *rig)
{
    int fd = 7;
    int rc = vuf_client_set_device_state_fd(rig->client, VUF_TRANSFER_DIRECTION_SAVE,
                                            VUF_TRANSFER_PHASE_STOPPED, rig->event, &fd);
    assert_int_equal(fd, -1);
    return rc;
}

static int ask_shmem(struct rig *rig)
{
    struct vuf_shmem_config config = {.size = sizeof config, .nregions = 7};
    int rc = vuf_client_get_shmem_config(rig->client, &config);
    assert_int_equal(config.nregions, 7);
    return rc;
}

static int ask_check(struct rig *rig)
{
    return vuf_client_check_device_state(rig->client);
}

static const uint64_t four = 4, refused = 0x101, no_fd = 0x100, u64_zero = 0;
static const uint32_t other_ring[] = {2, 0}, wide_base[] = {1, 0x10000}, short_state = 1;
static const uint32_t config_of_4[] = {0, 4, 0, 0}, config_of_0[] = {0, 0, 0};
static const struct vuf_inflight no_buffer = {0, 0, 1, 128, 0}, buffer = {PAGE, 0, 1, 128, 0};
static const uint32_t one_region_of_none[514] = {1};

enum { WITH_FD = 1 }; /* in the table: the test puts in a real one */

static const struct broken_reply {
    const char *what;
    int (*ask)(struct rig *);
    enum request request;
    struct reply reply;
    int code;
    bool has_value;
    uint64_t value;
} broken_replies[] = {
    {"no reply flag", ask_features, GET_FEATURES,
     {.flags = 0x1, .size = 8, .payload = &four}, VUF_E_PROTOCOL, true, 0x1},
    {"version 2", ask_features, GET_FEATURES,
     {.flags = 0x6, .size = 8, .payload = &four}, VUF_E_PROTOCOL, true, 0x6},
    {"an unknown flag", ask_features, GET_FEATURES,
     {.flags = 0x15, .size = 8, .payload = &four}, VUF_E_PROTOCOL, true, 0x15},
    {"another request", ask_features, GET_FEATURES,
     {.request = GET_QUEUE_NUM, .size = 8, .payload = &four}, VUF_E_PROTOCOL, true, GET_QUEUE_NUM},
    {"too short", ask_features, GET_FEATURES,
     {.size = 4, .payload = &four}, VUF_E_PROTOCOL, true, 4},
    {"a huge size", ask_features, GET_FEATURES,
     {.size = UINT32_MAX}, VUF_E_PROTOCOL, true, UINT32_MAX},
    {"a descriptor where none belongs", ask_features, GET_FEATURES,
     {.size = 8, .payload = &four, .fd = WITH_FD}, VUF_E_PROTOCOL, true, 1},
    {"another ring", ask_base, GET_VRING_BASE,
     {.size = 8, .payload = other_ring}, VUF_E_PROTOCOL, true, 2},
    {"a base beyond 16 bits", ask_base, GET_VRING_BASE,
     {.size = 8, .payload = wide_base}, VUF_E_PROTOCOL, true, 0x10000},
    {"half a state", ask_base, GET_VRING_BASE,
     {.size = 4, .payload = &short_state}, VUF_E_PROTOCOL, true, 4},
    {"configuration of another length", ask_config, GET_CONFIG,
     {.size = sizeof config_of_4, .payload = config_of_4}, VUF_E_PROTOCOL, true, 4},
    {"a buffer without a descriptor", ask_inflight, GET_INFLIGHT_FD,
     {.size = sizeof buffer, .payload = &buffer}, VUF_E_PROTOCOL, false, 0},
    {"a channel that is not there", ask_state, SET_DEVICE_STATE_FD,
     {.size = 8, .payload = &u64_zero}, VUF_E_PROTOCOL, true, 0},
    {"a channel that should not be there", ask_state, SET_DEVICE_STATE_FD,
     {.size = 8, .payload = &no_fd, .fd = WITH_FD}, VUF_E_PROTOCOL, true, 0x100},
    {"regions without sizes", ask_shmem, GET_SHMEM_CONFIG,
     {.size = sizeof one_region_of_none, .payload = one_region_of_none}, VUF_E_PROTOCOL, true, 1},
    {"an empty configuration", ask_config, GET_CONFIG, {.size = 0}, VUF_E_NACK, true, 0},
    {"a configuration of size 0", ask_config, GET_CONFIG,
     {.size = sizeof config_of_0, .payload = config_of_0}, VUF_E_NACK, true, 0},
    {"a refused transfer", ask_state, SET_DEVICE_STATE_FD,
     {.size = 8, .payload = &refused}, VUF_E_NACK, true, 0x101},
    {"a failed transfer", ask_check, CHECK_DEVICE_STATE,
     {.size = 8, .payload = &four}, VUF_E_NACK, true, 4},
};

static void check_broken(struct rig *rig, const struct broken_reply *row)
{
    adopt(rig, BIT(VUF_F_PROTOCOL_FEATURES), all_protocol_features());
    struct reply reply = row->reply;
    if (reply.fd == WITH_FD) {
        reply.fd = rig->memory;
    }
    struct script script;
    int fds = count_fds();
    start_script(&script, rig->peer, &reply, 1);
    int rc = row->ask(rig);
    end_script(&script);
    struct vuf_error_info info = last_info();
    const char *name = vuf_request_name(row->request);
    bool broken = row->code == VUF_E_PROTOCOL;
    same(rig, row->what, "the code", rc, row->code);
    same(rig, row->what, "info.code", info.code, row->code);
    same(rig, row->what, "info.error_class", info.error_class,
         broken ? VUF_CLASS_PROTOCOL : VUF_CLASS_REFUSED);
    same(rig, row->what, "info.phase", info.phase, VUF_PHASE_REPLY);
    same(rig, row->what, "info.request", info.request, row->request);
    same(rig, row->what, "info.has_value", info.has_value, row->has_value);
    same(rig, row->what, "info.value", (long long)info.value, (long long)row->value);
    same(rig, row->what, "the text has the request's name", strstr(vuf_last_error(), name) != NULL,
         true);
    same(rig, row->what, "the number of descriptors", count_fds(), fds);
    rc = vuf_client_set_log_fd(rig->client, rig->event);
    same(rig, row->what, "the next code", rc, broken ? VUF_E_POISONED : 0);
    if (broken) {
        same(rig, row->what, "the next class", last_info().error_class, VUF_CLASS_PROTOCOL);
        same(rig, row->what, "the next request", last_info().request, SET_LOG_FD);
    }
}

static void broken_replies_are_told(void **state)
{
    struct rig *rig = *state;
    for (size_t i = 0; i < LENGTH(broken_replies); i++) {
        check_broken(rig, &broken_replies[i]);
    }
    all_refused(rig);
}

static void a_refused_request_is_told_with_its_value(void **state)
{
    struct rig *rig = *state;
    adopt(rig, BIT(VUF_F_PROTOCOL_FEATURES), BIT(VUF_PROTOCOL_F_REPLY_ACK));
    const struct reply replies[] = {U64_REPLY(UINT64_MAX - 21), U64_REPLY(0)};
    struct script script;
    start_script(&script, rig->peer, replies, 2);
    int rc = ring_num(rig, 3);
    struct vuf_error_info info = last_info();
    int after = ring_num(rig, 3);
    end_script(&script);
    assert_int_equal(rc, VUF_E_NACK);
    assert_int_equal(info.error_class, VUF_CLASS_REFUSED);
    assert_int_equal(info.phase, VUF_PHASE_REPLY);
    assert_int_equal(info.request, SET_VRING_NUM);
    assert_int_equal(info.ring, 3);
    assert_int_equal(info.has_value, 1);
    assert_true(info.value == UINT64_MAX - 21);
    assert_int_equal(after, 0); /* a refusal does not poison */
}

static void what_nobody_asked_for_breaks_the_protocol(void **state)
{
    struct rig *rig = *state;
    assert_true(write_reply(rig->peer, GET_FEATURES, &U64_REPLY(1)));
    struct pollfd item = {vuf_client_get_fd(rig->client), POLLIN, 0};
    assert_int_equal(poll(&item, 1, SOON_MS), 1); /* as the header says */
    assert_int_equal(vuf_client_set_owner(rig->client), VUF_E_PROTOCOL);
    assert_int_equal(vuf_client_set_owner(rig->client), VUF_E_POISONED);
    assert_int_equal(last_info().error_class, VUF_CLASS_PROTOCOL);
}

/* With a descriptor or without: some back-ends send one all the same. */
static void a_back_end_without_a_buffer_is_not_an_error(void **state)
{
    struct rig *rig = *state;
    const struct reply replies[] = {
        {.size = sizeof no_buffer, .payload = &no_buffer},
        {.size = sizeof no_buffer, .payload = &no_buffer, .fd = rig->memory},
    };
    for (size_t i = 0; i < LENGTH(replies); i++) {
        struct vuf_inflight inflight = {.mmap_size = 7};
        struct script script;
        int fds = count_fds(), fd = 7;
        start_script(&script, rig->peer, &replies[i], 1);
        int rc = vuf_client_get_inflight_fd(rig->client, 1, 128, &inflight, &fd);
        end_script(&script);
        assert_int_equal(rc, 0);
        assert_int_equal(inflight.mmap_size, 0);
        assert_int_equal(fd, -1);
        assert_int_equal(count_fds(), fds);
    }
}

static void a_result_may_have_another_size(void **state)
{
    struct rig *rig = *state;
    static const uint64_t answer[257] = {1, [1 + 3] = PAGE};
    const struct reply replies[] = {
        {.size = sizeof answer, .payload = answer},
        {.size = sizeof answer, .payload = answer},
    };
    struct script script;
    start_script(&script, rig->peer, replies, 2);
    struct {
        struct vuf_shmem_config known;
        uint64_t tail;
    } longer = {.known = {.size = sizeof longer}, .tail = 7};
    struct vuf_shmem_config shorter = {.size = offsetof(struct vuf_shmem_config, memory_sizes)};
    shorter.memory_sizes[3] = 7;
    int first = vuf_client_get_shmem_config(rig->client, &longer.known);
    int second = vuf_client_get_shmem_config(rig->client, &shorter);
    end_script(&script);
    assert_int_equal(first, 0);
    assert_int_equal(longer.known.size, sizeof longer);
    assert_int_equal(longer.known.nregions, 1);
    assert_int_equal(longer.known.memory_sizes[3], PAGE);
    assert_int_equal(longer.tail, 0);
    assert_int_equal(second, 0);
    assert_int_equal(shorter.nregions, 1);
    assert_int_equal(shorter.memory_sizes[3], 7); /* beyond its size */
}

/* ---- errors ---- */

static void every_code_has_a_text_and_a_class(void **state)
{
    (void)state;
    const struct {
        int code;
        uint32_t error_class;
    } table[] = {
        {VUF_E_DISCONNECTED, VUF_CLASS_TRANSPORT},
        {VUF_E_PROTOCOL, VUF_CLASS_PROTOCOL},
        {VUF_E_NACK, VUF_CLASS_REFUSED},
        {VUF_E_NOT_NEGOTIATED, VUF_CLASS_LOCAL},
        {VUF_E_POISONED, VUF_CLASS_TRANSPORT},
        {VUF_E_STATE, VUF_CLASS_LOCAL},
        {VUF_E_PANIC, VUF_CLASS_LOCAL},
        {-ECONNREFUSED, VUF_CLASS_TRANSPORT},
        {-ENOENT, VUF_CLASS_TRANSPORT},
        {-EAGAIN, VUF_CLASS_TRANSPORT},
        {-ENOTCONN, VUF_CLASS_TRANSPORT},
        {-ETIMEDOUT, VUF_CLASS_TRANSPORT},
        {-EINVAL, VUF_CLASS_LOCAL},
        {-EBADF, VUF_CLASS_LOCAL},
        {-ECANCELED, VUF_CLASS_LOCAL},
        {-E2BIG, VUF_CLASS_LOCAL},
        {-ENOMEM, VUF_CLASS_LOCAL},
        {-EMFILE, VUF_CLASS_LOCAL},
        {-EACCES, VUF_CLASS_LOCAL},
        {-ENOTSOCK, VUF_CLASS_LOCAL},
        {-ENAMETOOLONG, VUF_CLASS_LOCAL},
        {-4095, VUF_CLASS_LOCAL},
    };
    for (size_t i = 0; i < LENGTH(table); i++) {
        const char *text = vuf_strerror(table[i].code);
        assert_non_null(text);
        assert_true(strlen(text) > 5);
        assert_string_not_equal(text, vuf_strerror(-5000)); /* not "unknown" */
        assert_string_not_equal(text, vuf_strerror(0));
        assert_int_equal(vuf_error_class(table[i].code), table[i].error_class);
    }
}

static void the_codes_of_the_library_have_different_texts(void **state)
{
    (void)state;
    for (int a = VUF_E_PANIC; a <= VUF_E_DISCONNECTED; a++) {
        for (int b = a + 1; b <= VUF_E_DISCONNECTED; b++) {
            assert_string_not_equal(vuf_strerror(a), vuf_strerror(b));
        }
    }
}

static void any_number_has_a_text_but_no_class(void **state)
{
    (void)state;
    const int numbers[] = {0, 1, 22, 4097, INT_MAX, -4096, VUF_E_PANIC - 1, -5000, INT_MIN};
    for (size_t i = 0; i < LENGTH(numbers); i++) {
        assert_non_null(vuf_strerror(numbers[i]));
        assert_true(strlen(vuf_strerror(numbers[i])) > 0);
        assert_int_equal(vuf_error_class(numbers[i]), VUF_CLASS_NONE);
    }
}

static void the_version_is_that_of_the_header(void **state)
{
    (void)state;
    assert_int_equal(vuf_version(),
                     VUF_VERSION_MAJOR * 65536 + VUF_VERSION_MINOR * 256 + VUF_VERSION_PATCH);
}

#define NAMED(name) {name, #name}

static void requests_have_their_names(void **state)
{
    (void)state;
    const struct {
        uint32_t number;
        const char *name;
    } table[] = {
        NAMED(GET_FEATURES),        NAMED(SET_FEATURES),
        NAMED(SET_OWNER),           NAMED(RESET_OWNER),
        NAMED(SET_MEM_TABLE),       NAMED(SET_LOG_BASE),
        NAMED(SET_LOG_FD),          NAMED(SET_VRING_NUM),
        NAMED(SET_VRING_ADDR),      NAMED(SET_VRING_BASE),
        NAMED(GET_VRING_BASE),      NAMED(SET_VRING_KICK),
        NAMED(SET_VRING_CALL),      NAMED(SET_VRING_ERR),
        NAMED(GET_PROTOCOL_FEATURES), NAMED(SET_PROTOCOL_FEATURES),
        NAMED(GET_QUEUE_NUM),       NAMED(SET_VRING_ENABLE),
        NAMED(SET_BACKEND_REQ_FD),  NAMED(GET_CONFIG),
        NAMED(SET_CONFIG),          NAMED(GET_INFLIGHT_FD),
        NAMED(SET_INFLIGHT_FD),     NAMED(GET_MAX_MEM_SLOTS),
        NAMED(ADD_MEM_REG),         NAMED(REM_MEM_REG),
        NAMED(SET_DEVICE_STATE_FD), NAMED(CHECK_DEVICE_STATE),
        NAMED(GET_SHMEM_CONFIG),
    };
    size_t named = 0;
    for (size_t i = 0; i < LENGTH(table); i++) {
        assert_non_null(vuf_request_name(table[i].number));
        assert_string_equal(vuf_request_name(table[i].number), table[i].name);
    }
    for (uint32_t number = 0; number < 1000; number++) {
        named += vuf_request_name(number) != NULL;
    }
    assert_int_equal(named, LENGTH(table)); /* the others are never sent */
    assert_null(vuf_request_name(UINT32_MAX));
}

static void protocol_features_have_their_names(void **state)
{
    (void)state;
    static const char *const names[] = {
        "MQ", "LOG_SHMFD", "RARP", "REPLY_ACK", "MTU", "BACKEND_REQ", "CROSS_ENDIAN",
        "CRYPTO_SESSION", "PAGEFAULT", "CONFIG", "BACKEND_SEND_FD", "HOST_NOTIFIER",
        "INFLIGHT_SHMFD", "RESET_DEVICE", "INBAND_NOTIFICATIONS", "CONFIGURE_MEM_SLOTS", "STATUS",
        "XEN_MMAP", "SHARED_OBJECT", "DEVICE_STATE", "GET_VRING_BASE_INFLIGHT", "GPA_ADDRESSES",
        "SHMEM", "GET_VRING_BASE_SKIP_DRAIN",
    };
    for (uint32_t bit = 0; bit < LENGTH(names); bit++) {
        assert_non_null(vuf_protocol_feature_name(bit));
        assert_string_equal(vuf_protocol_feature_name(bit), names[bit]);
    }
    assert_null(vuf_protocol_feature_name(LENGTH(names)));
    assert_null(vuf_protocol_feature_name(63));
    assert_null(vuf_protocol_feature_name(64));
    assert_null(vuf_protocol_feature_name(UINT32_MAX));
}

static void what_is_served_has_a_name(void **state)
{
    (void)state;
    uint64_t served = vuf_supported_protocol_features();
    /* Those whose requests are in the header. */
    assert_true(served & BIT(VUF_PROTOCOL_F_MQ));
    assert_true(served & BIT(VUF_PROTOCOL_F_REPLY_ACK));
    assert_true(served & BIT(VUF_PROTOCOL_F_SHMEM));
    /* "Not served yet", and nothing in the header is about it. */
    assert_false(served & BIT(VUF_PROTOCOL_F_XEN_MMAP));
    assert_false(served & BIT(VUF_PROTOCOL_F_STATUS));
    for (uint32_t bit = 0; bit < 64; bit++) {
        assert_true((served & BIT(bit)) == 0 || vuf_protocol_feature_name(bit) != NULL);
    }
}

static void *look_at_a_fresh_thread(void *argument)
{
    struct rig *rig = argument;
    struct vuf_error_info info = {.size = sizeof info, .code = 7, .ring = 7, .region = 7};
    bool fresh = vuf_last_error()[0] == '\0' && vuf_last_error_info(&info) == 0 && info.code == 0 &&
                 info.error_class == VUF_CLASS_NONE && info.request == 0 && info.ring == -1 &&
                 info.region == -1 && info.has_value == 0;
    ring_num(rig, UINT32_MAX); /* fails, in this thread alone */
    return fresh ? rig : NULL;
}

static void the_last_error_is_that_of_the_thread(void **state)
{
    struct rig *rig = *state;
    pthread_t thread;
    void *fresh;
    char before[512];
    assert_int_equal(vuf_client_set_vring_num(rig->client, 1, 0), -EINVAL);
    snprintf(before, sizeof before, "%s", vuf_last_error());
    assert_int_equal(pthread_create(&thread, NULL, look_at_a_fresh_thread, rig), 0);
    pthread_join(thread, &fresh);
    assert_non_null(fresh);
    assert_string_equal(vuf_last_error(), before);
    assert_int_equal(last_info().ring, 1);
}

static void a_success_does_not_clear_the_last_error(void **state)
{
    struct rig *rig = *state;
    char before[512];
    assert_int_equal(ring_num(rig, MAX_RINGS), -EINVAL);
    snprintf(before, sizeof before, "%s", vuf_last_error());
    assert_int_equal(ring_num(rig, 0), 0);
    assert_string_equal(vuf_last_error(), before);
    assert_int_equal(last_info().code, -EINVAL);
}

static void a_bad_info_is_itself_the_last_failure(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ring_num(rig, MAX_RINGS), -EINVAL);
    assert_int_equal(last_info().request, SET_VRING_NUM);
    assert_int_equal(vuf_last_error_info(NULL), -EINVAL);
    assert_int_equal(last_info().request, NO_REQUEST);
}

static void an_info_may_have_another_size(void **state)
{
    struct rig *rig = *state;
    struct {
        struct vuf_error_info known;
        uint64_t tail;
    } longer = {.known = {.size = sizeof longer}, .tail = 7};
    struct vuf_error_info shorter = {.size = offsetof(struct vuf_error_info, phase), .request = 7};
    assert_int_equal(ring_num(rig, MAX_RINGS), -EINVAL);
    assert_int_equal(vuf_last_error_info(&longer.known), 0);
    assert_int_equal(longer.known.size, sizeof longer);
    assert_int_equal(longer.known.ring, MAX_RINGS);
    assert_int_equal(longer.tail, 0);
    assert_int_equal(vuf_last_error_info(&shorter), 0);
    assert_int_equal(shorter.size, offsetof(struct vuf_error_info, phase));
    assert_int_equal(shorter.code, -EINVAL);
    assert_int_equal(shorter.error_class, VUF_CLASS_LOCAL);
    assert_int_equal(shorter.request, 7); /* beyond its size */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define AGREED(name) cmocka_unit_test_setup_teardown(name, set_up_agreed, tear_down)

int main(void)
{
    signal(SIGPIPE, SIG_DFL); /* whoever started us may ignore it */
    const struct CMUnitTest tests[] = {
        TEST(a_null_client_is_refused),
        TEST(freeing_null_does_nothing),
        AGREED(a_null_output_is_refused),
        AGREED(a_null_input_is_refused),
        AGREED(a_descriptor_that_is_not_open_is_refused),
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
        AGREED(a_bad_log_is_refused),
        AGREED(a_bad_range_of_configuration_is_refused),
        AGREED(a_bad_inflight_buffer_is_refused),
        AGREED(a_bad_transfer_of_state_is_refused),
        AGREED(a_result_without_its_size_is_refused),
        TEST(what_was_not_agreed_is_refused),
        TEST(calls_out_of_order_are_refused),
        TEST(virtio_features_that_were_not_offered_are_refused),
        TEST(protocol_features_come_after_their_offer),
        TEST(protocol_features_need_bit_30),
        TEST(protocol_features_that_cannot_be_agreed_are_refused),
        TEST(bad_options_are_refused),
        TEST(other_sizes_of_options_are_accepted),
        TEST(what_a_short_struct_leaves_out_is_zero),
        TEST(a_null_argument_of_a_constructor_is_refused),
        TEST(from_fd_refuses_what_is_not_a_connection),
        TEST(accept_refuses_what_does_not_listen),
        TEST(from_fd_takes_the_socket_and_sends_nothing),
        TEST(from_fd_takes_number_0_as_any_other),
        TEST(connect_tells_why_it_cannot),
        TEST(connect_without_permission_is_refused),
        TEST(connect_reaches_a_listener),
        TEST(connect_to_a_full_backlog_is_bounded),
        TEST(accept_is_bounded),
        TEST(accept_takes_one_that_connects),
        TEST(silence_poisons),
        TEST(silence_keeps_if_asked_to),
        TEST(a_ring_is_stopped_within_the_time_of_the_call),
        TEST(every_kind_of_deadline_can_be_chosen),
        TEST(a_barrier_that_is_awaited_is_named),
        TEST(a_peer_that_hung_up_is_told),
        TEST(a_peer_that_hangs_up_ends_a_wait),
        TEST(a_closed_peer_raises_no_signal),
        TEST(no_thread_is_started),
        TEST(nothing_is_printed),
        TEST(abort_ends_what_another_thread_waits_for),
        TEST(abort_rules_after_a_failure),
        TEST(abort_rules_over_what_is_unread),
        TEST(abort_works_in_a_signal_handler),
        TEST(a_signal_does_not_end_a_wait),
        TEST(free_waits_for_other_threads),
        TEST(a_forked_child_frees_only_its_own),
        TEST(two_threads_get_their_own_answers),
        TEST(broken_replies_are_told),
        TEST(a_refused_request_is_told_with_its_value),
        TEST(what_nobody_asked_for_breaks_the_protocol),
        AGREED(a_back_end_without_a_buffer_is_not_an_error),
        AGREED(a_result_may_have_another_size),
        cmocka_unit_test(every_code_has_a_text_and_a_class),
        cmocka_unit_test(the_codes_of_the_library_have_different_texts),
        cmocka_unit_test(any_number_has_a_text_but_no_class),
        cmocka_unit_test(the_version_is_that_of_the_header),
        cmocka_unit_test(requests_have_their_names),
        cmocka_unit_test(protocol_features_have_their_names),
        cmocka_unit_test(what_is_served_has_a_name),
        TEST(the_last_error_is_that_of_the_thread),
        TEST(a_success_does_not_clear_the_last_error),
        TEST(a_bad_info_is_itself_the_last_failure),
        TEST(an_info_may_have_another_size),
    };
    return cmocka_run_group_tests_name("test_args", tests, NULL, NULL);
}
