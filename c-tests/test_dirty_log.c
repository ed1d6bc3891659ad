/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Marks of written pages, taken out of a log while others make them. The logs of
   real back-ends are in test_block and real_net. */
#include "rig.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Memory that ends where the next page cannot be touched. */
struct memory {
    size_t size;
    uint8_t *mapped, *at;
};

static struct memory memory_new(size_t size)
{
    struct memory memory = {.size = (size + PAGE - 1) / PAGE * PAGE + PAGE};
    memory.mapped = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                         -1, 0);
    assert_ptr_not_equal(memory.mapped, MAP_FAILED);
    uint8_t *end = memory.mapped + memory.size - PAGE;
    assert_return_code(mprotect(end, PAGE, PROT_NONE), errno);
    memory.at = end - size;
    return memory;
}

static void memory_free(struct memory *memory)
{
    munmap(memory->mapped, memory->size);
}

static bool is_set(const uint8_t *bits, uint64_t n)
{
    return (bits[n / 8] >> n % 8 & 1) != 0;
}

static unsigned count(const uint8_t *bits, uint64_t n)
{
    unsigned set = 0;
    while (n-- > 0) {
        set += is_set(bits, n);
    }
    return set;
}

static void marks_move_to_the_bitmap(void **state)
{
    uint8_t log[PAGE] = {[0] = 0x81, [1] = 0x02, [500] = 0xff, [PAGE - 1] = 0x80};
    uint8_t bitmap[PAGE] = {[0] = 0x80, [1] = 0x40, [500] = 0x0f}, wanted[PAGE] = {0};
    uint64_t new_pages = 7;
    (void)state;
    memcpy(wanted, bitmap, sizeof wanted);
    wanted[0] = 0x81;
    wanted[1] = 0x42;
    wanted[500] = 0xff;
    wanted[PAGE - 1] = 0x80;
    assert_int_equal(vuf_dirty_log_sync(log, PAGE, 0, PAGE * 8, bitmap, &new_pages), 0);
    assert_memory_equal(bitmap, wanted, sizeof wanted);
    assert_int_equal(new_pages, 1 + 1 + 4 + 1);
    assert_int_equal(count(log, PAGE * 8), 0);

    assert_int_equal(vuf_dirty_log_sync(log, PAGE, 0, PAGE * 8, bitmap, &new_pages), 0);
    assert_memory_equal(bitmap, wanted, sizeof wanted);
    assert_int_equal(new_pages, 0);

    /* A region: its first page is bit 0, wherever that lies in the log. */
    uint64_t region[2] = {0};
    log[500] = 0x06;
    log[PAGE - 1] = 0x80;
    assert_int_equal(vuf_dirty_log_sync(log, PAGE, 4001, 100, region, &new_pages), 0);
    assert_true(is_set((const uint8_t *)region, 0));
    assert_true(is_set((const uint8_t *)region, 1));
    assert_int_equal(count((const uint8_t *)region, 128), 2);
    assert_int_equal(new_pages, 2);
    assert_int_equal(count(log, PAGE * 8), 1);
}

/* One range, against the rule bit by bit; with nothing behind log and bitmap. */
static void check(size_t size, uint64_t first, uint64_t pages, unsigned seed)
{
    struct memory log = memory_new(size), bitmap = memory_new((pages + 7) / 8);
    const uint64_t bytes = (pages + 7) / 8;
    uint8_t *log_then = malloc(size + 1), *bitmap_then = malloc(bytes + 1);
    uint64_t new_pages = 7, new_then = 0;
    srand(seed);
    for (size_t n = 0; n < size; n++) {
        log_then[n] = log.at[n] = rand() % (1 + seed % 40) == 0 ? rand() & 0xff : 0;
    }
    for (size_t n = 0; n < bytes; n++) {
        bitmap_then[n] = bitmap.at[n] = rand() % 3 == 0 ? rand() & 0xff : 0;
    }
    for (uint64_t n = 0; n < pages; n++) {
        if (is_set(log.at, first + n)) {
            log_then[(first + n) / 8] &= (uint8_t)~(1u << (first + n) % 8);
            new_then += !is_set(bitmap.at, n);
            bitmap_then[n / 8] |= (uint8_t)(1u << n % 8);
        }
    }
    assert_int_equal(vuf_dirty_log_sync(log.at, size, first, pages, bitmap.at, &new_pages), 0);
    assert_int_equal(new_pages, new_then);
    assert_memory_equal(log.at, log_then, size);
    assert_memory_equal(bitmap.at, bitmap_then, bytes);
    free(log_then);
    free(bitmap_then);
    memory_free(&log);
    memory_free(&bitmap);
}

