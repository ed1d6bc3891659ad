/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Several devices with one list of memory: all are told, one that is gone holds up
   nobody, and what one of them needs is taken from none. */
#include "rig.h"
#include "virtio_blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEVICES = 3, ABSENT = 2 /* the one without a back-end */, RING_NUM = 64, ROUNDS = 20 };

#define GUEST_ADDR UINT64_C(0x40000000)
#define GUEST_SIZE UINT64_C(0x100000)
#define SECOND_ADDR UINT64_C(0x80000000)

struct fixture {
    struct backend backends[DEVICES - 1];
    char nowhere[100];
    struct vuf_device *devices[DEVICES];
    struct vuf_memory_group *group;
    struct guest_memory memory, second;
    struct blk_ring ring;
    unsigned freed;
    int fds;
};

static int set_up_devices(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    const struct vuf_device_options options = {
        .size = sizeof options, .num_rings = 1, .first_delay_ms = 2, .max_delay_ms = 20};
    *f = (struct fixture){.fds = count_fds(), .ring = {.kick_fd = -1, .call_fd = -1, .err_fd = -1}};
    *state = f;
    for (int i = 0; i < ABSENT; i++) {
        if (backend_start_embedded(&f->backends[i], 1, false) != 0) {
            return -1;
        }
    }
    snprintf(f->nowhere, sizeof f->nowhere, "%.63s/nowhere", f->backends[0].dir);
    assert_ok(guest_memory_create(&f->memory, GUEST_ADDR, GUEST_SIZE));
    assert_ok(guest_memory_create(&f->second, SECOND_ADDR, GUEST_SIZE));
    assert_ok(blk_ring_create(&f->ring, 0, RING_NUM, &f->memory, GUEST_ADDR));
    assert_ok(vuf_memory_group_new(&f->group));
    for (int i = 0; i < DEVICES; i++) {
        const char *path = i == ABSENT ? f->nowhere : f->backends[i].socket;
        assert_ok(vuf_device_open(path, &options, &f->devices[i]));
    }
    return 0;
}

static int tear_down_devices(void **state)
{
    struct fixture *f = *state;
    vuf_memory_group_free(f->group);
    for (int i = 0; i < DEVICES; i++) {
        vuf_device_free(f->devices[i]);
    }
    blk_ring_destroy(&f->ring);
    guest_memory_destroy(&f->memory);
    guest_memory_destroy(&f->second);
    for (int i = 0; i < ABSENT; i++) {
        backend_stop(&f->backends[i]);
    }
    return count_fds() == f->fds ? 0 : -1;
}

static uint32_t state_of(const struct vuf_device *device)
{
    uint32_t state = UINT32_MAX;
    assert_ok(vuf_device_get_memory_state(device, &state));
    return state;
}

/* All have what is wanted, but the one without a back-end. */
static void assert_applied(struct fixture *f)
{
    assert_ok(vuf_memory_group_wait(f->group, PEER_MS));
    for (int i = 0; i < DEVICES; i++) {
        assert_int_equal(state_of(f->devices[i]),
                         i == ABSENT ? VUF_MEMORY_ABSENT : VUF_MEMORY_APPLIED);
    }
}

static void bring_up_all(struct fixture *f)
{
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    assert_ok(vuf_memory_group_set_memory(f->group, &region, 1, 0));
    for (int i = 0; i < DEVICES; i++) {
        assert_ok(vuf_memory_group_join(f->group, f->devices[i]));
    }
    for (int i = 0; i < ABSENT; i++) {
        assert_ok(vuf_device_wait(f->devices[i], PEER_MS));
        assert_ok(vuf_device_set_features(f->devices[i], BIT(VIRTIO_F_VERSION_1)));
    }
    assert_applied(f);
}

static void memory_comes_and_goes_for_all(void **state)
{
    struct fixture *f = *state;
    bring_up_all(f);
    struct vuf_ring ring = blk_ring_of_device(&f->ring, VUF_RING_BASE_NEW);
    assert_ok(vuf_device_start(f->devices[0], &ring, 1));
    assert_ok(vuf_device_wait(f->devices[0], PEER_MS));
    const struct vuf_mem_region second = guest_memory_region(&f->second);
    assert_ok(vuf_memory_group_memory_fits(f->group, &second, 1));
    for (int round = 0; round < ROUNDS; round++) {
        assert_ok(vuf_memory_group_add_memory(f->group, &second));
        assert_applied(f);
        assert_ok(vuf_memory_group_remove_memory(f->group, SECOND_ADDR, GUEST_SIZE));
        assert_applied(f);
    }
    /* A running ring lies there: it is taken from none of them. */
    assert_returns(-EBUSY, vuf_memory_group_remove_memory(f->group, GUEST_ADDR, GUEST_SIZE));
    assert_returns(-EBUSY, vuf_memory_group_set_memory(f->group, &second, 1, 0));
    assert_applied(f);
}

