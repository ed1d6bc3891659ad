#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# net_loop.sh [TESTPMD [FRAMES]]: sends frames with build/net-loop through DPDK's
# testpmd, which sends each of them back. It keeps a processor busy while it runs.

set -u
cd "$(dirname "$0")/.." || exit 1

TESTPMD=${1:-dpdk-testpmd}
FRAMES=${2:-10000}
dir=
pid=

fail() {
    echo "net_loop: $1" >&2
    [ -z "$dir" ] || cat "$dir/log" >&2
    exit 1
}

# Ends the one process that was started here, by its number; left to itself it takes
# a second.
clean_up() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$pid" ]; then
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    fi
    [ -z "$dir" ] || rm -rf "$dir"
    exit "$code"
}

[ -x build/net-loop ] || fail 'there is no build/net-loop; run: make'
command -v "$TESTPMD" >/dev/null || fail "there is no $TESTPMD"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Short, because the path of a socket holds 107 bytes at most.
dir=$(mktemp -d /tmp/vuf-net.XXXXXX) || fail 'making a directory failed'

# Both threads on the first processor that we may use; one of them sleeps. What it
# leaves behind goes away with the directory.
cpu=$(sed -n 's/^Cpus_allowed_list:[^0-9]*\([0-9]*\).*/\1/p' /proc/self/status)
RUNTIME_DIRECTORY=$dir
export RUNTIME_DIRECTORY
"$TESTPMD" --lcores "0@$cpu,1@$cpu" --no-huge -m 128 --no-pci --no-telemetry --no-shconf \
    --vdev "net_vhost0,iface=$dir/socket,queues=1" -- --auto-start --forward-mode=io \
    --total-num-mbufs=2048 --no-flush-rx --no-lsc-interrupt --disable-link-check \
    --stats-period=30 >"$dir/log" 2>&1 &
pid=$!

# WRAPPER, as valgrind, is for whoever looks closer.
# shellcheck disable=SC2086
${WRAPPER-} build/net-loop "$dir/socket" "$FRAMES" >"$dir/out"
status=$?
cat "$dir/out"
[ $status = 0 ] || fail "it ends with $status"
grep -q "^$FRAMES frames sent, $FRAMES came back, " "$dir/out" || fail 'not all frames came back'
kill -0 "$pid" 2>/dev/null || fail 'the back-end has ended'
