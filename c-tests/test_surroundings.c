/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Processes in which little is as usual: closed standard descriptors, another directory
   after the device was opened, no TMPDIR, no memory left,
   threads with a small stack. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIRST_FREE = 3 };

struct place {
    struct backend backend;
    int fds, saved_input, directory;
};

static int set_up_mock(void **state)
{
    static struct place place;
    place = (struct place){.fds = count_fds()};
    *state = &place;
    place.directory = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    place.saved_input = fcntl(0, F_DUPFD_CLOEXEC, 100);
    return backend_start_mock(&place.backend,
                              (const char *const[]){"-e", "device features +33", "-e",
                                                    "device protocol-features +INFLIGHT_SHMFD",
                                                    NULL});
}

static int tear_down_mock(void **state)
{
    struct place *place = *state;
    int moved = fchdir(place->directory);
    dup2(place->saved_input, 0);
    backend_stop(&place->backend);
    close(place->saved_input);
    close(place->directory);
    return moved != 0 || count_fds() != place->fds;
}

#define MOCK_TEST(name) cmocka_unit_test_setup_teardown(name, set_up_mock, tear_down_mock)

static bool input_is_closed(void)
{
    return fcntl(0, F_GETFD) == -1 && errno == EBADF;
}

/* It can be passed back to the library, and has no number of a standard stream. */
#define assert_above_standard(fd)                                                                  \
    do {                                                                                           \
        assert_true((fd) >= FIRST_FREE);                                                           \
        assert_true(input_is_closed());                                                            \
    } while (0)

/* ---- standard input is closed ---- */

/* 0 would be refused in a struct as a field that was not set; and who reads standard input
   would read guest memory, or a socket. */
static void no_descriptor_is_standard_input(void **state)
{
    struct place *place = *state;
    const struct vuf_device_options options = {.size = sizeof options};
    const struct vuf_backend_process_options own = {
        .size = sizeof own, .flags = VUF_BACKEND_PROCESS_OWN_ARGUMENTS};
    const struct vuf_backend_ops ops = {.size = sizeof ops};
    struct vuf_device *device;
    struct vuf_client *client;
    struct vuf_backend_process *process;
    struct vuf_inflight inflight;
    uint64_t features, protocol;
    int memory = -1, buffer = -1, ends[2], fd = -1;
    close(0);
    assert_ok(vuf_memfd_create("guest", 16 * PAGE, 0, 0, &memory));
    assert_above_standard(memory);
    const struct vuf_mem_region region = {.size = 16 * PAGE, .fd = memory};

    assert_ok(vuf_device_open(place->backend.socket, &options, &device));
    assert_above_standard(vuf_device_get_fd(device));
    assert_ok(vuf_device_set_memory(device, &region, 1, 0));
    assert_ok(vuf_device_wait(device, PEER_MS));
    assert_true(input_is_closed());
    vuf_device_free(device);

    assert_ok(vuf_client_connect(place->backend.socket, NULL, &client));
    assert_above_standard(vuf_client_get_fd(client));
    assert_ok(vuf_client_get_features(client, &features));
    assert_ok(vuf_client_get_protocol_features(client, &protocol));
    protocol &= BIT(VUF_PROTOCOL_F_REPLY_ACK) | BIT(VUF_PROTOCOL_F_BACKEND_REQ) |
                BIT(VUF_PROTOCOL_F_INFLIGHT_SHMFD);
    assert_ok(vuf_client_set_protocol_features(client, protocol));
    assert_ok(vuf_client_set_owner(client));
    assert_ok(vuf_client_set_features(client, features));
    assert_ok(vuf_client_open_backend_channel(client, &ops, NULL));
    assert_above_standard(vuf_client_backend_fd(client));
    assert_ok(vuf_client_set_mem_table(client, &region, 1));
    assert_ok(vuf_client_get_inflight_fd(client, 1, 64, &inflight, &buffer));
    assert_above_standard(buffer); /* one that was received */
    const struct vuf_op op = {
        .request = VUF_REQUEST_SET_INFLIGHT_FD, .fd = buffer, .inflight = &inflight};
    assert_ok(vuf_client_submit(client, &op, 1, 0, VUF_TIMEOUT_DEFAULT, NULL));
    close(buffer);
    vuf_client_free(client);

    assert_ok(vuf_backend_process_start("/bin/true", &own, &process));
    assert_above_standard(vuf_backend_process_get_fd(process));
    assert_ok(vuf_backend_process_take_socket(process, &fd));
    assert_above_standard(fd);
    close(fd);
    vuf_backend_process_free(process);

    /* A socket that the caller gives away does not stay there either. */
    make_pair(ends);
    assert_int_equal(ends[0], 0);
    assert_ok(vuf_client_from_fd(ends[0], NULL, &client));
    assert_above_standard(vuf_client_get_fd(client));
    vuf_client_free(client);
    close(ends[1]);
    close(memory);
}