/* The next change of the group would undo what a device was given alone. */
static void a_device_of_a_group_has_no_memory_of_its_own(void **state)
{
    struct fixture *f = *state;
    const struct vuf_mem_region second = guest_memory_region(&f->second);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    struct vuf_memory_group *other;
    struct vuf_device *device = f->devices[0];
    bring_up_all(f);
    assert_refused(VUF_E_STATE, "memory group", vuf_device_set_memory(device, &second, 1, 0));
    assert_refused(VUF_E_STATE, "memory group", vuf_device_add_memory(device, &second));
    assert_refused(VUF_E_STATE, "memory group",
                   vuf_device_remove_memory(device, GUEST_ADDR, GUEST_SIZE, &quiet));
    assert_ok(vuf_device_memory_fits(device, &second, 1));
    assert_ok(vuf_memory_group_new(&other));
    assert_refused(VUF_E_STATE, "another group", vuf_memory_group_join(other, device));
    assert_applied(f);
    /* It left, and so do all others when the group is freed. */
    assert_ok(vuf_memory_group_leave(f->group, device));
    assert_ok(vuf_device_add_memory(device, &second));
    assert_ok(vuf_memory_group_join(other, device));
    assert_refused(VUF_E_STATE, "memory group", vuf_device_add_memory(device, &second));
    vuf_memory_group_free(other);
    assert_ok(vuf_device_add_memory(device, &second));
}

static void one_that_dies_holds_up_nobody(void **state)
{
    struct fixture *f = *state;
    bring_up_all(f);
    const struct vuf_mem_region second = guest_memory_region(&f->second);
    backend_kill(&f->backends[1]);
    assert_ok(vuf_memory_group_add_memory(f->group, &second));
    assert_ok(vuf_memory_group_wait(f->group, PEER_MS));
    assert_int_equal(state_of(f->devices[0]), VUF_MEMORY_APPLIED);
    assert_int_equal(state_of(f->devices[1]), VUF_MEMORY_ABSENT);
    assert_ok(backend_again_embedded(&f->backends[1], 1, false));
    assert_ok(vuf_device_wait(f->devices[1], PEER_MS));
    assert_applied(f);
    /* Who leaves keeps what it has. */
    assert_ok(vuf_memory_group_leave(f->group, f->devices[1]));
    assert_ok(vuf_memory_group_remove_memory(f->group, SECOND_ADDR, GUEST_SIZE));
    assert_applied(f);
    struct vuf_quiet quiet = {.size = sizeof quiet};
    assert_ok(vuf_device_remove_memory(f->devices[1], SECOND_ADDR, GUEST_SIZE, &quiet));
}

static void free_it(void *user, const struct vuf_trace_record *record)
{
    struct fixture *f = user;
    struct vuf_device_event event = {.size = sizeof event};
    (void)record;
    vuf_device_free(f->devices[0]);
    vuf_memory_group_free(f->group);
    assert_returns(-ECANCELED, vuf_device_process(f->devices[0], &event));
    f->freed++;
}

/* The group drives a device, which runs a function: both are still there after it. */
static void nothing_is_freed_from_inside(void **state)
{
    struct fixture *f = *state;
    const struct vuf_mem_region second = guest_memory_region(&f->second);
    int fd = vuf_device_get_fd(f->devices[0]);
    bring_up_all(f);
    assert_ok(vuf_device_set_trace(f->devices[0], free_it, f));
    assert_ok(vuf_memory_group_add_memory(f->group, &second));
    assert_ok(vuf_memory_group_wait(f->group, PEER_MS)); /* for the others */
    assert_true(f->freed > 0);
    assert_true(fcntl(fd, F_GETFD) >= 0);
}

/* Waits in the group; what the call returned. */
struct wait {
    struct vuf_memory_group *group;
    sem_t begun;
    int rc;
};

static void *wait_for_all(void *argument)
{
    struct wait *wait = argument;
    sem_post(&wait->begun);
    wait->rc = vuf_memory_group_wait(wait->group, PEER_MS);
    return NULL;
}

static void count_call(void *user, const struct vuf_trace_record *record)
{
    (void)record;
    atomic_fetch_add((atomic_int *)user, 1);
}

