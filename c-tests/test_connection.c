/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* How a connection begins, lasts and ends: options and constructors; a back-end
   that is silent or gone; abort, free, threads and fork. The back-end is the
   other end of a socket pair, or of a listener, held by the test. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHORT_MS = 100 }; /* a deadline that is meant to pass */

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
    {"sizeof(struct vuf_client_options)", -EINVAL, {.known = {.size = sizeof(void *)}}},
    {"size", -EINVAL, {.known = {.size = sizeof quick - 1}}},
    {"options", -E2BIG, {.known = {.size = sizeof(struct longer)}, .tail = {1, 0}}},
    {"options", -E2BIG, {.known = {.size = sizeof(struct longer)}, .tail = {0, 1}}},
    {"options", -E2BIG, {.known = {.size = SIZE_MAX}}},
    {"on_timeout", -EINVAL, {.known = {.size = sizeof quick, .on_timeout = 2}}},
    {"max_rings", -EINVAL, {.known = {.size = sizeof quick, .max_rings = 257}}},
    {"flags", -EINVAL, {.known = {.size = sizeof quick, .flags = 4}}},
    {"flags", -EINVAL, {.known = {.size = sizeof quick, .flags = UINT32_MAX}}},
    {"spin", -EINVAL, {.known = {.size = sizeof quick, .spin_us = VUF_MAX_SPIN_US + 1}}},
    {"adopt", -EINVAL, {.known = {.size = sizeof quick, .adopt_features = 1}}},
    {"adopt", -EINVAL, {.known = {.size = sizeof quick, .adopt_protocol_features = 1}}},
    {"protocol_features",
     -EINVAL,
     {.known = {.size = sizeof quick,
                .flags = VUF_CLIENT_ADOPT,
                .adopt_protocol_features = BIT(63)}}},
};

