/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What a device promises to a VMM, against back-ends that refuse, answer nonsense, hang
 * and die: memory is never reported as safe while a back-end may write it, no request is
 * lost or completed twice, a refusal concerns only what was refused.
 */
#include "device_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    STATUS_DRIVER_OK = 15,
    STATUS_NEEDS_RESET = 64,
    LOG_SIZE = 1 << 18,
};

/* Arguments of vuf-mock-backend. */
#define SCRIPT(...) ((const char *const[]){__VA_ARGS__, NULL})
#define OFFERS(features) "-e", "device protocol-features " features

static const struct vuf_device_options quickly = {
    QUICK,
    .num_rings = 2,
    .slow_delay_ms = 100,
    .fence_ms = 100,
};

/* ---- what the device says ---- */

static bool quiesced(struct fixture *f)
{
    return quiet_of(f).quiesced != 0;
}

static uint32_t memory_state(struct fixture *f)
{
    uint32_t state = UINT32_MAX;
    assert_ok(vuf_device_get_memory_state(f->device, &state));
    return state;
}

/* No state that says that memory which was taken away can be unmapped. */
static bool may_be_written(struct fixture *f)
{
    uint32_t state = memory_state(f);
    return !quiesced(f) && (state == VUF_MEMORY_PENDING || state == VUF_MEMORY_UNCONFIRMED);
}

static struct vuf_quiet stop_ring(struct fixture *f, uint32_t index, uint32_t mode, uint32_t time)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_stop(f->device, &index, 1, mode, time, &quiet));
    return quiet;
}

static void remove_second(struct fixture *f)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_remove_memory(f->device, SECOND_ADDR, SECOND_SIZE, &quiet));
}

/* ---- the log of the mock ---- */

static char said[LOG_SIZE];

/* Its lines without the times. */
static const char *log_of(struct fixture *f)
{
    size_t size = 0;
    FILE *log = fopen(f->backend.log, "re");
    assert_non_null(log);
    for (char line[4096]; fgets(line, sizeof line, log) != NULL;) {
        size_t length = strlen(line);
        if (length > 10 && size + length < sizeof said) {
            memcpy(said + size, line + 10, length - 10);
            size += length - 10;
        }
    }
    fclose(log);
    said[size] = '\0';
    return said;
}

/* The request at the beginning of a line, "NAME" or "NAME field=..."; NULL for none. */
static const char *find_request(const char *log, const char *request)
{
    size_t length = strlen(request);
    for (const char *line = log; line != NULL && *line != '\0';) {
        if (strncmp(line, "> ", 2) == 0 && strncmp(line + 2, request, length) == 0 &&
            (line[2 + length] == ' ' || line[2 + length] == '\n')) {
            return line + 2 + length;
        }
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return NULL;
}

static unsigned requests(struct fixture *f, const char *request)
{
    unsigned count = 0;
    for (const char *at = log_of(f); (at = find_request(at, request)) != NULL;) {
        count++;
        at = strchr(at, '\n');
        if (at == NULL) {
            break;
        }
        at++;
    }
    return count;
}

/* These came in this order, behind the first `from`, maybe with others between. The list
   ends with NULL. */
static void assert_order(struct fixture *f, const char *const wanted[])
{
    const char *at = log_of(f);
    for (size_t n = 0; wanted[n] != NULL; n++) {
        at = find_request(at, wanted[n]);
        if (at == NULL) {
            print_error("not in this place: %s, in:\n%s\n", wanted[n], said);
            fail();
        }
    }
}
#define ORDER(f, ...) assert_order(f, (const char *const[]){__VA_ARGS__, NULL})

/* ---- setting up ---- */

static void start_mock(struct fixture *f, const char *const script[])
{
    assert_int_equal(backend_start_mock(&f->backend, script), 0);
}

static void open_device(struct fixture *f, const struct vuf_device_options *options)
{
    assert_ok(vuf_device_open(f->backend.socket, options, &f->device));
    UNTIL(f, SEEN(f, CONNECTED) == 1);
}

static void add_second(struct fixture *f)
{
    struct vuf_mem_region region = guest_memory_region(&f->second);
    assert_ok(vuf_device_add_memory(f->device, &region));
}

static int start_two(struct fixture *f, uint32_t first, uint32_t second)
{
    struct vuf_ring rings[] = {blk_ring_of_device(&f->rings[0], first),
                               blk_ring_of_device(&f->rings[1], second)};
    return vuf_device_start(f->device, rings, 2);
}

/* Connected, with memory, and rings 0 to n-1 running. */
static void bring_up(struct fixture *f, const struct vuf_device_options *options, unsigned n)
{
    open_device(f, options);
    negotiate(f);
    for (unsigned index = 0; index < n; index++) {
        assert_ok(start_ring(f, index, VUF_RING_BASE_NEW));
    }
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    forget_events(f);
}

/* The driver makes a ring anew at its place, of this size. */
static void renew_ring(struct fixture *f, unsigned index, uint32_t size)
{
    blk_ring_destroy(&f->rings[index]);
    assert_int_equal(
        blk_ring_create(&f->rings[index], index, size, &f->memory, RING_ADDR(index)), 0);
}

/* Ring 0 goes on, on the connection that there was. */
static void assert_goes_on(struct fixture *f)
{
    for_a_while(f);
    assert_int_equal(SEEN(f, LOST), 0);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    assert_int_equal(SEEN(f, REFUSED), 1);
    assert_int_equal(info_of(f).connections, 1);
    assert_int_equal(info_of(f).needs_reset, 0);
    assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0"), 0);
    assert_int_equal(requests(f, "SET_VRING_ENABLE need-reply index=0 num=0"), 0);
    assert_int_equal(virtio_status(f, STATUS_DRIVER_OK), STATUS_DRIVER_OK);
}

/* ---- memory that the back-end does not release ---- */

static const struct removal {
    const char *fault;
    bool lost; /* costs the connection */
} removals[] = {
    {"refuse 5", false},
    {"refuse 5, stop-reading 60s", false},
    {"reply 0xffffffffffffffff, stop-reading 60s", false},
    {"code GET_FEATURES, stop-reading 60s", true},
    {"size 4, stop-reading 60s", true},
    {"size +4, stop-reading 60s", true},
    {"huge, stop-reading 60s", true},
    {"pad 8, stop-reading 60s", true},
    {"trim 4, stop-reading 60s", true},
    {"flags 0x1, stop-reading 60s", true},
    {"fds 1, stop-reading 60s", true},
    {"short 3, stop-reading 60s", true},
    {"drop, stop-reading 60s", true},
};

static void refuse_removal(struct fixture *f, const struct removal *removal, bool last)
{
    struct vuf_device_options options = quickly;
    char rule[100];
    start_over(f);
    snprintf(rule, sizeof rule, "on REM_MEM_REG: %s", removal->fault);
    options.timeout_ms = options.slow_timeout_ms = 200;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK CONFIGURE_MEM_SLOTS"), "-e", rule));
    open_device(f, &options);
    if (last) {
        assert_ok(vuf_device_set_features(f->device, VERSION_1));
        add_second(f);
    } else {
        negotiate(f);
        add_second(f);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    }
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    forget_events(f);
    remove_second(f);
    if (removal->lost) {
        UNTIL(f, (assert_true(may_be_written(f)), SEEN(f, LOST) == 1));
    } else {
        UNTIL(f, (assert_true(may_be_written(f)), SEEN(f, REFUSED) == 1));
        assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].request, REM_MEM_REG);
        assert_has(TEXT(f, REFUSED), "0x80000000");
        assert_has(TEXT(f, REFUSED), "stays accessible");
        assert_returns(VUF_E_NACK, vuf_device_wait(f->device, PEER_MS));
    }
    ALWAYS(f, 2 * WHILE_MS, may_be_written(f));
    assert_int_equal(SEEN(f, LOST), removal->lost);
    backend_kill(&f->backend);
    UNTIL(f, quiesced(f));
}

static void region_that_is_not_released_stays_accessible(void **state)
{
    struct fixture *f = *state;
    for (size_t n = 0; n < LENGTH(removals); n++) {
        for (unsigned last = 0; last < 2; last++) {
            print_message("REM_MEM_REG: %s, the last: %u\n", removals[n].fault, last);
            refuse_removal(f, &removals[n], last);
        }
    }
}

/* A back-end that ends the connection has released it. */
static void region_is_released_with_the_connection(void **state)
{
    struct fixture *f = *state;
    for (unsigned last = 0; last < 2; last++) {
        start_over(f);
        start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK CONFIGURE_MEM_SLOTS"), "-e",
                             "on REM_MEM_REG: delay 300ms, short 3, close-after"));
        open_device(f, &quickly);
        if (last) {
            assert_ok(vuf_device_set_features(f->device, VERSION_1));
        } else {
            negotiate(f);
        }
        add_second(f);
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        forget_events(f);
        remove_second(f);
        ALWAYS(f, 200, may_be_written(f));
        UNTIL(f, quiesced(f));
        assert_int_equal(SEEN(f, LOST), 1);
    }
}

