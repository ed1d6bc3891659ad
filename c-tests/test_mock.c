/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The requests that no back-end at hand has a handler for, against the scripted
   one: it has a table of the protocol of its own, and writes down each message as
   it understands it. */
#include "harness.h"

#include <vhost_user_frontend.h>

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define BIT(n) (UINT64_C(1) << (n))
#define SCRIPT(...) ((const char *const[]){"-e", "device features +33 +3", __VA_ARGS__, NULL})

enum {
    PAGE = 4096,
    LOG_MS = 5000, /* for a line that must come */
    VERSION_1 = 32,
    CREATE_CIPHER = 0x2, /* VIRTIO_CRYPTO_CIPHER_CREATE_SESSION */
    CREATE_AKCIPHER = 0x404,
};

/* VIRTIO_NET_F_MTU and VIRTIO_F_ACCESS_PLATFORM are 3 and 33. */
#define FEATURES (BIT(VUF_F_PROTOCOL_FEATURES) | BIT(VERSION_1) | BIT(3) | BIT(33))
#define REPLY_ACK BIT(VUF_PROTOCOL_F_REPLY_ACK)
#define PROTOCOL_FEATURES                                                                          \
    (REPLY_ACK | BIT(VUF_PROTOCOL_F_RARP) | BIT(VUF_PROTOCOL_F_MTU) |                              \
     BIT(VUF_PROTOCOL_F_BACKEND_REQ) | BIT(VUF_PROTOCOL_F_CROSS_ENDIAN) |                          \
     BIT(VUF_PROTOCOL_F_CRYPTO_SESSION) | BIT(VUF_PROTOCOL_F_PAGEFAULT) |                          \
     BIT(VUF_PROTOCOL_F_INBAND_NOTIFICATIONS) | BIT(VUF_PROTOCOL_F_STATUS))

struct fixture {
    struct backend backend;
    struct vuf_client *client;
    int memory;
};

static void ok(int rc)
{
    if (rc != 0) {
        fail_msg("%d: %s", rc, vuf_last_error());
    }
}

static struct vuf_error_info last_info(void)
{
    struct vuf_error_info info = {.size = sizeof info};
    assert_int_equal(vuf_last_error_info(&info), 0);
    return info;
}

/* The next message that the back-end got: without its time, "> NAME field=...". */
static void expect(struct fixture *f, const char *wanted)
{
    char line[4096];
    do {
        if (!backend_log_next(&f->backend, line, sizeof line, LOG_MS)) {
            fail_msg("the back-end did not get: %s", wanted);
        }
    } while (strlen(line) < 12 || line[10] != '>');
    assert_string_equal(line + 12, wanted);
}

static void start_with(struct fixture *f, const char *const args[], uint64_t protocol_features)
{
    uint64_t offered;
    char line[4096];
    assert_int_equal(backend_start_mock(&f->backend, args), 0);
    ok(vuf_client_connect(f->backend.socket, NULL, &f->client));
    ok(vuf_client_get_features(f->client, &offered));
    ok(vuf_client_get_protocol_features(f->client, &offered));
    ok(vuf_client_set_protocol_features(f->client, protocol_features));
    ok(vuf_client_set_owner(f->client));
    ok(vuf_client_set_features(f->client, FEATURES));
    do {
        assert_true(backend_log_next(&f->backend, line, sizeof line, LOG_MS));
    } while (strstr(line, "> SET_FEATURES") == NULL);
}

static void start(struct fixture *f, const char *const args[])
{
    start_with(f, args, PROTOCOL_FEATURES);
}

static void stop(struct fixture *f)
{
    vuf_client_free(f->client);
    f->client = NULL;
    backend_stop(&f->backend);
}

static int set_up(void **state)
{
    struct fixture *f = test_calloc(1, sizeof *f);
    *state = f;
    f->memory = memfd_create("memory", MFD_CLOEXEC);
    return f->memory < 0 || ftruncate(f->memory, 16 * PAGE) != 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    stop(f);
    close(f->memory);
    test_free(f);
    return 0;
}

/* ---- requests that are acknowledged ---- */

static int send_rarp(struct fixture *f)
{
    return vuf_client_send_rarp(f->client, 0x563412005452);
}

static int net_set_mtu(struct fixture *f)
{
    return vuf_client_net_set_mtu(f->client, 9000);
}

