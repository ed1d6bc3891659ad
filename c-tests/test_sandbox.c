/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The library under a seccomp filter that lets through what the tables in
   docs/system-calls.md list, and nothing else. Each scene is played in a process
   of its own, which installs the filter when all is loaded. */
#include "rig.h"
#include "virtio_blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHORT_MS = 40 }; /* a deadline that is meant to pass */

/* ---- what is allowed ---- */

/* The first table of docs/system-calls.md. ANY(call), or ONLY(call, position of
   the argument, its value). */
#define OF_THE_LIBRARY(ANY, ONLY)                                                                  \
    ONLY(socket, 1, SOCK_STREAM | SOCK_CLOEXEC)                                                    \
    ANY(connect)                                                                                   \
    ONLY(accept4, 3, SOCK_CLOEXEC)                                                                 \
    ANY(getsockname)                                                                               \
    ANY(getpeername)                                                                               \
    ONLY(getsockopt, 2, SO_TYPE)                                                                   \
    ONLY(getsockopt, 2, SO_ACCEPTCONN)                                                             \
    ONLY(getsockopt, 2, SO_RCVTIMEO)                                                               \
    ONLY(getsockopt, 2, SO_COOKIE)                                                                 \
    ONLY(setsockopt, 2, SO_RCVTIMEO)                                                               \
    ONLY(setsockopt, 2, SO_SNDTIMEO)                                                               \
    ONLY(fcntl, 1, F_SETFD)                                                                        \
    ONLY(fcntl, 1, F_GETFD)                                                                        \
    ONLY(fcntl, 1, F_DUPFD_CLOEXEC)                                                                \
    ANY(getpid)                                                                                    \
    ONLY(ioctl, 1, FIONREAD)                                                                       \
    ONLY(sendmsg, 2, MSG_DONTWAIT | MSG_NOSIGNAL)                                                  \
    ONLY(sendmmsg, 3, MSG_DONTWAIT | MSG_NOSIGNAL)                                                 \
    ONLY(recvmsg, 2, MSG_CMSG_CLOEXEC)                                                             \
    ONLY(recvmsg, 2, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)                                              \
    ANY(poll)                                                                                      \
    ANY(futex)                                                                                     \
    ONLY(shutdown, 1, SHUT_RD)                                                                     \
    ONLY(shutdown, 1, SHUT_RDWR)                                                                   \
    ONLY(socketpair, 1, SOCK_STREAM | SOCK_CLOEXEC)                                                \
    ONLY(eventfd2, 1, EFD_CLOEXEC | EFD_NONBLOCK)                                                  \
    ONLY(epoll_create1, 0, EPOLL_CLOEXEC)                                                          \
    ONLY(epoll_ctl, 1, EPOLL_CTL_ADD)                                                              \
    ONLY(epoll_ctl, 1, EPOLL_CTL_MOD)                                                              \
    ONLY(epoll_ctl, 1, EPOLL_CTL_DEL)                                                              \
    ANY(read)                                                                                      \
    ANY(write)                                                                                     \
    ANY(io_setup)                                                                                  \
    ANY(io_submit)                                                                                 \
    ANY(io_getevents)                                                                              \
    ONLY(socket, 1, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)                                    \
    ONLY(socket, 1, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK)                                     \
    ANY(bind)                                                                                      \
    ANY(listen)                                                                                    \
    ANY(fchmod)                                                                                    \
    ONLY(openat, 2, O_PATH | O_DIRECTORY | O_CLOEXEC)                                              \
    ANY(newfstatat)                                                                                \
    ONLY(statx, 2, AT_EMPTY_PATH | AT_STATX_DONT_SYNC)                                             \
    ONLY(unlinkat, 2, 0)                                                                           \
    ONLY(fcntl, 1, F_SETFL)                                                                        \
    ONLY(inotify_init1, 0, IN_CLOEXEC | IN_NONBLOCK)                                               \
    ANY(inotify_add_watch)                                                                         \
    ONLY(getsockopt, 2, SO_PEERCRED)                                                               \
    ONLY(timerfd_create, 1, TFD_CLOEXEC | TFD_NONBLOCK)                                            \
    ANY(timerfd_settime)                                                                           \
    ONLY(fcntl, 1, F_GETFL)                                                                        \
    ONLY(fcntl, 1, F_GET_SEALS)                                                                    \
    ANY(fstatfs)                                                                                   \
    ONLY(shutdown, 1, SHUT_WR)                                                                     \
    ANY(memfd_create)                                                                              \
    ANY(ftruncate)                                                                                 \
    ONLY(prlimit64, 1, RLIMIT_FSIZE)                                                               \
    ONLY(fcntl, 1, F_ADD_SEALS)                                                                    \
    ANY(close)

