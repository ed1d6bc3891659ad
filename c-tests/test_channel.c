/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the back-end asks on its own channel, and the caller's functions that do
   it: against the scripted back-end, which can ask everything, and against the
   back-end half of rust-vmm's vhost crate. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    LOG_MS = 5000, /* for a line that must come */
    MAX_SEEN = 80,
    NET_MTU = 3,
    VERSION_1 = 32,
    ACCESS_PLATFORM = 33,
    FILE_SIZE = 0x100000, /* of those that the scripted back-end sends */
};

#define FEATURES                                                                                   \
    (BIT(VUF_F_PROTOCOL_FEATURES) | BIT(VERSION_1) | BIT(NET_MTU) | BIT(ACCESS_PLATFORM))
#define REPLY_ACK BIT(VUF_PROTOCOL_F_REPLY_ACK)
#define PROTOCOL_FEATURES                                                                          \
    (REPLY_ACK | BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_BACKEND_REQ) |                        \
     BIT(VUF_PROTOCOL_F_BACKEND_SEND_FD) | BIT(VUF_PROTOCOL_F_CONFIG) |                            \
     BIT(VUF_PROTOCOL_F_HOST_NOTIFIER) | BIT(VUF_PROTOCOL_F_INBAND_NOTIFICATIONS) |                \
     BIT(VUF_PROTOCOL_F_SHARED_OBJECT) | BIT(VUF_PROTOCOL_F_SHMEM) |                               \
     BIT(VUF_PROTOCOL_F_RESET_DEVICE))

/* Statements of docs/mock-backend.md, for a device that has everything. */
#define SCRIPT(...)                                                                                \
    ((const char *const[]){"--once", "-e", "device features +33 +3", "-e",                         \
                           "device shmem 3=0x10000", __VA_ARGS__, NULL})

#define UUID "00112233-4455-6677-8899-aabbccddeeff"

/* ---- what the functions were called for ---- */

struct seen {
    char text[128];
    pthread_t thread;
};

struct fixture {
    struct backend backend;
    struct vuf_client *client;
    int found; /* what shared_object_lookup gives away, by duplicates */
    int result;
    int lookup_fd;                   /* if not -1: given in place of found, as it is */
    void (*inside)(struct fixture *); /* runs in each function */
    pthread_mutex_t lock;
    struct seen seen[MAX_SEEN];
    size_t n, checked;
};

static struct fixture the_fixture;

__attribute__((format(printf, 2, 3))) static int see(void *user, const char *format, ...)
{
    struct fixture *f = user;
    if (f != &the_fixture) {
        return -EFAULT; /* which then is an answer that no test wants */
    }
    if (f->inside != NULL) {
        f->inside(f);
    }
    pthread_mutex_lock(&f->lock);
    if (f->n < MAX_SEEN) {
        struct seen *seen = &f->seen[f->n++];
        va_list args;
        va_start(args, format);
        vsnprintf(seen->text, sizeof seen->text, format, args);
        va_end(args);
        seen->thread = pthread_self();
    }
    pthread_mutex_unlock(&f->lock);
    return f->result;
}

/* A descriptor that was given: close-on-exec, and ours to close. */
static const char *judge_given(int fd)
{
    struct stat about;
    if (fcntl(fd, F_GETFD) != FD_CLOEXEC || fstat(fd, &about) != 0) {
        return "bad fd";
    }
    close(fd);
    return about.st_size == FILE_SIZE ? "fd" : "another fd";
}

static int iotlb_miss(void *user, uint64_t iova, uint32_t perm)
{
    return see(user, "miss %#llx %u", (unsigned long long)iova, perm);
}

static int iotlb_access_fail(void *user, uint64_t iova, uint64_t size, uint32_t perm)
{
    return see(user, "denied %#llx %#llx %u", (unsigned long long)iova, (unsigned long long)size,
               perm);
}

static int host_notifier(void *user, uint32_t ring, int fd, uint64_t offset, uint64_t size)
{
    if (fd == -1) {
        return see(user, "notifier %u gone %llu %llu", ring, (unsigned long long)offset,
                   (unsigned long long)size);
    }
    return see(user, "notifier %u %#llx %#llx %s", ring, (unsigned long long)offset,
               (unsigned long long)size, judge_given(fd));
}

static void print_uuid(char text[33], const uint8_t *uuid)
{
    for (int i = 0; i < 16; i++) {
        snprintf(text + (size_t)i * 2, 3, "%02x", uuid[i]);
    }
}

static int shared_object_lookup(void *user, const uint8_t *uuid, int *fd)
{
    struct fixture *f = user;
    char text[33];
    print_uuid(text, uuid);
    int result = see(user, "lookup %s %d", text, *fd);
    if (result == 0) {
        *fd = f->lookup_fd != -1 ? f->lookup_fd : fcntl(f->found, F_DUPFD_CLOEXEC, 0);
    }
    return result;
}

static int shmem_map(void *user, const struct vuf_shmem_area *area, int fd)
{
    return see(user, "map %u %u %#llx %#llx %#llx %#llx %s", area->shmid, area->reserved,
               (unsigned long long)area->fd_offset, (unsigned long long)area->shm_offset,
               (unsigned long long)area->len, (unsigned long long)area->flags, judge_given(fd));
}

static int shmem_unmap(void *user, const struct vuf_shmem_area *area)
{
    return see(user, "unmap %u %#llx %#llx", area->shmid, (unsigned long long)area->shm_offset,
               (unsigned long long)area->len);
}

static void config_changed(void *user)
{
    see(user, "config");
}

