/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The library as a plugin has it: loaded with dlopen, used by a thread, closed
   with dlclose, again and again; and threads that outlive that. This program is
   not linked with the library, nor with what is. */
#include "harness.h"

#include <vhost_user_frontend.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { GET_FEATURES_SIZE = 12, ROUNDS = 1000, ROUNDS_UNDER_VALGRIND = 50, MARGIN_KB = 256 };

/* ---- the library ---- */

struct library {
    void *handle;
    const struct vuf_api *vuf;
};

static void *open_library(int flags)
{
    return dlopen(VUF_SONAME, RTLD_NOW | RTLD_LOCAL | flags);
}

/* Returns NULL, or what was missing. */
static const char *load(struct library *library)
{
    const struct vuf_api *(*get_api)(uint32_t);
    library->handle = open_library(0);
    if (library->handle == NULL) {
        return dlerror();
    }
    *(void **)&get_api = dlsym(library->handle, "vuf_get_api");
    library->vuf = get_api == NULL ? NULL : get_api(VUF_API_VERSION);
    return library->vuf == NULL ? "vuf_get_api" : NULL;
}

/* ---- a thread that uses it ---- */

enum who { THREAD_CLOSES, MAIN_CLOSES, WHO };

struct user {
    enum who closes;
    int ends[2]; /* of a connection: the thread's, and that of the test */
    struct library library;
    const char *complaint; /* NULL if all went well */
    sem_t used, closed;
    pthread_t thread;
};

/* One round trip, and a failure, whose words are the thread's own. */
static const char *use(struct user *user)
{
    const struct vuf_api *vuf = user->library.vuf;
    struct vuf_client *client;
    uint64_t features = 0;
    if (vuf->vuf_client_from_fd(user->ends[0], NULL, &client) != 0) {
        return "vuf_client_from_fd";
    }
    int rc = vuf->vuf_client_get_features(client, &features);
    bool refused = vuf->vuf_client_get_features(client, NULL) == -EINVAL;
    bool told = strstr(vuf->vuf_last_error(), "GET_FEATURES") != NULL;
    vuf->vuf_client_free(client);
    return rc != 0 || features != 7 ? "round trip" : !refused || !told ? "failure" : NULL;
}

static void *run(void *argument)
{
    struct user *user = argument;
    user->complaint = load(&user->library);
    if (user->complaint == NULL) {
        user->complaint = use(user);
    }
    if (user->closes == THREAD_CLOSES) {
        dlclose(user->library.handle);
    }
    sem_post(&user->used);
    sem_wait(&user->closed);
    return NULL; /* after dlclose, whoever called it */
}

/* The other end of the round trip. */
static bool answer(int peer)
{
    const struct {
        uint32_t request, flags, size, features[2];
    } reply = {GET_FEATURES, 0x5, 8, {7, 0}};
    char request[GET_FEATURES_SIZE];
    return recv(peer, request, sizeof request, MSG_WAITALL) == sizeof request &&
           send(peer, &reply, sizeof reply, MSG_NOSIGNAL) == sizeof reply;
}

static void start_user(struct user *user, enum who closes)
{
    *user = (struct user){.closes = closes};
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, user->ends), errno);
    sem_init(&user->used, 0, 0);
    sem_init(&user->closed, 0, 0);
    assert_int_equal(pthread_create(&user->thread, NULL, run, user), 0);
    assert_true(answer(user->ends[1]));
    sem_wait(&user->used);
    if (user->complaint != NULL) {
        print_error("%s\n", user->complaint);
    }
    assert_null(user->complaint);
    close(user->ends[1]);
}

/* The thread ends after the library was closed. */
static void end_user(struct user *user)
{
    if (user->closes == MAIN_CLOSES) {
        dlclose(user->library.handle);
    }
    sem_post(&user->closed);
    pthread_join(user->thread, NULL);
}

/* ---- what must not grow ---- */

static long resident_kb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*s %ld", &pages), 1);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static int count_mappings(void)
{
    char line[4096];
    int count = 0;
    FILE *file = fopen("/proc/self/maps", "re");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        count += strstr(line, "libvhost_user_frontend") != NULL;
    }
    fclose(file);
    return count;
}

static bool under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");
    return preload != NULL && strstr(preload, "vgpreload") != NULL;
}

/* Valgrind and the sanitizer keep what was freed, and find leaks themselves. */
static bool memory_is_watched(void)
{
#ifdef __SANITIZE_ADDRESS__
    return true;
#else
    return under_valgrind();
#endif
}

/* ---- tests ---- */

/* Before all others: otherwise they would prove nothing. */
static void this_program_does_not_have_the_library(void **state)
{
    (void)state;
    assert_null(open_library(RTLD_NOLOAD));
    assert_int_equal(count_mappings(), 0);
}

static void loaded_and_closed_again_and_again(void **state)
{
    (void)state;
    const int rounds = under_valgrind() ? ROUNDS_UNDER_VALGRIND : ROUNDS;
    int fds = 0, mappings = 0;
    long kb = 0;
    for (int round = 0; round < rounds; round++) {
        struct user users[WHO];
        if (round == rounds / 10) {
            fds = count_fds();
            mappings = count_mappings();
            kb = resident_kb();
        }
        for (enum who closes = 0; closes < WHO; closes++) {
            start_user(&users[closes], closes);
        }
        for (enum who closes = 0; closes < WHO; closes++) {
            end_user(&users[closes]);
        }
    }
    assert_int_equal(count_fds(), fds);
    assert_int_equal(count_mappings(), mappings);
    if (!memory_is_watched()) {
        assert_in_range(resident_kb(), 1, kb + MARGIN_KB);
    }
}

/* The library is never unmapped, because threads may still have to leave it. */
static void it_stays_after_the_last_dlclose(void **state)
{
    (void)state;
    struct user user;
    start_user(&user, THREAD_CLOSES);
    void *handle = open_library(RTLD_NOLOAD);
    end_user(&user);
    assert_non_null(handle);
    dlclose(handle);
    assert_non_null(open_library(RTLD_NOLOAD));
    assert_true(count_mappings() > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(this_program_does_not_have_the_library),
        cmocka_unit_test(loaded_and_closed_again_and_again),
        cmocka_unit_test(it_stays_after_the_last_dlclose),
    };
    return cmocka_run_group_tests_name("test_dlopen", tests, NULL, NULL);
}
