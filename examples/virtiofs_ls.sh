#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# virtiofs_ls.sh [VIRTIOFSD]: lists a shared directory with build/virtiofs-ls through
# virtiofsd, and compares what it says with ls and stat on the directory itself.

set -u
cd "$(dirname "$0")/.." || exit 1

VIRTIOFSD=${1:-virtiofsd}
export LC_ALL=C
dir=
pid=

fail() {
    echo "virtiofs_ls: $1" >&2
    [ -z "$dir" ] || cat "$dir/log" >&2
    exit 1
}

# Ends the one process that was started here, by its number.
clean_up() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    fi
    [ -z "$dir" ] || rm -rf "$dir"
    exit "$code"
}

# list ARGUMENT...: before the socket -A, -l or nothing, behind it the path. The
# program waits until somebody listens; virtiofsd ends with its connection, or if there
# is none for a minute.
list() {
    option=$1
    shift
    timeout --foreground 60 "$VIRTIOFSD" --socket-path "$dir/socket" --shared-dir "$dir/share" --sandbox none \
        --seccomp none >>"$dir/log" 2>&1 &
    pid=$!
    # WRAPPER, as valgrind, is for whoever looks closer; an option may be none.
    # shellcheck disable=SC2086
    ${WRAPPER-} build/virtiofs-ls $option "$dir/socket" "$@" >"$dir/out" 2>"$dir/err"
    status=$?
    wait "$pid"
    ended=$?
    pid=
    [ $ended = 0 ] || fail "virtiofsd ends with $ended"
}

# lists OPTION EXPECTED [PATH]: it prints exactly what is in that file.
lists() {
    expected=$2
    list "$1" ${3+"$3"}
    if [ $status != 0 ] || ! diff "$expected" "$dir/out" >"$dir/diff"; then
        cat "$dir/err" "$dir/diff" >&2
        fail "$1 ${3-/}: exit status $status, or not what is there"
    fi
    echo "virtiofs-ls $1 ${3-/}: $(wc -l <"$dir/out") entries, as they are there"
}

# refuses ERROR PATH
refuses() {
    list '' "$2"
    [ $status = 1 ] && [ ! -s "$dir/out" ] && grep -qF "$2: $1" "$dir/err" ||
        fail "$2: exit status $status, and not \"$1\""
    echo "virtiofs-ls $2: $1"
}

# Mode, links, user, group, size, time and name, by name.
details() {
    (cd "$1" && stat -c '%A %h %u %g %s %Y %n' -- * .[!.]*) | sort -k 7
}

[ -x build/virtiofs-ls ] || fail 'there is no build/virtiofs-ls; run: make'
command -v "$VIRTIOFSD" >/dev/null || fail "there is no $VIRTIOFSD"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Short, because the path of a socket holds 107 bytes at most.
dir=$(mktemp -d /tmp/vuf-fs.XXXXXX) || fail 'making a directory failed'
: >"$dir/log"

# More than fits into one reply, and every kind of thing.
deep="a directory/below"
mkdir -p "$dir/share/$deep" "$dir/share/many" "$dir/share/.hidden" &&
    (cd "$dir/share/many" && seq -f 'file number %05g with a name that is not short' 1500 | xargs -d '\n' touch) &&
    printf 'some text' >"$dir/share/$deep/file" &&
    ln -s file "$dir/share/$deep/link" && ln "$dir/share/$deep/file" "$dir/share/$deep/again" &&
    mkfifo "$dir/share/$deep/pipe" && printf x >"$dir/share/$deep/.dot" &&
    printf x >"$dir/share/$deep/$(printf '\303\251\001')" &&
    chmod 4755 "$dir/share/$deep/file" && chmod 1777 "$dir/share/many" &&
    chmod 2640 "$dir/share/$deep/.dot" && touch -d @86400 "$dir/share/$deep/pipe" ||
    fail 'making files failed'

ls -1 "$dir/share" >"$dir/root"
ls -1A "$dir/share" >"$dir/root-all"
ls -1 "$dir/share/many" >"$dir/many"
ls -1 "$dir/share/$deep" >"$dir/deep"
details "$dir/share/$deep" >"$dir/deep-details"
lists '' "$dir/root"
lists -A "$dir/root-all" /
lists '' "$dir/many" many
lists '' "$dir/deep" "/$deep/"
lists -Al "$dir/deep-details" "$deep"
details "$dir/share" >"$dir/root-details"
lists -Al "$dir/root-details"
refuses 'No such file or directory' many/nothing
refuses 'Not a directory' "$deep/file"
