/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * blk-demo SOCKET FILE: a whole session with a vhost-user-blk back-end.
 *
 * Connects, negotiates, shares memory, starts a ring, writes and reads data
 * through it, and compares what is then in FILE, the raw image that the
 * back-end serves. The calls into the library stand in the order in which a VMM
 * makes them. `make demo` starts a back-end and runs this.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/virtio_ids.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "names.h"
#include "vhost_user_frontend.h"
#include "virtio_blk.h"

/* Guest addresses are numbers of our choosing; this one looks like none of our
   pointers, and so shows that none is sent. */
#define GUEST_ADDR 0x40000000u
#define GUEST_SIZE (1u << 20)
#define RING_ADDR GUEST_ADDR
#define WRITE_ADDR (GUEST_ADDR + 0x40000u) /* the data that is written */
#define READ_ADDR (GUEST_ADDR + 0x80000u)  /* where it is read back to */

enum { RING = 0, RING_NUM = 64, WAIT_MS = 10000 };

#define BIT(n) (UINT64_C(1) << (n))
#define WANTED (BIT(VIRTIO_F_VERSION_1) | BIT(VUF_F_PROTOCOL_FEATURES) | BIT(VIRTIO_BLK_F_FLUSH))
#define WANTED_PROTOCOL                                                                           \
    (BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG))

/* What is written where. The last lies at the end of the disk. */
static struct extent {
    uint64_t sector;
    uint32_t sectors;
} extents[] = {{0, 1}, {7, 3}, {64, 16}, {1000, 128}, {4097, 5}, {UINT64_MAX, 8}};

enum { EXTENTS = sizeof extents / sizeof *extents };

struct demo {
    const char *socket;
    const char *path;
    int file;
    uint64_t capacity; /* sectors */
    uint64_t features; /* acknowledged */
    uint64_t protocol; /* likewise */
    struct vuf_client *client;
    struct guest_memory memory;
    struct blk_ring ring;
};

/* ---- one line for each step ---- */

static int step;
static const char *step_name;

static void begin(const char *name)
{
    step_name = name;
    printf("%2d. %-22s", ++step, name);
    fflush(stdout);
}

/* The step has printed its result itself. */
static int done_names(void)
{
    putchar('\n');
    return 0;
}

__attribute__((format(printf, 1, 2))) static int done(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    putchar(' ');
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    return 0;
}

__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...)
{
    puts(" FAILED");
    fflush(stdout);
    fprintf(stderr, "blk-demo: step %d (%s): ", step, step_name);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return -1;
}

static int fail_in_library(void)
{
    return fail("%s", vuf_last_error());
}

/* ---- the steps ---- */

static int open_file(struct demo *demo)
{
    begin("open the image");
    struct stat stat;
    demo->file = open(demo->path, O_RDONLY | O_CLOEXEC);
    if (demo->file < 0 || fstat(demo->file, &stat) != 0) {
        return fail("%s: %s", demo->path, strerror(errno));
    }
    demo->capacity = (uint64_t)stat.st_size / SECTOR_SIZE;
    if (demo->capacity < 8192) {
        return fail("%s is too small: it must have 4 MiB at least", demo->path);
    }
    extents[EXTENTS - 1].sector = demo->capacity - extents[EXTENTS - 1].sectors;
    return done("%s, %" PRIu64 " sectors", demo->path, demo->capacity);
}

static int connect_to_back_end(struct demo *demo)
{
    begin("connect");
    if (vuf_client_connect(demo->socket, NULL, &demo->client) != 0) {
        return fail_in_library();
    }
    return done("%s", demo->socket);
}

static void print_names(uint64_t mask, bool protocol)
{
    const struct device_type *blk = device_type_by_id(VIRTIO_ID_BLOCK);
    for (unsigned bit = 0; bit < 64; bit++) {
        const char *name =
            protocol ? vuf_protocol_feature_name(bit) : virtio_feature_name(blk, bit);
        if ((mask & BIT(bit)) != 0 && name != NULL) {
            printf(" %s", name);
        } else if ((mask & BIT(bit)) != 0) {
            printf(" bit-%u", bit);
        }
    }
}

static int ask_features(struct demo *demo)
{
    begin("virtio features");
    uint64_t offered;
    if (vuf_client_get_features(demo->client, &offered) != 0) {
        return fail_in_library();
    }
    print_names(offered, false);
    if ((offered & BIT(VIRTIO_BLK_F_RO)) != 0) {
        return fail("the disk is read-only, and this writes to it");
    }
    demo->features = offered & WANTED;
    uint64_t missing = (BIT(VIRTIO_F_VERSION_1) | BIT(VUF_F_PROTOCOL_FEATURES)) & ~offered;
    if (missing != 0) {
        print_names(missing, false);
        return fail("the back-end does not offer what this demonstration cannot do without: "
                    "VERSION_1 and PROTOCOL_FEATURES");
    }
    return done_names();
}

