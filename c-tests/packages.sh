#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# What the tests need besides cargo, a C compiler and make: installed with
# apt-get when that is possible, named otherwise. Exit status 1: something that
# the tests cannot do without is missing; without other things some are skipped.
set -u

missing= lacking=
need() { # PACKAGE and a command that shows that it is there
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

want() { # the same for what is only skipped
    package=$1
    shift
    "$@" >/dev/null 2>&1 || lacking="$lacking $package"
}

has_header() {
    printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <%s>\n' "$1" |
        "${CC:-cc}" -fsyntax-only -x c - 2>/dev/null
}

has_cpp_header() {
    echo "#include <$1>" | "${CXX:-c++}" -std=c++17 -fsyntax-only -x c++ - 2>/dev/null
}

look() {
    missing= lacking=
    need libcmocka-dev has_header cmocka.h
    need pkg-config command -v pkg-config
    need strace command -v strace
    need valgrind command -v valgrind
    need g++ command -v c++
    need doctest-dev has_cpp_header doctest/doctest.h
    need python3 command -v python3
    need abigail-tools command -v abidiff
    need mandoc command -v mandoc
    need bsdextrautils command -v col
    need doxygen command -v doxygen
    need qemu-storage-daemon command -v qemu-storage-daemon
    want clang command -v clang
    want lld command -v ld.lld
    want cmake command -v cmake
    want meson command -v meson
    want ninja-build command -v ninja
}

look
[ -n "$missing$lacking" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null >/dev/null 2>&1
    for package in $missing $lacking; do
        case $package in
        # Which package holds it differs by release.
        qemu-storage-daemon)
            for candidate in qemu-utils qemu-system-common; do
                command -v qemu-storage-daemon >/dev/null && break
                apt-get install -q -y --no-install-recommends "$candidate" </dev/null || :
            done
            ;;
        *) apt-get install -q -y --no-install-recommends "$package" </dev/null || : ;;
        esac
    done
    look
fi

[ -z "$lacking" ] || echo "skipped: what needs$lacking"
[ -n "$missing" ] || exit 0
echo "missing:$missing"
echo "On Debian: apt-get install$(echo "$missing" | sed 's/qemu-storage-daemon/qemu-utils (or qemu-system-common)/')"
exit 1
