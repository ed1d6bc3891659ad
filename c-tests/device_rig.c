/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "device_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* ---- setting up and taking down ---- */

static int create_guest(struct fixture *f)
{
    int rc = guest_memory_create(&f->memory, GUEST_ADDR, GUEST_SIZE);
    for (unsigned n = 0; n < RINGS && rc == 0; n++) {
        rc = blk_ring_create(&f->rings[n], n, RING_NUM, &f->memory, RING_ADDR(n));
    }
    return rc;
}

static void destroy_guest(struct fixture *f)
{
    for (unsigned n = 0; n < RINGS; n++) {
        blk_ring_destroy(&f->rings[n]);
    }
    guest_memory_destroy(&f->memory);
}

void boot(struct fixture *f)
{
    destroy_guest(f);
    assert_int_equal(create_guest(f), 0);
}

static int set_up_fixture(struct fixture *f, enum kind kind)
{
    memset(f, 0, sizeof *f);
    f->kind = kind;
    f->fds = count_fds();
    f->disk = -1;
    for (unsigned n = 0; n < RINGS; n++) {
        f->rings[n] = (struct blk_ring){.kick_fd = -1, .call_fd = -1, .err_fd = -1};
    }
    f->skipped = kind == QEMU && !qemu_available();
    int rc = guest_memory_create(&f->second, SECOND_ADDR, SECOND_SIZE);
    return rc == 0 ? create_guest(f) : rc;
}

int set_up_guest(void **state)
{
    static struct fixture fixture;
    enum kind kind = *state != NULL ? *(const enum kind *)*state : MOCK;
    *state = &fixture;
    return set_up_fixture(&fixture, kind);
}

int set_up_back_end(void **state)
{
    int rc = set_up_guest(state);
    struct fixture *f = *state;
    if (rc != 0 || f->skipped) {
        return rc;
    }
    rc = start_backend(f, NULL);
    snprintf(f->path, sizeof f->path, "%.63s/device", f->backend.dir);
    f->disk = open(f->backend.disk, O_RDWR | O_CLOEXEC);
    return rc;
}

struct fixture *begin(void **state)
{
    struct fixture *f = *state;
    if (f->skipped) {
        skip();
    }
    return f;
}

void free_device(struct fixture *f)
{
    vuf_device_free(f->device);
    f->device = NULL;
}

int tear_down_guest(void **state)
{
    struct fixture *f = *state;
    vuf_memory_group_free(f->group);
    free_device(f);
    vuf_device_free(f->member);
    destroy_guest(f);
    guest_memory_destroy(&f->second);
    if (f->disk >= 0) {
        close(f->disk);
    }
    backend_stop(&f->backend);
    backend_stop(&f->other);
    if (count_fds() != f->fds) {
        print_error("%d descriptors are open, and %d were\n", count_fds(), f->fds);
        return -1;
    }
    return 0;
}

void start_over(struct fixture *f)
{
    void *state = f;
    if (f->device != NULL) {
        assert_int_equal(tear_down_guest(&state), 0);
        assert_int_equal(set_up_fixture(f, f->kind), 0);
    }
}

int start_backend(struct fixture *f, const char *const args[])
{
    struct backend *b = &f->backend;
    bool again = b->dir[0] != '\0';
    switch (f->kind) {
    case EMBEDDED:
        return again ? backend_again_embedded(b, 1, false) : backend_start_embedded(b, 1, false);
    case QEMU:
        return again ? backend_again_qemu(b, 1) : backend_start_qemu(b, 1);
    case INFLIGHT:
        return again ? backend_again_inflight(b, args) : backend_start_inflight(b, args);
    case FOREIGN:
        return backend_start_foreign(b, args);
    default:
        return again ? backend_again_mock(b, args) : backend_start_mock(b, args);
    }
}

void start_again(struct fixture *f)
{
    assert_int_equal(start_backend(f, NULL), 0);
}

