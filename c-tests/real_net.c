/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* DPDK testpmd, which sends every frame back that the guest sends: on split and on
   packed rings, with its writes logged, with a status, through an IOMMU, with page
   faults, and as the side that connects.
   VUF_DPDK_TESTPMD names the program, which keeps a processor busy while it runs. */
#include "lifecycle.h"
#include "pagefaults.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { RECEIVE, TRANSMIT, QUEUES };
enum { HEADER_SIZE = sizeof(struct virtio_net_hdr_v1), MAX_FRAME = 1514 };
enum { FRAMES = 200, BURST = 8, PAGE = 4096 };

#define RECEIVE_ADDR DEVICE_BUFFERS
#define TRANSMIT_ADDR (DEVICE_BUFFERS + 0x100000u)

/* Rings turn over several times. */
_Static_assert(FRAMES > 2 * DEVICE_QUEUE_NUM, "");

/* STATUS is not agreed: with it nothing would run before DRIVER_OK. */
#define PROTOCOL                                                                                   \
    (BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_LOG_SHMFD))

/* Without MRG_RXBUF it leaves a part of the header as it was. */
static const struct wanted split = {.features = BIT(VIRTIO_NET_F_MRG_RXBUF), .protocol = PROTOCOL};
static const struct wanted packed = {
    .features = BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_F_RING_PACKED),
    .protocol = PROTOCOL,
};

/* ---- setting up ---- */

