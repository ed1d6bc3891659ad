/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the library does to the process that it lives in: nothing. Signals,
   descriptors, threads, output, and whatever else a process has only one of,
   while a device is brought up on a back-end that answers everything.

   That a forked child may free its copy, and that abort keeps errno, is in
   test_connection.c. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHORT_MS = 100 }; /* a deadline that is meant to pass */

static void start_timer(long first_us, long interval_us)
{
    struct itimerval timer = {{0, interval_us}, {0, first_us}};
    assert_return_code(setitimer(ITIMER_REAL, &timer, NULL), errno);
}

/* ---- a back-end that answers everything ---- */

enum { NEED_REPLY = 0x8, FOR_EVER = 1000000 };

static struct device {
    int socket;
    int file;          /* what it sends where a descriptor is due */
    size_t messages;   /* how many it takes before it hangs up */
    int hesitation_us; /* before each answer, and before its payload */
    pthread_t thread;
} device;

static void hesitate(void)
{
    if (device.hesitation_us != 0) {
        usleep((useconds_t)device.hesitation_us);
    }
}

static bool send_reply(uint32_t request, struct reply reply)
{
    const void *payload = reply.payload;
    hesitate();
    if (device.hesitation_us == 0) {
        return write_reply(device.socket, request, &reply);
    }
    reply.payload = NULL; /* the header alone */
    if (!write_reply(device.socket, request, &reply)) {
        return false;
    }
    hesitate();
    return send(device.socket, payload, reply.size, MSG_NOSIGNAL) == (ssize_t)reply.size;
}

static bool answer(const struct header *header, uint32_t body[])
{
    const struct vuf_inflight buffer = {PAGE, 0, 1, 128, 0};
    const uint64_t has_fd = 0;
    switch (header->request) {
    case GET_FEATURES:
        return send_reply(header->request, U64_REPLY(BIT(VUF_F_PROTOCOL_FEATURES)));
    case GET_PROTOCOL_FEATURES:
        return send_reply(header->request, U64_REPLY(vuf_supported_protocol_features()));
    case GET_QUEUE_NUM:
    case GET_MAX_MEM_SLOTS:
        return send_reply(header->request, U64_REPLY(MAX_RINGS));
    case SET_LOG_BASE:
    case CHECK_DEVICE_STATE:
        return send_reply(header->request, U64_REPLY(0));
    case GET_VRING_BASE:
    case GET_CONFIG:
        return send_reply(header->request, (struct reply){.size = header->size, .payload = body});
    case GET_INFLIGHT_FD:
        return send_reply(header->request, (struct reply){.size = sizeof buffer,
                                                          .payload = &buffer,
                                                          .fd = device.file});
    case SET_DEVICE_STATE_FD:
        return send_reply(header->request, (struct reply){.size = sizeof has_fd,
                                                          .payload = &has_fd,
                                                          .fd = device.file});
    default:
        return (header->flags & NEED_REPLY) == 0 || send_reply(header->request, U64_REPLY(0));
    }
}

static void *serve(void *unused)
{
    (void)unused;
    struct header header;
    uint32_t body[1024];
    for (size_t n = 0; n < device.messages; n++) {
        if (recv(device.socket, &header, sizeof header, MSG_WAITALL) != sizeof header ||
            header.size > sizeof body ||
            (header.size != 0 &&
             recv(device.socket, body, header.size, MSG_WAITALL) != (ssize_t)header.size) ||
            !answer(&header, body)) {
            break;
        }
    }
    close(device.socket);
    return NULL;
}

/* The other end of a new client becomes a device, whose thread gets no signal. */
static void start_device(struct rig *rig, size_t messages, int hesitation_us)
{
    sigset_t all, before;
    sigfillset(&all);
    reopen_client(rig, &quick);
    device = (struct device){rig->peer, rig->memory, messages, hesitation_us, 0};
    rig->peer = -1;
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&device.thread, NULL, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert_int_equal(rc, 0);
}

