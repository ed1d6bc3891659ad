/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Real block back-ends driven through the library, with the data compared end
 * to end: each test runs against the embedded back-end and against
 * qemu-storage-daemon, with one queue and with four.
 *
 * VUF_TEST_SEED=N repeats the random data of an earlier run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "names.h"
#include "vhost_user_frontend.h"
#include "virtio_blk.h"

#define BIT(n) (UINT64_C(1) << (n))

enum { MAX_QUEUES = 4, RING_NUM = 128, SLOTS = RING_NUM / 3, WAIT_MS = 20000 };

/* Guest memory: the rings, then for each ring room to write from and to read
   to. A second region lies apart from it. */
#define GUEST_ADDR UINT64_C(0x40000000)
#define DATA_ADDR (GUEST_ADDR + 0x100000u)
#define DATA_SIZE 0x200000u
#define GUEST_SIZE (0x100000u + MAX_QUEUES * DATA_SIZE)
#define SECOND_ADDR UINT64_C(0x80000000)

/* Each queue has an equal part of the disk. */
#define SECTORS ((uint64_t)DISK_SIZE / SECTOR_SIZE)

/* ---- what each test has ---- */

struct variant {
    bool qemu;
    unsigned queues;
    bool read_only;
};

struct fixture {
    struct variant variant;
    int fds; /* how many were open before */
    struct backend backend;
    int disk; /* the raw file */
    struct vuf_client *client;
    uint64_t features;
    struct guest_memory memory, second;
    struct guest_memory log; /* no guest memory, but made the same way */
    struct blk_ring rings[MAX_QUEUES];
};

static struct fixture fixture;

/* For calls into the library: what it says on failure is worth having. */
#define assert_ok(call) assert_ok_at((call), #call, __FILE__, __LINE__)
static void assert_ok_at(int rc, const char *call, const char *file, int line)
{
    if (rc != 0) {
        print_error("%s:%d: %s: %d (%s)\n", file, line, call, rc, vuf_last_error());
        fail();
    }
}

/* ---- random data ---- */

static uint64_t random_state;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void fill_random(void *bytes, size_t size)
{
    for (size_t n = 0; n < size; n += sizeof random_state) {
        uint64_t value = next_random();
        memcpy((uint8_t *)bytes + n, &value, sizeof value);
    }
}

/* ---- the file behind the disk ---- */

static void assert_file_has(struct fixture *f, uint64_t sector, const void *bytes, size_t size)
{
    uint8_t *found = test_malloc(size);
    assert_int_equal(pread(f->disk, found, size, (off_t)(sector * SECTOR_SIZE)), size);
    assert_memory_equal(found, bytes, size);
    test_free(found);
}

static void write_file(struct fixture *f, uint64_t sector, const void *bytes, size_t size)
{
    assert_int_equal(pwrite(f->disk, bytes, size, (off_t)(sector * SECTOR_SIZE)), size);
}

/* ---- requests ---- */

static int submit(struct blk_ring *ring, uint32_t type, uint64_t sector, uint64_t addr,
                  uint32_t length)
{
    int slot = blk_ring_submit(ring, type, sector, addr, length);
    assert_true(slot >= 0);
    return slot;
}

static void finish(struct blk_ring *ring, int slot)
{
    int status = blk_ring_wait(ring, slot, WAIT_MS, NULL);
    if (status != VIRTIO_BLK_S_OK) {
        print_error("ring %u: %s\n", ring->index,
                    status < 0 ? blk_ring_strerror(status) : blk_status_name(status));
        fail();
    }
}

static void request(struct blk_ring *ring, uint32_t type, uint64_t sector, uint64_t addr,
                    uint32_t length)
{
    finish(ring, submit(ring, type, sector, addr, length));
}

/* How many requests the back-end has not completed yet. */
static unsigned in_flight(const struct blk_ring *ring)
{
    uint64_t used = blk_ring_addr(ring).used;
    const _Atomic uint16_t *idx = guest_memory_at(ring->memory, used + 2);
    return (uint16_t)(ring->next_avail - le16toh(atomic_load(idx)));
}

