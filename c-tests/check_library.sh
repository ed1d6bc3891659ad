#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# What `make` builds, as a linker sees it: which symbols the shared library and the
# archive show, how they are linked, and that all the places that say so agree.
# Whoever breaks one of these is told what mends it; here it is planted that they do.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${CARGO:=cargo}" "${MAKE:=make}"
TARGET=${CARGO_TARGET_DIR:-target}
NAME=vhost_user_frontend
HEADER=include/$NAME.h
MAP=src/$NAME.map
. c-tests/checks.sh
begin library
# told WORDS COMMAND...: the command must fail and say so.
told() {
    words=$1
    shift
    if "$@" >"$dir/words" 2>&1 || ! grep -qF -- "$words" "$dir/words"; then
        echo "FAILED: not told: $words"
        cat "$dir/words"
        failed=$((failed + 1))
    else
        passed=$((passed + 1))
    fi
}

# ---- symbols ----

of_map() { sed -n 's/^ *\(vuf_[a-z0-9_]*\);.*/\1/p' "$1" | sort; }
of_header() {
    awk '/\/\*/ { c = 1 } !c; /\*\// { c = 0 }' "$1" | sed 's|//.*||' |
        grep -oE '\bvuf_[a-z0-9_]+\(' | tr -d '(' | sort
}
of_library() { nm -D --defined-only "$1" | awk '$2 != "A" { print $3 }' | sed 's/@.*//' | sort; }
# readelf, because nm gives objects with bitcode to a plugin for another LLVM.
of_archive() {
    readelf -sW "$1" | awk '($5 == "GLOBAL" || $5 == "WEAK") && $7 != "UND" { print $8 }' | sort
}

# same_names CURE LIST-NAME COMMAND... : what the map has, and what COMMAND lists.
same_names() {
    cure=$1 map=$2
    shift 2
    of_map "$map" >"$dir/names" && [ -s "$dir/names" ] && "$@" >"$dir/others" || return 1
    diff "$dir/names" "$dir/others" >"$dir/difference" && return
    echo "$map (<) and $* (>) differ:"
    cat "$dir/difference"
    echo "$cure"
    return 1
}
header_is_map() {
    same_names "append what is new to $2, then run: make header" "$2" of_header "$1"
}
library_is_map() {
    same_names "append what is new to $2, then run: make header lib" "$2" of_library "$1"
}
archive_is_map() {
    same_names "run: make lib (or look at its rule for the object)" "$2" of_archive "$1"
}
# Each under the version of its release; a released one keeps its own (check_abi.sh).
every_symbol_has_a_version() {
    nm -D --defined-only --with-symbol-versions "$1" | awk '$2 != "A" { print $3 }' >"$dir/symbols"
    grep -q . "$dir/symbols" || return 1
    ! grep -vE '^vuf_[a-z0-9_]+@@VUF_[0-9]+\.[0-9]+$' "$dir/symbols" ||
        { echo "these have none in $1; run: make lib"; return 1; }
}

# ---- how it is linked ----

