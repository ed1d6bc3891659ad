/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Back-ends as programs: found by the files that describe them, asked, started with
   a socket and ended; and devices that go on with another one, and kill one that does
   not let go of the memory. */
#include "rig.h"
#include "virtio_blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RING_NUM = 64, RECOVERIES = 5, CONFIG_SIZE = 36 /* of the back-end with a buffer */ };
enum { UNTOLD = 300 /* that end at once */ };

#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x100000)
#define DATA_ADDR (GUEST_ADDR + 0x80000)

struct fixture {
    int fds;
    struct backend place; /* a directory, with a disk */
    char disk_argument[120];
    struct vuf_backend_programs *programs;
    struct vuf_backend_process *process, *second;
    struct vuf_client *client;
    struct vuf_device *device;
    struct guest_memory memory;
    struct blk_ring ring;
    unsigned seen[VUF_DEVICE_EVENT_IOTLB_REFUSED + 1];
};

static int set_up_place(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    *f = (struct fixture){.fds = count_fds(), .ring = {.kick_fd = -1, .call_fd = -1, .err_fd = -1}};
    *state = f;
    if (backend_prepare(&f->place) != 0) {
        return -1;
    }
    int disk = open(f->place.disk, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = ftruncate(disk, DISK_SIZE);
    close(disk);
    return rc;
}

static int tear_down_place(void **state)
{
    struct fixture *f = *state;
    signal(SIGCHLD, SIG_DFL); /* a test that failed may ignore it */
    vuf_device_free(f->device);
    vuf_client_free(f->client);
    vuf_backend_process_free(f->process);
    vuf_backend_process_free(f->second);
    vuf_backend_programs_free(f->programs);
    blk_ring_destroy(&f->ring);
    guest_memory_destroy(&f->memory);
    backend_stop(&f->place);
    if (count_fds() != f->fds) {
        print_error("%d descriptors are open, and %d were\n", count_fds(), f->fds);
        return -1;
    }
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD) {
        print_error("a child is left\n");
        return -1;
    }
    return 0;
}

/* Skips the test where the library can start no program: valgrind (3.19) does not know
   pidfds. */
static void need_processes(void)
{
    long fd = syscall(SYS_pidfd_open, getpid(), 0);
    if (fd < 0 && errno == ENOSYS) {
        print_message("SKIPPED: there are no pidfds here\n");
        skip();
    }
    close((int)fd);
}

/* ---- files ---- */

static void write_file(const struct fixture *f, const char *name, const char *text)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", f->place.dir, name);
    *strrchr(path, '/') = '\0';
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s", f->place.dir, name);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void describe(const struct fixture *f, const char *name, const char *type,
                     const char *binary)
{
    char text[4600];
    snprintf(text, sizeof text,
             "{\"description\": \"of a test\", \"type\": \"%s\", \"binary\": \"%s\", "
             "\"tags\": [\"x\"], \"new\": {\"key\": [1, 2.5e3, null]}}",
             type, binary);
    write_file(f, name, text);
}

/* Of these directories below the place. */
static size_t find(struct fixture *f, const char *const names[], size_t n, const char *type,
                   uint32_t flags)
{
    char paths[4][120];
    const char *directories[4];
    for (size_t i = 0; i < n; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", f->place.dir, names[i]);
        directories[i] = paths[i];
    }
    struct vuf_backend_search search = {.size = sizeof search,
                                        .device_type = type,
                                        .directories = directories,
                                        .n_directories = n,
                                        .flags = flags};
    vuf_backend_programs_free(f->programs);
    size_t found = 99;
    assert_ok(vuf_backend_programs_find(&search, &f->programs, &found));
    return found;
}

static struct vuf_backend_program program_at(struct fixture *f, size_t index)
{
    struct vuf_backend_program program = {.size = sizeof program};
    assert_ok(vuf_backend_programs_get(f->programs, index, &program));
    return program;
}

static void programs_are_found(void **state)
{
    struct fixture *f = *state;
    static const char *const names[] = {"general", "special", "absent"};
    describe(f, "general/50-fs.json", "fs", "/general/fs");
    describe(f, "general/60-net.json", "net", "/general/net");
    describe(f, "general/70-gpu.json", "gpu", "/general/gpu");
    describe(f, "special/50-fs.json", "fs", "/special/fs");
    write_file(f, "special/60-net.json", "");
    write_file(f, "special/80-bad.json", "{");

    assert_int_equal(find(f, names, 3, NULL, 0), 2);
    struct vuf_backend_program program = program_at(f, 0);
    assert_string_equal(program.binary, "/special/fs");
    assert_string_equal(program.device_type, "fs");
    assert_string_equal(program.description, "of a test");
    assert_non_null(strstr(program.file, "special/50-fs.json"));
    assert_null(program.hidden_by);
    assert_null(program.problem);
    assert_null(program.features);
    assert_int_equal(program.n_features, 0);
    assert_int_equal(program.asked, 0);
    assert_string_equal(program_at(f, 1).binary, "/general/gpu");
    assert_returns(-ENOENT, vuf_backend_programs_get(f->programs, 2, &program));

    assert_int_equal(find(f, names, 3, "gpu", 0), 1);
    assert_string_equal(program_at(f, 0).binary, "/general/gpu");
    assert_int_equal(find(f, names, 3, "input", 0), 0);
    assert_int_equal(find(f, NULL, 0, NULL, 0) > 0, 0); /* none at all */

    assert_int_equal(find(f, names, 3, NULL, VUF_BACKEND_SEARCH_ALL), 5);
    assert_string_equal(program_at(f, 1).binary, "/general/fs");
    assert_non_null(strstr(program_at(f, 1).hidden_by, "special/50-fs.json"));
    assert_non_null(strstr(program_at(f, 2).hidden_by, "special/60-net.json"));
    assert_non_null(strstr(program_at(f, 4).problem, "byte 1"));
    assert_string_equal(program_at(f, 4).binary, "");
    assert_refused(VUF_E_STATE, "of no use", vuf_backend_programs_ask(f->programs, 4, 0));
}