static uint64_t data_addr(const struct blk_ring *ring)
{
    return DATA_ADDR + (uint64_t)ring->index * DATA_SIZE;
}

static uint64_t first_sector(const struct blk_ring *ring)
{
    return SECTORS / MAX_QUEUES * ring->index;
}

static void assert_data_goes_both_ways(struct fixture *f, struct blk_ring *ring)
{
    static const uint32_t sectors[] = {1, 2, 3, 8, 17, 64, 255, 1024};
    uint64_t addr = data_addr(ring);
    uint8_t *data = guest_memory_at(&f->memory, addr);
    for (size_t n = 0; n < sizeof sectors / sizeof *sectors; n++) {
        uint32_t size = sectors[n] * SECTOR_SIZE;
        uint64_t room = SECTORS / MAX_QUEUES - sectors[n];
        uint64_t sector = first_sector(ring) + next_random() % (room + 1);

        fill_random(data, size);
        request(ring, VIRTIO_BLK_T_OUT, sector, addr, size);
        request(ring, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
        assert_file_has(f, sector, data, size);

        uint8_t *bytes = test_malloc(size);
        fill_random(bytes, size);
        write_file(f, sector, bytes, size);
        request(ring, VIRTIO_BLK_T_IN, sector, addr, size);
        assert_memory_equal(data, bytes, size);
        test_free(bytes);
    }
}

/* ---- setting up and taking down ---- */

static void connect_and_negotiate(struct fixture *f)
{
    uint64_t offered, protocol, queues;
    assert_ok(vuf_client_connect(f->backend.socket, NULL, &f->client));
    assert_ok(vuf_client_get_features(f->client, &offered));
    assert_ok(vuf_client_get_protocol_features(f->client, &protocol));
    protocol &= BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_LOG_SHMFD) |
                BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG) |
                BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
    protocol &= vuf_supported_protocol_features();
    assert_ok(vuf_client_set_protocol_features(f->client, protocol));
    assert_ok(vuf_client_set_owner(f->client));
    f->features = offered & (BIT(VIRTIO_F_VERSION_1) | BIT(VUF_F_PROTOCOL_FEATURES) |
                             BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_FLUSH) |
                             BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_MQ));
    assert_ok(vuf_client_set_features(f->client, f->features));
    assert_ok(vuf_client_get_queue_num(f->client, &queues));
    assert_int_equal(queues, f->variant.queues);
}

static void create_memory_and_rings(struct fixture *f)
{
    assert_int_equal(guest_memory_create(&f->memory, GUEST_ADDR, GUEST_SIZE), 0);
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    assert_ok(vuf_client_set_mem_table(f->client, &region, 1));
    for (unsigned n = 0; n < f->variant.queues; n++) {
        uint64_t addr = GUEST_ADDR + n * BLK_RING_BYTES;
        assert_int_equal(blk_ring_create(&f->rings[n], n, RING_NUM, &f->memory, addr), 0);
    }
}

static void start_rings(struct fixture *f)
{
    for (unsigned n = 0; n < f->variant.queues; n++) {
        assert_ok(blk_ring_start(&f->rings[n], f->client, 0));
    }
}

static void stop_rings(struct fixture *f)
{
    for (unsigned n = 0; n < f->variant.queues; n++) {
        struct blk_ring *ring = &f->rings[n];
        uint32_t base;
        assert_ok(blk_ring_stop(ring, f->client, &base));
        /* All was completed, so the ring stands where the driver does. */
        assert_int_equal(base, ring->next_avail);
    }
}

static void disconnect(struct fixture *f)
{
    vuf_client_free(f->client);
    f->client = NULL;
    for (unsigned n = 0; n < MAX_QUEUES; n++) {
        blk_ring_destroy(&f->rings[n]);
    }
    guest_memory_destroy(&f->memory);
    guest_memory_destroy(&f->second);
    guest_memory_destroy(&f->log);
}