/* The second table: made now and then, on the library's behalf. */
#define OF_ITS_SURROUNDINGS(ANY, ONLY)                                                             \
    ANY(brk)                                                                                       \
    ONLY(mmap, 2, PROT_NONE)                                                                       \
    ONLY(mmap, 2, PROT_READ | PROT_WRITE)                                                          \
    ONLY(mprotect, 2, PROT_READ | PROT_WRITE)                                                      \
    ANY(mremap)                                                                                    \
    ANY(munmap)                                                                                    \
    ANY(madvise)                                                                                   \
    ANY(rt_sigprocmask)                                                                            \
    ANY(rt_sigaction)                                                                              \
    ANY(clone3)                                                                                    \
    ANY(clone)                                                                                     \
    ANY(set_robust_list)                                                                           \
    ANY(rseq)                                                                                      \
    ANY(exit)                                                                                      \
    ANY(clock_gettime)                                                                             \
    ANY(restart_syscall)

/* Not of the library: to sleep, to end. It also writes kicks and complaints. */
#define OF_THIS_TEST(ANY, ONLY) ANY(clock_nanosleep) ANY(exit_group)

#ifndef SYS_poll
#define SYS_poll SYS_ppoll /* what the C library makes of it on newer machines */
#endif

enum { NO_ARGUMENT = -1 };

#define ALLOW_ANY(call) {#call, SYS_##call, NO_ARGUMENT, 0},
#define ALLOW_ONLY(call, position, value) {#call "(" #value ")", SYS_##call, position, value},
static const struct rule {
    const char *name;
    long number;
    int position;
    unsigned value;
} rules[] = {
    OF_THE_LIBRARY(ALLOW_ANY, ALLOW_ONLY)
    OF_ITS_SURROUNDINGS(ALLOW_ANY, ALLOW_ONLY)
    OF_THIS_TEST(ALLOW_ANY, ALLOW_ONLY)
};
#define ONE(...) +1
enum { RULES = LENGTH(rules), RULES_OF_THE_LIBRARY = OF_THE_LIBRARY(ONE, ONE), NONE = -1 };

#if defined(__x86_64__)
enum { MACHINE = (int)AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { MACHINE = (int)AUDIT_ARCH_AARCH64 };
#else
enum { MACHINE = 0 };
#endif

/* ---- the filter ---- */

static int left_out = NONE; /* a rule that is not put into the filter */
/* What happens to a call that no rule allows. The handler of SIGSYS names it and ends the
   process. */
static unsigned verdict = SECCOMP_RET_TRAP;

static bool enter_sandbox(void)
{
    struct sock_filter code[4 + 6 * RULES], *at = code;
#define DATA(field)                                                                                \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, field))
#define UNLESS(number, skipped) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(number), 0, skipped)
#define RETURN(verdict) BPF_STMT(BPF_RET | BPF_K, verdict)
#define ADD(...) (*at++ = (struct sock_filter)__VA_ARGS__)
    ADD(DATA(arch));
    ADD(UNLESS(MACHINE, 1)); /* behind the next, which no number of ours passes */
    ADD(DATA(nr));
    for (int i = 0; i < RULES; i++) {
        const struct rule *rule = &rules[i];
        if (i == left_out) {
            continue;
        }
        if (rule->position == NO_ARGUMENT) {
            ADD(UNLESS(rule->number, 1));
            ADD(RETURN(SECCOMP_RET_ALLOW));
            continue;
        }
        ADD(UNLESS(rule->number, 4));
        /* The low half, first on these machines: flags and the like are ints. */
        ADD(DATA(args[rule->position]));
        ADD(UNLESS(rule->value, 1));
        ADD(RETURN(SECCOMP_RET_ALLOW));
        ADD(DATA(nr));
    }
    ADD(RETURN(verdict));
    const struct sock_fprog program = {(unsigned short)(at - code), code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* ---- a scene in its own process ---- */

struct scene {
    const char *name;
    void (*prepare)(void); /* before the filter is there */
    void (*play)(void);
    bool disturbed; /* stopped and continued all the time */
};

static void complain(const char *file, int line, const char *what, long number)
{
    char text[512];
    int length = snprintf(text, sizeof text, "%s:%d: %s %ld (%s)\n", file, line, what, number,
                          vuf_last_error());
    ssize_t written = write(STDOUT_FILENO, text, (size_t)length);
    _exit(written == length ? 1 : 2);
}

#define SHOULD(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            complain(__FILE__, __LINE__, #condition, 0);                                           \
        }                                                                                          \
    } while (0)
#define SHOULD_RETURN(code, call)                                                                  \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_ != (code)) {                                                                       \
            complain(__FILE__, __LINE__, #call, rc_);                                              \
        }                                                                                          \
    } while (0)

