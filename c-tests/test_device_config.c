/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The configuration space of a device, and rings that the back-end does not have, against
 * back-ends on libvhost-user (qemu-storage-daemon) and on rust-vmm's crates.
 */
#include "device_rig.h"

#include <errno.h>
#include <string.h>

enum {
    INPUT_SIZE = 136, /* struct virtio_input_config */
    INPUT_SELECT = 0,
    INPUT_SUBSEL = 1,
    INPUT_LENGTH = 2,
    INPUT_STRING = 8,
};

static const struct vuf_device_options quickly = {
    QUICK,
    .num_rings = RINGS,
    .config_size = BLK_CONFIG_SIZE,
    .slow_delay_ms = 60000, /* longer than any test */
};

/* ---- setting up ---- */

static void open_device(struct fixture *f, uint32_t config_size, uint64_t required)
{
    struct vuf_device_options options = quickly;
    options.config_size = config_size;
    options.required_protocol_features = required;
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
}

/* A request on ring 0 is completed. */
static void assert_works(struct fixture *f)
{
    finish(f, 0, submit(f, 0, VIRTIO_BLK_T_IN, 0, DATA_ADDR, SECTOR_SIZE));
}

/* ---- data that is not current ---- */

/* A thread of a virtual CPU that may block: Linux's virtio_input writes select and
   subsel, then reads the size and that many bytes. */
static void select_and_read(struct fixture *f, uint8_t select)
{
    uint8_t zero = 0, length, string[24];
    assert_ok(vuf_device_write_config(f->device, INPUT_SELECT, &select, 1));
    assert_ok(vuf_device_write_config(f->device, INPUT_SUBSEL, &zero, 1));
    assert_returns(-EAGAIN, vuf_device_read_current_config(f->device, INPUT_LENGTH, &length, 1, NULL));
    assert_ok(vuf_device_wait_config(f->device, PEER_MS));
    assert_ok(vuf_device_read_current_config(f->device, INPUT_LENGTH, &length, 1, NULL));
    assert_int_equal(length, 3 * select);
    assert_ok(vuf_device_read_current_config(f->device, INPUT_STRING, string, length, NULL));
    for (unsigned n = 0; n < length; n++) {
        assert_int_equal(string[n], select);
    }
}

static void guest_reads_what_it_selects(void **state)
{
    struct fixture *f = begin(state);
    assert_int_equal(start_backend(f, (const char *const[]){"--select", NULL}), 0);
    open_device(f, INPUT_SIZE, 0);
    assert_ok(vuf_device_wait_config(f->device, PEER_MS));
    for (uint8_t select = 1; select < 9; select++) {
        select_and_read(f, select);
    }
    /* An event loop that does not block waits for the device to settle. */
    uint8_t select = 4, length = 0;
    uint32_t before, after;
    assert_ok(vuf_device_read_config(f->device, INPUT_LENGTH, &length, 1, &before));
    assert_ok(vuf_device_write_config(f->device, INPUT_SELECT, &select, 1));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_ok(vuf_device_read_config(f->device, INPUT_LENGTH, &length, 1, &after));
    assert_int_equal(length, 12);
    assert_int_not_equal(before, after);
    /* The guest asked for it: it is not interrupted. */
    for_a_while(f);
    assert_int_equal(SEEN(f, CONFIG_CHANGED), 0);
    assert_int_equal(SEEN(f, LOST), 0);
}

/* ---- refusals ---- */

static void refused_write_is_local(void **state)
{
    struct fixture *f = begin(state);
    assert_int_equal(start_backend(f, (const char *const[]){"--refuse", "SET_CONFIG", "--keep-open", NULL}), 0);
    open_device(f, BLK_CONFIG_SIZE, BIT(VUF_PROTOCOL_F_CONFIG));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    for (unsigned n = 0; n < 3; n++) {
        uint8_t byte = 77;
        assert_ok(vuf_device_write_config(f->device, 32, &byte, 1));
        struct vuf_device_event refused = until(f, VUF_DEVICE_EVENT_CONFIG_REFUSED);
        assert_int_equal(refused.error_class, VUF_CLASS_REFUSED);
        assert_ok(vuf_device_wait_config(f->device, PEER_MS));
        assert_ok(vuf_device_read_current_config(f->device, 32, &byte, 1, NULL));
        assert_int_equal(byte, 32);
    }
    for_a_while(f);
    assert_int_equal(SEEN(f, LOST), 0);
    assert_int_equal(info_of(f).connections, 1);
}

