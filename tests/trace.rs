//! What a client tells of the messages that go over its sockets, and what it
//! counts. The scripted back-end puts every message into words as well, from a
//! table of its own: both have to say the same.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{
    AT_ONCE, Answer, BRIEF, CASES, Case, Descriptor, FEATURES, PATIENCE, Peer, REPLY, adopted,
    both, connected, file, hex, lead_to, message, no_fd_leak, patient, protocol, protocol_for,
    start, wait_until,
};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{
    BackendRequest, Flow, Iotlb, MemRegion, ProtocolFeatures, Request, Socket,
    protocol_feature_name,
};
use vhost_user_frontend::{
    BackendClient, BackendHandler, Counters, Direction, Kind, OnTimeout, Options, Result,
    SharedRegion, TraceRecord, TraceSink, Uuid,
};
use vuf_mock_backend::{Mock, Script};

/// Keeps what it is told.
#[derive(Default)]
struct Lines(Mutex<Vec<TraceRecord>>);

impl Lines {
    fn sink(self: &Arc<Self>) -> Option<TraceSink> {
        let lines = Arc::clone(self);
        Some(Arc::new(move |record| {
            lines.0.lock().unwrap().push(record.clone());
        }))
    }

    /// A client that is traced from here on.
    fn of(client: &BackendClient) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        client.set_trace(lines.sink()).unwrap();
        lines
    }

    fn take(&self) -> Vec<TraceRecord> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn texts(&self) -> Vec<String> {
        let records = self.take();
        records.iter().map(|record| record.text().into()).collect()
    }
}

/// The same request where the answer's descriptor is not the one that [`CASES`]
/// expects.
fn call(case: &Case, client: &BackendClient) -> Result<()> {
    match case.request {
        Request::PostcopyAdvise => client.postcopy_advise().map(drop),
        Request::GetInflightFd => client.get_inflight_fd(2, 256).map(drop),
        Request::SetDeviceStateFd => client
            .set_device_state_fd(Direction::Load, file(0))
            .map(drop),
        Request::GetSharedObject => {
            let uuid = Vec::from_iter(16..32);
            client
                .get_shared_object(&uuid.try_into().unwrap())
                .map(drop)
        }
        _ => (case.call)(client),
    }
}

/// A script that answers this case as [`CASES`] has it.
fn script(case: &Case, protocol: ProtocolFeatures) -> String {
    let names: Vec<_> = (0..64)
        .filter(|bit| protocol.bits() >> bit & 1 != 0)
        .map(|bit| protocol_feature_name(bit).unwrap().as_str())
        .collect();
    let mut script = format!(
        "device features {FEATURES:#x}\ndevice protocol-features {}\n",
        names.join(" ")
    );
    let name = case.request.info().name;
    if let Answer::Own(payload, descriptor) = case.answer {
        let digits: String = payload.split_whitespace().collect();
        if !digits.is_empty() {
            script += &format!("on {name}: payload {digits}\n");
        }
        if descriptor == Descriptor::With {
            script += &format!("on {name}: fds 1\n");
        }
    }
    script
}

/// What the mock wrote of messages, without what it did to them.
fn messages(log: Vec<String>) -> Vec<String> {
    log.into_iter()
        .filter(|line| {
            let line = line.strip_prefix("channel ").unwrap_or(line);
            line.starts_with("> ") || line.starts_with("< ")
        })
        .map(|line| match line.split_once(" [") {
            // Not the regions of a memory table.
            Some((message, faults)) if !faults.starts_with("0x") => message.to_owned(),
            _ => line,
        })
        .collect()
}

/// What the library told of a case after the handshake, when the mock has written
/// the same of all.
fn told_alike(case: &Case, reply_ack: bool) -> Vec<String> {
    let context = format!("{:?}, REPLY_ACK {reply_ack}", case.request);
    let protocol = protocol_for(case.request, reply_ack);
    let script = Script::parse(&script(case, protocol)).unwrap();
    let (socket, mock) = Mock::spawn(script).unwrap();
    let client = BackendClient::from_fd(socket.into(), &patient()).unwrap();
    let lines = Lines::of(&client);
    let before: &[Request] = match case.request {
        Request::PostcopyListen => &[Request::PostcopyAdvise],
        Request::PostcopyEnd => &[Request::PostcopyAdvise, Request::PostcopyListen],
        Request::RemMemReg => &[Request::AddMemReg],
        _ => &[],
    };
    let handshake = || -> Result<()> {
        client.get_features()?;
        client.get_protocol_features()?;
        client.set_protocol_features(protocol.bits())?;
        client.set_features(FEATURES)?;
        before
            .iter()
            .try_for_each(|request| call(Case::of(*request), &client))
    };
    handshake().unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut all = lines.texts();
    let begin = all.len();
    call(case, &client).unwrap_or_else(|error| panic!("{context}: {error}"));
    all.append(&mut lines.texts());
    drop(client);
    let outcome = mock.finish().unwrap();
    assert!(outcome.is_met(), "{context}: {outcome}");
    assert_eq!(all, messages(outcome.log), "{context}");
    all.split_off(begin)
}