#define TRAPPED "system call"

static void trapped(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    complain(__FILE__, __LINE__, TRAPPED, info->si_syscall);
}

static void disturb(pid_t child)
{
    for (int64_t deadline = now_ms() + PEER_MS; now_ms() < deadline; sleep_ms(5)) {
        siginfo_t info = {0};
        kill(child, SIGSTOP);
        sleep_ms(2);
        kill(child, SIGCONT);
        if (waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
            info.si_pid == child) {
            return;
        }
    }
}

/* Returns whether it went to its end; otherwise words has the reason. */
static bool act(const struct scene *scene, char *words, size_t size)
{
    int ends[2], status;
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    pid_t child = fork();
    if (child == 0) {
        const struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
        dup2(ends[1], STDOUT_FILENO);
        alarm(PEER_MS / 1000);
        sigaction(SIGSYS, &action, NULL);
        scene->prepare();
        SHOULD(enter_sandbox());
        scene->play();
        _exit(0);
    }
    close(ends[1]);
    if (scene->disturbed) {
        disturb(child);
    }
    ssize_t length = read(ends[0], words, size - 1);
    words[length > 0 ? length : 0] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
        snprintf(words, size, "signal %d\n", WTERMSIG(status));
    }
    return status == 0;
}

/* ---- scenes ---- */

static struct backend backend;
static struct guest_memory memory;
static struct blk_ring ring = {.kick_fd = -1, .call_fd = -1, .err_fd = -1};
static struct rig full; /* for a listener whose backlog is full */
static int full_listener, waiting[2];

static const struct vuf_client_options impatient = {
    .size = sizeof impatient,
    .connect_timeout_ms = SHORT_MS,
    .timeout_ms = SHORT_MS,
    .slow_timeout_ms = SHORT_MS,
};

static int listener, ends[2];
static struct vuf_client *client;
static uint64_t features;

static void prepare_nothing(void)
{
}

static void prepare_pair(void)
{
    SHOULD(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
}

static void connect_and_run_a_device(void)
{
    uint64_t protocol, queues, sectors;
    uint32_t base;
    const struct vuf_mem_region region = guest_memory_region(&memory);
    SHOULD_RETURN(-ENOENT, vuf_client_connect("/nowhere/socket", &impatient, &client));
    SHOULD_RETURN(0, vuf_client_connect(backend.socket, NULL, &client));
    SHOULD_RETURN(0, vuf_client_get_features(client, &features));
    SHOULD_RETURN(0, vuf_client_get_protocol_features(client, &protocol));
    protocol &= BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG) | BIT(VUF_PROTOCOL_F_REPLY_ACK);
    SHOULD_RETURN(0, vuf_client_set_protocol_features(client, protocol));
    SHOULD_RETURN(0, vuf_client_set_owner(client));
    features &= BIT(VIRTIO_F_VERSION_1) | BIT(VUF_F_PROTOCOL_FEATURES);
    SHOULD_RETURN(0, vuf_client_set_features(client, features));
    SHOULD_RETURN(0, vuf_client_get_queue_num(client, &queues));
    SHOULD_RETURN(0, vuf_client_get_config(client, 0, 0, &sectors, sizeof sectors));
    SHOULD(sectors == DISK_SIZE / SECTOR_SIZE);
    SHOULD_RETURN(0, vuf_client_set_mem_table(client, &region, 1));
    SHOULD_RETURN(0, blk_ring_start(&ring, client, 0));
    SHOULD_RETURN(0, blk_ring_stop(&ring, client, &base));
    SHOULD_RETURN(0, blk_rings_start(&ring, 1, client));
    SHOULD_RETURN(0, blk_ring_stop(&ring, client, &base));
    vuf_client_free(client);
}