/* Each way to reset the device does not help against a region that stays mapped. */
static void reset_does_not_release_memory(void **state)
{
    struct fixture *f = *state;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK CONFIGURE_MEM_SLOTS RESET_DEVICE"), "-e",
                         "on REM_MEM_REG: refuse 5"));
    bring_up(f, &quickly, 1);
    add_second(f);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    remove_second(f);
    UNTIL(f, SEEN(f, REFUSED) == 1);
    assert_int_equal(reset(f, 0).quiesced, 0);
    ALWAYS(f, WHILE_MS, may_be_written(f));
    assert_int_equal(SEEN(f, LOST), 0);
    backend_kill(&f->backend);
    UNTIL(f, quiesced(f));
}

/* ---- the last region ---- */

static void remove_last_region(struct fixture *f, bool slots, bool ran)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    start_over(f);
    start_mock(f, slots ? SCRIPT(OFFERS("MQ REPLY_ACK CONFIGURE_MEM_SLOTS"))
                        : SCRIPT(OFFERS("MQ REPLY_ACK")));
    bring_up(f, &quickly, ran ? 1 : 0);
    if (ran) {
        assert_int_equal(reset(f, 0).quiesced, 0);
        UNTIL(f, quiesced(f));
    }
    assert_ok(vuf_device_remove_memory(f->device, GUEST_ADDR, GUEST_SIZE, &quiet));
    assert_int_equal(quiet.quiesced, 0);
    UNTIL(f, quiesced(f));
    assert_int_equal(SEEN(f, LOST), slots ? 0 : 1);
    if (slots) {
        assert_int_equal(requests(f, "REM_MEM_REG"), 1);
    } else {
        assert_has(TEXT(f, LOST), "CONFIGURE_MEM_SLOTS");
    }
    /* It is usable, and a reset is done as ever. */
    reset(f, 0);
    UNTIL(f, quiesced(f));
    assert_int_equal(virtio_status(f, 0), 0);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
    assert_int_equal(info_of(f).connections, slots ? 1 : 2);
}

static void last_region_is_removed(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < 4; n++) {
        print_message("CONFIGURE_MEM_SLOTS: %u, a ring ran: %u\n", n & 1, n >> 1);
        remove_last_region(f, n & 1, n >> 1);
    }
}

static void last_region_is_removed_from_a_group(void **state)
{
    struct fixture *f = *state;
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK")));
    assert_int_equal(backend_start_mock(&f->other, SCRIPT(OFFERS(
                         "MQ REPLY_ACK CONFIGURE_MEM_SLOTS"))), 0);
    assert_ok(vuf_device_open(f->other.socket, &quickly, &f->member));
    assert_ok(vuf_device_open(f->backend.socket, &quickly, &f->device));
    assert_ok(vuf_memory_group_new(&f->group));
    assert_ok(vuf_memory_group_join(f->group, f->device));
    assert_ok(vuf_memory_group_join(f->group, f->member));
    for (unsigned round = 0; round < 3; round++) {
        assert_ok(vuf_memory_group_add_memory(f->group, &region));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        assert_ok(vuf_device_wait(f->member, PEER_MS));
        assert_ok(vuf_device_set_features(f->device, VERSION_1));
        assert_ok(vuf_device_set_features(f->member, VERSION_1));
        assert_ok(vuf_memory_group_wait(f->group, PEER_MS));
        assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
        assert_ok(vuf_memory_group_remove_memory(f->group, GUEST_ADDR, GUEST_SIZE));
        assert_ok(vuf_memory_group_wait(f->group, PEER_MS));
        assert_true(quiesced(f));
        UNTIL(f, SEEN(f, LOST) == round + 1);
    }
    reset(f, 0);
    UNTIL(f, quiesced(f));
}

/* ---- refusals ---- */

static void refused_region_is_reported(struct fixture *f, const char *refusal, const char *offers,
                                       uint32_t request)
{
    char features[100];
    start_over(f);
    snprintf(features, sizeof features, "device protocol-features %s", offers);
    start_mock(f, SCRIPT("-e", features, "-e", refusal));
    bring_up(f, &quickly, 1);
    add_second(f);
    UNTIL(f, SEEN(f, REFUSED) == 1);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].request, request);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].error_class, VUF_CLASS_REFUSED);
    assert_has(TEXT(f, REFUSED), "0x80000000");
    assert_has(TEXT(f, REFUSED), vuf_request_name(request));
    assert_int_equal(memory_state(f), VUF_MEMORY_FAILED);
    assert_refused(VUF_E_NACK, "0x80000000", vuf_device_wait(f->device, PEER_MS));
    assert_has(vuf_last_error(), vuf_request_name(request));
    for_a_while(f);
    assert_int_equal(SEEN(f, LOST), 0);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    assert_int_equal(SEEN(f, REFUSED), 1);
    assert_int_equal(memory_state(f), VUF_MEMORY_FAILED);
}

static void refused_region_of_a_slot(void **state)
{
    struct fixture *f = *state;
    refused_region_is_reported(f, "on ADD_MEM_REG guest-addr=0x80000000 nth=1: refuse 12",
                               "MQ REPLY_ACK CONFIGURE_MEM_SLOTS", ADD_MEM_REG);
    assert_goes_on(f);
    assert_int_equal(requests(f, "ADD_MEM_REG"), 2);
    /* The caller asks again. */
    remove_second(f);
    UNTIL(f, quiesced(f));
    assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
    add_second(f);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
    assert_goes_on(f);
}

static void refused_table_leaves_the_one_before(void **state)
{
    struct fixture *f = *state;
    refused_region_is_reported(f, "on SET_MEM_TABLE nth=2: refuse 12", "MQ REPLY_ACK",
                               SET_MEM_TABLE);
    assert_int_equal(info_of(f).connections, 1);
    ORDER(f, "SET_MEM_TABLE need-reply regions=1 fds=1", "SET_MEM_TABLE need-reply regions=2 fds=2",
          "SET_VRING_KICK need-reply index=0 no-fd=0 fds=1", "SET_VRING_ENABLE need-reply index=0 num=1");
    remove_second(f);
    UNTIL(f, quiesced(f));
    add_second(f);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
    assert_int_equal(SEEN(f, LOST), 0);
}

static void refused_region_is_asked_of_two_back_ends(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *offers, *refusal, *request;
        uint32_t number;
    } ways[] = {
        {"MQ REPLY_ACK CONFIGURE_MEM_SLOTS", "on ADD_MEM_REG guest-addr=0x80000000: refuse 12",
         "ADD_MEM_REG need-reply guest-addr=0x80000000", ADD_MEM_REG},
        {"MQ REPLY_ACK", "on SET_MEM_TABLE regions=2: refuse 12",
         "SET_MEM_TABLE need-reply regions=2", SET_MEM_TABLE},
    };
    for (size_t n = 0; n < LENGTH(ways); n++) {
        char features[100];
        snprintf(features, sizeof features, "device protocol-features %s", ways[n].offers);
        refused_region_is_reported(f, ways[n].refusal, ways[n].offers, ways[n].number);
        assert_int_equal(requests(f, ways[n].request), 1);
        for (unsigned round = 1; round <= 2; round++) {
            backend_kill(&f->backend);
            UNTIL(f, SEEN(f, LOST) == round);
            assert_int_equal(
                backend_again_mock(&f->backend, SCRIPT("-e", features, "-e", ways[n].refusal)), 0);
            UNTIL(f, SEEN(f, RECOVERED) == round);
            for_a_while(f);
            /* A second back-end may take it, a third one is not asked. */
            assert_int_equal(requests(f, ways[n].request), round == 1);
            assert_int_equal(SEEN(f, REFUSED), 2);
            assert_int_equal(SEEN(f, LOST), round);
            assert_int_equal(SEEN(f, NEEDS_RESET), 0);
        }
    }
}

static const struct {
    const char *name;
    uint32_t request;
} ring_requests[] = {
    {"SET_VRING_CALL", SET_VRING_CALL}, {"SET_VRING_NUM", SET_VRING_NUM},
    {"SET_VRING_BASE", SET_VRING_BASE}, {"SET_VRING_ADDR", SET_VRING_ADDR},
    {"SET_VRING_ERR", SET_VRING_ERR},   {"SET_VRING_KICK", SET_VRING_KICK},
    {"SET_VRING_ENABLE", SET_VRING_ENABLE},
};

/* Ring 1 is refused while ring 0 runs. */
static void refuse_ring(struct fixture *f, size_t n, const char *rule)
{
    start_over(f);
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK"), "-e", rule));
    bring_up(f, &quickly, 1);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
    UNTIL(f, SEEN(f, REFUSED) == 1);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].request, ring_requests[n].request);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].ring, 1);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].error_class, VUF_CLASS_REFUSED);
    assert_has(TEXT(f, REFUSED), ring_requests[n].name);
    assert_refused(VUF_E_NACK, ring_requests[n].name, vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(last_info().ring, 1);
    assert_goes_on(f);
}

static void refused_ring_is_reported(void **state)
{
    struct fixture *f = *state;
    for (size_t n = 0; n < LENGTH(ring_requests); n++) {
        char rule[100];
        print_message("%s\n", ring_requests[n].name);
        snprintf(rule, sizeof rule, "on %s index=1 nth=1: refuse 1", ring_requests[n].name);
        refuse_ring(f, n, rule);
        /* The caller asks again. */
        assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        assert_true(requests(f, "SET_VRING_ENABLE need-reply index=1 num=1") > 0);
        assert_goes_on(f);
    }
}