/// The lines of all requests, as people are meant to read them.
const GOLDEN: &str = include_str!("trace_lines.txt");

#[test]
fn the_library_and_the_scripted_back_end_tell_the_same_of_every_request() {
    let _leak = no_fd_leak();
    let mut all = Vec::new();
    for reply_ack in [true, false] {
        for case in CASES {
            // Only who inherits a connection can have agreed on that.
            if reply_ack || case.request != Request::VringKick {
                let lines = told_alike(case, reply_ack);
                let sent = Case::of(case.request).request.info().name;
                assert!(lines[0].starts_with(&format!("> {sent}")), "{lines:?}");
                if reply_ack {
                    all.extend(lines);
                }
            }
        }
    }
    let golden: Vec<_> = GOLDEN
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("channel"))
        .collect();
    assert_eq!(all, golden);
}

// ---- the channel ----

/// Refuses what has an odd number, and runs something first.
struct Handler(Box<dyn Fn() + Send + Sync>);

impl BackendHandler for Handler {
    fn handles(&self, _: BackendRequest) -> bool {
        true
    }
    fn iotlb_miss(&self, _: u64, _: u8) -> i32 {
        (self.0)();
        0
    }
    fn host_notifier(&self, _: u8, _: Option<vhost_user_frontend::HostNotifier>) -> i32 {
        0
    }
    fn shared_object_lookup(&self, uuid: &Uuid) -> std::result::Result<OwnedFd, i32> {
        match uuid[0] {
            0 => Ok(file(2).try_clone_to_owned().unwrap()),
            _ => Err(-libc::ENOENT),
        }
    }
    fn shmem_map(&self, _: &vhost_user_frontend::message::ShmemArea, _: OwnedFd) -> i32 {
        0
    }
    fn shmem_unmap(&self, _: &vhost_user_frontend::message::ShmemArea) -> i32 {
        0
    }
}

fn handler() -> Arc<Handler> {
    Arc::new(Handler(Box::new(|| {})))
}

/// What the back-end asks, before it answers GET_QUEUE_NUM.
const ASKED: &[&str] = &[
    "IOTLB_MSG iova=0x10000 iotlb-size=4096 perm=3 type=1 need-reply",
    "IOTLB_MSG iova=0x10000 type=7 need-reply",
    "CONFIG_CHANGE_MSG need-reply",
    "CONFIG_CHANGE_MSG",
    "VRING_HOST_NOTIFIER_MSG index=3 area-size=4096 area-offset=0x20000 need-reply",
    "VRING_HOST_NOTIFIER_MSG index=3 no-fd=1 need-reply",
    "VRING_CALL index=2 need-reply",
    "VRING_ERR index=1",
    "SHARED_OBJECT_ADD uuid=00112233-4455-6677-8899-aabbccddeeff",
    "SHARED_OBJECT_REMOVE uuid=00112233-4455-6677-8899-aabbccddeeff need-reply",
    "SHARED_OBJECT_LOOKUP uuid=00112233-4455-6677-8899-aabbccddeeff",
    "SHARED_OBJECT_LOOKUP uuid=ff112233-4455-6677-8899-aabbccddeeff",
    "SHMEM_MAP shmid=1 fd-offset=4096 shm-offset=0x2000 len=4096 flags=1 need-reply",
    "SHMEM_UNMAP shmid=1 shm-offset=0x2000 len=4096 need-reply",
];

