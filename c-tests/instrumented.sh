# shellcheck shell=sh disable=SC2034
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Read with `.` by the checks that build the library itself with a sanitizer:
# only nightly Rust can. The C tests are then compiled by $CC and linked with the
# runtime of that Rust; gcc and clang call it by the same names.
: "${CC:=cc}" "${CARGO:=cargo}" "${MAKE:=make}"
# A toolchain that is not here is not to be fetched behind the user's back.
export RUSTUP_AUTO_INSTALL=0

# find_nightly [asan|tsan]: sets $host, and $runtime if one is named, or $why_not.
find_nightly() {
    why_not=
    if ! libraries=$(rustc +nightly --print target-libdir 2>/dev/null) ||
        ! $CARGO +nightly --version >/dev/null 2>&1; then
        why_not='there is no nightly Rust here (rustup toolchain install nightly)'
        return 1
    fi
    host=$(rustc +nightly -vV | sed -n 's/^host: //p')
    [ $# != 0 ] || return 0
    for runtime in "$libraries"/librustc*_rt."$1".a; do
        [ -e "$runtime" ] && return 0
    done
    why_not="nightly Rust has no $1 runtime for $host"
    return 1
}

# find_std_source: whether std can be built as well, or $why_not.
find_std_source() {
    source=$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library
    [ -e "$source/Cargo.lock" ] || timeout 300 rustup component add rust-src --toolchain nightly || {
        why_not='nightly Rust has no source of std (rustup component add rust-src --toolchain nightly)'
        return 1
    }
    # shellcheck disable=SC2086
    timeout 300 $CARGO +nightly fetch --locked -Zbuild-std --target "$host" || {
        why_not='what std depends on cannot be fetched (cargo +nightly fetch -Zbuild-std)'
        return 1
    }
}

# instrumented_cargo SANITIZER DIRECTORY COMMAND [OPTION...]
instrumented_cargo() {
    flags="${RUSTFLAGS-} -Zsanitizer=$1" directory=$2 command=$3
    shift 3
    RUSTFLAGS=$flags $CARGO +nightly "$command" --locked --target "$host" \
        --target-dir "$directory/cargo" "$@"
}

# instrumented_archive DIRECTORY: what this makes of the library.
instrumented_archive() {
    echo "$1/cargo/$host/debug/libvhost_user_frontend.a"
}

# The compiler's own runtime must stay out: gcc links it with the libraries that
# are there by default.
foreign_runtime() {
    case $($CC --version 2>/dev/null) in
    *clang*) echo -fno-sanitize-link-runtime ;;
    *) echo -nodefaultlibs ;;
    esac
}

# What a program needs besides the library; dlopen and the C library itself look
# for the sanitizer's functions in the program.
foreign_libraries() {
    echo "-rdynamic -Wl,--whole-archive $runtime -Wl,--no-whole-archive -lcmocka \
        $(sed -n 's/^NATIVE *:= *//p' Makefile) -lgcc"
}

# instrumented_programs DIRECTORY FLAGS TARGET...: C tests, below DIRECTORY/c-tests.
# LDFLAGS would go to the ordinary library too, which RPATH does not.
instrumented_programs() {
    directory=$1 flags="$2 $(foreign_runtime)" libraries="${more-} $(foreign_libraries)"
    shift 2
    $MAKE --no-print-directory "$@" C_OUT="$directory/c-tests" CFLAGS="$flags" \
        LINK="$(instrumented_archive "$directory") $libraries" RPATH="$libraries"
}
