//! Writes the committed corpora, from the table of transcripts that the tests
//! use: `cargo run --bin seed` in this folder. Files of other names stay.

use std::path::Path;
use vhost_user_frontend::message::{Barrier, ProtocolFeatures, Request};

#[allow(dead_code, reason = "not all of it is used here")]
#[path = "../../../tests/simulator/action.rs"]
mod action;
#[path = "../../../tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "not all of it is used here")]
#[path = "../op.rs"]
mod op;

use common::{Answer, CASES, Case, Descriptor, FEATURES, REPLY, hex, message};

/// Flags of an input of `replies`.
const KEEP: u8 = 1;
const SILENT: u8 = 2 | 64;
const CONGESTED: u8 = 8;
const FRESH: u8 = 16;
const HELPFUL: u8 = 32;

/// Script: sends these bytes, with so many descriptors on the last of them.
fn send(bytes: &[u8], fds: u8) -> Vec<u8> {
    let mut script = Vec::new();
    let (first, last) = match fds {
        0 => (bytes, &[][..]),
        _ => bytes.split_at(bytes.len().saturating_sub(15)),
    };
    for chunk in first.chunks(255) {
        script.push(op::BYTES);
        script.extend(u8::try_from(chunk.len()));
        script.extend(chunk);
    }
    for length in u8::try_from(last.len()).into_iter().filter(|n| *n > 0) {
        script.extend([length << 4 | op::GIFTS, fds]);
        script.extend(last);
    }
    script
}

/// Script: the answer in the table.
fn answer(case: &Case, reply_ack: bool) -> Vec<u8> {
    let id = case.request.id();
    let mut script = match case.answer {
        Answer::Own(payload, descriptor) => {
            let fds = u8::from(descriptor == Descriptor::With);
            send(&message(id, REPLY, &hex(payload)), fds)
        }
        Answer::Status => send(&message(id, REPLY, &[0; 8]), 0),
        Answer::Ack(_) if reply_ack => send(&message(id, REPLY, &[0; 8]), 0),
        Answer::Ack(Barrier::Never) | Answer::Nothing => Vec::new(),
        Answer::Ack(_) => {
            let features = send(&message(1, REPLY, &FEATURES.to_ne_bytes()), 0);
            [vec![op::END], features].concat()
        }
    };
    script.push(op::END);
    script
}

/// Behind their number.
fn block(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(0);
    [&length.to_le_bytes()[..], bytes].concat()
}

/// The position of a request in the list.
fn index(request: Request) -> u8 {
    let at = Request::ALL.iter().position(|known| *known == request);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
}

/// A request of `replies`: the arguments are as near to the table as they go.
fn step(request: Request, script: &[u8]) -> Vec<u8> {
    let arguments = match request {
        Request::SetMemTable => [1, 0, 1, 0],
        Request::GetInflightFd => [0, 1, 255, 0],
        Request::GetConfig | Request::SetConfig => [0xa1, 1, 7, 1],
        _ => [3, 8, 0x12, 0],
    };
    [&[index(request)], &arguments[..], &block(script)].concat()
}

fn setup(flags: u8, reply_ack: bool) -> Vec<u8> {
    setup_without(flags, reply_ack, ProtocolFeatures::empty())
}

fn setup_without(flags: u8, reply_ack: bool, without: ProtocolFeatures) -> Vec<u8> {
    let mut protocol = ProtocolFeatures::all() - without;
    protocol.set(ProtocolFeatures::REPLY_ACK, reply_ack);
    let bits = u32::try_from(protocol.bits()).unwrap_or(u32::MAX);
    // Silence is met with deadlines of a millisecond, all else with ample ones.
    let times = if flags & SILENT == 0 { 0b10_1010 } else { 0 };
    [&[flags], &bits.to_le_bytes()[..], &[times]].concat()
}