static void refused_ring_is_not_repeated(void **state)
{
    struct fixture *f = *state;
    for (size_t n = 0; n < LENGTH(ring_requests); n++) {
        char rule[100];
        snprintf(rule, sizeof rule, "on %s index=1: refuse 1", ring_requests[n].name);
        refuse_ring(f, n, rule);
        backend_kill(&f->backend);
        assert_int_equal(
            backend_again_mock(&f->backend, SCRIPT(OFFERS("MQ REPLY_ACK"), "-e", rule)), 0);
        UNTIL(f, SEEN(f, RECOVERED) == 1);
        for_a_while(f);
        assert_int_equal(requests(f, "SET_VRING_NUM need-reply index=1 num=64"), 0);
        assert_int_equal(SEEN(f, REFUSED), 1);
        assert_int_equal(SEEN(f, LOST), 1);
        assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    }
}

/* rust-vmm's back-ends close the connection after a refusal. */
static void refusal_that_ends_the_connection_is_not_repeated(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *offers, *rule;
        bool region;
    } ways[] = {
        {"MQ REPLY_ACK CONFIGURE_MEM_SLOTS",
         "on ADD_MEM_REG guest-addr=0x80000000: refuse 12, close-after", true},
        {"MQ REPLY_ACK CONFIGURE_MEM_SLOTS",
         "on ADD_MEM_REG guest-addr=0x80000000: refuse 12, stop-reading 60ms, close-after", true},
        {"MQ REPLY_ACK", "on SET_MEM_TABLE regions=2: refuse 12, close-after", true},
        {"MQ REPLY_ACK",
         "on SET_VRING_KICK index=1: refuse 12, stop-reading 60ms, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_CALL index=1: refuse 12, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_NUM index=1: refuse 12, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_BASE index=1: refuse 12, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_ADDR index=1: refuse 12, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_ERR index=1: refuse 12, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_KICK index=1: refuse 12, close-after", false},
        {"MQ REPLY_ACK", "on SET_VRING_ENABLE index=1: refuse 12, close-after", false},
    };
    for (size_t n = 0; n < LENGTH(ways); n++) {
        char features[100];
        print_message("%s\n", ways[n].rule);
        start_over(f);
        snprintf(features, sizeof features, "device protocol-features %s", ways[n].offers);
        start_mock(f, SCRIPT("-e", features, "-e", ways[n].rule));
        bring_up(f, &quickly, 1);
        if (ways[n].region) {
            add_second(f);
        } else {
            assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
        }
        UNTIL(f, info_of(f).connections > 1);
        ALWAYS(f, 2 * WHILE_MS, true);
        assert_returns(VUF_E_NACK, vuf_device_wait(f->device, PEER_MS));
        /* A second back-end may be asked for a region, and does the same. */
        unsigned most = ways[n].region ? 2 : 1;
        assert_in_range(SEEN(f, REFUSED), 1, most);
        assert_in_range(SEEN(f, LOST), 1, most);
        assert_int_equal(info_of(f).connections, SEEN(f, LOST) + 1);
        assert_int_equal(SEEN(f, NEEDS_RESET), 0);
        ORDER(f, "SET_VRING_ENABLE need-reply index=0 num=1",
              "SET_VRING_ENABLE need-reply index=0 num=1");
        if (ways[n].region) {
            assert_int_equal(memory_state(f), VUF_MEMORY_FAILED);
        }
    }
}

/* A ring that never ran has nothing to reset. */
static void refused_only_ring_needs_no_reset(void **state)
{
    struct fixture *f = *state;
    struct vuf_device_options options = quickly;
    options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    for (size_t n = 0; n < LENGTH(ring_requests); n++) {
        char rule[100];
        start_over(f);
        snprintf(rule, sizeof rule, "on %s nth=1: refuse 1", ring_requests[n].name);
        start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK"), "-e", rule));
        bring_up(f, &options, 0);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
        UNTIL(f, SEEN(f, REFUSED) == 1);
        for_a_while(f);
        assert_int_equal(SEEN(f, NEEDS_RESET), 0);
        assert_int_equal(SEEN(f, LOST), 0);
        assert_int_equal(SEEN(f, REFUSED), 1);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
    }
}

static void refused_call_descriptor_is_reported(void **state)
{
    struct fixture *f = *state;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK"), "-e", "on SET_VRING_CALL nth=2: refuse 1"));
    bring_up(f, &quickly, 1);
    assert_ok(vuf_device_set_call(f->device, 0, f->rings[1].call_fd));
    UNTIL(f, SEEN(f, REFUSED) == 1);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].request, SET_VRING_CALL);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].ring, 0);
    assert_refused(VUF_E_NACK, "SET_VRING_CALL", vuf_device_wait(f->device, PEER_MS));
    assert_goes_on(f);
    assert_ok(vuf_device_set_call(f->device, 0, f->rings[1].call_fd));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(requests(f, "SET_VRING_CALL need-reply index=0 no-fd=0 fds=1"), 3);
    assert_goes_on(f);
}

/* ---- how rings are stopped ---- */

static void drain_is_not_skipped(void **state)
{
    struct fixture *f = *state;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK INFLIGHT_SHMFD GET_VRING_BASE_INFLIGHT")));
    bring_up(f, &quickly, 1);
    uint64_t inflight = BIT(VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT);
    assert_true((info_of(f).offered_protocol_features & inflight) != 0);
    assert_true((info_of(f).protocol_features & inflight) == 0);
    assert_null(strstr(strstr(log_of(f), "> SET_PROTOCOL_FEATURES"), "GET_VRING_BASE_INFLIGHT"));
    /* There is nothing to skip it with. */
    stop_all(f, VUF_STOP_SKIP_DRAIN, PEER_MS);
    assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0"), 1);
}

#define SKIPS                                                                                      \
    OFFERS("MQ REPLY_ACK INFLIGHT_SHMFD GET_VRING_BASE_INFLIGHT GET_VRING_BASE_SKIP_DRAIN")

static void each_stop_has_its_own_mode(void **state)
{
    struct fixture *f = *state;
    for (unsigned skipped = 0; skipped < 2; skipped++) {
        const char *wanted[] = {
            skipped == 0 ? "GET_VRING_BASE_SKIP_DRAIN index=0 num=0" : "GET_VRING_BASE index=0 num=0",
            skipped == 1 ? "GET_VRING_BASE_SKIP_DRAIN index=1 num=0" : "GET_VRING_BASE index=1 num=0",
        };
        for (unsigned first = 0; first < 2; first++) {
            start_over(f);
            start_mock(f, SCRIPT(SKIPS));
            bring_up(f, &quickly, 2);
            uint64_t both = BIT(VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT) |
                            BIT(VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN);
            assert_true((info_of(f).protocol_features & both) == both);
            for (unsigned n = 0; n < 2; n++) {
                unsigned ring = n == 0 ? first : 1 - first;
                stop_ring(f, ring, ring == skipped ? VUF_STOP_SKIP_DRAIN : VUF_STOP_DRAIN, 0);
            }
            UNTIL(f, quiesced(f));
            assert_int_equal(requests(f, wanted[0]), 1);
            assert_int_equal(requests(f, wanted[1]), 1);
            assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0") +
                                 requests(f, "GET_VRING_BASE index=1 num=0"),
                             1);
        }
    }
}

/* ---- bases ---- */

enum { USED = 3, AVAILABLE = 5 };

/* The driver and the back-end of ring 0 got so far. */
static void place(struct fixture *f, uint16_t used, uint16_t available)
{
    struct vuf_ring ring = blk_ring_of_device(&f->rings[0], VUF_RING_BASE_NEW);
    *(volatile uint16_t *)(uintptr_t)ring.used_index = used;
    *(volatile uint16_t *)(uintptr_t)ring.avail_index = available;
}

static void assert_base(struct fixture *f, int base)
{
    uint32_t known = UINT32_MAX;
    assert_int_equal(quiet_of(f).bases_valid, base >= 0);
    if (base >= 0) {
        assert_ok(vuf_device_get_vring_base(f->device, 0, &known));
        assert_int_equal(known, base);
    } else {
        assert_returns(VUF_E_STATE, vuf_device_get_vring_base(f->device, 0, &known));
        assert_returns(VUF_E_STATE, start_ring(f, 0, VUF_RING_BASE_RESUME));
    }
}

static const struct policy {
    const char *name, *offers;
    uint32_t out_of_order, device_id, recovery;
    uint64_t features;
    int base; /* from which the ring can go on; -1: from none */
} policies[] = {
    {"NEEDS_RESET", "MQ REPLY_ACK", VUF_OUT_OF_ORDER_NEEDS_RESET, 0, VUF_RECOVERY_NEEDS_RESET, 0,
     -1},
    {"default, fs", "MQ REPLY_ACK", 0, 26, VUF_RECOVERY_NEEDS_RESET, 0, -1},
    {"default, blk", "MQ REPLY_ACK", 0, 2, VUF_RECOVERY_REPLAY_FROM_USED, 0, USED},
    {"REPLAY_FROM_USED", "MQ REPLY_ACK", VUF_OUT_OF_ORDER_REPLAY_FROM_USED, 0,
     VUF_RECOVERY_REPLAY_FROM_USED, 0, USED},
    {"RESUME_FROM_AVAILABLE", "MQ REPLY_ACK", VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE, 0,
     VUF_RECOVERY_RESUME_FROM_AVAILABLE, 0, AVAILABLE},
    {"IN_ORDER", "MQ REPLY_ACK", VUF_OUT_OF_ORDER_NEEDS_RESET, 0, VUF_RECOVERY_IN_ORDER,
     BIT(VIRTIO_F_IN_ORDER), USED},
    {"INFLIGHT", "MQ REPLY_ACK INFLIGHT_SHMFD", VUF_OUT_OF_ORDER_NEEDS_RESET, 0,
     VUF_RECOVERY_INFLIGHT, 0, USED},
};

