#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# All tests, stage by stage: `make check`, and with --full `make check-full`,
# which adds the slow ones. Each stage writes a log under build/check/, and says
# here how long it took and how many tests it ran.
set -u
cd "$(dirname "$0")/.." || exit 1

: "${CARGO:=cargo}" "${CC:=cc}" "${CXX:=c++}" "${MAKE:=make}"
export CARGO CC CXX MAKE
export CARGO_TERM_COLOR=never RUST_BACKTRACE=0
# What is tested is what was built here: not what is installed, where somebody has said
# how to find that, nor what cargo is configured to put elsewhere.
unset LD_LIBRARY_PATH LD_PRELOAD PKG_CONFIG_PATH PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR
TARGET=${CARGO_TARGET_DIR:-target}
export CARGO_TARGET_DIR="$TARGET"
# Sockets lie in it, whose paths hold 107 bytes at most; and make splits at spaces.
case ${TMPDIR-} in *[[:space:]]* | ????????????????????????????????*) export TMPDIR=/tmp ;; esac
LOGS=build/check
# Processes, by their numbers; a negative one is that of a group.
beside='' others=''
trap 'for it in $beside $others; do kill -- "$it"; done 2>/dev/null; rm -rf "${SCRATCH-}"' EXIT
trap 'exit 130' INT TERM
if [ "${1-}" = --beside ]; then
    # Called by this script itself, which removes this directory.
    OUTER_SCRATCH=$3
else
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/vuf-check.XXXXXX") || exit 1
    rm -rf "$LOGS"
    mkdir -p "$LOGS"
fi

passed=0
failed=0
skipped=0
begin=$(date +%s)

# Adds up what test runners say at their end: cargo, cmocka, doctest, our own scripts.
count() {
    awk '
        /^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) == "passed;") p += $i
                          if ($(i+1) == "failed;") f += $i; if ($(i+1) == "ignored;") s += $i } }
        /^\[  PASSED  \] [0-9]+ test/ { p += $4 }
        /^\[  SKIPPED \] [0-9]+ test/ { s += $4 }
        /^\[  FAILED  \] [0-9]+ test/ { f += $4 }
        /^\[doctest\] test cases:/ { p += $6; f += $9; s += $12 }
        /^[0-9]+ passed, [0-9]+ failed/ { p += $1; f += $3; s += $5 }
        END { printf "%d %d %d\n", p, f, s }' "$1"
}

# stage NAME COMMAND...: a stage without tests of its own counts as one.
stage() {
    name=$1
    shift
    log=$LOGS/$(echo "$name" | tr -c 'a-zA-Z0-9\n' '-').log
    start=$(date +%s)
    if "$@" >"$log" 2>&1 </dev/null; then status=0; else status=$?; fi
    took=$(($(date +%s) - start))
    # shellcheck disable=SC2046
    set -- $(count "$log")
    [ "$1$2$3" != 000 ] || set -- 1 0 0
    if [ $status = 0 ]; then
        printf 'ok    %-44s %4d s  %d passed' "$name" "$took" "$1"
        passed=$((passed + $1))
        [ "$3" = 0 ] || printf ', %d skipped' "$3"
        echo
        grep -E '^(SKIPPED:|skipped:|swept |simulated )' "$log" | sed 's/^/      /'
    else
        [ "$2" != 0 ] || set -- 0 1 "$3"
        printf 'FAIL  %-44s %4d s  (exit status %d, all of it in %s)\n' "$name" "$took" "$status" "$log"
        tail -n 60 "$log" | sed 's/^/      /'
        failed=$((failed + $2))
        passed=$((passed + $1))
    fi
    skipped=$((skipped + $3))
}

# beside STAGES: begins a function of stages, one after the other, beside those that
# follow: compilers, where the others mostly wait. It is a session of its own, so that it
# can be ended with all that it has started.
beside() {
    rm -f "$SCRATCH/counts"
    setsid sh c-tests/check.sh --beside "$1" "$SCRATCH" >"$SCRATCH/beside" 2>&1 </dev/null &
    beside=-$!
}

