#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# event_loop.sh embedded|inflight|qemu: runs build/event-loop on three disks, and ends
# with its status. The back-end of the first one is killed; in its place comes one that
# takes the connection and never answers; then the right one again, with a larger disk.
# Each step is taken when the other two disks have done their share without the first.

set -u
cd "$(dirname "$0")/.." || exit 1
. examples/back_ends.sh

# It has to be said, or nothing else means anything.
must_say() { # TEXT TIMES
    until_said "$1" "$2" || {
        cat "$dir/out" "$dir/log" >&2
        fail "the program does not say \"$1\" ($2)"
    }
}

case "${1-}" in
embedded | inflight | qemu) ;;
*)
    echo 'usage: event_loop.sh embedded|inflight|qemu' >&2
    exit 2
    ;;
esac
prepare "$1" build/event-loop build/vuf-mock-backend
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
    must_say "disk $n works" 1
done
finish "$first"
must_say 'without disk 0:' 1
start mute 0
must_say 'without disk 0:' 2
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
must_say 'disk 0: STALLED' 1
# The one of the tests' peers knows no configuration space.
[ "$1" = inflight ] || must_say 'disk 0 has 65536 sectors' 1
