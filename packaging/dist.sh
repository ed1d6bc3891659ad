#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# dist.sh NAME: build/NAME.tar.xz, the source in a directory NAME: what git has of this
# checkout, and below vendor/ all crates, so that it builds without a network. The same
# commit gives the same bytes, wherever and whenever it is made.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"

name=$1
tree=build/dist/$name
[ -e .git ] || {
    echo 'make dist: needs a checkout made by git; this is the source already' >&2
    exit 1
}
git diff --quiet HEAD ||
    echo 'make dist: the checkout differs from the commit, and so will the tarball' >&2
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"

rm -rf build/dist
mkdir -p "$tree/.cargo"
git ls-files -z >build/dist/files
tar -c --null -T build/dist/files -f build/dist/tracked.tar
tar -x -C "$tree" -f build/dist/tracked.tar

# Also those of the programs that have a lock file of their own.
(
    cd "$tree"
    $CARGO vendor --quiet --locked --versioned-dirs -s mock/Cargo.toml -s fuzz/Cargo.toml \
        vendor
    cat >.cargo/config.toml <<'TOML'
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "vendor"
TOML
)
# Objects and libraries for Windows and WebAssembly, which a build on Linux has no use
# for, and whose source is not there. Cargo looks for what the list of checksums names.
find "$tree/vendor" -type f | grep -E '\.(a|o|so|lib|dll|exe)$' |
    while read -r file; do
        crate=$(echo "$file" | sed 's|\(.*/vendor/[^/]*\)/.*|\1|')
        inside=${file#"$crate/"}
        sed -i -e "s|\"$inside\":\"[0-9a-f]*\",||" -e "s|,\"$inside\":\"[0-9a-f]*\"||" \
            -e "s|\"$inside\":\"[0-9a-f]*\"||" "$crate/.cargo-checksum.json"
        rm "$file"
    done

LC_ALL=C tar -c -C build/dist --sort=name --owner=0 --group=0 --numeric-owner \
    --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" --format=gnu -f "build/$name.tar" "$name"
xz -4 -T1 -f "build/$name.tar"
rm -rf build/dist
echo "build/$name.tar.xz"