/* ---- another directory ---- */

static void await(struct vuf_device *device, uint32_t kind)
{
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline;) {
        struct vuf_device_event event = {.size = sizeof event};
        struct pollfd item = {.fd = vuf_device_get_fd(device), .events = POLLIN};
        assert_ok(vuf_device_process(device, &event));
        if (event.kind == kind) {
            return;
        }
        if (event.kind == VUF_DEVICE_EVENT_NONE) {
            poll(&item, 1, 100);
        }
    }
    fail_msg("no event %u", kind);
}

/* As a daemon changes to the root directory. */
static void a_relative_path_outlives_the_directory(void **state)
{
    struct place *place = *state;
    const struct vuf_device_options options = {
        .size = sizeof options, .first_delay_ms = 20, .max_delay_ms = 100};
    struct vuf_device *device;
    assert_return_code(chdir(place->backend.dir), errno);
    const char *name = strrchr(place->backend.socket, '/') + 1;
    assert_ok(vuf_device_open(name, &options, &device));
    await(device, VUF_DEVICE_EVENT_CONNECTED);
    assert_return_code(fchdir(place->directory), errno);
    backend_kill(&place->backend);
    await(device, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(backend_again_mock(&place->backend, NULL), 0);
    await(device, VUF_DEVICE_EVENT_CONNECTED);
    vuf_device_free(device);
}

static void a_relative_path_to_listen_at_is_removed_from_elsewhere(void **state)
{
    struct place *place = *state;
    const struct vuf_device_options options = {.size = sizeof options};
    struct vuf_device *device;
    char path[96];
    snprintf(path, sizeof path, "%.63s/listen", place->backend.dir);
    assert_return_code(chdir(place->backend.dir), errno);
    assert_ok(vuf_device_listen("listen", 0600, &options, &device));
    assert_return_code(fchdir(place->directory), errno);
    assert_return_code(access(path, F_OK), errno);
    vuf_device_free(device);
    assert_int_equal(access(path, F_OK), -1);
}

/* ---- no directory for temporary files ---- */

static void a_socket_that_listens_needs_no_tmpdir(void **state)
{
    static const char *const directories[] = {"/nonexistent", "/proc", "/dev/null", "/sys"};
    const struct vuf_backend_process_options options = {
        .size = sizeof options,
        .flags = VUF_BACKEND_PROCESS_LISTENING | VUF_BACKEND_PROCESS_OWN_ARGUMENTS};
    const char *before = getenv("TMPDIR");
    char kept[PATH_MAX] = "";
    (void)state;
    if (before != NULL) {
        snprintf(kept, sizeof kept, "%s", before);
    }
    for (size_t i = 0; i < LENGTH(directories); i++) {
        struct vuf_backend_process *process;
        int fd = -1;
        setenv("TMPDIR", directories[i], 1);
        assert_ok(vuf_backend_process_start("/bin/true", &options, &process));
        assert_ok(vuf_backend_process_take_socket(process, &fd));
        close(fd);
        vuf_backend_process_free(process);
    }
    if (before != NULL) {
        setenv("TMPDIR", kept, 1);
    } else {
        unsetenv("TMPDIR");
    }
}

/* ---- the process is killed ---- */

/* One that does not look at its socket, and would stay for ever. */
static int start_sleeper(uint32_t more_flags, struct vuf_backend_process **process)
{
    const char *const arguments[] = {"600", NULL};
    const struct vuf_backend_process_options options = {
        .size = sizeof options,
        .arguments = arguments,
        .flags = VUF_BACKEND_PROCESS_OWN_ARGUMENTS | more_flags};
    return vuf_backend_process_start("/bin/sleep", &options, process);
}

static bool is_gone(pid_t pid)
{
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline; sleep_ms(2)) {
        if (kill(pid, 0) == -1 && errno == ESRCH) {
            return true;
        }
    }
    return false;
}

