/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Every call on a device in every state that one can be in, and what it returns:
 * one table, held against the header by whoever reads it. Each call is made on a
 * device of its own, so that none depends on the one before.
 */
#include "rig.h"
#include "virtio_blk.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RING_NUM = 16, SHORT_MS = 20, CONFIG_SIZE = 8 };

#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x10000)
#define SECOND_ADDR UINT64_C(0x80000000)

/* Memory is stated in all of them, features and a ring from CONNECTED on. */
enum state {
    FRESH,       /* nothing was done yet */
    RETRYING,    /* nobody listens */
    LISTENING,   /* nobody connects */
    NO_FD,       /* nobody has supplied a socket */
    NEGOTIATING, /* the back-end has not answered yet */
    REFUSED,     /* it lacks what is required, but has told what it offers */
    CONNECTED,   /* no ring is started */
    RUNNING,     /* one is */
    STOPPED,     /* and is no more */
    FENCING,     /* it was given up, and has not closed its connection */
    UNFENCED,    /* nor did it in time */
    LOST,        /* it is gone, and rings go on with the next one */
    NEEDS_RESET, /* it is gone, and they do not */
    ENDED,       /* freed from inside of a function that the library called */
    STATES,
};

static const char *const names[STATES] = {
    "fresh",   "retrying", "listening", "without a socket", "negotiating", "refused", "connected",
    "running", "stopped",  "fencing",   "unfenced",         "lost",        "needs reset", "ended",
};

struct world {
    enum state state;
    struct backend mock;
    char path[110];
    struct vuf_device *device;
    struct vuf_memory_group *group;
    int end; /* the other end of a socket */
    struct guest_memory memory, second;
    struct blk_ring ring;
};

/* ---- bringing it there ---- */

static void check(int rc, const char *call)
{
    if (rc != 0) {
        print_error("%s: %d (%s)\n", call, rc, vuf_last_error());
        fail();
    }
}
#define OK(call) check((call), #call)

static struct vuf_device_event take(struct world *w)
{
    struct vuf_device_event event = {.size = sizeof event};
    OK(vuf_device_process(w->device, &event));
    return event;
}

static void until(struct world *w, uint32_t kind)
{
    struct pollfd item = {.fd = vuf_device_get_fd(w->device), .events = POLLIN};
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline;) {
        struct vuf_device_event event = take(w);
        if (event.kind == kind) {
            return;
        }
        if (event.kind == VUF_DEVICE_EVENT_NONE) {
            poll(&item, 1, (int)(deadline - now_ms()));
        }
    }
    print_error("%s did not come\n", vuf_device_event_name(kind));
    fail();
}

static void freeing(void *user, const struct vuf_trace_record *record)
{
    struct world *w = user;
    (void)record;
    vuf_device_free(w->device);
}

static struct vuf_ring the_ring(struct world *w, uint32_t base_mode)
{
    struct vuf_ring ring = blk_ring_of_device(&w->ring, base_mode);
    if (w->state == NEEDS_RESET) {
        ring.used_index = ring.avail_index = NULL;
    }
    return ring;
}

static struct vuf_mem_region region_of(const struct guest_memory *memory)
{
    return guest_memory_region(memory);
}

/* The back-end breaks the protocol, and does not notice that it was given up. */
static void give_up(struct world *w)
{
    OK(vuf_device_set_call(w->device, 0, w->ring.call_fd));
    until(w, VUF_DEVICE_EVENT_LOST);
}

