/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* vhost-device-vsock: streams between a socket of this host and a port of the
   guest that the test plays. VUF_VHOST_DEVICE_VSOCK names the program. */
#include "lifecycle.h"

#include <endian.h>
#include <linux/virtio_vsock.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { RECEIVE, TRANSMIT, EVENTS, QUEUES };
enum { HOST_CID = 2, GUEST_CID = 4, GUEST_PORT = 1234, HOST_PORT = 52, CREDIT = 1 << 16 };
enum { UNWRITTEN = 0xeeee, DATA_SIZE = 4096, HEADER_SIZE = sizeof(struct virtio_vsock_hdr) };

static uint64_t receive_addr = DEVICE_BUFFERS;
#define TRANSMIT_ADDR (DEVICE_BUFFERS + 0x10000u)

static struct device *prepare(void **state)
{
    device_program("VUF_VHOST_DEVICE_VSOCK");
    receive_addr = DEVICE_BUFFERS;
    return *state;
}

static void run(struct device *device)
{
    char path[100];
    snprintf(path, sizeof path, "%s/uds", device->backend.dir);
    device_run(device, (const char *[]){device_program("VUF_VHOST_DEVICE_VSOCK"), "--guest-cid",
                                        "4", "--socket", device->backend.socket, "--uds-path",
                                        path, NULL});
}

static struct device *begin(void **state)
{
    struct device *device = prepare(state);
    run(device);
    device_connect(device, (struct wanted){
                               .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG) |
                                           BIT(VUF_PROTOCOL_F_REPLY_ACK),
                           });
    device_share(device);
    device_start(device, QUEUES);
    return device;
}

/* ---- the host's side ---- */

/* Reading from the socket, or accepting, is not to take for ever. */
static void limit_waiting(int fd)
{
    const struct timeval most = {.tv_sec = WAIT_MS / 1000};
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most), 0);
}

/* A socket, and the address that is uds with this ending. */
static int host_socket(const struct device *device, const char *ending,
                       struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    limit_waiting(fd);
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(address->sun_path, sizeof address->sun_path, "%.60s/uds%s", device->backend.dir,
             ending);
    return fd;
}

static void host_send(int fd, const void *bytes, size_t size)
{
    assert_int_equal(send(fd, bytes, size, MSG_NOSIGNAL), size);
}

/* What comes first must be this; nothing, if size is 0: the stream has ended. */
static void assert_host_gets(int fd, const void *bytes, size_t size)
{
    char got[DATA_SIZE];
    assert_int_equal(recv(fd, got, size > 0 ? size : sizeof got, MSG_WAITALL), size);
    assert_memory_equal(got, bytes, size);
}

/* ---- the guest's side ---- */

/* The header of a packet to or from the host, and its data behind it. */
static struct virtio_vsock_hdr *packet_at(struct device *device, uint64_t addr)
{
    return device_at(device, addr);
}

/* Waits for the next packet of the connection; those about credit are for real
   drivers. What it still had to say about a stream that was reset (version 0.3), it
   "sends" as a buffer that it has not written. */
