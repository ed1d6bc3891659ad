#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The tests as an ordinary user with few descriptors: the C programs, and those in
# Rust. Everything is copied to where that user may go.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CARGO:=cargo}"
NOBODY=65534
FDS=256
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-user.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# as_user COMMAND...
if [ "$(id -u)" != 0 ]; then
    as_user() { "$@"; }
elif command -v setpriv >/dev/null; then
    as_user() { setpriv --reuid=$NOBODY --regid=$NOBODY --clear-groups -- "$@"; }
else
    echo 'SKIPPED: this is root, and there is no setpriv to become another user'
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi

examples=${CARGO_TARGET_DIR:-target}/debug/examples
mkdir "$dir/build" "$dir/build/c-tests" "$dir/rust" "$dir/tmp" || exit 1
cp -P build/libvhost_user_frontend.so* "$dir/build/" &&
    cp build/c-tests/test_* "$dir/build/c-tests/" &&
    cp "$examples/embedded_backend" "$examples/foreign_backend" "$examples/inflight_backend" \
        build/vuf-mock-backend "$dir/" &&
    cp c-tests/run_programs.sh "$dir/" || exit 1
$CARGO test --locked --no-run --tests 2>&1 |
    sed -n 's/^ *Executable [^(]*(\(.*\))$/\1/p' >"$dir/binaries"
[ -s "$dir/binaries" ] || exit 1
while read -r binary; do
    cp "$binary" "$dir/rust/" || exit 1
done <"$dir/binaries"
cat >"$dir/run" <<'SH'
cd "$1" && ulimit -n "$2" || exit 1
export TMPDIR="$1/tmp" VUF_EMBEDDED_BACKEND="$1/embedded_backend"
export VUF_FOREIGN_BACKEND="$1/foreign_backend" VUF_MOCK_BACKEND="$1/vuf-mock-backend"
export VUF_INFLIGHT_BACKEND="$1/inflight_backend"
echo "user $(id -u), $(grep CapEff /proc/self/status), $(ulimit -n) descriptors"
[ "$(id -u)" != 0 ] && [ "$(ulimit -n)" = "$2" ] || exit 1
VUF_JOBS=4 sh run_programs.sh build/c-tests
result=$?
# The fault sweep has a stage of its own, and asks nothing of the user.
for binary in rust/*; do
    echo "== $binary"
    timeout --foreground 600 "$binary" --skip every_message_of_every_scenario >logs/out 2>&1 && status=0 || status=$?
    cat logs/out
    [ $status = 0 ] || {
        result=1
        mv logs/out "logs/failed-$(basename "$binary")"
    }
done
# Last, where whoever sees only the end of a log sees it.
for failed in logs/failed-*; do
    [ ! -e "$failed" ] || {
        echo "== FAILED: $failed"
        sed -n '/^failures:/,$p' "$failed" | head -n 40
    }
done
[ -z "$(ls tmp)" ] || {
    echo "left behind: $(ls tmp)"
    result=1
}
exit $result
SH
mkdir "$dir/logs"
chmod -R a+rX "$dir"
chmod 1777 "$dir/logs" "$dir/tmp"
as_user test -r "$PWD/README.md" || {
    echo 'SKIPPED: Rust tests that read the checkout, where an ordinary user may not go'
    echo '0 passed, 0 failed, 4 skipped'
    for name in device_transcripts fuzz_corpus links readme; do
        rm "$dir/rust/$name"-*
    done
}
as_user sh "$dir/run" "$dir" $FDS