static void ranges_begin_and_end_anywhere(void **state)
{
    unsigned seed = 0;
    (void)state;
    for (size_t size = 1; size <= 26; size++) {
        for (uint64_t first = 0; first <= size * 8; first += 1 + first / 9) {
            for (uint64_t pages = 0; pages <= size * 8 - first; pages += 1 + pages / 9) {
                check(size, first, pages, seed++);
            }
        }
    }
    /* Of more than a few words. The first pages of regions: any, those of whole bytes,
       of whole words, and of 2 MiB. */
    const uint64_t first[] = {0, 1, 8, 64, 512, 4096, 4099};
    for (unsigned n = 0; n < 40 * LENGTH(first); n++) {
        const size_t size = 3 * PAGE + n % 4 * 3;
        const uint64_t from = first[n % LENGTH(first)];
        check(size, from, size * 8 - from - n % 3 * 31, n);
    }
}

enum { MARKERS = 2, LOG_BYTES = 2 * PAGE, SYNCS = 500, MOST_S = 60 };

struct shared {
    _Atomic uint8_t log[LOG_BYTES];
    _Atomic uint64_t made[MARKERS];
    atomic_bool enough;
};

/* As back-ends do it: other processes, and byte by byte. */
static void mark(struct shared *shared, unsigned marker)
{
    uint64_t made = 0;
    uint32_t dice = marker + 1;
    alarm(MOST_S);
    for (unsigned n = 0; !atomic_load(&shared->enough); n++) {
        dice = dice * 1664525 + 1013904223;
        /* All of it is in use, or only its beginning, by turns. */
        const uint32_t page = (dice >> 12) % (n / 4096 % 2 == 0 ? LOG_BYTES * 8 : LOG_BYTES);
        const uint8_t bit = (uint8_t)(1u << page % 8);
        made += (atomic_fetch_or(&shared->log[page / 8], bit) & bit) == 0;
    }
    atomic_store(&shared->made[marker], made);
    execlp("true", "true", (char *)NULL); /* which valgrind does not look into */
    _exit(127);
}

static void other_processes_lose_no_mark(void **state)
{
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    static uint8_t bitmap[LOG_BYTES];
    unsigned ended = 0, syncs = 0;
    uint64_t taken = 0, made = 0;
    (void)state;
    assert_ptr_not_equal(shared, MAP_FAILED);
    for (unsigned n = 0; n < MARKERS; n++) {
        pid_t marker = fork();
        assert_return_code(marker, errno);
        if (marker == 0) {
            mark(shared, n);
        }
    }
    for (bool last = false; !last;) {
        uint64_t new_pages = 0;
        last = ended == MARKERS;
        memset(bitmap, 0, sizeof bitmap);
        assert_int_equal(vuf_dirty_log_sync(shared->log, LOG_BYTES, 0, LOG_BYTES * 8, bitmap,
                                            &new_pages), 0);
        assert_int_equal(new_pages, count(bitmap, LOG_BYTES * 8));
        taken += new_pages;
        /* They begin whenever the machine lets them. */
        atomic_store(&shared->enough, ++syncs >= SYNCS && taken >= LOG_BYTES * 8 * MARKERS);
        for (int status = 0; waitpid(-1, &status, WNOHANG) > 0; ended++) {
            assert_int_equal(status, 0);
        }
    }
    for (unsigned n = 0; n < MARKERS; n++) {
        made += shared->made[n];
    }
    print_message("%llu marks\n", (unsigned long long)made);
    assert_int_equal(taken, made);
    munmap(shared, sizeof *shared);
}

