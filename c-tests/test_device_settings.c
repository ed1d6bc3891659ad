/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What a device is set to besides its memory and rings, against the scripted back-end: no
   back-end at hand knows all of these requests. */
#include "rig.h"
#include "names.h"
#include "virtio_blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    RING_NUM = 64,
    FOREIGN = VUF_VRING_BIG_ENDIAN, /* this machine is little-endian */
    NATIVE = VUF_VRING_LITTLE_ENDIAN,
};

#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x100000)
#define VERSION_1 BIT(VIRTIO_F_VERSION_1)
#define NET_F_MTU BIT(3)
#define ADDED                                                                                      \
    (BIT(VUF_PROTOCOL_F_MTU) | BIT(VUF_PROTOCOL_F_CROSS_ENDIAN) | BIT(VUF_PROTOCOL_F_RARP))

#define SCRIPT(...) ((const char *const[]){"-e", "device features +3", __VA_ARGS__, NULL})
#define OFFERS(features) "-e", "device protocol-features MQ REPLY_ACK " features

struct fixture {
    int fds; /* how many were open before */
    struct backend backend;
    struct vuf_device *device;
    struct guest_memory memory;
    struct blk_ring ring;
    unsigned seen[VUF_DEVICE_EVENT_IOTLB_REFUSED + 1];
};

static const struct vuf_device_options quickly = {
    .size = sizeof quickly,
    .num_rings = 1,
    .protocol_features = VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES | ADDED,
    .first_delay_ms = 2,
    .max_delay_ms = 50,
    .slow_delay_ms = 100,
    .jitter_percent = 1,
};

/* ---- an event loop ---- */

static struct vuf_device_event until(struct fixture *f, uint32_t kind)
{
    struct pollfd item = {.fd = vuf_device_get_fd(f->device), .events = POLLIN};
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline;) {
        struct vuf_device_event event = {.size = sizeof event};
        assert_ok(vuf_device_process(f->device, &event));
        assert_true(event.kind < LENGTH(f->seen));
        f->seen[event.kind]++;
        if (event.kind == kind) {
            return event;
        }
        if (event.kind == VUF_DEVICE_EVENT_NONE) {
            poll(&item, 1, 20);
        }
    }
    print_error("%s did not come\n", vuf_device_event_name(kind));
    fail();
    return (struct vuf_device_event){.size = 0};
}

/* How many messages of the back-end's log have this in them. */
static unsigned logged(struct fixture *f, const char *text)
{
    unsigned count = 0;
    FILE *log = fopen(f->backend.log, "re");
    assert_non_null(log);
    for (char line[4096]; fgets(line, sizeof line, log) != NULL;) {
        count += strstr(line, text) != NULL;
    }
    fclose(log);
    return count;
}

/* ---- setting up and taking down ---- */

static int set_up_guest(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    *f = (struct fixture){.fds = count_fds(), .ring = {.kick_fd = -1, .call_fd = -1, .err_fd = -1}};
    *state = f;
    int rc = guest_memory_create(&f->memory, GUEST_ADDR, GUEST_SIZE);
    return rc == 0 ? blk_ring_create(&f->ring, 0, RING_NUM, &f->memory, GUEST_ADDR) : rc;
}

static int tear_down_guest(void **state)
{
    struct fixture *f = *state;
    vuf_device_free(f->device);
    blk_ring_destroy(&f->ring);
    guest_memory_destroy(&f->memory);
    backend_stop(&f->backend);
    if (count_fds() != f->fds) {
        print_error("%d descriptors are open, and %d were\n", count_fds(), f->fds);
        return -1;
    }
    return 0;
}

static void open_device(struct fixture *f, const char *const script[])
{
    assert_int_equal(backend_start_mock(&f->backend, script), 0);
    assert_ok(vuf_device_open(f->backend.socket, &quickly, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
}

static void bring_up(struct fixture *f, uint64_t features)
{
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    struct vuf_ring ring = blk_ring_of_device(&f->ring, VUF_RING_BASE_NEW);
    assert_ok(vuf_device_set_features(f->device, features));
    assert_ok(vuf_device_set_memory(f->device, &region, 1, 0));
    assert_ok(vuf_device_start(f->device, &ring, 1));
}

/* ---- the largest frame ---- */

static void mtu_reaches_each_back_end(void **state)
{
    struct fixture *f = *state;
    open_device(f, SCRIPT(OFFERS("MTU")));
    assert_ok(vuf_device_set_mtu(f->device, 9000));
    bring_up(f, VERSION_1 | NET_F_MTU);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> NET_SET_MTU need-reply value=9000"), 1);
    backend_kill(&f->backend);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS("MTU"))), 0);
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_true(logged(f, "> NET_SET_MTU need-reply value=9000") == 1);
}