static const struct virtio_vsock_hdr *receive(struct device *device)
{
    const struct virtq_part parts[] = {
        {receive_addr, HEADER_SIZE},
        {receive_addr + HEADER_SIZE, DATA_SIZE},
    };
    const struct virtio_vsock_hdr *packet = packet_at(device, receive_addr);
    do {
        memset(device_at(device, receive_addr), 0xee, HEADER_SIZE + DATA_SIZE);
        uint32_t written = device_request(device, RECEIVE, parts, 0, 2);
        if (written == HEADER_SIZE && packet->op == UNWRITTEN) {
            continue;
        }
        assert_int_equal(written, HEADER_SIZE + le32toh(packet->len));
        assert_int_equal(le64toh(packet->src_cid), HOST_CID);
        assert_int_equal(le64toh(packet->dst_cid), GUEST_CID);
        assert_int_equal(le16toh(packet->type), VIRTIO_VSOCK_TYPE_STREAM);
    } while (packet->op == UNWRITTEN || le16toh(packet->op) == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    return packet;
}

static const struct virtio_vsock_hdr *receive_op(struct device *device, uint16_t op)
{
    const struct virtio_vsock_hdr *packet = receive(device);
    assert_int_equal(le16toh(packet->op), op);
    return packet;
}

/* A stream: its ports, and how much of it the guest has taken. */
struct stream {
    uint32_t guest, host, taken;
};

static void transmit(struct device *device, const struct stream *stream, uint16_t op,
                     const void *data, uint32_t size)
{
    struct virtio_vsock_hdr *packet = packet_at(device, TRANSMIT_ADDR);
    *packet = (struct virtio_vsock_hdr){
        .src_cid = htole64(GUEST_CID),
        .dst_cid = htole64(HOST_CID),
        .src_port = htole32(stream->guest),
        .dst_port = htole32(stream->host),
        .len = htole32(size),
        .type = htole16(VIRTIO_VSOCK_TYPE_STREAM),
        .op = htole16(op),
        .buf_alloc = htole32(CREDIT),
        .fwd_cnt = htole32(stream->taken),
    };
    if (size > 0) {
        memcpy(packet + 1, data, size);
    }
    const struct virtq_part parts[] = {
        {TRANSMIT_ADDR, HEADER_SIZE},
        {TRANSMIT_ADDR + HEADER_SIZE, size},
    };
    device_request(device, TRANSMIT, parts, size > 0 ? 2 : 1, 0);
}

/* A program on the host asks for a port of the guest, which hears of it. */
static int host_asks(struct device *device, struct stream *stream)
{
    struct sockaddr_un address;
    int fd = host_socket(device, "", &address);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    static const char line[] = "CONNECT 1234\n";
    host_send(fd, line, sizeof line - 1);
    const struct virtio_vsock_hdr *packet = receive_op(device, VIRTIO_VSOCK_OP_REQUEST);
    assert_int_equal(le32toh(packet->dst_port), GUEST_PORT);
    assert_int_equal(packet->len, 0);
    *stream = (struct stream){GUEST_PORT, le32toh(packet->src_port), 0};
    return fd;
}

/* Both ways, and what comes must be what was sent. */
static void assert_data_goes_both_ways(struct device *device, int fd, struct stream *stream)
{
    uint8_t data[DATA_SIZE];
    for (uint32_t size = 1; size <= DATA_SIZE; size = size * 4) {
        for (uint32_t n = 0; n < size; n++) {
            data[n] = (uint8_t)(n * 11 + size);
        }
        host_send(fd, data, size);
        const struct virtio_vsock_hdr *packet = receive_op(device, VIRTIO_VSOCK_OP_RW);
        assert_int_equal(le32toh(packet->src_port), stream->host);
        assert_int_equal(le32toh(packet->dst_port), stream->guest);
        assert_int_equal(le32toh(packet->len), size);
        assert_memory_equal(packet + 1, data, size);
        stream->taken += size;

        for (uint32_t n = 0; n < size; n++) {
            data[n] = (uint8_t)~data[n];
        }
        transmit(device, stream, VIRTIO_VSOCK_OP_RW, data, size);
        assert_host_gets(fd, data, size);
    }
}

/* ---- tests ---- */

static void test_config(void **state)
{
    struct device *device = begin(state);
    struct virtio_vsock_config config;
    uint64_t queues;
    assert_ok(device, vuf_client_get_config(device->client, 0, 0, &config, sizeof config));
    assert_int_equal(le64toh(config.guest_cid), GUEST_CID);
    assert_ok(device, vuf_client_get_queue_num(device->client, &queues));
    assert_int_equal(queues, QUEUES);
    device_stop(device);
}

static void test_guest_refuses(void **state)
{
    struct device *device = begin(state);
    struct stream stream;
    int fd = host_asks(device, &stream);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RST, NULL, 0);
    assert_host_gets(fd, "", 0);
    close(fd);
    device_stop(device);
}

static void test_host_connects(void **state)
{
    struct device *device = begin(state);
    struct stream stream;
    int fd = host_asks(device, &stream);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RESPONSE, NULL, 0);
    assert_host_gets(fd, "OK 1234\n", 8);
    assert_data_goes_both_ways(device, fd, &stream);
    close(fd);
    receive_op(device, VIRTIO_VSOCK_OP_SHUTDOWN);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RST, NULL, 0);
    device_stop(device);
}

static void test_guest_connects(void **state)
{
    struct device *device = begin(state);
    struct sockaddr_un address;
    int listener = host_socket(device, "_52", &address);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    struct stream stream = {GUEST_PORT, HOST_PORT, 0};
    transmit(device, &stream, VIRTIO_VSOCK_OP_REQUEST, NULL, 0);
    receive_op(device, VIRTIO_VSOCK_OP_RESPONSE);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(listener);
    limit_waiting(fd);
    assert_data_goes_both_ways(device, fd, &stream);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RST, NULL, 0);
    assert_host_gets(fd, "", 0);
    close(fd);
    device_stop(device);
}

