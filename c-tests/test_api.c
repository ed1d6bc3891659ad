/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The table of all functions, as a program finds it that looks up no other name:
   each member is the function of its name, in the order in which the map of the
   exported symbols has them. Not linked with the library. */
#include "functions.h"

#include <vhost_user_frontend.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct library {
    void *handle;
    const struct vuf_api *(*vuf_get_api)(uint32_t version);
};

/* What the map says: names, and where in the table they stand. */
#define PLACE(function) {#function, offsetof(struct vuf_api, function)},
static const struct {
    const char *name;
    size_t offset;
} places[] = {FUNCTIONS(PLACE)};

enum { FUNCTIONS_COUNT = sizeof places / sizeof *places };

/* Each member has the type of its function. */
#define TYPE(function)                                                                             \
    _Static_assert(_Generic(((struct vuf_api *)0)->function, __typeof__(&function): 1, default: 0), \
                   #function);
FUNCTIONS(TYPE)

static int open_library(void **state)
{
    static struct library library;
    library.handle = dlopen(VUF_SONAME, RTLD_NOW | RTLD_LOCAL);
    if (library.handle == NULL) {
        print_error("%s\n", dlerror());
        return -1;
    }
    *(void **)&library.vuf_get_api = dlsym(library.handle, "vuf_get_api");
    *state = &library;
    return library.vuf_get_api == NULL ? -1 : 0;
}

static void the_table_begins_with_its_size(void **state)
{
    const struct library *library = *state;
    const struct vuf_api *vuf = library->vuf_get_api(VUF_API_VERSION);
    assert_non_null(vuf);
    assert_int_equal(vuf->size, sizeof(struct vuf_api));
    assert_int_equal(vuf->version, VUF_API_VERSION);
    assert_int_equal(vuf->reserved, 0);
}

static void each_member_is_the_function_of_its_name(void **state)
{
    const struct library *library = *state;
    const struct vuf_api *vuf = library->vuf_get_api(VUF_API_VERSION);
    for (size_t i = 0; i < FUNCTIONS_COUNT; i++) {
        void *member, *function = dlsym(library->handle, places[i].name);
        memcpy(&member, (const char *)vuf + places[i].offset, sizeof member);
        if (function == NULL || member != function) {
            fail_msg("%s is %p, and in the table %p", places[i].name, function, member);
        }
    }
}

/* New functions stand behind those that there were, and nothing between. */
static void members_stand_in_the_order_of_the_map(void **state)
{
    (void)state;
    size_t end = offsetof(struct vuf_api, vuf_version);
    for (size_t i = 0; i < FUNCTIONS_COUNT; i++) {
        if (places[i].offset != end) {
            fail_msg("%s stands at %zu, not at %zu", places[i].name, places[i].offset, end);
        }
        end += sizeof(void (*)(void));
    }
    assert_int_equal(end, sizeof(struct vuf_api));
}

static void an_unknown_version_has_no_table(void **state)
{
    const struct library *library = *state;
    const uint32_t unknown[] = {0, VUF_API_VERSION + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_null(library->vuf_get_api(unknown[i]));
    }
}

/* Where older libraries end, the program can tell. */
static void a_shorter_table_has_less(void **state)
{
    (void)state;
    const struct vuf_api older = {.size = offsetof(struct vuf_api, vuf_strerror)};
    assert_true(VUF_API_HAS(&older, vuf_version));
    assert_false(VUF_API_HAS(&older, vuf_strerror));
    assert_false(VUF_API_HAS(&older, vuf_get_api));
}

/* Whoever can write somewhere in the program cannot put a function there. */
static void the_table_cannot_be_written(void **state)
{
    const struct library *library = *state;
    uintptr_t table = (uintptr_t)library->vuf_get_api(VUF_API_VERSION), begin, end;
    char line[4096], access[5] = "";
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps) != NULL &&
           sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, access) == 3 &&
           !(begin <= table && table < end)) {
        access[0] = '\0';
    }
    fclose(maps);
    assert_string_equal(access, "r--p");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_begins_with_its_size),
        cmocka_unit_test(each_member_is_the_function_of_its_name),
        cmocka_unit_test(members_stand_in_the_order_of_the_map),
        cmocka_unit_test(an_unknown_version_has_no_table),
        cmocka_unit_test(a_shorter_table_has_less),
        cmocka_unit_test(the_table_cannot_be_written),
    };
    return cmocka_run_group_tests_name("test_api", tests, open_library, NULL);
}
