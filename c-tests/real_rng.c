/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* vhost-device-rng, which has no REPLY_ACK: what must be complete when a call
   returns is so by the GET_FEATURES behind it. VUF_VHOST_DEVICE_RNG names the
   program. */
#include "lifecycle.h"

#include <stdio.h>
#include <string.h>

enum { QUEUE, BYTES = 64, STARTS = 50, BUFFERS = 8 };

static const uint8_t zeros[BYTES];

static struct device *prepare(void **state)
{
    struct device *device = *state;
    device_program("VUF_VHOST_DEVICE_RNG");
    strcat(device->backend.socket, "0"); /* it numbers its sockets */
    return device;
}

static void run(struct device *device)
{
    char prefix[sizeof device->backend.socket];
    strcpy(prefix, device->backend.socket);
    prefix[strlen(prefix) - 1] = '\0';
    device_run(device, (const char *[]){device_program("VUF_VHOST_DEVICE_RNG"), "-s", prefix,
                                        "-c", "1", NULL});
}

static struct device *begin(void **state)
{
    struct device *device = prepare(state);
    run(device);
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

/* ---- on the device layer ---- */

static void work(struct device *device, uint64_t at)
{
    uint8_t before[BYTES];
    memcpy(before, draw(device, at), BYTES);
    assert_memory_not_equal(before, zeros, BYTES);
    assert_memory_not_equal(draw(device, at + BYTES), before, BYTES);
}

static const struct life life = {
    .run = run,
    .work = work,
    .queues = 1,
    .protocol = BIT(VUF_PROTOCOL_F_MQ),
    .protocol_absent = BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG),
};

static void device_is_stopped_and_resumed(void **state)
{
    life_check_stops(prepare(state), &life);
    life_stop(*state, &life);
}

static void device_gets_memory_while_it_runs(void **state)
{
    life_check_memory(prepare(state), &life);
}

static void device_waits_for_a_reset_after_a_kill(void **state)
{
    struct life strict = life;
    strict.options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    life_check_kills(prepare(state), &strict, VUF_RECOVERY_NEEDS_RESET);
}

/* Version 0.1 (of vhost-user-backend, 0.10) never reads a used index: within a
   connection it goes on with its own, and in another it begins with 0. It has neither
   RESET_DEVICE nor STATUS, so that a ring that is only stopped does not begin anew: the
   first buffer is used as if it were a later one. */
static void device_is_not_reset_by_a_stop(void **state)
{
    struct device *device = prepare(state);
    const struct virtq_part part = {DEVICE_BUFFERS, BYTES};
    life_begin(device, &life);
    unsigned stops = life_sent(device, GET_VRING_BASE);
    life_reset(device, &life);
    assert_int_equal(life_sent(device, GET_VRING_BASE), stops + 1);
    assert_int_equal(life_sent(device, RESET_DEVICE) + life_sent(device, SET_STATUS), 0);
    life_boot(device, &life);
    assert_int_not_equal(device_request(device, QUEUE, &part, 0, 1), BYTES);
}

/* What to do about it. */
static void device_is_reset_on_another_connection(void **state)
{
    life_check_hangs_up(prepare(state), &life);
}

/* What is asked for while the ring is stopped is answered once it runs; nobody kicks
   but the library. */
static void device_misses_no_request(void **state)
{
    struct device *device = prepare(state);
    const struct virtq_part part = {DEVICE_BUFFERS, BYTES};
    life_begin(device, &life);
    for (unsigned n = 0; n < STARTS; n++) {
        memset(device_at(device, DEVICE_BUFFERS), 0, BYTES);
        life_stop(device, &life);
        int slot = device_offer(device, QUEUE, &part, 0, 1);
        life_start(device, &life, VUF_RING_BASE_RESUME);
        assert_int_equal(device_take(device, QUEUE, slot), BYTES);
        assert_memory_not_equal(device_at(device, DEVICE_BUFFERS), zeros, BYTES);
    }
}

/* It has no configuration space, and is taken all the same. */
static void device_has_no_configuration(void **state)
{
    struct device *device = prepare(state);
    struct life asking = life;
    uint8_t byte;
    asking.options.config_size = 8;
    life_begin(device, &asking);
    assert_int_equal(life_sent(device, GET_CONFIG), 0);
    assert_int_equal(vuf_device_read_config(device->vuf, 0, &byte, 1, NULL), VUF_E_STATE);
}

static void device_waits_for_it_to_answer(void **state)
{
    life_check_freezes(prepare(state), &life);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_bytes_are_random),
        DEVICE_TEST(test_several_in_flight),
        DEVICE_TEST(test_no_kick_is_lost),
        DEVICE_TEST(test_a_second_connection),
        DEVICE_TEST(device_is_stopped_and_resumed),
        DEVICE_TEST(device_gets_memory_while_it_runs),
        DEVICE_TEST(device_waits_for_a_reset_after_a_kill),
        DEVICE_TEST(device_is_not_reset_by_a_stop),
        DEVICE_TEST(device_is_reset_on_another_connection),
        DEVICE_TEST(device_misses_no_request),
        DEVICE_TEST(device_has_no_configuration),
        DEVICE_TEST(device_waits_for_it_to_answer),
    };
    return cmocka_run_group_tests_name("vhost-device-rng", tests, NULL, NULL);
}