static void bring_up(struct world *w, struct vuf_device_options *options)
{
    const char *const script[] = {"-e", "device config-size 8", "-e",
                                  "on SET_VRING_CALL nth=2: code GET_FEATURES, stop-reading 60s", NULL};
    assert_int_equal(backend_start_mock(&w->mock, script), 0);
    OK(vuf_device_open(w->mock.socket, options, &w->device));
    if (w->state == REFUSED) {
        until(w, VUF_DEVICE_EVENT_LOST);
        return;
    }
    until(w, VUF_DEVICE_EVENT_CONNECTED);
    OK(vuf_device_set_features(w->device, BIT(VIRTIO_F_VERSION_1)));
    if (w->state == ENDED) {
        OK(vuf_device_set_trace(w->device, freeing, w));
        struct vuf_device_event event = {.size = sizeof event};
        while (vuf_device_process(w->device, &event) == 0) {
        }
        return;
    }
    if (w->state > CONNECTED) {
        struct vuf_ring ring = the_ring(w, VUF_RING_BASE_NEW);
        struct vuf_mem_region region = region_of(&w->memory);
        OK(vuf_device_set_memory(w->device, &region, 1, 0));
        OK(vuf_device_start(w->device, &ring, 1));
    }
    OK(vuf_device_wait(w->device, PEER_MS));
    while (take(w).kind != VUF_DEVICE_EVENT_NONE) {
    }
}

static void bring_to(struct world *w)
{
    struct vuf_device_options options = {
        .size = sizeof options,
        .num_rings = 2,
        .config_size = CONFIG_SIZE,
        .first_delay_ms = PEER_MS, /* it stays as it is */
        .slow_delay_ms = PEER_MS,
        .required_features = w->state == REFUSED ? BIT(20) : 0,
        .fence_ms = w->state == UNFENCED ? 1 : PEER_MS,
        .out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED,
    };
    int ends[2];
    struct vuf_quiet quiet = {.size = sizeof quiet};
    switch (w->state) {
    case FRESH:
    case RETRYING:
        OK(vuf_device_open("/nowhere/at/all", &options, &w->device));
        if (w->state == RETRYING) {
            until(w, VUF_DEVICE_EVENT_RETRYING);
        }
        break;
    case LISTENING:
        assert_int_equal(backend_prepare(&w->mock), 0);
        OK(vuf_device_listen(w->mock.socket, 0600, &options, &w->device));
        break;
    case NO_FD:
        OK(vuf_device_open_fd(-1, &options, &w->device));
        until(w, VUF_DEVICE_EVENT_NEEDS_FD);
        break;
    case NEGOTIATING:
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
        w->end = ends[1];
        OK(vuf_device_open_fd(ends[0], &options, &w->device));
        break;
    default:
        bring_up(w, &options);
    }
    if (w->state < CONNECTED) {
        struct vuf_mem_region region = region_of(&w->memory);
        OK(vuf_device_set_memory(w->device, &region, 1, 0));
        if (w->state != FRESH) {
            take(w);
        }
    }
    switch (w->state) {
    case STOPPED:
        OK(vuf_device_stop(w->device, NULL, 0, VUF_STOP_DRAIN, PEER_MS, &quiet));
        assert_int_equal(quiet.quiesced, 1);
        break;
    case FENCING:
        give_up(w);
        break;
    case UNFENCED:
        give_up(w);
        until(w, VUF_DEVICE_EVENT_UNFENCED);
        break;
    case LOST:
        backend_kill(&w->mock);
        until(w, VUF_DEVICE_EVENT_LOST);
        break;
    case NEEDS_RESET:
        backend_kill(&w->mock);
        until(w, VUF_DEVICE_EVENT_NEEDS_RESET);
        break;
    default:
        break;
    }
}

/* ---- the calls ---- */

static int get_fd(struct world *w)
{
    int fd = vuf_device_get_fd(w->device);
    return fd > 0 ? 0 : fd;
}

static int process(struct world *w)
{
    struct vuf_device_event event = {.size = sizeof event};
    return vuf_device_process(w->device, &event);
}

static int wait_shortly(struct world *w)
{
    return vuf_device_wait(w->device, SHORT_MS);
}

static int wait_connected_shortly(struct world *w)
{
    return vuf_device_wait_connected(w->device, SHORT_MS);
}

static int get_info(struct world *w)
{
    struct vuf_device_info info = {.size = sizeof info};
    return vuf_device_get_info(w->device, &info);
}