/* Both threads on the first processor that we may use; one of them sleeps. */
static void choose_processor(char *text, size_t size)
{
    cpu_set_t allowed;
    int cpu = 0;
    assert_int_equal(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    while (!CPU_ISSET(cpu, &allowed)) {
        cpu++;
    }
    snprintf(text, size, "0@%d,1@%d", cpu, cpu);
}

static void run_testpmd(struct device *device, const char *more)
{
    char processor[32], vdev[200];
    choose_processor(processor, sizeof processor);
    /* What it leaves behind goes away with the directory. */
    assert_int_equal(setenv("RUNTIME_DIRECTORY", device->backend.dir, 1), 0);
    snprintf(vdev, sizeof vdev, "net_vhost0,iface=%s,queues=1%s", device->backend.socket, more);
    device_run(device, (const char *[]){
                           device_program("VUF_DPDK_TESTPMD"), "--lcores", processor, "--no-huge",
                           "-m", "128", "--no-pci", "--no-telemetry", "--no-shconf", "--vdev",
                           vdev, "--", "--auto-start", "--forward-mode=io",
                           "--total-num-mbufs=2048", "--no-flush-rx", "--no-lsc-interrupt",
                           "--disable-link-check", "--stats-period=30",
                           /* or it has every page from the start, and none faults */
                           "--no-mlockall", NULL});
}

static void share_and_start(struct device *device)
{
    device_share(device);
    device_start(device, QUEUES);
}

static struct device *begin(void **state, struct wanted wanted)
{
    struct device *device = *state;
    run_testpmd(device, "");
    device_connect(device, wanted);
    share_and_start(device);
    return device;
}

/* Left to itself the program takes a second to end. */
static void finish(struct device *device)
{
    kill(device->backend.pid, SIGKILL);
}

/* ---- frames ---- */

struct frame {
    uint64_t receive_at; /* a page that it is to come back to */
    uint32_t size;
    int received, transmitted; /* slots */
};

static void fill(uint8_t *bytes, uint32_t size, unsigned seed)
{
    for (uint32_t n = 0; n < size; n++) {
        bytes[n] = (uint8_t)(n * 3 + n / 256 + seed * 17);
    }
}

/* Sends it where a buffer waits for it already. */
static void put_frame(struct device *device, struct frame *frame, unsigned n)
{
    uint64_t at = TRANSMIT_ADDR + n * PAGE;
    uint8_t *bytes = device_at(device, at);
    memset(bytes, 0, HEADER_SIZE);
    fill(bytes + HEADER_SIZE, frame->size, n + frame->size);
    memset(device_at(device, frame->receive_at), 0xee, PAGE);
    const struct virtq_part out[] = {{at, HEADER_SIZE}, {at + HEADER_SIZE, frame->size}};
    frame->transmitted = device_post(device, TRANSMIT, out, 2, 0);
}

static void send_frame(struct device *device, struct frame *frame, unsigned n)
{
    const struct virtq_part in = {frame->receive_at, PAGE};
    frame->received = device_post(device, RECEIVE, &in, 0, 1);
    put_frame(device, frame, n);
}

static void assert_frame_returns(struct device *device, const struct frame *frame, unsigned n)
{
    uint8_t sent[MAX_FRAME];
    fill(sent, frame->size, n + frame->size);
    device_take(device, TRANSMIT, frame->transmitted);
    uint32_t written = device_take(device, RECEIVE, frame->received);
    assert_int_equal(written, HEADER_SIZE + frame->size);
    const uint8_t *got = device_at(device, frame->receive_at);
    const struct virtio_net_hdr_v1 *header = (const void *)got;
    assert_int_equal(le16toh(header->num_buffers), 1);
    assert_memory_equal(got + HEADER_SIZE, sent, frame->size);
}

static void loop_one(struct device *device, uint64_t receive_at)
{
    struct frame frame = {.receive_at = receive_at, .size = 100};
    send_frame(device, &frame, 0);
    assert_frame_returns(device, &frame, 0);
}

/* Bursts of frames of many sizes. */
static void loop_many(struct device *device)
{
    for (unsigned sent = 0; sent < FRAMES; sent += BURST) {
        struct frame frames[BURST];
        for (unsigned n = 0; n < BURST; n++) {
            uint32_t size = 60 + (sent + n) * 37 % (MAX_FRAME - 60 + 1);
            frames[n] = (struct frame){.receive_at = RECEIVE_ADDR + n * PAGE, .size = size};
            send_frame(device, &frames[n], n);
        }
        for (unsigned n = 0; n < BURST; n++) {
            assert_frame_returns(device, &frames[n], n);
        }
    }
}

static void restart(struct device *device)
{
    device_stop(device);
    for (unsigned index = 0; index < QUEUES; index++) {
        device_restart_queue(device, index);
    }
}

/* ---- the log of dirty pages ---- */

#define LOG_SIZE ((DEVICE_ADDR + DEVICE_SIZE) / PAGE / 8)

/* Takes over what was logged since the last time. Returns how many pages that is. */
static uint64_t take_log(struct device *device, const struct guest_memory *log,
                         uint8_t bitmap[LOG_SIZE])
{
    uint64_t pages = 0;
    memset(bitmap, 0, LOG_SIZE);
    assert_ok(device,
              vuf_dirty_log_sync(log->host, LOG_SIZE, 0, LOG_SIZE * 8, bitmap, &pages));
    return pages;
}

static bool is_dirty(const uint8_t *bitmap, uint64_t addr)
{
    return (bitmap[addr / PAGE / 8] >> addr / PAGE % 8 & 1) != 0;
}

/* Has all writes logged, or no longer, while the rings run. */
static int switch_log(struct device *device, bool on)
{
    uint64_t features = device->features | (on ? BIT(VUF_F_LOG_ALL) : 0);
    int rc = vuf_client_set_features(device->client, features);
    for (unsigned index = 0; index < QUEUES && rc == 0; index++) {
        struct virtq *q = &device->queues[index];
        q->log_used = on;
        const struct vuf_vring_addr addr = virtq_addr(q);
        rc = vuf_client_set_vring_addr(device->client, index, &addr);
    }
    return rc;
}

static void assert_writes_are_logged(struct device *device, const struct guest_memory *log)
{
    uint8_t bitmap[LOG_SIZE];
    loop_one(device, RECEIVE_ADDR);
    assert_int_equal(take_log(device, log, bitmap), 0);

    assert_ok(device, switch_log(device, true));
    const uint64_t page = RECEIVE_ADDR + 5 * PAGE;
    loop_one(device, page);
    /* And nothing that it has only read. */
    assert_int_equal(take_log(device, log, bitmap), 1 + QUEUES);
    assert_true(is_dirty(bitmap, page));
    for (unsigned index = 0; index < QUEUES; index++) {
        assert_true(is_dirty(bitmap, virtq_addr(&device->queues[index]).log));
    }
    assert_false(is_dirty(bitmap, TRANSMIT_ADDR));

    assert_ok(device, switch_log(device, false));
    (void)take_log(device, log, bitmap);
    loop_one(device, RECEIVE_ADDR + 9 * PAGE);
    assert_int_equal(take_log(device, log, bitmap), 0);
}

static void check_log(void **state, struct wanted wanted)
{
    struct device *device = begin(state, wanted);
    struct guest_memory log; /* no guest memory, but made the same way */
    assert_int_equal(guest_memory_create(&log, 0, LOG_SIZE), 0);
    int rc = vuf_client_set_log_base(device->client, LOG_SIZE, 0, log.fd);
    if (rc == 0) {
        assert_writes_are_logged(device, &log);
    }
    guest_memory_destroy(&log);
    assert_ok(device, rc);
    device_stop(device);
    finish(device);
}

/* ---- tests ---- */

static void check_frames(void **state, struct wanted wanted)
{
    struct device *device = begin(state, wanted);
    loop_many(device);
    for (unsigned n = 0; n < 5; n++) {
        restart(device);
        loop_one(device, RECEIVE_ADDR);
    }
    loop_many(device);
    device_stop(device);
    finish(device);
}

static void test_split(void **state)
{
    check_frames(state, split);
}

static void test_packed(void **state)
{
    check_frames(state, packed);
}

static void test_log_split(void **state)
{
    check_log(state, split);
}

static void test_log_packed(void **state)
{
    check_log(state, packed);
}

/* It connects to us, and again after we have hung up. */
static void test_it_connects(void **state)
{
    struct device *device = *state;
    const struct vuf_client_options options = {
        .size = sizeof options,
        .connect_timeout_ms = 20000,
    };
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    device_program("VUF_DPDK_TESTPMD");
    snprintf(address.sun_path, sizeof address.sun_path, "%s", device->backend.socket);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(listener >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    run_testpmd(device, ",client=1");
    for (unsigned n = 0; n < 2; n++) {
        assert_ok(device, vuf_client_accept(listener, &options, &device->client));
        device_negotiate(device, split);
        share_and_start(device);
        loop_many(device);
        device_disconnect(device);
    }
    close(listener);
    finish(device);
}

/* ---- status, frame size, announcement ---- */

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, LOOK_MS = 300 };

static void assert_status(struct device *device, uint32_t wanted)
{
    uint32_t status = 0xff;
    assert_ok(device, vuf_client_get_status(device->client, &status));
    assert_int_equal(status, wanted);
}

/* Nothing runs before DRIVER_OK, nor after a reset. */
static void test_status(void **state)
{
    struct device *device = *state;
    struct wanted wanted = split;
    wanted.protocol |= BIT(VUF_PROTOCOL_F_STATUS);
    run_testpmd(device, "");
    device_connect(device, wanted);
    assert_status(device, 0);
    assert_ok(device, vuf_client_set_status(device->client, ACKNOWLEDGE | DRIVER | FEATURES_OK));
    assert_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    share_and_start(device);

    struct frame frame = {.receive_at = RECEIVE_ADDR, .size = 100};
    send_frame(device, &frame, 0);
    assert_int_equal(virtq_wait(&device->queues[TRANSMIT], LOOK_MS, NULL), -ETIMEDOUT);
    const uint32_t running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_ok(device, vuf_client_set_status(device->client, running));
    assert_frame_returns(device, &frame, 0);
    assert_status(device, running);
    loop_many(device);

    device_stop(device);
    assert_ok(device, vuf_client_set_status(device->client, 0));
    assert_status(device, 0);
    finish(device);
}

/* What the program says of a message that it has read. */
static void assert_it_read(struct device *device, const char *message)
{
    char line[512];
    int64_t deadline = now_ms() + WAIT_MS;
    do {
        if (!backend_log_next(&device->backend, line, sizeof line, (int)(deadline - now_ms()))) {
            fail_msg("the program does not say that it has read %s", message);
        }
    } while (strstr(line, message) == NULL);
}

static void test_mtu(void **state)
{
    struct device *device = *state;
    struct wanted wanted = split;
    wanted.features |= BIT(VIRTIO_NET_F_MTU);
    wanted.protocol |= BIT(VUF_PROTOCOL_F_MTU);
    run_testpmd(device, "");
    device_connect(device, wanted);
    assert_ok(device, vuf_client_net_set_mtu(device->client, 1400));
    assert_it_read(device, "VHOST_USER_NET_SET_MTU");
    share_and_start(device);
    loop_many(device);
    device_stop(device);
    finish(device);
}

/* It makes the announcement as if the guest had sent it, and sends it back as any
   other frame. */
static void test_rarp(void **state)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    /* Ethernet, RARP, a request that asks for the address of mac itself */
    static const uint8_t head[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12,
                                   0x34, 0x56, 0x80, 0x35, 0,    1,    8,    0,    6,    4,
                                   0,    3};
    enum { SENDER = sizeof head, TARGET = SENDER + 10, RARP_SIZE = 64 };
    uint64_t address = 0;
    struct device *device = *state;
    struct wanted wanted = split;
    wanted.protocol |= BIT(VUF_PROTOCOL_F_RARP);
    run_testpmd(device, "");
    device_connect(device, wanted);
    share_and_start(device);
    loop_one(device, RECEIVE_ADDR);

    memset(device_at(device, RECEIVE_ADDR), 0xee, PAGE);
    const struct virtq_part in = {RECEIVE_ADDR, PAGE};
    int slot = device_post(device, RECEIVE, &in, 0, 1);
    assert_int_equal(virtq_wait(&device->queues[RECEIVE], LOOK_MS, NULL), -ETIMEDOUT);
    for (unsigned n = 0; n < sizeof mac; n++) {
        address |= (uint64_t)mac[n] << 8 * n;
    }
    assert_ok(device, vuf_client_send_rarp(device->client, address));
    assert_int_equal(device_take(device, RECEIVE, slot), HEADER_SIZE + RARP_SIZE);
    const uint8_t *frame = (const uint8_t *)device_at(device, RECEIVE_ADDR) + HEADER_SIZE;
    assert_memory_equal(frame, head, sizeof head);
    assert_memory_equal(frame + SENDER, mac, sizeof mac);
    assert_memory_equal(frame + TARGET, mac, sizeof mac);

    loop_one(device, RECEIVE_ADDR);
    device_stop(device);
    finish(device);
}

