/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Threads that share one client, also with a lock of their own around it, and
   all the ways in which it can end under them. */
#include "rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FEATURES = 0x12345678 };

static bool say_features(int peer)
{
    return write_reply(peer, GET_FEATURES, &U64_REPLY(FEATURES));
}

static bool say_base(int peer, uint32_t ring)
{
    const uint32_t state[] = {ring, 100 + ring};
    return write_reply(peer, GET_VRING_BASE,
                       &(struct reply){.size = sizeof state, .payload = state});
}

static void sleep_us(int us)
{
    nanosleep(&(struct timespec){0, us * 1000L}, NULL);
}

/* -EBADMSG stands for a wrong result. */
static int ask_features(struct vuf_client *client)
{
    uint64_t features = 0;
    int rc = vuf_client_get_features(client, &features);
    return rc == 0 && features != FEATURES ? -EBADMSG : rc;
}

static int ask_base(struct vuf_client *client, uint32_t ring)
{
    uint32_t base = 0;
    /* Of its own, so that it waits in poll if nobody else reads. */
    int rc = vuf_client_get_vring_base(client, ring, PEER_MS, &base);
    return rc == 0 && base != 100 + ring ? -EBADMSG : rc;
}

/* Without any deadline but those of calls. */
static void open_lasting(struct rig *rig)
{
    const struct vuf_client_options options = {
        .size = sizeof options,
        .timeout_ms = VUF_TIMEOUT_FOREVER,
        .slow_timeout_ms = VUF_TIMEOUT_FOREVER,
        .drain_timeout_ms = VUF_TIMEOUT_FOREVER,
    };
    reopen_client(rig, &options);
}

/* ---- a lock of the caller's ---- */

enum { LOCKERS = 4, ANSWERS = 200 };

static struct locked {
    struct rig *rig;
    pthread_mutex_t lock;
    int rc[LOCKERS], fd;
    bool answered, over, same_fd;
} locked = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *call_under_lock(void *argument)
{
    int *rc = argument;
    for (uint32_t n = 0; *rc == 0; n++) {
        pthread_mutex_lock(&locked.lock);
        *rc = n % 2 == 0 ? ask_features(locked.rig->client) : ask_base(locked.rig->client, n % 8);
        pthread_mutex_unlock(&locked.lock);
    }
    return NULL;
}

/* Answers for a while, and then no more. */
static void *answer_for_a_while(void *argument)
{
    int peer = locked.rig->peer;
    uint32_t request[5]; /* with the index of a ring */
    locked.answered = true;
    for (int i = 0; i < ANSWERS && locked.answered; i++) {
        locked.answered =
            recv(peer, request, 12, MSG_WAITALL) == 12 &&
            (request[2] == 0 || recv(peer, request + 3, 8, MSG_WAITALL) == 8) &&
            (request[0] == GET_FEATURES ? say_features(peer) : say_base(peer, request[3]));
    }
    return argument;
}

static void *look_without_lock(void *argument)
{
    locked.same_fd = true;
    while (!__atomic_load_n(&locked.over, __ATOMIC_SEQ_CST)) {
        locked.same_fd = locked.same_fd && vuf_client_get_fd(locked.rig->client) == locked.fd;
        sleep_us(20);
    }
    return argument;
}

static void a_lock_of_the_callers_is_never_in_the_way(void **state)
{
    struct rig *rig = *state;
    for (int round = 0; round < 5; round++) {
        pthread_t callers[LOCKERS], peer, looker;
        struct header last;
        open_lasting(rig);
        locked.rig = rig;
        locked.fd = vuf_client_get_fd(rig->client);
        locked.over = false;
        memset(locked.rc, 0, sizeof locked.rc);
        assert_int_equal(pthread_create(&peer, NULL, answer_for_a_while, NULL), 0);
        assert_int_equal(pthread_create(&looker, NULL, look_without_lock, NULL), 0);
        for (int i = 0; i < LOCKERS; i++) {
            assert_int_equal(pthread_create(&callers[i], NULL, call_under_lock, &locked.rc[i]), 0);
        }
        pthread_join(peer, NULL);
        /* Now one waits with the lock in its hands, and the others for the lock. */
        same(rig, "the last request", "has come", read_request(rig->peer, &last), true);
        same(rig, "the lock", "is taken", pthread_mutex_trylock(&locked.lock), EBUSY);
        __atomic_store_n(&locked.over, true, __ATOMIC_SEQ_CST);
        pthread_join(looker, NULL);
        int64_t began = now_ms();
        same(rig, "abort", "the code", vuf_client_abort(rig->client), 0);
        for (int i = 0; i < LOCKERS; i++) {
            pthread_join(callers[i], NULL);
            same(rig, "a call under the lock", "the code", locked.rc[i], -ECANCELED);
        }
        same(rig, "abort", "ends all at once", now_ms() - began < SOON_MS, true);
        same(rig, "get_fd", "is always the same", locked.same_fd, true);
        same(rig, "the peer", "has answered", locked.answered, true);
    }
    all_refused(rig);
}

/* ---- every end there is, with requests under way ---- */

enum { CALLERS = 3, MAX_ENDERS = 3, ROUNDS = 25 };
enum last_word { QUIET, HANG_UP, GARBAGE };

static const struct ending {
    const char *name;
    int aborts; /* threads that abort */
    enum last_word word;
    bool freed; /* with the calls under way */
} endings[] = {
    {"abort", 1, QUIET, false},
    {"abort twice", 2, QUIET, false},
    {"abort, hang-up", 1, HANG_UP, false},
    {"abort twice, hang-up", 2, HANG_UP, false},
    {"abort, garbage", 1, GARBAGE, false},
    {"abort twice, garbage", 2, GARBAGE, false},
    {"hang-up", 0, HANG_UP, false},
    {"garbage", 0, GARBAGE, false},
    {"free", 0, QUIET, true},
    {"free, hang-up", 0, HANG_UP, true},
    {"free, garbage", 0, GARBAGE, true},
    {"abort and free", 1, QUIET, true},
    {"abort twice and free", 2, QUIET, true},
    {"abort and free, hang-up", 1, HANG_UP, true},
    {"abort and free, garbage", 1, GARBAGE, true},
};

