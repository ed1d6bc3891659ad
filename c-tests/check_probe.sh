#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# check_probe.sh: what vhost-user-probe prints and how it exits: 0 the back-end
# answered, 1 it failed, 2 usage. On all back-ends that are there.
set -u
cd "$(dirname "$0")/.." || exit 1

PROBE=build/vhost-user-probe
BACK_ENDS=${CARGO_TARGET_DIR:-target}/debug/examples
. c-tests/checks.sh
begin probe

end_back_end() {
    end $back_end
    back_end=
}

# start COMMAND...: a back-end that says "ready".
start() {
    end_back_end
    : >"$dir/ready"
    "$@" >"$dir/ready" 2>"$dir/log" &
    back_end=$!
    tries=0
    until grep -q '^ready$' "$dir/ready"; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ]; then
            echo "$1 does not listen:"
            cat "$dir/log"
            exit 1
        fi
        sleep 0.1
    done
}

# probe STATUS [TEXT]... -- ARGUMENT...: the exit status, and what is printed.
probe() {
    wanted=$1
    shift
    : >"$dir/texts"
    while [ "$1" != -- ]; do
        echo "$1" >>"$dir/texts"
        shift
    done
    shift
    timeout 20 "$PROBE" "$@" >"$dir/out" 2>&1
    status=$?
    good=1
    [ $status = "$wanted" ] || good=0
    while read -r text; do
        grep -qF -- "$text" "$dir/out" || {
            echo "'$text' is not printed"
            good=0
        }
    done <"$dir/texts"
    if [ $good = 1 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "vhost-user-probe $*: exit status $status, not $wanted:"
        sed 's/^/    /' "$dir/out"
    fi
}

# json STATUS CONDITION -- ARGUMENT...: the same with --json, where the output is
# one object r and the condition, in Python, is true.
json() {
    wanted=$1
    condition=$2
    shift 3
    if ! command -v python3 >/dev/null; then
        echo 'SKIPPED: --json, as python3 is not installed'
        skipped=$((skipped + 1))
        return
    fi
    timeout 20 "$PROBE" --json "$@" >"$dir/out" 2>"$dir/err"
    status=$?
    if [ $status = "$wanted" ] && python3 - "$dir/out" "$condition" <<'PYTHON'
import json, sys
r = json.load(open(sys.argv[1], encoding="utf-8"))
keys = ["error", "device", "device_guessed", "virtio_features", "protocol_features",
        "queues", "memory_slots", "shared_memory_regions", "config"]
assert list(r) == keys, list(r)
def names(features):
    assert int(r[features]["mask"], 16) == sum(1 << bit["bit"] for bit in r[features]["bits"])
    return [bit["name"] for bit in r[features]["bits"]]
assert eval(sys.argv[2]), sys.argv[2]
PYTHON
    then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "vhost-user-probe --json $*: exit status $status, not $wanted, or not $condition:"
        sed 's/^/    /' "$dir/out" "$dir/err"
    fi
}

# trace FIRST LAST -- ARGUMENT...: with --trace the messages are on the standard
# error, from FIRST to LAST, and the report on the standard output is the same.
trace() {
    first=$1
    last=$2
    shift 3
    timeout 20 "$PROBE" "$@" >"$dir/plain" 2>/dev/null
    timeout 20 "$PROBE" --trace "$@" >"$dir/out" 2>"$dir/err"
    sed '/^vhost-user-probe: /d' "$dir/err" >"$dir/messages"
    if cmp "$dir/plain" "$dir/out" && [ "$(head -n 1 "$dir/messages")" = "$first" ] &&
        tail -n 1 "$dir/messages" | grep -q -- "^$last" &&
        ! grep -qv '^[<>] [A-Z]' "$dir/messages"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "vhost-user-probe --trace $*: not from '$first' to '$last':"
        sed 's/^/    /' "$dir/err"
    fi
}

# start_program COMMAND...: one of another project, which says nothing; who tries
# whether it listens might be its only front-end.
start_program() {
    end_back_end
    rm -f "$socket"
    "$@" >"$dir/log" 2>&1 &
    back_end=$!
    tries=0
    until listening "$socket" || [ $tries -gt 200 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}

# has VARIABLE NAME: whether that program is here.
has() {
    eval "program=\${$1:-}"
    [ -n "$program" ] && return 0
    echo "SKIPPED: the probe on $2, which is not here (c-tests/backends.sh)"
    skipped=$((skipped + 1))
    return 1
}

socket=$dir/socket
truncate -s 8M "$dir/disk"

probe 2 --help --
probe 2 --help -- --no-such-option "$socket"
probe 2 milliseconds -- --timeout soon "$socket"
probe 2 --help -- "$socket" "$socket"
probe 0 'usage' -- --help
probe 1 "$dir/nothing" -- "$dir/nothing"

start "$BACK_ENDS/embedded_backend" --socket "$socket" --file "$dir/disk" --queues 3
probe 0 VERSION_1 REPLY_ACK CONFIGURE_MEM_SLOTS 'queues' 'memory slots' '16384' -- "$socket"

json 0 'r["error"] is None and r["queues"] == 3 and r["device"] == "blk"' -- "$socket"
json 0 'r["device_guessed"] and r["config"]["fields"]["capacity"] == 16384' -- "$socket"
json 0 'not r["device_guessed"] and "VERSION_1" in names("virtio_features")' -- --device blk "$socket"
json 0 'r["device"] == "vsock" and r["config"]["fields"] == {"guest_cid": 16384}' -- \
    --device vsock "$socket"
json 0 'r["config"]["size"] == 4 and len(r["config"]["bytes"]) == 8 and r["device"] is None' -- \
    --config-size 4 "$socket"
json 0 'r["config"] is None and "REPLY_ACK" in names("protocol_features")' -- --config-size 0 "$socket"
json 1 'r["error"]["code"] == -2 and r["error"]["while"] == "connecting" and r["queues"] is None' -- \
    "$dir/nothing \"\\"
trace '> GET_FEATURES' '< GET_CONFIG offset=0 config-size=60 flags=0' -- "$socket"

start "$BACK_ENDS/foreign_backend" --socket "$socket" --log "$dir/requests"
json 0 'r["shared_memory_regions"][0]["bytes"] > 0 and all(
    set(bit) == {"bit", "name", "served"} for bit in r["protocol_features"]["bits"])' -- "$socket"
start "$BACK_ENDS/foreign_backend" --socket "$socket" --log "$dir/requests"
probe 0 RING_PACKED SHMEM 'shared memory' -- "$socket"
changes_nothing() {
    grep '^GET_FEATURES' "$dir/requests" &&
        ! grep -E '^(SET_OWNER|SET_FEATURES|SET_VRING|SET_MEM)' "$dir/requests"
}
check 'the probe changes nothing' changes_nothing

# Alive, but it does not answer: the kernel accepts for it.
kill -STOP "$back_end"
probe 1 GET_FEATURES deadline -- --timeout 300 "$socket"
# What it hangs at is the last message.
trace '> GET_FEATURES' '> GET_FEATURES$' -- --timeout 300 "$socket"
json 1 'r["error"]["code"] == -110 and r["virtio_features"] is None' -- --timeout 300 "$socket"

start "$BACK_ENDS/foreign_backend" --socket "$socket" --log "$dir/requests" --refuse GET_FEATURES
probe 1 GET_FEATURES -- "$socket"
end_back_end

# What is installed, by the files of this test and perhaps others that are there.
# describe FILE TYPE BINARY
describe() {
    mkdir -p "$(dirname "$dir/$1")"
    printf '{"description": "the %s of a test", "type": "%s", "binary": "%s"}' "$2" "$2" "$3" >"$dir/$1"
}
back_ends=$(cd "$BACK_ENDS" && pwd)
describe data/qemu/vhost-user/50-block.json test-block /hidden
describe data/qemu/vhost-user/60-gone.json test-gone /gone
describe conf/qemu/vhost-user/50-block.json test-block "$dir/block"
describe conf/qemu/vhost-user/70-nothing.json test-nothing /nothing
: >"$dir/conf/qemu/vhost-user/60-gone.json"
echo '[]' >"$dir/conf/qemu/vhost-user/80-wrong.json"
# A name that is no UTF-8: the second character is, the others are not.
echo '[]' >"$dir/conf/qemu/vhost-user/$(printf '90-\377\303\244\355\240\200').json"
# It is what its file says, and otherwise that of the embedded back-end.
printf '#!/bin/sh\n[ "$*" != --print-capabilities ] || {\n%s\n}\nexec "%s" "$@"\n' \
    "echo '{\"type\": \"test-block\", \"features\": [\"one\", \"two\"]}'; exit" \
    "$back_ends/inflight_backend" >"$dir/block"
chmod +x "$dir/block"
XDG_DATA_DIRS=$dir/data
XDG_CONFIG_HOME=$dir/conf
export XDG_DATA_DIRS XDG_CONFIG_HOME

probe 0 "test-block: $dir/block" 'description: the test-block of a test' 'features: one two' \
    "file: $dir/conf/qemu/vhost-user/50-block.json" -- --list
probe 0 'test-nothing: /nothing' 'not known: /nothing' 'No such file' -- --list test-nothing
# lacks TEXT -- ARGUMENT...: that is not printed.
lacks() {
    text=$1
    shift 2
    if timeout 20 "$PROBE" "$@" >"$dir/out" 2>&1 && ! grep -qF -- "$text" "$dir/out"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "vhost-user-probe $* fails, or prints '$text':"
        sed 's/^/    /' "$dir/out"
    fi
}
lacks /hidden -- --list
lacks test-gone -- --list
lacks 80-wrong -- --list
lacks test-block -- --list test-nothing
probe 0 "hidden by: $dir/conf/qemu/vhost-user/50-block.json" 'test-gone: /gone' \
    "hidden by: $dir/conf/qemu/vhost-user/60-gone.json" '80-wrong.json: of no use: it is no object' \
    -- --list -v
probe 1 'no back-end is installed for test-gone' -- --list test-gone
probe 2 --help -- --list test-gone test-block
probe 2 --help -- --list --start
probe 2 --help -- --start
probe 2 --help -- --listening "$socket"
if command -v python3 >/dev/null; then
    if "$PROBE" --list -v --json | python3 -c '
import json, sys
found = json.load(open(0, encoding="utf-8"))
for one in found:
    keys = ["file", "type", "description", "binary", "hidden_by", "problem", "features"]
    assert list(one) == keys, list(one)
def of(name):
    return [(one["binary"], one["features"]) for one in found if one["type"] == name]
assert of("test-block") == [(sys.argv[1], ["one", "two"]), ("/hidden", None)], found
assert of("test-nothing") == [("/nothing", None)], found
unknown = "\ufffd"
name = "/90-" + unknown + "\u00e4" + 3 * unknown + ".json"
assert [one["problem"] for one in found if one["file"].endswith(name)] == ["it is no object"], found
' "$dir/block"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo '--list --json is not as it should be'
    fi
fi

# Started, also anew: this one hangs up when it is asked for too much.
probe 0 VERSION_1 INFLIGHT_SHMFD '36 bytes read' -- --device blk --start test-block -- --file "$dir/disk"
probe 0 VERSION_1 'capacity' -- --device blk --start --listening "$back_ends/embedded_backend" -- \
    --file "$dir/disk"
json 0 'r["device"] == "blk" and r["config"]["size"] == 36' -- --device blk --start test-block -- \
    --file "$dir/disk"
probe 1 'no back-end is installed for test-gone' -- --start test-gone
probe 1 'starting' /nothing -- --start test-nothing
probe 1 'closed the connection' -- --start /bin/true
unset XDG_DATA_DIRS XDG_CONFIG_HOME

if command -v qemu-storage-daemon >/dev/null; then
    rm -f "$socket"
    qemu-storage-daemon --pidfile "$dir/pid" \
        --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
        --export "type=vhost-user-blk,id=export,node-name=disk,num-queues=4,addr.type=unix,addr.path=$socket" &
    back_end=$!
    tries=0
    until [ -s "$dir/pid" ] || [ $tries -gt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    probe 0 VERSION_1 LOG_SHMFD 'memory slots' 509 16384 -- "$socket"
    json 0 'r["device"] == "blk" and r["config"]["fields"]["num_queues"] == 4' -- "$socket"
    trace '> GET_FEATURES' '< GET_CONFIG offset=0 config-size=60 flags=0' -- "$socket"
else
    echo 'SKIPPED: the probe on qemu-storage-daemon, which is not installed'
    skipped=$((skipped + 1))
fi


# The scripted back-end shows what no other here has: the configuration space of a
# network device, a type that could be two, bytes that are no text, and what it
# wrote down by itself.
# scripted STATEMENT...
scripted() {
    end_back_end
    rm -f "$socket"
    for statement; do
        echo "$statement"
    done >"$dir/script"
    start build/vuf-mock-backend --socket "$socket" --script "$dir/script" --log "$dir/mock"
}
mac='525400123456 0100 0400 dc05 10270000 01 28 8000 07000000'
mac=$(echo "$mac" | tr -d ' ')
# MTU, MAC, STATUS, MQ, and 57, 60, 63.
scripted 'device features +3 +5 +16 +22 +57 +60 +63' "device config $mac"
probe 0 'mac: 52:54:00:12:34:56' 'status: 1' 'max_virtqueue_pairs: 4' 'mtu: 1500' \
    'speed (Mbit/s): 10000' 'duplex: 1' 'rss_max_key_size: 40' \
    'rss_max_indirection_table_length: 128' 'supported_hash_types: 7' -- --device net "$socket"
json 0 'r["config"]["fields"] == {"mac": "52:54:00:12:34:56", "status": 1,
    "max_virtqueue_pairs": 4, "mtu": 1500, "speed": 10000, "duplex": 1, "rss_max_key_size": 40,
    "rss_max_indirection_table_length": 128, "supported_hash_types": 7}' -- --device net "$socket"
probe 0 '00  52 54 00 12' -- --config-size 24 "$socket"
# Of these fields only one is valid.
scripted 'device features +3' "device config $mac"
json 0 'r["config"]["fields"] == {"mtu": 1500}' -- --device net "$socket"
# The line for each message that the back-end writes is that of the trace.
scripted 'device features +3' "device config $mac"
"$PROBE" --trace --device net "$socket" 2>"$dir/messages" >/dev/null
end_back_end
sed -n 's/^ *[0-9.]* \([<>] .*\)/\1/p' "$dir/mock" >"$dir/mock-messages"
if [ -s "$dir/messages" ] && diff "$dir/messages" "$dir/mock-messages"; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    echo 'the trace is not what the back-end wrote down'
fi
# fs: a tag with a quote, a byte that is no ASCII, and a zero in the middle.
tag=$(printf '61225cff00%062d' 0)
scripted "device config ${tag}02000000"
json 0 'r["config"]["fields"] == {"tag": "a\"\\\xff", "num_request_queues": 2}' -- --device fs "$socket"
probe 0 'tag: a"\x5c\xff' 'num_request_queues: 2' -- --device fs "$socket"
json 0 'r["device"] is None and r["config"]["fields"] == {}' -- --config-size 40 "$socket"

eval "$(sh c-tests/backends.sh --env)"
if has VUF_VIRTIOFSD virtiofsd; then
    mkdir "$dir/share"
    # It serves one front-end, and then ends.
    virtiofsd() {
        start_program "$program" --socket-path "$socket" --shared-dir "$dir/share" --sandbox none \
            --seccomp none --tag 'some tag'
    }
    virtiofsd
    probe 0 'tag: some tag' 'num_request_queues: 1' VERSION_1 -- --device fs "$socket"
    virtiofsd
    json 0 'r["config"]["fields"] == {"tag": "some tag", "num_request_queues": 1}' -- --device fs "$socket"
    describe own/qemu/vhost-user/50-virtiofsd.json fs "$program"
    XDG_CONFIG_HOME=$dir/own probe 0 "fs: $program" separate-options -- --list fs
    probe 0 'tag: some tag' 'num_request_queues: 1' -- --device fs --start --listening "$program" -- \
        --shared-dir "$dir/share" --sandbox none --seccomp none --tag 'some tag'
fi
if has VUF_VHOST_DEVICE_VSOCK vhost-device-vsock; then
    start_program "$program" --guest-cid 77 --socket "$socket" --uds-path "$dir/uds"
    probe 0 'guest_cid: 77' -- --device vsock "$socket"
    json 0 'r["config"]["fields"] == {"guest_cid": 77}' -- --device vsock "$socket"
fi
if has VUF_VHOST_DEVICE_SCSI vhost-device-scsi; then
    scsi() {
        start_program "$program" -r -s "$socket" "$dir/disk"
    }
    scsi
    probe 0 'cdb_size: 32' 'sense_size: 96' num_queues -- --device scsi "$socket"
    scsi
    json 0 'r["device"] == "scsi" and r["device_guessed"] and r["config"]["fields"]["cdb_size"] == 32' -- \
        --config-size 36 "$socket"
fi
if has VUF_DPDK_TESTPMD dpdk-testpmd; then
    # Both threads on the first processor that we may use; one of them sleeps. What
    # it leaves behind goes away with the directory.
    cpu=$(sed -n 's/^Cpus_allowed_list:[^0-9]*\([0-9]*\).*/\1/p' /proc/self/status)
    RUNTIME_DIRECTORY=$dir
    export RUNTIME_DIRECTORY
    start_program "$program" --lcores "0@$cpu,1@$cpu" --no-huge -m 128 --no-pci --no-telemetry --no-shconf \
        --vdev "net_vhost0,iface=$socket,queues=1" -- --auto-start --forward-mode=io \
        --total-num-mbufs=2048 --no-flush-rx --no-lsc-interrupt --disable-link-check --stats-period=30
    probe 0 MRG_RXBUF 'queues' -- --device net "$socket"
    json 0 'r["config"] is None and "MRG_RXBUF" in names("virtio_features")' -- --device net "$socket"
    trace '> GET_FEATURES' '< GET_MAX_MEM_SLOTS\|< GET_QUEUE_NUM' -- --device net "$socket"
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
