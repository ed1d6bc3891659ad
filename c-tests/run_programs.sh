#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs every C test program of a directory, behind a wrapper command if there is
# one. Exit status 1: one of them failed, or there is none.
# Usage: run_programs.sh [--real] DIRECTORY [WRAPPER...]
# --real: those that drive back-ends in daily use, in place of the others.
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

result=1
for program in "$directory/$prefix"_*; do
    case ${program##*/} in *.* | *'*') continue ;; esac
    [ $result != 1 ] || result=0
    echo "== $program"
    timeout 600 "$@" "$program" || {
        # Who is killed by a signal says nothing: 124 is the timeout's.
        echo "FAILED: $program, exit status $?"
        result=2
    }
done
[ $result = 0 ]