/* The user's own directory is one of those that count without a word. */
static void programs_are_found_where_the_convention_says(void **state)
{
    struct fixture *f = *state;
    char config[100], before[200];
    snprintf(before, sizeof before, "%s", getenv("XDG_CONFIG_HOME") ? getenv("XDG_CONFIG_HOME") : "");
    snprintf(config, sizeof config, "%s/config", f->place.dir);
    mkdir(config, 0700);
    write_file(f, "config/qemu/x", "");
    describe(f, "config/qemu/vhost-user/00-test.json", "of this test", "/nothing");
    setenv("XDG_CONFIG_HOME", config, 1);
    struct vuf_backend_search search = {.size = sizeof search, .device_type = "of this test"};
    size_t n;
    int rc = vuf_backend_programs_find(&search, &f->programs, &n);
    before[0] != '\0' ? setenv("XDG_CONFIG_HOME", before, 1) : unsetenv("XDG_CONFIG_HOME");
    assert_ok(rc);
    assert_int_equal(n, 1);
    assert_string_equal(program_at(f, 0).binary, "/nothing");
    need_processes();
    assert_refused(-ENOENT, "/nothing", vuf_backend_programs_ask(f->programs, 0, 0));
}

static void bad_searches_are_refused(void **state)
{
    struct fixture *f = *state;
    static const char *const none[] = {NULL};
    struct vuf_backend_program program = {.size = sizeof program};
    struct vuf_backend_programs *out = (struct vuf_backend_programs *)f;
    size_t n;
    const struct {
        struct vuf_backend_search search;
        int code;
        const char *text;
    } bad[] = {
        {{.size = 0}, -EINVAL, "size"},
        {{.size = 1 << 20}, -E2BIG, "size"},
        {{.size = sizeof bad->search, .reserved = 1}, -EINVAL, "reserved"},
        {{.size = sizeof bad->search, .flags = 2}, -EINVAL, "flags"},
        {{.size = sizeof bad->search, .n_directories = 1}, -EINVAL, "directories"},
        {{.size = sizeof bad->search, .n_directories = 1, .directories = none},
         -EINVAL, "directories"},
        {{.size = sizeof bad->search, .device_type = ""}, -EINVAL, "device_type"},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        assert_refused(bad[i].code, bad[i].text,
                       vuf_backend_programs_find(&bad[i].search, &out, &n));
        assert_null(out);
    }
    assert_refused(-EINVAL, "out", vuf_backend_programs_find(NULL, NULL, &n));
    assert_refused(-EINVAL, "n is NULL", vuf_backend_programs_find(NULL, &out, NULL));
    assert_refused(-EINVAL, "programs", vuf_backend_programs_get(NULL, 0, &program));
    assert_refused(-EINVAL, "programs", vuf_backend_programs_ask(NULL, 0, 0));
    assert_int_equal(find(f, none, 0, NULL, 0), 0);
    assert_refused(-EINVAL, "program", vuf_backend_programs_get(f->programs, 0, NULL));
    assert_refused(-ENOENT, "index", vuf_backend_programs_get(f->programs, 0, &program));
    assert_refused(-ENOENT, "index", vuf_backend_programs_ask(f->programs, 0, 0));
    vuf_backend_programs_free(NULL);
}

/* ---- capabilities ---- */

/* One of this project. */
static const char *program_of(const char *variable)
{
    const char *path = getenv(variable);
    if (path == NULL || access(path, X_OK) != 0) {
        print_error("%s does not name a program\n", variable);
        fail();
    }
    return path;
}

static const char *real_path(const char *path, char buffer[4096])
{
    assert_non_null(realpath(path, buffer));
    return buffer;
}