static void a_back_end_may_die_with_its_parent(void **state)
{
    int ends[2], status;
    pid_t pid = -1;
    (void)state;
    assert_int_equal(pipe(ends), 0);
    /* Orphans come back to this process, which sees them end. */
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    pid_t parent = fork();
    if (parent == 0) {
        struct vuf_backend_process *process;
        int rc = start_sleeper(VUF_BACKEND_PROCESS_KILL_WITH_PARENT, &process);
        pid_t started = rc == 0 ? vuf_backend_process_get_pid(process) : -1;
        if (write(ends[1], &started, sizeof started) == sizeof started) {
            pause();
        }
        _exit(1);
    }
    assert_int_equal(read(ends[0], &pid, sizeof pid), sizeof pid);
    assert_true(pid > 0);
    assert_int_equal(kill(pid, 0), 0);
    kill(parent, SIGKILL);
    assert_int_equal(waitpid(parent, &status, 0), parent);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(is_gone(pid));
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    close(ends[0]);
    close(ends[1]);
}

static void *start_and_end(void *process)
{
    return start_sleeper(VUF_BACKEND_PROCESS_KILL_WITH_PARENT, process) == 0 ? process : NULL;
}

/* As the header says: the parent is the thread. */
static void and_with_the_thread_that_started_it(void **state)
{
    struct vuf_backend_process *process = NULL;
    struct vuf_backend_exit ended = {.size = sizeof ended};
    pthread_t thread;
    void *good = NULL;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, start_and_end, &process), 0);
    assert_int_equal(pthread_join(thread, &good), 0);
    assert_non_null(good);
    assert_ok(vuf_backend_process_wait(process, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_SIGNAL);
    assert_int_equal(ended.value, SIGKILL);
    vuf_backend_process_free(process);
}

/* Whatever else is promised of a start holds for this one: the errors, the socket at 3 and no
   other descriptor, no blocked or ignored signal. */
static void a_start_that_is_tied_is_like_any_other(void **state)
{
    const char *const arguments[] = {
        "-c",
        "test -S /dev/fd/3 && test ! -e /proc/self/fd/60 || exit 2;"
        "while read name value; do case $name in "
        "SigBlk:) test $value = 0000000000000000 || exit 3;; "
        "SigIgn:) test $((0x$value & 0x1000)) = 0 || exit 4;; " /* SIGPIPE */
        "esac; done </proc/self/status",
        NULL};
    const struct vuf_backend_process_options options = {
        .size = sizeof options,
        .arguments = arguments,
        .flags = VUF_BACKEND_PROCESS_OWN_ARGUMENTS | VUF_BACKEND_PROCESS_NEW_GROUP |
                 VUF_BACKEND_PROCESS_KILL_WITH_PARENT};
    struct vuf_backend_exit ended = {.size = sizeof ended};
    struct vuf_backend_process *process;
    sigset_t some, before;
    (void)state;
    assert_refused(-ENOENT, "/nowhere/at/all",
                   vuf_backend_process_start("/nowhere/at/all", &options, &process));
    assert_refused(-EACCES, "/dev/null",
                   vuf_backend_process_start("/dev/null", &options, &process));
    assert_int_equal(waitpid(-1, NULL, WNOHANG), 0); /* the mock; and no zombie */
    assert_int_equal(dup2(1, 60), 60);               /* not close-on-exec */
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &some, &before);
    signal(SIGPIPE, SIG_IGN);
    assert_ok(vuf_backend_process_start("/bin/sh", &options, &process));
    signal(SIGPIPE, SIG_DFL);
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, &before, &now);
    assert_int_equal(sigismember(&now, SIGUSR1), 1);
    assert_int_equal(sigismember(&now, SIGUSR2), 0);
    assert_int_equal(getpgid(vuf_backend_process_get_pid(process)),
                     vuf_backend_process_get_pid(process));
    assert_ok(vuf_backend_process_wait(process, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_CODE);
    assert_int_equal(ended.value, 0);
    vuf_backend_process_free(process);
    close(60);
}

/* ---- no memory ---- */

/* Of these two, one needs an address space without end, and the other counts it otherwise. */
static bool limits_do_not_work(void)
{
    const char *preloaded = getenv("LD_PRELOAD");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#endif
    return preloaded != NULL && strstr(preloaded, "vgpreload") != NULL;
}

static void *taken; /* a list */

/* Only crumbs of less than 1 KiB are left. */
static bool take_all_memory(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL || fscanf(file, "%ld", &pages) != 1) {
        return false;
    }
    fclose(file);
    rlim_t now = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
    if (setrlimit(RLIMIT_AS, &(struct rlimit){now, now}) != 0) {
        return false;
    }
    for (size_t size = 1 << 20; size >= 1 << 10; size /= 2) {
        void **block;
        while ((block = malloc(size)) != NULL) {
            *block = taken;
            taken = block;
        }
    }
    return true;
}

