/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Deadlines of a caller that does not run all the time: its whole process is
   stopped, for longer than its deadline, while what it waits for arrives. And
   waits that end because a signal handler of the waiting thread aborts.

   The caller is a forked child, as the test must not be stopped with it. */
#include "rig.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    DEADLINE_MS = 100, /* is meant to pass, but not before the caller is stopped */
    ATTEMPTS = 20,     /* on a machine that is too busy for that */
    LATE = 2,          /* so many attempts may fail where another thread must be quick */
    LATE_ONE_BY_ONE = 8, /* and where threads run one at a time, as under valgrind */
    BASE = 0x1234,
};

static const struct vuf_inflight buffer = {PAGE, 0, 1, 128, 0};

/* One caller that waits. */
struct waiting {
    struct rig rig; /* its own place to listen */
    int ends[2];   /* of its connection: its own, and the peer's */
    int listener;  /* for those that do not have a connection yet */
    int filled[2]; /* what its backlog is full of */
    uint32_t timeout_ms, on_timeout;
    bool handles_cont; /* it has a handler of SIGCONT, which interrupts */
    struct vuf_client *client;
    pid_t pid;
    int64_t resumed;
    struct outcome {
        int64_t began, ended;
        int rc, rc_of_other, rc_after;
        int fillers; /* messages that keep the socket full */
        bool done;
    } *is; /* memory that is shared with the child */
};

/* ---- ways to wait ---- */

static int in_a_receive(struct waiting *w)
{
    uint64_t features = 0;
    int rc = vuf_client_get_features(w->client, &features);
    return rc == 0 && features != BASE ? -EBADMSG : rc;
}

/* A deadline of its own is shorter than a receive may take. */
static int in_poll(struct waiting *w)
{
    uint32_t base = 0;
    int rc = vuf_client_get_vring_base(w->client, 0, w->timeout_ms, &base);
    return rc == 0 && base != BASE ? -EBADMSG : rc;
}

static void *read_for_others(void *argument)
{
    struct waiting *w = argument;
    uint32_t base = 0;
    int rc = vuf_client_get_vring_base(w->client, 1, VUF_TIMEOUT_FOREVER, &base);
    w->is->rc_of_other = rc == 0 && base != 1 ? -EBADMSG : rc;
    return NULL;
}

static int behind_another_thread(struct waiting *w)
{
    pthread_t other;
    if (pthread_create(&other, NULL, read_for_others, w) != 0) {
        return -EAGAIN;
    }
    /* Its request has to be the first, as it is answered first. */
    struct vuf_counters counters = {.size = sizeof counters};
    while (vuf_client_get_counters(w->client, &counters) == 0 && counters.requests_sent == 0) {
        sleep_ms(1);
    }
    sleep_ms(20);
    w->is->began = now_ms();
    int rc = in_poll(w);
    w->is->ended = now_ms();
    if (rc != 0 && rc != -ECANCELED) { /* else the other has its answer too */
        vuf_client_abort(w->client);
    }
    pthread_join(other, NULL);
    return rc;
}