/* Before there is a stream: what happens to one while the queues are stopped ends
   the thread that serves them, and the front-end is not told. */
static void test_restart(void **state)
{
    struct device *device = begin(state);
    struct stream stream;
    for (unsigned n = 0; n < 10; n++) {
        for (unsigned index = 0; index < QUEUES; index++) {
            device_stop_queue(device, index);
        }
        for (unsigned index = 0; index < QUEUES; index++) {
            device_restart_queue(device, index);
        }
    }
    int fd = host_asks(device, &stream);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RESPONSE, NULL, 0);
    assert_host_gets(fd, "OK 1234\n", 8);
    assert_data_goes_both_ways(device, fd, &stream);
    close(fd);
    device_stop(device);
}

/* ---- on the device layer ---- */

/* A stream from its beginning to its end. */
static void work(struct device *device, uint64_t at)
{
    struct stream stream;
    receive_addr = at;
    int fd = host_asks(device, &stream);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RESPONSE, NULL, 0);
    assert_host_gets(fd, "OK 1234\n", 8);
    assert_data_goes_both_ways(device, fd, &stream);
    close(fd);
    receive_op(device, VIRTIO_VSOCK_OP_SHUTDOWN);
    transmit(device, &stream, VIRTIO_VSOCK_OP_RST, NULL, 0);
    /* It uses a buffer, and then looks for the next. If it finds the queues stopped by
       then, the thread that serves them ends, and the front-end is not told (version
       0.3): so they are stopped only when it sleeps. */
    assert_true(backend_idle(&device->backend, WAIT_MS));
}

static const struct life life = {
    .run = run,
    .work = work,
    .queues = QUEUES,
    .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG) |
                BIT(VUF_PROTOCOL_F_REPLY_ACK),
    .protocol_absent = BIT(VUF_PROTOCOL_F_RESET_DEVICE) | BIT(VUF_PROTOCOL_F_STATUS) |
                       BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
                       BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD),
    .options.config_size = sizeof(struct virtio_vsock_config),
};

LIFE_CHECKS(prepare, life, REPLAY_FROM_USED)

static void device_has_its_configuration(void **state)
{
    struct device *device = prepare(state);
    struct virtio_vsock_config config;
    life_begin(device, &life);
    assert_ok(device, vuf_device_read_config(device->vuf, 0, &config, sizeof config, NULL));
    assert_int_equal(le64toh(config.guest_cid), GUEST_CID);
    assert_int_equal(life_info(device).queue_num, QUEUES);
}

/* It answers with nothing, which is a refusal; the space is then the caller's alone. */
static void device_asks_for_too_much_configuration(void **state)
{
    struct device *device = prepare(state);
    struct life asking = life;
    const uint8_t own = 5;
    uint8_t bytes[sizeof(struct virtio_vsock_config) + 1];
    asking.options.config_size = sizeof bytes;
    asking.protocol &= ~BIT(VUF_PROTOCOL_F_CONFIG);
    life_open(device, &asking);
    asking.run(device);
    const struct vuf_device_event refused =
        life_until(device, VUF_DEVICE_EVENT_CONFIG_REFUSED);
    assert_int_equal(refused.request, VUF_REQUEST_GET_CONFIG);
    assert_non_null(strstr(refused.text, "9 bytes"));
    assert_int_equal(vuf_device_read_config(device->vuf, 0, bytes, sizeof bytes, NULL),
                     VUF_E_NACK);
    assert_ok(device, vuf_device_overlay_config(device->vuf, 3, &own, 1));
    assert_ok(device, vuf_device_read_config(device->vuf, 3, bytes, 1, NULL));
    assert_int_equal(bytes[0], own);
    assert_int_equal(vuf_device_read_config(device->vuf, 0, bytes, 4, NULL), VUF_E_NACK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_config),         DEVICE_TEST(test_guest_refuses),
        DEVICE_TEST(test_host_connects),  DEVICE_TEST(test_guest_connects),
        DEVICE_TEST(test_restart),
        LIFE_CHECKS_WITH(DEVICE_TEST),
        DEVICE_TEST(device_has_its_configuration),
        DEVICE_TEST(device_asks_for_too_much_configuration),
    };
    return cmocka_run_group_tests_name("vhost-device-vsock", tests, NULL, NULL);
}