#[test]
fn they_tell_the_same_of_the_channel() {
    let _leak = no_fd_leak();
    let mut text = format!(
        "device features {FEATURES:#x}\ndevice queues 8\ndevice shmem 1=0x10000\n\
         device protocol-features +GET_VRING_BASE_INFLIGHT\n"
    );
    for (asked, nth) in ASKED.iter().zip(1..) {
        text += &format!("on GET_QUEUE_NUM nth={nth}: send {asked}\n");
    }
    let (socket, mock) = Mock::spawn(Script::parse(&text).unwrap()).unwrap();
    let client = BackendClient::from_fd(socket.into(), &patient()).unwrap();
    let lines = Lines::of(&client);
    client.get_features().unwrap();
    let offered = client.get_protocol_features().unwrap();
    let wanted = offered & protocol(true).bits();
    client.set_protocol_features(wanted).unwrap();
    client.set_features(FEATURES).unwrap();
    client.get_shmem_config().unwrap();
    client.open_backend_channel(handler()).unwrap();
    for _ in ASKED {
        client.get_queue_num().unwrap();
        // What needs no answer may come too late for that call.
        thread::sleep(Duration::from_millis(1));
        client.process_backend_requests().unwrap();
    }
    let told = lines.take();
    let counters = client.counters();
    drop(client);
    let outcome = mock.finish().unwrap();
    assert!(outcome.is_met(), "{outcome}");
    let channel = |lines: Vec<String>| -> Vec<String> {
        let lines = lines.into_iter();
        lines.filter(|line| line.starts_with("channel")).collect()
    };
    for record in &told {
        let channel = record.text().starts_with("channel ");
        assert_eq!(record.socket == Socket::Channel, channel, "{record:?}");
        let received = record.text().contains("< ");
        assert_eq!(record.flow == Flow::Received, received, "{record:?}");
        let name = record.name().unwrap();
        let words: Vec<_> = record.text().split(' ').collect();
        assert_eq!(name.as_str(), words[if channel { 2 } else { 1 }]);
    }
    let told = channel(told.iter().map(|record| record.text().into()).collect());
    assert_eq!(told, channel(messages(outcome.log)));
    let golden: Vec<_> = GOLDEN
        .lines()
        .filter(|line| line.starts_with("channel"))
        .collect();
    assert_eq!(told, golden);
    assert_eq!(
        (
            counters.backend_requests_served,
            counters.backend_requests_refused
        ),
        (12, 2)
    );
}

/// What is wrong is told as well, as far as it has come.
#[test]
fn what_breaks_the_protocol_is_told_as_it_came() {
    let _leak = no_fd_leak();
    let reply = |code, flags, payload: &[u8]| message(code, flags, payload);
    let cases: &[(Vec<u8>, &str)] = &[
        (
            reply(1, 1, &[7; 8]),
            "< GET_FEATURES flags=0x1 value=0x707070707070707",
        ),
        (reply(17, REPLY, &[0; 8]), "< GET_QUEUE_NUM value=0"),
        (reply(99, REPLY, &[1, 0]), "< request-99"),
        (
            [
                &reply(1, REPLY, &[1; 16])[..8],
                &9_u32.to_ne_bytes(),
                &[1, 0, 0],
            ]
            .concat(),
            "< GET_FEATURES size=9 payload=3",
        ),
        (
            [&reply(1, REPLY, &[])[..8], &u32::MAX.to_ne_bytes()].concat(),
            "< GET_FEATURES size=0xffffffff payload=0",
        ),
    ];
    for (bytes, text) in cases {
        let (client, peer) = connected(patient());
        let lines = Lines::of(&client);
        let answer = || {
            peer.expect(Request::GetFeatures);
            peer.send(bytes, &[]);
        };
        let (result, ()) = both(|| client.get_features(), answer);
        assert_eq!(result.unwrap_err().kind, Kind::Protocol);
        assert_eq!(lines.texts(), ["> GET_FEATURES", text]);
    }
    // A good one with a descriptor too many.
    let (client, peer) = connected(patient());
    let lines = Lines::of(&client);
    let answer = || {
        peer.expect(Request::GetFeatures);
        peer.send(&message(1, REPLY, &[0; 8]), &[file(0), file(1)]);
    };
    let (result, ()) = both(|| client.get_features(), answer);
    assert_eq!(result.unwrap_err().kind, Kind::Protocol);
    assert_eq!(
        lines.texts(),
        ["> GET_FEATURES", "< GET_FEATURES value=0 fds=2"]
    );
    assert_eq!(client.counters().fds_received, 2);
    assert_eq!(client.counters().replies_received, 0);
}

