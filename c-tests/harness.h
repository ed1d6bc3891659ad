/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the C tests share: back-end programs to start, logs to read. */

#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Size of the disk file that each block back-end gets. */
#define DISK_SIZE (16u << 20)

/* A back-end in a process of its own. Set by backend_start_*(). */
struct backend {
    pid_t pid;
    char dir[64];     /* holds the files below; removed by backend_stop(), whatever is in it */
    char socket[100]; /* where it listens */
    char disk[100];   /* what a block back-end serves */
    char log[100];    /* what the foreign or the scripted back-end has decoded, or a program says */
    long log_at;      /* how much of the log backend_log_next() has read */
};

/*
 * Start a back-end and wait until it listens. The program does not inherit any
 * descriptor but 0, 1 and 2, and dies with the calling thread.
 *
 * Return 0; otherwise -1, and the reason is on standard error and nothing is
 * left behind.
 */

/* The program is named by the environment: VUF_EMBEDDED_BACKEND. */
int backend_start_embedded(struct backend *backend, unsigned queues, bool read_only);

/* The one that keeps requests in flight over its death: VUF_INFLIGHT_BACKEND.
   extra_args ends with NULL; NULL for none. */
int backend_start_inflight(struct backend *backend, const char *const extra_args[]);

/* Kills the program. Its directory stays, for the next one to be started there
   with the functions below. */
void backend_kill(struct backend *backend);
int backend_again_embedded(struct backend *backend, unsigned queues, bool read_only);
int backend_again_inflight(struct backend *backend, const char *const extra_args[]);
int backend_again_qemu(struct backend *backend, unsigned queues);

/* qemu-storage-daemon; see qemu_available(). */
int backend_start_qemu(struct backend *backend, unsigned queues);

/* The recorder built on another project's decoder: VUF_FOREIGN_BACKEND.
   extra_args ends with NULL; NULL for none. */
int backend_start_foreign(struct backend *backend, const char *const extra_args[]);

/* Any other program, in two steps: backend_prepare() makes the directory, in
   which the caller may put files, and the second starts the program there. It
   does not wait (see VUF_CLIENT_WAIT_FOR_SOCKET): a connection made to see
   whether a program listens is for some their only one. What the program says
   goes to the log. args ends with NULL. */
int backend_prepare(struct backend *backend);
int backend_start_program(struct backend *backend, const char *const args[]);

/* Waits until all threads of the program sleep and nothing has woken one between two
   looks: it has done all that it was given, and not only answered. */
bool backend_idle(const struct backend *backend, int timeout_ms);

/* Whether the program ends by itself in time; status is what waitpid() gives. */
bool backend_ended(struct backend *backend, int timeout_ms, int *status);

/* The scripted back-end, without a device: VUF_MOCK_BACKEND. Its log is that of
   backend_log_next(). extra_args ends with NULL; NULL for none. */
int backend_start_mock(struct backend *backend, const char *const extra_args[]);

/* After backend_kill(), with a new log. */
int backend_again_mock(struct backend *backend, const char *const extra_args[]);

/* Terminates the program (kills it after five seconds) and removes its
   directory. Does nothing for a back-end that is all zero. */
void backend_stop(struct backend *backend);

/* Whether qemu-storage-daemon can be run. */
bool qemu_available(void);

/*
 * Reads the next line of a back-end's log, without its newline;
 * waits for it at most timeout_ms.
 *
 * Returns whether there was one; line is empty if not.
 */
bool backend_log_next(struct backend *backend, char *line, size_t size, int timeout_ms);

/* Reads on in the log to a line that begins with prefix; as above. */
bool backend_log_find(struct backend *backend, const char *prefix, char *line, size_t size,
                      int timeout_ms);

/* Numbers of the requests (specification, "Front-end message types"). */
enum request {
    NO_REQUEST = 0,
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
    GET_VRING_BASE_SKIP_DRAIN = 45,
};

/* How many descriptors this process has open. */
int count_fds(void);

/* How many threads it has. */
int count_threads(void);

/* The same once no more are open than before, as the library closes what a back-end has
   sent in a thread; or after a while. */
int count_fds_after(int before);

/* Milliseconds of the monotonic clock. */
int64_t now_ms(void);

void sleep_ms(int ms);

#endif
