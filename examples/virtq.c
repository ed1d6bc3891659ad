/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "virtq.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* "Split Virtqueues" and "Packed Virtqueues" in the virtio specification; all
   little-endian. */

enum {
    DESC_F_NEXT = 1 << 0,
    DESC_F_WRITE = 1 << 1,
    DESC_F_AVAIL = 1 << 7, /* packed */
    DESC_F_USED = 1 << 15, /* packed */
    USED_F_NO_NOTIFY = 1,
    EVENT_FLAGS_DISABLE = 1, /* packed */
    BASE_WRAP = 1 << 15,     /* packed */
};

/* id and flags in a packed ring; flags and next in a split one. */
struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t third;
    _Atomic uint16_t fourth;
};

struct avail {
    uint16_t flags;
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

/* The areas of event suppression in a packed ring. */
struct event {
    uint16_t place;
    _Atomic uint16_t flags;
};

_Static_assert(sizeof(struct desc) == 16, "");
_Static_assert(offsetof(struct avail, ring) == 4, "");
_Static_assert(offsetof(struct used, ring) == 4, "");
_Static_assert(sizeof(struct event) == 4, "");

/* Each part has a page of its own, so that the log of dirty pages tells apart
   what the device has written. */
enum { DESC_AT = 0 * 4096, DRIVER_AT = 1 * 4096, DEVICE_AT = 2 * 4096 };

_Static_assert(VIRTQ_MAX_NUM * sizeof(struct desc) <= 4096, "");
_Static_assert(VIRTQ_MAX_NUM * sizeof(struct used_elem) + 6 <= 4096, "");

static void *part(const struct virtq *q, uint64_t offset)
{
    return guest_memory_at(q->memory, q->guest_addr + offset);
}

/* ---- life of a queue ---- */

static void close_fd(int *fd)
{
    if (*fd > 0) {
        close(*fd);
    }
    *fd = -1;
}

void virtq_destroy(struct virtq *q)
{
    close_fd(&q->kick_fd);
    close_fd(&q->call_fd);
    close_fd(&q->err_fd);
}

int virtq_create(struct virtq *q, uint32_t index, uint32_t num,
                 const struct guest_memory *memory, uint64_t guest_addr)
{
    *q = (struct virtq){
        .index = index,
        .num = num,
        .memory = memory,
        .guest_addr = guest_addr,
        .kick_fd = -1,
        .call_fd = -1,
        .err_fd = -1,
        .avail.wrap = true,
        .used.wrap = true,
        .used_word = htole16(BASE_WRAP),
    };
    if (num < VIRTQ_MAX_PARTS || num > VIRTQ_MAX_NUM || (num & (num - 1)) != 0) {
        return -EINVAL;
    }
    memset(part(q, 0), 0, VIRTQ_BYTES);
    q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->call_fd = q->kick_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->err_fd = q->call_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->err_fd < 0) {
        int error = errno;
        virtq_destroy(q);
        return -error;
    }
    return 0;
}

struct vuf_vring_addr virtq_addr(const struct virtq *q)
{
    /* What is logged: the used ring; a packed device writes descriptors. */
    uint64_t logged = q->guest_addr + (q->packed ? DESC_AT : DEVICE_AT);
    return (struct vuf_vring_addr){
        .flags = q->log_used ? VUF_VRING_F_LOG : 0,
        .descriptor = q->guest_addr + DESC_AT,
        .available = q->guest_addr + DRIVER_AT,
        .used = q->guest_addr + DEVICE_AT,
        .log = q->log_used ? logged : 0,
    };
}

uint32_t virtq_base(const struct virtq *q)
{
    uint32_t half = q->avail.at;
    if (q->packed) {
        half |= q->avail.wrap ? BASE_WRAP : 0;
        half |= half << 16;
    }
    return half;
}

struct vuf_ring virtq_ring_of_device(const struct virtq *q, uint32_t base_mode)
{
    const struct vuf_vring_addr addr = virtq_addr(q);
    const struct avail *avail = part(q, DRIVER_AT);
    const struct used *used = part(q, DEVICE_AT);
    return (struct vuf_ring){
        .index = q->index,
        .size = q->num,
        .descriptor = addr.descriptor,
        .available = addr.available,
        .used = addr.used,
        .base_mode = base_mode,
        .kick_fd = q->kick_fd,
        .call_fd = q->call_fd,
        .err_fd = q->err_fd,
        .used_index = (const uint16_t *)(q->packed ? &q->used_word : &used->idx),
        .avail_index = q->packed ? NULL : (const uint16_t *)&avail->idx,
    };
}