/* What a back-end can do with the descriptor that it was given. */
static void sealed_log_cannot_be_made_shorter(void **state)
{
    enum { SIZE = 65536 };
    static uint8_t bitmap[SIZE];
    uint64_t new_pages;
    int fd, status;
    (void)state;
    assert_int_equal(vuf_memfd_create("log", SIZE, 0, VUF_MEMFD_SEAL, &fd), 0);
    uint8_t *log = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(log, MAP_FAILED);
    pid_t child = fork();
    if (child == 0) {
        log[0] = 1;
        _exit(ftruncate(fd, 0) == -1 && errno == EPERM ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(vuf_dirty_log_sync(log, SIZE, 0, SIZE * 8, bitmap, &new_pages), 0);
    assert_int_equal(new_pages, 1);
    munmap(log, SIZE);
    close(fd);
}

static void bad_arguments_are_refused(void **state)
{
    struct rig rig = {.peer = -1};
    uint8_t log[17], bitmap[17] = {0};
    uint64_t new_pages = 7;
    (void)state;
    memset(log, 0xff, sizeof log);
#define SYNC(log, size, first, pages, bitmap, out)                                                \
    vuf_dirty_log_sync(log, size, first, pages, bitmap, out)
#define BAD(what, ...) REFUSED(&rig, -EINVAL, NO_REQUEST, what, SYNC(__VA_ARGS__))
    BAD("log is NULL", NULL, 17, 0, 136, bitmap, &new_pages);
    BAD("bitmap is NULL", log, 17, 0, 136, NULL, &new_pages);
    BAD("new_pages is NULL", log, 17, 0, 136, bitmap, NULL);
    BAD("new_pages is NULL", log, 17, 0, 0, bitmap, NULL);
    BAD("first_page 0x0 and pages 0x89", log, 17, 0, 137, bitmap, &new_pages);
    BAD("first_page 0x1 and pages 0x88", log, 17, 1, 136, bitmap, &new_pages);
    BAD("first_page 0x89 and pages 0x0", log, 17, 137, 0, bitmap, &new_pages);
    BAD("beyond the log, which has 0x88", log, 17, UINT64_MAX, 1, bitmap, &new_pages);
    BAD("beyond the log", log, 17, UINT64_MAX, UINT64_MAX, bitmap, &new_pages);
    BAD("beyond the log", log, 17, 2, UINT64_MAX - 1, bitmap, &new_pages);
    BAD("beyond the log", NULL, 0, 0, 1, bitmap, &new_pages);
    BAD("longer than memory", log, SIZE_MAX, 0, 8, bitmap, &new_pages);
    all_refused(&rig);
    assert_int_equal(new_pages, 7);
    assert_int_equal(count(log, 136), 136);
    assert_int_equal(count(bitmap, 136), 0);

    /* Nothing is asked for, and that is no mistake. */
    assert_int_equal(vuf_dirty_log_sync(log, 17, 136, 0, NULL, &new_pages), 0);
    assert_int_equal(new_pages, 0);
    new_pages = 7;
    assert_int_equal(vuf_dirty_log_sync(NULL, 0, 0, 0, NULL, &new_pages), 0);
    assert_int_equal(new_pages, 0);
    assert_int_equal(count(log, 136), 136);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(marks_move_to_the_bitmap),
        cmocka_unit_test(ranges_begin_and_end_anywhere),
        cmocka_unit_test(other_processes_lose_no_mark),
        cmocka_unit_test(sealed_log_cannot_be_made_shorter),
        cmocka_unit_test(bad_arguments_are_refused),
    };
    return cmocka_run_group_tests_name("test_dirty_log", tests, NULL, NULL);
}