static int update(struct fixture *f)
{
    const struct vuf_iotlb iotlb = {
        0x100001000, 0x2000, 0x7f0012345000, VUF_ACCESS_WO, VUF_IOTLB_UPDATE, {0}};
    return vuf_client_send_iotlb(f->client, &iotlb);
}

static int invalidate(struct fixture *f)
{
    const struct vuf_iotlb iotlb = {
        .iova = 1, .size = UINT64_MAX, .type = VUF_IOTLB_INVALIDATE};
    return vuf_client_send_iotlb(f->client, &iotlb);
}

static int set_vring_endian(struct fixture *f)
{
    return vuf_client_set_vring_endian(f->client, 1, VUF_VRING_BIG_ENDIAN);
}

static int close_crypto_session(struct fixture *f)
{
    return vuf_client_close_crypto_session(f->client, 0x102030405060708);
}

static int vring_kick(struct fixture *f)
{
    return vuf_client_vring_kick(f->client, 1);
}

static int set_status(struct fixture *f)
{
    return vuf_client_set_status(f->client, 0xff);
}

#define NAMED(request) #request, request

static const struct {
    const char *name;
    enum request request;
    int (*call)(struct fixture *);
    int ring;
    const char *line;
} requests[] = {
    {NAMED(SEND_RARP), send_rarp, -1, "SEND_RARP need-reply value=0x563412005452"},
    {NAMED(NET_SET_MTU), net_set_mtu, -1, "NET_SET_MTU need-reply value=9000"},
    {NAMED(IOTLB_MSG), update, -1,
     "IOTLB_MSG need-reply iova=0x100001000 iotlb-size=8192 uaddr=0x7f0012345000 perm=2 type=2"},
    {NAMED(IOTLB_MSG), invalidate, -1,
     "IOTLB_MSG need-reply iova=1 iotlb-size=0xffffffffffffffff uaddr=0 perm=0 type=3"},
    {NAMED(SET_VRING_ENDIAN), set_vring_endian, 1, "SET_VRING_ENDIAN need-reply index=1 num=1"},
    {NAMED(CLOSE_CRYPTO_SESSION), close_crypto_session, -1,
     "CLOSE_CRYPTO_SESSION need-reply value=0x102030405060708"},
    {NAMED(VRING_KICK), vring_kick, 1, "VRING_KICK need-reply index=1 num=0"},
    {NAMED(SET_STATUS), set_status, -1, "SET_STATUS need-reply value=255"},
};

static void every_request_arrives_as_it_was_meant(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT(NULL));
    for (size_t i = 0; i < LENGTH(requests); i++) {
        ok(requests[i].call(f));
        expect(f, requests[i].line);
    }
}

static void every_refusal_is_told(void **state)
{
    struct fixture *f = *state;
    start(f, SCRIPT("-e", "on SEND_RARP: refuse 5", "-e", "on NET_SET_MTU: refuse 5", "-e",
                    "on IOTLB_MSG: refuse 5", "-e", "on SET_VRING_ENDIAN: refuse 5", "-e",
                    "on CLOSE_CRYPTO_SESSION: refuse 5", "-e", "on VRING_KICK: refuse 5", "-e",
                    "on SET_STATUS: refuse 5"));
    for (size_t i = 0; i < LENGTH(requests); i++) {
        assert_int_equal(requests[i].call(f), VUF_E_NACK);
        struct vuf_error_info info = last_info();
        assert_int_equal(info.request, requests[i].request);
        assert_int_equal(info.ring, requests[i].ring);
        assert_true(info.has_value && info.value == 5);
        assert_non_null(strstr(vuf_last_error(), requests[i].name));
    }
}

/* Some have an answer in any case. */
static void a_status_is_asked_for_whatever_was_agreed(void **state)
{
    struct fixture *f = *state;
    start_with(f, SCRIPT("--mode", "dpdk", "-e", "device protocol-features +PAGEFAULT"),
               BIT(VUF_PROTOCOL_F_PAGEFAULT));
    int fd;
    ok(update(f));
    expect(f, "IOTLB_MSG need-reply iova=0x100001000 iotlb-size=8192 uaddr=0x7f0012345000 perm=2 "
              "type=2");
    ok(vuf_client_postcopy_advise(f->client, &fd));
    close(fd);
    ok(vuf_client_postcopy_listen(f->client));
    ok(vuf_client_postcopy_end(f->client));
    expect(f, "POSTCOPY_ADVISE");
    expect(f, "POSTCOPY_LISTEN need-reply");
    expect(f, "POSTCOPY_END need-reply");
}

