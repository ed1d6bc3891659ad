#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# check_probe.sh: what vhost-user-probe prints and how it exits: 0 the back-end
# answered, 1 it failed, 2 usage. On all back-ends that are there.
set -u
cd "$(dirname "$0")/.." || exit 1

PROBE=build/vhost-user-probe
BACK_ENDS=${CARGO_TARGET_DIR:-target}/debug/examples
passed=0
failed=0
skipped=0
pid=
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-probe.XXXXXX") || exit 1

end_back_end() {
    if [ -n "$pid" ]; then
        kill -CONT "$pid" 2>/dev/null
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
        pid=
    fi
}
trap 'end_back_end; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# start COMMAND...: a back-end that says "ready".
start() {
    end_back_end
    : >"$dir/ready"
    "$@" >"$dir/ready" 2>"$dir/log" &
    pid=$!
    tries=0
    until grep -q '^ready$' "$dir/ready"; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ]; then
            echo "$1 does not listen:"
            cat "$dir/log"
            exit 1
        fi
        sleep 0.1
    done
}

# probe STATUS [TEXT]... -- ARGUMENT...: the exit status, and what is printed.
probe() {
    wanted=$1
    shift
    : >"$dir/texts"
    while [ "$1" != -- ]; do
        echo "$1" >>"$dir/texts"
        shift
    done
    shift
    timeout 20 "$PROBE" "$@" >"$dir/out" 2>&1
    status=$?
    good=1
    [ $status = "$wanted" ] || good=0
    while read -r text; do
        grep -qF -- "$text" "$dir/out" || {
            echo "'$text' is not printed"
            good=0
        }
    done <"$dir/texts"
    if [ $good = 1 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "vhost-user-probe $*: exit status $status, not $wanted:"
        sed 's/^/    /' "$dir/out"
    fi
}

socket=$dir/socket
truncate -s 8M "$dir/disk"

probe 2 --help --
probe 2 --help -- --no-such-option "$socket"
probe 2 milliseconds -- --timeout soon "$socket"
probe 2 --help -- "$socket" "$socket"
probe 0 'usage' -- --help
probe 1 "$dir/nothing" -- "$dir/nothing"

start "$BACK_ENDS/embedded_backend" --socket "$socket" --file "$dir/disk" --queues 3
probe 0 VERSION_1 REPLY_ACK CONFIGURE_MEM_SLOTS 'queues' 'memory slots' '16384' -- "$socket"

start "$BACK_ENDS/foreign_backend" --socket "$socket" --log "$dir/requests"
probe 0 RING_PACKED SHMEM 'shared memory' -- "$socket"
grep -qE '^(SET_OWNER|SET_FEATURES|SET_VRING|SET_MEM)' "$dir/requests" && {
    echo 'the probe has changed the device'
    failed=$((failed + 1))
}

# Alive, but it does not answer: the kernel accepts for it.
kill -STOP "$pid"
probe 1 GET_FEATURES deadline -- --timeout 300 "$socket"

start "$BACK_ENDS/foreign_backend" --socket "$socket" --log "$dir/requests" --refuse GET_FEATURES
probe 1 GET_FEATURES -- "$socket"
end_back_end

if command -v qemu-storage-daemon >/dev/null; then
    rm -f "$socket"
    qemu-storage-daemon --pidfile "$dir/pid" \
        --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
        --export "type=vhost-user-blk,id=export,node-name=disk,num-queues=4,addr.type=unix,addr.path=$socket" &
    pid=$!
    tries=0
    until [ -s "$dir/pid" ] || [ $tries -gt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    probe 0 VERSION_1 LOG_SHMFD 'memory slots' 509 16384 -- "$socket"
else
    echo 'SKIPPED: the probe on qemu-storage-daemon, which is not installed'
    skipped=1
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