/// Xen's regions are larger; the mock does not know them.
#[test]
fn regions_as_xen_wants_them() {
    let _leak = no_fd_leak();
    let region = |guest_addr| MemRegion {
        guest_addr,
        size: 0x1000,
        user_addr: guest_addr + 0x7000_0000_0000,
        mmap_offset: 0,
        xen_mmap_flags: 1,
        xen_domid: 7,
    };
    let shared = |index: usize| SharedRegion {
        region: region(0x10_0000 * u64::try_from(index).unwrap()),
        fd: file(index),
    };
    let features = ProtocolFeatures::XEN_MMAP
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let (client, peer) = adopted(FEATURES, features, patient());
    let lines = Lines::of(&client);
    let eight: Vec<_> = (0..8).map(shared).collect();
    both(
        || {
            client.set_mem_table(&eight).unwrap();
            client.add_mem_region(&shared(3)).unwrap();
        },
        || {
            peer.expect(Request::SetMemTable);
            peer.ack(Request::SetMemTable, 0);
            peer.expect(Request::AddMemReg);
            peer.ack(Request::AddMemReg, 0);
        },
    );
    let regions: String = (0..8)
        .map(|n| {
            format!(
                " [{:#x}+0x1000@{:#x}]",
                n * 0x10_0000,
                0x7000_0000_0000_u64 + n * 0x10_0000
            )
        })
        .collect();
    assert_eq!(
        lines.texts(),
        [
            &format!("> SET_MEM_TABLE need-reply regions=8 fds=8{regions}"),
            "< SET_MEM_TABLE value=0",
            "> ADD_MEM_REG need-reply guest-addr=0x300000 region-size=4096 \
             user-addr=0x700000300000 mmap-offset=0 size=48 fds=1",
            "< ADD_MEM_REG value=0",
        ]
    );
}

#[test]
fn keys_are_never_told() {
    let _leak = no_fd_leak();
    let lines = told_alike(Case::of(Request::CreateCryptoSession), true);
    assert_eq!(
        lines,
        [
            "> CREATE_CRYPTO_SESSION op=2 session=0",
            "< CREATE_CRYPTO_SESSION op=2 session=0x102030405060708",
        ]
    );
}

#[test]
fn a_record_has_the_fields_of_the_message() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let lines = Lines::of(&client);
    let case = Case::of(Request::SetMemTable);
    both(
        || (case.call)(&client).unwrap(),
        || common::answer(&peer, case, true, true),
    );
    let records = lines.take();
    let fields: Vec<_> = records
        .iter()
        .map(|r| {
            (
                r.socket, r.flow, r.request, r.flags, r.size, r.fds, r.dropped,
            )
        })
        .collect();
    assert_eq!(
        fields,
        [
            (Socket::Main, Flow::Sent, 5, 0x9, 72, 2, 0),
            (Socket::Main, Flow::Received, 5, 0x5, 8, 0, 0),
        ]
    );
}

// ---- when, and on which thread ----

#[test]
fn a_request_is_told_before_its_reply_is_waited_for() {
    let _leak = no_fd_leak();
    for (reply_ack, request) in [
        (true, Request::GetFeatures),
        (true, Request::SetVringEnable),
        (false, Request::SetVringEnable),
    ] {
        let (client, peer) = adopted(FEATURES, protocol(reply_ack), patient());
        let lines = Lines::of(&client);
        thread::scope(|scope| {
            let call = start(scope, || (Case::of(request).call)(&client));
            peer.expect(request);
            call.settle();
            let mut texts = lines.texts();
            let name = request.info().name.as_str();
            assert!(texts.remove(0).starts_with(&format!("> {name}")));
            let barrier = if reply_ack {
                &[][..]
            } else {
                &["> GET_FEATURES"]
            };
            assert_eq!(texts, barrier);
            client.abort();
            assert_eq!(call.at_once().unwrap_err().kind, Kind::Canceled);
        });
    }
}

#[test]
fn a_request_that_waits_for_room_is_told_when_it_goes_out() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let lines = Lines::of(&client);
    let count = common::fill(&client);
    let case = Case::of(Request::SetMemTable);
    thread::scope(|scope| {
        let call = start(scope, || (case.call)(&client));
        call.settle();
        assert!(lines.texts().is_empty(), "nothing has been sent");
        assert_eq!(client.counters().requests_sent, 0);
        common::drain(&peer, count);
        common::answer(&peer, case, true, true);
        call.at_once().unwrap();
    });
    let texts = lines.texts();
    assert!(texts[0].starts_with("> SET_MEM_TABLE need-reply regions=2 fds=2 [0x0+"));
    assert_eq!(texts[1..], ["< SET_MEM_TABLE value=0"]);
    let counters = client.counters();
    assert_eq!((counters.requests_sent, counters.bytes_sent), (1, 84));
    assert_eq!((counters.fds_sent, counters.replies_received), (2, 1));
}

/// The callback may do what sends nothing, and nothing else.
#[test]
fn nothing_is_locked_meanwhile_but_nothing_may_wait() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let client = Arc::new(client);
    let again: Weak<BackendClient> = Arc::downgrade(&client);
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let entry = iotlb();
    let sink: TraceSink = Arc::new(move |record| {
        let client = again.upgrade().unwrap();
        assert!(client.counters().requests_sent > 0, "{record:?}");
        assert_eq!(client.get_features().unwrap_err().kind, Kind::State);
        assert_eq!(client.set_vring_num(0, 1).unwrap_err().kind, Kind::State);
        assert_eq!(client.post_iotlb(&entry).unwrap_err().kind, Kind::State);
        assert_eq!(client.set_trace(None).unwrap_err().kind, Kind::State);
        count.fetch_add(1, SeqCst);
    });
    client.set_trace(Some(sink)).unwrap();
    for request in [Request::GetFeatures, Request::SetVringEnable] {
        let case = Case::of(request);
        both(
            || (case.call)(&client).unwrap(),
            || common::answer(&peer, case, true, true),
        );
    }
    assert_eq!(seen.load(SeqCst), 4);
    peer.expect_silence();
    client.set_trace(None).unwrap();
}