static void begin_policy_with(struct fixture *f, const struct policy *policy, char features[100],
                              const char *rule)
{
    struct vuf_device_options options = quickly;
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    start_over(f);
    print_message("%s\n", policy->name);
    options.out_of_order = policy->out_of_order;
    options.device_id = policy->device_id;
    snprintf(features, 100, "device protocol-features %s", policy->offers);
    start_mock(f, SCRIPT("-e", features, "-e", "device features +35", "-e", rule));
    open_device(f, &options);
    assert_ok(vuf_device_set_features(f->device, VERSION_1 | policy->features));
    assert_ok(vuf_device_set_memory(f->device, &region, 1, 0));
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    forget_events(f);
    place(f, USED, AVAILABLE);
}

static void begin_policy(struct fixture *f, const struct policy *policy, char features[100])
{
    begin_policy_with(f, policy, features, "on GET_VRING_BASE: delay 0ms");
}

static void return_to(struct fixture *f, const char *features)
{
    assert_int_equal(backend_again_mock(&f->backend,
                                        SCRIPT("-e", features, "-e", "device features +35")), 0);
    UNTIL(f, SEEN(f, CONNECTED) == 1);
}

/* Stopped while there is no back-end. */
static void base_of_a_lost_ring_follows_the_policy(void **state)
{
    struct fixture *f = *state;
    for (const struct policy *policy = policies; policy < policies + LENGTH(policies); policy++) {
        char features[100], request[100];
        begin_policy(f, policy, features);
        backend_kill(&f->backend);
        UNTIL(f, SEEN(f, LOST) == 1);
        assert_int_equal(f->last[VUF_DEVICE_EVENT_LOST].recovery, policy->recovery);
        assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, 0).bases_valid, policy->base >= 0);
        assert_base(f, policy->base);
        return_to(f, features);
        for_a_while(f);
        assert_base(f, policy->base);
        if (policy->base < 0) {
            continue;
        }
        assert_ok(start_ring(f, 0, VUF_RING_BASE_RESUME));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        snprintf(request, sizeof request, "SET_VRING_BASE need-reply index=0 num=%d", policy->base);
        assert_int_equal(requests(f, request), 1);
        assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    }
}

/* The back-end dies before it has answered the stop. */
static void base_of_a_stop_that_is_cut_off_follows_the_policy(void **state)
{
    struct fixture *f = *state;
    for (const struct policy *policy = policies; policy < policies + LENGTH(policies); policy++) {
        char features[100];
        begin_policy_with(f, policy, features, "on GET_VRING_BASE: never");
        assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, 0).quiesced, 0);
        UNTIL(f, requests(f, "GET_VRING_BASE index=0 num=0") == 1);
        assert_int_equal(quiet_of(f).bases_valid, 0);
        backend_kill(&f->backend);
        UNTIL(f, quiesced(f));
        assert_base(f, policy->base);
        UNTIL(f, SEEN(f, LOST) == 1);
        assert_int_equal(f->last[VUF_DEVICE_EVENT_LOST].recovery,
                         policy->base >= 0 ? policy->recovery : VUF_RECOVERY_IDLE);
        return_to(f, features);
        for_a_while(f);
        assert_base(f, policy->base);
        assert_int_equal(SEEN(f, NEEDS_RESET), 0);
        assert_int_equal(SEEN(f, RECOVERED), 0);
    }
}

/* Stopped after a back-end has returned. */
static void base_after_a_return_follows_the_policy(void **state)
{
    struct fixture *f = *state;
    for (const struct policy *policy = policies; policy < policies + LENGTH(policies); policy++) {
        char features[100];
        begin_policy(f, policy, features);
        backend_kill(&f->backend);
        return_to(f, features);
        if (policy->base < 0) {
            UNTIL(f, SEEN(f, NEEDS_RESET) == 1);
            for_a_while(f);
            assert_int_equal(requests(f, "SET_VRING_KICK"), 0);
            assert_int_equal(virtio_status(f, STATUS_DRIVER_OK),
                             STATUS_DRIVER_OK | STATUS_NEEDS_RESET);
            assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, PEER_MS).bases_valid, 0);
            assert_base(f, -1);
            continue;
        }
        UNTIL(f, SEEN(f, RECOVERED) == 1);
        assert_int_equal(f->last[VUF_DEVICE_EVENT_RECOVERED].recovery, policy->recovery);
        /* The mock stops it where it was started. */
        assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
        assert_base(f, policy->base);
        assert_int_equal(SEEN(f, LOST), 1);
    }
}

/* Nothing was unfinished: to go on is right under each policy. */
static void drained_ring_has_a_base(void **state)
{
    struct fixture *f = *state;
    for (const struct policy *policy = policies; policy < policies + LENGTH(policies); policy++) {
        char features[100], base[40];
        begin_policy(f, policy, features);
        backend_kill(&f->backend);
        UNTIL(f, SEEN(f, LOST) == 1);
        snprintf(base, sizeof base, "device base 0=%d", AVAILABLE);
        assert_int_equal(backend_again_mock(&f->backend, SCRIPT("-e", features, "-e", base, "-e",
                                                                "device features +35")), 0);
        UNTIL(f, SEEN(f, CONNECTED) == 1);
        reset(f, 0);
        UNTIL(f, quiesced(f));
        assert_ok(vuf_device_set_features(f->device, VERSION_1));
        place(f, 0, 0);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        place(f, AVAILABLE, AVAILABLE);
        assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
        assert_base(f, AVAILABLE);
        backend_kill(&f->backend);
        UNTIL(f, SEEN(f, LOST) == 2);
        assert_base(f, AVAILABLE);
        return_to(f, features);
        assert_base(f, AVAILABLE);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_RESUME));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
    }
}

/* ---- resets ---- */

static const struct {
    const char *offers, *slow;
} resets[] = {
    {"MQ REPLY_ACK RESET_DEVICE", "on RESET_DEVICE"},
    {"MQ REPLY_ACK RESET_DEVICE STATUS", "on RESET_DEVICE"},
    {"MQ REPLY_ACK STATUS", "on SET_STATUS value=0"},
    {"MQ RESET_DEVICE", "on RESET_DEVICE"},
    {"MQ STATUS", "on SET_STATUS value=0"},
    {"MQ REPLY_ACK", "on GET_VRING_BASE"},
    {"MQ REPLY_ACK RESET_DEVICE", "on GET_VRING_BASE"},
};

static void reset_is_confirmed(void **state)
{
    struct fixture *f = *state;
    for (size_t n = 0; n < LENGTH(resets); n++) {
        char features[100], rule[100];
        print_message("%s, %s\n", resets[n].offers, resets[n].slow);
        start_over(f);
        snprintf(features, sizeof features, "device protocol-features %s", resets[n].offers);
        snprintf(rule, sizeof rule, "%s: delay 300ms", resets[n].slow);
        start_mock(f, SCRIPT("-e", features, "-e", rule));
        bring_up(f, &quickly, 2);
        int64_t before = now_ms();
        assert_int_equal(reset(f, 0).quiesced, 0);
        while (now_ms() < before + 280) {
            assert_false(quiesced(f));
            assert_int_not_equal(virtio_status(f, 0), 0);
            drive(f, before + 280);
        }
        UNTIL(f, quiesced(f));
        assert_int_equal(virtio_status(f, 0), 0);
        assert_int_equal(SEEN(f, LOST), 0);
    }
}

/* Of a back-end that refuses the reset or does not answer nothing is known. */
static void reset_without_an_answer_is_not_done(void **state)
{
    struct fixture *f = *state;
    static const char *const faults[] = {"refuse 5, stop-reading 60s", "drop, stop-reading 60s",
                                         "code GET_FEATURES, stop-reading 60s",
                                         "short 3, stop-reading 60s"};
    for (size_t n = 0; n < 3 * LENGTH(faults); n++) {
        struct vuf_device_options options = quickly;
        char features[100], rule[100];
        size_t way = n / LENGTH(faults);
        const char *fault = faults[n % LENGTH(faults)];
        way = way == 1 ? 2 : way == 2 ? 5 : 0;
        if (way == 5 && strncmp(fault, "refuse", 6) == 0) {
            continue; /* GET_VRING_BASE has no way to refuse */
        }
        print_message("%s: %s\n", resets[way].slow, fault);
        start_over(f);
        options.timeout_ms = options.slow_timeout_ms = options.drain_timeout_ms = 200;
        snprintf(features, sizeof features, "device protocol-features %s", resets[way].offers);
        snprintf(rule, sizeof rule, "%s: %s", resets[way].slow, fault);
        start_mock(f, SCRIPT("-e", features, "-e", rule));
        bring_up(f, &options, 1);
        assert_int_equal(reset(f, 0).quiesced, 0);
        ALWAYS(f, 2 * WHILE_MS, !quiesced(f) && virtio_status(f, 0) != 0);
        assert_int_equal(SEEN(f, LOST), 1);
        backend_kill(&f->backend);
        UNTIL(f, quiesced(f));
        assert_int_equal(virtio_status(f, 0), 0);
    }
}

