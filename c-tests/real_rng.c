/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* vhost-device-rng, which has no REPLY_ACK: what must be complete when a call
   returns is so by the GET_FEATURES behind it. VUF_VHOST_DEVICE_RNG names the
   program. */
#include "device.h"

#include <stdio.h>
#include <string.h>

enum { QUEUE, BYTES = 64, STARTS = 50, BUFFERS = 8 };

static const uint8_t zeros[BYTES];

static struct device *begin(void **state)
{
    struct device *device = *state;
    const char *program = device_program("VUF_VHOST_DEVICE_RNG");
    char *socket = device->backend.socket;
    device_run(device, (const char *[]){program, "-s", socket, "-c", "1", NULL});
    strcat(socket, "0"); /* it numbers its sockets */
    device_connect(device, (struct wanted){
                               .protocol = BIT(VUF_PROTOCOL_F_MQ),
                               .protocol_absent = BIT(VUF_PROTOCOL_F_REPLY_ACK),
                           });
    uint64_t queues;
    assert_ok(device, vuf_client_get_queue_num(device->client, &queues));
    assert_int_equal(queues, 1);
    device_share(device);
    device_start(device, 1);
    return device;
}

/* Asks for random bytes at the address, and has them all. */
static const uint8_t *draw(struct device *device, uint64_t addr)
{
    uint8_t *bytes = device_at(device, addr);
    memset(bytes, 0, BYTES);
    const struct virtq_part part = {addr, BYTES};
    assert_int_equal(device_request(device, QUEUE, &part, 0, 1), BYTES);
    return bytes;
}

static void test_bytes_are_random(void **state)
{
    struct device *device = begin(state);
    const uint8_t *one = draw(device, DEVICE_BUFFERS);
    const uint8_t *two = draw(device, DEVICE_BUFFERS + BYTES);
    assert_memory_not_equal(one, zeros, BYTES);
    assert_memory_not_equal(two, zeros, BYTES);
    assert_memory_not_equal(one, two, BYTES);
    device_stop(device);
}

static void test_several_in_flight(void **state)
{
    struct device *device = begin(state);
    int slots[BUFFERS];
    for (unsigned n = 0; n < BUFFERS; n++) {
        const struct virtq_part part = {DEVICE_BUFFERS + n * BYTES, BYTES};
        slots[n] = device_post(device, QUEUE, &part, 0, 1);
    }
    for (unsigned n = 0; n < BUFFERS; n++) {
        assert_int_equal(device_take(device, QUEUE, slots[n]), BYTES);
        assert_memory_not_equal(device_at(device, DEVICE_BUFFERS + n * BYTES), zeros, BYTES);
    }
    device_stop(device);
}

/* The kick comes at once after the start has returned. Without a barrier this
   back-end loses every other one. */
static void test_no_kick_is_lost(void **state)
{
    struct device *device = begin(state);
    for (unsigned n = 0; n < STARTS; n++) {
        assert_memory_not_equal(draw(device, DEVICE_BUFFERS), zeros, BYTES);
        device_stop_queue(device, QUEUE);
        device_restart_queue(device, QUEUE);
    }
    device_stop(device);
}

/* It listens again for whoever comes next. */
static void test_a_second_connection(void **state)
{
    struct device *device = begin(state);
    draw(device, DEVICE_BUFFERS);
    device_disconnect(device);
    device_connect(device, (struct wanted){.protocol = BIT(VUF_PROTOCOL_F_MQ)});
    device_share(device);
    device_start(device, 1);
    assert_memory_not_equal(draw(device, DEVICE_BUFFERS), zeros, BYTES);
    device_stop(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_bytes_are_random),
        DEVICE_TEST(test_several_in_flight),
        DEVICE_TEST(test_no_kick_is_lost),
        DEVICE_TEST(test_a_second_connection),
    };
    return cmocka_run_group_tests_name("vhost-device-rng", tests, NULL, NULL);
}
