# shellcheck shell=sh disable=SC2034
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# Read with `.` by the scripts that start back-ends of disks, end them, and start them
# again while a program runs. They name a back-end
#
#   embedded  the back-end in examples/embedded_backend.rs: the guest is reset
#   inflight  tests/peers/inflight_backend.rs: each request completes once
#   qemu      qemu-storage-daemon

name=${0##*/}
dir=
back_ends=
program=

fail() {
    echo "${name%.sh}: $1" >&2
    exit 1
}

# Ends the processes that were started here, by their numbers.
clean_up() {
    code=$?
    trap - EXIT INT TERM
    for one in $back_ends $program; do
        kill "$one" 2>/dev/null
        wait "$one" 2>/dev/null
    done
    [ -z "$dir" ] || rm -rf "$dir"
    exit "$code"
}

# prepare KIND FILE...: the back-end is there, the files that make builds are, and so is
# $dir, for as long as the script runs.
prepare() {
    case $1 in
    qemu)
        command -v qemu-storage-daemon >/dev/null || fail 'there is no qemu-storage-daemon'
        ;;
    *)
        # Not quoted: it may hold arguments, as make's own commands allow.
        # shellcheck disable=SC2086
        ${CARGO:-cargo} build --quiet --locked --example "$1_backend" || fail 'building failed'
        ;;
    esac
    shift
    for file in "$@"; do
        [ -x "$file" ] || fail "there is no $file; run: make"
    done
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # Short, because the path of a socket holds 107 bytes at most.
    dir=$(mktemp -d "/tmp/vuf-${name%.sh}.XXXXXX") || fail 'making a directory failed'
}

# size_disk N MIB: sparse; POSIX has no truncate.
size_disk() {
    dd if=/dev/null of="$dir/disk$1" bs=1048576 seek="$2" 2>/dev/null ||
        fail 'making a disk image failed'
}

# start KIND N: the back-end of a disk, whose number is then $started. The further kind
# mute takes the connection and never answers.
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
    back_ends="$back_ends $started"
}

# finish PID: without letting it tidy up.
finish() {
    kill -KILL "$1"
    wait "$1" 2>/dev/null
    # Its number may be another's from now on.
    others=
    for one in $back_ends; do
        [ "$one" = "$1" ] || others="$others $one"
    done
    back_ends=$others
}

# until_said TEXT TIMES: waits until so many lines of the program begin with it, for two
# minutes at most. Whether they did.
until_said() {
    tries=0
    until [ "$(grep -c "^$1" "$dir/out")" -ge "$2" ]; do
        kill -0 "$program" 2>/dev/null || break
        tries=$((tries + 1))
        [ "$tries" -le 2400 ] || break
        sleep 0.05
    done
    [ "$(grep -c "^$1" "$dir/out")" -ge "$2" ]
}