static void refused_mtu_is_local(void **state)
{
    struct fixture *f = *state;
    open_device(f, SCRIPT(OFFERS("MTU"), "-e", "on NET_SET_MTU nth=1: refuse 22"));
    assert_ok(vuf_device_set_mtu(f->device, 1500));
    bring_up(f, VERSION_1 | NET_F_MTU);
    struct vuf_device_event refused = until(f, VUF_DEVICE_EVENT_REFUSED);
    assert_int_equal(refused.code, VUF_E_NACK);
    assert_int_equal(refused.request, 20);
    assert_int_equal(refused.value, 22);
    assert_non_null(strstr(refused.text, "1500"));
    assert_refused(VUF_E_NACK, "MTU", vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> SET_VRING_ENABLE"), 1);
    /* Asked again. */
    assert_ok(vuf_device_set_mtu(f->device, 1500));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_LOST], 0);
}

/* ---- announcements ---- */

#define ADDRESS UINT64_C(0x563412005452)

static void address_is_announced_once(void **state)
{
    struct fixture *f = *state;
    open_device(f, SCRIPT(OFFERS("RARP"), "-e", "on SEND_RARP nth=2: refuse 5"));
    bring_up(f, VERSION_1);
    assert_ok(vuf_device_send_rarp(f->device, ADDRESS));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> SEND_RARP"), 1);
    assert_ok(vuf_device_send_rarp(f->device, ADDRESS));
    struct vuf_device_event refused = until(f, VUF_DEVICE_EVENT_REFUSED);
    assert_int_equal(refused.request, 19);
    assert_int_equal(refused.value, 5);
    assert_non_null(strstr(refused.text, "52:54:00:12:34:56"));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    backend_kill(&f->backend);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS(""))), 0);
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> SEND_RARP"), 0);
    assert_refused(VUF_E_NOT_NEGOTIATED, "RARP", vuf_device_send_rarp(f->device, ADDRESS));
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_REFUSED], 1);
}

/* ---- the socket to the display ---- */

static void each_back_end_gets_a_socket_of_its_own(void **state)
{
    struct fixture *f = *state;
    int first[2], second[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, first), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, second), 0);
    open_device(f, SCRIPT(OFFERS("")));
    assert_ok(vuf_device_set_gpu_socket(f->device, first[1]));
    bring_up(f, VERSION_1);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> GPU_SET_SOCKET need-reply fds=1"), 1);
    backend_kill(&f->backend);
    until(f, VUF_DEVICE_EVENT_LOST);
    /* The other end is closed. */
    struct pollfd ended = {.fd = first[0], .events = POLLIN};
    assert_int_equal(poll(&ended, 1, PEER_MS), 1);
    assert_true((ended.revents & POLLHUP) != 0);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS(""))), 0);
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> GPU_SET_SOCKET"), 0);
    assert_ok(vuf_device_set_gpu_socket(f->device, second[1]));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> GPU_SET_SOCKET need-reply fds=1"), 1);
    close(first[0]);
    close(second[0]);
}

/* ---- questions ---- */

static void on_added(void *user, const uint8_t *uuid)
{
    (void)user;
    (void)uuid;
}

/* SHARED_OBJECT is acknowledged with a function for it. */
static void open_asking(struct fixture *f, const char *const script[])
{
    static const struct vuf_backend_ops ops = {.size = sizeof ops, .shared_object_added = on_added};
    struct vuf_device_options options = quickly;
    options.backend_ops = &ops;
    assert_int_equal(backend_start_mock(&f->backend, script), 0);
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
}

static const uint8_t object[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                   0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};

static void back_end_is_asked(void **state)
{
    struct fixture *f = *state;
    const uint8_t other[16] = {1};
    uint32_t status = 77;
    int fd = 77;
    open_asking(f, SCRIPT(OFFERS("BACKEND_REQ SHARED_OBJECT STATUS"), "-e",
                          "device object 00112233-4455-6677-8899-aabbccddeeff"));
    assert_ok(vuf_device_get_backend_status(f->device, PEER_MS, &status));
    assert_int_equal(status, 0);
    bring_up(f, VERSION_1);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ok(vuf_device_get_backend_status(f->device, PEER_MS, &status));
    assert_int_equal(status, 15); /* with DRIVER_OK */
    assert_ok(vuf_device_get_shared_object(f->device, object, PEER_MS, &fd));
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    close(fd);
    assert_returns(VUF_E_NACK, vuf_device_get_shared_object(f->device, other, PEER_MS, &fd));
    assert_int_equal(fd, -1);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_LOST], 0);
}