# Waits for them, and says what they had to say.
collect() {
    wait "${beside#-}"
    beside=
    cat "$SCRATCH/beside"
    [ -e "$SCRATCH/counts" ] || {
        echo 'FAIL  they did not come to their end'
        echo '0 1 0' >"$SCRATCH/counts"
    }
    # shellcheck disable=SC2046
    set -- $(cat "$SCRATCH/counts")
    passed=$((passed + $1))
    failed=$((failed + $2))
    skipped=$((skipped + $3))
}

# ---- what the stages do ----

back_ends() {
    $CARGO build --locked --lib --examples
}

MOCK='--manifest-path mock/Cargo.toml'
FUZZ='--manifest-path fuzz/Cargo.toml'

# shellcheck disable=SC2086
formatting() {
    $CARGO fmt --check && $CARGO fmt $MOCK --check && $CARGO fmt $FUZZ --check
}

# shellcheck disable=SC2086
lints() {
    $CARGO clippy --locked --all-targets -- -D warnings &&
        $CARGO clippy $MOCK --locked --target-dir build/mock --all-targets -- -D warnings &&
        $CARGO clippy $FUZZ --locked --target-dir build/fuzz/stable --all-targets -- -D warnings
}

# shellcheck disable=SC2086
mock_tests() {
    $CARGO test $MOCK --locked --target-dir build/mock
}

# All but the fault sweep, which takes longer than the rest together.
rust_tests() {
    $CARGO test --locked -- --skip every_message_of_every_scenario
}

# `make check` does it 20 times in each setting.
kill_back_ends() {
    VUF_KILLS=200 $CARGO test --locked --test device_kills
}

fault_sweep() {
    $CARGO test --locked --test sweep
}

# device_simulator SECONDS: histories of one seed after the other for so long.
device_simulator() {
    VUF_SIM_SECONDS=$1 $CARGO test --locked --test simulator
}

header_alone() {
    for std in c99 c11 c17; do
        $CC -std=$std -Wall -Wextra -Wpedantic -Wstrict-prototypes -Werror -fsyntax-only \
            -x c include/vhost_user_frontend.h || return 1
    done
    for std in c++11 c++14 c++17 c++20; do
        $CXX -std=$std -Wall -Wextra -Wpedantic -Werror -fsyntax-only \
            -x c++ include/vhost_user_frontend.h || return 1
    done
    # On another target it says so, and nothing else.
    $CC -fsyntax-only -U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__ \
        -x c include/vhost_user_frontend.h 2>&1 |
        grep -F 'error:' >"$SCRATCH/big-endian"
    cat "$SCRATCH/big-endian"
    grep -qF 'needs a 64-bit little-endian target' "$SCRATCH/big-endian" || return 1
    [ "$(wc -l <"$SCRATCH/big-endian")" = 1 ] || return 1
    echo '8 passed, 0 failed'
}

c_tests_built() {
    $MAKE -j "$(getconf _NPROCESSORS_ONLN)" c-tests
}

# Where the back-ends in daily use are, as far as this machine has them.
find_back_ends() {
    sh c-tests/backends.sh --env >"$SCRATCH/back-ends" && . "$SCRATCH/back-ends"
}

# They spend hardly a tenth of their time on a processor.
c_tests() {
    find_back_ends && VUF_JOBS=4 sh c-tests/run_programs.sh build/c-tests
}

real_back_ends() {
    find_back_ends && sh c-tests/run_programs.sh --real build/c-tests
}

# Once more with the library as cargo makes it.
c_tests_cdylib() {
    mkdir -p "$SCRATCH/cdylib"
    cp "$TARGET/debug/libvhost_user_frontend.so" "$SCRATCH/cdylib/libvhost_user_frontend.so.0" ||
        return 1
    LD_LIBRARY_PATH=$SCRATCH/cdylib ldd build/c-tests/test_errors |
        grep -F "$SCRATCH/cdylib/libvhost_user_frontend.so.0" || return 1
    VUF_UNOPTIMISED=1 VUF_JOBS=4 LD_LIBRARY_PATH=$SCRATCH/cdylib sh c-tests/run_programs.sh build/c-tests
}