/* The state that a test begins with: a back-end, and nobody connected. */
static int set_up(void **state)
{
    const struct variant *variant = *state;
    struct fixture *f = &fixture;
    *f = (struct fixture){.variant = *variant, .fds = count_fds(), .disk = -1};
    for (unsigned n = 0; n < MAX_QUEUES; n++) {
        f->rings[n] = (struct blk_ring){.kick_fd = -1, .call_fd = -1, .err_fd = -1};
    }
    *state = f;
    if (variant->qemu && !qemu_available()) {
        return 0; /* begin() skips */
    }
    int rc = variant->qemu ? backend_start_qemu(&f->backend, variant->queues)
                           : backend_start_embedded(&f->backend, variant->queues,
                                                    variant->read_only);
    if (rc == 0) {
        f->disk = open(f->backend.disk, O_RDWR | O_CLOEXEC);
    }
    return f->disk >= 0 ? 0 : -1;
}

/* Also after a failure, wherever it was. */
static int tear_down(void **state)
{
    struct fixture *f = *state;
    disconnect(f);
    backend_stop(&f->backend);
    if (f->disk >= 0) {
        close(f->disk);
    }
    int fds = count_fds();
    if (fds != f->fds) {
        print_error("%d descriptors were open before the test, %d are after it\n", f->fds, fds);
        return -1;
    }
    return 0;
}

static struct fixture *begin_unconnected(void **state)
{
    struct fixture *f = *state;
    if (f->disk < 0) {
        print_message("skipped: qemu-storage-daemon is not installed\n");
        skip();
    }
    return f;
}

static struct fixture *begin_stopped(void **state)
{
    struct fixture *f = begin_unconnected(state);
    connect_and_negotiate(f);
    create_memory_and_rings(f);
    return f;
}

static struct fixture *begin(void **state)
{
    struct fixture *f = begin_stopped(state);
    start_rings(f);
    return f;
}

/* ---- data ---- */

static void test_data(void **state)
{
    struct fixture *f = begin(state);
    for (unsigned n = 0; n < f->variant.queues; n++) {
        assert_data_goes_both_ways(f, &f->rings[n]);
    }
    stop_rings(f);
}

/* Rings that are started all at once, where they were stopped. */
static void test_started_at_once(void **state)
{
    struct fixture *f = begin(state);
    for (unsigned round = 0; round < 3; round++) {
        stop_rings(f);
        assert_ok(blk_rings_start(f->rings, f->variant.queues, f->client));
        for (unsigned n = 0; n < f->variant.queues; n++) {
            assert_data_goes_both_ways(f, &f->rings[n]);
        }
    }
    stop_rings(f);
}

/* Every ring full at once, each request of another size. */
static void test_many_in_flight(void **state)
{
    struct fixture *f = begin(state);
    int slots[MAX_QUEUES][SLOTS];
    for (uint32_t type = VIRTIO_BLK_T_IN; type <= VIRTIO_BLK_T_OUT; type++) {
        fill_random(guest_memory_at(&f->memory, DATA_ADDR), f->variant.queues * DATA_SIZE);
        for (uint32_t s = 0; s < SLOTS; s++) {
            for (unsigned n = 0; n < f->variant.queues; n++) {
                struct blk_ring *ring = &f->rings[n];
                uint64_t at = (uint64_t)s * 64; /* in sectors */
                slots[n][s] = submit(ring, type, first_sector(ring) + at,
                                     data_addr(ring) + at * SECTOR_SIZE, (s + 1) * SECTOR_SIZE);
            }
        }
        for (unsigned n = 0; n < f->variant.queues; n++) {
            struct blk_ring *ring = &f->rings[n];
            assert_int_equal(blk_ring_submit(ring, VIRTIO_BLK_T_FLUSH, 0, 0, 0), -EBUSY);
            for (uint32_t s = 0; s < SLOTS; s++) {
                finish(ring, slots[n][s]);
            }
            for (uint32_t s = 0; s < SLOTS; s++) {
                uint64_t at = (uint64_t)s * 64;
                const void *data =
                    guest_memory_at(&f->memory, data_addr(ring) + at * SECTOR_SIZE);
                assert_file_has(f, first_sector(ring) + at, data, (s + 1) * SECTOR_SIZE);
            }
        }
    }
    stop_rings(f);
}

