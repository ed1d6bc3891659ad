/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* virtiofsd: files read through the ring, and the state of the device moved from
   one instance to another. VUF_VIRTIOFSD names the program. */
#include "lifecycle.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_ids.h>
#include <linux/fuse.h>
#include <linux/virtio_fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HIGH_PRIORITY, REQUESTS, QUEUES };
enum { FILE_SIZE = 100000, STATE_SIZE = 1 << 16, MEM_SLOTS = 509, LEAST_FDS = 1024 };

#define TAG "shared"
#define NAME "some file"
#define REQUEST_ADDR DEVICE_BUFFERS
#define REPLY_ADDR (DEVICE_BUFFERS + 0x10000u)
#define ADDED_ADDR UINT64_C(0x80000000)

static const struct wanted wanted = {
    .protocol = BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_REPLY_ACK) |
                BIT(VUF_PROTOCOL_F_CONFIG) | BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
                BIT(VUF_PROTOCOL_F_DEVICE_STATE) | BIT(VUF_PROTOCOL_F_RESET_DEVICE) |
                BIT(VUF_PROTOCOL_F_BACKEND_REQ),
};

static uint8_t content[FILE_SIZE]; /* of the file */

/* ---- setting up ---- */

static void make_file(struct device *device)
{
    char path[200];
    snprintf(path, sizeof path, "%s/share", device->backend.dir);
    assert_int_equal(mkdir(path, 0700), 0);
    strcat(path, "/" NAME);
    for (size_t n = 0; n < sizeof content; n++) {
        content[n] = (uint8_t)(n * 31 + n / 251);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, sizeof content), sizeof content);
    close(fd);
}

static void start_tagged(struct device *device, bool tagged)
{
    char share[100];
    snprintf(share, sizeof share, "%s/share", device->backend.dir);
    device_run(device, (const char *[]){device_program("VUF_VIRTIOFSD"), "--socket-path",
                                        device->backend.socket, "--shared-dir", share,
                                        "--sandbox", "none", "--seccomp", "none",
                                        tagged ? "--tag" : NULL, TAG, NULL});
}

static void start_virtiofsd(struct device *device)
{
    start_tagged(device, true);
}

/* Runs the program, and connects; nothing is shared yet. */
static void run_virtiofsd(struct device *device)
{
    start_virtiofsd(device);
    device_connect(device, wanted);
}

static void share_and_start(struct device *device)
{
    device_share(device);
    device_start(device, QUEUES);
}

/* With much fewer descriptors it does not run, or opens no file. */
static void skip_if_limited(void)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < LEAST_FDS) {
        print_message("skipped: virtiofsd needs %d descriptors\n", LEAST_FDS);
        skip();
    }
}

static struct device *prepare(void **state)
{
    device_program("VUF_VIRTIOFSD");
    skip_if_limited();
    make_file(*state);
    return *state;
}

static struct device *begin(void **state)
{
    struct device *device = prepare(state);
    run_virtiofsd(device);
    share_and_start(device);
    return device;
}

/* Hangs up; the program then ends. */
static void finish(struct device *device)
{
    int status;
    device_disconnect(device);
    assert_true(backend_ended(&device->backend, WAIT_MS, &status));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(access(device->backend.socket, F_OK), -1);
}

/* ---- requests ---- */

struct question {
    uint32_t opcode;
    uint64_t nodeid;
    const void *args;
    uint32_t args_size;
    uint64_t reply_addr;  /* 0 for REPLY_ADDR */
    uint32_t reply_size;  /* room after the header */
};

struct answer {
    int error; /* 0 or negative */
    const void *data;
    uint32_t size; /* of the data */
};

static uint64_t unique;

