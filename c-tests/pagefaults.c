/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "pagefaults.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

bool pagefaults_allowed(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

void pagefaults_pattern(uint64_t addr, uint8_t bytes[FAULT_PAGE])
{
    uint64_t page = addr / FAULT_PAGE;
    for (unsigned n = 0; n < FAULT_PAGE; n++) {
        bytes[n] = (uint8_t)(n * 7 + n / 256 + page * 31);
    }
}

unsigned pagefaults_served(const struct pagefaults *faults, uint64_t addr)
{
    return atomic_load(&faults->served[(addr - DEVICE_ADDR) / FAULT_PAGE]);
}

/* Gives the back-end the page that it waits for. */
static bool serve(struct pagefaults *faults, const struct uffd_msg *message)
{
    uint64_t page = (message->arg.pagefault.address - faults->base) / FAULT_PAGE;
    if (message->event != UFFD_EVENT_PAGEFAULT || page >= FAULT_PAGES) {
        return false;
    }
    uint8_t bytes[FAULT_PAGE];
    pagefaults_pattern(DEVICE_ADDR + page * FAULT_PAGE, bytes);
    struct uffdio_copy copy = {
        .dst = faults->base + page * FAULT_PAGE,
        .src = (uintptr_t)bytes,
        .len = FAULT_PAGE,
    };
    atomic_fetch_add(&faults->served[page], 1);
    return ioctl(faults->fd, UFFDIO_COPY, &copy) == 0;
}

static void *serve_all(void *argument)
{
    struct pagefaults *faults = argument;
    while (!atomic_load(&faults->done)) {
        struct pollfd item = {.fd = faults->fd, .events = POLLIN};
        struct uffd_msg message;
        if (poll(&item, 1, 10) != 1) {
            continue;
        }
        if ((item.revents & POLLIN) == 0) {
            break; /* the back-end has closed it */
        }
        if (read(faults->fd, &message, sizeof message) == sizeof message &&
            !serve(faults, &message)) {
            atomic_fetch_add(&faults->wrong, 1);
        }
    }
    return NULL;
}

/* Where a process has mapped guest memory; 0 if nowhere. */
static uint64_t look_up(pid_t pid)
{
    char path[32], line[256];
    uint64_t base = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    while (maps != NULL && base == 0 && fgets(line, sizeof line, maps) != NULL) {
        if (strstr(line, "memfd:guest-memory") != NULL) {
            base = strtoull(line, NULL, 16);
        }
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return base;
}

void pagefaults_begin(struct pagefaults *faults, struct device *device)
{
    memset(faults, 0, sizeof *faults);
    faults->fd = -1;
    assert_int_equal(guest_memory_create(&device->memory, DEVICE_ADDR, DEVICE_SIZE), 0);
    /* One page that is touched brings no others with it. */
    assert_int_equal(madvise(device->memory.host, DEVICE_SIZE, MADV_NOHUGEPAGE), 0);
    struct vuf_mem_region region = guest_memory_region(&device->memory);
    assert_ok(device, vuf_client_postcopy_advise(device->client, &faults->fd));
    assert_int_equal(fcntl(faults->fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(faults->fd, F_SETFL, O_NONBLOCK), 0);
    assert_ok(device, vuf_client_postcopy_listen(device->client));
    assert_ok(device,
              vuf_client_postcopy_set_mem_table(device->client, &region, 1, &faults->base));
    uint64_t mapped = look_up(device->backend.pid);
    assert_true(mapped != 0);
    if (faults->base == region.user_addr) {
        /* libvhost-user 10.0 sends the table back as it came. */
        print_message("told the address that it was sent; it maps it elsewhere\n");
        faults->base = mapped;
    }
    assert_true(faults->base == mapped);
    assert_int_equal(pthread_create(&faults->thread, NULL, serve_all, faults), 0);
    faults->running = true;
    assert_ok(device, vuf_client_postcopy_ack_mem_table(device->client));
}

void pagefaults_end(struct pagefaults *faults, struct device *device)
{
    assert_ok(device, vuf_client_postcopy_end(device->client));
    pagefaults_drop(faults);
    assert_int_equal(faults->wrong, 0);
}

void pagefaults_drop(struct pagefaults *faults)
{
    if (faults->running) {
        atomic_store(&faults->done, true);
        pthread_join(faults->thread, NULL);
        faults->running = false;
    }
    if (faults->fd > 0) {
        close(faults->fd);
    }
    faults->fd = -1;
}