soname_of() { readelf -dW "$1" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p'; }
soname_is_that_of_the_header() { # LIBRARY HEADER CURE
    wanted=$(sed -n 's/^#define VUF_SONAME "\(.*\)"/\1/p' "$2")
    [ -n "$wanted" ] && [ "$(soname_of "$1")" = "$wanted" ] || {
        echo "the soname of $1 is '$(soname_of "$1")', and VUF_SONAME is '$wanted'; $3"
        return 1
    }
}
hardened() { # LIBRARY
    readelf -dW "$1" >"$dir/dynamic" && readelf -lW "$1" >"$dir/segments" || return 1
    lacking=
    grep -qE '\(FLAGS\).*BIND_NOW|\(BIND_NOW\)' "$dir/dynamic" || lacking="$lacking -z,now"
    grep -q GNU_RELRO "$dir/segments" || lacking="$lacking -z,relro"
    grep -q 'FLAGS_1.*NODELETE' "$dir/dynamic" || lacking="$lacking -z,nodelete"
    grep -qE 'SYMBOLIC' "$dir/dynamic" || lacking="$lacking -Bsymbolic"
    grep -qE 'GNU_STACK.* RW  ' "$dir/segments" || lacking="$lacking -z,noexecstack"
    ! grep -q TEXTREL "$dir/dynamic" || lacking="$lacking -z,text"
    # A segment that can be written and executed.
    ! grep -qE 'LOAD.* RWE ' "$dir/segments" || lacking="$lacking --no-omagic"
    [ -z "$lacking" ] || {
        echo "$1 is not linked with:$lacking; give these to the linker in the Makefile, then run: make lib"
        return 1
    }
    others=$(sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' "$dir/dynamic" |
        grep -vE '^(libgcc_s\.so\.1|libc\.so\.6|libc\.musl-.*|ld-linux.*|libpthread\.so\.0|libdl\.so\.2|libm\.so\.6)$')
    [ -z "$others" ] || {
        echo "$1 needs what it did not: $others"
        return 1
    }
}
# Without it, every crate is an object of its own, and its functions are seen by the
# others.
made_with_lto() { # ARCHIVE
    seen=$(readelf -sW "$1" |
        awk '$4 == "FUNC" && $5 == "GLOBAL" && $6 == "DEFAULT" && $7 != "UND" &&
             $8 ~ /^(_ZN|_R)/' | wc -l)
    readelf -sW "$1" | grep -q ' vuf_version$' && [ "$seen" = 0 ] || {
        echo "$1 is made without LTO: $seen functions of Rust can be seen in it." \
            'Set lto in [profile.release] of Cargo.toml, then run: make lib'
        return 1
    }
}
natives_are_those_of_rustc() { # MAKEFILE RUSTC'S-LIST
    wanted=$(tr ' ' '\n' <"$2" | grep . | sort -u | tr '\n' ' ')
    have=$(sed -n 's/^NATIVE *:= *//p' "$1" | tr ' ' '\n' | sort -u | tr '\n' ' ')
    [ -n "$wanted" ] && [ "$have" = "$wanted" ] || {
        echo "a static link needs other libraries; run:" \
            "sed -i 's/^NATIVE .*/NATIVE  := $(tr '\n' ' ' <"$2" | sed 's/ *$//')/' Makefile"
        return 1
    }
}

as_it_should_be() { # LIBRARY ARCHIVE
    check "$1: exports = map" library_is_map "$1" $MAP
    check "$1: symbol versions" every_symbol_has_a_version "$1"
    check "$1: soname" soname_is_that_of_the_header "$1" $HEADER 'run: make lib'
    check "$1: RELRO, BIND_NOW, NODELETE and the like" hardened "$1"
    check "$2: global symbols = map" archive_is_map "$2" $MAP
}

check 'header = map' header_is_map $HEADER $MAP
as_it_should_be build/lib$NAME.so build/lib$NAME.a
beside_each_other() {
    [ -L build/lib$NAME.so ] && [ -e "build/$(soname_of build/lib$NAME.so)" ]
}
check 'the links to the shared library' beside_each_other
check 'what cargo links exports the same' library_is_map "$TARGET/debug/lib$NAME.so" $MAP
check 'it has the soname' soname_is_that_of_the_header "$TARGET/debug/lib$NAME.so" $HEADER \
    'write that into build.rs, then run: cargo build'
check 'LTO is on' made_with_lto build/cargo/release/lib$NAME.a
check 'the native libraries are those of rustc' natives_are_those_of_rustc Makefile \
    build/native-static-libs

# ---- linkers and compilers ----

# So that nothing of this is due to the ones that are here by default.
for compiler in gcc clang; do
    for linker in bfd lld; do
        if ! echo 'int main(void) { return 0; }' |
            $compiler -fuse-ld=$linker -o "$dir/tried" -x c - 2>/dev/null; then
            echo "skipped: there is no $compiler with ld.$linker here"
            skipped=$((skipped + 5))
            continue
        fi
        out=$dir/$compiler-$linker
        mkdir "$out"
        $MAKE --no-print-directory lib CC=$compiler LDFLAGS=-fuse-ld=$linker \
            SO="$out/lib$NAME.so" ARCHIVE="$out/lib$NAME.a" >"$dir/make" 2>&1 || cat "$dir/make"
        as_it_should_be "$out/lib$NAME.so" "$out/lib$NAME.a"
    done
done

# ---- two Rust libraries in one program ----

# A panic inside of each ends there. In the library it comes from a clock that
# fails, which it does not expect.
cat >"$dir/other.rs" <<'R'
#[unsafe(no_mangle)]
pub extern "C" fn other(index: usize) -> i32 {
    std::panic::catch_unwind(|| [7, 8][index]).unwrap_or(-1)
}
R
cat >"$dir/both.c" <<'C'
#define _GNU_SOURCE
#include <vhost_user_frontend.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int other(size_t index);
static int clock_is_broken;
int clock_gettime(clockid_t clock, struct timespec *now)
{
    errno = EINVAL;
    return clock_is_broken ? -1 : (int)syscall(SYS_clock_gettime, clock, now);
}
int main(void)
{
    int ends[2];
    uint64_t features;
    struct vuf_client *client;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 ||
        vuf_client_from_fd(ends[0], NULL, &client) != 0 || other(1) != 8) {
        return 1;
    }
    clock_is_broken = 1;
    int rc = vuf_client_get_features(client, &features);
    clock_is_broken = 0;
    fprintf(stderr, "%s\n", vuf_last_error());
    if (rc != VUF_E_PANIC || vuf_client_get_features(client, &features) != VUF_E_POISONED ||
        strstr(vuf_last_error(), "a bug in") == NULL) {
        return 2;
    }
    vuf_client_free(client);
    return other(9) == -1 ? 0 : 3;
}
C
both() { # ARCHIVES...: in this order
    # shellcheck disable=SC2046
    $CC -Iinclude -o "$dir/both" "$dir/both.c" "$@" $(sed -n 's/^NATIVE *:= *//p' Makefile) &&
        "$dir/both" 2>"$dir/said" || return 1
    # The other one says what it wants to; of ours there is only what the program says.
    [ "$(grep -c 'panicked at' "$dir/said")" = 1 ] && grep -q 'panicked at .*other.rs' "$dir/said"
}
if rustc --edition 2024 -O --crate-type staticlib -o "$dir/libother.a" "$dir/other.rs" 2>"$dir/words"; then
    check 'two Rust archives' both build/lib$NAME.a "$dir/libother.a"
    check 'two Rust archives, the other one first' both "$dir/libother.a" build/lib$NAME.a
    check 'the shared library and a Rust archive' both "$dir/libother.a" \
        -Lbuild -l$NAME -Wl,-rpath,"$PWD/build"
    # As rustc makes them, they would not go together.
    told 'multiple definition' both build/cargo/release/lib$NAME.a "$dir/libother.a"
else
    echo "skipped: no second Rust archive: $(head -n 1 "$dir/words")"
    skipped=$((skipped + 4))
fi

# ---- what must be told ----

sed 's/^\( *\)vuf_version;/&\n\1vuf_ghost;/' $MAP >"$dir/more.map"
sed '/vuf_strerror;/d' $MAP >"$dir/less.map"
sed 's/^uint32_t vuf_version(void);/uint32_t vuf_versions(void);/' $HEADER >"$dir/other.h"
sed 's/^#define VUF_SONAME .*/#define VUF_SONAME "libvhost_user_frontend.so.9"/' $HEADER >"$dir/soname.h"
told 'then run: make header' header_is_map $HEADER "$dir/less.map"
told 'then run: make header' header_is_map "$dir/other.h" $MAP
told 'then run: make header lib' library_is_map build/lib$NAME.so "$dir/less.map"
told 'run: make lib' archive_is_map build/cargo/release/lib$NAME.a $MAP
told 'run: make lib' every_symbol_has_a_version "$TARGET/debug/lib$NAME.so"
told 'run: make lib' soname_is_that_of_the_header build/lib$NAME.so "$dir/soname.h" 'run: make lib'
told 'Set lto in' made_with_lto "$TARGET/debug/lib$NAME.a"
told "sed -i 's/^NATIVE " natives_are_those_of_rustc "$dir/less.map" build/native-static-libs
for library in -lm -lc -lgcc_s; do
    sed "/^NATIVE/s/ $library\b//" Makefile >"$dir/Makefile"
    sed "/^NATIVE/!d" "$dir/Makefile" | grep -q -- " $library" || told "run: sed -i 's/^NATIVE " \
        natives_are_those_of_rustc "$dir/Makefile" build/native-static-libs
done
told 'vuf_ghost' $MAKE --no-print-directory lib MAP="$dir/more.map" \
    SO="$dir/ghost.so" ARCHIVE="$dir/ghost.a"
told 'is stale; run: make header' $MAKE --no-print-directory header-check HEADER="$dir/other.h"
told "append \"vuf_strerror;\" to $dir/less.map, then run: make header" \
    $MAKE --no-print-directory header-check MAP="$dir/less.map"

# linked FLAGS...: a library that is linked otherwise.
echo 'int vuf_nothing(void); int vuf_nothing(void) { return 0; }' >"$dir/nothing.c"
linked() {
    $CC -shared -fPIC -o "$dir/nothing.so" "$dir/nothing.c" "$@" && hardened "$dir/nothing.so"
}
all=-Wl,-Bsymbolic,-z,relro,-z,now,-z,noexecstack,-z,nodelete
check 'a library that is linked as it should be' linked $all
told 'not linked with: -z,now' linked $all -Wl,-z,lazy
told 'not linked with: -z,relro' linked $all -Wl,-z,norelro
told 'not linked with: -z,noexecstack' linked $all -Wl,-z,execstack
told 'not linked with: -z,nodelete' linked ${all%,-z,nodelete}
told 'not linked with: -Bsymbolic' linked -Wl,"${all#-Wl,-Bsymbolic,}"
told 'needs what it did not' linked $all -Wl,--no-as-needed -lcmocka

sum_up