static struct answer ask_at(struct device *device, struct question question, void *reply_at)
{
    uint64_t reply_addr = question.reply_addr != 0 ? question.reply_addr : REPLY_ADDR;
    uint8_t *to = device_at(device, REQUEST_ADDR);
    const struct fuse_in_header in = {
        .len = (uint32_t)sizeof in + question.args_size,
        .opcode = question.opcode,
        .unique = ++unique,
        .nodeid = question.nodeid,
        .uid = getuid(),
        .gid = getgid(),
        .pid = 1,
    };
    memcpy(to, &in, sizeof in);
    memcpy(to + sizeof in, question.args, question.args_size);
    const struct virtq_part parts[] = {
        {REQUEST_ADDR, in.len},
        {reply_addr, (uint32_t)sizeof(struct fuse_out_header) + question.reply_size},
    };
    memset(reply_at, 0xee, parts[1].len);
    uint32_t written = device_request(device, REQUESTS, parts, 1, 1);

    const struct fuse_out_header *out = reply_at;
    assert_int_equal(out->unique, unique);
    assert_int_equal(out->len, written);
    return (struct answer){out->error, out + 1, written - (uint32_t)sizeof *out};
}

static struct answer ask(struct device *device, struct question question)
{
    return ask_at(device, question, device_at(device, REPLY_ADDR));
}

/* An answer of the size that was asked for. */
static const void *ask_for(struct device *device, struct question question)
{
    struct answer answer = ask(device, question);
    assert_int_equal(answer.error, 0);
    assert_int_equal(answer.size, question.reply_size);
    return answer.data;
}

static void init(struct device *device)
{
    const struct fuse_init_in in = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = 0x20000,
    };
    const struct fuse_init_out *out =
        ask_for(device, (struct question){FUSE_INIT, 0, &in, sizeof in, 0, sizeof *out});
    assert_int_equal(out->major, FUSE_KERNEL_VERSION);
    assert_true(out->max_write >= 4096);
}

static uint64_t look_up(struct device *device, const char *name)
{
    const struct fuse_entry_out *out =
        ask_for(device, (struct question){FUSE_LOOKUP, FUSE_ROOT_ID, name,
                                         (uint32_t)strlen(name) + 1, 0, sizeof *out});
    assert_int_equal(out->attr.size, FILE_SIZE);
    assert_true(S_ISREG(out->attr.mode));
    assert_true(out->nodeid > FUSE_ROOT_ID);
    return out->nodeid;
}

struct opened {
    uint64_t node, handle;
};

static struct opened open_file(struct device *device)
{
    uint64_t node = look_up(device, NAME);
    const struct fuse_open_in in = {.flags = O_RDONLY};
    const struct fuse_open_out *out =
        ask_for(device, (struct question){FUSE_OPEN, node, &in, sizeof in, 0, sizeof *out});
    return (struct opened){node, out->fh};
}

static struct question read_question(const struct fuse_read_in *in, struct opened file)
{
    return (struct question){FUSE_READ, file.node, in, sizeof *in, 0, in->size};
}

static void assert_file_reads(struct device *device, struct opened file)
{
    enum { AT_ONCE = 30000 }; /* and less at the end */
    for (uint32_t at = 0; at < FILE_SIZE; at += AT_ONCE) {
        const struct fuse_read_in in = {.fh = file.handle, .offset = at, .size = AT_ONCE};
        struct answer answer = ask(device, read_question(&in, file));
        assert_int_equal(answer.error, 0);
        assert_int_equal(answer.size, FILE_SIZE - at < AT_ONCE ? FILE_SIZE - at : AT_ONCE);
        assert_memory_equal(answer.data, content + at, answer.size);
    }
}

/* ---- the state of the device ---- */

static uint8_t device_state[STATE_SIZE];

/* Begins a transfer; the back-end keeps its end of the pipe alone. */
static int begin_transfer(struct device *device, uint32_t direction)
{
    bool save = direction == VUF_TRANSFER_DIRECTION_SAVE;
    int ends[2], other = 0;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    int rc = vuf_client_set_device_state_fd(device->client, direction,
                                            VUF_TRANSFER_PHASE_STOPPED, ends[save], &other);
    close(ends[save]);
    if (rc != 0) {
        close(ends[!save]);
    }
    assert_ok(device, rc);
    assert_int_equal(other, -1);
    return ends[!save];
}