/* One that closes the connection after its refusal is lost, but not asked again. */
static void refused_write_is_not_repeated(void **state)
{
    struct fixture *f = begin(state);
    uint8_t byte = 77;
    assert_int_equal(start_backend(f, (const char *const[]){"--refuse", "SET_CONFIG", NULL}), 0);
    open_device(f, BLK_CONFIG_SIZE, 0);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_write_config(f->device, 32, &byte, 1));
    until(f, VUF_DEVICE_EVENT_CONFIG_REFUSED);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_wait_config(f->device, PEER_MS));
    for_a_while(f);
    assert_ok(vuf_device_read_current_config(f->device, 32, &byte, 1, NULL));
    assert_int_equal(byte, 32);
    assert_int_equal(info_of(f).connections, 2);
    assert_int_equal(SEEN(f, CONFIG_REFUSED), 1);
}

/* The largest size that a back-end returns. */
static uint32_t largest(const struct fixture *f)
{
    return f->kind == QEMU ? 96 : BLK_CONFIG_SIZE;
}

static void assert_names_size(const struct vuf_device_event *event, uint32_t size)
{
    char text[32];
    snprintf(text, sizeof text, "%u bytes", (unsigned)size);
    assert_has(event->text, text);
    assert_int_equal(event->error_class, VUF_CLASS_REFUSED);
    assert_int_equal(event->code, VUF_E_NACK);
}

static void refused_size_is_reported(void **state)
{
    struct fixture *f = begin(state);
    uint8_t config[BLK_CONFIG_SIZE];
    assert_int_equal(start_backend(f, (const char *const[]){"--config-size", "60", "--keep-open", NULL}), 0);
    open_device(f, largest(f) + 1, 0);
    struct vuf_device_event refused = until(f, VUF_DEVICE_EVENT_CONFIG_REFUSED);
    assert_names_size(&refused, largest(f) + 1);
    assert_int_equal(refused.request, 24);
    /* It is used without a configuration space, and reading says why there is none. */
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_refused(VUF_E_NACK, "bytes (config_size)",
                   vuf_device_read_config(f->device, 0, config, 8, NULL));
    assert_returns(VUF_E_NACK, vuf_device_wait_config(f->device, PEER_MS));
    /* Another size does. */
    assert_ok(vuf_device_set_config_size(f->device, BLK_CONFIG_SIZE));
    assert_ok(vuf_device_wait_config(f->device, PEER_MS));
    assert_ok(vuf_device_read_config(f->device, 0, config, sizeof config, NULL));
    if (f->kind != FOREIGN) {
        assert_int_equal(blk_config_capacity(config), CAPACITY);
    }
    assert_int_equal(SEEN(f, LOST), 0);
}

static void back_end_is_refused_where_the_space_is_required(void **state)
{
    struct fixture *f = begin(state);
    uint8_t config[BLK_CONFIG_SIZE];
    assert_int_equal(start_backend(f, (const char *const[]){"--config-size", "60", "--keep-open", NULL}), 0);
    open_device(f, largest(f) + 1, BIT(VUF_PROTOCOL_F_CONFIG));
    struct vuf_device_event lost = until(f, VUF_DEVICE_EVENT_LOST);
    assert_names_size(&lost, largest(f) + 1);
    assert_has(lost.text, "CONFIG is required");
    assert_int_equal(SEEN(f, CONNECTED), 0);
    assert_true(lost.delay_ms > 1000);
    /* The next attempt comes at once with another size. */
    assert_ok(vuf_device_set_config_size(f->device, BLK_CONFIG_SIZE));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_ok(vuf_device_read_config(f->device, 0, config, sizeof config, NULL));
}

