#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The program in docs/guide.md, compiled as C11 and as C++17 on an installed tree, and
# run on a disk whose back-end is killed and started again.
# Usage: check_guide.sh [WRAPPER...]
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${CXX:=c++}" "${MAKE:=make}"
TARGET=${CARGO_TARGET_DIR:-target}

. c-tests/checks.sh
begin guide

fail() {
    echo "guide: $1"
    cat "$dir/log"
    exit 1
}

# start KIND
start() {
    case $1 in
    qemu)
        qemu-storage-daemon \
            --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
            --export "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=$dir/socket" \
            >>"$dir/log" 2>&1 &
        ;;
    *)
        "$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" \
            >>"$dir/log" 2>&1 &
        ;;
    esac
    back_end=$!
}

# until_said TEXT TIMES: a line of the program begins with it, so often.
until_said() {
    tries=0
    until [ "$(grep -c "^$1" "$dir/out")" -ge "$2" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ] || ! kill -0 "$front_end" 2>/dev/null; then
            fail "the program does not say \"$1\" ($2)"
        fi
        sleep 0.05
    done
}

# run KIND PROGRAM [WRAPPER...]
run() {
    kind=$1
    built=$2
    shift 2
    echo "== $built, $kind"
    : >"$dir/out"
    start "$kind"
    LD_LIBRARY_PATH=$root/usr/lib/test timeout 300 "$@" "$built" "$dir/socket" >"$dir/out" \
        2>>"$dir/log" &
    front_end=$!
    until_said verified 2
    kill -KILL "$back_end"
    wait "$back_end" 2>/dev/null
    until_said lost 1
    start "$kind"
    until_said connected 2
    until_said verified $(($(grep -c '^verified' "$dir/out") + 2))
    kill -TERM "$front_end"
    wait "$front_end"
    status=$?
    front_end=
    cat "$dir/out"
    [ $status = 0 ] && [ "$(tail -n 1 "$dir/out")" = 'good bye' ] || fail "it ends with $status"
    ! grep -q 'stays mapped' "$dir/out" || fail 'the back-end did not stop'
    kill -KILL "$back_end"
    wait "$back_end" 2>/dev/null
    back_end=
}

root=$dir/root
: >"$dir/log"
$MAKE install DESTDIR="$root" PREFIX=/usr LIBDIR=/usr/lib/test >"$dir/log" 2>&1 ||
    fail 'it is not installed'
export PKG_CONFIG_SYSROOT_DIR="$root" PKG_CONFIG_LIBDIR="$root/usr/lib/test/pkgconfig"
sh c-tests/code_of.sh docs/guide.md >"$dir/guide.c" && cp "$dir/guide.c" "$dir/guide.cc" || exit 1
$CC -std=c11 -D_GNU_SOURCE -O2 -g -Iexamples $(pkg-config --cflags vhost_user_frontend) \
    -c -o "$dir/virtio_blk.o" examples/virtio_blk.c || exit 1
# shellcheck disable=SC2046
$CC -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -g -Iexamples -o "$dir/guide-c11" "$dir/guide.c" \
    "$dir/virtio_blk.o" $(pkg-config --cflags --libs vhost_user_frontend) || exit 1
# shellcheck disable=SC2046
$CXX -std=c++17 -Wall -Wextra -Werror -g -Iexamples -o "$dir/guide-c++17" "$dir/guide.cc" \
    "$dir/virtio_blk.o" $(pkg-config --cflags --libs vhost_user_frontend) || exit 1

dd if=/dev/null of="$dir/disk" bs=1048576 seek=16 2>/dev/null || exit 1
run embedded "$dir/guide-c11" "$@"
run embedded "$dir/guide-c++17" "$@"
if command -v qemu-storage-daemon >/dev/null; then
    run qemu "$dir/guide-c11" "$@"
    echo '3 passed, 0 failed'
else
    echo 'SKIPPED: there is no qemu-storage-daemon'
    echo '2 passed, 0 failed, 1 skipped'
fi