static void prepare_connection(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX}; /* the kernel chooses a name */
    socklen_t length = sizeof address.sun_family;
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    SHOULD(bind(listener, (struct sockaddr *)&address, length) == 0);
    SHOULD(listen(listener, 1) == 0);
    length = sizeof address;
    SHOULD(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    SHOULD(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, length) == 0);
}

static void accept_connections(void)
{
    SHOULD_RETURN(0, vuf_client_accept(listener, &impatient, &client));
    vuf_client_free(client);
    SHOULD_RETURN(-ETIMEDOUT, vuf_client_accept(listener, &impatient, &client));
}

static void fail_to_connect(void)
{
    struct vuf_client_options patient = impatient;
    patient.flags = VUF_CLIENT_WAIT_FOR_SOCKET;
    SHOULD_RETURN(-ETIMEDOUT, vuf_client_connect("/nowhere/socket", &patient, &client));
    SHOULD_RETURN(-ETIMEDOUT, vuf_client_connect(full.path, &impatient, &client));
}

static void let_deadlines_pass(void)
{
    uint32_t base;
    SHOULD_RETURN(-ENOTSOCK, vuf_client_from_fd(memory.fd, &impatient, &client));
    SHOULD_RETURN(0, vuf_client_from_fd(ends[0], &impatient, &client));
    SHOULD_RETURN(-ETIMEDOUT, vuf_client_get_vring_base(client, 0, 5 * SHORT_MS, &base));
    SHOULD_RETURN(VUF_E_POISONED, vuf_client_set_owner(client));
    vuf_client_free(client);
}

/* More than fits into the socket. */
static void fill_the_socket(void)
{
    const struct vuf_mem_region region = {.size = PAGE, .fd = 900}; /* not open */
    int rc;
    SHOULD_RETURN(0, vuf_client_from_fd(ends[0], &impatient, &client));
    SHOULD_RETURN(-EBADF, vuf_client_set_mem_table(client, &region, 1));
    while ((rc = vuf_client_set_log_fd(client, ring.call_fd)) == 0) {
    }
    SHOULD_RETURN(-ETIMEDOUT, rc);
    vuf_client_free(client);
}

static void prepare_message(void)
{
    prepare_pair();
    SHOULD(write_reply(ends[1], GET_FEATURES, &U64_REPLY(1)));
}

static void meet_a_bad_back_end(void)
{
    SHOULD_RETURN(0, vuf_client_from_fd(ends[0], &impatient, &client));
    SHOULD_RETURN(VUF_E_PROTOCOL, vuf_client_set_owner(client));
    SHOULD_RETURN(VUF_E_POISONED, vuf_client_get_features(client, &features));
    vuf_client_free(client);
}

/* A reply with a descriptor, which it may not have. */
static void prepare_descriptor(void)
{
    const struct header header = {GET_FEATURES, 5, 8};
    const uint64_t payload = 1;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec parts[] = {{(void *)&header, sizeof header}, {(void *)&payload, sizeof payload}};
    const struct msghdr message = {.msg_iov = parts,
                                   .msg_iovlen = 2,
                                   .msg_control = control.bytes,
                                   .msg_controllen = sizeof control.bytes};
    int pipe_ends[2];
    prepare_pair();
    SHOULD(pipe(pipe_ends) == 0);
    memcpy(CMSG_DATA(&control.header), pipe_ends, sizeof(int));
    SHOULD(sendmsg(ends[1], &message, 0) == sizeof header + sizeof payload);
}