static void size_follows_the_features(void **state)
{
    struct fixture *f = begin(state);
    uint8_t config[BLK_CONFIG_SIZE];
    assert_int_equal(start_backend(f, NULL), 0);
    open_device(f, VUF_CONFIG_SIZE_LATER, BIT(VUF_PROTOCOL_F_CONFIG));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_true((info_of(f).offered_features & BIT(VIRTIO_F_VERSION_1)) != 0);
    assert_refused(VUF_E_STATE, "size", vuf_device_read_config(f->device, 0, config, 8, NULL));
    /* What VIRTIO_BLK_F_MQ and what is older need. */
    assert_ok(vuf_device_set_config_size(f->device, 36));
    assert_ok(vuf_device_wait_config(f->device, PEER_MS));
    assert_ok(vuf_device_read_config(f->device, 0, config, 36, NULL));
    assert_int_equal(blk_config_capacity(config), CAPACITY);
    assert_refused(VUF_E_STATE, "36", vuf_device_set_config_size(f->device, 60));
    assert_ok(vuf_device_set_config_size(f->device, 36));
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_works(f);
}

/* ---- a guest that starts without a back-end ---- */

static void assumed_configuration_yields(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    uint8_t assumed[BLK_CONFIG_SIZE] = {1}, config[BLK_CONFIG_SIZE];
    assert_int_equal(start_backend(f, NULL), 0);
    backend_kill(&f->backend);
    options.assume_features = ASSUMED;
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
    assert_ok(vuf_device_assume_config(f->device, 0, assumed, sizeof assumed));
    assert_ok(vuf_device_read_config(f->device, 0, config, sizeof config, NULL));
    assert_memory_equal(config, assumed, sizeof config);
    assert_ok(vuf_device_read_current_config(f->device, 0, config, sizeof config, NULL));
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    start_again(f);
    assert_ok(vuf_device_reconnect(f->device));
    until(f, VUF_DEVICE_EVENT_CONFIG_CHANGED);
    assert_ok(vuf_device_read_config(f->device, 0, config, sizeof config, NULL));
    assert_int_equal(blk_config_capacity(config), CAPACITY);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    assert_works(f);
}

/* ---- rings that the back-end does not have ---- */

static void impossible_ring_is_not_started(void **state)
{
    struct fixture *f = begin(state);
    assert_int_equal(start_backend(f, NULL), 0);
    open_device(f, BLK_CONFIG_SIZE, 0);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_int_equal(info_of(f).queue_num, 1);
    assert_int_equal(info_of(f).max_rings, 3);
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_refused(-EINVAL, "GET_QUEUE_NUM is 1", start_ring(f, 3, VUF_RING_BASE_NEW));
    assert_int_equal(last_info().ring, 3);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    for_a_while(f);
    assert_int_equal(SEEN(f, LOST), 0);
    assert_works(f);
}

/* Wanted before the back-end is known. */
static void absent_ring_is_reported_once(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    assert_int_equal(start_backend(f, NULL), 0);
    options.assume_features = ASSUMED;
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
    negotiate(f);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_ok(start_ring(f, 3, VUF_RING_BASE_NEW));
    struct vuf_device_event refused = until(f, VUF_DEVICE_EVENT_REFUSED);
    assert_int_equal(refused.ring, 3);
    assert_int_equal(refused.error_class, VUF_CLASS_REFUSED);
    assert_has(refused.text, "ring 3");
    assert_returns(VUF_E_NACK, vuf_device_wait(f->device, PEER_MS));
    for_a_while(f);
    assert_int_equal(SEEN(f, REFUSED), 1);
    assert_int_equal(SEEN(f, LOST), 0);
    assert_works(f);
}