/* Events that another thread has left in the queue. */
static void reset_withdraws_needs_reset(void **state)
{
    struct fixture *f = *state;
    struct vuf_device_options options = quickly;
    options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK")));
    bring_up(f, &options, 1);
    backend_kill(&f->backend);
    assert_returns(VUF_E_STATE, vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(info_of(f).needs_reset, 1);
    assert_int_equal(virtio_status(f, STATUS_DRIVER_OK), STATUS_DRIVER_OK | STATUS_NEEDS_RESET);
    reset(f, 0);
    assert_int_equal(info_of(f).needs_reset, 0);
    assert_int_equal(virtio_status(f, 0), 0);
    place(f, 0, 0);
    assert_ok(vuf_device_set_features(f->device, VERSION_1));
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    ALWAYS(f, WHILE_MS, virtio_status(f, STATUS_DRIVER_OK) == STATUS_DRIVER_OK);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS("MQ REPLY_ACK"))), 0);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    for_a_while(f);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    assert_int_equal(SEEN(f, RECOVERED), 0);
    /* A loss after it is one. */
    place(f, USED, AVAILABLE);
    backend_kill(&f->backend);
    UNTIL(f, SEEN(f, NEEDS_RESET) == 1);
}

static void reset_withdraws_recovered(void **state)
{
    struct fixture *f = *state;
    struct vuf_device_options options = quickly;
    options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK")));
    bring_up(f, &options, 1);
    backend_kill(&f->backend);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS("MQ REPLY_ACK"))), 0);
    for (int64_t deadline = now_ms() + PEER_MS;
         info_of(f).connections < 2 && now_ms() < deadline;) {
        assert_ok(vuf_device_reconnect(f->device));
        vuf_device_wait(f->device, 50);
    }
    assert_int_equal(info_of(f).connections, 2);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    reset(f, 0);
    UNTIL(f, quiesced(f));
    for_a_while(f);
    assert_int_equal(SEEN(f, RECOVERED), 0);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
}

/* ---- a table of memory for running rings ---- */

static void running_rings_stop_for_a_table(void **state)
{
    struct fixture *f = *state;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK")));
    bring_up(f, &quickly, 2);
    add_second(f);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
    for (unsigned n = 0; n < 2; n++) {
        char stop[64], kick[64];
        snprintf(stop, sizeof stop, "GET_VRING_BASE index=%u num=0", n);
        snprintf(kick, sizeof kick, "SET_VRING_KICK need-reply index=%u no-fd=0 fds=1", n);
        ORDER(f, kick, stop, "SET_MEM_TABLE need-reply regions=2 fds=2", kick);
    }
    remove_second(f);
    UNTIL(f, quiesced(f));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    ORDER(f, "SET_MEM_TABLE need-reply regions=2 fds=2", "GET_VRING_BASE index=0 num=0",
          "SET_MEM_TABLE need-reply regions=1 fds=1", "SET_VRING_KICK need-reply index=0 no-fd=0 fds=1");
    assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0"), 2);
    for_a_while(f);
    assert_int_equal(SEEN(f, LOST), 0);
}

static void running_rings_go_on_for_a_slot(void **state)
{
    struct fixture *f = *state;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK CONFIGURE_MEM_SLOTS")));
    bring_up(f, &quickly, 2);
    add_second(f);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    remove_second(f);
    UNTIL(f, quiesced(f));
    assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0"), 0);
    assert_int_equal(requests(f, "GET_VRING_BASE index=1 num=0"), 0);
}

/* ---- requests in the in-flight buffer ---- */

enum { HELD = 2 }; /* writes of ring 1 to sectors 100 and 101, which are not completed */

struct inflight {
    int held[HELD]; /* slots of ring 1 */
};

/* The back-end that keeps requests over its death. It holds what it takes, or not. */
static int inflight_backend(struct fixture *f, bool again, const char *option)
{
    static char journal[100];
    const char *args[] = {"--queues", "2", "--journal", journal, option, NULL};
    if (again) {
        snprintf(journal, sizeof journal, "%.63s/journal", f->backend.dir);
        return backend_again_inflight(&f->backend, args);
    }
    if (backend_start_inflight(&f->backend, (const char *const[]){"--queues", "2", NULL}) != 0) {
        return -1;
    }
    backend_kill(&f->backend);
    return inflight_backend(f, true, option);
}

static unsigned executed(struct fixture *f, const char *type, unsigned sector)
{
    char path[100], line[200], wanted[64];
    unsigned count = 0;
    snprintf(path, sizeof path, "%.63s/journal", f->backend.dir);
    snprintf(wanted, sizeof wanted, "%s %u ", type, sector);
    FILE *journal = fopen(path, "re");
    while (journal != NULL && fgets(line, sizeof line, journal) != NULL) {
        count += strncmp(line, wanted, strlen(wanted)) == 0;
    }
    if (journal != NULL) {
        fclose(journal);
    }
    return count;
}

/* A write and a read of a ring, with the data compared, in memory at this address. */
static void assert_ring_works_at(struct fixture *f, unsigned ring, uint64_t addr)
{
    static uint8_t byte;
    const struct guest_memory *memory = addr >= SECOND_ADDR ? &f->second : &f->memory;
    uint8_t *data = guest_memory_at(memory, addr), wanted[SECTOR_SIZE];
    byte++;
    memset(wanted, byte, sizeof wanted);
    memset(data, byte, sizeof wanted);
    finish(f, ring, submit(f, ring, VIRTIO_BLK_T_OUT, 300 + ring, addr, SECTOR_SIZE));
    memset(data, 0, sizeof wanted);
    finish(f, ring, submit(f, ring, VIRTIO_BLK_T_IN, 300 + ring, addr, SECTOR_SIZE));
    assert_memory_equal(data, wanted, sizeof wanted);
}

static void assert_ring_works(struct fixture *f, unsigned ring)
{
    assert_ring_works_at(f, ring, DATA_ADDR + 0x8000 + ring * UINT64_C(0x1000));
}

static const struct vuf_device_options tracked = {
    QUICK,
    .num_rings = 2,
    .slow_delay_ms = 100,
    .fence_ms = 100,
    .out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET,
};

/* Rings 0 and 1 run on a back-end that holds HELD requests of ring 1. */
static void hold(struct fixture *f, struct inflight *inflight, unsigned held)
{
    start_over(f);
    assert_int_equal(inflight_backend(f, false, "--hold"), 0);
    bring_up(f, &tracked, 2);
    for (unsigned n = 0; n < held; n++) {
        inflight->held[n] = submit(f, 1, VIRTIO_BLK_T_OUT, 100 + n, DATA_ADDR + n * 0x1000, SECTOR_SIZE);
    }
    sleep_ms(50);
    assert_true(backend_idle(&f->backend, PEER_MS));
}

static void lose(struct fixture *f)
{
    backend_kill(&f->backend);
    UNTIL(f, SEEN(f, LOST) == 1);
}

/* A back-end that completes. */
static void regain(struct fixture *f)
{
    assert_int_equal(inflight_backend(f, true, NULL), 0);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
}

static void assert_held_ran_once(struct fixture *f)
{
    for (unsigned n = 0; n < HELD; n++) {
        assert_int_equal(executed(f, "out", 100 + n), 1);
    }
}

/* The held requests are completed, each once. */
static void assert_held_complete(struct fixture *f, const struct inflight *inflight)
{
    for (unsigned n = 0; n < HELD; n++) {
        finish(f, 1, inflight->held[n]);
    }
    assert_held_ran_once(f);
}

static void assert_held_never_ran(struct fixture *f)
{
    for (unsigned n = 0; n < HELD; n++) {
        assert_int_equal(executed(f, "out", 100 + n), 0);
    }
}

/* "stale": the guest has reset ring 1, whose requests it has withdrawn. zeroed: the
   descriptors of the last run are gone, too. */
static void stale_requests_are_refused(struct fixture *f, bool zeroed)
{
    struct inflight inflight;
    hold(f, &inflight, HELD);
    lose(f);
    assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, 0).quiesced, 1);
    uint8_t kept[0x5000];
    void *at = guest_memory_at(&f->memory, RING_ADDR(1));
    memcpy(kept, at, sizeof kept);
    renew_ring(f, 1, RING_NUM);
    if (!zeroed) {
        memcpy(at, kept, 4096);                      /* the descriptors */
        memcpy((uint8_t *)at + 3 * 4096, kept + 3 * 4096, 4096);
    }
    for (unsigned returned = 0; returned < 2; returned++) {
        assert_refused(-EBUSY, "ring 1 has unfinished requests",
                       start_ring(f, 1, VUF_RING_BASE_NEW));
        assert_has(vuf_last_error(), "ring 0");
        assert_has(vuf_last_error(), "VUF_RING_BASE_RESUME");
        if (!returned) {
            regain(f);
            for_a_while(f);
        }
    }
    assert_held_never_ran(f);
    assert_ring_works(f, 0);
    /* One of the remedies that the text names. */
    assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
    renew_ring(f, 0, RING_NUM);
    renew_ring(f, 1, RING_NUM);
    assert_ok(start_two(f, VUF_RING_BASE_NEW, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    assert_held_never_ran(f);
}

static void fresh_ring_gets_no_stale_requests(void **state)
{
    struct fixture *f = *state;
    stale_requests_are_refused(f, true);
    stale_requests_are_refused(f, false);
}

/* Another remedy: to let the ring complete them, then start it anew. */
static void resumed_ring_completes_its_requests(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    hold(f, &inflight, HELD);
    lose(f);
    assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, 0).bases_valid, 1);
    assert_refused(-EBUSY, "ring 1", start_ring(f, 1, VUF_RING_BASE_NEW));
    assert_ok(start_ring(f, 1, VUF_RING_BASE_RESUME));
    regain(f);
    assert_held_complete(f, &inflight);
    assert_ring_works(f, 0);
    assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
    renew_ring(f, 1, RING_NUM);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ring_works(f, 1);
    assert_held_ran_once(f);
}

