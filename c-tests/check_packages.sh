#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# The source as `make dist` packs it: the same bytes wherever it is packed; it builds
# with nothing but itself and Rust, without a network, and wherever it builds the
# programs are the same bytes; what it installs it takes away again. Then Debian's
# packages of it: built, installed, used and removed, where dpkg is.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${MAKE:=make}"
TARGET=$(cd "${CARGO_TARGET_DIR:-target}" && pwd) || exit 1
. c-tests/checks.sh
begin pack

finish() {
    sum_up
    exit
}

skip() {
    echo "SKIPPED: $1"
    skipped=$((skipped + 1))
}

# without_network COMMAND...: with the loopback alone where that is allowed, and with
# nothing of cargo's but what is in the tree either way.
if unshare -rn true 2>/dev/null; then
    without_network() {
        env CARGO_NET_OFFLINE=true unshare -rn "$@"
    }
else
    without_network() {
        env CARGO_NET_OFFLINE=true "$@"
    }
fi
# A toolchain of rustup is found by this when HOME or CARGO_HOME is another.
[ ! -d "$HOME/.rustup" ] || export RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
unset CARGO_TARGET_DIR RUSTFLAGS MAKEFLAGS MAKELEVEL MFLAGS

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=vhost_user_frontend-$version
packed=$dir/$name.tar.xz

# ---- the source ----

if [ ! -e .git ]; then
    skip 'make dist, as this is no checkout made by git'
    finish
fi

pack() {
    "$MAKE" dist && mv "build/$name.tar.xz" "$packed"
}
# The same files elsewhere, at another time, for another user's eyes.
pack_again() {
    git clone -q . "$dir/clone" && git ls-files -z | tar -c --null -T - | tar -x -C "$dir/clone" &&
        git -C "$dir/clone" add -A &&
        (cd "$dir/clone" && umask 077 && TZ=Asia/Tokyo "$MAKE" dist) &&
        cmp "$packed" "$dir/clone/build/$name.tar.xz"
}
check 'the source is packed' pack || finish
check 'packed elsewhere it has the same bytes' pack_again
rm -rf "$dir/clone"

# No program, no library, nothing above its directory.
only_source() {
    tar -tf "$packed" >"$dir/list" && grep -qx "$name/vendor/libc-[0-9.]*/Cargo.toml" "$dir/list" &&
        ! grep -v "^$name/" "$dir/list" && ! grep -E '\.(a|so|o|lib|dll|exe)$' "$dir/list"
}
check 'it has crates, and nothing that is compiled' only_source

# build DIRECTORY: the source unpacked there, and made with an empty CARGO_HOME.
build() {
    mkdir -p "$1" "$1-cargo" && tar -xf "$packed" -C "$1" &&
        (cd "$1/$name" && CARGO_HOME="$1-cargo" without_network "$MAKE" CC="$CC")
}
one=$dir/one
two=$dir/another/directory
check 'it builds without a network' build "$one" || finish
check 'it builds without a network, elsewhere' build "$two" || finish
same_bytes() {
    for file in "$one/$name"/build/*; do
        [ -f "$file" ] || continue
        echo "$file"
        cmp "$file" "$two/$name/build/${file##*/}" || return 1
        ! grep -qF "$dir" "$file" || {
            echo "$file tells where it was built"
            return 1
        }
    done
}
check 'both builds have the same bytes' same_bytes

# ---- what is installed ----

disk() {
    truncate -s 8M "$dir/disk" && rm -f "$dir/socket"
    "$TARGET/debug/examples/embedded_backend" --socket "$dir/socket" --file "$dir/disk" \
        >"$dir/ready" 2>&1 &
    back_end=$!
    tries=0
    until grep -q ready "$dir/ready" || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}