static void vring_call(void *user, uint32_t ring)
{
    see(user, "call %u", ring);
}

static void vring_err(void *user, uint32_t ring)
{
    see(user, "err %u", ring);
}

static void shared_object_added(void *user, const uint8_t *uuid)
{
    char text[33];
    print_uuid(text, uuid);
    see(user, "added %s", text);
}

static void shared_object_removed(void *user, const uint8_t *uuid)
{
    char text[33];
    print_uuid(text, uuid);
    see(user, "removed %s", text);
}

static const struct vuf_backend_ops all_ops = {
    .size = sizeof all_ops,
    .iotlb_miss = iotlb_miss,
    .iotlb_access_fail = iotlb_access_fail,
    .host_notifier = host_notifier,
    .shared_object_lookup = shared_object_lookup,
    .shmem_map = shmem_map,
    .shmem_unmap = shmem_unmap,
    .config_changed = config_changed,
    .vring_call = vring_call,
    .vring_err = vring_err,
    .shared_object_added = shared_object_added,
    .shared_object_removed = shared_object_removed,
};

/* ---- a back-end, and a client of it with a channel ---- */

static void ok(int rc)
{
    if (rc != 0) {
        fail_msg("%d: %s", rc, vuf_last_error());
    }
}

static void connect_to_it(struct fixture *f, uint64_t features, uint64_t protocol_features)
{
    uint64_t offered;
    ok(vuf_client_connect(f->backend.socket, NULL, &f->client));
    ok(vuf_client_get_features(f->client, &offered));
    ok(vuf_client_get_protocol_features(f->client, &offered));
    ok(vuf_client_set_protocol_features(f->client, protocol_features));
    ok(vuf_client_set_owner(f->client));
    ok(vuf_client_set_features(f->client, features));
    if ((protocol_features & BIT(VUF_PROTOCOL_F_SHMEM)) != 0) {
        struct vuf_shmem_config config = {.size = sizeof config};
        ok(vuf_client_get_shmem_config(f->client, &config));
    }
}

static void start_with(struct fixture *f, const char *const args[],
                       const struct vuf_backend_ops *ops)
{
    assert_int_equal(backend_start_mock(&f->backend, args), 0);
    connect_to_it(f, FEATURES, PROTOCOL_FEATURES);
    ok(vuf_client_open_backend_channel(f->client, ops, f));
}

static void start(struct fixture *f, const char *const args[])
{
    start_with(f, args, &all_ops);
}

/* The recorder on the vhost crate; args say what it asks. */
static void start_recorder(struct fixture *f, const char *const args[])
{
    assert_int_equal(backend_start_foreign(&f->backend, args), 0);
    connect_to_it(f, BIT(VUF_F_PROTOCOL_FEATURES) | BIT(VERSION_1),
                  REPLY_ACK | BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_BACKEND_REQ) |
                      BIT(VUF_PROTOCOL_F_SHARED_OBJECT) | BIT(VUF_PROTOCOL_F_SHMEM));
}

static void stop(struct fixture *f)
{
    vuf_client_free(f->client);
    f->client = NULL;
    backend_stop(&f->backend);
}

/* The same for a scripted back-end that was pleased with every answer. */
static void stop_pleased(struct fixture *f)
{
    int status;
    vuf_client_free(f->client);
    f->client = NULL;
    assert_true(backend_ended(&f->backend, LOG_MS, &status));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    backend_stop(&f->backend);
}

static int make_fixture(void **state)
{
    struct fixture *f = &the_fixture;
    memset(f, 0, sizeof *f);
    *state = f;
    f->lookup_fd = -1;
    pthread_mutex_init(&f->lock, NULL);
    f->found = memfd_create("found", MFD_CLOEXEC);
    return f->found < 0;
}

static int drop_fixture(void **state)
{
    struct fixture *f = *state;
    stop(f);
    close(f->found);
    pthread_mutex_destroy(&f->lock);
    return 0;
}

/* A request of the front-end, at which scripts have the back-end ask. */
static void call_it(struct fixture *f)
{
    uint64_t num = 0;
    ok(vuf_client_get_queue_num(f->client, &num));
    assert_int_equal(num, 4);
}

static void process(struct fixture *f)
{
    ok(vuf_client_process_backend_requests(f->client));
}

static bool ready_within(struct fixture *f, int ms)
{
    int fd = vuf_client_backend_fd(f->client);
    assert_true(fd > 2);
    struct pollfd item = {fd, POLLIN, 0};
    int ready = poll(&item, 1, ms);
    assert_true(ready == 0 || (ready == 1 && item.revents == POLLIN));
    return ready == 1;
}

/* The next thing that a function was called for. */
static void saw(struct fixture *f, const char *text)
{
    pthread_mutex_lock(&f->lock);
    bool there = f->checked < f->n;
    struct seen seen = f->seen[f->checked];
    f->checked += there;
    pthread_mutex_unlock(&f->lock);
    if (!there) {
        fail_msg("no function was called for: %s", text);
    }
    assert_string_equal(seen.text, text);
    assert_true(pthread_equal(seen.thread, pthread_self()));
}

/* An event loop, until so many functions were called. */
static void serve_until(struct fixture *f, size_t n)
{
    for (int64_t deadline = now_ms() + LOG_MS; f->n < n && now_ms() < deadline;) {
        if (ready_within(f, 100)) {
            process(f);
        }
    }
    assert_int_equal(f->n, n);
}

/* Which of them was for this. */
static size_t index_of(struct fixture *f, const char *text)
{
    size_t at = 0;
    while (at < f->n && strcmp(f->seen[at].text, text) != 0) {
        at++;
    }
    if (at == f->n) {
        fail_msg("no function was called for: %s", text);
    }
    return at;
}

