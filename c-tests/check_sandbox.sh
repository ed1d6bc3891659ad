#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The tables of docs/system-calls.md and the rules of test_sandbox.c are the same,
# row by row.
# Usage: check_sandbox.sh [PAGE [PROGRAM]]
set -u
cd "$(dirname "$0")/.." || exit 1
page=${1:-docs/system-calls.md}
program=${2:-c-tests/test_sandbox.c}
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-sandbox.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# A "== name" for each table, and its rows, as "call" or "call(value)".
sed -n -e 's/^## .*/==/p' -e '/^| `/ { s/\\|/|/g; s/^| `\([^`]*\)`.*/\1/p; }' "$page" >"$dir/page"
sed -n -e '/OF_THIS_TEST/q' \
    -e 's/^#define OF_[A-Z_]*(ANY, ONLY) .*/==/p' \
    -e 's/^ *ANY(\([a-z0-9_]*\)).*/\1/p' \
    -e 's/^ *ONLY(\([a-z0-9_]*\), [0-9]*, \([^)]*\)).*/\1(\2)/p' "$program" >"$dir/program"

rows=$(grep -cv '^==' "$dir/page")
if [ "$rows" -gt 0 ] && diff "$dir/page" "$dir/program"; then
    echo "$rows rows"
    echo '1 passed, 0 failed'
    exit 0
fi
echo "$rows rows; < only in $page, > only in $program"
echo '0 passed, 1 failed'
exit 1
