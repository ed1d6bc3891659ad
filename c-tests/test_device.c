/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * vuf_device_*: back-ends brought up, stopped, reset, killed and regained, with
 * the data compared end to end, and bad arguments. (Every call in every state is in
 * test_states.c.)
 */
#include "device_rig.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_ids.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REQUESTS = 16, GONE = 900 /* a number that is not open */ };

#define DATA_SIZE 4096u

static const struct vuf_device_options quickly = {
    QUICK,
    .num_rings = 2,
    .config_size = BLK_CONFIG_SIZE,
    .slow_delay_ms = 100,
};

static void until_settled(struct fixture *f)
{
    while (info_of(f).settled == 0) {
        until(f, VUF_DEVICE_EVENT_APPLIED);
    }
}

static void open_device(struct fixture *f, const struct vuf_device_options *options)
{
    struct vuf_device_options fitting = *options;
    if (f->kind == INFLIGHT) {
        fitting.config_size = 36; /* it has no more */
    }
    assert_ok(vuf_device_open(f->backend.socket, &fitting, &f->device));
}

static void bring_up_with(struct fixture *f, const struct vuf_device_options *options)
{
    open_device(f, options);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(info_of(f).settled, 1);
    until(f, VUF_DEVICE_EVENT_APPLIED);
}

static void bring_up(struct fixture *f)
{
    bring_up_with(f, &quickly);
}

/* ---- data ---- */

/* From xorshift32. */
static void fill_random(void *bytes, size_t size)
{
    static uint32_t seed = 1;
    for (uint8_t *at = bytes; size > 0; size--) {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        *at++ = (uint8_t)seed;
    }
}

/* Where the data of the nth request lies, on the disk and in memory. */
static uint64_t sector_of(int n)
{
    return 100 + (uint64_t)n * 50;
}

static uint64_t addr_of(int n)
{
    return DATA_ADDR + (uint64_t)n * DATA_SIZE;
}

static void submit_writes(struct fixture *f, int slots[REQUESTS])
{
    for (int n = 0; n < REQUESTS; n++) {
        fill_random(guest_memory_at(&f->memory, addr_of(n)), DATA_SIZE);
        slots[n] = submit(f, 0, VIRTIO_BLK_T_OUT, sector_of(n), addr_of(n), DATA_SIZE);
    }
}

static void assert_on_disk(struct fixture *f, uint64_t sector, const void *bytes, size_t size)
{
    uint8_t found[DATA_SIZE];
    assert_int_equal(pread(f->disk, found, size, (off_t)(sector * SECTOR_SIZE)), size);
    assert_memory_equal(found, bytes, size);
}

static void finish_writes(struct fixture *f, const int slots[REQUESTS])
{
    for (int n = 0; n < REQUESTS; n++) {
        finish(f, 0, slots[n]);
    }
    finish(f, 0, submit(f, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0));
    for (int n = 0; n < REQUESTS; n++) {
        assert_on_disk(f, sector_of(n), guest_memory_at(&f->memory, addr_of(n)), DATA_SIZE);
    }
}

static void assert_works(struct fixture *f)
{
    int slots[REQUESTS];
    submit_writes(f, slots);
    finish_writes(f, slots);
    uint8_t bytes[DATA_SIZE];
    fill_random(bytes, sizeof bytes);
    assert_int_equal(pwrite(f->disk, bytes, sizeof bytes, 7 * SECTOR_SIZE), sizeof bytes);
    finish(f, 0, submit(f, 0, VIRTIO_BLK_T_IN, 7, addr_of(0), DATA_SIZE));
    assert_memory_equal(guest_memory_at(&f->memory, addr_of(0)), bytes, sizeof bytes);
}

/* ---- with every back-end ---- */

static void it_is_brought_up_and_works(void **state)
{
    struct fixture *f = begin(state);
    bring_up(f);
    assert_works(f);
    struct vuf_device_info info = info_of(f);
    assert_int_equal(info.connected, 1);
    assert_int_equal(info.connections, 1);
    assert_int_equal(info.needs_reset + info.unfenced, 0);
    assert_int_equal(info.applied, info.generation);
    assert_int_equal(info.acked_features, info.offered_features & WANTED);
    assert_true((info.protocol_features & BIT(VUF_PROTOCOL_F_CONFIG)) != 0);
    assert_int_equal(info.protocol_features & ~info.offered_protocol_features, 0);
    assert_int_equal(info.peer_pid, f->backend.pid);
    assert_int_equal(info.peer_uid, getuid());
    struct vuf_counters counters = {.size = sizeof counters};
    assert_ok(vuf_device_get_counters(f->device, &counters));
    assert_true(counters.requests_sent > 10 && counters.fds_sent >= 3);
    assert_int_equal(vuf_device_get_fd(f->device), vuf_device_get_fd(f->device));
}

static void rings_are_stopped_and_resumed(void **state)
{
    struct fixture *f = begin(state);
    uint32_t base;
    bring_up(f);
    for (int round = 0; round < 3; round++) {
        assert_works(f);
        struct vuf_quiet quiet = stop_all(f, VUF_STOP_DRAIN, PEER_MS);
        assert_int_equal(quiet.quiesced, 1);
        assert_int_equal(quiet.bases_valid, 1);
        assert_ok(vuf_device_get_vring_base(f->device, 0, &base));
        assert_int_equal(base, f->rings[0].next_avail);
        if (round == 0) {
            assert_ok(start_ring(f, 0, VUF_RING_BASE_RESUME));
        } else {
            struct vuf_ring ring = blk_ring_of_device(&f->rings[0], VUF_RING_BASE_AT);
            ring.base = base;
            assert_ok(vuf_device_start(f->device, &ring, 1));
        }
        assert_returns(VUF_E_STATE, vuf_device_get_vring_base(f->device, 0, &base));
    }
    /* Only recorded, and one by name. */
    const uint32_t first = 0;
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_works(f);
    assert_ok(vuf_device_stop(f->device, &first, 1, VUF_STOP_DRAIN, 0, &quiet));
    assert_int_equal(quiet.quiesced, 0);
    until_settled(f);
    assert_ok(vuf_device_get_quiet(f->device, &quiet));
    assert_int_equal(quiet.quiesced, 1);
    assert_int_equal(quiet.bases_valid, 1);
}

static void a_reset_begins_anew(void **state)
{
    struct fixture *f = begin(state);
    bring_up(f);
    for (int round = 0; round < 3; round++) {
        assert_works(f);
        assert_int_equal(reset(f, PEER_MS).quiesced, 1);
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        assert_int_equal(info_of(f).acked_features, 0);
        boot(f);
        negotiate(f);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    }
    assert_works(f);
    assert_int_equal(info_of(f).connections, 1);
}

static void the_configuration_is_read_and_overlaid(void **state)
{
    struct fixture *f = begin(state);
    uint8_t config[BLK_CONFIG_SIZE], own[4] = {1, 2, 3, 4}, read[4];
    uint32_t generation, next;
    open_device(f, &quickly);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_read_config(f->device, 0, config, sizeof config, &generation));
    assert_int_equal(blk_config_capacity(config), CAPACITY);

    /* Ours wins, and a write to it stays here. */
    assert_ok(vuf_device_overlay_config(f->device, 24, own, sizeof own));
    assert_ok(vuf_device_read_config(f->device, 24, read, sizeof read, &next));
    assert_memory_equal(read, own, sizeof own);
    assert_int_not_equal(generation, next);
    struct vuf_counters before = {.size = sizeof before}, after = before;
    assert_ok(vuf_device_get_counters(f->device, &before));
    own[0] = 9;
    assert_ok(vuf_device_write_config(f->device, 24, own, sizeof own));
    until_settled(f);
    assert_ok(vuf_device_get_counters(f->device, &after));
    assert_int_equal(after.requests_sent, before.requests_sent);
    assert_ok(vuf_device_read_config(f->device, 24, read, sizeof read, NULL));
    assert_memory_equal(read, own, sizeof own);
}