static bool saw_nothing(struct fixture *f)
{
    pthread_mutex_lock(&f->lock);
    bool nothing = f->checked == f->n;
    pthread_mutex_unlock(&f->lock);
    return nothing;
}

/* A line of the log that holds this; without the time that the scripted one puts
   there. Those before it are passed over. */
static void logs(struct fixture *f, const char *text)
{
    char line[4096];
    do {
        if (!backend_log_next(&f->backend, line, sizeof line, LOG_MS)) {
            f->backend.log_at = 0;
            while (backend_log_next(&f->backend, line, sizeof line, 0)) {
                print_error("back-end: %s\n", line);
            }
            fail_msg("the back-end did not log: %s", text);
        }
    } while (strstr(line, text) == NULL);
}

/* ---- every request of a back-end ---- */

static const struct {
    const char *send; /* as the script has it */
    const char *text; /* what the function is told */
    bool waits;       /* it runs before the back-end goes on */
} asked[] = {
    {"IOTLB_MSG iova=0x123456000 perm=3 type=1", "miss 0x123456000 3", true},
    {"IOTLB_MSG iova=0x5000 iotlb-size=0x2000 perm=2 type=4", "denied 0x5000 0x2000 2", true},
    {"CONFIG_CHANGE_MSG", "config", false},
    {"VRING_HOST_NOTIFIER_MSG index=2 area-size=0x1000 area-offset=0x3000",
     "notifier 2 0x3000 0x1000 fd", true},
    {"VRING_HOST_NOTIFIER_MSG index=255 no-fd=1", "notifier 255 gone 0 0", true},
    {"VRING_CALL index=1", "call 1", false},
    {"VRING_ERR index=255", "err 255", false},
    {"SHARED_OBJECT_ADD uuid=" UUID, "added 00112233445566778899aabbccddeeff", false},
    {"SHARED_OBJECT_REMOVE uuid=" UUID, "removed 00112233445566778899aabbccddeeff", false},
    {"SHARED_OBJECT_LOOKUP uuid=" UUID, "lookup 00112233445566778899aabbccddeeff -1", true},
    {"SHMEM_MAP shmid=3 fd-offset=0x4000 shm-offset=0x1000 len=0x2000 flags=1",
     "map 3 0 0x4000 0x1000 0x2000 0x1 fd", true},
    {"SHMEM_UNMAP shmid=3 shm-offset=0x1000 len=0x2000", "unmap 3 0x1000 0x2000", true},
};

/* For a longer script: as many more statements as there is room for. */
struct rules {
    const char *args[5 + 2 * (LENGTH(asked) + 1) + 1];
    char statements[LENGTH(asked) + 1][200];
    size_t n;
};

static void begin_rules(struct rules *rules)
{
    static const char *const first[] = {"--once", "-e", "device features +33 +3", "-e",
                                        "device shmem 3=0x10000"};
    memset(rules, 0, sizeof *rules);
    memcpy(rules->args, first, sizeof first);
}

__attribute__((format(printf, 2, 3))) static void add_statement(struct rules *rules,
                                                                const char *format, ...)
{
    assert_true(rules->n < LENGTH(rules->statements));
    char *statement = rules->statements[rules->n];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(statement, sizeof rules->statements[0], format, args);
    va_end(args);
    assert_true(length < (int)sizeof rules->statements[0]);
    rules->args[5 + 2 * rules->n] = "-e";
    rules->args[6 + 2 * rules->n] = statement;
    rules->n++;
}

/* Before the answer to each request of ours the back-end asks one of these. */
static void ask_each(struct rules *rules, const size_t *which, size_t n, const char *answer)
{
    begin_rules(rules);
    for (size_t i = 0; i < n; i++) {
        add_statement(rules, "on GET_QUEUE_NUM nth=%zu: send %s need-reply answer=%s", i + 1,
                      asked[which != NULL ? which[i] : i].send, answer);
    }
}

/* All answered with 0. */
static void every_request_runs_its_function(void **state)
{
    struct fixture *f = *state;
    struct rules rules;
    ask_each(&rules, NULL, LENGTH(asked), "0");
    start(f, rules.args);
    int fds = count_fds();
    for (size_t i = 0; i < LENGTH(asked); i++) {
        assert_false(ready_within(f, 0));
        call_it(f);
        if (asked[i].waits) {
            saw(f, asked[i].text);
        } else {
            /* Acknowledged, and kept for the event loop. */
            assert_true(saw_nothing(f));
            assert_true(ready_within(f, 0));
        }
        process(f);
        if (!asked[i].waits) {
            saw(f, asked[i].text);
        }
        assert_true(saw_nothing(f));
        assert_int_equal(count_fds(), fds);
    }
    stop_pleased(f);
}

/* The same from an event loop, and asked for no answer. */
static void an_event_loop_serves_every_request(void **state)
{
    struct fixture *f = *state;
    struct rules rules;
    begin_rules(&rules);
    add_statement(&rules, "expect GET_QUEUE_NUM");
    for (size_t i = 0; i < LENGTH(asked); i++) {
        add_statement(&rules, "send %s no-wait", asked[i].send);
    }
    start(f, rules.args);
    int fds = count_fds();
    call_it(f);
    serve_until(f, LENGTH(asked));
    for (size_t i = 0; i < LENGTH(asked); i++) {
        index_of(f, asked[i].text);
    }
    while (ready_within(f, 0)) {
        process(f);
    }
    assert_int_equal(f->n, LENGTH(asked));
    assert_int_equal(count_fds(), fds);
    stop_pleased(f);
}

