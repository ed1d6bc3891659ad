/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START_MS = 20000, STOP_MS = 5000, MAX_ARGS = 64 };

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void sleep_ms(int ms)
{
    struct timespec left = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* How many entries a directory of /proc has, or -1. */
static int count_entries(const char *path)
{
    DIR *dir = opendir(path);
    if (dir == NULL) {
        return -1;
    }
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(dir);
    return count;
}

int count_fds(void)
{
    int count = count_entries("/proc/self/fd");
    return count < 0 ? -1 : count - 1; /* without that of the directory */
}

int count_threads(void)
{
    return count_entries("/proc/self/task");
}

/* How long a thread of the library may take to close a descriptor. */
enum { CLOSING_MS = 5000 };

/* A program ends once no thread of the library is about to close a descriptor, or it
   would be taken for one that was left open. */
__attribute__((destructor)) static void wait_for_threads(void)
{
    for (int64_t end = now_ms() + CLOSING_MS; count_threads() > 1 && now_ms() < end;) {
        sleep_ms(2);
    }
}

int count_fds_after(int before)
{
    int64_t end = now_ms() + CLOSING_MS;
    int count;
    while ((count = count_fds()) > before && now_ms() < end) {
        sleep_ms(2);
    }
    return count;
}

/* Complains about a back-end and takes away what is there of it. */
__attribute__((format(printf, 2, 3))) static int fail(struct backend *backend, const char *format,
                                                     ...)
{
    va_list args;
    va_start(args, format);
    fputs("harness: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    backend_stop(backend);
    return -1;
}

static int make_dir(struct backend *backend)
{
    memset(backend, 0, sizeof *backend);
    const char *tmp = getenv("TMPDIR");
    char dir[sizeof backend->dir];
    int length = snprintf(dir, sizeof dir, "%s/vuf.XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (length >= (int)sizeof dir) {
        return fail(backend, "TMPDIR is too long for the path of a socket");
    }
    if (mkdtemp(dir) == NULL) {
        return fail(backend, "mkdtemp %s: %s", dir, strerror(errno));
    }
    memcpy(backend->dir, dir, sizeof dir);
    snprintf(backend->socket, sizeof backend->socket, "%s/socket", dir);
    snprintf(backend->disk, sizeof backend->disk, "%s/disk", dir);
    snprintf(backend->log, sizeof backend->log, "%s/log", dir);
    return 0;
}

static int make_disk(struct backend *backend)
{
    int fd = open(backend->disk, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, DISK_SIZE) != 0) {
        int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return fail(backend, "%s: %s", backend->disk, strerror(error));
    }
    close(fd);
    return 0;
}

/* Marks every descriptor but 0, 1 and 2 close-on-exec. */
static void inherit_nothing(void)
{
    for (int fd = 3; fd < 1024; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0) {
            fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
        }
    }
}

/* Standard output and errors go to out and err, unless these are negative. */
static int spawn(struct backend *backend, const char *const args[], int out, int err)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0) {
        return fail(backend, "fork: %s", strerror(errno));
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(127);
        }
        signal(SIGPIPE, SIG_DFL);
        if (out >= 0) {
            dup2(out, STDOUT_FILENO);
        }
        if (err >= 0) {
            dup2(err, STDERR_FILENO);
        }
        inherit_nothing();
        execvp(args[0], (char *const *)args);
        _exit(127);
    }
    backend->pid = pid;
    return 0;
}

/* Reads until the program says "ready". */
static bool said_ready(int fd)
{
    int64_t deadline = now_ms() + START_MS;
    char text[64];
    size_t length = 0;
    while (length < sizeof text - 1) {
        struct pollfd item = {fd, POLLIN, 0};
        int64_t left = deadline - now_ms();
        int ready = poll(&item, 1, left > 0 ? (int)left : 0);
        if (ready < 0 && errno == EINTR) {
            continue;
        }
        ssize_t got = ready == 1 ? read(fd, text + length, sizeof text - 1 - length) : 0;
        if (got <= 0) {
            return false;
        }
        length += (size_t)got;
        text[length] = '\0';
        if (strstr(text, "ready\n") != NULL) {
            return true;
        }
    }
    return false;
}

static int start_until_ready(struct backend *backend, const char *const args[])
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return fail(backend, "pipe: %s", strerror(errno));
    }
    int rc = spawn(backend, args, ends[1], -1);
    close(ends[1]);
    if (rc == 0 && !said_ready(ends[0])) {
        rc = fail(backend, "%s did not say \"ready\"", args[0]);
    }
    close(ends[0]);
    return rc;
}

/* The program that an environment variable names. */
static const char *program(const char *variable)
{
    const char *path = getenv(variable);
    if (path == NULL || access(path, X_OK) != 0) {
        fprintf(stderr, "harness: %s does not name a program\n", variable);
        return NULL;
    }
    return path;
}

