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
    char dir[64];     /* holds the files below; removed by backend_stop() */
    char socket[100]; /* where it listens */
    char disk[100];   /* what a block back-end serves */
    char log[100];    /* what the foreign back-end has decoded */
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

/* qemu-storage-daemon; see qemu_available(). */
int backend_start_qemu(struct backend *backend, unsigned queues);

/* The recorder built on another project's decoder: VUF_FOREIGN_BACKEND.
   extra_args ends with NULL; NULL for none. */
int backend_start_foreign(struct backend *backend, const char *const extra_args[]);

/* Terminates the program (kills it after five seconds) and removes its
   directory. Does nothing for a back-end that is all zero. */
void backend_stop(struct backend *backend);

/* Whether qemu-storage-daemon can be run. */
bool qemu_available(void);

/*
 * Reads the next line of the foreign back-end's log, without its newline;
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
    SET_BACKEND_REQ_FD = 21,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
};

/* How many descriptors this process has open. */
int count_fds(void);

/* Milliseconds of the monotonic clock. */
int64_t now_ms(void);

void sleep_ms(int ms);

#endif