/* A third one. */
static void reset_forgets_the_requests(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    hold(f, &inflight, HELD);
    lose(f);
    stop_ring(f, 1, VUF_STOP_DRAIN, 0);
    assert_refused(-EBUSY, "reset the device", start_ring(f, 1, VUF_RING_BASE_NEW));
    reset(f, 0);
    UNTIL(f, quiesced(f));
    assert_ok(vuf_device_set_features(f->device, VERSION_1));
    renew_ring(f, 0, RING_NUM);
    renew_ring(f, 1, RING_NUM);
    assert_ok(start_two(f, VUF_RING_BASE_NEW, VUF_RING_BASE_NEW));
    regain(f);
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    assert_held_never_ran(f);
}

static void drained_ring_starts_anew_beside_others(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    hold(f, &inflight, 0);
    lose(f);
    assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, 0).bases_valid, 1);
    renew_ring(f, 1, RING_NUM);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
    regain(f);
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    /* The same while the back-end is there. */
    assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
    renew_ring(f, 1, RING_NUM);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
}

static void one_call_mixes_new_and_resumed_rings(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    hold(f, &inflight, HELD);
    lose(f);
    assert_int_equal(stop_all(f, VUF_STOP_DRAIN, 0).bases_valid, 1);
    renew_ring(f, 0, RING_NUM);
    assert_ok(start_two(f, VUF_RING_BASE_NEW, VUF_RING_BASE_RESUME));
    regain(f);
    assert_held_complete(f, &inflight);
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    /* Ring 0 has nothing in the buffer, and ring 1 withdraws what it has: there is no need
       for this buffer. */
    hold(f, &inflight, HELD);
    lose(f);
    stop_all(f, VUF_STOP_DRAIN, 0);
    renew_ring(f, 1, RING_NUM);
    assert_ok(start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_NEW));
    regain(f);
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    assert_held_never_ran(f);
    /* Both have something in it. */
    hold(f, &inflight, HELD);
    int slot = submit(f, 0, VIRTIO_BLK_T_OUT, 200, DATA_ADDR, SECTOR_SIZE);
    sleep_ms(50);
    assert_true(backend_idle(&f->backend, PEER_MS));
    lose(f);
    stop_all(f, VUF_STOP_DRAIN, 0);
    assert_refused(-EBUSY, "ring 1 has unfinished requests",
                   start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_NEW));
    assert_has(vuf_last_error(), "ring 0");
    assert_refused(-EBUSY, "ring 0 has unfinished requests",
                   start_two(f, VUF_RING_BASE_NEW, VUF_RING_BASE_RESUME));
    assert_ok(start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_RESUME));
    regain(f);
    assert_held_complete(f, &inflight);
    finish(f, 0, slot);
    assert_int_equal(executed(f, "out", 200), 1);
}

static void rings_restarted_without_a_back_end_go_on(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    for (unsigned rounds = 1; rounds < 4; rounds++) {
        hold(f, &inflight, HELD);
        lose(f);
        for (unsigned n = 0; n < rounds; n++) {
            assert_int_equal(stop_all(f, VUF_STOP_DRAIN, 0).bases_valid, 1);
            assert_ok(start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_RESUME));
        }
        regain(f);
        assert_held_complete(f, &inflight);
        assert_ring_works(f, 0);
        assert_ring_works(f, 1);
    }
}

/* The back-end that holds requests does not answer GET_VRING_BASE, and dies then. */
static void ring_lost_between_its_stop_and_the_reply(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    uint32_t base;
    for (unsigned anew = 0; anew < 2; anew++) {
        hold(f, &inflight, HELD);
        assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, 100).quiesced, 0);
        assert_returns(VUF_E_STATE, vuf_device_get_vring_base(f->device, 1, &base));
        backend_kill(&f->backend);
        UNTIL(f, SEEN(f, LOST) == 1);
        UNTIL(f, quiesced(f));
        assert_refused(-EBUSY, "ring 1 has unfinished requests",
                       start_ring(f, 1, VUF_RING_BASE_NEW));
        if (!anew) {
            UNTIL(f, quiet_of(f).bases_valid == 1);
            assert_ok(vuf_device_get_vring_base(f->device, 1, &base));
            assert_int_equal(base, 0);
            assert_ok(start_ring(f, 1, VUF_RING_BASE_RESUME));
            regain(f);
            assert_held_complete(f, &inflight);
        } else {
            stop_ring(f, 0, VUF_STOP_DRAIN, 0);
            renew_ring(f, 0, RING_NUM);
            renew_ring(f, 1, RING_NUM);
            assert_ok(start_two(f, VUF_RING_BASE_NEW, VUF_RING_BASE_NEW));
            regain(f);
            assert_held_never_ran(f);
        }
        assert_ring_works(f, 0);
        assert_ring_works(f, 1);
    }
}

/* The ring is started again before its stop was answered. */
static void ring_lost_between_its_stop_and_its_restart(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    hold(f, &inflight, HELD);
    stop_ring(f, 1, VUF_STOP_DRAIN, 100);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_RESUME));
    for_a_while(f);
    lose(f);
    regain(f);
    assert_held_complete(f, &inflight);
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    /* Anew: the guest has withdrawn its requests, ring 0 goes on. */
    hold(f, &inflight, HELD);
    stop_ring(f, 1, VUF_STOP_DRAIN, 100);
    renew_ring(f, 1, RING_NUM);
    int rc = start_ring(f, 1, VUF_RING_BASE_NEW);
    lose(f);
    assert_int_equal(inflight_backend(f, true, NULL), 0);
    if (rc == 0) {
        UNTIL(f, SEEN(f, REFUSED) == 1);
        assert_has(TEXT(f, REFUSED), "ring 1 has unfinished requests");
    } else {
        assert_int_equal(rc, -EBUSY);
    }
    UNTIL(f, SEEN(f, CONNECTED) == 1);
    for_a_while(f);
    assert_held_never_ran(f);
    assert_ring_works(f, 0);
    assert_held_never_ran(f);
}

static int start_larger(struct fixture *f, uint32_t first)
{
    struct vuf_ring rings[] = {blk_ring_of_device(&f->rings[1], first),
                               blk_ring_of_device(&f->rings[0], VUF_RING_BASE_NEW)};
    return vuf_device_start(f->device, rings, 2);
}

/* The larger ring needs a larger buffer, and ring 1 has requests in this one. */
static void larger_ring_does_not_replace_the_buffer(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    hold(f, &inflight, HELD);
    lose(f);
    stop_ring(f, 0, VUF_STOP_DRAIN, 0);
    renew_ring(f, 0, 2 * RING_NUM);
    assert_refused(-EBUSY, "ring 1 has unfinished requests", start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_has(vuf_last_error(), "max_ring_size");
    assert_has(vuf_last_error(), "64 descriptors");
    stop_ring(f, 1, VUF_STOP_DRAIN, 0);
    assert_refused(-EBUSY, "ring 1 has unfinished requests", start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_refused(-EBUSY, "ring 1 has unfinished requests", start_larger(f, VUF_RING_BASE_RESUME));
    assert_ok(start_ring(f, 1, VUF_RING_BASE_RESUME));
    regain(f);
    assert_held_complete(f, &inflight);
    /* Now ring 1 runs, and is drained for a larger buffer. */
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ring_works(f, 0);
    assert_ring_works(f, 1);
    assert_held_ran_once(f);
}

/* Ring 1 has requests in the buffer while it is stopped for a larger one, and the back-end
   dies. */
static void loss_while_the_buffer_is_replaced(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    for (unsigned asked = 0; asked < 2; asked++) {
        start_over(f);
        assert_int_equal(inflight_backend(f, false, "--hold"), 0);
        bring_up(f, &tracked, 0);
        assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        for (unsigned n = 0; n < HELD; n++) {
            inflight.held[n] = submit(f, 1, VIRTIO_BLK_T_OUT, 100 + n, DATA_ADDR + n * 0x1000, SECTOR_SIZE);
        }
        sleep_ms(50);
        assert_true(backend_idle(&f->backend, PEER_MS));
        renew_ring(f, 0, 2 * RING_NUM);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
        if (asked) {
            for_a_while(f);
        }
        lose(f);
        assert_int_equal(inflight_backend(f, true, NULL), 0);
        assert_held_complete(f, &inflight);
        UNTIL(f, SEEN(f, REFUSED) == 1);
        assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].ring, 0);
        assert_has(TEXT(f, REFUSED), "ring 1 has unfinished requests");
        assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
        assert_ok(start_larger(f, VUF_RING_BASE_RESUME));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        assert_ring_works(f, 0);
        assert_ring_works(f, 1);
        assert_held_ran_once(f);
    }
}

