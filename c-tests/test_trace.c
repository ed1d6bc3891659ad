/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What a client tells of its messages, against the scripted back-end, which puts
   them into words by itself; and what it counts. */
#include "harness.h"

#include <vhost_user_frontend.h>

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define BIT(n) (UINT64_C(1) << (n))

enum { LOG_MS = 5000, PAGE = 4096, MOST = 64, TEXT = 512, ACCESS_PLATFORM = 33 };

/* What the callback was called for. */
struct told {
    struct vuf_client *client;
    unsigned count;
    char texts[MOST][TEXT];
    struct vuf_trace_record last;
    int waits, posts, traces; /* what calls from inside return, if client is set */
};

struct fixture {
    struct backend backend;
    struct vuf_client *client;
    struct told told;
    int memory, event;
};

static void ok(int rc)
{
    if (rc != 0) {
        fail_msg("%d: %s", rc, vuf_last_error());
    }
}

/* In place of an assertion where none may jump: through the library, or in
   another thread. */
static void must(bool fine)
{
    if (!fine) {
        abort();
    }
}

static void tell(void *user, const struct vuf_trace_record *record)
{
    struct told *told = user;
    must(record->size == sizeof *record);
    must(told->count < MOST && strlen(record->text) < TEXT);
    strcpy(told->texts[told->count++], record->text);
    told->last = *record;
    if (told->client != NULL) {
        uint64_t features;
        struct vuf_counters counters = {.size = sizeof counters};
        struct vuf_iotlb iotlb = {.size = PAGE, .perm = VUF_ACCESS_RW, .type = VUF_IOTLB_UPDATE};
        must(vuf_client_get_counters(told->client, &counters) == 0);
        must(counters.requests_sent > 0);
        told->waits = vuf_client_get_features(told->client, &features);
        told->posts = vuf_client_post_iotlb(told->client, &iotlb);
        told->traces = vuf_client_set_trace(told->client, NULL, NULL);
    }
}

static void start(struct fixture *f, const char *const args[])
{
    assert_int_equal(backend_start_mock(&f->backend, args), 0);
    ok(vuf_client_connect(f->backend.socket, NULL, &f->client));
    ok(vuf_client_set_trace(f->client, tell, &f->told));
}

/* Features, as far as the memory table. */
static void negotiate(struct fixture *f, uint64_t protocol)
{
    uint64_t features, offered;
    struct vuf_mem_region region = {.guest_addr = 0, .size = PAGE, .user_addr = PAGE,
                                    .fd = f->memory};
    ok(vuf_client_get_features(f->client, &features));
    ok(vuf_client_get_protocol_features(f->client, &offered));
    ok(vuf_client_set_protocol_features(f->client, protocol));
    ok(vuf_client_set_owner(f->client));
    ok(vuf_client_set_features(f->client, features | BIT(VUF_F_PROTOCOL_FEATURES)));
    ok(vuf_client_set_mem_table(f->client, &region, 1));
}

static struct vuf_counters counters_of(struct fixture *f)
{
    struct vuf_counters counters = {.size = sizeof counters};
    ok(vuf_client_get_counters(f->client, &counters));
    return counters;
}

static int set_up(void **state)
{
    struct fixture *f = test_calloc(1, sizeof *f);
    *state = f;
    f->memory = memfd_create("memory", MFD_CLOEXEC);
    f->event = eventfd(0, EFD_CLOEXEC);
    return f->memory < 0 || f->event < 0 || ftruncate(f->memory, PAGE) != 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    vuf_client_free(f->client);
    backend_stop(&f->backend);
    close(f->memory);
    close(f->event);
    test_free(f);
    return 0;
}

static void the_trace_is_what_the_back_end_writes_down(void **state)
{
    struct fixture *f = *state;
    uint8_t config[8];
    char line[TEXT];
    start(f, (const char *const[]){NULL});
    negotiate(f, BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG));
    ok(vuf_client_get_config(f->client, 0, 0, config, sizeof config));
    ok(vuf_client_set_vring_num(f->client, 0, 256));
    ok(vuf_client_set_vring_addr(f->client, 0,
                                 &(struct vuf_vring_addr){.descriptor = PAGE, .used = 2 * PAGE,
                                                          .available = 2 * PAGE + 64}));
    ok(vuf_client_set_vring_kick(f->client, 0, f->event));
    ok(vuf_client_set_vring_enable(f->client, 0, true));
    assert_int_equal(f->told.count, 21);
    assert_string_equal(f->told.texts[17], "> SET_VRING_KICK need-reply index=0 no-fd=0 fds=1");
    for (unsigned n = 0; n < f->told.count; n++) {
        do {
            assert_true(backend_log_next(&f->backend, line, sizeof line, LOG_MS));
        } while (strlen(line) < 10 || line[10] == '=');
        assert_string_equal(line + 10, f->told.texts[n]); /* behind the time */
    }
    /* None, and that again. */
    ok(vuf_client_set_trace(f->client, NULL, NULL));
    ok(vuf_client_set_vring_enable(f->client, 0, false));
    ok(vuf_client_set_trace(f->client, NULL, &f->told));
    assert_int_equal(f->told.count, 21);
}

