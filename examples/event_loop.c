/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * event-loop LOSSES SOCKET...: several disks, served by one thread with one epoll
 * loop, as in a virtual machine monitor.
 *
 * The loop waits for the events of each vuf_device, for the call and error
 * descriptors of its ring, and for a timer. (Not for kick descriptors: what the guest
 * writes there the back-end reads.) Nothing in it waits, so a disk whose back-end is
 * gone, or does not answer, delays no other: how many requests these finish meanwhile
 * is counted, and told.
 *
 * The guest (event_loop_guest.c) writes and reads, until so many back-ends were lost
 * and regained and each disk has done its share once more. Then all is finished,
 * stopped and freed. examples/event_loop.sh runs it.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "event_loop_guest.h"
#include "names.h"
#include "vhost_user_frontend.h"
#include "virtio_blk.h"

#define BIT(n) (UINT64_C(1) << (n))
#define WANTED (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_BLK_F_FLUSH))
#define GUEST_ADDR UINT64_C(0x40000000)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { MAX_DISKS = 8, PATIENCE_S = 60 /* without any progress */ };
enum { SHARE = 200 /* requests of a disk that are enough */ };

struct disk;

/* What an event of epoll is about. */
struct source {
    void (*ready)(struct disk *disk);
    struct disk *disk;
};

static struct disk {
    int index;
    struct vuf_device *device;
    struct source events, calls, errors;
    struct guest guest;
    bool started;   /* the guest's driver has a ring */
    bool resetting; /* it waits for the end of a reset */
    bool away;      /* the back-end was lost */
    unsigned long share, meanwhile;
} disks[MAX_DISKS];

static struct source timer;
static struct guest_memory memory;
static struct vuf_memory_group *group;
static int epoll, timer_fd, num_disks, idle_s;
static unsigned long losses, wanted_losses;
static bool told; /* how the others do without one */
static enum { RUN, FINISH, STOP, OVER } phase;

#define EACH_DISK(disk) (struct disk *disk = disks; disk < disks + num_disks; disk++)

_Noreturn static void die(const struct disk *disk, const char *what, const char *why)
{
    fprintf(stderr, "event-loop: disk %d: %s: %s\n", disk->index, what, why);
    exit(EXIT_FAILURE);
}

static void library(const struct disk *disk, const char *what, int rc)
{
    if (rc != 0) {
        die(disk, what, vuf_last_error());
    }
}

static void watch(struct disk *disk, int fd, struct source *source, void (*ready)(struct disk *))
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    *source = (struct source){ready, disk};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        die(disk, "epoll_ctl", strerror(errno));
    }
}

/* ---- the driver ---- */

/* An interrupt. With KVM this is an irqfd, and read here only while it is masked. */
static void called(struct disk *disk)
{
    const char *why = NULL;
    uint64_t ignored;
    if (read(disk->guest.ring.call_fd, &ignored, sizeof ignored) < 0) {
        return; /* epoll told of the ring that was there before */
    }
    int count = guest_interrupt(&disk->guest, &why);
    if (count < 0) {
        die(disk, "request", why);
    }
    if (count > 0 && disk->share == 0) {
        printf("disk %d works\n", disk->index);
    }
    disk->share += (unsigned)count;
    disk->meanwhile += (unsigned)count;
    idle_s = 0;
    if (phase == RUN) {
        guest_submit(&disk->guest);
    }
}

static void broken(struct disk *disk)
{
    die(disk, "ring", "the back-end says that it is broken");
}

/* The driver has found its device, or has reset it: features, and a new ring. It need
   not wait for a back-end that was lost. */