static void bad_questions_are_refused(void **state)
{
    struct fixture *f = *state;
    uint32_t status = 77;
    int fd = 77;
    open_asking(f, SCRIPT(OFFERS("")));
    assert_refused(VUF_E_NOT_NEGOTIATED, "STATUS",
                   vuf_device_get_backend_status(f->device, PEER_MS, &status));
    assert_refused(VUF_E_NOT_NEGOTIATED, "SHARED_OBJECT",
                   vuf_device_get_shared_object(f->device, object, PEER_MS, &fd));
    assert_int_equal(fd, -1);
    assert_returns(-EINVAL, vuf_device_get_backend_status(f->device, 1, NULL));
    assert_returns(-EINVAL, vuf_device_get_shared_object(f->device, NULL, 1, &fd));
    assert_returns(-EINVAL, vuf_device_get_shared_object(f->device, object, 1, NULL));
    assert_returns(-EINVAL, vuf_device_get_backend_status(NULL, 1, &status));
    assert_returns(-EINVAL, vuf_device_get_shared_object(NULL, object, 1, &fd));
    backend_kill(&f->backend);
    until(f, VUF_DEVICE_EVENT_LOST);
    assert_returns(VUF_E_DISCONNECTED, vuf_device_get_backend_status(f->device, PEER_MS, &status));
    assert_int_equal(status, 77);
}

/* ---- the byte order of a legacy driver ---- */

static void byte_order_reaches_each_back_end(void **state)
{
    struct fixture *f = *state;
    open_device(f, SCRIPT(OFFERS("CROSS_ENDIAN")));
    assert_ok(vuf_device_set_vring_endian(f->device, FOREIGN));
    bring_up(f, 0);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(logged(f, "> SET_VRING_ENDIAN need-reply index=0 num=1"), 1);
    assert_returns(-EBUSY, vuf_device_set_vring_endian(f->device, NATIVE));
    backend_kill(&f->backend);
    assert_int_equal(backend_again_mock(&f->backend, SCRIPT(OFFERS("CROSS_ENDIAN"))), 0);
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_true(logged(f, "> SET_VRING_ENDIAN need-reply index=0 num=1") == 1);
}

static void back_end_without_the_byte_order_is_refused(void **state)
{
    struct fixture *f = *state;
    open_device(f, SCRIPT(OFFERS("")));
    assert_ok(vuf_device_set_vring_endian(f->device, FOREIGN));
    assert_refused(VUF_E_NOT_NEGOTIATED, "CROSS_ENDIAN", vuf_device_set_features(f->device, 0));
    assert_ok(vuf_device_set_features(f->device, VERSION_1));
    assert_ok(vuf_device_set_vring_endian(f->device, NATIVE));
    assert_ok(vuf_device_set_features(f->device, 0));
    assert_refused(VUF_E_NOT_NEGOTIATED, "CROSS_ENDIAN",
                   vuf_device_set_vring_endian(f->device, FOREIGN));
}

/* ---- single facts ---- */

static void assert_facts(struct fixture *f)
{
    struct vuf_device_info info = {.size = sizeof info};
    uint64_t features = 0, generation = 0, applied = 0;
    assert_ok(vuf_device_get_info(f->device, &info));
    assert_int_equal(vuf_device_is_connected(f->device), info.connected);
    assert_int_equal(vuf_device_is_settled(f->device), info.settled);
    assert_ok(vuf_device_get_offered_features(f->device, &features));
    assert_int_equal(features, info.offered_features);
    assert_ok(vuf_device_get_generation(f->device, &generation, &applied));
    assert_int_equal(generation, info.generation);
    assert_int_equal(applied, info.applied);
}

