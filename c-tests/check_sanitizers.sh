#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The C tests once more, with AddressSanitizer and UndefinedBehaviorSanitizer in
# the test programs and, where there is a nightly Rust, AddressSanitizer in the
# library; then also the Rust tests that walk most of the unsafe code. Leaks are
# found. Without a nightly Rust the library is the ordinary one; what it allocates
# and passes to the C library is watched all the same.
set -u
cd "$(dirname "$0")/.." || exit 1
. c-tests/instrumented.sh
OUT=build/asan
FLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'
. c-tests/checks.sh
begin asan
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
# dlopen goes through the sanitizer, which does not have the program's rpath.
export LD_LIBRARY_PATH="$PWD/build"

# tells WORDS PROGRAM...: the program must fail and say so.
tells() {
    words=$1
    shift
    if "$@" >"$dir/words" 2>&1 || ! grep -q "$words" "$dir/words"; then
        cat "$dir/words"
        return 1
    fi
}

# Errors that must be told: a leak, an addition that overflows, and a struct cut
# short, which nobody but the library reads.
cat >"$dir/leak.c" <<'C'
#include <stdlib.h>
void *volatile lost;
int main(void)
{
    lost = malloc(7);
    lost = NULL;
    return 0;
}
C
cat >"$dir/overflow.c" <<'C'
#include <limits.h>
int main(int argc, char *argv[])
{
    (void)argv;
    return INT_MAX + argc == 0;
}
C
cat >"$dir/short.c" <<'C'
#include <stdlib.h>
#include <sys/socket.h>
#include <vhost_user_frontend.h>
int main(void)
{
    int ends[2];
    struct vuf_client *client;
    struct vuf_vring_addr *addr = calloc(1, sizeof *addr / 2);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 ||
        vuf_client_from_fd(ends[0], NULL, &client) != 0) {
        return 0;
    }
    vuf_client_set_vring_addr(client, 0, addr);
    return 0;
}
C

# shellcheck disable=SC2086
if ! $CC $FLAGS -o "$dir/leak" "$dir/leak.c" 2>"$dir/words"; then
    echo "SKIPPED: the compiler has no sanitizers: $(head -n 1 "$dir/words")"
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi

# Made anew: a program of the run before may have been linked with another library.
rm -rf $OUT/c-tests
if find_nightly asan; then
    instrumented_cargo address $OUT rustc --lib --crate-type staticlib || exit 1
    instrumented_programs $OUT "$FLAGS" c-tests || exit 1
    # shellcheck disable=SC2046,SC2086
    for program in leak overflow short; do
        $CC -Iinclude $FLAGS $(foreign_runtime) -o "$dir/$program" "$dir/$program.c" \
            $(instrumented_archive $OUT) $(foreign_libraries) || exit 1
    done
    check 'an error inside the library is told' \
        tells heap-buffer-overflow env ASAN_OPTIONS=detect_leaks=0 "$dir/short"
    check 'it happened in the library' grep -q 'src/ffi/.*\.rs' "$dir/words"
else
    echo "SKIPPED: the library is not instrumented: $why_not"
    skipped=1
    $MAKE --no-print-directory c-tests C_OUT=$OUT/c-tests CFLAGS="$FLAGS" || exit 1
    for program in leak overflow; do
        # shellcheck disable=SC2086
        $CC $FLAGS -o "$dir/$program" "$dir/$program.c" || exit 1
    done
fi
check 'a leak is told' tells 'detected memory leaks' "$dir/leak"
check 'an overflow is told' tells 'signed integer overflow' "$dir/overflow"

instrumented() {
    nm "$1" >"$dir/symbols"
    grep -q __asan_init "$dir/symbols" && grep -q __ubsan_handle "$dir/symbols"
}
for program in c-tests/test_*.c; do
    program=$OUT/c-tests/$(basename "$program" .c)
    check "$program is instrumented" instrumented "$program"
done

# Devices are freed at random moments, and some thousand are more than hundreds.
export VUF_CLOSE_ROUNDS="${VUF_CLOSE_ROUNDS:-3000}"
check_aloud 'C tests' sh c-tests/run_programs.sh $OUT/c-tests
if [ $skipped = 0 ]; then
    check_aloud 'Rust tests' instrumented_cargo address $OUT test \
        --lib --test fuzz_corpus --test regressions --test replies --test transcripts
fi
sum_up
