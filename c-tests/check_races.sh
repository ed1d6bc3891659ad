#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Data races, by ThreadSanitizer in the library, in Rust's std and in the tests:
# the Rust tests and the C tests in which threads share a client. (Helgrind and
# drd do not know the locks of std, and report each use of what they guard.)
set -u
cd "$(dirname "$0")/.." || exit 1
. c-tests/instrumented.sh
OUT=build/tsan
FLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=thread'
PROGRAMS='test_args test_connection test_errors test_hygiene test_replies test_trace'
. c-tests/checks.sh
begin tsan
# Not even a message through a socket orders two threads: what the library shares
# between them, its own lock must guard.
export TSAN_OPTIONS='io_sync=0 exitcode=66'

skip() {
    echo "SKIPPED: no search for data races: $1"
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
}

{ find_nightly tsan && find_std_source; } || skip "$why_not"
printf 'int main(void) { return 0; }\n' >"$dir/empty.c"
# shellcheck disable=SC2086
$CC $FLAGS -o "$dir/empty" "$dir/empty.c" 2>"$dir/words" ||
    skip "the compiler has no ThreadSanitizer: $(head -n 1 "$dir/words")"

# Its own thread would be counted by the tests that count threads: it ends before
# main, as it does for a program that is about to enter a sandbox.
cat >"$dir/alone.c" <<'C'
#include <pthread.h>
#include <stddef.h>
void __sanitizer_sandbox_on_notify(void *);
static void *nothing(void *unused)
{
    return unused;
}
__attribute__((constructor)) static void end_background_thread(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, nothing, NULL) == 0) {
        pthread_join(thread, NULL);
        __sanitizer_sandbox_on_notify(NULL);
    }
}
C
# A race that must be told: one thread writes what the library reads in another.
cat >"$dir/race.c" <<'C'
#include <pthread.h>
#include <stddef.h>
#include <sys/socket.h>
#include <vhost_user_frontend.h>
static struct vuf_client *client;
static struct vuf_vring_addr addr;
static void *call(void *unused)
{
    vuf_client_set_vring_addr(client, 0, &addr);
    return unused;
}
int main(void)
{
    int ends[2];
    pthread_t thread;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 ||
        vuf_client_from_fd(ends[0], NULL, &client) != 0 ||
        pthread_create(&thread, NULL, call, NULL) != 0) {
        return 0;
    }
    addr.descriptor = 16;
    pthread_join(thread, NULL);
    vuf_client_free(client);
    return 0;
}
C
# And one that Rust makes by itself.
cat >"$dir/race.rs" <<'RUST'
static mut COUNT: u64 = 0;
fn main() {
    let thread = std::thread::spawn(|| unsafe { COUNT += 1 });
    unsafe { COUNT += 1 };
    thread.join().unwrap();
}
RUST

# told PLACE PROGRAM: ends as a program with a race does, and names the place.
told() {
    "$2" >"$dir/words" 2>&1
    if [ $? != 66 ] || ! grep -q 'ThreadSanitizer: data race' "$dir/words" ||
        ! grep -q "$1" "$dir/words"; then
        cat "$dir/words"
        return 1
    fi
}

instrumented() {
    nm "$1" >"$dir/symbols"
    grep -q __tsan_func_entry "$dir/symbols"
}

# shellcheck disable=SC2086
$CC $FLAGS -c -o "$dir/alone.o" "$dir/alone.c" || exit 1
more=$dir/alone.o
instrumented_cargo thread $OUT rustc -Zbuild-std --lib --crate-type staticlib || exit 1
rm -rf $OUT/c-tests
# shellcheck disable=SC2046,SC2086
instrumented_programs $OUT "$FLAGS" $(printf " $OUT/c-tests/%s" $PROGRAMS) || exit 1
# shellcheck disable=SC2046,SC2086
$CC -Iinclude $FLAGS $(foreign_runtime) -o "$dir/race" "$dir/race.c" \
    $(instrumented_archive $OUT) $more $(foreign_libraries) || exit 1
# Here std may be the one that came with the toolchain.
rustc +nightly -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --target "$host" -g \
    -o "$dir/rust-race" "$dir/race.rs" || exit 1

check 'a race inside the library is told' told 'src/ffi/.*\.rs' "$dir/race"
check 'a race of Rust code is told' told 'race\.rs' "$dir/rust-race"
for program in $PROGRAMS; do
    check "$program is instrumented" instrumented "$OUT/c-tests/$program"
done
check_aloud 'C tests' sh c-tests/run_programs.sh $OUT/c-tests
check_aloud 'Rust tests' instrumented_cargo thread $OUT test -Zbuild-std \
    --test threads --test timing --test regressions --test replies --test ended
for test in threads timing regressions replies ended; do
    for program in "$OUT/cargo/$host/debug/deps/$test"-*; do
        case $program in *.d) continue ;; esac
        check "$program is instrumented" instrumented "$program"
    done
done
sum_up
