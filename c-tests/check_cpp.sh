#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# vhost_user_frontend.hpp: complete; compiled by each compiler that there is, as C++17
# and C++20, with exceptions and RTTI and without; linked from several translation
# units; its tests, also under valgrind; docs/cpp.md on an installed tree.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CXX:=c++}" "${MAKE:=make}"
TARGET=${CARGO_TARGET_DIR:-target}
STRICT='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wold-style-cast -Werror -Iinclude'
BARE='-fno-exceptions -fno-rtti'
HEADER=include/vhost_user_frontend
# Functions that are for native_handle().
NOT_WRAPPED=''

. c-tests/checks.sh
begin cpp

# ---- is it all there? ----

# What takes a handle.
HANDLES='client|device|memory_group|backend_programs|backend_process'
functions=$(awk '/\/\*/ { comment = 1 } !comment; /\*\// { comment = 0 }' $HEADER.h |
    tr '\n' ' ' | tr ';' '\n' | grep -E "struct vuf_($HANDLES) \*" |
    grep -oE '\bvuf_[a-z0-9_]+\(' | tr -d '(')
[ "$(echo "$functions" | wc -l)" -gt 50 ] || {
    echo 'the functions of the C header are not found'
    exit 1
}
wrapped() { grep -qE "\b$1\(" $HEADER.hpp; }
# Called as a member, by its name without vuf_client_ and so on.
tested() {
    member=$(echo "$1" | sed -E "s/^vuf_($HANDLES)_//; s/^new\$/create/")
    grep -qE "(\.|->|::)(template )?$member(<[^(]*>)?\(" cpp-tests/*.cpp
}
for function in $functions; do
    case " $NOT_WRAPPED " in
    *" $function "*) continue ;;
    esac
    check "$function is not in the C++ header" wrapped "$function"
    check "$function is not called by a C++ test" tested "$function"
done

# ---- does everyone compile it? ----

# What an object defines for others, but for its own two functions, is weak.
only_weak() {
    nm -C --defined-only --extern-only "$1" | grep -v ' T main$' | grep -v ' T two_agrees(' |
        awk 'NF { n++ } NF && $2 !~ /^[WVu]$/ { print; bad = 1 } END { exit bad || n == 0 }'
}
nothing() { [ -z "$(nm --defined-only --extern-only "$1")" ]; }
names_release() {
    nm -C "$1" | grep -q "vuf::v$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1 | tr . _)::"
}

echo '#include <vhost_user_frontend.hpp>' >"$dir/alone.cpp"
seen=
for compiler in "$CXX" g++ clang++; do
    path=$(command -v "${compiler%% *}") || {
        echo "skipped: there is no $compiler"
        skipped=$((skipped + 1))
        continue
    }
    # c++ is one of the others by another name.
    path=$(readlink -f "$path")
    case "$seen " in
    *" $path "*) continue ;;
    esac
    seen="$seen $path"
    # shellcheck disable=SC2086
    for mode in '' "$BARE"; do
        for file in one two; do
            check "$compiler, C++20 $mode: $file" \
                $compiler -std=c++20 $STRICT $mode -fsyntax-only cpp-tests/link/$file.cpp
        done
        check "$compiler, C++17 $mode" \
            $compiler -std=c++17 $STRICT $mode -O2 -c -o "$dir/one.o" cpp-tests/link/one.cpp
        check "$compiler, $mode: the header alone" \
            $compiler -std=c++17 $STRICT $mode -c -o "$dir/alone.o" "$dir/alone.cpp"
        check "$compiler, $mode: the header alone defines nothing" nothing "$dir/alone.o"
        check "$compiler, $mode: it exports nothing of its own" only_weak "$dir/one.o"
        check "$compiler, $mode: its names are those of the release" names_release "$dir/one.o"
        # The other one is what this one is not.
        other=$BARE
        [ -z "$mode" ] || other=
        check "$compiler, C++17 $other: two" \
            $compiler -std=c++17 $STRICT $other -c -o "$dir/two.o" cpp-tests/link/two.cpp
        check "$compiler, $mode: linked with '$other'" $compiler -o "$dir/linked" "$dir/one.o" \
            "$dir/two.o" -Lbuild -lvhost_user_frontend
        check "$compiler, $mode: run" env LD_LIBRARY_PATH=build "$dir/linked"
    done
done

# Mistakes that must not compile.
refused() { # WORDS CODE
    printf '#include <vhost_user_frontend.hpp>\n%s\n' "$2" >"$dir/wrong.cpp"
    # shellcheck disable=SC2086
    ! $CXX -std=c++17 $STRICT -fsyntax-only "$dir/wrong.cpp" 2>"$dir/words" &&
        grep -q "$1" "$dir/words"
}
check 'a result is not to be dropped' refused 'nodiscard' \
    'void f(vuf::client &c) { c.set_owner(); }'
check 'a client is not copied' refused 'deleted' \
    'void f(vuf::client &c) { vuf::client copy(c); }'
check 'a callback that nobody keeps' refused 'set_trace' \
    'void f(vuf::client &c) { (void)c.set_trace([](const vuf_trace_record &) {}).code(); }'
check 'a function that answers with nothing' refused 'iotlb_miss' \
    'struct h { void iotlb_miss(std::uint64_t, std::uint32_t) {} };
     void f(vuf_device_options &o, h &x) { vuf::serve(o, x); }'

# ---- does it work? ----

run_tests() { # DIRECTORY [WRAPPER...]
    sh c-tests/run_programs.sh "$@" || failed=$((failed + 1))
}
# shellcheck disable=SC2086
if ! $CXX -std=c++17 -fsyntax-only -include doctest/doctest.h "$dir/alone.cpp" -Iinclude 2>/dev/null; then
    echo 'skipped: the C++ tests: there is no doctest (doctest-dev)'
    skipped=$((skipped + 1))
else
    $MAKE --no-print-directory cpp-tests CXX="$CXX" || failed=$((failed + 1))
    run_tests build/cpp-tests
    if command -v valgrind >/dev/null; then
        run_tests build/cpp-tests valgrind --quiet --child-silent-after-fork=yes \
            --error-exitcode=9 --leak-check=full --show-leak-kinds=all \
            --errors-for-leak-kinds=all --suppressions=c-tests/valgrind.supp
    fi
    case $($CXX --version) in
    *clang*) ;;
    *)
        if command -v clang++ >/dev/null; then
            $MAKE --no-print-directory cpp-tests CXX=clang++ CPP_OUT=build/cpp-tests-clang ||
                failed=$((failed + 1))
            run_tests build/cpp-tests-clang
        fi
        ;;
    esac
fi

# ---- and the page about it? ----

root=$dir/root
$MAKE install DESTDIR="$root" PREFIX=/usr LIBDIR=/usr/lib/test >"$dir/said" 2>&1 || {
    cat "$dir/said"
    exit 1
}
export PKG_CONFIG_SYSROOT_DIR="$root" PKG_CONFIG_LIBDIR="$root/usr/lib/test/pkgconfig"
sh c-tests/code_of.sh docs/cpp.md cpp >"$dir/page.cpp" || exit 1
# shellcheck disable=SC2046
check 'docs/cpp.md compiles' $CXX -std=c++17 -Wall -Wextra -Werror -o "$dir/page" "$dir/page.cpp" \
    $(pkg-config --cflags --libs vhost_user_frontend)
truncate -s 8M "$dir/disk"
"$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" >"$dir/ready" &
back_end=$!
tries=0
until grep -q ready "$dir/ready" || [ $tries -ge 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
page() {
    LD_LIBRARY_PATH=$root/usr/lib/test "$dir/page" "$1"
}
says() {
    page "$dir/socket" && [ "$(page "$dir/socket")" = 'client: 16384 sectors
device: 16384 sectors' ]
}
fails() {
    ! page "$dir/nowhere" 2>"$dir/words" && cat "$dir/words" &&
        grep -q 'nowhere.*(try again)' "$dir/words"
}
check 'docs/cpp.md runs' says
check 'docs/cpp.md without a back-end' fails

sum_up
