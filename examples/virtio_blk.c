/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "virtio_blk.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- guest memory ---- */

int guest_memory_create(struct guest_memory *memory, uint64_t guest_addr, uint64_t size)
{
    *memory = (struct guest_memory){.fd = -1, .guest_addr = guest_addr, .size = size};
    int fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return -errno;
    }
    void *host = MAP_FAILED;
    if (ftruncate(fd, (off_t)size) == 0) {
        /* Shared: what a private mapping holds the back-end would never see. */
        host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    /* A back-end that made the file shorter would end this program with SIGBUS. */
    if (host != MAP_FAILED && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
        munmap(host, size);
        host = MAP_FAILED;
    }
    if (host == MAP_FAILED) {
        int error = errno;
        close(fd);
        return -error;
    }
    memory->fd = fd;
    memory->host = host;
    return 0;
}

void guest_memory_destroy(struct guest_memory *memory)
{
    if (memory->host != NULL) {
        munmap(memory->host, memory->size);
        close(memory->fd);
        memory->host = NULL;
    }
}

void *guest_memory_at(const struct guest_memory *memory, uint64_t guest_addr)
{
    return memory->host + (guest_addr - memory->guest_addr);
}

struct vuf_mem_region guest_memory_region(const struct guest_memory *memory)
{
    return (struct vuf_mem_region){
        .guest_addr = memory->guest_addr,
        .size = memory->size,
        .user_addr = memory->guest_addr,
        .fd = memory->fd,
    };
}

/* ---- what is in a ring's memory ---- */

/* "Split Virtqueues" in the virtio specification; all little-endian. The
   indices are what the two sides synchronise on. */

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, AVAIL_F_NO_INTERRUPT = 1, USED_F_NO_NOTIFY = 1 };

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct avail {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    uint16_t ring[];
};

struct used {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    struct used_elem {
        uint32_t id;
        uint32_t len;
    } ring[];
};

_Static_assert(sizeof(struct desc) == 16, "");
_Static_assert(offsetof(struct avail, ring) == 4, "");
_Static_assert(offsetof(struct used, ring) == 4, "");

/* Each part has a page of its own. Less would do, but so the log of dirty
   pages tells apart what the device has written: used ring, status, data. */
enum {
    DESC_AT = 0 * 4096,
    AVAIL_AT = 1 * 4096,
    USED_AT = 2 * 4096,
    HEADERS_AT = 3 * 4096,
    STATUS_AT = 4 * 4096,
};

_Static_assert(BLK_RING_MAX_NUM * sizeof(struct desc) <= 4096, "");
_Static_assert(BLK_RING_MAX_NUM * sizeof(struct used_elem) + 6 <= 4096, "");
_Static_assert(BLK_RING_MAX_SLOTS * sizeof(struct virtio_blk_outhdr) <= 4096, "");

static void *part(const struct blk_ring *ring, uint64_t offset)
{
    return guest_memory_at(ring->memory, ring->guest_addr + offset);
}

/* ---- life of a ring ---- */

int blk_ring_create(struct blk_ring *ring, uint32_t index, uint32_t num,
                    const struct guest_memory *memory, uint64_t guest_addr)
{
    *ring = (struct blk_ring){
        .index = index,
        .num = num,
        .memory = memory,
        .guest_addr = guest_addr,
        .kick_fd = -1,
        .call_fd = -1,
        .err_fd = -1,
    };
    if (num < 4 || num > BLK_RING_MAX_NUM || (num & (num - 1)) != 0) {
        return -EINVAL;
    }
    /* Before the back-end is told the addresses: some read the used index then. */
    memset(part(ring, 0), 0, BLK_RING_BYTES);

    /* Non-blocking: the file status is shared with the back-end, and a side
       that does not read must not be able to stop the one that writes. */
    ring->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring->call_fd = ring->kick_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring->err_fd = ring->call_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ring->err_fd < 0) {
        int error = errno;
        blk_ring_destroy(ring);
        return -error;
    }
    return 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

void blk_ring_destroy(struct blk_ring *ring)
{
    close_fd(&ring->kick_fd);
    close_fd(&ring->call_fd);
    close_fd(&ring->err_fd);
}

struct vuf_vring_addr blk_ring_addr(const struct blk_ring *ring)
{
    return (struct vuf_vring_addr){
        .flags = ring->log_used ? VUF_VRING_F_LOG : 0,
        .descriptor = ring->guest_addr + DESC_AT,
        .available = ring->guest_addr + AVAIL_AT,
        .used = ring->guest_addr + USED_AT,
        .log = ring->log_used ? ring->guest_addr + USED_AT : 0,
    };
}

struct vuf_ring blk_ring_of_device(const struct blk_ring *ring, uint32_t base_mode)
{
    const struct avail *avail = part(ring, AVAIL_AT);
    const struct used *used = part(ring, USED_AT);
    return (struct vuf_ring){
        .index = ring->index,
        .size = ring->num,
        .descriptor = ring->guest_addr + DESC_AT,
        .available = ring->guest_addr + AVAIL_AT,
        .used = ring->guest_addr + USED_AT,
        .base_mode = base_mode,
        .kick_fd = ring->kick_fd,
        .call_fd = ring->polled ? -1 : ring->call_fd,
        .err_fd = ring->err_fd,
        .used_index = (const uint16_t *)&used->idx,
        .avail_index = (const uint16_t *)&avail->idx,
    };
}

