#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Every way to link the library, from a tree that was installed and then moved:
# pkg-config, CMake, Meson, dlopen. One program, linking/consumer.c, drives a
# back-end with each. At the end nothing is left of what was installed.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${MAKE:=make}"
unset PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_LIBDIR PKG_CONFIG_PATH
TARGET=${CARGO_TARGET_DIR:-target}
NAME=vhost_user_frontend
SONAME=$(sed -n 's/^#define VUF_SONAME "\(.*\)"/\1/p' include/$NAME.h)
SOURCES=$PWD/c-tests/linking
# As distributions have it; where there is no such name, plain.
ARCH=$($CC -print-multiarch 2>/dev/null || :)
LIB=lib${ARCH:+/$ARCH}

. c-tests/checks.sh
begin linking
skip() { # HOW-MANY WHY
    echo "skipped: $2"
    skipped=$((skipped + $1))
}

# A block back-end that serves one program after the other.
truncate -s 8M "$dir/disk"
"$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" >"$dir/ready" &
back_end=$!

# ---- the tree ----

install_into() { # DESTDIR COMMAND
    $MAKE --no-print-directory "$2" DESTDIR="$1" PREFIX=/usr LIBDIR="/usr/$LIB" CARGO=false
}
check 'make' $MAKE --no-print-directory
check 'make install, without cargo' install_into "$dir/root" install
# would_build: and would, if a source changed.
would_build() {
    mv build/built "$dir/built" &&
        $MAKE --no-print-directory -n install | grep -q 'rustc --release' &&
        mv "$dir/built" build/built &&
        ! $MAKE --no-print-directory -n install | grep 'rustc --release'
}
check 'make install builds what is not built' would_build
mkdir "$dir/elsewhere"
cp -a "$dir/root/usr" "$dir/elsewhere/moved"
tree=$dir/elsewhere/moved
# One without the shared library, where -l means the archive.
cp -a "$tree" "$dir/archive-only"
rm "$dir/archive-only/$LIB/"*.so*

# It looks for the library there, and nowhere else.
probe_finds_it() {
    env -u LD_LIBRARY_PATH "$tree/bin/vhost-user-probe" "$dir/socket" &&
        [ "$(readelf -dW "$tree/bin/vhost-user-probe" |
            sed -n 's/.*(RUNPATH).*\[\(.*\)\]/\1/p')" = "\$ORIGIN/../$LIB" ]
}
check 'the installed probe finds the library, moved' probe_finds_it
packaged() {
    $MAKE --no-print-directory install DESTDIR="$dir/packaged" PREFIX=/usr LIBDIR="/usr/$LIB" RPATH= &&
        ! readelf -dW "$dir/packaged/usr/bin/vhost-user-probe" | grep -E 'R(UN)?PATH'
}
check 'with an empty RPATH it is told no place' packaged

# runs PROGRAM [shared|static]: it is linked so, and drives the back-end.
runs() {
    needed=$(readelf -dW "$1" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p')
    case $2 in
    shared) echo "$needed" | grep -qxF "$SONAME" || { echo "needs no $SONAME"; return 1; } ;;
    *) ! echo "$needed" | grep $NAME || return 1 ;;
    esac
    LD_LIBRARY_PATH=$tree/$LIB "$1" "$dir/socket"
}

# ---- pkg-config ----

pc() { # TREE OPTIONS...
    where=$1
    shift
    PKG_CONFIG_LIBDIR="$where/$LIB/pkgconfig" pkg-config "$@" $NAME
}
# with_pc TREE PROGRAM OPTIONS...
with_pc() {
    where=$1 program=$2
    shift 2
    # shellcheck disable=SC2046
    $CC -Wall -Wextra -Werror -o "$program" "$SOURCES/consumer.c" $(pc "$where" --cflags --libs "$@")
}
by_pc() { # TREE PROGRAM shared|static OPTIONS...
    kind=$3
    where=$1 program=$2
    shift 3
    with_pc "$where" "$program" "$@" && runs "$program" "$kind"
}
check 'pkg-config --libs' by_pc "$tree" "$dir/pc-shared" shared
check 'pkg-config --static --libs' by_pc "$dir/archive-only" "$dir/pc-static" static --static
check 'pkg-config --static, where there is a shared library' \
    by_pc "$tree" "$dir/pc-both" shared --static
fully_static() {
    # shellcheck disable=SC2046
    $CC -static -o "$dir/fully-static" "$SOURCES/consumer.c" $(pc "$tree" --cflags) \
        "$tree/$LIB/lib$NAME.a" && runs "$dir/fully-static" static &&
        ! readelf -lW "$dir/fully-static" | grep INTERP
}
if echo 'int main(void) { return 0; }' | $CC -static -o "$dir/tried" -x c - 2>/dev/null; then
    check 'a program without any shared library' fully_static
else
    skip 1 'there is no static C library here'