/* ---- through an IOMMU ---- */

/* What the back-end knows the memory as; the driver uses DEVICE_ADDR. */
#define PHYSICAL UINT64_C(0x100000000)
#define USER_ADDR UINT64_C(0x7000000000)

enum { DEVICE_PAGES = DEVICE_SIZE / PAGE };

struct iommu {
    struct device *device;
    atomic_uint misses[DEVICE_PAGES];
    atomic_uint wrong;
};

static struct iommu iommu;

/* Page by page, and never more than is asked for. */
static int translate(void *user, uint64_t iova, uint32_t perm)
{
    struct iommu *unit = user;
    uint64_t page = (iova - DEVICE_ADDR) / PAGE;
    if (unit != &iommu || page >= DEVICE_PAGES || perm == 0 || perm > VUF_ACCESS_RW) {
        atomic_fetch_add(&iommu.wrong, 1);
        return -EFAULT;
    }
    atomic_fetch_add(&unit->misses[page], 1);
    struct vuf_iotlb entry = {
        .iova = DEVICE_ADDR + page * PAGE,
        .size = PAGE,
        .user_addr = USER_ADDR + page * PAGE,
        .perm = (uint8_t)perm,
        .type = VUF_IOTLB_UPDATE,
    };
    struct vuf_device *vuf = unit->device->vuf;
    if (vuf != NULL) {
        entry.user_addr = PHYSICAL + page * PAGE;
    }
    int rc = vuf != NULL ? vuf_device_post_iotlb(vuf, &entry)
                         : vuf_client_post_iotlb(unit->device->client, &entry);
    if (rc != 0) {
        atomic_fetch_add(&unit->wrong, 1);
    }
    return rc;
}

