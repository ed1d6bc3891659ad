#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# The man pages are well made, have the options that the programs say they take, and an
# example that runs; the reference is made of the header and of the Rust code, and
# complains of what has no words. (tests/links.rs: what all of them point to is there.)
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${MAKE:=make}"
TARGET=${CARGO_TARGET_DIR:-target}
. c-tests/checks.sh
begin docs

# has COMMAND WHAT
has() {
    command -v "$1" >/dev/null && return 0
    echo "SKIPPED: $2, as $1 is not installed"
    skipped=$((skipped + 1))
    return 1
}

fails() {
    ! "$@"
}

# ---- man pages ----

# Those of a page, as "-e" and "--log", and of what a program says of itself.
options_of_page() {
    sed -nE -e 's/^\.It Fl Fl ([a-z-]+).*/--\1/p' -e 's/^\.It Fl ([a-z])( .*)?$/-\1/p' "$1" | sort
}
options_of_program() {
    "$1" --help >"$dir/help" || return 1
    sed -nE 's/^ {1,4}(--?[a-z][a-z-]*).*/\1/p' "$dir/help" | sort
}
same_options() {
    options_of_page "man/$1.1" >"$dir/page"
    options_of_program "build/$1" >"$dir/program" || return 1
    [ -s "$dir/page" ] && diff "$dir/page" "$dir/program"
}
# And the usage line of the page has each of them.
options_in_synopsis() {
    sed -n '/^\.Sh SYNOPSIS/,/^\.Sh DESCRIPTION/p' "man/$1.1" >"$dir/synopsis"
    for option in $(options_of_page "man/$1.1"); do
        words=$(echo "$option" | sed -e 's/^--/Fl Fl /' -e 's/^-/Fl /')
        grep -qE "$words( |\$)" "$dir/synopsis" || {
            echo "$option is not in the synopsis"
            return 1
        }
    done
}
# The words behind "Cm" in a page that the help has as well: types, modes.
same_words() {
    [ -n "$(options_words "$1")" ] || return 1
    for word in $(options_words "$1"); do
        grep -qE "(^| )$word([ ,.]|\$)" "$dir/page-words" || {
            echo "man/$1.1 does not name $word"
            return 1
        }
    done
}
options_words() {
    mandoc -Tascii "man/$1.1" | col -b | tr -s ' \n' ' ' >"$dir/page-words"
    case $1 in
    vhost-user-probe) "build/$1" --help | sed -n '/--device/{n;p}' ;;
    vuf-mock-backend) "build/$1" --help | sed -n 's/.*--mode MODE  *//p' | sed -e 's/,/ /g' -e 's/ or / /g' ;;
    esac
}

if has mandoc 'man pages'; then
    for page in man/*; do
        check "$page is well made" mandoc -Tlint -Wwarning "$page"
    done
    printf '.Dd November 25, 2026\n.Dt X 1\n.Os\n.Sh NAME\n.Nm x\n' >"$dir/bad.1"
    check 'a bad page is told' fails mandoc -Tlint -Wwarning "$dir/bad.1"
    for program in vhost-user-probe vuf-mock-backend; do
        check "the words of $program" same_words $program
    done
fi
for program in vhost-user-probe vuf-mock-backend; do
    check "the options of $program" same_options $program
    check "the synopsis of $program" options_in_synopsis $program
done

# The program in vhost_user_frontend(7), on a disk of 16384 sectors.
example() {
    awk '/^\.Bd -literal/ { on = 1; next } /^\.Ed/ { on = 0 } on' man/vhost_user_frontend.7 |
        sed 's/\\e/\\/g' >"$dir/example.c"
    $CC -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Iinclude -o "$dir/example" "$dir/example.c" \
        -Lbuild -lvhost_user_frontend || return 1
    truncate -s 8M "$dir/disk"
    "$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" \
        >"$dir/log" 2>&1 &
    back_end=$!
    LD_LIBRARY_PATH=build timeout 20 "$dir/example" "$dir/socket" >"$dir/out"
    status=$?
    cat "$dir/out" "$dir/log"
    [ $status = 0 ] && [ "$(cat "$dir/out")" = '16384 sectors' ]
}
check 'the example of vhost_user_frontend(7)' example

# ---- the reference ----

# reference HEADER: makes it of that header, elsewhere.
reference() {
    mkdir -p "$dir/reference"
    {
        cat docs/Doxyfile
        echo "INPUT = $1"
        echo "OUTPUT_DIRECTORY = $dir/reference"
    } >"$dir/Doxyfile"
    doxygen "$dir/Doxyfile"
}
# spoiled WORDS SED-COMMAND: whether the header that is made by it is noticed, and what
# is told of it.
spoiled() {
    sed "$2" include/vhost_user_frontend.h >"$dir/vhost_user_frontend.h"
    ! cmp -s include/vhost_user_frontend.h "$dir/vhost_user_frontend.h" &&
        ! reference "$dir/vhost_user_frontend.h" >"$dir/complaint" 2>&1 &&
        grep -F "$1" "$dir/complaint"
}
whole() {
    cp include/vhost_user_frontend.h "$dir/" && reference "$dir/vhost_user_frontend.h"
}

if has doxygen 'the reference'; then
    check 'the reference' "$MAKE" --no-print-directory docs
    check 'it has the functions' \
        grep -q 'vuf_device_open_fd' build/docs/html/vhost__user__frontend_8h.html
    check 'it has the Rust functions' \
        test -s build/docs/rust/vhost_user_frontend/struct.Device.html
    check 'a copy of the header is good' whole
    check 'a function without words is told' spoiled vuf_client_abort 's/^int vuf_client_abort(/int vuf_new(void);\n&/'
    check 'a constant without words is told' spoiled VUF_PROTOCOL_F_MQ '/^ \* Several queues\.$/d'
    check 'a field without words is told' spoiled guest_addr '/^     \* Guest physical address of the region/d'
    check 'a parameter without words is told' spoiled num 's/^ \* num  gets the number$/ * A number./'
    check 'a parameter that is not there is told' spoiled slots 's/\(uint64_t \*\)slots)/\1others)/'
fi

sum_up