fn replies(write: &dyn Fn(&str, &[Vec<u8>])) {
    for case in CASES {
        let request = case.request;
        let name = |what: &str| format!("{}-{what}", request.info().name.as_str().to_lowercase());
        let get_features = step(Request::GetFeatures, &[op::GOOD]);
        let ready = |flags: u8| match request {
            // Only for who has no owner yet.
            Request::SetOwner => flags | FRESH,
            _ => flags,
        };
        let good = answer(case, true);
        write(
            &name("answered"),
            &[
                setup(ready(0), true),
                step(request, &good),
                get_features.clone(),
            ],
        );
        if matches!(case.answer, Answer::Ack(_)) {
            let script = answer(case, false);
            write(
                &name("barrier"),
                &[setup(ready(0), false), step(request, &script)],
            );
        }
        if case.answer == Answer::Nothing {
            continue;
        }
        // The answer, a stray one with descriptors, and what comes of it.
        let stray = [&good[..good.len() - 1], &[15 << 4 | op::GIFTS, 2]].concat();
        write(
            &name("surplus"),
            &[
                setup(ready(HELPFUL), true),
                step(request, &stray),
                get_features.clone(),
            ],
        );
        // Given up, and answered behind the next request.
        let id = request.id().to_le_bytes()[0];
        let late = [op::OTHER, id, op::GOOD];
        write(
            &name("late"),
            &[
                setup(ready(KEEP | SILENT), true),
                step(request, &[]),
                step(Request::GetFeatures, &late),
            ],
        );
    }
    let postcopy = [
        Request::PostcopyAdvise,
        Request::PostcopyListen,
        Request::SetMemTable,
        Request::PostcopyEnd,
        Request::SetMemTable,
    ];
    let steps = postcopy.map(|request| step(request, &[])).concat();
    let slots = ProtocolFeatures::CONFIGURE_MEM_SLOTS;
    write("postcopy", &[setup_without(HELPFUL, true, slots), steps]);
    let agreed = [
        Request::GetFeatures,
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures,
        Request::SetFeatures,
        Request::SetVringKick,
        Request::SetVringEnable,
    ];
    let steps = agreed.map(|request| step(request, &[])).concat();
    for reply_ack in [false, true] {
        let name = format!("handshake-{reply_ack}");
        write(&name, &[setup(FRESH | HELPFUL, reply_ack), steps.clone()]);
        let name = format!("congested-{reply_ack}");
        write(
            &name,
            &[setup(CONGESTED | HELPFUL, reply_ack), steps.clone()],
        );
    }
    let one = |name: &str, request, script: &[u8]| {
        write(name, &[setup(0, true), step(request, script)]);
    };
    use Request::{GetConfig, GetInflightFd, GetQueueNum, GetShmemConfig, SetFeatures};
    one("pieces", GetInflightFd, &[4 << 4 | op::PIECES]);
    one("pieces-late-fd", GetInflightFd, &[3 << 4 | op::PIECES]);
    one("many-fds", GetInflightFd, &[15 << 4 | op::GIFTS, 40]);
    one("no-fd", GetInflightFd, &[op::WITH]);
    one("config-of-another-size", GetConfig, &[op::SPOILT, 16, 0, 1]);
    one(
        "regions-miscounted",
        GetShmemConfig,
        &[op::SPOILT, 12, 0, 3],
    );
    one("refused-by-size", GetConfig, &[op::SHORT]);
    one("too-long", GetShmemConfig, &[op::LONG, 0, 16, 1]);
    one("beyond-all", GetShmemConfig, &[op::LONG, 255, 255, 1]);
    one("another-code", GetQueueNum, &[op::HEADER, 1, 5, 8, 0]);
    one("another-version", GetQueueNum, &[op::HEADER, 0, 6, 8, 0]);
    one("nack", SetFeatures, &[op::VALUE, 1]);
    one("hang-up", SetFeatures, &[op::HANG_UP]);
    one(
        "acked-and-gone",
        SetFeatures,
        &[op::GOOD, 2 << 4 | op::HANG_UP],
    );
}

/// Options with all that can be agreed, and a connected socket.
const CLIENT: [u8; 14] = [0, 0, 2, 2, 2, 2, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0];
/// The same without memory slots.
const POSTCOPY_CLIENT: [u8; 14] = [0, 0, 2, 2, 2, 2, 0, 1, 0xff, 0x7f, 0xff, 0xff, 0, 0];

