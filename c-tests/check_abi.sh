#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The C ABI against its baseline, abi/: what is there must stay exactly as it is;
# what is new may come behind it (docs/abi.md). With --baseline it writes the
# baseline anew, which only adds: to change what is there, remove the file first.
#
# The description is not made of the library, whose debug information tells the
# types as Rust calls them, and otherwise with each compiler, but of a C object
# with the prototypes, structs and constants of the header, and the symbols,
# versions and soname of the library. That the library itself has these structs and
# functions is then seen in its debug information, as far as both languages say the
# same; other tests hold symbols, soname and header against it (check_library.sh).
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}"
HEADER=include/vhost_user_frontend.h
MAP=src/vhost_user_frontend.map
BASELINE=abi/vhost_user_frontend.0.abi
. c-tests/checks.sh
begin abi

# What a program can see of the header, as C that compiles to something: each
# constant in an enum, each function with a body. Of constants and of structs that
# begin with their size, only as much as KNOWN lists: what was added may not hide
# what was changed.
as_c() { # HEADER KNOWN
    {
        echo "#include \"$1\""
        # INT64_MIN so that no new constant makes the enum wider.
        echo 'enum vuf_constants { vuf_widest = INT64_MIN'
        sed -nE '/VUF_(SONAME|VERSION_[A-Z]+) /d; s/^#define (VUF_[A-Z0-9_]+) .*/\1/p' "$1" |
            awk 'BEGIN { while ((getline line < "'"$2"'") > 0) { any = 1; known[line] = 1 } }
                 !any || ("constant " $1) in known {
                     print ", value_of_" $1 " = (int64_t)(" $1 ")" }' | sort
        echo '};'
        echo 'enum vuf_constants vuf_constants;'
    } | $CC -E -P -x c - | tr '\n' ' ' | awk '
        BEGIN { while ((getline line < "'"$2"'") > 0)
                    if (split(line, word, " ") == 3) known[word[2]] = word[3]
                RS = ";" }
        /^ *$/ { next }
        match($0, /struct vuf_[a-z0-9_]+ \{/) {
            # Without padding, or what is appended to a struct would lie inside of
            # what older programs hand over.
            if (!structs++) print "\n#pragma GCC diagnostic error \"-Wpadded\""
            within = 1
            member = 0
            split(substr($0, RSTART, RLENGTH), word, " ")
            grows = (/\{ *size_t size$/ && word[2] in known) ? known[word[2]] : 0 }
        /^ *\}/ { within = 0 }
        within && ++member > grows && grows { next }
        !within && /vuf_[a-z0-9_]+\(.*\)$/ {
            print $0 (/^ *void vuf/ ? " { }" : " { return 0; }")
            next }
        { print $0 ";" }'
}

# describe HEADER MAP KNOWN OUT: as abidw sees it. $debug is -g, or what a test
# has in its place.
describe() {
    as_c "$1" "$3" >"$dir/abi.c"
    { cat "$2" && echo 'VUF_CONSTANTS { global: vuf_constants; };'; } >"$dir/abi.map"
    soname=$(sed -n 's/^#define VUF_SONAME "\(.*\)"/\1/p' "$1")
    (cd "$dir" && $CC -std=gnu11 -O0 $debug -Wno-pedantic -fPIC -shared \
        -o abi.so abi.c -Wl,--version-script=abi.map -Wl,--no-undefined-version \
        -Wl,-soname,"$soname" &&
        abidw --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed \
            --no-architecture --no-parameter-names --type-id-style hash \
            --out-file "$4" abi.so) || return 1
    # Without debug information there would be symbols and nothing else, and
    # nothing could change.
    functions=$(grep -oE '\bvuf_[a-z0-9_]+;' "$2" | wc -l)
    [ "$functions" -gt 0 ] && [ "$functions" = "$(grep -c '<function-decl ' "$4")" ] || {
        echo "the description has not all of the $functions functions of the map"
        return 1
    }
}

# What a description has: constants, and structs with the number of their fields.
known() {
    sed -n "s/^ *<enumerator name='value_of_\([A-Z0-9_]*\)'.*/constant \1/p" "$1"
    awk -F"'" '/<class-decl name=/ { name = $2; fields = 0 }
               /<data-member /     { fields++ }
               /<\/class-decl>/    { print "struct", name, fields }' "$1"
}

# same BASELINE HEADER MAP
same() {
    known "$1" >"$dir/known"
    grep -q '^struct vuf_' "$dir/known" && grep -q '^constant VUF_' "$dir/known" || {
        echo "there is nothing in $1"
        return 1
    }
    describe "$2" "$3" "$dir/known" "$dir/now.abi" &&
        abidiff --no-architecture --no-added-syms --harmless --redundant \
            --fail-no-debug-info "$1" "$dir/now.abi"
}

# shape DESCRIPTION: structs with their sizes, their fields with their places, and
# functions with the number of their arguments.
shape() {
    awk 'function attribute(name) {
             return match($0, " " name "=\047[^\047]*") ? substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) : "" }
         /<class-decl/ {
             struct = attribute("name")
             known = struct ~ /^vuf_/ && attribute("size-in-bits") != "" && !(struct in seen)
             if (known) { seen[struct]; print "struct", struct, attribute("size-in-bits") } }
         /<\/class-decl>/ { known = 0 }
         /<data-member/ { place = attribute("layout-offset-in-bits") }
         /<var-decl/ && known { print "struct", struct, place, attribute("name") }
         /<function-decl name=.vuf_/ { function_name = attribute("name"); arguments = 0 }
         /<parameter type-id=/ { arguments++ }
         /<\/function-decl>/ && function_name != "" {
             print "function", function_name, arguments
             function_name = "" }' "$1" | sort -u
}
# made_so DESCRIPTION LIBRARY: unstripped, as cargo makes it for tests.
made_so() {
    abidw --no-show-locs --no-corpus-path --no-comp-dir-path --out-file "$dir/made.abi" "$2" &&
        shape "$1" >"$dir/stated" && shape "$dir/made.abi" >"$dir/made" || return 1
    grep -q '^struct' "$dir/stated" && grep -q '^function' "$dir/stated" || return 1
    diff "$dir/stated" "$dir/made" >"$dir/difference" && return
    echo 'the header (<) and the debug information of the library (>) differ:'
    cat "$dir/difference"
    return 1
}

