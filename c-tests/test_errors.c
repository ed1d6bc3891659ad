/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the library tells about itself and its errors: texts and classes, names
   of requests and features, the version, and the last error of a thread. */
#include "rig.h"

#include <errno.h>
#include <limits.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_console.h>
#include <linux/virtio_gpu.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_scsi.h>
#include <linux/virtio_vsock.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* ---- errors ---- */

static void every_code_has_a_text_and_a_class(void **state)
{
    (void)state;
    const struct {
        int code;
        uint32_t error_class;
    } table[] = {
        {VUF_E_DISCONNECTED, VUF_CLASS_TRANSPORT},
        {VUF_E_PROTOCOL, VUF_CLASS_PROTOCOL},
        {VUF_E_NACK, VUF_CLASS_REFUSED},
        {VUF_E_NOT_NEGOTIATED, VUF_CLASS_LOCAL},
        {VUF_E_POISONED, VUF_CLASS_TRANSPORT},
        {VUF_E_STATE, VUF_CLASS_LOCAL},
        {VUF_E_PANIC, VUF_CLASS_LOCAL},
        {-ECONNREFUSED, VUF_CLASS_TRANSPORT},
        {-ENOENT, VUF_CLASS_TRANSPORT},
        {-EAGAIN, VUF_CLASS_TRANSPORT},
        {-ENOTCONN, VUF_CLASS_TRANSPORT},
        {-ETIMEDOUT, VUF_CLASS_TRANSPORT},
        {-EINVAL, VUF_CLASS_LOCAL},
        {-EBADF, VUF_CLASS_LOCAL},
        {-ECANCELED, VUF_CLASS_LOCAL},
        {-E2BIG, VUF_CLASS_LOCAL},
        {-ENOMEM, VUF_CLASS_LOCAL},
        {-EMFILE, VUF_CLASS_LOCAL},
        {-EACCES, VUF_CLASS_LOCAL},
        {-ENOTSOCK, VUF_CLASS_LOCAL},
        {-ENAMETOOLONG, VUF_CLASS_LOCAL},
        {-4095, VUF_CLASS_LOCAL},
    };
    for (size_t i = 0; i < LENGTH(table); i++) {
        const char *text = vuf_strerror(table[i].code);
        assert_non_null(text);
        assert_true(strlen(text) > 5);
        assert_string_not_equal(text, vuf_strerror(-5000)); /* not "unknown" */
        assert_string_not_equal(text, vuf_strerror(0));
        assert_int_equal(vuf_error_class(table[i].code), table[i].error_class);
    }
}

static void the_codes_of_the_library_have_different_texts(void **state)
{
    (void)state;
    for (int a = VUF_E_PANIC; a <= VUF_E_DISCONNECTED; a++) {
        for (int b = a + 1; b <= VUF_E_DISCONNECTED; b++) {
            assert_string_not_equal(vuf_strerror(a), vuf_strerror(b));
        }
    }
}

static void any_number_has_a_text_but_no_class(void **state)
{
    (void)state;
    const int numbers[] = {0, 1, 22, 4097, INT_MAX, -4096, VUF_E_PANIC - 1, -5000, INT_MIN};
    for (size_t i = 0; i < LENGTH(numbers); i++) {
        assert_non_null(vuf_strerror(numbers[i]));
        assert_true(strlen(vuf_strerror(numbers[i])) > 0);
        assert_int_equal(vuf_error_class(numbers[i]), VUF_CLASS_NONE);
    }
}

static void the_version_is_that_of_the_header(void **state)
{
    (void)state;
    assert_int_equal(vuf_version(),
                     VUF_VERSION_MAJOR * 65536 + VUF_VERSION_MINOR * 256 + VUF_VERSION_PATCH);
}

#define NAMED(name) {name, #name}