/// What makes a call of `c_api`: its number there, and its arguments.
fn c_call(request: Request) -> &'static [u8] {
    match request {
        Request::GetFeatures => &[6, 0, 0],
        Request::SetFeatures => &[7, 0x41, 0],
        Request::SetOwner => &[10, 0],
        Request::ResetOwner => &[11, 0],
        Request::SetMemTable => &[14, 2, 0, 0, 0, 1, 0, 0, 0, 0],
        Request::SetLogBase => &[17, 0x21, 0, 0, 0],
        Request::SetLogFd => &[18, 0, 0],
        Request::SetVringNum => &[19, 0x48, 3, 0],
        Request::SetVringAddr => &[20, 1, 0x21, 0x22, 0x23, 0x24, 0, 3, 0],
        Request::SetVringBase => &[21, 5, 3, 0],
        Request::GetVringBase => &[22, 2, 0, 3, 0],
        Request::SetVringKick => &[23, 0, 3, 0],
        Request::SetVringCall => &[24, 0, 3, 0],
        Request::SetVringErr => &[25, 0, 3, 0],
        Request::GetProtocolFeatures => &[8, 0, 0],
        Request::SetProtocolFeatures => &[9, 0, 0],
        Request::GetQueueNum => &[12, 0, 0],
        Request::SetVringEnable => &[26, 0, 3, 0],
        Request::SetBackendReqFd => &[29, 0, 0],
        Request::GetConfig => &[27, 16, 1, 0, 8, 0, 0],
        Request::SetConfig => &[28, 20, 1, 0, 3, 0, 0],
        Request::GetInflightFd => &[30, 2, 0, 0, 1, 0, 0, 0],
        Request::SetInflightFd => &[31, 0x23, 0x21, 2, 0, 0, 1, 0, 0, 0, 0],
        Request::GetMaxMemSlots => &[13, 0, 0],
        Request::AddMemReg => &[15, 1, 0, 0, 0, 0],
        Request::RemMemReg => &[16, 1, 0, 0, 0, 0],
        Request::SetDeviceStateFd => &[32, 1, 0, 0, 0],
        Request::CheckDeviceState => &[33, 0],
        Request::GetShmemConfig => &[34, 0, 0, 0],
        Request::SendRarp => &[44, 0x2c, 0],
        Request::NetSetMtu => &[45, 0x48, 0],
        Request::IotlbMsg => &[46, 0x21, 0x22, 0x23, 3, 2, 0, 0, 0],
        Request::SetVringEndian => &[47, 1, 3, 0],
        Request::CreateCryptoSession => &[48, 0, 0, 0, 0, 0, 0],
        Request::CloseCryptoSession => &[49, 7, 0],
        Request::PostcopyAdvise => &[50, 0, 0],
        Request::PostcopyListen => &[51, 0],
        Request::PostcopyEnd => &[54, 0],
        Request::GpuSetSocket => &[55, 0, 0],
        Request::ResetDevice => &[56, 0],
        Request::VringKick => &[57, 3, 0],
        Request::SetStatus => &[58, 15, 0],
        Request::GetStatus => &[59, 0, 0],
        Request::GetSharedObject => &[60, 7, 0, 0, 0],
        Request::GetVringBaseSkipDrain => &[61, 0, 3, 0],
    }
}

