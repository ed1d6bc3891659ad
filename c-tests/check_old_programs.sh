#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Programs that were compiled for older versions run with this library. Of each
# version abi/ has the header, the map and a program (`make abi-baseline`). The
# program is compiled with that header and linked with a library that has nothing
# but the symbols of that map: what it takes along is what it would have then, and
# nobody has to trust a binary. Then it runs with the library that was just built.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}"
TARGET=${CARGO_TARGET_DIR:-target}
NAME=vhost_user_frontend

. c-tests/checks.sh
begin old

truncate -s 8M "$dir/disk"
"$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" >"$dir/ready" &
back_end=$!

# compiled FOLDER: "$dir/linked", and "$dir/loading", which uses dlopen.
compiled() {
    soname=$(sed -n 's/^#define VUF_SONAME "\(.*\)"/\1/p' "$1/$NAME.h")
    sed -n 's/^ *\(vuf_[a-z0-9_]*\);.*/void \1(void); void \1(void) { }/p' "$1/$NAME.map" >"$dir/symbols.c"
    $CC -shared -fPIC -o "$dir/lib$NAME.so" "$dir/symbols.c" -Wl,-soname,"$soname" \
        -Wl,--version-script="$1/$NAME.map" &&
        $CC -I"$1" -o "$dir/linked" "$1/program.c" -L"$dir" -l$NAME &&
        $CC -I"$1" -DBY_DLOPEN -o "$dir/loading" "$1/program.c" -ldl
}
runs() { # PROGRAM
    LD_LIBRARY_PATH=$PWD/build timeout 60 "$1" "$dir/socket"
}

versions=0
for folder in abi/*/; do
    folder=${folder%/}
    check "a program of ${folder#abi/} is compiled" compiled "$folder"
    check "a program of ${folder#abi/}" runs "$dir/linked"
    check "a program of ${folder#abi/} that uses dlopen" runs "$dir/loading"
    versions=$((versions + 1))
done
check 'there is one' [ $versions != 0 ]

# ---- what such a program would notice ----

# planted HEADER-EDIT MAP-EDIT: the newest one, as if it had been otherwise.
planted() {
    rm -rf "$dir/planted"
    cp -r "$folder" "$dir/planted"
    sed "$1" "$folder/$NAME.h" >"$dir/planted/$NAME.h"
    sed "$2" "$folder/$NAME.map" >"$dir/planted/$NAME.map"
    if cmp -s "$folder/$NAME.h" "$dir/planted/$NAME.h" && cmp -s "$folder/$NAME.map" "$dir/planted/$NAME.map"; then
        echo "nothing was changed by: $1"
        return 1
    fi
    compiled "$dir/planted"
}
# good WHAT HEADER-EDIT [MAP-EDIT]
good() {
    check "compiled: $1" planted "$2" "${3-}"
    check "runs: $1" runs "$dir/linked"
    check "runs, with dlopen: $1" runs "$dir/loading"
}
fails() { # PROGRAM WORDS
    ! runs "$1" >"$dir/said" 2>&1 && grep -q "$2" "$dir/said"
}
# bad PROGRAM WORDS WHAT HEADER-EDIT [MAP-EDIT]
bad() {
    check "compiled: $3" planted "$4" "${5-}"
    check "told: $3" fails "$dir/$1" "$2"
}

in_options='/^struct vuf_device_options {/,/^};/'
in_table='/^struct vuf_api {/,/^};/'
good 'before the last functions came' \
    "$in_table { /vuf_client_submit/,/^};/ { /^};/!d } }; /^int vuf_client_submit/,/;\$/d" '/vuf_client_submit;/d'

# No version has had shorter ones.
bad linked 'struct vuf_device_options has' 'options that are too short' \
    "$in_options { /uint32_t drain_timeout_ms;/d; /uint32_t reserved;/d }"
bad linked 'struct vuf_counters has' 'results that are too short' \
    '/^struct vuf_counters {/,/^};/ { /longest_wait_/d; /uint32_t reserved/d }'
bad linked 'not so' 'an option at another place' \
    "$in_options { s/config_size;/x;/; s/num_rings;/config_size;/; s/x;/num_rings;/ }"
bad linked 'not so' 'a result at another place' \
    '/^struct vuf_quiet {/,/^};/ s/uint32_t quiesced;/uint64_t quiesced;/'
bad linked 'not so' 'a code of another value' 's/^#define VUF_E_NOT_NEGOTIATED .*/#define VUF_E_NOT_NEGOTIATED -4110/'
bad linked "VUF_0.0' not found" 'functions of another version' '' 's/VUF_0\.1/VUF_0.0/'
bad linked 'vuf_gone' 'a function that is gone' \
    's/^uint32_t vuf_version(void);/&\nuint32_t vuf_gone(void);\n#ifndef BY_DLOPEN\n#define vuf_version vuf_gone\n#endif/' \
    's/^\( *\)vuf_version;/&\n\1vuf_gone;/'
bad loading 'not so' 'functions at another place in the table' \
    "$in_table { s/vuf_version)/x)/; s/vuf_error_class)(int rc)/vuf_version)(void)/; s/x)(void)/vuf_error_class)(int rc)/ }"
bad loading 'no library' 'another soname' 's/^#define VUF_SONAME .*/#define VUF_SONAME "libvhost_user_frontend.so.9"/'

sum_up