static unsigned misses(uint64_t iova)
{
    return atomic_load(&iommu.misses[(iova - DEVICE_ADDR) / PAGE]);
}

static void invalidate(struct device *device, uint64_t iova)
{
    const struct vuf_iotlb entry = {.iova = iova, .size = PAGE, .type = VUF_IOTLB_INVALIDATE};
    assert_ok(device, vuf_client_send_iotlb(device->client, &entry));
}

static unsigned count_misses(void)
{
    unsigned count = 0;
    for (unsigned page = 0; page < DEVICE_PAGES; page++) {
        count += atomic_load(&iommu.misses[page]);
    }
    return count;
}

/* A frame whose pages are not translated yet is lost, as on any network: it is
   sent until it comes back. How often. */
static unsigned loop_until_it_returns(struct device *device, unsigned n)
{
    enum { TRIES = 50, TRY_MS = 100, SIZE = 300 };
    const uint64_t to = RECEIVE_ADDR + n * PAGE, from = TRANSMIT_ADDR + n * PAGE;
    uint8_t *bytes = device_at(device, from), *got = device_at(device, to);
    uint32_t written = 0;
    memset(bytes, 0, HEADER_SIZE);
    fill(bytes + HEADER_SIZE, SIZE, n);
    memset(got, 0xee, PAGE);
    const struct virtq_part in = {to, PAGE};
    const struct virtq_part out[] = {{from, HEADER_SIZE}, {from + HEADER_SIZE, SIZE}};
    int slot = device_post(device, RECEIVE, &in, 0, 1);
    for (unsigned tries = 1; tries <= TRIES; tries++) {
        device_request(device, TRANSMIT, out, 2, 0);
        int used = virtq_wait(&device->queues[RECEIVE], TRY_MS, &written);
        if (used != -ETIMEDOUT) {
            assert_int_equal(used, slot);
            assert_int_equal(written, HEADER_SIZE + SIZE);
            assert_memory_equal(got + HEADER_SIZE, bytes + HEADER_SIZE, SIZE);
            return tries;
        }
    }
    fail_msg("%d frames were lost", TRIES);
    return 0;
}

