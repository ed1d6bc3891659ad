/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the tests of a device share: the device, its back-end, the guest's memory and
   rings, and an event loop. */

#ifndef DEVICE_RIG_H
#define DEVICE_RIG_H

#include "rig.h"
#include "names.h"
#include "virtio_blk.h"

#include <linux/virtio_config.h>
#include <stdio.h>

enum {
    RING_NUM = 64,
    RINGS = 4,
    SHORT_MS = 50,
    WHILE_MS = 300, /* in which something that must not happen would */
};

/* The rings, then the data. */
#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x200000)
#define RING_ADDR(n) (GUEST_ADDR + (n) * UINT64_C(0x10000))
#define DATA_ADDR (GUEST_ADDR + 0x100000)
#define SECOND_ADDR UINT64_C(0x80000000)
#define SECOND_SIZE UINT64_C(0x100000)
#define CAPACITY ((uint64_t)DISK_SIZE / SECTOR_SIZE)

#define VERSION_1 BIT(VIRTIO_F_VERSION_1)
#define ASSUMED (VERSION_1 | BIT(VIRTIO_BLK_F_FLUSH)) /* what every block back-end offers */
#define WANTED (ASSUMED | BIT(VIRTIO_BLK_F_CONFIG_WCE))

enum kind { MOCK, EMBEDDED, QEMU, INFLIGHT, FOREIGN };

struct fixture {
    enum kind kind;
    bool skipped;
    int fds;                       /* how many were open before */
    struct backend backend, other; /* `other` is for the test */
    char path[100];                /* of a socket that the test may make */
    int disk;                      /* what `backend` serves; -1 for none */
    struct vuf_device *device, *member;
    struct vuf_memory_group *group;
    struct guest_memory memory, second;
    struct blk_ring rings[RINGS];
    unsigned seen[VUF_DEVICE_EVENT_IOTLB_REFUSED + 1];
    struct vuf_device_event last[VUF_DEVICE_EVENT_IOTLB_REFUSED + 1]; /* of each kind */
};

#define SEEN(f, event) ((f)->seen[VUF_DEVICE_EVENT_##event])
#define TEXT(f, event) ((f)->last[VUF_DEVICE_EVENT_##event].text)

/* Options of a device that retries as soon as it can. */
#define QUICK                                                                                      \
    .size = sizeof(struct vuf_device_options), .first_delay_ms = 2, .max_delay_ms = 50,            \
    .jitter_percent = 1

/* ---- setting up and taking down ---- */

/* For cmocka: a guest without a back-end, of a kind or of none; and with it. */
int set_up_guest(void **state);
int set_up_back_end(void **state);
int tear_down_guest(void **state);

#define ON_WITH(set_up, kind_of, function)                                                         \
    {#function, function, set_up, tear_down_guest, &(enum kind){kind_of}}

/* The fixture; skips the test if the machine does not have the back-end. */
struct fixture *begin(void **state);

/* For the next row of a table: nothing is left of the last one. */
void start_over(struct fixture *f);

/* Starts the back-end, in the place of one that was killed if there was one. args are for
   those that have any, and end with NULL. */
int start_backend(struct fixture *f, const char *const args[]);
void start_again(struct fixture *f);

/* The guest begins: its memory and rings are new. */
void boot(struct fixture *f);

void free_device(struct fixture *f);

/* ---- an event loop ---- */

/* Takes one event, which may be none. */
struct vuf_device_event take(struct fixture *f);
void take_all(struct fixture *f);

/* Takes one event or waits for a while. Returns whether the deadline is not over. */
bool drive(struct fixture *f, int64_t deadline);

/* The next event of a kind. */
struct vuf_device_event until(struct fixture *f, uint32_t kind);

/* Lets everything happen that is going to. */
void for_a_while(struct fixture *f);
void forget_events(struct fixture *f);

/* Evaluates the condition after each event, until it is true. */
#define UNTIL(f, condition)                                                                        \
    do {                                                                                           \
        int64_t deadline_ = now_ms() + PEER_MS;                                                    \
        while (!(condition)) {                                                                     \
            if (!drive(f, deadline_)) {                                                            \
                print_error("%s:%d: never: %s (LOST: \"%s\", REFUSED: \"%s\")\n", __FILE__,        \
                            __LINE__, #condition, TEXT(f, LOST), TEXT(f, REFUSED));                \
                fail();                                                                            \
            }                                                                                      \
        }                                                                                          \
    } while (0)

/* The condition is true all the time. */
#define ALWAYS(f, milliseconds, condition)                                                         \
    do {                                                                                           \
        int64_t deadline_ = now_ms() + (milliseconds);                                             \
        do {                                                                                       \
            if (!(condition)) {                                                                    \
                print_error("%s:%d: not: %s (LOST: \"%s\", REFUSED: \"%s\")\n", __FILE__,          \
                            __LINE__, #condition, TEXT(f, LOST), TEXT(f, REFUSED));                \
                fail();                                                                            \
            }                                                                                      \
        } while (drive(f, deadline_));                                                             \
    } while (0)

/* ---- what the device says ---- */

struct vuf_device_info info_of(struct fixture *f);
struct vuf_quiet quiet_of(struct fixture *f);
uint8_t virtio_status(struct fixture *f, uint8_t written);
void assert_has(const char *text, const char *part);

/* ---- what the guest does ---- */

/* Acknowledges what is offered of WANTED, and shares the memory. */
void negotiate(struct fixture *f);

int start_ring(struct fixture *f, unsigned index, uint32_t base_mode);
struct vuf_quiet stop_all(struct fixture *f, uint32_t mode, uint32_t time);
struct vuf_quiet reset(struct fixture *f, uint32_t time);

/* Returns the slot of the request, and waits for its completion. */
int submit(struct fixture *f, unsigned ring, uint32_t type, uint64_t sector, uint64_t addr,
           uint32_t length);
void finish(struct fixture *f, unsigned ring, int slot);

#endif