static size_t save_state(struct device *device)
{
    int fd = begin_transfer(device, VUF_TRANSFER_DIRECTION_SAVE);
    size_t size = 0;
    ssize_t got;
    while ((got = read(fd, device_state + size, sizeof device_state - size)) > 0) {
        size += (size_t)got;
    }
    close(fd);
    assert_int_equal(got, 0);
    assert_ok(device, vuf_client_check_device_state(device->client));
    assert_true(size > 0 && size < sizeof device_state);
    return size;
}

static void send_state(struct device *device, size_t size)
{
    int fd = begin_transfer(device, VUF_TRANSFER_DIRECTION_LOAD);
    ssize_t sent = write(fd, device_state, size);
    close(fd);
    assert_int_equal(sent, size);
}

/* ---- tests ---- */

static void test_config(void **state)
{
    struct device *device = begin(state);
    struct virtio_fs_config config;
    uint64_t queues, slots;
    assert_ok(device, vuf_client_get_config(device->client, 0, 0, &config, sizeof config));
    assert_memory_equal(config.tag, TAG "\0", sizeof TAG + 1);
    assert_int_equal(config.num_request_queues, QUEUES - 1);
    assert_ok(device, vuf_client_get_queue_num(device->client, &queues));
    assert_int_equal(queues, QUEUES);
    assert_ok(device, vuf_client_get_max_mem_slots(device->client, &slots));
    assert_int_equal(slots, MEM_SLOTS);
    device_stop(device);
    finish(device);
}

static void test_file(void **state)
{
    struct device *device = begin(state);
    init(device);
    assert_file_reads(device, open_file(device));
    static const char missing[] = "no such file";
    struct answer answer =
        ask(device, (struct question){FUSE_LOOKUP, FUSE_ROOT_ID, missing, sizeof missing, 0,
                                     sizeof(struct fuse_entry_out)});
    assert_int_equal(answer.error, -ENOENT);
    device_stop(device);
    finish(device);
}

/* Stopped, given new descriptors and started again in the middle of a session. */
static void test_restart(void **state)
{
    struct device *device = begin(state);
    init(device);
    struct opened file = open_file(device);
    for (unsigned n = 0; n < 10; n++) {
        device_stop_queue(device, REQUESTS);
        device_restart_queue(device, REQUESTS);
        assert_file_reads(device, file);
    }
    device_stop(device);
    finish(device);
}

/* The back-end writes to memory that it got while the ring ran. */
static void test_added_region(void **state)
{
    struct device *device = begin(state);
    struct guest_memory added;
    init(device);
    struct opened file = open_file(device);
    assert_int_equal(guest_memory_create(&added, ADDED_ADDR, 0x10000), 0);
    struct vuf_mem_region region = guest_memory_region(&added);
    int rc = vuf_client_add_mem_region(device->client, &region);
    if (rc == 0) {
        const struct fuse_read_in in = {.fh = file.handle, .offset = 5, .size = 4096};
        struct question question = read_question(&in, file);
        question.reply_addr = ADDED_ADDR + 0x3000;
        struct answer answer =
            ask_at(device, question, guest_memory_at(&added, question.reply_addr));
        assert_int_equal(answer.error, 0);
        assert_int_equal(answer.size, in.size);
        assert_memory_equal(answer.data, content + in.offset, in.size);
        rc = vuf_client_remove_mem_region(device->client, &region);
    }
    guest_memory_destroy(&added);
    assert_ok(device, rc);
    assert_file_reads(device, file);
    device_stop(device);
    finish(device);
}

/* What the first instance had open, the second reads from, never asked to. */
static void test_state_moves(void **state)
{
    struct device *device = begin(state);
    init(device);
    struct opened file = open_file(device);
    assert_file_reads(device, file);
    device_stop(device);
    size_t size = save_state(device);
    finish(device);

    run_virtiofsd(device);
    send_state(device, size);
    assert_ok(device, vuf_client_check_device_state(device->client));
    share_and_start(device);
    assert_file_reads(device, file);
    device_stop(device);
    finish(device);
}