static void requests_have_their_names(void **state)
{
    (void)state;
    const struct {
        uint32_t number;
        const char *name;
    } table[] = {
        NAMED(GET_FEATURES),        NAMED(SET_FEATURES),
        NAMED(SET_OWNER),           NAMED(RESET_OWNER),
        NAMED(SET_MEM_TABLE),       NAMED(SET_LOG_BASE),
        NAMED(SET_LOG_FD),          NAMED(SET_VRING_NUM),
        NAMED(SET_VRING_ADDR),      NAMED(SET_VRING_BASE),
        NAMED(GET_VRING_BASE),      NAMED(SET_VRING_KICK),
        NAMED(SET_VRING_CALL),      NAMED(SET_VRING_ERR),
        NAMED(GET_PROTOCOL_FEATURES), NAMED(SET_PROTOCOL_FEATURES),
        NAMED(GET_QUEUE_NUM),       NAMED(SET_VRING_ENABLE),
        NAMED(SET_BACKEND_REQ_FD),  NAMED(GET_CONFIG),
        NAMED(SET_CONFIG),          NAMED(GET_INFLIGHT_FD),
        NAMED(SET_INFLIGHT_FD),     NAMED(GET_MAX_MEM_SLOTS),
        NAMED(ADD_MEM_REG),         NAMED(REM_MEM_REG),
        NAMED(SET_DEVICE_STATE_FD), NAMED(CHECK_DEVICE_STATE),
        NAMED(GET_SHMEM_CONFIG),    NAMED(SEND_RARP),
        NAMED(NET_SET_MTU),         NAMED(IOTLB_MSG),
        NAMED(SET_VRING_ENDIAN),    NAMED(CREATE_CRYPTO_SESSION),
        NAMED(CLOSE_CRYPTO_SESSION), NAMED(POSTCOPY_ADVISE),
        NAMED(POSTCOPY_LISTEN),     NAMED(POSTCOPY_END),
        NAMED(GPU_SET_SOCKET),      NAMED(RESET_DEVICE),
        NAMED(VRING_KICK),          NAMED(SET_STATUS),
        NAMED(GET_STATUS),          NAMED(GET_SHARED_OBJECT),
        NAMED(GET_VRING_BASE_SKIP_DRAIN),
    };
    size_t named = 0;
    for (size_t i = 0; i < LENGTH(table); i++) {
        assert_non_null(vuf_request_name(table[i].number));
        assert_string_equal(vuf_request_name(table[i].number), table[i].name);
    }
    for (uint32_t number = 0; number < 1000; number++) {
        named += vuf_request_name(number) != NULL;
    }
    assert_int_equal(named, LENGTH(table)); /* the others are never sent */
    assert_null(vuf_request_name(UINT32_MAX));
}

static void protocol_features_have_their_names(void **state)
{
    (void)state;
    static const char *const names[] = {
        "MQ", "LOG_SHMFD", "RARP", "REPLY_ACK", "MTU", "BACKEND_REQ", "CROSS_ENDIAN",
        "CRYPTO_SESSION", "PAGEFAULT", "CONFIG", "BACKEND_SEND_FD", "HOST_NOTIFIER",
        "INFLIGHT_SHMFD", "RESET_DEVICE", "INBAND_NOTIFICATIONS", "CONFIGURE_MEM_SLOTS", "STATUS",
        "XEN_MMAP", "SHARED_OBJECT", "DEVICE_STATE", "GET_VRING_BASE_INFLIGHT", "GPA_ADDRESSES",
        "SHMEM", "GET_VRING_BASE_SKIP_DRAIN",
    };
    for (uint32_t bit = 0; bit < LENGTH(names); bit++) {
        assert_non_null(vuf_protocol_feature_name(bit));
        assert_string_equal(vuf_protocol_feature_name(bit), names[bit]);
    }
    assert_null(vuf_protocol_feature_name(LENGTH(names)));
    assert_null(vuf_protocol_feature_name(63));
    assert_null(vuf_protocol_feature_name(64));
    assert_null(vuf_protocol_feature_name(UINT32_MAX));
}

