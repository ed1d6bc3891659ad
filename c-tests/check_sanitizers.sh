#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The C tests once more, with AddressSanitizer and UndefinedBehaviorSanitizer in
# the test programs. The library is the ordinary one; what it allocates and what
# it passes to the C library is watched all the same, and leaks are found.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${MAKE:=make}"
OUT=build/asan
FLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-asan.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
# dlopen goes through the sanitizer, which does not have the program's rpath.
export LD_LIBRARY_PATH="$PWD/build"

# A program that leaks, and is told so.
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
# shellcheck disable=SC2086
if ! $CC $FLAGS -o "$dir/leak" "$dir/leak.c" 2>"$dir/words"; then
    echo "SKIPPED: the compiler has no sanitizers: $(head -n 1 "$dir/words")"
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi
if "$dir/leak" >"$dir/words" 2>&1 || ! grep -q 'detected memory leaks' "$dir/words"; then
    cat "$dir/words"
    echo 'a leak is not noticed here'
    echo '0 passed, 1 failed'
    exit 1
fi

$MAKE --no-print-directory c-tests C_OUT=$OUT CFLAGS="$FLAGS" || exit 1
passed=0 failed=0
for program in c-tests/test_*.c; do
    program=$OUT/$(basename "$program" .c)
    nm "$program" >"$dir/symbols"
    if grep -q __asan_init "$dir/symbols" && grep -q __ubsan_handle "$dir/symbols"; then
        passed=$((passed + 1))
    else
        echo "$program has no sanitizer in it"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
sh c-tests/run_programs.sh $OUT && [ $failed = 0 ]
