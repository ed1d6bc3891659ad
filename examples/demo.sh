#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# demo.sh embedded|qemu: starts a vhost-user-blk back-end on a fresh disk image,
# runs build/blk-demo against it, and takes everything away again. Ends with the
# demonstration's status. `make demo` calls it when all is built.
#
#   embedded  the back-end in examples/embedded_backend.rs
#   qemu      qemu-storage-daemon

set -u
cd "$(dirname "$0")/.." || exit 1

dir=
pid=

fail() {
    echo "demo: $1" >&2
    exit 1
}

# Ends the one process that was started here, by its number.
clean_up() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    fi
    if [ -n "$dir" ]; then
        rm -rf "$dir"
    fi
    exit "$code"
}

start_embedded() {
    # Not quoted: it may hold arguments, as make's own commands allow.
    # shellcheck disable=SC2086
    ${CARGO:-cargo} build --quiet --locked --example embedded_backend ||
        fail 'building the embedded back-end failed'
    "${CARGO_TARGET_DIR:-target}/debug/examples/embedded_backend" \
        --socket "$dir/socket" --file "$dir/disk" >"$dir/log" 2>&1 &
    pid=$!
}

start_qemu() {
    command -v qemu-storage-daemon >/dev/null ||
        fail 'starting the back-end failed: there is no qemu-storage-daemon; install the Debian package qemu-utils or qemu-system-common, by release'
    qemu-storage-daemon \
        --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
        --export "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=$dir/socket" \
        --pidfile "$dir/pid" \
        >"$dir/log" 2>&1 &
    pid=$!
}

# A socket that exists is not yet one that is listened on, so each back-end is
# asked for a surer sign.
ready_embedded() {
    grep -q '^ready$' "$dir/log"
}

ready_qemu() {
    [ -s "$dir/pid" ]
}

wait_until_ready() {
    tries=0
    until "ready_$1"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            cat "$dir/log" >&2
            fail 'the back-end ended before it listened'
        fi
        tries=$((tries + 1))
        [ "$tries" -le 100 ] || fail 'the back-end does not listen after ten seconds'
        sleep 0.1
    done
}

case "${1-}" in
embedded | qemu) ;;
*)
    echo 'usage: demo.sh embedded|qemu' >&2
    exit 2
    ;;
esac

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ -x build/blk-demo ] || fail 'there is no build/blk-demo; run: make'
# Short, because the path of a socket holds 107 bytes at most.
dir=$(mktemp -d /tmp/vuf-demo.XXXXXX) || fail 'making a directory failed'
# 16 MiB, sparse: POSIX has no truncate.
dd if=/dev/null of="$dir/disk" bs=1048576 seek=16 2>/dev/null ||
    fail 'making a disk image failed'

"start_$1"
wait_until_ready "$1"
build/blk-demo "$dir/socket" "$dir/disk"
status=$?
if [ "$status" -ne 0 ] && [ -s "$dir/log" ]; then
    echo 'demo: what the back-end said:' >&2
    cat "$dir/log" >&2
fi
exit "$status"
