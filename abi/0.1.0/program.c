/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* consumer SOCKET: a program that was written for the library and knows nothing of
   its sources. It drives a vhost-user-blk back-end as a client and as a device,
   and looks at what it gets in each struct. Linked in every way that there is, or
   with BY_DLOPEN not at all; each release keeps a copy of it (docs/abi.md), which
   runs with all later ones. Ends with 0 if everything was as it should be. */
#define _GNU_SOURCE
#include <vhost_user_frontend.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef BY_DLOPEN
#include <dlfcn.h>
static const struct vuf_api *vuf;
#define VUF(function) vuf->function
#else
#define VUF(function) function
#endif

#define BIT(n) (UINT64_C(1) << (n))
enum { VERSION_1 = 32, MEMORY = 1 << 16, GUEST = 1 << 20, CAPACITY = 8, EVENT_MS = 10000 };

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "not so: %s; last error: %s\n", what, VUF(vuf_last_error)());
        exit(1);
    }
}
#define CHECK(condition) check((condition), #condition)

static void load(void)
{
#ifdef BY_DLOPEN
    void *library = dlopen(VUF_SONAME, RTLD_NOW | RTLD_LOCAL);
    const struct vuf_api *(*get_api)(uint32_t) = NULL;
    if (library != NULL) {
        *(void **)&get_api = dlsym(library, "vuf_get_api");
    }
    vuf = get_api == NULL ? NULL : get_api(VUF_API_VERSION);
    if (vuf == NULL || !VUF_API_HAS(vuf, vuf_device_open)) {
        fprintf(stderr, "no library: %s\n", dlerror());
        exit(1);
    }
#endif
}

static void count(void *user, const struct vuf_trace_record *record)
{
    unsigned *seen = user;
    if (record->size >= sizeof *record && record->direction == VUF_TRACE_SENT &&
        strcmp(record->name, VUF(vuf_request_name)(record->request)) == 0) {
        ++*seen;
    }
}

/* Negotiates; returns the number of sectors. */
static uint64_t as_client(const char *socket)
{
    struct vuf_client_options options = {.size = sizeof options, .timeout_ms = 5000};
    struct vuf_counters counters = {.size = sizeof counters};
    struct vuf_error_info info = {.size = sizeof info};
    struct vuf_client *client = NULL;
    uint64_t features = 0, protocol = 0, sectors = 0;
    unsigned seen = 0;
    options.flags = UINT32_MAX;
    CHECK(VUF(vuf_client_connect)(socket, &options, &client) == -EINVAL && client == NULL);
    options.flags = VUF_CLIENT_WAIT_FOR_SOCKET;
    CHECK(VUF(vuf_client_connect)(socket, &options, &client) == 0);
    CHECK(VUF(vuf_client_set_trace)(client, count, &seen) == 0);
    CHECK(VUF(vuf_client_get_features)(client, &features) == 0);
    CHECK((features & BIT(VUF_F_PROTOCOL_FEATURES)) != 0 && (features & BIT(VERSION_1)) != 0);
    CHECK(VUF(vuf_client_get_protocol_features)(client, &protocol) == 0);
    protocol &= BIT(VUF_PROTOCOL_F_CONFIG) | BIT(VUF_PROTOCOL_F_REPLY_ACK);
    CHECK(protocol != 0 && VUF(vuf_client_set_protocol_features)(client, protocol) == 0);
    CHECK(VUF(vuf_client_set_owner)(client) == 0);
    CHECK(VUF(vuf_client_set_features)(client, BIT(VERSION_1) | BIT(VUF_F_PROTOCOL_FEATURES)) == 0);
    CHECK(VUF(vuf_client_get_config)(client, 0, 0, &sectors, CAPACITY) == 0);
    CHECK(VUF(vuf_client_send_rarp)(client, 2) == VUF_E_NOT_NEGOTIATED);
    CHECK(VUF(vuf_last_error_info)(&info) == 0);
    CHECK(info.code == VUF_E_NOT_NEGOTIATED && info.error_class == VUF_CLASS_LOCAL);
    CHECK(info.request == VUF_REQUEST_SEND_RARP && info.phase == VUF_PHASE_CHECK);
    CHECK(VUF(vuf_client_get_counters)(client, &counters) == 0);
    CHECK(counters.requests_sent == seen && seen >= 6 && counters.timeouts == 0);
    VUF(vuf_client_free)(client);
    return sectors;
}

