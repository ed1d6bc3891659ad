/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Devices are freed at random moments of random lives: alone and in groups, with
 * and without a channel, connecting, listening and given a socket, with another
 * thread inside a call, on back-ends that work, die, stall, refuse and ask. What
 * the library was given is freed and unmapped as soon as the header allows, so that
 * it is noticed (best under AddressSanitizer) when it is used afterwards. After each
 * life no descriptor is left.
 *
 * VUF_CLOSE_ROUNDS=n     lives (200)
 * VUF_CLOSE_SEED=n       the seed of the first; each next one has the next number
 */
#include "rig.h"
#include "virtio_blk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 200, MOST_DEVICES = 3, MOST_STEPS = 80, RING_NUM = 64, RINGS = 2 };

#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x100000)
#define DATA_ADDR (GUEST_ADDR + 0x80000)
#define SECOND_ADDR UINT64_C(0x80000000)
#define SECOND_SIZE UINT64_C(0x10000)

#define WANTED (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ACCESS_PLATFORM) | BIT(VIRTIO_BLK_F_FLUSH))

/* ---- chance ---- */

static uint64_t chance;

static uint32_t below(uint32_t end)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (uint32_t)(chance >> 32) % end;
}

static bool one_in(uint32_t n)
{
    return below(n) == 0;
}

static uint64_t number_of(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);
    return text != NULL && *text != '\0' ? strtoull(text, NULL, 0) : otherwise;
}

/* How often something was so when a device was freed: each has to be, now and then. */
enum moment { DOWN, UP, RUNNING, STARTED, UNFENCED, NEEDS_RESET, ASKED, CALLED, ENDED, MOMENTS };
static const char *const moments[MOMENTS] = {
    "without a back-end", "connected", "running", "started, and not told yet", "unfenced",
    "waiting for a reset", "the caller's functions had run", "with another thread inside",
    "freed from inside before",
};
static unsigned seen[MOMENTS];

/* ---- back-ends, for all lives ---- */

/* They work, and at some moment they do not. All fail where they are told to on
   every connection, so that lives end in each of these states. */
enum { REFUSES_MEMORY = 8 };
static const char *const scripts[][16] = {
    /* It asks, and waits for the answer. */
    {"-e", "device features +33", "-e", "device shmem 0=0x100000", "-e", "device slots 32", "-e",
     "on SET_FEATURES: send IOTLB_MSG iova=0x1000 perm=3 type=1 need-reply", "-e",
     "on GET_CONFIG: send CONFIG_CHANGE_MSG need-reply", "-e",
     "on SET_VRING_ENABLE: send SHMEM_MAP shmid=0 len=0x1000 flags=1 need-reply", NULL},
    /* It takes its time. */
    {"-e", "on any: delay 1ms", "-e", "on SET_MEM_TABLE: delay 4ms", "-e",
     "on GET_VRING_BASE: delay 8ms", NULL},
    /* It stalls with the memory in its hands. */
    {"-e", "on SET_VRING_ENABLE: never", NULL},
    {"-e", "on SET_VRING_KICK: stop-reading", NULL},
    {"-e", "on GET_VRING_BASE: never", NULL},
    /* It dies at once, or after some time; it answers nonsense; it refuses. */
    {"-e", "on SET_VRING_ADDR: close", NULL},
    {"-e", "on SET_MEM_TABLE: close-after", NULL},
    {"-e", "on SET_VRING_BASE: size +4", NULL},
    [REFUSES_MEMORY] = {"-e", "on SET_MEM_TABLE: refuse 12", "-e",
                        "on ADD_MEM_REG: refuse 12", NULL},
    {"-e", "on GET_QUEUE_NUM: short 3", NULL},
};

enum peer {
    EMBEDDED,
    INFLIGHT,
    MOCK,
    CALLER = MOCK + (int)LENGTH(scripts), /* connects to a device that listens */
    NOWHERE,                              /* nobody listens */
    SILENT,                               /* a socket whose other end says nothing */
    NONSENSE,                             /* one that says what it should not */
    NO_SOCKET,                            /* one that comes later, if at all */
    PEERS,
};