/* An answer is the function's result. */
static void what_a_function_returns_is_the_answer(void **state)
{
    struct fixture *f = *state;
    static const size_t waiting[] = {0, 1, 3, 4, 9, 10};
    f->result = -ENOMEM;
    struct rules rules;
    ask_each(&rules, waiting, LENGTH(waiting), "0xfffffffffffffff4");
    start(f, rules.args);
    int fds = count_fds();
    for (size_t i = 0; i < LENGTH(waiting); i++) {
        call_it(f);
        saw(f, asked[waiting[i]].text);
    }
    assert_int_equal(count_fds(), fds);
    stop_pleased(f);
}

static void an_object_is_taken(void **state)
{
    struct fixture *f = *state;
#define LOOKUP "send SHARED_OBJECT_LOOKUP uuid=" UUID
    start(f, SCRIPT("-e", "on GET_QUEUE_NUM nth=1: " LOOKUP " answer=0", "-e",
                    /* -ENOENT, and -EBADF for what is not open */
                    "on GET_QUEUE_NUM nth=2: " LOOKUP " answer=0xfffffffffffffffe", "-e",
                    "on GET_QUEUE_NUM nth=3: " LOOKUP " answer=0xfffffffffffffff7"));
    int fds = count_fds();
    call_it(f);
    logs(f, "channel > SHARED_OBJECT_LOOKUP value=0 fds=1");
    assert_int_equal(count_fds(), fds);
    f->lookup_fd = -2;
    call_it(f);
    logs(f, "channel > SHARED_OBJECT_LOOKUP value=0xfffffffffffffffe");
    f->lookup_fd = 900;
    call_it(f);
    assert_int_equal(f->n, 3);
    assert_int_equal(count_fds(), fds);
    stop_pleased(f);
}

/* ---- functions that are not there ---- */

#define EOPNOTSUPP_ANSWER "0xffffffffffffffa1"
_Static_assert(EOPNOTSUPP == 0x5f, "");

static void what_has_no_function_is_refused(void **state)
{
    struct fixture *f = *state;
    const struct vuf_backend_ops none = {.size = sizeof none};
    struct rules rules;
    ask_each(&rules, NULL, LENGTH(asked), EOPNOTSUPP_ANSWER);
    start_with(f, rules.args, &none);
    int fds = count_fds();
    for (size_t i = 0; i < LENGTH(asked); i++) {
        call_it(f);
        assert_false(ready_within(f, 0));
    }
    assert_int_equal(count_fds(), fds);
    stop_pleased(f);
}

/* And only that: one missing at a time. */
static void one_missing_function_leaves_the_others(void **state)
{
    struct fixture *f = *state;
    const struct {
        size_t request, other; /* the one refused, and one that is served */
        size_t offset;
    } cases[] = {
        {0, 1, offsetof(struct vuf_backend_ops, iotlb_miss)},
        {1, 0, offsetof(struct vuf_backend_ops, iotlb_access_fail)},
        {2, 3, offsetof(struct vuf_backend_ops, config_changed)},
        {3, 2, offsetof(struct vuf_backend_ops, host_notifier)},
        {5, 6, offsetof(struct vuf_backend_ops, vring_call)},
        {6, 5, offsetof(struct vuf_backend_ops, vring_err)},
        {7, 8, offsetof(struct vuf_backend_ops, shared_object_added)},
        {8, 7, offsetof(struct vuf_backend_ops, shared_object_removed)},
        {9, 10, offsetof(struct vuf_backend_ops, shared_object_lookup)},
    };
    for (size_t i = 0; i < LENGTH(cases); i++) {
        struct vuf_backend_ops ops = all_ops;
        char rules[2][200];
        memset((char *)&ops + cases[i].offset, 0, sizeof(void *));
        snprintf(rules[0], sizeof rules[0],
                 "on GET_QUEUE_NUM: send %s need-reply answer=" EOPNOTSUPP_ANSWER,
                 asked[cases[i].request].send);
        snprintf(rules[1], sizeof rules[1], "on GET_QUEUE_NUM: send %s need-reply answer=0",
                 asked[cases[i].other].send);
        start_with(f, SCRIPT("-e", rules[0], "-e", rules[1]), &ops);
        call_it(f);
        process(f);
        saw(f, asked[cases[i].other].text);
        assert_true(saw_nothing(f));
        stop_pleased(f);
    }
}

/* ---- calls from inside a function ---- */

static int inside_calls;

static void only_some_calls(struct fixture *f)
{
    struct vuf_client *c = f->client;
    const struct vuf_iotlb update = {0x1000, 0x1000, 0x5000, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0}};
    const struct vuf_vring_addr addr = {0};
    const struct vuf_mem_region region = {.size = PAGE, .fd = f->found};
    uint64_t number = 7;
    uint32_t base = 7;
    char byte = 7;
    const int refused[] = {
        vuf_client_get_features(c, &number),
        vuf_client_set_features(c, FEATURES),
        vuf_client_get_queue_num(c, &number),
        vuf_client_set_mem_table(c, &region, 1),
        vuf_client_set_vring_num(c, 0, 128),
        vuf_client_set_vring_addr(c, 0, &addr),
        vuf_client_set_vring_kick(c, 0, -1),
        vuf_client_set_vring_enable(c, 0, true),
        vuf_client_get_vring_base(c, 0, VUF_TIMEOUT_DEFAULT, &base),
        vuf_client_get_config(c, 0, 0, &byte, 1),
        vuf_client_set_config(c, 0, 0, &byte, 1),
        vuf_client_reset_device(c),
        vuf_client_send_iotlb(c, &update),
        vuf_client_open_backend_channel(c, &all_ops, f),
        vuf_client_process_backend_requests(c),
    };
    for (size_t i = 0; i < LENGTH(refused); i++) {
        if (refused[i] != VUF_E_STATE) {
            print_error("call %zu inside a function: %d\n", i, refused[i]);
            inside_calls = -100;
        }
    }
    if (number != 7 || base != 7 || byte != 7 || vuf_client_get_fd(c) < 0 ||
        vuf_client_backend_fd(c) < 0 || vuf_client_post_iotlb(c, &update) != 0) {
        inside_calls = -100;
    }
    inside_calls++;
}

