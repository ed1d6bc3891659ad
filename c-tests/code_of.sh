#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The C code of a page of the documentation, or that in another language, in order, as
# one program.
# Usage: code_of.sh PAGE [LANGUAGE]
set -u
language=${2:-c}
code=$(awk -v begin="\`\`\`$language" '$0 == begin { on = 1; next } /^```$/ { on = 0 } on' "$1") || exit 1
[ -n "$code" ] || {
    echo "$1 has no code in $language" >&2
    exit 1
}
printf '%s\n' "$code"
