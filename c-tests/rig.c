/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* ---- a client, and the other end of its connection ---- */

const struct vuf_client_options quick = {
    .size = sizeof quick,
    .timeout_ms = 2000,
    .slow_timeout_ms = 2000,
    .drain_timeout_ms = 2000,
    .max_rings = MAX_RINGS,
};

void make_pair(int ends[2])
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

void reopen_client(struct rig *rig, const struct vuf_client_options *options)
{
    close_client(rig);
    open_client(rig, options);
}

void adopt(struct rig *rig, uint64_t features, uint64_t protocol_features)
{
    struct vuf_client_options options = quick;
    options.flags = VUF_CLIENT_ADOPT;
    options.adopt_features = features;
    options.adopt_protocol_features = protocol_features;
    reopen_client(rig, &options);
}

uint64_t all_protocol_features(void)
{
    return vuf_supported_protocol_features() &
           ~(BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_GPA_ADDRESSES) |
             BIT(VUF_PROTOCOL_F_XEN_MMAP) |
             BIT(VUF_PROTOCOL_F_INBAND_NOTIFICATIONS)); /* which needs REPLY_ACK */
}

int set_up(void **state)
{
    struct rig *rig = test_calloc(1, sizeof *rig);
    *state = rig;
    rig->memory = memfd_create("memory", MFD_CLOEXEC);
    rig->event = eventfd(0, EFD_CLOEXEC);
    rig->closed = 900; /* above all that a test opens */
    if (rig->memory < 0 || ftruncate(rig->memory, PAGE) != 0 || rig->event < 0 ||
        fcntl(rig->closed, F_GETFD) != -1) {
        return -1;
    }
    open_client(rig, &quick);
    return 0;
}

int set_up_agreed(void **state)
{
    if (set_up(state) != 0) {
        return -1;
    }
    adopt(*state, BIT(VUF_F_PROTOCOL_FEATURES), all_protocol_features());
    return 0;
}

int default_signals(void **state)
{
    (void)state;
    return signal(SIGPIPE, SIG_DFL) != SIG_ERR ? 0 : -1;
}

struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return address;
}

int open_listener(struct rig *rig, int backlog)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(rig->dir, sizeof rig->dir, "%s/vuf.XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(rig->dir));
    snprintf(rig->path, sizeof rig->path, "%s/socket", rig->dir);
    struct sockaddr_un address = address_of(rig->path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_return_code(fd, errno);
    assert_return_code(bind(fd, (struct sockaddr *)&address, sizeof address), errno);
    if (backlog >= 0) {
        assert_return_code(listen(fd, backlog), errno);
    }
    return fd;
}

int tear_down(void **state)
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

enum { REPLY = 0x5 };

static bool read_whole(int fd, void *buffer, size_t size)
{
    return size == 0 || recv(fd, buffer, size, MSG_WAITALL) == (ssize_t)size;
}

bool read_request(int peer, struct header *header)
{
    char body[4096];
    return read_whole(peer, header, sizeof *header) && header->size <= sizeof body &&
           read_whole(peer, body, header->size);
}

bool write_reply(int peer, uint32_t request, const struct reply *reply)
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

void start_script(struct script *script, int peer, const struct reply *replies, size_t n)
{
    *script = (struct script){.peer = peer, .replies = replies, .n = n};
    assert_int_equal(pthread_create(&script->thread, NULL, run_script, script), 0);
}

void end_script(struct script *script)
{
    void *result;
    pthread_join(script->thread, &result);
    assert_ptr_equal(result, script);
}

bool peer_saw_nothing(int peer)
{
    char byte;
    return recv(peer, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == -1 && errno == EAGAIN;
}

/* ---- calls about a ring ---- */

int ring_num(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_num(rig->client, index, 128);
}

int ring_get_base(struct rig *rig, uint32_t index)
{
    uint32_t base = 7;
    int rc = vuf_client_get_vring_base(rig->client, index, VUF_TIMEOUT_DEFAULT, &base);
    assert_int_equal(base, 7);
    return rc;
}

int ring_enable(struct rig *rig, uint32_t index)
{
    return vuf_client_set_vring_enable(rig->client, index, true);
}

/* ---- what a failure tells ---- */

void assert_returns_at(int rc, int want, const char *call, const char *file, int line)
{
    if (rc != want) {
        print_error("%s:%d: %s: %d and not %d (%s)\n", file, line, call, rc, want,
                    vuf_last_error());
        fail();
    }
}

void assert_says_at(const char *text, const char *call, const char *file, int line)
{
    if (strstr(vuf_last_error(), text) == NULL) {
        print_error("%s:%d: %s: \"%s\" does not say \"%s\"\n", file, line, call, vuf_last_error(),
                    text);
        fail();
    }
}

struct vuf_error_info last_info(void)
{
    struct vuf_error_info info = {.size = sizeof info};
    assert_int_equal(vuf_last_error_info(&info), 0);
    return info;
}

bool same(struct rig *rig, const char *call, const char *what, long long is, long long want)
{
    if (is == want) {
        return true;
    }
    print_error("%s: %s is %lld, not %lld\n    \"%s\"\n", call, what, is, want, vuf_last_error());
    rig->failures++;
    return false;
}

void says(struct rig *rig, const char *call, const char *what, const char *text)
{
    same(rig, call, what, text != NULL && strstr(vuf_last_error(), text) != NULL, true);
}

struct vuf_error_info check_failure(struct rig *rig, const char *call, int rc,
                                    struct failure want)
{
    struct vuf_error_info info = last_info();
    same(rig, call, "the code", rc, want.code);
    same(rig, call, "info.code", info.code, want.code);
    same(rig, call, "info.error_class", info.error_class, want.error_class);
    same(rig, call, "info.phase", info.phase, want.phase);
    return info;
}

void check_refusal(struct rig *rig, const char *call, int fds_before, int rc, struct refusal want)
{
    if (!same(rig, call, "the code", rc, want.code)) {
        return;
    }
    struct vuf_error_info info = check_failure(
        rig, call, rc, (struct failure){want.code, VUF_CLASS_LOCAL, VUF_PHASE_CHECK});
    same(rig, call, "info.errno_value", info.errno_value, rc > -4096 ? -rc : 0);
    same(rig, call, "info.request", info.request, want.request);
    same(rig, call, "info.ring", info.ring, want.ring);
    same(rig, call, "info.region", info.region, want.region);
    same(rig, call, "info.has_value", info.has_value, 0);
    says(rig, call, "the text has the argument's name", want.text);
    if (want.request != NO_REQUEST) {
        says(rig, call, "the text has the request's name", vuf_request_name(want.request));
    }
    if (rig->peer >= 0) {
        same(rig, call, "the back-end saw nothing", peer_saw_nothing(rig->peer), true);
    }
    same(rig, call, "the number of descriptors", count_fds(), fds_before);
}

void all_refused(struct rig *rig)
{
    assert_int_equal(rig->failures, 0);
}