fi
# The one thing that --static is for.
private() {
    wanted=$(sed -n 's/^NATIVE *:= *//p' Makefile)
    case "$(pc "$tree" --static --libs) " in *"$wanted "*) ;; *) pc "$tree" --static --libs; return 1 ;; esac
    # shellcheck disable=SC2046
    ! $CC -nodefaultlibs -o "$dir/lacks" "$SOURCES/consumer.c" \
        $(pc "$dir/archive-only" --cflags --libs) -lc
}
check 'Libs.private has what a static link needs' private
names_its_soname() { [ "$(pc "$tree" --variable=soname)" = "$SONAME" ]; }
check 'the soname in the .pc is VUF_SONAME' names_its_soname
version_is_that_of_the_crate() {
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    [ "$(pc "$tree" --modversion)" = "$version" ]
}
check 'the version in the .pc' version_is_that_of_the_crate
in_a_sysroot() {
    export PKG_CONFIG_SYSROOT_DIR="$dir/root"
    where=$dir/root/usr
    options=$(pc "$where" --cflags --libs)
    unset PKG_CONFIG_SYSROOT_DIR
    # shellcheck disable=SC2086
    $CC -o "$dir/pc-sysroot" "$SOURCES/consumer.c" $options && runs "$dir/pc-sysroot" shared
}
check 'pkg-config with a system root' in_a_sysroot
# Where LIBDIR is not below PREFIX, the tree stays where it is.
apart() {
    $MAKE --no-print-directory install DESTDIR="$dir/apart" PREFIX=/opt/vuf LIBDIR=/somewhere/lib &&
        [ "$(PKG_CONFIG_LIBDIR=$dir/apart/somewhere/lib/pkgconfig pkg-config --cflags --libs $NAME |
            sed 's/ *$//')" = "-I/opt/vuf/include -L/somewhere/lib -l$NAME" ] &&
        grep -q '"/opt/vuf/include"' "$dir/apart/somewhere/lib/cmake/$NAME/$NAME-config.cmake"
}
check 'LIBDIR that is not below PREFIX' apart

# ---- CMake ----

if command -v cmake >/dev/null; then
    cmake_builds() {
        cmake -S "$SOURCES" -B "$dir/cmake" -DCMAKE_PREFIX_PATH="$tree" -DCMAKE_C_COMPILER="$CC" \
            -DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF && cmake --build "$dir/cmake"
    }
    check 'find_package' cmake_builds
    check 'CMake: the shared library' runs "$dir/cmake/by-shared" shared
    check 'CMake: the static library' runs "$dir/cmake/by-static" static
    check 'CMake: the library' runs "$dir/cmake/by-$NAME" shared
else
    skip 4 'there is no cmake here'
fi

# ---- Meson ----

if command -v meson >/dev/null && command -v ninja >/dev/null && command -v cmake >/dev/null; then
    meson_builds() {
        PKG_CONFIG_LIBDIR="$tree/$LIB/pkgconfig" CC=$CC \
            meson setup --cmake-prefix-path="$tree" "$dir/meson" "$SOURCES" &&
            ninja -C "$dir/meson"
    }
    check 'dependency()' meson_builds
    check 'Meson with pkg-config' runs "$dir/meson/by-pkg-config" shared
    check 'Meson with pkg-config, static' runs "$dir/meson/by-static" static
    check 'Meson with CMake' runs "$dir/meson/by-cmake" shared
else
    skip 4 'there is no meson, ninja or cmake here'
fi

# ---- dlopen ----

# The header of another version, which is installed nowhere: of this one the loader may
# know a place without being told.
OTHER=lib$NAME.so.9
mkdir "$dir/other"
sed "s/$SONAME/$OTHER/" "$tree/include/$NAME.h" >"$dir/other/$NAME.h"
by_dlopen() {
    # shellcheck disable=SC2046
    $CC -Wall -Wextra -Werror -DBY_DLOPEN -o "$dir/by-dlopen" "$SOURCES/consumer.c" \
        $(pc "$tree" --cflags) -ldl && runs "$dir/by-dlopen" none
}
check 'dlopen, and one dlsym' by_dlopen
one_symbol() {
    ! nm -D --undefined-only "$dir/by-dlopen" | grep vuf_ &&
        [ "$(strings -n 4 "$dir/by-dlopen" | grep -cx 'vuf_[a-z_]*')" = 1 ]
}
check 'that program names no other function' one_symbol
documented() {
    sh c-tests/code_of.sh docs/linking.md >"$dir/documented.c" || return 1
    # shellcheck disable=SC2046
    $CC -Wall -Wextra -Werror -o "$dir/documented" "$dir/documented.c" $(pc "$tree" --cflags) -ldl &&
        LD_LIBRARY_PATH=$tree/$LIB "$dir/documented" | grep -x 'version [0-9]*' &&
        $CC -o "$dir/lacking" "$dir/documented.c" -I"$dir/other" -ldl &&
        ! "$dir/lacking" 2>"$dir/words" && grep "without vhost-user: $OTHER" "$dir/words"
}
check 'the program in docs/linking.md' documented
# Without the links that only the package for developers has.
only_the_soname() {
    rm "$tree/$LIB/lib$NAME.so" && runs "$dir/by-dlopen" none && runs "$dir/pc-shared" shared
}
check 'programs run with the soname alone' only_the_soname
no_library() {
    $CC -DBY_DLOPEN -o "$dir/lacking" "$SOURCES/consumer.c" -I"$dir/other" -ldl &&
        ! "$dir/lacking" "$dir/socket" 2>"$dir/words" && grep "no library: $OTHER" "$dir/words"
}
check 'a program without the library says so' no_library

# ---- and away again ----

nothing_is_left() {
    install_into "$dir/root" uninstall || return 1
    ! find "$dir/root" ! -type d | grep . && ! find "$dir/root" -name "*$NAME*" | grep .
}
check 'make uninstall' nothing_is_left

sum_up
