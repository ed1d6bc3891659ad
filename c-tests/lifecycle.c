/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "lifecycle.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Programs take a while to start, and a busy machine takes longer. */
enum { START_MS = 20000, FREEZE_MS = 1500, SHORT_MS = 50, ROUNDS = 3, QUICK_ROUNDS = 20 };

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static unsigned sent[GET_VRING_BASE_SKIP_DRAIN + 1];

/* ---- steps ---- */

static void count_request(void *user, const struct vuf_trace_record *record)
{
    (void)user;
    if (record->socket == VUF_TRACE_MAIN && record->direction == VUF_TRACE_SENT &&
        record->request < LENGTH(sent)) {
        sent[record->request]++;
    }
}

unsigned life_sent(const struct device *device, enum request request)
{
    (void)device;
    return sent[request];
}

void life_open(struct device *device, const struct life *life)
{
    struct vuf_device_options options = life->options;
    options.size = sizeof options;
    options.num_rings = life->queues;
    options.required_protocol_features = life->protocol;
    options.first_delay_ms = 2;
    options.max_delay_ms = 50;
    options.jitter_percent = 1;
    if (options.slow_timeout_ms == 0) {
        options.slow_timeout_ms = options.drain_timeout_ms = WAIT_MS;
    }
    options.timeout_ms = WAIT_MS;
    memset(sent, 0, sizeof sent);
    assert_int_equal(guest_memory_create(&device->memory, DEVICE_ADDR, DEVICE_SIZE), 0);
    const char *path = device->backend.socket;
    assert_ok(device, life->connects ? vuf_device_listen(path, 0600, &options, &device->vuf)
                                     : vuf_device_open(path, &options, &device->vuf));
    assert_ok(device, vuf_device_set_trace(device->vuf, count_request, NULL));
}

struct vuf_device_event life_until(struct device *device, uint32_t kind)
{
    struct vuf_device_event event = {.size = sizeof event};
    struct pollfd item = {.fd = vuf_device_get_fd(device->vuf), .events = POLLIN};
    for (int64_t deadline = now_ms() + START_MS, now; (now = now_ms()) < deadline;) {
        assert_ok(device, vuf_device_process(device->vuf, &event));
        if (event.kind == kind) {
            return event;
        }
        if (event.kind == VUF_DEVICE_EVENT_NONE) {
            poll(&item, 1, (int)(deadline - now));
        } else if (event.kind == VUF_DEVICE_EVENT_LOST) {
            print_message("lost: %s\n", event.text);
        }
    }
    print_error("%s did not come\n", vuf_device_event_name(kind));
    device_print_log(device);
    fail();
    return event;
}

void life_wait(struct device *device)
{
    assert_ok(device, vuf_device_wait(device->vuf, START_MS));
    assert_int_equal(life_info(device).settled, 1);
}

struct vuf_device_info life_info(const struct device *device)
{
    struct vuf_device_info info = {.size = sizeof info};
    assert_ok(device, vuf_device_get_info(device->vuf, &info));
    return info;
}

void life_start(struct device *device, const struct life *life, uint32_t base_mode)
{
    struct vuf_ring rings[DEVICE_QUEUES];
    for (unsigned index = 0; index < life->queues; index++) {
        rings[index] = virtq_ring_of_device(&device->queues[index], base_mode);
    }
    assert_ok(device, vuf_device_start(device->vuf, rings, life->queues));
    life_wait(device);
}

void life_boot(struct device *device, const struct life *life)
{
    const struct vuf_mem_region region = guest_memory_region(&device->memory);
    device->features = life->features | BIT(VIRTIO_F_VERSION_1);
    assert_int_equal(life_info(device).offered_features & device->features, device->features);
    assert_ok(device, vuf_device_set_features(device->vuf, device->features));
    if (device->added.host == NULL) {
        assert_ok(device, vuf_device_set_memory(device->vuf, &region, 1, 0));
    }
    device_make_queues(device, life->queues);
    life_start(device, life, VUF_RING_BASE_NEW);
    if (life->greet != NULL) {
        life->greet(device);
    }
}