static void a_record_has_the_fields_of_the_message(void **state)
{
    struct fixture *f = *state;
    start(f, (const char *const[]){"-e", "on GET_FEATURES nth=2: flags 0x7", NULL});
    negotiate(f, BIT(VUF_PROTOCOL_F_REPLY_ACK));
    struct vuf_trace_record last = f->told.last;
    assert_string_equal(last.name, "SET_MEM_TABLE");
    assert_int_equal(last.socket, VUF_TRACE_MAIN);
    assert_int_equal(last.direction, VUF_TRACE_RECEIVED);
    assert_int_equal(last.request, SET_MEM_TABLE);
    assert_int_equal(last.flags, 0x5);
    assert_int_equal(last.payload_size, 8);
    assert_int_equal(last.fds, 0);
    assert_true(last.dropped == 0);
    /* One that breaks the protocol is told before the connection is lost. */
    uint64_t features;
    assert_int_equal(vuf_client_get_features(f->client, &features), VUF_E_PROTOCOL);
    assert_int_equal(f->told.last.flags, 0x7);
    assert_non_null(strstr(f->told.texts[f->told.count - 1], "< GET_FEATURES flags=0x7 value="));
}

static void nothing_that_waits_may_be_called_from_it(void **state)
{
    struct fixture *f = *state;
    uint64_t features;
    start(f, (const char *const[]){"-e", "device features +33", NULL});
    negotiate(f, BIT(VUF_PROTOCOL_F_REPLY_ACK));
    f->told.client = f->client;
    ok(vuf_client_get_features(f->client, &features));
    f->told.client = NULL;
    assert_true(features & BIT(ACCESS_PLATFORM));
    assert_int_equal(f->told.waits, VUF_E_STATE);
    assert_int_equal(f->told.posts, VUF_E_STATE);
    assert_int_equal(f->told.traces, VUF_E_STATE);
}

static int config_changes;

static void config_changed(void *user)
{
    (void)user;
    config_changes++;
}

static void the_channel_is_told_and_counted(void **state)
{
    struct fixture *f = *state;
    uint64_t protocol = BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG) |
                        BIT(VUF_PROTOCOL_F_BACKEND_REQ);
    uint64_t features;
    struct vuf_backend_ops ops = {.size = sizeof ops, .config_changed = config_changed};
    start(f, (const char *const[]){"-e", "on GET_FEATURES nth=2: send CONFIG_CHANGE need-reply",
                                   "-e", "on GET_FEATURES nth=3: send VRING_CALL need-reply",
                                   NULL});
    negotiate(f, protocol);
    ok(vuf_client_open_backend_channel(f->client, &ops, NULL));
    f->told.count = 0;
    ok(vuf_client_get_features(f->client, &features));
    ok(vuf_client_get_features(f->client, &features));
    static const char *const lines[] = {
        "> GET_FEATURES",
        "channel < CONFIG_CHANGE_MSG need-reply",
        "channel > CONFIG_CHANGE_MSG value=0",
        NULL,
        "> GET_FEATURES",
        "channel < VRING_CALL need-reply index=0 num=0",
        "channel > VRING_CALL value=0xffffffffffffffff", /* EPERM: not agreed */
        NULL,
    };
    assert_int_equal(f->told.count, LENGTH(lines));
    for (unsigned n = 0; n < LENGTH(lines); n++) {
        if (lines[n] != NULL) {
            assert_string_equal(f->told.texts[n], lines[n]);
        }
    }
    ok(vuf_client_process_backend_requests(f->client));
    assert_int_equal(config_changes, 1);
    struct vuf_counters counters = counters_of(f);
    assert_true(counters.backend_requests_served == 1);
    assert_true(counters.backend_requests_refused == 1);
}

static void every_message_is_counted(void **state)
{
    struct fixture *f = *state;
    start(f, (const char *const[]){"-e", "on GET_FEATURES nth=2: delay 600ms", NULL});
    struct vuf_counters none = {.size = sizeof none}, counters = counters_of(f);
    assert_memory_equal(&counters, &none, sizeof none);
    negotiate(f, 0); /* no REPLY_ACK: the memory table has a barrier, and waits */
    counters = counters_of(f);
    assert_true(counters.requests_sent == 7);
    assert_true(counters.replies_received == 3);
    assert_true(counters.bytes_sent == 7 * 12 + 2 * 8 + 8 + 32);
    assert_true(counters.bytes_received == 3 * 20);
    assert_true(counters.fds_sent == 1 && counters.fds_received == 0);
    assert_true(counters.barriers == 1);
    assert_true(counters.timeouts == 0 && counters.posted_refused == 0);
    assert_true(counters.trace_dropped == 0);
    assert_int_equal(counters.longest_wait_request, SET_MEM_TABLE);
    assert_true(counters.longest_wait_ns >= 600000000);
    assert_true(counters.longest_wait_ns < 5000000000);
    assert_int_equal(counters.reserved, 0);
}