static void a_function_that_is_waited_for_may_not_wait(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT("-e", "on GET_QUEUE_NUM nth=1: send IOTLB_MSG iova=0x1000 perm=3 type=1 need-reply answer=0",
                    "-e", "on GET_QUEUE_NUM nth=2: send SHMEM_MAP shmid=3 len=0x1000 need-reply answer=0",
                    "-e", "expect GET_QUEUE_NUM", "-e", "expect GET_QUEUE_NUM", "-e",
                    "send IOTLB_MSG iova=0x1000 perm=3 type=1 need-reply answer=0"));
    inside_calls = 0;
    f->inside = only_some_calls;
    call_it(f);
    call_it(f);
    serve_until(f, 3); /* the same from the event loop */
    assert_int_equal(inside_calls, 3);
    f->inside = NULL;
    call_it(f);
    stop_pleased(f);
}

static void all_calls(struct fixture *f)
{
    uint64_t number;
    char bytes[4] = {0};
    inside_calls += vuf_client_get_config(f->client, 0, 0, bytes, sizeof bytes) == 0 &&
                    memcmp(bytes, "\x00\x01\x02\x03", 4) == 0 &&
                    vuf_client_get_queue_num(f->client, &number) == 0 &&
                    vuf_client_process_backend_requests(f->client) == 0;
}

/* Those that nobody waits for may make any call, as config_changed wants to. */
static void a_function_of_the_event_loop_may_call_anything(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT("-e", "device config-size 8", "-e",
                    "on GET_QUEUE_NUM nth=1: send CONFIG_CHANGE need-reply answer=0", "-e",
                    "on GET_QUEUE_NUM nth=1: send VRING_CALL index=0 need-reply answer=0", "-e",
                    "on GET_QUEUE_NUM nth=1: send VRING_ERR index=0 need-reply answer=0", "-e",
                    "on GET_QUEUE_NUM nth=1: send SHARED_OBJECT_ADD uuid=" UUID
                    " need-reply answer=0"));
    inside_calls = 0;
    call_it(f);
    f->inside = all_calls;
    process(f);
    assert_int_equal(f->n, 4);
    assert_int_equal(inside_calls, 4);
    stop_pleased(f);
}

/* A translation is posted from inside iotlb_miss, and before the answer. */
static void post_it(struct fixture *f)
{
    const struct vuf_iotlb update = {
        0x123456000, 0x1000, 0x7000, VUF_ACCESS_RO, VUF_IOTLB_UPDATE, {0}};
    inside_calls += vuf_client_post_iotlb(f->client, &update) == 0;
}

static void a_miss_is_answered_from_inside(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT("-e", "on GET_QUEUE_NUM: send IOTLB_MSG iova=0x123456000 perm=1 type=1 need-reply answer=0",
                    "-e", "on IOTLB_MSG nth=2: refuse 5"));
    inside_calls = 0;
    f->inside = post_it;
    for (int i = 0; i < 3; i++) { /* the second one is refused, which is not told */
        call_it(f);
        saw(f, "miss 0x123456000 1");
        logs(f, "channel > IOTLB_MSG value=0");
        logs(f, "> IOTLB_MSG need-reply iova=0x123456000 iotlb-size=4096 uaddr=28672 perm=1 type=2");
    }
    assert_int_equal(inside_calls, 3);
    stop_pleased(f);
}

static void posted_translations_are_bounded(void **state)
{
    struct rig *rig = *state;
    const struct vuf_iotlb update = {0, PAGE, 0, VUF_ACCESS_RW, VUF_IOTLB_UPDATE, {0}};
    struct header header;
    adopt(rig, BIT(ACCESS_PLATFORM), REPLY_ACK);
    for (int i = 0; i < 256; i++) {
        ok(vuf_client_post_iotlb(rig->client, &update));
    }
    assert_int_equal(vuf_client_post_iotlb(rig->client, &update), -EAGAIN);
    assert_int_equal(last_info().request, IOTLB_MSG);
    assert_true(read_request(rig->peer, &header));
    assert_int_equal(header.request, IOTLB_MSG);
    assert_int_equal(header.flags, 0x9);
    assert_true(write_reply(rig->peer, IOTLB_MSG, &U64_REPLY(0)));
    /* Room for one more: a call that is cheap takes the answer in. */
    int64_t deadline = now_ms() + SOON_MS;
    int rc;
    while ((rc = vuf_client_post_iotlb(rig->client, &update)) == -EAGAIN && now_ms() < deadline) {
    }
    assert_int_equal(rc, 0);
}

/* ---- freeing from inside, which is not allowed, and does not hang ---- */

static void free_it(struct fixture *f)
{
    vuf_client_free(f->client);
}