static struct backend backends[NOWHERE];
static char listening[MOST_DEVICES][110];

static void start(enum peer peer)
{
    struct backend *backend = &backends[peer];
    bool before = backend->dir[0] != '\0';
    int rc = peer == EMBEDDED ? (before ? backend_again_embedded(backend, RINGS, false)
                                        : backend_start_embedded(backend, RINGS, false))
             : peer == INFLIGHT
                 ? (before ? backend_again_inflight : backend_start_inflight)(
                       backend, (const char *const[]){"--queues", "2", NULL})
                 : backend_start_mock(backend, scripts[peer - MOCK]);
    assert_int_equal(rc, 0);
}

static int start_all(void **state)
{
    const char *program = getenv("VUF_MOCK_BACKEND");
    struct backend *caller = &backends[CALLER];
    for (enum peer peer = EMBEDDED; peer < CALLER; peer++) {
        start(peer);
    }
    if (program == NULL || backend_prepare(caller) != 0) {
        return -1;
    }
    for (int i = 0; i < MOST_DEVICES; i++) {
        snprintf(listening[i], sizeof listening[i], "%.63s/device%d", caller->dir, i);
    }
    const char *const args[] = {program, "--socket", listening[0], "--connect", NULL};
    return default_signals(state) != 0 ? -1 : backend_start_program(caller, args);
}

static int stop_all(void **state)
{
    (void)state;
    for (enum peer peer = EMBEDDED; peer < NOWHERE; peer++) {
        backend_stop(&backends[peer]);
    }
    return 0;
}

/* ---- one life: some devices, and perhaps a group ---- */

struct life;

/* What a guest has of one device. It is freed with the device, and so is all that
   the library has a pointer to. */
struct guest {
    struct life *life;
    struct vuf_device *device;
    enum peer peer;
    int end; /* of a socket pair; -1 for none */
    struct guest_memory memory, second;
    struct blk_ring rings[RINGS];
    unsigned asked;
    bool ended; /* freed from inside of itself, which frees nothing and ends it */
};

struct life {
    struct guest *guests[MOST_DEVICES]; /* NULL once it is freed */
    struct vuf_memory_group *group;
};

/* Every result is one that the header knows: nothing here is to succeed. */
#define returns(call) returns_at((call), #call, __LINE__)
static int returns_at(int rc, const char *call, int line)
{
    if (rc > 0 || rc == VUF_E_PANIC || rc == VUF_E_POISONED) {
        print_error("line %d: %s: %d (%s)\n", line, call, rc, vuf_last_error());
        fail();
    }
    return rc;
}

/* Or the device has been freed from inside meanwhile. */
static void in_every_state(const struct guest *g, int rc)
{
    assert_true(rc == 0 || (rc == -ECANCELED && g->ended));
}

static struct vuf_device_info info_of(const struct guest *g)
{
    struct vuf_device_info info = {.size = sizeof info};
    in_every_state(g, vuf_device_get_info(g->device, &info));
    return info;
}

/* In memory of its own for each call, so that it is noticed if it is kept. */
static int with_region(const struct guest_memory *memory,
                       int call(void *object, const struct vuf_mem_region *region), void *object)
{
    struct vuf_mem_region *region = malloc(sizeof *region);
    assert_non_null(region);
    *region = guest_memory_region(memory);
    int rc = call(object, region);
    free(region);
    return rc;
}

static int set_memory(void *device, const struct vuf_mem_region *region)
{
    return vuf_device_set_memory(device, region, 1, one_in(2) ? VUF_MEMORY_ALLOW_GAP : 0);
}

static int add_memory(void *device, const struct vuf_mem_region *region)
{
    return vuf_device_add_memory(device, region);
}

static int memory_fits(void *device, const struct vuf_mem_region *region)
{
    return vuf_device_memory_fits(device, region, 1);
}