fn iotlb() -> Iotlb {
    Iotlb {
        iova: 0x1000,
        size: 0x1000,
        user_addr: 0x2000,
        perm: 3,
        kind: 2,
        padding: [0; 6],
    }
}

#[test]
fn a_panic_of_the_sink_leaves_the_connection_as_it_was() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let sink: TraceSink = Arc::new(|_| panic!("as it is meant to"));
    client.set_trace(Some(sink)).unwrap();
    let case = Case::of(Request::GetQueueNum);
    let call = || (case.call)(&client);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    assert!(caught.is_err());
    peer.expect(case.request);
    case.answer(&peer);
    let lines = Lines::of(&client);
    // The answer to the first, which nobody waits for any more, is not lost.
    let (result, ()) = both(
        || (case.call)(&client),
        || common::answer(&peer, case, true, true),
    );
    result.unwrap();
    let reply = "< GET_QUEUE_NUM value=0x102030405060708";
    assert_eq!(lines.texts(), ["> GET_QUEUE_NUM", reply, reply]);
}

#[test]
fn records_of_many_threads_come_in_order_and_one_at_a_time() {
    const THREADS: u32 = 4;
    const CALLS: u32 = 200;
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let inside = Arc::new(AtomicBool::new(false));
    let lines = Arc::new(Lines::default());
    let (busy, kept) = (Arc::clone(&inside), Arc::clone(&lines));
    let sink: TraceSink = Arc::new(move |record| {
        assert!(!busy.swap(true, SeqCst), "two at once");
        kept.0.lock().unwrap().push(record.clone());
        thread::yield_now();
        busy.store(false, SeqCst);
    });
    client.set_trace(Some(sink)).unwrap();
    let wire = thread::scope(|scope| {
        for ring in 0..THREADS {
            let client = &client;
            scope.spawn(move || {
                for num in 0..CALLS {
                    client.set_vring_base(ring, num).unwrap();
                }
            });
        }
        let mut wire = Vec::new();
        for _ in 0..THREADS * CALLS {
            let message = peer.expect(Request::SetVringBase);
            wire.push((message.u32_at(0), message.u32_at(4)));
            peer.ack(Request::SetVringBase, 0);
        }
        wire
    });
    // With the last of them, if another thread was busy at the end.
    client.set_trace(None).unwrap();
    let records = lines.take();
    let lost: u64 = records.iter().map(|record| record.dropped).sum();
    let told = u64::try_from(records.len()).unwrap();
    let dropped = client.counters().trace_dropped;
    assert_eq!(told + dropped, u64::from(2 * THREADS * CALLS));
    assert!(lost <= dropped);
    // In the order of the wire, where none was lost without a gap.
    let mut wire = wire.into_iter();
    let mut open = Some(0_i32);
    for record in &records {
        if record.dropped > 0 {
            open = None;
        }
        let sent = record.flow == Flow::Sent;
        open = open.map(|open| open + if sent { 1 } else { -1 });
        assert!(open.unwrap_or(0) >= 0, "an answer before its request");
        if sent {
            let found = wire.find(|(ring, num)| {
                let text = format!("> SET_VRING_BASE need-reply index={ring} num={num}");
                record.text() == text
            });
            assert!(found.is_some(), "{record:?} is out of order");
        }
    }
    assert_eq!(open.unwrap_or(0), 0);
}