/* It is closed by a thread, which has the time to end. */
static void get_a_descriptor(void)
{
    SHOULD_RETURN(0, vuf_client_from_fd(ends[0], &impatient, &client));
    vuf_client_free(client); /* it was not read */
    sleep_ms(20);
}

/* Two threads that wait for an answer which does not come. They enter the
   sandbox by themselves, and do not leave it: how a thread ends is not ours. */
static sem_t ready, go, done;

static void *wait_in_sandbox(void *unused)
{
    uint64_t mask;
    SHOULD(enter_sandbox());
    sem_post(&ready);
    sem_wait(&go);
    SHOULD_RETURN(-ECANCELED, vuf_client_get_features(client, &mask));
    sem_post(&done);
    sem_wait(&go);
    return unused;
}

static void prepare_threads(void)
{
    pthread_t thread;
    prepare_pair();
    sem_init(&ready, 0, 0);
    sem_init(&go, 0, 0);
    sem_init(&done, 0, 0);
    for (int i = 0; i < 2; i++) {
        SHOULD(pthread_create(&thread, NULL, wait_in_sandbox, NULL) == 0);
        sem_wait(&ready);
    }
}

static void let_them_wait(void)
{
    sem_post(&go);
    sem_post(&go);
    for (int bytes = 0; bytes < 2 * (int)sizeof(struct header); sleep_ms(1)) {
        SHOULD(ioctl(ends[1], FIONREAD, &bytes) == 0);
    }
    sleep_ms(5); /* both have asked; now they wait */
}

static void begin_to_wait(void)
{
    struct vuf_client_options patient = {.size = sizeof patient, .timeout_ms = VUF_TIMEOUT_FOREVER};
    SHOULD_RETURN(0, vuf_client_from_fd(ends[0], &patient, &client));
    let_them_wait();
}

static void abort_what_waits(void)
{
    begin_to_wait();
    SHOULD_RETURN(0, vuf_client_abort(client));
    sem_wait(&done);
    sem_wait(&done);
    vuf_client_free(client);
}

static void free_what_waits(void)
{
    begin_to_wait();
    vuf_client_free(client);
    sem_wait(&done);
    sem_wait(&done);
}

static void nothing_changed(void *unused)
{
    (void)unused;
}

/* The back-end's end of the channel that the client has just opened. */
static int take_channel(void)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct header header;
    struct iovec part = {&header, sizeof header};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    int fd;
    SHOULD(recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC) == sizeof header);
    SHOULD(header.request == SET_BACKEND_REQ_FD && message.msg_controllen == sizeof control);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* SHMEM_MAP with a file that is looked at, and is none to map. */
static void ask_for_a_mapping(int theirs)
{
    struct {
        struct header header;
        uint64_t body[5];
    } map = {{9, 1, sizeof map.body}, {0, 0, 0, PAGE, 0}};
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&map, sizeof map.header + sizeof map.body};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &theirs, sizeof theirs);
    SHOULD(sendmsg(theirs, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)part.iov_len);
}

static int map_nothing(void *user, const struct vuf_shmem_area *area, int fd)
{
    (void)user, (void)area;
    close(fd);
    return -EIO;
}

static int unmap_nothing(void *user, const struct vuf_shmem_area *area)
{
    (void)user, (void)area;
    return 0;
}

