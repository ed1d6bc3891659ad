#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs every C test program of a directory, behind a wrapper command if there is
# one. Exit status 1: one of them failed, or there is none.
# Usage: run_programs.sh [--real] DIRECTORY [WRAPPER...]
# --real: those that drive back-ends in daily use, in place of the others.
# VUF_JOBS: so many at once; most of their time they wait. What they print is told
# in their order all the same.
set -u
prefix=test
if [ "$1" = --real ]; then
    prefix=real
    shift
fi
directory=$1
shift
examples=${CARGO_TARGET_DIR:-target}/debug/examples
: "${VUF_EMBEDDED_BACKEND:=$examples/embedded_backend}"
: "${VUF_FOREIGN_BACKEND:=$examples/foreign_backend}"
: "${VUF_INFLIGHT_BACKEND:=$examples/inflight_backend}"
: "${VUF_MOCK_BACKEND:=build/vuf-mock-backend}"
export VUF_EMBEDDED_BACKEND VUF_FOREIGN_BACKEND VUF_INFLIGHT_BACKEND VUF_MOCK_BACKEND
said=$(mktemp -d "${TMPDIR:-/tmp}/vuf-programs.XXXXXX") || exit 1
trap 'rm -rf "$said"' EXIT
trap 'exit 130' INT TERM

for program in "$directory/$prefix"_*; do
    case ${program##*/} in *.* | *'*') ;; *) echo "$program" ;; esac
done >"$said/programs"
# shellcheck disable=SC2016
xargs -P "${VUF_JOBS:-1}" -I '{}' sh -c '
    said=$1/${2##*/} program=$2
    shift 2
    # In the foreground: who ends the tests ends it, too.
    timeout --foreground 600 "$@" "$program" >"$said" 2>&1 || {
        # Who is killed by a signal says nothing: 124 is of the timeout.
        echo "FAILED: $program, exit status $?" >>"$said"
        exit 1
    }
' sh "$said" '{}' "$@" <"$said/programs"
result=$?
while read -r program; do
    echo "== $program"
    cat "$said/${program##*/}"
done <"$said/programs"
[ $result = 0 ] && [ -s "$said/programs" ]