static void give_memory_back(void)
{
    while (taken != NULL) {
        void *next = *(void **)taken;
        free(taken);
        taken = next;
    }
}

/* Returns the line of what went wrong; 0 if nothing did. */
#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            return __LINE__;                                                                       \
        }                                                                                          \
    } while (0)

static int without_memory(const char *path)
{
    const struct vuf_device_options options = {
        .size = sizeof options, .assume_features = BIT(32), .num_rings = 1};
    struct vuf_device *device, *other;
    struct vuf_memory_group *group;
    struct vuf_client *client;
    struct vuf_mem_region region = {.guest_addr = 1 << 20, .size = 16 * PAGE};
    struct vuf_mem_region second = {.guest_addr = 2 << 20, .size = 16 * PAGE};
    struct vuf_ring ring = {.size = 16,
                            .descriptor = 1 << 20,
                            .available = (1 << 20) + PAGE,
                            .used = (1 << 20) + 2 * PAGE,
                            .call_fd = -1,
                            .err_fd = -1};
    EXPECT(vuf_memfd_create("guest", 16 * PAGE, 0, 0, &region.fd) == 0);
    second.fd = region.fd;
    ring.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    EXPECT(vuf_memory_group_new(&group) == 0);
    EXPECT(vuf_device_open(path, &options, &device) == 0);
    EXPECT(vuf_device_set_features(device, BIT(32)) == 0);
    EXPECT(vuf_device_set_memory(device, &region, 1, 0) == 0);
    EXPECT(take_all_memory());
    EXPECT(vuf_device_open(path, &options, &other) == -ENOMEM && other == NULL);
    EXPECT(strstr(vuf_last_error(), "memory") != NULL);
    EXPECT(vuf_device_listen("/tmp/vuf-nothing-listens-here", 0600, &options, &other) == -ENOMEM);
    EXPECT(vuf_device_open_fd(-1, &options, &other) == -ENOMEM);
    EXPECT(vuf_client_connect(path, NULL, &client) == -ENOMEM && client == NULL);
    EXPECT(vuf_device_set_memory(device, &second, 1, 0) == -ENOMEM);
    EXPECT(vuf_device_add_memory(device, &second) == -ENOMEM);
    EXPECT(vuf_device_start(device, &ring, 1) == -ENOMEM);
    EXPECT(vuf_memory_group_set_memory(group, &second, 1, 0) == -ENOMEM);
    EXPECT(vuf_memory_group_add_memory(group, &second) == -ENOMEM);
    EXPECT(vuf_memory_group_join(group, device) == -ENOMEM);
    /* Nothing has changed, and all goes on. */
    give_memory_back();
    EXPECT(vuf_device_add_memory(device, &second) == 0);
    EXPECT(vuf_device_start(device, &ring, 1) == 0);
    EXPECT(vuf_device_open(path, &options, &other) == 0);
    vuf_device_free(other);
    vuf_device_free(device);
    vuf_memory_group_free(group);
    return 0;
}

static void without_memory_calls_fail_and_the_process_lives(void **state)
{
    struct place *place = *state;
    int status, line = -1, ends[2];
    if (limits_do_not_work()) {
        skip();
    }
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        line = without_memory(place->backend.socket);
        _exit(write(ends[1], &line, sizeof line) == sizeof line ? 0 : 1);
    }
    close(ends[1]);
    ssize_t got = read(ends[0], &line, sizeof line);
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(got, sizeof line);
    assert_int_equal(line, 0);
}

/* ---- a small stack ---- */

/* What the guide promises to be enough for each call. The tools that find faults use more. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STACK = 512 << 10 };
#else
enum { STACK = 64 << 10 };
#endif

/* A library that is not optimised uses more, too. */
static size_t stack_size(void)
{
    return getenv("VUF_UNOPTIMISED") != NULL ? 512 << 10 : STACK;
}

static struct vuf_op many[256];
static struct vuf_crypto_session session = {
    .size = sizeof session, .op_code = 2, .sym = {.cipher_alg = 3, .key_len = 16}};
static struct vuf_shmem_config shmem = {.size = sizeof shmem};
static struct vuf_device_info info = {.size = sizeof info};

/* Those that have the largest frames, and those that call back. Nothing here may use much of
   the stack itself. */