/* Frees the client, which is what ends the device's thread. */
static void end_device(struct rig *rig)
{
    vuf_client_free(rig->client);
    rig->client = NULL;
    pthread_join(device.thread, NULL);
}

/* ---- bringing a device up, and down again ---- */

static bool with_reply_ack; /* or else with barriers */

static uint64_t wanted(void)
{
    return all_protocol_features() | (with_reply_ack ? BIT(VUF_PROTOCOL_F_REPLY_ACK) : 0);
}

static int get_features(struct rig *rig)
{
    uint64_t features;
    return vuf_client_get_features(rig->client, &features);
}

static int get_protocol_features(struct rig *rig)
{
    uint64_t features;
    return vuf_client_get_protocol_features(rig->client, &features);
}

static int set_protocol_features(struct rig *rig)
{
    return vuf_client_set_protocol_features(rig->client, wanted());
}

static int set_owner(struct rig *rig)
{
    return vuf_client_set_owner(rig->client);
}

static int set_features(struct rig *rig)
{
    return vuf_client_set_features(rig->client, BIT(VUF_F_PROTOCOL_FEATURES));
}

static int get_queue_num(struct rig *rig)
{
    uint64_t queues;
    return vuf_client_get_queue_num(rig->client, &queues);
}

static int get_config(struct rig *rig)
{
    char space[60];
    return vuf_client_get_config(rig->client, 0, 0, space, sizeof space);
}

static int set_mem_table(struct rig *rig)
{
    const struct vuf_mem_region region = {.size = PAGE, .fd = rig->memory};
    return vuf_client_set_mem_table(rig->client, &region, 1);
}

static int set_log_base(struct rig *rig)
{
    return vuf_client_set_log_base(rig->client, PAGE, 0, rig->memory);
}

/* Closes at once what it is given. */
static int get_inflight_fd(struct rig *rig)
{
    struct vuf_inflight inflight;
    int fd = -1, rc = vuf_client_get_inflight_fd(rig->client, 1, 128, &inflight, &fd);
    close(fd);
    return rc;
}

static int set_inflight_fd(struct rig *rig)
{
    const struct vuf_inflight inflight = {PAGE, 0, 1, 128, 0};
    return vuf_client_set_inflight_fd(rig->client, &inflight, rig->memory);
}

static int set_vring_num(struct rig *rig)
{
    return ring_num(rig, 0);
}

static int set_vring_base(struct rig *rig)
{
    return vuf_client_set_vring_base(rig->client, 0, 0);
}

static int set_vring_addr(struct rig *rig)
{
    const struct vuf_vring_addr addr = {.descriptor = 0, .available = 2048, .used = 3072};
    return vuf_client_set_vring_addr(rig->client, 0, &addr);
}

static int set_vring_err(struct rig *rig)
{
    return vuf_client_set_vring_err(rig->client, 0, rig->event);
}

static int set_vring_call(struct rig *rig)
{
    return vuf_client_set_vring_call(rig->client, 0, rig->event);
}

static int set_vring_kick(struct rig *rig)
{
    return vuf_client_set_vring_kick(rig->client, 0, rig->event);
}

static int set_vring_enable(struct rig *rig)
{
    return ring_enable(rig, 0);
}

static int get_vring_base(struct rig *rig)
{
    uint32_t base;
    return vuf_client_get_vring_base(rig->client, 0, SHORT_MS + SOON_MS, &base);
}

/* Closes at once what it is given. */
static int set_device_state_fd(struct rig *rig)
{
    int fd = -1, rc = vuf_client_set_device_state_fd(rig->client, VUF_TRANSFER_DIRECTION_SAVE,
                                                     VUF_TRANSFER_PHASE_STOPPED, rig->event, &fd);
    close(fd);
    return rc;
}

static int check_device_state(struct rig *rig)
{
    return vuf_client_check_device_state(rig->client);
}

