#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The C tests under valgrind: no error, no memory that is not freed, and no
# descriptor open at the end but those that the program began with.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-valgrind.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

if ! command -v valgrind >/dev/null; then
    echo 'SKIPPED: valgrind is not installed'
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi

# run DIRECTORY: its programs, into the log. A forked child has open what its
# parent has, and is not looked at.
run() {
    VUF_JOBS=$(getconf _NPROCESSORS_ONLN) VUF_THREADS_ONE_BY_ONE=1 VUF_CLOSE_ROUNDS=60 \
        sh c-tests/run_programs.sh "$1" valgrind --quiet --child-silent-after-fork=yes \
        --error-exitcode=9 --track-fds=yes --leak-check=full --show-leak-kinds=all \
        --errors-for-leak-kinds=all --suppressions=c-tests/valgrind.supp >"$dir/log" 2>&1
}

# Valgrind only reports an open descriptor: in one line, and in the next where it
# was opened, or "<inherited from parent>". Counts programs.
no_open_descriptors() {
    awk '
        opened != "" && !/inherited from parent/ { print program ": " opened; bad[program] = 1 }
        { opened = "" }
        /^==[0-9]+== Open / { opened = $0 }
        /^== / { program = $2; programs++ }
        END {
            for (program in bad) failed++
            printf "%d passed, %d failed\n", programs - failed, failed
            exit programs == 0 || failed != 0
        }' "$dir/log"
}

# First a program that leaves its descriptors open, and must be caught.
mkdir "$dir/leak" || exit 1
cat >"$dir/leak/test_leak.c" <<'C'
#include <sys/socket.h>
int main(void)
{
    int ends[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
}
C
$CC -g -o "$dir/leak/test_leak" "$dir/leak/test_leak.c" || exit 1
if ! run "$dir/leak" || no_open_descriptors >"$dir/words"; then
    cat "$dir/log"
    echo 'an open descriptor is not noticed here'
    echo '0 passed, 1 failed'
    exit 1
fi

run build/c-tests
result=$?
cat "$dir/log"
no_open_descriptors && [ $result = 0 ]