static void test_iommu(void **state)
{
    static const struct vuf_backend_ops ops = {.size = sizeof ops, .iotlb_miss = translate};
    struct device *device = *state;
    struct wanted wanted = split;
    wanted.features |= BIT(VIRTIO_F_ACCESS_PLATFORM);
    wanted.protocol |= BIT(VUF_PROTOCOL_F_BACKEND_REQ);
    memset(&iommu, 0, sizeof iommu);
    iommu.device = device;
    run_testpmd(device, ",iommu-support=1");
    device_connect(device, wanted);
    device_open_channel(device, &ops, &iommu);
    device_share_at(device, PHYSICAL, USER_ADDR);
    device_start(device, QUEUES);

    for (unsigned n = 0; n < BURST; n++) {
        loop_until_it_returns(device, n);
        assert_true(misses(RECEIVE_ADDR + n * PAGE) > 0);
        assert_true(misses(TRANSMIT_ADDR + n * PAGE) > 0);
    }
    for (unsigned index = 0; index < QUEUES; index++) {
        assert_true(misses(device->queues[index].guest_addr) > 0);
    }

    /* What is known is not asked for again ... */
    unsigned before = count_misses();
    loop_many(device);
    assert_int_equal(count_misses(), before);
    /* ... until it may not be used any more. */
    unsigned received = misses(RECEIVE_ADDR);
    invalidate(device, RECEIVE_ADDR);
    loop_until_it_returns(device, 0);
    assert_true(misses(RECEIVE_ADDR) > received);
    /* DPDK 22.11 has forgotten the page behind it as well. */
    loop_until_it_returns(device, 1);

    loop_many(device);
    device_stop(device);
    assert_int_equal(iommu.wrong, 0);
    assert_int_equal(device->ended, 0);
    finish(device);
}

/* ---- page faults ---- */

static struct pagefaults faults;

static int drop_faults(void **state)
{
    pagefaults_drop(&faults);
    return device_tear_down(state);
}

/* It receives into pages that are not there, and sends from one. */
static void test_postcopy(void **state)
{
    struct device *device = *state;
    struct wanted wanted = split;
    wanted.protocol |= BIT(VUF_PROTOCOL_F_PAGEFAULT);
    if (!pagefaults_allowed()) {
        print_message("skipped: userfaultfd is not permitted here\n");
        skip();
    }
    run_testpmd(device, ",postcopy-support=1");
    device_connect(device, wanted);
    pagefaults_begin(&faults, device);
    device_start(device, QUEUES);

    const uint64_t header_at = TRANSMIT_ADDR, data_at = TRANSMIT_ADDR + 8 * PAGE;
    enum { SIZE = 1000 };
    uint8_t sent[FAULT_PAGE];
    pagefaults_pattern(data_at, sent);
    memset(device_at(device, header_at), 0, HEADER_SIZE);
    const struct virtq_part in = {RECEIVE_ADDR, PAGE};
    const struct virtq_part out[] = {{header_at, HEADER_SIZE}, {data_at, SIZE}};
    int received = device_post(device, RECEIVE, &in, 0, 1);
    device_request(device, TRANSMIT, out, 2, 0);
    assert_int_equal(device_take(device, RECEIVE, received), HEADER_SIZE + SIZE);
    const uint8_t *got = device_at(device, RECEIVE_ADDR);
    assert_memory_equal(got + HEADER_SIZE, sent, SIZE);
    assert_true(pagefaults_served(&faults, data_at) > 0);
    assert_true(pagefaults_served(&faults, RECEIVE_ADDR) > 0);
    assert_int_equal(pagefaults_served(&faults, header_at), 0); /* it was there */
    /* What the device did not write came from the source. */
    pagefaults_pattern(RECEIVE_ADDR, sent);
    assert_memory_equal(got + HEADER_SIZE + SIZE, sent + HEADER_SIZE + SIZE,
                        PAGE - HEADER_SIZE - SIZE);

    pagefaults_end(&faults, device);
    loop_many(device);
    device_stop(device);
    finish(device);
}