/* In a child, which is killed: the client is lost on purpose. */
static void free_inside(struct fixture *f, const char *send, bool reset)
{
    int ends[2];
    char rule[200];
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    snprintf(rule, sizeof rule, "on GET_QUEUE_NUM: send %s need-reply no-wait", send);
    assert_int_equal(backend_start_mock(&f->backend, SCRIPT("-e", rule)), 0);
    pid_t child = fork();
    if (child == 0) {
        uint64_t num;
        connect_to_it(f, FEATURES, PROTOCOL_FEATURES);
        ok(vuf_client_open_backend_channel(f->client, &all_ops, f));
        if (reset) {
            vuf_client_get_queue_num(f->client, &num);
            while (f->n == 0) {
                vuf_client_process_backend_requests(f->client);
            }
        }
        f->inside = free_it;
        if (reset) {
            vuf_client_reset_device(f->client);
        } else {
            vuf_client_get_queue_num(f->client, &num);
            for (int64_t end = now_ms() + SOON_MS; f->n == 0 && now_ms() < end;) {
                vuf_client_process_backend_requests(f->client);
            }
        }
        char byte = f->n == (reset ? 2u : 1u) ? 'y' : 'n';
        ssize_t ignored = write(ends[1], &byte, 1);
        (void)ignored;
        for (;;) {
            pause();
        }
    }
    close(ends[1]);
    struct pollfd item = {ends[0], POLLIN, 0};
    char byte = 'h'; /* it hangs */
    if (child > 0 && poll(&item, 1, PEER_MS) == 1 && read(ends[0], &byte, 1) != 1) {
        byte = 'e'; /* it has ended */
    }
    close(ends[0]);
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    backend_stop(&f->backend);
    if (byte != 'y') {
        fail_msg("%s: %c", send, byte);
    }
}

static void freeing_inside_a_function_does_not_hang(void **state)
{
    struct fixture *f = *state;
    free_inside(f, "IOTLB_MSG iova=1 perm=1 type=1", false);
    free_inside(f, "CONFIG_CHANGE", false);
    free_inside(f, "SHMEM_MAP shmid=3 len=0x1000", true);
}

/* ---- an event loop on a thread of its own ---- */

static void *run_loop(void *user)
{
    struct fixture *f = user;
    for (;;) {
        struct pollfd item = {vuf_client_backend_fd(f->client), POLLIN, 0};
        if (poll(&item, 1, PEER_MS) != 1) {
            return "nothing came";
        }
        int rc = vuf_client_process_backend_requests(f->client);
        if (rc != 0) {
            return rc == VUF_E_DISCONNECTED ? NULL : "another end";
        }
    }
}

/* The back-end asks while nobody calls, and goes away in the end. */
static void an_event_loop_runs_on_its_own_thread(void **state)
{
    struct fixture *f = *state;
    pthread_t loop;
    void *complaint;
    start(f, SCRIPT("-e", "expect GET_QUEUE_NUM", "-e", "delay 20ms", "-e",
                    "send SHMEM_MAP shmid=3 len=0x1000 need-reply answer=0", "-e",
                    "send CONFIG_CHANGE need-reply answer=0", "-e", "delay 20ms", "-e",
                    "send VRING_CALL index=3 need-reply answer=0", "-e", "delay 20ms", "-e",
                    "close"));
    call_it(f);
    assert_int_equal(pthread_create(&loop, NULL, run_loop, f), 0);
    assert_int_equal(pthread_join(loop, &complaint), 0);
    if (complaint != NULL) {
        fail_msg("%s", (const char *)complaint);
    }
    static const char *const wanted[] = {"map 3 0 0 0 0x1000 0 fd", "config", "call 3",
                                         "unmap 3 0 0x1000"};
    assert_int_equal(f->n, LENGTH(wanted));
    for (size_t i = 0; i < f->n; i++) {
        assert_string_equal(f->seen[i].text, wanted[i]);
        assert_false(pthread_equal(f->seen[i].thread, pthread_self()));
    }
    stop_pleased(f);
}

/* ---- mappings ---- */

static void mappings_are_checked_and_go_whole(void **state)
{
    struct fixture *f = *state;
    /* -EINVAL is 0x..ea, -EEXIST 0x..ef */
    start(f, SCRIPT("-e", "on GET_QUEUE_NUM nth=1: send SHMEM_MAP shmid=3 shm-offset=0x1000 len=0x2000 need-reply answer=0",
                    "-e", "on GET_QUEUE_NUM nth=1: send SHMEM_MAP shmid=3 shm-offset=0x2000 len=0x1000 need-reply answer=0xffffffffffffffef",
                    "-e", "on GET_QUEUE_NUM nth=1: send SHMEM_MAP shmid=3 shm-offset=0xf000 len=0x2000 need-reply answer=0xffffffffffffffea",
                    "-e", "on GET_QUEUE_NUM nth=1: send SHMEM_MAP shmid=4 len=0x1000 need-reply answer=0xffffffffffffffea",
                    "-e", "on GET_QUEUE_NUM nth=1: send SHMEM_UNMAP shmid=3 shm-offset=0x1000 len=0x1000 need-reply answer=0xffffffffffffffea",
                    "-e", "on GET_QUEUE_NUM nth=1: send SHMEM_MAP shmid=3 shm-offset=0x8000 len=0x8000 need-reply answer=0"));
    int fds = count_fds();
    call_it(f);
    saw(f, "map 3 0 0 0x1000 0x2000 0 fd");
    saw(f, "map 3 0 0 0x8000 0x8000 0 fd");
    assert_int_equal(count_fds(), fds);
    /* A reset takes them away, whatever the function says. */
    f->result = -EBUSY;
    ok(vuf_client_reset_device(f->client));
    saw(f, "unmap 3 0x1000 0x2000");
    saw(f, "unmap 3 0x8000 0x8000");
    assert_true(saw_nothing(f));
    stop_pleased(f);
}