#[test]
fn what_does_not_fit_is_counted_and_the_next_record_says_so() {
    const CALLS: u64 = 300;
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let lines = Arc::new(Lines::default());
    let kept = Arc::clone(&lines);
    let (inside, is_inside) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    let sink: TraceSink = Arc::new(move |record| {
        if record.text() == "> GET_QUEUE_NUM" {
            inside.send(()).unwrap();
            go.lock().unwrap().recv().unwrap();
        }
        kept.0.lock().unwrap().push(record.clone());
    });
    client.set_trace(Some(sink)).unwrap();
    let case = Case::of(Request::GetStatus);
    thread::scope(|scope| {
        let slow = start(scope, || client.get_queue_num());
        is_inside.recv_timeout(PATIENCE).unwrap();
        peer.expect(Request::GetQueueNum);
        peer.ack(Request::GetQueueNum, 4);
        // Others go on meanwhile.
        both(
            || (0..CALLS).for_each(|_| (case.call)(&client).unwrap()),
            || (0..CALLS).for_each(|_| common::answer(&peer, case, true, true)),
        );
        let lost = 1 + 2 * CALLS - 256;
        assert_eq!(client.counters().trace_dropped, lost);
        assert!(lines.take().is_empty());
        let_go.send(()).unwrap();
        assert_eq!(slow.at_once().unwrap(), 4);
        assert_eq!(lines.take().len(), 257);
        both(
            || (case.call)(&client).unwrap(),
            || common::answer(&peer, case, true, true),
        );
        let dropped: Vec<_> = lines.take().iter().map(|record| record.dropped).collect();
        assert_eq!(dropped, [lost, 0]);
        assert_eq!(client.counters().trace_dropped, lost);
    });
}

#[test]
fn who_is_replaced_is_not_told_any_more() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let (inside, is_inside) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    let done = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&done);
    let sink: TraceSink = Arc::new(move |_| {
        inside.send(()).unwrap();
        go.lock().unwrap().recv().unwrap();
        assert!(!over.swap(true, SeqCst), "told once more");
    });
    client.set_trace(Some(sink)).unwrap();
    let lines = Arc::new(Lines::default());
    thread::scope(|scope| {
        let call = start(scope, || client.get_queue_num());
        is_inside.recv_timeout(PATIENCE).unwrap();
        let replace = start(scope, || client.set_trace(lines.sink()));
        replace.settle();
        assert!(!replace.handle.is_finished());
        let_go.send(()).unwrap();
        replace.at_once().unwrap();
        assert!(done.load(SeqCst), "it was running still");
        peer.expect(Request::GetQueueNum);
        peer.ack(Request::GetQueueNum, 4);
        assert_eq!(call.at_once().unwrap(), 4);
    });
    assert_eq!(lines.texts(), ["< GET_QUEUE_NUM value=4"]);
}

/// Something of the caller's that ends with the sink may call the client.
#[test]
fn a_sink_is_let_go_without_the_lock() {
    struct Last(Weak<BackendClient>, Arc<AtomicUsize>);
    impl Drop for Last {
        fn drop(&mut self) {
            if let Some(client) = self.0.upgrade() {
                client.counters();
                self.1.fetch_add(1, SeqCst);
            }
        }
    }
    let _leak = no_fd_leak();
    let (client, _peer) = adopted(FEATURES, protocol(true), patient());
    let client = Arc::new(client);
    let dropped = Arc::new(AtomicUsize::new(0));
    for last in 0..2 {
        let held = Last(Arc::downgrade(&client), Arc::clone(&dropped));
        let sink: TraceSink = Arc::new(move |_| {
            let _ = &held;
        });
        client.set_trace(Some(sink)).unwrap();
        assert_eq!(dropped.load(SeqCst), last);
    }
    client.set_trace(None).unwrap();
    assert_eq!(dropped.load(SeqCst), 2);
}

/// A handler of the channel that posts: told on that thread, in order.
#[test]
fn what_a_handler_posts_is_told_between_request_and_answer() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let client = Arc::new(client);
    let weak: Weak<BackendClient> = Arc::downgrade(&client);
    let handler = Handler(Box::new(move || {
        weak.upgrade().unwrap().post_iotlb(&iotlb()).unwrap();
    }));
    let channel = open(&client, &peer, Arc::new(handler));
    let lines = Lines::of(&client);
    both(
        || client.get_queue_num().unwrap(),
        || {
            peer.expect(Request::GetQueueNum);
            let words = [0x1000_u64, 0x1000, 0].map(u64::to_ne_bytes).concat();
            let miss = [&words[..], &[1, 1, 0, 0, 0, 0, 0, 0]].concat();
            channel.send(&message(1, 0x9, &miss), &[]);
            channel.receive();
            peer.ack(Request::GetQueueNum, 4);
            peer.expect(Request::IotlbMsg);
            peer.ack(Request::IotlbMsg, 5);
        },
    );
    both(
        || client.get_queue_num().unwrap(),
        || {
            peer.expect(Request::GetQueueNum);
            peer.ack(Request::GetQueueNum, 4);
        },
    );
    let mut texts = lines.texts();
    texts.retain(|text| !text.contains("GET_QUEUE_NUM"));
    assert_eq!(
        texts,
        [
            "channel < IOTLB_MSG need-reply iova=4096 iotlb-size=4096 uaddr=0 perm=1 type=1",
            "> IOTLB_MSG need-reply iova=4096 iotlb-size=4096 uaddr=8192 perm=3 type=2",
            "channel > IOTLB_MSG value=0",
            "< IOTLB_MSG value=5",
        ]
    );
    assert_eq!(client.counters().posted_refused, 1);
}