#define STEP(name) {#name, name}
static const struct step {
    const char *name;
    int (*call)(struct rig *);
} steps[] = {
    STEP(get_features),   STEP(get_protocol_features), STEP(set_protocol_features),
    STEP(set_owner),      STEP(set_features),          STEP(get_queue_num),
    STEP(get_config),     STEP(set_mem_table),         STEP(set_log_base),
    STEP(set_vring_num),  STEP(get_inflight_fd),       STEP(set_inflight_fd),
    STEP(set_vring_base), STEP(set_vring_addr),        STEP(set_vring_err),
    STEP(set_vring_call), STEP(set_vring_kick),        STEP(set_vring_enable),
    STEP(get_vring_base), STEP(set_device_state_fd),   STEP(check_device_state),
};
enum { STEPS = LENGTH(steps) };

/* Makes the calls up to the first that fails, and returns how many succeeded.
   That one must fail with this code, and so must a call that is always allowed. */
static size_t bring_up(struct rig *rig, int code)
{
    for (size_t i = 0; i < STEPS; i++) {
        int rc = steps[i].call(rig);
        if (rc != 0) {
            same(rig, steps[i].name, "the code", rc, code);
            same(rig, steps[i].name, "the class", last_info().error_class, vuf_error_class(code));
            same(rig, "get_features", "the code after a failure", get_features(rig), code);
            return i;
        }
    }
    return STEPS;
}

/* ---- what a process has only one of ---- */

static struct surroundings {
    uint64_t actions[NSIG][4]; /* as the kernel writes them */
    uint64_t blocked;
    stack_t stack;
    struct rlimit limits[RLIM_NLIMITS];
    mode_t mask;
    char directory[PATH_MAX];
} at_start;

#define PART(name) {#name, offsetof(struct surroundings, name), sizeof at_start.name}
static const struct {
    const char *what;
    size_t at, size;
} parts[] = {PART(actions), PART(blocked), PART(stack), PART(limits), PART(mask), PART(directory)};

/* Into memory that is all zero. */
static void look_around(struct surroundings *now)
{
    for (int number = 1; number < NSIG; number++) {
        syscall(SYS_rt_sigaction, number, NULL, now->actions[number], sizeof now->blocked);
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &now->blocked, sizeof now->blocked);
    sigaltstack(NULL, &now->stack);
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
        getrlimit((__rlimit_resource_t)i, &now->limits[i]);
    }
    now->mask = umask(0);
    umask(now->mask);
    assert_non_null(getcwd(now->directory, sizeof now->directory));
}

static void *do_nothing(void *unused)
{
    return unused;
}

/* These are the first calls into the library in this program. */
static void the_process_stays_as_it_was(void **state)
{
    struct surroundings *now = test_calloc(1, sizeof *now);
    pthread_t first; /* for which the C library installs a handler of its own */
    assert_int_equal(pthread_create(&first, NULL, do_nothing, NULL), 0);
    pthread_join(first, NULL);
    look_around(&at_start);
    assert_int_equal(set_up(state), 0);
    struct rig *rig = *state;
    start_device(rig, FOR_EVER, 0);
    same(rig, "bring_up", "steps", (long long)bring_up(rig, 0), STEPS);
    end_device(rig);
    look_around(now);
    for (size_t i = 0; i < LENGTH(parts); i++) {
        same(rig, "comparing", parts[i].what,
             memcmp((char *)now + parts[i].at, (char *)&at_start + parts[i].at, parts[i].size), 0);
    }
    test_free(now);
    all_refused(rig);
    tear_down(state);
}

static void no_thread_is_started(void **state)
{
    struct rig *rig = *state;
    start_device(rig, FOR_EVER, 0);
    for (size_t i = 0; i < STEPS; i++) {
        same(rig, steps[i].name, "the code", steps[i].call(rig), 0);
        same(rig, steps[i].name, "threads", count_threads(), 2); /* this one and the device's */
    }
    end_device(rig);
    all_refused(rig);
}

/* ---- signals ---- */