/* Behind the n arguments that there are; extra ends with NULL. */
static bool append(const char *args[], size_t n, const char *const extra[])
{
    for (; extra != NULL && *extra != NULL; extra++) {
        if (n == MAX_ARGS) {
            return false;
        }
        args[n++] = *extra;
    }
    return true;
}

int backend_start_embedded(struct backend *backend, unsigned queues, bool read_only)
{
    return make_dir(backend) != 0 || make_disk(backend) != 0
               ? -1
               : backend_again_embedded(backend, queues, read_only);
}

int backend_again_embedded(struct backend *backend, unsigned queues, bool read_only)
{
    const char *path = program("VUF_EMBEDDED_BACKEND");
    char number[16];
    if (path == NULL) {
        backend_stop(backend);
        return -1;
    }
    snprintf(number, sizeof number, "%u", queues);
    const char *args[] = {
        path,       "--socket", backend->socket, "--file", backend->disk,
        "--queues", number,     read_only ? "--read-only" : NULL, NULL,
    };
    return start_until_ready(backend, args);
}

int backend_start_inflight(struct backend *backend, const char *const extra_args[])
{
    return make_dir(backend) != 0 || make_disk(backend) != 0
               ? -1
               : backend_again_inflight(backend, extra_args);
}

int backend_again_inflight(struct backend *backend, const char *const extra_args[])
{
    const char *path = program("VUF_INFLIGHT_BACKEND");
    if (path == NULL) {
        backend_stop(backend);
        return -1;
    }
    const char *args[MAX_ARGS + 1] = {path, "--socket", backend->socket, "--file", backend->disk};
    if (!append(args, 5, extra_args)) {
        return fail(backend, "more than %d arguments", MAX_ARGS);
    }
    return start_until_ready(backend, args);
}

static int run_logging(struct backend *backend, const char *variable,
                       const char *const extra_args[])
{
    const char *path = program(variable);
    if (path == NULL) {
        backend_stop(backend);
        return -1;
    }
    const char *args[MAX_ARGS + 1] = {path, "--socket", backend->socket, "--log", backend->log};
    if (!append(args, 5, extra_args)) {
        return fail(backend, "more than %d arguments", MAX_ARGS);
    }
    return start_until_ready(backend, args);
}

static int start_logging(struct backend *backend, const char *variable,
                         const char *const extra_args[])
{
    return make_dir(backend) != 0 ? -1 : run_logging(backend, variable, extra_args);
}

int backend_start_foreign(struct backend *backend, const char *const extra_args[])
{
    return start_logging(backend, "VUF_FOREIGN_BACKEND", extra_args);
}

int backend_start_mock(struct backend *backend, const char *const extra_args[])
{
    return start_logging(backend, "VUF_MOCK_BACKEND", extra_args);
}

int backend_again_mock(struct backend *backend, const char *const extra_args[])
{
    backend->log_at = 0;
    return run_logging(backend, "VUF_MOCK_BACKEND", extra_args);
}

static bool can_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    bool connected = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    return connected;
}

int backend_start_qemu(struct backend *backend, unsigned queues)
{
    return make_dir(backend) != 0 || make_disk(backend) != 0 ? -1
                                                             : backend_again_qemu(backend, queues);
}

int backend_again_qemu(struct backend *backend, unsigned queues)
{
    char blockdev[200], export[300];
    snprintf(blockdev, sizeof blockdev, "driver=file,node-name=f0,filename=%s", backend->disk);
    snprintf(export, sizeof export,
             "type=vhost-user-blk,id=e0,node-name=f0,writable=on,addr.type=unix,addr.path=%s,"
             "num-queues=%u",
             backend->socket, queues);
    const char *args[] = {
        "qemu-storage-daemon", "--blockdev", blockdev, "--export", export, NULL,
    };
    if (spawn(backend, args, -1, -1) != 0) {
        return -1;
    }
    for (int64_t deadline = now_ms() + START_MS; !can_connect(backend->socket); sleep_ms(10)) {
        if (waitpid(backend->pid, NULL, WNOHANG) == backend->pid) {
            backend->pid = 0;
            return fail(backend, "%s ended", args[0]);
        }
        if (now_ms() > deadline) {
            return fail(backend, "%s does not listen", args[0]);
        }
    }
    return 0;
}

void backend_kill(struct backend *backend)
{
    if (backend->pid > 0) {
        kill(backend->pid, SIGKILL);
        waitpid(backend->pid, NULL, 0);
        backend->pid = 0;
    }
}

int backend_prepare(struct backend *backend)
{
    return make_dir(backend);
}

int backend_start_program(struct backend *backend, const char *const args[])
{
    int log = open(backend->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0) {
        return fail(backend, "%s: %s", backend->log, strerror(errno));
    }
    int rc = spawn(backend, args, log, log);
    close(log);
    return rc;
}