/* What the device says besides the data: lengths, and that it refuses. */
static void test_answers(void **state)
{
    struct fixture *f = begin(state);
    struct blk_ring *ring = &f->rings[f->variant.queues - 1];
    uint64_t addr = data_addr(ring);
    uint32_t written;

    int slot = submit(ring, VIRTIO_BLK_T_IN, 5, addr, 3 * SECTOR_SIZE);
    assert_int_equal(blk_ring_wait(ring, slot, WAIT_MS, &written), VIRTIO_BLK_S_OK);
    assert_int_equal(written, 3 * SECTOR_SIZE + 1);
    slot = submit(ring, VIRTIO_BLK_T_OUT, 5, addr, 3 * SECTOR_SIZE);
    assert_int_equal(blk_ring_wait(ring, slot, WAIT_MS, &written), VIRTIO_BLK_S_OK);
    assert_int_equal(written, 1);

    /* "vhost_user_blk", "embedded ...": whatever it is, it is a name. */
    char *id = guest_memory_at(&f->memory, addr);
    memset(id, 0, 21);
    request(ring, VIRTIO_BLK_T_GET_ID, 0, addr, VIRTIO_BLK_ID_BYTES);
    assert_true(id[0] > ' ' && id[0] < 127);

    slot = submit(ring, 0x7777, 0, 0, 0);
    assert_int_equal(blk_ring_wait(ring, slot, WAIT_MS, NULL), VIRTIO_BLK_S_UNSUPP);
    slot = submit(ring, VIRTIO_BLK_T_IN, SECTORS, addr, SECTOR_SIZE);
    assert_int_equal(blk_ring_wait(ring, slot, WAIT_MS, NULL), VIRTIO_BLK_S_IOERR);
    stop_rings(f);
}

static void test_read_only(void **state)
{
    struct fixture *f = begin(state);
    struct blk_ring *ring = &f->rings[0];
    uint8_t bytes[SECTOR_SIZE], *data = guest_memory_at(&f->memory, data_addr(ring));
    assert_true((f->features & BIT(VIRTIO_BLK_F_RO)) != 0);
    fill_random(bytes, sizeof bytes);
    write_file(f, 9, bytes, sizeof bytes);

    memset(data, 0x55, SECTOR_SIZE);
    int slot = submit(ring, VIRTIO_BLK_T_OUT, 9, data_addr(ring), SECTOR_SIZE);
    assert_int_equal(blk_ring_wait(ring, slot, WAIT_MS, NULL), VIRTIO_BLK_S_IOERR);
    assert_file_has(f, 9, bytes, sizeof bytes);

    request(ring, VIRTIO_BLK_T_IN, 9, data_addr(ring), SECTOR_SIZE);
    assert_memory_equal(data, bytes, sizeof bytes);
    stop_rings(f);
}

/* ---- rings ---- */

/* No call descriptor: the driver looks at the used ring. */
static void test_polled(void **state)
{
    struct fixture *f = begin_stopped(state);
    for (unsigned n = 0; n < f->variant.queues; n++) {
        f->rings[n].polled = true;
    }
    start_rings(f);
    for (unsigned n = 0; n < f->variant.queues; n++) {
        assert_data_goes_both_ways(f, &f->rings[n]);
    }
    stop_rings(f);
}

