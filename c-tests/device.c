/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "device.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LISTEN_MS = 20000, LOOK_MS = 300, LOOP_MS = 20 };

/* Programs take a while until they listen, and after that no time. */
static const struct vuf_client_options patient = {
    .size = sizeof patient,
    .connect_timeout_ms = LOOK_MS,
    .timeout_ms = WAIT_MS,
    .slow_timeout_ms = WAIT_MS,
    .drain_timeout_ms = WAIT_MS,
    .flags = VUF_CLIENT_WAIT_FOR_SOCKET,
};

void device_print_log(const struct device *device)
{
    FILE *log = fopen(device->backend.log, "re");
    if (log != NULL) {
        for (char line[512]; fgets(line, sizeof line, log) != NULL;) {
            print_error("back-end: %s", line);
        }
        fclose(log);
    }
}

void assert_ok_at(const struct device *device, int rc, const char *call, const char *file, int line)
{
    if (rc != 0) {
        print_error("%s:%d: %s: %d (%s)\n", file, line, call, rc, vuf_last_error());
        device_print_log(device);
        fail();
    }
}

/* ---- setting up and taking down ---- */

static struct device the_device;

int device_set_up(void **state)
{
    memset(&the_device, 0, sizeof the_device);
    the_device.fds = count_fds();
    *state = &the_device;
    return backend_prepare(&the_device.backend);
}

static void *serve_channel(void *argument)
{
    struct device *device = argument;
    while (!atomic_load(&device->done)) {
        struct pollfd item = {.fd = vuf_client_backend_fd(device->client), .events = POLLIN};
        int rc = poll(&item, 1, LOOP_MS) == 1
                     ? vuf_client_process_backend_requests(device->client)
                     : 0;
        if (rc != 0) {
            atomic_store(&device->ended, rc);
            break;
        }
    }
    return NULL;
}

void device_open_channel(struct device *device, const struct vuf_backend_ops *ops, void *user)
{
    assert_ok(device, vuf_client_open_backend_channel(device->client, ops, user));
    assert_int_equal(pthread_create(&device->loop, NULL, serve_channel, device), 0);
    device->looping = true;
}

void device_disconnect(struct device *device)
{
    if (device->looping) {
        atomic_store(&device->done, true);
        pthread_join(device->loop, NULL);
        atomic_store(&device->done, false);
        device->looping = false;
    }
    vuf_client_free(device->client);
    device->client = NULL;
    vuf_device_free(device->vuf);
    device->vuf = NULL;
    for (unsigned n = 0; n < DEVICE_QUEUES; n++) {
        virtq_destroy(&device->queues[n]);
    }
    guest_memory_destroy(&device->memory);
    guest_memory_destroy(&device->added);
    device->started = 0;
}

int device_tear_down(void **state)
{
    struct device *device = *state;
    device_disconnect(device);
    backend_stop(&device->backend);
    int fds = count_fds_after(device->fds);
    if (fds != device->fds) {
        print_error("%d descriptors were open before the test, %d are after it\n", device->fds,
                    fds);
        return -1;
    }
    return 0;
}

const char *device_program(const char *variable)
{
    const char *path = getenv(variable);
    if (path == NULL || access(path, X_OK) != 0) {
        print_message("skipped: %s does not name a program\n", variable);
        skip();
    }
    return path;
}

void device_run(struct device *device, const char *const args[])
{
    assert_int_equal(backend_start_program(&device->backend, args), 0);
}

void device_negotiate(struct device *device, struct wanted wanted)
{
    uint64_t offered, protocol;
    wanted.features |= BIT(VIRTIO_F_VERSION_1) | BIT(VUF_F_PROTOCOL_FEATURES);
    assert_ok(device, vuf_client_get_features(device->client, &offered));
    assert_int_equal(offered & wanted.features, wanted.features);
    assert_ok(device, vuf_client_get_protocol_features(device->client, &protocol));
    assert_int_equal(protocol & wanted.protocol, wanted.protocol);
    assert_int_equal(protocol & wanted.protocol_absent, 0);
    assert_ok(device, vuf_client_set_protocol_features(device->client, wanted.protocol));
    assert_ok(device, vuf_client_set_owner(device->client));
    assert_ok(device, vuf_client_set_features(device->client, wanted.features));
    device->features = wanted.features;
    device->protocol = wanted.protocol;
}