/* The call, which has &out as its last argument, is refused and clears it. */
#define NO_CLIENT(rig, code, text, ...)                                                            \
    do {                                                                                           \
        struct vuf_client *out = rig->client;                                                      \
        REFUSED(rig, code, NO_REQUEST, text, __VA_ARGS__);                                         \
        same(rig, #__VA_ARGS__, "out is NULL", out == NULL, true);                                 \
    } while (0)

static void bad_options_are_refused(void **state)
{
    struct rig *rig = *state;
    int listener = open_listener(rig, 1), ends[2];
    make_pair(ends);
    for (size_t i = 0; i < LENGTH(bad_options); i++) {
        const struct vuf_client_options *options = &bad_options[i].options.known;
        int code = bad_options[i].code;
        const char *name = bad_options[i].name;
        NO_CLIENT(rig, code, name, vuf_client_from_fd(ends[0], options, &out));
        NO_CLIENT(rig, code, name, vuf_client_connect(rig->path, options, &out));
        NO_CLIENT(rig, code, name, vuf_client_accept(listener, options, &out));
    }
    close(ends[0]);
    close(ends[1]);
    close(listener);
    all_refused(rig);
}

static void a_longer_struct_of_options_is_accepted(void **state)
{
    struct rig *rig = *state;
    struct longer options = {.known = quick};
    const size_t good[] = {
        sizeof(struct vuf_client_options),
        sizeof(struct longer),
    };
    for (size_t i = 0; i < LENGTH(good); i++) {
        options.known.size = good[i];
        reopen_client(rig, &options.known);
        assert_int_equal(vuf_client_set_owner(rig->client), 0);
    }
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
    int datagrams[2], internet = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int unconnected = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int listener = open_listener(rig, 1);
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
        check_failure(rig, call, rc,
                      (struct failure){bad[i].code, vuf_error_class(bad[i].code), VUF_PHASE_CHECK});
        says(rig, call, "the text says fd", "fd");
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
    int bound = open_listener(rig, -1), ends[2];
    make_pair(ends);
    const struct {
        int fd, code;
    } bad[] = {
        {-1, -EBADF},           {INT_MIN, -EBADF}, {rig->closed, -EBADF},
        {rig->event, -ENOTSOCK}, {bound, -EINVAL},  {ends[0], -EINVAL},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        NO_CLIENT(rig, bad[i].code, "fd", vuf_client_accept(bad[i].fd, &quick, &out));
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

static void from_fd_exchanges_number_0_for_another(void **state)
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
    assert_true(fd >= 3);
    assert_true(closed);
}

static void connect_tells_why_it_cannot(void **state)
{
    struct rig *rig = *state;
    int bound = open_listener(rig, -1);
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
        struct vuf_error_info info = check_failure(
            rig, bad[i].path, rc,
            (struct failure){bad[i].code, vuf_error_class(bad[i].code), bad[i].phase});
        same(rig, bad[i].path, "info.errno_value", info.errno_value, -bad[i].code);
        same(rig, bad[i].path, "info.request", info.request, NO_REQUEST);
        says(rig, bad[i].path, "the text has the path", bad[i].path);
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
    int listener = open_listener(rig, 1);
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
    int listener = open_listener(rig, 1);
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

/* Connects, or accepts from the listener unless it is -1; nobody is there. */
static void assert_bounded(struct rig *rig, int listener, uint32_t flags)
{
    struct vuf_client_options options = quick;
    options.connect_timeout_ms = SHORT_MS;
    options.flags = flags;
    struct vuf_client *out = rig->client;
    int64_t began = now_ms();
    int fds = count_fds();
    int rc = listener == -1 ? vuf_client_connect(rig->path, &options, &out)
                            : vuf_client_accept(listener, &options, &out);
    assert_int_equal(rc, -ETIMEDOUT);
    assert_on_time(began);
    assert_null(out);
    assert_int_equal(count_fds(), fds);
    assert_int_equal(last_info().phase, VUF_PHASE_CONNECT);
}

static void connect_to_a_full_backlog_is_bounded(void **state)
{
    struct rig *rig = *state;
    int listener = open_listener(rig, 0), waiting[16], n = 0;
    struct sockaddr_un address = address_of(rig->path);
    bool full = false;
    while (!full && n < (int)LENGTH(waiting)) {
        waiting[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        full = connect(waiting[n++], (struct sockaddr *)&address, sizeof address) != 0;
    }
    assert_true(full);
    assert_bounded(rig, -1, 0);
    while (n > 0) {
        close(waiting[--n]);
    }
    close(listener);
}

/* The kernel takes connections for a listener that does nothing. */
static void a_back_end_that_never_accepts_is_silent(void **state)
{
    struct rig *rig = *state;
    struct vuf_client_options options = quick;
    options.timeout_ms = SHORT_MS;
    int listener = open_listener(rig, 1);
    struct vuf_client *client = NULL;
    uint64_t features;
    assert_int_equal(vuf_client_connect(rig->path, &options, &client), 0);
    int64_t began = now_ms();
    assert_int_equal(vuf_client_get_features(client, &features), -ETIMEDOUT);
    assert_on_time(began);
    assert_int_equal(last_info().phase, VUF_PHASE_REPLY);
    close(listener);
    vuf_client_free(client);
}

/* A socket that is first not there and then not listened on. */
struct late {
    const char *from, *to;
    int fd;
};

static void *listen_later(void *argument)
{
    const struct late *late = argument;
    sleep_ms(SHORT_MS / 2);
    int rc = rename(late->from, late->to);
    sleep_ms(SHORT_MS / 2);
    rc |= listen(late->fd, 1);
    return rc == 0 ? argument : NULL;
}

static void connect_waits_for_a_socket_if_asked_to(void **state)
{
    struct rig *rig = *state;
    struct vuf_client_options options = quick;
    options.flags = VUF_CLIENT_WAIT_FOR_SOCKET;
    int fd = open_listener(rig, -1);
    assert_bounded(rig, -1, VUF_CLIENT_WAIT_FOR_SOCKET);
    char elsewhere[sizeof rig->path + 1];
    snprintf(elsewhere, sizeof elsewhere, "%s~", rig->path);
    assert_return_code(rename(rig->path, elsewhere), errno);
    assert_bounded(rig, -1, VUF_CLIENT_WAIT_FOR_SOCKET);

    struct late late = {elsewhere, rig->path, fd};
    pthread_t thread;
    void *listened;
    struct vuf_client *client = NULL;
    assert_int_equal(pthread_create(&thread, NULL, listen_later, &late), 0);
    int rc = vuf_client_connect(rig->path, &options, &client);
    pthread_join(thread, &listened);
    assert_int_equal(rc, 0);
    assert_non_null(listened);
    vuf_client_free(client);
    close(fd);
}

static void accept_is_bounded(void **state)
{
    struct rig *rig = *state;
    int listener = open_listener(rig, 1);
    assert_bounded(rig, listener, 0);
    close(listener);
}

static void accept_takes_one_that_connects(void **state)
{
    struct rig *rig = *state;
    int listener = open_listener(rig, 1);
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = address_of(rig->path);
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

/* Ends a forked child by a program that valgrind does not look into. */
static void leave(int code)
{
    const char text[] = {'e', 'x', 'i', 't', ' ', (char)('0' + code), '\0'};
    execlp("sh", "sh", "-c", text, (char *)NULL);
    _exit(127);
}

/* Processes that accept from one listener, each for a moment. */
static void accept_restores_a_shared_listener(void **state)
{
    enum { PROCESSES = 3, TIMES = 60 };
    struct rig *rig = *state;
    struct vuf_client_options brief = quick;
    int listener = open_listener(rig, 8), status;
    struct timeval timeout = {.tv_sec = 7}, left = {0};
    socklen_t size = sizeof left;
    brief.connect_timeout_ms = 1;
    assert_return_code(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &timeout, size), errno);
    for (int i = 0; i < PROCESSES; i++) {
        pid_t child = fork();
        assert_return_code(child, errno);
        for (int time = 0; child == 0 && time < TIMES; time++) {
            struct vuf_client *client;
            int rc = vuf_client_accept(listener, &brief, &client);
            if (rc != -ETIMEDOUT) {
                leave(1);
            }
        }
        if (child == 0) {
            leave(0);
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        assert_return_code(wait(&status), errno);
        assert_int_equal(status, 0);
    }
    assert_return_code(getsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &left, &size), errno);
    assert_int_equal(left.tv_sec, timeout.tv_sec);
    assert_int_equal(left.tv_usec, 0);
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
    assert_return_code(sigaction(SIGALRM, &before, NULL), errno);
    assert_int_equal(rc, -ECANCELED);
    assert_true(abort_returned);
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

/* A call on the client in a child that has the number of its parent: each is the first
   process of its namespace. */
static int use_in_child(struct vuf_client *client, int peer)
{
    int status = 0;
    struct waiter waiter = {.rc = 0};
    struct rig inside = {.client = client, .peer = peer};
    start_waiter(&waiter, &inside);
    pid_t child = unshare(CLONE_NEWPID) == 0 ? fork() : -1;
    if (child == 0) {
        uint64_t features;
        alarm(PEER_MS / 1000);
        if (getpid() != 1 || vuf_client_abort(client) != VUF_E_STATE ||
            vuf_client_get_features(client, &features) != VUF_E_STATE) {
            leave(1);
        }
        vuf_client_free(client);
        leave(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        return 2;
    }
    if (!peer_saw_nothing(peer) || !write_reply(peer, GET_FEATURES, &U64_REPLY(1))) {
        return 3;
    }
    pthread_join(waiter.thread, NULL);
    return waiter.rc == 0 && waiter.features == 1 ? 0 : 4;
}

static void child_with_the_number_of_its_parent_frees_only_its_own(void **state)
{
    struct rig *rig = *state;
    int status;
    pid_t outer = fork();
    if (outer == 0) {
        if (unshare(CLONE_NEWPID) != 0) {
            leave(7); /* it takes rights that not everybody has */
        }
        pid_t first = fork();
        if (first == 0) {
            open_patient(rig);
            leave(getpid() == 1 ? use_in_child(rig->client, rig->peer) : 5);
        }
        if (first < 0 || waitpid(first, &status, 0) != first || !WIFEXITED(status)) {
            leave(6);
        }
        leave(WEXITSTATUS(status));
    }
    assert_int_equal(waitpid(outer, &status, 0), outer);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 7) {
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- threads that are cancelled ---- */

struct cancelled {
    struct vuf_client *client;
    struct vuf_device *device;
    int rc, state;
};

static void *call_and_be_cancelled(void *argument)
{
    struct cancelled *call = argument;
    uint64_t features;
    call->rc = call->device != NULL ? vuf_device_wait(call->device, SHORT_MS)
                                    : vuf_client_get_features(call->client, &features);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &call->state);
    pthread_testcancel();
    return NULL;
}

/* The call returns as if nothing had happened, and the thread ends behind it. */
static void assert_cancelled_after(struct cancelled *call, int code)
{
    pthread_t thread;
    void *result;
    call->rc = 0;
    call->state = -1;
    assert_int_equal(pthread_create(&thread, NULL, call_and_be_cancelled, call), 0);
    sleep_ms(SHORT_MS / 2);
    assert_int_equal(pthread_cancel(thread), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, PTHREAD_CANCELED);
    assert_int_equal(call->rc, code);
    assert_int_equal(call->state, PTHREAD_CANCEL_ENABLE);
}

static void cancellation_waits_for_the_end_of_a_call(void **state)
{
    struct rig *rig = *state;
    const struct vuf_client_options brief = {.size = sizeof brief, .timeout_ms = SHORT_MS};
    const struct vuf_device_options options = {.size = sizeof options, .num_rings = 1};
    struct cancelled call = {0};
    reopen_client(rig, &brief);
    call.client = rig->client;
    assert_cancelled_after(&call, -ETIMEDOUT);
    assert_return_code(vuf_device_open("/nowhere/socket", &options, &call.device), 0);
    assert_cancelled_after(&call, -ETIMEDOUT);
    vuf_device_free(call.device);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bad_options_are_refused),
        TEST(a_longer_struct_of_options_is_accepted),
        TEST(a_null_argument_of_a_constructor_is_refused),
        TEST(from_fd_refuses_what_is_not_a_connection),
        TEST(accept_refuses_what_does_not_listen),
        TEST(from_fd_takes_the_socket_and_sends_nothing),
        TEST(from_fd_exchanges_number_0_for_another),
        TEST(connect_tells_why_it_cannot),
        TEST(connect_without_permission_is_refused),
        TEST(connect_reaches_a_listener),
        TEST(connect_to_a_full_backlog_is_bounded),
        TEST(a_back_end_that_never_accepts_is_silent),
        TEST(connect_waits_for_a_socket_if_asked_to),
        TEST(accept_is_bounded),
        TEST(accept_takes_one_that_connects),
        TEST(accept_restores_a_shared_listener),
        TEST(silence_poisons),
        TEST(silence_keeps_if_asked_to),
        TEST(a_ring_is_stopped_within_the_time_of_the_call),
        TEST(every_kind_of_deadline_can_be_chosen),
        TEST(a_barrier_that_is_awaited_is_named),
        TEST(a_peer_that_hung_up_is_told),
        TEST(a_peer_that_hangs_up_ends_a_wait),
        TEST(abort_ends_what_another_thread_waits_for),
        TEST(abort_rules_after_a_failure),
        TEST(abort_rules_over_what_is_unread),
        TEST(abort_works_in_a_signal_handler),
        TEST(free_waits_for_other_threads),
        TEST(a_forked_child_frees_only_its_own),
        TEST(child_with_the_number_of_its_parent_frees_only_its_own),
        TEST(cancellation_waits_for_the_end_of_a_call),
        TEST(two_threads_get_their_own_answers),
    };
    return cmocka_run_group_tests_name("test_connection", tests, default_signals, NULL);
}