static void test_stop_and_restart(void **state)
{
    struct fixture *f = begin(state);
    for (unsigned n = 0; n < f->variant.queues; n++) {
        struct blk_ring *ring = &f->rings[n];
        for (int round = 0; round < 5; round++) {
            uint32_t base;
            assert_data_goes_both_ways(f, ring);
            assert_ok(blk_ring_stop(ring, f->client, &base));
            assert_int_equal(base, ring->next_avail);

            /* A stopped ring stays as it is ... */
            int slot = submit(ring, VIRTIO_BLK_T_IN, 0, data_addr(ring), SECTOR_SIZE);
            assert_int_equal(blk_ring_wait(ring, slot, 20, NULL), -ETIMEDOUT);
            /* ... and goes on with what was made available meanwhile. */
            assert_ok(blk_ring_start(ring, f->client, base));
            finish(ring, slot);
        }
    }
    stop_rings(f);
}

/* Stopped while it is busy: what the back-end has taken is completed, the rest
   is left, and nothing is lost or done twice.

   Not with qemu-storage-daemon 10.0: libvhost-user answers GET_VRING_BASE with
   requests still in flight, closes the call descriptor, and gives the
   connection up when it then wants to write it. */
static void test_stop_in_flight(void **state)
{
    struct fixture *f = begin(state);
    for (int round = 0; round < 20; round++) {
        struct blk_ring *ring = &f->rings[(unsigned)round % f->variant.queues];
        int slots[SLOTS];
        uint32_t base;
        for (uint32_t s = 0; s < SLOTS; s++) {
            uint64_t at = (uint64_t)s * 64;
            slots[s] = submit(ring, VIRTIO_BLK_T_OUT, first_sector(ring) + at,
                              data_addr(ring) + at * SECTOR_SIZE, 64 * SECTOR_SIZE);
        }
        assert_ok(blk_ring_stop(ring, f->client, &base));
        assert_int_equal((uint16_t)(ring->next_avail - base), in_flight(ring));
        assert_ok(blk_ring_start(ring, f->client, base));
        for (uint32_t s = 0; s < SLOTS; s++) {
            finish(ring, slots[s]);
        }
        assert_int_equal(in_flight(ring), 0);
    }
    stop_rings(f);
}

/* The indices of a ring are 16 bits; a base shortly before their end. */
static void test_index_wraps(void **state)
{
    struct fixture *f = begin_stopped(state);
    struct blk_ring *ring = &f->rings[0];
    struct vuf_vring_addr addr = blk_ring_addr(ring);
    ring->next_avail = ring->last_used = 0xfffa;
    *(uint16_t *)guest_memory_at(&f->memory, addr.available + 2) = htole16(0xfffa);
    *(uint16_t *)guest_memory_at(&f->memory, addr.used + 2) = htole16(0xfffa);

    assert_ok(blk_ring_start(ring, f->client, 0xfffa));
    assert_data_goes_both_ways(f, ring);
    uint32_t base;
    assert_ok(blk_ring_stop(ring, f->client, &base));
    assert_int_equal(base, ring->next_avail);
    assert_true(base < 0xfffa);
}

static void test_second_connection(void **state)
{
    struct fixture *f = begin(state);
    uint8_t bytes[SECTOR_SIZE];
    fill_random(bytes, sizeof bytes);
    memcpy(guest_memory_at(&f->memory, DATA_ADDR), bytes, sizeof bytes);
    request(&f->rings[0], VIRTIO_BLK_T_OUT, 77, DATA_ADDR, SECTOR_SIZE);
    stop_rings(f);
    disconnect(f);

    connect_and_negotiate(f);
    create_memory_and_rings(f);
    start_rings(f);
    request(&f->rings[0], VIRTIO_BLK_T_IN, 77, DATA_ADDR, SECTOR_SIZE);
    assert_memory_equal(guest_memory_at(&f->memory, DATA_ADDR), bytes, sizeof bytes);
    assert_data_goes_both_ways(f, &f->rings[f->variant.queues - 1]);

    /* And once more, from the middle of things. */
    disconnect(f);
    connect_and_negotiate(f);
    create_memory_and_rings(f);
    start_rings(f);
    assert_data_goes_both_ways(f, &f->rings[0]);
    stop_rings(f);
}

