#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The tests that need no socket, by Miri: it interprets the program, and ends it
# at the first undefined operation. What it cannot run is everything that asks
# the kernel for more than memory and threads.
set -u
cd "$(dirname "$0")/.." || exit 1
. c-tests/instrumented.sh
OUT=build/miri
dir=$(mktemp -d "${TMPDIR:-/tmp}/vuf-miri.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

skip() {
    echo "SKIPPED: Miri runs nothing: $1"
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
}

# shellcheck disable=SC2119
{ find_nightly && find_std_source; } || skip "$why_not"
$CARGO +nightly miri --version || timeout 300 rustup component add miri --toolchain nightly ||
    skip 'it is not here (rustup component add miri --toolchain nightly)'
std=$($CARGO +nightly miri setup --print-sysroot) || exit 1

# Memory that is read after it was freed, by a program that ends well otherwise.
cat >"$dir/dangling.rs" <<'RUST'
fn main() {
    let word = Box::new(7_u8);
    let address = &raw const *word;
    drop(word);
    assert!(unsafe { *address } <= u8::MAX);
}
RUST
miri=$(rustc +nightly --print sysroot)/bin/miri
if "$miri" --sysroot "$std" "$dir/dangling.rs" >"$dir/words" 2>&1 ||
    ! grep -q 'error: Undefined Behavior: .*dangling' "$dir/words"; then
    cat "$dir/words"
    echo 'memory that was freed is not noticed here'
    echo '0 passed, 1 failed, 0 skipped'
    exit 1
fi

# What needs real sockets, files and processes is not for Miri, nor are thousands of
# plans and of texts.
$CARGO +nightly miri test --locked --target-dir $OUT --lib --test pure -- \
    --skip device::fence --skip device::group --skip device::link --skip device::plan \
    --skip programs:: --skip socket::files || exit 1
echo '1 passed, 0 failed, 0 skipped'