/* One digit each: connected, settled, needs_reset, unfenced. */
static int what_info_says(struct world *w)
{
    struct vuf_device_info info = {.size = sizeof info};
    int rc = vuf_device_get_info(w->device, &info);
    return rc != 0 ? rc
                   : (int)(info.connected * 1000 + info.settled * 100 + info.needs_reset * 10 +
                           info.unfenced);
}

static int get_counters(struct world *w)
{
    struct vuf_counters counters = {.size = sizeof counters};
    return vuf_device_get_counters(w->device, &counters);
}

static int set_trace(struct world *w)
{
    return vuf_device_set_trace(w->device, NULL, NULL);
}

static int reconnect(struct world *w)
{
    return vuf_device_reconnect(w->device);
}

static int set_fd(struct world *w)
{
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    int rc = vuf_device_set_fd(w->device, ends[0]);
    close(ends[1]);
    if (rc != 0) {
        close(ends[0]);
    }
    return rc;
}

static int get_quiet(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    return vuf_device_get_quiet(w->device, &quiet);
}

static int set_features(struct world *w)
{
    return vuf_device_set_features(w->device, BIT(VIRTIO_F_VERSION_1));
}

static int set_features_not_offered(struct world *w)
{
    return vuf_device_set_features(w->device, BIT(21));
}

static int read_config(struct world *w)
{
    uint8_t bytes[CONFIG_SIZE];
    return vuf_device_read_config(w->device, 0, bytes, sizeof bytes, NULL);
}

static int overlay_and_read_config(struct world *w)
{
    const uint8_t own[CONFIG_SIZE] = {0};
    int rc = vuf_device_overlay_config(w->device, 0, own, sizeof own);
    return rc != 0 ? rc : read_config(w);
}

static int write_config(struct world *w)
{
    const uint8_t byte = 0;
    return vuf_device_write_config(w->device, 0, &byte, 1);
}

static int set_memory(struct world *w)
{
    struct vuf_mem_region region = region_of(&w->memory);
    return vuf_device_set_memory(w->device, &region, 1, 0);
}

static int set_other_memory(struct world *w)
{
    struct vuf_mem_region region = region_of(&w->second);
    return vuf_device_set_memory(w->device, &region, 1, VUF_MEMORY_ALLOW_GAP);
}

static int add_memory(struct world *w)
{
    struct vuf_mem_region region = region_of(&w->second);
    return vuf_device_add_memory(w->device, &region);
}

static int add_memory_twice(struct world *w)
{
    int rc = add_memory(w);
    return rc != 0 ? rc : add_memory(w);
}

static int remove_memory(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    return vuf_device_remove_memory(w->device, GUEST_ADDR, GUEST_SIZE, &quiet);
}

static int remove_memory_not_there(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    return vuf_device_remove_memory(w->device, SECOND_ADDR, GUEST_SIZE, &quiet);
}

static int add_and_remove_memory(struct world *w)
{
    int rc = add_memory(w);
    return rc != 0 ? rc : remove_memory_not_there(w);
}

static int memory_fits(struct world *w)
{
    struct vuf_mem_region region = region_of(&w->second);
    return vuf_device_memory_fits(w->device, &region, 1);
}

static int what_memory_state_says(struct world *w)
{
    uint32_t state;
    int rc = vuf_device_get_memory_state(w->device, &state);
    return rc != 0 ? rc : (int)state;
}

static int join(struct world *w)
{
    return vuf_memory_group_join(w->group, w->device);
}

static int leave(struct world *w)
{
    return vuf_memory_group_leave(w->group, w->device);
}

static int post_iotlb(struct world *w)
{
    const struct vuf_iotlb iotlb = {.size = PAGE, .type = VUF_IOTLB_INVALIDATE};
    return vuf_device_post_iotlb(w->device, &iotlb);
}

static int start(struct world *w)
{
    struct vuf_ring ring = the_ring(w, VUF_RING_BASE_NEW);
    struct vuf_mem_region region = region_of(&w->memory);
    if (w->state == CONNECTED) {
        OK(vuf_device_set_memory(w->device, &region, 1, 0));
    }
    return vuf_device_start(w->device, &ring, 1);
}