/* ---- memory ---- */

/* Fills each ring with writes or reads; half of the data lies in the second
   region, if there is one. */
static void submit_all(struct fixture *f, uint32_t type, bool second,
                       int slots[MAX_QUEUES][SLOTS])
{
    for (unsigned n = 0; n < f->variant.queues; n++) {
        struct blk_ring *ring = &f->rings[n];
        for (uint32_t s = 0; s < SLOTS; s++) {
            uint64_t at = (uint64_t)s * 64;
            uint64_t addr = second && s % 2 == 1
                                ? SECOND_ADDR + n * DATA_SIZE
                                : data_addr(ring);
            slots[n][s] = submit(ring, type, first_sector(ring) + at, addr + at * SECTOR_SIZE,
                                 64 * SECTOR_SIZE);
        }
    }
}

static unsigned all_in_flight(const struct fixture *f)
{
    unsigned sum = 0;
    for (unsigned n = 0; n < f->variant.queues; n++) {
        sum += in_flight(&f->rings[n]);
    }
    return sum;
}

static void finish_all(struct fixture *f, int slots[MAX_QUEUES][SLOTS])
{
    for (unsigned n = 0; n < f->variant.queues; n++) {
        for (uint32_t s = 0; s < SLOTS; s++) {
            finish(&f->rings[n], slots[n][s]);
        }
    }
}

static void test_regions(void **state)
{
    struct fixture *f = begin(state);
    int slots[MAX_QUEUES][SLOTS];
    unsigned at_add = 0, at_remove = 0;
    uint64_t max_slots;
    assert_ok(vuf_client_get_max_mem_slots(f->client, &max_slots));
    assert_true(max_slots >= 2);

    for (int round = 0; round < 10; round++) {
        /* Added while data of the first region is on its way. */
        fill_random(guest_memory_at(&f->memory, DATA_ADDR), f->variant.queues * DATA_SIZE);
        submit_all(f, VIRTIO_BLK_T_OUT, false, slots);
        assert_int_equal(guest_memory_create(&f->second, SECOND_ADDR, MAX_QUEUES * DATA_SIZE), 0);
        struct vuf_mem_region region = guest_memory_region(&f->second);
        at_add += all_in_flight(f);
        assert_ok(vuf_client_add_mem_region(f->client, &region));
        finish_all(f, slots);

        /* Used, in one ring with the first. */
        submit_all(f, VIRTIO_BLK_T_IN, true, slots);
        finish_all(f, slots);
        for (unsigned n = 0; n < f->variant.queues; n++) {
            const struct blk_ring *ring = &f->rings[n];
            for (uint64_t at = 64; at < SLOTS * 64; at += 128) {
                const void *data =
                    guest_memory_at(&f->second, SECOND_ADDR + n * DATA_SIZE + at * SECTOR_SIZE);
                assert_file_has(f, first_sector(ring) + at, data, 64 * SECTOR_SIZE);
            }
        }

        /* Removed while data of the first region is on its way. */
        submit_all(f, VIRTIO_BLK_T_IN, false, slots);
        at_remove += all_in_flight(f);
        assert_ok(vuf_client_remove_mem_region(f->client, &region));
        guest_memory_destroy(&f->second);
        finish_all(f, slots);
        for (unsigned n = 0; n < f->variant.queues; n++) {
            const struct blk_ring *ring = &f->rings[n];
            assert_file_has(f, first_sector(ring),
                            guest_memory_at(&f->memory, data_addr(ring)),
                            SLOTS * 64 * SECTOR_SIZE);
        }
    }
    print_message("requests in flight: %u at 10 additions, %u at 10 removals\n", at_add,
                  at_remove);
    stop_rings(f);
}

/* ---- configuration ---- */