/* It cannot fail: a counter that is full has been written often enough. */
static void notify(int eventfd)
{
    uint64_t one = 1;
    ssize_t ignored = write(eventfd, &one, sizeof one);
    (void)ignored;
}

static void choose_interrupts(struct blk_ring *ring)
{
    struct avail *avail = part(ring, AVAIL_AT);
    atomic_store_explicit(&avail->flags, htole16(ring->polled ? AVAIL_F_NO_INTERRUPT : 0),
                          memory_order_relaxed);
}

int blk_ring_start(struct blk_ring *ring, struct vuf_client *client, uint32_t base)
{
    choose_interrupts(ring);
    struct vuf_vring_addr addr = blk_ring_addr(ring);
    int rc = vuf_client_set_vring_num(client, ring->index, ring->num);
    /* Base before addresses: back-ends compare it with the used index. */
    if (rc == 0) {
        rc = vuf_client_set_vring_base(client, ring->index, base);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_addr(client, ring->index, &addr);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_call(client, ring->index, ring->polled ? -1 : ring->call_fd);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_err(client, ring->index, ring->err_fd);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_kick(client, ring->index, ring->kick_fd);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_enable(client, ring->index, true);
    }
    if (rc == 0) {
        /* For what was made available while the ring was stopped. */
        notify(ring->kick_fd);
    }
    return rc;
}

int blk_rings_start(struct blk_ring *rings, uint32_t n, struct vuf_client *client)
{
    enum { OPS = 7 };
    struct vuf_vring_addr addrs[BLK_RINGS];
    struct vuf_op ops[BLK_RINGS * OPS] = {{0}};
    if (n > BLK_RINGS) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct blk_ring *ring = &rings[i];
        const uint32_t index = ring->index;
        const int call_fd = ring->polled ? -1 : ring->call_fd;
        choose_interrupts(&rings[i]);
        addrs[i] = blk_ring_addr(ring);
        const struct vuf_op of_ring[OPS] = {
            {.request = VUF_REQUEST_SET_VRING_NUM, .index = index, .value = ring->num},
            {.request = VUF_REQUEST_SET_VRING_BASE, .index = index, .value = ring->next_avail},
            {.request = VUF_REQUEST_SET_VRING_ADDR, .index = index, .addr = &addrs[i]},
            {.request = VUF_REQUEST_SET_VRING_CALL, .index = index, .fd = call_fd},
            {.request = VUF_REQUEST_SET_VRING_ERR, .index = index, .fd = ring->err_fd},
            {.request = VUF_REQUEST_SET_VRING_KICK, .index = index, .fd = ring->kick_fd},
            {.request = VUF_REQUEST_SET_VRING_ENABLE, .index = index, .value = 1},
        };
        memcpy(&ops[i * OPS], of_ring, sizeof of_ring);
    }
    int rc = vuf_client_submit(client, ops, n * OPS, 0, VUF_TIMEOUT_DEFAULT, NULL);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        notify(rings[i].kick_fd);
    }
    return rc;
}

int blk_ring_stop(struct blk_ring *ring, struct vuf_client *client, uint32_t *base)
{
    int rc = vuf_client_set_vring_enable(client, ring->index, false);
    if (rc == 0) {
        rc = vuf_client_get_vring_base(client, ring->index, VUF_TIMEOUT_DEFAULT, base);
    }
    return rc;
}

/* ---- requests ---- */

static int free_slot(const struct blk_ring *ring)
{
    for (uint32_t slot = 0; slot < ring->num / 3; slot++) {
        if (ring->slots[slot].state == BLK_SLOT_FREE) {
            return (int)slot;
        }
    }
    return -EBUSY;
}

/* Slot n owns the descriptors 3n to 3n + 2, header n and status n. */
static uint16_t fill_slot(struct blk_ring *ring, uint32_t slot, uint32_t type, uint64_t sector,
                          uint64_t data, uint32_t length)
{
    struct desc *desc = part(ring, DESC_AT);
    struct virtio_blk_outhdr *headers = part(ring, HEADERS_AT);
    uint8_t *status = part(ring, STATUS_AT);
    uint16_t head = (uint16_t)(slot * 3), tail = (uint16_t)(head + 2);
    bool device_writes = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;

    headers[slot] = (struct virtio_blk_outhdr){
        .type = htole32(type),
        .sector = htole64(sector),
    };
    status[slot] = 0xff; /* no status that a device gives */

    desc[head] = (struct desc){
        .addr = htole64(ring->guest_addr + HEADERS_AT + slot * sizeof *headers),
        .len = htole32(sizeof *headers),
        .flags = htole16(DESC_F_NEXT),
        .next = htole16(length > 0 ? head + 1 : tail),
    };
    if (length > 0) {
        desc[head + 1] = (struct desc){
            .addr = htole64(data),
            .len = htole32(length),
            .flags = htole16(DESC_F_NEXT | (device_writes ? DESC_F_WRITE : 0)),
            .next = htole16(tail),
        };
    }
    desc[tail] = (struct desc){
        .addr = htole64(ring->guest_addr + STATUS_AT + slot),
        .len = htole32(1),
        .flags = htole16(DESC_F_WRITE),
    };
    return head;
}