# A program that knows nothing but pkg-config and the README, on an installed
# tree, and the programs that are installed.
installed() {
    root=$SCRATCH/root
    $MAKE install DESTDIR="$root" PREFIX=/usr LIBDIR=/usr/lib/test >/dev/null || return 1
    sh c-tests/code_of.sh README.md >"$SCRATCH/readme.c" || return 1
    # shellcheck disable=SC2046
    $CC -Wall -Wextra -Werror -o "$SCRATCH/shared" "$SCRATCH/readme.c" \
        $(PKG_CONFIG_LIBDIR=$root/usr/lib/test/pkgconfig \
            pkg-config --cflags --libs vhost_user_frontend) || return 1
    truncate -s 8M "$SCRATCH/disk.raw"
    "$TARGET/debug/examples/embedded_backend" --socket "$SCRATCH/blk.sock" \
        --file "$SCRATCH/disk.raw" >"$SCRATCH/ready" &
    backend=$!
    others=$backend
    tries=0
    until grep -q ready "$SCRATCH/ready" || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    LD_LIBRARY_PATH=$root/usr/lib/test "$SCRATCH/shared" "$SCRATCH/blk.sock" &&
        LD_LIBRARY_PATH=$root/usr/lib/test "$root/usr/bin/vhost-user-probe" "$SCRATCH/blk.sock" &&
        "$root/usr/bin/vuf-mock-backend" --version
    result=$?
    kill $backend
    wait $backend 2>/dev/null
    others=
    [ $result = 0 ] && echo '3 passed, 0 failed'
}

demo() {
    sh examples/demo.sh embedded && sh examples/demo.sh qemu && echo '2 passed, 0 failed'
}

# on_each SCRIPT ARGUMENTS...: a script of examples/ that takes the name of a
# back-end, with each of them.
on_each() {
    script=$1
    shift
    for back_end in embedded inflight qemu; do
        if [ $back_end = qemu ] && ! command -v qemu-storage-daemon >/dev/null; then
            echo 'SKIPPED: there is no qemu-storage-daemon'
            echo '0 passed, 0 failed, 1 skipped'
            continue
        fi
        sh "examples/$script.sh" $back_end "$@" || return 1
        echo '1 passed, 0 failed'
    done
}

# with_back_end SCRIPT BACK-END: a script of examples/ that takes the path of a
# back-end in daily use.
with_back_end() {
    if program=$(sh c-tests/backends.sh --path "$2"); then
        sh "examples/$1.sh" "$program" && echo '1 passed, 0 failed'
    else
        echo "SKIPPED: there is no $2 (c-tests/backends.sh)"
        echo '0 passed, 0 failed, 1 skipped'
    fi
}

# ---- the slow rest ----

# again N COMMAND...: what depends on timing shows only now and then.
again() {
    rounds=$1
    shift
    while [ "$rounds" -gt 0 ]; do
        "$@" || return 1
        rounds=$((rounds - 1))
    done
}

# The same with both cores busy all the time.
under_load() {
    sh -c 'while :; do :; done' &
    one=$!
    sh -c 'while :; do :; done' &
    two=$!
    others="$one $two"
    "$@"
    result=$?
    kill $one $two
    wait $one $two 2>/dev/null
    others=
    return $result
}

# The oldest Rust that Cargo.toml promises.
oldest_rust() {
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    for toolchain in "$version" "$version.0" install; do
        [ $toolchain != install ] || {
            toolchain=$version.0
            timeout 300 rustup toolchain install "$toolchain" --profile minimal --no-self-update
        }
        if rustc "+$toolchain" --version; then
            $CARGO "+$toolchain" check --locked --lib --target-dir build/oldest
            return
        fi
    done
    echo "SKIPPED: there is no Rust $version here (rustup toolchain install $version)"
    echo '0 passed, 0 failed, 1 skipped'
}