# use ROOT LIBRARIES: the program of the README, with what is installed there.
use() {
    sh c-tests/code_of.sh README.md >"$dir/readme.c" || return 1
    flags=$(PKG_CONFIG_SYSROOT_DIR=$1 PKG_CONFIG_LIBDIR=$1$2/pkgconfig \
        pkg-config --cflags --libs vhost_user_frontend) || return 1
    # shellcheck disable=SC2086
    $CC -Wall -Wextra -Werror -o "$dir/readme" "$dir/readme.c" $flags || return 1
    readelf -d "$dir/readme" | grep -q 'NEEDED.*libvhost_user_frontend.so.0' &&
        LD_LIBRARY_PATH=$1$2 "$dir/readme" "$dir/socket" | grep -x 'capacity  *16384 sectors' &&
        LD_LIBRARY_PATH=$1$2 "$1/usr/bin/vhost-user-probe" "$dir/socket" | grep 'memory slots' &&
        "$1/usr/bin/vuf-mock-backend" --version
}
uninstall_it() {
    "$MAKE" -C "$one/$name" uninstall DESTDIR="$dir/root" PREFIX=/usr LIBDIR=/usr/lib &&
        find "$dir/root" ! -type d >"$dir/left" && cat "$dir/left" && [ ! -s "$dir/left" ]
}
disk
export CARGO_HOME="$one-cargo"
check 'it is installed' without_network "$MAKE" -C "$one/$name" install DESTDIR="$dir/root" \
    PREFIX=/usr LIBDIR=/usr/lib CC="$CC"
check 'what is installed is of use' use "$dir/root" /usr/lib
check 'uninstalled, nothing is left' uninstall_it
unset CARGO_HOME
rm -rf "$two" "$dir/root"

# ---- Debian's packages ----

# As packages.sh does it; only these tests need them.
has_all() {
    for tool; do
        command -v "$tool" >/dev/null || return 1
    done
}
if ! has_all dpkg-buildpackage dh lintian && [ "$(id -u)" = 0 ] && has_all apt-get; then
    timeout 300 apt-get update -q </dev/null >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -q -y --no-install-recommends \
        dpkg-dev debhelper lintian </dev/null >/dev/null 2>&1
fi
has_all dpkg-buildpackage dh || {
    skip 'packages of Debian, as dpkg-dev or debhelper is not installed'
    finish
}
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)

# Rust need not be Debian's: -d.
build_packages() {
    rm -rf "$one/$name/build" "$one-cargo"
    (cd "$one/$name" && without_network dpkg-buildpackage -us -uc -b -d)
}
check 'packages are built' build_packages || finish
packages=$(find "$one" -maxdepth 1 -name '*.deb' ! -name '*-dbgsym_*')

# Each symbol with the version that brings it, for those who depend on it.
symbols() {
    dpkg-deb -I "$one"/libvhost-user-frontend0_*.deb symbols >"$dir/symbols" &&
        sed -n 's/^ *\(vuf_[a-z0-9_]*\)@VUF_0.1 .*/\1/p' "$dir/symbols" | sort >"$dir/in-package" &&
        grep -oE '\bvuf_[a-z0-9_]+;' src/vhost_user_frontend.map | tr -d ';' | sort >"$dir/in-map" &&
        diff "$dir/in-map" "$dir/in-package"
}
check 'the symbols file has every function' symbols

# What it says about an upload to Debian does not count.
clean() {
    lintian --allow-root --fail-on error,warning \
        --suppress-tags initial-upload-closes-no-bugs "$one"/*.changes
}
if has_all lintian; then
    check 'lintian finds nothing' clean
else
    skip 'lintian, which is not installed'
fi

# By dpkg, into a system that is empty but for them.
in_root() {
    # Which asks for programs that an ordinary user's PATH does not have.
    PATH=$PATH:/usr/sbin:/sbin dpkg --root="$dir/root" --force-not-root --force-depends --log=/dev/null "$@"
}
install_packages() {
    mkdir -p "$dir/root/var/lib/dpkg/updates" "$dir/root/var/lib/dpkg/info" &&
        : >"$dir/root/var/lib/dpkg/status" &&
        : >"$dir/root/var/lib/dpkg/available" || return 1
    # shellcheck disable=SC2086
    in_root -i $packages
}
remove_packages() {
    in_root --purge libvhost-user-frontend0 libvhost-user-frontend-dev vhost-user-frontend-tools &&
        find "$dir/root" ! -type d ! -path '*/var/lib/dpkg/*' >"$dir/left" &&
        cat "$dir/left" && [ ! -s "$dir/left" ]
}
pages() {
    for page in man1/vhost-user-probe.1 man1/vuf-mock-backend.1 man7/vhost_user_frontend.7; do
        [ -s "$dir/root/usr/share/man/$page.gz" ] || return 1
    done
}
check 'packages are installed' install_packages || finish
check 'packages are of use' use "$dir/root" "/usr/lib/$multiarch"
check 'packages have the man pages' pages
check 'removed, nothing is left' remove_packages
finish
