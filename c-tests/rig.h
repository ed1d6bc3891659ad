/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the tests on a socket pair share: a client, the other end of its
   connection, which the test holds, and checks of what a failure tells. */

#ifndef RIG_H
#define RIG_H

#include "harness.h"

#include <vhost_user_frontend.h>

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define BIT(n) (UINT64_C(1) << (n))

enum {
    MAX_RINGS = 4,   /* of the clients in these tests */
    SOON_MS = 1500,  /* what "at once" may take on a busy machine */
    PEER_MS = 10000, /* after which a test is stuck */
    PAGE = 4096,
};

/* ---- a client, and the other end of its connection ---- */

struct rig {
    struct vuf_client *client;
    int peer;               /* -1 once a test has closed it */
    char dir[64], path[80]; /* of open_listener() */
    int memory;             /* a file that would do as memory, log or buffer */
    int event;
    int closed;   /* a number that is not open */
    int failures; /* of same(), says() and check_...() */
};

/* Options of the client that a test begins with. */
extern const struct vuf_client_options quick;

/* A rig with a client, and one whose client has agreed all_protocol_features(). */
int set_up(void **state);
int set_up_agreed(void **state);
int tear_down(void **state);

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define AGREED(name) cmocka_unit_test_setup_teardown(name, set_up_agreed, tear_down)

/* Before the first test of a program: whoever started it may ignore SIGPIPE. */
int default_signals(void **state);

/* Another client takes the place of the rig's. */
void reopen_client(struct rig *rig, const struct vuf_client_options *options);

/* A client on which these features count as agreed. */
void adopt(struct rig *rig, uint64_t features, uint64_t protocol_features);

/* All that can be agreed, except what changes how other requests behave. */
uint64_t all_protocol_features(void);

/* Connected sockets; reading from the second does not take for ever. */
void make_pair(int ends[2]);

/* A socket bound to rig->path, in a directory of its own, which tear_down()
   removes. It listens, unless backlog is negative. */
int open_listener(struct rig *rig, int backlog);

struct sockaddr_un address_of(const char *path);

/* ---- the other end ---- */

struct header {
    uint32_t request, flags, size;
};

struct reply {
    uint32_t flags;   /* 0 for those of a reply */
    uint32_t request; /* 0 for that of the request */
    uint32_t size;
    const void *payload;
    int fd; /* 0 for none */
};

#define U64_REPLY(value) ((struct reply){.size = 8, .payload = &(uint64_t){value}})

/* Reads one request away; its descriptors with it. */
bool read_request(int peer, struct header *header);

bool write_reply(int peer, uint32_t request, const struct reply *reply);

bool peer_saw_nothing(int peer);

/* A back-end that answers each request with the next of these replies. */
struct script {
    int peer;
    const struct reply *replies;
    size_t n;
    pthread_t thread;
};

void start_script(struct script *script, int peer, const struct reply *replies, size_t n);

/* Fails if the script did not come to its end. */
void end_script(struct script *script);

/* ---- calls about a ring, with good arguments but perhaps the index ---- */

int ring_num(struct rig *rig, uint32_t index);
int ring_get_base(struct rig *rig, uint32_t index); /* which is to fail */
int ring_enable(struct rig *rig, uint32_t index);

/* ---- what a failure tells ---- */

/* For calls into the library: what it says on failure is worth having. */
#define assert_ok(call) assert_returns(0, call)
#define assert_returns(code, call) assert_returns_at((call), code, #call, __FILE__, __LINE__)
void assert_returns_at(int rc, int want, const char *call, const char *file, int line);

/* It fails, its words have this, and no descriptor is left open. */
#define assert_refused(code, text, call)                                                           \
    do {                                                                                           \
        int fds_ = count_fds();                                                                    \
        assert_returns(code, call);                                                                \
        assert_says_at(text, #call, __FILE__, __LINE__);                                           \
        assert_int_equal(count_fds(), fds_);                                                       \
    } while (0)
void assert_says_at(const char *text, const char *call, const char *file, int line);

/* These complain, count in rig->failures and go on, for many in a test; the
   test ends with all_refused(). call, and what about it, are for the words. */
bool same(struct rig *rig, const char *call, const char *what, long long is, long long want);

/* Whether the last error's text has this in it. */
void says(struct rig *rig, const char *call, const char *what, const char *text);

struct failure {
    int code;
    uint32_t error_class, phase;
};

/* Checks what a call has returned, and that the last error is about it. */
struct vuf_error_info check_failure(struct rig *rig, const char *call, int rc,
                                    struct failure want);

struct refusal {
    int code;
    enum request request; /* NO_REQUEST where the call is not about one */
    int ring, region;     /* -1 for none */
    const char *text;     /* what the words must name */
};

/* Checks everything about a call that was refused before anything was sent. */
void check_refusal(struct rig *rig, const char *call, int fds_before, int rc, struct refusal want);

/* REFUSED(rig, code, request, "name", call(...)) and so on. */
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

void all_refused(struct rig *rig);

struct vuf_error_info last_info(void);

#endif
