/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* vhost-device-scsi, which has no REPLY_ACK: SCSI commands, and the data compared
   with the image. VUF_VHOST_DEVICE_SCSI names the program. */
#include "lifecycle.h"

#include <endian.h>
#include <fcntl.h>
#include <linux/virtio_scsi.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL, EVENTS, REQUESTS, QUEUES };
enum { BLOCK_SIZE = 512, BLOCKS = 2048, INQUIRY_SIZE = 96 };

/* Commands and states of the SCSI specifications. */
enum { TEST_UNIT_READY = 0x00, INQUIRY = 0x12, READ_CAPACITY = 0x25, READ_10 = 0x28 };
enum { NO_SUCH_COMMAND = 0xc1 };
enum { GOOD = 0, CHECK_CONDITION = 2 };
enum { SENSE_FIXED = 0x70, ILLEGAL_REQUEST = 5 };

#define COMMAND_ADDR DEVICE_BUFFERS
#define RESPONSE_ADDR (DEVICE_BUFFERS + 0x1000u)
static uint64_t data_addr;

static uint8_t image[BLOCKS * BLOCK_SIZE];

static void make_image(struct device *device)
{
    for (size_t n = 0; n < sizeof image; n++) {
        image[n] = (uint8_t)(n * 7 + n / BLOCK_SIZE * 13);
    }
    int fd = open(device->backend.disk, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, image, sizeof image), sizeof image);
    close(fd);
}

static struct device *prepare(void **state)
{
    device_program("VUF_VHOST_DEVICE_SCSI");
    make_image(*state);
    data_addr = DEVICE_BUFFERS + 0x2000u;
    return *state;
}

static void run(struct device *device)
{
    device_run(device, (const char *[]){device_program("VUF_VHOST_DEVICE_SCSI"), "-r", "-s",
                                        device->backend.socket, device->backend.disk, NULL});
}

static struct device *begin(void **state)
{
    struct device *device = prepare(state);
    run(device);
    device_connect(device, (struct wanted){
                               .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG),
                               .protocol_absent = BIT(VUF_PROTOCOL_F_REPLY_ACK),
                           });
    uint64_t queues;
    assert_ok(device, vuf_client_get_queue_num(device->client, &queues));
    assert_int_equal(queues, QUEUES);
    device_share(device);
    device_start(device, QUEUES);
    return device;
}

/* Hangs up; the program then ends. */
static void hang_up(struct device *device)
{
    int status;
    device_disconnect(device);
    assert_true(backend_ended(&device->backend, WAIT_MS, &status));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void finish(struct device *device)
{
    device_stop(device);
    hang_up(device);
}

/* Sends a command to the first target; size is the room for its data. */
static const struct virtio_scsi_cmd_resp *command(struct device *device, const void *cdb,
                                                  size_t cdb_size, uint32_t size)
{
    struct virtio_scsi_cmd_req *request = device_at(device, COMMAND_ADDR);
    struct virtio_scsi_cmd_resp *response = device_at(device, RESPONSE_ADDR);
    *request = (struct virtio_scsi_cmd_req){.lun = {1, 0, 0x40, 0}, .tag = htole64(77)};
    memcpy(request->cdb, cdb, cdb_size);
    memset(response, 0xee, sizeof *response);
    memset(device_at(device, data_addr), 0xee, size);
    const struct virtq_part parts[] = {
        {COMMAND_ADDR, sizeof *request},
        {RESPONSE_ADDR, sizeof *response},
        {data_addr, size},
    };
    device_request(device, REQUESTS, parts, 1, size > 0 ? 2 : 1);
    assert_int_equal(response->response, VIRTIO_SCSI_S_OK);
    return response;
}

/* A command that succeeds and fills all the room. */
static const uint8_t *data_of(struct device *device, const void *cdb, size_t cdb_size,
                              uint32_t size)
{
    const struct virtio_scsi_cmd_resp *response = command(device, cdb, cdb_size, size);
    assert_int_equal(response->status, GOOD);
    assert_int_equal(response->sense_len, 0);
    assert_int_equal(le32toh(response->resid), 0);
    return device_at(device, data_addr);
}

static void assert_blocks_read(struct device *device, uint32_t first, uint8_t blocks)
{
    const uint8_t cdb[10] = {
        READ_10,       0, (uint8_t)(first >> 24), (uint8_t)(first >> 16), (uint8_t)(first >> 8),
        (uint8_t)first, 0, 0,                      blocks,
    };
    uint32_t size = blocks * (uint32_t)BLOCK_SIZE;
    assert_memory_equal(data_of(device, cdb, sizeof cdb, size), image + first * BLOCK_SIZE, size);
}

static void test_config(void **state)
{
    struct device *device = begin(state);
    struct virtio_scsi_config config;
    assert_ok(device, vuf_client_get_config(device->client, 0, 0, &config, sizeof config));
    assert_int_equal(le32toh(config.num_queues), QUEUES - REQUESTS);
    assert_int_equal(le32toh(config.cdb_size), VIRTIO_SCSI_CDB_SIZE);
    assert_int_equal(le32toh(config.sense_size), VIRTIO_SCSI_SENSE_SIZE);
    finish(device);
}

static void test_inquiry(void **state)
{
    struct device *device = begin(state);
    const uint8_t cdb[6] = {INQUIRY, 0, 0, 0, INQUIRY_SIZE};
    const uint8_t *data = data_of(device, cdb, sizeof cdb, INQUIRY_SIZE);
    assert_int_equal(data[0], 0); /* a disk, and it is there */
    assert_int_equal(data[2], 7); /* SPC-5 */
    assert_int_equal(data[4], INQUIRY_SIZE - 5);
    assert_memory_equal(data + 8, "rust-vmm" "vhost-user-scsi ", 24);
    finish(device);
}

static void test_capacity(void **state)
{
    struct device *device = begin(state);
    uint32_t numbers[2];
    memcpy(numbers, data_of(device, (const uint8_t[10]){READ_CAPACITY}, 10, sizeof numbers),
           sizeof numbers);
    assert_int_equal(be32toh(numbers[0]), BLOCKS - 1);
    assert_int_equal(be32toh(numbers[1]), BLOCK_SIZE);
    finish(device);
}

static void test_data(void **state)
{
    struct device *device = begin(state);
    assert_blocks_read(device, 0, 1);
    assert_blocks_read(device, 1, 8);
    assert_blocks_read(device, BLOCKS - 255, 255);
    finish(device);
}

static void test_restart(void **state)
{
    struct device *device = begin(state);
    for (uint32_t n = 0; n < 20; n++) {
        assert_blocks_read(device, n, 2);
        device_stop_queue(device, REQUESTS);
        device_restart_queue(device, REQUESTS);
    }
    finish(device);
}

/* The device says no, and the ring goes on. */
static void test_unknown_command(void **state)
{
    struct device *device = begin(state);
    const struct virtio_scsi_cmd_resp *response =
        command(device, (const uint8_t[6]){NO_SUCH_COMMAND}, 6, 0);
    assert_int_equal(response->status, CHECK_CONDITION);
    assert_true(le32toh(response->sense_len) >= 3);
    assert_int_equal(response->sense[0], SENSE_FIXED);
    assert_int_equal(response->sense[2], ILLEGAL_REQUEST);
    response = command(device, (const uint8_t[6]){TEST_UNIT_READY}, 6, 0);
    assert_int_equal(response->status, GOOD);
    finish(device);
}

/* ---- on the device layer ---- */

static void work(struct device *device, uint64_t at)
{
    data_addr = at + 0x2000u; /* behind command and response */
    assert_blocks_read(device, 0, 1);
    assert_blocks_read(device, 77, 50);
}

static const struct life life = {
    .run = run,
    .work = work,
    .queues = QUEUES,
    .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG),
    .protocol_absent = BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_RESET_DEVICE) |
                       BIT(VUF_PROTOCOL_F_STATUS) | BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
    .options.config_size = sizeof(struct virtio_scsi_config),
    .serves_one = true,
};