static int group_set(void *group, const struct vuf_mem_region *region)
{
    return vuf_memory_group_set_memory(group, region, 1, one_in(2) ? VUF_MEMORY_ALLOW_GAP : 0);
}

static int group_add(void *group, const struct vuf_mem_region *region)
{
    return vuf_memory_group_add_memory(group, region);
}

/* ---- the caller's functions ---- */

/* Nothing is freed from inside one, and the rest is as anywhere else. */
static void from_inside(struct guest *g)
{
    struct vuf_device_event event = {.size = sizeof event};
    g->asked++;
    if (g->device == NULL) {
        return; /* vuf_device_open() has not returned */
    }
    if (one_in(16)) {
        vuf_device_free(g->device);
        g->ended = true;
    }
    assert_int_equal(vuf_device_process(g->device, &event), g->ended ? -ECANCELED : VUF_E_STATE);
    info_of(g);
    returns(vuf_device_reconnect(g->device));
}

static int iotlb_miss(void *user, uint64_t iova, uint32_t perm)
{
    struct guest *g = user;
    const struct vuf_iotlb entry = {.iova = iova & ~UINT64_C(0xfff),
                                    .size = PAGE,
                                    .user_addr = GUEST_ADDR,
                                    .perm = VUF_ACCESS_RW,
                                    .type = VUF_IOTLB_UPDATE};
    (void)perm;
    from_inside(g);
    return returns(vuf_device_post_iotlb(g->device, &entry));
}

static int shmem_map(void *user, const struct vuf_shmem_area *area, int fd)
{
    (void)area;
    from_inside(user);
    return close(fd);
}

static int shmem_unmap(void *user, const struct vuf_shmem_area *area)
{
    (void)area;
    from_inside(user);
    return 0;
}

static void tell(void *user, const struct vuf_trace_record *record)
{
    struct guest *g = user;
    assert_true(record->text[0] != '\0');
    from_inside(g);
}

static int get_index(void *user, uint32_t ring, uint32_t which, uint16_t *index)
{
    struct guest *g = user;
    struct vuf_ring words = blk_ring_of_device(&g->rings[ring], VUF_RING_BASE_NEW);
    *index = *(const volatile uint16_t *)(which == VUF_RING_INDEX_USED ? words.used_index
                                                                       : words.avail_index);
    g->asked++;
    return one_in(8);
}

/* ---- what may happen ---- */

static void turn(struct guest *g)
{
    struct pollfd item = {.fd = vuf_device_get_fd(g->device), .events = POLLIN};
    struct vuf_device_event event = {.size = sizeof event};
    poll(&item, 1, (int)below(5));
    for (uint32_t turns = 1 + below(12); turns > 0; turns--) {
        returns(vuf_device_process(g->device, &event));
    }
}

static void boot(struct guest *g)
{
    for (uint32_t i = 0; i < RINGS; i++) {
        blk_ring_destroy(&g->rings[i]);
    }
    guest_memory_destroy(&g->memory);
    assert_int_equal(guest_memory_create(&g->memory, GUEST_ADDR, GUEST_SIZE), 0);
    for (uint32_t i = 0; i < RINGS; i++) {
        assert_int_equal(blk_ring_create(&g->rings[i], i, RING_NUM, &g->memory,
                                         GUEST_ADDR + i * 0x20000),
                         0);
    }
}

static void drive_up(struct guest *g)
{
    struct vuf_ring *rings = calloc(RINGS, sizeof *rings);
    uint32_t n = 1 + below(RINGS);
    assert_non_null(rings);
    returns(vuf_device_set_features(g->device, info_of(g).offered_features & WANTED));
    with_region(&g->memory, set_memory, g->device);
    for (uint32_t i = 0; i < n; i++) {
        rings[i] = blk_ring_of_device(&g->rings[i], one_in(3) ? below(3) : VUF_RING_BASE_NEW);
        if (one_in(2)) {
            rings[i].used_index = rings[i].avail_index = NULL;
            rings[i].get_index = get_index;
            rings[i].user = g;
        }
    }
    returns(vuf_device_start(g->device, rings, n));
    free(rings);
}