/* The one field of a disk that a driver writes: its cache mode. */
static void the_configuration_is_written(void **state)
{
    struct fixture *f = begin(state);
    enum { WCE_AT = 32 };
    uint8_t wce;
    bring_up(f);
    assert_ok(vuf_device_read_config(f->device, WCE_AT, &wce, 1, NULL));
    wce = !wce;
    assert_ok(vuf_device_write_config(f->device, WCE_AT, &wce, 1));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    until_settled(f);
    /* The next connection is told what the device has. */
    vuf_device_free(f->device);
    open_device(f, &quickly);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    uint8_t found = !wce;
    assert_ok(vuf_device_read_config(f->device, WCE_AT, &found, 1, NULL));
    assert_int_equal(found, wce);
}

static void memory_is_plugged_and_unplugged(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    bring_up(f);
    struct vuf_mem_region both[] = {guest_memory_region(&f->memory),
                                    guest_memory_region(&f->second)};
    both[1].user_addr = 0; /* means the same */
    assert_ok(vuf_device_memory_fits(f->device, both, 2));
    for (int round = 0; round < 2; round++) {
        if (round == 0) {
            assert_ok(vuf_device_add_memory(f->device, &both[1]));
        } else {
            assert_ok(vuf_device_set_memory(f->device, both, 2, VUF_MEMORY_ALLOW_GAP));
        }
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        fill_random(f->second.host, DATA_SIZE);
        finish(f, 0, submit(f, 0, VIRTIO_BLK_T_OUT, 3, SECOND_ADDR, DATA_SIZE));
        finish(f, 0, submit(f, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0));
        assert_on_disk(f, 3, f->second.host, DATA_SIZE);

        assert_ok(vuf_device_remove_memory(f->device, SECOND_ADDR, SECOND_SIZE, &quiet));
        assert_int_equal(quiet.quiesced, 0);
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        assert_ok(vuf_device_get_quiet(f->device, &quiet));
        assert_int_equal(quiet.quiesced, 1);
    }
    assert_refused(-EINVAL, "there is no region",
                   vuf_device_remove_memory(f->device, SECOND_ADDR, SECOND_SIZE, &quiet));
    assert_refused(-EBUSY, "", vuf_device_remove_memory(f->device, GUEST_ADDR, GUEST_SIZE, &quiet));
    assert_works(f);
}

static void the_call_descriptor_is_swapped(void **state)
{
    struct fixture *f = begin(state);
    bring_up(f);
    assert_works(f);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_ok(vuf_device_set_call(f->device, 0, fd));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    /* With the old one it would look now and then; this one is called. */
    close(f->rings[0].call_fd);
    f->rings[0].call_fd = fd;
    assert_works(f);
    uint64_t count;
    (void)!read(fd, &count, sizeof count);
    finish(f, 0, submit(f, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0));
    submit(f, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    struct pollfd called = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&called, 1, PEER_MS), 1);
}

/* ---- losses ---- */

/* A loss that cannot be recovered, and a reset that the guest waits for. */
static void the_guest_reads_what_holds_now(void **state)
{
    enum { RUNNING = 15, NEEDS_RESET = 64 };
    struct fixture *f = begin(state);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    struct vuf_device_options options = quickly;
    options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    bring_up_with(f, &options);
    assert_int_equal(virtio_status(f, RUNNING), RUNNING);
    backend_kill(&f->backend);
    /* The events stay in the queue. */
    assert_returns(VUF_E_STATE, vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(virtio_status(f, RUNNING), RUNNING | NEEDS_RESET);
    unsigned before = f->seen[VUF_DEVICE_EVENT_NEEDS_RESET];
    assert_ok(vuf_device_reset(f->device, PEER_MS, &quiet));
    assert_int_equal(quiet.quiesced, 1);
    assert_int_equal(virtio_status(f, 0), 0);
    assert_int_equal(virtio_status(f, 1), 1);
    start_again(f);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_NEEDS_RESET], before);
    /* Of a ring that runs the reset is not done at once. */
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ok(vuf_device_reset(f->device, 0, &quiet));
    assert_int_equal(quiet.quiesced, 0);
    assert_int_not_equal(virtio_status(f, 0), 0);
    assert_ok(vuf_device_reset(f->device, PEER_MS, &quiet));
    assert_int_equal(quiet.quiesced, 1);
    assert_int_equal(virtio_status(f, 0), 0);
    assert_refused(-EINVAL, "status is NULL", vuf_device_get_virtio_status(f->device, 0, NULL));
}

static void what_cannot_go_on_waits_for_a_reset(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    bring_up_with(f, &options);
    for (int round = 0; round < 3; round++) {
        assert_works(f);
        backend_kill(&f->backend);
        struct vuf_device_event lost = until(f, VUF_DEVICE_EVENT_LOST);
        assert_int_equal(lost.recovery, VUF_RECOVERY_NEEDS_RESET);
        assert_int_equal(lost.code, VUF_E_DISCONNECTED);
        assert_int_equal(lost.error_class, VUF_CLASS_TRANSPORT);
        assert_string_not_equal(lost.text, "");
        until(f, VUF_DEVICE_EVENT_NEEDS_RESET);
        assert_int_equal(info_of(f).needs_reset, 1);
        assert_returns(VUF_E_STATE, vuf_device_wait(f->device, SHORT_MS));
        start_again(f);
        until(f, VUF_DEVICE_EVENT_CONNECTED);
        assert_returns(VUF_E_STATE, vuf_device_wait(f->device, SHORT_MS));

        assert_int_equal(reset(f, PEER_MS).quiesced, 1);
        boot(f);
        negotiate(f);
        assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
    }
    assert_works(f);
    assert_int_equal(info_of(f).connections, 4);
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_RECOVERED], 0);
}

static void each_request_completes_once(void **state)
{
    static const char *const points[] = {"taken", "done", "used", "cleared"};
    struct fixture *f = begin(state);
    int slots[REQUESTS];
    open_device(f, &quickly);
    for (size_t n = 0; n < LENGTH(points); n++) {
        const char *const dying[] = {"--crash-after", "7", "--crash-at", points[n], NULL};
        int status;
        backend_kill(&f->backend);
        assert_int_equal(backend_again_inflight(&f->backend, dying), 0);
        if (n == 0) {
            until(f, VUF_DEVICE_EVENT_CONNECTED);
            negotiate(f);
            assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
        }
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        take_all(f);
        submit_writes(f, slots);
        struct vuf_device_event lost = until(f, VUF_DEVICE_EVENT_LOST);
        assert_int_equal(lost.recovery, VUF_RECOVERY_INFLIGHT);
        assert_true(backend_ended(&f->backend, PEER_MS, &status));
        start_again(f);
        until(f, VUF_DEVICE_EVENT_RECOVERED);
        /* Any that came twice is an error of the ring. */
        finish_writes(f, slots);
    }
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_NEEDS_RESET], 0);
}

static int tell_index(void *user, uint32_t ring, uint32_t which, uint16_t *index)
{
    struct fixture *f = user;
    struct vuf_ring words = blk_ring_of_device(&f->rings[0], VUF_RING_BASE_NEW);
    info_of(f); /* no lock is in the way */
    struct vuf_device_event event = {.size = sizeof event};
    assert_returns(VUF_E_STATE, vuf_device_process(f->device, &event));
    assert_returns(VUF_E_STATE, vuf_device_wait(f->device, SHORT_MS));
    assert_int_equal(ring, 0);
    *index = le16toh(*(const volatile uint16_t *)(which == VUF_RING_INDEX_USED
                                                      ? words.used_index
                                                      : words.avail_index));
    f->seen[0] += 1000;
    return 0;
}

