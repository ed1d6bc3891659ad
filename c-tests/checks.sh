# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Read with `.` by what checks many things one after the other: each is counted, and
# named if it fails. They have a folder of their own, $dir.
passed=0 failed=0 skipped=0

# check WHAT COMMAND...: what it says is told only if it fails.
check() {
    what=$1
    shift
    if "$@" >"$dir/said" 2>&1; then
        passed=$((passed + 1))
    else
        echo "FAILED: $what"
        cat "$dir/said"
        failed=$((failed + 1))
    fi
}

# The same, and it is told: there are counts in it, or more than one check may be.
check_aloud() {
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        echo "FAILED: $what"
        failed=$((failed + 1))
    fi
}

# The last command of a script.
sum_up() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
}