int virtq_start(struct virtq *q, struct vuf_client *client, uint32_t base)
{
    struct vuf_vring_addr addr = virtq_addr(q);
    int rc = vuf_client_set_vring_num(client, q->index, q->num);
    if (rc == 0) {
        rc = vuf_client_set_vring_base(client, q->index, base);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_addr(client, q->index, &addr);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_call(client, q->index, q->call_fd);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_err(client, q->index, q->err_fd);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_kick(client, q->index, q->kick_fd);
    }
    if (rc == 0) {
        rc = vuf_client_set_vring_enable(client, q->index, true);
    }
    return rc;
}

int virtq_stop(struct virtq *q, struct vuf_client *client, uint32_t *base)
{
    int rc = vuf_client_set_vring_enable(client, q->index, false);
    if (rc == 0) {
        rc = vuf_client_get_vring_base(client, q->index, VUF_TIMEOUT_DEFAULT, base);
    }
    return rc;
}

/* ---- buffers ---- */

static int free_slot(const struct virtq *q)
{
    for (uint32_t slot = 0; slot < q->num / VIRTQ_MAX_PARTS; slot++) {
        if (q->slots[slot] == 0) {
            return (int)slot;
        }
    }
    return -EBUSY;
}

/* In a packed ring: n places on. */
static struct virtq_place beyond(const struct virtq *q, struct virtq_place place, unsigned n)
{
    uint32_t at = place.at + n;
    bool turned = at >= q->num;
    return (struct virtq_place){
        .at = (uint16_t)(turned ? at - q->num : at),
        .wrap = place.wrap != turned,
    };
}

/* Slot n owns the descriptors from n * VIRTQ_MAX_PARTS on. */
static void add_split(struct virtq *q, uint16_t slot, const struct virtq_part *parts, unsigned n,
                      unsigned out)
{
    struct avail *avail = part(q, DRIVER_AT);
    uint16_t head = (uint16_t)(slot * VIRTQ_MAX_PARTS);
    struct desc *desc = (struct desc *)part(q, DESC_AT) + head;
    for (unsigned i = 0; i < n; i++) {
        unsigned flags = (i + 1 < n ? DESC_F_NEXT : 0) | (i >= out ? DESC_F_WRITE : 0);
        desc[i].addr = htole64(parts[i].addr);
        desc[i].len = htole32(parts[i].len);
        desc[i].third = htole16((uint16_t)flags);
        atomic_store_explicit(&desc[i].fourth, htole16((uint16_t)(head + i + 1)),
                              memory_order_relaxed);
    }
    avail->ring[q->avail.at % q->num] = htole16(head);
    q->avail.at++;
    /* Release: who sees the index sees all of the above. */
    atomic_store_explicit(&avail->idx, htole16(q->avail.at), memory_order_release);
}

static void add_packed(struct virtq *q, uint16_t slot, const struct virtq_part *parts,
                       unsigned n, unsigned out)
{
    struct desc *ring = part(q, DESC_AT);
    /* The first descriptor becomes available last, and all with it. */
    for (unsigned i = n; i-- > 0;) {
        struct virtq_place place = beyond(q, q->avail, i);
        struct desc *desc = &ring[place.at];
        unsigned flags = (i + 1 < n ? DESC_F_NEXT : 0) | (i >= out ? DESC_F_WRITE : 0) |
                         (place.wrap ? DESC_F_AVAIL : DESC_F_USED);
        desc->addr = htole64(parts[i].addr);
        desc->len = htole32(parts[i].len);
        desc->third = htole16(slot);
        atomic_store_explicit(&desc->fourth, htole16((uint16_t)flags), memory_order_release);
    }
    q->avail = beyond(q, q->avail, n);
}