void device_connect(struct device *device, struct wanted wanted)
{
    int64_t deadline = now_ms() + LISTEN_MS;
    int rc, status;
    do {
        rc = vuf_client_connect(device->backend.socket, &patient, &device->client);
    } while (rc == -ETIMEDOUT && now_ms() < deadline &&
             !backend_ended(&device->backend, 0, &status));
    assert_ok(device, rc);
    device_negotiate(device, wanted);
}

void device_share(struct device *device)
{
    device_share_at(device, DEVICE_ADDR, DEVICE_ADDR);
}

void device_share_at(struct device *device, uint64_t guest_addr, uint64_t user_addr)
{
    assert_int_equal(guest_memory_create(&device->memory, DEVICE_ADDR, DEVICE_SIZE), 0);
    struct vuf_mem_region region = guest_memory_region(&device->memory);
    region.guest_addr = guest_addr;
    region.user_addr = user_addr;
    assert_ok(device, vuf_client_set_mem_table(device->client, &region, 1));
}

void *device_at(const struct device *device, uint64_t addr)
{
    const struct guest_memory *added = &device->added;
    bool there = added->host != NULL && addr - added->guest_addr < added->size;
    return guest_memory_at(there ? added : &device->memory, addr);
}

/* ---- queues ---- */

static void start_queue(struct device *device, unsigned index)
{
    struct virtq *q = &device->queues[index];
    assert_ok(device, virtq_start(q, device->client, virtq_base(q)));
}

void device_make_queues(struct device *device, unsigned n)
{
    assert_true(n <= DEVICE_QUEUES);
    for (unsigned index = 0; index < n; index++) {
        struct virtq *q = &device->queues[index];
        uint64_t addr = DEVICE_ADDR + (uint64_t)index * VIRTQ_BYTES;
        virtq_destroy(q);
        assert_int_equal(virtq_create(q, index, DEVICE_QUEUE_NUM, &device->memory, addr), 0);
        q->packed = (device->features & BIT(VIRTIO_F_RING_PACKED)) != 0;
        q->log_used = (device->features & BIT(VUF_F_LOG_ALL)) != 0;
    }
}

void device_start(struct device *device, unsigned n)
{
    device_make_queues(device, n);
    for (unsigned index = 0; index < n; index++) {
        start_queue(device, index);
        device->started = index + 1;
    }
}

void device_stop_queue(struct device *device, unsigned index)
{
    uint32_t base;
    struct virtq *q = &device->queues[index];
    assert_ok(device, virtq_stop(q, device->client, &base));
    assert_int_equal(base, virtq_base(q));
}

void device_restart_queue(struct device *device, unsigned index)
{
    start_queue(device, index);
}

void device_stop(struct device *device)
{
    for (unsigned index = 0; index < device->started; index++) {
        device_stop_queue(device, index);
    }
}

void device_reset(struct device *device)
{
    unsigned n = device->started;
    device_stop(device);
    assert_ok(device, vuf_client_reset_device(device->client));
    assert_ok(device, vuf_client_set_features(device->client, device->features));
    device_start(device, n);
}

/* ---- buffers ---- */

int device_offer(struct device *device, unsigned index, const struct virtq_part *parts,
                 unsigned out, unsigned in)
{
    int slot = virtq_add(&device->queues[index], parts, out, in);
    assert_true(slot >= 0);
    return slot;
}

int device_post(struct device *device, unsigned index, const struct virtq_part *parts,
                unsigned out, unsigned in)
{
    int slot = device_offer(device, index, parts, out, in);
    virtq_kick(&device->queues[index]);
    return slot;
}

uint32_t device_take(struct device *device, unsigned index, int slot)
{
    uint32_t written = 0;
    int used = virtq_wait(&device->queues[index], WAIT_MS, &written);
    if (used != slot) {
        print_error("queue %u: waiting for buffer %d gave %d%s%s\n", index, slot, used,
                    used < 0 ? ": " : "", used < 0 ? strerror(-used) : "");
        device_print_log(device);
        fail();
    }
    return written;
}

uint32_t device_request(struct device *device, unsigned index, const struct virtq_part *parts,
                        unsigned out, unsigned in)
{
    return device_take(device, index, device_post(device, index, parts, out, in));
}