/* The next event of that kind; others may come before. */
static void await(struct vuf_device *device, uint32_t kind)
{
    struct vuf_device_event event = {.size = sizeof event};
    do {
        struct pollfd fd = {.fd = VUF(vuf_device_get_fd)(device), .events = POLLIN};
        CHECK(poll(&fd, 1, EVENT_MS) == 1);
        CHECK(VUF(vuf_device_process)(device, &event) == 0);
        CHECK(event.kind != VUF_DEVICE_EVENT_LOST && event.kind != VUF_DEVICE_EVENT_NEEDS_RESET);
    } while (event.kind != kind);
}

/* Starts a ring, on which nothing is asked for, and stops it. */
static void as_device(const char *socket, uint64_t expected)
{
    struct vuf_device_options options = {
        .size = sizeof options,
        .num_rings = 1,
        .config_size = CAPACITY,
        .required_features = BIT(VERSION_1),
        .first_delay_ms = 10,
    };
    struct vuf_device_info info = {.size = sizeof info};
    struct vuf_quiet quiet = {.size = sizeof quiet};
    struct vuf_mem_region region = {.guest_addr = GUEST, .size = MEMORY, .fd = -1};
    struct vuf_ring ring = {
        .size = 8,
        .descriptor = GUEST,
        .available = GUEST + 0x1000,
        .used = GUEST + 0x2000,
        .kick_fd = eventfd(0, EFD_CLOEXEC),
        .call_fd = eventfd(0, EFD_CLOEXEC),
        .err_fd = -1,
    };
    struct vuf_device *device = NULL;
    uint64_t sectors = 0;
    uint32_t generation = 0, base = 7;
    CHECK(VUF(vuf_memfd_create)("guest", MEMORY, 0, VUF_MEMFD_SEAL, &region.fd) == 0);
    unsigned char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0);
    CHECK(memory != MAP_FAILED);
    ring.used_index = (const uint16_t *)(const void *)(memory + 0x2002);

    CHECK(VUF(vuf_device_open)(socket, &options, &device) == 0);
    await(device, VUF_DEVICE_EVENT_CONNECTED);
    CHECK(VUF(vuf_device_get_info)(device, &info) == 0);
    CHECK(info.connected == 1 && info.connections == 1 && info.acked_features == 0);
    CHECK(info.queue_num >= 1 && (info.offered_features & BIT(VERSION_1)) != 0);
    CHECK(VUF(vuf_device_read_config)(device, 0, &sectors, CAPACITY, &generation) == 0);
    CHECK(sectors == expected);

    CHECK(VUF(vuf_device_set_memory)(device, &region, 1, 0) == 0);
    CHECK(VUF(vuf_device_set_features)(device, BIT(VERSION_1)) == 0);
    CHECK(VUF(vuf_device_start)(device, &ring, 1) == 0);
    CHECK(VUF(vuf_device_wait)(device, EVENT_MS) == 0);
    await(device, VUF_DEVICE_EVENT_APPLIED);
    CHECK(VUF(vuf_device_get_info)(device, &info) == 0);
    CHECK(info.settled == 1 && (info.acked_features & BIT(VERSION_1)) != 0);
    CHECK(VUF(vuf_device_stop)(device, NULL, 0, VUF_STOP_DRAIN, EVENT_MS, &quiet) == 0);
    CHECK(quiet.quiesced == 1 && quiet.bases_valid == 1);
    CHECK(VUF(vuf_device_get_vring_base)(device, 0, &base) == 0 && base == 0);
    VUF(vuf_device_free)(device);
    munmap(memory, MEMORY);
    close(region.fd);
    close(ring.kick_fd);
    close(ring.call_fd);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        return 2;
    }
    load();
    /* A newer library has a higher number. */
    const uint32_t own = VUF_VERSION_MAJOR << 16 | VUF_VERSION_MINOR << 8 | VUF_VERSION_PATCH;
    CHECK(VUF(vuf_version)() >= own);
    uint64_t sectors = as_client(argv[1]);
    CHECK(sectors > 0);
    as_device(argv[1], sectors);
    printf("%s: %llu sectors\n", argv[1], (unsigned long long)sectors);
    return 0;
}
