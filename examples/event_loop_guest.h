/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What the guest of event_loop.c does with one disk: it writes a number all over a
 * block, reads the block back, compares, and goes on with the next number; on several
 * blocks at once. A VMM has no use for it.
 */

#ifndef EXAMPLE_EVENT_LOOP_GUEST_H
#define EXAMPLE_EVENT_LOOP_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "virtio_blk.h"

enum {
    GUEST_REQUESTS = 8, /* at once */
    GUEST_BLOCK_SIZE = 4096,
    GUEST_DATA_AT = 0x8000, /* behind the ring */
    GUEST_BYTES = GUEST_DATA_AT + GUEST_REQUESTS * GUEST_BLOCK_SIZE,
};

struct guest {
    const struct guest_memory *memory;
    uint64_t addr; /* of its part of the memory, GUEST_BYTES */
    struct blk_ring ring;
    struct guest_request {
        int slot;      /* -1: not in flight */
        uint32_t type; /* what is in flight or comes next */
        uint64_t number;
        int64_t since_us;
    } requests[GUEST_REQUESTS];
    unsigned long finished;
    int64_t slowest_us; /* for the caller to set to 0 */
};

void guest_init(struct guest *guest, const struct guest_memory *memory, uint64_t addr);

/* Makes a ring for vuf_device_start(). Returns 0, or -errno. */
int guest_boot(struct guest *guest);

/* Makes available whatever is not in flight. */
void guest_submit(struct guest *guest);

/* Takes what is finished. Returns how many requests that were, or -1 where one failed
   or a block does not hold what was written; why gets the words. */
int guest_interrupt(struct guest *guest, const char **why);

bool guest_is_idle(const struct guest *guest);

/* Drops the ring. What was in flight comes first after the next guest_boot(). */
void guest_reset(struct guest *guest);

#endif
