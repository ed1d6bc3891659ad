/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What a back-end's replies become: results, refusals, and errors where a reply
   breaks the protocol. The back-end is a thread with a list of replies. */
#include "rig.h"

#include <poll.h>

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
static const struct vuf_inflight vast_buffer = {UINT64_C(1) << 40, 0, 1, 128, 0};
static const uint32_t too_many_regions[514] = {257};

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
    {"a buffer beyond the end of its file", ask_inflight, GET_INFLIGHT_FD,
     {.size = sizeof vast_buffer, .payload = &vast_buffer, .fd = WITH_FD}, VUF_E_PROTOCOL, false, 0},
    {"a channel that is not there", ask_state, SET_DEVICE_STATE_FD,
     {.size = 8, .payload = &u64_zero}, VUF_E_PROTOCOL, true, 0},
    {"a channel that should not be there", ask_state, SET_DEVICE_STATE_FD,
     {.size = 8, .payload = &no_fd, .fd = WITH_FD}, VUF_E_PROTOCOL, true, 0x100},
    {"more regions than there can be", ask_shmem, GET_SHMEM_CONFIG,
     {.size = sizeof too_many_regions, .payload = too_many_regions}, VUF_E_PROTOCOL, true, 257},
    {"an empty configuration", ask_config, GET_CONFIG, {.size = 0}, VUF_E_NACK, false, 0},
    {"a configuration of size 0", ask_config, GET_CONFIG,
     {.size = sizeof config_of_0, .payload = config_of_0}, VUF_E_NACK, false, 0},
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
    bool broken = row->code == VUF_E_PROTOCOL;
    uint32_t error_class = broken ? VUF_CLASS_PROTOCOL : VUF_CLASS_REFUSED;
    struct vuf_error_info info = check_failure(
        rig, row->what, rc, (struct failure){row->code, error_class, VUF_PHASE_REPLY});
    same(rig, row->what, "info.request", info.request, row->request);
    same(rig, row->what, "info.has_value", info.has_value, row->has_value);
    same(rig, row->what, "info.value", (long long)info.value, (long long)row->value);
    says(rig, row->what, "the text has the request's name", vuf_request_name(row->request));
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

static void a_result_may_be_longer(void **state)
{
    struct rig *rig = *state;
    static const uint64_t answer[257] = {1, [1 + 3] = PAGE};
    const struct reply replies[] = {
        {.size = sizeof answer, .payload = answer},
    };
    struct script script;
    start_script(&script, rig->peer, replies, 1);
    struct {
        struct vuf_shmem_config known;
        uint64_t tail;
    } longer = {.known = {.size = sizeof longer}, .tail = 7};
    int first = vuf_client_get_shmem_config(rig->client, &longer.known);
    end_script(&script);
    assert_int_equal(first, 0);
    assert_int_equal(longer.known.size, sizeof longer);
    assert_int_equal(longer.known.nregions, 1);
    assert_int_equal(longer.known.memory_sizes[3], PAGE);
    assert_int_equal(longer.tail, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(broken_replies_are_told),
        TEST(a_refused_request_is_told_with_its_value),
        TEST(what_nobody_asked_for_breaks_the_protocol),
        AGREED(a_back_end_without_a_buffer_is_not_an_error),
        AGREED(a_result_may_be_longer),
    };
    return cmocka_run_group_tests_name("test_replies", tests, default_signals, NULL);
}
