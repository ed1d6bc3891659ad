/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "event_loop_guest.h"

#include <errno.h>
#include <time.h>

#include "names.h"

enum { RING_NUM = 32, WORDS = GUEST_BLOCK_SIZE / 8 };

_Static_assert(BLK_RING_BYTES <= GUEST_DATA_AT, "");
_Static_assert(GUEST_REQUESTS <= RING_NUM / 3, "");

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void guest_init(struct guest *guest, const struct guest_memory *memory, uint64_t addr)
{
    *guest = (struct guest){.memory = memory, .addr = addr};
    for (int n = 0; n < GUEST_REQUESTS; n++) {
        guest->requests[n] =
            (struct guest_request){.slot = -1, .type = VIRTIO_BLK_T_OUT, .number = 1};
    }
}

int guest_boot(struct guest *guest)
{
    return blk_ring_create(&guest->ring, 0, RING_NUM, guest->memory, guest->addr);
}

void guest_reset(struct guest *guest)
{
    blk_ring_destroy(&guest->ring);
    for (int n = 0; n < GUEST_REQUESTS; n++) {
        guest->requests[n].slot = -1;
    }
}

static uint64_t data_at(int n)
{
    return GUEST_DATA_AT + (uint64_t)n * GUEST_BLOCK_SIZE;
}

void guest_submit(struct guest *guest)
{
    for (int n = 0; n < GUEST_REQUESTS; n++) {
        struct guest_request *request = &guest->requests[n];
        uint64_t addr = guest->addr + data_at(n);
        uint64_t *data = guest_memory_at(guest->memory, addr);
        if (request->slot >= 0) {
            continue;
        }
        for (int word = 0; word < WORDS; word++) {
            data[word] = request->type == VIRTIO_BLK_T_OUT ? request->number : 0;
        }
        request->since_us = now_us();
        request->slot =
            blk_ring_submit(&guest->ring, request->type,
                            (uint64_t)n * (GUEST_BLOCK_SIZE / SECTOR_SIZE), addr, GUEST_BLOCK_SIZE);
    }
}

/* Of a write this is what was written, too: the device does not touch it. */
static bool holds_its_number(const struct guest *guest, int n)
{
    const uint64_t *data = guest_memory_at(guest->memory, guest->addr + data_at(n));
    bool same = true;
    for (int word = 0; word < WORDS; word++) {
        same &= data[word] == guest->requests[n].number;
    }
    return same;
}

int guest_interrupt(struct guest *guest, const char **why)
{
    int count = 0;
    for (int n = 0; n < GUEST_REQUESTS; n++) {
        struct guest_request *request = &guest->requests[n];
        int status = -ETIMEDOUT;
        if (request->slot >= 0) {
            status = blk_ring_wait(&guest->ring, request->slot, 0, NULL);
        }
        if (status == -ETIMEDOUT) {
            continue;
        }
        if (status != VIRTIO_BLK_S_OK) {
            *why = status < 0 ? blk_ring_strerror(status) : blk_status_name(status);
            return -1;
        }
        if (!holds_its_number(guest, n)) {
            *why = "a block does not hold what was written";
            return -1;
        }
        int64_t took_us = now_us() - request->since_us;
        guest->slowest_us = took_us > guest->slowest_us ? took_us : guest->slowest_us;
        bool in = request->type == VIRTIO_BLK_T_IN;
        request->type = in ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
        request->number += in;
        request->slot = -1;
        guest->finished++;
        count++;
    }
    return count;
}

bool guest_is_idle(const struct guest *guest)
{
    bool idle = true;
    for (int n = 0; n < GUEST_REQUESTS; n++) {
        idle &= guest->requests[n].slot < 0;
    }
    return idle;
}