static bool has_feature(const struct vuf_backend_program *program, const char *name)
{
    for (size_t i = 0; i < program->n_features; i++) {
        if (strcmp(program->features[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static void a_program_is_asked(void **state)
{
    struct fixture *f = *state;
    need_processes();
    static const char *const names[] = {"d"};
    char path[4096];
    describe(f, "d/1.json", "block", real_path(program_of("VUF_INFLIGHT_BACKEND"), path));
    describe(f, "d/2.json", "block", real_path(program_of("VUF_EMBEDDED_BACKEND"), path));
    describe(f, "d/3.json", "fs", path);
    describe(f, "d/4.json", "fs", "/bin/true");
    describe(f, "d/5.json", "fs", "/bin/false");
    assert_int_equal(find(f, names, 1, NULL, 0), 5);
    for (size_t i = 0; i < 2; i++) {
        assert_ok(vuf_backend_programs_ask(f->programs, i, PEER_MS));
        struct vuf_backend_program program = program_at(f, i);
        assert_int_equal(program.asked, 1);
        assert_int_equal(program.n_features, i + 1);
        assert_true(has_feature(&program, "blk-file"));
        /* Once is enough. */
        assert_ok(vuf_backend_programs_ask(f->programs, i, PEER_MS));
        assert_ptr_equal(program_at(f, i).features, program.features);
    }
    assert_refused(VUF_E_PROTOCOL, "block", vuf_backend_programs_ask(f->programs, 2, PEER_MS));
    assert_refused(VUF_E_PROTOCOL, "print", vuf_backend_programs_ask(f->programs, 3, PEER_MS));
    assert_refused(VUF_E_NACK, "status 1", vuf_backend_programs_ask(f->programs, 4, PEER_MS));
    assert_int_equal(program_at(f, 4).asked, 0);
}

static void a_program_that_does_not_answer_is_killed(void **state)
{
    struct fixture *f = *state;
    need_processes();
    static const char *const names[] = {"d"};
    char path[160];
    snprintf(path, sizeof path, "%s/d/sleeps", f->place.dir);
    write_file(f, "d/sleeps", "#!/bin/sh\nexec sleep 1000\n");
    assert_int_equal(chmod(path, 0700), 0);
    describe(f, "d/1.json", "fs", path);
    assert_int_equal(find(f, names, 1, NULL, 0), 1);
    int64_t begin = now_ms();
    assert_refused(-ETIMEDOUT, "in time", vuf_backend_programs_ask(f->programs, 0, 100));
    assert_true(now_ms() - begin < PEER_MS);
}

/* ---- processes ---- */

static void start(struct vuf_backend_process **process, const char *program,
                  const char *const arguments[], uint32_t flags)
{
    struct vuf_backend_process_options options = {
        .size = sizeof options, .arguments = arguments, .flags = flags};
    assert_ok(vuf_backend_process_start(program, &options, process));
}

static void start_shell(struct vuf_backend_process **process, const char *text)
{
    start(process, "/bin/sh", (const char *[]){"-c", text, "sh", NULL}, 0);
}

/* The block back-end that keeps requests in flight over its death. */
static void start_block(struct fixture *f, struct vuf_backend_process **process)
{
    start(process, program_of("VUF_INFLIGHT_BACKEND"),
          (const char *[]){"--file", f->place.disk, NULL}, 0);
}

static void connect_client(struct fixture *f, struct vuf_backend_process *process)
{
    static const struct vuf_client_options options = {.size = sizeof options,
                                                      .timeout_ms = PEER_MS};
    int fd;
    assert_ok(vuf_backend_process_take_socket(process, &fd));
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_ok(vuf_client_from_fd(fd, &options, &f->client));
}

static void a_process_serves_a_client(void **state)
{
    struct fixture *f = *state;
    need_processes();
    uint64_t features;
    start_block(f, &f->process);
    connect_client(f, f->process);
    assert_ok(vuf_client_get_features(f->client, &features));
    assert_true((features & BIT(VUF_F_PROTOCOL_FEATURES)) != 0);
    int fd;
    assert_refused(VUF_E_STATE, "taken", vuf_backend_process_take_socket(f->process, &fd));
    assert_int_equal(fd, -1);

    struct vuf_backend_exit ended = {.size = sizeof ended};
    assert_ok(vuf_backend_process_get_exit(f->process, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_RUNNING);
    assert_int_equal(ended.value, 0);
    /* It serves nobody else. */
    vuf_client_free(f->client);
    f->client = NULL;
    assert_ok(vuf_backend_process_wait(f->process, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_CODE);
    assert_int_equal(ended.value, 0);
}

static void a_process_gets_a_socket_that_listens(void **state)
{
    struct fixture *f = *state;
    need_processes();
    uint64_t features;
    start(&f->process, program_of("VUF_EMBEDDED_BACKEND"),
          (const char *[]){"--file", f->place.disk, NULL}, VUF_BACKEND_PROCESS_LISTENING);
    connect_client(f, f->process);
    assert_ok(vuf_client_get_features(f->client, &features));
    assert_true((features & BIT(VUF_F_PROTOCOL_FEATURES)) != 0);
}

static void a_process_gets_what_it_is_given(void **state)
{
    struct fixture *f = *state;
    need_processes();
    int out[2], err[2];
    assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
    int loose = fcntl(STDERR_FILENO, F_DUPFD, 50); /* not close-on-exec */
    const char *const arguments[] = {
        "-c",
        "echo \"$1 $2 $NAME\"; [ -e /proc/$$/fd/50 ] && echo loose; "
        "[ -S /proc/$$/fd/3 ] && echo socket >&2; exit 3",
        "sh", "one", "two words", NULL};
    const char *const environment[] = {"NAME=value", "PATH=/usr/bin:/bin", NULL};
    struct vuf_backend_process_options options = {.size = sizeof options,
                                                  .arguments = arguments,
                                                  .environment = environment,
                                                  .stdout_fd = out[1],
                                                  .stderr_fd = err[1],
                                                  .flags = VUF_BACKEND_PROCESS_OWN_ARGUMENTS |
                                                           VUF_BACKEND_PROCESS_NEW_GROUP};
    int rc = vuf_backend_process_start("/bin/sh", &options, &f->process);
    close(out[1]);
    close(err[1]);
    close(loose);
    assert_ok(rc);
    int pid = vuf_backend_process_get_pid(f->process);
    assert_true(pid > 0);
    assert_int_equal(getpgid(pid), pid);
    struct vuf_backend_exit ended = {.size = sizeof ended};
    assert_ok(vuf_backend_process_wait(f->process, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_CODE);
    assert_int_equal(ended.value, 3);
    char text[200] = "";
    ssize_t got = read(out[0], text, sizeof text - 1);
    assert_true(got > 0);
    assert_string_equal(text, "one two words value\n");
    memset(text, 0, sizeof text);
    got = read(err[0], text, sizeof text - 1);
    assert_true(got > 0);
    assert_string_equal(text, "socket\n");
    close(out[0]);
    close(err[0]);
}

/* A daemon may have closed these, and what it opens then gets their numbers. */
static void a_process_has_what_its_parent_lacks(void **state)
{
    struct fixture *f = *state;
    need_processes();
    pid_t child = fork();
    if (child == 0) {
        struct vuf_backend_exit ended = {.size = sizeof ended, .value = 99};
        struct vuf_backend_process_options options = {
            .size = sizeof options,
            .arguments = (const char *[]){"-c",
                                          "for n in 0 1 2; do "
                                          "[ \"$(readlink /proc/$$/fd/$n)\" = /dev/null ] || exit 1; "
                                          "done; [ -S /proc/$$/fd/3 ]",
                                          "sh", NULL}};
        close(STDIN_FILENO);
        close(STDOUT_FILENO);
        close(STDERR_FILENO);
        int rc = vuf_backend_process_start("/bin/sh", &options, &f->process);
        if (rc == 0) {
            rc = vuf_backend_process_wait(f->process, PEER_MS, &ended);
        }
        vuf_backend_process_free(f->process);
        _exit(rc == 0 && ended.kind == VUF_BACKEND_EXIT_CODE ? ended.value : 98);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void a_process_ends_as_it_is_told(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    start_shell(&f->process, "exec sleep 1000");
    assert_refused(-ETIMEDOUT, "not ended", vuf_backend_process_wait(f->process, 10, &ended));
    struct pollfd item = {.fd = vuf_backend_process_get_fd(f->process), .events = POLLIN};
    assert_int_equal(poll(&item, 1, 0), 0);
    assert_ok(vuf_backend_process_signal(f->process, 0));
    assert_ok(vuf_backend_process_signal(f->process, SIGUSR1));
    assert_int_equal(poll(&item, 1, PEER_MS), 1);
    assert_ok(vuf_backend_process_get_exit(f->process, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_SIGNAL);
    assert_int_equal(ended.value, SIGUSR1);
    /* Too late, and no fault. */
    assert_ok(vuf_backend_process_signal(f->process, SIGKILL));
    assert_ok(vuf_backend_process_terminate(f->process, PEER_MS, NULL));
    assert_ok(vuf_backend_process_wait(f->process, PEER_MS, NULL));

    start_shell(&f->second, "exec sleep 1000");
    assert_ok(vuf_backend_process_terminate(f->second, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_SIGNAL);
    assert_int_equal(ended.value, SIGTERM);
}

static void a_process_that_ignores_sigterm_is_killed(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    char byte;
    int fd;
    start_shell(&f->process, "trap '' TERM; echo >&3; while :; do sleep 1; done");
    assert_ok(vuf_backend_process_take_socket(f->process, &fd));
    assert_int_equal(read(fd, &byte, 1), 1);
    close(fd);
    int64_t begin = now_ms();
    assert_ok(vuf_backend_process_terminate(f->process, 100, &ended));
    assert_true(now_ms() - begin >= 100);
    assert_true(now_ms() - begin < PEER_MS);
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_SIGNAL);
    assert_int_equal(ended.value, SIGKILL);
}

/* Then nobody can tell how it ended, and nobody waits for it in vain. */
static void an_exit_that_somebody_else_took_is_unknown(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    start_shell(&f->process, "exit 5");
    int status;
    assert_int_equal(waitpid(-1, &status, 0), vuf_backend_process_get_pid(f->process));
    assert_ok(vuf_backend_process_wait(f->process, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_UNKNOWN);
    assert_int_equal(ended.value, 0);
    assert_ok(vuf_backend_process_terminate(f->process, PEER_MS, &ended));

    void (*before)(int) = signal(SIGCHLD, SIG_IGN);
    start_shell(&f->second, "exec sleep 1000");
    int rc = vuf_backend_process_terminate(f->second, PEER_MS, &ended);
    signal(SIGCHLD, before);
    assert_ok(rc);
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_UNKNOWN);
}

/* It may be gone before it is known by more than its number. */
static void an_exit_that_nobody_is_told_is_unknown(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct sigaction before, ignore = {.sa_handler = SIG_IGN};
    assert_int_equal(sigaction(SIGCHLD, &ignore, &before), 0);
    for (unsigned n = 0; n < UNTOLD; n++) {
        struct vuf_backend_exit ended = {.size = sizeof ended};
        assert_ok(vuf_backend_process_start("/bin/true", NULL, &f->process));
        assert_ok(vuf_backend_process_wait(f->process, PEER_MS, &ended));
        assert_int_equal(ended.kind, VUF_BACKEND_EXIT_UNKNOWN);
        assert_ok(vuf_backend_process_signal(f->process, SIGTERM));
        vuf_backend_process_free(f->process);
        f->process = NULL;
    }
    assert_int_equal(sigaction(SIGCHLD, &before, NULL), 0);
}

struct waiter {
    struct vuf_backend_process *process;
    atomic_long id;
};

static void *wait_for_it(void *argument)
{
    struct waiter *waiter = argument;
    struct vuf_backend_exit ended = {.size = sizeof ended};
    atomic_store(&waiter->id, syscall(SYS_gettid));
    int rc = vuf_backend_process_wait(waiter->process, VUF_TIMEOUT_FOREVER, &ended);
    bool good = rc == 0 && ended.kind == VUF_BACKEND_EXIT_SIGNAL && ended.value == SIGKILL;
    return good ? argument : NULL;
}

/* Until a thread waits inside the call. */
static void until_it_waits(struct waiter *waiter)
{
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline; sched_yield()) {
        char path[64];
        long number = -1;
        snprintf(path, sizeof path, "/proc/self/task/%ld/syscall", atomic_load(&waiter->id));
        FILE *file = fopen(path, "re");
        if (file != NULL) {
            int got = fscanf(file, "%ld", &number);
            fclose(file);
            if (got == 1 && (number == SYS_poll || number == SYS_ppoll)) {
                return;
            }
        }
    }
    fail();
}

static void free_kills_and_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    need_processes();
    pthread_t thread;
    void *good;
    start_shell(&f->process, "trap '' TERM; while :; do sleep 1; done");
    int pid = vuf_backend_process_get_pid(f->process);
    struct waiter waiter = {.process = f->process};
    assert_int_equal(pthread_create(&thread, NULL, wait_for_it, &waiter), 0);
    until_it_waits(&waiter);
    vuf_backend_process_free(f->process);
    f->process = NULL;
    pthread_join(thread, &good);
    assert_non_null(good);
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH);
    vuf_backend_process_free(NULL);
}

/* A debugger of its own that does not look keeps it from being gone: as one that hangs in
   the kernel. Returns the debugger. */
static pid_t hold(pid_t held)
{
    int done[2];
    char byte;
    assert_int_equal(pipe2(done, O_CLOEXEC), 0);
    pid_t tracer = fork();
    if (tracer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (ptrace(PTRACE_SEIZE, held, NULL, NULL) != 0 || write(done[1], "", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            pause();
        }
    }
    close(done[1]);
    bool held_now = read(done[0], &byte, 1) == 1;
    close(done[0]);
    if (!held_now) {
        waitpid(tracer, NULL, 0);
        print_message("SKIPPED: no process may be traced here\n");
        skip();
    }
    return tracer;
}

static void free_waits_for_no_other_wait(void **state)
{
    struct fixture *f = *state;
    need_processes();
    pthread_t thread;
    void *good;
    start_shell(&f->process, "exec sleep 1000");
    pid_t pid = vuf_backend_process_get_pid(f->process);
    pid_t tracer = hold(pid);
    struct waiter waiter = {.process = f->process};
    assert_int_equal(pthread_create(&thread, NULL, wait_for_it, &waiter), 0);
    until_it_waits(&waiter);
    int64_t begin = now_ms();
    vuf_backend_process_free(f->process);
    int64_t took = now_ms() - begin;
    f->process = NULL;
    pthread_join(thread, &good);
    kill(tracer, SIGKILL);
    assert_int_equal(waitpid(tracer, NULL, 0), tracer);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_null(good);
    /* Once 5 s, and not twice. */
    assert_true(took >= 5000 && took < 9000);
}

static void a_forked_child_kills_nothing(void **state)
{
    struct fixture *f = *state;
    need_processes();
    start_shell(&f->process, "exec sleep 1000");
    pid_t child = fork();
    if (child == 0) {
        vuf_backend_process_free(f->process);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    struct vuf_backend_exit ended = {.size = sizeof ended};
    assert_ok(vuf_backend_process_get_exit(f->process, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_RUNNING);
}

static void what_cannot_be_started_is_told(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_process *out = (struct vuf_backend_process *)f;
    struct vuf_backend_exit ended = {.size = 0};
    int fd;
    const struct {
        struct vuf_backend_process_options options;
        int code;
        const char *text;
    } bad[] = {
        {{.size = 0}, -EINVAL, "size"},
        {{.size = sizeof bad->options, .reserved = 1}, -EINVAL, "reserved"},
        {{.size = sizeof bad->options, .flags = 16}, -EINVAL, "flags"},
        {{.size = sizeof bad->options, .stdout_fd = -2}, -EBADF, "stdout_fd"},
        {{.size = sizeof bad->options, .stderr_fd = -2}, -EBADF, "stderr_fd"},
        {{.size = sizeof bad->options, .stderr_fd = 1000}, -EBADF, "stderr"},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        assert_refused(bad[i].code, bad[i].text,
                       vuf_backend_process_start("/bin/true", &bad[i].options, &out));
        assert_null(out);
    }
    /* Nor does one that was closed become what gets its number next: the connection. */
    int closed = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(closed);
    struct vuf_backend_process_options options = {.size = sizeof options, .stdout_fd = closed};
    assert_refused(-EBADF, "stdout", vuf_backend_process_start("/bin/true", &options, &out));
    options = (struct vuf_backend_process_options){.size = sizeof options, .stderr_fd = closed};
    assert_refused(-EBADF, "stderr", vuf_backend_process_start("/bin/true", &options, &out));
    assert_refused(-ENOENT, "/nothing", vuf_backend_process_start("/nothing", NULL, &out));
    assert_refused(-EACCES, f->place.disk, vuf_backend_process_start(f->place.disk, NULL, &out));
    assert_refused(-EINVAL, "program", vuf_backend_process_start(NULL, NULL, &out));
    assert_refused(-EINVAL, "program", vuf_backend_process_start("", NULL, &out));
    assert_refused(-EINVAL, "out", vuf_backend_process_start("/bin/true", NULL, NULL));

    assert_refused(-EINVAL, "process", vuf_backend_process_get_pid(NULL));
    assert_refused(-EINVAL, "process", vuf_backend_process_get_fd(NULL));
    fd = 77;
    assert_refused(-EINVAL, "process", vuf_backend_process_take_socket(NULL, &fd));
    assert_int_equal(fd, -1);
    assert_refused(-EINVAL, "process", vuf_backend_process_signal(NULL, SIGTERM));
    assert_refused(-EINVAL, "process", vuf_backend_process_get_exit(NULL, &ended));
    assert_refused(-EINVAL, "process", vuf_backend_process_wait(NULL, 0, NULL));
    assert_refused(-EINVAL, "process", vuf_backend_process_terminate(NULL, 0, NULL));
    start_shell(&f->process, "exec sleep 1000");
    assert_refused(-EINVAL, "fd", vuf_backend_process_take_socket(f->process, NULL));
    assert_refused(-EINVAL, "exit is NULL", vuf_backend_process_get_exit(f->process, NULL));
    /* A mistake is found before anything is ended. */
    assert_refused(-EINVAL, "size", vuf_backend_process_terminate(f->process, 0, &ended));
    assert_refused(-EINVAL, "", vuf_backend_process_signal(f->process, 1000));
    ended.size = sizeof ended;
    assert_ok(vuf_backend_process_get_exit(f->process, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_RUNNING);
}

/* ---- those of others ---- */

static void virtiofsd_is_asked_and_started(void **state)
{
    struct fixture *f = *state;
    need_processes();
    static const char *const names[] = {"d"};
    char path[4096], shared[100];
    uint64_t features;
    const char *virtiofsd = getenv("VUF_VIRTIOFSD");
    if (virtiofsd == NULL || access(virtiofsd, X_OK) != 0) {
        print_message("SKIPPED: virtiofsd is not here (c-tests/backends.sh)\n");
        skip();
    }
    describe(f, "d/50-virtiofsd.json", "fs", real_path(virtiofsd, path));
    assert_int_equal(find(f, names, 1, "fs", 0), 1);
    assert_ok(vuf_backend_programs_ask(f->programs, 0, PEER_MS));
    struct vuf_backend_program program = program_at(f, 0);
    assert_true(has_feature(&program, "separate-options"));

    snprintf(shared, sizeof shared, "%s/shared", f->place.dir);
    assert_int_equal(mkdir(shared, 0700), 0);
    start(&f->process, program.binary,
          (const char *[]){"--shared-dir", shared, "--sandbox", "none", "--seccomp", "none",
                           "--log-level", "off", NULL},
          VUF_BACKEND_PROCESS_LISTENING);
    connect_client(f, f->process);
    assert_ok(vuf_client_get_features(f->client, &features));
    assert_true((features & BIT(VUF_F_PROTOCOL_FEATURES)) != 0);
    struct vuf_backend_exit ended = {.size = sizeof ended};
    assert_ok(vuf_backend_process_terminate(f->process, PEER_MS, &ended));
    assert_true(ended.kind == VUF_BACKEND_EXIT_CODE || ended.value == SIGTERM);
}

static void qemu_storage_daemon_is_started(void **state)
{
    struct fixture *f = *state;
    need_processes();
    char blockdev[200], path[4096];
    uint64_t features;
    if (!qemu_available()) {
        print_message("SKIPPED: qemu-storage-daemon is not installed\n");
        skip();
    }
    FILE *which = popen("command -v qemu-storage-daemon", "r");
    assert_non_null(fgets(path, sizeof path, which));
    pclose(which);
    path[strcspn(path, "\n")] = '\0';
    snprintf(blockdev, sizeof blockdev, "driver=file,node-name=disk,filename=%s", f->place.disk);
    start(&f->process, path,
          (const char *[]){"--blockdev", blockdev, "--export",
                           "type=vhost-user-blk,id=export,node-name=disk,addr.type=fd,addr.str=3",
                           NULL},
          VUF_BACKEND_PROCESS_LISTENING | VUF_BACKEND_PROCESS_OWN_ARGUMENTS);
    connect_client(f, f->process);
    assert_ok(vuf_client_get_features(f->client, &features));
    assert_true((features & BIT(VUF_F_PROTOCOL_FEATURES)) != 0);
}

/* ---- devices ---- */

static struct vuf_device_event until(struct fixture *f, uint32_t kind)
{
    struct pollfd item = {.fd = vuf_device_get_fd(f->device), .events = POLLIN};
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline;) {
        struct vuf_device_event event = {.size = sizeof event};
        assert_ok(vuf_device_process(f->device, &event));
        f->seen[event.kind]++;
        if (event.kind == kind) {
            return event;
        }
        if (event.kind == VUF_DEVICE_EVENT_NONE) {
            poll(&item, 1, (int)(deadline - now_ms()));
        }
    }
    print_error("event %u did not come\n", kind);
    fail();
    return (struct vuf_device_event){.size = 0};
}

static struct vuf_device_info info_of(struct fixture *f)
{
    struct vuf_device_info info = {.size = sizeof info};
    assert_ok(vuf_device_get_info(f->device, &info));
    return info;
}

static void bring_up(struct fixture *f, uint32_t on_unfenced)
{
    const struct vuf_device_options options = {.size = sizeof options,
                                               .num_rings = 1,
                                               .config_size = CONFIG_SIZE,
                                               .fence_ms = 200,
                                               .timeout_ms = 500,
                                               .slow_timeout_ms = 500,
                                               .drain_timeout_ms = 500,
                                               .on_unfenced = on_unfenced};
    assert_ok(guest_memory_create(&f->memory, GUEST_ADDR, GUEST_SIZE));
    assert_ok(blk_ring_create(&f->ring, 0, RING_NUM, &f->memory, GUEST_ADDR));
    start_block(f, &f->process);
    assert_ok(vuf_device_open_fd(-1, &options, &f->device));
    assert_ok(vuf_device_set_process(f->device, f->process));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    assert_int_equal(info_of(f).peer_pid, vuf_backend_process_get_pid(f->process));
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    struct vuf_ring ring = blk_ring_of_device(&f->ring, VUF_RING_BASE_NEW);
    assert_ok(vuf_device_set_features(f->device, BIT(VIRTIO_F_VERSION_1)));
    assert_ok(vuf_device_set_memory(f->device, &region, 1, 0));
    assert_ok(vuf_device_start(f->device, &ring, 1));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
}

/* Makes it write a sector. */
static int submit(struct fixture *f, unsigned n)
{
    memset(guest_memory_at(&f->memory, DATA_ADDR + n * SECTOR_SIZE), 'a' + (int)n, SECTOR_SIZE);
    int slot = blk_ring_submit(&f->ring, VIRTIO_BLK_T_OUT, n, DATA_ADDR + n * SECTOR_SIZE,
                               SECTOR_SIZE);
    assert_true(slot >= 0);
    return slot;
}

/* Waits for that, and looks at the disk. */
static void finish(struct fixture *f, int slot, unsigned n)
{
    char found[SECTOR_SIZE], wanted[SECTOR_SIZE];
    assert_int_equal(blk_ring_wait(&f->ring, slot, PEER_MS, NULL), VIRTIO_BLK_S_OK);
    int disk = open(f->place.disk, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(disk, found, sizeof found, (off_t)n * SECTOR_SIZE), sizeof found);
    close(disk);
    memset(wanted, 'a' + (int)n, sizeof wanted);
    assert_memory_equal(found, wanted, sizeof found);
}

/* Frees the one that has ended, and starts another for the same device. */
static void start_again(struct fixture *f)
{
    vuf_backend_process_free(f->process);
    f->process = NULL;
    start_block(f, &f->process);
    assert_ok(vuf_device_set_process(f->device, f->process));
    until(f, VUF_DEVICE_EVENT_RECOVERED);
    assert_ok(vuf_device_wait(f->device, PEER_MS));
}

static void a_device_goes_on_with_the_next_process(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    bring_up(f, VUF_ON_UNFENCED_WAIT);
    for (unsigned n = 0; n < RECOVERIES; n++) {
        finish(f, submit(f, n), n);
        assert_ok(vuf_backend_process_signal(f->process, SIGKILL));
        /* The last one may see it, or not; the next does in any case. */
        int slot = submit(f, n + 1);
        until(f, VUF_DEVICE_EVENT_NEEDS_FD);
        assert_ok(vuf_backend_process_wait(f->process, PEER_MS, &ended));
        assert_int_equal(ended.kind, VUF_BACKEND_EXIT_SIGNAL);
        assert_int_equal(ended.value, SIGKILL);
        start_again(f);
        finish(f, slot, n + 1);
    }
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_LOST], RECOVERIES);
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_RECOVERED], RECOVERIES);
    assert_int_equal(info_of(f).connections, RECOVERIES + 1);
}

/* A process that is stopped answers nothing and closes nothing, and would write once
   it goes on. */
static void hang(struct fixture *f)
{
    char path[40], text[400] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", vuf_backend_process_get_pid(f->process));
    assert_ok(vuf_backend_process_signal(f->process, SIGSTOP));
    for (int64_t deadline = now_ms() + PEER_MS; strstr(text, ") T ") == NULL;) {
        assert_true(now_ms() < deadline);
        FILE *file = fopen(path, "re");
        assert_non_null(file);
        size_t got = fread(text, 1, sizeof text - 1, file);
        text[got] = '\0';
        fclose(file);
    }
    /* What it has to answer, and does not. */
    if (f->ring.call_fd >= 0) {
        assert_ok(vuf_device_set_call(f->device, 0, f->ring.call_fd));
    } else {
        assert_ok(vuf_device_write_config(f->device, 32, "\1", 1));
    }
}

static void a_device_kills_a_process_that_hangs(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    bring_up(f, VUF_ON_UNFENCED_KILL);
    finish(f, submit(f, 0), 0);
    hang(f);
    int slot = submit(f, 1);
    struct vuf_device_event lost = until(f, VUF_DEVICE_EVENT_LOST);
    assert_int_equal(lost.peer_pid, vuf_backend_process_get_pid(f->process));
    until(f, VUF_DEVICE_EVENT_NEEDS_FD);
    assert_int_equal(f->seen[VUF_DEVICE_EVENT_UNFENCED], 0);
    assert_int_equal(info_of(f).unfenced, 0);
    assert_ok(vuf_backend_process_wait(f->process, PEER_MS, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_SIGNAL);
    assert_int_equal(ended.value, SIGKILL);
    start_again(f);
    finish(f, slot, 1);
}

/* The default: it is left alone, and waited for. */
static void a_device_that_waits_kills_nothing(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    bring_up(f, VUF_ON_UNFENCED_WAIT);
    int pid = vuf_backend_process_get_pid(f->process);
    hang(f);
    /* Not this process, which has made both ends of the connection. */
    assert_int_equal(until(f, VUF_DEVICE_EVENT_LOST).peer_pid, pid);
    assert_int_equal(until(f, VUF_DEVICE_EVENT_UNFENCED).peer_pid, pid);
    assert_ok(vuf_backend_process_get_exit(f->process, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_RUNNING);
    assert_ok(vuf_backend_process_signal(f->process, SIGCONT));
    until(f, VUF_DEVICE_EVENT_FENCED);
    start_again(f);
    finish(f, submit(f, 0), 0);
}

/* Two ways to be told, and one of them does not say whom to kill. */
static void a_device_kills_nobody_it_does_not_know(void **state)
{
    struct fixture *f = *state;
    need_processes();
    struct vuf_backend_exit ended = {.size = sizeof ended};
    struct vuf_device_options options = {.size = sizeof options,
                                         .on_unfenced = VUF_ON_UNFENCED_KILL};
    struct vuf_device *out;
    assert_refused(-EINVAL, "killed", vuf_device_open(f->place.socket, &options, &out));
    assert_refused(-EINVAL, "killed", vuf_device_listen(f->place.socket, 0600, &options, &out));
    assert_null(out);

    start_shell(&f->second, "exec sleep 1000");
    assert_ok(vuf_device_open(f->place.socket, NULL, &f->device));
    assert_refused(VUF_E_STATE, "by itself", vuf_device_set_process(f->device, f->second));
    assert_refused(-EINVAL, "device", vuf_device_set_process(NULL, f->second));
    vuf_device_free(f->device);
    assert_ok(vuf_device_open_fd(-1, NULL, &f->device));
    assert_refused(-EINVAL, "process", vuf_device_set_process(f->device, NULL));
    int fd;
    assert_ok(vuf_backend_process_take_socket(f->second, &fd));
    close(fd);
    assert_refused(VUF_E_STATE, "taken", vuf_device_set_process(f->device, f->second));
    vuf_device_free(f->device);
    f->device = NULL;

    /* The same socket, but by itself. */
    assert_ok(guest_memory_create(&f->memory, GUEST_ADDR, GUEST_SIZE));
    start_block(f, &f->process);
    assert_ok(vuf_backend_process_take_socket(f->process, &fd));
    options.num_rings = 1;
    options.config_size = CONFIG_SIZE;
    options.fence_ms = 100;
    options.timeout_ms = 200;
    assert_ok(vuf_device_open_fd(fd, &options, &f->device));
    until(f, VUF_DEVICE_EVENT_CONNECTED);
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    assert_ok(vuf_device_set_features(f->device, BIT(VIRTIO_F_VERSION_1)));
    assert_ok(vuf_device_set_memory(f->device, &region, 1, 0));
    assert_ok(vuf_device_wait(f->device, PEER_MS));
    hang(f);
    until(f, VUF_DEVICE_EVENT_UNFENCED);
    assert_ok(vuf_backend_process_get_exit(f->process, &ended));
    assert_int_equal(ended.kind, VUF_BACKEND_EXIT_RUNNING);
}

static void a_device_loses_a_process_that_is_freed(void **state)
{
    struct fixture *f = *state;
    need_processes();
    bring_up(f, VUF_ON_UNFENCED_KILL);
    vuf_backend_process_free(f->process);
    f->process = NULL;
    until(f, VUF_DEVICE_EVENT_LOST);
    until(f, VUF_DEVICE_EVENT_NEEDS_FD);
}

#define PLACE_TEST(name) cmocka_unit_test_setup_teardown(name, set_up_place, tear_down_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(programs_are_found),
        PLACE_TEST(programs_are_found_where_the_convention_says),
        PLACE_TEST(bad_searches_are_refused),
        PLACE_TEST(a_program_is_asked),
        PLACE_TEST(a_program_that_does_not_answer_is_killed),
        PLACE_TEST(a_process_serves_a_client),
        PLACE_TEST(a_process_gets_a_socket_that_listens),
        PLACE_TEST(a_process_gets_what_it_is_given),
        PLACE_TEST(a_process_has_what_its_parent_lacks),
        PLACE_TEST(a_process_ends_as_it_is_told),
        PLACE_TEST(a_process_that_ignores_sigterm_is_killed),
        PLACE_TEST(an_exit_that_somebody_else_took_is_unknown),
        PLACE_TEST(an_exit_that_nobody_is_told_is_unknown),
        PLACE_TEST(free_kills_and_leaves_nothing),
        PLACE_TEST(free_waits_for_no_other_wait),
        PLACE_TEST(a_forked_child_kills_nothing),
        PLACE_TEST(what_cannot_be_started_is_told),
        PLACE_TEST(virtiofsd_is_asked_and_started),
        PLACE_TEST(qemu_storage_daemon_is_started),
        PLACE_TEST(a_device_goes_on_with_the_next_process),
        PLACE_TEST(a_device_kills_a_process_that_hangs),
        PLACE_TEST(a_device_that_waits_kills_nothing),
        PLACE_TEST(a_device_kills_nobody_it_does_not_know),
        PLACE_TEST(a_device_loses_a_process_that_is_freed),
    };
    return cmocka_run_group_tests(tests, default_signals, NULL);
}