/* The numbers are those of Linux, and so are the names. */
static void virtio_features_have_their_names(void **state)
{
#define FEATURE(id, name) {id, name, #name}
    static const struct {
        uint32_t id, bit;
        const char *name;
    } table[] = {
        FEATURE(0, VIRTIO_F_NOTIFY_ON_EMPTY),
        FEATURE(0, VIRTIO_F_ANY_LAYOUT),
        FEATURE(0, VIRTIO_RING_F_INDIRECT_DESC),
        FEATURE(0, VIRTIO_RING_F_EVENT_IDX),
        FEATURE(0, VIRTIO_F_VERSION_1),
        FEATURE(0, VIRTIO_F_ACCESS_PLATFORM),
        FEATURE(0, VIRTIO_F_RING_PACKED),
        FEATURE(0, VIRTIO_F_IN_ORDER),
        FEATURE(0, VIRTIO_F_ORDER_PLATFORM),
        FEATURE(0, VIRTIO_F_SR_IOV),
        FEATURE(0, VIRTIO_F_RING_RESET),
        FEATURE(VIRTIO_ID_BLOCK, VIRTIO_F_VERSION_1),
        FEATURE(VIRTIO_ID_BLOCK, VIRTIO_BLK_F_SEG_MAX),
        FEATURE(VIRTIO_ID_BLOCK, VIRTIO_BLK_F_FLUSH),
        FEATURE(VIRTIO_ID_BLOCK, VIRTIO_BLK_F_WRITE_ZEROES),
        FEATURE(VIRTIO_ID_NET, VIRTIO_NET_F_MRG_RXBUF),
        FEATURE(VIRTIO_ID_NET, VIRTIO_NET_F_CTRL_VQ),
        FEATURE(VIRTIO_ID_NET, VIRTIO_NET_F_RSS),
        FEATURE(VIRTIO_ID_NET, VIRTIO_NET_F_SPEED_DUPLEX),
        FEATURE(VIRTIO_ID_SCSI, VIRTIO_SCSI_F_T10_PI),
        FEATURE(VIRTIO_ID_CONSOLE, VIRTIO_CONSOLE_F_MULTIPORT),
        FEATURE(VIRTIO_ID_VSOCK, VIRTIO_VSOCK_F_SEQPACKET),
        FEATURE(VIRTIO_ID_GPU, VIRTIO_GPU_F_CONTEXT_INIT),
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(table); i++) {
        const char *name = vuf_virtio_feature_name(table[i].id, table[i].bit);
        assert_non_null(name);
        assert_string_equal(name, table[i].name);
    }
    assert_null(vuf_virtio_feature_name(0, VIRTIO_BLK_F_FLUSH)); /* of which type? */
    assert_null(vuf_virtio_feature_name(VIRTIO_ID_BLOCK, 23));
    assert_null(vuf_virtio_feature_name(VIRTIO_ID_BLOCK, 64));
    assert_null(vuf_virtio_feature_name(UINT32_MAX, UINT32_MAX));
}

static void events_have_their_names(void **state)
{
    (void)state;
#define EVENT(name) {VUF_DEVICE_EVENT_##name, #name}
    const struct {
        uint32_t kind;
        const char *name;
    } table[] = {
        EVENT(NONE),        EVENT(CONNECTED), EVENT(LOST),          EVENT(RETRYING),
        EVENT(STALLED),     EVENT(RECOVERED), EVENT(APPLIED),       EVENT(CONFIG_CHANGED),
        EVENT(NEEDS_RESET), EVENT(UNFENCED),  EVENT(FENCED),        EVENT(NEEDS_FD),
        EVENT(PEERS_REFUSED), EVENT(CONFIG_REFUSED), EVENT(REFUSED), EVENT(CHANNEL_CLOSED), EVENT(CHANNEL_REFUSED),
        EVENT(IOTLB_REFUSED),
    };
#undef EVENT
    for (uint32_t kind = 0; kind < LENGTH(table); kind++) {
        assert_int_equal(table[kind].kind, kind);
        assert_string_equal(vuf_device_event_name(kind), table[kind].name);
    }
    for (uint32_t kind = LENGTH(table); kind < 1000; kind++) {
        assert_string_equal(vuf_device_event_name(kind), "unknown");
    }
    assert_string_equal(vuf_device_event_name(UINT32_MAX), "unknown");
}