bool backend_ended(struct backend *backend, int timeout_ms, int *status)
{
    for (int64_t deadline = now_ms() + timeout_ms;; sleep_ms(5)) {
        if (backend->pid > 0 && waitpid(backend->pid, status, WNOHANG) == backend->pid) {
            backend->pid = 0;
            return true;
        }
        if (backend->pid <= 0 || now_ms() >= deadline) {
            return false;
        }
    }
}

/* How often this thread has gone to sleep or lost the processor; -1 if it does not
   sleep now. */
static long long switches_if_asleep(const char *status)
{
    FILE *file = fopen(status, "re");
    if (file == NULL) {
        return -1; /* it has ended */
    }
    long long sum = -1, count;
    for (char line[256], state; fgets(line, sizeof line, file) != NULL;) {
        if (sscanf(line, "State: %c", &state) == 1) {
            sum = state == 'S' ? 0 : -1;
        } else if (sum >= 0 && (sscanf(line, "voluntary_ctxt_switches: %lld", &count) == 1 ||
                                sscanf(line, "nonvoluntary_ctxt_switches: %lld", &count) == 1)) {
            sum += count;
        }
    }
    fclose(file);
    return sum;
}

/* The sum of its threads; -1 if one of them does not sleep. */
static long long switches_if_all_sleep(pid_t pid)
{
    char path[80];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *threads = opendir(path);
    if (threads == NULL) {
        return -1;
    }
    long long sum = 0;
    for (struct dirent *entry; sum >= 0 && (entry = readdir(threads)) != NULL;) {
        if (entry->d_name[0] != '.') {
            snprintf(path, sizeof path, "/proc/%d/task/%.20s/status", (int)pid, entry->d_name);
            long long one = switches_if_asleep(path);
            sum = one < 0 ? -1 : sum + one;
        }
    }
    closedir(threads);
    return sum;
}

bool backend_idle(const struct backend *backend, int timeout_ms)
{
    int64_t deadline = now_ms() + timeout_ms;
    for (long long before = -1;; sleep_ms(1)) {
        long long now = switches_if_all_sleep(backend->pid);
        if (now >= 0 && now == before) {
            return true;
        }
        if (now_ms() >= deadline) {
            return false;
        }
        before = now;
    }
}

static void end_process(pid_t pid)
{
    kill(pid, SIGTERM);
    for (int64_t deadline = now_ms() + STOP_MS; now_ms() < deadline; sleep_ms(5)) {
        if (waitpid(pid, NULL, WNOHANG) == pid) {
            return;
        }
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static int remove_entry(const char *path, const struct stat *about, int type, struct FTW *where)
{
    (void)about, (void)type, (void)where;
    if (remove(path) != 0) {
        fprintf(stderr, "harness: remove %s: %s\n", path, strerror(errno));
    }
    return 0;
}

void backend_stop(struct backend *backend)
{
    if (backend->pid > 0) {
        end_process(backend->pid);
    }
    if (backend->dir[0] != '\0') {
        nftw(backend->dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    }
    memset(backend, 0, sizeof *backend);
}

bool qemu_available(void)
{
    const char *path = getenv("PATH");
    for (const char *at = path; at != NULL && *at != '\0';) {
        size_t length = strcspn(at, ":");
        char file[4096];
        snprintf(file, sizeof file, "%.*s/qemu-storage-daemon", (int)length, at);
        if (access(file, X_OK) == 0) {
            return true;
        }
        at += length + (at[length] == ':');
    }
    return false;
}

/* Reads one line if the log holds a whole one. */
static bool read_line(struct backend *backend, char *line, size_t size)
{
    FILE *log = fopen(backend->log, "re");
    if (log == NULL) {
        return false;
    }
    bool whole = fseek(log, backend->log_at, SEEK_SET) == 0 && fgets(line, (int)size, log) != NULL;
    char *end = whole ? strchr(line, '\n') : NULL;
    if (end != NULL) {
        *end = '\0';
        backend->log_at = ftell(log);
    }
    fclose(log);
    return end != NULL;
}

bool backend_log_next(struct backend *backend, char *line, size_t size, int timeout_ms)
{
    for (int64_t deadline = now_ms() + timeout_ms;; sleep_ms(2)) {
        if (read_line(backend, line, size)) {
            return true;
        }
        if (now_ms() >= deadline) {
            line[0] = '\0';
            return false;
        }
    }
}

bool backend_log_find(struct backend *backend, const char *prefix, char *line, size_t size,
                      int timeout_ms)
{
    int64_t deadline = now_ms() + timeout_ms;
    while (backend_log_next(backend, line, size, (int)(deadline - now_ms()))) {
        if (strncmp(line, prefix, strlen(prefix)) == 0) {
            return true;
        }
    }
    return false;
}