static void stop(struct guest *g)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const uint32_t ring = below(RINGS), n = below(2), time = one_in(3) ? 1 + below(10) : 0;
    in_every_state(g, vuf_device_stop(g->device, n == 0 ? NULL : &ring, n, below(3), time, &quiet));
}

/* The guest's driver is loaded anew; its memory goes where that is allowed. */
static void reset(struct guest *g)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    in_every_state(g, vuf_device_reset(g->device, one_in(2) ? 20 : 0, &quiet));
    if (quiet.quiesced == 1 && vuf_device_remove_memory(g->device, GUEST_ADDR, GUEST_SIZE,
                                                        &quiet) == 0) {
        returns(vuf_device_wait(g->device, 20));
        in_every_state(g, vuf_device_get_quiet(g->device, &quiet));
        if (quiet.quiesced == 1) {
            boot(g);
        }
    }
}

static void plug(struct guest *g)
{
    struct vuf_quiet quiet = {.size = sizeof quiet};
    if (with_region(&g->second, memory_fits, g->device) == 0 && one_in(2)) {
        returns(with_region(&g->second, add_memory, g->device));
    } else {
        returns(vuf_device_remove_memory(g->device, SECOND_ADDR, SECOND_SIZE, &quiet));
    }
}

static void submit(struct guest *g)
{
    struct blk_ring *ring = &g->rings[below(RINGS)];
    turn(g);
    blk_ring_submit(ring, VIRTIO_BLK_T_OUT, below(1000), DATA_ADDR + below(64) * PAGE, PAGE);
    if (one_in(2)) {
        (void)blk_ring_wait(ring, 0, (int)below(3), NULL);
    }
}

static void swap_call(struct guest *g)
{
    int fd = one_in(3) ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    returns(vuf_device_set_call(g->device, below(RINGS), fd));
    if (fd >= 0) {
        close(fd);
    }
}

static void configure(struct guest *g)
{
    uint8_t bytes[8] = {0};
    uint32_t generation;
    returns(vuf_device_write_config(g->device, 32, bytes, 1));
    returns(vuf_device_overlay_config(g->device, below(28), bytes, sizeof bytes));
    returns(vuf_device_read_config(g->device, below(28), bytes, sizeof bytes, &generation));
}

static void ask(struct guest *g)
{
    struct vuf_counters counters = {.size = sizeof counters};
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const struct vuf_iotlb gone = {.size = PAGE, .type = VUF_IOTLB_INVALIDATE};
    uint32_t number;
    returns(vuf_device_get_counters(g->device, &counters));
    returns(vuf_device_get_quiet(g->device, &quiet));
    returns(vuf_device_get_vring_base(g->device, below(RINGS), &number));
    returns(vuf_device_get_memory_state(g->device, &number));
    returns(vuf_device_post_iotlb(g->device, &gone));
}

static void trace(struct guest *g)
{
    returns(vuf_device_set_trace(g->device, one_in(2) ? NULL : tell, g));
}