/* ---- on the device layer ---- */

/* A socket that is left over it does not replace. */
static void serve(struct device *device)
{
    unlink(device->backend.socket);
    run_testpmd(device, "");
}

/* Which takes much less time: it first looks at its own socket after a second. */
static void seek(struct device *device)
{
    run_testpmd(device, ",client=1");
}

#define LIFE                                                                                       \
    .work = loop_one, .queues = QUEUES, .stops_together = true, .kills = 1,                        \
    .protocol = PROTOCOL | BIT(VUF_PROTOCOL_F_STATUS),                                             \
    .protocol_absent = BIT(VUF_PROTOCOL_F_RESET_DEVICE) | BIT(VUF_PROTOCOL_F_CONFIG) |             \
                       BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |                                   \
                       BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD)

static const struct life on_split = {
    LIFE,
    .run = serve,
    .features = BIT(VIRTIO_NET_F_MRG_RXBUF),
    .options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET,
};
/* The used index of a packed ring is known, and says too little for any policy. */
static const struct life on_packed = {
    LIFE,
    .run = seek,
    .connects = true,
    .features = BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_F_RING_PACKED),
    .options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED,
};
static const struct life in_order = {
    LIFE,
    .run = seek,
    .connects = true,
    .features = BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_F_IN_ORDER),
};

static struct device *prepare(void **state)
{
    device_program("VUF_DPDK_TESTPMD");
    return *state;
}

/* The program takes its time to start, so that one goes through all. It listens in one
   of the tests, and connects in the other. */
static void go_through(void **state, const struct life *life)
{
    struct device *device = prepare(state);
    life_check_stops(device, life);
    life_check_memory(device, life);
    life_check_resets(device, life, SET_STATUS);
    life_check_hangs_up(device, life);
    life_check_kills(device, life, VUF_RECOVERY_NEEDS_RESET);
    loop_many(device);
    life_stop(device, life);
    finish(device);
}

static void device_goes_through_all_split(void **state)
{
    go_through(state, &on_split);
}

static void device_goes_through_all_packed(void **state)
{
    go_through(state, &on_packed);
}

/* Takes what comes back in the order of the ring; a frame that was lost when the
   back-end died is made up for. */
static void take_received(struct device *device, const struct frame frames[BURST])
{
    enum { TRIES = 50, TRY_MS = 100 };
    const struct virtq_part out = {TRANSMIT_ADDR, HEADER_SIZE + 60};
    for (unsigned n = 0; n < BURST; n++) {
        int used = -ETIMEDOUT;
        for (int tries = 0; tries < TRIES && used == -ETIMEDOUT; tries++) {
            used = virtq_wait(&device->queues[RECEIVE], TRY_MS, NULL);
            if (used == -ETIMEDOUT) {
                device_request(device, TRANSMIT, &out, 1, 0);
            }
        }
        assert_int_equal(used, frames[n].received);
    }
}

/* It dies in the middle of its work. Each buffer is used once, by it or the next;
   what is asked for while there is none waits. */
static void device_goes_on_after_a_kill_in_order(void **state)
{
    struct device *device = prepare(state);
    struct frame frames[BURST];
    life_check_kills(device, &in_order, VUF_RECOVERY_IN_ORDER);
    loop_many(device);
    for (unsigned n = 0; n < BURST; n++) {
        if (n == BURST / 2) {
            backend_kill(&device->backend);
            life_until(device, VUF_DEVICE_EVENT_LOST);
        }
        frames[n] = (struct frame){.receive_at = RECEIVE_ADDR + n * PAGE, .size = 100 + n};
        send_frame(device, &frames[n], n);
    }
    in_order.run(device);
    life_until(device, VUF_DEVICE_EVENT_RECOVERED);
    for (unsigned n = 0; n < BURST; n++) {
        device_take(device, TRANSMIT, frames[n].transmitted);
    }
    take_received(device, frames);
    loop_many(device);
    finish(device);
}

