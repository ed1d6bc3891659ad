#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# check_strace.sh: traces a test that makes ten round trips of GET_FEATURES and
# counts the system calls of the thread that makes them. The peer is another
# thread; each thread has a trace file of its own, and marks say which is which
# and where the round trips begin and end.

set -u
cd "$(dirname "$0")/.." || exit 1

TEST=ten_round_trips_are_ten_sendmsg_and_ten_recvmsg
ROUND_TRIPS=10

if ! command -v strace >/dev/null; then
    echo 'SKIPPED: strace is not installed'
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi
binary=$(${CARGO:-cargo} test --locked --no-run --test counts 2>&1 |
    sed -n 's/^ *Executable tests\/counts\.rs (\(.*\))$/\1/p')
if [ ! -x "$binary" ]; then
    echo 'building tests/counts.rs failed'
    exit 1
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-strace.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

if ! strace -ff -qq -o "$dir/trace" true 2>/dev/null; then
    echo 'SKIPPED: strace may not trace here'
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi
rm -f "$dir"/trace.*
strace -ff -qq -o "$dir/trace" "$binary" --exact "$TEST" >"$dir/output" 2>&1 || {
    cat "$dir/output"
    exit 1
}
client=$(grep -l '"/round-trips-begin"' "$dir"/trace.*)
sed -n '/"\/round-trips-begin"/,/"\/round-trips-end"/p' "$client" | sed '1d;$d' >"$dir/between"

# To look whether anything lies unread costs an ioctl; nothing else is allowed.
awk -F'(' -v n=$ROUND_TRIPS '
    { calls[$1]++ }
    /^ioctl\(.*(FIONREAD|TIOCINQ)/ { looks++ }
    END {
        bad = calls["sendmsg"] != n || calls["recvmsg"] != n || calls["ioctl"] != looks + 0 ||
              looks > n || NR != 2 * n + looks
        for (name in calls)
            printf "%s%s: %d\n", bad ? "" : "  ", name, calls[name]
        print bad ? "0 passed, 1 failed" : "1 passed, 0 failed"
        exit bad
    }' "$dir/between"
