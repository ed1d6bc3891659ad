# SPDX-License-Identifier: Apache-2.0 OR MIT
# Filter for Doxygen: the comments of the header are written to be read there; this
# says in Doxygen's commands what their layout says. So Doxygen also sees which
# parameters are described, and that there are no others.
#
#   name  what it is              @param name what it is
#   Returns 0, otherwise          @return 0, otherwise
#     -EINVAL  why                - `-EINVAL` why
#   other indented lines          as they stand
#
# A handle that comes first and is not described is: the same words would stand at each
# function. So is a pointer to a function of the library, which has the name of that.

# The comment at the top of the file is the first page.
NR == 1 { print "/** @file"; print " * @mainpage"; top = 1; state = "text"; next }
top && $0 == " */" { close_block(); print; top = 0; next }
top { text(substr($0, 4)); next }

$0 == "/**" { comment = 1; n = 0; indent = ""; next }
/^    \/\*\*$/ { comment = 1; n = 0; indent = "    "; next }
comment && /^ *\*\/$/ { comment = 0; pending = 1; next }
comment { line = $0; sub(/^ *\* ?/, "", line); lines[n++] = line; next }

# What the comment is about: up to the end of the prototype, or one line.
pending {
    about = $0
    while (about !~ /^#/ && about ~ /\(/ && about !~ /;$/ && (getline more) > 0) about = about "\n" more
    pending = 0
    print_comment(about)
    if (about ~ /^struct vuf_[a-z_]+;$/) opaque[substr(about, 1, length(about) - 1)] = 1
    print about
    next
}
/^    .*\(\*vuf_[a-z_0-9]+\)\(/ {
    name = $0
    sub(/.*\(\*/, "", name)
    sub(/\).*/, "", name)
    print "    /** " name "() */"
}
{ print }

function print_comment(about,    i, args, handle, type) {
    print indent "/**"
    state = "text"
    args = about ~ /^[^(]*\(/ ? about : ""
    for (i = 0; i < n; i++) text(lines[i], args)
    close_block()
    if (match(args, /\((const )?struct vuf_[a-z_]+ \*[a-z]+[,)]/)) {
        handle = type = substr(args, RSTART + 1, RLENGTH - 2)
        sub(/.*\*/, "", handle)
        sub(/^const /, "", type)
        sub(/ .[a-z]+$/, "", type)
        if (type in opaque && !(handle in described)) print indent " * @param " handle " the " handle
    }
    delete described
    print indent " */"
}

function close_block() {
    if (state == "verbatim") print indent " * @endverbatim"
    if (state == "list") print indent " *"
    state = "text"
}

function escape(s) {
    gsub(/</, "\\<", s)
    gsub(/#/, "\\#", s)
    return s
}

# A line of a comment.
function text(line, args,    word, rest) {
    if (line ~ /^  +[^ ]/) {
        rest = line
        sub(/^ +/, "", rest)
        if (state == "param") {
            print indent " *     " escape(rest)
        } else if (top && rest ~ /^[0-9]+\. /) {
            close_block()
            state = "steps"
            sub(/^[0-9]+\. /, "", rest)
            print indent " * -# " escape(rest)
        } else if (state == "steps") {
            print indent " *    " escape(rest)
        } else if (args != "" && rest ~ /^(-E[A-Z0-9]+|VUF_[A-Z_]+)  /) {
            if (state != "list") close_block()
            state = "list"
            word = rest
            sub(/ .*/, "", word)
            sub(/^[^ ]+ +/, "", rest)
            print indent " * - <tt>" word "</tt> " escape(rest)
        } else if (state == "list") {
            print indent " *   " escape(rest)
        } else {
            if (state != "verbatim") print indent " * @verbatim"
            state = "verbatim"
            print indent " * " line
        }
        return
    }
    close_block()
    word = line
    sub(/ .*/, "", word)
    if (word ~ /^[a-z_0-9]+$/ && line ~ /^[a-z_0-9]+  +[^ ]/ && index(args, word)) {
        state = "param"
        described[word] = 1
        rest = line
        sub(/^[^ ]+ +/, "", rest)
        print indent " * @param " word " " escape(rest)
    } else if (args != "" && line ~ /^Returns /) {
        print indent " * @return " escape(substr(line, 9))
    } else {
        print indent " * " escape(line)
    }
}