/* SIGPIPE has its default: if one were raised, this program would be gone. */
static void a_back_end_may_hang_up_anywhere(void **state)
{
    struct rig *rig = *state;
    struct sigaction action;
    assert_return_code(sigaction(SIGPIPE, NULL, &action), errno);
    assert_ptr_equal(action.sa_handler, SIG_DFL);
    for (int i = 0; i < 2; i++) {
        with_reply_ack = i != 0;
        for (size_t messages = 0; messages < STEPS; messages++) {
            start_device(rig, messages, 0);
            size_t good = bring_up(rig, VUF_E_DISCONNECTED);
            end_device(rig);
            /* With REPLY_ACK each step is one message. One that is not answered
               may have gone out before the end was there. */
            bool fits = with_reply_ack ? good == messages || good == messages + 1 : good < STEPS;
            same(rig, "bring_up", "as many steps as messages", fits, true);
        }
    }
    all_refused(rig);
}

static volatile sig_atomic_t ticks;

static void tick(int number)
{
    (void)number;
    ticks++;
}

/* From now on each system call that waits is interrupted: no SA_RESTART. */
static void start_storm(void)
{
    const struct sigaction action = {.sa_handler = tick};
    ticks = 0;
    assert_return_code(sigaction(SIGALRM, &action, NULL), errno);
    start_timer(200, 200);
}

static void end_storm(void)
{
    start_timer(0, 0);
    signal(SIGALRM, SIG_IGN); /* one may be on its way */
}

static void interrupted_all_the_time_a_device_comes_up(void **state)
{
    struct rig *rig = *state;
    enum { HESITATION_US = 2000 };
    for (int i = 0; i < 2; i++) {
        with_reply_ack = i != 0;
        start_device(rig, FOR_EVER, HESITATION_US);
        start_storm();
        size_t good = bring_up(rig, 0);
        end_storm();
        end_device(rig);
        assert_int_equal(good, STEPS);
        assert_true(ticks > STEPS);
    }
    all_refused(rig);
}

/* Waits that end with their deadline. */

static int connect_with(struct rig *rig, uint32_t flags)
{
    struct vuf_client_options options = quick;
    struct vuf_client *client;
    options.connect_timeout_ms = SHORT_MS;
    options.flags = flags;
    return vuf_client_connect(rig->path, &options, &client);
}

/* The backlog is full with two that nobody accepts. */
static int wait_for_room(struct rig *rig)
{
    int listener = open_listener(rig, 0), waiting[2];
    struct sockaddr_un address = address_of(rig->path);
    for (int i = 0; i < 2; i++) {
        waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        connect(waiting[i], (struct sockaddr *)&address, sizeof address);
    }
    int rc = connect_with(rig, 0);
    close(waiting[0]);
    close(waiting[1]);
    close(listener);
    return rc;
}

/* The listener of wait_for_room() is gone; its socket is still there. */
static int wait_for_a_listener(struct rig *rig)
{
    return connect_with(rig, VUF_CLIENT_WAIT_FOR_SOCKET);
}

static int wait_for_a_connection(struct rig *rig)
{
    struct vuf_client_options options = quick;
    struct vuf_client *client;
    options.connect_timeout_ms = SHORT_MS;
    unlink(rig->path);
    rmdir(rig->dir);
    int listener = open_listener(rig, 1);
    int rc = vuf_client_accept(listener, &options, &client);
    close(listener);
    return rc;
}

static int wait_for_features(struct rig *rig)
{
    struct vuf_client_options options = quick;
    options.timeout_ms = SHORT_MS;
    reopen_client(rig, &options);
    return get_features(rig);
}

static int wait_for_a_drain(struct rig *rig)
{
    uint32_t base;
    reopen_client(rig, &quick);
    return vuf_client_get_vring_base(rig->client, 0, SHORT_MS, &base);
}

static const struct step waits[] = {
    STEP(wait_for_room),     STEP(wait_for_a_listener), STEP(wait_for_a_connection),
    STEP(wait_for_features), STEP(wait_for_a_drain),
};