/* On an event loop, or by calls alone; where nothing but a result is waited for. */
static struct vuf_quiet quiet_now(struct device *device)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(device, vuf_device_get_quiet(device->vuf, &quiet));
    return quiet;
}

static void assert_bases(struct device *device, const struct life *life)
{
    for (unsigned index = 0; index < life->queues; index++) {
        uint32_t base;
        assert_ok(device, vuf_device_get_vring_base(device->vuf, index, &base));
        assert_int_equal(base, virtq_base(&device->queues[index]));
    }
}

void life_stop(struct device *device, const struct life *life)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(device,
              vuf_device_stop(device->vuf, NULL, 0, VUF_STOP_DRAIN, WAIT_MS, &quiet));
    assert_int_equal(quiet.quiesced, 1);
    assert_int_equal(quiet.bases_valid, 1);
    assert_bases(device, life);
}

void life_reset(struct device *device, const struct life *life)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    (void)life;
    assert_ok(device, vuf_device_reset(device->vuf, WAIT_MS, &quiet));
    assert_int_equal(quiet.quiesced, 1);
    assert_int_equal(life_info(device).needs_reset, 0);
    life_wait(device);
    assert_int_equal(life_info(device).acked_features, 0);
}

static void assert_connected(struct device *device, const struct life *life)
{
    const struct vuf_device_info info = life_info(device);
    assert_int_equal(info.connected, 1);
    assert_int_equal(info.unfenced, 0);
    assert_int_equal(info.protocol_features & life->protocol, life->protocol);
    assert_int_equal(info.offered_protocol_features & life->protocol_absent, 0);
    assert_int_equal(info.peer_pid, device->backend.pid);
    assert_int_equal(info.peer_uid, getuid());
    assert_int_equal(info.offered_features & BIT(VUF_F_PROTOCOL_FEATURES), 0);
}

void life_begin(struct device *device, const struct life *life)
{
    life_open(device, life);
    life->run(device);
    life_until(device, VUF_DEVICE_EVENT_CONNECTED);
    assert_connected(device, life);
    life_boot(device, life);
    life_until(device, VUF_DEVICE_EVENT_APPLIED);
    const struct vuf_device_info info = life_info(device);
    assert_int_equal(info.acked_features, device->features);
    assert_int_equal(info.connections, 1);
    life->work(device, DEVICE_BUFFERS);
}

/* ---- what every back-end goes through ---- */

static void begin_once(struct device *device, const struct life *life)
{
    if (device->vuf == NULL) {
        life_begin(device, life);
    }
}

static void stop_one(struct device *device, uint32_t index)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const struct virtq *q = &device->queues[index];
    uint32_t base;
    assert_ok(device, vuf_device_stop(device->vuf, &index, 1, VUF_STOP_DRAIN, 0, &quiet));
    life_wait(device);
    assert_int_equal(quiet_now(device).quiesced, 1);
    assert_int_equal(quiet_now(device).bases_valid, 1);
    assert_ok(device, vuf_device_get_vring_base(device->vuf, index, &base));
    assert_int_equal(base, virtq_base(q));
    struct vuf_ring ring = virtq_ring_of_device(q, VUF_RING_BASE_AT);
    ring.base = base;
    assert_ok(device, vuf_device_start(device->vuf, &ring, 1));
    life_wait(device);
}

void life_check_stops(struct device *device, const struct life *life)
{
    begin_once(device, life);
    const uint64_t connections = life_info(device).connections;
    for (int round = 0; round < ROUNDS; round++) {
        /* The kick of the start is still under way when the stop comes. */
        for (int quick = 0; quick < QUICK_ROUNDS; quick++) {
            life_stop(device, life);
            life_start(device, life, VUF_RING_BASE_RESUME);
        }
        life->work(device, DEVICE_BUFFERS);
    }
    for (uint32_t index = 0; index < life->queues; index++) {
        stop_one(device, index);
        if (life->stops_together) {
            life_stop(device, life);
            life_start(device, life, VUF_RING_BASE_RESUME);
        }
        life->work(device, DEVICE_BUFFERS);
    }
    assert_int_equal(life_info(device).connections, connections);
}