/// Gives the back-end a channel; its end of it.
fn open(client: &BackendClient, peer: &Peer, handler: Arc<Handler>) -> Peer {
    both(
        || client.open_backend_channel(handler).unwrap(),
        || {
            let mut given = peer.expect(Request::SetBackendReqFd);
            peer.ack(Request::SetBackendReqFd, 0);
            Peer::on(given.fds.remove(0))
        },
    )
    .1
}

#[test]
fn a_request_of_the_back_end_is_told_before_its_handler_runs() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let lines = Arc::new(Lines::default());
    let kept = Arc::clone(&lines);
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let handler = Handler(Box::new(move || {
        count.store(kept.0.lock().unwrap().len(), SeqCst);
    }));
    let channel = open(&client, &peer, Arc::new(handler));
    client.set_trace(lines.sink()).unwrap();
    let words = [0x1000_u64, 0x1000, 0].map(u64::to_ne_bytes).concat();
    let miss = [&words[..], &[1, 1, 0, 0, 0, 0, 0, 0]].concat();
    channel.send(&message(1, 0x9, &miss), &[]);
    client.process_backend_requests().unwrap();
    assert_eq!((seen.load(SeqCst), lines.take().len()), (1, 2));
    // A broken one.
    channel.send(&message(2, 0x5, &[]), &[]);
    assert!(client.process_backend_requests().is_err());
    assert_eq!(lines.texts(), ["channel < CONFIG_CHANGE_MSG flags=0x5"]);
}

// ---- numbers ----

/// Exactly what a client has done, but for how long it took.
#[track_caller]
fn counted(client: &BackendClient, expected: Counters) {
    let counters = Counters {
        longest_wait: Duration::ZERO,
        longest_wait_request: None,
        ..client.counters()
    };
    assert_eq!(counters, expected);
}

#[test]
fn every_request_is_counted() {
    let _leak = no_fd_leak();
    for reply_ack in [true, false] {
        for case in CASES {
            let request = case.request;
            let protocol = protocol_for(request, reply_ack);
            let (client, peer) = match request {
                Request::SetOwner => common::handshake(FEATURES, protocol, patient()),
                _ => adopted(FEATURES, protocol, patient()),
            };
            lead_to(request, reply_ack, &client, &peer);
            let before = client.counters();
            both(
                || (case.call)(&client).unwrap(),
                || common::answer(&peer, case, reply_ack, true),
            );
            let barrier = matches!(
                case.answer,
                Answer::Ack(barrier) if !reply_ack && barrier != vhost_user_frontend::message::Barrier::Never
            );
            let (replies, bytes, fds) = match case.answer {
                Answer::Own(payload, descriptor) => (
                    1,
                    12 + hex(payload).len(),
                    usize::from(descriptor == Descriptor::With),
                ),
                Answer::Status => (1, 20, 0),
                Answer::Ack(_) if reply_ack || barrier => (1, 20, 0),
                Answer::Ack(_) | Answer::Nothing => (0, 0, 0),
            };
            let number = |n: usize| u64::try_from(n).unwrap();
            let sent = hex(case.wire).len() + if barrier { 12 } else { 0 };
            let after = client.counters();
            let context = format!("{request:?}, REPLY_ACK {reply_ack}");
            assert_eq!(
                after.requests_sent - before.requests_sent,
                1 + u64::from(barrier),
                "{context}"
            );
            assert_eq!(
                after.barriers - before.barriers,
                u64::from(barrier),
                "{context}"
            );
            assert_eq!(
                after.bytes_sent - before.bytes_sent,
                number(sent),
                "{context}"
            );
            assert_eq!(
                after.fds_sent - before.fds_sent,
                number(case.fds),
                "{context}"
            );
            assert_eq!(
                after.replies_received - before.replies_received,
                replies,
                "{context}"
            );
            assert_eq!(
                after.bytes_received - before.bytes_received,
                number(bytes),
                "{context}"
            );
            assert_eq!(
                after.fds_received - before.fds_received,
                number(fds),
                "{context}"
            );
            assert_eq!(after.timeouts, 0, "{context}");
        }
    }
}

