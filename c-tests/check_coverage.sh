#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Every function of the header has a test that exists (coverage.txt), and every
# number and struct an assertion in test_layout.c. Counts functions.
# Usage: check_coverage.sh [HEADER]
set -u
here=$(dirname "$0")
header=${1:-$here/../include/vhost_user_frontend.h}
failed=0

check() { # check MESSAGE COMMAND...
    message=$1
    shift
    "$@" || {
        echo "FAIL: $message"
        failed=$((failed + 1))
    }
}

# The header without its comments.
code=$(awk '/\/\*/ { comment = 1 } !comment; /\*\// { comment = 0 }' "$header")
functions=$(echo "$code" | grep -oE '\bvuf_[a-z0-9_]+\(' | tr -d '(' | sort -u)
numbers=$(echo "$code" | sed -n 's/^#define \(VUF_[A-Z0-9_]*\) [^"].*/\1/p' | grep -v '^VUF_VERSION_')
structs=$(echo "$code" | sed -n 's/^struct \(vuf_[a-z0-9_]*\) {$/\1/p')
rows=$(sed -e '/^#/d' -e '/^$/d' "$here/coverage.txt")

check "no functions in $header" [ -n "$functions" ]
check "no numbers in $header" [ -n "$numbers" ]
check "no structs in $header" [ -n "$structs" ]

in_header() { echo "$functions" | grep -qx "$1"; }
in_table() { echo "$rows" | grep -q "^$1 "; }
well_formed() { echo "$1" | grep -qE '^vuf_[a-z0-9_]+ +(test|real)_[a-z0-9_]+: [a-z0-9_]+$'; }
runs() { grep -q "^static void $2(void \*\*state)\$" "$here/$1.c" && grep -q "($2)," "$here/$1.c"; }
calls() { grep -qE "\b$2\(" "$here/$1.c"; }

for function in $functions; do
    check "$function is not in coverage.txt" in_table "$function"
done

while read -r row; do
    check "not \"function program: test\": $row" well_formed "$row"
    # shellcheck disable=SC2086
    set -- $row
    check "$1 is not in the header" in_header "$1"
    check "${2%:} has no test ${3-}, or does not run it" runs "${2%:}" "${3-}"
    check "${2%:} does not call $1" calls "${2%:}" "$1"
done <<ROWS
$rows
ROWS

for number in $numbers; do
    check "$number is not in test_layout.c" grep -q "^VALUE($number," "$here/test_layout.c"
done
for struct in $structs; do
    check "struct $struct is not in test_layout.c" grep -q "^SIZE($struct," "$here/test_layout.c"
done

echo "$(echo "$functions" | wc -l) passed, $failed failed"
[ "$failed" = 0 ]