int virtq_add(struct virtq *q, const struct virtq_part *parts, unsigned out, unsigned in)
{
    unsigned n = out + in;
    int slot = free_slot(q);
    if (n == 0 || n > VIRTQ_MAX_PARTS) {
        return -EINVAL;
    }
    if (slot >= 0) {
        q->slots[slot] = (uint8_t)n;
        (q->packed ? add_packed : add_split)(q, (uint16_t)slot, parts, n, out);
    }
    return slot;
}

static bool wants_kick(const struct virtq *q)
{
    if (q->packed) {
        const struct event *event = part(q, DEVICE_AT);
        return le16toh(atomic_load(&event->flags)) != EVENT_FLAGS_DISABLE;
    }
    const struct used *used = part(q, DEVICE_AT);
    return (le16toh(atomic_load(&used->flags)) & USED_F_NO_NOTIFY) == 0;
}

void virtq_kick(struct virtq *q)
{
    /* The buffer is to be visible before the flags are read. */
    atomic_thread_fence(memory_order_seq_cst);
    if (wants_kick(q)) {
        uint64_t one = 1;
        ssize_t ignored = write(q->kick_fd, &one, sizeof one); /* full: written often enough */
        (void)ignored;
    }
}

/* ---- what the device has used; it is not trusted ---- */

/* These return the slot, -EAGAIN or -EPROTO. */

static int free_used(struct virtq *q, uint32_t slot)
{
    if (slot >= VIRTQ_MAX_SLOTS || q->slots[slot] == 0) {
        return -EPROTO;
    }
    q->slots[slot] = 0;
    return (int)slot;
}

static int take_split(struct virtq *q, uint32_t *written)
{
    const struct used *used = part(q, DEVICE_AT);
    if (le16toh(atomic_load_explicit(&used->idx, memory_order_acquire)) == q->used.at) {
        return -EAGAIN;
    }
    const struct used_elem *elem = &used->ring[q->used.at % q->num];
    uint32_t head = le32toh(elem->id);
    *written = le32toh(elem->len);
    q->used.at++;
    return head % VIRTQ_MAX_PARTS == 0 ? free_used(q, head / VIRTQ_MAX_PARTS) : -EPROTO;
}

static int take_packed(struct virtq *q, uint32_t *written)
{
    const struct desc *desc = (struct desc *)part(q, DESC_AT) + q->used.at;
    uint16_t flags = le16toh(atomic_load_explicit(&desc->fourth, memory_order_acquire));
    bool is_avail = (flags & DESC_F_AVAIL) != 0, is_used = (flags & DESC_F_USED) != 0;
    if (is_avail != is_used || is_used != q->used.wrap) {
        return -EAGAIN;
    }
    uint32_t slot = le16toh(desc->third);
    unsigned parts = slot < VIRTQ_MAX_SLOTS ? q->slots[slot] : 0;
    *written = le32toh(desc->len);
    q->used = beyond(q, q->used, parts);
    q->used_word = htole16((uint16_t)(q->used.at | (q->used.wrap ? BASE_WRAP : 0)));
    return free_used(q, slot);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Sleeps until the back-end calls. */
static int wait_for_call(struct virtq *q, int64_t left_ms)
{
    struct pollfd fds[] = {
        {.fd = q->call_fd, .events = POLLIN},
        {.fd = q->err_fd, .events = POLLIN},
    };
    if (poll(fds, 2, (int)left_ms) < 0 && errno != EINTR) {
        return -errno;
    }
    if (fds[1].revents != 0) {
        return -EIO;
    }
    if (fds[0].revents != 0) {
        /* Cleared before the ring is looked at again. */
        uint64_t count;
        ssize_t ignored = read(q->call_fd, &count, sizeof count);
        (void)ignored;
    }
    return 0;
}

int virtq_wait(struct virtq *q, int timeout_ms, uint32_t *written)
{
    uint32_t ignored;
    for (int64_t deadline = now_ms() + timeout_ms;;) {
        int64_t left = deadline - now_ms();
        int rc = (q->packed ? take_packed : take_split)(q, written != NULL ? written : &ignored);
        if (rc != -EAGAIN) {
            return rc;
        }
        /* The clock was read first: the last look comes after the deadline. */
        rc = left <= 0 ? -ETIMEDOUT : wait_for_call(q, left);
        if (rc != 0) {
            return rc;
        }
    }
}