/* The proof that the test above needs the state. */
static void test_without_state_nothing_is_open(void **state)
{
    struct device *device = begin(state);
    init(device);
    struct opened file = open_file(device);
    device_stop(device);
    finish(device);

    run_virtiofsd(device);
    share_and_start(device);
    const struct fuse_read_in in = {.fh = file.handle, .size = 4096};
    assert_int_equal(ask(device, read_question(&in, file)).error, -EBADF);
    device_stop(device);
    finish(device);
}

/* A driver that is loaded again: the session and what it had open are gone, the
   files are not. The channel is open all the time; there is nothing to say on it. */
static void test_reset(void **state)
{
    static const struct vuf_backend_ops ops = {.size = sizeof ops};
    struct device *device = begin(state);
    device_open_channel(device, &ops, NULL);
    for (unsigned n = 0; n < 3; n++) {
        init(device);
        struct opened file = open_file(device);
        assert_file_reads(device, file);
        device_reset(device);
        const struct fuse_read_in in = {.fh = file.handle, .size = 4096};
        assert_int_equal(ask(device, read_question(&in, file)).error, -EBADF);
    }
    init(device);
    assert_file_reads(device, open_file(device));
    device_stop(device);
    assert_int_equal(device->ended, 0);
    finish(device);
}

/* State that was cut short must not be taken for whole. */
static void test_state_is_checked(void **state)
{
    struct device *device = begin(state);
    init(device);
    open_file(device);
    device_stop(device);
    size_t size = save_state(device);
    finish(device);

    run_virtiofsd(device);
    send_state(device, size / 2);
    assert_int_equal(vuf_client_check_device_state(device->client), VUF_E_NACK);
}

/* ---- on the device layer ---- */

/* A file opened, and read to where it says. */
static void work(struct device *device, uint64_t at)
{
    struct opened file = open_file(device);
    assert_file_reads(device, file);
    const struct fuse_read_in in = {.fh = file.handle, .offset = 5, .size = 4096};
    struct question question = read_question(&in, file);
    question.reply_addr = at + 0x3000;
    struct answer answer = ask_at(device, question, device_at(device, question.reply_addr));
    assert_int_equal(answer.error, 0);
    assert_int_equal(answer.size, in.size);
    assert_memory_equal(answer.data, content + in.offset, in.size);
}

static const struct vuf_backend_ops no_ops = {.size = sizeof no_ops};

static const struct life life = {
    .run = start_virtiofsd,
    .greet = init,
    .work = work,
    .queues = QUEUES,
    .protocol = BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_CONFIG) |
                BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | BIT(VUF_PROTOCOL_F_RESET_DEVICE) |
                BIT(VUF_PROTOCOL_F_BACKEND_REQ),
    .protocol_absent = BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD) | BIT(VUF_PROTOCOL_F_STATUS),
    .options.config_size = sizeof(struct virtio_fs_config),
    .options.backend_ops = &no_ops,
    .serves_one = true,
};

/* It ends once the device is gone. */
static void free_and_finish(struct device *device)
{
    life_stop(device, &life);
    finish(device);
}

static void device_is_stopped_and_resumed(void **state)
{
    struct device *device = prepare(state);
    life_check_stops(device, &life);
    free_and_finish(device);
}

static void device_is_reset(void **state)
{
    struct device *device = prepare(state);
    life_check_resets(device, &life, RESET_DEVICE);
    free_and_finish(device);
}

static void device_gets_memory_while_it_runs(void **state)
{
    struct device *device = prepare(state);
    life_check_memory(device, &life);
    assert_int_equal(life_sent(device, SET_MEM_TABLE), 0);
    assert_int_equal(life_info(device).max_mem_slots, MEM_SLOTS);
    free_and_finish(device);
}