# ---- the order ----

compilers() {
    stage 'C tests compile' c_tests_built
    stage 'header is current' $MAKE --no-print-directory header-check
    stage 'symbols, soname, hardening, LTO, linkers' sh c-tests/check_library.sh
    stage 'ABI against the baseline' sh c-tests/check_abi.sh
    stage 'lints' lints
}

# It mostly waits.
ordinary_user() {
    stage 'tests as an ordinary user' sh c-tests/check_unprivileged.sh
}

# What keeps processors busy for more than half an hour. What depends on timing is
# repeated beside it, and mostly waits.
slow_compilers() {
    stage 'C tests, library under AddressSanitizer' sh c-tests/check_sanitizers.sh
    stage 'data races (ThreadSanitizer)' sh c-tests/check_races.sh
    stage 'undefined behaviour (Miri)' sh c-tests/check_miri.sh
    stage 'oldest Rust' oldest_rust
    stage 'source and packages: made, used, removed' sh c-tests/check_packages.sh
    stage 'device simulator, a quarter of an hour' device_simulator 900
}

if [ "${1-}" = --beside ]; then
    "$2"
    echo "$passed $failed $skipped" >"$OUTER_SCRATCH/counts"
    exit
fi

stage 'what the tests need' sh c-tests/packages.sh
stage 'cargo builds: library and back-ends' back_ends
stage 'formatting' formatting
stage 'header alone, C99 to C++20' header_alone
stage 'programs of older versions' sh c-tests/check_old_programs.sh
stage 'Rust tests' rust_tests
beside compilers
stage 'fault sweep' fault_sweep
stage 'device simulator' device_simulator 60
stage 'scripted back-end' mock_tests
collect
stage 'every C function has a test' sh c-tests/check_coverage.sh
[ "${1-}" != --full ] || stage 'back-ends in daily use: get them' sh c-tests/backends.sh all
stage 'C tests' c_tests
stage 'back-ends in daily use' real_back_ends
beside ordinary_user
stage 'C++ header, its tests and its page' sh c-tests/check_cpp.sh
stage 'C tests on the cdylib of cargo' c_tests_cdylib
collect
stage 'C tests under valgrind' sh c-tests/check_valgrind.sh
stage 'docs/system-calls.md = seccomp filter' sh c-tests/check_sandbox.sh
stage 'system calls of a round trip' sh c-tests/check_strace.sh
stage 'vhost-user-probe' sh c-tests/check_probe.sh
stage 'installed tree, README example' installed
stage 'pkg-config, CMake, Meson, dlopen' sh c-tests/check_linking.sh
stage 'docs/guide.md, compiled and run' sh c-tests/check_guide.sh
stage 'examples/read_block.py, from Python' sh c-tests/check_python.sh
stage 'demo, on both back-ends' demo
stage 'man pages and reference' sh c-tests/check_docs.sh
stage 'back-ends killed and started again' on_each resilient 5
stage 'several devices, one event loop' on_each event_loop
stage 'a directory listed through virtiofsd' with_back_end virtiofs_ls virtiofsd
stage 'frames looped through DPDK' with_back_end net_loop dpdk-testpmd
if [ "${1-}" = --full ]; then
    beside slow_compilers
    stage 'Rust tests, ten times' again 10 rust_tests
    stage 'C tests, ten times' again 10 c_tests
    stage 'kill -9 of the back-end, 200 times each' kill_back_ends
    stage 'demo, twenty times' again 20 demo
    stage 'back-ends killed a hundred times each' on_each resilient 100
    stage 'one event loop, twenty times' again 20 on_each event_loop
    collect
    stage 'Rust tests under load, twice' under_load again 2 rust_tests
    stage 'fault sweep under load' under_load fault_sweep
    stage 'C tests under load, twice' under_load again 2 c_tests
fi

echo
echo "took $(($(date +%s) - begin)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