static void single_facts_are_those_of_the_info(void **state)
{
    struct fixture *f = *state;
    uint64_t features = 77, generation = 77, applied = 77;
    struct vuf_device_options options = quickly;
    assert_int_equal(backend_start_mock(&f->backend, SCRIPT(OFFERS(""))), 0);
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
    assert_int_equal(vuf_device_is_connected(f->device), 0);
    assert_int_equal(vuf_device_is_settled(f->device), 0);
    assert_refused(VUF_E_STATE, "not known yet",
                   vuf_device_get_offered_features(f->device, &features));
    assert_int_equal(features, 77);
    assert_ok(vuf_device_get_generation(f->device, &generation, &applied));
    assert_int_equal(applied, 0);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_int_equal(vuf_device_is_connected(f->device), 1);
    assert_facts(f);
    bring_up(f, VERSION_1);
    assert_int_equal(vuf_device_is_settled(f->device), 0);
    assert_facts(f);
    assert_ok(vuf_device_get_generation(f->device, &generation, &applied));
    assert_true(applied < generation);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_int_equal(vuf_device_is_settled(f->device), 1);
    assert_facts(f);
    backend_kill(&f->backend);
    until(f, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(vuf_device_is_connected(f->device), 0);
    assert_facts(f);

    assert_returns(-EINVAL, vuf_device_is_connected(NULL));
    assert_returns(-EINVAL, vuf_device_is_settled(NULL));
    assert_returns(-EINVAL, vuf_device_get_offered_features(NULL, &features));
    assert_returns(-EINVAL, vuf_device_get_offered_features(f->device, NULL));
    assert_returns(-EINVAL, vuf_device_get_generation(NULL, &generation, &applied));
    assert_returns(-EINVAL, vuf_device_get_generation(f->device, NULL, &applied));
    assert_returns(-EINVAL, vuf_device_get_generation(f->device, &generation, NULL));
}

/* ---- presets ---- */

static const struct type {
    uint32_t device_id, rings, config_size;
} types[] = {
    {1, 2, 0},  {2, 1, VUF_CONFIG_SIZE_LATER},  {3, 4, 12}, {4, 1, 0},
    {8, 3, 36}, {16, 2, 16},                    {18, 2, 136}, {19, 3, 8},
    {25, 4, VUF_CONFIG_SIZE_LATER}, {26, 2, 40}, {34, 1, 0}, {41, 2, 8},
};

static void presets_open_devices(void **state)
{
    struct fixture *f = *state;
    for (size_t n = 0; n < LENGTH(types); n++) {
        struct vuf_device_options options;
        uint32_t size = 77;
        memset(&options, 0xee, sizeof options);
        options.size = sizeof options;
        assert_ok(vuf_device_options_for(types[n].device_id, &options));
        assert_int_equal(options.device_id, types[n].device_id);
        assert_int_equal(options.num_rings, types[n].rings);
        assert_int_equal(options.config_size, types[n].config_size);
        assert_null(options.backend_ops);
        assert_ok(vuf_device_config_size_for(types[n].device_id, 0, &size));
        if (options.config_size != VUF_CONFIG_SIZE_LATER) {
            assert_int_equal(size, options.config_size);
        }
        assert_ok(vuf_device_open("nobody/listens", &options, &f->device));
        vuf_device_free(f->device);
        f->device = NULL;
    }
    /* DISCARD is 13, WRITE_ZEROES 14. */
    static const struct {
        uint64_t features;
        uint32_t size;
    } block[] = {{BIT(13) | BIT(14), 60}, {BIT(13), 48}, {BIT(12), 36}, {0, 36}};
    for (size_t n = 0; n < LENGTH(block); n++) {
        uint32_t size = 0;
        assert_ok(vuf_device_config_size_for(2, block[n].features, &size));
        assert_int_equal(size, block[n].size);
    }
}

/* A block device, as a monitor for any type opens it: the embedded back-end returns up to
   60 bytes. */
static void preset_serves_a_disk(void **state)
{
    struct fixture *f = *state;
    struct vuf_device_options options = {.size = sizeof options};
    uint64_t offered = 0, hidden = 0, capacity = 0;
    uint32_t size = 0;
    assert_int_equal(backend_start_embedded(&f->backend, 1, false), 0);
    assert_ok(vuf_device_options_for(2, &options));
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_get_offered_features(f->device, &offered));
    assert_ok(vuf_device_hidden_features_for(2, &hidden));
    assert_ok(vuf_device_config_size_for(2, offered & ~hidden, &size));
    assert_ok(vuf_device_set_config_size(f->device, size));
    assert_ok(vuf_device_wait_config(f->device, PEER_MS));
    assert_ok(vuf_device_read_config(f->device, 0, &capacity, sizeof capacity, NULL));
    assert_int_equal(capacity, DISK_SIZE / SECTOR_SIZE);
    bring_up(f, offered & ~hidden);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
}

static void presets_hide_what_a_monitor_implements(void **state)
{
    (void)state;
    uint64_t hidden = 0;
    assert_ok(vuf_device_hidden_features_for(2, &hidden));
    assert_int_equal(hidden, VUF_TRANSPORT_FEATURES);
    assert_ok(vuf_device_hidden_features_for(1, &hidden));
    /* CTRL_VQ is 17, MQ 22; CSUM is 0, MRG_RXBUF 15. */
    assert_int_equal(hidden & (BIT(0) | BIT(15) | BIT(17) | BIT(22)), BIT(17) | BIT(22));
    assert_int_equal(hidden & VUF_TRANSPORT_FEATURES, VUF_TRANSPORT_FEATURES);
}