debug=-g
: >"$dir/nothing"
describe "$PWD/$HEADER" "$PWD/$MAP" "$dir/nothing" "$dir/whole.abi" || exit 1

if [ "${1-}" = --baseline ]; then
    if [ -e "$BASELINE" ] && ! same "$BASELINE" "$PWD/$HEADER" "$MAP"; then
        echo "$BASELINE is left as it was; if this must be (docs/abi.md), remove it first"
        exit 1
    fi
    # And what programs of this version are made of (check_old_programs.sh).
    version=$(sed -n 's/^#define VUF_VERSION_[A-Z]* //p' $HEADER | paste -sd .)
    mkdir -p "abi/$version" && cp "$dir/whole.abi" "$BASELINE" &&
        cp $HEADER $MAP "abi/$version/" && cp c-tests/linking/consumer.c "abi/$version/program.c"
    exit
fi


check 'the C ABI is as its baseline' same "$BASELINE" "$PWD/$HEADER" "$MAP"
cmp -s "$BASELINE" "$dir/whole.abi" ||
    echo 'there is more than in the baseline; with the next release: make abi-baseline'

library=${CARGO_TARGET_DIR:-target}/debug/libvhost_user_frontend.so
check 'the library has what the header says' made_so "$dir/whole.abi" "$library"

# The rest plants changes, in a copy of the header and of the map, and looks at
# what this very check says. So that releases do not change what is planted in,
# it is compared with a description made just now.
cp "$dir/whole.abi" "$dir/planted.abi"
changed() { # HEADER-EDIT MAP-EDIT
    sed "$1" "$HEADER" >"$dir/planted.h"
    sed "$2" "$MAP" >"$dir/planted.map"
    if cmp -s "$HEADER" "$dir/planted.h" && cmp -s "$MAP" "$dir/planted.map"; then
        echo "nothing was changed by: $1"
        exit 1
    fi
    same "$dir/planted.abi" "$dir/planted.h" "$dir/planted.map" >"$dir/words" 2>&1
}
good() { # WHAT HEADER-EDIT [MAP-EDIT]
    changed "$2" "${3-}"
    result=$?
    [ $result = 0 ] || cat "$dir/words"
    check "allowed: $1" [ $result = 0 ]
}
# It must be abidiff that tells, and not a compiler that an edit does not please.
bad() { # WHAT HEADER-EDIT [MAP-EDIT]
    changed "$2" "${3-}"
    result=$?
    check "told: $1" [ $((result & 4)) = 4 ]
}

in_quiet='/^struct vuf_quiet {/,/^};/'
in_region='/^struct vuf_mem_region {/,/^};/'
in_table='/^struct vuf_api {/,/^};/'
new='s/^uint32_t vuf_version(void);/&\nint vuf_more(struct vuf_quiet *quiet);/'

good 'a function more' "$new" 's/vuf_version;/& vuf_more;/'
good 'a function more, in the version of another release' "$new" \
    '$aVUF_0.2 { global: vuf_more; } VUF_0.1;'
