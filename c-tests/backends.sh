#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The real back-ends that real_*.c drive: built or unpacked once for this
# user, outside of any checkout, and only looked up after that.
#
#   backends.sh all | NAME...    gets them; what cannot be had is SKIPPED
#   backends.sh --path NAME      where the program is; exit status 1: nowhere
#   backends.sh --env            the same as assignments, for a shell's eval
#
# Each has a directory with its version, which appears whole or not at all.
set -u

# Those from crates: name and version in one.
CRATES='virtiofsd@1.14.0 vhost-device-rng@0.1.0 vhost-device-vsock@0.3.0
    vhost-device-console@0.1.0 vhost-device-scsi@0.1.0'
TESTPMD=dpdk-testpmd # from the packages of Debian, in their version

: "${CARGO:=cargo}"
CACHE=${XDG_CACHE_HOME:-${HOME-}/.cache}/vhost_user_frontend

usage() {
    sed -n '6,8s/^# *//p' "$0" >&2
    echo "names: $(names)" >&2
    exit 2
}

names() {
    for crate in $CRATES; do
        printf '%s ' "${crate%@*}"
    done
    echo $TESTPMD
}

# The crate of a name, or nothing.
crate_of() {
    for crate in $CRATES; do
        [ "${crate%@*}" != "$1" ] || echo "$crate"
    done
}

# Where the program of a name is, if it is there.
path_of() {
    crate=$(crate_of "$1")
    if [ -n "$crate" ]; then
        set -- "$CACHE/$1-${crate#*@}/bin/$1"
    else
        set -- "$CACHE/$1"-*/bin/"$1"
    fi
    for path; do :; done # the last: of several versions any will do
    [ -x "$path" ] && echo "$path"
}

# VUF_ and the name in capitals: VUF_VHOST_DEVICE_RNG.
print_environment() {
    for name in $(names); do
        path=$(path_of "$name") || continue
        printf "export VUF_%s='%s'\n" "$(echo "$name" | tr a-z- A-Z_)" "$path"
    done
}

# The last words of a log, in one line.
reason() {
    grep -E '^(error|E:)' "$1" | tail -n 1 | grep . || tail -n 1 "$1"
}

skip() { # skip NAME REASON
    echo "SKIPPED: $1: $2"
}

# ---- from crates ----

has_header() {
    printf '#include <%s>\n' "$1" | "${CC:-cc}" -fsyntax-only -x c - 2>/dev/null
}

# virtiofsd links with two C libraries.
debian_packages() {
    has_header cap-ng.h || echo libcap-ng-dev
    has_header seccomp.h || echo libseccomp-dev
}

# install_packages LOG: as packages.sh does it.
install_packages() {
    missing=$(debian_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get; then
        apt-get update -q
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
    fi </dev/null >>"$1" 2>&1
    missing=$(debian_packages)
    [ -z "$missing" ]
}

# from_crate CRATE NEW LOG: fills the directory NEW.
from_crate() {
    cd "$CACHE" || return 1 # no configuration of a checkout
    if [ "${1%@*}" = virtiofsd ] && ! install_packages "$3"; then
        echo "error: missing:" $missing >>"$3"
        return 1
    fi
    # Two attempts, not more: without a network this is to end soon.
    # shellcheck disable=SC2086
    CARGO_TARGET_DIR=$CACHE/build CARGO_NET_RETRY=1 CARGO_TERM_COLOR=never \
        $CARGO install --locked --root "$2" "$1" </dev/null >>"$3" 2>&1
}

# ---- from packages ----

# The packages that testpmd needs and that are not installed. To install them
# would bring a system's worth; unpacked, they are a directory.
testpmd_packages() {
    echo dpdk-dev
    apt-get install -s --no-install-recommends dpdk-dev 2>/dev/null |
        awk '$1 == "Inst" && $2 ~ /^lib|^ibverbs/ && $2 !~ /-dev$|systemd|udev|^librte-meta/ {
            print $2 }'
}