/* ---- an event loop ---- */

struct vuf_device_event take(struct fixture *f)
{
    struct vuf_device_event event = {.size = sizeof event};
    assert_ok(vuf_device_process(f->device, &event));
    assert_true(event.kind < LENGTH(f->seen));
    f->seen[event.kind]++;
    f->last[event.kind] = event;
    return event;
}

void take_all(struct fixture *f)
{
    while (take(f).kind != VUF_DEVICE_EVENT_NONE) {
    }
}

bool drive(struct fixture *f, int64_t deadline)
{
    struct pollfd item = {.fd = vuf_device_get_fd(f->device), .events = POLLIN};
    int64_t left = deadline - now_ms();
    if (take(f).kind == VUF_DEVICE_EVENT_NONE && left > 0) {
        poll(&item, 1, left < 20 ? (int)left : 20);
    }
    return left > 0;
}

struct vuf_device_event until(struct fixture *f, uint32_t kind)
{
    unsigned before = f->seen[kind];
    for (int64_t deadline = now_ms() + PEER_MS; f->seen[kind] == before;) {
        if (!drive(f, deadline)) {
            print_error("%s did not come\n", vuf_device_event_name(kind));
            fail();
        }
    }
    return f->last[kind];
}

void for_a_while(struct fixture *f)
{
    ALWAYS(f, WHILE_MS, true);
}

void forget_events(struct fixture *f)
{
    take_all(f);
    memset(f->seen, 0, sizeof f->seen);
    memset(f->last, 0, sizeof f->last);
}

/* ---- what the device says ---- */

struct vuf_device_info info_of(struct fixture *f)
{
    struct vuf_device_info info = {.size = sizeof info};
    assert_ok(vuf_device_get_info(f->device, &info));
    return info;
}

struct vuf_quiet quiet_of(struct fixture *f)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_get_quiet(f->device, &quiet));
    return quiet;
}

uint8_t virtio_status(struct fixture *f, uint8_t written)
{
    uint8_t status = 0xee;
    assert_ok(vuf_device_get_virtio_status(f->device, written, &status));
    return status;
}

void assert_has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        print_error("\"%s\" does not have \"%s\"\n", text, part);
        fail();
    }
}

/* ---- what the guest does ---- */

void negotiate(struct fixture *f)
{
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    assert_ok(vuf_device_set_features(f->device, info_of(f).offered_features & WANTED));
    assert_ok(vuf_device_set_memory(f->device, &region, 1, 0));
}

int start_ring(struct fixture *f, unsigned index, uint32_t base_mode)
{
    struct vuf_ring ring = blk_ring_of_device(&f->rings[index], base_mode);
    return vuf_device_start(f->device, &ring, 1);
}

struct vuf_quiet stop_all(struct fixture *f, uint32_t mode, uint32_t time)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_stop(f->device, NULL, 0, mode, time, &quiet));
    return quiet;
}

struct vuf_quiet reset(struct fixture *f, uint32_t time)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_reset(f->device, time, &quiet));
    return quiet;
}

int submit(struct fixture *f, unsigned ring, uint32_t type, uint64_t sector, uint64_t addr,
           uint32_t length)
{
    int slot = blk_ring_submit(&f->rings[ring], type, sector, addr, length);
    assert_true(slot >= 0);
    return slot;
}

void finish(struct fixture *f, unsigned ring, int slot)
{
    int status = -ETIMEDOUT;
    for (int64_t deadline = now_ms() + PEER_MS; status == -ETIMEDOUT && now_ms() < deadline;) {
        status = blk_ring_wait(&f->rings[ring], slot, 5, NULL);
        take_all(f);
    }
    if (status != VIRTIO_BLK_S_OK) {
        print_error("request of ring %u: %s (LOST: \"%s\")\n", ring,
                    status < 0 ? blk_ring_strerror(status) : blk_status_name(status),
                    TEXT(f, LOST));
        fail();
    }
}
