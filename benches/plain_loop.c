/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What benches/dirty_log.rs holds the library's scan against: optimised as programs
 * in C are, and not, as the library is, for size.
 */
#include <stddef.h>
#include <stdint.h>

struct mark {
    size_t word;
    uint64_t bits;
};

/* The compiler's own is a call, where processors need not have an instruction. */
static uint64_t count(uint64_t bits)
{
    bits -= bits >> 1 & UINT64_C(0x5555555555555555);
    bits = (bits & UINT64_C(0x3333333333333333)) + (bits >> 2 & UINT64_C(0x3333333333333333));
    bits = (bits + (bits >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return bits * UINT64_C(0x0101010101010101) >> 56;
}

uint64_t plain_loop(uint64_t *log, uint64_t *bitmap, size_t words)
{
    uint64_t fresh = 0;
    for (size_t i = 0; i < words; i++) {
        if (__atomic_load_n(&log[i], __ATOMIC_RELAXED) != 0) {
            uint64_t taken = __atomic_exchange_n(&log[i], 0, __ATOMIC_ACQUIRE);
            fresh += count(taken & ~bitmap[i]);
            bitmap[i] |= taken;
        }
    }
    return fresh;
}

/* As wide and as many at once as the compiler makes it. */
uint64_t reading(const uint64_t *words, size_t n)
{
    uint64_t all[16] = {0}, any = 0;
    for (size_t i = 0; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++)
            all[j] |= words[i + j];
    for (size_t j = 0; j < 16; j++)
        any |= all[j];
    return any;
}

/* What no scan can do without: the log is read, and the words that must change in
 * log and bitmap are changed. Which ones that are it knows beforehand, and the
 * stores are plain ones. Returns what reading() does, so that it is not left out.
 */
uint64_t memory_alone(uint64_t *log, uint64_t *bitmap, size_t words, const struct mark *marks,
                      size_t n)
{
    enum { BLOCK = 512 };
    uint64_t any = 0;
    for (size_t at = 0; at < words; at += BLOCK) {
        size_t here = 0;
        any |= reading(log + at, BLOCK);
        while (here < n && marks[here].word < at + BLOCK)
            __builtin_prefetch(&bitmap[marks[here++].word], 1);
        for (size_t i = 0; i < here; i++)
            log[marks[i].word] = 0;
        for (size_t i = 0; i < here; i++)
            bitmap[marks[i].word] |= marks[i].bits;
        marks += here;
        n -= here;
    }
    return any;
}
