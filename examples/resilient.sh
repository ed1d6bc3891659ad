#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# resilient.sh embedded|inflight|qemu KILLS: runs build/blk-resilient on a fresh disk
# image while its back-end is killed and started again so many times, and ends with
# its status.

set -u
cd "$(dirname "$0")/.." || exit 1
. examples/back_ends.sh

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
prepare "$1" build/blk-resilient
size_disk 0 16

start "$1" 0
build/blk-resilient "$dir/socket0" "$kills" >"$dir/out" &
program=$!
done=0
while [ "$done" -lt "$kills" ] && until_said connected $((done + 1)); do
    sleep 0.1
    finish "$started"
    done=$((done + 1))
    until_said lost "$done" || break
    start "$1" 0
done
wait "$program"
status=$?
program=
cat "$dir/out"
[ "$status" = 0 ] || cat "$dir/log" >&2
exit "$status"