#[test]
fn the_channel_is_counted() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let channel = open(&client, &peer, handler());
    let opened = Counters {
        requests_sent: 1,
        replies_received: 1,
        bytes_sent: 12,
        bytes_received: 20,
        fds_sent: 1,
        ..Counters::default()
    };
    counted(&client, opened);
    // Found, with a descriptor; not found; not known, and no answer is wanted.
    channel.send(&message(8, 0x1, &[0; 16]), &[]);
    channel.send(&message(8, 0x1, &[1; 16]), &[]);
    channel.send(&message(77, 0x1, &[1; 16]), &[file(1), file(2)]);
    for _ in 0..3 {
        client.process_backend_requests().unwrap();
    }
    counted(
        &client,
        Counters {
            bytes_sent: 12 + 2 * 20,
            bytes_received: 20 + 3 * 28,
            fds_sent: 2,
            fds_received: 2,
            backend_requests_served: 1,
            backend_requests_refused: 2,
            ..opened
        },
    );
}

#[test]
fn a_refusal_of_what_nobody_waits_for_is_counted() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    for answer in [0, 1, u64::MAX] {
        client.post_iotlb(&iotlb()).unwrap();
        peer.expect(Request::IotlbMsg);
        peer.ack(Request::IotlbMsg, answer);
    }
    let refused = both(
        || client.set_status(1).unwrap_err(),
        || {
            peer.expect(Request::SetStatus);
            peer.ack(Request::SetStatus, 1);
        },
    );
    assert_eq!(refused.0.kind, Kind::Nack);
    counted(
        &client,
        Counters {
            requests_sent: 4,
            replies_received: 4,
            bytes_sent: 3 * 44 + 20,
            bytes_received: 4 * 20,
            posted_refused: 2,
            ..Counters::default()
        },
    );
}

#[test]
fn timeouts_and_late_answers_are_counted() {
    let _leak = no_fd_leak();
    let options = Options {
        quick: vhost_user_frontend::Timeout::After(BRIEF),
        on_timeout: OnTimeout::Keep,
        ..patient()
    };
    let (client, peer) = adopted(FEATURES, protocol(true), options);
    assert_eq!(client.get_queue_num().unwrap_err().kind, Kind::TimedOut);
    let once = Counters {
        requests_sent: 1,
        bytes_sent: 12,
        timeouts: 1,
        ..Counters::default()
    };
    counted(&client, once);
    let waited = client.counters();
    assert!(waited.longest_wait >= BRIEF && waited.longest_wait < AT_ONCE);
    assert_eq!(waited.longest_wait_request, Some(Request::GetQueueNum));
    // The answer comes late. What is sent then has more time.
    peer.expect(Request::GetQueueNum);
    peer.ack(Request::GetQueueNum, 7);
    both(
        || client.check_device_state().unwrap(),
        || {
            peer.expect(Request::CheckDeviceState);
            peer.ack(Request::CheckDeviceState, 0);
        },
    );
    counted(
        &client,
        Counters {
            requests_sent: 2,
            replies_received: 2,
            bytes_sent: 24,
            bytes_received: 40,
            ..once
        },
    );
    // Nothing of this one goes out.
    let count = common::fill(&client);
    assert_eq!(client.get_queue_num().unwrap_err().kind, Kind::TimedOut);
    common::drain(&peer, count);
    let counters = client.counters();
    assert_eq!((counters.requests_sent, counters.timeouts), (2, 2));
}

#[test]
fn a_barrier_that_times_out_is_one_timeout_and_its_wait_is_that_of_the_request() {
    let _leak = no_fd_leak();
    let options = Options {
        slow: vhost_user_frontend::Timeout::After(BRIEF),
        ..patient()
    };
    let (client, _peer) = adopted(FEATURES, protocol(false), options);
    let error = client.set_vring_enable(0, true).unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut);
    let counters = client.counters();
    assert_eq!((counters.timeouts, counters.barriers), (1, 1));
    assert_eq!(counters.longest_wait_request, Some(Request::SetVringEnable));
    assert!(counters.longest_wait >= BRIEF);
}

#[test]
fn the_longest_wait_is_the_longest() {
    const LONG: Duration = Duration::from_millis(600); // no other, also on a busy machine
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    assert_eq!(client.counters().longest_wait_request, None);
    for (request, time) in [
        (Request::GetQueueNum, Duration::ZERO),
        (Request::GetStatus, LONG),
        (Request::GetMaxMemSlots, Duration::ZERO),
    ] {
        let case = Case::of(request);
        both(
            || (case.call)(&client).unwrap(),
            || {
                peer.expect(request);
                let begin = Instant::now();
                wait_until("the time passes", PATIENCE, || begin.elapsed() >= time);
                case.answer(&peer);
            },
        );
    }
    let counters = client.counters();
    assert_eq!(counters.longest_wait_request, Some(Request::GetStatus));
    assert!(counters.longest_wait >= LONG && counters.longest_wait < PATIENCE);
}