/* Ring 1 may exist by the count, and does not: these back-ends close the connection. */
static void ring_that_may_exist_is_given_up(void **state)
{
    struct fixture *f = begin(state);
    struct vuf_device_options options = quickly;
    assert_int_equal(start_backend(f, NULL), 0);
    options.slow_delay_ms = 100;
    options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    assert_ok(vuf_device_open(f->backend.socket, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    negotiate(f);
    assert_ok(start_ring(f, 1, VUF_RING_BASE_NEW));
    struct vuf_device_event refused = until(f, VUF_DEVICE_EVENT_REFUSED);
    assert_int_equal(refused.ring, 1);
    assert_int_equal(refused.error_class, VUF_CLASS_REFUSED);
    assert_true(SEEN(f, LOST) <= 2);
    assert_int_equal(SEEN(f, NEEDS_RESET), 0);
    /* The device is usable. */
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    unsigned lost = SEEN(f, LOST);
    for_a_while(f);
    assert_int_equal(SEEN(f, LOST), lost);
    assert_int_equal(SEEN(f, REFUSED), 1);
    assert_ok(start_ring(f, 0, VUF_RING_BASE_NEW));
    assert_works(f);
}

/* ---- arguments ---- */

static void bad_calls_are_refused(void **state)
{
    struct fixture *f = begin(state);
    uint8_t bytes[VUF_MAX_CONFIG_SIZE + 1] = {0};
    assert_int_equal(start_backend(f, NULL), 0);
    open_device(f, BLK_CONFIG_SIZE, 0);
    until(f, VUF_DEVICE_EVENT_CONNECTED); /* no descriptor comes or goes any more */
    assert_refused(-EINVAL, "config_size", vuf_device_set_config_size(f->device, 0));
    assert_refused(-EINVAL, "config_size",
                   vuf_device_set_config_size(f->device, VUF_MAX_CONFIG_SIZE + 1));
    assert_refused(-EINVAL, "config_size",
                   vuf_device_set_config_size(f->device, VUF_CONFIG_SIZE_LATER));
    assert_refused(-EINVAL, "buffer is NULL", vuf_device_assume_config(f->device, 0, NULL, 1));
    assert_refused(-EINVAL, "len", vuf_device_assume_config(f->device, 0, bytes, 0));
    assert_refused(-EINVAL, "len", vuf_device_assume_config(f->device, 0, bytes, sizeof bytes));
    assert_refused(-EINVAL, "beyond",
                   vuf_device_assume_config(f->device, BLK_CONFIG_SIZE - 1, bytes, 2));
    assert_refused(-EINVAL, "buffer is NULL",
                   vuf_device_read_current_config(f->device, 0, NULL, 1, NULL));
    assert_refused(-EINVAL, "len", vuf_device_read_current_config(f->device, 0, bytes, 0, NULL));
    assert_refused(-EINVAL, "beyond",
                   vuf_device_read_current_config(f->device, UINT32_MAX, bytes, 9, NULL));
    free_device(f);
    open_device(f, 0, 0);
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_refused(VUF_E_STATE, "VUF_CONFIG_SIZE_LATER", vuf_device_set_config_size(f->device, 36));
    assert_refused(VUF_E_STATE, "without", vuf_device_wait_config(f->device, SHORT_MS));
    free_device(f);
    backend_kill(&f->backend);
    open_device(f, BLK_CONFIG_SIZE, 0);
    assert_returns(-ETIMEDOUT, vuf_device_wait_config(f->device, SHORT_MS));
}

#define ON(kind_of, function) ON_WITH(set_up_guest, kind_of, function)
#define ON_EMBEDDED(function) ON(EMBEDDED, function)
#define ON_QEMU(function) ON(QEMU, function)
#define ON_FOREIGN(function) ON(FOREIGN, function)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_FOREIGN(guest_reads_what_it_selects),
        ON_FOREIGN(refused_write_is_local),
        ON_FOREIGN(refused_write_is_not_repeated),
        ON_QEMU(refused_size_is_reported),
        ON_EMBEDDED(refused_size_is_reported),
        ON_FOREIGN(refused_size_is_reported),
        ON_QEMU(back_end_is_refused_where_the_space_is_required),
        ON_EMBEDDED(back_end_is_refused_where_the_space_is_required),
        ON_FOREIGN(back_end_is_refused_where_the_space_is_required),
        ON_QEMU(size_follows_the_features),
        ON_EMBEDDED(size_follows_the_features),
        ON_QEMU(assumed_configuration_yields),
        ON_EMBEDDED(assumed_configuration_yields),
        ON_QEMU(impossible_ring_is_not_started),
        ON_EMBEDDED(impossible_ring_is_not_started),
        ON_QEMU(absent_ring_is_reported_once),
        ON_EMBEDDED(absent_ring_is_reported_once),
        ON_QEMU(ring_that_may_exist_is_given_up),
        ON_EMBEDDED(ring_that_may_exist_is_given_up),
        ON_EMBEDDED(bad_calls_are_refused),
    };
    return cmocka_run_group_tests_name("test_device_config", tests, default_signals, NULL);
}