static void mappings_go_with_the_channel(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT("-e", "expect GET_QUEUE_NUM", "-e",
                    "send SHMEM_MAP shmid=3 len=0x1000 need-reply answer=0", "-e",
                    "expect GET_QUEUE_NUM", "-e", "send CONFIG_CHANGE: close"));
    call_it(f);
    serve_until(f, 1);
    saw(f, "map 3 0 0 0 0x1000 0 fd");
    call_it(f);
    assert_true(ready_within(f, LOG_MS));
    int rc = vuf_client_process_backend_requests(f->client);
    assert_int_equal(rc, VUF_E_DISCONNECTED);
    saw(f, "unmap 3 0 0x1000");
    assert_false(ready_within(f, 0)); /* it is told once */
    assert_int_equal(vuf_client_process_backend_requests(f->client), VUF_E_DISCONNECTED);
    call_it(f); /* the connection lives on */
    stop_pleased(f);
}

static void a_broken_channel_is_told_and_closed(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT("-e", "expect GET_QUEUE_NUM", "-e", "send CONFIG_CHANGE: flags 0x5"));
    call_it(f);
    assert_true(ready_within(f, LOG_MS));
    assert_int_equal(vuf_client_process_backend_requests(f->client), VUF_E_PROTOCOL);
    assert_int_equal(last_info().error_class, VUF_CLASS_PROTOCOL);
    assert_true(saw_nothing(f));
    call_it(f);
    stop_pleased(f);
}

/* ---- opening it ---- */

static void there_is_one_channel(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(backend_start_mock(&f->backend, SCRIPT(NULL)), 0);
    connect_to_it(f, FEATURES, PROTOCOL_FEATURES);
    assert_int_equal(vuf_client_backend_fd(f->client), VUF_E_STATE);
    assert_int_equal(vuf_client_process_backend_requests(f->client), VUF_E_STATE);
    int fds = count_fds();
    ok(vuf_client_open_backend_channel(f->client, &all_ops, f));
    int opened = count_fds();
    assert_true(opened > fds);
    assert_int_equal(vuf_client_open_backend_channel(f->client, &all_ops, f), VUF_E_STATE);
    assert_int_equal(last_info().request, SET_BACKEND_REQ_FD);
    assert_int_equal(count_fds(), opened);
    int fd = vuf_client_backend_fd(f->client);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_true(fd != vuf_client_get_fd(f->client));
    process(f);
    assert_true(saw_nothing(f));
    stop_pleased(f);
    assert_int_equal(count_fds(), fds - 1);
}

static void a_refused_channel_is_told(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(
        backend_start_mock(&f->backend, SCRIPT("-e", "on SET_BACKEND_REQ_FD: refuse 5")), 0);
    connect_to_it(f, FEATURES, PROTOCOL_FEATURES);
    assert_int_equal(vuf_client_open_backend_channel(f->client, &all_ops, f), VUF_E_NACK);
    assert_true(last_info().value == 5);
    assert_int_equal(vuf_client_process_backend_requests(f->client), VUF_E_NACK);
    call_it(f);
}

static void abort_ends_the_channel(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT(NULL));
    assert_false(ready_within(f, 0));
    ok(vuf_client_abort(f->client));
    assert_true(ready_within(f, SOON_MS));
    assert_int_equal(vuf_client_process_backend_requests(f->client), -ECANCELED);
    assert_false(ready_within(f, 0));
}

/* ---- the vhost crate's half ---- */

#define ASK(when, what) "--" when, "GET_QUEUE_NUM=" what
#define CRATES_UUID "101112131415161718191a1b1c1d1e1f"

/* The file that it maps has words in it. */
static int map_and_look(void *user, const struct vuf_shmem_area *area, int fd)
{
    char words[23] = "";
    ssize_t got = pread(fd, words, sizeof words - 1, (off_t)area->fd_offset);
    close(fd);
    return see(user, "map %u %#llx %#llx %#llx %#llx %s", area->shmid,
               (unsigned long long)area->fd_offset, (unsigned long long)area->shm_offset,
               (unsigned long long)area->len, (unsigned long long)area->flags,
               got > 0 ? words : "");
}

#define CRATES_MAP "map 3 0x2000 0x1000 0x1000 0x1 mapped by the back-end"
#define CRATES_UNMAP "unmap 3 0x1000 0x1000"

static void open_channel_of_recorder(struct fixture *f)
{
    struct vuf_backend_ops ops = all_ops;
    ops.shmem_map = map_and_look;
    ok(vuf_client_open_backend_channel(f->client, &ops, f));
    logs(f, "SET_BACKEND_REQ_FD fd=yes");
}