void life_check_resets(struct device *device, const struct life *life, enum request by)
{
    begin_once(device, life);
    const uint64_t connections = life_info(device).connections;
    const unsigned tables = life_sent(device, SET_MEM_TABLE);
    const unsigned regions = life_sent(device, ADD_MEM_REG);
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned stopped = life_sent(device, GET_VRING_BASE);
        unsigned resets = life_sent(device, RESET_DEVICE), status = life_sent(device, SET_STATUS);
        life_reset(device, life);
        assert_int_equal(life_sent(device, GET_VRING_BASE) - stopped, life->queues);
        assert_int_equal(life_sent(device, RESET_DEVICE) - resets, by == RESET_DEVICE);
        assert_int_equal(life_sent(device, SET_STATUS) - status, by == SET_STATUS);
        life_boot(device, life);
        life->work(device, DEVICE_BUFFERS);
    }
    /* The memory has stayed as well. */
    assert_int_equal(life_sent(device, SET_MEM_TABLE), tables);
    assert_int_equal(life_sent(device, ADD_MEM_REG), regions);
    assert_int_equal(life_info(device).connections, connections);
}

void life_check_memory(struct device *device, const struct life *life)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    begin_once(device, life);
    const uint64_t connections = life_info(device).connections;
    assert_int_equal(guest_memory_create(&device->added, LIFE_ADDED, LIFE_ADDED_SIZE), 0);
    const struct vuf_mem_region both[] = {guest_memory_region(&device->memory),
                                          guest_memory_region(&device->added)};
    assert_ok(device, vuf_device_memory_fits(device->vuf, both, 2));
    for (int round = 0; round < ROUNDS; round++) {
        assert_ok(device, round == 1 ? vuf_device_set_memory(device->vuf, both, 2,
                                                             VUF_MEMORY_ALLOW_GAP)
                                     : vuf_device_add_memory(device->vuf, &both[1]));
        life_wait(device);
        life->work(device, LIFE_ADDED);
        life->work(device, DEVICE_BUFFERS);
        assert_ok(device, vuf_device_remove_memory(device->vuf, LIFE_ADDED, LIFE_ADDED_SIZE,
                                                   &quiet));
        assert_int_equal(quiet.quiesced, 0);
        life_wait(device);
        assert_int_equal(quiet_now(device).quiesced, 1);
        life->work(device, DEVICE_BUFFERS);
    }
    assert_int_equal(life_info(device).connections, connections);
    guest_memory_destroy(&device->added);
}

