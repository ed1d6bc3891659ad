/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * blk-resilient SOCKET LOSSES: a disk that outlives its back-end.
 *
 * Random writes and reads go through a ring of a vuf_device, several in flight, each
 * read compared with what was written last, while somebody kills the back-end and
 * starts it again (examples/resilient.sh). It ends after so many losses, when all is
 * finished and the whole area has been read once more. One line tells of each event.
 *
 * Where the back-end keeps track of requests in flight, each completes once and the
 * program notices a loss by the event alone. Where it does not, the device asks for
 * a reset: the "guest" boots anew, and what was in flight may have been written or
 * not.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "names.h"
#include "vhost_user_frontend.h"
#include "virtio_blk.h"

#define BIT(n) (UINT64_C(1) << (n))
#define WANTED (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_BLK_F_FLUSH))
#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x100000)
#define DATA_ADDR (GUEST_ADDR + 0x40000)

enum {
    RING_NUM = 64,
    SLOTS = RING_NUM / 3,
    BLOCKS = 256, /* the area that is used, from the beginning of the disk */
    BLOCK_SECTORS = 8,
    BLOCK_SIZE = BLOCK_SECTORS * 512,
    PATIENCE_MS = 30000, /* the longest time without any progress */
};

/* What a block holds: the number of the write, in each of its words; 0 at first. */
static struct block {
    uint64_t number;
    uint64_t perhaps; /* a write that was in flight when all was reset */
    int busy;         /* a request is about it */
} blocks[BLOCKS];

static struct request {
    int block; /* -1: the slot is free */
    uint32_t type;
    uint64_t number;
} requests[SLOTS];

static struct vuf_device *device;
static struct guest_memory memory;
static struct blk_ring ring = {.kick_fd = -1, .call_fd = -1, .err_fd = -1};
static uint64_t numbers, reads, writes, mismatches, random_state;
static unsigned long losses, wanted_losses, recovered, resets;
static unsigned in_flight;
static int started;

static int fail_in_library(const char *what)
{
    fprintf(stderr, "blk-resilient: %s: %s\n", what, vuf_last_error());
    return -1;
}

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- the guest ---- */

/* A driver begins: features, memory and a ring that is new. */
static int boot(void)
{
    struct vuf_device_info info = {.size = sizeof info};
    blk_ring_destroy(&ring);
    for (int n = 0; n < SLOTS; n++) {
        struct request *request = &requests[n];
        if (request->block >= 0) {
            struct block *block = &blocks[request->block];
            block->busy = 0;
            block->perhaps = request->type == VIRTIO_BLK_T_OUT ? request->number : block->perhaps;
            request->block = -1;
        }
    }
    in_flight = 0;
    if (blk_ring_create(&ring, 0, RING_NUM, &memory, GUEST_ADDR) != 0) {
        return -1;
    }
    struct vuf_mem_region region = guest_memory_region(&memory);
    struct vuf_ring described = blk_ring_of_device(&ring, VUF_RING_BASE_NEW);
    if (vuf_device_get_info(device, &info) != 0 ||
        vuf_device_set_features(device, info.offered_features & WANTED) != 0 ||
        vuf_device_set_memory(device, &region, 1, 0) != 0 ||
        vuf_device_start(device, &described, 1) != 0) {
        return fail_in_library("boot");
    }
    started = 1;
    return 0;
}

/* The guest's driver is asked to reset its device, and does. */
static int reboot(void)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    resets++;
    started = 0;
    if (vuf_device_reset(device, PATIENCE_MS, &quiet) != 0) {
        return fail_in_library("reset");
    }
    if (!quiet.quiesced) {
        fputs("blk-resilient: the old back-end may still write\n", stderr);
        return -1;
    }
    return boot();
}

static uint64_t *data_of(int slot)
{
    return guest_memory_at(&memory, DATA_ADDR + (uint64_t)slot * BLOCK_SIZE);
}

static void submit(int block, uint32_t type)
{
    /* The ring takes its slots in order, so that this is where its data lies. */
    int slot = 0;
    while (slot < SLOTS && requests[slot].block >= 0) {
        slot++;
    }
    uint64_t number = type == VIRTIO_BLK_T_OUT ? ++numbers : 0;
    for (int n = 0; n < BLOCK_SIZE / 8; n++) {
        data_of(slot)[n] = number;
    }
    if (blk_ring_submit(&ring, type, (uint64_t)block * BLOCK_SECTORS,
                        DATA_ADDR + (uint64_t)slot * BLOCK_SIZE, BLOCK_SIZE) != slot) {
        abort();
    }
    requests[slot] = (struct request){block, type, number};
    blocks[block].busy = 1;
    in_flight++;
}

static void compare(int slot, struct block *block)
{
    uint64_t number = data_of(slot)[0];
    int same = 1;
    for (int n = 1; n < BLOCK_SIZE / 8; n++) {
        same &= data_of(slot)[n] == number;
    }
    if (!same || (number != block->number && (number != block->perhaps || number == 0))) {
        printf("MISMATCH: block %d holds write %" PRIu64 ", and not %" PRIu64 "\n",
               (int)(block - blocks), number, block->number);
        mismatches++;
    }
    block->number = number;
    block->perhaps = 0;
}

/* Takes what is finished. Returns how many, or -1. */
static int collect(void)
{
    int count = 0;
    for (int slot = 0; slot < SLOTS; slot++) {
        struct request *request = &requests[slot];
        if (request->block < 0) {
            continue;
        }
        int status = blk_ring_wait(&ring, slot, 0, NULL);
        if (status == -ETIMEDOUT) {
            continue;
        }
        if (status != VIRTIO_BLK_S_OK) {
            printf("FAILED: %s\n",
                   status < 0 ? blk_ring_strerror(status) : blk_status_name(status));
            return -1;
        }
        struct block *block = &blocks[request->block];
        if (request->type == VIRTIO_BLK_T_OUT) {
            block->number = request->number;
            block->perhaps = 0;
            writes++;
        } else {
            compare(slot, block);
            reads++;
        }
        block->busy = 0;
        request->block = -1;
        in_flight--;
        count++;
    }
    return count;
}