/* The thread that waits is let go at once, and nothing of the device runs later. */
static void a_member_is_freed_while_another_thread_waits(void **state)
{
    struct fixture *f = *state;
    const struct vuf_mem_region region = guest_memory_region(&f->memory);
    const struct vuf_device_options options = {
        .size = sizeof options, .num_rings = 1, .assume_features = BIT(VIRTIO_F_VERSION_1)};
    assert_ok(vuf_memory_group_set_memory(f->group, &region, 1, 0));
    for (int round = 0; round < ROUNDS; round++) {
        /* Its back-end takes the connection and says nothing. */
        int fds[2];
        assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), errno);
        struct vuf_device *silent;
        atomic_int calls = 0;
        assert_ok(vuf_device_open_fd(fds[0], &options, &silent));
        assert_ok(vuf_device_set_trace(silent, count_call, &calls));
        assert_ok(vuf_device_set_features(silent, BIT(VIRTIO_F_VERSION_1)));
        assert_ok(vuf_memory_group_join(f->group, silent));
        struct wait wait = {.group = f->group, .rc = 1};
        pthread_t thread;
        assert_return_code(sem_init(&wait.begun, 0, 0), errno);
        assert_int_equal(pthread_create(&thread, NULL, wait_for_all, &wait), 0);
        /* From where it has just begun to where it waits. */
        while (sem_wait(&wait.begun) != 0) {
        }
        while (round % 2 == 1 && atomic_load(&calls) == 0) {
            sched_yield();
        }
        vuf_device_free(silent);
        const int before = atomic_load(&calls);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(wait.rc, 0);
        assert_int_equal(atomic_load(&calls), before);
        /* The connection is closed. */
        char byte[64];
        ssize_t got;
        while ((got = read(fds[1], byte, sizeof byte)) > 0) {
        }
        assert_int_equal(got, 0);
        close(fds[1]);
        sem_destroy(&wait.begun);
    }
}

static void bad_arguments_are_refused(void **state)
{
    struct fixture *f = *state;
    struct vuf_mem_region region = guest_memory_region(&f->memory);
    uint32_t memory_state;
    assert_returns(-EINVAL, vuf_memory_group_new(NULL));
    assert_returns(-EINVAL, vuf_memory_group_join(NULL, f->devices[0]));
    assert_returns(-EINVAL, vuf_memory_group_join(f->group, NULL));
    assert_ok(vuf_memory_group_join(f->group, f->devices[0]));
    assert_returns(VUF_E_STATE, vuf_memory_group_join(f->group, f->devices[0]));
    assert_returns(-EINVAL, vuf_memory_group_leave(NULL, f->devices[0]));
    assert_returns(-EINVAL, vuf_memory_group_leave(f->group, NULL));
    assert_ok(vuf_memory_group_leave(f->group, f->devices[1]));
    assert_returns(-EINVAL, vuf_memory_group_set_memory(NULL, &region, 1, 0));
    assert_returns(-EINVAL, vuf_memory_group_set_memory(f->group, NULL, 1, 0));
    assert_returns(-EINVAL, vuf_memory_group_set_memory(f->group, &region, 1, 2));
    assert_returns(-EINVAL, vuf_memory_group_add_memory(NULL, &region));
    assert_returns(-EINVAL, vuf_memory_group_add_memory(f->group, NULL));
    assert_ok(vuf_memory_group_add_memory(f->group, &region));
    assert_returns(-EINVAL, vuf_memory_group_add_memory(f->group, &region));
    assert_returns(-EINVAL, vuf_memory_group_remove_memory(NULL, GUEST_ADDR, GUEST_SIZE));
    assert_returns(-EINVAL, vuf_memory_group_remove_memory(f->group, SECOND_ADDR, GUEST_SIZE));
    assert_returns(-EINVAL, vuf_memory_group_memory_fits(NULL, &region, 1));
    region.size--;
    assert_returns(-EINVAL, vuf_memory_group_memory_fits(f->group, &region, 1));
    assert_returns(-EINVAL, vuf_memory_group_wait(NULL, 1));
    assert_returns(-EINVAL, vuf_device_get_memory_state(NULL, &memory_state));
    assert_returns(-EINVAL, vuf_device_get_memory_state(f->devices[0], NULL));
    vuf_memory_group_free(NULL);
}

#define WITH_DEVICES(test) cmocka_unit_test_setup_teardown(test, set_up_devices, tear_down_devices)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DEVICES(memory_comes_and_goes_for_all),
        WITH_DEVICES(one_that_dies_holds_up_nobody),
        WITH_DEVICES(a_device_of_a_group_has_no_memory_of_its_own),
        WITH_DEVICES(nothing_is_freed_from_inside),
        WITH_DEVICES(a_member_is_freed_while_another_thread_waits),
        WITH_DEVICES(bad_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