static int ask_protocol_features(struct demo *demo)
{
    begin("protocol features");
    uint64_t offered;
    if (vuf_client_get_protocol_features(demo->client, &offered) != 0) {
        return fail_in_library();
    }
    print_names(offered, true);
    demo->protocol = offered & WANTED_PROTOCOL & vuf_supported_protocol_features();
    return done_names();
}

static int negotiate(struct demo *demo)
{
    begin("negotiate");
    if (vuf_client_set_protocol_features(demo->client, demo->protocol) != 0 ||
        vuf_client_set_owner(demo->client) != 0 ||
        vuf_client_set_features(demo->client, demo->features) != 0) {
        return fail_in_library();
    }
    print_names(demo->features, false);
    printf(" +");
    print_names(demo->protocol, true);
    return done_names();
}

static int read_config(struct demo *demo)
{
    begin("read the configuration");
    if ((demo->protocol & BIT(VUF_PROTOCOL_F_CONFIG)) == 0) {
        return done("not offered; the image's size must do");
    }
    uint8_t config[BLK_CONFIG_SIZE];
    if (vuf_client_get_config(demo->client, 0, 0, config, sizeof config) != 0) {
        return fail_in_library();
    }
    uint64_t capacity = blk_config_capacity(config);
    if (capacity != demo->capacity) {
        /* Before anything is written to the wrong disk. */
        return fail("the disk has %" PRIu64 " sectors, %s has %" PRIu64
                    ": is it what the back-end serves?",
                    capacity, demo->path, demo->capacity);
    }
    return done("a disk of %" PRIu64 " sectors, as the image", capacity);
}

static int share_memory(struct demo *demo)
{
    begin("share guest memory");
    int rc = guest_memory_create(&demo->memory, GUEST_ADDR, GUEST_SIZE);
    if (rc != 0) {
        return fail("cannot create it: %s", strerror(-rc));
    }
    struct vuf_mem_region region = guest_memory_region(&demo->memory);
    if (vuf_client_set_mem_table(demo->client, &region, 1) != 0) {
        return fail_in_library();
    }
    return done("%u KiB at guest address 0x%x", GUEST_SIZE / 1024, GUEST_ADDR);
}

static int create_ring(struct demo *demo)
{
    begin("lay out a ring");
    int rc = blk_ring_create(&demo->ring, RING, RING_NUM, &demo->memory, RING_ADDR);
    if (rc != 0) {
        return fail("%s", strerror(-rc));
    }
    return done("%d descriptors, in guest memory", RING_NUM);
}

static int start_ring(struct demo *demo, uint32_t base, const char *name)
{
    begin(name);
    if (blk_ring_start(&demo->ring, demo->client, base) != 0) {
        return fail_in_library();
    }
    return done("ring %d, from index %u", RING, base);
}

static int stop_ring(struct demo *demo, uint32_t *base)
{
    begin("stop the ring");
    if (blk_ring_stop(&demo->ring, demo->client, base) != 0) {
        return fail_in_library();
    }
    return done("it stood at index %u", *base);
}

static int wait_for(struct demo *demo, int slot)
{
    int status = blk_ring_wait(&demo->ring, slot, WAIT_MS, NULL);
    if (status < 0) {
        return fail("%s", blk_ring_strerror(status));
    }
    if (status != VIRTIO_BLK_S_OK) {
        return fail("the device ended a request with status %d (%s)", status,
                    blk_status_name(status));
    }
    return 0;
}

/* All extents in flight at once, their data one behind the other from addr. */
static int transfer(struct demo *demo, const char *name, uint32_t type, uint64_t addr)
{
    int slots[EXTENTS];
    uint32_t bytes = 0;
    begin(name);
    for (int n = 0; n < EXTENTS; n++) {
        uint32_t length = extents[n].sectors * SECTOR_SIZE;
        slots[n] = blk_ring_submit(&demo->ring, type, extents[n].sector, addr + bytes, length);
        if (slots[n] < 0) {
            return fail("%s", blk_ring_strerror(slots[n]));
        }
        bytes += length;
    }
    for (int n = 0; n < EXTENTS; n++) {
        if (wait_for(demo, slots[n]) != 0) {
            return -1;
        }
    }
    return done("%d requests in flight, %" PRIu32 " bytes", EXTENTS, bytes);
}

