# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Read with `.` by what checks many things one after the other: each is counted, and
# named if it fails. They have a folder of their own, $dir.
passed=0 failed=0 skipped=0
back_end='' front_end=''

# begin NAME: makes the folder. At the end it is removed, and whom $back_end and
# $front_end name by then, by their numbers, are ended.
# The path of a socket holds 107 bytes at most, "$dir/socket" among them: where TMPDIR
# is too long for that, it is /tmp.
begin() {
    parent=${TMPDIR:-/tmp}
    [ "$(printf %s "$parent/vuf-$1.123456/socket" | wc -c)" -le 107 ] || parent=/tmp
    dir=$(mktemp -d "$parent/vuf-$1.XXXXXX") || exit 1
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    code=$?
    trap - EXIT INT TERM
    end $front_end $back_end
    rm -rf "$dir"
    exit "$code"
}

# end NUMBERS...: of processes that were started here.
end() {
    for number; do
        kill -KILL "$number" 2>/dev/null
        wait "$number" 2>/dev/null
    done
}

# listening PATH: somebody does, who may have to be waited for. (A socket is there as soon
# as it has its name.)
listening() {
    awk -v path="$1" '$4 == "00010000" && $8 == path { found = 1 } END { exit !found }' /proc/net/unix
}

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
        return 1
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