/* Both threads wait; one of them serves the channel. */
static void serve_a_channel(void)
{
    const struct vuf_client_options options = {
        .size = sizeof options,
        .timeout_ms = VUF_TIMEOUT_FOREVER,
        .flags = VUF_CLIENT_ADOPT,
        .adopt_features = BIT(VIRTIO_F_ACCESS_PLATFORM),
        .adopt_protocol_features = BIT(VUF_PROTOCOL_F_BACKEND_REQ) | BIT(VUF_PROTOCOL_F_CONFIG) |
                                   BIT(VUF_PROTOCOL_F_SHMEM) | BIT(VUF_PROTOCOL_F_BACKEND_SEND_FD),
    };
    const struct vuf_backend_ops ops = {.size = sizeof ops,
                                        .config_changed = nothing_changed,
                                        .shmem_map = map_nothing,
                                        .shmem_unmap = unmap_nothing};
    const struct vuf_iotlb entry = {.size = PAGE, .type = VUF_IOTLB_INVALIDATE};
    const struct header change = {2, 1, 0}; /* CONFIG_CHANGE_MSG */
    SHOULD_RETURN(0, vuf_client_from_fd(ends[0], &options, &client));
    SHOULD_RETURN(0, vuf_client_open_backend_channel(client, &ops, NULL));
    int theirs = take_channel();
    let_them_wait();
    SHOULD_RETURN(0, vuf_client_post_iotlb(client, &entry)); /* which wakes one */
    sleep_ms(5);
    struct pollfd pollable = {.fd = vuf_client_backend_fd(client), .events = POLLIN};
    SHOULD(write(theirs, &change, sizeof change) == sizeof change);
    sleep_ms(5); /* the one who waits has read it */
    SHOULD(poll(&pollable, 1, PEER_MS) == 1);
    SHOULD_RETURN(0, vuf_client_process_backend_requests(client));
    SHOULD(poll(&pollable, 1, 0) == 0);
    ask_for_a_mapping(theirs);
    sleep_ms(5);
    SHOULD_RETURN(0, vuf_client_process_backend_requests(client));
    SHOULD_RETURN(0, vuf_client_abort(client));
    sem_wait(&done);
    sem_wait(&done);
    SHOULD_RETURN(-ECANCELED, vuf_client_process_backend_requests(client));
    vuf_client_free(client);
}

static void make_memory(void)
{
    int fd;
    SHOULD_RETURN(0, vuf_memfd_create("memory", PAGE, 0, VUF_MEMFD_SEAL, &fd));
    SHOULD_RETURN(-EINVAL, vuf_memfd_create("memory", 0, 0, 0, &fd));
}

/* ---- scenes of the device ---- */

static struct vuf_device *device;

static const struct vuf_device_options device_options = {
    .size = sizeof device_options,
    .num_rings = 1,
    .config_size = 36,
    .first_delay_ms = 1,
    .timeout_ms = SHORT_MS,
    .fence_ms = SHORT_MS,
};

static struct vuf_device_event wait_for_event(uint32_t kind)
{
    for (;;) {
        struct pollfd item = {.fd = vuf_device_get_fd(device), .events = POLLIN};
        struct vuf_device_event event = {.size = sizeof event};
        SHOULD_RETURN(0, vuf_device_process(device, &event));
        if (event.kind == kind) {
            return event;
        }
        if (event.kind == VUF_DEVICE_EVENT_NONE) {
            SHOULD(poll(&item, 1, PEER_MS) == 1);
        }
    }
}

static void keep_a_device(void)
{
    struct vuf_device_info info = {.size = sizeof info};
    struct vuf_quiet quiet = {.size = sizeof quiet};
    const struct vuf_mem_region region = guest_memory_region(&memory);
    const struct vuf_ring described = blk_ring_of_device(&ring, VUF_RING_BASE_NEW);
    SHOULD_RETURN(0, vuf_device_open(backend.socket, &device_options, &device));
    wait_for_event(VUF_DEVICE_EVENT_CONNECTED);
    SHOULD_RETURN(0, vuf_device_get_info(device, &info));
    SHOULD_RETURN(0, vuf_device_set_features(device, BIT(VIRTIO_F_VERSION_1)));
    SHOULD_RETURN(0, vuf_device_set_memory(device, &region, 1, 0));
    SHOULD_RETURN(0, vuf_device_start(device, &described, 1));
    SHOULD_RETURN(0, vuf_device_wait(device, PEER_MS));
    SHOULD_RETURN(0, vuf_device_stop(device, NULL, 0, VUF_STOP_DRAIN, PEER_MS, &quiet));
    SHOULD(quiet.quiesced == 1);
    SHOULD_RETURN(0, vuf_device_stop(device, NULL, 0, VUF_STOP_ABANDON, PEER_MS, &quiet));
    wait_for_event(VUF_DEVICE_EVENT_CONNECTED);
    vuf_device_free(device);
}

