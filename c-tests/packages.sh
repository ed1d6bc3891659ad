#!/bin/sh
# What the tests need besides cargo, a C compiler and make: installed with
# apt-get when that is possible, named otherwise. Exit status 1: something that
# the tests cannot do without is missing.
set -u

missing=
need() { # PACKAGE and a command that shows that it is there
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

has_header() {
    printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <%s>\n' "$1" |
        "${CC:-cc}" -fsyntax-only -x c - 2>/dev/null
}

look() {
    missing=
    need libcmocka-dev has_header cmocka.h
    need pkg-config command -v pkg-config
    need strace command -v strace
    need valgrind command -v valgrind
    need g++ command -v c++
    need abigail-tools command -v abidiff
    need mandoc command -v mandoc
    need doxygen command -v doxygen
    need qemu-storage-daemon command -v qemu-storage-daemon
}

look
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null >/dev/null 2>&1
    for package in $missing; do
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

[ -n "$missing" ] || exit 0
echo "missing:$missing"
echo "On Debian: apt-get install$(echo "$missing" | sed 's/qemu-storage-daemon/qemu-utils (or qemu-system-common)/')"
exit 1