/* ---- events ---- */

static const char *recovery_name(uint32_t recovery)
{
    switch (recovery) {
    case VUF_RECOVERY_IDLE:
        return "no ring ran";
    case VUF_RECOVERY_INFLIGHT:
        return "the in-flight buffer tells what is to be done";
    case VUF_RECOVERY_IN_ORDER:
        return "the used index tells what is to be done";
    case VUF_RECOVERY_NEEDS_RESET:
        return "it is not known what was done";
    default:
        return "it may be done twice, or not at all";
    }
}

static int handle(const struct vuf_device_event *event)
{
    switch (event->kind) {
    case VUF_DEVICE_EVENT_CONNECTED:
        puts("connected");
        return started ? 0 : boot();
    case VUF_DEVICE_EVENT_LOST:
        losses++;
        printf("lost, %u in flight: %s; %s\n", in_flight, event->text,
               recovery_name(event->recovery));
        return 0;
    case VUF_DEVICE_EVENT_RETRYING:
        printf("retrying in %u ms: %s\n", event->delay_ms, event->text);
        return 0;
    case VUF_DEVICE_EVENT_RECOVERED:
        recovered++;
        puts("recovered");
        return 0;
    case VUF_DEVICE_EVENT_NEEDS_RESET:
        puts("needs a reset: the guest boots anew");
        return reboot();
    case VUF_DEVICE_EVENT_STALLED:
        printf("waiting: %s\n", event->text);
        return 0;
    case VUF_DEVICE_EVENT_UNFENCED:
        printf("waiting for the end of process %d\n", (int)event->peer_pid);
        return 0;
    default:
        return 0;
    }
}

/* One turn of the event loop. Returns 1 if anything went on, 0 if not, or -1. */
static int turn(void)
{
    struct pollfd fds[] = {{.fd = vuf_device_get_fd(device), .events = POLLIN},
                           {.fd = ring.call_fd, .events = POLLIN}};
    struct vuf_device_event event = {.size = sizeof event};
    uint64_t count;
    poll(fds, 2, 100);
    if (fds[1].revents != 0 && read(ring.call_fd, &count, sizeof count) < 0) {
        /* Somebody else has: there is nothing to read. */
    }
    int finished = started ? collect() : 0;
    if (finished < 0) {
        return -1;
    }
    if (vuf_device_process(device, &event) != 0) {
        return fail_in_library("process");
    }
    return handle(&event) != 0 ? -1 : finished > 0 || event.kind != VUF_DEVICE_EVENT_NONE;
}

/* ---- all of it ---- */

/* As long as back-ends are lost: anything; then each block is read once more. */
static void keep_busy(int *last_read)
{
    while (started && in_flight < SLOTS) {
        int over = losses >= wanted_losses;
        int block = over ? *last_read : (int)(next_random() % BLOCKS);
        if (block == BLOCKS || blocks[block].busy) {
            return;
        }
        *last_read += over;
        /* What is in doubt is read before it is written again. */
        int in = over || blocks[block].perhaps != 0 || next_random() % 3 == 0;
        submit(block, in ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT);
    }
}

static int run(void)
{
    int last_read = 0;
    for (int64_t progress = now_ms(); last_read < BLOCKS || in_flight > 0;) {
        keep_busy(&last_read);
        int rc = turn();
        if (rc < 0) {
            return -1;
        }
        if (rc > 0) {
            progress = now_ms();
        } else if (now_ms() - progress > PATIENCE_MS) {
            fputs("blk-resilient: nothing goes on any more\n", stderr);
            return -1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    char *end = NULL;
    wanted_losses = argc == 3 ? strtoul(argv[2], &end, 10) : 0;
    if (argc != 3 || end == argv[2] || *end != '\0') {
        fputs("usage: blk-resilient SOCKET LOSSES\n"
              "SOCKET  where a vhost-user-blk back-end listens, now or later; the first MiB\n"
              "        of its disk, which has to be zero, is overwritten\n"
              "LOSSES  how often it will be killed and started again\n",
              stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    random_state = (uint64_t)now_ms() | 1;
    for (int n = 0; n < SLOTS; n++) {
        requests[n].block = -1;
    }
    const struct vuf_device_options options = {
        .size = sizeof options,
        .num_rings = 1,
        .first_delay_ms = 10,
        .max_delay_ms = 200,
        /* Each block is compared, and qemu-storage-daemon completes out of order: going
         * on from the used index would lose some requests and repeat others. */
        .out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET,
    };
    int rc = guest_memory_create(&memory, GUEST_ADDR, GUEST_SIZE);
    if (rc == 0 && vuf_device_open(argv[1], &options, &device) != 0) {
        rc = fail_in_library("open");
    }
    if (rc == 0) {
        rc = run();
    }
    struct vuf_quiet quiet = {.size = sizeof quiet};
    if (device != NULL) {
        vuf_device_stop(device, NULL, 0, VUF_STOP_DRAIN, PATIENCE_MS, &quiet);
    }
    vuf_device_free(device);
    blk_ring_destroy(&ring);
    guest_memory_destroy(&memory);
    printf("%" PRIu64 " writes, %" PRIu64 " reads, %lu losses, %lu recoveries, %lu resets, "
           "%" PRIu64 " mismatches\n",
           writes, reads, losses, recovered, resets, mismatches);
    return rc == 0 && mismatches == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