static void test_config(void **state)
{
    struct fixture *f = begin_unconnected(state);
    uint8_t config[BLK_CONFIG_SIZE];
    connect_and_negotiate(f);
    assert_ok(vuf_client_get_config(f->client, 0, 0, config, sizeof config));
    assert_int_equal(blk_config_capacity(config), SECTORS);
    assert_true(config_guess(config, sizeof config, BIT(VIRTIO_BLK_F_BLK_SIZE)) ==
                device_type_by_id(VIRTIO_ID_BLOCK));

    /* Less than all of it is the same, shortened. */
    uint8_t part[24];
    assert_ok(vuf_client_get_config(f->client, 0, 0, part, sizeof part));
    assert_memory_equal(part, config, sizeof part);

    /* More than there is is refused, and what the buffer holds stays. */
    uint8_t large[VUF_MAX_CONFIG_SIZE];
    memset(large, 0x5a, sizeof large);
    assert_int_equal(vuf_client_get_config(f->client, 0, 0, large, sizeof large), VUF_E_NACK);
    for (size_t n = 0; n < sizeof large; n++) {
        assert_int_equal(large[n], 0x5a);
    }
}

static void test_write_cache(void **state)
{
    struct fixture *f = begin(state);
    uint8_t config[BLK_CONFIG_SIZE];
    assert_true((f->features & BIT(VIRTIO_BLK_F_CONFIG_WCE)) != 0);
    for (int round = 0; round < 4; round++) {
        uint8_t writeback = round % 2 == 0;
        assert_ok(vuf_client_set_config(f->client, BLK_CONFIG_WRITEBACK, 0, &writeback, 1));
        assert_ok(vuf_client_get_config(f->client, 0, 0, config, sizeof config));
        assert_int_equal(config[BLK_CONFIG_WRITEBACK], writeback);
        assert_data_goes_both_ways(f, &f->rings[0]);
    }
    stop_rings(f);
}

/* ---- dirty log ---- */

#define LOG_SIZE ((GUEST_ADDR + GUEST_SIZE) / 4096 / 8)

/* Takes over what was logged since the last time. Returns how many pages of guest
   memory that is. */
static uint64_t take_log(struct fixture *f, uint8_t bitmap[GUEST_SIZE / 4096 / 8])
{
    uint64_t pages = 0;
    memset(bitmap, 0, GUEST_SIZE / 4096 / 8);
    assert_ok(vuf_dirty_log_sync(f->log.host, LOG_SIZE, GUEST_ADDR / 4096, GUEST_SIZE / 4096,
                                 bitmap, &pages));
    return pages;
}

static uint64_t count_logged(struct fixture *f)
{
    uint8_t bitmap[GUEST_SIZE / 4096 / 8];
    return take_log(f, bitmap);
}

static bool is_logged(const uint8_t *bitmap, uint64_t guest_addr)
{
    uint64_t page = (guest_addr - GUEST_ADDR) / 4096;
    return (bitmap[page / 8] >> page % 8 & 1) != 0;
}

static void switch_log_of_rings(struct fixture *f, bool on)
{
    for (unsigned n = 0; n < f->variant.queues; n++) {
        f->rings[n].log_used = on;
        struct vuf_vring_addr addr = blk_ring_addr(&f->rings[n]);
        assert_ok(vuf_client_set_vring_addr(f->client, n, &addr));
    }
}

/* One read of three pages on each ring. */
static void read_pages(struct fixture *f)
{
    for (unsigned n = 0; n < f->variant.queues; n++) {
        struct blk_ring *ring = &f->rings[n];
        request(ring, VIRTIO_BLK_T_IN, first_sector(ring), data_addr(ring), 3 * 4096);
    }
}

/* Both back-ends mark what the device wrote, and nothing else: the pages of the
   data, the page with the status, and that of the used ring. */
