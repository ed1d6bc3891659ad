#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# examples/read_block.py on an installed tree: what it reads is what the disk holds, its
# structs and numbers are those of the header, and its errors say what is wrong.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${MAKE:=make}"
TARGET=${CARGO_TARGET_DIR:-target}
SCRIPT=examples/read_block.py

if ! python3 -c 'import ctypes, os; os.eventfd' 2>/dev/null; then
    echo 'skipped: there is no Python 3.10 with ctypes'
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi

. c-tests/checks.sh
begin python
stop() {
    end $back_end
    back_end=
}

$MAKE install DESTDIR="$dir/root" PREFIX=/usr LIBDIR=/usr/lib/test >"$dir/said" 2>&1 || {
    cat "$dir/said"
    exit 1
}
read_block() {
    LD_LIBRARY_PATH=$dir/root/usr/lib/test timeout 60 python3 -B $SCRIPT "$@"
}

# The disk holds the numbers of its lines.
seq -w 0 99999999 | head -c 8388608 >"$dir/disk"

start() { # embedded|qemu
    rm -f "$dir/socket"
    if [ "$1" = qemu ]; then
        qemu-storage-daemon \
            --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
            --export "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=$dir/socket" \
            >>"$dir/log" 2>&1 &
    else
        "$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" \
            >>"$dir/log" 2>&1 &
    fi
    back_end=$!
    tries=0
    until listening "$dir/socket" || [ $tries -ge 200 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
}
same() { # SECTOR
    read_block "$dir/socket" "$1" >"$dir/read" &&
        dd if="$dir/disk" bs=512 skip="$1" count=1 of="$dir/wanted" 2>"$dir/words" &&
        [ "$(wc -c <"$dir/read")" = 512 ] && cmp "$dir/read" "$dir/wanted"
}
says() { # WORDS ARGUMENTS...: it fails, and says why in one or two lines
    words=$1
    shift
    ! read_block "$@" >"$dir/read" 2>"$dir/words" && cat "$dir/words" &&
        grep -q "$words" "$dir/words" && [ "$(wc -l <"$dir/words")" -le 2 ] && [ ! -s "$dir/read" ]
}

for kind in embedded qemu; do
    if [ $kind = qemu ] && ! command -v qemu-storage-daemon >/dev/null; then
        echo 'skipped: there is no qemu-storage-daemon'
        skipped=$((skipped + 1))
        continue
    fi
    start $kind
    for sector in 0 7 16383; do
        check "$kind: sector $sector" same $sector
    done
    check "$kind: a sector that there is not" says 'status is 1' "$dir/socket" 16384
    stop
done
check 'no back-end' says 'cannot connect' "$dir/nowhere" 0
check 'a number that is none' says 'numbered from 0' "$dir/nowhere" -- -1
check 'a library that is named and not there' says 'not found.*none.so' \
    --library "$dir/none.so" "$dir/nowhere" 0
check 'another library' says 'another library.*vuf_last_error' --library libc.so.6 "$dir/nowhere" 0
# One that is installed nowhere: of this one the loader may know another place.
sed 's/\(libvhost_user_frontend\.so\.\)0/\19/' $SCRIPT >"$dir/other.py"
SCRIPT=$dir/other.py
check 'no library' says 'not found.*libvhost_user_frontend.so.9' "$dir/nowhere" 0

# Its structs and numbers.
cat >"$dir/facts.c" <<'C'
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <vhost_user_frontend.h>
#define OFFSET(class, type, field) \
    printf("%s.%s.offset == %zu\n", class, #field, offsetof(struct type, field))
int main(void)
{
    puts("SONAME == '" VUF_SONAME "'");
    printf("PROTOCOL_FEATURES == 1 << %d\n", VUF_F_PROTOCOL_FEATURES);
    printf("VERSION_1 == 1 << %d\n", VIRTIO_F_VERSION_1);
    printf("REPLY_ACK == 1 << %d\n", VUF_PROTOCOL_F_REPLY_ACK);
    printf("CONFIG == 1 << %d\n", VUF_PROTOCOL_F_CONFIG);
    printf("BLK_T_IN == %d\n", VIRTIO_BLK_T_IN);
    printf("ctypes.sizeof(MemRegion) == %zu\n", sizeof(struct vuf_mem_region));
    OFFSET("MemRegion", vuf_mem_region, guest_addr);
    OFFSET("MemRegion", vuf_mem_region, size);
    OFFSET("MemRegion", vuf_mem_region, user_addr);
    OFFSET("MemRegion", vuf_mem_region, mmap_offset);
    OFFSET("MemRegion", vuf_mem_region, fd);
    printf("ctypes.sizeof(VringAddr) == %zu\n", sizeof(struct vuf_vring_addr));
    OFFSET("VringAddr", vuf_vring_addr, descriptor);
    OFFSET("VringAddr", vuf_vring_addr, available);
    OFFSET("VringAddr", vuf_vring_addr, used);
    return 0;
}
C
$CC -Iinclude -o "$dir/facts" "$dir/facts.c" && "$dir/facts" >"$dir/facts.txt" || exit 1
while read -r fact; do
    check "$fact" python3 -B -c "
import sys
sys.path.insert(0, 'examples')
from read_block import *
assert $fact"
done <"$dir/facts.txt"

sum_up