static void lose(struct guest *g)
{
    if (g->end >= 0) {
        /* Garbage, or an end. */
        (void)!send(g->end, "nonsense", below(9), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (one_in(2)) {
            close(g->end);
            g->end = -1;
        }
    } else if (g->peer < CALLER && backends[g->peer].pid > 0 && one_in(3)) {
        kill(backends[g->peer].pid, one_in(3) ? SIGCONT : SIGSTOP);
    } else if (g->peer < MOCK && one_in(3)) {
        backend_kill(&backends[g->peer]);
        if (one_in(2)) {
            start(g->peer);
        }
    }
}

/* All the way, as far as that goes. */
static void bring_up(struct guest *g)
{
    for (int64_t deadline = now_ms() + 20; info_of(g).connected == 0 && now_ms() < deadline;) {
        turn(g);
    }
    drive_up(g);
    returns(vuf_device_wait(g->device, 20));
}

static void supply(struct guest *g)
{
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    if (returns(vuf_device_set_fd(g->device, ends[0])) != 0) {
        close(ends[0]);
    }
    close(ends[1]);
}

static void connect_now(struct guest *g)
{
    returns(vuf_device_reconnect(g->device));
}

static void wait_a_little(struct guest *g)
{
    returns(vuf_device_wait(g->device, 1 + below(8)));
}

static void in_group(struct guest *g)
{
    struct vuf_memory_group *group = g->life->group;
    if (group == NULL) {
        return;
    }
    switch (below(7)) {
    case 0:
    case 1:
        returns(vuf_memory_group_join(group, g->device));
        break;
    case 2:
        returns(vuf_memory_group_leave(group, g->device));
        break;
    case 3:
        returns(with_region(&g->memory, group_set, group));
        break;
    case 4:
        returns(with_region(&g->second, group_add, group));
        break;
    case 5:
        returns(vuf_memory_group_remove_memory(group, SECOND_ADDR, SECOND_SIZE));
        break;
    default:
        returns(vuf_memory_group_wait(group, 1 + below(8)));
    }
}

static void (*const steps[])(struct guest *) = {
    turn,   turn,      turn,      turn,        turn,          turn,     turn,     turn,
    submit, submit,    submit,    bring_up,    drive_up,      stop,     reset,    plug,
    plug,   ask,       trace,     lose,        supply,        in_group, in_group, configure,
    ask,    swap_call, bring_up,  connect_now, wait_a_little,
};

/* ---- beginning ---- */

static struct vuf_device *open_guest(struct guest *g, int index)
{
    static const struct vuf_backend_ops all = {.size = sizeof all,
                                               .iotlb_miss = iotlb_miss,
                                               .shmem_map = shmem_map,
                                               .shmem_unmap = shmem_unmap};
    struct vuf_backend_ops *ops = malloc(sizeof *ops);
    struct vuf_device_options *options = malloc(sizeof *options);
    struct vuf_device *device = NULL;
    int ends[2] = {-1, -1}, rc;
    assert_true(ops != NULL && options != NULL);
    *ops = all;
    *options = (struct vuf_device_options){
        .size = sizeof *options,
        .num_rings = RINGS,
        .config_size = one_in(4) ? 0 : 36,
        .backend_ops = one_in(3) ? NULL : ops,
        .user = g,
        .first_delay_ms = 1,
        .max_delay_ms = 8,
        .slow_delay_ms = 8,
        .fence_ms = 1 + below(40),
        .on_unfenced = below(2),
        .out_of_order = one_in(4) ? below(4) : VUF_OUT_OF_ORDER_NEEDS_RESET,
        .stall_ms = 1 + below(10),
        .assume_features = one_in(3) ? BIT(32) : 0,
    };
    if (one_in(2)) {
        options->timeout_ms = options->slow_timeout_ms = options->drain_timeout_ms = 4 + below(30);
    }
    switch (g->peer) {
    case CALLER:
        rc = vuf_device_listen(listening[index], 0600, options, &device);
        break;
    case NOWHERE:
        rc = vuf_device_open("/nowhere/at/all", options, &device);
        break;
    case SILENT:
    case NONSENSE:
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
        g->end = ends[1];
        if (g->peer == NONSENSE) {
            assert_int_equal(send(g->end, "never heard of it", 17, 0), 17);
        }
        rc = vuf_device_open_fd(ends[0], options, &device);
        break;
    case NO_SOCKET:
        rc = vuf_device_open_fd(-1, options, &device);
        break;
    default:
        rc = vuf_device_open(backends[g->peer].socket, options, &device);
    }
    assert_int_equal(rc, 0);
    /* Both were read during the call. */
    free(ops);
    free(options);
    return device;
}

static struct guest *begin(struct life *life, int index)
{
    struct guest *g = calloc(1, sizeof *g);
    int status;
    assert_non_null(g);
    *g = (struct guest){
        .life = life, .end = -1, .peer = one_in(3) ? below(PEERS) : below(CALLER)};
    for (int i = 0; i < RINGS; i++) {
        g->rings[i].kick_fd = g->rings[i].call_fd = g->rings[i].err_fd = -1;
    }
    if (g->peer == CALLER && index != 0) {
        g->peer = INFLIGHT; /* one is enough to be called */
    }
    if (g->peer < MOCK && (backends[g->peer].pid == 0 ||
                           backend_ended(&backends[g->peer], 0, &status))) {
        start(g->peer);
    }
    boot(g);
    assert_int_equal(guest_memory_create(&g->second, SECOND_ADDR, SECOND_SIZE), 0);
    g->device = open_guest(g, index);
    if (one_in(2)) {
        bring_up(g);
    }
    return g;
}

/* ---- the end ---- */

/* A call that another thread is inside of when its object is freed. */
struct caller {
    struct guest *guest;
    struct vuf_memory_group *group;
    uint32_t call;
    pthread_t thread;
    atomic_long id;
    atomic_bool returned;
    int rc;
    char words[512]; /* of the last error */
};

enum { FOR_LONG = 20000 };

static void *call(void *argument)
{
    struct caller *c = argument;
    struct vuf_quiet quiet = {.size = sizeof quiet};
    atomic_store(&c->id, syscall(SYS_gettid));
    switch (c->call) {
    case 0:
        c->rc = vuf_device_wait(c->guest->device, VUF_TIMEOUT_FOREVER);
        break;
    case 1:
        c->rc = vuf_device_stop(c->guest->device, NULL, 0, VUF_STOP_DRAIN, FOR_LONG, &quiet);
        break;
    case 2:
        c->rc = vuf_device_reset(c->guest->device, FOR_LONG, &quiet);
        break;
    default:
        /* Nothing ends it, and whoever frees the group waits for it. */
        c->rc = vuf_memory_group_wait(c->group, 1 + (uint32_t)c->call);
    }
    snprintf(c->words, sizeof c->words, "%s", vuf_last_error());
    atomic_store(&c->returned, true);
    return NULL;
}

/* Until the thread waits inside its call, or has returned: no call may begin once
   the object is being freed. */
static void start_calling(struct caller *c)
{
    char path[64], words[16];
    assert_int_equal(pthread_create(&c->thread, NULL, call, c), 0);
    for (int64_t deadline = now_ms() + PEER_MS; !atomic_load(&c->returned);) {
        long id = atomic_load(&c->id);
        if (id != 0) {
            snprintf(path, sizeof path, "/proc/self/task/%ld/syscall", id);
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            ssize_t got = fd < 0 ? 0 : read(fd, words, sizeof words - 1);
            if (fd >= 0) {
                close(fd);
            }
            words[got > 0 ? got : 0] = '\0';
            long number = strtol(words, NULL, 10);
            if (number == SYS_poll || number == SYS_ppoll) {
                return;
            }
        }
        assert_true(now_ms() < deadline);
        sched_yield();
    }
}

static int end_calling(struct caller *c)
{
    pthread_join(c->thread, NULL);
    return returns(c->rc);
}

static void look(const struct guest *g, bool called)
{
    struct vuf_device_info info = info_of(g);
    uint32_t base;
    seen[ENDED] += g->ended;
    seen[ASKED] += g->asked != 0;
    seen[CALLED] += called;
    if (g->ended) {
        return;
    }
    seen[info.connected == 1 ? UP : DOWN]++;
    seen[UNFENCED] += info.unfenced == 1;
    seen[NEEDS_RESET] += info.needs_reset == 1;
    /* Of a started ring there is no base, and it may have another descriptor. */
    if (vuf_device_get_vring_base(g->device, 0, &base) != 0 &&
        vuf_device_set_call(g->device, 0, g->rings[0].call_fd) == 0) {
        seen[info.settled == 1 && info.connected == 1 ? RUNNING : STARTED]++;
    }
}

static void end(struct life *life, int index)
{
    struct guest *g = life->guests[index];
    struct caller caller = {.guest = g, .call = below(3)};
    bool called = one_in(3);
    look(g, called);
    if (called) {
        start_calling(&caller);
    }
    vuf_device_free(g->device);
    if (called) {
        int rc = end_calling(&caller);
        /* A wait also reports rings that wait for a reset, and what was refused: memory,
           or a ring that another base was given for than its memory says. */
        bool refuses = g->peer == INFLIGHT || g->peer == (enum peer)(MOCK + REFUSES_MEMORY);
        bool reported = caller.call == 0 && (rc == VUF_E_STATE || (refuses && rc == VUF_E_NACK));
        if (rc != 0 && rc != -ECANCELED && !reported) {
            print_error("call %u with back-end %d returned %d when the device was freed: %s\n",
                        caller.call, (int)g->peer, rc, caller.words);
            fail();
        }
    }
    for (uint32_t i = 0; i < RINGS; i++) {
        blk_ring_destroy(&g->rings[i]);
    }
    guest_memory_destroy(&g->memory);
    guest_memory_destroy(&g->second);
    if (g->end >= 0) {
        close(g->end);
    }
    free(g);
    life->guests[index] = NULL;
}

static void end_group(struct life *life)
{
    struct caller caller = {.group = life->group, .call = 3 + below(8)};
    bool called = one_in(3);
    if (life->group == NULL) {
        return;
    }
    if (called) {
        start_calling(&caller);
    }
    vuf_memory_group_free(life->group);
    life->group = NULL;
    if (called) {
        end_calling(&caller);
    }
}

static void live(void)
{
    struct life life = {.group = NULL};
    uint32_t alive = 1 + below(MOST_DEVICES), left = below(MOST_STEPS);
    uint32_t end_of_group = one_in(2) ? below(MOST_STEPS) : MOST_STEPS;
    int before = count_fds();
    if (one_in(2)) {
        assert_int_equal(vuf_memory_group_new(&life.group), 0);
    }
    for (uint32_t i = 0; i < alive; i++) {
        life.guests[i] = begin(&life, (int)i);
    }
    for (; left > 0 && alive > 0; left--) {
        uint32_t index = below(MOST_DEVICES);
        if (left == end_of_group) {
            end_group(&life);
        }
        if (life.guests[index] == NULL) {
            continue;
        }
        steps[below(LENGTH(steps))](life.guests[index]);
        /* One goes while the others live on. */
        if (one_in(MOST_STEPS)) {
            end(&life, (int)index);
            alive--;
        }
    }
    if (one_in(2)) {
        end_group(&life);
    }
    for (int i = 0; i < MOST_DEVICES; i++) {
        if (life.guests[i] != NULL) {
            end(&life, i);
        }
    }
    end_group(&life);
    assert_int_equal(count_fds_after(before), before);
    for (enum peer peer = EMBEDDED; peer < CALLER; peer++) {
        if (backends[peer].pid > 0) {
            kill(backends[peer].pid, SIGCONT);
        }
    }
}

static void devices_are_freed_at_any_moment(void **state)
{
    uint64_t seed = number_of("VUF_CLOSE_SEED", (uint64_t)time(NULL) << 16 ^ (uint64_t)getpid());
    uint64_t rounds = number_of("VUF_CLOSE_ROUNDS", ROUNDS);
    (void)state;
    for (uint64_t round = 0; round < rounds; round++, seed++) {
        if (round % 50 == 0) {
            print_message("from here VUF_CLOSE_SEED=%" PRIu64 "\n", seed);
        }
        chance = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        live();
    }
    for (int i = 0; i < MOMENTS; i++) {
        print_message("%u %s\n", seen[i], moments[i]);
        assert_true(seen[i] > 0 || rounds < ROUNDS / 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_are_freed_at_any_moment),
    };
    return cmocka_run_group_tests_name("test_close", tests, start_all, stop_all);
}