static void device_waits_for_it_to_answer(void **state)
{
    life_check_freezes(prepare(state), &in_order);
    finish(*state);
}

static atomic_uint recoveries;

/* An event loop: who waits for a frame must not wait for translations as well. */
static void *drive(void *argument)
{
    enum { LOOP_MS = 20 };
    struct device *device = argument;
    struct vuf_device_event event = {.size = sizeof event};
    while (!atomic_load(&device->done)) {
        struct pollfd item = {.fd = vuf_device_get_fd(device->vuf), .events = POLLIN};
        poll(&item, 1, LOOP_MS);
        int rc = vuf_device_process(device->vuf, &event);
        if (rc != 0) {
            atomic_store(&device->ended, rc);
            break;
        }
        if (event.kind == VUF_DEVICE_EVENT_RECOVERED) {
            atomic_fetch_add(&recoveries, 1);
        }
    }
    return NULL;
}

static void run_with_iommu(struct device *device)
{
    run_testpmd(device, ",client=1,iommu-support=1");
}

/* Nothing of the IOMMU is kept for the next back-end, which asks for itself. */
static void device_translates(void **state)
{
    static const struct vuf_backend_ops ops = {.size = sizeof ops, .iotlb_miss = translate};
    struct device *device = prepare(state);
    struct life life = in_order;
    memset(&iommu, 0, sizeof iommu);
    iommu.device = device;
    atomic_store(&recoveries, 0);
    life.features |= BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ACCESS_PLATFORM);
    life.protocol |= BIT(VUF_PROTOCOL_F_BACKEND_REQ);
    life.options.backend_ops = &ops;
    life.options.user = &iommu;
    life_open(device, &life);
    run_with_iommu(device);
    life_until(device, VUF_DEVICE_EVENT_CONNECTED);
    struct vuf_mem_region region = guest_memory_region(&device->memory);
    region.guest_addr = region.user_addr = PHYSICAL;
    assert_ok(device, vuf_device_set_features(device->vuf, life.features));
    assert_ok(device, vuf_device_set_memory(device->vuf, &region, 1, 0));
    device_make_queues(device, QUEUES);
    life_start(device, &life, VUF_RING_BASE_NEW);
    assert_int_equal(pthread_create(&device->loop, NULL, drive, device), 0);
    device->looping = true;

    for (unsigned lives = 0; lives < 2; lives++) {
        if (lives > 0) {
            backend_kill(&device->backend);
            run_with_iommu(device);
            for (int64_t deadline = now_ms() + 20000; now_ms() < deadline; sleep_ms(5)) {
                if (atomic_load(&recoveries) == lives) {
                    break;
                }
            }
            assert_int_equal(atomic_load(&recoveries), lives);
        }
        unsigned before = count_misses();
        for (unsigned n = 0; n < BURST; n++) {
            unsigned received = misses(RECEIVE_ADDR + n * PAGE);
            loop_until_it_returns(device, n);
            assert_true(misses(RECEIVE_ADDR + n * PAGE) > received);
        }
        assert_true(count_misses() > before + BURST);
        before = count_misses();
        loop_many(device);
        assert_int_equal(count_misses(), before);
    }
    assert_int_equal(iommu.wrong, 0);
    assert_int_equal(device->ended, 0);
    finish(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_split),      DEVICE_TEST(test_packed),      DEVICE_TEST(test_log_split),
        DEVICE_TEST(test_log_packed), DEVICE_TEST(test_it_connects),
        DEVICE_TEST(test_status),     DEVICE_TEST(test_mtu),         DEVICE_TEST(test_rarp),
        DEVICE_TEST(test_iommu),
        cmocka_unit_test_setup_teardown(test_postcopy, device_set_up, drop_faults),
        DEVICE_TEST(device_goes_through_all_split),
        DEVICE_TEST(device_goes_through_all_packed),
        DEVICE_TEST(device_goes_on_after_a_kill_in_order),
        DEVICE_TEST(device_waits_for_it_to_answer),
        DEVICE_TEST(device_translates),
    };
    return cmocka_run_group_tests_name("DPDK testpmd", tests, NULL, NULL);
}