static void a_function_tells_where_a_ring_stands(void **state)
{
    struct fixture *f = begin(state);
    int slots[REQUESTS];
    open_device(f, &quickly);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    struct vuf_ring ring = blk_ring_of_device(&f->rings[0], VUF_RING_BASE_NEW);
    ring.used_index = ring.avail_index = NULL;
    ring.get_index = tell_index;
    ring.user = f;
    assert_ok(vuf_device_start(f->device, &ring, 1));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    submit_writes(f, slots);
    finish_writes(f, slots);
    backend_kill(&f->backend);
    assert_int_equal(until(f, VUF_DEVICE_EVENT_LOST).recovery, VUF_RECOVERY_INFLIGHT);
    assert_true(f->seen[0] >= 1000);
    start_again(f);
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_works(f);
}

static void a_policy_is_followed(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    open_device(f, &options);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_works(f);
    backend_kill(&f->backend);
    assert_int_equal(until(f, VUF_DEVICE_EVENT_LOST).recovery, VUF_RECOVERY_REPLAY_FROM_USED);
    start_again(f);
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_works(f);
}

static void a_guest_starts_without_a_back_end(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    backend_kill(&f->backend);
    options.assume_features = ASSUMED;
    open_device(f, &options);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_returns(-ETIMEDOUT, vuf_device_wait(f->device, SHORT_MS));
    struct vuf_device_event retrying = until(f, VUF_DEVICE_EVENT_RETRYING);
    assert_int_equal(retrying.phase, VUF_PHASE_CONNECT);
    assert_int_equal(retrying.code, -ECONNREFUSED);
    assert_true(retrying.count > 0 && retrying.delay_ms > 0);
    start_again(f);
    assert_ok(vuf_device_reconnect(f->device));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_works(f);
}

static void a_ring_is_abandoned(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    bring_up(f);
    assert_works(f);
    assert_ok(vuf_device_stop(f->device, NULL, 0, VUF_STOP_ABANDON, PEER_MS, &quiet));
    assert_int_equal(quiet.quiesced, 1);
    assert_int_equal(quiet.bases_valid, 0);
    assert_int_equal(until(f, VUF_DEVICE_EVENT_LOST).code, -ECANCELED);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
}

/* ---- waits that fail ---- */

static struct vuf_error_info error_of(int rc)
{
    struct vuf_error_info info = {.size = sizeof info};
    assert_ok(vuf_last_error_info(&info));
    assert_int_equal(info.code, rc);
    return info;
}

