/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* vuf_device_* on the back-ends in daily use: what each of them goes through, its
   data compared all the time. A test says how the program is started and how its
   device is used; the rest is the same for all. */

#ifndef LIFECYCLE_H
#define LIFECYCLE_H

#include "device.h"

/* Memory that is plugged in while rings run. */
#define LIFE_ADDED UINT64_C(0x80000000)
#define LIFE_ADDED_SIZE 0x100000u

/* A back-end, and what the guest does with it. */
struct life {
    /* Starts the program; also again, where one before it was killed. */
    void (*run)(struct device *device);
    /* What a driver says first to a device that is new; may be NULL. */
    void (*greet)(struct device *device);
    /* Uses the device, and compares the data. The buffer at this address is one of
       those that the device writes (where it writes any); up to 64 KiB. */
    void (*work)(struct device *device, uint64_t at);
    unsigned queues;
    uint64_t features;        /* that the driver acknowledges, besides VIRTIO_F_VERSION_1 */
    uint64_t protocol;        /* that must be agreed */
    uint64_t protocol_absent; /* that must not be offered */
    struct vuf_device_options options; /* besides times, and the number of rings */
    bool serves_one;          /* the program ends after its first connection */
    bool stops_together;      /* one ring that is stopped stops the others as well */
    unsigned kills;           /* how often it is killed; 0 for the usual number */
    bool connects;            /* the device listens, and the program connects */
};

/* ---- steps ---- */

/* Makes the device without a back-end, and guest memory. */
void life_open(struct device *device, const struct life *life);

/* The next event of a kind; others are passed over. */
struct vuf_device_event life_until(struct device *device, uint32_t kind);

/* Until all that is wanted has been told. */
void life_wait(struct device *device);

struct vuf_device_info life_info(const struct device *device);

/* How often a request was sent since life_open(), on all connections. */
unsigned life_sent(const struct device *device, enum request request);

/* The driver is loaded: it acknowledges features, and has new queues. */
void life_boot(struct device *device, const struct life *life);

/* Starts the queues that there are. */
void life_start(struct device *device, const struct life *life, uint32_t base_mode);

/* Stops all, and resets; both wait until nothing is in use any more. */
void life_stop(struct device *device, const struct life *life);
void life_reset(struct device *device, const struct life *life);

/* All up to here: the program runs, and its device is in use. */
void life_begin(struct device *device, const struct life *life);

/* ---- what every back-end goes through ---- */

/* Each begins with life_begin() where there is no device yet, and leaves one in use. */

/* Stopped and resumed: all rings, and one of them at a time. */
void life_check_stops(struct device *device, const struct life *life);

/* Reset by this request, or without any (NO_REQUEST), and in use again on the same
   connection. */
void life_check_resets(struct device *device, const struct life *life, enum request by);

/* Memory added and removed while the rings run. */
void life_check_memory(struct device *device, const struct life *life);

/* Killed and started again; rings go on as VUF_RECOVERY_* says. */
void life_check_kills(struct device *device, const struct life *life, uint32_t recovery);

/* The connection is given up, and the program is not; then it is reset as well. */
void life_check_hangs_up(struct device *device, const struct life *life);

/* A program that does not answer for a while, and one that does not for too long. */
void life_check_freezes(struct device *device, const struct life *life);

/* ---- as tests ---- */

/* The checks above as tests of a back-end that has neither RESET_DEVICE nor a status:
   prepare() gets the state and gives the device; VUF_OUT_OF_ORDER_mode and
   VUF_RECOVERY_mode are how its rings go on after a kill. */
#define LIFE_CHECKS(prepare, life, mode)                                                           \
    static void device_is_stopped_and_resumed(void **state)                                        \
    {                                                                                              \
        life_check_stops(prepare(state), &(life));                                                 \
        life_stop(*state, &(life));                                                                \
    }                                                                                              \
    static void device_is_reset(void **state)                                                      \
    {                                                                                              \
        life_check_resets(prepare(state), &(life), NO_REQUEST);                                    \
        life_stop(*state, &(life));                                                                \
    }                                                                                              \
    static void device_gets_memory_while_it_runs(void **state)                                     \
    {                                                                                              \
        life_check_memory(prepare(state), &(life));                                                \
        life_stop(*state, &(life));                                                                \
    }                                                                                              \
    static void device_waits_for_a_reset_after_a_kill(void **state)                                \
    {                                                                                              \
        struct life strict = (life);                                                               \
        strict.options.out_of_order = VUF_OUT_OF_ORDER_NEEDS_RESET;                                \
        life_check_kills(prepare(state), &strict, VUF_RECOVERY_NEEDS_RESET);                       \
        life_stop(*state, &strict);                                                                \
    }                                                                                              \
    static void device_goes_on_after_a_kill(void **state)                                          \
    {                                                                                              \
        struct life again = (life);                                                                \
        again.options.out_of_order = VUF_OUT_OF_ORDER_##mode;                                      \
        life_check_kills(prepare(state), &again, VUF_RECOVERY_##mode);                             \
        life_stop(*state, &again);                                                                 \
    }                                                                                              \
    static void device_connects_to_it_again(void **state)                                          \
    {                                                                                              \
        life_check_hangs_up(prepare(state), &(life));                                              \
        life_stop(*state, &(life));                                                                \
    }                                                                                              \
    static void device_waits_for_it_to_answer(void **state)                                        \
    {                                                                                              \
        life_check_freezes(prepare(state), &(life));                                               \
    }

/* All of them for cmocka, each through this macro. */
#define LIFE_CHECKS_WITH(test)                                                                     \
    test(device_is_stopped_and_resumed), test(device_is_reset),                                    \
        test(device_gets_memory_while_it_runs), test(device_waits_for_a_reset_after_a_kill),       \
        test(device_goes_on_after_a_kill), test(device_connects_to_it_again),                      \
        test(device_waits_for_it_to_answer)

#endif