static char absent_path[100];

static void prepare_absent_socket(void)
{
    snprintf(absent_path, sizeof absent_path, "%.80s/absent", backend.dir);
    unlink(absent_path);
}

/* It comes while the next attempt is far away. */
static void wait_for_an_absent_socket(void)
{
    struct vuf_device_options far = device_options;
    struct sockaddr_un address = address_of(absent_path);
    int accepted = -1;
    far.first_delay_ms = far.max_delay_ms = 60 * 1000;
    SHOULD_RETURN(0, vuf_device_open(absent_path, &far, &device));
    wait_for_event(VUF_DEVICE_EVENT_RETRYING);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    SHOULD(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    sleep_ms(20);
    SHOULD(listen(fd, 1) == 0);
    while (accepted < 0) {
        struct pollfd item = {.fd = vuf_device_get_fd(device), .events = POLLIN};
        struct vuf_device_event event = {.size = sizeof event};
        SHOULD(poll(&item, 1, PEER_MS) == 1);
        SHOULD_RETURN(0, vuf_device_process(device, &event));
        accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    }
    close(accepted);
    close(fd);
    vuf_device_free(device);
}

static char stale_path[100];

/* The socket of somebody who is gone. */
static void prepare_stale_socket(void)
{
    struct sockaddr_un address;
    snprintf(stale_path, sizeof stale_path, "%.80s/stale", backend.dir);
    address = address_of(stale_path);
    unlink(stale_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    SHOULD(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    close(fd);
}

static void listen_for_back_ends(void)
{
    SHOULD_RETURN(0, vuf_device_listen(stale_path, 0600, &device_options, &device));
    SHOULD_RETURN(-ETIMEDOUT, vuf_device_wait(device, SHORT_MS));
    vuf_device_free(device);
}

static void make_another_call(void)
{
    SHOULD(syscall(SYS_getppid) == 0);
}

static const struct scene scenes[] = {
    {"connect and run a device", prepare_nothing, connect_and_run_a_device, false},
    {"accept connections", prepare_connection, accept_connections, false},
    {"fail to connect", prepare_nothing, fail_to_connect, false},
    {"let deadlines pass", prepare_pair, let_deadlines_pass, false},
    {"let deadlines pass, stopped now and then", prepare_pair, let_deadlines_pass, true},
    {"fill the socket", prepare_pair, fill_the_socket, false},
    {"meet a bad back-end", prepare_message, meet_a_bad_back_end, false},
    {"get a descriptor", prepare_descriptor, get_a_descriptor, false},
    {"abort what waits", prepare_threads, abort_what_waits, false},
    {"free what waits", prepare_threads, free_what_waits, false},
    {"serve a channel", prepare_threads, serve_a_channel, false},
    {"make memory", prepare_nothing, make_memory, false},
    {"keep a device", prepare_nothing, keep_a_device, false},
    {"wait for an absent socket", prepare_absent_socket, wait_for_an_absent_socket, false},
    {"listen for back-ends", prepare_stale_socket, listen_for_back_ends, false},
};

/* ---- tests ---- */

static const char *why_not;

/* Where these tests cannot be made, each of them is skipped. */
static bool may_sandbox(void)
{
    const char *preload = getenv("LD_PRELOAD");
    if (preload != NULL && strstr(preload, "vgpreload") != NULL) {
        why_not = "valgrind makes system calls of its own";
        return false;
    }
#ifdef __SANITIZE_ADDRESS__
    why_not = "the sanitizer makes system calls of its own";
    return false;
#endif
    if (MACHINE == 0) {
        why_not = "the filter is not written for this machine";
        return false;
    }
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        _exit(enter_sandbox() ? 0 : 1);
    }
    waitpid(child, &status, 0);
    why_not = status != 0 ? "seccomp filters are not allowed here" : NULL;
    return status == 0;
}

static void skip_unless_possible(void)
{
    if (why_not != NULL) {
        skip();
    }
}

static int set_up_all(void **state)
{
    (void)state;
    if (!may_sandbox()) {
        print_message("SKIPPED: test_sandbox: %s\n", why_not);
        return 0;
    }
    full_listener = open_listener(&full, 0);
    struct sockaddr_un address = address_of(full.path);
    for (int i = 0; i < 2; i++) {
        waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        connect(waiting[i], (struct sockaddr *)&address, sizeof address);
    }
    return backend_start_embedded(&backend, 1, false) == 0 &&
                   guest_memory_create(&memory, 0, 16 * BLK_RING_BYTES) == 0 &&
                   blk_ring_create(&ring, 0, 128, &memory, 0) == 0
               ? 0
               : -1;
}

static int tear_down_all(void **state)
{
    (void)state;
    if (why_not != NULL) {
        return 0;
    }
    blk_ring_destroy(&ring);
    guest_memory_destroy(&memory);
    backend_stop(&backend);
    close(waiting[0]);
    close(waiting[1]);
    close(full_listener);
    unlink(full.path);
    rmdir(full.dir);
    return 0;
}

static void another_system_call_is_caught(void **state)
{
    const struct scene scene = {"another call", prepare_nothing, make_another_call, false};
    char words[600], wanted[64];
    (void)state;
    skip_unless_possible();
    snprintf(wanted, sizeof wanted, TRAPPED " %d ", SYS_getppid);
    assert_false(act(&scene, words, sizeof words));
    assert_non_null(strstr(words, wanted));
}

static void the_rules_are_enough(void **state)
{
    char words[600];
    int failures = 0;
    (void)state;
    skip_unless_possible();
    for (size_t i = 0; i < LENGTH(scenes); i++) {
        if (!act(&scenes[i], words, sizeof words)) {
            print_error("%s: %s", scenes[i].name, words);
            failures++;
        }
    }
    assert_int_equal(failures, 0);
}

/* A filter may also refuse what notices a socket: then it is looked for. */
static void a_device_does_without_inotify(void **state)
{
    const struct scene scene = {"wait without inotify", prepare_absent_socket,
                                wait_for_an_absent_socket, false};
    char words[600];
    (void)state;
    skip_unless_possible();
    verdict = SECCOMP_RET_ERRNO | EPERM;
    for (left_out = 0; rules[left_out].number != SYS_inotify_init1; left_out++) {
    }
    bool whole = act(&scene, words, sizeof words);
    left_out++; /* nor the directory is watched */
    assert_int_equal(rules[left_out].number, SYS_inotify_add_watch);
    whole &= act(&scene, words, sizeof words);
    verdict = SECCOMP_RET_TRAP;
    left_out = NONE;
    if (!whole) {
        print_error("%s", words);
    }
    assert_true(whole);
}

/* Whether some scene ends for want of a rule. */
static bool needed(int rule)
{
    char words[600], wanted[64];
    bool missed = false;
    snprintf(wanted, sizeof wanted, TRAPPED " %ld ", rules[rule].number);
    if (rules[rule].number == SYS_write) {
        snprintf(wanted, sizeof wanted, "signal %d\n", SIGSYS); /* it cannot complain */
    }
    left_out = rule;
    for (size_t i = 0; i < LENGTH(scenes) && !missed; i++) {
        missed = !act(&scenes[i], words, sizeof words) && strstr(words, wanted) != NULL;
    }
    left_out = NONE;
    return missed;
}

static void no_rule_is_idle(void **state)
{
    int failures = 0;
    (void)state;
    skip_unless_possible();
    for (int rule = 0; rule < RULES_OF_THE_LIBRARY; rule++) {
        if (!needed(rule)) {
            print_error("%s is allowed, and the library does not need it\n", rules[rule].name);
            failures++;
        }
    }
    assert_int_equal(failures, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_system_call_is_caught),
        cmocka_unit_test(the_rules_are_enough),
        cmocka_unit_test(a_device_does_without_inotify),
        cmocka_unit_test(no_rule_is_idle),
    };
    return cmocka_run_group_tests_name("test_sandbox", tests, set_up_all, tear_down_all);
}
