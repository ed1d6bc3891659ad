/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "vmm.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 30000 };

_Static_assert(VMM_QUEUES * VIRTQ_BYTES <= VMM_BUFFERS - VMM_ADDR, "");

void vmm_die(const struct vmm *vmm, const char *what, const char *why)
{
    fprintf(stderr, "%s: %s: %s\n", vmm->program, what, why);
    exit(EXIT_FAILURE);
}

static void library(const struct vmm *vmm, const char *what, int rc)
{
    if (rc != 0) {
        vmm_die(vmm, what, vuf_last_error());
    }
}

/* ---- events ---- */

/* One step; whether it has told that the back-end is there. */
static bool process(struct vmm *vmm)
{
    struct vuf_device_event event = {.size = sizeof event};
    library(vmm, "process", vuf_device_process(vmm->device, &event));
    switch (event.kind) {
    case VUF_DEVICE_EVENT_LOST:
        vmm_die(vmm, "the back-end is lost", event.text);
    case VUF_DEVICE_EVENT_STALLED:
        fprintf(stderr, "%s: %s\n", vmm->program, event.text);
        return false;
    default:
        return event.kind == VUF_DEVICE_EVENT_CONNECTED;
    }
}

void vmm_turn(struct vmm *vmm)
{
    struct pollfd fds[1 + 2 * VMM_QUEUES] = {
        {.fd = vuf_device_get_fd(vmm->device), .events = POLLIN},
    };
    nfds_t count = 1;
    for (uint32_t n = 0; n < vmm->num_queues; n++) {
        fds[count++] = (struct pollfd){.fd = vmm->queues[n].call_fd, .events = POLLIN};
        fds[count++] = (struct pollfd){.fd = vmm->queues[n].err_fd, .events = POLLIN};
    }
    int ready = poll(fds, count, PATIENCE_MS);
    if (ready == 0 || (ready < 0 && errno != EINTR)) {
        vmm_die(vmm, "poll", ready == 0 ? "nothing happens any more" : strerror(errno));
    }
    if (fds[0].revents != 0) {
        process(vmm);
    }
    for (nfds_t n = 1; n < count; n += 2) {
        /* Cleared before the queue is looked at, so that no call is missed. */
        uint64_t calls;
        if (fds[n].revents != 0 && read(fds[n].fd, &calls, sizeof calls) < 0 && errno != EAGAIN) {
            vmm_die(vmm, "call", strerror(errno));
        }
        if (fds[n + 1].revents != 0) {
            vmm_die(vmm, "queue", "the back-end says that it is broken");
        }
    }
}

/* ---- beginning and end ---- */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void await_back_end(struct vmm *vmm)
{
    struct pollfd fd = {.fd = vuf_device_get_fd(vmm->device), .events = POLLIN};
    const int64_t deadline = now_ms() + PATIENCE_MS;
    while (!process(vmm)) {
        if (now_ms() > deadline) {
            vmm_die(vmm, "connect", "nobody listens");
        }
        poll(&fd, 1, PATIENCE_MS);
    }
}

void vmm_start(struct vmm *vmm, const char *socket, const struct vuf_device_options *options,
               uint64_t features)
{
    struct vuf_device_info info = {.size = sizeof info};
    struct vuf_ring rings[VMM_QUEUES];
    library(vmm, "open", vuf_device_open(socket, options, &vmm->device));
    await_back_end(vmm);

    if (guest_memory_create(&vmm->memory, VMM_ADDR, VMM_SIZE) != 0) {
        vmm_die(vmm, "guest memory", strerror(errno));
    }
    const struct vuf_mem_region region = guest_memory_region(&vmm->memory);
    library(vmm, "memory", vuf_device_set_memory(vmm->device, &region, 1, 0));

    /* What a guest's driver does when it finds its device. */
    library(vmm, "info", vuf_device_get_info(vmm->device, &info));
    vmm->features = info.offered_features & (features | options->required_features);
    library(vmm, "features", vuf_device_set_features(vmm->device, vmm->features));
    for (; vmm->num_queues < options->num_rings; vmm->num_queues++) {
        const uint32_t n = vmm->num_queues;
        const int rc = virtq_create(&vmm->queues[n], n, VMM_QUEUE_NUM, &vmm->memory,
                                    VMM_ADDR + (uint64_t)n * VIRTQ_BYTES);
        if (rc != 0) {
            vmm_die(vmm, "queue", strerror(-rc));
        }
        rings[n] = virtq_ring_of_device(&vmm->queues[n], VUF_RING_BASE_NEW);
    }
    library(vmm, "start", vuf_device_start(vmm->device, rings, vmm->num_queues));
    /* The driver need not wait for the back-end: what it makes available now is found
       when the queues run. */
}

void vmm_stop(struct vmm *vmm)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    library(vmm, "stop",
            vuf_device_stop(vmm->device, NULL, 0, VUF_STOP_DRAIN, PATIENCE_MS, &quiet));
    if (!quiet.quiesced) {
        /* Unmapped it must not be, but a process may end. */
        vmm_die(vmm, "stop", "the back-end may still write guest memory");
    }
}

void vmm_free(struct vmm *vmm)
{
    vuf_device_free(vmm->device);
    for (uint32_t n = 0; n < vmm->num_queues; n++) {
        virtq_destroy(&vmm->queues[n]);
    }
    guest_memory_destroy(&vmm->memory);
}

/* ---- for the driver ---- */

void *vmm_at(const struct vmm *vmm, uint64_t guest_addr)
{
    return guest_memory_at(&vmm->memory, guest_addr);
}

int vmm_post(struct vmm *vmm, unsigned queue, const struct virtq_part *parts, unsigned out,
             unsigned in)
{
    int slot = virtq_add(&vmm->queues[queue], parts, out, in);
    if (slot < 0) {
        vmm_die(vmm, "queue", strerror(-slot));
    }
    virtq_kick(&vmm->queues[queue]);
    return slot;
}

int vmm_used(struct vmm *vmm, unsigned queue, uint32_t *written)
{
    int slot = virtq_wait(&vmm->queues[queue], 0, written);
    if (slot < 0 && slot != -ETIMEDOUT) {
        vmm_die(vmm, "queue", "the back-end has used what was not in flight");
    }
    return slot < 0 ? -1 : slot;
}