static void back_end_without_a_buffer_is_not_used(void **state)
{
    struct fixture *f = *state;
    struct inflight inflight;
    uint32_t base;
    /* Running rings. */
    hold(f, &inflight, HELD);
    lose(f);
    forget_events(f);
    assert_int_equal(inflight_backend(f, true, "--no-inflight"), 0);
    UNTIL(f, SEEN(f, LOST) == 1);
    assert_has(TEXT(f, LOST), "INFLIGHT_SHMFD");
    for_a_while(f);
    assert_int_equal(SEEN(f, RECOVERED), 0);
    assert_held_never_ran(f);
    backend_kill(&f->backend);
    regain(f);
    assert_held_complete(f, &inflight);
    assert_ring_works(f, 0);
    /* A stopped ring, while nothing else runs. */
    hold(f, &inflight, HELD);
    lose(f);
    assert_int_equal(stop_all(f, VUF_STOP_DRAIN, 0).bases_valid, 1);
    assert_ok(vuf_device_get_vring_base(f->device, 1, &base));
    forget_events(f);
    assert_int_equal(inflight_backend(f, true, "--no-inflight"), 0);
    UNTIL(f, SEEN(f, CONNECTED) == 1);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_refused(VUF_E_STATE, "INFLIGHT_SHMFD", vuf_device_get_vring_base(f->device, 1, &base));
    assert_refused(VUF_E_STATE, "INFLIGHT_SHMFD", start_ring(f, 1, VUF_RING_BASE_RESUME));
    assert_refused(VUF_E_STATE, "INFLIGHT_SHMFD",
                   start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_RESUME));
    assert_int_equal(quiet_of(f).bases_valid, 0);
    /* Ring 0 has nothing in the buffer. */
    assert_ok(vuf_device_get_vring_base(f->device, 0, &base));
    assert_ok(start_ring(f, 0, VUF_RING_BASE_RESUME));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ring_works(f, 0);
    assert_held_never_ran(f);
    assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
    /* And one with it. */
    backend_kill(&f->backend);
    assert_int_equal(inflight_backend(f, true, NULL), 0);
    UNTIL(f, SEEN(f, CONNECTED) == 2);
    assert_ok(vuf_device_get_vring_base(f->device, 1, &base));
    assert_ok(start_ring(f, 1, VUF_RING_BASE_RESUME));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_held_complete(f, &inflight);
}

/* A ring of 128 descriptors is started, and the back-end dies before the other ring has
   moved to a larger buffer. */