static void boot(struct disk *disk)
{
    struct vuf_device_info info = {.size = sizeof info};
    if (guest_boot(&disk->guest) != 0) {
        die(disk, "ring", "cannot be made");
    }
    watch(disk, disk->guest.ring.call_fd, &disk->calls, called);
    watch(disk, disk->guest.ring.err_fd, &disk->errors, broken);
    struct vuf_ring ring = blk_ring_of_device(&disk->guest.ring, VUF_RING_BASE_NEW);
    library(disk, "info", vuf_device_get_info(disk->device, &info));
    library(disk, "features",
            vuf_device_set_features(disk->device, info.offered_features & WANTED));
    library(disk, "start", vuf_device_start(disk->device, &ring, 1));
    disk->started = true;
    guest_submit(&disk->guest);
}

/* To close a descriptor is not enough for epoll: others have the same eventfd. */
static void drop_ring(struct disk *disk)
{
    epoll_ctl(epoll, EPOLL_CTL_DEL, disk->guest.ring.call_fd, NULL);
    epoll_ctl(epoll, EPOLL_CTL_DEL, disk->guest.ring.err_fd, NULL);
    guest_reset(&disk->guest);
    disk->started = false;
}

static bool quiesced(const struct disk *disk)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    library(disk, "quiet", vuf_device_get_quiet(disk->device, &quiet));
    return quiet.quiesced;
}

/* ---- the device ---- */

/* From here on it is counted what is done without this disk. */
static void count_without(struct disk *lost)
{
    for EACH_DISK (disk) {
        disk->meanwhile = 0;
        disk->guest.slowest_us = 0;
    }
    lost->away = true;
    told = false;
}

static void handle(struct disk *disk, const struct vuf_device_event *event)
{
    uint8_t config[8];
    struct vuf_quiet quiet = {.size = sizeof quiet};
    printf("disk %d: %s %s\n", disk->index, vuf_device_event_name(event->kind), event->text);
    switch (event->kind) {
    case VUF_DEVICE_EVENT_CONNECTED:
        disk->away = false;
        disk->share = 0;
        if (!disk->started && !disk->resetting) {
            boot(disk);
        }
        break;
    case VUF_DEVICE_EVENT_LOST:
        if (!disk->away) {
            losses++;
            count_without(disk);
        }
        break;
    case VUF_DEVICE_EVENT_STALLED:
        if (disk->away) {
            count_without(disk);
        }
        break;
    case VUF_DEVICE_EVENT_UNFENCED:
        printf("disk %d: process %d may still write to the guest\n", disk->index,
               (int)event->peer_pid);
        break;
    case VUF_DEVICE_EVENT_NEEDS_RESET:
        /* The guest is asked to reset its device, and does. */
        vuf_device_reset(disk->device, 0, &quiet);
        drop_ring(disk);
        disk->resetting = true;
        break;
    case VUF_DEVICE_EVENT_CONFIG_CHANGED:
        /* The guest gets an interrupt, and reads. */
        library(disk, "config", vuf_device_read_config(disk->device, 0, config, 8, NULL));
        printf("disk %d has %" PRIu64 " sectors\n", disk->index, blk_config_capacity(config));
        break;
    default:
        break;
    }
}

/* One step: the descriptor stays readable while there is more, and epoll lets the
   others have their turn. */
static void process(struct disk *disk)
{
    struct vuf_device_event event = {.size = sizeof event};
    library(disk, "process", vuf_device_process(disk->device, &event));
    if (event.kind != VUF_DEVICE_EVENT_NONE) {
        handle(disk, &event);
    }
    if (disk->resetting && quiesced(disk)) {
        disk->resetting = false;
        boot(disk);
    }
}

static void tick(struct disk *disk)
{
    uint64_t ticks;
    if (read(timer_fd, &ticks, sizeof ticks) > 0 && ++idle_s > PATIENCE_S) {
        die(disk, "timer", "nothing goes on any more");
    }
}

/* ---- all of it ---- */

/* Tells it when each of the others has done its share without this disk. */
static void tell_without(const struct disk *away)
{
    int64_t slowest_us = 0;
    for EACH_DISK (disk) {
        if (disk != away && disk->meanwhile < SHARE) {
            return;
        }
        slowest_us = disk->guest.slowest_us > slowest_us ? disk->guest.slowest_us : slowest_us;
    }
    told = true;
    printf("without disk %d: %d requests of each other, the slowest in %.1f ms\n", away->index,
           SHARE, (double)slowest_us / 1000);
}

