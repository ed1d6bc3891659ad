#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# resilient.sh embedded|inflight|qemu KILLS: runs build/blk-resilient on a fresh disk
# image while its back-end is killed and started again so many times, and ends with
# its status.
#
#   embedded  the back-end in examples/embedded_backend.rs: the guest is reset
#   inflight  tests/peers/inflight_backend.rs: each request completes once
#   qemu      qemu-storage-daemon

set -u
cd "$(dirname "$0")/.." || exit 1

dir=
pid=
program=

fail() {
    echo "resilient: $1" >&2
    exit 1
}

# Ends the processes that were started here, by their numbers.
clean_up() {
    code=$?
    trap - EXIT INT TERM
    for one in $pid $program; do
        kill "$one" 2>/dev/null
        wait "$one" 2>/dev/null
    done
    [ -z "$dir" ] || rm -rf "$dir"
    exit "$code"
}

start() {
    case $1 in
    qemu)
        qemu-storage-daemon \
            --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
            --export "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=$dir/socket" \
            >>"$dir/log" 2>&1 &
        ;;
    *)
        "${CARGO_TARGET_DIR:-target}/debug/examples/$1_backend" \
            --socket "$dir/socket" --file "$dir/disk" >>"$dir/log" 2>&1 &
        ;;
    esac
    pid=$!
}

# So many lines of the program say this.
said() {
    [ "$(grep -c "^$1" "$dir/out")" -ge "$2" ]
}

wait_until() {
    tries=0
    until said "$1" "$2"; do
        kill -0 "$program" 2>/dev/null || return 1
        tries=$((tries + 1))
        [ "$tries" -le 600 ] || return 1
        sleep 0.05
    done
}

kills=${2-}
case "${1-}:$kills" in
*:*[!0-9]* | *:) kills= ;;
embedded:* | inflight:* | qemu:*) ;;
*) kills= ;;
esac
[ -n "$kills" ] || {
    echo 'usage: resilient.sh embedded|inflight|qemu KILLS' >&2
    exit 2
}
if [ "$1" = qemu ]; then
    command -v qemu-storage-daemon >/dev/null || fail 'there is no qemu-storage-daemon'
else
    # Not quoted: it may hold arguments, as make's own commands allow.
    # shellcheck disable=SC2086
    ${CARGO:-cargo} build --quiet --locked --example "$1_backend" || fail 'building failed'
fi
[ -x build/blk-resilient ] || fail 'there is no build/blk-resilient; run: make'

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Short, because the path of a socket holds 107 bytes at most.
dir=$(mktemp -d /tmp/vuf-resilient.XXXXXX) || fail 'making a directory failed'
# 16 MiB, sparse: POSIX has no truncate.
dd if=/dev/null of="$dir/disk" bs=1048576 seek=16 2>/dev/null ||
    fail 'making a disk image failed'

start "$1"
build/blk-resilient "$dir/socket" "$kills" >"$dir/out" &
program=$!
done=0
while [ "$done" -lt "$kills" ] && wait_until connected $((done + 1)); do
    sleep 0.1
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    done=$((done + 1))
    wait_until lost "$done" || break
    start "$1"
done
wait "$program"
status=$?
program=
cat "$dir/out"
[ "$status" = 0 ] || cat "$dir/log" >&2
exit "$status"
