/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the tests of real back-ends share: a program, a client connected to it,
   guest memory and queues. A test has one device, which is made with device_...()
   and taken down by device_tear_down(), also after a failure. */

#ifndef DEVICE_H
#define DEVICE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "harness.h"
#include "vhost_user_frontend.h"
#include "virtq.h"

#define BIT(n) (UINT64_C(1) << (n))

enum {
    DEVICE_QUEUES = 4,
    DEVICE_QUEUE_NUM = 64, /* descriptors */
    WAIT_MS = 5000,        /* after which a back-end is not coming back */
};

/* Guest memory: the queues, then room for buffers. */
#define DEVICE_ADDR UINT64_C(0x40000000)
#define DEVICE_BUFFERS (DEVICE_ADDR + 0x100000u)
#define DEVICE_SIZE 0x400000u

struct device {
    int fds; /* how many were open before */
    struct backend backend;
    struct vuf_client *client;
    struct vuf_device *vuf;      /* in place of client: see lifecycle.h */
    uint64_t features, protocol; /* agreed */
    struct guest_memory memory;
    struct guest_memory added; /* plugged in later; at another address */
    struct virtq queues[DEVICE_QUEUES];
    unsigned started;
    pthread_t loop; /* serves the channel, if looping */
    bool looping;
    atomic_bool done;
    atomic_int ended; /* what ended the loop; 0 while it runs */
};

/* For calls into the library: what it says on failure is worth having, and so is
   what the back-end says. */
#define assert_ok(device, call) assert_ok_at((device), (call), #call, __FILE__, __LINE__)
void assert_ok_at(const struct device *device, int rc, const char *call, const char *file,
                  int line);

/* What the back-end has said. */
void device_print_log(const struct device *device);

/* For cmocka: a device with nothing but a directory, and taking it down. */
int device_set_up(void **state);
int device_tear_down(void **state);

#define DEVICE_TEST(name) cmocka_unit_test_setup_teardown(name, device_set_up, device_tear_down)

/* The program that an environment variable names; skips the test if none. */
const char *device_program(const char *variable);

/* Starts the program; args ends with NULL. */
void device_run(struct device *device, const char *const args[]);

/* Makes n queues, which nobody knows of yet. */
void device_make_queues(struct device *device, unsigned n);

/* Takes down what the connection had: client or vuf, queues, memory. */
void device_disconnect(struct device *device);

/* What to agree, and what must not be offered. */
struct wanted {
    uint64_t features; /* besides VIRTIO_F_VERSION_1 and VUF_F_PROTOCOL_FEATURES */
    uint64_t protocol;
    uint64_t protocol_absent;
};

/* Connects to device->backend.socket as soon as it listens, and negotiates: all
   that is wanted must be offered. */
void device_connect(struct device *device, struct wanted wanted);

/* The same for a client that is there already. */
void device_negotiate(struct device *device, struct wanted wanted);

/* Opens the back-end's channel, and serves it on a thread of its own until
   device_disconnect(). */
void device_open_channel(struct device *device, const struct vuf_backend_ops *ops, void *user);

/* Makes guest memory, and shares it. */
void device_share(struct device *device);

/* The same with other numbers for the back-end: DEVICE_ADDR, which the driver
   uses, is then an I/O virtual address. */
void device_share_at(struct device *device, uint64_t guest_addr, uint64_t user_addr);

/* Makes n queues and starts them. */
void device_start(struct device *device, unsigned n);

/* Stops the queue; the back-end must have completed all. Starts it again. */
void device_stop_queue(struct device *device, unsigned index);
void device_restart_queue(struct device *device, unsigned index);

/* Stops all that were started; likewise. */
void device_stop(struct device *device);

/* Stops all, resets the device, agrees on the features once more and starts with
   new queues: what a driver does that is loaded again. */
void device_reset(struct device *device);

/* A guest address as a pointer, of either memory. */
void *device_at(const struct device *device, uint64_t addr);

/* Makes a buffer available, without a kick. Returns its slot. */
int device_offer(struct device *device, unsigned index, const struct virtq_part *parts,
                 unsigned out, unsigned in);

/* Makes a buffer available and kicks. Returns its slot. */
int device_post(struct device *device, unsigned index, const struct virtq_part *parts,
                unsigned out, unsigned in);

/* Waits for the next used buffer of a queue, which must be this one. Returns
   how many bytes the device says it wrote. */
uint32_t device_take(struct device *device, unsigned index, int slot);

/* Both in one. */
uint32_t device_request(struct device *device, unsigned index, const struct virtq_part *parts,
                        unsigned out, unsigned in);

#endif
