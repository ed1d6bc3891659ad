#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# event_loop.sh embedded|inflight|qemu: runs build/event-loop on three disks, and ends
# with its status. The back-end of the first one is killed; in its place comes one that
# takes the connection and never answers; then the right one again, with a larger disk.
# Each step is taken when the other two disks have done their share without the first.
#
#   embedded  the back-end in examples/embedded_backend.rs: the guest is reset
#   inflight  tests/peers/inflight_backend.rs: each request completes once
#   qemu      qemu-storage-daemon

set -u
cd "$(dirname "$0")/.." || exit 1

dir=
pids=
program=

fail() {
    echo "event_loop: $1" >&2
    exit 1
}

# Ends the processes that were started here, by their numbers.
clean_up() {
    code=$?
    trap - EXIT INT TERM
    for one in $pids $program; do
        kill "$one" 2>/dev/null
        wait "$one" 2>/dev/null
    done
    [ -z "$dir" ] || rm -rf "$dir"
    exit "$code"
}

# size_disk N MIB: sparse; POSIX has no truncate.
size_disk() {
    dd if=/dev/null of="$dir/disk$1" bs=1048576 seek="$2" 2>/dev/null ||
        fail 'making a disk image failed'
}

# start KIND N: the back-end of a disk.
start() {
    case $1 in
    qemu)
        qemu-storage-daemon \
            --blockdev "driver=file,node-name=disk,filename=$dir/disk$2" \
            --export "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=$dir/socket$2" \
            >>"$dir/log" 2>&1 &
        ;;
    mute)
        build/vuf-mock-backend --socket "$dir/socket$2" -e 'on GET_FEATURES: never' \
            >>"$dir/log" 2>&1 &
        ;;
    *)
        "${CARGO_TARGET_DIR:-target}/debug/examples/$1_backend" \
            --socket "$dir/socket$2" --file "$dir/disk$2" >>"$dir/log" 2>&1 &
        ;;
    esac
    started=$!
    pids="$pids $started"
}

# finish PID: without letting it tidy up.
finish() {
    kill -KILL "$1"
    wait "$1" 2>/dev/null
}

# until_said TEXT TIMES: a line of the program begins with it, so often.
until_said() {
    tries=0
    until [ "$(grep -c "^$1" "$dir/out")" -ge "$2" ]; do
        kill -0 "$program" 2>/dev/null || break
        tries=$((tries + 1))
        [ "$tries" -le 2400 ] || break
        sleep 0.05
    done
    [ "$(grep -c "^$1" "$dir/out")" -ge "$2" ] || {
        cat "$dir/out" "$dir/log" >&2
        fail "the program does not say \"$1\" ($2)"
    }
}

case "${1-}" in
qemu)
    command -v qemu-storage-daemon >/dev/null || fail 'there is no qemu-storage-daemon'
    ;;
embedded | inflight)
    # Not quoted: it may hold arguments, as make's own commands allow.
    # shellcheck disable=SC2086
    ${CARGO:-cargo} build --quiet --locked --example "$1_backend" || fail 'building failed'
    ;;
*)
    echo 'usage: event_loop.sh embedded|inflight|qemu' >&2
    exit 2
    ;;
esac
for file in build/event-loop build/vuf-mock-backend; do
    [ -x $file ] || fail "there is no $file; run: make"
done

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Short, because the path of a socket holds 107 bytes at most.
dir=$(mktemp -d /tmp/vuf-loop.XXXXXX) || fail 'making a directory failed'
for n in 0 1 2; do
    size_disk $n 16
    start "$1" $n
    [ $n != 0 ] || first=$started
done

# WRAPPER, as valgrind, is for whoever looks closer.
# shellcheck disable=SC2086
${WRAPPER-} build/event-loop 1 "$dir/socket0" "$dir/socket1" "$dir/socket2" >"$dir/out" &
program=$!
for n in 0 1 2; do
    until_said "disk $n works" 1
done
finish "$first"
until_said 'without disk 0:' 1
start mute 0
until_said 'without disk 0:' 2
finish "$started"
size_disk 0 32
start "$1" 0
wait "$program"
status=$?
program=
cat "$dir/out"
[ "$status" = 0 ] || {
    cat "$dir/log" >&2
    exit "$status"
}
until_said 'disk 0: STALLED' 1
# The one of the tests' peers knows no configuration space.
[ "$1" = inflight ] || until_said 'disk 0 has 65536 sectors' 1