/* ---- requests with an answer of their own ---- */

static void the_status_is_kept_by_the_back_end(void **state)
{
    struct fixture *f = *state;
    uint32_t status = 7;
    start(f, SCRIPT(NULL));
    ok(vuf_client_get_status(f->client, &status));
    assert_int_equal(status, 0);
    ok(vuf_client_set_status(f->client, 0x4f));
    ok(vuf_client_get_status(f->client, &status));
    assert_int_equal(status, 0x4f);
    expect(f, "GET_STATUS");
    expect(f, "SET_STATUS need-reply value=79");
    expect(f, "GET_STATUS");
}

static void a_status_of_more_than_8_bits_is_told(void **state)
{
    struct fixture *f = *state;
    uint32_t status = 7;
    start(f, SCRIPT("-e", "on GET_STATUS: reply 0x100"));
    assert_int_equal(vuf_client_get_status(f->client, &status), VUF_E_PROTOCOL);
    assert_true(last_info().value == 0x100);
    assert_int_equal(status, 7);
}

static void a_ring_is_left_as_it_stands(void **state)
{
    struct fixture *f = *state;
    const uint64_t wanted = BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD) | REPLY_ACK |
                            BIT(VUF_PROTOCOL_F_GET_VRING_BASE_INFLIGHT) |
                            BIT(VUF_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN);
    uint32_t base = 7;
    start_with(f,
               SCRIPT("-e", "device base 1=0x1234", "-e",
                      "device protocol-features +GET_VRING_BASE_INFLIGHT "
                      "+GET_VRING_BASE_SKIP_DRAIN"),
               wanted);
    ok(vuf_client_get_vring_base_skip_drain(f->client, 1, &base));
    assert_int_equal(base, 0x1234);
    expect(f, "GET_VRING_BASE_SKIP_DRAIN index=1 num=0");
}

static void crypto_sessions_are_numbered(void **state)
{
    struct fixture *f = *state;
    struct vuf_crypto_session cipher = {
        .size = sizeof cipher,
        .op_code = CREATE_CIPHER,
        .sym = {.cipher_alg = 3, .key_len = 16, .op_type = 1, .direction = 1, .key = "secret"},
    };
    struct vuf_crypto_session rsa = {
        .size = sizeof rsa,
        .op_code = CREATE_AKCIPHER,
        .asym = {.algo = 1, .key_type = 1, .key_len = VUF_MAX_ASYM_KEY},
    };
    uint64_t id = 7;
    memset(rsa.asym.key, 0x5a, sizeof rsa.asym.key);
    start(f, SCRIPT("-e", "on CREATE_CRYPTO_SESSION nth=3: refuse 22"));
    ok(vuf_client_create_crypto_session(f->client, &cipher, &id));
    assert_int_equal(id, 1);
    expect(f, "CREATE_CRYPTO_SESSION op=2 session=0");
    ok(vuf_client_create_crypto_session(f->client, &rsa, &id));
    assert_int_equal(id, 2);
    expect(f, "CREATE_CRYPTO_SESSION op=1028 session=0");
    assert_int_equal(vuf_client_create_crypto_session(f->client, &cipher, &id), VUF_E_NACK);
    assert_true(last_info().value == (uint64_t)-22);
    assert_int_equal(id, 2);
    expect(f, "CREATE_CRYPTO_SESSION op=2 session=0");
}

/* ---- memory ---- */

static void regions_of_xen_are_larger(void **state)
{
    struct fixture *f = *state;
    const uint64_t wanted =
        REPLY_ACK | BIT(VUF_PROTOCOL_F_XEN_MMAP) | BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
    const struct vuf_mem_region region = {
        .guest_addr = 0x100000,
        .size = 2 * PAGE,
        .user_addr = 0x200000,
        .mmap_offset = PAGE,
        .fd = f->memory,
        .xen_mmap_flags = VUF_XEN_MMAP_FOREIGN | VUF_XEN_MMAP_NO_ADVANCE_MAP,
        .xen_domid = 7,
    };
    start_with(f, SCRIPT("-e", "device protocol-features +XEN_MMAP"), wanted);
    ok(vuf_client_add_mem_region(f->client, &region));
    expect(f, "ADD_MEM_REG need-reply guest-addr=0x100000 region-size=8192 user-addr=0x200000 "
              "mmap-offset=4096 size=48 fds=1");
    ok(vuf_client_remove_mem_region(f->client, &region));
    expect(f, "REM_MEM_REG need-reply guest-addr=0x100000 region-size=8192 user-addr=0x200000 "
              "mmap-offset=4096 size=48");
    ok(vuf_client_set_mem_table(f->client, &region, 1));
    expect(f, "SET_MEM_TABLE need-reply regions=1 fds=1 [0x100000+0x2000@0x200000]");
}