static int for_a_descriptor(struct waiting *w)
{
    struct vuf_inflight inflight;
    struct stat got, sent;
    int fd = -1, rc = vuf_client_get_inflight_fd(w->client, 1, 128, &inflight, &fd);
    if (rc == 0 && (fstat(fd, &got) != 0 || fstat(w->rig.memory, &sent) != 0 ||
                    got.st_ino != sent.st_ino || memcmp(&inflight, &buffer, sizeof buffer) != 0)) {
        rc = -EBADMSG;
    }
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

static int for_room(struct waiting *w)
{
    const uint32_t filler[] = {SET_VRING_NUM, 0x1, 8, 0, 128};
    while (send(w->ends[0], filler, sizeof filler, MSG_DONTWAIT) == sizeof filler) {
        w->is->fillers++;
    }
    w->is->began = now_ms();
    return vuf_client_set_log_fd(w->client, w->rig.event);
}

static int to_connect(struct waiting *w, uint32_t flags)
{
    struct vuf_client_options options = quick;
    struct vuf_client *client;
    options.connect_timeout_ms = w->timeout_ms;
    options.flags = flags;
    int rc = vuf_client_connect(w->rig.path, &options, &client);
    vuf_client_free(client);
    return rc;
}

static int for_a_place_in_the_backlog(struct waiting *w)
{
    return to_connect(w, 0);
}

static int for_a_listener(struct waiting *w)
{
    return to_connect(w, VUF_CLIENT_WAIT_FOR_SOCKET);
}

static int for_a_connection(struct waiting *w)
{
    struct vuf_client_options options = quick;
    struct vuf_client *client;
    options.connect_timeout_ms = w->timeout_ms;
    int rc = vuf_client_accept(w->listener, &options, &client);
    vuf_client_free(client);
    return rc;
}

/* ---- what each waits for ---- */

static bool say_features(struct waiting *w)
{
    return write_reply(w->ends[1], GET_FEATURES, &U64_REPLY(BASE));
}

static bool say_base(struct waiting *w, uint32_t ring, uint32_t base)
{
    const uint32_t state[] = {ring, base};
    return write_reply(w->ends[1], GET_VRING_BASE,
                       &(struct reply){.size = sizeof state, .payload = state});
}

static bool say_base_of_0(struct waiting *w)
{
    return say_base(w, 0, BASE);
}

static bool say_both(struct waiting *w)
{
    return say_base(w, 1, 1) && say_base(w, 0, BASE);
}

static bool say_in_pieces(struct waiting *w)
{
    const uint32_t reply[] = {GET_FEATURES, 0x5, 8, BASE, 0};
    return send(w->ends[1], reply, 7, MSG_NOSIGNAL) == 7 &&
           send(w->ends[1], (const char *)reply + 7, sizeof reply - 7, MSG_NOSIGNAL) ==
               sizeof reply - 7;
}

static bool give_buffer(struct waiting *w)
{
    return write_reply(w->ends[1], GET_INFLIGHT_FD,
                       &(struct reply){.size = sizeof buffer, .payload = &buffer,
                                       .fd = w->rig.memory});
}

/* The header has the descriptor with it: libvhost-user sends it so. */
static bool give_buffer_in_pieces(struct waiting *w)
{
    return write_reply(w->ends[1], GET_INFLIGHT_FD,
                       &(struct reply){.size = sizeof buffer, .fd = w->rig.memory}) &&
           send(w->ends[1], &buffer, sizeof buffer, MSG_NOSIGNAL) == sizeof buffer;
}

static bool make_room(struct waiting *w)
{
    struct header header;
    for (int i = 0; i < w->is->fillers; i++) {
        if (!read_request(w->ends[1], &header)) {
            return false;
        }
    }
    return true;
}

static bool take_the_backlog(struct waiting *w)
{
    int taken = accept(w->listener, NULL, NULL);
    return taken >= 0 && close(taken) == 0;
}

static bool begin_to_listen(struct waiting *w)
{
    return listen(w->listener, 1) == 0;
}

static bool come_in(struct waiting *w)
{
    struct sockaddr_un address = address_of(w->rig.path);
    w->filled[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return connect(w->filled[0], (struct sockaddr *)&address, sizeof address) == 0;
}

static const struct way {
    const char *name;
    int (*call)(struct waiting *);
    int requests; /* that the peer sees before the caller waits */
    bool (*serve)(struct waiting *);
    int backlog;        /* of the listener, if it is about connecting */
    bool connected;     /* or else there is a connection */
    bool may_come_late; /* another thread has 20 ms to deliver it */
} ways[] = {
    {"in a receive", in_a_receive, 1, say_features, 0, true, false},
    {"in a receive, for pieces", in_a_receive, 1, say_in_pieces, 0, true, false},
    {"in poll", in_poll, 1, say_base_of_0, 0, true, false},
    {"behind another thread", behind_another_thread, 2, say_both, 0, true, true},
    {"for a descriptor", for_a_descriptor, 1, give_buffer, 0, true, false},
    {"for a descriptor, in pieces", for_a_descriptor, 1, give_buffer_in_pieces, 0, true, false},
    {"for room", for_room, 0, make_room, 0, true, false},
    {"for a place in the backlog", for_a_place_in_the_backlog, 0, take_the_backlog, 0, false,
     false},
    {"for a listener", for_a_listener, 0, begin_to_listen, -1, false, false},
    {"for a connection", for_a_connection, 0, come_in, 1, false, false},
};

/* ---- a caller that is stopped ---- */

static void open_ends(struct waiting *w, const struct way *way)
{
    w->ends[0] = w->ends[1] = w->listener = w->filled[0] = w->filled[1] = -1;
    if (way->connected) {
        make_pair(w->ends);
        return;
    }
    w->listener = open_listener(&w->rig, way->backlog);
    if (way->call == for_a_place_in_the_backlog) {
        struct sockaddr_un address = address_of(w->rig.path);
        for (int i = 0; i < 2; i++) {
            w->filled[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            connect(w->filled[i], (struct sockaddr *)&address, sizeof address);
        }
    }
}

static void close_ends(struct waiting *w)
{
    const int fds[] = {w->ends[0], w->ends[1], w->listener, w->filled[0], w->filled[1]};
    for (size_t i = 0; i < LENGTH(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    if (w->rig.path[0] != '\0') {
        unlink(w->rig.path);
        rmdir(w->rig.dir);
        w->rig.path[0] = '\0';
    }
}

/* Takes the caller's end of the connection. */
static void open_waiting(struct waiting *w)
{
    const struct vuf_client_options options = {
        .size = sizeof options,
        .timeout_ms = w->timeout_ms,
        .slow_timeout_ms = w->timeout_ms,
        .on_timeout = w->on_timeout,
        .flags = VUF_CLIENT_ADOPT,
        .adopt_features = BIT(VUF_F_PROTOCOL_FEATURES),
        .adopt_protocol_features = all_protocol_features(),
    };
    assert_int_equal(vuf_client_from_fd(w->ends[0], &options, &w->client), 0);
}

static void on_cont(int number)
{
    (void)number;
}

static void be_the_caller(struct waiting *w, const struct way *way)
{
    const struct sigaction action = {.sa_handler = on_cont};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(PEER_MS / 1000);
    if (w->handles_cont) {
        sigaction(SIGCONT, &action, NULL);
    }
    if (way->connected) {
        close(w->ends[1]);
        open_waiting(w);
    }
    w->is->began = now_ms();
    int rc = way->call(w);
    w->is->rc = rc;
    if (w->is->ended == 0) {
        w->is->ended = now_ms();
    }
    w->is->done = true;
    if (way->connected && way->requests == 1) {
        w->is->rc_after = vuf_client_set_log_fd(w->client, w->rig.event);
    }
    vuf_client_free(w->client);
    execlp("true", "true", (char *)NULL); /* which valgrind does not look into */
    _exit(127);
}

/* Returns once it waits. */
static bool see_it_wait(struct waiting *w, const struct way *way)
{
    struct header header;
    for (int i = 0; i < way->requests; i++) {
        if (!read_request(w->ends[1], &header)) {
            return false;
        }
    }
    volatile struct outcome *is = w->is;
    for (int64_t stuck = now_ms() + PEER_MS; is->began == 0; sleep_ms(1)) {
        if (now_ms() > stuck) {
            return false;
        }
    }
    sleep_ms(10);
    return true;
}

/* Starts a caller, and stops it while it waits; false if it was not stopped
   before its deadline. */
static bool stop_one(struct waiting *w, const struct way *way)
{
    int status;
    memset(w->is, 0, sizeof *w->is);
    w->client = NULL;
    open_ends(w, way);
    w->pid = fork();
    if (w->pid == 0) {
        be_the_caller(w, way);
    }
    assert_true(w->pid > 0);
    if (way->connected) {
        close(w->ends[0]);
        w->ends[0] = -1;
    }
    see_it_wait(w, way);
    kill(w->pid, SIGSTOP);
    if (waitpid(w->pid, &status, WUNTRACED) == w->pid && WIFSTOPPED(status)) {
        if (!w->is->done && now_ms() - w->is->began < DEADLINE_MS - 10) {
            return true;
        }
        kill(w->pid, SIGKILL);
        waitpid(w->pid, &status, 0);
    }
    close_ends(w);
    return false;
}

static void resume_one(struct waiting *w)
{
    int status;
    w->resumed = now_ms();
    kill(w->pid, SIGCONT);
    bool ended = waitpid(w->pid, &status, 0) == w->pid;
    close_ends(w);
    assert_true(ended && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void check_one(struct rig *rig, const struct waiting *w, const struct way *way, bool served)
{
    same(rig, way->name, "the code", w->is->rc, served ? 0 : -ETIMEDOUT);
    same(rig, way->name, "returns soon", w->is->ended - w->resumed < SOON_MS, true);
    bool aborted = !served && way->call == behind_another_thread;
    same(rig, way->name, "the code of the other", w->is->rc_of_other, aborted ? -ECANCELED : 0);
    bool poisoned = !served && way->requests == 1 && w->on_timeout == VUF_ON_TIMEOUT_POISON;
    same(rig, way->name, "the next code", w->is->rc_after, poisoned ? VUF_E_POISONED : 0);
}

/* Stops a caller of each kind, serves them or not, and lets them go on after
   several deadlines. */
static void stop_each(struct rig *rig, uint32_t on_timeout, bool handles_cont, bool serve)
{
    enum { N = LENGTH(ways) };
    struct outcome *is =
        mmap(NULL, N * sizeof *is, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(is, MAP_FAILED);
    struct waiting all[N];
    bool stopped[N], good[N] = {false};
    int lates = 0, allowed = getenv("VUF_THREADS_ONE_BY_ONE") ? LATE_ONE_BY_ONE : LATE;
    for (int attempt = 0, left = N; left > 0 && attempt < ATTEMPTS; attempt++) {
        for (size_t i = 0; i < N; i++) {
            all[i] = (struct waiting){
                .rig = *rig, .timeout_ms = DEADLINE_MS, .on_timeout = on_timeout,
                .handles_cont = handles_cont, .is = &is[i]};
            stopped[i] = !good[i] && stop_one(&all[i], &ways[i]);
            if (stopped[i] && serve) {
                same(rig, ways[i].name, "served", ways[i].serve(&all[i]), true);
            }
        }
        sleep_ms(3 * DEADLINE_MS + 10);
        for (size_t i = 0; i < N; i++) {
            if (stopped[i]) {
                resume_one(&all[i]);
                bool late = ways[i].may_come_late && serve && is[i].rc == -ETIMEDOUT;
                good[i] = !late || ++lates > allowed;
                left -= good[i];
            }
            if (stopped[i] && good[i]) {
                check_one(rig, &all[i], &ways[i], serve);
            }
        }
    }
    for (size_t i = 0; i < N; i++) {
        same(rig, ways[i].name, "is stopped in time, and served in time", good[i], true);
    }
    munmap(is, N * sizeof *is);
}

static void what_arrived_while_stopped_counts(void **state)
{
    stop_each(*state, VUF_ON_TIMEOUT_POISON, false, true);
    stop_each(*state, VUF_ON_TIMEOUT_KEEP, false, true);
    all_refused(*state);
}

/* As emulators have one, to set up the terminal again. */
static void what_arrived_while_stopped_counts_with_a_handler(void **state)
{
    stop_each(*state, VUF_ON_TIMEOUT_POISON, true, true);
    stop_each(*state, VUF_ON_TIMEOUT_KEEP, true, true);
    all_refused(*state);
}

static void a_deadline_that_passed_while_stopped_has_passed(void **state)
{
    stop_each(*state, VUF_ON_TIMEOUT_POISON, false, false);
    stop_each(*state, VUF_ON_TIMEOUT_KEEP, true, false);
    all_refused(*state);
}

/* ---- abort in a signal handler ---- */

static struct vuf_client *volatile to_abort;

static void abort_in_handler(int number)
{
    (void)number;
    int before = errno;
    vuf_client_abort(to_abort);
    errno = before;
}

static void *wait_in_thread(void *argument)
{
    struct waiting *w = argument;
    const struct way *way = &ways[w->is->fillers];
    w->is->fillers = 0;
    w->is->began = now_ms();
    w->is->rc = way->call(w);
    w->is->ended = now_ms();
    return NULL;
}

static void abort_in_a_handler_of_the_thread_ends_its_wait(void **state)
{
    struct rig *rig = *state;
    for (size_t i = 0; i < 2 * LENGTH(ways); i++) {
        const struct way *way = &ways[i / 2];
        if (!way->connected) {
            continue;
        }
        const struct sigaction action = {.sa_handler = abort_in_handler,
                                         .sa_flags = i % 2 == 0 ? 0 : SA_RESTART};
        struct sigaction before;
        struct outcome is = {.fillers = (int)i / 2};
        struct waiting w = {.rig = *rig, .timeout_ms = PEER_MS, .is = &is};
        pthread_t thread;
        open_ends(&w, way);
        open_waiting(&w);
        to_abort = w.client;
        assert_return_code(sigaction(SIGUSR1, &action, &before), errno);
        assert_int_equal(pthread_create(&thread, NULL, wait_in_thread, &w), 0);
        assert_true(see_it_wait(&w, way));
        sleep_ms(20);
        int64_t aborted = now_ms();
        pthread_kill(thread, SIGUSR1);
        pthread_join(thread, NULL);
        assert_return_code(sigaction(SIGUSR1, &before, NULL), errno);
        same(rig, way->name, "the code", is.rc, -ECANCELED);
        same(rig, way->name, "at once", is.ended - aborted < SOON_MS, true);
        bool other = way->call == behind_another_thread;
        same(rig, way->name, "the code of the other", is.rc_of_other, other ? -ECANCELED : 0);
        same(rig, way->name, "the next code", vuf_client_set_log_fd(w.client, rig->event),
             -ECANCELED);
        vuf_client_free(w.client);
        w.ends[0] = -1;
        close_ends(&w);
    }
    all_refused(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_arrived_while_stopped_counts),
        TEST(what_arrived_while_stopped_counts_with_a_handler),
        TEST(a_deadline_that_passed_while_stopped_has_passed),
        TEST(abort_in_a_handler_of_the_thread_ends_its_wait),
    };
    return cmocka_run_group_tests_name("test_deadlines", tests, default_signals, NULL);
}