static void interrupted_all_the_time_a_deadline_holds(void **state)
{
    struct rig *rig = *state;
    for (size_t i = 0; i < LENGTH(waits); i++) {
        start_storm();
        int64_t began = now_ms();
        int rc = waits[i].call(rig);
        int64_t took = now_ms() - began;
        end_storm();
        same(rig, waits[i].name, "the code", rc, -ETIMEDOUT);
        same(rig, waits[i].name, "not early", took >= SHORT_MS - 10, true);
        same(rig, waits[i].name, "not late", took <= SHORT_MS + SOON_MS, true);
        same(rig, waits[i].name, "interrupted", ticks > 10, true);
    }
    all_refused(rig);
}

static struct vuf_client *to_abort;
static volatile sig_atomic_t abort_code;

static void abort_on_alarm(int number)
{
    (void)number;
    abort_code = vuf_client_abort(to_abort);
}

static long us_since(const struct timespec *began)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - began->tv_sec) * 1000000 + (now.tv_nsec - began->tv_nsec) / 1000;
}

/* First some rounds without an abort, to see how long a bring-up takes; then
   aborts at moments that are spread over that time, and a little more. */
static void a_signal_handler_may_abort_at_any_moment(void **state)
{
    struct rig *rig = *state;
    enum { PLAIN = 10, ROUNDS = PLAIN + 200, NOT_CALLED = 1 };
    const struct sigaction action = {.sa_handler = abort_on_alarm};
    long whole_us = LONG_MAX;
    int inside = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec began;
        with_reply_ack = round % 2 == 0;
        start_device(rig, FOR_EVER, 0);
        to_abort = rig->client;
        abort_code = NOT_CALLED;
        assert_return_code(sigaction(SIGALRM, &action, NULL), errno);
        same(rig, "get_features", "the code", get_features(rig), 0); /* the device runs */
        if (round >= PLAIN) {
            start_timer(1 + whole_us * 5 / 4 * (round - PLAIN) / (ROUNDS - PLAIN), 0);
        }
        clock_gettime(CLOCK_MONOTONIC, &began);
        size_t good = bring_up(rig, -ECANCELED);
        long took_us = us_since(&began);
        start_timer(0, 0);
        signal(SIGALRM, SIG_IGN); /* one may be on its way */
        bool called = abort_code != NOT_CALLED;
        same(rig, "abort", "the code", called ? abort_code : 0, 0);
        same(rig, "get_features", "the code", get_features(rig), called ? -ECANCELED : 0);
        same(rig, "bring_up", "fails only if aborted", good == STEPS || called, true);
        same(rig, "bring_up", "does not hang", took_us < 1000L * SOON_MS, true);
        end_device(rig);
        inside += good > 0 && good < STEPS;
        whole_us = round < PLAIN && took_us < whole_us ? took_us : whole_us;
    }
    all_refused(rig);
    assert_in_range(inside, (ROUNDS - PLAIN) / 10, ROUNDS - PLAIN);
}

/* ---- descriptors ---- */

/* What a descriptor stands for, as "socket:[123]". */
static void name_of(int fd, char name[64])
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, 63);
    assert_true(length > 0);
    name[length] = '\0';
}