# from_packages NEW LOG: fills the directory NEW.
from_packages() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || {
        echo 'error: needs apt-get and dpkg' >>"$2"
        return 1
    }
    mkdir -p "$1/packages" "$1/bin" && cd "$1/packages" || return 1
    [ "$(id -u)" != 0 ] || apt-get update -q </dev/null >>"$2" 2>&1
    # shellcheck disable=SC2046
    apt-get download -q $(testpmd_packages) </dev/null >>"$2" 2>&1 || return 1
    for package in *.deb; do
        dpkg -x "$package" .. || return 1
    done
    cd .. && rm -rf packages usr/share usr/include || return 1
    wrapper >bin/$TESTPMD && chmod +x bin/$TESTPMD || return 1
    bin/$TESTPMD --help </dev/null 2>>"$2" | grep -q 'EAL common options'
}

# Runs testpmd where it lies, with the drivers that the tests need.
wrapper() {
    cat <<'SH'
#!/bin/sh
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
libraries=$(dirname "$(find "$root/usr/lib" -name 'librte_eal.so.*' | head -n 1)")
abi=$(basename "$libraries"/librte_eal.so.[0-9][0-9] | sed 's/.*\.//')
export LD_LIBRARY_PATH="$libraries:$root/lib/$(basename "$libraries")"
exec "$root/usr/bin/dpdk-testpmd" -d "librte_mempool_ring.so.$abi" \
    -d "librte_net_vhost.so.$abi" "$@"
SH
}

# ---- the cache ----

version_of() { # of a name that path_of did not find
    crate=$(crate_of "$1")
    if [ -n "$crate" ]; then
        echo "${crate#*@}"
    else
        apt-cache policy dpdk-dev 2>/dev/null | sed -n 's/^ *Candidate: *//p' | tr ':~+' '---'
    fi
}

# get NAME: makes it if it is not there.
get() {
    if path_of "$1"; then
        return 0
    fi
    new=$CACHE/.new.$$
    log=$CACHE/$1.log
    rm -rf "$CACHE"/.new.* # of runs that were cut off: only we have the lock
    mkdir "$new" && : >"$log" || return 1
    crate=$(crate_of "$1")
    if [ -n "$crate" ]; then
        (from_crate "$crate" "$new" "$log")
    else
        (from_packages "$new" "$log")
    fi || {
        rm -rf "$new"
        skip "$1" "$(reason "$log")"
        return 1
    }
    mv "$new" "$CACHE/$1-$(version_of "$1")" && rm -f "$log"
    path_of "$1" || {
        skip "$1" 'it was made, but is not there'
        return 1
    }
}

get_all() {
    kept=
    for name; do
        get "$name" || kept=yes
    done
    # What was compiled on the way is of use only to who tries again.
    [ -n "$kept" ] || rm -rf "$CACHE/build"
}

# ---- arguments ----

known() {
    case " $(names) " in *" $1 "*) ;; *) usage ;; esac
}

case ${1-} in
--path)
    [ $# = 2 ] || usage
    known "$2"
    path_of "$2"
    exit
    ;;
--env)
    print_environment
    exit
    ;;
all)
    # shellcheck disable=SC2046
    set -- $(names)
    ;;
'' | -*) usage ;;
esac
for name; do
    known "$name"
done

all_there() {
    for name; do
        path_of "$name" >/dev/null || return 1
    done
}

# Then there is no need to wait for another run.
if all_there "$@"; then
    get_all "$@"
    exit 0
fi

skip_all() { # skip_all REASON NAME...
    why=$1
    shift
    for name; do
        skip "$name" "$why"
    done
    exit 0
}

mkdir -p "$CACHE" || skip_all "cannot make $CACHE" "$@"
command -v flock >/dev/null || skip_all 'needs flock (package util-linux)' "$@"
exec 9>"$CACHE/lock"
flock 9
trap 'rm -rf "$CACHE/.new.$$"' EXIT
trap 'exit 130' INT TERM
get_all "$@" 9>&- # not for what they leave running
exit 0
