/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A driver's side of one virtqueue, split or packed, for any kind of device: the
 * part of a guest, played by an example or a test.
 *
 * Functions that take a client return the library's codes, the others -errno on
 * failure. Guest memory is that of virtio_blk.h.
 */

#ifndef EXAMPLE_VIRTQ_H
#define EXAMPLE_VIRTQ_H

#include <stdbool.h>
#include <stdint.h>

#include "vhost_user_frontend.h"
#include "virtio_blk.h"

enum {
    VIRTQ_MAX_NUM = 256,
    VIRTQ_MAX_PARTS = 4, /* of one buffer: each slot owns as many descriptors */
    VIRTQ_MAX_SLOTS = VIRTQ_MAX_NUM / VIRTQ_MAX_PARTS,
    VIRTQ_BYTES = 3 * 4096, /* guest memory that a queue takes, whatever its size */
};

/* A piece of a buffer, anywhere in memory that the back-end has. */
struct virtq_part {
    uint64_t addr;
    uint32_t len;
};

/* A place in a ring. In a split ring it counts on, in a packed one it turns. */
struct virtq_place {
    uint16_t at;
    bool wrap;
};

struct virtq {
    /* Choose before virtq_start(). */
    bool packed;   /* VIRTIO_F_RING_PACKED was acknowledged */
    bool log_used; /* have writes to the ring logged (VUF_VRING_F_LOG) */

    /* For the driver. */
    uint32_t index;
    uint32_t num;
    const struct guest_memory *memory;
    uint64_t guest_addr;
    int kick_fd;
    int call_fd;
    int err_fd;
    struct virtq_place avail; /* where the driver makes the next buffer available */
    struct virtq_place used;  /* where it looks for the next used one */
    uint8_t slots[VIRTQ_MAX_SLOTS]; /* parts of the buffer in flight; 0: free */
    _Atomic uint16_t used_word; /* packed: used, as struct vuf_ring wants it */
};

/*
 * Makes a queue, and initialises its memory.
 *
 * index       its number on the device
 * num         descriptors: a power of two, VIRTQ_MAX_PARTS to VIRTQ_MAX_NUM
 * guest_addr  where it lies in memory, a multiple of 4096; takes VIRTQ_BYTES
 */
int virtq_create(struct virtq *q, uint32_t index, uint32_t num,
                 const struct guest_memory *memory, uint64_t guest_addr);

/* Does nothing for a queue that is all zero, or whose creation failed. */
void virtq_destroy(struct virtq *q);

/* Where the queue lies, as the back-end is told. */
struct vuf_vring_addr virtq_addr(const struct virtq *q);

/* What a back-end says on GET_VRING_BASE when it has completed everything. */
uint32_t virtq_base(const struct virtq *q);

/* The queue for vuf_device_start(). */
struct vuf_ring virtq_ring_of_device(const struct virtq *q, uint32_t base_mode);

/* Has the back-end process the queue from base on. The kick is not written. */
int virtq_start(struct virtq *q, struct vuf_client *client, uint32_t base);

/* base gets where the back-end stood, for virtq_start(). */
int virtq_stop(struct virtq *q, struct vuf_client *client, uint32_t *base);

/*
 * Makes a buffer available; virtq_kick() tells the back-end.
 *
 * parts  first those that the device reads, out of them, then those that it
 *        writes, in of them; at most VIRTQ_MAX_PARTS
 *
 * Returns the buffer's slot, -EBUSY if all are taken, or -EINVAL.
 */
int virtq_add(struct virtq *q, const struct virtq_part *parts, unsigned out, unsigned in);

void virtq_kick(struct virtq *q);

/*
 * Waits for the next buffer that the device has used, and frees its slot.
 *
 * written  gets the bytes that the device says it wrote; may be NULL
 *
 * Returns the slot, otherwise
 *   -ETIMEDOUT  none was used in time
 *   -EIO        the back-end reported that the ring is broken
 *   -EPROTO     it used what was not in flight
 */
int virtq_wait(struct virtq *q, int timeout_ms, uint32_t *written);

#endif