/* What the /proc/self/fd of a program that this one executes looks like. */
static void list_in_child(char *list, size_t size)
{
    int ends[2];
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        execlp("ls", "ls", "-l", "/proc/self/fd", (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t got; (got = read(ends[0], list + length, size - 1 - length)) > 0;) {
        length += (size_t)got;
    }
    list[length] = '\0';
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void an_executed_program_inherits_nothing(void **state)
{
    struct rig *rig = *state;
    struct vuf_client *connected, *accepted, *taken;
    struct vuf_inflight inflight;
    int listener = open_listener(rig, 2), ends[2], inherited[2], buffer, channel;
    assert_int_equal(vuf_client_connect(rig->path, &quick, &connected), 0);
    assert_int_equal(vuf_client_accept(listener, &quick, &accepted), 0);
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), errno); /* not close-on-exec */
    assert_int_equal(vuf_client_from_fd(ends[0], &quick, &taken), 0);
    const int memory = rig->memory;
    rig->memory = inherited[0] = memfd_create("sent", MFD_CLOEXEC);
    assert_return_code(ftruncate(rig->memory, PAGE), errno);
    start_device(rig, FOR_EVER, 0);
    rig->memory = memory;
    same(rig, "bring_up", "steps", (long long)bring_up(rig, 0), STEPS);
    assert_int_equal(vuf_client_get_inflight_fd(rig->client, 1, 128, &inflight, &buffer), 0);
    assert_int_equal(vuf_client_set_device_state_fd(rig->client, VUF_TRANSFER_DIRECTION_SAVE,
                                                    VUF_TRANSFER_PHASE_STOPPED, rig->event,
                                                    &channel),
                     0);
    close(inherited[0]);
    assert_return_code(pipe(inherited), errno); /* which shows that the list works */

    const struct {
        const char *what;
        int fd;
        bool listed;
    } table[] = {
        {"a pipe of the test", inherited[0], true},
        {"connected", vuf_client_get_fd(connected), false},
        {"accepted", vuf_client_get_fd(accepted), false},
        {"taken", ends[0], false},
        {"in-flight buffer", buffer, false},
        {"channel for device state", channel, false},
    };
    char list[8192], name[64];
    list_in_child(list, sizeof list);
    for (size_t i = 0; i < LENGTH(table); i++) {
        name_of(table[i].fd, name);
        same(rig, table[i].what, "listed", strstr(list, name) != NULL, table[i].listed);
    }
    close(buffer);
    close(channel);
    close(inherited[0]);
    close(inherited[1]);
    close(ends[1]);
    close(listener);
    vuf_client_free(taken);
    vuf_client_free(accepted);
    vuf_client_free(connected);
    end_device(rig);
    all_refused(rig);
}

static void *send_until_refused(void *argument)
{
    struct rig *rig = argument;
    while (vuf_client_set_log_fd(rig->client, rig->event) == 0) {
    }
    return NULL;
}

/* A request that does not fit into the socket keeps a duplicate of what it is
   to send. */
static void what_waits_for_room_is_close_on_exec(void **state)
{
    struct rig *rig = *state;
    int ends[2], before = count_fds();
    make_pair(ends);
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &(int){PAGE}, sizeof(int));
    struct vuf_client *filled;
    assert_int_equal(vuf_client_from_fd(ends[0], &quick, &filled), 0);
    struct rig other = {.client = filled, .event = rig->event};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, send_until_refused, &other), 0);
    int64_t deadline = now_ms() + SOON_MS;
    while (count_fds() < before + 3 && now_ms() < deadline) {
        sleep_ms(1);
    }
    int kept = count_fds() - before - 2;
    for (int fd = 3, flags; fd < rig->closed; fd++) {
        if (kept == 1 && (flags = fcntl(fd, F_GETFD)) != -1) {
            char name[64];
            name_of(fd, name);
            bool ours = strstr(name, "[eventfd]") != NULL;
            same(rig, name, "close-on-exec", !ours || flags == FD_CLOEXEC, true);
        }
    }
    vuf_client_abort(filled);
    pthread_join(thread, NULL);
    vuf_client_free(filled);
    close(ends[1]);
    assert_int_equal(kept, 1);
    assert_int_equal(count_fds(), before);
    all_refused(rig);
}

/* ---- output ---- */

static int on_null(struct rig *rig)
{
    (void)rig;
    return vuf_client_set_owner(NULL);
}

static int info_for_null(struct rig *rig)
{
    (void)rig;
    return vuf_last_error_info(NULL);
}

static int bad_descriptor(struct rig *rig)
{
    return vuf_client_set_log_fd(rig->client, rig->closed);
}

static int not_a_socket(struct rig *rig)
{
    struct vuf_client *client;
    return vuf_client_from_fd(rig->event, &quick, &client);
}

static int owner_twice(struct rig *rig)
{
    int rc = vuf_client_set_owner(rig->client);
    return rc != 0 ? rc : vuf_client_set_owner(rig->client);
}