static void a_wait_that_times_out_says_why(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    /* There is no such socket. */
    assert_ok(vuf_device_open(f->path, &options, &f->device));
    assert_returns(VUF_E_STATE, vuf_device_set_features(f->device, 0));
    assert_has(vuf_last_error(), "process() was never called");
    assert_returns(-ETIMEDOUT, vuf_device_wait(f->device, SHORT_MS));
    struct vuf_error_info info = error_of(-ETIMEDOUT);
    assert_int_equal(info.cause, -ENOENT);
    assert_int_equal(info.phase, VUF_PHASE_CONNECT);
    assert_has(vuf_last_error(), f->path);
    assert_has(vuf_last_error(), "attempts)");
    assert_returns(-ETIMEDOUT, vuf_device_wait_connected(f->device, SHORT_MS));
    assert_int_equal(error_of(-ETIMEDOUT).cause, -ENOENT);
    vuf_device_free(f->device);
    /* The back-end lacks a required feature. */
    options.required_features = BIT(VIRTIO_F_RING_RESET) | BIT(VIRTIO_BLK_F_SECURE_ERASE);
    options.device_id = VIRTIO_ID_BLOCK;
    open_device(f, &options);
    assert_returns(-ETIMEDOUT, vuf_device_wait(f->device, SHORT_MS));
    info = error_of(-ETIMEDOUT);
    assert_int_equal(info.cause, VUF_E_NOT_NEGOTIATED);
    assert_int_equal(info.request, VUF_REQUEST_GET_FEATURES);
    assert_int_equal(info.has_value, 1);
    assert_true((info.value & BIT(VIRTIO_F_VERSION_1)) != 0);
    assert_has(vuf_last_error(), "VIRTIO_F_RING_RESET (bit 40)");
    assert_has(vuf_last_error(), "VIRTIO_BLK_F_SECURE_ERASE (bit 16)");
    free_device(f);
    /* It has stopped, and does not answer. */
    bring_up(f);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    int stopped;
    assert_int_equal(kill(f->backend.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(f->backend.pid, &stopped, WUNTRACED), f->backend.pid);
    assert_true(WIFSTOPPED(stopped));
    assert_ok(vuf_device_stop(f->device, NULL, 0, VUF_STOP_DRAIN, SHORT_MS, &quiet));
    assert_int_equal(quiet.quiesced, 0);
    info = error_of(-ETIMEDOUT);
    assert_int_equal(info.cause, 0);
    assert_int_equal(info.ring, 0);
    assert_has(vuf_last_error(), "has not answered for ");
    assert_int_equal(kill(f->backend.pid, SIGCONT), 0);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
}

static void a_wait_for_a_usable_back_end_fails_at_once(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    open_device(f, &options);
    assert_ok(vuf_device_wait_connected(f->device, PEER_MS));
    assert_int_equal(info_of(f).connected, 1);
    assert_ok(vuf_device_wait_connected(f->device, 0));
    vuf_device_free(f->device);
    options.required_features = BIT(VIRTIO_F_RING_RESET);
    open_device(f, &options);
    int64_t begin_ms = now_ms();
    assert_returns(VUF_E_NOT_NEGOTIATED, vuf_device_wait_connected(f->device, PEER_MS));
    assert_true(now_ms() - begin_ms < PEER_MS / 2);
    assert_has(vuf_last_error(), "VIRTIO_F_RING_RESET");
    assert_int_equal(error_of(VUF_E_NOT_NEGOTIATED).request, VUF_REQUEST_GET_FEATURES);
}

/* ---- other ways to a connection ---- */

static void a_back_end_connects_to_it(void **state)
{
    struct fixture *f = begin(state);
    struct stat stat_of;
    assert_ok(vuf_device_listen(f->path, 0600, &quickly, &f->device));
    assert_int_equal(stat(f->path, &stat_of), 0);
    assert_int_equal(stat_of.st_mode & 0777, 0600);
    struct vuf_device *other = f->device;
    assert_refused(-EADDRINUSE, "", vuf_device_listen(f->path, 0600, &quickly, &other));
    assert_null(other);

    const char *path = getenv("VUF_MOCK_BACKEND");
    assert_int_equal(backend_prepare(&f->other), 0);
    const char *const args[] = {path, "--socket", f->path, "--connect", NULL};
    for (int round = 0; round < 2; round++) {
        assert_int_equal(backend_start_program(&f->other, args), 0);
        until(f, VUF_DEVICE_EVENT_CONNECTED);
        struct vuf_mem_region region = guest_memory_region(&f->memory);
        assert_ok(vuf_device_set_memory(f->device, &region, 1, 0));
        assert_ok(vuf_device_wait(f->device, PEER_MS));
        backend_kill(&f->other);
        until(f, VUF_DEVICE_EVENT_LOST);
    }
    free_device(f);
    assert_int_equal(access(f->path, F_OK), -1);
}

static int connected_socket(struct fixture *f)
{
    struct sockaddr_un address = address_of(f->backend.socket);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void somebody_else_connects(void **state)
{
    struct fixture *f = begin(state);
    assert_ok(vuf_device_open_fd(-1, &quickly, &f->device));
    until(f, VUF_DEVICE_EVENT_NEEDS_FD);
    int fd = connected_socket(f);
    assert_ok(vuf_device_set_fd(f->device, fd));
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_works(f);
    vuf_device_free(f->device);

    /* From the beginning, and once more after a loss. */
    boot(f);
    assert_ok(vuf_device_open_fd(connected_socket(f), &quickly, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_works(f);
    backend_kill(&f->backend);
    until(f, VUF_DEVICE_EVENT_LOST);
    until(f, VUF_DEVICE_EVENT_NEEDS_FD);
    start_again(f);
    assert_ok(vuf_device_set_fd(f->device, connected_socket(f)));
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_works(f);
}

/* Of the ends of a pair the kernel knows who made them, not who holds the other. A VMM
   that kills whom LOST or UNFENCED names is not to kill itself. */
static void whoever_holds_the_other_end_of_a_pair_is_not_known(void **state)
{
    struct fixture *f = begin(state);
    int ends[2];
    make_pair(ends);
    assert_ok(vuf_device_open_fd(ends[0], &quickly, &f->device));
    assert_int_equal(take(f).kind, VUF_DEVICE_EVENT_NONE);
    assert_int_equal(info_of(f).peer_pid, 0);
    assert_int_equal(info_of(f).peer_uid, getuid());
    close(ends[1]);
    assert_int_equal(until(f, VUF_DEVICE_EVENT_LOST).peer_pid, 0);
    assert_int_equal(info_of(f).peer_pid, -1);
}

/* ---- what the caller's functions may do ---- */

static void tell_message(void *user, const struct vuf_trace_record *record)
{
    struct fixture *f = user;
    struct vuf_device_event event = {.size = sizeof event};
    struct vuf_counters counters = {.size = sizeof counters};
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_true(record->text[0] == '>' || record->text[0] == '<' || record->text[0] == 'c');
    assert_returns(VUF_E_STATE, vuf_device_process(f->device, &event));
    assert_returns(VUF_E_STATE, vuf_device_wait(f->device, SHORT_MS));
    assert_returns(VUF_E_STATE, vuf_device_set_trace(f->device, tell_message, f));
    assert_ok(vuf_device_get_counters(f->device, &counters));
    assert_ok(vuf_device_get_quiet(f->device, &quiet));
    info_of(f);
    assert_true(vuf_device_get_fd(f->device) >= 0);
    f->seen[0] += 1000;
}

static void every_message_is_told(void **state)
{
    struct fixture *f = begin(state);
    open_device(f, &quickly);
    assert_ok(vuf_device_set_trace(f->device, tell_message, f));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_true(f->seen[0] >= 20 * 1000);
    assert_ok(vuf_device_set_trace(f->device, NULL, NULL));
    unsigned before = f->seen[0] / 1000;
    stop_all(f, VUF_STOP_DRAIN, PEER_MS);
    assert_int_equal(f->seen[0] / 1000, before);
}

static int no_translation(void *user, uint64_t iova, uint32_t perm)
{
    (void)user, (void)iova, (void)perm;
    return -ENOENT;
}

static const struct vuf_iotlb invalidation = {
    .iova = PAGE, .size = PAGE, .type = VUF_IOTLB_INVALIDATE};

/* A device on a mock whose guest has an IOMMU. */
static void open_with_iommu(struct fixture *f, const char *statement,
                            struct vuf_device_options options)
{
    const struct vuf_backend_ops ops = {.size = sizeof ops, .iotlb_miss = no_translation};
    const char *const script[] = {"-e", "device features +33", "-e", statement, NULL};
    options.backend_ops = &ops;
    assert_int_equal(backend_start_mock(&f->other, script), 0);
    assert_ok(vuf_device_open(f->other.socket, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_set_features(f->device, info_of(f).offered_features));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    take_all(f);
}

/* Not in the event loop, but the same holds there. */
static void a_posted_message_is_told(void **state)
{
    struct fixture *f = begin(state);
    const struct vuf_iotlb entry = {.size = PAGE, .type = VUF_IOTLB_INVALIDATE};
    open_with_iommu(f, "device features +33", quickly);
    assert_ok(vuf_device_set_trace(f->device, tell_message, f));
    unsigned before = f->seen[0] / 1000;
    assert_ok(vuf_device_post_iotlb(f->device, &entry));
    assert_int_equal(f->seen[0] / 1000, before + 1);
}

static void an_invalidation_that_is_refused_fails_the_wait(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_error_info info = {.size = sizeof info};
    open_with_iommu(f, "on IOTLB_MSG: delay 300ms, refuse 5", quickly);
    assert_int_equal(info_of(f).settled, 1);
    assert_ok(vuf_device_post_iotlb(f->device, &invalidation));
    assert_int_equal(info_of(f).settled, 0);
    assert_returns(-ETIMEDOUT, vuf_device_wait(f->device, 20));
    assert_refused(VUF_E_NACK, "IOTLB_MSG", vuf_device_wait(f->device, PEER_MS));
    assert_ok(vuf_last_error_info(&info));
    assert_int_equal(info.request, VUF_REQUEST_IOTLB_MSG);
    assert_int_equal(info.value, 5);
    assert_int_equal(info_of(f).settled, 1);
    struct vuf_device_event event = until(f, VUF_DEVICE_EVENT_IOTLB_REFUSED);
    assert_int_equal(event.count, 1);
    assert_int_equal(event.code, VUF_E_NACK);
    assert_int_equal(event.request, VUF_REQUEST_IOTLB_MSG);
    assert_int_equal(event.value, 5);
    /* It has been reported. */
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(info_of(f).connections, 1);
}

static void an_invalidation_without_an_answer_loses_the_connection(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    options.stall_ms = 50;
    options.timeout_ms = 300;
    open_with_iommu(f, "on IOTLB_MSG: drop", options);
    int64_t begun = now_ms();
    assert_ok(vuf_device_post_iotlb(f->device, &invalidation));
    struct vuf_device_event event = until(f, VUF_DEVICE_EVENT_STALLED);
    assert_int_equal(event.request, VUF_REQUEST_IOTLB_MSG);
    event = until(f, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(event.code, -ETIMEDOUT);
    assert_int_equal(event.request, VUF_REQUEST_IOTLB_MSG);
    assert_true(now_ms() - begun >= 300);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(info_of(f).connections, 2);
}

static void an_iommu_needs_what_the_back_end_does_not_offer(void **state)
{
    struct fixture *f = begin(state);
    const char *const script[] = {"-e", "device features +33", "-e",
                                  "device protocol-features -REPLY_ACK", NULL};
    struct vuf_device_options options = quickly;
    assert_int_equal(backend_start_mock(&f->other, script), 0);
    assert_ok(vuf_device_open(f->other.socket, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    uint64_t offered = info_of(f).offered_features;
    assert_true((offered & BIT(33)) != 0);
    assert_refused(VUF_E_NOT_NEGOTIATED, "does not offer REPLY_ACK",
                   vuf_device_set_features(f->device, offered));
    assert_ok(vuf_device_set_features(f->device, offered & ~BIT(33)));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    vuf_device_free(f->device);
    /* Not known before: the back-end is refused. */
    options.assume_features = offered;
    options.slow_delay_ms = PEER_MS;
    assert_ok(vuf_device_open(f->other.socket, &options, &f->device));
    assert_ok(vuf_device_set_features(f->device, offered));
    struct vuf_device_event lost = until(f, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(lost.code, VUF_E_NOT_NEGOTIATED);
    assert_has(lost.text, "does not offer REPLY_ACK");
}

static void the_end_of_the_channel_is_a_loss(void **state)
{
    struct fixture *f = begin(state);
    /* The first has flags that no request has. */
    const char *const script[] = {"-e", "expect GET_CONFIG", "-e", "delay 100ms",
                                  "-e", "send CONFIG_CHANGE: flags 0x5", "-e", "expect GET_CONFIG",
                                  NULL};
    assert_int_equal(backend_start_mock(&f->other, script), 0);
    assert_ok(vuf_device_open(f->other.socket, &quickly, &f->device));
    struct vuf_device_event closed = until(f, VUF_DEVICE_EVENT_CHANNEL_CLOSED);
    assert_int_equal(closed.code, VUF_E_PROTOCOL);
    assert_int_equal(closed.error_class, VUF_CLASS_PROTOCOL);
    assert_has(closed.text, "channel");
    struct vuf_device_event lost = until(f, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(lost.code, VUF_E_PROTOCOL);
    assert_string_equal(lost.text, closed.text);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_int_equal(info_of(f).connections, 2);
}

static void a_refused_request_of_the_back_end_is_named(void **state)
{
    struct fixture *f = begin(state);
    const char *const script[] = {
        "-e", "expect GET_CONFIG",
        "-e", "send SHMEM_MAP shmid=0 fd-offset=0 shm-offset=0 len=0x1000 flags=1 need-reply",
        "-e", "send SHMEM_MAP shmid=0 fd-offset=0 shm-offset=0 len=0x1000 flags=1 need-reply", NULL};
    assert_int_equal(backend_start_mock(&f->other, script), 0);
    assert_ok(vuf_device_open(f->other.socket, &quickly, &f->device));
    for (uint32_t count = 0; count < 2;) {
        struct vuf_device_event event = until(f, VUF_DEVICE_EVENT_CHANNEL_REFUSED);
        assert_int_equal(event.code, VUF_E_NOT_NEGOTIATED);
        assert_int_equal(event.request, 0);
        assert_int_equal(event.value, 9);
        assert_has(event.text, "SHMEM_MAP");
        assert_has(event.text, "EPERM");
        assert_true(event.count > 0);
        count += event.count;
        assert_true(count <= 2);
    }
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(info_of(f).connections, 1);
}

static int map_a_page(void *user, const struct vuf_shmem_area *area, int fd)
{
    (void)user, (void)area;
    close(fd);
    return 0;
}

static int unmap_a_page(void *user, const struct vuf_shmem_area *area)
{
    (void)user, (void)area;
    return 0;
}

static void features_without_a_function_are_not_acknowledged(void **state)
{
    struct fixture *f = begin(state);
    const uint64_t served = BIT(VUF_PROTOCOL_F_SHMEM) | BIT(VUF_PROTOCOL_F_HOST_NOTIFIER) |
                            BIT(VUF_PROTOCOL_F_SHARED_OBJECT) |
                            BIT(VUF_PROTOCOL_F_BACKEND_SEND_FD);
    const struct vuf_backend_ops maps = {
        .size = sizeof maps, .shmem_map = map_a_page, .shmem_unmap = unmap_a_page};
    const struct vuf_backend_ops misses = {.size = sizeof misses, .iotlb_miss = no_translation};
    const struct {
        const struct vuf_backend_ops *ops;
        uint64_t agreed;
    } cases[] = {
        {NULL, 0},
        {&misses, 0},
        {&maps, BIT(VUF_PROTOCOL_F_SHMEM) | BIT(VUF_PROTOCOL_F_BACKEND_SEND_FD)},
    };
    const char *const script[] = {"-e",
                                  "device protocol-features MQ LOG_SHMFD REPLY_ACK BACKEND_REQ "
                                  "CONFIG BACKEND_SEND_FD HOST_NOTIFIER SHARED_OBJECT SHMEM",
                                  "-e", "device shmem 0=0x10000", NULL};
    assert_int_equal(backend_start_mock(&f->other, script), 0);
    for (size_t n = 0; n < LENGTH(cases); n++) {
        struct vuf_device_options options = quickly;
        options.backend_ops = cases[n].ops;
        /* Asked for or not. */
        options.protocol_features = n == 1 ? UINT64_MAX : 0;
        assert_ok(vuf_device_open(f->other.socket, &options, &f->device));
        until(f, VUF_DEVICE_EVENT_CONNECTED);
        struct vuf_device_info info = info_of(f);
        assert_int_equal(info.offered_protocol_features & served, served);
        assert_int_equal(info.protocol_features,
                         (info.offered_protocol_features & ~served) | cases[n].agreed);
        assert_int_equal(info.shmem_sizes[0], cases[n].ops == &maps ? 0x10000 : 0);
        free_device(f);
    }
}

struct asked {
    struct fixture *f;
    unsigned misses;
};

/* The back-end waits for this; the device may be asked and told, not driven. */
static int answer_miss(void *user, uint64_t iova, uint32_t perm)
{
    struct asked *asked = user;
    struct fixture *f = asked->f;
    struct vuf_device_event event = {.size = sizeof event};
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const struct vuf_iotlb entry = {.iova = iova & ~UINT64_C(0xfff),
                                    .size = PAGE,
                                    .user_addr = GUEST_ADDR,
                                    .perm = VUF_ACCESS_RW,
                                    .type = VUF_IOTLB_UPDATE};
    (void)perm;
    assert_returns(VUF_E_STATE, vuf_device_process(f->device, &event));
    assert_returns(VUF_E_STATE, vuf_device_wait(f->device, SHORT_MS));
    assert_int_equal(info_of(f).connected, 1);
    /* Which would wait for ever here. */
    assert_ok(vuf_device_stop(f->device, NULL, 0, VUF_STOP_DRAIN, VUF_TIMEOUT_FOREVER, &quiet));
    assert_ok(vuf_device_post_iotlb(f->device, &entry));
    asked->misses++;
    return 0;
}

static void a_miss_is_answered_from_inside(void **state)
{
    struct fixture *f = begin(state);
    struct asked asked = {.f = f};
    const struct vuf_backend_ops ops = {.size = sizeof ops, .iotlb_miss = answer_miss};
    struct vuf_device_options options = quickly;
    char line[4096];
    options.backend_ops = &ops;
    options.user = &asked;
    const char *const script[] = {
        "-e", "device features +33", "-e", "expect SET_FEATURES", "-e",
        "send IOTLB_MSG iova=0x1000 perm=3 type=1 need-reply", NULL};
    assert_int_equal(backend_start_mock(&f->other, script), 0);
    assert_ok(vuf_device_open(f->other.socket, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_set_features(f->device, info_of(f).offered_features));
    for (int64_t deadline = now_ms() + PEER_MS; asked.misses == 0 && now_ms() < deadline;) {
        take_all(f);
        sleep_ms(1);
    }
    assert_int_equal(asked.misses, 1);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    do {
        assert_true(backend_log_next(&f->other, line, sizeof line, PEER_MS));
    } while (strstr(line, " > IOTLB_MSG") == NULL || strstr(line, "channel") != NULL);
    assert_non_null(strstr(line, "uaddr=0x40000000"));
}

/* ---- the end ---- */

static void it_is_freed_at_any_moment(void **state)
{
    struct fixture *f = begin(state);
    int open_before = count_fds();
    vuf_device_free(NULL);
    /* After so many turns of the loop each. */
    for (int turns = 0; turns < 60; turns += 3) {
        int before = count_fds();
        open_device(f, &quickly);
        bool negotiated = false;
        for (int n = 0; n < turns; n++) {
            struct pollfd item = {.fd = vuf_device_get_fd(f->device), .events = POLLIN};
            poll(&item, 1, 5);
            take(f);
            if (!negotiated && info_of(f).connected == 1) {
                boot(f);
                before = count_fds() - (before == 0);
                negotiate(f);
                assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
                negotiated = true;
            }
        }
        free_device(f);
        assert_true(negotiated || count_fds() == before);
    }
    assert_int_equal(count_fds(), open_before);
}

static void *wait_for_ever(void *device)
{
    int rc = vuf_device_wait(device, VUF_TIMEOUT_FOREVER);
    return (void *)(intptr_t)rc;
}

static void free_ends_what_another_thread_waits_for(void **state)
{
    struct fixture *f = begin(state);
    pthread_t thread;
    void *result;
    backend_kill(&f->backend);
    open_device(f, &quickly);
    assert_int_equal(pthread_create(&thread, NULL, wait_for_ever, f->device), 0);
    sleep_ms(SHORT_MS);
    int64_t begun = now_ms();
    free_device(f);
    assert_true(now_ms() - begun < SOON_MS);
    pthread_join(thread, &result);
    assert_int_equal((intptr_t)result, -ECANCELED);
}

static void a_forked_child_frees_only_its_own(void **state)
{
    struct fixture *f = begin(state);
    int status;
    bring_up(f);
    pid_t child = fork();
    if (child == 0) {
        vuf_device_free(f->device);
        execlp("true", "true", (char *)NULL); /* which valgrind does not look into */
        _exit(127);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_works(f);
    assert_int_equal(info_of(f).connections, 1);
}

/* ---- bad arguments ---- */

static void a_null_device_is_refused(void **state)
{
    struct vuf_device_event event = {.size = sizeof event};
    struct vuf_device_info info = {.size = sizeof info};
    struct vuf_counters counters = {.size = sizeof counters};
    struct vuf_quiet quiet = {.size = sizeof quiet};
    struct vuf_mem_region region = {.fd = -1};
    struct vuf_ring ring = {.kick_fd = -1};
    struct vuf_iotlb iotlb = {.size = PAGE};
    uint32_t number;
    uint8_t byte = 0;
    begin(state);
#define NULL_REFUSED(call) assert_refused(-EINVAL, "device is NULL", call)
    NULL_REFUSED(vuf_device_get_fd(NULL));
    NULL_REFUSED(vuf_device_process(NULL, &event));
    NULL_REFUSED(vuf_device_wait(NULL, 1));
    NULL_REFUSED(vuf_device_wait_connected(NULL, 1));
    NULL_REFUSED(vuf_device_get_info(NULL, &info));
    NULL_REFUSED(vuf_device_get_counters(NULL, &counters));
    NULL_REFUSED(vuf_device_set_trace(NULL, NULL, NULL));
    NULL_REFUSED(vuf_device_reconnect(NULL));
    NULL_REFUSED(vuf_device_set_fd(NULL, 1));
    NULL_REFUSED(vuf_device_get_quiet(NULL, &quiet));
    NULL_REFUSED(vuf_device_set_features(NULL, 0));
    NULL_REFUSED(vuf_device_read_config(NULL, 0, &byte, 1, NULL));
    NULL_REFUSED(vuf_device_overlay_config(NULL, 0, &byte, 1));
    NULL_REFUSED(vuf_device_write_config(NULL, 0, &byte, 1));
    NULL_REFUSED(vuf_device_read_current_config(NULL, 0, &byte, 1, NULL));
    NULL_REFUSED(vuf_device_assume_config(NULL, 0, &byte, 1));
    NULL_REFUSED(vuf_device_set_config_size(NULL, 36));
    NULL_REFUSED(vuf_device_wait_config(NULL, SHORT_MS));
    NULL_REFUSED(vuf_device_set_memory(NULL, &region, 1, 0));
    NULL_REFUSED(vuf_device_add_memory(NULL, &region));
    NULL_REFUSED(vuf_device_remove_memory(NULL, 0, PAGE, &quiet));
    NULL_REFUSED(vuf_device_memory_fits(NULL, &region, 1));
    NULL_REFUSED(vuf_device_post_iotlb(NULL, &iotlb));
    NULL_REFUSED(vuf_device_start(NULL, &ring, 1));
    NULL_REFUSED(vuf_device_set_call(NULL, 0, -1));
    NULL_REFUSED(vuf_device_stop(NULL, NULL, 0, VUF_STOP_DRAIN, 0, &quiet));
    NULL_REFUSED(vuf_device_reset(NULL, 0, &quiet));
    NULL_REFUSED(vuf_device_get_vring_base(NULL, 0, &number));
    NULL_REFUSED(vuf_device_get_virtio_status(NULL, 0, &byte));
}

static int map_nothing(void *user, const struct vuf_shmem_area *area, int fd)
{
    (void)user, (void)area;
    return close(fd);
}

#define OPTIONS_REFUSED(code, text, field, value)                                                  \
    do {                                                                                           \
        struct vuf_device_options options_ = quickly;                                              \
        options_.field = (value);                                                                  \
        device = (struct vuf_device *)&device;                                                     \
        assert_refused(code, text, vuf_device_open("socket", &options_, &device));                 \
        assert_null(device);                                                                       \
    } while (0)

static void bad_options_are_refused(void **state)
{
    struct vuf_device *device;
    begin(state);
    const struct vuf_backend_ops half = {.size = sizeof half, .shmem_map = map_nothing};
    const struct vuf_backend_ops sizeless = {.size = 0};
    OPTIONS_REFUSED(-EINVAL, "num_rings", num_rings, 257);
    OPTIONS_REFUSED(-EINVAL, "config_size", config_size, VUF_MAX_CONFIG_SIZE + 1);
    OPTIONS_REFUSED(-EINVAL, "jitter", jitter_percent, 101);
    OPTIONS_REFUSED(-EINVAL, "jitter", jitter_percent, 256 + 10);
    OPTIONS_REFUSED(-EINVAL, "delay", first_delay_ms, 51);
    OPTIONS_REFUSED(-EINVAL, "killed", on_unfenced, VUF_ON_UNFENCED_KILL); /* by its path */
    OPTIONS_REFUSED(-EINVAL, "on_unfenced", on_unfenced, 3);
    OPTIONS_REFUSED(-EINVAL, "out_of_order", out_of_order, 4);
    OPTIONS_REFUSED(-EINVAL, "max_ring_size", max_ring_size, 32769);
    OPTIONS_REFUSED(-EINVAL, "reserved", reserved, 1);
    OPTIONS_REFUSED(-EINVAL, "shmem_map", backend_ops, &half);
    OPTIONS_REFUSED(-EINVAL, "size", backend_ops, &sizeless);
    OPTIONS_REFUSED(-EINVAL, "size", size, 0);
    OPTIONS_REFUSED(-E2BIG, "size", size, 1 << 20);

    struct {
        struct vuf_device_options known;
        uint64_t later;
    } longer = {.known = quickly, .later = 1};
    longer.known.size = sizeof longer;
    assert_refused(-E2BIG, "does not know", vuf_device_open("socket", &longer.known, &device));
    longer.later = 0;
    assert_ok(vuf_device_open("socket", &longer.known, &device));
    vuf_device_free(device);
    assert_ok(vuf_device_open("socket", NULL, &device));
    vuf_device_free(device);
}

static void a_device_that_cannot_be_is_not_made(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device *device;
    assert_refused(-EINVAL, "path is NULL", vuf_device_open(NULL, NULL, &device));
    assert_refused(-EINVAL, "path is empty", vuf_device_open("", NULL, &device));
    assert_refused(-EINVAL, "out is NULL", vuf_device_open("socket", NULL, NULL));
    assert_refused(-EINVAL, "path is NULL", vuf_device_listen(NULL, 0600, NULL, &device));
    assert_refused(-EINVAL, "mode", vuf_device_listen(f->path, 01777, NULL, &device));
    assert_refused(-EINVAL, "out is NULL", vuf_device_listen(f->path, 0600, NULL, NULL));
    assert_refused(-ENOENT, "/nowhere", vuf_device_listen("/nowhere/s", 0600, NULL, &device));
    assert_refused(-EEXIST, "not a socket",
                   vuf_device_listen(f->backend.disk, 0600, NULL, &device));
    assert_refused(-EINVAL, "out is NULL", vuf_device_open_fd(-1, NULL, NULL));
    assert_refused(-EBADF, "fd is -2", vuf_device_open_fd(-2, NULL, &device));
    assert_refused(-EBADF, "", vuf_device_open_fd(GONE, NULL, &device));
    assert_refused(-ENOTSOCK, "", vuf_device_open_fd(f->disk, NULL, &device));
    int lonely = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_refused(-ENOTCONN, "", vuf_device_open_fd(lonely, NULL, &device));
    assert_null(device);

    assert_ok(vuf_device_open_fd(-1, NULL, &f->device));
    assert_refused(-EBADF, "fd is -1", vuf_device_set_fd(f->device, -1));
    assert_refused(-EBADF, "", vuf_device_set_fd(f->device, GONE));
    assert_refused(-ENOTSOCK, "", vuf_device_set_fd(f->device, f->disk));
    assert_refused(-ENOTCONN, "", vuf_device_set_fd(f->device, lonely));
    close(lonely);
}

/* The second of two. */
#define REGION_REFUSED(code, text, field, value)                                                   \
    do {                                                                                           \
        const struct vuf_mem_region good_ = {.size = PAGE, .fd = f->memory.fd};                    \
        struct vuf_mem_region regions_[2] = {good_, good_};                                        \
        regions_[0].guest_addr = SECOND_ADDR;                                                      \
        regions_[1].field = (value);                                                               \
        assert_refused(code, text, vuf_device_set_memory(f->device, regions_, 2, 0));              \
        assert_int_equal(last_info().region, 1);                                                   \
        assert_refused(code, text, vuf_device_memory_fits(f->device, regions_, 2));                \
        assert_refused(code, text, vuf_device_add_memory(f->device, &regions_[1]));                \
    } while (0)

static void bad_memory_is_refused(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    struct vuf_iotlb iotlb = {.size = PAGE, .type = VUF_IOTLB_INVALIDATE};
    open_device(f, &quickly);
    REGION_REFUSED(-EINVAL, "fd of the region is 0", fd, 0);
    REGION_REFUSED(-EBADF, "fd of the region is -1", fd, -1);
    REGION_REFUSED(-EBADF, "not open", fd, GONE);
    REGION_REFUSED(-EINVAL, "user_addr", user_addr, PAGE);
    REGION_REFUSED(-EINVAL, "reserved", xen_domid, 1);
    REGION_REFUSED(-EINVAL, "reserved", reserved[1], 1);
    REGION_REFUSED(-EINVAL, "size is 0", size, 0);
    REGION_REFUSED(-EINVAL, "the file has", size, GUEST_SIZE + PAGE);
    REGION_REFUSED(-EINVAL, "not a multiple", mmap_offset, 1);
    REGION_REFUSED(-EINVAL, "file", fd, f->rings[0].kick_fd);
    /* A device that can be mapped is no file, and has no size to be compared with. */
    int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
    struct vuf_mem_region mapped = region;
    mapped.fd = zero;
    mapped.mmap_offset = 1 << 20;
    assert_ok(vuf_device_memory_fits(f->device, &mapped, 1));
    assert_ok(vuf_device_set_memory(f->device, &mapped, 1, 0));
    assert_ok(vuf_device_set_memory(f->device, NULL, 0, 0));
    close(zero);
    assert_refused(-EINVAL, "regions is NULL", vuf_device_set_memory(f->device, NULL, 1, 0));
    assert_refused(-EINVAL, "flags", vuf_device_set_memory(f->device, &region, 1, 2));
    assert_refused(-EINVAL, "regions is NULL", vuf_device_memory_fits(f->device, NULL, 1));
    assert_refused(-EINVAL, "region is NULL", vuf_device_add_memory(f->device, NULL));
    assert_refused(-EINVAL, "quiet is NULL", vuf_device_remove_memory(f->device, 0, PAGE, NULL));
    assert_refused(-EINVAL, "there is no region",
                   vuf_device_remove_memory(f->device, 0, PAGE, &quiet));
    assert_refused(-EINVAL, "iotlb is NULL", vuf_device_post_iotlb(f->device, NULL));
    assert_refused(VUF_E_DISCONNECTED, "no back-end", vuf_device_post_iotlb(f->device, &iotlb));
    /* More than any back-end without slots holds, and than a table. */
    struct vuf_mem_region many[9];
    for (size_t n = 0; n < LENGTH(many); n++) {
        many[n] = region;
        many[n].guest_addr = many[n].user_addr = GUEST_ADDR + 2 * n * GUEST_SIZE;
    }
    assert_ok(vuf_device_memory_fits(f->device, many, LENGTH(many)));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    bool slots = (info_of(f).protocol_features & BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) != 0;
    int rc = slots && info_of(f).max_mem_slots >= LENGTH(many) ? 0 : -ENOSPC;
    assert_returns(rc, vuf_device_memory_fits(f->device, many, LENGTH(many)));
    assert_returns(rc, vuf_device_set_memory(f->device, many, LENGTH(many), 0));
}

#define RING_REFUSED(code, text, field, value)                                                     \
    do {                                                                                           \
        struct vuf_ring ring_ = good;                                                              \
        ring_.field = (value);                                                                     \
        assert_refused(code, text, vuf_device_start(f->device, &ring_, 1));                        \
        assert_int_equal(last_info().ring, ring_.index);                                           \
    } while (0)

static void bad_rings_are_refused(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    struct vuf_ring good = blk_ring_of_device(&f->rings[0], VUF_RING_BASE_NEW);
    struct vuf_ring twice[] = {good, good};
    const uint16_t *odd = (const uint16_t *)((const char *)good.used_index + 1);
    const uint32_t large = VUF_MAX_RING_INDEX + 1;
    uint32_t base;
    open_device(f, &quickly);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_refused(-EINVAL, "not offer", vuf_device_set_features(f->device, UINT64_MAX));
    negotiate(f);
    RING_REFUSED(-EINVAL, "2 rings", index, 2);
    RING_REFUSED(-EINVAL, "descriptors", size, 0);
    RING_REFUSED(-EINVAL, "descriptors", size, 48);
    RING_REFUSED(-EINVAL, "not aligned", descriptor, good.descriptor + 8);
    RING_REFUSED(-EINVAL, "lies in no region", used, SECOND_ADDR);
    RING_REFUSED(-EINVAL, "base_mode", base_mode, 3);
    RING_REFUSED(-EINVAL, "base", base, 1);
    RING_REFUSED(VUF_E_STATE, "never started", base_mode, VUF_RING_BASE_RESUME);
    RING_REFUSED(-EINVAL, "kick_fd of the ring is 0", kick_fd, 0);
    RING_REFUSED(-EBADF, "kick_fd of the ring is -1", kick_fd, -1);
    RING_REFUSED(-EBADF, "not open", kick_fd, GONE);
    RING_REFUSED(-EINVAL, "call_fd of the ring is 0", call_fd, 0);
    RING_REFUSED(-EBADF, "call_fd of the ring is -2", call_fd, -2);
    RING_REFUSED(-EINVAL, "err_fd of the ring is 0", err_fd, 0);
    RING_REFUSED(-EBADF, "not open", err_fd, GONE);
    RING_REFUSED(-EINVAL, "kick of the ring is a regular file", kick_fd, f->memory.fd);
    RING_REFUSED(-EINVAL, "call of the ring is a regular file", call_fd, f->memory.fd);
    RING_REFUSED(-EINVAL, "err of the ring is a regular file", err_fd, f->memory.fd);
    RING_REFUSED(-EINVAL, "reserved", reserved0, 1);
    RING_REFUSED(-EINVAL, "reserved", reserved[3], 1);
    RING_REFUSED(-EINVAL, "used_index of the ring is not aligned", used_index, odd);
    RING_REFUSED(-EINVAL, "avail_index of the ring is not aligned", avail_index, odd);
    RING_REFUSED(-EINVAL, "get_index", get_index, tell_index);
    assert_refused(-EINVAL, "rings is NULL", vuf_device_start(f->device, NULL, 1));
    assert_refused(-EINVAL, "twice", vuf_device_start(f->device, twice, 2));
    assert_ok(vuf_device_start(f->device, NULL, 0));

    assert_refused(VUF_E_STATE, "does not run", vuf_device_set_call(f->device, 1, -1));
    assert_refused(VUF_E_STATE, "does not run", vuf_device_set_call(f->device, 999, -1));
    assert_refused(-EBADF, "not open", vuf_device_set_call(f->device, 0, GONE));
    assert_refused(-EBADF, "fd is -2", vuf_device_set_call(f->device, 0, -2));
    assert_refused(-EINVAL, "call is a regular file", vuf_device_set_call(f->device, 0, f->memory.fd));
    assert_refused(-EINVAL, "mode", vuf_device_stop(f->device, NULL, 0, 3, 0, &quiet));
    assert_refused(-EINVAL, "rings is NULL",
                   vuf_device_stop(f->device, NULL, 1, VUF_STOP_DRAIN, 0, &quiet));
    assert_refused(-EINVAL, "out of range",
                   vuf_device_stop(f->device, &large, 1, VUF_STOP_DRAIN, 0, &quiet));
    assert_refused(-EINVAL, "quiet is NULL",
                   vuf_device_stop(f->device, NULL, 0, VUF_STOP_DRAIN, 0, NULL));
    assert_refused(-EINVAL, "quiet is NULL", vuf_device_reset(f->device, 0, NULL));
    assert_refused(VUF_E_STATE, "never started", vuf_device_get_vring_base(f->device, 0, &base));
    assert_refused(VUF_E_STATE, "never started", vuf_device_get_vring_base(f->device, 999, &base));
    assert_refused(-EINVAL, "base is NULL", vuf_device_get_vring_base(f->device, 0, NULL));
    /* None of that was recorded. */
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_works(f);
    assert_refused(-EBUSY, "runs already", vuf_device_start(f->device, &good, 1));
}

static void bad_results_and_configuration_are_refused(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_event event = {.size = 0};
    struct vuf_device_info info = {.size = 0};
    struct vuf_counters counters = {.size = 0};
    struct vuf_quiet quiet = {.size = 0};
    uint8_t bytes[VUF_MAX_CONFIG_SIZE + 1] = {0};
    open_device(f, &quickly);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_refused(-EINVAL, "event is NULL", vuf_device_process(f->device, NULL));
    assert_refused(-EINVAL, "size is not set", vuf_device_process(f->device, &event));
    event.size = 1 << 20;
    assert_refused(-E2BIG, "size", vuf_device_process(f->device, &event));
    assert_refused(-EINVAL, "info is NULL", vuf_device_get_info(f->device, NULL));
    assert_refused(-EINVAL, "size is not set", vuf_device_get_info(f->device, &info));
    assert_refused(-EINVAL, "counters is NULL", vuf_device_get_counters(f->device, NULL));
    assert_refused(-EINVAL, "size is not set", vuf_device_get_counters(f->device, &counters));
    assert_refused(-EINVAL, "quiet is NULL", vuf_device_get_quiet(f->device, NULL));
    assert_refused(-EINVAL, "size is not set", vuf_device_get_quiet(f->device, &quiet));
    assert_refused(-EINVAL, "size is not set", vuf_device_reset(f->device, 0, &quiet));

    assert_refused(-EINVAL, "buffer is NULL",
                   vuf_device_read_config(f->device, 0, NULL, 1, NULL));
    assert_refused(-EINVAL, "len", vuf_device_read_config(f->device, 0, bytes, 0, NULL));
    assert_refused(-EINVAL, "len", vuf_device_read_config(f->device, 0, bytes, sizeof bytes, NULL));
    assert_refused(-EINVAL, "beyond",
                   vuf_device_read_config(f->device, BLK_CONFIG_SIZE, bytes, 1, NULL));
    assert_refused(-EINVAL, "beyond", vuf_device_read_config(f->device, UINT32_MAX, bytes, 9, NULL));
    assert_refused(-EINVAL, "buffer is NULL", vuf_device_overlay_config(f->device, 0, NULL, 1));
    assert_refused(-EINVAL, "len", vuf_device_overlay_config(f->device, 0, bytes, 0));
    assert_refused(-EINVAL, "beyond",
                   vuf_device_overlay_config(f->device, BLK_CONFIG_SIZE - 1, bytes, 2));
    assert_refused(-EINVAL, "buffer is NULL", vuf_device_write_config(f->device, 0, NULL, 1));
    assert_refused(-EINVAL, "len", vuf_device_write_config(f->device, 0, bytes, sizeof bytes));
    assert_refused(-EINVAL, "beyond",
                   vuf_device_write_config(f->device, BLK_CONFIG_SIZE - 1, bytes, 2));
}

/* ---- all of it ---- */

#define ON(kind_of, function) ON_WITH(set_up_back_end, kind_of, function)
#define ON_EMBEDDED(function) ON(EMBEDDED, function)
#define ON_QEMU(function) ON(QEMU, function)
#define ON_INFLIGHT(function) ON(INFLIGHT, function)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_EMBEDDED(it_is_brought_up_and_works),
        ON_QEMU(it_is_brought_up_and_works),
        ON_INFLIGHT(it_is_brought_up_and_works),
        ON_EMBEDDED(rings_are_stopped_and_resumed),
        ON_QEMU(rings_are_stopped_and_resumed),
        ON_INFLIGHT(rings_are_stopped_and_resumed),
        ON_EMBEDDED(a_reset_begins_anew),
        ON_QEMU(a_reset_begins_anew),
        ON_INFLIGHT(a_reset_begins_anew),
        ON_EMBEDDED(the_configuration_is_read_and_overlaid),
        ON_QEMU(the_configuration_is_read_and_overlaid),
        ON_EMBEDDED(the_configuration_is_written),
        ON_EMBEDDED(memory_is_plugged_and_unplugged),
        ON_QEMU(memory_is_plugged_and_unplugged),
        ON_INFLIGHT(memory_is_plugged_and_unplugged),
        ON_EMBEDDED(the_call_descriptor_is_swapped),
        ON_QEMU(the_call_descriptor_is_swapped),
        ON_INFLIGHT(the_call_descriptor_is_swapped),
        ON_EMBEDDED(the_guest_reads_what_holds_now),
        ON_EMBEDDED(what_cannot_go_on_waits_for_a_reset),
        ON_INFLIGHT(each_request_completes_once),
        ON_INFLIGHT(a_function_tells_where_a_ring_stands),
        ON_EMBEDDED(a_policy_is_followed),
        ON_EMBEDDED(a_guest_starts_without_a_back_end),
        ON_EMBEDDED(a_ring_is_abandoned),
        ON_EMBEDDED(a_wait_that_times_out_says_why),
        ON_EMBEDDED(a_wait_for_a_usable_back_end_fails_at_once),
        ON_EMBEDDED(a_back_end_connects_to_it),
        ON_INFLIGHT(somebody_else_connects),
        ON_EMBEDDED(whoever_holds_the_other_end_of_a_pair_is_not_known),
        ON_EMBEDDED(every_message_is_told),
        ON_EMBEDDED(a_posted_message_is_told),
        ON_EMBEDDED(an_invalidation_that_is_refused_fails_the_wait),
        ON_EMBEDDED(an_invalidation_without_an_answer_loses_the_connection),
        ON_EMBEDDED(an_iommu_needs_what_the_back_end_does_not_offer),
        ON_EMBEDDED(the_end_of_the_channel_is_a_loss),
        ON_EMBEDDED(a_refused_request_of_the_back_end_is_named),
        ON_EMBEDDED(features_without_a_function_are_not_acknowledged),
        ON_EMBEDDED(a_miss_is_answered_from_inside),
        ON_EMBEDDED(it_is_freed_at_any_moment),
        ON_QEMU(it_is_freed_at_any_moment),
        ON_EMBEDDED(free_ends_what_another_thread_waits_for),
        ON_EMBEDDED(a_forked_child_frees_only_its_own),
        ON_EMBEDDED(a_null_device_is_refused),
        ON_EMBEDDED(bad_options_are_refused),
        ON_EMBEDDED(a_device_that_cannot_be_is_not_made),
        ON_EMBEDDED(bad_memory_is_refused),
        ON_EMBEDDED(bad_rings_are_refused),
        ON_EMBEDDED(bad_results_and_configuration_are_refused),
    };
    return cmocka_run_group_tests_name("test_device", tests, default_signals, NULL);
}