static void device_is_stopped_and_resumed(void **state)
{
    struct device *device = prepare(state);
    life_check_stops(device, &life);
    life_stop(device, &life);
    hang_up(device);
}

static void device_gets_memory_while_it_runs(void **state)
{
    struct device *device = prepare(state);
    life_check_memory(device, &life);
    life_stop(device, &life);
    hang_up(device);
}

/* Version 0.1 (of vhost-user-backend, 0.10) never reads a used index, and begins with
   0: rings cannot go on, nor begin anew on the same connection. */
static void device_waits_for_a_reset_after_a_kill(void **state)
{
    struct device *device = prepare(state);
    struct life strict = life;
    strict.options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;
    life_check_kills(device, &strict, VUF_RECOVERY_NEEDS_RESET);
    life_stop(device, &strict);
    hang_up(device);
}

/* It serves one connection, and ends: somebody has to start it again. */
static void device_is_reset_on_another_instance(void **state)
{
    struct device *device = prepare(state);
    life_check_hangs_up(device, &life);
    life_stop(device, &life);
    hang_up(device);
}

static void device_has_its_configuration(void **state)
{
    struct device *device = prepare(state);
    struct virtio_scsi_config config;
    life_begin(device, &life);
    assert_ok(device, vuf_device_read_config(device->vuf, 0, &config, sizeof config, NULL));
    assert_int_equal(le32toh(config.num_queues), QUEUES - REQUESTS);
    assert_int_equal(le32toh(config.cdb_size), VIRTIO_SCSI_CDB_SIZE);
    assert_int_equal(le32toh(config.sense_size), VIRTIO_SCSI_SENSE_SIZE);
}

static void device_waits_for_it_to_answer(void **state)
{
    life_check_freezes(prepare(state), &life);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_config),  DEVICE_TEST(test_inquiry), DEVICE_TEST(test_capacity),
        DEVICE_TEST(test_data),    DEVICE_TEST(test_restart), DEVICE_TEST(test_unknown_command),
        DEVICE_TEST(device_is_stopped_and_resumed),
        DEVICE_TEST(device_gets_memory_while_it_runs),
        DEVICE_TEST(device_waits_for_a_reset_after_a_kill),
        DEVICE_TEST(device_is_reset_on_another_instance),
        DEVICE_TEST(device_has_its_configuration),
        DEVICE_TEST(device_waits_for_it_to_answer),
    };
    return cmocka_run_group_tests_name("vhost-device-scsi", tests, NULL, NULL);
}