int blk_ring_submit(struct blk_ring *ring, uint32_t type, uint64_t sector, uint64_t data,
                    uint32_t length)
{
    struct avail *avail = part(ring, AVAIL_AT);
    const struct used *used = part(ring, USED_AT);
    int slot = free_slot(ring);
    if (slot < 0) {
        return slot;
    }
    uint16_t head = fill_slot(ring, (uint32_t)slot, type, sector, data, length);
    avail->ring[ring->next_avail % ring->num] = htole16(head);
    ring->slots[slot].state = BLK_SLOT_IN_FLIGHT;
    ring->next_avail++;

    /* Release: who sees the new index sees the entry, the descriptors and the
       data as well. */
    atomic_store_explicit(&avail->idx, htole16(ring->next_avail), memory_order_release);

    /* A full fence: the index must be visible before the flag is read. The
       back-end clears the flag and then looks at the index once more; without
       the fence each of us could miss what the other has just written. */
    atomic_thread_fence(memory_order_seq_cst);
    if ((le16toh(atomic_load_explicit(&used->flags, memory_order_relaxed)) & USED_F_NO_NOTIFY) ==
        0) {
        notify(ring->kick_fd);
    }
    return slot;
}

/* Takes over what the back-end has completed. It is not trusted. */
static int take_used(struct blk_ring *ring)
{
    const struct used *used = part(ring, USED_AT);
    /* Acquire, the other half of the back-end's release: who sees its index
       sees the entries, the status and the data. */
    uint16_t idx = le16toh(atomic_load_explicit(&used->idx, memory_order_acquire));
    while (ring->last_used != idx) {
        struct used_elem elem = used->ring[ring->last_used % ring->num];
        uint32_t head = le32toh(elem.id), slot = head / 3;
        if (head % 3 != 0 || slot >= ring->num / 3 ||
            ring->slots[slot].state != BLK_SLOT_IN_FLIGHT) {
            return -EPROTO;
        }
        ring->slots[slot].state = BLK_SLOT_DONE;
        ring->slots[slot].written = le32toh(elem.len);
        ring->last_used++;
    }
    return 0;
}

/* ---- waiting ---- */

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleeps until the back-end calls, or for a moment on a polled ring. */
static int wait_for_call(struct blk_ring *ring, int64_t left_ns)
{
    /* poll() passes over a descriptor of -1. */
    struct pollfd fds[] = {
        {.fd = ring->polled ? -1 : ring->call_fd, .events = POLLIN},
        {.fd = ring->err_fd, .events = POLLIN},
    };
    int64_t sleep_ns = ring->polled && left_ns > 100000 ? 100000 : left_ns;
    struct timespec sleep = {sleep_ns / 1000000000, sleep_ns % 1000000000};
    if (ppoll(fds, 2, &sleep, NULL) < 0 && errno != EINTR) {
        return -errno;
    }
    if (fds[1].revents != 0) {
        return -EIO;
    }
    if (fds[0].revents != 0) {
        /* Cleared before the used ring is read again, so that a call that comes
           after is seen. The call may well have been for nothing. */
        uint64_t count;
        ssize_t ignored = read(ring->call_fd, &count, sizeof count);
        (void)ignored;
    }
    return 0;
}

int blk_ring_wait(struct blk_ring *ring, int slot, int timeout_ms, uint32_t *written)
{
    int64_t deadline = now_ns() + (int64_t)timeout_ms * 1000000;
    if (slot < 0 || (uint32_t)slot >= ring->num / 3 ||
        ring->slots[slot].state == BLK_SLOT_FREE) {
        return -EINVAL;
    }
    for (;;) {
        int64_t left = deadline - now_ns();
        int rc = take_used(ring);
        if (rc != 0) {
            return rc;
        }
        if (ring->slots[slot].state == BLK_SLOT_DONE) {
            break;
        }
        /* The clock was read first: the last look comes after the deadline. */
        rc = left <= 0 ? -ETIMEDOUT : wait_for_call(ring, left);
        if (rc != 0) {
            return rc;
        }
    }
    const uint8_t *status = part(ring, STATUS_AT);
    if (written != NULL) {
        *written = ring->slots[slot].written;
    }
    ring->slots[slot].state = BLK_SLOT_FREE;
    return status[slot];
}

const char *blk_ring_strerror(int rc)
{
    switch (rc) {
    case -EBUSY:
        return "the ring is full";
    case -ETIMEDOUT:
        return "the back-end did not complete the request in time";
    case -EIO:
        return "the back-end reported that the ring is broken";
    case -EPROTO:
        return "the back-end completed a request that was not in flight";
    default:
        return strerror(-rc);
    }
}