/* Without a back-end nothing is in use, and it is tried again and again. */
static void assert_lost(struct device *device, const struct life *life, uint32_t recovery)
{
    const struct vuf_device_event lost = life_until(device, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(lost.recovery, recovery);
    assert_int_equal(lost.code, VUF_E_DISCONNECTED);
    assert_int_equal(lost.error_class, VUF_CLASS_TRANSPORT);
    assert_string_not_equal(lost.text, "");
    if (recovery == VUF_RECOVERY_NEEDS_RESET) {
        life_until(device, VUF_DEVICE_EVENT_NEEDS_RESET);
        assert_int_equal(life_info(device).needs_reset, 1);
    }
    if (!life->connects) {
        const struct vuf_device_event retrying = life_until(device, VUF_DEVICE_EVENT_RETRYING);
        assert_int_equal(retrying.phase, VUF_PHASE_CONNECT);
        assert_true(retrying.code == -ECONNREFUSED || retrying.code == -ENOENT);
        assert_true(retrying.count > 0 && retrying.delay_ms > 0);
    }
    assert_int_equal(life_info(device).connected, 0);
}

void life_check_kills(struct device *device, const struct life *life, uint32_t recovery)
{
    const int rounds = life->kills != 0 ? (int)life->kills : ROUNDS;
    begin_once(device, life);
    const uint64_t connections = life_info(device).connections;
    /* It is told again, and to every new back-end. */
    assert_int_equal(guest_memory_create(&device->added, LIFE_ADDED, LIFE_ADDED_SIZE), 0);
    const struct vuf_mem_region added = guest_memory_region(&device->added);
    assert_ok(device, vuf_device_add_memory(device->vuf, &added));
    life_wait(device);
    for (int round = 0; round < rounds; round++) {
        life->work(device, LIFE_ADDED);
        backend_kill(&device->backend);
        assert_lost(device, life, recovery);
        life->run(device);
        if (recovery == VUF_RECOVERY_NEEDS_RESET) {
            life_until(device, VUF_DEVICE_EVENT_CONNECTED);
            assert_int_equal(life_info(device).needs_reset, 1);
            assert_int_equal(vuf_device_wait(device->vuf, SHORT_MS), VUF_E_STATE);
            life_reset(device, life);
            life_boot(device, life);
        } else {
            life_until(device, VUF_DEVICE_EVENT_RECOVERED);
            life_wait(device);
            if (life->greet != NULL) {
                life->greet(device);
            }
        }
        assert_connected(device, life);
        assert_int_equal(life_info(device).acked_features, device->features);
        life->work(device, DEVICE_BUFFERS);
    }
    assert_int_equal(life_info(device).connections, connections + rounds);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(device, vuf_device_remove_memory(device->vuf, LIFE_ADDED, LIFE_ADDED_SIZE, &quiet));
    life_wait(device);
    assert_int_equal(quiet_now(device).quiesced, 1);
    guest_memory_destroy(&device->added);
}

/* Where a program was given up on: until it is in use again, by others if need be. */
static void begin_anew(struct device *device, const struct life *life)
{
    int status;
    if (life->serves_one) {
        assert_true(backend_ended(&device->backend, WAIT_MS, &status));
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        life_until(device, VUF_DEVICE_EVENT_RETRYING);
        life->run(device);
    }
    life_until(device, VUF_DEVICE_EVENT_CONNECTED);
    assert_connected(device, life);
}

/* Features and memory are as they were; the rings have to begin anew. */
static void start_anew(struct device *device, const struct life *life)
{
    device_make_queues(device, life->queues);
    life_start(device, life, VUF_RING_BASE_NEW);
    if (life->greet != NULL) {
        life->greet(device);
    }
}

void life_check_hangs_up(struct device *device, const struct life *life)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    begin_once(device, life);
    const uint64_t connections = life_info(device).connections;
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t base;
        assert_ok(device,
                  vuf_device_stop(device->vuf, NULL, 0, VUF_STOP_ABANDON, WAIT_MS, &quiet));
        assert_int_equal(quiet.quiesced, 1);
        assert_int_equal(quiet.bases_valid, 0);
        assert_int_equal(vuf_device_get_vring_base(device->vuf, 0, &base), VUF_E_STATE);
        assert_int_equal(life_until(device, VUF_DEVICE_EVENT_LOST).code, -ECANCELED);
        begin_anew(device, life);
        if (round == 0) {
            start_anew(device, life);
        } else {
            life_reset(device, life);
            life_boot(device, life);
        }
        life->work(device, DEVICE_BUFFERS);
    }
    /* The socket of a program that ends takes connections until it has. */
    const uint64_t made = life_info(device).connections - connections;
    assert_true(made == ROUNDS || (life->serves_one && made > ROUNDS));
}