struct caller {
    struct rig *rig;
    uint32_t number;
    int rc;
    pthread_t thread;
};

struct ender {
    struct vuf_client *client;
    int peer;
    enum last_word word; /* QUIET: it aborts */
    int after_us, rc;
    pthread_t thread;
};

static void *call_once(void *argument)
{
    struct caller *caller = argument;
    struct vuf_client *client = caller->rig->client;
    caller->rc = caller->number == 0 ? ask_features(client) : ask_base(client, caller->number);
    return NULL;
}

static void *end_it(void *argument)
{
    static const char garbage[32] = "no message at all";
    struct ender *ender = argument;
    sleep_us(ender->after_us);
    if (ender->word == QUIET) {
        ender->rc = vuf_client_abort(ender->client);
    } else if (ender->word == HANG_UP) {
        shutdown(ender->peer, SHUT_RDWR);
    } else { /* which may find the client gone */
        send(ender->peer, garbage, sizeof garbage, MSG_NOSIGNAL);
    }
    return NULL;
}

/* What a call may return that got no answer before the end began. */
static bool may_return(const struct ending *ending, int rc)
{
    return (rc == -ECANCELED && (ending->aborts > 0 || ending->freed)) ||
           (rc == VUF_E_DISCONNECTED && ending->word == HANG_UP) ||
           (rc == VUF_E_PROTOCOL && ending->word == GARBAGE);
}

static void end_once(struct rig *rig, const struct ending *ending, unsigned *seed)
{
    struct caller callers[CALLERS];
    struct ender enders[MAX_ENDERS];
    uint32_t order[CALLERS];
    open_lasting(rig);
    for (uint32_t i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){rig, i, 0, 0};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_once, &callers[i]), 0);
    }
    /* All are inside once all requests are here: from now on it may be freed. */
    for (size_t i = 0; i < CALLERS; i++) {
        uint32_t request[5];
        assert_int_equal(recv(rig->peer, request, 12, MSG_WAITALL), 12);
        assert_true(request[2] == 0 || recv(rig->peer, request + 3, 8, MSG_WAITALL) == 8);
        order[i] = request[0] == GET_FEATURES ? 0 : request[3];
    }
    int n = 0, answers = rand_r(seed) % CALLERS;
    for (int i = 0; i < ending->aborts; i++) {
        enders[n++] = (struct ender){rig->client, -1, QUIET, rand_r(seed) % 300, 0, 0};
    }
    if (ending->word != QUIET) {
        enders[n++] = (struct ender){NULL, rig->peer, ending->word, rand_r(seed) % 300, 0, 0};
    }
    for (int i = 0; i < answers; i++) {
        same(rig, ending->name, "an answer",
             order[i] == 0 ? say_features(rig->peer) : say_base(rig->peer, order[i]), true);
    }
    int64_t began = now_ms();
    for (int i = 0; i < n; i++) {
        assert_int_equal(pthread_create(&enders[i].thread, NULL, end_it, &enders[i]), 0);
    }
    /* An abort may not begin after free has, so all have been made before. */
    for (int i = 0; i < n; i++) {
        if (enders[i].word == QUIET) {
            pthread_join(enders[i].thread, NULL);
            same(rig, ending->name, "the code of abort", enders[i].rc, 0);
        }
    }
    if (ending->freed) {
        sleep_us(rand_r(seed) % 300);
        vuf_client_free(rig->client);
        rig->client = NULL;
        same(rig, ending->name, "free returns", now_ms() - began < SOON_MS, true);
    }
    for (int i = 0; i < n; i++) {
        if (enders[i].word != QUIET) {
            pthread_join(enders[i].thread, NULL);
        }
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
        int rc = callers[i].rc;
        bool answered = false;
        for (int at = 0; at < answers; at++) {
            answered = answered || order[at] == callers[i].number;
        }
        bool must = answered && ending->aborts == 0 && !ending->freed;
        bool may = (answered && rc == 0) || (!must && may_return(ending, rc));
        if (!may) {
            same(rig, ending->name, answered ? "answered: the code" : "not answered: the code", rc,
                 must ? 0 : -ECANCELED);
        }
    }
    same(rig, ending->name, "all return", now_ms() - began < SOON_MS, true);
    if (!ending->freed) {
        int wanted = ending->aborts > 0         ? -ECANCELED
                     : ending->word == HANG_UP ? VUF_E_DISCONNECTED
                                                : VUF_E_POISONED;
        same(rig, ending->name, "the next code", vuf_client_set_log_fd(rig->client, rig->event),
             wanted);
    }
}

static void whatever_ends_it_every_call_returns(void **state)
{
    struct rig *rig = *state;
    const unsigned first = (unsigned)time(NULL);
    unsigned seed = first;
    int fds = count_fds();
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < LENGTH(endings); i++) {
            unsigned before = seed;
            end_once(rig, &endings[i], &seed);
            if (rig->failures > 0) {
                print_error("round %d, seed %u of %u\n", round, before, first);
                all_refused(rig);
            }
        }
    }
    open_lasting(rig);
    assert_int_equal(count_fds_after(fds), fds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_lock_of_the_callers_is_never_in_the_way),
        TEST(whatever_ends_it_every_call_returns),
    };
    return cmocka_run_group_tests_name("test_threads", tests, default_signals, NULL);
}