/* After each round of events: is it time for the next phase? */
static void advance(void)
{
    bool enough = losses >= wanted_losses, idle = true, quiet = true;
    for EACH_DISK (disk) {
        if (disk->away && !told) {
            tell_without(disk);
        }
        enough &= !disk->away && disk->share >= SHARE;
        idle &= guest_is_idle(&disk->guest);
        quiet &= quiesced(disk);
    }
    struct vuf_quiet later = {.size = sizeof later};
    if (phase == RUN && enough) {
        phase = FINISH;
    } else if (phase == FINISH && idle) {
        phase = STOP;
        for EACH_DISK (disk) {
            vuf_device_stop(disk->device, NULL, 0, VUF_STOP_DRAIN, 0, &later);
        }
    } else if (phase == STOP && quiet) {
        phase = OVER;
    }
}

static void set_up(struct disk *disk, const char *path)
{
    const struct vuf_device_options options = {
        .size = sizeof options,
        .num_rings = 1,
        .config_size = BLK_CONFIG_SIZE,
        .required_features = BIT(VIRTIO_F_VERSION_1),
        .first_delay_ms = 10,
        .max_delay_ms = 200,
        .stall_ms = 200,
        /* The guests compare each block, and qemu-storage-daemon completes out of order. */
        .out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET,
    };
    disk->index = (int)(disk - disks);
    guest_init(&disk->guest, &memory, GUEST_ADDR + (uint64_t)disk->index * GUEST_BYTES);
    library(disk, "open", vuf_device_open(path, &options, &disk->device));
    library(disk, "join", vuf_memory_group_join(group, disk->device));
    watch(disk, vuf_device_get_fd(disk->device), &disk->events, process);
}

int main(int argc, char **argv)
{
    char *end = NULL;
    wanted_losses = argc > 2 ? strtoul(argv[1], &end, 10) : 0;
    if (argc < 3 || argc > 2 + MAX_DISKS || end == argv[1] || *end != '\0') {
        fputs("usage: event-loop LOSSES SOCKET...\n"
              "LOSSES  how many back-ends will be killed and started again\n"
              "SOCKET  where up to 8 back-ends listen, whose disks are overwritten\n", stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct itimerspec every_second = {{1, 0}, {1, 0}};
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timerfd_settime(timer_fd, 0, &every_second, NULL) != 0 ||
        guest_memory_create(&memory, GUEST_ADDR, (uint64_t)MAX_DISKS * GUEST_BYTES) != 0) {
        die(disks, "set up", strerror(errno));
    }
    watch(disks, timer_fd, &timer, tick);

    /* All devices share all memory, as those of a guest do. */
    struct vuf_mem_region region = guest_memory_region(&memory);
    library(disks, "group", vuf_memory_group_new(&group));
    library(disks, "memory", vuf_memory_group_set_memory(group, &region, 1, 0));
    for (; num_disks < argc - 2; num_disks++) {
        set_up(&disks[num_disks], argv[num_disks + 2]);
    }

    while (phase != OVER) {
        struct epoll_event ready[16];
        int count = epoll_wait(epoll, ready, LENGTH(ready), -1);
        for (int n = 0; n < count; n++) {
            struct source *source = ready[n].data.ptr;
            source->ready(source->disk);
        }
        advance();
    }

    /* Nobody writes the memory any more, and it may go. */
    for EACH_DISK (disk) {
        printf("disk %d: %lu requests\n", disk->index, disk->guest.finished);
        drop_ring(disk);
        vuf_device_free(disk->device);
    }
    vuf_memory_group_free(group);
    guest_memory_destroy(&memory);
    close(timer_fd);
    close(epoll);
    printf("%lu losses, and every block held what was written\n", losses);
    return EXIT_SUCCESS;
}
