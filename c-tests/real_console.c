/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* vhost-device-console on its network back-end: text between the ring and a TCP
   port. VUF_VHOST_DEVICE_CONSOLE names the program.
 *
 * Version 0.1.0 takes all buffers of a receive queue whenever it looks, forgets
 * those that it has nothing for, and uses a buffer once for each byte. So there
 * are never more of them than answers, they are not kicked, and have one byte. */
#include "lifecycle.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/virtio_console.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { RECEIVE, TRANSMIT, CONTROL_RECEIVE, CONTROL_TRANSMIT, QUEUES };
enum { MESSAGE_ROOM = 64, MAX_ANSWERS = 3, COLS = 20, ROWS = 20 };

#define TEXT_ADDR DEVICE_BUFFERS
static uint64_t byte_addr = DEVICE_BUFFERS + 0x1000u;
#define MESSAGE_ADDR (DEVICE_BUFFERS + 0x2000u)
#define ANSWER_ADDR (DEVICE_BUFFERS + 0x3000u)

#define PORT_NAME "org.test.foo!"

static const struct wanted wanted = {
    .features = BIT(VIRTIO_CONSOLE_F_MULTIPORT),
    .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG) |
                BIT(VUF_PROTOCOL_F_REPLY_ACK),
};

static struct sockaddr_in network; /* where the program listens for a terminal */

/* A port that is free now. */
static void choose_port(void)
{
    socklen_t size = sizeof network;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    network = (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int rc = bind(fd, (struct sockaddr *)&network, size);
    if (rc == 0) {
        rc = getsockname(fd, (struct sockaddr *)&network, &size);
    }
    close(fd);
    assert_int_equal(rc, 0);
}

static void connect_and_start(struct device *device)
{
    device_connect(device, wanted);
    device_share(device);
    device_start(device, QUEUES);
}

static struct device *prepare(void **state)
{
    struct device *device = *state;
    device_program("VUF_VHOST_DEVICE_CONSOLE");
    choose_port();
    strcat(device->backend.socket, "0"); /* it numbers its sockets */
    return device;
}

static void run(struct device *device)
{
    char port[8], prefix[sizeof device->backend.socket];
    snprintf(port, sizeof port, "%u", ntohs(network.sin_port));
    strcpy(prefix, device->backend.socket);
    prefix[strlen(prefix) - 1] = '\0';
    device_run(device, (const char *[]){device_program("VUF_VHOST_DEVICE_CONSOLE"), "-s", prefix,
                                        "-b", "network", "-p", port, NULL});
}

static struct device *begin(void **state)
{
    struct device *device = prepare(state);
    run(device);
    connect_and_start(device);
    return device;
}

/* ---- the terminal ---- */

static int connect_terminal(void)
{
    const struct timeval most = {.tv_sec = WAIT_MS / 1000};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&network, sizeof network), 0);
    return fd;
}

/* The guest writes; the terminal gets it. */
static void assert_text_goes_out(struct device *device, int fd, const char *text)
{
    char got[256];
    uint32_t size = (uint32_t)strlen(text);
    memcpy(device_at(device, TEXT_ADDR), text, size);
    device_request(device, TRANSMIT, &(struct virtq_part){TEXT_ADDR, size}, 1, 0);
    assert_int_equal(recv(fd, got, size, MSG_WAITALL), size);
    assert_memory_equal(got, text, size);
}

/* Somebody types; the guest gets it. */
static void assert_text_comes_in(struct device *device, int fd, const char *text)
{
    char *byte = device_at(device, byte_addr);
    for (; *text != '\0'; text++) {
        *byte = '\0';
        int slot = device_offer(device, RECEIVE, &(struct virtq_part){byte_addr, 1}, 0, 1);
        assert_int_equal(send(fd, text, 1, MSG_NOSIGNAL), 1);
        assert_int_equal(device_take(device, RECEIVE, slot), 1);
        assert_int_equal(*byte, *text);
    }
}

/* ---- control messages ---- */

struct answer {
    const struct virtio_console_control *message;
    uint32_t size; /* with what follows the message */
};

/* Sends a message about the port; the device answers with n of its own. */
static void control(struct device *device, uint16_t event, struct answer *answers, unsigned n)
{
    int slots[MAX_ANSWERS];
    for (unsigned i = 0; i < n; i++) {
        uint64_t addr = ANSWER_ADDR + i * MESSAGE_ROOM;
        answers[i].message = memset(device_at(device, addr), 0xee, MESSAGE_ROOM);
        slots[i] = device_offer(device, CONTROL_RECEIVE,
                                &(struct virtq_part){addr, MESSAGE_ROOM}, 0, 1);
    }
    struct virtio_console_control *message = device_at(device, MESSAGE_ADDR);
    *message = (struct virtio_console_control){.event = htole16(event), .value = htole16(1)};
    device_request(device, CONTROL_TRANSMIT,
                   &(struct virtq_part){MESSAGE_ADDR, sizeof *message}, 1, 0);
    for (unsigned i = 0; i < n; i++) {
        answers[i].size = device_take(device, CONTROL_RECEIVE, slots[i]);
    }
}