static void assert_pages_logged(struct fixture *f)
{
    uint8_t bitmap[GUEST_SIZE / 4096 / 8];
    assert_int_equal(take_log(f, bitmap), 5 * f->variant.queues);
    for (unsigned n = 0; n < f->variant.queues; n++) {
        const struct blk_ring *ring = &f->rings[n];
        uint64_t addr = data_addr(ring), used = blk_ring_addr(ring).used;
        assert_true(is_logged(bitmap, used));
        assert_true(is_logged(bitmap, addr));
        assert_true(is_logged(bitmap, addr + 4096));
        assert_true(is_logged(bitmap, addr + 8192));
        assert_false(is_logged(bitmap, addr + 12288));
    }
}

static void test_log(void **state)
{
    struct fixture *f = begin(state);
    assert_int_equal(guest_memory_create(&f->log, 0, (LOG_SIZE + 4095) / 4096 * 4096), 0);

    /* Switched on while the rings run, as at the start of a migration. */
    assert_ok(vuf_client_set_log_base(f->client, LOG_SIZE, 0, f->log.fd));
    assert_ok(vuf_client_set_features(f->client, f->features | BIT(VUF_F_LOG_ALL)));
    read_pages(f);
    /* libvhost-user marks the used ring only for rings with VUF_VRING_F_LOG. */
    assert_int_equal(count_logged(f), (f->variant.qemu ? 4 : 5) * f->variant.queues);
    switch_log_of_rings(f, true);
    (void)count_logged(f);
    read_pages(f);
    assert_pages_logged(f);

    /* What was logged once is logged again after the log was taken over. */
    read_pages(f);
    assert_pages_logged(f);

    /* Rings that are started while logging goes on. */
    stop_rings(f);
    for (unsigned n = 0; n < f->variant.queues; n++) {
        assert_ok(blk_ring_start(&f->rings[n], f->client, f->rings[n].next_avail));
    }
    (void)count_logged(f);
    read_pages(f);
    assert_pages_logged(f);

    /* Switched off. The embedded back-end goes on marking pages: its crate,
       vhost-user-backend 0.24, does not look at LOG_ALL. That costs a migration
       nothing but time. */
    assert_ok(vuf_client_set_features(f->client, f->features));
    switch_log_of_rings(f, false);
    (void)count_logged(f);
    read_pages(f);
    assert_int_equal(count_logged(f), f->variant.qemu ? 0 : 5 * f->variant.queues);
    stop_rings(f);
}

/* ---- all of it ---- */

#define TEST(function, variant)                                                                   \
    cmocka_unit_test_prestate_setup_teardown(function, set_up, tear_down, variant)

static int run(const char *name, struct variant *variant)
{
    const struct CMUnitTest tests[] = {
        TEST(test_data, variant),
        TEST(test_started_at_once, variant),
        TEST(test_many_in_flight, variant),
        TEST(test_answers, variant),
        TEST(test_polled, variant),
        TEST(test_stop_and_restart, variant),
        TEST(test_index_wraps, variant),
        TEST(test_second_connection, variant),
        TEST(test_regions, variant),
        TEST(test_config, variant),
        TEST(test_write_cache, variant),
        TEST(test_log, variant),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
    const char *seed = getenv("VUF_TEST_SEED");
    random_state = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)getpid();
    random_state += random_state == 0; /* the one value that would stay */
    print_message("VUF_TEST_SEED=%llu\n", (unsigned long long)random_state);

    struct variant one = {.queues = 1}, four = {.queues = 4};
    struct variant read_only = {.queues = 1, .read_only = true};
    const struct CMUnitTest embedded_only[] = {
        TEST(test_read_only, &read_only),
        TEST(test_stop_in_flight, &one),
        TEST(test_stop_in_flight, &four),
    };
    int failures = cmocka_run_group_tests_name("embedded only", embedded_only, NULL, NULL);
    failures += run("embedded, 1 queue", &one);
    failures += run("embedded, 4 queues", &four);
    failures += run("qemu-storage-daemon, 1 queue", &(struct variant){.qemu = true, .queues = 1});
    failures += run("qemu-storage-daemon, 4 queues", &(struct variant){.qemu = true, .queues = 4});
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