static int flush(struct demo *demo)
{
    begin("flush");
    if ((demo->features & BIT(VIRTIO_BLK_F_FLUSH)) == 0) {
        return done("not offered: every write is stable already");
    }
    int slot = blk_ring_submit(&demo->ring, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    if (slot < 0) {
        return fail("%s", blk_ring_strerror(slot));
    }
    return wait_for(demo, slot) != 0 ? -1 : done("done");
}

/* ---- the data ---- */

/* Each sector differs from each other, and from those of the last run. */
static void make_pattern(struct demo *demo)
{
    uint8_t *bytes = guest_memory_at(&demo->memory, WRITE_ADDR);
    uint32_t state = (uint32_t)getpid() | 1;
    for (int n = 0; n < EXTENTS; n++) {
        for (uint32_t i = 0; i < extents[n].sectors * SECTOR_SIZE; i++) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            *bytes++ = (uint8_t)state;
        }
    }
}

static int compare_read_data(struct demo *demo)
{
    begin("compare what was read");
    const uint8_t *wrote = guest_memory_at(&demo->memory, WRITE_ADDR);
    const uint8_t *got = guest_memory_at(&demo->memory, READ_ADDR);
    for (int n = 0; n < EXTENTS; n++) {
        uint32_t length = extents[n].sectors * SECTOR_SIZE;
        if (memcmp(wrote, got, length) != 0) {
            return fail("what was read from sector %" PRIu64 " is not what was written",
                        extents[n].sector);
        }
        wrote += length;
        got += length;
    }
    return done("equal");
}

static int compare_file(struct demo *demo)
{
    static uint8_t bytes[128 * SECTOR_SIZE];
    begin("compare the image");
    const uint8_t *wrote = guest_memory_at(&demo->memory, WRITE_ADDR);
    for (int n = 0; n < EXTENTS; n++) {
        uint32_t length = extents[n].sectors * SECTOR_SIZE;
        off_t offset = (off_t)(extents[n].sector * SECTOR_SIZE);
        ssize_t got = pread(demo->file, bytes, length, offset);
        if (got < 0) {
            return fail("%s: %s", demo->path, strerror(errno));
        }
        if ((uint32_t)got != length || memcmp(wrote, bytes, length) != 0) {
            return fail("the bytes at sector %" PRIu64 " of %s are not what was written",
                        extents[n].sector, demo->path);
        }
        wrote += length;
    }
    return done("equal, at sector * 512 of the file");
}

/* ---- all of it ---- */

static int run(struct demo *demo)
{
    uint32_t base = 0;
    if (open_file(demo) != 0 || connect_to_back_end(demo) != 0 || ask_features(demo) != 0 ||
        ask_protocol_features(demo) != 0 || negotiate(demo) != 0 || read_config(demo) != 0 ||
        share_memory(demo) != 0 || create_ring(demo) != 0) {
        return -1;
    }
    make_pattern(demo);
    if (start_ring(demo, base, "start the ring") != 0 ||
        transfer(demo, "write a pattern", VIRTIO_BLK_T_OUT, WRITE_ADDR) != 0 ||
        flush(demo) != 0 ||
        /* Stopped and started again in between, as for a snapshot. */
        stop_ring(demo, &base) != 0 || start_ring(demo, base, "start it again") != 0 ||
        transfer(demo, "read it back", VIRTIO_BLK_T_IN, READ_ADDR) != 0 ||
        compare_read_data(demo) != 0 || compare_file(demo) != 0 || stop_ring(demo, &base) != 0) {
        return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fputs("usage: blk-demo SOCKET FILE\n"
              "SOCKET  where a vhost-user-blk back-end listens\n"
              "FILE    the raw image that it serves; some of its sectors are overwritten\n",
              stderr);
        return 2;
    }
    struct demo demo = {
        .socket = argv[1],
        .path = argv[2],
        .file = -1,
        .ring = {.kick_fd = -1, .call_fd = -1, .err_fd = -1},
    };
    int rc = run(&demo);

    /* The connection first: afterwards the back-end has no use for the memory. */
    vuf_client_free(demo.client);
    blk_ring_destroy(&demo.ring);
    guest_memory_destroy(&demo.memory);
    if (demo.file >= 0) {
        close(demo.file);
    }
    if (rc != 0) {
        return EXIT_FAILURE;
    }
    puts("\nSuccess: data written through a virtqueue to another process reached the disk image,\n"
         "and came back the same. The library carried the control messages; the data went\n"
         "through shared memory.");
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