static void the_vhost_crate_asks_before_it_answers(void **state)
{
    struct fixture *f = *state;
    start_recorder(f, (const char *const[]){
                          "--need-channel-reply", ASK("before", "SHARED_OBJECT_ADD"),
                          ASK("before", "SHMEM_MAP"), ASK("before", "SHMEM_MAP"),
                          ASK("before", "SHARED_OBJECT_REMOVE"), ASK("before", "SHMEM_UNMAP"),
                          ASK("before", "SHMEM_UNMAP"), NULL});
    open_channel_of_recorder(f);
    int fds = count_fds();
    call_it(f);
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_ADD result=acked");
    logs(f, "BACKEND_REQUEST name=SHMEM_MAP result=acked");
    logs(f, "BACKEND_REQUEST name=SHMEM_MAP result=refused"); /* it overlaps */
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_REMOVE result=acked");
    logs(f, "BACKEND_REQUEST name=SHMEM_UNMAP result=acked");
    logs(f, "BACKEND_REQUEST name=SHMEM_UNMAP result=refused"); /* there is none */
    saw(f, CRATES_MAP);
    saw(f, CRATES_UNMAP);
    assert_true(saw_nothing(f));
    process(f);
    saw(f, "added " CRATES_UUID);
    saw(f, "removed " CRATES_UUID);
    assert_true(saw_nothing(f));
    assert_int_equal(count_fds(), fds);
}

static void the_vhost_crate_asks_an_event_loop(void **state)
{
    struct fixture *f = *state;
    start_recorder(f, (const char *const[]){
                          "--need-channel-reply", ASK("after", "SHMEM_MAP"),
                          ASK("after", "SHARED_OBJECT_ADD"), ASK("after", "SHMEM_UNMAP"),
                          ASK("after", "SHARED_OBJECT_REMOVE"), NULL});
    open_channel_of_recorder(f);
    call_it(f);
    serve_until(f, 4);
    /* What is only told may come later than what is answered. */
    assert_true(index_of(f, CRATES_MAP) < index_of(f, CRATES_UNMAP));
    assert_true(index_of(f, "added " CRATES_UUID) < index_of(f, "removed " CRATES_UUID));
    logs(f, "BACKEND_REQUEST name=SHMEM_MAP result=acked");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_ADD result=acked");
    logs(f, "BACKEND_REQUEST name=SHMEM_UNMAP result=acked");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_REMOVE result=acked");
}

static void the_vhost_crate_need_not_be_answered(void **state)
{
    struct fixture *f = *state;
    start_recorder(f, (const char *const[]){ASK("before", "SHMEM_MAP"),
                                            ASK("before", "SHARED_OBJECT_ADD"), NULL});
    open_channel_of_recorder(f);
    call_it(f);
    logs(f, "BACKEND_REQUEST name=SHMEM_MAP result=sent");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_ADD result=sent");
    serve_until(f, 2);
    index_of(f, CRATES_MAP);
    index_of(f, "added " CRATES_UUID);
}

/* The crate sends a descriptor along, which means nothing, and does not take an
   answer with the one that was found. The next request is understood. */
static void a_lookup_of_the_vhost_crate_cannot_succeed(void **state)
{
    struct fixture *f = *state;
    start_recorder(f, (const char *const[]){
                          "--need-channel-reply", ASK("before", "SHARED_OBJECT_LOOKUP"),
                          ASK("before", "SHARED_OBJECT_ADD"), NULL});
    open_channel_of_recorder(f);
    int fds = count_fds();
    call_it(f);
    saw(f, "lookup " CRATES_UUID " -1");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_LOOKUP result=failed");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_ADD result=acked");
    f->result = -ENOENT;
    call_it(f);
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_LOOKUP result=refused");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_ADD result=acked");
    saw(f, "lookup " CRATES_UUID " -1");
    assert_true(saw_nothing(f));
    assert_int_equal(count_fds(), fds);
}

static void a_refusal_reaches_the_vhost_crate(void **state)
{
    struct fixture *f = *state;
    start_recorder(f, (const char *const[]){"--need-channel-reply", ASK("before", "SHMEM_MAP"),
                                            ASK("before", "SHARED_OBJECT_ADD"), NULL});
    open_channel_of_recorder(f);
    f->result = -EACCES;
    call_it(f);
    logs(f, "BACKEND_REQUEST name=SHMEM_MAP result=refused");
    logs(f, "BACKEND_REQUEST name=SHARED_OBJECT_ADD result=acked");
    saw(f, CRATES_MAP);
    stop(f);
    /* Nothing lives of what was refused. */
    assert_true(saw_nothing(f));
}

#define CHANNEL(name) cmocka_unit_test_setup_teardown(name, make_fixture, drop_fixture)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL(every_request_runs_its_function),
        CHANNEL(an_event_loop_serves_every_request),
        CHANNEL(what_a_function_returns_is_the_answer),
        CHANNEL(an_object_is_taken),
        CHANNEL(what_has_no_function_is_refused),
        CHANNEL(one_missing_function_leaves_the_others),
        CHANNEL(a_function_that_is_waited_for_may_not_wait),
        CHANNEL(a_function_of_the_event_loop_may_call_anything),
        CHANNEL(a_miss_is_answered_from_inside),
        TEST(posted_translations_are_bounded),
        CHANNEL(freeing_inside_a_function_does_not_hang),
        CHANNEL(an_event_loop_runs_on_its_own_thread),
        CHANNEL(mappings_are_checked_and_go_whole),
        CHANNEL(mappings_go_with_the_channel),
        CHANNEL(a_broken_channel_is_told_and_closed),
        CHANNEL(there_is_one_channel),
        CHANNEL(a_refused_channel_is_told),
        CHANNEL(abort_ends_the_channel),
        CHANNEL(the_vhost_crate_asks_before_it_answers),
        CHANNEL(the_vhost_crate_asks_an_event_loop),
        CHANNEL(the_vhost_crate_need_not_be_answered),
        CHANNEL(a_lookup_of_the_vhost_crate_cannot_succeed),
        CHANNEL(a_refusal_reaches_the_vhost_crate),
    };
    return cmocka_run_group_tests_name("test_channel", tests, default_signals, NULL);
}
