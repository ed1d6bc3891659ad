/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* qemu-storage-daemon, in what test_block.c does not ask of it: its disk is resized,
   of which it tells on its channel, and memory comes page by page; and the device
   layer, with two queues. */
#include "lifecycle.h"
#include "pagefaults.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { QUEUES = 2, PAGE = 4096, SMALL = 4 << 20, LARGE = 6 << 20 };

#define HEADER_ADDR DEVICE_BUFFERS
#define STATUS_ADDR (DEVICE_BUFFERS + 0x1000u)
#define DATA_ADDR (DEVICE_BUFFERS + 0x100000u)

#define PROTOCOL                                                                                   \
    (BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG))

/* ---- setting up ---- */

static void fill(uint8_t *bytes, size_t size, unsigned seed)
{
    for (size_t n = 0; n < size; n++) {
        bytes[n] = (uint8_t)(n * 5 + n / 256 + seed * 13);
    }
}

static int open_disk(struct device *device)
{
    int fd = open(device->backend.disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static void write_disk(struct device *device, uint64_t offset, const void *bytes, size_t size)
{
    int fd = open_disk(device);
    assert_int_equal(pwrite(fd, bytes, size, (off_t)offset), size);
    close(fd);
}

static void read_disk(struct device *device, uint64_t offset, void *bytes, size_t size)
{
    int fd = open_disk(device);
    assert_int_equal(pread(fd, bytes, size, (off_t)offset), size);
    close(fd);
}

static void skip_without_daemon(void)
{
    if (!qemu_available()) {
        print_message("skipped: qemu-storage-daemon is not installed\n");
        skip();
    }
}

static void run_daemon_of(struct device *device, unsigned size)
{
    char blockdev[200], export[300], chardev[200];
    skip_without_daemon();
    int fd = open_disk(device);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
    snprintf(chardev, sizeof chardev, "socket,id=monitor,path=%s/monitor,server=on,wait=off",
             device->backend.dir);
    snprintf(blockdev, sizeof blockdev, "driver=file,node-name=f0,filename=%s",
             device->backend.disk);
    snprintf(export, sizeof export,
             "type=vhost-user-blk,id=e0,node-name=f0,writable=on,addr.type=unix,addr.path=%s,"
             "num-queues=%d",
             device->backend.socket, QUEUES);
    device_run(device, (const char *[]){"qemu-storage-daemon", "--chardev", chardev, "--monitor",
                                        "chardev=monitor", "--blockdev", blockdev, "--export",
                                        export, NULL});
}

static void run_daemon(struct device *device)
{
    run_daemon_of(device, SMALL);
}

/* ---- its monitor ---- */

/* Reads on to what holds this. */
static bool monitor_says(int monitor, const char *wanted)
{
    char text[4096];
    size_t length = 0;
    int64_t deadline = now_ms() + WAIT_MS;
    for (;;) {
        struct pollfd item = {.fd = monitor, .events = POLLIN};
        int64_t left = deadline - now_ms();
        if (left <= 0 || length == sizeof text - 1 || poll(&item, 1, (int)left) != 1) {
            return false;
        }
        ssize_t got = read(monitor, text + length, sizeof text - 1 - length);
        if (got <= 0) {
            return false;
        }
        length += (size_t)got;
        text[length] = '\0';
        if (strstr(text, wanted) != NULL) {
            return true;
        }
    }
}

static bool monitor_does(int monitor, const char *command)
{
    return write(monitor, command, strlen(command)) == (ssize_t)strlen(command) &&
           monitor_says(monitor, "\"return\"");
}

static void resize_disk(struct device *device, unsigned size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char command[200];
    snprintf(address.sun_path, sizeof address.sun_path, "%s/monitor", device->backend.dir);
    snprintf(command, sizeof command,
             "{\"execute\":\"block_resize\",\"arguments\":{\"node-name\":\"f0\",\"size\":%u}}\n",
             size);
    int monitor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(monitor >= 0);
    bool done = connect(monitor, (struct sockaddr *)&address, sizeof address) == 0 &&
                monitor_says(monitor, "QMP") &&
                monitor_does(monitor, "{\"execute\":\"qmp_capabilities\"}\n") &&
                monitor_does(monitor, command);
    close(monitor);
    assert_true(done);
}

/* ---- requests ---- */

static uint8_t request(struct device *device, unsigned index, uint32_t type, uint64_t sector,
                       uint64_t data, uint32_t size)
{
    struct virtio_blk_outhdr *header = device_at(device, HEADER_ADDR);
    uint8_t *status = device_at(device, STATUS_ADDR);
    const bool in = type == VIRTIO_BLK_T_IN;
    const struct virtq_part parts[] = {{HEADER_ADDR, sizeof *header}, {data, size}, {STATUS_ADDR, 1}};
    *header = (struct virtio_blk_outhdr){.type = htole32(type), .sector = htole64(sector)};
    *status = 0xee;
    uint32_t written = device_request(device, index, parts, in ? 1 : 2, in ? 2 : 1);
    assert_int_equal(written, in && *status == VIRTIO_BLK_S_OK ? size + 1 : 1);
    return *status;
}

static uint64_t capacity(struct device *device)
{
    struct virtio_blk_config config;
    assert_ok(device, vuf_client_get_config(device->client, 0, 0, &config, sizeof config));
    return le64toh(config.capacity);
}

/* ---- the disk grows ---- */

struct told {
    struct device *device;
    atomic_uint times;
    atomic_ullong sectors; /* as config_changed reads them */
};

/* What a virtual machine monitor does: it reads the space again. */
static void config_changed(void *user)
{
    struct told *told = user;
    uint64_t sectors = 0;
    if (vuf_client_get_config(told->device->client, 0, 0, &sectors, sizeof sectors) == 0) {
        atomic_store(&told->sectors, le64toh(sectors));
    }
    atomic_fetch_add(&told->times, 1);
}

static void wait_until_told(struct told *told, unsigned times)
{
    for (int64_t deadline = now_ms() + WAIT_MS; now_ms() < deadline; sleep_ms(2)) {
        if (atomic_load(&told->times) >= times) {
            break;
        }
    }
    assert_int_equal(atomic_load(&told->times), times);
}

static void test_resize(void **state)
{
    static const struct vuf_backend_ops ops = {.size = sizeof ops,
                                               .config_changed = config_changed};
    static struct told told;
    static uint8_t bytes[PAGE];
    struct device *device = *state;
    memset(&told, 0, sizeof told);
    told.device = device;
    run_daemon(device);
    device_connect(device,
                   (struct wanted){.protocol = PROTOCOL | BIT(VUF_PROTOCOL_F_BACKEND_REQ)});
    device_open_channel(device, &ops, &told);
    device_share(device);
    device_start(device, QUEUES);
    assert_int_equal(capacity(device), SMALL / SECTOR_SIZE);
    uint8_t *data = device_at(device, DATA_ADDR);
    fill(data, PAGE, 1);
    const uint64_t behind = SMALL / SECTOR_SIZE;
    assert_int_equal(request(device, 0, VIRTIO_BLK_T_OUT, behind, DATA_ADDR, PAGE),
                     VIRTIO_BLK_S_IOERR);
    assert_int_equal(atomic_load(&told.times), 0);

    resize_disk(device, LARGE);
    wait_until_told(&told, 1);
    assert_int_equal(told.sectors, LARGE / SECTOR_SIZE);
    for (unsigned index = 0; index < QUEUES; index++) {
        uint64_t sector = behind + index * PAGE / SECTOR_SIZE;
        fill(data, PAGE, index);
        assert_int_equal(request(device, index, VIRTIO_BLK_T_OUT, sector, DATA_ADDR, PAGE),
                         VIRTIO_BLK_S_OK);
        read_disk(device, sector * SECTOR_SIZE, bytes, PAGE);
        assert_memory_equal(bytes, data, PAGE);
    }
    resize_disk(device, SMALL);
    wait_until_told(&told, 2);
    assert_int_equal(told.sectors, SMALL / SECTOR_SIZE);
    assert_int_equal(capacity(device), SMALL / SECTOR_SIZE);
    device_stop(device);
    assert_int_equal(device->ended, 0);
}

/* ---- page faults ---- */

static struct pagefaults faults;

static int drop_faults(void **state)
{
    pagefaults_drop(&faults);
    return device_tear_down(state);
}

/* It reads from the disk into a page that is not there, and writes one to it. */
static void test_postcopy(void **state)
{
    static uint8_t disk[PAGE], source[FAULT_PAGE];
    struct device *device = *state;
    if (!pagefaults_allowed()) {
        print_message("skipped: userfaultfd is not permitted here\n");
        skip();
    }
    run_daemon(device);
    fill(disk, PAGE, 7);
    write_disk(device, 0, disk, PAGE);
    device_connect(device,
                   (struct wanted){.protocol = PROTOCOL | BIT(VUF_PROTOCOL_F_PAGEFAULT)});
    pagefaults_begin(&faults, device);
    device_start(device, QUEUES);

    /* A part of a page is read; the rest comes from the source. */
    const uint64_t to = DATA_ADDR, from = DATA_ADDR + 0x10000u, late = DATA_ADDR + 0x20000u;
    enum { PART = 3 * SECTOR_SIZE };
    assert_int_equal(request(device, 0, VIRTIO_BLK_T_IN, 0, to, PART), VIRTIO_BLK_S_OK);
    assert_true(pagefaults_served(&faults, to) > 0);
    const uint8_t *got = device_at(device, to);
    pagefaults_pattern(to, source);
    assert_memory_equal(got, disk, PART);
    assert_memory_equal(got + PART, source + PART, PAGE - PART);

    /* A page that only the source has goes to the disk, by the other queue. */
    assert_int_equal(request(device, 1, VIRTIO_BLK_T_OUT, 8, from, PAGE), VIRTIO_BLK_S_OK);
    assert_true(pagefaults_served(&faults, from) > 0);
    read_disk(device, 8 * SECTOR_SIZE, disk, PAGE);
    pagefaults_pattern(from, source);
    assert_memory_equal(disk, source, PAGE);
    /* What was there did not fault. */
    assert_int_equal(pagefaults_served(&faults, HEADER_ADDR), 0);

    /* Afterwards nothing faults any more. */
    pagefaults_end(&faults, device);
    assert_int_equal(request(device, 1, VIRTIO_BLK_T_IN, 8, late, PAGE), VIRTIO_BLK_S_OK);
    assert_memory_equal(device_at(device, late), source, PAGE);
    assert_int_equal(pagefaults_served(&faults, late), 0);
    device_stop(device);
}

/* ---- on the device layer ---- */

static void work(struct device *device, uint64_t at)
{
    static unsigned seed;
    static uint8_t bytes[PAGE];
    const uint64_t in = at + 0x2000, out = at + 0x4000; /* behind header and status */
    for (unsigned index = 0; index < QUEUES; index++) {
        fill(bytes, PAGE, ++seed);
        write_disk(device, 0, bytes, PAGE);
        assert_int_equal(request(device, index, VIRTIO_BLK_T_IN, 0, in, PAGE), VIRTIO_BLK_S_OK);
        assert_memory_equal(device_at(device, in), bytes, PAGE);
        fill(device_at(device, out), PAGE, ++seed);
        assert_int_equal(request(device, index, VIRTIO_BLK_T_OUT, 64, out, PAGE),
                         VIRTIO_BLK_S_OK);
        read_disk(device, 64 * SECTOR_SIZE, bytes, PAGE);
        assert_memory_equal(device_at(device, out), bytes, PAGE);
    }
}

static const struct vuf_backend_ops no_ops = {.size = sizeof no_ops};

static const struct life life = {
    .run = run_daemon,
    .work = work,
    .queues = QUEUES,
    .protocol = PROTOCOL | BIT(VUF_PROTOCOL_F_BACKEND_REQ) |
                BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
    .protocol_absent = BIT(VUF_PROTOCOL_F_RESET_DEVICE) | BIT(VUF_PROTOCOL_F_STATUS) |
                       BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD),
    .options.config_size = offsetof(struct virtio_blk_config, capacity) + sizeof(uint64_t),
    .options.backend_ops = &no_ops,
};

static struct device *prepare(void **state)
{
    skip_without_daemon();
    return *state;
}

LIFE_CHECKS(prepare, life, RESUME_FROM_AVAILABLE)

static void device_that_waits_for_a_reset_knows_no_base(void **state)
{
    struct life strict = life;
    strict.options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    life_check_freezes(prepare(state), &strict);
}

static void device_that_resumes_knows_its_bases(void **state)
{
    struct life again = life;
    again.options.out_of_order = VUF_OUT_OF_ORDER_RESUME_FROM_AVAILABLE;
    life_check_freezes(prepare(state), &again);
}

static void assert_capacity(struct device *device, unsigned size)
{
    uint64_t sectors;
    assert_ok(device, vuf_device_read_config(device->vuf, 0, &sectors, sizeof sectors, NULL));
    assert_int_equal(le64toh(sectors), size / SECTOR_SIZE);
}

/* It tells, and so does the next that has another disk. */
static void device_hears_of_the_disk(void **state)
{
    struct device *device = prepare(state);
    struct life again = life;
    again.options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    life_begin(device, &again);
    assert_capacity(device, SMALL);
    resize_disk(device, LARGE);
    life_until(device, VUF_DEVICE_EVENT_CONFIG_CHANGED);
    assert_capacity(device, LARGE);
    work(device, DEVICE_BUFFERS);
    backend_kill(&device->backend);
    life_until(device, VUF_DEVICE_EVENT_LOST);
    assert_capacity(device, LARGE);
    run_daemon_of(device, LARGE / 2);
    life_until(device, VUF_DEVICE_EVENT_CONFIG_CHANGED);
    assert_capacity(device, LARGE / 2);
    life_until(device, VUF_DEVICE_EVENT_RECOVERED);
    work(device, DEVICE_BUFFERS);
}

/* It accepts one at a time: the next is connected, and heard later. */
static void device_waits_for_its_turn(void **state)
{
    struct device *device = prepare(state);
    const struct vuf_device_options options = {
        .size = sizeof options,
        .stall_ms = 20,
        .protocol_features = PROTOCOL,
    };
    struct vuf_device *first;
    run_daemon(device);
    assert_ok(device, vuf_device_open(device->backend.socket, &options, &first));
    assert_ok(device, vuf_device_wait(first, WAIT_MS));
    struct life late = life;
    late.options.stall_ms = 20;
    life_open(device, &late);
    const struct vuf_device_event stalled = life_until(device, VUF_DEVICE_EVENT_STALLED);
    vuf_device_free(first);
    assert_int_equal(stalled.request, GET_FEATURES);
    life_until(device, VUF_DEVICE_EVENT_CONNECTED);
    life_boot(device, &late);
    work(device, DEVICE_BUFFERS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_resize),
        LIFE_CHECKS_WITH(DEVICE_TEST),
        DEVICE_TEST(device_that_waits_for_a_reset_knows_no_base),
        DEVICE_TEST(device_that_resumes_knows_its_bases),
        DEVICE_TEST(device_hears_of_the_disk),
        DEVICE_TEST(device_waits_for_its_turn),
        cmocka_unit_test_setup_teardown(test_postcopy, device_set_up, drop_faults),
    };
    return cmocka_run_group_tests_name("qemu-storage-daemon", tests, NULL, NULL);
}