static void what_is_served_has_a_name(void **state)
{
    (void)state;
    uint64_t served = vuf_supported_protocol_features();
    /* All that the specification names. */
    assert_true(served == BIT(VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN + 1) - 1);
    for (uint32_t bit = 0; bit < 64; bit++) {
        assert_true((served & BIT(bit)) == 0 || vuf_protocol_feature_name(bit) != NULL);
    }
}

static void *look_at_a_fresh_thread(void *argument)
{
    struct rig *rig = argument;
    struct vuf_error_info info = {.size = sizeof info, .code = 7, .ring = 7, .region = 7};
    bool fresh = vuf_last_error()[0] == '\0' && vuf_last_error_info(&info) == 0 && info.code == 0 &&
                 info.error_class == VUF_CLASS_NONE && info.request == 0 && info.ring == -1 &&
                 info.region == -1 && info.has_value == 0;
    ring_num(rig, UINT32_MAX); /* fails, in this thread alone */
    return fresh ? rig : NULL;
}

static void the_last_error_is_that_of_the_thread(void **state)
{
    struct rig *rig = *state;
    pthread_t thread;
    void *fresh;
    char before[512];
    assert_int_equal(vuf_client_set_vring_num(rig->client, 1, 0), -EINVAL);
    snprintf(before, sizeof before, "%s", vuf_last_error());
    assert_int_equal(pthread_create(&thread, NULL, look_at_a_fresh_thread, rig), 0);
    pthread_join(thread, &fresh);
    assert_non_null(fresh);
    assert_string_equal(vuf_last_error(), before);
    assert_int_equal(last_info().ring, 1);
}

static void a_success_does_not_clear_the_last_error(void **state)
{
    struct rig *rig = *state;
    char before[512];
    assert_int_equal(ring_num(rig, MAX_RINGS), -EINVAL);
    snprintf(before, sizeof before, "%s", vuf_last_error());
    assert_int_equal(ring_num(rig, 0), 0);
    assert_string_equal(vuf_last_error(), before);
    assert_int_equal(last_info().code, -EINVAL);
}

static void a_bad_info_is_itself_the_last_failure(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ring_num(rig, MAX_RINGS), -EINVAL);
    assert_int_equal(last_info().request, SET_VRING_NUM);
    assert_int_equal(vuf_last_error_info(NULL), -EINVAL);
    assert_int_equal(last_info().request, NO_REQUEST);
}

static void an_info_may_be_longer(void **state)
{
    struct rig *rig = *state;
    struct {
        struct vuf_error_info known;
        uint64_t tail;
    } longer = {.known = {.size = sizeof longer}, .tail = 7};
    assert_int_equal(ring_num(rig, MAX_RINGS), -EINVAL);
    assert_int_equal(vuf_last_error_info(&longer.known), 0);
    assert_int_equal(longer.known.size, sizeof longer);
    assert_int_equal(longer.known.ring, MAX_RINGS);
    assert_int_equal(longer.tail, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_a_text_and_a_class),
        cmocka_unit_test(the_codes_of_the_library_have_different_texts),
        cmocka_unit_test(any_number_has_a_text_but_no_class),
        cmocka_unit_test(the_version_is_that_of_the_header),
        cmocka_unit_test(requests_have_their_names),
        cmocka_unit_test(protocol_features_have_their_names),
        cmocka_unit_test(virtio_features_have_their_names),
        cmocka_unit_test(events_have_their_names),
        cmocka_unit_test(what_is_served_has_a_name),
        TEST(the_last_error_is_that_of_the_thread),
        TEST(a_success_does_not_clear_the_last_error),
        TEST(a_bad_info_is_itself_the_last_failure),
        TEST(an_info_may_be_longer),
    };
    return cmocka_run_group_tests_name("test_errors", tests, default_signals, NULL);
}