static void assert_answer(struct answer answer, uint16_t event)
{
    assert_true(answer.size >= sizeof *answer.message);
    assert_int_equal(answer.message->id, 0);
    assert_int_equal(le16toh(answer.message->event), event);
    assert_int_equal(le16toh(answer.message->value), 1);
}

/* ---- tests ---- */

static void test_config(void **state)
{
    struct device *device = begin(state);
    struct virtio_console_config config;
    uint64_t queues;
    assert_ok(device, vuf_client_get_config(device->client, 0, 0, &config, sizeof config));
    assert_int_equal(le16toh(config.cols), COLS);
    assert_int_equal(le16toh(config.rows), ROWS);
    assert_int_equal(le32toh(config.max_nr_ports), 1);
    assert_ok(device, vuf_client_get_queue_num(device->client, &queues));
    assert_int_equal(queues, QUEUES);
    device_stop(device);
}

static void test_control(void **state)
{
    struct device *device = begin(state);
    struct answer answers[MAX_ANSWERS];
    control(device, VIRTIO_CONSOLE_DEVICE_READY, answers, 1);
    assert_answer(answers[0], VIRTIO_CONSOLE_PORT_ADD);
    control(device, VIRTIO_CONSOLE_PORT_READY, answers, 3);
    assert_answer(answers[0], VIRTIO_CONSOLE_CONSOLE_PORT);
    assert_answer(answers[1], VIRTIO_CONSOLE_PORT_NAME);
    assert_int_equal(answers[1].size, sizeof *answers[1].message + sizeof PORT_NAME - 1);
    assert_memory_equal(answers[1].message + 1, PORT_NAME, sizeof PORT_NAME - 1);
    assert_answer(answers[2], VIRTIO_CONSOLE_PORT_OPEN);
    device_stop(device);
}

static void test_text(void **state)
{
    struct device *device = begin(state);
    int fd = connect_terminal();
    assert_text_goes_out(device, fd, "Welcome\r\nlogin: ");
    assert_text_comes_in(device, fd, "root\r");
    assert_text_goes_out(device, fd, "Password: ");
    close(fd);
    device_stop(device);
}

static void test_restart(void **state)
{
    struct device *device = begin(state);
    int fd = connect_terminal();
    for (unsigned n = 0; n < 10; n++) {
        assert_text_goes_out(device, fd, "What now? ");
        assert_text_comes_in(device, fd, "again\r");
        device_stop_queue(device, RECEIVE);
        device_stop_queue(device, TRANSMIT);
        device_restart_queue(device, RECEIVE);
        device_restart_queue(device, TRANSMIT);
    }
    close(fd);
    device_stop(device);
}

/* It listens again for whoever comes next. */
static void test_a_second_connection(void **state)
{
    struct device *device = begin(state);
    device_stop(device);
    device_disconnect(device);
    connect_and_start(device);
    int fd = connect_terminal();
    assert_text_goes_out(device, fd, "Once more");
    close(fd);
    device_stop(device);
}

/* ---- on the device layer ---- */

/* One as long as the program keeps it: with the next, what the guest writes before
   the program has seen that is lost in the one before (version 0.1). */
static int terminal = -1;

static int close_terminal(void **state)
{
    if (terminal >= 0) {
        close(terminal);
    }
    terminal = -1;
    return state != NULL ? device_tear_down(state) : 0;
}

static void work(struct device *device, uint64_t at)
{
    char byte;
    if (terminal >= 0 && (recv(terminal, &byte, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN)) {
        close_terminal(NULL);
    }
    if (terminal < 0) {
        terminal = connect_terminal();
    }
    byte_addr = at;
    assert_text_goes_out(device, terminal, "What now? ");
    assert_text_comes_in(device, terminal, "again\r");
}

static const struct life life = {
    .run = run,
    .work = work,
    .queues = QUEUES,
    .features = BIT(VIRTIO_CONSOLE_F_MULTIPORT),
    .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG) |
                BIT(VUF_PROTOCOL_F_REPLY_ACK),
    .protocol_absent = BIT(VUF_PROTOCOL_F_RESET_DEVICE) | BIT(VUF_PROTOCOL_F_STATUS) |
                       BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
                       BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD),
    .options.config_size = sizeof(struct virtio_console_config),
};

LIFE_CHECKS(prepare, life, REPLAY_FROM_USED)

static void device_has_its_configuration(void **state)
{
    struct device *device = prepare(state);
    struct virtio_console_config config;
    life_begin(device, &life);
    assert_ok(device, vuf_device_read_config(device->vuf, 0, &config, sizeof config, NULL));
    assert_int_equal(le16toh(config.cols), COLS);
    assert_int_equal(le16toh(config.rows), ROWS);
    assert_int_equal(le32toh(config.max_nr_ports), 1);
    assert_int_equal(life_info(device).queue_num, QUEUES);
}

#define LIFE_TEST(name) cmocka_unit_test_setup_teardown(name, device_set_up, close_terminal)

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_config),  DEVICE_TEST(test_control),
        DEVICE_TEST(test_text),    DEVICE_TEST(test_restart),
        DEVICE_TEST(test_a_second_connection),
        LIFE_CHECKS_WITH(LIFE_TEST),
        LIFE_TEST(device_has_its_configuration),
    };
    return cmocka_run_group_tests_name("vhost-device-console", tests, NULL, NULL);
}
