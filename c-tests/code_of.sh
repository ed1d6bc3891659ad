#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The C code of a page of the documentation, in order, as one program.
# Usage: code_of.sh PAGE
set -u
code=$(awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' "$1") || exit 1
[ -n "$code" ] || {
    echo "$1 has no C code" >&2
    exit 1
}
printf '%s\n' "$code"