static int start_none(struct world *w)
{
    return vuf_device_start(w->device, NULL, 0);
}

static int resume(struct world *w)
{
    struct vuf_ring ring = the_ring(w, VUF_RING_BASE_RESUME);
    struct vuf_mem_region region = region_of(&w->memory);
    if (w->state == CONNECTED) {
        OK(vuf_device_set_memory(w->device, &region, 1, 0));
    }
    return vuf_device_start(w->device, &ring, 1);
}

static int set_call(struct world *w)
{
    return vuf_device_set_call(w->device, 0, w->ring.call_fd);
}

static int get_vring_base(struct world *w)
{
    uint32_t base;
    return vuf_device_get_vring_base(w->device, 0, &base);
}

/* Where it cannot be waited for, not for long. */
static uint32_t as_long_as_it_takes(const struct world *w)
{
    return w->state == FENCING || w->state == UNFENCED ? SHORT_MS : PEER_MS;
}

/* One digit each: quiesced, bases_valid. */
static int said(int rc, const struct vuf_quiet *quiet)
{
    return rc != 0 ? rc : (int)(quiet->quiesced * 10 + quiet->bases_valid);
}

static int stop(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    return said(vuf_device_stop(w->device, NULL, 0, VUF_STOP_DRAIN, as_long_as_it_takes(w), &quiet),
                &quiet);
}

static int stop_without_waiting(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const uint32_t one = 1; /* which was never started */
    return vuf_device_stop(w->device, &one, 1, VUF_STOP_SKIP_DRAIN, 0, &quiet);
}

static int abandon(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    return vuf_device_stop(w->device, NULL, 0, VUF_STOP_ABANDON, 0, &quiet);
}

static int reset(struct world *w)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    return said(vuf_device_reset(w->device, as_long_as_it_takes(w), &quiet), &quiet);
}

static int reset_and_start(struct world *w)
{
    int rc = reset(w);
    return rc < 0 ? rc : start(w);
}

/* ---- the table ---- */

#define B -EBUSY
#define C -ECANCELED
#define D VUF_E_DISCONNECTED
#define I -EINVAL
#define N VUF_E_NOT_NEGOTIATED
#define S VUF_E_STATE
#define T -ETIMEDOUT
/* Also what a call has to tell. */
#define AB VUF_MEMORY_ABSENT
#define AP VUF_MEMORY_APPLIED
#define PE VUF_MEMORY_PENDING
#define UN VUF_MEMORY_UNCONFIRMED