static void device_waits_for_a_reset_after_a_kill(void **state)
{
    struct device *device = prepare(state);
    struct life by_type = life;
    by_type.options.device_id = VIRTIO_ID_FS;
    life_check_kills(device, &by_type, VUF_RECOVERY_NEEDS_RESET);
    free_and_finish(device);
}

/* The ring goes on; the session of the file system does not, and begins anew. */
static void device_goes_on_after_a_kill(void **state)
{
    struct device *device = prepare(state);
    struct life again = life;
    again.options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    life_check_kills(device, &again, VUF_RECOVERY_REPLAY_FROM_USED);
    struct opened file = open_file(device);
    backend_kill(&device->backend);
    life_until(device, VUF_DEVICE_EVENT_LOST);
    again.run(device);
    life_until(device, VUF_DEVICE_EVENT_RECOVERED);
    const struct fuse_read_in in = {.fh = file.handle, .size = 4096};
    assert_int_equal(ask(device, read_question(&in, file)).error, -EBADF);
    free_and_finish(device);
}

/* It serves one connection, and ends: somebody has to start it again. */
static void device_gets_another_instance(void **state)
{
    struct device *device = prepare(state);
    life_check_hangs_up(device, &life);
    free_and_finish(device);
}

static void device_has_its_configuration(void **state)
{
    struct device *device = prepare(state);
    struct virtio_fs_config config;
    life_begin(device, &life);
    for (unsigned lost = 0; lost < 2; lost++) {
        assert_ok(device,
                  vuf_device_read_config(device->vuf, 0, &config, sizeof config, NULL));
        assert_memory_equal(config.tag, TAG "\0", sizeof TAG + 1);
        assert_int_equal(config.num_request_queues, QUEUES - 1);
        /* Also while there is no back-end. */
        if (lost == 0) {
            backend_kill(&device->backend);
            life_until(device, VUF_DEVICE_EVENT_LOST);
        }
    }
}

/* Without a tag it has no configuration space. The one that is refused ends, as it has
   had its connection; one that fits is taken later. */
static void device_refuses_one_without_a_tag(void **state)
{
    struct device *device = prepare(state);
    struct life again = life;
    int status;
    again.options.slow_delay_ms = 100;
    life_begin(device, &again);
    backend_kill(&device->backend);
    life_until(device, VUF_DEVICE_EVENT_LOST);
    start_tagged(device, false);
    const struct vuf_device_event refused = life_until(device, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(refused.code, VUF_E_NOT_NEGOTIATED);
    assert_non_null(strstr(refused.text, "CONFIG"));
    assert_true(backend_ended(&device->backend, WAIT_MS, &status));
    start_virtiofsd(device);
    life_until(device, VUF_DEVICE_EVENT_CONNECTED);
    life_reset(device, &again);
    life_boot(device, &again);
    work(device, DEVICE_BUFFERS);
    free_and_finish(device);
}

static void device_waits_for_it_to_answer(void **state)
{
    life_check_freezes(prepare(state), &life);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_config),
        DEVICE_TEST(test_file),
        DEVICE_TEST(test_restart),
        DEVICE_TEST(test_added_region),
        DEVICE_TEST(test_state_moves),
        DEVICE_TEST(test_reset),
        DEVICE_TEST(test_without_state_nothing_is_open),
        DEVICE_TEST(test_state_is_checked),
        DEVICE_TEST(device_is_stopped_and_resumed),
        DEVICE_TEST(device_is_reset),
        DEVICE_TEST(device_gets_memory_while_it_runs),
        DEVICE_TEST(device_waits_for_a_reset_after_a_kill),
        DEVICE_TEST(device_goes_on_after_a_kill),
        DEVICE_TEST(device_gets_another_instance),
        DEVICE_TEST(device_has_its_configuration),
        DEVICE_TEST(device_waits_for_it_to_answer),
        DEVICE_TEST(device_refuses_one_without_a_tag),
    };
    return cmocka_run_group_tests_name("virtiofsd", tests, NULL, NULL);
}