static void a_postcopy_migration_from_its_beginning_to_its_end(void **state)
{
    struct fixture *f = *state;
    const struct vuf_mem_region regions[] = {
        {0x100000, PAGE, 0x200000, 0, .fd = f->memory},
        {0x300000, 2 * PAGE, 0x400000, PAGE, .fd = f->memory},
    };
    uint64_t bases[] = {7, 7, 7};
    uint32_t base = 7;
    int fd = 7, before;
    start(f, SCRIPT(NULL));
    before = count_fds();
    ok(vuf_client_postcopy_advise(f->client, &fd));
    expect(f, "POSTCOPY_ADVISE");
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(count_fds(), before + 1);
    ok(vuf_client_postcopy_listen(f->client));
    expect(f, "POSTCOPY_LISTEN need-reply");

    assert_int_equal(vuf_client_set_mem_table(f->client, regions, 2), VUF_E_STATE);
    assert_non_null(strstr(vuf_last_error(), "postcopy_set_mem_table"));
    ok(vuf_client_postcopy_set_mem_table(f->client, regions, 2, bases));
    expect(f, "SET_MEM_TABLE regions=2 fds=2 [0x100000+0x1000@0x200000] "
              "[0x300000+0x2000@0x400000]");
    assert_true(bases[0] == 0x7e0000000000 && bases[1] == 0x7e1000000000 && bases[2] == 7);
    assert_int_equal(vuf_client_set_vring_num(f->client, 0, 128), VUF_E_STATE);
    ok(vuf_client_postcopy_ack_mem_table(f->client));
    expect(f, "SET_MEM_TABLE regions=0");

    ok(vuf_client_set_vring_num(f->client, 0, 128));
    expect(f, "SET_VRING_NUM need-reply index=0 num=128");
    ok(vuf_client_get_vring_base(f->client, 0, VUF_TIMEOUT_DEFAULT, &base));
    expect(f, "GET_VRING_BASE index=0 num=0");
    ok(vuf_client_postcopy_end(f->client));
    expect(f, "POSTCOPY_END need-reply");
    ok(vuf_client_set_mem_table(f->client, regions, 1));
    close(fd);
    assert_int_equal(count_fds(), before);
}

static void a_back_end_without_page_faults_refuses(void **state)
{
    struct fixture *f = *state;
    int fd = 7;
    start(f, SCRIPT("-e", "on POSTCOPY_ADVISE nth=1: refuse", "-e",
                    "on POSTCOPY_LISTEN nth=1: refuse 3", "-e",
                    "on POSTCOPY_END nth=1: refuse 4"));
    assert_int_equal(vuf_client_postcopy_advise(f->client, &fd), VUF_E_NACK);
    assert_int_equal(last_info().request, POSTCOPY_ADVISE);
    assert_int_equal(fd, -1);
    ok(vuf_client_postcopy_advise(f->client, &fd));
    close(fd);
    assert_int_equal(vuf_client_postcopy_listen(f->client), VUF_E_NACK);
    assert_true(last_info().value == 3);
    assert_int_equal(vuf_client_postcopy_end(f->client), VUF_E_STATE);
    ok(vuf_client_postcopy_listen(f->client));
    assert_int_equal(vuf_client_postcopy_end(f->client), VUF_E_NACK);
    assert_true(last_info().value == 4);
    ok(vuf_client_postcopy_end(f->client));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_request_arrives_as_it_was_meant),
        TEST(every_refusal_is_told),
        TEST(a_status_is_asked_for_whatever_was_agreed),
        TEST(the_status_is_kept_by_the_back_end),
        TEST(a_status_of_more_than_8_bits_is_told),
        TEST(a_ring_is_left_as_it_stands),
        TEST(crypto_sessions_are_numbered),
        TEST(regions_of_xen_are_larger),
        TEST(a_postcopy_migration_from_its_beginning_to_its_end),
        TEST(a_back_end_without_page_faults_refuses),
    };
    return cmocka_run_group_tests_name("test_mock", tests, NULL, NULL);
}