static void larger_ring_and_loss(struct fixture *f, bool resumed, bool unfinished)
{
    static const char *const kick = "SET_VRING_KICK need-reply index=0 no-fd=0 fds=1";
    const char *const *stuck = SCRIPT(OFFERS("MQ REPLY_ACK INFLIGHT_SHMFD"), "-e",
                                      "on GET_VRING_BASE: never");
    start_over(f);
    start_mock(f, stuck);
    bring_up(f, &tracked, 1);
    place(f, USED, unfinished ? AVAILABLE : USED);
    if (resumed) {
        backend_kill(&f->backend);
        UNTIL(f, SEEN(f, LOST) == 1);
        assert_int_equal(backend_again_mock(&f->backend, stuck), 0);
        UNTIL(f, SEEN(f, RECOVERED) == 1);
    }
    renew_ring(f, 1, 2 * RING_NUM);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
    for_a_while(f);
    assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0"), 1);
    forget_events(f);
    lose(f);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_LOST].recovery, VUF_RECOVERY_INFLIGHT);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS("MQ REPLY_ACK INFLIGHT_SHMFD"),
                                                            "-e", "device base 0=3")), 0);
    UNTIL(f, SEEN(f, RECOVERED) == 1);
    for_a_while(f);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    ORDER(f, "SET_VRING_BASE need-reply index=0 num=3", kick);
    if (!unfinished) {
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        ORDER(f, "GET_INFLIGHT_FD", "SET_VRING_KICK need-reply index=1 no-fd=0 fds=1");
        return;
    }
    assert_int_equal(requests(f, "GET_INFLIGHT_FD"), 0);
    ORDER(f, "SET_INFLIGHT_FD", kick);
    assert_int_equal(SEEN(f, REFUSED), 1);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_REFUSED].ring, 1);
    assert_has(TEXT(f, REFUSED), "ring 0 has unfinished requests");
    assert_returns(-EBUSY, vuf_device_wait(f->device, PEER_MS));
    /* What the text names. */
    place(f, USED, USED);
    assert_int_equal(stop_ring(f, 0, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
    assert_ok(start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(SEEN(f, LOST), 1);
}

static void buffer_with_requests_survives_a_loss(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < 4; n++) {
        larger_ring_and_loss(f, n & 1, n >> 1);
    }
}

/* "skip": what a stop has skipped is in the buffer. */
static void skipped_requests_keep_their_buffer(void **state)
{
    struct fixture *f = *state;
    struct vuf_device_options options = quickly;
    options.num_rings = 0; /* those that are started */
    start_mock(f, SCRIPT(SKIPS));
    bring_up(f, &options, 1);
    place(f, 0, AVAILABLE);
    assert_int_equal(stop_ring(f, 0, VUF_STOP_SKIP_DRAIN, PEER_MS).quiesced, 1);
    assert_int_equal(requests(f, "GET_VRING_BASE_SKIP_DRAIN index=0 num=0"), 1);
    assert_int_equal(quiet_of(f).bases_valid, 1);
    renew_ring(f, 1, 2 * RING_NUM);
    assert_refused(-EBUSY, "ring 0", start_two(f, VUF_RING_BASE_RESUME, VUF_RING_BASE_NEW));
    assert_refused(-EBUSY, "ring 0", start_ring(f, 1, VUF_RING_BASE_NEW));
    assert_int_equal(requests(f, "GET_INFLIGHT_FD"), 1);
    /* Resumed: the same buffer. Anew, alone: another one. */
    assert_ok(start_ring(f, 0, VUF_RING_BASE_RESUME));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(requests(f, "GET_INFLIGHT_FD"), 1);
    assert_int_equal(stop_ring(f, 0, VUF_STOP_SKIP_DRAIN, PEER_MS).quiesced, 1);
    place(f, 0, 0);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(requests(f, "GET_INFLIGHT_FD"), 2);
    assert_int_equal(requests(f, "SET_INFLIGHT_FD"), 2);
}

static void start_sized(struct fixture *f, uint32_t size)
{
    struct vuf_ring ring = blk_ring_of_device(&f->rings[1], VUF_RING_BASE_NEW);
    ring.size = size;
    ring.descriptor = DATA_ADDR;
    ring.available = DATA_ADDR + 0x80000;
    ring.used = DATA_ADDR + 0xa0000;
    ring.used_index = ring.avail_index = NULL;
    assert_ok(vuf_device_start(f->device, &ring, 1));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
}

/* VIRTIO_F_RING_RESET, `ethtool -G`: one ring becomes smaller and larger. */
static void ring_is_reset_to_another_size(void **state)
{
    struct fixture *f = *state;
    static const uint32_t sizes[] = {32, 64, 256, 16384, 64};
    static const struct {
        const char *offers;
        uint32_t max_ring_size;
    } ways[] = {
        {"MQ REPLY_ACK", 0},
        {"MQ REPLY_ACK INFLIGHT_SHMFD", 0},
        {"MQ REPLY_ACK INFLIGHT_SHMFD", 16384},
        {"MQ REPLY_ACK INFLIGHT_SHMFD GET_VRING_BASE_INFLIGHT GET_VRING_BASE_SKIP_DRAIN", 0},
    };
    for (size_t way = 0; way < LENGTH(ways); way++) {
        struct vuf_device_options options = quickly;
        char features[120];
        start_over(f);
        options.max_ring_size = ways[way].max_ring_size;
        snprintf(features, sizeof features, "device protocol-features %s", ways[way].offers);
        start_mock(f, SCRIPT("-e", features));
        bring_up(f, &options, 2);
        for (size_t n = 0; n < LENGTH(sizes); n++) {
            assert_int_equal(stop_ring(f, 1, VUF_STOP_DRAIN, PEER_MS).quiesced, 1);
            start_sized(f, sizes[n]);
            assert_int_equal(requests(f, "SET_VRING_ENABLE need-reply index=1 num=1"), n + 2);
        }
        assert_int_equal(SEEN(f, LOST), 0);
        if (ways[way].max_ring_size != 0) {
            assert_int_equal(requests(f, "GET_INFLIGHT_FD"), 1);
            assert_int_equal(requests(f, "GET_VRING_BASE index=0 num=0"), 0);
        }
    }
}

/* ---- real back-ends ---- */

static void hot_plug_with_data(struct fixture *f, enum kind kind, bool slots)
{
    struct vuf_device_options options = quickly;
    start_over(f);
    options.protocol_features = VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES;
    if (!slots) {
        options.protocol_features &= ~BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
    }
    assert_int_equal(kind == EMBEDDED ? backend_start_embedded(&f->backend, 2, false)
                     : kind == QEMU   ? backend_start_qemu(&f->backend, 2)
                                      : inflight_backend(f, false, NULL),
                     0);
    bring_up(f, &options, 2);
    for (unsigned round = 0; round < 3; round++) {
        assert_ring_works(f, 0);
        int slot = kind == QEMU ? -1 : submit(f, 1, VIRTIO_BLK_T_OUT, 500, DATA_ADDR, SECTOR_SIZE);
        add_second(f);
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        assert_int_equal(memory_state(f), VUF_MEMORY_APPLIED);
        if (slot >= 0) {
            finish(f, 1, slot);
        }
        assert_ring_works_at(f, 0, SECOND_ADDR + 0x1000);
        assert_ring_works_at(f, 1, SECOND_ADDR + 0x2000);
        remove_second(f);
        UNTIL(f, quiesced(f));
        assert_ring_works(f, 1);
    }
    assert_int_equal(SEEN(f, LOST), 0);
    assert_int_equal(info_of(f).connections, 1);
}

static void running_rings_use_new_memory(void **state)
{
    struct fixture *f = *state;
    for (unsigned slots = 0; slots < 2; slots++) {
        hot_plug_with_data(f, EMBEDDED, slots);
        hot_plug_with_data(f, INFLIGHT, slots);
        if (qemu_available()) {
            hot_plug_with_data(f, QEMU, slots);
        }
    }
}

/* qemu-storage-daemon with a disk that does so many requests a second. */
static void start_slow_disk(struct fixture *f, unsigned iops)
{
    char group[100], file[200], export[300];
    assert_int_equal(backend_prepare(&f->backend), 0);
    int fd = open(f->backend.disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_return_code(ftruncate(fd, DISK_SIZE), errno);
    close(fd);
    snprintf(group, sizeof group, "throttle-group,id=t,limits.iops-total=%u", iops);
    snprintf(file, sizeof file, "driver=file,node-name=f0,filename=%s", f->backend.disk);
    snprintf(export, sizeof export,
             "type=vhost-user-blk,id=e0,node-name=t0,writable=on,addr.type=unix,addr.path=%s",
             f->backend.socket);
    const char *args[] = {"qemu-storage-daemon", "--object", group, "--blockdev", file,
                          "--blockdev", "driver=throttle,node-name=t0,throttle-group=t,file=f0",
                          "--export", export, NULL};
    assert_int_equal(backend_start_program(&f->backend, args), 0);
}

static uint16_t used_index(struct fixture *f)
{
    struct vuf_ring ring = blk_ring_of_device(&f->rings[0], VUF_RING_BASE_NEW);
    return *(const volatile uint16_t *)ring.used_index;
}

/* How many requests are unfinished when the stop is over; -1 if it drained. */
static int stop_in_the_middle(struct fixture *f, unsigned iops, uint32_t mode)
{
    enum { READS = 8 };
    struct vuf_device_options options = quickly;
    start_over(f);
    start_slow_disk(f, iops);
    options.num_rings = 1;
    options.fence_ms = 1000;
    bring_up(f, &options, 1);
    for (unsigned n = 0; n < READS; n++) {
        submit(f, 0, VIRTIO_BLK_T_IN, 8 * n, DATA_ADDR + n * UINT64_C(0x1000), SECTOR_SIZE);
    }
    sleep_ms(20);
    uint32_t ring = 0, base;
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_stop(f->device, &ring, 1, mode, 3000, &quiet));
    for (int64_t deadline = now_ms() + PEER_MS; !quiesced(f);) {
        assert_int_equal(quiet_of(f).bases_valid, 0);
        assert_true(drive(f, deadline));
    }
    uint16_t used = used_index(f);
    while (take(f).kind != VUF_DEVICE_EVENT_NONE) {
    }
    if (vuf_device_get_vring_base(f->device, 0, &base) == 0 && SEEN(f, LOST) == 0) {
        assert_int_equal(base, used);
    }
    ALWAYS(f, 3 * WHILE_MS, used_index(f) == used);
    if (SEEN(f, LOST) == 0) {
        return -1;
    }
    return (int)f->last[VUF_DEVICE_EVENT_LOST].value;
}

static void ring_that_is_not_drained_is_not_quiet(void **state)
{
    struct fixture *f = *state;
    if (!qemu_available()) {
        skip();
    }
    assert_int_equal(stop_in_the_middle(f, 10000, VUF_STOP_DRAIN), -1);
    int unfinished = stop_in_the_middle(f, 2, VUF_STOP_DRAIN);
    assert_in_range(unfinished, 1, 8);
    assert_int_equal(f->last[VUF_DEVICE_EVENT_LOST].has_value, 1);
    char text[40];
    snprintf(text, sizeof text, "%d requests unfinished", unfinished);
    assert_has(TEXT(f, LOST), text);
    assert_has(TEXT(f, LOST), "ring 0");
    stop_in_the_middle(f, 2, VUF_STOP_ABANDON);
}

/* ---- what the back-end has set on its channel ---- */

struct resources {
    int pages, objects;
};

static int on_notifier(void *user, uint32_t ring, int fd, uint64_t offset, uint64_t size)
{
    struct resources *there = user;
    (void)ring;
    (void)offset;
    (void)size;
    there->pages += fd >= 0 ? 1 : -1;
    if (fd >= 0) {
        close(fd);
    }
    return 0;
}

static void on_added(void *user, const uint8_t *uuid)
{
    (void)uuid;
    ((struct resources *)user)->objects++;
}

static void on_removed(void *user, const uint8_t *uuid)
{
    (void)uuid;
    ((struct resources *)user)->objects--;
}

static void lost_back_end_leaves_no_page_and_no_object(void **state)
{
    struct fixture *f = *state;
    struct resources there = {0, 0};
    const struct vuf_backend_ops ops = {
        .size = sizeof ops,
        .host_notifier = on_notifier,
        .shared_object_added = on_added,
        .shared_object_removed = on_removed,
    };
    struct vuf_device_options options = quickly;
    options.backend_ops = &ops;
    options.user = &there;
    start_mock(f, SCRIPT(OFFERS("MQ REPLY_ACK BACKEND_REQ BACKEND_SEND_FD HOST_NOTIFIER "
                                "SHARED_OBJECT RESET_DEVICE"),
                         "-e", "expect SET_VRING_ENABLE index=0 num=1",
                         "-e", "send VRING_HOST_NOTIFIER_MSG index=0 area-size=4096 need-reply",
                         "-e", "send SHARED_OBJECT_ADD need-reply "
                               "uuid=00112233-4455-6677-8899-aabbccddeeff",
                         "-e", "expect SET_VRING_ENABLE index=0 num=1",
                         "-e", "send VRING_HOST_NOTIFIER_MSG index=0 area-size=4096 need-reply"));
    open_device(f, &options);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    UNTIL(f, there.pages == 1 && there.objects == 1);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    reset(f, 0);
    UNTIL(f, there.pages == 0 && there.objects == 0);
    negotiate(f);
    renew_ring(f, 0, RING_NUM);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    UNTIL(f, there.pages == 1);
    backend_kill(&f->backend);
    UNTIL(f, SEEN(f, LOST) == 1 && there.pages == 0);
    assert_int_equal(there.objects, 0);
}

#define PROMISE(function) cmocka_unit_test_setup_teardown(function, set_up_guest, tear_down_guest)

int main(int argc, char *argv[])
{
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        PROMISE(region_that_is_not_released_stays_accessible),
        PROMISE(region_is_released_with_the_connection),
        PROMISE(reset_does_not_release_memory),
        PROMISE(last_region_is_removed),
        PROMISE(last_region_is_removed_from_a_group),
        PROMISE(refused_region_of_a_slot),
        PROMISE(refused_table_leaves_the_one_before),
        PROMISE(refused_region_is_asked_of_two_back_ends),
        PROMISE(refused_ring_is_reported),
        PROMISE(refused_ring_is_not_repeated),
        PROMISE(refusal_that_ends_the_connection_is_not_repeated),
        PROMISE(refused_only_ring_needs_no_reset),
        PROMISE(refused_call_descriptor_is_reported),
        PROMISE(drain_is_not_skipped),
        PROMISE(each_stop_has_its_own_mode),
        PROMISE(base_of_a_lost_ring_follows_the_policy),
        PROMISE(base_of_a_stop_that_is_cut_off_follows_the_policy),
        PROMISE(base_after_a_return_follows_the_policy),
        PROMISE(drained_ring_has_a_base),
        PROMISE(reset_is_confirmed),
        PROMISE(reset_without_an_answer_is_not_done),
        PROMISE(reset_withdraws_needs_reset),
        PROMISE(reset_withdraws_recovered),
        PROMISE(lost_back_end_leaves_no_page_and_no_object),
        PROMISE(running_rings_stop_for_a_table),
        PROMISE(running_rings_go_on_for_a_slot),
        PROMISE(fresh_ring_gets_no_stale_requests),
        PROMISE(resumed_ring_completes_its_requests),
        PROMISE(reset_forgets_the_requests),
        PROMISE(drained_ring_starts_anew_beside_others),
        PROMISE(one_call_mixes_new_and_resumed_rings),
        PROMISE(rings_restarted_without_a_back_end_go_on),
        PROMISE(ring_lost_between_its_stop_and_the_reply),
        PROMISE(ring_lost_between_its_stop_and_its_restart),
        PROMISE(larger_ring_does_not_replace_the_buffer),
        PROMISE(loss_while_the_buffer_is_replaced),
        PROMISE(back_end_without_a_buffer_is_not_used),
        PROMISE(buffer_with_requests_survives_a_loss),
        PROMISE(skipped_requests_keep_their_buffer),
        PROMISE(ring_is_reset_to_another_size),
        PROMISE(running_rings_use_new_memory),
        PROMISE(ring_that_is_not_drained_is_not_quiet),
    };
    return cmocka_run_group_tests_name("test_device_promises", tests, default_signals, NULL);
}