static int too_early(struct rig *rig)
{
    return vuf_client_get_queue_num(rig->client, &(uint64_t){0});
}

static int nowhere(struct rig *rig)
{
    struct vuf_client *client;
    (void)rig;
    return vuf_client_connect("/nowhere/socket", &quick, &client);
}

static int hung_up(struct rig *rig)
{
    close(rig->peer);
    rig->peer = -1;
    return vuf_client_set_owner(rig->client);
}

static int aborted(struct rig *rig)
{
    vuf_client_abort(rig->client);
    return vuf_client_set_owner(rig->client);
}

static int poisoned(struct rig *rig)
{
    return wait_for_features(rig) == -ETIMEDOUT ? set_owner(rig) : 0;
}

static int unasked(struct rig *rig)
{
    write_reply(rig->peer, GET_FEATURES, &U64_REPLY(1));
    return vuf_client_set_owner(rig->client);
}

static int refused(struct rig *rig)
{
    const struct reply no[] = {U64_REPLY(1)};
    struct script script;
    adopt(rig, BIT(VUF_F_PROTOCOL_FEATURES), BIT(VUF_PROTOCOL_F_REPLY_ACK));
    start_script(&script, rig->peer, no, 1);
    int rc = ring_enable(rig, 0);
    end_script(&script);
    return rc;
}

static const struct {
    const char *name;
    int (*call)(struct rig *);
    int code;
} failures[] = {
    {"client is NULL", on_null, -EINVAL},
    {"info is NULL", info_for_null, -EINVAL},
    {"a descriptor that is not open", bad_descriptor, -EBADF},
    {"not a socket", not_a_socket, -ENOTSOCK},
    {"SET_OWNER twice", owner_twice, VUF_E_STATE},
    {"not negotiated", too_early, VUF_E_NOT_NEGOTIATED},
    {"no such socket", nowhere, -ENOENT},
    {"nobody connects", wait_for_a_connection, -ETIMEDOUT},
    {"nobody answers", wait_for_features, -ETIMEDOUT},
    {"after nobody answered", poisoned, VUF_E_POISONED},
    {"hung up", hung_up, VUF_E_DISCONNECTED},
    {"aborted", aborted, -ECANCELED},
    {"a reply that nobody asked for", unasked, VUF_E_PROTOCOL},
    {"refused", refused, VUF_E_NACK},
};

static void nothing_is_printed(void **state)
{
    struct rig *rig = *state;
    int saved[] = {fcntl(1, F_DUPFD_CLOEXEC, 3), fcntl(2, F_DUPFD_CLOEXEC, 3)};
    int paper = memfd_create("paper", MFD_CLOEXEC);
    for (size_t i = 0; i < LENGTH(failures); i++) {
        reopen_client(rig, &quick);
        fflush(NULL);
        dup2(paper, 1);
        dup2(paper, 2);
        int rc = failures[i].call(rig);
        fflush(NULL);
        dup2(saved[0], 1);
        dup2(saved[1], 2);
        struct stat file;
        assert_return_code(fstat(paper, &file), errno);
        assert_return_code(ftruncate(paper, 0), errno);
        same(rig, failures[i].name, "the code", rc, failures[i].code);
        same(rig, failures[i].name, "bytes printed", file.st_size, 0);
    }
    close(paper);
    close(saved[0]);
    close(saved[1]);
    all_refused(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_process_stays_as_it_was), /* must be the first */
        TEST(no_thread_is_started),
        TEST(a_back_end_may_hang_up_anywhere),
        TEST(interrupted_all_the_time_a_device_comes_up),
        TEST(interrupted_all_the_time_a_deadline_holds),
        TEST(a_signal_handler_may_abort_at_any_moment),
        TEST(an_executed_program_inherits_nothing),
        TEST(what_waits_for_room_is_close_on_exec),
        TEST(nothing_is_printed),
    };
    return cmocka_run_group_tests_name("test_hygiene", tests, default_signals, NULL);
}