fn c_api(write: &dyn Fn(&str, &[Vec<u8>])) {
    const HELPFUL: u8 = 2;
    const WITHOUT_CLIENT: u8 = 4;
    for case in CASES {
        let name = case.request.info().name.as_str().to_lowercase();
        let call = c_call(case.request);
        write(
            &name,
            &[
                [&[HELPFUL], &block(&answer(case, true))[..]].concat(),
                CLIENT.to_vec(),
                call.to_vec(),
                [6, 0, 0].to_vec(),
            ],
        );
    }
    let begin = |flags: u8| [flags, 0, 0].to_vec();
    let all = Request::ALL.iter().copied();
    let several = |requests: &mut dyn Iterator<Item = Request>| {
        requests.flat_map(c_call).copied().collect::<Vec<u8>>()
    };
    write(
        "all",
        &[begin(HELPFUL), CLIENT.to_vec(), several(&mut all.clone())],
    );
    write(
        "all-on-null",
        &[begin(WITHOUT_CLIENT), several(&mut all.clone())],
    );
    c_lists(&|name, parts| {
        write(name, &[&[begin(HELPFUL), CLIENT.to_vec()], parts].concat());
    });
    let postcopy = [
        c_call(Request::PostcopyAdvise),
        c_call(Request::PostcopyListen),
        &[52, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        &[53, 0],
        c_call(Request::PostcopyEnd),
    ];
    write(
        "postcopy",
        &[begin(HELPFUL), POSTCOPY_CLIENT.to_vec(), postcopy.concat()],
    );
    let fresh = [0, 0, 2, 2, 2, 2, 0, 0, 0, 0];
    write(
        "fresh",
        &[
            begin(HELPFUL),
            fresh.to_vec(),
            vec![63],
            several(&mut all.clone().skip(4)),
        ],
    );
    write(
        "aborted",
        &[begin(HELPFUL), CLIENT.to_vec(), vec![4, 6, 0, 0, 5, 3, 5]],
    );
    let path = [0, 5, b'/', b'n', b'o', b'n', b'e'];
    let connect = [&[1], &fresh[..8], &path[..], &[0]].concat();
    write("connect", &[begin(WITHOUT_CLIENT), connect]);
    let accept = [&[2], &fresh[..8], &[0, 0, 6, 0, 0][..]].concat();
    write("accept", &[begin(HELPFUL | WITHOUT_CLIENT), accept]);
    write(
        "words",
        &[
            begin(WITHOUT_CLIENT),
            vec![
                35, 0, 0, 35, 0, 200, 60, 36, 5, 37, 3, 38, 0xea, 0xff, 0xff, 0xff, 39,
            ],
        ],
    );
}

/// Lists of requests, and dirty logs.
fn c_lists(write: &dyn Fn(&str, &[Vec<u8>])) {
    // Which request and ring; nothing odd; its fields.
    let num = [0x10, 0, 0x48];
    let addr = [0x11, 0, 0, 0x21, 0x22, 0x23, 0x24, 0];
    let kick = [0x13, 0, 0];
    let call = [0x14, 0, 0];
    let enable = [0x16, 1];
    let inflight = [9, 0, 12, 0, 0];
    let log = [10, 0, 0];
    let status = [11, 0, 15];
    let mtu = [12, 0, 0x48];
    let rarp = [13, 0, 7];
    // The list is good, and there is a result.
    let rest = [0, 0, 0, 0, 0, 0];
    let one_ring = [&num[..], &addr, &kick, &call, &enable].concat();
    let others = [&inflight[..], &log, &status, &mtu, &rarp].concat();
    write("submit", &[[&[42, 5], &one_ring[..], &rest].concat()]);
    write("submit-others", &[[&[42, 5], &others[..], &rest].concat()]);
    write(
        "submit-many",
        &[[&[42, 0xf5], &one_ring[..], &rest].concat()],
    );
    write("submit-nothing", &[[&[42, 0], &rest[..]].concat()]);
    write(
        "submit-nothing-aborted",
        &[[&[4, 42, 0], &rest[..]].concat()],
    );
    write("submit-null", &[vec![42, 0, 15, 3, 0, 0, 15, 0, 0, 0]]);
    write(
        "submit-get",
        &[[&[42, 2], &num[..], &[14, 0, 0], &rest].concat()],
    );
    for odd in 240..=248 {
        let wrong = [&[0x10, odd, 0x48, 3, 5, 0, 0, 0][..], &kick].concat();
        let name = format!("submit-odd-{odd}");
        write(&name, &[[&[42, 2], &wrong[..], &rest].concat()]);
    }

    let whole = [0, 0, 0, 14];
    write(
        "dirty-log",
        &[[&[43, 0, 0, 2, 1, 2, 5, 0, 1, 9, 0, 0x80, 0], &whole[..]].concat()],
    );
    write(
        "dirty-log-dense",
        &[[&[43, 0, 0, 8, 0, 0, 0], &whole[..]].concat()],
    );
    write(
        "dirty-log-odd",
        &[vec![
            43, 3, 77, 0, 0, 1, 9, 0, 0x55, 0, 0, 5, 0, 0, 90, 1, 0, 0,
        ]],
    );
    write(
        "dirty-log-beyond",
        &[vec![43, 0, 64, 0, 0, 0, 0, 0, 1, 0, 14, 0, 0]],
    );
    write("dirty-log-of-nothing", &[vec![43, 0, 0, 0, 0, 0, 15, 0]]);
    write(
        "dirty-log-huge",
        &[vec![43, 0, 64, 0, 0, 0, 0, 15, 0x80, 15, 0x80, 0]],
    );
}

/// A device (0 or 1) of `c_api` that runs: opened, with a channel, features, memory
/// and a ring.
fn running(which: u8) -> Vec<u8> {
    let open = [which, 0, 0, 0, 5, 0, 128, 128, 128, 0, 0, 0, 0, 0, 0];
    [&[40, 31, which], &open[..], &[0, 8, 0, 0, 0]].concat()
}

/// The calls of `c_api` on a device: their names, numbers and arguments, with the
/// device where it is not null.
const DEVICE_CALLS: [(&str, &[u8]); 30] = [
    ("free", &[2, 0]),
    ("process", &[3, 0, 0, 0]),
    ("wait", &[5, 0, 0]),
    ("get_fd", &[6, 0]),
    ("get_info", &[7, 0, 0, 0]),
    ("get_counters", &[8, 0, 0, 0]),
    ("get_quiet", &[9, 0, 0, 0]),
    ("set_trace", &[10, 1, 0]),
    ("reconnect", &[11, 0]),
    ("set_fd", &[12, 0]),
    ("set_features", &[13, 0x41, 0]),
    ("read_config", &[14, 0, 0, 0, 8, 0, 0, 0]),
    ("overlay_config", &[15, 0, 4, 0, 0, 4, 0, 0]),
    ("write_config", &[15, 1, 8, 0, 0, 4, 0, 0]),
    ("assume_config", &[15, 2, 8, 0, 0, 4, 0, 0]),
    ("set_config_size", &[15, 3, 8, 0, 0, 4, 0, 0]),
    ("wait_config", &[15, 4, 8, 0, 0, 4, 0, 0]),
    ("read_current_config", &[15, 5, 8, 0, 0, 4, 0, 0]),
    ("set_memory", &[17, 2, 0, 1, 0, 1, 0]),
    ("add_memory", &[18, 2, 0, 0]),
    ("remove_memory", &[19, 2, 0, 0, 0]),
    ("memory_fits", &[20, 2, 2, 3, 0, 0]),
    ("get_memory_state", &[21, 0, 0]),
    ("post_iotlb", &[22, 0x21, 0x22, 0x23, 3, 2, 0, 0, 0]),
    ("start", &[23, 1, 0, 9, 0, 0, 0, 0]),
    ("set_call", &[24, 0, 0, 0]),
    ("stop", &[25, 0, 0, 0, 1, 0, 0, 0]),
    ("reset", &[26, 1, 0, 0, 0]),
    ("get_vring_base", &[27, 0, 0, 0]),
    ("hang_up", &[29, 12]),
];

fn c_devices(write: &dyn Fn(&str, &[Vec<u8>])) {
    const GROUP_FIRST: u8 = 8;
    const WITHOUT_CLIENT: u8 = 4;
    let begin = vec![WITHOUT_CLIENT, 0, 0];
    let call = |arguments: &[u8]| [&[40], arguments].concat();
    let go_on = call(&[30, 0]);
    for (name, arguments) in DEVICE_CALLS {
        let name = format!("device-{name}");
        let twice = [call(arguments), go_on.clone(), call(arguments)].concat();
        write(&name, &[begin.clone(), running(0), twice, go_on.clone()]);
    }
    let all: Vec<u8> = DEVICE_CALLS
        .iter()
        .flat_map(|(_, arguments)| call(arguments))
        .collect();
    write("devices-all-on-none", &[begin.clone(), all.clone()]);
    write("devices-all", &[begin.clone(), running(0), all]);
    // Group: new, join, add, wait, set, fits, remove, wait, leave, free.
    let group = [
        &[0, 0][..],
        &[2, 0],
        &[2, 1],
        &[6, 1, 0, 0],
        &[9, 2, 0],
        &[5, 2, 0, 1, 0, 1, 0],
        &[8, 1, 2, 0, 0],
        &[7, 1, 0],
        &[9, 2, 0],
        &[4, 1],
        &[1],
    ];
    let group: Vec<u8> = group
        .iter()
        .flat_map(|step| call(&[&[28], *step].concat()))
        .collect();
    for (name, flags) in [("group", 0), ("group-first", GROUP_FIRST)] {
        let begin = vec![WITHOUT_CLIENT | flags, 0, 0];
        write(name, &[begin, running(0), running(1), group.clone()]);
    }
    // It asks on its channel: a translation, a mapping, and the same with a trace.
    let ask = |id: u8, payload: &[u8]| call(&[&[29, 10, id], &block(payload)[..]].concat());
    let asks = [
        ask(16 | 1, &[0; 32]),
        ask(16 | 2, &[]),
        ask(16 | 32 | 9, &[0; 40]),
    ];
    let asks = [asks.concat(), go_on.clone()].concat();
    let trace = call(&[10, 1, 0]);
    write(
        "device-asked",
        &[begin, running(0), asks.clone(), trace, asks],
    );
}

/// What the back-end asks: a well-made message, with its payload changed so.
fn asked(step: u8, id: u8, flags: u8, changed: &[u8]) -> Vec<u8> {
    [&[step, id | flags], &block(changed)[..]].concat()
}

fn channel(write: &dyn Fn(&str, &[Vec<u8>])) {
    const NEED_REPLY: u8 = 16;
    const OTHER_FDS: u8 = 32;
    const CUT: u8 = 64;
    // As it is, or with one word of the header changed, now or inside a call.
    const WELL: u8 = 1;
    const CALLED: u8 = 4;
    let (process, read, call, leave) = (vec![0x80], vec![0xc0], vec![0xf0], vec![0xff]);
    let posts = vec![8];
    for id in 1..=11 {
        let name = |what: &str| format!("{what}-{id}");
        let one = |step, flags| asked(step, id, flags, &[]);
        let before = asked(WELL, if id == 10 { 9 } else { id }, NEED_REPLY, &[]);
        let loops = [
            posts.clone(),
            before.clone(),
            one(WELL, NEED_REPLY),
            process.clone(),
            read.clone(),
        ];
        write(&name("loop"), &loops);
        let calls = [
            posts.clone(),
            before,
            one(WELL | CALLED, NEED_REPLY),
            call.clone(),
            process.clone(),
        ];
        write(&name("call"), &calls);
        write(
            &name("failing"),
            &[
                vec![1],
                one(WELL | CALLED, NEED_REPLY),
                one(WELL, 0),
                process.clone(),
            ],
        );
        write(
            &name("fds"),
            &[
                vec![0],
                one(WELL | CALLED, OTHER_FDS | NEED_REPLY),
                call.clone(),
            ],
        );
        write(
            &name("cut"),
            &[
                vec![0],
                one(WELL, CUT),
                one(WELL | CALLED, 0),
                process.clone(),
                leave.clone(),
            ],
        );
    }
    for (name, word, change) in [
        ("id", 0, 90),
        ("flags", 1, 4),
        ("size", 2, 8),
        ("huge", 2, -41),
    ] {
        let spoilt = [
            &[2 | CALLED, 9 | NEED_REPLY, word],
            &i32::to_le_bytes(change)[..],
            &[0, 0],
        ]
        .concat();
        write(
            name,
            &[
                vec![0],
                spoilt,
                asked(WELL, 2, NEED_REPLY, &[]),
                call.clone(),
                process.clone(),
            ],
        );
    }
    let whole = message(2, 9, &[]);
    let bytes = |step: u8, part: &[u8], fds: u8| [&[step], &block(part)[..], &[fds]].concat();
    write(
        "pieces",
        &[
            vec![0],
            bytes(0, &whole[..5], 1),
            process.clone(),
            bytes(CALLED, &whole[5..], 0),
            read.clone(),
        ],
    );
    write(
        "crowd",
        &[
            vec![0],
            bytes(0, &whole[..5], 15),
            bytes(CALLED, &whole[5..7], 15),
            bytes(CALLED, &whole[7..], 15),
        ],
    );
    write(
        "garbage",
        &[
            vec![0],
            bytes(CALLED, &[0xff; 40], 3),
            call.clone(),
            process,
        ],
    );
    write(
        "gone",
        &[vec![0], asked(WELL, 9, NEED_REPLY, &[]), call, leave],
    );
}

/// What the scenarios of `tests/device_transcripts.rs` do.
fn device(write: &dyn Fn(&str, &[Vec<u8>])) {
    use ProtocolFeatures as P;
    const ALL: u8 = 1 | 2 | 0xf0;
    let begin = |flags: u8, protocol: P| {
        let bits = u32::try_from(protocol.bits()).unwrap_or(0);
        [&[flags], &bits.to_le_bytes()[..]].concat()
    };
    let (work, process, connect, leave) = (vec![0xf5], vec![0x10], vec![0x0d], vec![0xc4]);
    let up = |features: u8| {
        // Features, memory, two rings.
        let calls = [6, features, 0, 6, 0x11, 0, 6, 4, 0x18, 4, 6, 4, 0x19, 4];
        [&work[..], &calls, &work, &work].concat()
    };
    let (split, packed) = (up(0x10), up(0x50));
    let stop = vec![6, 0x95, 0, 0xf5];
    let resume = vec![6, 4, 0x18, 6, 6, 4, 0x19, 6, 0xf5];
    let reset = vec![6, 7, 0xf5];
    let plug = vec![6, 0x12, 0xf5, 6, 0x13, 0xf5, 6, 0x71, 1, 0xf5];
    let swap = vec![6, 0x16, 0xf5, 6, 0x86, 0xf5];
    let config = vec![6, 8, 3, 1, 0, 7, 6, 8, 20, 1, 0, 7, 6, 10, 0, 0xf5];
    let small = P::MQ | P::REPLY_ACK;
    let kinds = [
        ("plain", P::empty()),
        ("no-reply-ack", P::MQ | P::CONFIG),
        ("small", small),
        ("inflight", small | P::INFLIGHT_SHMFD),
        ("slots", small | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE),
        ("status", small | P::STATUS),
        ("all", P::all()),
    ];
    for (name, protocol) in kinds {
        for (layout, up) in [("split", &split), ("packed", &packed)] {
            let life = [
                begin(ALL, protocol),
                up.clone(),
                stop.clone(),
                resume.clone(),
                plug.clone(),
                swap.clone(),
                config.clone(),
                reset.clone(),
                up.clone(),
            ];
            write(&format!("life-{name}-{layout}"), &life);
            let lost = [
                begin(0x20, protocol),
                up.clone(),
                leave.clone(),
                process.clone(),
                connect.clone(),
                work.clone(),
                stop.clone(),
            ];
            write(&format!("lost-{name}-{layout}"), &lost);
        }
        // Each of some answers is wrong in some way.
        for how in 0..8 {
            let wrong = vec![3, how, 1, 0, 1, 0, 0, 0, 0, 0, 0x22, 0x00];
            let answers = [
                begin(ALL, protocol),
                vec![0, 2, 0],
                wrong.clone(),
                split.clone(),
                vec![6, 7, 6, 0x10, 0, 6, 4, 0x18, 4, 0],
                wrong,
                connect.clone(),
                work.clone(),
            ];
            write(&format!("wrong-{name}-{how}"), &answers);
        }
    }
    for id in 1..=10 {
        let asks = [
            begin(0xff, P::all()),
            split.clone(),
            vec![0x44, id | 16, 40, 0],
            vec![0; 40],
            process.clone(),
            stop.clone(),
        ];
        write(&format!("asks-{id}"), &asks);
    }
    // Histories of the simulator.
    for seed in 1..=24 {
        let history = action::generate(seed);
        let actions = history.into_iter().map(|it| it.encode().to_vec());
        let all: Vec<_> = [b"sim".to_vec()].into_iter().chain(actions).collect();
        write(&format!("history-{seed}"), &all);
    }
}

/// Files that describe back-ends, and such as do not.
const FILES: [(&str, &str); 25] = [
    ("empty", ""),
    (
        "good",
        r#"{"description":"a disk","type":"block","binary":"/usr/bin/it"}"#,
    ),
    (
        "spaced",
        " {\r\n\t\"type\" : \"fs\" , \"binary\" : \"/a\" } \n",
    ),
    (
        "tags",
        r#"{"type":"net","binary":"/b","tags":["x",{"y":[1,-2.5e+3,null]}]}"#,
    ),
    (
        "escapes",
        r#"{"type":"\u0067pu","binary":"\/c\"\\\b\f\n\r\t"}"#,
    ),
    ("surrogates", r#"{"type":"\ud83d\ude00","binary":"/d"}"#),
    ("lone-surrogate", r#"{"type":"\ud83d","binary":"/d"}"#),
    ("nul", r#"{"type":"a\u0000","binary":"/e"}"#),
    ("relative", r#"{"type":"rng","binary":"e"}"#),
    ("no-type", r#"{"binary":"/f"}"#),
    ("empty-type", r#"{"type":"","binary":"/f"}"#),
    ("no-binary", r#"{"type":"scsi"}"#),
    ("type-is-a-number", r#"{"type":1,"binary":"/g"}"#),
    (
        "description-is-null",
        r#"{"description":null,"type":"i2c","binary":"/g"}"#,
    ),
    ("twice", r#"{"type":"a","type":"b","binary":"/h"}"#),
    ("array", r#"["type","binary"]"#),
    ("text", r#""type""#),
    ("number", "-0.0e-1"),
    ("large-number", r#"{"type":"a","binary":"/i","x":1e999}"#),
    ("leading-zero", r#"{"type":"a","binary":"/i","x":01}"#),
    ("comma", r#"{"type":"a","binary":"/i",}"#),
    ("behind", r#"{"type":"a","binary":"/i"} {}"#),
    ("open", r#"{"type":"a","binary":"/i"#),
    ("control-character", "{\"type\":\"a\nb\",\"binary\":\"/i\"}"),
    ("byte-order-mark", "\u{feff}{}"),
];

fn programs(write: &dyn Fn(&str, &[Vec<u8>])) {
    for (name, text) in FILES {
        write(name, &[text.as_bytes().to_vec()]);
    }
    write(
        "not-utf-8",
        &[b"{\"type\":\"\xff\",\"binary\":\"/e\"}".to_vec()],
    );
    let nested = |deep: usize| [b"[".repeat(deep), b"]".repeat(deep)].concat();
    let member = |value: Vec<u8>| {
        let before = br#"{"type":"a","binary":"/j","x":"#.to_vec();
        [before, value, b"}".to_vec()]
    };
    for deep in [31, 32] {
        write(&format!("{deep}-deep"), &member(nested(deep)));
    }
}

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let into = |target: &str| {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        Ok::<_, std::io::Error>(move |name: &str, parts: &[Vec<u8>]| {
            if let Err(error) = std::fs::write(folder.join(name), parts.concat()) {
                panic!("{name}: {error}");
            }
        })
    };
    replies(&into("replies")?);
    c_api(&into("c_api")?);
    c_devices(&into("c_api")?);
    channel(&into("channel")?);
    device(&into("device")?);
    programs(&into("programs")?);
    Ok(())
}
