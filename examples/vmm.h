/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The monitor's part of a small program: one vuf_device with its memory and queues,
 * from its back-end's socket to the end. What a guest's driver does is left to the
 * program (virtiofs_ls.c, net_loop.c).
 *
 * Whatever goes wrong ends the program with a line on the standard error and the exit
 * status 1, a back-end that is lost as well. How to outlive one: event_loop.c.
 */

#ifndef EXAMPLE_VMM_H
#define EXAMPLE_VMM_H

#include <stdint.h>

#include "vhost_user_frontend.h"
#include "virtio_blk.h" /* struct guest_memory */
#include "virtq.h"

#define BIT(n) (UINT64_C(1) << (n))

enum { VMM_QUEUES = 4, VMM_QUEUE_NUM = 128 };

/* Guest memory: the queues, and from VMM_BUFFERS on whatever the driver likes. */
#define VMM_ADDR UINT64_C(0x40000000)
#define VMM_BUFFERS (VMM_ADDR + 0x10000u)
#define VMM_SIZE UINT64_C(0x200000)

struct vmm {
    const char *program; /* its name, for what it says when it fails */
    struct vuf_device *device;
    uint64_t features; /* what the driver has acknowledged */
    struct guest_memory memory;
    struct virtq queues[VMM_QUEUES];
    uint32_t num_queues;
};

_Noreturn void vmm_die(const struct vmm *vmm, const char *what, const char *why);

/*
 * Connects as soon as somebody listens on the socket, and starts all queues.
 *
 * options   its num_rings, at most VMM_QUEUES, is the number of queues
 * features  what the driver knows besides options->required_features; it gets what
 *           of it is offered
 */
void vmm_start(struct vmm *vmm, const char *socket, const struct vuf_device_options *options,
               uint64_t features);

/* A guest address inside memory as a pointer. */
void *vmm_at(const struct vmm *vmm, uint64_t guest_addr);

/* The driver makes a buffer available, and notifies. See virtq_add(). */
int vmm_post(struct vmm *vmm, unsigned queue, const struct virtq_part *parts, unsigned out,
             unsigned in);

/* The next buffer that the device has used: its slot, or -1 if there is none yet. */
int vmm_used(struct vmm *vmm, unsigned queue, uint32_t *written);

/* One turn of the event loop: sleeps until there is something to do. */
void vmm_turn(struct vmm *vmm);

/* Stops all queues: from here on the back-end leaves guest memory alone. */
void vmm_stop(struct vmm *vmm);

void vmm_free(struct vmm *vmm);

#endif