static void *many_calls(void *argument)
{
    struct place *place = argument;
    const struct vuf_device_options options = {.size = sizeof options, .config_size = 60};
    const struct vuf_backend_ops ops = {.size = sizeof ops};
    struct vuf_mem_region regions[VUF_MAX_MEM_REGIONS];
    struct vuf_client *client;
    struct vuf_device *device;
    struct vuf_backend_programs *programs;
    struct vuf_backend_process *process;
    const struct vuf_backend_process_options listening = {
        .size = sizeof listening, .flags = VUF_BACKEND_PROCESS_LISTENING};
    uint64_t features, protocol, id;
    size_t n;
    int memory;
    assert_ok(vuf_memfd_create("guest", 16 * PAGE, 0, VUF_MEMFD_SEAL, &memory));
    memset(regions, 0, sizeof regions);
    for (n = 0; n < LENGTH(regions); n++) {
        regions[n] = (struct vuf_mem_region){
            .guest_addr = n << 20, .user_addr = n << 20, .size = PAGE, .fd = memory};
    }
    assert_ok(vuf_client_connect(place->backend.socket, NULL, &client));
    assert_ok(vuf_client_get_features(client, &features));
    assert_ok(vuf_client_get_protocol_features(client, &protocol));
    assert_ok(vuf_client_set_protocol_features(
        client, protocol & vuf_supported_protocol_features() &
                    ~(BIT(VUF_PROTOCOL_F_GPA_ADDRESSES) | BIT(VUF_PROTOCOL_F_XEN_MMAP))));
    assert_ok(vuf_client_set_owner(client));
    assert_ok(vuf_client_set_features(client, features));
    assert_ok(vuf_client_open_backend_channel(client, &ops, NULL));
    assert_ok(vuf_client_set_mem_table(client, regions, LENGTH(regions)));
    assert_ok(vuf_client_create_crypto_session(client, &session, &id));
    assert_ok(vuf_client_get_shmem_config(client, &shmem));
    assert_ok(vuf_client_submit(client, many, LENGTH(many), 0, VUF_TIMEOUT_DEFAULT, NULL));
    vuf_client_free(client);

    assert_ok(vuf_device_open(place->backend.socket, &options, &device));
    assert_ok(vuf_device_set_memory(device, regions, LENGTH(regions), 0));
    assert_ok(vuf_device_wait(device, PEER_MS));
    assert_ok(vuf_device_get_info(device, &info));
    vuf_device_free(device);

    assert_ok(vuf_backend_programs_find(NULL, &programs, &n));
    vuf_backend_programs_free(programs);
    assert_ok(vuf_backend_process_start("/bin/true", &listening, &process));
    vuf_backend_process_free(process);
    close(memory);
    return argument;
}

static void calls_do_with_a_small_stack(void **state)
{
    struct place *place = *state;
    pthread_attr_t attributes;
    pthread_t thread;
    void *result = NULL;
    for (size_t i = 0; i < LENGTH(many); i++) {
        many[i] = (struct vuf_op){
            .request = VUF_REQUEST_SET_VRING_NUM, .index = (uint32_t)i % 4, .value = 128};
    }
    assert_int_equal(pthread_attr_init(&attributes), 0);
    assert_int_equal(pthread_attr_setstacksize(&attributes, stack_size()), 0);
    assert_int_equal(pthread_create(&thread, &attributes, many_calls, place), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, place);
    pthread_attr_destroy(&attributes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        MOCK_TEST(no_descriptor_is_standard_input),
        MOCK_TEST(a_relative_path_outlives_the_directory),
        MOCK_TEST(a_relative_path_to_listen_at_is_removed_from_elsewhere),
        MOCK_TEST(a_socket_that_listens_needs_no_tmpdir),
        MOCK_TEST(a_back_end_may_die_with_its_parent),
        MOCK_TEST(and_with_the_thread_that_started_it),
        MOCK_TEST(a_start_that_is_tied_is_like_any_other),
        MOCK_TEST(without_memory_calls_fail_and_the_process_lives),
        MOCK_TEST(calls_do_with_a_small_stack),
    };
    const char *preload = getenv("LD_PRELOAD");
    if (preload != NULL && strstr(preload, "vgpreload") != NULL) {
        puts("SKIPPED: test_surroundings: valgrind has processes, limits and stacks of its own");
        printf("0 passed, 0 failed, %zu skipped\n", sizeof tests / sizeof *tests);
        return 0;
    }
    return cmocka_run_group_tests_name("test_surroundings", tests, default_signals, NULL);
}