static void rings_have_names(void **state)
{
    (void)state;
    assert_string_equal(vuf_device_ring_name(2, 7, 8), "requestq");
    assert_null(vuf_device_ring_name(2, 8, 8));
    assert_string_equal(vuf_device_ring_name(1, 0, 5), "receiveq");
    assert_string_equal(vuf_device_ring_name(1, 3, 5), "transmitq");
    assert_string_equal(vuf_device_ring_name(1, 4, 5), "controlq");
    assert_string_equal(vuf_device_ring_name(26, 0, 2), "hiprio");
    assert_string_equal(vuf_device_ring_name(19, 2, 3), "event");
    assert_null(vuf_device_ring_name(19, 3, 4));
    assert_null(vuf_device_ring_name(0, 0, 1));
}

static void unknown_types_have_no_preset(void **state)
{
    (void)state;
    struct vuf_device_options options = {.size = sizeof options};
    uint32_t size = 77;
    uint64_t features = 77;
    assert_refused(-EINVAL, "device_id is 0", vuf_device_options_for(0, &options));
    assert_returns(-EINVAL, vuf_device_options_for(2, NULL));
    options.size = 0;
    assert_returns(-EINVAL, vuf_device_options_for(2, &options));
    assert_returns(-EINVAL, vuf_device_config_size_for(0, 0, &size));
    assert_returns(-EINVAL, vuf_device_config_size_for(2, 0, NULL));
    assert_returns(-EINVAL, vuf_device_hidden_features_for(7, &features));
    assert_returns(-EINVAL, vuf_device_hidden_features_for(2, NULL));
    assert_int_equal(size, 77);
    assert_int_equal(features, 77);
}

/* ---- arguments ---- */

static void bad_settings_are_refused(void **state)
{
    struct fixture *f = *state;
    open_device(f, SCRIPT(OFFERS("")));
    assert_refused(-EINVAL, "mtu is 67", vuf_device_set_mtu(f->device, 67));
    assert_refused(-EINVAL, "mtu is 65536", vuf_device_set_mtu(f->device, 65536));
    assert_refused(-EINVAL, "endian is 2", vuf_device_set_vring_endian(f->device, 2));
    assert_refused(-EINVAL, "mac", vuf_device_send_rarp(f->device, BIT(48)));
    assert_refused(VUF_E_NOT_NEGOTIATED, "RARP", vuf_device_send_rarp(f->device, ADDRESS));
    assert_returns(-EINVAL, vuf_device_send_rarp(NULL, ADDRESS));
    assert_returns(-EBADF, vuf_device_set_gpu_socket(f->device, -1));
    assert_returns(-EINVAL, vuf_device_set_gpu_socket(NULL, 0));
    assert_returns(-EINVAL, vuf_device_set_mtu(NULL, 1500));
    assert_returns(-EINVAL, vuf_device_set_vring_endian(NULL, NATIVE));
    vuf_device_free(f->device);
    assert_ok(vuf_device_open(f->backend.socket, NULL, &f->device));
    assert_refused(VUF_E_NOT_NEGOTIATED, "MTU", vuf_device_set_mtu(f->device, 1500));
}

#define GUEST_TEST(name) cmocka_unit_test_setup_teardown(name, set_up_guest, tear_down_guest)

int main(void)
{
    const struct CMUnitTest tests[] = {
        GUEST_TEST(mtu_reaches_each_back_end),
        GUEST_TEST(refused_mtu_is_local),
        GUEST_TEST(address_is_announced_once),
        GUEST_TEST(each_back_end_gets_a_socket_of_its_own),
        GUEST_TEST(back_end_is_asked),
        GUEST_TEST(bad_questions_are_refused),
        GUEST_TEST(byte_order_reaches_each_back_end),
        GUEST_TEST(back_end_without_the_byte_order_is_refused),
        GUEST_TEST(single_facts_are_those_of_the_info),
        GUEST_TEST(presets_open_devices),
        GUEST_TEST(preset_serves_a_disk),
        GUEST_TEST(presets_hide_what_a_monitor_implements),
        GUEST_TEST(rings_have_names),
        GUEST_TEST(unknown_types_have_no_preset),
        GUEST_TEST(bad_settings_are_refused),
    };
    return cmocka_run_group_tests_name("test_device_settings", tests, default_signals, NULL);
}
