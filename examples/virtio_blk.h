/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A minimal virtio-blk driver on split rings: the part of a guest, played by
 * this process, so that there is something to drive a back-end with.
 *
 * A VMM has no use for it: there the guest's own driver fills the rings, and
 * the VMM makes the calls that blk_ring_start() and blk_ring_stop() make.
 *
 * The functions that take a client return the library's codes, and
 * vuf_last_error() has the words. The others return -errno on failure.
 */

#ifndef EXAMPLE_VIRTIO_BLK_H
#define EXAMPLE_VIRTIO_BLK_H

#include <linux/virtio_blk.h> /* VIRTIO_BLK_T_* for requests, VIRTIO_BLK_S_* */
#include <stdbool.h>
#include <stdint.h>

#include "vhost_user_frontend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A sector is the unit of addresses on the device, whatever its block size. */
#define SECTOR_SIZE 512u

/* ---- guest memory ---- */

/* Memory that this process and the back-end share. */
struct guest_memory {
    int fd; /* a memfd: what is sent to the back-end */
    uint8_t *host;
    uint64_t guest_addr; /* where it begins, in the guest's numbers */
    uint64_t size;
};

/* size is a multiple of the page size. */
int guest_memory_create(struct guest_memory *memory, uint64_t guest_addr, uint64_t size);

/* After all that the back-end does with the memory has ended. Does nothing for
   memory whose creation failed. */
void guest_memory_destroy(struct guest_memory *memory);

/* A guest address inside memory as a pointer of this process. */
void *guest_memory_at(const struct guest_memory *memory, uint64_t guest_addr);

/* The region to share. Its user address is the guest address: the back-end
   needs a number space to find the rings in, not our pointers. */
struct vuf_mem_region guest_memory_region(const struct guest_memory *memory);

/* ---- ring ---- */

#define BLK_RING_MAX_NUM 256u

/* Guest memory that a ring takes, whatever its number of descriptors. */
#define BLK_RING_BYTES (5u * 4096u)

/* Three descriptors for each request: header, data, status. */
#define BLK_RING_MAX_SLOTS (BLK_RING_MAX_NUM / 3u)

struct blk_ring {
    /* Choose before blk_ring_start(). */
    bool polled;   /* no call descriptor: blk_ring_wait() looks at the used ring */
    bool log_used; /* have writes to the used ring logged (VUF_VRING_F_LOG) */

    /* For the driver. */
    uint32_t index;
    uint32_t num;
    const struct guest_memory *memory;
    uint64_t guest_addr;
    int kick_fd;
    int call_fd;
    int err_fd;
    uint16_t next_avail; /* index of the next entry that the driver makes available */
    uint16_t last_used;  /* index of the next entry that it expects to be used */
    struct blk_slot {
        enum { BLK_SLOT_FREE, BLK_SLOT_IN_FLIGHT, BLK_SLOT_DONE } state;
        uint32_t written;
    } slots[BLK_RING_MAX_SLOTS];
};

/*
 * Makes a ring, and initialises its memory.
 *
 * index       the ring's number on the device
 * num         descriptors: a power of two, 4 to BLK_RING_MAX_NUM
 * guest_addr  where it lies in memory, a multiple of 4096; takes BLK_RING_BYTES
 */
int blk_ring_create(struct blk_ring *ring, uint32_t index, uint32_t num,
                    const struct guest_memory *memory, uint64_t guest_addr);

/* After blk_ring_stop(). Does nothing for a ring whose creation failed. */
void blk_ring_destroy(struct blk_ring *ring);

/* Where the ring lies, as the back-end is told. */
struct vuf_vring_addr blk_ring_addr(const struct blk_ring *ring);

/* The same for vuf_device_start(), with where the library finds out how far the
   ring has got when a back-end was lost. base_mode is VUF_RING_BASE_*. */
struct vuf_ring blk_ring_of_device(const struct blk_ring *ring, uint32_t base_mode);

/* Has the back-end process the ring; base is 0, or what blk_ring_stop() gave. */
int blk_ring_start(struct blk_ring *ring, struct vuf_client *client, uint32_t base);

/* The same for up to BLK_RINGS rings, from where their driver stands, without
   waiting for one answer before the next request. */
#define BLK_RINGS 16u
int blk_rings_start(struct blk_ring *rings, uint32_t n, struct vuf_client *client);

/*
 * Stops the ring; base gets where it stood, for blk_ring_start().
 *
 * Wait for the requests in flight before. A back-end should complete them
 * first, but libvhost-user 10.0 (qemu-storage-daemon) answers at once, and then
 * fails when it wants to signal the ring that it has stopped.
 */
int blk_ring_stop(struct blk_ring *ring, struct vuf_client *client, uint32_t *base);

/*
 * Makes a request available and notifies the back-end. Several may be in
 * flight.
 *
 * type    VIRTIO_BLK_T_IN, _OUT, _FLUSH or _GET_ID
 * sector  for IN and OUT
 * data    guest address of the data, in any region that the back-end has; it
 *         belongs to the back-end until blk_ring_wait() has returned
 * length  of the data in bytes: a multiple of SECTOR_SIZE for IN and OUT, 20
 *         for GET_ID, 0 for FLUSH
 *
 * Returns the request's slot, for blk_ring_wait(), or -EBUSY if all are taken.
 */
int blk_ring_submit(struct blk_ring *ring, uint32_t type, uint64_t sector, uint64_t data,
                    uint32_t length);

/*
 * Waits for a request, and frees its slot.
 *
 * written  gets the bytes that the device says it wrote to memory, the status
 *          included; may be NULL
 *
 * Returns the device's status (0 is VIRTIO_BLK_S_OK), otherwise
 *   -ETIMEDOUT  not completed in time; its slot and data stay the back-end's
 *   -EIO        the back-end reported that the ring is broken
 *   -EPROTO     the back-end completed what was never asked
 */
int blk_ring_wait(struct blk_ring *ring, int slot, int timeout_ms, uint32_t *written);

/* Explains a failure of blk_ring_submit() or blk_ring_wait(). */
const char *blk_ring_strerror(int rc);

#ifdef __cplusplus
}
#endif

#endif