static void timeouts_and_refusals_are_counted(void **state)
{
    struct fixture *f = *state;
    struct vuf_client_options options = {.size = sizeof options, .timeout_ms = 700,
                                         .on_timeout = VUF_ON_TIMEOUT_KEEP};
    struct vuf_iotlb iotlb = {.size = PAGE, .perm = VUF_ACCESS_RW, .type = VUF_IOTLB_UPDATE};
    uint64_t features;
    start(f, (const char *const[]){"-e", "device features +33", "-e",
                                   "on IOTLB_MSG nth=2+: reply 9", "-e",
                                   "on GET_FEATURES nth=3: delay 2s", NULL});
    vuf_client_free(f->client);
    ok(vuf_client_connect(f->backend.socket, &options, &f->client));
    negotiate(f, BIT(VUF_PROTOCOL_F_REPLY_ACK));
    for (int n = 0; n < 3; n++) {
        ok(vuf_client_post_iotlb(f->client, &iotlb));
    }
    ok(vuf_client_get_features(f->client, &features));
    assert_true(counters_of(f).posted_refused == 2);
    assert_int_equal(vuf_client_get_features(f->client, &features), -ETIMEDOUT);
    struct vuf_counters counters = counters_of(f);
    assert_true(counters.timeouts == 1);
    assert_int_equal(counters.longest_wait_request, GET_FEATURES);
    assert_true(counters.longest_wait_ns >= 700000000);
    /* Also on one that has ended. */
    ok(vuf_client_abort(f->client));
    assert_true(counters_of(f).timeouts == 1);
}

static void bad_arguments_are_refused(void **state)
{
    struct fixture *f = *state;
    start(f, (const char *const[]){NULL});
    struct vuf_counters counters = {.size = sizeof counters};
    assert_int_equal(vuf_client_set_trace(NULL, tell, NULL), -EINVAL);
    assert_int_equal(vuf_client_get_counters(NULL, &counters), -EINVAL);
    assert_int_equal(vuf_client_get_counters(f->client, NULL), -EINVAL);
    counters.size = 0;
    assert_int_equal(vuf_client_get_counters(f->client, &counters), -EINVAL);
    counters.size = 1 << 17;
    assert_int_equal(vuf_client_get_counters(f->client, &counters), -E2BIG);
    /* The size of a pointer. */
    counters.size = sizeof(void *);
    assert_int_equal(vuf_client_get_counters(f->client, &counters), -EINVAL);
    /* A newer program's. */
    uint64_t features;
    ok(vuf_client_get_features(f->client, &features));
    struct {
        struct vuf_counters known;
        uint64_t more;
    } larger = {.known.size = sizeof larger, .more = 7};
    ok(vuf_client_get_counters(f->client, &larger.known));
    assert_true(larger.known.replies_received == 1 && larger.more == 0);
}

static void *ask(void *argument)
{
    struct vuf_client *client = argument;
    for (unsigned n = 0; n < 100; n++) {
        must(vuf_client_set_vring_base(client, 0, n) == 0);
    }
    return NULL;
}

static void count_up(void *user, const struct vuf_trace_record *record)
{
    unsigned *count = user; /* no lock: one at a time */
    *count += 1 + (unsigned)record->dropped;
}

static void records_of_several_threads_come_one_at_a_time(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[3];
    unsigned count = 0;
    start(f, (const char *const[]){NULL});
    negotiate(f, BIT(VUF_PROTOCOL_F_REPLY_ACK));
    ok(vuf_client_set_trace(f->client, count_up, &count));
    for (size_t n = 0; n < LENGTH(threads); n++) {
        assert_int_equal(pthread_create(&threads[n], NULL, ask, f->client), 0);
    }
    for (size_t n = 0; n < LENGTH(threads); n++) {
        pthread_join(threads[n], NULL);
    }
    /* So that nothing is lost behind the last record. */
    ok(vuf_client_set_vring_base(f->client, 0, 7));
    ok(vuf_client_set_trace(f->client, NULL, NULL));
    assert_int_equal(count, 2 * (3 * 100 + 1));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_trace_is_what_the_back_end_writes_down),
        TEST(a_record_has_the_fields_of_the_message),
        TEST(nothing_that_waits_may_be_called_from_it),
        TEST(the_channel_is_told_and_counted),
        TEST(every_message_is_counted),
        TEST(timeouts_and_refusals_are_counted),
        TEST(bad_arguments_are_refused),
        TEST(records_of_several_threads_come_one_at_a_time),
    };
    return cmocka_run_group_tests_name("test_trace", tests, NULL, NULL);
}