static const struct row {
    int (*call)(struct world *w);
    const char *name;
    int want[STATES];
} rows[] = {
#define ROW(call, ...) {call, #call, {__VA_ARGS__}}
    /* clang-format off */
    /*                            frs ret lis nfd neg ref con run sto fen unf los res end */
    ROW(get_fd,                     0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(process,                    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(wait_shortly,               T,  T,  T,  T,  T,  T,  0,  0,  0,  T,  T,  T,  S,  C),
    ROW(wait_connected_shortly,     T,  T,  T,  T,  T,  N,  0,  0,  0,  T,  T,  T,  T,  C),
    ROW(get_info,                   0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(what_info_says,             0,  0,  0,  0,  0,  0, 1100, 1100, 1100, 0,  1,  0, 10,  C),
    ROW(get_counters,               D,  D,  D,  D,  0,  D,  0,  0,  0,  D,  D,  D,  D,  C),
    ROW(set_trace,                  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(reconnect,                  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(set_fd,                     S,  S,  S,  0,  0,  S,  S,  S,  S,  S,  S,  S,  S,  C),
    ROW(get_quiet,                  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(set_features,               S,  S,  S,  S,  S,  0,  0,  B,  0,  B,  B,  B,  B,  C),
    ROW(set_features_not_offered,   S,  S,  S,  S,  S,  I,  I,  B,  I,  B,  B,  B,  B,  C),
    ROW(read_config,                S,  S,  S,  S,  S,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(overlay_and_read_config,    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(write_config,               0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(set_memory,                 0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(set_other_memory,           0,  0,  0,  0,  0,  0,  0,  B,  0,  B,  B,  B,  B,  C),
    ROW(add_memory,                 0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(add_memory_twice,           I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  C),
    ROW(remove_memory,              0,  0,  0,  0,  0,  0,  I,  B,  0,  B,  B,  B,  B,  C),
    ROW(remove_memory_not_there,    I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  I,  C),
    ROW(add_and_remove_memory,      0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(memory_fits,                0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(what_memory_state_says,    AB, AB, AB, AB, AB, AB, AP, AP, AP, PE, UN, AB, AB,  C),
    ROW(join,                       0,  0,  0,  0,  0,  0,  0,  B,  0,  B,  B,  B,  B,  C),
    ROW(leave,                      0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(post_iotlb,                 D,  D,  D,  D,  N,  D,  N,  N,  N,  D,  D,  D,  D,  C),
    ROW(start,                      S,  S,  S,  S,  S,  S,  0,  B,  0,  B,  B,  B,  S,  C),
    ROW(start_none,                 S,  S,  S,  S,  S,  S,  0,  0,  0,  0,  0,  0,  S,  C),
    ROW(resume,                     S,  S,  S,  S,  S,  S,  S,  B,  0,  B,  B,  B,  S,  C),
    ROW(set_call,                   S,  S,  S,  S,  S,  S,  S,  0,  S,  0,  0,  0,  0,  C),
    ROW(get_vring_base,             S,  S,  S,  S,  S,  S,  S,  S,  0,  S,  S,  S,  S,  C),
    ROW(stop,                      11, 11, 11, 11, 11, 11, 11, 11, 11,  0,  0, 11, 10,  C),
    ROW(stop_without_waiting,       0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(abandon,                    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  C),
    ROW(reset,                     11, 11, 11, 11, 11, 11, 11, 11, 11,  1,  1, 11, 11,  C),
    ROW(reset_and_start,            S,  S,  S,  S,  S,  S,  S,  S,  S,  S,  S,  S,  S,  C),
    /* clang-format on */
};

static bool as_wanted(const struct row *row, enum state state)
{
    struct world *w = test_calloc(1, sizeof *w);
    *w = (struct world){.state = state, .end = -1};
    int before = count_fds();
    assert_int_equal(guest_memory_create(&w->memory, GUEST_ADDR, GUEST_SIZE), 0);
    assert_int_equal(guest_memory_create(&w->second, SECOND_ADDR, GUEST_SIZE), 0);
    assert_int_equal(blk_ring_create(&w->ring, 0, RING_NUM, &w->memory, GUEST_ADDR), 0);
    OK(vuf_memory_group_new(&w->group));
    bring_to(w);
    int64_t begun = now_ms();
    int found = row->call(w);
    int64_t took = now_ms() - begun;
    bool good = found == row->want[state] && took < PEER_MS;
    if (!good) {
        print_error("%s, %s: %d and not %d, after %d ms (%s)\n", row->name, names[state], found,
                    row->want[state], (int)took, found == 0 ? "" : vuf_last_error());
    }
    vuf_device_free(w->device);
    vuf_memory_group_free(w->group);
    blk_ring_destroy(&w->ring);
    guest_memory_destroy(&w->memory);
    guest_memory_destroy(&w->second);
    if (w->end >= 0) {
        close(w->end);
    }
    backend_stop(&w->mock);
    assert_int_equal(count_fds(), before);
    test_free(w);
    return good;
}

static void every_call_in_every_state(void **state)
{
    bool good = true;
    (void)state;
    for (size_t n = 0; n < LENGTH(rows); n++) {
        for (enum state at = FRESH; at < STATES; at++) {
            good &= as_wanted(&rows[n], at);
        }
    }
    assert_true(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_in_every_state),
    };
    return cmocka_run_group_tests_name("test_states", tests, default_signals, NULL);
}