/* How rings go on after a loss. */
static uint32_t policy_of(struct device *device, const struct life *life)
{
    if (life_info(device).protocol_features & BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD)) {
        return VUF_RECOVERY_INFLIGHT;
    }
    if (device->features & BIT(VIRTIO_F_RING_PACKED)) {
        return VUF_RECOVERY_NEEDS_RESET;
    }
    if (device->features & BIT(VIRTIO_F_IN_ORDER)) {
        return VUF_RECOVERY_IN_ORDER;
    }
    switch (life->options.out_of_order) {
    case VUF_OUT_OF_ORDER_NEEDS_RESET:
        return VUF_RECOVERY_NEEDS_RESET;
    case VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE:
        return VUF_RECOVERY_RESUME_FROM_AVAILABLE;
    case VUF_OUT_OF_ORDER_DEFAULT:
        return life->options.device_id == VIRTIO_ID_FS ? VUF_RECOVERY_NEEDS_RESET
                                                       : VUF_RECOVERY_REPLAY_FROM_USED;
    default:
        return VUF_RECOVERY_REPLAY_FROM_USED;
    }
}

/* The stop of all rings was cut off by a loss: they are where the policy has them go on,
   if anywhere. No request is unfinished, so that is the same place for all policies. */
static void assert_bases_of(struct device *device, const struct life *life, uint32_t policy)
{
    bool known = policy != VUF_RECOVERY_NEEDS_RESET;
    assert_int_equal(quiet_now(device).bases_valid, known);
    if (known) {
        assert_bases(device, life);
        return;
    }
    for (unsigned index = 0; index < life->queues; index++) {
        uint32_t base;
        assert_int_equal(vuf_device_get_vring_base(device->vuf, index, &base), VUF_E_STATE);
    }
}

/* With a program that has been frozen: in one of several threads that takes a while. */
static struct vuf_quiet begin_to_stop(struct device *device)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const pid_t pid = device->backend.pid;
    int status;
    assert_int_equal(kill(pid, SIGSTOP), 0);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    assert_ok(device, vuf_device_stop(device->vuf, NULL, 0, VUF_STOP_DRAIN, 0, &quiet));
    return quiet;
}

void life_check_freezes(struct device *device, const struct life *given)
{
    struct life life = *given;
    life.options.stall_ms = 20;
    life.options.slow_timeout_ms = life.options.drain_timeout_ms = FREEZE_MS;
    life.options.fence_ms = 20;
    life_begin(device, &life);

    /* It is late. */
    assert_int_equal(begin_to_stop(device).quiesced, 0);
    const struct vuf_device_event late = life_until(device, VUF_DEVICE_EVENT_STALLED);
    assert_true(late.request == SET_VRING_ENABLE || late.request == GET_VRING_BASE);
    assert_int_equal(kill(device->backend.pid, SIGCONT), 0);
    life_wait(device);
    assert_int_equal(quiet_now(device).quiesced, 1);
    assert_bases(device, &life);
    life_start(device, &life, VUF_RING_BASE_RESUME);
    life.work(device, DEVICE_BUFFERS);

    /* It is too late, and may use the memory until it has seen that it was given up. */
    const uint32_t policy = policy_of(device, &life);
    assert_int_equal(begin_to_stop(device).quiesced, 0);
    const struct vuf_device_event lost = life_until(device, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(lost.code, -ETIMEDOUT);
    assert_int_equal(lost.recovery,
                     policy == VUF_RECOVERY_NEEDS_RESET ? VUF_RECOVERY_IDLE : policy);
    assert_true(lost.request == SET_VRING_ENABLE || lost.request == GET_VRING_BASE);
    assert_int_equal(lost.peer_pid, device->backend.pid);
    const struct vuf_device_event unfenced = life_until(device, VUF_DEVICE_EVENT_UNFENCED);
    assert_int_equal(unfenced.peer_pid, device->backend.pid);
    assert_int_equal(life_info(device).peer_pid, -1);
    assert_int_equal(life_info(device).unfenced, 1);
    assert_int_equal(quiet_now(device).quiesced, 0);
    assert_int_equal(vuf_device_wait(device->vuf, SHORT_MS), -ETIMEDOUT);
    assert_int_equal(kill(device->backend.pid, SIGCONT), 0);
    life_until(device, VUF_DEVICE_EVENT_FENCED);
    assert_int_equal(quiet_now(device).quiesced, 1);
    assert_bases_of(device, &life, policy);
    begin_anew(device, &life);
    start_anew(device, &life);
    life.work(device, DEVICE_BUFFERS);
}