good 'a constant more' 's/^#define VUF_E_NACK .*/&\n#define VUF_E_MORE -5000/'
good 'a field more at the end of what begins with its size' "$in_quiet s/^};/uint64_t more;\n};/"
good 'a function more at the end of the table' "$in_table s/^};/int (*vuf_more)(void);\n};/"
good 'a release' 's/^#define VUF_VERSION_MINOR .*/#define VUF_VERSION_MINOR 77/'

bad 'a function less' '/^uint32_t vuf_version(void);/d' '/vuf_version;/d'
bad 'a function in another version' 's/$//;$a/**/' \
    '/vuf_version;/d;$aVUF_0.2 { global: vuf_version; } VUF_0.1;'
bad 'an argument of another type' 's/vuf_strerror(int rc)/vuf_strerror(long rc)/'
bad 'an argument more' 's/vuf_strerror(int rc)/vuf_strerror(int rc, int more)/'
bad 'an argument that is no longer only read' \
    's/^int vuf_device_get_fd(const struct vuf_device/int vuf_device_get_fd(struct vuf_device/'
bad 'another type of result' 's/^uint32_t vuf_version/uint64_t vuf_version/'
bad 'a field of another size' "$in_quiet s/uint32_t/uint64_t/"
bad 'a field of another sign' "$in_region s/uint32_t xen_domid;/int32_t xen_domid;/"
bad 'a field of another name' "$in_region s/xen_domid;/xen_domain;/"
bad 'fields in another order' "$in_quiet { s/quiesced;/q;/; s/bases_valid;/quiesced;/; s/q;/bases_valid;/ }"
bad 'a field less' "$in_region { /uint64_t reserved\\[/d }"
bad 'a field in the middle' "$in_quiet s/uint32_t quiesced;/uint32_t more; &/"
bad 'a field changed, where another is appended' \
    "$in_quiet { s/uint32_t quiesced;/int32_t quiesced;/; s/^};/uint64_t more;\n};/ }"
bad 'a field more at the end of what stands in arrays' "$in_region s/^};/uint64_t more;\n};/"
bad 'a function of the caller that gets something else' \
    's/(\*get_index)(void \*user, uint32_t ring/(*get_index)(void *user, uint64_t ring/'
bad 'a function in the middle of the table' \
    "$in_table s/uint32_t (\*vuf_version)/int (*vuf_more)(void); &/"
bad 'a function of the table that gets something else' \
    "$in_table s/vuf_strerror)(int rc)/vuf_strerror)(long rc)/"
bad 'a function less in the table' "$in_table { /vuf_error_class/d }"
bad 'a constant of another value' 's/^#define VUF_E_NACK .*/#define VUF_E_NACK -5000/'
bad 'a constant less' '/^#define VUF_E_NACK /d'
bad 'an array of another length' \
    's/^#define VUF_DEVICE_TEXT_SIZE .*/#define VUF_DEVICE_TEXT_SIZE 264/'
bad 'another soname' 's/^#define VUF_SONAME .*/#define VUF_SONAME "libvhost_user_frontend.so.1"/'

padded() {
    changed "$in_quiet s/uint32_t bases_valid;/uint16_t bases_valid;/" ''
    grep -q 'padding' "$dir/words"
}
undescribed() {
    debug=-g0
    changed '$a/**/' ''
    result=$?
    debug=-g
    [ $result = 1 ] && grep -q 'has not all' "$dir/words"
}
emptied() {
    sed '/<class-decl/,/<\/class-decl>/d' "$BASELINE" >"$dir/planted.abi"
    ! changed '$a/**/' '' && grep -q 'there is nothing' "$dir/words"
}
not_made_so() { # HEADER-EDIT WORDS
    changed "$1" ''
    ! made_so "$dir/now.abi" "$library" >"$dir/words" && grep -q "$2" "$dir/words"
}
check 'told: a header with a field elsewhere' not_made_so \
    "$in_quiet { s/quiesced;/q;/; s/bases_valid;/quiesced;/; s/q;/bases_valid;/ }" 'vuf_quiet 64 bases_valid'
check 'told: a header with another struct' not_made_so \
    "$in_region s/uint64_t reserved\[2\];/uint64_t reserved[3];/" 'vuf_mem_region 576'
check 'told: a header with an argument more' not_made_so \
    's/vuf_strerror(int rc)/vuf_strerror(int rc, int more)/' 'vuf_strerror 2'
stripped() {
    strip -g -o "$dir/stripped.so" "$library" || return 1
    ! made_so "$dir/whole.abi" "$dir/stripped.so" >"$dir/words"
}
check 'told: no debug information in the library' stripped
check_aloud 'told: padding' padded
check_aloud 'told: no debug information' undescribed
check_aloud 'told: an empty baseline' emptied

sum_up
